"""Claims: where a kernel needs galaxies, which have another colour than the stars, its sum with its
error holds the stars' ratio of fluxes, and what is more than a few percent is warned of."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from marks import slow_after
from whitediff import Exposure
from whitediff.matching.exposures import MatchOptions, match
from whitediff.matching.preparation import prepare
from whitediff.numerics.profiles import FWHM_TO_SIGMA

SIZE, SKY, SCALE = 600, 400.0, 1.3
FWHM = 4.5, 3.7


def blob(image, x, y, flux, sigma, axes=(0.0, 1.0), angle=0.0):
    """An elliptical Gaussian of a PSF and, besides, two axes."""
    reach = int(5 * np.hypot(sigma, max(axes))) + 3
    rows = slice(max(0, int(y) - reach), int(y) + reach)
    columns = slice(max(0, int(x) - reach), int(x) + reach)
    v, u = np.mgrid[: image.shape[0], : image.shape[1]][:, rows, columns]
    u, v = u - x, v - y
    along, across = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    a2, b2 = (sigma**2 + axis**2 for axis in axes)
    shape = np.exp(-0.5 * (along**2 / a2 + across**2 / b2)) / (2 * np.pi * np.sqrt(a2 * b2))
    image[rows, columns] += flux * shape


def coloured(seed, colour, scatter=0.05, stars=16, galaxies=150):
    """Pair whose galaxies are brighter by a factor on the science image than its stars are."""
    rng = np.random.default_rng(seed)
    sigmas = [FWHM_TO_SIGMA * width for width in FWHM]
    science, template = np.zeros((2, SIZE, SIZE))
    for i in range(stars + galaxies):
        x, y = rng.uniform(0, SIZE, 2)
        axes, angle, factor = (0.0, 0.0), rng.uniform(0, np.pi), 1.0
        if i < stars:
            flux = 10 ** rng.uniform(3.3, 5.3)
        else:
            flux, factor = 10 ** rng.uniform(3, 4.9), rng.normal(colour, scatter)
            axes = rng.uniform(1.5, 6) * np.array([1, rng.uniform(0.4, 1)])
        blob(science, x, y, SCALE * factor * flux, sigmas[0], axes, angle)
        blob(template, x, y, flux, sigmas[1], axes, angle)
    return [
        Exposure.from_arrays(
            (rng.poisson(light + SKY) - SKY).astype(np.float32),
            variance=(light + SKY).astype(np.float32),
        )
        for light in (science, template)
    ]


@pytest.mark.parametrize("colour", [1.0, 1.15, 0.87])
@pytest.mark.parametrize("seed", slow_after(2, range(8)))
def test_the_sum_holds_the_stars_ratio(colour, seed, caplog):
    with caplog.at_level(logging.WARNING, logger="whitediff"):
        found = match(prepare(*coloured(seed, colour)), MatchOptions(convolved="template"))
    total = found.with_wings
    assert abs(total.value - SCALE) < 3 * total.error
    told = "they have another colour" in caplog.text or "fluxes may be off" in caplog.text
    assert told or total.value == pytest.approx(SCALE, rel=0.04)
    if colour == 1:
        assert not told
        assert total.error < 0.02 * SCALE
