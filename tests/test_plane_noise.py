"""Claims: variance planes that are made of the pixels' own counts are freed of their noise,
whatever the unit, the sky, and the number of exposures; all others stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

import whitediff
from scenes import difference_of
from whitediff.noise.own_counts import slope_of_own_noise, without_own_noise

SIZE = 300


def counted(seed, sky, *, depth=1, unit=1.0, light=0.0):
    """Image and plane of a mean of exposures, and the variance that it truly has."""
    rng = np.random.default_rng(seed)
    expected = np.broadcast_to(sky + light, (SIZE, SIZE))
    counts = rng.poisson(depth * expected)
    variance = np.maximum(counts, 1) / depth**2
    return (
        (unit * (counts / depth - sky)).astype(np.float32),
        (unit**2 * variance).astype(np.float32),
        unit**2 * expected / depth,
    )


def stars(seed, brightest, *, sigma=1.6, number=25):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    light = np.zeros((SIZE, SIZE))
    for peak in brightest * rng.random(number) ** 3:
        at_y, at_x = rng.uniform(0, SIZE, 2)
        light += peak * np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / (2 * sigma**2))
    return light


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("unit", [1.0, 3e-19, 1e4])
@pytest.mark.parametrize(("sky", "depth"), [(6, 1), (15, 1), (40, 1), (12, 4), (80, 1)])
def test_squares_are_one_in_the_mean(seed, unit, sky, depth):
    image, plane, true = counted(seed, sky, depth=depth, unit=unit)
    usable = np.ones(image.shape, bool)
    cleaned = without_own_noise(image, plane, usable)
    square = image.astype(float) ** 2
    before, after, known = (np.mean(square / each) for each in (plane, cleaned, true))
    assert before > 1.01 * known
    assert after == pytest.approx(known, rel=0.02)
    assert np.std(cleaned / true) < 0.3 * np.std(plane / true)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sky", [6, 40])
def test_stars_keep_their_photons(seed, sky):
    light = stars(seed, 3000)
    image, plane, true = counted(seed, sky, light=light)
    cleaned = without_own_noise(image, plane, np.ones(image.shape, bool))
    for least, most in ((1, 5), (5, 25), (25, 1000)):
        within = (true > (1 + least) * sky) & (true < (1 + most) * sky)
        assert np.median(cleaned[within] / true[within]) == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("seed", range(2))
def test_pixels_that_do_not_count_stay_and_tell_nothing(seed):
    image, plane, _ = counted(seed, 10)
    usable = np.random.default_rng(seed).random(image.shape) > 0.05
    image[~usable], plane[~usable] = np.nan, np.inf
    cleaned = without_own_noise(image, plane, usable)
    assert np.isposinf(cleaned[~usable]).all()
    # 85 000 squares tell their mean to 0.5 %.
    assert np.mean(image[usable] ** 2 / cleaned[usable]) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", ["model", "stars", "weights", "many"])
def test_other_planes_stay(kind):
    rng = np.random.default_rng(5)
    light = stars(5, 3000)
    image, plane, true = counted(5, 2000 if kind == "many" else 20, light=light)
    if kind == "model":
        plane = true
    elif kind == "stars":
        plane = true * np.float32(0.5)
    elif kind == "weights":
        plane = rng.uniform(10, 40, image.shape)
    usable = np.ones(image.shape, bool)
    assert slope_of_own_noise(image, plane, usable) == 0
    assert without_own_noise(image, plane, usable) is None


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("widths", [(1.9, 1.5), (1.5, 1.9)])
def test_differences_are_white_where_the_sky_is_dark(widths, seed):
    exposures, lit = [], np.zeros((SIZE, SIZE), bool)
    for i, sigma in enumerate(widths):
        light = stars(seed, 3e4, sigma=sigma, number=60)
        counts = np.random.default_rng([seed, i]).poisson(light + 6)
        plane = np.maximum(counts, 1).astype(float)
        exposures.append(whitediff.Exposure.from_arrays(counts - 6.0, variance=plane))
        lit |= scipy.ndimage.maximum_filter(light, 25) > 0.1
    difference = difference_of(*exposures)
    inner = np.s_[20:-20, 20:-20]
    square = difference.data**2 / difference.variance
    empty = ~lit[inner] & np.isfinite(square[inner])
    assert empty.sum() > 8000
    assert np.mean(square[inner][empty]) == pytest.approx(1, abs=0.05)
