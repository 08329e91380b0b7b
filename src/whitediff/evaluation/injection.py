"""Point sources of known flux in exposures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import astropy.units
import numpy as np
import numpy.typing as npt
import scipy
from astropy.table import QTable, Table

from ..detection.catalog import column_values, wanted_positions
from ..errors import ArgumentError, DataError
from ..exposures import masks
from ..exposures.model import Exposure
from ..exposures.psf import KernelPointSpreadFunction, Light, PointSpreadFunction, fwhm_of_psf
from ..noise.exposures import untrusted_pixels
from ..numerics.planes import copied
from ..numerics.profiles import FWHM_TO_SIGMA
from .placing import add_stamp, overlap, photon_noise, random_positions

__all__ = [
    "SEPARATION",
    "fluxes",
    "inject",
    "injectable_pixels",
    "local_variance",
    "pixel_positions",
    "point_source_noise",
    "psf_sigma",
    "random_sources",
    "with_sky_positions",
]

type Array = npt.NDArray[Any]

SEPARATION = 10.0
"""Default distance between random sources, in widths (sigma) of the PSF: two Gaussian PSFs so
far apart overlap by 1e-11, two Moffat PSFs of beta 3 by 1e-3."""

_CLEAR = 2.0
"""Default distance of random sources from masked pixels, in widths of the PSF."""


def inject(
    exposure: Exposure,
    sources: Table,
    *,
    gain: float | None = None,
    rng: np.random.Generator | None = None,
) -> Exposure:
    """Add point sources to an exposure.

    Parameters
    ----------
    exposure
        Exposure with a PSF; not changed.
    sources
        Columns ``flux``, in the unit of the image, and either ``x``, ``y`` (pixel coordinates) or
        ``ra``, ``dec`` (degrees if they have no unit; ICRS).  Fluxes may be negative without a
        gain.
    gain
        Electrons per count: draw the photon noise of the sources, and add its variance to the
        variance plane.  None adds the expected counts alone, without noise, and leaves the
        variance plane as it is.
    rng
        Random numbers, used with a gain.

    Returns
    -------
    exposure
        A new one.  Each source is the PSF at its position, shifted by fractions of a pixel in
        Fourier space, with exactly its flux, apart from parts outside the image and wings that the
        PSF's images do not hold (`whitediff.exposures.psf.Light`).  Mask, PSF and header are those
        of the exposure; pixels that are not finite stay so.

    Raises
    ------
    ArgumentError
        If the exposure has no PSF, a column is missing, a source is not finite or outside, or with
        a gain a flux is negative.
    """
    psf = _psf_of(exposure)
    x, y = pixel_positions(exposure, sources)
    flux = fluxes(exposure, sources)
    if gain is not None:
        if not 0 < gain < float("inf"):
            raise ArgumentError(f"The gain must be a positive number; got {gain:g}.")
        if (flux < 0).any():
            raise ArgumentError.of(
                _name(exposure),
                f"a source of negative flux ({flux.min():g}) has no photon"
                " noise; leave the gain out.",
            )
        rng = np.random.default_rng() if rng is None else rng
    enclosed = Light.of(psf).enclosed
    image = copied(exposure.data)
    variance = exposure.variance if gain is None else copied(exposure.variance)
    for x_i, y_i, flux_i in zip(x.tolist(), y.tolist(), flux.tolist(), strict=True):
        stamp, box = psf.star(x=x_i, y=y_i)
        counts = stamp * (enclosed * flux_i)
        # The box says where a stamp lies: the sides of any PSF's stamps may be odd or even.
        middle = (
            box.x.start + box.x.size // 2 - exposure.origin[1],
            box.y.start + box.y.size // 2 - exposure.origin[0],
        )
        if gain is not None and rng is not None:
            add_stamp(variance, np.maximum(counts, 0) / gain, *middle)
            counts = counts + photon_noise(counts, gain, rng)
        add_stamp(image, counts, *middle)
    result = exposure.replaced(data=image, variance=variance)
    result.header = exposure.header.copy()
    result.primary_header = exposure.primary_header.copy()
    return result


def random_sources(
    exposure: Exposure,
    number: int,
    *,
    signal_to_noise: tuple[float, float],
    rng: np.random.Generator,
    noise: Exposure | None = None,
    usable: Array | None = None,
    separation: float | None = None,
) -> QTable:
    """Random point sources for an exposure.

    Parameters
    ----------
    exposure
        Exposure with a PSF.
    number
        Number of sources.
    signal_to_noise
        Least and largest, drawn uniformly between; positive.  It is the flux over the error of a
        matched filter at that place, `point_source_noise`: sky and the sources that are there
        count, the source's own photons do not.
    rng
        Random numbers.
    noise
        Exposure on the same pixels, with a PSF, to which the signal-to-noise ratio refers, such as
        an earlier difference of the same images; None for `exposure` itself.
    usable
        ``(ny, nx)`` boolean: pixels that sources may lie on; `injectable_pixels` if not given.
    separation
        Least distance between two sources, pixels; `SEPARATION` widths of the PSF if not given.

    Returns
    -------
    sources
        Columns id, x, y, flux, signal_to_noise, for `inject`.

    Raises
    ------
    ArgumentError
        If a number is out of range, or so many sources do not fit.
    DataError
        If the noise is not known at some of the positions.
    """
    low, high = signal_to_noise
    if number < 1:
        raise ArgumentError(f"The number of sources must be at least 1; got {number}.")
    if not 0 < low <= high < float("inf"):
        raise ArgumentError(
            "The signal-to-noise ratio runs from a positive number to one that is no smaller; got"
            f" {low:g} to {high:g}."
        )
    if separation is not None and not 0 <= separation < float("inf"):
        raise ArgumentError(f"The separation must not be negative; got {separation:g} pixels.")
    _psf_of(exposure)
    noise = exposure if noise is None else noise
    if noise.bbox != exposure.bbox:
        raise ArgumentError.of(
            _name(noise), f"its box {noise.bbox} is not that of {_name(exposure)}, {exposure.bbox}."
        )
    if usable is None:
        usable = injectable_pixels(exposure)
        if noise is not exposure:
            usable &= injectable_pixels(noise)
    if separation is None:
        separation = SEPARATION * psf_sigma(exposure)
    try:
        columns, rows = random_positions(usable, number, separation=separation, rng=rng)
    except ArgumentError as error:
        raise ArgumentError.of(_name(exposure), f"{error}") from error
    x, y = columns + exposure.origin[1], rows + exposure.origin[0]
    sigma = point_source_noise(noise, x, y)
    unknown = int(np.count_nonzero(~(sigma > 0)))
    if unknown:
        raise DataError.of(
            _name(noise),
            f"its variance plane gives no noise at {unknown} of {number}"
            " positions; is it positive and finite?",
        )
    ratio = rng.uniform(low, high, number)
    unit = exposure.unit or astropy.units.dimensionless_unscaled
    sources = QTable(
        {
            "id": np.arange(1, number + 1),
            "x": x * astropy.units.pixel,
            "y": y * astropy.units.pixel,
            "flux": ratio * sigma * unit,
            "signal_to_noise": ratio,
        }
    )
    for name, description in (
        ("id", "Number of the source"),
        ("x", "Column, pixel coordinates"),
        ("y", "Row, pixel coordinates"),
        ("flux", "Flux"),
        ("signal_to_noise", "Flux over the error of a matched filter at this place"),
    ):
        sources[name].info.description = description
    return sources


def injectable_pixels(exposure: Exposure, *, clear: float | None = None) -> Array:
    """Pixels of an exposure in which a source can be measured.

    Parameters
    ----------
    exposure
        Exposure with a PSF.
    clear
        Distance from unusable pixels and from the frame's edge, in x and in y, pixels; 2 widths of
        the PSF if not given.

    Returns
    -------
    usable
        ``(ny, nx)`` boolean: pixels farther than this from all that are not finite, have no
        positive, finite variance, or are flagged with one of
        `whitediff.exposures.masks.UNTRUSTED_MASK_PLANES`, EDGE or CONTAMINATED.
    """
    reach = round(_CLEAR * psf_sigma(exposure) if clear is None else clear)
    variance = exposure.variance
    bad = untrusted_pixels(exposure)
    bad |= masks.flagged(exposure.mask, ("EDGE", masks.CONTAMINATED))
    with np.errstate(invalid="ignore"):
        bad |= ~((variance > 0) & (variance < np.inf))
    for axis in (0, 1):
        bad = scipy.ndimage.maximum_filter1d(
            bad, 2 * reach + 1, axis=axis, mode="constant", cval=True
        )
    return ~bad


def point_source_noise(exposure: Exposure, x: Array, y: Array) -> Array:
    """Error of the flux of a point source that a matched filter measures.

    Parameters
    ----------
    exposure
        Exposure of white noise, with a PSF.
    x, y
        ``(n,)`` pixel coordinates.

    Returns
    -------
    error
        ``(n,)`` image_unit: ``√(V / Σ P²)`` with the PSF P at the position and
        `local_variance` V; NaN where V is NaN.
    """
    squares_at = _local_squares(_psf_of(exposure))
    power = [float(squares_at(float(x[i]), float(y[i])).sum()) for i in range(len(x))]
    return np.sqrt(local_variance(exposure, x, y) / np.array(power))


def local_variance(exposure: Exposure, x: Array, y: Array) -> Array:
    """Mean variance of an exposure's pixels beneath a point source.

    Parameters
    ----------
    exposure
        Exposure with a PSF.
    x, y
        ``(n,)`` pixel coordinates.

    Returns
    -------
    variance
        ``(n,)`` image_unit²: mean weighted with the square of the PSF, over pixels of positive,
        finite variance; NaN if there are none.
    """
    squares_at = _local_squares(_psf_of(exposure))
    variance = exposure.variance
    result = np.full(len(x), np.nan)
    for i in range(len(x)):
        squares = squares_at(float(x[i]), float(y[i]))
        target, part = overlap(
            squares.shape,
            variance.shape,
            float(x[i]) - exposure.origin[1],
            float(y[i]) - exposure.origin[0],
        )
        values = variance[target]
        good = np.isfinite(values) & (values > 0)
        weights = squares[part][good]
        total = float(weights.sum())
        if total > 0:
            result[i] = float((weights * values[good]).sum()) / total
    return result


def _local_squares(psf: PointSpreadFunction) -> Callable[[float, float], Array]:
    """Function of a position that gives the square of the PSF there."""
    if isinstance(psf, KernelPointSpreadFunction) and psf.kernel.is_constant:
        x, y = psf.average_position
        everywhere = psf.at(x=x, y=y) ** 2
        return lambda x, y: everywhere
    return lambda x, y: psf.at(x=x, y=y) ** 2


def psf_sigma(exposure: Exposure) -> float:
    """Width of the Gaussian with the full width at half maximum of an exposure's PSF.

    Parameters
    ----------
    exposure
        Exposure with a PSF.

    Returns
    -------
    sigma
        Pixels, at the PSF's average position.
    """
    return FWHM_TO_SIGMA * fwhm_of_psf(_psf_of(exposure))


def pixel_positions(exposure: Exposure, table: Table) -> tuple[Array, Array]:
    """Positions of a table's rows in an exposure.

    Parameters
    ----------
    exposure
        Exposure.
    table
        Table with columns ``x``, ``y``, or ``ra``, ``dec`` (degrees if they have no unit; ICRS).

    Returns
    -------
    x, y
        ``(n,)`` float64, pixel coordinates.

    Raises
    ------
    ArgumentError
        If there are no such columns, or a position is not finite or is outside the image.
    """
    _, x, y = wanted_positions(exposure, table)
    (y0, x0), (ny, nx) = exposure.origin, exposure.shape
    with np.errstate(invalid="ignore"):
        inside = (np.abs(x - x0 - (nx - 1) / 2) <= nx / 2) & (
            np.abs(y - y0 - (ny - 1) / 2) <= ny / 2
        )
    if not inside.all():
        first = int(np.flatnonzero(~inside)[0])
        raise ArgumentError.of(
            _name(exposure),
            f"{np.sum(~inside)} of {len(x)} positions are outside the image"
            f" (x from {x0} to {x0 + nx - 1}, y from {y0} to {y0 + ny - 1}), the first in row"
            f" {first + 1} with x = {x[first]:g}, y = {y[first]:g}; leave them out.",
        )
    return x, y


def with_sky_positions(table: Table, exposure: Exposure) -> Table:
    """Table with the sky coordinates of its pixel positions.

    Parameters
    ----------
    table
        Sources, as for `inject`.
    exposure
        Exposure that they are in.

    Returns
    -------
    table
        A copy with columns ra, dec (ICRS, degrees); the table itself if it has ra, lacks x or y,
        or the exposure has no WCS.
    """
    wcs = exposure.wcs
    if wcs is None or "ra" in table.colnames or not {"x", "y"} <= set(table.colnames):
        return table
    x, y = pixel_positions(exposure, table)
    sky = wcs.pixel_to_world(x - exposure.origin[1], y - exposure.origin[0]).icrs
    table = table.copy()
    table["ra"], table["dec"] = sky.ra.to(astropy.units.deg), sky.dec.to(astropy.units.deg)
    table["ra"].info.description = "Right ascension, ICRS"
    table["dec"].info.description = "Declination, ICRS"
    return table


def fluxes(exposure: Exposure, sources: Table) -> Array:
    """Fluxes of a table's rows in the unit of an exposure.

    Parameters
    ----------
    exposure
        Exposure.
    sources
        Table with a column ``flux``; without a unit it is taken to be in the image's.

    Returns
    -------
    flux
        ``(n,)`` float64, image_unit.

    Raises
    ------
    ArgumentError
        If there is no such column, its unit does not convert, or a flux is not finite.
    """
    if "flux" not in sources.colnames:
        raise ArgumentError(
            "A table of sources needs a column flux, in the unit of the image; it has"
            f" {', '.join(sources.colnames)}."
        )
    flux = column_values(sources["flux"], exposure.unit, "flux")
    if not np.isfinite(flux).all():
        row = int(np.flatnonzero(~np.isfinite(flux))[0])
        raise ArgumentError(f"Fluxes must be finite; row {row + 1} has {flux[row]}.")
    return flux


def _psf_of(exposure: Exposure) -> PointSpreadFunction:
    if exposure.psf is None:
        raise ArgumentError.of(
            _name(exposure), "has no PSF, and the image of a point source is the PSF; name one."
        )
    return exposure.psf


def _name(exposure: Exposure) -> str:
    return exposure.source or "The exposure"
