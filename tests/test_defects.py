"""Defects that no mask tells of.

Claims:

- Of the pixels that a cosmic ray raises by 10 sigma and more, 95 % are found, at any seeing from
  1.6 pixels on, in fields of stars and of galaxies; and no star's core is taken for a ray.
- The rings of diffraction-limited stars, with and without a secondary mirror, are no rays either;
  rays between them are found.
- A star's sharpness is that of its profile, with far more rays than stars in the image.
- Bad columns and rows, whole or in part, 1 to 3 wide, hot or dead, are found, and no rays beside
  them; amplifiers' edges are not.
- The fast sums along lines are those of a line's pixels.
- Trails are masked to 95 % of their pixels, at any angle and width, along rows and columns too;
  images without any, with spikes, edge-on galaxies, bad rows or a step, get no mask.
- Inputs that tell of their defects, and those of who asked not to, are left alone.
- A product made again has the same pixels and mask.
- Catalogue rows on a trail or a ray are flagged and classed as artifacts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
import scipy.special

from marks import slow_after
from whitediff.defects.columns import bad_lines
from whitediff.defects.cosmic_rays import (
    dead_pixels,
    psf_sharpness,
    round_peaks,
    sharp_pixels,
    sharpness,
)
from whitediff.defects.exposures import DefectOptions, with_defects
from whitediff.defects.surface import surface
from whitediff.defects.trails import find_trails, line_sums, trail_pixels
from whitediff.detection.exposures import detect
from whitediff.errors import ArgumentError
from whitediff.exposures import masks
from whitediff.exposures.model import Exposure
from whitediff.formats import read_exposure, write_exposure

type Array = npt.NDArray[Any]

N = 320
SIGMA = 10.0
FOUND = 0.95


def field(
    fwhm: float, seed: int, *, stars: int = 90, galaxies: int = 20, beta: float | None = None
) -> tuple[Array, Array, Array, Array, Array]:
    """Image, variance, noiseless sources and stars' positions, drawn on a grid 5 times finer."""
    rng = np.random.default_rng(seed)
    fine, half = 5, 24
    side = (2 * half + 1) * fine
    truth = np.zeros((N, N))
    x, y = rng.uniform(half + 1, N - half - 2, (2, stars + galaxies))
    core = SIGMA * math.sqrt(4 * math.pi) * max(fwhm / 2.355, 0.8)
    flux = np.minimum(10 * core * (1 - rng.random(stars + galaxies)) ** -1.2, 1e6)
    grid = (np.arange(side) - side // 2) / fine
    for k in range(stars + galaxies):
        column, row = round(x[k]), round(y[k])
        dx, dy = grid[None, :] - (x[k] - column), grid[:, None] - (y[k] - row)
        if beta is None:
            image = np.exp(-4 * math.log(2) * (dx**2 + dy**2) / fwhm**2)
        else:
            image = (1 + 4 * (2 ** (1 / beta) - 1) * (dx**2 + dy**2) / fwhm**2) ** -beta
        if k >= stars:
            image = scipy.ndimage.gaussian_filter(image, rng.uniform(1, 4, 2) * fine)
        pixels = image.reshape(2 * half + 1, fine, 2 * half + 1, fine).sum(axis=(1, 3))
        rows, columns = (slice(at - half, at + half + 1) for at in (row, column))
        truth[rows, columns] += flux[k] * pixels / pixels.sum()
    variance = SIGMA**2 + truth / 2
    image = truth + rng.normal(size=truth.shape) * np.sqrt(variance)
    return image.astype(np.float32), variance.astype(np.float32), truth, x[:stars], y[:stars]


def rays(seed: int, number: int = 100) -> Array:
    """Energy deposits along straight tracks of 1 to 20 pixels."""
    rng = np.random.default_rng(seed + 1000)
    image = np.zeros((N, N))
    for _ in range(number):
        length = min(20.0, 1 + rng.exponential(4)) if rng.random() < 0.75 else 0.0
        angle, (x, y) = rng.uniform(0, math.pi), rng.uniform(0, N, 2)
        along = np.linspace(-length / 2, length / 2, max(1, int(8 * length)))
        column = np.floor(x + along * math.cos(angle)).astype(int)
        row = np.floor(y + along * math.sin(angle)).astype(int)
        deposit = SIGMA * 10 ** rng.uniform(1, 4) * rng.gamma(4, 0.25, len(along))
        deposit /= min(len(along), 8)
        inside = (column >= 0) & (column < N) & (row >= 0) & (row < N)
        np.add.at(image, (row[inside], column[inside]), deposit[inside])
    return image


def trail(angle: float, offset: float, width: float, height: float, size: int = N) -> Array:
    """Straight ridge; full width at half maximum in pixels, height in sigma."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2.0
    distance = math.cos(angle) * y - math.sin(angle) * x - offset
    return height * SIGMA * np.exp(-4 * math.log(2) * (distance / width) ** 2)


def searched(image: Array, variance: Array) -> Any:
    return surface(image.astype(np.float32), variance, np.zeros(image.shape, bool))


def sharp(image: Array, variance: Array) -> Array:
    looked_at = searched(image, variance)
    found = np.zeros(image.shape, bool)
    peaks = round_peaks(looked_at)
    found.flat[looked_at.unpadded(sharp_pixels(looked_at, sharpness(peaks), peaks))] = True
    return found


def cores(x: Array, y: Array, found: Array) -> Array:
    """Whether any of the nine pixels around each position was found."""
    near = scipy.ndimage.maximum_filter(found, 3)
    return near[np.rint(y).astype(int), np.rint(x).astype(int)]


@pytest.mark.parametrize("kind", [{}, {"stars": 300}, {"stars": 40, "galaxies": 100}])
@pytest.mark.parametrize("fwhm", [1.6, 2.5, 4.0])
def test_rays_are_found_and_stars_are_not(fwhm: float, kind: dict[str, int]) -> None:
    image, variance, _, x, y = field(fwhm, 1, **kind)
    assert not cores(x, y, sharp(image, variance)).any()
    hit = rays(1)
    found = sharp(image + hit, variance)
    assert found[hit > 10 * np.sqrt(variance)].mean() > FOUND
    untouched = ~cores(x, y, hit > 0)
    assert not cores(x, y, found)[untouched].any()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("beta", [None, 3.0])
@pytest.mark.parametrize("fwhm", [1.6, 2.0, 2.5, 3.0, 4.0, 6.0])
def test_rays_are_found_at_any_seeing(
    request: pytest.FixtureRequest, fwhm: float, beta: float | None, seed: int
) -> None:
    if (fwhm, beta, seed) == (6.0, 3.0, 1):
        reason = "too few stars are bright enough to tell how sharp they are"
        request.applymarker(pytest.mark.xfail(reason=reason))
    image, variance, _, x, y = field(fwhm, seed, stars=150, beta=beta)
    harmed = cores(x, y, sharp(image, variance)).mean()
    assert harmed <= (0.01 if fwhm < 2.5 else 0.0)
    hit = rays(seed)
    found = sharp(image + hit, variance)
    assert found[hit > 10 * np.sqrt(variance)].mean() > FOUND


@pytest.mark.parametrize("fwhm", [1.6, 2.5, 4.0])
def test_rays_do_not_set_the_sharpness(fwhm: float) -> None:
    image, variance, _, _, _ = field(fwhm, 2)
    alone = sharpness(round_peaks(searched(image, variance)))
    with_rays = sharpness(round_peaks(searched(image + rays(2, 300), variance)))
    # A pixel adds 1/12 to the squared width.
    expected = math.exp(-1 / (2 * ((fwhm / 2.3548) ** 2 + 1 / 12)))
    assert alone[:2] == pytest.approx(expected, rel=0.08)
    assert with_rays == pytest.approx(alone, rel=0.1)


@pytest.mark.parametrize("noise", [0.6, 1.0, 1.9, 3.0])
@pytest.mark.parametrize("seed", slow_after(1, range(8)))
def test_whole_numbers_of_little_noise_have_no_defects(noise: float, seed: int) -> None:
    image, variance, *_ = field(3.5, seed)
    pair = []
    for unit in (noise / SIGMA, 1.0):
        counts = np.round(image * unit)
        # Rounding to whole numbers is noise as well.
        plane = variance * unit**2 + 1 / 12
        pair.append(Exposure.from_arrays(counts.astype(np.float32), variance=plane))
    factors = [
        surface(values, plane, np.zeros(image.shape, bool)).factor
        for values, plane in ((image, variance), (pair[0].data, pair[0].variance))
    ]
    # Quantiles of whole numbers told a half to four times of it.  What spreads them evenly is as
    # much noise again as rounding; the rest is what some 25 cells of 256 pixels tell.
    spread = 1 + 1 / 12 / (noise**2 + 1 / 12)
    assert factors[1] == pytest.approx(factors[0] * spread, rel=0.35)
    whole, _ = with_defects(pair[0], pair[1], DefectOptions())
    assert np.count_nonzero(masks.flagged(whole.mask, ("CR", "BAD", masks.STREAK))) <= 4


def airy(side: int, dx: float, dy: float, fwhm: float, obscured: float) -> Array:
    """Diffraction of a round aperture with a hole, averaged over the pixels; of unit sum."""
    fine = 5
    axis = (np.arange(side * fine) + 0.5) / fine - side / 2
    r = np.hypot(axis[:, None] - dy, axis - dx) * 1.029 * math.pi / fwhm + 1e-9
    amplitude = 2 * scipy.special.j1(r) / r
    if obscured:
        amplitude -= obscured**2 * 2 * scipy.special.j1(obscured * r) / (obscured * r)
    light = (amplitude**2).reshape(side, fine, side, fine).mean(axis=(1, 3))
    return light / light.sum()


@pytest.mark.parametrize("seed", slow_after(1, range(8)))
@pytest.mark.parametrize(("fwhm", "obscured"), [(2.6, 0.0), (3.0, 0.3), (4.0, 0.4)])
def test_rings_of_diffraction_are_no_rays(fwhm: float, obscured: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, half = np.zeros((N, N)), 30
    number = 40
    flux = 2e3 * (1 - rng.random(number)) ** (-1 / 0.75)
    for star in np.minimum(flux, 1e6):
        x, y = rng.uniform(2, N - 3, 2)
        column, row = round(x), round(y)
        stamp = star * airy(2 * half + 1, x - column, y - row, fwhm, obscured)
        top, left = max(0, half - row), max(0, half - column)
        part = stamp[top : half + N - row, left : half + N - column]
        truth[max(0, row - half) :, max(0, column - half) :][: part.shape[0], : part.shape[1]] += (
            part
        )
    variance = SIGMA**2 + truth
    image = rng.normal(truth, np.sqrt(variance))
    # Of a star whose middle lies beyond the frame, nobody knows that it is one.
    inside = np.s_[12:-12, 12:-12]
    # Rings of faint stars in those of bright ones are not alike on all sides: a handful.
    assert np.count_nonzero(sharp(image, variance)[inside]) < 20
    hit = np.zeros((N, N))
    hit[tuple(rng.integers(3, N - 3, (2, 100)))] = SIGMA * 10 ** rng.uniform(1.3, 3, 100)
    found = sharp(image + hit, variance + hit)
    clear = hit > 10 * np.sqrt(variance + hit)
    # Not those that are fainter than the star's light beneath.
    clear &= hit > 2 * truth
    assert found[clear].mean() > FOUND


@pytest.mark.parametrize("seed", slow_after(1, range(4)))
def test_round_rays_that_outnumber_stars_are_told_by_the_other_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, variance, _, x, y = field(5.0, seed, stars=40, galaxies=20)
    other, other_variance, _, _, _ = field(4.0, seed, stars=40, galaxies=20)
    # Charge that spreads makes short tracks as round as stars of 1.4 pixels.
    hit = np.zeros((N, N))
    hit[tuple(rng.integers(3, N - 3, (2, 150)))] = SIGMA * 10 ** rng.uniform(2, 3, 150)
    hit = scipy.ndimage.gaussian_filter(hit, 0.55)
    looked_at = searched(image + hit, variance)
    peaks = round_peaks(looked_at), round_peaks(searched(other, other_variance))
    found = np.zeros(image.shape, bool)
    found.flat[looked_at.unpadded(sharp_pixels(looked_at, sharpness(*peaks), peaks[0]))] = True
    assert found[hit > 10 * np.sqrt(variance)].mean() > FOUND
    untouched = ~cores(x, y, hit > 0.1 * SIGMA)
    assert not cores(x, y, found)[untouched].any()
    expected = math.exp(-1 / (2 * ((5.0 / 2.3548) ** 2 + 1 / 12)))
    assert sharpness(*peaks)[:2] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("fwhm", [1.6, 3.0, 7.0])
def test_a_psf_tells_the_sharpness(fwhm: float) -> None:
    sigma = math.hypot(fwhm / 2.3548, 1 / math.sqrt(12))
    offsets = np.arange(-15, 16)
    psf = np.exp(-0.5 * (offsets[:, None] ** 2 + offsets**2) / sigma**2)
    steps = np.array([1, 1, 2, 2, 4, 4])
    np.testing.assert_allclose(psf_sharpness(psf), np.exp(-steps / (2 * sigma**2)), rtol=1e-9)


@pytest.mark.parametrize("turn", slow_after(1, range(4)))
def test_a_detector_s_border_is_no_trail(turn: int) -> None:
    for seed in range(3):
        image, variance, _, _, _ = field(3.0, seed, stars=30, galaxies=10)
        y, x = np.mgrid[:N, :N]
        # The level rises and falls within 15 rows of the edge, a little aslant.
        border = np.exp(-0.5 * ((y - 6 - 4 * x / N) / 3) ** 2)
        image = image + 6 * SIGMA * np.rot90(border, turn)
        assert not find_trails(searched(image, variance))


def test_dead_pixels_are_found() -> None:
    image, variance, _, _, _ = field(3.0, 3)
    dead = np.zeros(image.shape, bool)
    dead[[17, 100, 250], [40, 200, 9]] = True
    looked_at = searched(np.where(dead, -300, image), variance)
    found = np.zeros(image.shape, bool)
    found.flat[looked_at.unpadded(dead_pixels(looked_at))] = True
    assert (found == dead).all()


@pytest.mark.parametrize("fwhm", [1.6, 3.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_bad_columns_are_found(sign: int, fwhm: float) -> None:
    image, variance, _, _, _ = field(fwhm, 4)
    rng = np.random.default_rng(4)
    bad = np.zeros(image.shape, bool)
    for column in (20, 21, 77, 140, 222):
        bad[int(rng.integers(0, N // 2)) :, column] = True
    bad[60, :200] = True
    found = bad_lines(searched(image + sign * 30 * bad, variance))
    assert found[bad].mean() > FOUND
    # An end is known to a segment of 32 pixels.
    assert np.count_nonzero(found & ~bad) <= 7 * 32
    step = image.copy()
    step[:, N // 2 :] += 30
    assert not bad_lines(searched(step, variance)).any()
    assert not bad_lines(searched(image, variance)).any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noise", [0.0, 15.0])
@pytest.mark.parametrize("turned", [False, True])
def test_hot_and_dead_lines_are_bad_and_no_rays(seed: int, noise: float, turned: bool) -> None:
    rng = np.random.default_rng(seed)
    (image, variance, _, _, _), unit = field((1.8, 2.5, 3.5, 5.0)[seed], seed), 10.0 ** (3 * seed)
    bad = np.zeros(image.shape, bool)
    value = np.zeros(image.shape)
    for width, height in ((1, 5e3), (2, -200.0), (3, 3e2), (3, 5e4), (1, -90.0)):
        at, start = int(rng.integers(3, N - 6)), int(rng.choice([0, 100, 170]))
        here = np.s_[at : at + width, start:]
        for plane, what in ((bad, True), (value, height)):
            (plane if width % 2 else plane.T)[here] = what
    value = value + rng.normal(0, 1, image.shape) * noise
    pair = [
        Exposure.from_arrays(
            (unit * np.where(bad, value, image) if is_bad else unit * image).astype(np.float32),
            variance=unit**2 * variance,
        )
        for is_bad in ((False, True) if turned else (True, False))
    ]
    found = with_defects(*pair, DefectOptions())[turned]
    marked = masks.flagged(found.mask, ["BAD"])
    assert marked[bad].mean() > 0.99
    beside = masks.flagged(found.mask, ["BAD", "CR"]) & ~bad
    # An end is known to a segment of 32 pixels, of which it has more than a sixth.
    assert np.count_nonzero(beside) <= 10 * 27


@pytest.mark.parametrize("seed", range(3))
def test_hot_lines_beyond_a_saturation_level_are_bad_and_stars_are_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, variance, _, _, _ = field(3.0, seed)
    y, x = np.mgrid[:N, :N]
    star = 2e5 * np.exp(-0.5 * ((x - 160.3) ** 2 + (y - 150.8) ** 2) / 1.4**2)
    image = np.minimum(image + star, 3e4)
    lines = np.zeros(image.shape, bool)
    lines[:, 40:42] = lines[100:, 230] = lines[77] = True
    image[lines] = 6e4 + rng.normal(0, 20, lines.sum()) * (seed > 0)
    exposure = Exposure.from_arrays(image.astype(np.float32), variance=variance)
    mask = masks.with_plane(exposure.mask, "SAT", image >= 3e4)
    found, _ = with_defects(exposure.replaced(mask=mask), exposures()[1], DefectOptions())
    bad = masks.flagged(found.mask, ["BAD"])
    assert bad[lines].all()
    assert not bad[(image >= 3e4) & ~lines].any()


def test_sums_are_those_along_lines() -> None:
    n = 16
    plane = np.random.default_rng(5).normal(size=(n, n))
    planes = (plane, plane[::-1], plane.T, plane.T[::-1])
    for image, sums in zip(planes, line_sums(plane), strict=True):
        # Level lines are rows; the steepest ones are diagonals.
        assert sums[0, n:] == pytest.approx(image.sum(axis=1))
        diagonals = [np.trace(image, offset=-h) for h in range(n)]
        assert sums[n - 1, n:] == pytest.approx(diagonals)
        # Every pixel is on one line of each slope.
        assert sums.sum(axis=1) == pytest.approx(np.full(n, plane.sum()))


@pytest.mark.parametrize("height", [2.0, 30.0])
@pytest.mark.parametrize("width", [2.5, 6.0, 15.0])
def test_trails_are_masked(width: float, height: float) -> None:
    rng = np.random.default_rng(6)
    image, variance, _, _, _ = field(3.0, 6)
    for angle in (0.06, 0.7, 1.5, 2.4):
        ridge = trail(angle, rng.uniform(-60, 60), width, height)
        found = trail_pixels(find_trails(searched(image + ridge, variance)), image.shape)
        assert found[ridge > SIGMA].mean() > FOUND
        # To where the trail is a tenth of the noise, and a little more.
        assert np.count_nonzero(found) < 2.2 * np.count_nonzero(ridge > 0.1 * SIGMA)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("height", slow_after(1, [2.0, 6.0, 60.0]))
def test_trails_along_rows_and_columns_are_masked(height: float, turned: bool) -> None:
    profile = np.array([0.2, 0.6, 1, 1, 0.6, 0.2])
    for seed in range(3):
        image, variance, _, _, _ = field(3.0, seed)
        for shape in (profile, np.ones(6)):
            ridge = np.zeros(image.shape)
            ridge[150:156] = SIGMA * height * shape[:, None]
            ridge = ridge.T if turned else ridge
            found = trail_pixels(find_trails(searched(image + ridge, variance)), image.shape)
            assert found[ridge > 0].all()
            assert np.count_nonzero(found) <= 13 * N


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("width", slow_after(1, [1, 2, 3]))
def test_bad_rows_and_columns_are_no_trails(width: int, turned: bool) -> None:
    for seed in range(3):
        image, variance, _, _, _ = field(3.0, seed)
        for height in (2.0, 6.0, 60.0):
            bad = np.zeros(image.shape, bool)
            bad[150 : 150 + width] = True
            bad = bad.T if turned else bad
            looked_at = searched(image + SIGMA * height * bad, variance)
            assert find_trails(looked_at) == []
            assert bad_lines(looked_at)[bad].mean() > FOUND


@pytest.mark.parametrize("height", slow_after(1, [3e3, 3e4]))
def test_spikes_along_rows_and_columns_are_no_trails(height: float) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        image, variance, _, _, _ = field(rng.uniform(1.6, 5), seed)
        y, x = np.mgrid[:N, :N] - np.reshape(rng.integers(80, 240, 2), (2, 1, 1))
        width = rng.uniform(1.5, 4)
        spikes = np.exp(-(x**2) / width) + np.exp(-(y**2) / width)
        spikes *= height / np.sqrt(9 + x**2 + y**2)
        assert find_trails(searched(image + spikes, variance)) == []


def test_broken_and_ending_trails_are_masked() -> None:
    image, variance, _, _, _ = field(3.0, 7)
    x = np.arange(N)
    dashed = trail(0.4, 20, 4, 6) * (np.sin(x / 6) > -0.3)
    half = trail(2.0, 20, 4, 6) * (np.arange(N) < N // 2)[:, None]
    for ridge in (dashed, half):
        found = trail_pixels(find_trails(searched(image + ridge, variance)), image.shape)
        assert found[ridge > SIGMA].mean() > FOUND


@pytest.mark.parametrize("seed", range(6))
def test_nothing_else_is_a_trail(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, variance, _, _, _ = field(rng.uniform(1.6, 5), seed, stars=(40, 120, 300)[seed % 3])
    y, x = np.mgrid[:N, :N] - np.reshape(rng.uniform(80, 240, 2), (2, 1, 1))
    angle = rng.uniform(0, math.pi)
    along, across = (
        math.cos(angle) * x + math.sin(angle) * y,
        math.cos(angle) * y - math.sin(angle) * x,
    )
    spikes = 3e5 / (9 + x**2 + y**2) * (np.exp(-(along**2) / 4) + np.exp(-(across**2) / 4))
    edge_on = 400 * np.exp(-np.abs(along) / 15 - (across / 2.5) ** 2)
    step = 20.0 * (x > 0)
    cloud = 60 * scipy.ndimage.gaussian_filter(rng.normal(size=(N, N)), 12) * 40
    column = 50.0 * (np.rint(x) == 0)
    for more in (0 * image, spikes, edge_on, step, cloud, column):
        assert find_trails(searched(image + more, variance)) == []


def exposures(*, ridge: Array | None = None, hit: Array | None = None) -> tuple[Any, Any]:
    science, variance, truth, _, _ = field(3.0, 8, stars=120)
    template = truth + np.random.default_rng(9).normal(0, SIGMA, truth.shape)
    for more in (ridge, hit):
        science = science if more is None else science + more
    return (
        Exposure.from_arrays(science.astype(np.float32), variance=variance),
        Exposure.from_arrays(template.astype(np.float32), variance=variance),
    )


def test_who_tells_is_left_alone() -> None:
    science, template = exposures(ridge=trail(0.5, 30, 4, 8), hit=rays(8))
    first, second = with_defects(science, template, DefectOptions())
    assert {"CR", "BAD", "STREAK"} <= set(first.mask.names)
    assert second is template
    assert science.mask.names == set() or not science.mask.names
    none = DefectOptions(cosmic_rays=False, bad_pixels=False, trails=False)
    assert with_defects(science, template, none) == (science, template)
    for plane in ("CR", "STREAK"):
        told = np.zeros(science.shape, bool)
        told[5, 5] = True
        mask = masks.with_plane(science.mask, plane, told)
        again, _ = with_defects(science.replaced(mask=mask), template, DefectOptions())
        assert masks.flagged(again.mask, [plane]).sum() == 1
    empty = masks.extended(science.mask, ["CR", "INTRP", "DETECTED"])
    again, _ = with_defects(science.replaced(mask=empty), template, DefectOptions())
    assert not masks.flagged(again.mask, ["CR", "BAD"]).any()
    with pytest.raises(ArgumentError, match="trails is True, False or 'auto'; got 'yes'"):
        DefectOptions(trails="yes")  # type: ignore[arg-type]


def test_hot_pixels_of_both_are_bad() -> None:
    science, template = exposures()
    hot = np.zeros(science.shape, bool)
    hot[[50, 50, 200], [60, 61, 33]] = True
    for exposure in (science, template):
        exposure.data[hot] += 4000
    for exposure in with_defects(science, template, DefectOptions()):
        assert masks.flagged(exposure.mask, ["BAD"])[hot].all()


def test_rows_on_trails_are_artifacts_and_products_are_made_again(tmp_path: Any, run: Any) -> None:
    ridge = trail(0.5, 30, 4, 8)
    science, template = exposures(ridge=ridge)
    paths = [str(tmp_path / f"{name}.fits") for name in ("science", "template", "one", "two")]
    for exposure, path in zip((science, template), paths, strict=False):
        write_exposure(exposure, path)
    status, _, told = run("subtract", *paths[:2], "--output", paths[2])
    assert status == 0, told
    status, _, told = run("subtract", *paths[:2], "--output", paths[3], "--kernel", paths[2])
    assert status == 0, told
    one, two = (read_exposure(path) for path in paths[2:])
    assert np.array_equal(one.data, two.data, equal_nan=True)
    assert np.array_equal(one.mask.bits, two.mask.bits)
    on_trail = masks.flagged(one.mask, ["STREAK"])
    assert on_trail[ridge > SIGMA].mean() > FOUND
    rows = detect(one)
    at = on_trail[np.rint(rows["y"].value).astype(int), np.rint(rows["x"].value).astype(int)]
    assert at.sum() > 0
    assert rows["flag_streak"][at].all()
    assert (rows["classification"][at] == "artifact").all()
    status, _, told = run(
        "subtract", *paths[:2], "--output", paths[3], "--overwrite", "--no-trails"
    )
    assert status == 0, told
    assert "STREAK" not in read_exposure(paths[3]).mask.names


@pytest.mark.parametrize("stars", [0, 1, 6, 9])
def test_few_stars_are_enough(stars: int) -> None:
    image, variance, _, x, y = field(3.0, 11, stars=stars, galaxies=0)
    hit = rays(11)
    found = sharp(image + hit, variance)
    assert found[hit > 10 * np.sqrt(variance)].mean() > 0.9
    assert not cores(x, y, found)[~cores(x, y, hit > 0)].any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("huge", [1e39, 1e60, np.inf])
def test_variances_beyond_single_precision_are_no_measurement(huge: float) -> None:
    image, variance, *_ = field(3.5, 1)
    unknown = np.random.default_rng(1).random(image.shape) < 0.01
    spoilt = np.where(unknown, huge, variance.astype(np.float64))
    looked_at = surface(image.astype(np.float32), spoilt, np.zeros(image.shape, bool))
    assert looked_at.factor == pytest.approx(searched(image, variance).factor, rel=0.02)
