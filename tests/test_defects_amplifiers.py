"""Claims: jumps of the level between amplifiers are found to the pixel, whatever their number, size
and unit, and taken off to 0.15 of the noise; of stars, bad lines, trails, bleeding charge, clouds
and gradients nothing is taken for one; a variance that was computed with an offset becomes that of
the noise, and a right one stays."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from marks import slow_after
from whitediff.defects.amplifiers import amplifier_levels
from whitediff.defects.surface import surface

SHAPE = (512, 480)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]]
NOISE = 20.0


def stars(rng, number=150):
    image = np.zeros(SHAPE)
    for cy, cx, flux in zip(
        *(rng.uniform(0, n, number) for n in SHAPE),
        10 ** rng.uniform(2.5, 5.5, number),
        strict=True,
    ):
        near = np.s_[max(0, int(cy) - 60) : int(cy) + 60, max(0, int(cx) - 60) : int(cx) + 60]
        square = (Y[near] - cy) ** 2 + (X[near] - cx) ** 2
        image[near] += flux * 0.5 / (np.pi * 4) * (1 + square / 4) ** -2.5
    return image


def found_in(image, noise=NOISE):
    bad = ~np.isfinite(image)
    image = image.astype(np.float32)
    # A variance that is wrong by a factor.
    variance = np.full(SHAPE, 2 * noise**2, np.float32)
    return image, amplifier_levels(image, surface(image, variance, bad), bad)


CUTS = {
    "halves": ([], [240]),
    "quarters": ([256], [240]),
    "eight": ([256], [120, 240, 360]),
    "uneven": ([100, 333], [351]),
}


HEIGHTS = [(1.0, 1.0), (4.0, 1.0), (60.0, 1.0), (1.0, 1e-18), (4.0, 1e6)]


@pytest.mark.parametrize(
    ("height", "unit", "cuts"),
    slow_after(1, ((*each, cuts) for cuts in CUTS for each in HEIGHTS)),
)
def test_jumps_are_found_and_taken_off(cuts, height, unit):
    rows, columns = CUTS[cuts]
    for seed in range(8):
        rng = np.random.default_rng(seed)
        sky = 400 + 0.2 * X + 3e-4 * (Y - 200) ** 2
        sign = rng.permuted(np.resize([-1.0, 1.0], (len(rows) + 1) * (len(columns) + 1)))
        # Neighbours are at least half of the height apart.
        level = height * NOISE * (sign + np.linspace(-0.4, 0.4, sign.size))
        level = level.reshape(len(rows) + 1, len(columns) + 1)
        extra = level[np.searchsorted(rows, Y, "right"), np.searchsorted(columns, X, "right")]
        image = stars(rng) + sky + extra + rng.normal(0, NOISE, SHAPE)
        image[rng.random(SHAPE) < 0.01] = np.nan
        image[:, 77] = 6e4
        image[200:202] = image[:, 300] = np.nan
        image, found = found_in(unit * image, unit * NOISE)
        # Where what is on both sides happens to differ by little, there may be nothing to find.
        missed = 0.0
        for axis, at, true in ((0, found.rows, rows), (1, found.columns, columns)):
            sizes = np.abs(np.diff(level, axis=axis)).max(axis=1 - axis)
            assert set(at) <= set(true)
            lost = [size for place, size in zip(true, sizes, strict=True) if place not in at]
            assert not lost or max(lost) < NOISE
            missed += sum(lost)
        left = -found.taken_off(np.zeros(SHAPE)) / unit - extra
        left -= left.mean()
        # Heights have errors of 1.25 · 0.41 σ / √(length of the side), up to three of them.
        assert np.abs(left).max() < 0.15 * NOISE + missed / 2


SIDES = np.s_[:240], np.s_[240:]


@pytest.mark.parametrize("unit", slow_after(1, [1.0, 1e-18, 1e10]))
def test_each_amplifier_has_the_variance_that_it_has(unit):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        light = stars(rng) + 300
        offset = np.where(X < 240, 0.0, 90.0) + np.where(Y < 256, -40.0, 0.0)
        true = light + 25.0
        image = light + offset + np.sqrt(true) * rng.normal(0, 1, SHAPE)
        none = np.zeros(SHAPE, bool)
        for told, factor in ((light + offset + 25.0, 1.0), (true, 1.0), (true, 3.0)):
            planes = (unit * image).astype(np.float32), (factor * unit**2 * told).astype(np.float32)
            if unit == 1e-18:
                # What single precision holds.
                planes = unit * image, factor * unit**2 * told
            found = amplifier_levels(planes[0], surface(*planes, none), none)
            ratio = found.scaled(planes[1]) / (unit**2 * true)
            halves = (part[:, side] for part in (ratio[:256], ratio[256:]) for side in SIDES)
            medians = np.array([np.median(part) for part in halves])
            # Four errors of a scatter of 60 000 pixels.
            assert medians / medians.mean() == pytest.approx(1, abs=0.03)
            if told is true:
                assert found.scaled(planes[1]) is planes[1]


def plain(rng):
    return stars(rng) + 400


def bad_lines(rng):
    image = stars(rng) + 400
    for place in rng.integers(0, 480, 6):
        image[:, place : place + rng.integers(1, 4)] += rng.choice([-300.0, 300.0, 5e4])
        image[place, : rng.integers(100, 480)] -= 200
    return image


def trails(rng):
    along = rng.uniform(50, 430)
    slope = rng.choice([0.0, 0.0, 0.02, 0.3])
    width = rng.uniform(1.5, 6)
    first, second = (Y, X) if rng.random() < 0.5 else (X, Y)
    trail = 80 * np.exp(-0.5 * ((first - along - slope * second) / width) ** 2)
    return stars(rng) + 400 + trail


def saturated(rng):
    image = stars(rng) + 400
    for cx, cy in rng.integers(60, 400, (5, 2)):
        image += 3e5 * (1 + ((X - cx) ** 2 + (Y - cy) ** 2) / 9) ** -1.5
        image[max(0, cy - 150) : cy + 150, cx - 2 : cx + 3] = 6e4
    return np.minimum(image, 6e4)


def spikes(rng):
    image = stars(rng) + 400
    cx, cy = rng.integers(150, 330, 2)
    for along, across in ((X - cx, Y - cy), (Y - cy, X - cx)):
        image += 4000 / (1 + np.abs(along) / 20) * np.exp(-0.5 * (across / 2) ** 2)
    return image


def nebula(rng):
    white = rng.normal(0, 1, SHAPE)
    smooth = sum(s * scipy.ndimage.gaussian_filter(white, s) * s for s in (4, 12, 40))
    return stars(rng) + 400 + 3 * NOISE * smooth / smooth.std()


def large_galaxy(rng):
    radius = np.hypot((X - 250) / 1.6, Y - 240)
    return stars(rng) + 400 + 4000 * np.exp(-radius / 35) + 300 * (radius < 3)


def galaxy_with_a_lane(rng):
    lane = 1 - 0.8 * (np.abs(Y - 240 - 0.01 * X) < 6)
    return stars(rng) + 400 + 3000 * np.exp(-np.hypot((X - 250) / 4, Y - 240) / 30) * lane


def fringes(rng):
    return stars(rng) + 400 + 20 * np.sin((X + 0.3 * Y) / rng.uniform(4, 9))


def gradient(rng):
    return stars(rng) + 400 + 5.0 * X + 1e-2 * (Y - 250) ** 2


def vignetted(rng):
    return (stars(rng) + 400) * (1 - 0.5 * ((X - 240) ** 2 + (Y - 256) ** 2) / 350**2)


def shadow(rng):
    return stars(rng) + 400 - 40 * (np.hypot(X - 200, Y - 300) < 90)


def lane(rng):
    fine = np.full((SHAPE[0], 4 * SHAPE[1]), 250.0)
    start = rng.integers(400, 1400)
    fine[:, start : start + rng.integers(60, 240)] = 30
    fine = scipy.ndimage.gaussian_filter1d(fine, 4 * rng.uniform(2, 5) / 2.3548, axis=1)
    return stars(rng) + fine.reshape(SHAPE[0], SHAPE[1], 4).mean(axis=2)


def bright_edge(rng):
    fine = np.where(np.arange(4 * SHAPE[0]) < rng.integers(600, 1400), 300.0, 500.0)
    fine = scipy.ndimage.gaussian_filter1d(fine, 4 * rng.uniform(2, 5) / 2.3548)
    return stars(rng) + fine.reshape(SHAPE[0], 4).mean(axis=1)[:, None]


NO_JUMPS = [
    *(plain, bad_lines, trails, saturated, spikes, nebula, large_galaxy),
    *(galaxy_with_a_lane, fringes, gradient, vignetted, shadow, lane, bright_edge),
]


@pytest.mark.parametrize(
    ("kind", "seeds"),
    slow_after(len(NO_JUMPS), ((kind, n) for n in (range(2), range(2, 14)) for kind in NO_JUMPS)),
)
def test_nothing_else_is_taken_for_a_jump(kind, seeds):
    for seed in seeds:
        rng = np.random.default_rng(seed)
        found = found_in(kind(rng) + rng.normal(0, NOISE, SHAPE))[1]
        assert found is None, (seed, found)


def test_correlated_noise_has_no_jumps():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        noise = scipy.ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 1.2)
        assert found_in(plain(rng) + NOISE * noise / noise.std())[1] is None


@pytest.mark.parametrize("seed", range(4))
def test_frames_of_any_size_and_holes_are_looked_at(seed):
    rng = np.random.default_rng(seed)
    for shape in ((20, 30), (64, 200), (70, 70), (130, 90), (300, 40), (256, 256)):
        for level in (0.0, 1e9):
            image = rng.normal(level, NOISE, shape).astype(np.float32)
            places = np.cumsum(rng.integers(9, 60, 6))
            for place in places:
                image[place:] += 200
                image[:, place:] -= 100
            image[rng.random(shape) < 0.1] = np.nan
            image[5 : 5 + rng.integers(30)] = np.nan
            image[:, -rng.integers(1, 12) :] = 7.0
            bad = ~np.isfinite(image)
            variance = np.full(shape, NOISE**2, np.float32)
            found = amplifier_levels(image, surface(image, variance, bad), bad)
            if found is not None:
                assert np.isfinite(found.level).all()
                assert np.isfinite(found.noise).all()
                assert list(found.rows) == sorted(set(found.rows))
