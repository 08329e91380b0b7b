"""Noise that differs from one part of an image to another, measured on the image alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics.stats import robust_sigma

__all__ = ["relative_variance"]

type Array = npt.NDArray[Any]

_CELL = 32
_LEAST_FREE = 0.2
"""Share of a cell's pixels from which its scatter can be measured."""
_FEWEST_CELLS = 16
_VARIES = 1.5
"""Ratio of the variances of the noisiest and the quietest fiftieth of the cells, from which noise
differs over the image: in white noise they differ by a fifth."""


def relative_variance(image: Array, free: Array, usable: Array) -> Array | None:
    """Variance of pixels, relative to the usual one, where it differs by more than half.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    free
        ``(ny, nx)`` boolean: source-free pixels to measure on.
    usable
        ``(ny, nx)`` boolean: pixels that hold a measurement.  They are used in cells with too few
        free pixels: the largest noise is taken for sources.

    Returns
    -------
    relative
        ``(ny, nx)`` float32, of median 1 over the cells; None where the noise is much the same
        everywhere, or too few cells can be measured.

    Notes
    -----
    In cells of 32 pixels, the scatter of (a − b − c + d)/2 over 2 × 2 pixels is measured: sources
    and backgrounds cancel in it.  The median over each cell and its neighbours keeps the edges
    between depths.  Between the cells' middles the variance is linear.
    """
    ny, nx = image.shape
    rows, columns = (max(1, round(n / _CELL)) for n in (ny, nx))
    if rows * columns < _FEWEST_CELLS:
        return None
    edges = [np.linspace(0, n, k + 1).astype(int) for n, k in ((ny, rows), (nx, columns))]
    scatter = np.full((rows, columns), np.nan)
    for i, j in np.ndindex(rows, columns):
        cell = np.s_[edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]]
        values = image[cell]
        left = values[1:, 1:] - values[:-1, 1:] - values[1:, :-1] + values[:-1, :-1]
        for use in (free[cell], usable[cell]):
            four = use[1:, 1:] & use[:-1, 1:] & use[1:, :-1] & use[:-1, :-1]
            if four.sum() >= _LEAST_FREE * four.size:
                scatter[i, j] = robust_sigma(left[four])
                break
    known = scatter > 0
    if known.sum() < max(_FEWEST_CELLS, rows * columns // 4):
        return None
    # A cell that cannot be measured takes the value of the nearest one.
    nearest = scipy.ndimage.distance_transform_edt(
        ~known, return_distances=False, return_indices=True
    )
    smooth = scipy.ndimage.median_filter(scatter[tuple(nearest)], 3, mode="nearest") ** 2
    low, high = np.quantile(smooth[known], (0.02, 0.98))
    if high < _VARIES * low:
        return None
    smooth /= np.median(smooth[known])
    between = [
        np.stack([np.interp(np.arange(n), (at[1:] + at[:-1] - 1) / 2, one) for one in np.eye(k)], 1)
        for n, k, at in ((ny, rows, edges[0]), (nx, columns, edges[1]))
    ]
    relative: Array = (between[0] @ smooth).astype(np.float32) @ between[1].T.astype(np.float32)
    return relative
