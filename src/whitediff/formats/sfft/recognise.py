"""Is this a difference of SFFT, or its solution?"""

from __future__ import annotations

import astropy.io.fits

__all__ = ["recognise"]

_SOLUTION = {"DK", "DB", "L0", "L1", "FIJ", "FAB", "FPQ", "FIJAB"}
_DIFFERENCE = {"KERORDER", "BGORDER", "KERHW", "CONVD"}


def recognise(hdus: astropy.io.fits.HDUList) -> str | None:
    """Kind of an SFFT file.

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
    # A file with one damaged card is still a solution, so that reading can name the card.
    if len(_SOLUTION & set(header)) >= len(_SOLUTION) - 1 and header.get("NAXIS2", 1) == 1:
        return "kernel"
    if set(header) >= _DIFFERENCE:
        return "difference"
    return None
