"""Catalogues of sources on a difference: finding them, and measuring at given positions."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from astropy.table import QTable, Table

from ..errors import ArgumentError
from ..exposures.masks import CONTAMINATED, UNTRUSTED_MASK_PLANES, flagged
from ..exposures.model import Exposure
from ..exposures.psf import Light, psf_images
from ..exposures.zero_points import check_zero_point, magnitudes, zero_point
from ..matching.skies import without_left_sky
from ..noise.scatter import free_of_sources, measured_width, width_of
from ..noise.significance import (
    Significance,
    core,
    fits_image,
    point_source_significance,
    score_significance,
    self_response,
)
from ..noise.widths import SignificanceWidth
from ..numerics.profiles import FWHM_TO_SIGMA, full_width_half_maximum
from . import photometry
from .catalog import assembled, sky_columns, source_counts, source_flags, wanted_positions
from .depth import depth
from .dipoles import Classes, classified, opposite_lobes
from .peaks import (
    Blends,
    Peaks,
    Responses,
    deblended,
    expected_peaks,
    find_peaks,
    noise_curvature,
    response_curvature,
    surrounding_level,
    values_at,
)
from .residuals import part_left

__all__ = [
    "DetectionOptions",
    "Detections",
    "detect",
    "detections",
    "expected_false_detections",
    "forced_photometry",
    "significance_at",
]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.detect")

_APERTURE = 1.5
"""Radius of the aperture, full widths at half maximum of the PSF."""

_FURTHEST = 0.75
"""Full widths at half maximum that a source may move from its peak in the fit."""

_PLACES = 4
"""Places along each side of the frame at which the PSF is evaluated."""

_LARGEST_RESPONSE = 50
"""Pixels from the middle of a score's response up to which it counts."""
_ROWS_COMPARED = 512
"""Rows, about, that tell the ratio of a score's unit to the difference's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionOptions:
    """Which sources to find, and how to measure them.

    Attributes
    ----------
    threshold
        Least significance of a source, standard deviations.
    sign
        Sources that are brighter on the science image (positive), fainter, or both.
    aperture_radius
        Pixels; None for 1.5 full widths at half maximum of the PSF, to a tenth of a pixel.
    exclude_mask_planes
        Pixels with any of these hold no measurement.
    zero_point
        Magnitude of a flux of 1; None for the header's, if it has one.
    significance
        Significances that the threshold applies to: by the variance plane, divided by their
        measured width where that departs from 1 (auto), or as they are (plane).
    """

    threshold: float = 5.0
    sign: Literal["both", "positive", "negative"] = "both"
    aperture_radius: float | None = None
    exclude_mask_planes: tuple[str, ...] = UNTRUSTED_MASK_PLANES
    zero_point: float | None = None
    significance: Literal["auto", "plane"] = "auto"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise ArgumentError(
                f"The threshold must be positive, in standard deviations; got {self.threshold:g}."
            )
        if self.sign not in ("both", "positive", "negative"):
            raise ArgumentError(f"sign is both, positive or negative; got {self.sign!r}.")
        if self.significance not in ("auto", "plane"):
            raise ArgumentError(f"significance is auto or plane; got {self.significance!r}.")
        radius = self.aperture_radius
        if radius is not None and not (math.isfinite(radius) and radius > 0):
            raise ArgumentError(f"The aperture's radius must be positive; got {radius:g}.")
        check_zero_point(self.zero_point)


@dataclasses.dataclass(frozen=True)
class Detections:
    """Sources, and the significance that they were found on.

    Attributes
    ----------
    catalogue
        As `detect` returns it.
    significance
        `whitediff.noise.significance.Significance` of every pixel.
    peaks
        Peaks of all sources, both lobes of dipoles among them; array coordinates.
    threshold
        Least significance of a source by the variance plane.
    """

    catalogue: QTable
    significance: Significance
    peaks: Peaks
    threshold: float

    def pixels(self, sign: Literal["positive", "negative"]) -> Array:
        """Pixels beyond the threshold, and the highest of each source.

        Parameters
        ----------
        sign
            Sign of the sources.

        Returns
        -------
        pixels
            ``(ny, nx)`` boolean.
        """
        side = 1 if sign == "positive" else -1
        result: Array = side * self.significance.image > self.threshold
        result &= self.significance.searched
        # A peak between pixels may be above the threshold while all its pixels are below.
        at = np.sign(self.peaks.significance) == side
        rows, columns = (
            np.clip(np.floor(place[at] + 0.5).astype(int), 0, n - 1)
            for place, n in zip((self.peaks.y, self.peaks.x), result.shape, strict=True)
        )
        result[rows, columns] = True
        return result


def detect(
    difference: object, score: object | None = None, options: DetectionOptions | None = None
) -> QTable:
    """Find the sources on a difference and measure them.

    Parameters
    ----------
    difference
        `Exposure`, or any lsst.images exposure, whose noise is white; with a PSF.
    score
        Score image of the same pixels, on which sources are found; they are measured on the
        difference.  None to find them on the difference, filtered with its PSF.
    options
        `DetectionOptions`; the defaults if not given.

    Returns
    -------
    catalogue
        One row for each source, from the first row of pixels to the last; see
        docs/detection.md for its columns.  Empty, with all columns, if there is none.

    Raises
    ------
    ArgumentError
        If there is no PSF or variance, or the score has another box.

    Notes
    -----
    The steps: `point_source_significance` or `score_significance`, `find_peaks`, `deblended`,
    `photometry.fit_blends`, `dipoles.classified`.
    """
    return detections(difference, score, options).catalogue


def detections(
    difference: object, score: object | None = None, options: DetectionOptions | None = None
) -> Detections:
    """Find the sources on a difference and measure them; also return their pixels.

    Parameters
    ----------
    difference, score, options
        As for `detect`.

    Returns
    -------
    detections
        `Detections`.

    Raises
    ------
    ArgumentError
        If there is no PSF or variance, or the score has another box.
    """
    options = DetectionOptions() if options is None else options
    field = _Field.of(Exposure.from_object(difference), options)
    on = field.exposure if score is None else Exposure.from_object(score)
    found, responses = _searched(field, None if score is None else on)
    width = _width(found, on, score=score is not None)
    divisor = 1.0 if width is None else width.divisor
    threshold = options.threshold * (divisor if options.significance == "auto" else 1.0)
    peaks = find_peaks(found, threshold)
    blends = deblended(peaks, threshold, responses)
    peaks = blends.peaks
    # Free fits of two lobes side by side are degenerate; pairs that are no dipole follow below.
    lobes = opposite_lobes(peaks, field.fwhm) >= 0
    classes, fits = classified(
        field.frame,
        blends,
        field.fitted(blends, held=lobes),
        found,
        field.psfs,
        radius=field.radius,
        fwhm=field.fwhm,
    )
    level = surrounding_level(found, peaks, field.fwhm)
    beneath = np.abs(peaks.significance) - level < threshold
    classes.label[(classes.label == "point") & (level > 0) & beneath] = "extended"
    apart = lobes & (classes.label != "dipole") & ~classes.absorbed
    if apart.any():
        apart = np.isin(blends.group, blends.group[apart]) & (classes.label != "dipole")
        fits = photometry.replaced_fits(fits, apart, field.fitted(blends[apart]))
    fits = _inside(fits, peaks, field.exposure.shape)
    columns = (
        {
            "x": fits.x,
            "y": fits.y,
            "x_err": fits.x_error,
            "y_err": fits.y_error,
            "xy_cov": fits.xy_covariance,
            "significance": peaks.significance,
            "measured_significance": peaks.significance / divisor,
            "peak_significance": peaks.pixel_significance,
        }
        | _flux_columns(fits)
        | _class_columns(classes)
    )
    kept = ~classes.absorbed
    if options.sign != "both":
        kept &= (peaks.significance > 0) == (options.sign == "positive")
    columns = {name: values[kept] for name, values in columns.items()}
    columns |= _groups(blends, kept)
    columns["flag_fit_failed"] = fits.failed[kept]
    table = field.table(columns)
    table["classification"][_on_defect(field.exposure, table)] = "artifact"
    table.meta |= {
        "kind": "detections",
        "threshold": options.threshold,
        "sign": options.sign,
        "searched_on": "score" if score is not None else "difference",
        "n_pixels_searched": found.pixels,
        "n_positive": int((columns["significance"] > 0).sum()),
        "n_negative": int((columns["significance"] < 0).sum()),
    } | source_counts(table)
    table.meta |= _width_meta(width, options)
    if on.psf is not None:
        # In noise of the measured width the threshold is lower by that width.
        table.meta["expected_false_per_sign"] = expected_false_detections(
            on, threshold / divisor, found.pixels, score=score is not None
        )
    return Detections(table, found, peaks, threshold)


def _width(found: Significance, exposure: Exposure, *, score: bool) -> SignificanceWidth | None:
    """Width of significances between the sources of the image that was searched."""
    if exposure.psf is None:
        return None
    box = exposure.bbox
    psf = exposure.psf.at(x=box.x.center, y=box.y.center)
    return width_of(found.image, found.searched & free_of_sources(exposure), psf, score=score)


def _width_meta(width: SignificanceWidth | None, options: DetectionOptions) -> dict[str, Any]:
    """Metadata of a catalogue: width of significances, and whether it is divided out."""
    meta: dict[str, Any] = {"significance_by": options.significance}
    if width is None:
        return meta
    return meta | {
        "significance_width": width.width,
        "significance_width_err": width.error,
        "significance_text": width.text,
    }


def _on_defect(exposure: Exposure, table: QTable) -> Array:
    """Rows on a trail, or whose own pixel is bad or hit by a cosmic ray."""
    ny, nx = exposure.shape
    y0, x0 = exposure.origin
    rows, columns = (
        np.clip(np.floor(table[name].value - first + 0.5).astype(int), 0, n - 1)
        for name, first, n in (("y", y0, ny), ("x", x0, nx))
    )
    hit = flagged(exposure.mask, ("CR", "BAD"))[rows, columns]
    result: Array = hit | np.asarray(table["flag_streak"])
    return result


def expected_false_detections(
    exposure: Exposure, threshold: float, pixels: int, *, score: bool = False
) -> float:
    """Number of sources of one sign that noise alone gives.

    Parameters
    ----------
    exposure
        Difference or score with a PSF.
    threshold
        Standard deviations, positive.
    pixels
        Number of pixels searched.
    score
        Whether the exposure is a score.

    Returns
    -------
    number
        `whitediff.detection.peaks.expected_peaks`, for the mean of λ₂ over the field.

    Raises
    ------
    ArgumentError
        If there is no PSF.
    """
    if exposure.psf is None:
        raise ArgumentError.of(exposure.source or "The image", "has no PSF.")
    x, y = _places(exposure)
    images = psf_images(exposure.psf, x=x + exposure.origin[1], y=y + exposure.origin[0])
    curvature = response_curvature if score else noise_curvature
    mean = float(np.mean([curvature(image) for image in images]))
    return expected_peaks(mean, threshold, pixels)


def _inside(
    fits: photometry.SourceFits, peaks: Peaks, shape: tuple[int, int]
) -> photometry.SourceFits:
    """Fits in which those whose position left the frame have failed, and stay at their peaks."""
    ny, nx = shape
    with np.errstate(invalid="ignore"):
        outside = (fits.x < -0.5) | (fits.x > nx - 0.5) | (fits.y < -0.5) | (fits.y > ny - 0.5)
    if not outside.any():
        return fits
    return dataclasses.replace(
        fits,
        x=np.where(outside, np.clip(peaks.x, -0.5, nx - 0.5), fits.x),
        y=np.where(outside, np.clip(peaks.y, -0.5, ny - 0.5), fits.y),
        failed=fits.failed | outside,
    )


def _places(exposure: Exposure) -> tuple[Array, Array]:
    """Array coordinates of a grid of places over the field."""
    shares = (np.arange(_PLACES) + 0.5) / _PLACES
    y, x = np.meshgrid(*(shares * n for n in exposure.shape), indexing="ij")
    return x.ravel(), y.ravel()


def significance_at(exposure: Exposure, x: Array, y: Array, *, score: bool = False) -> Array:
    """Significance of a point source at given positions.

    Parameters
    ----------
    exposure
        Difference with a PSF, or score.
    x, y
        ``(n,)`` pixel coordinates, on the image.
    score
        Whether the exposure is a score.

    Returns
    -------
    significance
        ``(n,)`` signed, interpolated between the pixels that `detect` searches.
    """
    if score:
        good = ~flagged(exposure.mask, DetectionOptions().exclude_mask_planes)
        found = score_significance(exposure.data, exposure.variance, good)
    else:
        field = _Field.of(exposure, DetectionOptions())
        found = point_source_significance(*field.frame, field.psf_of_place())
    y0, x0 = exposure.origin
    return values_at(found.image, x - x0, y - y0)


def forced_photometry(
    difference: object, positions: Table, options: DetectionOptions | None = None
) -> QTable:
    """Measure at given positions, whether or not anything is there.

    Parameters
    ----------
    difference
        `Exposure`, or any lsst.images exposure, whose noise is white; with a PSF.
    positions
        Columns x and y, pixel coordinates, or ra and dec, degrees or with a unit (ICRS); and id,
        which is kept.
    options
        `DetectionOptions`; threshold and sign have no effect.

    Returns
    -------
    catalogue
        One row for each position, in the given order; positions outside the image have no flux,
        and the flags flag_edge and flag_no_data.

    Raises
    ------
    ArgumentError
        If there is no PSF or variance, the positions lack their columns, the image has no WCS
        for sky coordinates, or all positions are outside.
    """
    options = DetectionOptions() if options is None else options
    field = _Field.of(Exposure.from_object(difference), options)
    identifiers, x, y = wanted_positions(field.exposure, positions)
    y0, x0 = field.exposure.origin
    ny, nx = field.exposure.shape
    with np.errstate(invalid="ignore"):
        inside = (x >= x0 - 0.5) & (x < x0 + nx - 0.5) & (y >= y0 - 0.5) & (y < y0 + ny - 0.5)
    where = field.exposure.source or "the image"
    if len(x) and not inside.any():
        raise ArgumentError(
            f"None of the {len(x)} positions lies on {where}, which spans x = {x0}..{x0 + nx - 1},"
            f" y = {y0}..{y0 + ny - 1}; the first is x = {x[0]:g}, y = {y[0]:g}. Do they belong"
            " to it?"
        )
    if not inside.all():
        _log.warning(
            "%d of %d positions lie outside of %s; they get no flux, and flag_edge.",
            int((~inside).sum()),
            len(x),
            where,
        )
    columns: dict[str, Any] = {"x": x, "y": y}
    px, py = x[inside] - x0, y[inside] - y0
    fits = field.fitted_at(px, py)
    measured = _flux_columns(fits, parameters=1)
    width = measured_width(field.exposure)
    measured["significance"] = _significance(fits)
    measured["measured_significance"] = measured["significance"] / (
        1.0 if width is None else width.divisor
    )
    for name, values in measured.items():
        full = np.full(len(x), np.nan)
        full[inside] = values
        columns[name] = full
    columns["psf_chi2_pixels"] = np.nan_to_num(columns["psf_chi2_pixels"]).astype(int)
    columns["id"] = identifiers
    failed = np.ones(len(x), bool)
    failed[inside] = fits.failed
    columns["flag_fit_failed"] = failed
    table = field.table(columns, inside)
    table.meta["kind"] = "forced photometry"
    table.meta |= _width_meta(width, options)
    return table


@dataclasses.dataclass(frozen=True)
class _Field:
    """A difference with its PSF, good pixels and options: all that measurements need."""

    exposure: Exposure
    options: DetectionOptions
    good: Array
    middle_psf: Array
    fwhm: float
    radius: float
    zero_point: tuple[float, str] | None

    @classmethod
    def of(cls, exposure: Exposure, options: DetectionOptions) -> _Field:
        name = exposure.source or "The difference"
        if exposure.is_score:
            raise ArgumentError.of(
                name,
                "is a score, on which nothing can be measured; give the difference of the"
                " same images, and the score to find sources on.",
            )
        if exposure.psf is None:
            raise ArgumentError.of(
                name,
                "has no PSF, with which sources are found and measured; give one"
                " (detect --psf; subtract --science-psf, --template-psf; in Python Exposure.psf).",
            )
        variance = exposure.variance
        with np.errstate(invalid="ignore"):
            if (
                not (
                    np.isfinite(variance[:: max(1, len(variance) // 512)])
                    & (variance[:: max(1, len(variance) // 512)] > 0)
                ).any()
                and not (variance > 0).any()
            ):
                raise ArgumentError.of(
                    name,
                    "has no variance plane, or none that is positive anywhere; give one"
                    " (--variance).",
                )
        box = exposure.bbox
        middle = exposure.psf.at(x=box.x.center, y=box.y.center)
        if not fits_image(core(middle).shape, exposure.shape):
            raise ArgumentError.of(
                name,
                f"its PSF {middle.shape} is larger than the image {exposure.shape}; is it"
                " the right one?",
            )
        exposure = without_left_sky(exposure)
        return cls(
            exposure=exposure,
            options=options,
            good=~flagged(exposure.mask, options.exclude_mask_planes),
            middle_psf=middle,
            fwhm=full_width_half_maximum(middle),
            radius=photometry.fit_radius(middle),
            zero_point=zero_point(exposure, options.zero_point),
        )

    @property
    def frame(self) -> photometry.Frame:
        """Image, variance and good pixels."""
        return photometry.Frame(self.exposure.data, self.exposure.variance, self.good)

    @property
    def aperture_radius(self) -> float:
        """Radius of the aperture, pixels."""
        given = self.options.aperture_radius
        if given is None:
            return round(_APERTURE * self.fwhm, 1)
        shorter = min(self.exposure.shape)
        if 2 * given > shorter:
            raise ArgumentError.of(
                self.exposure.source or "The difference",
                f"an aperture's radius of {given:g}"
                f" pixels is too large for an image of {self.exposure.shape[1]} x"
                f" {self.exposure.shape[0]}; {shorter // 2} is the most.",
            )
        return given

    def psfs(self, x: Array, y: Array) -> Array:
        """Images of stars of unit flux at array coordinates, as large as fits need them."""
        assert self.exposure.psf is not None
        box = self.exposure.bbox
        images = psf_images(
            self.exposure.psf,
            x=np.clip(x + box.x.start, box.x.start, box.x.stop - 1),
            y=np.clip(y + box.y.start, box.y.start, box.y.stop - 1),
        )
        reach = math.ceil(2 * self.radius) + 2
        cut = tuple(slice(max(0, n // 2 - reach), n // 2 + reach + 1) for n in images.shape[1:])
        # Fluxes are those of the whole source; the PSF's images hold only a part of its light.
        result: Array = images[:, *cut] * self.light.enclosed
        return result

    @property
    def light(self) -> Light:
        """Share of a source's light in the PSF's images."""
        assert self.exposure.psf is not None
        return Light.of(self.exposure.psf)

    def psf_of_place(self) -> Array | Callable[[float, float], Array]:
        """PSF of the filter: an image if it is the same everywhere, else a function of position."""
        first = self.psfs(np.zeros(1), np.zeros(1))
        ny, nx = self.exposure.shape
        if len(self.psfs(np.array([0.0, nx - 1.0]), np.array([0.0, ny - 1.0]))) == 1:
            return first[0]
        return lambda x, y: self.psfs(np.array([x]), np.array([y]))[0]

    def fitted(self, blends: Blends, held: Array | None = None) -> photometry.SourceFits:
        """Point sources fitted to the peaks, those that overlap together."""
        return photometry.fit_blends(
            self.frame,
            blends.peaks.x,
            blends.peaks.y,
            blends.group,
            self.psfs,
            radius=self.radius,
            furthest=_FURTHEST * self.fwhm,
            held=held,
        )

    def fitted_at(self, x: Array, y: Array) -> photometry.SourceFits:
        """Fluxes at held positions, array coordinates."""
        n = len(x)
        stamps = photometry.stamps_around(self.frame, x, y, math.ceil(self.radius) + 1)
        psf = self.psfs(x, y) if n else np.zeros((1, 3, 3))
        fits = photometry.fit_fluxes(stamps, psf, x[:, None], y[:, None], radius=self.radius)
        nothing = np.full(n, np.nan)
        return photometry.SourceFits(
            x, y, fits.flux[:, 0], fits.error(0)[:, 0], nothing, nothing, nothing,
            fits.chi_square[:, 0], fits.pixels[:, 0], fits.failed,
        )  # fmt: skip

    def part_left(self) -> float:
        """Part of static sources that errors of the matching may leave."""
        return part_left(
            self.exposure,
            self.middle_psf,
            fwhm=self.fwhm,
            significance_at=lambda x, y: _significance(self.fitted_at(x, y)),
        )

    def table(self, columns: dict[str, Any], inside: Array | None = None) -> QTable:
        """Catalogue of measured columns, and of all that follows from positions and fluxes."""
        exposure = self.exposure
        y0, x0 = exposure.origin
        if inside is None:
            # Detections are in array coordinates, given positions in pixel coordinates.
            columns |= {"x": columns["x"] + x0, "y": columns["y"] + y0}
            inside = np.ones(len(columns["x"]), bool)
        x, y = columns["x"][inside] - x0, columns["y"][inside] - y0
        n = len(inside)

        def spread(values: Array, fill: float = np.nan) -> Array:
            full = np.full(n, fill, dtype=values.dtype)
            full[inside] = values
            return full

        columns["psf_flux_err"] = self.light.whole_error(
            columns["psf_flux"], columns["psf_flux_err"]
        )
        flux, error = photometry.aperture_fluxes(self.frame, x, y, self.aperture_radius)
        columns |= {"aperture_flux": spread(flux), "aperture_flux_err": spread(error)}
        columns |= {name: spread(values) for name, values in self.shapes(x, y).items()}
        flags = source_flags(
            exposure,
            x,
            y,
            significance=columns["significance"][inside],
            point=columns.get("classification", np.full(n, "point"))[inside] == "point",
            psf=self.middle_psf,
            reach=self.radius,
            part_left=self.part_left,
        )
        for name, values in flags.items():
            columns[name] = spread(values, fill=False)
        for name in ("flag_edge", "flag_no_data"):
            columns[name] |= ~inside
        columns |= sky_columns(exposure, columns)
        if self.zero_point is not None:
            columns |= magnitudes(columns, self.zero_point[0])
        meta: dict[str, Any] = {
            "image": exposure.source or "",
            "aperture_radius": self.aperture_radius,
            "psf_fwhm": round(self.fwhm, 4),
            "fit_radius": round(self.radius, 4),
            "psf_enclosed": round(self.light.enclosed, 5),
            "psf_flux_error": round(self.light.error, 5),
            "x0": x0,
            "y0": y0,
        }
        if self.zero_point is not None:
            meta |= {"zero_point": self.zero_point[0], "zero_point_from": self.zero_point[1]}
        known = depth(exposure, self.options.zero_point)
        if known is not None:
            meta |= known.meta
        return assembled(columns, exposure.unit, meta)

    def shapes(self, x: Array, y: Array) -> dict[str, Array]:
        """Second moments of sources at array coordinates."""
        stamps = photometry.stamps_around(self.frame, x, y, math.ceil(self.radius) + 1)
        weight = self._psf_moments(x, y)
        xx, yy, xy = photometry.adaptive_moments(stamps, x, y, weight)
        return {"shape_xx": xx, "shape_yy": yy, "shape_xy": xy}

    def _psf_moments(self, x: Array, y: Array) -> Array:
        """Second moments xx, yy, xy of the PSFs' cores, ``(n, 3)``."""
        n = len(x)
        if not n:
            return np.zeros((0, 3))
        images = self.psfs(x, y)
        sigma2 = (FWHM_TO_SIGMA * self.fwhm) ** 2
        weight = np.tile([sigma2, sigma2, 0.0], (len(images), 1))
        cut = _about_origin(images, max(images.shape[1:]))
        stamps = photometry.Stamps(
            cut, np.ones(cut.shape), np.ones(cut.shape, bool), *np.zeros((2, len(cut)), int)
        )
        centre = np.zeros(len(cut))
        found = np.stack(photometry.adaptive_moments(stamps, centre, centre, weight), axis=1)
        found = np.where(np.isfinite(found).all(axis=1, keepdims=True), found, weight)
        return np.broadcast_to(found, (n, 3))


def _searched(field: _Field, score: Exposure | None) -> tuple[Significance, Responses]:
    """Significance, and the image that a point source has on it over the field."""
    exposure = field.exposure
    found = point_source_significance(*field.frame, field.psf_of_place())
    if score is not None:
        if score.bbox != exposure.bbox:
            raise ArgumentError.of(
                score.source or "The score",
                f"its box {score.bbox} is not that of the difference, {exposure.bbox}.",
            )
        good = field.good & ~flagged(score.mask, field.options.exclude_mask_planes)
        # A score is spoilt within its filter's reach of bad pixels and edges; there the difference
        # is used, since its filter leaves such pixels out.
        good &= ~flagged(score.mask, [CONTAMINATED])
        alone = score_significance(score.data, score.variance, good)
        _take_over(found, alone)
    x, y = _places(exposure)
    if score is not None and score.psf is not None:
        images = psf_images(score.psf, x=x + score.origin[1], y=y + score.origin[0])
        images = _about_origin(images, _LARGEST_RESPONSE)
        middle = images.shape[1] // 2
        images = images / images[:, middle : middle + 1, middle : middle + 1]
    else:
        reach = core(field.middle_psf, within=field.exposure.shape).shape[0] // 2
        psfs = _about_origin(field.psfs(x, y), reach)
        images = np.stack([self_response(psf) for psf in psfs])
    n = len(images)
    return found, Responses(images, x[:n], y[:n])


def _take_over(found: Significance, score: Significance) -> None:
    """Replace significances of the difference by a score's where it has any, in its unit."""
    assert found.noise is not None
    assert score.noise is not None
    # Some hundred rows suffice for the ratio of the two units.
    step = max(1, len(found.image) // _ROWS_COMPARED)
    both = score.searched[::step] & (found.noise[::step] > 0)
    if both.any():
        found.noise[...] *= np.median(score.noise[::step][both] / found.noise[::step][both])
    for own, other in ((found.image, score.image), (found.noise, score.noise)):
        np.copyto(own, other, where=score.searched)
    found.searched[score.searched] = True


def _about_origin(images: Array, most: int) -> Array:
    """Middle of images with the origin at ``[ny//2, nx//2]``, up to so many pixels from it."""
    half = min(most, (min(images.shape[1:]) - 1) // 2)
    rows, columns = (slice(n // 2 - half, n // 2 + half + 1) for n in images.shape[1:])
    return images[:, rows, columns]


def _significance(fits: photometry.SourceFits) -> Array:
    """Fluxes over their errors."""
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Array = fits.flux / fits.flux_error
    return result


def _flux_columns(fits: photometry.SourceFits, *, parameters: int = 3) -> dict[str, Array]:
    with np.errstate(invalid="ignore", divide="ignore"):
        left = fits.pixels - parameters
        reduced = fits.chi_square / np.where(left > 0, left, np.nan)
    return {
        "psf_flux": fits.flux,
        "psf_flux_err": fits.flux_error,
        "psf_chi2": reduced,
        "psf_chi2_pixels": np.nan_to_num(fits.pixels).astype(int),
    }


def _class_columns(classes: Classes) -> dict[str, Array]:
    return {
        "dipole_moment": classes.moment,
        "dipole_moment_err": classes.moment_error,
        "dipole_separation": classes.separation,
        "dipole_separation_err": classes.separation_error,
        "dipole_angle": classes.angle,
        "dipole_positive_flux": classes.positive_flux,
        "dipole_positive_flux_err": classes.positive_flux_error,
        "dipole_negative_flux": classes.negative_flux,
        "dipole_negative_flux_err": classes.negative_flux_error,
        "dipole_chi2": classes.dipole_chi2,
        "classification": classes.label,
    }


def _groups(blends: Blends, kept: Array) -> dict[str, Array]:
    """Numbers of the sources that are kept, number of the brightest source of each one's blend,
    and number of peaks of the blend.
    """
    group = blends.group[kept]
    identifiers = np.arange(1, len(group) + 1)
    if not len(group):
        return {"id": identifiers, "parent": identifiers.copy(), "n_peaks": identifiers.copy()}
    count = np.bincount(blends.group)
    # Of repeated indices the last assignment stays: the brightest.
    order = np.argsort(np.abs(blends.amplitude[kept]), kind="stable")
    brightest = np.zeros(len(count), int)
    brightest[group[order]] = identifiers[order]
    return {"id": identifiers, "parent": brightest[group], "n_peaks": count[group]}
