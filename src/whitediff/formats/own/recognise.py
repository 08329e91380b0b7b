"""Is this a file of whitediff, with the planes IMAGE, MASK and VARIANCE?"""

from __future__ import annotations

import astropy.io.fits

__all__ = ["PLANES", "recognise"]

PLANES = ("IMAGE", "MASK", "VARIANCE")


def recognise(hdus: astropy.io.fits.HDUList) -> str | None:
    """Content of a whitediff file.

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
    An archive of lsst.images has the same planes, and further extensions.
    """
    if "WDPARTS" not in hdus[0].header and "WDTASK" not in hdus[0].header:
        return None
    # A file that has lost its mask or variance is still ours, so that reading can say so.
    return "exposure" if len(hdus) > 1 and hdus[1].name == PLANES[0] else None
