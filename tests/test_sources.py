"""Claims: sources are found with their wings; what is left has the variance that was put in;
variance planes follow gain and read noise where these explain the scatter; rounding biases none,
and an image made again has the sources that it had."""

from __future__ import annotations

import numpy as np
import pytest

from whitediff import Exposure
from whitediff.errors import ArgumentError, DataError
from whitediff.evaluation.simulation import SimulationOptions, simulate
from whitediff.matching.background import HIGHEST_ORDER, fit_background
from whitediff.noise.exposures import source_pixels, sources_apart, variance_factor
from whitediff.noise.scatter import warn_of_significances
from whitediff.noise.sources import (
    SourceLevel,
    detect_sources,
    levels_and_background,
    smooth_background,
)
from whitediff.noise.variance_planes import noise_variance


@pytest.fixture(scope="module")
def science():
    return simulate(SimulationOptions(shape=(512, 512), seed=3, transients=0)).science


def test_source_free_pixels_have_the_background_variance(science):
    unusable = science.mask["BAD"] | science.mask["NO_DATA"]
    sources = detect_sources(science.image, unusable)
    free = ~sources & ~unusable
    assert 0.6 < free.mean() < 0.99
    variance = np.var(science.image[free], dtype=np.float64)
    assert variance == pytest.approx(900, rel=0.02)
    # What is bright enough to see is found.
    assert sources[(science.variance > 1200) & ~unusable].mean() > 0.95


def test_noise_alone_has_no_sources(rng):
    sources = detect_sources(rng.normal(0, 5, (512, 512)))
    assert sources.mean() < 0.01


def test_a_gradient_is_background(rng):
    ny, nx = 400, 390
    gradient = np.linspace(0, 300, nx)[None, :] + np.linspace(0, 100, ny)[:, None]
    image = gradient + rng.normal(0, 5, (ny, nx))
    assert detect_sources(image).mean() < 0.02
    background = smooth_background(image, np.ones(image.shape, dtype=bool))
    assert np.abs(background - gradient)[40:-40, 40:-40].max() < 5


def test_the_background_is_that_between_the_sources(rng):
    ny, nx = 401, 390
    gradient = np.linspace(0, 100, nx)[None, :] + np.linspace(0, 30, ny)[:, None]
    image = gradient + rng.normal(0, 5, (ny, nx))
    image[100:140, 200:240] += 1000
    unusable = np.zeros(image.shape, dtype=bool)
    unusable[:, 50] = True
    image[:, 50] = np.nan
    levels, background = levels_and_background(image, unusable)
    sources = levels > SourceLevel.NONE
    assert sources[100:140, 200:240].all()
    np.testing.assert_array_equal(sources, detect_sources(image, unusable))
    assert np.abs(background - gradient)[40:-40, 40:-40].max() < 5


def test_measured_variance(science):
    model = noise_variance(science.image, science.mask["BAD"])
    assert model.background_variance == pytest.approx(900, rel=0.03)
    assert np.ptp(model.variance) == 0
    with_gain = noise_variance(science.image, science.mask["BAD"], gain=2.0, read_noise=5.0)
    assert with_gain.background_variance == pytest.approx(900, rel=0.03)
    bright = science.variance > 3000
    usable = bright & np.isfinite(science.image) & ~science.mask["SAT"] & ~science.mask["BAD"]
    ratio = with_gain.variance[usable] / science.variance[usable]
    assert np.median(ratio) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("sigma", [0.6, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("level", [100.0, 100.3, 100.5])
def test_whole_numbers_have_the_variance_of_their_pixels(rng, sigma, level):
    image = np.rint(rng.normal(level, sigma, (600, 600))).astype(np.float32)
    true = float(image.astype(float).var())
    # Three sigma of quartiles: twice as many pixels for the same error as a variance.
    error = 3 * 1.65 * np.sqrt(2 / image.size)
    assert noise_variance(image).background_variance == pytest.approx(true, rel=error)
    exposure = Exposure.from_arrays(image, variance=np.float32(true))
    assert variance_factor(exposure) == pytest.approx(1, rel=error)
    # On a slope, too, on which rounding is different from column to column.
    image = np.rint(rng.normal(level, sigma, (600, 600)) + 0.002 * np.arange(600))
    exposure = Exposure.from_arrays(image.astype(np.float32), variance=sigma**2 + 1 / 12)
    assert variance_factor(exposure) == pytest.approx(1, rel=error)


def test_variance_from_the_detector(rng):
    image = (rng.poisson(2000, (200, 200)) + rng.normal(0, 10, (200, 200))) / 4.0
    model = noise_variance(image, gain=4.0, read_noise=10.0)
    # A peak of the noise may pass for a source, whose photons are added.
    error = np.abs(model.variance / (500 / 4 + (10 / 4) ** 2) - 1)
    assert np.quantile(error, 0.995) < 0.01
    assert "from gain 4" in model.description


def test_refusals(rng):
    image = rng.normal(size=(64, 64))
    with pytest.raises(ArgumentError, match="gain must be positive; got -1"):
        noise_variance(image, gain=-1.0)
    with pytest.raises(ArgumentError, match="read noise must not be negative; got -2"):
        noise_variance(image, gain=1.0, read_noise=-2.0)
    with pytest.raises(DataError, match="scatter of the source-free pixels is 0"):
        noise_variance(np.zeros((64, 64)))
    with pytest.raises(DataError, match="No pixel is usable"):
        noise_variance(np.full((64, 64), np.nan))


def test_sources_of_whole_numbers_are_the_same_the_second_time(rng):
    # Medians of coarse counts are whole and jump; both ways have to see the same background.
    level = 100 + np.linspace(0, 3, 300)
    counts = np.rint(level + rng.normal(0, 1.5, (300, 300)))
    y, x = np.mgrid[:300, :300]
    for at in range(40, 300, 60):
        counts += np.rint(30 * np.exp(-((x - at) ** 2 + (y - 150) ** 2) / 8))
    exposure = Exposure.from_arrays(counts.astype(np.int32), variance=2.33)
    first, _ = sources_apart(exposure)
    np.testing.assert_array_equal(source_pixels(exposure), first)
    assert first[150, 40::60].all()


def curved_sky(shape, amplitude, *, middle=(0.25, 0.5)):
    """Parabola of sky, 0 in its middle, of the amplitude half a side away, counts."""
    y, x = (2 * (np.arange(n) / n - part) for n, part in zip(shape, middle, strict=True))
    return amplitude * (y[:, None] ** 2 + x**2)


@pytest.mark.parametrize("shape", [(400, 400), (390, 611), (1000, 250)])
@pytest.mark.parametrize("amplitude", [-200.0, 500.0, 5000.0])
def test_a_curved_sky_is_background_between_masked_sources(rng, shape, amplitude):
    sky = curved_sky(shape, amplitude)
    image = sky + rng.normal(0, 15, shape)
    use = rng.random(shape) < 0.7
    for _ in range(shape[0] * shape[1] // 8000):
        y, x = (rng.integers(0, n) for n in shape)
        use[max(0, y - 14) : y + 15, max(0, x - 14) : x + 15] = False
    image[~use] += 400
    error = smooth_background(image, use) - sky
    assert abs(np.median(error)) < 0.5
    # Cells of 64 pixels know their median to 0.4 counts; what is beyond the last half cell, less.
    assert error.std() < 2
    assert np.abs(error[32:-32, 32:-32]).max() < 8


@pytest.mark.parametrize("subtracted", [0.0, 400.0])
@pytest.mark.parametrize("amplitude", [0.0, 500.0, 3000.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_noise_of_a_curved_sky_follows_it(seed, amplitude, subtracted):
    # Sky and sources of a gain of 1.5; of the sky a constant may be taken away.
    rng = np.random.default_rng(seed)
    shape = (400, 420)
    y, x = np.mgrid[: shape[0], : shape[1]]
    light = 400 + curved_sky(shape, amplitude)
    for _ in range(60):
        at, flux = rng.uniform(0, 400, 2), 2000 * rng.random() ** -1
        light += (
            flux
            / (2 * np.pi * 1.5**2)
            * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * 1.5**2))
        )
    true = light / 1.5 + (5 / 1.5) ** 2
    image = rng.poisson(light * 1.5) / 1.5 + rng.normal(0, 5 / 1.5, shape) - subtracted
    model = noise_variance(image, gain=1.5, read_noise=5.0, meaning="counts")
    free = ~detect_sources(image)
    ratio = np.broadcast_to(model.variance, shape) / true
    assert not model.warning
    assert np.median(ratio[free]) == pytest.approx(1, abs=0.04)
    assert np.percentile(ratio[free], 5) > 0.88
    assert np.percentile(ratio[free], 95) < 1.12


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["white", "fringes", "step", "sky"])
def test_structure_that_is_left_in_a_difference_is_told_of(seed, kind, caplog):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:320, :400]
    left = {
        "white": 0 * x,
        "fringes": 6 * np.sin(2 * np.pi * (x + 0.3 * y) / 60),
        "step": 6 * (x > 200) - 3,
        "sky": 2e-4 * (x - 200) ** 2 - 3,
    }[kind]
    difference = Exposure.from_arrays(
        (rng.normal(0, 10, x.shape) + left).astype(np.float32), variance=np.float32(100)
    )
    with caplog.at_level("WARNING"):
        warn_of_significances(difference)
    told = "faint sources are not to be believed" in caplog.text
    assert told == (kind != "white")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(400, 400), (700, 450)])
def test_a_background_gets_the_order_that_it_asks_for(seed, shape):
    rng = np.random.default_rng(seed)
    y, x = (2 * np.arange(n) / n - 1 for n in shape)
    noise = rng.normal(0, 10, shape)
    free = rng.random(shape) < 0.8
    for sky, least in (
        (0 * y[:, None] + 3 * x, 2),
        (-40 * (y[:, None] ** 2 + x**2) ** 2, 4),
        (30 * np.sin(3 * x + 1) * np.cos(2 * y[:, None]), 3),
    ):
        found = fit_background(sky + noise, free, 2, highest=HIGHEST_ORDER)
        assert len(found) - 1 >= least
        if least == 2:
            assert len(found) - 1 == 2
        model = np.polynomial.chebyshev.chebgrid2d(
            (2 * np.arange(shape[0]) + 1) / shape[0] - 1,
            (2 * np.arange(shape[1]) + 1) / shape[1] - 1,
            found,
        )
        assert (model - sky).std() < 0.5
        # Only where it is asked for.
        assert len(fit_background(sky + noise, free, 2)) == 3
