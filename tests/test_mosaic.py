"""Frames of colour cameras: claims.

A frame whose four pixels of each square see different colours is told of, whatever their order, the
unit and the shape; images with stars and galaxies, of narrow PSFs, with a slope, of whole numbers,
and with two amplifiers for every other column or row are none.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import scipy.ndimage

from whitediff.defects.mosaic import colour_mosaic
from whitediff.errors import DataError
from whitediff.exposures.model import Exposure
from whitediff.matching.preparation import prepare

ORDERS = {"RGGB": ((0.6, 1), (1, 0.8)), "GRBG": ((1, 0.6), (0.8, 1)), "BGGR": ((0.8, 1), (1, 0.6))}


def frame(seed, fwhm=3.5, shape=(260, 311), sky=300.0):
    rng = np.random.default_rng(seed)
    light = np.zeros(shape)
    places = tuple(rng.integers(0, n, 60) for n in shape)
    light[places] += 10 ** rng.uniform(3, 5.5, 60)
    y, x = np.mgrid[: shape[0], : shape[1]]
    return scipy.ndimage.gaussian_filter(light, fwhm / 2.3548) + sky + 0.3 * x - 0.2 * y


def seen(model, seed, order=None, step=1.0):
    rng = np.random.default_rng(100 + seed)
    if order is not None:
        tiles = np.tile(order, [-(-n // 2) for n in model.shape])
        model = model * tiles[: model.shape[0], : model.shape[1]]
    return np.rint(rng.poisson(model) / step) * step


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("unit", [1.0, 1e-19])
def test_colours_are_seen(order, unit):
    for seed in range(4):
        image = unit * seen(frame(seed), seed, np.array(ORDERS[order]))
        levels = colour_mosaic(image, np.zeros(image.shape, bool))
        assert levels is not None
        assert np.argmax(levels) in np.flatnonzero(np.array(ORDERS[order]) == 1)


def test_other_images_have_none():
    for seed in range(6):
        fwhm = (1.2, 2.0, 4.0)[seed % 3]
        model = frame(seed, fwhm)
        nothing = np.zeros(model.shape, bool)
        for image in (
            seen(model, seed),
            seen(model, seed, step=7.0),
            seen(model, seed, np.array([[1.0, 0.9], [1.0, 0.9]])),
            seen(model, seed, np.array([[1.0, 1.0], [0.9, 0.9]])),
            seen(model, seed) * np.nan,
        ):
            assert colour_mosaic(image, nothing) is None
        assert colour_mosaic(seen(model, seed), ~nothing) is None
    assert colour_mosaic(np.ones((1, 5)), np.zeros((1, 5), bool)) is None


@pytest.mark.parametrize("which", [0, 1])
def test_the_run_says_so(which, caplog):
    images = [seen(frame(2, fwhm), i) for i, fwhm in enumerate((3.8, 3.2))]
    images[which] = seen(frame(2, 3.8 - 0.6 * which), which, np.array(ORDERS["RGGB"]))
    exposures = [
        Exposure.from_arrays(image.astype(np.float32), variance=np.float32(350.0))
        for image in images
    ]
    with contextlib.suppress(DataError):
        prepare(*exposures)
    told = [record.getMessage() for record in caplog.records if "BAYERPAT" in record.getMessage()]
    assert len(told) == 1
