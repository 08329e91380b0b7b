"""Saturated pixels where no level is given: plateaus, and the trails that bleed from them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics.groups import Groups, groups
from ..numerics.planes import each_block, every_nth, filled, usable_pixels, used, zeros
from ..numerics.stats import robust_sigma

__all__ = ["Plateau", "bleed_trails", "find_plateau", "in_lines", "in_stars"]

type Array = npt.NDArray[Any]

_ENOUGH_FOR_SIGMA = 100_000
_LEAST_PIXELS = 1024
"""Least number of pixels of a frame whose noise can be measured."""

_LEAST_HEIGHT = 50.0
"""Least height of a plateau above the sky, in its noise and in steps of the digitisation.

Images that are cut for display are cut below that; and no star that is sampled by fewer than some
20 pixels across has eight pixels within one fiftieth of its peak.
"""

_ROUNDING = 1e-6
"""Relative difference of equal values: some ten times the precision of float32."""

_LARGE_GROUP, _GROUP, _SMALL_GROUP = 8, 5, 3
_MOST_RUNS = 1000
_MOST_ABOVE = 0.1
"""Largest number of pixels above a plateau, over its own: cosmic rays, hot pixels."""

_CUT_WITHIN, _CUT_SHARE = 10.0, 1e-3
"""An image was cut for display if its minimum lies within so many sigma below the sky, and this
share of its pixels is there."""

_RATIO, _EXCESS, _GAP, _SHIFT = 2.0, 10.0, 2, 2
"""Brightness of a trail: times the star's profile, and sigma above that; largest gap in a trail,
pixels; and largest error of the star's centre, pixels."""

_LIT = 0.1
"""Least height of the light around pixels in a star, as a share of their own height."""

_LINE, _WIDEST_LINE = 8, 3
"""Least length of a bad column or row, and largest number side by side, pixels."""

_FEW_LIT, _SHARE_LIT = 1, 0.15
"""Largest number of pixels along a bad line with light on both sides; largest share along a line
that ends at the frame's edge, since it may cross stars."""

_ROUNDS = 4
"""Searches for a plateau, each without the lines that the one before found."""

_LONG = 2
"""Least length of a trail beyond its star, in widths."""


@dataclasses.dataclass(frozen=True)
class Plateau:
    """The highest value of an image, where many pixels share it.

    Attributes
    ----------
    level
        Lowest value of the plateau, image unit.
    pixels
        Number of pixels at or above it.
    where
        ``(ny, nx)`` boolean: these pixels.
    """

    level: float
    pixels: int
    where: Array


def find_plateau(image: Array, unusable: Array | None = None) -> Plateau | None:
    """Level at which the pixels of an image are saturated, from their equal values.

    Parameters
    ----------
    image
        ``(ny, nx)``; non-finite pixels are left out.
    unusable
        ``(ny, nx)`` boolean: further pixels that are left out.

    Returns
    -------
    plateau
        None where the highest pixels are no plateau of saturated stars: they differ, lie apart,
        are few, or are less than 50 sigma above the sky, or the image was cut for display.
        Bad columns and rows (see `in_lines`) are passed over.

    Notes
    -----
    Pixels count as equal within 1e-6, which allows for rounding.  A flat field that was applied
    after the saturation spreads the values, and nothing is found.
    """
    use = usable_pixels(image, unusable)
    if np.count_nonzero(use) < _LEAST_PIXELS:
        return None
    sample = every_nth(image, use, _ENOUGH_FOR_SIGMA).astype(np.float64)
    sky, sigma = float(np.median(sample)), robust_sigma(sample)
    if not sigma > 0 or _is_cut(image, use, sky, sigma):
        return None
    threshold = sky + _LEAST_HEIGHT * max(sigma, _step(sample, sky, sigma))
    high = np.flatnonzero(
        filled(image.shape, bool, lambda rows: use[rows] & (image[rows] > threshold))
    )
    values = image.reshape(-1)[high]
    for _ in range(_ROUNDS):
        found = _highest_run(values)
        if found is None:
            return None
        at = zeros(image.shape, bool)
        at.reshape(-1)[high[values >= image.dtype.type(found)]] = True
        lines = in_lines(image, at)
        if not lines.any():
            return _of_stars(at, found)
        left = ~lines.reshape(-1)[high]
        high, values = high[left], values[left]
    return None


def _of_stars(at: Array, level: float) -> Plateau | None:
    """Plateau of the pixels at a level, if they lie together as in stars."""
    sizes = groups(at).sizes
    together = int(sizes[sizes >= _SMALL_GROUP].sum())
    is_star = sizes.max() >= _LARGE_GROUP or (sizes >= _GROUP).sum() > 1
    if not is_star or 2 * together < sizes.sum():
        return None
    return Plateau(level, int(sizes.sum()), at)


def in_lines(image: Array, pixels: Array) -> Array:
    """Bright pixels that belong to bad columns and rows rather than to stars or their trails.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    pixels
        ``(ny, nx)`` boolean: bright pixels of either kind.

    Returns
    -------
    found
        ``(ny, nx)`` boolean: pixels in lines of 8 pixels and more, up to 3 wide.  At most one pixel
        along a line has a star's light on both sides, a tenth as high as the line; at most 15 %
        along a line that ends at the frame's edge, which may cross stars.
    """
    found = zeros(pixels.shape, bool)
    together = groups(pixels)
    first, last = together.extents
    long = (last - first).max(axis=1) >= _LINE
    if not long.any():
        return found
    others = usable_pixels(image, pixels)
    if not others.any():
        return found
    sky = float(np.median(every_nth(image, others, _ENOUGH_FOR_SIGMA)))
    for (rows, columns), group in together.each(long):
        _mark_columns(image, group, sky, found, (rows.start, columns.start))
        _mark_columns(image.T, group.T, sky, found.T, (columns.start, rows.start))
    return found


def _mark_columns(
    image: Array, group: Array, sky: float, found: Array, start: tuple[int, int]
) -> None:
    """Mark the pixels of a group that are in columns; in place.

    ``start`` is the first row and column of the group.
    """
    ny, nx = image.shape
    # A group may be a cross of a column and a row: only its tall parts are columns.
    tall = scipy.ndimage.binary_opening(group, np.ones((_LINE, 1), bool))
    labels, _ = scipy.ndimage.label(tall, np.ones((3, 3), int))
    for number, window in enumerate(scipy.ndimage.find_objects(labels), 1):
        part = labels[window] == number
        if part.shape[1] > _WIDEST_LINE:
            continue
        rows, columns = (
            slice(side.start + at, side.stop + at) for side, at in zip(window, start, strict=True)
        )
        height = float(np.median(image[rows, columns][part])) - sky
        lit = np.ones(part.shape[0], bool)
        for beside in (columns.start - 1, columns.stop):
            if 0 <= beside < nx:
                with np.errstate(invalid="ignore"):
                    lit &= image[rows, beside] - sky > _LIT * height
        ends = rows.start == 0 or rows.stop == ny
        if np.count_nonzero(lit) <= max(_FEW_LIT, _SHARE_LIT * len(lit) if ends else 0):
            found[rows, columns] |= part


def in_stars(image: Array, pixels: Array) -> Array:
    """Pixels without weight that may be the core of a saturated star.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    pixels
        ``(ny, nx)`` boolean: pixels without weight.

    Returns
    -------
    found
        ``(ny, nx)`` boolean: pixels in groups that a star's light surrounds, more than a tenth as
        high as the group.
    """
    others = usable_pixels(image, pixels)
    if not pixels.any() or not others.any():
        return np.zeros(pixels.shape, bool)
    sky = float(np.median(every_nth(image, others, _ENOUGH_FOR_SIGMA)))
    high = pixels & np.isfinite(image) & (image > sky)
    labels, number = scipy.ndimage.label(high, np.ones((3, 3), int))
    if not number:
        return high
    each = np.arange(1, number + 1)
    around = np.where(others, scipy.ndimage.grey_dilation(labels, size=(3, 3)), 0)
    height = scipy.ndimage.median(image, labels, each) - sky
    light = scipy.ndimage.median(image, around, each) - sky
    with np.errstate(invalid="ignore"):
        lit = np.append(False, light > _LIT * height)
    return np.asarray(lit[labels])


def _is_cut(image: Array, use: Array, sky: float, sigma: float) -> bool:
    """Whether an image was cut from below within its noise, as for display."""

    def smallest(rows: slice) -> Array:
        values = used(image, use, rows)
        return values[[values.argmin()]] if values.size else values

    lowest = np.concatenate(each_block(smallest, image.shape)).min()
    if not lowest > sky - _CUT_WITHIN * sigma:
        return False

    def equal(rows: slice) -> int:
        return int(np.count_nonzero(used(image, use, rows) == lowest))

    return sum(each_block(equal, image.shape)) > max(3, _CUT_SHARE * np.count_nonzero(use))


def _step(sample: Array, sky: float, sigma: float) -> float:
    """Step in which the values near the sky were digitised."""
    levels = np.unique(sample[np.abs(sample - sky) < 3 * sigma])
    return float(np.median(np.diff(levels))) if levels.size > 1 else 2 * sigma


def _highest_run(high: Array) -> float | None:
    """Lowest value of the highest run of equal values with few values above it."""
    high = np.sort(high)[::-1]
    starts = np.flatnonzero(np.append(True, -np.diff(high) > _ROUNDING * np.abs(high[:-1])))
    lengths = np.diff(np.append(starts, high.size))
    # Lower runs have too many values above them, so the highest ones suffice.
    for start, length in zip(starts[:_MOST_RUNS], lengths[:_MOST_RUNS], strict=True):
        if length >= _GROUP and start <= _MOST_ABOVE * length:
            return float(high[start + length - 1])
    return None


def bleed_trails(image: Array, saturated: Array, *, least: float = 0.0) -> Array:
    """Trails of charge that bleed from saturated stars along one axis of the detector.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    saturated
        ``(ny, nx)`` boolean: pixels at saturation.
    least
        Least height of a trail's pixel above the sky, relative to the faintest saturated pixel's.

    Returns
    -------
    trails
        ``(ny, nx)`` boolean: pixels of the trails that are not saturated themselves.

    Notes
    -----
    A trail goes on from a saturated core while its pixels are more than 10 sigma above twice the
    star's brightness at the same distance across the trail.  The axis along which the detector
    bleeds is the one with more such pixels, over all stars.  Diffraction spikes, which are alike on
    both axes, are no trails.
    """
    none = zeros(image.shape, bool)
    if not saturated.any():
        return none
    others = usable_pixels(image, saturated)
    if np.count_nonzero(others) < _LEAST_PIXELS:
        return none
    sample = every_nth(image, others, _ENOUGH_FOR_SIGMA).astype(np.float64)
    sky, sigma = float(np.median(sample)), robust_sigma(sample)
    if not sigma > 0:
        return none
    bright = image[saturated]
    heights = bright[np.isfinite(bright)] - sky
    excess = max(_EXCESS * sigma, least * float(heights.min(initial=np.inf)))
    if not np.isfinite(excess):
        return none
    together = groups(saturated)
    along_columns = _trails(image, saturated, together, sky, excess)
    along_rows = _trails(image.T, saturated.T, together.transposed, sky, excess).T
    columns, rows = np.count_nonzero(along_columns), np.count_nonzero(along_rows)
    if columns == rows:
        return none
    return along_columns if columns > rows else along_rows


def _trails(image: Array, saturated: Array, together: Groups, sky: float, excess: float) -> Array:
    """Pixels of trails along the first axis."""
    result = np.zeros(image.shape, dtype=bool)
    ny, nx = image.shape
    for window, core in together.each(together.sizes >= _SMALL_GROUP):
        widths = core.sum(axis=1)
        widest = np.flatnonzero(widths == widths.max())
        y = int(window[0].start + widest[len(widest) // 2])
        columns = np.flatnonzero(core[y - window[0].start])
        x = int(window[1].start + columns[len(columns) // 2])
        profile = _across(_above(image[max(0, y - 1) : y + 2], sky), x, max(ny, nx))
        left, right = max(0, window[1].start - 1), min(nx, window[1].stop + 1)
        distance = np.maximum(np.abs(np.arange(ny) - y) - _SHIFT, 0)
        limit = _RATIO * np.maximum(profile[distance], 0) + excess
        part = _above(image[:, left:right], sky)
        own = np.zeros(part.shape, dtype=bool)
        own[window[0], window[1].start - left : window[1].stop - left] = core
        grown = np.zeros(own.shape, dtype=bool)
        bright, lit = part > limit[:, None], part > excess
        for rows in (range(window[0].start, ny), range(window[0].stop - 1, -1, -1)):
            grown |= _grown(bright, lit, own, rows)
        grown &= ~saturated[:, left:right]
        if grown.any():
            result[:, left:right] |= _elongated(grown)
    return result


def _above(image: Array, sky: float) -> Array:
    """Heights above the sky, 0 where there is no value."""
    height: Array = np.where(np.isfinite(image), image, sky) - sky
    return height


def _across(rows: Array, x: int, length: int) -> Array:
    """Fainter of a star's two sides across a trail, by the distance from its centre."""
    row = np.median(rows, axis=0)
    sides = np.full((2, length), np.inf)
    right, left = row[x:], row[x::-1]
    sides[0, : right.size], sides[1, : left.size] = right, left
    profile = sides.min(axis=0)
    # Beyond the frame, the last value counts: profiles fall, so it is an upper limit.
    seen = np.isfinite(profile)
    profile[~seen] = profile[seen][-1]
    return np.asarray(np.minimum.accumulate(profile))


def _grown(bright: Array, lit: Array, own: Array, rows: range) -> Array:
    """Bright pixels that go on from a core in the order of rows, past pixels that are only lit."""
    result = np.zeros(bright.shape, dtype=bool)
    reach = np.zeros(bright.shape[1], dtype=int)
    for row in rows:
        near = _beside(reach > 0)
        result[row] = near & bright[row]
        reach = np.where(own[row] | (near & lit[row]), _GAP + 1, np.maximum(reach - 1, 0))
        if not reach.any():
            break
    return result


def _beside(line: Array) -> Array:
    """Pixels of a line that are set, and their neighbours."""
    beside = line.copy()
    beside[1:] |= line[:-1]
    beside[:-1] |= line[1:]
    return beside


def _elongated(pixels: Array) -> Array:
    """Pixels in groups that are long along the first axis; a star beside a core is round."""
    labels, number = scipy.ndimage.label(pixels, np.ones((3, 3), int))
    long = np.zeros(number + 1, dtype=bool)
    for index, (rows, columns) in enumerate(scipy.ndimage.find_objects(labels), 1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        long[index] = height >= _LONG * width
    return long[labels]
