"""Noise covariances: white, a product of one along each axis, or any set of lags."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from . import fourier
from .stats import standard_deviations

__all__ = [
    "FLOOR",
    "SIGNIFICANT",
    "NoiseCovariance",
    "coloured",
    "product_covariance",
    "white_covariance",
]

type Array = npt.NDArray[Any]

FLOOR = 0.05
"""Least value of a noise spectrum of mean 1.

An image resampled by half a pixel has no noise at the highest frequencies, and no filter can
restore it.  Dividing by less than this would only make a filter long.
"""

SIGNIFICANT = 4.0
"""Significance, standard deviations, from which noise counts as correlated."""
_GRID = (128, 128)
_COARSE_GRID = (32, 32)
_MATTERS = 0.03
"""Relative excess of noise power with which a 5 sigma threshold finds 40 % more false sources."""
_ROUNDING = 1e-6
"""Rounding error of correlations, including those stored in single precision."""


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseCovariance:
    """Correlation of the noise between an exposure's pixels.

    Attributes
    ----------
    correlation
        ``(2L + 1, 2L + 1)`` float64, point-symmetric; 1 at lag (0, 0), which is the centre.
    description
        Origin of the covariance, in words.
    error
        Standard error of each lag's correlation, same shape; None if none is given.
    zero_frequency_error
        Standard error of `zero_frequency`.
    significance
        Significance of the correlation, standard deviations; infinite if it is known exactly.
    variance_ratio
        Variance of the noise over the variance plane; 1 if it was not measured.
    variance_ratio_error
        Standard error of `variance_ratio`.
    source_power
        Share of the pixel variance that was attributed to undetected sources, and so is not in
        `variance_ratio`.
    source_power_error
        Standard error of `source_power`.
    pixels
        Number of pixels that were measured.

    Raises
    ------
    ArgumentError
        If the correlation is not as above.
    """

    correlation: Array = dataclasses.field(repr=False)
    description: str
    error: Array | None = dataclasses.field(default=None, repr=False)
    zero_frequency_error: float = 0.0
    significance: float = math.inf
    variance_ratio: float = 1.0
    variance_ratio_error: float = 0.0
    source_power: float = 0.0
    source_power_error: float = 0.0
    pixels: int = 0

    def __post_init__(self) -> None:
        correlation, shape = self.correlation, self.correlation.shape
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] % 2 == 0:
            raise ArgumentError(
                "A noise correlation must be square, of odd sides, with lag (0, 0) in the middle;"
                f" got the shape {shape}."
            )
        if not np.isfinite(correlation).all():
            raise ArgumentError("A noise correlation must be finite at every lag; got NaN or inf.")
        middle = float(correlation[shape[0] // 2, shape[0] // 2])
        if abs(middle - 1) > _ROUNDING:
            raise ArgumentError(
                f"A noise correlation must be 1 at lag (0, 0); got {middle:g}. Divide a covariance"
                " by the pixel variance."
            )
        difference = float(np.abs(correlation - correlation[::-1, ::-1]).max())
        if difference > _ROUNDING:
            raise ArgumentError(
                "A noise correlation must be the same at the lags (Δy, Δx) and (−Δy, −Δx); got"
                f" values that differ by {difference:g}."
            )

    @property
    def max_lag(self) -> int:
        """Largest lag on each axis, L."""
        return self.correlation.shape[0] // 2

    @property
    def zero_frequency(self) -> float:
        """N(0), the sum of the correlation, at least `FLOOR`: low-frequency power over white's."""
        return max(FLOOR, float(self.correlation.sum()))

    @property
    def is_white(self) -> bool:
        """Whether there is no significant correlation."""
        return self.correlation.size == 1 or self.significance < SIGNIFICANT

    @property
    def matters(self) -> bool:
        """Whether the power differs from white noise by more than 3 % at any frequency."""
        return bool(np.abs(self.spectrum(_COARSE_GRID) - 1).max() > _MATTERS)

    @property
    def text(self) -> str:
        """Part of a sentence that describes the correlation, with errors where they are known."""
        power = f"{self.zero_frequency:.3g}"
        if self.error is None:
            return f"low-frequency power is {power} times what the pixel variance implies"
        lag = self.max_lag
        with np.errstate(divide="ignore", invalid="ignore"):
            pulls = np.nan_to_num(np.abs(self.correlation / self.error), posinf=0.0)
        pulls[lag, lag] = 0
        # Opposite lags have the same value; the second half is reported.
        pulls.ravel()[: pulls.size // 2] = 0
        y, x = np.unravel_index(np.argmax(pulls), pulls.shape)
        return (
            f"pixels ({x - lag:d}, {y - lag:d}) apart (x, y) by {self.correlation[y, x]:.3f} ±"
            f" {self.error[y, x]:.2g}, and low-frequency power is {power} ±"
            f" {self.zero_frequency_error:.2g} times what the pixel variance implies"
        )

    @functools.cached_property
    def floored_fraction(self) -> float:
        """Fraction of the frequencies whose power was raised to `FLOOR`."""
        full = fourier.full_spectrum(self._unfloored(_GRID), _GRID)
        return float(np.mean(full < FLOOR))

    def spectrum(self, shape: tuple[int, int]) -> Array:
        """Power spectrum of the noise for unit pixel variance.

        Parameters
        ----------
        shape
            Transform grid ``(ny, nx)``.

        Returns
        -------
        spectrum
            ``(ny, nx//2 + 1)`` real, float64, at least `FLOOR`; 1 everywhere for white noise.

        Notes
        -----
        The value at zero frequency is exactly `zero_frequency`.  The floor raises the mean over the
        whole grid above 1, by at most ``FLOOR · floored_fraction`` for a true covariance.
        Rescaling the mean to 1 would bias the low frequencies, where sources are.
        """
        return np.maximum(self._unfloored(shape), FLOOR)

    def _unfloored(self, shape: tuple[int, int]) -> Array:
        ny, nx = shape
        lags = np.arange(-self.max_lag, self.max_lag + 1)
        grid = np.zeros(shape)
        # Lags beyond the grid wrap around, which leaves the samples of the spectrum exact.
        np.add.at(grid, np.ix_(lags % ny, lags % nx), self.correlation)
        spectrum: Array = fourier.forward(grid, shape).real
        return spectrum


def coloured(images: Array, noise: NoiseCovariance | None) -> Array:
    """Kernels whose effect on white noise equals that of the given ones on correlated noise.

    Parameters
    ----------
    images
        ``(n, k, k)`` kernels, k odd.
    noise
        Covariance; None for white.

    Returns
    -------
    coloured
        ``(n, m, m)``: kernels convolved with the filter √N, on stamps large enough to hold the
        result; the given ones for white noise.

    Notes
    -----
    With ``ρ = g ⊗ g`` products are ``Σ_de B(d) ρ(d − e) C(e) = Σ_d (g⊗B)(d) (g⊗C)(d)``.
    """
    if noise is None or noise.correlation.size == 1:
        return images
    margin = 2 * noise.max_lag
    side = images.shape[1] + 2 * margin
    shape = (side + side % 2, side + side % 2)
    root = np.sqrt(noise.spectrum(shape))
    return np.stack(
        [
            fourier.crop_center_origin(
                fourier.inverse(
                    fourier.forward(fourier.pad_center_origin(image, shape), shape) * root,
                    shape,
                    shape,
                ),
                (side, side),
            )
            for image in images
        ]
    )


def white_covariance() -> NoiseCovariance:
    """Covariance of white noise.

    Returns
    -------
    covariance
        `NoiseCovariance` with lag (0, 0) only.
    """
    return NoiseCovariance(np.ones((1, 1)), "white", significance=0.0)


def product_covariance(
    along_y: Array,
    along_x: Array,
    description: str,
    *,
    zero_frequency_error: float,
    chi_square: float,
) -> NoiseCovariance:
    """Covariance that is the product of a correlation along y and one along x.

    Parameters
    ----------
    along_y, along_x
        ``(L + 1,)`` correlation at distances of 0 to L pixels; 1 at distance 0.
    description
        Origin of the covariance, in words.
    zero_frequency_error
        Standard error of the sum over all lags.
    chi_square
        Chi-square by which 2 L correlations describe the noise better than none.

    Returns
    -------
    covariance
        `NoiseCovariance` without errors of single lags.
    """
    size = len(along_y) - 1
    lags = np.abs(np.arange(-size, size + 1))
    return NoiseCovariance(
        np.outer(along_y[lags], along_x[lags]),
        description,
        zero_frequency_error=zero_frequency_error,
        significance=standard_deviations(chi_square, 2 * size),
    )
