"""Sky coordinates of pixels: FITS headers, and projections of lsst.images."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import astro

if TYPE_CHECKING:

    class PixelToSky(Protocol):
        """Sky coordinates with astropy's ``pixel_to_world``."""

        def pixel_to_world(self, x: Array, y: Array, /) -> astro.coordinates.SkyCoord: ...

    class Sized(Protocol):
        """Interval with a number of pixels."""

        @property
        def size(self) -> int: ...

    class ForeignBox(Protocol):
        """Box of lsst.images."""

        @property
        def y(self) -> Sized: ...

        @property
        def x(self) -> Sized: ...

    class Projection(Protocol):
        """Projection of lsst.images."""

        @property
        def as_astropy(self) -> Callable[..., PixelToSky]: ...

        @property
        def as_fits_wcs(self) -> Callable[..., astro.wcs.WCS | None]: ...


__all__ = [
    "TOLERANCE",
    "celestial_wcs",
    "disagreement",
    "equivalent_wcs",
    "projection_header",
    "shifted_header",
    "wcs_cards",
    "without_wcs",
]

type Array = npt.NDArray[Any]

TOLERANCE = 1e-3
"""Largest distance, pixels, between a header's WCS and a projection that count as equal."""

_SIP_ORDERS = (2, 3, 4, 5, 6)
_WCS = re.compile(
    r"WCSAXES|WCSDIM|RADESYS|RADECSYS|EQUINOX|EPOCH|LONPOLE|LATPOLE|MJDREF|"
    r"(CTYPE|CRPIX|CRVAL|CUNIT|CDELT|CROTA|CRDER|CSYER)[1-9]|"
    r"(CD|PC)[1-9]_[1-9]|(PV|PS)[1-9]_\d+|(A|B|AP|BP)_(ORDER|DMAX|\d_\d)|"
    r"WAT\d_\d{3}"
)
_ALTERNATIVE_WCS = re.compile(
    r"((WCSAXES|WCSNAME|RADESYS|EQUINOX|LONPOLE|LATPOLE)|"
    r"(CTYPE|CRPIX|CRVAL|CUNIT|CDELT|CNAME|CRDER|CSYER)[1-9]|"
    r"(CD|PC)[1-9]_[1-9]|(PV|PS)[1-9]_\d+)[A-Z]|LTV[1-9]|LTM[1-9]_[1-9]"
)
_FURTHER_AXIS = re.compile(
    r"NAXIS[3-9]|(CTYPE|CRPIX|CRVAL|CUNIT|CDELT|CROTA|CNAME|CRDER|CSYER)[3-9][A-Z]?|"
    r"(CD|PC)([3-9]_[1-9]|[1-9]_[3-9])[A-Z]?|(PV|PS)[3-9]_\d+[A-Z]?"
)
_PARAMETER = re.compile(r"PV[12]_\d+")
_NUMBER_OF_AXES = re.compile(r"NAXIS|WCSAXES[A-Z]?")
_NUMBERS = re.compile(r"(CRPIX|CRVAL|CDELT|CROTA)[12]|(CD|PC)[12]_[12]")
_PIXEL_AXIS = re.compile(r"(?:CTYPE|CRPIX)([12])([A-Z]?)")


def celestial_wcs(header: astro.fits.Header) -> astro.wcs.WCS | None:
    """Celestial WCS of a header.

    Parameters
    ----------
    header
        FITS header.

    Returns
    -------
    wcs
        WCS of two axes; None if the header describes no sky coordinates, or none that can be
        understood.
    """
    if "CTYPE1" not in header:
        return None
    try:
        with warnings.catch_warnings():
            # astropy warns of every deprecated keyword that it repairs.
            warnings.simplefilter("ignore")
            wcs = _wcs_of_two_axes(_with_numbers(header))
            if not wcs.has_celestial:
                return None
            # Some errors of a header appear only when the WCS is used.
            _icrs(wcs, np.zeros(1), np.zeros(1))
    except Exception:
        # astropy and wcslib raise whatever they like for a broken header.
        return None
    return wcs


def _with_numbers(header: astro.fits.Header) -> astro.fits.Header:
    """Header with numbers in place of quoted ones in the WCS, which wcslib silently takes for 0."""
    quoted = [key for key in header if _NUMBERS.fullmatch(key) and isinstance(header[key], str)]
    if not quoted:
        return header
    result = header.copy()
    for key in quoted:
        result[key] = float(header[key])
        if not np.isfinite(result[key]):
            raise ValueError(f"{key} is not a number")
    return result


def _wcs_of_two_axes(header: astro.fits.Header) -> astro.wcs.WCS:
    """WCS of a header's first two axes."""
    # With naxis, astropy drops axes before it chooses between coefficients of SCAMP and of SIP:
    # then both are used, or the former are no valid projection.  So we drop cards ourselves.
    if not ("A_ORDER" in header and any(_PARAMETER.fullmatch(key) for key in header)):
        return astro.wcs.WCS(header, naxis=2)
    cards = [card for card in header.cards if not _FURTHER_AXIS.fullmatch(card.keyword)]
    result = astro.fits.Header(cards, copy=True)
    for keyword in filter(_NUMBER_OF_AXES.fullmatch, list(result)):
        if isinstance(result[keyword], int) and result[keyword] > 2:
            result[keyword] = 2
    return astro.wcs.WCS(result)


def shifted_header(header: astro.fits.Header, *, dy: int, dx: int) -> astro.fits.Header:
    """Header of an array whose first pixel has changed.

    Parameters
    ----------
    header
        FITS header; not changed.
    dy, dx
        Array index of the new first pixel in the old array.

    Returns
    -------
    header
        Copy whose coordinate systems, including alternative ones, are shifted.
    """
    result = header.copy()
    systems = {found.groups() for key in header if (found := _PIXEL_AXIS.fullmatch(key))}
    for axis, alternative in sorted(systems):
        reference = f"CRPIX{axis}{alternative}"
        # The FITS standard's default for a missing card is 0.
        result[reference] = header.get(reference, 0.0) - (dx if axis == "1" else dy)
    return result


def wcs_cards(header: astro.fits.Header) -> list[astro.fits.Card]:
    """Cards of a header that describe its primary celestial WCS.

    Parameters
    ----------
    header
        Header.

    Returns
    -------
    cards
        Cards in their order, including distortions (SIP, PV).
    """
    return [card for card in header.cards if _WCS.fullmatch(card.keyword)]


def without_wcs(header: astro.fits.Header, *, alternative: bool = False) -> astro.fits.Header:
    """Copy of a header without its primary WCS.

    Parameters
    ----------
    header
        Header.
    alternative
        Leave out alternative WCSs too, and IRAF's physical coordinates (LTV, LTM).

    Returns
    -------
    header
        The other cards, verbatim.
    """
    left_out = [_WCS, _ALTERNATIVE_WCS] if alternative else [_WCS]
    return astro.fits.Header(
        [card for card in header.cards if not any(p.fullmatch(card.keyword) for p in left_out)],
        copy=True,
    )


def disagreement(wcs: astro.wcs.WCS, projection: Projection, bbox: ForeignBox) -> float:
    """Largest distance between a header's WCS and a projection.

    Parameters
    ----------
    wcs
        WCS of the array whose first pixel is the box's first.
    projection
        Projection of the box's pixels, of lsst.images.
    bbox
        Box, of the same library.

    Returns
    -------
    pixels
        Largest distance on a grid over the box; infinite if it is not defined somewhere.
    """
    x, y = _grid((bbox.y.size, bbox.x.size))
    sky = projection.as_astropy(bbox).pixel_to_world(x, y)
    worst = float(np.max(_pixel_distance(wcs, sky, x, y)))
    return worst if np.isfinite(worst) else float("inf")


def projection_header(projection: Projection, bbox: ForeignBox) -> astro.fits.Header:
    """Header cards that describe a projection.

    Parameters
    ----------
    projection
        Projection of the box's pixels, of lsst.images.
    bbox
        Box, of the same library.

    Returns
    -------
    header
        Cards of the projection's own FITS WCS if that agrees with it to 1e-3 pixels, else of an
        equivalent TAN-SIP WCS that does; empty if neither does.
    """
    exact = projection.as_fits_wcs(bbox, allow_approximation=False)
    shape = (bbox.y.size, bbox.x.size)
    for wcs in (exact, equivalent_wcs(projection.as_astropy(bbox), shape)):
        if wcs is None:
            continue
        header = wcs.to_header(relax=True)
        read_back = celestial_wcs(header)
        if read_back is not None and disagreement(read_back, projection, bbox) <= TOLERANCE:
            return header
    return astro.fits.Header()


def equivalent_wcs(wcs: PixelToSky, shape: tuple[int, int]) -> astro.wcs.WCS | None:
    """Rewrite any sky coordinates of an array as a TAN-SIP WCS in ICRS.

    Parameters
    ----------
    wcs
        Any object with astropy's ``pixel_to_world``.
    shape
        (ny, nx) of the array.

    Returns
    -------
    wcs
        WCS of the lowest SIP order, from 2 to 6, that is right to 3e-4 pixels; None if none is.

    Notes
    -----
    The coefficients are a linear least-squares fit on the tangent plane at the array's middle.
    """
    ny, nx = shape
    x, y = _grid(shape, 25)
    x0, y0 = (nx - 1) / 2, (ny - 1) / 2
    try:
        sky = _icrs(wcs, x, y)
        middle = _icrs(wcs, np.array([x0]), np.array([y0]))[0]
        plane = sky.transform_to(middle.skyoffset_frame())
        longitude, latitude = plane.lon.rad, plane.lat.rad
    except Exception:
        return None
    if not np.isfinite(longitude).all():
        return None
    # Gnomonic projection about the middle, in degrees.
    xi = np.degrees(np.tan(longitude))
    eta = np.degrees(np.tan(latitude) / np.cos(longitude))
    scale = max(nx, ny) / 2
    for order in _SIP_ORDERS:
        terms = [(p, q) for p in range(order + 1) for q in range(order + 1 - p) if p + q > 0]
        matrix = np.stack([((x - x0) / scale) ** p * ((y - y0) / scale) ** q for p, q in terms], 1)
        solution, *_ = np.linalg.lstsq(matrix, np.stack([xi, eta], 1), rcond=None)
        coefficients = {
            term: value / scale ** sum(term) for term, value in zip(terms, solution, strict=True)
        }
        cd = np.stack([coefficients[1, 0], coefficients[0, 1]], 1)
        if abs(np.linalg.det(cd)) == 0:
            return None
        a, b = np.zeros((2, order + 1, order + 1))
        for (p, q), value in coefficients.items():
            if p + q > 1:
                a[p, q], b[p, q] = np.linalg.solve(cd, value)
        result = astro.wcs.WCS(naxis=2)
        result.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
        result.wcs.crpix = [x0 + 1, y0 + 1]
        result.wcs.crval = [middle.ra.deg, middle.dec.deg]
        result.wcs.cd = cd
        result.wcs.radesys = "ICRS"
        result.sip = astro.wcs.Sip(a, b, None, None, result.wcs.crpix)
        result.wcs.set()
        distance = _pixel_distance(result, sky, x, y)
        if np.max(distance) <= 0.3 * TOLERANCE:
            return result
    return None


def _grid(shape: tuple[int, int], n: int = 9) -> tuple[Array, Array]:
    y, x = np.meshgrid(*(np.linspace(0, size - 1, n) for size in shape), indexing="ij")
    return x.ravel(), y.ravel()


def _icrs(wcs: PixelToSky, x: Array, y: Array) -> astro.coordinates.SkyCoord:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wcs.pixel_to_world(x, y).icrs


def _pixel_distance(
    wcs: astro.wcs.WCS, sky: astro.coordinates.SkyCoord, x: Array, y: Array
) -> Array:
    """Distances between sky positions and the positions of pixels by a WCS, in local pixels.

    They are compared on the sky: inverting a distorted WCS is slower and less precise.
    """
    separation = _icrs(wcs, x, y).separation(sky).deg
    step = _icrs(wcs, x + 0.5, y).separation(_icrs(wcs, x - 0.5, y)).deg
    return np.asarray(separation / step)
