"""How white the noise of an image is: variance, autocorrelation, filtered noise.

All is measured on pixels that the caller declares good: source-free, and not chosen by the
image's own values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, DataError
from ..noise.significance import core, fits_image
from ..numerics import fourier
from ..numerics.convolution import convolve
from ..numerics.stats import autocorrelation

__all__ = [
    "ScoreNoise",
    "VarianceMap",
    "Whiteness",
    "WhitenessMap",
    "gaussian_filter",
    "radial_power",
    "score_noise",
    "score_noise_map",
    "whiteness",
    "whiteness_map",
    "whiteness_with_map",
]

type Array = npt.NDArray[Any]

MAX_LAG = 5
MINIMUM_CELL = 10
"""Least side of a map's cell, pixels: a smaller cell has fewer than the 100 pixels needed."""

_MINIMUM_PIXELS = 100
_MINIMUM_FILTER_COVERAGE = 0.9
_MOST_LAGS = 128
_LAGS_PER_WIDTH = 2.0
"""Largest lag used, over the full width at half maximum of the autocorrelation: beyond it filtered
noise is uncorrelated, and only sampling scatter is measured."""


@dataclasses.dataclass(frozen=True)
class Whiteness:
    """How white the noise of an image is.

    Attributes
    ----------
    pixels
        Number of good pixels.
    pixel_variance
        Variance of the good pixels, image_unit².
    variance_plane
        Mean of the variance plane over them, image_unit².
    pixel_variance_ratio
        Variance of pixel/σ: 1 where the plane is right.
    pixel_variance_ratio_error
        Sampling error of the ratio for white noise.
    filtered_variance_ratio
        Variance of pixel/σ after filtering, over the value for white noise of the same pixel
        variance and mask: 1 is white.  Detection thresholds rely on this number.
    filtered_variance_ratio_error
        Sampling error of the ratio for white noise.
    correlation_x, correlation_y, correlation_diagonal, correlation_antidiagonal
        Autocorrelation at lags 1 to 5 along x, y, (1, 1) and (1, −1).
    correlation_error
        Sampling error of one correlation for white noise.
    neighbour_covariance
        Sum of the autocorrelation over the 120 neighbours up to 5 pixels away along x and y:
        Σ off-diagonal over Σ diagonal of the covariance (as in DMTN-021).
    neighbour_covariance_error
        Sampling error of the sum for white noise.
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

    def to_dict(self) -> dict[str, object]:
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
    """How well the variance plane of a score image describes its noise.

    A score is filtered, so its pixels are correlated by design.  The test is that its
    significance has zero mean and unit variance between the sources.

    Attributes
    ----------
    pixels
        Number of good pixels.
    independent_pixels
        Number of independent pixels whose variance would scatter as much: pixels over the sum
        of the squared autocorrelation.
    pixel_variance
        Variance of the good pixels, image_unit².
    variance_plane
        Mean of the variance plane over them, image_unit².
    pixel_variance_ratio
        Variance of S/√V: 1 where the plane is right.
    pixel_variance_ratio_error
        Sampling error of the ratio, correlation included.
    significance_mean
        Mean of S/√V.
    significance_mean_error
        Sampling error of the mean, correlation included.
    """

    pixels: int
    independent_pixels: float
    pixel_variance: float
    variance_plane: float
    pixel_variance_ratio: float
    pixel_variance_ratio_error: float
    significance_mean: float
    significance_mean_error: float

    def to_dict(self) -> dict[str, object]:
        """Plain numbers, for JSON.

        Returns
        -------
        values
            Attribute → value; None for what could not be measured.
        """
        return {name: _without_nan(value) for name, value in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True, eq=False)
class VarianceMap:
    """Variance of pixel/σ over the frame, cell by cell.

    Arrays are in the order of the image: ``[0, 0]`` is the cell at the smallest y and x.

    Attributes
    ----------
    y_edges, x_edges
        ``(rows + 1,)`` and ``(columns + 1,)`` integers, pixel coordinates: the first pixel of
        each cell, and the pixel after the last cell.
    pixels
        ``(rows, columns)`` number of good pixels.
    pixel_variance_ratio
        ``(rows, columns)`` variance of pixel/σ about the mean of the frame: 1 where the plane
        is right, NaN where fewer than 100 pixels are good.
    pixel_variance_ratio_error
        ``(rows, columns)`` sampling error of the ratio, NaN in the same cells.
    """

    y_edges: Array
    x_edges: Array
    pixels: Array
    pixel_variance_ratio: Array
    pixel_variance_ratio_error: Array

    def to_dict(self) -> dict[str, object]:
        """Plain numbers and nested lists, for JSON.

        Returns
        -------
        values
            Attribute → value; None for what could not be measured.
        """
        return {
            field.name: _without_nan(getattr(self, field.name).tolist())
            for field in dataclasses.fields(self)
        }


@dataclasses.dataclass(frozen=True, eq=False)
class WhitenessMap(VarianceMap):
    """How white the noise of an image is over the frame, cell by cell.

    Attributes
    ----------
    filtered_variance_ratio
        ``(rows, columns)`` variance of pixel/σ after filtering with the local PSF, over the
        value for white noise of the cell's own pixel variance and mask: 1 is white.  NaN where
        fewer than 100 pixels have the support that the filter needs, or there is no PSF.
    filtered_variance_ratio_error
        ``(rows, columns)`` sampling error of the ratio for white noise, NaN in the same cells.
    """

    filtered_variance_ratio: Array
    filtered_variance_ratio_error: Array


def _without_nan(value: Any) -> Any:
    """Value with None in place of NaN, which JSON does not have."""
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def gaussian_filter(sigma: float) -> Array:
    """Unit-sum Gaussian filter.

    Parameters
    ----------
    sigma
        Standard deviation, pixels; positive.

    Returns
    -------
    filter
        ``(n, n)``, n odd, reaching 5 sigma.

    Raises
    ------
    ArgumentError
        If sigma is not positive and finite.
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
    Masked pixels are set to zero before filtering.  For white noise the variance of the filtered
    pixel x is then ``Σ_a P(a)² good(x − a)``; the measured variance is divided by this, so that
    masks do not bias the ratio.  The filter is not reflected: a PSF and its reflection give the
    same variance for white noise.
    """
    return _whiteness(_Frame(image, variance, good), psf)


def _sum_of_squares(values: Array) -> float:
    # Not by linear algebra, which would round differently with the number of its threads.
    flat = values.reshape(-1)
    return float(np.einsum("i,i->", flat, flat))


def _whiteness(frame: _Frame, psf: Array) -> Whiteness:
    good, n, normalised = frame.good, frame.pixels, frame.normalised
    values = frame.image[good].astype(np.float64)
    values -= frame.mean
    ratio = _sum_of_squares(normalised) / n
    filtered, expected = frame.filtered(psf)
    filtered_ratio, filtered_error = _filtered_ratio(filtered, expected, good, psf, ratio)
    correlation = autocorrelation(normalised, good, MAX_LAG)
    lags = range(1, MAX_LAG + 1)
    middle = MAX_LAG
    neighbours = correlation.size - 1
    return Whiteness(
        pixels=n,
        pixel_variance=_sum_of_squares(values) / n,
        variance_plane=float(frame.variance[good].mean(dtype=np.float64)),
        pixel_variance_ratio=ratio,
        pixel_variance_ratio_error=math.sqrt(2 / n),
        filtered_variance_ratio=filtered_ratio,
        filtered_variance_ratio_error=filtered_error,
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


def whiteness_map(
    image: Array,
    variance: Array,
    good: Array,
    psf: Array | Callable[[float, float], Array | None],
    *,
    cells: tuple[int, int] = (3, 3),
    origin: tuple[int, int] = (0, 0),
) -> WhitenessMap:
    """Measure how white the noise of an image is in each cell of a grid over the frame.

    Parameters
    ----------
    image
        ``(ny, nx)``; pixels that are not good may have any value.
    variance
        ``(ny, nx)`` variance plane, image_unit².
    good
        ``(ny, nx)`` boolean: source-free, unmasked pixels.
    psf
        ``(py, px)`` filter, centred on ``[py//2, px//2]``; or a function that gives the filter
        at x and y, or None where there is none.  It is called with the middle of each cell.
    cells
        Number of rows and columns of cells, which divide the frame as evenly as possible.
    origin
        Pixel coordinates of the first pixel: the origin of x, y and the edges.

    Returns
    -------
    whiteness_map
        `WhitenessMap`.

    Raises
    ------
    ArgumentError
        If shapes differ, a PSF is larger than the image, or there are more rows or columns
        than a tenth of the pixels along them.
    DataError
        If fewer than 100 pixels of the frame are good.

    Notes
    -----
    A cell is measured as `whiteness` measures a frame, about the mean of the whole frame: a
    background that differs from this mean counts as noise.  The filter reaches into neighbouring
    cells; a filtered pixel counts for the cell in which it lies, so that no pixel is lost at the
    edge between two cells.
    """
    return _whiteness_map(_Frame(image, variance, good), psf, cells, origin)


def whiteness_with_map(
    image: Array,
    variance: Array,
    good: Array,
    psf: Array,
    *,
    local_psf: Callable[[float, float], Array | None] | None = None,
    cells: tuple[int, int] = (3, 3),
    origin: tuple[int, int] = (0, 0),
) -> tuple[Whiteness, WhitenessMap]:
    """Measure how white the noise of an image is, on the frame and in its cells at once.

    Parameters
    ----------
    image, variance, good, psf
        As for `whiteness`.
    local_psf
        Function of x and y as for `whiteness_map`.  Without it the PSF is the same everywhere,
        and the frame is filtered only once.
    cells, origin
        As for `whiteness_map`.

    Returns
    -------
    whiteness, whiteness_map
        `Whiteness` and `WhitenessMap`.

    Raises
    ------
    ArgumentError, DataError
        As `whiteness` and `whiteness_map`.
    """
    frame = _Frame(image, variance, good)
    return _whiteness(frame, psf), _whiteness_map(frame, local_psf or psf, cells, origin)


def _whiteness_map(
    frame: _Frame,
    psf: Array | Callable[[float, float], Array | None],
    cells: tuple[int, int],
    origin: tuple[int, int],
) -> WhitenessMap:
    good, normalised = frame.good, frame.normalised
    y_edges, x_edges = _cell_edges(good.shape, cells)
    pixels = np.zeros(cells, dtype=int)
    ratios, errors, filtered_ratios, filtered_errors = (np.full(cells, math.nan) for _ in range(4))
    for row, column in np.ndindex(cells):
        rows, columns = slice(*y_edges[row : row + 2]), slice(*x_edges[column : column + 2])
        use = good[rows, columns]
        n = pixels[row, column] = np.count_nonzero(use)
        if n < _MINIMUM_PIXELS:
            continue
        ratio = float(np.square(normalised[rows, columns]).sum()) / n
        ratios[row, column], errors[row, column] = ratio, math.sqrt(2 / n)
        if callable(psf):
            y, x = (float(c.start + c.stop - 1) / 2 for c in (rows, columns))
            local = psf(x + origin[1], y + origin[0])
            if local is None:
                continue
            around, inner = _surroundings((rows, columns), good.shape, local.shape)
            filtered, expected = (
                plane[inner] for plane in _filtered(normalised[around], good[around], local)
            )
        else:
            local = psf
            filtered, expected = (plane[rows, columns] for plane in frame.filtered(psf))
        filtered_ratios[row, column], filtered_errors[row, column] = _filtered_ratio(
            filtered, expected, use, local, ratio, minimum=_MINIMUM_PIXELS
        )
    return WhitenessMap(
        y_edges=y_edges + origin[0],
        x_edges=x_edges + origin[1],
        pixels=pixels,
        pixel_variance_ratio=ratios,
        pixel_variance_ratio_error=errors,
        filtered_variance_ratio=filtered_ratios,
        filtered_variance_ratio_error=filtered_errors,
    )


class _Frame:
    """Good pixels of an image, less their mean and over σ, for measurement of frame and cells."""

    def __init__(self, image: Array, variance: Array, good: Array) -> None:
        self.image, self.variance = image, variance
        self.good, self.pixels = _measurable(image, variance, good)
        self.mean = float(image[self.good].mean(dtype=np.float64))
        self.normalised, sigma = np.zeros(image.shape), np.ones(image.shape)
        np.subtract(image, self.mean, out=self.normalised, where=self.good)
        np.sqrt(variance, out=sigma, where=self.good)
        self.normalised /= sigma
        self._psf: Array | None = None
        self._filtered: tuple[Array, Array]

    def filtered(self, psf: Array) -> tuple[Array, Array]:
        """Result of `_filtered`, kept for the next call with the same PSF."""
        if self._psf is not psf:
            part = psf
            if max(psf.shape) > min(self.good.shape) and fits_image(psf.shape, self.good.shape):
                # The PSF of a cut-out may be larger than the cut-out.
                part = core(psf, 1.0, within=self.good.shape)
            self._filtered, self._psf = _filtered(self.normalised, self.good, part), psf
        return self._filtered


def _filtered(normalised: Array, good: Array, psf: Array) -> tuple[Array, Array]:
    """Filtered pixels, and their variance for white noise of unit variance."""
    return convolve(normalised, psf), convolve(good.astype(np.float64), psf**2)


def _filtered_ratio(
    filtered: Array, expected: Array, good: Array, psf: Array, ratio: float, *, minimum: int = 1
) -> tuple[float, float]:
    """Variance of filtered pixels over the value for white noise, and its sampling error.

    Both NaN if fewer pixels than the minimum have the support that the filter needs.
    """
    use = good & (expected > _MINIMUM_FILTER_COVERAGE * float((psf**2).sum()))
    n = np.count_nonzero(use)
    if n < minimum or not ratio > 0:
        return math.nan, math.nan
    white = ratio * float(expected.sum(where=use))
    value = float(np.square(filtered).sum(where=use)) / white
    return value, math.sqrt(2 * _correlated_pixels(psf) / n)


def _cell_edges(shape: tuple[int, ...], cells: tuple[int, int]) -> tuple[Array, Array]:
    """First pixels of the cells along y and x, and the end of the last."""
    most_y, most_x = (max(1, size // MINIMUM_CELL) for size in shape)
    if not (1 <= cells[0] <= most_y and 1 <= cells[1] <= most_x):
        raise ArgumentError(
            f"A map of {cells[0]} x {cells[1]} cells (rows x columns) does not fit an image of"
            f" {shape[0]} x {shape[1]} pixels; from 1 x 1 to {most_y} x {most_x} do."
        )
    y_edges, x_edges = (np.arange(n + 1) * size // n for n, size in zip(cells, shape, strict=True))
    return y_edges, x_edges


def _surroundings(
    cell: tuple[slice, slice], shape: tuple[int, ...], kernel_shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of a cell with the margin that a filter needs, and of the cell within them."""
    around, inner = [], []
    for part, size, reach in zip(cell, shape, kernel_shape, strict=True):
        # A kernel may not be larger than the image that it is applied to, however small the cell.
        margin = max(reach // 2, reach - (part.stop - part.start))
        start = max(0, part.start - margin)
        around.append(slice(start, min(size, part.stop + margin)))
        inner.append(slice(part.start - start, part.stop - start))
    return (around[0], around[1]), (inner[0], inner[1])


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
    For Gaussian noise of autocorrelation ρ the variance of n pixels has the relative error
    ``√(2·Σρ²/n)``, and their mean the error ``√(Σρ/n)`` standard deviations (Bartlett 1946).  ρ
    is measured on the good pixels, to lags of twice its own full width at half maximum.
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


def score_noise_map(
    image: Array,
    variance: Array,
    good: Array,
    noise: ScoreNoise,
    *,
    cells: tuple[int, int] = (3, 3),
    origin: tuple[int, int] = (0, 0),
) -> VarianceMap:
    """Measure the variance of S/√V in each cell of a grid over the frame of a score image.

    Parameters
    ----------
    image
        ``(ny, nx)`` score; pixels that are not good may have any value.
    variance
        ``(ny, nx)`` its variance plane, image_unit².
    good
        ``(ny, nx)`` boolean: source-free, unmasked pixels.
    noise
        Result of `score_noise` for the same frame: its independent pixels give the errors.
    cells
        Number of rows and columns of cells.
    origin
        Pixel coordinates of the first pixel: the origin of the edges.

    Returns
    -------
    variance_map
        `VarianceMap`; its errors include the correlation.

    Raises
    ------
    ArgumentError
        If shapes differ, or there are more rows or columns than a tenth of the pixels along
        them.
    DataError
        If fewer than 100 pixels of the frame are good.
    """
    good, _ = _measurable(image, variance, good)
    y_edges, x_edges = _cell_edges(image.shape, cells)
    pixels = np.zeros(cells, dtype=int)
    ratio, error = np.full(cells, math.nan), np.full(cells, math.nan)
    for row, column in np.ndindex(cells):
        cell = (slice(*y_edges[row : row + 2]), slice(*x_edges[column : column + 2]))
        use = good[cell]
        n = pixels[row, column] = np.count_nonzero(use)
        if n < _MINIMUM_PIXELS:
            continue
        significance = image[cell][use] / np.sqrt(variance[cell][use].astype(np.float64))
        ratio[row, column] = np.mean((significance - noise.significance_mean) ** 2)
        independent = n * noise.independent_pixels / noise.pixels
        error[row, column] = ratio[row, column] * math.sqrt(2 / independent)
    return VarianceMap(
        y_edges=y_edges + origin[0],
        x_edges=x_edges + origin[1],
        pixels=pixels,
        pixel_variance_ratio=ratio,
        pixel_variance_ratio_error=error,
    )


def _filtered_autocorrelation(image: Array, good: Array) -> Array:
    """Autocorrelation of filtered noise, cut to the lags at which it is significant."""
    lags = min(_MOST_LAGS, (min(image.shape) - 1) // 2)
    # A lag that no pair of pixels has counts as uncorrelated.
    correlation = np.nan_to_num(autocorrelation(image, good, lags), nan=0.0)
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
    if n < _MINIMUM_PIXELS:
        raise DataError(
            f"Only {n} of {good.size} pixels are source-free and unmasked;"
            f" whiteness needs {_MINIMUM_PIXELS}."
        )
    return good, n


def _correlated_pixels(psf: Array) -> float:
    """Σ ρ² over all lags for white noise filtered with a PSF; 2πσ² for a Gaussian."""
    # On a grid of twice the size, so that the correlation does not wrap around.
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
        ``(bins,)`` middle of the annulus, cycles per pixel; ``(bins,)`` mean power per
        good pixel, 1 for white noise of unit variance.
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
