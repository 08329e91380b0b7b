"""Is this a file with the planes IMAGE, MASK and VARIANCE, whose mask names its bits?"""

from __future__ import annotations

import astropy.io.fits

__all__ = ["recognise"]

_PLANES = ("IMAGE", "MASK", "VARIANCE")


def recognise(hdus: astropy.io.fits.HDUList) -> str | None:
    """What a file of whitediff holds.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    content
        ``exposure``; None for other files.

    Notes
    -----
    An archive that lsst.images wrote has the same planes, and more besides.
    """
    if "WDPARTS" not in hdus[0].header and "WDTASK" not in hdus[0].header:
        return None
    names = [hdu.name for hdu in hdus[1:]]
    return "exposure" if names[: len(_PLANES)] == list(_PLANES) else None
