"""Completeness and purity of detections, as arrays: injected sources against found ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError
from ..numerics import fourier
from ..numerics.threads import scipy_part, single_threaded_algebra

__all__ = [
    "CompletenessFit",
    "binned_completeness",
    "fit_completeness",
    "ideal_completeness",
    "ideal_peak_completeness",
    "ideal_signal_to_noise",
    "match_highest",
    "mean_and_width",
]

type Array = npt.NDArray[Any]

_ONE_SIGMA = math.erf(1 / math.sqrt(2))
_STEPS = 6
"""Grid points per radius of the patch on which ideal peaks are sought: between them, a maximum of
a Gaussian filter's noise falls short by less than 0.1 %."""
_BEYOND = 1.5
"""Half-size of that patch, in radii: peaks just outside the radius must be seen to be outside."""
_SAMPLES = 20_000
_PER_BATCH = 2_000
_PROBITS = (0.1, 3.0)
"""Smallest and largest width of a completeness curve that a fit allows."""


def _beta_quantile(level: float, hits: Array, trials: Array) -> Array:
    """Quantile of a fraction of successes, with Jeffreys' prior."""
    return np.asarray(scipy.special.betaincinv(hits + 0.5, trials - hits + 0.5, level))


def binned_completeness(
    signal_to_noise: Array, found: Array, edges: Array
) -> dict[str, list[float | int | None]]:
    """Fraction of sources that were found, in bins of their signal-to-noise ratio.

    Parameters
    ----------
    signal_to_noise
        ``(n,)``.
    found
        ``(n,)`` boolean.
    edges
        ``(m + 1,)`` increasing.

    Returns
    -------
    bins
        ``lower``, ``upper`` edge, ``injected``, ``found``, ``completeness`` and the ends of its
        68.3 % interval ``completeness_low``, ``completeness_high``: ``m`` each; the last three are
        None where nothing was injected.

    Notes
    -----
    The interval follows from Jeffreys' prior for a binomial (Cameron 2011), and reaches to 0 or 1
    where none or all were found.
    """
    index = np.searchsorted(edges, signal_to_noise, side="right") - 1
    inside = (index >= 0) & (index < len(edges) - 1)
    injected = np.bincount(index[inside], minlength=len(edges) - 1)
    hits = np.bincount(index[inside & found], minlength=len(edges) - 1)
    tail = (1 - _ONE_SIGMA) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        fraction = hits / injected
        low = np.where(hits > 0, _beta_quantile(tail, hits, injected), 0.0)
        high = np.where(
            hits < injected,
            _beta_quantile(1 - tail, hits, injected),
            1.0,
        )
    known = injected > 0

    def values(array: Array) -> list[float | int | None]:
        return [float(v) if k else None for v, k in zip(array, known, strict=True)]

    return {
        "lower": [float(v) for v in edges[:-1]],
        "upper": [float(v) for v in edges[1:]],
        "injected": [int(v) for v in injected],
        "found": [int(v) for v in hits],
        "completeness": values(fraction),
        "completeness_low": values(low),
        "completeness_high": values(high),
    }


@dataclasses.dataclass(frozen=True)
class CompletenessFit:
    """Signal-to-noise ratios at which a completeness curve passes 50 % and 95 %.

    Attributes
    ----------
    half, half_error
        Signal-to-noise ratio at which half of the sources are found, and its standard error.
    nearly, nearly_error
        The same for 95 %; None if the curve stays below, or passes beyond the injected range.
    width
        Width of the curve: 1 for a known position and noise of unit variance.
    ceiling
        Completeness of bright sources.
    injected
        Number of sources.
    """

    half: float
    half_error: float
    nearly: float | None
    nearly_error: float | None
    width: float
    ceiling: float
    injected: int

    def to_dict(self) -> dict[str, float | None]:
        """Numbers of the fit, for JSON.

        Returns
        -------
        numbers
            Attribute → value.
        """
        return dataclasses.asdict(self)


def fit_completeness(signal_to_noise: Array, found: Array) -> CompletenessFit | None:
    """Fit the curve ``ceiling · Φ((s − m)/width)`` to injected sources.

    Parameters
    ----------
    signal_to_noise
        ``(n,)``.
    found
        ``(n,)`` boolean.

    Returns
    -------
    fit
        `CompletenessFit`; None if the sources do not determine it: fewer than ten, all or none
        found, or the curve does not pass 50 % within the injected range.

    Notes
    -----
    Maximum likelihood of the single sources, without bins; errors from the curvature of the
    likelihood.  Φ is the normal distribution function, the curve of a known position with
    Gaussian noise.
    """
    n = len(found)
    if n < 10 or found.all() or not found.any():
        return None
    ends = float(signal_to_noise.min()), float(signal_to_noise.max())

    def loss(parameters: Array) -> float:
        middle, width, ceiling = _decoded(parameters)
        p = ceiling * scipy.special.ndtr((signal_to_noise - middle) / width)
        p = np.clip(p, 1e-12, 1 - 1e-12)
        return -float(np.log(np.where(found, p, 1 - p)).sum())

    # Bounds by arctan and logit would bend the likelihood where the curve reaches 1.
    start = np.array([float(np.median(signal_to_noise)), 0.0, 0.995])
    bounds = [(ends[0] - 2, ends[1] + 2), tuple(np.log(_PROBITS)), (0.05, 1.0)]
    best = min(
        (
            scipy_part("optimize").minimize(
                loss,
                np.array([first, *start[1:]]),
                method="Nelder-Mead",
                bounds=bounds,
                options={"xatol": 1e-5, "fatol": 1e-5, "maxiter": 2000},
            )
            for first in np.quantile(signal_to_noise, (0.2, 0.5))
        ),
        key=lambda result: float(result.fun),
    )
    covariance = _covariance(loss, best.x, [name for name in range(3) if _is_free(best.x, name)])
    half = _crossing(best.x, 0.5)
    if covariance is None or half is None or not ends[0] < half < ends[1]:
        return None
    nearly = _crossing(best.x, 0.95)
    if nearly is not None and nearly > ends[1]:
        nearly = None
    _, width, ceiling = _decoded(best.x)
    half_error = _crossing_error(best.x, covariance, 0.5)
    if half_error is None:
        return None
    return CompletenessFit(
        half=half,
        half_error=half_error,
        nearly=nearly,
        nearly_error=None if nearly is None else _crossing_error(best.x, covariance, 0.95),
        width=width,
        ceiling=ceiling,
        injected=n,
    )


def _decoded(parameters: Array) -> tuple[float, float, float]:
    return float(parameters[0]), math.exp(float(parameters[1])), min(float(parameters[2]), 1.0)


def _is_free(parameters: Array, number: int) -> bool:
    """Whether the curvature gives the error of a parameter: not for a ceiling at its bound, 1."""
    return number < 2 or float(parameters[2]) < 1 - 1e-4


def _crossing(parameters: Array, level: float) -> float | None:
    """Signal-to-noise ratio at which the curve passes a level; None if it stays below."""
    middle, width, ceiling = _decoded(parameters)
    if ceiling <= level:
        return None
    return middle + width * float(scipy.special.ndtri(level / ceiling))


def _crossing_error(parameters: Array, covariance: Array, level: float) -> float | None:
    gradient = np.zeros(3)
    for i in range(3):
        step = np.zeros(3)
        step[i] = 1e-5 if i < 2 else -1e-5
        moved, here = _crossing(parameters + step, level), _crossing(parameters, level)
        if moved is None or here is None:
            return None
        gradient[i] = (moved - here) / step[i]
    return math.sqrt(max(float(gradient @ covariance @ gradient), 0.0))


def _covariance(loss: Callable[[Array], float], at: Array, free: list[int]) -> Array | None:
    """Inverse of the second derivatives in the free parameters; zero in the others."""
    steps = np.array([1e-2, 1e-2, 1e-3])
    steps[2] = min(1e-3, max((1 - float(at[2])) / 2, 1e-6))
    hessian = np.zeros((len(free), len(free)))
    for a, i in enumerate(free):
        for b, j in enumerate(free):
            value = 0.0
            for sign_i in (1, -1):
                for sign_j in (1, -1):
                    moved = at.astype(np.float64)
                    moved[i] += sign_i * steps[i]
                    moved[j] += sign_j * steps[j]
                    value += sign_i * sign_j * loss(moved)
            hessian[a, b] = value / (4 * steps[i] * steps[j])
    try:
        inverse = np.linalg.inv(hessian)
    except np.linalg.LinAlgError:
        return None
    if not (np.diag(inverse) > 0).all():
        return None
    covariance = np.zeros((3, 3))
    covariance[np.ix_(free, free)] = inverse
    return covariance


def ideal_completeness(signal_to_noise: Array, threshold: float) -> Array:
    """Completeness of the ideal matched filter at a known position.

    Parameters
    ----------
    signal_to_noise
        Any shape.
    threshold
        Standard deviations.

    Returns
    -------
    completeness
        ``Φ(s − threshold)``: the filter's output is normal with mean s and variance 1.
    """
    return np.asarray(scipy.special.ndtr(np.asarray(signal_to_noise) - threshold))


@single_threaded_algebra()
def ideal_peak_completeness(
    signal_to_noise: Array,
    threshold: float,
    psf: Array,
    *,
    radius: float,
    rng: np.random.Generator,
    samples: int = _SAMPLES,
) -> Array:
    """Completeness of the ideal matched filter for the highest peak near a position.

    Parameters
    ----------
    signal_to_noise
        ``(n,)`` signal-to-noise ratio of the filter at the true position.
    threshold
        Standard deviations.
    psf
        ``(py, px)`` PSF in white noise, and filter.
    radius
        Radius within which a peak counts, pixels.
    rng
        Random numbers.
    samples
        Number of realisations of the noise.

    Returns
    -------
    completeness
        ``(n,)``: probability of a local maximum above the threshold within the radius.

    Notes
    -----
    The filter's output around a source is ``s·ρ(r) + g(r)`` with the autocorrelation ρ of the
    PSF, of unit peak, and a Gaussian field g of covariance ρ.  g is drawn on points a sixth of
    the radius apart.  The mean is taken of the difference to a known position, whose completeness
    is known exactly: it has less scatter.
    """
    if not radius > 0:
        raise ArgumentError(f"The radius must be positive; got {radius:g} pixels.")
    half = math.ceil(_BEYOND * _STEPS)
    grid = np.arange(-half, half + 1) * (radius / _STEPS)
    correlation = _autocorrelation_at(psf, np.arange(-2 * half, 2 * half + 1) * (radius / _STEPS))
    side = len(grid)
    profile = correlation[half : half + side, half : half + side].reshape(-1)
    y, x = (a.reshape(-1) for a in np.mgrid[:side, :side])
    covariance = correlation[y[:, None] - y[None, :] + 2 * half, x[:, None] - x[None, :] + 2 * half]
    values, vectors = np.linalg.eigh(covariance)
    # The symmetric root does not depend on the choice of vectors of nearly equal eigenvalues.
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    near = np.hypot(*np.meshgrid(grid, grid))[1:-1, 1:-1] <= radius
    gained = np.zeros(len(signal_to_noise))
    for first in range(0, samples, _PER_BATCH):
        batch = min(_PER_BATCH, samples - first)
        noise = (rng.normal(size=(batch, side**2)) @ root.T).astype(np.float32)
        for i, s in enumerate(np.asarray(signal_to_noise, dtype=np.float64).tolist()):
            field = (noise + np.float32(s) * profile.astype(np.float32)).reshape(batch, side, side)
            peak = _has_peak(field, threshold, near)
            gained[i] += float(peak.sum()) - float((field[:, half, half] >= threshold).sum())
    return np.clip(ideal_completeness(signal_to_noise, threshold) + gained / samples, 0.0, 1.0)


def _has_peak(field: Array, threshold: float, near: Array) -> Array:
    """Which fields have a local maximum above the threshold at one of the near points."""
    inner = field[:, 1:-1, 1:-1]
    peak = (inner >= threshold) & near
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            if (dy, dx) != (1, 1):
                ny, nx = field.shape[1:]
                peak &= inner >= field[:, dy : ny - 2 + dy, dx : nx - 2 + dx]
    return peak.any(axis=(1, 2))


def _autocorrelation_at(psf: Array, lags: Array) -> Array:
    """Autocorrelation of a PSF at any lags, 1 at zero lag: ``(len(lags), len(lags))``."""
    shape = fourier.fast_shape(psf.shape, psf.shape)
    spectrum = np.abs(np.fft.fft2(psf, shape)) ** 2
    waves = [np.exp(2j * np.pi * np.outer(lags, np.fft.fftfreq(length))) for length in shape]
    result = (waves[0] @ spectrum @ waves[1].T).real
    return result / float(spectrum.sum())


def ideal_signal_to_noise(
    science_psf: Array,
    template_psf: Array,
    *,
    science_variance: Array | float,
    template_variance: Array | float,
    flux_scale: float = 1.0,
) -> Array:
    """Signal-to-noise ratio of a new source of unit flux, by the ideal matched filter.

    Parameters
    ----------
    science_psf, template_psf
        PSF images centred on ``[py//2, px//2]``, unit sum.
    science_variance, template_variance
        Variance of the white noise of each image, image_unit²; shapes that broadcast.
    flux_scale
        Science counts per template count.

    Returns
    -------
    ratio
        Per image_unit of the science image, in the variances' broadcast shape.

    Notes
    -----
    Zackay, Ofek & Gal-Yam 2016, eqs. 12 to 15: the root of the mean over all frequencies of
    ``|p̂_s|²|p̂_t|² / (V_s|p̂_t|² + V_t F²|p̂_s|²)``.  No difference of the two images can do better.
    """
    shape = fourier.fast_shape(science_psf.shape, science_psf.shape, template_psf.shape)
    science, template = (
        np.abs(np.fft.fft2(psf, shape)) ** 2 for psf in (science_psf, template_psf)
    )
    variances = np.broadcast_arrays(
        np.asarray(science_variance, dtype=np.float64),
        np.asarray(template_variance, dtype=np.float64) * flux_scale**2,
    )
    result = np.empty(variances[0].shape)
    for place in np.ndindex(result.shape):
        denominator = variances[0][place] * template + variances[1][place] * science
        # Frequencies at which neither PSF has power hold no signal.
        power = np.divide(
            science * template, denominator, out=np.zeros(shape), where=denominator > 0
        )
        result[place] = math.sqrt(float(power.mean()))
    return result


def match_highest(
    x: Array, y: Array, found_x: Array, found_y: Array, height: Array, radius: float
) -> Array:
    """Highest detection near each position.

    Parameters
    ----------
    x, y
        ``(n,)`` positions, pixels.
    found_x, found_y, height
        ``(m,)`` positions of detections, and the height by which they are compared.
    radius
        Pixels.

    Returns
    -------
    index
        ``(n,)`` index of the detection; −1 if there is none within the radius.
    """
    index = np.full(len(x), -1)
    if len(found_x) == 0 or len(x) == 0:
        return index
    tree = scipy_part("spatial").cKDTree(np.stack([found_x, found_y], 1))
    for i, near in enumerate(tree.query_ball_point(np.stack([x, y], 1), radius)):
        if near:
            index[i] = max(near, key=lambda k: (float(height[k]), -k))
    return index


def mean_and_width(values: Array, weights: Array | None = None) -> dict[str, float | int | None]:
    """Mean and width of pulls or residuals, with their errors.

    Parameters
    ----------
    values
        ``(n,)``; values that are not finite are left out.
    weights
        ``(n,)`` weights of the mean, inverse variances; equal if not given.

    Returns
    -------
    numbers
        ``count``, ``mean``, ``mean_error``, ``width`` (standard deviation), ``width_error`` and
        ``robust_width`` (0.7413 of the interquartile range); all but ``count`` are None if fewer
        than two values are left.
    """
    good = np.isfinite(values)
    if weights is not None:
        good &= np.isfinite(weights) & (weights > 0)
    values = np.asarray(values, dtype=np.float64)[good]
    n = len(values)
    if n < 2:
        names = ("mean", "mean_error", "width", "width_error", "robust_width")
        return {"count": n} | dict.fromkeys(names)
    weight = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)[good]
    mean = float(np.average(values, weights=weight))
    error = math.sqrt(float((weight**2 * (values - mean) ** 2).sum())) / float(weight.sum())
    width = float(np.std(values, ddof=1))
    # The fourth moment gives the width's error for any distribution.
    fourth = float(((values - values.mean()) ** 4).mean())
    scatter = math.sqrt(max(fourth - width**4, 0.0) / n) / (2 * width) if width > 0 else 0.0
    low, high = np.percentile(values, (25, 75))
    return {
        "count": n,
        "mean": mean,
        "mean_error": error,
        "width": width,
        "width_error": scatter,
        "robust_width": 0.7413 * float(high - low),
    }
