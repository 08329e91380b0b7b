"""Writing files so that nothing is lost and no half-written file stays."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from .errors import FileFormatError, OutputExistsError, WhitediffError, one_line
from .interruptions import heed, uninterrupted

__all__ = [
    "check_apart",
    "check_output",
    "noting",
    "remove_leftovers",
    "replacing",
    "staged",
    "together",
]

_LOCK = ".wdlock"
"""Suffix of the file in a staging folder that is locked while the folder's process lives.

The output's name stands before each suffix, so that no such file has the output's own name."""

_BEFORE = ".before"
"""Suffix of an older output that is set aside while several new ones are moved into place."""

_FOLDER = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}", re.DOTALL)
"""Name of a staging folder, as `tempfile.mkdtemp` makes it."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of the system that more room would cure."""


def check_apart(outputs: Iterable[Path]) -> None:
    """Check that outputs are different files.

    Parameters
    ----------
    outputs
        All outputs of a run.

    Raises
    ------
    FileFormatError
        If two are the same file.
    """
    seen: set[Path] = set()
    for path in outputs:
        if path.resolve() in seen:
            raise FileFormatError.of(path, "two outputs cannot be the same file.")
        seen.add(path.resolve())


def check_output(path: Path, *, overwrite: bool, inputs: Iterable[str | None] = ()) -> None:
    """Check that an output can be written, before any work is done.

    Parameters
    ----------
    path
        Output.
    overwrite
        Whether an existing file may be replaced.
    inputs
        Files that are read, ``FILE`` or ``FILE[EXT]``; they are never replaced.

    Raises
    ------
    OutputExistsError
        If the output exists and may not be replaced.
    FileFormatError
        If the output is an input or no regular file, its name asks for packing or cannot be
        printed, or its directory does not exist or may not be written to.
    """
    group = _together.get()
    if group is not None and group.has(path) and not overwrite:
        raise _exists(path)
    _check(path, overwrite=overwrite)
    for name in inputs:
        if path.exists() and name is not None and _is_same(path, name):
            raise FileFormatError.of(path, "is read as well; choose another name for the output.")


def _check(path: Path, *, overwrite: bool) -> None:
    """Check as `check_output` does, but ignore inputs and outputs that wait in `together`."""
    if path.is_dir():
        raise FileFormatError.of(path, "is a directory; name a file.")
    if path.exists() and not path.is_file():
        raise FileFormatError.of(path, "is no regular file; name one.")
    if path.suffix in (".gz", ".bz2", ".xz", ".fz", ".zst"):
        raise FileFormatError.of(
            path,
            f"outputs are not packed by their name; name it without {path.suffix}"
            " (--compress packs images without loss).",
        )
    if path.exists() and not overwrite:
        raise _exists(path)
    if not path.absolute().parent.is_dir():
        raise FileFormatError.of(path, "its directory does not exist; create it first.")
    if not path.name.isprintable():
        raise FileFormatError(
            f"{str(path)!r}: its name has characters that cannot be printed; choose another."
        )
    directory = path.resolve().parent  # of a link, the file that it points to is replaced
    if not directory.is_dir():
        raise FileFormatError.of(
            path,
            f"is a link into {directory}, which does not exist; create that, or remove the link.",
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise FileFormatError.of(
            path,
            f"cannot be written: nothing may be written to {directory}; choose another"
            " directory, or ask its owner to let you.",
        )


def _exists(path: Path) -> OutputExistsError:
    return OutputExistsError.of(
        path, "exists already; choose another name or allow it to be overwritten (--overwrite)."
    )


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
        Path to write to; no file exists there yet.  The file is removed if anything fails.

    Raises
    ------
    OutputExistsError, FileFormatError
        As `check_output`.

    Notes
    -----
    Within `together` the output is moved with the others when that context ends.
    """
    check_output(path, overwrite=overwrite)
    named, path = path, path.resolve()  # the file that a link points to is replaced, not the link
    remove_leftovers(path.parent)
    with together(), _named(named):
        piece = _Piece.made(path, overwrite=overwrite)
        try:
            yield piece.temporary
            with piece.temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        except BaseException:
            piece.discard()
            raise
        group = _together.get()
        assert group is not None
        group.keep(piece)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Context whose outputs appear together when it ends, or none of them if it fails.

    Inside another such context it does nothing: the outermost one decides.

    Yields
    ------
    None

    Raises
    ------
    OutputExistsError, FileFormatError
        If the outputs cannot be moved into place; then all files are as they were before.

    Notes
    -----
    The output that was written first is moved last, because all others refer to it.  If there are
    several, older files of their names are set aside before the first is moved, so that no new
    file stands beside an old one even if the process is killed between two moves.  Signals wait
    until all are moved.
    """
    if _together.get() is not None:
        yield
        return
    group = _Group()
    token = _together.set(group)
    try:
        yield
        group.move()
    except WhitediffError as error:
        if waiting := group.names():
            error.args = (f"{error} {waiting} is not written either.", *error.args[1:])
        raise
    finally:
        _together.reset(token)
        group.discard()


def staged(path: Path) -> Path:
    """Path where the content of a file is now.

    Parameters
    ----------
    path
        File.

    Returns
    -------
    place
        The file itself, or the output of `together` that waits to take its place.
    """
    group = _together.get()
    return path if group is None else group.place(path)


@contextlib.contextmanager
def noting() -> Iterator[list[Path]]:
    """Context that notes the outputs that are moved into place.

    Yields
    ------
    paths
        Outputs moved so far; the list grows.
    """
    global _noted
    before, _noted = _noted, []
    try:
        yield _noted
    finally:
        _noted = before


def remove_leftovers(directory: Path, *, of: str | None = None) -> None:
    """Remove staging folders that killed processes left in a directory.

    Parameters
    ----------
    directory
        Directory where outputs are to be written.
    of
        Name of an output that nobody writes now: its folders are removed whatever their locks, and
        no others.

    Notes
    -----
    Without `of`, only folders whose lock nobody holds any more are removed.  A folder whose lock
    cannot be tested, as on a file system without locks, is left alone.
    """
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        found = [
            (Path(entry.path), match["name"])
            for entry in entries
            if (match := _FOLDER.fullmatch(entry.name)) and entry.is_dir(follow_symlinks=False)
        ]
        if of is not None:
            for folder, name in found:
                if name == of:
                    _remove(folder)
            return
        try:
            import fcntl
        except ImportError:  # not on this system
            return
        for folder, name in found:
            path = folder / f"{name}{_LOCK}"
            with contextlib.suppress(OSError), path.open("rb+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)


@dataclasses.dataclass
class _Piece:
    """An output in its staging folder."""

    path: Path
    folder: Path
    overwrite: bool
    lock: IO[bytes] | None

    @classmethod
    def made(cls, path: Path, *, overwrite: bool) -> _Piece:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            lock = _locked(folder / f"{path.name}{_LOCK}")
        except BaseException:
            _remove(folder)
            raise
        return cls(path, folder, overwrite, lock)

    @property
    def temporary(self) -> Path:
        return self.folder / self.path.name

    @property
    def before(self) -> Path:
        return self.folder / f"{self.path.name}{_BEFORE}"

    def discard(self) -> None:
        _remove(self.folder)
        if self.lock is not None:
            self.lock.close()


def _locked(path: Path) -> IO[bytes] | None:
    """Lock of a new staging folder; None if the system has no locks."""
    try:
        import fcntl
    except ImportError:  # not on this system
        return None
    # It gets its name only once it is locked: others take a lock that is free for a dead process's.
    new = path.with_name("new")
    lock = new.open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a file system without locks
        lock.close()
        return None
    new.rename(path)
    return lock


def _remove(folder: Path) -> None:
    """Remove a staging folder, its lock last: others know by it that the folder's process died."""
    with contextlib.suppress(OSError):
        locks = []
        for entry in folder.iterdir():
            if entry.name.endswith(_LOCK):
                locks.append(entry)
            elif entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        for entry in locks:
            entry.unlink(missing_ok=True)
        folder.rmdir()


class _Group:
    """Outputs that wait for each other."""

    def __init__(self) -> None:
        self._pieces: dict[Path, _Piece] = {}

    def keep(self, piece: _Piece) -> None:
        older = self._pieces.pop(piece.path, None)
        self._pieces[piece.path] = piece
        if older is not None:
            older.discard()

    def has(self, path: Path) -> bool:
        return bool(self._pieces) and path.resolve() in self._pieces

    def place(self, path: Path) -> Path:
        return self._pieces[path.resolve()].temporary if self.has(path) else path

    def names(self) -> str:
        """Names of the outputs that are complete but not moved yet."""
        return " and ".join(piece.path.name for piece in self._pieces.values())

    def move(self) -> None:
        """Move all to their places, or none."""
        pieces = list(self._pieces.values())
        for piece in pieces:
            _check(piece.path, overwrite=piece.overwrite)
        heed()
        with uninterrupted():
            _move_all(pieces)
            if _noted is not None:
                _noted.extend(piece.path for piece in reversed(pieces))

    def discard(self) -> None:
        for piece in self._pieces.values():
            piece.discard()
        self._pieces.clear()


def _move_all(pieces: list[_Piece]) -> None:
    """Move outputs into place, the first one last; if that fails, restore the older files."""
    aside: list[_Piece] = []
    moved: list[_Piece] = []
    piece = None
    try:
        for piece in pieces if len(pieces) > 1 else ():
            if piece.path.exists():
                piece.path.replace(piece.before)
                aside.append(piece)
        for piece in reversed(pieces):
            piece.temporary.replace(piece.path)
            moved.append(piece)
    except OSError as error:
        for one in moved:
            with contextlib.suppress(OSError):
                one.path.unlink()
        for one in aside:
            with contextlib.suppress(OSError):
                one.before.replace(one.path)
        assert piece is not None
        raise FileFormatError.of(piece.path, f"cannot be written: {_reason(error)}.") from error


_together: contextvars.ContextVar[_Group | None] = contextvars.ContextVar("together", default=None)
_noted: list[Path] | None = None


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Context that turns errors of the system into errors that name the output."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileFormatError | OutputExistsError):
            raise
        remedy = ""
        if _number(error) in _FULL:
            remedy = f"; make room in {path.resolve().parent}, or choose another directory"
        raise FileFormatError.of(path, f"cannot be written: {_reason(error)}{remedy}.") from error


def _number(error: BaseException) -> int | None:
    """System error number of the first cause of an error; None if there is none."""
    cause: BaseException | None = error
    number = None
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            number = cause.errno
        cause = cause.__cause__ or cause.__context__
    return number


def _reason(error: OSError) -> str:
    """System message of the first cause of an error; libraries wrap it in sentences of theirs."""
    cause: BaseException | None = error
    reason = one_line(error)
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            reason = cause.strerror
        cause = cause.__cause__ or cause.__context__
    return reason
