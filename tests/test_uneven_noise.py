"""Claims: a difference whose noise departs from its plane by a fifth in some part of the frame says
where, by how much, in any unit and size; one with the right plane, or with the same factor
everywhere, which its significances tell, does not, whatever sources are on it; `subtract` warns."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest

from whitediff import Exposure
from whitediff.evaluation.simulation import SimulationOptions, simulate
from whitediff.noise.exposures import square_sums, uneven_noise
from whitediff.subtraction.pipeline import make_all
from whitediff.subtraction.recipe import Recipe

SHAPES = [(200, 260), (512, 512), (1300, 900)]


def difference(shape, seed, factor, *, unit=1.0, origin=(0, 0)):
    """Noise of a variance, ``(ny, nx)``, over that of its plane, with some sources."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=shape) * np.sqrt(factor)
    y, x = (rng.integers(0, n, 40) for n in shape)
    image[y, x] += 300
    plane = np.full(shape, unit**2, np.float32)
    return Exposure.from_arrays((unit * image).astype(np.float32), variance=plane, origin=origin)


def radius2(shape):
    y, x = (np.linspace(-1, 1, n) for n in shape)
    return 0.5 * (y[:, None] ** 2 + x**2)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", [1.0, 1.6, 0.5])
def test_even_noise_is_not_told_of(shape, level, seed):
    factor = np.full(shape, level)
    assert uneven_noise(square_sums(difference(shape, seed, factor, unit=1e-18))) == ""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("unit", [1.0, 1e-18, 3e6])
@pytest.mark.parametrize("sign", [1, -1])
def test_uneven_noise_is_told_of_with_its_places(shape, unit, sign, seed):
    """The corners, or the middle, have more of it."""
    factor = 1 + sign * 1.2 * (radius2(shape) - 0.35)
    origin = (100, -50)
    text = uneven_noise(square_sums(difference(shape, seed, factor, unit=unit, origin=origin)))
    found = re.findall(
        r"([\d.]+) times it in rows (-?\d+) to (-?\d+) and columns (-?\d+) to (-?\d+)", text
    )
    assert len(found) == 2
    for value, *box in found:
        y0, y1, x0, x1 = map(int, box)
        part = factor[y0 - origin[0] : y1 - origin[0] + 1, x0 - origin[1] : x1 - origin[1] + 1]
        assert part.size > 2000
        assert float(value) == pytest.approx(part.mean(), rel=0.08)
    assert float(found[0][0]) < 0.9
    assert float(found[1][0]) > 1.2


@pytest.mark.parametrize("wrong", ["science", None])
def test_a_plane_that_is_wrong_in_places_is_warned_of(wrong, caplog):
    """By `subtract`: noise of a flat field, of which the plane does not know.

    Of a template that is convolved with a wide kernel little is left.
    """
    made = simulate(SimulationOptions(shape=(512, 512), seed=4, stars=150))
    extra = np.random.default_rng(1).normal(size=made.science.image.shape) * np.sqrt(
        2 * np.median(made.science.variance) * radius2(made.science.image.shape)
    )
    pair = {
        role: Exposure.from_arrays(
            (one.image + (extra if role == wrong else 0)).astype(np.float32), variance=one.variance
        )
        for role, one in (("science", made.science), ("template", made.template))
    }
    with caplog.at_level(logging.WARNING, logger="whitediff"):
        make_all(pair["science"], pair["template"], Recipe(), ["difference"])
    assert ("does not follow its variance plane" in caplog.text) == (wrong is not None)
