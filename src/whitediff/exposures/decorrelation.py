"""Decorrelating a difference or score of exposures."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from lsst.images import Box, Image, MaskedImage
from lsst.images.convolution_kernels import ConvolutionKernel, ImageBasisConvolutionKernel
from lsst.images.fields import ChebyshevField
from lsst.images.psfs import PointSpreadFunction

from .. import decorrelation, fourier
from ..convolution import available_threads
from ..errors import ArgumentError, DataError
from ..profiles import full_width_half_maximum
from ..stats import clipped_mean
from . import kernels, masks
from .model import Exposure
from .psf import KernelPointSpreadFunction, as_kernel_psf, average_position, psf_image

__all__ = [
    "Decorrelation",
    "DecorrelationOptions",
    "decorrelate",
    "untouched",
    "variance_mean",
]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.decorrelate")

_VARIANCE_RATIO_TO_WARN = 1e8
_NOISY_SCORE_FILTER = 3
"""Absolute weight of a score filter, over that of its part on the sky, to warn of."""
_RESPONSE_NODES = 5
_SCORE_REACH = 3.5
_SMALL_GRID = 384
"""Side of the grid on which a compact correction shows that it is one."""

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
    scale_factor
        Where the science exposure was convolved: photometric scale by which the difference was
        divided, over the kernel's sum.
    score_filter
        ``documented``: the formula as it stands.  ``compact``: without the frequencies at
        which the pre-convolution kernel has less than 0.01 of its amplitude, and cut off
        at 3.5 FWHM, `whitediff.decorrelation.score_correction`: for fitted kernels, whose
        noise would carry edges and bad pixels over the whole frame.
    full_variance
        Propagate each pixel's variance, instead of assuming it locally constant.
    ignore_mask_planes
        Pixels with any of these are left out of the mean variances.
    required_mask_planes
        Those of them that must exist in one of the masks; the others may be missing.
    untrusted_mask_planes
        Planes of the difference whose pixels hold no measurement; with non-finite
        and outside pixels they contaminate their neighbours.
    transform
        ``fast``: grids of good lengths, in the image's precision, where these move no
        pixel by more than 1e-3 of its standard deviation.
        ``documented``: the documented grid, in double precision.
    """

    convolved: Literal["template", "science"] = "template"
    score: bool = False
    scale_factor: float = 1.0
    score_filter: Literal["documented", "compact"] = "documented"
    full_variance: bool = False
    ignore_mask_planes: tuple[str, ...] = masks.DEFAULT_IGNORE_MASK_PLANES
    required_mask_planes: tuple[str, ...] = ()
    untrusted_mask_planes: tuple[str, ...] = masks.UNTRUSTED_MASK_PLANES
    transform: Literal["fast", "documented"] = "fast"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("convolved", self.convolved, ("template", "science")),
            ("transform", self.transform, ("fast", "documented")),
            ("score_filter", self.score_filter, ("documented", "compact")),
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
        Clipped means of the difference's variance plane, image_unit²; NaN where no
        pixel was usable.
    contaminated_fraction
        Fraction of the pixels marked CONTAMINATED.
    response
        Of a score whose PSF is known: its value at a point source, per unit of flux.
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
    response: ChebyshevField | None = None


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


def _variance_means(
    exposures: tuple[Exposure, ...], ignore_mask_planes: tuple[str, ...]
) -> list[float]:
    """Clipped means of several variance planes, side by side."""
    with ThreadPoolExecutor(min(len(exposures), available_threads())) as pool:
        return list(pool.map(lambda each: variance_mean(each, ignore_mask_planes), exposures))


def decorrelate(
    science: Any,
    template: Any,
    difference: Any,
    kernel: ConvolutionKernel | PointSpreadFunction | Array | None = None,
    *,
    preconvolution_kernel: ConvolutionKernel | PointSpreadFunction | Array | None = None,
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
    _check_mask_planes(options, science, template)
    ignore = options.ignore_mask_planes
    filters = _Filters(
        kernel_image=_kernel_image("matching kernel", kernel, x, y),
        preconvolution_image=(
            _preconvolution_image(science, preconvolution_kernel) if options.score else None
        ),
        psf_image=None if difference.psf is None else psf_image(difference.psf, x=x, y=y),
        science_variance=_usable_variance("science", science, science_variance, ignore),
        template_variance=_usable_variance("template", template, template_variance, ignore),
        template_matched=options.convolved == "template",
        compact_score=options.score_filter == "compact",
    )
    filters.check(difference.shape)

    correction, pixel_kernel = filters.correction_for(difference.image.array, options)
    weights = correction.variance_weights
    variance = _variance_plane(science, template, correction, weights, options, filters)
    sigma = _smallest_sigma(variance)
    image = _corrected_image(difference.image.array, correction, pixel_kernel, sigma, options)
    measured = decorrelation.measured_pixels(difference.image.array, sigma)
    _report_absurd(difference, measured)
    untrusted = masks.flagged(difference.mask, options.untrusted_mask_planes) | ~measured
    contaminated = _contaminated(correction, pixel_kernel, untrusted, filters)
    psf = None if difference.psf is None else _psf_before(difference.psf, filters, box, options)
    on_stamps = filters.correction_on_stamps(correction, options)

    exposure = Exposure(
        MaskedImage(
            Image(image, bbox=box, unit=difference.image.unit),
            mask=masks.with_plane(difference.mask, masks.CONTAMINATED, contaminated),
            variance=Image(variance, bbox=box),
            sky_projection=difference.sky_projection,
        ),
        psf=_corrected_psf(psf, on_stamps, filters, box),
        kernel=(
            kernel
            if isinstance(kernel, ConvolutionKernel)
            else kernels.constant_kernel(filters.kernel_image, box)
        ),
        background=difference.background,
        header=difference.header.copy(),
        primary_header=difference.primary_header.copy(),
    )
    before, after = _variance_means((difference, exposure), ignore)
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
        variance_weights=weights,
        variance_mean_before=before,
        variance_mean_after=after,
        contaminated_fraction=float(contaminated.mean()),
        response=_response(psf, on_stamps, box) if options.score else None,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Filters:
    """What a correction is made of, as plain arrays and numbers."""

    kernel_image: Array
    preconvolution_image: Array | None
    psf_image: Array | None
    science_variance: float
    template_variance: float
    template_matched: bool
    compact_score: bool

    @property
    def means(self) -> tuple[float, float]:
        """Mean variances of the unconvolved and of the convolved exposure."""
        pair = (self.science_variance, self.template_variance)
        return pair if self.template_matched else pair[::-1]

    @property
    def stamps(self) -> list[tuple[int, ...]]:
        """Shapes of all stamps, for the choice of grids."""
        stamps = (self.kernel_image, self.psf_image, self.preconvolution_image)
        return [stamp.shape for stamp in stamps if stamp is not None]

    def check(self, shape: tuple[int, int]) -> None:
        """Refuse kernels larger than the image; warn of hopeless variances."""
        for name, stamp in (
            ("matching kernel", self.kernel_image),
            ("pre-convolution kernel", self.preconvolution_image),
        ):
            if stamp is not None and any(k > n for k, n in zip(stamp.shape, shape, strict=True)):
                raise ArgumentError(
                    f"The {name} {stamp.shape} is larger than the image {shape};"
                    " is it the right one?"
                )
        unconvolved, convolved = self.means
        if convolved / unconvolved > _VARIANCE_RATIO_TO_WARN:
            _log.warning(
                "The convolved exposure's mean variance is %g times the other's;"
                " the correction amplifies rounding errors.",
                convolved / unconvolved,
            )

    def correction_on(
        self, shape: tuple[int, ...], *, compact: bool | None = None
    ) -> decorrelation.Correction:
        """Correction on a grid; that of a score as asked for, or in its compact form."""
        grid = (shape[0], shape[1])
        compact = self.compact_score if compact is None else compact
        if self.preconvolution_image is not None:
            return decorrelation.score_correction(
                self.kernel_image,
                self.preconvolution_image,
                science_variance=self.science_variance,
                template_variance=self.template_variance,
                shape=grid,
                empty_amplitude=decorrelation.EMPTY_AMPLITUDE if compact else 0.0,
                reach=self._score_reach if compact else None,
            )
        unconvolved, convolved = self.means
        return decorrelation.difference_correction(
            self.kernel_image,
            unconvolved_variance=unconvolved,
            convolved_variance=convolved,
            shape=grid,
        )

    @functools.cached_property
    def _score_reach(self) -> float:
        assert self.preconvolution_image is not None
        return _SCORE_REACH * full_width_half_maximum(self.preconvolution_image)

    def correction_for(
        self, image: Array, options: DecorrelationOptions
    ) -> tuple[decorrelation.Correction, Array]:
        """Correction, and its kernel on the pixels: compact, or on the correction's grid.

        A compact kernel comes with the correction on a small grid.  Else the grid is the
        documented one, or one that transforms faster where that makes no difference.
        """
        documented = fourier.common_shape(*self.stamps, image.shape)
        if options.transform == "fast":
            small = fourier.fast_shape(*self.stamps, (_SMALL_GRID, _SMALL_GRID))
            if not options.full_variance and math.prod(small) < math.prod(documented):
                correction, kernel, sigma = self._on_grid(small)
                compact = decorrelation.compact_kernel(kernel, image, sigma=sigma)
                if compact is not None:
                    return correction, compact
            correction, kernel, sigma = self._on_grid(fourier.fast_shape(*self.stamps, image.shape))
            margin = (documented[0] - image.shape[0], documented[1] - image.shape[1])
            if correction.shape == documented or not decorrelation.depends_on_grid(
                kernel, image, margin=margin, sigma=sigma
            ):
                return correction, kernel
        correction, kernel, _ = self._on_grid(documented)
        return correction, kernel

    def _on_grid(self, shape: tuple[int, ...]) -> tuple[decorrelation.Correction, Array, float]:
        """Correction on a grid, its kernel there, and the sigma of a pixel that results."""
        correction = self.correction_on(shape)
        kernel = decorrelation.pixel_kernel(correction.correction_ft, shape=correction.shape)
        weights = correction.variance_weights
        sigma = math.sqrt(weights[0] * self.means[0] + weights[1] * self.means[1])
        return correction, kernel, sigma

    def correction_on_stamps(
        self, correction: decorrelation.Correction, options: DecorrelationOptions
    ) -> decorrelation.Correction:
        """Correction for stamps, which need no grid of the image's size."""
        if self.psf_image is None or options.transform == "documented":
            return correction
        shape = fourier.fast_shape(
            *self.stamps, tuple(_PSF_GRID_MARGIN * n for n in self.psf_image.shape)
        )
        if math.prod(shape) >= math.prod(correction.shape):
            return correction
        return self.correction_on(shape)


def _psf_before(
    psf: PointSpreadFunction, filters: _Filters, box: Box, options: DecorrelationOptions
) -> KernelPointSpreadFunction:
    if options.transform == "documented":
        # The documented task knows one PSF for the whole image.
        return KernelPointSpreadFunction.from_image(np.asarray(filters.psf_image), box)
    return as_kernel_psf(psf, box)


def _corrected_image(
    image: Array,
    correction: decorrelation.Correction,
    pixel_kernel: Array,
    sigma: float | None,
    options: DecorrelationOptions,
) -> Array:
    if image.dtype.kind != "f":
        image = image.astype(np.float64)
    if pixel_kernel.shape != correction.shape:
        return decorrelation.filtered_image(pixel_kernel, image, sigma=sigma)
    return decorrelation.corrected_image(
        correction.correction_ft,
        image.astype(np.float64) if options.transform == "documented" else image,
        shape=correction.shape,
        sigma=sigma,
    ).astype(image.dtype, copy=False)


def _smallest_sigma(variance: Array) -> float | None:
    positive = variance[np.isfinite(variance) & (variance > 0)]
    return math.sqrt(float(positive.min())) if positive.size else None


def _report_absurd(difference: Exposure, measured: Array) -> None:
    absurd = np.isfinite(difference.image.array) & ~measured
    if absurd.any():
        _log.warning(
            "%s has %d pixels beyond 1e11 sigma, such as %g; they are taken as missing.",
            _named("difference", difference),
            int(absurd.sum()),
            float(difference.image.array[absurd][0]),
        )


def _contaminated(
    correction: decorrelation.Correction, kernel: Array, untrusted: Array, filters: _Filters
) -> Array:
    if filters.preconvolution_image is None or filters.compact_score:
        return decorrelation.contaminated_pixels(kernel, untrusted)
    # Where pre-convolution removed everything, a score correction is noise that reaches
    # over the whole frame.  Weighed with it, the outside would contaminate every pixel; so
    # the filter counts as far as it acts on the sky, and all of it on what was filled.
    if kernel.shape != correction.shape:
        return decorrelation.contaminated_pixels(kernel, untrusted)
    sky_correction = filters.correction_on(correction.shape, compact=True)
    sky_kernel = decorrelation.pixel_kernel(sky_correction.correction_ft, shape=correction.shape)
    total = float(np.abs(sky_kernel).sum())
    if float(np.abs(kernel).sum()) > _NOISY_SCORE_FILTER * total:
        _log.warning(
            "The stamps of PSF and matching kernel cut their wings, so the score correction is"
            " noise where the PSF has no power, and carries edges and bad pixels over the whole"
            " frame; larger stamps cure that."
        )
    contaminated = decorrelation.contaminated_pixels(sky_kernel, untrusted)
    if untrusted.any():
        contaminated |= (
            decorrelation.absolute_weight(kernel, untrusted)
            > decorrelation.CONTAMINATION_THRESHOLD * total
        )
    return contaminated


def _corrected_psf(
    psf: KernelPointSpreadFunction | None,
    correction: decorrelation.Correction,
    filters: _Filters,
    box: Box,
) -> KernelPointSpreadFunction | None:
    """PSF after the correction, varying as it did before."""
    if psf is None or filters.psf_image is None:
        return None
    if kernels.is_constant(psf.kernel):
        image = decorrelation.corrected_psf(
            correction.correction_ft, filters.psf_image, shape=correction.shape
        )
        return KernelPointSpreadFunction.from_image(image, box)
    images = [
        decorrelation.filtered_stamp(
            correction.correction_ft,
            kernels.centered_array(image.array, image.bbox),
            shape=correction.shape,
        )
        for image, _ in psf.kernel
    ]
    return KernelPointSpreadFunction(
        ImageBasisConvolutionKernel(np.stack(images), list(psf.kernel.spatial)),
        average_position=psf.average_position,
    )


def _response(
    psf: KernelPointSpreadFunction | None, correction: decorrelation.Correction, box: Box
) -> ChebyshevField | None:
    """Score of a point source of unit flux at its position, over the field."""
    if psf is None:
        return None
    constant = kernels.is_constant(psf.kernel)
    nodes = np.zeros(1) if constant else np.linspace(-1, 1, _RESPONSE_NODES)
    v, u = (grid.ravel() for grid in np.meshgrid(nodes, nodes, indexing="ij"))
    x = box.x.start - 0.5 + 0.5 * box.x.size * (1 + u)
    y = box.y.start - 0.5 + 0.5 * box.y.size * (1 + v)
    peaks = []
    for at_x, at_y in zip(x, y, strict=True):
        image = psf_image(psf, x=at_x, y=at_y)
        filtered = decorrelation.filtered_stamp(
            correction.correction_ft, image, shape=correction.shape
        )
        peaks.append(filtered[image.shape[0] // 2, image.shape[1] // 2])
    return ChebyshevField.fit(box, np.array(peaks), 0 if constant else 2, x=x, y=y)


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


def _check_mask_planes(
    options: DecorrelationOptions, science: Exposure, template: Exposure
) -> None:
    for name in options.required_mask_planes:
        if all(masks.find_plane(e.mask, name) is None for e in (science, template)):
            known = sorted(set(science.mask.schema.names) | set(template.mask.schema.names))
            raise ArgumentError(
                f"No mask plane {name!r} in {science.source or 'the science exposure'} or"
                f" {template.source or 'the template'}; their planes are:"
                f" {', '.join(known) or 'none'}."
            )


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


def _kernel_image(name: str, kernel: Any, x: float, y: float) -> Array:
    if isinstance(kernel, ConvolutionKernel):
        return kernels.evaluate(kernel, x=x, y=y)
    if isinstance(kernel, PointSpreadFunction):
        return psf_image(kernel, x=x, y=y)
    if isinstance(kernel, Image):
        return kernels.centered_array(kernel.array, kernel.bbox)
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
        image, total = decorrelation.checked_kernel(
            "pre-convolution kernel",
            _kernel_image(
                "pre-convolution kernel", preconvolution_kernel, box.x.center, box.y.center
            ),
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
    science: Exposure,
    template: Exposure,
    correction: decorrelation.Correction,
    weights: tuple[float, float],
    options: DecorrelationOptions,
    filters: _Filters,
) -> Array:
    """Variance plane at the science level, rounded once to the planes' type."""
    pair = (science.variance.array, template.variance.array)
    unconvolved, convolved = pair if filters.template_matched else pair[::-1]
    level = correction.kernel_sum * options.scale_factor
    scale = 1.0 if filters.template_matched else 1 / level**2
    dtype = np.result_type(unconvolved, convolved)
    if not options.full_variance:
        scaled = (weights[0] * scale, weights[1] * scale)
        return decorrelation.estimated_variance(unconvolved, convolved, scaled)
    variance = decorrelation.full_variance(
        unconvolved.astype(np.float64),
        convolved.astype(np.float64),
        unconvolved_fill=filters.means[0],
        convolved_fill=filters.means[1],
        unconvolved_ft=correction.unconvolved_ft,
        convolved_ft=correction.convolved_ft,
        shape=correction.shape,
    )
    variance *= scale
    return variance.astype(dtype, copy=False)


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
    copy = exposure.replaced(
        image=exposure.image.copy(),
        mask=exposure.mask.copy(),
        variance=exposure.variance.array.copy(),
    )
    copy.header, copy.primary_header = exposure.header.copy(), exposure.primary_header.copy()
    return copy
