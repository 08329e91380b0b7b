"""Writing files so that nothing is lost and nothing half-written stays."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import FileFormatError, OutputExistsError, one_line

__all__ = ["check_output", "replacing"]


def check_output(path: Path, *, overwrite: bool, inputs: Iterable[str | None] = ()) -> None:
    """Make sure that an output can be written, before any work is done.

    Parameters
    ----------
    path
        Output.
    overwrite
        Whether an existing file may be replaced.
    inputs
        Files that are read, ``FILE`` or ``FILE[EXT]``: these are never replaced.

    Raises
    ------
    OutputExistsError
        If it exists and may not be replaced.
    FileFormatError
        If it is an input or no regular file, its name asks for packing, or its directory does
        not exist.
    """
    if path.is_dir():
        raise FileFormatError(f"{path}: is a directory; name a file.")
    if path.exists() and not path.is_file():
        raise FileFormatError(f"{path}: is no regular file; name one.")
    if path.suffix in (".gz", ".bz2", ".xz", ".fz", ".zst"):
        raise FileFormatError(
            f"{path}: outputs are not packed by their name; name it without {path.suffix}"
            " (--compress packs images without loss)."
        )
    if path.exists() and not overwrite:
        raise OutputExistsError(
            f"{path}: exists already; choose another name or allow it to be overwritten"
            " (--overwrite)."
        )
    for name in inputs:
        if path.exists() and name is not None and _is_same(path, name):
            raise FileFormatError(f"{path}: is read as well; choose another name for the output.")
    if not path.absolute().parent.is_dir():
        raise FileFormatError(f"{path}: its directory does not exist; create it first.")


def _is_same(path: Path, name: str) -> bool:
    """Whether an input ``FILE`` or ``FILE[EXT]`` is a file that exists."""
    candidates = (name, name.rpartition("[")[0]) if name.endswith("]") else (name,)
    return any(os.path.exists(file) and path.samefile(file) for file in candidates)


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Write under a temporary name beside the output; move it into place when complete.

    Parameters
    ----------
    path
        Output.
    overwrite
        Whether an existing file may be replaced.

    Yields
    ------
    temporary
        Path to write to; it does not exist yet.  It is removed if anything fails.

    Raises
    ------
    OutputExistsError, FileFormatError
        As `check_output`.
    """
    check_output(path, overwrite=overwrite)
    path = path.resolve()  # what a link points to is replaced, not the link
    try:
        directory = tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent)
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be written: {error.strerror}.") from error
    temporary = Path(directory) / path.name
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        check_output(path, overwrite=overwrite)
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, FileFormatError | OutputExistsError):
            raise
        raise FileFormatError(f"{path}: cannot be written: {_reason(error)}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def _reason(error: OSError) -> str:
    """What the system said first; libraries put sentences of their own around it."""
    cause: BaseException | None = error
    reason = one_line(error)
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            reason = cause.strerror
        cause = cause.__cause__ or cause.__context__
    return reason
