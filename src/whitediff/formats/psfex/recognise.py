"""Is this a PSF model of PSFEx?"""

from __future__ import annotations

from typing import Any

import astropy.io.fits

__all__ = ["fitted_range", "models", "recognise"]

_LARGEST = 1e6
_CARDS = {"PSF_SAMP", "PSFNAXIS", "POLNAXIS"}


def recognise(hdus: astropy.io.fits.HDUList) -> str | None:
    """What a file of PSFEx holds.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    detail
        Number of models, one for each detector; None if it is none.
    """
    found = models(hdus)
    if not found:
        return None
    return "one detector" if len(found) == 1 else f"{len(found)} detectors"


def models(hdus: astropy.io.fits.HDUList) -> list[Any]:
    """Tables with a model.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    tables
        In their order.
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
        From and to; None where the file does not say.
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
