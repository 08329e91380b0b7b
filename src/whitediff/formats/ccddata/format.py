"""Format of CCDData files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import astropy.io.fits

from ...exposures.model import Exposure
from ...formats import plain
from ..files import Extension
from ..format import Format, Identity, whole
from .read import read
from .recognise import FLAGS, recognise
from .write import write

__all__ = ["FORMAT"]


def _recognise(hdus: astropy.io.fits.HDUList) -> Identity | None:
    found = recognise(hdus)
    return None if found is None else Identity("ccddata", "image", f"astropy CCDData ({found})")


def _roles(
    hdus: astropy.io.fits.HDUList, identity: Identity, extension: Extension, path: Path
) -> dict[int, str]:
    flags = {i: "mask" for i, hdu in enumerate(hdus) if hdu.name == FLAGS}
    return flags | plain.roles(hdus, extension, path)


def _write(exposure: Exposure, path: Path, *, like: Any, **options: Any) -> list[str]:
    write(exposure, path, **options)
    if exposure.unit is not None:
        return []
    return ["tells no unit of its pixels, which CCDData must have: adu is written."]


FORMAT = Format(
    name="ccddata",
    recognise=_recognise,
    read=whole(read),
    roles=_roles,
    writers={"ccddata": _write},
)
