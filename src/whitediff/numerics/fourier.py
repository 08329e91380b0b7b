"""Transform grids, and images whose origin is at their centre.

A kernel or PSF has its origin at the pixel ``[ny//2, nx//2]``; the transform
wants it at ``[0, 0]``.  Spectra are half spectra in the layout of
`numpy.fft.rfft2`, unless a name says ``full``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError
from .threads import in_threads

__all__ = [
    "common_shape",
    "convolution",
    "crop_center_origin",
    "fast_shape",
    "forward",
    "full_spectrum",
    "half_spectrum",
    "inverse",
    "mean_square_modulus",
    "pad_center_origin",
    "stamp_spectrum",
]

type Array = npt.NDArray[Any]

_FRAME = 1 << 18
_LINES = 64
"""Rows or columns that are transformed at a time."""


def _linear_convolution_lengths(shapes: tuple[tuple[int, ...], ...]) -> list[int]:
    if not shapes:
        raise ArgumentError("common_shape needs at least one shape; got none.")
    if len({len(shape) for shape in shapes}) != 1:
        raise ArgumentError(f"All shapes must have the same number of axes; got {shapes}.")
    lengths = []
    for axis in zip(*shapes, strict=True):
        largest = sorted((int(n) for n in axis), reverse=True)
        if largest[-1] < 1:
            raise ArgumentError(f"All lengths must be positive; got {shapes}.")
        lengths.append(largest[0] if len(largest) == 1 else largest[0] + largest[1] - 1)
    return lengths


def common_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Smallest even transform grid on which the two largest arrays convolve linearly.

    Parameters
    ----------
    *shapes
        Shapes of all arrays that share the grid, with the same number of axes.

    Returns
    -------
    shape
        Per axis ``N1 + N2 - 1`` of the two largest lengths, raised to even; a
        single shape is only raised to even.

    Raises
    ------
    ArgumentError
        If no shape is given, the numbers of axes differ, or a length is not positive.

    Notes
    -----
    The grid documented for LSST's ``computeCommonShape``.

    Examples
    --------
    >>> common_shape((21, 21), (100, 80))
    (120, 100)
    """
    return tuple(n + n % 2 for n in _linear_convolution_lengths(shapes))


def fast_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Grid at least as large as `common_shape`, of lengths that transform fast.

    Parameters
    ----------
    *shapes
        As for `common_shape`.

    Returns
    -------
    shape
        Per axis the next length with small prime factors only.

    Notes
    -----
    ``4072 + 41 - 1 = 4112 = 2^4 · 257`` transforms slower than the longer ``4320``.

    Examples
    --------
    >>> fast_shape((41, 41), (4000, 4072))
    (4050, 4320)
    """
    return tuple(scipy.fft.next_fast_len(n, real=True) for n in common_shape(*shapes))


def convolution(first: Array, second: Array, *, same: bool = False) -> Array:
    """Linear convolution of two small images, in the precision of their dtype.

    Parameters
    ----------
    first, second
        Real arrays of two axes.
    same
        Return the middle of the result, as large as the first array.

    Returns
    -------
    result
        ``(ny1 + ny2 - 1, nx1 + nx2 - 1)``, or the first array's shape.
    """
    shape = [n + m - 1 for n, m in zip(first.shape, second.shape, strict=True)]
    grid = [scipy.fft.next_fast_len(n, real=True) for n in shape]
    product = scipy.fft.rfftn(first, grid) * scipy.fft.rfftn(second, grid)
    result: Array = scipy.fft.irfftn(product, grid)[: shape[0], : shape[1]]
    if not same:
        return result
    start = [(n - m) // 2 for n, m in zip(shape, first.shape, strict=True)]
    return result[start[0] : start[0] + first.shape[0], start[1] : start[1] + first.shape[1]]


def pad_center_origin(array: Array, shape: tuple[int, ...]) -> Array:
    """Zero-pad an array whose origin is its centre, and move that centre to ``[0, 0]``.

    Parameters
    ----------
    array
        ``(ny, nx)``, origin at ``[ny//2, nx//2]``.
    shape
        Shape of the result, on no axis smaller than the array.

    Returns
    -------
    padded
        Same dtype; pixels before the centre are wrapped to the far end.

    Raises
    ------
    ArgumentError
        If the grid is smaller than the array.
    """
    if len(shape) != array.ndim or any(g < n for g, n in zip(shape, array.shape, strict=True)):
        raise ArgumentError(
            f"The grid {tuple(shape)} must be at least as large as the array {array.shape}."
        )
    padded = np.zeros(shape, dtype=array.dtype)
    padded[tuple(slice(n) for n in array.shape)] = array
    return np.roll(padded, [-(n // 2) for n in array.shape], axis=tuple(range(array.ndim)))


def crop_center_origin(array: Array, shape: tuple[int, ...]) -> Array:
    """Inverse of `pad_center_origin`: move ``[0, 0]`` back to the centre and crop.

    Parameters
    ----------
    array
        Array on the grid, origin at ``[0, 0]``.
    shape
        Shape of the result, on no axis larger than the grid.

    Returns
    -------
    cropped
        Same dtype, origin at ``[ny//2, nx//2]``; a copy.

    Raises
    ------
    ArgumentError
        If the result would be larger than the grid.
    """
    if len(shape) != array.ndim or any(g < n for g, n in zip(array.shape, shape, strict=True)):
        raise ArgumentError(
            f"The result {tuple(shape)} must be no larger than the grid {array.shape}."
        )
    indices = [
        np.arange(-(n // 2), n - n // 2) % grid for n, grid in zip(shape, array.shape, strict=True)
    ]
    return array[np.ix_(*indices)]


def stamp_spectrum(stamp: Array, shape: tuple[int, int]) -> Array:
    """Half spectrum of a stamp whose origin is its centre, on a grid of any size.

    Parameters
    ----------
    stamp
        ``(ny, nx)`` real, origin at ``[ny//2, nx//2]``.
    shape
        Grid, on no axis smaller than the stamp.

    Returns
    -------
    stamp_ft
        ``(shape[0], shape[1]//2 + 1)`` complex128, `numpy.fft.rfft2` layout: the spectrum of
        `pad_center_origin`'s result, without transforms of rows that are zero.

    Raises
    ------
    ArgumentError
        If the grid is smaller than the stamp.
    """
    rows = stamp.shape[0]
    strip = pad_center_origin(stamp.astype(np.float64, copy=False), (rows, shape[1]))
    if rows > shape[0]:
        raise ArgumentError(
            f"The grid {tuple(shape)} must be at least as large as the array {stamp.shape}."
        )
    strip_ft = scipy.fft.rfft(strip, axis=1)
    # Rows before the origin are at the strip's end; on the grid they must be at its end, too.
    after = rows - rows // 2
    full = np.zeros((shape[0], strip_ft.shape[1]), strip_ft.dtype)
    full[:after] = strip_ft[:after]
    full[shape[0] - (rows - after) :] = strip_ft[after:]
    if math.prod(shape) < _FRAME:
        return scipy.fft.fft(full, axis=0, overwrite_x=True)
    _along_columns(scipy.fft.fft, full)
    return full


def forward(array: Array, shape: tuple[int, int]) -> Array:
    """Half spectrum of an image-like array whose origin is its first pixel, zero-padded.

    Parameters
    ----------
    array
        ``(ny, nx)`` real; float32 gives complex64, everything else complex128.
    shape
        Grid.

    Returns
    -------
    array_ft
        ``(shape[0], shape[1]//2 + 1)`` complex, `numpy.fft.rfft2` layout.
    """
    if math.prod(shape) < _FRAME:
        return scipy.fft.rfft2(array, s=shape)
    rows = min(array.shape[0], shape[0])
    dtype = np.complex64 if array.dtype == np.float32 else np.complex128
    array_ft = np.zeros((shape[0], shape[1] // 2 + 1), dtype)

    def along_rows(part: slice) -> None:
        array_ft[part] = scipy.fft.rfft(array[part], n=shape[1], axis=1)

    in_threads(along_rows, _blocks(rows))
    _along_columns(scipy.fft.fft, array_ft)
    return array_ft


def inverse(array_ft: Array, shape: tuple[int, int], crop: tuple[int, int]) -> Array:
    """Real image of a half spectrum, its first ``crop`` pixels.

    Parameters
    ----------
    array_ft
        ``(shape[0], shape[1]//2 + 1)``, `numpy.fft.rfft2` layout.  Its memory may
        be used for the transform.
    shape
        Grid.
    crop
        Shape of the result.

    Returns
    -------
    array
        ``crop``, real, in the spectrum's precision; a view of the whole grid if that is small.
    """
    if math.prod(shape) < _FRAME:
        image = scipy.fft.irfft2(array_ft, s=shape, overwrite_x=True)
        return image[: crop[0], : crop[1]]
    _along_columns(scipy.fft.ifft, array_ft)
    result = np.empty(crop, np.float32 if array_ft.dtype == np.complex64 else np.float64)

    def along_rows(part: slice) -> None:
        lines = scipy.fft.irfft(array_ft[part], n=shape[1], axis=1)
        result[part] = lines[:, : crop[1]]

    in_threads(along_rows, _blocks(crop[0]))
    return result


def _along_columns(transform: Callable[..., Array], array_ft: Array) -> None:
    """Transform the columns, in place.

    Blocks do not depend on the number of threads: the library rounds differently with the number
    of columns that it transforms at a time.
    """

    def work(part: slice) -> None:
        array_ft[:, part] = transform(array_ft[:, part], axis=0)

    in_threads(work, _blocks(array_ft.shape[1]))


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(start + _LINES, length)) for start in range(0, length, _LINES)]


def half_spectrum(full: Array) -> Array:
    """Half of a full spectrum, for the transform of a real array.

    Parameters
    ----------
    full
        ``(ny, nx)``, in unshifted order: zero frequency first.

    Returns
    -------
    half
        ``(ny, nx//2 + 1)``; a view.
    """
    return full[:, : full.shape[1] // 2 + 1]


def full_spectrum(half: Array, shape: tuple[int, int]) -> Array:
    """Complete a half spectrum by its Hermitian symmetry.

    Parameters
    ----------
    half
        ``(ny, nx//2 + 1)``, real or complex.
    shape
        ``(ny, nx)`` of the grid; ``half`` does not show whether ``nx`` is even.

    Returns
    -------
    full
        ``(ny, nx)``, same dtype.
    """
    ny, nx = shape
    full = np.empty((ny, nx), dtype=half.dtype)
    n_half = nx // 2 + 1
    full[:, :n_half] = half
    mirrored_rows = -np.arange(ny) % ny
    full[:, n_half:] = half[mirrored_rows][:, nx - np.arange(n_half, nx)].conj()
    return full


def mean_square_modulus(half: Array, shape: tuple[int, int]) -> float:
    """Mean of ``|f(k)|²`` over all frequencies of the grid, from a half spectrum.

    Parameters
    ----------
    half
        ``(ny, nx//2 + 1)``, real or complex.
    shape
        ``(ny, nx)`` of the grid.

    Returns
    -------
    mean
        Mean; by Parseval's theorem it equals the sum of the squared image-space kernel.
    """
    # Summed in double precision: a single-precision sum over 10^7 terms drifts.
    power = np.square(half.real, dtype=np.float64)
    if np.iscomplexobj(half):
        power += np.square(half.imag, dtype=np.float64)
    # Each column stands for its mirror image too, except zero and Nyquist frequency.
    total = 2.0 * power.sum() - power[:, 0].sum()
    if shape[1] % 2 == 0:
        total -= power[:, -1].sum()
    return float(total) / math.prod(shape)
