"""Bad pixels, units and transients do not decide what the kernel is.

Claims: bad pixels of every kind, in either image or both, cost a kernel's stars no more than their
own weight, and a finite value under a flag is never seen; stars are refused where their core is
gone; the same for a measured PSF; a pair in other units has the same stars and kernel, from
1e-30 to 1e20, in either image or both; sources of the science image alone are no kernel stars,
however many they are; the kernel's sum is that which photometry finds, and a sum that is not is
warned of or refused.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from astropy.io import fits

from marks import slow_after
from scenes import gaussian
from whitediff import Exposure
from whitediff.errors import DataError, TooFewSourcesError
from whitediff.evaluation.simulation import PsfModel, SimulationOptions, simulate
from whitediff.formats import read_exposure
from whitediff.matching.exposures import MatchOptions, _judge_sum, match
from whitediff.matching.fluxes import ComparedImages, FluxRatio, flux_ratio
from whitediff.matching.preparation import prepare, with_own_psf
from whitediff.matching.psf import star_width
from whitediff.noise.exposures import untrusted_pixels, variance_factor
from whitediff.numerics.interpolation import patched
from whitediff.stars.candidates import StarImage, choose_candidates, cut_stamps, find_sources

OPTIONS = MatchOptions(convolved="auto", choose_order="bic")
KINDS = {
    "template convolved": {},
    "science convolved": {"science_psf": 2.0, "template_psf": 2.8, "flux_scale": 1.3},
    "elliptical": {"profile": "moffat", "beta": 4.5, "ellipticity": (0.1, -0.07),
                   "offset": (0.3, -0.2), "flux_scale": 0.2},
}  # fmt: skip


def scene(kind, seed, *, size=384, stars=50, galaxies=10, transients=4, **more):
    return simulate(
        SimulationOptions(
            shape=(size, size + 10), seed=seed, stars=stars, galaxies=galaxies,
            transients=transients, nan_pixels=0, bad_columns=0, **(KINDS[kind] | more),
        )
    )  # fmt: skip


def exposures(simulation, *, factors=(1.0, 1.0), dtype=np.float32, spoil=lambda role, *p: p):
    """The pair as exposures, in other units, and with something done to the planes of each."""
    pair = []
    for role, factor in zip(("science", "template"), factors, strict=True):
        simulated = getattr(simulation, role)
        image, variance, mask = spoil(
            role,
            simulated.image.astype(np.float64) * factor,
            simulated.variance.astype(np.float64) * factor**2,
            dict(simulated.mask),
        )
        single = dtype == np.float32 and 1e-12 < factor < 1e12
        pair.append(
            Exposure.from_arrays(
                image.astype(dtype),
                variance=variance.astype(np.float32 if single else np.float64),
                mask=mask,
            )
        )
    return pair


def matched(*pair):
    return match(prepare(*pair), OPTIONS)


def places(found):
    return np.stack([found.candidates.x, found.candidates.y], 1)[found.fit.used]


def same_sum(first, second):
    """Within 2 standard deviations: a star at a limit may be in one of the fits alone."""
    error = math.hypot(first.kernel_sum_error, second.kernel_sum_error)
    return abs(first.kernel_sum - second.kernel_sum) < 2 * error


def spoiling(how, which, share, seed):
    rng = np.random.default_rng(seed)

    def spoil(role, image, variance, mask):
        if which not in (role, "both"):
            return image, variance, mask
        if share == "columns":
            bad = np.zeros(image.shape, dtype=bool)
            bad[:, rng.choice(image.shape[1], round(20 * image.shape[1] / 1024), False)] = True
        else:
            bad = rng.random(image.shape) < share
        garbage = np.where(bad, rng.choice([-1, 1], image.shape) * 3e4, image)
        if how == "NaN":
            return np.where(bad, np.nan, image), variance, mask
        if how == "flag":
            return garbage, variance, mask | {"BAD": mask["BAD"] | bad}
        if how == "zero weight":
            return garbage, np.where(bad, np.inf, variance), mask
        return garbage, np.where(bad, rng.choice([0.0, -5.0], image.shape), variance), mask

    return spoil


@pytest.mark.parametrize(
    ("how", "which"),
    [
        ("NaN", "both"),
        ("flag", "science"),
        ("zero weight", "template"),
        ("no variance", "both"),
        *(
            pytest.param(how, which, marks=pytest.mark.slow)
            for how in ("NaN", "flag", "zero weight", "no variance")
            for which in ("science", "template", "both")
            if (how, which)
            not in {
                ("NaN", "both"),
                ("flag", "science"),
                ("zero weight", "template"),
                ("no variance", "both"),
            }
        ),
    ],
)
@pytest.mark.parametrize("kind", slow_after(1, ["template convolved", "science convolved"]))
def test_one_pixel_in_a_hundred_costs_few_stars(kind, how, which):
    seed = 1 + ["science", "template", "both"].index(which) % 2
    simulation = scene(kind, seed)
    clean = matched(*exposures(simulation))
    found = matched(*exposures(simulation, spoil=spoiling(how, which, 0.01, seed)))
    distance = np.hypot(*(places(clean)[:, None] - places(found)).transpose(2, 0, 1))
    assert (distance.min(axis=1) < 1).mean() >= 0.8
    assert same_sum(found.fit, clean.fit)
    assert found.fit.reduced_chi_square == pytest.approx(1, abs=0.1)


@pytest.mark.slow
@pytest.mark.cases(3)
@pytest.mark.parametrize("share", [0.002, 0.05, "columns"])
@pytest.mark.parametrize("kind", ["template convolved", "science convolved"])
def test_any_share_of_bad_pixels(kind, share):
    for i, how in enumerate(("NaN", "flag", "zero weight", "no variance"), 1):
        for seed in (i, i + 4):
            simulation = scene(kind, seed, size=512, stars=80)
            clean = matched(*exposures(simulation))
            spoil = spoiling(how, "both", share, seed)
            found = matched(*exposures(simulation, spoil=spoil))
            assert found.fit.used.sum() >= 0.8 * clean.fit.used.sum()
            assert same_sum(found.fit, clean.fit)


def test_the_value_of_a_bad_pixel_is_never_seen():
    simulation = scene("template convolved", 4)
    rng = np.random.default_rng(4)
    bad = rng.random(simulation.science.image.shape) < 0.01

    def spoil(value):
        def change(role, image, variance, mask):
            flagged = mask | {"BAD": mask["BAD"] | bad} if role == "science" else mask
            return (
                np.where(bad, value, image),
                variance if role == "science" else np.where(bad, np.inf, variance),
                flagged,
            )

        return change

    first, *others = [
        matched(*exposures(simulation, spoil=spoil(value))) for value in (np.nan, 1e6, -3e8)
    ]
    for other in others:
        np.testing.assert_array_equal(other.fit.used, first.fit.used)
        assert other.fit.kernel_sum == pytest.approx(first.fit.kernel_sum, rel=1e-9)


def test_variances_of_no_weight_are_bad_pixels(rng):
    variance = np.full((50, 60), 4.0)
    variance[3, 4:8] = 0, -1, np.nan, np.inf
    exposure = Exposure.from_arrays(rng.normal(0, 2, (50, 60)), variance=variance)
    bad = untrusted_pixels(exposure)
    assert bad[3, 4:8].all()
    assert bad.sum() == 4
    # A plane that nobody filled says nothing of single pixels.
    empty = Exposure.from_arrays(rng.normal(0, 2, (50, 60)), variance=0.0)
    assert not untrusted_pixels(empty).any()


def test_holes_are_not_patched(rng):
    y, x = np.mgrid[:60, :70]
    image = 5 + 0.3 * x - 0.2 * y
    missing = np.zeros(image.shape, dtype=bool)
    missing[20:30, 30:45] = True
    missing[:, 10] = True
    missing[50, 60] = True
    whole, left = patched(np.where(missing, 1e30, image), missing)
    np.testing.assert_allclose(whole[~left], image[~left], atol=1e-9)
    np.testing.assert_array_equal(np.argwhere(left).min(axis=0), [22, 32])
    np.testing.assert_array_equal(np.argwhere(left).max(axis=0), [27, 42])
    assert not whole[left].any()
    same, none = patched(image, np.zeros_like(missing))
    assert same is image
    assert not none.any()


def star_at(places_yx, shape, sigma, flux):
    image = np.zeros(shape)
    for y, x in places_yx:
        image[y - 20 : y + 21, x - 20 : x + 21] += flux * gaussian(41, sigma)
    return image


def test_only_what_a_bad_pixel_reaches_loses_weight(rng):
    shape, sigma = (200, 220), 2.0
    image = star_at([(100, 110)], shape, sigma, 1e5) + rng.normal(0, 5, shape)
    variance, none = np.full(shape, 25.0), np.zeros(shape, dtype=bool)

    def stamps(source_bad, target_bad, lost=None):
        spoiled = np.where(source_bad, 1e7, image)
        return cut_stamps(
            StarImage(spoiled, np.where(source_bad, 0, variance), source_bad, sigma, lost),
            StarImage(np.where(target_bad, -1e7, image), variance, target_bad, 2.5),
            np.array([110.0]), np.array([100.0]), norm=0.1, size=41, kernel_size=21,
        )  # fmt: skip

    def at(*pixels):
        bad = none.copy()
        for y, x in pixels:
            bad[y, x] = True
        return bad

    full = stamps(none, none).weight
    np.testing.assert_allclose(full, 1 / 27.5)
    # Of the target: itself.
    found = stamps(none, at((100, 111))).weight[0]
    assert found[20, 21] == 0
    assert np.count_nonzero(found == 0) == 1
    # Of the source on empty sky: next to nothing; on the star: what it may be wrong by.
    sky, star = (stamps(at(pixel), none) for pixel in ((115, 122), (100, 110)))
    assert sky.weight.min() > 0.95 * full.min()
    assert np.abs(sky.source).max() < 5e3
    assert star.weight[0, 20, 20] < 0.9 * full[0, 20, 20]
    assert star.weight[0, 5, 5] == pytest.approx(full[0, 5, 5])
    # Of the saturated one there is nothing to interpolate: as far as a kernel reaches.
    lost = at((88, 99))
    found = stamps(lost, none, lost).weight[0]
    assert not found[:19, :20].any()
    np.testing.assert_allclose(found[19:, :], 1 / 27.5)
    # A star without a core has no weight at all.
    core = at(*((y, x) for y in range(98, 103) for x in range(109, 112)))
    assert not stamps(none, core).weight.any()


@pytest.mark.slow
def test_a_measured_psf_does_without_some_core_pixels(rng):
    shape = (500, 520)
    psf = PsfModel(sigma=2.2, frame=shape, profile="moffat", ellipticity=(0.1, -0.05))
    image = rng.normal(100, 5, shape)
    for y in range(60, 460, 55):
        for x in range(60, 480, 55):
            at = x + rng.uniform(-0.5, 0.5), y + rng.uniform(-0.5, 0.5)
            i, j = (math.floor(a + 0.5) for a in at)
            image[j - 25 : j + 26, i - 25 : i + 26] += 1.5e4 * psf.stamp(*at, size=51)
    variance = np.full(shape, 25.0)
    clean = with_own_psf(Exposure.from_arrays(image, variance=variance)).psf
    bad = rng.random(shape) < 0.02
    spoiled = Exposure.from_arrays(np.where(bad, 1e6, image), variance=variance, mask={"BAD": bad})
    found = with_own_psf(spoiled).psf
    images = [p.at(x=250, y=250) for p in (clean, found)]
    side = min(len(image) for image in images)
    first, second = (
        image[(len(image) - side) // 2 :, (len(image) - side) // 2 :][:side, :side]
        for image in images
    )
    assert np.sqrt(((first - second) ** 2).sum() / (first**2).sum()) < 0.005
    x, y = np.array([60.0, 115, 170, 225]), np.full(4, 60.0)
    width = star_width(np.where(bad, -1e6, image), bad, x, y, reach=12)
    assert width == pytest.approx(2.2 * 2.3548, rel=0.03)


@pytest.mark.parametrize(
    ("which", "dtype"),
    [
        ((1, 0), np.float32),
        *(
            pytest.param(which, dtype, marks=pytest.mark.slow)
            for which in ((1, 1), (1, 0), (0, 1))
            for dtype in (np.float32, np.float64)
            if (which, dtype) != ((1, 0), np.float32)
        ),
    ],
)
@pytest.mark.parametrize("kind", slow_after(1, ["template convolved", "science convolved"]))
def test_no_unit_matters(kind, which, dtype):
    simulation = scene(kind, 3, size=320)
    expected = matched(*exposures(simulation, dtype=dtype))
    for power in (-30, -18, -9, 9, 20):
        factors = [10.0 ** (power * each) for each in which]
        found = matched(*exposures(simulation, factors=factors, dtype=dtype))
        np.testing.assert_array_equal(found.candidates.chosen, expected.candidates.chosen)
        np.testing.assert_array_equal(found.fit.used, expected.fit.used)
        scale = factors[0] / factors[1]
        if found.convolved == "science":
            scale = 1 / scale
        # Differences of sums, of which the error is made, keep fewer digits of single precision.
        for name, precision in (("kernel_sum", 1e-6), ("kernel_sum_error", 1e-5)):
            value = getattr(expected.fit, name)
            assert getattr(found.fit, name) / scale == pytest.approx(value, rel=precision)
        assert found.flux_ratio.value / scale == pytest.approx(expected.flux_ratio.value, rel=1e-5)
        background = expected.background.coefficients
        np.testing.assert_allclose(
            found.background.coefficients / factors[0], background, atol=1e-4
        )


def test_a_variance_that_single_precision_cannot_hold_is_double(rng):
    image = rng.normal(0, 1e-25, (20, 30)).astype(np.float32)
    exposure = Exposure.from_arrays(image, variance=1e-50)
    assert exposure.variance[0, 0] == pytest.approx(1e-50)
    large = Exposure.from_arrays(image, variance=1e42)
    assert large.variance[0, 0] == pytest.approx(1e42)
    assert Exposure.from_arrays(image, variance=9.0).variance.dtype == np.float32


def with_rays(number, seed):
    rng = np.random.default_rng(seed)

    def spoil(role, image, variance, mask):
        ny, nx = image.shape
        for _ in range(number if role == "science" else 0):
            x, y, angle = *rng.uniform(10, (nx - 10, ny - 10)), rng.uniform(0, np.pi)
            charge = np.exp(rng.uniform(np.log(300), np.log(2e4)))
            for step in np.arange(0, rng.uniform(1, 8), 0.5):
                image[int(y + step * np.sin(angle)), int(x + step * np.cos(angle))] += charge / 2
        return image, variance, mask

    return spoil


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(("transients", "rays"), [(160, 0), (0, 300)])
def test_what_is_in_one_image_alone_sets_no_scale(kind, transients, rays):
    for seed in (2, 4):
        simulation = scene(kind, seed, size=700, stars=30, galaxies=0, transients=transients)
        found = matched(*exposures(simulation, spoil=with_rays(rays, seed)))
        sources = simulation.sources
        star = sources["kind"] == "star"
        stars = np.stack([sources["x"][star], sources["y"][star]], 1)
        distance = np.hypot(*(places(found)[:, None] - stars).transpose(2, 0, 1))
        assert (distance.min(axis=1) < 1.5).all()
        true = simulation.options.flux_scale
        true = true if found.convolved == "template" else 1 / true
        # Wings of the Moffat profile reach beyond the kernel's stamps.
        allowed = 0.03 if kind == "elliptical" else 0.01
        assert found.fit.kernel_sum == pytest.approx(
            true, abs=4 * found.fit.kernel_sum_error + allowed * true
        )


def test_without_stars_in_common_there_is_no_kernel(rng):
    shape, variance = (400, 400), np.full((400, 400), 25.0)
    grid = [(y, x) for y in range(60, 380, 70) for x in range(60, 380, 70)]
    science = star_at(grid, shape, 2.5, 2e4) + rng.normal(0, 5, shape)
    template = rng.normal(0, 5, shape)
    none = np.zeros(shape, dtype=bool)
    sources = find_sources(
        science, template, science_variance=variance, template_variance=variance,
        science_bad=none, template_bad=none,
    )  # fmt: skip
    with pytest.raises(TooFewSourcesError, match=r"Only 0 stand out in both images"):
        choose_candidates(sources, clear=20, isolation=16)


def test_few_stars_that_both_images_have_are_no_other_field(rng):
    shape, variance = (400, 400), np.full((400, 400), 25.0)
    # Two are far from the edges, and the images have them all.
    grid = [(21, 200), (378, 200), (200, 22), (150, 150), (250, 260)]
    science, template = (
        star_at(grid, shape, width, 2e4) + rng.normal(0, 5, shape) for width in (2.5, 2.0)
    )
    none = np.zeros(shape, dtype=bool)
    sources = find_sources(
        science, template, science_variance=variance, template_variance=variance,
        science_bad=none, template_bad=none,
    )  # fmt: skip
    with pytest.raises(TooFewSourcesError, match=r"2 of 5 sources .* too few stars") as caught:
        choose_candidates(sources, clear=30, isolation=16)
    assert "same field" not in str(caught.value)
    assert "stand out" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_photometry_agrees_with_the_sum(kind, caplog):
    for seed in range(1, 6):
        found = matched(*exposures(scene(kind, seed, size=400)))
        ratio = found.flux_ratio
        assert ratio.n_stars >= 3
        assert abs(ratio.value / found.fit.kernel_sum - 1) < 0.02 + 4 * ratio.error / ratio.value
    assert "times as bright" not in caplog.text


def test_photometry_of_stars_is_unbiased(rng):
    # Faint ones, of which the mean of single ratios would be a tenth off.
    shape = (1000, 1000)
    grid = np.arange(50, 960, 60)
    x, y = (a.ravel().astype(float) for a in np.meshgrid(grid, grid))
    at = [(int(b), int(a)) for a, b in zip(x, y, strict=True)]
    source = star_at(at, shape, 2.0, 3000) + rng.normal(0, 10, shape)
    target = star_at(at, shape, 2.5, 6000) + rng.normal(50, 20, shape)
    target[300:310, 300:310] += 1e4
    none = np.zeros(shape, dtype=bool)
    images = ComparedImages(
        source, target, np.full(shape, 100.0), np.full(shape, 400.0), none, none
    )
    ratio = flux_ratio(images, x, y, radius=12.0, expected=np.full(len(x), 2.0))
    assert ratio.value == pytest.approx(1, abs=4 * ratio.error)
    assert 0.002 < ratio.error < 0.02
    few = flux_ratio(images, x[:2], y[:2], radius=12.0, expected=np.full(2, 2.0))
    assert math.isnan(few.value)


def test_a_sum_that_photometry_contradicts_is_said(caplog):
    with pytest.raises(DataError, match=r"has the sum 0\.063, but 30 sources are 1 ± 0\.01"):
        _judge_sum(0.063, FluxRatio(1.0, 0.01, 30))
    _judge_sum(0.91, FluxRatio(1.0, 0.01, 30))
    assert "fluxes may be off by 9%" in caplog.text
    caplog.clear()
    # Within its errors; less than 2.5 %; and unknown.
    for value in (
        FluxRatio(1.0, 0.03, 5),
        FluxRatio(0.93, 0.001, 90),
        FluxRatio(np.nan, np.nan, 2),
    ):
        _judge_sum(0.91, value)
    assert not caplog.text


@pytest.mark.parametrize("value", [1e6, 1e10, 1e20, 1e30])
@pytest.mark.parametrize("name", ["VARIANCE", "ERR"])
def test_pixels_of_a_huge_variance_are_bad(tmp_path, rng, name, value):
    image = rng.normal(0, 10, (200, 210)).astype(np.float32)
    bright = np.zeros(image.shape, bool)
    bright[50:53, 60:63] = True
    image[bright] = 4e5
    bad = (rng.random(image.shape) < 0.02) & ~bright
    plane = np.where(bright, 100 + 4e5, 100).astype(np.float32)
    if name == "ERR":
        plane = np.sqrt(plane)
    plane[bad] = value
    fits.HDUList([fits.PrimaryHDU(image), fits.ImageHDU(plane, name=name)]).writeto(
        tmp_path / "image.fits"
    )
    exposure = read_exposure(tmp_path / "image.fits")
    np.testing.assert_array_equal(exposure.mask.get("NO_DATA"), bad)
    assert variance_factor(exposure) == pytest.approx(1, abs=0.04)
