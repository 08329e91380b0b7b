"""Pixels that hold sources, and the background beneath them.

Source-free pixels are found on the science and template images, never on their
difference: leaving out its high pixels would lower the variance that is to be judged.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import DataError
from ..numerics import planes
from ..numerics.stats import ENOUGH_PIXELS, high_level, robust_sigma, rounding_step

__all__ = [
    "RESIDUAL",
    "SourceLevel",
    "bright_pixel_counts",
    "broad_parts",
    "detect_sources",
    "levels_and_background",
    "significance_of_counts",
    "smooth_background",
    "source_levels",
    "unstepped",
]

type Array = npt.NDArray[Any]

RESIDUAL = 0.1
"""Largest share of a source that errors of the matching leave in a difference."""

_PASSES = 2
_SLOPE_PASSES = 10
_DETECTION_THRESHOLD = 4.0
_GROWTH_THRESHOLD = 2.0
_BRIGHT_THRESHOLD = 5 / RESIDUAL
"""Significance from which the residual of a source may be a 5 sigma detection."""
_GROWTH_PIXELS = 4
_BACKGROUND_CELL = 64
_LEAST_USED = 0.3
_BLOCK, _MOSTLY = 8, 0.9
_SMOOTHING = np.array([1, 1, 2, 2, 1, 1]) / 8
"""Smoothing along either axis before detection: means of 2 pixels, convolved with (1, 2, 1)/4."""


class SourceLevel(enum.IntEnum):
    """How much of a source a pixel holds.

    Levels of several images combine by their minimum, which all images reach, or their maximum.
    """

    NONE = 0
    SOURCE = 1
    NEAR_BRIGHT = 2
    BRIGHT = 3


def smooth_background(
    image: Array, use: Array, *, cell: int = _BACKGROUND_CELL, has_sources: bool = False
) -> Array:
    """Slowly varying background from medians of cells.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    use
        ``(ny, nx)`` boolean: pixels that count.
    cell
        Size of a cell, in pixels.
    has_sources
        Pixels of sources count, too: a background that follows the sky closely would follow their
        light.

    Returns
    -------
    background
        ``(ny, nx)`` float64: medians of the means of 2 × 2 pixels, interpolated by cubic
        convolution, and extrapolated over the outer half cells as parabolas.  This is repeated on
        the residual as long as that halves: medians of a slope are off where pixels do not count.
        With sources: interpolated linearly, once.  Cells of which less than 30 % counts take the
        median of their neighbours that have one.
    """
    if cell % 2 or min(image.shape) < cell:
        step, mean, measured = 1, np.where(use, image, 0), use
    else:
        # Medians of the means of 2 × 2 pixels are as good, and a quarter of the numbers to sort.
        step, (mean, measured, _) = 2, _means_of_pairs(image, use)
    medians: Array = np.zeros((1, 1))
    largest = np.inf
    weights = _linear_weights if has_sources else _cubic_weights
    for _ in range(1 if has_sources else _SLOPE_PASSES):
        left = _cell_medians(mean, measured, cell // step).astype(np.float64)
        medians = medians + left
        before, largest = largest, float(np.abs(left).max())
        if largest > before / 2:
            break
        mean = mean - _interpolated(left, mean.shape, weights=weights)
    return _interpolated(medians, image.shape, step=step, weights=weights)


def _cell_medians(image: Array, use: Array, cell: int) -> Array:
    """Medians of an image's cells, holes filled from their neighbours."""
    ny, nx = image.shape
    cells_y, cells_x = max(1, round(ny / cell)), max(1, round(nx / cell))
    rows, row_used = _cell_indices(ny, cells_y)
    columns, column_used = _cell_indices(nx, cells_x)
    medians = np.empty((cells_y, cells_x))
    for j in range(cells_y):
        # All cells of a row are sorted at once; infinities put unused pixels at the end.
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
    # Every hole is filled from its outside inwards.
    while (missing := np.argwhere(np.isnan(medians))).size:
        filled = medians.copy()
        for j, i in missing:
            near = medians[max(0, j - 1) : j + 2, max(0, i - 1) : i + 2]
            if not np.isnan(near).all():
                filled[j, i] = np.nanmedian(near)
        medians = filled
    return medians


def _interpolated(
    medians: Array,
    shape: tuple[int, ...],
    *,
    step: int = 1,
    weights: Callable[[Array, int], tuple[Array, Array]] | None = None,
) -> Array:
    """Image of a shape from the medians of its cells, by cubic convolution unless told otherwise.

    ``step`` is the size, in pixels of the result, of a pixel that the medians were taken of.
    """
    (ny, nx), (cells_y, cells_x) = shape, medians.shape
    of_four = _cubic_weights if weights is None else weights
    below, taken = of_four(_positions(nx, cells_x, step), cells_x)
    matrix = np.zeros((nx, cells_x + 4), medians.dtype)
    np.put_along_axis(matrix, below[:, None] + np.arange(4), taken.astype(medians.dtype), axis=1)
    padded = _extrapolated(_extrapolated(medians).T).T
    # Along the rows, a small product of matrices; across them, four rows make every row.
    rows = padded @ matrix.T
    result = planes.empty((ny, nx), medians.dtype)
    below, taken = of_four(_positions(ny, cells_y, step), cells_y)
    taken = taken.astype(medians.dtype)
    starts = np.flatnonzero(np.diff(below, prepend=-1))
    for start, stop in zip(starts, np.append(starts[1:], ny), strict=True):
        np.matmul(taken[start:stop], rows[below[start] : below[start] + 4], out=result[start:stop])
    return result


def _extrapolated(values: Array) -> Array:
    """Two more rows on either side, on the parabola through the outer three."""
    if len(values) < 3:
        slope = values[-1:] - values[:1]
        steps = np.array([[2], [1]], values.dtype)
        return np.concatenate(
            [values[:1] - steps * slope, values, values[-1:] + steps[::-1] * slope]
        )

    def outside(a: Array, b: Array, c: Array) -> list[Array]:
        return [6 * a - 8 * b + 3 * c, 3 * a - 3 * b + c]

    before = outside(values[0], values[1], values[2])
    after = outside(values[-1], values[-2], values[-3])[::-1]
    return np.concatenate([before, values, after])


def _positions(size: int, cells: int, step: int) -> Array:
    """Positions of pixels in units of cells, whose middles are whole numbers."""
    side = step * -(-size // step) / cells
    position: Array = (np.arange(size) + 0.5) / side - 0.5
    return position


def _linear_weights(position: Array, cells: int) -> tuple[Array, Array]:
    """Linear weights in the form of `_cubic_weights`: only the middle two are not zero."""
    left = np.clip(np.floor(position).astype(int), 0, max(cells - 2, 0))
    t = position - left
    nothing = np.zeros_like(t)
    return left + 1, np.stack([nothing, 1 - t, t, nothing], axis=1)


def _cubic_weights(position: Array, cells: int) -> tuple[Array, Array]:
    """First of the four cells around each position, and their weights; two cells pad either side.

    Cubic convolution (Keys 1981, IEEE Trans. ASSP 29, 1153): local, and exact for parabolas.
    """
    left = np.clip(np.floor(position).astype(int), -1, cells - 1)
    t = position - left
    weights = [
        ((2 - t) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((4 - 3 * t) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    ]
    return left + 1, np.stack(weights, axis=1)


def _cell_indices(size: int, cells: int) -> tuple[Array, Array]:
    """Indices of each cell's pixels, ``(cells, longest)``, and a mask of those that count."""
    edges = np.linspace(0, size, cells + 1).astype(int)
    indices = edges[:-1, None] + np.arange(int(np.diff(edges).max()))
    return np.minimum(indices, size - 1), indices < edges[1:, None]


def detect_sources(
    image: Array, unusable: Array | None = None, *, only_bright: bool = False
) -> Array:
    """Pixels that belong to sources, their faint outskirts included.

    Parameters
    ----------
    image
        ``(ny, nx)``; pixels that are not finite are unusable.
    unusable
        ``(ny, nx)`` boolean: pixels to leave out, such as bad columns.
    only_bright
        Detect once: the scatter then includes the sources, and faint ones are missed.  It takes
        half the time, and is enough where only the sources' photons matter.

    Returns
    -------
    sources
        ``(ny, nx)`` boolean: pixels more than 4 times the scatter above the background, after
        smoothing by about a Gaussian of 1.5 pixels, with the connected pixels above twice the
        scatter, grown by 4 pixels in x and y.  Unusable pixels are not sources.

    Raises
    ------
    DataError
        If no pixel is usable.

    Notes
    -----
    Works on means of 2 × 2 pixels, in a quarter of the time.  Nothing is lost, since smoothing
    and growing reach further.
    """
    levels, *_ = _detected(image, unusable, passes=1 if only_bright else _PASSES)
    sources: Array = levels > SourceLevel.NONE
    return sources


def source_levels(image: Array, unusable: Array | None = None) -> Array:
    """Pixels that belong to sources, with their brightness in levels.

    Parameters
    ----------
    image, unusable
        As for `detect_sources`.

    Returns
    -------
    levels
        ``(ny, nx)`` uint8, `SourceLevel`: SOURCE for the pixels of `detect_sources`, BRIGHT where
        the smoothed image is more than 50 times the scatter above the background, NEAR_BRIGHT
        within 4 pixels of that in x and y.

    Raises
    ------
    DataError
        If no pixel is usable.
    """
    levels, *_ = _detected(image, unusable)
    return levels


def bright_pixel_counts(psf: Array, significance: Array) -> Array:
    """Number of pixels of point sources that `source_levels` would find bright.

    Parameters
    ----------
    psf
        ``(py, px)``.
    significance
        ``(n,)`` fluxes of the sources over their errors, in white noise.

    Returns
    -------
    counts
        ``(n,)`` numbers of pixels.
    """
    heights = _smoothed_heights(psf)
    with np.errstate(divide="ignore"):
        least = _BRIGHT_THRESHOLD / np.abs(significance)
    counts: Array = heights.size - np.searchsorted(heights, least, side="right")
    return counts


def significance_of_counts(psf: Array, counts: Array) -> Array:
    """Significance of point sources with given numbers of bright pixels.

    The inverse of `bright_pixel_counts`.

    Parameters
    ----------
    psf
        ``(py, px)``.
    counts
        ``(n,)`` numbers of pixels, 1 or more; larger ones count as all pixels of the PSF.

    Returns
    -------
    significance
        ``(n,)`` least significance with so many bright pixels.
    """
    heights = _smoothed_heights(psf)
    heights = heights[heights > 0]
    least: Array = _BRIGHT_THRESHOLD / heights[np.maximum(len(heights) - counts, 0)]
    return least


def _smoothed_heights(psf: Array) -> Array:
    """Pixels of a source of significance 1, smoothed, over the noise's scatter: ascending."""
    smoothed = psf.astype(np.float64)
    for axis in range(2):
        smoothed = scipy.ndimage.convolve1d(smoothed, _SMOOTHING, axis=axis, mode="constant")
    # White noise is smoothed likewise.
    scatter = (_SMOOTHING**2).sum() * math.sqrt((psf**2).sum())
    heights: Array = np.sort(smoothed.ravel()) / scatter
    return heights


def broad_parts(plane: Array, width: float) -> Array:
    """Parts of a plane that are broad in both directions.

    Parameters
    ----------
    plane
        ``(ny, nx)`` boolean.
    width
        Least width, pixels, positive.

    Returns
    -------
    parts
        ``(ny, nx)`` boolean, in blocks of 8 pixels.  Squares of this width, or of three blocks if
        that is more, fit into blocks that are more than nine tenths set; the blocks beside such
        squares belong to the part.
    """
    ny, nx = (n // _BLOCK for n in plane.shape)
    result: Array = np.zeros(plane.shape, bool)
    if not min(ny, nx):
        return result
    blocks = plane[: ny * _BLOCK, : nx * _BLOCK].reshape(ny, _BLOCK, nx, _BLOCK)
    full = blocks.mean(axis=(1, 3), dtype=np.float32) > _MOSTLY
    size = max(3, math.ceil(width / _BLOCK))
    # A part at the frame's edge is taken to go on beyond it.
    full = np.pad(full, size, mode="edge")
    inner = scipy.ndimage.binary_opening(full, np.ones((size, size), bool))
    # The rim of a part lies in blocks that are not full.
    broad = scipy.ndimage.binary_dilation(inner, np.ones((3, 3), bool))
    broad = broad[size : size + ny, size : size + nx]
    result[: ny * _BLOCK, : nx * _BLOCK] = broad.repeat(_BLOCK, 0).repeat(_BLOCK, 1)
    return result


def levels_and_background(image: Array, unusable: Array | None = None) -> tuple[Array, Array]:
    """Pixels that belong to sources, and the background that they stand on.

    Parameters
    ----------
    image, unusable
        As for `detect_sources`.

    Returns
    -------
    levels
        As from `source_levels`.
    background
        ``(ny, nx)``: medians of cells of 64 pixels as in `smooth_background`, without the
        sources; float32, or float64 above a `whitediff.numerics.stats.high_level`.

    Raises
    ------
    DataError
        If no pixel is usable.
    """
    levels, medians, level = _detected(image, unusable)
    background = _interpolated(medians, image.shape, step=2)
    if level:
        background = background.astype(np.float64) + level
    return levels, background


def _detected(
    image: Array, unusable: Array | None, passes: int = _PASSES
) -> tuple[Array, Array, float]:
    """Levels of source pixels, medians of the background's cells less a level, and the level."""

    def is_usable(rows: slice) -> Array:
        finite = np.isfinite(image[rows])
        return finite if unusable is None else finite & ~unusable[rows]

    usable = planes.filled(image.shape, bool, is_usable)
    if not usable.any():
        raise DataError(
            "No pixel is usable, so sources cannot be told from background: all are masked,"
            " saturated or not finite; are the mask and its bits right?"
        )
    level = high_level(image, usable)
    mean, measured, weight = _means_of_pairs(image, usable, level)
    covered = None if weight is None else _smoothed(weight)
    sources = planes.zeros(mean.shape, bool)
    levels = planes.zeros(mean.shape, np.uint8)
    background = np.zeros((1, 1), np.float32)
    # Several passes, since the first background and scatter still contain the sources.
    for _ in range(passes):
        free = planes.filled(mean.shape, bool, functools.partial(_without, measured, sources))
        if not free.any():
            break
        # Later passes add the part of a slope that the first medians missed.
        medians = _cell_medians(mean, free, _BACKGROUND_CELL // 2).astype(np.float32)
        background = background + medians
        left = _interpolated(medians, mean.shape)
        np.subtract(mean, left, out=mean)
        smoothed = _smoothed(mean, weight, covered, out=left)
        step = max(1, smoothed.size // ENOUGH_PIXELS)
        scatter = robust_sigma(smoothed[::step][free[::step]])
        if not scatter > 0:
            break
        sources = _grown(_connected(smoothed, scatter), _GROWTH_PIXELS // 2)
        levels = _levels(smoothed, scatter, sources)
    nx = image.shape[1]

    def spread(rows: slice) -> Array:
        pairs = levels[np.arange(rows.start, rows.stop) // 2]
        return np.repeat(pairs, 2, axis=1)[:, :nx] * usable[rows]

    return planes.filled(image.shape, np.uint8, spread), background, level


def _levels(smoothed: Array, scatter: float, sources: Array) -> Array:
    """Levels of pixels; a pixel of one level has the lower levels, too, so their sum is it."""
    bright = planes.filled(
        smoothed.shape, bool, lambda rows: smoothed[rows] > np.float32(_BRIGHT_THRESHOLD * scatter)
    )
    near = _grown(bright, _GROWTH_PIXELS // 2)

    def added(rows: slice) -> Array:
        levels: Array = sources[rows].astype(np.uint8)
        levels += near[rows]
        levels += bright[rows]
        return levels

    return planes.filled(smoothed.shape, np.uint8, added)


def _without(plane: Array, other: Array, rows: slice) -> Array:
    """Some rows of a plane, without the pixels of another one."""
    left: Array = plane[rows] & ~other[rows]
    return left


def unstepped(image: Array, usable: Array | None = None) -> Array:
    """Image with its rounding steps spread out, so that medians follow its level.

    Parameters
    ----------
    image
        ``(ny, nx)``; not modified.
    usable
        ``(ny, nx)`` boolean: pixels on which the rounding step is found; None for all.

    Returns
    -------
    spread
        ``(ny, nx)``: image plus uniform random numbers of up to half a step either way, the same on
        each call; the image itself where it was not rounded (`stats.rounding_step`).
    """
    step = rounding_step(image.reshape(-1) if usable is None else image[usable])
    if step is None:
        return image
    spread = np.random.default_rng(0).random(image.shape, dtype=np.float32)
    result: Array = image + np.float32(step) * (spread - np.float32(0.5))
    return result


def _connected(smoothed: Array, scatter: float) -> Array:
    """Pixels above the lower threshold that are connected with one above the higher one."""
    faint = planes.filled(
        smoothed.shape, bool, lambda rows: smoothed[rows] > np.float32(_GROWTH_THRESHOLD * scatter)
    )
    labels = planes.empty(smoothed.shape, np.int32)
    detected = np.zeros(int(scipy.ndimage.label(faint, output=labels)) + 1, dtype=bool)
    for rows in planes.row_blocks(smoothed.shape):
        bright = smoothed[rows] > np.float32(_DETECTION_THRESHOLD * scatter)
        detected[labels[rows][bright]] = True
    return planes.filled(smoothed.shape, bool, lambda rows: detected[labels[rows]])


def _means_of_pairs(
    image: Array, usable: Array, level: float = 0.0
) -> tuple[Array, Array, Array | None]:
    """Means of 2 × 2 pixels less a level, which of them are known, and their usable share.

    The share is None where all pixels are usable.  An odd length is padded with unusable pixels.
    """
    shape = ((image.shape[0] + 1) // 2, (image.shape[1] + 1) // 2)
    complete = bool(usable.all()) and not any(n % 2 for n in image.shape)
    mean, measured = planes.empty(shape, np.float32), planes.empty(shape, bool)
    weight = None if complete else planes.empty(shape, np.float32)

    def work(rows: slice) -> None:
        part = slice(2 * rows.start, 2 * rows.stop)
        values = image[part]
        if level:
            values = values - image.dtype.type(level)
        values = values.astype(np.float32, copy=False)
        if weight is None:
            mean[rows] = _summed_pairs(values) * np.float32(0.25)
            measured[rows] = True
            return
        use = usable[part]
        count = _summed_pairs(use.view(np.uint8))
        measured[rows] = count > 0
        weight[rows] = count * np.float32(0.25)
        mean[rows] = _summed_pairs(np.where(use, values, np.float32(0))) / np.maximum(count, 1)

    planes.each_block(work, shape)
    return mean, measured, weight


def _smoothed(
    image: Array,
    weight: Array | None = None,
    covered: Array | None = None,
    *,
    out: Array | None = None,
) -> Array:
    """Image convolved with (1, 2, 1)/4 along both axes, a Gaussian of 0.71 pixels.

    With weights and ``covered``, their own convolution: the weighted mean.
    """
    result = planes.empty(image.shape, np.float32) if out is None else out
    last = len(image) - 1

    def work(rows: slice) -> None:
        # Each block needs a row before and after; at the frame's edge, the edge row repeats.
        around = slice(max(0, rows.start - 1), min(last + 1, rows.stop + 1))
        values = image[around] if weight is None else image[around] * weight[around]
        if rows.start == 0 or rows.stop > last:
            values = np.pad(values, ((rows.start == 0, rows.stop > last), (0, 0)), mode="edge")
        lines = values[:-2] + values[2:]
        lines += 2 * values[1:-1]
        part = 2 * lines
        part[:, 1:] += lines[:, :-1]
        part[:, :-1] += lines[:, 1:]
        part[:, 0] += lines[:, 0]
        part[:, -1] += lines[:, -1]
        part /= 16
        if covered is not None:
            part /= np.maximum(covered[rows], np.float32(1e-3))
        result[rows] = part

    planes.each_block(work, image.shape)
    return result


def _grown(plane: Array, pixels: int) -> Array:
    """Plane grown by a number of pixels in x and y."""
    ny = len(plane)

    def work(rows: slice) -> Array:
        first, last = max(0, rows.start - pixels), min(ny, rows.stop + pixels)
        part = plane[first:last]
        for _ in range(pixels):
            across = part.copy()
            across[:, 1:] |= part[:, :-1]
            across[:, :-1] |= part[:, 1:]
            part = across.copy()
            part[1:] |= across[:-1]
            part[:-1] |= across[1:]
        return part[rows.start - first : rows.stop - first]

    return planes.filled(plane.shape, bool, work)


def _summed_pairs(image: Array) -> Array:
    """Sums of 2 × 2 pixels; an odd length is padded with zeros."""
    ny, nx = image.shape
    if ny % 2 or nx % 2:
        image = np.pad(image, [(0, ny % 2), (0, nx % 2)])
    rows = image[::2] + image[1::2]
    return rows[:, ::2] + rows[:, 1::2]
