"""Many small pairs, one after the other, and the memory that is left in use after each."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits

from scenes import command
from surveys import write_manifest

SETTLED = 50
"""Pairs until all is imported and every table of constants is made."""

GROWTH = 6e6
"""Bytes by which a process may grow after these: what allocators and caches of files scatter about.
A plane of 256² pixels that stays behind each time would be 50 MB after 200 pairs."""

_SIZES = (256, 240, 251, 256, 233)
_SCENES = 5


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of one process over time.

    Attributes
    ----------
    name
        Of the process.
    resident
        Bytes after each pair.
    files
        Numbers of files after each pair that are open and were not before the first; empty where
        nobody counted.
    """

    name: str
    resident: Sequence[int]
    files: Sequence[int] = ()

    def growth(self, settled: int) -> float:
        """Bytes by which the last tenth of the pairs is above those that follow the first ones."""
        width = max(1, (len(self.resident) - settled) // 10)
        first = np.median(self.resident[settled : settled + width])
        return float(np.median(self.resident[-width:]) - first)

    def __str__(self) -> str:
        steps = [self.resident[i] for i in np.linspace(0, len(self.resident) - 1, 7).astype(int)]
        text = ", ".join(f"{each / 1e6:.1f}" for each in steps)
        open_files = f"; open files {self.files[0]} to {self.files[-1]}" if self.files else ""
        return f"{self.name}: {len(self.resident)} pairs, {text} MB{open_files}"


def in_one_process(number: int, directory: Path) -> Memory:
    """Subtract pairs one after the other in this process.

    Parameters
    ----------
    number
        How many.
    directory
        Where files may be written.

    Returns
    -------
    memory
        `Memory`.
    """
    pairs, resident, files = Pairs(directory), [], []
    # What is open already may be closed meanwhile: it is not what pairs leave.
    inherited = _open_files()
    for i in range(number):
        science, template = pairs.pair(i)
        outputs = {option: directory / f"{i}{option}" for option in ("d.fits", "c.ecsv", "r.html")}
        code, _, messages = command(
            *("subtract", science, template, "--output", outputs["d.fits"], "-q", "--threads", 1),
            *("--catalog", outputs["c.ecsv"], "--report", outputs["r.html"]),
        )
        assert code == 0, messages
        for path in (science, template, *outputs.values()):
            path.unlink()
        resident.append(_resident())
        files.append((_open_files() - inherited).total())
    return Memory("one process", resident, files)


def in_a_batch(number: int, directory: Path, *, workers: int = 2) -> list[Memory]:
    """Subtract pairs in a batch.

    Parameters
    ----------
    number, directory
        As for `in_one_process`.
    workers
        Processes.

    Returns
    -------
    memories
        One for each process.
    """
    pairs = Pairs(directory)
    rows = []
    for i in range(number):
        science, template = pairs.pair(i)
        rows.append({"name": f"pair{i}", "science": science, "template": template})
    manifest = write_manifest(directory / "night.csv", rows)
    output = directory / "night"
    code, _, messages = command("batch", manifest, "--output", output, "--workers", workers, "-q")
    assert code == 0, messages
    records = [json.loads(line) for line in (output / "batch.jsonl").read_text().splitlines()]
    records.sort(key=lambda record: record["started"])
    found: dict[int, list[int]] = {}
    for record in records:
        found.setdefault(record["process"], []).append(record["memory"]["resident"])
    shutil.rmtree(output)
    return [Memory(f"worker {i}", each) for i, each in enumerate(found.values())]


class Pairs:
    """As many different pairs as are wanted: parts of a few scenes, on levels of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._scenes = []
        for seed in range(1, _SCENES + 1):
            where = directory / f"scene{seed}"
            if not where.exists():
                code, _, messages = command(
                    *("simulate", "--output", where, "--size", 320, "--seed", seed, "-q"),
                    *("--stars", 150, "--galaxies", 10, "--transients", 5),
                    *("--science-psf", 2.2, "--template-psf", 1.7),
                )
                assert code == 0, messages
            self._scenes.append(where)

    def pair(self, i: int) -> tuple[Path, Path]:
        """Write a pair that none was before."""
        scene, size = self._scenes[i % _SCENES], _SIZES[i % len(_SIZES)]
        y, x = np.random.default_rng(i).integers(0, 320 - size, 2)
        part = slice(y, y + size), slice(x, x + size)
        paths = self.directory / f"science{i}.fits", self.directory / f"template{i}.fits"
        for name, path in zip(("science", "template"), paths, strict=True):
            with fits.open(scene / f"{name}.fits") as hdus:
                image = hdus["IMAGE"].data[part] + np.float32(i)
                variance = hdus["VARIANCE"].data[part]
                planes = [fits.ImageHDU(variance, name="VARIANCE")]
                fits.HDUList([fits.PrimaryHDU(image), *planes]).writeto(path, overwrite=True)
        return paths


def _resident() -> int:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _open_files() -> collections.Counter[str]:
    """What this process has open, by what it points at."""
    found: collections.Counter[str] = collections.Counter()
    for each in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing itself
            found[os.readlink(f"/proc/self/fd/{each}")] += 1
    return found
