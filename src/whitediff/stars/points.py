"""Sources of a small stamp: positions, widths and fluxes, and pairs between two stamps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics.stats import median_deviation

__all__ = ["Points", "find_points", "neighbour_variance", "pairs"]

type Array = npt.NDArray[Any]

_FEWEST_DIFFERENCES = 20
_SKY_SIGMAS = 3.0
"""Significance from which a pixel is not sky, when the noise is measured."""
_PEAK_SIGMAS, _MOST_PEAKS, _PEAK_HALF = 8.0, 20, 4
_PEAK_WHOLE = 0.9
"""Share of good pixels around a peak that is needed."""
_BELIEVED_SIGMA = (0.3, 6.0)
"""Range of the widths of sources, pixels; narrower ones are cosmic rays."""
_ITERATIONS = 7
_COMMON_REACH = 1.5
"""Largest distance between a source's positions on both stamps, pixels."""


@dataclasses.dataclass(frozen=True)
class Points:
    """Peaks of a stamp, each fitted with a Gaussian that is integrated over the pixels.

    Attributes
    ----------
    x, y
        ``(n,)`` positions, pixels.
    sigma
        ``(n,)`` widths, pixels.
    flux
        ``(n,)`` fluxes, image_unit.
    significance
        ``(n,)`` significance of the peak pixel.
    """

    x: Array
    y: Array
    sigma: Array
    flux: Array
    significance: Array

    def __len__(self) -> int:
        return len(self.x)

    def which(self, chosen: Array) -> Points:
        """Select some points.

        Parameters
        ----------
        chosen
            Boolean array or indices.

        Returns
        -------
        points
            Selected points.
        """
        return Points(*(getattr(self, f.name)[chosen] for f in dataclasses.fields(self)))


def neighbour_variance(image: Array, good: Array) -> float:
    """Noise variance of a stamp from differences of neighbouring pixels.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    good
        ``(ny, nx)`` boolean: pixels to use.

    Returns
    -------
    variance
        Variance of pixels that do not stand out, image_unit²; NaN if there are too few.
    """
    found = math.nan
    use = good
    for _ in range(2):
        differences = np.concatenate(
            [
                (image[:, 1:] - image[:, :-1])[use[:, 1:] & use[:, :-1]],
                (image[1:] - image[:-1])[use[1:] & use[:-1]],
            ]
        )
        if len(differences) < _FEWEST_DIFFERENCES:
            break
        # About 0, not their median: noise has no sign, and a slope does not change the median of
        # absolute values to first order.
        found = median_deviation(differences, about=0.0) ** 2 / 2
        middle = np.median(image[good])
        use = good & (image < middle + _SKY_SIGMAS * math.sqrt(found))
    return found


def find_points(image: Array, variance: Array, good: Array) -> Points:
    """Find the peaks of a stamp and fit their widths.

    Parameters
    ----------
    image
        ``(ny, nx)``, background level subtracted.
    variance
        ``(ny, nx)``, image_unit².
    good
        ``(ny, nx)`` boolean: pixels to use.

    Returns
    -------
    points
        Points fitted to the brightest 20 peaks above 8 σ at least 4 pixels from the edges, without
        those that miss over a tenth of the 9 × 9 pixels around them or are fitted badly.
    """
    half = _PEAK_HALF
    ny, nx = image.shape
    shown = np.where(good, image, -np.inf)
    padded = np.pad(shown, 1, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    is_peak = (shown == windows.max(axis=(2, 3))) & (image > _PEAK_SIGMAS * np.sqrt(variance))
    is_peak[:half] = is_peak[ny - half :] = False
    is_peak[:, :half] = is_peak[:, nx - half :] = False
    y, x = np.nonzero(is_peak)
    order = np.argsort(-image[y, x], kind="stable")[:_MOST_PEAKS]
    y, x = y[order], x[order]
    offsets = np.arange(-half, half + 1)
    rows, columns = y[:, None, None] + offsets[:, None], x[:, None, None] + offsets
    stamps, weight = image[rows, columns], good[rows, columns].astype(float)
    whole = weight.sum(axis=(1, 2)) > _PEAK_WHOLE * (2 * half + 1) ** 2
    y, x, stamps, weight = y[whole], x[whole], stamps[whole], weight[whole]
    if not len(y):
        return Points(*np.zeros((5, 0)))
    fitted = _fitted_gaussians(np.where(weight > 0, stamps, 0), weight)
    dx, dy, sigma, flux = fitted
    right = (np.abs(dx) < 1) & (np.abs(dy) < 1) & (flux > 0)
    right &= (sigma > _BELIEVED_SIGMA[0]) & (sigma < _BELIEVED_SIGMA[1])
    significance = image[y, x] / np.sqrt(variance[y, x])
    return Points(x + dx, y + dy, sigma, flux, significance).which(right)


def _fitted_gaussians(stamps: Array, weight: Array) -> tuple[Array, Array, Array, Array]:
    """Centre, width and flux of Gaussians integrated over the pixels, fitted by Gauss-Newton."""
    n, half = len(stamps), _PEAK_HALF
    edges = np.arange(-half, half + 2) - 0.5
    x, y, sigma = np.zeros(n), np.zeros(n), np.full(n, 1.0)
    flux = np.zeros(n)
    for _ in range(_ITERATIONS):
        bx, dbx, dsx = _integrated(edges, x, sigma)
        by, dby, dsy = _integrated(edges, y, sigma)
        profile = by[:, :, None] * bx[:, None, :]
        constant = np.ones_like(profile)
        linear = np.stack([profile, constant], axis=1)
        flux, level = _least_squares(linear, stamps, weight).T
        scale = flux[:, None, None]
        columns = np.stack(
            [
                profile,
                constant,
                scale * by[:, :, None] * dbx[:, None, :],
                scale * dby[:, :, None] * bx[:, None, :],
                scale * (dsy[:, :, None] * bx[:, None, :] + by[:, :, None] * dsx[:, None, :]),
            ],
            axis=1,
        )
        residual = stamps - scale * profile - level[:, None, None]
        step = _least_squares(columns, residual, weight)
        x = np.clip(x + np.clip(step[:, 2], -0.5, 0.5), -2, 2)
        y = np.clip(y + np.clip(step[:, 3], -0.5, 0.5), -2, 2)
        sigma = np.clip(sigma + np.clip(step[:, 4], -0.4, 0.4), 0.2, 8)
    return x, y, sigma, flux


def _integrated(edges: Array, centre: Array, sigma: Array) -> tuple[Array, Array, Array]:
    """Gaussian integrated over pixels, and its derivatives by centre and width: ``(n, pixels)``."""
    u = (edges - centre[:, None]) / sigma[:, None]
    cumulative = 0.5 * scipy.special.erf(u / math.sqrt(2))
    density = np.exp(-0.5 * u**2) / (math.sqrt(2 * math.pi) * sigma[:, None])
    return np.diff(cumulative), -np.diff(density), -np.diff(density * u)


def _least_squares(columns: Array, values: Array, weight: Array) -> Array:
    """Weighted least-squares coefficients ``(n, c)`` of columns ``(n, c, y, x)``."""
    n, c = columns.shape[:2]
    flat = (columns * weight[:, None]).reshape(n, c, -1)
    matrix = flat @ columns.reshape(n, c, -1).transpose(0, 2, 1)
    diagonal = np.einsum("nii->ni", matrix)
    diagonal += 1e-9 * np.maximum(diagonal, 1e-30)
    right = flat @ values.reshape(n, -1, 1)
    return np.linalg.solve(matrix, right)[:, :, 0]


def pairs(first: Points, second: Points) -> tuple[Array, Array]:
    """Find the sources that two stamps have in common.

    Parameters
    ----------
    first, second
        Sources of the two stamps.

    Returns
    -------
    first, second
        ``(n,)`` indices of pairs: each is the other's nearest, within 1.5 pixels.
    """
    if not len(first) or not len(second):
        return np.zeros(0, int), np.zeros(0, int)
    distance = np.hypot(first.x[:, None] - second.x, first.y[:, None] - second.y)
    nearest, own = distance.argmin(axis=1), np.arange(len(first))
    common = (distance[own, nearest] < _COMMON_REACH) & (distance.argmin(axis=0)[nearest] == own)
    return own[common], nearest[common]
