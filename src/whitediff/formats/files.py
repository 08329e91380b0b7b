"""Opening FITS files so that whatever is wrong with them is said in one sentence."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import astropy.io.fits
import astropy.utils.exceptions

from ..errors import ArgumentError, FileFormatError, one_line

__all__ = ["opened", "split_extension"]

_WITH_EXTENSION = re.compile(r"(?P<path>.+)\[(?P<extension>[^\[\]]+)\]")


def split_extension(path: str | Path) -> tuple[Path, str | int | None]:
    """Split ``file.fits[EXT]`` into the file and the extension.

    Parameters
    ----------
    path
        Path, possibly with the name or number of an extension in brackets.

    Returns
    -------
    path, extension
        The extension is None where none is named; an existing file's name is taken as
        it is.

    Examples
    --------
    >>> split_extension("night1.fits[SCI]")[1], split_extension("night1.fits[2]")[1]
    ('SCI', 2)
    """
    text = os.fspath(path)
    match = None if os.path.exists(text) else _WITH_EXTENSION.fullmatch(text)
    if match is None:
        return Path(text), None
    extension = match["extension"].strip()
    return Path(match["path"]), int(extension) if extension.isdigit() else extension


@contextlib.contextmanager
def opened(path: Path) -> Iterator[astropy.io.fits.HDUList]:
    """Open a FITS file, whole and readable.

    Parameters
    ----------
    path
        File.

    Yields
    ------
    hdus
        Its HDUs, all headers read.

    Raises
    ------
    FileFormatError
        If it does not exist, is not FITS, or is shorter than its headers say; also where
        astropy cannot read what the caller asks for.
    """
    if not path.exists():
        raise FileFormatError(f"{path}: no such file.")
    if path.is_dir():
        raise FileFormatError(f"{path}: is a directory, not a FITS file.")
    with warnings.catch_warnings():
        # Slips in headers that astropy repairs are not the user's news here; a file that
        # is too short is checked for below.
        warnings.simplefilter("ignore", astropy.utils.exceptions.AstropyWarning)
        try:
            with astropy.io.fits.open(path) as hdus:
                _check_complete(path, hdus)
                yield hdus
        except (FileFormatError, ArgumentError):
            raise
        except (
            OSError,
            EOFError,
            TypeError,
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
            astropy.io.fits.VerifyError,
        ) as error:
            raise FileFormatError(
                f"{path}: cannot be read as FITS ({one_line(error)});"
                " is it complete and really a FITS file?"
            ) from error


def _check_complete(path: Path, hdus: astropy.io.fits.HDUList) -> None:
    size = path.stat().st_size
    compressed = path.suffix in (".gz", ".bz2", ".zst", ".Z", ".xz")
    for hdu in hdus:  # reads all headers
        info = hdu.fileinfo()
        if info is None or compressed:
            continue
        # The padding of the last block may be missing; its data may not.  A compressed
        # image states the size that it unpacks to.
        unpacked = isinstance(hdu, astropy.io.fits.CompImageHDU)
        end = info["datLoc"] + (info["datSpan"] if unpacked else hdu.size)
        if end > size:
            raise FileFormatError(
                f"{path}: truncated: {hdu.name or 'the primary HDU'} ends at byte {end}, but the"
                f" file has {size}; copy or download it again."
            )
