"""Shift between two images by cross-correlation, where there are too few stars."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics.stats import robust_sigma

__all__ = ["correlated_shift"]

type Array = npt.NDArray[Any]

_FAINTEST, _BRIGHTEST = 5.0, 100.0
"""Limits in units of the noise: fainter pixels count as zero, brighter ones as the upper limit."""
_SIGNIFICANT = 8.0
_ALIKE = 0.4
"""Least correlation coefficient of two images of the same field."""
_SECOND = 0.6
"""Largest height of a second peak over the first: between different fields all peaks are alike."""
_APART = 12
"""Pixels from the peak beyond which another peak may lie."""
_STEPS = 20
"""Positions per pixel at which the correlation's peak is sought."""


def correlated_shift(first: Array, second: Array, *, largest: float = 60.0) -> Array | None:
    """Shift that brings one image onto another.

    Parameters
    ----------
    first, second
        ``(ny, nx)`` images of one shape without their backgrounds, zero where there is no
        measurement.
    largest
        Largest shift along an axis, pixels.

    Returns
    -------
    shift
        ``(2,)`` (y, x): a source at p in the first image lies at p + shift in the second.  None
        unless a peak of the correlation is 8 times its scatter, stands alone, and is as high as for
        images that are alike.

    Notes
    -----
    Cross-correlation of the sources alone, by Fourier transformation, refined by its values
    between the pixels (Guizar-Sicairos et al. 2008).
    """
    shape = tuple(scipy.fft.next_fast_len(n + int(largest) + 1, real=True) for n in first.shape)
    spectra, power = [], 1.0
    for image in (first, second):
        part = _sources(image)
        if part is None:
            return None
        power *= float((part.astype(np.float64) ** 2).sum())
        spectra.append(scipy.fft.rfft2(part, shape))
    product = np.conj(spectra[0]) * spectra[1]
    surface = scipy.fft.irfft2(product, shape)
    reach = min(int(largest), *(n // 2 - 1 for n in shape))
    near = np.roll(surface, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    peak = np.array(np.unravel_index(int(np.argmax(near)), near.shape))
    scatter = robust_sigma(near)
    if not near[tuple(peak)] - np.median(near) > _SIGNIFICANT * max(scatter, 1e-300):
        return None
    y, x = np.mgrid[: near.shape[0], : near.shape[1]]
    others = near[np.hypot(y - peak[0], x - peak[1]) > _APART]
    height = near[tuple(peak)]
    if not height > _ALIKE * math.sqrt(power) or others.max(initial=0.0) > _SECOND * height:
        return None
    if (peak == 0).any() or (peak == 2 * reach).any():
        return None
    whole = peak - reach
    fine = (np.arange(-_STEPS, _STEPS + 1)) / _STEPS
    values = _between(product, shape, whole[0] + fine, whole[1] + fine)
    best = np.array(np.unravel_index(int(np.argmax(values)), values.shape))
    result: Array = whole + fine[best]
    return result


def _sources(image: Array) -> Array | None:
    use = image[image != 0]
    noise = robust_sigma(use) if use.size else 0.0
    if not noise > 0:
        return None
    clipped = np.clip(image / noise, 0, _BRIGHTEST)
    clipped[clipped < _FAINTEST] = 0
    return clipped if clipped.any() else None


def _between(product: Array, shape: tuple[int, ...], y: Array, x: Array) -> Array:
    """Inverse Fourier transform at positions between the pixels."""
    ny, nx = shape
    rows = np.exp(2j * math.pi * np.outer(y, scipy.fft.fftfreq(ny)))
    columns = np.exp(2j * math.pi * np.outer(scipy.fft.rfftfreq(nx), x))
    weight = np.full(product.shape[1], 2.0)
    weight[0] = 1.0
    if nx % 2 == 0:
        weight[-1] = 1.0
    result: Array = (rows @ (product * weight) @ columns).real
    return result
