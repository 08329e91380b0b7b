"""How a PSF that was given measures the light of stars whose PSF is known otherwise."""

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
"""Pixels by which the origin of a PSF may be off."""


def share_measured(given: Array, stars: Array) -> float:
    """Share of a star's light that a fit of a PSF finds, among noise that is the same everywhere.

    Parameters
    ----------
    given
        ``(py, px)`` PSF with which fluxes are measured, of unit sum, origin at
        ``[py//2, px//2]``.
    stars
        ``(size, size)`` what a star of unit flux looks like, origin likewise; odd, and no smaller
        than what ``given`` has of its light.

    Returns
    -------
    share
        ``Σ given·stars / Σ given²``, where the one lies on the other as well as it can; 1 for the
        same profile, whatever its origin.  NaN where they do not lie on each other.
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
