"""Selection of header cards that describe the file, the sky, or the observation."""

from __future__ import annotations

import re
import urllib.parse
import warnings
from collections.abc import Iterable

import astropy.io.fits

from ..errors import FileFormatError
from ..exposures.sky import wcs_cards, without_wcs

__all__ = [
    "escaped",
    "first_value",
    "observation_header",
    "pixel_origin",
    "storable",
    "unescaped",
    "wcs_cards",
    "without_lookup_tables",
    "without_provenance",
    "without_wcs",
]

_LARGEST_ORIGIN = 1e8
# Without %, which begins an encoded character.
_PRINTABLE = "".join(map(chr, range(32, 127))).replace("%", "")

# Cards that describe how the data were stored.
_STORAGE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|GROUPS|BSCALE|BZERO|BLANK|"
    r"EXTNAME|EXTVER|EXTLEVEL|INHERIT|CHECKSUM|DATASUM|DATE|END|"
    r"ZIMAGE|ZTENSION|ZBITPIX|ZNAXIS\d*|ZTILE\d+|ZCMPTYPE|ZNAME\d+|ZVAL\d+|ZQUANTIZ|ZDITHER0|"
    r"ZBLANK|ZSIMPLE|ZEXTEND|ZPCOUNT|ZGCOUNT|ZHECKSUM|ZDATASUM|"
    r"TFIELDS|THEAP|(TTYPE|TFORM|TUNIT|TNULL|TSCAL|TZERO|TDISP|TDIM)\d+|"
    r"MSK[NMD]\d{4}|MP_.*|"
    r"FMTVER|INDXADDR|INDXSIZE|JSONADDR|JSONSIZE|DATAMODL"
)
_THIRD_AXIS = re.compile(
    r"(CTYPE|CRPIX|CRVAL|CUNIT|CDELT|CROTA|CNAME|CRDER|CSYER)[3-9][A-Z]?|"
    r"(CD|PC)([3-9]_[1-9]|[1-9]_[3-9])[A-Z]?|(PV|PS)[3-9]_\d+[A-Z]?"
)
_ALTERNATE = re.compile(
    r"(WCSAXES|WCSNAME|(CTYPE|CRPIX|CRVAL|CUNIT|CDELT|CNAME)[1-9]|(CD|PC)[1-9]_[1-9])"
    r"(?P<letter>[A-Z])"
)
# Distortions of HST: CPDIS and D2IM.
_LOOKUP = re.compile(r"(CPDIS|CPERR|D2IMDIS|D2IMERR)[12]|(DP|D2IM)[12](\..*)?|AXISCORR")
_PROVENANCE = re.compile(
    r"WD(KFROM|FSEXP|FSMEAS|FSERR|TX|TY|TFLUX|TFERR|TKERR|TRAD|CHIPIX|DOUBT|KELEV|KEFWHM|PHOTON|"
    r"TASK|VERS|SCI|TMPL|DIFF|KERN|PSF|PRECON|SVARIN|TVARIN|SGAIN|TGAIN|SRDN|TRDN|"
    r"SEXPT|TEXPT|SMASK|TMASK|SMBITS|TMBITS|SSATUR|TSATUR|CONV|SCORE|"
    r"FULLV|TRANSF|IGNORE|XCEN|YCEN|KSUM|SVAR|TVAR|VUNC|VCON|VBEF|VAFT|GRIDX|GRIDY|CONTAM|SVFAC|TVFAC|BASIS|"
    r"INJN|INJTAB|INJSED|INJGAI|KORDER|BORDER|BMODEL|NSTAR|NUSED|KSERR|KWSUM|KWERR|CHI2|HELDX2|COND|SFWHM|TFWHM|TFRAC|SPSFIN|TPSFIN|SCALE|SPAT|FILL|"
    r"NIMG|SPERR|SNOI0|TNOI0|SNSIG|SNERR|TNERR|TNSIG|SNFLR|TNFLR|FLXERR|"
    r"SKERN|TKERN|SWGT|TWGT|SVARS|TVARS|COMB|WHITE|NOISES|ALIGN|ALAREA|ALROT|ALERR|DIVIS|FLOOR|FLFRAC|CMAX|VPIX|VWHITE|"
    r"BOXX0|BOXX1|BOXY0|BOXY1|BUTID|BUTTYP|BUTRUN|BUTQID|BUTIN|SOFTW|NREG|"
    r"DEPTH|MAGLIM|ZERO|PARTS|SGWID|SGERR|SGOFF|PSFENC|PSFERR)"
)


def observation_header(header: astropy.io.fits.Header) -> astropy.io.fits.Header:
    """Cards of a header that stay true however the data are stored.

    Parameters
    ----------
    header
        Header of an image HDU.

    Returns
    -------
    header
        Copy without structural, compression, checksum, mask-plane and archive cards, and
        without the linear WCS ``A`` that records the pixel origin.  All other cards are verbatim.
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
    """Copy of a header without whitediff's cards of an earlier run.

    Parameters
    ----------
    header
        Header of a file.

    Returns
    -------
    header
        All other cards, verbatim.
    """
    return _without(header, _PROVENANCE)


def without_lookup_tables(
    header: astropy.io.fits.Header,
) -> tuple[astropy.io.fits.Header, float | None]:
    """Copy of a header without the cards of distortions that are tables in the same file.

    Parameters
    ----------
    header
        Header of an image.

    Returns
    -------
    header
        Header whose WCS can be used without the file.
    error
        Largest correction by the tables that their cards state, pixels; None without tables.
    """
    if not any(_LOOKUP.fullmatch(card.keyword) for card in header.cards):
        return header, None
    errors = [
        float(card.value)
        for card in header.cards
        if card.keyword.startswith(("CPERR", "D2IMERR")) and isinstance(card.value, int | float)
    ]
    return _without(header, _LOOKUP), max(errors, default=0.0)


def _without(header: astropy.io.fits.Header, keywords: re.Pattern[str]) -> astropy.io.fits.Header:
    return astropy.io.fits.Header(
        [card for card in header.cards if not keywords.fullmatch(card.keyword)], copy=True
    )


def storable(header: astropy.io.fits.Header) -> tuple[astropy.io.fits.Header, list[str]]:
    """Cards of a header that a FITS image of two axes can hold.

    Parameters
    ----------
    header
        Header.

    Returns
    -------
    header
        Cards that are legal FITS, verbatim.  A WCS of more than two axes is reduced to the first
        two, and an alternate WCS of one axis is left out, since lsst.images can read neither.
    dropped
        Keywords of the cards that are left out or changed.
    """
    cards, dropped = [], []
    axes = header.get("WCSAXES", 2)
    lame = {
        letter
        for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        if f"CTYPE1{letter}" in header and f"CTYPE2{letter}" not in header
    }
    for card in header.cards:
        keyword = card.keyword
        alternate = _ALTERNATE.fullmatch(keyword)
        if keyword == "WCSAXES" and axes != 2:
            card = astropy.io.fits.Card("WCSAXES", 2, "of 2: the others were left out")
            dropped.append(keyword)
        elif _THIRD_AXIS.fullmatch(keyword) or (alternate and alternate["letter"] in lame):
            dropped.append(keyword)
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                text = str(card)
                card.verify("exception")
            text.encode("ascii")
        except Exception:
            # A card that astropy cannot repair must not enter a new file.
            dropped.append(keyword)
            continue
        if not text.isprintable():
            dropped.append(keyword)
            continue
        cards.append(card)
    return astropy.io.fits.Header(cards, copy=True), dropped


def escaped(text: str) -> str:
    """Text that a header card can hold.

    Parameters
    ----------
    text
        Any text, such as the name of a file.

    Returns
    -------
    text
        Text in which characters other than printable ASCII are percent-encoded.

    Examples
    --------
    >>> escaped("Nächte/1 a.fits"), unescaped("N%C3%A4chte/1 a.fits")
    ('N%C3%A4chte/1 a.fits', 'Nächte/1 a.fits')
    """
    return urllib.parse.quote(text, safe=_PRINTABLE, errors="surrogateescape")


def unescaped(text: str) -> str:
    """Text that `escaped` encoded.

    Parameters
    ----------
    text
        Value of a card.

    Returns
    -------
    text
        Text before it was encoded.
    """
    return urllib.parse.unquote(text, errors="surrogateescape")


def first_value(
    headers: Iterable[astropy.io.fits.Header], keywords: Iterable[str]
) -> tuple[str, float] | None:
    """First number among some keywords of some headers.

    Parameters
    ----------
    headers
        Headers, in the order of the search.
    keywords
        Keywords, in the order in which they are tried in each header.

    Returns
    -------
    keyword, value
        First match, which may be a number written as a string; None if there is none.
    """
    keywords = list(keywords)
    for header in headers:
        for keyword in keywords:
            value = header.get(keyword)
            if isinstance(value, int | float | str) and not isinstance(value, bool):
                try:
                    return keyword, float(value)
                except ValueError:
                    continue
    return None


def pixel_origin(header: astropy.io.fits.Header, name: str) -> tuple[int, int]:
    """Pixel coordinates of an array's first pixel, from the linear WCS ``A``.

    Parameters
    ----------
    header
        Header of the image.
    name
        File or image, for the message.

    Returns
    -------
    origin
        (y, x); (0, 0) if there is no such WCS.

    Raises
    ------
    FileFormatError
        If the cards give no valid position.

    Notes
    -----
    LTV cards are not used: they usually point into the detector's raw frame, which differs
    between images of the same grid.
    """
    if header.get("CTYPE1A") != "LINEAR" or not {"CRVAL1A", "CRVAL2A"} & set(header):
        return (0, 0)
    found = []
    for axis in (2, 1):
        value, reference = (
            header.get(f"{card}{axis}A", d) for card, d in (("CRVAL", None), ("CRPIX", 1.0))
        )
        if not all(
            isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < _LARGEST_ORIGIN
            for n in (value, reference)
        ):
            raise FileFormatError.of(
                name,
                f"the pixel origin, CRVAL{axis}A = {value!r} and CRPIX{axis}A ="
                f" {reference!r}, is no position; is the file whole?",
            )
        found.append(round(value - (reference - 1.0)))
    return (found[0], found[1])
