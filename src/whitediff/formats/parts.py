"""The list of parts that a file of whitediff was written with: a part that is lost is told of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import astropy.io.fits

from ..errors import FileFormatError

__all__ = ["KEYWORD", "check_parts", "listed", "lost_parts"]

KEYWORD = "WDPARTS"
"""Card of the primary header: names of all extensions, with commas between them."""


def listed(names: Iterable[str]) -> str:
    """Value of the card.

    Parameters
    ----------
    names
        Of the extensions, in their order.

    Returns
    -------
    text
        Those that have a name.
    """
    return ",".join(name for name in names if name)


def lost_parts(hdus: astropy.io.fits.HDUList) -> list[str]:
    """Extensions that a file was written with, and has no more.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    names
        Empty for files of others, which do not say.
    """
    text = hdus[0].header.get(KEYWORD)
    if not isinstance(text, str):
        return []
    wanted = Counter(name.strip() for name in text.split(",") if name.strip())
    return list(dict.fromkeys((wanted - Counter(hdu.name for hdu in hdus[1:])).elements()))


def check_parts(hdus: astropy.io.fits.HDUList, needed: Iterable[str], path: Path) -> None:
    """Make sure that nothing is lost of what something needs.

    Parameters
    ----------
    hdus
        HDUs of a file.
    needed
        Names of extensions; those that the file never had are not missed.
    path
        For the message.

    Raises
    ------
    FileFormatError
        If one of them was written with the file, and is not there any more.
    """
    lost = [name for name in lost_parts(hdus) if name in set(needed)]
    if lost:
        raise FileFormatError.of(
            path,
            f"has lost {', '.join(lost)}, which it was written with ({KEYWORD}) and which"
            " is needed here; take the whole file.",
        )
