"""Ratio of stars' fluxes in two images, by photometry in apertures, whatever their profiles."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics.interpolation import patched
from ..numerics.polynomials import chebyshev_products
from ..numerics.stats import known_medians, median_deviation

__all__ = ["ComparedImages", "FluxRatio", "FluxTrend", "flux_ratio", "flux_ratios"]

type Array = npt.NDArray[Any]

_GAP, _RING, _NARROWEST = 1.1, 1.7, 8.0
"""Inner and outer radius of the ring around an aperture, over the aperture's radius; and least
difference of the outer radius and the aperture's, in pixels."""
_CHUNK = 64
"""Stars that are measured at a time."""
_CLIP = 3.0
_PASSES = 4
_FEWEST = 3
_FAINTEST = 5.0
"""Least signal-to-noise ratio in the aperture."""
_HIGHEST_TREND = 2
_BY_CHANCE = 1e-5
"""Probability, in an F test, below which a trend does not arise by chance."""
_FREE = 2
"""Least number of stars, for each term of a trend, beyond the terms: variable stars pull it."""
_LEAST_TREND = 0.03
"""Least spread of a trend, between the 5th and the 95th of a hundred stars, relative to the ratio:
where the PSF varies, apertures that miss its wings make up to 0.02."""


@dataclasses.dataclass(frozen=True)
class FluxTrend:
    """Smooth variation of a ratio of fluxes over the field.

    Attributes
    ----------
    spread
        Difference of the ratio between the 5th and the 95th of a hundred stars, over its mean.
    error
        Standard deviation of the spread.
    order
        Order of the polynomials in x and y that describe it: 1 or 2.
    """

    spread: float
    error: float
    order: int


@dataclasses.dataclass(frozen=True)
class FluxRatio:
    """Ratio of the fluxes of many stars.

    Attributes
    ----------
    value
        Robust mean over the stars; NaN where these are too few.
    error
        Standard deviation of the value: from the noise, or from the scatter if that is larger.
    n_stars
        Number of stars.
    trend
        Smooth variation over the field; None where it is less than 3 % or may be chance.
    """

    value: float
    error: float
    n_stars: int
    trend: FluxTrend | None = None


@dataclasses.dataclass(frozen=True)
class ComparedImages:
    """Two images on the same pixels, whose stars are compared.

    Attributes
    ----------
    source, target
        ``(ny, nx)``; any smooth background.
    source_variance, target_variance
        ``(ny, nx)`` variances.
    missing
        ``(ny, nx)`` boolean: stars with such a pixel in their aperture are left out.
    sources
        ``(ny, nx)`` boolean: pixels with a source in either image, which tell no background.
    source_bad, target_bad
        ``(ny, nx)`` boolean: pixels that are interpolated in apertures, and tell no background; a
        star inside a hole of them is left out.  None if there are none.
    """

    source: Array
    target: Array
    source_variance: Array
    target_variance: Array
    missing: Array
    sources: Array
    source_bad: Array | None = None
    target_bad: Array | None = None


def flux_ratio(
    images: ComparedImages, x: Array, y: Array, *, radius: float, expected: Array
) -> FluxRatio:
    """Ratio of stars' fluxes in two images, over the expected ratio, by photometry in apertures.

    Parameters
    ----------
    images, x, y, radius, expected
        As for `flux_ratios`.

    Returns
    -------
    ratio
        `FluxRatio`: measured ratio over the expected one.
    """
    return flux_ratios(images, x, y, radius=radius, expected=expected, within=(radius,))[0]


def flux_ratios(
    images: ComparedImages,
    x: Array,
    y: Array,
    *,
    radius: float,
    expected: Array,
    within: Sequence[float],
) -> list[FluxRatio]:
    """Ratios of stars' fluxes as from `flux_ratio`, within several radii.

    Parameters
    ----------
    images
        `ComparedImages`.
    x, y
        ``(n,)`` 0-based positions, pixels.
    radius
        Radius of the aperture, pixels: wide enough for both profiles.
    expected
        ``(n,)`` expected flux in the target over the flux in the source.
    within
        Radii of the parts of the aperture whose light is compared, pixels.

    Returns
    -------
    ratios
        `FluxRatio` for each radius: measured ratio over the expected one.

    Notes
    -----
    A star's background is the median of the ring around its aperture.  Stars beyond three
    standard deviations do not count; these include a star's own noise and a scatter common to all.
    """
    outer = max(_RING * radius, radius + _NARROWEST)
    reach = math.ceil(outer)
    ny, nx = images.source.shape
    i, j = np.round(x).astype(int), np.round(y).astype(int)
    whole = (i >= reach) & (i < nx - reach) & (j >= reach) & (j < ny - reach)
    which = np.flatnonzero(whole)
    parts = [
        _photometry(images, x[part], y[part], (radius, outer), within)
        for part in (which[k : k + _CHUNK] for k in range(0, max(len(which), 1), _CHUNK))
    ]
    kept, fluxes, squares = (np.concatenate(each, axis=-1) for each in zip(*parts, strict=True))
    which = which[kept]
    factor = np.stack([expected[which], np.ones(len(which))], axis=1)
    place = np.stack([2 * (x[which] + 0.5) / nx - 1, 2 * (y[which] + 0.5) / ny - 1], axis=1)
    found = []
    for flux, square in zip(fluxes, squares, strict=True):
        pairs = flux.T * factor, np.sqrt(square.T) * factor
        ratio = _robust_ratio(*pairs)
        if math.isfinite(ratio.value):
            ratio = dataclasses.replace(ratio, trend=_trend(*pairs, place, ratio.value))
        found.append(ratio)
    return found


def _photometry(
    images: ComparedImages,
    x: Array,
    y: Array,
    radii: tuple[float, float],
    within: Sequence[float],
) -> tuple[Array, Array, Array]:
    """Fluxes of stars in both images, and their variances, ``(k, 2, n)`` for k radii ``within``.

    Before them ``(m,)`` boolean: which stars these are.  Left out are stars with missing pixels in
    the aperture, or few in the ring around it; ``radii`` are those of the aperture and the ring.
    """
    radius, outer = radii
    reach = math.ceil(outer)
    offset = np.arange(-reach, reach + 1)
    i, j = (np.round(place).astype(int)[:, None, None] for place in (x, y))
    at = j + offset[:, None], i + offset
    distance = np.hypot(at[1] - x[:, None, None], at[0] - y[:, None, None])
    inside, good = distance <= radius, ~images.missing[at]
    ring = (distance > _GAP * radius) & (distance <= outer) & good & ~images.sources[at]
    kept = ~(inside & ~good).any(axis=(1, 2))
    cut = []
    for image, bad in (images.source, images.source_bad), (images.target, images.target_bad):
        pixels = image[at].astype(np.float64)
        cut.append(pixels)
        if bad is None:
            continue
        wrong = bad[at]
        ring &= ~wrong
        for k in np.flatnonzero((wrong & inside).any(axis=(1, 2)) & kept).tolist():
            pixels[k], hole = patched(pixels[k], wrong[k])
            kept[k] = not (hole & inside[k]).any()
    count = np.count_nonzero(ring, axis=(1, 2))
    kept &= count >= np.count_nonzero(inside, axis=(1, 2)) / 4
    at = at[0][kept], at[1][kept]
    ring, count, distance = ring[kept], count[kept], distance[kept]
    fluxes = np.empty((len(within), 2, len(count)))
    squares = np.empty_like(fluxes)
    variances = images.source_variance, images.target_variance
    for which, (pixels, variance) in enumerate(zip(cut, variances, strict=True)):
        pixels, noise = pixels[kept], variance[at].astype(np.float64)
        # Pixels that were interpolated have no variance of their own.
        noise = np.where(np.isfinite(noise) & (noise > 0), noise, np.nan)
        noise[np.isnan(noise).all(axis=(1, 2))] = 0
        around = np.where(ring, pixels, np.nan).reshape(len(pixels), -1)
        pixels -= known_medians(around)[:, None, None]
        level_noise = _mean_of_known(noise, ring) / count
        for k, limit in enumerate(within):
            core = distance <= limit
            number = np.count_nonzero(core, axis=(1, 2))
            fluxes[k, which] = np.where(core, pixels, 0).sum(axis=(1, 2))
            squares[k, which] = number * _mean_of_known(noise, core) + number**2 * level_noise
    return kept, fluxes, squares


def _mean_of_known(values: Array, use: Array) -> Array:
    """Mean of each stamp's used values that are not NaN; NaN where there is none."""
    known = use & ~np.isnan(values)
    count = np.count_nonzero(known, axis=(1, 2))
    total = np.where(known, values, 0).sum(axis=(1, 2))
    result: Array = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return result


def _trend(fluxes: Array, noises: Array, places: Array, ratio: float) -> FluxTrend | None:
    """Smooth variation of the ratio of each pair's second flux to its first, of given mean."""
    (first, second), (noise, other) = fluxes.T, noises.T
    brightness = (ratio * first + second) / 2
    # The mean of both, so that neither one's noise decides which stars count.
    with np.errstate(divide="ignore", invalid="ignore"):
        value = (second - ratio * first) / brightness
        error = np.hypot(other, ratio * noise) / brightness
    seen = (brightness > 0) & (error < 1 / _FAINTEST)
    value, error, (x, y) = value[seen], error[seen], places[seen].T
    best: FluxTrend | None = None
    simpler = np.ones((len(value), 1))
    # Vignetting about the middle has one unknown, for which few stars suffice.
    radial = np.stack([np.ones_like(x), x**2 + y**2], axis=1)
    if (found := _significant(simpler, radial, value, error)) is not None:
        best = FluxTrend(*found, order=2)
    for order in range(1, _HIGHEST_TREND + 1):
        terms = chebyshev_products(order, x, y)
        if (found := _significant(simpler, terms, value, error)) is not None:
            best, simpler = FluxTrend(*found, order=order), terms
    return best if best is not None and best.spread > _LEAST_TREND else None


def _significant(
    simpler: Array, terms: Array, value: Array, error: Array
) -> tuple[float, float] | None:
    """Spread of a trend and its error; None if chance explains its gain over a simpler one."""
    fewest = _FREE * terms.shape[1]
    if len(value) < terms.shape[1] + fewest:
        return None
    weight = _trend_weights(terms, value, error)
    _, left, _ = _fitted(simpler, value, weight)
    solution, less, inverse = _fitted(terms, value, weight)
    free = np.count_nonzero(weight) - terms.shape[1]
    more = terms.shape[1] - simpler.shape[1]
    if free < fewest or not less > 0:
        return None
    if scipy.special.fdtrc(more, free, max(left - less, 0) / more / (less / free)) >= _BY_CHANCE:
        return None
    model = terms @ solution
    low, high = (int(np.argsort(model)[round(q * (len(model) - 1))]) for q in (0.05, 0.95))
    apart = terms[high] - terms[low]
    scale = math.sqrt(max(1.0, less / free) * float(apart @ inverse @ apart))
    return float(model[high] - model[low]), scale


def _trend_weights(terms: Array, value: Array, error: Array) -> Array:
    """Inverse variances of stars about a trend, with their common scatter; 0 for outliers."""
    weight = 1 / error**2
    for _ in range(_PASSES):
        solution, _, _ = _fitted(terms, value, weight)
        left = value - terms @ solution
        kept = weight > 0
        scatter = median_deviation(left[kept], about=0.0)
        shared = max(0.0, scatter**2 - float(np.median(error[kept] ** 2)))
        square = error**2 + shared
        weight = np.where(np.abs(left) <= _CLIP * np.sqrt(square), 1 / square, 0.0)
        if np.count_nonzero(weight) <= terms.shape[1]:
            break
    return weight


def _fitted(terms: Array, value: Array, weight: Array) -> tuple[Array, float, Array]:
    """Solution of weighted least squares, its chi-square, and its covariance."""
    inverse = np.linalg.pinv((terms * weight[:, None]).T @ terms, hermitian=True)
    solution = inverse @ (terms.T @ (weight * value))
    return solution, float(weight @ (value - terms @ solution) ** 2), inverse


def _robust_ratio(fluxes: Array, noises: Array) -> FluxRatio:
    """Ratio of each pair's second flux to its first; the fluxes of a pair are nearly equal."""
    # Both images say how bright a star is: one alone would select and weigh stars by its noise.
    inverse = 1 / np.maximum(noises, 1e-6 * np.abs(fluxes)) ** 2
    brightness = (fluxes * inverse).sum(axis=1) / inverse.sum(axis=1)
    seen = brightness > _FAINTEST * np.sqrt(1 / inverse.sum(axis=1))
    if seen.sum() < _FEWEST:
        return FluxRatio(math.nan, math.nan, int(seen.sum()))
    (first, second), (noise, other) = fluxes[seen].T, noises[seen].T
    brightness = brightness[seen]
    # Start from the brighter half, whose single ratios are the least noisy.
    keep = brightness >= np.median(brightness)
    ratio = float(np.median(second[keep] / first[keep]))
    shared = 0.0
    for _ in range(_PASSES):
        left, square = second - ratio * first, other**2 + (ratio * noise) ** 2
        # Scatter beyond the stars' noise is taken as common to all stars.
        relative = (left / brightness)[keep]
        scatter = median_deviation(relative, about=0.0)
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
