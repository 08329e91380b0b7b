"""Pixels of an exposure that hold no measurement, and their interpolation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..numerics.interpolation import interpolated
from ..numerics.missing import smallest_sigma
from ..numerics.planes import filled
from . import masks
from .model import Exposure

__all__ = ["missing_pixels", "pixels_without_measurement", "without_missing"]

type Array = npt.NDArray[Any]


def missing_pixels(exposure: Exposure) -> Array:
    """Pixels that are interpolated before an exposure is filtered.

    Parameters
    ----------
    exposure
        Exposure.

    Returns
    -------
    missing
        ``(ny, nx)`` boolean: pixels that are not finite, whose variance is not finite or not
        positive (unless that leaves none), or that are in one of
        `whitediff.exposures.masks.INTERPOLATED_MASK_PLANES`, whatever their value.
    """
    return pixels_without_measurement(exposure, masks.INTERPOLATED_MASK_PLANES)


def pixels_without_measurement(exposure: Exposure, mask_planes: Iterable[str]) -> Array:
    """Pixels that hold no measurement or are in one of some mask planes.

    Parameters
    ----------
    exposure
        Exposure.
    mask_planes
        Names of planes; those that the mask lacks are skipped.

    Returns
    -------
    pixels
        ``(ny, nx)`` boolean: pixels that are not finite, are flagged, or have a variance that is
        not finite or not positive.  The variance is ignored if this would be all pixels.
    """
    image, variance = exposure.data, exposure.variance
    flagged = masks.flagged(exposure.mask, mask_planes)

    def not_measured(rows: slice) -> Array:
        return flagged[rows] | ~np.isfinite(image[rows])

    def of_no_weight(rows: slice) -> Array:
        return not_measured(rows) | ~((variance[rows] > 0) & (variance[rows] < np.inf))

    pixels = filled(image.shape, bool, of_no_weight)
    # If no pixel is left, the variance plane was probably never filled.
    return filled(image.shape, bool, not_measured) if pixels.all() else pixels


def without_missing(exposure: Exposure, missing: Array) -> Exposure:
    """Exposure whose missing pixels are interpolated, in image and variance.

    Parameters
    ----------
    exposure
        Exposure; not changed.
    missing
        ``(ny, nx)`` boolean.

    Returns
    -------
    whole
        New exposure; the given one if no pixel is missing.  A missing pixel without a valid
        variance gets its variance from its neighbours.
    """
    if not missing.any():
        return exposure
    variance = exposure.variance
    with np.errstate(invalid="ignore"):
        unknown = missing & ~(np.isfinite(variance) & (variance > 0))
    if unknown.any() and not unknown.all():
        variance = np.maximum(interpolated(variance, unknown), smallest_sigma(variance) or 0)
    return exposure.replaced(
        data=interpolated(exposure.data, missing),
        variance=variance,
    )
