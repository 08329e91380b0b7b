"""Run any number of cases, ``python -m tests.assault --cases 1000 --seed 5``, or of pairs, one
after the other: ``python -m tests.assault --soak 300``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from .outcomes import OUTCOMES, Case, cases, outcome, recipes, run
from .soak import GROWTH, SETTLED, in_a_batch, in_one_process


def main() -> int:
    """Run, count, and name what failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--recipes", action="store_true", help="those that failed once")
    parser.add_argument("--case", help="one of them, such as 'plain / flip / 17'")
    parser.add_argument("--soak", type=int, metavar="N", help="subtract N pairs, and see memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="assault-") as directory:
        if options.soak:
            return _soak(options.soak, Path(directory))
        if options.case:
            print(*outcome(Case.parse(options.case), Path(directory)), sep=": ")
            return 0
        chosen = recipes() if options.recipes else cases(options.cases, options.seed)
        counts, failures = run(chosen, Path(directory))
    print(", ".join(f"{counts[name]} {name}" for name in OUTCOMES))
    for failure in failures:
        print(failure)
    return 1 if failures else 0


def _soak(number: int, directory: Path) -> int:
    """Subtract, and tell of the processes that grow."""
    grown = 0
    for soaked, settled in (
        (lambda: [in_one_process(number, directory)], SETTLED),
        (lambda: in_a_batch(number, directory), SETTLED // 2),
    ):
        for memory in soaked():
            growth = memory.growth(min(settled, len(memory.resident) // 3))
            print(f"{memory}; grown by {growth / 1e6:.1f} MB", flush=True)
            grown += growth > GROWTH
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
