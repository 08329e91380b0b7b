"""Tasks that take up what another has stored: decorrelating it, or making it again."""

from __future__ import annotations

from typing import Any, ClassVar

import lsst.pex.config as pex_config
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, Struct
from lsst.utils.timer import timeMethod

from ..errors import DataError
from ..exposures import masks
from ..exposures.decorrelation import refuse_decorrelated, refuse_white
from ..exposures.model import Exposure
from ..exposures.noise import PairSources, pair_sources, rescaled, without_sentinels
from ..exposures.pipeline import aligned_as_before, defects_as_before, mark_sources
from ..exposures.reuse import apply_solution
from ..exposures.solution import Solution
from ..exposures.widths import warn_of_significances
from .connections import DecorrelateConnections, RecreateConnections
from .decorrelate_spatial import DecorrelateALKernelSpatialTask
from .match import algorithm_error

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
        """Filter scores as fitted kernels need it, and lose no level at edges and holes."""
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
    False, the result is that of the command ``whitediff subtract``.
    """

    ConfigClass: ClassVar[Any] = DecorrelateDifferenceConfig
    _DefaultName: ClassVar[str] = "decorrelateDifference"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.makeSubtask("decorrelate")

    @timeMethod
    def run(self, science: Any, template: Any, difference: Any, solution: Any) -> Struct:
        """Decorrelate.

        Parameters
        ----------
        science, template
            Exposures before any convolution, with the variance planes that they came with.
        difference
            Difference or score that was made of them.
        solution
            `whitediff.exposures.solution.Solution`; or a matching kernel of the template.

        Returns
        -------
        result
            ``correctedExposure`` : `whitediff.Exposure`.
            ``correctedSolution`` : `whitediff.exposures.solution.Solution` with which it is made
            again.

        Raises
        ------
        ValueError
            If the exposures do not lie on the same pixels.
        UnusableExposureError
            If an exposure has no usable pixel, or the noise of the difference is white already.
        """
        if not isinstance(solution, Solution):
            solution = Solution.of_kernel(solution)
        science, template, levels = _inputs(science, template, solution)
        difference = Exposure.from_object(difference)
        try:
            refuse_decorrelated(difference)
            if solution.preconvolution_kernel is None:
                refuse_white(
                    science, template, difference, solution.kernel, convolved=solution.convolved
                )
            result = self.decorrelate.run(
                science,
                template,
                difference,
                solution.kernel,
                preConvKernel=solution.preconvolution_kernel,
                templateMatched=solution.convolved == "template",
                preConvMode=solution.preconvolution_kernel is not None,
                scaleFactor=solution.scale_factor,
                sources=levels.either,
            )
        except DataError as error:
            raise algorithm_error(error) from error
        corrected = result.correctedExposure
        if corrected.background is None:
            corrected.background = difference.background
        if masks.find_plane(corrected.mask, masks.STATIC) is None:
            mark_sources(corrected, levels)
        warn_of_significances(corrected)
        return Struct(
            correctedExposure=corrected,
            correctedSolution=solution.completed(result.decorrelation),
        )


class RecreateDifferenceConfig(PipelineTaskConfig, pipelineConnections=RecreateConnections):  # type: ignore[call-arg]
    """Configuration of `RecreateDifferenceTask`."""

    completeVarPlanePropagation = pex_config.Field(
        dtype=bool, default=False, doc="Propagate the variance of every pixel."
    )


class RecreateDifferenceTask(PipelineTask):
    """Make a difference or score again, from its solution and the two exposures.

    Parameters
    ----------
    **kwargs
        As for `lsst.pipe.base.PipelineTask`.

    Notes
    -----
    What the command ``whitediff subtract --kernel`` does: of the exposures of the first time,
    nothing is fitted or measured, and pixels and variances are those of before.
    """

    ConfigClass: ClassVar[Any] = RecreateDifferenceConfig
    _DefaultName: ClassVar[str] = "recreateDifference"

    @timeMethod
    def run(self, science: Any, template: Any, solution: Solution) -> Struct:
        """Make it again.

        Parameters
        ----------
        science, template
            Exposures, as they were the first time.
        solution
            Of the first time, after decorrelation.

        Returns
        -------
        result
            ``difference`` : `whitediff.Exposure`, a difference or a score; mask planes of both
            exposures united, and those of their sources.

        Raises
        ------
        ValueError
            If the exposures have other pixels than the solution.
        UnusableExposureError
            If they are other exposures, and their stars contradict the kernel.
        """
        science, template, levels = _aligned(science, template, solution)
        try:
            product = apply_solution(solution, science, template, levels).product(
                full_variance=self.config.completeVarPlanePropagation
            )
        except DataError as error:
            raise algorithm_error(error) from error
        exposure = product.exposure
        mark_sources(exposure, levels)
        warn_of_significances(exposure)
        self.metadata["kernelSum"] = product.decorrelation.kernel_sum
        self.metadata["diffimVarianceMeanAfter"] = product.decorrelation.variance_mean_after
        return Struct(difference=exposure)


def _inputs(
    science: Any, template: Any, solution: Solution
) -> tuple[Exposure, Exposure, PairSources]:
    """Exposures as a solution takes them, and where they have sources."""
    science, template, levels = _aligned(science, template, solution)
    return (
        rescaled(science, solution.science_variance_factor),
        rescaled(template, solution.template_variance_factor),
        levels,
    )


def _aligned(
    science: Any, template: Any, solution: Solution
) -> tuple[Exposure, Exposure, PairSources]:
    """Exposures on the same pixels, and where they have sources."""
    science = without_sentinels(Exposure.from_object(science))
    template = without_sentinels(Exposure.from_object(template))
    science, template = defects_as_before(science, template, [solution])
    template = aligned_as_before(science, template, [solution])
    return science, template, pair_sources([science], [template])
