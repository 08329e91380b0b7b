"""Whether the variance plane is right at every brightness, and the noise white."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .measure import radial_power

__all__ = ["VarianceCalibration", "block_power", "variance_calibration"]

type Array = npt.NDArray[Any]

_BLOCK = 512
_LEAST_GOOD = 0.2
_MOST_CHOSEN = 4_000_000


@dataclasses.dataclass(frozen=True)
class VarianceCalibration:
    """Measured variance of pixels over their variance plane, in bins of the plane.

    Attributes
    ----------
    variance
        ``(n,)`` median of the plane in each bin, image_unit².
    ratio
        ``(n,)`` mean square of pixel/σ: 1 where the plane is right.
    error
        ``(n,)`` sampling error of the ratio, for white noise.
    pixels
        ``(n,)`` number of pixels in each bin.
    """

    variance: Array
    ratio: Array
    error: Array
    pixels: Array


def variance_calibration(
    image: Array,
    variance: Array,
    good: Array,
    *,
    bins: int = 10,
    spacing: str = "even",
    fewest: int = 200,
) -> VarianceCalibration:
    """Compare the scatter of pixels with their variance plane, for bins of the plane.

    Parameters
    ----------
    image
        ``(ny, nx)``, zero mean between the sources.
    variance
        ``(ny, nx)`` variance plane, image_unit².
    good
        ``(ny, nx)`` boolean: pixels to use.
    bins
        Number of bins.
    spacing
        ``even``: bins with as equal numbers of pixels as the plane's values allow;
        ``geometric``: bins of equal width in the logarithm of the variance.
    fewest
        Least number of pixels in a bin; emptier bins are left out.

    Returns
    -------
    calibration
        `VarianceCalibration`, measured on at most every fourth pixel of images from 16 million
        pixels on.  Bins with equal edges are merged.  Without bins if fewer than ``fewest``
        pixels are good.

    Notes
    -----
    Pixels are binned by their variance plane, not by their own values.  A plane that holds the
    photon noise of its own pixel is correlated with it: the ratio then falls with variance.
    """
    step = max(1, math.isqrt(image.size // _MOST_CHOSEN))
    image, variance, good = (plane[::step, ::step] for plane in (image, variance, good))
    good = good & np.isfinite(image) & np.isfinite(variance) & (variance > 0)
    plane = variance[good].astype(np.float64)
    if len(plane) < fewest:
        empty = np.zeros(0)
        return VarianceCalibration(empty, empty, empty, empty.astype(int))
    square = np.square(image[good], dtype=np.float64) / plane
    if spacing == "geometric":
        edges = np.unique(np.geomspace(plane.min(), plane.max(), bins + 1))
    else:
        edges = np.unique(np.quantile(plane, np.linspace(0, 1, bins + 1)))
    which = np.clip(np.searchsorted(edges, plane, side="right") - 1, 0, max(0, len(edges) - 2))
    count = np.bincount(which)
    sums = np.bincount(which, weights=square)
    enough = count >= fewest
    middle = np.array([np.median(plane[which == i]) for i in np.flatnonzero(enough)])
    return VarianceCalibration(
        variance=middle,
        ratio=sums[enough] / count[enough],
        # The square of a unit Gaussian deviate has the variance 2.
        error=np.sqrt(2 / count[enough]),
        pixels=count[enough],
    )


def block_power(image: Array, variance: Array, good: Array, bins: int = 40) -> tuple[Array, Array]:
    """Power spectrum of pixel/σ, averaged over blocks of an image.

    Parameters
    ----------
    image, variance
        ``(ny, nx)`` image and variance plane.
    good
        ``(ny, nx)`` boolean: source-free pixels; others count as zero.
    bins
        Number of annuli up to 0.5 cycles per pixel.

    Returns
    -------
    frequency, power
        ``(bins,)`` each, as from `whitediff.diagnostics.measure.radial_power`: mean over up to
        nine blocks of 512 pixels a side, spread over the frame (averaged periodogram, Bartlett
        1948).  The power is NaN if fewer than a fifth of the pixels of every block are good.
    """
    side = [min(_BLOCK, n) for n in image.shape]
    starts = [
        np.unique(np.linspace(0, n - size, 3).astype(int))
        for n, size in zip(image.shape, side, strict=True)
    ]
    total, weight = np.zeros(bins), 0
    frequency = (np.arange(bins) + 0.5) / bins * 0.5
    for y in starts[0]:
        for x in starts[1]:
            part = (slice(y, y + side[0]), slice(x, x + side[1]))
            use = good[part] & np.isfinite(image[part]) & (variance[part] > 0)
            n = int(use.sum())
            if n < _LEAST_GOOD * use.size:
                continue
            sigma = np.sqrt(np.where(use, variance[part], 1).astype(np.float64))
            _, power = radial_power(np.where(use, image[part], 0) / sigma, use, bins)
            total += n * power
            weight += n
    return frequency, total / weight if weight else np.full(bins, np.nan)
