"""Columns, rows and blocks without noise.

Claims:

- Runs of 8 pixels of one value and more are found in images whose noise is resolved, longer ones
  where it is rounded; whatever the value, the sky and the direction.
- Noise is not: rounded to a third of its width or coarser than it, correlated, clipped at zero, or
  missing altogether.
- Plateaus of stars are not dead.
- Dead columns of zeros in sky-subtracted images leave no row beside them, and lose no transient
  elsewhere; padding of zeros around an image leaves none either.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage

from marks import in_turn, slow_after
from whitediff.defects.dead import dead_runs
from whitediff.defects.exposures import DefectOptions, with_defects
from whitediff.detection.exposures import detect
from whitediff.evaluation.flaws import ImageOptions
from whitediff.evaluation.simulated import simulated_exposure
from whitediff.evaluation.simulation import Simulation, SimulationOptions, simulate
from whitediff.exposures import masks
from whitediff.exposures.model import Exposure
from whitediff.subtraction.pipeline import make_all
from whitediff.subtraction.recipe import Recipe

type Array = npt.NDArray[Any]

SHAPE = (300, 340)
N = 384
FLAGS = ("flag_bad", "flag_cosmic_ray", "flag_streak", "flag_contaminated", "flag_edge")
BESIDE = 10.0
"""Pixels from a column within which what it leaves would show."""


def field(seed: int, sigma: float = 10.0, sky: float = 0.0) -> Array:
    """Noise and some stars."""
    rng = np.random.default_rng(seed)
    points = np.zeros(SHAPE)
    points[tuple(rng.integers(0, n, 60) for n in SHAPE)] = sigma * 10 ** rng.uniform(2, 4, 60)
    image = sky + scipy.ndimage.gaussian_filter(points, 1.5) + rng.normal(0, sigma, SHAPE)
    return image.astype(np.float32)


def found(image: Array) -> Array:
    dead = dead_runs(image, np.zeros(image.shape, bool))
    return np.zeros(image.shape, bool) if dead is None else dead


def pieces(length: int) -> Array:
    """Columns, rows and blocks of a length, at edges too."""
    dead = np.zeros(SHAPE, bool)
    dead[:, 50] = dead[-length:, 90:93] = dead[130 : 130 + length, 200] = True
    dead[:length, 0] = dead[20, -length:] = dead[222, 100 : 100 + length] = True
    dead[250 : 250 + length, 250 : 250 + length] = True
    return dead


@pytest.mark.parametrize("value", [0.0, -30.0, 0.5, -2000.0])
@pytest.mark.parametrize("sky", [0.0, 1000.0, 30000.0])
@pytest.mark.parametrize("seed", range(4))
def test_short_runs_are_found(seed: int, sky: float, value: float) -> None:
    image, dead = field(seed, sky=sky), pieces(8)
    image[dead] = value
    assert (found(image) == dead).all()
    assert (found(image.T) == dead.T).all()


@pytest.mark.parametrize("sigma", [0.7, 1.0, 3.0, 10.0, 100.0])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_runs_in_rounded_images_are_found(sigma: float, dtype: type) -> None:
    dead = pieces(45)
    for seed in range(4):
        image = np.rint(field(seed, sigma, 100.0)).astype(dtype)
        image[dead] = 100
        marked = found(image)
        assert marked[dead].all()
        # A run goes on by the noise that happens to be the same.
        assert np.count_nonzero(marked & ~dead) <= 4 * np.count_nonzero(dead) / 45


@pytest.mark.parametrize("kind", ["float", "rounded", "coarse", "correlated", "clipped", "uneven"])
def test_noise_is_not_dead(kind: str) -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        sigma = float(10 ** rng.uniform(-0.8, 1.5))
        image = field(seed, sigma, float(rng.choice([0, 1000])))
        if kind in ("coarse", "rounded"):
            step = rng.uniform(0.3, 2) * sigma if kind == "rounded" else rng.uniform(2, 10) * sigma
            image = (np.rint(image / step) * step).astype(np.float32)
        elif kind == "correlated":
            image = np.rint(scipy.ndimage.gaussian_filter(image, 1.0)).astype(np.float32)
        elif kind == "clipped":
            image = np.maximum(scipy.ndimage.gaussian_filter(image, rng.uniform(0, 1.5)), 0)
        elif kind == "uneven":
            image[:, 170:] *= 0.6
            image = np.rint(image)
        assert not found(image).any(), seed


def test_plateaus_and_images_without_noise_are_not_dead() -> None:
    image = np.minimum(field(5), 300)
    assert not found(image).any()
    assert not found(np.ones(SHAPE, np.float32)).any()
    points = np.zeros(SHAPE, np.float32)
    points[100:104, 100:104] = 50
    assert not found(points).any()


def test_what_is_missing_is_left_as_it_is() -> None:
    image, dead, missing = field(6), pieces(8), np.zeros(SHAPE, bool)
    image[dead] = 0
    missing[:, 40:60] = True
    marked = dead_runs(image, missing)
    assert marked is not None
    assert (marked == dead & ~missing).all()
    off = DefectOptions(bad_pixels=False)
    exposures = [
        Exposure.from_arrays(image, variance=np.full(SHAPE, 100, np.float32)) for _ in range(2)
    ]
    for options, expected in ((off, False), (DefectOptions(), True)):
        for exposure in with_defects(*exposures, options):
            assert masks.flagged(exposure.mask, ["BAD"])[dead].all() == expected


def simulation(seed: int, on: str, sky: float = 0.0) -> Simulation:
    def options(name: str) -> ImageOptions:
        dead = {"bad_column_value": 0.0} if on in (name, "both") else {"masked": ("BAD",)}
        return ImageOptions(**({"masked": (), "sky": sky} | dead))

    return simulate(
        SimulationOptions(
            shape=(N, N),
            seed=seed,
            science_psf=1.9,
            template_psf=1.5,
            flux_scale=1.2,
            bad_columns=4,
            nan_pixels=0,
            margin=10,
            saturation=1e9,
            stars=100,
            galaxies=10,
            transients=8,
            brightest_star=3e5,
            brightest_galaxy=1e5,
            science=options("science"),
            template=options("template"),
        )
    )


def rows(exposures: list[Exposure]) -> Any:
    made = make_all(*exposures, Recipe(), ("difference",))["difference"]
    catalogue = detect(made.product.exposure)
    told = np.asarray(catalogue["classification"]) == "artifact"
    for flag in FLAGS:
        told |= np.asarray(catalogue[flag], bool)
    return catalogue, told


def check_columns(seed: int, on: str, sky: float, turned: bool) -> None:
    scene = simulation(seed, on, sky)
    exposures = [simulated_exposure(scene, name).replaced() for name in ("science", "template")]
    # The other image's columns are told by its mask.
    bad = scene.science.flaws["BAD"] | scene.template.flaws["BAD"]
    here = scene.sources["kind"] == "transient"
    true = np.stack([scene.sources["x"][here], scene.sources["y"][here]])
    for exposure in exposures:
        exposure.psf = None
    if turned:
        bad, true = bad.T, true[::-1]
        exposures = [
            Exposure.from_arrays(
                np.ascontiguousarray(each.data.T),
                variance=np.ascontiguousarray(each.variance.T),
                mask={name: masks.flagged(each.mask, [name]).T for name in each.mask.names},
            )
            for each in exposures
        ]
    catalogue, told = rows(exposures)
    x, y = catalogue["x"].value, catalogue["y"].value
    distance = scipy.ndimage.distance_transform_edt(~bad)
    at = tuple(np.clip(np.rint(v).astype(int), 0, N - 1) for v in (y, x))
    apart = np.hypot(x[:, None] - true[0], y[:, None] - true[1])
    assert not ((distance[at] < BESIDE) & ~told & (apart > 5).all(axis=1)).any()
    clear = distance[tuple(np.clip(np.rint(true[::-1]).astype(int), 0, N - 1))] > BESIDE
    inside = ((true > 15) & (true < N - 16)).all(axis=0)
    assert ((apart < 2) & ~told[:, None]).any(axis=0)[clear & inside].all()


@pytest.mark.parametrize(
    ("seed", "on", "sky", "turned"),
    slow_after(
        1, [(2, "template", 0.0, True), (1, "science", 0.0, False), (5, "both", 0.0, False)]
    ),
)
def test_dead_columns_harm_nothing(seed: int, on: str, sky: float, turned: bool) -> None:
    check_columns(seed, on, sky, turned)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("levels", "on", "seed"),
    in_turn(
        [(0.0, False), (0.0, True), (300.0, False)],
        ["science", "template", "both"],
        seeds=range(4, 12),
    ),
)
def test_dead_columns_harm_nothing_anywhere(levels: tuple[float, bool], on: str, seed: int) -> None:
    sky, turned = levels
    check_columns(seed, on, sky, turned)


@pytest.mark.parametrize("on", ["science", "template"])
def test_padding_of_zeros_is_missing(on: str) -> None:
    scene = simulation(12, "none")
    exposures = [simulated_exposure(scene, name).replaced() for name in ("science", "template")]
    padding = np.ones((N, N), bool)
    padding[12:-20, 15:-9] = False
    exposures[on == "template"].data[padding] = 0
    marked = with_defects(*exposures, DefectOptions(bad_pixels=True))[on == "template"]
    assert masks.flagged(marked.mask, ["BAD", "NO_DATA"])[padding].all()
    for exposure in exposures:
        exposure.psf = None
    catalogue, told = rows(exposures)
    x, y = catalogue["x"].value, catalogue["y"].value
    distance = scipy.ndimage.distance_transform_edt(~padding)
    at = tuple(np.clip(np.rint(v).astype(int), 0, N - 1) for v in (y, x))
    here = scene.sources["kind"] == "transient"
    apart = np.hypot(
        x[:, None] - scene.sources["x"][here], y[:, None] - scene.sources["y"][here]
    ).min(axis=1)
    # What is left of a star of 1000 sigma that the padding cuts is told as near a bright star.
    told |= np.asarray(catalogue["flag_near_bright_star"], bool)
    assert not ((distance[at] < BESIDE) & ~told & (apart > 5)).any()
