"""Columns of catalogues: units, descriptions, flags and sky coordinates."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from .. import __version__, astro
from ..errors import ArgumentError
from ..exposures import masks
from ..exposures.masks import Mask
from ..exposures.model import Exposure
from ..exposures.zero_points import depth_text
from ..noise.sources import RESIDUAL, bright_pixel_counts
from ..numerics.profiles import full_width_half_maximum
from ..numerics.sinc import moved_stamps

__all__ = [
    "COLUMNS",
    "FLAGS",
    "SPOILING_FLAGS",
    "assembled",
    "believed",
    "column_values",
    "headline",
    "sky_columns",
    "source_counts",
    "source_flags",
    "wanted_positions",
]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.detect")

_SOURCE_RADIUS = 1.5
_BRIGHT_RADIUS = 5.0
"""Neighbourhood of a bright star, full widths at half maximum: around saturated pixels, and around
other bright pixels as far as there are sources, since wings and spikes reach that far."""

_BY_NOISE = 3.0
"""Largest significance that noise adds to a residual."""

_LARGE_SOURCE = 3.0
"""Full widths at half maximum: a point with only source pixels within this radius is inside a
bright or large source, if the mask does not say which sources are static."""

_FILLED = 0.9
"""Share of these pixels from which they count as all."""

_LARGEST_LOSS = 0.15
"""Largest share of the squared PSF, a source's information, on pixels without a measurement."""

_LARGEST_CONTAMINATION = 0.3
"""Largest share of the squared PSF on contaminated pixels."""

_BESIDE_RAY = 2.5
"""Pixels from a cosmic ray of two pixels or more within which a point may be its unmasked end."""

_TOGETHER = 256
"""Sources whose surroundings are in memory at a time."""


@dataclasses.dataclass(frozen=True)
class _Column:
    unit: str | None
    description: str


_PIXEL, _PIXEL2, _FLUX, _MOMENT = "pixel", "pixel2", "flux", "moment"
_MAG, _DEG = "mag", "deg"

COLUMNS = {
    "id": _Column(None, "number of the source"),
    "x": _Column(_PIXEL, "column of the source; pixel coordinates, centre of a pixel is whole"),
    "y": _Column(_PIXEL, "row of the source"),
    "x_err": _Column(_PIXEL, "standard deviation of x"),
    "y_err": _Column(_PIXEL, "standard deviation of y"),
    "xy_cov": _Column(_PIXEL2, "covariance of x and y"),
    "ra": _Column(_DEG, "right ascension, ICRS"),
    "dec": _Column(_DEG, "declination, ICRS"),
    "ra_err": _Column(_DEG, "standard deviation of ra times cos(dec)"),
    "dec_err": _Column(_DEG, "standard deviation of dec"),
    "significance": _Column(None, "signed flux of a point source over its error, at the peak"),
    "measured_significance": _Column(
        None, "significance over the measured width of significances where there is no source"
    ),
    "peak_significance": _Column(None, "the same at the highest pixel"),
    "psf_flux": _Column(_FLUX, "flux of the fitted point source"),
    "psf_flux_err": _Column(_FLUX, "standard deviation of psf_flux"),
    "psf_chi2": _Column(None, "reduced chi-square of the point source fit"),
    "psf_chi2_pixels": _Column(None, "number of pixels in it"),
    "aperture_flux": _Column(_FLUX, "flux in a circle of meta's aperture_radius"),
    "aperture_flux_err": _Column(_FLUX, "standard deviation of aperture_flux"),
    "psf_mag": _Column(_MAG, "magnitude of psf_flux"),
    "psf_mag_err": _Column(_MAG, "standard deviation of psf_mag"),
    "aperture_mag": _Column(_MAG, "magnitude of aperture_flux"),
    "aperture_mag_err": _Column(_MAG, "standard deviation of aperture_mag"),
    "shape_xx": _Column(_PIXEL2, "second moment along x"),
    "shape_yy": _Column(_PIXEL2, "second moment along y"),
    "shape_xy": _Column(_PIXEL2, "mixed second moment"),
    "dipole_moment": _Column(_MOMENT, "flux times separation of the lobes"),
    "dipole_moment_err": _Column(_MOMENT, "standard deviation of dipole_moment"),
    "dipole_separation": _Column(
        _PIXEL, "distance of the lobes; NaN if too small to be told from their fluxes"
    ),
    "dipole_separation_err": _Column(_PIXEL, "standard deviation of dipole_separation"),
    "dipole_angle": _Column(_DEG, "direction from negative to positive lobe, from x to y"),
    "dipole_positive_flux": _Column(_FLUX, "flux of the positive lobe"),
    "dipole_positive_flux_err": _Column(_FLUX, "standard deviation of dipole_positive_flux"),
    "dipole_negative_flux": _Column(_FLUX, "flux of the negative lobe, negative"),
    "dipole_negative_flux_err": _Column(_FLUX, "standard deviation of dipole_negative_flux"),
    "dipole_chi2": _Column(None, "reduced chi-square of the dipole fit"),
    "classification": _Column(None, "point, dipole, extended or artifact"),
    "parent": _Column(None, "id of the brightest source of the blend"),
    "n_peaks": _Column(None, "number of peaks in the blend"),
    "flag_edge": _Column(None, "near the frame's edge, or the convolution's"),
    "flag_bad": _Column(None, "bad pixels hold too much of the source"),
    "flag_saturated": _Column(None, "a saturated pixel is near"),
    "flag_cosmic_ray": _Column(None, "cosmic rays hold too much of the source"),
    "flag_streak": _Column(None, "a satellite's or aeroplane's trail is near"),
    "flag_interpolated": _Column(None, "an interpolated pixel is near"),
    "flag_no_data": _Column(None, "pixels without data hold too much of the source"),
    "flag_contaminated": _Column(None, "contaminated pixels hold too much of the source"),
    "flag_source": _Column(None, "a source of both science image and template is here"),
    "flag_near_bright_star": _Column(None, "in the neighbourhood of a bright star"),
    "flag_fit_failed": _Column(None, "the position or flux could not be fitted"),
}
"""All columns, in their order; a catalogue has those that could be measured."""

FLAGS = {
    "flag_edge": ("EDGE",),
    "flag_bad": ("BAD",),
    "flag_saturated": ("SAT",),
    "flag_cosmic_ray": ("CR",),
    "flag_streak": (masks.STREAK,),
    "flag_interpolated": ("INTRP",),
    "flag_no_data": ("NO_DATA",),
    "flag_contaminated": (masks.CONTAMINATED,),
}
"""Flags, and the mask planes that set them."""

_LOSSES = ("flag_bad", "flag_no_data")
"""Flags of pixels that are left out of all measurements, and do not affect their neighbours."""

SPOILING_FLAGS = {
    "flag_no_data": "next to missing pixels",
    "flag_saturated": "saturated",
    "flag_cosmic_ray": "on a cosmic ray",
    "flag_streak": "on a trail",
    "flag_bad": "on bad pixels",
    "flag_near_bright_star": "near a bright star or galaxy",
    "flag_edge": "near an edge",
    "flag_contaminated": "contaminated",
    "flag_fit_failed": "not fitted",
}
"""Flags that make a source doubtful, and their meaning.  A static source or an interpolated pixel
alone does not."""

_NOT_POINTS = {"dipole": "n_dipoles", "extended": "n_extended", "artifact": "n_artifacts"}


def assembled(
    columns: Mapping[str, npt.ArrayLike],
    flux_unit: astro.units.UnitBase | None,
    meta: dict[str, object],
) -> astro.table.QTable:
    """Catalogue of measured columns, with units, descriptions and metadata.

    Parameters
    ----------
    columns
        Name → values; names that `COLUMNS` lacks are left out.
    flux_unit
        Unit of the image; None if it is not known.
    meta
        Metadata.

    Returns
    -------
    catalogue
        Table with its columns in the order of `COLUMNS`.
    """
    units = {
        _PIXEL: astro.units.pixel,
        _PIXEL2: astro.units.pixel**2,
        _FLUX: flux_unit,
        _MOMENT: astro.units.pixel if flux_unit is None else flux_unit * astro.units.pixel,
        _MAG: astro.units.mag,
        _DEG: astro.units.deg,
    }
    table = astro.table.QTable()
    for name, column in COLUMNS.items():
        if name not in columns:
            continue
        unit = None if column.unit is None else units[column.unit]
        values = np.asarray(columns[name])
        table[name] = values if unit is None else values * unit
        table[name].info.description = column.description
    table.meta |= {"made_by": f"whitediff {__version__}"} | meta
    return table


def believed(catalog: astro.table.Table) -> Array:
    """Sources to believe first.

    Parameters
    ----------
    catalog
        As `whitediff.detection.exposures.detect` returns it.

    Returns
    -------
    believed
        ``(n,)`` boolean: a point, with none of `SPOILING_FLAGS`.
    """
    result: Array = (_labels(catalog) == "point") & (_first_reason(catalog) == "")
    return result


def source_counts(catalog: astro.table.Table) -> dict[str, int]:
    """Number of sources of each kind; every source is of one.

    Parameters
    ----------
    catalog
        As `whitediff.detection.exposures.detect` returns it.

    Returns
    -------
    counts
        n_believed, and among these n_believed_positive and n_believed_negative; n_flagged, with
        any of `SPOILING_FLAGS`; among the unflagged n_dipoles, n_extended, n_artifacts.
    """
    good, labels = believed(catalog), _labels(catalog)
    flagged = _first_reason(catalog) != ""
    positive = np.asarray(catalog["significance"]) > 0
    return {
        "n_believed": int(good.sum()),
        "n_believed_positive": int((good & positive).sum()),
        "n_believed_negative": int((good & ~positive).sum()),
        "n_flagged": int(flagged.sum()),
    } | {name: int(((labels == label) & ~flagged).sum()) for label, name in _NOT_POINTS.items()}


def headline(catalog: astro.table.Table) -> str:
    """Summary of a catalogue, in a line.

    Parameters
    ----------
    catalog
        As `whitediff.detection.exposures.detect` or `forced_photometry` returns it.

    Returns
    -------
    text
        Sources to believe, the others by class, flagged ones by their reason; the number that
        noise alone would give, of both signs if both were sought; and the depth.
    """
    meta = catalog.meta
    end = depth_text(meta.get("depth"), meta.get("depth_mag"), catalog["psf_flux"].unit)
    if meta.get("significance_text"):
        by = meta.get("significance_by") == "auto"
        allowed = "which is allowed for" if by else "which is not allowed for"
        end = f"; {meta['significance_text']}, {allowed}{end}"
    if meta["kind"] == "forced photometry":
        return f"fluxes at {_number_of(len(catalog), 'position')}{end}"
    expected = meta.get("expected_false_per_sign")
    if expected is not None:
        expected *= 2 if meta["sign"] == "both" else 1
    noise = "" if expected is None else f"; noise alone would give {expected:.2g}"
    if not len(catalog):
        return (
            f"no source beyond {meta['threshold']:g} sigma in {meta['n_pixels_searched']}"
            f" pixels{noise}{end}"
        )
    counts = source_counts(catalog)
    parts = [f"{_number_of(counts['n_believed'], 'source')} to believe"]
    if counts["n_believed"]:
        parts[0] += (
            f" ({counts['n_believed_positive']} brighter, {counts['n_believed_negative']} fainter)"
        )
    for name, word in (("n_dipoles", "dipole"), ("n_artifacts", "artifact")):
        if counts[name]:
            parts.append(_number_of(counts[name], word))
    if counts["n_extended"]:
        parts.append(f"{counts['n_extended']} extended")
    if counts["n_flagged"]:
        reasons = _first_reason(catalog)
        numbers = [(int((reasons == words).sum()), words) for words in SPOILING_FLAGS.values()]
        numbers.sort(key=lambda each: -each[0])
        listed = ", ".join(f"{n} {words}" for n, words in numbers if n)
        parts.append(f"{counts['n_flagged']} flagged ({listed})")
    return f"{', '.join(parts)}{noise}{end}"


def _number_of(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _labels(catalog: astro.table.Table) -> Array:
    return np.asarray(catalog["classification"]).astype(str)


def _first_reason(catalog: astro.table.Table) -> Array:
    """Meaning of each source's first flag among `SPOILING_FLAGS`; empty without one."""
    result = np.full(len(catalog), "", dtype=object)
    for flag, words in SPOILING_FLAGS.items():
        if flag in catalog.colnames:
            result[(result == "") & np.asarray(catalog[flag], bool)] = words
    return result


def source_flags(
    exposure: Exposure,
    x: Array,
    y: Array,
    *,
    significance: Array,
    point: Array,
    psf: Array,
    reach: float,
    part_left: Callable[[], float],
) -> dict[str, Array]:
    """Flags of sources, from the mask planes around them.

    Parameters
    ----------
    exposure
        Exposure.
    x, y
        ``(n,)`` array coordinates.
    significance
        ``(n,)`` signed; NaN where it is not known.
    point
        ``(n,)`` boolean: sources that look like points, or are taken for such.
    psf
        ``(py, px)``; a pixel within its full width at half maximum is near.
    reach
        Pixels from the frame's edge within which a source is near it.
    part_left
        Gives the part of a static source that errors of the matching may leave; called only if a
        source lies on a static one.

    Returns
    -------
    flags
        Name → ``(n,)`` boolean; False for a plane that the mask lacks.

    Notes
    -----
    A point is fitted to the pixels that hold a measurement, and its flux is right as long as
    enough of them are left: it is flagged by the share of the squared PSF that bad pixels take.
    A source that is no point is flagged for any of them, since they may be why it is none.
    """
    mask, fwhm = exposure.mask, full_width_half_maximum(psf)
    radius = max(_SOURCE_RADIUS, fwhm)
    near = _bits_within(mask.bits, x, y, radius)
    here = _bits_within(mask.bits, x, y, _SOURCE_RADIUS)

    def carries(bits: Array, names: tuple[str, ...]) -> Array:
        found: Array = (bits & masks.bits_of(mask, names)) != 0
        return found

    flags = {flag: carries(near, names) for flag, names in FLAGS.items()}
    ny, nx = exposure.shape
    flags["flag_edge"] |= (np.minimum(x, nx - 1 - x) < reach) | (np.minimum(y, ny - 1 - y) < reach)
    flags["flag_no_data"] |= _unmeasured_within(exposure, x, y, radius)
    lost, contaminated, beside_ray = _spoilt(exposure, x, y, psf, reach)
    flags["flag_cosmic_ray"] &= lost | beside_ray | ~point
    for flag in _LOSSES:
        flags[flag] &= lost | ~point
    flags["flag_contaminated"] &= contaminated | ~point
    static = masks.find_plane(mask, masks.STATIC) is not None
    on_source = carries(here, (masks.STATIC if static else masks.SOURCE,))
    saturated, _ = _pixels_within(mask, "SAT", x, y, _BRIGHT_RADIUS * fwhm)
    bright, _ = _pixels_within(mask, masks.STATIC_BRIGHT, x, y, _BRIGHT_RADIUS * fwhm)
    near_bright = saturated > 0
    beside = on_source & (bright > 0)
    if beside.any():
        # A residual, less its noise, belongs to a source that is brighter by a known factor, and
        # such a source has a known number of bright pixels.
        left = np.maximum(np.abs(significance) - _BY_NOISE, 0) / part_left()
        brighter = np.fmax(left, np.abs(significance) / RESIDUAL)
        near_bright |= beside & (bright > bright_pixel_counts(psf, brighter))
    if not static:
        # SOURCE also marks new sources: only large ones hide something else.
        found, pixels = _pixels_within(mask, masks.SOURCE, x, y, _LARGE_SOURCE * fwhm)
        near_bright |= on_source & (found >= _FILLED * pixels)
    flags |= {"flag_source": on_source, "flag_near_bright_star": near_bright}
    return flags


def _indices(
    shape: tuple[int, ...], x: Array, y: Array, radius: float
) -> tuple[Array, Array, Array]:
    """Rows and columns of pixels around positions, and which lie inside radius and frame."""
    half = math.ceil(radius)
    grid = np.arange(-half, half + 1)
    rows, columns = (np.floor(at + 0.5).astype(int)[:, None] + grid for at in (y, x))
    near = (rows - y[:, None])[:, :, None] ** 2 + (columns - x[:, None])[:, None, :] ** 2
    inside = (near <= radius**2) & ((rows >= 0) & (rows < shape[0]))[:, :, None]
    inside &= ((columns >= 0) & (columns < shape[1]))[:, None, :]
    return (
        np.clip(rows, 0, shape[0] - 1)[:, :, None],
        np.clip(columns, 0, shape[1] - 1)[:, None, :],
        inside,
    )


def _bits_within(array: Array, x: Array, y: Array, radius: float) -> Array:
    """All bits of a mask that pixels near each position carry, ``(n,)``."""
    rows, columns, inside = _indices(array.shape, x, y, radius)
    bits = array[rows, columns] * inside.astype(array.dtype)
    return np.bitwise_or.reduce(bits, axis=(1, 2))


def _unmeasured_within(exposure: Exposure, x: Array, y: Array, radius: float) -> Array:
    """Positions near a pixel without a value or a variance."""
    rows, columns, inside = _indices(exposure.shape, x, y, radius)
    found: Array = (_unmeasured(exposure, rows, columns) & inside).any(axis=(1, 2))
    return found


def _unmeasured(exposure: Exposure, rows: Array, columns: Array) -> Array:
    image, variance = exposure.data[rows, columns], exposure.variance[rows, columns]
    with np.errstate(invalid="ignore"):
        result: Array = ~(np.isfinite(image) & np.isfinite(variance) & (variance > 0))
    return result


def _spoilt(
    exposure: Exposure, x: Array, y: Array, psf: Array, reach: float
) -> tuple[Array, Array, Array]:
    """Sources that lose too much to pixels without a measurement, sources that lose too much to
    contaminated ones, and sources beside a cosmic ray.
    """
    lost, contaminated, beside_ray = np.zeros((3, len(x)), bool)
    names = (masks.UNTRUSTED_MASK_PLANES, (masks.CONTAMINATED,), ("CR",))
    half = max(math.ceil(reach), math.ceil(_BESIDE_RAY) + 1)
    grid = np.arange(-half, half + 1)
    for first in range(0, len(x), _TOGETHER):
        part = slice(first, first + _TOGETHER)
        row, column = (np.floor(at[part] + 0.5).astype(int) for at in (y, x))
        rows, columns = (at[:, None] + grid for at in (row, column))
        # The frame's outermost pixels are repeated beyond it: the edge has a flag of its own.
        rows, columns = (
            np.clip(at, 0, n - 1) for at, n in zip((rows, columns), exposure.shape, strict=True)
        )
        place = rows[:, :, None], columns[:, None, :]
        bits = exposure.mask.bits[place]
        missing, dirty, hit = ((bits & masks.bits_of(exposure.mask, each)) != 0 for each in names)
        missing |= _unmeasured(exposure, *place)
        (known,) = moved_stamps(psf[None], y[part] - row, x[part] - column, half)
        known = np.square(known)
        total = known.sum(axis=(1, 2))
        middle = missing[:, half, half]
        lost[part] = middle | ((known * missing).sum(axis=(1, 2)) > _LARGEST_LOSS * total)
        contaminated[part] = (known * dirty).sum(axis=(1, 2)) > _LARGEST_CONTAMINATION * total
        ray = hit & (scipy.ndimage.uniform_filter(9.0 * hit, (0, 3, 3), mode="constant") > 1.5)
        away = np.hypot(
            (grid - (y[part] - row)[:, None])[:, :, None],
            (grid - (x[part] - column)[:, None])[:, None, :],
        )
        beside_ray[part] = (ray & (away <= _BESIDE_RAY)).any(axis=(1, 2))
    return lost, contaminated, beside_ray


def _pixels_within(mask: Mask, name: str, x: Array, y: Array, radius: float) -> tuple[Array, Array]:
    """Number of pixels with a mask plane around each position, and number of all pixels there."""
    found, pixels = np.zeros((2, len(x)), int)
    plane = masks.find_plane(mask, name)
    if plane is None:
        return found, pixels
    bit, shape = mask.bits.dtype.type(mask.value(plane)), mask.shape
    # A few at a time: many surroundings take much memory.
    for first in range(0, len(x), _TOGETHER):
        part = slice(first, first + _TOGETHER)
        rows, columns, inside = _indices(shape, x[part], y[part], radius)
        carries = (mask.bits[rows, columns] & bit) != 0
        found[part], pixels[part] = (carries & inside).sum(axis=(1, 2)), inside.sum(axis=(1, 2))
    return found, pixels


def sky_columns(exposure: Exposure, columns: dict[str, Array]) -> dict[str, Array]:
    """Sky coordinates of positions, with errors if the positions have errors.

    Parameters
    ----------
    exposure
        Exposure; without a WCS there are no such columns, and a warning.
    columns
        x, y, and if known x_err, y_err, xy_cov: pixel coordinates.

    Returns
    -------
    columns
        ra, dec, and ra_err (times cos dec) and dec_err, degrees.
    """
    wcs = exposure.wcs
    if wcs is None:
        _log.warning(
            "%s: has no WCS, so the catalogue has no sky coordinates.",
            exposure.source or "The image",
        )
        return {}
    y0, x0 = exposure.origin
    x, y = columns["x"] - x0, columns["y"] - y0
    if not len(x):
        ra = dec = np.zeros(0)
    else:
        sky = wcs.pixel_to_world(x, y).icrs
        ra, dec = sky.ra.deg, sky.dec.deg
    result = {"ra": ra, "dec": dec}
    if "x_err" not in columns:
        return result
    xx, yy, xy = columns["x_err"] ** 2, columns["y_err"] ** 2, columns["xy_cov"]
    slopes = [(np.zeros(0), np.zeros(0))] * 2
    if len(x):
        slopes = []
        for dx, dy in ((0.5, 0.0), (0.0, 0.5)):
            before = wcs.pixel_to_world(x - dx, y - dy).icrs
            after = wcs.pixel_to_world(x + dx, y + dy).icrs
            east, north = before.spherical_offsets_to(after)
            slopes.append((east.deg, north.deg))
    for name, axis in (("ra_err", 0), ("dec_err", 1)):
        along_x, along_y = slopes[0][axis], slopes[1][axis]
        variance = along_x**2 * xx + along_y**2 * yy + 2 * along_x * along_y * xy
        result[name] = np.sqrt(variance)
    return result


def column_values(
    column: astro.table.Column | astro.units.Quantity,
    unit: astro.units.UnitBase | None,
    name: str,
) -> Array:
    """Numbers of a table's column in a unit.

    Parameters
    ----------
    column
        Column or quantity.
    unit
        Unit to convert to; None for the column's own.
    name
        Name of the column, for messages.

    Returns
    -------
    values
        ``(n,)`` float64; not converted if either has no unit, NaN where a value is masked.

    Raises
    ------
    ArgumentError
        If the values are no numbers, or do not convert to the unit.
    """
    own = getattr(column, "unit", None)
    if np.ma.isMaskedArray(column) or hasattr(column, "filled"):
        column = column.filled(np.nan) if np.issubdtype(column.dtype, np.floating) else column
    values = getattr(column, "value", column)
    try:
        values = np.asarray(values, dtype=np.float64).reshape(-1)
        if own is None or unit is None or own in (unit, astro.units.dimensionless_unscaled):
            return values
        return np.asarray((values * own).to_value(unit))
    except (astro.units.UnitConversionError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"The column {name} must hold numbers"
            + (f" in {unit}" if unit is not None else "")
            + f"; it is {column.dtype} in {own or 'no unit'}."
        ) from error


def wanted_positions(
    exposure: Exposure, positions: astro.table.Table
) -> tuple[Array, Array, Array]:
    """Identifiers and pixel coordinates of a table of positions.

    Parameters
    ----------
    exposure
        Exposure.
    positions
        As for `whitediff.detection.exposures.forced_photometry`.

    Returns
    -------
    id, x, y
        ``(n,)``; x and y are NaN where the table has no number.

    Raises
    ------
    ArgumentError
        If the columns, or a WCS for sky coordinates, are missing.
    """
    names = {name.lower(): name for name in reversed(positions.colnames)}

    def column(name: str, unit: astro.units.UnitBase) -> Array:
        return column_values(positions[names[name]], unit, name)

    number = len(positions)
    identifiers = np.asarray(positions[names["id"]]) if "id" in names else np.arange(1, number + 1)
    if "x" in names and "y" in names:
        return identifiers, column("x", astro.units.pixel), column("y", astro.units.pixel)
    if not ("ra" in names and "dec" in names):
        raise ArgumentError(
            "Positions need the columns x and y, or ra and dec; this table has"
            f" {', '.join(positions.colnames) or 'none'}."
        )
    wcs = exposure.wcs
    if wcs is None:
        raise ArgumentError.of(
            exposure.source or "The image", "has no WCS, so ra and dec lead nowhere; give x and y."
        )
    y0, x0 = exposure.origin
    if not number:
        return identifiers, np.zeros(0), np.zeros(0)
    ra, dec = column("ra", astro.units.deg), column("dec", astro.units.deg)
    known = np.isfinite(ra) & np.isfinite(dec) & (np.abs(np.nan_to_num(dec)) <= 90)
    x, y = np.full((2, number), np.nan)
    if known.any():
        sky = astro.coordinates.SkyCoord(ra[known], dec[known], unit="deg", frame="icrs")
        px, py = wcs.world_to_pixel(sky)
        x[known], y[known] = px + x0, py + y0
    return identifiers, x, y
