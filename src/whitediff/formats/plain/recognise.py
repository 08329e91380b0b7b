"""Is there an image in this FITS file?"""

from __future__ import annotations

import astropy.io.fits

__all__ = ["recognise"]


def recognise(hdus: astropy.io.fits.HDUList) -> bool:
    """Whether a FITS file holds an image in some HDU.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    found
        True for data of any number of dimensions: reading says what is wrong with them.
    """
    return any(hdu.header.get("NAXIS", 0) for hdu in hdus)
