"""Clusters of bad pixels that no mask tells of.

Claims:

- Clusters of 2 to 9 adjacent dead pixels, of any shape within 3 × 3, at skies of 50 to 5000 counts,
  at any seeing, down to half of the sky, leave nothing that a star's profile would find; in the
  science image and in the template, in any unit.
- So do clusters of hot pixels of one value, from 10 sigma on; whole numbers, coarse ones, images
  cut for display or enlarged by repeated pixels have none.
- No core of a star loses a pixel in fields without defects: few or many stars, galaxies with lanes
  of dust, rings of dust on the detector, correlated noise; nor beside stars that ring, since the
  image was resampled.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
import scipy.special

from whitediff.defects.clusters import dead_clusters, equal_clusters
from whitediff.defects.exposures import DefectOptions, with_defects
from whitediff.defects.surface import MARGIN, surface
from whitediff.exposures import masks
from whitediff.exposures.model import Exposure

type Array = npt.NDArray[Any]

N = 256
READ_NOISE = 5.0
SHAPES = (2, 3, 4, 6, 9)
LEFT = 5.0
"""Sigma of a matched filter from which what is left would be a source of the difference."""


def profile(x: float, y: float, width: float, height: float) -> Array:
    """Gaussian summed over pixels."""
    x_part, y_part = (
        np.diff(scipy.special.erf((np.arange(N + 1) - 0.5 - at) / (wide * math.sqrt(2)))) / 2
        for at, wide in ((x, width), (y, height))
    )
    return y_part[:, None] * x_part


def sources(
    rng: np.random.Generator, fwhm: float, sky: float, *, stars: int = 60, galaxies: int = 15
) -> tuple[Array, Array, Array]:
    """Light, and the pixels nearest to stars of 10 sigma and more."""
    width = fwhm / 2.3548
    unit = math.sqrt(4 * math.pi * (sky + READ_NOISE**2)) * max(width, 0.6)
    light = np.zeros((N, N))
    places = []
    for number in range(stars + galaxies):
        x, y = rng.uniform(-5, N + 5, 2)
        flux = min(8 * (1 - rng.random()) ** -1.2, 1e5)
        wide, high = (width, width) if number < stars else np.hypot(width, rng.uniform(1, 4, 2))
        light += flux * unit * profile(x, y, wide, high)
        if number < stars and flux > 10 and min(x, y) > 2 and max(x, y) < N - 3:
            places.append((round(y), round(x)))
    rows, columns = np.array(places, int).reshape(-1, 2).T
    return light, rows, columns


def observed(rng: np.random.Generator, light: Array, sky: float) -> tuple[Array, Array]:
    """Counts with their sky, and the variance."""
    image = rng.poisson(light + sky) + rng.normal(0, READ_NOISE, light.shape)
    return image, light + sky + READ_NOISE**2


def clusters(rng: np.random.Generator, number: int = 25) -> Array:
    """Labels of clusters of random shapes within 3 × 3 pixels, apart from each other."""
    labels = np.zeros((N, N), int)
    while labels.max() < number:
        y, x = rng.integers(0, N - 3, 2)
        if labels[max(0, y - 4) : y + 7, max(0, x - 4) : x + 7].any():
            continue
        shape = np.zeros(9, bool)
        shape[rng.choice(9, rng.choice(SHAPES), replace=False)] = True
        shape = shape.reshape(3, 3)
        if scipy.ndimage.label(shape, np.ones((3, 3)))[1] == 1:
            labels[y : y + 3, x : x + 3][shape] = labels.max() + 1
    return labels


def left(image: Array, variance: Array, marked: Array, fwhm: float) -> Array:
    """Sigma of a matched filter on what clusters add, without the pixels that were marked."""
    width = math.hypot(fwhm / 2.3548, 0.29)
    rest = np.where(marked, 0, image) / np.sqrt(variance)
    return scipy.ndimage.gaussian_filter(rest, width) * math.sqrt(4 * math.pi) * width


def marked(exposure: Exposure) -> Array:
    return masks.flagged(exposure.mask, ["BAD", "CR"])


def missed(
    seed: int, fwhm: float, sky: float, value: float, *, turned: bool = False, unit: float = 1.0
) -> float:
    """Part of the clusters of a value that a matched filter still finds."""
    rng = np.random.default_rng(seed)
    light, _, _ = sources(rng, fwhm, sky)
    (image, variance), (other, other_variance) = (observed(rng, light, sky) for _ in range(2))
    labels = clusters(rng)
    image[labels > 0] = value
    pair = [
        Exposure.from_arrays((unit * a).astype(np.float32), variance=(unit**2 * v).astype("f4"))
        for a, v in ((image, variance), (other, other_variance))
    ]
    found = with_defects(*(pair[::-1] if turned else pair), DefectOptions())
    away = np.where(labels > 0, image - sky - light, 0)
    rest = left(away, variance + other_variance, marked(found[turned]), fwhm)
    highest = scipy.ndimage.maximum(np.abs(rest), labels, np.arange(1, labels.max() + 1))
    return float(np.mean(highest > LEFT))


@pytest.mark.parametrize("part", [0.0, 0.5])
@pytest.mark.parametrize("sky", [50.0, 500.0, 5000.0])
@pytest.mark.parametrize(("fwhm", "seed"), [(1.6, 0), (2.5, 1), (4.0, 2), (6.0, 3)])
def test_dead_clusters_are_found(fwhm: float, seed: int, sky: float, part: float) -> None:
    turned, unit = bool(seed % 2), (1.0, 1e-9, 1e6)[seed % 3]
    # Half of a sky of 50 counts is 3 sigma of a pixel, and noise joins or parts these.
    most = 0.04 if sky < 100 else 0.0
    assert missed(seed, fwhm, sky, part * sky, turned=turned, unit=unit) <= most


@pytest.mark.parametrize("height", [10.0, 30.0, 1000.0])
@pytest.mark.parametrize("sky", [50.0, 5000.0])
@pytest.mark.parametrize(("fwhm", "seed"), [(1.6, 0), (2.5, 1), (4.0, 2), (6.0, 3)])
def test_hot_clusters_are_found(fwhm: float, seed: int, sky: float, height: float) -> None:
    turned, unit = bool(seed % 2), (1.0, 1e-9, 1e6)[seed % 3]
    value = sky + height * math.sqrt(sky + READ_NOISE**2)
    # Two pixels are as a star of 1.6 pixels is.
    most = 0.2 if fwhm < 2 and height < 20 else 0.04
    assert missed(seed, fwhm, sky, value, turned=turned, unit=unit) <= most


@pytest.mark.parametrize("kind", ["float", "whole", "coarse", "cut", "repeated"])
def test_no_light_is_of_one_value(kind: str) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        light, _, _ = sources(rng, 3.0, 300.0, stars=150)
        image, variance = observed(rng, light, 300.0)
        if kind == "whole":
            image = np.rint(image)
        if kind == "coarse":
            image = 20 * np.rint(image / 20)
        if kind == "cut":
            image = np.clip(image, *np.percentile(image, [0.5, 98]))
        if kind == "repeated":
            image = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)[:N, :N]
        image = image.astype("f4")
        looked_at = surface(image, variance.astype("f4"), np.zeros((N, N), bool))
        assert not len(equal_clusters(looked_at, image))


@pytest.mark.parametrize("value", [0.0, 300.0])
def test_frames_of_one_value_or_of_noise_alone_have_none(value: float) -> None:
    for image in (np.full((N, N), value), value + np.random.default_rng(1).normal(0, 9, (N, N))):
        image = image.astype("f4")
        looked_at = surface(image, np.full((N, N), 81, "f4"), np.zeros((N, N), bool))
        assert not len(dead_clusters(looked_at))
        assert not len(equal_clusters(looked_at, image))


def resampled(image: Array, shift: float) -> Array:
    """Moved along both axes by Lanczos' kernel of order 3."""
    at = np.arange(-2, 4) - shift
    kernel = np.sinc(at) * np.sinc(at / 3)
    for axis in (0, 1):
        image = scipy.ndimage.correlate1d(image, kernel / kernel.sum(), axis=axis)
    return image


KINDS: dict[str, dict[str, int]] = {
    "few": {"stars": 10, "galaxies": 5},
    "crowded": {"stars": 600},
    "lanes": {"galaxies": 60},
    "rings": {},
    "correlated": {},
    "resampled": {},
}


@pytest.mark.parametrize("fwhm", [1.6, 2.5, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_stars_is_dead(kind: str, fwhm: float) -> None:
    y, x = np.mgrid[:N, :N]
    for seed in range(3):
        rng = np.random.default_rng(seed)
        sky = (50.0, 500.0, 5000.0)[seed]
        light, rows, columns = sources(rng, fwhm, sky, **KINDS[kind])
        through = np.ones((N, N))
        for _ in range(30 if kind == "lanes" else 8 if kind == "rings" else 0):
            middle, wide = rng.uniform(5, N - 5, 2), rng.uniform(1, 2.5)
            radius = np.hypot(x - middle[0], y - middle[1])
            if kind == "lanes":
                across = (x - middle[0]) * math.cos(seed) + (y - middle[1]) * math.sin(seed)
                # As narrow as the PSF leaves it.
                width = fwhm / 2.3548
                light *= 1 - 0.8 * np.exp(-0.5 * (across / width) ** 2) * (radius < 12)
            else:
                deep = rng.uniform(0.02, 0.15)
                through *= 1 - deep * np.exp(-0.5 * ((radius - rng.uniform(4, 20)) / wide) ** 2)
        image, variance = observed(rng, (light + sky) * through - sky, sky)
        if kind == "correlated":
            image = scipy.ndimage.gaussian_filter(image, rng.uniform(0.5, 1.5))
        if kind == "resampled":
            image = resampled(image, 0.4)
        looked_at = surface(image.astype("f4"), variance.astype("f4"), np.zeros((N, N), bool))
        dead = np.zeros((N, N), bool)
        dead.flat[looked_at.unpadded(dead_clusters(looked_at))] = True
        assert not scipy.ndimage.maximum_filter(dead, 7)[rows, columns].any()
        # A star beyond the edge, that rings, cannot be seen.
        dead[[0, 1, -2, -1]] = dead[:, [0, 1, -2, -1]] = False
        # One cluster in a sharp ring.
        assert np.count_nonzero(dead) <= (9 if kind == "rings" else 0)


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0, -3.0])
def test_what_has_no_weight_tells_no_variance(value: float) -> None:
    """Columns without weight, as far apart as the pixels that are looked at around another."""
    rng = np.random.default_rng(5)
    image = rng.normal(0, 2, (200, 220))
    variance = np.full(image.shape, 4.0)
    nothing = np.zeros(image.shape, bool)
    nothing[:, [92, 95, 105, 108]] = True
    variance[nothing] = value
    image[80, 100] += 200
    seen = surface(image, variance, nothing)
    row, column = (at.ravel() for at in np.meshgrid([20, 80, 150], [97, 100, 103, 113]))
    index = (row + MARGIN) * seen.width + column + MARGIN
    found = seen.variance_at(index)
    assert found == pytest.approx(4.0 * seen.factor, rel=1e-5)
