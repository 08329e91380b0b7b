"""Templates with finer pixels, and such as lie between the pixels.

Claims: of a template with pixels half as large, ``--align`` averages what a pixel covers, says so,
and the file tells, so that ``--kernel`` makes the same again: the depth is that which the
photons allow, the kernel's sum right and no row of the catalogue unflagged; ``align`` chooses
alike; a template that lies between the pixels by any fraction, with
stars of 2.2 to 5 pixels, leaves no such row either, whichever image is the sharper.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from grids import sky_header
from scenes import command
from whitediff.detection.catalog import SPOILING_FLAGS
from whitediff.evaluation.simulation import PsfModel

SHAPE = (240, 250)
SKY = 450.0
NOISE = 5.5
"""Standard deviations: of the 36 fields here noise alone brings one or two peaks beyond 5, and
beyond this one in a tenth of all runs."""
WINGS = 0.01
"""Of a Moffat profile's light beyond a kernel's stamp, which its sum lacks."""


def photographed(rng, shape, fwhm, x, y, flux, sky):
    psf = PsfModel(sigma=fwhm / 2.3548, frame=shape, profile="moffat", beta=3.5, integrated=True)
    half, image = 60, np.zeros((shape[0] + 120, shape[1] + 120))
    for x0, y0, total in zip(x, y, flux, strict=True):
        row, column = int(np.floor(y0 + 0.5)), int(np.floor(x0 + 0.5))
        stamp = psf.stamp(x0, y0, size=2 * half + 1)
        image[row : row + 2 * half + 1, column : column + 2 * half + 1] += total * stamp
    image = image[half:-half, half:-half] + sky
    return (rng.poisson(2 * image) / 2 + rng.normal(size=shape) * 2.5).astype(np.float32)


def pair(directory, *, scale=1.0, shift=(0.0, 0.0), fwhm=(3.7, 3.0), seed=1, stars=90):
    """Write two images of the same stars; pixels of the template are `scale` times as large."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(0, (SHAPE[1] - 1, SHAPE[0] - 1), (stars, 2))
    flux = np.minimum(3000 / rng.uniform(size=stars), 3e5)
    size = tuple(round(n / scale) for n in SHAPE)
    headers = sky_header(SHAPE), sky_header(size, scale=0.25 * scale, shift=shift)
    moved = [
        (places[:, i] - (SHAPE[1 - i] - 1) / 2) / scale + (size[1 - i] - 1) / 2 + shift[i]
        for i in (0, 1)
    ]
    for name, header, shape, (x, y), width, sky in (
        ("science", headers[0], SHAPE, places.T, fwhm[0], SKY),
        ("template", headers[1], size, moved, fwhm[1] / scale, SKY * scale**2),
    ):
        header.update({"GAIN": 2.0, "RDNOISE": 5.0 if name == "science" else 5.0 * scale})
        noisy = photographed(rng, shape, width, x, y, flux, sky)
        fits.writeto(directory / f"{name}.fits", noisy, header, overwrite=True)
    return directory / "science.fits", directory / "template.fits"


def subtracted(directory, *options):
    code, _, messages = command(
        "subtract", directory / "science.fits", directory / "template.fits", "--output",
        directory / "d.fits", "--catalog", directory / "d.ecsv", "--align", "--overwrite", *options,
    )  # fmt: skip
    assert code == 0, messages
    rows = Table.read(directory / "d.ecsv")
    flags = [np.asarray(rows[flag], bool) for flag in SPOILING_FLAGS]
    total, error = map(float, re.search(r"kernel sum (\S+) ± ([\d.]+\d)", messages).groups())
    real = np.abs(np.asarray(rows["significance"])) > NOISE
    return int((real & ~np.any(flags, axis=0)).sum()), (total, error), messages


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 7))]
)
def test_half_pixels_are_averaged(tmp_path, seed):
    pair(tmp_path, scale=0.5, seed=seed)
    unflagged, (total, error), messages = subtracted(tmp_path)
    assert "resampled (adaptive)" in messages
    header = fits.getheader(tmp_path / "d.fits")
    assert header["WDALIGN"] == "adaptive"
    assert unflagged == 0
    assert abs(total - 1) < 3 * error + WINGS
    # Both images have the same photons; the bound of Zackay, Ofek & Gal-Yam (2016), which no
    # filter passes: the Gaussian's blur and the measured PSF's errors cost less than a tenth.
    assert 0.95 < header["WDDEPTH"] / best_depth(3.7, 3.0, SKY / 2 + 6.25) < 1.1


def best_depth(first, second, variance):
    """Flux of 5 standard deviations on the best difference of two images of equal noise."""
    one, two = (
        np.abs(
            np.fft.fft2(
                PsfModel(
                    sigma=fwhm / 2.3548, frame=SHAPE, profile="moffat", beta=3.5, integrated=True
                ).stamp(50.0, 50.0, size=129)
            )
        )
        ** 2
        for fwhm in (first, second)
    )
    return 5 * np.sqrt(variance / (one * two / (one + two)).mean())


@pytest.mark.slow
def test_it_is_told_and_made_again(tmp_path):
    science, template = pair(tmp_path, scale=0.5)
    subtracted(tmp_path)
    code, _, messages = command(
        "subtract", science, template, "--kernel", tmp_path / "d.fits", "--output",
        tmp_path / "again.fits",
    )  # fmt: skip
    assert code == 0, messages
    assert "aligned as before (adaptive)" in messages
    first, again = (fits.getdata(tmp_path / name, "IMAGE") for name in ("d.fits", "again.fits"))
    assert np.array_equal(first, again, equal_nan=True)
    code, _, messages = command("align", template, "--to", science, "--output", tmp_path / "a.fits")
    assert code == 0, messages
    assert fits.getheader(tmp_path / "a.fits")["WDALIGN"] == "adaptive"


PHASES = [
    pytest.param(y, x, fwhm, sharper, marks=pytest.mark.slow)
    for y, x in ((0, 0.25), (0.25, 0.25), (0.25, 0.5), (0.5, 0), (0.5, 0.5))
    for fwhm in (2.2, 3.0, 5.0)
    for sharper in ("science", "template")
]


@pytest.mark.parametrize(("y", "x", "fwhm", "sharper"), [(-0.3, 0.4, 2.9, "template"), *PHASES])
def test_fractions_of_a_pixel_leave_no_sources(tmp_path, y, x, fwhm, sharper):
    widths = (1.25 * fwhm, fwhm) if sharper == "template" else (fwhm, 1.25 * fwhm)
    # Wider stars in such a small frame leave too few of their neighbours' light.
    pair(tmp_path, shift=(x, y), fwhm=widths, stars=90 if fwhm < 4 else 45)
    unflagged, (total, error), messages = subtracted(tmp_path)
    assert "resampled (interpolating)" in messages
    assert unflagged == 0
    assert abs(total - 1) < 3 * error + WINGS
