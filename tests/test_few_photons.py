"""Claims: counts of few photons, down to 0.4 a pixel, have the variance that they were drawn with,
within 3 %, and make a difference whose variance is 1 within 3 % of the plane, with the new source
in it and next to none that is not; their photons are taken for no cosmic rays; a warning says where
the tails of their noise are longer than a Gaussian's; fewer photons are refused with the remedy."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from marks import slow_after
from whitediff import Exposure
from whitediff.detection.catalog import believed
from whitediff.detection.exposures import detect
from whitediff.errors import DataError
from whitediff.exposures import masks
from whitediff.formats import read_exposure
from whitediff.matching.background import CLIP_OF_SKEWED, fit_background
from whitediff.matching.preparation import prepare
from whitediff.noise.exposures import few_photons, variance_factor
from whitediff.noise.photons import counted_photons
from whitediff.noise.variance_planes import noise_variance
from whitediff.numerics.stats import clipped_sigma
from whitediff.subtraction.pipeline import make_all
from whitediff.subtraction.recipe import Recipe


def light(size: int, rng: np.random.Generator, widths: tuple[float, ...]) -> list[np.ndarray]:
    """The same stars with several widths."""
    y, x = np.mgrid[:size, :size]
    images = [np.zeros((size, size)) for _ in widths]
    number = size**2 // 3000
    places, fluxes = rng.uniform(15, size - 15, (number, 2)), 10 ** rng.uniform(2.4, 4, number)
    for (cy, cx), flux in zip(places, fluxes, strict=True):
        square = (y - cy) ** 2 + (x - cx) ** 2
        for image, width in zip(images, widths, strict=True):
            image += flux / (2 * np.pi * width**2) * np.exp(-square / 2 / width**2)
    return images


@pytest.mark.parametrize("mean", [0.45, 0.8, 1.0, 1.6, 3.0, 5.0, 8.0])
@pytest.mark.parametrize(("seed", "size"), [(1, 320), (2, 411)])
def test_counts_have_the_variance_that_they_were_drawn_with(mean, seed, size):
    rng = np.random.default_rng(seed)
    (stars,) = light(size, rng, (1.5,))
    image = rng.poisson(mean + stars).astype(np.float32)
    exposure = Exposure.from_arrays(image, variance=np.float32(mean))
    assert variance_factor(exposure) == pytest.approx(1, abs=0.03)
    assert few_photons(exposure).mean == pytest.approx(mean, rel=0.05)
    # Medians of so few are lower than means; what is measured later puts that right.
    for model in (noise_variance(image), noise_variance(image, gain=1.0, read_noise=0.0)):
        assert model.background_variance == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize("mean", [3.0, 5.0, 8.0])
@pytest.mark.parametrize("sky", [3, 4.37])
@pytest.mark.parametrize("unit", [1.0, 2.5])
def test_counts_less_a_sky_have_the_variance_that_they_were_drawn_with(mean, sky, unit):
    """Quartiles of so few photons are 7 % too near for their variance."""
    rng = np.random.default_rng(3)
    (stars,) = light(320, rng, (1.5,))
    image = unit * (rng.poisson(mean + stars) - sky).astype(np.float32)
    exposure = Exposure.from_arrays(image, variance=np.float32(unit**2 * mean))
    assert variance_factor(exposure) == pytest.approx(1, abs=0.03)
    found = few_photons(exposure)
    assert found.mean == pytest.approx(mean, rel=0.05)
    assert found.unit == pytest.approx(unit, rel=1e-3)


@pytest.mark.parametrize("mean", [4.0, 12.0, 60.0])
@pytest.mark.parametrize("direction", [1, -1])
def test_skewed_noise_makes_no_background(mean, direction):
    """What is cut off of a tail that the other side has not is missing in the mean."""
    rng = np.random.default_rng(4)
    # Half of the noise is of photons, as where a template is deep.
    difference = direction * (rng.poisson(mean, (1000, 1000)) - mean)
    difference = difference + rng.normal(0, np.sqrt(mean), difference.shape)
    found = fit_background(difference, np.ones(difference.shape, bool), 1, clip=CLIP_OF_SKEWED)
    # A million pixels tell the mean to a thousandth of a standard deviation.
    assert abs(found[0, 0]) < 0.005 * np.sqrt(mean)


def test_other_images_are_no_counts_of_photons(rng):
    usable = np.ones((200, 200), bool)
    for image in (
        rng.poisson(5, usable.shape) + rng.normal(0, 0.01, usable.shape),  # no numbers
        rng.poisson(30, usable.shape),  # many
        np.rint(rng.normal(100, 2, usable.shape)),  # a level that is none of photons
        np.rint(rng.normal(0, 1, usable.shape)),  # negative ones
        np.abs(
            np.rint(rng.poisson(2, usable.shape) + rng.normal(3, 3, usable.shape))
        ),  # read noise
    ):
        assert counted_photons(image.astype(float), usable) is None


@pytest.mark.parametrize("unit", [0.01, 1 / 317.3, 1.7e-17, 2.5])
@pytest.mark.parametrize("mean", [0.15, 1.0, 6.0])
def test_a_rate_of_few_photons_is_refused_with_the_remedy(tmp_path, unit, mean):
    rng = np.random.default_rng(5)
    (stars,) = light(300, rng, (1.5,))
    image = (rng.poisson(mean + stars) * unit).astype(np.float32)
    fits.writeto(tmp_path / "rate.fits", image, fits.Header({"GAIN": 1.0}))
    remedy = "divide it by that" if mean > 0.4 else "add up squares of 3"
    with pytest.raises(DataError, match=f"rate.fits: The image counts .*; {remedy}"):
        read_exposure(tmp_path / "rate.fits")


def test_a_width_of_values_that_are_mostly_the_same(rng):
    for mean in (0.02, 0.15, 0.6, 1.0):
        values = rng.poisson(mean, 100_000).astype(float)
        values[:20] = 1e5
        error = 4 * np.sqrt((1 / mean + 2) / values.size)
        assert clipped_sigma(values) ** 2 == pytest.approx(mean, rel=error)


def new_flux(mean: float) -> float:
    """Flux of the new source: 25 times the noise of both skies under its PSF."""
    return 25 * np.sqrt(mean * 1.8 * 4 * np.pi * 1.8**2)


def written(directory, seed: int, mean: float, size: int = 420) -> list:
    rng = np.random.default_rng(seed)
    science, template = light(size, rng, (1.8, 1.5))
    y, x = np.mgrid[:size, :size]
    new = np.exp(-((y - 0.6 * size) ** 2 + (x - 0.4 * size) ** 2) / 2 / 1.8**2)
    science += new_flux(mean) * new / (2 * np.pi * 1.8**2)
    paths = []
    for name, image in (("science", science), ("template", template)):
        paths.append(directory / f"{name}.fits")
        header = fits.Header({"GAIN": 1.0, "RDNOISE": 0.0})
        fits.writeto(paths[-1], rng.poisson(image + mean).astype(np.int16), header)
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("mean", [0.6, 1.5, 5.0])
def test_a_difference_of_counts(run, tmp_path, mean):
    paths = written(tmp_path, 3, mean)
    out, table = tmp_path / "out.fits", tmp_path / "out.ecsv"
    code, _, messages = run("subtract", *paths, "--output", out, "--catalog", table)
    assert code == 0, messages
    found = read_exposure(out)
    free = ~found.mask.get("SOURCE") & np.isfinite(found.data)
    relative = (found.data / np.sqrt(found.variance))[free]
    assert relative[np.abs(relative) < 8].var() == pytest.approx(1, abs=0.03)
    sources = Table.read(table)
    significance = np.abs(sources["psf_flux"] / sources["psf_flux_err"])
    near = np.hypot(sources["x"] - 0.4 * 420, sources["y"] - 0.6 * 420) < 1
    assert near.sum() == 1
    error = sources["psf_flux_err"][near][0]
    assert sources["psf_flux"][near][0] == pytest.approx(new_flux(mean), abs=3.5 * error)
    assert error < new_flux(mean) / 8
    others = believed(sources) & ~near
    assert (significance[others] < 6.5).all()
    assert others.sum() <= 2
    assert "CR" not in messages
    assert ("photons of the sky lie under its PSF" in messages) == (mean < 1.0)


@pytest.mark.parametrize("which", [0, 1])
def test_too_few_photons_are_refused_with_the_remedy(run, tmp_path, which):
    paths = written(tmp_path, 4, 1.0, 300)
    (tmp_path / "few").mkdir()
    few = written(tmp_path / "few", 4, 0.15, 300)
    paths[which] = few[which]
    code, _, messages = run("subtract", *paths, "--output", tmp_path / "out.fits", "-q")
    assert code == 1
    assert len(messages.strip().splitlines()) == 1
    assert f"{few[which]}: The image counts 0.1" in " ".join(messages.split())
    assert "add up squares of 3 × 3 pixels" in " ".join(messages.split())
    exposures = [
        Exposure.from_arrays(
            fits.getdata(path).astype(np.float32), variance=0.15 if path == few[which] else 1.0
        )
        for path in paths
    ]
    with pytest.raises(DataError, match="photons per pixel between its sources"):
        prepare(*exposures)


@pytest.mark.parametrize("mean", slow_after(1, [4.0, 6.0, 15.0]))
def test_variances_made_of_each_pixels_count(mean):
    """What is smallest where photons happen to be few makes dead less than a pixel in a thousand,
    and no point something else: the reduced chi-square of a new star is that which the variances
    have of which the photons were drawn.
    """
    chi_squares = {"own": [], "true": []}
    for seed in range(3):
        rng = np.random.default_rng(70 + seed)
        stars = light(300, rng, (2.2, 1.8))
        y, x = np.mgrid[:300, :300]
        places = [(60.0, 80.0), (150.0, 220.0), (240.0, 60.0), (222.0, 233.0)]
        for cy, cx in places:
            square = (y - cy) ** 2 + (x - cx) ** 2
            stars[0] += 800 / (2 * np.pi * 2.2**2) * np.exp(-square / 2 / 2.2**2)
        drawn = [(rng.poisson(mean + each).astype(np.float32), mean + each) for each in stars]
        for plane, found in chi_squares.items():
            exposures = [
                Exposure.from_arrays(
                    counts - np.float32(mean),
                    variance=np.maximum(counts, 1) if plane == "own" else true.astype(np.float32),
                )
                for counts, true in drawn
            ]
            made = make_all(*exposures, Recipe(), ("difference",))["difference"]
            assert masks.flagged(made.science.mask, ("BAD", "CR")).sum() < 90
            rows = detect(made.difference)
            for cy, cx in places:
                near = np.hypot(rows["x"].value - cx, rows["y"].value - cy) < 1.5
                assert near.sum() == 1
                assert rows["classification"][near][0] == "point"
                found.append(float(rows["psf_chi2"][near][0]))
    own, true = (np.mean(found) for found in chi_squares.values())
    assert true == pytest.approx(1, abs=0.05)
    assert own == pytest.approx(true, abs=0.05)
