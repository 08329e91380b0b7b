"""Dead pixels, without noise: runs along columns and rows that all have the same value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..numerics import planes
from ..numerics.threads import in_threads
from .saturation import in_lines
from .surface import BRIGHT

__all__ = ["dead_runs"]

type Array = npt.NDArray[Any]

_SHORTEST = 8
"""Least length of a run, pixels, however rarely two neighbours are the same."""

_LONGEST = 128
"""Largest threshold, pixels: where noise makes longer runs, runs along that axis are not judged."""

_CHANCE = 1e-3
_MARGIN = 1.3
"""Factor on the length that chance explains, since noise differs from place to place."""

_FEWEST = 10
_SAMPLED = 64
_MOST = 0.5
_ROWS = 64


def dead_runs(image: Array, unusable: Array) -> Array | None:
    """Find pixels in runs along a column or row that all have the same value.

    Parameters
    ----------
    image
        ``(ny, nx)`` image.
    unusable
        ``(ny, nx)`` boolean: pixels that are known to hold no measurement.

    Returns
    -------
    dead
        ``(ny, nx)`` boolean, without the unusable pixels; None where there is none.  Runs have at
        least 8 pixels, and so many that noise, rounded as in this image, makes one in a thousand
        images.

    Notes
    -----
    Runs more than 5 robust standard deviations above the median of the image are plateaus of
    stars, unless they are columns or rows without a star's light beside them
    (`saturation.in_lines`).  If half of the image is constant, the image has no noise, and nothing
    is dead.
    """
    ny, nx = image.shape
    down, across = (slice(None, None, min(_SAMPLED, max(1, n // _SAMPLED))) for n in image.shape)
    lengths = [_least(image[:, across].T, nx), _least(image[down], ny)]
    if all(length is None for length in lengths):
        return None
    tall, wide = lengths
    limit = _plateaus_above(image[down])

    def work(start: int) -> tuple[int, Array] | None:
        stop = min(start + _ROWS, ny)
        # Rows around this block, for runs that begin before it or end beyond it.
        beyond = 0 if tall is None else tall - 1
        first, last = max(0, start - beyond), min(stop + beyond, ny)
        part = image[first:last]
        inside = slice(start - first, stop - first)
        found = None
        if tall is not None:
            found = _in_runs(part, tall)
            found = None if found is None else found[inside]
        if wide is not None:
            along = _in_runs(part[inside].T, wide)
            if along is not None:
                found = along.T if found is None else found | along.T
        if found is None:
            return None
        found &= ~unusable[start:stop]
        return (start, found) if found.any() else None

    pieces = [piece for piece in in_threads(work, range(0, ny, _ROWS)) if piece is not None]
    if not pieces or sum(np.count_nonzero(found) for _, found in pieces) > _MOST * image.size:
        return None
    dead = planes.zeros(image.shape, bool)
    for start, found in pieces:
        dead[start : start + len(found)] = found
    high = dead & (image > limit)
    if high.any():
        dead &= ~high
        dead |= in_lines(image, high)
    return dead if dead.any() else None


def _least(sample: Array, lines: int) -> int | None:
    """Length from which a run along rows is no chance; None where runs cannot be judged."""
    same = np.zeros((sample.shape[0], sample.shape[1] + 1), bool)
    np.equal(sample[:, 1:], sample[:, :-1], out=same[:, 1:-1])
    if np.count_nonzero(same) > _MOST * same.size:
        return None
    flat = same.ravel()
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    pairs = np.bincount(ends[1::2] - ends[::2], minlength=_SHORTEST)
    # Probability that a run goes on: the highest over all lengths, since longer runs come from
    # places with the coarsest rounding.  The longest runs are left out, since they are not noise.
    short, again = pairs[1 : _SHORTEST - 1].sum(), 0.0
    for least in range(1, _SHORTEST - 2):
        runs, longer = pairs[least : _SHORTEST - 1].sum(), pairs[least + 1 : _SHORTEST].sum()
        if runs >= _FEWEST:
            again = max(again, (longer + 1) / (runs + 2))
    if short < _FEWEST:
        return _SHORTEST
    number = short * lines / sample.shape[0]
    length = 2 + _MARGIN * math.log(_CHANCE / number) / math.log(min(again, 0.99))
    return max(_SHORTEST, math.ceil(length)) if length <= _LONGEST else None


def _plateaus_above(sample: Array) -> float:
    values = sample[np.isfinite(sample)]
    if not values.size:
        return math.inf
    low, middle = np.percentile(values, [15.87, 50])
    return float(middle + BRIGHT * (middle - low))


def _in_runs(part: Array, least: int) -> Array | None:
    """Pixels in runs of a least length down the columns; None where there is none."""
    if len(part) < least:
        return None
    same = part[1:] == part[:-1]
    pairs = 1
    while pairs < least - 1 and same.any():
        step = min(pairs, least - 1 - pairs)
        same = same[:-step] & same[step:]
        pairs += step
    if not same.any():
        return None
    found = np.zeros(part.shape, bool)
    for row in range(least):
        found[row : row + len(same)] |= same
    return found
