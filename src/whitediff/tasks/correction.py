"""The decorrelation subtask of a task, in terms of recipes."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from ..decorrelation.cells import CellOptions
from ..decorrelation.exposures import CorrectionOptions, Decorrelation
from ..exposures.model import Exposure
from ..subtraction.solution import Solution
from .decorrelate import DecorrelateALKernelConfig, DecorrelateALKernelTask
from .decorrelate_spatial import DecorrelateALKernelSpatialConfig, DecorrelateALKernelSpatialTask

__all__ = ["recipe_of_correction", "run_decorrelation"]


def recipe_of_correction(field: Any) -> tuple[CorrectionOptions, CellOptions | None, str | None]:
    """Parts of a recipe that the configuration of a decorrelation subtask says.

    Parameters
    ----------
    field
        Configurable field of the subtask.

    Returns
    -------
    correction, cells
        As for `whitediff.subtraction.recipe.Recipe`.
    foreign
        Name of the task, where it is not one of ours; None where it is.
    """
    target, config = field.target, field.value
    if target is DecorrelateALKernelTask and isinstance(config, DecorrelateALKernelConfig):
        return config.to_correction(), None, None
    if target is DecorrelateALKernelSpatialTask and isinstance(
        config, DecorrelateALKernelSpatialConfig
    ):
        foreign = "a mapper or reducer of its own" if config.is_foreign() else None
        return *config.to_correction(), foreign
    return CorrectionOptions(), None, f"{target.__module__}.{target.__qualname__}"


def run_decorrelation(
    task: Any,
    solution: Solution,
    science: Exposure,
    template: Exposure,
    difference: Exposure,
    sources: npt.NDArray[Any] | None,
) -> Decorrelation | None:
    """Run a decorrelation subtask as `whitediff.subtraction.solution.corrected` would correct.

    Parameters
    ----------
    task
        `DecorrelateALKernelTask`, or what has its ``run``.
    solution, science, template, difference, sources
        As for `corrected`.

    Returns
    -------
    result
        The numbers behind it, with the corrected exposure; None where it came back unchanged.
    """
    score = solution.preconvolution_kernel is not None
    result = task.run(
        science,
        template,
        difference,
        solution.kernel,
        preConvKernel=solution.preconvolution_kernel,
        templateMatched=solution.convolved == "template",
        preConvMode=score,
        scaleFactor=solution.scale_factor,
        sources=sources,
    )
    decorrelation: Decorrelation | None = result.decorrelation
    return decorrelation
