"""Covariance of an exposure's noise between pixels: white, known from a resampling, or measured.

A template that was resampled onto the science pixels has correlated noise, and so more power
at low frequencies than its pixel variance implies.  A whitening filter then needs the noise
spectrum N of each input, here scaled to unit pixel variance.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError, DataError
from ..numerics import fourier
from ..numerics.covariance import FLOOR, NoiseCovariance
from ..numerics.stats import ENOUGH_PIXELS, robust_sigma, standard_deviations
from ..numerics.threads import single_threaded_algebra

__all__ = [
    "LEAST_PIXELS",
    "UnmeasurableNoiseError",
    "averaged_covariance",
    "measured_covariance",
    "resampling_covariance",
]

type Array = npt.NDArray[Any]

LEAST_PIXELS = 4000
"""Source-free pixels from which a covariance is measured: N(0) is then known to 10 %."""

_LEAST_PAIRS = 100
_MOST_FURTHER = 8
_OUTLIER = 6.0
_STRIP = 1 << 21
"""Pixels in a strip."""
_LEAST_NOISE_POWER = 0.7
"""Share of the pixel variance that must be noise; below it, sources and noise are confused."""
_SHRINKAGE = 2.0
"""Standard deviations of excess power from which an axis counts as correlated."""
_INNER = 2
"""Largest lag of the inner ring of diagonal lags, where noise departs most from a product."""
_LARGEST_DEPARTURE = 0.5
_DEPARTURE_EVIDENCE = 2.0
"""Gain of the log-likelihood, 2 sigma, from which departures from a product count."""
_ROUNDS = 4
_STEPS = 8
_CONVERGED = 1e-7


class UnmeasurableNoiseError(DataError):
    """The covariance of an image's noise cannot be measured.

    Parameters
    ----------
    reason
        Why, without a full stop.

    Attributes
    ----------
    reason
        The reason alone, for callers that catch the error; the message adds the remedy.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; treat the noise as white, or give its covariance.")
        self.reason = reason


def resampling_covariance(kernel: Array) -> NoiseCovariance:
    """Covariance of white noise that was resampled with a kernel.

    Parameters
    ----------
    kernel
        ``(ky, kx)``: weights with which input pixels enter an output pixel, finite; any scale.

    Returns
    -------
    covariance
        Autocorrelation of the kernel; ``N(k) = |k̂(k)|² / mean|k̂|²``.

    Raises
    ------
    ArgumentError
        If the kernel is not 2-D, not finite, or zero.

    Notes
    -----
    Holds where the phase of the resampling is the same everywhere; where it varies, the
    covariance is the mean over the phases, see `averaged_covariance`.

    Examples
    --------
    Half a pixel in x and y, with Lanczos-3 and bicubic (Keys 1981) interpolation:

    >>> x = np.arange(-2.5, 3)
    >>> lanczos = np.sinc(x) * np.sinc(x / 3)
    >>> lanczos /= lanczos.sum()
    >>> round(resampling_covariance(np.outer(lanczos, lanczos)).zero_frequency, 3)
    1.62
    >>> bicubic = np.array([-1, 9, 9, -1]) / 16
    >>> round(resampling_covariance(np.outer(bicubic, bicubic)).zero_frequency, 3)
    2.437
    """
    if kernel.ndim != 2:
        raise ArgumentError(f"A resampling kernel must be 2-D; got the shape {kernel.shape}.")
    if not np.isfinite(kernel).all() or not kernel.any():
        raise ArgumentError("A resampling kernel must be finite and not zero everywhere.")
    half = max(kernel.shape) - 1
    ny, nx = (2 * n for n in kernel.shape)
    kernel_ft = fourier.forward(kernel.astype(np.float64), (ny, nx))
    full = fourier.inverse(np.abs(kernel_ft) ** 2 + 0j, (ny, nx), (ny, nx))
    own = fourier.crop_center_origin(full, (ny - 1, nx - 1))
    correlation = np.zeros((2 * half + 1, 2 * half + 1))
    y, x = half - (ny - 2) // 2, half - (nx - 2) // 2
    correlation[y : y + ny - 1, x : x + nx - 1] = own / own[(ny - 2) // 2, (nx - 2) // 2]
    return NoiseCovariance(
        (correlation + correlation[::-1, ::-1]) / 2,
        f"resampled with a kernel of {kernel.shape[1]} x {kernel.shape[0]} pixels",
    )


def averaged_covariance(
    covariances: Sequence[NoiseCovariance], weights: Sequence[float] | None = None
) -> NoiseCovariance:
    """Mean of several covariances, such as those of a coadd's inputs or a frame's parts.

    Parameters
    ----------
    covariances
        At least one.
    weights
        Share of each in the pixel variance, not negative, not all zero; equal if not given.

    Returns
    -------
    covariance
        Weighted mean.  Its errors assume that the parts' errors are independent; its significance
        is the largest of theirs.

    Raises
    ------
    ArgumentError
        If there is no covariance, or the weights are not as above.
    """
    share = np.ones(len(covariances)) if weights is None else np.array(weights, dtype=float)
    if len(covariances) == 0 or share.shape != (len(covariances),):
        raise ArgumentError(
            f"A mean needs a covariance, and a weight for each; got {len(covariances)}"
            f" and {share.size}."
        )
    if not (np.isfinite(share).all() and share.min() >= 0 and share.sum() > 0):
        raise ArgumentError(f"Weights must be finite and not negative; got {share.tolist()}.")
    share /= share.sum()
    largest = max(covariance.max_lag for covariance in covariances)

    def total(arrays: list[Array], factors: Array) -> Array:
        result = np.zeros((2 * largest + 1, 2 * largest + 1))
        for array, factor in zip(arrays, factors, strict=True):
            result += factor * np.pad(array, largest - array.shape[0] // 2)
        return result

    errors = [c.error for c in covariances if c.error is not None]
    known = share[[c.error is not None for c in covariances]]

    def error(values: list[float]) -> float:
        return math.hypot(*(share * values))

    descriptions = "; ".join(dict.fromkeys(c.description for c in covariances))
    return NoiseCovariance(
        total([c.correlation for c in covariances], share),
        f"mean of {len(covariances)}: {descriptions}",
        error=np.sqrt(total([e**2 for e in errors], known**2)) if errors else None,
        zero_frequency_error=error([c.zero_frequency_error for c in covariances]),
        significance=max(c.significance for c in covariances),
        variance_ratio=float(share @ [c.variance_ratio for c in covariances]),
        variance_ratio_error=error([c.variance_ratio_error for c in covariances]),
        source_power=float(share @ [c.source_power for c in covariances]),
        source_power_error=error([c.source_power_error for c in covariances]),
        pixels=sum(c.pixels for c in covariances),
    )


def measured_covariance(
    image: Array,
    variance: Array,
    good: Array,
    *,
    psf_sigma: float | None,
    max_lag: int = 5,
) -> NoiseCovariance:
    """Measure the covariance of an exposure's noise on its source-free pixels.

    Parameters
    ----------
    image
        ``(ny, nx)``, background-subtracted; pixels that are not good may have any value.
    variance
        ``(ny, nx)`` variance plane, image_unit².
    good
        ``(ny, nx)`` boolean: source-free, unmasked pixels.
    psf_sigma
        Gaussian width of the image's PSF, pixels, positive: the shape of sources that are too
        faint to be detected.  None: all power is noise.
    max_lag
        Largest lag, on each axis, at which noise is correlated: 5 for interpolation with up to
        6 × 6 pixels (Lanczos-3).

    Returns
    -------
    covariance
        Covariance at lags up to ``max_lag``, with its errors and the measured variance ratio.

    Raises
    ------
    ArgumentError
        If shapes differ, ``psf_sigma`` is not positive, or ``max_lag`` is below 1.
    DataError
        If fewer than `LEAST_PIXELS` pixels are good, they do not scatter, they have no pairs at
        some lag, or less than 70 % of their variance is noise, as in fields so crowded that the
        wings of sources are everywhere.

    Notes
    -----
    Products of pixels, in units of the standard deviation, are averaged over the existing pairs,
    so masks do not bias them.  A model is fitted to the correlations at all lags, up to ``max_lag``
    and as far beyond as the PSF reaches.  The fit is generalised least squares, weighted with the
    covariance of correlations measured on Gaussian noise (Bartlett 1946).  The model has

    - noise, ``ρ_y(Δy)·ρ_x(Δx)`` up to ``max_lag``: interpolation works axis by axis, so a few
      numbers per axis describe it.  A free value at each lag would need six times as many, and
      their sampling errors add up in N(0);
    - at diagonal lags, departures from that product (rotations, mixed phases, other kernels):
      random, their variance found by restricted maximum likelihood; usually zero;
    - undetected sources, a Gaussian of ``√2·psf_sigma``, the autocorrelation of their PSF;
    - a constant: the remains of the background, and the power that its subtraction took away.

    The last two are left out of the result.  An axis whose correlations have no more power than
    their sampling errors counts as white; the errors are those from before this decision.
    Pixels beyond 6 standard deviations are left out.  Noise that was smoothed on the scale of
    the PSF itself looks like faint sources, and is underestimated.
    """
    if not image.shape == variance.shape == good.shape:
        raise ArgumentError(
            "image, variance and good must have the same shape;"
            f" got {image.shape}, {variance.shape}, {good.shape}."
        )
    if psf_sigma is not None and not (math.isfinite(psf_sigma) and psf_sigma > 0):
        raise ArgumentError(f"The width of the PSF must be positive; got {psf_sigma:g}.")
    if max_lag < 1:
        raise ArgumentError(f"The largest lag must be at least 1; got {max_lag}.")
    # Far enough out that sources and constant can be told from the noise.
    reach = max_lag + min(_MOST_FURTHER, math.ceil(2.5 * (psf_sigma or 2.0)))
    lags = _lags(reach)
    products, pairs = _lag_means(image, variance, good, lags)
    n = int(pairs[0])
    if n < LEAST_PIXELS:
        raise UnmeasurableNoiseError(
            f"Only {n} of {good.size} pixels are source-free and unmasked, and a noise covariance"
            f" needs {LEAST_PIXELS}"
        )
    used = pairs >= _LEAST_PAIRS
    if not used[(np.abs(lags) <= max_lag).all(axis=1)].all():
        raise UnmeasurableNoiseError(
            f"The {n} source-free pixels have no pairs at some distances up to {max_lag} pixels,"
            " so their covariance cannot be measured"
        )
    lags, products, pairs = lags[used], products[used], pairs[used]
    pixel_variance = float(products[0])
    if not pixel_variance > 0:
        raise UnmeasurableNoiseError(
            f"The {n} source-free pixels do not scatter, so there is no noise to measure"
        )
    fit = _fit(lags, products[1:] / pixel_variance, pairs, psf_sigma, max_lag)
    if fit.noise_power < _LEAST_NOISE_POWER:
        raise UnmeasurableNoiseError(
            f"Only {max(0.0, fit.noise_power):.0%} of the variance of the source-free pixels can be"
            f" told from faint sources ({fit.source_power:.0%}) and background, and its covariance"
            f" needs {_LEAST_NOISE_POWER:.0%} (are sources everywhere, or was the image smoothed"
            " with its PSF?)"
        )
    return _result(fit, pixel_variance, n)


def _lags(largest: int) -> Array:
    """Lags (Δy, Δx) of a half plane, (0, 0) first."""
    y, x = np.mgrid[: largest + 1, -largest : largest + 1]
    half = (y > 0) | (x >= 0)
    return np.column_stack([y[half], x[half]])


def _lag_means(image: Array, variance: Array, good: Array, lags: Array) -> tuple[Array, Array]:
    """Means of the products of good pixels, in standard deviations, and numbers of pairs."""
    center, limit = _usual_range(image, variance, good)
    products, pairs = np.zeros(len(lags)), np.zeros(len(lags))
    # Pairs across the borders of strips are few; their memory would not be.
    strips = max(1, image.size // _STRIP)
    edges = np.linspace(0, image.shape[0], strips + 1).astype(int)
    for top, bottom in itertools.pairwise(edges):
        values, use = _significance(*(plane[top:bottom] for plane in (image, variance, good)))
        # A cosmic ray would count as white noise.
        use &= np.abs(values - center) <= limit
        values = np.where(use, values - center, 0).astype(np.float32)
        values[use] -= values.sum(dtype=np.float64) / max(1, int(np.count_nonzero(use)))
        pairs += np.rint(_lag_sums(use.astype(np.float32), lags))
        products += _lag_sums(values, lags)
    return products / np.maximum(pairs, 1), pairs


def _usual_range(image: Array, variance: Array, good: Array) -> tuple[float, float]:
    """Median of the good pixels in standard deviations, and how far from it outliers begin."""
    step = max(1, math.isqrt(image.size // ENOUGH_PIXELS))
    values, use = _significance(*(plane[::step, ::step] for plane in (image, variance, good)))
    if not use.any():
        return 0.0, 0.0
    return float(np.median(values[use])), _OUTLIER * robust_sigma(values[use])


def _significance(image: Array, variance: Array, good: Array) -> tuple[Array, Array]:
    """Pixels in standard deviations, zero where not good; and a plane of the good pixels."""
    good = good & np.isfinite(image) & np.isfinite(variance) & (variance > 0)
    values = np.zeros(image.shape)
    np.divide(image, np.sqrt(np.where(good, variance, 1)), out=values, where=good)
    return values, good


def _lag_sums(plane: Array, lags: Array) -> Array:
    """Sums of the products of a plane's pixels at each lag; 0 where there are none."""
    largest = int(np.abs(lags).max())
    ny, nx = fourier.fast_shape(plane.shape, (largest + 1, largest + 1))
    plane_ft = fourier.forward(plane, (ny, nx))
    plane_ft *= plane_ft.conj()
    full = fourier.inverse(plane_ft, (ny, nx), (ny, nx))
    return full[lags[:, 0] % ny, lags[:, 1] % nx].astype(np.float64)


@dataclasses.dataclass(frozen=True)
class _Fit:
    """Noise, sources and constant, fitted to the correlations at the lags of a half plane.

    The noise is ρ_y(Δy)·ρ_x(Δx) plus departures from it at diagonal lags.  ``lags`` is without
    (0, 0); ``axes`` is (ρ_y, ρ_x), ``(2, L + 1)``; ``departures`` are at ``lags``, for unit noise
    power; ``free`` marks those not held at zero.  ``covariance`` is the parameters' covariance:
    ρ_y(1…L), ρ_x(1…L), the amplitudes of constant and sources, and the free departures.
    """

    lags: Array
    axes: Array
    departures: Array
    free: Array
    amplitudes: Array
    covariance: Array
    product_significance: float

    @property
    def noise_power(self) -> float:
        """Share of the noise in the pixel variance."""
        return float(1 - self.amplitudes.sum())

    @property
    def source_power(self) -> float:
        """Share of undetected sources in the pixel variance."""
        return float(self.amplitudes[1:].sum())

    def amplitude_error(self, first: int) -> float:
        """Standard error of the sum of the amplitudes from number ``first`` on."""
        start = 2 * (self.axes.shape[1] - 1)
        part = slice(start + first, start + len(self.amplitudes))
        return math.sqrt(float(self.covariance[part, part].sum()))


# The matrices are small: threads would take longer to wake up than they save.
@single_threaded_algebra()
def _fit(lags: Array, data: Array, pairs: Array, psf_sigma: float | None, max_lag: int) -> _Fit:
    size, others = max_lag, lags[1:]
    ay, ax = np.abs(others).T
    near = (ay <= size) & (ax <= size)
    diagonal = near & (ay > 0) & (ax > 0)
    inner = diagonal & (ay <= _INNER) & (ax <= _INNER)
    rings = np.array([inner, diagonal & ~inner])
    iy, ix = np.minimum(ay, size), np.minimum(ax, size)
    shapes = [np.ones(len(others))]
    if psf_sigma is not None:
        shapes.append(np.exp(-(others**2).sum(axis=1) / (4 * psf_sigma**2)))
    shape = np.array(shapes).T

    axes = np.zeros((2, size + 1))
    axes[:, 0] = 1
    for k in range(1, size + 1):
        axes[0, k] = data[(ay == k) & (ax == 0)].sum()
        axes[1, k] = data[(ax == k) & (ay == 0)].sum()
    amplitudes = np.zeros(shape.shape[1])
    departures = np.zeros(len(others))
    jacobian = np.zeros((len(others), 2 * size + shape.shape[1]))
    white = np.zeros((2 * size + 1, 2 * size + 1))
    white[size, size] = 1
    covariance_of = _DataCovariance.of(lags, pairs, size)
    weights = covariance_of(white)
    # Departures start as large as can be: diagonal lags then barely pull on the axes.
    prior = np.where(diagonal, _LARGEST_DEPARTURE**2, 0.0)
    # The data's covariance follows from the noise's, so each round improves the weights.
    for _ in range(_ROUNDS):
        root = np.linalg.cholesky(weights + np.diag(prior))
        for _ in range(_STEPS):
            power = 1 - amplitudes.sum()
            along_y, along_x = np.where(near, axes[0, iy], 0), np.where(near, axes[1, ix], 0)
            for k in range(1, size + 1):
                jacobian[:, k - 1] = power * along_x * (near & (ay == k))
                jacobian[:, size + k - 1] = power * along_y * (near & (ax == k))
            product = along_y * along_x
            jacobian[:, 2 * size :] = shape - product[:, None]
            residual = data - power * product - shape @ amplitudes
            whitened = _whitened(root, jacobian, residual)
            step = np.linalg.lstsq(whitened[:, :-1], whitened[:, -1])[0]
            axes[0, 1:] += step[:size]
            axes[1, 1:] += step[size : 2 * size]
            amplitudes += step[2 * size :]
            if np.abs(step).max() < _CONVERGED:
                break
        prior = _departure_variance(weights, jacobian, residual, rings)
        departures = prior * np.linalg.solve(weights + np.diag(prior), residual)
        departures /= 1 - amplitudes.sum()
        weights = covariance_of(_correlation(axes, others, departures))

    inverse = np.linalg.inv(weights)
    free = prior > 0
    design = np.column_stack([jacobian, np.eye(len(others))[:, free]])
    normal = design.T @ inverse @ design
    normal[len(normal) - np.count_nonzero(free) :, len(normal) - np.count_nonzero(free) :] += (
        np.diag(1 / prior[free])
    )
    product = jacobian.T @ inverse
    misfit = residual - jacobian @ np.linalg.lstsq(product @ jacobian, product @ residual)[0]
    return _Fit(
        lags=others,
        axes=axes,
        departures=departures,
        free=free,
        amplitudes=amplitudes,
        covariance=np.linalg.pinv(normal, hermitian=True),
        product_significance=max(
            standard_deviations(
                _chi_square(misfit[ring], weights[np.ix_(ring, ring)]), int(ring.sum())
            )
            for ring in rings
            if ring.any()
        ),
    )


def _whitened(root: Array, jacobian: Array, residual: Array) -> Array:
    columns = np.column_stack([jacobian, residual])
    solved: Array = scipy.linalg.solve_triangular(root, columns, lower=True, check_finite=False)
    return solved


def _departure_variance(weights: Array, jacobian: Array, residual: Array, rings: Array) -> Array:
    """Variance of the departures from a product, the most likely one for each ring of lags.

    Restricted maximum likelihood allows for the axes having been fitted to the same data.  The
    variance is zero unless another value is more likely by a factor that chance seldom gives.
    """
    scales = np.concatenate([[0.0], _LARGEST_DEPARTURE * 2.0 ** -np.arange(10)[::-1]]) ** 2
    may_depart = np.flatnonzero(rings.any(axis=0))
    # In units of the measurement's errors, and in the space that parameters, departures and data
    # span: elsewhere nothing depends on the variances, and the matrices are much smaller.
    units = np.zeros((len(residual), len(may_depart)))
    units[may_depart, np.arange(len(may_depart))] = 1
    columns = _whitened(np.linalg.cholesky(weights), np.hstack([jacobian, units]), residual)
    spanned = np.linalg.qr(columns, mode="r")
    last = jacobian.shape[1]
    parameters, data = spanned[:, :last], spanned[:, -1]
    departures = spanned[:, last:-1]

    def log_likelihoods(ring: int, others: Array) -> Array:
        """Of all scales of a ring, given those of the others."""
        own = rings[ring][may_depart]
        varying = np.where(own, 0.0, others @ rings[:, may_depart])
        root = np.linalg.cholesky(np.eye(len(spanned)) + (departures * varying) @ departures.T)
        columns = _whitened(root, np.hstack([parameters, departures[:, own]]), data)
        members = columns[:, last:-1]
        # In the basis of the ring's departures each scale only weighs the rows.
        power, axes = np.linalg.eigh(members @ members.T)
        turned = axes.T @ np.delete(columns, np.s_[last:-1], axis=1)
        variance = 1 + np.outer(scales, np.maximum(power, 0))
        triangles = np.linalg.qr(turned / np.sqrt(variance)[..., None], mode="r")
        # The last diagonal element is the residual that no parameter can remove.
        diagonal = np.abs(np.diagonal(triangles, axis1=1, axis2=2))
        result: Array = (
            -np.log(variance).sum(axis=1) / 2
            - np.log(np.maximum(diagonal[:, :-1], np.finfo(float).tiny)).sum(axis=1)
            - diagonal[:, -1] ** 2 / 2
        )
        return result

    best = np.zeros(len(rings))
    for ring in (0, 1, 0):
        likelihoods = log_likelihoods(ring, best)
        likelihoods[1:] -= _DEPARTURE_EVIDENCE
        best[ring] = scales[int(np.argmax(likelihoods))]
    variances: Array = best @ rings
    return variances


def _correlation(axes: Array, lags: Array, departures: Array) -> Array:
    """Map of the noise's correlation, (0, 0) at its centre."""
    size = axes.shape[1] - 1
    full = axes[:, np.abs(np.arange(-size, size + 1))]
    correlation = np.outer(full[0], full[1])
    near = (np.abs(lags) <= size).all(axis=1)
    y, x = (size + lags[near]).T
    correlation[y, x] += departures[near]
    correlation[2 * size - y, 2 * size - x] += departures[near]
    return correlation


@dataclasses.dataclass(frozen=True)
class _DataCovariance:
    """Covariance of measured correlations, lag (0, 0) left out, as a function of the true ones.

    Products at the lags a and b have the covariance q(a − b) + q(a + b) over the number of
    pairs, with q the autocorrelation of ρ (Bartlett 1946).  Dividing by the measured variance
    subtracts ρ times the variance's error from each.  ``minus`` and ``plus`` are the places of
    a − b and a + b in q, which has ``n`` × ``n`` lags.
    """

    lags: Array
    root_pairs: Array
    n: int
    minus: Array
    plus: Array

    @classmethod
    def of(cls, lags: Array, pairs: Array, size: int) -> _DataCovariance:
        n = 1 << math.ceil(math.log2(4 * int(np.abs(lags).max()) + 2 * size + 2))
        minus, plus = (
            (both[..., 0] % n) * n + both[..., 1] % n
            for both in (lags[:, None] - lags, lags[:, None] + lags)
        )
        return cls(lags, np.sqrt(pairs), n, minus, plus)

    def __call__(self, correlation: Array) -> Array:
        size, grid = correlation.shape[0] // 2, (self.n, self.n)
        power = fourier.forward(fourier.pad_center_origin(correlation, grid), grid).real
        q = fourier.inverse(np.maximum(power, FLOOR) ** 2 + 0j, grid, grid).ravel()
        products = np.take(q, self.minus) + np.take(q, self.plus)
        products /= np.outer(self.root_pairs, self.root_pairs)
        near = (np.abs(self.lags) <= size).all(axis=1)
        y, x = (size + np.clip(self.lags, -size, size)).T
        ratio = np.where(near, correlation[y, x], 0)[1:]
        shared = np.outer(ratio, products[0, 1:])
        covariance: Array = (
            products[1:, 1:] - shared - shared.T + products[0, 0] * np.outer(ratio, ratio)
        )
        return covariance


def _result(fit: _Fit, variance: float, n: int) -> NoiseCovariance:
    size = fit.axes.shape[1] - 1
    axes = fit.axes.copy()
    for axis, part in enumerate((slice(0, size), slice(size, 2 * size))):
        axes[axis, 1:] *= _kept(_chi_square(axes[axis, 1:], fit.covariance[part, part]), size)
    both = slice(0, 2 * size)
    chi_square = _chi_square(fit.axes[:, 1:].ravel(), fit.covariance[both, both])
    correlation = _correlation(axes, fit.lags, fit.departures)

    # Derivatives of the correlation with respect to axes and free departures.
    across = np.arange(-size, size + 1)
    full = axes[:, np.abs(across)]
    derivatives = [np.outer(np.abs(across) == k, full[1]) for k in range(1, size + 1)]
    derivatives += [np.outer(full[0], np.abs(across) == k) for k in range(1, size + 1)]
    flat = np.zeros_like(axes)
    for lag in np.flatnonzero(fit.free):
        unit = (np.arange(len(fit.lags)) == lag) / fit.noise_power
        derivatives.append(_correlation(flat, fit.lags, unit))
    gradient = np.array(derivatives)
    used = np.r_[0 : 2 * size, 2 * size + len(fit.amplitudes) : len(fit.covariance)]
    covariance = fit.covariance[np.ix_(used, used)]
    slope = gradient.sum(axis=(1, 2))
    ratio = variance * fit.noise_power
    return NoiseCovariance(
        correlation,
        f"measured on {n} source-free pixels",
        error=np.sqrt(np.einsum("iyx,ij,jyx->yx", gradient, covariance, gradient)),
        zero_frequency_error=math.sqrt(float(slope @ covariance @ slope)),
        significance=max(standard_deviations(chi_square, 2 * size), fit.product_significance),
        variance_ratio=ratio,
        variance_ratio_error=ratio
        * math.hypot(math.sqrt(2 * float((correlation**2).sum()) / n), fit.amplitude_error(0)),
        source_power=fit.source_power,
        source_power_error=fit.amplitude_error(1) if len(fit.amplitudes) > 1 else 0.0,
        pixels=n,
    )


def _chi_square(values: Array, covariance: Array) -> float:
    return float(values @ np.linalg.solve(covariance, values))


def _kept(chi_square: float, degrees: int) -> float:
    """Factor that shrinks values to 0 up to 2 sigma of excess power, and tends to 1 beyond."""
    expected = degrees + _SHRINKAGE * math.sqrt(2 * degrees)
    return max(0.0, 1 - (expected / chi_square) ** 2) if chi_square > 0 else 0.0
