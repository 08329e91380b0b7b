"""Choice of a kernel's basis, by stars that are left out of the fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics.covariance import coloured
from ..numerics.stats import robust_sigma
from ..stars.stamps import Stamps
from .basis import KernelBasis
from .design import FitOptions
from .normals import Normals
from .solve import held_out_coefficients
from .varying import residuals_of

__all__ = ["Trial", "detail_width", "is_better", "mean_moments", "tried"]

type Array = npt.NDArray[Any]

_LEAST_GAIN, _LEAST_SHARE = 30.0, 0.4
"""Gain that a richer basis must bring: in χ², and as a share of the χ² that the simpler basis
leaves beyond the noise."""

_FEWEST_BRIGHT, _FEWEST_TRIMMED = 3, 5
"""Least number of stars that count as bright; and number from which on the worst of them, which may
be a transient, is left out."""

_LEAST_TARGET = 1e-3
"""Least share of the target in a stamp's variance: rounding may leave none."""

_MOMENT_STEPS, _CONVERGED = 100, 1e-4


@dataclasses.dataclass(frozen=True)
class Trial:
    """Residuals that a basis leaves of stars to which it was not fitted.

    Attributes
    ----------
    squares
        ``(n,)`` χ² of every star's core.
    pixels
        ``(n,)`` number of pixels of every core that have weight.
    signal
        ``(n,)`` squared signal-to-noise ratio of every core.
    used
        ``(n,)`` boolean: stars that the basis describes well enough to be fitted.
    scale
        χ² per pixel around the cores: the noise variance in units of the weights' variance.
    """

    squares: Array
    pixels: Array
    signal: Array
    used: Array
    scale: float

    @property
    def reduced(self) -> float:
        """χ² per pixel of bright stars' cores, 1 for nothing but noise.

        The brighter half of the stars counts, at least three; from five on without the worst.
        """
        count = max(_FEWEST_BRIGHT, (len(self.signal) + 1) // 2)
        bright = np.argsort(-self.signal, kind="stable")[:count]
        bright = bright[self.pixels[bright] > 0]
        if len(bright) >= _FEWEST_TRIMMED:
            worst = np.argmax(self.squares[bright] / self.pixels[bright])
            bright = np.delete(bright, worst)
        pixels = float(self.pixels[bright].sum())
        return float(self.squares[bright].sum()) / (self.scale * pixels) if pixels else 1.0


def tried(
    stamps: Stamps,
    basis: KernelBasis,
    options: FitOptions,
    used: Array,
    normals: Normals,
    *,
    norm: float,
    radius: int,
) -> Trial:
    """Predict each star by a kernel from other stars, and measure the residuals of its core.

    Parameters
    ----------
    stamps, basis, options, normals
        As for `whitediff.matching.solve.fit_kernel`.
    used
        ``(n,)`` boolean: stars to be fitted.  The others are predicted, too.
    norm
        Squared norm of the kernel that the weights assume.  The residuals' variance follows from
        the kernels that are found: a kernel that deconvolves has more noise, which is no misfit,
        and it spreads a star's own noise in the source.
    radius
        Radius of the core, pixels.

    Returns
    -------
    trial
        `Trial`.

    Raises
    ------
    DataError
        If there are too few stars to leave any out.
    """
    local = held_out_coefficients(stamps, basis, options, used, normals=normals)
    residuals = residuals_of(stamps, local, basis)
    weight = _weights(stamps, local, basis, norm)
    size = stamps.target.shape[1]
    offset = np.arange(size) - size // 2
    core = np.hypot(offset[:, None], offset) <= radius
    light = stamps.target - local[:, -1, None, None]
    around = (weight > 0) & ~core
    scatter = (residuals * np.sqrt(weight))[around]
    scale = robust_sigma(scatter) ** 2 if scatter.size else 1.0
    weight *= core
    return Trial(
        squares=np.einsum("nij,nij,nij->n", weight, residuals, residuals),
        pixels=np.count_nonzero(weight, axis=(1, 2)).astype(float),
        signal=np.einsum("nij,nij,nij->n", weight, light, light),
        used=used,
        scale=scale if scale > 0 else 1.0,
    )


def _weights(stamps: Stamps, local: Array, basis: KernelBasis, norm: float) -> Array:
    """Inverse variances of stamps' differences made with these kernels; 0 where the weight is 0."""
    source = stamps.source_variance
    if source is None:
        return stamps.weight.copy()
    size, width = stamps.target.shape[1], source.shape[1]
    edge, inner = (width - size) // 2, slice(width - size, width)
    kernels = np.tensordot(local[:, :-1], basis.images, axes=1)
    grid = scipy.fft.next_fast_len(width, real=True)
    product = scipy.fft.rfft2(kernels**2, s=(grid, grid)) * scipy.fft.rfft2(source, s=(grid, grid))
    spread = scipy.fft.irfft2(product, s=(grid, grid), overwrite_x=True)[:, inner, inner]
    if stamps.source_noise is not None:
        # Correlated noise survives a kernel otherwise than white noise, which `spread` assumes.
        middle = kernels.mean(axis=0)
        correlated = coloured(middle[None], stamps.source_noise)
        spread *= float((correlated**2).sum() / (middle**2).sum())
    use = stamps.weight > 0
    variance = 1 / np.where(use, stamps.weight, 1)
    of_target = variance - norm * source[:, edge : edge + size, edge : edge + size]
    variance = np.maximum(of_target, _LEAST_TARGET * variance) + np.maximum(spread, 0)
    return np.where(use, 1 / variance, 0)


def is_better(trial: Trial, simpler: Trial) -> bool:
    """Whether a richer basis describes stars so much better that it is worth its freedom.

    Parameters
    ----------
    trial, simpler
        Trials of the richer and of the simpler basis with the same stamps.

    Returns
    -------
    better
        True if, over stars that either basis describes, χ² falls by more than 30, and by more
        than 40 % of the χ² that the simpler basis leaves beyond the noise; and if it also falls
        without the star that gains most, and for more than half of the brighter stars.
    """
    judged = (trial.used | simpler.used) & (simpler.pixels > 0)
    if not judged.any():
        return False
    gains = (simpler.squares / simpler.scale - trial.squares / trial.scale)[judged]
    left = float((simpler.squares / simpler.scale - simpler.pixels)[judged].sum())
    signal = simpler.signal[judged]
    bright = signal >= np.median(signal)
    return bool(
        gains.sum() > max(_LEAST_GAIN, _LEAST_SHARE * left)
        and gains.sum() > gains.max()
        and (gains[bright] > 0).mean() > 0.5
    )


def detail_width(images: Array) -> float:
    """Width of a typical star's finest detail.

    Parameters
    ----------
    images
        ``(n, size, size)`` stamps with a star in the middle of each.  Stars count by their light.

    Returns
    -------
    width
        Pixels: inverse root of the squared frequency, averaged with the star's power as weight.
        For a Gaussian, its σ; for a ring, 1.4 times the σ of its profile.
    """
    light = _mean_star(images)
    steep = sum(float((np.diff(light, axis=axis) ** 2).sum()) for axis in (0, 1))
    return float(np.sqrt((light**2).sum() / steep)) if steep > 0 else float("inf")


def _mean_star(images: Array) -> Array:
    """Sum of stamps, each less the level of its border."""
    size = images.shape[1]
    edge = np.ones((size, size), bool)
    edge[1:-1, 1:-1] = False
    light: Array = (images - np.median(images[:, edge], axis=1)[:, None, None]).sum(axis=0)
    return light


def mean_moments(images: Array) -> Array:
    """Second moments of a typical star, through a Gaussian window of its own shape.

    Parameters
    ----------
    images
        ``(n, size, size)`` stamps with a star in the middle of each, size odd.

    Returns
    -------
    moments
        ``(2, 2)`` xx, xy; xy, yy, pixel²; for a Gaussian, its second moments.  Stars count by
        their light.  The scatter of their middles within a pixel adds the same to both images of
        a pair.  NaN if no such window is found.

    Notes
    -----
    Bernstein & Jarvis 2002, section 3: the window is the fixed point of the iteration.
    """
    size = images.shape[1]
    light = _mean_star(images)
    offset = np.arange(size) - size // 2
    place = np.stack(np.meshgrid(offset, offset), axis=-1).reshape(-1, 2).astype(float)
    moments, middle = 4.0 * np.eye(2), np.zeros(2)
    for _ in range(_MOMENT_STEPS):
        away = place - middle
        form = np.einsum("ni,ij,nj->n", away, np.linalg.inv(moments), away)
        weight = light.ravel() * np.exp(-0.5 * form)
        total = weight.sum()
        if not total > 0:
            return np.full((2, 2), np.nan)
        step = 2 * (weight @ away) / total
        # A Gaussian seen through a window of its own shape has half its moments.
        found = 2 * (away * weight[:, None]).T @ away / total
        if not (np.linalg.det(found) > 0 and found[0, 0] > 0):
            return np.full((2, 2), np.nan)
        done = np.abs(found - moments).max() < _CONVERGED * np.trace(moments)
        moments, middle = found, middle + step
        if done:
            break
    return moments
