"""Saturated stars in detection scores.

Claims: what a saturated star that the two images do not share puts into a score beyond its own
pixels is marked, as far as it is more than the noise, whatever the sign; the number of marked
pixels does not grow with the frame; where nothing is lost nothing is marked; a catalogue of a score
has no row around saturated stars that the difference's own has not, and none is unflagged.
"""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from scipy.ndimage import distance_transform_edt

from scenes import command
from whitediff.detection.catalog import SPOILING_FLAGS
from whitediff.numerics.distrust import distrusted_by_value


def moffat(half, fwhm, shift=(0.0, 0.0)):
    grid = np.arange(-half, half + 1)
    alpha = fwhm / 2 / np.sqrt(2 ** (1 / 3.5) - 1)
    square = (grid[:, None] - shift[0]) ** 2 + (grid - shift[1]) ** 2
    image = (1 + square / alpha**2) ** -3.5
    return image / image.sum()


@pytest.mark.parametrize("sign", [1, -1])
def test_what_the_wings_carry_is_marked(sign):
    psf, kernel = moffat(25, 4.0, (0.3, -0.2)), np.zeros((7, 7))
    kernel[3, 3], kernel[2, 4], kernel[5, 3] = 1.0, -0.2, 0.1
    lost = np.zeros((160, 150), bool)
    lost[60:65, 70:75] = True
    # Light that a clipped core lacks, and what correlation with the PSF and the filter make of it.
    image = np.zeros(lost.shape)
    for row, column in np.argwhere(lost):
        part = np.s_[row - 25 : row + 26, column - 25 : column + 26]
        image[part] += sign * 4e3 * psf[::-1, ::-1]
    after = np.zeros(lost.shape)
    for dy, dx in np.argwhere(kernel):
        after += kernel[dy, dx] * np.roll(image, (dy - 3, dx - 3), (0, 1))
    near = np.abs(image) > 0.02 * np.abs(image).max()
    marked = distrusted_by_value(kernel, image, near, sigma=2.0, spread=psf)
    wrong = np.abs(after) > 0.5 * 2.0
    assert wrong[~near].any()
    assert marked[wrong].all()
    # Of heavy wings, twice as much: where one is at half the noise the other is at a quarter.
    assert not marked[np.abs(after) < 0.2 * 0.5 * 2.0].any()
    assert not distrusted_by_value(kernel, image, near & False, sigma=2.0, spread=psf).any()


def test_missing_values_and_noise_are_no_error(rng):
    image = rng.normal(size=(60, 50))
    image[20, 20] = np.nan
    lost = np.zeros(image.shape, bool)
    lost[18:23, 18:23] = True
    image[lost & np.isfinite(image)] = 0.5
    psf = moffat(25, 4.0)
    # The spread is larger than the image.
    assert not distrusted_by_value(np.ones((1, 1)), image, lost, sigma=1.0, spread=psf).any()
    image[19, 19] = 1e5
    assert distrusted_by_value(np.ones((1, 1)), image, lost, sigma=1.0, spread=psf)[25, 25]


def clipped(rng, shape, fwhm, sources, sky, level):
    image, half = np.full(shape, sky), 60
    padded = np.pad(image, half)
    for x, y, flux in sources:
        row, column = round(y), round(x)
        part = np.s_[row : row + 2 * half + 1, column : column + 2 * half + 1]
        padded[part] += flux * moffat(half, fwhm, (y - row, x - column))
    image = padded[half:-half, half:-half]
    image = rng.poisson(2 * image) / 2 + rng.normal(size=shape) * 2.5
    return np.minimum(image, level).astype(np.float32)


@pytest.mark.parametrize(
    ("number", "seed"), [(3, 1), pytest.param(12, 2, marks=pytest.mark.slow)], ids=("3", "12")
)
@pytest.mark.parametrize("sharper", ["template", pytest.param("science", marks=pytest.mark.slow)])
def test_no_rows_around_saturated_stars(tmp_path, number, seed, sharper):
    rng, shape = np.random.default_rng(seed), (320, 330)
    widths = (3.7, 3.0) if sharper == "template" else (3.0, 3.7)
    places = rng.uniform(0, (shape[1] - 1, shape[0] - 1), (120, 2))
    flux = np.minimum(3000 / rng.uniform(size=120), 2e5)
    places[:number], flux[:number] = rng.uniform(50, 270, (number, 2)), 2e6
    sources = np.column_stack([places, flux])
    images = [
        clipped(rng, shape, width, sources, sky, level)
        for width, sky, level in zip(widths, (450.0, 150.0), (20000.0, 30000.0), strict=True)
    ]
    for name, image, level in zip(("science", "template"), images, (2e4, 3e4), strict=True):
        header = fits.Header({"GAIN": 2.0, "RDNOISE": 5.0, "SATURATE": level})
        fits.writeto(tmp_path / f"{name}.fits", image, header)
    code, _, messages = command(
        "subtract", tmp_path / "science.fits", tmp_path / "template.fits", "--output",
        tmp_path / "d.fits", "--score-output", tmp_path / "s.fits", "--catalog",
        tmp_path / "s.ecsv", "--convolved", "template",
    )  # fmt: skip
    assert code == 0, messages
    code, _, messages = command("detect", tmp_path / "d.fits", "--output", tmp_path / "d.ecsv")
    assert code == 0, messages
    full = (images[0] >= 2e4) | (images[1] >= 3e4)
    distance = distance_transform_edt(~full)
    rows = {name: Table.read(tmp_path / f"{name}.ecsv") for name in "sd"}
    spoiled = np.any([rows["s"][flag] for flag in SPOILING_FLAGS], axis=0)
    assert spoiled.all()
    ring = {}
    for name, table in rows.items():
        at = np.clip(np.rint(np.array([table["y"], table["x"]])).astype(int), 0, 319)
        # Beyond the cores' own neighbourhood, within the reach of the PSF's wings.
        away = distance[at[0], at[1]]
        ring[name] = int(((away > 6) & (away < 30)).sum())
    assert ring["s"] <= ring["d"] + 1
