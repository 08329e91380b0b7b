"""Reading damaged files, and counting what comes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import logging
import signal
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import test_damaged_files as damaged
from whitediff.errors import WhitediffError
from whitediff.formats.limits import Limits, within

from . import HERE
from .damage import DAMAGES
from .targets import MAKERS, target

OUTCOMES = ("refused", "equal", "told", "untold", "silent", "unexpected", "hung")
"""Refused with a sentence; read as the whole file; changed, and a warning says so; changed in a
file without checksums; changed without a word; an error that is none of ours; no end."""

FAILURES = ("silent", "unexpected", "hung")
SECONDS = 10.0
_MEMORY = 200_000_000
_LONGEST_SENTENCE = 1200


@dataclasses.dataclass(frozen=True, order=True)
class Case:
    """A damaged file, as it can be made again."""

    target: str
    damage: str
    seed: int

    def __str__(self) -> str:
        return f"{self.target} / {self.damage} / {self.seed}"

    @classmethod
    def parse(cls, text: str) -> Case:
        """Case from a line of `recipes.txt`."""
        name, damage, seed = (part.strip() for part in text.split("/"))
        return cls(name, damage, int(seed))


class Hung(BaseException):
    """A case that takes longer than it may."""


@contextlib.contextmanager
def listening() -> Iterator[set[str]]:
    """Collect the warnings of whitediff."""
    said: set[str] = set()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.add(record.getMessage())

    logger, handler = logging.getLogger("whitediff"), Handler(logging.WARNING)
    before = logger.propagate
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    # What hangs outside of Python is shown, and ends the run.
    faulthandler.dump_traceback_later(6 * seconds, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def cases(number: int, seed: int) -> list[Case]:
    """Cases that a seed gives: every target and damage in turn."""
    pairs = [(name, damage) for name in MAKERS for damage in DAMAGES]
    rng = np.random.default_rng(seed)
    order: list[tuple[str, str]] = []
    while len(order) < number:
        order += [pairs[i] for i in rng.permutation(len(pairs))]
    seeds = rng.integers(0, 1 << 31, number)
    return [Case(*pair, int(one)) for pair, one in zip(order[:number], seeds, strict=True)]


def recipes() -> list[Case]:
    """Cases that failed once."""
    lines = (HERE / "recipes.txt").read_text().splitlines()
    return [Case.parse(line) for line in lines if line.strip() and not line.startswith("#")]


def outcome(case: Case, directory: Path) -> tuple[str, str]:
    """What comes of a case, and in words why.

    Parameters
    ----------
    case
        Case.
    directory
        Where whole files are made and kept.
    """
    whole = target(case.target, directory)
    data = whole.path.read_bytes()
    rng = np.random.default_rng(case.seed)
    raw = DAMAGES[case.damage](rng, data)
    with tempfile.TemporaryDirectory(dir=directory) as own:
        path = Path(own) / f"damaged{''.join(whole.path.suffixes)}"
        path.write_bytes(raw)
        try:
            with (
                warnings.catch_warnings(),
                listening() as said,
                within(Limits(max_memory=_MEMORY, checksums=whole.has_sums)),
                _limited(SECONDS),
                np.errstate(all="ignore"),
            ):
                warnings.simplefilter("ignore")
                found = whole.read(path)
        except WhitediffError as error:
            return _sentence(str(error), (path, whole.path))
        except Hung:
            return "hung", f"more than {SECONDS:g} s"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return "unexpected", f"{type(error).__name__}: {error}"
        wrong = _differing(found, whole.whole)
        if not wrong:
            return "equal", ""
        heard = {text.replace(str(path), str(whole.path)) for text in said} - whole.said
        if heard:
            return "told", sorted(heard)[0]
        return ("silent" if whole.has_sums else "untold"), f"differs in {sorted(wrong)}"


def _differing(found: dict[str, Any], whole: dict[str, Any]) -> set[str]:
    """Names of what differs, also where it is of another kind."""
    kinds = {name for name in set(found) & set(whole) if type(found[name]) is not type(whole[name])}
    return kinds | damaged.same(
        *({k: v for k, v in each.items() if k not in kinds} for each in (found, whole))
    )


def _sentence(text: str, files: tuple[Path, Path]) -> tuple[str, str]:
    if "\n" in text or not text.rstrip().endswith((".", "?")) or len(text) > _LONGEST_SENTENCE:
        return "unexpected", f"no sentence: {text!r}"
    # A solution that does not fit is told of the difference beside the whole one.
    if files[0].name not in text and str(files[1].parent) not in text:
        return "unexpected", f"does not name the file: {text!r}"
    return "refused", text


def run(all_cases: Iterable[Case], directory: Path) -> tuple[Counter[str], list[str]]:
    """Count outcomes; failures in words."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for case in all_cases:
        start = time.perf_counter()
        kind, why = outcome(case, directory)
        counts[kind] += 1
        if kind in FAILURES:
            failures.append(f"{case}: {kind}: {why} ({time.perf_counter() - start:.1f} s)")
    return counts, failures
