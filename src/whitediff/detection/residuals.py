"""Residuals of bright sources that errors of the matching leave on a difference."""

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
"""Fewest sources for a measurement, and number of the brightest that are measured."""
_BY_NOISE = 2.5
"""Significance of the largest of five fluxes where there is no source."""
_USUALLY, _TIMES = 0.85, 15.0
"""Quantile of the residuals, since some sources may have changed; and a factor on it, for the worst
of the fainter sources, to which noise adds."""
_LEAST = 0.02
"""Part that is always allowed for: a kernel that varies leaves it of some sources only."""
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
        Difference with its static sources marked.
    psf
        ``(py, px)``.
    fwhm
        Full width at half maximum of the PSF, pixels.
    significance_at
        Function of array coordinates x, y: fluxes of point sources there over their errors.

    Returns
    -------
    part
        Fifteen times the 85 % quantile of the parts left of the brightest 60 sources, from 0.02 to
        `whitediff.noise.sources.RESIDUAL`; the latter if there are fewer than 8.
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
    # A shift leaves two lobes and nothing between them: places beside the middle are needed too.
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
