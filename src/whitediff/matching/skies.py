"""Subtraction of skies from exposures."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..exposures import masks
from ..exposures.fields import ChebyshevField
from ..exposures.model import Exposure
from .background import fit_background

__all__ = ["without_left_sky", "without_light"]

type Array = npt.NDArray[Any]

_SKY_ORDER = 2
_LEAST_SKY, _SKY_ERRORS = 0.03, 4.0
"""Size of a sky left in a difference from which it is subtracted: in a pixel's noise, and in its
own errors.  After filtering with a PSF, the former is an eighth of a sigma."""
_ENOUGH_PIXELS = 100_000

_log = logging.getLogger("whitediff.detect")


def without_light(exposure: Exposure, background: Array) -> Exposure:
    """Subtract a background.

    Parameters
    ----------
    exposure
        Exposure, which is not changed.
    background
        ``(ny, nx)``, image_unit.

    Returns
    -------
    exposure
        Exposure with a new image; it shares the other planes.
    """
    image = exposure.data
    return exposure.replaced(data=image - background.astype(image.dtype))


def without_left_sky(difference: Exposure) -> Exposure:
    """Subtract the sky that was left in a difference.

    Parameters
    ----------
    difference
        Difference.

    Returns
    -------
    difference
        The given one if the level, slope and curvature between its sources are below 3 % of a
        pixel's noise, or below 4 errors; else an exposure with a new image, and a warning.
    """
    image, variance = difference.data, difference.variance
    spoiled = masks.flagged(difference.mask, (*masks.AVOIDED_MASK_PLANES, masks.SOURCE, "EDGE"))
    step = max(1, variance.size // _ENOUGH_PIXELS)
    free = ~spoiled & np.isfinite(image)
    pixels = np.flatnonzero(free)[::step]
    noise = variance.reshape(-1)[pixels]
    noise = noise[np.isfinite(noise) & (noise > 0)]
    if not noise.size:
        return difference
    sigma = math.sqrt(float(np.median(noise)))
    found = fit_background(image, free, _SKY_ORDER)
    sky = ChebyshevField(difference.bbox, found).on(difference.bbox).astype(np.float32)
    size = math.sqrt(float(np.mean(np.square(sky[::8, ::8], dtype=np.float64))))
    error = math.sqrt(found.size / np.count_nonzero(free))
    if size <= max(_LEAST_SKY, _SKY_ERRORS * error) * sigma:
        return difference
    _log.warning(
        "%s: a sky is left in it, of %.3g in the middle (%.2g times a pixel's noise); sources are"
        " found and measured without it.",
        difference.source or "The difference",
        float(sky[sky.shape[0] // 2, sky.shape[1] // 2]),
        size / sigma,
    )
    return without_light(difference, sky)
