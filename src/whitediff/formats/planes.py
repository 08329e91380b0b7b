"""Planes of FITS files as arrays that the processor understands."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..planes import filled

__all__ = ["mask_bytes", "native"]

type Array = npt.NDArray[Any]


def native(data: Array, dtype: npt.DTypeLike | None = None) -> Array:
    """Own copy of a plane in native byte order.

    Parameters
    ----------
    data
        ``(ny, nx)`` as it lies in the file, perhaps mapped into memory.
    dtype
        Of the copy; that of the data, in native byte order, if None.

    Returns
    -------
    copy
        ``(ny, nx)``; the only one that is made of it.
    """
    return filled(data.shape, dtype or data.dtype.newbyteorder("="), lambda rows: data[rows])


def mask_bytes(data: Array, size: int) -> Array:
    """Bytes of a mask whose bits are one integer for each pixel.

    Parameters
    ----------
    data
        ``(ny, nx)`` integers, of at least so many bytes.
    size
        Bytes for each pixel.

    Returns
    -------
    bytes
        ``(ny, nx, size)`` uint8, the lowest bits first.
    """
    little = data.dtype.newbyteorder("<")

    def work(rows: slice) -> Array:
        part = np.ascontiguousarray(data[rows].astype(little)).view(np.uint8)
        return part.reshape(*data[rows].shape, -1)[..., :size]

    return filled((*data.shape, size), np.uint8, work)
