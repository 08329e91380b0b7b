"""Measures one size with one number of threads: run by `benchmarks.__main__` in a fresh process."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["measure"]

MIB = 1 << 20


def peak_above(function: Callable[[], object]) -> float | None:
    """Peak resident memory of a call above what was there before, MiB; None if it is unknown.

    The result counts: what is returned is in memory at the end.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
    except OSError:
        return None
    kept = function()
    peak = _status("VmHWM") - before
    del kept
    return peak / 1024


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise OSError(name)


def timed(function: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    kept = function()
    taken = time.perf_counter() - start
    del kept
    return taken


def measure(
    shape: tuple[int, int], directory: Path, *, repeats: int, literal: bool
) -> dict[str, dict[str, float | None]]:
    """Median seconds and peak memory of every case."""
    from . import cases

    found: dict[str, dict[str, float | None]] = {}
    stages = cases.subtract_by_stage(shape, directory)
    plain = cases.subtract_by_stage(shape, directory, spatially_varying=False, noise="white")
    constant = "subtract, constant correction"
    every = cases.cases(shape, directory, literal=literal)
    # One after the other, again and again: what disturbs the machine disturbs all of them.
    names = (*every, *stages, "subtract", constant)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, case in every.items():
            if name.startswith("literal") and times[name]:
                continue  # takes long enough to be known after one run
            times[name].append(timed(case))
        taken = [timed(stage) for stage in stages.values()]
        for name, seconds in zip(stages, taken, strict=True):
            times[name].append(seconds)
        times["subtract"].append(sum(taken))
        times[constant].append(timed(_all_of(plain)))
        # The floor before and after.
        times[cases.FLOOR].append(timed(every[cases.FLOOR]))
    for name, values in times.items():
        if values:
            found[name] = {"seconds": statistics.median(values)}
    for name, case in (*every.items(), ("subtract", _all_of(stages)), (constant, _all_of(plain))):
        found[name]["peak_mib"] = peak_above(case)
    found["process"] = {
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (MIB if sys.platform == "darwin" else 1024)
    }
    return found


def _all_of(stages: dict[str, Callable[[], object]]) -> Callable[[], None]:
    def run() -> None:
        for stage in stages.values():
            stage()

    return run


if __name__ == "__main__":
    ny, nx, repeats, literal = (int(text) for text in sys.argv[2:6])
    result = measure((ny, nx), Path(sys.argv[1]), repeats=repeats, literal=bool(literal))
    json.dump(result, sys.stdout)
