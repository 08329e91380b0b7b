"""What can go wrong, and whose fault it is.

Raise `ArgumentError` for a wrong argument, `UsageError` for arguments that contradict each other,
`DataError` where the pixels do not allow the computation, `FileFormatError` for a file that cannot
be understood and `OutputExistsError` where writing would lose something.  Every message is one
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
        File, or image in memory, at fault: the message begins with it.  None where none is named.
    """

    file: str | None = None

    @classmethod
    def of(cls, file: object, text: str, **known: Any) -> Self:
        """Error of a file.

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
            To be raised.
        """
        error = cls(f"{file}: {text}", **known)
        error.file = str(file)
        return error


class ArgumentError(WhitediffError, ValueError):
    """An argument breaks a documented requirement: the caller's fault."""


class UsageError(ArgumentError):
    """Arguments that contradict each other, or lack each other: the command line's usage."""


class DataError(WhitediffError, ValueError):
    """The pixels do not allow the computation: the data's fault."""


class NoOverlapError(DataError):
    """Two images have no pixel in common."""


class TooFewSourcesError(DataError):
    """There are too few stars to measure a kernel or PSF on.

    Parameters
    ----------
    message
        What is missing.
    found, required
        How many there are, and how many are needed; attributes of these names.
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
        Error, such as another library raised.

    Returns
    -------
    text
        Without line breaks and full stop; the error's class where it says nothing.
    """
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    # Some libraries put all that they read into their message.
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


def sentence(error: BaseException) -> str:
    """What is wrong, for somebody who does not read Python.

    Parameters
    ----------
    error
        Any error.

    Returns
    -------
    text
        One sentence; of an error that whitediff did not raise on purpose, with its class.
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
