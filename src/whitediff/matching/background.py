"""The differential background, from the pixels between the sources."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..polynomials import chebyshev_products, chebyshev_terms
from ..stats import robust_sigma

__all__ = ["fit_background"]

type Array = npt.NDArray[Any]

_CELL = 64
_CLIP = 3.0
_PASSES = 3
_SAMPLE = 1_000_000
_ENOUGH_PIXELS = 4_000_000


def fit_background(difference: Array, free: Array, order: int) -> Array:
    """Fit what a difference leaves between the sources.

    The stamps of a kernel fit cover a small part of the frame.  Filtered with a PSF, the
    noise of a difference averages down tenfold, and the background that they determine is
    then no longer good enough; all source-free pixels together are.

    Parameters
    ----------
    difference
        ``(ny, nx)``, its background subtracted as well as is known.
    free
        ``(ny, nx)`` boolean: source-free, finite pixels.
    order
        Of the Chebyshev polynomials in x and y together; lowered where there are too few
        cells of 64 × 64 pixels with a pixel to use.

    Returns
    -------
    coefficients
        ``(order + 1, order + 1)``; ``[p, q]`` multiplies ``T_p(y) T_q(x)``, x and y from −1
        to 1 between the frame's outer edges; zeros where nothing can be fitted.

    Notes
    -----
    Least squares on the means of cells, clipped at three standard deviations of a pixel.
    """
    coefficients = np.zeros((order + 1, order + 1))
    # Every n-th row determines a polynomial as well as all of them.
    step = max(1, difference.size // _ENOUGH_PIXELS)
    left, free = difference[::step].astype(np.float64), free[::step]
    ny, nx = left.shape
    edges_y, edges_x = _edges(ny, _CELL / step), _edges(nx, _CELL)
    y = (edges_y[:-1] + edges_y[1:]) / ny - 1
    x = (edges_x[:-1] + edges_x[1:]) / nx - 1
    for _ in range(_PASSES):
        values = left[free]
        sample = values[:: max(1, values.size // _SAMPLE)]
        if sample.size < 2:
            return coefficients
        middle, sigma = float(np.median(sample)), robust_sigma(sample)
        use = free & (np.abs(left - middle) <= _CLIP * sigma)
        counts = _cell_sums(use.astype(np.float64), edges_y, edges_x)
        sums = _cell_sums(np.where(use, left, 0), edges_y, edges_x)
        good = counts > 0
        v, u = (grid[good] for grid in np.meshgrid(y, x, indexing="ij"))
        while order and 2 * len(chebyshev_terms(order)) > len(u):
            order -= 1
        root = np.sqrt(counts[good])
        solution, *_ = np.linalg.lstsq(
            chebyshev_products(order, u, v) * root[:, None], sums[good] / root, rcond=None
        )
        more = np.zeros_like(coefficients)
        for (p, q), value in zip(chebyshev_terms(order), solution, strict=True):
            more[p, q] = value
        coefficients += more
        # Clipped around a slope, the first pass is biased by it.
        left -= np.polynomial.chebyshev.chebgrid2d(
            (2 * np.arange(ny) + 1) / ny - 1, (2 * np.arange(nx) + 1) / nx - 1, more
        )
    return coefficients


def _edges(size: int, cell: float) -> Array:
    return np.linspace(0, size, max(1, round(size / cell)) + 1).astype(int)


def _cell_sums(image: Array, edges_y: Array, edges_x: Array) -> Array:
    rows = np.add.reduceat(image, edges_y[:-1], axis=0, dtype=np.float64)
    return np.add.reduceat(rows, edges_x[:-1], axis=1)
