"""Mask planes from the integers of a mask image."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import numpy.typing as npt

from ...errors import FileFormatError
from ...exposures.masks import UNTRUSTED_MASK_PLANES, is_one_of
from ...numerics.planes import filled, zeros
from ..planes import Hdu, native, plane_of
from .bits import Convention, recognised

__all__ = ["mask_planes"]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.formats")

_MOST = 62
"""Bits of a 64-bit mask that are used; higher ones may be the sign."""


def mask_planes(
    hdu: Hdu,
    shape: tuple[int, ...],
    path: str | Path,
    *,
    bits: Iterable[int] | None = None,
    headers: Iterable[astropy.io.fits.Header] = (),
) -> dict[str, Array]:
    """Planes of a mask that has one integer for each pixel.

    Parameters
    ----------
    hdu
        HDU of the mask; its cards MP_name or MSKNnnnn name the bits.
    shape
        ``(ny, nx)`` of the image.
    path
        File, for error messages.
    bits
        Numbers of the bits that count as bad, from 0, or the bad codes of a mask with codes; None:
        those that names or instrument make bad, else all.
    headers
        Further headers that may name the instrument, besides the mask's; the nearest first.

    Returns
    -------
    planes
        Name → ``(ny, nx)`` boolean.  Bits that the header names keep their names, even if no pixel
        has them.  Bits of a known instrument become SAT, CR, BAD and NO_DATA, and purely
        informative ones keep their names.  In other masks, bits are called BITn, and BAD is their
        union.

    Raises
    ------
    FileFormatError
        If the shapes differ, the values are no integers, a card gives no valid bit number, or the
        mask is too narrow for a bit of ``bits``.
    """
    data = plane_of(hdu, path)
    name = hdu.name or "of the primary HDU"
    if data.shape != shape:
        raise FileFormatError.of(
            path,
            f"the image has the shape {shape}, but its mask {name} {data.shape}; name the"
            " mask of this image, FILE[EXT] for an extension.",
        )
    named = _named(hdu.header.cards, path)
    wanted = None if bits is None else tuple(bits)
    convention = None if named else recognised((hdu.header, *headers))
    integers, missing = _integers(data, name, path)
    if convention is not None and convention.is_coded:
        planes = _of_codes(integers, convention, wanted)
    else:
        if wanted and max(wanted) >= 8 * integers.dtype.itemsize:
            raise FileFormatError.of(
                path,
                f"the mask {name} has {8 * integers.dtype.itemsize} bits, 0 to"
                f" {8 * integers.dtype.itemsize - 1}, but bit {max(wanted)} is asked for; give the"
                " bit's number, not its value.",
            )
        planes = _of_bits(integers, named, convention, wanted)
    if missing is not None:
        planes["NO_DATA"] = planes.get("NO_DATA", False) | missing
    if convention is not None:
        counts = {key: int(np.count_nonzero(plane)) for key, plane in planes.items()}
        found = (f"{key} {number}" for key, number in counts.items() if number)
        _log.info(
            "%s: mask %s is read as %s has it: %s.",
            path,
            name,
            convention.name,
            ", ".join(found) or "no pixel is marked",
        )
    return planes


def _named(cards: Iterable[Any], path: str | Path) -> dict[int, str]:
    """Names that a mask's own header gives its bits."""
    names: dict[int, str] = {}
    for card in cards:
        if card.keyword.startswith("MP_"):
            bit, name = card.value, card.keyword.removeprefix("MP_")
        # Pan-STARRS has MSKNAMnn and MSKNUM, whose values are no bit numbers.
        elif card.keyword.startswith("MSKN") and not card.keyword.startswith(("MSKNAM", "MSKNUM")):
            bit, name = card.keyword.removeprefix("MSKN"), str(card.value)
            bit = int(bit) if bit.isdigit() else bit
        else:
            continue
        if isinstance(bit, bool) or not isinstance(bit, int) or not 0 <= bit < 63 or bit in names:
            raise FileFormatError.of(
                path,
                f"the mask's card {card.keyword} = {card.value!r} names no bit, or one that"
                " has a name already; is the file whole?",
            )
        names[bit] = name
    return names


def _integers(data: Array, name: str, path: str | Path) -> tuple[Array, Array | None]:
    """Unsigned integers of a mask, and the pixels without one."""
    missing = None
    if data.dtype.kind == "f":
        finite = np.isfinite(data)
        missing = None if finite.all() else ~finite
        data = np.where(finite, data, 0)
        odd = data != np.floor(data)
        if odd.any():
            raise FileFormatError.of(
                path,
                f"the mask {name} must hold integers; it has values such as"
                f" {float(data[odd][0]):g}. A weight map goes to the variance, as weight:FILE.",
            )
    if data.dtype.kind not in "iu":
        data = data.astype(np.int64)
    # Unsigned, since the highest bit of a mask may be the sign of its integers.
    integers = native(data).view(f"u{data.dtype.itemsize}")
    if data.dtype.itemsize == 8:
        integers &= np.uint64((1 << _MOST) - 1)
    return integers, missing


def _plane(integers: Array, bits: int) -> Array:
    """Pixels in which at least one of the bits is set."""
    some = integers.dtype.type(bits & ((1 << 8 * integers.dtype.itemsize) - 1))
    return filled(integers.shape, bool, lambda rows: (integers[rows] & some) != 0)


def _of_bits(
    integers: Array,
    named: dict[int, str],
    convention: Convention | None,
    wanted: tuple[int, ...] | None,
) -> dict[str, Array]:
    used = int(np.bitwise_or.reduce(integers, axis=None)) if integers.size else 0
    if convention is not None:
        return _of_convention(integers, used, convention, wanted)
    planes: dict[str, Array] = {}
    bad = 0
    for bit, name in sorted(named.items()):
        untrusted = is_one_of(name, UNTRUSTED_MASK_PLANES)
        if wanted is not None and bit in wanted and not untrusted:
            bad |= 1 << bit
        if wanted is None or bit in wanted or not untrusted:
            planes[name] = (
                _plane(integers, 1 << bit) if (used >> bit) & 1 else zeros(integers.shape, bool)
            )
    for bit in (bit for bit in range(63) if (used >> bit) & 1 and bit not in named):
        planes[f"BIT{bit}"] = _plane(integers, 1 << bit)
        # DQ arrays without names follow the convention that anything but zero is bad.
        if bit in wanted if wanted is not None else not named:
            bad |= 1 << bit
    if bad or not named:
        before = planes.get("BAD")
        planes["BAD"] = _plane(integers, bad) | (False if before is None else before)
    return planes


def _of_convention(
    integers: Array, used: int, convention: Convention, wanted: tuple[int, ...] | None
) -> dict[str, Array]:
    planes: dict[str, Array] = {}

    def add(name: str, plane: Array) -> None:
        planes[name] = planes[name] | plane if name in planes else plane

    meanings = {meaning.number: meaning for meaning in convention.meanings}
    summary = None
    for bit in (bit for bit in range(64) if (used >> bit) & 1):
        meaning = meanings.get(bit)
        plane = _plane(integers, 1 << bit)
        is_bad = meaning is None or meaning.plane is not None if wanted is None else bit in wanted
        if not is_bad:
            if meaning is not None and meaning.plane is None:
                add(meaning.name, plane)
            continue
        if wanted is None and meaning is not None and meaning.only_with is not None:
            plane &= _plane(integers, 1 << meaning.only_with)
        target = "BAD" if meaning is None else meaning.plane or "BAD"
        if bit == convention.summary:
            summary = plane
        else:
            add(target, plane)
    if summary is not None:
        # A more specific plane counts instead: neighbours can mend a defect, but not a star's core.
        for name in UNTRUSTED_MASK_PLANES:
            if name in planes:
                summary &= ~planes[name]
        add("BAD", summary)
    return planes


def _of_codes(
    integers: Array, convention: Convention, wanted: tuple[int, ...] | None
) -> dict[str, Array]:
    planes: dict[str, Array] = {}
    meanings = {meaning.number: meaning for meaning in convention.meanings}
    for code in (int(value) for value in np.unique(integers) if value):
        if wanted is not None and code not in wanted:
            continue
        meaning = meanings.get(code)
        target = "BAD" if meaning is None else meaning.plane or "BAD"
        plane = integers == integers.dtype.type(code)
        planes[target] = planes[target] | plane if target in planes else plane
    return planes
