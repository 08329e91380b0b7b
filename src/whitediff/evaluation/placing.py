"""Placing point sources in an image, and adding them, as arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError

__all__ = ["add_stamp", "overlap", "photon_noise", "random_positions"]

type Array = npt.NDArray[Any]

_PATIENCE = 100
"""Positions tried for each one wanted: a few tries find most positions that fit at all."""


def overlap(
    stamp: tuple[int, ...], image: tuple[int, ...], x: float, y: float
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Overlap of an image with a stamp at a position.

    Parameters
    ----------
    stamp, image
        Shapes.
    x, y
        0-based position; the stamp's pixel ``[sy//2, sx//2]`` falls on the pixel nearest to it.

    Returns
    -------
    target, part
        Slices of the image and of the stamp, of the same shape; empty if they do not meet.
    """
    target, part = [], []
    for position, size, length in zip((y, x), stamp, image, strict=True):
        first = math.floor(position + 0.5) - size // 2
        low = min(max(0, first), length)
        high = max(low, min(length, first + size))
        target.append(slice(low, high))
        part.append(slice(low - first, high - first))
    return tuple(target), tuple(part)


def add_stamp(image: Array, stamp: Array, x: float, y: float) -> None:
    """Add a stamp to an image, in place; parts outside are cut off.

    Parameters
    ----------
    image
        ``(ny, nx)``; changed.
    stamp
        ``(sy, sx)``.
    x, y
        0-based position, as for `overlap`.
    """
    target, part = overlap(stamp.shape, image.shape, x, y)
    image[target] += stamp[part]


def photon_noise(expected: Array, gain: float, rng: np.random.Generator) -> Array:
    """Noise of a source's own photons.

    Parameters
    ----------
    expected
        Expected counts in each pixel; negative ripples of a measured or shifted PSF have no
        photons.
    gain
        Electrons per count; positive.
    rng
        Random numbers.

    Returns
    -------
    noise
        Counts, in the shape of `expected`: mean 0, variance ``max(expected, 0)/gain``.
    """
    light = np.maximum(expected, 0)
    return rng.poisson(light * gain) / gain - light


def random_positions(
    usable: Array, number: int, *, separation: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Random positions, uniform over some pixels and not too close to each other.

    Parameters
    ----------
    usable
        ``(ny, nx)`` boolean: pixels in which a position may lie.
    number
        Number of positions.
    separation
        Least distance between two of them, pixels; 0 for no limit.
    rng
        Random numbers.

    Returns
    -------
    x, y
        ``(number,)`` 0-based, with any fraction of a pixel.

    Raises
    ------
    ArgumentError
        If so many positions do not fit.

    Notes
    -----
    Each position is drawn uniformly and dropped if it is too close to an earlier one.
    """
    ny, nx = usable.shape
    available = int(np.count_nonzero(usable))
    found: list[tuple[float, float]] = []
    # A cell this small holds one position at most, and only 5 x 5 cells can be too close to it.
    cell = max(separation, 1e-3) / math.sqrt(2)
    occupied: dict[tuple[int, int], tuple[float, float]] = {}
    tries = 0 if available == 0 else math.ceil(_PATIENCE * number * usable.size / available)
    while len(found) < number and tries > 0:
        batch = min(tries, 4 * number + 64)
        tries -= batch
        drawn = rng.random((batch, 2)) * (nx, ny) - 0.5
        pixels = np.floor(drawn + 0.5).astype(np.intp)
        for x, y in drawn[usable[pixels[:, 1], pixels[:, 0]]].tolist():
            place = (int(x // cell), int(y // cell))
            if separation > 0 and _is_near(occupied, place, x, y, separation):
                continue
            occupied[place] = (x, y)
            found.append((x, y))
            if len(found) == number:
                break
    if len(found) < number:
        raise ArgumentError(
            f"Only {len(found)} of {number} positions that are {separation:g} pixels apart fit on"
            f" {available} usable pixels; ask for fewer, or for a smaller separation."
        )
    positions = np.array(found, dtype=np.float64).reshape(number, 2)
    return positions[:, 0], positions[:, 1]


def _is_near(
    occupied: dict[tuple[int, int], tuple[float, float]],
    place: tuple[int, int],
    x: float,
    y: float,
    separation: float,
) -> bool:
    """Whether a position is too close to an occupied one."""
    for column in range(place[0] - 2, place[0] + 3):
        for row in range(place[1] - 2, place[1] + 3):
            other = occupied.get((column, row))
            if other is not None and math.hypot(other[0] - x, other[1] - y) < separation:
                return True
    return False
