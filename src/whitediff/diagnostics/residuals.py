"""Residuals of stars that do not vary, in a difference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table

from ..detection.exposures import forced_photometry
from ..exposures.model import Exposure
from ..exposures.zero_points import zero_point
from ..numerics.stats import MEDIAN_ERROR, median_deviation

__all__ = ["star_residuals"]

type Array = npt.NDArray[Any]

_MOST = 1500
_BRIGHT = 50.0
"""Signal-to-noise above which a star's residual shows the subtraction more than the noise."""
_FEWEST = 5
_STARS = ("has a neighbour", "too bright", "enough others nearby")
"""Reasons for which an intact star was not offered to the fit."""


def star_residuals(
    stars: Table | None, difference: Exposure, is_score: bool = False
) -> dict[str, Any] | None:
    """Fluxes of the difference at the positions of stars.

    Parameters
    ----------
    stars
        Result of `whitediff.matching.fitted_stars.star_table`.
    difference
        Difference, with its PSF.
    is_score
        Whether it is a score, in which this flux cannot be measured.

    Returns
    -------
    residuals
        For the 1500 brightest usable stars: x, y, magnitude (−2.5 log10 of the flux,
        plus the zero point if calibrated), pull (flux in the difference over its error), fraction
        (flux in the difference over the star's flux), kind (used, rejected, other), reason.  For
        stars offered to the fit: median fraction of the bright ones, its error, and robust
        scatter of the pull.  None if nothing can be measured.
    """
    if stars is None or is_score or difference.psf is None or not len(stars):
        return None
    reason = np.array([str(text) for text in stars["reason"]])
    flux = np.asarray(stars["flux"], float)
    offered = np.asarray(stars["candidate"], bool)
    chosen = np.flatnonzero((offered | np.isin(reason, _STARS)) & (flux > 0))[:_MOST]
    if not len(chosen):
        return None
    part = stars[chosen]
    measured = forced_photometry(difference, Table({"x": part["x"], "y": part["y"]}))
    left = np.asarray(getattr(measured["psf_flux"], "value", measured["psf_flux"]), float)
    error = np.asarray(getattr(measured["psf_flux_err"], "value", measured["psf_flux_err"]), float)
    with np.errstate(invalid="ignore", divide="ignore"):
        pull, fraction = left / error, left / flux[chosen]
    known = np.isfinite(pull) & np.isfinite(fraction)
    judged = known & offered[chosen]
    bright = judged & (flux[chosen] > _BRIGHT * error)
    median, median_error = math.nan, math.nan
    if bright.sum() >= _FEWEST:
        median = float(np.median(fraction[bright]))
        # Error of the median of normal deviates, from their robust scatter.
        median_error = (
            MEDIAN_ERROR * median_deviation(fraction[bright]) / math.sqrt(int(bright.sum()))
        )
    zero = zero_point(difference, None)
    known_zero = None if zero is None else zero[0]
    used = np.asarray(part["used"], bool)
    kind = np.where(used, "used", np.where(offered[chosen], "rejected", "other"))
    return {
        "x": np.round(np.asarray(part["x"], float), 2)[known],
        "y": np.round(np.asarray(part["y"], float), 2)[known],
        "magnitude": np.round((known_zero or 0.0) - 2.5 * np.log10(flux[chosen]), 3)[known],
        "calibrated": known_zero is not None,
        "pull": np.round(pull, 3)[known],
        "fraction": np.round(fraction, 5)[known],
        "kind": kind[known].tolist(),
        "reason": reason[chosen][known].tolist(),
        "median": median,
        "median_error": median_error,
        "scatter": median_deviation(pull[judged]) if judged.sum() >= _FEWEST else math.nan,
        "count": int(known.sum()),
    }
