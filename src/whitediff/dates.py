"""Dates and times in outputs, so that the same run can write the same bytes.

This module decides what outputs record about the time and machine of their making.  If a date is
given, outputs hold that date and nothing else of that kind.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime

from .errors import ArgumentError

__all__ = ["VARIABLE", "dated", "fits_date", "given_date", "is_reproducible"]

VARIABLE = "SOURCE_DATE_EPOCH"
"""Environment variable with a date; other programs know it too (reproducible-builds.org)."""

_LAST = 253402300799
"""End of the year 9999, seconds since 1970-01-01: FITS has no later dates."""

_dated: int | None = None


@contextlib.contextmanager
def dated(seconds: int | None) -> Iterator[None]:
    """Context in which a date is given.

    Parameters
    ----------
    seconds
        Seconds since 1970-01-01, UTC; None to use the date of the environment.

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
        Seconds since 1970-01-01, UTC; None if outputs hold the time at which they are written.

    Raises
    ------
    ArgumentError
        If the environment variable is set but holds no such date.
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
        True if a date is given.
    """
    return given_date() is not None


def fits_date() -> str | None:
    """The given date, in the format of FITS.

    Returns
    -------
    text
        Such as ``2026-01-31T12:00:00.000``; None if no date is given.
    """
    seconds = given_date()
    if seconds is None:
        return None
    # A datetime with a time zone would append it, which FITS does not allow.
    moment = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    return moment.isoformat(timespec="milliseconds")
