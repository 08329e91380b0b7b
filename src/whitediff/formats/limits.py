"""How far files are trusted: how much memory they may take, and which other files they may name.

Commands set these limits once, from their options; every reader obeys them.  Processes that other
programs start, such as Rubin's middleware, take them from the environment variable
WHITEDIFF_LIMITS.
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
"""Environment variable with the limits of processes that set no others."""
_ENOUGH = 1 << 40
"""Memory that is assumed if the machine does not say, bytes."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far files are trusted.

    Attributes
    ----------
    max_memory
        Bytes that one part of a file may unpack to; positive; None: all memory of the machine.
    checksums
        Whether CHECKSUM and DATASUM are verified where they are present.
    follow_paths
        Whether a header may name files anywhere; otherwise only in the file's folder or below.

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
            ``follow_paths``, true or false.  Limits that it does not name have their defaults.

        Returns
        -------
        limits
            `Limits`.

        Raises
        ------
        ArgumentError
            If the text is anything else.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        # Exact types: isinstance would take True for an int.
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
        Limits of this process and all its threads.

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
        Limits for all files that are opened in the context.

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
    """Memory of this machine, or of the container that this process runs in.

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
    """Make sure that a part of a file fits into memory, before it is unpacked.

    Parameters
    ----------
    size
        Bytes.
    what
        File and part, as the beginning of a sentence.

    Raises
    ------
    FileFormatError
        If the size exceeds the limit.
    """
    limit = current().max_memory
    if size > (machine_memory() if limit is None else limit):
        most = "this machine has" if limit is None else "--max-memory allows"
        raise FileFormatError(
            f"{what} would take {_bytes(size)} of memory, more than {most}"
            f" ({_bytes(machine_memory() if limit is None else limit)}); is it damaged?"
        )


def check_table(path: Path) -> None:
    """Make sure that a table (text or Parquet) fits into memory.

    Parameters
    ----------
    path
        File.

    Raises
    ------
    FileFormatError
        If the file is not regular, or too large.
    """
    regular(path)
    size = path.stat().st_size
    if path.suffix.lower() in (".parquet", ".parq", ".pq"):
        import pyarrow.parquet

        about = pyarrow.parquet.read_metadata(path)
        groups = [about.row_group(i).total_byte_size for i in range(about.num_row_groups)]
        # A column of one repeated value takes next to nothing in the file.
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
        Name as it stands in the header.
    beside
        File with the header.

    Returns
    -------
    file
        The named file, or a file of that name in the header's folder; None if there is none that
        may be read.  It must lie in that folder or below, unless `Limits.follow_paths` is set.  An
        address is never followed.
    is_elsewhere
        Whether a file was found that may not be read.
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
