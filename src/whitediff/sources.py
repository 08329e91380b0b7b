"""Which pixels hold sources, and how noisy the others are.

Source-free pixels are found on the science and template images, never on their
difference: leaving out its high pixels would lower the variance that is to be judged.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from .errors import ArgumentError, DataError
from .stats import robust_sigma

__all__ = [
    "NoiseModel",
    "detect_sources",
    "noise_variance",
    "smooth_background",
    "sources_and_background",
]

type Array = npt.NDArray[Any]

_DETECTION_THRESHOLD = 4.0
_GROWTH_THRESHOLD = 2.0
_GROWTH_PIXELS = 4
_BACKGROUND_CELL = 64
_LEAST_USED = 0.3


def smooth_background(image: Array, use: Array, *, cell: int = _BACKGROUND_CELL) -> Array:
    """Slowly varying background from medians of cells.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    use
        ``(ny, nx)`` boolean: pixels that count.
    cell
        Size of a cell, in pixels.

    Returns
    -------
    background
        ``(ny, nx)`` float64: medians, interpolated linearly, and extrapolated over the
        outer half cells.  Cells of which less than 30 % counts take the median of their
        neighbours that are better off.
    """
    return _interpolated(_cell_medians(image, use, cell), image.shape)


def _cell_medians(image: Array, use: Array, cell: int) -> Array:
    """Medians of an image's cells, holes filled from their neighbours."""
    ny, nx = image.shape
    cells_y, cells_x = max(1, round(ny / cell)), max(1, round(nx / cell))
    rows, row_used = _cell_indices(ny, cells_y)
    columns, column_used = _cell_indices(nx, cells_x)
    medians = np.empty((cells_y, cells_x))
    for j in range(cells_y):
        # All cells of a row at a time: their pixels sorted, those not to use at the end.
        part = slice(rows[j, 0], rows[j, -1] + 1)
        good = use[part].take(columns.ravel(), axis=1)
        good &= row_used[j, : len(good), None] & column_used.ravel()
        values = np.where(good, image[part].take(columns.ravel(), axis=1), np.inf)
        values = values.reshape(len(good), cells_x, -1).transpose(1, 0, 2).reshape(cells_x, -1)
        values.sort(axis=1)
        count = np.count_nonzero(np.isfinite(values), axis=1)
        size = int(row_used[j].sum()) * column_used.sum(axis=1)
        index = np.arange(cells_x), np.maximum(count - 1, 0)
        middle = (values[index[0], index[1] // 2] + values[index[0], count // 2]) / 2
        medians[j] = np.where(count > _LEAST_USED * size, middle, np.nan)
    if np.isnan(medians).all():
        return np.full(medians.shape, np.median(image[use]) if use.any() else 0.0)
    # From the outside of every hole inwards.
    while (missing := np.argwhere(np.isnan(medians))).size:
        filled = medians.copy()
        for j, i in missing:
            near = medians[max(0, j - 1) : j + 2, max(0, i - 1) : i + 2]
            if not np.isnan(near).all():
                filled[j, i] = np.nanmedian(near)
        medians = filled
    return medians


def _interpolated(medians: Array, shape: tuple[int, ...]) -> Array:
    """Image of a shape from the medians of its cells."""
    (ny, nx), (cells_y, cells_x) = shape, medians.shape
    y = (np.arange(ny) + 0.5) / ny * cells_y - 0.5
    x = (np.arange(nx) + 0.5) / nx * cells_x - 0.5
    # Along the rows by a small product of matrices; between them, a line for every column.
    rows = medians @ _linear_matrix(x, cells_x).T.astype(medians.dtype)
    result = np.empty((ny, nx), medians.dtype)
    if cells_y == 1:
        result[:] = rows
        return result
    above = np.clip(np.floor(y).astype(int), 0, cells_y - 2)
    starts = np.flatnonzero(np.diff(above, prepend=-1))
    for start, stop in zip(starts, np.append(starts[1:], ny), strict=True):
        cell = above[start]
        fraction = (y[start:stop] - cell).astype(medians.dtype)
        np.multiply(fraction[:, None], rows[cell + 1] - rows[cell], out=result[start:stop])
        result[start:stop] += rows[cell]
    return result


def _cell_indices(size: int, cells: int) -> tuple[Array, Array]:
    """Indices of each cell's pixels, ``(cells, longest)``, and which of them count."""
    edges = np.linspace(0, size, cells + 1).astype(int)
    indices = edges[:-1, None] + np.arange(int(np.diff(edges).max()))
    return np.minimum(indices, size - 1), indices < edges[1:, None]


def _linear_matrix(position: Array, size: int) -> Array:
    """Matrix that interpolates linearly at positions, and extrapolates beyond the ends."""
    if size == 1:
        return np.ones((len(position), 1))
    left = np.clip(np.floor(position).astype(int), 0, size - 2)
    fraction = position - left
    matrix = np.zeros((len(position), size))
    rows = np.arange(len(position))
    matrix[rows, left] = 1 - fraction
    matrix[rows, left + 1] = fraction
    return matrix


def detect_sources(image: Array, unusable: Array | None = None) -> Array:
    """Pixels that belong to sources, their faint outskirts included.

    Parameters
    ----------
    image
        ``(ny, nx)``; pixels that are not finite are unusable.
    unusable
        ``(ny, nx)`` boolean: pixels to leave out, such as bad columns.

    Returns
    -------
    sources
        ``(ny, nx)`` boolean: smoothed to about a Gaussian of 1.5 pixels, more than 4 times
        the scatter above the background, with the connected pixels above twice the scatter,
        grown by 4 pixels in x and y.  Unusable pixels are not sources.

    Raises
    ------
    DataError
        If no pixel is usable.

    Notes
    -----
    Works on means of 2 × 2 pixels: what is smoothed and grown by more than that loses
    nothing, and it takes a quarter of the time.
    """
    sources, _ = _detected(image, unusable)
    return sources


def sources_and_background(image: Array, unusable: Array | None = None) -> tuple[Array, Array]:
    """Pixels that belong to sources, and the background that they stand on.

    Parameters
    ----------
    image, unusable
        As for `detect_sources`.

    Returns
    -------
    sources
        As of `detect_sources`.
    background
        ``(ny, nx)`` float32: medians of cells of 64 pixels as in `smooth_background`,
        without the sources.

    Raises
    ------
    DataError
        If no pixel is usable.
    """
    sources, medians = _detected(image, unusable)
    return sources, _interpolated(medians, image.shape)


def _detected(image: Array, unusable: Array | None) -> tuple[Array, Array]:
    """Source pixels, and medians of cells of the background."""
    usable = np.isfinite(image)
    if unusable is not None:
        usable &= ~unusable
    if not usable.any():
        raise DataError("No pixel is usable, so sources cannot be told from background.")
    mean, measured, weight = _means_of_pairs(image, usable)
    covered = None if weight is None else np.maximum(_smoothed(weight), np.float32(1e-3))
    sources = np.zeros(mean.shape, dtype=bool)
    background = np.zeros((1, 1), np.float32)
    # Twice: the first background and scatter still contain the sources.
    for _ in range(2):
        free = measured & ~sources
        if not free.any():
            break
        # What is left of a slope under the first medians, the second find.
        medians = _cell_medians(mean, free, _BACKGROUND_CELL // 2).astype(np.float32)
        background = background + medians
        mean -= _interpolated(medians, mean.shape)
        smoothed = _smoothed(mean if weight is None else mean * weight)
        if covered is not None:
            smoothed /= covered
        scatter = robust_sigma(_sample(smoothed[free]))
        if not scatter > 0:
            break
        labels, number = scipy.ndimage.label(smoothed > np.float32(_GROWTH_THRESHOLD * scatter))
        detected = np.zeros(number + 1, dtype=bool)
        detected[labels[smoothed > np.float32(_DETECTION_THRESHOLD * scatter)]] = True
        sources = _grown(detected[labels], _GROWTH_PIXELS // 2)
    ny, nx = image.shape
    sources = np.repeat(np.repeat(sources, 2, axis=0), 2, axis=1)[:ny, :nx]
    sources &= usable
    return sources, background


def _means_of_pairs(image: Array, usable: Array) -> tuple[Array, Array, Array | None]:
    """Means of 2 × 2 pixels, which of them are known, and the share of usable pixels in them.

    The last is None where all are.
    """
    if usable.all() and not any(n % 2 for n in image.shape):
        mean = _summed_pairs(image.astype(np.float32, copy=False))
        mean *= np.float32(0.25)
        return mean, np.ones(mean.shape, dtype=bool), None
    count = _summed_pairs(usable.view(np.uint8))
    filled = image.astype(np.float32)
    filled[~usable] = 0
    mean = _summed_pairs(filled)
    mean /= np.maximum(count, 1)
    return mean, count > 0, count * np.float32(0.25)


def _smoothed(image: Array) -> Array:
    """Image convolved with (1, 2, 1)/4 along both axes, a Gaussian of 0.71 pixels."""
    rows = 2 * image
    rows[1:] += image[:-1]
    rows[:-1] += image[1:]
    rows[0] += image[0]
    rows[-1] += image[-1]
    result = 2 * rows
    result[:, 1:] += rows[:, :-1]
    result[:, :-1] += rows[:, 1:]
    result[:, 0] += rows[:, 0]
    result[:, -1] += rows[:, -1]
    result /= 16
    return result


def _grown(plane: Array, pixels: int) -> Array:
    """Plane with all pixels that have one of it within so many pixels in x and y."""
    for _ in range(pixels):
        rows = plane.copy()
        rows[1:] |= plane[:-1]
        rows[:-1] |= plane[1:]
        plane = rows.copy()
        plane[:, 1:] |= rows[:, :-1]
        plane[:, :-1] |= rows[:, 1:]
    return plane


def _summed_pairs(image: Array) -> Array:
    """Sums of 2 × 2 pixels; an odd length is filled up with zeros."""
    ny, nx = image.shape
    if ny % 2 or nx % 2:
        image = np.pad(image, [(0, ny % 2), (0, nx % 2)])
    rows = image[::2] + image[1::2]
    return rows[:, ::2] + rows[:, 1::2]


def _sample(values: Array, most: int = 250_000) -> Array:
    """Every n-th value, so that there are enough for a quantile and not many more."""
    return values[:: max(1, values.size // most)]


@dataclasses.dataclass(frozen=True)
class NoiseModel:
    """A variance plane, and where it came from.

    Attributes
    ----------
    variance
        ``(ny, nx)`` image_unit².
    background_variance
        Variance of source-free pixels, image_unit².
    description
        How it was found, in words, with the numbers.
    """

    variance: Array
    background_variance: float
    description: str


def noise_variance(
    image: Array,
    unusable: Array | None = None,
    *,
    gain: float | None = None,
    read_noise: float | None = None,
    trust_model: bool = False,
) -> NoiseModel:
    """Variance plane of an image that came without one.

    Parameters
    ----------
    image
        ``(ny, nx)``, in counts.
    unusable
        ``(ny, nx)`` boolean: pixels to leave out of the measurement.
    gain
        Electrons per count.
    read_noise
        Electrons per pixel; 0 if only the gain is known.
    trust_model
        Use gain and read noise even where the scatter contradicts them.

    Returns
    -------
    model
        With a gain: ``level/gain + (read_noise/gain)²``, where the level is the smooth
        background plus the sources, provided that this agrees within a quarter with the
        scatter of source-free pixels.  Where it does not, the sky was subtracted or the
        image scaled; then the measured scatter, plus the sources' own photons.  Without a
        gain: the measured scatter.

    Raises
    ------
    ArgumentError
        If the gain is not positive or the read noise negative.
    DataError
        If no usable pixel is left, or the scatter is zero.
    """
    if gain is not None and not (math.isfinite(gain) and gain > 0):
        raise ArgumentError(f"The gain must be positive; got {gain:g}.")
    if read_noise is not None and not (math.isfinite(read_noise) and read_noise >= 0):
        raise ArgumentError(f"The read noise must not be negative; got {read_noise:g}.")
    usable = np.isfinite(image)
    if unusable is not None:
        usable &= ~unusable
    sources = detect_sources(image, unusable)
    free = usable & ~sources
    if not free.any():
        raise DataError("No source-free pixel is left to measure the noise on.")
    background = smooth_background(image, free)
    measured = robust_sigma((image - background)[free]) ** 2
    if not measured > 0:
        raise DataError(
            f"The scatter of the source-free pixels is {measured:g}; an image without noise"
            " needs its variance given."
        )
    if gain is None:
        return NoiseModel(
            np.full(image.shape, measured),
            measured,
            f"measured on {int(free.sum())} source-free pixels: {measured:.4g} everywhere",
        )
    read_variance = ((read_noise or 0.0) / gain) ** 2
    level = float(np.median(background))
    predicted = level / gain + read_variance
    # Of sources only: a pixel's own noise must not set its variance.
    photons = np.where(sources, np.maximum(image - background, 0), 0) / gain
    if trust_model or 0.8 < predicted / measured < 1.25:
        return NoiseModel(
            np.maximum(background, 0) / gain + read_variance + photons,
            predicted,
            f"from gain {gain:g} and read noise {read_noise or 0:g}: {predicted:.4g} at the"
            f" background level {level:.4g} (measured: {measured:.4g})",
        )
    return NoiseModel(
        measured + photons,
        measured,
        f"measured on {int(free.sum())} source-free pixels: {measured:.4g}, plus the sources'"
        f" photons at gain {gain:g}; gain and read noise alone would give {predicted:.4g} at the"
        f" background level {level:.4g}, so the sky was subtracted or the image scaled",
    )
