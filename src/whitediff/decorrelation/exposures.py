"""Decorrelating a difference or score of exposures."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..direction import Direction
from ..errors import ArgumentError, DataError, WhitediffError
from ..exposures import foreign, masks
from ..exposures.boxes import Box
from ..exposures.covariance import Noise, noise_at
from ..exposures.kernels import ConvolutionKernel, constant_kernel
from ..exposures.masks import Mask
from ..exposures.missing import missing_pixels
from ..exposures.model import Exposure, Provenance
from ..exposures.psf import KernelPointSpreadFunction, PointSpreadFunction, as_kernel_psf
from ..noise.exposures import InputNoise, source_pixels
from ..numerics.covariance import NoiseCovariance
from ..numerics.distrust import (
    CONTAMINATION_THRESHOLD,
    absolute_weight,
    distrusted_by_value,
    distrusted_pixels,
)
from ..numerics.missing import smallest_sigma, unmeasured_pixels
from ..numerics.stats import clipped_mean, robust_sigma
from ..numerics.threads import side_by_side, single_threaded_algebra
from .correction import (
    PRECISION,
    Correction,
    checked_kernel,
    contaminated_pixels,
    mirrored_variance,
    pixel_kernel,
)
from .filters import Filters
from .frame import FrameCorrection
from .own_photons import own_variances
from .repeated_noise import excess_variance
from .varying import (
    SPATIAL_PRECISION,
    LocalCorrection,
    LocalFilters,
    LocalNoise,
    local_correction,
    local_noise,
)

__all__ = [
    "CorrectionOptions",
    "Decorrelation",
    "DecorrelationOptions",
    "check_defined",
    "decorrelate",
    "has_finite",
    "image_of_kernel",
    "known_constant",
    "named",
    "pixels_to_distrust",
    "refuse_decorrelated",
    "refuse_white",
    "typical_variance",
    "untouched",
    "usable_variance",
    "variance_mean",
]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.decorrelate")

_NOISY_SCORE_FILTER = 3
"""Absolute weight of a score filter, over that of its part on the sky, to warn of."""
_ENOUGH_PIXELS = 1_000_000
_CLIPPED, _FEWEST_PAIRS = 3.0, 2000
_LEAST_MIRRORED = 2e-3
"""Relative change of the variance near an edge that is worth telling."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorrectionOptions:
    """How the noise of a difference is made white, whatever was subtracted from what.

    Attributes
    ----------
    noise
        ``white``: as documented, inputs without a given covariance are white.  ``measured``:
        their covariance is measured on source-free pixels.  ``auto``: that is used where it
        says with significance that an input is not white.
    spatially_varying
        The correction follows the kernel and the ratio of the local mean variances over the
        field; else both are taken at one place, as documented.  A score's filter is then the
        compact one.
    fill
        What stands in for pixels without a measurement while their neighbours are filtered.
        ``mean``: the mean of the image, and zero outside the frame, as documented.
        ``interpolate``: what their neighbours say, and outside the frame its mirror image.
    full_variance
        Propagate each pixel's variance, instead of assuming it locally constant.
    score_filter
        ``documented``: the formula as it stands.  ``compact``: without the frequencies at
        which the pre-convolution kernel has less than 0.01 of its amplitude, and cut off
        at 3.5 FWHM, `whitediff.decorrelation.score_correction`: for fitted kernels, whose
        noise would carry edges and bad pixels over the whole frame.
    ignore_mask_planes
        Pixels with any of these are left out of the mean variances.
    required_mask_planes
        Those of them that must exist in one of the masks; the others may be missing.
    untrusted_mask_planes
        Planes of the difference whose pixels hold no measurement; with non-finite
        and outside pixels they contaminate their neighbours.
    tolerance
        With ``spatially_varying``: largest error of the compressed correction, in standard
        deviations of a pixel.
    transform
        ``fast``: grids of good lengths, in the image's precision, where these move no
        pixel by more than 1e-3 of its standard deviation.
        ``documented``: the documented grid, in double precision.
    """

    noise: Literal["white", "auto", "measured"] = "white"
    spatially_varying: bool = False
    fill: Literal["mean", "interpolate"] = "interpolate"
    full_variance: bool = False
    score_filter: Literal["documented", "compact"] = "compact"
    ignore_mask_planes: tuple[str, ...] = masks.DEFAULT_IGNORE_MASK_PLANES
    required_mask_planes: tuple[str, ...] = ()
    untrusted_mask_planes: tuple[str, ...] = masks.UNTRUSTED_MASK_PLANES
    tolerance: float = 1e-3
    transform: Literal["fast", "documented"] = "fast"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("transform", self.transform, ("fast", "documented")),
            ("score_filter", self.score_filter, ("documented", "compact")),
            ("fill", self.fill, ("mean", "interpolate")),
            ("noise", self.noise, ("white", "auto", "measured")),
        ):
            if value not in allowed:
                raise ArgumentError(f"{name} must be {' or '.join(allowed)}; got {value!r}.")
        if self.transform == "documented" and (self.spatially_varying or self.fill != "mean"):
            given = ["spatially_varying=True"] if self.spatially_varying else []
            given += [f"fill={self.fill!r}"] if self.fill != "mean" else []
            raise ArgumentError(
                "The documented transform knows no filter that varies over the field and no"
                f" interpolation; got {' and '.join(given)}. Leave this as it is by default, or"
                " transform."
            )
        if not 1e-6 <= self.tolerance <= 0.1:
            raise ArgumentError(f"tolerance must be from 1e-6 to 0.1; got {self.tolerance:g}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecorrelationOptions(CorrectionOptions):
    """How one difference is decorrelated.

    Attributes
    ----------
    convolved
        Which exposure was convolved with the matching kernel.
    score
        The given difference is a score image: its science exposure was correlated with
        the pre-convolution kernel.
    scale_factor
        Where the science exposure was convolved: photometric scale by which the difference was
        divided, over the kernel's sum.
    x, y
        Pixel coordinates at which a varying kernel and PSF are taken; the middle of the box,
        ``x0 + nx/2``, ``y0 + ny/2``, if not given.
    again
        Decorrelate, too, what is white already, as the documented task does; else it is refused.
    """

    convolved: Direction = "template"
    score: bool = False
    scale_factor: float = 1.0
    x: float | None = None
    y: float | None = None
    again: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.convolved not in ("template", "science"):
            raise ArgumentError(f"convolved must be template or science; got {self.convolved!r}.")
        if self.score and self.convolved == "science":
            raise ArgumentError(
                "A score image is defined only where the template was matched: the score"
                " correction with the science exposure convolved has no meaning."
            )

    @classmethod
    def of(cls, correction: CorrectionOptions, **made: Any) -> DecorrelationOptions:
        """Options for a difference that is made in some way.

        Parameters
        ----------
        correction
            How it is corrected.
        **made
            The fields that only this class has.

        Returns
        -------
        options
            Self-validated.
        """
        shared = {
            field.name: getattr(correction, field.name)
            for field in dataclasses.fields(CorrectionOptions)
        }
        return cls(**shared | made)


@dataclasses.dataclass(frozen=True)
class Decorrelation:
    """A decorrelated exposure, and the numbers that describe what was done.

    Attributes
    ----------
    exposure
        The corrected difference or score image.
    options
        How it was made.
    kernel_image
        ``(ky, kx)`` matching kernel at the evaluation position.
    kernel_sum
        Its sum.
    x, y
        Evaluation position, in pixel coordinates.
    grid
        ``(ny, nx)`` of the transform.
    science_variance, template_variance
        Mean variances before any convolution that the correction used, image_unit².
    variance_weights
        Variance of a pixel per unit variance of the unconvolved and the convolved
        exposure, before a division by the squared kernel sum.
    variance_mean_before, variance_mean_after
        Clipped means of the difference's variance plane, image_unit², of a large frame on every
        n-th row; NaN where no pixel was usable.
    contaminated_fraction
        Fraction of the pixels marked CONTAMINATED.
    response
        Of a score whose PSF is known: function of a box that returns the score of a point
        source at its position, per unit of flux, at the box's pixels.
    local
        The correction that varies over the field; None where one is used for all of it.
    science_noise, template_noise
        Noise covariances of the inputs at the evaluation position; None for white.
    noises
        Both as they were used: where they vary, functions of the pixel coordinates.
    flux_error
        Relative error of the flux scale from that of the noise covariances.
    """

    exposure: Exposure
    options: DecorrelationOptions
    kernel_image: Array
    kernel_sum: float
    x: float
    y: float
    grid: tuple[int, int]
    science_variance: float
    template_variance: float
    variance_weights: tuple[float, float]
    variance_mean_before: float
    variance_mean_after: float
    contaminated_fraction: float
    response: Callable[[Box], Array] | None = None
    local: LocalCorrection | None = None
    science_noise: NoiseCovariance | None = None
    template_noise: NoiseCovariance | None = None
    noises: tuple[Noise, Noise] = (None, None)
    flux_error: float = 0.0


def has_finite(image: Array) -> bool:
    """Whether any pixel of an image is finite.

    Parameters
    ----------
    image
        ``(ny, nx)``.

    Returns
    -------
    finite
        True or False.
    """
    return any(bool(np.isfinite(row).any()) for row in image)


def variance_mean(exposure: Exposure, ignore_mask_planes: tuple[str, ...]) -> float:
    """Clipped mean of an exposure's variance plane.

    Parameters
    ----------
    exposure
        Exposure.
    ignore_mask_planes
        Pixels with any of these are left out; planes that the mask lacks are skipped.

    Returns
    -------
    mean
        image_unit²; NaN if no pixel is left.
    """
    good = masks.flagged(exposure.mask, ignore_mask_planes)
    np.logical_not(good, out=good)
    return clipped_mean(exposure.variance, good=good).mean


def typical_variance(exposure: Exposure, ignore_mask_planes: tuple[str, ...]) -> float:
    """`variance_mean` of a million pixels: good enough to tell what was done.

    Parameters
    ----------
    exposure, ignore_mask_planes
        As for `variance_mean`.

    Returns
    -------
    mean
        image_unit²; of every n-th row of a large frame, of all rows of a small one.
    """
    variance = exposure.variance
    rows = slice(None, None, max(1, variance.size // _ENOUGH_PIXELS))
    good = ~masks.flagged(exposure.mask, ignore_mask_planes, rows=rows)
    return clipped_mean(variance[rows], good=good).mean


@dataclasses.dataclass(frozen=True)
class _Job:
    """Exposures on one grid, the kernel between two of them, and how the third is corrected."""

    science: Exposure
    template: Exposure
    difference: Exposure
    kernel: Any
    options: DecorrelationOptions

    def __post_init__(self) -> None:
        _check_boxes(self.science, self.template, self.difference)
        if self.kernel is None:
            raise ArgumentError(
                "No matching kernel: the difference carries none, and none was given."
            )
        for name in ("science", "template", "difference"):
            exposure = getattr(self, name)
            if not has_finite(exposure.data):
                raise fault(
                    DataError,
                    name,
                    exposure,
                    f"image has no finite pixel: all {exposure.data.size} are NaN or infinite.",
                )
        if not self.options.again:
            refuse_decorrelated(self.difference)
        _check_mask_planes(self.options, self.science, self.template)

    @property
    def pair(self) -> tuple[Exposure, Exposure]:
        """The exposure that was not convolved, and the one that was."""
        pair = self.science, self.template
        return pair if self.options.convolved == "template" else pair[::-1]

    @property
    def position(self) -> tuple[float, float]:
        """Pixel coordinates (x, y) at which kernel and PSF are taken."""
        box, x, y = self.difference.bbox, self.options.x, self.options.y
        return (
            box.x.start + box.x.size / 2 if x is None else float(x),
            box.y.start + box.y.size / 2 if y is None else float(y),
        )

    @property
    def missing(self) -> Array | None:
        """``(ny, nx)`` boolean: finite pixels of the difference that are interpolated, too.

        Those that some software interpolated, and of a difference those that the exposure that was
        not convolved lacks.  None where nothing is interpolated.
        """
        if self.options.fill != "interpolate":
            return None
        missing = masks.flagged(self.difference.mask, masks.INTERPOLATED_MASK_PLANES)
        if not self.options.score:
            missing |= missing_pixels(self.pair[0])
        return missing

    def filters(self, preconvolution_kernel: Any, noise: InputNoise) -> Filters:
        """What the correction is made of, as far as it is known before noise is measured."""
        options, psf = self.options, self.difference.psf
        x, y = self.position
        ignore = options.ignore_mask_planes
        filters = Filters(
            kernel_image=image_of_kernel("matching kernel", self.kernel, x, y),
            preconvolution_image=(
                _preconvolution_image(self.science, preconvolution_kernel)
                if options.score
                else None
            ),
            psf_image=None if psf is None else psf.at(x=x, y=y),
            science_variance=usable_variance(
                "science", self.science, noise.science_variance, ignore
            ),
            template_variance=usable_variance(
                "template", self.template, noise.template_variance, ignore
            ),
            template_matched=options.convolved == "template",
            compact_score=options.score_filter == "compact" or options.spatially_varying,
        )
        filters.check(self.difference.shape)
        return filters


@single_threaded_algebra()
def decorrelate(
    science: Any,
    template: Any,
    difference: Any,
    kernel: ConvolutionKernel | PointSpreadFunction | Array | None = None,
    *,
    preconvolution_kernel: ConvolutionKernel | PointSpreadFunction | Array | None = None,
    noise: InputNoise | None = None,
    sources: Array | None = None,
    options: DecorrelationOptions | None = None,
) -> Decorrelation:
    """Whiten the noise of a difference, and give it a variance, mask and PSF to match.

    Parameters
    ----------
    science, template
        The exposures before any convolution, on the same pixels; an `Exposure` or any
        object with image, mask and variance.
    difference
        What was made of them.  Not modified; its variance plane is not used.
    kernel
        Matching kernel; the difference's own if not given.
    preconvolution_kernel
        In score mode, the PSF with which the science image was correlated; the science
        exposure's PSF at its average position if not given.
    noise
        `InputNoise` of science exposure and template, as far as it is known.  With
        ``spatially_varying`` its variances set the level around which the variance planes vary.
    sources
        ``(ny, nx)`` boolean: pixels with a source, which local mean variances leave out.  With
        ``spatially_varying``, found on both inputs if not given.
    options
        `DecorrelationOptions`.

    Returns
    -------
    result
        `Decorrelation`.

    Raises
    ------
    ArgumentError
        If shapes, boxes, kernels or options do not fit together.
    DataError
        If an exposure has no usable pixel, or no positive mean variance; or if the noise of the
        difference is white already, by what made it (`refuse_decorrelated`) or by measurement
        (`refuse_white`).

    Notes
    -----
    LSST's decorrelation afterburner, DMTN-021 and DMTN-179: by default one kernel and one
    noise level for the whole image, both inputs assumed white.  Unlike the reference, every
    non-finite pixel comes back as it was, an exposure without a usable pixel is an
    error, and the pixels that the filter contaminated are marked.
    """
    options = options or DecorrelationOptions()
    if preconvolution_kernel is not None and not options.score:
        raise ArgumentError(
            "A pre-convolution kernel is allowed only in score mode; the difference mode has none."
        )
    science = Exposure.from_object(science)
    template = Exposure.from_object(template)
    difference = Exposure.from_object(difference)
    kernel, preconvolution_kernel = map(foreign.adapted, (kernel, preconvolution_kernel))
    kernel = difference.kernel if kernel is None else kernel
    job = _Job(science, template, difference, kernel, options)
    noise = noise or InputNoise()
    filters = job.filters(preconvolution_kernel, noise)
    box, (x, y) = difference.bbox, job.position
    if options.spatially_varying:
        check_defined(kernel, box, difference)
    if not (options.again or options.score):
        refuse_white(science, template, difference, kernel, convolved=options.convolved, x=x, y=y)
    # Only now: what is wrong with a kernel or a variance need not wait for the sources.
    if sources is None and (options.noise != "white" or options.spatially_varying):
        # Of variances, only the photons of bright ones have to be left out.
        sources = source_pixels(science, template, only_bright=options.noise == "white")
    noise = noise.with_measured(science, template, sources, how=options.noise)
    filters = dataclasses.replace(
        filters,
        science_noise=noise_at(noise.science_covariance, x, y),
        template_noise=noise_at(noise.template_covariance, x, y),
    )
    applied = _correction(job, filters, noise, sources)
    correction = (
        applied.correction if isinstance(applied, FrameCorrection) else filters.small_correction
    )
    variance = applied.variance(*(each.variance for each in job.pair))
    if isinstance(applied, LocalCorrection) and options.fill == "interpolate":
        _mirror(variance, correction, filters)
        if options.score:
            _add_repeated_noise(variance, filters, science, template)
    sigma, missing = smallest_sigma(variance), job.missing
    untrusted, mask = pixels_to_distrust(difference, sigma, options.untrusted_mask_planes)

    def filtered() -> Array:
        if isinstance(applied, FrameCorrection):
            return applied.image(difference.data, sigma)
        return applied.image(difference.data, sigma, fill=options.fill, missing=missing)

    def contamination() -> Array:
        if isinstance(applied, FrameCorrection):
            return _contaminated(correction, untrusted, filters)
        if missing is None:
            return contaminated_pixels(applied.kernel, untrusted)
        return _contaminated_by_missing(
            applied.kernel, difference, untrusted, missing, sigma, filters.preconvolution_image
        )

    image, contaminated = side_by_side(filtered, contamination, pixels=difference.data.size)
    psf, response = _psf_and_response(job, filters, correction, applied)
    exposure = Exposure(
        image,
        variance,
        masks.with_plane(mask, masks.CONTAMINATED, contaminated),
        origin=box.start,
        unit=difference.unit,
        psf=psf,
        header=difference.header.copy(),
        provenance=Provenance(
            primary_header=difference.primary_header.copy(),
            kernel=(
                kernel
                if isinstance(kernel, ConvolutionKernel)
                else constant_kernel(filters.kernel_image, box)
            ),
            background=difference.background,
            is_score=options.score,
            decorrelated_by="decorrelate",
        ),
    )
    ignore = options.ignore_mask_planes
    return Decorrelation(
        exposure=exposure,
        options=options,
        kernel_image=filters.kernel_image,
        kernel_sum=correction.kernel_sum,
        x=x,
        y=y,
        grid=correction.shape,
        science_variance=filters.science_variance,
        template_variance=filters.template_variance,
        variance_weights=correction.variance_weights,
        variance_mean_before=typical_variance(difference, ignore),
        variance_mean_after=typical_variance(exposure, ignore),
        contaminated_fraction=float(contaminated.mean()),
        response=response,
        local=applied if isinstance(applied, LocalCorrection) and applied.varies else None,
        science_noise=filters.science_noise,
        template_noise=filters.template_noise,
        noises=noise.covariances,
        flux_error=filters.flux_error,
    )


def refuse_decorrelated(difference: Exposure) -> None:
    """Refuse a difference that whitediff decorrelated.

    Parameters
    ----------
    difference
        Difference or score.

    Raises
    ------
    DataError
        If it says so.
    """
    task = difference.decorrelated_by
    if task is not None:
        raise DataError.of(
            difference.source or "The difference",
            f"whitediff {task} decorrelated it, so its"
            " noise is white already; use it as it is, or give the difference from before.",
        )


def refuse_white(
    science: Exposure,
    template: Exposure,
    difference: Exposure,
    kernel: ConvolutionKernel | PointSpreadFunction | Array,
    *,
    convolved: Direction = "template",
    x: float | None = None,
    y: float | None = None,
) -> None:
    """Refuse a difference whose noise is white already.

    Parameters
    ----------
    science, template, difference, kernel
        As for `decorrelate`.
    convolved, x, y
        As for `DecorrelationOptions`.

    Raises
    ------
    DataError
        If neighbouring pixels of the difference are correlated by less than half of what the
        convolution of one exposure makes, and by five of their errors.

    Notes
    -----
    Pixels beyond 3 standard deviations, and so most of what is left of sources, do not count.
    Where the convolution hardly correlates pixels, nothing is refused.
    """
    box = difference.bbox
    x, y = (box.x.center if x is None else x), (box.y.center if y is None else y)
    image = image_of_kernel("matching kernel", kernel, x, y)
    variances = [
        variance_mean(exposure, masks.DEFAULT_IGNORE_MASK_PLANES)
        for exposure in ((science, template) if convolved == "template" else (template, science))
    ]
    norm = float((image**2).sum())
    neighbours = (image[1:] * image[:-1]).sum() + (image[:, 1:] * image[:, :-1]).sum()
    total = variances[0] + variances[1] * norm
    expected = variances[1] * float(neighbours) / 2 / total
    pixels = difference.data
    use = np.isfinite(pixels) & ~masks.flagged(
        difference.mask, (*masks.UNTRUSTED_MASK_PLANES, masks.SOURCE)
    )
    if not use.any() or not (math.isfinite(expected) and min(variances) > 0):
        return
    left = np.where(use, pixels - np.median(pixels[use]), 0).astype(np.float64)
    sigma = robust_sigma(left[use])
    use &= np.abs(left) < _CLIPPED * sigma
    left[~use] = 0
    pairs = int((use[1:] & use[:-1]).sum() + (use[:, 1:] & use[:, :-1]).sum())
    if pairs < _FEWEST_PAIRS:
        return
    sums = float((left[1:] * left[:-1]).sum() + (left[:, 1:] * left[:, :-1]).sum())
    found = sums / pairs / float((left[use] ** 2).mean())
    error = 1 / math.sqrt(pairs)
    if expected > 10 * error and found < expected / 2 - 5 * error:
        raise DataError.of(
            named("difference", difference),
            f"neighbouring pixels are correlated by"
            f" {found:.3f} ± {error:.3f}, and a difference that was not decorrelated would have"
            f" {expected:.3f}: its noise is white already, or it was made with another kernel;"
            " give the difference as it was subtracted.",
        )


def _correction(
    job: _Job, filters: Filters, known: InputNoise, sources: Array | None
) -> FrameCorrection | LocalCorrection:
    """Correction by its pixels; by transforms of the frame where documented or not compact."""
    options, difference, kernel = job.options, job.difference, job.kernel
    total = float(filters.kernel_image.sum()) * options.scale_factor
    scale = 1.0 if filters.template_matched else 1 / total**2
    # A score is divided by that of a point source, which follows the PSF too.
    response = options.score and difference.psf is not None
    psf = as_kernel_psf(difference.psf, difference.bbox) if response else None
    noise, at = None, _Places(filters, psf)
    if options.spatially_varying:
        noise = _noise_over_field(job, filters, known, sources)
        at = dataclasses.replace(at, kernel=kernel, noises=known.covariances)
    varies = noise is not None or (options.spatially_varying and at.moves)
    if not varies and options.fill != "interpolate":
        frame = filters.on_frame(difference.data, transform=options.transform)
        if frame is not None:
            return FrameCorrection(
                frame,
                filters,
                difference.bbox,
                scale=scale,
                full_variance=options.full_variance,
                transform=options.transform,
            )

    def scale_at(x: float, y: float) -> float:
        if filters.template_matched:
            return 1.0
        return (float(at(x, y).kernel_image.sum()) * options.scale_factor) ** 2

    return local_correction(
        LocalFilters(at, scale_at, moves=at.moves),
        box=difference.bbox,
        image=difference.data,
        noise=noise,
        full_variance=options.full_variance,
        response=response,
        tolerance=options.tolerance,
        precision=SPATIAL_PRECISION if options.spatially_varying else PRECISION,
    )


@dataclasses.dataclass(frozen=True)
class _Places:
    """Filters at each place of a frame."""

    filters: Filters
    psf: KernelPointSpreadFunction | None
    """The PSF of a score, which its values at point sources follow."""
    kernel: Any = None
    """Matching kernel; None for the filters' own, everywhere."""
    noises: tuple[Noise, Noise] | None = None
    """Covariances of science exposure and template; None for the filters' own, everywhere."""

    @property
    def moves(self) -> bool:
        """Whether anything depends on the place."""
        kernel = self.kernel
        is_image = not isinstance(kernel, ConvolutionKernel | PointSpreadFunction)
        return (
            not (is_image or known_constant(kernel))
            or any(callable(each) for each in self.noises or ())
            or (self.psf is not None and not self.psf.kernel.is_constant)
        )

    def __call__(self, x: float, y: float) -> Filters:
        changes: dict[str, Any] = {"psf_image": None if self.psf is None else self.psf.at(x=x, y=y)}
        if self.kernel is not None:
            changes["kernel_image"] = image_of_kernel("matching kernel", self.kernel, x, y)
        if self.noises is not None:
            changes["science_noise"] = noise_at(self.noises[0], x, y)
            changes["template_noise"] = noise_at(self.noises[1], x, y)
        return dataclasses.replace(self.filters, **changes)


def _noise_over_field(
    job: _Job, filters: Filters, known: InputNoise, sources: Array | None
) -> LocalNoise | None:
    """Variance ratio over the field; None where it is the same everywhere."""
    ignore = job.options.ignore_mask_planes
    level = 0.0
    for exposure, value, sign in (
        (job.science, known.science_variance, -1),
        (job.template, known.template_variance, 1),
    ):
        if value is not None:
            level += sign * math.log(value / variance_mean(exposure, ignore))
    noise = local_noise(
        *job.pair,
        ignore_mask_planes=ignore,
        sources=sources,
        level=level if filters.template_matched else -level,
    )
    return None if noise.is_constant else noise


def known_constant(kernel: ConvolutionKernel | PointSpreadFunction) -> bool:
    """Whether a matching kernel is known to be the same everywhere.

    Parameters
    ----------
    kernel
        Kernel or PSF.

    Returns
    -------
    constant
        False for what is not made of basis images.
    """
    if isinstance(kernel, KernelPointSpreadFunction):
        kernel = kernel.kernel
    return isinstance(kernel, ConvolutionKernel) and kernel.is_constant


def check_defined(kernel: Any, box: Box, difference: Exposure) -> None:
    """Refuse a kernel that is not defined on all of an image.

    Parameters
    ----------
    kernel
        Kernel, PSF or image; the last is defined everywhere.
    box
        Box of the image.
    difference
        The image, for the error message.

    Raises
    ------
    ArgumentError
        If the kernel's bounds do not contain the box.
    """
    if not isinstance(kernel, ConvolutionKernel | PointSpreadFunction):
        return
    defined = kernel.bounds
    if not defined.contains(box):
        raise fault(
            ArgumentError,
            "difference",
            difference,
            f"covers {box}, but its matching kernel is defined"
            f" on {defined} only; a correction that varies over the field needs it everywhere. Give"
            " a kernel for the whole image, or take it at one place (spatially_varying=False).",
        )


def pixels_to_distrust(
    difference: Exposure, sigma: float | None, mask_planes: tuple[str, ...]
) -> tuple[Array, Mask]:
    """Pixels of a difference that hold no measurement, for what the filter makes of them.

    Parameters
    ----------
    difference
        Exposure.
    sigma
        Smallest standard deviation of a pixel, image_unit.
    mask_planes
        Planes whose pixels hold none.

    Returns
    -------
    untrusted
        ``(ny, nx)`` boolean; of finite pixels beyond 1e11 sigma a warning tells.
    mask
        The difference's, with NO_DATA set at the latter.
    """
    untrusted, mask = masks.flagged(difference.mask, mask_planes), difference.mask
    unmeasured = unmeasured_pixels(difference.data, sigma)
    if unmeasured is None:
        return untrusted, mask
    values = difference.data[unmeasured]
    absurd = values[np.isfinite(values)]
    if absurd.size:
        _log.warning(
            "%s has %d pixels beyond 1e11 sigma, such as %g; they are taken as missing.",
            named("difference", difference),
            absurd.size,
            float(absurd[0]),
        )
        mask = masks.with_plane(mask, "NO_DATA", unmeasured & np.isfinite(difference.data))
    return np.logical_or(untrusted, unmeasured, out=untrusted), mask


def _mirror(variance: Array, correction: Correction, filters: Filters) -> None:
    """Give the pixels near the edges, in place, the variance that the mirror image makes."""
    rows, columns = mirrored_variance(correction, filters.means, variance.shape)
    for axis, factor in enumerate((rows, columns)):
        near = np.flatnonzero(np.abs(factor - 1) > _LEAST_MIRRORED)
        if axis == 0:
            variance[near] *= factor[near, None]
        else:
            variance[:, near] *= factor[near]


def _add_repeated_noise(
    variance: Array, filters: Filters, science: Exposure, template: Exposure
) -> None:
    """Give the pixels of a score beside missing ones, in place, the noise that these repeat."""
    totals = filters.total_kernels(variance.shape)
    if totals is None:
        return
    for exposure, total in zip((science, template), totals, strict=True):
        missing = missing_pixels(exposure)
        if missing.any():
            variance += excess_variance(total, exposure.variance, missing)


def _contaminated_by_missing(
    kernel: Array,
    difference: Exposure,
    untrusted: Array,
    missing: Array,
    sigma: float | None,
    preconvolution: Array | None,
) -> Array:
    """Contaminated pixels where missing ones were interpolated, which costs less."""
    lost = untrusted & ~missing
    contaminated = contaminated_pixels(kernel, lost)
    if sigma and lost.any():
        # Of a saturated star that the images do not share, a hundredth is no little.
        contaminated |= distrusted_by_value(
            kernel, difference.data, lost, sigma=sigma, spread=preconvolution
        )
    if missing.any():
        # The difference is about as noisy before as after.
        noise = sigma or 0.0
        contaminated |= distrusted_pixels(
            kernel, difference.data, missing, noise=noise, sigma=noise
        )
    return contaminated


def _contaminated(correction: Correction, untrusted: Array, filters: Filters) -> Array:
    """Contaminated pixels of a frame that was transformed as a whole."""
    kernel = pixel_kernel(correction.correction_ft, shape=correction.shape, dtype=np.float32)
    if filters.preconvolution_image is None or filters.compact_score:
        return contaminated_pixels(kernel, untrusted)
    # Where pre-convolution removed everything, a score correction is noise that reaches
    # over the whole frame.  Weighed with it, the outside would contaminate every pixel; so
    # the filter counts as far as it acts on the sky, and all of it on what was filled.
    sky_kernel = filters.sky_kernel(correction.shape)
    total = float(np.abs(sky_kernel).sum())
    if float(np.abs(kernel).sum()) > _NOISY_SCORE_FILTER * total:
        _log.warning(
            "The stamps of PSF and matching kernel cut their wings, so the score correction is"
            " noise where the PSF has no power, and carries edges and bad pixels over the whole"
            " frame; larger stamps cure that."
        )
    contaminated = contaminated_pixels(sky_kernel, untrusted)
    if untrusted.any():
        contaminated |= absolute_weight(kernel, untrusted) > CONTAMINATION_THRESHOLD * total
    return contaminated


def _psf_and_response(
    job: _Job,
    filters: Filters,
    correction: Correction,
    applied: FrameCorrection | LocalCorrection,
) -> tuple[KernelPointSpreadFunction | None, Callable[[Box], Array] | None]:
    """PSF after the correction, and of a score the response to a point source."""
    options, box = job.options, job.difference.bbox
    if job.difference.psf is None:
        return None, None
    psf = as_kernel_psf(job.difference.psf, box)
    corrected = applied.psf(psf)
    if options.score:
        if isinstance(applied, FrameCorrection):
            return corrected, applied.response(psf).on
        return corrected, applied.response
    level = 1.0 if filters.template_matched else correction.kernel_sum * options.scale_factor
    own = own_variances(
        filters,
        job.science,
        job.template,
        corrected.at(x=box.x.center, y=box.y.center),
        scale=level**-2,
        full_variance=options.full_variance,
    )
    light = dataclasses.replace(corrected.light, own_variances=own)
    return corrected.with_light(light), None


def named(role: str, exposure: Exposure) -> str:
    """Begin a sentence about an exposure, with its file where it has one.

    Parameters
    ----------
    role
        What the exposure is called.
    exposure
        Exposure.

    Returns
    -------
    text
        Such as ``FILE: the template``.
    """
    return f"The {role}" if exposure.source is None else f"{exposure.source}: the {role}"


def fault[E: WhitediffError](kind: type[E], role: str, exposure: Exposure, text: str) -> E:
    """Error of an exposure, with its file where it has one.

    Parameters
    ----------
    kind
        Class of the error.
    role
        Part that the exposure has, such as ``template``.
    exposure
        Exposure.
    text
        What is wrong with it.

    Returns
    -------
    error
        To be raised.
    """
    if exposure.source is None:
        return kind(f"The {role} {text}")
    return kind.of(exposure.source, f"the {role} {text}")


def _check_boxes(science: Exposure, template: Exposure, difference: Exposure) -> None:
    for name, exposure in (("template", template), ("difference", difference)):
        if exposure.shape != science.shape:
            raise fault(
                ArgumentError,
                name,
                exposure,
                f"has {exposure.shape[0]} x {exposure.shape[1]} pixels,"
                f" but the science image {science.shape[0]} x {science.shape[1]}; all three must"
                " share one grid (whitediff align brings a template to it).",
            )
        if exposure.bbox != science.bbox:
            raise fault(
                ArgumentError,
                name,
                exposure,
                f"starts at (y, x) = {exposure.origin}, but the science"
                f" image at {science.origin}; all three must share one grid.",
            )


def _check_mask_planes(
    options: DecorrelationOptions, science: Exposure, template: Exposure
) -> None:
    for name in options.required_mask_planes:
        if all(masks.find_plane(e.mask, name) is None for e in (science, template)):
            known = sorted(set(science.mask.names) | set(template.mask.names))
            raise ArgumentError(
                f"No mask plane {name!r} in {science.source or 'the science exposure'} or"
                f" {template.source or 'the template'}; their planes are:"
                f" {', '.join(known) or 'none'}."
            )


def usable_variance(
    name: str, exposure: Exposure, given: float | None, ignore: tuple[str, ...]
) -> float:
    """Mean variance of an exposure, given or from its variance plane.

    Parameters
    ----------
    name
        What the exposure is called.
    exposure
        Exposure.
    given
        Its mean variance, if known, image_unit².
    ignore
        Mask planes whose pixels are left out.

    Returns
    -------
    variance
        image_unit²; positive and finite.

    Raises
    ------
    ArgumentError
        If the given one is not.
    DataError
        If no pixel is usable, or their mean is not positive.
    """
    if given is not None:
        if not (math.isfinite(given) and given > 0):
            raise ArgumentError(f"The {name} variance must be positive and finite; got {given:g}.")
        return float(given)
    mean = variance_mean(exposure, ignore)
    if math.isnan(mean):
        masked = masks.flagged(exposure.mask, ignore)
        raise fault(
            DataError,
            name,
            exposure,
            f"exposure has no usable pixel: of {masked.size},"
            f" {int(masked.sum())} are masked ({', '.join(ignore)}) and the variance of the"
            " others is not finite;"
            " ignore fewer mask planes or give its mean variance.",
        )
    if not mean > 0:
        raise fault(
            DataError,
            name,
            exposure,
            f"exposure's mean variance must be positive; got {mean:g}."
            " Is its variance plane filled, or should its mean variance be given?",
        )
    return mean


def image_of_kernel(name: str, kernel: Any, x: float, y: float) -> Array:
    """Image of a matching kernel at a position.

    Parameters
    ----------
    name
        What it is called.
    kernel
        Kernel, PSF, or an image ``(ky, kx)``.
    x, y
        Pixel coordinates.

    Returns
    -------
    image
        ``(ky, kx)``, origin at ``[ky//2, kx//2]``.

    Raises
    ------
    ArgumentError
        If it is none of these, or not defined at the position.
    """
    if isinstance(kernel, ConvolutionKernel | PointSpreadFunction):
        defined = kernel.bounds
        # From the outer edge of the first pixel as far as the default position may lie.
        inside = (
            interval.start - 0.5 <= at <= interval.stop
            for at, interval in ((x, defined.x), (y, defined.y))
        )
        if not all(inside):
            raise ArgumentError(
                f"The {name} is wanted at x = {x:g}, y = {y:g}, but it is defined on {defined}"
                " only; take it at another position, or give a kernel for the whole image."
            )
        return kernel.at(x=x, y=y)
    if hasattr(kernel, "bbox") and hasattr(kernel, "array"):
        return foreign.centered_image(kernel)
    try:
        image = np.asarray(kernel, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"The {name} must be a ConvolutionKernel, a PSF or an image; got a"
            f" {type(kernel).__name__}."
        ) from error
    if image.ndim != 2:
        raise ArgumentError(f"The {name} must be a 2-D image; got the shape {image.shape}.")
    return image


def _preconvolution_image(science: Exposure, preconvolution_kernel: Any) -> Array:
    box = science.bbox
    if preconvolution_kernel is not None:
        image, total = checked_kernel(
            "pre-convolution kernel",
            image_of_kernel(
                "pre-convolution kernel", preconvolution_kernel, box.x.center, box.y.center
            ),
        )
        return image / total
    if science.psf is None:
        raise fault(
            ArgumentError,
            "science",
            science,
            "exposure has no PSF to pre-convolve with; score mode"
            " needs it, or a pre-convolution kernel.",
        )
    x, y = science.psf.average_position
    return science.psf.at(x=x, y=y)


def untouched(difference: Any) -> Exposure:
    """Copy of an exposure whose planes can be changed without changing it.

    Parameters
    ----------
    difference
        Exposure.

    Returns
    -------
    copy
        Deep copy of the planes; PSF and kernel, which cannot change, are shared.
    """
    return Exposure.from_object(difference).copy()
