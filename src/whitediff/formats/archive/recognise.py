"""Is this file an lsst.images archive?"""

from __future__ import annotations

import astropy.io.fits

__all__ = ["recognise"]


def recognise(hdus: astropy.io.fits.HDUList) -> str | None:
    """Schema of an lsst.images archive.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    schema
        Schema, such as ``masked_image`` or ``visit_image``; None if the file is no archive.
    """
    url = hdus[0].header.get("DATAMODL")
    if not isinstance(url, str) or "JSONADDR" not in hdus[0].header:
        return None
    # …/schemas/masked_image-1.0.0
    return url.rstrip("/").rsplit("/", 1)[-1].rsplit("-", 1)[0]
