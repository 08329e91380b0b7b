"""Regions that no light reaches: amplifiers that are dead but for their read noise, overscan."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from ..stats import MAD_TO_SIGMA

__all__ = ["unlit_regions"]

type Array = npt.NDArray[Any]

_BLOCK, _STEP = 16, 2
_QUIET = 0.5
"""Noise over the image's, up to which a block may be unlit."""
_DARK = 5.0
"""Depth below the image's level, in its noise, from which it may be."""
_SMOOTHED = 5
_NEAR, _FAR = 3, 7
"""Pixels from an edge between which its two sides are compared."""
_SHARP = 0.7
"""Part of the depth that an edge has at least: those of dark clouds are soft."""
_GROWN = 2


def unlit_regions(image: Array, unusable: Array) -> Array | None:
    """Find regions with sharp edges that are darker than the image and have less noise.

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
    Blocks of 16 × 16 pixels with less than half of the noise of the median block, and five times
    that below its level, are where photons of the sky are missing. Edges that are not as sharp
    as a detector's are those of dark clouds. Of images whose sky was subtracted, nothing is found.
    """
    ny, nx = (n // _BLOCK for n in image.shape)
    if ny < 4 or nx < 4:
        return None
    level, noise = _blocks(image, ny, nx)
    known = np.isfinite(level) & (noise > 0)
    if np.count_nonzero(known) < known.size / 4:
        return None
    middle, usual = (float(np.median(plane[known])) for plane in (level, noise))
    dark = known & (noise < _QUIET * usual) & (level < middle - _DARK * usual)
    if not dark.any():
        return None
    unlit = np.zeros(image.shape, bool)
    # Lines beyond the last whole block belong to it.
    row, column = (
        np.minimum(np.arange(n) // _BLOCK, m - 1)
        for n, m in zip(image.shape, (ny, nx), strict=True)
    )
    regions, _ = scipy.ndimage.label(dark)
    for number, box in enumerate(scipy.ndimage.find_objects(regions), start=1):
        depth = middle - float(np.median(level[regions == number]))
        near = scipy.ndimage.binary_dilation(regions == number, np.ones((3, 3)))
        place = tuple(
            slice(max(0, (each.start - 1) * _BLOCK), (each.stop + 2) * _BLOCK) for each in box
        )
        pixels = image[place].astype(np.float64)
        pixels[~np.isfinite(pixels)] = middle
        smooth = scipy.ndimage.uniform_filter(pixels, _SMOOTHED, mode="nearest")
        inside = near[row[place[0]][:, None], column[place[1]]] & (smooth < middle - depth / 2)
        if _is_sharp(pixels, inside, depth):
            unlit[place] |= scipy.ndimage.binary_dilation(inside, iterations=_GROWN)
    unlit &= ~unusable
    return unlit if unlit.any() else None


def _blocks(image: Array, ny: int, nx: int) -> tuple[Array, Array]:
    """Level and noise of blocks, from a quarter of their pixels; NaN where there is none."""
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
    """Whether a region's edge is as sharp as a detector's, where it is within the frame."""
    within = scipy.ndimage.distance_transform_edt(inside)
    beyond = scipy.ndimage.distance_transform_edt(~inside)
    first = (within > _NEAR) & (within <= _FAR)
    second = (beyond > _NEAR) & (beyond <= _FAR)
    if not first.any() or not second.any():
        return False
    return bool(np.median(pixels[second]) - np.median(pixels[first]) > _SHARP * depth)
