"""Kinds of damage: functions of a file's bytes that need nothing but a generator."""

from __future__ import annotations

import base64
import gzip
import os
import pickle
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

BLOCK, CARD = 2880, 80
Rng = np.random.Generator

_HUGE = (10**6, 10**9, 10**12, 10**18, 10**30, 2**31, 2**32, 2**63, -1, -(10**12), 0)
_SIZES = (
    *("NAXIS", "NAXIS1", "NAXIS2", "NAXIS3", "PCOUNT", "GCOUNT", "TFIELDS", "BITPIX"),
    *("ZNAXIS", "ZNAXIS1", "ZNAXIS2", "ZTILE1", "ZTILE2", "ZBITPIX", "ZVAL1", "ZVAL2", "THEAP"),
)
_VALUES = (
    *("T", "F", "'text'", "''", "NaN", "1E999", "-0.0", "(1,2)", "7", "0", "-5", "1.5", "'1.5'"),
    *("''''", "'& '", "'%s%n'", "/", "'\\x00'"),
)
_HOSTILE = (
    *("'http://127.0.0.1:9/x.fits'", "'/etc/passwd'", "'../../../../etc/passwd'", "'/dev/zero'"),
    *("'file:///etc/passwd'", "'$(touch x)'", "'; rm -rf x'", "'%00'", "'|cat'", "'s3://a/b'"),
    *("'__import__(''os'')'", "'{0.__class__}'", "'<script>'", "'/proc/self/mem'"),
)
_NAMED = (
    *("WDSCI", "WDTMPL", "WDDIFF", "WDKERN", "KERFILE", "DIFFCMD", "TARGET", "TEMPLATE"),
    *("D2IMFILE", "DATAMODL", "FILENAME", "WDPARTS", "JSONADDR", "CHECKSUM"),
)


def headers(data: bytes) -> list[tuple[int, int]]:
    """First and last bytes of all headers of a FITS file."""
    found, place = [], 0
    while place < len(data):
        if data[place : place + 8] not in (b"SIMPLE  ", b"XTENSION"):
            place += BLOCK
            continue
        stop = place
        while stop < len(data) and data[stop : stop + CARD] != b"END".ljust(CARD):
            stop += CARD
        found.append((place, min(stop, len(data))))
        place = stop + BLOCK - stop % BLOCK
    return found


def _spans(data: bytes) -> list[bytes]:
    """HDUs of a FITS file."""
    starts = [start for start, _ in headers(data)] or [0]
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


def _card(rng: Rng, data: bytes, wanted: tuple[str, ...] = ()) -> int | None:
    """Place of a card of a FITS file."""
    places = [i for start, stop in headers(data) for i in range(start, stop, CARD)]
    if wanted:
        places = [i for i in places if data[i : i + 8].decode("latin1").strip() in wanted]
    return int(rng.choice(places)) if places else None


def _with_value(data: bytes, place: int, value: str) -> bytes:
    card = (data[place : place + 8] + b"= " + value.rjust(20).encode()).ljust(CARD)[:CARD]
    return data[:place] + card + data[place + CARD :]


def flip(rng: Rng, data: bytes) -> bytes:
    """Bits of one word: FITS' checksum is a sum, which does not see flips that cancel elsewhere."""
    damaged = bytearray(data)
    word = int(rng.integers(0, max(1, len(data) // 4))) * 4
    for place in range(word, min(word + int(rng.integers(1, 5)), len(data))):
        damaged[place] ^= 1 << int(rng.integers(0, 8))
    return bytes(damaged)


def flip_in_header(rng: Rng, data: bytes) -> bytes:
    """A bit of a header, or of the beginning."""
    spans = headers(data) or [(0, min(len(data), 400))]
    start, stop = spans[int(rng.integers(0, len(spans)))]
    damaged = bytearray(data)
    damaged[int(rng.integers(start, max(stop, start + 1)))] ^= 1 << int(rng.integers(0, 8))
    return bytes(damaged)


def truncated(rng: Rng, data: bytes) -> bytes:
    """Cut off somewhere, or between two blocks."""
    size = int(rng.integers(0, len(data)))
    return data[: size - size % BLOCK] if rng.random() < 0.3 else data[:size]


def zeroed(rng: Rng, data: bytes) -> bytes:
    """Zeros in a range, as a bad disk leaves them."""
    start = int(rng.integers(0, len(data)))
    size = min(len(data) - start, int(rng.choice([1, 80, 512, 2880, 4096])))
    return data[:start] + bytes(size) + data[start + size :]


def shifted(rng: Rng, data: bytes) -> bytes:
    """Bytes lost or put in between."""
    place, size = int(rng.integers(0, len(data))), int(rng.choice([1, 2, 80, 2880]))
    if rng.random() < 0.5:
        return data[:place] + data[place + size :]
    return data[:place] + bytes(rng.integers(0, 256, size, dtype=np.uint8)) + data[place:]


def card_altered(rng: Rng, data: bytes) -> bytes:
    """A card with a value of another kind."""
    place = _card(rng, data)
    return flip(rng, data) if place is None else _with_value(data, place, str(rng.choice(_VALUES)))


def card_lost(rng: Rng, data: bytes) -> bytes:
    """A card that is blank, renamed, or there twice."""
    place, other = _card(rng, data), _card(rng, data)
    if place is None or other is None:
        return flip(rng, data)
    how = int(rng.integers(0, 3))
    if how == 0:
        return data[:place] + b" " * CARD + data[place + CARD :]
    if how == 1:
        return data[:place] + b"XXXXXXXX" + data[place + 8 :]
    return data[:place] + data[other : other + CARD] + data[place + CARD :]


def size_claimed(rng: Rng, data: bytes) -> bytes:
    """A size that is huge, negative, or nothing."""
    place = _card(rng, data, _SIZES)
    if place is None:
        return flip(rng, data)
    return _with_value(data, place, str(int(rng.choice(np.array(_HUGE, dtype=object)))))


def hostile_value(rng: Rng, data: bytes) -> bytes:
    """A path, an address or code where a header has a text or a blank."""
    value = str(rng.choice(_HOSTILE))
    place = _card(rng, data, _NAMED)
    if place is not None and rng.random() < 0.5:
        return _with_value(data, place, value)
    spans = headers(data)
    if not spans:
        return data.replace(b"source 3", value.encode()[:8].ljust(8))
    place = _card(rng, data)
    assert place is not None
    keyword = str(rng.choice(_NAMED)).ljust(8).encode()
    return _with_value(data[:place] + keyword + data[place + 8 :], place, value)


def part_lost(rng: Rng, data: bytes) -> bytes:
    """An HDU that is missing, or a line of a table."""
    parts = _spans(data) if headers(data) else data.splitlines(keepends=True)
    parts.pop(int(rng.integers(0, len(parts))))
    return b"".join(parts)


def parts_swapped(rng: Rng, data: bytes) -> bytes:
    """Two HDUs, or lines, in the place of each other, or one twice."""
    parts = _spans(data) if headers(data) else data.splitlines(keepends=True)
    i, j = (int(n) for n in rng.integers(0, len(parts), 2))
    if rng.random() < 0.5:
        parts[i], parts[j] = parts[j], parts[i]
    else:
        parts.insert(j, parts[i])
    return b"".join(parts)


def repacked(rng: Rng, data: bytes) -> bytes:
    """Packed with gzip, and then damaged; or damaged, and then packed."""
    raw = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    if rng.random() < 0.5:
        kinds = (truncated, size_claimed, shifted, part_lost)
        raw = kinds[int(rng.integers(0, len(kinds)))](rng, raw)
        return gzip.compress(raw, 1)
    return (flip, truncated, zeroed)[int(rng.integers(0, 3))](rng, gzip.compress(raw, 1))


class _Calls:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile_pickle(rng: Rng, data: bytes) -> bytes:
    """Another pickle in the place of one, of the same length; or a damaged one."""
    start = data.find(base64.b64encode(b"\x80\x04\x95")[:4])
    if start < 0:
        return flip(rng, data)
    stop = start
    while data[stop : stop + 1].isalnum() or data[stop : stop + 1] in (b"+", b"/", b"="):
        stop += 1
    old = base64.b64decode(data[start:stop])
    choices = [
        pickle.dumps(_Calls(os.system, "true")),
        pickle.dumps(_Calls(os.abort)),
        pickle.dumps(_Calls(eval, "1/0")),
        pickle.dumps(_Calls(zlib.crc32, b"")),
        b"\x80\x04\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"(" * 60 + b".",
        b"cos\nabort\n(tR.",
        flip(rng, old),
        truncated(rng, old),
        bytes(rng.integers(0, 256, len(old), dtype=np.uint8)),
    ]
    new = choices[int(rng.integers(0, len(choices)))]
    text = base64.b64encode(new)[: stop - start].ljust(stop - start, b" ")
    return data[:start] + text + data[stop:]


_TAGS = (
    b"# - !!python/object/apply:os.system ['true']\n",
    b"# - {name: x, datatype: object, subtype: json}\n",
    b"# - {name: y, datatype: float64, unit: !astropy.units.Unit {unit: x}}\n",
    b"# meta: !!omap\n# - __serialized_columns__: {x: {__class__: os.system, a: 1}}\n",
    b"# &a [*a, *a]\n",
    b'1e999,"\x00",\xff\n',
    b'"' * 3 + b"\n",
    b"1," * 4000 + b"\n",
)


def hostile_text(rng: Rng, data: bytes) -> bytes:
    """Lines in a table of text that lead somewhere."""
    if headers(data) or not data[:1].isascii() or data[:4] == b"PAR1":
        return hostile_value(rng, data)
    lines = data.splitlines(keepends=True)
    lines.insert(int(rng.integers(0, len(lines))), _TAGS[int(rng.integers(0, len(_TAGS)))])
    return b"".join(lines)


DAMAGES: dict[str, Callable[[Rng, bytes], bytes]] = {
    function.__name__: function
    for function in (
        *(flip, flip_in_header, truncated, zeroed, shifted, card_altered, card_lost),
        *(size_claimed, hostile_value, part_lost, parts_swapped, repacked),
        *(hostile_pickle, hostile_text),
    )
}
