"""The unit of an image's pixels changes nothing.

Claims:

* A pair times 10^k, its variances times 10^2k, in one image or both, for k from -30 to 20, gives
  the same difference to 1e-3 of its noise and nearly everywhere to 1e-4, the same variance to 1e-6,
  and the same catalogue; whichever image is convolved, in single precision and in double.
* So does a score.
* So do files of single precision without variances, which are measured: with 10^17 and 10^18 their
  squares leave that precision.
"""

from __future__ import annotations

import functools

import astropy.io.fits
import numpy as np
import pytest

from marks import slow_after
from whitediff import Exposure
from whitediff.detection.exposures import detections
from whitediff.evaluation.simulation import SimulationOptions, simulate
from whitediff.formats import read_exposure
from whitediff.subtraction.pipeline import make_all
from whitediff.subtraction.recipe import Recipe

WIDER = {"template": (2.0, 1.5), "science": (1.5, 2.0)}
LARGEST_SINGLE = 1e37
SMALLEST_SINGLE = 1e-36
WORST, USUAL = 1e-3, 1e-4
"""Of a pixel's noise.  What the fit's search for the weights of its penalty moves are the cores of
the brightest stars, of a significance of 1000."""


@functools.cache
def scene(convolved):
    science, template = WIDER[convolved]
    return simulate(
        SimulationOptions(
            shape=(256, 256), seed=3, science_psf=science, template_psf=template, stars=40,
            galaxies=20, transients=5, bad_columns=0, nan_pixels=0, saturation=1e9,
        )
    )  # fmt: skip


def exposure(image, power, dtype):
    factor = 10.0**power
    variance = image.variance.astype(np.float64) * factor * factor
    if variance.min() > SMALLEST_SINGLE and variance.max() < LARGEST_SINGLE:
        variance = variance.astype(dtype)
    return Exposure.from_arrays(
        (image.image.astype(np.float64) * factor).astype(dtype), variance=variance
    )


@functools.cache
def made(convolved, kind, powers, dtype):
    pair = scene(convolved)
    made = make_all(
        exposure(pair.science, powers[0], dtype), exposure(pair.template, powers[1], dtype),
        Recipe(), (kind,),
    )[kind].product  # fmt: skip
    found, factor = made.exposure, 10.0 ** powers[0]
    stars = made.solution.stars
    catalogue = detections(found).catalogue if kind == "difference" else None
    return (
        found.data.astype(np.float64) / factor,
        found.variance.astype(np.float64) / factor / factor,
        np.asarray(stars["used"]),
        made.decorrelation.kernel_sum * 10.0 ** (powers[1] - powers[0]),
        None if catalogue is None else np.asarray(catalogue["significance"]),
    )


def check(convolved, kind, powers, dtype):
    image, variance, used, total, rows = made(convolved, kind, (0, 0), dtype)
    found = made(convolved, kind, powers, dtype)
    moved = np.abs(found[0] - image) / np.sqrt(variance)
    assert moved.max() < WORST
    assert np.percentile(moved, 99.9) < USUAL
    np.testing.assert_allclose(found[1], variance, rtol=1e-6)
    np.testing.assert_array_equal(found[2], used)
    if convolved == "template":
        assert found[3] == pytest.approx(total, rel=1e-5)
    if rows is not None:
        np.testing.assert_allclose(found[4], rows, atol=5e-3)


@pytest.mark.parametrize(
    "powers", slow_after(2, (((-30, -30),), ((20, 20),), ((0, -30),), ((17, 17),), ((-18, 0),)))
)
@pytest.mark.parametrize("convolved", ["template", "science"])
def test_no_unit_changes_a_difference(convolved, powers):
    check(convolved, "difference", powers, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "powers", [(-30, 0), (-18, -18), (-9, 0), (0, -9), (9, 9), (9, 0), (20, 0), (0, 20), (-9, 9)]
)
@pytest.mark.parametrize("convolved", ["template", "science"])
def test_no_unit_changes_a_difference_of_any_kind(convolved, powers, dtype):
    check(convolved, "difference", powers, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("powers", [(-30, -30), (20, 0)])
def test_no_unit_changes_a_score(powers):
    check("template", "score", powers, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("power", [14, 17, 18, 20])
def test_no_unit_changes_files_of_single_precision(power, tmp_path):
    pair, rows = scene("template"), []
    for factor in (1.0, 10.0**power):
        read = []
        for name in ("science", "template"):
            image = (getattr(pair, name).image.astype(np.float64) * factor).astype(np.float32)
            path = tmp_path / f"{name}{factor:g}.fits"
            astropy.io.fits.writeto(path, image)
            read.append(read_exposure(path))
        product = make_all(*read, Recipe(), ("difference",))["difference"].product
        rows.append(np.asarray(detections(product.exposure).catalogue["significance"]))
    assert len(rows[0]) >= 5
    np.testing.assert_allclose(rows[1], rows[0], atol=0.05)
