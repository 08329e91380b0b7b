"""Places at which a profile's level jumps, as between the amplifiers of a detector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from .profiles import FWHM_TO_SIGMA
from .stats import robust_sigma

__all__ = [
    "ABOUT",
    "ENOUGH_EVIDENCE",
    "longest_reach",
    "named_lines",
    "profile_noise",
    "sharp_gain",
    "sharpest_step",
    "step_terms",
    "steps_in",
]

type Array = npt.NDArray[Any]

ABOUT = 8
"""Places that are no farther apart are one."""

_REACH, _PART, _SHORTEST_REACH = 48, 8, 8
"""Pixels to both sides of a step that tell it: at most so many, and that part of the profile."""
_SIGMAS, _SIGMAS_IF_WEAK, _MOST = 8.0, 5.0, 16
_BLOCK = 8
"""Pixels whose mean tells noise that neighbours share."""
ENOUGH_EVIDENCE = 25.0
"""Chi-square by which a step is better than what is smooth, which makes steps, too."""
_SHARP, _SHARP_IF_WEAK = 12, 12.0
"""Pixels to both sides within which that is judged."""
_LEAST_WIDTH = 2.0
"""Full width at half maximum of light, pixels."""
_SHIFTS = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)


def longest_reach(n: int) -> int:
    """Pixels to both sides of a step that tell it.

    Parameters
    ----------
    n
        Length of the profile, pixels.

    Returns
    -------
    reach
        0 where the profile is too short for steps.
    """
    reach = min(_REACH, n // _PART)
    return reach if reach >= _SHORTEST_REACH else 0


def named_lines(rows: Sequence[int], columns: Sequence[int], first: tuple[int, int]) -> str:
    """Words for rows and columns.

    Parameters
    ----------
    rows, columns
        Numbers of lines.
    first
        Row and column of the first pixel, from which these count.

    Returns
    -------
    text
        Such as ``row 256 and columns 512, 1024``; empty where there are none.
    """
    lines = ("row", first[0], rows), ("column", first[1], columns)
    return " and ".join(
        f"{name}{'s' * (len(places) > 1)} {', '.join(str(start + each) for each in places)}"
        for name, start, places in lines
        if places
    )


def step_terms(offset: Array) -> Array:
    """A parabola and a step.

    Parameters
    ----------
    offset
        ``(n,)`` distances from the step, pixels.

    Returns
    -------
    terms
        ``(n, 4)``; the last one is the step's.
    """
    return np.stack([offset**0, offset, offset**2, offset > 0], 1)


def profile_noise(profile: Array) -> float:
    """Noise of a profile, which its neighbours may share.

    Parameters
    ----------
    profile
        ``(n,)``.

    Returns
    -------
    sigma
        By second differences of its values, or of means of 8, which correlated noise makes larger.
    """
    scatters = [robust_sigma(np.diff(profile, 2))]
    if len(profile) >= 5 * _BLOCK:
        sums = np.cumsum(profile)
        means = (sums[_BLOCK:] - sums[:-_BLOCK]) / _BLOCK
        beside = means[2 * _BLOCK :] + means[: -2 * _BLOCK] - 2 * means[_BLOCK:-_BLOCK]
        scatters.append(math.sqrt(_BLOCK) * robust_sigma(beside))
    return max(scatters) / math.sqrt(6)


def steps_in(profile: Array, *, weak: bool = False) -> list[int]:
    """Find steps in a profile.

    Parameters
    ----------
    profile
        ``(n,)`` means of rows or columns; NaN where there is none.
    weak
        Also those of 5 errors, and with half of the evidence, which something else has to confirm.

    Returns
    -------
    places
        First pixels beyond steps, in order.

    Notes
    -----
    At every place, a parabola and a step within 48 pixels, at most an eighth of the profile; those
    beyond 8 errors that a polynomial does not describe.
    """
    n = len(profile)
    reach = longest_reach(n)
    known = np.isfinite(profile)
    if not reach or known.sum() < n // 2:
        return []
    profile = np.interp(np.arange(n), np.flatnonzero(known), profile[known])
    sigma = profile_noise(profile)
    weights = np.linalg.pinv(step_terms(np.arange(-reach, reach) + 0.5))[3]
    error = sigma * math.sqrt(float(weights @ weights))
    least, evidence = (_SIGMAS_IF_WEAK, _SHARP_IF_WEAK) if weak else (_SIGMAS, ENOUGH_EVIDENCE)
    found: list[int] = []
    tried = np.zeros(n - 2 * reach + 1, dtype=bool)
    while len(found) < _MOST:
        height = np.where(tried, 0, np.correlate(profile, weights, "valid"))
        best = int(np.argmax(np.abs(height)))
        if np.abs(height[best]) <= least * error:
            break
        tried[max(0, best - ABOUT) : best + ABOUT + 1] = True
        # Masked pixels and noise move the highest value.
        place, gain = sharpest_step(profile, best + reach)
        alone = all(abs(place - other) > ABOUT for other in found)
        if alone and gain > evidence * sigma**2:
            found.append(place)
            profile[place:] -= height[best]
    return sorted(found)


def sharpest_step(profile: Array, about: int) -> tuple[int, float]:
    """Where a profile is described by a step better than by anything smooth.

    Parameters
    ----------
    profile
        ``(n,)``; where it is NaN, it is interpolated.
    about
        A place at most 8 pixels from it.

    Returns
    -------
    place, gain
        First pixel beyond the step; by how much the sum of squares is less than that of a
        polynomial of order 5 within 12 pixels.
    """
    known = np.isfinite(profile)
    if not known.all():
        profile = np.interp(np.arange(len(profile)), np.flatnonzero(known), profile[known])
    first, last = max(2, about - ABOUT), min(len(profile) - 2, about + ABOUT)
    gains = [_sharpness(profile, place) for place in range(first, last + 1)]
    return first + int(np.argmax(gains)), max(gains)


def sharp_gain(profile: Array, place: int) -> float:
    """By how much a step between two pixels describes a profile better than one of an optic does.

    Parameters
    ----------
    profile
        ``(n,)``; NaN where it does not count.
    place
        First pixel beyond the step.

    Returns
    -------
    gain
        Sum of squares within 12 pixels, each beside a parabola, of the best step that is blurred as
        by a full width at half maximum of 2 pixels, at most a pixel away, less that of the sharp
        one.  Light has the first, whatever its edge is; amplifiers have the second.
    """
    start = max(0, place - _SHARP)
    part = profile[start : place + _SHARP]
    known = np.isfinite(part)
    offset = (np.arange(len(part)) + start - place + 0.5)[known]
    values = part[known]
    smooth = np.stack([(offset / _SHARP) ** p for p in range(3)], 1)

    def left(step: Array) -> float:
        terms = np.column_stack([smooth, step])
        rest = values - terms @ np.linalg.lstsq(terms, values, rcond=None)[0]
        return float(rest @ rest)

    blurred = (
        left(scipy.special.ndtr((offset - shift) / (FWHM_TO_SIGMA * _LEAST_WIDTH)))
        for shift in _SHIFTS
    )
    return min(blurred) - left(offset > 0)


def _sharpness(profile: Array, place: int) -> float:
    """By how much a step describes what is around a place better than anything smooth."""
    start = max(0, place - _SHARP)
    profile = profile[start : place + _SHARP]
    offset = (np.arange(len(profile)) + start - place + 0.5) / _SHARP
    smooth = np.stack([offset**p for p in range(6)], 1)

    def left(terms: Array) -> float:
        rest = profile - terms @ np.linalg.lstsq(terms, profile, rcond=None)[0]
        return float(rest @ rest)

    step = np.column_stack([smooth[:, :3], offset > 0])
    return left(smooth) - left(step)
