"""Sources above the noise, each star as one source whatever the shape of the PSF."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..numerics.extraction import sep_sources

__all__ = ["extracted"]

type Array = npt.NDArray[Any]

_SHOWN, _FEWEST = 25, 3
"""Largest number of bright sources that show the shape of a star, and the smallest."""
_BRIGHT = 50.0
"""Approximate signal-to-noise ratio from which a source does so."""
_SHARED = 0.25
"""Quantile over these sources: three quarters have at least as much light at the same place."""
_ALIKE = 0.7
"""Flux, over the brightest part of a star, from which another part may be taken in its place."""
_LEAST_PART = 0.03
"""Smallest brightness of a part of a star, over the star's peak."""
_HALF = 20
"""Half of the side of a star's surroundings, pixels."""
_WIDENING, _MOST_WIDENINGS = 1.25, 12
_FIRST_WIDTH = 1.0
"""Width of the first Gaussian filter, pixels: the next after SEP's own, which has 3 × 3 pixels."""
_FILTER_REACH = 3.0
_NOISE_LEFT = 0.375
"""Standard deviation of white noise after SEP's own filter."""


def extracted(image: Array, noise: Array, hole: Array, *, threshold: float) -> Array:
    """Extract sources above the noise.

    Parameters
    ----------
    image, noise
        ``(ny, nx)`` float32 image without background, and standard deviations.
    hole
        ``(ny, nx)`` boolean: pixels without any value.
    threshold
        Standard deviations above which pixels belong to a source.

    Returns
    -------
    sources
        Table of SEP (``sep.extract``).

    Notes
    -----
    SEP separates sources with a valley between them.  A PSF with two peaks has such a valley, too.
    So if three quarters of the bright sources have a neighbour at the same place, the image is
    smoothed until they have none.
    """
    found = _extract(image, noise, hole, threshold)
    typical = _typical(image, noise, hole, found, threshold)
    if typical is None:
        return found
    threshold_of_parts = max(threshold, _LEAST_PART * float(typical.max()))
    width: float | None = None
    for _ in range(_MOST_WIDENINGS):
        if len(_extract(typical, 1.0, None, threshold_of_parts, width)) <= 1:
            if width is None:
                return found
            return _extract(image, noise, hole, threshold, _WIDENING * width)
        width = _FIRST_WIDTH if width is None else _WIDENING * width
    return found


def _extract(
    image: Array,
    noise: Array | float,
    hole: Array | None,
    threshold: float,
    width: float | None = None,
) -> Array:
    """Sources on an image that is smoothed by a Gaussian, or by SEP's own filter."""
    # The plain filter: SEP's filter that weights pixels by their noise takes three times as long.
    options: dict[str, Any] = {"filter_type": "conv"}
    if width is not None:
        reach = math.ceil(_FILTER_REACH * width)
        profile = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
        options["filter_kernel"] = np.outer(profile, profile).astype(np.float32)
        # More smoothing leaves less noise, so the threshold must be lower.
        left = float((profile**2).sum()) / float(profile.sum()) ** 2
        threshold *= min(1.0, left / _NOISE_LEFT)
    return sep_sources(image, threshold, err=noise, mask=hole, **options)


def _typical(
    image: Array, noise: Array, hole: Array, sources: Array, threshold: float
) -> Array | None:
    """Light that bright sources and their surroundings have in common, in units of the noise.

    None if too few sources are the brightest of their surroundings.
    """
    # Signal-to-noise ratio from the number of pixels above the threshold.
    unit = np.maximum(sources["thresh"] / threshold, np.finfo(np.float32).tiny)
    ratio = sources["flux"] / (unit * np.sqrt(np.maximum(sources["npix"], 1)))
    order = np.argsort(-sources["flux"], kind="stable")
    ny, nx = image.shape
    taken = np.zeros(len(sources), dtype=bool)
    stamps, fluxes = [], []
    for brightest in order[ratio[order] > _BRIGHT]:
        near = np.maximum(
            abs(sources["x"] - sources["x"][brightest]),
            abs(sources["y"] - sources["y"][brightest]),
        )
        if taken[near < _HALF].any():
            continue
        taken[brightest] = True
        # If parts of a star are about equally bright, the same one is taken for every star.
        alike = (near < _HALF) & (sources["flux"] > _ALIKE * sources["flux"][brightest])
        first = np.argmin(np.where(alike, sources["x"] + sources["y"], np.inf))
        source = sources[first]
        x, y = float(source["x"]), float(source["y"])
        column, row = round(x), round(y)
        if not (_HALF <= column < nx - _HALF and _HALF <= row < ny - _HALF):
            continue
        cut = np.s_[row - _HALF : row + _HALF + 1, column - _HALF : column + _HALF + 1]
        if hole[cut].any():
            continue
        stamp, flux = image[cut] / float(np.median(noise[cut])), float(source["flux"])
        stamps.append(stamp / flux)
        fluxes.append(flux)
        if len(stamps) == _SHOWN:
            break
    if len(stamps) < _FEWEST:
        return None
    typical = np.quantile(stamps, _SHARED, axis=0) * np.median(fluxes)
    return np.ascontiguousarray(typical, dtype=np.float32)
