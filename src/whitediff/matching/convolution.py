"""Exposures convolved with a kernel, so that one has the other's PSF and photometric scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..direction import Direction
from ..errors import ArgumentError
from ..exposures import foreign, kernels, masks
from ..exposures.boxes import Box
from ..exposures.kernels import ConvolutionKernel
from ..exposures.masks import Mask
from ..exposures.missing import missing_pixels, without_missing
from ..exposures.model import Exposure, Provenance
from ..exposures.psf import KernelPointSpreadFunction, Light, PointSpreadFunction, convolved_psf
from ..numerics import fourier, planes
from ..numerics.convolution import convolve, convolve_varying, reflected
from ..numerics.distrust import (
    CONTAMINATION_THRESHOLD,
    absolute_weight,
    distrusted_pixels,
    unsupported_pixels,
)
from ..numerics.missing import smallest_sigma
from ..numerics.planes import filled, row_blocks
from ..numerics.threads import side_by_side

__all__ = [
    "convolved_exposure",
    "matched_science",
    "matched_template",
    "photometric_scale_factor",
    "preconvolution_kernel",
    "preconvolved",
    "unsupported",
]

type Array = npt.NDArray[Any]

_LEAST_REACHING = 0.01
"""Share of the usual weight with which a plane marks a pixel that no plane marks with more."""


def convolved_exposure(
    exposure: Exposure,
    kernel: ConvolutionKernel | Array,
    *,
    full_variance: bool = True,
) -> Exposure:
    """Convolve an exposure.

    Parameters
    ----------
    exposure
        Exposure.
    kernel
        Kernel; an array stands for one kernel everywhere.
    full_variance
        Propagate every pixel's variance; else the variance is taken as locally constant.

    Returns
    -------
    convolved
        Convolved exposure, without a PSF.  Pixels without a measurement (`missing_pixels`) are
        interpolated before, and the frame is continued by its mirror image: no level is lost at
        an edge or a hole.  The variance plane has each pixel's own variance, without
        covariances.  EDGE is set where the kernel reaches beyond the frame.  Mask planes whose
        pixels hold no measurement grow to all pixels that owe too much to them
        (`whitediff.numerics.distrust.distrusted_pixels`); among these, pixels that were not finite
        are NaN and NO_DATA.
    """
    box, kernel = exposure.bbox, foreign.adapted(kernel)
    if not isinstance(kernel, ConvolutionKernel):
        kernel = kernels.constant_kernel(np.asarray(kernel), box)
    middle = kernel.at(x=box.x.center, y=box.y.center)
    images, weights = kernels.convolution_terms(kernel, box)
    missing = missing_pixels(exposure)
    whole = without_missing(exposure, missing)
    pixels = whole.data

    def planes_of() -> tuple[Array, Array]:
        image = convolve_varying(pixels, images, weights, boundary="reflect")
        return image, _convolved_variance(whole, images, weights, full=full_variance)

    (image, variance), (mask, distrusted) = side_by_side(
        planes_of, lambda: _convolved_mask(whole, missing, middle), pixels=missing.size
    )
    lost = distrusted & ~np.isfinite(exposure.data)
    if lost.any():
        image[lost] = np.nan
        masks.set_plane(mask, "NO_DATA", lost)
    return Exposure(
        image,
        variance,
        mask,
        origin=box.start,
        unit=exposure.unit,
        header=exposure.header.copy(),
        provenance=Provenance(
            source=exposure.source, primary_header=exposure.primary_header.copy()
        ),
    )


def _convolved_variance(exposure: Exposure, images: Array, weights: Any, *, full: bool) -> Array:
    variance = exposure.variance
    dtype = np.result_type(variance.dtype, np.float32)
    largest = float((np.abs(images).sum(axis=(1, 2)) ** 2).max())
    if not 1e-20 < largest < 1e20:
        # Between units so different, a variance may leave the range of single precision.
        dtype = np.dtype(np.float64)
    if not full:
        ny, nx = exposure.shape
        middle = images[0]
        if weights is not None:
            local = weights(slice(ny // 2, ny // 2 + 1), slice(nx // 2, nx // 2 + 1))
            middle = np.tensordot(local[:, 0, 0], images, axes=1)
        factor = dtype.type((middle**2).sum())
        return filled(variance.shape, dtype, lambda rows: variance[rows] * factor)
    finite = np.where(np.isfinite(variance), variance, 0).astype(dtype, copy=False)
    if weights is None:
        return np.maximum(convolve(finite, images[0] ** 2, boundary="reflect"), 0)
    # The square of a sum of images: all their products, each with two weights.
    first, second = np.triu_indices(len(images))
    products = images[first] * images[second] * np.where(first == second, 1, 2)[:, None, None]

    def squared(rows: slice, columns: slice) -> Array:
        local: Array = weights(rows, columns)
        return local[first] * local[second]

    return np.maximum(convolve_varying(finite, products, squared, boundary="reflect"), 0)


def _convolved_mask(whole: Exposure, missing: Array, kernel: Array) -> tuple[Mask, Array]:
    """Mask of a convolved exposure, and all pixels that owe too much to missing pixels."""
    mask = masks.extended(whole.mask, ("NO_DATA", "EDGE"))
    distrusted = planes.zeros(missing.shape, bool)
    noise = smallest_sigma(whole.variance) or 0.0
    # The difference's noise is at least that of the convolved exposure before.
    sigma = noise * abs(float(kernel.sum()))
    if missing.any():
        distrusted = distrusted_pixels(kernel, whole.data, missing, noise=noise, sigma=sigma)
    least = CONTAMINATION_THRESHOLD * float(np.abs(kernel).sum())
    unnamed = distrusted.copy()
    for name in whole.mask.names:
        if not masks.is_one_of(name, masks.UNTRUSTED_MASK_PLANES):
            continue
        plane = masks.flagged(whole.mask, [name])
        if not plane.any():
            continue
        grown = absolute_weight(kernel, plane) > least
        if masks.is_one_of(name, masks.INTERPOLATED_MASK_PLANES):
            grown &= distrusted
        else:
            distrusted |= grown
        unnamed &= ~grown
        # Each pixel keeps the reason for which it is not trusted: the name of the input's plane.
        masks.set_plane(mask, name, grown)
    for name in masks.INTERPOLATED_MASK_PLANES:
        found = masks.find_plane(whole.mask, name)
        if found is not None and unnamed.any():
            # Next to a very bright star even less weight is too much.
            plane = masks.flagged(whole.mask, [found])
            reached = unnamed & (absolute_weight(kernel, plane) > _LEAST_REACHING * least)
            masks.set_plane(mask, found, reached)
            unnamed &= ~reached
    masks.set_plane(mask, "NO_DATA", unnamed)
    masks.set_plane(mask, "EDGE", unsupported(missing.shape, kernel.shape))
    beyond = unsupported_pixels(kernel, whole.data, noise=noise, sigma=sigma)
    if beyond.any():
        mask = masks.with_plane(mask, masks.UNSUPPORTED, beyond)
    return mask, distrusted


def unsupported(shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> Array:
    """Pixels at which a kernel reaches beyond the frame.

    Parameters
    ----------
    shape, kernel_shape
        (ny, nx) of image and kernel.

    Returns
    -------
    edge
        ``(ny, nx)`` boolean.
    """
    edge = np.ones(shape, dtype=bool)
    reach_y, reach_x = (n // 2 for n in kernel_shape)
    edge[reach_y : edge.shape[0] - reach_y, reach_x : edge.shape[1] - reach_x] = False
    return edge


def preconvolution_kernel(
    science: Exposure, given: PointSpreadFunction | Array | None = None
) -> Array:
    """PSF image with which a science image is correlated to make a score.

    Parameters
    ----------
    science
        Science exposure.
    given
        PSF, or an image of it; the exposure's own if None.

    Returns
    -------
    image
        ``(py, px)`` float64, odd sides, unit sum; at the PSF's average position.

    Raises
    ------
    ArgumentError
        If neither a PSF is given nor the exposure has one.
    """
    psf = science.psf if given is None else foreign.adapted(given)
    if psf is None:
        raise ArgumentError.of(
            science.source or "The science exposure",
            "has no PSF to pre-convolve with; a score needs it.",
        )
    if not isinstance(psf, PointSpreadFunction):
        psf = KernelPointSpreadFunction.from_image(np.asarray(psf), science.bbox)
    x, y = psf.average_position
    image = psf.at(x=x, y=y)
    return np.pad(image, [(0, 1 - n % 2) for n in image.shape])


def preconvolved(science: Exposure, kernel: Array) -> Exposure:
    """Correlate a science exposure with its PSF.

    Parameters
    ----------
    science
        Exposure.
    kernel
        `preconvolution_kernel`.

    Returns
    -------
    preconvolved
        `convolved_exposure` with the reflected kernel.  Its PSF is the science PSF convolved
        with the same kernel, on a stamp that holds all of it.

    Notes
    -----
    DMTN-179, section 4.
    """
    mirrored = reflected(kernel)
    result = convolved_exposure(science, mirrored)
    if science.psf is not None:
        result.psf = convolved_psf(science.psf, mirrored, science.bbox)
    return result


def matched_template(
    template: Exposure,
    kernel: ConvolutionKernel,
    *,
    convolved: Direction,
    scale_factor: float = 1.0,
) -> Exposure:
    """The template that is subtracted, at the science image's photometric level.

    Parameters
    ----------
    template
        Template.
    kernel
        Matching kernel.
    convolved
        Exposure that the kernel convolves.
    scale_factor
        As for `subtract`.

    Returns
    -------
    matched
        κ⊗template, or template/kSum with its own PSF.
    """
    if convolved == "template":
        return convolved_exposure(template, kernel)
    result = template.copy()
    _divide_by_sum(result, kernel, scale_factor)
    return result


def matched_science(
    science: Exposure,
    kernel: ConvolutionKernel,
    *,
    convolved: Direction,
    scale_factor: float = 1.0,
) -> Exposure:
    """The science image from which the template is subtracted.

    Parameters
    ----------
    science
        Science exposure, pre-convolved for a score.
    kernel
        Matching kernel.
    convolved
        Exposure that the kernel convolves.
    scale_factor
        As for `subtract`.

    Returns
    -------
    matched
        A copy, or κ⊗science/kSum.
    """
    if convolved == "science":
        result = convolved_exposure(science, kernel)
        _divide_by_sum(result, kernel, scale_factor)
        return result
    result = science.copy()
    return result


def _divide_by_sum(exposure: Exposure, kernel: ConvolutionKernel, scale_factor: float) -> None:
    """Bring an exposure to the science image's photometric level, in place."""
    scale = kernels.KernelSum(kernel, exposure.bbox)
    for rows in row_blocks(exposure.shape):
        local = scale.on(rows) * scale_factor
        exposure.data[rows] /= local
        exposure.variance[rows] /= local**2


def photometric_scale_factor(
    science_psf: PointSpreadFunction,
    template_psf: PointSpreadFunction,
    kernel: ConvolutionKernel,
    box: Box,
) -> float:
    """Photometric scale of a convolved science exposure, divided by the kernel's sum.

    The wings of a profile, and their flux, reach beyond every kernel's stamp: for Moffat profiles
    the sum is one or two percent low.  Photometry with the difference's PSF, which is the
    template's, finds ``⟨P_t, κ⊗P_s⟩/⟨P_t, P_t⟩`` of a source's flux.

    Parameters
    ----------
    science_psf, template_psf
        PSFs, normalised alike.
    kernel
        Kernel that matches the science exposure to the template.
    box
        Box of the exposures; PSFs and kernel are taken in its middle.

    Returns
    -------
    factor
        That ratio over the kernel's sum.
    """
    at = {"x": box.x.center, "y": box.y.center}
    image = kernel.at(**at)
    source, target = science_psf.at(**at), template_psf.at(**at)
    # Doubled below, so that convolutions do not wrap around.
    side = max(*source.shape, *target.shape, *image.shape) + 1

    def on_grid(stamp: Array) -> Array:
        return fourier.forward(fourier.pad_center_origin(stamp, (2 * side,) * 2), (2 * side,) * 2)

    source_ft = on_grid(source * Light.of(science_psf).enclosed)
    target_ft = on_grid(target * Light.of(template_psf).enclosed)
    shape = (2 * side, 2 * side)
    overlap = fourier.inverse(source_ft * on_grid(image) * target_ft.conj(), shape, (1, 1))
    norm = fourier.inverse(target_ft * target_ft.conj(), shape, (1, 1))
    return float(overlap[0, 0] / norm[0, 0] / image.sum())
