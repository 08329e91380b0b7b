"""Small pairs, and manifests of them, that tests of surveys share."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from scenes import command


def make_pairs(directory: Path, number: int, first_seed: int = 1) -> list[Path]:
    """Directories with a small science image and template each."""
    pairs = []
    for i in range(number):
        pair = directory / f"pair{i}"
        code, _, messages = command(
            *("simulate", "--output", pair, "--size", "200x190", "--seed", first_seed + i, "-q"),
            *("--stars", 120, "--galaxies", 5, "--transients", 4, "--bad-columns", 0),
            *("--nan-pixels", 0, "--science-psf", 2.2, "--template-psf", 1.7),
        )
        assert code == 0, messages
        pairs.append(pair)
    return pairs


def write_manifest(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def bad_pairs(directory: Path, good: Path) -> list[dict[str, Any]]:
    """Six pairs that cannot be subtracted, each for another reason, and a word of it."""
    directory.mkdir()
    science, template = good / "science.fits", good / "template.fits"
    missing = {"science": directory / "missing.fits", "template": template}
    whole = science.read_bytes()
    (directory / "cut.fits").write_bytes(whole[: len(whole) // 2])
    (directory / "text.fits").write_text("no FITS file\n")
    shape = fits.getdata(science, "IMAGE").shape
    # Without a WCS nobody knows which part of the other it is.
    small = np.random.default_rng(3).normal(0, 30, (shape[0] - 40, shape[1] - 10))
    fits.writeto(directory / "small.fits", small.astype(np.float32))
    noise = np.random.default_rng(4).normal(0, 30, shape).astype(np.float32)
    for name in ("empty", "empty2"):
        fits.writeto(directory / f"{name}.fits", noise)
        noise = noise[::-1].copy()
    fits.writeto(directory / "nan.fits", np.full(shape, np.nan, np.float32))
    rows = [
        missing | {"reason": "no such file"},
        {"science": directory / "cut.fits", "template": template, "reason": "truncated"},
        {"science": science, "template": directory / "text.fits", "reason": "FITS"},
        {
            "science": science,
            "template": directory / "small.fits",
            "reason": "cut it to the same pixels",
        },
        {
            "science": directory / "empty.fits",
            "template": directory / "empty2.fits",
            "reason": "No source stands out",
        },
        {"science": directory / "nan.fits", "template": template, "reason": "No pixel is usable"},
    ]
    return [row | {"name": f"bad{i}"} for i, row in enumerate(rows)]


def copy_pair(pair: Path, directory: Path) -> Path:
    directory.mkdir(parents=True)
    for name in ("science.fits", "template.fits"):
        shutil.copy(pair / name, directory / name)
    return directory
