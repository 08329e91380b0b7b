"""Pixels of an exposure that hold no measurement, and what stands in for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from lsst.images import Image

from ..decorrelation import smallest_sigma
from ..interpolation import interpolated
from ..planes import filled
from . import masks
from .model import Exposure

__all__ = ["missing_pixels", "without_missing"]

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
    image, variance = exposure.image.array, exposure.variance.array
    flagged = masks.flagged(exposure.mask, masks.INTERPOLATED_MASK_PLANES)

    def unmeasured(rows: slice) -> Array:
        with np.errstate(invalid="ignore"):
            return ~(np.isfinite(variance[rows]) & (variance[rows] > 0))

    wrong = filled(image.shape, bool, unmeasured)
    if wrong.all():
        # A plane that says nothing anywhere says nothing of single pixels.
        wrong[:] = False
    return filled(
        image.shape, bool, lambda rows: flagged[rows] | wrong[rows] | ~np.isfinite(image[rows])
    )


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
    variance = exposure.variance.array
    with np.errstate(invalid="ignore"):
        unknown = missing & ~(np.isfinite(variance) & (variance > 0))
    if unknown.any() and not unknown.all():
        variance = np.maximum(interpolated(variance, unknown), smallest_sigma(variance) or 0)
    return exposure.replaced(
        image=Image(
            interpolated(exposure.image.array, missing),
            bbox=exposure.bbox,
            unit=exposure.image.unit,
        ),
        variance=variance,
    )
