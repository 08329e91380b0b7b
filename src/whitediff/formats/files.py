"""Opening FITS files so that whatever is wrong with them is said in one sentence."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import itertools
import logging
import math
import os
import struct
import time
import types
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import astropy.io.fits
import astropy.utils.exceptions
from astropy.io.fits.hdu.compressed._compression import CfitsioException

from ..errors import ArgumentError, DataError, FileFormatError, one_line
from ..outputs import staged
from ..paths import is_address, regular, split_name
from .blocks import Block, Survey, survey
from .limits import current
from .parts import KEYWORD, lost_parts
from .remote import RemotePath, fetched

__all__ = ["Extension", "lent", "opened", "remarks", "split_extension"]

_log = logging.getLogger("whitediff.formats")


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
    name, extension = split_name(os.fspath(path))
    file = fetched(name) if is_address(name) else Path(name)
    return file, None if extension is None else _parsed(extension)


def _parsed(text: str) -> Extension:
    extension = text.strip()
    name, _, version = (part.strip() for part in extension.partition(","))
    if version.isdigit():
        return (name, int(version))
    return int(extension) if extension.isdigit() else extension


_NONE: Mapping[Path, astropy.io.fits.HDUList] = types.MappingProxyType({})
_lent = contextvars.ContextVar("lent", default=_NONE)


@contextlib.contextmanager
def lent(name: str, hdus: astropy.io.fits.HDUList) -> Iterator[None]:
    """Context in which HDUs in memory are read as if they were a file.

    Parameters
    ----------
    name
        Name of that file: `opened` yields the HDUs for it, and messages name it.
    hdus
        HDUs; neither changed nor closed.

    Yields
    ------
    None
    """
    token = _lent.set({**_lent.get(), Path(name): hdus})
    try:
        yield
    finally:
        _lent.reset(token)


@contextlib.contextmanager
def opened(path: Path, *, checksums: bool = True) -> Iterator[astropy.io.fits.HDUList]:
    """Open a FITS file, whole and readable.

    Parameters
    ----------
    path
        File.
    checksums
        Whether its checksums are verified, if `Limits.checksums` is set; False where only a part
        of it is read.

    Yields
    ------
    hdus
        Its HDUs, all headers read.

    Raises
    ------
    FileFormatError
        If it is no regular file, is not FITS, is shorter than its headers say, would take more
        memory than `whitediff.formats.limits` allows, or differs from its checksums; also where
        astropy cannot read what the caller asks for.
    """
    in_memory = _lent.get().get(path)
    # Errors name the output, wherever its content waits to take its place.
    place = staged(path)
    if in_memory is None:
        regular(place)
    with warnings.catch_warnings():
        # Slips in headers that astropy repairs are not the user's news here; a file that
        # is too short is checked for below.
        warnings.simplefilter("ignore", astropy.utils.exceptions.AstropyWarning)
        try:
            if in_memory is not None:
                yield in_memory
                return
            found = _surveyed(place, sums=checksums and current().checksums)
            for note in found.notes:
                _tell_once(path, note)
            with astropy.io.fits.open(os.fspath(place)) as hdus:
                _check_complete(place, hdus, found.survey)
                _check_cards(path, hdus)
                for note in _lost(hdus):
                    _tell_once(path, note)
                if found.has_sized_tiles:
                    _check_sized_tiles(place)
                yield hdus
        except (FileFormatError, ArgumentError, DataError):
            raise
        except PermissionError as error:
            raise FileFormatError.of(
                path, "permission denied; ask its owner to let you read it."
            ) from error
        except (CfitsioException, zlib.error) as error:
            raise FileFormatError.of(
                path,
                f"damaged: a compressed image cannot be unpacked ({one_line(error)}); copy"
                " or download it again.",
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
            struct.error,
            astropy.io.fits.VerifyError,
        ) as error:
            # astropy raises any of these for a header that is damaged.
            raise FileFormatError.of(
                path,
                f"cannot be read as FITS ({_reason(error)});"
                " is it complete and really a FITS file?",
            ) from error


def _reason(error: BaseException) -> str:
    """What a library says of an error, less what only its callers can do about it."""
    said = one_line(error)
    return "it does not begin with SIMPLE" if "ignore_missing_simple" in said else said


def _lost(hdus: astropy.io.fits.HDUList) -> list[str]:
    """What is to be told of the parts that a file has lost."""
    lost = lost_parts(hdus)
    if not lost:
        return []
    return [
        f"has lost {', '.join(lost)}, which it was written with; it serves for what does not need"
        " that."
    ]


def remarks(path: Path, hdus: astropy.io.fits.HDUList) -> list[str]:
    """What `opened` tells of a file the first time that it is opened.

    Parameters
    ----------
    path, hdus
        File, and what `opened` yields for it.

    Returns
    -------
    notes
        Of parts that it has lost, and of data that differ from their checksums.
    """
    surveyed = _surveyed(staged(path), sums=current().checksums)
    return [*surveyed.notes, *_lost(hdus)]


@dataclasses.dataclass(frozen=True)
class _Surveyed:
    """A walk through a file, and what is to be told of it."""

    survey: Survey
    notes: tuple[str, ...]
    has_sized_tiles: bool


_told: dict[tuple[Any, ...], None] = {}


def _tell_once(path: Path, note: str) -> None:
    """Warn of a file, however often it is opened while it stays the same."""
    stat = staged(path).stat()
    key = (os.path.abspath(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, note)
    if key not in _told:
        _keep(_told, key, None, most=_MOST_TOLD)
        _log.warning("%s: %s", path, note)


_RACE = 100_000_000
"""Nanoseconds within which a file may change twice and have the same time."""

_known: dict[tuple[Any, ...], _Surveyed] = {}
_MOST_KNOWN, _MOST_TOLD = 32, 256
"""Files that are remembered: walks through them take some tens of kB each."""


def _surveyed(path: Path, *, sums: bool) -> _Surveyed:
    """Walk through a file, once for as long as it stays the same."""
    stat = path.stat()
    key = (
        *(os.fspath(path), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns),
        *(stat.st_ctime_ns, current().max_memory),
    )
    for one in (True, False) if not sums else (True,):
        if (*key, one) in _known:
            return _known[(*key, one)]
    found = survey(path, sums=sums)
    notes = tuple(_checked_sums(path, found.blocks)) if sums else ()
    sized = any(block.cards.get("ZCMPTYPE") == "HCOMPRESS_1" for block in found.blocks)
    result = _Surveyed(found, notes, sized)
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _RACE:
        _keep(_known, (*key, sums), result, most=_MOST_KNOWN)
    return result


def _keep[Value](
    known: dict[tuple[Any, ...], Value], key: tuple[Any, ...], value: Value, *, most: int
) -> None:
    """Remember something, and forget the oldest where that is too much."""
    while len(known) >= most:
        known.pop(next(iter(known)), None)
    known[key] = value


def _checked_sums(path: Path, blocks: Sequence[Block]) -> Iterator[str]:
    """Refuse data of our own that differ from their checksum; yields what is to be told.

    Programs that cut or calibrate images leave the sums of others in their headers: these prove
    nothing.
    """
    wrong = [block.name for block in blocks if _has_other_data(block)]
    if not blocks or KEYWORD not in blocks[0].cards:
        if wrong:
            yield (
                f"the data of {', '.join(wrong)} differ from DATASUM: they were changed by a"
                " program that left it as it was, or are damaged."
            )
        return
    if wrong:
        raise FileFormatError.of(
            path,
            f"damaged, or changed by a program that left DATASUM as it was: the data of"
            f" {wrong[0]} differ from their checksum; copy or download it again (--no-checksums"
            " reads it all the same).",
        )
    for block in blocks:
        is_told = str(block.cards.get("CHECKSUM") or "").strip("0 ") != ""
        if is_told and block.total_sum not in (None, 0, (1 << 32) - 1):
            yield (
                f"the header of {block.name} differs from its checksum: it was edited by a program"
                " that left CHECKSUM as it was, or is damaged."
            )


def _has_other_data(block: Block) -> bool:
    said = str(block.cards.get("DATASUM", "")).strip()
    return block.data_sum is not None and said.isdigit() and int(said) != block.data_sum


def _check_sized_tiles(path: Path) -> None:
    """Compare sizes within the tiles of HCOMPRESS, to which its program unpacks them."""
    with astropy.io.fits.open(os.fspath(path), disable_image_compression=True) as hdus:
        for hdu in hdus[1:]:
            header = hdu.header
            if header.get("ZCMPTYPE") != "HCOMPRESS_1":
                continue
            rows = hdu.data["COMPRESSED_DATA"]
            # Of these there are as many as of tiles: the headers were compared.
            for row, pixels in zip(rows, _pixels_of_tiles(header), strict=True):
                start = bytes(row[:10])
                if not start:
                    continue
                sides = struct.unpack(">2i", start[2:10]) if len(start) == 10 else (0, 0)
                if min(sides) < 1 or sides[0] * sides[1] != pixels:
                    raise FileFormatError.of(
                        path,
                        f"damaged: a tile of {hdu.name or 'an HDU'} says that it has"
                        f" {sides[0]} x {sides[1]} pixels, and there are {pixels}; copy or download"
                        " it again.",
                    )


def _pixels_of_tiles(header: astropy.io.fits.Header) -> Iterator[int]:
    """Pixels of each tile of a compressed image; those at its ends may be smaller."""
    axes = range(1, header["ZNAXIS"] + 1)
    lengths = [header[f"ZNAXIS{axis}"] for axis in axes]
    sides = [
        header.get(f"ZTILE{axis}", length if axis == 1 else 1)
        for axis, length in zip(axes, lengths, strict=True)
    ]
    parts = [
        [min(side, length - start) for start in range(0, length, side)]
        for side, length in zip(sides, lengths, strict=True)
    ]
    # The first axis is the fastest.
    return (math.prod(tile) for tile in itertools.product(*reversed(parts)))


def _check_complete(path: Path, hdus: astropy.io.fits.HDUList, found: Survey) -> None:
    size = found.size
    if len(found.blocks) != len(hdus):
        raise FileFormatError.of(
            path,
            f"damaged: has {len(found.blocks)} HDUs with a whole header, and what follows"
            " them is none; copy or download it again.",
        )
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
            raise FileFormatError.of(
                path,
                f"damaged: the header of {name} gives its data a negative size; copy or"
                " download it again.",
            )
        data_end = info["datLoc"] + (info["datSpan"] if unpacked else hdu.size)
        end = info["datLoc"] + info["datSpan"]
        if data_end > size:
            raise FileFormatError.of(
                path,
                f"truncated: {name} ends at byte {data_end}, but the"
                f" file has {size}; copy or download it again.",
            )
        gaps.append((name, data_end, end))
    if found.is_packed:
        # What lies behind the HDUs was seen on the way.
        if found.behind and len(found.blocks) == len(hdus):
            raise FileFormatError.of(
                path,
                f"damaged: {found.behind} bytes behind its last HDU ({gaps[-1][0]}) are no"
                " HDU; copy or download it again.",
            )
        return
    # A header that says too little or too much leaves data where there should be none.
    with path.open("rb") as stream:
        for name, start, stop in gaps:
            stream.seek(start)
            if not _is_empty(stream.read(min(stop, size) - start)):
                raise FileFormatError.of(
                    path,
                    f"damaged: there are data behind what the header of {name} says it"
                    " holds; copy or download it again.",
                )
        stream.seek(end)
        while block := stream.read(1 << 22):
            if not _is_empty(block):
                raise FileFormatError.of(
                    path,
                    f"damaged: {size - end} bytes behind its last HDU"
                    f" ({gaps[-1][0] if gaps else 'none'}) are no HDU; copy or download it again.",
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
                    raise FileFormatError.of(
                        path,
                        f"{hdu.name or 'the primary HDU'} has a card that cannot be"
                        f" understood ({one_line(error)}).",
                    ) from error


def _is_empty(block: bytes) -> bool:
    """Whether a block has nothing but what FITS fills up with."""
    return not block.strip(b"\0 ")
