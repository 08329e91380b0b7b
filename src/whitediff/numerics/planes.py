"""Planes of an image's size: in memory, or in files if memory is limited.

Every array with as many pixels as an image is made here, and processed a few rows at a time, so
that intermediate results stay in the processor's cache.  Within a `memory_limit` large planes live
in files without a name, which the system pages in and out as it likes: then memory does not depend
on the image's size, and the results are the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FileFormatError, one_line
from .threads import in_threads

__all__ = [
    "copied",
    "each_block",
    "empty",
    "every_nth",
    "filled",
    "has_limit",
    "is_limited",
    "memory_limit",
    "row_blocks",
    "spread_rows",
    "usable_pixels",
    "used",
    "zeros",
]

type Array = npt.NDArray[Any]

_BLOCK = 1 << 17
"""Pixels in a block of rows."""

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of file systems that cannot reserve blocks."""

_SHARE = 16
"""A plane larger than the limit divided by this goes to a file."""


@dataclasses.dataclass(frozen=True)
class _Limit:
    bytes: int
    directory: Path | None


_limit: _Limit | None = None


@contextlib.contextmanager
def memory_limit(number: int | None, directory: Path | None = None) -> Iterator[None]:
    """Context in which large planes live in files.

    Parameters
    ----------
    number
        Approximate limit, bytes; None for the memory of the machine.
    directory
        Directory of the files, with room for a dozen planes; the files have no names and vanish
        with the planes.  None for the system's directory for temporary files.

    Yields
    ------
    None
    """
    global _limit
    number = _physical_memory() if number is None else number
    before, _limit = _limit, None if number is None else _Limit(number, directory)
    try:
        yield
    finally:
        _limit = before


def has_limit() -> bool:
    """Whether a `memory_limit` holds now.

    Returns
    -------
    has_limit
        True within such a context.
    """
    return _limit is not None


def _physical_memory() -> int | None:
    """Memory of the machine, bytes; None if the system does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def is_limited(shape: tuple[int, ...], dtype: npt.DTypeLike) -> bool:
    """Whether a plane is too large for memory.

    Parameters
    ----------
    shape, dtype
        Shape and type of the plane.

    Returns
    -------
    limited
        True if the plane goes to a file.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return _limit is not None and size > _limit.bytes // _SHARE


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Plane whose pixels are not set yet.

    Parameters
    ----------
    shape, dtype
        Shape and type of the plane.

    Returns
    -------
    plane
        Plane in memory or in a file.
    """
    return zeros(shape, dtype) if is_limited(shape, dtype) else np.empty(shape, dtype)


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Plane of zeros.

    Parameters
    ----------
    shape, dtype
        Shape and type of the plane.

    Returns
    -------
    plane
        Plane in memory or in a file.

    Raises
    ------
    FileFormatError
        If there is no room for the file.
    """
    if not is_limited(shape, dtype):
        return np.zeros(shape, dtype)
    assert _limit is not None
    directory = Path(tempfile.gettempdir()) if _limit.directory is None else _limit.directory
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        with tempfile.TemporaryFile(prefix=".whitediff-", dir=directory) as file:
            _reserve(file.fileno(), size)
            return np.asarray(np.memmap(file, dtype=dtype, mode="w+", shape=shape))
    except OSError as error:
        raise FileFormatError(
            f"{directory}: no temporary file of {size / 1e6:.4g} MB can be made there"
            f" ({error.strerror or one_line(error)}{_free(directory)}); make room, name an output"
            " in another directory, or allow more with --memory."
        ) from error


def _reserve(file: int, size: int) -> None:
    """Reserve a file's blocks: if the disk filled later, writing to the plane would kill us."""
    if not hasattr(os, "posix_fallocate"):  # not on this system
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _free(directory: Path) -> str:
    """Part of a message with the free room in a directory; empty if the system does not tell."""
    try:
        return f"; {shutil.disk_usage(directory).free / 1e6:.4g} MB are free"
    except OSError:
        return ""


def spread_rows(shape: tuple[int, ...], rows: int, enough: int) -> list[slice]:
    """Strips of rows, evenly spread over a frame, that together have enough pixels.

    Parameters
    ----------
    shape
        ``(ny, nx)`` of the frame.
    rows
        Rows of a strip.
    enough
        Number of pixels that suffices.

    Returns
    -------
    strips
        Slices of rows; one slice of all rows where the frame has fewer pixels.
    """
    ny, nx = shape
    number = math.ceil(enough / (rows * nx))
    if number * rows >= ny:
        return [slice(0, ny)]
    starts = np.linspace(0, ny - rows, number).round().astype(int)
    return [slice(int(start), int(start) + rows) for start in starts]


def row_blocks(shape: tuple[int, ...]) -> list[slice]:
    """Blocks of rows to work on at a time.

    Parameters
    ----------
    shape
        Shape of an image.

    Returns
    -------
    blocks
        Slices of rows; they depend on the shape only, not on the number of threads.
    """
    step = max(1, _BLOCK // max(1, math.prod(shape[1:])))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def each_block[Result](work: Callable[[slice], Result], shape: tuple[int, ...]) -> list[Result]:
    """Work on all blocks of rows of an image, side by side.

    Parameters
    ----------
    work
        Function of a slice of rows.
    shape
        Shape of the image.

    Returns
    -------
    results
        Results in the order of the rows.
    """
    return in_threads(work, row_blocks(shape))


def filled(shape: tuple[int, ...], dtype: npt.DTypeLike, work: Callable[[slice], Array]) -> Array:
    """Plane filled block by block by a function.

    Parameters
    ----------
    shape, dtype
        Shape and type of the plane.
    work
        Function of a slice of rows that returns their pixels.

    Returns
    -------
    plane
        Plane in memory or in a file.
    """
    plane = empty(shape, dtype)

    def fill(rows: slice) -> None:
        plane[rows] = work(rows)

    each_block(fill, shape)
    return plane


def copied(plane: Array) -> Array:
    """Copy of a plane.

    Parameters
    ----------
    plane
        Plane.

    Returns
    -------
    copy
        Plane in memory or in a file.
    """
    return filled(plane.shape, plane.dtype, lambda rows: plane[rows])


def usable_pixels(image: Array, unusable: Array | None = None) -> Array:
    """Pixels of an image that have a value.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    unusable
        ``(ny, nx)`` boolean: pixels that are left out, whatever their values.

    Returns
    -------
    usable
        ``(ny, nx)`` boolean, new.
    """

    def work(rows: slice) -> Array:
        usable: Array = np.isfinite(image[rows])
        if unusable is not None:
            usable &= ~unusable[rows]
        return usable

    return filled(image.shape, bool, work)


def used(plane: Array, use: Array, rows: slice) -> Array:
    """Values of the used pixels in some rows.

    Parameters
    ----------
    plane
        ``(ny, nx)``.
    use
        ``(ny, nx)`` boolean: pixels that are used.
    rows
        Slice of rows.

    Returns
    -------
    values
        ``(n,)`` row by row; no copy if all are used.
    """
    values, chosen = plane[rows], use[rows]
    result: Array = values.reshape(-1) if chosen.all() else values[chosen]
    return result


def every_nth(plane: Array, use: Array, enough: int) -> Array:
    """Values of evenly spaced pixels among those that are used.

    Parameters
    ----------
    plane
        ``(ny, nx)``.
    use
        ``(ny, nx)`` boolean: pixels that are used.
    enough
        Least number of values, if that many are used; the result has less than twice as many.

    Returns
    -------
    values
        ``(n,)``: ``plane[use][::step]``, without a copy of all of ``plane[use]``.
    """
    blocks = row_blocks(plane.shape)
    counts = in_threads(lambda rows: np.count_nonzero(use[rows]), blocks)
    step = max(1, sum(counts) // enough)
    before = np.append(0, np.cumsum(counts))

    def work(number: int) -> Array:
        # A copy: a view would keep the whole array alive.
        values = used(plane, use, blocks[number])
        return np.array(values[int(-before[number]) % step :: step])

    return np.concatenate([np.empty(0, plane.dtype), *in_threads(work, range(len(blocks)))])
