"""Is there an image in this FITS file?"""

from __future__ import annotations

from typing import Literal

import astropy.io.fits

__all__ = ["recognise", "stamps"]


def stamps(hdus: astropy.io.fits.HDUList) -> Literal["kernel", "psf"] | None:
    """Whether a FITS file holds nothing but a kernel or a PSF.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    kind
        Kind, by the names of the extensions with data; None for all other files.
    """
    names = {
        hdu.name.upper().removesuffix("_COEFFICIENTS") for hdu in hdus if hdu.header.get("NAXIS", 0)
    }
    if names == {"KERNEL"}:
        return "kernel"
    return "psf" if names == {"PSF"} else None


def recognise(hdus: astropy.io.fits.HDUList) -> bool:
    """Whether a FITS file holds an image in some HDU.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    found
        True for data of any number of dimensions; reading reports what is wrong with them.
    """
    return any(hdu.header.get("NAXIS", 0) for hdu in hdus)
