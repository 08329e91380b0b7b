"""Which pixels hold sources, and how noisy the others are.

Source-free pixels are found on the science and template images, never on their
difference: leaving out its high pixels would lower the variance that is to be judged.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from . import planes
from .errors import ArgumentError, DataError
from .photons import Choice, PhotonScale, chosen_scale, photon_transfer, why_contradicted
from .stats import robust_sigma
from .structure import HighFrequencies, high_frequencies

__all__ = [
    "RESIDUAL",
    "NoiseModel",
    "SourceLevel",
    "bright_pixel_counts",
    "detect_sources",
    "exposure_map_variance",
    "levels_and_background",
    "noise_variance",
    "smooth_background",
    "source_levels",
    "spread_over_steps",
    "with_left_out_photons",
]

type Array = npt.NDArray[Any]

RESIDUAL = 0.1
"""Of a source, the largest part that errors of the matching are taken to leave."""

_PASSES = 2
_SLOPE_PASSES = 10
_DETECTION_THRESHOLD = 4.0
_GROWTH_THRESHOLD = 2.0
_BRIGHT_THRESHOLD = 5 / RESIDUAL
"""What errors of the matching leave of such a source may be a 5 sigma detection."""
_GROWTH_PIXELS = 4
_BACKGROUND_CELL = 64
_LEAST_USED = 0.3
_INVERSE = (0.67, 1.5)
"""Measured variance times weight within which a weight is an inverse variance."""
_AROUND = 5
"""Side of a square whose mean tells the photons of emission well enough."""
_LEAST_SHARE = 0.1
"""Of the usual variance: sky that varies by less makes no difference, and no pixel has less."""
_ROUNDS = 4
_CLOSE = 0.05
"""Relative difference of a predicted variance from one that is measured where the sky varies."""
_BRIGHT_SIGMAS, _LEAST_BRIGHT, _LEAST_RISE = 30.0, 50, 0.03
"""Of pixels' height above the background, how many there must be, and what a variance plane that
knows of photons rises by there."""
_BESIDE = 16
"""Pixels along either axis at which a source's light is gone."""
_SAMPLE = 250_000
"""Pixels from which a scatter is known to a few thousandths."""
_SMOOTHING = np.array([1, 1, 2, 2, 1, 1]) / 8
"""Along either axis, what is detected on: means of 2 pixels convolved with (1, 2, 1)/4."""


class SourceLevel(enum.IntEnum):
    """How much of a source a pixel holds.  Levels of several images combine by their minimum,
    which all of them have, or their maximum.
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
        Pixels of sources count, too: what follows a sky closely would follow their light.

    Returns
    -------
    background
        ``(ny, nx)`` float64: medians of the means of 2 × 2 pixels, interpolated by cubic
        convolution, and extrapolated over the outer half cells as parabolas.  Again on what that
        leaves, as long as it halves: where pixels do not count, medians of a slope are off.  With
        sources: interpolated linearly, once.  Cells of which less than 30 % counts take the
        median of their neighbours that are better off.
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


def _interpolated(
    medians: Array,
    shape: tuple[int, ...],
    *,
    step: int = 1,
    weights: Callable[[Array, int], tuple[Array, Array]] | None = None,
) -> Array:
    """Image of a shape from the medians of its cells, by default as curved as they are.

    Steps are the pixels that each number of the medians' image stands for.
    """
    (ny, nx), (cells_y, cells_x) = shape, medians.shape
    of_four = _cubic_weights if weights is None else weights
    below, taken = of_four(_positions(nx, cells_x, step), cells_x)
    matrix = np.zeros((nx, cells_x + 4), medians.dtype)
    np.put_along_axis(matrix, below[:, None] + np.arange(4), taken.astype(medians.dtype), axis=1)
    padded = _extrapolated(_extrapolated(medians).T).T
    # Along the rows by a small product of matrices; between them, four rows for every row.
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
    """As `_cubic_weights`, of which only the middle two count."""
    left = np.clip(np.floor(position).astype(int), 0, max(cells - 2, 0))
    t = position - left
    nothing = np.zeros_like(t)
    return left + 1, np.stack([nothing, 1 - t, t, nothing], axis=1)


def _cubic_weights(position: Array, cells: int) -> tuple[Array, Array]:
    """First of the four cells around each position, of two more on either side, and their weights.

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
    """Indices of each cell's pixels, ``(cells, longest)``, and which of them count."""
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
        Look once: the scatter is then that of an image with its sources, and faint ones are
        missed.  Half of the time, and enough where only their photons matter.

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
    levels, _ = _detected(image, unusable, passes=1 if only_bright else _PASSES)
    sources: Array = levels > SourceLevel.NONE
    return sources


def source_levels(image: Array, unusable: Array | None = None) -> Array:
    """Pixels that belong to sources, and the bright ones of them.

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
    levels, _ = _detected(image, unusable)
    return levels


def bright_pixel_counts(psf: Array, significance: Array) -> Array:
    """How many pixels of point sources `source_levels` would find bright.

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
    smoothed = psf.astype(np.float64)
    for axis in range(2):
        smoothed = scipy.ndimage.convolve1d(smoothed, _SMOOTHING, axis=axis, mode="constant")
    # A source of significance 1, over the scatter of white noise that is smoothed likewise.
    scatter = (_SMOOTHING**2).sum() * math.sqrt((psf**2).sum())
    heights = np.sort(smoothed.ravel()) / scatter
    with np.errstate(divide="ignore"):
        least = _BRIGHT_THRESHOLD / np.abs(significance)
    counts: Array = heights.size - np.searchsorted(heights, least, side="right")
    return counts


def levels_and_background(image: Array, unusable: Array | None = None) -> tuple[Array, Array]:
    """Pixels that belong to sources, and the background that they stand on.

    Parameters
    ----------
    image, unusable
        As for `detect_sources`.

    Returns
    -------
    levels
        As of `source_levels`.
    background
        ``(ny, nx)`` float32: medians of cells of 64 pixels as in `smooth_background`,
        without the sources.

    Raises
    ------
    DataError
        If no pixel is usable.
    """
    levels, medians = _detected(image, unusable)
    return levels, _interpolated(medians, image.shape, step=2)


def _detected(image: Array, unusable: Array | None, passes: int = _PASSES) -> tuple[Array, Array]:
    """Levels of source pixels, and medians of cells of the background."""

    def is_usable(rows: slice) -> Array:
        finite = np.isfinite(image[rows])
        return finite if unusable is None else finite & ~unusable[rows]

    usable = planes.filled(image.shape, bool, is_usable)
    if not usable.any():
        raise DataError(
            "No pixel is usable, so sources cannot be told from background: all are masked,"
            " saturated or not finite; are the mask and its bits right?"
        )
    mean, measured, weight = _means_of_pairs(image, usable)
    covered = None if weight is None else _smoothed(weight)
    sources = planes.zeros(mean.shape, bool)
    levels = planes.zeros(mean.shape, np.uint8)
    background = np.zeros((1, 1), np.float32)
    # More than once: the first background and scatter still contain the sources.
    for _ in range(passes):
        free = planes.filled(mean.shape, bool, functools.partial(_without, measured, sources))
        if not free.any():
            break
        # What is left of a slope under the first medians, the second find.
        medians = _cell_medians(mean, free, _BACKGROUND_CELL // 2).astype(np.float32)
        background = background + medians
        left = _interpolated(medians, mean.shape)
        np.subtract(mean, left, out=mean)
        smoothed = _smoothed(mean, weight, covered, out=left)
        step = max(1, smoothed.size // _SAMPLE)
        scatter = robust_sigma(smoothed[::step][free[::step]])
        if not scatter > 0:
            break
        sources = _grown(_connected(smoothed, scatter), _GROWTH_PIXELS // 2)
        levels = _levels(smoothed, scatter, sources)
    nx = image.shape[1]

    def spread(rows: slice) -> Array:
        pairs = levels[np.arange(rows.start, rows.stop) // 2]
        return np.repeat(pairs, 2, axis=1)[:, :nx] * usable[rows]

    return planes.filled(image.shape, np.uint8, spread), background


def _levels(smoothed: Array, scatter: float, sources: Array) -> Array:
    """Levels of pixels, of which each holds for the pixels of the next."""
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


def spread_over_steps(image: Array) -> Array:
    """Image of whole numbers, whose medians would be whole, as one whose medians follow its level.

    Parameters
    ----------
    image
        ``(ny, nx)`` whole numbers; not modified.

    Returns
    -------
    spread
        ``(ny, nx)``: less than half a step added to or taken from each, evenly, always the same.
    """
    spread = np.random.default_rng(0).random(image.shape, dtype=np.float32)
    result: Array = image + (spread - np.float32(0.5))
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


def _means_of_pairs(image: Array, usable: Array) -> tuple[Array, Array, Array | None]:
    """Means of 2 × 2 pixels, which of them are known, and the share of usable pixels in them.

    The last is None where all are.  An odd length is filled up with nothing.
    """
    shape = ((image.shape[0] + 1) // 2, (image.shape[1] + 1) // 2)
    complete = bool(usable.all()) and not any(n % 2 for n in image.shape)
    mean, measured = planes.empty(shape, np.float32), planes.empty(shape, bool)
    weight = None if complete else planes.empty(shape, np.float32)

    def work(rows: slice) -> None:
        part = slice(2 * rows.start, 2 * rows.stop)
        values = image[part].astype(np.float32, copy=False)
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

    With weights, and their own convolution: the weighted mean.
    """
    result = planes.empty(image.shape, np.float32) if out is None else out
    last = len(image) - 1

    def work(rows: slice) -> None:
        # With a row before and after, and at the edges the edge's own again.
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
    """Plane with all pixels that have one of it within so many pixels in x and y."""
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
    """Sums of 2 × 2 pixels; an odd length is filled up with zeros."""
    ny, nx = image.shape
    if ny % 2 or nx % 2:
        image = np.pad(image, [(0, ny % 2), (0, nx % 2)])
    rows = image[::2] + image[1::2]
    return rows[:, ::2] + rows[:, 1::2]


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
    warning
        Why it is not what the header tells; empty where it is.
    """

    variance: Array
    background_variance: float
    description: str
    warning: str = ""


def noise_variance(
    image: Array,
    unusable: Array | None = None,
    *,
    gain: float | None = None,
    read_noise: float | None = None,
    trust_model: bool = False,
    meaning: str = "counts",
    alternatives: Sequence[PhotonScale] = (),
    unexplained: str = "",
) -> NoiseModel:
    """Variance plane of an image that came without one.

    Parameters
    ----------
    image
        ``(ny, nx)``, in any unit.
    unusable
        ``(ny, nx)`` boolean: pixels to leave out of the measurement.
    gain
        Electrons per image unit.
    read_noise
        Electrons per pixel; measured if only the gain is known.
    trust_model
        Use gain and read noise even where the scatter contradicts them.
    meaning
        What the image's unit is, with that gain.
    alternatives
        What else it may be, where the noise contradicts the gain.
    unexplained
        Why there is no gain, for the warning.

    Returns
    -------
    model
        With a gain: ``level/gain + (read_noise/gain)²``, where the level is the smooth
        background plus the sources, provided that this agrees within a quarter with the
        scatter of source-free pixels.  Where it does not, the measured scatter, plus the sources'
        own photons at the gain that `whitediff.photons.chosen_scale` finds.  Without a gain: the
        measured scatter.  Where emission with structure fills the field, the scatter is that at
        high frequencies (`whitediff.structure`), and the level that of 5 × 5 pixels.

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
    whole = usable.any() and bool((image[usable] == np.rint(image[usable])).all())
    sources, background, free = _apart(spread_over_steps(image) if whole else image, usable)
    if not free.any():
        raise DataError("No source-free pixel is left to measure the noise on.")
    measured = robust_sigma((image - background)[free], step=1.0 if whole else None) ** 2
    if not measured > 0:
        raise DataError(
            f"The scatter of the source-free pixels is {measured:g}; an image without noise"
            " needs its variance given."
        )
    expected = None if gain is None else PhotonScale(gain, read_noise or 0.0, meaning)
    scatter, level = measured, float(np.median(background))
    if expected is not None:
        at_level = _variance_at_level(image, background, level, free, expected.gain, measured)
        if expected.predicts(level=level, measured=at_level):
            measured = at_level
    on_pixels = f"measured on {int(free.sum())} source-free pixels: {measured:.4g}"
    base = background
    emission: Array | float = 0.0
    found = high_frequencies(image, usable)
    is_structured = found is not None and (
        found.contradicts(measured)
        or _explains_what_scatter_does_not(expected, found, measured, level)
    )
    if found is not None and is_structured:
        # Emission over all of the field: pixels have their own levels, and few are without it.
        on_pixels = (
            f"measured at high frequencies: {found.usual_factor:.4g} (with the structure of the"
            f" field, pixels scatter by {measured:.4g})"
        )
        if expected is None and not alternatives:
            measured = found.usual_factor
        else:
            measured, level = found.factor, found.level
            base = np.full(image.shape, level)
            background = np.where(sources, background, _mean_around(image, usable))
            emission = np.maximum(background - level, 0)
    transfer = None
    if expected is not None and (trust_model or expected.predicts(level=level, measured=measured)):
        choice = Choice(expected, True, True, "")
    else:
        if expected is not None or alternatives or not is_structured:
            transfer = photon_transfer(image, base, usable, variance=measured)
        choice = chosen_scale(
            expected, alternatives, level=level, measured=measured, transfer=transfer
        )
    scale = choice.scale
    warning = unexplained
    if expected is not None and not choice.is_expected:
        why = why_contradicted(expected, level=level, measured=measured, transfer=transfer)
        warning = (
            f"a gain of {expected.gain:g} electrons per unit ({expected.meaning}) gives a variance"
            f" of {expected.variance(level):.4g} at the background level {level:.4g}, but"
            f" {measured:.4g} is measured, so {why}"
        )
    if scale is None:
        if warning:
            warning += (
                "; no photon noise of sources is added, so that bright ones get too small errors,"
                " unless a gain in the image's unit or a variance plane is given"
                f"{f' ({choice.reason})' if choice.reason else ''}"
            )
        return NoiseModel(
            np.full(image.shape, measured), measured, f"{on_pixels} everywhere", warning
        )
    # Of sources only: a pixel's own noise must not set its variance.
    photons = np.where(sources, np.maximum(image - background, 0), 0) / scale.gain
    if not choice.is_expected:
        warning += f"{'; ' if warning else ''}its pixels are taken for {scale.meaning}"
        warning += f", {scale.gain:.4g} electrons per unit ({choice.reason})"
    predicted = scale.variance(level)
    varies = not (is_structured or trust_model)
    varies = varies and bool(np.any(_varying_sky(background, level, scale.gain, measured)))
    # Where the sky varies, its noise tells whether a constant was subtracted.
    if choice.models_background and not (varies and abs(predicted / measured - 1) > _CLOSE):
        read_variance = (scale.read_noise / scale.gain) ** 2
        if read_noise is None:
            # Nobody says it: what the photons of the background leave.
            read_variance = max(measured - max(level, 0.0) / scale.gain, 0.0)
            predicted = max(level, 0.0) / scale.gain + read_variance
        known = math.sqrt(read_variance) * scale.gain
        return NoiseModel(
            np.maximum(background, 0) / scale.gain + read_variance + photons,
            predicted,
            f"from gain {scale.gain:g} and read noise {known:.4g}: {predicted:.4g} at the"
            f" background level {level:.4g} (measured: {measured:.4g})",
            warning,
        )
    if varies:
        # Without that constant, or in other units, what the sky varies by is still there.
        measured = _variance_at_level(image, background, level, free, scale.gain, scatter)
        emission = _varying_sky(background, level, scale.gain, measured)
        on_pixels = f"measured: {measured:.4g} at the usual level of a sky that varies"
    why = ""
    if choice.is_expected:
        reason = why_contradicted(scale, level=level, measured=measured, transfer=transfer)
        why = (
            f"; gain and read noise alone would give {predicted:.4g} at the background level"
            f" {level:.4g}, so {reason}"
        )
    return NoiseModel(
        measured + photons + emission / scale.gain,
        measured,
        f"{on_pixels}, plus the sources' photons at gain {scale.gain:.4g}{why}",
        warning,
    )


def _apart(image: Array, usable: Array) -> tuple[Array, Array, Array]:
    """Pixels with a source, the background, and usable pixels without a source."""
    levels, background = levels_and_background(image, ~usable)
    sources = levels > SourceLevel.NONE
    return sources, background, usable & ~sources


def _explains_what_scatter_does_not(
    expected: PhotonScale | None, found: HighFrequencies, scatter: float, level: float
) -> bool:
    """Whether the header's gain predicts the noise at high frequencies, and pixels scatter more."""
    if expected is None or expected.predicts(level=level, measured=scatter):
        return False
    return scatter > found.factor and expected.predicts(level=found.level, measured=found.factor)


def with_left_out_photons(
    image: Array,
    variance: Array,
    unusable: Array | None = None,
    *,
    expected: PhotonScale | None = None,
    alternatives: Sequence[PhotonScale] = (),
) -> NoiseModel | None:
    """Variance plane with the photon noise of the sources, where it was left out.

    Parameters
    ----------
    image
        ``(ny, nx)``, in any unit.
    variance
        ``(ny, nx)`` image_unit², such as inverse weights, in which maps of co-added images hold
        the background's noise alone.
    unusable
        ``(ny, nx)`` boolean: pixels to leave out.
    expected, alternatives
        As for `noise_variance`.

    Returns
    -------
    model
        The plane plus the sources' photons; or the plane as it is, where nothing tells the gain.
        None where the plane rises with the light of bright sources, or where
        there are too few to tell, or too faint for a difference.
    """
    usable = np.isfinite(image) & np.isfinite(variance) & (variance > 0)
    if unusable is not None:
        usable &= ~unusable
    if not _ignores_light(image, variance, usable):
        return None
    sources, background, free = _apart(image, usable)
    if not free.any():
        return None
    # A plane may be off by a factor, which is put right later: photons in its unit.
    usual = float(np.median(variance[free]))
    factor = robust_sigma((image - background)[free] / np.sqrt(variance[free])) ** 2
    if not factor > 0:
        return None
    measured, level = usual * factor, float(np.median(background))
    transfer = photon_transfer(image, background, usable, variance=measured)
    choice = chosen_scale(expected, alternatives, level=level, measured=measured, transfer=transfer)
    said = "its variance plane does not rise with its stars' light"
    if choice.scale is None:
        text = (
            f"{said}; if it leaves out their photon noise, errors of bright sources are too small,"
            " unless a gain in the image's unit is given"
        )
        return NoiseModel(variance, usual, text)
    # Where fewer exposures overlap or less light falls, a unit stands for fewer electrons.
    lit = sources & usable
    electrons = choice.scale.gain * usual * factor / variance[lit]
    result = variance.astype(np.float64)
    result[lit] += np.maximum((image - background)[lit], 0) / electrons
    text = (
        f"{said}, so that it leaves out their photon noise, which is added at"
        f" {choice.scale.gain:.4g} electrons per unit ({choice.reason or choice.scale.meaning})"
    )
    return NoiseModel(result, usual, text)


def _ignores_light(image: Array, variance: Array, usable: Array) -> bool:
    """Whether a variance plane is the same on bright sources as beside them."""
    step = max(1, image.size // _SAMPLE)
    known = np.flatnonzero(usable.ravel()[::step]) * step
    if not known.size:
        return False
    values, plane = image.ravel()[known].astype(np.float64), variance.ravel()[known]
    bright = values - np.median(values) > _BRIGHT_SIGMAS * np.sqrt(np.median(plane))
    if np.count_nonzero(bright) < _LEAST_BRIGHT:
        return False
    y, x = np.unravel_index(known[bright], image.shape)
    beside = [
        variance[np.clip(y + dy, 0, image.shape[0] - 1), np.clip(x + dx, 0, image.shape[1] - 1)]
        for dy in (-_BESIDE, _BESIDE)
        for dx in (-_BESIDE, _BESIDE)
    ]
    # One that rises at all knows of photons, whatever their gain.
    return bool(abs(np.median(plane[bright] / np.median(beside, axis=0)) - 1) < _LEAST_RISE)


def _variance_at_level(
    image: Array, background: Array, level: float, free: Array, gain: float, scatter: float
) -> float:
    """Variance of the source-free pixels at the usual level of a sky that varies.

    The scatter of all of them is no variance of any where photons make them differ.
    """
    if not np.any(_varying_sky(background, level, gain, scatter)):
        return scatter
    step = max(1, np.count_nonzero(free) // _SAMPLE)
    residual, sky = (image - background)[free][::step], background[free][::step]
    sky = sky - level
    measured = scatter
    for _ in range(_ROUNDS):
        shape = np.maximum(1 + sky / (gain * measured), _LEAST_SHARE)
        measured = robust_sigma(residual / np.sqrt(shape)) ** 2
    return measured


def _varying_sky(background: Array, level: float, gain: float, variance: float) -> Array | float:
    """Sky above its usual level, image unit, 0 where its photons make no difference.

    Not so far below it that less than a tenth of the variance would be left.
    """
    above = background - level
    step = max(1, above.size // _SAMPLE)
    if not robust_sigma(above.ravel()[::step]) > _LEAST_SHARE * variance * gain:
        return 0.0
    return np.maximum(above, (_LEAST_SHARE - 1) * variance * gain)


def _mean_around(image: Array, usable: Array) -> Array:
    """Mean of the usable pixels among 5 × 5; 0 where there is none."""
    share = scipy.ndimage.uniform_filter(usable.astype(float), _AROUND, mode="nearest")
    total = scipy.ndimage.uniform_filter(
        np.where(usable, image, 0).astype(float), _AROUND, mode="nearest"
    )
    # Running sums end near zero, not at it.
    known = share > 0.5 / _AROUND**2
    return np.where(known, total / np.where(known, share, 1), 0)


def exposure_map_variance(
    image: Array,
    times: Array,
    unusable: Array | None = None,
    *,
    gain: float | None = None,
    gain_of_time: bool = True,
    is_sure: bool = False,
) -> NoiseModel | None:
    """Variance plane of an image whose weights are exposure times.

    Parameters
    ----------
    image
        ``(ny, nx)``, in any unit.
    times
        ``(ny, nx)`` seconds; 0 where there is no measurement.
    unusable
        ``(ny, nx)`` boolean: pixels to leave out of the measurement.
    gain
        Electrons per image unit, of a rate per unit and second; None: no photons are added.
    gain_of_time
        Whether the image is a rate, so that the gain of a pixel is ``gain · time``.
    is_sure
        The weights are times even if they explain the scatter as inverse variances.

    Returns
    -------
    model
        Inversely proportional to the time, and as large as the scatter of source-free pixels,
        plus the sources' photons.  None where the weights explain that scatter as they are
        (within a third of the variance), or where no source-free pixel is left.
    """
    usable = np.isfinite(image) & (times > 0)
    if unusable is not None:
        usable &= ~unusable
    if not usable.any():
        return None
    sources, background, free = _apart(image, usable)
    if not free.any():
        return None
    above = image - background
    unit_variance = robust_sigma(above[free] * np.sqrt(times[free])) ** 2
    explained = _INVERSE[0] < unit_variance < _INVERSE[1]
    if not unit_variance > 0 or (explained and not is_sure):
        return None
    known = np.where(times > 0, times, np.inf)
    variance = np.where(times > 0, unit_variance / known, np.inf)
    text = (
        f"its weights are exposure times in seconds, not inverse variances (1/weight is"
        f" {1 / unit_variance:.3g} times the measured variance), so they are scaled to the measured"
        f" noise"
    )
    if gain is None:
        text += "; without a gain, the photon noise of sources is not added"
    else:
        per_unit = gain * known if gain_of_time else gain
        variance += np.where(sources & (times > 0), np.maximum(above, 0), 0) / per_unit
        text += ", and the photon noise of sources is added"
    background_variance = float(np.median(variance[free]))
    return NoiseModel(variance, background_variance, text)
