"""Skies that somebody left in a difference.

Claims:

- Levels of 0.1 to 1000 times a pixel's noise, slopes and curvature change neither which sources are
  found nor their fluxes (0.2 sigma, in apertures 0.4: the error of the fit to 256 × 256 pixels),
  for images of any unit; a sentence gives the level.
- Where there is none, in frames of 64 to 512 pixels, nothing is said and nothing changes.
- Forced photometry is right on a level, too.
"""

from __future__ import annotations

import astropy.table
import numpy as np
import pytest
import scipy.ndimage

from whitediff.detection.exposures import detect, forced_photometry
from whitediff.exposures.model import Exposure
from whitediff.exposures.psf import KernelPointSpreadFunction

SIGMA = 1.6


def difference(seed, size=256, sky=0.0, unit=1.0, sources=8):
    rng = np.random.default_rng(seed)
    image = np.zeros((size, size))
    places = rng.integers(20, size - 20, (sources, 2))
    # Of both signs, 10 to 60 sigma.
    ratios = np.geomspace(10, 60, sources) * rng.choice([-1, 1], sources)
    image[places[:, 1], places[:, 0]] = ratios * np.sqrt(4 * np.pi) * SIGMA
    image = scipy.ndimage.gaussian_filter(image, SIGMA, truncate=6) + rng.normal(size=image.shape)
    y, x = np.mgrid[:size, :size] / size - 0.5
    slopes = {"level": 1 + 0 * x, "slope": 1 + x - 0.5 * y, "curved": 1 + x**2 - 2 * y * x}
    kind, height = sky if sky else ("level", 0.0)
    image += height * slopes[kind]
    made = Exposure.from_arrays((unit * image).astype(np.float32), variance=np.float32(unit**2))
    offset = np.arange(-12, 13)
    psf = np.exp(-(offset**2 + offset[:, None] ** 2) / (2 * SIGMA**2))
    made.psf = KernelPointSpreadFunction.from_image(psf / psf.sum(), made.bbox)
    return made, places


@pytest.mark.parametrize(
    "sky",
    [("level", 0.1), ("level", -0.3), ("level", 30.0), ("level", 1000.0), ("slope", 0.3),
     ("slope", 20.0), ("curved", 5.0)],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(2))
def test_a_sky_changes_nothing(sky, seed, caplog):
    unit = (1.0, 1e-12)[seed]
    without, _ = difference(seed, unit=unit)
    expected = detect(without)
    assert "a sky is left" not in caplog.text
    found = detect(difference(seed, sky=sky, unit=unit)[0])
    assert "a sky is left in it" in caplog.text
    assert len(expected) >= 8
    assert len(found) == len(expected)
    for name, most in (("psf_flux", 0.2), ("aperture_flux", 0.4)):
        off = (found[name] - expected[name]).value / expected[f"{name}_err"].value
        assert np.abs(off).max() < most
    moved = np.hypot(found["x"] - expected["x"], found["y"] - expected["y"]).value
    assert moved.max() < 0.05


@pytest.mark.parametrize("size", [64, 100, 256, 512])
@pytest.mark.parametrize("seed", range(8))
def test_noise_has_no_sky(size, seed, caplog):
    exposure, _ = difference(seed, size=size, sources=2)
    detect(exposure)
    assert "a sky is left" not in caplog.text


def test_forced_photometry_on_a_level():
    there, places = difference(3)
    at = astropy.table.Table({"x": places[:, 0], "y": places[:, 1]})
    expected = forced_photometry(there, at)
    found = forced_photometry(difference(3, sky=("level", 50.0))[0], at)
    off = (found["psf_flux"] - expected["psf_flux"]).value / expected["psf_flux_err"].value
    assert np.abs(off).max() < 0.2
