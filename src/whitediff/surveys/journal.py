"""What a batch has done: one JSON line per item, and whether that still holds."""

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
"""What is known of an item: a line of the journal."""

_RACY = 2 * 10**9
"""Nanoseconds in which a file can change without its times telling."""

_CHUNK = 1 << 16


class Journal:
    """Results of a batch in a file with one JSON object a line.

    Parameters
    ----------
    path
        File; it is made with the first record.

    Notes
    -----
    Lines are appended as items end.  Of an item with several the last one counts, and one that
    was cut short by the death of its writer counts as not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Record]:
        """Read what is known.

        Returns
        -------
        records
            Name of the item → its last record.

        Raises
        ------
        FileFormatError
            If it is no journal.
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
            # Only its end of the line is missing.
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
            With the item's name as ``item``.

        Raises
        ------
        FileFormatError
            If it cannot be written.
        """
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            # Unbuffered: a line is there at once.
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
                    # Half a line is none.
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
            In the order in which they are to stand.
        """
        with replacing(self.path, overwrite=True) as temporary:
            temporary.write_text("".join(json.dumps(r, allow_nan=False) + "\n" for r in records))


def _is_whole(line: bytes) -> bool:
    """Whether a line without an end is a record."""
    try:
        return "item" in json.loads(line)
    except (ValueError, TypeError):
        return False


def _end_of_lines(stream: Any) -> int:
    """Where the last complete line ends."""
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
        File to lock.  The lock ends with the process, whatever ends that.

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


def file_state(name: str, before: Mapping[str, Any] | None = None) -> Record:
    """What a file holds.

    Parameters
    ----------
    name
        File, possibly with an extension in brackets; or an address, which stands for itself.
    before
        What this returned for the same name at another time: a file that did not change since
        is not read again.

    Returns
    -------
    state
        ``sha256`` of its content, and size, times and number by which it is recognised; where
        outputs hold no times, the first two.

    Raises
    ------
    FileFormatError
        If it cannot be read, or is no regular file.
    """
    if "://" in name:
        return {"address": name}
    path, _ = split_extension(name)
    # A pipe would never end.
    regular(path)
    try:
        stat = path.stat()
        if is_reproducible():
            return {"sha256": _sha256(path), "size": stat.st_size}
        state = {
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            # The time of change cannot be set: a file with new content has a new one.
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
    """By what a product is recognised.

    Parameters
    ----------
    path
        File.

    Returns
    -------
    state
        Path, size and time of the last change; its SHA-256 where outputs hold no times.
    """
    stat = os.stat(path)
    if is_reproducible():
        return {"path": str(path), "size": stat.st_size, "sha256": _sha256(path)}
    return {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def is_intact(state: Mapping[str, Any], path: str) -> bool:
    """Whether a product is there as it was written.

    Parameters
    ----------
    state
        As `output_state` returned it.
    path
        Where it should be.

    Returns
    -------
    intact
        False also where it was changed or cut.
    """
    try:
        stat = os.stat(path)
        if "sha256" in state:
            return state["sha256"] == _sha256(path)
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (state.get("size"), state.get("mtime_ns"))
