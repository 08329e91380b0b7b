"""Jumps of an image's level between amplifiers whose bias was not quite subtracted."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..noise.sources import unstepped
from ..numerics.stats import MAD_TO_SIGMA, MEDIAN_ERROR, known_medians, robust_sigma
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
"""Share of a segment's pixels, and of a part's segments, that their averages need."""
_WIDEST, _FEWEST = 128, 4
"""Widest segment of a row in which a height is measured, pixels; least number of segments."""
_CLIPPED = 3.0
_SURE = 6.0
"""Height over its error, by the scatter of segments, that one of a line's jumps must have."""
_NO_LIGHT = 2.0
"""Chi-square by which a jump between two pixels must fit better than a step of light, which has the
width of a PSF."""
_FAR, _STAYS = 12, 0.4
"""Distance, pixels, beyond which a step is measured again, and share of its height that it must
have there: a trail has none."""
_MOST_TURNS = 12
_ROUNDS, _SMALL = 8, 0.1
"""Rounds of the robust fit; share of the typical residual below which all residuals count alike."""
_ENOUGH_PIXELS, _FEWEST_PIXELS = 200_000, 2000
_NOISE_ERRORS, _SAME_NOISE = 4.0, 0.02
"""Errors, and relative difference, up to which a rectangle's variance agrees with its plane."""


@dataclasses.dataclass(frozen=True)
class AmplifierLevels:
    """Levels of the rectangles that jumps divide an image into.

    Attributes
    ----------
    rows, columns
        First rows and columns beyond jumps.
    level
        ``(len(rows) + 1, len(columns) + 1)`` image_unit; zero in the mean over the frame.
    largest
        The largest jump, image_unit.
    noise
        Variance of the rectangles' pixels over their variance plane, relative to the median, in the
        shape of `level`; 1 where it does not differ.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    level: Array
    largest: float
    noise: Array

    def taken_off(self, image: Array) -> Array:
        """Subtract the levels.

        Parameters
        ----------
        image
            ``(ny, nx)``; not modified.

        Returns
        -------
        level_image
            Image without jumps, of the image's type.
        """
        result = image.copy()
        for i, j, part in _rectangles(self.rows, self.columns, image.shape):
            result[part] -= image.dtype.type(self.level[i, j])
        return result

    def scaled(self, variance: Array) -> Array:
        """Scale each rectangle's variance by `noise`.

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
    """Numbers and pixels of the rectangles between jumps."""
    for i, (top, bottom) in enumerate(itertools.pairwise(_ends(rows, shape[0]))):
        for j, (left, right) in enumerate(itertools.pairwise(_ends(columns, shape[1]))):
            yield i, j, (slice(top, bottom), slice(left, right))


def amplifier_levels(image: Array, looked_at: Surface, unusable: Array) -> AmplifierLevels | None:
    """Find rows and columns at which an image's level jumps, and the levels between them.

    Parameters
    ----------
    image
        ``(ny, nx)`` image.
    looked_at
        `whitediff.defects.surface.surface` of the image.
    unusable
        ``(ny, nx)`` boolean: pixels without a measurement.

    Returns
    -------
    levels
        `AmplifierLevels`; None where nothing jumps.

    Notes
    -----
    Jumps are sought in profiles: medians over segments of 32 pixels, each clipped at 3 sigma, that
    lie beside each other across the frame, its halves and quarters, and from one jump to the next.
    A star, its spikes or a cloud lie in a few segments only, and make no jump.

    A jump must be found by `numerics.steps.steps_in`, if weakly, and be there beyond 12 pixels,
    unlike a trail's.  It must be 6 errors high along one rectangle's side.  All sides together must
    have enough evidence that it is sharp; half of that suffices where there are jumps across, too.
    Light has the width of a PSF, so a jump that a step 2 pixels wide describes as well is left in.

    The height of a jump is the height of a step, fitted with a parabola to the image itself.  The
    rectangles' levels follow from all heights by least squares.
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
    # The smallest solution: rectangles that no jump joins to the rest keep their level.
    level = np.linalg.lstsq(np.array(equations), np.array(heights), rcond=1e-10)[0].reshape(shape)
    tall, wide = (np.diff(_ends(at, n)) for at, n in zip((rows, columns), image.shape, strict=True))
    level -= float(tall @ level @ wide) / image.size
    largest = max((height for height, _ in jumps.values()), key=abs)
    noise = _relative_noise(image, looked_at.variance, unusable, rows, columns)
    return AmplifierLevels(tuple(rows), tuple(columns), level, largest, noise)


def _relative_noise(
    image: Array, variance: Array, unusable: Array, rows: list[int], columns: list[int]
) -> Array:
    """Variance of rectangles' pixels over their planes, relative to the median; 1 if it agrees.

    A plane that was computed from counts mistakes an offset for photons.  The variance is measured
    on differences of neighbours, in which sky and light cancel; all rectangles share the effect of
    correlated noise.
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
        # Error of a median deviation, twice for the square; neighbouring differences share a pixel.
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
    # Again, now between the columns that were found.
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
    # Beside jumps across, each segment has a level of its own.
    whole = known.any(axis=0)
    if enough.any():
        levelled = segments[:, whole] - known_medians(segments[:, whole].T)
        result[enough] = known_medians(levelled[enough])
    return result


def _stays(profile: Array, place: int) -> bool:
    """Whether a step has much of its height farther away, too."""
    reach = longest_reach(len(profile))
    near, far = (_height(profile, place, reach, least) for least in (0.0, min(_FAR, reach / 3)))
    if near is None or far is None:
        return False
    return far[0] * near[0] > _STAYS * near[0] ** 2


def _height(
    profile: Array, place: int, reach: int, least: float = 0.0
) -> tuple[float, float] | None:
    """Height of a step on a parabola, and its error, from pixels beyond a distance.

    Bad lines are left out.
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
    """Lines with at least one sure part, to the pixel, and the jumps across all of their parts."""
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
        # A wrong line makes rectangles smaller, and so the other jumps less sure: drop and repeat.
        better = []
        for transposed, along, across in ((False, rows, columns), (True, columns, rows)):
            # Jumps across make amplifiers likely, so less evidence is needed.
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
    # Lines that do not settle are no jumps.
    return [], [], {}


@dataclasses.dataclass(frozen=True)
class _Jump:
    """Height of a step, its error, and the first line beyond it.

    ``evidence`` is for a step rather than a smooth profile, ``sharp`` rather than a step of light.
    """

    height: float
    error: float
    place: int
    evidence: float
    sharp: float


def _jump(image: Array, bad: Array, place: int) -> _Jump | None:
    """Step between two rows; None where too few pixels are known."""
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
    # Scatter between neighbours: beyond an undetected jump across, the height is another one.
    scatter = max(robust_sigma(np.diff(heights)) / math.sqrt(2), float(np.median(errors)))
    error = MEDIAN_ERROR * scatter / math.sqrt(len(heights))
    if not error > 0:
        return None
    profile = np.full(len(profiles[0]), np.nan)
    known = np.isfinite(profiles).any(axis=0)
    profile[known] = np.nanmedian(np.array(profiles)[:, known], axis=0)
    sharpest, gain = sharpest_step(profile, place - strip.start)
    height = float(np.median(heights))
    # The step itself must not count as noise.
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
    middle = known_medians(lines)[:, None]
    apart = np.abs(lines - middle)
    width = MAD_TO_SIGMA * known_medians(apart)[:, None]
    kept = known & (apart <= _CLIPPED * width)
    result[enough] = np.where(kept, lines, 0).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
    return result
