"""``python -m benchmarks``: measure, and write a table, JSON and a plot."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy

import whitediff

from . import report, whole

SIZES = [(1024, 1024), (2048, 2048), (4000, 4072), (8192, 8192)]


def shape(text: str) -> tuple[int, int]:
    """Rows and columns from ``N`` or ``ROWSxCOLUMNS``."""
    parts = [int(part) for part in text.split("x")]
    return parts[0], parts[-1]


def _whole(options: argparse.Namespace) -> str:
    """Time whole processes, beside HOTPANTS, which HOTPANTS names, and SFFT, if they are there."""
    pairs = whole.simulated(options.output)
    pairs += [(name, Path(science), Path(template)) for name, science, template in options.pair]
    runs = whole.measure(options.output, pairs, hotpants=os.environ.get("HOTPANTS"))
    text = whole.table(runs)
    (options.output / "whole.txt").write_text(text + "\n")
    return text


def main() -> None:
    """Measure every size with every number of threads, each in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--sizes", type=shape, nargs="+", metavar="N", default=SIZES)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--repeats", type=int, default=5, help="median of so many runs")
    parser.add_argument("--no-baseline", action="store_true", help="skip the literal formulas")
    parser.add_argument("--output", type=Path, default=Path("benchmark-output"))
    parser.add_argument("--whole-only", action="store_true", help="only time whole processes")
    parser.add_argument(
        "--pair",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "SCIENCE", "TEMPLATE"),
        help="further files for whole processes",
    )
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    print(_whole(options))
    if options.whole_only:
        return
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.output, prefix=".scenes-") as directory:
        for size in options.sizes:
            for threads in dict.fromkeys(options.threads):
                print(f"{size[0]} x {size[1]}, {threads} thread(s) ...", file=sys.stderr)
                environment = os.environ | {"WHITEDIFF_NUM_THREADS": str(threads)}
                arguments = [directory, *size, options.repeats, int(not options.no_baseline)]
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.worker", *map(str, arguments)],
                    env=environment, stdout=subprocess.PIPE, text=True, check=True,
                )  # fmt: skip
                runs.append(
                    {"shape": size, "threads": threads, "measured": json.loads(done.stdout)}
                )
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "whitediff": whitediff.__version__,
    }
    (options.output / "benchmark.json").write_text(
        json.dumps({"machine": machine, "runs": runs}, indent=1)
    )
    table = report.table(runs)
    (options.output / "benchmark.md").write_text(table)
    print(table)
    report.plot(runs, options.output / "benchmark.png")
    print(f"{options.output}/benchmark.json, benchmark.md, benchmark.png: written.")


if __name__ == "__main__":
    main()
