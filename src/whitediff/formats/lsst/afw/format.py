"""Format of lsst.afw exposures."""

from __future__ import annotations

import astropy.io.fits

from ...format import Format, Identity, whole
from .read import read
from .recognise import recognise

__all__ = ["FORMAT"]


def _recognise(hdus: astropy.io.fits.HDUList) -> Identity | None:
    found = recognise(hdus)
    return None if found is None else Identity("lsst.afw", "image", f"lsst.afw exposure ({found})")


def _missing_planes(hdus: astropy.io.fits.HDUList, identity: Identity) -> list[str]:
    return [name for name in ("MASK", "VARIANCE") if name not in hdus]


FORMAT = Format(
    name="lsst.afw", recognise=_recognise, read=whole(read), missing_planes=_missing_planes
)
