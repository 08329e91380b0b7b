"""Sources as they stand out of the noise, each star as one whatever its PSF looks like."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["extracted"]

type Array = npt.NDArray[Any]

_BRIGHT, _SHOWN, _FEWEST = 50.0, 25, 3
"""Signal-to-noise ratio from which on a source shows what a star looks like; how many show it, the
brightest, and at least."""
_MANY_SPLIT = 0.5
"""Of the bright sources: from there on that they are parts may be due to the PSF."""
_MERGED, _CUT_OFF = 1, 8
"""Flags of SEP: part of a blend; at the edge of the frame."""
_WHOLE = 1.0
"""Contrast of a part of a source at which nothing is one."""
_MARGIN = 3
_WIDENING, _MOST_WIDENINGS = 1.25, 12
_FIRST_WIDTH = 1.0
"""Of the filter, pixels: next after that of one pixel and its neighbours."""
_FILTER_REACH = 3.0


def extracted(image: Array, noise: Array, hole: Array, *, threshold: float) -> Array:
    """Sources above the noise.

    Parameters
    ----------
    image, noise
        ``(ny, nx)`` float32 without background, and standard deviations.
    hole
        ``(ny, nx)`` boolean: pixels without any value.
    threshold
        Standard deviations from which on pixels belong to a source.

    Returns
    -------
    sources
        Table of SEP (``sep.extract``).

    Notes
    -----
    Sources are told from their neighbours where there is a valley between them.  A PSF with two
    peaks has one, too: where most bright sources are parts, and a typical one of those that
    belong together has the valley, the image is smoothed until it has not.
    """
    found = _extract(image, threshold, noise, hole, None)
    bright = _significance(found, threshold) > _BRIGHT
    split = (found["flag"] & _MERGED) != 0
    if bright.sum() < _FEWEST or split[bright].mean() < _MANY_SPLIT:
        return found
    typical = _typical(image, noise, hole, threshold)
    if typical is None:
        return found
    width: float | None = None
    for _ in range(_MOST_WIDENINGS):
        if len(_extract(typical, threshold, 1.0, None, width)) <= 1:
            return found if width is None else _extract(image, threshold, noise, hole, width)
        width = _FIRST_WIDTH if width is None else _WIDENING * width
    return found


def _extract(
    image: Array,
    threshold: float,
    noise: Array | float,
    hole: Array | None,
    width: float | None,
    contrast: float = 0.005,
) -> Array:
    """Sources on an image that is smoothed by a Gaussian, or by SEP's own filter."""
    import sep

    # The plain filter: that which weighs every pixel by its noise takes three times as long.
    options: dict[str, Any] = {"filter_type": "conv", "deblend_cont": contrast}
    if width is not None:
        reach = math.ceil(_FILTER_REACH * width)
        profile = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
        options["filter_kernel"] = np.outer(profile, profile).astype(np.float32)
    result: Array = sep.extract(image, threshold, err=noise, mask=hole, **options)
    return result


def _significance(sources: Array, threshold: float) -> Array:
    """About the signal-to-noise ratios of sources, from what is above the threshold."""
    noise = np.maximum(sources["thresh"] / threshold, np.finfo(np.float32).tiny)
    result: Array = sources["flux"] / (noise * np.sqrt(np.maximum(sources["npix"], 1)))
    return result


def _typical(image: Array, noise: Array, hole: Array, threshold: float) -> Array | None:
    """Median of bright sources, whatever parts they have, in units of the noise.

    Each is centred on the middle of its light.  None where too few stand alone.
    """
    whole = _extract(image, threshold, noise, hole, None, _WHOLE)
    usable = (whole["flag"] & _CUT_OFF) == 0
    whole = whole[usable & (_significance(whole, threshold) > _BRIGHT)]
    whole = whole[np.argsort(-whole["flux"], kind="stable")]
    if len(whole) < _FEWEST:
        return None
    extent = np.maximum(whole["xmax"] - whole["xmin"], whole["ymax"] - whole["ymin"])
    half = int(np.median(extent)) // 2 + _MARGIN
    ny, nx = image.shape
    stamps, peaks = [], []
    for source in whole:
        column, row = round(float(source["x"])), round(float(source["y"]))
        if not (half <= column < nx - half and half <= row < ny - half):
            continue
        cut = np.s_[row - half : row + half + 1, column - half : column + half + 1]
        if hole[cut].any():
            continue
        stamp = image[cut] / float(np.median(noise[cut]))
        stamps.append(stamp / stamp.sum())
        peaks.append(float(stamp.sum()))
        if len(stamps) == _SHOWN:
            break
    if len(stamps) < _FEWEST:
        return None
    typical = np.median(stamps, axis=0) * np.median(peaks)
    return np.ascontiguousarray(typical, dtype=np.float32)
