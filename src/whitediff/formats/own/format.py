"""Files of whitediff as a format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import astropy.io.fits

from ...exposures.boxes import Box
from ...exposures.model import Exposure
from ...formats import plain
from ...reading import ReadingOptions, VarianceSource
from ..files import Extension, opened
from ..format import Format, Identity
from .read import read
from .recognise import PLANES, recognise
from .roles import roles
from .write import write

__all__ = ["FORMAT", "is_whole", "read_with_options"]


def _recognise(hdus: astropy.io.fits.HDUList) -> Identity | None:
    found = recognise(hdus)
    return None if found is None else Identity("whitediff", "image", f"whitediff {found}")


def is_whole(extension: Extension, options: ReadingOptions) -> bool:
    """Whether a file is read with all its planes, and not as an image like any other.

    Parameters
    ----------
    extension, options
        As of `whitediff.formats.plain.read`.

    Returns
    -------
    found
        False where an extension is named, or the variance is another file's.
    """
    return extension is None and not isinstance(options.variance, VarianceSource)


def read_with_options(
    reader: Callable[..., Exposure], path: Path, options: ReadingOptions, box: Box | None
) -> Exposure:
    """Read a file that names its planes, with the mask and saturation level that were given.

    Parameters
    ----------
    reader
        Function of the path, with ``box``.
    path
        File.
    options
        Mask, mask bits and saturation are used, as by `whitediff.formats.plain.with_options`.
    box
        Pixels to read; None for all.

    Returns
    -------
    exposure
        Of the box; where something is given, of the whole frame.
    """
    if options.mask is options.mask_bits is options.saturation is None:
        return reader(path, box=box)
    return plain.with_options(reader(path), options, path)


def _read(
    path: Path,
    extension: Extension,
    *,
    options: ReadingOptions,
    needs_variance: bool,
    box: Box | None,
) -> Exposure:
    if is_whole(extension, options):
        with opened(path, checksums=False) as hdus:
            lacks_variance = "VARIANCE" not in hdus
        if options.variance is None or not lacks_variance:
            return read_with_options(read, path, options, box)
    return plain.read(path, extension, options=options, needs_variance=needs_variance)


def _missing_planes(hdus: astropy.io.fits.HDUList, identity: Identity) -> list[str]:
    return [name for name in PLANES if name not in hdus]


def _write(
    exposure: Exposure, path: Path, *, overwrite: bool, provenance: Any, **_: Any
) -> list[str]:
    write(exposure, path, overwrite=overwrite, provenance=provenance)
    return []


FORMAT = Format(
    name="whitediff",
    recognise=_recognise,
    read=_read,
    missing_planes=_missing_planes,
    roles=roles,
    writers={"whitediff": _write},
    holds_one_exposure=True,
)
