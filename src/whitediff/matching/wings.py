"""Light in wings beyond a kernel's square, which the kernel's sum lacks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics import fourier
from ..numerics.polynomials import chebyshev_products
from ..numerics.stats import median_deviation

__all__ = ["sum_beyond"]

type Array = npt.NDArray[Any]

_BINS, _BINS_OF_LARGE, _LARGE = 8, 4, 1 << 21
"""Bins along a kernel's side, for images of fewer than 2²¹ pixels and of more; beyond the kernel,
wings are smooth enough for such bins."""
_SLOPE = 11 / 3
"""Power by which wings fall far out: that of Kolmogorov turbulence."""
_REACH = 12.0
"""Radius that wings reach, full widths at half maximum."""
_BRIGHT, _CHANGED = 10.0, 5.0
"""Standard deviations from which a peak's residual outweighs wings, and from which a bin's residual
is a change."""
_BLOCKS = 4
"""Blocks along an axis; each block is left out in turn for the error."""
_FEWEST = 200
"""Least number of bins."""
_LEAST_SHARE = 0.5
"""Least share of good pixels in a bin."""
_RINGS = (1.7, 3.0)
"""Radii, in halves of the kernel's side, at which wings are cut into rings, each with an amplitude
of its own: how fast wings fall is not known."""
_USUAL = (0.012, 0.005, 0.004)
"""Usual shares of a kernel's sum in these rings: Moffat profiles of beta 2.5 have 0.013, 0.005 and
0.002, turbulence 0.003 each."""


def sum_beyond(
    source: Array,
    target: Array,
    bad: Array,
    kernel: Array,
    *,
    skies: tuple[Array, Array],
    fwhm: float,
) -> tuple[float, float]:
    """Light of the source that the target has beyond the kernel's square.

    Parameters
    ----------
    source, target
        ``(ny, nx)`` images to be convolved, and to be matched.
    bad
        ``(ny, nx)`` boolean: pixels of either image that do not count.
    kernel
        ``(k, k)`` kernel in the middle of the frame.
    skies
        Chebyshev matrices of the backgrounds of source and target.
    fwhm
        Full width at half maximum of the wider PSF, pixels.

    Returns
    -------
    wing, error
        Light to add to the kernel's sum, and its standard deviation; (0, the usual wings) where
        there are too few pixels.

    Notes
    -----
    Wings follow ``(1 + r²/FWHM²)^(−11/6)`` (Racine 1996, PASP 108, 699, for their slope).  The
    residual target − κ⊗source is regressed on the source convolved with rings of wings outside of
    the kernel's square, and on a polynomial of order 2; the result is weighed against the usual
    wings.
    """
    side = max(1, round(len(kernel) / (_BINS if source.size < _LARGE else _BINS_OF_LARGE)))
    share = _binned(~bad, side)
    ny, nx = share.shape
    v, u = (
        2 * (np.arange(n) + 0.5) * side / whole - 1
        for n, whole in zip((ny, nx), bad.shape, strict=True)
    )
    first, second = (
        _binned(np.where(bad, 0, image), side) / np.maximum(share, _LEAST_SHARE)
        - np.polynomial.chebyshev.chebgrid2d(v, u, sky)
        for image, sky in zip((source, target), skies, strict=True)
    )
    for plane in (first, second):
        plane[share < _LEAST_SHARE] = 0
    half = len(kernel) // 2
    offset = np.arange(-math.ceil(_REACH * fwhm), math.ceil(_REACH * fwhm) + 1)
    square = offset[:, None] ** 2 + offset**2
    inside = np.abs(offset) <= half
    reach = half * np.array([0.0, *_RINGS, math.inf])
    wings, shares = [], []
    for (least, most), share_of_ring in zip(itertools.pairwise(reach**2), _USUAL, strict=True):
        wing = (1 + square / fwhm**2) ** (-_SLOPE / 2)
        wing[(square > (_REACH * fwhm) ** 2) | (square < least) | (square >= most)] = 0
        wing[np.ix_(inside, inside)] = 0
        if wing.any():
            wings.append(wing / wing.sum())
            shares.append(share_of_ring)
    if not wings:
        # The kernel reaches farther than wings do.
        return 0.0, 0.0
    usual = np.array(shares) * abs(float(kernel.sum()))
    left = second - fourier.convolution(first, _binned_kernel(kernel, side), same=True)
    beyond = [fourier.convolution(first, _binned_kernel(wing, side), same=True) for wing in wings]
    smooth = scipy.ndimage.gaussian_filter(first, 1.0)
    # Within a kernel's reach of a bright source, its own residual outweighs wings.
    peaks = smooth == scipy.ndimage.maximum_filter(smooth, 3)
    peaks &= smooth > _BRIGHT * median_deviation(smooth)
    away = np.full(share.shape, np.inf)
    if peaks.any():
        away = side * scipy.ndimage.distance_transform_edt(~peaks)
    use = (share >= _LEAST_SHARE) & (away > half)
    use &= ~_grown(np.abs(left - np.median(left)) > _CHANGED * median_deviation(left))
    edge = math.ceil(half / side) + 1
    inner = np.zeros_like(use)
    inner[edge:-edge, edge:-edge] = True
    use &= inner
    y, x = np.nonzero(use)
    if len(y) < _FEWEST:
        return 0.0, float(np.sqrt((usual**2).sum()))
    unit = max(float(np.abs(beyond).max()), 1e-300)
    terms = chebyshev_products(2, u[x], v[y])
    columns = np.column_stack([terms, *(each[y, x] / unit for each in beyond), left[y, x]])
    block = (_BLOCKS * y // ny) * _BLOCKS + _BLOCKS * x // nx
    grams = np.array([columns[block == k].T @ columns[block == k] for k in range(_BLOCKS**2)])
    total = grams.sum(axis=0)

    def amplitudes(gram: Array) -> Array:
        found = np.linalg.lstsq(gram[:-1, :-1], gram[:-1, -1], rcond=None)[0]
        result: Array = found[-len(wings) :] / unit
        return result

    measured, found = amplitudes(total), np.array([amplitudes(total - gram) for gram in grams])
    noise = (_BLOCKS**2 - 1) * np.atleast_2d(np.cov(found.T, bias=True))
    # Weigh the usual wings, as a prior, against the measured ones, in units of the usual.
    noise /= np.outer(usual, usual)
    gain = np.linalg.solve(noise + np.eye(len(wings)), np.eye(len(wings)))
    error = math.sqrt(float(usual @ (np.eye(len(wings)) - gain) @ usual))
    return float(usual @ gain @ (measured / usual)), error


def _binned(image: Array, side: int) -> Array:
    ny, nx = (n // side for n in image.shape)
    result: Array = image[: ny * side, : nx * side].reshape(ny, side, nx, side).mean(axis=(1, 3))
    return result


def _binned_kernel(kernel: Array, side: int) -> Array:
    """Kernel summed over bins, its middle in the middle of a bin."""
    half = len(kernel) // 2
    bins = np.round(np.arange(-half, half + 1) / side).astype(int)
    bins -= bins[0]
    result = np.zeros((bins[-1] + 1, bins[-1] + 1))
    np.add.at(result, (bins[:, None], bins[None, :]), kernel)
    return result


def _grown(pixels: Array) -> Array:
    result: Array = scipy.ndimage.maximum_filter(pixels, 3)
    return result
