"""Images that were cut off below, for example at the sky's level, which removes half the noise."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from ..numerics.planes import every_nth, usable_pixels
from ..numerics.stats import ENOUGH_PIXELS

__all__ = ["Floor", "find_floor"]

type Array = npt.NDArray[Any]

_LEAST_PIXELS, _LEAST_POSITIVE = 1024, 100
_LEAST_SHARE, _BELOW = 0.05, 0.005
"""Least share of pixels at the floor that is reported; share that may be lower, as defects are."""
_SPOILT_SHARE = 0.2
"""Share of dark pixels at the floor from which quartiles, which measure noise, are near it."""
_BLOCK, _MOST_BLOCKS = 16, 2000
_SMALLEST = 0.01
"""Quantile of the values above the floor that stands for their smallest one."""
_STEPS = 1.5
"""Variance over the mean, in smallest values, above which an image cannot be photon counts."""


@dataclasses.dataclass(frozen=True)
class Floor:
    """The lowest value of an image that was cut off there.

    Attributes
    ----------
    level
        Lowest value, image unit.
    share
        Share of the usable pixels that have it.
    is_spoilt
        Whether so many pixels have it that the noise cannot be known.
    """

    level: float
    share: float
    is_spoilt: bool

    @property
    def text(self) -> str:
        """Consequence and remedy, as text to follow the image's name."""
        found = (
            f"{self.share:.0%} of its pixels have the same lowest value, {self.level:g}, so that it"
        )
        if self.is_spoilt:
            return (
                f"{found} was cut off there, perhaps after its sky was subtracted, and its noise"
                " cannot be known; use the image as it was before, or add a level of many times its"
                " noise before it is cut"
            )
        return (
            f"{found} was cut off there: its noise is not Gaussian, and errors come out up to a"
            " sixth too large; use the image as it was before, or add a level before it is cut"
        )


def find_floor(image: Array, unusable: Array | None = None) -> Floor | None:
    """Find the value at which an image was cut off from below.

    Parameters
    ----------
    image
        ``(ny, nx)``; non-finite pixels are left out.
    unusable
        ``(ny, nx)`` boolean: further pixels that are left out.

    Returns
    -------
    floor
        None where less than a twentieth of the pixels share the lowest value, or where the image
        has it without being cut off.

    Notes
    -----
    Where noise is cut off, values begin right above the floor, and scatter by much more than the
    smallest of them.  Other images with many lowest values do not: counts of few photons, in any
    unit, have a variance over the mean that is their smallest value; coarsely rounded numbers
    scatter by no more than a step; and defects that share a value far below the sky have nothing
    right above them.  The darker half of blocks of 16 × 16 pixels is examined.
    """
    use = usable_pixels(image, unusable)
    number = np.count_nonzero(use)
    if number < _LEAST_PIXELS:
        return None
    sample = every_nth(image, use, ENOUGH_PIXELS)
    level = np.quantile(sample, _BELOW, method="lower")
    if np.count_nonzero(sample == level) < _LEAST_SHARE * sample.size:
        return None
    dark = _dark_blocks(image, use, level)
    above = dark[dark > 0]
    if above.size < _LEAST_POSITIVE:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.nanvar(dark, axis=1) / np.nanmean(dark, axis=1)
    if not np.nanmedian(spread) > _STEPS * np.quantile(above, _SMALLEST):
        return None
    known = np.count_nonzero(~np.isnan(dark))
    return Floor(
        level=float(level),
        share=float(np.count_nonzero((image == level) & use) / number),
        is_spoilt=bool(np.count_nonzero(dark == 0) > _SPOILT_SHARE * known),
    )


def _dark_blocks(image: Array, use: Array, level: float) -> Array:
    """Heights above a floor of the pixels in the darker half of blocks, NaN where unusable.

    Blocks with fewer than half of their pixels usable are left out.
    """
    ny, nx = (n // _BLOCK for n in image.shape)
    rows, columns = np.divmod(np.arange(ny * nx)[:: max(1, ny * nx // _MOST_BLOCKS)], max(nx, 1))
    inside = np.arange(_BLOCK)
    part = (
        (rows[:, None] * _BLOCK + inside)[:, :, None],
        (columns[:, None] * _BLOCK + inside)[:, None, :],
    )
    values = np.where(use[part], np.maximum(image[part].astype(np.float64) - level, 0), np.nan)
    values = values.reshape(-1, _BLOCK**2)
    values = values[np.count_nonzero(np.isnan(values), axis=1) < _BLOCK**2 / 2]
    if not len(values):
        return values
    means = np.nanmean(values, axis=1)
    dark: Array = values[means <= np.median(means)]
    return dark
