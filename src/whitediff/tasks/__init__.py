"""LSST tasks: the documented names and defaults, on real `lsst.pipe.base` classes."""

from .decorrelate import (
    DecorrelateALKernelConfig,
    DecorrelateALKernelTask,
    UnusableExposureError,
)
from .match import (
    InsufficientKernelSourcesError,
    MakeKernelConfig,
    MakeKernelTask,
    PsfMatchConfig,
    PsfMatchConfigAL,
    PsfMatchConfigDF,
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
    "DecorrelateALKernelConfig",
    "DecorrelateALKernelTask",
    "InsufficientKernelSourcesError",
    "MakeKernelConfig",
    "MakeKernelTask",
    "PsfMatchConfig",
    "PsfMatchConfigAL",
    "PsfMatchConfigDF",
    "UnusableExposureError",
]
