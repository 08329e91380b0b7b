"""Errors of whitediff, one class for each kind of fault.

Raise `ArgumentError` for a wrong argument, `UsageError` for arguments that contradict each other,
`DataError` if the pixels do not allow the computation, `FileFormatError` for a file that cannot
be understood and `OutputExistsError` if writing would lose something.  Every message is one
sentence with the value found and the remedy.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, Self

__all__ = [
    "ArgumentError",
    "DataError",
    "FileFormatError",
    "NoOverlapError",
    "OutputExistsError",
    "TooFewSourcesError",
    "UsageError",
    "WhitediffError",
    "naming",
    "one_line",
    "sentence",
]

_LONGEST = 500


class WhitediffError(Exception):
    """Base class of the errors that whitediff raises on purpose.

    Attributes
    ----------
    file
        File, or image in memory, at fault: the message begins with it.  None if none is named.
    """

    file: str | None = None

    @classmethod
    def of(cls, file: object, text: str, **known: Any) -> Self:
        """Make an error that names the file at fault.

        Parameters
        ----------
        file
            File at fault.
        text
            What is wrong with it.
        **known
            Further arguments of the class.

        Returns
        -------
        error
            Error for the caller to raise.
        """
        error = cls(f"{file}: {text}", **known)
        error.file = str(file)
        return error


class ArgumentError(WhitediffError, ValueError):
    """An argument breaks a documented requirement: the caller's fault."""


class UsageError(ArgumentError):
    """Arguments contradict each other, or one needs another: a wrong use of the command line."""


class DataError(WhitediffError, ValueError):
    """The pixels do not allow the computation: the data's fault."""


class NoOverlapError(DataError):
    """Two images have no pixel in common."""


class TooFewSourcesError(DataError):
    """There are too few stars to measure a kernel or PSF.

    Parameters
    ----------
    message
        What is missing.
    found, required
        Number of stars found, and number needed; kept as attributes.
    """

    def __init__(self, message: str, *, found: int = 0, required: int = 0) -> None:
        super().__init__(message)
        self.found, self.required = found, required


class FileFormatError(WhitediffError, OSError):
    """A file is missing, damaged, or lacks what was asked of it."""


class OutputExistsError(WhitediffError, FileExistsError):
    """The output is already there and overwriting was not allowed."""


@contextlib.contextmanager
def naming(file: object) -> Iterator[None]:
    """Context whose errors name a file, unless they name one already.

    Parameters
    ----------
    file
        File at fault.

    Yields
    ------
    None
    """
    try:
        yield
    except WhitediffError as error:
        if error.file is not None:
            raise
        named = copy.copy(error)
        named.args = (f"{file}: {error}", *error.args[1:])
        named.file = str(file)
        raise named from error


def one_line(error: BaseException) -> str:
    """Message of any error as part of a sentence.

    Parameters
    ----------
    error
        Error, for instance of another library.

    Returns
    -------
    text
        Without line breaks and full stop; the name of the error's class if its message is empty.
        The middle of a message longer than 500 characters is left out.
    """
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    # Some libraries put everything that they read into their message.
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


def sentence(error: BaseException) -> str:
    """Message of any error, for somebody who does not read Python.

    Parameters
    ----------
    error
        Any error.

    Returns
    -------
    text
        One sentence.  It names the class of an unexpected error.
    """
    text = " ".join(str(error).split())
    if isinstance(error, WhitediffError):
        return text
    if isinstance(error, MemoryError):
        return f"Not enough memory ({text or 'none left'}); close other programs or cut the images."
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or text}."
    return f"Unexpected {type(error).__name__}: {text}."
