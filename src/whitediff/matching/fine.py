"""A table finer than the pixels, from stars whose centres lie at many places between pixels.

One image of a star narrower than some 2.5 pixels does not show how the star looks when moved by
half a pixel.  Many stars do, whose centres lie differently (Anderson & King 2000).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics.threads import scipy_part

__all__ = ["FineTable", "fitted_rings", "fitted_table"]

type Array = npt.NDArray[Any]

_STEP = 0.5
"""Pixels between the table's knots."""
_ROUNDS = 6
"""Rounds of the estimate of how much stars differ from their profile; it settles within a tenth."""
_FIRST = 0.3
"""Difference, relative to the profile, that the first round assumes."""
_LEAST = 1e-4
"""Least difference, relative to the profile."""


@dataclasses.dataclass(frozen=True)
class FineTable:
    """Cubic spline of the offset from a star's centre, plus rings; zero far from the centre.

    Attributes
    ----------
    coefficients
        ``(m, m)`` coefficients of B-splines half a pixel apart, m odd, the middle one at the
        centre.
    rings
        ``(k,)`` values to add at distances of 0, 1, … pixels, linear in between and zero beyond.
    """

    coefficients: Array
    rings: Array = dataclasses.field(default_factory=lambda: np.zeros(1))

    def __call__(self, dx: Array, dy: Array) -> Array:
        """Values at offsets from the centre.

        Parameters
        ----------
        dx, dy
            Offsets in pixels; their shapes broadcast.

        Returns
        -------
        values
            Values in the broadcast shape.
        """
        middle = len(self.coefficients) // 2
        columns, rows = np.broadcast_arrays(dx / _STEP + middle, dy / _STEP + middle)
        result: Array = scipy.ndimage.map_coordinates(
            self.coefficients, [rows, columns], order=3, prefilter=False, mode="constant"
        )
        radius = np.hypot(*np.broadcast_arrays(dx, dy))
        result += np.interp(radius, np.arange(len(self.rings)), self.rings, right=0.0)
        return result


def fitted_rings(
    values: Array, weight: Array, profile: Array, radius: Array, *, first: float, off: float
) -> Array:
    """Fit the differences of stars from their profile in rings, each star with its own level.

    Parameters
    ----------
    values, weight, profile, radius
        ``(n, side, side)``: residuals of stars of unit flux, their inverse variances, each star's
        profile, and distances from its centre, pixels.
    first
        Distance, pixels, from which on pixels count; rings nearer than all of them are zero.
    off
        Expected difference (standard deviation) of a ring, relative to the profile.

    Returns
    -------
    rings
        ``(k,)`` as in `FineTable`.
    """
    count = math.floor(float(radius.max())) + 2
    normal, right = np.zeros((count, count)), np.zeros(count)
    level, expected = np.zeros(count), np.zeros(count)
    for each in zip(values, weight, profile, radius, strict=True):
        rest, weights, model, far = (part.ravel() for part in each)
        use = (weights > 0) & (far >= first)
        rest, weights, far = rest[use], weights[use], far[use]
        inner = np.floor(far).astype(int)
        part = far - inner
        columns = np.zeros((len(far), count))
        columns[np.arange(len(far)), inner] = 1 - part
        columns[np.arange(len(far)), inner + 1] = part
        weighed = columns * weights[:, None]
        total = max(float(weights.sum()), 1e-300)
        mean = weighed.sum(axis=0) / total
        normal += columns.T @ weighed - total * np.outer(mean, mean)
        right += weighed.T @ rest - mean * float(weights @ rest)
        level += columns.sum(axis=0)
        expected += columns.T @ model[use]
    known = level > 0
    usual = off * np.where(known, expected / np.where(known, level, 1), 0.0)
    known &= usual > 0
    result = np.zeros(count)
    inside = np.ix_(known, known)
    prior = np.diag(usual[known] ** -2)
    result[known] = np.linalg.solve(normal[inside] + prior, right[known])
    return result


def fitted_table(
    values: Array,
    weight: Array,
    dx: Array,
    dy: Array,
    profile_at: Callable[[Array, Array], Array],
    *,
    reach: float,
) -> FineTable:
    """Fit a table to the pixels of stars.

    Parameters
    ----------
    values, weight
        ``(n,)`` residuals of stars of unit flux, and their inverse variances, at least 0.
    dx, dy
        ``(n,)`` offsets of the pixels from their star's centre, pixels.
    profile_at
        The profile as a function of dx and dy; stars differ from it in proportion to it.
    reach
        Distance from the centre that the table covers, pixels.

    Returns
    -------
    table
        `FineTable`.  Its coefficients are taken as independent and normally distributed.  Their
        variance is the profile's square times a factor for each ring of one pixel; the factors
        are the most likely ones (expectation and maximisation; Dempster, Laird & Rubin 1977).
        The table is zero where the stars hold no information.
    """
    half = math.ceil(reach / _STEP)
    side = 2 * half + 1
    place = _STEP * (np.arange(side) - half)
    radius = np.hypot(place[:, None], place[None, :])
    inside = (radius <= reach).ravel()
    envelope = np.asarray(profile_at(place[None, :], place[:, None])).ravel()[inside]
    ring = np.floor(radius.ravel()[inside] + 0.5).astype(int)
    near = (np.hypot(dx, dy) <= reach) & (weight > 0)
    design = _design(dx[near], dy[near], half)[:, np.flatnonzero(inside)]
    weighed = design.multiply(weight[near][:, None]).tocsr()
    normal = (design.T @ weighed).toarray()
    right = weighed.T @ values[near]
    # Units of the profile, in which all coefficients of a ring have the same variance.
    normal *= envelope[:, None] * envelope
    right = right * envelope
    count = np.maximum(np.bincount(ring), 1)
    power = np.full(len(count), _FIRST**2)
    found = np.zeros(len(right))
    for _ in range(_ROUNDS):
        covariance = np.linalg.inv(normal + np.diag(1 / power[ring]))
        found = covariance @ right
        second = found**2 + np.diagonal(covariance)
        power = np.maximum(np.bincount(ring, second) / count, _LEAST**2)
    coefficients = np.zeros(side * side)
    coefficients[inside] = found * envelope
    return FineTable(coefficients.reshape(side, side))


def _design(dx: Array, dy: Array, half: int) -> scipy.sparse.csr_matrix:
    """Values of the B-splines at the pixels: sparse ``(n, side²)``."""
    side = 2 * half + 1
    rows, columns, weights = [], [], []
    (first_y, part_y), (first_x, part_x) = (_splines(d / _STEP + half) for d in (dy, dx))
    pixel = np.arange(len(dx))
    for j in range(4):
        for i in range(4):
            row, column = first_y + j, first_x + i
            held = (row >= 0) & (row < side) & (column >= 0) & (column < side)
            rows.append(pixel[held])
            columns.append((row * side + column)[held])
            weights.append((part_y[j] * part_x[i])[held])
    shape = (len(dx), side * side)
    indices = np.concatenate(rows), np.concatenate(columns)
    return scipy_part("sparse").csr_matrix((np.concatenate(weights), indices), shape=shape)


def _splines(at: Array) -> tuple[Array, Array]:
    """Index of the first of four B-splines that are not zero at places; their values ``(4, n)``."""
    whole = np.floor(at)
    t = at - whole
    u = 1 - t
    values = [u**3, 3 * t**3 - 6 * t**2 + 4, 3 * u**3 - 6 * u**2 + 4, t**3]
    return whole.astype(int) - 1, np.stack(values) / 6
