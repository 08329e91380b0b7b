"""The differential background, from the pixels between the sources."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..numerics.polynomials import chebyshev_products, chebyshev_terms
from ..numerics.stats import robust_sigma
from ..numerics.threads import single_threaded_algebra

__all__ = ["CLIP_OF_SKEWED", "HIGHEST_ORDER", "fit_background", "ratio_of_skies"]

type Array = npt.NDArray[Any]

_CELL = 64
_MANY = 100
"""Cells that a frame must hold; in smaller frames, cells are half as wide."""
CLIP_OF_SKEWED, _CLIP = 4.5, 3.0
"""Clipping limits in standard deviations: for pixels in which no source is left, and for others.
At 3 the mean of skewed noise (5 photons) is low by a fiftieth of a standard deviation; at 4.5 the
wings of sources count."""
_PASSES = 3
_EVIDENCE = 10.0
"""Fall of the criterion for which a higher order is taken: very strong evidence."""
HIGHEST_ORDER = 8
"""Order up to which a background is raised."""
_INDEPENDENT = 1e-10
"""Least part of a term, relative to the largest, that no earlier term has."""
_SAMPLE = 100_000
_ENOUGH_PIXELS = 2_000_000


@single_threaded_algebra()
def fit_background(
    difference: Array,
    free: Array,
    order: int,
    *,
    start: Array | None = None,
    highest: int = 0,
    clip: float = _CLIP,
) -> Array:
    """Fit the background that a difference has between the sources.

    The stamps of a kernel fit cover a small part of the frame.  Filtered with a PSF, the
    noise of a difference averages down tenfold, and the background from the stamps is then no
    longer good enough.  The background from all source-free pixels is.

    Parameters
    ----------
    difference
        ``(ny, nx)``.
    free
        ``(ny, nx)`` boolean: source-free pixels; those that are not finite do not count.
    order
        Order of the Chebyshev polynomials in x and y together; lowered where too few cells of
        64 × 64 pixels (32 × 32 in small frames) have a usable pixel.
    start
        ``(m, n)`` coefficients of the background that is known already.
    highest
        Order up to which the order is raised where the cells ask for it.
    clip
        Robust standard deviations from the median up to which pixels count.

    Returns
    -------
    coefficients
        ``(n + 1, n + 1)``, n the order that was fitted, or the start's if that is higher;
        ``[p, q]`` multiplies ``T_p(y) T_q(x)``, x and y from −1 to 1 between the frame's outer
        edges.  The start, or zeros, where nothing can be fitted.

    Notes
    -----
    Clipped least squares on the means of cells.  A higher order is taken where it lowers
    ``n ln(χ²) + ln(n)·terms`` by 10, n the number of cells (Schwarz 1978; Kass & Raftery 1995).
    The criterion is for noise of unknown scale, since a convolved image has correlated noise.
    """
    known = 0 if start is None else max(start.shape) - 1
    largest = max(order, highest, known)
    coefficients = np.zeros((largest + 1, largest + 1))
    if start is not None:
        coefficients[: start.shape[0], : start.shape[1]] = start
    cells = _Cells.of(difference.shape)
    step = cells.step
    ny, nx = difference.shape
    dtype = np.result_type(difference.dtype, np.float32)
    v = np.polynomial.chebyshev.chebvander((2 * np.arange(ny)[::step] + 1) / ny - 1, largest)
    u = np.polynomial.chebyshev.chebvander((2 * np.arange(nx) + 1) / nx - 1, largest)

    def background(values: Array) -> Array:
        return (v @ values).astype(dtype) @ u.T.astype(dtype)

    left = difference[::step] - background(coefficients)
    free = free[::step] & np.isfinite(left)
    taken = max(order, known)
    for attempt in range(2 * _PASSES):
        values = left[free]
        # A sample suffices for median and scatter, which are slow on millions of pixels.
        sample = values[:: max(1, values.size // _SAMPLE)]
        if sample.size < 2:
            break
        middle, sigma = float(np.median(sample)), robust_sigma(sample)
        use = free & (np.abs(left - dtype.type(middle)) <= clip * sigma)
        counts, sums = cells.sums(use), cells.sums(np.where(use, left, 0))
        good = counts > 0
        at_y, at_x = cells.places(good)
        while order and 2 * len(chebyshev_terms(order)) > len(at_x):
            order -= 1
        root = np.sqrt(counts[good])
        values = sums[good] / root
        if attempt == _PASSES:
            raised = _raised_order(order, highest, at_x, at_y, root, values)
            if raised == order:
                break
            order = raised
            taken = max(order, taken)
        solution = _solved(order, at_x, at_y, root, values)
        more = np.zeros_like(coefficients)
        for (p, q), value in zip(chebyshev_terms(order), solution, strict=True):
            more[p, q] = value
        coefficients += more
        # Pixels clipped around a slope bias the first pass: later ones fit what it left.
        left -= background(more)
    return coefficients[: taken + 1, : taken + 1]


def ratio_of_skies(source: Array, target: Array, free: Array, order: int) -> float:
    """Measure how many times the source's sky is contained in the target's sky.

    Parameters
    ----------
    source, target
        ``(ny, nx)``.
    free
        ``(ny, nx)`` boolean: source-free pixels; those that are not finite do not count.
    order
        Order of the Chebyshev polynomials that each image may have on its own.

    Returns
    -------
    ratio
        Coefficient of the source in a fit of the target by the source and polynomials; NaN if
        too few cells have a usable pixel.

    Notes
    -----
    Least squares on the means of cells, as in `fit_background`.  The same pixels of both images
    count, so that a source that is cut out of one image does not change the ratio.
    """
    cells = _Cells.of(source.shape)
    source, target = source[:: cells.step], target[:: cells.step]
    use = free[:: cells.step] & np.isfinite(source) & np.isfinite(target)
    counts = cells.sums(use)
    good = counts > 0
    at_y, at_x = cells.places(good)
    if 2 * len(chebyshev_terms(order)) > len(at_x):
        return math.nan
    root = np.sqrt(counts[good])
    first, second = (cells.sums(np.where(use, image, 0))[good] / root for image in (source, target))
    own = chebyshev_products(order, at_x, at_y) * root[:, None]
    # A source without polynomials is orthogonal to the target's: these need not be taken off.
    first = first - own @ np.linalg.lstsq(own, first, rcond=None)[0]
    square = float(first @ first)
    return float(first @ second) / square if square > 0 else math.nan


@dataclasses.dataclass(frozen=True)
class _Cells:
    """Rectangular cells of an image; only every n-th row counts.

    Attributes
    ----------
    step
        n: every n-th row determines a polynomial as well as all rows.
    edges_y, edges_x
        ``(cells + 1,)``: first counted row, or column, of each cell, and one beyond the last.
    y, x
        ``(cells,)`` middles of the cells, from −1 to 1 between the frame's outer edges.
    """

    step: int
    edges_y: Array
    edges_x: Array
    y: Array
    x: Array

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> _Cells:
        ny, nx = shape
        step = max(1, ny * nx // _ENOUGH_PIXELS)
        rows = np.arange(ny)[::step]
        cell = _CELL if ny * nx >= _MANY * _CELL**2 else _CELL // 2
        edges_y, edges_x = _edges(len(rows), cell / step), _edges(nx, cell)
        y = 2 * _means(rows + 0.5, edges_y) / ny - 1
        x = 2 * _means(np.arange(nx) + 0.5, edges_x) / nx - 1
        return cls(step, edges_y, edges_x, y, x)

    def sums(self, image: Array) -> Array:
        """Sums over the cells of an image, given by its every n-th row."""
        # Sum along columns first: these sums run over long, contiguous rows.
        rows = [
            image[start:stop].sum(axis=0, dtype=np.float64)
            for start, stop in itertools.pairwise(self.edges_y)
        ]
        return np.add.reduceat(np.stack(rows), self.edges_x[:-1], axis=1)

    def places(self, good: Array) -> tuple[Array, Array]:
        """Middles of the good cells: y, x."""
        y, x = np.meshgrid(self.y, self.x, indexing="ij")
        return y[good], x[good]


def _solved(order: int, x: Array, y: Array, root: Array, values: Array) -> Array:
    solution: Array
    solution, *_ = np.linalg.lstsq(
        chebyshev_products(order, x, y) * root[:, None], values, rcond=None
    )
    return solution


def _raised_order(order: int, highest: int, x: Array, y: Array, root: Array, values: Array) -> int:
    """Order, at least the given one, that the means of cells ask for."""
    best, lowest = order, np.inf
    while highest > order and 3 * len(chebyshev_terms(highest)) > len(x):
        highest -= 1
    # The terms of an order come before those of the next: one basis serves all orders.
    basis, triangle = np.linalg.qr(chebyshev_products(max(order, highest), x, y) * root[:, None])
    size = np.abs(np.diagonal(triangle))
    explained = np.cumsum(np.where(size > _INDEPENDENT * size.max(), (values @ basis) ** 2, 0.0))
    square = float(values @ values)
    for tried in range(order, highest + 1):
        terms = len(chebyshev_terms(tried))
        left = square - float(explained[terms - 1])
        criterion = len(x) * np.log(max(left, 1e-300)) + terms * np.log(len(x))
        if criterion < lowest - (_EVIDENCE if tried > order else 0):
            best, lowest = tried, criterion
    return best


def _means(values: Array, edges: Array) -> Array:
    return np.add.reduceat(values, edges[:-1]) / np.diff(edges)


def _edges(size: int, cell: float) -> Array:
    return np.linspace(0, size, max(1, round(size / cell)) + 1).astype(int)
