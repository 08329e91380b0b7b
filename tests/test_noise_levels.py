"""The noise of one image, whatever it shows.

Claims:

- The factor of a variance plane is the true one, within its error, in fields of thousands of stars,
  under a galaxy that fills half of the frame, in images of a few photons a pixel whose planes were
  made of the pixels' own counts, in co-added images that were interpolated, crowded or not, with
  half of the pixels masked, and in noise alone; in every unit.
- Its stated error is the scatter about the truth.
- A correlation of neighbours of 3.5 % is found in 320 × 320 pixels, and its sum over all distances
  is right within its error.
- Interpolated noise is told from white noise, whose covariance stays white under stars, nebulae
  and residuals of the sky; in crowded fields N(0) is right, too.
- Where light reaches to the highest frequencies nothing is told, and the run says how the noise
  is measured instead.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
import scipy.ndimage

from whitediff import Exposure
from whitediff.noise.exposures import (
    measured_variance_factor,
    noises_by_role,
    source_pixels,
    sources_apart,
    variance_factor,
)
from whitediff.noise.structure import high_frequencies
from whitediff.noise.variance_planes import noise_variance

N = 320
ERRORS = 3.5
"""Standard errors: one of two thousand honest values lies beyond."""


def stars(rng, number, sigma, faintest):
    """Light of stars at whole quarters of pixels, a Gaussian PSF."""
    fine = np.zeros((4 * N, 4 * N))
    flux = np.minimum(faintest / rng.random(number), 2e5)
    np.add.at(fine, tuple(rng.integers(0, 4 * N, (2, number))), flux)
    light = scipy.ndimage.gaussian_filter(fine, 4 * sigma, mode="wrap")
    return 16 * light[::4, ::4]


def galaxy(total, radius):
    y, x = np.mgrid[:N, :N] - 0.5 * N
    profile = np.exp(-1.7 * np.hypot(y, 1.5 * x) / radius)
    return total * profile / profile.sum()


def interpolated(rng, variance, phases):
    """Noise of a mean of exposures that were moved by these fractions of a pixel."""
    total, scale = 0.0, 0.0
    at = np.arange(-3, 4)
    for phase_y, phase_x in phases:
        rows = [np.sinc(at - p) * np.sinc((at - p) / 3) for p in (phase_y, phase_x)]
        noise = rng.normal(size=(N + 20, N + 20)) * np.sqrt(np.pad(variance, 10, mode="reflect"))
        for axis, row in enumerate(rows):
            noise = scipy.ndimage.convolve1d(noise, row / row.sum(), axis=axis)
        total = total + noise[10:-10, 10:-10]
        scale += np.prod([(row**2).sum() / row.sum() ** 2 for row in rows])
    return total, scale


def scene(kind, seed, sigma=1.7):
    """Image, variance plane, unusable pixels, and the true variance over the plane's."""
    rng = np.random.default_rng(seed)
    sky, unusable, truth = 800.0, np.zeros((N, N), bool), 1.0
    light = np.full((N, N), sky)
    if "stars" in kind:
        number = int(kind.split()[0])
        light += stars(rng, number, sigma, 150.0)
    if "galaxy" in kind:
        light += galaxy(3e6, 70.0) + stars(rng, 100, sigma, 150.0)
    if "photons" in kind:
        sky = float(kind.split()[0])
        light = sky + stars(rng, 100, sigma, 20.0)
        counts = rng.poisson(light) + rng.normal(0, 1.0, light.shape)
        return counts, np.maximum(counts, 0) + 1.0, unusable, truth
    variance = light + 25.0
    if "interpolated" in kind:
        noise, truth = interpolated(rng, variance, rng.uniform(-0.5, 0.5, (3, 2)))
        return light + noise, variance, unusable, truth
    image = light + rng.normal(size=light.shape) * np.sqrt(variance)
    if "masked" in kind:
        smooth = scipy.ndimage.gaussian_filter(rng.normal(size=(N, N)), 12)
        unusable = smooth > np.quantile(smooth, 0.65)
        unusable |= rng.random((N, N)) < 0.005
        unusable[:, rng.integers(0, N, 5)] = True
        image[unusable] = np.where(rng.random(unusable.sum()) < 0.5, np.nan, 1e6)
    return image, variance, unusable, truth


KINDS = (
    "100 stars", "800 stars", "7000 stars", "galaxy", "6 photons", "40 photons", "interpolated",
    "800 stars, interpolated", "100 stars, masked", "noise alone",
)  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_factor_is_the_true_one(kind, seed):
    image, variance, unusable, truth = scene(kind, seed)
    found = high_frequencies(np.float32(image), ~unusable & np.isfinite(image), variance)
    assert found is not None
    assert found.error < 0.025
    assert found.is_white == ("interpolated" not in kind)
    for unit in (1.0, 1e-9):
        exposure = Exposure.from_arrays(
            np.where(unusable, np.nan, unit * image).astype(np.float32),
            variance=(1.6 * unit**2 * variance).astype(np.float32),
        )
        factor = 1.6 * variance_factor(exposure) / truth
        assert factor == pytest.approx(1, abs=ERRORS * found.error)


@pytest.mark.parametrize("unit", [1.0, 1 / 1.3, 2e-18])
@pytest.mark.parametrize("sigma", [0.6, 1.0, 2.0])
@pytest.mark.parametrize("offset", [0.0, 0.4])
def test_rounding_is_noise_in_any_unit(rng, unit, sigma, offset):
    """The truth is that of rounded noise on the same level without any source.

    Below half a step it depends on the level, by 3 % at 0.5 and 20 % at 0.35.
    """
    light = stars(rng, 100, 5.0, 150.0) * sigma / 5
    noise = sigma * rng.normal(size=light.shape)
    truth = np.var(np.rint(noise + offset)) / sigma**2
    image = (np.rint(light + noise + offset) * unit).astype(np.float32)
    # Photons of stars are left out of noise and plane alike.
    variance = np.full(light.shape, (sigma * unit) ** 2, np.float32)
    exposure = Exposure.from_arrays(image, variance=variance)
    assert variance_factor(exposure) == pytest.approx(truth, rel=0.03)
    measured = noise_variance(image).background_variance
    assert measured / (sigma * unit) ** 2 == pytest.approx(truth, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["7000 stars", "800 stars, interpolated"])
def test_its_error_is_its_scatter(kind):
    pulls = []
    for seed in range(12):
        image, variance, unusable, truth = scene(kind, 100 + seed)
        found = high_frequencies(np.float32(image), ~unusable, variance)
        pulls.append((found.factor / truth - 1) / found.error)
    assert abs(np.mean(pulls)) < ERRORS / np.sqrt(12) + 0.3
    assert 0.5 < np.std(pulls) < 1.7


def test_brightness_beneath_the_stars_does_not_matter():
    # A plane without the sources' photons: noise is judged where there are none.
    rng = np.random.default_rng(3)
    light = 800.0 + stars(rng, 800, 1.7, 150.0)
    image = light + rng.normal(size=light.shape) * np.sqrt(light)
    found = high_frequencies(np.float32(image), np.ones(light.shape, bool), np.full((N, N), 800.0))
    assert found is not None
    assert 0.98 < found.factor < 1.05


def fringed(image):
    y, x = np.mgrid[:N, :N]
    return image + 12 * np.sin(2 * np.pi * (x + 0.3 * y) / 55)


@pytest.mark.parametrize("change", [np.asarray, fringed])
@pytest.mark.parametrize("kind", ["100 stars", "800 stars", "7000 stars", "galaxy"])
def test_what_the_sky_shows_is_no_correlated_noise(kind, change):
    image, variance, _, _ = scene(kind, 4)
    exposure = Exposure.from_arrays(np.float32(change(image)), variance=variance.astype(np.float32))
    assert noises_by_role({"image": exposure}, source_pixels(exposure), how="auto") == [None]


@pytest.mark.parametrize("kind", ["interpolated", "800 stars, interpolated"])
def test_interpolated_noise_keeps_its_covariance(kind):
    ratios = []
    for seed in range(4):
        image, variance, _, truth = scene(kind, 10 + seed)
        exposure = Exposure.from_arrays(np.float32(image), variance=variance.astype(np.float32))
        (noise,) = noises_by_role({"image": exposure}, source_pixels(exposure), how="auto")
        assert noise is not None
        # All interpolations keep the power at zero frequency: three exposures of variance V.
        ratios.append(noise.zero_frequency / (3 / truth))
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)
    assert np.std(ratios) < 0.08


@pytest.mark.parametrize("unit", [1e-12, 1.0])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("neighbours", [0.035, -0.035, 0.0])
def test_weak_correlation_of_neighbours_is_found_where_high_frequencies_confirm_it(
    neighbours, axis, unit
):
    """As of detectors: a constant fits high frequencies nearly as well as what it is."""
    rng = np.random.default_rng(5)
    # Each pixel takes a share of its neighbour's noise.
    share = 0.5 * (1 - np.sqrt(1 - 4 * neighbours**2)) / neighbours if neighbours else 0.0
    noise = rng.normal(size=(N, N))
    noise = (noise + share * np.roll(noise, 1, axis)) / np.sqrt(1 + share**2)
    image = 1000 + 30 * noise + stars(rng, 80, 1.7, 300.0)
    exposure = Exposure.from_arrays(
        np.float32(unit * image), variance=np.full((N, N), 900 * unit**2, np.float32)
    )
    (found,) = noises_by_role({"image": exposure}, source_pixels(exposure), how="auto")
    if neighbours == 0:
        assert found is None
    else:
        error = found.zero_frequency - (1 + 2 * neighbours)
        assert abs(error) < ERRORS * found.zero_frequency_error
        assert found.zero_frequency_error < 0.05


@pytest.mark.parametrize(("kind", "sigma"), [("7000 stars", 0.55), ("800 stars", 0.45)])
def test_sharp_stars_everywhere_leave_no_frequency_free(kind, sigma, caplog):
    image, variance, _, _ = scene(kind, 5, sigma=sigma)
    exposure = Exposure.from_arrays(np.float32(image), variance=variance.astype(np.float32))
    sources, flat = sources_apart(exposure)
    with caplog.at_level(logging.INFO):
        factor = measured_variance_factor(exposure, sources, flat)
    # What the scatter says, nothing larger.
    spread = np.subtract(*np.percentile((flat / np.sqrt(variance))[~sources], [75, 25])) / 1.349
    assert factor == pytest.approx(spread**2, rel=0.02)
    assert "no spatial frequency is known to be free of sources" in caplog.text


def test_rays_that_no_mask_tells_of_do_no_harm():
    image, variance, _, _ = scene("100 stars", 6)
    rng = np.random.default_rng(6)
    at = tuple(rng.integers(0, N, (2, 12)))
    image[at] += rng.uniform(300, 5000, 12)
    found = high_frequencies(np.float32(image), np.ones(image.shape, bool), variance)
    assert found is not None
    assert found.factor == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("value", [np.inf, np.nan, 0.0, -1.0])
def test_pixels_without_a_variance_do_not_count(value):
    image, variance, _, _ = scene("100 stars", 9)
    bad = np.random.default_rng(9).random(image.shape) < 0.02
    everywhere = np.ones(image.shape, bool)
    spoilt = np.where(bad, value, variance), np.where(bad, 6e4, image).astype(np.float32)
    found = high_frequencies(spoilt[1], everywhere, spoilt[0])
    assert found is not None
    assert found.factor == pytest.approx(1, abs=ERRORS * found.error)
    assert high_frequencies(spoilt[1], everywhere, np.full(image.shape, value)) is None


def test_inputs_stay_untouched_and_odd_shapes_work():
    rng = np.random.default_rng(7)
    image = rng.normal(size=(233, 301)).astype(np.float32)
    usable = np.ones(image.shape, bool)
    usable[40:50, 60:70] = False
    kept = image.copy()
    image.flags.writeable = usable.flags.writeable = False
    found = high_frequencies(image, usable, np.ones(image.shape, np.float32))
    assert found is not None
    assert found.factor == pytest.approx(1, abs=0.06)
    np.testing.assert_array_equal(image, kept)


@pytest.mark.parametrize("kind", ["800 stars", "7000 stars", "800 stars, interpolated"])
def test_without_plane_or_gain_the_level_is_the_true_one(kind):
    image, variance, _, truth = scene(kind, 8)
    model = noise_variance(np.float32(image))
    # Between the sources: of the darker half of blocks, whose light has photons, too.
    blocks = variance.reshape(N // 32, 32, N // 32, 32).mean(axis=(1, 3)).ravel()
    level = truth * np.sort(blocks)[: len(blocks) // 2].mean()
    assert model.background_variance == pytest.approx(level, rel=0.04)
