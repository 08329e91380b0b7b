"""Noise that interpolated pixels repeat, and its variance after a filter."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..numerics import fourier, planes
from ..numerics.convolution import convolve_sparse
from ..numerics.interpolation import NEIGHBOUR_REACH, neighbour_weights

__all__ = ["excess_variance"]

type Array = npt.NDArray[Any]

_LEAST_WEIGHT = 0.02
"""Least weight of a neighbour whose noise counts in an interpolated pixel: the rest has a hundredth
of the noise."""

_PRECISION = 1e-3
"""Tolerance of the convolution, over the largest filtered variance of an interpolated pixel."""

_BATCH = 1 << 13
"""Missing pixels whose pairs are in memory at a time."""


def excess_variance(filter_image: Array, variance: Array, missing: Array) -> Array:
    """Variance of a filtered image beyond the variance plane convolved with the squared filter.

    An interpolated pixel repeats the noise of its neighbours, and the filter adds such noise up
    before it is squared.

    Parameters
    ----------
    filter_image
        ``(ky, kx)``, smaller than the image, origin at ``[ky//2, kx//2]``.
    variance
        ``(ny, nx)`` before the filter, image_unit²; missing pixels do not count.
    missing
        ``(ny, nx)`` boolean: pixels that `whitediff.numerics.interpolation.interpolated` replaced.

    Returns
    -------
    excess
        ``(ny, nx)`` float32, image_unit²; negative where interpolation averages noise.

    Notes
    -----
    With independent noise of variance v in the good pixels q, and interpolated pixels
    ``m = Σ_q W_mq q``, the noise has the covariances ``W_mq v_q`` of m with q and
    ``Σ_q W_mq W_nq v_q`` of m with n.  A pair of pixels at the offset d adds its covariance times
    ``Σ_x h(x) h(x − d)``, here spread like h² about the middle of the pair, which is exact for
    Gaussian filters h.  Pixels inside large holes, which are distrusted anyway, are left out.
    """
    pixels, weights = neighbour_weights(missing)
    if not pixels.size:
        return planes.zeros(missing.shape, np.float32)
    weights.data[np.abs(weights.data) < _LEAST_WEIGHT] = 0
    weights.eliminate_zeros()
    known = variance.reshape(-1)[weights.indices].astype(np.float64)
    known[~np.isfinite(known)] = 0
    shared = weights.copy()
    shared.data *= known
    # The variance that the plane is taken to have at a missing pixel: its neighbours' mean.
    own = np.asarray(abs(shared).sum(axis=1)) / np.asarray(abs(weights).sum(axis=1))
    across = weights.T.tocsr()
    pairs = _Pairs(filter_image, missing.shape)
    for start in range(0, pixels.size, _BATCH):
        part = slice(start, start + _BATCH)
        with_good = shared[part].tocoo()
        # These pairs include each missing pixel with itself.
        between = (shared[part] @ across).tocoo()
        pairs.add(pixels[part][with_good.row], with_good.col, 2 * with_good.data)
        pairs.add(pixels[part][between.row], pixels[between.col], between.data)
        pairs.add(pixels[part], pixels[part], -own[part])
    square = filter_image**2
    return convolve_sparse(
        pairs.middles, square, tolerance=_PRECISION * float(own.max() * square.sum())
    )


class _Pairs:
    """Covariances of pairs of pixels, times the filter's correlation, at the pairs' middles.

    Parameters
    ----------
    filter_image
        ``(ky, kx)``.
    shape
        ``(ny, nx)`` of the image.
    """

    def __init__(self, filter_image: Array, shape: tuple[int, ...]) -> None:
        self.middles = planes.zeros(shape, np.float32)
        correlation = fourier.convolution(filter_image, filter_image[::-1, ::-1])
        reach = 2 * NEIGHBOUR_REACH
        size = 2 * reach + 1
        padded = np.pad(correlation, reach) / float((filter_image**2).sum())
        top, left = ((n - size) // 2 for n in padded.shape)
        # Rolled so that negative offsets index from the end.
        self._correlation = np.roll(
            padded[top : top + size, left : left + size], (-reach, -reach), (0, 1)
        ).astype(np.float32)

    def add(self, first: Array, second: Array, covariance: Array) -> None:
        """Add pairs, given as indices of pixels in the flattened image."""
        nx = self.middles.shape[1]
        (y1, x1), (y2, x2) = np.divmod(first, nx), np.divmod(second, nx)
        value = covariance * self._correlation[y2 - y1, x2 - x1] / 4
        flat = self.middles.reshape(-1)
        y, x = y1 + y2, x1 + x2
        # A middle between pixels is shared among the two, or four, around it.
        for down in (y // 2, (y + 1) // 2):
            for right in (x // 2, (x + 1) // 2):
                np.add.at(flat, down * nx + right, value.astype(np.float32))
