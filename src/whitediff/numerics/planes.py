"""Planes of an image's size: in memory, or in files where there is a limit to that.

Whatever has as many pixels as an image is made here, and worked on a few rows at a time, so
that what is made on the way stays in the processor's cache.  Within a `memory_limit` large planes
live in files without a name, which the system pages in and out as it likes: memory then does not
depend on the image's size, and the results are the same.
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
    "usable_pixels",
    "used",
    "zeros",
]

type Array = npt.NDArray[Any]

_BLOCK = 1 << 17
"""Pixels of a block of rows."""

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

_SHARE = 16
"""A plane that takes more than this part of the limit goes to a file."""


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
        Bytes of memory that may be used, about; None for what the machine has.
    directory
        Where the files are, with room for a dozen planes; they have no names and vanish
        with the planes.  None for the system's choice.

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
    """Bytes that the machine has, where it tells."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def is_limited(shape: tuple[int, ...], dtype: npt.DTypeLike) -> bool:
    """Whether a plane is too large for memory.

    Parameters
    ----------
    shape, dtype
        Of the plane.

    Returns
    -------
    limited
        True where it goes to a file.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return _limit is not None and size > _limit.bytes // _SHARE


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Plane whose pixels are yet to be set.

    Parameters
    ----------
    shape, dtype
        Of the plane.

    Returns
    -------
    plane
        In memory, or in a file.
    """
    return zeros(shape, dtype) if is_limited(shape, dtype) else np.empty(shape, dtype)


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Plane of zeros.

    Parameters
    ----------
    shape, dtype
        Of the plane.

    Returns
    -------
    plane
        In memory, or in a file.

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
    """Have all of a file's blocks: were there none left later, writing to memory would kill us."""
    if not hasattr(os, "posix_fallocate"):  # not on this system
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _free(directory: Path) -> str:
    """How much room there is."""
    try:
        return f"; {shutil.disk_usage(directory).free / 1e6:.4g} MB are free"
    except OSError:
        return ""


def row_blocks(shape: tuple[int, ...]) -> list[slice]:
    """Rows to work on at a time.

    Parameters
    ----------
    shape
        Of an image.

    Returns
    -------
    blocks
        They depend on nothing else.
    """
    step = max(1, _BLOCK // max(1, math.prod(shape[1:])))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def each_block[Result](work: Callable[[slice], Result], shape: tuple[int, ...]) -> list[Result]:
    """Work on all blocks of rows of an image, side by side.

    Parameters
    ----------
    work
        Function of some rows.
    shape
        Of the image.

    Returns
    -------
    results
        In the order of the rows.
    """
    return in_threads(work, row_blocks(shape))


def filled(shape: tuple[int, ...], dtype: npt.DTypeLike, work: Callable[[slice], Array]) -> Array:
    """Plane made from a function of some of its rows.

    Parameters
    ----------
    shape, dtype
        Of the plane.
    work
        Function that returns the pixels of some rows.

    Returns
    -------
    plane
        In memory, or in a file.
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
        In memory, or in a file.
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
    """Values of the pixels of some rows that are used.

    Parameters
    ----------
    plane
        ``(ny, nx)``.
    use
        ``(ny, nx)`` boolean: pixels that are.
    rows
        Which rows.

    Returns
    -------
    values
        ``(n,)`` row by row; no copy where all are.
    """
    values, chosen = plane[rows], use[rows]
    result: Array = values.reshape(-1) if chosen.all() else values[chosen]
    return result


def every_nth(plane: Array, use: Array, enough: int) -> Array:
    """Values of evenly spaced ones of the pixels that are used.

    Parameters
    ----------
    plane
        ``(ny, nx)``.
    use
        ``(ny, nx)`` boolean: pixels that are.
    enough
        At least so many values, where there are as many; less than twice as many.

    Returns
    -------
    values
        ``(n,)``: ``plane[use][::step]``, without a copy of all of it.
    """
    blocks = row_blocks(plane.shape)
    counts = in_threads(lambda rows: np.count_nonzero(use[rows]), blocks)
    step = max(1, sum(counts) // enough)
    before = np.append(0, np.cumsum(counts))

    def work(number: int) -> Array:
        # A copy, or all that it was taken from would be kept.
        values = used(plane, use, blocks[number])
        return np.array(values[int(-before[number]) % step :: step])

    return np.concatenate([np.empty(0, plane.dtype), *in_threads(work, range(len(blocks)))])
