"""An image above its background, in units of its noise, as all searches for defects use it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..noise.sources import unstepped
from ..numerics import planes
from ..numerics.stats import power_of_two
from ..numerics.threads import in_threads

__all__ = ["BRIGHT", "CLIP", "LOW", "MARGIN", "SEGMENT", "Surface", "surface"]

type Array = npt.NDArray[Any]

MARGIN = 2
"""Width of the margin around the frame, pixels, in which its edges are repeated."""

SEGMENT = 32
"""Pixels along a column or row that make one sum."""

CLIP = 3.0
"""Sigma at which pixels are clipped before they are summed, so that a source makes no line."""

BRIGHT = 5.0
"""Sigma above the background from which a pixel may be a source or a cosmic ray."""

LOW = 2.5
"""Sigma below the background from which a pixel may belong to a dead cluster."""

_BESIDE = (-8, -5, 5, 8)
"""Steps along both axes, pixels, to places whose variance is compared, beyond bad clusters."""

_ONES = np.ones(SEGMENT, np.float32)

_CELL = 64
_SAMPLED = 4
_ROWS = 32
_UNIT_ROWS = 64
_UNITS = 1e-12, 1e12
"""Range of an image's noise in which single precision holds image and variance."""

_QUANTILES = (15.87, 40.0)
"""Percentiles of the pixels.  The second is the background, a little low on purpose: sources push a
median up, and with too high a background stars look sharper than they are."""

_BELOW = 0.7466
"""Standard deviations between those quantiles of a Gaussian."""


@dataclasses.dataclass(frozen=True)
class Surface:
    """An image above its background.

    Attributes
    ----------
    flux
        ``(ny + 4, nx + 4)`` float32: the image less its background, with its edges repeated in a
        margin of `MARGIN` pixels; NaN where there is no measurement.
    variance
        ``(ny, nx)`` variance plane that came with the image.
    factor
        Factor that brings the variance plane to the scatter.
    bright
        ``(n,)`` indices into the raveled flux of pixels above 5 sigma.
    bright_variance
        ``(n,)`` float32: variance of the bright pixels times `factor`.
    low
        Indices into the raveled flux of pixels below −2.5 sigma.
    bin
        Side of the squares of `binned`, pixels.
    binned, counted
        ``(ny // bin, nx // bin)`` float32: sums of the significance, clipped at 3 sigma, over
        squares, and numbers of pixels that count in them.
    columns, columns_counted
        ``(ny // 32, nx)``: sums and numbers over 32 rows of each column.
    rows, rows_counted
        ``(ny, nx // 32)``: sums and numbers over 32 columns of each row.
    """

    flux: Array
    variance: Array
    factor: float
    bright: Array
    bright_variance: Array
    low: Array
    bin: int
    binned: Array
    counted: Array
    columns: Array
    columns_counted: Array
    rows: Array
    rows_counted: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the image."""
        ny, nx = self.variance.shape
        return ny, nx

    @property
    def width(self) -> int:
        """Length of a row of `flux`, by which raveled indices step from row to row."""
        return int(self.flux.shape[1])

    def unpadded(self, index: Array) -> Array:
        """Convert indices into the raveled `flux` to indices into the raveled image.

        Parameters
        ----------
        index
            ``(n,)`` indices into `flux`, outside the margin.

        Returns
        -------
        index
            ``(n,)`` indices into the image.
        """
        row, column = np.divmod(index, self.width)
        result: Array = (row - MARGIN) * self.variance.shape[1] + (column - MARGIN)
        return result

    def variance_at(self, index: Array) -> Array:
        """Variance of pixels, brought to the scatter.

        Parameters
        ----------
        index
            ``(n,)`` indices into the raveled `flux`, outside the margin.

        Returns
        -------
        variance
            ``(n,)`` float32: at least the usual variance of pixels five or more away, since a plane
            made from few photons is smallest where there are few by chance.
        """
        row, column = (at - MARGIN for at in np.divmod(index, self.width))
        ny, nx = self.variance.shape
        around = [
            self.variance[np.clip(row + dy, 0, ny - 1), np.clip(column + dx, 0, nx - 1)]
            for dy in _BESIDE
            for dx in _BESIDE
        ]
        with np.errstate(invalid="ignore"):
            known = np.isfinite(around) & (np.array(around) > 0)
        # Mean of the middle half, so that a source or a defect among them has no effect.
        usual = np.sort(np.where(known, around, 0), axis=0)[4:12].mean(axis=0)
        values = np.fmax(self.variance[row, column], usual).astype(np.float32)
        return values * np.float32(self.factor)


def surface(image: Array, variance: Array, unusable: Array) -> Surface:
    """Subtract an image's background, and summarise it in units of its noise.

    Parameters
    ----------
    image
        ``(ny, nx)`` image.
    variance
        ``(ny, nx)`` variance, right up to a factor.
    unusable
        ``(ny, nx)`` boolean: pixels without a measurement.

    Returns
    -------
    surface
        `Surface`.
    """
    ny, nx = image.shape
    image, variance = _in_range(image, variance)
    background, factor = _background(image, variance, unusable)
    left, fraction = _between(nx, background.shape[1])
    lines = background[:, left] * (1 - fraction) + background[:, left + 1] * fraction
    above, below = _between(ny, background.shape[0])
    steps = np.diff(lines, axis=0)
    bin_side = 2 if max(ny, nx) <= 512 else 4 if max(ny, nx) <= 2048 else 8
    flux = planes.empty((ny + 2 * MARGIN, nx + 2 * MARGIN), np.float32)
    scale = np.float32(factor)

    def work(start: int) -> tuple[Array, ...]:
        part = slice(start, min(start + _ROWS, ny))
        level = steps[above[part]]
        level *= below[part, None]
        level += lines[above[part]]
        inside = flux[part.start + MARGIN : part.stop + MARGIN]
        values = inside[:, MARGIN:-MARGIN]
        np.subtract(image[part].astype(np.float32, copy=False), level, out=values)
        with np.errstate(over="ignore"):
            noise = np.multiply(variance[part], scale, dtype=np.float32)
        # The level is no longer needed, and its memory is in the processor's cache.
        signal = level
        with np.errstate(invalid="ignore", divide="ignore"):
            np.sqrt(noise, out=signal)
            np.reciprocal(signal, out=signal)
            bad = unusable[part] | ~(signal > 0)
            bad |= ~np.isfinite(values)
            signal *= values
        whole = not bad.any()
        if not whole:
            values[bad] = np.nan
            signal[bad] = 0
        inside[:, :MARGIN], inside[:, -MARGIN:] = values[:, :1], values[:, -1:]
        bright, low = np.flatnonzero(signal > BRIGHT), np.flatnonzero(signal < -LOW)
        places = [
            at + at // nx * (2 * MARGIN) + ((part.start + MARGIN) * (nx + 2 * MARGIN) + MARGIN)
            for at in (bright, low)
        ]
        np.clip(signal, -CLIP, CLIP, out=signal)
        sums = _sums(signal, bin_side)
        counts = [np.float32(0)] * 3 if whole else _sums((~bad).astype(np.float32), bin_side)
        return *places, *sums, *counts, np.array(whole), noise.ravel()[bright]

    found = in_threads(work, range(0, ny, _ROWS))
    flux[:MARGIN], flux[-MARGIN:] = flux[MARGIN], flux[-MARGIN - 1]

    def joined(which: int) -> Array:
        return np.concatenate([piece[which] for piece in found])

    def joined_counts(which: int, full: int) -> Array:
        return np.concatenate(
            [
                np.full(piece[which].shape, full, np.float32)
                if piece[8]
                else piece[which + 3]
                for piece in found
            ]
        )  # fmt: skip

    return Surface(
        flux=flux,
        variance=np.ascontiguousarray(variance),
        factor=factor,
        bright=joined(0),
        bright_variance=joined(9),
        low=joined(1),
        bin=bin_side,
        binned=joined(2),
        counted=joined_counts(2, bin_side**2),
        columns=joined(3),
        columns_counted=joined_counts(3, SEGMENT),
        rows=joined(4),
        rows_counted=joined_counts(4, SEGMENT),
    )


def _sums(plane: Array, side: int) -> list[Array]:
    """Sums over whole squares, whole segments of columns and whole segments of rows."""
    ny, nx = plane.shape
    tall, wide = ny // side, nx // side
    lines = plane[: tall * side].reshape(tall, side, nx)
    lines = lines.sum(axis=1)
    squares = lines[:, : wide * side : side].copy()
    for step in range(1, side):
        squares += lines[:, step : wide * side : side]
    segments = nx // SEGMENT
    # A product with ones takes an eighth of the time of a sum over the last axis.
    rows = plane[:, : segments * SEGMENT].reshape(ny, segments, SEGMENT) @ _ONES
    columns = lines.sum(axis=0)[None] if ny == SEGMENT else np.zeros((0, nx), np.float32)
    return [squares, columns, rows]


def _in_range(image: Array, variance: Array) -> tuple[Array, Array]:
    """Image and variance in a unit in which single precision holds both."""
    sample = variance[:: max(1, variance.shape[0] // _UNIT_ROWS)]
    with np.errstate(invalid="ignore"):
        sample = sample[np.isfinite(sample) & (sample > 0)]
    unit = power_of_two(math.sqrt(float(np.median(sample)))) if sample.size else 1.0
    if _UNITS[0] < unit < _UNITS[1]:
        return image, variance
    return (image / unit).astype(np.float32), (variance / unit / unit).astype(np.float32)


def _background(image: Array, variance: Array, unusable: Array) -> tuple[Array, float]:
    """Background of cells, float32, and the squared scatter below it over the variance."""
    step = slice(_SAMPLED // 2, None, _SAMPLED) if min(image.shape) >= 2 * _CELL else slice(None)
    # Quantiles of whole numbers are whole, too coarse where the noise is about one.
    sample = unstepped(image[step, step].astype(np.float32))
    with np.errstate(invalid="ignore", over="ignore"):
        noise = variance[step, step].astype(np.float32)
        sample[unusable[step, step] | ~np.isfinite(sample) | ~(noise > 0)] = np.nan
    cells = [max(1, round(n / _CELL)) for n in image.shape]
    edges = [np.linspace(0, n, k + 1).astype(int) for n, k in zip(sample.shape, cells, strict=True)]

    columns = edges[1][:-1, None] + np.arange(np.diff(edges[1]).max())
    there = columns < edges[1][1:, None]
    columns = np.minimum(columns, sample.shape[1] - 1)

    def work(j: int) -> tuple[Array, Array]:
        rows = slice(edges[0][j], edges[0][j + 1])
        # One line for each cell, with its pixels in the order of their rows.
        values, scatter = (
            plane[rows].take(columns, axis=1).swapaxes(0, 1).reshape(len(columns), -1)
            for plane in (sample, noise)
        )
        inside = np.repeat(there[:, None], rows.stop - rows.start, axis=1).reshape(values.shape)
        good = inside & ~np.isnan(values)
        number = np.count_nonzero(good, axis=1)
        values[~good] = np.nan
        values.sort(axis=1)
        # Every fourth good pixel suffices for the median of the variance.
        scatter[~good | (np.cumsum(good, axis=1) % 4 != 1)] = np.nan
        scatter.sort(axis=1)
        line, chosen = np.arange(len(columns)), (number + 3) // 4
        low, middle = (values[line, (number * q / 100).astype(int)] for q in _QUANTILES)
        typical = (scatter[line, np.maximum(chosen - 1, 0) // 2] + scatter[line, chosen // 2]) / 2
        ratio = ((middle - low) / np.float32(_BELOW)) ** 2 / typical
        few = number < 0.2 * np.count_nonzero(inside, axis=1)
        level = middle.astype(float)
        ratio = ratio.astype(float)
        level[few], ratio[few] = np.nan, np.nan
        return level, ratio

    pieces = in_threads(work, range(cells[0]))
    level, ratio = (np.stack([piece[which] for piece in pieces]) for which in (0, 1))
    known = np.isfinite(level)
    if not known.any():
        return np.zeros([max(n, 2) for n in level.shape], np.float32), 1.0
    factor = float(np.median(ratio[known]))
    level[~known] = np.median(level[known])
    # The interpolation needs two cells on each axis.
    level = np.pad(level, [(0, int(n == 1)) for n in level.shape], mode="edge")
    return level.astype(np.float32), factor if factor > 0 and math.isfinite(factor) else 1.0


def _between(size: int, cells: int) -> tuple[Array, Array]:
    """Cell whose middle is left of each pixel, and the pixel's fraction of the way to the next."""
    # Beyond the outermost middles, fractions below 0 and above 1 extrapolate.
    position = (np.arange(size) + 0.5) / size * cells - 0.5
    left = np.clip(np.floor(position).astype(int), 0, cells - 2)
    return left, (position - left).astype(np.float32)
