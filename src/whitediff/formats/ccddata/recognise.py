"""Is this a file of astropy's CCDData?"""

from __future__ import annotations

import astropy.io.fits

__all__ = ["FLAGS", "MASK", "PSF", "UNCERTAINTY", "recognise"]

MASK, UNCERTAINTY, PSF, FLAGS = "MASK", "UNCERT", "PSFIMAGE", "FLAGS"
"""Names of extensions: three of astropy's defaults, and the one for its ``hdu_flags``."""


def recognise(hdus: astropy.io.fits.HDUList) -> str | None:
    """Extensions of a CCDData file.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    detail
        Names, such as ``MASK, UNCERT``; None if the file has neither UNCERT nor PSFIMAGE.
    """
    names = [hdu.name.upper() for hdu in hdus[1:]]
    if UNCERTAINTY not in names and PSF not in names:
        return None
    return ", ".join(name for name in names if name in (MASK, UNCERTAINTY, PSF, FLAGS))
