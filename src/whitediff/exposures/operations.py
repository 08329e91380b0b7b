"""What is done with exposures: subtract with a known kernel, and decorrelate."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from lsst.images import Image, MaskedImage
from lsst.images.convolution_kernels import ConvolutionKernel

from .. import decorrelation, fourier
from ..convolution import convolve
from ..errors import ArgumentError, DataError
from ..stats import clipped_mean
from . import kernels, masks
from .model import Exposure
from .psf import KernelPointSpreadFunction, average_position, psf_image

__all__ = [
    "Decorrelation",
    "DecorrelationOptions",
    "decorrelate",
    "subtract",
    "untouched",
    "variance_mean",
]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.decorrelate")

_VARIANCE_RATIO_TO_WARN = 1e8
_PSF_GRID_MARGIN = 4
"""The PSF's grid is this many times its stamp: enough for the filter not to wrap around."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecorrelationOptions:
    """How a difference is decorrelated.

    Attributes
    ----------
    convolved
        Which exposure was convolved with the matching kernel.
    score
        The given difference is a score image: its science exposure was correlated with
        the pre-convolution kernel.
    full_variance
        Propagate each pixel's variance, instead of assuming it locally constant.
    ignore_mask_planes
        Pixels left out of the mean variances.  None: the documented planes, as far as
        the masks have them.  Planes named here must exist in one of the masks.
    untrusted_mask_planes
        Planes of the difference whose pixels hold no measurement; with non-finite
        and outside pixels they contaminate their neighbours.
    transform
        ``fast``: grids of good lengths, in the image's precision where that suffices.
        ``documented``: the documented grid, in double precision.
    """

    convolved: Literal["template", "science"] = "template"
    score: bool = False
    full_variance: bool = False
    ignore_mask_planes: tuple[str, ...] | None = None
    untrusted_mask_planes: tuple[str, ...] = masks.UNTRUSTED_MASK_PLANES
    transform: Literal["fast", "documented"] = "fast"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("convolved", self.convolved, ("template", "science")),
            ("transform", self.transform, ("fast", "documented")),
        ):
            if value not in allowed:
                raise ArgumentError(f"{name} must be {' or '.join(allowed)}; got {value!r}.")
        if self.score and self.convolved == "science":
            raise ArgumentError(
                "A score image is defined only where the template was matched: the score"
                " correction with the science exposure convolved has no meaning."
            )


@dataclasses.dataclass(frozen=True)
class Decorrelation:
    """A decorrelated exposure, and the numbers that describe what was done.

    Attributes
    ----------
    exposure
        The corrected difference or score image.
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
        Clipped means of the difference's variance plane, image_unit²; NaN where no
        pixel was usable.
    contaminated_fraction
        Fraction of the pixels marked CONTAMINATED.
    """

    exposure: Exposure
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
    good = ~masks.flagged(exposure.mask, ignore_mask_planes)
    return clipped_mean(exposure.variance.array, good=good).mean


def decorrelate(
    science: Any,
    template: Any,
    difference: Any,
    kernel: ConvolutionKernel | Array | None = None,
    *,
    preconvolution_kernel: ConvolutionKernel | Array | None = None,
    x: float | None = None,
    y: float | None = None,
    science_variance: float | None = None,
    template_variance: float | None = None,
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
    x, y
        Pixel coordinates at which a varying kernel and PSF are taken; the middle of the
        box, ``x0 + nx/2``, ``y0 + ny/2``, if not given.
    science_variance, template_variance
        Mean variance before any convolution, image_unit²; clipped means of the variance
        planes if not given.
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
        If an exposure has no usable pixel, or no positive mean variance.

    Notes
    -----
    LSST's decorrelation afterburner, DMTN-021 and DMTN-179: one kernel and one noise
    level for the whole image, both inputs assumed white.  Unlike the reference, every
    non-finite pixel comes back as it was, an exposure without a usable pixel is an
    error, and the pixels that the filter contaminated are marked.
    """
    options = options or DecorrelationOptions()
    science = Exposure.from_object(science)
    template = Exposure.from_object(template)
    difference = Exposure.from_object(difference)
    _check_boxes(science, template, difference)
    if preconvolution_kernel is not None and not options.score:
        raise ArgumentError(
            "A pre-convolution kernel is allowed only in score mode; the difference mode has none."
        )
    kernel = difference.kernel if kernel is None else kernel
    if kernel is None:
        raise ArgumentError("No matching kernel: the difference carries none, and none was given.")
    for name, exposure in (
        ("science", science),
        ("template", template),
        ("difference", difference),
    ):
        if not np.isfinite(exposure.image.array).any():
            raise DataError(
                f"{_named(name, exposure)} image has no finite pixel: all"
                f" {exposure.image.array.size} are NaN or infinite."
            )

    box = difference.bbox
    x = box.x.start + box.x.size / 2 if x is None else float(x)
    y = box.y.start + box.y.size / 2 if y is None else float(y)
    ignore = _planes_to_ignore(options, science, template)
    svar = _usable_variance("science", science, science_variance, ignore)
    tvar = _usable_variance("template", template, template_variance, ignore)

    kernel_image = _kernel_image("matching kernel", kernel, x, y)
    preconvolution_image = (
        _preconvolution_image(science, preconvolution_kernel) if options.score else None
    )
    difference_psf = None if difference.psf is None else psf_image(difference.psf, x=x, y=y)
    for name, stamp in (
        ("matching kernel", kernel_image),
        ("pre-convolution kernel", preconvolution_image),
    ):
        if stamp is not None and any(
            k > n for k, n in zip(stamp.shape, difference.shape, strict=True)
        ):
            raise ArgumentError(
                f"The {name} {stamp.shape} is larger than the image {difference.shape}."
            )

    template_matched = options.convolved == "template"
    unconvolved, convolved = (science, template) if template_matched else (template, science)
    unconvolved_mean, convolved_mean = (svar, tvar) if template_matched else (tvar, svar)
    if convolved_mean / unconvolved_mean > _VARIANCE_RATIO_TO_WARN:
        _log.warning(
            "The convolved exposure's mean variance is %g times the other's;"
            " the correction amplifies rounding errors.",
            convolved_mean / unconvolved_mean,
        )

    documented = options.transform == "documented"

    def correction_on(shape: tuple[int, ...], empty_power: float = 0.0) -> decorrelation.Correction:
        grid = (shape[0], shape[1])
        if preconvolution_image is not None:
            return decorrelation.score_correction(
                kernel_image,
                preconvolution_image,
                science_variance=svar,
                template_variance=tvar,
                shape=grid,
                empty_power=empty_power,
            )
        return decorrelation.difference_correction(
            kernel_image,
            unconvolved_variance=unconvolved_mean,
            convolved_variance=convolved_mean,
            shape=grid,
        )

    stamps = [
        s.shape for s in (kernel_image, difference_psf, preconvolution_image) if s is not None
    ]
    make_shape = fourier.common_shape if documented else fourier.fast_shape
    grid = make_shape(*stamps, difference.shape)
    correction = correction_on(grid)

    weights = correction.variance_weights()
    variance = _variance_plane(
        unconvolved,
        convolved,
        correction,
        weights,
        options,
        means=(unconvolved_mean, convolved_mean),
        scale=1.0 if template_matched else 1 / correction.kernel_sum**2,
    )

    image_in = difference.image.array
    image = decorrelation.corrected_image(
        correction.correction_ft,
        image_in.astype(np.float64) if documented else image_in,
        shape=correction.shape,
        sigma=_smallest_sigma(variance),
    ).astype(image_in.dtype if image_in.dtype.kind == "f" else np.float64, copy=False)

    untrusted = masks.flagged(difference.mask, options.untrusted_mask_planes)
    untrusted |= ~np.isfinite(image_in)
    # A score correction has noise where the image has no power; it would mark everything.
    reach = correction_on(grid, decorrelation.EMPTY_POWER) if options.score else correction
    contaminated = decorrelation.contaminated_pixels(
        reach.correction_ft, untrusted, shape=reach.shape
    )

    psf = None
    if difference_psf is not None:
        psf_correction = correction
        if not documented:
            psf_shape = fourier.fast_shape(
                *stamps, tuple(_PSF_GRID_MARGIN * n for n in difference_psf.shape)
            )
            if math.prod(psf_shape) < math.prod(correction.shape):
                psf_correction = correction_on(psf_shape)
        psf = KernelPointSpreadFunction.from_image(
            decorrelation.corrected_psf(
                psf_correction.correction_ft, difference_psf, shape=psf_correction.shape
            ),
            box,
        )

    exposure = Exposure(
        MaskedImage(
            Image(image, bbox=box, unit=difference.image.unit),
            mask=masks.with_plane(difference.mask, masks.CONTAMINATED, contaminated),
            variance=Image(variance, bbox=box),
            sky_projection=difference.sky_projection,
        ),
        psf=psf,
        kernel=(
            kernel
            if isinstance(kernel, ConvolutionKernel)
            else kernels.constant_kernel(np.asarray(kernel), box)
        ),
        background=difference.background,
        header=difference.header.copy(),
        primary_header=difference.primary_header.copy(),
    )
    return Decorrelation(
        exposure=exposure,
        kernel_image=kernel_image,
        kernel_sum=correction.kernel_sum,
        x=x,
        y=y,
        grid=correction.shape,
        science_variance=svar,
        template_variance=tvar,
        variance_weights=weights,
        variance_mean_before=variance_mean(difference, ignore),
        variance_mean_after=variance_mean(exposure, ignore),
        contaminated_fraction=float(contaminated.mean()),
    )


def _named(role: str, exposure: Exposure) -> str:
    """Begin a sentence about an exposure, with its file where it has one."""
    return f"The {role}" if exposure.source is None else f"{exposure.source}: the {role}"


def _check_boxes(science: Exposure, template: Exposure, difference: Exposure) -> None:
    for name, exposure in (("template", template), ("difference", difference)):
        if exposure.shape != science.shape:
            raise ArgumentError(
                f"{_named(name, exposure)} has {exposure.shape[0]} x {exposure.shape[1]} pixels,"
                f" but the science image {science.shape[0]} x {science.shape[1]}; all three must"
                " share one grid."
            )
        if exposure.bbox != science.bbox:
            raise ArgumentError(
                f"{_named(name, exposure)} starts at (y, x) = {exposure.yx0}, but the science"
                f" image at {science.yx0}; all three must share one grid."
            )


def _planes_to_ignore(
    options: DecorrelationOptions, science: Exposure, template: Exposure
) -> tuple[str, ...]:
    if options.ignore_mask_planes is None:
        return masks.DEFAULT_IGNORE_MASK_PLANES
    for name in options.ignore_mask_planes:
        if all(masks.find_plane(e.mask, name) is None for e in (science, template)):
            known = sorted(set(science.mask.schema.names) | set(template.mask.schema.names))
            raise ArgumentError(
                f"No mask plane {name!r} in {science.source or 'the science exposure'} or"
                f" {template.source or 'the template'}; their planes are:"
                f" {', '.join(known) or 'none'}."
            )
    return options.ignore_mask_planes


def _usable_variance(
    name: str, exposure: Exposure, given: float | None, ignore: tuple[str, ...]
) -> float:
    if given is not None:
        if not (math.isfinite(given) and given > 0):
            raise ArgumentError(f"The {name} variance must be positive and finite; got {given:g}.")
        return float(given)
    mean = variance_mean(exposure, ignore)
    if math.isnan(mean):
        masked = masks.flagged(exposure.mask, ignore)
        raise DataError(
            f"{_named(name, exposure)} exposure has no usable pixel: of {masked.size},"
            f" {int(masked.sum())} are masked ({', '.join(ignore)}) and the variance of the"
            " others is not finite;"
            " ignore fewer mask planes or give its mean variance."
        )
    if not mean > 0:
        raise DataError(
            f"{_named(name, exposure)} exposure's mean variance must be positive; got {mean:g}."
            " Is its variance plane filled, or should its mean variance be given?"
        )
    return mean


def _kernel_image(name: str, kernel: ConvolutionKernel | Array, x: float, y: float) -> Array:
    if isinstance(kernel, ConvolutionKernel):
        return kernels.evaluate(kernel, x=x, y=y)
    if isinstance(kernel, Image):
        return kernels.centered_array(kernel.array, kernel.bbox)
    image = np.asarray(kernel, dtype=np.float64)
    if image.ndim != 2:
        raise ArgumentError(f"The {name} must be a 2-D image; got the shape {image.shape}.")
    return image


def _preconvolution_image(
    science: Exposure, preconvolution_kernel: ConvolutionKernel | Array | None
) -> Array:
    if preconvolution_kernel is not None:
        box = science.bbox
        image = _kernel_image(
            "pre-convolution kernel", preconvolution_kernel, box.x.center, box.y.center
        )
        total = float(image.sum())
        if not math.isfinite(total) or total == 0:
            raise ArgumentError(
                f"The pre-convolution kernel sums to {total:g}; it is normalised to 1,"
                " which needs a finite sum other than zero."
            )
        return image / total
    if science.psf is None:
        raise ArgumentError(
            f"{_named('science', science)} exposure has no PSF to pre-convolve with; score mode"
            " needs it, or a pre-convolution kernel."
        )
    x, y = average_position(science.psf)
    return psf_image(science.psf, x=x, y=y)


def _variance_plane(
    unconvolved: Exposure,
    convolved: Exposure,
    correction: decorrelation.Correction,
    weights: tuple[float, float],
    options: DecorrelationOptions,
    *,
    means: tuple[float, float],
    scale: float,
) -> Array:
    """Variance plane times a scale, rounded once to the planes' type."""
    planes = (unconvolved.variance.array, convolved.variance.array)
    dtype = np.result_type(*planes)
    if not options.full_variance:
        scaled = (weights[0] * scale, weights[1] * scale)
        return decorrelation.estimated_variance(*planes, scaled).astype(dtype, copy=False)
    variance = decorrelation.full_variance(
        planes[0].astype(np.float64),
        planes[1].astype(np.float64),
        unconvolved_fill=means[0],
        convolved_fill=means[1],
        unconvolved_ft=correction.unconvolved_ft,
        convolved_ft=correction.convolved_ft,
        shape=correction.shape,
    )
    variance *= scale
    return variance.astype(dtype, copy=False)


def _smallest_sigma(variance: Array) -> float | None:
    positive = variance[np.isfinite(variance) & (variance > 0)]
    return float(np.sqrt(positive.min())) if positive.size else None


def subtract(
    science: Any,
    template: Any,
    kernel: ConvolutionKernel | Array,
    *,
    convolved: Literal["template", "science"] = "template",
    background: Array | float = 0.0,
) -> Exposure:
    """Difference with a known matching kernel, before any decorrelation.

    Parameters
    ----------
    science, template
        Exposures on the same pixels.
    kernel
        Kernel that matches the one that is convolved to the other.
    convolved
        Which exposure to convolve.
    background
        Subtracted from the difference, image_unit.

    Returns
    -------
    difference
        ``science − κ⊗template − background``, or ``(κ⊗science − template −
        background)/kSum``: always science − template, at the science level.  Its variance
        plane is that of its pixels one by one, blind to their correlation.  Where the
        kernel reaches beyond the frame EDGE is set; where it touches pixels without
        data, NO_DATA.

    Notes
    -----
    Alard & Lupton 1998, eq. 1.
    """
    science, template = Exposure.from_object(science), Exposure.from_object(template)
    _check_boxes(science, template, science)
    box = science.bbox
    if not isinstance(kernel, ConvolutionKernel):
        kernel = kernels.constant_kernel(np.asarray(kernel), box)
    source, target = (template, science) if convolved == "template" else (science, template)
    middle = kernels.evaluate(kernel, x=box.x.center, y=box.y.center)
    kernel_sum = float(middle.sum())

    missing = ~np.isfinite(source.image.array)
    filled = np.where(missing, 0, source.image.array)
    matched = _convolve_with(filled, kernel, source)
    touched = missing | (
        convolve(missing.astype(np.float32), np.abs(middle))
        > decorrelation.CONTAMINATION_THRESHOLD * np.abs(middle).sum()
    )
    variance = _convolve_with(
        np.where(np.isfinite(source.variance.array), source.variance.array, 0),
        kernels.constant_kernel(middle**2, box),
        source,
    )
    image = target.image.array - matched - background
    variance = target.variance.array + np.maximum(variance, 0)
    if convolved == "science":
        image, variance = -image / kernel_sum, variance / kernel_sum**2
    image[touched] = np.nan

    names = dict.fromkeys([*science.mask.schema.names, *template.mask.schema.names])
    reach_y, reach_x = (n // 2 for n in middle.shape)
    edge = np.ones(science.shape, dtype=bool)
    edge[reach_y : edge.shape[0] - reach_y, reach_x : edge.shape[1] - reach_x] = False
    planes: dict[str, Array] = {
        name: masks.flagged(target.mask, [name])
        | _spread(masks.flagged(source.mask, [name]), name, middle)
        for name in names
    }
    for name, plane in (("NO_DATA", ~np.isfinite(image)), ("EDGE", edge)):
        planes[name] = planes.get(name, np.zeros_like(plane)) | plane
    # The PSF of the one that was left alone is what the other was matched to.
    return Exposure(
        MaskedImage(
            Image(image.astype(science.image.array.dtype), bbox=box, unit=science.image.unit),
            mask=masks.make_mask(planes, box),
            variance=Image(variance.astype(np.float32), bbox=box),
            sky_projection=science.sky_projection,
        ),
        psf=target.psf,
        kernel=kernel,
        header=science.header.copy(),
        primary_header=science.primary_header.copy(),
    )


def _spread(plane: Array, name: str, kernel_image: Array) -> Array:
    """Grow a plane whose pixels' meaningless values the convolution carried to others."""
    if name not in masks.UNTRUSTED_MASK_PLANES or not plane.any():
        return plane
    weight = convolve(plane.astype(np.float32), np.abs(kernel_image))
    return plane | (weight > decorrelation.CONTAMINATION_THRESHOLD * np.abs(kernel_image).sum())


def _convolve_with(image: Array, kernel: ConvolutionKernel, exposure: Exposure) -> Array:
    if kernels.is_constant(kernel):
        box = exposure.bbox
        return convolve(image, kernels.evaluate(kernel, x=box.x.center, y=box.y.center))
    if not isinstance(kernel, kernels.ImageBasisConvolutionKernel):
        raise ArgumentError(
            f"Only kernels of basis images can be convolved with; got {type(kernel).__name__}."
        )
    result = np.zeros(image.shape)
    for basis, field in kernel:
        result += (
            convolve(image, kernels.centered_array(basis.array, basis.bbox))
            * field.render(exposure.bbox).array
        )
    return result.astype(image.dtype)


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
    exposure = Exposure.from_object(difference)
    planes = MaskedImage(
        exposure.image.copy(),
        mask=exposure.mask.copy(),
        variance=exposure.variance.copy(),
        sky_projection=exposure.sky_projection,
    )
    return Exposure(
        planes,
        psf=exposure.psf,
        kernel=exposure.kernel,
        background=exposure.background,
        header=exposure.header.copy(),
        primary_header=exposure.primary_header.copy(),
    )
