"""Claims: simulations are reproducible; their noise is what their variance plane says; the true
kernel makes static sources cancel; positions and fluxes are those of the truth table; flaws are
as they were asked for, and leave all else as it is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from whitediff.cli.simulate import FLAWS
from whitediff.errors import ArgumentError
from whitediff.evaluation.flaws import Grid, ImageOptions, bleed, trail
from whitediff.evaluation.simulated import simulated_exposure
from whitediff.evaluation.simulation import PsfModel, SimulationOptions, simulate
from whitediff.formats.units import photon_header
from whitediff.numerics.convolution import convolve

MOFFAT = {
    "profile": "moffat", "ellipticity": (0.1, -0.07), "offset": (0.3, -0.2), "flux_scale": 1.3,
}  # fmt: skip


def test_the_same_options_give_the_same_images():
    first, second = (simulate(SimulationOptions(shape=(128, 140), seed=4)) for _ in range(2))
    np.testing.assert_array_equal(first.science.image, second.science.image)
    np.testing.assert_array_equal(first.template.image, second.template.image)
    other = simulate(SimulationOptions(shape=(128, 140), seed=5))
    assert not np.array_equal(first.science.image, other.science.image)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1.1),
        (MOFFAT, 1.3),
        ({"science_psf": 2.2, "template_psf": 3.0}, 1.1),
    ],
    ids=["gaussian", "moffat", "science convolved"],
)
def test_static_sources_cancel(options, tolerance):
    simulation = simulate(
        SimulationOptions(
            shape=(512, 512), seed=2, transients=0, nan_pixels=0, bad_columns=0,
            saturation=np.inf, **options,
        )
    )  # fmt: skip
    scale = simulation.options.flux_scale
    kernel = simulation.kernel_at(256.0, 256.0)
    if simulation.convolved == "template":
        source, target = simulation.template, simulation.science
        assert kernel.sum() == pytest.approx(scale)
    else:
        source, target = simulation.science, simulation.template
        assert kernel.sum() == pytest.approx(1 / scale)
    difference = target.image - convolve(source.image.astype(np.float64), kernel)
    variance = target.variance + convolve(source.variance.astype(np.float64), kernel**2)
    inner = (slice(45, -45),) * 2
    pulls = (difference / np.sqrt(variance))[inner]
    assert pulls.std() == pytest.approx(1, abs=0.02)
    bright = (simulation.science.variance > 2000)[inner]
    assert bright.sum() > 50
    assert pulls[bright].std() < tolerance


def test_a_varying_psf_has_its_kernel_everywhere():
    simulation = simulate(SimulationOptions(shape=(256, 512), seed=2, variation=0.13))
    for x in (20.0, 490.0):
        sigma = 3.0 * (1 + 0.13 * (2 * (x + 0.5) / 512 - 1))
        kernel = simulation.kernel_at(x, 100.0)
        y, x_grid = np.mgrid[: len(kernel), : len(kernel)] - len(kernel) // 2
        width = np.sqrt((kernel * (x_grid**2 + y**2)).sum() / 2)
        assert width == pytest.approx(np.sqrt(sigma**2 - 2.2**2), rel=0.01)


def test_stars_have_their_flux_and_place():
    simulation = simulate(
        SimulationOptions(
            shape=(400, 400), stars=1, galaxies=0, transients=1, nan_pixels=0, bad_columns=0, seed=8
        )
    )
    sources = simulation.sources
    y, x = np.mgrid[:400, :400]
    for i in range(2):
        near = np.hypot(x - sources["x"][i], y - sources["y"][i]) < 13
        flux = sources["science_flux"][i]
        pixels = simulation.science.image[near]
        error = np.sqrt(simulation.science.variance[near].sum())
        assert abs(pixels.sum() - flux) < 5 * error
    transient = sources["kind"] == "transient"
    assert (sources["template_flux"][transient] == 0).all()


def test_flaws_are_there_and_masked():
    image = simulate(SimulationOptions(shape=(256, 256), nan_pixels=11, saturation=2000)).science
    assert np.isnan(image.image).sum() == 11
    np.testing.assert_array_equal(np.isnan(image.image), image.mask["NO_DATA"])
    assert image.mask["SAT"].any()
    columns = np.flatnonzero(image.mask["BAD"].any(axis=0))
    assert len(columns) == 2
    bad = image.mask["BAD"] & ~image.mask["NO_DATA"]
    assert np.median(image.image[bad]) > 100


def test_psf_stamps():
    psf = PsfModel(sigma=2.5, frame=(100, 100), ellipticity=(0.2, 0.1), offset=(0.3, -0.4))
    stamp = psf.stamp(10.0, 20.0)
    assert stamp.sum() == pytest.approx(1, abs=1e-5)
    grid = np.arange(len(stamp)) - len(stamp) // 2
    assert (stamp * grid[None, :]).sum() == pytest.approx(0.3, abs=1e-3)
    assert (stamp * grid[:, None]).sum() == pytest.approx(-0.4, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (10, 400)}, "at least 64"),
        ({"gain": 0.0}, "gain must be positive"),
        ({"stars": -1}, "stars must not be negative"),
        ({"science_variance": 1.0}, "below the read noise"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ArgumentError, match=message):
        SimulationOptions(**options)
    for wrong in ({"sigma": 0.0}, {"variation": 1.5}, {"ellipticity": (1.0, 0.5)}):
        with pytest.raises(ArgumentError):
            PsfModel(**{"sigma": 2.0, "frame": (9, 9)} | wrong)


def test_flaws_leave_the_rest_of_the_pixels_as_they_are():
    plain = simulate(SimulationOptions(shape=(150, 170), seed=6))
    own = ImageOptions(
        cosmic_rays=12, bad_pixels=0.01, bad_pixel_kind="garbage", nan_border=3, nan_hole=20
    )
    spoiled = simulate(SimulationOptions(shape=(150, 170), seed=6, science=own))
    np.testing.assert_array_equal(spoiled.template.image, plain.template.image)
    flawed = np.any([*spoiled.science.flaws.values()], axis=0)
    assert spoiled.science.flaws["NO_DATA"][:3].all()
    assert 0.005 < spoiled.science.flaws["BAD"].mean() < 0.05
    assert spoiled.science.flaws["CR"].any()
    assert "CR" not in spoiled.science.mask
    off = np.abs(spoiled.science.image - plain.science.image)[~flawed]
    assert off.max() < 0.51 * 30  # rays below the limit of their truth
    assert (off == 0).mean() > 0.97


@pytest.mark.parametrize("unit", ["electron/s", "adu/s", "electron"])
def test_units_are_factors(unit):
    options = {"shape": (100, 110), "seed": 2, "nan_pixels": 0}
    plain = simulate(SimulationOptions(**options)).science
    own = ImageOptions(unit=unit, exposure_time=40.0, unit_factor=1e-9)
    scaled = simulate(SimulationOptions(**options, science=own)).science
    factor = 1e-9 * {"electron/s": 2 / 40, "adu/s": 1 / 40, "electron": 2}[unit]
    np.testing.assert_allclose(scaled.image, plain.image * factor, rtol=1e-6, atol=0)
    np.testing.assert_allclose(scaled.variance, plain.variance * factor**2, rtol=1e-6)


@pytest.mark.parametrize("unit", ["adu", "electron", "adu/s", "electron/s"])
def test_the_header_of_any_unit_tells_the_photons(unit):
    own = ImageOptions(unit=unit, exposure_time=40.0)
    simulation = simulate(SimulationOptions(shape=(100, 110), seed=2, science=own))
    header = simulated_exposure(simulation, "science").header
    scale = photon_header(header, header).expected
    assert scale.gain == pytest.approx(2 / own.factor(2))


def test_charge_that_bleeds_is_conserved():
    counts = np.full((80, 5), 10.0)
    counts[40, 2], counts[41, 2] = 900.0, 300.0
    before = counts.sum()
    saturated = bleed(counts, 100.0)
    assert counts.max() == 100
    assert counts.sum() == pytest.approx(before)
    rows = np.flatnonzero(saturated[:, 2])
    assert len(rows) >= 10
    assert rows[0] < 40 < 41 < rows[-1]
    assert not saturated[:, [0, 1, 3, 4]].any()


def test_a_trail_is_as_bright_and_wide_as_asked():
    light, pixels, (x0, y0, angle) = trail((200, 210), 6.0, np.random.default_rng(3))
    y, x = np.nonzero(light > 0.5)
    across = np.abs((y - y0) * np.cos(angle) - (x - x0) * np.sin(angle))
    assert across.max() == pytest.approx(3, abs=0.1)
    assert light.max() > 0.97
    assert (pixels >= (light > 0.5)).all()


def test_grids_and_distortions_move_the_templates_sources():
    grid = Grid(shift=(3.0, -2.0), rotation=90.0, scale=2.0)
    simulation = simulate(
        SimulationOptions(shape=(101, 101), template_shape=(81, 91), template_grid=grid, seed=3)
    )
    sources = simulation.sources
    # A quarter turn takes x to y, and y to minus x; pixels of twice the size halve it.
    np.testing.assert_allclose(sources["template_x"], 45 + 3 - (sources["y"] - 50) / 2)
    np.testing.assert_allclose(sources["template_y"], 40 - 2 + (sources["x"] - 50) / 2)
    assert simulation.template.image.shape == (81, 91)
    with pytest.raises(ArgumentError, match="another grid"):
        simulation.kernel_at(5.0, 5.0)
    distorted = simulate(
        SimulationOptions(shape=(700, 700), stars=400, galaxies=0, template_distortion=0.2, seed=1)
    ).sources
    for axis in "xy":
        moved = distorted[f"template_{axis}"] - distorted[axis]
        assert 0.1 < moved.std() < 0.35


def test_an_integrated_psf_is_the_mean_over_pixels():
    fine = PsfModel(sigma=0.7, frame=(9, 9), ellipticity=(0.1, 0.1), offset=(0.2, 0.0))
    whole = dataclasses.replace(fine, integrated=True)
    grid = (np.arange(40) - 19.5) / 40
    expected = np.mean(
        [
            dataclasses.replace(fine, offset=(0.2 + dx, dy)).stamp(4.3, 4.1, size=9)
            for dx in grid
            for dy in grid
        ],
        axis=0,
    )
    np.testing.assert_allclose(whole.stamp(4.3, 4.1, size=9), expected, atol=2e-4)


def test_transients_have_hosts_and_some_vanish():
    sources = simulate(
        SimulationOptions(
            shape=(300, 300), stars=5, galaxies=40, transients=20, hosted=0.5, vanished=0.25,
            bulge=0.4, seed=2,
        )
    ).sources  # fmt: skip
    transient = sources["kind"] == "transient"
    assert (sources["template_flux"][transient] > 0).sum() == 5
    assert ((sources["template_flux"] > 0) != (sources["science_flux"] > 0))[transient].all()
    hosted = sources["host"] >= 0
    assert hosted.sum() == 10
    hosts = sources["host"][hosted]
    distance = np.hypot(
        sources["x"][hosted] - sources["x"][hosts], sources["y"][hosted] - sources["y"][hosts]
    )
    assert np.median(distance / sources["radius"][hosts]) < 2
    galaxy = sources["kind"] == "galaxy"
    assert 0.2 < sources["bulge"][galaxy].mean() < 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "jy"}, "unit is one of"),
        ({"masked": ("XY",)}, "masked names planes"),
        ({"bad_pixels": 1.0}, "fraction below 1"),
        ({"trails": -1}, "trails must not be negative"),
    ],
)
def test_flaws_that_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        ImageOptions(**options)


def test_the_command_has_an_option_for_each_flaw(run, tmp_path):
    names = {f"--science-{name}".replace("no-", "") for name, *_ in FLAWS}
    fields = {
        f"--science-{field.name}".replace("_", "-") for field in dataclasses.fields(ImageOptions)
    }
    assert names == fields
    code, _, messages = run(
        *("simulate", "--output", tmp_path, "--size", 100, "--stars", 20, "--seed", 3),
        *("--science-unit", "electron/s", "--science-exposure-time", 30),
        *("--science-noise-plane", "weight", "--science-masked", "none"),
        *("--science-cosmic-rays", 5, "--science-no-saturate-card", "--science-bleeding"),
        *("--template-grid", 3, -2, 2, 1.1, "--template-wcs-error", 1, 0.5, 0, 1),
    )
    assert code == 0, messages
    assert "difference" not in messages
    header = fits.getheader(tmp_path / "science.fits")
    assert (header["BUNIT"], header["EXPTIME"], header["GAIN"]) == ("electron/s", 30, 1)
    assert "SATURATE" not in header
    truth = Table.read(tmp_path / "truth.ecsv")
    told, right = (
        WCS(fits.getheader(tmp_path / f"{name}.fits", extension))
        for name, extension in (("template", "IMAGE"), ("science", 0))
    )
    sky = right.pixel_to_world(truth["x"], truth["y"])
    x, y = told.world_to_pixel(sky)
    np.testing.assert_allclose(x - truth["template_x"], 1, atol=1e-3)
    np.testing.assert_allclose(y - truth["template_y"], 0.5, atol=1e-3)
    with fits.open(tmp_path / "truth_mask.fits") as hdus:
        assert (hdus["SCIENCE"].data >> hdus["SCIENCE"].header["MP_CR"] & 1).any()
