"""How faint a source a difference shows, and what a run says at its end.

Claims: half of the point sources of the depth's flux, injected into the science image at random
free places, are above 5 sigma on a difference or score at their true positions, by explicit sums;
whichever image was convolved, for PSFs that are the same everywhere and for ones that vary.  On a
known plane the depth is 5 √(Σ P² V) / Σ P², in any frame and unit, however few pixels are good.
Sources to believe are points without a flag that spoils; every source is counted once; header,
catalogue, report and the line after a run have the same numbers, with the magnitude of the
header's or the given zero point.
"""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable

from scenes import command
from whitediff import Exposure, read_catalog
from whitediff.defects.exposures import DefectOptions
from whitediff.detection.catalog import SPOILING_FLAGS, believed, headline, source_counts
from whitediff.detection.depth import depth
from whitediff.detection.exposures import DetectionOptions, detect
from whitediff.evaluation.placing import add_stamp
from whitediff.evaluation.simulation import PsfModel, SimulationOptions, simulate
from whitediff.exposures.kernels import interpolated_kernel
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.matching.exposures import MatchOptions
from whitediff.matching.preparation import PreparationOptions
from whitediff.subtraction.pipeline import make_again, make_all
from whitediff.subtraction.recipe import Recipe

SIZE = 420
SIGMAS = 4
"""Standard errors that a mean of many places may depart by."""
FITTED = 0.02
"""Part of a flux that a kernel fitted to 45 stars, and the local noise, may misjudge."""
NO_DEFECTS = DefectOptions(cosmic_rays=False, bad_pixels=False, trails=False)
CASES = {
    "template": (2.2, 1.6, 0.0),
    "science": (1.6, 2.2, 0.0),
    "template, varying": (2.2, 1.7, 0.1),
    "science, varying": (1.6, 2.2, 0.1),
}


def pair_of(science_sigma, template_sigma, variation):
    simulated = simulate(
        SimulationOptions(
            shape=(SIZE, SIZE), seed=5, science_psf=science_sigma, template_psf=template_sigma,
            variation=variation, stars=45, galaxies=0, transients=0, bad_columns=0, nan_pixels=0,
            flux_scale=1.3, faintest_star=60.0, saturation=math.inf,
        )
    )  # fmt: skip
    exposures = []
    for each in (simulated.science, simulated.template):
        exposure = Exposure.from_arrays(each.image, variance=each.variance)
        exposure.psf = KernelPointSpreadFunction(
            interpolated_kernel(each.psf.image, exposure.bbox, 4 if each.psf.variation else 0)
        )
        exposures.append(exposure)
    return simulated, *exposures


def free_places(simulated, rng):
    """Random whole pixels, each in a square of its own, away from stars and edges."""
    corner = np.arange(40, SIZE - 60, 20)
    y, x = (each.ravel() for each in np.meshgrid(corner, corner, indexing="ij"))
    y, x = (each + rng.integers(0, 3, len(each)) for each in (y, x))
    distance = np.hypot(x[:, None] - simulated.sources["x"], y[:, None] - simulated.sources["y"])
    far = distance.min(axis=1) > 20
    return x[far], y[far]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "kind"),
    [
        *((case, "difference") for case in CASES),
        # A score convolves the template, whichever PSF is wider.
        ("template", "score"),
        ("science", "score"),
        pytest.param("template, varying", "score", marks=pytest.mark.slow),
    ],
)
def test_half_of_the_sources_of_that_flux_are_above_5_sigma(rng, case, kind):
    science_sigma, template_sigma, variation = CASES[case]
    simulated, science, template = pair_of(science_sigma, template_sigma, variation)
    options = Recipe(
        preparation=PreparationOptions(defects=NO_DEFECTS),
        match=MatchOptions(convolved="auto", choose_order="bic"),
    )
    product = make_all(science, template, options, [kind])[kind].product
    assert kind == "score" or product.solution.convolved == case.split(",")[0]
    found = depth(product.exposure, flux_variance=product.flux_variance)
    x, y = free_places(simulated, rng)
    with_sources = np.array(science.data, float)
    for at in zip(x, y, strict=True):
        add_stamp(with_sources, found.flux * simulated.science.psf.stamp(*at), *at)
    planes = []
    for image in (science.data, with_sources.astype(np.float32)):
        again = make_again(
            Exposure.from_arrays(image, variance=science.variance, psf=None),
            template, {kind: product.solution},
        )[kind].product  # fmt: skip
        planes.append(np.array(again.exposure.data, float))
    noise, both = planes
    variance = product.exposure.variance.astype(float)
    measured, expected = [], []
    for i, j in zip(x, y, strict=True):
        if kind == "score":
            sigma = math.sqrt(variance[j, i])
            measured.append(both[j, i] / sigma)
            expected.append((both - noise)[j, i] / sigma)
            continue
        # What is left of a source without noise is the best filter for it.
        part = np.s_[j - 9 : j + 10, i - 9 : i + 10]
        alone = (both - noise)[part]
        sigma = math.sqrt((alone**2 * variance[part]).sum())
        measured.append((alone * both[part]).sum() / sigma)
        expected.append((alone**2).sum() / sigma)
    n = len(x)
    assert n > 150
    assert np.median(expected) == pytest.approx(5, rel=FITTED)
    assert np.mean(measured) == pytest.approx(5, abs=SIGMAS / math.sqrt(n) + 5 * FITTED)
    assert np.mean(np.array(measured) > 5) == pytest.approx(0.5, abs=SIGMAS * 0.5 / math.sqrt(n))


MODEL = PsfModel(sigma=1.8, frame=(90, 110), ellipticity=(0.1, -0.05), offset=(0.2, -0.1))


@pytest.mark.parametrize("unit", [1.0, 1e-4])
def test_depth_of_a_known_plane(rng, unit):
    psf = MODEL.image(0, 0)
    image = rng.normal(0, 3, (90, 110))
    plain = Exposure.from_arrays(unit * image, variance=9 * unit**2, psf=psf, origin=(7, -40))
    expected = 5 * 3 * unit / math.sqrt((psf**2).sum())
    assert depth(plain).flux == pytest.approx(expected, rel=1e-4)
    assert depth(plain).magnitude is None
    assert depth(plain, 25.0).magnitude == pytest.approx(25 - 2.5 * math.log10(expected))
    # More of the frame is deep than not.
    variance = np.full((90, 110), 9.0 * unit**2)
    variance[:, :20] *= 100
    half = Exposure.from_arrays(unit * image, variance=variance, psf=psf)
    assert depth(half).flux == pytest.approx(expected, rel=5e-3)
    # One hole with good pixels is enough, wherever it lies.
    bad = np.ones((90, 110), bool)
    bad[31:52, 64:85] = False
    hole = Exposure.from_arrays(unit * image, variance=9 * unit**2, mask={"BAD": bad}, psf=psf)
    assert depth(hole).flux == pytest.approx(expected, rel=0.1)
    for nothing in (
        Exposure.from_arrays(image, variance=9.0),
        Exposure.from_arrays(image, variance=9.0, mask={"BAD": np.ones_like(bad)}, psf=psf),
        Exposure.from_arrays(image, variance=np.full(bad.shape, np.nan), psf=psf),
    ):
        assert depth(nothing) is None


def test_the_magnitude_is_that_of_the_zero_point(rng):
    image, psf = rng.normal(0, 3, (90, 110)), MODEL.image(0, 0)
    header = fits.Header({"MAGZERO": 27.5, "BUNIT": "adu"})
    exposure = Exposure.from_arrays(image, variance=9.0, psf=psf, header=header)
    found = depth(exposure)
    assert found.magnitude == pytest.approx(27.5 - 2.5 * math.log10(found.flux))
    assert depth(exposure, 20.0).magnitude == pytest.approx(found.magnitude - 7.5)
    assert found.unit == "adu"
    header = fits.Header({"BUNIT": "nJy"})
    found = depth(Exposure.from_arrays(image, variance=9.0, psf=psf, header=header))
    # AB magnitude 31.4 is a nanojansky.
    assert found.magnitude == pytest.approx(31.4 - 2.5 * math.log10(found.flux), abs=1e-3)
    header = fits.Header({"BUNIT": "MJy/sr", "PIXAR_SR": 9.31e-14})
    found = depth(Exposure.from_arrays(image, variance=9.0, psf=psf, header=header))
    janskys = found.flux * 1e6 * 9.31e-14
    assert found.magnitude == pytest.approx(8.90 - 2.5 * math.log10(janskys), abs=1e-3)
    # A surface brightness alone is no flux.
    header = fits.Header({"BUNIT": "MJy/sr"})
    found = depth(Exposure.from_arrays(image, variance=9.0, psf=psf, header=header))
    assert found.magnitude is None


def crafted(rows, **meta):
    """Catalogue of (class, significance, flags)."""
    table = QTable()
    table["significance"] = [float(row[1]) for row in rows]
    table["psf_flux"] = np.ones(len(rows))
    table["classification"] = np.array([row[0] for row in rows], dtype="U8")
    for flag in (*SPOILING_FLAGS, "flag_source", "flag_interpolated"):
        table[flag] = [flag in row[2] for row in rows]
    table.meta |= {
        "kind": "detections", "sign": "both", "threshold": 5.0, "n_pixels_searched": 900,
        "expected_false_per_sign": 0.015,
    } | meta  # fmt: skip
    return table


def test_what_is_to_be_believed():
    rows = [
        ("point", 8, ()),
        ("point", -8, ("flag_source", "flag_interpolated")),
        ("point", 9, ()),
        ("dipole", 7, ()),
        ("extended", 30, ()),
        ("artifact", 12, ()),
        ("dipole", 7, ("flag_edge",)),
        ("point", 60, ("flag_saturated", "flag_edge")),
    ]
    table = crafted(rows, depth=123.4, depth_mag=21.337)
    np.testing.assert_array_equal(believed(table), [True] * 3 + [False] * 5)
    assert source_counts(table) == {
        "n_believed": 3, "n_believed_positive": 2, "n_believed_negative": 1, "n_dipoles": 1,
        "n_extended": 1, "n_artifacts": 1, "n_flagged": 2,
    }  # fmt: skip
    assert headline(table) == (
        "3 sources to believe (2 brighter, 1 fainter), 1 dipole, 1 artifact, 1 extended, 2 flagged"
        " (1 saturated, 1 near an edge); noise alone would give 0.03. 5 sigma depth: 123.4 image"
        " units (21.34 mag)."
    )
    for flag, words in SPOILING_FLAGS.items():
        spoilt = crafted([("point", 8, (flag,))], sign="positive")
        assert not believed(spoilt).any()
        assert headline(spoilt) == (
            f"0 sources to believe, 1 flagged (1 {words}); noise alone would give 0.015."
        )
    assert headline(crafted([], depth=2.0)) == (
        "no source beyond 5 sigma in 900 pixels; noise alone would give 0.03. 5 sigma depth: 2"
        " image units."
    )


def test_counts_and_depth_stand_in_the_catalogue(rng):
    psf = MODEL.image(0, 0)
    image = rng.normal(0, 3, (90, 110))
    unit = 3 / math.sqrt((psf**2).sum())
    for x, y, ratio in ((30, 30, 20), (75, 60, -15), (3, 50, 25)):
        add_stamp(image, ratio * unit * MODEL.stamp(x, y), x, y)
    exposure = Exposure.from_arrays(image, variance=9.0, psf=psf)
    table = detect(exposure, options=DetectionOptions(zero_point=22.0))
    meta = table.meta
    assert (meta["n_believed"], meta["n_believed_negative"], meta["n_flagged"]) == (2, 1, 1)
    assert meta["depth"] == pytest.approx(5 * unit, rel=1e-3)
    assert meta["depth_mag"] == pytest.approx(22 - 2.5 * math.log10(5 * unit), abs=1e-3)
    assert headline(table).startswith(
        "2 sources to believe (1 brighter, 1 fainter), 1 flagged (1 near an edge)"
    )
    kinds = [value for name, value in source_counts(table).items() if "believed_" not in name]
    assert sum(kinds) == len(table)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Directory with a pair and its products, and what subtract said."""
    directory = tmp_path_factory.mktemp("depth")
    code, _, messages = command(
        "simulate", "--output", directory, "--size", 400, "--seed", 4, "--stars", 60,
        "--transients", 12, "--science-psf", 1.8, "--template-psf", 1.5, "-q", "--threads", 1,
    )  # fmt: skip
    assert code == 0, messages
    code, _, messages = command(
        "subtract", directory / "science.fits", directory / "template.fits", "--output",
        directory / "d.fits", "--score-output", directory / "s.fits", "--catalog",
        directory / "c.ecsv", "--report", directory / "r.html", "--zero-point", 27, "--threads", 1,
    )  # fmt: skip
    assert code == 0, messages
    return directory, messages


def test_header_catalogue_and_report_agree(made):
    directory, messages = made
    difference, score = (fits.getheader(directory / f"{name}.fits") for name in "ds")
    for header in (difference, score):
        assert header["WDZERO"] == 27
        assert header["WDMAGLIM"] == pytest.approx(27 - 2.5 * math.log10(header["WDDEPTH"]))
        assert f"5 sigma depth: {header['WDDEPTH']:.4g} adu ({header['WDMAGLIM']:.2f} mag)." in (
            messages
        )
    # The two are the same statistic here.
    assert score["WDDEPTH"] == pytest.approx(difference["WDDEPTH"], rel=0.02)
    with fits.open(directory / "s.fits") as hdus:
        whole = 5 * np.sqrt(np.nanmedian(hdus["FLUX_VARIANCE"].data))
    assert score["WDDEPTH"] == pytest.approx(whole, rel=0.02)
    table = read_catalog(directory / "c.ecsv")
    assert (table.meta["depth_of"], table.meta["depth"]) == ("score", score["WDDEPTH"])
    assert table.meta["depth_mag"] == pytest.approx(score["WDMAGLIM"])
    assert f"c.ecsv: {headline(table)}\n" in messages
    assert "psf_mag" in table.colnames
    page = (directory / "r.html").read_text(encoding="utf-8")
    data = json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    )
    assert data["depth"]["flux"] == pytest.approx(difference["WDDEPTH"], rel=1e-6)
    assert data["depth"]["text"] in messages
    assert data["detections"]["headline"].lower() == headline(table).lower()


def test_a_given_zero_point_stays_with_the_difference(made, tmp_path):
    directory, _ = made
    header = fits.getheader(directory / "d.fits")
    for given, zero in (((), 27.0), (("--zero-point", 25.5), 25.5)):
        out = tmp_path / f"{zero}.fits"
        code, _, messages = command("detect", directory / "d.fits", "--output", out, *given)
        assert code == 0, messages
        meta = read_catalog(out).meta
        assert (meta["zero_point"], meta["zero_point_from"]) == (zero, "given")
        assert meta["depth_mag"] == pytest.approx(header["WDMAGLIM"] + zero - 27, abs=1e-4)
    page = tmp_path / "r.html"
    code, _, messages = command("report", directory / "d.fits", "--output", page)
    assert code == 0, messages
    assert page.read_text(encoding="utf-8").count(f"({header['WDMAGLIM']:.2f} mag)") == 2


def test_what_is_made_again_is_described(made, tmp_path):
    directory, _ = made
    names = directory / "science.fits", directory / "template.fits"
    out = tmp_path / "again.fits"
    code, _, messages = command(
        "subtract", *names, "--kernel", directory / "d.fits", "--output", out, "--zero-point", 27,
        "--threads", 1,
    )  # fmt: skip
    assert code == 0, messages
    before, after = fits.getheader(directory / "d.fits"), fits.getheader(out)
    for card in ("WDDEPTH", "WDMAGLIM", "WDTFRAC", "WDKSUM"):
        assert after[card] == before[card], card
    assert (
        "template convolved; template on the same pixels, covers"
        f" {100 * after['WDTFRAC']:.1f}% of the science image; kernel sum {after['WDKSUM']:.5g}"
        in messages
    )
    assert f"5 sigma depth: {after['WDDEPTH']:.4g} adu ({after['WDMAGLIM']:.2f} mag)." in messages
    code, _, messages = command(
        "subtract", *names, "--output", tmp_path / "none.fits", "--zero-point", "nan"
    )
    assert code == 1
    assert "The zero point must be finite; got nan." in messages
    assert not (tmp_path / "none.fits").exists()


@pytest.mark.parametrize("grid", [None, (3.3, -2.4, 4.0, 0.9)])
def test_align_says_what_it_made(tmp_path, grid):
    code, _, messages = command(
        "simulate", "--output", tmp_path, "--size", 300, "--seed", 3, "--stars", 60, "-q",
        "--threads", 1, *(() if grid is None else ("--template-grid", *grid)),
    )  # fmt: skip
    assert code == 0, messages
    template, science, out = (tmp_path / f"{n}.fits" for n in ("template", "science", "out"))
    code, _, messages = command(
        "align", template, "--to", science, "--output", out, "--noise", "white", "--threads", 1
    )
    assert code == 0, messages
    header = fits.getheader(out)
    how = "placed by whole pixels on"
    if grid is not None:
        assert abs(header["WDALROT"]) == pytest.approx(4, abs=0.01)
        how = f"resampled (interpolating), turned by {header['WDALROT']:.3g} degrees, onto"
    assert messages.splitlines()[-1] == (
        f"{out}: {template}, {how} {science}; positions to {header['WDALERR']:.2g} pixels; it"
        f" covers {100 * header['WDTFRAC']:.1f}%."
    )
    with fits.open(out) as hdus:
        assert np.isfinite(hdus["IMAGE"].data).mean() == pytest.approx(header["WDTFRAC"])
