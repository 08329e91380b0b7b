"""Transformations between the pixels of two images: affine, and smooth fields of displacements."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Affine", "Correction", "Displacements", "fit_affine", "fit_change"]

type Array = npt.NDArray[Any]

_FLOOR = 0.02
"""Scatter, pixels, that even the centroids of the brightest stars have."""
_CLIP = 4.0
_CAUCHY = 2.0
"""Residuals beyond which a pair is an outlier, and at which it counts half.

Both in median residuals, or in errors if the median is smaller than its error."""
_ROUNDS = 10
_PARAMETERS = (0, 2, 4, 6)
"""Numbers of parameters: the identity, a shift, a similarity and an affine transformation."""
_REACH = 6.0
"""Distance from a star, in lengths of its Gaussian, beyond which that is below 1e-7."""


@dataclasses.dataclass(frozen=True)
class Affine:
    """An affine transformation of positions (y, x): ``matrix @ position + offset``.

    Attributes
    ----------
    matrix
        ``(2, 2)``.
    offset
        ``(2,)`` pixels.
    """

    matrix: Array
    offset: Array

    def __call__(self, yx: Array) -> Array:
        """Transform positions.

        Parameters
        ----------
        yx
            ``(n, 2)``.

        Returns
        -------
        yx
            ``(n, 2)``.
        """
        result: Array = yx @ self.matrix.T + self.offset
        return result

    @property
    def scale(self) -> float:
        """Factor by which lengths grow: the root of the factor for areas."""
        return math.sqrt(abs(float(np.linalg.det(self.matrix))))

    @property
    def rotation(self) -> float:
        """Angle from the x axis towards the y axis, degrees; if mirrored, with x mirrored back."""
        matrix = self.matrix * ([1, -1] if np.linalg.det(self.matrix) < 0 else [1, 1])
        return math.degrees(math.atan2(matrix[0, 1] - matrix[1, 0], matrix[0, 0] + matrix[1, 1]))

    def after(self, first: Affine) -> Affine:
        """Combine another transformation with this one.

        Parameters
        ----------
        first
            Transformation that is applied before this one.

        Returns
        -------
        both
            Combined transformation.
        """
        return Affine(self.matrix @ first.matrix, self.matrix @ first.offset + self.offset)

    @classmethod
    def identity(cls) -> Affine:
        """Transformation that changes nothing."""
        return cls(np.eye(2), np.zeros(2))


@dataclasses.dataclass(frozen=True)
class Displacements:
    """A smooth field of displacements: a sum of Gaussians of one length.

    Attributes
    ----------
    places
        ``(n, 2)`` positions (y, x), pixels.
    weights
        ``(n, 2)`` amplitudes (dy, dx) of the Gaussians, pixels.
    length
        Standard deviation of the Gaussians, pixels.
    """

    places: Array
    weights: Array
    length: float

    def at(self, y: Array, x: Array) -> tuple[Array, Array]:
        """Displacements and their derivatives at single places.

        Parameters
        ----------
        y, x
            ``(n,)`` pixels.

        Returns
        -------
        displacement
            ``(n, 2)``, (dy, dx).
        derivatives
            ``(n, 2, 2)``, derivatives of (dy, dx) with respect to (y, x).
        """
        away = np.stack([y, x], -1)[:, None, :] - self.places
        values = np.exp(-0.5 * (away**2).sum(axis=2) / self.length**2)
        slopes = -away * values[:, :, None] / self.length**2
        return values @ self.weights, np.einsum("nkj,ki->nij", slopes, self.weights)

    def on(self, rows: Array, columns: Array) -> Array:
        """Displacements on a grid.

        Parameters
        ----------
        rows, columns
            ``(ny,)``, ``(nx,)`` pixels.

        Returns
        -------
        displacement
            ``(2, ny, nx)``.
        """
        weights, along_y, along_x, _, _ = self._factors(rows, columns)
        return np.stack([(along_y * w) @ along_x.T for w in weights.T])

    def derivatives_on(self, rows: Array, columns: Array) -> Array:
        """Derivatives of the displacements on a grid.

        Parameters
        ----------
        rows, columns
            As for `on`.

        Returns
        -------
        derivatives
            ``(2, 2, ny, nx)``, derivatives of (dy, dx) with respect to (y, x).
        """
        weights, along_y, along_x, slope_y, slope_x = self._factors(rows, columns)
        return np.stack(
            [np.stack([(slope_y * w) @ along_x.T, (along_y * w) @ slope_x.T]) for w in weights.T]
        )

    def _factors(self, rows: Array, columns: Array) -> tuple[Array, Array, Array, Array, Array]:
        """Weights of Gaussians that reach a grid, their factors along y and x, and the slopes."""
        reach = _REACH * self.length
        near = np.ones(len(self.places), dtype=bool)
        for at, grid in zip(self.places.T, (rows, columns), strict=True):
            near &= (at > np.min(grid) - reach) & (at < np.max(grid) + reach)
        away = [
            np.asarray(grid, dtype=np.float64)[:, None] - at
            for grid, at in zip((rows, columns), self.places[near].T, strict=True)
        ]
        along = [np.exp(-0.5 * (a / self.length) ** 2) for a in away]
        slopes = [-a * b / self.length**2 for a, b in zip(away, along, strict=True)]
        return self.weights[near], along[0], along[1], slopes[0], slopes[1]


@dataclasses.dataclass(frozen=True)
class Correction:
    """Correction of the mapping between two images, measured on stars.

    Attributes
    ----------
    affine
        Transformation from assumed to true positions, pixels of the template.
    displacements
        Added to the affine correction, a function of the pixel of the science image; None for
        none.
    by_wcs
        Positions are assumed by the WCS; if False, both images are assumed on the same pixels.
    """

    affine: Affine
    displacements: Displacements | None = None
    by_wcs: bool = True


def fit_affine(
    first: Array, second: Array, error: Array, *, parameters: int = 6
) -> tuple[Affine, Array, float]:
    """Fit a transformation to pairs of positions, without outliers.

    Parameters
    ----------
    first, second
        ``(n, 2)`` positions, pixels.
    error
        ``(n,)`` error of each pair along each axis, pixels.
    parameters
        0 for the identity, 2 for a shift, 4 for a similarity (or its mirror image), 6 for any.

    Returns
    -------
    transformation
        Transformation from the first to the second positions.
    used
        ``(n,)`` boolean: pairs within 4 times the median residual, or 4 errors if that is more.
    scatter
        Weighted root mean square residual of these pairs along an axis, pixels.
    """
    sigma = np.hypot(error, _FLOOR)
    used = np.ones(len(first), dtype=bool)
    found, doubt = Affine.identity(), np.ones(len(first))
    for _ in range(_ROUNDS):
        found = _least_squares(first[used], second[used], (sigma * doubt)[used], parameters)
        away = np.abs(second - found(first)).max(axis=1) / sigma
        unit = max(1.0, float(np.median(away)))
        # Cauchy's weights, because blended stars may be off by any multiple of their errors.
        doubt = np.sqrt(1 + (away / (_CAUCHY * unit)) ** 2)
        kept = away < _CLIP * unit
        if kept.sum() >= max(3, parameters // 2):
            used = kept
    left, weight = (second - found(first))[used], sigma[used] ** -2
    scatter = math.sqrt(float((weight[:, None] * left**2).sum() / (2 * weight.sum())))
    return found, used, scatter


def _least_squares(first: Array, second: Array, sigma: Array, parameters: int) -> Affine:
    weight = sigma**-2 / (sigma**-2).sum()
    if parameters == 0:
        return Affine.identity()
    middle, other = weight @ first, weight @ second
    if parameters == 2:
        return Affine(np.eye(2), other - middle)
    p, q, root = first - middle, second - other, np.sqrt(weight)[:, None]
    if parameters == 6:
        matrix = np.linalg.lstsq(root * p, root * q, rcond=None)[0].T
        return Affine(matrix, other - matrix @ middle)
    # (y, x) as complex numbers y + ix: a similarity is a product, its mirror image one with the
    # conjugate.
    z, w = p[:, 0] + 1j * p[:, 1], q[:, 0] + 1j * q[:, 1]
    total = float(weight @ np.abs(z) ** 2)
    turns = [complex(np.sum(weight * w * a)) / max(total, 1e-300) for a in (np.conj(z), z)]
    mirrored = abs(turns[1]) > abs(turns[0])
    c, s = turns[mirrored].real, turns[mirrored].imag
    matrix = np.array([[c, s], [s, -c]]) if mirrored else np.array([[c, -s], [s, c]])
    return Affine(matrix, other - matrix @ middle)


def fit_change(
    first: Array, second: Array, error: Array, *, fewest: int = 0
) -> tuple[Affine, Array, float, int]:
    """Fit the transformation of as many parameters as the pairs support.

    Parameters
    ----------
    first, second, error
        As for `fit_affine`.
    fewest
        Smallest number of parameters.

    Returns
    -------
    transformation, used, scatter
        As from `fit_affine`.
    parameters
        0, 2, 4 or 6: the number with the least ``χ² + 2 p ln(2 n)``, for p parameters and n pairs:
        the Bayesian information criterion with twice its penalty.
    """
    _, used, scatter = fit_affine(first, second, error, parameters=_most(len(first), fewest))
    sigma = np.hypot(error, _FLOOR)[used]
    # Pairs that scatter more than their errors, for any reason, support fewer parameters.
    left = _whitened(first[used], second[used], sigma, _most(int(used.sum()), fewest))
    unit = max(1.0, float(np.median(np.abs(left))) / 0.6745)
    best = (math.inf, fewest)
    for parameters in _PARAMETERS:
        if parameters < fewest or parameters > _most(int(used.sum()), fewest):
            continue
        left = _whitened(first[used], second[used], sigma, parameters) / unit
        criterion = float((left**2).sum()) + 2 * parameters * math.log(2 * used.sum())
        best = min(best, (criterion, parameters))
    found, used, scatter = fit_affine(first, second, error, parameters=best[1])
    return found, used, scatter, best[1]


def _whitened(first: Array, second: Array, sigma: Array, parameters: int) -> Array:
    found = _least_squares(first, second, sigma, parameters)
    result: Array = (second - found(first)) / sigma[:, None]
    return result


def _most(pairs: int, fewest: int) -> int:
    """Largest number of parameters to try for a number of pairs, with some pairs to spare."""
    most = 6 if pairs >= 6 else 4 if pairs >= 3 else 2
    return max(most, fewest)
