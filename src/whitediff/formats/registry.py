"""All formats, in the order in which they are asked to recognise a file."""

from __future__ import annotations

from pathlib import Path

import astropy.io.fits

from . import archive, ccddata, hotpants, own, piff, plain, psfex, sfft
from .files import opened, split_extension
from .format import Format, Identity, Writer
from .lsst import afw

__all__ = ["FORMATS", "format_of", "identify", "identity_of", "writers"]

FORMATS: tuple[Format, ...] = (
    # Before our own format: an archive that we wrote has the planes of both.
    archive.FORMAT,
    own.FORMAT,
    # Before HOTPANTS and SFFT: a converted difference keeps the cards of these programs.
    ccddata.FORMAT,
    hotpants.FORMAT,
    sfft.FORMAT,
    psfex.FORMAT,
    piff.FORMAT,
    afw.FORMAT,
    # Last, since it recognises any file with an image.
    plain.FORMAT,
)


def identify(hdus: astropy.io.fits.HDUList) -> Identity | None:
    """Recognise a file by its content.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    identity
        Identity; None if no HDU has data.
    """
    for each in FORMATS:
        found = each.recognise(hdus)
        if found is not None:
            return found
    return None


def identity_of(path: str | Path) -> Identity | None:
    """Recognise a file by its content.

    Parameters
    ----------
    path
        File; an extension in brackets is ignored.

    Returns
    -------
    identity
        Identity; None if no HDU has data.

    Raises
    ------
    FileFormatError
        If the file is not FITS.
    """
    with opened(split_extension(path)[0]) as hdus:
        return identify(hdus)


def format_of(identity: Identity) -> Format:
    """Format of a file.

    Parameters
    ----------
    identity
        Identity, from `identify`.

    Returns
    -------
    format
        Registered format of that name.
    """
    return next(each for each in FORMATS if each.name == identity.format)


def writers() -> dict[str, Writer]:
    """Formats that exposures can be written in.

    Returns
    -------
    writers
        Name → function, as in `Format.writers`.
    """
    return {name: write for each in FORMATS for name, write in each.writers.items()}
