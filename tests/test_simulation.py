"""Claims: simulations are reproducible; their noise is what their variance plane says; the true
kernel makes static sources cancel; positions and fluxes are those of the truth table."""

from __future__ import annotations

import numpy as np
import pytest

from whitediff.convolution import convolve
from whitediff.errors import ArgumentError
from whitediff.simulation import PsfModel, SimulationOptions, simulate

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
