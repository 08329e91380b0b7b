"""Claims: the covariance of resampled noise is that of its kernel; measured under masks and faint
sources it is unbiased with honest errors, finds nothing in white noise, and whitens a
difference; on real DECam pairs, pixels that it was not measured on become white.

The real exposures (MIT licence, (c) 2021 thomasvrussell) are in ../shared/data/decam.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import scipy.ndimage
from astropy.io import fits

from scenes import SHARED
from whitediff import Exposure
from whitediff.decorrelation import corrected_image
from whitediff.diagnostics.measure import gaussian_filter, whiteness
from whitediff.errors import ArgumentError, DataError
from whitediff.noise.covariance import (
    _lag_means,
    _lags,
    averaged_covariance,
    measured_covariance,
    resampling_covariance,
)
from whitediff.noise.exposures import noises_by_role
from whitediff.noise.sources import SourceLevel, levels_and_background, smooth_background
from whitediff.noise.variance_planes import noise_variance
from whitediff.numerics import fourier
from whitediff.numerics.convolution import convolve
from whitediff.numerics.covariance import FLOOR, SIGNIFICANT, NoiseCovariance, white_covariance
from whitediff.numerics.profiles import FWHM_TO_SIGMA

DECAM = SHARED / "data" / "decam"
GRID = (128, 128)
PSF_SIGMA = 1.8


def lanczos(phase):
    x = np.arange(-3, 4) - phase
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return weights / weights.sum()


def bicubic(phase):
    x = np.abs(np.arange(-3, 4) - phase)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def resampled_noise(rng, size, kernel):
    """Noise of unit variance, resampled with a kernel (y, x)."""
    noise = rng.normal(size=(size + 12, size + 12))
    for axis, weights in enumerate(kernel):
        noise = scipy.ndimage.convolve1d(noise, weights, axis=axis)
        noise /= np.sqrt((weights**2).sum())
    return noise[6:-6, 6:-6]


def blobs(rng, size, fraction):
    """Good pixels between blobs as large as sources, which cover a fraction."""
    smooth = scipy.ndimage.gaussian_filter(rng.normal(size=(size, size)), 3)
    return smooth < np.quantile(smooth, 1 - fraction)


def faint_sources(rng, size):
    """Sources below 4 sigma, 6 in 1000 pixels, in units of the noise."""
    n = int(0.006 * size**2)
    limit = np.sqrt(4 * np.pi) * PSF_SIGMA
    flux = np.minimum(0.4 * limit * rng.uniform(0.01, 1, n) ** -0.9, 4 * limit)
    image = np.zeros((size, size))
    np.add.at(image, tuple(rng.integers(0, size, (2, n))), flux)
    return scipy.ndimage.gaussian_filter(image, PSF_SIGMA, mode="wrap")


def measured(image, good):
    image = image - smooth_background(image, good)
    return measured_covariance(image, np.ones(image.shape), good, psf_sigma=PSF_SIGMA)


def grid_mean(half_spectrum):
    return fourier.full_spectrum(half_spectrum, GRID).mean()


def filtered_ratio(true, estimate, *, science=1.0, template=1.0):
    """PSF-filtered variance of a corrected difference over that of white noise.

    The template's noise has the covariance ``true``, the correction was made with
    ``estimate``; science noise is white, and the matching kernel a Gaussian.
    """
    kernel_ft, psf_ft = (
        fourier.forward(fourier.pad_center_origin(gaussian_filter(sigma), GRID), GRID)
        for sigma in (1.3, 2.0)
    )
    power = np.abs(kernel_ft) ** 2
    ratio = (science + template * true.spectrum(GRID) * power) / (
        science + template * estimate.spectrum(GRID) * power
    )
    return grid_mean(ratio * np.abs(psf_ft) ** 2) / grid_mean(np.abs(psf_ft) ** 2)


def test_white_noise():
    white = white_covariance()
    assert white.is_white
    assert white.zero_frequency == 1
    assert white.max_lag == 0
    assert white.floored_fraction == 0
    np.testing.assert_array_equal(white.spectrum((6, 9)), np.ones((6, 5)))


@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (3, 2)])
def test_resampled_noise_has_the_power_of_its_kernel(rng, shape):
    kernel = rng.normal(size=shape)
    kernel.setflags(write=False)
    covariance = resampling_covariance(kernel)
    assert not covariance.is_white
    assert covariance.error is None
    middle = covariance.max_lag
    assert covariance.correlation[middle, middle] == pytest.approx(1, abs=1e-14)
    np.testing.assert_array_equal(covariance.correlation, covariance.correlation[::-1, ::-1])
    dy, dx = 1, -1
    shifted = (kernel[:-1, 1:] * kernel[1:, :-1]).sum() / (kernel**2).sum()
    assert covariance.correlation[middle + dy, middle + dx] == pytest.approx(shifted, abs=1e-14)
    for grid in ((16, 17), (4, 5)):  # the second is smaller than the correlation
        power = np.abs(fourier.forward(np.pad(kernel, 0), (48 * grid[0], 48 * grid[1]))) ** 2
        power = power[::48, ::48][:, : grid[1] // 2 + 1] / (kernel**2).sum()
        np.testing.assert_allclose(covariance.spectrum(grid), np.maximum(power, FLOOR), atol=1e-12)
    zero = kernel.sum() ** 2 / (kernel**2).sum()
    assert covariance.zero_frequency == pytest.approx(max(FLOOR, zero), rel=1e-12)


def test_the_floor_leaves_zero_frequency_and_adds_what_it_says():
    covariance = resampling_covariance(np.outer(lanczos(0.5), lanczos(0.5)))
    spectrum = covariance.spectrum(GRID)
    assert spectrum.min() == FLOOR
    assert spectrum[0, 0] == pytest.approx(covariance.zero_frequency, rel=1e-14)
    assert 0.05 < covariance.floored_fraction < 0.2
    assert 1 < grid_mean(spectrum) <= 1 + FLOOR * covariance.floored_fraction
    gentle = resampling_covariance(np.outer(lanczos(0.1), lanczos(0.1)))
    assert gentle.floored_fraction == 0
    assert grid_mean(gentle.spectrum(GRID)) == pytest.approx(1, rel=1e-14)


def test_mean_of_covariances():
    ones = np.ones((3, 3))
    first = NoiseCovariance(
        np.pad([[1.0]], 1), "a", error=0.1 * ones, zero_frequency_error=0.3, significance=2.0
    )
    second = resampling_covariance(np.array([[1.0, 1.0, 0.0]]))
    mean = averaged_covariance([first, second], [1, 3])
    assert mean.correlation[2, 3] == pytest.approx(0.75 * 0.5)
    assert mean.zero_frequency == pytest.approx(0.25 * 1 + 0.75 * 2)
    assert mean.zero_frequency_error == pytest.approx(0.25 * 0.3)
    assert mean.error is not None
    assert mean.error[2, 2] == pytest.approx(0.025)
    assert mean.description.startswith("mean of 2: a; resampled")
    assert not mean.is_white
    assert averaged_covariance([white_covariance()] * 2).is_white
    with pytest.raises(ArgumentError, match="got 0 and 0"):
        averaged_covariance([])
    with pytest.raises(ArgumentError, match=r"not negative; got \[-1"):
        averaged_covariance([first], [-1.0])


def test_products_of_pairs_against_those_counted_by_hand(rng, monkeypatch):
    variance = rng.uniform(1, 4, (1300, 70))
    monkeypatch.setattr("whitediff.noise.covariance._STRIP", 650 * 70)  # two strips
    image = np.sqrt(variance) * rng.normal(size=variance.shape)
    good = rng.random(image.shape) > 0.3
    image[~good] = np.inf
    lags = _lags(3)
    assert len(lags) == 25
    products, pairs = _lag_means(image, variance, good, lags)
    expected, count = np.zeros(len(lags)), np.zeros(len(lags))
    for half in (slice(650), slice(650, None)):
        values = np.where(good, image, 0)[half] / np.sqrt(variance[half])
        values[good[half]] -= values[good[half]].mean()
        values[~good[half]] = np.nan
        for i, (dy, dx) in enumerate(lags):
            first = values[: len(values) - dy, max(0, -dx) : 70 - max(0, dx)]
            second = values[dy:, max(0, dx) : 70 - max(0, -dx)]
            expected[i] += np.nansum(first * second)
            count[i] += np.isfinite(first * second).sum()
    np.testing.assert_array_equal(pairs, count)
    # Single-precision transforms.
    np.testing.assert_allclose(products, expected / count, atol=1e-6)


def test_white_noise_is_found_white(rng):
    results = [measured(rng.normal(size=(160, 160)), np.ones((160, 160), bool)) for _ in range(30)]
    # Of 3000 such frames, 1 is beyond 4 sigma and 3 are beyond 3.3.
    assert max(result.significance for result in results) < SIGNIFICANT
    assert all(result.is_white for result in results)
    values = np.array([result.zero_frequency for result in results])
    assert np.abs(values - 1).max() < 3 * results[0].zero_frequency_error
    assert values.mean() == pytest.approx(1, abs=0.02)
    ratios = np.array([result.variance_ratio for result in results])
    pulls = (ratios - 1) / [result.variance_ratio_error for result in results]
    assert 0.6 < pulls.std() < 1.5
    assert abs(pulls.mean()) < 4 / np.sqrt(30)


@pytest.mark.parametrize(
    "kernel",
    [
        (lanczos(0.5), lanczos(0.5)),
        (lanczos(0.25), lanczos(0.25)),
        (lanczos(0.0), lanczos(0.7)),
        (bicubic(0.5), bicubic(0.5)),
        (bicubic(0.7), bicubic(0.0)),
    ],
    ids=["lanczos-half", "lanczos-quarter", "lanczos-x", "bicubic-half", "bicubic-y"],
)
def test_resampled_noise_under_a_mask(rng, kernel):
    true = resampling_covariance(np.outer(*kernel))
    ratios, pulls = [], []
    for _ in range(12):
        good = blobs(rng, 256, 0.25)
        noise = resampled_noise(rng, 256, kernel)
        noise[~good] = np.nan
        result = measured(noise, good)
        assert not result.is_white
        assert result.pixels == good.sum()
        ratios.append(filtered_ratio(true, result))
        pulls.append((result.zero_frequency - true.zero_frequency) / result.zero_frequency_error)
    # One frame scatters by 0.007 to 0.016.
    assert np.std(ratios) < 0.03
    assert np.mean(ratios) == pytest.approx(1, abs=4 * 0.016 / np.sqrt(12))
    assert np.abs(np.mean(pulls)) < 4 / np.sqrt(12)
    assert 0.2 < np.std(pulls) < 1.9


def test_a_large_frame_with_faint_sources_and_masks(rng):
    kernel = lanczos(0.5), lanczos(0.25)
    true = resampling_covariance(np.outer(*kernel))
    image = resampled_noise(rng, 1000, kernel) + faint_sources(rng, 1000)
    levels, background = levels_and_background(image)
    sources = levels > SourceLevel.NONE
    good = blobs(rng, 1000, 0.3) & ~sources
    image -= background
    plane = np.full(image.shape, 4.0, dtype=np.float32)
    image, good = (2 * image).astype(np.float32), good
    image.setflags(write=False)
    good.setflags(write=False)
    result = measured_covariance(image, plane, good, psf_sigma=PSF_SIGMA)
    assert filtered_ratio(true, result) == pytest.approx(1, abs=0.01)
    assert result.zero_frequency == pytest.approx(
        true.zero_frequency, abs=4 * result.zero_frequency_error
    )
    assert result.source_power > 5 * result.source_power_error
    assert result.variance_ratio == pytest.approx(1, abs=0.01)
    # Taken for noise, the sources' power is three times the interpolation's.
    blind = measured_covariance(image, plane, good, psf_sigma=None)
    assert filtered_ratio(true, blind) < 0.97


def test_noise_that_is_no_product_of_axes(rng):
    kernel = np.zeros((3, 3))
    kernel[1, 1], kernel[2, 2], kernel[0, 1] = 0.7, 0.35, -0.1
    true = resampling_covariance(kernel)
    noise = scipy.ndimage.convolve(rng.normal(size=(520, 520)), kernel)[4:-4, 4:-4]
    noise /= np.sqrt((kernel**2).sum())
    result = measured(noise, np.ones(noise.shape, bool))
    near, middle = result.correlation[3:8, 3:8], true.correlation
    error = 5 / np.sqrt(noise.size)
    np.testing.assert_allclose(near, np.where(np.abs(middle) > 0, middle, 0), atol=2 * error)
    assert filtered_ratio(true, result) == pytest.approx(1, abs=0.03)


def test_outliers_and_backgrounds_are_no_noise(rng):
    noise = rng.normal(size=(256, 256))
    noise[tuple(rng.integers(0, 256, (2, 40)))] = 1e6
    noise += 0.3 * np.sin(np.arange(256) / 30)
    result = measured_covariance(
        noise, np.ones(noise.shape), np.ones(noise.shape, bool), psf_sigma=None
    )
    assert result.pixels > 65400
    assert result.zero_frequency == pytest.approx(1, abs=4 * result.zero_frequency_error)


def test_refusals(rng):
    noise = rng.normal(size=(128, 128))
    plane, good = np.ones(noise.shape), np.ones(noise.shape, bool)
    with pytest.raises(DataError, match=r"Only 1280 of 16384 .* needs 4000; treat the noise as wh"):
        measured_covariance(noise, plane, good & (np.arange(128) < 10), psf_sigma=None)
    with pytest.raises(DataError, match="Only 0 of 16384"):
        measured_covariance(noise, plane, ~good, psf_sigma=None)
    with pytest.raises(DataError, match="no pairs at some distances up to 5"):
        measured_covariance(noise, plane, good & (np.arange(128) % 2 == 0), psf_sigma=None)
    with pytest.raises(DataError, match="no pairs at some distances up to 5"):
        measured_covariance(*(a.reshape(4, -1) for a in (noise, plane, good)), psf_sigma=None)
    smoothed = scipy.ndimage.gaussian_filter(noise, PSF_SIGMA)
    with pytest.raises(DataError, match=r"told from faint sources .*needs 70%"):
        measured_covariance(smoothed, plane, good, psf_sigma=PSF_SIGMA)
    with pytest.raises(ArgumentError, match=r"same shape; got \(128, 128\), \(1,"):
        measured_covariance(noise, plane[:1], good, psf_sigma=None)
    with pytest.raises(ArgumentError, match="PSF must be positive; got 0"):
        measured_covariance(noise, plane, good, psf_sigma=0.0)
    with pytest.raises(ArgumentError, match="at least 1; got 0"):
        measured_covariance(noise, plane, good, psf_sigma=None, max_lag=0)
    with pytest.raises(ArgumentError, match=r"2-D; got the shape \(3,\)"):
        resampling_covariance(np.ones(3))
    with pytest.raises(ArgumentError, match="finite and not zero"):
        resampling_covariance(np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("correlation", "message"),
    [
        (np.ones((2, 2)), r"odd sides, .*got the shape \(2, 2\)"),
        (np.ones((1, 3)), r"square, .*got the shape \(1, 3\)"),
        (np.array([[np.nan]]), "finite at every lag"),
        (np.array([[900.0]]), "got 900. Divide a covariance by the pixel variance"),
        (np.pad([[1.0, 0.3]], ((1, 1), (1, 0))), "differ by 0.3"),
    ],
)
def test_a_given_correlation_is_checked(correlation, message):
    with pytest.raises(ArgumentError, match=message):
        NoiseCovariance(correlation, "given")


@pytest.mark.skipif(not DECAM.is_dir(), reason=f"no real data in {DECAM}")
def test_decam_pairs():
    """Measured on one half of the pixels, the other half's difference becomes white."""
    pairs = [("04a", "04b"), ("04a", "04c"), ("18a", "18b"), ("18a", "18c")]
    exposures = {name: decam_exposure(name) for pair in pairs for name in pair}
    after, before, errors = [], [], []
    for science, template in pairs:
        corrected = [
            decam_ratio(exposures[science], exposures[template], template, first)
            for first in (0, 1)
        ]
        after.append(np.mean([ratio for ratio, _, _ in corrected]))
        before.append(np.mean([ratio for _, ratio, _ in corrected]))
        errors.append(np.mean([error for _, _, error in corrected]) / np.sqrt(2))
    assert np.mean(before) > 1.09
    assert np.abs((np.array(after) - 1) / errors).max() < 2.5
    assert np.mean(after) == pytest.approx(1, abs=2 * np.linalg.norm(errors) / len(errors))


def decam_exposure(name):
    path = DECAM / f"DEC-OBS{name}.mini.fits"
    image, header = fits.getdata(path).astype(float), fits.getheader(path)
    levels, background = levels_and_background(image)
    model = noise_variance(image, gain=header["GAIN"], read_noise=header["RDNOISE"])
    return image - background, model, levels > SourceLevel.NONE, header["FWHM"] * FWHM_TO_SIGMA


def decam_ratio(science, template, name, first):
    """Ratio with the measured and with the white covariance, on the half not measured."""
    kernel = fits.getdata(DECAM / f"DEC-OBS{name}.MatchKernel.fits").astype(float)
    difference = science[0] - convolve(template[0], kernel)
    free = ~(science[2] | template[2])
    half = (np.arange(free.shape[1]) < free.shape[1] // 2) == (first == 0)
    whole = np.zeros(free.shape, dtype=bool)
    whole[20:-20, 20:-20] = True  # where the kernel and the filter do not reach the edge
    ny, nx = fourier.fast_shape(free.shape, (128, 128))
    power = np.abs(fourier.forward(fourier.pad_center_origin(kernel, (ny, nx)), (ny, nx))) ** 2
    found = [
        measured_covariance(image, model.variance, free & half, psf_sigma=sigma)
        for image, model, _, sigma in (science, template)
    ]
    assert found[1].significance > 10
    assert 1.1 < found[1].zero_frequency < 1.6
    results = []
    for pair in (found, [white_covariance()] * 2):
        scales = [
            covariance.variance_ratio * exposure[1].background_variance
            for covariance, exposure in zip(pair, (science, template), strict=True)
        ]
        expected = (
            scales[0] * pair[0].zero_frequency
            + scales[1] * pair[1].zero_frequency * kernel.sum() ** 2
        )
        noise = scales[0] * pair[0].spectrum((ny, nx)) + scales[1] * power * pair[1].spectrum(
            (ny, nx)
        )
        corrected = corrected_image(np.sqrt(expected / noise), difference, shape=(ny, nx))
        results.append(
            whiteness(
                corrected,
                np.full(free.shape, expected),
                free & ~half & whole,
                gaussian_filter(PSF_SIGMA),
            )
        )
    assert results[0].pixel_variance_ratio == pytest.approx(1, abs=0.05)
    return (
        results[0].filtered_variance_ratio,
        results[1].filtered_variance_ratio,
        results[0].filtered_variance_ratio_error,
    )


@pytest.mark.parametrize("how", ["auto", "measured"])
@pytest.mark.parametrize("correlation", [0.0, 0.004, 0.1, 0.3])
def test_a_correlation_is_told_where_it_matters_with_numbers_that_agree(
    rng, caplog, correlation, how
):
    """One sentence: its sigmas are those of its numbers, and what changes nothing is not told."""
    caplog.set_level("INFO", logger="whitediff")
    shape = (1000, 1000)
    pixels = rng.normal(size=shape)
    pixels += correlation * np.roll(pixels, 1, axis=1)
    exposure = Exposure.from_arrays(pixels, variance=1 + correlation**2, psf=gaussian_filter(2.0))
    sources = np.zeros(shape, bool)
    (found,) = noises_by_role({"science image": exposure}, sources, how=how)
    told = [r.getMessage() for r in caplog.records if "its noise is correlated" in r.getMessage()]
    # A power that differs by less than 3 % makes no false sources.
    assert len(told) == (correlation >= 0.1)
    assert "not white" not in caplog.text
    if not told:
        return
    numbers = re.search(
        r"\((\S+) sigma over all distances\): pixels \((\d+), (-?\d+)\) apart \(x, y\) by (\S+) ±"
        r" (\S+), and low-frequency power is (\S+) ± (\S+) times",
        told[0],
    )
    sigma, x, y, value, error, power, power_error = (float(each) for each in numbers.groups())
    assert (x, y) == (1, 0)
    true = correlation / (1 + correlation**2)
    assert value == pytest.approx(true, abs=4 * error + 5e-4)
    # All distances together tell as much as the one that is correlated, or nearly.
    assert 0.5 * value / error < sigma < 1.5 * value / error
    assert power == pytest.approx(1 + 2 * true, abs=4 * power_error + 5e-3)
    assert found.significance == pytest.approx(sigma, abs=0.05)
