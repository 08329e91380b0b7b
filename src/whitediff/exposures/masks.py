"""Mask planes by name, in the spelling of lsst.afw and of lsst.images alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..numerics import planes

__all__ = [
    "AVOIDED_MASK_PLANES",
    "CONTAMINATED",
    "DEFAULT_IGNORE_MASK_PLANES",
    "INTERPOLATED_MASK_PLANES",
    "SOURCE",
    "STATIC",
    "STATIC_BRIGHT",
    "STREAK",
    "UNSUPPORTED",
    "UNTRUSTED_MASK_PLANES",
    "Mask",
    "attributed",
    "bits_of",
    "empty_mask",
    "extended",
    "find_plane",
    "flagged",
    "is_one_of",
    "make_mask",
    "set_plane",
    "united",
    "with_plane",
    "with_planes",
]

type Array = npt.NDArray[Any]

CONTAMINATED = "CONTAMINATED"
UNSUPPORTED = "UNSUPPORTED"
SOURCE = "SOURCE"
"""On the science image or the template: there noise and background are not measured."""
STATIC = "STATIC"
"""On both: what has changed, and is a source of one of them only, is none."""
STATIC_BRIGHT = "STATIC_BRIGHT"
"""On both, and so bright that errors of the matching may leave a detection."""
STREAK = "STREAK"

DEFAULT_IGNORE_MASK_PLANES = (
    "INTRP",
    "EDGE",
    "DETECTED",
    "SAT",
    "CR",
    "BAD",
    "NO_DATA",
    "DETECTED_NEGATIVE",
)
"""Pixels with any of these are left out of mean variances (the documented default)."""

UNTRUSTED_MASK_PLANES = ("BAD", "NO_DATA", "SAT", "CR", UNSUPPORTED)
"""Pixels with any of these hold no measurement of the sky, though they may be finite."""

INTERPOLATED_MASK_PLANES = ("BAD", "NO_DATA", "CR")
"""Of these, those whose neighbours say what the pixel would be; the core of a star they do not."""

AVOIDED_MASK_PLANES = (*UNTRUSTED_MASK_PLANES, STREAK)
"""Pixels that no star, noise or background is measured on: a trail adds light to the sky, but what
is below it is still there."""

_DESCRIPTIONS = {
    CONTAMINATED: "The correction owes more than 1% of its weight to filled or outside pixels.",
    SOURCE: "A source was detected here on the science or template image.",
    STATIC: "A source was detected here on the science image, and one on the template.",
    STATIC_BRIGHT: "A static source has more than 50 times the noise here on both images.",
    STREAK: "A satellite or aeroplane left its trail here.",
    "BAD": "The pixel is bad.",
    "CR": "A cosmic ray hit the pixel.",
    "EDGE": "The convolution lacks support: too near the edge of the frame.",
    "INTRP": "The pixel was interpolated.",
    "NO_DATA": "There is no data for this pixel.",
    "SAT": "The pixel is saturated.",
    UNSUPPORTED: "A source at the edge: the convolution needs its light from beyond the frame.",
}

_NEW_NAMES = {
    "CR": "COSMIC_RAY",
    "EDGE": "DETECTION_EDGE",
    "INTRP": "INTERPOLATED",
    "SAT": "SATURATED",
    "UNMASKEDNAN": "UNMASKED_NAN",
}
_OTHER_SPELLING = _NEW_NAMES | {new: old for old, new in _NEW_NAMES.items()}


_TYPES = (np.uint8, np.uint16, np.uint32, np.uint64)


class Mask:
    """Named planes of flags, a bit of every pixel for each.

    Parameters
    ----------
    bits
        ``(ny, nx)`` unsigned integers; the plane of index n is the bit of value 2ⁿ.  Not copied.
    names
        Names of the planes, from bit 0 on.
    descriptions
        Name → what it means, of as many as are known.

    Raises
    ------
    ArgumentError
        If a name stands twice, or there are more planes than bits.
    """

    def __init__(
        self, bits: Array, names: Iterable[str], descriptions: Mapping[str, str] | None = None
    ) -> None:
        self._bits, self._names = bits, tuple(names)
        if bits.dtype.kind != "u" or bits.ndim != 2:
            raise ArgumentError(
                "The bits of a mask are a 2-D array of unsigned integers; got"
                f" {bits.dtype} of the shape {bits.shape}."
            )
        if len(set(self._names)) < len(self._names):
            raise ArgumentError(f"A plane stands twice in a mask: {', '.join(self._names)}.")
        if len(self._names) > 8 * bits.dtype.itemsize:
            raise ArgumentError(
                f"A mask of {bits.dtype} has no room for {len(self._names)} planes."
            )
        self._index = {name: n for n, name in enumerate(self._names)}
        self._descriptions = {
            name: text for name, text in (descriptions or {}).items() if name in self._index
        }

    @property
    def bits(self) -> Array:
        """Unsigned integers, ``(ny, nx)``."""
        return self._bits

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the planes, from bit 0 on."""
        return self._names

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)."""
        return (self._bits.shape[0], self._bits.shape[1])

    def description(self, name: str) -> str:
        """What a plane means.

        Parameters
        ----------
        name
            Plane.

        Returns
        -------
        text
            Its name where nothing more is known.
        """
        return self._descriptions.get(name) or _DESCRIPTIONS.get(name, name)

    @property
    def descriptions(self) -> dict[str, str]:
        """What the planes mean, by name."""
        return {name: self.description(name) for name in self._names}

    def value(self, name: str) -> int:
        """Value of a plane's bit.

        Parameters
        ----------
        name
            Plane that it has, in its own spelling.

        Returns
        -------
        value
            A power of two.

        Raises
        ------
        ArgumentError
            If it has none of that name.
        """
        if name not in self._index:
            raise ArgumentError(
                f"The mask has no plane {name}; it has {', '.join(self._names) or 'none'}."
            )
        return 1 << self._index[name]

    def get(self, name: str) -> Array:
        """Pixels of a plane.

        Parameters
        ----------
        name
            Plane that it has, in its own spelling.

        Returns
        -------
        pixels
            ``(ny, nx)`` boolean.

        Raises
        ------
        ArgumentError
            If it has none of that name.
        """
        value = self._bits.dtype.type(self.value(name))
        return planes.filled(self.shape, bool, lambda rows: (self._bits[rows] & value) != 0)

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def __getitem__(self, part: Any) -> Mask:
        """Mask of a part of the pixels, a view: ``mask[y0:y1, x0:x1]``."""
        return Mask(self._bits[part], self._names, self._descriptions)

    def copy(self) -> Mask:
        """Mask with bits of its own."""
        return Mask(planes.copied(self._bits), self._names, self._descriptions)

    def __repr__(self) -> str:
        return f"Mask({self.shape[0]} x {self.shape[1]}, {', '.join(self._names) or 'no planes'})"


def empty_mask(
    shape: tuple[int, ...], names: Iterable[str], descriptions: Mapping[str, str] | None = None
) -> Mask:
    """Mask without a flag.

    Parameters
    ----------
    shape
        (ny, nx).
    names, descriptions
        As of `Mask`.

    Returns
    -------
    mask
        Of the narrowest type that has room for the planes.

    Raises
    ------
    ArgumentError
        If there are more than 64.
    """
    names = tuple(names)
    for dtype in _TYPES:
        if len(names) <= 8 * np.dtype(dtype).itemsize:
            return Mask(planes.zeros(shape, dtype), names, descriptions)
    raise ArgumentError(f"A mask has room for 64 planes; got {len(names)}.")


def find_plane(mask: Mask, name: str) -> str | None:
    """Name under which a mask has a plane.

    Parameters
    ----------
    mask
        Mask to look in.
    name
        Name of the plane in lsst.afw's or lsst.images' spelling.

    Returns
    -------
    name
        The mask's own spelling; None if it has no such plane.
    """
    for spelling in (name, _OTHER_SPELLING.get(name)):
        if spelling is not None and spelling in mask:
            return spelling
    return None


def is_one_of(name: str, others: Iterable[str]) -> bool:
    """Whether a plane is among some, in either spelling.

    Parameters
    ----------
    name
        Plane.
    others
        Planes.

    Returns
    -------
    found
        True or False.
    """
    return not {name, _OTHER_SPELLING.get(name, name)}.isdisjoint(others)


def bits_of(mask: Mask, names: Iterable[str]) -> Any:
    """Bits of the named planes.

    Parameters
    ----------
    mask
        Mask to look in.
    names
        Planes, in either spelling; those that the mask lacks are skipped.

    Returns
    -------
    bits
        A number of the mask's type: the bits of all of them.
    """
    found = {plane for name in names if (plane := find_plane(mask, name)) is not None}
    return mask.bits.dtype.type(sum(mask.value(name) for name in found))


def flagged(mask: Mask, names: Iterable[str], *, rows: slice = slice(None)) -> Array:
    """Pixels that carry any of the named planes.

    Parameters
    ----------
    mask
        Mask to look in.
    names
        Planes, in either spelling; those that the mask lacks are skipped.
    rows
        Only these rows of the mask.

    Returns
    -------
    flagged
        ``(ny, nx)`` boolean.
    """
    array, bits = mask.bits[rows], bits_of(mask, names)
    if not bits:
        return planes.zeros(array.shape, bool)
    return planes.filled(array.shape, bool, lambda part: (array[part] & bits) != 0)


def make_mask(images: Mapping[str, Array], shape: tuple[int, ...]) -> Mask:
    """Make a mask from boolean images.

    Parameters
    ----------
    images
        Name → ``(ny, nx)`` boolean.
    shape
        (ny, nx).

    Returns
    -------
    mask
        With the planes in the given order.
    """
    mask = empty_mask(shape, images)
    for name, image in images.items():
        set_plane(mask, name, image)
    return mask


def attributed(
    difference: Mask,
    science: Mask,
    template: Mask,
    *,
    preserve: Iterable[str],
    rename: Iterable[str],
    always: Mapping[str, Array],
) -> Mask:
    """Mask of a difference in which the template's planes are told from the science image's.

    Parameters
    ----------
    difference
        Mask of the difference, in which the planes of both are united.
    science, template
        Masks of the two as they were subtracted.
    preserve
        Planes of the template that count as the difference's own.
    rename
        Planes of the template that are called ``<NAME>_TEMPLATE``.  Of the others, the
        template's pixels are forgotten.
    always
        Plane → ``(ny, nx)`` boolean: pixels that the difference marks whatever the two say.

    Returns
    -------
    mask
        A new one, with the planes of `difference` and the renamed ones.
    """
    preserve, images = tuple(preserve), {}
    for name in difference.names:
        of_science = find_plane(science, name) is not None
        of_template = find_plane(template, name) is not None
        if not of_template or is_one_of(name, preserve):
            images[name] = flagged(difference, [name])
            continue
        images[name] = flagged(science, [name]) if of_science else np.zeros(difference.shape, bool)
        for other, plane in always.items():
            if is_one_of(name, (other,)):
                images[name] |= plane
    for name in rename:
        if find_plane(template, name) is not None:
            images[f"{name}_TEMPLATE"] = flagged(template, [name])
    return make_mask(images, difference.shape)


def set_plane(mask: Mask, name: str, plane: Array) -> None:
    """Set bits of a mask, in place; bits that were set stay.

    Parameters
    ----------
    mask
        Mask to change.
    name
        Plane that it has.
    plane
        ``(ny, nx)`` boolean.
    """
    value = mask.bits.dtype.type(mask.value(name))
    marked = np.asarray(plane, dtype=bool)

    def work(rows: slice) -> None:
        mask.bits[rows] |= marked[rows] * value

    planes.each_block(work, marked.shape)


def with_plane(mask: Mask, name: str, plane: Array) -> Mask:
    """Copy a mask and set bits in it; bits that were set stay.

    Parameters
    ----------
    mask
        Mask to copy.
    name
        Plane; added if the mask lacks it.
    plane
        ``(ny, nx)`` boolean.

    Returns
    -------
    mask
        A new mask.
    """
    return with_planes(mask, {name: plane})


def with_planes(mask: Mask, images: Mapping[str, Array]) -> Mask:
    """Copy a mask and set bits of several planes in it; bits that were set stay.

    Parameters
    ----------
    mask
        Mask to copy.
    images
        Name → ``(ny, nx)`` boolean; planes that the mask lacks are added.

    Returns
    -------
    mask
        A new mask.
    """
    result = extended(mask, images)
    for name, image in images.items():
        set_plane(result, name, image)
    return result


def extended(mask: Mask, names: Iterable[str]) -> Mask:
    """Copy a mask, with more planes.

    Parameters
    ----------
    mask
        Mask to copy.
    names
        Planes to have; those that the mask lacks, by exactly this name, are added, empty.

    Returns
    -------
    mask
        A new mask.
    """
    names = dict.fromkeys([*mask.names, *names])
    result = empty_mask(mask.shape, names, mask.descriptions)

    def work(rows: slice) -> None:
        result.bits[rows] = mask.bits[rows]

    planes.each_block(work, mask.shape)
    return result


def united(mask: Mask, other: Mask) -> Mask:
    """Copy a mask, with the bits of another one set too.

    Parameters
    ----------
    mask
        Mask to copy.
    other
        Mask of the same box.  Its planes are found in either spelling; those that the first
        lacks are added.

    Returns
    -------
    mask
        A new mask.
    """
    names = {name: find_plane(mask, name) or name for name in other.names}
    result = extended(mask, names.values())
    # Bits that move by equally many places move together.
    moves: dict[int, int] = {}
    for name, own in names.items():
        value = other.value(name)
        places = result.value(own).bit_length() - value.bit_length()
        moves[places] = moves.get(places, 0) | value
    dtype = result.bits.dtype.type

    def work(rows: slice) -> None:
        for places, bits in moves.items():
            moved = (other.bits[rows] & other.bits.dtype.type(bits)).astype(
                np.promote_types(dtype, other.bits.dtype), copy=False
            )
            moved = moved << places if places > 0 else moved >> -places
            result.bits[rows] |= moved.astype(dtype, copy=False)

    planes.each_block(work, mask.shape)
    return result
