"""Decorrelating a difference of two stacks of exposures."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..direction import Direction
from ..errors import ArgumentError, DataError
from ..exposures import foreign, kernels, masks
from ..exposures.boxes import Box
from ..exposures.covariance import Noise, noise_at
from ..exposures.kernels import ConvolutionKernel
from ..exposures.model import Exposure, Provenance
from ..exposures.psf import PointSpreadFunction, as_kernel_psf
from ..noise.exposures import noises_by_role, source_pixels
from ..numerics import fourier
from ..numerics.covariance import NoiseCovariance
from ..numerics.missing import smallest_sigma
from ..numerics.threads import single_threaded_algebra
from .correction import contaminated_pixels
from .exposures import (
    check_defined,
    fault,
    image_of_kernel,
    known_constant,
    pixels_to_distrust,
    refuse_decorrelated,
    typical_variance,
    usable_variance,
)
from .filters import StackFilters
from .stack_correction import DEFAULT_FLOOR, Combination, Member, StackCorrection
from .varying import LocalCorrection, LocalFilters, local_correction

__all__ = ["StackDecorrelation", "StackMember", "StackOptions", "decorrelate_stack"]

type Array = npt.NDArray[Any]

type Kernel = ConvolutionKernel | PointSpreadFunction | Array | None

type Sides = dict[str, tuple[StackMember, ...]]

_GRID = 384
"""Least side of the grid whose frequencies give the reported numbers."""

_MEDIAN_TOLERANCE = 5e-3
"""Least tolerance for medians: their noise is known no better, and each place is simulated."""

_log = logging.getLogger("whitediff.decorrelate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackMember:
    """An exposure of a stack.

    Attributes
    ----------
    exposure
        Exposure before its convolution, on the pixels of the difference; its variance plane and
        mask are used.
    kernel
        Kernel that it was convolved with before it was stacked: any kernel, or ``(ky, kx)``; None
        if it was not convolved.
    weight
        Weight in the stack, relative to the others; finite, positive.
    variance
        Mean variance, image_unit²; the clipped mean of the variance plane if not given.
    noise
        Covariance of its noise, `NoiseCovariance`, or a function of the pixel
        coordinates x and y that returns it; None for white noise.
    """

    exposure: Any
    kernel: Kernel = None
    weight: float = 1.0
    variance: float | None = None
    noise: Noise = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackOptions:
    """How a difference of stacks is decorrelated.

    Attributes
    ----------
    convolved
        Which stack was convolved with the matching kernel, as a whole.
    combine
        How the members of either stack were combined.
    floor
        Noise power, over the power at zero frequency, below which the correction stops rising.
    divisor
        Number by which the difference was divided as a whole.
    spatially_varying
        The correction follows kernels and noise covariances over the field; else they are taken
        in its middle.
    fill
        Values of pixels without a measurement while their neighbours are filtered: ``mean`` or
        ``interpolate``, as in `whitediff.decorrelation.exposures.decorrelate`.
    ignore_mask_planes
        Pixels of a member with any of these are left out of its mean variance.
    untrusted_mask_planes
        Planes of the difference whose pixels hold no measurement; like non-finite and outside
        pixels they contaminate their neighbours.
    noise
        ``white``: members without a given covariance are white.  ``measured``: covariances are
        measured on source-free pixels, and none may be given.  ``auto``: as ``measured``, but only
        significant covariances are used.
    tolerance
        With ``spatially_varying``: largest error of the compressed correction, in standard
        deviations of a pixel; at least 5e-3 for medians.
    """

    convolved: Direction = "template"
    combine: Combination = "mean"
    floor: float = DEFAULT_FLOOR
    divisor: float = 1.0
    spatially_varying: bool = True
    fill: Literal["mean", "interpolate"] = "interpolate"
    ignore_mask_planes: tuple[str, ...] = masks.DEFAULT_IGNORE_MASK_PLANES
    untrusted_mask_planes: tuple[str, ...] = masks.UNTRUSTED_MASK_PLANES
    noise: Literal["white", "auto", "measured"] = "white"
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("convolved", self.convolved, ("template", "science")),
            ("combine", self.combine, ("mean", "median")),
            ("fill", self.fill, ("mean", "interpolate")),
            ("noise", self.noise, ("white", "auto", "measured")),
        ):
            if value not in allowed:
                raise ArgumentError(f"{name} must be {' or '.join(allowed)}; got {value!r}.")
        if not 0 <= self.floor < 1:
            raise ArgumentError(f"The floor must be at least 0 and below 1; got {self.floor:g}.")
        if not (math.isfinite(self.divisor) and self.divisor != 0):
            raise ArgumentError(
                f"The divisor must be finite and other than zero; got {self.divisor:g}."
            )
        if not 1e-6 <= self.tolerance <= 0.1:
            raise ArgumentError(f"tolerance must be from 1e-6 to 0.1; got {self.tolerance:g}.")


@dataclasses.dataclass(frozen=True)
class StackDecorrelation:
    """A decorrelated difference of stacks, and the numbers that describe what was done.

    Attributes
    ----------
    exposure
        The corrected difference.
    options
        Options of the correction.
    kernel_sum
        Sum of the matching kernel in the middle; 1 without one.
    x, y
        Middle of the field, pixel coordinates, to which these numbers refer.
    science_variances, template_variances
        Mean variances of the members before any convolution, image_unit².
    science_weights, template_weights
        Variance plane per unit variance of each member.
    pixel_variance
        Mean variance of a pixel, image_unit².
    white_variance
        Pixel variance without a floor, image_unit²: the mean of the variance plane, and the sum of
        the members' variances times these weights.  An image filtered with the PSF has the noise
        of white noise of this variance.
    floored_fraction
        Fraction of the frequencies whose noise power is below the floor.
    largest_correction
        Largest amplification of a frequency by the correction.
    variance_mean_before, variance_mean_after
        Clipped means of the difference's variance plane, image_unit²; NaN where no pixel was
        usable.
    contaminated_fraction
        Fraction of the pixels marked CONTAMINATED.
    science_noises, template_noises
        Noise covariances of the members in the middle; None for white noise.
    flux_error
        Relative error of the flux scale by the errors of the noise covariances.
    local
        The correction over the field.
    """

    exposure: Exposure
    options: StackOptions
    kernel_sum: float
    x: float
    y: float
    science_variances: tuple[float, ...]
    template_variances: tuple[float, ...]
    science_weights: tuple[float, ...]
    template_weights: tuple[float, ...]
    pixel_variance: float
    white_variance: float
    floored_fraction: float
    largest_correction: float
    variance_mean_before: float
    variance_mean_after: float
    contaminated_fraction: float
    science_noises: tuple[NoiseCovariance | None, ...]
    template_noises: tuple[NoiseCovariance | None, ...]
    flux_error: float
    local: LocalCorrection


@single_threaded_algebra()
def decorrelate_stack(
    difference: object,
    science: Sequence[StackMember],
    template: Sequence[StackMember],
    *,
    matching_kernel: Kernel = None,
    sources: Array | None = None,
    missing: Array | None = None,
    options: StackOptions | None = None,
) -> StackDecorrelation:
    """Whiten the noise of a difference of stacks; give it a variance, mask and PSF to match.

    Parameters
    ----------
    difference
        Difference of the stacks: an `Exposure` or any object with image, mask and variance.  Not
        modified; its variance plane is not used for the correction.
    science, template
        Members of the two stacks, at least one each; all of them count at every pixel.
    matching_kernel
        Kernel that one stack was convolved with as a whole; the difference's own if not given; if
        that has none either, no stack was convolved.
    sources
        ``(ny, nx)`` boolean: pixels with a source, between which noise is measured; found on all
        members if not given.
    missing
        ``(ny, nx)`` boolean: finite pixels of the difference that ``fill="interpolate"`` replaces
        too; those in `whitediff.exposures.masks.INTERPOLATED_MASK_PLANES` if not given.
    options
        `StackOptions`.

    Returns
    -------
    result
        `StackDecorrelation`.  Its variance plane is NaN where a member's is.

    Raises
    ------
    ArgumentError
        If a stack has no member, or boxes, kernels, weights or options do not fit together.
    DataError
        If the difference has no finite pixel, or a member no positive mean variance.

    Notes
    -----
    `whitediff.decorrelation.stack_correction.stack_correction` has the formula.  The correction
    follows kernels and noise covariances over the field, not ratios of the members' local noise
    levels.
    """
    options = options or StackOptions()
    difference = Exposure.from_object(difference)
    refuse_decorrelated(difference)
    box = difference.bbox
    sides: Sides = {
        name: tuple(
            dataclasses.replace(
                member,
                exposure=Exposure.from_object(member.exposure),
                kernel=foreign.adapted(member.kernel),
            )
            for member in members
        )
        for name, members in (("science", science), ("template", template))
    }
    for name, members in sides.items():
        if not members:
            raise ArgumentError(f"The {name} stack has no member; it needs at least one.")
        for i, member in enumerate(members, 1):
            _check_grid(f"{name} member {i}", member.exposure, difference)
    if not np.isfinite(difference.data).any():
        raise fault(
            DataError,
            "difference",
            difference,
            f"image has no finite pixel: all {difference.data.size} are NaN or infinite.",
        )
    if options.noise != "white":
        sides = _with_measured_noise(sides, sources, options.noise)
    matching_kernel = difference.kernel if matching_kernel is None else matching_kernel
    every = [*sides["science"], *sides["template"]]
    each_kernel = [matching_kernel, *(member.kernel for member in every)]
    ignore = options.ignore_mask_planes
    variances = {
        name: tuple(
            usable_variance(f"{name} member {i}", member.exposure, member.variance, ignore)
            for i, member in enumerate(members, 1)
        )
        for name, members in sides.items()
    }

    def filters_at(x: float, y: float) -> StackFilters:
        return StackFilters(
            science=_members_at("science", sides["science"], variances["science"], x, y),
            template=_members_at("template", sides["template"], variances["template"], x, y),
            matching_kernel=_image_at("matching kernel", matching_kernel, x, y),
            convolved=options.convolved,
            floor=options.floor,
            combine=options.combine,
        )

    x, y = box.x.start + box.x.size / 2, box.y.start + box.y.size / 2
    moves = options.spatially_varying and (
        any(_varies(kernel) for kernel in each_kernel)
        or any(callable(member.noise) for member in every)
    )
    if moves:
        for kernel in each_kernel:
            check_defined(kernel, box, difference)
    middle = filters_at(x, y)
    _check_sizes(middle, difference.shape)
    local = local_correction(
        LocalFilters(
            filters_at if moves else lambda *_: middle,
            lambda *_: options.divisor**2,
            moves=moves,
        ),
        box=box,
        image=difference.data,
        noise=None,
        full_variance=False,
        response=False,
        tolerance=(
            options.tolerance
            if options.combine == "mean"
            else max(options.tolerance, _MEDIAN_TOLERANCE)
        ),
    )
    pixel_kernel = local.filter.images[0]
    correction = middle.correction_on(fourier.fast_shape(*middle.stamps, (_GRID, _GRID)))
    _report_floor(correction, difference)

    variance = local.variance(*(member.exposure.variance for member in every))
    sigma = smallest_sigma(variance)
    if options.fill == "interpolate" and missing is None:
        missing = masks.flagged(difference.mask, masks.INTERPOLATED_MASK_PLANES)
    image = difference.data
    if image.dtype.kind != "f":
        image = image.astype(np.float64)
    corrected = local.image(image, sigma, fill=options.fill, missing=missing)
    untrusted, mask = pixels_to_distrust(difference, sigma, options.untrusted_mask_planes)
    contaminated = contaminated_pixels(pixel_kernel, untrusted)
    psf = None if difference.psf is None else as_kernel_psf(difference.psf, box)
    exposure = Exposure(
        corrected,
        variance,
        masks.with_plane(mask, masks.CONTAMINATED, contaminated),
        origin=box.start,
        unit=difference.unit,
        psf=None if psf is None else local.psf(psf),
        header=difference.header.copy(),
        provenance=Provenance(
            primary_header=difference.primary_header.copy(),
            kernel=_kept_kernel(matching_kernel, middle.matching_kernel, box),
            background=difference.background,
            decorrelated_by="decorrelate-stack",
        ),
    )
    weights = [weight / options.divisor**2 for weight in correction.variance_weights]
    n_science = len(sides["science"])
    return StackDecorrelation(
        exposure=exposure,
        options=options,
        kernel_sum=1.0 if middle.matching_kernel is None else float(middle.matching_kernel.sum()),
        x=x,
        y=y,
        science_variances=variances["science"],
        template_variances=variances["template"],
        science_weights=tuple(weights[:n_science]),
        template_weights=tuple(weights[n_science:]),
        pixel_variance=correction.variance / options.divisor**2,
        white_variance=correction.white_variance / options.divisor**2,
        floored_fraction=correction.floored_fraction,
        largest_correction=correction.largest,
        variance_mean_before=typical_variance(difference, ignore),
        variance_mean_after=typical_variance(exposure, ignore),
        contaminated_fraction=float(contaminated.mean()),
        science_noises=tuple(member.noise for member in middle.science),
        template_noises=tuple(member.noise for member in middle.template),
        flux_error=correction.flux_error,
        local=local,
    )


def _check_grid(role: str, exposure: Exposure, difference: Exposure) -> None:
    if exposure.shape != difference.shape:
        raise fault(
            ArgumentError,
            role,
            exposure,
            f"has {exposure.shape[0]} x {exposure.shape[1]} pixels, but the"
            f" difference {difference.shape[0]} x {difference.shape[1]}; all must share one grid.",
        )
    if exposure.bbox != difference.bbox:
        raise fault(
            ArgumentError,
            role,
            exposure,
            f"starts at (y, x) = {exposure.origin}, but the difference at"
            f" {difference.origin}; all must share one grid.",
        )


def _with_measured_noise(
    sides: Sides, sources: Array | None, how: Literal["auto", "measured"]
) -> Sides:
    every = {
        f"{name} member {i}": member
        for name, members in sides.items()
        for i, member in enumerate(members, 1)
    }
    for role, member in every.items():
        if member.noise is not None:
            raise ArgumentError(
                f"The noise covariance of {role} is given, and with noise={how!r} it would be"
                " measured; give them all, or have them all measured."
            )
    exposures = {role: member.exposure for role, member in every.items()}
    if sources is None:
        sources = np.logical_or.reduce([source_pixels(each) for each in exposures.values()])
    noises = iter(noises_by_role(exposures, sources, how=how))
    return {
        name: tuple(dataclasses.replace(member, noise=next(noises)) for member in members)
        for name, members in sides.items()
    }


def _members_at(
    name: str, members: tuple[StackMember, ...], variances: tuple[float, ...], x: float, y: float
) -> tuple[Member, ...]:
    return tuple(
        Member(
            variance=variance,
            kernel=_image_at(f"kernel of {name} member {i}", member.kernel, x, y),
            weight=member.weight,
            noise=noise_at(member.noise, x, y),
        )
        for i, (member, variance) in enumerate(zip(members, variances, strict=True), 1)
    )


def _image_at(name: str, kernel: Kernel, x: float, y: float) -> Array | None:
    return None if kernel is None else image_of_kernel(name, kernel, x, y)


def _varies(kernel: Kernel) -> bool:
    return isinstance(kernel, ConvolutionKernel | PointSpreadFunction) and not known_constant(
        kernel
    )


def _check_sizes(filters: StackFilters, shape: tuple[int, int]) -> None:
    for name, kernel in filters.kernels.items():
        if any(k > n for k, n in zip(kernel.shape, shape, strict=True)):
            raise ArgumentError(
                f"The {name} {kernel.shape} is larger than the image {shape}; is it the right one?"
            )


def _report_floor(correction: StackCorrection, difference: Exposure) -> None:
    if correction.floored_fraction > 0:
        _log.info(
            "%s: at %.0f%% of the frequencies the convolutions left no noise, and the correction"
            " stops at %.3g; a filter with the PSF sees %.3g times the noise variance that the"
            " pixels have, and the variance plane tells what it sees.",
            difference.source or "The difference",
            100 * correction.floored_fraction,
            correction.largest,
            correction.filtered_ratio,
        )


def _kept_kernel(kernel: Kernel, image: Array | None, box: Box) -> ConvolutionKernel | None:
    if image is None or isinstance(kernel, ConvolutionKernel):
        return kernel if isinstance(kernel, ConvolutionKernel) else None
    return kernels.constant_kernel(image, box)
