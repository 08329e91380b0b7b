"""Connections of the pipeline tasks: the datasets that they read and write."""

from __future__ import annotations

from typing import Any

from lsst.pipe.base import PipelineTaskConnections
from lsst.pipe.base import connectionTypes as types

__all__ = [
    "DecorrelateConnections",
    "DetectConnections",
    "DetectScoreConnections",
    "RecreateConnections",
    "ScoreConnections",
    "SubtractConnections",
]

_DIMENSIONS = ("instrument", "visit", "detector")
_EXPOSURE = "WhitediffExposure"
_SOLUTION = "WhitediffSolution"
_CATALOG = "WhitediffCatalog"


class _PairConnections(PipelineTaskConnections, dimensions=_DIMENSIONS):  # type: ignore[call-arg]
    """A science exposure and its template."""

    science = types.Input(
        doc="Science exposure.", name="science", storageClass=_EXPOSURE, dimensions=_DIMENSIONS
    )
    template = types.Input(
        doc="Template on the same pixels, or larger, or shifted by whole pixels.",
        name="template",
        storageClass=_EXPOSURE,
        dimensions=_DIMENSIONS,
    )


class SubtractConnections(_PairConnections, dimensions=_DIMENSIONS):  # type: ignore[call-arg]
    """Connections of a subtraction; the configuration drops optional ones."""

    sources = types.Input(
        doc="Sources of the science exposure, from which kernel sources are chosen.",
        name="science_sources",
        storageClass="ArrowAstropy",
        dimensions=_DIMENSIONS,
    )
    difference = types.Output(
        doc="Science - template at the science level.",
        name="difference",
        storageClass=_EXPOSURE,
        dimensions=_DIMENSIONS,
    )
    solution = types.Output(
        doc="All that it takes to make the difference again.",
        name="difference_solution",
        storageClass=_SOLUTION,
        dimensions=_DIMENSIONS,
    )
    matchedTemplate = types.Output(
        doc="The template as it was subtracted.",
        name="matched_template",
        storageClass=_EXPOSURE,
        dimensions=_DIMENSIONS,
    )
    kernelSources = types.Output(
        doc="Stars that the kernel was measured on.",
        name="kernel_sources",
        storageClass="ArrowAstropy",
        dimensions=_DIMENSIONS,
    )

    def __init__(self, *, config: Any = None) -> None:
        super().__init__(config=config)
        for name, field in (
            ("sources", "doUseSources"),
            ("matchedTemplate", "doWriteMatchedTemplate"),
            ("kernelSources", "doWriteKernelSources"),
        ):
            if not getattr(config, field):
                delattr(self, name)


class ScoreConnections(SubtractConnections, dimensions=_DIMENSIONS):  # type: ignore[call-arg]
    """Connections of a detection score."""

    scoreExposure = types.Output(
        doc="Detection score: the image to find sources on.",
        name="score",
        storageClass=_EXPOSURE,
        dimensions=_DIMENSIONS,
    )

    def __init__(self, *, config: Any = None) -> None:
        super().__init__(config=config)
        del self.difference


class DecorrelateConnections(_PairConnections, dimensions=_DIMENSIONS):  # type: ignore[call-arg]
    """Connections of the decorrelation of a stored difference."""

    difference = types.Input(
        doc="Difference or score before decorrelation.",
        name="difference_uncorrected",
        storageClass=_EXPOSURE,
        dimensions=_DIMENSIONS,
    )
    solution = types.Input(
        doc="How it was made, or just its matching kernel.",
        name="difference_match",
        storageClass=_SOLUTION,
        dimensions=_DIMENSIONS,
    )
    correctedExposure = types.Output(
        doc="The same with white noise.",
        name="difference",
        storageClass=_EXPOSURE,
        dimensions=_DIMENSIONS,
    )
    correctedSolution = types.Output(
        doc="All that it takes to make it again.",
        name="difference_solution",
        storageClass=_SOLUTION,
        dimensions=_DIMENSIONS,
    )


class RecreateConnections(_PairConnections, dimensions=_DIMENSIONS):  # type: ignore[call-arg]
    """Connections of a difference that is made again from its stored solution."""

    solution = types.Input(
        doc="All that it takes to make it.",
        name="difference_solution",
        storageClass=_SOLUTION,
        dimensions=_DIMENSIONS,
    )
    difference = types.Output(
        doc="Difference or score, as the solution has it.",
        name="difference_recreated",
        storageClass=_EXPOSURE,
        dimensions=_DIMENSIONS,
    )


class DetectConnections(PipelineTaskConnections, dimensions=_DIMENSIONS):  # type: ignore[call-arg]
    """Connections of the detection of sources; the configuration drops optional ones."""

    science = types.Input(
        doc="Science exposure.", name="science", storageClass=_EXPOSURE, dimensions=_DIMENSIONS
    )
    difference = types.Input(
        doc="Difference with white noise, on which sources are measured.",
        name="difference",
        storageClass=_EXPOSURE,
        dimensions=_DIMENSIONS,
    )
    kernelSources = types.Input(
        doc="Stars that the kernel was measured on.",
        name="kernel_sources",
        storageClass="ArrowAstropy",
        dimensions=_DIMENSIONS,
    )
    diaSources = types.Output(
        doc="Sources of the difference.",
        name="difference_sources",
        storageClass=_CATALOG,
        dimensions=_DIMENSIONS,
    )
    subtractedMeasuredExposure = types.Output(
        doc="The difference with the mask planes of what was detected.",
        name="difference_measured",
        storageClass=_EXPOSURE,
        dimensions=_DIMENSIONS,
    )

    def __init__(self, *, config: Any = None) -> None:
        super().__init__(config=config)
        if not config.doUseKernelSources:
            del self.kernelSources
        if not config.doWriteMeasuredExposure:
            del self.subtractedMeasuredExposure


class DetectScoreConnections(DetectConnections, dimensions=_DIMENSIONS):  # type: ignore[call-arg]
    """Connections of the detection of sources on a score."""

    scoreExposure = types.Input(
        doc="Score on which sources are found.",
        name="score",
        storageClass=_EXPOSURE,
        dimensions=_DIMENSIONS,
    )
