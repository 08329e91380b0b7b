"""What is this file? Every format is asked in turn, and looks at the content."""

from __future__ import annotations

import dataclasses
from typing import Literal

import astropy.io.fits

from . import archive, ccddata, hotpants, own, piff, plain, psfex, sfft
from .lsst import afw

__all__ = ["Identity", "identify", "missing_planes"]

type Kind = Literal["image", "difference", "kernel", "psf", "other"]

_ARCHIVES: dict[str, Kind] = {
    "difference_image": "difference",
    "image_basis_convolution_kernel": "kernel",
}


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a file is.

    Attributes
    ----------
    format
        ``whitediff``, ``lsst.images``, ``hotpants``, ``sfft``, ``psfex``, ``piff``, ``lsst.afw``,
        ``ccddata`` or ``plain``.
    kind
        What it holds in the first place.
    detail
        The same in words.
    """

    format: str
    kind: Kind
    detail: str


def identify(hdus: astropy.io.fits.HDUList) -> Identity | None:
    """Recognise a file by its content.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    identity
        None where it has no HDU with data.
    """
    schema = archive.recognise(hdus)
    if schema is not None:
        kind = _ARCHIVES.get(schema)
        if kind is None and schema.endswith("psf"):
            kind = "psf"
        return Identity("lsst.images", kind or "image", f"lsst.images archive ({schema})")
    if own.recognise(hdus) is not None:
        return Identity("whitediff", "image", "whitediff exposure")
    # Before the programs whose headers a difference keeps when it is converted.
    found = ccddata.recognise(hdus)
    if found is not None:
        return Identity("ccddata", "image", f"astropy CCDData ({found})")
    found = hotpants.recognise(hdus)
    if found is not None:
        kinds: dict[str, Kind] = {"difference": "difference", "kernel": "kernel"}
        return Identity("hotpants", kinds.get(found, "image"), f"HOTPANTS {found}")
    found = sfft.recognise(hdus)
    if found is not None:
        word: Kind = "kernel" if found == "kernel" else "difference"
        return Identity("sfft", word, f"SFFT {'solution' if found == 'kernel' else found}")
    for module, name, kind_of, text in (
        (psfex, "psfex", "psf", "PSFEx model"),
        (piff, "piff", "psf", "Piff model"),
        (afw, "lsst.afw", "image", "lsst.afw exposure"),
    ):
        found = module.recognise(hdus)
        if found is not None:
            return Identity(name, kind_of, f"{text} ({found})" if found else text)  # type: ignore[arg-type]
    if plain.recognise(hdus):
        stamps = plain.stamps(hdus)
        return Identity("plain", stamps or "image", f"FITS ({stamps})" if stamps else "FITS")
    return None


_MASKED = ("masked_image", "visit_image", "difference_image", "cell_coadd")


def missing_planes(hdus: astropy.io.fits.HDUList, identity: Identity) -> list[str]:
    """Planes that files of a kind have, and this one has not.

    Parameters
    ----------
    hdus
        HDUs of a file.
    identity
        What it is.

    Returns
    -------
    names
        ``MASK``, ``VARIANCE``; of HOTPANTS ``mask``, ``noise``, if its command asked for them.
    """
    if identity.format == "lsst.afw" or (
        identity.format == "lsst.images" and archive.recognise(hdus) in _MASKED
    ):
        return [name for name in ("MASK", "VARIANCE") if name not in hdus]
    if (identity.format, identity.kind) == ("hotpants", "difference"):
        return hotpants.missing_layers(hdus)
    return []
