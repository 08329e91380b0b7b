"""LSST tasks on stored results: decorrelate a difference, or make it again."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, ClassVar

import lsst.pex.config as pex_config
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, Struct
from lsst.utils.timer import timeMethod

from ..decorrelation.exposures import refuse_decorrelated, refuse_white
from ..errors import DataError
from ..exposures.model import Exposure
from ..noise.exposures import PairSources, pair_sources, rescaled, without_sentinels
from ..subtraction.pipeline import Kind, Pipeline, as_before, finished
from ..subtraction.solution import Solution, completed_product, subtracted
from .connections import DecorrelateConnections, RecreateConnections
from .correction import recipe_of_correction, run_decorrelation
from .decorrelate_spatial import DecorrelateALKernelSpatialTask
from .match import algorithm_error

if TYPE_CHECKING:
    from ..exposures.kernels import ConvolutionKernel
    from .decorrelate import ExposureLike

__all__ = [
    "DecorrelateDifferenceConfig",
    "DecorrelateDifferenceTask",
    "RecreateDifferenceConfig",
    "RecreateDifferenceTask",
]


class DecorrelateDifferenceConfig(PipelineTaskConfig, pipelineConnections=DecorrelateConnections):  # type: ignore[call-arg]
    """Configuration of `DecorrelateDifferenceTask`."""

    decorrelate = pex_config.ConfigurableField(
        target=DecorrelateALKernelSpatialTask, doc="Makes the noise of the result white."
    )

    def setDefaults(self) -> None:
        """Filter scores as fitted kernels need it, and keep the level at edges and holes."""
        super().setDefaults()
        self.decorrelate.decorrelateConfig.scoreFilter = "compact"
        self.decorrelate.decorrelateConfig.fill = "interpolate"


class DecorrelateDifferenceTask(PipelineTask):
    """Decorrelate a difference or score that was stored with its kernel.

    Parameters
    ----------
    **kwargs
        As for `lsst.pipe.base.PipelineTask`.

    Notes
    -----
    After `AlardLuptonSubtractTask` with ``doDecorrelation`` and ``doAttributeTemplateMask``
    False, the result equals the result of the command ``whitediff subtract``.
    """

    ConfigClass: ClassVar[Any] = DecorrelateDifferenceConfig
    _DefaultName: ClassVar[str] = "decorrelateDifference"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.makeSubtask("decorrelate")

    @timeMethod
    def run(
        self,
        science: ExposureLike,
        template: ExposureLike,
        difference: ExposureLike,
        solution: Solution | ConvolutionKernel,
    ) -> Struct:
        """Decorrelate a difference or score.

        Parameters
        ----------
        science, template
            Exposures before any convolution, with their original variance planes.
        difference
            Difference or score that was made from them.
        solution
            `whitediff.subtraction.solution.Solution`; or a kernel with which the template was
            convolved.

        Returns
        -------
        result
            ``correctedExposure`` : `whitediff.Exposure`.
            ``correctedSolution`` : `whitediff.subtraction.solution.Solution` to make it again.

        Raises
        ------
        ValueError
            If the exposures do not lie on the same pixels.
        UnusableExposureError
            If an exposure has no usable pixel, or the difference is decorrelated or white already.
        """
        if not isinstance(solution, Solution):
            solution = Solution.of_kernel(solution)
        correction, cells, foreign = recipe_of_correction(self.config.decorrelate)
        recipe = dataclasses.replace(
            solution.recipe, decorrelate=True, correction=correction, cells=cells, foreign=foreign
        )
        # The noise is measured again, as this task's configuration says.
        solution = dataclasses.replace(
            solution, recipe=recipe, science_variance=None, template_variance=None, noises=None
        )
        science, template, levels = _inputs(science, template, solution)
        difference = Exposure.from_object(difference)
        if recipe.template_mask is not None:
            # The stored mask lacks planes of the template, which contaminate pixels too: make it
            # again from the masks of both exposures.
            whole, _ = subtracted(solution, science, template)
            difference = difference.replaced(mask=whole.mask)
        try:
            refuse_decorrelated(difference)
            if solution.preconvolution_kernel is None:
                refuse_white(
                    science, template, difference, solution.kernel, convolved=solution.convolved
                )
            product = completed_product(
                solution,
                science,
                template,
                difference,
                levels.either,
                correct=functools.partial(run_decorrelation, self.decorrelate),
            )
        except DataError as error:
            raise algorithm_error(error) from error
        kind: Kind = "difference" if solution.preconvolution_kernel is None else "score"
        made = finished(kind, product, science, template, levels)
        return Struct(correctedExposure=made.exposure, correctedSolution=made.solution)


class RecreateDifferenceConfig(PipelineTaskConfig, pipelineConnections=RecreateConnections):  # type: ignore[call-arg]
    """Configuration of `RecreateDifferenceTask`."""

    completeVarPlanePropagation = pex_config.Field(
        dtype=bool,
        default=False,
        doc="Propagate the variance of every pixel, even where that was not done before.",
    )


class RecreateDifferenceTask(PipelineTask):
    """Make a difference or score again, from its solution and the two exposures.

    Parameters
    ----------
    **kwargs
        As for `lsst.pipe.base.PipelineTask`.

    Notes
    -----
    Does the same as the command ``whitediff subtract --kernel``.  From the same exposures the same
    pixels and variances result, without fit or measurement.
    """

    ConfigClass: ClassVar[Any] = RecreateDifferenceConfig
    _DefaultName: ClassVar[str] = "recreateDifference"

    @timeMethod
    def run(self, science: ExposureLike, template: ExposureLike, solution: Solution) -> Struct:
        """Make a difference or score again.

        Parameters
        ----------
        science, template
            Exposures, as they were the first time.
        solution
            Solution of the first time, after decorrelation.

        Returns
        -------
        result
            ``difference`` : `whitediff.Exposure`, a difference or a score; its mask unites the
            planes of both exposures and of their sources.

        Raises
        ------
        ValueError
            If the exposures have other pixels than the solution.
        UnusableExposureError
            If they are other exposures whose stars contradict the kernel.
        """
        kind: Kind = "difference" if solution.preconvolution_kernel is None else "score"
        if self.config.completeVarPlanePropagation:
            correction = dataclasses.replace(solution.recipe.correction, full_variance=True)
            recipe = dataclasses.replace(solution.recipe, correction=correction)
            solution = dataclasses.replace(solution, recipe=recipe)
        science, template = (
            without_sentinels(Exposure.from_object(each)) for each in (science, template)
        )
        try:
            (made,) = Pipeline().again(science, template, {kind: solution})
        except DataError as error:
            raise algorithm_error(error) from error
        box = made.exposure.bbox
        image = solution.kernel.at(x=box.x.center, y=box.y.center)
        self.metadata["kernelSum"] = float(image.sum())
        if made.decorrelation is not None:
            self.metadata["diffimVarianceMeanAfter"] = made.decorrelation.variance_mean_after
        return Struct(difference=made.exposure)


def _inputs(
    science: Any, template: Any, solution: Solution
) -> tuple[Exposure, Exposure, PairSources]:
    """Exposures prepared as the solution says, and their sources."""
    science, template = (
        without_sentinels(Exposure.from_object(each)) for each in (science, template)
    )
    science, template = as_before(science, template, [solution])
    return (
        rescaled(science, solution.science_variance_factor),
        rescaled(template, solution.template_variance_factor),
        pair_sources([science], [template]),
    )
