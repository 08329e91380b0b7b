"""Finding the kernel that matches two exposures, and subtracting them with it."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from lsst.images.convolution_kernels import ImageBasisConvolutionKernel
from lsst.images.fields import ChebyshevField

from ..errors import ArgumentError, DataError
from ..matching.basis import KernelBasis, delta_basis, gaussian_basis, gaussian_sigmas, kernel_size
from ..matching.candidates import Candidates, choose_candidates, cut_stamps, find_sources
from ..matching.solve import FitOptions, KernelFit, Stamps, fit_kernel
from ..polynomials import chebyshev_terms
from ..sources import detect_sources, smooth_background
from ..stats import robust_sigma
from . import kernels, masks
from .model import Exposure
from .operations import subtract

__all__ = ["Match", "MatchOptions", "match", "variance_factor"]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.match")

_LARGEST_VARIANCE_FACTOR = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchOptions:
    """How two exposures are matched.

    Attributes
    ----------
    convolved
        Which exposure to convolve; ``auto``: the template, unless its PSF is the wider.
    basis
        ``gaussian``: Gaussians times polynomials, scaled from the two PSFs; ``delta``: free
        pixels with a penalty on roughness.
    kernel_size
        Odd side of the kernel; scaled from the PSFs if None.
    rescale_variance
        Bring both variance planes to the noise measured on source-free pixels.
    fit
        Orders and rejection.
    """

    convolved: Literal["template", "science", "auto"] = "template"
    basis: Literal["gaussian", "delta"] = "gaussian"
    kernel_size: int | None = None
    rescale_variance: bool = True
    fit: FitOptions = dataclasses.field(default_factory=FitOptions)

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("convolved", self.convolved, ("template", "science", "auto")),
            ("basis", self.basis, ("gaussian", "delta")),
        ):
            if value not in allowed:
                raise ArgumentError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.")
        if self.kernel_size is not None and (self.kernel_size < 3 or self.kernel_size % 2 == 0):
            raise ArgumentError(
                f"A kernel's side must be odd and at least 3; got {self.kernel_size}."
            )


@dataclasses.dataclass(frozen=True)
class Match:
    """A matching kernel and how it was found.

    Attributes
    ----------
    kernel
        Basis images, one for each Chebyshev term, over the exposures' box.
    background
        ``(ny, nx)`` differential background, image_unit of the exposure that was not
        convolved.
    convolved
        Which exposure is to be convolved.
    science, template
        The exposures with the variance planes that were used.
    science_variance_factor, template_variance_factor
        By which those were multiplied.
    candidates, fit
        Stars and fit.
    """

    kernel: ImageBasisConvolutionKernel
    background: Array
    convolved: Literal["template", "science"]
    science: Exposure
    template: Exposure
    science_variance_factor: float
    template_variance_factor: float
    candidates: Candidates
    fit: KernelFit


def variance_factor(exposure: Exposure) -> float:
    """Measured noise over the variance plane.

    Parameters
    ----------
    exposure
        Exposure.

    Returns
    -------
    factor
        ``(0.7413 · IQR(image/√variance))²`` over source-free, unmasked pixels.

    Raises
    ------
    DataError
        If it is not between 0.1 and 10, or there is no such pixel.
    """
    image, variance = exposure.image.array, exposure.variance.array
    bad = masks.flagged(exposure.mask, masks.DEFAULT_IGNORE_MASK_PLANES)
    free = ~bad & np.isfinite(image) & np.isfinite(variance) & (variance > 0)
    free &= ~detect_sources(image, bad)
    name = exposure.source or "the exposure"
    if not free.any():
        raise DataError(f"{name}: no source-free pixel to compare the variance plane with.")
    values = (image - smooth_background(image, free))[free] / np.sqrt(variance[free])
    factor = robust_sigma(values) ** 2
    if not 1 / _LARGEST_VARIANCE_FACTOR < factor < _LARGEST_VARIANCE_FACTOR:
        raise DataError(
            f"{name}: the noise of its source-free pixels is {factor:.3g} times its variance"
            f" plane; more than {_LARGEST_VARIANCE_FACTOR:g} either way means that the plane is"
            " something else."
        )
    return factor


def match(science: Any, template: Any, options: MatchOptions | None = None) -> Match:
    """Find the kernel that matches the PSF of one exposure to that of another.

    Parameters
    ----------
    science, template
        Exposures on the same pixels.
    options
        `MatchOptions`.

    Returns
    -------
    match
        `Match`.

    Raises
    ------
    ArgumentError
        If the exposures do not share a grid.
    DataError
        If there are too few stars, the fit is singular, or a variance plane is absurd.

    Notes
    -----
    Alard & Lupton 1998.  Stars are found on the science image.  The fit is done twice: the
    first difference shows what varies, and the second fit leaves it out.
    """
    options = options or MatchOptions()
    science, template = Exposure.from_object(science), Exposure.from_object(template)
    if science.bbox != template.bbox:
        raise ArgumentError(
            f"{template.source or 'the template'}: its box {template.bbox} is not that of the"
            f" science image, {science.bbox}."
        )
    factors = [1.0, 1.0]
    if options.rescale_variance:
        factors = [variance_factor(science), variance_factor(template)]
        science, template = (
            exposure.replaced(
                variance=exposure.variance.array * exposure.variance.array.dtype.type(factor)
            )
            for exposure, factor in zip((science, template), factors, strict=True)
        )
    bad = [
        masks.flagged(exposure.mask, masks.UNTRUSTED_MASK_PLANES)
        for exposure in (science, template)
    ]
    sources = find_sources(
        science.image.array,
        template.image.array,
        science_variance=science.variance.array,
        science_bad=bad[0],
        template_bad=bad[1],
    )
    # First any stars, for the widths; then those with room for the stamps that these need.
    candidates = choose_candidates(sources, clear=16, isolation=16)
    convolved: Literal["template", "science"] = "template"
    if options.convolved == "science" or (
        options.convolved == "auto" and candidates.template_sigma > candidates.science_sigma
    ):
        convolved = "science"
    source, target = (template, science) if convolved == "template" else (science, template)
    sigmas = (candidates.science_sigma, candidates.template_sigma)
    target_sigma, source_sigma = sigmas if convolved == "template" else sigmas[::-1]
    if target_sigma < 0.95 * source_sigma:
        _log.warning(
            "The exposure that is convolved has the wider PSF (%.2f against %.2f pixels): matching"
            " is deconvolution, which rings and amplifies noise; convolve the %s instead.",
            source_sigma,
            target_sigma,
            "science image" if convolved == "template" else "template",
        )
    basis = _basis(options, target_sigma, source_sigma)
    candidates = choose_candidates(
        sources, clear=_reach(basis), isolation=max(basis.size, 8 * target_sigma)
    )
    if candidates.relaxed:
        _log.warning(
            "Few stars: %d sources are used, without regard to %s.",
            len(candidates),
            candidates.relaxed,
        )
    unusable = bad[0] | bad[1]
    fit = _fit(source, target, unusable, candidates, basis, options)
    # What varies between the two images must not be explained by a kernel.
    first = subtract(
        science,
        template,
        _kernel(fit, basis, science),
        convolved=convolved,
        background=_background(fit, science),
    )
    varying = _varying(first.image.array, unusable, candidates, 3 * target_sigma)
    if varying.any():
        fit = _fit(source, target, unusable | varying, candidates, basis, options)
    return Match(
        kernel=_kernel(fit, basis, science),
        background=_background(fit, science),
        convolved=convolved,
        science=science,
        template=template,
        science_variance_factor=factors[0],
        template_variance_factor=factors[1],
        candidates=candidates,
        fit=fit,
    )


def _background(fit: KernelFit, exposure: Exposure) -> Array:
    field = ChebyshevField(exposure.bbox, fit.background_coefficients.copy())
    return field.render().array.astype(np.float32)


def _varying(difference: Array, bad: Array, candidates: Candidates, core: float) -> Array:
    """Pixels of transients, not of the candidates' cores, where a kernel is measured."""
    varying = detect_sources(difference, bad) | detect_sources(-difference, bad)
    reach = math.ceil(core)
    ny, nx = difference.shape
    for x, y in zip(np.round(candidates.x), np.round(candidates.y), strict=True):
        rows = slice(max(0, int(y) - reach), min(ny, int(y) + reach + 1))
        columns = slice(max(0, int(x) - reach), min(nx, int(x) + reach + 1))
        varying[rows, columns] = False
    return varying


def _basis(options: MatchOptions, target_sigma: float, source_sigma: float) -> KernelBasis:
    sigmas = gaussian_sigmas(target_sigma, source_sigma)
    size = options.kernel_size or kernel_size(sigmas)
    return delta_basis(size) if options.basis == "delta" else gaussian_basis(sigmas, size=size)


def _reach(basis: KernelBasis) -> int:
    """Half of a source stamp, and a pixel for rounding."""
    return basis.size + basis.size // 2 + 1


def _fit(
    source: Exposure,
    target: Exposure,
    bad: Array,
    candidates: Candidates,
    basis: KernelBasis,
    options: MatchOptions,
) -> KernelFit:
    # The convolved exposure's part of the noise needs the kernel: once without, once with.
    norm, fit, orders = 0.0, None, options.fit
    for _ in range(2):
        stamps = cut_stamps(
            source.image.array,
            target.image.array,
            target.variance.array + norm * source.variance.array,
            bad,
            x=candidates.x,
            y=candidates.y,
            size=2 * basis.size + 1,
            kernel_size=basis.size,
        )
        fit, orders = _fit_or_lower(stamps, basis, orders)
        middle = np.tensordot(_at_middle(fit.kernel_coefficients), basis.images, axes=1)
        norm = float((middle**2).sum())
    assert fit is not None
    return fit


def _fit_or_lower(
    stamps: Stamps, basis: KernelBasis, options: FitOptions
) -> tuple[KernelFit, FitOptions]:
    """Fit; where the stars do not suffice for the spatial orders, lower them and say so."""
    while True:
        try:
            return fit_kernel(stamps, basis, options), options
        except DataError as error:
            if options.kernel_order == options.background_order == 0:
                raise
            lower = dataclasses.replace(
                options,
                kernel_order=max(0, options.kernel_order - 1),
                background_order=max(0, options.background_order - 1),
            )
            _log.warning(
                "%s Falling back to kernel order %d and background order %d.",
                error,
                lower.kernel_order,
                lower.background_order,
            )
            options = lower


def _at_middle(coefficients: Array) -> Array:
    return np.array([np.polynomial.chebyshev.chebval2d(0.0, 0.0, c) for c in coefficients])


def _kernel(fit: KernelFit, basis: KernelBasis, exposure: Exposure) -> ImageBasisConvolutionKernel:
    """One image for each spatial term: fewer convolutions than one for each basis image."""
    order = fit.kernel_coefficients.shape[1] - 1
    images = np.stack(
        [
            np.tensordot(fit.kernel_coefficients[:, p, q], basis.images, axes=1)
            for p, q in chebyshev_terms(order)
        ]
    )
    return kernels.term_kernel(images, order, exposure.bbox)
