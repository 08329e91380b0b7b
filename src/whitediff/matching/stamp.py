"""Kernels for small stamps, which hold few stars or none.

A stamp bears no choice of stars.  Its kernel is found from all of its pixels, from the two
PSFs where these are known, or from both; what these do not tell is told by a Gaussian process
around a Gaussian kernel.  The result knows its own error, pixel by pixel and for sums of pixels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError, DataError
from ..numerics.profiles import FWHM_TO_SIGMA, full_width_half_maximum
from ..stars.points import Points, find_points, pairs

__all__ = ["FluxScale", "KernelError", "StampKernel", "StampOptions", "fit_stamp", "near"]

type Array = npt.NDArray[Any]

_SIGMA_RANGE = (0.4, 6.0)
"""Widths of kernels, pixels: below, a sampled Gaussian is none."""
_FWHM_RANGE = (1.0, 8.0)
_USUAL_SIGMA, _USUAL_FWHM = 0.7, 2.2
_LOW = 33
"""Percentile of the widths of sources that is a star's, where some are galaxies."""
_SIGMA_PRIOR, _SIGMA_PRIOR_ALONE, _SIGMA_PRIOR_PSF = 0.25, 0.5, 0.1
"""Errors of a kernel's width from common sources, from others, and from PSFs, pixels."""
_SHIFT_PRIOR, _SHIFT_PRIOR_PSF = 0.3, 0.1
"""Errors of the stamps' alignment where it is fitted, and where PSFs are centred, pixels."""
_LEVEL_PRIOR = 3.0
"""Error of the differential background, in standard deviations of a pixel."""
_BEYOND = 1e-3
"""Of a kernel, what wings beyond its square may hold."""
_MODEL_ERROR, _ROBUST_MODEL_ERROR = 0.01, 0.05
"""Of the convolved template, what no kernel describes: in the fit, and where pixels are rejected
and by a Gaussian, which undersampled cores differ from."""
_CAUCHY = 2.5
_SPOT, _SPOT_ERROR = 6.0, 0.7
"""Radius around a transient that is fitted with it, and error of its place, pixels."""
_GAUSSIAN_SIDE, _GAUSSIAN_ITERATIONS, _STEP = 17, 8, 0.02
_SIZES, _WIDE_SIGMA, _PSF_SIZE = (9, 11), 1.2, 15
"""Sides of kernels: of stamps, from which width the second one, and from PSFs."""
_WIDE_FWHM, _REACH, _LARGEST_REACH = 3.0, 2.4, 12
"""Pixels from which stars' wings make the kernel larger; its half side, in their full widths; and
the largest one, pixels."""
_CORRELATION = 1.0
"""Correlation length of the Gaussian process, pixels."""
_AMPLITUDE, _PSF_AMPLITUDE = 0.3, 0.5
_LEAST_WIDTHS = 0.2
"""Width of a Gaussian, in full widths at half maximum of the PSF, below which it is as good as a
point to the images."""
_FREEDOMS, _POOR, _PSF_LEFT = (1.0, 4.0), 1.5, 3.0
"""Amplitudes that are tried, the second where the first leaves so much of static sources, or of a
PSF over its error."""
_LEAST_VARIANCE = 3e-4
"""Of the process's largest, what a component must have to be fitted."""
_PSF_ERROR, _PSF_SUM_ERROR, _PSF_REACH = 3e-3, 3e-3, 12
"""Errors of a PSF's pixels, over its peak, and of its sum; pixels around its middle that count."""
_PSF_BORDER = 4
"""Pixels from the frame's edge where a kernel from PSFs has next to all of its weight inside."""
_CLIPS = (math.inf, 8.0, 5.0)
_SMALLEST_MASK, _MASK_WIDTHS = 3.5, 1.7
"""Radius around a transient that is left out: pixels, and full widths at half maximum."""
_STATIC_SIGMAS = 5.0
_SIGNAL_SIGMAS, _NOISE_SIGMAS = 0.3, 4.0
"""Light of the template over a pixel's noise, of the difference and its own, that tells of the
kernel."""
_FEWEST_STATIC = 20
_APERTURE, _SMALLEST_APERTURE, _RING = 1.5, 3.0, (1.0, 4.0)
_RATIO_SIGMAS, _RATIO_ERROR = 3.0, 0.03
"""Significance of a source whose fluxes are compared, and what else than noise they differ by."""
_SCALE_SIGMAS, _SCALE_OFF = 4.0, 0.1
"""Errors, and relative difference, by which static sources contradict a flux scale."""
_FREE_SCALE = 0.5
"""Relative error of a flux scale of which nothing is assumed."""
_FREE_TENSION = 3.0
"""Errors by which a host has to contradict a flux scale that is assumed."""
_NO_SIGNAL, _LITTLE_NOISE = 0.05, 0.5
"""Of a direction's information, what has to be signal for the noise's part to be undone; and sum of
the noise's parts up to which none is near one."""
_FEWEST_USABLE = 30
_LARGEST_CHI = 25.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StampOptions:
    """How the kernel of a stamp is found.

    Attributes
    ----------
    flux_scale
        Sum of the kernel that is expected: flux of a static source on the science stamp over that
        on the template.
    scale_error
        Relative error of that.
    sources_needed
        So many static sources that agree on another scale are believed; None for no number.
    """

    flux_scale: float = 1.0
    scale_error: float = 0.03
    sources_needed: int | None = 1

    def __post_init__(self) -> None:
        for name, value in (("flux_scale", self.flux_scale), ("scale_error", self.scale_error)):
            if not (math.isfinite(value) and value > 0):
                raise ArgumentError(f"{name} must be positive and finite; got {value:g}.")


@dataclasses.dataclass(frozen=True)
class FluxScale:
    """Flux of static sources on the science stamp over that on the template.

    Attributes
    ----------
    expected
        Before anything was measured.
    measured, error
        By apertures around static sources, and its error; NaN where there are none.
    sources
        How many.
    used, used_error
        Prior of the kernel's sum, and its error.
    """

    expected: float
    measured: float
    error: float
    sources: int
    used: float
    used_error: float

    @property
    def is_contradicted(self) -> bool:
        """Static sources have another flux scale than was expected."""
        off = abs(self.measured - self.expected)
        return bool(off > _SCALE_OFF * self.expected and off > _SCALE_SIGMAS * self.error)


@dataclasses.dataclass(frozen=True)
class KernelError:
    """How well a kernel and the background beside it are known.

    Attributes
    ----------
    errors
        ``(m, k*k + 1)``: independent errors of kernel (flattened) and level, each of unit
        variance; their outer products add up to the covariance.
    template_level
        They hold for the template less this, image_unit.
    fwhm
        Full width at half maximum of the science image's stars, pixels.
    """

    errors: Array
    template_level: float
    fwhm: float

    @property
    def sum_error(self) -> float:
        """Standard deviation of the kernel's sum."""
        return float(np.sqrt((self.errors[:, :-1].sum(axis=1) ** 2).sum()))

    def point_variance(self, template: Array) -> Array:
        """Variance plane that says how far point sources' fluxes are off by the kernel's error.

        Parameters
        ----------
        template
            ``(ny, nx)``, without missing pixels.

        Returns
        -------
        variance
            ``(ny, nx)``, image_unit²: of white noise that a star of the science image, fitted at
            the pixel, would have the same error by.  Errors of a kernel are alike in neighbouring
            pixels, whose own variance would make significances too large.
        """
        sigma = FWHM_TO_SIGMA * self.fwhm
        profile = _pixel_profile(_GAUSSIAN_SIDE, sigma, _GAUSSIAN_SIDE // 2)
        profile /= profile.sum()
        flat = template - self.template_level
        for axis in (0, 1):
            flat = scipy.ndimage.correlate1d(flat, profile, axis=axis, mode="mirror")
        shifts = _patches(flat, self._side) @ self.errors[:, :-1].T
        shifts += self.errors[:, -1]
        squares = np.einsum("im,im->i", shifts, shifts).reshape(template.shape)
        return squares / float((profile**2).sum()) ** 2

    def sum_variance(self, template: Array, weights: Array) -> float:
        """Variance of a weighted sum of pixels of the difference by the kernel's error.

        Parameters
        ----------
        template
            ``(ny, nx)``, without missing pixels.
        weights
            ``(ny, nx)``.

        Returns
        -------
        variance
            image_unit².
        """
        inside = np.flatnonzero(weights)
        patches = _patches(template - self.template_level, self._side)[inside]
        summed = np.append(weights.ravel()[inside] @ patches, weights.sum())
        return float(((self.errors @ summed) ** 2).sum())

    @property
    def _side(self) -> int:
        return math.isqrt(self.errors.shape[1])


@dataclasses.dataclass(frozen=True)
class StampKernel:
    """Matching kernel of a stamp, and how well it is known.

    Attributes
    ----------
    kernel
        ``(k, k)``, convolved with the template; centred on ``[k//2, k//2]``.
    level
        Differential background: science − κ⊗template where there is nothing, image_unit.
    error
        `KernelError`.
    photon_factor
        Variance of a pixel for each unit of light of static sources in it, image_unit; 0 where the
        variances were said to have it.
    scale
        `FluxScale`.
    chi_square, static_pixels
        Mean square of normalised residuals at static sources, and how many pixels they have; NaN
        where there are none.
    """

    kernel: Array
    level: float
    error: KernelError
    photon_factor: float
    scale: FluxScale
    chi_square: float
    static_pixels: int

    @property
    def kernel_sum(self) -> float:
        """Sum of the kernel: the flux scale."""
        return float(self.kernel.sum())

    def convolved(self, template: Array) -> Array:
        """Template stamp, less its level, as the science stamp shows it.

        Parameters
        ----------
        template
            ``(ny, nx)``, without missing pixels.

        Returns
        -------
        convolved
            ``(ny, nx)``, image_unit.
        """
        size = self.kernel.shape[0]
        patches = _patches(template - self.error.template_level, size)
        result: Array = (patches @ self.kernel.ravel()).reshape(template.shape)
        return result

    def light(self, template: Array) -> Array:
        """Light of static sources on the science stamp.

        Parameters
        ----------
        template
            As of `convolved`.

        Returns
        -------
        light
            ``(ny, nx)``, image_unit; at least 0.
        """
        return np.maximum(self.convolved(template), 0.0)


@dataclasses.dataclass(frozen=True)
class _Stamp:
    """Two stamps less their levels; what is missing is zero.

    ``usable`` pixels are those of the fit; ``surrounded`` ones have a kernel's reach of measured
    pixels around, and ``whole`` ones are measured on both and not the transient's.
    """

    science: Array
    template: Array
    science_variance: Array
    template_variance: Array
    whole: Array
    surrounded: Array
    usable: Array

    def noise(self, squares: float) -> Array:
        """Variance of a difference whose kernel has that sum of squares."""
        return self.science_variance + squares * self.template_variance


@dataclasses.dataclass(frozen=True)
class _Prior:
    """Kernels of unit sum: a middle one, and z of some precision times a root around it."""

    size: int
    middle: Array
    root: Array
    precision: Array


def fit_stamp(
    science: Array,
    template: Array,
    *,
    good: tuple[Array, Array],
    variances: tuple[Array, Array],
    photons_known: bool = True,
    place: tuple[float, float] | None = None,
    psfs: tuple[Array, Array] | None = None,
    options: StampOptions | None = None,
) -> StampKernel:
    """Find the kernel that matches a template stamp to a science stamp.

    Parameters
    ----------
    science, template
        ``(ny, nx)``, on the same pixels.
    good
        ``(ny, nx)`` boolean, of science and template: pixels with a measurement, finite.
    variances
        ``(ny, nx)`` of science and template, image_unit²; finite and positive.
    photons_known
        The variances contain the photon noise of sources; else it is found in the residuals.
    place
        (x, y) of a transient, pixels, whose surroundings the fit leaves out; None for none.
    psfs
        Images of the PSFs of science and template, square, odd, of unit sum, if they are known.
    options
        `StampOptions`.

    Returns
    -------
    fit
        `StampKernel`.

    Raises
    ------
    DataError
        If fewer than 30 pixels are left to fit.

    Notes
    -----
    κ = s·M + L z, M a Gaussian, z of unit normal prior, and L Lᵀ the covariance of a Gaussian
    process in a Gaussian envelope.  With PSFs, M and the precision of z are those that
    κ⊗P_t = P_s leaves, up to a shift of a tenth of a pixel.  The stamp says S = κ⊗T + b.
    """
    options = options or StampOptions()
    levels = [
        float(np.median(image[known])) if known.any() else 0.0
        for image, known in zip((science, template), good, strict=True)
    ]
    flat = [
        np.where(known, image - level, 0.0)
        for image, known, level in zip((science, template), good, levels, strict=True)
    ]
    points = [
        find_points(image, variance, known)
        for image, variance, known in zip(flat, variances, good, strict=True)
    ]
    fwhm = full_width_half_maximum(psfs[0]) if psfs else _star_width(points, place)
    masked = near(science.shape, place, max(_SMALLEST_MASK, _MASK_WIDTHS * fwhm))
    static = [each.which(~masked[_pixels(each)]) for each in points]
    sigma, sigma_error = _kernel_width(points, static, psfs)
    size = _PSF_SIZE if psfs else _size(sigma, fwhm, science.shape)
    reach = _PSF_BORDER if psfs else size // 2
    whole = good[0] & good[1]
    surrounded = good[0] & _all_around(good[1], reach)
    stamp = _Stamp(
        science=flat[0],
        template=flat[1],
        science_variance=variances[0],
        template_variance=variances[1],
        whole=whole & ~masked,
        surrounded=surrounded,
        usable=surrounded & ~masked,
    )
    usable = int(np.count_nonzero(stamp.usable))
    if usable < _FEWEST_USABLE:
        raise DataError(
            f"Only {usable} pixels of the stamp are left to find a kernel on, beside the transient,"
            f" missing pixels and {reach} at the edges; at least {_FEWEST_USABLE} are needed: take"
            " a larger cut-out."
        )
    scale = _flux_scale(stamp, static[1], sigma, fwhm, options)
    if psfs:
        gaussian = max(sigma, _LEAST_WIDTHS * fwhm), 0.0, 0.0
    else:
        star = _star_sigma(points[1], place)
        gaussian = _robust_gaussian(stamp, scale, sigma, sigma_error, place, star)
    amplitude = _PSF_AMPLITUDE if psfs else _AMPLITUDE
    for freedom in _FREEDOMS:
        prior = _gaussian_prior(gaussian, size, fwhm, freedom * amplitude)
        if psfs:
            prior = _psf_prior(prior, *psfs)
        if psfs and not scale.sources and options.sources_needed is not None:
            # A host beyond the transient's mask tells of the scale, where its PSFs are known.
            free = dataclasses.replace(scale, used_error=_FREE_SCALE * scale.used)
            fit, misfit = _fitted(stamp, prior, free, fwhm, levels, photons_known=photons_known)
            found = _less_well_known(scale, fit.kernel_sum, fit.error.sum_error)
            # The transient's own wings reach beyond the mask, and make less of a difference.
            scale = found if found.used_error > _FREE_TENSION * scale.used_error else scale
        fit, misfit = _fitted(stamp, prior, scale, fwhm, levels, photons_known=photons_known)
        if misfit < _POOR:
            break
    return fit


def _size(sigma: float, fwhm: float, shape: tuple[int, ...]) -> int:
    """Side of a kernel that reaches as far as the stars' wings, if the stamp is large enough."""
    size = _SIZES[sigma > _WIDE_SIGMA]
    if fwhm < _WIDE_FWHM:
        return size
    reach = min(round(_REACH * fwhm), _LARGEST_REACH, min(shape) // 6)
    return max(size, 2 * reach + 1)


def near(shape: tuple[int, ...], place: tuple[float, float] | None, radius: float) -> Array:
    """Pixels around a place.

    Parameters
    ----------
    shape
        (ny, nx).
    place
        (x, y), pixels; None for none.
    radius
        Pixels.

    Returns
    -------
    pixels
        ``(ny, nx)`` boolean.
    """
    if place is None:
        return np.zeros(shape, bool)
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (x - place[0]) ** 2 + (y - place[1]) ** 2 < radius**2


def _pixels(points: Points) -> tuple[Array, Array]:
    return np.round(points.y).astype(int), np.round(points.x).astype(int)


def _all_around(good: Array, reach: int) -> Array:
    """Pixels around which all are good, as far as a kernel reaches."""
    for axis in (0, 1):
        padded = np.pad(good, [(reach, reach) if i == axis else (0, 0) for i in (0, 1)])
        good = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=axis).all(-1)
    return good


def _any_around(pixels: Array, reach: int) -> Array:
    """Pixels with one of some others within a kernel's reach."""
    for axis in (0, 1):
        padded = np.pad(pixels, [(reach, reach) if i == axis else (0, 0) for i in (0, 1)])
        pixels = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=axis).any(-1)
    return pixels


def _star_width(points: list[Points], place: tuple[float, float] | None) -> float:
    """Full width at half maximum of the science stamp's stars, pixels."""
    science, template = (_low_sigma(each, place) for each in points)
    number = np.count_nonzero(_apart(points[0], place))
    if number < 2:
        # One source may be a galaxy; the template sees fainter stars.
        science = min(science, math.hypot(template, _USUAL_SIGMA))
    if not math.isfinite(science):
        return _USUAL_FWHM
    return float(np.clip(science / FWHM_TO_SIGMA, *_FWHM_RANGE))


def _star_sigma(points: Points, place: tuple[float, float] | None) -> float:
    """Width of the template's stars, pixels."""
    found = _low_sigma(points, place)
    return found if math.isfinite(found) else _USUAL_FWHM * FWHM_TO_SIGMA


def _low_sigma(points: Points, place: tuple[float, float] | None) -> float:
    """Width of the narrower sources; of one at the place only where there is no other."""
    apart = _apart(points, place)
    chosen = points.which(apart) if apart.any() else points
    return float(np.percentile(chosen.sigma, _LOW)) if len(chosen) else math.inf


def _apart(points: Points, place: tuple[float, float] | None) -> Array:
    if place is None:
        return np.ones(len(points), bool)
    return np.hypot(points.x - place[0], points.y - place[1]) > _SMALLEST_MASK


def _kernel_width(
    points: list[Points], static: list[Points], psfs: tuple[Array, Array] | None
) -> tuple[float, float]:
    """Width of a Gaussian kernel, before it is fitted, and its error, pixels."""
    if psfs:
        wide, narrow = (FWHM_TO_SIGMA * full_width_half_maximum(psf) for psf in psfs)
        return _root(wide**2 - narrow**2), _SIGMA_PRIOR_PSF
    first, second = pairs(*static)
    if len(first):
        difference = static[0].sigma[first] ** 2 - static[1].sigma[second] ** 2
        return _root(float(np.median(difference))), _SIGMA_PRIOR
    if all(map(len, points)):
        wide, narrow = (float(np.percentile(each.sigma, _LOW)) for each in points)
        return _root(wide**2 - narrow**2), _SIGMA_PRIOR_ALONE
    return _USUAL_SIGMA, _SIGMA_PRIOR_ALONE


def _root(variance: float) -> float:
    return float(np.clip(math.sqrt(max(variance, 0.0)), *_SIGMA_RANGE))


def _flux_scale(
    stamp: _Stamp, points: Points, sigma: float, fwhm: float, options: StampOptions
) -> FluxScale:
    """Compare static sources, and decide what is believed of the flux scale."""
    expected, expected_error = options.flux_scale, options.flux_scale * options.scale_error
    ratio, error, number = _aperture_ratio(stamp, points, sigma, fwhm, expected)
    found = FluxScale(expected, ratio, error, number, expected, expected_error)
    needed = options.sources_needed
    if needed is None or number < max(needed, 1):
        return found
    if found.is_contradicted:
        return dataclasses.replace(
            found, used=ratio, used_error=math.hypot(error, ratio * options.scale_error)
        )
    return _less_well_known(found, ratio, error)


def _less_well_known(scale: FluxScale, measured: float, error: float) -> FluxScale:
    """Scale whose error takes in that it was measured to be another one, if not for certain.

    Both errors then grow as much as it takes to agree (Birge 1932).
    """
    tension = abs(measured - scale.used) / math.hypot(error, scale.used_error)
    return dataclasses.replace(scale, used_error=scale.used_error * max(1.0, tension))


def _aperture_ratio(
    stamp: _Stamp, points: Points, sigma: float, fwhm: float, expected: float
) -> tuple[float, float, int]:
    """Flux ratio of static sources, its error, and their number.

    The template is widened before, so that apertures hold the same part of both.
    """
    widened = _Widened(stamp).image(sigma, 0.0, 0.0)
    radius = max(_APERTURE * fwhm, _SMALLEST_APERTURE)
    ratios, errors = [], []
    for x, y in zip(points.x, points.y, strict=True):
        inside = near(stamp.science.shape, (x, y), radius)
        number = np.count_nonzero(inside)
        if not stamp.whole[inside].all() or number < 0.9 * math.pi * radius**2:
            continue
        ring = near(inside.shape, (x, y), radius + _RING[1]) & stamp.whole
        ring &= ~near(inside.shape, (x, y), radius + _RING[0])
        around = max(int(np.count_nonzero(ring)), 1)
        science, template = (
            float(image[inside].sum() - number * np.median(image[ring]))
            for image in (stamp.science, widened)
        )
        # A median has half as much variance again as a mean.
        noise = float(stamp.science_variance[inside].sum()) * (1 + 1.5 * number / around)
        # Chosen by the template alone: what noise brightens on the science stamp would bias it.
        if template * expected > _RATIO_SIGMAS * math.sqrt(noise):
            ratios.append(science / template)
            errors.append(math.hypot(math.sqrt(noise) / template, _RATIO_ERROR * expected))
    if not ratios:
        return math.nan, math.nan, 0
    return *_robust_mean(np.array(ratios), np.array(errors)), len(ratios)


def _robust_mean(values: Array, errors: Array) -> tuple[float, float]:
    """Mean with Cauchy weights around the weighted median, and its error."""
    order = np.argsort(values)
    summed = np.cumsum(errors[order] ** -2)
    middle = values[order][np.searchsorted(summed, summed[-1] / 2)]
    weight = errors**-2 / (1 + ((values - middle) / errors / _CAUCHY) ** 2)
    mean = float(weight @ values / weight.sum())
    scatter = float(weight @ ((values - mean) / errors) ** 2 / weight.sum())
    return mean, math.sqrt(max(1.0, scatter) / float(weight.sum()))


class _Widened:
    """A template convolved with Gaussians, fast: these are separable, and stamps small."""

    def __init__(self, stamp: _Stamp) -> None:
        self._template = stamp.template
        half = _GAUSSIAN_SIDE // 2
        self._elements = []
        for n in stamp.template.shape:
            lags = np.arange(n)[:, None] - np.arange(n) + half
            inside = (lags >= 0) & (lags < _GAUSSIAN_SIDE)
            self._elements.append(np.where(inside, lags, _GAUSSIAN_SIDE))

    def image(self, sigma: float, dx: float, dy: float) -> Array:
        """Convolve with a Gaussian of a width and a shift, pixels."""
        rows, columns = (
            np.append(_profile(_GAUSSIAN_SIDE, sigma, shift), 0.0)[elements]
            for shift, elements in zip((dy, dx), self._elements, strict=True)
        )
        return rows @ self._template @ columns.T


def _profile(size: int, sigma: float, shift: float) -> Array:
    """Gaussian at pixels, of unit sum."""
    u = np.arange(size) - size // 2
    profile = np.exp(-0.5 * ((u - shift) / sigma) ** 2)
    return profile / profile.sum()


def _robust_gaussian(
    stamp: _Stamp,
    scale: FluxScale,
    sigma: float,
    sigma_error: float,
    place: tuple[float, float] | None,
    star: float,
) -> tuple[float, float, float]:
    """Width and shift (x, y) of the Gaussian kernel of a stamp, fitted with Cauchy weights.

    The transient is fitted with it, as a star of that width on the template would be seen: here it
    takes no flux from anything, and often it is the only source that tells the seeing.
    """
    usable, widened = stamp.usable, _Widened(stamp)
    spot = np.zeros_like(usable)
    if place is not None:
        spot = near(usable.shape, place, _SPOT) & stamp.surrounded
        usable = usable | spot
    values = stamp.science[usable]
    noise = stamp.noise(scale.used**2)[usable]
    template_noise = stamp.template_variance[usable]
    sky = _LEVEL_PRIOR * math.sqrt(float(np.median(noise)))
    x, y = place or (0.0, 0.0)
    fitted = [True] * 5 + [place is not None and bool(spot.any())] * 3
    prior = np.array([scale.used, sigma, 0.0, 0.0, 0.0, 0.0, x, y])
    errors = np.array(
        [
            scale.used_error,
            sigma_error,
            _SHIFT_PRIOR,
            _SHIFT_PRIOR,
            sky,
            1e3 * sky,
            *(_SPOT_ERROR,) * 2,
        ]
    )
    lowest = np.array(
        [0.1 * scale.used, _SIGMA_RANGE[0], -2, -2, -math.inf, -math.inf, x - 2, y - 2]
    )
    highest = np.array([10 * scale.used, _SIGMA_RANGE[1], 2, 2, math.inf, math.inf, x + 2, y + 2])
    which = np.flatnonzero(fitted)
    ny, nx = stamp.science.shape

    def point(width: float, px: float, py: float) -> Array:
        """A star that the kernel has widened."""
        full = math.hypot(star, width)
        return (_pixel_profile(ny, full, py)[:, None] * _pixel_profile(nx, full, px))[usable]

    p = prior.copy()
    for _ in range(_GAUSSIAN_ITERATIONS):
        base = widened.image(*p[1:4])[usable]
        slopes = [widened.image(*(p[1:4] + _STEP * unit))[usable] - base for unit in np.eye(3)]
        columns = [base, *(p[0] / _STEP * each for each in slopes), np.ones_like(base)]
        model = p[0] * base + p[4]
        if fitted[5]:
            own = point(p[1], p[6], p[7])
            columns[1] = columns[1] + p[5] / _STEP * (point(p[1] + _STEP, p[6], p[7]) - own)
            columns += [
                own,
                p[5] / _STEP * (point(p[1], p[6] + _STEP, p[7]) - own),
                p[5] / _STEP * (point(p[1], p[6], p[7] + _STEP) - own),
            ]
            model = model + p[5] * own
        matrix = np.stack(columns)
        residual = values - model
        variance = noise + (_ROBUST_MODEL_ERROR * model) ** 2
        tolerated = variance + (residual / _CAUCHY) ** 2
        weighted = matrix / tolerated
        # A wider kernel, or a weaker one, leaves less of the template's noise: no reason for it.
        square, slope = _sum_of_squares(p[1])
        favour = p[0] * float(template_noise @ (1 / tolerated))
        right = weighted @ residual
        right[:2] += favour * np.array([square, 0.5 * p[0] * slope])
        change = np.linalg.solve(
            weighted @ matrix.T + np.diag(errors[which] ** -2),
            right + ((prior - p) / errors**2)[which],
        )
        p[which] = np.clip(p[which] + change, lowest[which], highest[which])
        if np.abs(change[1:4]).max() < _STEP / 10:
            break
    return float(p[1]), float(p[2]), float(p[3])


def _sum_of_squares(sigma: float) -> tuple[float, float]:
    """Of a Gaussian's pixels, and how it changes with the width."""
    narrow, wide = (
        float((_profile(_GAUSSIAN_SIDE, each, 0.0) ** 2).sum()) ** 2
        for each in (sigma, sigma + _STEP)
    )
    return narrow, (wide - narrow) / _STEP


def _pixel_profile(n: int, sigma: float, centre: float) -> Array:
    """Gaussian integrated over pixels, of unit sum."""
    edges = (np.arange(n + 1) - 0.5 - centre) / sigma
    return np.diff(scipy.special.ndtr(edges))


def _gaussian_prior(
    gaussian: tuple[float, float, float], size: int, fwhm: float, amplitude: float
) -> _Prior:
    """Kernels around a Gaussian of a width and shift."""
    sigma, dx, dy = gaussian
    u = np.arange(size) - size // 2
    width = 1.2 + 0.8 * fwhm / 2.2 + 0.7 * sigma
    envelope = np.exp(-0.5 * (u / width) ** 2)
    envelope /= math.sqrt(float((envelope**2).sum()))
    lags = (u[:, None] - u) / _CORRELATION
    # On a grid the process is separable, and so are its components.
    values, vectors = np.linalg.eigh(envelope[:, None] * np.exp(-0.5 * lags**2) * envelope)
    values = np.maximum(values, 0.0)
    variance = np.outer(values, values)
    kept = variance > _LEAST_VARIANCE * variance.max()
    first, second = np.nonzero(kept)
    root = vectors[:, None, first] * vectors[None, :, second] * np.sqrt(variance[first, second])
    return _Prior(
        size,
        np.outer(_profile(size, sigma, dy), _profile(size, sigma, dx)).ravel(),
        amplitude * root.reshape(size * size, -1),
        np.eye(len(first)),
    )


def _psf_prior(prior: _Prior, science_psf: Array, template_psf: Array) -> _Prior:
    """Kernels that two PSFs leave, with a freer prior where the given one leaves twice as much."""
    found, left = _with_psfs(prior, science_psf, template_psf)
    if left > _PSF_LEFT:
        freer = dataclasses.replace(prior, root=_FREEDOMS[-1] * prior.root)
        other, rest = _with_psfs(freer, science_psf, template_psf)
        found = other if rest < left / 2 else found
    return found


def _with_psfs(prior: _Prior, science_psf: Array, template_psf: Array) -> tuple[_Prior, float]:
    """What two PSFs leave of the kernels that match one to the other.

    Also the largest difference that the best one leaves, over the error of a PSF's pixel.
    """
    reach = min(science_psf.shape[0] // 2, _PSF_REACH)
    half = prior.size // 2
    target = _centred(science_psf, 2 * reach + 1)
    patches = _inner_patches(_centred(template_psf, 2 * (reach + half) + 1), prior.size)
    error = _PSF_ERROR * float(science_psf.max())
    columns = np.concatenate(
        [patches @ prior.root / error, prior.root.sum(axis=0)[None] / _PSF_SUM_ERROR]
    )
    residual = np.append((target.ravel() - patches @ prior.middle) / error, 0.0)
    precision = columns.T @ columns + prior.precision
    found = scipy.linalg.cho_solve(scipy.linalg.cho_factor(precision), columns.T @ residual)
    left = float(np.abs(residual - columns @ found)[:-1].max())
    middle = prior.middle + prior.root @ found
    middle /= middle.sum()
    # The stamps may be shifted, the PSFs are not: what a shift explains, they leave open.
    slopes = np.gradient(_centred(science_psf, 2 * reach + 3))
    shifts = np.stack([each[1:-1, 1:-1].ravel() for each in slopes], axis=1) / error
    cross = columns[:-1].T @ shifts
    open_to = shifts.T @ shifts + np.eye(2) / _SHIFT_PRIOR_PSF**2
    precision -= cross @ np.linalg.solve(open_to, cross.T)
    return _Prior(prior.size, middle, prior.root, precision), left


def _fitted(
    stamp: _Stamp,
    prior: _Prior,
    scale: FluxScale,
    fwhm: float,
    levels: list[float],
    *,
    photons_known: bool,
) -> tuple[StampKernel, float]:
    """Fit z, s and the background, three times: the noise follows the model, and outliers go.

    Also tells the mean square of what is left of static sources, over what was expected of it.
    """
    n = prior.root.shape[1]
    root = scale.used * prior.root
    to_kernel = np.concatenate([root, prior.middle[:, None]], axis=1)
    patches = _patches(stamp.template, prior.size)
    start = scale.used * prior.middle
    sky = float(np.median(stamp.noise(float((start**2).sum()))[stamp.usable]))
    precision, right = _prior_equations(prior, to_kernel.sum(axis=0), scale, sky)
    rows, empty = _with_signal(stamp, prior.size, scale.used, sky)
    columns = np.append(patches[rows] @ to_kernel, np.ones((len(rows), 1)), axis=1)
    values = stamp.science.ravel()[rows]
    template_noise = stamp.template_variance.ravel()[rows]
    # What has no signal tells of the backgrounds alone, which are not the stamps' medians.
    dark, beside = patches[empty], stamp.science.ravel()[empty]
    theta = np.zeros(n + 2)
    theta[n] = scale.used
    gain = 0.0
    for clip in _CLIPS:
        kernel = to_kernel @ theta[:-1]
        model = columns[:, :-1] @ theta[:-1]
        residual = values - model - theta[-1]
        flat = beside - dark @ kernel
        flat = flat[flat**2 < _CLIPS[-1] ** 2 * sky]
        base = stamp.noise(float((kernel**2).sum())).ravel()[rows]
        static = model > _STATIC_SIGMAS * np.sqrt(base)
        light, misfit = np.maximum(model, 0.0), (_MODEL_ERROR * model) ** 2
        if not photons_known:
            gain = _photon_factor(residual[static], (base + misfit)[static], light[static])
        variance = base + gain * light + misfit
        tolerated = variance + (_ROBUST_MODEL_ERROR * model) ** 2
        weight = (residual**2 < clip**2 * tolerated) / variance
        root_weighted = columns * np.sqrt(weight)[:, None]
        # Half of it suffices.
        matrix = scipy.linalg.blas.dsyrk(1.0, root_weighted.T, lower=True)
        matrix += np.tril(matrix, -1).T
        matrix += precision
        matrix[-1, -1] += len(flat) / sky
        if clip is _CLIPS[-1]:
            noisy = np.zeros_like(matrix)
            noisy[:-1, :-1] = float(weight @ template_noise) * (to_kernel.T @ to_kernel)
            matrix = _without_noise(matrix, noisy)
        factor = scipy.linalg.cho_factor(matrix, lower=True)
        told = right + (weight * values) @ columns
        told[-1] += float(flat.sum()) / sky
        theta = scipy.linalg.cho_solve(factor, told)
    residual = values - columns @ theta
    squares = residual[static] ** 2
    number = int(np.count_nonzero(static))
    chi_square = float(np.mean(squares / (base + gain * light)[static])) if number else math.nan
    poor = 1.0
    if number >= _FEWEST_STATIC:
        poor = max(1.0, float(np.mean(np.minimum(squares / variance[static], _LARGEST_CHI))))
    kernel, level = to_kernel @ theta[:-1], float(theta[-1])
    spread = scipy.linalg.solve_triangular(factor[0], np.eye(n + 2), lower=True)
    errors = np.append(spread[:, :-1] @ to_kernel.T, spread[:, -1:], axis=1)
    errors = np.vstack([errors, np.append(_BEYOND * kernel, 0.0)])
    fit = StampKernel(
        kernel=kernel.reshape(prior.size, prior.size),
        level=levels[0] + level - float(kernel.sum()) * levels[1],
        error=KernelError(errors * math.sqrt(poor), levels[1], fwhm),
        photon_factor=gain,
        scale=scale,
        chi_square=chi_square,
        static_pixels=number,
    )
    return fit, poor


def _with_signal(stamp: _Stamp, size: int, scale: float, sky: float) -> tuple[Array, Array]:
    """Usable pixels where the template has light within the kernel's reach, and where it has none.

    Without light, its noise would only be fitted.
    """
    least = np.maximum(
        _NOISE_SIGMAS**2 * stamp.template_variance, (_SIGNAL_SIGMAS / scale) ** 2 * sky
    )
    light = _any_around(stamp.template**2 > least, size // 2)
    usable = stamp.usable
    return np.flatnonzero((usable & light).ravel()), np.flatnonzero((usable & ~light).ravel())


def _without_noise(matrix: Array, noise: Array) -> Array:
    """Normal matrix less what the template's noise adds to it, as far as there is signal.

    Notes
    -----
    Fuller 1987, sect. 2.2; bounded as ``r -> 1`` by ``s³/(s⁴ + 0.05⁴)``, ``s = 1 - r``.
    """
    inverse_noise = scipy.linalg.cho_solve(scipy.linalg.cho_factor(matrix), noise)
    if np.trace(inverse_noise) < _LITTLE_NOISE:
        return matrix - noise
    lower = np.linalg.cholesky(matrix)
    half = scipy.linalg.solve_triangular(lower, noise, lower=True)
    ratio, vectors = np.linalg.eigh(scipy.linalg.solve_triangular(lower, half.T, lower=True))
    s = np.maximum(1 - ratio, 0.0)
    gain = np.maximum(1.0, s**3 / (s**4 + _NO_SIGNAL**4))
    turned = lower @ vectors
    return (turned / gain) @ turned.T


def _prior_equations(
    prior: _Prior, sums: Array, scale: FluxScale, sky: float
) -> tuple[Array, Array]:
    """Precision and right side for z, s and the background, before the stamp says anything."""
    n = len(sums) - 1
    precision, right = np.zeros((n + 2, n + 2)), np.zeros(n + 2)
    precision[:n, :n] = prior.precision
    precision[n + 1, n + 1] = 1 / (_LEVEL_PRIOR**2 * sky)
    # Whatever the shape, the sum is what is known; nor may z take the place of the Gaussian.
    for known in (sums, np.eye(n + 1)[n]):
        precision[: n + 1, : n + 1] += np.outer(known, known) / scale.used_error**2
        right[: n + 1] += known * scale.used / scale.used_error**2
    return precision, right


def _photon_factor(residual: Array, variance: Array, light: Array) -> float:
    """Variance per unit of light that makes the median residual that of normal noise."""
    if len(residual) < _FEWEST_STATIC:
        return 0.0
    squares = residual**2
    # The median of a squared normal number.
    needed = squares / 0.4549 - variance
    order = np.argsort(needed / light)
    return max(0.0, float((needed / light)[order[len(order) // 2]]))


def _centred(image: Array, side: int) -> Array:
    """Odd square image of some side around the middle of another one."""
    half = side // 2
    padded = np.pad(image, side)
    y, x = (n // 2 + side for n in image.shape)
    return padded[y - half : y + half + 1, x - half : x + half + 1]


def _patches(image: Array, size: int) -> Array:
    """``(pixels, size²)`` surroundings, reversed as a convolution takes them; mirrored outside."""
    return _inner_patches(np.pad(image, size // 2, mode="reflect"), size)


def _inner_patches(image: Array, size: int) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size))
    return windows[:, :, ::-1, ::-1].reshape(-1, size * size)
