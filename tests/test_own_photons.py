"""Claims: fluxes of bright transients scatter as their errors say, whichever image is convolved and
whatever share of the noise is of their own photons; a file keeps what that takes."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

from scenes import difference_of
from whitediff import Exposure
from whitediff.detection.exposures import forced_photometry
from whitediff.exposures.psf import Light
from whitediff.formats import read_exposure, write_exposure

SIDE, STEP = 520, 36


def gaussians(x, y, flux, sigma):
    """Light of stars, at the pixels' middles."""
    image = np.zeros((SIDE, SIDE))
    offset = np.arange(-14, 15)
    for at_x, at_y, total in zip(x, y, flux, strict=True):
        i, j = round(at_x), round(at_y)
        columns, rows = offset + i, offset + j
        stamp = np.outer(
            np.exp(-0.5 * ((rows - at_y) / sigma) ** 2),
            np.exp(-0.5 * ((columns - at_x) / sigma) ** 2),
        )
        image[np.ix_(rows, columns)] += total * stamp / (2 * np.pi * sigma**2)
    return image


def pair(seed, widths, sky, fades):
    """Exposures with the variances of which they are drawn, and their transients."""
    rng = np.random.default_rng([seed, sky])
    grid = np.arange(STEP, SIDE - STEP // 2, STEP)
    x, y = (each.ravel() + rng.uniform(-4, 4, each.size) for each in np.meshgrid(grid, grid))
    star = rng.random(len(x)) < 0.3
    noise = np.sqrt(sky * 8 * np.pi) * max(widths)
    flux = np.where(
        star, noise * 20 ** rng.uniform(1, 2, len(x)), noise * rng.uniform(15, 60, len(x))
    )
    exposures = []
    for i, sigma in enumerate(widths):
        here = star | (i == int(fades))
        true = sky + gaussians(x[here], y[here], flux[here], sigma)
        counts = rng.poisson(true) - float(sky)
        exposures.append(Exposure.from_arrays(counts.astype("f4"), variance=true.astype("f4")))
    table = Table({"x": x[~star], "y": y[~star], "flux": flux[~star] * (-1 if fades else 1)})
    return *exposures, table


def pulls(seed, widths, sky, fades):
    science, template, transients = pair(seed, widths, sky, fades)
    found = forced_photometry(difference_of(science, template), transients["x", "y"])
    return (found["psf_flux"].value - transients["flux"]) / found["psf_flux_err"].value


@pytest.mark.parametrize("sky", [5, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fades", [False, True])
@pytest.mark.parametrize("widths", [(1.9, 1.5), (1.5, 1.9)])
def test_bright_fluxes_scatter_as_their_errors_say(widths, fades, sky):
    found = np.concatenate([pulls(seed, widths, sky, fades) for seed in (1, 2)])
    assert len(found) > 200
    # Of 200 the scatter is known to 0.05.
    assert np.std(found) == pytest.approx(1, abs=0.14)


def test_files_keep_it(tmp_path):
    difference = difference_of(*pair(1, (1.9, 1.5), 5, False)[:2])
    light = Light.of(difference.psf)
    assert light.own_variances[0] < 0 < light.own_variances[1]
    for name in ("d.fits", "archive.fits"):
        write_exposure(difference, tmp_path / name)
        again = Light.of(read_exposure(tmp_path / name).psf)
        assert again.own_variances == pytest.approx(light.own_variances)


def test_planes_without_photons_have_none():
    science, template, _ = pair(1, (1.9, 1.5), 300, False)
    flat = [
        Exposure.from_arrays(each.data, variance=np.float32(300)) for each in (science, template)
    ]
    difference = difference_of(*flat)
    assert Light.of(difference.psf).own_variances == (0, 0)
