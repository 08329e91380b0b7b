"""Differences of cut-outs that hold too few stars for the usual fit."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError, DataError, TooFewSourcesError
from ..exposures import masks
from ..exposures.fields import ChebyshevField
from ..exposures.missing import missing_pixels, without_missing
from ..exposures.model import Exposure
from ..exposures.psf import as_kernel_psf
from ..exposures.zero_points import zero_point
from ..matching.preparation import PreparationOptions
from ..matching.stamp import StampKernel, StampOptions, fit_stamp, near
from ..noise.exposures import measurable, untrusted_pixels
from ..numerics.stats import median_deviation
from ..stars.points import neighbour_variance
from .recipe import CutoutOptions, Recipe
from .solution import Product, Solution

__all__ = [
    "Cutout",
    "CutoutFlux",
    "KernelSource",
    "cutout_problems",
    "kernel_source",
    "solve_cutout",
    "transient_flux",
]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.match")

_STAMP_SIDE, _LARGEST_STAMP = 80, 128
"""Largest sides of a stamp, pixels: of any image, and of one with too few stars."""
_FITTED_SIDE = 201
"""Pixels around the place, or the middle, on which the kernel of a larger image is fitted."""
_CALIBRATED_ERROR, _UNCALIBRATED_ERROR = 0.01, 0.03
"""Relative errors of a flux scale that is given or from zero points, and of an assumed one."""
_CALIBRATED_SOURCES, _UNCALIBRATED_SOURCES = 2, 1
"""Static sources that overrule such scales by agreeing: a single one may be a variable star."""
_VARIANCE_OFF, _VARIANCE_ERRORS = 0.2, 4.0
"""A variance plane is rescaled if it is off by more than this part and this number of errors."""
_APERTURE, _SMALLEST_APERTURE = 1.5, 3.5
"""Radius of the aperture: in full widths at half maximum, and at least, in pixels."""
_ASSUMED_ERROR, _MOST_MOVED, _MOVES = 0.3, 1.0, 3
"""Error of an assumed place, and its largest shift in x and in y, pixels; steps of the search."""
_LEAST_PROFILE = 0.7
"""Share of the summed squared PSF that good pixels must hold for a flux."""
_MOST_CHI_SQUARE, _FEWEST_STATIC = 2.5, 20
"""Largest reduced chi-square of static sources without a warning, and fewest pixels that tell."""
_OFF_SCALE = 4.0
"""Combined errors of a kernel's sum and the flux scale beyond which they contradict each other."""

_FREE_OF_SOURCE, _FEWEST_FREE = 3.0, 200
"""A sky's slope is fitted so many full widths from the transient, to at least so many pixels."""
_CLIP, _CLIPPINGS, _SLOPED = 3.0, 4, 30.0
"""Clipping limit, standard deviations; its rounds; least chi-square of two significant slopes."""


@dataclasses.dataclass(frozen=True)
class KernelSource:
    """Source of a kernel that is not found from stars.

    Attributes
    ----------
    name
        ``psfs``, together with the pixels where these tell more, or ``pixels`` alone.
    reason
        Why this source is used, for messages.
    is_stamp
        Whether the transient is in the middle unless its place is given.
    """

    name: Literal["psfs", "pixels"]
    reason: str
    is_stamp: bool


@dataclasses.dataclass(frozen=True)
class CutoutFlux:
    """Flux of a transient.

    Attributes
    ----------
    x, y
        Position, pixel coordinates: the given one; else the middle, or the best fit of the PSF
        near it if a PSF is known.
    flux
        image_unit: fitted with the PSF if one is known, else the sum in an aperture.
    error, kernel_error
        Standard deviation, and the part of it that comes from the kernel, image_unit.
    radius
        Radius of the aperture, pixels; None if the PSF was fitted.
    """

    x: float
    y: float
    flux: float
    error: float
    kernel_error: float
    radius: float | None


@dataclasses.dataclass(frozen=True)
class Cutout:
    """A pair without enough stars, and how it is subtracted.

    Attributes
    ----------
    science, template
        Exposures on the same pixels, with the variance planes of the fit.
    source
        Source of the kernel.
    fit
        Kernel, and how well it is known.
    solution
        Solution that the product is made with.
    place
        (x, y) of the transient, pixel coordinates; None if there is none.
    scale_is_assumed
        Whether neither an option nor zero points gave the flux scale.
    place_is_assumed
        Whether no place was given; a stamp then has its middle as the place.
    """

    science: Exposure
    template: Exposure
    source: KernelSource
    fit: StampKernel
    solution: Solution
    place: tuple[float, float] | None
    scale_is_assumed: bool
    place_is_assumed: bool

    @property
    def text(self) -> str:
        """The kernel, its source and the reason for this source, in one line."""
        fit = self.fit
        told = "both PSFs and the pixels" if self.source.name == "psfs" else "the pixels alone"
        return (
            f"kernel from {told} ({self.source.reason}): sum {fit.kernel_sum:.4g} ±"
            f" {fit.error.sum_error:.2g}, {fit.scale.sources} static sources for the flux scale,"
            f" FWHM {fit.error.fwhm:.2f} pixels."
        )


def kernel_source(
    science: object,
    template: object,
    options: CutoutOptions,
    failure: TooFewSourcesError | None = None,
) -> KernelSource | None:
    """Choose the source of the kernel.

    Parameters
    ----------
    science, template
        Exposures.
    options
        `CutoutOptions`.
    failure
        Error of the usual fit to stars, if that was tried.

    Returns
    -------
    source
        `KernelSource`; None for the usual fit.

    Raises
    ------
    TooFewSourcesError
        The failure, if there is no other way to a kernel.
    ArgumentError
        If the PSFs are asked for and one is not known.
    """
    science, template = Exposure.from_object(science), Exposure.from_object(template)
    ny, nx = science.shape
    psfs = science.psf is not None and template.psf is not None
    is_stamp = max(ny, nx) <= _STAMP_SIDE
    asked = options.kernel_from
    if asked == "psfs" and not psfs:
        lacking = science if science.psf is None else template
        raise ArgumentError.of(
            lacking.source or "An exposure",
            "has no PSF to find the kernel from; give it"
            " (--science-psf, --template-psf), or let the pixels tell (--kernel-from pixels).",
        )
    if asked in ("psfs", "pixels"):
        return KernelSource(asked, "as asked for", is_stamp)
    if asked == "stars" or (failure is None and not is_stamp):
        if failure is not None:
            raise failure
        return None
    why = f"{nx} x {ny} pixels are too few for stars" if failure is None else "too few stars"
    if psfs:
        return KernelSource("psfs", why, is_stamp)
    if max(ny, nx) <= _LARGEST_STAMP:
        return KernelSource("pixels", why, True)
    assert failure is not None
    if not failure.found:
        raise failure
    raise TooFewSourcesError(
        f"{failure} All pixels tell of a kernel, too, if less (--kernel-from pixels).",
        found=failure.found,
        required=failure.required,
    ) from failure


def solve_cutout(
    science: Exposure,
    template: Exposure,
    source: KernelSource,
    recipe: Recipe,
) -> Cutout:
    """Find the kernel of a pair without stars.

    Parameters
    ----------
    science, template
        Exposures on the same pixels.
    source
        `kernel_source`.
    recipe
        Options: of cut-outs, whether variance planes are rescaled, how the template was
        resampled.

    Returns
    -------
    cutout
        `Cutout`.

    Raises
    ------
    DataError
        If the images are the same, have too few pixels in common, or show no static source that
        the kernel can be found from.
    ArgumentError
        If the place is outside the image.
    """
    if np.array_equal(science.data, template.data, equal_nan=True):
        raise DataError.of(
            template.source or "The template",
            f"holds the same pixels as"
            f" {science.source or 'the science image'}; was one image named twice?",
        )
    science, template = measurable(science, template)
    options = recipe.cutout
    place = _place(science, source, options)
    part = _fitted_part(science.shape, science.origin, place)
    pair = (science, template)
    # A mirror continues what is filtered, but holds no measurement.
    good = tuple(~untrusted_pixels(exposure) for exposure in pair)
    factors, known = zip(
        *(_variance(e, g, recipe.preparation) for e, g in zip(pair, good, strict=True)),
        strict=True,
    )
    variances = [
        factor * e.variance.astype(np.float64) for e, factor in zip(pair, factors, strict=True)
    ]
    for variance, measured in zip(variances, good, strict=True):
        variance[~measured] = np.median(variance[measured])
    y0, x0 = science.origin
    expected, is_assumed = _stamp_options(science, template, options)
    own = None if place is None else (place[0] - x0 - part[1].start, place[1] - y0 - part[0].start)
    image, other = (each.data[part].astype(np.float64) for each in pair)
    known_pixels = good[0][part], good[1][part]
    noises = variances[0][part], variances[1][part]

    def fitted(image: Array, other: Array) -> StampKernel:
        try:
            return fit_stamp(
                image,
                other,
                good=known_pixels,
                variances=noises,
                photons_known=known[0],
                place=own,
                psfs=_psf_images(science, template) if source.name == "psfs" else None,
                options=expected,
            )
        except DataError as error:
            raise DataError.of(science.source or "The science image", f"{error}") from error

    fit = fitted(image, other)
    slopes = _slopes_of_skies((image, other), known_pixels, noises, fit, own)
    if slopes is not None:
        y, x = np.mgrid[: image.shape[0], : image.shape[1]]
        # Counted from the middle of the whole image, as its background is.
        x, y = (
            at + part[axis].start - (science.shape[axis] - 1) / 2 for at, axis in ((x, 1), (y, 0))
        )
        flat = [
            each - slope[0] * x - slope[1] * y
            for each, slope in zip((image, other), slopes, strict=True)
        ]
        fit = fitted(*flat)
        _log.info(
            "%s: its sky slopes by %.3g and %.3g image units a pixel (x, y), the template's by %.3g"
            " and %.3g; that is taken off.",
            science.source or "The science image",
            *slopes.ravel(),
        )
    if not fit.scale.sources and source.name == "pixels" and not source.is_stamp:
        raise DataError.of(
            science.source or "The science image",
            "no static source stands out of the noise of"
            " both images, and noise tells no kernel; give both PSFs (--science-psf,"
            " --template-psf), or stack images until stars show.",
        )
    science, template = (
        exposure.replaced(variance=(factor * exposure.variance).astype(np.float32))
        for exposure, factor in zip(pair, factors, strict=True)
    )
    background = np.array([[fit.level]])
    if slopes is not None:
        # Chebyshev polynomials count from the middle, in halves of the image.
        against = slopes[0] - fit.kernel_sum * slopes[1]
        along_x, along_y = against * np.array(science.shape[::-1]) / 2
        background = np.array([[fit.level, along_x], [along_y, 0.0]])
    solution = Solution.of_stamp(
        fit,
        ChebyshevField(science.bbox, background),
        science,
        template,
        recipe,
        variance_factors=factors,
        variances=(
            float(np.median(variances[0][good[0]])),
            float(np.median(variances[1][good[1]])),
        ),
    )
    return Cutout(
        science,
        template,
        source,
        fit,
        solution,
        place,
        scale_is_assumed=is_assumed,
        place_is_assumed=options.place is None,
    )


def _place(
    science: Exposure, source: KernelSource, options: CutoutOptions
) -> tuple[float, float] | None:
    box = science.bbox
    if options.place is None:
        return (box.x.center, box.y.center) if source.is_stamp else None
    x, y = options.place
    if not (box.x.start <= x < box.x.stop and box.y.start <= y < box.y.stop):
        raise ArgumentError.of(
            science.source or "The science image",
            f"the transient at ({x:g}, {y:g}) is outside of it, {box}.",
        )
    return options.place


def _fitted_part(
    shape: tuple[int, int], origin: tuple[int, int], place: tuple[float, float] | None
) -> tuple[slice, slice]:
    """Pixels of the fit: all of a stamp, and of a larger image those around the place."""
    middle = None if place is None else (place[1] - origin[0], place[0] - origin[1])
    part = []
    for axis, n in enumerate(shape):
        centre = n // 2 if middle is None else round(middle[axis])
        start = min(max(centre - _FITTED_SIDE // 2, 0), max(n - _FITTED_SIDE, 0))
        part.append(slice(start, min(start + _FITTED_SIDE, n)))
    return part[0], part[1]


def _variance(
    exposure: Exposure, good: Array, preparation: PreparationOptions
) -> tuple[float, bool]:
    """Factor of a variance plane, and whether the plane has the photon noise of sources."""
    plane = exposure.variance[good]
    if not len(plane):
        raise DataError.of(exposure.source or "An exposure", "has no usable pixel.")
    image = exposure.data.astype(np.float64)
    measured = neighbour_variance(image, good)
    low = float(np.median(plane[image[good] <= np.median(image[good])]))
    is_flat = bool(np.ptp(plane) <= 1e-3 * low)
    if not (math.isfinite(measured) and measured > 0):
        return 1.0, not is_flat
    factor = measured / low
    error = _VARIANCE_ERRORS * math.sqrt(2.7 / len(plane))
    off = abs(math.log(factor))
    if is_flat and preparation.rescale_variance:
        # A single value for all pixels is itself a measurement on fewer pixels, or a guess.
        return factor, False
    if preparation.rescale_variance and off > math.log1p(max(error, _VARIANCE_OFF)):
        return factor, True
    return 1.0, not is_flat


def _psf_images(science: Exposure, template: Exposure) -> tuple[Array, Array]:
    """Images of both PSFs in the middle of the frame: square, with odd sides."""
    images = []
    for exposure in (science, template):
        assert exposure.psf is not None
        box = exposure.bbox
        image = exposure.psf.at(x=box.x.center, y=box.y.center)
        side = max(image.shape)
        side += 1 - side % 2
        whole = np.zeros((side, side))
        top, left = (side // 2 - n // 2 for n in image.shape)
        whole[top : top + image.shape[0], left : left + image.shape[1]] = image
        images.append(whole)
    return images[0], images[1]


def _stamp_options(
    science: Exposure, template: Exposure, options: CutoutOptions
) -> tuple[StampOptions, bool]:
    """The flux scale as known before the fit, and whether it is an assumption."""
    if options.flux_scale is not None:
        given = StampOptions(
            flux_scale=options.flux_scale, scale_error=_CALIBRATED_ERROR, sources_needed=None
        )
        return given, False
    zeros = zero_point(science, None), zero_point(template, None)
    if zeros[0] is None or zeros[1] is None:
        assumed = StampOptions(
            scale_error=_UNCALIBRATED_ERROR, sources_needed=_UNCALIBRATED_SOURCES
        )
        return assumed, True
    calibrated = StampOptions(
        flux_scale=10 ** (0.4 * (zeros[0][0] - zeros[1][0])),
        scale_error=_CALIBRATED_ERROR,
        sources_needed=_CALIBRATED_SOURCES,
    )
    return calibrated, False


def transient_flux(cutout: Cutout, product: Product) -> CutoutFlux | None:
    """Flux of the transient of a cut-out, with the error of its kernel.

    Parameters
    ----------
    cutout
        `Cutout`.
    product
        Difference made from it.

    Returns
    -------
    flux
        `CutoutFlux`; None if there is no place, or too few good pixels there.
    """
    if cutout.place is None:
        return None
    difference, fit = product.exposure, cutout.fit
    (y0, x0), shape = difference.origin, difference.shape
    x, y = cutout.place[0] - x0, cutout.place[1] - y0
    image, variance = difference.data, difference.variance
    template = without_missing(cutout.template, missing_pixels(cutout.template))
    pixels = template.data.astype(np.float64)
    # The kernel's error is correlated between pixels: it is added for the whole flux below.
    own = variance - fit.error.point_variance(pixels)
    known = np.isfinite(image) & np.isfinite(own)
    known &= ~masks.flagged(difference.mask, masks.UNTRUSTED_MASK_PLANES)
    radius, place = None, cutout.place
    if difference.psf is None:
        radius = max(_APERTURE * fit.error.fwhm, _SMALLEST_APERTURE)
        weights = near(shape, (x, y), radius).astype(np.float64)
        if not known[weights > 0].all():
            return None
    else:
        if cutout.place_is_assumed:
            place = _found_place(difference, own, known, cutout.place)
        profile = _profile(difference, *place)
        power = float((profile**2)[known].sum())
        if power < _LEAST_PROFILE * float((profile**2).sum()):
            return None
        weights = np.where(known, profile, 0.0) / power
    flux = float((weights * np.where(known, image, 0.0)).sum())
    noise = float((weights**2 * np.where(known, own, 0.0)).sum())
    # Photon noise of the source that the variance plane lacks; an aperture holds all its light.
    own_light = 1.0 if radius is not None else float((weights**2 * profile).sum())
    noise += fit.photon_factor * max(flux, 0.0) * own_light
    kernel = fit.error.sum_variance(pixels, weights)
    return CutoutFlux(*place, flux, math.sqrt(noise + kernel), math.sqrt(kernel), radius)


def _found_place(
    difference: Exposure, variance: Array, known: Array, place: tuple[float, float]
) -> tuple[float, float]:
    """Place near the middle at which the PSF fits the difference best.

    A flux at the middle itself would miss part of a star half a pixel off: 3 % on average at a
    full width of 2.2 pixels.
    """
    values, variances = (np.where(known, plane, 0.0) for plane in (difference.data, variance))
    moved = np.zeros(2)
    for _ in range(_MOVES):
        x, y = place + moved
        profile = np.where(known, _profile(difference, x, y), 0.0)
        down, right = np.gradient(profile)
        power = float((profile**2).sum())
        if power == 0:
            return place
        flux = float((profile * values).sum()) / power
        noise = float((profile**2 * variances).sum()) / power
        slopes = -flux * np.stack([right[known], down[known]])
        left = (values - flux * profile)[known]
        change = np.linalg.solve(
            slopes @ slopes.T / noise + np.eye(2) / _ASSUMED_ERROR**2,
            slopes @ left / noise - moved / _ASSUMED_ERROR**2,
        )
        moved = np.clip(moved + change, -_MOST_MOVED, _MOST_MOVED)
    return place[0] + float(moved[0]), place[1] + float(moved[1])


def _profile(difference: Exposure, x: float, y: float) -> Array:
    """PSF at a place, on the frame's pixels."""
    psf, box = difference.psf, difference.bbox
    assert psf is not None
    stamp, around = as_kernel_psf(psf, box).star(x=x, y=y)
    frame = np.zeros(difference.shape)
    common = box.overlap(around)
    if common is not None:
        frame[box.slices_of(common)] = stamp[around.slices_of(common)]
    return frame


def _slopes_of_skies(
    images: tuple[Array, Array],
    good: tuple[Array, Array],
    variances: tuple[Array, Array],
    fit: StampKernel,
    place: tuple[float, float] | None,
) -> Array | None:
    """Slopes along x and y of the skies of science and template, ``(2, 2)``, image_unit per pixel.

    All of the slope is given to one image, whose own pixels agree with it better; the other's row
    is 0.  None if noise explains the slope.
    """
    science, template = images
    static = fit.convolved(template)
    # Over a whole stamp convolution only multiplies noise by the sum of the kernel.
    noise = variances[0] + fit.kernel_sum**2 * variances[1]
    free = good[0] & good[1] & ~near(science.shape, place, _FREE_OF_SOURCE * fit.error.fwhm)
    flat = _slope(static, noise, free)
    if flat is None:
        return None
    y, x = np.mgrid[: science.shape[0], : science.shape[1]]
    level = static - flat[0][0] * x - flat[0][1] * y
    level -= np.median(level[free])
    free &= scipy.ndimage.maximum_filter(level, 5) < np.sqrt(noise)
    found = _slope(science - static, noise, free)
    if found is None or float(found[0] @ np.linalg.solve(found[1], found[0])) < _SLOPED:
        return None
    own = found[0], -found[0] / fit.kernel_sum
    off = []
    for image, variance, slope in zip(images, variances, own, strict=True):
        alone = _slope(image, variance, free)
        if alone is None:
            return None
        off.append(float((alone[0] - slope) @ np.linalg.solve(alone[1], alone[0] - slope)))
    slopes = np.zeros((2, 2))
    which = int(off[1] < off[0])
    slopes[which] = own[which]
    return slopes


def _slope(image: Array, variance: Array, free: Array) -> tuple[Array, Array] | None:
    """Slopes of free pixels along x and y, without outliers, and their covariance."""
    y, x = np.nonzero(free)
    if len(x) < _FEWEST_FREE:
        return None
    values, weight = image[free], 1 / variance[free]
    terms = np.stack([np.ones(len(x)), x - x.mean(), y - y.mean()], axis=1)
    found = np.linalg.lstsq(terms, values, rcond=None)[0]
    for _ in range(_CLIPPINGS):
        left = values - terms @ found
        left -= np.median(left)
        # At first the slope itself may put pixels farther off than their noise.
        limit = _CLIP * np.maximum(median_deviation(left), np.sqrt(variance[free]))
        use = np.abs(left) < limit
        if np.count_nonzero(use) < _FEWEST_FREE:
            return None
        normal = (terms[use] * weight[use, None]).T @ terms[use]
        found = np.linalg.solve(normal, terms[use].T @ (weight * values)[use])
    return found[1:], np.linalg.inv(normal)[1:, 1:]


def cutout_problems(cutout: Cutout, flux: CutoutFlux | None) -> list[str]:
    """Reasons not to believe a cut-out, each with its number.

    Parameters
    ----------
    cutout
        `Cutout`.
    flux
        `transient_flux`.

    Returns
    -------
    problems
        Sentences; empty if nothing is wrong.
    """
    problems, fit = [], cutout.fit
    scale = fit.scale
    if scale.is_contradicted:
        followed = scale.used == scale.measured
        problems.append(
            f"Static sources ({scale.sources}) are {scale.measured / scale.expected:.3g} ±"
            f" {scale.error / scale.expected:.2g} times as bright on the science image as the flux"
            f" scale of {scale.expected:.4g} says:"
            + (
                f" the kernel follows them, with a sum of {fit.kernel_sum:.4g}; a template of other"
                " units, or variable sources?"
                if followed
                else " the kernel does not follow them; are they variable, or is the scale wrong?"
            )
        )
    if cutout.scale_is_assumed and not scale.sources:
        problems.append(
            f"The flux scale of {scale.used:.4g} ± {scale.used_error / scale.used:.0%} is an"
            " assumption: no static source tells it, nor do zero points; give it (--flux-scale)"
            " unless the images have the same."
        )
        off, known = fit.kernel_sum - scale.used, math.hypot(fit.error.sum_error, scale.used_error)
        if abs(off) > _OFF_SCALE * known:
            problems.append(
                f"The kernel's sum of {fit.kernel_sum:.4g} is not that scale: pixels with so little"
                " static light do not tell it; do not believe fluxes where the template has light."
            )
    if flux is None and cutout.place is not None:
        problems.append(
            f"No flux of the transient at ({cutout.place[0]:g}, {cutout.place[1]:g}): pixels there"
            " hold no measurement, or owe too much to some that do not."
        )
    if flux is not None:
        noise = math.sqrt(max(flux.error**2 - flux.kernel_error**2, 0.0))
        remedy = "take a larger cut-out"
        if cutout.source.name == "pixels":
            remedy = f"give both PSFs (--science-psf, --template-psf) or {remedy}"
        if flux.kernel_error > noise:
            problems.append(
                f"The kernel's error at the transient is {flux.kernel_error / noise:.2g} times the"
                f" noise, since the stamp tells too little of it: the flux of {flux.flux:.4g} ±"
                f" {flux.error:.2g} is no better known than that; {remedy}."
            )
    if fit.static_pixels >= _FEWEST_STATIC and fit.chi_square > _MOST_CHI_SQUARE:
        problems.append(
            f"What is left of static sources is {math.sqrt(fit.chi_square):.2g} times the noise"
            f" ({fit.static_pixels} pixels): do not believe what is found on bright ones."
        )
    return problems
