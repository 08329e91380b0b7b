"""Variance planes made from the pixels' own counts, which follow the noise they should predict."""

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
"""Scatter of a plane due to its pixels' own noise, relative, from which it does harm: it is that
of 100 electrons.  Squared significances are too large by 1.6 times its square."""
_NOISE_CLIP = 4.0
"""Standard deviations beyond which a difference of neighbours is due to a source."""
_FEWEST = 1000
"""Least number of pairs of neighbours."""
_TOLD = 10.0
"""Errors from which the slope is significant."""
_EXPLAINED = 0.5
"""Share of the variance of a plane's differences that its own pixels' noise must explain."""
_SCALES = (6.0, 3.0, 1.5, 0.75)
"""Sigmas of Gaussians, pixels; the widest shows the sky."""
_SEEN, _SEEN_IN_PIXEL = 4.0, 5.0
"""Standard deviations from which the light of a narrower Gaussian, or of the pixel, counts."""
_LEAST = 0.25
"""Smallest variance of a cleaned pixel, as a share of the smoothed plane."""


def slope_of_own_noise(image: Array, variance: Array, usable: Array) -> float:
    """Slope with which a variance plane follows the noise of its own pixels.

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
        Variance per image unit, image_unit; 1/gain for a plane of the pixels' own counts.  0 where
        the plane does not follow the noise, or by too little to do harm.
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
    # A plane smoothed over a few pixels has noise that the pixel's own does not explain.
    is_own = slope**2 * square > _EXPLAINED * float(of_plane @ of_plane)
    return slope if harms and is_own and slope > _TOLD * error else 0.0


def without_own_noise(image: Array, variance: Array, usable: Array) -> Array | None:
    """Variance plane without the noise of its own pixels.

    Parameters
    ----------
    image, variance, usable
        As for `slope_of_own_noise`.

    Returns
    -------
    variance
        ``V − slope·(I − light)``.  The light comes from a wide Gaussian, or from a narrower one or
        the pixel where it stands out there.  None where the plane does not follow the noise.

    Notes
    -----
    In such a plane, a pixel with few counts by chance has a small variance, so its significance
    and weight are too large: for a sky of 6 electrons, the mean squared significance is 1.35.
    """
    slope = slope_of_own_noise(image, variance, usable)
    if not slope:
        return None
    # In units of the noise, since an image's own may leave the range of single precision.
    level, usual = float(np.median(image[usable])), float(np.median(variance[usable]))
    unit = math.sqrt(usual)
    light_seen = np.where(usable, (image - level) / unit, 0).astype(np.float32)
    known = np.where(usable, variance / usual, 0).astype(np.float32)
    light, noise, _ = _around(light_seen, known, usable, _SCALES[0])
    for wide, narrow in itertools.pairwise(_SCALES):
        seen, their_noise, share = _around(light_seen, known, usable, narrow)
        # Variance of the difference between two Gaussians' means of white noise.
        part = (1 / narrow**2 + 1 / wide**2 - 4 / (narrow**2 + wide**2)) / (4 * math.pi)
        stands_out = (seen - light) ** 2 > _SEEN**2 * part * their_noise
        # Smoothing widens light, and a star's core would count as noise: smoothing twice tells
        # by how much.
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
    """Means of both planes' usable pixels under a Gaussian, and its share of usable pixels."""
    share = np.maximum(_smoothed(usable.astype(np.float32), sigma), np.finfo(np.float32).tiny)
    return _smoothed(image, sigma) / share, _smoothed(variance, sigma) / share, share


def _smoothed(plane: Array, sigma: float) -> Array:
    result: Array = scipy.ndimage.gaussian_filter(plane, sigma, mode="constant", truncate=3)
    return result
