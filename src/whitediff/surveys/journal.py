"""Journal of a batch: one JSON line per item, and checks whether a record still holds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..dates import is_reproducible
from ..errors import ArgumentError, FileFormatError
from ..formats.files import split_extension
from ..interruptions import uninterrupted
from ..outputs import replacing
from ..paths import regular

__all__ = ["Journal", "Record", "exclusive", "file_state", "is_intact", "output_state"]

type Record = dict[str, Any]
"""Record of an item: a JSON object, one line of the journal."""

_RACY = 2 * 10**9
"""Nanoseconds within which a file can change without a change of its times."""

_CHUNK = 1 << 16


class Journal:
    """Results of a batch, in a file with one JSON object per line.

    Parameters
    ----------
    path
        File; made with the first record.

    Notes
    -----
    Lines are appended as items end.  The last line of an item counts.  A line that was cut short
    by the death of its writer is ignored.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Record]:
        """Read all records.

        Returns
        -------
        records
            Name of the item → its last record.

        Raises
        ------
        FileFormatError
            If the file cannot be read or is no journal.
        """
        if not self.path.exists():
            return {}
        if not self.path.is_file():
            raise FileFormatError.of(self.path, "is no regular file; move it away.")
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise FileFormatError.of(self.path, f"cannot be read: {error.strerror}.") from error
        records: dict[str, Record] = {}
        complete, _, rest = data.rpartition(b"\n")
        if _is_whole(rest):
            # The last record is complete, and only its newline is missing.
            complete = data
        for number, line in enumerate(complete.splitlines(), 1):
            try:
                record = json.loads(line)
                records[record["item"]] = record
            except (ValueError, KeyError, TypeError) as error:
                raise FileFormatError.of(
                    self.path,
                    f"line {number} is no result of a batch; move the file away, or"
                    " name another output directory.",
                ) from error
        return records

    def append(self, record: Record) -> None:
        """Add a record at the end.

        Parameters
        ----------
        record
            Record with the item's name as ``item``.

        Raises
        ------
        FileFormatError
            If the file cannot be written.
        """
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            # Unbuffered, so that a line reaches the file at once.
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            with uninterrupted(), open(descriptor, "r+b", 0) as stream:
                end = _end_of_lines(stream)
                try:
                    stream.truncate(end)
                    stream.seek(end)
                    rest = memoryview(line)
                    while rest:
                        rest = rest[stream.write(rest) :]
                    os.fsync(stream.fileno())
                except OSError:
                    # Remove the half-written line.
                    with contextlib.suppress(OSError):
                        stream.truncate(end)
                    raise
        except OSError as error:
            raise FileFormatError.of(
                self.path,
                f"cannot be written: {error.strerror}; make room or choose another"
                " directory, and go on with --resume.",
            ) from error

    def rewrite(self, records: Iterable[Record]) -> None:
        """Replace all lines.

        Parameters
        ----------
        records
            Records in their new order.
        """
        with replacing(self.path, overwrite=True) as temporary:
            temporary.write_text("".join(json.dumps(r, allow_nan=False) + "\n" for r in records))


def _is_whole(line: bytes) -> bool:
    """Whether a line without a newline is a complete record."""
    try:
        return "item" in json.loads(line)
    except (ValueError, TypeError):
        return False


def _end_of_lines(stream: Any) -> int:
    """Position at which the last complete line ends."""
    end: int = stream.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _CHUNK)
        stream.seek(start)
        found = stream.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + int(found) + 1
        end = start
    return 0


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keep a second batch out of a directory.

    Parameters
    ----------
    path
        File to lock.  The lock ends with the process, however that ends.

    Yields
    ------
    None

    Raises
    ------
    ArgumentError
        If another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # not on this system
        yield
        return
    with path.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArgumentError.of(
                path.parent,
                "another batch is writing here; wait for its end, or name another"
                " output directory.",
            ) from error
        except OSError:
            pass  # a file system without locks
        yield


def file_state(name: str, before: Mapping[str, object] | None = None) -> Record:
    """State of an input file: its content and the marks by which it is recognised.

    Parameters
    ----------
    name
        File, possibly with an extension in brackets; or an address.
    before
        Earlier result for the same name: a file that did not change since is not read again.

    Returns
    -------
    state
        ``sha256`` of the content, ``size``, times and inode; only sha256 and size if outputs
        must be reproducible.  For an address only the ``address``.

    Raises
    ------
    FileFormatError
        If the file cannot be read, or is no regular file.
    """
    if "://" in name:
        return {"address": name}
    path, _ = split_extension(name)
    # To read a pipe would never end.
    regular(path)
    try:
        stat = path.stat()
        if is_reproducible():
            return {"sha256": _sha256(path), "size": stat.st_size}
        state = {
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            # Programs can set mtime but not ctime: a file with new content has a new ctime.
            "ctime_ns": stat.st_ctime_ns,
            "inode": stat.st_ino,
        }
        settled = max(stat.st_mtime_ns, stat.st_ctime_ns) + _RACY < time.time_ns()
        if before is not None and before.get("settled"):
            same = all(before.get(key) == value for key, value in state.items())
            if same and "sha256" in before:
                return dict(before)
        digest = _sha256(path)
    except FileNotFoundError as error:
        raise FileFormatError.of(path, "no such file.") from error
    except OSError as error:
        raise FileFormatError.of(path, f"cannot be read: {error.strerror}.") from error
    return {"sha256": digest, "settled": settled} | state


def _sha256(path: str | Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def output_state(path: str | Path) -> Record:
    """State of a product: the marks by which it is recognised.

    Parameters
    ----------
    path
        File of the product.

    Returns
    -------
    state
        Path, size and time of the last change; SHA-256 in place of the time if outputs must be
        reproducible.
    """
    stat = os.stat(path)
    if is_reproducible():
        return {"path": str(path), "size": stat.st_size, "sha256": _sha256(path)}
    return {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def is_intact(state: Mapping[str, object], path: str) -> bool:
    """Whether a product exists as it was written.

    Parameters
    ----------
    state
        Result of `output_state` after it was written.
    path
        File of the product.

    Returns
    -------
    intact
        False if it is missing, changed or cut short.
    """
    try:
        stat = os.stat(path)
        if "sha256" in state:
            return state["sha256"] == _sha256(path)
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (state.get("size"), state.get("mtime_ns"))
