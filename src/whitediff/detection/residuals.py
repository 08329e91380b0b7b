"""What errors of the matching leave of bright sources on a difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..exposures import masks
from ..exposures.model import Exposure
from ..noise.sources import RESIDUAL, significance_of_counts

__all__ = ["part_left"]

type Array = npt.NDArray[Any]

_FEWEST, _MOST = 8, 60
"""Sources that tell it, and the brightest, which are looked at."""
_BY_NOISE = 2.5
"""Significance that the largest of five fluxes around nothing has."""
_USUALLY, _TIMES = 0.85, 15.0
"""Share of the sources of which no more is left, since the others may have changed; and, over that,
what is found of the worst of the fainter ones, to which noise adds."""
_LEAST = 0.02
"""What is never ruled out: a kernel that varies leaves it of some sources and not of others."""
_SPOILED = (*masks.UNTRUSTED_MASK_PLANES, "EDGE", masks.CONTAMINATED)


def part_left(
    exposure: Exposure,
    psf: Array,
    *,
    fwhm: float,
    significance_at: Callable[[Array, Array], Array],
) -> float:
    """Measure the part of a source that errors of the matching may leave.

    Parameters
    ----------
    exposure
        Difference, its static sources marked.
    psf
        ``(py, px)``.
    fwhm
        Its full width at half maximum, pixels.
    significance_at
        Fluxes over their errors of a point source at array coordinates x, y.

    Returns
    -------
    part
        Fifteen times what is left of 85 % of the brightest 60, from 0.02 to
        `whitediff.noise.sources.RESIDUAL`; the latter where there are fewer than 8.
    """
    bright = masks.flagged(exposure.mask, [masks.STATIC_BRIGHT])
    labels, number = scipy.ndimage.label(bright)
    if number < _FEWEST:
        return RESIDUAL
    rows, columns = np.nonzero(bright)
    source = labels[rows, columns] - 1
    counts = np.bincount(source, minlength=number)
    spoiled = masks.flagged(exposure.mask, _SPOILED)[rows, columns]
    whole = np.bincount(source, spoiled, minlength=number) == 0
    brightest = np.flatnonzero(whole)
    brightest = brightest[np.argsort(-counts[brightest], kind="stable")[:_MOST]]
    if len(brightest) < _FEWEST:
        return RESIDUAL
    y, x = (np.bincount(source, at, minlength=number) / counts for at in (rows, columns))
    # A shift leaves two lobes, and nothing between them.
    aside = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]) * fwhm / 2
    ny, nx = exposure.shape
    x = np.clip(x[brightest, None] + aside[:, 0], 0, nx - 1)
    y = np.clip(y[brightest, None] + aside[:, 1], 0, ny - 1)
    found = np.abs(significance_at(x.ravel(), y.ravel())).reshape(x.shape)
    left = np.fmax.reduce(found, axis=1) - _BY_NOISE
    left = np.maximum(left, 0) / significance_of_counts(psf, counts[brightest])
    known = left[np.isfinite(left)]
    if len(known) < _FEWEST:
        return RESIDUAL
    return float(np.clip(_TIMES * np.quantile(known, _USUALLY), _LEAST, RESIDUAL))
