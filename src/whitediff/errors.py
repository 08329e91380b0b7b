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
    "one_line",
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


def one_line(error: BaseException) -> str:
    """Message of any error as part of a sentence.

    Parameters
    ----------
    error
        Error, such as another library raised.

    Returns
    -------
    text
        Without line breaks and full stop; the error's class where it says nothing.
    """
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
