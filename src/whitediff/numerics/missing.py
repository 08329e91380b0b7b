"""Pixels whose values no filter can use."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from . import planes

__all__ = ["smallest_sigma", "unmeasured_pixels"]

type Array = npt.NDArray[Any]

_LARGEST_SIGNIFICANCE = 1e11
"""Significance from which a pixel is no measurement: a filter would lose all other pixels in it.

Errors of a double-precision transform stay below 1e-3 sigma for pixels below 2.8e11 sigma.
"""


def unmeasured_pixels(image: Array, sigma: float | None = None) -> Array | None:
    """Pixels whose values no transform can use.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    sigma
        Smallest standard deviation of a pixel, image_unit.

    Returns
    -------
    unmeasured
        ``(ny, nx)`` boolean: pixels that are not finite or, if a sigma is given, exceed 1e11
        sigma.  None if there is no such pixel.
    """
    # Without another limit, the largest number of the type: only infinities exceed it.
    most = float(np.finfo(image.dtype).max) if image.dtype.kind == "f" else math.inf
    if sigma is not None:
        most = min(most, _LARGEST_SIGNIFICANCE * sigma)

    def all_measured(rows: slice) -> bool:
        # A NaN makes min and max NaN, and comparisons with NaN are false.
        part = image[rows]
        return -most <= float(part.min()) and float(part.max()) <= most

    if image.size == 0 or all(planes.each_block(all_measured, image.shape)):
        return None
    return planes.filled(image.shape, bool, lambda rows: ~(np.abs(image[rows]) <= most))


def smallest_sigma(variance: Array) -> float | None:
    """Smallest standard deviation among an image's pixels.

    Parameters
    ----------
    variance
        ``(ny, nx)`` variance plane, image_unit².

    Returns
    -------
    sigma
        Standard deviation, image_unit; None if no pixel has a positive, finite variance.
    """

    def smallest(rows: slice) -> float:
        least = float(variance[rows].min())
        if least > 0:
            return least
        part = variance[rows]
        return float(part[np.isfinite(part) & (part > 0)].min(initial=math.inf))

    least = min(planes.each_block(smallest, variance.shape), default=math.inf)
    return math.sqrt(least) if math.isfinite(least) else None
