"""Whole processes, from the files of a pair to those of its difference, beside other programs."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from astropy.io import fits

from . import scenes

__all__ = ["SIZES", "Run", "measure", "table"]

SIZES = [(256, 256), (1024, 1024), (4000, 4072)]

MIB = 1 << 20

_SFFT = """
import sys
from sfft.CustomizedPacket import Customized_Packet
science, template, output = sys.argv[1:]
Customized_Packet.CP(
    template, science, template, science, "REF", 12, FITS_DIFF=output, KerPolyOrder=2,
    BGPolyOrder=2, BACKEND_4SUBTRACT="Numpy", NUM_CPU_THREADS_4SUBTRACT=2, VERBOSE_LEVEL=0,
)
"""
"""SFFT on whole images: what whitediff finds, such as stars, it takes from its caller."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What one process took."""

    program: str
    pair: str
    wall: float
    """Seconds."""

    processor: float
    """Seconds of all threads and children."""

    memory: float
    """Peak resident memory, MiB; what this process holds itself is the least that is told."""


def run(command: Sequence[str | Path], program: str, pair: str) -> Run:
    """Measure a command, which must succeed.

    Raises
    ------
    RuntimeError
        It fails; with what it printed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{program} fails on {pair}: {printed[-1000:]}")
    # Linux tells KiB, macOS bytes.
    peak = usage.ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
    return Run(program, pair, wall, usage.ru_utime + usage.ru_stime, peak)


def plain(path: Path, pair: str, directory: Path) -> Path:
    """The image alone in a file of one HDU, which any program reads."""
    target = directory / f"{pair}.{path.name.split('.')[0]}.plain.fits"
    if not target.exists():
        with fits.open(path) as file:
            image = next(hdu for hdu in file if hdu.data is not None and hdu.data.ndim == 2)
            fits.PrimaryHDU(image.data.astype("f4"), image.header).writeto(target)
    return target


def measure(
    directory: Path,
    pairs: Sequence[tuple[str, Path, Path]],
    *,
    hotpants: str | None = None,
    repeats: int = 3,
) -> list[Run]:
    """Run each program on each pair, in turn; the fastest of some runs of each.

    Parameters
    ----------
    directory
        Where outputs go.
    pairs
        Each with a name, the science image's file and the template's.
    hotpants
        The program, if it is there.
    repeats
        How often each is run.  Other work on a machine only adds to a run, so the fastest counts.
    """
    output = directory / "whole-output"
    output.mkdir(exist_ok=True)
    ours = [sys.executable, "-m", "whitediff"]
    best: dict[tuple[str, str], Run] = {}
    for _ in range(repeats):
        found = [run([*ours, "--version"], "whitediff", "--version")]
        for name, science, template in pairs:
            command = [*ours, "subtract", science, template, "-o", output / "difference.fits"]
            found.append(run([*command, "--overwrite", "--quiet"], "whitediff", name))
            plains = plain(science, name, output), plain(template, name, output)
            if importlib.util.find_spec("sfft") is not None:
                command = [sys.executable, "-c", _SFFT, *plains, output / "sfft.fits"]
                found.append(run(command, "SFFT", name))
            if hotpants:
                command = [hotpants, "-inim", plains[0], "-tmplim", plains[1], "-c", "t"]
                command += ["-outim", output / "hotpants.fits"]
                for side in "i", "t":
                    command += [f"-{side}u", "1e9", f"-{side}l", "-1e9"]
                found.append(run(command, "HOTPANTS", name))
        for one in found:
            known = best.get((one.program, one.pair))
            if known is None or one.wall < known.wall:
                best[one.program, one.pair] = one
    return list(best.values())


def table(runs: Sequence[Run]) -> str:
    """A line for each run; beside those of whitediff how they compare on the same pair."""
    lines = [f"{'pair':20} {'program':10} {'wall s':>8} {'core s':>8} {'MiB':>6}  beside whitediff"]
    own = {one.pair: one.wall for one in runs if one.program == "whitediff"}
    for one in runs:
        ratio = "" if one.program == "whitediff" else f"{one.wall / own[one.pair]:17.2f}"
        lines.append(
            f"{one.pair:20} {one.program:10} {one.wall:8.2f} {one.processor:8.2f} "
            f"{one.memory:6.0f}{ratio}"
        )
    return "\n".join(lines)


def simulated(directory: Path) -> list[tuple[str, Path, Path]]:
    """Pairs of the sizes."""
    return [
        (f"{rows}x{columns}", *scenes.files((rows, columns), directory)) for rows, columns in SIZES
    ]
