"""Parts of astropy, each loaded when it is first used.

Together they take longer to load than NumPy and all of whitediff.  Code that needs none of them,
such as arrays and errors, runs without loading them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["coordinates", "fits", "nddata", "table", "units", "wcs"]

if TYPE_CHECKING:
    from astropy import coordinates, nddata, table, units, wcs
    from astropy.io import fits


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = importlib.import_module("astropy.io.fits" if name == "fits" else f"astropy.{name}")
    globals()[name] = found
    return found
