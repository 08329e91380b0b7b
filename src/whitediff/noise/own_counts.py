"""Variance planes made of the pixels' own counts, which follow the noise that they are to tell."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics.stats import ENOUGH_PIXELS, robust_sigma

__all__ = ["slope_of_own_noise", "without_own_noise"]

type Array = npt.NDArray[Any]

_LEAST_SHARE = 0.1
"""Standard deviation of a plane by its own pixels' noise, over the plane: that of 100 electrons.
Squared significances are 1.6 times its square too large."""
_NOISE_CLIP = 4.0
"""Standard deviations of a difference of neighbours, beyond which it is a source's."""
_FEWEST = 1000
"""Pairs of neighbours."""
_TOLD = 10.0
"""Errors of the slope."""
_EXPLAINED = 0.5
"""Of the scatter of a plane's differences, what its own pixels' noise makes."""
_SCALES = (6.0, 3.0, 1.5, 0.75)
"""Sigmas of Gaussians, pixels; the widest shows the sky."""
_SEEN, _SEEN_IN_PIXEL = 4.0, 5.0
"""Standard deviations from which light is what a narrower Gaussian, or the pixel, shows."""
_LEAST = 0.25
"""Of the smoothed plane: as small as a variance can become."""


def slope_of_own_noise(image: Array, variance: Array, usable: Array) -> float:
    """How a variance plane follows the noise of the pixels whose variance it is.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    variance
        ``(ny, nx)``, image_unit².
    usable
        ``(ny, nx)`` boolean: pixels with a value and a positive variance.

    Returns
    -------
    slope
        Image units of variance per image unit, 1/gain for a plane of the pixels' own counts; 0
        where the plane does not follow the noise, or by so little that it does no harm.
    """
    rows = slice(None, None, max(1, image.size // ENOUGH_PIXELS))
    left, right = np.s_[rows, :-1], np.s_[rows, 1:]
    both = usable[left] & usable[right]
    if np.count_nonzero(both) < _FEWEST:
        return 0.0
    of_image, of_plane = (
        np.subtract(plane[left][both], plane[right][both], dtype=np.float64)
        for plane in (image, variance)
    )
    level = float(np.median(variance[left][both]))
    scatter = robust_sigma(of_image)
    near = np.abs(of_image) < _NOISE_CLIP * scatter
    of_image, of_plane = of_image[near], of_plane[near]
    square = float(of_image @ of_image)
    if not square > 0 or not level > 0:
        return 0.0
    slope = float(of_image @ of_plane) / square
    rest = of_plane - slope * of_image
    error = math.sqrt(float(rest @ rest) / len(rest) / square)
    harms = slope * scatter / math.sqrt(2) > _LEAST_SHARE * level
    # A plane of means of a few pixels has noise that its own does not explain.
    is_own = slope**2 * square > _EXPLAINED * float(of_plane @ of_plane)
    return slope if harms and is_own and slope > _TOLD * error else 0.0


def without_own_noise(image: Array, variance: Array, usable: Array) -> Array | None:
    """Variance plane without what it has of the noise of its own pixels.

    Parameters
    ----------
    image, variance, usable
        As for `slope_of_own_noise`.

    Returns
    -------
    variance
        ``V − slope·(I − light)``, the light as wide Gaussians show it, or narrower ones where it
        stands out in these, or the pixel; None where the plane does not follow the noise.

    Notes
    -----
    A pixel that happens to have few counts has a small variance then, and both its significance
    and its weight are too large: squared significances are 1.35 in the mean for a sky of 6
    electrons.
    """
    slope = slope_of_own_noise(image, variance, usable)
    if not slope:
        return None
    # In units of the noise, which single precision holds.
    level, usual = float(np.median(image[usable])), float(np.median(variance[usable]))
    unit = math.sqrt(usual)
    light_seen = np.where(usable, (image - level) / unit, 0).astype(np.float32)
    known = np.where(usable, variance / usual, 0).astype(np.float32)
    light, noise, _ = _around(light_seen, known, usable, _SCALES[0])
    for wide, narrow in itertools.pairwise(_SCALES):
        seen, their_noise, share = _around(light_seen, known, usable, narrow)
        # Of the difference of two Gaussians' means of white noise.
        part = (1 / narrow**2 + 1 / wide**2 - 4 / (narrow**2 + wide**2)) / (4 * math.pi)
        stands_out = (seen - light) ** 2 > _SEEN**2 * part * their_noise
        # Twice smoothed, light is as much wider again: without that a star's core leaks.
        sharp = 2 * seen - _smoothed(np.where(usable, seen, 0), narrow) / share
        light = np.where(stands_out, sharp, light)
        noise = np.where(stands_out, their_noise, noise)
    rest, slope = light_seen - light, slope * unit / usual
    own = rest**2 > _SEEN_IN_PIXEL**2 * np.maximum(noise, slope * rest)
    cleaned = usual * np.maximum(known - slope * rest, _LEAST * noise)
    result: Array = np.where(usable & ~own, cleaned, variance).astype(variance.dtype)
    return result


def _around(
    image: Array, variance: Array, usable: Array, sigma: float
) -> tuple[Array, Array, Array]:
    """Means of usable pixels under a Gaussian, and the share of it that is usable."""
    share = np.maximum(_smoothed(usable.astype(np.float32), sigma), np.finfo(np.float32).tiny)
    return _smoothed(image, sigma) / share, _smoothed(variance, sigma) / share, share


def _smoothed(plane: Array, sigma: float) -> Array:
    result: Array = scipy.ndimage.gaussian_filter(plane, sigma, mode="constant", truncate=3)
    return result
