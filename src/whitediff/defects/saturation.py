"""Saturated pixels that nothing tells of: plateaus, and the trails that bleed from them."""

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
"""Of a frame whose noise can be told."""

_LEAST_HEIGHT = 50.0
"""Of a plateau above the sky, in its noise and in steps of the digitisation.

Images that are cut for display are cut below that; and no star that is sampled by fewer than some
20 pixels across has eight pixels within one fiftieth of its peak.
"""

_ROUNDING = 1e-6
"""Relative: twelve times the precision of float32."""

_LARGE_GROUP, _GROUP, _SMALL_GROUP = 8, 5, 3
_MOST_RUNS = 1000
_MOST_ABOVE = 0.1
"""Pixels above a plateau, in pixels of the plateau: cosmic rays, hot pixels."""

_CUT_WITHIN, _CUT_SHARE = 10.0, 1e-3
"""Sigma below the sky within which so many pixels at the minimum mean an image cut for display."""

_RATIO, _EXCESS, _GAP, _SHIFT = 2.0, 10.0, 2, 2
"""A trail is that many times the star's profile, and so many sigma above that; pixels that it may
miss; and by how many the star's centre may be elsewhere."""

_LIT = 0.1
"""Height of what is around pixels in a star, in theirs."""

_LINE, _WIDEST_LINE = 8, 3
"""Pixels of a column or row, and of such side by side."""

_FEW_LIT, _SHARE_LIT = 1, 0.15
"""Pixels along a line that light surrounds, in a line that is no trail of a star; and the part of
one that ends at the frame's edge, since it may cross stars."""

_ROUNDS = 4
"""Of the search for a plateau, each without the columns that the one before it found."""

_LONG = 2
"""Widths that a trail is long beyond its star."""


@dataclasses.dataclass(frozen=True)
class Plateau:
    """The highest value of an image, where many pixels share it.

    Attributes
    ----------
    level
        Lowest value that belongs to it, image unit.
    pixels
        How many are at or above it.
    where
        ``(ny, nx)`` boolean: these.
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
        Columns and rows of one value (see `in_lines`) are passed over.

    Notes
    -----
    Pixels are equal within 1e-6, as rounding leaves them.  A flat field that was applied after
    the saturation spreads the values, and nothing is found.
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
    """Plateau of the pixels of a level, if they are those of stars."""
    sizes = groups(at).sizes
    together = int(sizes[sizes >= _SMALL_GROUP].sum())
    is_star = sizes.max() >= _LARGE_GROUP or (sizes >= _GROUP).sum() > 1
    if not is_star or 2 * together < sizes.sum():
        return None
    return Plateau(level, int(sizes.sum()), at)


def in_lines(image: Array, pixels: Array) -> Array:
    """Which bright pixels are those of bad columns and rows, and not of stars or their trails.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    pixels
        ``(ny, nx)`` boolean: pixels that may be one or the other.

    Returns
    -------
    found
        ``(ny, nx)`` boolean: those in lines of 8 pixels and more, up to 3 wide, that have no light
        of a star on both sides, a tenth as high, along more than a pixel; along less than 15 % of
        those that end at the frame's edge, which may cross stars.
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
    """Mark the pixels of a group, which starts at a pixel, that are in columns; in place."""
    ny, nx = image.shape
    # As a cross of a column and a row has them.
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
    """Which pixels without weight may be the core of a saturated star.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    pixels
        ``(ny, nx)`` boolean: pixels without weight.

    Returns
    -------
    found
        ``(ny, nx)`` boolean: those of groups that the light of a star surrounds, at a tenth of
        their own height or more.
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
    """Whether an image was cut from below within its noise, as it is for display."""

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
    """Steps in which the values near the sky were digitised."""
    levels = np.unique(sample[np.abs(sample - sky) < 3 * sigma])
    return float(np.median(np.diff(levels))) if levels.size > 1 else 2 * sigma


def _highest_run(high: Array) -> float | None:
    """Lowest value of the highest run of equal values, above which there are few others."""
    high = np.sort(high)[::-1]
    starts = np.flatnonzero(np.append(True, -np.diff(high) > _ROUNDING * np.abs(high[:-1])))
    lengths = np.diff(np.append(starts, high.size))
    # Of what is below, too much is above.
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
        Height above the sky that a pixel of a trail has at least, relative to that of the faintest
        saturated pixel.

    Returns
    -------
    trails
        ``(ny, nx)`` boolean: pixels of the trails that are not saturated themselves.

    Notes
    -----
    A trail goes on from a saturated core while its pixels are more than twice as bright as the
    star is at the same distance across the trail, and more than 10 sigma above that.  Which axis
    the detector bleeds along is taken from all stars together: the one along which more pixels do
    so.  Spikes of diffraction, which are alike on both axes, are none.
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
    # Beyond the frame the last that was seen; a profile falls.
    seen = np.isfinite(profile)
    profile[~seen] = profile[seen][-1]
    return np.asarray(np.minimum.accumulate(profile))


def _grown(bright: Array, lit: Array, own: Array, rows: range) -> Array:
    """Bright pixels that go on from a core in the order of rows, past those that it lights up."""
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
    """Pixels of a line that are set, and those beside them."""
    beside = line.copy()
    beside[1:] |= line[:-1]
    beside[:-1] |= line[1:]
    return beside


def _elongated(pixels: Array) -> Array:
    """Pixels of groups that are long along the first axis: stars beside a core are round."""
    labels, number = scipy.ndimage.label(pixels, np.ones((3, 3), int))
    long = np.zeros(number + 1, dtype=bool)
    for index, (rows, columns) in enumerate(scipy.ndimage.find_objects(labels), 1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        long[index] = height >= _LONG * width
    return long[labels]
