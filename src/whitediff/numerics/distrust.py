"""Pixels of a filtered image that depend too much on missing pixels.

Missing pixels are interpolated before a filter (`interpolation`).  On empty sky an interpolated
pixel is as good as its neighbours.  On the flank of a star, or deep inside a hole, it is a guess.
So a filter's result is distrusted by the possible error of the guess, not by the number of missing
pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from . import fourier, planes
from .convolution import convolve_sparse

__all__ = [
    "CONTAMINATION_THRESHOLD",
    "absolute_weight",
    "distrusted_by_value",
    "distrusted_pixels",
    "holes",
    "is_compact",
    "unsupported_pixels",
]

type Array = npt.NDArray[Any]

CONTAMINATION_THRESHOLD = 0.01
"""Fraction of the filter's absolute weight above which a pixel is contaminated."""

_MOST_INTERPOLATED = 0.25
"""Fraction of the filter's absolute weight that may lie on isolated missing pixels."""

_RELATIVE_ERROR = 0.1
"""Error of an interpolated pixel over the range of its good neighbours: on stars of 2 to 6 pixels
FWHM it is 0.03 to 0.15."""

_NOISE_RANGE = 6.0
"""Range of 24 neighbours from noise alone, standard deviations: it is nearly always smaller."""

_LARGEST_ERROR = 0.5
"""Error of a filtered pixel that is accepted, in its standard deviations."""

_REACH = 2
"""Distance of the farthest of those neighbours in x and y, pixels."""

_EDGE_CELL = 64
"""Pixels along an edge over which the background hardly varies."""

_EDGE_SOURCE = 1.5
"""Mean of 3 × 3 pixels, in standard deviations of one pixel, from which there is a source."""

_WEIGHT_PRECISION = 1e-5
"""Relative precision of a filter's absolute weight, which is compared with a hundredth of it."""


def absolute_weight(kernel: Array, pixels: Array) -> Array:
    """Absolute weight of a filter on some pixels of an image, for every filtered pixel.

    Parameters
    ----------
    kernel
        Filter: on a periodic grid at least as large as the image, origin in the first pixel
        (`whitediff.decorrelation.pixel_kernel`); or smaller (`is_compact`), origin at
        ``[ky//2, kx//2]``.
    pixels
        ``(ny, nx)`` boolean.

    Returns
    -------
    weight
        ``(ny, nx)`` float32: ``Σ_a |kernel(a)| pixels(x − a)``, zero outside the frame.
    """
    if is_compact(kernel, pixels.shape):
        weights = np.abs(kernel)
        tolerance = _WEIGHT_PRECISION * float(weights.sum())
        return convolve_sparse(pixels, weights, tolerance=tolerance)
    shape = (kernel.shape[0], kernel.shape[1])
    spectrum = fourier.forward(pixels.astype(np.float32), shape)
    spectrum *= fourier.forward(np.abs(kernel).astype(np.float32), shape)
    return fourier.inverse(spectrum, shape, (pixels.shape[0], pixels.shape[1]))


def is_compact(kernel: Array, shape: tuple[int, ...]) -> bool:
    """Whether a kernel is smaller than an image on both axes, not on a grid of the image's size.

    Parameters
    ----------
    kernel
        Kernel.
    shape
        ``(ny, nx)`` of the image.

    Returns
    -------
    compact
        True or False.
    """
    return kernel.shape[0] < shape[0] and kernel.shape[1] < shape[1]


def holes(missing: Array) -> Array:
    """Missing pixels that belong to a hole more than two pixels wide.

    Parameters
    ----------
    missing
        ``(ny, nx)`` boolean.

    Returns
    -------
    holes
        ``(ny, nx)`` boolean: missing pixels with missing ones on all four sides, and their
        missing neighbours.  Single pixels, columns and most cosmic rays are no holes: good
        neighbours on both sides determine them.
    """
    ny = len(missing)

    def work(rows: slice) -> Array:
        if not missing[rows].any():
            return np.zeros(missing[rows].shape, bool)
        # Pixels beyond the frame are unknown, so they count as missing.
        first, last = max(0, rows.start - 2), min(ny, rows.stop + 2)
        above, below = first - rows.start + 2, rows.stop + 2 - last
        part = np.pad(missing[first:last], ((above, below), (1, 1)), constant_values=True)
        deep = part[1:-1, 1:-1] & part[:-2, 1:-1] & part[2:, 1:-1]
        deep &= part[1:-1, :-2] & part[1:-1, 2:]
        # But a pixel beyond the frame makes none of its neighbours a hole.
        deep[: max(0, above - 1)] = False
        deep[len(deep) - max(0, below - 1) :] = False
        beside = deep[1:-1] | deep[:-2] | deep[2:]
        beside[:, 1:] |= deep[1:-1, :-1]
        beside[:, :-1] |= deep[1:-1, 1:]
        beside &= missing[rows]
        return beside

    return planes.filled(missing.shape, bool, work)


def distrusted_pixels(
    kernel: Array,
    image: Array,
    missing: Array,
    *,
    noise: float,
    sigma: float,
    lost: Array | None = None,
) -> Array:
    """Pixels of a filtered image that depend too much on missing ones.

    Parameters
    ----------
    kernel
        ``(ky, kx)`` filter, origin at ``[ky//2, kx//2]``.
    image
        ``(ny, nx)`` before the filter; missing pixels may have any value.
    missing
        ``(ny, nx)`` boolean: pixels that were interpolated.
    noise, sigma
        Standard deviations of a pixel before and after the filter.
    lost
        ``(ny, nx)`` boolean: further pixels that hold no measurement and were not interpolated,
        such as saturated ones.

    Returns
    -------
    distrusted
        ``(ny, nx)`` boolean, true in three cases: more than 1 % of the filter's absolute weight
        lies on holes or lost pixels; more than a quarter lies on missing pixels; or interpolation
        errors of a tenth of the range of their neighbours, beyond the noise, change the pixel by
        more than half its standard deviation.
    """
    total = float(np.abs(kernel).sum())
    hole = holes(missing)
    if lost is not None:
        hole = hole | lost
    result = absolute_weight(kernel, hole) > CONTAMINATION_THRESHOLD * total
    if not missing.any():
        return result
    result |= absolute_weight(kernel, missing) > _MOST_INTERPOLATED * total
    error = _interpolation_error(image, missing, noise)
    if error.any():
        result |= convolve_sparse(error, np.abs(kernel)) > _LARGEST_ERROR * sigma
    return result


def distrusted_by_value(
    kernel: Array, image: Array, lost: Array, *, sigma: float, spread: Array | None = None
) -> Array:
    """Pixels of a filtered difference that depend too much on values without measurement.

    Parameters
    ----------
    kernel
        ``(ky, kx)`` filter, origin at ``[ky//2, kx//2]``.
    image
        ``(ny, nx)`` difference before the filter: about zero where both images are right.
    lost
        ``(ny, nx)`` boolean: pixels that hold no measurement and went into the filter as they
        are, such as saturated ones.
    sigma
        Standard deviation of a pixel after the filter.
    spread
        ``(py, px)`` PSF that has spread their light beyond those pixels already: the one that a
        score's science image was correlated with.

    Returns
    -------
    distrusted
        ``(ny, nx)`` boolean: the values on lost pixels change the pixel by more than half its
        standard deviation.

    Notes
    -----
    A saturated star lacks an unknown amount of light; the difference shows there how much it
    lacks.  The wings of a PSF carry this error farther than a hundredth of their weight reaches.
    """
    index = np.flatnonzero(lost)
    values = np.abs(image.reshape(-1)[index])
    with np.errstate(invalid="ignore"):
        significant = (values > _NOISE_RANGE / 2 * sigma) & np.isfinite(values)
    if not significant.any():
        return planes.zeros(image.shape, bool)
    wrong = planes.zeros(image.shape, np.float32)
    wrong.reshape(-1)[index[significant]] = values[significant]
    weights = np.abs(kernel)
    if spread is not None:
        weights = np.maximum(fourier.convolution(weights, np.abs(spread[::-1, ::-1])), 0)
    return convolve_sparse(wrong, _middle(weights, image.shape)) > _LARGEST_ERROR * sigma


def _middle(kernel: Array, shape: tuple[int, ...]) -> Array:
    """Middle of a kernel, around its origin, cut to be no larger than an image."""
    halves = [min(n, m - 1) // 2 for n, m in zip(kernel.shape, shape, strict=True)]
    cut = [slice(n // 2 - h, n // 2 + h + 1) for n, h in zip(kernel.shape, halves, strict=True)]
    return kernel[cut[0], cut[1]]


def unsupported_pixels(kernel: Array, image: Array, *, noise: float, sigma: float) -> Array:
    """Pixels near a frame's edges that depend too much on light from beyond the edges.

    Parameters
    ----------
    kernel
        ``(ky, kx)`` filter, smaller than the image, origin at ``[ky//2, kx//2]``.
    image
        ``(ny, nx)`` image before the filter, which continues it by its mirror image; finite.
    noise, sigma
        Standard deviations of a pixel before and after the filter.

    Returns
    -------
    unsupported
        ``(ny, nx)`` boolean: the light of sources in the mirror image changes the pixel by more
        than half its standard deviation.  True light there may as well be absent or twice as
        bright.
    """
    result = planes.zeros(image.shape, bool)
    absolute = np.abs(kernel)
    for axis, reach in enumerate(n // 2 for n in kernel.shape):
        for backwards in (False, True):
            # Views turn each edge into the first row, so that one computation serves all four.
            frame, weights, found = (
                plane if axis == 0 else plane.T for plane in (image, absolute, result)
            )
            if backwards:
                frame, weights, found = frame[::-1], weights[::-1], found[::-1]
            light = _light(frame[: min(2 * reach, len(frame))], noise)
            if not light.any():
                continue
            beyond = np.zeros((3 * reach, light.shape[1]))
            near = light[:reach][::-1]
            beyond[reach - len(near) : reach] = near
            error = fourier.convolution(beyond, weights, same=True)[reach : 2 * reach]
            found[:reach] |= (error > _LARGEST_ERROR * sigma)[: len(found)]
    return result


def _light(strip: Array, noise: float) -> Array:
    """Light of sources in some rows along an edge; zero between them."""
    cells = max(1, strip.shape[1] // _EDGE_CELL)
    parts = np.array_split(np.arange(strip.shape[1]), cells)
    level = np.concatenate([np.full(len(part), np.median(strip[:, part])) for part in parts])
    excess = strip.astype(np.float64) - level
    smooth = scipy.ndimage.uniform_filter(excess, 3, mode="nearest")
    source = np.abs(smooth) > _EDGE_SOURCE * noise
    return np.where(scipy.ndimage.binary_dilation(source), np.abs(excess), 0.0)


def _interpolation_error(image: Array, missing: Array, noise: float) -> Array:
    """Possible errors of interpolated pixels beyond the noise: ``(ny, nx)``, zero elsewhere."""
    rows, columns = np.nonzero(missing)
    ny, nx = image.shape
    largest, smallest = np.full(len(rows), -np.inf), np.full(len(rows), np.inf)
    for dy in range(-_REACH, _REACH + 1):
        for dx in range(-_REACH, _REACH + 1):
            place = np.clip(rows + dy, 0, ny - 1), np.clip(columns + dx, 0, nx - 1)
            values = np.where(missing[place], np.nan, image[place])
            np.fmax(largest, values, out=largest)
            np.fmin(smallest, values, out=smallest)
    result = planes.zeros(image.shape, np.float32)
    error = _RELATIVE_ERROR * np.maximum(largest - smallest - _NOISE_RANGE * noise, 0)
    result[rows, columns] = np.where(np.isfinite(error), error, 0)
    return result
