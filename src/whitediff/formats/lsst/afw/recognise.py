"""Is this an exposure of lsst.afw?"""

from __future__ import annotations

import astropy.io.fits

__all__ = ["archived", "recognise"]

_PLANES = ("IMAGE", "MASK", "VARIANCE")


def recognise(hdus: astropy.io.fits.HDUList) -> str | None:
    """Planes that an exposure of lsst.afw has.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    detail
        Names, such as ``IMAGE, MASK, VARIANCE``; None if the file is no such exposure.
    """
    names = {hdu.name.upper() for hdu in hdus[1:]}
    if "IMAGE" not in names or not names & {"MASK", "VARIANCE"}:
        return None
    own = any(
        "EXPINFO_V" in hdu.header or "AR_HDU" in hdu.header or "EXTTYPE" in hdu.header
        for hdu in hdus[:4]
    )
    planes = any(card.startswith("MP_") for hdu in hdus[1:4] for card in hdu.header)
    return ", ".join(n for n in _PLANES if n in names) if own or planes else None


def archived(hdus: astropy.io.fits.HDUList) -> list[str]:
    """Objects in the archive behind the planes, which only lsst.afw can read.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    names
        Names, such as ``PsfexPsf``.
    """
    tables = [hdu for hdu in hdus if isinstance(hdu, astropy.io.fits.BinTableHDU)]
    names = [
        str(hdu.header.get("EXTNAME", ""))
        for hdu in tables
        if not isinstance(hdu, astropy.io.fits.CompImageHDU)
    ]
    return [name for name in names if name and name != "ARCHIVE_INDEX"]
