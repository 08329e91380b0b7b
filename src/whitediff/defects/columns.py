"""Bad columns and rows, or parts of them: they depart from their neighbours."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..numerics.threads import in_threads
from .surface import SEGMENT, Surface

__all__ = ["bad_lines"]

type Array = npt.NDArray[Any]

_BESIDE = (2, 3, 4)
"""Steps to the lines that a line is compared with; not the adjacent one, which may be bad, too."""

_RUNS = (4, 16)
"""Lengths of runs, segments; besides, all segments are one run."""

_SIGNIFICANT = 6.5
_ALONE = 10.0
"""Least significance of a single segment, in which a star's flank may look like a line."""

_PART = 0.4
"""Share of a run's median significance that each segment of the run must exceed."""

_JOINED = 2.5
_SHARP = 0.5
"""Share of a line's excess that the lower of its neighbours may have: a star's ridge is wider."""

_AT_ONCE = 16
"""Segments whose numbers fit into the processor's cache."""

_MOST = 0.05
"""Largest share of bad lines: if there are more, the frame has a pattern, and none is bad."""


def bad_lines(surface: Surface) -> Array:
    """Pixels of bad columns and rows.

    Parameters
    ----------
    surface
        The image.

    Returns
    -------
    bad
        ``(ny, nx)`` boolean, in segments of 32 pixels.  The mean clipped significance of a bad
        segment departs from the lines on both sides, in one direction: by 10 sigma, or by 6.5
        sigma in the median over a run of 4, 16 or all segments.  Segments of the same line that go
        on from these and depart by 2.5 sigma are bad, too.
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
    parts = [slice(start, start + _AT_ONCE) for start in range(0, len(sums), _AT_ONCE)]
    pieces = in_threads(lambda part: _significances(sums[part], counts[part]), parts)
    found = np.zeros(sums.shape, bool)
    above, below, above_any, below_any = (
        np.concatenate(piece) for piece in zip(*pieces, strict=True)
    )
    for significance, between in ((above, above_any), (below, below_any)):
        seed = significance > _ALONE
        for run in {run for run in (*_RUNS, len(seed)) if 1 < run <= len(seed)}:
            edges = np.linspace(0, len(seed), max(1, len(seed) // run) + 1).astype(int)
            for start, stop in pairwise(edges):
                _seed_run(significance[start:stop], seed[start:stop])
        lines = _connected(seed, significance > _JOINED)
        # A line between two bad ones fails the test of sharpness, since both are its neighbours.
        lines[:, 1:-1] |= lines[:, :-2] & lines[:, 2:] & (between[:, 1:-1] > _JOINED)
        found |= lines
    return found


def _seed_run(significance: Array, seed: Array) -> None:
    """Mark the segments of lines whose median departs over a run of them; in place."""
    length = len(significance)
    # The median of n values has π/2 times the variance of their mean.
    root = np.sqrt(length / 1.57)
    # Few lines have enough high segments; the medians of the others need not be computed.
    high = np.count_nonzero(significance > 0.999 * _SIGNIFICANT / root, axis=0)
    lines = np.flatnonzero(high >= length - (length - 1) // 2)
    part = significance[:, lines]
    # For an even number, the lower of the two middle values.
    middle = np.sort(part, axis=0)[(length - 1) // 2]
    seed[:, lines] |= (middle * root > _SIGNIFICANT) & (part > _PART * middle)


def _significances(sums: Array, counts: Array) -> tuple[Array, Array, Array, Array]:
    """Heights of segments above both sides, and depths below both, in sigma.

    The first two are 0 where both adjacent lines depart likewise; the last two ignore these.
    """
    known = counts >= SEGMENT / 2
    counts = np.maximum(counts, 1)
    mean = sums / counts * known
    # Scatter of a mean less the median of three lines beside it, which has 0.45 of its variance.
    scatter = np.sqrt(1.45 / counts)
    padded = np.pad(mean, [(0, 0), (max(_BESIDE), max(_BESIDE))], mode="reflect")

    def moved(step: int) -> Array:
        start = max(_BESIDE) + step
        return padded[:, start : start + mean.shape[1]]

    sides = [_middle(*(moved(sign * step) for step in _BESIDE)) for sign in (-1, 1)]
    level = (sides[0] + sides[1]) / 2
    apart = _SHARP * (mean - level)
    nearest = [choose(moved(-1), moved(1)) - level for choose in (np.minimum, np.maximum)]
    above = (mean - np.maximum(*sides)) / scatter * known
    below = (np.minimum(*sides) - mean) / scatter * known
    return above * (nearest[0] < apart), below * (nearest[1] > apart), above, below


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
