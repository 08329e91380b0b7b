"""What a difference or score is made with, and making it: the first time, and again."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from astropy.table import Table
from lsst.images import Box
from lsst.images.convolution_kernels import ConvolutionKernel
from lsst.images.fields import BaseField, ChebyshevField

from ..errors import ArgumentError, DataError
from ..matching.stamp import KernelError
from ..planes import copied, row_blocks
from ..registration.transformation import Correction
from ..threads import single_threaded_algebra
from .background import BackgroundSearch
from .covariance import Noise
from .decorrelation import Decorrelation, DecorrelationOptions, decorrelate
from .defects import DefectOptions, with_trails
from .fields import rows_of
from .matching import Match
from .missing import missing_pixels, without_missing
from .model import Exposure
from .preparation import Pair, measured_psf
from .psf import KernelPointSpreadFunction, Light, as_kernel_psf
from .subtraction import (
    convolved_exposure,
    photometric_scale_factor,
    preconvolved,
    subtract,
    subtract_background,
)

__all__ = [
    "Product",
    "Solution",
    "fluxes",
    "kernel_variance",
    "make_product",
    "pixel_sample",
    "undecorrelated",
]

type Array = npt.NDArray[Any]


_SAMPLED = 500
_SAME_PIXEL, _SAME_PIXELS = 1e-4, 0.7
"""Relative difference of pixels that are the same, and the fraction of such from which an exposure
is the same one."""


def pixel_sample(science: Exposure, template: Exposure) -> Array:
    """Some pixels of two exposures, by which they are known again.

    Parameters
    ----------
    science, template
        Exposures on the same pixels.

    Returns
    -------
    pixels
        ``(2, n)`` float32, evenly spread; NaN where there is no measurement.
    """
    step = max(1, science.image.array.size // _SAMPLED)
    # Coprime to most side lengths, so that the columns differ.
    step += 1 - step % 2
    return np.stack(
        [
            exposure.image.array.ravel()[::step].astype(np.float32)
            for exposure in (science, template)
        ]
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solution:
    """All that it takes to make a difference or score of two exposures.

    Attributes
    ----------
    kernel
        Matching kernel.
    background
        Differential background, image_unit of the science exposure.
    convolved
        Which exposure is convolved.
    scale_factor
        Where the science exposure is convolved: photometric scale over the kernel's sum.
    preconvolution_kernel
        ``(py, px)`` PSF with which the science exposure is correlated; None for a difference.
    science_variance_factor, template_variance_factor
        By which the variance planes are multiplied.
    science_variance, template_variance
        Mean variances that the correction uses, image_unit²; None to measure them.
    spatially_varying
        The correction follows kernel and noise over the field.
    noise
        How the inputs' noise covariances are found, as in `DecorrelationOptions`, where none
        are given.
    fill
        What stands in for pixels without a measurement, as in `DecorrelationOptions`.
    science_noise, template_noise
        Noise covariances of the inputs, the same everywhere or functions of the position; None
        for white, or where they are yet to be measured.
    alignment
        How the template was resampled onto the science exposure's pixels before: `alignment_of` it.
    alignment_noise
        How the template's noise was found for that, on which the variances depend.
    registration
        What the template's stars said of where its pixels lie, beyond its WCS; None for nothing.
    defects
        Which defects were looked for; None for none.
    psf
        PSF of the exposure that is not convolved, before anything was done to it.
    box
        Box of the exposures that it was found for; None where it fits any.
    stars
        `whitediff.exposures.stars.star_table` of the match; None where it is not known.
    kernel_error
        How well the kernel is known, which becomes part of the variance; None where stars told
        so much of it that it does not count.
    photon_factor
        Variance for each unit of light of static sources that the science exposure's plane lacks,
        image_unit.
    pixels
        `pixel_sample` of the exposures that it was found for; None where they are not known.
    """

    kernel: ConvolutionKernel
    background: BaseField | Array | float
    convolved: Literal["template", "science"]
    scale_factor: float = 1.0
    preconvolution_kernel: Array | None = None
    science_variance_factor: float = 1.0
    template_variance_factor: float = 1.0
    science_variance: float | None = None
    template_variance: float | None = None
    spatially_varying: bool = False
    fill: Literal["mean", "interpolate"] = "interpolate"
    noise: Literal["white", "auto", "measured"] = "white"
    science_noise: Noise = None
    template_noise: Noise = None
    psf: KernelPointSpreadFunction | None = None
    alignment: Literal["auto", "interpolating", "adaptive"] | None = None
    alignment_noise: Literal["white", "auto", "measured"] = "white"
    registration: Correction | None = None
    defects: DefectOptions | None = None
    box: Box | None = None
    stars: Table | None = None
    kernel_error: KernelError | None = None
    photon_factor: float = 0.0
    pixels: Array | None = None

    def is_of(self, science: Exposure, template: Exposure) -> bool:
        """Whether it was found for two exposures; true where it does not know.

        Parameters
        ----------
        science, template
            Exposures on the same pixels.

        Returns
        -------
        same
            Most of the sampled pixels are those of before: sources that were injected, and
            rounding, make no other pair.
        """
        if self.pixels is None:
            return True
        found = pixel_sample(science, template)
        if found.shape != self.pixels.shape:
            return False
        alike = np.isclose(found, self.pixels, rtol=_SAME_PIXEL, atol=0, equal_nan=True)
        return bool((alike.mean(axis=1) > _SAME_PIXELS).all())

    @classmethod
    def of(cls, pair: Pair, match: Match, preconvolution_kernel: Array | None = None) -> Solution:
        """Solution of a first match.

        Parameters
        ----------
        pair, match
            What was matched, and how.
        preconvolution_kernel
            If the match was made for a score.

        Returns
        -------
        solution
            Its mean variances are yet to be measured.
        """
        unconvolved = pair.science if match.convolved == "template" else pair.template
        return cls(
            kernel=match.kernel,
            background=match.background,
            scale_factor=1.0 if match.convolved == "template" else _scale_factor(pair, match),
            convolved=match.convolved,
            preconvolution_kernel=preconvolution_kernel,
            box=pair.science.bbox,
            registration=pair.template.registration,
            stars=match.stars,
            pixels=pixel_sample(pair.science, pair.template),
            science_variance_factor=pair.science_variance_factor,
            template_variance_factor=pair.template_variance_factor,
            psf=(
                None
                if unconvolved.psf is None
                else as_kernel_psf(unconvolved.psf, unconvolved.bbox)
            ),
        )

    @classmethod
    def of_kernel(cls, kernel: ConvolutionKernel) -> Solution:
        """Solution of which only the kernel is known.

        Parameters
        ----------
        kernel
            Matching kernel of the template.

        Returns
        -------
        solution
            Without a background; variance planes are taken as they are.
        """
        return cls(kernel=kernel, background=0.0, convolved="template")

    def completed(self, result: Decorrelation | None) -> Solution:
        """Solution with what a decorrelation measured.

        Parameters
        ----------
        result
            The decorrelation; None where there was none.

        Returns
        -------
        solution
            With it the same product is made again, without measuring anything.
        """
        if result is None:
            return self
        return dataclasses.replace(
            self,
            science_variance=result.science_variance,
            template_variance=result.template_variance,
            spatially_varying=result.options.spatially_varying,
            fill=result.options.fill,
            # What was measured is not measured again.
            noise="white",
            science_noise=result.noises[0],
            template_noise=result.noises[1],
        )


@dataclasses.dataclass(frozen=True)
class Product:
    """A decorrelated difference or score.

    Attributes
    ----------
    exposure
        The image S or difference, its variance, mask and PSF.
    decorrelation
        Numbers that describe the correction.
    solution
        What it was made with; made with it again, the product is the same.
    flux, flux_variance
        Of a score whose PSF is known: ``(ny, nx)`` flux of a point source at each pixel and
        its variance, image_unit and its square.
    """

    exposure: Exposure
    decorrelation: Decorrelation
    solution: Solution
    flux: Array | None = None
    flux_variance: Array | None = None


@single_threaded_algebra()
def make_product(
    solution: Solution,
    science: Exposure,
    template: Exposure,
    *,
    preconvolved_science: Exposure | None = None,
    search: BackgroundSearch | None = None,
    sources: Array | None = None,
    full_variance: bool = False,
) -> Product:
    """Subtract two exposures as a solution says, and decorrelate the result.

    Parameters
    ----------
    solution
        `Solution`.
    science, template
        Exposures on the same pixels, their variance planes multiplied by the factors.
    preconvolved_science
        For a score, if it is at hand.
    search
        How the solution's background is made better; None to take it as it is.
    sources
        ``(ny, nx)`` boolean: pixels with a source, for local mean variances and noise
        covariances; found if not given.
    full_variance
        Propagate the variance of every pixel.

    Returns
    -------
    product
        `Product`.

    Notes
    -----
    The flux at a pixel is S over the score of a point source of unit flux there, the value at
    the centre of P ⊗ reflected p ⊗ correction.  For p = P this is ``S · (ŝ + t̂·kSum²)/V`` with
    V the mean variance of S (DMTN-179); the variance *plane* in its place would bias bright
    sources, whose own photons are in it.
    """
    if solution.photon_factor:
        science = _with_light(solution, science, template)
    before, solution = undecorrelated(
        solution, science, template, preconvolved_science=preconvolved_science, search=search
    )
    score = solution.preconvolution_kernel is not None
    result = decorrelate(
        science,
        template,
        before,
        preconvolution_kernel=solution.preconvolution_kernel,
        science_variance=solution.science_variance,
        template_variance=solution.template_variance,
        science_noise=solution.science_noise,
        template_noise=solution.template_noise,
        sources=sources,
        options=DecorrelationOptions(
            convolved=solution.convolved,
            score=score,
            scale_factor=solution.scale_factor,
            # A fitted kernel over a PSF that has no power is noise.
            score_filter="compact",
            full_variance=full_variance,
            spatially_varying=solution.spatially_varying,
            noise=solution.noise,
            fill=solution.fill,
            # It was just subtracted.
            again=True,
        ),
    )
    flux, flux_variance = fluxes(result)
    exposure = result.exposure
    if solution.kernel_error is not None:
        exposure = exposure.replaced(
            variance=exposure.variance.array + kernel_variance(solution.kernel_error, template)
        )
    if solution.defects is not None and not score:
        exposure = with_trails(exposure, solution.defects)
    return Product(
        exposure=exposure,
        decorrelation=result,
        solution=solution.completed(result),
        flux=flux,
        flux_variance=flux_variance,
    )


def _with_light(solution: Solution, science: Exposure, template: Exposure) -> Exposure:
    """Science exposure whose variance has the photon noise of what the template shows."""
    missing = missing_pixels(template)
    matched = convolved_exposure(without_missing(template, missing), solution.kernel)
    light = matched.image.array - np.median(matched.image.array[~missing])
    variance = science.variance.array
    added = solution.photon_factor * np.maximum(light, 0)
    return science.replaced(variance=variance + added.astype(variance.dtype))


def kernel_variance(error: KernelError, template: Exposure) -> Array:
    """Variance plane of a difference by its kernel's error.

    Parameters
    ----------
    error
        Of the kernel.
    template
        Template that was convolved with it.

    Returns
    -------
    variance
        ``(ny, nx)`` float32, image_unit²: `KernelError.point_variance`.
    """
    whole = without_missing(template, missing_pixels(template))
    return error.point_variance(whole.image.array.astype(np.float64)).astype(np.float32)


def undecorrelated(
    solution: Solution,
    science: Exposure,
    template: Exposure,
    *,
    preconvolved_science: Exposure | None = None,
    search: BackgroundSearch | None = None,
    keep_background: bool = False,
) -> tuple[Exposure, Solution]:
    """Subtract two exposures as a solution says.

    Parameters
    ----------
    solution, science, template, preconvolved_science, search
        As for `make_product`.
    keep_background
        Do not subtract the differential background.

    Returns
    -------
    difference, solution
        Difference or score before any decorrelation; the solution with the background that
        was found.
    """
    if solution.box is not None and solution.box != science.bbox:
        raise ArgumentError(
            f"{science.source or 'The science exposure'}: its box {science.bbox} is not that of the"
            f" stored solution, {solution.box}; kernel and background belong to those pixels."
        )
    kernel = solution.preconvolution_kernel
    unconvolved = science if solution.convolved == "template" else template
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
    if keep_background:
        return before, solution
    subtract_background(before.image.array, solution.background, before.bbox)
    if not isinstance(solution.background, float | int):
        before.background = solution.background
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
        ``(ny, nx)``, image_unit and its square; see `make_product`.  None where it is a
        difference, or no PSF is known.
    """
    if result.response is None:
        return None, None
    box = result.exposure.bbox
    flux = copied(result.exposure.image.array)
    variance = copied(result.exposure.variance.array)
    for rows in row_blocks(box.shape):
        response = result.response(rows_of(box, rows))
        flux[rows] /= response
        variance[rows] /= response**2
    return flux, variance


def _scale_factor(pair: Pair, match: Match) -> float:
    """Photometric scale of the convolved science exposure over the kernel's sum.

    The sum lacks what wings beyond the kernel's square hold.  These are measured, and the PSFs tell
    of them too; both count for what they are worth.
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
