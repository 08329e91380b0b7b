"""Error of a flux by its source's own photons, beyond what the variance plane gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..exposures import masks
from ..exposures.model import Exposure
from ..numerics import fourier
from ..numerics.planes import usable_pixels
from ..numerics.stats import ENOUGH_PIXELS
from .filters import Filters

__all__ = ["own_variances"]

type Array = npt.NDArray[Any]

_BRIGHT, _FEWEST = 10.0, 30
"""Least significance of the pixels that give a plane's slope with light, and their least number."""
_NO_POWER = 1e-4
"""Power of a filter, over its largest, below which the image before it cannot be restored."""


def own_variances(
    filters: Filters,
    science: Exposure,
    template: Exposure,
    psf: Array,
    *,
    scale: float,
    full_variance: bool,
) -> tuple[float, float]:
    """Variance of a flux by its source's photons, beyond their part of the variance plane.

    Parameters
    ----------
    filters
        Filters of the correction.
    science, template
        The exposures that were subtracted.
    psf
        ``(n, n)`` odd square image of the difference's PSF.
    scale
        Factor on variances, for the science exposure's level.
    full_variance
        Whether the plane has every pixel's variance propagated.

    Returns
    -------
    of_science, of_template
        Variance per unit of flux in the science exposure, and per unit of flux that is missing
        there (light of the template); image_unit.  0 if a variance plane does not rise with light.

    Notes
    -----
    Sky noise is white after the correction, and the plane gives the error of any sum of pixels.
    The photons of a source are in one image alone, and stay correlated by the filter of that
    image.  With this filter A, the PSF P before it and the weights w = P_D/ΣP_D² of a flux f, its
    variance is ``f/g · Σ P (w⋆A)²``, while the plane gives ``f/g · Σ w² (A²⊗P)``.
    """
    # Padded by the kernel on both sides, so that nothing wraps around the grid.
    side = max(psf.shape) + 2 * max(filters.kernel_image.shape)
    ny, nx = fourier.fast_shape((side, side), (1, 1))
    grid = (ny, nx)
    correction = filters.correction_on(grid)

    def spectrum(image: Array) -> Array:
        return fourier.forward(image, grid)

    def image_of(image_ft: Array) -> Array:
        return fourier.inverse(image_ft, grid, grid)

    after = fourier.pad_center_origin(psf.astype(np.float64), grid)
    weights = after / float((after**2).sum())
    pair = (science, template) if filters.template_matched else (template, science)
    found = []
    for exposure, filter_ft, weight in zip(
        pair, correction.noise_filters_ft, correction.variance_weights, strict=True
    ):
        slope = _slope(exposure)
        if not slope:
            found.append(0.0)
            continue
        power = np.abs(filter_ft) ** 2
        before = image_of(spectrum(after) * filter_ft.conj() / (power + _NO_POWER * power.max()))
        before = np.maximum(before, 0)
        true = float((before * image_of(spectrum(weights) * filter_ft.conj()) ** 2).sum())
        spread = weight * before
        if full_variance:
            squared = image_of(filter_ft.copy()) ** 2
            spread = image_of(spectrum(squared) * spectrum(before))
        told = float((weights**2 * spread).sum())
        found.append(slope * scale * (true - told))
    first, second = found if filters.template_matched else found[::-1]
    return first, second


def _slope(exposure: Exposure) -> float:
    """Slope of a variance plane with the light of bright sources, image_unit; 0 if unknown."""
    image, variance = exposure.data, exposure.variance
    rows = slice(None, None, max(1, image.size // ENOUGH_PIXELS))
    values, plane = image[rows].astype(np.float64), variance[rows].astype(np.float64)
    untrusted = masks.flagged(exposure.mask, masks.UNTRUSTED_MASK_PLANES, rows=rows)
    use = usable_pixels(values, untrusted)
    use &= (plane > 0) & (plane < np.inf)
    if not use.any():
        return 0.0
    level, usual = float(np.median(values[use])), float(np.median(plane[use]))
    bright = use & (values - level > _BRIGHT * np.sqrt(usual))
    if np.count_nonzero(bright) < _FEWEST:
        return 0.0
    return max(0.0, float(np.median((plane[bright] - usual) / (values[bright] - level))))
