"""Whitening the noise of a difference of two stacks, on plain arrays.

Each stack is the weighted mean or the median of exposures, its members, most of which were
convolved with kernels of their own to share one PSF; one of the two stacks may have been convolved
once more, with the matching kernel.  Every convolution correlates noise, and the noise power of
the difference is the sum over all members.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy

from ..direction import Direction
from ..errors import ArgumentError, DataError
from ..numerics import fourier
from ..numerics.covariance import NoiseCovariance
from .correction import checked_kernel

__all__ = [
    "DEFAULT_FLOOR",
    "Combination",
    "Member",
    "StackCorrection",
    "median_shares",
    "median_variance_ratio",
    "stack_correction",
]

type Array = npt.NDArray[Any]

type Combination = Literal["mean", "median"]
"""How a stack's members were combined."""

DEFAULT_FLOOR = 1e-3
"""Noise power, over the power at zero frequency, below which the correction stops rising.

Kernels of sigma 0.8 to 3 pixels on all members: 1e-2 moves the variance of a PSF-filtered
pixel by up to 4e-3, 1e-3 by 1e-4, and amplifies 32 times; 1e-5 would amplify 300 times and
reach beyond 96 pixels.
"""

_SIMULATED_SIDE = 96
_REALISATIONS = 24
_SEED = 1
_WAVES = 3
"""Periods per sampling frequency of the fastest function that corrects a median's power."""
_LEAST_RATIO = 0.1
_LEAST_POWER = 1e-6
"""Bounds that keep a median's power positive: of its correction, and of the power itself."""
_NODES = 200
_SHARE_NODES = 1001
_WIDEST = 9.0
"""Standard deviations beyond which a Gaussian is negligible in double precision."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """Noise of one exposure of a stack.

    Attributes
    ----------
    variance
        Mean variance per pixel before the convolution, image_unit²; finite, positive.
    kernel
        ``(ky, kx)`` kernel of the convolution, origin at ``[ky//2, kx//2]``, with any sum but
        zero; None if it was not convolved.
    weight
        Weight in the stack, relative to the others; finite, positive.
    noise
        Covariance of the noise before the convolution; None for white noise.
    """

    variance: float
    kernel: Array | None = None
    weight: float = 1.0
    noise: NoiseCovariance | None = None


@dataclasses.dataclass(frozen=True)
class StackCorrection:
    """Fourier factor that whitens a difference of stacks, and numbers of the corrected noise.

    Attributes
    ----------
    shape
        ``(ny, nx)`` of the transform grid.
    correction_ft
        ``(ny, nx//2 + 1)`` real, float64; 1 at zero frequency.
    variance_weights
        Variance plane of the corrected image per unit variance of each member, the science members
        first.
    variance
        Mean variance of a corrected pixel, image_unit².
    white_variance
        Noise power at zero frequency, image_unit²: the variance of a corrected pixel if no
        frequency is floored, and always the variance of the white noise that a PSF filter sees;
        the sum of the members' variances times these weights.
    floored_fraction
        Fraction of the frequencies whose noise power is below the floor.
    largest
        Largest value of the correction.
    flux_error
        Relative error of the flux scale by the errors of the members' noise covariances.
    """

    shape: tuple[int, int]
    correction_ft: Array
    variance_weights: tuple[float, ...]
    variance: float
    white_variance: float
    floored_fraction: float
    largest: float
    flux_error: float = 0.0

    @property
    def filtered_ratio(self) -> float:
        """Variance of a PSF-filtered pixel, over its variance in white noise of equal variance.

        1 without a floored frequency.  The floor lowers the pixel variance at high frequencies,
        where the PSF has no power, and not the variance of the filtered image.
        """
        return self.white_variance / self.variance


def stack_correction(
    science: Sequence[Member],
    template: Sequence[Member],
    *,
    shape: tuple[int, int],
    matching_kernel: Array | None = None,
    convolved: Direction = "template",
    floor: float = DEFAULT_FLOOR,
    combine: Combination = "mean",
) -> StackCorrection:
    """Fourier factor that whitens a difference of two stacks.

    Parameters
    ----------
    science, template
        Members of the two stacks, at least one each; their noise is independent.
    shape
        Transform grid, at least as large as every kernel.
    matching_kernel
        ``(ky, kx)`` kernel that one stack was convolved with as a whole; None if none was.
    convolved
        Which stack was convolved with it.
    floor
        Noise power, over the power at zero frequency, below which the correction stops rising; at
        least 0 and below 1.
    combine
        How the members of either stack were combined.

    Returns
    -------
    correction
        ``sqrt(P(0)/P)`` with the noise power P, and the numbers of the corrected noise.

    Raises
    ------
    ArgumentError
        If a stack has no member, a kernel is not finite, sums to zero or exceeds the grid, a
        weight is not positive, medians have weights, or the floor is out of range.
    DataError
        If a mean variance is not positive and finite, or without a floor the noise has no power
        at some frequency.

    Notes
    -----
    ``D = Σ w_j κ_j⊗S_j / Σ w_j − κ⊗Σ w_i κ_i⊗T_i / Σ w_i`` has the noise power

        ``P = Σ w_j² σ_j² N_j |κ̂_j|² / (Σ w_j)² + |κ̂|² Σ w_i² σ_i² N_i |κ̂_i|² / (Σ w_i)²``

    per pixel, with the members' own noise spectra N.  This is the decorrelation of SFFT (Hu et al.
    2022, ApJ 936, 157) with weights and correlated noise, scaled to 1 at zero frequency.

    If every member was convolved, P vanishes at high frequencies, and the factor would amplify
    rounding errors by millions.  P is therefore replaced by
    ``hypot(P, floor·P(0)) / sqrt(1 + floor²)``, which is P(0) at zero frequency and has no
    kink to ring.  Frequencies below the floor are then not white but lack power: the pixel
    variance is below `StackCorrection.white_variance`.  An image filtered with the PSF, which has
    no power there, keeps its variance.  Sources are found on such an image, so the weights are
    each member's part of the pixel variance, times the ratio of the two variances.

    Medians are no filter.  A member's share in the linear part of the median is the probability
    that it is in the middle, `median_shares`; the rest is uncorrelated with all members and
    whiter.  For many members of equal variance, with the correlation ρ between two pixels, medians
    have the correlation ``arcsin ρ``, up to a factor (Van Vleck & Middleton 1966), with the linear
    part ρ; the excess over ρ, scaled to `median_variance_ratio`, is a first estimate of the rest.
    A smooth function of the frequency, found by simulation on 24 grids of 96² pixels (larger ones
    for large kernels), fits it to the actual members, to about 2 % of it.  Neglected: noise that
    is not Gaussian, and sources, whose PSFs must agree.

    A `NoiseCovariance` has a floor of its own.  Where that decides, as with a member shifted
    by half a pixel as the only one not convolved, the variance is the floored one: too large.
    """
    if not 0 <= floor < 1:
        raise ArgumentError(f"The floor must be at least 0 and below 1; got {floor:g}.")
    if convolved not in ("template", "science"):
        raise ArgumentError(f"convolved must be 'template' or 'science'; got {convolved!r}.")
    if combine not in ("mean", "median"):
        raise ArgumentError(f"combine must be 'mean' or 'median'; got {combine!r}.")
    powers = {
        name: _noise_powers(name, members, shape, combine)
        for name, members in (("science", science), ("template", template))
    }
    if matching_kernel is not None:
        gain = _squared_modulus("matching kernel", matching_kernel, shape)
        powers[convolved] = [power * gain for power in powers[convolved]]
    every = powers["science"] + powers["template"]
    power: Array = np.sum(every, axis=0)
    white = float(power[0, 0])
    relative = power / white
    if floor == 0 and not (relative > 0).all():
        raise DataError(
            "Every member was convolved, and at some frequencies nothing is left of the noise; the"
            " correction needs a floor above 0."
        )
    bounded = np.hypot(relative, floor) / math.hypot(1.0, floor)
    correction_ft = 1 / np.sqrt(bounded)
    members = (*science, *template)
    variances = [member.variance for member in members]
    # The relative error of an amplitude is half of the power's.
    errors = [
        float(each[0, 0]) * member.noise.zero_frequency_error / member.noise.zero_frequency
        for each, member in zip(every, members, strict=True)
        if member.noise is not None
    ]
    propagated = [fourier.mean_square_modulus(np.sqrt(each / bounded), shape) for each in every]
    pixel = float(sum(propagated))
    return StackCorrection(
        shape=shape,
        correction_ft=correction_ft,
        variance_weights=tuple(
            float(each / variance * white / pixel)
            for each, variance in zip(propagated, variances, strict=True)
        ),
        variance=pixel,
        white_variance=white,
        floored_fraction=fourier.mean_square_modulus((relative < floor).astype(float), shape),
        largest=float(correction_ft.max()),
        flux_error=0.5 * math.hypot(*errors) / white,
    )


def _noise_powers(
    name: str, members: Sequence[Member], shape: tuple[int, int], combine: Combination
) -> list[Array]:
    """Noise power of each member in a stack, at each frequency."""
    if not members:
        raise ArgumentError(f"The {name} stack has no member; it needs at least one.")
    for i, member in enumerate(members, 1):
        if not (math.isfinite(member.weight) and member.weight > 0):
            raise ArgumentError(
                f"The weight of {name} member {i} must be positive and finite; got"
                f" {member.weight:g}. Leave out a member that does not count."
            )
        if not (math.isfinite(member.variance) and member.variance > 0):
            raise DataError(
                f"The mean variance of {name} member {i} must be positive and finite; got"
                f" {member.variance:g}."
            )
    weights = np.array([member.weight for member in members])
    if combine == "median" and not (weights == weights[0]).all():
        raise ArgumentError(
            f"The members of the {name} stack have the weights"
            f" {', '.join(f'{weight:g}' for weight in weights)}, but a median knows none; leave"
            " them out, or combine by the mean."
        )
    powers = _member_powers(name, members, shape)
    # The median of two is their mean.
    if combine == "mean" or len(members) <= 2:
        shares = weights / weights.sum()
        return [share**2 * power for share, power in zip(shares, powers, strict=True)]
    shares = median_shares(np.sqrt([_mean(power, shape) for power in powers]))
    excess = _median_excess(powers, shares, shape)
    sides = [n for m in members if m.kernel is not None for n in m.kernel.shape]
    n = scipy.fft.next_fast_len(max(_SIMULATED_SIDE, 2 * max(sides, default=1)), real=True)
    ratio = _simulated_ratio(_member_powers(name, members, (n, n)), shares, n) @ _waves(shape)
    scale = np.maximum(ratio.reshape(powers[0].shape), _LEAST_RATIO)
    return [
        share**2 * power + scale * more
        for share, power, more in zip(shares, powers, excess, strict=True)
    ]


def _member_powers(name: str, members: Sequence[Member], shape: tuple[int, int]) -> list[Array]:
    """Noise power of each convolved member."""
    powers = []
    for i, member in enumerate(members, 1):
        power = np.full((shape[0], shape[1] // 2 + 1), float(member.variance))
        if member.noise is not None:
            power *= member.noise.spectrum(shape)
        if member.kernel is not None:
            power *= _squared_modulus(f"kernel of {name} member {i}", member.kernel, shape)
        powers.append(power)
    return powers


def _mean(power: Array, shape: tuple[int, int]) -> float:
    return fourier.mean_square_modulus(np.sqrt(power), shape)


def _squared_modulus(name: str, kernel: Array, shape: tuple[int, int]) -> Array:
    kernel, _ = checked_kernel(name, np.asarray(kernel))
    if any(n > grid for n, grid in zip(kernel.shape, shape, strict=True)):
        raise ArgumentError(f"The {name} {kernel.shape} is larger than the grid {shape}.")
    kernel_ft = fourier.forward(fourier.pad_center_origin(kernel, shape), shape)
    modulus: Array = kernel_ft.real**2 + kernel_ft.imag**2
    return modulus


def _median_excess(powers: list[Array], shares: Array, shape: tuple[int, int]) -> list[Array]:
    """Power of the nonlinear part of a median, as if members were many and alike; positive."""
    n = len(powers)
    excess, slope = median_variance_ratio(n) - 1, 1 - 1 / n**2
    result = []
    for power, share in zip(powers, shares, strict=True):
        variance = _mean(power, shape)
        covariance = fourier.inverse(power.astype(np.complex128), shape, shape)
        argument = slope * np.clip(covariance / variance, -1, 1)
        left = (np.arcsin(argument) - argument) / (math.asin(slope) - slope)
        more = fourier.forward(excess * share**2 * variance * left, shape).real
        result.append(np.maximum(more, _LEAST_POWER * more.max()))
    return result


def _simulated_ratio(powers: list[Array], shares: Array, n: int) -> Array:
    """Coefficients of `_waves` for simulated power over that of `_median_excess`."""
    shape = (n, n)
    # The same random numbers every time, so that equal members give equal corrections, and members
    # that vary smoothly over the field give smooth ones.
    rng = np.random.default_rng(_SEED)
    amplitudes = [np.sqrt(power) for power in powers]
    simulated = np.zeros_like(powers[0])
    for _ in range(_REALISATIONS):
        noise = np.stack(
            [
                fourier.inverse(fourier.forward(rng.normal(size=shape), shape) * each, shape, shape)
                for each in amplitudes
            ]
        )
        left = np.median(noise, axis=0) - np.tensordot(shares, noise, axes=1)
        left_ft = fourier.forward(left, shape)
        simulated += left_ft.real**2 + left_ft.imag**2
    ratio = simulated / (
        _REALISATIONS * n**2 * np.sum(_median_excess(powers, shares, shape), axis=0)
    )
    waves = _waves(shape)
    coefficients: Array = np.linalg.solve(waves @ waves.T, waves @ ratio.ravel())
    return coefficients


def _waves(shape: tuple[int, int]) -> Array:
    """Smooth real functions of the frequency, even about zero, one per row."""
    y = 2 * np.pi * np.fft.fftfreq(shape[0])[:, None]
    x = 2 * np.pi * np.fft.rfftfreq(shape[1])
    orders = range(_WAVES + 1)
    waves = [np.cos(a * y) * np.cos(b * x) for a in orders for b in orders]
    waves += [np.sin(a * y) * np.sin(b * x) for a in orders[1:] for b in orders[1:]]
    return np.stack(waves).reshape(len(waves), -1)


@functools.lru_cache(maxsize=256)
def median_variance_ratio(n: int) -> float:
    """Variance of the median of n Gaussians of equal variance, over that of their mean.

    Parameters
    ----------
    n
        Number of values; positive.

    Returns
    -------
    ratio
        1 for one and two; 1.35, 1.19, 1.43, 1.29 for three to six; tends to π/2.

    Raises
    ------
    ArgumentError
        If n is not positive.

    Notes
    -----
    Quadrature of the density of the middle order statistic, or of half the sum of the two
    middle ones (David & Nagaraja 2003, Order Statistics, sect. 2.1 and 2.2).

    Examples
    --------
    >>> [round(median_variance_ratio(n), 4) for n in (2, 3, 4, 5)]
    [1.0, 1.346, 1.1928, 1.4342]
    """
    if n < 1:
        raise ArgumentError(f"A median needs at least one value; got {n}.")
    if n <= 2:
        return 1.0
    nodes, node_weights = np.polynomial.legendre.leggauss(_NODES)
    reach = 10 * math.sqrt(math.pi / 2 / n)
    x, dx = reach * nodes[:, None], reach * node_weights[:, None]
    log_ndtr = scipy.special.log_ndtr
    half = n // 2
    if n % 2:
        log_density = (
            math.lgamma(n + 1)
            - 2 * math.lgamma(half + 1)
            - 0.5 * math.log(2 * math.pi)
            - 0.5 * x**2
            + half * (log_ndtr(x) + log_ndtr(-x))
        )
        return float(n * np.sum(dx * x**2 * np.exp(log_density)))
    # Half the distance of the two middle values, whose mean is x.
    largest_gap = min(_WIDEST, 100 / n)
    gap, dgap = largest_gap * (nodes + 1) / 2, largest_gap * node_weights / 2
    log_density = (
        math.lgamma(n + 1)
        - 2 * math.lgamma(half)
        + math.log(2)
        - math.log(2 * math.pi)
        - x**2
        - gap**2
        + (half - 1) * (log_ndtr(x - gap) + log_ndtr(-x - gap))
    )
    return float(n * np.sum(dx * dgap * x**2 * np.exp(log_density)))


def median_shares(sigmas: Array) -> Array:
    """Shares of independent Gaussians of mean zero in the linear part of their median.

    Parameters
    ----------
    sigmas
        ``(n,)`` standard deviations, positive.

    Returns
    -------
    shares
        ``(n,)``, sum 1: the probability of each to be the median, or for even n the mean of the
        probabilities to be either middle value.  They fall about as 1/sigma.

    Notes
    -----
    By Stein's lemma the covariance of the median with a value is the value's variance times the
    mean derivative of the median by it, which is this probability.
    """
    sigmas = np.asarray(sigmas, dtype=np.float64)
    n = len(sigmas)
    # Steps grow outwards, to resolve the narrowest Gaussian and still cover the widest.
    scale = float(sigmas.min()) / n
    t = np.linspace(-1, 1, _SHARE_NODES) * math.asinh(_WIDEST * float(sigmas.max()) / scale)
    x, dx = scale * np.sinh(t), scale * np.cosh(t) * (t[1] - t[0])
    below = scipy.special.ndtr(x / sigmas[:, None])
    shares = np.empty(n)
    for i in range(n):
        # Probability that exactly so many of the others are below x.
        count = np.zeros((n, len(x)))
        count[0] = 1
        for other in np.delete(below, i, axis=0):
            count[1:] = count[1:] * (1 - other) + count[:-1] * other
            count[0] *= 1 - other
        middle = count[n // 2] if n % 2 else (count[n // 2 - 1] + count[n // 2]) / 2
        density = np.exp(-0.5 * (x / sigmas[i]) ** 2) / (sigmas[i] * math.sqrt(2 * math.pi))
        shares[i] = np.sum(density * middle * dx)
    total: float = shares.sum()
    return shares / total
