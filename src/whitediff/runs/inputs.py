"""Reading what a run works on."""

from __future__ import annotations

import logging

import numpy as np

from .. import formats
from ..errors import DataError
from ..exposures import decorrelation, masks
from ..exposures.model import Exposure
from ..exposures.noise import without_sentinels
from ..reading import ReadingOptions

__all__ = ["check_usable", "read_input"]

log = logging.getLogger("whitediff.runs")


def read_input(path: str, options: ReadingOptions) -> Exposure:
    """Read a science image or template, with its variance from wherever there is one.

    Parameters
    ----------
    path
        File.
    options
        How it is read.

    Returns
    -------
    exposure
        `whitediff.Exposure` with at least one usable pixel.
    """
    exposure = without_sentinels(formats.read_exposure(path, options=options))
    check_usable(exposure, masks.UNTRUSTED_MASK_PLANES)
    variance = options.variance
    if isinstance(variance, float | int) and not decorrelation.variance_mean(exposure, ()) > 0:
        exposure = exposure.replaced(variance=np.full(exposure.shape, variance, dtype=np.float32))
        log.info("%s: its variance plane is unusable; %g is used everywhere.", path, variance)
    return exposure


def check_usable(exposure: Exposure, planes: tuple[str, ...]) -> None:
    """Make sure that an exposure has something to work with.

    Parameters
    ----------
    exposure
        Exposure.
    planes
        Mask planes whose pixels do not count.

    Raises
    ------
    DataError
        If no pixel is finite, or none of those is unmasked.
    """
    finite = np.isfinite(exposure.data)
    if not finite.any():
        raise DataError(
            f"{exposure.source}: no finite pixel: all {finite.size} are NaN or infinite."
        )
    if not (finite & ~masks.flagged(exposure.mask, planes)).any():
        raise DataError(
            f"{exposure.source}: no usable pixel: all {finite.size} are masked"
            f" ({', '.join(planes)}) or not finite; is its mask right?"
        )
