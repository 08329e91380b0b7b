"""Convolution of an image with a kernel, the same everywhere or varying over the field.

The image is worked off in overlapping tiles (overlap-save): small transforms stay in the
processor's cache, need little memory, and come out the same whatever the number of
threads.  In double precision they cost less than one full-frame transform in single.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.fft
from threadpoolctl import threadpool_limits

from . import fourier
from .errors import ArgumentError

__all__ = ["Boundary", "available_threads", "convolve", "convolve_varying"]

type Array = npt.NDArray[Any]

type Boundary = Literal["zero", "reflect"]
"""What lies outside the frame: nothing, or its mirror image, the edge pixel first again."""

_TILE = 256
"""Side of a tile's grid: 256 to 384 measured fastest for kernels of 21 to 41 pixels."""


def convolve(image: Array, kernel: Array, *, boundary: Boundary = "zero") -> Array:
    """Convolve an image with a kernel.

    Parameters
    ----------
    image
        ``(ny, nx)``, finite.  Not modified.
    kernel
        ``(ky, kx)``, origin at ``[ky//2, kx//2]``.
    boundary
        Outside the frame is zero, or with "reflect" the frame's mirror image about the outer
        side of its edge pixels, as in `scipy.ndimage`.

    Returns
    -------
    convolved
        ``(ny, nx)``, ``Σ_a image(x − a) · kernel(a)``; the image's dtype, computed in
        double precision.

    Raises
    ------
    ArgumentError
        If either is not 2-D, the kernel is larger than the image, or the boundary unknown.
    """
    if kernel.ndim != 2:
        raise ArgumentError(f"A kernel must be 2-D; got the shape {kernel.shape}.")
    return convolve_varying(image, kernel[None], None, boundary=boundary)


def convolve_varying(
    image: Array,
    kernels: Array,
    weights: Callable[[slice, slice], Array] | None,
    *,
    boundary: Boundary = "zero",
) -> Array:
    """Convolve an image with a sum of kernels whose weights vary over the field.

    Parameters
    ----------
    image
        ``(ny, nx)``, finite.  Not modified.
    kernels
        ``(n, ky, kx)``, origin at ``[ky//2, kx//2]``.
    weights
        Function of a slice of rows and one of columns: the kernels' weights at those
        pixels of the result, ``(n, rows, columns)``.  None for a single kernel of weight 1.
    boundary
        As in `convolve`.

    Returns
    -------
    convolved
        ``(ny, nx)``, ``Σ_i weight_i(x) Σ_a image(x − a) · kernel_i(a)``.  The image's dtype,
        computed in double precision and rounded once.

    Raises
    ------
    ArgumentError
        If the image is not 2-D or the kernels not 3-D, these are larger than the image, or the
        boundary is unknown.
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
    grid = (
        scipy.fft.next_fast_len(max(_TILE, 4 * ky), real=True),
        scipy.fft.next_fast_len(max(_TILE, 4 * kx), real=True),
    )
    kernels_ft = [
        scipy.fft.rfft2(fourier.pad_center_origin(kernel.astype(np.float64), grid))
        for kernel in kernels
    ]
    result = np.empty_like(image)
    step_y, step_x = grid[0] - ky + 1, grid[1] - kx + 1
    ny, nx = image.shape
    # Of an even kernel, one pixel more lies before the origin than after it; a pixel's value
    # comes from the opposite side.
    before, after = (ky - 1 - ky // 2, kx - 1 - kx // 2), (ky // 2, kx // 2)

    def work(corner: tuple[int, int]) -> None:
        rows = slice(corner[0], min(corner[0] + step_y, ny))
        columns = slice(corner[1], min(corner[1] + step_x, nx))
        padded = _padded(image, rows, columns, before, after, boundary)
        if not padded.any():
            result[rows, columns] = 0
            return
        spectrum = scipy.fft.rfft2(padded, s=grid)
        inner = (
            slice(before[0], before[0] + rows.stop - rows.start),
            slice(before[1], before[1] + columns.stop - columns.start),
        )
        local = None if weights is None else weights(rows, columns)
        total: Array | None = None
        for i, kernel_ft in enumerate(kernels_ft):
            part = scipy.fft.irfft2(spectrum * kernel_ft, s=grid, overwrite_x=True)[inner]
            if local is not None:
                part = part * local[i]
            total = part if total is None else total + part
        result[rows, columns] = total

    corners = [(y, x) for y in range(0, ny, step_y) for x in range(0, nx, step_x)]
    # The weights may be products of small matrices, for which BLAS must not start threads.
    with threadpool_limits(1), ThreadPoolExecutor(available_threads()) as pool:
        list(pool.map(work, corners))
    return result


def _padded(
    image: Array,
    rows: slice,
    columns: slice,
    before: tuple[int, int],
    after: tuple[int, int],
    boundary: Boundary,
) -> Array:
    """Part of an image with its surroundings, also outside the frame, in double precision."""
    top, left = rows.start - before[0], columns.start - before[1]
    bottom, right = rows.stop + after[0], columns.stop + after[1]
    inside = (
        slice(max(0, top), min(image.shape[0], bottom)),
        slice(max(0, left), min(image.shape[1], right)),
    )
    padded = np.zeros((bottom - top, right - left))
    if boundary == "reflect" and image[inside].shape != padded.shape:
        # From the whole image: a tile may be thinner than what is mirrored into it.
        mirrored = np.ix_(
            _mirrored(top, bottom, image.shape[0]), _mirrored(left, right, image.shape[1])
        )
        padded[...] = image[mirrored]
        return padded
    padded[
        inside[0].start - top : inside[0].stop - top,
        inside[1].start - left : inside[1].stop - left,
    ] = image[inside]
    return padded


def _mirrored(start: int, stop: int, length: int) -> Array:
    """Indices in an axis of those beyond its ends, by no more than its length."""
    index = np.arange(start, stop)
    index = np.where(index < 0, -1 - index, index)
    return np.where(index >= length, 2 * length - 1 - index, index)


def available_threads() -> int:
    """Number of threads that work side by side: as many as this process has cores.

    Returns
    -------
    threads
        At least 1.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
