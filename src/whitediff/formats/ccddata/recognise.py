"""Is this a file of astropy's CCDData?"""

from __future__ import annotations

import astropy.io.fits

__all__ = ["FLAGS", "MASK", "PSF", "UNCERTAINTY", "recognise"]

MASK, UNCERTAINTY, PSF, FLAGS = "MASK", "UNCERT", "PSFIMAGE", "FLAGS"
"""Extensions: three of astropy's defaults, and the one for its ``hdu_flags``."""


def recognise(hdus: astropy.io.fits.HDUList) -> str | None:
    """Extensions of a CCDData file.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    detail
        Such as ``MASK, UNCERT``; None if it has none that only such a file has.
    """
    names = [hdu.name.upper() for hdu in hdus[1:]]
    if UNCERTAINTY not in names and PSF not in names:
        return None
    return ", ".join(name for name in names if name in (MASK, UNCERTAINTY, PSF, FLAGS))
