"""How far files are trusted: how much memory they may take, and where they may lead.

Commands set these limits once, from their options; every reader goes by them.  Processes that
others start, such as Rubin's middleware, have them from the environment variable WHITEDIFF_LIMITS.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import ArgumentError, FileFormatError
from ..paths import is_address, regular

__all__ = [
    "VARIABLE",
    "Limits",
    "check_memory",
    "check_table",
    "current",
    "leads_to",
    "machine_memory",
    "within",
]

_CONTROL_GROUPS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
VARIABLE = "WHITEDIFF_LIMITS"
"""Environment variable with the limits of processes that start without any others."""
_ENOUGH = 1 << 40
"""Bytes, where the machine does not say what it has."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far files are trusted.

    Attributes
    ----------
    max_memory
        Bytes that one part of a file may unpack to; positive; None for what the machine has.
    checksums
        Whether CHECKSUM and DATASUM are verified where they are present.
    follow_paths
        Whether the names of files in a header lead anywhere; else only beside the file and below.

    Raises
    ------
    ArgumentError
        If the memory is not positive.
    """

    max_memory: int | None = None
    checksums: bool = True
    follow_paths: bool = False

    def __post_init__(self) -> None:
        if self.max_memory is not None and not self.max_memory > 0:
            raise ArgumentError(f"max_memory must be a positive number; got {self.max_memory}.")

    @classmethod
    def from_text(cls, text: str) -> Limits:
        """Read what `to_text` wrote.

        Parameters
        ----------
        text
            JSON object: ``max_memory``, a whole number or null; ``checksums`` and
            ``follow_paths``, true or false.  What it does not name has its default.

        Returns
        -------
        limits
            `Limits`.

        Raises
        ------
        ArgumentError
            If it is something else.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        # True is an int, too.
        kinds = {"max_memory": (int, type(None)), "checksums": (bool,), "follow_paths": (bool,)}
        if not isinstance(values, dict) or not all(
            type(value) in kinds.get(name, ()) for name, value in values.items()
        ):
            raise ArgumentError(
                f"{VARIABLE} must be such as {cls(4 * 10**9).to_text()}; got {text!r}."
            )
        return cls(**values)

    def to_text(self) -> str:
        """Write the limits as one line.

        Returns
        -------
        text
            JSON object of all attributes.
        """
        return json.dumps(dataclasses.asdict(self))


_current: Limits | None = None


def current() -> Limits:
    """Limits that hold now.

    Returns
    -------
    limits
        Of this process and all of its threads.

    Raises
    ------
    ArgumentError
        If none were set and the environment variable holds no limits.
    """
    return _of_environment() if _current is None else _current


@functools.cache
def _of_environment() -> Limits:
    text = os.environ.get(VARIABLE)
    return Limits() if text is None else Limits.from_text(text)


@contextlib.contextmanager
def within(limits: Limits) -> Iterator[None]:
    """Context in which other limits hold.

    Parameters
    ----------
    limits
        Of all files that are opened in it.

    Yields
    ------
    None
    """
    global _current
    before, _current = _current, limits
    try:
        yield
    finally:
        _current = before


def machine_memory() -> int:
    """Memory that this machine, or the container that this is, has.

    Returns
    -------
    size
        Bytes.
    """
    found = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in _CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(name).read_text()))
    return min((size for size in found if size > 0), default=_ENOUGH)


def check_memory(size: int, what: str) -> None:
    """Make sure that something fits into memory, before it is unpacked.

    Parameters
    ----------
    size
        Bytes.
    what
        File and part, as a sentence begins.

    Raises
    ------
    FileFormatError
        If it is more than the limit.
    """
    limit = current().max_memory
    if size > (machine_memory() if limit is None else limit):
        most = "this machine has" if limit is None else "--max-memory allows"
        raise FileFormatError(
            f"{what} would take {_bytes(size)} of memory, more than {most}"
            f" ({_bytes(machine_memory() if limit is None else limit)}); is it damaged?"
        )


def check_table(path: Path) -> None:
    """Make sure that a table, text or Parquet, fits into memory.

    Parameters
    ----------
    path
        File.

    Raises
    ------
    FileFormatError
        If it is no regular file, or too large.
    """
    regular(path)
    size = path.stat().st_size
    if path.suffix.lower() in (".parquet", ".parq", ".pq"):
        import pyarrow.parquet

        about = pyarrow.parquet.read_metadata(path)
        groups = [about.row_group(i).total_byte_size for i in range(about.num_row_groups)]
        # A column that is all the same takes next to nothing in the file.
        size = max(sum(groups), 8 * about.num_rows * about.num_columns)
    check_memory(size, f"{path}: its table")


def _bytes(size: int) -> str:
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{min(size / unit, 1e9):.3g} {name}"
    return f"{size} bytes"


def leads_to(name: str, beside: Path) -> tuple[Path | None, bool]:
    """File that a header of another file names.

    Parameters
    ----------
    name
        As it stands in the header.
    beside
        The file with the header.

    Returns
    -------
    file
        Where it is there and may be read: the named one, which lies beside or below the other
        file unless `Limits.follow_paths` is set, or one of its name beside it.  None for none.
        An address is never followed.
    is_elsewhere
        A file of that name is there, but may not be read.
    """
    if is_address(name) or "\0" in name:
        return None, False
    home = Path(os.path.abspath(beside)).parent
    stem, bracket, extension = name.partition("[") if name.endswith("]") else (name, "", "")
    elsewhere = False
    for candidate in (home / stem, Path(stem), home / Path(stem).name):
        try:
            found = candidate.is_file()
        except (OSError, ValueError):
            continue
        if not found:
            continue
        if current().follow_paths or Path(os.path.abspath(candidate)).is_relative_to(home):
            return Path(f"{candidate}{bracket}{extension}"), elsewhere
        elsewhere = True
    return None, elsewhere
