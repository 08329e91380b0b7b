"""Weights of the original's pixels in resampled ones, and the noise covariance that follows.

A pixel of the resampled image is a weighted sum of pixels of the original.  Its neighbours are
sums of the same pixels, so that their noise is correlated.  `whitediff.alignment.reprojection`
applies these weights.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..numerics.covariance import NoiseCovariance
from ..numerics.polynomials import chebyshev_products

__all__ = [
    "AdaptiveKernel",
    "ResamplingKernel",
    "SplineKernel",
    "cardinal_spline",
    "half_lags",
    "lag_map",
    "padded_inverse",
    "polynomials_by_prediction",
    "resampled_covariance",
]

type Array = npt.NDArray[Any]

_POLE = math.sqrt(3) - 2
"""Pole of the filter that turns samples into the coefficients of a cubic spline."""

_SPLINE_REACH = 8
"""Pixels on each side beyond which the cardinal spline is below 3e-5."""

_SPLINE_FOOTPRINT = 3
_FOOTPRINT_WEIGHT = 0.01
"""Weight of a pixel, over all absolute weights, from which it counts as contributing."""

_SAME_PREDICTION = 1.02
"""Squared error of a prediction, over the least, up to which a lower order is preferred."""
_WORTHWHILE = 0.4
"""Squared error of a prediction, over a constant's, beyond which the constant is preferred."""


class ResamplingKernel(Protocol):
    """Weights of the original's pixels in a pixel of the resampled image."""

    def reach(self, jacobian: Array) -> int:
        """Pixels on each side of a position that hold all of the weight.

        Parameters
        ----------
        jacobian
            ``(..., 2, 2)`` derivatives of the position (y, x) in the original with respect
            to the position in the resampled image.

        Returns
        -------
        reach
            Pixels of the original.
        """

    def footprint(self, jacobian: Array) -> int:
        """Pixels on each side of a position that contribute more than 1 % of the weight.

        Parameters
        ----------
        jacobian
            As for `reach`.

        Returns
        -------
        footprint
            n, for pixels from ``floor(position) - n + 1`` to ``floor(position) + n``.
        """

    def weights(self, y: Array, x: Array, jacobian: Array, rows: Array, columns: Array) -> Array:
        """Weights of pixels in resampled ones.

        Parameters
        ----------
        y, x
            ``(n,)`` positions of resampled pixels in the original.
        jacobian
            ``(n, 2, 2)`` as for `reach`.
        rows, columns
            ``(n, k)`` pixels of the original.

        Returns
        -------
        weights
            ``(n, k, k)``; their sum over all pixels of the original is 1.
        """


def cardinal_spline(distance: Array) -> Array:
    """Cubic cardinal spline: interpolation by cubic splines of a single pixel of height 1.

    Parameters
    ----------
    distance
        Pixels, any shape.

    Returns
    -------
    values
        1 at 0 and 0 at all other whole numbers.

    Notes
    -----
    Unser, Aldroubi & Eden 1991, IEEE Trans. PAMI 13, 277: ``h(d) = √3 Σ_k z^|k| β³(d − k)``,
    ``z = √3 − 2``.
    """
    first = np.floor(distance)
    values = np.zeros(np.shape(distance))
    for k in (-1, 0, 1, 2):
        center = first + k
        away = np.abs(distance - center)
        spline = np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, np.maximum(2 - away, 0) ** 3 / 6)
        values += _POLE ** np.abs(center) * spline
    return math.sqrt(3) * values


@dataclasses.dataclass(frozen=True)
class SplineKernel:
    """Interpolation by cubic splines: `scipy.ndimage.map_coordinates` of order 3.

    Away from the edges it is a product of two cardinal splines, whatever the Jacobian: it
    takes samples, and averages nothing where the new pixels are larger.
    """

    def reach(self, jacobian: Array) -> int:
        """See `ResamplingKernel.reach`."""
        return _SPLINE_REACH

    def footprint(self, jacobian: Array) -> int:
        """See `ResamplingKernel.footprint`: 6 × 6 pixels; weights beyond are below 1 %."""
        return _SPLINE_FOOTPRINT

    def weights(self, y: Array, x: Array, jacobian: Array, rows: Array, columns: Array) -> Array:
        """See `ResamplingKernel.weights`."""
        along_y = cardinal_spline(rows - y[:, None])
        along_x = cardinal_spline(columns - x[:, None])
        return along_y[:, :, None] * along_x[:, None, :]


@dataclasses.dataclass(frozen=True)
class AdaptiveKernel:
    """Averaging with a Gaussian: `reproject.reproject_adaptive`, kernel Gaussian.

    Attributes
    ----------
    width
        Full width between the points ±1σ of the Gaussian, in units of the larger of the original's
        and the new pixel on each principal axis; 1.3 is σ = 0.65.
    region
        Side of the region that is sampled, in the same units.

    Notes
    -----
    DeForest 2004, Solar Phys. 219, 3: ``exp(−2|J⁻¹d|²/width²)`` over its sum, singular values
    of J below 1 raised to 1.
    """

    width: float = 1.3
    region: float = 5.0

    def __post_init__(self) -> None:
        if not (0 < self.width < self.region <= 16):
            raise ArgumentError(
                "An adaptive kernel needs a positive width, and a region that is larger and at most"
                f" 16 pixels; got {self.width:g} and {self.region:g}."
            )

    def _stretch(self, jacobian: Array) -> float:
        return max(1.0, float(np.linalg.norm(jacobian, ord=2, axis=(-2, -1)).max()))

    def reach(self, jacobian: Array) -> int:
        """See `ResamplingKernel.reach`."""
        return math.ceil(0.5 * self.region * self._stretch(jacobian)) + 1

    def footprint(self, jacobian: Array) -> int:
        """See `ResamplingKernel.footprint`."""
        sigma = self.width / 2
        # Distance at which the Gaussian, of unit integral over pixels, has fallen to that weight.
        power = -2 * math.log(_FOOTPRINT_WEIGHT * 2 * math.pi * sigma**2)
        distance = sigma * math.sqrt(max(power, 1.0))
        return math.ceil(min(distance, 0.5 * self.region) * self._stretch(jacobian))

    def weights(self, y: Array, x: Array, jacobian: Array, rows: Array, columns: Array) -> Array:
        """See `ResamplingKernel.weights`."""
        reach = self.reach(jacobian)
        around = np.arange(1 - reach, reach + 1)
        all_rows, all_columns = (np.floor(a)[:, None] + around for a in (y, x))
        total = self._profile(y, x, jacobian, all_rows, all_columns).sum(axis=(1, 2))
        profile = self._profile(y, x, jacobian, rows, columns)
        return profile / total[:, None, None]

    def _profile(self, y: Array, x: Array, jacobian: Array, rows: Array, columns: Array) -> Array:
        inverse, stretch = padded_inverse(jacobian)
        metric = np.einsum("nij,nik->njk", inverse, inverse)
        dy, dx = rows - y[:, None], columns - x[:, None]
        power = (
            (metric[:, 0, 0, None] * dy**2)[:, :, None]
            + (metric[:, 1, 1, None] * dx**2)[:, None, :]
            + 2 * (metric[:, 0, 1, None] * dy)[:, :, None] * dx[:, None, :]
        )
        profile = np.exp(-2 / self.width**2 * power)
        half = 0.5 * self.region * stretch[:, None]
        inside_y, inside_x = np.abs(dy) <= half, np.abs(dx) <= half
        profile *= inside_y[:, :, None] & inside_x[:, None, :]
        return profile


def padded_inverse(jacobian: Array) -> tuple[Array, Array]:
    """Inverse Jacobians with singular values of at most 1, as adaptive averaging uses them.

    Parameters
    ----------
    jacobian
        ``(n, 2, 2)``.

    Returns
    -------
    inverse
        ``(n, 2, 2)``.
    stretch
        ``(n,)`` largest singular value, at least 1.
    """
    left, values, right = np.linalg.svd(jacobian)
    values = np.maximum(values, 1)
    inverse = np.einsum("nki,nk,njk->nij", right, 1 / values, left)
    return inverse, values[:, 0]


def half_lags(max_lag: int) -> Array:
    """Lags of half a plane; the covariance at the opposite lags is the same.

    Parameters
    ----------
    max_lag
        Largest lag on each axis.

    Returns
    -------
    lags
        ``(n, 2)`` whole numbers (Δy, Δx), (0, 0) first.
    """
    y, x = (a.ravel() for a in np.mgrid[: max_lag + 1, -max_lag : max_lag + 1])
    half = (y > 0) | (x >= 0)
    y, x = y[half], x[half]
    order = np.argsort(np.maximum(np.abs(y), np.abs(x)), kind="stable")
    return np.column_stack([y[order], x[order]])


def lag_map(values: Array, lags: Array) -> Array:
    """Spread values at the lags of half a plane over the whole plane.

    Parameters
    ----------
    values
        ``(..., n)``.
    lags
        ``(n, 2)`` lags from `half_lags`.

    Returns
    -------
    image
        ``(..., 2L + 1, 2L + 1)``, point-symmetric, lag (0, 0) in the middle.
    """
    size = int(np.abs(lags).max(initial=0))
    image = np.zeros((*values.shape[:-1], 2 * size + 1, 2 * size + 1))
    image[..., size + lags[:, 0], size + lags[:, 1]] = values
    image[..., size - lags[:, 0], size - lags[:, 1]] = values
    return image


def resampled_covariance(
    kernel: ResamplingKernel,
    y: Array,
    x: Array,
    jacobian: Array,
    lags: Array,
    *,
    noise: NoiseCovariance | None = None,
) -> Array:
    """Covariance of resampled pixels with their neighbours.

    Parameters
    ----------
    kernel
        Weights of the original's pixels.
    y, x
        ``(n,)`` positions of the pixels in the original.
    jacobian
        ``(n, 2, 2)``, see `ResamplingKernel.reach`.
    lags
        ``(m, 2)`` whole numbers (Δy, Δx) of resampled pixels.
    noise
        Covariance of the original's noise; None for white.

    Returns
    -------
    covariance
        ``(n, m)`` per unit variance of the original's pixels.

    Notes
    -----
    ``C(Δ) = Σ_ij w_q(i) ρ(i − j) w_{q+JΔ}(j)``, with the map linear over the lags.
    """
    further = 0 if noise is None else noise.max_lag
    reach = kernel.reach(jacobian) + further
    around = np.arange(1 - reach, reach + 1)
    rows, columns = (np.floor(a)[:, None] + around for a in (y, x))
    own = kernel.weights(y, x, jacobian, rows, columns)
    if noise is not None and further:
        own = _correlated(own, noise.correlation)
    covariance = np.empty((len(y), len(lags)))
    for i, lag in enumerate(lags):
        step = jacobian @ lag
        others = kernel.weights(y + step[:, 0], x + step[:, 1], jacobian, rows, columns)
        covariance[:, i] = np.einsum("nyx,nyx->n", own, others)
    return covariance


def _correlated(weights: Array, correlation: Array) -> Array:
    """Weights convolved with a correlation, in windows that hold the result."""
    shape = tuple(n + correlation.shape[0] for n in weights.shape[1:])
    size = correlation.shape[0] // 2
    spectrum = np.fft.rfft2(weights, shape) * np.fft.rfft2(correlation, shape)
    full = np.fft.irfft2(spectrum, shape)
    ny, nx = weights.shape[1:]
    return full[:, size : size + ny, size : size + nx]


def polynomials_by_prediction(
    values: Array, u: Array, v: Array, *, largest_order: int, tolerance: float = 0.0
) -> tuple[Array, int]:
    """Polynomials of the order that best predicts values left out of the fit.

    Variations too fast for them, such as the moiré of two grids, come out as their mean.

    Parameters
    ----------
    values
        ``(n, m)``: m quantities at n positions.
    u, v
        ``(n,)`` positions from −1 to 1 in x and in y.
    largest_order
        Largest total order of the polynomials.
    tolerance
        Error of a prediction that is good enough: root of the sum of squares over the quantities.

    Returns
    -------
    coefficients
        ``(terms, m)`` in the order of `whitediff.numerics.polynomials.chebyshev_terms`.
    order
        The lowest order whose squared leave-one-out error (Allen 1974, PRESS) is within 2 % of the
        least, or within the tolerance; 0 where no error is below 0.4 times a constant's.
    """
    fits = []
    for order in range(largest_order + 1):
        design = chebyshev_products(order, u, v)
        if 2 * design.shape[1] > len(values):
            break
        basis, triangle = np.linalg.qr(design)
        projected = basis.T @ values
        leverage = np.minimum((basis**2).sum(axis=1), 1 - 1e-9)
        left = (values - basis @ projected) / (1 - leverage)[:, None]
        fits.append((float((left**2).sum()), np.linalg.solve(triangle, projected)))
    least = min(error for error, _ in fits)
    if least > _WORTHWHILE * fits[0][0]:
        return fits[0][1], 0
    # Rounding is no reason for a higher order.
    enough = max(
        _SAME_PREDICTION * least + 1e-12 * float((values**2).sum()), len(values) * tolerance**2
    )
    order = next(i for i, (error, _) in enumerate(fits) if error <= enough)
    return fits[order][1], order
