"""Bright sources on scores, whose own photons are noise.

Claims:

- A maximum of the filtered image is one source, however its noise is distributed over it: where
  the significance has a hollow, and where the noise plane was made of noisy counts.
- Rings of a source whose middle has more noise than they are none; sources beside it stay.
- Transients of signal-to-noise ratios of 20 to 1000, brighter and fainter, are one row each on a
  difference's score, to be believed, and no other row is; fluxes and positions are within
  their errors.  This holds with PSFs that are given and that are measured, whichever image is the
  sharper one.
- Two of one sign, from 1.5 full widths at half maximum apart on, are two.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from marks import slow_after
from whitediff import Exposure
from whitediff.detection.catalog import believed
from whitediff.detection.exposures import detections
from whitediff.detection.peaks import Peaks, Responses, deblended, find_peaks
from whitediff.evaluation.placing import add_stamp
from whitediff.evaluation.simulated import simulated_exposure
from whitediff.evaluation.simulation import PsfModel, SimulationOptions, simulate
from whitediff.noise.significance import (
    Significance,
    point_source_significance,
    self_response,
)
from whitediff.subtraction.pipeline import make_all
from whitediff.subtraction.recipe import Recipe

FRAME = (120, 130)
MODEL = PsfModel(sigma=2.0, frame=FRAME)


def round_source(x, y, sigma):
    rows, columns = np.mgrid[: FRAME[0], : FRAME[1]]
    return np.exp(-0.5 * ((columns - x) ** 2 + (rows - y) ** 2) / sigma**2)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(("narrow", "scatter"), [(1.6, 0.0), (1.9, 0.05), (3.0, 0.05)])
def test_a_maximum_is_one_source_whatever_its_noise(rng, narrow, scatter, side):
    # The filtered source is 2 √2 pixels wide, and its square 2.
    x, y, height, sky = 60.3, 55.6, 4000.0, 5.0
    filtered = side * height * round_source(x, y, 2 * np.sqrt(2))
    variance = sky**2 + 1600 * round_source(x, y, narrow)
    variance *= np.exp(scatter * rng.normal(size=FRAME))
    noise = np.sqrt(variance)
    found = Significance(
        (filtered / noise).astype(np.float32), np.ones(FRAME, bool), noise.astype(np.float32)
    )
    peaks = find_peaks(found, 5)
    assert len(peaks) == 1
    np.testing.assert_allclose([peaks.x[0], peaks.y[0]], [x, y], atol=0.01)
    nearest = noise[55:57, 60:62]
    assert nearest.min() <= peaks.noise[0] <= nearest.max()
    assert peaks.significance[0] == pytest.approx(side * height / peaks.noise[0], rel=1e-3)
    # As the significance alone has it, there are several.
    several = find_peaks(dataclasses.replace(found, noise=None), 5)
    assert len(several) > 1 or narrow > 2


def test_rings_of_a_source_with_photon_noise_are_none(rng):
    wide, thin = (PsfModel(sigma=s, frame=FRAME).stamp(0, 0, size=31) for s in (2.6, 1.8))
    psf = 1.6 * thin - 0.6 * wide
    unit = 1 / np.sqrt((psf**2).sum())
    image = np.zeros(FRAME)
    sources = ((60, 60, 2000), (71, 64, 40), (100, 100, 30))
    for x, y, ratio in sources:
        add_stamp(image, ratio * unit * psf, x, y)
    variance = 1 + np.maximum(image, 0)
    image += rng.normal(size=FRAME) * np.sqrt(variance)
    found = point_source_significance(image, variance, np.ones(FRAME, bool), psf)
    peaks = find_peaks(found, 5)
    responses = Responses(self_response(psf)[None], np.zeros(1), np.zeros(1))
    blends = deblended(peaks, 5, responses)
    assert len(peaks) > len(sources)
    for x, y, _ in sources:
        assert np.hypot(blends.peaks.x - x, blends.peaks.y - y).min() < 1
    assert len(blends.peaks) == len(sources)


def test_light_counts_in_units_of_each_one_s_noise():
    psf = MODEL.image(0, 0)
    responses = Responses(self_response(psf)[None], np.zeros(1), np.zeros(1))
    x, y, noise = np.array([50.0, 57.0]), np.array([50.0, 50.0]), np.array([8.0, 2.0])
    overlap = responses.at(x[:1], y[:1], x[1:] - x[:1], y[1:] - y[:1])[0]
    light = np.array([4000.0, 300.0])
    value = np.array([light[0] + overlap * light[1], light[1] + overlap * light[0]]) / noise
    found = deblended(Peaks(x, y, value, value, noise), 5, responses)
    np.testing.assert_allclose(found.amplitude * found.peaks.noise, light, rtol=1e-6)


SIZE = 400
RATIOS = (20, 40, 70, 100, 150, 300, 600, 1000)
SEPARATIONS = (1.5, 2.0, 3.0)
"""Full widths at half maximum of the wider PSF."""
PSF_ERROR = {True: 0.005, False: 0.015}
"""Of fluxes, where the PSFs are given and where they are measured."""

WIDER = {"science": (1.8, 1.5), "template": (1.5, 1.8)}


@functools.cache
def made(seed, wider, given):
    """Transients of known fluxes at free places, and their rows on the score."""
    widths = WIDER[wider]
    scene = simulate(
        SimulationOptions(
            shape=(SIZE, SIZE), seed=seed, science_psf=widths[0], template_psf=widths[1],
            profile="moffat", stars=60, galaxies=0, transients=0, bad_columns=0, nan_pixels=0,
            saturation=1e9, brightest_star=2e5, faintest_star=30.0,
        )
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    images = {name: getattr(scene, name) for name in ("science", "template")}
    psfs = {name: image.psf.stamp(SIZE / 2, SIZE / 2) for name, image in images.items()}
    sky = {name: getattr(scene.options, f"{name}_variance") for name in images}
    # A filter with the wider PSF, of the noise of both, has about this error.
    wide = min(np.square(psf).sum() for psf in psfs.values())
    unit = np.sqrt(sum(sky.values()) / wide)
    taken = list(zip(scene.sources["x"], scene.sources["y"], strict=True))
    expected = {name: np.zeros((SIZE, SIZE)) for name in images}
    true = []

    def free_place():
        while True:
            place = rng.uniform(35, SIZE - 35, 2)
            if all(np.hypot(*(place - other)) > 25 for other in taken):
                taken.append(tuple(place))
                return place

    def add(x, y, flux, name):
        image = images[name]
        add_stamp(expected[name], flux * image.psf.stamp(x, y), x, y)
        true.append((x, y, flux if name == "science" else -flux))

    for name in images:
        for ratio in RATIOS:
            # Its own photons are noise, too: flux over error is the ratio.
            photons = np.power(psfs[name], 3).sum() / np.square(psfs[name]).sum() ** 2
            photons *= ratio**2 / scene.options.gain
            flux = photons / 2 + np.sqrt(photons**2 / 4 + (ratio * unit) ** 2)
            add(*free_place(), flux, name)
    for separation in SEPARATIONS:
        x, y = free_place()
        turn = rng.uniform(0, 2 * np.pi)
        step = separation * max(widths) * 2.3548 / 2
        for side in (1, -1):
            at = x + side * step * np.cos(turn), y + side * step * np.sin(turn)
            add(*at, 200 * unit, "science")
    pair = []
    for name, image in images.items():
        light = expected[name]
        noise = rng.normal(size=light.shape) * np.sqrt(light / scene.options.gain)
        pixels = image.image + light + noise
        # Variance planes are made of the pixels' own counts.
        variance = sky[name] + np.maximum(pixels, 0) / scene.options.gain
        whole = simulated_exposure(scene, name)
        pair.append(
            Exposure.from_arrays(
                pixels.astype(np.float32),
                variance=variance.astype(np.float32),
                psf=whole.psf if given else None,
            )
        )
    products = make_all(*pair, Recipe(), ("difference", "score"))
    difference, score = (products[kind].product.exposure for kind in ("difference", "score"))
    return np.array(true), detections(difference, score).catalogue


@pytest.mark.parametrize("given", slow_after(1, [False, True]))
@pytest.mark.parametrize(
    ("seed", "wider"),
    [(1, "science"), *(
        pytest.param(seed, wider, marks=pytest.mark.slow)
        for seed in range(1, 6) for wider in WIDER if (seed, wider) != (1, "science")
    )],
)  # fmt: skip
def test_bright_transients_are_one_row_each(seed, wider, given):
    true, rows = made(seed, wider, given)
    x, y, flux = (rows[name].value for name in ("x", "y", "psf_flux"))
    apart = np.hypot(x[:, None] - true[:, 0], y[:, None] - true[:, 1])
    trusted = believed(rows)
    nearest = apart.argmin(axis=0)
    assert (apart.min(axis=0) < 1).all()
    assert len(set(nearest)) == len(true)
    # Beside them, what noise and the error of the PSF leave at a faint level at most.
    others = np.delete(np.arange(len(rows)), nearest)
    assert not (trusted[others] & (np.abs(rows["significance"][others]) > 6)).any()
    assert (apart[others].min(axis=1, initial=99) > 12).all()
    assert trusted[nearest].all()
    # Some tens of stars tell the kernel's sum, and the PSF, to as much.
    error = np.hypot(PSF_ERROR[given] * true[:, 2], 3.5 * rows["psf_flux_err"].value[nearest])
    assert (np.abs(flux[nearest] - true[:, 2]) < error).all()
