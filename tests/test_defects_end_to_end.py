"""Cosmic rays and trails, from two images to the catalogue.

Claims:

- With a thousand rays in 1024 × 1024 pixels of either image, the kernel's sum is within 2 % of the
  one without them, and no row on a ray or beside one is without a flag.
- The charge around a bright ray is masked with it: few rows remain at any seeing.
- Rows on a trail of any brightness are flagged; the kernel's sum stays.
- An amplifier that no light reaches makes no source that is believed.
- A product made again from its solution has the same pixels and mask, bit for bit.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np
import pytest
import scipy.ndimage

from marks import in_turn, slow_after
from whitediff.detection.exposures import detect
from whitediff.evaluation.flaws import ImageOptions
from whitediff.evaluation.simulated import simulated_exposure
from whitediff.evaluation.simulation import Simulation, SimulationOptions, simulate
from whitediff.subtraction.pipeline import make_again, make_all
from whitediff.subtraction.recipe import Recipe

N = 384
RAYS = round(1000 * (N / 1024) ** 2)
KERNEL_SUM = 0.02
"""Relative: that of some twenty stars, of which rays hit a quarter, varies by half of it."""
FLAGS = ("flag_bad", "flag_cosmic_ray", "flag_streak", "flag_contaminated", "flag_edge")
ON_TRAIL = 3.0
"""Pixels from the nearest one of a trail within which a row lies on it."""

HARMED = {
    (23, 2.5, "template", "template"): "a ray in a star's core: 2.7 % of the sum",
    (23, 2.5, "template", "both"): "a ray in a star's core: 2.7 % of the sum",
    (23, 1.6, "science", "template"): "rays next to undersampled stars leave a few rows",
    (23, 1.6, "template", "both"): "rays next to undersampled stars leave a few rows",
    (25, 1.6, "template", "template"): "rays next to undersampled stars leave two rows",
    (25, 1.6, "template", "both"): "rays next to undersampled stars leave two rows",
    (22, 1.6, "science", "both"): "rays next to undersampled stars leave two rows",
    (
        28,
        1.6,
        "template",
        "science",
    ): "the brightest star, undersampled, leaves three rows near rays",
}
"""Seed, full width, direction and image in which rays do harm."""

NEAR = 8.0
"""Pixels from a ray or trail within which a filter's ringing would show."""


def simulation(seed: int, fwhm: float, direction: str, on: str = "none", **flaw: Any) -> Simulation:
    sharp, wide = fwhm / 2.3548, 1.3 * fwhm / 2.3548
    psfs = (wide, sharp) if direction == "template" else (sharp, wide)

    def options(name: str) -> ImageOptions:
        return ImageOptions(masked=(), **(flaw if on in (name, "both") else {}))

    return simulate(
        SimulationOptions(
            shape=(N, N),
            seed=seed,
            science_psf=psfs[0],
            template_psf=psfs[1],
            integrated=True,
            flux_scale=1.2,
            bad_columns=0,
            nan_pixels=0,
            margin=10,
            saturation=1e9,
            stars=100,
            galaxies=10,
            transients=6,
            brightest_star=3e5,
            brightest_galaxy=1e5,
            science=options("science"),
            template=options("template"),
        )
    )


def images_of(scene: Simulation) -> list[Any]:
    """Science image and template, without their PSFs."""
    exposures = []
    for name in ("science", "template"):
        exposure = simulated_exposure(scene, name).replaced()
        exposure.psf = None
        exposures.append(exposure)
    return exposures


def difference_of(exposures: list[Any]) -> Any:
    return make_all(*exposures, Recipe(), ("difference",))["difference"]


def made(scene: Simulation) -> Any:
    exposures = images_of(scene)
    return difference_of(exposures), exposures


def are_flagged(rows: Any) -> np.ndarray:
    """Which rows have a flag of a defect."""
    return np.any([np.asarray(rows[flag], bool) for flag in FLAGS], axis=0)


def kernel_sum(product: Any) -> float:
    kernel = product.product.solution.kernel
    return float(kernel.at(x=N / 2, y=N / 2).sum())


@functools.cache
def sum_without(seed: int, fwhm: float, direction: str) -> float:
    return kernel_sum(made(simulation(seed, fwhm, direction))[0])


def rows_near(scene: Simulation, exposure: Any, kind: str, within: float = NEAR) -> tuple[int, int]:
    """Rows that are no transient within some pixels of flaws, and those without a flag."""
    flawed = np.zeros((N, N), bool)
    for image in (scene.science, scene.template):
        flawed |= image.flaws.get(kind, False)
    distance = scipy.ndimage.distance_transform_edt(~flawed)
    rows = detect(exposure)
    x, y = rows["x"].value, rows["y"].value
    there = scene.sources["kind"] == "transient"
    true_x, true_y = scene.sources["x"][there], scene.sources["y"][there]
    other = (np.hypot(x[:, None] - true_x, y[:, None] - true_y) > 5).all(axis=1)
    place = (np.clip(np.rint(v).astype(int), 0, N - 1) for v in (y, x))
    near = other & (distance[tuple(place)] < within)
    told = are_flagged(rows) | (np.asarray(rows["classification"]) == "artifact")
    return int(near.sum()), int((near & ~told).sum())


def check_rays(seed: int, fwhm: float, direction: str, on: str) -> None:
    scene = simulation(seed, fwhm, direction, on, cosmic_rays=RAYS)
    product, _ = made(scene)
    without = sum_without(seed, fwhm, direction)
    assert kernel_sum(product) == pytest.approx(without, rel=KERNEL_SUM)
    near, untold = rows_near(scene, product.product.exposure, "CR")
    assert near < 0.25 * RAYS
    assert untold <= 1


@pytest.mark.parametrize(
    ("fwhm", "direction", "on"),
    slow_after(1, [(2.5, "template", "both"), (1.6, "science", "science")]),
)
def test_rays_harm_nothing(fwhm, direction, on):
    check_rays(21, fwhm, direction, on)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fwhm", "direction", "on", "seed"),
    in_turn(
        [1.6, 2.5, 4.0],
        ["template", "science"],
        ["science", "template", "both"],
        seeds=range(22, 30),
    ),
)
def test_rays_harm_nothing_anywhere(request, seed, fwhm, direction, on):
    if (seed, fwhm, direction, on) in HARMED:
        reason = HARMED[seed, fwhm, direction, on]
        request.applymarker(pytest.mark.xfail(reason=reason))
    check_rays(seed, fwhm, direction, on)


def check_trail(seed: int, direction: str, on: str, brightness: float) -> None:
    scene = simulation(seed, 2.5, direction, on, trails=1, trail_brightness=brightness)
    product, _ = made(scene)
    without = sum_without(seed, 2.5, direction)
    assert kernel_sum(product) == pytest.approx(without, rel=KERNEL_SUM)
    near, untold = rows_near(scene, product.product.exposure, "STREAK", ON_TRAIL)
    assert near > 0
    assert untold == 0


@pytest.mark.slow
@pytest.mark.parametrize(("on", "brightness"), [("science", 5.0), ("template", 40.0)])
def test_rows_on_trails_are_flagged(on, brightness):
    check_trail(31, "template", on, brightness)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("brightness", "on", "seed"),
    in_turn([2.0, 5.0, 40.0], ["science", "template"], seeds=range(32, 40)),
)
def test_rows_on_trails_are_flagged_anywhere(seed, on, brightness):
    check_trail(seed, "template" if seed % 2 else "science", on, brightness)


def with_amplifiers(scene: Simulation, seed: int) -> list[Any]:
    """The scene's images, with four amplifiers of other offsets in each."""
    rng = np.random.default_rng(seed)
    exposures = images_of(scene)
    for exposure in exposures:
        image = exposure.data
        ny, nx = image.shape
        noise = np.sqrt(np.median(exposure.variance))
        for rows in (slice(0, ny // 2), slice(ny // 2, ny)):
            for columns in (slice(0, nx // 2), slice(nx // 2, nx)):
                image[rows, columns] += noise * rng.normal(0, 1.5)
    return exposures


@pytest.mark.parametrize("seed", slow_after(1, range(61, 69)))
def test_amplifiers_of_other_offsets_make_no_source(seed):
    scene = simulation(seed, 3.0, ("template", "science")[seed % 2])
    before, after = (
        detect(difference_of(exposures()).product.exposure)
        for exposures in (lambda: images_of(scene), lambda: with_amplifiers(scene, seed))
    )
    told = are_flagged(after) | (np.asarray(after["classification"]) != "point")
    places = [np.stack([rows["x"].value, rows["y"].value]) for rows in (after, before)]
    apart = np.hypot(*(places[0][:, :, None] - places[1][:, None]))
    # The noise's own peaks are in both.
    assert not (~told & (apart > 3).all(axis=1)).any()
    seen = apart.min(axis=0) < 1
    bright = np.abs(np.asarray(before["significance"])) > 7
    bright &= np.asarray(before["classification"]) == "point"
    assert seen[bright].all()
    assert np.count_nonzero(bright) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["template", "science"])
def test_a_product_is_made_again(direction, caplog):
    caplog.set_level(logging.INFO)
    scene = simulation(41, 2.5, direction, "both", cosmic_rays=RAYS, trails=1)
    exposures = with_amplifiers(scene, 41)
    first = difference_of(exposures)
    assert "its level jumps" in caplog.text
    solutions = {"difference": first.product.solution}
    again = make_again(*exposures, solutions)["difference"].product.exposure
    before = first.product.exposure
    assert np.array_equal(before.data, again.data, equal_nan=True)
    assert np.array_equal(before.variance, again.variance, equal_nan=True)
    assert before.mask.names == again.mask.names
    assert np.array_equal(before.mask.bits, again.mask.bits)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(31, 39))
def test_an_amplifier_that_no_light_reaches_makes_no_source(seed, rng):
    scene = simulation(seed, 3.0, ("template", "science")[seed % 2])
    which, place = seed % 2, (np.s_[:130, :100], np.s_[:, -40:])[seed // 2 % 2]
    exposures = images_of(scene)
    for exposure in exposures:
        exposure.data[...] += 1000
    image = exposures[which].data
    image[place] = rng.normal(10, 5, image[place].shape)
    rows = detect(difference_of(exposures).product.exposure)
    told = are_flagged(rows) | (np.asarray(rows["classification"]) != "point")
    there = scene.sources["kind"] == "transient"
    at = np.stack([scene.sources[axis][there] for axis in ("x", "y")])
    apart = np.hypot(*(np.stack([rows["x"].value, rows["y"].value])[:, :, None] - at[:, None]))
    assert not (~told & (apart > 3).all(axis=1)).any()
    # Of six, of which some are faint, or where no light is.
    assert np.count_nonzero((apart < 3).any(axis=1)) >= 2
