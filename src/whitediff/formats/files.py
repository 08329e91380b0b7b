"""Opening of FITS files, with one sentence for whatever is wrong with them."""

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
        Path, and extension or None.  The name of an existing file is not split.  A remote file is
        fetched, and the path is the copy's.

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
    """Context in which HDUs in memory are read like a file.

    Parameters
    ----------
    name
        Name of that file, for which `opened` yields the HDUs, and which messages contain.
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
    """Open a FITS file, after checks that it is complete and readable.

    Parameters
    ----------
    path
        File.
    checksums
        Whether to verify the checksums, if `Limits.checksums` is set; False if only a part of the
        file is read.

    Yields
    ------
    hdus
        HDUs of the file, with all headers read.

    Raises
    ------
    FileFormatError
        If the file is not regular, is not FITS, is shorter than its headers say, would take more
        memory than `whitediff.formats.limits` allows, or (a file of whitediff) differs from its
        checksums; also if astropy cannot read something that the caller asks for.
    """
    in_memory = _lent.get().get(path)
    # Errors name the output even while its content still has a temporary name.
    place = staged(path)
    if in_memory is None:
        regular(place)
    with warnings.catch_warnings():
        # Users need not hear of slips in headers that astropy repairs; the length of the file is
        # checked below.
        warnings.simplefilter("ignore", astropy.utils.exceptions.AstropyWarning)
        try:
            if in_memory is not None:
                yield in_memory
                return
            found = _surveyed(place, sums=checksums and current().checksums)
            for note in found.notes:
                _tell_once(path, note)
            with astropy.io.fits.open(os.fspath(place)) as hdus:
                hdus.readall()
                # While the file stays the same, so do its headers.
                if not found.is_sound:
                    _check_complete(place, hdus, found.survey)
                    found.is_sound = not _repaired_cards(path, hdus)
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
            # astropy raises any of these for a damaged header.
            raise FileFormatError.of(
                path,
                f"cannot be read as FITS ({_reason(error)});"
                " is it complete and really a FITS file?",
            ) from error


def _reason(error: BaseException) -> str:
    """Message of a library's error, without advice that only programmers can use."""
    said = one_line(error)
    return "it does not begin with SIMPLE" if "ignore_missing_simple" in said else said


def _lost(hdus: astropy.io.fits.HDUList) -> list[str]:
    """Remark on the extensions that a file has lost, if any."""
    lost = lost_parts(hdus)
    if not lost:
        return []
    return [
        f"has lost {', '.join(lost)}, which it was written with; it serves for what does not need"
        " that."
    ]


def remarks(path: Path, hdus: astropy.io.fits.HDUList) -> list[str]:
    """Remarks that `opened` logs the first time it opens a file.

    Parameters
    ----------
    path, hdus
        File, and the HDUs that `opened` yields for it.

    Returns
    -------
    notes
        Remarks on extensions that are lost, and on data that differ from their checksums.
    """
    surveyed = _surveyed(staged(path), sums=current().checksums)
    return [*surveyed.notes, *_lost(hdus)]


@dataclasses.dataclass
class _Surveyed:
    """A walk through a file, with the remarks on it.

    ``is_sound`` says that it was found complete, and without cards that have to be repaired.
    """

    survey: Survey
    notes: tuple[str, ...]
    has_sized_tiles: bool
    is_sound: bool = False


_told: dict[tuple[Any, ...], None] = {}


def _tell_once(path: Path, note: str) -> None:
    """Log a warning for a file, only once while the file stays the same."""
    stat = staged(path).stat()
    key = (os.path.abspath(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, note)
    if key not in _told:
        _keep(_told, key, None, most=_MOST_TOLD)
        _log.warning("%s: %s", path, note)


_RACE = 100_000_000
"""Nanoseconds within which a file may change twice without a new time stamp."""

_known: dict[tuple[Any, ...], _Surveyed] = {}
_MOST_KNOWN, _MOST_TOLD = 32, 256
"""Most walks and warnings that are remembered; a walk takes some tens of kB."""


def _surveyed(path: Path, *, sums: bool) -> _Surveyed:
    """Walk through a file, only once while the file stays the same."""
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
    """Remember a value, and forget the oldest ones beyond the limit."""
    while len(known) >= most:
        known.pop(next(iter(known)), None)
    known[key] = value


def _checked_sums(path: Path, blocks: Sequence[Block]) -> Iterator[str]:
    """Refuse whitediff's own data if they differ from their checksum; yield remarks on others.

    Programs that cut or calibrate images leave old sums in the headers, so these prove nothing in
    the files of others.
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
    """Check the sizes inside HCOMPRESS tiles, which its program trusts when it unpacks them."""
    with astropy.io.fits.open(os.fspath(path), disable_image_compression=True) as hdus:
        for hdu in hdus[1:]:
            header = hdu.header
            if header.get("ZCMPTYPE") != "HCOMPRESS_1":
                continue
            rows = hdu.data["COMPRESSED_DATA"]
            # The survey has made sure that there is one row for each tile.
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
    """Number of pixels of each tile of a compressed image; last tiles of an axis may be smaller."""
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
        # The survey has already looked at the bytes behind the HDUs.
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


def _repaired_cards(path: Path, hdus: astropy.io.fits.HDUList) -> bool:
    """Repair cards with invalid values, as far as astropy can, before anyone reads them.

    Returns whether there were any.
    """
    found = False
    for hdu in hdus:
        for card in hdu.header.cards:
            try:
                _ = card.value
            except astropy.io.fits.VerifyError:
                found = True
                try:
                    card.verify("silentfix")
                    _ = card.value
                except astropy.io.fits.VerifyError as error:
                    raise FileFormatError.of(
                        path,
                        f"{hdu.name or 'the primary HDU'} has a card that cannot be"
                        f" understood ({one_line(error)}).",
                    ) from error
    return found


def _is_empty(block: bytes) -> bool:
    """Whether a block has nothing but the zeros and blanks that pad FITS files."""
    return not block.strip(b"\0 ")
