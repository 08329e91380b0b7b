"""Columns and rows, or parts of them, that depart from their neighbours."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from .surface import SEGMENT, Surface

__all__ = ["bad_lines"]

type Array = npt.NDArray[Any]

_BESIDE = (2, 3, 4)
"""Steps to the lines that say what a line should be; the next one may be bad, too."""

_RUNS = (1, 4, 16)
"""Segments that are taken together; and all."""

_SIGNIFICANT = 6.5
_ALONE = 10.0
"""Of a segment alone, in which a star's flank may look like a line."""

_PART = 0.4
"""Of a run's median, which its segments must have."""

_JOINED = 2.5
_SHARP = 0.5
"""Part of a line's excess that the lower of its neighbours may have: a star's ridge is wider."""

_MOST = 0.05
"""Part of the lines: where there are more, the frame has a pattern."""


def bad_lines(surface: Surface) -> Array:
    """Pixels of bad columns and rows.

    Parameters
    ----------
    surface
        The image.

    Returns
    -------
    bad
        ``(ny, nx)`` boolean: runs of segments of 32 pixels whose mean significance, clipped, is
        away from that of the lines on both sides, in one direction, by 10 sigma, or by 6.5 sigma
        in the median over 4, 16 or all segments; with the segments that go on by 2.5 sigma.
    """
    ny, nx = surface.shape
    bad = np.zeros((ny, nx), bool)
    for view, sums, counts in (
        (bad, surface.columns, surface.columns_counted),
        (bad.T, *(np.ascontiguousarray(a.T) for a in (surface.rows, surface.rows_counted))),
    ):
        if len(sums) and sums.shape[1] > 2 * max(_BESIDE) + 1:
            found = _departing(sums, counts)
            if found.any(axis=0).mean() <= _MOST:
                segment = np.minimum(np.arange(len(view)) // SEGMENT, len(found) - 1)
                for line in np.flatnonzero(found.any(axis=0)):
                    view[:, line] |= found[segment, line]
    return bad


def _departing(sums: Array, counts: Array) -> Array:
    """Segments of lines that depart from their neighbours, ``(segments, lines)`` boolean."""
    known = counts >= SEGMENT / 2
    mean = np.where(known, sums / np.maximum(counts, 1), 0)
    found = np.zeros(mean.shape, bool)
    for sign in (1, -1):
        excess = _excess(sign * mean)
        # Of a mean, and of the median of the three beside it.
        scatter = np.sqrt(1.45 / np.maximum(counts, 1))
        significance = np.where(known, excess / scatter, 0)
        seed = np.zeros(mean.shape, bool)
        for run in {run for run in (*_RUNS, len(mean)) if run <= len(mean)}:
            if run == 1:
                seed |= significance > _ALONE
                continue
            edges = np.linspace(0, len(mean), max(1, len(mean) // run) + 1).astype(int)
            for start, stop in pairwise(edges):
                length = stop - start
                part = significance[start:stop]
                # The lower middle, of an even number.
                middle = np.sort(part, axis=0)[(length - 1) // 2]
                departs = middle * np.sqrt(length / 1.57) > _SIGNIFICANT
                seed[start:stop] |= departs & (part > _PART * middle)
        found |= _connected(seed, significance > _JOINED)
    return found


def _excess(mean: Array) -> Array:
    """How far lines are above both sides; 0 where a neighbour on each side is, too."""
    n = mean.shape[1]
    padded = np.pad(mean, [(0, 0), (max(_BESIDE), max(_BESIDE))], mode="reflect")

    def moved(step: int) -> Array:
        start = max(_BESIDE) + step
        return padded[:, start : start + n]

    sides = [_middle(*(moved(sign * step) for step in _BESIDE)) for sign in (-1, 1)]
    excess = mean - np.maximum(*sides)
    level = (sides[0] + sides[1]) / 2
    nearest = np.minimum(moved(-1), moved(1)) - level
    result: Array = np.where(nearest < _SHARP * (mean - level), excess, 0)
    return result


def _middle(first: Array, second: Array, third: Array) -> Array:
    """Medians of three."""
    low, high = np.minimum(first, second), np.maximum(first, second)
    result: Array = np.maximum(low, np.minimum(high, third))
    return result


def _connected(seed: Array, more: Array) -> Array:
    """Seeds with the segments of the same line that join them."""
    found = seed.copy()
    for _ in range(len(seed)):
        grown = found.copy()
        grown[1:] |= found[:-1] & more[1:]
        grown[:-1] |= found[1:] & more[:-1]
        if (grown == found).all():
            break
        found = grown
    return found
