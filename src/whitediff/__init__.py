"""Difference images whose noise is white, with a variance that can be trusted."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Names load their module on first use: the array functions need no lsst package.
_LAZY = {
    "Exposure": "exposures.model",
    "decorrelate": "exposures.decorrelation",
    "DetectionOptions": "exposures.detection",
    "detect": "exposures.detection",
    "forced_photometry": "exposures.detection",
    "inject": "exposures.injection",
    "subtract": "exposures.difference",
    "subtract_cutout": "exposures.difference",
    "read_exposure": "formats",
    "write_exposure": "formats",
    "read_catalog": "formats.catalogs",
    "write_catalog": "formats.catalogs",
    "from_ccddata": "formats.ccddata",
    "to_ccddata": "formats.ccddata",
    "whiteness": "diagnostics.measure",
}

__all__ = ["__version__", *_LAZY]

if TYPE_CHECKING:
    from .diagnostics.measure import whiteness
    from .exposures.decorrelation import decorrelate
    from .exposures.detection import DetectionOptions, detect, forced_photometry
    from .exposures.difference import subtract, subtract_cutout
    from .exposures.injection import inject
    from .exposures.model import Exposure
    from .formats import read_exposure, write_exposure
    from .formats.catalogs import read_catalog, write_catalog
    from .formats.ccddata import from_ccddata, to_ccddata


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
