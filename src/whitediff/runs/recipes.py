"""What the options of commands say about how products are made."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Literal

from ..exposures.decorrelation import CorrectionOptions
from ..exposures.defects import DefectOptions
from ..exposures.matching import BasisChoice, MatchOptions
from ..exposures.preparation import PreparationOptions
from ..exposures.recipe import CutoutOptions, Recipe
from ..exposures.resampling import ResamplingOptions
from ..exposures.solution import Solution
from ..matching.design import FitOptions

__all__ = ["RECIPE_OPTIONS", "as_asked", "recipe_of"]


def recipe_of(
    *,
    convolved: Literal["template", "science", "auto"] | None = None,
    kernel_order: int | Literal["bic", "cross-validation"] | None = None,
    background_order: int = 2,
    background: Literal["auto", "polynomial", "mesh"] = "auto",
    basis: BasisChoice = "auto",
    kernel_size: int | None = None,
    varying_sum: bool = False,
    keep_variance: bool = False,
    ignore_wcs: bool = False,
    align: bool = False,
    register: bool = False,
    align_method: Literal["auto", "interpolating", "adaptive"] = "auto",
    noise: Literal["white", "auto", "measured"] = "auto",
    constant: bool = False,
    fill: Literal["mean", "interpolate"] = "interpolate",
    full_variance: bool = False,
    no_cosmic_rays: bool = False,
    no_bad_pixels: bool = False,
    no_trails: bool = False,
    no_level_jumps: bool = False,
    kernel_from: Literal["auto", "stars", "psfs", "pixels"] = "auto",
    flux_scale: float | None = None,
    transient: tuple[float, float] | None = None,
) -> Recipe:
    """Recipe that the options of ``whitediff subtract`` ask for.

    Parameters
    ----------
    convolved, kernel_order, background_order, background, basis, kernel_size, varying_sum, \
    keep_variance, ignore_wcs, align, register, align_method, noise, constant, fill, \
    full_variance, no_cosmic_rays, no_bad_pixels, no_trails, no_level_jumps, kernel_from, \
    flux_scale, transient
        Options of the command.

    Returns
    -------
    recipe
        As `whitediff.exposures.pipeline` takes it.

    Raises
    ------
    ArgumentError
        If a value is refused.
    """
    resampling = None
    if align or register:
        resampling = ResamplingOptions(
            method=align_method,
            noise=noise,
            positions="distortions" if register else "stars",
        )
    if kernel_order is None:
        # To try all orders with hundreds of free pixels takes minutes.
        kernel_order = 1 if basis == "delta" else "bic"
    return Recipe(
        preparation=PreparationOptions(
            rescale_variance=not keep_variance,
            use_wcs=not ignore_wcs,
            resampling=resampling,
            defects=DefectOptions(
                cosmic_rays=False if no_cosmic_rays else "auto",
                bad_pixels=False if no_bad_pixels else "auto",
                trails=False if no_trails else "auto",
                level_jumps=False if no_level_jumps else "auto",
            ),
        ),
        match=MatchOptions(
            convolved=convolved or "auto",
            basis=basis,
            kernel_size=kernel_size,
            choose_order=kernel_order if isinstance(kernel_order, str) else None,
            background=background,
            fit=FitOptions(
                kernel_order=1 if isinstance(kernel_order, str) else kernel_order,
                background_order=background_order,
                constant_sum=not varying_sum,
            ),
        ),
        correction=CorrectionOptions(
            noise=noise,
            spatially_varying=not constant,
            fill=fill,
            full_variance=full_variance,
        ),
        cutout=CutoutOptions(kernel_from=kernel_from, flux_scale=flux_scale, place=transient),
    )


RECIPE_OPTIONS: Mapping[str, object] = {
    name: parameter.default for name, parameter in inspect.signature(recipe_of).parameters.items()
}
"""Options of `recipe_of` and their defaults."""


def as_asked(solution: Solution, recipe: Recipe) -> Solution:
    """Stored solution with what may be asked for anew.

    Parameters
    ----------
    solution
        Of an earlier product, whose recipe holds.
    recipe
        Of the options that are given now: the WCS may be ignored, or the full variance wanted,
        other than before.

    Returns
    -------
    solution
        The same one where nothing of that is asked for.
    """
    old = solution.recipe
    if not recipe.preparation.use_wcs:
        preparation = dataclasses.replace(old.preparation, use_wcs=False)
        old = dataclasses.replace(old, preparation=preparation)
    if recipe.correction.full_variance:
        correction = dataclasses.replace(old.correction, full_variance=True)
        old = dataclasses.replace(old, correction=correction)
    return solution if old is solution.recipe else dataclasses.replace(solution, recipe=old)
