"""Is this a PSF model of PSFEx?"""

from __future__ import annotations

import astropy.io.fits

__all__ = ["fitted_range", "models", "recognise"]

_LARGEST = 1e6
_CARDS = {"PSF_SAMP", "PSFNAXIS", "POLNAXIS"}


def recognise(hdus: astropy.io.fits.HDUList) -> str | None:
    """Number of models in a PSFEx file, in words.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    detail
        Number of detectors, each with a model; None if the file is not from PSFEx.
    """
    found = models(hdus)
    if not found:
        return None
    return "one detector" if len(found) == 1 else f"{len(found)} detectors"


def models(hdus: astropy.io.fits.HDUList) -> list[astropy.io.fits.BinTableHDU]:
    """Tables that hold a PSFEx model.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    tables
        Tables, in the order of the file.
    """
    return [
        hdu
        for hdu in hdus
        if isinstance(hdu, astropy.io.fits.BinTableHDU)
        and (hdu.name == "PSF_DATA" or set(hdu.header) >= _CARDS)
    ]


def fitted_range(
    hdus: astropy.io.fits.HDUList,
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Range of pixel coordinates that the first model was fitted to.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    x, y
        First and last coordinate, from 0; None if the file does not give them.
    """
    for table in models(hdus)[:1]:
        cards = [
            table.header.get(f"{card}{axis}") for axis in (1, 2) for card in ("POLZERO", "POLSCAL")
        ]
        if all(isinstance(n, int | float) and abs(n) < _LARGEST for n in cards):
            ranges = [(z - 1 - abs(s) / 2, z - 1 + abs(s) / 2) for z, s in (cards[:2], cards[2:])]
            if str(table.header.get("POLNAME1")).startswith("Y"):
                ranges.reverse()
            return ranges[0], ranges[1]
    return None
