"""Structure of a background that no polynomial follows.

Claims:

- Fringes from 5 % of a pixel's noise on, of periods from 23 pixels on, ripples, and steps between
  amplifiers are taken away: the variance of the filtered image is that of the noise, within 5 %, in
  frames of 256 and 512 pixels and over six decades of units.
- Noise alone, white or convolved, gradients and sources have no structure.
- What lies under a point source of 5 sigma and more changes by less than 0.3 % of its flux.
- From two images, in both directions, for differences and scores: no false sources, the kernel and
  fluxes as without fringes, and the same pixels when made again from a file.
"""

from __future__ import annotations

import math
from pathlib import Path

import astropy.io.fits
import numpy as np
import pytest
import scipy.ndimage

from whitediff.detection.exposures import DetectionOptions, detect
from whitediff.exposures.model import Exposure
from whitediff.formats import read_exposure, write_exposure
from whitediff.matching.background import fit_background
from whitediff.matching.mesh import fit_mesh
from whitediff.subtraction.pipeline import make_all
from whitediff.subtraction.recipe import Recipe

FWHM = 3.5
SIGMA = FWHM / 2.3548
EFFECTIVE = math.sqrt(4 * math.pi) * SIGMA
"""Flux of a point source over its signal-to-noise ratio, in a pixel's noise."""


def structure(kind, size, rng):
    y, x = np.mgrid[:size, :size].astype(float)
    phase = rng.uniform(0, 2 * np.pi)
    if kind == "ripple":
        return 1.5 * np.sin(2 * np.pi * (x + 0.4 * y) / 230 + phase) + 2 * x / size
    if kind.startswith("fringes"):
        period, rms = {
            "fringes": (33, 0.5),
            "fringes-faint": (40, 0.07),
            "fringes-fine": (23, 0.5),
        }[kind]
        bent = x + 0.3 * y + 20 * np.sin(y / 150 + phase)
        return math.sqrt(2) * rms * np.sin(2 * np.pi * bent / period)
    if kind == "step":
        return 1.0 * (x >= size // 2 + 3)
    if kind == "amplifiers":
        levels = np.kron(rng.normal(0, 0.4, (2, 4)), np.ones((size // 2, size // 4)))
        return levels + 0.3 * levels * x / size
    return {"none": 0 * x, "gradient": 3 * x / size + 2 * (y / size) ** 2}[kind]


def left_by_polynomials(image, free):
    start = fit_background(image, free, 2)
    axis = (2 * np.arange(len(image)) + 1) / len(image) - 1
    return image - np.polynomial.chebyshev.chebgrid2d(axis, axis, start), start


def filtered(image):
    return scipy.ndimage.gaussian_filter(image, SIGMA) * EFFECTIVE


def masked(size, rng):
    free = np.ones((size, size), bool)
    for x, y in rng.uniform(0, size, (round(300 * (size / 1024) ** 2), 2)):
        radius = rng.uniform(4, 14)
        yy, xx = np.ogrid[:size, :size]
        free &= np.hypot(xx - x, yy - y) > radius
    return free


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize(
    "kind", ["ripple", "fringes", "fringes-faint", "fringes-fine", "step", "amplifiers"]
)
def test_structure_is_taken_away(kind, size, seed):
    rng = np.random.default_rng(seed)
    unit = (1.0, 1e-3, 1e3)[seed]
    noise = rng.normal(size=(size, size))
    free = masked(size, rng)
    image = (unit * (noise + structure(kind, size, rng))).astype(np.float32)
    image[~free] += 100 * unit
    rest, start = left_by_polynomials(image, free)
    mesh = fit_mesh(image, free, FWHM, start=start)
    assert mesh is not None
    # That of the noise in the same pixels: what scatters from seed to seed is not the method's.
    known = filtered(np.where(free, noise, 0))[free].var()
    after = filtered(np.where(free, rest - mesh.image, 0) / unit)[free].var()
    assert after == pytest.approx(known, rel=0.05)
    before = filtered(np.where(free, rest, 0) / unit)[free].var()
    assert before > 1.08 * known
    if kind == "step":
        assert mesh.columns == (size // 2 + 3,)
        assert mesh.rows == ()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["none", "gradient"])
@pytest.mark.parametrize("convolved", [False, True])
def test_there_is_none_in_noise_and_gradients(kind, seed, convolved):
    rng = np.random.default_rng(seed)
    size = 384
    noise = rng.normal(size=(size, size))
    if convolved:
        noise += scipy.ndimage.gaussian_filter(rng.normal(size=(size, size)), 1.2)
    free = masked(size, rng)
    image = noise + structure(kind, size, rng)
    # Transients that no mask tells of.
    for x, y in rng.integers(20, size - 20, (10, 2)):
        image[y, x] += 30 * EFFECTIVE
    image = scipy.ndimage.gaussian_filter(image - noise, SIGMA) + noise
    _, start = left_by_polynomials(image, free)
    assert fit_mesh(image, free, FWHM, start=start) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fringes", "fringes-fine", "ripple", "amplifiers"])
def test_point_sources_keep_their_flux(kind):
    """Mean over many, the same image with and without them."""
    size, kept = 512, {5: [], 10: [], 30: []}
    for seed in range(4):
        rng = np.random.default_rng(100 + seed)
        image = rng.normal(size=(size, size)) + structure(kind, size, rng)
        free = np.ones_like(image, bool)
        # Ten in 1024 x 1024 pixels would be too few to tell.
        places = rng.integers(20, size - 20, (12, 2))
        ratios = np.resize([5, 10, 30], len(places))
        light = np.zeros_like(image)
        light[places[:, 1], places[:, 0]] = ratios * EFFECTIVE
        light = scipy.ndimage.gaussian_filter(light, SIGMA, truncate=6)
        _, start = left_by_polynomials(image, free)
        meshes = [fit_mesh(each, free, FWHM, start=start) for each in (image, image + light)]
        taken = filtered(meshes[1].image - meshes[0].image)
        for (x, y), ratio in zip(places, ratios, strict=True):
            kept[ratio].append(taken[y, x] / ratio)
    for ratio, values in kept.items():
        error = np.std(values) / math.sqrt(len(values))
        assert abs(np.mean(values)) < 0.003 + (2 * error if ratio < 10 else 0), ratio


def test_what_is_too_small_is_left_alone():
    rng = np.random.default_rng(1)
    image = rng.normal(size=(64, 64)) + structure("step", 64, rng)
    assert fit_mesh(image, np.ones_like(image, bool), FWHM, start=np.zeros((1, 1))) is None
    image = rng.normal(size=(256, 256)) + structure("fringes", 256, rng)
    hardly = rng.uniform(size=image.shape) < 0.1
    assert fit_mesh(image, hardly, FWHM, start=np.zeros((1, 1))) is None


def scene(seed, direction, kind, size=384):
    """Stars in two images; the science image's sky has structure."""
    rng = np.random.default_rng(seed)
    widths = (1.9, 1.5) if direction == "template" else (1.5, 1.9)
    y, x = np.mgrid[:size, :size]
    stars = rng.uniform(12, size - 12, (60, 2))
    flux = 10 ** rng.uniform(2.8, 4.3, len(stars))
    transients = np.array([[60.3, 200.8], [201.6, 77.2], [300.2, 310.4]])
    exposures = []
    for width, sky, new in zip(widths, (5.0, 3.0), (True, False), strict=True):
        image = np.zeros((size, size))
        sources = [*zip(stars, flux, strict=True)]
        sources += [(at, 1500.0) for at in transients] if new else []
        for (at_x, at_y), value in sources:
            near = np.s_[
                max(0, int(at_y) - 20) : int(at_y) + 21, max(0, int(at_x) - 20) : int(at_x) + 21
            ]
            r2 = (x[near] - at_x) ** 2 + (y[near] - at_y) ** 2
            image[near] += value / (2 * np.pi * width**2) * np.exp(-r2 / (2 * width**2))
        if new:
            image += 0.6 * sky * structure(kind, size, np.random.default_rng(seed))
        variance = np.full(image.shape, sky**2) + np.maximum(image, 0) / 4
        image = image + rng.normal(size=image.shape) * np.sqrt(variance)
        exposures.append(
            Exposure.from_arrays(image.astype(np.float32), variance=variance.astype(np.float32))
        )
    return exposures, transients


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("direction", ["template", "science"])
@pytest.mark.parametrize("kind", ["fringes", "amplifiers"])
def test_from_two_images(kind, direction, seed):
    exposures, transients = scene(seed, direction, kind)
    made = make_all(*exposures, Recipe(), ("difference", "score"))
    for name in ("difference", "score") if direction == "template" else ("difference",):
        assert isinstance(made[name].product.solution.background, np.ndarray), name
    difference = made["difference"].product.exposure
    rows = detect(difference)
    # The same noise without structure: what is found besides is a peak of its noise, moved by less
    # than half a sigma.
    plain, _ = scene(seed, direction, "none")
    without = make_all(*plain, Recipe(), ("difference",))["difference"].product
    peaks = detect(without.exposure, options=DetectionOptions(threshold=4.5))
    away, new = (
        [
            np.hypot(of_x - x, of_y - y).min(initial=np.inf)
            for x, y in zip(rows["x"].value, rows["y"].value, strict=True)
        ]
        for of_x, of_y in (transients.T, (peaks["x"].value, peaks["y"].value))
    )
    assert sum(each < 2 for each in away) == len(transients)
    assert max(new) < 1.5
    near = [
        int(np.argmin(np.hypot(rows["x"].value - x, rows["y"].value - y))) for x, y in transients
    ]
    pulls = (rows["psf_flux"].value[near] - 1500) / rows["psf_flux_err"].value[near]
    assert (np.abs(pulls) < 3.5).all()


def test_the_command_tells_of_it_and_makes_it_again(tmp_path: Path, run):
    exposures, _ = scene(3, "template", "step")
    files = [tmp_path / name for name in ("science.fits", "template.fits")]
    for file, exposure in zip(files, exposures, strict=True):
        write_exposure(exposure, file)
    first, again, plain = (tmp_path / f"{name}.fits" for name in ("first", "again", "plain"))
    code, _, told = run("subtract", *files, "--output", first)
    assert code == 0
    assert "structure that no polynomial follows" in told
    assert "with steps at column 195" in told
    assert run("subtract", *files, "--kernel", first, "--output", again)[0] == 0
    one, other = read_exposure(first), read_exposure(again)
    assert np.array_equal(one.data, other.data, equal_nan=True)
    code, _, told = run("subtract", *files, "--background", "polynomial", "--output", plain)
    assert code == 0
    assert "structure that no polynomial follows" not in told
    models = [astropy.io.fits.getval(file, "WDBMODEL") for file in (first, plain)]
    assert models == ["mesh", "polynomial"]
