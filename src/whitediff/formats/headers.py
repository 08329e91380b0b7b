"""Which header cards describe the file, the sky, or the observation."""

from __future__ import annotations

import re
from collections.abc import Iterable

import astropy.io.fits

__all__ = ["first_value", "observation_header", "wcs_cards", "without_provenance"]

# Cards that describe the storage of the data they came with.
_STORAGE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|GROUPS|BSCALE|BZERO|BLANK|"
    r"EXTNAME|EXTVER|EXTLEVEL|INHERIT|CHECKSUM|DATASUM|DATE|END|"
    r"ZIMAGE|ZTENSION|ZBITPIX|ZNAXIS\d*|ZTILE\d+|ZCMPTYPE|ZNAME\d+|ZVAL\d+|ZQUANTIZ|ZDITHER0|"
    r"ZBLANK|ZSIMPLE|ZEXTEND|ZPCOUNT|ZGCOUNT|ZHECKSUM|ZDATASUM|"
    r"TFIELDS|THEAP|(TTYPE|TFORM|TUNIT|TNULL|TSCAL|TZERO|TDISP|TDIM)\d+|"
    r"MSK[NMD]\d{4}|MP_.*|"
    r"FMTVER|INDXADDR|INDXSIZE|JSONADDR|JSONSIZE|DATAMODL"
)
_WCS = re.compile(
    r"WCSAXES|WCSDIM|RADESYS|RADECSYS|EQUINOX|EPOCH|LONPOLE|LATPOLE|MJDREF|"
    r"(CTYPE|CRPIX|CRVAL|CUNIT|CDELT|CROTA|CRDER|CSYER)[1-9]|"
    r"(CD|PC)[1-9]_[1-9]|(PV|PS)[1-9]_\d+|(A|B|AP|BP)_(ORDER|DMAX|\d_\d)|"
    r"WAT\d_\d{3}"
)
PROVENANCE_PREFIX = "WD"


def observation_header(header: astropy.io.fits.Header) -> astropy.io.fits.Header:
    """Cards of a header that stay true when the data are stored in another way.

    Parameters
    ----------
    header
        Header of an image HDU.

    Returns
    -------
    header
        Copy without structural, compression, checksum, mask-plane and archive cards, and
        without the linear WCS ``A`` that records the pixel origin.  The others are
        verbatim.
    """
    origin_wcs = set()
    if header.get("CTYPE1A") == "LINEAR":
        origin_wcs = {
            f"{key}{axis}A" for key in ("CTYPE", "CRPIX", "CRVAL", "CUNIT") for axis in (1, 2)
        }
    cards = [
        card
        for card in header.cards
        if not (_STORAGE.fullmatch(card.keyword) or card.keyword in origin_wcs)
    ]
    while cards and cards[-1].is_blank:
        cards.pop()
    return astropy.io.fits.Header(cards, copy=True)


def without_provenance(header: astropy.io.fits.Header) -> astropy.io.fits.Header:
    """Copy of a header without whitediff's own cards of an earlier run.

    Parameters
    ----------
    header
        Header of a file.

    Returns
    -------
    header
        The others, verbatim.
    """
    return astropy.io.fits.Header(
        [card for card in header.cards if not card.keyword.startswith(PROVENANCE_PREFIX)],
        copy=True,
    )


def wcs_cards(header: astropy.io.fits.Header) -> list[astropy.io.fits.Card]:
    """Cards of a header that describe its primary celestial WCS.

    Parameters
    ----------
    header
        Header.

    Returns
    -------
    cards
        In their order; distortions (SIP, PV) included.
    """
    return [card for card in header.cards if _WCS.fullmatch(card.keyword)]


def first_value(
    headers: Iterable[astropy.io.fits.Header], keywords: Iterable[str]
) -> tuple[str, float] | None:
    """First number among some keywords of some headers.

    Parameters
    ----------
    headers
        Searched in this order.
    keywords
        Tried in this order in each.

    Returns
    -------
    keyword, value
        None where there is none.
    """
    keywords = list(keywords)
    for header in headers:
        for keyword in keywords:
            value = header.get(keyword)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return keyword, float(value)
    return None
