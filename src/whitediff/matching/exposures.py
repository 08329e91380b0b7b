"""Finding the kernel that matches two exposures."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy

from .. import astro
from ..direction import Direction, opposite
from ..errors import ArgumentError, DataError, TooFewSourcesError
from ..exposures import kernels, masks
from ..exposures.covariance import noise_at
from ..exposures.fields import ChebyshevField
from ..exposures.kernels import BasisKernel
from ..exposures.model import Exposure
from ..numerics.covariance import NoiseCovariance, coloured
from ..numerics.interpolation import patched
from ..numerics.planes import filled
from ..numerics.polynomials import chebyshev_terms
from ..numerics.profiles import UNDERSAMPLED_FWHM
from ..numerics.threads import single_threaded_algebra
from ..stars.candidates import (
    CandidateOptions,
    Candidates,
    Sources,
    StarImage,
    changed_pixels,
    choose_candidates,
    cut_stamps,
    static_sources,
)
from ..stars.stamps import Stamps
from .background import HIGHEST_ORDER, fit_background, ratio_of_skies
from .basis import (
    GaussianSeries,
    KernelBasis,
    delta_basis,
    elliptical_basis,
    gaussian_basis,
    gaussian_sigmas,
    kernel_size,
    spline_basis,
)
from .choice import Trial, detail_width, is_better, mean_moments, tried
from .convolution import preconvolved
from .design import FitOptions
from .differential_background import BackgroundModel, BackgroundSearch, differential_structure
from .fitted_stars import star_table
from .fluxes import ComparedImages, FluxRatio, flux_ratios
from .local_skies import sum_with_local_skies
from .normals import Normals, normal_equations
from .preparation import Pair
from .skies import without_light
from .solve import FEW_PIXELS, OTHER_SUM, KernelFit, choose_kernel_order, fit_kernel
from .varying import residual_stamps, varying_pixels
from .wings import sum_beyond

__all__ = ["BasisChoice", "BasisName", "Match", "MatchOptions", "match"]

type Array = npt.NDArray[Any]
type BasisName = Literal["gaussian", "elliptical", "spline", "delta"]
type BasisChoice = Literal["auto", "gaussian", "elliptical", "spline", "delta"]

_log = logging.getLogger("whitediff.match")

_LOST = tuple(set(masks.UNTRUSTED_MASK_PLANES) - set(masks.INTERPOLATED_MASK_PLANES))
"""Mask planes of pixels that their neighbours do not predict."""
_APERTURE, _SMALLEST_APERTURE = 2.0, 4.0
"""Radius of the aperture that holds a star: in full widths at half maximum of the wider PSF, and
at least in pixels."""
_LARGER, _LEFT_BEYOND = 1.4, 0.5
"""Radius of a larger aperture, over the usual one's; and the change of a flux ratio by the light
beyond an aperture, over the change by the aperture's outer ring: 0 for Gaussians, up to 0.6 for
Moffat profiles of beta 2.5."""
_FEWEST_STARS, _STARS_DIFFER = 3, 3.0
"""Least number of stars whose flux ratio is compared with the kernel's sum, and the errors by which
these must differ to count."""
_SUM_ERRORS, _SMALL_SUM_OFF, _LARGEST_SUM_OFF = 5.0, 0.025, 0.2
"""Differences between a kernel's sum and photometry: errors of the photometry that must be exceeded
in any case, and relative differences that deserve a warning and an error."""
_WINGS_UNKNOWN = 0.5
"""Relative error of the light in wings beyond the kernel: their shape is not known, and masks of
bright stars hide a part."""
_TURNS, _NEAR = 4, 0.1
"""Most fits until the order of the skies' difference agrees with the kernel's sum; and how far,
relatively, the ratio of skies may be from the ratio of fluxes where the skies are light of the same
sources."""
_ALONE = 0.004
"""Light as wide as a stamp, relative to a star's, that a fit with local skies takes for sky."""
_CORE_SIGMAS, _CHANGED_SIGMAS = 3, 3.5
_ENOUGH_STARS = 10
_FEWEST_IN_BOTH = 5
"""Stars measured on both images from which on the images are known to show the same sky."""
_FIRST_STARS = 250
_MOST_STARS_DELTA = 100
_COMPARED_STARS, _MOST_STARS_FREE, _MOMENT_STARS = 40, 60, 20
"""Numbers of the brightest stars: for comparing bases, fitting a free kernel, measuring moments."""
_FREE_MARGIN = 10
"""Pixels by which stamps exceed the kernel where bases are compared, or the kernel is free."""
_GRID_STEP, _LARGEST_GRID = 1.2, 24
"""Step of a free kernel's grid, in the geometric mean of both PSFs' sigmas; and most points across
it, unless the kernel's side is larger anyway."""
_GENEROUS = 2.0
"""Factor on the limits of rejection for stars by which bases are compared."""
_FINER = 0.9
"""Ratio of spacings below which a second, finer grid of a free kernel is tried."""
_GOOD_CHI_SQUARE, _BAD_CHI_SQUARE, _USEFUL_CHI_SQUARE = 1.15, 1.5, 2.0
"""χ² per pixel of the cores of bright stars left out of the fit: up to the first a basis is good
enough, from the second on a warning is due, and up to the third a richer basis is taken.  Where no
kernel describes the stars, a kernel with more freedom does worse elsewhere than on them."""
_SAME_SUM = 0.03
"""Difference of two bases' kernel sums, over the flux ratio, from which fluxes of stars decide."""
_ROUND = 0.05
"""Difference of the eigenvalues of the kernel's moments, over the trace of the target's moments,
below which Gaussians are round."""
_SIGNIFICANT_SUM = 5.0
"""Standard deviations by which a kernel's sum has to exceed zero."""
_LARGEST_LOSS = 0.01
"""Largest share of a Gaussian kernel's sum that may lie beyond its stamp."""
_MOST_UNEXPLAINED, _MUCH_UNEXPLAINED = 0.3, 0.05
"""Largest share of a typical star's signal that the fit may leave: at all, and where the kernel is
far off its middle.  Real pairs leave up to 0.03, pairs of different fields about 1."""
_VISIBLE = 0.2
"""Squared signal of a star over the squared noise of its stamp from which the star is judged."""
_MUCH_LEFT, _SEEN = 0.01, 5.0
"""Relative residual of narrow stars that deserves a warning, and standard deviations at which a
residual is seen."""
_POOR_CHI_SQUARE, _MANY_REJECTED, _SMALL_OFFSET = 1.2, 0.3, 1.0
"""Reduced chi-square, rejected fraction and centroid in pixels that deserve a warning."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchOptions:
    """How two exposures are matched.

    Attributes
    ----------
    convolved
        Exposure to convolve; ``auto``: the template, unless its PSF is the wider.
    basis
        ``gaussian``: round Gaussians times polynomials, scaled from the two PSFs;
        ``elliptical``: elliptical Gaussians, from the moments of both PSFs; ``spline``: a free
        form with a penalty on roughness, on a grid of 1.2 sigmas of the PSFs; ``delta``: free
        pixels with such a penalty; ``auto``: round Gaussians, unless ``elliptical`` or
        ``spline`` predicts stars that are left out much better.
    kernel_size
        Odd side of the kernel; scaled from the PSFs if None.
    sigmas
        Widths of the Gaussians, pixels; scaled from the PSFs if None.
    smooth
        Penalise roughness; if False, a kernel of many free pixels is fitted to the noise.
    series
        How the Gaussians are scaled.
    candidates
        How stars are chosen.
    choose_order
        How the kernel's spatial order is chosen, from 0 to 3; None: the order in `fit`.
    background
        Model of the differential background: ``polynomial``; ``mesh``: polynomials, and the
        structure beyond them in blocks of 8 pixels and in steps across the frame; ``auto``: the
        mesh where the difference has such structure.
    fit
        Orders and rejection.
    """

    convolved: Literal["template", "science", "auto"] = "template"
    basis: BasisChoice = "auto"
    kernel_size: int | None = None
    sigmas: tuple[float, ...] | None = None
    smooth: bool = True
    series: GaussianSeries = dataclasses.field(default_factory=GaussianSeries)
    candidates: CandidateOptions = dataclasses.field(default_factory=CandidateOptions)
    choose_order: Literal["bic", "cross-validation"] | None = None
    background: BackgroundModel = "auto"
    fit: FitOptions = dataclasses.field(default_factory=FitOptions)

    def direction(self, pair: Pair) -> Direction:
        """Image of a pair that is convolved.

        Parameters
        ----------
        pair
            Prepared exposures.

        Returns
        -------
        convolved
            The one that is asked for; the sharper one for ``auto``.
        """
        return pair.sharper if self.convolved == "auto" else self.convolved

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("convolved", self.convolved, ("template", "science", "auto")),
            ("basis", self.basis, ("auto", "gaussian", "elliptical", "spline", "delta")),
            ("choose_order", self.choose_order, (None, "bic", "cross-validation")),
            ("background", self.background, ("auto", "polynomial", "mesh")),
        ):
            if value not in allowed:
                raise ArgumentError(
                    f"{name} must be one of {', '.join(map(str, allowed))}; got {value!r}."
                )
        if self.kernel_size is not None and (self.kernel_size < 3 or self.kernel_size % 2 == 0):
            raise ArgumentError(
                f"A kernel's side must be odd and at least 3; got {self.kernel_size}."
            )


@dataclasses.dataclass(frozen=True)
class SumWithWings:
    """Sum of a kernel and of the light beyond its square.

    Attributes
    ----------
    value
        Flux in the image that is matched over the flux in the image that is convolved.
    error
        Its standard deviation.
    """

    value: float
    error: float


@dataclasses.dataclass(frozen=True)
class Match:
    """A matching kernel and how it was found.

    Attributes
    ----------
    kernel
        Basis images, one for each Chebyshev term, over the exposures' box.
    background
        Differential background, image_unit of the science exposure.
    convolved
        Exposure to be convolved.
    science
        The science exposure that was matched: the given one, or the pre-convolved one.
    candidates, fit
        Stars that were offered to the fit, and the fit.
    basis
        Name of the kernel's basis.
    residual_chi_square
        χ² per pixel in the cores of bright stars that are left out of the fit, 1 for nothing but
        noise; NaN where it was not measured.
    options
        Options of the match.
    has_structure
        Whether the background has more than polynomials follow.
    with_wings
        The kernel's sum with the light beyond its square: the ratio of fluxes.
    stars
        Every source that was considered: position, brightness, whether it was used, and why
        not (`whitediff.matching.fitted_stars.star_table`).
    flux_ratio
        The kernel's sum in the middle of the frame by photometry of all static sources,
        independent of the fit; its value is NaN where these are too few or too faint.
    """

    kernel: BasisKernel
    background: ChebyshevField
    convolved: Direction
    science: Exposure
    candidates: Candidates
    fit: KernelFit
    basis: BasisName
    residual_chi_square: float
    options: MatchOptions
    has_structure: bool
    with_wings: SumWithWings
    stars: astro.table.Table
    flux_ratio: FluxRatio

    def background_search(self, pair: Pair) -> BackgroundSearch | None:
        """How the background is improved on the difference.

        Parameters
        ----------
        pair
            Exposures that were matched.

        Returns
        -------
        search
            None where no background is fitted.
        """
        if not self.options.fit.background:
            return None
        model = self.options.background
        return BackgroundSearch(
            sources=pair.source_levels,
            model="polynomial" if model == "auto" and not self.has_structure else model,
            order=self.options.fit.background_order,
            fwhm=max(pair.science_fwhm, pair.template_fwhm),
        )


@single_threaded_algebra()
def match(
    pair: Pair,
    options: MatchOptions | None = None,
    *,
    preconvolution_kernel: Array | None = None,
    sources: Sources | None = None,
) -> Match:
    """Find the kernel that matches the PSF of one exposure to that of another.

    Parameters
    ----------
    pair
        Exposures, as `whitediff.matching.preparation.prepare` returns them.
    options
        `MatchOptions`.
    preconvolution_kernel
        For a score: PSF with which the science exposure is correlated before; the template
        is then convolved.
    sources
        Sources from which the stars are chosen; the pair's if None.  The widths of the PSFs
        come from the pair's sources in any case.

    Returns
    -------
    match
        `Match`.

    Raises
    ------
    TooFewSourcesError
        If there are too few stars.
    DataError
        If the fit is singular; if the kernel's sum is not significant, or far from the ratio of
        the sources' fluxes; or if the stars' residuals are too large for images of the same sky
        on the same pixels.

    Notes
    -----
    Alard & Lupton 1998.  The fit is done twice: the first shows what varies, and the second
    leaves it out.
    """
    options = options or MatchOptions()
    if options.basis == "delta":
        # A stamp's normal matrix has a million elements.
        most = min(options.candidates.most, _MOST_STARS_DELTA)
        candidate_options = dataclasses.replace(options.candidates, most=most)
        options = dataclasses.replace(options, candidates=candidate_options)
    science, template = pair.science, pair.template
    convolved = options.direction(pair)
    science_sigma, template_sigma = pair.science_sigma, pair.template_sigma
    widening = 0
    if preconvolution_kernel is not None:
        options = dataclasses.replace(
            options,
            fit=dataclasses.replace(options.fit, known_noise=True),
            series=dataclasses.replace(
                options.series, largest_side=_odd(math.sqrt(2) * options.series.largest_side)
            ),
        )
        convolved = "template"
        science = preconvolved(science, preconvolution_kernel)
        # Correlated with itself, a profile is wider by the square root of two.
        science_sigma *= math.sqrt(2)
        widening = preconvolution_kernel.shape[0] // 2
    target_sigma, source_sigma = (
        (science_sigma, template_sigma)
        if convolved == "template"
        else (template_sigma, science_sigma)
    )
    if target_sigma < 0.95 * source_sigma:
        _log.warning(
            "The exposure that is convolved has the wider PSF (%.2f against %.2f pixels): matching"
            " is deconvolution, which rings and amplifies noise; %s instead.",
            source_sigma,
            target_sigma,
            "make a score image"
            if preconvolution_kernel is not None
            else f"convolve the {'science image' if convolved == 'template' else 'template'}",
        )
    if options.kernel_size is not None and 2 * options.kernel_size > min(science.shape):
        raise ArgumentError(
            f"A kernel of {options.kernel_size} pixels a side (kernel_size) is too large for images"
            f" of {science.shape[1]} x {science.shape[0]}; at most half of their shorter side is"
            " possible."
        )
    basis = _basis(options, target_sigma, source_sigma)
    _warn_of_small_kernel(basis.size, target_sigma, source_sigma)
    sources = pair.sources if sources is None else sources
    candidates, stamp_size = _candidates(sources, options, basis, target_sigma, widening)
    if candidates.relaxed:
        _log.warning(
            "Few stars: %d sources are used, without regard to %s.",
            len(candidates),
            candidates.relaxed,
        )
    structure = None
    if options.fit.background and options.background != "polynomial":
        structure = differential_structure(
            pair, candidates.flux_ratio, options.fit.background_order
        )
    shown = science if structure is None else without_light(science, structure)
    source, target = (template, shown) if convolved == "template" else (shown, template)
    bad = pair.template_bad, pair.science_bad
    if convolved == "science":
        bad = bad[::-1]
    if widening:
        # Correlation spreads a pixel that no neighbour predicts as far as the filter reaches.
        bad = bad[0], bad[1] | _grown(patched(pair.science.data, bad[1])[1], widening)
    reach = _CHANGED_SIGMAS * max(target_sigma, source_sigma)
    changed = changed_pixels(sources, candidates, reach=reach)
    bad = bad[0], bad[1] | changed
    brighter = candidates.flux_ratio if convolved == "science" else 1 / candidates.flux_ratio
    # Pre-convolved noise scatters little from pixel to pixel, but keeps nearly all of its power at
    # the scale of a star; the original variance stands for that power.
    variance = (pair.science if preconvolution_kernel is not None else target).variance
    free = ~(pair.template_pixels | pair.science_pixels | pair.bad)
    box = source.bbox
    images = _Images(
        StarImage(
            source.data,
            source.variance,
            bad[0],
            source_sigma,
            lost=masks.flagged(source.mask, _LOST),
        ),
        StarImage(target.data, variance, bad[1], target_sigma),
        noise_at(source.noise, box.x.center, box.y.center),
    )

    def fitted(skies: tuple[Array, Array], ratio: float) -> _Found:
        try:
            return _fit(images, candidates, stamp_size, basis, options, skies, ratio)
        except TooFewSourcesError as failure:
            raise _unlike(failure, len(candidates), pair, convolved) from None

    found, skies, sky_error = _fit_with_skies(
        fitted, _Sky(source.data, target.data, free, options.fit), brighter
    )
    fit, basis = found.fit, found.fitted.basis
    if len(fit.used) < len(candidates):
        candidates = candidates.first(len(fit.used), "a free kernel takes the brightest stars")
    _judge(
        fit,
        basis,
        found.unexplained,
        convolved,
        noise_known=options.fit.known_noise,
        stars_told=pair.misalignment is not None,
        are_in_both=_are_in_both(pair),
    )
    if preconvolution_kernel is None:
        _tell_of_narrow(pair.science_fwhm, pair.template_fwhm, found.unexplained)
    _judge_basis(found, options)
    wing, wing_error = sum_beyond(
        source.data,
        target.data,
        bad[0] | bad[1],
        _middle_kernel(fit, basis),
        skies=skies,
        fwhm=max(pair.science_fwhm, pair.template_fwhm),
    )
    with_wings = SumWithWings(
        fit.kernel_sum + wing,
        math.hypot(fit.kernel_sum_error, wing_error, _WINGS_UNKNOWN * wing, sky_error),
    )
    # The kernel's sum lacks the light beyond its square.
    fit = dataclasses.replace(
        fit, kernel_sum_error=math.hypot(fit.kernel_sum_error, wing, wing_error, sky_error)
    )
    groups = [static_sources(sources, candidates)]
    if sources.stars.are_certain and "size" in candidates.relaxed:
        groups.append(np.flatnonzero(sources.stars.which & sources.clean))
    ratio, *of_stars = _measured_sums(pair, sources, groups, changed, fit, convolved)
    _judge_sum(fit.kernel_sum, ratio)
    _judge_trend(ratio, options.fit)
    for each in of_stars:
        off = _other_sum_of_stars(fit.kernel_sum, each)
        fit = dataclasses.replace(fit, kernel_sum_error=math.hypot(fit.kernel_sum_error, off))
        with_wings = dataclasses.replace(with_wings, error=math.hypot(with_wings.error, off))
    scale = 1.0 if convolved == "template" else -1 / fit.kernel_sum
    # Where the stars suffice only for a lower order, source-free pixels fill in the rest later.
    order = max(len(each) for each in (fit.background_coefficients, *skies)) - 1
    order = max(order, options.fit.background_order)
    left, *of_images = (
        np.pad(each, (0, order + 1 - len(each))) for each in (fit.background_coefficients, *skies)
    )
    background = scale * (left + of_images[1] - fit.kernel_sum * of_images[0])
    return Match(
        kernel=_kernel(fit, basis, science),
        background=ChebyshevField(science.bbox, background),
        convolved=convolved,
        science=science,
        candidates=candidates,
        fit=fit,
        basis=found.name,
        residual_chi_square=found.residual_chi_square,
        options=options,
        has_structure=structure is not None,
        with_wings=with_wings,
        stars=star_table(sources, candidates, fit, science, noise_known=options.fit.known_noise),
        flux_ratio=ratio,
    )


def _are_in_both(pair: Pair) -> bool:
    """Whether stars were measured on both images: these show the same sky."""
    return pair.misalignment is not None and pair.misalignment.stars >= _FEWEST_IN_BOTH


def _no_kernel(convolved: Direction, found: str) -> str:
    """Message for the case that no kernel describes stars which are in both images."""
    names = {"template": "template", "science": "science image"}
    return (
        f"No kernel makes the PSF of the {names[convolved]} into that of the"
        f" {names[opposite(convolved)]}, though"
        f" both show the same stars: {found}. A ring, or peaks that the other lacks, do that;"
        f" convolve the other image (--convolved {opposite(convolved)}), or take another template."
    )


def _unlike(
    failure: TooFewSourcesError,
    stars: int,
    pair: Pair,
    convolved: Direction,
) -> TooFewSourcesError:
    """The failure; a clearer one where the stars of one image are known to be in the other."""
    if not _are_in_both(pair) or 2 * failure.found >= stars:
        return failure
    described = f"one describes {failure.found} of the {stars} that could be used"
    return TooFewSourcesError(
        _no_kernel(convolved, described), found=failure.found, required=failure.required
    )


@dataclasses.dataclass(frozen=True)
class _Sky:
    """Two images between their sources."""

    source: Array
    target: Array
    free: Array
    options: FitOptions

    def less(self, ratio: float) -> Array:
        """Target less the source times a ratio."""
        scale = self.source.dtype.type(ratio)
        return filled(
            self.free.shape,
            self.target.dtype,
            lambda rows: self.target[rows] - scale * self.source[rows],
        )

    def order(self, ratio: float) -> int:
        """Order of the skies' difference where fluxes have the given ratio."""
        order = self.options.background_order
        return len(fit_background(self.less(ratio), self.free, order, highest=HIGHEST_ORDER)) - 1

    def matrices(self, order: int, ratio: float) -> tuple[Array, Array]:
        """Chebyshev matrices of the skies of source and target, of one order.

        Light in both images, such as the outskirts of a large galaxy, is to be matched like the
        stars.  Polynomials of as low an order as the difference needs leave this light in both
        images alike.  The target's sky comes from the difference, in which no such light is
        clipped.
        """
        sky = fit_background(self.source, self.free, order)
        more = fit_background(self.less(ratio), self.free, order)
        side = max(len(sky), len(more))
        sky, more = (np.pad(each, (0, side - len(each))) for each in (sky, more))
        return sky, ratio * sky + more


def _fit_with_skies(
    fitted: Callable[[tuple[Array, Array], float], _Found],
    sky: _Sky,
    ratio: float,
) -> tuple[_Found, tuple[Array, Array], float]:
    """Fit the kernel; return the fit, its skies, and the error of its sum due to the skies.

    Skies whose ratio is the ratio of fluxes may be a galaxy's light, which is to stay in both
    images, or sky in both, which is to be taken from each.  A fit of the stars with a local sky
    for each tells which.
    """
    if not sky.options.background:
        nothing = np.zeros((1, 1)), np.zeros((1, 1))
        return fitted(nothing, ratio), nothing, 0.0
    fits: dict[int, tuple[_Found, tuple[Array, Array]]] = {}

    def settled(order: int) -> int:
        """Fit until the sum needs no other order; return the order."""
        at, last = ratio, max(fits, default=order)
        for _ in range(_TURNS):
            skies = sky.matrices(order, at)
            try:
                fits[order] = fitted(skies, at), skies
            except DataError:
                # Skies of another order may be too wrong for any kernel.
                if not fits:
                    raise
                return last
            at = fits[order][0].fit.kernel_sum
            needed = sky.order(at) if at > 0 else order
            if needed in fits:
                # An order too high for one of them does no harm.
                return max(order, needed)
            last, order = order, needed
        return last

    first = sky.order(ratio)
    order = settled(first)
    lowest = sky.options.background_order
    if min(first, order) <= lowest:
        return *fits[order], 0.0
    common = ratio_of_skies(sky.source, sky.target, sky.free, lowest)
    fewer = sky.order(common) if abs(common - ratio) < _NEAR * ratio else first
    if fewer >= min(first, order) or fewer in fits:
        return *fits[order], 0.0
    orders = order, settled(fewer)
    if orders[0] == orders[1]:
        return *fits[order], 0.0
    sums = {each: fits[each][0].fit.kernel_sum for each in orders}
    apart = abs(sums[orders[0]] - sums[orders[1]])
    found = fits[order][0]
    whole = found.fitted
    alone, error = math.nan, math.inf
    if found.name in ("gaussian", "elliptical"):
        alone, error = sum_with_local_skies(whole.stamps, whole.basis, whole.fit.used)
    if not math.isfinite(alone):
        return *fits[order], apart
    unit = sums[order] / whole.fit.kernel_sum
    alone, error = unit * alone, unit * math.hypot(error, _ALONE * alone)
    best, other = sorted(orders, key=lambda each: abs(sums[each] - alone))
    if abs(sums[other] - alone) < 3 * error:
        # The stars decide for neither: the error has to cover both sums.
        error = math.hypot(error, apart)
    return *fits[best], error


def _without_skies(
    stamps: Stamps, candidates: Candidates, skies: tuple[Array, Array], shape: tuple[int, int]
) -> Stamps:
    """Stamps less the skies, whose slope across a stamp may exceed its noise."""
    level = []
    for sky, width in zip(skies, (stamps.source.shape[1], stamps.target.shape[1]), strict=True):
        pixels = np.arange(width) - width // 2 + 0.5
        v, u = (
            np.polynomial.chebyshev.chebvander(
                2 * (np.round(centre)[:, None] + pixels) / n - 1, len(sky) - 1
            )
            for centre, n in zip((candidates.y, candidates.x), shape, strict=True)
        )
        level.append(np.einsum("nip,pq,njq->nij", v, sky, u, optimize=True))
    return dataclasses.replace(
        stamps, source=stamps.source - level[0], target=stamps.target - level[1]
    )


def _warn_of_small_kernel(size: int, target_sigma: float, source_sigma: float) -> None:
    variance = abs(target_sigma**2 - source_sigma**2)
    needed = math.sqrt(-2 * variance * math.log(_LARGEST_LOSS))
    if needed > size / 2:
        _log.warning(
            "The kernel of %d pixels is too small for PSFs of %.2f and %.2f pixels (sigma): %.0f%%"
            " of it lie outside, and fluxes will be wrong; make it at least %d pixels wide"
            " (--kernel-size), convolve the sharper image, or rebin both or smooth one before.",
            size,
            target_sigma,
            source_sigma,
            100 * math.exp(-((size / 2) ** 2) / (2 * variance)),
            2 * math.ceil(needed) + 1,
        )


def _judge(
    fit: KernelFit,
    basis: KernelBasis,
    unexplained: float,
    convolved: Direction,
    *,
    noise_known: bool,
    stars_told: bool,
    are_in_both: bool,
) -> None:
    """Refuse a fit that is nonsense; warn of one that is poor.

    Where the stars told how the images lie, the kernel's middle adds nothing: it also follows the
    PSFs' asymmetry, and falls short of shifts beyond the kernel's reach.
    """
    if not fit.kernel_sum > _SIGNIFICANT_SUM * fit.kernel_sum_error:
        raise DataError(
            f"The kernel that fits best has the sum {fit.kernel_sum:.2g} ±"
            f" {fit.kernel_sum_error:.2g}: the stars of one image are not in the other; are both"
            " of the same field, aligned to a few pixels, and in comparable units?"
        )
    rejected = int((~fit.used).sum())
    found = (
        f"{rejected} of {len(fit.used)} stars are rejected, and {100 * unexplained:.0f}% of a"
        " typical star's signal is left"
    )
    x, y = _centroid(fit, basis)
    if convolved == "science":
        x, y = -x, -y
    offset = math.hypot(x, y)
    if stars_told:
        shift = f"the kernel's middle lies ({x:.1f}, {y:.1f}) pixels (x, y) off"
    else:
        shift = f"the science image is shifted by ({x:.1f}, {y:.1f}) pixels (x, y) against the"
        shift += " template"
    if unexplained > _MOST_UNEXPLAINED and are_in_both:
        raise DataError(_no_kernel(convolved, found))
    if unexplained > _MOST_UNEXPLAINED:
        raise DataError(
            f"The images do not match: {found}; are both of the same field, aligned to a pixel,"
            " and is it the sharper one that is convolved?"
        )
    if unexplained > _MUCH_UNEXPLAINED and offset > basis.size / 6:
        raise DataError(
            f"The images do not match: {found}; {shift}, too far for a kernel of {basis.size}"
            " pixels; align them."
        )
    if offset > _SMALL_OFFSET and not stars_told:
        _log.warning("T%s; align them.", shift[1:])
    # With pre-convolved noise, which is correlated, chi-square would mean nothing.
    poor = fit.reduced_chi_square > _POOR_CHI_SQUARE and not noise_known
    if poor or rejected > _MANY_REJECTED * len(fit.used):
        reasons = [f"reduced chi-square {fit.reduced_chi_square:.2f}"] if poor else []
        if rejected:
            reasons.append(f"{rejected} of {len(fit.used)} stars rejected")
        _log.warning(
            "The match is poor: %s; look at what is left of the stars, the alignment and the"
            " variance planes.",
            ", ".join(reasons),
        )


def _tell_of_narrow(science_fwhm: float, template_fwhm: float, unexplained: float) -> None:
    """Warn of residuals of stars that are too narrow for the pixels."""
    left = math.sqrt(unexplained)
    if min(science_fwhm, template_fwhm) >= UNDERSAMPLED_FWHM or left < _MUCH_LEFT:
        return
    _log.warning(
        "Undersampled: with full widths of %.2f (science) and %.2f (template) pixels, values"
        " between pixels are not known, and the kernel leaves %.1f%% of a typical bright star."
        " Stars beyond a signal-to-noise ratio of about %.0f leave residuals, on which little is to"
        " be believed (flag_near_bright_star); a template taken without a shift of parts of a"
        " pixel, or made on a finer grid of dithered images, avoids it.",
        science_fwhm,
        template_fwhm,
        100 * left,
        _SEEN / left,
    )


def _judge_basis(found: _Found, options: MatchOptions) -> None:
    """Say which basis was taken, if there was a choice; warn where none describes the stars."""
    value = found.residual_chi_square
    if options.basis == "auto" and math.isfinite(value):
        _log.info(
            "Kernel basis: %s; residual chi-square of the cores of bright stars left out of the"
            " fit: %.2f.",
            found.name,
            value,
        )
    if value > _BAD_CHI_SQUARE:
        _log.warning(
            "%s: bright stars left out of the fit have a residual chi-square of %.2f per pixel"
            " of their cores, where noise alone has 1; do not believe what is found around bright"
            " stars%s.",
            "No basis describes the kernel"
            if options.basis == "auto"
            else f"The basis {found.name} does not describe the kernel",
            value,
            "" if options.basis == "auto" else ", or let the basis be chosen (--basis auto)",
        )


def _measured_sums(
    pair: Pair,
    sources: Sources,
    groups: Sequence[Array],
    changed: Array,
    fit: KernelFit,
    convolved: Direction,
) -> list[FluxRatio]:
    """The kernel's sum by photometry of groups of sources, fitted or not."""
    sides = (pair.template, pair.template_bad), (pair.science, pair.science_bad)
    if convolved == "science":
        sides = sides[::-1]
    (source, source_bad), (target, target_bad) = sides
    missing = changed.copy()
    for exposure in (source, target):
        missing |= masks.flagged(exposure.mask, _LOST)
    images = ComparedImages(
        source=source.data,
        target=target.data,
        source_variance=source.variance,
        target_variance=target.variance,
        missing=missing,
        sources=pair.source_levels.either,
        source_bad=source_bad,
        target_bad=target_bad,
    )
    ny, nx = missing.shape
    radius = max(_APERTURE * max(pair.science_fwhm, pair.template_fwhm), _SMALLEST_APERTURE)

    def by_best_aperture(which: Array) -> FluxRatio:
        # Profiles of different widths lose different shares of their wings; the faster the ratio
        # still changes with the radius, the more.  A larger aperture loses less, but its noise
        # and its neighbours are more.
        tried = []
        x, y = sources.x[which], sources.y[which]
        expected = fit.coefficients_at(2 * (x + 0.5) / nx - 1, 2 * (y + 0.5) / ny - 1)[:, 0]
        for each in (radius, _LARGER * radius):
            found, inner = flux_ratios(
                images, x, y, radius=each, expected=expected, within=(each, each / _LARGER)
            )
            beyond = _LEFT_BEYOND * abs(found.value - inner.value)
            tried.append(dataclasses.replace(found, error=math.hypot(found.error, beyond)))
        best = min(tried, key=lambda ratio: ratio.error if math.isfinite(ratio.error) else math.inf)
        return dataclasses.replace(
            best,
            value=best.value * fit.kernel_sum,
            error=best.error * abs(fit.kernel_sum),
            trend=tried[0].trend,
        )

    return [by_best_aperture(which) for which in groups]


def _judge_sum(kernel_sum: float, ratio: FluxRatio) -> None:
    """Compare a kernel's sum with photometry: warn where it is off, refuse it where far off."""
    off, error = kernel_sum / ratio.value - 1, ratio.error / ratio.value
    if not abs(off) > _SUM_ERRORS * error:
        return
    found = (
        f"has the sum {kernel_sum:.4g}, but {ratio.n_stars} sources are {ratio.value:.4g} ±"
        f" {ratio.error:.2g} times as bright in the image that is matched as in the one that is"
        " convolved"
    )
    if abs(off) > _LARGEST_SUM_OFF:
        raise DataError(
            f"The kernel that fits best {found}: the fit is wrong. Make the kernel larger"
            " (--kernel-size) where it is too small for the PSFs; else look at which stars it used,"
            " the alignment and the variance planes."
        )
    if abs(off) > _SMALL_SUM_OFF:
        _log.warning(
            "The kernel %s: fluxes may be off by %.0f%%; look at which stars it used, and whether"
            " the kernel is large enough.",
            found,
            100 * abs(off),
        )


def _other_sum_of_stars(kernel_sum: float, ratio: FluxRatio) -> float:
    """Difference of a kernel's sum, by stars and galaxies, from the stars' sum; 0 if by chance."""
    off = kernel_sum - ratio.value
    if not (ratio.n_stars >= _FEWEST_STARS and abs(off) > _STARS_DIFFER * ratio.error):
        return 0.0
    if abs(off) > _SMALL_SUM_OFF * abs(ratio.value):
        _log.warning(
            "The kernel has the sum %.4g, by galaxies and stars, but the %d stars alone are %.4g ±"
            " %.2g times as bright in the image that is matched as in the one that is convolved:"
            " they have another colour, and the sum may be off by %.0f%% for one of them.",
            kernel_sum,
            ratio.n_stars,
            ratio.value,
            ratio.error,
            100 * abs(off / ratio.value),
        )
    return abs(off)


def _judge_trend(ratio: FluxRatio, options: FitOptions) -> None:
    """Say where the flux ratio varies over the field and the kernel's sum does not follow."""
    if ratio.trend is None:
        return
    order = max(ratio.trend.order, options.kernel_order)
    _log.warning(
        "The flux ratio of %d sources varies smoothly over the field, by %.0f%% ± %.1f%%, and the"
        " kernel's sum does not follow: apply the flat field, or let the sum vary (--varying-sum"
        " --kernel-order %d, in a pipeline constantKernelSum=False and spatialKernelOrder=%d).",
        ratio.n_stars,
        100 * ratio.trend.spread,
        100 * ratio.trend.error,
        order,
        order,
    )


def _middle_kernel(fit: KernelFit, basis: KernelBasis) -> Array:
    coefficients = fit.coefficients_at(np.zeros(1), np.zeros(1))[0, :-1]
    return np.tensordot(coefficients, basis.images, 1)


def _centroid(fit: KernelFit, basis: KernelBasis) -> tuple[float, float]:
    """Centroid x, y of the kernel in the middle of the frame, pixels from the kernel's origin."""
    kernel = _middle_kernel(fit, basis)
    pixels = np.arange(basis.size) - basis.size // 2
    x, y = kernel.sum(axis=0) @ pixels, kernel.sum(axis=1) @ pixels
    return float(x / kernel.sum()), float(y / kernel.sum())


def _unexplained(stamps: Stamps, fit: KernelFit) -> float:
    """Median, over bright stars and rejected ones too, of the share of signal that a fit leaves."""
    weight, target = stamps.weight, stamps.target
    pixels = np.count_nonzero(weight, axis=(1, 2))
    level = np.einsum("nij,nij->n", weight, target) / np.maximum(weight.sum(axis=(1, 2)), 1e-300)
    square = np.einsum("nij,nij,nij->n", weight, target, target)
    signal = square - level**2 * weight.sum(axis=(1, 2)) - pixels
    judged = signal > _VISIBLE * np.maximum(pixels, 1)
    if not judged.any():
        return 0.0
    left = pixels * (fit.residual_rms**2 - 1)
    return max(0.0, float(np.median(left[judged] / signal[judged])))


def _basis(options: MatchOptions, target_sigma: float, source_sigma: float) -> KernelBasis:
    sigmas = options.sigmas or gaussian_sigmas(target_sigma, source_sigma, options.series)
    size = options.kernel_size or kernel_size(sigmas, options.series)
    if options.basis == "delta":
        basis = delta_basis(size)
    else:
        basis = gaussian_basis(sigmas, degrees=options.series.degrees, size=size)
    return _penalised(basis, options)


def _penalised(basis: KernelBasis, options: MatchOptions) -> KernelBasis:
    return basis if options.smooth else dataclasses.replace(basis, penalty=None, typical=None)


def _grown(pixels: Array, reach: int) -> Array:
    """Pixels, grown by a reach in x and y."""
    if not pixels.any():
        return pixels
    return scipy.ndimage.maximum_filter(pixels.view(np.uint8), 2 * reach + 1).astype(bool)


def _odd(value: float) -> int:
    return 2 * round((value - 1) / 2) + 1


def _candidates(
    sources: Sources,
    options: MatchOptions,
    basis: KernelBasis,
    target_sigma: float,
    widening: int,
) -> tuple[Candidates, int]:
    """Stars, and the side of their stamps: smaller stamps where few stars have room for large."""
    best: tuple[Candidates, int] | None = None
    failure: DataError | None = None
    for size in (2 * basis.size + 1, basis.size + 10):
        try:
            candidates = choose_candidates(
                sources,
                # Half of a source stamp, and a pixel for rounding.
                clear=size // 2 + basis.size // 2 + 1 + widening,
                isolation=max(basis.size, 8 * target_sigma),
                options=options.candidates,
            )
        except DataError as error:
            failure = failure or error
            continue
        if best is None or len(candidates) > len(best[0]):
            best = candidates, size
        if len(candidates) >= _ENOUGH_STARS:
            break
    if best is None:
        assert failure is not None
        raise failure
    return best


@dataclasses.dataclass(frozen=True)
class _Found:
    """A fit, and how well it describes stars.

    Attributes
    ----------
    fit
        Fit in units of the images.
    name
        Name of its basis.
    unexplained
        Share of a typical star's signal that the fit leaves.
    residual_chi_square
        χ² per pixel in the cores of bright stars left out of the fit; NaN if not measured.
    fitted
        The fit with its basis, before it was brought to the units of the images.
    """

    fit: KernelFit
    name: BasisName
    unexplained: float
    residual_chi_square: float
    fitted: _Fitted


@dataclasses.dataclass(frozen=True)
class _Images:
    """Image to convolve, image to match, and the noise covariance of the image to convolve."""

    source: StarImage
    target: StarImage
    source_noise: NoiseCovariance | None


def _fit(
    images: _Images,
    candidates: Candidates,
    stamp_size: int,
    basis: KernelBasis,
    options: MatchOptions,
    skies: tuple[Array, Array],
    flux_ratio: float,
) -> _Found:
    """Fit with the basis that is asked for, or with the one that the stars ask for."""
    # Convolution multiplies the noise variance by the squared norm of the kernel: at first assume
    # a Gaussian whose sum is the flux ratio.
    source_sigma, target_sigma = images.source.sigma, images.target.sigma
    norm = min(1.0, 1 / (4 * math.pi * max(target_sigma**2 - source_sigma**2, 0.08)))
    norm *= flux_ratio**2

    def cut(size: int, kernel_size: int, count: int | None) -> Stamps:
        stamps = cut_stamps(
            images.source,
            images.target,
            candidates.x[:count],
            candidates.y[:count],
            norm=norm,
            size=size,
            kernel_size=kernel_size,
        )
        stamps = dataclasses.replace(stamps, source_noise=images.source_noise)
        part = candidates if count is None else candidates.first(count, "")
        return _without_skies(stamps, part, skies, images.source.pixels.shape)

    stamps = cut(stamp_size, basis.size, None)
    # Units in which the noise and the kernel's sum are near 1.
    used = stamps.weight > 0
    unit = float(np.median(stamps.weight[used])) ** -0.5 if used.any() else 1.0
    source_unit = unit / flux_ratio
    # Detail is usually as fine as the PSFs' widths; but a wide target may have rings, or several
    # peaks as sharp as the source's, which need the finer grid.
    detail = detail_width(stamps.source[:_MOMENT_STARS])
    widths = math.sqrt(source_sigma * target_sigma), min(source_sigma, target_sigma, detail)
    spacing, fine = (max(1.0, _GRID_STEP * width) for width in widths)
    found = _Fitting(
        stamps.in_units(source_unit, unit),
        lambda size, side, count: cut(size, side, count).in_units(source_unit, unit),
        options,
        norm * (source_unit / unit) ** 2,
        _CORE_SIGMAS * target_sigma,
        spacing,
        fine,
    ).best(basis)
    return dataclasses.replace(found, fit=found.fit.in_units(source_unit, unit))


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """A fit, the stamps with its weights, its basis, its orders, and the orders that failed."""

    fit: KernelFit
    stamps: Stamps
    basis: KernelBasis
    orders: FitOptions
    failed: list[FitOptions]

    def found(self, name: BasisName, trial: Trial | None) -> _Found:
        """The fit as the match uses it; warns if orders were lowered."""
        _tell_fall_back(self.failed, self.orders, len(self.stamps))
        return _Found(
            self.fit,
            name,
            _unexplained(self.stamps, self.fit),
            math.nan if trial is None else trial.reduced,
            self,
        )


def _is_sum_as_good(found: float, simpler: float) -> bool:
    """Whether a richer basis' kernel sum is as good as a simpler one's; both over the flux ratio.

    A free kernel may take a trail or a neighbour for a part of itself.
    """
    return abs(found - simpler) < _SAME_SUM or abs(found - 1) < abs(simpler - 1)


@dataclasses.dataclass(frozen=True)
class _Contender:
    """A basis, its orders, a fit with it, and its trial on stars that are left out."""

    name: BasisName
    basis: KernelBasis
    orders: FitOptions
    fit: KernelFit
    trial: Trial


@dataclasses.dataclass(frozen=True)
class _Fitting:
    """Stamps, and how kernels are fitted to them.

    Attributes
    ----------
    stamps
        Stamps in units near the noise.
    cut
        Function that cuts other stamps, from their size, the kernel's side and the number of
        stars.
    options
        Options of the match.
    norm
        Squared norm of the kernel that the stamps' weights assume.
    core
        Half-width of the square around a star that is never taken for varying, pixels.
    spacing, fine_spacing
        Spacing of a free kernel's grid, pixels; and the spacing to try where that is too coarse.
    """

    stamps: Stamps
    cut: Callable[[int, int, int], Stamps]
    options: MatchOptions
    norm: float
    core: float
    spacing: float
    fine_spacing: float

    def best(self, basis: KernelBasis) -> _Found:
        """Fit with the basis of the options, or with the one that the stars ask for."""
        asked = self.options.basis
        if asked == "delta":
            return self.twice(basis).found("delta", None)
        failure: DataError | None = None
        plain: _Fitted | None = None
        try:
            plain = self.twice(basis)
        except DataError as error:
            # Where Gaussians describe no star, another basis may.
            failure = error
            if asked == "gaussian":
                raise
        which = self.compared(plain)
        orders = self.options.fit if plain is None else plain.orders
        if asked in ("elliptical", "spline"):
            forced = self.contender(asked, which, orders, self.spacing)
            if forced is None:
                raise failure or DataError(
                    f"The {len(self.stamps)} stars do not suffice for the basis {asked};"
                    " take another one (--basis)."
                )
            return self.final(forced)
        first = best = None if plain is None else self.plain_contender(which, basis, plain)
        if asked == "auto" and (best is None or best.trial.reduced > _GOOD_CHI_SQUARE):
            for name, spacing in self.others:
                other = self.contender(name, which, orders, spacing)
                if other is None or other.trial.reduced > _USEFUL_CHI_SQUARE:
                    continue
                if best is None or is_better(other.trial, best.trial):
                    best = other
                    if best.trial.reduced <= _GOOD_CHI_SQUARE:
                        break
        if best is not None and best.name != "gaussian":
            final = self.final(best)
            if plain is None or _is_sum_as_good(final.fit.kernel_sum, plain.fit.kernel_sum):
                return final
        if plain is None:
            assert failure is not None
            raise failure
        return plain.found("gaussian", None if first is None else first.trial)

    def final(self, chosen: _Contender) -> _Found:
        """Fit all stars; with a free basis, whose equations are large, only the brightest.

        The fit to the stars by which bases were compared shows what varies.
        """
        stamps, choose = self.stamps, self.options.choose_order
        if chosen.name == "spline":
            count = min(len(stamps), _MOST_STARS_FREE)
            stamps, choose = self.free_stamps(chosen.basis, count), None
        fitted = self.again(stamps, chosen.fit, chosen.basis, chosen.orders, choose)
        return fitted.found(chosen.name, chosen.trial)

    def twice(self, basis: KernelBasis) -> _Fitted:
        """Fit twice: the second time with the right noise, and without what varies."""
        # The brightest suffice to see what varies.
        first, orders, failed = _fit_or_lower(
            self.stamps.part(slice(_FIRST_STARS)), basis, self.options.fit
        )
        again = self.again(self.stamps, first, basis, orders, self.options.choose_order)
        return dataclasses.replace(again, failed=[*failed, *again.failed])

    def again(
        self,
        stamps: Stamps,
        first: KernelFit,
        basis: KernelBasis,
        orders: FitOptions,
        choose: Literal["bic", "cross-validation"] | None,
    ) -> _Fitted:
        """Fit again, with the noise and the varying pixels that a first fit shows."""
        residuals = residual_stamps(stamps, first, basis)
        varying = varying_pixels(stamps, residuals, core=self.core)
        second = stamps.reweighted(self.more_noise(first, basis), varying, residuals)
        fit, final, failed = _fit_or_lower(second, basis, orders, choose)
        return _Fitted(fit, second, basis, final, failed)

    def more_noise(self, fit: KernelFit, basis: KernelBasis) -> float:
        """Excess of the kernel's squared norm over the norm that the stamps' weights assume."""
        middle = coloured(_middle_kernel(fit, basis)[None], self.stamps.source_noise)[0]
        return float((middle**2).sum()) - self.norm

    def compared(self, plain: _Fitted | None) -> Array:
        """Indices of the stars by which bases are compared: the brightest static ones.

        Rejected stars that a richer basis may describe are among them.
        """
        which = np.arange(len(self.stamps))
        if plain is not None:
            which = which[~np.isin(plain.fit.rejected, (FEW_PIXELS, OTHER_SUM))]
        return which[:_COMPARED_STARS]

    def plain_contender(
        self, which: Array, basis: KernelBasis, plain: _Fitted
    ) -> _Contender | None:
        """Round Gaussians as a contender; None if the stars are too few to leave any out."""
        stamps = self.stamps.part(which).cropped(basis.size + _FREE_MARGIN)
        try:
            trial = self.trial(stamps, basis, plain.orders, plain.fit.used[which])
        except DataError:
            return None
        return _Contender("gaussian", basis, plain.orders, plain.fit, trial)

    @property
    def others(self) -> list[tuple[BasisName, float]]:
        """Bases to try where round Gaussians do not suffice, with the spacing of free grids."""
        others: list[tuple[BasisName, float]] = [
            ("elliptical", self.spacing),
            ("spline", self.spacing),
        ]
        if self.fine_spacing < _FINER * self.spacing:
            others.append(("spline", self.fine_spacing))
        return others

    def contender(
        self, name: BasisName, which: Array, orders: FitOptions, spacing: float
    ) -> _Contender | None:
        """Another basis, fitted to the stars by which bases are compared.

        None if these are too few, and where elliptical Gaussians would be round.
        """
        if name == "spline":
            basis: KernelBasis | None = spline_basis(self.free_side(), spacing)
            orders = dataclasses.replace(orders, kernel_order=min(orders.kernel_order, 1))
        else:
            basis = self.elliptical(which)
        if basis is None or not len(which):
            return None
        basis = _penalised(basis, self.options)
        if name == "spline":
            stamps = self.free_stamps(basis, int(which.max()) + 1).part(which)
        else:
            stamps = self.stamps.part(which).cropped(basis.size + _FREE_MARGIN)
        normals = normal_equations(stamps, basis)
        try:
            # The weights still assume another kernel, for which no star should be rejected.
            generous = dataclasses.replace(
                orders,
                largest_rms=_GENEROUS * orders.largest_rms,
                largest_mean=_GENEROUS * orders.largest_mean,
            )
            fit, lower, _ = _fit_or_lower(stamps, basis, generous, normals=normals)
            orders = dataclasses.replace(
                orders, kernel_order=lower.kernel_order, background_order=lower.background_order
            )
            trial = self.trial(stamps, basis, orders, fit.used, normals)
        except DataError:
            return None
        return _Contender(name, basis, orders, fit, trial)

    def trial(
        self,
        stamps: Stamps,
        basis: KernelBasis,
        orders: FitOptions,
        used: Array,
        normals: Normals | None = None,
    ) -> Trial:
        """Predict stars from others; if they are few, with a constant kernel and background."""
        if normals is None:
            normals = normal_equations(stamps, basis)
        constant = dataclasses.replace(orders, kernel_order=0, background_order=0)
        try:
            return tried(
                stamps, basis, orders, used, normals, norm=self.norm, radius=self.side // 2
            )
        except DataError:
            return tried(
                stamps, basis, constant, used, normals, norm=self.norm, radius=self.side // 2
            )

    @property
    def side(self) -> int:
        """Side of the kernels for which the stamps were cut."""
        return self.stamps.source.shape[1] - self.stamps.target.shape[1] + 1

    def free_side(self) -> int:
        """Side of a free kernel: as the stamps have room for, since it may have spikes."""
        if self.options.kernel_size is not None:
            return self.side
        room = (self.stamps.source.shape[1] + 1 - _FREE_MARGIN) // 2
        largest = min(room, int(_LARGEST_GRID * self.spacing))
        return max(self.side, largest - 1 + largest % 2)

    def free_stamps(self, basis: KernelBasis, count: int) -> Stamps:
        """Stamps, for a kernel of another side, that reach no further than the present ones."""
        return self.cut(
            min(basis.size + _FREE_MARGIN, self.stamps.source.shape[1] - basis.size + 1),
            basis.size,
            count,
        )

    def elliptical(self, which: Array) -> KernelBasis | None:
        """Elliptical Gaussians by the shapes of bright stars; None if these fail or are round."""
        bright, edge = which[:_MOMENT_STARS], self.side // 2
        inner = slice(edge, self.stamps.source.shape[1] - edge)
        source = mean_moments(self.stamps.source[bright][:, inner, inner])
        target = mean_moments(self.stamps.target[bright])
        if not (np.isfinite(source).all() and np.isfinite(target).all()):
            return None
        smaller, larger = np.linalg.eigvalsh(target - source)
        is_round = larger - smaller < _ROUND * float(np.trace(target))
        if is_round and self.options.basis == "auto":
            return None
        return elliptical_basis(target, source, size=self.side)


def _fit_or_lower(
    stamps: Stamps,
    basis: KernelBasis,
    options: FitOptions,
    choose: Literal["bic", "cross-validation"] | None = None,
    normals: Normals | None = None,
) -> tuple[KernelFit, FitOptions, list[FitOptions]]:
    """Fit; where the stars do not suffice for the spatial orders, lower them.

    Also returns the options with the orders of the fit, and those whose orders failed.
    """
    if normals is None:
        normals = normal_equations(stamps, basis)
    failed: list[FitOptions] = []
    while True:
        try:
            if choose is not None:
                options = choose_kernel_order(
                    stamps, basis, options, criterion=choose, normals=normals
                )
                # Where the fit rejects too many for that order, it is lowered, not chosen again.
                choose = None
            fit = fit_kernel(stamps, basis, options, normals=normals)
        except DataError:
            if options.kernel_order == options.background_order == 0:
                raise
            largest = max(options.kernel_order, options.background_order) - 1
            failed.append(options)
            options = dataclasses.replace(
                options,
                kernel_order=min(options.kernel_order, largest),
                background_order=min(options.background_order, largest),
            )
        else:
            return fit, options, failed


def _tell_fall_back(failed: list[FitOptions], final: FitOptions, stars: int) -> None:
    """Warn once if other orders were fitted than were asked for."""
    if not failed:
        return
    asked, fitted = ((each.kernel_order, each.background_order) for each in (failed[0], final))
    if asked != fitted:
        _log.warning(
            "The %d stars do not bear kernel order %d and background order %d:"
            " falling back to kernel order %d and background order %d.",
            stars,
            *asked,
            *fitted,
        )


def _kernel(fit: KernelFit, basis: KernelBasis, exposure: Exposure) -> BasisKernel:
    """One image for each spatial term: fewer convolutions than one for each basis image."""
    order = fit.kernel_coefficients.shape[1] - 1
    images = np.stack(
        [
            np.tensordot(fit.kernel_coefficients[:, p, q], basis.images, axes=1)
            for p, q in chebyshev_terms(order)
        ]
    )
    return kernels.term_kernel(images, order, exposure.bbox)
