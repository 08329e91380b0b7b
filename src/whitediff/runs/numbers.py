"""Numbers that tell the quality of a product, for JSON files."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..diagnostics.measure import ScoreNoise, Whiteness, score_noise, whiteness
from ..errors import DataError
from ..exposures import masks
from ..exposures.model import Exposure
from ..outputs import replacing
from .refusals import is_stream

__all__ = ["NUMBERS", "noise_of", "numbers_of", "write_numbers"]

NUMBERS = {
    "WDCONV": "convolved",
    "WDKSUM": "kernel_sum",
    "WDKSERR": "kernel_sum_error",
    "WDKWSUM": "kernel_sum_with_wings",
    "WDKWERR": "kernel_sum_with_wings_error",
    "WDKORDER": "kernel_order",
    "WDNSTAR": "stars",
    "WDNUSED": "stars_used",
    "WDCHI2": "reduced_chi_square",
    "WDSFWHM": "science_fwhm",
    "WDTFWHM": "template_fwhm",
    "WDTFRAC": "template_fraction",
    "WDSVFAC": "science_variance_factor",
    "WDTVFAC": "template_variance_factor",
    "WDVAFT": "variance_mean",
    "WDCONTAM": "contaminated_fraction",
    "WDKFROM": "kernel_from",
    "WDFSMEAS": "flux_scale",
    "WDTFLUX": "transient_flux",
    "WDTFERR": "transient_flux_error",
    "WDDOUBT": "doubts",
    "WDDEPTH": "depth",
    "WDMAGLIM": "limiting_magnitude",
    "WDSGWID": "significance_width",
}
"""Keyword of a product's card → its name in the results."""

_SAMPLE = 1 << 22
"""Least number of pixels on which whiteness is measured: its error is then below 0.2 %."""


def numbers_of(values: Mapping[str, object]) -> dict[str, object]:
    """Numbers of a product, ready for JSON.

    Parameters
    ----------
    values
        Keyword → value of the product's cards.

    Returns
    -------
    numbers
        Name from `NUMBERS` → value, without values that are missing or not finite.
    """
    found = {}
    for card, name in NUMBERS.items():
        value = values.get(card)
        value = value.item() if isinstance(value, np.generic) else value
        if value is not None and not (isinstance(value, float) and not math.isfinite(value)):
            found[name] = value
    return found


def write_numbers(path: Path, numbers: object, *, overwrite: bool = False) -> None:
    """Write numbers as JSON.

    Parameters
    ----------
    path
        File, or ``-`` for standard output.
    numbers
        Numbers, texts, lists and dictionaries that JSON can hold.
    overwrite
        Whether an existing file may be replaced.

    Raises
    ------
    OutputExistsError, FileFormatError
        From `whitediff.outputs.replacing`.
    """
    text = json.dumps(numbers, indent=1, allow_nan=False) + "\n"
    if is_stream(path):
        sys.stdout.write(text)
        return
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_text(text)


def noise_of(exposure: Exposure, *, score: bool) -> Whiteness | ScoreNoise:
    """Measure how white a product is, on a sample of its source-free pixels.

    Parameters
    ----------
    exposure
        Difference with a PSF, or score, with its mask plane SOURCE.
    score
        Whether it is a score.

    Returns
    -------
    noise
        `whitediff.diagnostics.measure.Whiteness`, or for a score
        `whitediff.diagnostics.measure.ScoreNoise`.

    Raises
    ------
    DataError
        If the difference has no PSF, or too few pixels are left.

    Notes
    -----
    A frame of more than four million pixels is sampled by 4 × 4 tiles, which together have a
    quarter of its pixels, but at least four million.  They are laid side by side with gaps as
    wide as the filter.  Gaps count as masked, which does not bias the ratios.
    """
    planes = (*masks.DEFAULT_IGNORE_MASK_PLANES, masks.CONTAMINATED, "SUSPECT", masks.SOURCE)
    good = ~masks.flagged(exposure.mask, planes)
    image, variance = exposure.data, exposure.variance
    if score:
        return score_noise(*_sampled((image, variance, good), 0))
    if exposure.psf is None:
        raise DataError("the difference has no PSF.")
    box = exposure.bbox
    psf = exposure.psf.at(x=box.x.center, y=box.y.center)
    image, variance, good = _sampled((image, variance, good), max(psf.shape))
    return whiteness(image, variance, good, psf)


def _sampled(planes: tuple[Any, ...], gap: int, across: int = 4) -> tuple[Any, ...]:
    ny, nx = planes[0].shape
    if ny * nx <= _SAMPLE or min(ny, nx) < 4 * across * max(gap, 32):
        return planes
    shrink = math.sqrt(max(_SAMPLE / (ny * nx), 0.25))
    height, width = (int(n * shrink / across) for n in (ny, nx))
    sampled = []
    for plane in planes:
        result = np.zeros((across * (height + gap), across * (width + gap)), dtype=plane.dtype)
        for j in range(across):
            for i in range(across):
                y = (2 * j + 1) * ny // (2 * across) - height // 2
                x = (2 * i + 1) * nx // (2 * across) - width // 2
                top, left = j * (height + gap), i * (width + gap)
                tile = plane[y : y + height, x : x + width]
                result[top : top + height, left : left + width] = tile
        sampled.append(result)
    return tuple(sampled)
