"""LSST tasks: the documented names and defaults, on real `lsst.pipe.base` classes."""

from .decorrelate import (
    DecorrelateALKernelConfig,
    DecorrelateALKernelTask,
    UnusableExposureError,
)

__all__ = [
    "DecorrelateALKernelConfig",
    "DecorrelateALKernelTask",
    "UnusableExposureError",
]
