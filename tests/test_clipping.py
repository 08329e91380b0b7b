"""Claims: an image that was cut off where its noise is has its floor found, in whole numbers and
others, whatever the unit, and is refused in one sentence with the share, the value and the remedy,
from files and from arrays; below a fifth of the pixels it is warned of, and errors are no more than
a sixth too large; counts of photons, coarse counts, borders and defects have no such floor."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from astropy.io import fits

from marks import slow_after
from whitediff import Exposure
from whitediff.defects.clipping import find_floor
from whitediff.errors import DataError
from whitediff.formats import read_exposure
from whitediff.matching.preparation import prepare


def stars(rng: np.random.Generator, size: int) -> np.ndarray:
    """Light of stars, in units of the noise to come."""
    image = np.zeros((size, size))
    for _ in range(size**2 // 3000):
        image[tuple(rng.integers(0, size, 2))] += 10 ** rng.uniform(1.8, 3.8)
    return scipy.ndimage.gaussian_filter(image, 1.6)


@pytest.mark.parametrize("size", [200, 333])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("unit", [1e-15, 1.0, 1e6])
@pytest.mark.parametrize("cut", [-1.3, -1.0, -0.5, 0.0, 0.7])
def test_the_floor_of_a_cut_image_is_found(size, seed, unit, cut):
    rng = np.random.default_rng(seed)
    image = stars(rng, size) + rng.normal(size=(size, size))
    floor = find_floor((unit * np.maximum(image, cut)).astype(np.float32))
    assert floor is not None
    assert floor.level == pytest.approx(cut * unit)
    assert floor.share == np.mean(image <= cut)
    assert floor.is_spoilt == (cut > -1)


@pytest.mark.parametrize("sigma", [2.5, 5.0, 16.0, 200.0])
@pytest.mark.parametrize("cut", [-1.0, -0.3, 0.0, 0.7])
def test_so_is_that_of_whole_numbers(rng, sigma, cut):
    image = sigma * (stars(rng, 256) + rng.normal(size=(256, 256)) - cut)
    whole = np.clip(np.rint(image), 0, 65535).astype(np.uint16)
    floor = find_floor(whole)
    assert floor is not None
    assert floor.level == 0
    assert floor.share == np.mean(whole == 0)


@pytest.mark.parametrize("mean", [0.003, 0.05, 0.15, 0.7, 1.5, 3.0, 5.0, 6.0])
@pytest.mark.parametrize("light", [0.0, 0.1])
@pytest.mark.parametrize("unit", ["counts", "rate", "flat-fielded", "averaged"])
def test_counts_of_photons_have_none(mean, light, unit):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        expected = mean + light * stars(rng, 256)
        counts = rng.poisson(expected).astype(float)
        image = {
            "counts": counts,
            "rate": counts / 317.3,
            "flat-fielded": counts / (1 + 0.1 * np.sin(np.arange(256) / 40)),
            "averaged": (counts + sum(rng.poisson(expected) for _ in range(3))) / 4,
        }[unit]
        assert find_floor(image.astype(np.float32)) is None


@pytest.mark.parametrize("sigma", [0.2, 0.4, 0.6, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("level", [100.0, 100.3, 100.5])
def test_neither_have_coarse_counts(rng, sigma, level):
    image = np.rint(level + sigma * (rng.normal(size=(300, 300)) + stars(rng, 300)))
    assert find_floor(image) is None
    # In another unit, and cut off far below the noise.
    assert find_floor(np.maximum(image - 90, 0) * 0.37) is None


@pytest.mark.parametrize("share", [0.06, 0.3, 0.6])
def test_neither_have_borders_and_defects_of_one_value(rng, share):
    image = 500 + 16 * (rng.normal(size=(300, 300)) + stars(rng, 300))
    y, x = np.mgrid[:300, :300]
    border = x + 0.3 * y < share * 330
    assert find_floor(np.where(border, 0, image)) is None
    assert find_floor(np.where(rng.random(image.shape) < share, 0, image)) is None
    floor = find_floor(np.maximum(image - 500, 0), border)
    assert floor is not None
    assert floor.share == pytest.approx(0.48, abs=0.02)
    assert find_floor(np.maximum(image - 500, 0), np.ones(image.shape, bool)) is None
    assert find_floor(np.zeros((300, 300))) is None
    # No block is whole.
    assert find_floor(np.maximum(image[:12] - 500, 0)) is None


def pair(seed: int, cuts: dict[str, float], *, whole: bool) -> dict[str, np.ndarray]:
    """Images of the same stars; cut at so many sigma, after their sky was subtracted."""
    rng = np.random.default_rng(seed)
    light = {"science": np.zeros((300, 310)), "template": np.zeros((300, 310))}
    y, x = np.mgrid[:300, :310]
    for cy, cx, flux in zip(
        *rng.uniform(20, 280, (2, 35)), 10 ** rng.uniform(3.6, 5, 35), strict=True
    ):
        square = (y - cy) ** 2 + (x - cx) ** 2
        for name, width in (("science", 1.9), ("template", 1.5)):
            light[name] += flux / (2 * np.pi * width**2) * np.exp(-square / 2 / width**2)
    images = {}
    for name, star in light.items():
        image = rng.poisson(star + 400).astype(float) + rng.normal(0, 0.3, star.shape)
        if name in cuts:
            image = np.maximum((image - 400) - 20 * cuts[name], 0)
        images[name] = np.rint(image).astype(np.uint16) if whole else image.astype(np.float32)
    return images


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", ["science", "template"])
def test_a_cut_image_is_refused_in_one_sentence(run, tmp_path, whole, name):
    images = pair(1, {name: 0.0}, whole=whole)
    paths = []
    for each, image in images.items():
        paths.append(tmp_path / f"{each}.fits")
        fits.writeto(paths[-1], image, fits.Header({"GAIN": 1.0}))
    code, _, messages = run("subtract", *paths, "--output", tmp_path / "out.fits", "-q")
    assert code == 1
    share = np.mean(images[name] == 0)
    said = f"{name}.fits: {share:.0%} of its pixels have the same lowest value, 0"
    assert said in messages
    assert "add a level" in messages
    assert len(messages.strip().splitlines()) == 1
    exposures = [
        Exposure.from_arrays(image.astype("f4"), variance=400.0) for image in images.values()
    ]
    with pytest.raises(DataError, match="have the same lowest value, 0, so that it was cut off"):
        prepare(*exposures)
    if name == "template":
        aligned = tmp_path / "aligned.fits"
        code, _, messages = run("align", paths[1], "--to", paths[0], "--output", aligned, "-q")
        assert code == 1
        assert said in messages


@pytest.mark.parametrize(
    "cuts", slow_after(1, [{"template": -1.1, "science": -1.3}, {"science": -1.3}])
)
def test_one_that_was_cut_below_its_noise_is_warned_of(run, tmp_path, cuts):
    paths, shares = [], {}
    for each, image in pair(2, cuts, whole=True).items():
        shares[each] = np.mean(image == 0)
        paths.append(tmp_path / f"{each}.fits")
        fits.writeto(paths[-1], image, fits.Header({"GAIN": 1.0}))
    code, _, messages = run("subtract", *paths, "--output", tmp_path / "out.fits")
    assert code == 0, messages
    for name in ("science", "template"):
        assert (f"{name}.fits: {shares[name]:.0%} of its pixels" in messages) == (name in cuts)
    found = read_exposure(tmp_path / "out.fits")
    free = ~found.mask.get("SOURCE")
    values = (found.data / np.sqrt(found.variance))[free]
    values = values[np.isfinite(values) & (np.abs(values) < 5)]
    assert (6 / 7) ** 2 < values.var() < 1.03
