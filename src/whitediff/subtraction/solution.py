"""Solutions, which hold all that makes a difference or score, and making products with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .. import astro
from ..alignment.exposures import alignment_of
from ..decorrelation.cells import decorrelate_cells
from ..decorrelation.exposures import Decorrelation, DecorrelationOptions, decorrelate
from ..defects.exposures import NO_DEFECTS, with_trails
from ..direction import Direction
from ..errors import ArgumentError, DataError
from ..exposures import foreign
from ..exposures.boxes import Box
from ..exposures.covariance import Noise
from ..exposures.fields import ChebyshevField, Field
from ..exposures.kernels import ConvolutionKernel, constant_kernel
from ..exposures.missing import missing_pixels, without_missing
from ..exposures.model import Exposure
from ..exposures.psf import KernelPointSpreadFunction, Light, PointSpreadFunction, as_kernel_psf
from ..matching.convolution import convolved_exposure, photometric_scale_factor, preconvolved
from ..matching.differential_background import BackgroundSearch
from ..matching.exposures import Match
from ..matching.preparation import Pair, PreparationOptions, measured_psf
from ..matching.stamp import KernelError, StampKernel
from ..noise.exposures import InputNoise
from ..numerics.planes import copied, row_blocks
from ..numerics.threads import single_threaded_algebra
from ..numerics.transformation import Correction
from .difference import subtract, subtract_background
from .recipe import Recipe

__all__ = [
    "Product",
    "Solution",
    "completed_product",
    "corrected",
    "fluxes",
    "kernel_variance",
    "make_product",
    "pixel_sample",
    "subtracted",
]

type Array = npt.NDArray[Any]


_SAMPLED = 500
"""Pixels of an exposure, about, that are kept to recognise it."""
_SAME_PIXEL, _SAME_PIXELS = 1e-4, 0.7
"""Relative difference up to which two pixels are the same, and the fraction of such pixels above
which two exposures are."""


def pixel_sample(science: Exposure, template: Exposure) -> Array:
    """Sample of the pixels of two exposures, by which they are recognised.

    Parameters
    ----------
    science, template
        Exposures on the same pixels.

    Returns
    -------
    pixels
        ``(2, n)`` float32, evenly spread; NaN where there is no measurement.
    """
    step = max(1, science.data.size // _SAMPLED)
    # Coprime to most side lengths, so that the columns differ.
    step += 1 - step % 2
    return np.stack(
        [exposure.data.ravel()[::step].astype(np.float32) for exposure in (science, template)]
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solution:
    """All that is needed to make a difference or score of two exposures.

    Attributes
    ----------
    kernel
        Matching kernel.
    background
        Differential background, image_unit of the science exposure.
    convolved
        Which exposure is convolved.
    recipe
        All options, decided before the images were looked at.
    scale_factor
        If the science exposure is convolved: photometric scale over the kernel's sum.
    preconvolution_kernel
        ``(py, px)`` PSF with which the science exposure is correlated; None for a difference.
    science_variance_factor, template_variance_factor
        Factors that the variance planes are multiplied by.
    science_variance, template_variance
        Mean variances that the correction uses, image_unit²; None to measure them.
    noises
        Noise covariances of science exposure and template: each the same everywhere, a function of
        the position, or None for white noise.  None for the pair if both are yet to be found as
        the recipe says.
    alignment
        How the template was resampled onto the science exposure's pixels (`alignment_of`).
    registration
        Correction of the template's WCS by its stars; None for none.
    psf
        PSF of the exposure that is not convolved, before any processing.
    box
        Box of the exposures that the solution was found for; None if it fits any.
    stars
        `whitediff.matching.fitted_stars.star_table` of the match; None if not known.
    kernel_error
        Error of the kernel, which becomes part of the variance; None if stars determine the kernel
        so well that it does not count.
    photon_factor
        Variance per unit of light of static sources that the science exposure's plane lacks,
        image_unit.
    pixels
        `pixel_sample` of the exposures that the solution was found for; None if not known.
    """

    kernel: ConvolutionKernel
    background: Field | Array | float
    convolved: Direction
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    scale_factor: float = 1.0
    preconvolution_kernel: Array | None = None
    science_variance_factor: float = 1.0
    template_variance_factor: float = 1.0
    science_variance: float | None = None
    template_variance: float | None = None
    noises: tuple[Noise, Noise] | None = None
    psf: KernelPointSpreadFunction | None = None
    alignment: Literal["auto", "interpolating", "adaptive"] | None = None
    registration: Correction | None = None
    box: Box | None = None
    stars: astro.table.Table | None = None
    kernel_error: KernelError | None = None
    photon_factor: float = 0.0
    pixels: Array | None = None

    def is_of(self, science: Exposure, template: Exposure) -> bool:
        """Whether the solution was found for two exposures; true if it has no pixel sample.

        Parameters
        ----------
        science, template
            Exposures on the same pixels.

        Returns
        -------
        same
            Whether most of the sampled pixels agree: injected sources and rounding do not make
            another pair.
        """
        if self.pixels is None:
            return True
        found = pixel_sample(science, template)
        if found.shape != self.pixels.shape:
            return False
        alike = np.isclose(found, self.pixels, rtol=_SAME_PIXEL, atol=0, equal_nan=True)
        return bool((alike.mean(axis=1) > _SAME_PIXELS).all())

    @classmethod
    def of(
        cls, pair: Pair, match: Match, recipe: Recipe, preconvolution_kernel: Array | None = None
    ) -> Solution:
        """Solution of a first match.

        Parameters
        ----------
        pair, match
            Matched exposures, and their match.
        recipe
            How products are made of them.
        preconvolution_kernel
            ``(py, px)`` if the match was made for a score.

        Returns
        -------
        solution
            Solution whose mean variances are yet to be measured.
        """
        return cls(
            kernel=match.kernel,
            background=match.background,
            convolved=match.convolved,
            scale_factor=1.0 if match.convolved == "template" else _scale_factor(pair, match),
            preconvolution_kernel=preconvolution_kernel,
            stars=match.stars,
            science_variance_factor=pair.science_variance_factor,
            template_variance_factor=pair.template_variance_factor,
            **_of_exposures(pair.science, pair.template, match.convolved, recipe),
        )

    @classmethod
    def of_stamp(
        cls,
        fit: StampKernel,
        background: Field,
        science: Exposure,
        template: Exposure,
        recipe: Recipe,
        *,
        variance_factors: tuple[float, float],
        variances: tuple[float, float],
    ) -> Solution:
        """Solution of a cut-out, whose kernel is not found from stars.

        Parameters
        ----------
        fit
            Kernel of the template, and how well it is known.
        background
            Differential background.
        science, template
            Exposures with the variance planes of the fit.
        recipe
            How the difference is made; so few pixels get one correction for all.
        variance_factors, variances
            Factors that the planes of science exposure and template were multiplied by, and the
            typical variances (medians) of the results, image_unit².

        Returns
        -------
        solution
            Solution with the noise covariances that the exposures carry.
        """
        # Defects are not sought on cut-outs: most of their pixels are of sources.
        recipe = dataclasses.replace(
            recipe,
            correction=dataclasses.replace(recipe.correction, spatially_varying=False),
            preparation=dataclasses.replace(recipe.preparation, defects=NO_DEFECTS),
        )
        return cls(
            kernel=constant_kernel(fit.kernel, science.bbox),
            background=background,
            convolved="template",
            science_variance_factor=variance_factors[0],
            template_variance_factor=variance_factors[1],
            science_variance=variances[0],
            template_variance=variances[1],
            noises=(science.noise, template.noise),
            kernel_error=fit.error,
            photon_factor=fit.photon_factor,
            **_of_exposures(science, template, "template", recipe),
        )

    @classmethod
    def of_kernel(
        cls,
        kernel: ConvolutionKernel,
        *,
        background: Field | Array | float = 0.0,
        convolved: Direction = "template",
    ) -> Solution:
        """Solution with little more than a known kernel.

        Parameters
        ----------
        kernel
            Matching kernel.
        background
            Differential background.
        convolved
            Which exposure the kernel convolves.

        Returns
        -------
        solution
            Solution that takes exposures as they are: their variances are not rescaled, their
            defects not sought.
        """
        as_they_are = PreparationOptions(rescale_variance=False, defects=NO_DEFECTS)
        return cls(
            kernel=foreign.kernel_of(kernel),
            background=background,
            convolved=convolved,
            recipe=Recipe(preparation=as_they_are),
        )

    def completed(self, result: Decorrelation | None) -> Solution:
        """Solution with the measurements of a decorrelation.

        Parameters
        ----------
        result
            The decorrelation; None if there was none.

        Returns
        -------
        solution
            Solution that makes the same product again, without measuring anything.
        """
        if result is None:
            return self
        measured = (
            # Each cell has mean variances of its own.
            (None, None)
            if self.recipe.cells is not None
            else (result.science_variance, result.template_variance)
        )
        return dataclasses.replace(
            self,
            science_variance=measured[0],
            template_variance=measured[1],
            noises=result.noises,
        )


def _of_exposures(
    science: Exposure,
    template: Exposure,
    convolved: Direction,
    recipe: Recipe,
) -> dict[str, Any]:
    """Fields of a solution that follow from its exposures and recipe."""
    unconvolved = science if convolved == "template" else template
    return {
        "recipe": recipe,
        "box": science.bbox,
        "alignment": alignment_of(template, recipe.preparation.resampling),
        "registration": template.registration,
        "pixels": pixel_sample(science, template),
        "psf": (
            None if unconvolved.psf is None else as_kernel_psf(unconvolved.psf, unconvolved.bbox)
        ),
    }


@dataclasses.dataclass(frozen=True)
class Product:
    """A decorrelated difference or score.

    Attributes
    ----------
    exposure
        The image S or difference, its variance, mask and PSF.
    decorrelation
        Numbers that describe the correction; None if the recipe has none.
    solution
        Solution that makes the same product again.
    flux, flux_variance
        ``(ny, nx)`` flux of a point source at each pixel and its variance, image_unit and its
        square; for a score whose PSF is known.
    psf_before
        PSF before any correction.
    """

    exposure: Exposure
    decorrelation: Decorrelation | None
    solution: Solution
    flux: Array | None = None
    flux_variance: Array | None = None
    psf_before: PointSpreadFunction | None = None


type Correct = Callable[
    [Solution, Exposure, Exposure, Exposure, Array | None], Decorrelation | None
]
"""Function that corrects a difference, of solution, science exposure, template, difference and
pixels with a source."""


@single_threaded_algebra()
def make_product(
    solution: Solution,
    science: Exposure,
    template: Exposure,
    *,
    preconvolved_science: Exposure | None = None,
    search: BackgroundSearch | None = None,
    sources: Array | None = None,
    correct: Correct | None = None,
) -> Product:
    """Subtract two exposures as a solution says, and make the noise of the result white.

    Parameters
    ----------
    solution
        `Solution`.
    science, template
        Exposures on the same pixels, their variance planes multiplied by the factors.
    preconvolved_science
        Pre-convolved science exposure of a score, if it exists already.
    search
        How the solution's background is improved; None to take it as it is.
    sources
        ``(ny, nx)`` boolean: pixels with a source, for local mean variances and noise
        covariances; found if not given.
    correct
        Function used in place of `corrected`.

    Returns
    -------
    product
        `Product`.

    Raises
    ------
    DataError
        If the solution's recipe has steps of another program, and ``correct`` is not given.

    Notes
    -----
    The flux at a pixel is S over the score of a point source of unit flux there, the value at
    the centre of P ⊗ reflected p ⊗ correction.  For p = P this is ``S · (ŝ + t̂·kSum²)/V`` with
    V the mean variance of S (DMTN-179); the variance *plane* in its place would bias bright
    sources, whose own photons are in it.
    """
    recipe = solution.recipe
    if correct is None and recipe.foreign is not None:
        raise DataError.of(
            science.source or "The science exposure",
            f"its product was made with"
            f" {recipe.foreign}, which is not part of whitediff; make it anew as it was made then.",
        )
    if solution.photon_factor:
        science = _with_light(solution, science, template)
    before, solution = subtracted(
        solution, science, template, preconvolved_science=preconvolved_science, search=search
    )
    if recipe.subtract_background:
        subtract_background(before.data, solution.background, before.bbox)
        if not isinstance(solution.background, float | int):
            before.background = solution.background
    return completed_product(solution, science, template, before, sources, correct=correct)


def completed_product(
    solution: Solution,
    science: Exposure,
    template: Exposure,
    difference: Exposure,
    sources: Array | None = None,
    *,
    correct: Correct | None = None,
) -> Product:
    """Make the noise of a difference or score white, and complete the product.

    Parameters
    ----------
    solution, science, template, sources, correct
        As for `make_product`.
    difference
        Uncorrected difference or score of the exposures.

    Returns
    -------
    product
        `Product`.
    """
    result = (correct or corrected)(solution, science, template, difference, sources)
    exposure = difference if result is None else result.exposure
    if exposure.background is None:
        exposure.background = difference.background
    flux, flux_variance = (None, None) if result is None else fluxes(result)
    if solution.kernel_error is not None:
        exposure = exposure.replaced(
            variance=exposure.variance + kernel_variance(solution.kernel_error, template)
        )
    if result is not None and solution.preconvolution_kernel is None:
        exposure = with_trails(exposure, solution.recipe.preparation.defects)
    return Product(
        exposure=exposure,
        decorrelation=result,
        solution=solution.completed(result),
        flux=flux,
        flux_variance=flux_variance,
        psf_before=difference.psf,
    )


def corrected(
    solution: Solution,
    science: Exposure,
    template: Exposure,
    difference: Exposure,
    sources: Array | None = None,
) -> Decorrelation | None:
    """Make the noise of a difference or score white, as a solution says.

    Parameters
    ----------
    solution
        `Solution`.
    science, template
        Exposures, their variance planes multiplied by the factors.
    difference
        Uncorrected difference or score of them.
    sources
        ``(ny, nx)`` boolean: pixels with a source; found if not given.

    Returns
    -------
    result
        `Decorrelation`; None if the recipe has no correction.
    """
    recipe, noises = solution.recipe, solution.noises
    if not recipe.decorrelate:
        return None
    correction = recipe.correction
    if noises is not None:
        correction = dataclasses.replace(correction, noise="white")
    options = DecorrelationOptions.of(
        correction,
        convolved=solution.convolved,
        score=solution.preconvolution_kernel is not None,
        scale_factor=solution.scale_factor,
        # The difference was just made: no need to test whether it is white already.
        again=True,
    )
    if recipe.cells is not None:
        return decorrelate_cells(
            science,
            template,
            difference,
            recipe.cells,
            preconvolution_kernel=solution.preconvolution_kernel,
            noises=noises,
            sources=sources,
            options=options,
        )
    known = (None, None) if noises is None else noises
    return decorrelate(
        science,
        template,
        difference,
        solution.kernel,
        preconvolution_kernel=solution.preconvolution_kernel,
        noise=InputNoise(
            science_variance=solution.science_variance,
            template_variance=solution.template_variance,
            science_covariance=known[0],
            template_covariance=known[1],
        ),
        sources=sources,
        options=options,
    )


def _with_light(solution: Solution, science: Exposure, template: Exposure) -> Exposure:
    """Science exposure whose variance has the photon noise of the template's light."""
    missing = missing_pixels(template)
    matched = convolved_exposure(without_missing(template, missing), solution.kernel)
    light = matched.data - np.median(matched.data[~missing])
    variance = science.variance
    added = solution.photon_factor * np.maximum(light, 0)
    return science.replaced(variance=variance + added.astype(variance.dtype))


def kernel_variance(error: KernelError, template: Exposure) -> Array:
    """Variance that a kernel's error adds to a difference.

    Parameters
    ----------
    error
        Error of the kernel.
    template
        Template that the kernel convolved.

    Returns
    -------
    variance
        ``(ny, nx)`` float32, image_unit²: `KernelError.point_variance`.
    """
    whole = without_missing(template, missing_pixels(template))
    return error.point_variance(whole.data.astype(np.float64)).astype(np.float32)


def subtracted(
    solution: Solution,
    science: Exposure,
    template: Exposure,
    *,
    preconvolved_science: Exposure | None = None,
    search: BackgroundSearch | None = None,
) -> tuple[Exposure, Solution]:
    """Subtract two exposures as a solution says, without the differential background.

    Parameters
    ----------
    solution, science, template, preconvolved_science, search
        As for `make_product`.

    Returns
    -------
    difference, solution
        Difference or score before any correction, with its background; the solution with the
        background that was found.
    """
    if solution.box is not None and solution.box != science.bbox:
        raise ArgumentError.of(
            science.source or "The science exposure",
            f"its box {science.bbox} is not that of the"
            f" stored solution, {solution.box}; kernel and background belong to those pixels.",
        )
    kernel = solution.preconvolution_kernel
    unconvolved = science if solution.convolved == "template" else template
    # A stored solution keeps its PSF, so that the product is the same even if it was measured.
    if solution.psf is not None and unconvolved.psf is not solution.psf:
        unconvolved = unconvolved.replaced()
        unconvolved.psf = solution.psf
    if kernel is not None:
        if preconvolved_science is None:
            preconvolved_science = preconvolved(unconvolved, kernel)
        target = preconvolved_science
    else:
        target = unconvolved
    pair = (target, template) if solution.convolved == "template" else (science, target)
    before = subtract(
        *pair,
        solution.kernel,
        convolved=solution.convolved,
        scale_factor=solution.scale_factor,
        full_variance=False,
    )
    before.is_score = kernel is not None
    if search is not None and isinstance(solution.background, ChebyshevField):
        found = search.better(before, solution.background)
        solution = dataclasses.replace(solution, background=found)
    return before, solution


def fluxes(result: Decorrelation) -> tuple[Array | None, Array | None]:
    """Fluxes of point sources from a score.

    Parameters
    ----------
    result
        A decorrelated score.

    Returns
    -------
    flux, variance
        ``(ny, nx)``, image_unit and its square; see `make_product`.  None for a difference, or if
        no PSF is known.
    """
    if result.response is None:
        return None, None
    box = result.exposure.bbox
    flux = copied(result.exposure.data)
    variance = copied(result.exposure.variance)
    for rows in row_blocks(box.shape):
        response = result.response(box.part(rows))
        flux[rows] /= response
        variance[rows] /= response**2
    return flux, variance


def _scale_factor(pair: Pair, match: Match) -> float:
    """Photometric scale of the convolved science exposure over the kernel's sum.

    The kernel's sum lacks the light of wings beyond its square.  Measured wings give one estimate,
    the PSFs another; the mean is weighted by their errors.
    """
    whole = match.with_wings
    by_sum = whole.value / match.fit.kernel_sum
    psf = pair.science.psf
    if pair.template.psf is None:
        return by_sum
    if psf is None:
        try:
            psf = measured_psf(pair.science, pair, pair.science_sigma)
        except DataError:
            return by_sum
    by_psfs = photometric_scale_factor(psf, pair.template.psf, match.kernel, pair.science.bbox)
    of_psfs = Light.of(psf).error ** 2 + Light.of(pair.template.psf).error ** 2
    of_sum = (whole.error / whole.value) ** 2
    trust = 1.0 if of_psfs == 0 else of_sum / (of_sum + of_psfs)
    return by_sum + trust * (by_psfs - by_sum)
