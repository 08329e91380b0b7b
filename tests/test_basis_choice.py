"""The basis of a matching kernel, chosen by stars that are left out of the fit.

Claims: elliptical Gaussians and splines describe the kernels that they are meant for, and their
images are what is convolved; moments of stars are the PSF's; fields with round PSFs keep round
Gaussians and the same kernel; trails take elliptical Gaussians and spikes a free form, which leave
less of bright stars, with the kernel's sum right within its error, whichever image is the sharper
and whatever the units; a warning gives the residual chi-square where no basis describes the stars;
a difference says its basis and is made again from its file.  The truth is analytic: stars are sums
of Gaussians, drawn where they lie.
"""

from __future__ import annotations

import logging
import math
import re

import numpy as np
import pytest
import scipy.signal
from astropy.io import fits

from marks import slow_after
from whitediff import Exposure
from whitediff.errors import ArgumentError
from whitediff.formats import write_exposure
from whitediff.matching.basis import delta_basis, elliptical_basis, gaussian_basis, spline_basis
from whitediff.matching.choice import Trial, is_better, mean_moments
from whitediff.matching.exposures import MatchOptions, match
from whitediff.matching.normals import normal_equations
from whitediff.matching.preparation import prepare
from whitediff.stars.stamps import Stamps

SCALE = 0.8
"""Science image's flux over the template's."""
GAIN = 2.0
SKIES = 120.0, 60.0
"""Variances of science image and template."""
SHAPE = (300, 330)
PIXEL = 1 / 12
"""Variance of a pixel's own extent."""


def oval(fwhm, ratio=1.0, angle=0.0):
    """Second moments xx, xy; xy, yy of a Gaussian: FWHM of the long axis, axes' ratio, degrees."""
    square = fwhm**2 / (8 * math.log(2))
    turn = math.radians(angle)
    axes = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return axes @ np.diag([square, square * ratio**2]) @ axes.T


def round_star(fwhm):
    """A PSF: share, offset and moments of each Gaussian.  A tenth of the light is in wings."""
    return [(0.9, (0.0, 0.0), oval(fwhm)), (0.1, (0.0, 0.0), oval(1.8 * fwhm))]


def trailed(fwhm, length, angle):
    """The same along a line."""
    steps = np.linspace(-0.5, 0.5, 9) * length
    turn = math.radians(angle)
    return [
        (share / 9, (s * math.cos(turn), s * math.sin(turn)), moments)
        for s in steps
        for share, _, moments in round_star(fwhm)
    ]


def spiked(fwhm, angle):
    """A star of which 12 % of the light is in four spikes."""
    core = [(0.88 * share, offset, moments) for share, offset, moments in round_star(fwhm)]
    return core + [
        (0.06, (0.0, 0.0), oval(11.0, 0.13, angle + more) + oval(0.6 * fwhm)) for more in (0, 90)
    ]


def kind_of(name, seed):
    """PSFs of science image and template."""
    angle = 37.0 * seed + 10
    return {
        "round": (round_star(3.4), round_star(2.8)),
        "equal": (round_star(3.0), round_star(2.99)),
        "slightly oval": (
            [(1.0, (0.0, 0.0), oval(3.8, 0.93, angle))],
            [(1.0, (0.0, 0.0), oval(3.1, 0.95, angle + 70))],
        ),
        "trailed": (trailed(3.0, 9.0, angle), round_star(3.0)),
        "spiked": (spiked(3.1, angle), spiked(2.7, angle + 40)),
        "crossed trails": (trailed(2.8, 4.5, angle), trailed(2.8, 3.5, angle + 80)),
        "longer crossed trails": (trailed(2.8, 5.5, angle), trailed(2.8, 4.5, angle + 80)),
    }[name]


def drawn(psf, x, y, flux, shape=SHAPE, half=40):
    """Image of stars."""
    image = np.zeros(shape)
    for column, row, light in zip(x, y, flux, strict=True):
        top, left = max(0, round(row) - half), max(0, round(column) - half)
        part = image[top : round(row) + half + 1, left : round(column) + half + 1]
        dy, dx = np.indices(part.shape, float)
        for share, (shift_x, shift_y), moments in psf:
            u, v = dx + left - column - shift_x, dy + top - row - shift_y
            inverse = np.linalg.inv(moments + PIXEL * np.eye(2))
            form = inverse[0, 0] * u**2 + 2 * inverse[0, 1] * u * v + inverse[1, 1] * v**2
            peak = light * share * math.sqrt(np.linalg.det(inverse)) / (2 * math.pi)
            part += peak * np.exp(-form / 2)
    return image


def pair_of(name, seed, *, swapped=False, unit=1.0, stars=36):
    """Exposures of a field, and its PSFs."""
    rng = np.random.default_rng([seed, 77])
    ny, nx = SHAPE
    x, y = rng.uniform(0, nx, stars), rng.uniform(0, ny, stars)
    flux = 3e3 * 50 ** rng.uniform(0, 1, stars)
    psfs = kind_of(name, seed)[:: -1 if swapped else 1]
    exposures = []
    for psf, scale, sky in zip(psfs, (SCALE, 1.0), SKIES, strict=True):
        image = drawn(psf, x, y, scale * flux)
        noisy = rng.poisson(GAIN * image) / GAIN + rng.normal(0, math.sqrt(sky), SHAPE)
        exposures.append(
            Exposure.from_arrays(
                (unit * noisy).astype(np.float32),
                variance=(unit**2 * (sky + image / GAIN)).astype(np.float32),
            )
        )
    return exposures, psfs


def matched(exposures, basis="auto"):
    options = MatchOptions(convolved="auto", basis=basis, choose_order="bic")
    return match(prepare(*exposures), options)


def judged(found, psfs):
    """Pull of the kernel's sum, and the largest residual of a bright star, in sigmas of a source.

    The star has no noise; what a matched filter with its PSF finds of it is a false source.
    """
    x, y, light, shape = [60.2], [59.7], [1e5], (121, 121)
    images = [
        drawn(psf, x, y, scale * np.array(light), shape)
        for psf, scale in zip(psfs, (SCALE, 1.0), strict=True)
    ]
    skies, truth = SKIES, SCALE
    if found.convolved == "science":
        images, skies, psfs, truth = images[::-1], skies[::-1], psfs[::-1], 1 / SCALE
    target, source = images
    kernel = found.kernel.at(x=165, y=150)
    left = target - scipy.signal.fftconvolve(source, kernel, mode="same")
    variance = skies[0] + target / GAIN
    variance += scipy.signal.fftconvolve(source / GAIN + skies[1], kernel**2, mode="same")
    psf = drawn(psfs[0], [12], [12], [1.0], (25, 25))[::-1, ::-1]
    inner = np.s_[20:-20, 20:-20]
    signal = scipy.signal.fftconvolve(left / variance, psf, mode="same")[inner]
    norm = scipy.signal.fftconvolve(1 / variance, psf**2, mode="same")[inner]
    pull = (found.fit.kernel_sum - truth) / found.fit.kernel_sum_error
    return pull, float(np.abs(signal / np.sqrt(norm)).max())


def test_elliptical_gaussians_make_an_elliptical_kernel():
    target, source = oval(6.0, 0.6, 25), oval(3.0)
    basis = elliptical_basis(target, source, size=31)
    sums = basis.images.sum(axis=(1, 2))
    assert np.allclose(sums, np.eye(len(basis))[0], atol=1e-10)
    rest = basis.images[1:].reshape(len(basis) - 1, -1)
    assert np.allclose(rest @ rest.T, np.eye(len(rest)), atol=1e-9)
    kernel = drawn(
        [(1.0, (0.0, 0.0), target - source - PIXEL * np.eye(2))], [15], [15], [1.3], (31,) * 2
    )
    flat = basis.images.reshape(len(basis), -1).T
    solution, *_ = np.linalg.lstsq(flat, kernel.ravel(), rcond=None)
    assert np.abs(flat @ solution - kernel.ravel()).max() < 0.01 * kernel.max()
    assert solution[0] == pytest.approx(1.3, rel=1e-3)
    # Round ones leave far more of it.
    plain = gaussian_basis((1.0, 2.0, 4.0), size=31).images.reshape(27, -1).T
    other, *_ = np.linalg.lstsq(plain, kernel.ravel(), rcond=None)
    assert np.abs(plain @ other - kernel.ravel()).max() > 0.03 * kernel.max()
    # What costs nothing are the plain Gaussians, whose sums are 1.
    assert np.allclose(np.einsum("n,nk->k", sums, basis.typical), 1)


def test_where_no_axis_needs_widening_gaussians_are_round():
    basis = elliptical_basis(oval(2.5), oval(3.5), size=21)
    mean = np.tensordot(basis.typical[:, 2], basis.images, 1)
    assert np.allclose(mean, mean.T, atol=1e-4)
    assert np.allclose(mean, mean[:, ::-1], atol=1e-4)


@pytest.mark.parametrize(("spacing", "fwhm"), [(1.0, 3.2), (1.4, 4.5)])
def test_splines_make_every_smooth_kernel(spacing, fwhm):
    basis = spline_basis(25, spacing)
    assert np.allclose(basis.images.sum(axis=(1, 2)), np.eye(len(basis))[0], atol=1e-10)
    kernel = drawn(spiked(fwhm, 20), [12.3], [11.8], [0.7], (25, 25))
    # Beyond the circle there are no splines.
    offset = np.arange(25) - 12
    inside = np.hypot(offset, offset[:, None]).ravel() < 10
    flat = basis.images.reshape(len(basis), -1).T
    solution, *_ = np.linalg.lstsq(flat, kernel.ravel(), rcond=None)
    assert np.abs(flat @ solution - kernel.ravel())[inside].max() < 0.01 * kernel.max()


@pytest.mark.parametrize(
    "basis",
    [spline_basis(11, 1.3), elliptical_basis(oval(5, 0.5, 30), oval(3), size=11), delta_basis(5)],
    ids=["spline", "elliptical", "delta"],
)
def test_normal_equations_are_sums_over_convolved_stamps(basis, rng):
    size = 9
    source = rng.normal(size=(2, size + basis.size - 1, size + basis.size - 1))
    target, weight = rng.normal(size=(2, 2, size, size))
    stamps = Stamps(source, target, weight**2, np.zeros(2), np.zeros(2))
    found = normal_equations(stamps, basis)
    for i in range(2):
        columns = [scipy.signal.convolve2d(source[i], b, mode="valid") for b in basis.images]
        columns = np.array([*columns, np.ones((size, size))]).reshape(len(basis) + 1, -1)
        gram = columns * weight[i].ravel() ** 2 @ columns.T
        assert np.allclose(found.gram[i], gram, atol=1e-9 * np.abs(gram).max())
        right = columns @ (weight[i] ** 2 * target[i]).ravel()
        assert np.allclose(found.right[i], right, atol=1e-9 * np.abs(right).max())


def test_stamps_cropped_are_the_middles(rng):
    source, target = rng.normal(size=(3, 29, 29)), rng.normal(size=(3, 21, 21))
    stamps = Stamps(source, target, target**2, np.zeros(3), np.zeros(3), source**2)
    cropped = stamps.cropped(11)
    assert np.array_equal(cropped.target, target[:, 5:-5, 5:-5])
    assert np.array_equal(cropped.source, source[:, 5:-5, 5:-5])
    assert np.array_equal(cropped.source_variance, cropped.source**2)
    for size in (10, 23):
        with pytest.raises(ArgumentError, match=f"21 pixels cannot be cropped to {size}"):
            stamps.cropped(size)


@pytest.mark.parametrize("size", [10, 1])
def test_sides_that_are_not_odd_are_refused(size):
    with pytest.raises(ArgumentError, match=f"odd and at least 3; got {size}"):
        spline_basis(size, 1.0)
    with pytest.raises(ArgumentError, match=f"odd and at least 3; got {size}"):
        elliptical_basis(oval(4), oval(3), size=size)


def test_a_grid_finer_than_the_pixels_is_refused():
    with pytest.raises(ArgumentError, match=r"got 0\.5 pixels"):
        spline_basis(11, 0.5)


@pytest.mark.parametrize(("ratio", "angle"), [(1.0, 0), (0.6, 30), (0.45, 120)])
def test_moments_of_stars_are_those_of_the_psf(ratio, angle):
    moments = oval(6.0, ratio, angle)
    stars = [
        drawn([(1.0, (0.0, 0.0), moments)], [25 + dx], [25 + dy], [flux], (51, 51)) + 7.0
        for dx, dy, flux in ((0, 0, 1e4), (0.3, -0.2, 3e3), (-0.3, 0.2, 3e3))
    ]
    found = mean_moments(np.array(stars))
    # Middles within the pixel scatter by a little more.
    assert np.allclose(found, moments + PIXEL * np.eye(2), atol=0.06)


def test_no_light_has_no_moments():
    assert np.isnan(mean_moments(np.zeros((2, 21, 21)))).all()


def trial(squares, used=None):
    n = len(squares)
    return Trial(
        squares=np.array(squares, float),
        pixels=np.full(n, 100.0),
        signal=np.arange(n, 0, -1.0),
        used=np.ones(n, bool) if used is None else np.array(used),
        scale=1.0,
    )


def test_a_basis_must_be_better_for_most_bright_stars_not_for_one():
    simple = trial([300, 250, 200, 150, 110, 100])
    assert is_better(trial([120, 110, 110, 100, 100, 100]), simple)
    assert not is_better(trial([290, 240, 190, 150, 110, 100]), simple)  # by too little
    assert not is_better(
        trial([100, 260, 210, 160, 110, 100]), trial([900, 250, 200, 150, 110, 100])
    )
    assert not is_better(simple, simple)
    # What neither describes does not count.
    blend = [True, True, True, True, True, False]
    assert not is_better(trial([100] * 5 + [100], blend), trial([100] * 5 + [9000], blend))


def test_the_residual_of_bright_stars_is_judged_without_the_worst():
    assert trial([9000, 110, 110, 110, 110, 1, 1, 1, 1, 1]).reduced == pytest.approx(1.1)
    assert trial([200, 200, 200]).reduced == pytest.approx(2.0)


@pytest.mark.parametrize("swapped", [False, True], ids=["template sharper", "science sharper"])
@pytest.mark.parametrize("name", slow_after(2, ["round", "equal", "slightly oval"]))
def test_ordinary_fields_keep_round_gaussians(name, swapped):
    exposures, _ = pair_of(name, 2, swapped=swapped)
    found, plain = matched(exposures), matched(exposures, "gaussian")
    assert found.basis == "gaussian"
    assert found.residual_chi_square < 1.2
    assert np.array_equal(found.fit.kernel_coefficients, plain.fit.kernel_coefficients)
    assert found.fit.kernel_sum_error == plain.fit.kernel_sum_error


def check_choice(name, basis, most, seed, swapped):
    exposures, psfs = pair_of(name, seed, swapped=swapped)
    found = matched(exposures)
    assert found.basis == basis
    assert found.residual_chi_square < 1.3
    pull, largest = judged(found, psfs)
    assert abs(pull) < 3.5
    _, before = judged(matched(exposures, "gaussian"), psfs)
    assert largest < most
    assert largest < 0.7 * before


@pytest.mark.parametrize("swapped", [False, True], ids=["template sharper", "science sharper"])
@pytest.mark.parametrize(("name", "basis"), [("trailed", "elliptical"), ("spiked", "spline")])
def test_the_stars_choose_the_basis(name, basis, swapped):
    # Half of what is detected: no false source at a star of 1e5.
    check_choice(name, basis, 5.0, 1, swapped)


@pytest.mark.slow
@pytest.mark.parametrize("swapped", [False, True], ids=["template sharper", "science sharper"])
@pytest.mark.parametrize(("name", "basis"), [("trailed", "elliptical"), ("spiked", "spline")])
@pytest.mark.parametrize("seed", range(2, 6))
def test_the_stars_choose_the_basis_in_every_field(name, basis, swapped, seed):
    check_choice(name, basis, 5.0, seed, swapped)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["round", "equal", "slightly oval"])
@pytest.mark.parametrize("seed", range(3, 9))
def test_no_ordinary_field_takes_another_basis(name, seed):
    for swapped in (False, True):
        exposures, _ = pair_of(name, seed, swapped=swapped)
        assert matched(exposures).basis == "gaussian"


@pytest.mark.parametrize("unit", [1e-12, 1e7])
def test_units_choose_nothing(unit):
    found, same = (matched(pair_of("trailed", 1, unit=u)[0]) for u in (1.0, unit))
    assert found.basis == same.basis == "elliptical"
    assert same.residual_chi_square == pytest.approx(found.residual_chi_square, rel=1e-3)
    assert same.fit.kernel_sum == pytest.approx(found.fit.kernel_sum, rel=1e-4)


def test_what_no_basis_describes_is_told_with_a_number(caplog):
    exposures, _ = pair_of("crossed trails", 1)
    with caplog.at_level(logging.WARNING, "whitediff"):
        found = matched(exposures)
    (told,) = (text for text in caplog.messages if "No basis describes" in text)
    number = float(re.search(r"chi-square of ([0-9.]+) per pixel", told)[1])
    assert number == pytest.approx(found.residual_chi_square, abs=0.006)
    assert number > 1.5


@pytest.mark.parametrize("name", ["crossed trails", "longer crossed trails"])
def test_where_no_basis_describes_the_stars_none_with_more_freedom_is_taken(name):
    exposures, _ = pair_of(name, 2)
    found, plain = matched(exposures), matched(exposures, "gaussian")
    assert found.basis == "gaussian"
    assert np.array_equal(found.fit.kernel_coefficients, plain.fit.kernel_coefficients)


@pytest.mark.parametrize("basis", ["gaussian", "elliptical", "spline"])
def test_a_basis_that_is_asked_for_is_taken(basis, caplog):
    exposures, _ = pair_of("spiked", 1)
    with caplog.at_level(logging.INFO, "whitediff"):
        found = matched(exposures, basis)
    assert found.basis == basis
    assert not any("Kernel basis:" in text for text in caplog.messages)
    told = [text for text in caplog.messages if "does not describe the kernel" in text]
    assert len(told) == (0 if basis == "spline" else 1)
    assert all(f"The basis {basis}" in text and "--basis auto" in text for text in told)


def test_another_basis_is_refused():
    with pytest.raises(
        ArgumentError, match="auto, gaussian, elliptical, spline, delta; got 'sinc'"
    ):
        MatchOptions(basis="sinc")


@pytest.mark.parametrize(
    ("name", "basis"), slow_after(1, [("trailed", "elliptical"), ("spiked", "spline")])
)
def test_a_difference_says_its_basis_and_is_made_again(name, basis, run, tmp_path):
    exposures, _ = pair_of(name, 1)
    for exposure, file in zip(exposures, ("science.fits", "template.fits"), strict=True):
        write_exposure(exposure, tmp_path / file)
    inputs = tmp_path / "science.fits", tmp_path / "template.fits"
    first, second = tmp_path / "first.fits", tmp_path / "second.fits"
    code, _, told = run("subtract", *inputs, "--output", first, "--threads", 1)
    assert code == 0
    assert f"Kernel basis: {basis}; residual chi-square" in told
    code, *_ = run("subtract", *inputs, "--output", second, "--kernel", first, "--threads", 1)
    assert code == 0
    with fits.open(first) as one, fits.open(second) as two:
        assert one[0].header["WDBASIS"] == basis
        assert f"left out of the fit: {one[0].header['WDHELDX2']:.2f}." in told
        for plane in ("IMAGE", "VARIANCE", "KERNEL"):
            assert np.array_equal(one[plane].data, two[plane].data, equal_nan=True)
