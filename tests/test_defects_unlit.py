"""Claims: regions that no light reaches are found, and nothing five pixels beyond them, whatever
their size, place, unit and the bad pixels around; nothing is found in images without them, be they
dark clouds, ghosts, panels of another sky or exposure, vignetted, of uneven depth or skyless."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from whitediff.defects.unlit import unlit_regions

SHAPE = (500, 420)
PLACES = {
    "amplifier": np.s_[:200, :128],
    "half": np.s_[:, :200],
    "most": np.s_[:, :270],
    "strip": np.s_[:, -32:],
    "rows": np.s_[-40:],
    "within": np.s_[101:180, 55:143],
}


def sky(rng, level=500.0, unit=1.0):
    image = rng.poisson(level * 1.5, SHAPE) / 1.5 + rng.normal(0, 3.3, SHAPE)
    return unit * (image + stars(rng))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("unit", "level"), [(1.0, 500.0), (1e-20, 3000.0), (1e5, 150.0)])
@pytest.mark.parametrize("bad", [0.0, 0.03])
def test_unlit_regions_are_found(rng, place, unit, level, bad):
    image = sky(rng, level)
    image[PLACES[place]] = rng.normal(3, 3.3, image[PLACES[place]].shape)
    image = unit * np.where(rng.random(SHAPE) < bad, np.nan, image)
    true = np.zeros(SHAPE, bool)
    true[PLACES[place]] = True
    found = unlit_regions(image, np.zeros(SHAPE, bool))
    assert found is not None
    assert found[true].mean() > 0.99
    beyond = scipy.ndimage.distance_transform_edt(~true)
    # Bright stars that reach into it may hide its edge, and none beyond it is lost.
    assert not found[beyond > 5].any()


Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]]


def stars(rng, number=200):
    image = np.zeros(SHAPE)
    for cy, cx, flux in zip(
        *(rng.uniform(0, n, number) for n in SHAPE), 10 ** rng.uniform(3, 5, number), strict=True
    ):
        image += flux / (2 * np.pi * 3) * np.exp(-((Y - cy) ** 2 + (X - cx) ** 2) / 6)
    return image


def panel_of_another_sky(rng):
    return rng.poisson(stars(rng) + np.where(Y < 170, 40.0, 2500.0)) + rng.normal(0, 3, SHAPE)


def short_panel(rng):
    return rng.poisson((stars(rng) + 1000) * np.where(X < 150, 0.1, 1.0)).astype(float)


def nebula_with_a_sharp_edge(rng):
    nebula = scipy.ndimage.gaussian_filter(1500.0 * (X + 30 * np.sin(Y / 40) > 200), 1.8)
    return rng.poisson(stars(rng, 60) + nebula + 60).astype(float)


def globule(rng):
    inside = ((X - 200) / 90) ** 2 + ((Y - 250) / 60) ** 2 < 1
    return rng.poisson(scipy.ndimage.gaussian_filter(np.where(inside, 0.0, 900.0), 1.8) + 60.0)


def ghost(rng):
    radius = np.hypot(X - 210, Y - 250)
    ring = scipy.ndimage.gaussian_filter(2000.0 * ((radius < 200) & (radius > 70)), 0.8)
    return rng.poisson(stars(rng, 60) + ring + 100).astype(float)


def field_stop(rng):
    lit = np.where(np.hypot(X - 210, Y - 250) < 230, 1, 0.12)
    return rng.poisson((stars(rng, 60) + 400) * lit).astype(float)


def dark_cloud(rng):
    depth = np.exp(-((((Y - 250) ** 2 + (X - 200) ** 2) / (2 * 60**2)) ** 2))
    return rng.poisson(3000 * (1 - 0.97 * depth)).astype(float)


def vignetted(rng):
    square = ((Y - 250) ** 2 + (X - 210) ** 2) / 250**2
    return rng.poisson(2000 * np.clip(1 - 0.6 * square, 0.05, 1)).astype(float)


def uneven(rng):
    image = rng.normal(0, 20, SHAPE)
    image[:, :200] /= 4
    return image


LIT = [
    *(sky, panel_of_another_sky, short_panel, nebula_with_a_sharp_edge),
    *(globule, ghost, field_stop, dark_cloud, vignetted, uneven),
]


@pytest.mark.parametrize("kind", LIT)
def test_nothing_is_found_where_there_is_light(kind):
    for seed in range(8):
        image = kind(np.random.default_rng(seed))
        assert unlit_regions(image, np.zeros(SHAPE, bool)) is None
        assert unlit_regions(image - np.median(image), np.zeros(SHAPE, bool)) is None
