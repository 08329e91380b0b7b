"""Steps in the level of a profile, as between the amplifiers of a detector."""

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
"""Steps at most this many pixels apart are one."""

_REACH, _PART, _SHORTEST_REACH = 48, 8, 8
"""Pixels used on each side of a step: at most 48 and an eighth of the profile, at least 8."""
_SIGMAS, _SIGMAS_IF_WEAK, _MOST = 8.0, 5.0, 16
"""Height of a step in its errors, the same of a weak one, and largest number of steps."""
_BLOCK = 8
"""Pixels in a mean that reveals noise shared by neighbours."""
ENOUGH_EVIDENCE = 25.0
"""Chi-square by which a step must fit better than a smooth curve, which can look like a step."""
_SHARP, _SHARP_IF_WEAK = 12, 12.0
"""Pixels on each side in which this is judged, and chi-square that is enough for a weak step."""
_LEAST_WIDTH = 2.0
"""Smallest full width at half maximum of any edge in light, pixels."""
_SHIFTS = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)


def longest_reach(n: int) -> int:
    """Pixels used on each side of a step.

    Parameters
    ----------
    n
        Length of the profile, pixels.

    Returns
    -------
    reach
        Number of pixels; 0 if the profile is too short to find steps.
    """
    reach = min(_REACH, n // _PART)
    return reach if reach >= _SHORTEST_REACH else 0


def named_lines(rows: Sequence[int], columns: Sequence[int], first: tuple[int, int]) -> str:
    """Names of rows and columns, for a message.

    Parameters
    ----------
    rows, columns
        Indices of rows and columns, from the first pixel.
    first
        Row and column number of the first pixel.

    Returns
    -------
    text
        Such as ``row 256 and columns 512, 1024``; empty if there are none.
    """
    lines = ("row", first[0], rows), ("column", first[1], columns)
    return " and ".join(
        f"{name}{'s' * (len(places) > 1)} {', '.join(str(start + each) for each in places)}"
        for name, start, places in lines
        if places
    )


def step_terms(offset: Array) -> Array:
    """Terms of a fit of a parabola and a step.

    Parameters
    ----------
    offset
        ``(n,)`` distances from the step, pixels.

    Returns
    -------
    terms
        ``(n, 4)``; the last one is the step.
    """
    return np.stack([offset**0, offset, offset**2, offset > 0], 1)


def profile_noise(profile: Array) -> float:
    """Noise of a profile, which neighbouring values may share.

    Parameters
    ----------
    profile
        ``(n,)``.

    Returns
    -------
    sigma
        Standard deviation from second differences of the values, or, if larger, from those of
        means of 8, as for correlated noise.
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
        ``(n,)`` means of rows or columns; NaN for missing ones.
    weak
        Also find steps of 5 errors and half the evidence, which something else has to confirm.

    Returns
    -------
    places
        First pixels beyond steps, in order.

    Notes
    -----
    At every place a parabola and a step are fitted within 48 pixels, at most an eighth of the
    profile.  A step counts if it is higher than 8 errors and a polynomial fits clearly worse.
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
        # Masked pixels and noise shift the maximum away from the step.
        place, gain = sharpest_step(profile, best + reach)
        alone = all(abs(place - other) > ABOUT for other in found)
        if alone and gain > evidence * sigma**2:
            found.append(place)
            profile[place:] -= height[best]
    return sorted(found)


def sharpest_step(profile: Array, about: int) -> tuple[int, float]:
    """Place where a step fits a profile best, compared with a smooth curve.

    Parameters
    ----------
    profile
        ``(n,)``; NaNs are interpolated.
    about
        Place at most 8 pixels from the step.

    Returns
    -------
    place, gain
        First pixel beyond the step, and its gain: the sum of squares of a polynomial of order 5
        within 12 pixels minus that of a step and a parabola.
    """
    known = np.isfinite(profile)
    if not known.all():
        profile = np.interp(np.arange(len(profile)), np.flatnonzero(known), profile[known])
    first, last = max(2, about - ABOUT), min(len(profile) - 2, about + ABOUT)
    gains = [_sharpness(profile, place) for place in range(first, last + 1)]
    return first + int(np.argmax(gains)), max(gains)


def sharp_gain(profile: Array, place: int) -> float:
    """Gain of a sharp step between two pixels over a step that optics have blurred.

    Parameters
    ----------
    profile
        ``(n,)``; NaN for values that do not count.
    place
        First pixel beyond the step.

    Returns
    -------
    gain
        Difference of two sums of squares within 12 pixels, each of a fit of a step and a parabola:
        the best blurred step (full width at half maximum of 2 pixels, at most a pixel away) minus
        the sharp step.  Every edge in light is blurred; amplifiers make sharp steps.
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
    """Sum of squares around a place of a fifth-order polynomial minus that of step and parabola."""
    start = max(0, place - _SHARP)
    profile = profile[start : place + _SHARP]
    offset = (np.arange(len(profile)) + start - place + 0.5) / _SHARP
    smooth = np.stack([offset**p for p in range(6)], 1)

    def left(terms: Array) -> float:
        rest = profile - terms @ np.linalg.lstsq(terms, profile, rcond=None)[0]
        return float(rest @ rest)

    step = np.column_stack([smooth[:, :3], offset > 0])
    return left(smooth) - left(step)
