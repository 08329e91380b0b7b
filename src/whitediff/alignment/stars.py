"""Lists of an image's sources with their centroids."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from ..numerics.extraction import sep_sources
from ..numerics.stats import half_sample_mode, robust_sigma

__all__ = ["StarList", "centroids", "find_stars"]

type Array = npt.NDArray[Any]

_DETECTION_THRESHOLD = 5.0
_MOST = 400
_NOISE_PIXELS = 1_000_000
"""Pixels enough to know the scatter of an image to a part in a thousand; sorting all of them would
take longer than finding the sources."""
_HALF_LIGHT_TO_SIGMA = 0.849
"""Standard deviation of a Gaussian over its half-light radius, 1/√(2 ln 2)."""
_SMALLEST_RADIUS = 0.7
"""Least half-light radius of a star: a hot pixel has 0.4, a star of 0.7 pixels (sigma) 0.9."""
_SMALLEST_MINOR_AXIS = 0.55
"""Least second moment of a star: across a cosmic ray's track it is about 0.3 pixels, across a star
of 0.7 pixels (sigma) 0.65."""
_SHARP = 0.6
"""Half-light radius, over the stars', up to which a source is no star."""
_CENTROID_ERROR = 1.3
"""Error of a centroid times the signal-to-noise ratio over the width of the star."""
_WIDE = 1.25
_DOUBTFUL = 1.5
"""Factor on the error of a source that is blended or wider than the stars by a quarter."""
_FLOOR = 0.02
"""Error of the best centroids, pixels."""


@dataclasses.dataclass(frozen=True)
class StarList:
    """Sources of an image, the likely stars first, each kind by brightness.

    Attributes
    ----------
    yx
        ``(n, 2)`` centroids (y, x), pixels, the first pixel's centre at 0.
    flux
        ``(n,)`` fluxes, image unit.
    error
        ``(n,)`` error of a centroid along each axis, pixels.
    sigma
        Width of a star, pixels.
    likely
        Number of sources that do not have the shape of a cosmic ray or hot pixel.
    """

    yx: Array
    flux: Array
    error: Array
    sigma: float
    likely: int

    def __len__(self) -> int:
        return len(self.flux)

    def brightest(self, n: int) -> StarList:
        """The first n sources.

        Parameters
        ----------
        n
            Largest number.

        Returns
        -------
        stars
            `StarList`.
        """
        return dataclasses.replace(
            self,
            yx=self.yx[:n],
            flux=self.flux[:n],
            error=self.error[:n],
            likely=min(self.likely, n),
        )


def find_stars(flat: Array, bad: Array, *, most: int = _MOST) -> StarList:
    """Find sources and their centroids.

    Parameters
    ----------
    flat
        ``(ny, nx)`` float32 image without its background.
    bad
        ``(ny, nx)`` boolean: pixels without a measurement.
    most
        Largest number of sources.

    Returns
    -------
    stars
        `StarList` of sources above 5 times the scatter of the image; sources whose shape is that
        of a cosmic ray or hot pixel come last.

    Notes
    -----
    By SEP (Barbary 2016; Bertin & Arnouts 1996).  Its windowed centroids agree between images of
    different PSFs, if both PSFs are symmetric.
    """
    import sep

    flat = np.ascontiguousarray(flat, dtype=np.float32)
    rows = slice(None, None, max(1, flat.size // _NOISE_PIXELS))
    use = flat[rows][~bad[rows]]
    if not use.size:
        use = flat[~bad]
    noise = robust_sigma(use) if use.size else 0.0
    if not noise > 0:
        return StarList(np.empty((0, 2)), np.empty(0), np.empty(0), 1.0, 0)
    found = sep_sources(flat, _DETECTION_THRESHOLD, err=noise, mask=bad)
    found = found[np.argsort(-found["flux"], kind="stable")][: 2 * most]
    if not len(found):
        return StarList(np.empty((0, 2)), np.empty(0), np.empty(0), 1.0, 0)
    x, y = found["x"], found["y"]
    aperture = 3 * float(np.median(np.sqrt(found["a"] * found["b"]))) + 2
    flux, error, _ = sep.sum_circle(flat, x, y, aperture, err=noise, mask=bad)
    radius, _ = sep.flux_radius(flat, x, y, np.full(len(x), 1.5 * aperture), 0.5, subpix=5)
    likely = (radius > _SMALLEST_RADIUS) & (found["b"] > _SMALLEST_MINOR_AXIS) & (flux > 0)
    sigma = 1.0
    if likely.any():
        bright = likely & (flux >= np.median(flux[likely]))
        locus = half_sample_mode(radius[bright])
        likely &= radius > _SHARP * locus
        sigma = float(locus) * _HALF_LIGHT_TO_SIGMA
    order = np.lexsort((-flux, ~likely))[:most]
    x, y = x[order], y[order]
    new_x, new_y = centroids(flat, x, y, sigma, bad)
    x, y = np.where(np.isfinite(new_x), new_x, x), np.where(np.isfinite(new_y), new_y, y)
    flux, ratio = flux[order], flux[order] / error[order]
    # The centroid of a wide source is known less well, and it may be two sources.
    width = np.maximum(sigma, _HALF_LIGHT_TO_SIGMA * radius[order])
    deviation = np.hypot(_CENTROID_ERROR * width**2 / sigma / np.maximum(ratio, 1), _FLOOR)
    deviation[(width > _WIDE * sigma) | (found["flag"][order] & sep.OBJ_MERGED > 0)] *= _DOUBTFUL
    return StarList(
        np.stack([y, x], 1), flux, deviation, sigma, int(np.count_nonzero(likely[order]))
    )


def centroids(flat: Array, x: Array, y: Array, sigma: float, bad: Array) -> tuple[Array, Array]:
    """Windowed centroids of sources.

    Parameters
    ----------
    flat
        ``(ny, nx)`` image without its background.
    x, y
        ``(n,)`` approximate positions, pixels.
    sigma
        Width of a star, pixels.
    bad
        ``(ny, nx)`` boolean: pixels without a measurement.

    Returns
    -------
    x, y
        ``(n,)``; NaN where the windowed centroid wanders off by more than 2 sigma and a pixel.
    """
    import sep

    new_x, new_y, _ = sep.winpos(flat, x, y, sigma, mask=bad)
    near = np.hypot(new_x - x, new_y - y) < 2 * sigma + 1
    return np.where(near, new_x, np.nan), np.where(near, new_y, np.nan)
