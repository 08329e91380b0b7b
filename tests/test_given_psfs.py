"""A PSF that was given is compared with the stars.

Claims: what share of a star's light a PSF sees is what sums say, for PSFs of another width, cut
off, on a level of their own and off their middle, in any units; one that is right is left alone; a
subtraction names one that is wrong, and its fluxes are right within their errors all the same; PSFs
that were exchanged are refused.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from astropy.table import Table

from marks import slow_after
from whitediff import Exposure
from whitediff.detection.exposures import forced_photometry
from whitediff.errors import DataError
from whitediff.evaluation.placing import add_stamp
from whitediff.evaluation.simulation import PsfModel
from whitediff.matching.given import share_measured
from whitediff.subtraction.pipeline import make_all

SIDE = 420
MODEL = PsfModel(sigma=2.0, frame=(SIDE, SIDE), profile="moffat")


def psf(sigma, size=61):
    """A Moffat profile, whose wings a Gaussian has not."""
    image = dataclasses.replace(MODEL, sigma=sigma).stamp(0.0, 0.0, size=size)
    return image / image.sum()


def on_a_level(image, level):
    image = image + level
    return image / image.sum()


WRONG = {
    "wider": lambda sigma: psf(1.08 * sigma),
    "narrower": lambda sigma: psf(0.92 * sigma),
    "cut off": lambda sigma: psf(sigma, 11),
    "cut off a little": lambda sigma: psf(sigma, 15),
    "low": lambda sigma: on_a_level(psf(sigma, 41), -1e-4),
    "high": lambda sigma: on_a_level(psf(sigma, 41), 3e-5),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("sigma", [1.4, 3.0])
@pytest.mark.parametrize("moved", [0, 1])
def test_the_share_is_what_sums_say(name, sigma, moved):
    true, given = psf(sigma, 51), WRONG[name](sigma)
    size = max(len(true), len(given))
    whole = [np.pad(each, (size - len(each)) // 2) for each in (true, given)]
    expected = (whole[0] * whole[1]).sum() / (whole[1] ** 2).sum()
    assert abs(expected - 1) > 0.01 or name.startswith("cut off")
    given = np.roll(np.pad(given, 1), moved, 1)
    assert share_measured(given, true) == pytest.approx(expected, rel=2e-3)


def scene(seed, sigmas, given, unit=1.0):
    """Science image and template, transients on the former, and where and how bright these are."""
    rng = np.random.default_rng(seed)
    cells = [(x, y) for x in range(35, SIDE - 25, 50) for y in range(35, SIDE - 25, 50)]
    place = np.array(cells) + rng.uniform(-8, 8, (len(cells), 2))
    fluxes = 20 * 10 ** rng.uniform(2.8, 4, len(cells))
    fluxes[::3] = 20 * 10 ** rng.uniform(2.2, 3, len(fluxes[::3]))
    exposures = []
    for i, (sigma, image) in enumerate(zip(sigmas, given, strict=True)):
        pixels = rng.normal(0, 20.0, (SIDE, SIDE))
        model = dataclasses.replace(MODEL, sigma=sigma)
        for j, ((x, y), flux) in enumerate(zip(place, fluxes, strict=True)):
            if j % 3 or i == 0:
                column, row = round(x), round(y)
                add_stamp(pixels, flux * model.stamp(x - column, y - row, size=101), column, row)
        exposures.append(
            Exposure.from_arrays(unit * pixels, variance=(20.0 * unit) ** 2, psf=image)
        )
    return exposures, place[::3], unit * fluxes[::3]


def checked(pair, place, fluxes):
    """Light of the difference's PSF, and fluxes over the true ones, in their errors and in all."""
    difference = make_all(*pair)["difference"].difference
    table = forced_photometry(difference, Table({"x": place[:, 0], "y": place[:, 1]}))
    flux, error = np.asarray(table["psf_flux"]), np.asarray(table["psf_flux_err"])
    light = difference.psf.light
    noise = np.sqrt(error**2 - (light.error * flux) ** 2)
    weight = (fluxes / noise) ** 2
    ratio = float((weight * flux / fluxes).sum() / weight.sum())
    return light, ratio, float(weight.sum() ** -0.5)


@pytest.mark.parametrize("sigmas", [(2.1, 1.6), (1.6, 2.1)])
@pytest.mark.parametrize(
    ("seed", "unit"), slow_after(1, [(1, 1.0), (2, 1e-9), (3, 1.0), (4, 1e-9), (5, 1.0), (6, 1.0)])
)
def test_right_ones_are_left_alone(sigmas, seed, unit, caplog):
    light, ratio, error = checked(*scene(seed, sigmas, map(psf, sigmas), unit))
    assert "that was given" not in caplog.text
    assert light.error < 0.01
    assert ratio == pytest.approx(1, abs=3 * error + 0.01)


@pytest.mark.parametrize("sigmas", [(2.1, 1.6), (1.6, 2.1)])
@pytest.mark.parametrize("name", slow_after(2, ["wider", "low", "narrower", "cut off", "high"]))
def test_fluxes_by_wrong_ones_are_right_within_their_errors(sigmas, name, caplog):
    light, ratio, error = checked(*scene(3, sigmas, map(WRONG[name], sigmas)))
    assert "the PSF that was given sees" in caplog.text
    if name in ("wider", "narrower"):
        assert f"% {name}" in caplog.text
    assert abs(ratio - 1) < 3 * np.hypot(error, light.error)
    assert abs(ratio - 1) < 0.05
    assert light.error < 0.05


@pytest.mark.parametrize("sigmas", [(2.1, 1.6), (1.6, 2.1)])
def test_exchanged_ones_are_refused(sigmas):
    pair, *_ = scene(4, sigmas, map(psf, sigmas[::-1]))
    with pytest.raises(DataError, match=r"exchanged"):
        make_all(*pair)
