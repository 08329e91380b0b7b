"""Preparation of two exposures for matching, whether for a difference or for a score."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..alignment.exposures import aligned_template
from ..alignment.registration import Misalignment, measured_misalignment, report_misalignment
from ..alignment.resampling import ResamplingOptions
from ..defects.clipping import find_floor
from ..defects.exposures import DefectOptions, with_defects
from ..defects.mosaic import colour_mosaic
from ..direction import Direction
from ..errors import DataError, TooFewSourcesError
from ..exposures import masks
from ..exposures.kernels import term_kernel
from ..exposures.model import Exposure
from ..exposures.psf import (
    KernelPointSpreadFunction,
    Light,
    PointSpreadFunction,
    as_kernel_psf,
    fwhm_of_psf,
)
from ..noise.exposures import (
    PairSources,
    avoided_pixels,
    few_photons,
    levels_apart,
    measurable,
    noise_and_structure,
    rescaled,
    sources_apart,
    untrusted_pixels,
)
from ..noise.photons import Counts
from ..noise.sources import SourceLevel, smooth_background
from ..numerics.profiles import FWHM_TO_SIGMA, UNDERSAMPLED_FWHM
from ..numerics.threads import in_threads, single_threaded_algebra
from ..stars.candidates import (
    HALF_LIGHT_TO_SIGMA,
    CandidateOptions,
    Candidates,
    Sources,
    choose_candidates,
    find_sources,
)
from .given import share_measured
from .psf import MeasuredPsf, measure_psf, star_width, unit_sum
from .skies import without_light

__all__ = [
    "Pair",
    "PreparationOptions",
    "fwhm",
    "measured_psf",
    "pair_with_psf",
    "prepare",
    "template_coverage",
    "with_measured_psf",
    "with_own_psf",
]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.match")

_EQUAL_WIDTHS = 1.015
"""Ratio of widths up to which two PSFs count as equally wide: widths have errors, and the science
image's PSF is the better known."""

_WIDTH_SIGMAS = 4
_WIDTH_REACHES = (8, 32)
_WIDTH_RATIO, _MOST_OF_STRUCTURED = (0.6, 1.2), 1.5
"""Believable ratios of a full width at half maximum to that of a Gaussian with the same half-light
radius: a Moffat profile of beta 2 has 0.64.  In structured emission the limit is higher: a
background of small cells takes the stars' wings away before their radii are measured."""
_PSF_SIGMAS = 7
_PSF_SIDES = (21, 81)
_WING_SIGMAS = 12
_WING_SIDE = 101
_NARROW_SIDE = 41
"""Least side, pixels, of the stamps for narrow PSFs, to hold their rings."""
_LOST_WINGS = 5e-4
"""Share of a PSF's flux that may be cut off for a smaller stamp."""
_PSF_ORDER = 2
_ERROR_OF_GALAXIES, _ERROR_WITHOUT_STARS = 0.3, 0.7
"""Relative errors of fluxes where galaxies may have been taken for stars, and where no star is told
from galaxies: such fluxes were off by 55 and 71 %."""
_UNCERTAIN_LIGHT = 0.05
"""Relative error of all fluxes that deserves a warning."""
_EMISSION_SIGMAS = 8
"""Side of a background's cell, in sigmas of the PSF, where a PSF is measured in emission."""
_STRUCTURE_CELLS = (64, 32, 16, 8)
"""Cells to try, pixels, for the background under stars in structured emission; the first is the
usual one."""
_MANY_PHOTONS, _SAFE_SIGMAS = 40.0, 6.5
"""Photons of the sky under a PSF from which on noise makes no more peaks of 5 sigma than Gaussian
noise; and a significance that noise of fewer photons does not reach.  Measured against a deep
template: 15 times as many peaks at 26 photons, 70 times at 7, the highest of 50 at 6.2 sigma."""
_SKY_STEP, _SKY_SIGMAS = 32, 0.25
"""The sky and its slope may change by a quarter of a pixel's noise over 32 pixels without effect
on stars."""
_PSF_WIDTH_TOLERANCE = 0.3
_STRICT = CandidateOptions(
    stars_only=True,
    width_tolerance=_PSF_WIDTH_TOLERANCE,
    signal_to_noise=(CandidateOptions.signal_to_noise[0], math.inf),
)
"""Stars for a PSF: galaxies would do for a kernel, not for a PSF; the brightest stars are best."""
_TOLD_BIAS, _BIAS_ERRORS, _BIAS_LEFT = 0.015, 4, 0.2
"""Bias of fluxes by a given PSF that is corrected for: least relative bias, and least in errors of
the stars' light; and the share of the bias that counts as its error."""
_PLACES = ((0.5, 0.5), (0.2, 0.2), (0.2, 0.8), (0.8, 0.2), (0.8, 0.8))
"""Places (x, y) at which a given PSF is compared with the stars', in sides of the frame."""
_SAME_WIDTH, _OTHER_WIDTH = 0.03, 0.08
"""Relative differences of widths up to which two PSFs are called equally wide, and from which two
PSFs can be told from each other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparationOptions:
    """How two exposures are prepared.

    Attributes
    ----------
    rescale_variance
        Bring both variance planes to the noise measured on source-free pixels.
    use_wcs
        Align the template by its WCS if that means a shift by whole pixels; if False, pixel for
        pixel.
    resampling
        How to resample a template on another grid; None to refuse it.
    required_template_fraction
        Fraction of the science image's usable pixels that the template must cover; less is an
        error.
    expected_template_fraction
        Covered fraction below which a warning is given.
    exclude_mask_planes
        Mask planes whose pixels must not be near a star for a kernel or PSF; in addition to
        `masks.AVOIDED_MASK_PLANES`.
    defects
        Which defects to look for on both exposures.
    """

    rescale_variance: bool = True
    use_wcs: bool = True
    resampling: ResamplingOptions | None = None
    required_template_fraction: float = 0.1
    expected_template_fraction: float = 0.2
    exclude_mask_planes: tuple[str, ...] = ()
    defects: DefectOptions = dataclasses.field(default_factory=DefectOptions)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two exposures on the same pixels, with trustworthy variances, and their sources.

    Attributes
    ----------
    science, template
        The exposures; their variance planes are rescaled.
    science_variance_factor, template_variance_factor
        Factors by which the variance planes were multiplied.
    template_fraction
        Fraction of the science image's usable pixels that the template covers.
    science_bad, template_bad
        ``(ny, nx)`` boolean: pixels that hold no measurement, or that were excluded.
    source_levels
        Pixels that hold sources of either exposure.
    sources
        Sources of the science image, measured on both exposures.
    science_fwhm, template_fwhm
        Full widths at half maximum, pixels, of the PSFs that came with the exposures, or of
        their stars.
    is_structured
        Whether emission with structure fills the field of either exposure.
    is_curved
        Whether the sky of either exposure varies under a star's wings.
    misalignment
        Distance between the stars of both exposures; None if it could not be measured.
    """

    science: Exposure
    template: Exposure
    science_variance_factor: float
    template_variance_factor: float
    template_fraction: float
    science_bad: Array
    template_bad: Array
    source_levels: PairSources
    sources: Sources
    science_fwhm: float
    template_fwhm: float
    is_structured: bool = False
    is_curved: bool = False
    misalignment: Misalignment | None = None

    @property
    def bad(self) -> Array:
        """``(ny, nx)`` boolean: pixels that are bad in either."""
        return self.science_bad | self.template_bad

    @property
    def science_pixels(self) -> Array:
        """``(ny, nx)`` boolean: pixels with a source of the science image."""
        return self.source_levels.science >= SourceLevel.SOURCE

    @property
    def template_pixels(self) -> Array:
        """``(ny, nx)`` boolean: pixels with a source of the template."""
        return self.source_levels.template >= SourceLevel.SOURCE

    @property
    def science_sigma(self) -> float:
        """Sigma of the Gaussian that is as wide at half maximum as the science PSF, pixels."""
        return FWHM_TO_SIGMA * self.science_fwhm

    @property
    def template_sigma(self) -> float:
        """Sigma of the Gaussian that is as wide at half maximum as the template's PSF, pixels."""
        return FWHM_TO_SIGMA * self.template_fwhm

    @functools.cached_property
    def psf_fwhm(self) -> tuple[float, float]:
        """Best known full widths at half maximum of science image and template, pixels.

        The width of a PSF is better known than the median star's, unless pixels are too coarse.
        """
        science, template = (
            width
            if exposure.psf is None or width < UNDERSAMPLED_FWHM
            else fwhm_of_psf(exposure.psf)
            for exposure, width in (
                (self.science, self.science_fwhm),
                (self.template, self.template_fwhm),
            )
        )
        return science, template

    @property
    def sharper(self) -> Direction:
        """Exposure with the narrower PSF; the template if the widths are equal within errors."""
        wider = self.template_fwhm > _EQUAL_WIDTHS * self.science_fwhm
        return "science" if wider else "template"


@single_threaded_algebra()
def prepare(
    science: object,
    template: object,
    options: PreparationOptions | None = None,
    *,
    covered: Callable[[float], None] | None = None,
) -> Pair:
    """Align two exposures, judge their variance planes and find their sources.

    Parameters
    ----------
    science, template
        Exposures.
    options
        `PreparationOptions`.
    covered
        Called with the fraction of the science image's usable pixels that the template covers,
        before anything is measured.

    Returns
    -------
    pair
        `Pair`.

    Raises
    ------
    ArgumentError
        If the exposures cannot be brought onto the same pixels.
    DataError
        If both hold the same values, overlap too little, or have exchanged PSFs; if one counts too
        few photons, was cut off at the level of its noise, or has an absurd variance plane; or if
        there is no source.
    """
    options = options or PreparationOptions()
    science, template = measurable(Exposure.from_object(science), Exposure.from_object(template))
    untrusted = [untrusted_pixels(exposure) for exposure in (science, template)]
    in_threads(lambda each: _check_colours(*each), zip((science, template), untrusted, strict=True))
    science, template = with_defects(science, template, options.defects, untrusted=untrusted)
    # Asked before the alignment, which gives the template the science image's WCS.
    by_wcs = options.use_wcs and science.wcs is not None and template.wcs is not None
    template = aligned_template(
        science, template, use_wcs=options.use_wcs, resampling=options.resampling
    )
    if _are_equal(science.data, template.data):
        raise DataError.of(
            template.source or "The template",
            f"holds the same pixels as"
            f" {science.source or 'the science image'}, all {science.data.size} of them;"
            " nothing would be left of a difference. Was one image named twice?",
        )
    untrusted = [untrusted_pixels(exposure) for exposure in (science, template)]
    for exposure, bad in zip((science, template), untrusted, strict=True):
        _check_floor(exposure, bad)
    photons = [_check_photons(exposure) for exposure in (science, template)]
    fraction = _covered(*untrusted)
    if covered is not None:
        covered(fraction)
    _check_coverage(fraction, template, options)
    avoided = [
        avoided_pixels(exposure, bad)
        for exposure, bad in zip((science, template), untrusted, strict=True)
    ]
    del untrusted
    # The two exposures in parallel.
    apart = in_threads(
        lambda each: levels_apart(*each), zip((science, template), avoided, strict=True)
    )
    (levels, flat) = zip(*apart, strict=True)
    del apart
    factors, is_structured = (1.0, 1.0), False
    if options.rescale_variance:
        pixels = [each >= SourceLevel.SOURCE for each in levels]
        both = zip((science, template), pixels, flat, strict=True)
        first, second = in_threads(lambda each: noise_and_structure(*each), both)
        factors, is_structured = (first[0], second[0]), max(first[1], second[1]) > 1
        science, template = rescaled(science, factors[0]), rescaled(template, factors[1])
    is_curved = any(map(_is_curved, (science, template), flat, avoided))
    variances = science.variance, template.variance
    find = _sources_in_structure if is_structured else _sources
    sources = find((flat[0], flat[1]), variances, (avoided[0], avoided[1]))
    misalignment = _check_positions(
        (flat[0], flat[1]), (avoided[0], avoided[1]), sources, template, options, by_wcs=by_wcs
    )
    del flat
    for exposure, bad in zip((science, template), avoided, strict=True):
        bad |= masks.flagged(exposure.mask, options.exclude_mask_planes)
    sources = dataclasses.replace(sources, science_bad=avoided[0], template_bad=avoided[1])
    candidates = width_stars(sources)
    shown = [science, template]
    widths = candidates.science_sigma, candidates.template_sigma
    if is_structured:
        each = zip(shown, avoided, widths, strict=True)
        shown = [_without_emission(*one) for one in each]
    elif is_curved:
        others = zip(shown, avoided, levels, strict=True)
        shown = [_without_sky(one, bad | (own > SourceLevel.NONE)) for one, bad, own in others]
    full_widths = tuple(
        in_threads(
            lambda each: fwhm(each[0], candidates, each[1], each[2], is_structured=is_structured),
            zip(shown, widths, avoided, strict=True),
        )
    )
    if not sources.stars.are_certain:
        _warn_of_galaxies((science, template), full_widths, sources)
    elif science.psf is not None and template.psf is not None:
        _check_exchanged((shown[0], shown[1]), (avoided[0], avoided[1]), candidates, full_widths)
    for exposure, counts, width in zip((science, template), photons, full_widths, strict=True):
        _warn_of_photons(exposure, counts, width)
    return Pair(
        science=science,
        template=template,
        science_variance_factor=factors[0],
        template_variance_factor=factors[1],
        template_fraction=fraction,
        science_bad=avoided[0],
        template_bad=avoided[1],
        source_levels=PairSources(*levels),
        sources=sources,
        science_fwhm=full_widths[0],
        template_fwhm=full_widths[1],
        is_structured=is_structured,
        is_curved=is_curved,
        misalignment=misalignment,
    )


def _are_equal(one: Array, other: Array) -> bool:
    """Whether two images are equal; the first row alone nearly always decides."""
    return all(
        np.array_equal(one[rows], other[rows], equal_nan=True)
        for rows in (slice(0, 1), slice(None))
    )


def width_stars(sources: Sources) -> Candidates:
    """Stars for measuring the widths of the PSFs; any static sources where stars are too few.

    Parameters
    ----------
    sources
        Sources of a pair.

    Returns
    -------
    stars
        `Candidates`.

    Raises
    ------
    TooFewSourcesError
        If there are too few static sources, too.
    """
    try:
        return choose_candidates(
            sources, clear=10, isolation=16, options=CandidateOptions(stars_only=True, fewest=2)
        )
    except TooFewSourcesError:
        return choose_candidates(sources, clear=16, isolation=16)


def _warn_of_galaxies(
    exposures: tuple[Exposure, ...], widths: tuple[float, ...], sources: Sources
) -> None:
    """Warn that PSFs may be measured from galaxies."""
    measured = [
        f"{width:.2f} pixels for {exposure.source or 'an exposure'}"
        for exposure, width in zip(exposures, widths, strict=True)
        if exposure.psf is None
    ]
    if measured:
        _log.warning(
            "Only %d of %d sources are told from galaxies as stars, not reliably: the PSF's FWHM,"
            " %s, may be that of galaxies, and fluxes may be wrong; give the PSF (--science-psf,"
            " --template-psf) or a larger part of the image.",
            np.count_nonzero(sources.stars.which),
            len(sources),
            " and ".join(measured),
        )


def _check_exchanged(
    exposures: tuple[Exposure, Exposure],
    bad: tuple[Array, Array],
    stars: Candidates,
    given: tuple[float, ...],
) -> None:
    """Refuse exchanged PSFs: each as wide as the stars of the other image."""
    seen = in_threads(
        lambda each: fwhm(_without_psf(each[0]), stars, each[1], each[2]),
        zip(exposures, (stars.science_sigma, stars.template_sigma), bad, strict=True),
    )
    difference = math.log(seen[0] / seen[1])
    if abs(difference) < _OTHER_WIDTH:
        return
    off = [math.log(mine / theirs) for mine, theirs in zip(given, seen[::-1], strict=True)]
    if max(map(abs, off)) < abs(difference) / 2:
        science, template = (exposure.source for exposure in exposures)
        raise DataError(
            f"{science or 'The science exposure'}, {template or 'the template'}: their PSFs are"
            f" exchanged: the given ones have full widths at half maximum of {given[0]:.2f} and"
            f" {given[1]:.2f} pixels, and stars {seen[0]:.2f} and {seen[1]:.2f};"
            " give each image its own (--science-psf, --template-psf)."
        )


def _without_psf(exposure: Exposure) -> Exposure:
    exposure = exposure.replaced()
    exposure.psf = None
    return exposure


def _check_photons(exposure: Exposure) -> Counts | None:
    """Photon counts of an exposure that has few of them; refuse it if they are too few."""
    counts = few_photons(exposure)
    if counts is not None and counts.problem:
        raise DataError.of(exposure.source or "The exposure", f"{counts.problem}.")
    return counts


def _warn_of_photons(exposure: Exposure, counts: Counts | None, width: float) -> None:
    """Warn where so few sky photons lie under the PSF that their noise has long tails."""
    if counts is None:
        return
    photons = counts.mean * 4 * math.pi * (FWHM_TO_SIGMA * width) ** 2
    if photons < _MANY_PHOTONS:
        _log.warning(
            "%s: only %.2g photons of the sky lie under its PSF, whose noise makes up to 70 times"
            " as many peaks of 5 sigma as a Gaussian's: do not believe new sources of less than %g"
            " sigma.",
            exposure.source or "The exposure",
            photons,
            _SAFE_SIGMAS,
        )


def _check_floor(exposure: Exposure, untrusted: Array) -> None:
    """Refuse an exposure that was cut off within its noise; warn if the cut is just below it."""
    floor = find_floor(exposure.data, untrusted)
    if floor is None:
        return
    said = f"{exposure.source or 'The exposure'}: {floor.text}."
    if floor.is_spoilt:
        raise DataError(said)
    _log.warning("%s", said)


def _check_colours(exposure: Exposure, untrusted: Array) -> None:
    """Warn of a frame of a colour camera as it was read out."""
    levels = colour_mosaic(exposure.data, untrusted)
    if levels is not None:
        _log.warning(
            "%s: neighbouring pixels differ in level, in squares of 2 × 2, by %s times their noise:"
            " is it a frame of a colour camera (BAYERPAT)? Fluxes depend on the pixel that a star"
            " is on, and are wrong; take the pixels of one colour, or their mean in each square.",
            exposure.source or "The exposure",
            ", ".join(f"{level:+.2g}" for level in levels.ravel()),
        )


def _is_curved(exposure: Exposure, flat: Array, bad: Array) -> bool:
    """Whether the sky or its slope varies too much under a star's wings."""
    image, step = exposure.data, _SKY_STEP
    grid = np.s_[step // 2 :: step, step // 2 :: step]
    sky = np.where(bad[grid], np.nan, image[grid] - flat[grid])
    known = exposure.variance[grid][~bad[grid]]
    if not known.size:
        return False
    noise = np.sqrt(np.median(known))
    differences = [np.diff(sky, order, axis) for order in (1, 2) for axis in (0, 1)]
    return any(bool((np.abs(each) > _SKY_SIGMAS * noise).any()) for each in differences)


def _sources(
    flats: tuple[Array, Array], variances: tuple[Array, Array], bad: tuple[Array, Array]
) -> Sources:
    return find_sources(
        *flats,
        science_variance=variances[0],
        template_variance=variances[1],
        science_bad=bad[0],
        template_bad=bad[1],
    )


def _sources_in_structure(
    flats: tuple[Array, Array], variances: tuple[Array, Array], bad: tuple[Array, Array]
) -> Sources:
    """Sources that stand out of the structured emission that fills the field.

    A finer background leaves less structure, but in the end takes the stars away: the background
    is taken with which most stars can be chosen.
    """
    best, most = None, -1
    for cell in _STRUCTURE_CELLS:
        left, noise = [], []
        for flat, variance, wrong in zip(flats, variances, bad, strict=True):
            part = flat
            if cell != _STRUCTURE_CELLS[0]:
                part = flat - smooth_background(flat, ~wrong, cell=cell, has_sources=True).astype(
                    np.float32
                )
            left.append(part)
            noise.append(variance * _scatter_below(part, variance, wrong))
        try:
            found = _sources((left[0], left[1]), (noise[0], noise[1]), bad)
            number = len(choose_candidates(found, clear=16, isolation=16))
        except TooFewSourcesError as error:
            failure = error
            continue
        if number > most:
            best, most = found, number
    if best is None:
        raise failure
    return best


def _without_emission(exposure: Exposure, bad: Array, sigma: float) -> Exposure:
    """Exposure less the emission under its stars, which would be taken for their wings."""
    cell = max(2 * round(_EMISSION_SIGMAS * sigma / 2), _STRUCTURE_CELLS[-1])
    return without_light(
        exposure, smooth_background(exposure.data, ~bad, cell=cell, has_sources=True)
    )


def _without_sky(exposure: Exposure, others: Array) -> Exposure:
    """Exposure less its background, which is taken from all but the pixels ``others``."""
    return without_light(exposure, smooth_background(exposure.data, ~others))


def _scatter_below(flat: Array, variance: Array, bad: Array) -> np.float32:
    """Scatter² of the lower half of an image, which has no stars, over its variance; at least 1."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values = (flat / np.sqrt(variance))[~bad]
    low, middle = np.nanpercentile(values[np.isfinite(values)], [15.87, 50])
    return np.float32(max(1.0, (middle - low) ** 2))


def _check_positions(
    flats: tuple[Array, Array],
    untrusted: tuple[Array, Array],
    sources: Sources,
    template: Exposure,
    options: PreparationOptions,
    *,
    by_wcs: bool,
) -> Misalignment | None:
    """Report how far the template's stars lie off; refuse a shift that no kernel can take."""
    found = measured_misalignment(flats, untrusted, sources)
    if found is None:
        return None
    sigma = np.median(sources.science_radius[sources.clean]) if sources.clean.any() else 1.0
    resampling = options.resampling
    report_misalignment(
        found,
        template,
        sigma=float(sigma) * HALF_LIGHT_TO_SIGMA,
        by_wcs=by_wcs,
        positions=None if resampling is None else resampling.positions,
    )
    return found


def fwhm(
    exposure: Exposure,
    stars: Candidates,
    sigma: float,
    bad: Array,
    *,
    is_structured: bool = False,
) -> float:
    """Full width at half maximum of an exposure's PSF.

    Parameters
    ----------
    exposure
        Exposure.
    stars
        Stars to measure where the exposure has no PSF.
    sigma
        The stars' width by the half-light radius, which wings widen, pixels.
    bad
        ``(ny, nx)`` boolean: pixels not to use.
    is_structured
        Whether crowded stars or emission fill the field.

    Returns
    -------
    fwhm
        Pixels: the width of the PSF at its average position; without a PSF, the width of the
        stars' median, each star moved to the middle by its own centroid in this exposure.
    """
    if exposure.psf is not None:
        return fwhm_of_psf(exposure.psf)
    reach = min(max(math.ceil(_WIDTH_SIGMAS * sigma), _WIDTH_REACHES[0]), _WIDTH_REACHES[1])
    width = star_width(exposure.data, bad, stars.x, stars.y, reach=reach)
    # A width that the half-light radii contradict is no star's: this exposure may lack the stars.
    most = _MOST_OF_STRUCTURED if is_structured else _WIDTH_RATIO[1]
    believable = _WIDTH_RATIO[0] < width * FWHM_TO_SIGMA / sigma < most
    return width if believable else sigma / FWHM_TO_SIGMA


def measured_psf(exposure: Exposure, pair: Pair, sigma: float) -> KernelPointSpreadFunction:
    """Measure the PSF of one exposure of a pair from its stars.

    Parameters
    ----------
    exposure
        Science exposure or template of the pair.
    pair
        The pair, for its sources.
    sigma
        Width of the PSF, pixels.

    Returns
    -------
    psf
        PSF; it varies over the field where there are enough stars.

    Raises
    ------
    DataError
        If there are too few stars.
    """
    bad = _bad_of(exposure, pair)
    return _psf_of_stars(_stars_alone(exposure, pair, bad, sigma), pair.sources, bad, sigma)


def _stars_alone(exposure: Exposure, pair: Pair, bad: Array, sigma: float) -> Exposure:
    """Exposure of a pair, less the emission or sky under its stars where these vary."""
    if pair.is_structured:
        return _without_emission(exposure, bad, sigma)
    if pair.is_curved:
        return _without_sky(exposure, bad | pair.science_pixels | pair.template_pixels)
    return exposure


def with_own_psf(exposure: Exposure) -> Exposure:
    """Exposure with its PSF, or with one that is measured from its stars alone.

    Parameters
    ----------
    exposure
        Exposure.

    Returns
    -------
    exposure
        The given one if it has a PSF.

    Raises
    ------
    DataError
        If there are too few stars.
    """
    if exposure.psf is not None:
        return exposure
    bad = avoided_pixels(exposure)
    _, flat = sources_apart(exposure, bad)
    sources = find_sources(
        flat, flat, science_variance=exposure.variance, science_bad=bad, template_bad=bad
    )
    stars = width_stars(sources)
    width = fwhm(exposure, stars, stars.science_sigma, bad)
    if not sources.stars.are_certain:
        _warn_of_galaxies((exposure,), (width,), sources)
    ground = exposure
    if _is_curved(exposure, flat, bad):
        # Only then: a background of cells takes a part of the stars' wings away.
        ground = exposure.replaced(data=flat)
    exposure = exposure.replaced()
    exposure.psf = _psf_of_stars(ground, sources, bad, FWHM_TO_SIGMA * width)
    return exposure


def _psf_of_stars(
    exposure: Exposure, sources: Sources, bad: Array, sigma: float
) -> KernelPointSpreadFunction:
    """PSF of the stars; log how it was measured, and warn if the light is uncertain."""
    psf, number = _quiet_psf_of_stars(exposure, sources, bad, sigma)
    name, error = exposure.source or "The exposure", psf.light.error
    _log.info(
        "%s: its PSF is measured from %d %s; their light is known to %.1f%%.",
        name,
        number,
        "stars" if sources.stars.are_certain else "sources",
        100 * error,
    )
    if error > _UNCERTAIN_LIGHT:
        _log.warning(
            "%s: %s: all PSF fluxes may be off by %.0f%%, which psf_flux_err contains. A PSF that"
            " is known can be given.",
            name,
            "its stars differ from each other, or do not tell the PSF's wings from the sky"
            if sources.stars.are_certain
            else "its PSF may be that of galaxies",
            100 * error,
        )
    return psf


def _quiet_psf_of_stars(
    exposure: Exposure, sources: Sources, bad: Array, sigma: float
) -> tuple[KernelPointSpreadFunction, int]:
    """PSF of the stars, and their number; logs nothing of its error."""
    size = 2 * math.ceil(_PSF_SIGMAS * sigma) + 1
    size = min(max(size, _PSF_SIDES[0]), _PSF_SIDES[1])
    least = _NARROW_SIDE if sigma < UNDERSAMPLED_FWHM * FWHM_TO_SIGMA else size
    wide = min(max(2 * math.ceil(_WING_SIGMAS * sigma) + 1, size, least), _WING_SIDE)
    found = _measured_stars(
        exposure, sources, bad, size=wide, clear=size // 2 + 1, isolation=0.7 * size
    )
    error = found.flux_error
    if not sources.stars.are_certain:
        some = sources.stars.are_likely
        error = math.hypot(error, _ERROR_OF_GALAXIES if some else _ERROR_WITHOUT_STARS)
    images = _trimmed(found.images, size)
    psf = KernelPointSpreadFunction(
        term_kernel(unit_sum(images), _PSF_ORDER, exposure.bbox),
        light=Light(found.enclosed * float(images[0].sum()), error),
    )
    return psf, found.stars


def _measured_stars(
    exposure: Exposure, sources: Sources, bad: Array, *, size: int, clear: int, isolation: float
) -> MeasuredPsf:
    """PSF of the stars; where these are too few, of sources that would serve for a kernel."""

    def measured(which: Array) -> MeasuredPsf:
        image, variance = exposure.data, exposure.variance
        x, y = sources.x[which], sources.y[which]
        return measure_psf(image, variance, bad, x, y, size=size, order=_PSF_ORDER)

    with contextlib.suppress(TooFewSourcesError):
        stars = choose_candidates(sources, clear=clear, isolation=isolation, options=_STRICT)
        return measured(stars.chosen)
    few = np.flatnonzero(sources.stars.which)
    if sources.stars.are_likely and len(few) >= _STRICT.fewest:
        # Better stars with neighbours than galaxies without.
        with contextlib.suppress(DataError):
            return measured(few)
    stars = choose_candidates(sources, clear=clear, isolation=isolation, options=CandidateOptions())
    _log.warning(
        "%s: too few isolated stars for its PSF, which is measured from %d sources as a kernel"
        " may be: look at its width, or give a PSF.",
        exposure.source or "The exposure",
        len(stars),
    )
    return measured(stars.chosen)


def _trimmed(images: Array, smallest: int) -> Array:
    """Images, trimmed to the least side that holds nearly all of the first one's flux."""
    side = images.shape[1]
    for size in range(smallest, side, 2):
        margin = (side - size) // 2
        inner = images[:, margin : side - margin, margin : side - margin]
        if inner[0].sum() > (1 - _LOST_WINGS) * images[0].sum():
            return inner
    return images


def with_measured_psf(exposure: Exposure, pair: Pair, sigma: float) -> Exposure:
    """Exposure of a pair with its PSF, or with one that is measured.

    Parameters
    ----------
    exposure, pair, sigma
        As for `measured_psf`.

    Returns
    -------
    exposure
        The given one if it has a PSF that its stars do not contradict, or if there are too few
        stars to measure a PSF.
    """
    if exposure.psf is not None:
        return _with_doubts(exposure, pair)
    try:
        psf = measured_psf(exposure, pair, sigma)
    except DataError as error:
        _log.warning("%s: no PSF could be measured: %s", exposure.source or "The exposure", error)
        return exposure
    exposure = exposure.replaced()
    exposure.psf = psf
    return exposure


def _with_doubts(exposure: Exposure, pair: Pair) -> Exposure:
    """Exposure whose given PSF is corrected for the share of the stars' light that it measures."""
    given, stars = exposure.psf, pair.sources.stars
    assert given is not None
    # A measured PSF has an error already: only given ones are in doubt.
    if Light.of(given).error > 0 or not stars.are_certain:
        return exposure
    bad = _bad_of(exposure, pair)
    without = _without_psf(exposure)
    try:
        candidates = width_stars(pair.sources)
        sigma = candidates.science_sigma
        if pair.template is exposure:
            sigma = candidates.template_sigma
        width = fwhm(without, candidates, sigma, bad, is_structured=pair.is_structured)
        if width < UNDERSAMPLED_FWHM:
            return exposure
        sigma = FWHM_TO_SIGMA * width
        found, number = _quiet_psf_of_stars(
            _stars_alone(without, pair, bad, sigma), pair.sources, bad, sigma
        )
    except DataError:
        return exposure
    shares = _shares_measured(given, found, exposure)
    share, error = float(np.median(shares)), found.light.error
    off = share / Light.of(given).enclosed - 1
    if not abs(off) > max(_TOLD_BIAS, _BIAS_ERRORS * error):
        return exposure
    ratio = fwhm_of_psf(given) / width
    _log.warning(
        "%s: the PSF that was given sees %.3g of the light of its %d stars%s: fluxes are corrected"
        " by that, and may be off by %.1f%%, which psf_flux_err contains. Is it cut off, or on a"
        " level of its own? Without a given PSF, that of the stars is measured.",
        exposure.source or "The exposure",
        share,
        number,
        ""
        if abs(ratio - 1) < _SAME_WIDTH
        else f", and is {100 * abs(ratio - 1):.1f}% {'wider' if ratio > 1 else 'narrower'}",
        100 * math.hypot(error, _BIAS_LEFT * off),
    )
    known = as_kernel_psf(given, exposure.bbox)
    light = dataclasses.replace(
        known.light, enclosed=share, error=math.hypot(error, _BIAS_LEFT * off)
    )
    exposure = exposure.replaced()
    exposure.psf = known.with_light(light)
    return exposure


def _shares_measured(
    given: PointSpreadFunction, found: KernelPointSpreadFunction, exposure: Exposure
) -> list[float]:
    """Shares of the light, by `share_measured`, at five places of the frame."""
    box = exposure.bbox
    places = [
        (box.x.start + across * box.x.size, box.y.start + along * box.y.size)
        for across, along in _PLACES
    ]
    images = [given.at(x=x, y=y) for x, y in places]
    true = [found.light.enclosed * found.at(x=x, y=y) for x, y in places]
    return [share_measured(*each) for each in zip(images, true, strict=True)]


def _bad_of(exposure: Exposure, pair: Pair) -> Array:
    """Bad pixels of an exposure of the pair; those of both for any other exposure."""
    own = (pair.science, pair.science_bad), (pair.template, pair.template_bad)
    return next((bad for other, bad in own if other is exposure), pair.bad)


def pair_with_psf(pair: Pair, convolved: Direction) -> Pair:
    """Pair in which the exposure that is not convolved has a PSF, if one can be measured.

    Parameters
    ----------
    pair
        Pair.
    convolved
        Exposure that is convolved.

    Returns
    -------
    pair
        Pair with the exposure from `with_measured_psf`.
    """
    if convolved == "template":
        science = with_measured_psf(pair.science, pair, pair.science_sigma)
        return dataclasses.replace(pair, science=science)
    template = with_measured_psf(pair.template, pair, pair.template_sigma)
    science = pair.science
    if science.psf is not None:
        # The difference's photometric scale depends on both PSFs.
        science = _with_doubts(science, pair)
    return dataclasses.replace(pair, science=science, template=template)


def template_coverage(science: object, template: object, *, use_wcs: bool = True) -> float:
    """Fraction of a science image that its template covers.

    Parameters
    ----------
    science, template
        Exposures.
    use_wcs
        As in `PreparationOptions`.

    Returns
    -------
    fraction
        Fraction of the science image's usable pixels; 0 if the two do not overlap.

    Raises
    ------
    ArgumentError
        If the exposures cannot be brought onto the same pixels by whole pixels.
    """
    science, template = Exposure.from_object(science), Exposure.from_object(template)
    try:
        template = aligned_template(science, template, use_wcs=use_wcs)
    except DataError:
        return 0.0
    return _covered(untrusted_pixels(science), untrusted_pixels(template))


def _covered(science_bad: Array, template_bad: Array) -> float:
    usable = int(np.count_nonzero(~science_bad))
    return int(np.count_nonzero(~science_bad & ~template_bad)) / max(usable, 1)


def _check_coverage(fraction: float, template: Exposure, options: PreparationOptions) -> None:
    """Refuse a template that covers too little of the science image; warn of one that may."""
    name = template.source or "The template"
    if fraction < options.required_template_fraction:
        raise DataError.of(
            name,
            f"covers {100 * fraction:.1f}% of the science image's usable pixels; at least"
            f" {100 * options.required_template_fraction:g}% are needed.",
        )
    if fraction < options.expected_template_fraction:
        _log.warning(
            "%s: covers only %.1f%% of the science image's usable pixels.", name, 100 * fraction
        )
