"""Format of PSFEx models."""

from __future__ import annotations

from pathlib import Path

import astropy.io.fits

from ..files import Extension
from ..format import Format, Identity
from .read import read
from .recognise import fitted_range, recognise

__all__ = ["FORMAT"]


def _recognise(hdus: astropy.io.fits.HDUList) -> Identity | None:
    found = recognise(hdus)
    return None if found is None else Identity("psfex", "psf", f"PSFEx model ({found})")


def _roles(
    hdus: astropy.io.fits.HDUList, identity: Identity, extension: Extension, path: Path
) -> dict[int, str]:
    return {i: "PSF" for i, hdu in enumerate(hdus) if hdu.name == "PSF_DATA"}


FORMAT = Format(
    name="psfex",
    recognise=_recognise,
    read_psf=read,
    fitted_range=fitted_range,
    roles=_roles,
)
