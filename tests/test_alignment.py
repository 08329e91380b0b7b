"""Templates on other pixels.

Claims: a template that is larger or shifted by whole pixels, as its WCS or its box says, gives the
same difference as one that was cut by hand; what it does not cover is NO_DATA; anything but whole
pixels to a twentieth, no overlap or too little is one sentence; where the WCS is to be ignored, a
template is not resampled by it, whatever was done to it before.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from astropy.io import fits

from whitediff import Exposure
from whitediff.alignment.exposures import aligned_template
from whitediff.errors import ArgumentError, DataError
from whitediff.evaluation.simulation import SimulationOptions, simulate
from whitediff.exposures.kernels import constant_kernel
from whitediff.matching.preparation import PreparationOptions, prepare
from whitediff.subtraction.pipeline import aligned_as_before
from whitediff.subtraction.recipe import Recipe
from whitediff.subtraction.solution import Solution

SHAPE = (300, 320)


def header(dx: float = 0.0, dy: float = 0.0, rotation: float = 0.0) -> fits.Header:
    """WCS of a field whose centre lies dx, dy pixels further right and up."""
    cards = fits.Header()
    scale, c, s = 0.25 / 3600, math.cos(rotation), math.sin(rotation)
    for axis, (kind, middle, value) in enumerate(
        (("RA---TAN", 160.5 + dx, 150.0), ("DEC--TAN", 150.5 + dy, 2.0)), start=1
    ):
        cards[f"CTYPE{axis}"], cards[f"CRPIX{axis}"] = kind, middle
        cards[f"CRVAL{axis}"] = value
    cards["CD1_1"], cards["CD1_2"] = -scale * c, scale * s
    cards["CD2_1"], cards["CD2_2"] = scale * s, scale * c
    return cards


def exposure(image, wcs=None, **options) -> Exposure:
    return Exposure.from_arrays(image, variance=1.0, header=wcs, **options)


def test_whole_pixel_offsets(rng):
    science = exposure(rng.normal(size=SHAPE), header())
    image = rng.normal(size=(400, 390))
    mask = np.zeros(image.shape, dtype=bool)
    mask[120, 200] = True
    by_wcs = exposure(image, header(40, 70), mask={"BAD": mask})
    by_box = Exposure.from_arrays(image, variance=1.0, mask={"BAD": mask}, origin=(-70, -40))
    for template in (by_wcs, by_box):
        aligned = aligned_template(science, template)
        assert aligned.bbox == science.bbox
        np.testing.assert_array_equal(aligned.data, image[70:370, 40:360])
        np.testing.assert_array_equal(aligned.mask.get("BAD"), mask[70:370, 40:360])
        assert "NO_DATA" not in aligned.mask.names
    # Its own WCS still points at the same sky.
    before = by_wcs.wcs.pixel_to_world_values(100.0, 150.0)
    after = aligned_template(science, by_wcs).wcs.pixel_to_world_values(60.0, 80.0)
    np.testing.assert_allclose(before, after, atol=1e-10)


def test_what_the_template_does_not_cover_is_marked(rng):
    science = exposure(rng.normal(size=SHAPE), header())
    image = rng.normal(size=SHAPE)
    aligned = aligned_template(science, exposure(image, header(-30, 100)))
    covered = np.zeros(SHAPE, dtype=bool)
    covered[:200, 30:] = True
    np.testing.assert_array_equal(aligned.data[:200, 30:], image[100:, :-30])
    assert np.isnan(aligned.data[~covered]).all()
    np.testing.assert_array_equal(aligned.mask.get("NO_DATA"), ~covered)


def test_a_varying_psf_moves_along(rng):
    from whitediff.exposures.kernels import chebyshev_kernel
    from whitediff.exposures.psf import KernelPointSpreadFunction

    template = exposure(rng.normal(size=(400, 420)), header(50, 60))
    basis = np.zeros((2, 3, 3))
    basis[0, 1, 1], basis[1, 1, 1], basis[1, 1, 2] = 1.0, -0.5, 0.5
    coefficients = np.zeros((2, 2, 2))
    coefficients[0, 0, 0], coefficients[1, 0, 1] = 1.0, 1.0
    template.psf = KernelPointSpreadFunction(
        chebyshev_kernel(basis, coefficients, template.bbox), average_position=(210.0, 200.0)
    )
    aligned = aligned_template(exposure(rng.normal(size=SHAPE), header()), template)
    assert aligned.psf is not None
    np.testing.assert_allclose(
        aligned.psf.at(x=100, y=30), template.psf.at(x=150, y=90), atol=1e-10
    )


def test_anything_but_whole_pixels_is_refused(rng):
    image = rng.normal(size=SHAPE)
    science = exposure(image, header())
    for wcs, message in (
        (header(2.4), r"up to 2\.40 pixels .*, 0\.40 after a shift by whole pixels, .*--align"),
        (
            header(0.4),
            r"up to 0\.40 pixels .*, 0\.40 after a shift by whole pixels, .*--ignore-wcs",
        ),
        (header(rotation=0.02), r"up to 4\.3\d pixels .* after a shift by whole pixels"),
    ):
        with pytest.raises(ArgumentError, match=message):
            aligned_template(science, exposure(image, wcs))
    rotated = exposure(image, header(rotation=0.02))
    assert aligned_template(science, rotated, use_wcs=False) is rotated
    with pytest.raises(DataError, match="does not overlap the science image"):
        aligned_template(science, exposure(image, header(5000)))
    with pytest.raises(ArgumentError, match="400 x 390 pixels, but the science image 300 x 320"):
        aligned_template(science, exposure(rng.normal(size=(400, 390))))
    close = exposure(image, header(0.04))
    assert aligned_template(science, close) is close


@pytest.mark.parametrize("strip", [(slice(0, 117), slice(None)), (slice(None), slice(583, 700))])
def test_a_strip_of_a_frame_is_enough(strip):
    """Too narrow for shapes of stars that change over the frame."""
    simulation = simulate(SimulationOptions(shape=(700, 700), seed=2, stars=300, galaxies=0))
    science, template = (
        Exposure.from_arrays(part.image, variance=part.variance, mask=part.mask)
        for part in (simulation.science, simulation.template)
    )
    beyond = np.ones(template.shape, bool)
    beyond[strip] = False
    image = template.data.copy()
    image[beyond] = np.nan
    pair = prepare(science, Exposure.from_arrays(image, variance=template.variance))
    assert pair.sources.stars.are_certain
    assert np.count_nonzero(pair.sources.stars.which) > 10


def test_a_single_row_is_refused_in_a_sentence(rng):
    row, template = (Exposure.from_arrays(rng.normal(size=(1, 90)), variance=1.0) for _ in range(2))
    with pytest.raises(DataError, match="No source stands out"):
        prepare(row, template)


def test_a_template_must_cover_enough(caplog):
    simulation = simulate(SimulationOptions(shape=(700, 700), seed=2, stars=300, galaxies=0))
    science, template = (
        Exposure.from_arrays(part.image, variance=part.variance, mask=part.mask)
        for part in (simulation.science, simulation.template)
    )
    part = template.replaced(data=template.data.copy())
    part.data[117:] = np.nan
    with caplog.at_level("WARNING", logger="whitediff"):
        pair = prepare(science, part)
    assert pair.template_fraction == pytest.approx(1 / 6, abs=0.01)
    assert "covers only 16." in caplog.text
    part.data[50:] = np.nan
    with pytest.raises(DataError, match=r"covers 7\.\d% of the science image's usable"):
        prepare(science, part)


def test_an_ignored_wcs_resamples_nothing(rng):
    pixels = rng.normal(size=SHAPE).astype(np.float32)
    science, template = (
        Exposure.from_arrays(pixels, variance=1.0, header=header(rotation=angle))
        for angle in (0.0, 0.05)
    )
    solution = Solution(
        kernel=constant_kernel(np.ones((1, 1)), science.bbox),
        background=0.0,
        convolved="template",
        alignment="interpolating",
    )
    recipe = Recipe(preparation=PreparationOptions(use_wcs=False))
    ignored = dataclasses.replace(solution, recipe=recipe)
    assert aligned_as_before(science, template, [ignored]) is template
    again = aligned_as_before(science, template, [solution])
    assert not np.array_equal(again.data, pixels, equal_nan=True)
