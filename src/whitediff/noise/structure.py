"""Noise measured at the highest spatial frequencies, which the light of sources does not reach.

Stars, nebulae and galaxies fill the PSF's band, and beyond it only noise is left.  The scatter of
pixels holds both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics.stats import power_of_two, robust_sigma
from ..numerics.threads import single_threaded_algebra

__all__ = ["HighFrequencies", "high_frequencies"]

type Array = npt.NDArray[Any]

_BLOCK, _STEP = 32, 16
_EDGES = (0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 2.75, 3.1, 3.5, np.inf)
"""Borders of the rings, radians per pixel.  The last ring has the corners, where interpolated
images have the least power."""
_LIGHT, _BRIGHT, _FIRST, _SURE, _LAST = slice(0, 2), 2, 3, 5, 7
"""Rings by which blocks with little light are chosen, and the ring by which bright ones are; the
first ring that may be free of light, the first that usually is, and the last one that a free band
may start at."""
_REFERENCE = 1
"""Ring in which the light of the darker blocks is measured: galaxies contribute little to it."""
_MOST_LIGHT = 0.01
"""Largest share of light in the power of a ring that counts as free; it is subtracted."""
_LEAST_EXCESS = 0.03
"""Least light in the reference ring, over the noise, that counts as light."""
_SURELY_LIGHT = 10.0
"""Excess in the reference ring, over the noise beyond, that no resampling gives to noise."""
_AXES = 0.3
"""Radians per pixel from an axis within which bad columns and patterns of the readout lie."""
_NYQUIST = 3.1
_MOST_BLOCKS, _LEAST_BLOCKS = 2000, 24
_MOST_BAD = 0.25
"""Share of a block's pixels that may be bad."""
_MEASURED = 4.0
"""Errors from which the power of light in a ring is known."""
_FILL = 1.5
"""Width of the Gaussian whose mean fills a bad pixel, pixels."""
_KEPT, _BRIGHTEST = 0.5, 0.9
_OUTLIER = 4.0
_SHARED_MODES, _SHARED_BLOCKS = 3.78, 1.11
"""Modes under a Hann window, and blocks half a block apart, that count as one: Σ ρ⁴ over the
correlations ρ of their amplitudes, ρ² = 4/9 and 1/36 one and two modes away, and 1/36 between
blocks, on each axis."""
_LARGEST_LAG = 5
_ROUNDS = 12
_LEAST_POWER = 0.02
_NOT_WHITE = 40.0
"""χ² by which a product of axes must fit better than a constant: white noise reaches 25, and
interpolated noise has thousands."""
_LARGEST_MISFIT = 0.1
"""Largest relative misfit with which a product of axes can be continued to lower frequencies."""
_LARGEST_ERROR = 0.1
"""Largest relative error of the factor; noise that was smoothed with a PSF exceeds it."""
_EXCESS, _USUAL_EXCESS = 2.5, 1.4
"""Variance of the scatter over the noise from which structure fills the field: the noise of the
darkest blocks; of all blocks, some of which hold structure as fine, so that less will do."""


@dataclasses.dataclass(frozen=True, eq=False)
class HighFrequencies:
    """Noise of an image as measured at high frequencies.

    Attributes
    ----------
    factor
        Measured over predicted variance of the noise, in the blocks with the least light.
    usual_factor
        Measured over predicted variance of the noise over all blocks, without outliers.
    level
        Mean of the image in the blocks with the least light, image unit.
    error
        Relative error of `factor`.
    axes
        ``(2, 6)`` correlations along y and x at distances of 0 to 5 pixels; the correlation of the
        noise is their product.  None where the noise is white.
    zero_frequency_error
        Standard error of the sum of the correlation over all distances.
    significance
        χ² by which the noise is not white.
    power
        ``(32, 17)`` mean power spectrum over the prediction, on the grid of a real transform;
        NaN where it is not free of light.  None where the noise is not white.
    power_error
        Relative error of each mode of `power`.
    """

    factor: float
    usual_factor: float
    level: float
    error: float
    axes: Array | None = dataclasses.field(default=None, repr=False)
    zero_frequency_error: float = 0.0
    significance: float = 0.0
    power: Array | None = dataclasses.field(default=None, repr=False)
    power_error: float = 0.0

    @property
    def is_white(self) -> bool:
        """Whether the power is the same at all frequencies that hold no light."""
        return self.axes is None

    def contradicts(self, scatter: float) -> bool:
        """Whether a scatter is due to structure rather than noise.

        Parameters
        ----------
        scatter
            Variance of source-free pixels, in the unit of the factors.

        Returns
        -------
        contradicts
            The scatter is more than 2.5 times the factor, and more than 1.4 times the usual one.
        """
        return scatter > max(_EXCESS * self.factor, _USUAL_EXCESS * self.usual_factor)

    def improvement(self, spectrum: Callable[[tuple[int, int]], Array]) -> float:
        """How much better a correlation fits the power than white noise does.

        Parameters
        ----------
        spectrum
            Function of a grid's shape: power of noise with that correlation and unit variance, on
            the grid of a real transform, as by
            `whitediff.numerics.covariance.NoiseCovariance.spectrum`.

        Returns
        -------
        improvement
            Difference of χ², each with the variance that fits best.  It is below zero where the
            power contradicts the correlation, about zero where it cannot tell it from white noise.
        """
        assert self.power is not None
        free = np.isfinite(self.power)
        ratio = self.power[free], self.power[free] / spectrum((_BLOCK, _BLOCK))[free]
        white, correlated = (np.square(each / each.mean() - 1).sum() for each in ratio)
        return float((white - correlated) / self.power_error**2 / _SHARED_MODES)


@single_threaded_algebra()
def high_frequencies(
    image: Array, usable: Array, variance: Array | None = None
) -> HighFrequencies | None:
    """Measure noise at frequencies beyond the band of the PSF.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    usable
        ``(ny, nx)`` boolean: pixels that hold a measurement.
    variance
        ``(ny, nx)`` predicted variance, image_unit²; None: 1 everywhere.

    Returns
    -------
    found
        None where the noise cannot be measured: there are too few blocks, light reaches to the
        highest frequencies, as in fields crowded with stars of a full width below 2 pixels, or the
        correlation is no product of correlations along the axes.

    Notes
    -----
    Pixels are taken in blocks of 32, less a plane, under a Hann window w.  For independent noise
    the power is ``Σ w² V`` at every frequency, however V varies within the block, and the noise of
    a variance plane made from the pixels' own counts averages out.

    The half of the blocks with the least light is kept: least power at the frequencies of sources,
    over the power beyond.  For modes of ky > 0, blocks are chosen by their modes of ky < 0, and the
    other way round, so that the choice is independent of the measured noise.

    The spectrum of the light is the excess of the brightest blocks over the kept ones.  Scaled to
    the light of the kept blocks, it tells from which frequency on they are free of light.

    At those frequencies, white noise has one power.  Noise that a resampling has correlated is
    ``a(ky)·b(kx)``, each a cosine series to a distance of 5 pixels.  Strips at high ky are free of
    sources and determine b down to kx = 0.3, strips at high kx determine a, and the product of both
    gives the low frequencies.
    """
    corners = _corners(usable)
    if len(corners) < _LEAST_BLOCKS:
        return None
    power, levels = _block_power(image, usable, variance, corners)
    if len(power) < _LEAST_BLOCKS:
        return None
    modes = _Modes.of_blocks()
    rings = np.stack(
        [modes.mean_over(power, ring, half) for half in (0, 1) for ring in modes.rings]
    )
    # (2 halves, rings, blocks)
    rings = rings.reshape(2, len(modes.rings), -1)
    beyond = modes.over_rings(rings, _SURE)
    if not (beyond > 0).all():
        return None
    light = rings[:, _LIGHT].mean(axis=(0, 1))
    # Each half chooses the blocks of the other, so that the choice does not bias the power.
    kept = np.stack([_without_outliers(_least(light / beyond[1 - k]), beyond[k]) for k in (0, 1)])
    fine = rings[:, _BRIGHT].mean(axis=0)
    bright = fine >= np.quantile(fine, _BRIGHTEST)
    dark = np.mean([rings[k][:, kept[k]].mean(axis=1) for k in (0, 1)], axis=0)
    numbers = int(kept.sum()) // 2, int(bright.sum())
    leak = _light_of(dark, rings[:, :, bright].mean(axis=(0, 2)), numbers, modes)
    free = [k for k in range(_FIRST, len(dark)) if (leak[k:] <= _MOST_LIGHT * dark[k:]).all()]
    if not free or free[0] > _LAST:
        return None
    spectrum = modes.joined([power[each].mean(axis=0) for each in kept])
    for ring, value in zip(modes.rings, leak, strict=True):
        spectrum[ring] -= value
    blocks = kept.sum() / 2
    fit = _fitted(spectrum, np.logical_or.reduce(modes.rings[free[0] :]), modes, blocks)
    if fit is None or not fit.factor > 0:
        return None
    outermost = modes.over_rings(rings.mean(axis=0), _LAST)
    usual = outermost[_without_outliers(np.ones(len(outermost), bool), outermost)].mean()
    usual /= modes.over_rings(dark, _LAST)
    # Means, as for the noise: it rises in proportion to the level, however both scatter.
    level = float(np.mean([levels[each].mean() for each in kept]))
    return dataclasses.replace(fit, usual_factor=fit.factor * float(usual), level=level)


@dataclasses.dataclass(frozen=True)
class _Modes:
    """Frequencies of a block's half spectrum, radians per pixel, and the rings that they form."""

    ky: Array
    kx: Array
    rings: list[Array]

    @classmethod
    def of_blocks(cls) -> _Modes:
        ky, kx = (2 * np.pi * f(_BLOCK) for f in (np.fft.fftfreq, np.fft.rfftfreq))
        radius = np.hypot(ky[:, None], kx)
        # Modes on the borders (kx of 0 or Nyquist) are conjugates of one another and scatter more.
        clear = (np.abs(ky[:, None]) >= _AXES) & (kx >= _AXES) & (kx < _NYQUIST)
        rings = [clear & (radius >= low) & (radius < high) for low, high in pairwise(_EDGES)]
        return cls(ky, kx, rings)

    @property
    def numbers(self) -> Array:
        """Number of modes in each ring."""
        return np.array([np.count_nonzero(ring) for ring in self.rings])

    @property
    def radii(self) -> Array:
        """Mean frequency of each ring, radians per pixel."""
        radius = np.hypot(self.ky[:, None], self.kx)
        return np.array([radius[ring].mean() for ring in self.rings])

    def over_rings(self, rings: Array, first: int) -> Any:
        """Mean over the modes of the rings from ``first`` on; rings are axis 0 of 1, else −2."""
        axis = 0 if rings.ndim == 1 else rings.ndim - 2
        part = np.take(rings, np.arange(first, len(self.rings)), axis=axis)
        return np.average(part, axis=axis, weights=self.numbers[first:])

    def half(self, which: int) -> Array:
        """Rows of ky > 0 and of ky < 0, which are independent where kx > 0."""
        rows: Array = (self.ky > 0) == (which == 0)
        return rows

    def mean_over(self, power: Array, ring: Array, which: int) -> Array:
        """Mean power of each block in one half of a ring."""
        weight = (ring & self.half(which)[:, None]).astype(power.dtype).ravel()
        mean: Array = power.reshape(len(power), -1) @ (weight / weight.sum())
        return mean.astype(np.float64)

    def joined(self, halves: list[Array]) -> Array:
        """Spectrum joined from one half of each of two."""
        return np.where(self.half(0)[:, None], *halves).astype(np.float64)


def _block_power(
    image: Array, usable: Array, variance: Array | None, corners: Array
) -> tuple[Array, Array]:
    """Power of blocks over the prediction, ``(n, 32, 17)``, and their levels under the window."""
    whole = _taken(usable, corners)
    if variance is not None:
        plane = _taken(variance, corners)
        has_variance = np.isfinite(plane) & (plane > 0)
        if not has_variance.all():
            whole = whole & has_variance
            known = whole.mean(axis=(1, 2)) >= 1 - _MOST_BAD
            corners, whole, plane = corners[known], whole[known], plane[known]
            if not known.any():
                return np.zeros((0, _BLOCK, _BLOCK // 2 + 1), np.float32), np.zeros(0)
    profile = np.hanning(_BLOCK + 2)[1:-1]
    window = np.outer(profile, profile).astype(np.float32)
    square = window**2 / np.square(window, dtype=np.float64).sum()
    expected = whole.reshape(len(whole), -1) @ square.ravel()
    if variance is not None:
        expected = np.where(whole, plane, 0).reshape(len(whole), -1) @ square.ravel()
    blocks = _taken(image, corners).astype(np.float64)
    blocks[~whole] = 0
    weight = whole.reshape(len(whole), -1) * square.ravel()
    levels = np.einsum("ni,ni->n", blocks.reshape(len(blocks), -1), weight) / weight.sum(axis=1)
    blocks -= levels[:, None, None]
    # In units of the noise, so that no image unit leaves the range of single precision.
    blocks /= np.sqrt(expected)[:, None, None]
    unit = 1.0 if variance is not None else power_of_two(float(np.median(np.abs(blocks))))
    blocks /= unit
    pixels = blocks.astype(np.float32)
    _fill(pixels, whole)
    pixels = _without_planes(pixels) * window
    spectrum = scipy.fft.rfft2(pixels)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float64)
    power *= unit**2 / np.square(window, dtype=np.float64).sum()
    return power, levels


def _fill(blocks: Array, whole: Array) -> None:
    """Fill bad pixels with the mean of their surroundings: zeros would cut steps into the light."""
    part = ~whole.all(axis=(1, 2))
    if not part.any():
        return
    good = whole[part]
    weight, total = good.astype(np.float32), np.where(good, blocks[part], 0)
    for axis in (1, 2):
        weight, total = (
            scipy.ndimage.gaussian_filter1d(each, _FILL, axis=axis, mode="constant")
            for each in (weight, total)
        )
    blocks[part] = np.where(good, blocks[part], total / np.maximum(weight, 1e-3))


def _least(light: Array) -> Array:
    kept: Array = light <= np.quantile(light, _KEPT)
    return kept


def _without_outliers(kept: Array, values: Array) -> Array:
    """Kept blocks whose power is no outlier, as it is where cosmic rays hit a block."""
    middle = np.median(values[kept])
    result: Array = kept & (np.abs(values - middle) <= _OUTLIER * robust_sigma(values[kept]))
    return result


def _light_of(dark: Array, bright: Array, blocks: tuple[int, int], modes: _Modes) -> Array:
    """Power of light in each ring of the darker blocks, from its spectrum in the bright ones.

    Where light fills all blocks alike, its spectrum is taken from the darker blocks.
    """
    noise = modes.over_rings(dark, _SURE)
    excess = dark[_REFERENCE] - noise
    shape = None
    if excess > _LEAST_EXCESS * noise:
        # A variance plane without the photons of the light: these add noise to all rings.
        own_noise = dark * modes.over_rings(bright, _LAST) / modes.over_rings(dark, _LAST)
        shape = _shape(bright, own_noise, blocks[1], modes)
        if shape is None and excess > _SURELY_LIGHT * noise:
            shape = _shape(dark, modes.over_rings(dark, _LAST), blocks[0], modes)
    return np.zeros(len(dark)) if shape is None else excess * shape


def _shape(power: Array, noise: Array | float, blocks: int, modes: _Modes) -> Array | None:
    """Power of light in each ring, over that in the reference ring; None where it is not known.

    Beyond the ring where noise hides it, the light's power is taken to go on falling as fast.  That
    is an upper limit, since the power of a PSF falls faster and faster.
    """
    light = power - noise
    error = power * np.sqrt(_SHARED_MODES * _SHARED_BLOCKS / (blocks * modes.numbers))
    known = int(np.argmin(np.append(light > _MEASURED * error, False)))
    if known <= _REFERENCE:
        return None
    shape: Array = light / light[_REFERENCE]
    radius = modes.radii
    steps = radius[known - 1] - radius[known - 2], radius[known:] - radius[known - 1]
    fall = max(0.0, np.log(shape[known - 2] / shape[known - 1])) / steps[0]
    shape[known:] = shape[known - 1] * np.exp(-fall * steps[1])
    return shape


def _fitted(spectrum: Array, band: Array, modes: _Modes, blocks: float) -> HighFrequencies | None:
    """Constant or product of axes, fitted to a mean spectrum where it is free of light."""
    rows, columns = np.nonzero(band)
    data = spectrum[band]
    constant = float(data.mean())
    along_y, along_x = (_cosines(each) for each in (modes.ky[rows], modes.kx[columns]))
    a, b = np.zeros(_LARGEST_LAG + 1), np.zeros(_LARGEST_LAG + 1)
    a[0], model = 1.0, np.maximum(data, _LEAST_POWER * constant)
    for _ in range(_ROUNDS):
        weight = 1 / model
        b = _solved(along_x * ((along_y @ a) * weight)[:, None], data * weight)
        a = _solved(along_y * ((along_x @ b) * weight)[:, None], data * weight)
        if not (np.isfinite(a).all() and a[0] > 0 and b[0] > 0):
            return None
        b, a = b * a[0], a / a[0]
        product = (along_y @ a) * (along_x @ b)
        model = np.maximum(product, _LEAST_POWER * b[0])
    # Error of a single mode; correlated neighbours are allowed for where modes are summed.
    error = np.sqrt(_SHARED_BLOCKS / blocks)
    white = float((np.square(data / constant - 1)).sum() / error**2)
    left = float((np.square((data - product) / model)).sum() / error**2)
    significance = (white - left) / _SHARED_MODES
    if significance < _NOT_WHITE:
        relative = float(error * np.sqrt(_SHARED_MODES / len(data)))
        return HighFrequencies(
            constant,
            constant,
            0.0,
            relative,
            significance=significance,
            power=np.where(band, spectrum, np.nan),
            power_error=float(error),
        )
    if error * np.sqrt(max(0.0, left / len(data) - 1)) > _LARGEST_MISFIT:
        return None
    jacobian = (
        np.hstack([along_x * (along_y @ a)[:, None], along_y[:, 1:] * (along_x @ b)[:, None]])
        / (model * error)[:, None]
    )
    covariance = _SHARED_MODES * np.linalg.pinv(jacobian.T @ jacobian, hermitian=True)
    factor, relative = float(b[0]), float(np.sqrt(covariance[0, 0]) / b[0])
    if not relative < _LARGEST_ERROR:
        return None
    b = b / factor
    sums = a[0] + 2 * a[1:].sum(), b[0] + 2 * b[1:].sum()
    twice = np.full(_LARGEST_LAG, 2.0)
    slope = np.concatenate(
        [[(sums[0] - sums[0] * sums[1]) / factor], twice * sums[0] / factor, twice * sums[1]]
    )
    return HighFrequencies(
        factor,
        factor,
        0.0,
        relative,
        axes=np.stack([a, b]),
        zero_frequency_error=float(np.sqrt(slope @ covariance @ slope)),
        significance=significance,
    )


def _cosines(frequency: Array) -> Array:
    """Design matrix whose coefficients are the covariances at distances of 0, 1, … pixels."""
    lags = np.arange(_LARGEST_LAG + 1)
    result: Array = np.where(lags > 0, 2.0, 1.0) * np.cos(frequency[:, None] * lags)
    return result


def _solved(matrix: Array, data: Array) -> Array:
    solution: Array = np.linalg.lstsq(matrix, data)[0]
    return solution


def _corners(usable: Array) -> Array:
    """First pixels (y, x) of blocks with few unusable pixels, ``(n, 2)``, all over the frame."""
    ny, nx = usable.shape
    if min(ny, nx) < _BLOCK:
        return np.zeros((0, 2), int)
    y, x = np.arange(0, ny - _BLOCK + 1, _STEP), np.arange(0, nx - _BLOCK + 1, _STEP)
    corners = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
    rng = np.random.default_rng(0)
    # More than needed, since some have too many bad pixels.
    corners = _some(corners, 2 * _MOST_BLOCKS, rng)
    share = _taken(usable, corners).mean(axis=(1, 2))
    return _some(corners[share >= 1 - _MOST_BAD], _MOST_BLOCKS, rng)


def _some(corners: Array, most: int, rng: np.random.Generator) -> Array:
    if len(corners) <= most:
        return corners
    return corners[np.sort(rng.permutation(len(corners))[:most])]


def _taken(image: Array, corners: Array) -> Array:
    views = np.lib.stride_tricks.sliding_window_view(image, (_BLOCK, _BLOCK))
    blocks: Array = views[corners[:, 0], corners[:, 1]]
    return blocks


def _without_planes(blocks: Array) -> Array:
    """Blocks less the plane that fits each best."""
    axis = np.arange(_BLOCK) - (_BLOCK - 1) / 2
    axis = (axis / np.sqrt((axis**2).sum() * _BLOCK)).astype(blocks.dtype)
    mean = blocks.mean(axis=(1, 2))
    slope_y, slope_x = blocks.sum(axis=2) @ axis, blocks.sum(axis=1) @ axis
    result: Array = blocks - mean[:, None, None]
    result -= slope_y[:, None, None] * axis[:, None]
    result -= slope_x[:, None, None] * axis
    return result
