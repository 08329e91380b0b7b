"""Check that the significances of a difference or score scatter by 1 where there is no source."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..exposures import masks
from ..exposures.model import Exposure
from ..numerics.planes import spread_rows
from ..numerics.profiles import full_width_half_maximum
from .exposures import regions_of_one_image, square_sums, structure_on_larger_scales, uneven_noise
from .significance import core, point_source_significance, score_significance, self_response
from .widths import SignificanceWidth, correlated_pixels, significance_width

__all__ = ["free_of_sources", "measured_width", "warn_of_significances", "width_of"]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.decorrelate")

_SPOILED = (*masks.AVOIDED_MASK_PLANES, masks.SOURCE, "EDGE", masks.CONTAMINATED)
_STRIP_ROWS = 256
_ENOUGH_PIXELS = 1_500_000
_REACH = 1.5
"""Reach of a point source in a filtered image, full widths at half maximum of the PSF."""


def free_of_sources(exposure: Exposure, rows: slice = slice(None)) -> Array:
    """Pixels that are expected to hold noise alone.

    Parameters
    ----------
    exposure
        Difference or score, its sources marked.
    rows
        Rows of the exposure.

    Returns
    -------
    free
        ``(n, nx)`` boolean: in no mask plane of sources, defects, edges or contamination.
    """
    return ~masks.flagged(exposure.mask, _SPOILED, rows=rows)


def width_of(
    significance: Array, free: Array, psf: Array, *, score: bool
) -> SignificanceWidth | None:
    """`whitediff.noise.widths.significance_width` of an image that was filtered with a PSF.

    Parameters
    ----------
    significance, free
        As for `whitediff.noise.widths.significance_width`.
    psf
        ``(py, px)`` PSF of the difference; for a score, the image of a point source on it.
    score
        Whether the image is a score, which is filtered already.

    Returns
    -------
    width
        None where too few pixels are free of sources.
    """
    response = psf / psf.max() if score else self_response(core(psf))
    return significance_width(
        significance,
        free,
        correlated=correlated_pixels(response),
        reach=math.ceil(_REACH * full_width_half_maximum(psf)),
    )


def measured_width(exposure: Exposure) -> SignificanceWidth | None:
    """Measure how wide the significances of a difference or score scatter between the sources.

    Parameters
    ----------
    exposure
        Difference or score, its sources marked.

    Returns
    -------
    width
        Measured on strips of at least 1.5 million pixels of a large frame.  None where there is no
        PSF, a difference is smaller than its PSF, or too few pixels are free of sources.
    """
    if exposure.psf is None:
        return None
    box = exposure.bbox
    psf = exposure.psf.at(x=box.x.center, y=box.y.center)
    ny, nx = exposure.shape
    if not exposure.is_score and any(
        n < p for n, p in zip(exposure.shape, core(psf).shape, strict=True)
    ):
        return None
    parts = []
    for rows in spread_rows((ny, nx), _STRIP_ROWS, _ENOUGH_PIXELS):
        free = free_of_sources(exposure, rows)
        good = ~masks.flagged(exposure.mask, masks.UNTRUSTED_MASK_PLANES, rows=rows)
        planes = exposure.data[rows], exposure.variance[rows], good
        if exposure.is_score:
            found = score_significance(*planes)
        else:
            found = point_source_significance(*planes, psf)
        parts.append((found.image, free & found.searched))
    significance, free = (np.concatenate(each) for each in zip(*parts, strict=True))
    return width_of(significance, free, psf, score=exposure.is_score)


def warn_of_significances(exposure: Exposure) -> SignificanceWidth | None:
    """`measured_width`, with a warning where significances cannot be taken at face value.

    Parameters
    ----------
    exposure
        Difference or score, its sources marked.

    Returns
    -------
    width
        As from `measured_width`.
    """
    width = measured_width(exposure)
    sums = square_sums(exposure)
    larger = "" if sums is None else structure_on_larger_scales(sums)
    name = exposure.source or ("The score" if exposure.is_score else "The difference")
    if width is not None and width.is_off:
        _log.warning(
            "%s: %s, as its PSF-filtered pixels between the sources show%s; multiply the errors of"
            " fluxes and the depth by %.3g.",
            name,
            width.text,
            f" ({larger})" if larger else "",
            width.width,
        )
    elif larger:
        _log.warning(
            "%s: between its sources %s; faint sources are not to be believed.", name, larger
        )
    if sums is not None and (regions := regions_of_one_image(sums)):
        _log.warning("%s: %s; nothing there is to be believed.", name, regions)
    if sums is not None and (uneven := uneven_noise(sums)):
        _log.warning(
            "%s: %s; significances there are off by its square root. Look at the inputs' variance"
            " planes.",
            name,
            uneven,
        )
    return width
