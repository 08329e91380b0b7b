"""What lies outside of a frame or is missing costs no level, and no source that is not there.

Claims:

* The catalogue does not depend on the sky that is left in either image, up to 5·10⁴ counts,
  whichever image is convolved, for differences and scores.
* The outermost three rows and columns have mean 0 and the variance that their plane says.
* Where a star at the edge makes the convolution unknown, nothing is searched; no source lies
  outside of the frame, and none is due to the edge.
* Bad pixels of every kind cost themselves: the noise stays white, forced fluxes right, and no
  source appears beside a bad column.
* The arithmetic: distrusted pixels are those that explicit sums name; mirrored noise has the
  variance that an explicit matrix gives; a level costs single precision nothing.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from astropy.table import Table

from marks import slow_after
from scenes import gaussian, moffat_kernel
from whitediff import Exposure
from whitediff.decorrelation import difference_correction, mirrored_variance, score_correction
from whitediff.detection.exposures import detections, forced_photometry
from whitediff.evaluation.simulation import SimulationOptions, simulate
from whitediff.exposures import masks
from whitediff.exposures.missing import missing_pixels, without_missing
from whitediff.noise.significance import point_source_significance
from whitediff.numerics.convolution import convolve
from whitediff.numerics.distrust import distrusted_pixels, holes, unsupported_pixels
from whitediff.subtraction.pipeline import make_all
from whitediff.subtraction.recipe import Recipe

SIZE = 320
WIDER = {"template": (2.0, 1.5), "science": (1.5, 2.0)}
"""Which image is convolved → widths of science PSF and template PSF."""


@functools.cache
def simulated(seed, convolved, **more):
    science, template = WIDER[convolved]
    return simulate(
        SimulationOptions(
            shape=(SIZE, SIZE), seed=seed, science_psf=science, template_psf=template,
            stars=45, galaxies=30, transients=8, bad_columns=0, nan_pixels=0, saturation=1e9,
            **more,
        )
    )  # fmt: skip


def exposure(image, sky=0.0):
    pixels = (image.image.astype(np.float64) + sky).astype(np.float32)
    return Exposure.from_arrays(pixels, variance=image.variance)


@functools.cache
def made(seed, convolved, kind, science_sky, template_sky):
    scene = simulated(seed, convolved)
    pair = exposure(scene.science, science_sky), exposure(scene.template, template_sky)
    return make_all(*pair, Recipe(), (kind, "difference"))


@pytest.mark.parametrize(
    "sky", slow_after(1, [((1000, 0),), ((5e4, 5e4),), ((0, 1000),), ((50, 1000),)])
)
@pytest.mark.parametrize("convolved", ["template", "science"])
def test_sky_left_in_changes_no_source(convolved, sky):
    catalogues = []
    for levels in ((0, 0), sky):
        found = made(3, convolved, "difference", *levels)["difference"].product.exposure
        catalogues.append(detections(found).catalogue)
    before, after = catalogues
    assert len(after) == len(before) >= 6
    np.testing.assert_allclose(after["x"].value, before["x"].value, atol=0.1)
    np.testing.assert_allclose(after["y"].value, before["y"].value, atol=0.1)
    moved = np.abs(after["psf_flux"].value - before["psf_flux"].value)
    assert (moved < 0.1 * before["psf_flux_err"].value).all()


@pytest.mark.slow
def test_sky_left_in_changes_no_source_of_a_score():
    catalogues = []
    for levels in ((0, 0), (1000, 300)):
        both = made(3, "template", "score", *levels)
        found = detections(both["difference"].product.exposure, both["score"].product.exposure)
        catalogues.append(found.catalogue)
    before, after = catalogues
    assert len(after) == len(before) >= 6
    np.testing.assert_allclose(after["x"].value, before["x"].value, atol=0.1)
    np.testing.assert_allclose(after["significance"], before["significance"], atol=0.1, rtol=1e-3)


@pytest.mark.parametrize("convolved", slow_after(1, ["template", "science"]))
def test_the_outermost_pixels_are_noise_of_the_plane_s_variance(convolved):
    pixels = {"rows": [], "columns": []}
    for seed in (3, 4, 5, 6):
        found = made(seed, convolved, "difference", 1000, 300)["difference"].product.exposure
        good = ~masks.flagged(found.mask, ["SOURCE", *masks.UNTRUSTED_MASK_PLANES])
        pulls = found.data / np.sqrt(found.variance)
        edge = np.zeros((SIZE, SIZE), dtype=bool)
        edge[:3] = edge[-3:] = True
        pixels["rows"].append(pulls[good & edge])
        pixels["columns"].append(pulls[good & edge.T])
    for values in map(np.concatenate, pixels.values()):
        error = 1 / np.sqrt(values.size)
        assert abs(values.mean()) < 3 * error
        assert abs(values.var() - 1) < 0.05
        assert np.sqrt(2) * error < 0.02  # so few would say nothing


@pytest.mark.slow
def test_no_source_is_due_to_the_edge():
    n_others = 0
    for seed in range(3, 9):
        for convolved in WIDER:
            scene = simulated(seed, convolved)
            found = made(seed, convolved, "difference", 1000, 300)["difference"].product.exposure
            catalogue = detections(found).catalogue
            x, y = (np.asarray(catalogue[name].value) for name in "xy")
            assert ((x > -0.5) & (x < SIZE - 0.5) & (y > -0.5) & (y < SIZE - 0.5)).all()
            transient = scene.sources["kind"] == "transient"
            known = np.zeros(len(x), dtype=bool)
            for column, row in zip(
                scene.sources["x"][transient], scene.sources["y"][transient], strict=True
            ):
                known |= np.hypot(x - column, y - row) < 3
            near = np.minimum.reduce([x, y, SIZE - 1 - x, SIZE - 1 - y]) < 12
            n_others += int((near & ~known).sum())
    # Twelve differences, whose edges are 15 % of the frame.
    assert n_others <= 2


SPOILT = {
    "nan": lambda image, variance, bad: ({}, np.where(bad, np.nan, image), variance),
    "flagged": lambda image, variance, bad: ({"BAD": bad}, np.where(bad, 6e4, image), variance),
    "no weight": lambda image, variance, bad: (
        {}, np.where(bad, 6e4, image), np.where(bad, np.inf, variance),
    ),
    "no variance": lambda image, variance, bad: (
        {}, np.where(bad, -3e4, image), np.where(bad, 0, variance),
    ),
}  # fmt: skip


def spoilt(image, how, bad):
    mask, pixels, variance = SPOILT[how](image.image, image.variance, bad)
    return Exposure.from_arrays(
        pixels.astype(np.float32), variance=variance.astype(np.float32), mask=mask
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "fraction", "columns", "where"),
    [
        ("nan", 0.01, 0, "both"), ("flagged", 0.05, 0, "both"), ("no weight", 0.01, 0, "template"),
        ("no variance", 0.05, 0, "science"), ("no weight", 0, 6, "science"),
        ("flagged", 0, 6, "template"), ("nan", 0.002, 6, "both"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("convolved", ["template", "science"])
def test_bad_pixels_cost_themselves(convolved, how, fraction, columns, where):
    rng = np.random.default_rng(7)
    clean = made(3, convolved, "difference", 0, 0)["difference"].product
    scene = simulated(3, convolved)
    bad = np.zeros((2, SIZE, SIZE), dtype=bool)
    for plane, name in zip(bad, ("science", "template"), strict=True):
        if where in ("both", name):
            plane[rng.random(plane.shape) < fraction] = True
            plane[:, rng.choice(SIZE, columns, replace=False)] = True
    pair = spoilt(scene.science, how, bad[0]), spoilt(scene.template, how, bad[1])
    product = make_all(*pair, Recipe(), ("difference",))["difference"].product
    used = [int(np.sum(p.solution.stars["used"])) for p in (clean, product)]
    if fraction <= 0.01:
        assert used[1] >= 0.8 * used[0]
    # Whiteness: pixels, and as detection sees them.
    found = product.exposure
    good = ~masks.flagged(found.mask, masks.UNTRUSTED_MASK_PLANES)
    free = ~masks.flagged(found.mask, ["SOURCE"])
    assert good.mean() > 0.8
    pixels = (found.data / np.sqrt(found.variance))[good & free]
    assert robust_variance(pixels) == pytest.approx(1, abs=0.03)
    psf = found.psf.at(x=SIZE / 2, y=SIZE / 2)
    filtered = point_source_significance(found.data, found.variance, good, psf)
    assert robust_variance(filtered.image[filtered.searched & free]) == pytest.approx(1, abs=0.08)
    # Fluxes at the true places, and no source that is none.
    transient = scene.sources["kind"] == "transient"
    true = {name: scene.sources[name][transient] for name in ("x", "y", "science_flux")}
    forced = forced_photometry(found, Table({"x": true["x"], "y": true["y"]}))
    pulls = (forced["psf_flux"].value - true["science_flux"]) / forced["psf_flux_err"].value
    whole = ~(np.asarray(forced["flag_bad"]) | np.asarray(forced["flag_no_data"]))
    assert np.abs(pulls[np.isfinite(pulls)]).max() < 4
    assert np.isfinite(pulls[whole]).all()
    # Every one that is not right is flagged.
    assert np.abs(pulls[whole]).max(initial=0) < 3.5
    catalogue = detections(found).catalogue
    for row in catalogue:
        apart = np.hypot(row["x"].value - true["x"], row["y"].value - true["y"])
        assert apart.min() < 3 or row["flag_source"] or row["flag_edge"]


def robust_variance(values):
    low, high = np.percentile(values, [25, 75])
    return (0.7413 * (high - low)) ** 2


def test_missing_pixels_are_all_that_hold_no_measurement(rng):
    image, variance = rng.normal(size=(40, 50)), np.ones((40, 50))
    flags = {name: np.zeros((40, 50), dtype=bool) for name in ("BAD", "CR", "SAT", "EDGE")}
    for k, plane in enumerate(flags.values()):
        plane[5, 5 * k] = True
    image[10, 10], variance[11, 11], variance[12, 12], variance[13, 13] = np.nan, 0, -1, np.inf
    subject = Exposure.from_arrays(image, variance=variance, mask=flags)
    missing = missing_pixels(subject)
    assert sorted(map(tuple, np.argwhere(missing).tolist())) == [
        (5, 0), (5, 5), (10, 10), (11, 11), (12, 12), (13, 13),
    ]  # fmt: skip
    whole = without_missing(subject, missing)
    assert np.isfinite(whole.data).all()
    np.testing.assert_allclose(whole.variance, 1)
    np.testing.assert_array_equal(whole.data[~missing], image[~missing])
    # A plane that holds nothing anywhere does not make every pixel a bad one.
    without = Exposure.from_arrays(image, variance=np.full((40, 50), np.nan))
    assert missing_pixels(without).sum() == 1


def test_distrusted_pixels_are_those_that_explicit_sums_name(rng):
    shape = (60, 70)
    kernel = moffat_kernel(15, 1.3)
    image = rng.normal(size=shape)
    star = gaussian(31, 2.5)
    image[10:41, 20:51] += 4000 * star / star.max()
    missing = rng.random(shape) < 0.01
    missing[24, 33] = True  # on the flank of the star
    missing[50:55, 5:10] = True
    lost = np.zeros(shape, dtype=bool)
    lost[5, 60] = True
    absolute = np.abs(kernel)
    # The corners of a hole count as single pixels.
    hole = np.zeros(shape, dtype=bool)
    for y, x in np.argwhere(missing):
        around = [(y, x), (y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        for j, i in around:
            cross = [(j, i), (j - 1, i), (j + 1, i), (j, i - 1), (j, i + 1)]
            if all(not (0 <= b < 60 and 0 <= a < 70) or missing[b, a] for b, a in cross):
                hole[y, x] |= 0 <= j < 60 and 0 <= i < 70
    np.testing.assert_array_equal(holes(missing), hole)
    weight_lost = scipy.ndimage.convolve((hole | lost).astype(float), absolute, mode="constant")
    weight = scipy.ndimage.convolve(missing.astype(float), absolute, mode="constant")
    error = np.zeros(shape)
    for y, x in np.argwhere(missing):
        box = np.s_[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        near = image[box][~missing[box]]
        if near.size:
            error[y, x] = 0.1 * max(0.0, near.max() - near.min() - 6)
    wrong = scipy.ndimage.convolve(error, absolute, mode="constant")
    total = absolute.sum()
    expected = (weight_lost > 0.01 * total) | (weight > 0.25 * total) | (wrong > 0.5)
    result = distrusted_pixels(kernel, image, missing, lost=lost, noise=1.0, sigma=1.0)
    np.testing.assert_array_equal(result, expected)
    assert expected[24, 33]
    assert 0.02 < expected.mean() < 0.4


def test_only_stars_at_an_edge_are_unsupported(rng):
    kernel = gaussian(21, 1.6)
    for turn in range(4):
        image = rng.normal(1000, 1, (120, 150))
        star = gaussian(31, 2.0) / gaussian(31, 2.0).max()
        image[:18, 40:71] += 500 * star[-18:]  # its centre is on the third row
        image[60:91, 90:121] += 500 * star
        result = unsupported_pixels(kernel, np.rot90(image, turn), noise=1.0, sigma=1.0)
        result = np.rot90(result, -turn)
        assert result[:3, 51:60].all()
        assert not result[11:].any()
        assert result[:10].mean() < 0.3
        assert not result[:, :30].any()


def test_mirrored_noise_has_the_variance_of_an_explicit_matrix():
    psf, kernel = moffat_kernel(15, 1.5), moffat_kernel(15, 1.2)
    n, variances = 40, (2.0, 1.0)
    shape = (96, 90)
    for correction in (
        difference_correction(
            kernel, unconvolved_variance=2.0, convolved_variance=1.0, shape=shape
        ),
        score_correction(kernel, psf, science_variance=2.0, template_variance=1.0, shape=shape),
    ):
        rows, columns = mirrored_variance(correction, variances, (n, n))
        for axis, factor in enumerate((rows, columns)):
            expected = np.zeros(n)
            for variance, ft in zip(variances, correction.noise_filters_ft, strict=True):
                image = np.fft.irfft2(ft, s=shape)
                image = image if axis == 0 else image.T
                length = image.shape[0]
                for d in range(n):
                    # What each row of the frame contributes to row d, by any of its images.
                    total = np.zeros((length, image.shape[1]))
                    for lag in range(-length // 2 + 1, length // 2):
                        source = d - lag
                        source = -1 - source if source < 0 else source
                        source = 2 * n - 1 - source if source >= n else source
                        if 0 <= source < n:
                            total[source] += image[lag % length]
                    expected[d] += variance * (total**2).sum()
            expected /= expected[n // 2]
            np.testing.assert_allclose(factor, expected, atol=2e-3)


def test_a_level_costs_single_precision_nothing(rng):
    noise = rng.normal(0, 5, (700, 600)).astype(np.float32)
    image = (noise.astype(np.float64) + 5e4).astype(np.float32)
    kernel = rng.normal(size=(25, 25)) * gaussian(25, 3.0)
    kernel /= kernel.sum()
    exact = convolve(image.astype(np.float64), kernel, boundary="reflect")
    result = convolve(image, kernel, boundary="reflect", tolerance=2e-3)
    rounding = np.finfo(np.float32).eps / 2 * np.abs(exact)
    assert (np.abs(result - exact) <= 2e-3 + rounding).all()
    # It was used: double precision rounds a few pixels otherwise.
    assert (result != convolve(image, kernel, boundary="reflect")).any()
