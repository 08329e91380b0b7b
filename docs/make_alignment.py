"""Measures what docs/alignment.md shows, through the command line: python docs/make_alignment.py

Simulated pairs on two grids, aligned and subtracted; whiteness of the difference, what is left of
stars, and fluxes of transients.  Half an hour on one core.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from grids import Scene, flux_ratios, residuals
from whitediff.formats import read_exposure

REALISATIONS = 4
FRAME: dict[str, Any] = {
    "shape": (1100, 1120), "template_shape": (1180, 1200), "stars": 260, "transients": 60,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "3°, pixels 1.1 times as large": {},
    "the same, TPV": {"projection": "TPV"},
    "the same, wider PSF than the science image": {"science_sigma": 1.9, "template_sigma": 2.6},
    "half a pixel along both axes": {"rotation": 0.0, "scale": 1.0, "shift": (0.5, 0.5)},
    "0.03°: phases from side to side": {"rotation": 0.03, "scale": 1.0, "shift": (0.2, 0.1)},
    "25°, pixels 0.8 times as large": {"rotation": 25.0, "scale": 0.8, "shift": (200.0, -100.0)},
}
OTHER_NOISE = ("3°, pixels 1.1 times as large", "half a pixel along both axes")


def command(*arguments: object) -> None:
    """Run whitediff."""
    subprocess.run(
        [sys.executable, "-m", "whitediff.cli", *map(str, arguments), "--overwrite", "-q"],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def measured(directory: Path, truth: dict[str, Any], method: str, noise: str) -> dict[str, Any]:
    """Align, subtract and measure."""
    science, template = directory / "science.fits", directory / "template.fits"
    aligned, difference = directory / "aligned.fits", directory / "difference.fits"
    command("align", template, "--to", science, "--output", aligned, "--method", method)
    command("subtract", science, aligned, "--output", difference, "--noise", noise)
    command("check", difference, "--json", directory / "check.json")
    found = json.loads((directory / "check.json").read_text())
    exposure = read_exposure(difference)
    ratios, errors = flux_ratios(exposure, truth["transients"])
    return {
        "filtered": found["after"]["filtered_variance_ratio"],
        "pixel": found["after"]["pixel_variance_ratio"],
        "cells": np.array(found["map"]["after"]["filtered_variance_ratio"], dtype=float),
        "cell_errors": np.array(
            found["map"]["after"]["filtered_variance_ratio_error"], dtype=float
        ),
        "error": found["after"]["filtered_variance_ratio_error"],
        "chi_square": residuals(exposure, truth["stars"]).mean(),
        "flux": np.average(ratios, weights=errors**-2),
        "flux_error": (errors**-2).sum() ** -0.5,
        "worst": np.abs(ratios - 1)[errors < 0.006].max(),
        "pull": np.std((ratios - 1) / errors),
    }


def row(name: str, results: list[dict[str, Any]]) -> str:
    """One line of the table."""
    mean = {key: np.mean([each[key] for each in results], axis=0) for key in results[0]}
    n = np.sqrt(len(results))
    cells = mean["cells"][mean["cell_errors"] < 0.1]
    return (
        f"| {name} | {mean['filtered']:.3f} ± {mean['error'] / n:.3f}"
        f" | {cells.min():.2f} to {cells.max():.2f} (± {mean['cell_errors'].min() / n:.2f})"
        f" | {mean['pixel']:.3f} | {mean['chi_square']:.3f}"
        f" | {mean['flux']:.4f} ± {mean['flux_error'] / n:.4f}"
        f" | {mean['worst']:.3f} | {mean['pull']:.2f} |"
    )


def main() -> None:
    """Print the table."""
    for name, options in CASES.items():
        kinds = [("interpolating", "auto"), ("adaptive", "auto")]
        if name in OTHER_NOISE:
            kinds += [("interpolating", "measured"), ("interpolating", "white")]
        found: dict[tuple[str, str], list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for seed in range(REALISATIONS):
            with tempfile.TemporaryDirectory() as temporary:
                directory = Path(temporary)
                truth = Scene(**(FRAME | options), seed=seed + 11).write(directory)
                for kind in kinds:
                    found[kind].append(measured(directory, truth, *kind))
        for (method, noise), results in found.items():
            label = {"auto": "", "measured": ", measured", "white": ", taken as white"}[noise]
            print(row(f"{name}: {method}{label}", results), flush=True)


if __name__ == "__main__":
    main()
