"""Decorrelation subtasks, in terms of recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..decorrelation.cells import CellOptions
from ..decorrelation.exposures import CorrectionOptions, Decorrelation
from ..exposures.model import Exposure
from ..subtraction.solution import Solution
from .decorrelate import DecorrelateALKernelConfig, DecorrelateALKernelTask
from .decorrelate_spatial import DecorrelateALKernelSpatialConfig, DecorrelateALKernelSpatialTask

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from lsst.pex.config.configurableField import ConfigurableInstance
    from lsst.pipe.base import Task

__all__ = ["recipe_of_correction", "run_decorrelation"]


def recipe_of_correction(
    field: ConfigurableInstance,
) -> tuple[CorrectionOptions, CellOptions | None, str | None]:
    """Parts of a recipe, from the configuration of a decorrelation subtask.

    Parameters
    ----------
    field
        Configurable field of the subtask.

    Returns
    -------
    correction, cells
        Fields of `whitediff.subtraction.recipe.Recipe`.
    foreign
        Name of the task, or of its part, that is not whitediff's; None if all are.
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
    task: Task,
    solution: Solution,
    science: Exposure,
    template: Exposure,
    difference: Exposure,
    sources: npt.NDArray[np.bool_] | None,
) -> Decorrelation | None:
    """Run a decorrelation subtask in place of `whitediff.subtraction.solution.corrected`.

    Parameters
    ----------
    task
        `DecorrelateALKernelTask`, or another task with its ``run``.
    solution, science, template, difference, sources
        As for `corrected`.

    Returns
    -------
    result
        Numbers of the correction, with the corrected exposure; None if the difference came back
        unchanged.
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
