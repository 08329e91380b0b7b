"""Trails of satellites and aeroplanes: straight ridges across the frame.

Sums along all lines of the binned, clipped significance (fast discrete Radon transform, Brady 1998)
show where a trail may be; the pixels along the line show whether it is one, and how wide.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics.stats import MEDIAN_ERROR
from ..numerics.threads import in_threads
from .surface import CLIP, MARGIN, Surface

__all__ = ["Trail", "find_trails", "line_sums", "trail_pixels"]

type Array = npt.NDArray[Any]

_HIGH_PASS = 17
_THRESHOLD = 7.0
"""Least sum of a line, robust standard deviations: among a frame's 10⁶ lines, noise reaches 5."""

_SHORTEST = 0.25
"""Least length of a line, as a share of the frame's longer side."""

_TRIES = 12
_SAMPLED = 8
_NEIGHBOURS = 8
"""Steps in slope and start, squares, within which lines share most of their pixels."""

_MOST_LINES = 64
"""Largest number of lines kept from one search; others are found in the next."""

_REACH = 40
_CHUNKS = 24
_SHORTEST_CHUNK = 16
_ENOUGH_IN_CHUNK = 64
_NEAR = 14
"""Largest error of a line before it is fitted, pixels."""

_ON = 3.0
_LEAST_ON = 0.6
_FEWEST_ON = 6
_STRAIGHT = 2.0
_WIDEST = 24
_LOPSIDED = 0.6
_OTHERS, _NO_OTHERS, _NO_STEP = 0.5, 6.0, 2.0
"""Share of a ridge's height by which levels around it may differ; errors that are allowed besides,
of the profile around and of the step between the sides."""
_BESIDE = (8, 22)
"""Distances from a ridge, pixels, between which the levels of its sides are compared."""
_EDGE_OF_TRAIL = 0.15
"""Height of a trail's profile, in the noise of a pixel, below which its mask ends."""

_ALIGNED = 3.0
_WIDE_ALIGNED = 5
_LINES_OF_DETECTOR = 3
"""Largest width of a bad column or row, pixels; optics spread a trail over more."""

_FOOT = 0.15
"""Share of a ridge's peak from which a pixel belongs to the ridge."""

_STEADY = 5.0
_STEADY_INSIDE = 3.0
"""Largest peak of a trail over its median height, if it fades away from the peak; and if the trail
ends inside the frame, whether it fades or not."""

_FADING = -0.8
"""Rank correlation of height with distance from the peak, below which a ridge fades."""
_STEADY_ALIGNED, _FADING_ALIGNED = 2.0, -0.5
"""`_STEADY` and `_FADING` for narrow ridges along columns or rows, where most spikes lie."""


@dataclasses.dataclass(frozen=True)
class Trail:
    """A straight, or slightly bent, strip.

    Attributes
    ----------
    along_x
        The trail's middle is y as a function of x; else x as a function of y.
    coefficients
        Polynomial of the middle, highest power first, array coordinates.
    start, stop
        First pixel, and pixel after the last, along that axis.
    below, above
        Reach to either side of the middle, pixels.
    """

    along_x: bool
    coefficients: tuple[float, ...]
    start: int
    stop: int
    below: float
    above: float


def line_sums(plane: Array) -> list[Array]:
    """Sums of a square plane along straight lines of all directions.

    Parameters
    ----------
    plane
        ``(n, n)``, n a power of two.

    Returns
    -------
    sums
        Four arrays ``(n, 2n)``: element ``[s, n + h]`` is the sum along the line that begins in
        row h of the first column and ends in row h + s of the last.  They are for the plane, the
        plane upside down, and both for its transpose.

    Notes
    -----
    Brady 1998, SIAM J. Comput. 27, 107: n² log n additions.
    """
    return in_threads(_quadrant, (plane, plane[::-1], plane.T, plane.T[::-1]))


def _quadrant(plane: Array) -> Array:
    n = len(plane)
    # (strip, slope, row), where strips begin as one column each.  Two arrays take turns, so that
    # none is allocated in each step.
    sums, other = (np.zeros(n * 2 * n, plane.dtype) for _ in range(2))
    sums.reshape(n, 2 * n)[:, n:] = plane.T
    slopes = 1
    while slopes < n:
        halves = sums.reshape(-1, 2, slopes, 2 * n)
        left, right = halves[:, 0], halves[:, 1]
        joined = other.reshape(len(halves), 2 * slopes, 2 * n)
        for slope in range(2 * slopes):
            half, shift = slope // 2, (slope + 1) // 2
            last = 2 * n - shift
            np.add(left[:, half, :last], right[:, half, shift:], out=joined[:, slope, :last])
            joined[:, slope, last:] = left[:, half, last:]
        sums, other, slopes = other, sums, 2 * slopes
    return sums.reshape(n, 2 * n)


def _paths(n: int) -> Array:
    """Rows of the lines of `line_sums` that begin in row 0, ``(slope, column)``."""
    paths = np.zeros((1, 1), int)
    while len(paths) < n:
        slope = np.arange(2 * len(paths))
        half = paths[slope // 2]
        paths = np.concatenate([half, half + (slope[:, None] + 1) // 2], axis=1)
    return paths


def find_trails(surface: Surface) -> list[Trail]:
    """Find the trails on an image.

    Parameters
    ----------
    surface
        The image.

    Returns
    -------
    trails
        The most significant first.
    """
    plane, weight = _prepared(surface)
    size = 1 << max(3, int(np.ceil(np.log2(max(plane.shape)))))
    least = _SHORTEST * max(plane.shape)
    padded = np.zeros((size, size), np.complex64)
    padded[: plane.shape[0], : plane.shape[1]] = plane + 1j * weight
    paths = _paths(size)
    trails: list[Trail] = []
    tries = 0
    # Summing all lines is slow, so it is repeated only when no line that stood out is left: then
    # fainter ones may, since trails found meanwhile had raised the spread.
    while tries < _TRIES and len(lines := _standing_out(line_sums(padded), least)):
        while tries < _TRIES and len(lines):
            along_x, first, slope = lines.brightest(size, surface.bin)
            trail = _verified(surface, along_x, first, slope)
            if trail is not None:
                trails.append(trail)
            _blank(padded, along_x, first / surface.bin, slope, trail, surface.bin)
            lines = lines.summed_again(padded, paths, least)
            tries += 1
    return trails


@dataclasses.dataclass(frozen=True)
class _Lines:
    """Lines whose sums stand out.

    Attributes
    ----------
    step, start, quadrant
        ``(n,)`` indices of the lines in `line_sums`.
    significance
        ``(n,)`` sum over the root of the line's length, above the quadrant's median, in units of
        the quadrant's spread.
    middle, spread
        ``(n,)`` median and spread of the quadrant.
    """

    step: Array
    start: Array
    significance: Array
    quadrant: Array
    middle: Array
    spread: Array

    def __len__(self) -> int:
        return len(self.quadrant)

    def __getitem__(self, which: Array) -> _Lines:
        """Some of the lines."""
        return _Lines(*(getattr(self, field.name)[which] for field in dataclasses.fields(self)))

    def brightest(self, size: int, side: int) -> tuple[bool, float, float]:
        """Axis, start and slope, in pixels, of the line that stands out most."""
        k = int(np.argmax(self.significance))
        first, slope = float(self.start[k] - size), float(self.step[k] / (size - 1))
        if self.quadrant[k] % 2:
            first, slope = size - 1 - first, -slope
        # From squares to pixels, both counted at their middles.
        return (
            bool(self.quadrant[k] < 2),
            (first + 0.5) * side - 0.5 - slope * (side - 1) / 2,
            slope,
        )

    def summed_again(self, padded: Array, paths: Array, least: float) -> _Lines:
        """Lines that still stand out, summed on a plane of which parts were blanked."""
        size = len(padded)
        total = np.zeros(len(self), padded.dtype)
        for quadrant, plane in enumerate((padded, padded[::-1], padded.T, padded.T[::-1])):
            of_it = np.flatnonzero(self.quadrant == quadrant)
            rows = self.start[of_it, None] - size + paths[self.step[of_it]]
            inside = (rows >= 0) & (rows < size)
            values = plane[np.clip(rows, 0, size - 1), np.arange(size)]
            total[of_it] = (values * inside).sum(axis=1)
        mean = total.real / np.sqrt(np.maximum(total.imag, 1))
        significance = (mean - self.middle) / self.spread
        return dataclasses.replace(self, significance=significance)[
            (total.imag >= least) & (significance >= _THRESHOLD)
        ]


def _standing_out(sums: list[Array], least: float) -> _Lines:
    """Lines that stand out, the brightest of each neighbourhood."""
    found = []
    for quadrant, plane in enumerate(sums):
        valid = np.flatnonzero(plane.imag >= least)
        total = plane.ravel()[valid]
        values = total.real / np.sqrt(total.imag)
        # Lines share their pixels, so every eighth suffices for median and spread.
        middle, spread = _level(values[::_SAMPLED])
        values = (values - middle) / spread
        high = np.flatnonzero(values >= _THRESHOLD)
        step, start = np.divmod(valid[high], plane.shape[1])
        of_quadrant = (np.full(len(high), value) for value in (quadrant, middle, spread))
        found.append((step, start, values[high], *of_quadrant))
    lines = _Lines(*(np.concatenate(pieces) for pieces in zip(*found, strict=True)))
    order = np.argsort(-lines.significance, kind="stable")
    kept: list[int] = []
    while len(order) and len(kept) < _MOST_LINES:
        first = int(order[0])
        kept.append(first)
        far = lines.quadrant[order] != lines.quadrant[first]
        for place in (lines.step, lines.start):
            far |= np.abs(place[order] - place[first]) > _NEIGHBOURS
        order = order[far]
    return lines[np.array(kept, int)]


def _prepared(surface: Surface) -> tuple[Array, Array]:
    """Significance of squares above their surroundings, clipped; and weights, 1 if they count."""
    good = surface.counted >= 0.5 * surface.bin**2
    root = np.sqrt(np.maximum(surface.counted, 1))
    plane = np.where(good, surface.binned / root, 0).astype(np.float32)
    middle, spread = _level(plane[good])
    weight = good.astype(np.float32)
    plane = np.clip((plane - middle) / spread, -CLIP, CLIP) * weight
    around = scipy.ndimage.uniform_filter(plane, _HIGH_PASS, mode="constant")
    around /= np.maximum(scipy.ndimage.uniform_filter(weight, _HIGH_PASS, mode="constant"), 1e-3)
    plane = np.clip(plane - around, -CLIP, CLIP) * weight
    return plane, weight


def _level(values: Array) -> tuple[float, float]:
    if not values.size:
        return 0.0, 1.0
    low, middle = np.percentile(values, [15.87, 50])
    return float(middle), max(float(middle - low), 1e-6)


def _blank(
    padded: Array, along_x: bool, first: float, slope: float, trail: Trail | None, side: int
) -> None:
    """Blank a line's squares, so that it is not found again; in place."""
    reach = 3.0
    if trail is not None:
        reach += max(trail.below, trail.above) / side
    view = padded if along_x else padded.T
    reach *= float(np.hypot(1, slope))
    for column, middle in enumerate(first + slope * np.arange(view.shape[1])):
        low, high = max(0, int(np.ceil(middle - reach))), int(np.floor(middle + reach)) + 1
        if high > low:
            view[low:high, column] = 0


def _strip(
    surface: Surface, along_x: bool, coefficients: tuple[float, ...], step: int = 1
) -> tuple[Array, Array, Array]:
    """Significance along a line, ``(n, 2 · 40 + 1)``, NaN outside; positions along, and middles.

    The second axis runs along the frame's columns (rows if x is a function of y), not at a right
    angle to the line.
    """
    ny, nx = surface.shape
    length, breadth = (nx, ny) if along_x else (ny, nx)
    along = np.arange(0, length, step)
    middle = np.rint(np.polyval(coefficients, along)).astype(int)
    inside = np.flatnonzero((middle >= -_REACH) & (middle < breadth + _REACH))
    along, middle = along[inside], middle[inside]
    across = middle + np.arange(-_REACH, _REACH + 1)[:, None]
    place = along[None]
    if not along_x:
        # In the order of memory, which is faster to read.
        across, place = np.ascontiguousarray(across.T), along[:, None]
    outside = (across < 0) | (across >= breadth)
    np.clip(across, 0, breadth - 1, out=across)
    y, x = (across, place) if along_x else (place, across)
    noise = surface.variance.ravel().take(y * nx + x)
    noise = np.sqrt(noise * np.float32(surface.factor))
    values = surface.flux.ravel().take((y + MARGIN) * surface.width + (x + MARGIN))
    with np.errstate(invalid="ignore", divide="ignore"):
        values /= noise
    values[outside] = np.nan
    return values.T if along_x else values, along, middle


def _chunked(strip: Array) -> tuple[Array, list[slice]]:
    """Median profile of each chunk of a strip, and the chunks."""
    n = len(strip)
    number = max(1, min(_CHUNKS, n // _SHORTEST_CHUNK))
    edges = np.linspace(0, n, number + 1).astype(int)
    chunks = [slice(a, b) for a, b in pairwise(edges)]
    # Medians: a star in a chunk counts no more than noise does.
    profiles = np.stack([_medians(strip[chunk]) for chunk in chunks])
    return profiles, chunks


def _medians(part: Array) -> Array:
    """Medians of columns, NaN where less than half of a column is known."""
    ordered = np.sort(part, axis=0)
    known = np.count_nonzero(~np.isnan(part), axis=0)
    at = np.arange(part.shape[1])
    last = np.maximum(known - 1, 0)
    middle = (ordered[last // 2, at] + ordered[(last + 1) // 2, at]) / 2
    return np.where(known >= max(1, len(part) // 2), middle, np.nan)


def _verified(surface: Surface, along_x: bool, first: float, slope: float) -> Trail | None:
    """Trail at a line; None if there is no trail."""
    coefficients: tuple[float, ...] = (slope, first)
    near = _NEAR
    on = np.zeros(0, bool)
    # For the first fits, a part of the line's pixels suffices.
    rough = max(1, max(surface.shape) // (_CHUNKS * _ENOUGH_IN_CHUNK))
    for turn in range(3):
        strip, along, middle = _strip(surface, along_x, coefficients, rough if turn < 2 else 1)
        if len(strip) < _FEWEST_ON * _SHORTEST_CHUNK:
            return None
        profiles, chunks = _chunked(strip)
        _, place, on = _ridges(profiles, chunks, near)
        if on.sum() < _FEWEST_ON:
            return None
        centres = np.array([along[chunk].mean() for chunk in chunks])
        exact = np.array([middle[chunk].mean() for chunk in chunks]) + place
        order = 1 if turn < 2 or on.sum() < 10 else 2
        fit = np.polyfit(centres[on], exact[on], order)
        for _ in range(3):
            left = np.abs(exact - np.polyval(fit, centres))
            limit = max(_STRAIGHT, 2.5 * float(np.median(left[on])))
            use = on & (left < limit)
            if use.sum() < _FEWEST_ON:
                return None
            fit = np.polyfit(centres[use], exact[use], order)
        on &= np.abs(exact - np.polyval(fit, centres)) < _STRAIGHT + 1
        coefficients, near = tuple(float(c) for c in fit), (6, 3, 3)[turn]
    return _judged(surface, along_x, coefficients)


def _ridges(profiles: Array, chunks: list[slice], near: int) -> tuple[Array, Array, Array]:
    """Height and place of a ridge in each chunk's profile, and whether it is significant."""
    rows = np.array([chunk.stop - chunk.start for chunk in chunks])
    known = np.nan_to_num(profiles)
    smooth = scipy.ndimage.uniform_filter1d(known, 5, axis=1)
    beside = np.abs(np.arange(-_REACH, _REACH + 1)) > _REACH // 2
    with np.errstate(all="ignore"):
        level = np.median(known[:, beside], axis=1)
    smooth -= level[:, None]
    window = smooth[:, _REACH - near : _REACH + near + 1]
    peak = window.argmax(axis=1)
    height = window[np.arange(len(window)), peak]
    # Centroid of the pixels above half of the peak that are joined to it.
    place = np.zeros(len(window))
    for k, (row, top) in enumerate(zip(smooth, peak + _REACH - near, strict=True)):
        above = row > row[top] / 2
        start, stop = top, top
        while start > 0 and above[start - 1]:
            start -= 1
        while stop < len(row) - 1 and above[stop + 1]:
            stop += 1
        weight = row[start : stop + 1]
        place[k] = (
            (weight * np.arange(start, stop + 1)).sum() / weight.sum() - _REACH
            if (weight.sum() > 0)
            else 0
        )
    # Error of a median of Gaussian noise, averaged over five pixels.
    noise = MEDIAN_ERROR / np.sqrt(rows * 5)
    return height, place, height > _ON * noise


def _judged(surface: Surface, along_x: bool, coefficients: tuple[float, ...]) -> Trail | None:
    """Trail along a line that was fitted, if it is long, steady and narrow enough."""
    strip, along, _ = _strip(surface, along_x, coefficients)
    profiles, chunks = _chunked(strip)
    height, _, on = _ridges(profiles, chunks, 3)
    if on.sum() < _FEWEST_ON:
        return None
    first, last = (int(k) for k in np.flatnonzero(on)[[0, -1]])
    run = slice(first, last + 1)
    if on[run].mean() < _LEAST_ON:
        return None
    start, stop = chunks[first].start, chunks[last].stop
    lengths = chunks[0].stop - chunks[0].start
    at_start, at_stop = first <= 1, last >= len(chunks) - 2
    slope = np.hypot(1, float(np.polyval(np.polyder(np.array(coefficients)), along.mean())))
    if (stop - start) * slope < _SHORTEST * max(surface.shape):
        return None
    steady = _STEADY if at_start and at_stop else _STEADY_INSIDE
    if _fades(height[run][on[run]], np.flatnonzero(on[run]), steady):
        return None
    ends = np.polyval(coefficients, [along[start], along[stop - 1]])
    aligned = abs(ends[1] - ends[0]) < _ALIGNED
    # Along an edge of the frame, the sky is seen on one side only, and a bad border looks alike.
    across = surface.shape[0 if along_x else 1]
    if max(ends) < _REACH or min(ends) > across - 1 - _REACH:
        return None
    ridge = _ridge_across(strip, profiles, chunks, height, on)
    if ridge is None:
        return None
    # Ridges along columns or rows that end inside the frame are defects or bleed trails.
    if aligned and not (at_start and at_stop):
        return None
    if aligned and ridge.half_width < _WIDE_ALIGNED:
        # The fitted line may step to the next row, which would widen a ridge that stays in its row.
        level, _, _ = _strip(surface, along_x, (float(np.median(ends)),))
        if _is_narrow(np.nan_to_num(_medians(level))):
            return None
        place = np.flatnonzero(on[run])
        if _fades(height[run][on[run]], place, _STEADY_ALIGNED, _FADING_ALIGNED):
            return None
    start = 0 if at_start else max(0, start - lengths // 2)
    stop = len(along) if at_stop else min(len(along), stop + lengths // 2)
    return Trail(
        along_x, coefficients, int(along[start]), int(along[stop - 1]) + 1, ridge.below, ridge.above
    )


class _Ridge(NamedTuple):
    """Reach of a ridge on both sides of its line, and its width at half height, pixels."""

    below: float
    above: float
    half_width: int


def _ridge_across(
    strip: Array, profiles: Array, chunks: list[slice], height: Array, on: Array
) -> _Ridge | None:
    """Ridge of a trail, by its profile across; None if it is no trail's."""
    chosen = np.concatenate([strip[chunk] for chunk, use in zip(chunks, on, strict=True) if use])
    profile = np.nan_to_num(_medians(chosen))
    offsets = np.arange(-_REACH, _REACH + 1)
    beside = [offsets < -_REACH // 2 - 5, offsets > _REACH // 2 + 5]
    levels = [float(np.median(profile[side])) for side in beside]
    profile = profile - np.interp(offsets, [-_REACH * 0.8, _REACH * 0.8], levels)
    smooth = scipy.ndimage.uniform_filter1d(profile, 3)
    noise = MEDIAN_ERROR / np.sqrt(len(chosen) * 3)
    # A step is no trail, whichever of its sides is the brighter; one of many is a fringe.
    if abs(levels[1] - levels[0]) > _OTHERS * smooth[_REACH - 3 : _REACH + 4].max():
        return None
    if _are_steps(profiles[on], height[on], chunks[0].stop - chunks[0].start):
        return None
    above = smooth > max(_EDGE_OF_TRAIL, 3 * noise)
    core = _REACH + int(np.argmax(smooth[_REACH - 3 : _REACH + 4])) - 3
    if not above[core]:
        return None
    half_width = int(np.count_nonzero(smooth > smooth[core] / 2))
    reach = []
    for direction in (-1, 1):
        side = core + direction * np.arange(_REACH + 1)
        side = side[(side >= 0) & (side < len(smooth))]
        reach.append(int(np.argmin(np.append(above[side], False))))
    if half_width > _WIDEST:
        return None
    if abs(reach[0] - reach[1]) > _LOPSIDED * max(reach) + 3:
        return None
    around = smooth[(offsets < core - _REACH - reach[0]) | (offsets > core - _REACH + reach[1])]
    if around.size and np.ptp(around) > _OTHERS * smooth[core] + _NO_OTHERS * noise:
        return None
    return _Ridge(reach[0] - (core - _REACH) + 1.0, reach[1] + (core - _REACH) + 1.0, half_width)


def _are_steps(profiles: Array, height: Array, rows: int) -> bool:
    """Whether the levels on both sides of a ridge differ in most of its chunks."""
    offsets = np.arange(-_REACH, _REACH + 1)
    level = [
        np.median(np.nan_to_num(profiles[:, side]), axis=1)
        for side in ((offsets < -_BESIDE[0]) & (offsets > -_BESIDE[1]),
                     (offsets > _BESIDE[0]) & (offsets < _BESIDE[1]))
    ]  # fmt: skip
    noise = MEDIAN_ERROR * np.sqrt(2 / (rows * (_BESIDE[1] - _BESIDE[0])))
    step = float(np.median(np.abs(level[1] - level[0])))
    return step > _OTHERS * float(np.median(height)) + _NO_STEP * noise


def _is_narrow(profile: Array) -> bool:
    """Whether a ridge, by its profile, is no wider than bad columns and rows."""
    near = slice(_REACH - 3, _REACH + 4)
    core = near.start + int(np.argmax(profile[near]))
    # Rows of a banded readout differ by more than their noise, so their scatter is measured.
    beside = np.abs(np.arange(-_REACH, _REACH + 1)) > _REACH // 2
    profile = profile - np.median(profile[beside])
    foot = max(_FOOT * profile[core], 3 * float(np.std(profile[beside])))
    labels, _ = scipy.ndimage.label(profile > foot)
    wide = int(np.count_nonzero(labels == labels[core])) if labels[core] else 0
    return wide <= _LINES_OF_DETECTOR


def _fades(height: Array, place: Array, steady: float, fading: float = _FADING) -> bool:
    """Whether a ridge fades away from its brightest place, as a star's diffraction spikes do."""
    if height.max() < steady * np.median(height):
        return False
    if steady == _STEADY_INSIDE:
        return True
    distance = np.abs(place - place[height.argmax()])
    ranks = [values.argsort().argsort() for values in (distance, height)]
    return bool(np.corrcoef(np.stack(ranks))[0, 1] < fading)


def trail_pixels(trails: list[Trail], shape: tuple[int, int]) -> Array:
    """Pixels of trails.

    Parameters
    ----------
    trails
        Trails.
    shape
        Shape of the image.

    Returns
    -------
    pixels
        ``(ny, nx)`` boolean: pixels that the trails cover.
    """
    pixels = np.zeros(shape, bool)
    for trail in trails:
        view = pixels if trail.along_x else pixels.T
        along = np.arange(trail.start, trail.stop)
        middle = np.polyval(trail.coefficients, along)
        low = np.clip(np.ceil(middle - trail.below), 0, len(view)).astype(int)
        high = np.clip(np.floor(middle + trail.above) + 1, 0, len(view)).astype(int)
        for column, bottom, top in zip(along, low, high, strict=True):
            view[bottom:top, column] = True
    return pixels
