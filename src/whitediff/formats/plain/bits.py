"""Meanings of bits and codes in the masks of instruments and surveys."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import astropy.io.fits

__all__ = ["CONVENTIONS", "Convention", "Meaning", "recognised"]

BAD, CR, NO_DATA, SAT = "BAD", "CR", "NO_DATA", "SAT"


@dataclasses.dataclass(frozen=True)
class Meaning:
    """Meaning of one bit or one value of a mask.

    Attributes
    ----------
    number
        Number of the bit, from 0; in a mask with values, the value.
    name
        Name in the handbook; also the name of the mask plane if `plane` is None.
    plane
        Mask plane that the pixels get, one of `whitediff.exposures.masks.UNTRUSTED_MASK_PLANES`;
        None if the pixel may be used.
    only_with
        Bit that must also be set for the pixel to be bad; None if no other bit matters.
    """

    number: int
    name: str
    plane: str | None = None
    only_with: int | None = None


@dataclasses.dataclass(frozen=True)
class Convention:
    """Convention of an instrument or a survey for its masks.

    Attributes
    ----------
    name
        Instrument or survey, for messages.
    meanings
        Meanings of the bits or values; those not listed are bad.
    source
        Document that gives the meanings.
    is_coded
        Whether a pixel holds one of several values instead of bits.
    summary
        Bit that is set besides the bit of the reason; alone it means BAD.
    """

    name: str
    meanings: tuple[Meaning, ...]
    source: str
    is_coded: bool = False
    summary: int | None = None


def _meanings(*rows: tuple[int, str] | tuple[int, str, str]) -> tuple[Meaning, ...]:
    return tuple(Meaning(*row) for row in rows)


# Hot and warm pixels of HST are usable, since dark subtraction corrects them.
_HST_CCD = (
    (0, "LOST", BAD),
    (1, "FILLED", NO_DATA),
    (2, "DETECTOR", BAD),
    (3, "APERTURE", BAD),
    (4, "HOT"),
    (5, "UNSTABLE", BAD),
    (6, "WARM"),
    (7, "BIAS", BAD),
    (8, "FULL_WELL", SAT),
    (9, "FLAT", BAD),
    (10, "TRAP", BAD),
    (11, "A_TO_D", SAT),
    (12, "CR_DRIZZLE", CR),
    (13, "CR_REJECTED", CR),
    (14, "ARTIFACT", BAD),
)

CONVENTIONS = {
    "acs": Convention(
        "HST ACS", _meanings(*_HST_CCD), "ACS Data Handbook, data quality flag definitions"
    ),
    "wfc3-uvis": Convention(
        "HST WFC3/UVIS", _meanings(*_HST_CCD), "WFC3 Data Handbook, data quality flags"
    ),
    "wfc3-ir": Convention(
        "HST WFC3/IR",
        # CR_IN_RAMP pixels are usable: the slope leaves out reads that a cosmic ray spoiled.
        _meanings(
            (0, "LOST", BAD),
            (1, "FILLED", NO_DATA),
            (2, "DETECTOR", BAD),
            (3, "ZERO_READ", BAD),
            (4, "HOT"),
            (5, "UNSTABLE", BAD),
            (6, "WARM"),
            (7, "REFERENCE", BAD),
            (8, "FULL_WELL", SAT),
            (9, "FLAT", BAD),
            (11, "ZERO_SIGNAL"),
            (12, "CR_DRIZZLE", CR),
            (13, "CR_IN_RAMP"),
            (14, "ARTIFACT", BAD),
        ),
        "WFC3 Data Handbook, data quality flags",
    ),
    "jwst": Convention(
        "JWST",
        # A ramp is fitted to its good groups, so a jump or saturated group does not spoil the
        # slope, unless DO_NOT_USE is set.
        (
            Meaning(0, "DO_NOT_USE", BAD),
            Meaning(1, "SATURATED", SAT, 0),
            Meaning(2, "JUMP_DET", CR, 0),
            Meaning(3, "DROPOUT", NO_DATA, 0),
            Meaning(4, "OUTLIER", CR, 0),
            Meaning(5, "PERSISTENCE"),
            Meaning(6, "AD_FLOOR", BAD, 0),
            Meaning(7, "CHARGELOSS"),
            Meaning(8, "UNRELIABLE_ERROR"),
            Meaning(9, "NON_SCIENCE", NO_DATA),
            Meaning(10, "DEAD", BAD, 0),
            Meaning(11, "HOT", BAD, 0),
            Meaning(12, "WARM"),
            Meaning(13, "LOW_QE"),
            Meaning(14, "RC"),
            Meaning(15, "TELEGRAPH"),
            Meaning(16, "NONLINEAR"),
            Meaning(17, "BAD_REF_PIXEL"),
            Meaning(18, "NO_FLAT_FIELD"),
            Meaning(19, "NO_GAIN_VALUE"),
            Meaning(20, "NO_LIN_CORR"),
            Meaning(21, "NO_SAT_CHECK"),
            Meaning(22, "UNRELIABLE_BIAS"),
            Meaning(23, "UNRELIABLE_DARK"),
            Meaning(24, "UNRELIABLE_SLOPE"),
            Meaning(25, "UNRELIABLE_FLAT"),
            Meaning(26, "OPEN"),
            Meaning(27, "ADJ_OPEN"),
            Meaning(28, "FLUX_ESTIMATED"),
            Meaning(29, "MSA_FAILED_OPEN"),
            Meaning(30, "OTHER_BAD_PIXEL"),
            Meaning(31, "REFERENCE_PIXEL", NO_DATA),
        ),
        "JWST calibration pipeline, data quality flags",
        summary=0,
    ),
    "decam": Convention(
        "DECam Community Pipeline, V3.5.0 and later",
        _meanings(
            (1, "BAD_PIXEL", BAD),
            (2, "NO_VALUE", NO_DATA),
            (3, "SATURATED", SAT),
            (4, "BLEED", SAT),
            (5, "COSMIC_RAY", CR),
            (6, "LOW_WEIGHT", BAD),
            (7, "DIFFERENCE", CR),
            (8, "STREAK", BAD),
        ),
        "NOAO Data Handbook, DECam Community Pipeline",
        is_coded=True,
    ),
    "decam-bits": Convention(
        "DECam Community Pipeline before V3.5.0",
        _meanings(
            (0, "BAD_PIXEL", BAD),
            (1, "SATURATED", SAT),
            (2, "INTERPOLATED", BAD),
            (4, "COSMIC_RAY", CR),
            (6, "BLEED", SAT),
            (7, "TRANSIENT", CR),
        ),
        "NOAO Data Handbook, DECam Community Pipeline",
    ),
    "des": Convention(
        "Dark Energy Survey",
        _meanings(
            (0, "BPM", BAD),
            (1, "SATURATE", SAT),
            (2, "INTERP", BAD),
            (3, "LOW", BAD),
            (4, "CRAY", CR),
            (5, "STAR"),
            (6, "TRAIL", SAT),
            (7, "EDGEBLEED", BAD),
            (8, "SSXTALK", BAD),
            (9, "GLOWING_EDGE", BAD),
            (10, "STREAK", BAD),
            (11, "SUSPECT"),
            (12, "FIXED"),
            (13, "NEAR_EDGE"),
            (14, "TAPE_BUMP"),
        ),
        "DES Data Management, mask bits",
    ),
    "ztf": Convention(
        "ZTF",
        # The bad bits are those of the survey's own value 6141.
        _meanings(
            (0, "TRACK", BAD),
            (1, "OBJECT"),
            (2, "LOW_RESPONSE", BAD),
            (3, "HIGH_RESPONSE", BAD),
            (4, "NOISY", BAD),
            (5, "GHOST", BAD),
            (6, "CHARGE_SPILLAGE", BAD),
            (7, "SPIKE", CR),
            (8, "SATURATED", SAT),
            (9, "DEAD", BAD),
            (10, "NAN", NO_DATA),
            (11, "PSF_OBJECT"),
            (12, "HALO", BAD),
        ),
        "ZTF Science Data System Explanatory Supplement, section 10.3",
    ),
    "ps1": Convention(
        "Pan-STARRS",
        # The bad bits are those of the survey's own MASK.VALUE, 8575.
        _meanings(
            (0, "DETECTOR", BAD),
            (1, "FLAT", BAD),
            (2, "DARK", BAD),
            (3, "BLANK", NO_DATA),
            (4, "CTE", BAD),
            (5, "SATURATED", SAT),
            (6, "LOW", BAD),
            (7, "SUSPECT"),
            (8, "COSMIC_RAY", CR),
            (9, "SPIKE"),
            (10, "GHOST"),
            (11, "STREAK_OR_TRAIL"),
            (12, "STARCORE"),
            (13, "CONV_BAD", BAD),
            (14, "CONV_POOR"),
            (15, "MARK"),
        ),
        "PS1 data archive, pixel flags in image data",
    ),
    "lsst": Convention(
        "LSST",
        _meanings(
            (0, "BAD", BAD),
            (1, "SAT", SAT),
            (2, "INTRP"),
            (3, "CR", CR),
            (4, "EDGE"),
            (5, "DETECTED"),
            (6, "DETECTED_NEGATIVE"),
            (7, "SUSPECT"),
            (8, "NO_DATA", NO_DATA),
        ),
        "lsst.afw, planes that every mask has; others are named by MP_ cards",
    ),
    "lco": Convention(
        "Las Cumbres Observatory (BANZAI)",
        _meanings(
            (0, "BAD_PIXEL", BAD),
            (1, "SATURATED", SAT),
            (2, "OCCULTED", BAD),
            (3, "COSMIC_RAY", CR),
        ),
        "BANZAI, stages of the pipeline",
    ),
}
"""Short name → convention, from the handbooks of instruments and surveys."""


def recognised(headers: Iterable[astropy.io.fits.Header]) -> Convention | None:
    """Convention of a mask, recognised by header cards.

    Parameters
    ----------
    headers
        Headers of the mask, its file, the image and the image's file; the first that is recognised
        counts.

    Returns
    -------
    convention
        Convention; None if no header is recognised.
    """
    for header in headers:
        name = _recognised(header)
        if name is not None:
            return CONVENTIONS[name]
    return None


def _recognised(header: astropy.io.fits.Header) -> str | None:
    def text(keyword: str) -> str:
        return str(header.get(keyword, "")).strip().upper()

    instrument, telescope, origin = text("INSTRUME"), text("TELESCOP"), text("ORIGIN")
    found = None
    if telescope == "JWST":
        found = "jwst"
    elif telescope == "HST" and instrument == "ACS":
        found = "acs"
    elif telescope == "HST" and instrument == "WFC3":
        found = "wfc3-ir" if text("DETECTOR") == "IR" else "wfc3-uvis"
    elif instrument == "DECAM" and text("PLVER"):
        # Before the Dark Energy Survey, whose cards these files may also have.
        found = "decam-bits" if _version(text("PLVER")) < (3, 5) else "decam"
    elif "DES_EXT" in header:
        found = "des"
    elif (
        instrument.startswith("ZTF")
        or "ZWICKY TRANSIENT" in origin
        or (
            "BIT00" in header
            and "HIGH RESPONSIVITY" in str(header.comments["BIT03"] if "BIT03" in header else "")
        )
    ):
        found = "ztf"
    elif text("MSKNAM00") == "DETECTOR" or instrument in ("GPC1", "GPC2"):
        found = "ps1"
    elif origin.startswith(("LCOGT", "LCO ")) or origin == "LCO":
        found = "lco"
    elif instrument in ("LSSTCAM", "LSSTCOMCAM", "LSSTCOMCAMSIM"):
        found = "lsst"
    return found


def _version(text: str) -> tuple[int, ...]:
    """Numbers of a version such as V5.2LS5; (99,), a late version, if there are none."""
    numbers = []
    for part in text.lstrip("V").split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers) or (99,)
