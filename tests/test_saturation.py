"""Saturated stars that no header tells of.

Claims: a plateau that the highest pixels share is found exactly, in floats and integers, any unit,
with a cosmic ray above it; nothing is found where highest pixels are equal by chance, in images
without saturation, cut for display, of extended flat sources, or too small; bad columns and rows
of one value are no plateau, and stars that bleed no columns; trails grow from cores along the axis
that the detector bleeds along, and along neither for round stars and spikes; inputs stay as they
are.
"""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from whitediff.defects.saturation import bleed_trails, find_plateau, in_lines
from whitediff.errors import ArgumentError
from whitediff.exposures import masks
from whitediff.formats import ReadingOptions, read_exposure

SIGMA = 8.0


def stars(rng, shape, positions, fluxes, *, width=1.9, sky=120.0, gain=2.0):
    """Noisy stars, before the detector saturates."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    light = np.zeros(shape)
    for (at_x, at_y), flux in zip(positions, fluxes, strict=True):
        profile = np.exp(-0.5 * ((x - at_x) ** 2 + (y - at_y) ** 2) / width**2)
        light += flux * profile / (2 * np.pi * width**2)
    return sky + light + rng.normal(size=shape) * np.sqrt(SIGMA**2 + light / gain)


def field(rng, shape=(180, 220), n_bright=2, **options):
    """Faint stars, and some whose peaks are far above 60000."""
    positions = [(rng.uniform(9, shape[1] - 9), rng.uniform(9, shape[0] - 9)) for _ in range(30)]
    fluxes = list(10 ** rng.uniform(3, 5, 30))
    bright = [(60.3, 70.8), (150.2, 101.4), (111.7, 30.2)][:n_bright]
    return stars(rng, shape, positions + bright, fluxes + [4e6] * n_bright, **options)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16])
@pytest.mark.parametrize("n_bright", [1, 3])
def test_a_plateau_is_found(seed, dtype, n_bright):
    image = field(np.random.default_rng(seed), n_bright=n_bright)
    truth = image >= 60000
    image = np.minimum(image, 60000).astype(dtype)
    image.flags.writeable = False
    found = find_plateau(image)
    assert found is not None
    np.testing.assert_array_equal(image >= found.level, truth)
    assert found.pixels == truth.sum() > 8 * n_bright


@pytest.mark.parametrize("unit", [1e-18, 1e-9, 1.0, 1e12])
def test_in_any_unit_and_within_rounding(rng, unit):
    image = field(rng)
    truth = image >= 60000
    image = np.minimum(image, 60000)
    # Half a part in a million, as scaling to integers and back leaves it.
    image[truth] *= 1 - 5e-7 * rng.random(truth.sum())
    found = find_plateau((unit * image).astype(np.float32))
    assert found is not None
    np.testing.assert_array_equal(unit * image >= found.level * (1 - 2e-7), truth)


def test_cosmic_rays_above_and_masked_pixels(rng):
    image = field(rng)
    truth = image >= 60000
    image = np.minimum(image, 60000.0)
    image[5, 7], image[150, 20] = 65000.0, 61000.0
    found = find_plateau(image)
    assert found is not None
    assert found.level == 60000
    assert find_plateau(image, truth) is None
    image[truth] = np.nan
    assert find_plateau(image) is None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.int32])
@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0])
def test_none_without_saturation(seed, dtype, scale):
    rng = np.random.default_rng(seed)
    image = scale * field(rng, n_bright=0, width=[1.2, 1.9, 5.0][seed % 3])
    assert find_plateau(image.astype(dtype)) is None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mean", [0.2, 3.0, 200.0])
def test_none_among_photons_that_are_counted(seed, mean):
    rng = np.random.default_rng(seed)
    image = rng.poisson(mean, (150, 170))
    image[40:43, 50:53] += rng.poisson(30 * mean, (3, 3))
    assert find_plateau(image.astype(np.float32)) is None


@pytest.mark.parametrize("percentile", [(0.5, 99.5), (1.0, 99.0), (0.1, 99.9)])
@pytest.mark.parametrize("levels", [None, 255])
def test_none_in_images_cut_for_display(rng, percentile, levels):
    image = field(rng)
    low, high = np.percentile(image, percentile)
    image = (np.clip(image, low, high) - low) / (high - low)
    if levels:
        image = np.round(levels * image)
    assert find_plateau(image) is None


def test_none_where_equal_pixels_lie_apart_or_are_few(rng):
    image = field(rng, n_bright=0)
    apart = image.copy()
    apart[10::31, 12::37] = 60000
    assert find_plateau(apart) is None
    few = image.copy()
    few[50, 60:64] = 60000
    assert find_plateau(few) is None


def test_none_in_small_or_noiseless_frames(rng):
    image = np.minimum(field(rng), 60000)
    assert find_plateau(image[55:85, 45:75]) is None
    assert find_plateau(np.zeros((100, 100))) is None
    assert find_plateau(np.full((100, 100), np.nan)) is None
    ones = np.zeros((100, 100))
    ones[40:50, 40:50] = 60000
    assert find_plateau(ones) is None


def bleeding(rng, fraction=1.0, lengths=((50, 40), (20, 60))):
    """Saturated stars with trails along columns, and where the trails are."""
    image = field(rng)
    saturated = image >= 60000
    image = np.minimum(image, 60000)
    trails = np.zeros(image.shape, bool)
    for (x, y), (up, down) in zip([(60, 71), (150, 101)], lengths, strict=True):
        trails[max(0, y - down) : y + up + 1, x - 1 : x + 2] = True
    image[trails] = np.maximum(image[trails], fraction * 60000)
    return image, image >= 60000 if fraction == 1 else saturated, trails & ~saturated


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("fraction", [0.9, 0.3, 0.05])
def test_trails_are_grown_along_the_axis_of_bleeding(seed, transposed, fraction):
    image, saturated, trails = bleeding(np.random.default_rng(seed), fraction)
    if transposed:
        image, saturated, trails = image.T, saturated.T, trails.T
    image.flags.writeable = saturated.flags.writeable = False
    found = bleed_trails(image, saturated, least=0.01)
    outside_the_stars = trails & (image < 60000)
    y, x = (a.T if transposed else a for a in np.mgrid[:180, :220])
    far = np.minimum(np.hypot(x - 60, y - 71), np.hypot(x - 150, y - 101)) > 9
    assert found[outside_the_stars & far].all()
    # A star that a trail crosses is counted with it: at most the five columns of the trail and its
    # neighbours, over three widths of the star on either side.
    assert np.count_nonzero(found & ~trails & far) <= 2 * 6 * 1.9


@pytest.mark.parametrize("seed", range(5))
def test_round_stars_have_no_trails(seed):
    image = field(np.random.default_rng(seed), n_bright=3)
    saturated = image >= 60000
    found = bleed_trails(np.minimum(image, 60000), saturated, least=0.01)
    assert np.count_nonzero(found) < 0.1 * saturated.sum()


def test_spikes_of_diffraction_are_no_trails(rng):
    image = field(rng)
    y, x = np.mgrid[:180, :220]
    for at_x, at_y in [(60.3, 70.8), (150.2, 101.4)]:
        for along, across in ((x - at_x, y - at_y), (y - at_y, x - at_x)):
            image += 2e4 * np.exp(-np.abs(along) / 25 - 0.5 * (across / 1.2) ** 2)
    saturated = image >= 60000
    found = bleed_trails(np.minimum(image, 60000), saturated, least=0.01)
    assert np.count_nonzero(found) < 0.1 * saturated.sum()


def test_whole_trails_of_the_plateau_are_saturated_themselves(rng):
    image, saturated, _ = bleeding(rng)
    found = find_plateau(image)
    assert found is not None
    np.testing.assert_array_equal(image >= found.level, saturated)
    assert np.count_nonzero(bleed_trails(image, saturated, least=0.01)) < 0.05 * saturated.sum()


def test_nothing_saturated_or_nothing_known(rng):
    image = field(rng)
    none = np.zeros(image.shape, bool)
    assert not bleed_trails(image, none).any()
    assert not bleed_trails(image, ~none).any()
    assert not bleed_trails(np.full(image.shape, np.nan), ~none).any()


def test_a_level_below_the_sky_is_a_wrong_one(tmp_path, caplog):
    rng = np.random.default_rng(3)
    image = rng.normal(4000, 30, (200, 210)).astype(np.float32)
    image[50:53, 60:63] = rng.uniform(29000, 31000, (3, 3))
    caplog.set_level("INFO", logger="whitediff")
    for saturate, expected in ((2500.0, 0), (25000.0, 9)):
        caplog.clear()
        path = tmp_path / f"{saturate:g}.fits"
        fits.writeto(path, image, fits.Header({"SATURATE": saturate}))
        exposure = read_exposure(path, options=ReadingOptions(variance=900.0))
        assert int(masks.flagged(exposure.mask, ["SAT"]).sum()) == expected
        assert ("is of another unit or wrong" in caplog.text) == (expected == 0)


def written(path, image, weight, header=None):
    hdus = [
        fits.PrimaryHDU(),
        fits.ImageHDU(image.astype(np.float32), header, name="SCI"),
        fits.ImageHDU(weight.astype(np.float32), name="WHT"),
    ]
    fits.HDUList(hdus).writeto(path)
    return path


@pytest.mark.parametrize("value", [60000.0, 65535.0, 1e6])
@pytest.mark.parametrize("saturate", [None, 50000.0])
@pytest.mark.parametrize("shape", [(3, 3), (60, 2), (40, 40)])
def test_pixels_without_weight_are_no_plateau(rng, tmp_path, caplog, value, saturate, shape):
    image = field(rng, n_bright=0)
    image = np.minimum(image, 30000)
    weight = np.full(image.shape, 1 / SIGMA**2)
    hole = np.s_[100 : 100 + shape[0], 20 : 20 + shape[1]]
    image[hole], weight[hole] = value, 0
    header = None if saturate is None else fits.Header({"SATURATE": saturate})
    exposure = read_exposure(written(tmp_path / "a.fits", image, weight, header))
    # What two of the stars share is none: eight pixels of one do.
    stars = masks.flagged(exposure.mask, ["SAT"])
    assert not stars[hole].any()
    assert not stars[image < 30000].any()
    assert f"{value:g}" not in caplog.text
    assert masks.flagged(exposure.mask, ["NO_DATA"])[hole].all()


@pytest.mark.parametrize("saturate", [None, 59000.0])
@pytest.mark.parametrize("garbage", [False, True])
def test_stars_without_weight_in_their_cores_are_saturated(rng, tmp_path, saturate, garbage):
    image = np.minimum(field(rng), 60000)
    truth = image >= 60000
    weight = np.where(truth, 0, 1 / SIGMA**2)
    if garbage:
        image[150:156, 10:16], weight[150:156, 10:16] = 1e6, 0
    header = None if saturate is None else fits.Header({"SATURATE": saturate})
    exposure = read_exposure(written(tmp_path / "a.fits", image, weight, header))
    saturated = masks.flagged(exposure.mask, ["SAT"])
    assert saturated[truth].all()
    assert not saturated[150:156, 10:16].any()


def test_a_level_in_the_sky_is_refused(rng, tmp_path):
    fits.writeto(tmp_path / "a.fits", field(rng).astype(np.float32))
    for level in (1.0, 119.0):
        with pytest.raises(
            ArgumentError, match=rf"a\.fits: \d+% .* level that is given, {level:g};"
        ):
            read_exposure(tmp_path / "a.fits", options=ReadingOptions(saturation=level))
    read_exposure(tmp_path / "a.fits", options=ReadingOptions(saturation=200.0))


@pytest.mark.parametrize("border", [12, 25])
@pytest.mark.parametrize("sentinel", [1e30, -1e30])
@pytest.mark.parametrize("card", [{}, {"SATURATE": 60000.0}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sentinels_are_not_saturated(rng, tmp_path, caplog, border, sentinel, card, dtype):
    image = np.minimum(field(rng), 60000)
    edge = np.ones(image.shape, bool)
    edge[border:-border, border:-border] = False
    truth = (image >= 60000) & ~edge
    image[edge] = sentinel
    fits.writeto(tmp_path / "a.fits", image.astype(dtype), fits.Header(card))
    with caplog.at_level("INFO"):
        exposure = read_exposure(tmp_path / "a.fits")
    assert truth.any()
    np.testing.assert_array_equal(masks.flagged(exposure.mask, ["SAT"]), truth)
    assert masks.flagged(exposure.mask, ["NO_DATA"])[edge].all()
    assert not [text for text in caplog.messages if "saturated" in text and "1e+30" in text]


def with_lines(rng, image, value, *, turned, half, number=3):
    """Image with lines of one value, 1 to 3 wide, and where they are."""
    lines = np.zeros(image.shape, bool)
    view = lines.T if turned else lines
    for at in rng.choice(np.arange(4, view.shape[1] - 8, 9), number, replace=False):
        start = int(rng.integers(20, 120)) if half else 0
        view[start:, at : at + rng.integers(1, 4)] = True
    return np.where(lines, value, image), lines


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("value", [5e4, 6.5e4])
@pytest.mark.parametrize("n_bright", [0, 2])
@pytest.mark.parametrize("unit", [1.0, 1e-9])
def test_bad_columns_and_rows_are_no_plateau(seed, turned, half, value, n_bright, unit):
    rng = np.random.default_rng(seed)
    image = np.minimum(field(rng, n_bright=n_bright), 40000 if n_bright else 1e9)
    image, lines = with_lines(rng, image, value, turned=turned, half=half)
    truth = (image >= 40000) & ~lines if n_bright else np.zeros(image.shape, bool)
    image = (unit * image).astype(np.float32)
    found = find_plateau(image)
    assert (found is not None) == bool(n_bright)
    if found is not None:
        assert found.level == pytest.approx(unit * 40000, rel=1e-6)
        np.testing.assert_array_equal(found.where, truth)
    np.testing.assert_array_equal(in_lines(image, lines), lines)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("width", [0.7, 1.2, 1.9, 3.0])
@pytest.mark.parametrize("length", [4, 12, 40])
def test_stars_that_bleed_are_no_columns(seed, transposed, width, length):
    rng = np.random.default_rng(seed)
    image = field(rng, width=width, n_bright=0)
    x, y = rng.uniform(60, 120, 2)
    # The more a star bleeds, the more light it has.
    flux = length * 60000 * max(1.0, 2 * width)
    image += stars(rng, image.shape, [(x, y)], [flux], width=width, sky=0)
    image[round(y) - length : round(y) + length, round(x)] = 60000
    image = np.minimum(image, 60000)
    image = image.T if transposed else image
    pixels = image >= 60000
    assert not in_lines(image, pixels).any()
    found = find_plateau(image)
    assert found is not None
    np.testing.assert_array_equal(found.where, pixels)
