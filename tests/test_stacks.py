"""Differences of stacks, against simulated noise.

Claims: with one member that was not convolved the corrected difference of ten exposures with ten
kernels is white and its variance plane true, also for unequal weights, medians, members of
correlated noise and kernels that vary over the field, and sources keep their flux; without such a
member the correction is bounded, says so, and the plane is what the PSF-filtered noise has; one
exposure against one is the plain correction; the
command does the same and refuses what is wrong in one sentence.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math

import numpy as np
import pytest
from astropy.io import fits

from scenes import circulant, gaussian, moffat_kernel, place
from whitediff import Exposure
from whitediff.decorrelation.correction import difference_correction, pixel_kernel
from whitediff.decorrelation.stack_correction import (
    Member,
    median_shares,
    median_variance_ratio,
    stack_correction,
)
from whitediff.decorrelation.stacks import StackMember, StackOptions, decorrelate_stack
from whitediff.errors import ArgumentError, DataError
from whitediff.exposures import kernels
from whitediff.formats import write_exposure
from whitediff.noise.covariance import resampling_covariance
from whitediff.numerics import fourier
from whitediff.numerics.convolution import convolve, convolve_varying

SHAPE = (128, 128)
WIDTHS = (0.8, 1.1, 1.3, 1.6, 2.0, 0.9, 1.2, 1.4, 1.7, 1.9)
MATCHING_KERNEL = 1.1 * gaussian(15, 1.0)
PSF = gaussian(41, 2.3)
RATIO = 0.02  # what the plane and the filtered noise are held to


def members(rng, *, identity=True, weights=(1,) * 10, noise=None):
    """Ten exposures, five for either stack; the first may be the one not convolved."""
    sums, variances = rng.uniform(0.8, 1.3, 10), rng.uniform(20, 80, 10)
    return [
        Member(
            variance=variance,
            kernel=None if identity and i == 0 else total * gaussian(21, width),
            weight=weight,
            noise=noise if i in (0, 3, 7) else None,
        )
        for i, (width, total, variance, weight) in enumerate(
            zip(WIDTHS, sums, variances, weights, strict=True)
        )
    ]


def spectrum(kernel):
    return fourier.forward(fourier.pad_center_origin(kernel, SHAPE), SHAPE)


def measured_ratios(science, template, rng, *, combine="mean", n=120, interpolation=None):
    """Variance of corrected noise over the predicted one, of a pixel; filtered, over the plane.

    On a periodic grid, so that every pixel counts; resampled members by their interpolation.
    """
    correction = stack_correction(
        science, template, shape=SHAPE, matching_kernel=MATCHING_KERNEL, combine=combine
    )
    filters = []
    for member in (*science, *template):
        total = np.full((SHAPE[0], SHAPE[1] // 2 + 1), math.sqrt(member.variance), complex)
        if member.kernel is not None:
            total *= spectrum(member.kernel)
        if member.noise is not None:
            total *= spectrum(interpolation) / np.linalg.norm(interpolation)
        filters.append(total)
    psf_ft, matching_ft = spectrum(PSF), spectrum(MATCHING_KERNEL)
    pixel, filtered = [], []
    for _ in range(n):
        noise = [
            fourier.inverse(fourier.forward(rng.normal(size=SHAPE), SHAPE) * each, SHAPE, SHAPE)
            for each in filters
        ]
        sides = noise[: len(science)], noise[len(science) :]
        if combine == "median":
            stacks = [np.median(side, axis=0) for side in sides]
        else:
            stacks = [
                np.average(side, axis=0, weights=[member.weight for member in group])
                for side, group in zip(sides, (science, template), strict=True)
            ]
        difference_ft = fourier.forward(stacks[0], SHAPE)
        difference_ft -= matching_ft * fourier.forward(stacks[1], SHAPE)
        difference_ft *= correction.correction_ft
        pixel.append(fourier.mean_square_modulus(difference_ft, SHAPE) / math.prod(SHAPE))
        difference_ft *= psf_ft
        filtered.append(fourier.mean_square_modulus(difference_ft, SHAPE) / math.prod(SHAPE))
    # What follows from the variance plane.
    variances = [member.variance for member in (*science, *template)]
    plane = float(np.dot(correction.variance_weights, variances))
    expected = plane * float((PSF**2).sum())
    return (
        correction,
        float(np.mean(pixel)) / correction.variance,
        float(np.mean(filtered)) / expected,
    )


@pytest.mark.parametrize(
    ("combine", "weights"),
    [
        ("mean", (1,) * 10),
        ("mean", (3, 1, 2, 0.5, 1, 1, 4, 1, 0.3, 2)),
        ("median", (1,) * 10),
    ],
)
def test_noise_of_ten_kernels_is_white(rng, combine, weights):
    ten = members(rng, weights=weights)
    correction, pixel, filtered = measured_ratios(ten[:5], ten[5:], rng, combine=combine)
    assert pixel == pytest.approx(1, abs=RATIO)
    assert filtered == pytest.approx(1, abs=RATIO)
    assert correction.filtered_ratio == pytest.approx(1, abs=RATIO)
    assert correction.floored_fraction == 0
    assert correction.correction_ft[0, 0] == 1


@pytest.mark.parametrize("combine", ["mean", "median"])
def test_without_an_unconvolved_member_the_correction_is_bounded(rng, combine):
    ten = members(rng, identity=False)
    correction, pixel, filtered = measured_ratios(ten[:5], ten[5:], rng, combine=combine)
    assert pixel == pytest.approx(1, abs=RATIO)
    assert filtered == pytest.approx(1, abs=RATIO)
    assert correction.largest < 1 / math.sqrt(1e-3) * 1.001
    if combine == "mean":
        assert 0.2 < correction.floored_fraction < 0.6
        assert correction.filtered_ratio > 1.2
    boundless = stack_correction(
        ten[:5], ten[5:], shape=SHAPE, matching_kernel=MATCHING_KERNEL, floor=1e-12
    )
    assert boundless.largest > 10 * correction.largest


def test_noise_of_resampled_members(rng):
    shifted = np.array([0.0, 0.7, 0.3])
    interpolation = np.outer(shifted, shifted)
    ten = members(rng, noise=resampling_covariance(interpolation))
    correction, pixel, filtered = measured_ratios(
        ten[:5], ten[5:], rng, interpolation=interpolation
    )
    assert pixel == pytest.approx(1, abs=RATIO)
    assert filtered == pytest.approx(1, abs=RATIO)
    # Taken for white, they leave the result correlated: the test can fail.
    wrong = stack_correction(
        *(
            [dataclasses.replace(member, noise=None) for member in side]
            for side in (ten[:5], ten[5:])
        ),
        shape=SHAPE,
        matching_kernel=MATCHING_KERNEL,
    )
    assert wrong.white_variance < 0.9 * correction.white_variance


def test_covariance_is_exactly_white():
    shape, kernel = (22, 20), moffat_kernel(11)
    science = [Member(variance=3.0, weight=2.0), Member(variance=5.0, kernel=0.9 * gaussian(7, 1))]
    template = [Member(variance=2.0, kernel=moffat_kernel(9)), Member(variance=1.0)]
    correction = stack_correction(
        science, template, shape=shape, matching_kernel=kernel, floor=0, convolved="science"
    )
    match, own, other = (
        circulant(place(each, shape)) for each in (kernel, science[1].kernel, template[0].kernel)
    )
    identity = np.eye(len(match))
    covariance = (
        match @ (4 * 3 * identity + 5 * own @ own.T) @ match.T / 9
        + (2 * other @ other.T + identity) / 4
    )
    correct = circulant(fourier.inverse(correction.correction_ft + 0j, shape, shape))
    white = correct @ covariance @ correct.T
    np.testing.assert_allclose(
        white, correction.white_variance * identity, atol=1e-10 * correction.white_variance
    )
    assert correction.variance == pytest.approx(correction.white_variance, rel=1e-12)
    total = np.dot(correction.variance_weights, [3, 5, 2, 1])
    assert total == pytest.approx(correction.variance, rel=1e-12)


def test_one_against_one_is_the_plain_correction():
    kernel, shape = moffat_kernel(), (60, 64)
    plain = difference_correction(
        kernel, unconvolved_variance=40.0, convolved_variance=15.0, shape=shape
    )
    for combine in ("mean", "median"):
        for own, matching in ((None, kernel), (kernel, None)):
            stack = stack_correction(
                [Member(variance=40.0)],
                [Member(variance=15.0, kernel=own)],
                shape=shape,
                matching_kernel=matching,
                floor=0,
                combine=combine,
            )
            np.testing.assert_allclose(stack.correction_ft, plain.correction_ft, rtol=1e-12)
            np.testing.assert_allclose(stack.variance_weights, plain.variance_weights, rtol=1e-12)


def test_median_of_independent_values(rng):
    for n, known in ((1, 1.0), (2, 1.0), (3, 1.3460), (4, 1.1928), (5, 1.4342), (11, 1.5088)):
        assert median_variance_ratio(n) == pytest.approx(known, abs=1e-4)
    assert median_variance_ratio(4001) == pytest.approx(math.pi / 2, rel=1e-3)
    assert median_variance_ratio(4000) == pytest.approx(math.pi / 2, rel=1e-3)
    for sigmas in ([1, 1, 1, 1], [5, 1.5, 1.2, 1, 0.7], [4, 1, 1, 0.5]):
        values = rng.normal(size=(100_000, len(sigmas))) * sigmas
        median = np.median(values, axis=1)
        found = (median[:, None] * values).mean(axis=0) / np.square(sigmas)
        # Five sigma of the sampling error.
        error = 5 * median.std() / (np.array(sigmas) * math.sqrt(len(values)))
        assert (np.abs(median_shares(np.array(sigmas)) - found) < error).all()
        assert median_shares(np.array(sigmas)).sum() == pytest.approx(1, abs=1e-12)


@pytest.fixture(scope="module")
def stack():
    """Noise and eight sources in ten exposures, and their difference; two kernels vary."""
    rng = np.random.default_rng(20260802)
    shape, sums = (260, 300), rng.uniform(0.8, 1.3, 10)
    truth = np.zeros(shape)
    for y, x in ((60, 60), (60, 150), (60, 240), (130, 100), (130, 200), (200, 60), (200, 150)):
        truth[y, x] = 4e5
    exposures, kernels_used, made = [], [], []
    for i, width in enumerate(WIDTHS):
        variance = np.full(shape, rng.uniform(20, 80), np.float32)
        image = rng.normal(0, 1, shape).astype(np.float32) * np.sqrt(variance)
        exposure = Exposure.from_arrays(image, variance=variance, origin=(-7, 30))
        kernel = None
        if i in (2, 6):
            basis = sums[i] * np.stack([gaussian(21, 1.0), gaussian(21, 1.6) - gaussian(21, 1.0)])
            kernel = kernels.polynomial_kernel(
                basis, np.array([[1, 0, 0], [0.3, 0.8 / 300, 0.6 / 260]]), exposure.bbox
            )
            image = convolve_varying(image, *kernels.convolution_terms(kernel, exposure.bbox))
        elif i > 0:
            kernel = sums[i] * gaussian(21, width)
            image = convolve(image, kernel)
        exposures.append(exposure)
        kernels_used.append(kernel)
        made.append(image)
    difference = np.mean(made[:5], axis=0) - convolve(np.mean(made[5:], axis=0), MATCHING_KERNEL)
    sources = convolve(truth, PSF)
    given = Exposure.from_arrays(difference, variance=1.0, psf=PSF, origin=(-7, 30))
    return exposures, kernels_used, given, sources


def stacked(stack, slices=(slice(0, 5), slice(5, 10))):
    exposures, kernels_used, _, _ = stack
    every = [
        StackMember(exposure=exposure, kernel=kernel)
        for exposure, kernel in zip(exposures, kernels_used, strict=True)
    ]
    return [every[part] for part in slices]


@pytest.mark.parametrize("fill", ["mean", "interpolate"])
def test_exposures_of_which_two_have_varying_kernels(stack, fill):
    _, _, given, sources = stack
    result = decorrelate_stack(
        given,
        *stacked(stack),
        matching_kernel=MATCHING_KERNEL,
        options=StackOptions(fill=fill),
    )
    local = result.local.filter
    assert len(local.images) > 1
    assert local.error < 1e-3
    good = ~result.exposure.mask.get("CONTAMINATED")
    assert 0.9 < good.mean() < 1
    assert result.contaminated_fraction == pytest.approx(1 - good.mean())
    image, variance = result.exposure.data, result.exposure.variance
    ratio = image**2 / variance
    for part in (good, good & (np.arange(300) < 100), good & (np.arange(300) >= 200)):
        # Four sigma of the sampling error of white noise.
        assert ratio[part].mean() == pytest.approx(1, abs=4 * math.sqrt(2 / part.sum()))
    # In a corner it is the correction for the kernels there, and another one than in the next.
    box, sides = given.bbox, stacked(stack)
    direct = stack_correction(
        *(
            [
                Member(
                    variance=float(member.exposure.variance[0, 0]),
                    kernel=(
                        member.kernel.at(x=box.x.stop - 0.5, y=box.y.stop - 0.5)
                        if hasattr(member.kernel, "fields")
                        else member.kernel
                    ),
                )
                for member in side
            ]
            for side in sides
        ),
        shape=SHAPE,
        matching_kernel=MATCHING_KERNEL,
    )
    kernel = pixel_kernel(direct.correction_ft, shape=SHAPE)
    kernel = fourier.crop_center_origin(kernel, local.images.shape[1:])
    assert np.linalg.norm(local.at(1, 1, 0) - kernel) < 1e-3
    assert np.linalg.norm(local.at(-1, -1, 0) - kernel) > 0.02
    constant = decorrelate_stack(
        given,
        *stacked(stack),
        matching_kernel=MATCHING_KERNEL,
        options=StackOptions(spatially_varying=False),
    )
    assert len(constant.local.filter.images) == 1
    assert result.variance_mean_after == pytest.approx(variance[good].mean(), rel=0.01)
    assert result.exposure.kernel is not None
    # Sources: the same filter on what has them, less what has not.
    with_sources = given.replaced(data=given.data + sources)
    bright = decorrelate_stack(
        with_sources,
        *stacked(stack),
        matching_kernel=MATCHING_KERNEL,
        options=StackOptions(fill=fill),
    )
    change = bright.exposure.data - image
    assert change.sum() == pytest.approx(sources.sum(), rel=5e-3)
    psf = bright.exposure.psf
    stamp = psf.at(x=30 + 150, y=-7 + 60)
    flux = (stamp * change[40:81, 130:171]).sum() / (stamp**2).sum()
    assert flux == pytest.approx(4e5, rel=5e-3)


def test_floor_is_reported(stack, caplog):
    _, _, given, _ = stack
    with caplog.at_level(logging.INFO, logger="whitediff"):
        result = decorrelate_stack(
            given, *stacked(stack, (slice(1, 5), slice(5, 10))), matching_kernel=MATCHING_KERNEL
        )
    assert "of the frequencies the convolutions left no noise" in caplog.text
    assert result.floored_fraction > 0.2
    assert result.white_variance / result.pixel_variance > 1.2
    assert result.largest_correction < 32


def test_floored_plane_is_what_a_psf_filter_sees(stack):
    exposures, kernels_used, given, _ = stack
    chosen = {"science": (1, 3, 4), "template": (5, 7, 8)}
    sides = {
        name: np.mean([convolve(exposures[i].data, kernels_used[i]) for i in each], axis=0)
        for name, each in chosen.items()
    }
    noise = sides["science"] - convolve(sides["template"], MATCHING_KERNEL)
    result = decorrelate_stack(
        given.replaced(data=noise),
        *(
            [StackMember(exposure=exposures[i], kernel=kernels_used[i]) for i in each]
            for each in chosen.values()
        ),
        matching_kernel=MATCHING_KERNEL,
    )
    inner = (slice(50, -50), slice(50, -50))
    variance = result.exposure.variance
    assert variance.mean() == pytest.approx(result.white_variance, rel=1e-3)
    pixels = (result.exposure.data**2 / variance)[inner]
    assert pixels.mean() < 0.85
    filtered = convolve(result.exposure.data / np.sqrt(variance), PSF)[inner]
    # Three sigma of as many pixels, of which 2π·2.3² are one.
    error = math.sqrt(2 * 2 * math.pi * 2.3**2 / filtered.size)
    assert (filtered**2).mean() / (PSF**2).sum() == pytest.approx(1, abs=3 * error)


def test_divisor_divides_the_variance(stack):
    _, _, given, _ = stack
    results = [
        decorrelate_stack(
            given,
            *stacked(stack),
            matching_kernel=MATCHING_KERNEL,
            options=StackOptions(divisor=divisor, spatially_varying=False),
        )
        for divisor in (1.0, 2.0)
    ]
    np.testing.assert_allclose(
        results[0].exposure.variance, 4 * results[1].exposure.variance, rtol=1e-6
    )
    assert results[0].pixel_variance == pytest.approx(4 * results[1].pixel_variance)


def test_missing_pixels_come_back_and_contaminate(stack):
    _, _, given, _ = stack
    image = given.data.copy()
    image[100, 100] = np.nan
    broken = given.replaced(data=image)
    before = image.copy()
    result = decorrelate_stack(broken, *stacked(stack), matching_kernel=MATCHING_KERNEL)
    assert np.isnan(result.exposure.data).sum() == 1
    assert result.exposure.mask.get("CONTAMINATED")[100, 100]
    assert result.exposure.mask.get("CONTAMINATED")[100, 101]
    np.testing.assert_array_equal(image, before)


def test_bad_arguments_are_named(stack):
    one = [Member(variance=1.0)]
    shape = (32, 32)
    for expected, science, template, more in (
        ("science stack has no member", [], one, {}),
        ("template stack has no member", one, [], {}),
        ("weight of template member 1 must be positive", one, [Member(variance=1, weight=0)], {}),
        ("weight of science member 1", [Member(variance=1, weight=math.nan)], one, {}),
        ("floor must be at least 0", one, one, {"floor": -1e-3}),
        ("floor must be at least 0", one, one, {"floor": 1.0}),
        ("combine must be", one, one, {"combine": "mode"}),
        ("convolved must be", one, one, {"convolved": "both"}),
        ("kernel of science member 1 sums", [Member(variance=1, kernel=np.zeros((3, 3)))], one, {}),
        ("larger than the grid", one, one, {"matching_kernel": np.ones((33, 3))}),
        ("a median knows none", one, [*one, Member(variance=1, weight=2)], {"combine": "median"}),
    ):
        with pytest.raises(ArgumentError, match=expected):
            stack_correction(science, template, shape=shape, **more)
    with pytest.raises(DataError, match="variance of science member 1 must be positive"):
        stack_correction([Member(variance=0.0)], one, shape=shape)
    wide = [Member(variance=1.0, kernel=np.outer([1, 2, 1], [1, 2, 1]))]
    with pytest.raises(DataError, match="needs a floor above 0"):
        stack_correction(wide, wide, shape=shape, floor=0)
    with pytest.raises(ArgumentError, match="at least one value"):
        median_variance_ratio(0)
    _, _, given, _ = stack
    science, template = stacked(stack)
    small = Exposure.from_arrays(np.zeros((20, 20)), variance=1.0)
    moved = Exposure.from_arrays(np.zeros(given.shape), variance=1.0)
    empty = Exposure.from_arrays(np.full(given.shape, np.nan), variance=1.0, origin=(-7, 30))
    others = [StackMember(exposure=each) for each in (small, moved)]
    huge = StackMember(exposure=given, kernel=np.ones((301, 3)))
    for expected, arguments in (
        ("science member 2 has 20 x 20", (given, [science[0], others[0]], template)),
        ("template member 1 starts at", (given, science, [others[1]])),
        ("science stack has no member", (given, [], template)),
        ("larger than the image", (given, [huge], template)),
    ):
        with pytest.raises(ArgumentError, match=expected):
            decorrelate_stack(*arguments)
    with pytest.raises(DataError, match="no finite pixel"):
        decorrelate_stack(empty, science, template)
    known = StackMember(exposure=given, noise=resampling_covariance(np.ones((1, 2)) / 2))
    with pytest.raises(ArgumentError, match="covariance of science member 1 is given"):
        decorrelate_stack(given, [known], template, options=StackOptions(noise="measured"))
    for option, value in (
        ("floor", -1.0), ("combine", "sum"), ("divisor", 0.0), ("tolerance", 1.0),
        ("fill", "zero"), ("convolved", "none"), ("noise", "pink"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=option):
            StackOptions(**{option: value})


@pytest.fixture(scope="module")
def files(stack, tmp_path_factory):
    path = tmp_path_factory.mktemp("stack")
    exposures, kernels_used, given, _ = stack
    write_exposure(given, path / "difference.fits")
    fits.writeto(path / "final.fits", MATCHING_KERNEL)
    arguments = []
    for i, (exposure, kernel) in enumerate(zip(exposures, kernels_used, strict=True)):
        exposure.kernel = kernel if i in (2, 6) else None
        write_exposure(exposure, path / f"{i}.fits")
        exposure.kernel = None
        name = path / f"kernel{i}.fits"
        if i in (2, 6):
            name = path / f"{i}.fits"
        elif kernel is None:
            name = "-"
        else:
            fits.writeto(name, kernel)
        arguments += ["--science" if i < 5 else "--template", path / f"{i}.fits", name]
    return path, arguments


def test_command(run, files, stack):
    path, arguments = files
    out = path / "out.fits"
    command = ["decorrelate-stack", path / "difference.fits", *arguments]
    command += ["--kernel", path / "final.fits", "--output", out, "--noise", "white"]
    code, _, messages = run(*command)
    assert code == 0, messages
    assert "5 and 5 images" in messages
    expected = decorrelate_stack(stack[2], *stacked(stack), matching_kernel=MATCHING_KERNEL)
    with fits.open(out) as hdus:
        header = hdus[0].header
        np.testing.assert_allclose(hdus["IMAGE"].data, expected.exposure.data, atol=1e-5)
        np.testing.assert_allclose(hdus["VARIANCE"].data, expected.exposure.variance, rtol=1e-6)
        assert {"PSF", "KERNEL", "MASK"} <= {hdu.name for hdu in hdus}
        planes = {value for key, value in hdus["MASK"].header.items() if key.startswith("MSKN")}
        assert {"SOURCE", "STATIC", "STATIC_BRIGHT"} <= planes
    assert header["WDTASK"] == "decorrelate-stack"
    assert header["WDSCI"].split("; ") == [str(path / f"{i}.fits") for i in range(5)]
    assert header["WDSKERN"].split("; ")[0] == "-"
    assert header["WDFLFRAC"] == 0
    assert header["WDVPIX"] == pytest.approx(header["WDVWHITE"], rel=1e-3)
    assert len(header["WDSVARS"].split(",")) == 5
    assert run(*command)[0] == 1  # it exists
    code, _, messages = run("check", out, "--json", path / "check.json")
    assert code == 0, messages
    after = json.loads((path / "check.json").read_text())["after"]
    assert after["pixel_variance_ratio"] == pytest.approx(1, abs=RATIO)
    # One realisation of 260 × 300 pixels: 3 sigma.
    assert after["filtered_variance_ratio"] == pytest.approx(1, abs=0.08)


def test_noise_of_the_members_is_in_the_header(run, files):
    path, arguments = files
    out = path / "measured.fits"
    with fits.open(path / "0.fits") as hdus:
        # Shifted by half a pixel along x.
        hdus["IMAGE"].data = convolve(hdus["IMAGE"].data, np.array([[0, 0.5, 0.5]]))
        hdus.writeto(path / "resampled.fits", overwrite=True, checksum=True)
    used = [path / "resampled.fits" if each == path / "0.fits" else each for each in arguments]
    command = ["decorrelate-stack", path / "difference.fits", *used, "--constant"]
    code, _, messages = run(*command, "--kernel", path / "final.fits", "--output", out)
    assert code == 0, messages
    header = fits.getheader(out)
    power = header["WDSNOI0"].split(",")
    # Of (1 + cos k)/2 at zero frequency, over its mean of 1/2.
    assert float(power[0]) == pytest.approx(2, rel=0.1)
    assert power[1:] == ["-"] * 4
    assert float(header["WDSNSIG"].split(",")[0]) > 4
    assert float(header["WDSNFLR"].split(",")[0]) > 0.1
    error = float(header["WDSNERR"].split(",")[0])
    assert 0 < header["WDFLXERR"] < error / float(power[0]) / 2
    assert "WDTNOI0" not in header
    assert f"{path / 'resampled.fits'}: at" in messages


@pytest.mark.slow
def test_command_with_other_options(run, files):
    path, arguments = files
    out = path / "other.fits"
    command = ["decorrelate-stack", path / "difference.fits", *arguments]
    command += ["--kernel", path / "final.fits", "--output", out, "--overwrite", "--constant"]
    code, _, messages = run(*command, "--science-weights", "1,2,1,1,1", "--floor", 0.2)
    assert code == 0, messages
    header = fits.getheader(out)
    assert header["WDSWGT"] == "1,2,1,1,1"
    assert header["WDFLFRAC"] > 0
    assert header["WDFLOOR"] == 0.2
    code, _, messages = run(*command, "--median")
    assert code == 0, messages
    assert fits.getheader(out)["WDCOMB"] == "median"


def test_wrong_command_lines(run, files):
    path, arguments = files
    out = path / "never.fits"
    base = ["decorrelate-stack", path / "difference.fits", "--output", out]
    every = [*base, *arguments]
    fits.writeto(path / "small.fits", np.zeros((20, 20)), overwrite=True)
    for expected_code, text, command in (
        (2, "--science", base),
        (2, "--template", [*base, *arguments[:3]]),
        (2, "2 weights for 5 images", [*every, "--science-weights", "1,2"]),
        (2, "no weights", [*every, "--template-weights", "1,1,1,1,1", "--median"]),
        (2, "list of numbers", [*every, "--science-weights", "a,b"]),
        (1, "must be positive", [*every, "--science-weights", "1,1,0,1,1"]),
        (1, "floor must be", [*every, "--floor", "-1"]),
        (1, "divisor must be", [*every, "--divisor", "0"]),
        (1, "nothere.fits", [*every, "--science", path / "nothere.fits", "-"]),
        (1, "nokernel.fits", [*every, "--science", path / "0.fits", path / "nokernel.fits"]),
        (1, "small.fits", [*every, "--science", path / "small.fits", "-"]),
    ):
        code, _, messages = run(*command)
        assert code == expected_code, messages
        assert text in messages
        assert code == 2 or len(messages.strip().splitlines()) <= 3, messages
        assert "Unexpected" not in messages
    assert not out.exists()
