"""Is this a file of whitediff, with the planes IMAGE, MASK and VARIANCE?"""

from __future__ import annotations

import astropy.io.fits

__all__ = ["PLANES", "recognise"]

PLANES = ("IMAGE", "MASK", "VARIANCE")


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
    # One that has lost a plane is ours all the same.
    return "exposure" if len(hdus) > 1 and hdus[1].name == PLANES[0] else None
