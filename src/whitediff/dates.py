"""Dates and times in outputs, so that the same run can write the same bytes.

All that outputs hold of the time and the machine at which they were made is decided here.  Where
a date is given, outputs hold that date, and nothing else of that kind.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime

from .errors import ArgumentError

__all__ = ["VARIABLE", "dated", "fits_date", "given_date", "is_reproducible"]

VARIABLE = "SOURCE_DATE_EPOCH"
"""Variable of the environment with a date; other programs know it too (reproducible-builds.org)."""

_LAST = 253402300799
"""Seconds: the end of the year 9999, behind which FITS has no dates."""

_dated: int | None = None


@contextlib.contextmanager
def dated(seconds: int | None) -> Iterator[None]:
    """Context in which a date is given.

    Parameters
    ----------
    seconds
        Seconds since 1970-01-01, UTC; None for what the environment says.

    Yields
    ------
    None
    """
    global _dated
    before, _dated = _dated, seconds
    try:
        yield
    finally:
        _dated = before


def given_date() -> int | None:
    """Date that outputs are to hold.

    Returns
    -------
    seconds
        Since 1970-01-01, UTC; None where they hold the time at which they are written.

    Raises
    ------
    ArgumentError
        If the environment has no date where it should.
    """
    if _dated is not None:
        return _dated
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 20 or int(text) > _LAST:
        raise ArgumentError(
            f"{VARIABLE} must be a whole number of seconds since 1970-01-01, at most {_LAST}; got"
            f" {text[:40]!r}. Set it right, or unset it."
        )
    return int(text)


def is_reproducible() -> bool:
    """Whether outputs hold nothing of when, where and how fast they were made.

    Returns
    -------
    is_reproducible
        A date is given.
    """
    return given_date() is not None


def fits_date() -> str | None:
    """The given date, as FITS has it.

    Returns
    -------
    text
        Such as ``2026-01-31T12:00:00.000``; None where none is given.
    """
    seconds = given_date()
    if seconds is None:
        return None
    # A datetime that knows its zone would write it.
    moment = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    return moment.isoformat(timespec="milliseconds")
