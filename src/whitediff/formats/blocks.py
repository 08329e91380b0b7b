"""Walk through a FITS file, block by block, before anything in it is trusted.

A FITS file is a series of blocks of 2880 bytes: headers of cards, each followed by as many bytes of
data as it states.  The walk compares these sizes with the file and with the memory that may be
used, before a library makes arrays of the data, and sums up the HDUs for their checksums.  Packed
files are unpacked as a stream; nothing of them is kept.
"""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import FileFormatError, one_line
from .limits import check_memory

__all__ = ["Block", "Survey", "added", "datasum", "encoded_sum", "is_packed", "survey", "unpacked"]

BLOCK, CARD = 2880, 80
_CHUNK = BLOCK * 512
_LONGEST_HEADER = 20_000
"""Most blocks of a header: 720 000 cards."""
_MOST_DITHERS = 10_000
"""Largest ZDITHER0, the seed of a quantised image's random numbers (Pence et al. 2010)."""
_MOST_BEHIND = 1_000_000
"""Most bytes behind the last HDU, even if they are empty."""

_MOST_AXES = 999
_MANY = (1 << 32) - 1
_WANTED = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|GROUPS|TFIELDS|EXTNAME|EXTVER|CHECKSUM|DATASUM|"
    r"ZIMAGE|ZBITPIX|ZNAXIS\d*|ZTILE\d+|ZCMPTYPE|ZNAME\d+|ZVAL\d+|ZDITHER0|THEAP|WDPARTS|CONTINUE"
)
_BLOCK_SIZES, _BYTES = range(1, 4097), (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Block:
    """An HDU, as described by its header.

    Attributes
    ----------
    name
        Name of the extension; "the primary HDU" for the first.
    start, data_start, data_size, stop
        Start of the header, start and length of the data, and end of the HDU, bytes.
    cards
        Cards with name, size, compression and checksums.
    data_sum, total_sum
        Ones' complement sums of the data and of the whole HDU; None if they were not wanted.
    """

    name: str
    start: int
    data_start: int
    data_size: int
    stop: int
    cards: dict[str, Any]
    data_sum: int | None = None
    total_sum: int | None = None


@dataclasses.dataclass(frozen=True)
class Survey:
    """Result of a walk through a file.

    Attributes
    ----------
    blocks
        HDUs from the first on, as far as there are headers.
    size
        Size of the unpacked file, bytes.
    is_packed
        Whether the file is packed.
    behind
        Bytes behind the last HDU that are not padding; 0 unless the file is packed.
    """

    blocks: tuple[Block, ...]
    size: int
    is_packed: bool
    behind: int


_PACKED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"PK\x03\x04", "zip"),
)


def is_packed(path: Path) -> str | None:
    """Program that packed a file.

    Parameters
    ----------
    path
        File.

    Returns
    -------
    name
        Name of the program; None if the file is not packed.
    """
    with path.open("rb") as stream:
        magic = stream.read(6)
    return next((name for signature, name in _PACKED if magic.startswith(signature)), None)


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """Content of a file, as a stream.

    Parameters
    ----------
    path
        File, perhaps packed.

    Yields
    ------
    stream
        Bytes, unpacked as they are read.

    Raises
    ------
    FileFormatError
        If the file is an archive of several files, or is damaged.
    """
    packed = is_packed(path)
    try:
        if packed == "zip":
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                if len(members) != 1:
                    raise FileFormatError.of(
                        path, f"is an archive of {len(members)} files; unpack it and name one."
                    )
                check_memory(members[0].file_size, f"{path}: {members[0].filename!r} in it")
                with archive.open(members[0]) as stream:
                    yield stream  # type: ignore[misc]
            return
        opener: Any = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open, None: open}[packed]
        with opener(path, "rb") as stream:
            yield stream
    except FileFormatError:
        raise
    except (
        *(OSError, EOFError, zlib.error, lzma.LZMAError),
        *(zipfile.BadZipFile, NotImplementedError, RuntimeError),
    ) as error:
        if isinstance(error, PermissionError):
            raise
        raise FileFormatError.of(
            path, f"truncated or damaged ({one_line(error)}); copy or download it again."
        ) from error


def survey(path: Path, *, sums: bool) -> Survey:
    """Walk through a file.

    Parameters
    ----------
    path
        File, perhaps packed.
    sums
        Whether to sum up the HDUs that have a checksum.

    Returns
    -------
    survey
        `Survey`.

    Raises
    ------
    FileFormatError
        If a header claims more data than the file has, than fit into the memory that may be used,
        or than FITS allows, or if too many bytes follow the last HDU.
    """
    with unpacked(path) as stream:
        packed = is_packed(path) is not None
        walk = _Walk(path, stream, None if packed else path.stat().st_size, sums=sums)
        blocks = walk.blocks()
        size, behind = walk.rest()
        left = size - blocks[-1].stop if blocks else 0
        if left > _MOST_BEHIND:
            # Readers would search all these bytes for a header, again and again.
            raise FileFormatError.of(
                path,
                f"damaged: {left} bytes behind its last HDU ({blocks[-1].name}) are no HDU;"
                " copy or download it again.",
            )
        return Survey(tuple(blocks), size, packed, behind)


class _Walk:
    """Reads a stream from its beginning to its end, once."""

    def __init__(self, path: Path, stream: BinaryIO, size: int | None, *, sums: bool) -> None:
        self.path, self.stream, self.size, self.sums = path, stream, size, sums
        self.position = 0
        self.header = b""
        """First block of the header that was read last, or the block that begins no header."""

    def blocks(self) -> list[Block]:
        found: list[Block] = []
        while True:
            block = self._block(first=not found)
            if block is None:
                return found
            found.append(block)

    def rest(self) -> tuple[int, int]:
        """Read to the end of a packed file: its size, and bytes behind the HDUs but for padding."""
        if self.size is not None:
            return self.size, 0
        behind = len(self.header.strip(b"\0 "))
        while chunk := self._read(_CHUNK):
            check_memory(self.position, f"{self.path}: unpacked, it")
            behind += len(chunk.strip(b"\0 "))
        return self.position, behind

    def _read(self, number: int) -> bytes:
        data = self.stream.read(number)
        self.position += len(data)
        return data

    def _header(self, first: bool) -> bytes | None:
        parts: list[bytes] = []
        for _ in range(_LONGEST_HEADER):
            part = self._read(BLOCK)
            self.header = b"".join(parts[:1]) or part
            if len(part) < BLOCK or (not parts and not part.startswith(_begins(first))):
                return None
            parts.append(part)
            if any(part[i : i + CARD] == _END for i in range(0, BLOCK, CARD)):
                return b"".join(parts)
        raise FileFormatError.of(
            self.path,
            f"damaged: a header has no END in its first"
            f" {_LONGEST_HEADER * BLOCK / 1e6:.0f} MB; copy or download it again.",
        )

    def _block(self, *, first: bool) -> Block | None:
        start = self.position
        raw = self._header(first)
        if raw is None:
            return None
        cards = _cards(raw)
        name = "the primary HDU" if first else str(cards.get("EXTNAME") or "an HDU without a name")
        size = _checked_size(cards, f"{self.path}: damaged: the header of {name}")
        stop = self.position + -(-size // BLOCK) * BLOCK
        if self.size is not None and self.position + size > self.size:
            raise FileFormatError.of(
                self.path,
                f"truncated: {name} ends at byte {self.position + size}, but the file"
                f" has {self.size}; copy or download it again.",
            )
        check_memory(size, f"{self.path}: {name}")
        if cards.get("ZIMAGE") is True:
            _check_tiles(cards, self.path, name)
        data_start = self.position
        wanted = self.sums and ("DATASUM" in cards or "CHECKSUM" in cards)
        if not wanted and self.size is not None:
            self.stream.seek(stop)
            self.position = stop
            return Block(name, start, data_start, size, stop, cards)
        total = self._data(name, size, stop, sums=wanted)
        if not wanted:
            return Block(name, start, data_start, size, stop, cards)
        whole = added(total, datasum(raw))
        return Block(name, start, data_start, size, stop, cards, total, whole)

    def _data(self, name: str, size: int, stop: int, *, sums: bool) -> int:
        """Read the data of an HDU to the end of their last block, and return the sum if wanted."""
        data_start = self.position
        total, left, last = 0, stop - data_start, b""
        while left:
            chunk = self._read(min(left, _CHUNK))
            if not chunk:
                break
            if self.size is None:
                check_memory(self.position, f"{self.path}: unpacked, it")
            if sums:
                total = added(total, datasum(chunk))
            left -= len(chunk)
            last = chunk
        padding = stop - data_start - size
        if self.size is None and padding and last[len(last) - padding + left :].strip(b"\0 "):
            raise FileFormatError.of(
                self.path,
                f"damaged: there are data behind what the header of {name} says it"
                " holds; copy or download it again.",
            )
        if self.position < data_start + size:
            raise FileFormatError.of(
                self.path,
                f"truncated: {name} ends at byte {data_start + size}, but the file"
                f" has {self.position}; copy or download it again.",
            )
        return total


def _checked_size(cards: dict[str, Any], where: str) -> int:
    """Size of the data that a header describes, bytes; ``where`` begins the error messages."""
    for card, what in (("NAXIS", "axes"), ("ZNAXIS", "axes"), ("TFIELDS", "columns")):
        number = cards.get(card, 0)
        if isinstance(number, int) and not 0 <= number <= _MOST_AXES:
            raise FileFormatError(
                f"{where} gives it {number} {what}, and FITS has from 0 to {_MOST_AXES}; copy or"
                " download it again."
            )
    size = _data_size(cards)
    if size is None:
        raise FileFormatError(
            f"{where} does not say how large its data are (BITPIX, NAXIS, NAXISn, PCOUNT, GCOUNT);"
            " copy or download it again."
        )
    if size < 0:
        raise FileFormatError(f"{where} gives its data a negative size; copy or download it again.")
    return size


_END = b"END".ljust(CARD)


def _begins(first: bool) -> bytes:
    return b"SIMPLE  =" if first else b"XTENSION="


def _cards(raw: bytes) -> dict[str, Any]:
    """Cards of a header that `_WANTED` names; the first of each name counts."""
    found: dict[str, Any] = {}
    last = ""
    for i in range(0, len(raw), CARD):
        card = raw[i : i + CARD]
        if card == _END:
            break
        keyword = card[:8].decode("latin1").rstrip()
        if not _WANTED.fullmatch(keyword):
            last = ""
            continue
        text = card[8:].decode("latin1")
        if keyword == "CONTINUE":
            value = _value(text)
            if last and isinstance(value, str) and str(found[last]).endswith("&"):
                found[last] = found[last][:-1] + value
            continue
        last = ""
        if keyword not in found and text.startswith("="):
            found[keyword] = _value(text[1:])
            last = keyword if isinstance(found[keyword], str) else ""
    return found


_STRING = re.compile(r"\s*'((?:[^']|'')*)'")
_INTEGER = re.compile(r"\s*([+-]?\d{1,40})\s*(?:/.*)?")
_LOGICAL = re.compile(r"\s*([TF])\s*(?:/.*)?")


def _value(text: str) -> Any:
    """Value of a card if it is text, a whole number or a truth value; None for all else."""
    match = _STRING.match(text)
    if match is not None:
        return match[1].replace("''", "'").rstrip()
    match = _INTEGER.fullmatch(text)
    if match is not None:
        return int(match[1])
    match = _LOGICAL.fullmatch(text)
    return None if match is None else match[1] == "T"


def _whole(cards: dict[str, Any], keyword: str, default: int | None = None) -> int | None:
    value = cards.get(keyword, default)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _data_size(cards: dict[str, Any]) -> int | None:
    """Size of the data that a header states, bytes; None if it does not say."""
    axes = _whole(cards, "NAXIS")
    bits = _whole(cards, "BITPIX")
    if axes is None or bits is None:
        return None
    lengths = [_whole(cards, f"NAXIS{axis + 1}") for axis in range(axes)]
    parameters, groups = _whole(cards, "PCOUNT", 0), _whole(cards, "GCOUNT", 1)
    if parameters is None or groups is None or None in lengths:
        return None
    known = [length for length in lengths if length is not None]
    if not known:
        return 0
    if cards.get("GROUPS") is True and known[0] == 0:
        known = known[1:]
    if min(known, default=0) < 0:
        return min(-1, -abs(bits))
    return abs(bits) // 8 * groups * (parameters + math.prod(known))


def _check_tiles(cards: dict[str, Any], path: Path, name: str) -> None:
    """Check the tiles and settings of a compressed image against its table and allowed values."""
    where = f"{path}: damaged: the header of {name}"
    axes, bits = _whole(cards, "ZNAXIS"), _whole(cards, "ZBITPIX")
    if axes is None or bits is None:
        return
    lengths = [_whole(cards, f"ZNAXIS{axis + 1}") for axis in range(axes)]
    tiles = [
        _whole(cards, f"ZTILE{axis + 1}", lengths[0] if axis == 0 else 1) for axis in range(axes)
    ]
    if any(n is None or n < 0 for n in lengths) or any(n is None or n < 1 for n in tiles):
        raise FileFormatError(
            f"{where} gives its compressed image the shape {lengths} in tiles of {tiles}; copy or"
            " download it again."
        )
    sides = [(int(n or 0), int(m or 1)) for n, m in zip(lengths, tiles, strict=True)]
    size = abs(bits) // 8 * math.prod(n for n, _ in sides)
    check_memory(size, f"{path}: {name}, unpacked,")
    check_memory(
        abs(bits) // 8 * math.prod(min(m, max(n, 1)) for n, m in sides), f"{path}: a tile of {name}"
    )
    number, rows = math.prod(-(-n // m) for n, m in sides), _whole(cards, "NAXIS2")
    if number != rows:
        raise FileFormatError(
            f"{where} gives its compressed image {number} tiles, but its table has {rows} rows;"
            " copy or download it again."
        )
    heap = _whole(cards, "THEAP")
    if heap is not None and heap < (_whole(cards, "NAXIS1") or 0) * (rows or 0):
        raise FileFormatError(
            f"{where} puts its tiles (THEAP = {heap}) into the table; copy or download it again."
        )
    seed = _whole(cards, "ZDITHER0")
    if seed is not None and not 1 <= seed <= _MOST_DITHERS:
        raise FileFormatError(
            f"{where} says ZDITHER0 = {seed}, which is from 1 to {_MOST_DITHERS}; copy or download"
            " it again."
        )
    for keyword, value in cards.items():
        if not keyword.startswith("ZNAME"):
            continue
        setting = cards.get(f"ZVAL{keyword.removeprefix('ZNAME')}")
        allowed: Any = {"BLOCKSIZE": _BLOCK_SIZES, "BYTEPIX": _BYTES}.get(str(value))
        if allowed is not None and setting not in allowed:
            raise FileFormatError(
                f"{where} gives its compression {value} = {setting!r}; copy or download it again."
            )


def datasum(data: bytes | bytearray) -> int:
    """Ones' complement sum of 32-bit words, the sum in DATASUM.

    Parameters
    ----------
    data
        Bytes; zeros fill the last word.

    Returns
    -------
    total
        Sum, from 0 to 2**32 - 1.

    Notes
    -----
    Seaman, Pence & Rots 2012, FITS Checksum Proposal.
    """
    if len(data) % 4:
        data = bytes(data).ljust(-(-len(data) // 4) * 4, b"\0")
    return _folded(int(np.frombuffer(data, ">u4").sum(dtype=np.uint64)))


def _folded(total: int) -> int:
    while total > _MANY:
        total = (total & _MANY) + (total >> 32)
    return total


def added(one: int, other: int) -> int:
    """Ones' complement sum of two sums.

    Parameters
    ----------
    one, other
        Sums from `datasum`.

    Returns
    -------
    total
        Sum, from 0 to 2**32 - 1.
    """
    return _folded(one + other)


_EXCLUDED = (*range(0x3A, 0x41), *range(0x5B, 0x61))


def encoded_sum(total: int) -> str:
    """Value of CHECKSUM for the sum of an HDU.

    Parameters
    ----------
    total
        Ones' complement sum of an HDU whose CHECKSUM is sixteen times 0.

    Returns
    -------
    text
        Sixteen characters that make the HDU's sum -0.
    """
    value = _MANY - total
    columns = []
    for byte in value.to_bytes(4, "big"):
        quarters = [byte // 4 + (byte % 4 if i == 0 else 0) + 0x30 for i in range(4)]
        # Moves to letters and digits within a pair, which keeps the byte's sum.
        while any(each in _EXCLUDED for each in quarters):
            for i in (0, 2):
                if quarters[i] in _EXCLUDED or quarters[i + 1] in _EXCLUDED:
                    quarters[i] += 1
                    quarters[i + 1] -= 1
        columns.append(quarters)
    text = "".join(chr(columns[j][i]) for i in range(4) for j in range(4))
    # The value stands one byte off a word's boundary in its card.
    return text[-1] + text[:-1]
