"""Jumps of an image's level between amplifiers, whose bias was not quite taken off."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..noise.sources import unstepped
from ..numerics.stats import MAD_TO_SIGMA, MEDIAN_ERROR, robust_sigma
from ..numerics.steps import (
    ABOUT,
    ENOUGH_EVIDENCE,
    longest_reach,
    profile_noise,
    sharp_gain,
    sharpest_step,
    step_terms,
    steps_in,
)
from .surface import SEGMENT, Surface

__all__ = ["AmplifierLevels", "amplifier_levels"]

type Array = npt.NDArray[Any]

_PARTS = (1, 2, 4)
"""Equal parts of the frame in which steps are sought, besides those between known ones."""
_LEAST_COUNTED = 0.3
"""Of a segment's pixels, and of a part's segments, for their mean to count."""
_WIDEST, _FEWEST = 128, 4
"""Pixels of a row, at most, in one segment where heights are measured; and segments at least."""
_CLIPPED = 3.0
_SURE = 6.0
"""Errors of a jump, as its segments scatter, for one of a line's to be one."""
_NO_LIGHT = 2.0
"""Chi-square by which a jump is rather between two pixels than of light, which has a width."""
_FAR, _STAYS = 12, 0.4
"""Pixels beyond which a step is as high as nearby, and the part of the height that must be left:
of a trail's nothing is."""
_MOST_TURNS = 12
_ROUNDS, _SMALL = 8, 0.1
"""Of a fit without bad lines; part of the typical residual below which all count alike."""
_ENOUGH_PIXELS, _FEWEST_PIXELS = 200_000, 2000
_NOISE_ERRORS, _SAME_NOISE = 4.0, 0.02
"""Errors, and part, by which a rectangle's variance is another one than its plane says."""


@dataclasses.dataclass(frozen=True)
class AmplifierLevels:
    """Constants that an image's rectangles have beyond their neighbours'.

    Attributes
    ----------
    rows, columns
        First ones beyond jumps.
    level
        ``(len(rows) + 1, len(columns) + 1)`` image_unit; zero in the mean over the frame.
    largest
        The largest jump, image_unit.
    noise
        Of the shape of `level`: variance of the rectangles' pixels over their variance plane,
        relative to its median; 1 where that does not differ.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    level: Array
    largest: float
    noise: Array

    def taken_off(self, image: Array) -> Array:
        """Take the constants off.

        Parameters
        ----------
        image
            ``(ny, nx)``; not modified.

        Returns
        -------
        level_image
            Of the image's type.
        """
        result = image.copy()
        for i, j, part in _rectangles(self.rows, self.columns, image.shape):
            result[part] -= image.dtype.type(self.level[i, j])
        return result

    def scaled(self, variance: Array) -> Array:
        """Give each rectangle the variance that it has.

        Parameters
        ----------
        variance
            ``(ny, nx)``; not modified.

        Returns
        -------
        scaled
            The same object where no rectangle differs.
        """
        if (self.noise == 1).all():
            return variance
        result = variance.copy()
        for i, j, part in _rectangles(self.rows, self.columns, variance.shape):
            result[part] *= variance.dtype.type(self.noise[i, j])
        return result


def _rectangles(
    rows: Sequence[int], columns: Sequence[int], shape: tuple[int, ...]
) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
    """Numbers and pixels of the rectangles between lines."""
    for i, (top, bottom) in enumerate(itertools.pairwise(_ends(rows, shape[0]))):
        for j, (left, right) in enumerate(itertools.pairwise(_ends(columns, shape[1]))):
            yield i, j, (slice(top, bottom), slice(left, right))


def amplifier_levels(image: Array, looked_at: Surface, unusable: Array) -> AmplifierLevels | None:
    """Find rows and columns at which an image's level jumps, and what to take off beyond them.

    Parameters
    ----------
    image
        ``(ny, nx)`` image.
    looked_at
        `whitediff.defects.surface.surface` of it.
    unusable
        ``(ny, nx)`` boolean: pixels without a measurement.

    Returns
    -------
    levels
        `AmplifierLevels`; None where nothing jumps.

    Notes
    -----
    A place is found in the profile of segments of 32 pixels, each clipped at 3 sigma: the median of
    those beside each other, across the frame, its halves and quarters, and from one jump to the
    next.  So a star, its spikes or a cloud, which are in a few segments only, make none.  A jump is
    one that `numerics.steps.steps_in` finds, if weakly, that stays beyond 12 pixels, which a
    trail's do not, that is 6 errors high in one rectangle's side, and for whose sharpness all
    sides together have enough evidence, half of it where there are jumps across, too.  Light has
    the width of a PSF: what a step of 2 pixels' width describes as well is left in.  The height of
    a jump is that of a step beside a parabola in the image itself.  The rectangles' constants
    follow from all heights by least squares.
    """
    rows, columns = _places(looked_at)
    rows, columns, jumps = _measured(image, unusable, rows, columns)
    if not rows and not columns:
        return None
    shape = len(rows) + 1, len(columns) + 1
    equations, heights = [], []
    for (first, second), (height, error) in jumps.items():
        line = np.zeros(shape)
        line[second], line[first] = 1 / error, -1 / error
        equations.append(line.ravel())
        heights.append(height / error)
    # The smallest solution: what nothing joins to the rest keeps its level.
    level = np.linalg.lstsq(np.array(equations), np.array(heights), rcond=1e-10)[0].reshape(shape)
    tall, wide = (np.diff(_ends(at, n)) for at, n in zip((rows, columns), image.shape, strict=True))
    level -= float(tall @ level @ wide) / image.size
    largest = max((height for height, _ in jumps.values()), key=abs)
    noise = _relative_noise(image, looked_at.variance, unusable, rows, columns)
    return AmplifierLevels(tuple(rows), tuple(columns), level, largest, noise)


def _relative_noise(
    image: Array, variance: Array, unusable: Array, rows: list[int], columns: list[int]
) -> Array:
    """Variance of rectangles' pixels over their planes, relative to the median; 1 if it is that.

    A plane that was computed from counts takes an offset for photons.  Differences of neighbours
    tell, in which sky and light cancel; what correlates them is common to all.
    """
    ratio = np.ones((len(rows) + 1, len(columns) + 1))
    error = np.zeros_like(ratio)
    for i, j, part in _rectangles(rows, columns, image.shape):
        step = max(1, image[part].size // _ENOUGH_PIXELS)
        pixels = np.where(unusable[part], np.nan, image[part])[::step].astype(np.float64)
        planes = variance[part][::step].astype(np.float64)
        difference = (pixels[:, 1:] - pixels[:, :-1]) / np.sqrt(planes[:, 1:] + planes[:, :-1])
        difference = difference[np.isfinite(difference)]
        if len(difference) < _FEWEST_PIXELS:
            continue
        ratio[i, j] = robust_sigma(difference) ** 2
        # Of a median deviation, twice for the square; neighbouring differences share a pixel.
        error[i, j] = 2 * 1.17 * 1.3 / math.sqrt(2 * len(difference))
    known = error > 0
    if np.count_nonzero(known) < 2 or not (ratio[known] > 0).all():
        return np.ones_like(ratio)
    ratio[known] /= np.median(ratio[known])
    same = ~known | (np.abs(np.log(ratio)) < np.maximum(_NOISE_ERRORS * error, _SAME_NOISE))
    return np.where(same, 1.0, ratio)


def _ends(places: Sequence[int], n: int) -> list[int]:
    return [0, *places, n]


def _places(looked_at: Surface) -> tuple[list[int], list[int]]:
    """First rows and columns beyond steps, as the clipped significance shows them."""
    profiles = [
        _segment_means(looked_at.rows, looked_at.rows_counted),
        _segment_means(looked_at.columns.T, looked_at.columns_counted.T),
    ]
    ny, nx = looked_at.shape
    rows = _along(profiles[0], nx, [])
    columns = _along(profiles[1], ny, rows)
    # Between the lines that were found meanwhile.
    if columns:
        rows = _along(profiles[0], nx, columns)
        columns = _along(profiles[1], ny, rows)
    return rows, columns


def _segment_means(sums: Array, counts: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts > _LEAST_COUNTED * SEGMENT, sums / counts, np.nan)


def _along(means: Array, width: int, across: list[int]) -> list[int]:
    """Places of steps along the first axis, in all segments, in parts, or between given places."""
    parts = set(itertools.pairwise(_ends(across, width)))
    for number in _PARTS:
        parts |= set(itertools.pairwise(np.linspace(0, width, number + 1).astype(int).tolist()))
    found: list[int] = []
    for start, stop in sorted(parts, key=lambda each: each[0] - each[1]):
        segments = means[:, math.ceil(start / SEGMENT) : stop // SEGMENT]
        if segments.shape[1] < _FEWEST:
            continue
        profile = _medians(segments)
        found += [
            place
            for place in steps_in(profile, weak=True)
            if _stays(profile, place) and all(abs(place - other) > ABOUT for other in found)
        ]
    return sorted(found)


def _medians(segments: Array) -> Array:
    """Median of each line's segments, NaN where few of them count."""
    known = np.isfinite(segments)
    enough = known.sum(axis=1) > max(_LEAST_COUNTED * segments.shape[1], _FEWEST - 1)
    result = np.full(len(segments), np.nan)
    # Beside jumps across, each has a level of its own.
    whole = known.any(axis=0)
    if enough.any():
        levelled = segments[:, whole] - np.nanmedian(segments[:, whole], axis=0)
        result[enough] = np.nanmedian(levelled[enough], axis=1)
    return result


def _stays(profile: Array, place: int) -> bool:
    """Whether what is farther from a step is as high as what is beside it."""
    reach = longest_reach(len(profile))
    near, far = (_height(profile, place, reach, least) for least in (0.0, min(_FAR, reach / 3)))
    if near is None or far is None:
        return False
    return far[0] * near[0] > _STAYS * near[0] ** 2


def _height(
    profile: Array, place: int, reach: int, least: float = 0.0
) -> tuple[float, float] | None:
    """Height of a step beside a parabola, and its error, from pixels beyond a distance.

    Bad lines do not count.
    """
    start, stop = max(0, place - reach), min(len(profile), place + reach)
    offset = np.arange(start, stop) - place + 0.5
    use = np.isfinite(profile[start:stop]) & (np.abs(offset) > least)
    offset, values = offset[use], profile[start:stop][use]
    if min(np.count_nonzero(offset > 0), np.count_nonzero(offset < 0)) < ABOUT:
        return None
    terms = step_terms(offset / reach)
    weight = np.ones(len(values))
    for _ in range(_ROUNDS):
        # The least sum of absolute residuals, which bad lines hardly move.
        found = np.linalg.lstsq(terms * weight[:, None], values * weight, rcond=None)[0]
        left = np.abs(values - terms @ found)
        typical = float(np.median(left))
        weight = 1 / np.sqrt(np.maximum(left, _SMALL * typical or 1.0))
    good = left <= _CLIPPED * MAD_TO_SIGMA * typical
    inverse = np.linalg.pinv(terms[good])[3]
    error = MAD_TO_SIGMA * typical * math.sqrt(float(inverse @ inverse))
    return float(inverse @ values[good]), error


type _Jumps = dict[tuple[tuple[int, int], tuple[int, int]], tuple[float, float]]
"""Neighbouring rectangles → height and error of the jump between them."""


def _measured(
    image: Array, unusable: Array, rows: list[int], columns: list[int]
) -> tuple[list[int], list[int], _Jumps]:
    """Lines of which a part is sure, to the pixel, and the jumps across all of their parts."""
    jumps: _Jumps = {}
    for _ in range(_MOST_TURNS):
        jumps, certainty = {}, {}
        evidence: dict[tuple[bool, int], float] = {}
        sharp: dict[tuple[bool, int], float] = {}
        for transposed, along, across in ((False, rows, columns), (True, columns, rows)):
            plane, bad = (image.T, unusable.T) if transposed else (image, unusable)
            ends, sides = _ends(along, plane.shape[0]), _ends(across, plane.shape[1])
            for i, place in enumerate(along):
                certainty[transposed, place] = 0.0, place
                evidence[transposed, place] = sharp[transposed, place] = 0.0
                for j, (left, right) in enumerate(itertools.pairwise(sides)):
                    around = slice(ends[i], ends[i + 2]), slice(left, right)
                    found = _jump(plane[around], bad[around], place - ends[i])
                    if found is None:
                        continue
                    pair = ((j, i), (j, i + 1)) if transposed else ((i, j), (i + 1, j))
                    jumps[pair] = found.height, found.error
                    evidence[transposed, place] += found.evidence
                    sharp[transposed, place] += found.sharp
                    sure = abs(found.height) / found.error
                    if sure > certainty[transposed, place][0]:
                        certainty[transposed, place] = sure, ends[i] + found.place
        # What is no jump makes rectangles smaller, and so the others less sure.
        better = []
        for transposed, along, across in ((False, rows, columns), (True, columns, rows)):
            # Where amplifiers lie beside each other, others lie above them.
            enough = ENOUGH_EVIDENCE / 2 if across else ENOUGH_EVIDENCE
            sure_ones = {
                certainty[transposed, place][1]
                for place in along
                if certainty[transposed, place][0] > _SURE
                and evidence[transposed, place] > enough
                and sharp[transposed, place] > _NO_LIGHT
            }
            better.append(sorted(sure_ones))
        if better == [rows, columns]:
            return rows, columns, jumps
        rows, columns = better
    # Places that do not settle are none.
    return [], [], {}


@dataclasses.dataclass(frozen=True)
class _Jump:
    """Height of a step, its error, and the first line beyond it.

    And the evidence for it against what is smooth, and against a step of light.
    """

    height: float
    error: float
    place: int
    evidence: float
    sharp: float


def _jump(image: Array, bad: Array, place: int) -> _Jump | None:
    """What a step between two rows is; None where too little is known."""
    n, width = image.shape
    reach = longest_reach(10 * n)
    strip = slice(max(0, place - reach), min(n, place + reach))
    number = max(_FEWEST, math.ceil(width / _WIDEST))
    edges = np.linspace(0, width, number + 1).astype(int)
    pixels = unstepped(image[strip]).astype(np.float64)
    pixels[bad[strip]] = np.nan
    heights, errors, profiles = [], [], []
    for left, right in itertools.pairwise(edges):
        profile = _clipped_means(pixels[:, left:right])
        found = _height(profile, place - strip.start, reach)
        if found is not None:
            heights.append(found[0])
            errors.append(found[1])
            profiles.append(profile - np.nanmedian(profile))
    if len(heights) < _FEWEST:
        return None
    # Of neighbours: it may be another one beyond a jump across that is not found.
    scatter = max(robust_sigma(np.diff(heights)) / math.sqrt(2), float(np.median(errors)))
    error = MEDIAN_ERROR * scatter / math.sqrt(len(heights))
    if not error > 0:
        return None
    profile = np.full(len(profiles[0]), np.nan)
    known = np.isfinite(profiles).any(axis=0)
    profile[known] = np.nanmedian(np.array(profiles)[:, known], axis=0)
    sharpest, gain = sharpest_step(profile, place - strip.start)
    height = float(np.median(heights))
    # The step itself is none of the noise.
    even = np.where(np.arange(len(profile)) < sharpest, profile, profile - height)
    square = profile_noise(even[np.isfinite(even)]) ** 2
    sharp = sharp_gain(profile, sharpest) / square
    return _Jump(height, error, strip.start + sharpest, gain / square, sharp)


def _clipped_means(lines: Array) -> Array:
    """Means of lines without their outliers; NaN where few pixels are left."""
    known = np.isfinite(lines)
    enough = known.sum(axis=1) > _LEAST_COUNTED * lines.shape[1]
    result = np.full(len(lines), np.nan)
    if not enough.any():
        return result
    lines, known = lines[enough], known[enough]
    middle = np.nanmedian(lines, axis=1, keepdims=True)
    apart = np.abs(lines - middle)
    width = MAD_TO_SIGMA * np.nanmedian(apart, axis=1, keepdims=True)
    kept = known & (apart <= _CLIPPED * width)
    result[enough] = np.where(kept, lines, 0).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
    return result
