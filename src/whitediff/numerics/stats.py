"""Clipped means, robust widths and autocorrelations of pixels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError
from .planes import each_block, every_nth, used
from .threads import in_threads

__all__ = [
    "ENOUGH_PIXELS",
    "IQR_TO_SIGMA",
    "MAD_TO_SIGMA",
    "MEDIAN_ERROR",
    "ClippedMean",
    "autocorrelation",
    "clipped_mean",
    "clipped_sigma",
    "half_sample_mode",
    "high_level",
    "known_medians",
    "median_deviation",
    "median_of",
    "middle_values",
    "power_of_two",
    "robust_sigma",
    "rounding_step",
    "standard_deviations",
]

type Array = npt.NDArray[Any]

ENOUGH_PIXELS = 250_000
"""Number of pixels that determine a scatter to a few thousandths."""

_LOST_DIGITS = 1e-4
"""Rounding error over the scatter from which single precision loses noise."""

_FEW = 1 << 18
"""Number of pixels up to which all of them are simply sorted."""

_SAMPLE = 1 << 17
_BRACKET_SIGMAS = 5.0
_MANY = 4
"""Values inside a bracket are not kept if they are more than a block divided by this."""

_FROM_EACH = 16
_TILE = 256
"""Smallest side of a tile's grid: its transforms stay in the processor's cache."""

IQR_TO_SIGMA = 0.741301109252802
"""Standard deviation of a Gaussian over its inter-quartile range."""

MAD_TO_SIGMA = 1.482602218505602
"""Standard deviation of a Gaussian over its median absolute deviation."""

MEDIAN_ERROR = 1.2533
"""Error of the median over the error of the mean, for many Gaussian values: √(π/2)."""

_QUARTILES = (0.25, 0.5, 0.75)
_TRIED, _REPEATED, _OFF = 1000, 8, 0.01
"""Values in which steps are looked for, mean number of repeats of each value that is needed, and
departure from whole numbers of steps that counts as rounding."""
_BLOCK = 1 << 18
_CLIPPED, _CLIPPING_PASSES = 8.0, 5


@dataclasses.dataclass(frozen=True)
class ClippedMean:
    """A clipped mean and the passes that led to it.

    Attributes
    ----------
    mean
        Mean of the pixels inside the last interval; NaN if there was no pixel.
    median, inter_quartile_range
        Median and inter-quartile range before clipping.
    centers, half_widths, counts
        Clip interval of each of the three passes, and number of pixels inside.
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
        Any shape.  Values that are not finite in single precision are left out; if none is, as for
        variances in very small units of flux, those that are not finite.
    good
        Same shape, boolean: pixels to use; all if not given.

    Returns
    -------
    result
        `ClippedMean`; its mean is NaN if there is no pixel, and the pixel itself if there is one.

    Raises
    ------
    ArgumentError
        If the shapes differ.

    Notes
    -----
    Pass 1 keeps ``|v − median| ≤ 3 · 0.7413 · IQR``, with median and quartiles by
    linear interpolation at rank ``f · (n − 1)``.  Passes 2 and 3 start again from all
    pixels and keep ``|v − mean| ≤ 3 · sd``, with the mean and ``sd`` (by ``n − 1``) of the pass
    before; bounds are inclusive.  This is the ``MEANCLIP`` of LSST's statistics with its default
    three passes.
    """
    if good is not None and good.shape != values.shape:
        raise ArgumentError(
            f"values and good must have the same shape; got {values.shape} and {good.shape}."
        )
    if values.size <= _FEW:
        ordered = np.sort(_usable(values, good))
        if ordered.size == 0:
            nan = float("nan")
            return ClippedMean(nan, nan, nan, (nan,) * 3, (nan,) * 3, (0,) * 3)
        quartiles = [_between(ordered, fraction * (ordered.size - 1)) for fraction in _QUARTILES]
        return _clipped(_Blocks(ordered, None), quartiles)
    blocks = _Blocks(values, good)
    return _clipped(blocks, _quartiles(blocks))


def _clipped(blocks: _Blocks, quartiles: list[float]) -> ClippedMean:
    """Three passes of clipping; each starts again from all values."""
    lower, median, upper = quartiles
    center, half_width = median, 3 * IQR_TO_SIGMA * (upper - lower)
    centers, half_widths, counts = [], [], []
    for _ in range(3):
        centers.append(center)
        half_widths.append(half_width)
        count, total, square = blocks.sums_within(center, half_width)
        counts.append(count)
        if count == 0:
            # This happens only if the spread is below the rounding of the mean.
            center = float("nan")
            break
        center += total / count
        # Rounding errors may make it negative.
        square = max(0.0, square - total**2 / count)
        half_width = 3 * math.sqrt(square / (count - 1)) if count > 1 else 0.0
    return ClippedMean(
        center, median, upper - lower, tuple(centers), tuple(half_widths), tuple(counts)
    )


def _usable(values: Array, good: Array | None) -> Array:
    """Values that `_finite` accepts and that are good."""
    use = _finite(values)
    if good is not None:
        use &= good
    used: Array = values[use]
    return used


def _finite(values: Array) -> Array:
    """Values that are finite in single precision, if there are any; else those that are finite."""
    with np.errstate(over="ignore"):
        use = np.isfinite(values.astype(np.float32, copy=False))
    # Variances of images in very small units of flux may all exceed single precision.
    return use if use.any() else np.isfinite(values)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Values that are processed block by block, so that none of them has to be copied.

    Attributes
    ----------
    values, good
        As for `clipped_mean`.
    """

    values: Array
    good: Array | None

    def each(self, work: Callable[[Array, Array], Any]) -> list[Any]:
        """Results of a function of each block's values and the boolean array of those to use."""

        def of_rows(rows: slice) -> Any:
            part = self.values[rows].reshape(-1)
            use = _finite(part)
            if self.good is not None:
                use &= self.good[rows].reshape(-1)
            return work(part, use)

        return each_block(of_rows, self.values.shape)

    def sums_within(self, center: float, half_width: float) -> tuple[int, float, float]:
        """Number of values with ``|v − center| ≤ half_width``, Σ(v − center), Σ(v − center)²."""
        first, last = _ends(self.values.dtype.type, center, half_width)

        def work(part: Array, use: Array) -> tuple[int, float, float]:
            use &= part >= first
            use &= part <= last
            offset = np.subtract(part, center, dtype=np.float64)
            with np.errstate(invalid="ignore"):
                offset *= use  # faster than selecting the values
            total = float(offset.sum())
            # Zero times NaN or infinity is NaN.
            if not math.isfinite(total):
                np.copyto(offset, 0.0, where=~use)
                total = float(offset.sum())
            square = float(np.einsum("i,i->", offset, offset))
            return int(np.count_nonzero(use)), total, square

        parts = self.each(work)
        count, total, square = (sum(column) for column in zip(*parts, strict=True))
        return count, total, square

    def sample(self) -> Array:
        """Usable values of a grid of pixels, sorted."""
        wanted = max(_SAMPLE, self.values.size // 256)
        step = max(1, math.ceil((self.values.size / wanted) ** (1 / self.values.ndim))) | 1
        every = (slice(None, None, step),) * self.values.ndim
        return np.sort(_usable(self.values[every], None if self.good is None else self.good[every]))

    def near(
        self, brackets: list[tuple[Any, Any]]
    ) -> tuple[int, list[tuple[int, int, Array | None]]]:
        """Number of usable values; for every bracket, numbers below and inside, and those inside.

        The values inside are sorted; None if they are many.
        """

        def work(part: Array, use: Array) -> tuple[int, list[tuple[int, int, Array | None]]]:
            found: list[tuple[int, int, Array | None]] = []
            for first, last in brackets:
                below = int(np.count_nonzero((part < first) & use))
                inside = (part >= first) & (part <= last) & use
                number = int(np.count_nonzero(inside))
                found.append((below, number, None if number > part.size // _MANY else part[inside]))
            return int(np.count_nonzero(use)), found

        parts = self.each(work)
        result: list[tuple[int, int, Array | None]] = []
        for i in range(len(brackets)):
            below, number = (sum(found[i][k] for _, found in parts) for k in (0, 1))
            kept = [found[i][2] for _, found in parts]
            many = any(values is None for values in kept)
            result.append((below, number, None if many else np.sort(np.concatenate(kept))))
        return sum(number for number, _ in parts), result

    def order_statistic(self, rank: int) -> float:
        """Value of a rank, counted from 0, by bisection: for brackets with many equal values."""
        low, high = -math.inf, math.inf
        while True:
            pivot = self._inside(low, high)

            def work(part: Array, use: Array, pivot: float = pivot) -> tuple[int, int]:
                return (
                    int(np.count_nonzero((part < pivot) & use)),
                    int(np.count_nonzero((part <= pivot) & use)),
                )

            below, up_to = (sum(column) for column in zip(*self.each(work), strict=True))
            if below <= rank < up_to:
                return pivot
            low, high = (low, pivot) if rank < below else (pivot, high)

    def _inside(self, low: float, high: float) -> float:
        """Median of a sample of the values between two: the first few of each block."""

        def work(part: Array, use: Array) -> Array:
            # A copy: a view would keep the whole array alive.
            return part[(part > low) & (part < high) & use][:_FROM_EACH].copy()

        found = np.concatenate(self.each(work))
        return float(np.sort(found)[found.size // 2])


def _ends(dtype: Any, center: float, half_width: float) -> tuple[Any, Any]:
    """Smallest and largest number of a type with ``|v − center| ≤ half_width``.

    Exact to the rounding of the difference in double precision, so that values can be compared
    in their own precision.
    """
    ends = []
    for side in (-1, 1):
        end = dtype(center + side * half_width)
        while side * (float(end) - center) > half_width:
            end = np.nextafter(end, dtype(-side * np.inf))
        while side * (float(following := np.nextafter(end, dtype(side * np.inf))) - center) <= (
            half_width
        ):
            end = following
        ends.append(end)
    return ends[0], ends[1]


def _quartiles(blocks: _Blocks) -> list[float]:
    """Quartiles by linear interpolation at rank ``f · (n − 1)``.

    A sample brackets them, so that only the values inside the brackets have to be sorted.
    """
    sample = blocks.sample()
    if sample.size == 0:
        used = _usable(blocks.values, blocks.good)
        if used.size == 0:
            return [float("nan")] * 3
        return [_between(np.sort(used), fraction * (used.size - 1)) for fraction in _QUARTILES]
    brackets = [_bracket(sample, fraction) for fraction in _QUARTILES]
    number, near = blocks.near(brackets)
    quartiles = []
    for fraction, bracket, (below, count, inside) in zip(_QUARTILES, brackets, near, strict=True):
        rank = fraction * (number - 1)
        if below <= rank and int(rank) + 1 < below + count:
            if bracket[0] == bracket[1]:
                quartiles.append(float(bracket[0]))
                continue
            if inside is not None:
                quartiles.append(_between(inside, rank - below))
                continue
        first = blocks.order_statistic(int(rank))
        second = blocks.order_statistic(min(int(rank) + 1, number - 1))
        quartiles.append(first + (rank - int(rank)) * (second - first))
    return quartiles


def _bracket(ordered: Array, fraction: float) -> tuple[Any, Any]:
    """Values of a sorted sample that bracket a quantile of all values, but for one in a million."""
    n = ordered.size
    rank = fraction * (n - 1)
    reach = _BRACKET_SIGMAS * math.sqrt(n * fraction * (1 - fraction)) + 1
    return ordered[max(0, int(rank - reach))], ordered[min(n - 1, math.ceil(rank + reach))]


def _between(ordered: Array, rank: float) -> float:
    low = int(rank)
    lower, upper = float(ordered[low]), float(ordered[min(low + 1, ordered.size - 1)])
    return lower + (rank - low) * (upper - lower)


def median_of(plane: Array, use: Array) -> np.floating:
    """Median of the used pixels of a plane.

    Parameters
    ----------
    plane
        ``(ny, nx)``.
    use
        ``(ny, nx)`` boolean: pixels that are used, at least one and none of them NaN.

    Returns
    -------
    median
        ``np.median(plane[use])``, to the last bit.
    """
    return np.mean(middle_values(plane, use))


def middle_values(plane: Array, use: Array) -> Array:
    """Middle one or two values of the used pixels of a plane: their mean is the median.

    Parameters
    ----------
    plane, use
        As for `median_of`.

    Returns
    -------
    values
        ``(1,)`` for an odd number of pixels, ``(2,)`` for an even one.

    Notes
    -----
    A sample brackets them, so that only the values inside the bracket have to be sorted.
    """
    number = int(np.count_nonzero(use))
    ranks = np.unique([(number - 1) // 2, number // 2])
    if number > _FEW:
        low, high = _bracket(np.sort(every_nth(plane, use, _SAMPLE)), 0.5)

        def work(rows: slice) -> tuple[int, int, Array | None]:
            values = used(plane, use, rows)
            inside = (values >= low) & (values <= high)
            count = int(np.count_nonzero(inside))
            many = count > values.size // _MANY
            return int(np.count_nonzero(values < low)), count, None if many else values[inside]

        parts = each_block(work, plane.shape)
        below, inside = sum(part[0] for part in parts), sum(part[1] for part in parts)
        if below <= ranks[0] and ranks[-1] < below + inside:
            if low == high:
                return np.full(len(ranks), low)
            kept = [part[2] for part in parts if part[2] is not None]
            if len(kept) == len(parts):
                near = np.partition(np.concatenate(kept), ranks - below)
                return np.asarray(near[ranks - below])
    values = np.partition(plane[use], ranks)
    return np.asarray(values[ranks])


def half_sample_mode(values: Array) -> float:
    """Mode of some values, by repeated halving of the sample.

    Parameters
    ----------
    values
        ``(n,)``, not empty.

    Returns
    -------
    mode
        Mean of the last sample of at most three values.  Each sample is the narrowest half of the
        one before.
    """
    values = np.sort(values)
    while len(values) > 3:
        half = (len(values) + 1) // 2
        widths = values[half - 1 :] - values[: len(values) - half + 1]
        start = int(np.argmin(widths))
        values = values[start : start + half]
    return float(np.mean(values))


def power_of_two(value: float) -> float:
    """Unit in which a value is near 1; division by it does not round.

    Parameters
    ----------
    value
        Positive.

    Returns
    -------
    unit
        Power of two nearest to the value, in its logarithm; 1 if it is not positive or not finite.
    """
    if not (0 < value < math.inf):
        return 1.0
    return math.ldexp(1.0, round(math.log2(value)))


def high_level(values: Array, usable: Array | None = None) -> float:
    """Level of a plane, if it is so high that single precision would lose some of the noise.

    Parameters
    ----------
    values
        ``(ny, nx)``.
    usable
        ``(ny, nx)`` boolean: pixels that count; None for all.

    Returns
    -------
    level
        Median, a number of the plane's dtype.  0 if it is lower than 1700 times the scatter: then
        rounding to single precision stays below 1e-4 of the scatter.
    """
    step = max(1, math.isqrt(values.size // ENOUGH_PIXELS))
    sample = values[::step, ::step]
    use = np.isfinite(sample)
    if usable is not None:
        use &= usable[::step, ::step]
    sample = sample[use]
    if not sample.size or sample.dtype.kind != "f":
        return 0.0
    scatter, level = robust_sigma(sample), float(np.percentile(sample, 50, method="nearest"))
    half_a_step = 0.5 * float(np.finfo(np.float32).eps) * abs(level)
    return level if scatter > 0 and half_a_step > _LOST_DIGITS * scatter else 0.0


def robust_sigma(values: Array, *, step: Array | float | None = None) -> float:
    """Standard deviation from the inter-quartile range, blind to outliers.

    Parameters
    ----------
    values
        Any shape, finite.
    step
        Step to whose multiples the values were rounded, before something smooth was subtracted:
        a number, or one for each value.

    Returns
    -------
    sigma
        ``0.7413 · IQR``, with the noise of rounding; NaN if there is no value.  With a step, 0 if
        no value lies beyond the edge near a quartile.

    Notes
    -----
    Quartiles of rounded values are off by up to half a step.  But rounding does not change the
    number of values below an edge between two steps.  These numbers near both quartiles, as normal
    deviates, give the standard deviation before rounding; the variance of rounding, step²/12
    (Sheppard), is added.  If edges lie at different places after the subtraction, their scatter
    is part of that noise already, and is taken off.
    """
    if values.size == 0:
        return float("nan")
    lower, upper = np.percentile(values, [25, 75])
    if step is None:
        return IQR_TO_SIGMA * float(upper - lower)
    values = values.astype(np.float64)
    rounding = float(np.mean(np.square(step))) / 12
    places, spreads, deviates = [], [], []
    for quartile, side in ((lower, -0.5), (upper, 0.5)):
        # The edge nearest to half a step outside the quartile.
        edges = values + (np.rint((quartile - values) / step + side - 0.5) + 0.5) * step
        below = np.count_nonzero(values < edges) / values.size
        if not 0 < below < 1:
            return 0.0
        places.append(float(edges.mean()))
        spreads.append(float(edges.var()))
        deviates.append(float(scipy.special.ndtri(below)))
    before = (places[1] - places[0]) / (deviates[1] - deviates[0])
    return math.sqrt(max(0.0, before**2 + rounding - sum(spreads) / 2))


def rounding_step(values: Array) -> float | None:
    """Step to whose multiples values were rounded.

    Parameters
    ----------
    values
        ``(n,)``.

    Returns
    -------
    step
        Positive step, in the unit of the values: the smallest distance between values that repeat
        in a sample, if all finite values are whole numbers of steps apart; else 1 for whole
        numbers.  None if values are not rounded, or so finely that it does not matter.

    Notes
    -----
    A detector's whole numbers have such steps after division by a gain, an exposure time or a flux
    scale, and after subtraction of a constant.
    """
    sample = values[:: max(1, values.size // _TRIED)].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return None
    whole = _are_whole(sample) and _are_whole(values)
    different, numbers = np.unique(sample, return_counts=True)
    # Rare values in the wings are far apart, and would hide the step.
    usual = different[numbers > 2]
    if 1 < usual.size < sample.size / _REPEATED:
        step = _precise_step(different - usual[0], float(np.diff(usual).min()))
        blocks = (values[i : i + _BLOCK] for i in range(0, values.size, _BLOCK))
        known = whole and step == 1
        if known or all(
            _are_steps(each, usual[0], step) for each in itertools.chain([sample], blocks)
        ):
            return step
    return 1.0 if whole else None


def _precise_step(distances: Array, step: float) -> float:
    """Step refined by ever larger distances: a step from near values has their rounding error."""
    for reach in (10, 100, 1000, 10_000):
        near = distances[np.abs(distances) < reach * step]
        numbers = np.rint(near / step)
        if numbers.any():
            step = float(numbers @ near / (numbers @ numbers))
    return step


def _are_whole(values: Array) -> bool:
    return bool(((values == np.rint(values)) | ~np.isfinite(values)).all())


def _are_steps(values: Array, start: float, step: float) -> bool:
    """Whether all finite values are whole numbers of steps from a start, within their precision."""
    precision = np.finfo(values.dtype).eps if values.dtype.kind == "f" else 0.0
    values = values[np.isfinite(values)].astype(np.float64)
    numbers = (values - start) / step
    tolerance = _OFF + precision * (np.abs(values) + abs(start)) / step
    off = np.abs(numbers - np.rint(numbers))
    return bool(((off <= tolerance) & (tolerance < 0.25)).all())


def known_medians(values: Array) -> Array:
    """Median of each row, without NaN.

    Parameters
    ----------
    values
        ``(n, m)``, m at least 1.

    Returns
    -------
    medians
        ``(n,)``; NaN for a row without a value.
    """
    # NaN is sorted to the end; whole rows are sorted far faster than NumPy finds such medians.
    ordered = np.sort(values, axis=1)
    count = np.count_nonzero(~np.isnan(ordered), axis=1)
    row = np.arange(len(ordered))
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, ordered.shape[1] - 1)
    result: Array = (ordered[row, low] + ordered[row, high]) / 2
    return result


def median_deviation(values: Array, *, about: float | None = None) -> float:
    """Standard deviation from the median of absolute deviations, blind to outliers.

    Parameters
    ----------
    values
        Any shape, finite.
    about
        Centre of the deviations; None for the median.

    Returns
    -------
    sigma
        ``1.4826 · median |values − about|``, exact for a Gaussian; NaN if there is no value.
    """
    if values.size == 0:
        return math.nan
    middle = float(np.median(values)) if about is None else about
    return MAD_TO_SIGMA * float(np.median(np.abs(values - middle)))


def clipped_sigma(values: Array) -> float:
    """Standard deviation of values that are not Gaussian, such as counts of few photons.

    Parameters
    ----------
    values
        Any shape, finite, at least one.

    Returns
    -------
    sigma
        Standard deviation without values beyond eight of it, which are removed in up to five
        passes; the limit is wide because counts have long tails.
    """
    for _ in range(_CLIPPING_PASSES):
        kept = np.abs(values - values.mean()) <= _CLIPPED * values.std()
        if kept.all():
            break
        values = values[kept]
    return float(values.std())


def autocorrelation(image: Array, good: Array, max_lag: int) -> Array:
    """Autocorrelation of an image's good pixels at all small lags.

    Parameters
    ----------
    image
        ``(ny, nx)``, zero mean over the good pixels.
    good
        ``(ny, nx)`` boolean.  A pair counts if both of its pixels are good.
    max_lag
        Largest lag on each axis, in pixels.

    Returns
    -------
    correlation
        ``(2·max_lag + 1, 2·max_lag + 1)``, lag (0, 0) = 1 at its centre; NaN at lags
        without a pair.

    Raises
    ------
    ArgumentError
        If the shapes differ or the lag is negative.

    Notes
    -----
    Products are averaged over the pairs that exist, so that masks do not bias the
    result (unlike zero-filling before a transform).  The sums come from products of the spectrum
    of each tile and the spectrum of the tile with its surroundings.  So nothing wraps around, and
    only a few tiles are in memory besides the result.
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
            # The tile itself, within its surroundings.
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


def standard_deviations(chi_square: float, degrees: int) -> float:
    """Chi-square as standard deviations of a Gaussian.

    Parameters
    ----------
    chi_square
        Sum of squares, at least 0.
    degrees
        Degrees of freedom, at least 1.

    Returns
    -------
    deviations
        0 if chi-square is as large as noise alone makes it; negative if smaller.

    Notes
    -----
    Approximation of Wilson and Hilferty 1931.
    """
    width = 2 / (9 * degrees)
    return ((chi_square / degrees) ** (1 / 3) - (1 - width)) / math.sqrt(width)
