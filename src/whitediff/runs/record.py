"""Record of a run: its options, stages and warnings."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping

from astropy import units
from astropy.table import Table

from ..dates import is_reproducible

__all__ = ["RunRecord", "recorded"]


class RunRecord(logging.Handler):
    """Options, stages and warnings of a run, with their times.

    Attributes
    ----------
    entries
        List of seconds since the start, kind (``option``, ``stage`` or ``warning``) and text.
    """

    def __init__(self, begin: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._start = time.monotonic()
        self._begin = begin
        self.entries: list[tuple[float, str, str]] = []

    def add(self, kind: str, text: str) -> None:
        """Make an entry.

        Parameters
        ----------
        kind, text
            Kind and text as in `entries`.
        """
        self.entries.append((time.monotonic() - self._start, kind, " ".join(text.split())))

    def begin(self, stage: str) -> None:
        """Note that a stage begins, and announce it.

        Parameters
        ----------
        stage
            Name of the stage.
        """
        self.add("stage", stage)
        self._begin(stage)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        self.add("warning", record.getMessage())

    def table(self) -> Table:
        """Table of the entries so far.

        Returns
        -------
        table
            Columns seconds, kind and text; seconds are NaN if outputs must be reproducible.
        """
        entries = self.entries
        if is_reproducible():
            entries = [(math.nan, kind, text) for _, kind, text in entries]
        table = Table(
            rows=entries or None,
            names=("seconds", "kind", "text"),
            dtype=(float, "U7", f"U{max([1, *(len(e[2]) for e in self.entries)])}"),
        )
        table["seconds"].unit = units.s
        table["seconds"].description = "since the start"
        table["kind"].description = "option, stage that begins, or warning"
        return table


@contextlib.contextmanager
def recorded(options: Mapping[str, object], begin: Callable[[str], None]) -> Iterator[RunRecord]:
    """Keep a record of a run.

    Parameters
    ----------
    options
        Options of the run that differ from their defaults: name, with underscores → value.
    begin
        Function that announces the name of a stage.

    Yields
    ------
    record
        Record; `RunRecord.begin` adds stages, and warnings of whitediff's loggers are added by
        themselves.
    """
    record = RunRecord(begin)
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        record.add("option", option if value is True else f"{option} {value}")
    logger = logging.getLogger("whitediff")
    logger.addHandler(record)
    try:
        yield record
    finally:
        logger.removeHandler(record)
