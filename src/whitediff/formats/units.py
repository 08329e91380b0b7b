"""Meaning of an image's numbers, from BUNIT, gain and exposure time."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

import astropy.io.fits

from ..noise.photons import PhotonScale
from ..reading import ReadingOptions
from .headers import first_value

__all__ = ["PhotonHeader", "photon_header", "pixel_unit"]

_GAIN_KEYWORDS = ("EGAIN", "GAIN", "CCDGAIN")
"""If a header has both EGAIN and GAIN, EGAIN is electrons per count, and GAIN a setting of the
camera in the steps of its driver (as in headers of ASCOM and MaxIm)."""
_READ_NOISE_KEYWORDS = ("RDNOISE", "READNOIS", "READNOISE", "RON", "ENOISE")
_EXPOSURE_TIME_KEYWORDS = ("EXPTIME", "EXPOSURE", "TEXPTIME", "XPOSURE", "ITIME", "EFFEXPTM")
_NUMBER_KEYWORDS = ("NCOMBINE", "NCOMBIN", "NCOADD")
_UNIT = re.compile(r"((?P<electrons>(photo-?)?electrons?|e-|e)|adus?|counts?|cts?|dns?|du)")
_RATE = re.compile(r"((/|per)(s|secs?|seconds?)|[.*]?(s|secs?|seconds?)(\^|\*\*)?\(?-1\)?)$")

_CONVERSION_KEYWORDS = ("PHOTMJSR",)
"""Cards with the surface brightness of a count per second, in the units of the next constant."""
_SURFACE_BRIGHTNESS = ("mjy/sr", "mjysr-1", "mjy.sr-1")
_OPTION = "the option"

type Quantity = Literal["electrons", "counts", "other", "unknown"]


@dataclasses.dataclass(frozen=True)
class PhotonHeader:
    """Information on an image's photons from headers and options.

    Attributes
    ----------
    quantity
        Quantity that BUNIT names; ``unknown`` without BUNIT.
    is_rate
        Whether the quantity is per second.
    gain, read_noise, exposure_time
        Electrons per count, electrons, and seconds; None if unknown.
    number
        Number of combined exposures; 1 if unknown.
    gain_name
        Card or option that gives the gain.
    unit
        BUNIT, verbatim.
    is_trusted
        Whether options give both gain and read noise.
    conversion
        Image units for one count per second, from a card; None without one.
    wrong_gain
        Description of a card whose gain is invalid; empty if there is no such card.
    """

    quantity: Quantity
    is_rate: bool
    gain: float | None
    read_noise: float | None
    exposure_time: float | None
    number: int
    gain_name: str
    unit: str
    is_trusted: bool
    conversion: float | None = None
    wrong_gain: str = ""

    @property
    def expected(self) -> PhotonScale | None:
        """Meaning of an image unit by the header; None if it does not say."""
        if self.quantity == "other":
            return self._converted()
        if self.quantity == "electrons":
            return self._electrons(self.is_rate)
        return self._counts(self.is_rate)

    @property
    def gain_of_rate(self) -> float | None:
        """Electrons per unit, or per unit and second for a rate; None if unknown."""
        return {"electrons": 1.0, "counts": self.gain, "unknown": self.gain}.get(self.quantity)

    @property
    def alternatives(self) -> Sequence[PhotonScale]:
        """Other meanings that a unit may have, the likeliest first, if there is a gain to doubt."""
        if self.quantity == "other" or (self.gain is None and self.quantity != "electrons"):
            # A measured gain near some exposure time would be a coincidence.
            return []
        scales = [
            self._counts(False),
            self._counts(True),
            self._electrons(False) if self.gain is not None else None,
            self._electrons(True),
            *(self._averaged(scale) for scale in (self._counts(False), self._electrons(False))),
        ]
        expected = self.expected
        return [scale for scale in scales if scale is not None and scale != expected]

    @property
    def unexplained(self) -> str:
        """Reason why the number of electrons per unit is unknown; empty if it is known."""
        if self.expected is not None:
            return ""
        if self.quantity == "other":
            return f"is in {self.unit}, but no card tells how many electrons that is"
        missing = [] if self.gain or self.quantity == "electrons" else ["the gain"]
        wrong = ""
        if missing and self.wrong_gain:
            wrong, missing = self.wrong_gain, []
        if self.is_rate and self.exposure_time is None:
            missing.append("the exposure time")
        unknown = f"no card tells {' and '.join(missing)}" if missing else ""
        unit = f"is in {self.unit}, but" if self.unit else "has no BUNIT, and"
        return f"{unit} {' and '.join(text for text in (wrong, unknown) if text)}"

    def _converted(self) -> PhotonScale | None:
        """Meaning of a unit that is no count: by its card, else by a gain from the options."""
        if self.gain is None:
            return None
        if self.conversion is not None:
            rate = self._counts(True)
            if rate is None:
                return None
            meaning = f"{self.unit} of {self.conversion:g} to a count per second"
            return PhotonScale(rate.gain / self.conversion, rate.read_noise, meaning)
        if self.gain_name != _OPTION:
            return None
        return PhotonScale(self.gain, self.read_noise or 0.0, f"{self.unit}, by the given gain")

    def _counts(self, is_rate: bool) -> PhotonScale | None:
        if self.gain is None:
            return None
        if not is_rate:
            return PhotonScale(self.gain, self.read_noise or 0.0, "counts")
        if self.exposure_time is None:
            return None
        return PhotonScale(
            self.gain * self.exposure_time,
            self.read_noise or 0.0,
            f"counts per second, for {self.exposure_time:g} s",
        )

    def _electrons(self, is_rate: bool) -> PhotonScale | None:
        if not is_rate:
            return PhotonScale(1.0, self.read_noise or 0.0, "electrons")
        if self.exposure_time is None:
            return None
        return PhotonScale(
            self.exposure_time,
            self.read_noise or 0.0,
            f"electrons per second, for {self.exposure_time:g} s",
        )

    def _averaged(self, scale: PhotonScale | None) -> PhotonScale | None:
        if scale is None or self.number < 2:
            return None
        return PhotonScale(
            scale.gain * self.number,
            scale.read_noise * self.number**0.5,
            f"{scale.meaning}, averaged over {self.number} exposures",
        )


def pixel_unit(text: str) -> tuple[Quantity, bool]:
    """Quantity that a BUNIT card names.

    Parameters
    ----------
    text
        Value of the card, in any of the spellings in use.

    Returns
    -------
    quantity, is_rate
        Quantity that is counted, and whether it is per second.

    Examples
    --------
    >>> pixel_unit("ELECTRONS/S"), pixel_unit("e-/s"), pixel_unit("ADU"), pixel_unit("nJy")
    (('electrons', True), ('electrons', True), ('counts', False), ('other', False))
    """
    plain = re.sub(r"[\s\[\]]|/pix(els?)?", "", text.lower()).removeprefix("1*")
    if not plain:
        return "unknown", False
    if plain == "cps":
        return "counts", True
    rate = _RATE.search(plain)
    found = _UNIT.fullmatch(plain if rate is None else plain[: rate.start()])
    if found is None:
        return "other", False
    return "electrons" if found["electrons"] else "counts", rate is not None


def photon_header(
    header: astropy.io.fits.Header,
    primary: astropy.io.fits.Header,
    options: ReadingOptions | None = None,
) -> PhotonHeader:
    """Collect information on an image's photons from headers and options.

    Parameters
    ----------
    header, primary
        Header of the image, and primary header of its file.
    options
        Options, which take precedence over cards.

    Returns
    -------
    found
        Cards that are no positive number are ignored, but `PhotonHeader.wrong_gain` describes an
        invalid gain.  A read noise may be 0.
    """
    options = options or ReadingOptions()
    headers = (header, primary)
    unit = header.get("BUNIT", primary.get("BUNIT", ""))
    quantity, is_rate = pixel_unit(unit if isinstance(unit, str) else "")
    name, gain, wrong_gain = _OPTION, options.gain, ""
    if gain is None:
        found = first_value(headers, _GAIN_KEYWORDS)
        if found is not None and 0 < found[1] < float("inf"):
            name, gain = found
        elif found is not None:
            fault = "positive" if found[1] <= 0 else "a number"
            wrong_gain = f"{found[0]} = {found[1]:g} is not {fault}"
        else:
            wrong_gain = _text_for_a_number(headers, _GAIN_KEYWORDS)
    read_noise = options.read_noise
    if read_noise is None:
        found = first_value(headers, _READ_NOISE_KEYWORDS)
        if found is not None and 0 <= found[1] < float("inf"):
            read_noise = found[1]
    exposure_time = options.exposure_time
    if exposure_time is None:
        found = first_value(headers, _EXPOSURE_TIME_KEYWORDS)
        if found is not None and 0 < found[1] < float("inf"):
            exposure_time = found[1]
    elif quantity == "unknown":
        # An option for the exposure time is of use only for units per second.
        is_rate = True
    number = first_value(headers, _NUMBER_KEYWORDS)
    conversion = None
    if re.sub(r"[\s^()*]", "", str(unit)).lower() in _SURFACE_BRIGHTNESS:
        conversion = first_value(headers, _CONVERSION_KEYWORDS)
    return PhotonHeader(
        quantity,
        is_rate,
        gain,
        read_noise,
        exposure_time,
        int(number[1]) if number is not None and 1 <= number[1] < 1e6 else 1,
        name,
        unit.strip() if isinstance(unit, str) else "",
        options.gain is not None and options.read_noise is not None,
        None if conversion is None or not 0 < conversion[1] < float("inf") else conversion[1],
        wrong_gain,
    )


def _text_for_a_number(headers: Sequence[astropy.io.fits.Header], keywords: Sequence[str]) -> str:
    """Description of the first card whose value is no number; empty if there is none."""
    for header in headers:
        for keyword in keywords:
            value = header.get(keyword)
            if isinstance(value, str) and value.strip():
                return f"{keyword} = '{value.strip()}' is not a number"
    return ""
