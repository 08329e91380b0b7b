"""Reading what a run works on."""

from __future__ import annotations

import logging

import numpy as np

from .. import formats
from ..errors import ArgumentError, DataError
from ..exposures import decorrelation, masks
from ..exposures.model import Exposure
from ..exposures.noise import without_sentinels

__all__ = ["check_usable", "read_input"]

log = logging.getLogger("whitediff.runs")


def read_input(
    name: str,
    path: str,
    variance: float | str | None,
    gain: float | None,
    read_noise: float | None,
) -> Exposure:
    """Read a science image or template, with its variance from wherever there is one.

    Parameters
    ----------
    name
        ``science`` or ``template``.
    path
        File.
    variance, gain, read_noise
        As the options of the command have them.

    Returns
    -------
    exposure
        `whitediff.Exposure` with at least one usable pixel.
    """
    if isinstance(variance, float) and not 0 < variance < float("inf"):
        raise ArgumentError(
            f"{path}: --{name}-variance must be a positive number or a file; got {variance:g}."
        )
    exposure = formats.read_exposure(
        path,
        variance=(
            formats.VarianceSource.parse(variance) if isinstance(variance, str) else variance
        ),
        gain=gain,
        read_noise=read_noise,
    )
    exposure = without_sentinels(exposure)
    check_usable(exposure, masks.UNTRUSTED_MASK_PLANES)
    if isinstance(variance, float) and not decorrelation.variance_mean(exposure, ()) > 0:
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
    finite = np.isfinite(exposure.image.array)
    if not finite.any():
        raise DataError(
            f"{exposure.source}: no finite pixel: all {finite.size} are NaN or infinite."
        )
    if not (finite & ~masks.flagged(exposure.mask, planes)).any():
        raise DataError(
            f"{exposure.source}: no usable pixel: all {finite.size} are masked"
            f" ({', '.join(planes)}) or not finite; is its mask right?"
        )
