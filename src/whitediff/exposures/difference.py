"""One call from two exposures to their difference."""

from __future__ import annotations

from typing import Any, Literal

import numpy.typing as npt

from ..errors import ArgumentError, TooFewSourcesError
from .cutouts import kernel_source
from .fields import Field
from .kernels import ConvolutionKernel
from .model import Exposure
from .pipeline import Made, cutout_made, make_all
from .preparation import PreparationOptions
from .recipe import CutoutOptions, Recipe
from .subtraction import subtract as subtract_with_kernel

__all__ = ["subtract", "subtract_cutout"]

type Array = npt.NDArray[Any]


def subtract(
    science: Any,
    template: Any,
    kernel: ConvolutionKernel | Array | None = None,
    *,
    recipe: Recipe | None = None,
    convolved: Literal["template", "science"] = "template",
    background: Field | Array | float = 0.0,
    scale_factor: float = 1.0,
    full_variance: bool = True,
) -> Exposure:
    """Difference of two exposures, with a kernel that is found or known.

    Parameters
    ----------
    science, template
        Exposures on the same pixels.
    kernel
        Matching kernel.  Without one it is found: from stars, or where these are too few from both
        PSFs or from all pixels of a cut-out (`whitediff.exposures.cutouts.kernel_source`).
    recipe
        How a difference is made whose kernel has to be found.
    convolved, background, scale_factor, full_variance
        With a kernel that is known: as for `whitediff.exposures.subtraction.subtract`.

    Returns
    -------
    difference
        With a kernel that was found, white and with the variance that this makes; with one that is
        known, as it is before `whitediff.decorrelate`.

    Raises
    ------
    TooFewSourcesError
        If there are too few stars, and no other way.
    ArgumentError
        If the exposures do not share a grid, or a recipe is given beside a kernel.
    """
    if kernel is None:
        return make_all(science, template, recipe)["difference"].difference
    if recipe is not None:
        raise ArgumentError("A recipe says how a kernel is found; leave it out beside a kernel.")
    return subtract_with_kernel(
        science,
        template,
        kernel,
        convolved=convolved,
        background=background,
        scale_factor=scale_factor,
        full_variance=full_variance,
    )


def subtract_cutout(
    science: Any,
    template: Any,
    *,
    transient: tuple[float, float] | None = None,
    flux_scale: float | None = None,
    kernel_from: Literal["auto", "psfs", "pixels"] = "auto",
    rescale_variance: bool = True,
) -> Made:
    """Difference of two cut-outs around a transient, its flux, and whether to believe it.

    Parameters
    ----------
    science, template
        Exposures on the same pixels; with `Exposure.psf` where the PSFs are known.
    transient
        (x, y) of the transient, pixel coordinates; the middle of cut-outs of up to 128 pixels if
        None.
    flux_scale
        Flux of a static source on the science image over that on the template; from the zero
        points, or 1, if None.
    kernel_from
        ``psfs``: both PSFs, and the pixels where they tell more; ``pixels``: these alone; ``auto``:
        the former where both PSFs are known.
    rescale_variance
        Bring the variance planes to the measured noise.

    Returns
    -------
    made
        `Made`: ``difference``, ``flux``, ``problems``, and in ``cutout.fit`` the kernel and its
        error.

    Raises
    ------
    TooFewSourcesError
        If the images are larger than cut-outs and a PSF is not known.
    DataError
        If too few pixels are left to find a kernel on.
    """
    science, template = Exposure.from_object(science), Exposure.from_object(template)
    recipe = Recipe(
        preparation=PreparationOptions(rescale_variance=rescale_variance),
        cutout=CutoutOptions(kernel_from=kernel_from, flux_scale=flux_scale, place=transient),
    )
    unusual = TooFewSourcesError(
        f"{science.source or 'The science image'}: {science.shape[1]} x {science.shape[0]} pixels"
        " are more than a cut-out has; give both PSFs, or use whitediff.subtract."
    )
    source = kernel_source(science, template, recipe.cutout, unusual)
    assert source is not None
    return cutout_made(science, template, source, recipe)
