"""Pixels of an exposure that hold no measurement, and what stands in for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..exposures import masks
from ..numerics.interpolation import interpolated
from ..numerics.missing import smallest_sigma
from ..numerics.planes import filled
from .model import Exposure

__all__ = ["missing_pixels", "pixels_without_measurement", "without_missing"]

type Array = npt.NDArray[Any]


def missing_pixels(exposure: Exposure) -> Array:
    """Pixels of an exposure that are interpolated before it is filtered.

    Parameters
    ----------
    exposure
        Exposure.

    Returns
    -------
    missing
        ``(ny, nx)`` boolean: pixels or variances that are not finite, variances that are not
        positive (where any is), and those in one of
        `whitediff.exposures.masks.INTERPOLATED_MASK_PLANES`, whatever value they have.
    """
    return pixels_without_measurement(exposure, masks.INTERPOLATED_MASK_PLANES)


def pixels_without_measurement(exposure: Exposure, mask_planes: Iterable[str]) -> Array:
    """Pixels that hold no measurement, or that one of some mask planes tells of.

    Parameters
    ----------
    exposure
        Exposure.
    mask_planes
        Names of planes; those that its mask lacks do not count.

    Returns
    -------
    pixels
        ``(ny, nx)`` boolean: not finite, of a variance that is not finite or not positive, or
        flagged.  Where that is all of them, the variance does not count.
    """
    image, variance = exposure.data, exposure.variance
    flagged = masks.flagged(exposure.mask, mask_planes)

    def not_measured(rows: slice) -> Array:
        return flagged[rows] | ~np.isfinite(image[rows])

    def of_no_weight(rows: slice) -> Array:
        return not_measured(rows) | ~((variance[rows] > 0) & (variance[rows] < np.inf))

    pixels = filled(image.shape, bool, of_no_weight)
    # A plane that nobody filled says nothing of single pixels.
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
        The same one where none is missing.  The variance of a missing pixel is that of its
        neighbours where it has none of its own.
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
