"""Regions that no light reaches: overscan, and dead amplifiers, which have read noise alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics.interpolation import mean_around
from ..numerics.stats import MAD_TO_SIGMA

__all__ = ["unlit_regions"]

type Array = npt.NDArray[Any]

_BLOCK, _STEP = 16, 2
_QUIET = 0.5
"""Largest noise of an unlit block, over the image's."""
_DARK = 5.0
"""Least depth of an unlit block below the image's level, in the image's noise."""
_SMOOTHED = 5
_NEAR, _FAR = 3, 7
"""Pixels from an edge between which its two sides are compared."""
_SHARP = 0.7
"""Least step at an edge, as a share of the depth: edges of dark clouds are soft."""
_GROWN = 2
_TYPICAL = 75.0
"""Percentile of the blocks' noise that counts as usual: half of an image may be unlit, and more."""
_PEAK = 2.5
"""Least height of a source: its mean over nine pixels, over the noise of one."""
_EXPECTED, _SHINING = 4.0, 0.25
"""Number of sources expected in a lit region of the same size from which their absence tells; share
of that number up to which a region counts as without sources."""
_FILLED = 0.9
"""Least share of the smallest rectangle around a region that it fills; clouds, ghosts and shadows
fill less."""


def unlit_regions(image: Array, unusable: Array) -> Array | None:
    """Find rectangles with sharp edges that are darker than the image, with less noise and no star.

    Parameters
    ----------
    image
        ``(ny, nx)`` image.
    unusable
        ``(ny, nx)`` boolean: pixels that are known to hold no measurement.

    Returns
    -------
    unlit
        ``(ny, nx)`` boolean; None where there is none.

    Notes
    -----
    The sky's photons may be missing in blocks of 16 × 16 pixels that have less than half of the
    usual noise and lie below the usual level by five times the usual noise.  Regions with soft
    edges, or that are no rectangle at any angle, are clouds, ghosts or shadows.  Regions with
    sources have light.  Where too few sources are expected to tell, a region must reach the frame's
    edge.  In images whose sky was subtracted, nothing is found.
    """
    ny, nx = (n // _BLOCK for n in image.shape)
    if ny < 4 or nx < 4:
        return None
    level, noise = _blocks(image, ny, nx)
    known = np.isfinite(level) & (noise > 0)
    if np.count_nonzero(known) < known.size / 4:
        return None
    usual = float(np.percentile(noise[known], _TYPICAL))
    lit = known & (noise > _QUIET * usual)
    middle = float(np.median(level[lit]))
    dark = known & ~lit & (level < middle - _DARK * usual)
    if not dark.any():
        return None
    unlit = np.zeros(image.shape, bool)
    # Lines beyond the last whole block belong to it.
    row, column = (
        np.minimum(np.arange(n) // _BLOCK, m - 1)
        for n, m in zip(image.shape, (ny, nx), strict=True)
    )
    density: float | None = None
    regions, _ = scipy.ndimage.label(dark)
    for number, box in enumerate(scipy.ndimage.find_objects(regions), start=1):
        region = regions == number
        depth = middle - float(np.median(level[region]))
        near = scipy.ndimage.binary_dilation(region, np.ones((3, 3)))
        place = tuple(
            slice(max(0, (each.start - 1) * _BLOCK), (each.stop + 2) * _BLOCK) for each in box
        )
        pixels = image[place].astype(np.float64)
        finite = np.isfinite(pixels)
        smooth = mean_around(pixels, finite, _SMOOTHED)
        pixels = np.where(finite, pixels, smooth)
        inside = near[row[place[0]][:, None], column[place[1]]] & (smooth < middle - depth / 2)
        if not _is_sharp(pixels, inside, depth) or not _is_rectangle(inside):
            continue
        if density is None:
            bright = lit[row[:, None], column]
            density = _sources(image, middle, bright, usual) / np.count_nonzero(bright)
        expected = density * np.count_nonzero(inside)
        own = float(np.median(noise[region]))
        shining = _sources(pixels, middle - depth, inside, own)
        if shining > _SHINING * expected:
            continue
        if expected >= _EXPECTED or _reaches_edge(box, (ny, nx)):
            unlit[place] |= scipy.ndimage.binary_dilation(inside, iterations=_GROWN)
    unlit &= ~unusable
    return unlit if unlit.any() else None


def _sources(image: Array, level: float, where: Array, noise: float) -> int:
    """Number of sources above a level in a region, away from its edges."""
    smooth = mean_around(image, np.isfinite(image), 3)
    inner = scipy.ndimage.binary_erosion(where, iterations=_FAR, border_value=1)
    return int(scipy.ndimage.label((smooth > level + _PEAK * noise) & inner)[1])


def _is_rectangle(inside: Array) -> bool:
    """Whether a region fills the smallest rectangle around it, at any angle."""
    y, x = np.nonzero(inside & ~scipy.ndimage.binary_erosion(inside, border_value=0))
    angle = np.deg2rad(np.arange(0, 90, 1.0))[:, None]
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    area = (np.ptp(along, axis=1) + 1) * (np.ptp(across, axis=1) + 1)
    return bool(np.count_nonzero(inside) > _FILLED * area.min())


def _reaches_edge(box: tuple[slice, ...], shape: tuple[int, int]) -> bool:
    return any(each.start == 0 or each.stop == n for each, n in zip(box, shape, strict=True))


def _blocks(image: Array, ny: int, nx: int) -> tuple[Array, Array]:
    """Level and noise of blocks, from a quarter of their pixels; NaN where too few are finite."""
    part = image[: ny * _BLOCK : _STEP, : nx * _BLOCK : _STEP]
    side = _BLOCK // _STEP
    blocks = part.reshape(ny, side, nx, side).swapaxes(1, 2).reshape(ny, nx, side**2)
    missing = ~np.isfinite(blocks)
    if missing.any():
        counts = side**2 - np.count_nonzero(missing, axis=2)
        sums = np.where(missing, 0, blocks).sum(axis=2, dtype=np.float64)
        mean = np.where(counts > side, sums / np.maximum(counts, 1), np.nan)
        blocks = np.where(missing, mean[..., None], blocks)
    level = np.median(blocks, axis=2)
    return level, MAD_TO_SIGMA * np.median(np.abs(blocks - level[..., None]), axis=2)


def _is_sharp(pixels: Array, inside: Array, depth: float) -> bool:
    """Whether a region's edge inside the frame is as sharp as a detector's."""
    within = scipy.ndimage.distance_transform_edt(inside)
    beyond = scipy.ndimage.distance_transform_edt(~inside)
    first = (within > _NEAR) & (within <= _FAR)
    second = (beyond > _NEAR) & (beyond <= _FAR)
    if not first.any() or not second.any():
        return False
    return bool(np.median(pixels[second]) - np.median(pixels[first]) > _SHARP * depth)
