"""Standard deviation of significances where there is no source: 1 if the variances are right."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics.stats import robust_sigma

__all__ = ["SignificanceWidth", "correlated_pixels", "significance_width"]

type Array = npt.NDArray[Any]

_TOLERANCE = 0.05
_ERRORS = 2.0
_OUTLIER = 5.0
_LEAST_INDEPENDENT = 200
"""Independent pixels whose variance is known to a tenth."""


@dataclasses.dataclass(frozen=True)
class SignificanceWidth:
    """Width of the significances of source-free pixels.

    Attributes
    ----------
    width
        Standard deviation of the PSF-filtered noise over the one that the variance plane predicts.
    error
        Its sampling error.
    pixels
        Number of pixels that it was measured on.
    """

    width: float
    error: float
    pixels: int

    @property
    def is_off(self) -> bool:
        """Whether the variance departs from 1 by more than 5 % and two of its errors."""
        error = 2 * self.width * self.error
        return abs(self.width**2 - 1) > _TOLERANCE + _ERRORS * error

    @property
    def divisor(self) -> float:
        """Number to divide significances by: the width where it is off, else 1."""
        return self.width if self.is_off else 1.0

    @property
    def text(self) -> str:
        """How far the significances are off, in words; empty where they are right."""
        if not self.is_off:
            return ""
        if self.width > 1:
            return f"significances are {self.width:.3g} times too large"
        return f"significances are {1 / self.width:.3g} times too small"


def significance_width(
    significance: Array, free: Array, *, correlated: float, reach: int
) -> SignificanceWidth | None:
    """Measure how wide significances scatter where there is no source.

    Parameters
    ----------
    significance
        ``(ny, nx)`` flux of a point source over its error.
    free
        ``(ny, nx)`` boolean: searched, and without a source of either image.
    correlated
        `correlated_pixels` of the filter: number of pixels that count as one.
    reach
        Pixels around a significance beyond 5 widths that are left out with it: it belongs to a
        transient or to an unmasked source.

    Returns
    -------
    width
        None where fewer than 200 independent pixels are left.
    """
    values = significance[free]
    if len(values) < _LEAST_INDEPENDENT * correlated:
        return None
    middle, rough = float(np.median(values)), robust_sigma(values)
    if not rough > 0:
        return None
    with np.errstate(invalid="ignore"):
        beyond = free & (np.abs(significance - middle) > _OUTLIER * rough)
    if beyond.any():
        for axis in (0, 1):
            beyond = scipy.ndimage.maximum_filter1d(beyond, 2 * reach + 1, axis=axis)
        values = significance[free & ~beyond]
    if len(values) < _LEAST_INDEPENDENT * correlated:
        return None
    width = float(values.std(dtype=np.float64))
    error = width * math.sqrt(correlated / (2 * len(values)))
    return SignificanceWidth(width, error, len(values))


def correlated_pixels(response: Array) -> float:
    """Number of pixels of filtered noise that count as one when its variance is measured.

    Parameters
    ----------
    response
        ``(n, n)`` autocorrelation of the filter, 1 at its middle.

    Returns
    -------
    number
        Σ ρ² over all lags (Bartlett 1946).
    """
    return float(np.square(response, dtype=np.float64).sum())
