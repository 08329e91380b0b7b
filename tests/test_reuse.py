"""A stored solution applied to another pair than that which it was found for.

Claims: the pair is known again by its pixels, whatever was injected into it; of another pair with
the same PSFs and transparency, the kernel serves and the noise is measured anew; another
transparency and another seeing are refused.
"""

from __future__ import annotations

import numpy as np
import pytest

from whitediff import Exposure
from whitediff.errors import DataError
from whitediff.subtraction.pipeline import make_again, make_all
from whitediff.subtraction.recipe import Recipe

SIDE = 220


def gaussian_stars(sigma, flux):
    rng = np.random.default_rng(8)
    yy, xx = np.mgrid[:SIDE, :SIDE]
    image = np.zeros((SIDE, SIDE))
    for _ in range(45):
        x, y = rng.uniform(0, SIDE, 2)
        bright = 10 ** rng.uniform(3.7, 4.7)
        image += bright * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / 2 / sigma**2)
    return flux * image / (2 * np.pi * sigma**2)


def exposure(seed, sigma, sky, flux=1.0):
    model = gaussian_stars(sigma, flux) + sky
    noisy = np.random.default_rng(seed).normal(model, np.sqrt(model))
    return Exposure.from_arrays(noisy, variance=model)


@pytest.fixture(scope="module")
def first():
    science, template = exposure(1, 1.9, 300), exposure(2, 1.5, 200)
    made = make_all(science, template, Recipe(), ("difference",))["difference"]
    return science, template, made.product


def again(first, science):
    solutions = {"difference": first[2].solution}
    return make_again(science, first[1], solutions)["difference"].product


def test_the_same_pair_is_known_again(first):
    science, template, product = first
    same = again(first, science)
    np.testing.assert_array_equal(same.exposure.data, product.exposure.data)
    np.testing.assert_array_equal(same.exposure.variance, product.exposure.variance)
    injected = science.data.copy()
    injected[60:90, 40:70] += 50
    assert product.solution.is_of(Exposure.from_arrays(injected, variance=1.0), template)
    assert not product.solution.is_of(exposure(3, 1.9, 300), template)


def test_the_noise_of_another_pair_is_measured_anew(first):
    science = exposure(4, 1.9, 900)
    product = again(first, science)
    assert product.solution.is_of(science, first[1])
    old, new = first[2].solution, product.solution
    assert new.science_variance / old.science_variance == pytest.approx(3, rel=0.15)
    assert abs(np.median(product.exposure.data)) < 10


@pytest.mark.parametrize("seed", [5, 6])
@pytest.mark.parametrize("change", [{"flux": 0.8}, {"sigma": 2.35}])
def test_another_transparency_or_seeing_is_refused(first, seed, change):
    science = exposure(seed, **({"sigma": 1.9, "sky": 300} | change))
    with pytest.raises(DataError, match="another transparency or seeing"):
        again(first, science)
