"""How white is an image: variance, autocorrelation, and what a filter makes of the noise.

Everything is measured on pixels that the caller declares good: source-free, and not
chosen by the values of the image itself.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import fourier
from ..convolution import convolve
from ..errors import ArgumentError, DataError
from ..stats import autocorrelation

__all__ = [
    "ScoreNoise",
    "Whiteness",
    "gaussian_filter",
    "radial_power",
    "score_noise",
    "whiteness",
]

type Array = npt.NDArray[Any]

MAX_LAG = 5
_MINIMUM_FILTER_COVERAGE = 0.9
_MOST_LAGS = 128
_LAGS_PER_WIDTH = 2.0
"""Lags that count, over the full width at half maximum of the autocorrelation: beyond, that of a
filter's noise is gone, and what is measured is scatter."""


@dataclasses.dataclass(frozen=True)
class Whiteness:
    """How white the noise of an image is.

    Attributes
    ----------
    pixels
        Number of good pixels.
    pixel_variance
        Of the good pixels, image_unit².
    variance_plane
        Mean of the variance plane over them, image_unit².
    pixel_variance_ratio
        Variance of pixel/σ: 1 where the plane tells the truth.
    pixel_variance_ratio_error
        Its sampling error for white noise.
    filtered_variance_ratio
        Variance of pixel/σ after filtering, over the value for white noise of the same
        pixel variance, for the same mask: 1 is white.  Detection sees this number.
    filtered_variance_ratio_error
        Its sampling error for white noise.
    correlation_x, correlation_y, correlation_diagonal, correlation_antidiagonal
        Autocorrelation at lags 1 to 5 along x, y, (1, 1) and (1, −1).
    correlation_error
        Sampling error of one of them for white noise.
    neighbour_covariance
        Sum of the autocorrelation over all lags from 1 to 5, that is over the 120
        neighbours: Σ off-diagonal over Σ diagonal of the covariance (as in DMTN-021).
    neighbour_covariance_error
        Its sampling error for white noise.
    autocorrelation
        ``(11, 11)`` map, lag (0, 0) at its centre.
    """

    pixels: int
    pixel_variance: float
    variance_plane: float
    pixel_variance_ratio: float
    pixel_variance_ratio_error: float
    filtered_variance_ratio: float
    filtered_variance_ratio_error: float
    correlation_x: tuple[float, ...]
    correlation_y: tuple[float, ...]
    correlation_diagonal: tuple[float, ...]
    correlation_antidiagonal: tuple[float, ...]
    correlation_error: float
    neighbour_covariance: float
    neighbour_covariance_error: float
    autocorrelation: Array = dataclasses.field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON.

        Returns
        -------
        values
            Attribute → value; None for what could not be measured.
        """
        values = dataclasses.asdict(self)
        values["autocorrelation"] = self.autocorrelation.tolist()
        return {name: _without_nan(value) for name, value in values.items()}


@dataclasses.dataclass(frozen=True)
class ScoreNoise:
    """Whether the noise of a score image is what its variance plane says.

    A score is filtered, and so its pixels are correlated by design: what can be asked of it is
    that its significance has zero mean and unit variance where there is no source.

    Attributes
    ----------
    pixels
        Number of good pixels.
    independent_pixels
        Number of independent ones with the same scatter of the variance: pixels over the sum
        of the squared autocorrelation.
    pixel_variance
        Of the good pixels, image_unit².
    variance_plane
        Mean of the variance plane over them, image_unit².
    pixel_variance_ratio
        Variance of S/√V: 1 where the plane tells the truth.
    pixel_variance_ratio_error
        Its sampling error, the correlation allowed for.
    significance_mean
        Mean of S/√V.
    significance_mean_error
        Its sampling error, the correlation allowed for.
    """

    pixels: int
    independent_pixels: float
    pixel_variance: float
    variance_plane: float
    pixel_variance_ratio: float
    pixel_variance_ratio_error: float
    significance_mean: float
    significance_mean_error: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON.

        Returns
        -------
        values
            Attribute → value; None for what could not be measured.
        """
        return {name: _without_nan(value) for name, value in dataclasses.asdict(self).items()}


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: what could not be measured is None."""
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def gaussian_filter(sigma: float) -> Array:
    """Unit-sum Gaussian to filter with.

    Parameters
    ----------
    sigma
        In pixels, positive.

    Returns
    -------
    filter
        ``(n, n)``, n odd, reaching 5 sigma.
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise ArgumentError(f"The width of the filter must be positive; got {sigma:g}.")
    half = max(1, math.ceil(5 * sigma))
    profile = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    kernel = np.outer(profile, profile)
    return kernel / kernel.sum()


def whiteness(image: Array, variance: Array, good: Array, psf: Array) -> Whiteness:
    """Measure how white the noise of an image is.

    Parameters
    ----------
    image
        ``(ny, nx)``; pixels that are not good may have any value.
    variance
        ``(ny, nx)`` variance plane, image_unit².
    good
        ``(ny, nx)`` boolean: source-free, unmasked pixels.
    psf
        ``(py, px)`` filter, centred on ``[py//2, px//2]``.

    Returns
    -------
    whiteness
        `Whiteness`.

    Raises
    ------
    ArgumentError
        If shapes differ.
    DataError
        If fewer than 100 pixels are good.

    Notes
    -----
    Masked pixels are set to zero before filtering; for white noise the variance of the
    filtered pixel x is then ``Σ_a P(a)² good(x − a)``, which is what it is compared with,
    so that masks do not bias the ratio.  The filter is not reflected: a PSF and its
    reflection give the same variance of a real image's white noise.
    """
    good, n = _measurable(image, variance, good)
    values = image[good].astype(np.float64)
    values -= values.mean()
    plane = variance[good].astype(np.float64)
    normalised = np.zeros(image.shape)
    normalised[good] = values / np.sqrt(plane)
    ratio = float(np.mean(normalised[good] ** 2))

    filtered = convolve(normalised, psf)
    expected = convolve(good.astype(np.float64), psf**2)
    use = good & (expected > _MINIMUM_FILTER_COVERAGE * float((psf**2).sum()))
    filtered_ratio = math.nan
    if use.any():
        filtered_ratio = float((filtered[use] ** 2).sum() / (ratio * expected[use].sum()))
    n_filtered = max(1, int(use.sum()))

    correlation = autocorrelation(normalised, good, MAX_LAG)
    lags = range(1, MAX_LAG + 1)
    middle = MAX_LAG
    neighbours = correlation.size - 1
    return Whiteness(
        pixels=n,
        pixel_variance=float(np.mean(values**2)),
        variance_plane=float(plane.mean()),
        pixel_variance_ratio=ratio,
        pixel_variance_ratio_error=math.sqrt(2 / n),
        filtered_variance_ratio=filtered_ratio,
        filtered_variance_ratio_error=math.sqrt(2 * _correlated_pixels(psf) / n_filtered),
        correlation_x=tuple(float(correlation[middle, middle + k]) for k in lags),
        correlation_y=tuple(float(correlation[middle + k, middle]) for k in lags),
        correlation_diagonal=tuple(float(correlation[middle + k, middle + k]) for k in lags),
        correlation_antidiagonal=tuple(float(correlation[middle + k, middle - k]) for k in lags),
        correlation_error=1 / math.sqrt(n),
        neighbour_covariance=float(correlation.sum() - correlation[middle, middle]),
        # Lags come in pairs with the same value, so the errors of a pair add up.
        neighbour_covariance_error=2 * math.sqrt(neighbours / 2) / math.sqrt(n),
        autocorrelation=correlation,
    )


def score_noise(image: Array, variance: Array, good: Array) -> ScoreNoise:
    """Measure the noise of a score image against its variance plane.

    Parameters
    ----------
    image
        ``(ny, nx)`` score; pixels that are not good may have any value.
    variance
        ``(ny, nx)`` its variance plane, image_unit².
    good
        ``(ny, nx)`` boolean: source-free, unmasked pixels.

    Returns
    -------
    noise
        `ScoreNoise`.

    Raises
    ------
    ArgumentError
        If shapes differ.
    DataError
        If fewer than 100 pixels are good.

    Notes
    -----
    For Gaussian noise of autocorrelation ρ the variance of n pixels scatters by ``√(2·Σρ²/n)``
    of itself, and their mean by ``√(Σρ/n)`` of their standard deviation (Bartlett 1946).  ρ is
    measured on the good pixels, to twice its own full width at half maximum.
    """
    good, n = _measurable(image, variance, good)
    plane = variance[good].astype(np.float64)
    significance = image[good] / np.sqrt(plane)
    mean = float(significance.mean())
    significance -= mean
    ratio = float(np.mean(significance**2))
    normalised = np.zeros(image.shape)
    normalised[good] = significance
    correlation = _filtered_autocorrelation(normalised, good)
    squares, total = float((correlation**2).sum()), float(correlation.sum())
    return ScoreNoise(
        pixels=n,
        independent_pixels=n / squares,
        pixel_variance=float(image[good].var(dtype=np.float64)),
        variance_plane=float(plane.mean()),
        pixel_variance_ratio=ratio,
        pixel_variance_ratio_error=ratio * math.sqrt(2 * squares / n),
        significance_mean=mean,
        significance_mean_error=math.sqrt(ratio * max(total, 0.0) / n),
    )


def _filtered_autocorrelation(image: Array, good: Array) -> Array:
    """Autocorrelation of filtered noise, at the lags at which there is any."""
    lags = min(_MOST_LAGS, (min(image.shape) - 1) // 2)
    ny, nx = fourier.fast_shape(image.shape, (lags + 1, lags + 1))
    shape = (ny, nx)

    def products(plane: Array) -> Array:
        power = np.abs(fourier.forward(plane, shape)) ** 2 + 0j
        full = fourier.inverse(power, shape, shape)
        return fourier.crop_center_origin(full, (2 * lags + 1, 2 * lags + 1))

    sums, pairs = products(image), products(good.astype(np.float64))
    correlation = sums / np.maximum(pairs, 0.5)
    correlation /= correlation[lags, lags]
    width = 2 * math.sqrt(np.count_nonzero(correlation > 0.5) / math.pi)
    reach = min(lags, math.ceil(_LAGS_PER_WIDTH * width))
    near = slice(lags - reach, lags + reach + 1)
    return correlation[near, near]


def _measurable(image: Array, variance: Array, good: Array) -> tuple[Array, int]:
    """Good pixels that have a value and a variance, and how many."""
    if not image.shape == variance.shape == good.shape:
        raise ArgumentError(
            "image, variance and good must have the same shape;"
            f" got {image.shape}, {variance.shape}, {good.shape}."
        )
    good = good & np.isfinite(image) & np.isfinite(variance) & (variance > 0)
    n = int(good.sum())
    if n < 100:
        raise DataError(
            f"Only {n} of {good.size} pixels are source-free and unmasked; whiteness needs 100."
        )
    return good, n


def _correlated_pixels(psf: Array) -> float:
    """Σ ρ² over lags, of white noise filtered with a PSF; 2πσ² for a Gaussian."""
    ny, nx = (2 * n for n in psf.shape)
    psf_ft = fourier.forward(psf.astype(np.float64), (ny, nx))
    correlation = fourier.inverse(np.abs(psf_ft) ** 2 + 0j, (ny, nx), (ny, nx))
    return float(((correlation / correlation[0, 0]) ** 2).sum())


def radial_power(image: Array, good: Array, bins: int = 40) -> tuple[Array, Array]:
    """Power spectrum of an image's good pixels against spatial frequency.

    Parameters
    ----------
    image
        ``(ny, nx)``, best in units of its standard deviation.
    good
        ``(ny, nx)`` boolean; other pixels count as zero.
    bins
        Number of annuli up to 0.5 cycles per pixel.

    Returns
    -------
    frequency, power
        ``(bins,)`` cycles per pixel; mean power per good pixel, 1 for white noise of unit
        variance.
    """
    ny, nx = image.shape
    values = np.where(good, image, 0.0)
    values[good] -= values[good].mean()
    spectrum = np.fft.rfft2(values)
    power = (spectrum.real**2 + spectrum.imag**2) / max(1, int(good.sum()))
    radius = np.hypot(np.fft.fftfreq(ny)[:, None], np.fft.rfftfreq(nx)[None, :])
    which = np.minimum((radius / 0.5 * bins).astype(int), bins)
    weights = np.bincount(which.ravel(), minlength=bins + 1)[:bins]
    sums = np.bincount(which.ravel(), weights=power.ravel(), minlength=bins + 1)[:bins]
    return (np.arange(bins) + 0.5) / bins * 0.5, sums / np.maximum(weights, 1)
