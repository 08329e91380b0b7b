"""Stacks of small images, moved and smoothed by matrices.

Moving by a spline and smoothing are linear and separable: a matrix for the rows and one for the
columns does all of an image at once.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy

__all__ = ["grown_stamps", "shifted_stamps", "smoothed_stamps"]

type Array = npt.NDArray[Any]

_EDGE = 12
"""Pixels by which images are continued before a spline is fitted, as SciPy does."""


def shifted_stamps(
    stamps: Array,
    dy: Array,
    dx: Array,
    *,
    order: int,
    mode: Literal["nearest", "constant"] = "constant",
    half: int | None = None,
) -> Array:
    """Move images by parts of a pixel: `scipy.ndimage.shift` for each of a stack.

    Parameters
    ----------
    stamps
        ``(n, ny, nx)``.
    dy, dx
        ``(n,)`` rows and columns by which to move, pixels.
    order
        Of the spline, 2 to 5.
    mode
        What lies beyond an image: its nearest pixel, or 0.
    half
        If given, only the middle ``2 half + 1`` rows and columns are returned; sides must be odd.

    Returns
    -------
    moved
        ``(n, ny, nx)``, or ``(n, 2 half + 1, 2 half + 1)``, of the images' type.
    """
    ny, nx = stamps.shape[1:]
    along = _moves(ny, dy, order, mode, half, stamps.dtype)
    across = _moves(nx, dx, order, mode, half, stamps.dtype)
    return along @ stamps @ across.transpose(0, 2, 1)


def _moves(
    side: int, shift: Array, order: int, mode: str, half: int | None, dtype: np.dtype[Any]
) -> Array:
    """Matrices that move lines of pixels, ``(n, rows, side)``."""
    places = np.arange(side)
    if half is not None:
        places = places[side // 2 - half : side // 2 + half + 1]
    coefficients = _coefficients(side, order, mode)
    edge = (len(coefficients) - side) // 2
    place = places - np.asarray(shift, dtype=np.float64)[:, None]
    lost = (place < 0) | (place > side - 1)
    if mode == "nearest":
        lost[:] = False
    place = (place + edge).clip(0, len(coefficients) - 1)
    first = np.floor(place if order % 2 else place + 0.5).astype(int) - order // 2
    weights = _weights(place, first, order)
    weights[lost] = 0
    # Beyond its ends a spline goes on as in a mirror.
    knot = np.abs(first[..., None] + np.arange(order + 1))
    knot = np.where(knot >= len(coefficients), 2 * (len(coefficients) - 1) - knot, knot)
    spread = np.zeros((*place.shape, len(coefficients)), dtype)
    star, row = np.ogrid[: len(place), : place.shape[1]]
    for k in range(order + 1):
        spread[star, row, knot[..., k]] += weights[..., k]
    result: Array = spread @ coefficients.astype(dtype, copy=False)
    return result


@functools.lru_cache(maxsize=16)
def _coefficients(side: int, order: int, mode: str) -> Array:
    """Matrix from a line of pixels to the coefficients of its spline."""
    line = np.eye(side)
    if mode == "nearest":
        line = np.pad(line, ((_EDGE, _EDGE), (0, 0)), mode="edge")
    found: Array = scipy.ndimage.spline_filter1d(
        line, order, axis=0, mode="nearest" if mode == "nearest" else "mirror"
    )
    return found


def _weights(place: Array, first: Array, order: int) -> Array:
    """Values of the B-splines around each place, ``(…, order + 1)``."""
    distance = np.abs(place[..., None] - first[..., None] - np.arange(order + 1))
    # A B-spline is a sum of powers that begin at its knots (de Boor 1978).
    result = np.zeros(distance.shape)
    factor = 1.0
    for k in range(order + 2):
        begun = (order + 1) / 2 - k - distance
        result += factor * np.maximum(begun, 0) ** order
        factor *= -(order + 1 - k) / (k + 1)
    for k in range(2, order + 1):
        result /= k
    return result


def smoothed_stamps(stamps: Array, sigma: float) -> Array:
    """Smooth images by a Gaussian, cut off at 3 sigma; images are mirrored beyond their edges.

    Parameters
    ----------
    stamps
        ``(n, ny, nx)``.
    sigma
        Pixels.

    Returns
    -------
    smooth
        ``(n, ny, nx)``, of the images' type.
    """
    along, across = (
        scipy.ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0, truncate=3.0).astype(
            stamps.dtype, copy=False
        )
        for side in stamps.shape[1:]
    )
    return along @ stamps @ across.T


def grown_stamps(stamps: Array, reach: int) -> Array:
    """Grow marked pixels by a square of so many pixels to each side.

    Parameters
    ----------
    stamps
        ``(n, ny, nx)`` boolean.
    reach
        At least 0.

    Returns
    -------
    grown
        ``(n, ny, nx)`` boolean.
    """
    runs = np.pad(stamps, ((0, 0), (reach, reach), (reach, reach)))
    length, whole = 1, 2 * reach + 1
    while length < whole:
        # Runs of twice the length, or of what is left.
        step = min(length, whole - length)
        runs = runs[:, step:] | runs[:, :-step]
        runs = runs[:, :, step:] | runs[:, :, :-step]
        length += step
    return runs
