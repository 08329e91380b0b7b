"""Is this a difference of SFFT, or its solution?"""

from __future__ import annotations

import astropy.io.fits

__all__ = ["recognise"]

_SOLUTION = {"DK", "DB", "L0", "L1", "FIJ", "FAB", "FPQ", "FIJAB"}
_DIFFERENCE = {"KERORDER", "BGORDER", "KERHW", "CONVD"}


def recognise(hdus: astropy.io.fits.HDUList) -> str | None:
    """What a file of SFFT is.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    kind
        ``difference`` or ``kernel`` (a solution); None if it is neither.
    """
    header = hdus[0].header
    # One of the cards may be damaged; that is for reading to say.
    if len(_SOLUTION & set(header)) >= len(_SOLUTION) - 1 and header.get("NAXIS2", 1) == 1:
        return "kernel"
    if set(header) >= _DIFFERENCE:
        return "difference"
    return None
