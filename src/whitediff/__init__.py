"""Difference images whose noise is white, with a variance that can be trusted."""

from __future__ import annotations

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

__version__ = "0.1.0"

# Names load their module on first use: help and errors shall not wait for SciPy.
_MODULES = {
    "Exposure": "exposures.model",
    "WhitediffError": "errors",
    "align": "api",
    "check": "api",
    "decorrelate": "api",
    "detect": "api",
    "evaluate": "api",
    "inject": "api",
    "measure": "api",
    "read": "api",
    "read_catalog": "formats.catalogs",
    "report": "api",
    "subtract": "api",
    "to_ccddata": "api",
    "to_gridded_psf_model": "api",
    "to_hdulist": "api",
    "write": "api",
    "write_catalog": "formats.catalogs",
}

__all__ = ["__version__", *_MODULES]

if _TYPE_CHECKING:
    from .api import (
        align,
        check,
        decorrelate,
        detect,
        evaluate,
        inject,
        measure,
        read,
        report,
        subtract,
        to_ccddata,
        to_gridded_psf_model,
        to_hdulist,
        write,
    )
    from .errors import WhitediffError
    from .exposures.model import Exposure
    from .formats.catalogs import read_catalog, write_catalog


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(_importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
