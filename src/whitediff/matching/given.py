"""Whether stars are as wide as a PSF that was given."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..resampling import moved_stamps
from ..stats import MEDIAN_ERROR, median_deviation

__all__ = ["WidthDoubt", "width_doubt"]

type Array = npt.NDArray[Any]

_REACH = 1.3
"""Half of a stamp's side, in full widths at half maximum."""
_TURNS = 3
_MOST_MOVED = 1.5
"""Pixels between a source's position, of the science image, and that of its star."""
_FEWEST = 5
_SECOND_ORDER = 1.6
"""Of what a change of width leaves to the second order: with it, Gaussian and Moffat profiles that
are up to a tenth too wide or narrow are told to a seventh of that."""


@dataclasses.dataclass(frozen=True)
class WidthDoubt:
    """How fluxes by a PSF differ from those of its stars, because these have another width.

    Attributes
    ----------
    bias, error
        Of a flux, relative, and its standard deviation.
    wider
        Ratio of the stars' width to that of the PSF.
    stars
        How many tell.
    """

    bias: float
    error: float
    wider: float
    stars: int


def width_doubt(
    image: Array, bad: Array, x: Array, y: Array, images: Array, *, fwhm: float
) -> WidthDoubt | None:
    """Compare the width of stars with that of a PSF.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    bad
        ``(ny, nx)`` boolean: pixels not to use.
    x, y
        ``(n,)`` array coordinates of isolated stars, to a pixel or so.
    images
        ``(n, py, px)`` PSF at each, origin at ``[py//2, px//2]``; or ``(1, py, px)`` for all.
    fwhm
        Its full width at half maximum, pixels.

    Returns
    -------
    doubt
        None where fewer than five stars tell.

    Notes
    -----
    A PSF P that is wider by the factor 1 + s is P − s (2P + r·∇P) to first order.  Each star is
    fitted by P, its derivatives, that and a constant, and s is the median of all.  A flux that is
    measured with P is off by −s, for ∫P r·∇P = −∫P².
    """
    half = max(3, math.ceil(_REACH * fwhm))
    found = []
    for i in range(len(x)):
        row, column = round(float(y[i])), round(float(x[i]))
        inside = half <= row < image.shape[0] - half and half <= column < image.shape[1] - half
        if not inside:
            continue
        part = (slice(row - half, row + half + 1), slice(column - half, column + half + 1))
        values, known = image[part].astype(float), ~bad[part]
        if not (known[half - 1 : half + 2, half - 1 : half + 2].all() and known.mean() > 0.9):
            continue
        which = slice(i, i + 1) if len(images) > 1 else slice(0, 1)
        growth = _growth(values, known, images[which], float(y[i]) - row, float(x[i]) - column)
        if growth is not None:
            found.append(growth)
    if len(found) < _FEWEST:
        return None
    first = float(np.median(found))
    growth = first / (1 - _SECOND_ORDER * first)
    scatter = median_deviation(np.array(found)) * MEDIAN_ERROR / math.sqrt(len(found))
    return WidthDoubt(-growth, scatter, 1 + growth, len(found))


def _growth(values: Array, known: Array, image: Array, dy: float, dx: float) -> float | None:
    """How much wider a star is, relative."""
    half, start = values.shape[0] // 2, (dy, dx)
    grid = np.arange(-half, half + 1)
    for _ in range(_TURNS):
        profile, down, right = (
            each[0]
            for each in moved_stamps(image, np.array([dy]), np.array([dx]), half, slopes=True)
        )
        # The slopes are those by the shift: against the coordinates.
        grown = (grid - dy)[:, None] * down + (grid - dx) * right - 2 * profile
        terms = np.stack([profile, down, right, grown, np.ones_like(profile)])[:, known]
        solved, *_ = np.linalg.lstsq(terms.T, values[known], rcond=None)
        if not solved[0] > 0:
            return None
        dy, dx = dy + float(solved[1] / solved[0]), dx + float(solved[2] / solved[0])
        if math.hypot(dy - start[0], dx - start[1]) > _MOST_MOVED:
            return None
    return float(solved[3] / solved[0])
