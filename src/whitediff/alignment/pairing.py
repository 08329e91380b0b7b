"""Pairs of the same star in two lists, with and without a known transformation to start from."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics.threads import scipy_part
from ..numerics.transformation import Affine, fit_affine
from .stars import StarList

__all__ = ["Pairing", "pair_lists"]

type Array = npt.NDArray[Any]

_LARGEST_SCALE = 3.2
_FIRST_TOLERANCES = (8.0, 5.0, 3.0, 2.0)
"""Pixels within which stars are paired, as the transformation becomes better known."""
_TOLERANCE = 1.5
_VOTERS = (25, 45)
"""Number of each list's brightest stars whose pairs vote: the second, if the first fails."""
_VERIFIED = 150
"""Number of each list's brightest stars by which a transformation is judged."""
_ANGLE_BIN = 0.025
"""Bins of the angle, and of the logarithm of the scale, in which pairs vote."""
_SHIFT_BIN = 0.02
"""Bins of the shift, over the diagonal of the first image."""
_SHORTEST = 0.12
"""Least distance of two stars, over the diagonal, with which they determine the angle."""
_LARGEST_COLOUR = 1.6
"""Magnitudes by which the ratio of two stars' fluxes may differ in the two images."""
_TRIED = 25
_CHANCE = math.log(1e-4)
"""Logarithm of the largest number of chance pairings as good with which a pairing is believed."""
_PAIRS_AT_ONCE = 4_000_000
_GUESS_BIN = 3.0
_GUESSES = 5
_MOST_OF = 0.6


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Stars that two lists have in common.

    Attributes
    ----------
    first, second
        ``(n,)`` indices into the two lists.
    transformation
        From the first list's positions to the second's.
    chance
        Logarithm of an upper limit of the number of pairings as large that chance would bring.
    judged
        Number of each list's judged stars that lie within both images.
    """

    first: Array
    second: Array
    transformation: Affine
    chance: float
    judged: tuple[int, int]

    def __len__(self) -> int:
        return len(self.first)

    @property
    def is_real(self) -> bool:
        """Whether chance is out of the question."""
        return self.chance < _CHANCE


def pair_lists(
    first: StarList,
    second: StarList,
    *,
    shapes: tuple[tuple[int, int], tuple[int, int]],
    start: Affine | None = None,
    anywhere: bool = True,
) -> Pairing | None:
    """Find which stars of two lists are the same.

    Parameters
    ----------
    first, second
        Lists from `whitediff.alignment.stars.find_stars`.
    shapes
        ``(ny, nx)`` of the two images.
    start
        Expected transformation from the first list's positions to the second's; None if unknown.
    anywhere
        Try any shift, rotation, scale from 1/3.2 to 3.2 and mirror image where the start does not
        bring most stars together.

    Returns
    -------
    pairing
        The pairing that is least likely by chance; None where fewer than three stars agree.

    Notes
    -----
    Without a start, every two of the brightest stars of one list are compared with every two of
    the other, and vote for the similarity that takes the first two to the others.  Stars that only
    one list has spread their votes.  The transformations with most votes are fitted to all stars,
    and judged by the number of stars that come together, over the number expected by chance.
    """
    best: Pairing | None = None
    if min(len(first), len(second)) < 3:
        return None
    if start is not None:
        for guess in _shifted(first, second, start):
            best = _better(best, _refined(first, second, shapes, guess, _few_trials(first, second)))
        if best is not None and best.is_real and len(best) >= _MOST_OF * min(best.judged):
            return best
    if not anywhere:
        return best
    seen = -1
    for voters in _VOTERS:
        if seen == (seen := min(voters, len(first)) + min(voters, len(second))):
            break
        one, other = first.brightest(voters), second.brightest(voters)
        trials = math.log(max(1, (len(one) * len(other)) ** 2 / 2))
        for guess in _voted(one, other, shapes):
            found = _refined(first, second, shapes, guess, trials)
            best = _better(best, found)
            if found is not None and found.is_real and len(found) >= _MOST_OF * min(found.judged):
                return best
        if best is not None and best.is_real:
            return best
    return best


def _better(best: Pairing | None, found: Pairing | None) -> Pairing | None:
    if best is None or found is None:
        return best or found
    return found if found.chance < best.chance else best


def _few_trials(first: StarList, second: StarList) -> float:
    return math.log(max(1, len(first.brightest(_VERIFIED)) * len(second.brightest(_VERIFIED))))


def _shifted(first: StarList, second: StarList, start: Affine) -> list[Affine]:
    """The start alone, and followed by each of the shifts for which most stars vote."""
    there = start(first.brightest(_VERIFIED).yx)
    shifts = (second.brightest(_VERIFIED).yx[None] - there[:, None]).reshape(-1, 2)
    guesses = [start]
    for offset in (0.0, 0.5):
        cells, counts = np.unique(
            np.floor(shifts / _GUESS_BIN + offset), axis=0, return_counts=True
        )
        for i in np.argsort(-counts, kind="stable")[:_GUESSES]:
            shift = (cells[i] + 0.5 - offset) * _GUESS_BIN
            guesses.append(Affine(start.matrix, start.offset + shift))
    return guesses


def _voted(
    first: StarList, second: StarList, shapes: tuple[tuple[int, int], tuple[int, int]]
) -> list[Affine]:
    """Similarities for which most pairs of stars vote."""
    diagonal = math.hypot(*shapes[0])
    middle = (np.array(shapes[0]) - 1) / 2

    def doubles(stars: StarList, *, both: bool) -> tuple[Array, Array, Array, Array]:
        i, j = np.array(list(itertools.combinations(range(len(stars)), 2))).T
        if both:
            i, j = np.concatenate([i, j]), np.concatenate([j, i])
        z = stars.yx[:, 0] + 1j * stars.yx[:, 1]
        ratio = -2.5 * np.log10(np.maximum(stars.flux, 1e-30))
        return i, j, z[j] - z[i], ratio[j] - ratio[i]

    i, j, along, colour = doubles(first, both=False)
    kept = np.abs(along) > _SHORTEST * diagonal
    i, j, along, colour = i[kept], j[kept], along[kept], colour[kept]
    k, _, other, other_colour = doubles(second, both=True)
    z = first.yx[:, 0] + 1j * first.yx[:, 1] - (middle[0] + 1j * middle[1])
    w = second.yx[:, 0] + 1j * second.yx[:, 1]
    votes: list[Array] = []
    step = max(1, _PAIRS_AT_ONCE // max(1, len(other)))
    for mirrored in (False, True):
        for at in range(0, len(along), step):
            part = slice(at, at + step)
            base: Array = np.conj(along[part]) if mirrored else along[part]
            origin: Array = np.conj(z[i[part]]) if mirrored else z[i[part]]
            alike = np.abs(colour[part][:, None] - other_colour) < _LARGEST_COLOUR
            length = np.log(np.abs(other))[None] - np.log(np.abs(base))[:, None]
            alike &= np.abs(length) < math.log(_LARGEST_SCALE)
            one, two = np.nonzero(alike)
            turn = other[two] / base[one]
            place = w[k[two]] - turn * origin[one]
            votes.append(
                np.stack(
                    [
                        np.full(len(turn), float(mirrored)),
                        length[one, two],
                        np.angle(turn),
                        place.real,
                        place.imag,
                    ],
                    1,
                )
            )
    cast = np.concatenate(votes)
    if not len(cast):
        return []
    # Bins of the shift in pixels of the second image: exp(length) is its scale over the first.
    width = np.stack(
        [
            np.ones(len(cast)),
            np.full(len(cast), _ANGLE_BIN),
            np.full(len(cast), _ANGLE_BIN),
            *[_SHIFT_BIN * diagonal * np.exp(np.round(cast[:, 1] / 0.5) * 0.5)] * 2,
        ],
        1,
    )
    guesses: list[tuple[int, Affine]] = []
    for offset in (0.0, 0.5):
        cells = np.floor(cast / width + [0, *[offset] * 4]).astype(np.int64)
        keys = cells @ np.array([1 << 60, 1 << 48, 1 << 36, 1 << 18, 1], dtype=np.int64)
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        for cell in np.argsort(-counts, kind="stable")[:_TRIED]:
            flip, length, angle, y, x = np.median(cast[inverse == cell], axis=0)
            c, s = math.exp(length) * math.cos(angle), math.exp(length) * math.sin(angle)
            matrix = np.array([[c, s], [s, -c]] if flip else [[c, -s], [s, c]])
            guess = Affine(matrix, np.array([y, x]) - matrix @ middle)
            guesses.append((int(counts[cell]), guess))
    guesses.sort(key=lambda each: -each[0])
    return [guess for _, guess in guesses[:_TRIED]]


def _refined(
    first: StarList,
    second: StarList,
    shapes: tuple[tuple[int, int], tuple[int, int]],
    guess: Affine,
    trials: float,
) -> Pairing | None:
    """Pairing whose transformation is fitted to all stars that it brings together."""
    for tolerance in (*_FIRST_TOLERANCES, *[_TOLERANCE] * 3):
        i, j = _together(first, second, guess, tolerance)
        if len(i) < 3:
            return None
        error = np.hypot(first.error[i] * guess.scale, second.error[j])
        guess, used, _ = fit_affine(
            first.yx[i], second.yx[j], error, parameters=6 if len(i) >= 8 else 4
        )
        if not 1 / _LARGEST_SCALE < guess.scale < _LARGEST_SCALE or used.sum() < 3:
            return None
    one, other = first.brightest(_VERIFIED), second.brightest(_VERIFIED)
    i, j = _together(one, other, guess, _TOLERANCE)
    inside = np.count_nonzero(_inside(guess(one.yx), shapes[1]))
    inverse = np.linalg.inv(guess.matrix)
    back = (other.yx - guess.offset) @ inverse.T
    other_inside = np.count_nonzero(_inside(back, shapes[0]))
    corners = np.array([[0.0, 0.0], [0, 1], [1, 1], [1, 0]]) * (np.array(shapes[0]) - 1)
    area = max(_overlap(guess(corners), shapes[1]), 1.0)
    radius = _TOLERANCE * max(1.0, guess.scale)
    expected = inside * other_inside * math.pi * radius**2 / area
    # A similarity fits any two stars: these say nothing about chance.
    extra = max(0, len(i) - 2)
    # Logarithm of the Poisson probability of so many chance pairs; the trials come on top.
    chance = extra * math.log(max(expected, 1e-12)) - float(scipy.special.gammaln(extra + 1))
    if extra <= expected:
        chance = 0.0
    else:
        chance = max(chance - expected, -700.0) if chance - expected < 0 else 0.0
    i, j = _together(first, second, guess, _TOLERANCE)
    return Pairing(i, j, guess, chance + trials, (int(inside), int(other_inside)))


def _together(
    first: StarList, second: StarList, guess: Affine, tolerance: float
) -> tuple[Array, Array]:
    """Stars that are each other's nearest within a tolerance, in the larger image pixels."""
    there, limit = guess(first.yx), tolerance * max(1.0, guess.scale)
    distance, j = scipy_part("spatial").cKDTree(second.yx).query(there)
    _, back = scipy_part("spatial").cKDTree(there).query(second.yx)
    i = np.flatnonzero((distance < limit) & (back[j] == np.arange(len(there))))
    return i, j[i]


def _inside(yx: Array, shape: tuple[int, int]) -> Array:
    result: Array = ((yx > -0.5) & (yx < np.array(shape) - 0.5)).all(axis=1)
    return result


def _overlap(corners: Array, shape: tuple[int, int]) -> float:
    """Area of an image that a quadrilateral covers, by points of a grid, pixels²."""
    ny, nx = shape
    y, x = (
        grid.ravel()
        for grid in np.meshgrid(
            (np.arange(32) + 0.5) / 32 * ny, (np.arange(32) + 0.5) / 32 * nx, indexing="ij"
        )
    )
    sides = []
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        sides.append((b[1] - a[1]) * (y - a[0]) - (b[0] - a[0]) * (x - a[1]))
    within = (np.stack(sides) >= 0).all(axis=0) | (np.stack(sides) <= 0).all(axis=0)
    return float(within.mean()) * ny * nx
