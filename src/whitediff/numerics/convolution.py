"""Convolution of an image with a kernel that is constant or varies over the field.

The image is processed in overlapping tiles (overlap-save): small transforms stay in the
processor's cache, need little memory, and give the same result with any number of threads.  All
of them together cost less than one transform of the frame.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError
from . import planes
from .threads import in_threads, single_threaded_algebra

__all__ = [
    "SINGLE_PRECISION_ERROR_FROM_PEAK",
    "SINGLE_PRECISION_ERROR_FROM_RMS",
    "Boundary",
    "convolve",
    "convolve_sparse",
    "convolve_varying",
    "reflected",
]

type Array = npt.NDArray[Any]

type Boundary = Literal["zero", "reflect"]
"""Pixels outside the frame: zero, or its mirror image, which repeats the edge pixel."""

SINGLE_PRECISION_ERROR_FROM_RMS = 16 * float(np.finfo(np.float32).eps)
SINGLE_PRECISION_ERROR_FROM_PEAK = 3 * float(np.finfo(np.float32).eps)
"""Largest error of a pixel after a float32 transform, a multiplication and the inverse transform.

The error is the sum of two terms: the first factor times the root mean square on the grid, and the
second times the brightest pixel; both times the filter's largest value.  Noise, backgrounds, edges
and stars on 64² to 4096² pixels reach 13 and 1.5 epsilon.
"""

_MOST_BRIGHT = 500
_SHARE_OF_PEAK = 0.5 / SINGLE_PRECISION_ERROR_FROM_PEAK
"""Brightness over the allowed error from which pixels, such as the cores of a few bright stars, are
summed up one by one.  The rest of the tile can then be transformed in single precision."""

_LEVEL_STEP = 7
"""Spacing of the pixels that a tile's level is measured on, along both axes."""

_SPARSE_BLOCK = 64
_SPARSE = 0.1
"""Largest share of occupied blocks (of 64 × 64 pixels) of an image that counts as sparse."""

_TILE = 512
"""Largest side of a tile's grid: 384 to 512 measured fastest for kernels of 33 to 97 pixels."""


def convolve(
    image: Array, kernel: Array, *, boundary: Boundary = "zero", tolerance: float = 0.0
) -> Array:
    """Convolve an image with a kernel.

    Parameters
    ----------
    image
        ``(ny, nx)``, finite.  Not modified.
    kernel
        ``(ky, kx)``, origin at ``[ky//2, kx//2]``.
    boundary
        Pixels outside the frame: "zero", or "reflect" for the frame's mirror image about the outer
        side of its edge pixels, as in `scipy.ndimage`.
    tolerance
        As for `convolve_varying`.

    Returns
    -------
    convolved
        ``(ny, nx)``, ``Σ_a image(x − a) · kernel(a)``; dtype as from `convolve_varying`.

    Raises
    ------
    ArgumentError
        If either is not 2-D, the kernel is larger than the image, or the boundary unknown.
    """
    if kernel.ndim != 2:
        raise ArgumentError(f"A kernel must be 2-D; got the shape {kernel.shape}.")
    return convolve_varying(image, kernel[None], None, boundary=boundary, tolerance=tolerance)


def convolve_sparse(pixels: Array, kernel: Array, *, tolerance: float = 0.0) -> Array:
    """Convolve a plane in which few pixels are set, such as a mask of bad pixels.

    Parameters
    ----------
    pixels
        ``(ny, nx)`` boolean, or numbers that are mostly zero.
    kernel
        ``(ky, kx)``, origin at ``[ky//2, kx//2]``.
    tolerance
        As for `convolve_varying`; it is used only if many pixels are set.

    Returns
    -------
    convolved
        ``(ny, nx)`` float32, as from `convolve`; the dtype of `convolve` if many pixels are set.

    Raises
    ------
    ArgumentError
        As from `convolve`.

    Notes
    -----
    Only blocks that are not empty are transformed, and added up (overlap-add).
    """
    if (
        pixels.ndim != 2
        or kernel.ndim != 2
        or any(k > n for k, n in zip(kernel.shape, pixels.shape, strict=True))
    ):
        return convolve(pixels, kernel, tolerance=tolerance)
    ny, nx = pixels.shape
    tops, lefts = range(0, ny, _SPARSE_BLOCK), np.arange(0, nx, _SPARSE_BLOCK)

    def occupied(top: int) -> Array:
        columns = pixels[top : top + _SPARSE_BLOCK].any(axis=0)
        return lefts[np.logical_or.reduceat(columns, lefts)]

    blocks = [
        (top, int(left))
        for top, found in zip(tops, in_threads(occupied, tops), strict=True)
        for left in found
    ]
    if len(blocks) > _SPARSE * len(tops) * len(lefts):
        return convolve(pixels, kernel, tolerance=tolerance)
    grid = tuple(scipy.fft.next_fast_len(_SPARSE_BLOCK + k - 1, real=True) for k in kernel.shape)
    kernel_ft = scipy.fft.rfft2(kernel.astype(np.float64), s=grid)

    def spread(block: tuple[int, int]) -> Array:
        top, left = block
        part = pixels[top : top + _SPARSE_BLOCK, left : left + _SPARSE_BLOCK]
        found: Array = scipy.fft.irfft2(
            scipy.fft.rfft2(part.astype(np.float64), s=grid) * kernel_ft, s=grid
        )
        return found[: len(part) + kernel.shape[0] - 1, : part.shape[1] + kernel.shape[1] - 1]

    result = planes.zeros(pixels.shape, np.float32)
    for block, found in zip(blocks, in_threads(spread, blocks), strict=True):
        y, x = (start - k // 2 for start, k in zip(block, kernel.shape, strict=True))
        below, right = (max(0, -start) for start in (y, x))
        inside = found[below : ny - y, right : nx - x]
        result[y + below :, x + right :][: inside.shape[0], : inside.shape[1]] += inside
    return result


def convolve_varying(
    image: Array,
    kernels: Array,
    weights: Callable[[slice, slice], Array] | None,
    *,
    boundary: Boundary = "zero",
    tolerance: float = 0.0,
) -> Array:
    """Convolve an image with a sum of kernels whose weights vary over the field.

    Parameters
    ----------
    image
        ``(ny, nx)``, finite.  Not modified.
    kernels
        ``(n, ky, kx)``, origin at ``[ky//2, kx//2]``.
    weights
        Function of a slice of rows and a slice of columns, which returns the kernels' weights at
        those pixels of the result, ``(n, rows, columns)``.  None for a single kernel of weight 1.
    boundary
        As for `convolve`.
    tolerance
        Largest error of a pixel, image_unit, besides its rounding to the image's dtype.  Tiles of
        a float32 image are transformed in single precision if this allows it, except a few
        bright pixels, which are summed up in double precision.  0: all in double precision.

    Returns
    -------
    convolved
        ``(ny, nx)``, ``Σ_i weight_i(x) Σ_a image(x − a) · kernel_i(a)``; the image's dtype, or
        float32 if that is no floating-point type.

    Raises
    ------
    ArgumentError
        If the image is not 2-D or the kernels not 3-D, the kernels are larger than the image,
        several kernels have no weights, or the boundary is unknown.
    """
    if image.ndim != 2 or kernels.ndim != 3:
        raise ArgumentError(
            f"The image must be 2-D and the kernels 3-D; got {image.shape} and {kernels.shape}."
        )
    n, ky, kx = kernels.shape
    if ky > image.shape[0] or kx > image.shape[1]:
        raise ArgumentError(f"The kernel {(ky, kx)} is larger than the image {image.shape}.")
    if weights is None and n != 1:
        raise ArgumentError(f"{n} kernels need weights.")
    if boundary not in ("zero", "reflect"):
        raise ArgumentError(f"The boundary must be 'zero' or 'reflect'; got {boundary!r}.")
    axes = _TiledAxis(image.shape[0], ky), _TiledAxis(image.shape[1], kx)
    grid = (axes[0].grid, axes[1].grid)
    in_double = _Spectra.of(kernels, grid)
    # Images of other types hold small integers, such as a mask, which float32 has exactly.
    dtype = image.dtype if image.dtype.kind == "f" else np.dtype(np.float32)
    in_single = in_double.single() if tolerance > 0 and dtype == np.float32 else None
    sums = kernels.sum(axis=(1, 2), dtype=np.float64)
    result = planes.empty(image.shape, dtype)

    def work(tile: tuple[slice, slice]) -> None:
        inner = tuple(axis.inside(part) for axis, part in zip(axes, tile, strict=True))
        padded = _padded(image, tile, axes, boundary, np.float64 if in_single is None else dtype)
        spectra, local = in_double, None if weights is None else weights(*tile)
        bright: Array | None = None
        level = 0.0
        if in_single is not None:
            allowed = tolerance / in_single.gain(local)
            if _single_precision_error(padded, grid) > allowed:
                # A high sky level would take up the digits that its noise needs.
                level = float(dtype.type(np.median(padded[::_LEVEL_STEP, ::_LEVEL_STEP])))
            faint, bright = _without_bright(padded, level, grid, allowed)
            if _single_precision_error(faint, grid) <= allowed:
                spectra, padded = in_single, faint
            else:
                padded, bright, level = padded.astype(np.float64), None, 0.0
        if bright is None and not level and not padded.any():
            result[tile] = 0
            return
        image_ft = scipy.fft.rfft2(padded, s=grid)
        total: Array | None = None
        for i, kernel_ft in enumerate(spectra.kernels_ft):
            product = np.multiply(image_ft, kernel_ft, out=image_ft if i == n - 1 else None)
            part = scipy.fft.irfft2(product, s=grid, overwrite_x=True)[inner]
            if level:
                # The level is large: in double precision, the sum is rounded only once, at the end.
                part = part.astype(np.float64)
            if bright is not None:
                part += _summed(bright, kernels[i], part.shape)
            if local is not None:
                part *= local[i].astype(part.dtype, copy=False)
            total = part if total is None else np.add(total, part, out=total)
        if level and total is not None:
            of_level = sums[0] if local is None else np.tensordot(sums, local, axes=1)
            total += level * of_level
        result[tile] = total

    tiles = [(rows, columns) for rows in axes[0].tiles for columns in axes[1].tiles]
    # The weights may be products of small matrices, which gain nothing from threads of their own.
    with single_threaded_algebra():
        in_threads(work, tiles)
    return result


@dataclasses.dataclass(frozen=True)
class _TiledAxis:
    """Overlap of the tiles along one axis.

    Attributes
    ----------
    length
        Length of the image.
    kernel
        Length of the kernel.  An even kernel has one more pixel before its origin than after; a
        kernel pixel takes its value from the opposite side of the image pixel.
    """

    length: int
    kernel: int

    @property
    def before(self) -> int:
        """Pixels that a tile needs before its first."""
        return self.kernel - 1 - self.kernel // 2

    @property
    def after(self) -> int:
        """Pixels that a tile needs after its last."""
        return self.kernel // 2

    @property
    def number(self) -> int:
        """Number of tiles."""
        largest = max(_TILE, 4 * self.kernel) - self.kernel + 1
        return math.ceil(self.length / largest)

    @property
    def step(self) -> int:
        """Length of all tiles but the last, which may be shorter."""
        return math.ceil(self.length / self.number)

    @property
    def grid(self) -> int:
        """Length of the transforms: for a tile and its surroundings."""
        return scipy.fft.next_fast_len(self.step + self.kernel - 1, real=True)

    @property
    def tiles(self) -> list[slice]:
        """Tiles of the image."""
        starts = range(0, self.length, self.step)
        return [slice(start, min(start + self.step, self.length)) for start in starts]

    def inside(self, tile: slice) -> slice:
        """Pixels of a tile within its convolved surroundings."""
        return slice(self.kernel - 1, self.kernel - 1 + tile.stop - tile.start)


@dataclasses.dataclass(frozen=True)
class _Spectra:
    """Spectra of kernels on a tile's grid, and the largest modulus of each."""

    kernels_ft: list[Array]
    largest: Array

    @classmethod
    def of(cls, kernels: Array, grid: tuple[int, int]) -> _Spectra:
        """Spectra in double precision; the kernels' first pixel is their origin."""
        kernels_ft = [scipy.fft.rfft2(kernel.astype(np.float64), s=grid) for kernel in kernels]
        return cls(kernels_ft, np.array([float(np.abs(ft).max()) for ft in kernels_ft]))

    def single(self) -> _Spectra:
        """The same in single precision."""
        return _Spectra([ft.astype(np.complex64) for ft in self.kernels_ft], self.largest)

    def gain(self, weights: Array | None) -> float:
        """Upper bound of the amplification by the weighted sum of the filters."""
        if weights is None:
            return float(self.largest.sum())
        flat = weights.reshape(len(weights), -1)
        return float(self.largest @ np.maximum(flat.max(axis=1), -flat.min(axis=1)))


def _without_bright(
    tile: Array, level: float, grid: tuple[int, int], allowed: float
) -> tuple[Array, Array | None]:
    """Tile minus a level, with pixels too bright for single precision set to 0, and these pixels.

    They come as ``(3, n)`` rows, columns and values; None if there are none or too many.
    """
    faint = tile - tile.dtype.type(level) if level else tile
    if _single_precision_error(faint, grid) <= allowed:
        return faint, None
    rows, columns = np.nonzero(np.abs(faint) > _SHARE_OF_PEAK * allowed)
    if not 0 < len(rows) <= _MOST_BRIGHT:
        return faint, None
    if faint is tile:
        faint = tile.copy()
    faint[rows, columns] = 0
    # From the tile itself: subtracting the level in single precision would round a bright pixel.
    values = tile[rows, columns].astype(np.float64) - level
    return faint, np.stack([rows, columns, values])


def _summed(bright: Array, kernel: Array, shape: tuple[int, ...]) -> Array:
    """Convolution of a few pixels of a tile's surroundings with a kernel, in double precision."""
    ky, kx = kernel.shape
    full = np.zeros((shape[0] + 2 * (ky - 1), shape[1] + 2 * (kx - 1)))
    for row, column, value in bright.T:
        y, x = int(row), int(column)
        full[y : y + ky, x : x + kx] += value * kernel
    return full[ky - 1 : ky - 1 + shape[0], kx - 1 : kx - 1 + shape[1]]


def _single_precision_error(tile: Array, grid: tuple[int, int]) -> float:
    """Largest error of a pixel after a transform in single precision and its inverse."""
    flat = tile.reshape(-1)
    with np.errstate(over="ignore"):
        root_mean_square = math.sqrt(float(np.dot(flat, flat)) / math.prod(grid))
    peak = max(float(flat.max()), -float(flat.min()))
    return (
        SINGLE_PRECISION_ERROR_FROM_RMS * root_mean_square + SINGLE_PRECISION_ERROR_FROM_PEAK * peak
    )


def _padded(
    image: Array,
    tile: tuple[slice, slice],
    axes: tuple[_TiledAxis, _TiledAxis],
    boundary: Boundary,
    dtype: npt.DTypeLike,
) -> Array:
    """Tile of an image with its surroundings, including pixels outside the frame."""
    start = [part.start - axis.before for part, axis in zip(tile, axes, strict=True)]
    stop = [part.stop + axis.after for part, axis in zip(tile, axes, strict=True)]
    inside = tuple(
        slice(max(0, a), min(n, b)) for a, b, n in zip(start, stop, image.shape, strict=True)
    )
    shape = tuple(b - a for a, b in zip(start, stop, strict=True))
    if image[inside].shape == shape:
        return image[inside].astype(dtype, order="C")
    if boundary == "reflect":
        # From the whole image: a tile may be thinner than what is mirrored into it.
        mirrored = [_mirrored(a, b, n) for a, b, n in zip(start, stop, image.shape, strict=True)]
        return image[np.ix_(*mirrored)].astype(dtype)
    padded = np.zeros(shape, dtype)
    place = tuple(
        slice(part.start - a, part.stop - a) for part, a in zip(inside, start, strict=True)
    )
    padded[place] = image[inside]
    return padded


def _mirrored(start: int, stop: int, length: int) -> Array:
    """Indices from start to stop, those beyond the axis's ends (by at most its length) mirrored."""
    index = np.arange(start, stop)
    index = np.where(index < 0, -1 - index, index)
    return np.where(index >= length, 2 * length - 1 - index, index)


def reflected(kernel: Array) -> Array:
    """Reflect a kernel about its centre ``[ny//2, nx//2]``.

    Parameters
    ----------
    kernel
        ``(ny, nx)``.

    Returns
    -------
    reflected
        ``(ny, nx)`` if the lengths are odd.  An even length has one more pixel before the
        centre than after it.  The reflection of that pixel makes the result one pixel longer.
    """
    grown = np.pad(kernel, [(0, 1 - n % 2) for n in kernel.shape])
    return grown[::-1, ::-1]
