"""LSST tasks: the documented names and defaults, on real `lsst.pipe.base` classes."""

from .decorrelate import DecorrelateALKernelConfig, DecorrelateALKernelTask, UnusableExposureError
from .decorrelate_spatial import (
    DecorrelateALKernelMapper,
    DecorrelateALKernelMapperConfig,
    DecorrelateALKernelMapReduceConfig,
    DecorrelateALKernelMapReduceTask,
    DecorrelateALKernelSpatialConfig,
    DecorrelateALKernelSpatialTask,
)
from .detect import (
    BadSubtractionError,
    DetectAndMeasureConfig,
    DetectAndMeasureScoreConfig,
    DetectAndMeasureScoreTask,
    DetectAndMeasureTask,
    NoDiaSourcesError,
    SourceDetectionConfig,
)
from .map_reduce import (
    ImageMapper,
    ImageMapperConfig,
    ImageMapReduceConfig,
    ImageMapReduceTask,
    ImageReducer,
    ImageReducerConfig,
)
from .match import (
    InsufficientKernelSourcesError,
    MakeKernelConfig,
    MakeKernelTask,
    PsfMatchConfig,
    PsfMatchConfigAL,
    PsfMatchConfigDF,
)
from .stored import (
    DecorrelateDifferenceConfig,
    DecorrelateDifferenceTask,
    RecreateDifferenceConfig,
    RecreateDifferenceTask,
)
from .subtract import (
    AlardLuptonPreconvolveSubtractConfig,
    AlardLuptonPreconvolveSubtractTask,
    AlardLuptonSubtractBaseConfig,
    AlardLuptonSubtractConfig,
    AlardLuptonSubtractTask,
)

__all__ = [
    "AlardLuptonPreconvolveSubtractConfig",
    "AlardLuptonPreconvolveSubtractTask",
    "AlardLuptonSubtractBaseConfig",
    "AlardLuptonSubtractConfig",
    "AlardLuptonSubtractTask",
    "BadSubtractionError",
    "DecorrelateALKernelConfig",
    "DecorrelateALKernelMapReduceConfig",
    "DecorrelateALKernelMapReduceTask",
    "DecorrelateALKernelMapper",
    "DecorrelateALKernelMapperConfig",
    "DecorrelateALKernelSpatialConfig",
    "DecorrelateALKernelSpatialTask",
    "DecorrelateALKernelTask",
    "DecorrelateDifferenceConfig",
    "DecorrelateDifferenceTask",
    "DetectAndMeasureConfig",
    "DetectAndMeasureScoreConfig",
    "DetectAndMeasureScoreTask",
    "DetectAndMeasureTask",
    "ImageMapReduceConfig",
    "ImageMapReduceTask",
    "ImageMapper",
    "ImageMapperConfig",
    "ImageReducer",
    "ImageReducerConfig",
    "InsufficientKernelSourcesError",
    "MakeKernelConfig",
    "MakeKernelTask",
    "NoDiaSourcesError",
    "PsfMatchConfig",
    "PsfMatchConfigAL",
    "PsfMatchConfigDF",
    "RecreateDifferenceConfig",
    "RecreateDifferenceTask",
    "SourceDetectionConfig",
    "UnusableExposureError",
]
