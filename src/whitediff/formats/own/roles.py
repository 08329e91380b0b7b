"""How the HDUs of whitediff's files, and of lsst.images archives, are used."""

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
"""Names of HDUs, and how each is used."""


def roles(
    hdus: astropy.io.fits.HDUList, identity: Identity, extension: Extension, path: Path
) -> dict[int, str] | None:
    """How each HDU is used, by its name.

    Parameters
    ----------
    hdus, identity, extension, path
        As for `whitediff.formats.format.Format.roles`.

    Returns
    -------
    roles
        Index → role, empty where it is used for nothing; None where an extension is named.
    """
    if extension is not None:
        return None
    return {i: ROLES.get(hdu.name.upper(), "") for i, hdu in enumerate(hdus)}
