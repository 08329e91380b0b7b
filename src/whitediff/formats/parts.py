"""List of the parts that a whitediff file was written with, so that lost parts are noticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import astropy.io.fits

from ..errors import FileFormatError

__all__ = ["KEYWORD", "check_parts", "listed", "lost_parts"]

KEYWORD = "WDPARTS"
"""Card of the primary header that lists the names of all extensions, separated by commas."""


def listed(names: Iterable[str]) -> str:
    """Value of the card WDPARTS.

    Parameters
    ----------
    names
        Names of the extensions, in their order.

    Returns
    -------
    text
        Names that are not empty, separated by commas.
    """
    return ",".join(name for name in names if name)


def lost_parts(hdus: astropy.io.fits.HDUList) -> list[str]:
    """Extensions that a file was written with, but no longer has.

    Parameters
    ----------
    hdus
        HDUs of a file.

    Returns
    -------
    names
        Their names; empty for files of other programs, which have no such list.
    """
    text = hdus[0].header.get(KEYWORD)
    if not isinstance(text, str):
        return []
    wanted = Counter(name.strip() for name in text.split(",") if name.strip())
    return list(dict.fromkeys((wanted - Counter(hdu.name for hdu in hdus[1:])).elements()))


def check_parts(hdus: astropy.io.fits.HDUList, needed: Iterable[str], path: Path) -> None:
    """Make sure that a file has not lost an extension that is needed.

    Parameters
    ----------
    hdus
        HDUs of a file.
    needed
        Names of extensions; those that the file never had are not missed.
    path
        File, for the message.

    Raises
    ------
    FileFormatError
        If one of them was written with the file, but is no longer there.
    """
    lost = [name for name in lost_parts(hdus) if name in set(needed)]
    if lost:
        raise FileFormatError.of(
            path,
            f"has lost {', '.join(lost)}, which it was written with ({KEYWORD}) and which"
            " is needed here; take the whole file.",
        )
