"""Whitening the noise of an image difference, on plain arrays.

One exposure was convolved with the matching kernel κ (``convolved``), the other
was not (``unconvolved``): ``template`` and ``science`` in the usual direction.
Mean variances are those before any convolution.  Formulas and sources: DMTN-021
(the difference), DMTN-179 (the score, and the variance planes).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError, DataError
from ..numerics import fourier, planes
from ..numerics.convolution import (
    SINGLE_PRECISION_ERROR_FROM_PEAK,
    SINGLE_PRECISION_ERROR_FROM_RMS,
    convolve_varying,
)
from ..numerics.distrust import CONTAMINATION_THRESHOLD, absolute_weight, is_compact
from ..numerics.interpolation import interpolated
from ..numerics.missing import unmeasured_pixels

__all__ = [
    "EMPTY_AMPLITUDE",
    "PRECISION",
    "Correction",
    "ScoreCut",
    "checked_kernel",
    "compact_kernel",
    "compact_reach",
    "compact_square",
    "contaminated_pixels",
    "corrected_image",
    "corrected_psf",
    "depends_on_grid",
    "difference_correction",
    "estimated_variance",
    "filtered_image",
    "filtered_stamp",
    "full_variance",
    "mirrored_variance",
    "pixel_kernel",
    "score_correction",
    "white_variance",
    "with_fill",
    "with_not_finite",
]

type Array = npt.NDArray[Any]

EMPTY_AMPLITUDE = 1e-2
"""Amplitude |p̂| below which a frequency of a pre-convolved image counts as empty."""

_PRECONVOLUTION_POWER_FLOOR = 1e-28
"""Where ``|p̂|²`` is smaller, it is a rounding error of a unit-sum kernel's spectrum.

The square of 45 machine epsilons.  |κ̂|²/|p̂|² would be a ratio of rounding errors
there; the score image has next to no power at such frequencies.
"""

_WEIGHT_PRECISION = 1e-5
_REACHES = (16, 24, 32, 48, 64, 96)
_VARIANCE_PRECISION = 1e-5
_STAR_SIGMAS = (1.0, 2.0, 4.0)
_STAR_MARGIN = 32
"""Pixels beyond a filter's reach in which a star shows what is cut off."""

PRECISION = 1e-3
"""Allowed error of a filtered pixel over its standard deviation."""


@dataclasses.dataclass(frozen=True)
class Correction:
    """The Fourier factor that whitens a difference or score, and what it was made from.

    Attributes
    ----------
    shape
        ``(ny, nx)`` of the transform grid.
    correction_ft
        ``(ny, nx//2 + 1)`` real, float64; 1 at zero frequency.
    kernel_ft
        Spectrum of the matching kernel, complex, same shape.
    kernel_sum
        Sum of the matching kernel: the photometric scale.
    preconvolution_ft
        Spectrum of the unit-sum pre-convolution kernel; None in difference mode.
    unconvolved_noise, convolved_noise
        Noise spectra of the inputs, of mean 1, same shape; None for white.
    """

    shape: tuple[int, int]
    correction_ft: Array
    kernel_ft: Array
    kernel_sum: float
    preconvolution_ft: Array | None = None
    unconvolved_noise: Array | None = None
    convolved_noise: Array | None = None

    @property
    def unconvolved_ft(self) -> Array:
        """Total kernel of the exposure that was not convolved with κ (``cnft``).

        The correction in difference mode; in score mode times the conjugate
        spectrum of the pre-convolution kernel.
        """
        if self.preconvolution_ft is None:
            return self.correction_ft
        return self.preconvolution_ft.conj() * self.correction_ft

    @property
    def convolved_ft(self) -> Array:
        """Total kernel of the exposure that was convolved with κ (``crft``)."""
        return self.kernel_ft * self.correction_ft

    @property
    def noise_filters_ft(self) -> tuple[Array, Array]:
        """What makes the result's noise out of white noise, for either exposure.

        The total kernels, times the root of the inputs' noise spectra.
        """
        return (
            _coloured(self.unconvolved_ft, self.unconvolved_noise),
            _coloured(self.convolved_ft, self.convolved_noise),
        )

    @functools.cached_property
    def variance_weights(self) -> tuple[float, float]:
        """Variance of a pixel per unit variance of the two inputs.

        Returns
        -------
        unconvolved, convolved
            Means of the squared moduli of the total kernels (DMTN-179, section 5), times the
            inputs' noise spectra.
        """
        unconvolved, convolved = self.noise_filters_ft
        return (
            fourier.mean_square_modulus(unconvolved, self.shape),
            fourier.mean_square_modulus(convolved, self.shape),
        )


def _coloured(kernel_ft: Array, noise: Array | None) -> Array:
    return kernel_ft if noise is None else kernel_ft * np.sqrt(noise)


def checked_kernel(name: str, kernel: Array) -> tuple[Array, float]:
    """Make sure that a kernel can be worked with.

    Parameters
    ----------
    name
        What it is called in error messages.
    kernel
        Image of it.

    Returns
    -------
    kernel, kernel_sum
        ``(ky, kx)`` float64, and its sum.

    Raises
    ------
    ArgumentError
        If it is not 2-D, not finite, or sums to zero.
    """
    if kernel.ndim != 2:
        raise ArgumentError(f"The {name} must be a 2-D image; got {kernel.ndim} dimensions.")
    if not np.isfinite(kernel).all():
        raise ArgumentError(
            f"The {name} has {int((~np.isfinite(kernel)).sum())} pixels of {kernel.size} that are"
            " not finite; was its fit singular?"
        )
    kernel = kernel.astype(np.float64)
    kernel_sum = float(kernel.sum())
    # A sum of rounding errors is a zero sum.
    if abs(kernel_sum) <= 1e-12 * float(np.abs(kernel).sum()):
        raise ArgumentError(
            f"The {name} sums to {kernel_sum:g}, so it keeps no flux; its sum is the photometric"
            " scale and must not be zero."
        )
    return kernel, kernel_sum


def _kernel_spectrum(
    name: str, kernel: Array, shape: tuple[int, int], *, unit_sum: bool = False
) -> tuple[Array, float]:
    kernel, kernel_sum = checked_kernel(name, kernel)
    if any(n > grid for n, grid in zip(kernel.shape, shape, strict=True)):
        raise ArgumentError(f"The {name} {kernel.shape} is larger than the grid {shape}.")
    if unit_sum:
        kernel = kernel / kernel_sum
    return fourier.stamp_spectrum(kernel, shape), kernel_sum


def _check_variances(unconvolved_variance: float, convolved_variance: float) -> None:
    for name, value in (
        ("unconvolved", unconvolved_variance),
        ("convolved", convolved_variance),
    ):
        if not (math.isfinite(value) and value > 0):
            raise DataError(
                f"The mean variance of the {name} exposure must be positive and finite;"
                f" got {value:g}."
            )


def difference_correction(
    kernel: Array,
    *,
    unconvolved_variance: float,
    convolved_variance: float,
    shape: tuple[int, int],
    unconvolved_noise: Array | None = None,
    convolved_noise: Array | None = None,
) -> Correction:
    """Fourier factor that whitens a difference of which one exposure was convolved.

    Parameters
    ----------
    kernel
        ``(ky, kx)`` matching kernel, dimensionless, centred on ``[ky//2, kx//2]``.
    unconvolved_variance, convolved_variance
        Mean variance per pixel of the exposure that was not, and that was,
        convolved, before the convolution; image_unit², finite, positive.
    shape
        Transform grid, at least the kernel's shape.
    unconvolved_noise, convolved_noise
        ``(ny, nx//2 + 1)`` power spectra of the noise of the two inputs on that grid, positive,
        of mean 1 over all frequencies; None for white.

    Returns
    -------
    correction
        ``sqrt(V / (ŝ·N_s + t̂·N_t·|κ̂|²))`` and the spectra it came from, with
        ``V = ŝ·N_s(0) + t̂·N_t(0)·kSum²``; for white inputs
        ``sqrt((ŝ + t̂·kSum²) / (ŝ + t̂·|κ̂|²))``.

    Raises
    ------
    ArgumentError
        If the kernel is not finite, sums to zero, or exceeds the grid.
    DataError
        If a mean variance is not positive and finite.

    Notes
    -----
    DMTN-021 eq. 1, with the squared kernel sum in the numerator so that flux
    survives for kernels that do not sum to one.  Assumes stationary noise in both inputs;
    with white noise the factor approaches ``sqrt(1 + t̂·kSum²/ŝ)`` towards high frequencies.
    Correlated inputs are a departure from the documented task, which takes them for white.
    """
    kernel_ft, kernel_sum = _kernel_spectrum("matching kernel", kernel, shape)
    _check_variances(unconvolved_variance, convolved_variance)
    unconvolved, convolved = _noise_powers(
        unconvolved_variance, convolved_variance, unconvolved_noise, convolved_noise
    )
    power = convolved * (kernel_ft.real**2 + kernel_ft.imag**2)
    power += unconvolved
    # At zero frequency, where flux is, the factor is one.
    correction_ft = np.sqrt(power[0, 0] / power)
    return Correction(
        shape,
        correction_ft,
        kernel_ft,
        kernel_sum,
        unconvolved_noise=unconvolved_noise,
        convolved_noise=convolved_noise,
    )


def _noise_powers(
    unconvolved_variance: float,
    convolved_variance: float,
    unconvolved_noise: Array | None,
    convolved_noise: Array | None,
) -> tuple[Array | float, Array | float]:
    """Noise power of the two inputs at each frequency, per pixel."""
    return (
        unconvolved_variance * (1.0 if unconvolved_noise is None else unconvolved_noise),
        convolved_variance * (1.0 if convolved_noise is None else convolved_noise),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreCut:
    """What is left out of a score's filter, since it does not act on the sky.

    Attributes
    ----------
    reach
        Radius, in pixels, beyond which the filter is cut off on the pixels, smoothly from half
        of it on.
    empty_amplitude
        Amplitude |p̂| below which a frequency of the pre-convolved image counts as empty: the
        factor is brought to zero there, times ``|p̂|/(|p̂| + empty_amplitude)``.
    """

    reach: float
    empty_amplitude: float = EMPTY_AMPLITUDE


def score_correction(
    kernel: Array,
    preconvolution_kernel: Array,
    *,
    science_variance: float,
    template_variance: float,
    shape: tuple[int, int],
    cut: ScoreCut | None = None,
    science_noise: Array | None = None,
    template_noise: Array | None = None,
) -> Correction:
    """Fourier factor that makes a score image the optimal detection statistic.

    Parameters
    ----------
    kernel
        ``(ky, kx)`` kernel that matches the template to the *pre-convolved* science
        image, centred on ``[ky//2, kx//2]``.
    preconvolution_kernel
        ``(py, px)`` PSF p of the science image; the science image was correlated with
        it, that is convolved with its reflection.  Brought to unit sum.
    science_variance, template_variance
        Mean variance per pixel before any convolution; image_unit², finite, positive.
    shape
        Transform grid, at least as large as the kernels.
    cut
        What is left out of the filter; None for the formula as it is documented.
    science_noise, template_noise
        Noise spectra of the two inputs, as for `difference_correction`.

    Returns
    -------
    correction
        ``V / (ŝ·N_s + t̂·N_t·|κ̂|²/|p̂|²)`` and the spectra it came from, with
        ``V = ŝ·N_s(0) + t̂·N_t(0)·kSum²``; for white inputs
        ``(ŝ + t̂·kSum²) / (ŝ + t̂·|κ̂|²/|p̂|²)``.

    Raises
    ------
    ArgumentError
        If a kernel is not finite, sums to zero, or exceeds the grid.
    DataError
        If a mean variance is not positive and finite.

    Notes
    -----
    DMTN-179, section 4.  Where ``|p̂|²`` is below the rounding of the transform it is
    held at 1e-28, so that the ratio stays a number.

    With kernels cut to stamps, the ratio is one of truncation errors long before that.
    The pre-convolved image has next to no power there, but edges, filled and masked pixels
    have it everywhere, and the filter's pixel kernel is then noise that carries it over
    the whole frame.  The cut's ``empty_amplitude`` leaves the part of the filter that acts
    on the sky.  Where a fitted κ̂ passes through zero, the ratio has a thin ring in frequency,
    which reaches as far; the cut's ``reach`` smooths it.  At 3.5 FWHM of the PSF that costs
    1e-5 of the signal-to-noise ratio.
    """
    kernel_ft, kernel_sum = _kernel_spectrum("matching kernel", kernel, shape)
    preconvolution_ft, _ = _kernel_spectrum(
        "pre-convolution kernel", preconvolution_kernel, shape, unit_sum=True
    )
    _check_variances(science_variance, template_variance)
    science_power, template_power = _noise_powers(
        science_variance, template_variance, science_noise, template_noise
    )
    preconvolution_power = preconvolution_ft.real**2 + preconvolution_ft.imag**2
    power = template_power * (kernel_ft.real**2 + kernel_ft.imag**2)
    power /= np.maximum(preconvolution_power, _PRECONVOLUTION_POWER_FLOOR)
    power += science_power
    correction_ft = power[0, 0] / power
    if cut is not None:
        # A slow fall: one in the power would be so steep that the filter rings.  Divided by
        # its value at zero frequency, so that flux is kept exactly.
        amplitude = np.sqrt(preconvolution_power)
        correction_ft *= amplitude / (amplitude + cut.empty_amplitude)
        correction_ft /= correction_ft[0, 0]
        correction_ft = _tapered(correction_ft, shape, cut.reach)
    return Correction(
        shape,
        correction_ft,
        kernel_ft,
        kernel_sum,
        preconvolution_ft,
        unconvolved_noise=science_noise,
        convolved_noise=template_noise,
    )


def _tapered(correction_ft: Array, shape: tuple[int, int], reach: float) -> Array:
    kernel = pixel_kernel(correction_ft, shape=shape)
    lags = [np.minimum(np.arange(n), n - np.arange(n)) for n in shape]
    radius = np.hypot(lags[0][:, None], lags[1][None, :])
    kernel *= 0.5 * (1 + np.cos(np.pi * np.clip(2 * radius / reach - 1, 0, 1)))
    return fourier.forward(kernel / kernel.sum(), shape).real


def white_variance(
    kernel_sum: float, unconvolved_variance: float, convolved_variance: float
) -> float:
    """Variance of the corrected difference, white by construction.

    Parameters
    ----------
    kernel_sum
        Sum of the matching kernel.
    unconvolved_variance, convolved_variance
        Mean variances before the convolution, image_unit².

    Returns
    -------
    variance
        ``ŝ + t̂·kSum²``.  Where the science exposure was convolved and the difference
        brought to the science level by division by kSum, divide this by kSum².
    """
    return unconvolved_variance + convolved_variance * kernel_sum**2


def corrected_image(
    correction_ft: Array,
    image: Array,
    *,
    shape: tuple[int, int],
    sigma: float | None = None,
) -> Array:
    """Filter a difference or score image with its correction.

    Parameters
    ----------
    correction_ft
        ``(shape[0], shape[1]//2 + 1)`` real, `numpy.fft.rfft2` layout.
    image
        ``(ny, nx)``, float32 or float64, no larger than the grid.  Not modified.
        Non-finite pixels are replaced by the mean of the finite ones for the
        transform, and come back as they were; see `contaminated_pixels` for their
        neighbours.
    shape
        Transform grid.
    sigma
        Smallest standard deviation among the result's pixels, image_unit.  A float32
        image is transformed in single precision where that moves no pixel by more
        than 1e-3 sigma; without a sigma in double precision.  Pixels beyond 1e11 sigma,
        such as -1e30 for "no data", count as not finite.

    Returns
    -------
    corrected
        ``(ny, nx)``, the image's dtype.

    Raises
    ------
    ArgumentError
        If the image is not 2-D or larger than the grid.
    DataError
        If no pixel is finite.
    """
    image = _checked_image(image, correction_ft, shape)
    filled, unmeasured = _filled(image, sigma)
    if image.dtype == np.float32 and not _single_precision_suffices(
        filled, correction_ft, shape, sigma
    ):
        filled = filled.astype(np.float64)
    spectrum = fourier.forward(filled, shape)
    spectrum *= correction_ft.astype(filled.dtype, copy=False)
    corrected = np.empty_like(image)
    corrected[...] = fourier.inverse(spectrum, shape, (image.shape[0], image.shape[1]))
    if unmeasured is not None:
        np.copyto(corrected, image, where=unmeasured)
    return corrected


def _checked_image(image: Array, correction_ft: Array, shape: tuple[int, int]) -> Array:
    if image.ndim != 2:
        raise ArgumentError(f"The image must be 2-D; got {image.ndim} dimensions.")
    if any(n > grid for n, grid in zip(image.shape, shape, strict=True)):
        raise ArgumentError(f"The image {image.shape} is larger than the grid {shape}.")
    if correction_ft.shape != (shape[0], shape[1] // 2 + 1):
        raise ArgumentError(
            f"The correction has shape {correction_ft.shape}, but the grid {shape} needs"
            f" {(shape[0], shape[1] // 2 + 1)}."
        )
    return image if image.dtype in (np.float32, np.float64) else image.astype(np.float64)


def _single_precision_suffices(
    image: Array, correction_ft: Array, shape: tuple[int, int], sigma: float | None
) -> bool:
    if sigma is None:
        return False
    flat = image.ravel()
    # einsum neither copies nor, in double precision, drifts or overflows.
    total = float(np.einsum("i,i->", flat, flat, dtype=np.float64, casting="same_kind"))
    root_mean_square = math.sqrt(total / math.prod(shape))
    peak = max(float(image.max()), -float(image.min()))
    error = float(np.abs(correction_ft).max()) * (
        SINGLE_PRECISION_ERROR_FROM_RMS * root_mean_square + SINGLE_PRECISION_ERROR_FROM_PEAK * peak
    )
    return error <= PRECISION * sigma


def corrected_psf(correction_ft: Array, psf: Array, *, shape: tuple[int, int]) -> Array:
    """PSF of a corrected difference.

    Parameters
    ----------
    correction_ft
        ``(shape[0], shape[1]//2 + 1)`` real, `numpy.fft.rfft2` layout.
    psf
        ``(py, px)`` PSF of the difference before the correction, centred on
        ``[py//2, px//2]``; no larger than the grid.
    shape
        Transform grid.

    Returns
    -------
    corrected
        ``(py, px)`` float64, unit sum.  What the correction moves beyond the stamp is
        lost, so the stamp should reach well beyond the matching kernel.

    Raises
    ------
    ArgumentError
        If the PSF is larger than the grid or not finite.
    """
    checked_kernel("PSF", psf)
    corrected = filtered_stamp(correction_ft, psf, shape=shape)
    return corrected / corrected.sum()


def filtered_stamp(correction_ft: Array, stamp: Array, *, shape: tuple[int, int]) -> Array:
    """Filter a small image whose origin is its middle, such as one of which PSFs are made.

    Parameters
    ----------
    correction_ft
        ``(shape[0], shape[1]//2 + 1)`` real.
    stamp
        ``(py, px)``, origin at ``[py//2, px//2]``.
    shape
        Transform grid, at least as large as the stamp.

    Returns
    -------
    filtered
        ``(py, px)`` float64, not normalised; what is moved beyond the stamp is lost.

    Raises
    ------
    ArgumentError
        If the stamp is larger than the grid.
    """
    padded = fourier.pad_center_origin(stamp.astype(np.float64), shape)
    spectrum = fourier.forward(padded, shape) * correction_ft
    return fourier.crop_center_origin(fourier.inverse(spectrum, shape, shape), stamp.shape)


def estimated_variance(unconvolved: Array, convolved: Array, weights: tuple[float, float]) -> Array:
    """Variance plane under locally constant variances.

    Parameters
    ----------
    unconvolved, convolved
        ``(ny, nx)`` variance planes before any convolution, image_unit².
    weights
        `Correction.variance_weights`.

    Returns
    -------
    variance
        ``(ny, nx)``, weighted sum, computed in double precision and rounded once to
        the planes' floating-point type; non-finite values follow ordinary arithmetic.

    Notes
    -----
    DMTN-179, section 5.
    """
    _check_planes(unconvolved, convolved)

    def work(rows: slice) -> Array:
        variance = np.multiply(unconvolved[rows], weights[0], dtype=np.float64)
        with np.errstate(invalid="ignore"):
            # inf − inf is NaN, as ordinary arithmetic has it.
            variance += np.multiply(convolved[rows], weights[1], dtype=np.float64)
        return variance

    dtype = np.result_type(unconvolved, convolved, np.float32)
    return planes.filled(unconvolved.shape, dtype, work)


def full_variance(
    unconvolved: Array,
    convolved: Array,
    *,
    unconvolved_fill: float,
    convolved_fill: float,
    unconvolved_ft: Array,
    convolved_ft: Array,
    shape: tuple[int, int],
) -> Array:
    """Variance plane with every pixel's variance propagated through the total kernels.

    Parameters
    ----------
    unconvolved, convolved
        ``(ny, nx)`` variance planes before any convolution, image_unit².  Not modified.
    unconvolved_fill, convolved_fill
        What stands in for their non-finite pixels during the convolution.
    unconvolved_ft, convolved_ft
        Half spectra of the total kernels (`Correction`).
    shape
        Transform grid of the spectra.

    Returns
    -------
    variance
        ``(ny, nx)``, dtype of the planes.  Pixels that are NaN in either plane are NaN
        again, infinite ones are +inf; NaN wins.

    Raises
    ------
    ArgumentError
        If the shapes of the planes differ or exceed the grid.

    Notes
    -----
    DMTN-179, section 5: each plane is convolved with the square, taken in image
    space, of the real-space total kernel.
    """
    _check_planes(unconvolved, convolved)
    total: Array | None = None
    for plane, fill, kernel_ft in (
        (unconvolved, unconvolved_fill, unconvolved_ft),
        (convolved, convolved_fill, convolved_ft),
    ):
        plane = _checked_image(plane, kernel_ft, shape).astype(np.float64)
        squared_kernel = pixel_kernel(kernel_ft, shape=shape) ** 2
        filled = np.where(np.isfinite(plane), plane, fill)
        spectrum = fourier.forward(filled, shape) * fourier.forward(squared_kernel, shape)
        total = spectrum if total is None else total + spectrum
    assert total is not None
    variance = fourier.inverse(total, shape, (unconvolved.shape[0], unconvolved.shape[1]))
    variance = variance.astype(np.result_type(unconvolved, convolved, np.float32))
    return with_not_finite(variance, unconvolved, convolved)


def mirrored_variance(
    correction: Correction, variances: tuple[float, float], shape: tuple[int, int]
) -> tuple[Array, Array]:
    """By how much the noise near the edges grows where the frame is continued by its mirror image.

    Parameters
    ----------
    correction
        Correction.
    variances
        Mean variances of the unconvolved and of the convolved exposure, image_unit².
    shape
        ``(ny, nx)`` of the image.

    Returns
    -------
    rows, columns
        ``(ny,)`` and ``(nx,)``, of mean about 1: a pixel's variance is that far from the edges
        times both, which is exact on a side, and in a corner where the filters are separable.

    Notes
    -----
    A pixel d rows from the edge gets the noise of each row twice: with the filter c as it is, and
    reflected.  To its variance ``V Σ c(j, l)²`` this adds ``V Σ c(j, l) c(±(2d + 1) − j, l)``,
    summed over both exposures.  Of symmetric filters this is the autocorrelation of the noise:
    nothing where it is white, half as much again in a score.
    """
    filters = [
        pixel_kernel(ft, shape=correction.shape).astype(np.float64)
        for ft in correction.noise_filters_ft
    ]
    total = sum(v * float((c**2).sum()) for v, c in zip(variances, filters, strict=True))
    factors = []
    for axis, n in enumerate(shape):
        length = correction.shape[axis]
        spectra = [(scipy.fft.rfft(c, axis=axis) ** 2).sum(axis=1 - axis) for c in filters]
        folded = sum(
            v * scipy.fft.irfft(ft, n=length) for v, ft in zip(variances, spectra, strict=True)
        )
        lag = 2 * np.arange(min(n, (length - 1) // 4)) + 1
        factor = np.ones(n)
        factor[: len(lag)] += folded[lag] / total
        factor[n - len(lag) :] += folded[-lag][::-1] / total
        factors.append(factor)
    return factors[0], factors[1]


def with_not_finite(variance: Array, *inputs: Array) -> Array:
    """Put back what a convolution of variance planes had to fill in.

    Parameters
    ----------
    variance
        ``(ny, nx)``; changed.
    *inputs
        ``(ny, nx)`` planes of which it was made.

    Returns
    -------
    variance
        The same array: NaN where one of the planes is NaN, else infinite where one is.
    """
    holed = [plane for plane in inputs if unmeasured_pixels(plane) is not None]
    for rows in planes.row_blocks(variance.shape):
        for value, is_so in ((np.inf, np.isinf), (np.nan, np.isnan)):
            for plane in holed:
                variance[rows][is_so(plane[rows])] = value
    return variance


def with_fill(plane: Array, fill: float | None = None) -> Array:
    """Plane with another value for its pixels that are not finite.

    Parameters
    ----------
    plane
        ``(ny, nx)``; not modified.
    fill
        That value; the mean of the others if None.

    Returns
    -------
    filled
        The plane itself where all of its pixels are finite.
    """
    unmeasured = unmeasured_pixels(plane)
    if unmeasured is None:
        return plane
    if fill is None:
        filled, _ = _filled(plane, None)
        return filled
    value = plane.dtype.type(fill)
    return planes.filled(
        plane.shape, plane.dtype, lambda rows: np.where(unmeasured[rows], value, plane[rows])
    )


def _check_planes(unconvolved: Array, convolved: Array) -> None:
    if unconvolved.shape != convolved.shape:
        raise ArgumentError(
            "The two variance planes must have the same shape;"
            f" got {unconvolved.shape} and {convolved.shape}."
        )


def pixel_kernel(
    correction_ft: Array, *, shape: tuple[int, int], dtype: npt.DTypeLike = np.float64
) -> Array:
    """Convolution kernel of a spectrum, on the pixels of its grid.

    Parameters
    ----------
    correction_ft
        ``(shape[0], shape[1]//2 + 1)``, `numpy.fft.rfft2` layout.
    shape
        Transform grid.
    dtype
        Floating-point type of the result.

    Returns
    -------
    kernel
        ``shape``, origin at ``[0, 0]``, periodic.
    """
    return fourier.inverse(correction_ft.astype(np.result_type(dtype, np.complex64)), shape, shape)


def contaminated_pixels(
    kernel: Array, untrusted: Array, *, threshold: float = CONTAMINATION_THRESHOLD
) -> Array:
    """Pixels of a filtered image that owe too much to pixels that were no measurement.

    Parameters
    ----------
    kernel
        `pixel_kernel` of the filter on a grid at least as large as the image, or its
        `compact_kernel`.
    untrusted
        ``(ny, nx)`` boolean: pixels filled in for the transform, or masked as
        meaningless.  Everything outside the frame counts as untrusted too.
    threshold
        Fraction of the filter's absolute weight.

    Returns
    -------
    contaminated
        ``(ny, nx)`` boolean: where the absolute weight of the filter on untrusted and
        outside pixels exceeds ``threshold`` of its total.
    """
    total, shape = float(np.abs(kernel).sum()), untrusted.shape
    if not is_compact(kernel, shape):
        return absolute_weight(kernel, ~untrusted) < (1 - threshold) * total
    on_untrusted = absolute_weight(kernel, untrusted) if untrusted.any() else None
    if on_untrusted is None:
        contaminated = planes.zeros(shape, bool)
    else:
        contaminated = planes.filled(
            shape, bool, lambda rows: on_untrusted[rows] > threshold * total
        )
    # Only near the edges does the filter reach beyond the frame.
    edge_y, edge_x = (min(n // 2, length) for n, length in zip(kernel.shape, shape, strict=True))
    for rows, columns in (
        (slice(0, edge_y), slice(0, shape[1])),
        (slice(shape[0] - edge_y, shape[0]), slice(0, shape[1])),
        (slice(0, shape[0]), slice(0, edge_x)),
        (slice(0, shape[0]), slice(shape[1] - edge_x, shape[1])),
    ):
        weight = total - _weight_inside(kernel, shape, rows, columns)
        if on_untrusted is not None:
            weight += on_untrusted[rows, columns]
        contaminated[rows, columns] = weight > threshold * total
    return contaminated


def _weight_inside(kernel: Array, shape: tuple[int, ...], rows: slice, columns: slice) -> Array:
    """Absolute weight of a filter on the pixels of the frame, on a part of it."""
    sums = np.zeros((kernel.shape[0] + 1, kernel.shape[1] + 1))
    np.cumsum(np.cumsum(np.abs(kernel), axis=0), axis=1, out=sums[1:, 1:])
    ends = []
    for part, n, length in zip((rows, columns), kernel.shape, shape, strict=True):
        # The pixel at offset d of the kernel takes the one at −d.
        position = np.arange(part.start, part.stop)
        first = np.clip(position - (length - 1) + n // 2, 0, n)
        ends.append((first, np.clip(position + n // 2 + 1, first, n)))
    (top, bottom), (left, right) = ends
    strip = sums[bottom] - sums[top]
    inside: Array = strip[:, right] - strip[:, left]
    return inside


def compact_square(kernel: Array, shape: tuple[int, ...]) -> Array | None:
    """Square of a kernel on the pixels, cut to where it is not negligible.

    Parameters
    ----------
    kernel
        `pixel_kernel`.
    shape
        ``(ny, nx)`` of the image that is to be convolved with it.

    Returns
    -------
    square
        ``(2·reach + 1, 2·reach + 1)``, origin in the middle; what is left out is less than 1e-5
        of the sum.  None where that takes a third of the kernel's grid, or half of the image.
    """
    square = kernel**2
    total = float(square.sum())
    for reach in _REACHES:
        if reach > min(*(n // 3 for n in kernel.shape), *((n - 1) // 2 for n in shape)):
            return None
        compact = fourier.crop_center_origin(square, (2 * reach + 1, 2 * reach + 1))
        if total - float(compact.sum()) < _VARIANCE_PRECISION * total:
            return compact
    return None


def depends_on_grid(kernel: Array, image: Array, *, margin: tuple[int, int], sigma: float) -> bool:
    """Whether a filtered image would be another on another grid.

    A filter that is not compact wraps around the periodic grid and reaches pixels near
    one edge of the frame from the other; how far depends on the grid's margin.

    Parameters
    ----------
    kernel
        `pixel_kernel` of the filter.
    image
        ``(ny, nx)``; pixels that are not finite do not count.
    margin
        (y, x) of the smallest grid in question beyond the image, in pixels.
    sigma
        Standard deviation of a filtered pixel, image_unit.

    Returns
    -------
    depends
        True unless every pixel is sure to stay within 1e-3 sigma.
    """
    return _outside_matters(kernel, _Content.of(image, sigma), margin, PRECISION * sigma)


@dataclasses.dataclass(frozen=True)
class _Content:
    """What of an image a filter may carry far: its largest pixel, its mean, its scatter."""

    largest: float
    mean: float
    scatter: float

    @classmethod
    def of(cls, image: Array, sigma: float) -> _Content:
        unmeasured = unmeasured_pixels(image, sigma)

        def sums(rows: slice) -> tuple[int, float, float, float]:
            values = image[rows]
            if unmeasured is not None:
                values = values[~unmeasured[rows]]
            flat = values.reshape(-1)
            if flat.size == 0:
                return 0, 0.0, 0.0, 0.0
            largest = max(float(flat.max()), -float(flat.min()))
            if flat.dtype == np.float32:
                flat = flat.astype(np.float64)
            return flat.size, largest, float(flat.sum()), float(np.einsum("i,i->", flat, flat))

        parts = np.array(planes.each_block(sums, image.shape))
        n, _, total, square = parts.sum(axis=0)
        if n == 0:
            return cls(0.0, 0.0, 0.0)
        mean = total / n
        scatter = math.sqrt(max(square / n - mean**2, 0.0))
        return cls(float(parts[:, 1].max()), mean, scatter)


def _outside_matters(
    kernel: Array, content: _Content, margin: tuple[int, int], most: float
) -> bool:
    """Whether a filter beyond a margin moves a pixel by more than so much."""
    lags = [
        np.minimum(np.arange(n), n - np.arange(n)) >= m
        for n, m in zip(kernel.shape, margin, strict=True)
    ]
    far = np.abs(kernel[lags[0][:, None] | lags[1][None, :]])
    if far.size == 0:
        return False
    # A background adds up over all lags, noise in squares, a star counts once.
    error = (
        float(far.sum()) * abs(content.mean)
        + 5 * math.sqrt(float(np.square(far).sum())) * content.scatter
        + float(far.max()) * content.largest
    )
    return min(error, float(far.sum()) * content.largest) > most


def compact_kernel(
    kernel: Array, image: Array, *, sigma: float, precision: float = PRECISION
) -> Array | None:
    """Part of a filter that suffices, if it is small enough to convolve with.

    Parameters
    ----------
    kernel
        `pixel_kernel` of the filter, on a grid of any size.
    image
        ``(ny, nx)`` that is to be filtered; pixels that are not finite do not count.
    sigma
        Standard deviation of a filtered pixel, image_unit.
    precision
        What is left out moves no pixel by more of its standard deviation.

    Returns
    -------
    compact
        ``(2·reach + 1, 2·reach + 1)``, origin in the middle (see `depends_on_grid`).  None where
        that takes more than 96 pixels, a third of the grid, or half of the image.
    """
    reach = compact_reach([kernel], image, sigma=sigma, precision=precision)
    if reach is None:
        return None
    side = 2 * reach + 1
    return fourier.crop_center_origin(kernel, (side, side))


def compact_reach(
    kernels: Sequence[Array], image: Array, *, sigma: float, precision: float = PRECISION
) -> int | None:
    """Reach of the part of some filters that suffices.

    Parameters
    ----------
    kernels
        `pixel_kernel` of each.
    image, sigma, precision
        As for `compact_kernel`.

    Returns
    -------
    reach
        The largest that one of them needs, pixels; None as for `compact_kernel`.
    """
    content = _Content.of(image, sigma)
    for reach in _REACHES:
        if any(
            reach > min(*(n // 3 for n in kernel.shape), *((n - 1) // 2 for n in image.shape))
            for kernel in kernels
        ):
            break
        margin, most = (reach + 1, reach + 1), precision * sigma
        if not any(
            _outside_matters(kernel, content, margin, most)
            or _star_outside(kernel, reach) * content.largest > most
            for kernel in kernels
        ):
            return reach
    return None


def _star_outside(kernel: Array, reach: int) -> float:
    """Largest value that what a filter has beyond its reach makes of a star of unit peak."""
    side = 2 * (reach + _STAR_MARGIN) + 1
    far = fourier.crop_center_origin(kernel, tuple(min(side, n) for n in kernel.shape))
    middle = tuple(slice(n // 2 - reach, n // 2 + reach + 1) for n in far.shape)
    far[middle] = 0
    return max(
        2 * math.pi * s**2 * float(np.abs(scipy.ndimage.gaussian_filter(far, s)).max())
        for s in _STAR_SIGMAS
    )


def filtered_image(
    kernel: Array,
    image: Array,
    *,
    sigma: float | None = None,
    weights: Callable[[slice, slice], Array] | None = None,
    fill: Literal["mean", "interpolate"] = "mean",
    missing: Array | None = None,
) -> Array:
    """Filter a difference or score image with a `compact_kernel`, or with one that varies.

    Parameters
    ----------
    kernel
        ``(ky, kx)``, origin in the middle; or ``(n, ky, kx)`` with weights.
    image
        ``(ny, nx)``.  Not modified.  Non-finite pixels are replaced for the filter and come
        back as they were.
    sigma
        Smallest standard deviation among the result's pixels, image_unit: pixels beyond 1e11
        of it count as not finite.
    weights
        Weights of several kernels at pixels of the result, as for
        `whitediff.numerics.convolution.convolve_varying`.
    fill
        "mean": non-finite pixels are replaced by the mean of the finite ones, and outside the
        frame is zero, as in `corrected_image`.  "interpolate": they are replaced by
        `interpolated`, and outside the frame is its mirror image.
    missing
        ``(ny, nx)`` boolean: finite pixels to be interpolated too.  They come back as what the
        filter makes of their interpolated value.

    Returns
    -------
    filtered
        ``(ny, nx)``, the image's dtype.

    Raises
    ------
    ArgumentError
        If the fill is unknown, or ``missing`` is of another shape or not to be interpolated.
    DataError
        If no pixel is finite, or none is left to interpolate from.

    Notes
    -----
    It works in double precision throughout: in single, rounding to which a pixel's last digits
    lead would show in all pixels of a tile, and differ from one processor to another.

    The mirror image keeps a background up to the edge, but its noise is that of the frame
    again: within the filter's reach of an edge the noise is not quite white.
    """
    kernels = kernel[None] if kernel.ndim == 2 else kernel
    if fill == "interpolate":
        unmeasured = unmeasured_pixels(image, sigma)
        if missing is None:
            missing = unmeasured
        elif unmeasured is not None and missing.shape == image.shape:  # Others are refused below.
            missing = missing | unmeasured
        filled = image if missing is None else interpolated(image, missing)
        filtered = convolve_varying(filled, kernels, weights, boundary="reflect")
        if unmeasured is not None:
            np.copyto(filtered, image, where=unmeasured)
        return filtered
    if fill != "mean":
        raise ArgumentError(f"The fill must be 'mean' or 'interpolate'; got {fill!r}.")
    if missing is not None:
        raise ArgumentError("Finite pixels are missing only for fill='interpolate'; got 'mean'.")
    filled, unmeasured = _filled(image, sigma)
    filtered = convolve_varying(filled, kernels, weights)
    if unmeasured is not None:
        np.copyto(filtered, image, where=unmeasured)
    return filtered


def _filled(image: Array, sigma: float | None) -> tuple[Array, Array | None]:
    """Image with pixels that hold no measurement at the mean of the others, and which do not."""
    unmeasured = unmeasured_pixels(image, sigma)
    if unmeasured is None:
        return image, None
    filled = planes.copied(image)
    np.copyto(filled, 0, where=unmeasured)
    number = image.size - int(np.count_nonzero(unmeasured))
    if number == 0:
        raise DataError("The image has no finite pixel, so there is nothing to correct.")
    # Double precision for the sum: of 10^7 float32 values it would drift.
    np.copyto(filled, filled.sum(dtype=np.float64) / number, where=unmeasured, casting="same_kind")
    return filled, unmeasured
