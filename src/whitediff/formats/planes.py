"""Planes of FITS files as arrays in native byte order, and in linear units."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import numpy.typing as npt

from ..errors import FileFormatError
from ..numerics.planes import filled

__all__ = ["ASINH_CARDS", "asinh_scale", "is_plane", "linear", "native", "plane_of"]

type Array = npt.NDArray[Any]
type Hdu = (
    astropy.io.fits.PrimaryHDU
    | astropy.io.fits.ImageHDU
    | astropy.io.fits.CompImageHDU
    | astropy.io.fits.BinTableHDU
)
"""HDU of any kind that astropy yields for a file."""


ASINH_CARDS = ("BSOFTEN", "BOFFSET")
"""Cards of an asinh-scaled image: softening and offset, in the linear unit."""

_POGSON = 2.5 / math.log(10)


def is_plane(header: astropy.io.fits.Header) -> bool:
    """Whether an HDU has one plane of pixels.

    Parameters
    ----------
    header
        Header of the HDU.

    Returns
    -------
    found
        True for two axes, and for more if all but the first two have length 1.
    """
    number = header.get("NAXIS", 0)
    return number >= 2 and all(header.get(f"NAXIS{axis}") == 1 for axis in range(3, number + 1))


def plane_of(hdu: Hdu, path: str | Path) -> Array:
    """Pixels of an HDU with one plane.

    Parameters
    ----------
    hdu
        HDU with data.
    path
        File, for error messages.

    Returns
    -------
    data
        ``(ny, nx)``, in the byte order of the file.

    Raises
    ------
    FileFormatError
        If there are several planes, or fewer than two axes.
    """
    data = hdu.data
    if data.ndim < 2:
        raise FileFormatError.of(
            path,
            f"{hdu.name or 'the primary HDU'} has {data.ndim} dimensions {data.shape}; an"
            " image must have 2, so name or extract one.",
        )
    number = math.prod(data.shape[:-2])
    if number != 1:
        raise FileFormatError(
            f"{path}[{hdu.name or 0}]: has {number} planes, {data.ndim} dimensions {data.shape}; an"
            " image must have 2, so extract one into a file of its own, such as data[0] of"
            " astropy.io.fits, or name an extension that holds one."
        )
    return np.asarray(data).reshape(data.shape[-2:])


def asinh_scale(header: astropy.io.fits.Header) -> tuple[float, float] | None:
    """Softening and offset of an HDU whose pixels are asinh-scaled.

    Parameters
    ----------
    header
        Header of the HDU.

    Returns
    -------
    softening, offset
        None if a card is missing or no number, or the softening is not positive.
    """
    values = [header.get(card) for card in ASINH_CARDS]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return None
    return (float(values[0]), float(values[1])) if values[0] > 0 else None


def linear(data: Array, header: astropy.io.fits.Header) -> Array:
    """Linear pixels of a plane that may be asinh-scaled, as Pan-STARRS stacks are.

    Parameters
    ----------
    data
        ``(ny, nx)``.
    header
        Header of their HDU; BSOFTEN and BOFFSET say that the pixels are scaled, and how.

    Returns
    -------
    linear
        ``BOFFSET + 2 BSOFTEN sinh(data ln 10 / 2.5)`` (Waters et al. 2020, ApJS 251, 4), or the
        unchanged data if they are not scaled.
    """
    scale = asinh_scale(header)
    if scale is None:
        return data
    softening, offset = scale
    dtype = data.dtype if data.dtype.kind == "f" else np.float32

    def work(rows: slice) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            values = offset + 2 * softening * np.sinh(data[rows].astype(float) / _POGSON)
            return np.asarray(values.astype(dtype))

    return filled(data.shape, dtype, work)


def native(data: Array, dtype: npt.DTypeLike | None = None) -> Array:
    """Copy of a plane in native byte order.

    Parameters
    ----------
    data
        ``(ny, nx)`` in the byte order of the file, perhaps mapped into memory.
    dtype
        Type of the copy; if None, the type of the data in native byte order.

    Returns
    -------
    copy
        ``(ny, nx)``; no other copy is made on the way.
    """
    return filled(data.shape, dtype or data.dtype.newbyteorder("="), lambda rows: data[rows])
