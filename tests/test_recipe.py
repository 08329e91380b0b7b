"""One recipe decides all pixels, and one pipeline makes them.

Claims: with each option changed from its default in turn (walked from the classes, so that none can
be forgotten) a product is made again bit for bit from the file that holds it; in Python, by
the command and by the tasks; its options come back from the file as they were; a value or a name
that no class declares is refused.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import threadpoolctl
from astropy.io import fits

import whitediff
from marks import slow_after
from scenes import command
from whitediff import Exposure
from whitediff.alignment.resampling import ResamplingOptions
from whitediff.decorrelation.cells import CellOptions
from whitediff.errors import ArgumentError, FileFormatError
from whitediff.evaluation.simulation import SimulationOptions, simulate
from whitediff.formats import (
    read_exposure,
    read_solution,
    solution_cards,
    solution_extras,
    write_exposure,
)
from whitediff.matching.design import FitOptions
from whitediff.matching.exposures import MatchOptions
from whitediff.options import changed, flattened, rebuilt
from whitediff.subtraction.pipeline import make_again, make_all
from whitediff.subtraction.recipe import Recipe, TemplateMask

SMALL = Recipe(
    match=MatchOptions(
        convolved="auto", kernel_size=15, choose_order=None, fit=FitOptions(kernel_order=1)
    )
)
"""That takes little time."""

OTHER = {
    "preparation.rescale_variance": False,
    "preparation.use_wcs": False,
    "preparation.resampling": ResamplingOptions(positions="wcs"),
    "preparation.required_template_fraction": 0.3,
    "preparation.expected_template_fraction": 0.4,
    "preparation.exclude_mask_planes": ("BAD",),
    "preparation.defects.cosmic_rays": False,
    "preparation.defects.bad_pixels": False,
    "preparation.defects.trails": False,
    "preparation.defects.level_jumps": False,
    "match.convolved": "science",
    "match.basis": "elliptical",
    "match.kernel_size": 17,
    "match.sigmas": (0.8, 1.6, 3.2),
    "match.smooth": False,
    "match.series.degrees": (3, 2, 2),
    "match.series.ratio": 1.8,
    "match.series.smallest": 0.8,
    "match.series.smallest_deconvolving": 0.5,
    "match.series.equal": (0.8, 1.6, 3.2),
    "match.series.side": 5.0,
    "match.series.smallest_side": 19,
    "match.series.largest_side": 31,
    "match.candidates.signal_to_noise": (15.0, 400.0),
    "match.candidates.cell": 64,
    "match.candidates.per_cell": 2,
    "match.candidates.most": 20,
    "match.candidates.width_tolerance": 0.2,
    "match.candidates.fewest": 4,
    "match.candidates.stars_only": True,
    "match.choose_order": "cross-validation",
    "match.background": "mesh",
    "match.fit.kernel_order": 0,
    "match.fit.background_order": 1,
    "match.fit.background": False,
    "match.fit.constant_sum": False,
    "match.fit.smoothness": 0.1,
    "match.fit.known_noise": True,
    "match.fit.rejections": 1,
    "match.fit.largest_mean": 0.2,
    "match.fit.largest_rms": 1.4,
    "match.fit.sum_clip": 2.5,
    "subtract_background": False,
    "decorrelate": False,
    "correction.noise": "white",
    "correction.spatially_varying": False,
    "correction.fill": "mean",
    "correction.full_variance": True,
    "correction.score_filter": "documented",
    "correction.ignore_mask_planes": ("BAD", "SAT", "EDGE"),
    "correction.required_mask_planes": ("BAD",),
    "correction.untrusted_mask_planes": ("BAD", "NO_DATA"),
    "correction.tolerance": 1e-4,
    "correction.transform": "documented",
    "cells": CellOptions(by_fwhm=False, size=(60.0, 50.0), step=(50.0, 40.0), border=(20.0, 20.0)),
    "template_mask": TemplateMask(preserve=("BAD",), rename=("SAT",)),
    "cutout.kernel_from": "pixels",
    "cutout.flux_scale": 1.25,
    "cutout.place": (60.0, 60.0),
    "foreign": None,
}
"""Another value than the default of every option of a recipe."""
TOGETHER = {
    "correction.transform": {"correction.spatially_varying": False, "correction.fill": "mean"},
    "cells": {"correction.spatially_varying": False},
    "correction.score_filter": {"correction.spatially_varying": False},
    "correction.required_mask_planes": {"correction.ignore_mask_planes": ("BAD",)},
    "match.fit.background": {"subtract_background": True},
}
"""What an option needs besides."""
ON_STAMPS = ("cutout.flux_scale", "cutout.place", "cutout.kernel_from")


def with_option(recipe, name, value):
    """Recipe with another value of a nested field."""
    first, _, rest = name.partition(".")
    if rest:
        value = with_option(getattr(recipe, first), rest, value)
    return dataclasses.replace(recipe, **{first: value})


def recipe_of(name):
    recipe = SMALL
    for other, value in {**TOGETHER.get(name, {}), name: OTHER[name]}.items():
        recipe = with_option(recipe, other, value)
    return recipe


@pytest.fixture(scope="module")
def pair():
    """As it comes, without PSFs; with bad pixels, saturation and a hole."""
    simulation = simulate(
        SimulationOptions(
            shape=(300, 320), seed=5, stars=60, galaxies=10, transients=6, saturation=3e4,
            bad_columns=1, nan_pixels=15,
        )
    )  # fmt: skip
    exposures = []
    for part, turned in ((simulation.science, 0.0), (simulation.template, 1e-4)):
        mask = dict(part.mask) | {"SAT": part.image > 2.5e4}
        header = fits.Header()
        header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
        header["CRVAL1"], header["CRVAL2"] = 150.0, 2.0
        header["CRPIX1"], header["CRPIX2"] = 160.0, 150.0
        header["CD1_1"] = header["CD2_2"] = 7e-5
        header["CD1_2"], header["CD2_1"] = -7e-5 * turned, 7e-5 * turned
        exposures.append(
            Exposure.from_arrays(part.image, variance=part.variance, mask=mask, header=header)
        )
    return exposures


def cut(pair):
    """A cut-out of it."""
    return [each[100:180, 120:200] for each in pair]


def written(made, path):
    """The product's file."""
    write_exposure(
        made.exposure,
        path,
        overwrite=True,
        provenance=solution_cards(made.solution) | {"WDTASK": ("subtract", "made by")},
        extras=solution_extras(made.solution),
    )
    return path


def same(one, other):
    np.testing.assert_array_equal(one.data, other.data)
    np.testing.assert_array_equal(one.variance, other.variance)
    assert set(one.mask.names) == set(other.mask.names)
    for name in one.mask.names:
        np.testing.assert_array_equal(one.mask.get(name), other.mask.get(name), err_msg=name)


def test_no_option_is_forgotten():
    names = set(flattened(Recipe()))
    parts = {"preparation.resampling", "cells", "template_mask"}
    assert names == set(OTHER)
    assert parts <= names
    for name, value in OTHER.items():
        assert name == "foreign" or flattened(Recipe())[name] != value


@pytest.mark.parametrize("kind", ["difference", "score"])
@pytest.mark.parametrize("name", slow_after(6, [name for name in OTHER if name != "foreign"]))
def test_products_are_made_again_bit_for_bit(pair, tmp_path, name, kind):
    if kind == "score" and name in (*ON_STAMPS, "match.convolved"):
        pytest.skip("of differences")
    images = cut(pair) if name in ON_STAMPS else pair
    recipe = recipe_of(name)
    made = make_all(*images, recipe, kind)[kind]
    solution = read_solution(written(made, tmp_path / "a.fits"))
    assert flattened(solution.recipe) == flattened(made.solution.recipe)
    again = make_again(*images, {kind: solution})[kind]
    same(again.exposure, made.exposure)
    same(read_exposure(tmp_path / "a.fits"), made.exposure)


def test_options_come_back(tmp_path):
    recipe = recipe_of("cells")
    values = json.loads(json.dumps(flattened(recipe)))
    assert rebuilt(Recipe, values) == recipe
    assert set(changed(recipe)) == {
        "match.kernel_size", "match.choose_order", "correction.spatially_varying",
        *(f"cells.{field.name}" for field in dataclasses.fields(CellOptions)),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("correction.fill", "nothing"),
        ("correction.fill", 3),
        ("correction.tolerance", "0.1"),
        ("correction.tolerance", True),
        ("match.kernel_size", 4.5),
        ("match.candidates.most", None),
        ("match.candidates.signal_to_noise", [1.0]),
        ("preparation.defects", 1),
        ("correction.new", 1),
        ("fill.value", 1),
        ("preparation.use_wcs", "yes"),
    ],
)
def test_what_no_class_declares_is_refused(name, value):
    with pytest.raises(ArgumentError):
        rebuilt(Recipe, flattened(Recipe()) | {name: value})


def test_a_recipe_that_was_tampered_with_is_told_of(pair, tmp_path):
    made = make_all(*cut(pair), recipe_of("cutout.kernel_from"))["difference"]
    path = written(made, tmp_path / "a.fits")
    with fits.open(path) as hdus:
        hdus["RECIPE"].data["value"][3] = '"__import__"'
        hdus.writeto(tmp_path / "b.fits", checksum=True)
    with pytest.raises(FileFormatError, match=r"b\.fits: .*RECIPE is not as"):
        read_solution(tmp_path / "b.fits")


def test_another_s_step_is_not_made_again(pair):
    made = make_all(*cut(pair), recipe_of("cutout.kernel_from"))["difference"]
    recipe = dataclasses.replace(made.solution.recipe, foreign="theirs.Task")
    solution = dataclasses.replace(made.solution, recipe=recipe)
    with pytest.raises(Exception, match=r"made with theirs\.Task"):
        make_again(*cut(pair), {"difference": solution})


# The command


def planes_of(path):
    with fits.open(path) as hdus:
        return {name: hdus[name].data for name in ("IMAGE", "VARIANCE", "MASK")}


@pytest.mark.parametrize(
    "options", [(), ("--convolved", "science", "--transient", "30,30"), ("--kernel-from", "psfs")]
)
def test_a_cut_out_with_defects_is_made_again(options, tmp_path):
    """Its defects are not sought at first, so they are not sought again."""
    simulated = tmp_path / "sim"
    scene = ("--size", 76, "--seed", 3, "--stars", 4, "--galaxies", 3)
    rays = ("--science-cosmic-rays", 3, "--template-cosmic-rays", 3)
    assert command("simulate", "--output", simulated, *scene, *rays, "-q")[0] == 0
    pair = simulated / "science.fits", simulated / "template.fits"
    first, again = tmp_path / "a.fits", tmp_path / "b.fits"
    code, _, messages = command("subtract", *pair, "-o", first, *options)
    assert code == 0, messages
    code, _, messages = command("subtract", *pair, "-o", again, "--kernel", first)
    assert code == 0, messages
    for name, plane in planes_of(first).items():
        np.testing.assert_array_equal(planes_of(again)[name], plane, err_msg=name)


def test_images_are_read_as_they_were(tmp_path):
    """Gains and variances that were given make the pixels too."""
    simulated = tmp_path / "sim"
    scene = ("--size", 360, "--seed", 5, "--flux-scale", 1.3, "--stars", 90)
    flaws = (
        *("--science-noise-plane", "none", "--template-noise-plane", "none"),
        *("--science-gain-card", 2, "--template-gain-card", 2, "--science-nan-border", 7),
    )
    assert command("simulate", "--output", simulated, *scene, *flaws, "-q")[0] == 0
    pair = simulated / "science.fits", simulated / "template.fits"
    first, again_file, other = (tmp_path / f"{name}.fits" for name in "abc")
    given = ("--science-gain", 1.5, "--template-variance", 600)
    code, _, messages = command("subtract", *pair, "-o", first, *given)
    assert code == 0, messages
    header = fits.getheader(first)
    assert (header["WDSGAIN"], header["WDTVARIN"]) == (1.5, 600)
    code, _, messages = command("subtract", *pair, "-o", again_file, "--kernel", first)
    assert code == 0, messages
    assert "is read with its gain 1.5, as before" in messages
    for name, plane in planes_of(first).items():
        np.testing.assert_array_equal(planes_of(again_file)[name], plane, err_msg=name)
    expected = planes_of(first)["IMAGE"]
    # The pair is known by its pixels, whatever the files are called.
    copies = [tmp_path / f"copy_of_{path.name}" for path in pair]
    for path, copy in zip(pair, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    arrays = [fits.getdata(path) for path in pair]
    options = {"science_gain": 1.5, "template_variance": 600}
    for images in (pair, copies, arrays):
        result = whitediff.subtract(*images, **options)
        again = whitediff.subtract(*images, kernel=[result])
        once_more = whitediff.subtract(*images, kernel=[again])
        for each in (result, again, once_more):
            np.testing.assert_array_equal(each.difference.data, result.difference.data)
    np.testing.assert_array_equal(
        whitediff.subtract(*copies, kernel=[first]).difference.data, expected
    )
    with pytest.raises(ArgumentError, match="none of the earlier results is a score"):
        _ = once_more.score
    # Another pair of the same names is read as it comes.
    noisier = [tmp_path / "other" / path.name for path in pair]
    noisier[0].parent.mkdir()
    for path, copy, sigma in zip(pair, noisier, (60, 0), strict=True):
        with fits.open(path) as hdus:
            noise = np.random.default_rng(3).normal(0, sigma, hdus[0].data.shape)
            hdus[0].data = (hdus[0].data + noise).astype(np.float32)
            hdus.writeto(copy, checksum=True)
    other_pair = whitediff.subtract(*noisier, kernel=[first])
    assert other_pair.history["WDSGAIN"] is None
    assert other_pair.history["WDTVARIN"] is None
    # Another gain that is given stands.
    code, _, messages = command(
        "subtract", *pair, "-o", other, "--kernel", first, "--science-gain", 2.5
    )
    assert code == 0, messages
    assert fits.getheader(other)["WDSGAIN"] == 2.5


def test_a_stamp_does_not_depend_on_the_threads_of_linear_algebra(tmp_path):
    simulated = tmp_path / "sim"
    scene = ("--size", 76, "--seed", 3, "--stars", 4, "--galaxies", 3)
    assert command("simulate", "--output", simulated, *scene, "-q")[0] == 0
    pair = [str(simulated / f"{name}.fits") for name in ("science", "template")]
    made = []
    for threads in (1, 2):
        with threadpoolctl.threadpool_limits(threads):
            made.append(whitediff.subtract(*pair, convolved="science", transient=(30, 30)))
    one, other = (each.difference for each in made)
    np.testing.assert_array_equal(one.data, other.data)
    np.testing.assert_array_equal(made[0].kernel.at(x=30, y=30), made[1].kernel.at(x=30, y=30))
