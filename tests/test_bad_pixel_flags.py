"""What bad pixels do to the belief in a source.

Claims:

- A point has the flag of a plane within a full width at half maximum if its own pixel holds no
  measurement, or pixels of more than 0.15 of the squared PSF do not, as explicit sums tell;
  flag_contaminated if contaminated pixels have more than 0.3; flag_cosmic_ray also within 2.5
  pixels of CR pixels that touch.  What is no point is flagged by any of them.
- With 1 % of single bad pixels nine in ten transients are believed, with 5 % in both images half
  of them at least, whatever says that the pixels are bad, and whichever image is convolved.
- Bad pixels bias no flux by 1 %; fluxes of believed transients are as far from the truth as their
  errors say, and none of them by 3.5; nor is one that is flagged, but where the core is lost.
- No source is believed that is none.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from astropy.table import Table

from marks import in_turn
from whitediff import Exposure
from whitediff.detection.catalog import believed, source_flags
from whitediff.detection.exposures import detections, forced_photometry
from whitediff.evaluation.simulation import PsfModel, SimulationOptions, simulate
from whitediff.noise.sources import RESIDUAL
from whitediff.numerics.profiles import FWHM_TO_SIGMA
from whitediff.subtraction.pipeline import make_all
from whitediff.subtraction.recipe import Recipe

FRAME, SIGMA = (60, 70), 1.7
LOST, CONTAMINATED = 0.15, 0.3
PLANES = {"BAD": "flag_bad", "CR": "flag_cosmic_ray", "NO_DATA": "flag_no_data"}


def shares(x, y, image):
    """Of a round Gaussian's square, by explicit sums: on the pixels, and their own pixel's."""
    rows, columns = np.mgrid[: FRAME[0], : FRAME[1]]
    square = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / SIGMA**2)
    return (square * image).sum() / square.sum(), bool(image[round(y), round(x)])


def beside_ray(x, y, hit):
    for row, column in np.argwhere(hit):
        around = hit[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        if around.sum() > 1 and np.hypot(row - y, column - x) <= min(2.5, SIGMA / FWHM_TO_SIGMA):
            return True
    return False


@pytest.mark.parametrize("how", [*PLANES, "nan", "variance", "CONTAMINATED"])
@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.3])
def test_flags_go_by_the_share_of_the_squared_psf(rng, how, fraction):
    bad = rng.random(FRAME) < fraction
    image, variance = np.zeros(FRAME), np.ones(FRAME)
    mask = {}
    if how == "nan":
        image[bad] = np.nan
    elif how == "variance":
        variance[bad] = 0
    else:
        mask = {how: bad}
    model = PsfModel(sigma=SIGMA, frame=FRAME)
    x, y = rng.uniform(12, 48, (2, 60))
    flags = {
        point: source_flags(
            Exposure.from_arrays(image, variance=variance, mask=mask), x, y,
            significance=np.full(len(x), 20.0), point=np.full(len(x), point),
            psf=model.image(0, 0), reach=3 * SIGMA,
            part_left=lambda: RESIDUAL,
        )[PLANES.get(how, "flag_contaminated" if how == "CONTAMINATED" else "flag_no_data")]
        for point in (True, False)
    }  # fmt: skip
    rows, columns = np.mgrid[: FRAME[0], : FRAME[1]]
    for i, place in enumerate(zip(x, y, strict=True)):
        share, own = shares(*place, bad)
        near = bad[np.hypot(columns - x[i], rows - y[i]) <= SIGMA / FWHM_TO_SIGMA].any()
        assert flags[False][i] == near
        limit = CONTAMINATED if how == "CONTAMINATED" else LOST
        if abs(share - limit) > 0.003:
            spoilt = share > limit or (own and how != "CONTAMINATED")
            if how == "CR":
                spoilt |= beside_ray(*place, bad)
            assert flags[True][i] == spoilt


SIZE = 384
WIDER = {"template": (1.8, 1.5), "science": (1.5, 1.8)}
"""Which image is convolved → widths of science PSF and template PSF."""
SPOILT = {
    "nan": lambda image, variance, bad: ({}, np.where(bad, np.nan, image), variance),
    "flagged": lambda image, variance, bad: ({"BAD": bad}, np.where(bad, 6e4, image), variance),
    "hit": lambda image, variance, bad: ({"CR": bad}, np.where(bad, image + 3e3, image), variance),
    "no weight": lambda image, variance, bad: (
        {}, np.where(bad, 6e4, image), np.where(bad, np.inf, variance),
    ),
    "no variance": lambda image, variance, bad: (
        {}, np.where(bad, -3e4, image), np.where(bad, 0, variance),
    ),
}  # fmt: skip
LEAST_BELIEVED = {0.002: 0.95, 0.01: 0.9, 0.02: 0.8, 0.05: 0.5}


@functools.cache
def simulated(seed, convolved):
    science, template = WIDER[convolved]
    return simulate(
        SimulationOptions(
            shape=(SIZE, SIZE), seed=seed, science_psf=science, template_psf=template, stars=60,
            galaxies=10, transients=40, vanished=0.3, bad_columns=0, nan_pixels=0, saturation=1e9,
        )
    )  # fmt: skip


@functools.cache
def measured(seed, convolved, how, fraction, where):
    """Fluxes at the true places of lonely transients over 7 σ, their rows, and false rows."""
    scene = simulated(seed, convolved)
    rng = np.random.default_rng(seed + 50)
    pair = []
    for name in ("science", "template"):
        image = getattr(scene, name)
        bad = np.zeros((SIZE, SIZE), bool)
        if where in ("both", name):
            bad = rng.random(bad.shape) < fraction
        mask, pixels, variance = SPOILT[how](image.image, image.variance, bad)
        pair.append(
            Exposure.from_arrays(
                pixels.astype(np.float32), variance=variance.astype(np.float32), mask=mask
            )
        )
    found = make_all(*pair, Recipe(), ("difference",))["difference"].product.exposure
    new = scene.sources["kind"] == "transient"
    x, y = (scene.sources[name][new] for name in "xy")
    flux = (scene.sources["science_flux"] - scene.sources["template_flux"])[new]
    forced = forced_photometry(found, Table({"x": x, "y": y}))
    rows = detections(found).catalogue
    apart = np.hypot(rows["x"].value[:, None] - x, rows["y"].value[:, None] - y)
    others = np.hypot(scene.sources["x"][:, None] - x, scene.sources["y"][:, None] - y)
    lonely = np.partition(others, 1, axis=0)[1] > 12
    lonely &= np.minimum.reduce([x, y, SIZE - 1 - x, SIZE - 1 - y]) > 15
    return forced, flux, lonely, rows, apart, found.psf.light.error


@pytest.mark.parametrize(
    ("seed", "convolved", "how", "fraction", "where"),
    [
        (1, "template", "nan", 0.05, "both"), (2, "science", "flagged", 0.01, "science"),
        *(
            pytest.param(seed, convolved, how, fraction, where, marks=pytest.mark.slow)
            for fraction, convolved, (how, where), seed in in_turn(
                LEAST_BELIEVED,
                WIDER,
                (
                    ("nan", "both"), ("flagged", "template"), ("hit", "science"),
                    ("no weight", "template"), ("no variance", "both"),
                ),
                seeds=range(3, 11),
            )
        ),
    ],
)  # fmt: skip
def test_bad_pixels_spoil_few_transients(seed, convolved, how, fraction, where):
    forced, flux, lonely, rows, apart, light_error = measured(seed, convolved, how, fraction, where)
    clean, *_ = measured(seed, convolved, "nan", 0.0, "both")
    error = clean["psf_flux_err"].value
    bright = lonely & (np.abs(flux) > 7 * error)
    assert bright.sum() >= 15
    # Near bright stars and edges bad pixels have no say.
    nearest = apart.argmin(axis=0)
    elsewhere = np.asarray(rows["flag_near_bright_star"] | rows["flag_edge"])
    used = bright & (apart.min(axis=0) < 3) & ~elsewhere[nearest]
    trusted = believed(rows)[nearest] & used
    assert trusted.sum() >= LEAST_BELIEVED[fraction] * used.sum()
    assert used.sum() >= 0.9 * (bright & ~elsewhere[nearest]).sum()
    # As without bad pixels: the PSF and the kernel's sum are no better known there.  Of 2 % and
    # more, five to fifteen stars tell the PSF's light, which is what the run says of it.
    allowed = 0.01 if fraction < 0.02 else max(0.01, 2 * light_error)
    weight = (flux / error**2)[trusted]
    moved = (forced["psf_flux"].value - clean["psf_flux"].value)[trusted]
    assert abs((weight * moved).sum() / (weight * flux[trusted]).sum()) < allowed
    row = nearest[trusted]
    for value, its_error in (
        (forced["psf_flux"].value[trusted], forced["psf_flux_err"].value[trusted]),
        (rows["psf_flux"].value[row], rows["psf_flux_err"].value[row]),
    ):
        pulls = (value - flux[trusted]) / its_error
        assert np.abs(pulls).max() < 3.5
        # The spread of as many: three standard deviations.
        assert np.sqrt(np.mean(pulls**2)) < 1.1 + 3 / np.sqrt(2 * len(pulls))
    # Where the core is lost, too.
    flagged = bright & np.isfinite(forced["psf_flux"].value) & ~trusted
    pulls = (forced["psf_flux"].value - flux)[flagged] / forced["psf_flux_err"].value[flagged]
    assert np.abs(pulls).max(initial=0) < 3.5
    false = believed(rows) & (apart.min(axis=1) > 4)
    assert (np.abs(rows["significance"][false]) < 5.6).all()
    assert false.sum() <= 1
