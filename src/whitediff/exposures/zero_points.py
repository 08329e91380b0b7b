"""Zero points, and magnitudes of fluxes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import astro
from ..errors import ArgumentError
from .model import Exposure

__all__ = ["check_zero_point", "depth_text", "magnitudes", "zero_point"]

type Array = npt.NDArray[Any]

_ZERO_POINT_CARDS = (
    "MAGZERO", "MAGZPT", "MAGZP", "ZEROPOINT", "ZEROPNT", "ZP", "PHOTZP", "ZPTMAG",
)  # fmt: skip
_FLUX_OF_MAGNITUDE_ZERO = "FLUXMAG0"
_AB_FLUX = 3631.0
"""Flux of AB magnitude 0, Jy."""
_LARGEST_ZERO_POINT = 200.0
_PIXEL_AREA_CARDS = (("PIXAR_SR", "sr"), ("PIXAR_A2", "arcsec2"))
"""Cards with the area of a pixel, which turn a surface brightness into a flux."""


def check_zero_point(given: float | None) -> None:
    """Refuse a zero point that is no plausible magnitude.

    Parameters
    ----------
    given
        Zero point given by the user; None to use the header's.

    Raises
    ------
    ArgumentError
        If the zero point is not finite, or beyond ±200.
    """
    if given is None:
        return
    if not math.isfinite(given):
        raise ArgumentError(f"The zero point must be finite; got {given:g}.")
    if abs(given) > _LARGEST_ZERO_POINT:
        raise ArgumentError(
            f"The zero point must be the magnitude of a flux of 1, from"
            f" {-_LARGEST_ZERO_POINT:g} to {_LARGEST_ZERO_POINT:g}; got {given:g}."
        )


def zero_point(exposure: Exposure, given: float | None) -> tuple[float, str] | None:
    """Magnitude of a flux of 1, and its origin.

    Parameters
    ----------
    exposure
        Exposure.
    given
        Zero point given by the user, which takes precedence over unit and headers.

    Returns
    -------
    zero_point, origin
        Magnitude, and ``given``, the unit or the FITS keyword; None if it is not known.

    Notes
    -----
    The sum of pixels in MJy/sr is a flux only with the area of a pixel: its AB zero point is
    −6.10 − 2.5 log₁₀ PIXAR_SR.
    """
    if given is not None:
        return given, "given"
    unit = exposure.unit
    headers = (exposure.header, exposure.primary_header)
    if unit is not None and unit.is_equivalent(astro.units.Jy):
        return 2.5 * math.log10(_AB_FLUX / (1 * unit).to_value(astro.units.Jy)), f"unit {unit} (AB)"
    if unit is not None and unit.is_equivalent(astro.units.Jy / astro.units.sr):
        area = _pixel_area(headers)
        if area is not None:
            flux = (1 * unit * area[0]).to_value(astro.units.Jy)
            return 2.5 * math.log10(_AB_FLUX / flux), f"unit {unit} and {area[1]} (AB)"
    for header in headers:
        for keyword in _ZERO_POINT_CARDS:
            value = _number(header.get(keyword))
            if value is not None and value > 0:
                return value, keyword
        value = _number(header.get(_FLUX_OF_MAGNITUDE_ZERO))
        if value is not None and value > 0:
            return 2.5 * math.log10(value), _FLUX_OF_MAGNITUDE_ZERO
    return None


def _pixel_area(headers: Iterable[Any]) -> tuple[astro.units.Quantity, str] | None:
    """Area of a pixel, and the keyword of its card."""
    for header in headers:
        for keyword, unit in _PIXEL_AREA_CARDS:
            value = _number(header.get(keyword))
            if value is not None and value > 0:
                return value * astro.units.Unit(unit), keyword
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def magnitudes(columns: dict[str, Array], zero: float) -> dict[str, Array]:
    """Magnitudes of fluxes.

    Parameters
    ----------
    columns
        Columns psf_flux, aperture_flux and their errors.
    zero
        Magnitude of a flux of 1.

    Returns
    -------
    columns
        Columns psf_mag, aperture_mag and their errors; NaN where the flux is not positive.
    """
    result = {}
    for kind in ("psf", "aperture"):
        flux, error = columns[f"{kind}_flux"], columns[f"{kind}_flux_err"]
        with np.errstate(invalid="ignore"):
            positive = flux > 0
        safe = np.where(positive, flux, 1.0)
        result[f"{kind}_mag"] = np.where(positive, zero - 2.5 * np.log10(safe), np.nan)
        result[f"{kind}_mag_err"] = np.where(positive, 2.5 / math.log(10) * error / safe, np.nan)
    return result


def depth_text(flux: float | None, magnitude: float | None, unit: object = None) -> str:
    """Depth as the end of a line.

    Parameters
    ----------
    flux, magnitude
        Flux and magnitude of a 5 sigma point source; None if not known.
    unit
        Unit of the flux.

    Returns
    -------
    text
        ``. 5 sigma depth: 123 adu (21.34 mag).``, or a full stop alone.
    """
    if flux is None:
        return "."
    known = "" if magnitude is None else f" ({magnitude:.2f} mag)"
    return f". 5 sigma depth: {flux:.4g} {unit or 'image units'}{known}."
