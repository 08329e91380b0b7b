"""Which sources are static, and what that says of detections near them.

Claims: a transient that stands alone is on no static source and near no bright star, however
bright it is, whether it appeared or vanished, whichever image was convolved and however sharp the
PSFs are; it is counted to be believed.  How much brighter a star has to be is what the matching
leaves of them, as the difference itself shows.  What errors of kernel and position leave of static
stars is flagged as near a bright star, and so is what is next to saturated pixels.  In a host a
transient is on a source; near a bright star only where the host is far brighter.  Masks that do not
tell static sources flag as ever.  A source is static at the level that both images, or stacks of
them, have.
How many pixels are bright is that of a star in noise.  Differences, scores and what is made again
have the planes in their files, and give the same catalogue from them.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
import scipy.ndimage
from astropy.io import fits

from marks import slow_after
from whitediff import Exposure, read_catalog
from whitediff.defects.exposures import DefectOptions
from whitediff.detection.catalog import believed, headline
from whitediff.detection.exposures import detect
from whitediff.evaluation.placing import add_stamp
from whitediff.evaluation.simulation import PsfModel
from whitediff.exposures import masks
from whitediff.formats import read_exposure, write_exposure
from whitediff.matching.exposures import MatchOptions
from whitediff.matching.preparation import PreparationOptions
from whitediff.noise.exposures import PairSources, pair_sources
from whitediff.noise.sources import SourceLevel, bright_pixel_counts, source_levels
from whitediff.subtraction.pipeline import make_again, make_all
from whitediff.subtraction.recipe import Recipe

SHAPE = (300, 324)
CELL = 36
"""Pixels between the sources: each is alone."""
VARIANCES = (25.0, 9.0)
SCALE = 1.3
RATIOS = (8, 12, 20, 35, 60, 100, 180, 300)
PLANES = ("SOURCE", "STATIC", "STATIC_BRIGHT")
SHARP, WIDE = (1.15, 1.5), (1.9, 2.5)
"""Widths of the two PSFs; the first have stars of which a faint one is large."""


def psf_of(sigma):
    return PsfModel(sigma=sigma, frame=SHAPE, ellipticity=(0.1, -0.06), offset=(0.2, -0.15))


@dataclasses.dataclass
class Scene:
    """A pair, and where its transients are; their significance is that on the difference."""

    science: Exposure
    template: Exposure
    x: np.ndarray
    y: np.ndarray
    ratio: np.ndarray

    def row(self, table, index):
        apart = np.hypot(table["x"].value - self.x[index], table["y"].value - self.y[index])
        assert apart.min() < 2.5
        return table[int(np.argmin(apart))]

    def others(self, table):
        at = [table[name].value[:, None] - getattr(self, name) for name in ("x", "y")]
        return table[np.hypot(*at).min(axis=1) >= 3]


def scene(seed, sigmas, *, hosts=(), host_width=1.5, moved=0.0, wider=1.0, fainter=1.0):
    """Stars, and transients of `RATIOS`, of which every other one is in the template only.

    `hosts` has the signal-to-noise ratios of static sources, wider than stars by so much, under the
    first transients; the others are what is wrong with the science image's stars.
    """
    rng = np.random.default_rng(seed)
    psfs = [psf_of(sigma) for sigma in sigmas]
    images = [rng.normal(0, math.sqrt(variance), SHAPE) for variance in VARIANCES]
    sigma = math.sqrt(VARIANCES[0] + SCALE**2 * VARIANCES[1])
    wide = max(psfs, key=lambda psf: psf.sigma)
    unit = sigma / math.sqrt(float((wide.image(0, 0) ** 2).sum()))

    def add(which, flux, x, y, wider=1.0):
        psf = psf_of(wider * sigmas[which])
        add_stamp(images[which], flux / (1, SCALE)[which] * psf.stamp(x, y), x, y)

    y, x = (
        at.ravel() + 0.0 for at in np.mgrid[24 : SHAPE[0] - 23 : CELL, 24 : SHAPE[1] - 23 : CELL]
    )
    x, y = (at + rng.uniform(-3, 3, at.size) for at in (x, y))
    order = rng.permutation(x.size)
    x, y = x[order], y[order]
    n = len(RATIOS)
    for i in range(n, x.size):
        flux = unit * 100 * 30 ** rng.random()
        add(0, fainter * flux, x[i] + moved, y[i], wider)
        add(1, flux, x[i], y[i])
    signs = np.where(np.arange(n) % 2, -1, 1)
    for i, ratio in enumerate(hosts):
        for which in range(2):
            add(which, unit * ratio, x[i], y[i], host_width)
    for i, (ratio, sign) in enumerate(zip(RATIOS, signs, strict=True)):
        add(0 if sign > 0 else 1, unit * ratio, x[i], y[i])
    science, template = (
        Exposure.from_arrays(image.astype(np.float32), variance=variance, psf=psf.image(0, 0))
        for image, variance, psf in zip(images, VARIANCES, psfs, strict=True)
    )
    return Scene(science, template, x[:n], y[:n], signs * np.array(RATIOS))


OPTIONS = Recipe(
    preparation=PreparationOptions(
        defects=DefectOptions(cosmic_rays=False, bad_pixels=False, trails=False)
    ),
    match=MatchOptions(convolved="auto", choose_order=None),
)


def made(pair, kind="difference"):
    return make_all(pair.science, pair.template, OPTIONS, [kind])[kind].product


def untold(exposure):
    """Exposure as other programs write it, without the planes of static sources."""
    planes = {
        name: exposure.mask.get(name)
        for name in exposure.mask.names
        if name not in (masks.STATIC, masks.STATIC_BRIGHT)
    }
    return exposure.replaced(mask=masks.make_mask(planes, exposure.shape))


@pytest.mark.slow
@pytest.mark.parametrize("sigmas", [SHARP, SHARP[::-1], WIDE, WIDE[::-1]])
@pytest.mark.parametrize("seed", [1, 2])
def test_isolated_transients_are_to_be_believed(sigmas, seed):
    pair = scene(seed, sigmas)
    product = made(pair)
    assert product.solution.convolved == ("science" if sigmas[0] < sigmas[1] else "template")
    table = detect(product.exposure)
    for index, ratio in enumerate(pair.ratio):
        row = pair.row(table, index)
        assert row["significance"] * ratio > 0
        assert not row["flag_source"], ratio
        assert not row["flag_near_bright_star"], ratio
    assert headline(table).startswith(f"{len(RATIOS)} sources to believe (4 brighter, 4 fainter)")
    # Of masks that do not tell, what has changed is what is there.
    before = detect(untold(product.exposure))
    assert before["flag_source"].all()
    if sigmas in (SHARP, SHARP[::-1]):
        assert before["flag_near_bright_star"].any()


@functools.cache
def wide_scene():
    pair = scene(3, WIDE[::-1])
    return pair, made(pair)


@pytest.mark.parametrize("flaw", [{"moved": 0.15}, {"wider": 1.03}, {"fainter": 0.94}])
def test_residuals_of_static_stars_are_flagged(flaw):
    """Of a science image that is not the one whose kernel it was."""
    pair, product = wide_scene()
    again = make_again(
        scene(3, WIDE[::-1], **flaw).science, pair.template, {"difference": product.solution}
    )
    exposure = again["difference"].product.exposure
    table, before = detect(exposure), detect(untold(exposure))
    false = pair.others(table)
    assert len(false) > 15
    assert not believed(false).any()
    assert false["flag_near_bright_star"].all()
    assert pair.others(before)["flag_near_bright_star"].mean() < 0.9
    assert not any(pair.row(table, index)["flag_near_bright_star"] for index in range(len(RATIOS)))


@pytest.mark.parametrize("sigmas", [SHARP, WIDE[::-1]])
def test_in_hosts_only_far_brighter_ones_are_a_risk(sigmas):
    far_brighter = np.array([50] * 4 + [0.5] * 4)
    pair = scene(5, sigmas, hosts=far_brighter * RATIOS)
    table = detect(made(pair).exposure)
    rows = [pair.row(table, index) for index in range(len(RATIOS))]
    assert all(row["flag_source"] for row in rows)
    assert [bool(row["flag_near_bright_star"]) for row in rows] == [True] * 4 + [False] * 4


@pytest.mark.parametrize(("flaw", "most", "least"), [({}, 0.5, 0.0), ({"moved": 0.2}, 1.0, 1.0)])
@pytest.mark.parametrize("seeds", slow_after(1, [[5, 6], [7, 8, 9, 10, 11, 12]]))
def test_how_much_brighter_is_measured(flaw, most, least, seeds):
    """A kernel that leaves next to nothing of stars leaves no transient of a fifteenth of them."""
    sigmas, hosts = WIDE[::-1], {"hosts": 15.0 * np.array(RATIOS), "host_width": 1.0}
    flags = []
    for seed in seeds:
        solution = made(scene(seed, sigmas, **hosts)).solution
        pair = scene(seed, sigmas, **hosts, **flaw)
        again = make_again(pair.science, pair.template, {"difference": solution})
        table = detect(again["difference"].product.exposure)
        # The faintest may be below the threshold; near some a star is that is brighter yet.
        rows = [pair.row(table, index) for index in range(1, len(RATIOS))]
        flags += [bool(row["flag_near_bright_star"]) for row in rows]
        assert not believed(pair.others(table)).any()
    assert least <= np.mean(flags) <= most


def test_saturated_pixels_are_bright_stars_without_a_source():
    pair, product = wide_scene()
    saturated = np.zeros(SHAPE, bool)
    column, row = round(pair.x[4]), round(pair.y[4])
    saturated[row : row + 2, column + 20 : column + 22] = True
    exposure = product.exposure
    exposure = exposure.replaced(mask=masks.with_plane(exposure.mask, "SAT", saturated))
    table = detect(exposure)
    assert pair.row(table, 4)["flag_near_bright_star"]
    assert not pair.row(table, 4)["flag_source"]
    assert not pair.row(table, 5)["flag_near_bright_star"]


def test_bright_pixels_of_stars_in_noise(rng):
    for sigma in (1.0, 2.0, 4.0):
        psf = psf_of(sigma).image(0, 0)
        for ratio in (40, 200, 1000, 5000):
            image = rng.normal(0, 3, (260, 280))
            add_stamp(image, 3 * ratio / math.sqrt(float((psf**2).sum())) * psf, 130, 120)
            levels = source_levels(image)
            bright = levels == SourceLevel.BRIGHT
            expected = int(bright_pixel_counts(psf, np.array([-float(ratio)]))[0])
            # Known to half of a pair of pixels along the edge, and 2 % of the scatter.
            assert abs(bright.sum() - expected) <= 2 + 4 * math.sqrt(expected)
            near = scipy.ndimage.binary_dilation(bright, np.ones((9, 9)))
            np.testing.assert_array_equal(levels >= SourceLevel.NEAR_BRIGHT, near)
            assert levels[near].all()
    nothing = np.array([0.0, np.nan])
    assert bright_pixel_counts(psf, nothing).tolist() == [0, 0]


def test_levels_of_both_images():
    levels = np.arange(4, dtype=np.uint8)
    sources = PairSources(*np.meshgrid(levels, levels, indexing="ij"))
    empty = Exposure.from_arrays(np.zeros((4, 4), np.float32), variance=1.0)
    mask = sources.marked(empty.mask)
    y, x = np.mgrid[:4, :4]
    np.testing.assert_array_equal(mask.get("SOURCE"), (y > 0) | (x > 0))
    np.testing.assert_array_equal(mask.get("STATIC"), (y > 0) & (x > 0))
    bright = (y == 3) & (x >= 2) | (y >= 2) & (x == 3)
    np.testing.assert_array_equal(mask.get("STATIC_BRIGHT"), bright)


def test_a_source_of_one_image_of_a_stack_is_one_of_the_stack(rng):
    science, template = [], []
    for stack, places in ((science, [(40, 40), (90, 40)]), (template, [(40, 40), (40, 90)])):
        for place in places:
            image = rng.normal(0, 1, (128, 128))
            add_stamp(image, 1000 * psf_of(2.0).image(0, 0), *place)
            stack.append(Exposure.from_arrays(image.astype(np.float32), variance=1.0))
    mask = pair_sources(science, template).marked(science[0].mask)
    found = {name: mask.get(name)[[40, 40, 90], [40, 90, 40]].tolist() for name in PLANES}
    assert found == {
        "SOURCE": [True, True, True],
        "STATIC": [True, False, False],
        "STATIC_BRIGHT": [True, False, False],
    }


def test_files_have_the_planes(run, tmp_path):
    pair = scene(6, SHARP[::-1])
    paths = [tmp_path / name for name in ("science.fits", "template.fits", "d.fits")]
    write_exposure(pair.science, paths[0])
    write_exposure(pair.template, paths[1])
    catalog = tmp_path / "c.ecsv"
    code, said, messages = run(
        "subtract", *paths[:2], "--output", paths[2], "--catalog", catalog,
        "--kernel-order", 0, "--no-cosmic-rays", "--no-bad-pixels",
        "--no-trails",
    )  # fmt: skip
    assert code == 0, messages
    assert f"{len(RATIOS)} sources to believe" in said + messages
    difference = read_exposure(paths[2])
    score = made(pair, "score").exposure
    header = fits.getheader(paths[2], "MASK")
    names = {value: key[4:] for key, value in header.items() if key.startswith("MSKN")}
    bits = fits.getdata(paths[2], "MASK")
    for name in PLANES:
        plane = difference.mask.get(name)
        assert plane.any()
        np.testing.assert_array_equal(bits & header["MSKM" + names[name]] != 0, plane)
        assert "source" in header["MSKD" + names[name]]
        np.testing.assert_array_equal(score.mask.get(name), plane)
    again = tmp_path / "again.fits"
    code, _, messages = run(
        "subtract", *paths[:2], "--kernel", paths[2], "--output", again, "--catalog",
        tmp_path / "again.ecsv",
    )  # fmt: skip
    assert code == 0, messages
    first, second = read_catalog(catalog), read_catalog(tmp_path / "again.ecsv")
    for name in ("x", "flag_source", "flag_near_bright_star"):
        np.testing.assert_array_equal(first[name], second[name])
