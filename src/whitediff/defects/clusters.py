"""Small clusters of pixels that no light makes: dark ones with sharp edges, and ones of one value.

Light only adds to the sky.  A few pixels far below it, whose neighbours are not, are dead, be they
alone or adjacent: each would excuse the other if it was compared with its own neighbours alone.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..numerics.groups import connected
from .surface import BRIGHT, LOW, MARGIN, Surface

__all__ = ["dead_clusters", "equal_clusters"]

type Array = npt.NDArray[Any]

_STEP = 2**0.5
"""From a depth to the next, at each of which pixels are joined: a cluster in a wider dark place,
or beside a pixel of much noise, stands alone at one of them."""

_SIGNIFICANT, _BELOW = 6.0, 5.0
"""Sigma of a cluster's sum, and of its mean below what is around it."""

_MOST_JOINED, _CORRELATED = 0.6, 1.4
"""Part of the low pixels that are not alone, a twentieth where noise is white, from which it is
correlated or there is structure; and by how much more significant a cluster must then be."""

_SIDE, _LONGER = 3, 4
"""Pixels along either axis; the second where the edges are the sharpest."""

_EDGE, _SHARPEST = 1 / 3, 1 / 8
"""Part of the depth that three quarters of the pixels around a cluster have at most.

A dark place as narrow as a PSF of 3 pixels has more.
"""

_RINGING, _NEAR = 0.08, 3
"""Part of a peak, and pixels from it, by which an image that was resampled may be too low."""

_OF_NOISE = 0.67
"""Sigma that a quarter of noise exceeds."""

_FEWEST_EQUAL, _CHANCE, _SAMPLED = 3, 1e-3, 64
"""Pixels of one value, and images of noise that have as many; lines that tell that chance."""

_USUAL = 10, 70
"""Per cent of the values between which those of the sky are."""

_SATURATED = 50.0
"""Sigma from which pixels of one value may be a saturated star; no other source has those."""

_FEWEST_AROUND = 3
_EIGHT = tuple((j, i) for j in (-1, 0, 1) for i in (-1, 0, 1) if (j, i) != (0, 0))
_FORWARD = _EIGHT[4:]


@dataclasses.dataclass(frozen=True)
class _Groups:
    """Pixels in groups.

    Attributes
    ----------
    index
        ``(n,)`` pixels, in the order of their groups.
    label
        ``(n,)`` group of each, ascending from 0.
    size
        ``(groups,)`` pixels of each.
    """

    index: Array
    label: Array
    size: Array

    def __getitem__(self, which: Array) -> _Groups:
        """Some of the groups, by a boolean array."""
        of_pixel = which[self.label]
        number = np.cumsum(which) - 1
        return _Groups(self.index[of_pixel], number[self.label[of_pixel]], self.size[which])

    def sums(self, values: Array) -> Array:
        """Sums of the pixels' values, ``(groups,)``."""
        return np.bincount(self.label, values, minlength=len(self.size))

    def sides(self, width: int) -> Array:
        """How long they are along the longer axis, pixels, ``(groups,)``."""
        starts = np.cumsum(self.size) - self.size
        sides = [
            np.maximum.reduceat(at, starts) - np.minimum.reduceat(at, starts) + 1
            for at in np.divmod(self.index, width)
        ]
        result: Array = np.maximum(*sides)
        return result


def dead_clusters(surface: Surface) -> Array:
    """Pixels of clusters below the background whose edges are sharp.

    Parameters
    ----------
    surface
        The image.

    Returns
    -------
    index
        ``(n,)`` indices into the raveled `Surface.flux`: of groups of up to 3 × 3 pixels (4 × 4
        where the edges are the sharpest) that are 6 sigma below the background together and
        below the pixels around them, of which three quarters are not a third as deep.
    """
    at = surface.low
    depth = -surface.flux.ravel()[at] / np.sqrt(surface.variance_at(at))
    found = []
    least, significant = LOW, _SIGNIFICANT
    while True:
        # By their own variance more are low, where that is made of few photons.
        keep = depth > least
        at, depth = at[keep], depth[keep]
        if not len(at):
            break
        groups = _joined(at, surface.width)
        if least == LOW and _are_joined_anyway(groups, at, depth):
            significant *= _CORRELATED
        groups = groups[groups.sides(surface.width) <= _LONGER]
        found.append(_with_sharp_edges(surface, groups, significant))
        least *= _STEP
    return np.unique(np.concatenate(found)) if found else np.zeros(0, int)


def equal_clusters(surface: Surface, image: Array) -> Array:
    """Pixels of clusters that all have the same value, as no light has.

    Parameters
    ----------
    surface
        The image.
    image
        ``(ny, nx)``, from which it was made.

    Returns
    -------
    index
        ``(n,)`` indices into the raveled `Surface.flux`: of groups between 5 and 50 sigma, or more
        than 5 sigma below the background; 3 pixels at least, and as large as noise, rounded as it
        is in this image, makes them in one of a thousand images.  Those of the highest value are
        none: the image may be cut there.
    """
    flux, at = surface.flux.ravel(), surface.bright
    faint = flux[at] < _SATURATED * np.sqrt(surface.bright_variance)
    if faint.any():
        values = image.ravel()[surface.unpadded(at)]
        faint &= values < values.max()
    low = surface.low
    # Their own variance is the least that it is taken for.
    own = surface.variance.ravel()[surface.unpadded(low)].astype(np.float32)
    own *= np.float32(surface.factor)
    low = low[~(flux[low] >= -BRIGHT * np.sqrt(own))]
    low = low[flux[low] < -BRIGHT * np.sqrt(surface.variance_at(low))]
    at = np.sort(np.concatenate([at[faint], low]))
    least = _fewest_equal(image, len(at))
    if least is None:
        return at[:0]
    groups = _joined(at, surface.width, image.ravel()[surface.unpadded(at)])
    return groups[groups.size >= least].index


def _fewest_equal(image: Array, number: int) -> int | None:
    """Adjacent pixels of one value that are no chance; None where chance makes many."""
    down, across = (max(1, n // _SAMPLED) for n in image.shape)
    # Bad lines are of one value along one axis only, and bad clusters above the sky.
    chance = min(_equal_in_sky(image[::down]), _equal_in_sky(image[:, ::across].T))
    again = len(_EIGHT) * chance
    if not number or again > 1 / 2:
        return None
    return max(_FEWEST_EQUAL, 1 + math.ceil(math.log(_CHANCE / number) / math.log(again)))


def _equal_in_sky(lines: Array) -> float:
    """How often neighbours along lines, whose values are usual ones, are the same."""
    first = lines[:, :-1]
    known = first[np.isfinite(first)]
    if not known.size:
        return 1.0
    low, high = np.percentile(known, _USUAL)
    usual = (first >= low) & (first <= high)
    same = usual & (first == lines[:, 1:])
    return (int(np.count_nonzero(same)) + 1) / max(1, int(np.count_nonzero(usual)))


def _are_joined_anyway(groups: _Groups, index: Array, depth: Array) -> bool:
    """Whether most pixels that are no lower than noise have a low one beside them."""
    in_company = np.zeros(len(index), bool)
    in_company[np.searchsorted(index, groups.index)] = groups.size[groups.label] > 1
    by_noise = depth < LOW * _STEP
    return bool(np.count_nonzero(in_company & by_noise) > _MOST_JOINED * by_noise.sum())


def _with_sharp_edges(surface: Surface, groups: _Groups, significant: float) -> Array:
    """Pixels of those groups that are deep and whose edges are sharp."""
    flux, width = surface.flux.ravel(), surface.width

    def depths(index: Array) -> Array:
        result: Array = -flux[index] / np.sqrt(surface.variance_at(index))
        return result

    deep = groups.sums(depths(groups.index)) > significant * np.sqrt(groups.size)
    groups = groups[deep]
    if not len(groups.size):
        return groups.index
    mean = groups.sums(depths(groups.index)) / groups.size
    # Each pixel around a group once.
    around = np.concatenate([groups.index + j * width + i for j, i in _EIGHT])
    owner = np.tile(groups.label, len(_EIGHT))
    row, column = np.divmod(around, width)
    ny, nx = surface.shape
    known = (row >= MARGIN) & (row < ny + MARGIN) & (column >= MARGIN) & (column < nx + MARGIN)
    known &= np.isfinite(flux[around])
    key = np.unique(owner[known] * flux.size + around[known])
    own = np.sort(groups.label * flux.size + groups.index)
    key = key[~np.isin(key, own, assume_unique=True)]
    owner, around = np.divmod(key, flux.size)
    values = depths(around)
    order = np.lexsort((values, owner))
    values = values[order]
    number = np.bincount(owner, minlength=len(groups.size))
    starts = np.cumsum(number) - number
    enough = number >= _FEWEST_AROUND
    values = np.append(values, 0)

    def quantile(part: float) -> Array:
        place = starts + np.floor(part * np.maximum(number - 1, 0)).astype(int)
        return values[np.minimum(place, len(values) - 1)]

    edge, middle = quantile(0.75) - _OF_NOISE, quantile(0.5)
    # Resampled stars ring: beside them a dead pixel has light all around.
    rings = mean < _RINGING * _brightest(surface, groups)
    edge[rings] += mean[rings]
    below = (mean - middle) / np.sqrt(1 / groups.size + 1.5 / np.maximum(number, 1))
    short = groups.sides(width) <= _SIDE
    sharp = edge < np.where(short, _EDGE, _SHARPEST) * mean
    return groups[enough & sharp & (below > _BELOW)].index


def _brightest(surface: Surface, groups: _Groups) -> Array:
    """Sigma of the brightest pixel near each group."""
    steps = np.arange(-_NEAR, _NEAR + 1)
    row, column = np.divmod(groups.index, surface.width)
    ny, nx = (n + 2 * MARGIN for n in surface.shape)
    rows = np.clip(row[:, None] + steps, MARGIN, ny - MARGIN - 1)
    columns = np.clip(column[:, None] + steps, MARGIN, nx - MARGIN - 1)
    near = surface.flux[rows[:, :, None], columns[:, None, :]]
    highest = np.fmax.reduce(near.reshape(len(near), -1), axis=1)
    highest /= np.sqrt(surface.variance_at(groups.index))
    result: Array = np.fmax.reduceat(highest, np.cumsum(groups.size) - groups.size)
    return result


def _joined(index: Array, width: int, values: Array | None = None) -> _Groups:
    """Pixels in groups of adjacent ones, of one value where values are given; sorted indices."""
    if not len(index):
        return _Groups(index, index, index)
    first, second = [], []
    for j, i in _FORWARD:
        there = np.searchsorted(index, index + j * width + i)
        there = np.minimum(there, len(index) - 1)
        joined = index[there] == index + j * width + i
        if values is not None:
            joined &= values[there] == values
        own = np.flatnonzero(joined)
        first.append(own)
        second.append(there[own])
    rows, columns = np.concatenate(first), np.concatenate(second)
    _, label = connected(rows, columns, len(index))
    order = np.argsort(label, kind="stable")
    return _Groups(index[order], label[order], np.bincount(label))
