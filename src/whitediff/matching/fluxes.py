"""How much brighter stars are in one image than in another, whatever their profiles."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FluxRatio", "flux_ratio"]

type Array = npt.NDArray[Any]

_GAP, _RING, _NARROWEST = 1.1, 1.7, 8.0
"""Inner and outer radius of the ring around an aperture, over the aperture's, and the least width
of it in pixels."""
_CLIP = 3.0
_PASSES = 4
_FEWEST = 3
_FAINTEST = 5.0
"""Least signal-to-noise ratio in the aperture."""


@dataclasses.dataclass(frozen=True)
class FluxRatio:
    """A ratio of fluxes, of many stars.

    Attributes
    ----------
    value
        Robust mean over the stars; NaN where these are too few.
    error
        Its standard deviation: from their noise, or from their scatter where that is larger.
    n_stars
        Number of stars behind it.
    """

    value: float
    error: float
    n_stars: int


def flux_ratio(
    source: Array,
    target: Array,
    source_variance: Array,
    target_variance: Array,
    missing: Array,
    sources: Array,
    x: Array,
    y: Array,
    *,
    radius: float,
    expected: Array,
) -> FluxRatio:
    """Ratio of stars' fluxes in two images to what is expected, by photometry in apertures.

    Parameters
    ----------
    source, target
        ``(ny, nx)``; the backgrounds may be anything smooth.
    source_variance, target_variance
        ``(ny, nx)``.
    missing
        ``(ny, nx)`` boolean: stars with such a pixel in their aperture are left out.
    sources
        ``(ny, nx)`` boolean: pixels with a source in either image, which tell no background.
    x, y
        ``(n,)`` 0-based positions, pixels.
    radius
        Of the aperture, pixels: wide enough for both profiles.
    expected
        ``(n,)`` target's flux over the source's.

    Returns
    -------
    ratio
        `FluxRatio`: what is measured over what is expected.

    Notes
    -----
    A star's background is the median of the ring around its aperture.  Stars beyond three
    standard deviations, of their own noise and of the scatter that all share, do not count.
    """
    planes = (source, source_variance), (target, target_variance)
    outer = max(_RING * radius, radius + _NARROWEST)
    reach = math.ceil(outer)
    ny, nx = source.shape
    offset = np.arange(-reach, reach + 1)
    fluxes, noises = [], []
    for column, row, factor in zip(x, y, expected, strict=True):
        i, j = round(float(column)), round(float(row))
        if not (reach <= i < nx - reach and reach <= j < ny - reach):
            continue
        part = np.s_[j - reach : j + reach + 1, i - reach : i + reach + 1]
        distance = np.hypot(offset[None, :] - (column - i), offset[:, None] - (row - j))
        inside, good = distance <= radius, ~missing[part]
        ring = (distance > _GAP * radius) & (distance <= outer) & good & ~sources[part]
        if not good[inside].all() or np.count_nonzero(ring) < np.count_nonzero(inside) / 4:
            continue
        flux, noise = np.array([_photometry(*plane, part, inside, ring) for plane in planes]).T
        fluxes.append(flux * (factor, 1))
        noises.append(noise * (factor, 1))
    return _robust_ratio(np.array(fluxes).reshape(-1, 2), np.array(noises).reshape(-1, 2))


def _photometry(
    image: Array, variance: Array, part: Any, inside: Array, ring: Array
) -> tuple[float, float]:
    pixels, noise = image[part].astype(np.float64), variance[part].astype(np.float64)
    # Pixels that were interpolated have no variance of their own.
    noise = np.where(np.isfinite(noise) & (noise > 0), noise, np.nan)
    if np.isnan(noise).all():
        noise = np.zeros_like(noise)
    n = np.count_nonzero(inside)
    level = float(np.median(pixels[ring]))
    square = n * np.nanmean(noise[inside]) + n**2 * np.nanmean(noise[ring]) / ring.sum()
    return float(pixels[inside].sum() - n * level), math.sqrt(square)


def _robust_ratio(fluxes: Array, noises: Array) -> FluxRatio:
    """Second of pairs of fluxes, of nearly the same, over the first."""
    # Said by one image alone, which stars count, and how much, would follow that image's noise.
    inverse = 1 / np.maximum(noises, 1e-6 * np.abs(fluxes)) ** 2
    brightness = (fluxes * inverse).sum(axis=1) / inverse.sum(axis=1)
    seen = brightness > _FAINTEST * np.sqrt(1 / inverse.sum(axis=1))
    if seen.sum() < _FEWEST:
        return FluxRatio(math.nan, math.nan, int(seen.sum()))
    (first, second), (noise, other) = fluxes[seen].T, noises[seen].T
    brightness = brightness[seen]
    keep = brightness >= np.median(brightness)
    ratio = float(np.median(second[keep] / first[keep]))
    shared = 0.0
    for _ in range(_PASSES):
        left, square = second - ratio * first, other**2 + (ratio * noise) ** 2
        # What their noise does not explain of how they scatter, all share.
        relative = (left / brightness)[keep]
        scatter = 1.4826 * float(np.median(np.abs(relative)))
        shared = max(0.0, scatter**2 - float(np.median((square / brightness**2)[keep])))
        square = square + shared * brightness**2
        keep = np.abs(left) <= _CLIP * np.sqrt(square)
        if keep.sum() < _FEWEST:
            return FluxRatio(math.nan, math.nan, int(keep.sum()))
        weight = np.where(keep, brightness / square, 0)
        ratio = float((weight @ second) / (weight @ first))
    chi_square = float((left[keep] ** 2 / square[keep]).sum()) / (keep.sum() - 1)
    error = math.sqrt(max(1.0, chi_square) * float(weight**2 @ square)) / abs(float(weight @ first))
    return FluxRatio(ratio, error, int(keep.sum()))
