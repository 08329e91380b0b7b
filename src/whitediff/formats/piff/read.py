"""Reading of Piff's PSF models, with Piff itself."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import numpy.typing as npt

from ...errors import ArgumentError, FileFormatError, one_line
from ...exposures.boxes import Box
from ...exposures.psf import KernelPointSpreadFunction, sampled_psf
from ..files import Extension, opened
from .recognise import recognise
from .tables import TrustedReader

__all__ = ["read"]

type Array = npt.NDArray[Any]

_SIDE = 49
_LARGEST_SIDE = 301


def read(path: Path, extension: Extension = None, *, bounds: Box) -> KernelPointSpreadFunction:
    """Read a model.

    Parameters
    ----------
    path
        File.  Like all files of Piff it contains pickles, but nothing in them is executed.
    extension
        Number of the detector (Piff's chipnum), needed if the file has several.
    bounds
        Box of the exposure.

    Returns
    -------
    psf
        Images drawn by the model, interpolated by polynomials of the position.

    Raises
    ------
    FileFormatError
        If Piff is missing or cannot read the model, or if the model names anything that is not on
        the lists of `whitediff.formats.piff.trusted`, or depends on more than the position.

    Notes
    -----
    Piff takes positions from its star catalogue, which counts pixels from 1, the convention of FITS
    and SExtractor.
    """
    with opened(path) as hdus:
        if recognise(hdus) is None:
            raise FileFormatError.of(path, "is no model of Piff.")
        side = _stamp_side(hdus)
        try:
            piff = importlib.import_module("piff")
            config = importlib.import_module("piff.config")
        except ImportError as error:
            raise FileFormatError.of(
                path, "is a PSF of Piff, which is not installed; install whitediff[piff]."
            ) from error
        try:
            # Piff gets only checked tables, never the file.
            reader = TrustedReader(hdus, path)
            model = piff.PSF._read(reader, "psf", config.PiffLogger(None))
            chips = sorted(model.wcs)
            extra = set(model.interp_property_names) - {"x", "y", "u", "v"}
        except FileFormatError:
            raise
        except Exception as error:
            # Piff raises errors of any kind.
            raise FileFormatError.of(
                path, f"cannot be read by Piff ({one_line(error)}); is it complete?"
            ) from error
    if extra:
        raise FileFormatError.of(
            path,
            f"its PSF depends on {', '.join(sorted(extra))}; only models of the position"
            " can be read.",
        )
    if (extension is None and len(chips) > 1) or (extension is not None and extension not in chips):
        raise FileFormatError.of(
            path,
            f"holds the PSFs of the detectors {', '.join(map(str, chips))}; name one, as in"
            f" {path.name}[{chips[0]}].",
        )
    chip = chips[0] if extension is None else extension

    def image_at(x: float, y: float) -> Array:
        try:
            drawn = model.draw(x=x + 1, y=y + 1, chipnum=chip, stamp_size=side, center=True)
        except Exception as error:
            raise FileFormatError.of(
                path, f"cannot be drawn by Piff at x = {x:g}, y = {y:g} ({one_line(error)})."
            ) from error
        return np.asarray(drawn.array, dtype=np.float64)

    try:
        return sampled_psf(image_at, bounds)
    except ArgumentError as error:
        raise FileFormatError.of(path, f"{error} Is it the PSF of this image?") from error


def _stamp_side(hdus: astropy.io.fits.HDUList) -> int:
    """Odd side of the stamps that the model was fitted to; 49 if the file does not give it."""
    for hdu in hdus[1:]:
        if hdu.name.lower() == "psf_stars" and {"xmin", "xmax"} <= set(hdu.columns.names):
            widths = np.asarray(hdu.data["xmax"]) - np.asarray(hdu.data["xmin"]) + 1
            if widths.size and 3 <= widths.max() <= _LARGEST_SIDE:
                return int(widths.max()) // 2 * 2 + 1
    return _SIDE
