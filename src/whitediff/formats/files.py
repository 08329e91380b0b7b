"""Opening FITS files so that whatever is wrong with them is said in one sentence."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import astropy.io.fits
import astropy.utils.exceptions

from ..errors import ArgumentError, DataError, FileFormatError, one_line
from .remote import RemotePath, fetched, is_address

__all__ = ["Extension", "opened", "split_extension"]

_WITH_EXTENSION = re.compile(r"(?P<path>.+)\[(?P<extension>[^\[\]]+)\]")


type Extension = str | int | tuple[str, int] | None


def split_extension(path: str | Path) -> tuple[Path, Extension]:
    """Split ``file.fits[EXT]`` into the file and the extension.

    Parameters
    ----------
    path
        Path or address, possibly with an extension in brackets: its name, its name and version
        (``[SCI,2]``), or its number.

    Returns
    -------
    path, extension
        The extension is None where none is named; an existing file's name is taken as
        it is.  A remote file is fetched; its path is that of the copy.

    Examples
    --------
    >>> [split_extension(f"night1.fits[{ext}]")[1] for ext in ("SCI", "SCI,2", "2")]
    ['SCI', ('SCI', 2), 2]
    """
    if isinstance(path, RemotePath):
        return path, None
    text = os.fspath(path)
    if is_address(text):
        match = _WITH_EXTENSION.fullmatch(text)
        address = text if match is None else match["path"]
        return fetched(address), None if match is None else _parsed(match["extension"])
    match = None if os.path.exists(text) else _WITH_EXTENSION.fullmatch(text)
    if match is None:
        return Path(text), None
    return Path(match["path"]), _parsed(match["extension"])


def _parsed(text: str) -> Extension:
    extension = text.strip()
    name, _, version = (part.strip() for part in extension.partition(","))
    if version.isdigit():
        return (name, int(version))
    return int(extension) if extension.isdigit() else extension


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
            size = _readable_size(path)
            with astropy.io.fits.open(os.fspath(path)) as hdus:
                _check_complete(path, hdus, size)
                _check_cards(path, hdus)
                yield hdus
        except (FileFormatError, ArgumentError, DataError):
            raise
        except PermissionError as error:
            raise FileFormatError(
                f"{path}: permission denied; ask its owner to let you read it."
            ) from error
        except (
            OSError,
            EOFError,
            TypeError,
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
            AssertionError,
            NameError,
            ArithmeticError,
            RuntimeError,
            astropy.io.fits.VerifyError,
        ) as error:
            # astropy raises any of these for a header that is damaged.
            raise FileFormatError(
                f"{path}: cannot be read as FITS ({one_line(error)});"
                " is it complete and really a FITS file?"
            ) from error


_OPENERS: tuple[tuple[bytes, Callable[..., Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\x00", lzma.open),
)


def _readable_size(path: Path) -> int:
    """Size of a file once unpacked; reads packed ones to their end, where the checksum is."""
    with path.open("rb") as stream:
        magic = stream.read(6)
    for signature, opener in _OPENERS:
        if magic.startswith(signature):
            size = 0
            try:
                with opener(path) as unpacked:
                    while block := unpacked.read(1 << 22):
                        size += len(block)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise FileFormatError(
                    f"{path}: truncated or damaged ({one_line(error)}); copy or download it again."
                ) from error
            return size
    return path.stat().st_size


def _check_complete(path: Path, hdus: astropy.io.fits.HDUList, size: int) -> None:
    end = 0
    gaps: list[tuple[str, int, int]] = []
    for hdu in hdus:  # reads all headers
        info = hdu.fileinfo()
        if info is None:
            continue
        # The padding of the last block may be missing; its data may not.  A compressed
        # image states the size that it unpacks to.
        unpacked = isinstance(hdu, astropy.io.fits.CompImageHDU)
        name = hdu.name or "the primary HDU"
        if info["datSpan"] < 0:
            # astropy would go back and read the same HDUs without an end.
            raise FileFormatError(
                f"{path}: damaged: the header of {name} gives its data a negative size; copy or"
                " download it again."
            )
        data_end = info["datLoc"] + (info["datSpan"] if unpacked else hdu.size)
        end = info["datLoc"] + info["datSpan"]
        if data_end > size:
            raise FileFormatError(
                f"{path}: truncated: {name} ends at byte {data_end}, but the"
                f" file has {size}; copy or download it again."
            )
        gaps.append((name, data_end, end))
    if path.stat().st_size != size:
        return  # what is packed has a checksum
    # A header that says too little or too much leaves data where there should be none.
    with path.open("rb") as stream:
        for name, start, stop in gaps:
            stream.seek(start)
            if not _is_empty(stream.read(min(stop, size) - start)):
                raise FileFormatError(
                    f"{path}: damaged: there are data behind what the header of {name} says it"
                    " holds; copy or download it again."
                )
        stream.seek(end)
        while block := stream.read(1 << 22):
            if not _is_empty(block):
                raise FileFormatError(
                    f"{path}: damaged: {size - end} bytes behind its last HDU"
                    f" ({gaps[-1][0] if gaps else 'none'}) are no HDU; copy or download it again."
                )


def _check_cards(path: Path, hdus: astropy.io.fits.HDUList) -> None:
    """Repair cards whose value makes no sense, as astropy can, before anyone asks for it."""
    for hdu in hdus:
        for card in hdu.header.cards:
            try:
                _ = card.value
            except astropy.io.fits.VerifyError:
                try:
                    card.verify("silentfix")
                    _ = card.value
                except astropy.io.fits.VerifyError as error:
                    raise FileFormatError(
                        f"{path}: {hdu.name or 'the primary HDU'} has a card that cannot be"
                        f" understood ({one_line(error)})."
                    ) from error


def _is_empty(block: bytes) -> bool:
    """Whether a block has nothing but what FITS fills up with."""
    return not block.strip(b"\0 ")
