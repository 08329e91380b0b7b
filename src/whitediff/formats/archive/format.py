"""Archives of lsst.images as a format; the library is imported when one is read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import astropy.io.fits

from ...errors import FileFormatError
from ...exposures import foreign
from ...exposures.boxes import Box
from ...exposures.kernels import ConvolutionKernel
from ...exposures.model import Exposure
from ...exposures.psf import PointSpreadFunction
from ...formats import own, plain
from ...reading import ReadingOptions
from ..files import Extension, opened
from ..format import Format, Identity, Kind, Writer
from .recognise import recognise

__all__ = ["FORMAT"]

_log = logging.getLogger("whitediff.formats")

_KINDS: dict[str, Kind] = {
    "difference_image": "difference",
    "image_basis_convolution_kernel": "kernel",
}
_MASKED = ("masked_image", "visit_image", "difference_image", "cell_coadd")


def _recognise(hdus: astropy.io.fits.HDUList) -> Identity | None:
    schema = recognise(hdus)
    if schema is None:
        return None
    kind = _KINDS.get(schema, "psf" if schema.endswith("psf") else "image")
    return Identity("lsst.images", kind, f"lsst.images archive ({schema})")


def _read(
    path: Path,
    extension: Extension,
    *,
    options: ReadingOptions,
    needs_variance: bool,
    box: Box | None,
) -> Exposure:
    if own.is_whole(extension, options):
        with opened(path, checksums=False) as hdus:
            has_end, is_masked = "JSON" in hdus, "VARIANCE" in hdus and "MASK" in hdus
        if not has_end:
            raise FileFormatError.of(
                path, "is an lsst.images archive without its end (JSON); copy or download it again."
            )
        if is_masked:
            return own.read_with_options(_reader(), path, options, box)
    return plain.read(path, extension, options=options, needs_variance=needs_variance)


def _reader() -> Callable[..., Exposure]:
    """Reader of archives; without lsst.images, the reader of whitediff's own files."""
    try:
        from .read import read
    except ModuleNotFoundError as error:
        _log.info(
            "%s is not installed: archives of lsst.images are read without PSFs and projections of"
            " its own kinds; install whitediff[rubin] for these.",
            error.name,
        )
        return own.read
    return read


def _read_stored(path: Path, name: str) -> ConvolutionKernel | PointSpreadFunction:
    """Kernel or PSF that an archive consists of, or that belongs to its image."""
    try:
        from .read import read_object
    except ModuleNotFoundError as error:
        raise FileFormatError.of(
            path, "is an lsst.images archive; install whitediff[rubin] to read it."
        ) from error
    obj = read_object(path)
    if hasattr(obj, "mask"):
        obj = getattr(obj, name, None)
    obj = foreign.adapted(obj)
    if not isinstance(obj, ConvolutionKernel | PointSpreadFunction):
        raise FileFormatError.of(path, f"this lsst.images archive holds no {name}.")
    return obj


def _missing_planes(hdus: astropy.io.fits.HDUList, identity: Identity) -> list[str]:
    if recognise(hdus) not in _MASKED:
        return []
    return [name for name in ("MASK", "VARIANCE") if name not in hdus]


def _writer(kind: Any) -> Writer:
    def write(exposure: Exposure, path: Path, *, like: Any, overwrite: bool, **_: Any) -> list[str]:
        try:
            from .objects import write_object
        except ModuleNotFoundError as error:
            raise FileFormatError.of(
                path,
                "objects of lsst.images are written by that library; install whitediff[rubin].",
            ) from error
        write_object(exposure, path, kind, like=like, overwrite=overwrite)
        return []

    return write


FORMAT = Format(
    name="lsst.images",
    recognise=_recognise,
    read=_read,
    read_stored=_read_stored,
    missing_planes=_missing_planes,
    roles=own.roles,
    writers={kind: _writer(kind) for kind in ("masked-image", "visit-image", "difference-image")},
    holds_one_exposure=True,
)
