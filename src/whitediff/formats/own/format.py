"""Format of whitediff's own files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from .write import CardValue

__all__ = ["FORMAT", "is_whole", "read_with_options"]


def _recognise(hdus: astropy.io.fits.HDUList) -> Identity | None:
    found = recognise(hdus)
    return None if found is None else Identity("whitediff", "image", f"whitediff {found}")


def is_whole(extension: Extension, options: ReadingOptions) -> bool:
    """Whether a file is read with all its planes, instead of as a plain image.

    Parameters
    ----------
    extension, options
        As in `whitediff.formats.plain.read`.

    Returns
    -------
    found
        False if an extension is named, or the variance is in another file.
    """
    return extension is None and not isinstance(options.variance, VarianceSource)


def read_with_options(
    reader: Callable[..., Exposure], path: Path, options: ReadingOptions, box: Box | None
) -> Exposure:
    """Read a file that names its planes, with a mask and a saturation level from options.

    Parameters
    ----------
    reader
        Function of the path, with ``box``.
    path
        File.
    options
        Options, of which `whitediff.formats.plain.with_options` uses mask, mask bits and
        saturation.
    box
        Pixels to read; None for all.

    Returns
    -------
    exposure
        Exposure in the box; in the whole frame if one of these options is set.
    """
    # A mask in a file of its own has the shape of the whole frame.
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
    exposure: Exposure,
    path: Path,
    *,
    overwrite: bool,
    provenance: Mapping[str, tuple[CardValue, str]] | None,
    **_: Any,
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
