"""Noise and stars where emission with structure fills the field.

Claims:

- Under turbulent emission and filaments the measured noise is the true one, where the scatter of
  the pixels is many times as large; with a gain, the plane follows the emission's photons.
- Flat fields, interpolated noise and noise smoothed with a PSF are not taken for structure.
- Most images of such a field (20 of 24) are matched, whichever has the wider PSF: the kernel's sum
  is right to 1 %, and transients have their fluxes, as well as a PSF can be known there.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from astropy.table import Table

from whitediff.detection.exposures import forced_photometry
from whitediff.exposures.model import Exposure
from whitediff.noise.exposures import variance_factor
from whitediff.noise.structure import high_frequencies
from whitediff.noise.variance_planes import noise_variance
from whitediff.subtraction.pipeline import make_all
from whitediff.subtraction.recipe import Recipe

N = 256
GAIN, READ_NOISE = 1.5, 6.0
PSF_ERROR = 0.05
WITHIN = 0.06
"""Relative: three errors of a factor that some 60 blocks tell, and the smoothing of its level."""


def emission(seed: int, *, kind: str, amplitude: float, scale: float) -> np.ndarray:
    """Turbulent or filamentary light of some mean, before any PSF."""
    rng = np.random.default_rng(seed)
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(N), np.fft.fftfreq(N)))
    power = (k**2 + 1 / scale**2) ** (-1.5 / 2 if kind == "turbulent" else -1.0)
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(N, N))) * power).real
    field /= field.std()
    if kind == "filaments":
        field = 1.5 - 2 * np.abs(field)
    return amplitude * np.exp(field)


def scene(
    seed: int,
    *,
    kind: str = "turbulent",
    amplitude: float = 300.0,
    scale: float = 60.0,
    sigma: float = 1.8,
    stars: int = 45,
    gain: float = GAIN,
    read_noise: float = READ_NOISE,
    transients: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Image and true variance, of stars at places that the seed alone sets."""
    rng = np.random.default_rng(seed)
    light = scipy.ndimage.gaussian_filter(
        emission(seed, kind=kind, amplitude=amplitude, scale=scale), sigma
    )
    y, x = np.mgrid[:N, :N]
    places, flux = rng.uniform(15, N - 15, (stars, 2)), 5000 * (1 - rng.random(stars)) ** -0.9
    if transients:
        places, flux = np.vstack([places, PLACES]), np.append(flux, FLUXES)
    for (row, column), total in zip(places, np.minimum(flux, 1e5), strict=True):
        profile = np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * sigma**2))
        light += total * profile / (2 * np.pi * sigma**2)
    variance = light / gain + (read_noise / gain) ** 2
    noise = np.random.default_rng([seed, round(1000 * sigma)]).normal(size=light.shape)
    return (light + noise * np.sqrt(variance)).astype(np.float32), variance


PLACES = np.array([[156.3, 100.4], [60.2, 180.7]])
FLUXES = np.array([6000.0, 15000.0])


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", ["turbulent", "filaments"])
@pytest.mark.parametrize(("amplitude", "scale"), [(60.0, 200.0), (300.0, 60.0), (2000.0, 30.0)])
def test_the_noise_is_that_without_structure(kind, amplitude, scale, seed):
    image, variance = scene(seed, kind=kind, amplitude=amplitude, scale=scale)
    model = noise_variance(image, gain=GAIN, read_noise=READ_NOISE)
    dim = variance < np.quantile(variance, 0.9)
    assert np.median(model.variance[dim] / variance[dim]) == pytest.approx(1, abs=WITHIN)
    assert not model.warning
    exposure = Exposure.from_arrays(image, variance=(2 * variance).astype(np.float32))
    assert variance_factor(exposure) == pytest.approx(0.5, rel=WITHIN)


def test_without_a_gain_the_noise_is_the_usual_one():
    image, variance = scene(3)
    model = noise_variance(image)
    assert np.quantile(variance, 0.3) < model.background_variance < np.quantile(variance, 0.85)
    assert "high frequencies" in model.description


def smoothed(noise):
    return scipy.ndimage.gaussian_filter(noise, 1.8)


def interpolated(noise):
    return scipy.ndimage.shift(noise, (0.5, 0.4), order=1, mode="wrap")


def cubic(noise):
    return scipy.ndimage.shift(noise, (0.5, 0.3), order=3, mode="wrap")


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize("change", [np.array, smoothed, interpolated, cubic, np.rint])
def test_noise_of_other_kinds_keeps_its_scatter(change, seed):
    image = change(5 * np.random.default_rng(seed).normal(size=(N, N)))
    found = high_frequencies(image, np.ones(image.shape, bool))
    assert found is None or not found.contradicts(image.var())


def test_holes_do_no_harm_and_large_ones_or_small_images_tell_nothing():
    image, variance = scene(1)
    usable = np.ones(image.shape, bool)
    usable[::16, ::16] = False
    holes = np.where(usable, image, 1e6).astype(np.float32)
    found = high_frequencies(holes, usable, variance)
    assert found is not None
    assert found.factor == pytest.approx(1, abs=WITHIN)
    usable[::3] = False
    assert high_frequencies(image, usable) is None
    assert high_frequencies(image[:20], usable[:20] | True) is None


def pulls(seed: int, kind: str, direction: str) -> tuple[float, np.ndarray]:
    """Sum of the kernel, and pulls of forced fluxes of two transients."""
    wide, narrow = (1.8, 1.4) if direction == "template" else (1.4, 1.8)
    given = {"kind": kind, "scale": 60.0, "amplitude": 50.0}
    exposures = []
    for sigma, transients, gain, read in (
        (wide, True, GAIN, READ_NOISE),
        (narrow, False, 20.0, 80.0),
    ):
        image, _ = scene(
            seed, sigma=sigma, transients=transients, gain=gain, read_noise=read, **given
        )
        model = noise_variance(image, gain=gain, read_noise=read)
        exposures.append(Exposure.from_arrays(image, variance=model.variance.astype(np.float32)))
    made = make_all(*exposures, Recipe(), ("difference",))["difference"]
    solution = made.product.solution
    total = float(solution.kernel.at(x=N / 2, y=N / 2).sum())
    at = Table({"x": PLACES[:, 1], "y": PLACES[:, 0]})
    rows = forced_photometry(made.product.exposure, at)
    # A PSF whose stars stand on emission is known to a twentieth.
    error = np.hypot(rows["psf_flux_err"].value, PSF_ERROR * FLUXES)
    return total, (rows["psf_flux"].value - FLUXES) / error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "kind", "direction"),
    [
        (1, "turbulent", "template"),
        (2, "filaments", "science"),
        pytest.param(
            1, "filaments", "science",
            marks=pytest.mark.xfail(
                reason="filaments as bright as the stars: 1.7 % at the worst of five seeds"
            ),
        ),
    ],
)  # fmt: skip
def test_a_field_of_emission_is_matched(seed, kind, direction):
    total, off = pulls(seed, kind, direction)
    assert total == pytest.approx(1, abs=0.015)
    assert (np.abs(off) < 3).all()


@pytest.mark.slow
def test_most_fields_of_emission_are_matched():
    right = []
    for seed in range(3, 9):
        for kind in ("turbulent", "filaments"):
            for direction in ("template", "science"):
                total, off = pulls(seed, kind, direction)
                right.append(abs(total - 1) < 0.01 and bool((np.abs(off) < 3).all()))
    assert sum(right) >= 20


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("amplitude", [15.0, 40.0])
def test_faint_emission_is_no_noise(seed, amplitude):
    # Emission of some sigma per pixel, in counts of a gain of 1.5: less than fills the field.
    rng = np.random.default_rng(seed)
    size = 400
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    frequency[0, 0] = 1
    structure = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) * frequency**-1.6).real
    structure = scipy.ndimage.gaussian_filter(structure, 1.5)
    light = 300 + amplitude * (structure - structure.min()) / structure.std()
    image = rng.poisson(light * 1.5) / 1.5 + rng.normal(0, 5 / 1.5, light.shape)
    true = light / 1.5 + (5 / 1.5) ** 2
    model = noise_variance(image, gain=1.5, read_noise=5.0, meaning="counts")
    assert not model.warning
    exposure = Exposure.from_arrays(
        image.astype(np.float32), variance=np.asarray(model.variance, np.float32)
    )
    variance = model.variance * variance_factor(exposure)
    assert np.median(variance / true) == pytest.approx(1, abs=0.05)
    # Noise that is in fact more, by an unknown amplifier, is more.
    noisy = image + rng.normal(0, 8, image.shape)
    exposure = Exposure.from_arrays(noisy.astype(np.float32), variance=true.astype(np.float32))
    ratio = np.median(1 + 64 / true)
    assert variance_factor(exposure) > 0.95 * ratio


@pytest.mark.parametrize("seed", range(4))
def test_noise_that_a_resampling_has_correlated_is_not_taken_for_less(seed):
    rng = np.random.default_rng(seed)
    noise = scipy.ndimage.shift(rng.normal(0, 10, (420, 420)), (0.2, 0.15), order=3)[10:-10, 10:-10]
    for scale in (0.8, 1.0, 1.1, 1.3):
        variance = np.float32(noise.var() / scale)
        exposure = Exposure.from_arrays(noise.astype(np.float32), variance=variance)
        assert variance_factor(exposure) == pytest.approx(scale, rel=0.03)
