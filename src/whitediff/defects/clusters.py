"""Small clusters of pixels that light cannot make: dark ones with sharp edges, ones of one value.

Light only adds to the sky.  A few pixels far below it, among neighbours that are not, are dead.
Adjacent dead pixels are judged together: each would excuse the other if compared with its own
neighbours.
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
"""Factor from one depth threshold to the next.  Pixels are joined at each: a cluster in a wide dark
place, or beside a pixel of much noise, stands alone at one of them."""

_SIGNIFICANT, _BELOW = 6.0, 5.0
"""Least depth of a cluster together, sigma, and least depth of its mean below its surroundings."""

_MOST_JOINED, _CORRELATED = 0.6, 1.4
"""Share of low pixels with a low neighbour, a twentieth in white noise, from which noise is
correlated or has structure; and factor on the significance that a cluster must then have."""

_SIDE, _LONGER = 3, 4
"""Largest side of a cluster, pixels; the second where the edges are the sharpest."""

_EDGE, _SHARPEST = 1 / 3, 1 / 8
"""Share of the depth that three quarters of the pixels around a cluster must stay below.

Around a dark place as narrow as a PSF of 3 pixels they are deeper.
"""

_RINGING, _NEAR = 0.08, 3
"""Depth of a resampled image's ringing, as a share of the peak, and its reach, pixels."""

_OF_NOISE = 0.67
"""Sigma that a quarter of noise exceeds."""

_FEWEST_EQUAL, _CHANCE, _SAMPLED = 3, 1e-3, 64
"""Least number of adjacent pixels of one value; share of noise images that have such a cluster by
chance; lines on which that chance is measured."""

_USUAL = 10, 70
"""Percentiles between which values belong to the sky."""

_SATURATED = 50.0
"""Sigma from which pixels of one value may be a saturated star; no other source has such pixels."""

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
        """Lengths of the groups along their longer axis, pixels, ``(groups,)``."""
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
        ``(n,)`` indices into the raveled `Surface.flux`, for groups of up to 3 × 3 pixels (4 × 4
        where the edges are the sharpest).  A group is 6 sigma below the background together, and
        its mean 5 sigma below the pixels around it; three quarters of these are less than a third
        as deep.
    """
    at = surface.low
    depth = -surface.flux.ravel()[at] / np.sqrt(surface.variance_at(at))
    found = []
    least, significant = LOW, _SIGNIFICANT
    while True:
        # Low pixels were chosen by their own variance, which is too small where photons are few.
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
        ``(ny, nx)`` image from which the surface was made.

    Returns
    -------
    index
        ``(n,)`` indices into the raveled `Surface.flux`, for groups between 5 and 50 sigma, or more
        than 5 sigma below the background.  Groups have at least 3 pixels, and so many that noise,
        rounded as in this image, makes one in a thousand images.  Groups above the background of
        the highest value are left out: the image may be cut there.
    """
    flux, at = surface.flux.ravel(), surface.bright
    faint = flux[at] < _SATURATED * np.sqrt(surface.bright_variance)
    if faint.any():
        values = image.ravel()[surface.unpadded(at)]
        faint &= values < values.max()
    low = surface.low
    # A cheap first cut: `variance_at` gives at least a pixel's own variance.
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
    """Adjacent pixels of one value that chance does not explain; None where chance makes many."""
    down, across = (max(1, n // _SAMPLED) for n in image.shape)
    # The lower chance of both axes: bad lines have one value along one axis only.
    chance = min(_equal_in_sky(image[::down]), _equal_in_sky(image[:, ::across].T))
    again = len(_EIGHT) * chance
    if not number or again > 1 / 2:
        return None
    return max(_FEWEST_EQUAL, 1 + math.ceil(math.log(_CHANCE / number) / math.log(again)))


def _equal_in_sky(lines: Array) -> float:
    """Share of neighbours along lines, with usual values, that have the same value."""
    first = lines[:, :-1]
    known = first[np.isfinite(first)]
    if not known.size:
        return 1.0
    low, high = np.percentile(known, _USUAL)
    usual = (first >= low) & (first <= high)
    same = usual & (first == lines[:, 1:])
    return (int(np.count_nonzero(same)) + 1) / max(1, int(np.count_nonzero(usual)))


def _are_joined_anyway(groups: _Groups, index: Array, depth: Array) -> bool:
    """Whether most pixels only as low as noise have a low pixel beside them."""
    in_company = np.zeros(len(index), bool)
    in_company[np.searchsorted(index, groups.index)] = groups.size[groups.label] > 1
    by_noise = depth < LOW * _STEP
    return bool(np.count_nonzero(in_company & by_noise) > _MOST_JOINED * by_noise.sum())


def _with_sharp_edges(surface: Surface, groups: _Groups, significant: float) -> Array:
    """Pixels of the groups that are deep and have sharp edges."""
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
    # Resampled stars have dark rings; a dead pixel beside a star has light all around instead, so
    # that its surroundings must be the brighter.
    rings = mean < _RINGING * _brightest(surface, groups)
    edge[rings] += mean[rings]
    # The median of n values has about 1.5 times the variance of their mean.
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
    """Groups of adjacent pixels, of one value where values are given; indices are sorted."""
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
