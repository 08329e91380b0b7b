"""Claims: regions that no light reaches are found to two pixels of their edges, whatever their
size, place, unit and the bad pixels around; nothing is found in images without them, be they dark
clouds, vignetted, of uneven depth or without sky; and no source is believed at such a region."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from whitediff.defects.unlit import unlit_regions

SHAPE = (500, 420)
PLACES = {
    "amplifier": np.s_[:200, :128],
    "half": np.s_[:, :200],
    "strip": np.s_[:, -32:],
    "rows": np.s_[-40:],
    "within": np.s_[101:180, 55:143],
}


def sky(rng, level=500.0, unit=1.0):
    image = rng.poisson(level * 1.5, SHAPE) / 1.5 + rng.normal(0, 3.3, SHAPE)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for cy, cx, flux in zip(
        *(rng.uniform(0, n, 60) for n in SHAPE), 10 ** rng.uniform(3, 5, 60), strict=True
    ):
        image += flux / (2 * np.pi * 3) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 6)
    return unit * image


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


def dark_cloud(rng):
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    depth = np.exp(-((((y - 250) ** 2 + (x - 200) ** 2) / (2 * 60**2)) ** 2))
    return rng.poisson(3000 * (1 - 0.97 * depth)).astype(float)


def vignetted(rng):
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    square = ((y - 250) ** 2 + (x - 210) ** 2) / 250**2
    return rng.poisson(2000 * np.clip(1 - 0.6 * square, 0.05, 1)).astype(float)


def uneven(rng):
    image = rng.normal(0, 20, SHAPE)
    image[:, :200] /= 4
    return image


@pytest.mark.parametrize("kind", [sky, dark_cloud, vignetted, uneven])
def test_nothing_is_found_where_there_is_light(kind):
    for seed in range(8):
        image = kind(np.random.default_rng(seed))
        assert unlit_regions(image, np.zeros(SHAPE, bool)) is None
        assert unlit_regions(image - np.median(image), np.zeros(SHAPE, bool)) is None
