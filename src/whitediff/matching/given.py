"""Share of stars' light that a given PSF measures, if the stars' own PSF is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..numerics.sinc import moved_stamps

__all__ = ["share_measured"]

type Array = npt.NDArray[Any]

_TURNS = 6
_MOST_MOVED = 3.0
"""Largest error of a PSF's origin, pixels."""


def share_measured(given: Array, stars: Array) -> float:
    """Share of a star's light that a fit of a PSF finds in noise of uniform variance.

    Parameters
    ----------
    given
        ``(py, px)`` PSF with which fluxes are measured, of unit sum, origin at
        ``[py//2, px//2]``.
    stars
        ``(size, size)`` image of a star of unit flux, origin in the middle; odd, and large enough
        for the light in ``given``.

    Returns
    -------
    share
        ``Σ given·stars / Σ given²``, with the PSF moved onto the star as well as it can be; 1 for
        the same profile, whatever its origin.  NaN if that is impossible within 3 pixels.
    """
    half = stars.shape[0] // 2
    dy = dx = 0.0
    for _ in range(_TURNS):
        profile, down, right = (
            each[0].ravel()
            for each in moved_stamps(given[None], np.array([dy]), np.array([dx]), half, slopes=True)
        )
        flux, by_y, by_x = np.linalg.lstsq(
            np.stack([profile, down, right], 1), stars.ravel(), rcond=None
        )[0]
        if not flux > 0:
            return math.nan
        dy, dx = dy + float(by_y / flux), dx + float(by_x / flux)
        if math.hypot(dy, dx) > _MOST_MOVED:
            return math.nan
    return float(profile @ stars.ravel() / (profile @ profile))
