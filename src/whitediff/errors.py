"""What can go wrong, and whose fault it is.

Raise `ArgumentError` for a wrong argument, `DataError` where the pixels do not
allow the computation, `FileFormatError` for a file that cannot be understood
and `OutputExistsError` where writing would lose something.  Every message is
one sentence with the value found and the remedy.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "DataError",
    "FileFormatError",
    "OutputExistsError",
    "WhitediffError",
]


class WhitediffError(Exception):
    """Base class of the errors that whitediff raises on purpose."""


class ArgumentError(WhitediffError, ValueError):
    """An argument breaks a documented requirement: the caller's fault."""


class DataError(WhitediffError, ValueError):
    """The pixels do not allow the computation: the data's fault."""


class FileFormatError(WhitediffError, OSError):
    """A file is missing, damaged, or lacks what was asked of it."""


class OutputExistsError(WhitediffError, FileExistsError):
    """The output is already there and overwriting was not allowed."""
