"""Use of each HDU in whitediff's files and in lsst.images archives."""

from __future__ import annotations

from pathlib import Path

import astropy.io.fits

from ..files import Extension
from ..format import Identity

__all__ = ["ROLES", "roles"]

ROLES = {
    "IMAGE": "image", "MASK": "mask", "VARIANCE": "variance", "JSON": "archive", "INDEX": "archive",
    "PSF": "PSF", "PSF_COEFFICIENTS": "PSF", "KERNEL": "kernel", "KERNEL_COEFFICIENTS": "kernel",
    "BACKGROUND": "background", "FLUX": "flux", "FLUX_VARIANCE": "flux",
    "INPUT_PSF": "solution", "INPUT_PSF_COEFFICIENTS": "solution", "PRECONVOLUTION": "solution",
    "SCIENCE_NOISE": "solution", "SCIENCE_NOISE_COEFFICIENTS": "solution",
    "TEMPLATE_NOISE": "solution", "TEMPLATE_NOISE_COEFFICIENTS": "solution",
    "NOISE_CORRELATION": "noise", "NOISE_CORRELATION_COEFFICIENTS": "noise",
    "STARS": "record", "LOG": "record", "REGISTRATION": "solution",
    "RECIPE": "solution",
}  # fmt: skip
"""Name of an HDU → how it is used."""


def roles(
    hdus: astropy.io.fits.HDUList, identity: Identity, extension: Extension, path: Path
) -> dict[int, str] | None:
    """How each HDU is used, by its name.

    Parameters
    ----------
    hdus, identity, extension, path
        As in `whitediff.formats.format.Format.roles`.

    Returns
    -------
    roles
        Index → role, empty for an HDU that is not used; None if an extension is named.
    """
    if extension is not None:
        return None
    return {i: ROLES.get(hdu.name.upper(), "") for i, hdu in enumerate(hdus)}
