"""Clipped means, robust widths and autocorrelations of pixels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft

from .convolution import available_threads
from .errors import ArgumentError

__all__ = [
    "IQR_TO_SIGMA",
    "ClippedMean",
    "autocorrelation",
    "clipped_mean",
    "robust_sigma",
]

type Array = npt.NDArray[Any]

_CHUNK = 1 << 20
_TILE = 256
"""Least side of a tile's grid: its transforms stay in the processor's cache."""

IQR_TO_SIGMA = 0.741301109252802
"""Standard deviation of a Gaussian over its inter-quartile range."""


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
    with np.errstate(over="ignore"):
        use = np.isfinite(values.astype(np.float32, copy=False))
    if good is not None:
        if good.shape != values.shape:
            raise ArgumentError(
                f"values and good must have the same shape; got {values.shape} and {good.shape}."
            )
        use &= good
    used = values[use]
    nan = float("nan")
    if used.size == 0:
        return ClippedMean(nan, nan, nan, (nan,) * 3, (nan,) * 3, (0,) * 3)
    if used.size == 1:
        value = float(used[0])
        return ClippedMean(value, value, 0.0, (value,) * 3, (0.0,) * 3, (1,) * 3)
    # Sorted, every interval is a slice.
    used.sort()
    lower, median, upper = (_quantile(used, fraction) for fraction in (0.25, 0.5, 0.75))
    center, half_width = median, 3 * IQR_TO_SIGMA * (upper - lower)
    centers, half_widths, counts = [], [], []
    for _ in range(3):
        inside = used[_within(used, center, half_width)]
        centers.append(center)
        half_widths.append(half_width)
        counts.append(inside.size)
        if inside.size == 0:
            # Only when the spread is below the rounding of the mean.
            return ClippedMean(
                nan, median, upper - lower, tuple(centers), tuple(half_widths), tuple(counts)
            )
        center = float(inside.mean(dtype=np.float64))
        half_width = 3 * _standard_deviation(inside, center)
    return ClippedMean(
        center, median, upper - lower, tuple(centers), tuple(half_widths), tuple(counts)
    )


def _quantile(ordered: Array, fraction: float) -> float:
    rank = fraction * (ordered.size - 1)
    low = int(rank)
    lower, upper = float(ordered[low]), float(ordered[min(low + 1, ordered.size - 1)])
    return lower + (rank - low) * (upper - lower)


def _within(ordered: Array, center: float, half_width: float) -> slice:
    """Slice of the values with ``|v − center| ≤ half_width``, to the last rounding."""

    def first(beyond: Callable[[float], bool]) -> int:
        low, high = 0, ordered.size
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if beyond(float(ordered[middle])) else (middle + 1, high)
        return low

    return slice(
        first(lambda v: v >= center or center - v <= half_width),
        first(lambda v: v > center and v - center > half_width),
    )


def _standard_deviation(values: Array, mean: float) -> float:
    if values.size < 2:
        return 0.0
    total = 0.0
    for start in range(0, values.size, _CHUNK):
        part = values[start : start + _CHUNK].astype(np.float64)
        part -= mean
        total += float(part @ part)
    return math.sqrt(total / (values.size - 1))


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

    with ThreadPoolExecutor(available_threads()) as pool:
        rows_of_tiles = list(pool.map(work, range(0, ny, step_y)))
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
