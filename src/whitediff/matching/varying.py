"""Residuals of a fit on its stamps, and pixels that vary between the two images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics.stats import robust_sigma
from ..numerics.threads import in_threads, single_threaded_algebra
from ..stars.stamps import Stamps
from .basis import KernelBasis
from .solve import KernelFit

__all__ = ["residual_stamps", "residuals_of", "varying_pixels"]

type Array = npt.NDArray[Any]

_CHUNK = 64
_SMOOTHING_SIGMA = 1.5
_THRESHOLD = 4.0
_GROWTH_PIXELS = 4


def residual_stamps(stamps: Stamps, fit: KernelFit, basis: KernelBasis) -> Array:
    """Residuals of a fit on stamps.

    Parameters
    ----------
    stamps
        Stamps.
    fit, basis
        Fit, and its basis.

    Returns
    -------
    residuals
        ``(n, size, size)`` target − κ⊗source − background; also where the weight is zero.
    """
    return residuals_of(stamps, fit.coefficients_at(stamps.x, stamps.y), basis)


def residuals_of(stamps: Stamps, local: Array, basis: KernelBasis) -> Array:
    """Residuals of stamps, each with its own kernel.

    Parameters
    ----------
    stamps
        Stamps.
    local
        ``(n, n_basis + 1)`` coefficients for each stamp, the last its background.
    basis
        Basis images.

    Returns
    -------
    residuals
        As from `residual_stamps`.
    """
    size, width = stamps.target.shape[1], stamps.source.shape[1]
    inner = slice(width - size, width)
    grid = scipy.fft.next_fast_len(width, real=True)
    residuals = np.empty(stamps.target.shape)

    def work(start: int) -> None:
        part = slice(start, start + _CHUNK)
        kernels = np.tensordot(local[part, :-1], basis.images, axes=1)
        # The kernels' origin is their first pixel here, which shifts the valid part to `inner`.
        product = scipy.fft.rfft2(kernels, s=(grid, grid))
        product *= scipy.fft.rfft2(stamps.source[part].astype(np.float64), s=(grid, grid))
        matched = scipy.fft.irfft2(product, s=(grid, grid), overwrite_x=True)[:, inner, inner]
        residuals[part] = stamps.target[part] - matched - local[part, -1, None, None]

    with single_threaded_algebra():
        in_threads(work, range(0, len(stamps), _CHUNK))
    return residuals


def varying_pixels(stamps: Stamps, residuals: Array, *, core: float) -> Array:
    """Pixels of transients and variables near the stars of a fit.

    Parameters
    ----------
    stamps
        Stamps.
    residuals
        `residual_stamps` of a first fit.
    core
        Half-width, in pixels, of the square in a stamp's middle that is never taken for varying,
        since the kernel is measured there.

    Returns
    -------
    varying
        ``(n, size, size)`` boolean: residuals that, smoothed by a Gaussian of 1.5 pixels,
        exceed 4 times their scatter, grown by 4 pixels in x and y.
    """
    significance = residuals * np.sqrt(stamps.weight)
    smoothed = scipy.ndimage.gaussian_filter(
        significance, (0, _SMOOTHING_SIGMA, _SMOOTHING_SIGMA), mode="constant"
    )
    scatter = robust_sigma(smoothed[stamps.weight > 0])
    if not scatter > 0:
        return np.zeros(stamps.target.shape, dtype=bool)
    peaks = np.abs(smoothed) > _THRESHOLD * scatter
    size = 2 * _GROWTH_PIXELS + 1
    varying = scipy.ndimage.maximum_filter(peaks.view(np.uint8), (1, size, size)).astype(bool)
    middle, reach = stamps.target.shape[1] // 2, math.ceil(core)
    inner = slice(max(0, middle - reach), middle + reach + 1)
    varying[:, inner, inner] = False
    return varying
