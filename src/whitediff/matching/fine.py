"""A table finer than the pixels, of what stars at many places between them show.

Of a star that is narrower than some 2.5 pixels, one image does not tell what it looks like half a
pixel on.  Many stars do, whose centres lie differently (Anderson & King 2000).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import scipy.sparse

__all__ = ["FineTable", "fitted_table"]

type Array = npt.NDArray[Any]

_STEP = 0.5
"""Pixels between the table's knots."""
_ROUNDS = 6
"""Of the estimate of how far stars differ from their profile; it settles within a tenth."""
_FIRST = 0.3
"""Of the profile, what the first round takes that for."""
_LEAST = 1e-4
"""Of the profile, what it is at least."""


@dataclasses.dataclass(frozen=True)
class FineTable:
    """Cubic spline of the distance from a star's centre, zero far from it.

    Attributes
    ----------
    coefficients
        ``(m, m)`` of its B-splines, m odd, the middle one at the centre, half a pixel apart.
    """

    coefficients: Array

    def __call__(self, dx: Array, dy: Array) -> Array:
        """Values at distances from the centre.

        Parameters
        ----------
        dx, dy
            Pixels, of shapes that broadcast.

        Returns
        -------
        values
            Of the common shape.
        """
        middle = len(self.coefficients) // 2
        columns, rows = np.broadcast_arrays(dx / _STEP + middle, dy / _STEP + middle)
        result: Array = scipy.ndimage.map_coordinates(
            self.coefficients, [rows, columns], order=3, prefilter=False, mode="constant"
        )
        return result


def fitted_table(
    values: Array, weight: Array, dx: Array, dy: Array, knots: Array, *, reach: float
) -> FineTable:
    """Fit a table to the pixels of stars.

    Parameters
    ----------
    values, weight
        ``(n,)`` what is left of stars of unit flux, and its inverse variance, at least 0.
    dx, dy
        ``(n,)`` distances of the pixels from their star's centre.
    knots
        Function of dx and dy: the profile, from which stars differ in proportion to it.
    reach
        Pixels from the centre that the table covers.

    Returns
    -------
    table
        `FineTable`.  Its coefficients are taken as normally distributed, independent, with a
        variance that is the profile's square times a factor for each ring of one pixel; the
        factors are those that the stars make likeliest (expectation and maximisation; Dempster,
        Laird & Rubin 1977).  Where the stars tell nothing it is zero.
    """
    half = math.ceil(reach / _STEP)
    side = 2 * half + 1
    place = _STEP * (np.arange(side) - half)
    radius = np.hypot(place[:, None], place[None, :])
    inside = (radius <= reach).ravel()
    envelope = np.asarray(knots(place[None, :], place[:, None])).ravel()[inside]
    ring = np.floor(radius.ravel()[inside] + 0.5).astype(int)
    near = (np.hypot(dx, dy) <= reach) & (weight > 0)
    design = _design(dx[near], dy[near], half)[:, np.flatnonzero(inside)]
    weighed = design.multiply(weight[near][:, None]).tocsr()
    normal = (design.T @ weighed).toarray()
    right = weighed.T @ values[near]
    # In units of the profile, in which all coefficients are alike.
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
    """Values of the B-splines at the pixels: ``(n, side²)``."""
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
    return scipy.sparse.csr_matrix((np.concatenate(weights), indices), shape=shape)


def _splines(at: Array) -> tuple[Array, Array]:
    """First of the four B-splines that are not zero at a place, and their values ``(4, n)``."""
    whole = np.floor(at)
    t = at - whole
    u = 1 - t
    values = [u**3, 3 * t**3 - 6 * t**2 + 4, 3 * u**3 - 6 * u**2 + 4, t**3]
    return whole.astype(int) - 1, np.stack(values) / 6
