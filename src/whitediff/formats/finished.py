"""Last step of writing a FITS file: the list of its parts, and a checksum for each HDU."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import astropy.io.fits
import numpy as np

from ..dates import fits_date
from ..outputs import replacing
from .blocks import BLOCK, CARD, Block, added, datasum, encoded_sum, survey
from .parts import KEYWORD, listed

__all__ = ["RESERVED", "finish", "replacing_fits"]

_END = b"END".ljust(CARD)
_CHUNK = BLOCK * 512
_GZIP = b"\x1f\x8b\x08"
_NO_SUM = "0" * 16

RESERVED: dict[str, tuple[str, str]] = {
    "CHECKSUM": (_NO_SUM, "HDU checksum"),
    "DATASUM": ("0", "data unit checksum"),
}
"""Cards that a writer puts into a header to reserve room, so that the HDU need not move later."""


@contextlib.contextmanager
def replacing_fits(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Write a FITS file under a temporary name; finish it and move it into place when complete.

    Parameters
    ----------
    path
        Output.
    overwrite
        Whether an existing file may be replaced.

    Yields
    ------
    temporary
        Path to write to, as in `whitediff.outputs.replacing`.

    Raises
    ------
    OutputExistsError, FileFormatError
        If the file cannot be written.
    """
    with replacing(path, overwrite=overwrite) as temporary:
        yield temporary
        finish(temporary)


def finish(path: Path) -> None:
    """Add the list of parts to a file, checksums to each HDU, and a date if one is set.

    Parameters
    ----------
    path
        FITS file that was just written.

    Notes
    -----
    Cards take the place of blank ones.  If a header has no room, all that follows it moves, but
    never in an archive, which stores addresses: there the cards are left out.
    """
    date = fits_date()
    blocks = survey(path, sums=False).blocks
    if any(block.cards.get("ZIMAGE") is True for block in blocks):
        _forget_times(path)
    names = [str(block.cards.get("EXTNAME") or "") for block in blocks[1:]]
    with path.open("r+b") as stream:
        is_archive = b"JSONADDR=" in _header(stream, blocks[0])
        moved = 0
        for number, block in enumerate(blocks):
            raw = bytearray(_read(stream, block.start + moved, block.data_start - block.start))
            if date is not None:
                _set_date(raw, date)
            wanted = dict(RESERVED)
            if number == 0 and KEYWORD not in block.cards and listed(names):
                wanted = {KEYWORD: (listed(names), ""), **RESERVED}
            cards = _with_cards(raw, wanted)
            if len(cards) > len(raw):
                if is_archive:
                    stream.seek(block.start)
                    stream.write(raw)
                    continue
                _insert(stream, block.data_start + moved, len(cards) - len(raw))
                moved += len(cards) - len(raw)
            _sum_up(stream, block, block.start + moved - (len(cards) - len(raw)), cards)


def _header(stream: BinaryIO, block: Block) -> bytes:
    return _read(stream, block.start, block.data_start - block.start)


def _read(stream: BinaryIO, start: int, size: int) -> bytes:
    stream.seek(start)
    return stream.read(size)


def _with_cards(raw: bytearray, wanted: dict[str, tuple[str, str]]) -> bytearray:
    """Header with some cards at its end, in place of blank cards, or in further blocks."""
    lines = [bytes(raw[i : i + CARD]) for i in range(0, len(raw), CARD)]
    lines = lines[: lines.index(_END)]
    lines = [line for line in lines if line[:8].decode("latin1").rstrip() not in wanted]
    while lines and not lines[-1].strip():
        lines.pop()
    for keyword, (value, comment) in wanted.items():
        text = str(astropy.io.fits.Card(keyword, value, comment)).encode("ascii")
        lines += [text[i : i + CARD] for i in range(0, len(text), CARD)]
    size = max(len(raw), math.ceil((len(lines) + 1) * CARD / BLOCK) * BLOCK)
    # Blank cards before END fill all blocks but the last: readers stop at the block with END.
    lines += [b" " * CARD] * ((size - BLOCK) // CARD - len(lines))
    return bytearray((b"".join(lines) + _END).ljust(size))


def _forget_times(path: Path) -> None:
    """Remove the time that gzip writes into each tile, so that outputs do not depend on it."""
    addresses: list[int] = []
    with astropy.io.fits.open(path, disable_image_compression=True, memmap=False) as hdus:
        for hdu in hdus[1:]:
            if not str(hdu.header.get("ZCMPTYPE", "")).startswith("GZIP"):
                continue
            start, rows = hdu.fileinfo()["datLoc"], hdu.header["NAXIS2"]
            width = hdu.header["NAXIS1"]
            heap = start + hdu.header.get("THEAP", width * rows)
            table = np.fromfile(path, hdu.columns.dtype.newbyteorder(">"), rows, offset=start)
            for size, offset in table["COMPRESSED_DATA"].tolist():
                addresses += [heap + offset] * (size > len(_GZIP))
    with path.open("r+b") as stream:
        for address in addresses:
            if _read(stream, address, len(_GZIP)) == _GZIP:
                stream.seek(address + len(_GZIP) + 1)  # behind the flags
                stream.write(bytes(4))


def _set_date(header: bytearray, date: str) -> None:
    """Replace the value of DATE, the time at which the header was made."""
    for i in range(0, len(header), CARD):
        if header[i : i + 9] == b"DATE    =":
            card = astropy.io.fits.Card.fromstring(bytes(header[i : i + CARD]))
            card = astropy.io.fits.Card("DATE", date, card.comment)
            header[i : i + CARD] = str(card).encode("ascii")


def _insert(stream: BinaryIO, start: int, size: int) -> None:
    """Move everything behind a position towards the end, to make room of a size."""
    end = stream.seek(0, 2)
    # From the end, so that nothing is overwritten before it is copied.
    while end > start:
        begin = max(start, end - _CHUNK)
        chunk = _read(stream, begin, end - begin)
        stream.seek(begin + size)
        stream.write(chunk)
        end = begin


def _sum_up(stream: BinaryIO, block: Block, start: int, header: bytearray) -> None:
    """Write a header with the sums of its HDU."""
    stop = start + len(header) + (block.stop - block.data_start)
    stream.seek(start + len(header))
    total, place = 0, start + len(header)
    while place < stop and (chunk := stream.read(min(_CHUNK, stop - place))):
        total = added(total, datasum(chunk))
        place += len(chunk)
    _set(header, "DATASUM", str(total))
    _set(header, "CHECKSUM", encoded_sum(added(total, datasum(header))))
    stream.seek(start)
    stream.write(header)


def _set(header: bytearray, keyword: str, value: str) -> None:
    card = astropy.io.fits.Card(keyword, value, RESERVED[keyword][1])
    start = next(
        i for i in range(0, len(header), CARD) if header[i : i + 8] == keyword.ljust(8).encode()
    )
    header[start : start + CARD] = str(card).encode("ascii")
