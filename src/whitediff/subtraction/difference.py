"""Subtracting one exposure from another with a known kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..direction import Direction
from ..errors import ArgumentError
from ..exposures import foreign, kernels, masks
from ..exposures.boxes import Box
from ..exposures.fields import Field
from ..exposures.kernels import ConvolutionKernel
from ..exposures.masks import Mask
from ..exposures.missing import missing_pixels
from ..exposures.model import Exposure, Provenance, precise
from ..matching.convolution import convolved_exposure
from ..numerics.planes import each_block, row_blocks
from ..numerics.threads import single_threaded_algebra

__all__ = ["subtract", "subtract_background"]

type Array = npt.NDArray[Any]


@single_threaded_algebra()
def subtract(
    science: object,
    template: object,
    kernel: ConvolutionKernel | Array,
    *,
    convolved: Direction = "template",
    background: Field | Array | float = 0.0,
    scale_factor: float = 1.0,
    full_variance: bool = True,
) -> Exposure:
    """Difference with a known matching kernel, before any decorrelation.

    Parameters
    ----------
    science, template
        Exposures on the same pixels.
    kernel
        Kernel that matches the convolved exposure to the other one.
    convolved
        Exposure to convolve.
    background
        Differential background, subtracted; image_unit of the science exposure.
    scale_factor
        If the science exposure is convolved: photometric scale over the kernel's sum
        (`photometric_scale_factor`).
    full_variance
        Propagate every pixel's variance; else it is taken as locally constant.

    Returns
    -------
    difference
        ``science − κ⊗template − background``, or ``(κ⊗science − template)/(kSum ·
        scale_factor) − background``: always science − template, at the science level.  Variance
        and mask are those of `convolved_exposure`, with the other exposure's added.

    Raises
    ------
    ArgumentError
        If the exposures do not share a grid.

    Notes
    -----
    Alard & Lupton 1998, eq. 1.
    """
    science, template = Exposure.from_object(science), Exposure.from_object(template)
    if science.bbox != template.bbox:
        raise ArgumentError.of(
            template.source or "The template",
            f"its box {template.bbox} is not that of the science image, {science.bbox}.",
        )
    science, template = precise(science, template)
    box, kernel = science.bbox, foreign.adapted(kernel)
    if not isinstance(kernel, ConvolutionKernel):
        kernel = kernels.constant_kernel(np.asarray(kernel), box)
    source, target = (template, science) if convolved == "template" else (science, template)
    matched = convolved_exposure(source, kernel, full_variance=full_variance)
    image = matched.data
    if convolved == "template":
        np.subtract(target.data, image, out=image)
    else:
        image -= target.data
    variance = matched.variance + target.variance
    if convolved == "science":
        scale = kernels.KernelSum(kernel, box)
        for rows in row_blocks(box.shape):
            local = scale.on(rows) * scale_factor
            image[rows] /= local
            # In two steps: a square may leave the range of single precision.
            variance[rows] /= local
            variance[rows] /= local
    subtract_background(image, background, box)
    image = image.astype(science.data.dtype, copy=False)
    # The convolved exposure was matched to the PSF of the other one.
    return Exposure(
        image,
        variance,
        _united(matched.mask, target, image),
        origin=box.start,
        unit=science.unit,
        psf=target.psf,
        header=science.header.copy(),
        provenance=Provenance(
            primary_header=science.primary_header.copy(),
            kernel=kernel,
            background=None if isinstance(background, float | int) else background,
        ),
    )


def subtract_background(image: Array, background: Field | Array | float, box: Box) -> None:
    """Subtract a background, in place.

    Parameters
    ----------
    image
        ``(ny, nx)``; changed.
    background
        Background, image_unit.
    box
        Box of the image.
    """

    def work(rows: slice) -> None:
        if isinstance(background, Field):
            image[rows] -= background.on(box.part(rows))
        elif isinstance(background, np.ndarray):
            image[rows] -= background[rows]
        elif background:
            image[rows] -= background

    with single_threaded_algebra():
        each_block(work, image.shape)


def _united(mask: Mask, target: Exposure, image: Array) -> Mask:
    mask = masks.united(mask, target.mask)
    unmeasured = ~np.isfinite(image)
    # Missing pixels of the target that no mask plane marks: their variance is invalid.
    unmeasured |= missing_pixels(target) & ~masks.flagged(
        target.mask, masks.INTERPOLATED_MASK_PLANES
    )
    masks.set_plane(mask, "NO_DATA", unmeasured)
    return mask
