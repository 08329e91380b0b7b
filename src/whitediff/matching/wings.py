"""Light that a kernel's square does not reach: what wings make a kernel's sum wrong by."""

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
"""In a kernel's side, beyond which wings are smooth: of images of fewer and of more pixels."""
_SLOPE = 11 / 3
"""Of the logarithmic profile of wings far out, that of Kolmogorov turbulence."""
_REACH = 12.0
"""Full widths at half maximum."""
_BRIGHT, _CHANGED = 10.0, 5.0
"""Standard deviations from which a bin's core counts for more than wings, and has changed."""
_BLOCKS = 4
"""Along an axis, each left out in turn for the error."""
_FEWEST = 200
"""Bins."""
_LEAST_SHARE = 0.5
"""Of a bin's pixels that are good."""
_RINGS = (1.7, 3.0)
"""Halves of the kernel's side between which wings are parted: how fast they fall is not known."""
_USUAL = (0.012, 0.005, 0.004)
"""Of a kernel's sum, what wings in these rings usually hold: Moffat profiles of beta 2.5 have
0.013, 0.005 and 0.002, turbulence 0.003 each."""


def sum_beyond(
    source: Array,
    target: Array,
    bad: Array,
    kernel: Array,
    *,
    skies: tuple[Array, Array],
    fwhm: float,
) -> tuple[float, float]:
    """How much of the light of the source the target has beyond the kernel's square.

    Parameters
    ----------
    source, target
        ``(ny, nx)`` images to be convolved, and to be matched.
    bad
        ``(ny, nx)`` boolean: pixels of either that do not count.
    kernel
        ``(k, k)`` kernel in the middle of the frame.
    skies
        Chebyshev matrices of the backgrounds of source and target.
    fwhm
        Of the wider PSF, pixels.

    Returns
    -------
    wing, error
        To be added to the kernel's sum, and its standard deviation: the regression of target −
        κ⊗source on the source convolved with wings outside of the kernel's square, and a
        polynomial of order 2, weighed against the usual wings; (0, the usual ones) where there
        are too few pixels.

    Notes
    -----
    Wings follow ``(1 + r²/FWHM²)^(−11/6)`` (Racine 1996, PASP 108, 699, for their slope).
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
    wings = []
    for least, most in itertools.pairwise(reach**2):
        wing = (1 + square / fwhm**2) ** (-_SLOPE / 2)
        wing[(square > (_REACH * fwhm) ** 2) | (square < least) | (square >= most)] = 0
        wing[np.ix_(inside, inside)] = 0
        if wing.any():
            wings.append(wing / wing.sum())
    usual = np.array(_USUAL[: len(wings)]) * abs(float(kernel.sum()))
    left = second - fourier.convolution(first, _binned_kernel(kernel, side), same=True)
    beyond = [fourier.convolution(first, _binned_kernel(wing, side), same=True) for wing in wings]
    smooth = scipy.ndimage.gaussian_filter(first, 1.0)
    # Within a kernel's reach of a bright source, what is left of it counts for more than wings.
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
    # What is expected before, weighed against what is measured, in units of the former.
    noise /= np.outer(usual, usual)
    gain = np.linalg.solve(noise + np.eye(len(wings)), np.eye(len(wings)))
    error = math.sqrt(float(usual @ (np.eye(len(wings)) - gain) @ usual))
    return float(usual @ gain @ (measured / usual)), error


def _binned(image: Array, side: int) -> Array:
    ny, nx = (n // side for n in image.shape)
    result: Array = image[: ny * side, : nx * side].reshape(ny, side, nx, side).mean(axis=(1, 3))
    return result


def _binned_kernel(kernel: Array, side: int) -> Array:
    """Kernel on bins, its middle in the middle of one."""
    half = len(kernel) // 2
    bins = np.round(np.arange(-half, half + 1) / side).astype(int)
    bins -= bins[0]
    result = np.zeros((bins[-1] + 1, bins[-1] + 1))
    np.add.at(result, (bins[:, None], bins[None, :]), kernel)
    return result


def _grown(pixels: Array) -> Array:
    result: Array = scipy.ndimage.maximum_filter(pixels, 3)
    return result
