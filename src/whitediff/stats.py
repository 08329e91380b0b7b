"""Clipped means, robust widths and autocorrelations of pixels."""

from __future__ import annotations

import bisect
import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft

from .errors import ArgumentError
from .threads import in_threads

__all__ = [
    "IQR_TO_SIGMA",
    "ClippedMean",
    "autocorrelation",
    "clipped_mean",
    "robust_sigma",
]

type Array = npt.NDArray[Any]

_CHUNK = 1 << 17
"""Pixels that are worked on at a time, so that what is made of them stays in the cache."""

_FEW = 1 << 18
"""Pixels of which a clipped mean is simply sorted out."""

_SAMPLE = 1 << 17
_BRACKET_SIGMAS = 5.0
_CORE_SIGMAS = 2.0
_FAR = 4.0
"""Where values are not kept, in widths of the core."""
_TILE = 256
"""Least side of a tile's grid: its transforms stay in the processor's cache."""

IQR_TO_SIGMA = 0.741301109252802
"""Standard deviation of a Gaussian over its inter-quartile range."""

_QUARTILES = (0.25, 0.5, 0.75)


@dataclasses.dataclass(frozen=True)
class ClippedMean:
    """A clipped mean and how it came about.

    Attributes
    ----------
    mean
        Mean of the pixels inside the last interval; NaN if there was no pixel.
    median, inter_quartile_range
        Of the pixels offered, before clipping.
    centers, half_widths, counts
        Clip interval of each of the three passes and the number of pixels inside.
    """

    mean: float
    median: float
    inter_quartile_range: float
    centers: tuple[float, ...]
    half_widths: tuple[float, ...]
    counts: tuple[int, ...]


def clipped_mean(values: Array, *, good: Array | None = None) -> ClippedMean:
    """Mean after three passes of clipping at three standard deviations.

    Parameters
    ----------
    values
        Any shape.  Values that are not finite, also after conversion to single
        precision, are left out.
    good
        Same shape, boolean: the pixels to use; all if not given.

    Returns
    -------
    result
        `ClippedMean`; its mean is NaN if there is no pixel, the pixel if there is one.

    Raises
    ------
    ArgumentError
        If the shapes differ.

    Notes
    -----
    Pass 1 keeps ``|v − median| ≤ 3 · 0.7413 · IQR``, with median and quartiles by
    linear interpolation at rank ``f · (n − 1)``; passes 2 and 3 start again from all
    the pixels and keep ``|v − mean| ≤ 3 · sd`` of the pass before, ``sd`` with
    ``n − 1``, bounds inclusive.  This is the ``MEANCLIP`` of LSST's statistics with
    its default three passes.
    """
    if good is not None and good.shape != values.shape:
        raise ArgumentError(
            f"values and good must have the same shape; got {values.shape} and {good.shape}."
        )
    if values.size > _FEW:
        found = _clipped_mean_of_many(values, good)
        if found is not None:
            return found
    return _clipped_mean_of(np.sort(_usable(values, good)))


def _usable(values: Array, good: Array | None) -> Array:
    """Values that are finite, in single precision too, and good."""
    with np.errstate(over="ignore"):
        use = np.isfinite(values.astype(np.float32, copy=False))
    if good is not None:
        use &= good
    used: Array = values[use]
    return used


def _clipped_mean_of(ordered: Array) -> ClippedMean:
    nan = float("nan")
    if ordered.size == 0:
        return ClippedMean(nan, nan, nan, (nan,) * 3, (nan,) * 3, (0,) * 3)
    lower, median, upper = (_quantile(ordered, fraction) for fraction in _QUARTILES)
    return _clipped(_Part.of(np.zeros(0), median), ordered, lower, median, upper)


@dataclasses.dataclass(frozen=True)
class _Part:
    """Sums over some values, of their differences from a center.

    Attributes
    ----------
    center, count, total, square
        Center, number of values, and the sums of the differences and of their squares.
    """

    center: float
    count: int
    total: float
    square: float

    @classmethod
    def of(cls, values: Array, center: float) -> _Part:
        """Sums over an array."""
        offset = values.astype(np.float64) - center
        return cls(center, values.size, float(offset.sum()), float(np.square(offset).sum()))

    def __add__(self, other: _Part) -> _Part:
        return _Part(
            self.center,
            self.count + other.count,
            self.total + other.total,
            self.square + other.square,
        )

    @property
    def mean(self) -> float:
        return self.center + self.total / self.count

    @property
    def standard_deviation(self) -> float:
        if self.count < 2:
            return 0.0
        # Of rounding errors it may be negative.
        square = max(0.0, self.square - self.total**2 / self.count)
        return math.sqrt(square / (self.count - 1))


def _clipped(core: _Part, ordered: Array, lower: float, median: float, upper: float) -> ClippedMean:
    """Three passes over values of which all in the core are inside every interval.

    The others are ordered, so that those inside an interval are a slice.
    """
    center, half_width = median, 3 * IQR_TO_SIGMA * (upper - lower)
    centers, half_widths, counts = [], [], []
    for _ in range(3):
        first, last = _within(ordered, center, half_width)
        part = core
        for start in range(first, last, _CHUNK):
            part += _Part.of(ordered[start : min(start + _CHUNK, last)], core.center)
        centers.append(center)
        half_widths.append(half_width)
        counts.append(part.count)
        if part.count == 0:
            # Only when the spread is below the rounding of the mean.
            center = float("nan")
            break
        center, half_width = part.mean, 3 * part.standard_deviation
    return ClippedMean(
        center, median, upper - lower, tuple(centers), tuple(half_widths), tuple(counts)
    )


def _within(ordered: Array, center: float, half_width: float) -> tuple[int, int]:
    """Ends of the slice of the values with ``|v − center| ≤ half_width``, to the last rounding."""
    reached = bisect.bisect_left(
        ordered, True, key=lambda v: v >= center or center - float(v) <= half_width
    )
    passed = bisect.bisect_left(
        ordered, True, key=lambda v: v > center and float(v) - center > half_width
    )
    return reached, passed


def _clipped_mean_of_many(values: Array, good: Array | None) -> ClippedMean | None:
    """`clipped_mean` in one pass over the values; None where it takes another one.

    A sample tells about where the quartiles are, and of which values no interval takes any
    away.  The latter are summed; only the few others, and those near the quartiles, are looked
    at one by one.
    """
    wanted = max(_SAMPLE, values.size // 256)
    step = max(1, math.ceil((values.size / wanted) ** (1 / values.ndim))) | 1
    every = (slice(None, None, step),) * values.ndim
    sample = np.sort(_usable(values[every], None if good is None else good[every]))
    if sample.size < _SAMPLE // 64:
        return None
    brackets = [_bracket(sample, fraction) for fraction in _QUARTILES]
    middle = float(sample[sample.size // 2])
    reach = _CORE_SIGMAS * IQR_TO_SIGMA * float(brackets[2][0] - brackets[0][1])
    low = values.dtype.type(min(middle - reach, brackets[0][0]))
    high = values.dtype.type(max(middle + reach, brackets[2][1]))
    # No interval reaches as far as this: what lies beyond is counted, not kept.
    lowest, highest = (middle + side * _FAR * max(reach, float(high - low)) for side in (-1, 1))
    rows = max(1, _CHUNK // max(1, values[0].size))

    def work(start: int) -> tuple[_Part, Array, int, list[tuple[int, int, Array]]]:
        part = values[start : start + rows].reshape(-1)
        use = None if good is None else good[start : start + rows].reshape(-1)

        def used(pixels: Array) -> Array:
            return pixels if use is None else np.logical_and(pixels, use, out=pixels)

        inside = part >= low
        inside &= part <= high
        inside = used(inside)
        apart = part[used(~inside)]
        others = _usable(apart, None)
        # Zero in place of what does not count.
        offset = np.subtract(part, middle, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            offset *= inside
        total = float(offset.sum())
        if not math.isfinite(total):
            np.copyto(offset, 0.0, where=~inside)
            total = float(offset.sum())
        square = float(np.einsum("i,i->", offset, offset))
        core = _Part(middle, int(np.count_nonzero(inside)), total, square)
        # Of those below the core, some are not finite.
        missing = int(np.count_nonzero(apart < low)) - int(np.count_nonzero(others < low))
        kept = others[(others >= lowest) & (others <= highest)]
        near = []
        for first, last in brackets:
            pixels = used(part < first)
            before = int(np.count_nonzero(pixels)) - missing
            np.greater_equal(part, first, out=pixels)
            pixels &= part <= last
            pixels = used(pixels)
            # Equal values need not be kept.
            values_near = part[pixels] if first < last else part[:0]
            near.append((before, int(np.count_nonzero(pixels)), values_near))
        return core, kept, others.size - kept.size, near

    parts = in_threads(work, range(0, len(values), rows))
    core = sum((part for part, *_ in parts), _Part(middle, 0, 0.0, 0.0))
    others = np.sort(np.concatenate([part for _, part, *_ in parts]))
    number_used = core.count + others.size + sum(far for _, _, far, _ in parts)
    quartiles = []
    for i, (fraction, (first, last)) in enumerate(zip(_QUARTILES, brackets, strict=True)):
        before = sum(near[i][0] for *_, near in parts)
        number = sum(near[i][1] for *_, near in parts)
        rank = float(fraction * (number_used - 1) - before)
        if not (rank >= 0 and int(rank) + 1 < number):
            return None
        if first < last:
            kept = np.sort(np.concatenate([near[i][2] for *_, near in parts]))
            quartiles.append(_between(kept, rank))
        else:
            quartiles.append(float(first))
    found = _clipped(core, others, *quartiles)
    for center, half_width in zip(found.centers, found.half_widths, strict=True):
        if not (center - low <= half_width and high - center <= half_width):
            return None
        if not (lowest <= center - half_width and center + half_width <= highest):
            return None
    return found


def _bracket(ordered: Array, fraction: float) -> tuple[Any, Any]:
    """Values of a sample between which a quantile of all lies, but for one in a million."""
    n = ordered.size
    rank = fraction * (n - 1)
    reach = _BRACKET_SIGMAS * math.sqrt(n * fraction * (1 - fraction)) + 1
    return ordered[max(0, int(rank - reach))], ordered[min(n - 1, math.ceil(rank + reach))]


def _quantile(ordered: Array, fraction: float) -> float:
    return _between(ordered, fraction * (ordered.size - 1))


def _between(ordered: Array, rank: float) -> float:
    low = int(rank)
    lower, upper = float(ordered[low]), float(ordered[min(low + 1, ordered.size - 1)])
    return lower + (rank - low) * (upper - lower)


def robust_sigma(values: Array) -> float:
    """Standard deviation from the inter-quartile range, blind to outliers.

    Parameters
    ----------
    values
        Any shape, finite.

    Returns
    -------
    sigma
        ``0.7413 · IQR``; NaN if there is no value.
    """
    if values.size == 0:
        return float("nan")
    lower, upper = np.percentile(values, [25, 75])
    return IQR_TO_SIGMA * float(upper - lower)


def autocorrelation(image: Array, good: Array, max_lag: int) -> Array:
    """Autocorrelation of an image's good pixels at all small lags.

    Parameters
    ----------
    image
        ``(ny, nx)``, zero mean over the good pixels.
    good
        ``(ny, nx)`` boolean.  A pair counts where both of its pixels are good.
    max_lag
        Largest lag on each axis, in pixels.

    Returns
    -------
    correlation
        ``(2·max_lag + 1, 2·max_lag + 1)``, lag (0, 0) = 1 at its centre; NaN where
        no pair has that lag.

    Raises
    ------
    ArgumentError
        If the shapes differ or the lag is negative.

    Notes
    -----
    Products are averaged over the pairs that exist, so that masks do not bias the
    result (unlike zero-filling before a transform).  The sums come from the spectra of
    tiles, each times that of the tile with its surroundings: nothing wraps around, and
    memory stays at a few tiles beyond that of the result.
    """
    if image.shape != good.shape or image.ndim != 2:
        raise ArgumentError(
            f"image and good must have the same 2-D shape; got {image.shape} and {good.shape}."
        )
    if max_lag < 0:
        raise ArgumentError(f"max_lag must not be negative; got {max_lag}.")
    ny, nx = image.shape
    # A lag and its opposite have the same value, so rows before a tile are not needed.
    side = scipy.fft.next_fast_len(max(_TILE, 4 * max_lag), real=True)
    grid = (side, side)
    step_y, step_x = side - max_lag, side - 2 * max_lag

    def work(top: int) -> tuple[Array, Array]:
        """Cross spectra of one row of tiles, in a fixed order: sums round the same way."""
        sums, pairs = (np.zeros((side, side // 2 + 1), dtype=complex) for _ in range(2))
        for left in range(0, nx, step_x):
            rows = slice(top, min(top + side, ny))
            columns = slice(max(0, left - max_lag), min(left + step_x + max_lag, nx))
            weight = good[rows, columns]
            if not weight.any():
                continue
            # The tile proper, in its surroundings.
            inner = (slice(0, step_y), slice(left - columns.start, left - columns.start + step_x))
            for total, around in (
                (sums, np.where(weight, image[rows, columns], 0).astype(np.float64)),
                (pairs, weight.astype(np.float64)),
            ):
                tile = np.zeros(around.shape)
                tile[inner] = around[inner]
                tile_ft = scipy.fft.rfft2(tile, s=grid)
                np.conjugate(tile_ft, out=tile_ft)
                tile_ft *= scipy.fft.rfft2(around, s=grid)
                total += tile_ft
        return sums, pairs

    rows_of_tiles = in_threads(work, range(0, ny, step_y))
    lags = np.arange(-max_lag, max_lag + 1)
    products, counts = (
        scipy.fft.irfft2(sum(parts), s=grid)[: max_lag + 1][:, lags]
        for parts in zip(*rows_of_tiles, strict=True)
    )
    counts = np.rint(counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        half = np.where(counts > 0, products / counts, np.nan)
    correlation = np.concatenate([half[:0:-1, ::-1], half])
    correlation[max_lag, :max_lag] = correlation[max_lag, :max_lag:-1]
    variance = correlation[max_lag, max_lag]
    return correlation / variance if variance > 0 else correlation
