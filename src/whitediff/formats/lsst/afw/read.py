"""Reading of lsst.afw exposures: planes, mask bits, origin and header, but not the archive."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ....errors import FileFormatError
from ....exposures.model import Exposure
from ....formats import plain
from ...files import Extension, opened
from .recognise import archived

__all__ = ["read"]

_log = logging.getLogger("whitediff.formats")


def read(path: Path, extension: Extension = None, **options: Any) -> Exposure:
    """Read an exposure.

    Parameters
    ----------
    path
        File.
    extension
        Extension of the image; None: IMAGE.
    **options
        Options of `whitediff.formats.plain.read`.

    Returns
    -------
    exposure
        Exposure with all mask planes under their own names, even if no pixel has them, and the
        pixel origin.  Only lsst.afw can read the file's PSF, so it must come from another file.

    Raises
    ------
    FileFormatError
        If a plane cannot be read or does not fit.
    """
    with opened(path) as hdus:
        names = {hdu.name.upper() for hdu in hdus}
        for hdu in hdus:
            plane = str(hdu.header.get("EXTTYPE", "")).strip()
            if plane in ("MASK", "VARIANCE") and plane not in names:
                raise FileFormatError.of(
                    path,
                    f"its {plane} is not called so (EXTNAME is {hdu.name!r}); is the file whole?",
                )
        psfs = sorted({name for name in archived(hdus) if "psf" in name.lower()})
    exposure = plain.read(path, "IMAGE" if extension is None else extension, **options)
    if psfs and exposure.psf is None:
        _log.info(
            "%s: its PSF (%s) can be read by lsst.afw only; it is taken from another file or"
            " measured.",
            path,
            ", ".join(psfs),
        )
    return exposure
