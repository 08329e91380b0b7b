"""Format of FITS files with no layout of their own; it is the last one that is asked."""

from __future__ import annotations

import astropy.io.fits

from ..format import Format, Identity, whole
from .read import read
from .recognise import recognise, stamps

__all__ = ["FORMAT"]


def _recognise(hdus: astropy.io.fits.HDUList) -> Identity | None:
    if not recognise(hdus):
        return None
    kind = stamps(hdus)
    return Identity("plain", kind or "image", f"FITS ({kind})" if kind else "FITS")


FORMAT = Format(name="plain", recognise=_recognise, read=whole(read), says_little=True)
