"""Mask planes by name, in the spellings of lsst.afw and lsst.images."""

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
"""Plane of sources on either image: noise and background are not measured there."""
STATIC = "STATIC"
"""Plane of sources on both images; a source that changed, on one of them only, is not in it."""
STATIC_BRIGHT = "STATIC_BRIGHT"
"""Plane of sources on both images that are so bright that matching errors may be detected."""
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
"""Planes whose pixels are left out of mean variances (the documented default)."""

UNTRUSTED_MASK_PLANES = ("BAD", "NO_DATA", "SAT", "CR", UNSUPPORTED)
"""Planes whose pixels hold no measurement of the sky, though they may be finite."""

INTERPOLATED_MASK_PLANES = ("BAD", "NO_DATA", "CR")
"""Untrusted planes whose pixels are interpolated; neighbours do not determine a saturated core."""

AVOIDED_MASK_PLANES = (*UNTRUSTED_MASK_PLANES, STREAK)
"""Planes whose pixels are not used to measure stars, noise or background.  A trail only adds light
to the sky, so its pixels are not untrusted."""

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
    """Named planes of flags; each plane is one bit of every pixel.

    Parameters
    ----------
    bits
        ``(ny, nx)`` unsigned integers; the plane of index n is the bit of value 2ⁿ.  Not copied.
    names
        Names of the planes, from bit 0 on.
    descriptions
        Name → meaning of the plane, for as many planes as are known.

    Raises
    ------
    ArgumentError
        If the bits are not a 2-D array of unsigned integers, a name appears twice, or there are
        more planes than bits.
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
        """Bits of the planes, ``(ny, nx)`` unsigned integers."""
        return self._bits

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the planes, from bit 0 on."""
        return self._names

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns (ny, nx)."""
        return (self._bits.shape[0], self._bits.shape[1])

    def description(self, name: str) -> str:
        """Meaning of a plane.

        Parameters
        ----------
        name
            Name of the plane.

        Returns
        -------
        text
            Description; the name itself if none is known.
        """
        return self._descriptions.get(name) or _DESCRIPTIONS.get(name, name)

    @property
    def descriptions(self) -> dict[str, str]:
        """Meanings of the planes, by name."""
        return {name: self.description(name) for name in self._names}

    def value(self, name: str) -> int:
        """Value of a plane's bit.

        Parameters
        ----------
        name
            Name of a plane of this mask, in the mask's own spelling.

        Returns
        -------
        value
            A power of two.

        Raises
        ------
        ArgumentError
            If the mask has no plane of that name.
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
            Name of a plane of this mask, in the mask's own spelling.

        Returns
        -------
        pixels
            ``(ny, nx)`` boolean.

        Raises
        ------
        ArgumentError
            If the mask has no plane of that name.
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
    """Mask without any flag set.

    Parameters
    ----------
    shape
        (ny, nx).
    names, descriptions
        As for `Mask`.

    Returns
    -------
    mask
        Mask of the narrowest type that has room for the planes.

    Raises
    ------
    ArgumentError
        If there are more than 64 planes.
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
    """Whether a plane is among some others, in either spelling.

    Parameters
    ----------
    name
        Name of the plane.
    others
        Names of the others.

    Returns
    -------
    found
        True or False.
    """
    return not {name, _OTHER_SPELLING.get(name, name)}.isdisjoint(others)


def bits_of(mask: Mask, names: Iterable[str]) -> np.unsignedinteger:
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
        Number of the mask's type in which the bits of all these planes are set.
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
        Mask with the planes in the given order.
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
    """Mask of a difference in which planes of the template and the science image are separate.

    Parameters
    ----------
    difference
        Mask of the difference, in which the planes of both images are united.
    science, template
        Masks of the two images as they were subtracted.
    preserve
        Planes of the template that count as planes of the difference.
    rename
        Planes of the template that are stored as ``<NAME>_TEMPLATE``.  Pixels of the template's
        other planes are dropped.
    always
        Plane → ``(ny, nx)`` boolean: pixels that the difference flags in any case.

    Returns
    -------
    mask
        New mask, with the planes of `difference` and the renamed ones.
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
        Name of a plane of the mask.
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
        Name of the plane; added if the mask lacks it.
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
        Wanted planes; those that the mask lacks, by exactly this name, are added, empty.

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
    """Copy a mask and set the bits of another one in it.

    Parameters
    ----------
    mask
        Mask to copy.
    other
        Mask of the same box.  Its planes are matched in either spelling; planes that the first
        mask lacks are added.

    Returns
    -------
    mask
        A new mask.
    """
    names = {name: find_plane(mask, name) or name for name in other.names}
    result = extended(mask, names.values())
    # Planes whose bits move by the same number of places are moved in one pass.
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
