"""Format of Piff's PSF models; Piff is imported only when one is read."""

from __future__ import annotations

from pathlib import Path

import astropy.io.fits

from ..files import Extension
from ..format import Format, Identity
from .read import read
from .recognise import facts, fitted_range, recognise

__all__ = ["FORMAT"]


def _recognise(hdus: astropy.io.fits.HDUList) -> Identity | None:
    found = recognise(hdus)
    if found is None:
        return None
    return Identity("piff", "psf", f"Piff model ({found})" if found else "Piff model")


def _facts(hdus: astropy.io.fits.HDUList, identity: Identity) -> dict[str, str]:
    # Only from the tables: a description must not need Piff.
    return {"PSF": "unknown"} | facts(hdus)


def _roles(
    hdus: astropy.io.fits.HDUList, identity: Identity, extension: Extension, path: Path
) -> dict[int, str]:
    return {i: "PSF" for i, hdu in enumerate(hdus) if hdu.name.lower().startswith("psf")}


FORMAT = Format(
    name="piff",
    recognise=_recognise,
    read_psf=read,
    fitted_range=fitted_range,
    roles=_roles,
    facts=_facts,
)
