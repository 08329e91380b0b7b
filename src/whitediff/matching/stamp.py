"""Kernels for small stamps, which hold few stars or none.

A stamp bears no choice of stars.  Its kernel is found from all of its pixels, and from the two
PSFs where these are known; a Gaussian process around a Gaussian kernel is the prior.  The result
knows its own error, pixel by pixel and for sums of pixels.
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
"""Least and largest width of kernels, pixels: a narrower sampled Gaussian is no Gaussian."""
_FWHM_RANGE = (1.0, 8.0)
_USUAL_SIGMA, _USUAL_FWHM = 0.7, 2.2
_LOW = 33
"""Percentile of sources' widths that is taken for a star's, since some are galaxies."""
_SIGMA_PRIOR, _SIGMA_PRIOR_ALONE, _SIGMA_PRIOR_PSF = 0.25, 0.5, 0.1
"""Errors, pixels, of a kernel's width from sources on both stamps, from others, and from PSFs."""
_SHIFT_PRIOR, _SHIFT_PRIOR_PSF = 0.3, 0.1
"""Errors of the stamps' alignment where it is fitted, and where PSFs are centred, pixels."""
_LEVEL_PRIOR = 3.0
"""Error of the differential background, in standard deviations of a pixel."""
_BEYOND = 1e-3
"""Relative error of a kernel by wings beyond its square."""
_MODEL_ERROR, _ROBUST_MODEL_ERROR = 0.01, 0.05
"""Errors of the model, relative to the convolved template: in the fit; and for rejecting pixels and
fitting a Gaussian, from which undersampled cores differ."""
_CAUCHY = 2.5
_SPOT, _SPOT_ERROR = 6.0, 0.7
"""Radius around a transient in which pixels are fitted with it, and error of its place, pixels."""
_GAUSSIAN_SIDE, _GAUSSIAN_ITERATIONS, _STEP = 17, 8, 0.02
_SIZES, _WIDE_SIGMA, _PSF_SIZE = (9, 11), 1.2, 15
"""Sides of kernels without PSFs; sigma, pixels, above which the second is used; side with PSFs."""
_WIDE_FWHM, _REACH, _LARGEST_REACH = 3.0, 2.4, 12
"""Full width of stars, pixels, from which their wings make the kernel larger; the kernel's half
side then, in their full widths; and its largest half side, pixels."""
_CORRELATION = 1.0
"""Correlation length of the Gaussian process, pixels."""
_AMPLITUDE, _PSF_AMPLITUDE = 0.3, 0.5
_LEAST_WIDTHS = 0.2
"""Width (sigma) of a Gaussian, in full widths of the PSF, below which images do not tell it from a
point."""
_FREEDOMS, _POOR, _PSF_LEFT = (1.0, 4.0), 1.5, 3.0
"""Factors on the amplitude to try; and residuals with the first from which the second is tried:
mean square at static sources over its expectation, and largest of a PSF over its error."""
_LEAST_VARIANCE = 3e-4
"""Least variance of a component that is fitted, over the largest."""
_PSF_ERROR, _PSF_SUM_ERROR, _PSF_REACH = 3e-3, 3e-3, 12
"""Errors of a PSF's pixels, over its peak, and of its sum; half side of its part that counts."""
_PSF_BORDER = 4
"""Pixels from the frame's edge at which a kernel from PSFs has nearly all of its weight inside."""
_CLIPS = (math.inf, 8.0, 5.0)
_SMALLEST_MASK, _MASK_WIDTHS = 3.5, 1.7
"""Radius around a transient that is left out: at least in pixels, and in full widths."""
_STATIC_SIGMAS = 5.0
_SIGNAL_SIGMAS, _NOISE_SIGMAS = 0.3, 4.0
"""Least light of the template in a pixel that determines the kernel: over the noise of the
difference, and over the template's own."""
_FEWEST_STATIC = 20
_APERTURE, _SMALLEST_APERTURE, _RING = 1.5, 3.0, (1.0, 4.0)
_RATIO_SIGMAS, _RATIO_ERROR = 3.0, 0.03
"""Least significance of a source whose fluxes are compared; relative error besides noise."""
_SCALE_SIGMAS, _SCALE_OFF = 4.0, 0.1
"""Errors, and relative difference, beyond which static sources contradict a flux scale."""
_FREE_SCALE = 0.5
"""Relative error of a flux scale about which nothing is assumed."""
_FREE_TENSION = 3.0
"""Errors beyond which a host contradicts the assumed flux scale."""
_NO_SIGNAL, _LITTLE_NOISE = 0.05, 0.5
"""Signal's share of a direction's information below which the noise's part is not undone; and sum
of the noise's parts below which none of them is near 1."""
_FEWEST_USABLE = 30
_LARGEST_CHI = 25.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StampOptions:
    """How the kernel of a stamp is found.

    Attributes
    ----------
    flux_scale
        Expected sum of the kernel: flux of a static source on the science stamp over its flux on
        the template.
    scale_error
        Relative error of the flux scale.
    sources_needed
        Number of static sources from which on a measured scale is believed; None: never.
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
    """Flux scale: flux of static sources on the science stamp over their flux on the template.

    Attributes
    ----------
    expected
        Scale that was expected before any measurement.
    measured, error
        Scale by apertures around static sources, and its error; NaN without such sources.
    sources
        Number of these sources.
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
        """Whether static sources have another flux scale than expected."""
        off = abs(self.measured - self.expected)
        return bool(off > _SCALE_OFF * self.expected and off > _SCALE_SIGMAS * self.error)


@dataclasses.dataclass(frozen=True)
class KernelError:
    """Errors of a kernel and of the background fitted with it.

    Attributes
    ----------
    errors
        ``(m, k*k + 1)``: independent errors of kernel (flattened) and level, each of unit
        variance; their outer products add up to the covariance.
    template_level
        Level to subtract from the template before the errors apply, image_unit.
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
        """Variance plane for the error of point sources' fluxes due to the kernel's error.

        Parameters
        ----------
        template
            ``(ny, nx)``, without missing pixels.

        Returns
        -------
        variance
            ``(ny, nx)``, image_unit²: variance of white noise that would give a star fitted at the
            pixel the same error.  Errors by a kernel are correlated between neighbouring pixels,
            so that the pixels' own variance would make significances too large.
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
        """Variance, due to the kernel's error, of a weighted sum of pixels of the difference.

        Parameters
        ----------
        template
            ``(ny, nx)``, without missing pixels.
        weights
            ``(ny, nx)`` weights.

        Returns
        -------
        variance
            Variance of the sum, image_unit².
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
    """Matching kernel of a stamp, and its errors.

    Attributes
    ----------
    kernel
        ``(k, k)``, convolved with the template; centred on ``[k//2, k//2]``.
    level
        Differential background: science − κ⊗template where there is no source, image_unit.
    error
        `KernelError`.
    photon_factor
        Variance of a pixel for each unit of light of static sources in it, image_unit; 0 if the
        given variances contain it.
    scale
        `FluxScale`.
    chi_square, static_pixels
        Mean square of normalised residuals at static sources (NaN without any), and the number of
        their pixels.
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
        """Template stamp less its level, convolved with the kernel.

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
            As for `convolved`.

        Returns
        -------
        light
            ``(ny, nx)``, image_unit; at least 0.
        """
        return np.maximum(self.convolved(template), 0.0)


@dataclasses.dataclass(frozen=True)
class _Stamp:
    """Two stamps less their levels; missing pixels are zero.

    ``usable`` pixels are fitted; ``surrounded`` pixels have measured pixels around them as far as
    the kernel reaches; ``whole`` pixels are measured on both stamps and outside of the transient.
    """

    science: Array
    template: Array
    science_variance: Array
    template_variance: Array
    whole: Array
    surrounded: Array
    usable: Array

    def noise(self, squares: float) -> Array:
        """Variance of a difference whose kernel has the given sum of squares."""
        return self.science_variance + squares * self.template_variance


@dataclasses.dataclass(frozen=True)
class _Prior:
    """Prior of kernels of unit sum: ``middle + root @ z``, z normal with the given precision."""

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
        ``(ny, nx)`` boolean for science and template: pixels with a finite measurement.
    variances
        ``(ny, nx)`` for science and template, image_unit²; finite and positive.
    photons_known
        Whether variances contain the photon noise of sources; else it is found in the residuals.
    place
        (x, y) of a transient, pixels, whose surroundings the fit leaves out; None for none.
    psfs
        PSF images of science and template, if known: square, odd sides, unit sum.
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
    κ = s·M + L z with M a Gaussian, z of unit normal prior, and L Lᵀ the covariance of a Gaussian
    process in a Gaussian envelope.  With PSFs, M and the precision of z follow from κ⊗P_t = P_s,
    up to a shift of a tenth of a pixel.  The fit to the stamp is S = κ⊗T + b.
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
            # A host beyond the transient's mask shows the scale if the PSFs are known.
            free = dataclasses.replace(scale, used_error=_FREE_SCALE * scale.used)
            fit, misfit = _fitted(stamp, prior, free, fwhm, levels, photons_known=photons_known)
            found = _less_well_known(scale, fit.kernel_sum, fit.error.sum_error)
            # Smaller differences may come from the transient's own wings beyond the mask.
            scale = found if found.used_error > _FREE_TENSION * scale.used_error else scale
        fit, misfit = _fitted(stamp, prior, scale, fwhm, levels, photons_known=photons_known)
        if misfit < _POOR:
            break
    return fit


def _size(sigma: float, fwhm: float, shape: tuple[int, ...]) -> int:
    """Side of a kernel that reaches as far as the stars' wings, as far as the stamp allows."""
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
        Radius, pixels.

    Returns
    -------
    pixels
        ``(ny, nx)`` boolean: pixels nearer than the radius.
    """
    if place is None:
        return np.zeros(shape, bool)
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (x - place[0]) ** 2 + (y - place[1]) ** 2 < radius**2


def _pixels(points: Points) -> tuple[Array, Array]:
    return np.round(points.y).astype(int), np.round(points.x).astype(int)


def _all_around(good: Array, reach: int) -> Array:
    """Pixels in whose surroundings, within a reach in x and y, all are good."""
    for axis in (0, 1):
        padded = np.pad(good, [(reach, reach) if i == axis else (0, 0) for i in (0, 1)])
        good = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=axis).all(-1)
    return good


def _any_around(pixels: Array, reach: int) -> Array:
    """Pixels in whose surroundings, within a reach in x and y, any is marked."""
    for axis in (0, 1):
        padded = np.pad(pixels, [(reach, reach) if i == axis else (0, 0) for i in (0, 1)])
        pixels = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=axis).any(-1)
    return pixels


def _star_width(points: list[Points], place: tuple[float, float] | None) -> float:
    """Full width at half maximum of the science stamp's stars, pixels."""
    science, template = (_low_sigma(each, place) for each in points)
    number = np.count_nonzero(_apart(points[0], place))
    if number < 2:
        # A single source may be a galaxy; the deeper template has fainter stars to tell.
        science = min(science, math.hypot(template, _USUAL_SIGMA))
    if not math.isfinite(science):
        return _USUAL_FWHM
    return float(np.clip(science / FWHM_TO_SIGMA, *_FWHM_RANGE))


def _star_sigma(points: Points, place: tuple[float, float] | None) -> float:
    """Width (sigma) of the template's stars, pixels."""
    found = _low_sigma(points, place)
    return found if math.isfinite(found) else _USUAL_FWHM * FWHM_TO_SIGMA


def _low_sigma(points: Points, place: tuple[float, float] | None) -> float:
    """Width of the narrower sources; those at the place count only if there are no others."""
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
    """Expected width of a Gaussian kernel, before the fit, and its error, pixels."""
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
    """Flux scale from the expected one and static sources, as far as these are believed."""
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
    """Scale whose error is raised if an uncertain measurement disagrees with it.

    Both errors are scaled by the factor with which the two agree (Birge 1932).
    """
    tension = abs(measured - scale.used) / math.hypot(error, scale.used_error)
    return dataclasses.replace(scale, used_error=scale.used_error * max(1.0, tension))


def _aperture_ratio(
    stamp: _Stamp, points: Points, sigma: float, fwhm: float, expected: float
) -> tuple[float, float, int]:
    """Flux ratio of static sources, its error, and their number.

    The template is widened first, so that apertures hold the same share of light in both.
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
        # The variance of a median is about half as much again as a mean's.
        noise = float(stamp.science_variance[inside].sum()) * (1 + 1.5 * number / around)
        # Sources are chosen by the template alone: choosing those that noise brightens on the
        # science stamp would bias the ratio.
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
    """Fast convolution of a template with Gaussians, which are separable; for small stamps."""

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
    """Gaussian sampled at pixels, of unit sum."""
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

    The transient is fitted, too, as a star of the template's width ``star`` after convolution:
    that costs it no flux here, and often it is the only source that shows the seeing.
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
        # A wider or weaker kernel leaves less of the template's noise in the residual; undo that
        # preference, which is no evidence for such a kernel.
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
    """Sum of squares of a Gaussian's pixels, and its derivative by the width."""
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
    """Prior of kernels around a Gaussian of the given width and shift (x, y)."""
    sigma, dx, dy = gaussian
    u = np.arange(size) - size // 2
    width = 1.2 + 0.8 * fwhm / 2.2 + 0.7 * sigma
    envelope = np.exp(-0.5 * (u / width) ** 2)
    envelope /= math.sqrt(float((envelope**2).sum()))
    lags = (u[:, None] - u) / _CORRELATION
    # The process is separable on a grid, so that its components are products of those of one axis.
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
    """Prior given two PSFs; a freer one where that at least halves a large residual."""
    found, left = _with_psfs(prior, science_psf, template_psf)
    if left > _PSF_LEFT:
        freer = dataclasses.replace(prior, root=_FREEDOMS[-1] * prior.root)
        other, rest = _with_psfs(freer, science_psf, template_psf)
        found = other if rest < left / 2 else found
    return found


def _with_psfs(prior: _Prior, science_psf: Array, template_psf: Array) -> tuple[_Prior, float]:
    """Posterior of the kernels that match one PSF to the other.

    Also the largest residual of the best kernel, over the error of a PSF's pixel.
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
    # The stamps may be shifted, the PSFs are not: the PSFs must not rule out a shift.
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
    """Fit z, s and the background three times, with the model's noise and without outliers.

    Also returns the mean square of residuals at static sources over its expectation, at least 1.
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
    # Pixels without signal serve for the backgrounds, which differ from the stamps' medians.
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
        # Half of the symmetric matrix suffices: faster than a full product.
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
    """Usable pixels with and without light of the template within the kernel's reach.

    In pixels without light, the kernel would only be fitted to the template's noise.
    """
    least = np.maximum(
        _NOISE_SIGMAS**2 * stamp.template_variance, (_SIGNAL_SIGMAS / scale) ** 2 * sky
    )
    light = _any_around(stamp.template**2 > least, size // 2)
    usable = stamp.usable
    return np.flatnonzero((usable & light).ravel()), np.flatnonzero((usable & ~light).ravel())


def _without_noise(matrix: Array, noise: Array) -> Array:
    """Normal matrix less the contribution of the template's noise, as far as there is signal.

    Notes
    -----
    Fuller 1987, sect. 2.2.  With r the noise's share of a direction and ``s = 1 - r``, the gain
    ``1/s`` of the inverse is bounded as ``r -> 1`` by ``s³/(s⁴ + 0.05⁴)``.
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
    """Prior precision and right side for z, s and the background."""
    n = len(sums) - 1
    precision, right = np.zeros((n + 2, n + 2)), np.zeros(n + 2)
    precision[:n, :n] = prior.precision
    precision[n + 1, n + 1] = 1 / (_LEVEL_PRIOR**2 * sky)
    # The kernel's sum is known for any shape; the Gaussian's own scale is bound as well, so that z
    # does not take its place.
    for known in (sums, np.eye(n + 1)[n]):
        precision[: n + 1, : n + 1] += np.outer(known, known) / scale.used_error**2
        right[: n + 1] += known * scale.used / scale.used_error**2
    return precision, right


def _photon_factor(residual: Array, variance: Array, light: Array) -> float:
    """Variance per unit of light with which the median squared residual is normal noise's."""
    if len(residual) < _FEWEST_STATIC:
        return 0.0
    squares = residual**2
    # 0.4549 is the median of a squared normal number.
    needed = squares / 0.4549 - variance
    order = np.argsort(needed / light)
    return max(0.0, float((needed / light)[order[len(order) // 2]]))


def _centred(image: Array, side: int) -> Array:
    """Square part, of odd side, around the middle of an image."""
    half = side // 2
    padded = np.pad(image, side)
    y, x = (n // 2 + side for n in image.shape)
    return padded[y - half : y + half + 1, x - half : x + half + 1]


def _patches(image: Array, size: int) -> Array:
    """Surroundings of pixels, ``(pixels, size²)``, reversed for convolution; mirrored edges."""
    return _inner_patches(np.pad(image, size // 2, mode="reflect"), size)


def _inner_patches(image: Array, size: int) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size))
    return windows[:, :, ::-1, ::-1].reshape(-1, size * size)
