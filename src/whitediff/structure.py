"""Noise where structured emission fills the field: it is told at the highest frequencies.

Nebulae, cirrus and unresolved stars have the PSF's band, beyond which nothing but noise is left.
The scatter of pixels holds both.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft

__all__ = ["HighFrequencies", "high_frequencies"]

type Array = npt.NDArray[Any]

_BLOCK, _STEP = 32, 16
_BANDS = (2.4, 2.75, 3.1)
"""Radians per pixel at which the bands begin that must hold the same power.  The last one reaches
into the corners, where interpolated images have the least."""
_INSIDE = (0.3, 1.6)
"""Band that holds the light of sources."""
_AXES = 0.3
"""Radians per pixel from an axis within which bad columns and patterns of the readout lie."""
_MOST_BLOCKS, _LEAST_BLOCKS = 400, 12
_KEPT = 0.5
_FLAT = 0.08
"""Relative difference of the power in two bands of white noise, beyond three errors."""
_EXCESS, _USUAL_EXCESS = 2.5, 1.4
"""Scatter's variance over that at high frequencies from which structure is the cause: noise that a
resampling has correlated reaches 1.8.  Of all blocks, some of which hold structure as fine, less
will do."""
_SURELY = 0.05
"""Relative difference of a variance from a predicted one, and of a scatter that is more."""


@dataclasses.dataclass(frozen=True)
class HighFrequencies:
    """What the power at high frequencies tells of an image's noise.

    Attributes
    ----------
    factor
        Power over what the variance predicts, the mean over blocks with the least light.
    usual_factor
        The same over all blocks, without outliers.
    level
        Mean of the image in the blocks with the least light, image unit.
    error
        Relative, of `factor`.
    """

    factor: float
    usual_factor: float
    level: float
    error: float

    def contradicts(self, scatter: float) -> bool:
        """Whether a scatter is that of structure, not of noise.

        Parameters
        ----------
        scatter
            Variance of source-free pixels, in the unit of the factors.

        Returns
        -------
        contradicts
            The scatter is more than 2.5 times the factor, and 1.4 times the usual one.
        """
        return scatter > max(_EXCESS * self.factor, _USUAL_EXCESS * self.usual_factor)

    def confirms(self, scatter: float) -> bool:
        """Whether the variance predicts the noise, and pixels scatter more than that.

        Parameters
        ----------
        scatter
            Variance of source-free pixels, in the unit of the factors.

        Returns
        -------
        confirms
            The usual factor is 1 within a twentieth, and the scatter larger than 1 and than that
            by more than a twentieth and three errors: what is in excess are faint sources and
            emission.  (Of noise that a resampling has correlated, too little is at high
            frequencies, and the scatter is no more than predicted.)
        """
        beyond = 1 + _SURELY + 3 * self.error
        if abs(self.usual_factor - 1) > _SURELY:
            return False
        return scatter > beyond * max(1.0, self.usual_factor)


def high_frequencies(
    image: Array, usable: Array, variance: Array | None = None
) -> HighFrequencies | None:
    """Measure noise at frequencies that a PSF lets nothing through at.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    usable
        ``(ny, nx)`` boolean: pixels that hold a measurement.
    variance
        ``(ny, nx)`` to compare with, image_unit²; None: 1 everywhere.

    Returns
    -------
    found
        None where that cannot be told: there are too few whole blocks, or the power still falls
        at the highest frequencies, as that of sharp stars or of correlated noise does.

    Notes
    -----
    Blocks of 32 pixels, less a plane, under a Hann window w: for independent noise the power is
    Σ w² V at every frequency.  Half of the blocks are kept: those with the least power where
    sources have theirs, which tells nothing of the noise elsewhere.
    """
    corners = _corners(usable)
    if len(corners) < _LEAST_BLOCKS:
        return None
    blocks = _taken(image, corners).astype(np.float64)
    profile = np.hanning(_BLOCK + 2)[1:-1]
    window = np.outer(profile, profile)
    weight = window**2 / (window**2).sum()
    levels = np.einsum("nyx,yx->n", blocks, weight)
    expected = np.ones(len(blocks))
    if variance is not None:
        expected = np.einsum("nyx,yx->n", _taken(variance, corners), weight)
        known = (expected > 0) & np.isfinite(expected)
        blocks, levels, expected = blocks[known], levels[known], expected[known]
        if len(blocks) < _LEAST_BLOCKS:
            return None
    power = np.abs(scipy.fft.rfft2(_without_planes(blocks) * window)) ** 2
    power /= ((window**2).sum() * expected)[:, None, None]
    ky, kx = np.fft.fftfreq(_BLOCK) * 2 * np.pi, np.fft.rfftfreq(_BLOCK) * 2 * np.pi
    radius = np.hypot(ky[:, None], kx)
    clear = (np.abs(ky[:, None]) >= _AXES) & (kx >= _AXES)
    edges = [*_BANDS, np.inf]
    bands = [clear & (radius >= low) & (radius < high) for low, high in pairwise(edges)]
    inside = clear & (radius >= _INSIDE[0]) & (radius < _INSIDE[1])
    light = power[:, inside].mean(axis=1)
    dark = light <= np.quantile(light, _KEPT)
    found = [_usual(power[dark][:, band].mean(axis=1)) for band in bands]
    factors, errors = np.array(found).T
    if not (factors > 0).all():
        return None
    for k in (0, 1):
        difference = abs(factors[k] / factors[2] - 1)
        if difference > _FLAT + 3 * np.hypot(errors[k], errors[2]) / factors[2]:
            return None
    outside = np.logical_or.reduce(bands)
    factor, error = _usual(power[dark][:, outside].mean(axis=1))
    usual, _ = _usual(power[:, outside].mean(axis=1))
    # Mean over mean: noise rises in proportion to the level, in whatever way both scatter.
    return HighFrequencies(factor, usual, float(levels[dark].mean()), error / factor)


def _corners(usable: Array) -> Array:
    """First pixels (y, x) of blocks without an unusable pixel, ``(n, 2)``, all over the frame."""
    ny, nx = usable.shape
    if min(ny, nx) < _BLOCK:
        return np.zeros((0, 2), int)
    y, x = np.arange(0, ny - _BLOCK + 1, _STEP), np.arange(0, nx - _BLOCK + 1, _STEP)
    corners = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
    # More than are needed, since some are not whole.
    order = np.random.default_rng(0).permutation(len(corners))[: 4 * _MOST_BLOCKS]
    kept = [
        corner
        for corner in corners[np.sort(order)]
        if usable[corner[0] : corner[0] + _BLOCK, corner[1] : corner[1] + _BLOCK].all()
    ]
    step = max(1, -(-len(kept) // _MOST_BLOCKS))
    return np.array(kept[::step], int).reshape(-1, 2)


def _taken(image: Array, corners: Array) -> Array:
    views = np.lib.stride_tricks.sliding_window_view(image, (_BLOCK, _BLOCK))
    blocks: Array = views[corners[:, 0], corners[:, 1]]
    return blocks


def _without_planes(blocks: Array) -> Array:
    """Blocks less the plane that fits each best."""
    axis = np.arange(_BLOCK) - (_BLOCK - 1) / 2
    axis /= np.sqrt((axis**2).sum() * _BLOCK)
    mean = blocks.mean(axis=(1, 2))
    slope_y = np.einsum("nyx,y->n", blocks, axis)
    slope_x = np.einsum("nyx,x->n", blocks, axis)
    return (
        blocks
        - mean[:, None, None]
        - slope_y[:, None, None] * axis[:, None]
        - slope_x[:, None, None] * axis
    )


def _usual(values: Array) -> tuple[float, float]:
    """Mean without outliers, and its error; overlapping blocks count for a third."""
    kept = np.ones(len(values), bool)
    for _ in range(3):
        middle, scatter = np.median(values[kept]), np.std(values[kept])
        kept = np.abs(values - middle) <= 4 * scatter
    return float(values[kept].mean()), float(values[kept].std() * np.sqrt(3 / kept.sum()))
