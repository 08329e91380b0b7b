"""From options of commands to the recipe of a subtraction."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ..alignment.resampling import ResamplingOptions
from ..decorrelation.exposures import CorrectionOptions
from ..defects.exposures import DefectOptions
from ..matching.design import FitOptions
from ..matching.exposures import MatchOptions
from ..matching.preparation import PreparationOptions
from ..subtraction.recipe import CutoutOptions, Recipe
from ..subtraction.solution import Solution
from .options import RecipeOptions

__all__ = ["as_asked", "recipe_of"]


def recipe_of(options: RecipeOptions) -> Recipe:
    """Recipe that options ask for.

    Parameters
    ----------
    options
        Options of a command.

    Returns
    -------
    recipe
        Recipe for `whitediff.subtraction.pipeline`.

    Raises
    ------
    ArgumentError
        If a value is refused.
    """
    # The delta basis has hundreds of free pixels: to try all orders would take minutes.
    usual: Literal[1, "bic"] = 1 if options.basis == "delta" else "bic"
    kernel_order = usual if options.kernel_order is None else options.kernel_order
    return Recipe(
        preparation=PreparationOptions(
            rescale_variance=not options.keep_variance,
            use_wcs=not options.ignore_wcs,
            resampling=_resampling(options),
            defects=DefectOptions(
                cosmic_rays=False if options.no_cosmic_rays else "auto",
                bad_pixels=False if options.no_bad_pixels else "auto",
                trails=False if options.no_trails else "auto",
                level_jumps=False if options.no_level_jumps else "auto",
            ),
        ),
        match=MatchOptions(
            convolved=options.convolved or "auto",
            basis=options.basis,
            kernel_size=options.kernel_size,
            choose_order=None if isinstance(kernel_order, int) else kernel_order,
            background=options.background,
            fit=FitOptions(
                kernel_order=kernel_order if isinstance(kernel_order, int) else 1,
                background_order=options.background_order,
                constant_sum=not options.varying_sum,
            ),
        ),
        correction=CorrectionOptions(
            noise=options.whitening.noise,
            spatially_varying=not options.whitening.constant,
            fill=options.whitening.fill,
            full_variance=options.full_variance,
        ),
        cutout=CutoutOptions(
            kernel_from=options.kernel_from, flux_scale=options.flux_scale, place=options.transient
        ),
    )


def _resampling(options: RecipeOptions) -> ResamplingOptions | None:
    if not (options.align or options.register):
        return None
    return ResamplingOptions(
        method=options.align_method,
        noise=options.whitening.noise,
        positions="distortions" if options.register else "stars",
    )


def as_asked(solution: Solution, recipe: Recipe) -> Solution:
    """Stored solution with the options that may be changed without a new fit.

    Parameters
    ----------
    solution
        Solution of an earlier product, whose recipe is kept otherwise.
    recipe
        Recipe of the present options, which may newly ask to ignore the WCS, or for the full
        variance.

    Returns
    -------
    solution
        Changed copy; the given solution itself if neither is asked for.
    """
    old = solution.recipe
    if not recipe.preparation.use_wcs:
        preparation = dataclasses.replace(old.preparation, use_wcs=False)
        old = dataclasses.replace(old, preparation=preparation)
    if recipe.correction.full_variance:
        correction = dataclasses.replace(old.correction, full_variance=True)
        old = dataclasses.replace(old, correction=correction)
    return solution if old is solution.recipe else dataclasses.replace(solution, recipe=old)
