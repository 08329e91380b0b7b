"""A PSF that was given is compared with the stars.

Claims: by how much fluxes are off by a PSF of another width is what the stars tell, for PSFs of any
width, in any units, wider and narrower; one that is right is left alone; a subtraction names one
that is wrong, and its fluxes have the error.
"""

from __future__ import annotations

import numpy as np
import pytest

from whitediff import Exposure
from whitediff.exposures.pipeline import make_all
from whitediff.exposures.recipe import Recipe
from whitediff.injection import add_stamp
from whitediff.matching.given import width_doubt
from whitediff.simulation import PsfModel

SIDE = 420


def psf(sigma):
    """A Moffat profile, whose wings a Gaussian has not."""
    return PsfModel(sigma=sigma, frame=(SIDE, SIDE), profile="moffat").image(0, 0)


def stars(seed, sigma, *, unit=1.0, noise=20.0, number=30, image_number=0):
    """Image of stars, and where and how bright they are: the same in all images of a seed."""
    rng = np.random.default_rng(seed)
    image = np.random.default_rng([seed, image_number]).normal(0, noise, (SIDE, SIDE))
    cells = [(x, y) for x in range(40, SIDE - 30, 62) for y in range(40, SIDE - 30, 62)][:number]
    place = np.array(cells) + rng.uniform(-8, 8, (len(cells), 2))
    fluxes = noise * 10 ** rng.uniform(2.8, 4, len(cells))
    model = PsfModel(sigma=sigma, frame=(SIDE, SIDE), profile="moffat")
    for (x, y), flux in zip(place, fluxes, strict=True):
        add_stamp(image, flux * model.image(0, 0), x, y)
    return unit * image, place[:, 0], place[:, 1], fluxes


@pytest.mark.parametrize("sigma", [1.3, 1.9, 3.2])
@pytest.mark.parametrize("factor", [0.9, 0.97, 1.0, 1.04, 1.12])
@pytest.mark.parametrize("unit", [1.0, 1e-9])
def test_stars_tell_what_fluxes_are_off_by(sigma, factor, unit):
    true, given = psf(sigma), psf(factor * sigma)
    # The oracle: the true profile measured with the other.
    ny, nx = np.minimum(true.shape, given.shape)
    cut = [
        each[(len(each) - ny) // 2 :][:ny, (each.shape[1] - nx) // 2 :][:, :nx]
        for each in (true, given)
    ]
    bias = (cut[0] * cut[1]).sum() / (cut[1] ** 2).sum() - 1
    for seed in (1, 2, 3):
        image, x, y, _ = stars(seed, sigma, unit=unit)
        rng = np.random.default_rng(seed)
        off = rng.uniform(-0.4, 0.4, (2, len(x)))
        bad = np.zeros(image.shape, bool)
        doubt = width_doubt(image, bad, x + off[0], y + off[1], given[None], fwhm=2.355 * sigma)
        assert doubt.stars >= 25
        assert doubt.bias == pytest.approx(bias, abs=4 * doubt.error + 0.2 * abs(bias))
        assert doubt.error < 0.01
        assert doubt.wider - 1 == pytest.approx(1 / factor - 1, rel=0.15, abs=0.01)


def pair(seed, sigmas, factor):
    """Science image and template of the same stars, each with a PSF of a wrong width."""
    exposures = []
    for i, sigma in enumerate(sigmas):
        image, *_ = stars(seed, sigma, image_number=i)
        exposures.append(Exposure.from_arrays(image, variance=20.0**2, psf=psf(factor * sigma)))
    return exposures


@pytest.mark.parametrize("sigmas", [(2.1, 1.6), (1.6, 2.1)])
@pytest.mark.parametrize(("factor", "seed"), [(1.0, 1), (1.0, 2), (1.08, 1), (0.92, 2)])
def test_a_subtraction_says_that_a_psf_is_wrong(sigmas, factor, seed, caplog):
    made = make_all(*pair(seed, sigmas, factor), Recipe(), ["difference"])
    product = made["difference"].product
    error = product.exposure.psf.light.error
    if factor == 1:
        assert "the PSF that was given is" not in caplog.text
        assert error < 0.01
    else:
        which = "wider" if factor > 1 else "narrower"
        assert f"% {which} than its" in caplog.text
        assert error == pytest.approx(0.08, abs=0.03)
