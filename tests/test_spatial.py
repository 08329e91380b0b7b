"""Corrections that follow kernel and noise over the field.

Claims: the compressed filter is the true one everywhere, to the tolerance that it reports; its
sum is one exactly; with it the noise is white and the variance plane true in every part of the
frame, where one filter for all is neither; steps of the noise are followed; a source's photons
are not; fluxes are kept; where nothing varies it is the documented correction.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from scenes import gaussian, moffat_kernel
from whitediff import Exposure
from whitediff.decorrelation.correction import difference_correction, pixel_kernel
from whitediff.decorrelation.exposures import DecorrelationOptions, decorrelate
from whitediff.errors import ArgumentError
from whitediff.exposures import kernels, masks
from whitediff.exposures.boxes import Box
from whitediff.exposures.fields import GridField
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.formats import read_exposure, write_exposure
from whitediff.noise.covariance import resampling_covariance
from whitediff.noise.exposures import InputNoise
from whitediff.numerics.compression import (
    cell_means,
    interpolated_cells,
    interpolated_cells_at,
    varying_filter,
)
from whitediff.numerics.convolution import convolve
from whitediff.subtraction.difference import subtract

SIZE = 640
BOX = Box.from_shape((SIZE, SIZE))
NONE = np.zeros((SIZE, SIZE), dtype=bool)


def science_width(x):
    return 2.6 + 0.8 * (x + 0.5) / SIZE


def varying_kernel(flux=1.0):
    """Matches a template of width 2 to science PSFs from 2.6 to 3.4 pixels wide."""
    return kernels.interpolated_kernel(
        lambda x, y: flux * gaussian(31, math.sqrt(science_width(x) ** 2 - 4)), BOX, 3
    )


def varying_psf():
    return KernelPointSpreadFunction(
        kernels.interpolated_kernel(lambda x, y: gaussian(41, science_width(x)), BOX, 3)
    )


def pair(rng, science_variance, template_variance, resampling=None):
    science_variance, template_variance = (
        np.broadcast_to(v, (SIZE, SIZE)).astype(np.float32)
        for v in (science_variance, template_variance)
    )
    noise = rng.normal(size=(2, SIZE, SIZE))
    if resampling is not None:
        noise[1] = convolve(noise[1], resampling) / np.sqrt((resampling**2).sum())
    return [
        Exposure.from_arrays((each * np.sqrt(v)).astype(np.float32), variance=v.copy())
        for each, v in zip(noise, (science_variance, template_variance), strict=True)
    ]


def columns(exposure, psf, skip=None):
    """Pixel variance over the plane, and PSF-filtered ratio, in three columns."""
    significance = exposure.data / np.sqrt(exposure.variance)
    filtered = convolve(significance, psf / np.sqrt((psf**2).sum()))
    inner = slice(24, -24)
    use = np.ones((SIZE, SIZE), dtype=bool) if skip is None else ~skip
    result = []
    for part in np.array_split(np.arange(24, SIZE - 24), 3):
        at = (inner, slice(part[0], part[-1] + 1))
        pixels = significance[at][use[at]].var()
        result.append((pixels, filtered[at][use[at]].var() / pixels))
    return np.array(result)


def sampling_error(realisations, sigma=3.0):
    return math.sqrt(4 * math.pi * sigma**2 / (realisations * (SIZE - 48) ** 2 / 3))


def with_sources(difference, psf, flux=1e5):
    """Sources alone, as they stand in the difference, and where."""
    image, places = np.zeros((SIZE, SIZE)), []
    for y in range(80, SIZE - 60, 97):
        for x in range(60, SIZE - 60, 103):
            stamp = psf.at(x=x, y=y)
            half = stamp.shape[0] // 2
            image[y - half : y + half + 1, x - half : x + half + 1] += flux * stamp
            places.append((y, x))
    result = difference.replaced()
    result = Exposure.from_arrays(image.astype(np.float32), variance=difference.variance)
    result.psf, result.kernel = psf, difference.kernel
    return result, places


def photometry(exposure, places):
    fluxes = []
    for y, x in places:
        psf = exposure.psf.at(x=x, y=y)
        half = psf.shape[0] // 2
        stamp = exposure.data[y - half : y + half + 1, x - half : x + half + 1]
        fluxes.append((psf * stamp).sum() / (psf**2).sum())
    return np.array(fluxes)


def exact_sample(u, v, log_ratios):
    """Corrections for a Gaussian kernel whose width follows the position."""
    images, numbers = [], []
    for log_ratio in log_ratios:
        correction = difference_correction(
            gaussian(31, 2.0 + 0.4 * u + 0.2 * v * u),
            unconvolved_variance=1.0,
            convolved_variance=math.exp(log_ratio),
            shape=(96, 96),
        )
        kernel = pixel_kernel(correction.correction_ft, shape=(96, 96))
        kernel = np.fft.fftshift(kernel)[16:81, 16:81]
        images.append(kernel / kernel.sum())
        numbers.append(correction.variance_weights)
    return np.stack(images), np.array(numbers)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-5])
def test_the_compressed_filter_is_the_true_one(rng, tolerance):
    found = varying_filter(exact_sample, log_ratios=(-1.0, 1.5), moves=True, tolerance=tolerance)
    assert max(found.error, found.number_error) <= tolerance
    for u, v, t in rng.uniform(-1, 1, (20, 3)):
        ratio = 0.25 + 1.25 * t
        images, numbers = exact_sample(u, v, [ratio])
        # The reported error is that at other positions.
        assert np.linalg.norm(found.at(u, v, ratio) - images[0]) < 2 * tolerance
        assert found.at(u, v, ratio).sum() == pytest.approx(1, abs=1e-12)
        place = (np.array([u]), np.array([v]), np.array([[ratio]]))
        np.testing.assert_allclose(found.numbers(*place)[:, 0, 0], numbers[0], rtol=2 * tolerance)
    # Beyond the ratios that occur, the filter is held.
    np.testing.assert_array_equal(found.at(0.3, 0.2, 9.0), found.at(0.3, 0.2, 1.5))


def test_fewer_images_for_less_precision_and_one_for_none():
    counts = [
        len(varying_filter(exact_sample, log_ratios=(0.0, 1.0), moves=True, tolerance=t).images)
        for t in (1e-2, 1e-3, 1e-4)
    ]
    assert counts[0] <= counts[1] <= counts[2] < 12
    same = varying_filter(exact_sample, log_ratios=(0.3, 0.3), moves=False, tolerance=1e-3)
    assert same.is_constant
    assert same.error < 1e-12


def test_a_filter_that_jumps_is_not_said_to_be_followed():
    def jumps(u, v, log_ratios):
        images, numbers = exact_sample(0.9 if u > 0.1 else -0.9, 0.0, log_ratios)
        return images, numbers

    found = varying_filter(jumps, log_ratios=(0.0, 0.0), moves=True, tolerance=1e-3)
    assert max(found.error, found.number_error) > 1e-2


def test_cells_and_what_is_between_them(rng):
    image = rng.normal(size=(37, 50))
    use = rng.random(image.shape) > 0.3
    use[8:16, 16:24] = False
    means = cell_means(image, use, 8)
    assert means.shape == (5, 7)
    assert np.isnan(means[1, 2])
    assert means[4, 6] == pytest.approx(image[32:, 48:][use[32:, 48:]].mean())
    ramp = np.add.outer(2.0 * np.arange(5), 3.0 * np.arange(7))
    y, x = np.mgrid[4:33, 4:49]
    expected = 2 * ((y + 0.5) / 8 - 0.5) + 3 * ((x + 0.5) / 8 - 0.5)
    np.testing.assert_allclose(interpolated_cells(ramp, 8, slice(4, 33), slice(4, 49)), expected)
    np.testing.assert_allclose(interpolated_cells_at(ramp, 8, y, x), expected)
    assert interpolated_cells(ramp, 8, slice(0, 1), slice(0, 1))[0, 0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("convolved", ["template", "science"])
def test_white_in_every_part_of_the_frame(rng, convolved):
    kernel, n = varying_kernel(1.3), 6
    found = {False: [], True: []}
    for _ in range(n):
        science, template = pair(rng, 900.0, 900.0)
        exposures = {"science": science, "template": template}
        exposures["science" if convolved == "template" else "template"].psf = varying_psf()
        difference = subtract(science, template, kernel, convolved=convolved, full_variance=False)
        for spatial, results in found.items():
            options = DecorrelationOptions(convolved=convolved, spatially_varying=spatial)
            result = decorrelate(science, template, difference, sources=NONE, options=options)
            results.append(columns(result.exposure, gaussian(41, 3.0)))
    pixels, filtered = np.moveaxis(np.mean(found[True], axis=0), 1, 0)
    error = sampling_error(n)
    assert np.abs(pixels - 1).max() < 0.01
    assert np.abs(filtered - 1).max() < 3 * error
    _, constant = np.moveaxis(np.mean(found[False], axis=0), 1, 0)
    # The same noise: what differs is the filter.
    assert constant[0] - filtered[0] > 0.025
    assert filtered[2] - constant[2] > 0.02
    assert result.local is not None
    assert len(result.local.filter.images) <= 5
    assert result.local.filter.error < 1e-3


def test_fluxes_are_kept(rng):
    science, template = pair(rng, 900.0, 700.0)
    template.variance[:, SIZE // 2 :] *= 3
    science.psf = varying_psf()
    difference = subtract(science, template, varying_kernel(1.3), full_variance=False)
    sources, places = with_sources(difference, science.psf)
    options = DecorrelationOptions(spatially_varying=True)
    result = decorrelate(science, template, sources, sources=NONE, options=options)
    assert result.local is not None
    assert result.local.noise is not None
    far = np.array([abs(x - SIZE // 2) > 24 for _, x in places])
    fluxes = photometry(result.exposure, places)
    np.testing.assert_allclose(fluxes[far], 1e5, rtol=2e-3)
    # Through the step the PSF is that of the middle of its stamp.
    np.testing.assert_allclose(fluxes, 1e5, rtol=2e-2)
    assert np.mean(fluxes) == pytest.approx(1e5, rel=1e-3)


@pytest.mark.slow
def test_a_step_of_the_noise_is_followed(rng):
    kernel, n = kernels.constant_kernel(gaussian(25, 2.0), BOX), 6
    step = np.where(np.arange(SIZE) < SIZE // 2, 900.0, 3600.0)[None, :]
    near = np.broadcast_to(np.abs(np.arange(SIZE) - SIZE // 2) < 8, (SIZE, SIZE))
    found = {False: [], True: []}
    for _ in range(n):
        science, template = pair(rng, 900.0, step)
        difference = subtract(science, template, kernel, full_variance=False)
        for spatial, results in found.items():
            options = DecorrelationOptions(spatially_varying=spatial)
            result = decorrelate(science, template, difference, sources=NONE, options=options)
            results.append(columns(result.exposure, gaussian(41, 3.0), skip=near))
    pixels, filtered = np.moveaxis(np.mean(found[True], axis=0), 1, 0)
    assert np.abs(pixels - 1).max() < 0.01
    assert np.abs(filtered - 1).max() < 3 * sampling_error(n)
    constant = np.mean(found[False], axis=0)[:, 1]
    assert constant[0] < 0.75
    assert constant[2] > 1.25


@pytest.mark.parametrize("ratio", [0.3, 1.0, 10.0])
def test_where_nothing_varies_it_is_the_documented_correction(rng, ratio):
    science, template = pair(rng, 900.0, 900.0 * ratio)
    science.psf = KernelPointSpreadFunction.from_image(gaussian(41, 3.0), BOX)
    difference = subtract(science, template, moffat_kernel(21, 1.3))
    results = [
        decorrelate(science, template, difference, options=options, sources=NONE)
        for options in (
            DecorrelationOptions(transform="documented", fill="mean"),
            DecorrelationOptions(spatially_varying=True),
        )
    ]
    sigma = math.sqrt(results[0].variance_mean_after)
    inner = (slice(40, -40), slice(40, -40))
    images = [result.exposure.data[inner].astype(float) for result in results]
    assert np.abs(images[1] - images[0]).max() < 1e-4 * sigma
    planes = [result.exposure.variance for result in results]
    # Near the edges one is of zeros beyond them, the other of the mirror image.
    np.testing.assert_allclose(planes[1][inner], planes[0][inner], rtol=1e-5)


def test_a_kernel_that_hardly_varies_gives_nearly_the_constant_result(rng):
    science, template = pair(rng, 900.0, 9000.0)
    image = moffat_kernel(21, 1.3)
    terms = np.stack([image, 1e-7 * image, 1e-7 * image])
    difference = subtract(science, template, image)
    difference.kernel = kernels.term_kernel(terms, 1, BOX)
    results = [
        decorrelate(
            science, template, difference, sources=NONE,
            options=options,
        )
        for options in (
            DecorrelationOptions(transform="documented", fill="mean"),
            DecorrelationOptions(spatially_varying=True),
        )
    ]  # fmt: skip
    assert results[1].local is not None
    moved = results[1].exposure.data - results[0].exposure.data
    inner = (slice(40, -40), slice(40, -40))
    assert np.abs(moved[inner]).max() < 1e-4 * math.sqrt(results[0].variance_mean_after)


def test_the_filter_follows_the_background_not_the_sources(rng):
    science, template = pair(rng, 900.0, np.linspace(500, 2000, SIZE)[:, None])
    difference = subtract(science, template, gaussian(25, 1.8), full_variance=False)
    bright = np.zeros((SIZE, SIZE))
    bright[290:331, 290:331] = 5e4 * gaussian(41, 3.0) / gaussian(41, 3.0).max()
    sources = bright > 20
    results = []
    for photons in (0, bright):
        for exposure in (science, template):
            exposure.variance[...] += photons
        options = DecorrelationOptions(spatially_varying=True)
        results.append(decorrelate(science, template, difference, options=options, sources=sources))
    sigma = np.sqrt(results[0].exposure.variance)
    moved = results[1].exposure.data - results[0].exposure.data
    assert np.abs(moved / sigma).max() < 5e-3
    # The plane has them.
    added = results[1].exposure.variance - results[0].exposure.variance
    assert added[310, 310] > 5e4


@pytest.mark.slow
def test_full_variance_through_a_filter_that_varies(rng):
    """Against the scatter of many realisations."""
    step = np.where(np.arange(SIZE) < SIZE // 2, 400.0, 3600.0)[None, :]
    kernel = varying_kernel()
    total, n = np.zeros(SIZE), 6
    for _ in range(n):
        science, template = pair(rng, 900.0, step)
        difference = subtract(science, template, kernel, full_variance=False)
        options = DecorrelationOptions(spatially_varying=True, full_variance=True)
        result = decorrelate(science, template, difference, sources=NONE, options=options)
        total += (result.exposure.data[24:-24].astype(float) ** 2).sum(axis=0)
    scatter = total / (n * (SIZE - 48))
    plane = result.exposure.variance[24:-24].mean(axis=0)
    ratio = scatter[24:-24] / plane[24:-24]
    # 5 standard errors of one column; their mean is far better known.
    assert np.abs(ratio - 1).max() < 5 * math.sqrt(2 / (n * (SIZE - 48)))
    assert ratio.mean() == pytest.approx(1, abs=0.005)


def lanczos(shift, support=3):
    x = np.arange(-support, support + 1) - shift
    kernel = np.where(np.abs(x) < support, np.sinc(x) * np.sinc(x / support), 0)
    return kernel / kernel.sum()


@pytest.mark.slow
def test_a_resampled_template_known_and_measured(rng):
    resampling, n = np.outer(lanczos(0.5), lanczos(0.5)), 4
    kernel = varying_kernel()
    known = resampling_covariance(resampling)
    found = {"documented": [], "known": [], "measured": []}
    for _ in range(n):
        science, template = pair(rng, 900.0, 900.0, resampling)
        science.psf = varying_psf()
        difference = subtract(science, template, kernel, full_variance=False)
        for how, results in found.items():
            options = DecorrelationOptions(
                spatially_varying=True, noise="auto" if how == "measured" else "white"
            )
            result = decorrelate(
                science, template, difference, options=options, sources=NONE,
                noise=InputNoise(template_covariance=known if how == "known" else None),
            )  # fmt: skip
            results.append(columns(result.exposure, gaussian(41, 3.0)))
    assert result.science_noise is None
    assert result.template_noise is not None
    assert result.template_noise.zero_frequency == pytest.approx(known.zero_frequency, rel=0.05)
    assert 0 < result.flux_error < 0.02
    error = sampling_error(n)
    for how in ("known", "measured"):
        pixels, filtered = np.moveaxis(np.mean(found[how], axis=0), 1, 0)
        assert np.abs(pixels - 1).max() < 0.01, how
        assert np.abs(filtered - 1).max() < 3 * error + 0.005, how
    assert np.mean(found["documented"], axis=0)[:, 1].min() > 1.1
    # Fluxes are kept all the same.
    sources, places = with_sources(difference, science.psf)
    result = decorrelate(
        science, template, sources, options=DecorrelationOptions(spatially_varying=True),
        sources=NONE, noise=InputNoise(template_covariance=known),
    )  # fmt: skip
    np.testing.assert_allclose(photometry(result.exposure, places), 1e5, rtol=2e-3)


def test_noise_whose_phase_varies_over_the_field(rng):
    science, template = pair(rng, 900.0, 900.0)

    def covariance(x, y):
        shift = 0.5 * (x + 0.5) / SIZE
        return resampling_covariance(np.outer(lanczos(shift), lanczos(shift)))

    difference = subtract(science, template, gaussian(25, 2.0))
    result = decorrelate(
        science, template, difference, options=DecorrelationOptions(spatially_varying=True),
        sources=NONE, noise=InputNoise(template_covariance=covariance),
    )  # fmt: skip
    assert result.local is not None
    for x, y in ((100, 100), (500, 300)):
        u, v = (2 * (at + 0.5) / SIZE - 1 for at in (x, y))
        shape = (96, 96)
        exact = difference_correction(
            gaussian(25, 2.0), unconvolved_variance=900.0, convolved_variance=900.0, shape=shape,
            convolved_noise=covariance(x, y).spectrum(shape),
        )  # fmt: skip
        kernel = np.fft.fftshift(pixel_kernel(exact.correction_ft, shape=shape))
        ours = result.local.filter.at(u, v, 0.0)
        half = ours.shape[0] // 2
        window = slice(48 - half, 48 + half + 1)
        assert np.linalg.norm(ours - kernel[window, window]) < 3e-3


def test_the_varying_psf_survives_a_file(rng, tmp_path):
    science, template = pair(rng, 900.0, 900.0)
    template.variance[:, SIZE // 2 :] *= 4
    science.psf = varying_psf()
    difference = subtract(science, template, gaussian(25, 2.0))
    result = decorrelate(
        science, template, difference, sources=NONE,
        options=DecorrelationOptions(spatially_varying=True),
    )  # fmt: skip
    assert all(isinstance(field, GridField) for field in result.exposure.psf.kernel.fields)
    write_exposure(result.exposure, tmp_path / "out.fits")
    again = read_exposure(tmp_path / "out.fits")
    for x, y in ((10, 10), (315, 200), (330, 200), (600, 639)):
        np.testing.assert_allclose(
            again.psf.at(x=x, y=y), result.exposure.psf.at(x=x, y=y), atol=1e-6
        )


def test_a_kernel_that_is_not_defined_everywhere_is_refused(rng):
    science, template = pair(rng, 900.0, 900.0)
    difference = subtract(science, template, gaussian(25, 2.0))
    part = kernels.term_kernel(
        np.stack([gaussian(25, 2.0)] * 3), 1, Box.from_shape((SIZE, SIZE // 2))
    )
    options = DecorrelationOptions(spatially_varying=True)
    with pytest.raises(ArgumentError, match=r"defined on .* only"):
        decorrelate(science, template, difference, part, options=options, sources=NONE)
    decorrelate(science, template, difference, part, options=DecorrelationOptions(x=100, y=100))
    with pytest.raises(
        ArgumentError, match=r"at x = 500, y = 100, but it is defined on \[y=0:640, x=0:320\]"
    ):
        decorrelate(science, template, difference, part, options=DecorrelationOptions(x=500, y=100))


@pytest.mark.parametrize(
    ("slope", "expected"), [(1.5, "from -0.5 to 2.5"), (0.99, "from 0.01 to 1.99"), (0.8, None)]
)
def test_a_kernel_whose_sum_vanishes_in_the_field_is_refused(rng, slope, expected):
    science, template = pair(rng, 900.0, 900.0)
    kernel = kernels.chebyshev_kernel(gaussian(25, 2.0)[None], np.array([[[1, slope]]]), BOX)
    difference = subtract(science, template, kernel)
    options = DecorrelationOptions(spatially_varying=True)
    if expected is None:
        decorrelate(science, template, difference, options=options, sources=NONE)
        return
    with pytest.raises(ArgumentError, match=f"sum of the matching kernel.*{expected}"):
        decorrelate(science, template, difference, options=options, sources=NONE)


def test_options_that_contradict_each_other_are_refused(rng):
    for contradiction in (
        {"spatially_varying": True, "transform": "documented"},
        {"fill": "interpolate", "transform": "documented"},
        {"tolerance": 0.0},
        {"noise": "pink"},
        {"fill": "zero"},
    ):
        with pytest.raises(ArgumentError):
            DecorrelationOptions(**contradiction)
    science, template = pair(rng, 900.0, 900.0)
    difference = subtract(science, template, gaussian(25, 2.0))
    with pytest.raises(ArgumentError, match="they would be measured"):
        decorrelate(
            science, template, difference, options=DecorrelationOptions(noise="auto"),
            noise=InputNoise(template_covariance=resampling_covariance(np.ones((1, 2)) / 2)),
        )  # fmt: skip
    for wrong in ("white", 1.0, lambda x, y: "white"):
        noise = InputNoise(template_covariance=wrong)
        with pytest.raises(ArgumentError, match=r"must be a NoiseCovariance.*got (1\.0|'white')"):
            decorrelate(science, template, difference, noise=noise)


def few_source_free(rng, *, beyond):
    """Pair, difference and sources, of which a corner is free; beyond it ``beyond`` is flagged."""
    science, template = pair(rng, 900.0, 900.0)
    sources = np.ones((SIZE, SIZE), dtype=bool)
    sources[:40, :40] = False
    if beyond is not None:
        science, template = (
            each.replaced(mask=masks.with_plane(each.mask, beyond, sources))
            for each in (science, template)
        )
    return science, template, subtract(science, template, gaussian(25, 2.0)), sources


def test_too_few_pixels_fall_back_to_white_with_a_warning(rng, caplog):
    *exposures, sources = few_source_free(rng, beyond="NO_DATA")
    options = DecorrelationOptions(noise="measured")
    result = decorrelate(*exposures, sources=sources, options=options)
    assert result.science_noise is None
    assert result.template_noise is None
    assert "taken as white" in caplog.text
    # What was done is not advised.
    assert "treat the noise as white" not in caplog.text.lower()


def test_frequencies_free_of_sources_tell_what_too_few_pixels_do_not(rng, caplog):
    *exposures, sources = few_source_free(rng, beyond=None)
    options = DecorrelationOptions(noise="measured")
    result = decorrelate(*exposures, sources=sources, options=options)
    assert result.science_noise.is_white
    assert result.template_noise.is_white
    assert "taken as white" not in caplog.text


def test_interpolated_and_mirrored(rng):
    """A column that is missing does not move its neighbours, nor the edge a background."""
    science, template = pair(rng, 900.0, 4000.0)
    difference = subtract(science, template, varying_kernel(), full_variance=False)
    whole = difference.data
    whole += 100 * math.sqrt(900)
    whole[280:321, 300:341] += 1e5 * gaussian(41, 3.0) / gaussian(41, 3.0).max()
    results = {}
    for fill in ("whole", "mean", "interpolate"):
        if fill != "whole":
            difference.data[:, 320] = np.nan
        options = DecorrelationOptions(
            spatially_varying=True, fill="mean" if fill == "whole" else fill
        )
        results[fill] = decorrelate(
            science, template, difference, options=options, sources=NONE
        ).exposure.data
    core = (slice(297, 304), [317, 318, 319, 321, 322, 323])
    shift = {
        fill: np.abs(results[fill][core] / results["whole"][core] - 1).max()
        for fill in ("mean", "interpolate")
    }
    assert shift["mean"] > 0.02
    assert shift["interpolate"] < 0.003
    assert np.isnan(results["interpolate"][:, 320]).all()
    edge = results["interpolate"][100:500, 0].mean()
    assert edge == pytest.approx(3000, abs=4 * 70 / math.sqrt(400))
    assert abs(results["mean"][100:500, 0].mean() - 3000) > 300


@pytest.mark.slow
def test_full_variance_of_a_score_whose_kernel_varies(rng):
    """Where the inputs' variances are level, every propagation gives the estimate."""
    kernel = kernels.interpolated_kernel(
        lambda x, y: 1.3 * gaussian(41, math.sqrt(science_width(x) ** 2 + 9 - 4)), BOX, 3
    )
    images = [
        Exposure.from_arrays(rng.normal(0, 30, (SIZE, SIZE)), variance=900.0) for _ in range(3)
    ]
    planes = [
        decorrelate(
            *images,
            kernel,
            preconvolution_kernel=gaussian(41, 3.0),
            sources=NONE,
            options=DecorrelationOptions(score=True, spatially_varying=True, full_variance=full),
        ).exposure.variance[60:-60, 60:-60]
        for full in (False, True)
    ]
    assert np.ptp(planes[0]) > 0.1 * planes[0].mean()
    np.testing.assert_allclose(planes[1], planes[0], rtol=2e-3)
