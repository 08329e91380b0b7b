"""A page on which a difference is judged, and what it is judged by.

Claims: a file of subtract holds its stars, with reasons, and the record of its run, and keeps the
stars when it is made again; the numbers on the page are those of independent computations (sums
over bins, spectra and autocorrelations in closed form, known excess fluxes); a good subtraction is
called good, and one with a wrong variance plane, correlated noise or a shifted template is not; the
page is one file, whatever the names in it, that asks for nothing else; it can be made of a
difference without score, catalogue, WCS, PSF or stars, and of a score; what cannot be reported on
is one sentence, and no file.  In a browser (skipped without): no complaint on the console, every
picture drawn, all panels in step, north up and pixels where they belong, zooming and sorting work.
"""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from browser import Browser, find_browser
from scenes import SHARED, command
from whitediff import Exposure
from whitediff.diagnostics.calibration import block_power, variance_calibration
from whitediff.diagnostics.detections import detection_rows, edge_excess
from whitediff.diagnostics.pictures import Stretch, binned, stamps
from whitediff.diagnostics.residuals import star_residuals
from whitediff.diagnostics.verdict import LIMITS, judged, verdict
from whitediff.evaluation.simulation import SimulationOptions, simulate
from whitediff.formats import read_exposure, write_exposure
from whitediff.formats.record import read_record

DECAM = SHARED / "data" / "decam"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Directory with a pair, its difference d.fits and score s.fits."""
    directory = tmp_path_factory.mktemp("report")
    code, _, messages = command(
        "simulate", "--output", directory, "--size", "640x600", "--seed", 4, "--stars", 160,
        "--galaxies", 20, "--transients", 14, "--bad-columns", 0, "--nan-pixels", 5,
        "--profile", "moffat", "--flux-scale", 1.3, "--offset", 0.3, -0.2,
        "--template-psf", 1.7, "--science-psf", 2.2,
    )  # fmt: skip
    assert code == 0, messages
    code, _, messages = command(
        "subtract", directory / "science.fits", directory / "template.fits",
        "--output", directory / "d.fits", "--score-output", directory / "s.fits",
        "--background-order", 1,
    )  # fmt: skip
    assert code == 0, messages
    return directory


@pytest.fixture(scope="module")
def page(pair):
    code, _, messages = command(
        "report", pair / "d.fits", "--score", pair / "s.fits", "--output", pair / "page.html"
    )
    assert code == 0, messages
    return pair / "page.html"


def data_of(path):
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def status(data, name):
    return next(check["status"] for check in data["checks"] if check["name"] == name)


# ---- what subtract stores --------------------------------------------------------------------


@pytest.mark.slow
def test_the_stars_of_a_fit_are_stored_with_reasons(pair):
    record = read_record(pair / "d.fits")
    stars = record.stars
    assert stars is not None
    assert int(stars["candidate"].sum()) == record.header["WDNSTAR"]
    assert int(stars["used"].sum()) == record.header["WDNUSED"]
    assert not (stars["used"] & ~stars["candidate"]).any()
    np.testing.assert_array_equal(stars["used"], [reason == "" for reason in stars["reason"]])
    assert np.isfinite(stars["chi2"][stars["candidate"]]).all()
    assert np.isnan(stars["chi2"][~stars["candidate"]]).all()
    assert stars["chi2"][stars["used"]].mean() == pytest.approx(record.header["WDCHI2"], rel=0.02)
    assert (np.diff(stars["signal_to_noise"]) <= 0).all()
    assert str(stars["x"].unit) == "pix"
    assert stars["chi2"].description
    # Stars of the scene, and where they are in it.
    truth = Table.read(pair / "truth.ecsv", format="ascii.ecsv")
    for row in stars[stars["used"]]:
        assert np.hypot(truth["x"] - row["x"], truth["y"] - row["y"]).min() < 1
    score = read_record(pair / "s.fits")
    assert score.is_score
    # Of a score chi-square would mean nothing.
    assert np.isnan(score.stars["chi2"]).all()


def test_what_varies_is_passed_over_with_its_reason():
    scene = simulate(SimulationOptions(shape=(500, 500), seed=8, stars=60, galaxies=0))
    planes = {}
    for name in ("science", "template"):
        made = getattr(scene, name)
        planes[name] = Exposure.from_arrays(
            np.asarray(made.image, np.float32), variance=np.asarray(made.variance, np.float32)
        )
    from whitediff.matching.exposures import match
    from whitediff.matching.preparation import prepare

    pair = prepare(planes["science"], planes["template"])
    stars = match(pair).stars
    varies = scene.sources["kind"] == "transient"
    transients = {name: values[varies] for name, values in scene.sources.items()}
    reasons = []
    for x, y in zip(transients["x"], transients["y"], strict=True):
        distance = np.hypot(stars["x"] - x, stars["y"] - y)
        if distance.min() < 1:
            assert not stars["used"][distance.argmin()]
            reasons.append(str(stars["reason"][distance.argmin()]))
    assert "flux differs in the images" in reasons


def test_the_record_of_a_run(pair):
    log = read_record(pair / "d.fits").log
    kinds = [str(kind) for kind in log["kind"]]
    texts = [str(text) for text in log["text"]]
    assert texts[kinds.index("option")] == "--background-order 1"
    assert kinds.count("option") == 1
    assert [t for k, t in zip(kinds, texts, strict=True) if k == "stage"] == [
        "reading", "preparation", "matching", "subtraction", "writing",
    ]  # fmt: skip
    assert (np.diff(log["seconds"]) >= 0).all()


def test_stars_stay_when_a_difference_is_made_again(run, pair, tmp_path):
    again = tmp_path / "again.fits"
    code, _, messages = run(
        "subtract", pair / "science.fits", pair / "template.fits", "--kernel", pair / "d.fits",
        "--output", again,
    )  # fmt: skip
    assert code == 0, messages
    first, second = (read_record(path).stars for path in (pair / "d.fits", again))
    assert first.colnames == second.colnames
    for name in first.colnames:
        np.testing.assert_array_equal(first[name], second[name])


# ---- what is measured ------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["even", "geometric"])
def test_variance_calibration_finds_where_the_plane_is_wrong(rng, spacing):
    variance = np.exp(rng.uniform(0, 3, (400, 410)))
    truth = np.where(variance > math.exp(1.5), 1.4, 1.0)
    image = rng.normal(size=variance.shape) * np.sqrt(variance * truth)
    good = rng.random(variance.shape) > 0.1
    image[~good] = 1e9
    found = variance_calibration(image, variance, good, bins=8, spacing=spacing)
    assert found.pixels.sum() == good.sum()
    expected = np.where(found.variance > math.exp(1.5), 1.4, 1.0)
    # Edges of eight bins of uniform logarithms meet the step within a hundredth of its range.
    assert (np.abs(found.ratio - expected) < 5 * expected * found.error + 0.02).all()
    assert (np.diff(found.variance) > 0).all()
    none = variance_calibration(image, variance, np.zeros_like(good))
    assert len(none.ratio) == 0


def test_power_over_blocks_is_that_of_the_filter(rng):
    variance = rng.uniform(1, 9, (700, 650))
    white = rng.normal(size=variance.shape)
    good = np.ones(variance.shape, dtype=bool)
    frequency, power = block_power(white * np.sqrt(variance), variance, good)
    # Annuli of some pixels, of nine overlapping blocks: a few per cent, more at the lowest.
    np.testing.assert_allclose(power[3:], 1, atol=0.12)
    smooth = (white + np.roll(white, 1, axis=0)) / math.sqrt(2)
    _, power = block_power(smooth, np.ones_like(variance), good)
    # 1 + cos(2 pi f_y), averaged over the annulus: 1 + J0(2 pi f).
    from scipy.special import j0

    np.testing.assert_allclose(power[3:], 1 + j0(2 * np.pi * frequency[3:]), atol=0.2)


def test_residuals_at_stars_are_what_was_left_there(pair):
    difference = read_exposure(pair / "d.fits")
    stars = read_record(pair / "d.fits").stars
    before = star_residuals(stars, difference)
    assert before is not None
    assert 0.5 < before["scatter"] < 1.5
    assert abs(before["median"]) < 0.01 + 4 * before["median_error"]
    left = 0.05
    for row in stars:
        stamp, box = difference.psf.star(x=row["x"], y=row["y"])
        if difference.bbox.contains(box):
            difference.data[difference.bbox.slices_of(box)] += left * row["flux"] * stamp
    after = star_residuals(stars, difference)
    # Neighbours got theirs, too.
    assert after["median"] - before["median"] == pytest.approx(left, abs=0.005)
    assert after["x"].tolist() == before["x"].tolist()
    assert star_residuals(stars, difference, is_score=True) is None
    assert star_residuals(None, difference) is None


def test_binning_and_cut_outs_against_loops(rng):
    image = rng.normal(size=(13, 11)).astype(np.float32)
    image[3, 4] = np.nan
    image[9:12, 3:6] = np.nan
    small = binned(image, 3)
    assert small.shape == (5, 4)
    for j in range(5):
        for i in range(4):
            part = image[3 * j : 3 * j + 3, 3 * i : 3 * i + 3]
            expected = np.nan if np.isnan(part).all() else np.nanmean(part)
            np.testing.assert_allclose(small[j, i], expected, rtol=1e-6)
    sprite = stamps(
        lambda part: np.full(part.shape, 7, np.uint8), image, [0, 5, 10], [0, 6, 30], 5, 2
    )
    assert sprite.shape == (10, 10)
    first, second, third = sprite[5:, :5], sprite[5:, 5:], sprite[:5, :5]
    assert (first == 7).sum() == 9  # a corner: 3 x 3 pixels of the image
    assert (first[2:, 2:] == 7).all()
    assert (second == 7).all()
    assert not third.any()


def test_the_stretch_is_monotonic_and_keeps_zero_for_no_value():
    stretch = Stretch(2.0)
    values = np.linspace(-40, 200, 500)
    grey = stretch(values + 100, 100)
    assert (np.diff(grey.astype(int)) >= 0).all()
    assert grey[0] == 1
    assert grey[-1] == 255
    assert stretch(np.array([np.nan, 0.0]))[0] == 0
    for value, where in stretch.ticks():
        got = int(stretch(np.array([2.0 * value]))[0])
        assert got == pytest.approx(1 + 254 * where, abs=1)


def test_numbers_are_judged_by_their_ranges():
    assert judged("n", "whiteness", 1.02, "r").status == "good"
    assert judged("n", "whiteness", 1.05, "r").status == "doubtful"
    assert judged("n", "whiteness", 1.05, "r", error=0.01).status == "good"
    assert judged("n", "whiteness", 0.85, "r").status == "bad"
    assert judged("n", "whiteness", float("nan"), "r").status == "unknown"
    assert judged("n", "stars", 5, "r", form=".0f").accepted == "at least 10"
    assert judged("n", "rejected", 0.25, "r", form=".0f", percent=True).value == "25 %"
    for limits in LIMITS.values():
        assert limits.doubtful[0] <= limits.good[0] <= limits.good[1] <= limits.doubtful[1]
    checks = [judged("a", "whiteness", 1.0, "r"), judged("b", "whiteness", None, "r")]
    assert verdict(checks).status == "good"
    assert verdict([*checks, judged("c", "whiteness", 1.05, "r")]).status == "doubtful"
    last = verdict([*checks, judged("c", "whiteness", 2.0, "r")])
    assert last.status == "bad"
    assert "far outside: c" in last.text
    assert verdict([judged("b", "whiteness", None, "r")]).status == "unknown"


def test_detections_are_listed_by_significance():
    table = Table({"x": [1.0, 2, 3], "y": [4.0, 5, 6], "significance": [5.5, -9, 7]})
    table["flag_edge"] = [True, False, False]
    found = detection_rows(table, listed=2, drawn=3)
    assert [row["x"] for row in found["rows"]] == [2, 3]
    assert found["x"].tolist() == [2, 3, 1]
    assert (found["total"], found["positive"], found["negative"]) == (3, 2, 1)
    assert found["dipole_fraction"] is None
    assert detection_rows(table, listed=3, drawn=3)["rows"][2]["flags"] == ["edge"]


# ---- the verdict -----------------------------------------------------------------------------


def test_a_good_subtraction_is_called_good(page):
    data = data_of(page)
    for name in ("PSF-filtered noise ratio", "Pixel variance / plane", "Flux left of stars",
                 "Star residuals / error, scatter", "Error of the kernel sum"):  # fmt: skip
        assert status(data, name) == "good", data["checks"]
    assert data["verdict"]["status"] != "bad"
    # The correction is seen: before it the noise was correlated.
    before, after = data["noise"]["before"], data["noise"]["after"]
    assert before["filtered_variance_ratio"] > 1.15
    assert abs(after["filtered_variance_ratio"] - 1) < 4 * after["filtered_variance_ratio_error"]
    header = fits.getheader(page.parent / "d.fits")
    assert data["stars"]["used"] == header["WDNUSED"]
    # Sums of the kernel and widths of the PSF, as the header has them.
    labels = [cell["label"] for row in data["kernels"]["rows"] for cell in row]
    assert float(labels[12].removeprefix("Σ ")) == pytest.approx(header["WDKSUM"], rel=1e-3)
    width = float(data["psfs"]["rows"][2][2]["label"])
    assert width == pytest.approx(header["WDSFWHM"], rel=0.1)


@pytest.mark.slow
def test_bad_subtractions_are_not_called_good(run, pair, tmp_path):
    """The plane halved; the noise left correlated; the template shifted by half a pixel."""
    for how in ("variance", "noise", "shift"):
        out = tmp_path / f"{how}.fits"
        with fits.open(pair / "d.fits") as hdus:
            if how == "variance":
                hdus["VARIANCE"].data = (hdus["VARIANCE"].data / 1.3).astype(">f4")
            if how == "noise":
                image = hdus["IMAGE"].data
                mixed = (image + np.roll(image, 1, 1)) / math.sqrt(2)
                hdus["IMAGE"].data = mixed.astype(">f4")
            if how == "shift":
                science = fits.getdata(pair / "science.fits", "IMAGE").astype(float)
                change = (np.roll(science, 1, 1) - np.roll(science, -1, 1)) / 4
                hdus["IMAGE"].data = (hdus["IMAGE"].data + np.nan_to_num(change)).astype(">f4")
            hdus.writeto(out, checksum=True)
        page = tmp_path / f"{how}.html"
        code, _, messages = run(
            "report", out, "--science", pair / "science.fits", "--template",
            pair / "template.fits", "--output", page,
        )  # fmt: skip
        assert code == 0, messages
        data = data_of(page)
        name = {
            "variance": "Pixel variance / plane",
            "noise": "PSF-filtered noise ratio",
            "shift": "Pixel variance / plane",
        }[how]
        if how == "shift":
            # What is left of stars has two lobes: seen in their pixels, not in their sum.
            assert data["verdict"]["status"] in ("doubtful", "bad")
            continue
        assert status(data, name) == "bad", data["checks"]
        assert data["verdict"]["status"] == "bad"


# ---- the page --------------------------------------------------------------------------------


def test_the_page_is_one_file(page):
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 4e6
    shell = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#|data:)", shell)
    assert not re.search(r"@import|url\((?!\$\{plane\.stamps\})", shell)
    assert "Content-Security-Policy" in shell
    assert "{{" not in shell


def test_names_cannot_break_out_of_the_page(run, pair, tmp_path):
    evil = tmp_path / "a<script>b&amp;{{data}} ü.fits"
    evil.write_bytes((pair / "d.fits").read_bytes())
    code, _, messages = run(
        "report", evil, "--science", pair / "science.fits", "--template",
        pair / "template.fits", "--output", tmp_path / "p.html",
    )  # fmt: skip
    assert code == 0, messages
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert data_of(tmp_path / "p.html")["name"] == str(evil)
    assert text.count("<script") == 2
    assert "a&lt;script&gt;b&amp;amp;{{data}} ü.fits" in text


@pytest.mark.slow
def test_reports_of_less(run, pair, tmp_path):
    """A score alone; a constant correction, the science image convolved; neither WCS nor PSF."""
    page = tmp_path / "page.html"
    code, _, messages = run("report", pair / "s.fits", "--output", page)
    assert code == 0, messages
    data = data_of(page)
    assert data["kind"] == "score"
    assert [plane["key"] for plane in data["image"]["planes"]] == ["science", "template", "score"]
    assert status(data, "Variance of S/√V") == "good"

    page, out = tmp_path / "page2.html", tmp_path / "out.fits"
    code, _, messages = run(
        "subtract", pair / "template.fits", pair / "science.fits", "--constant",
        "--convolved", "science", "--output", out, "--report", page,
    )  # fmt: skip
    assert code == 0, messages
    data = data_of(page)
    assert data["convolved"] == "science"
    assert [plane["key"] for plane in data["image"]["planes"]] == [
        "science", "template", "difference",
    ]  # fmt: skip
    assert data["noise"]["before"]["filtered_variance_ratio"] > 1.15
    assert data["run"]["options"] == ["--convolved science", "--constant"]

    scene = simulate(SimulationOptions(shape=(300, 280), seed=2))
    planes = {
        name: Exposure.from_arrays(
            np.asarray(getattr(scene, name).image),
            variance=np.asarray(getattr(scene, name).variance),
        )
        for name in ("science", "template")
    }
    for name, exposure in planes.items():
        write_exposure(exposure, tmp_path / f"{name}.fits")
    difference = planes["science"].data - planes["template"].data
    bare = Exposure.from_arrays(difference, variance=1200.0)
    write_exposure(
        bare, tmp_path / "bare.fits",
        provenance={"WDTASK": ("decorrelate", ""), "WDSCI": (str(tmp_path / "science.fits"), ""),
                    "WDTMPL": (str(tmp_path / "template.fits"), "")},
    )  # fmt: skip
    page = tmp_path / "page3.html"
    code, _, messages = run("report", tmp_path / "bare.fits", "--output", page)
    assert code == 0, messages
    data = data_of(page)
    assert data["image"]["sky"] is None
    assert data["psfs"] is data["kernels"] is data["stars"] is data["detections"] is None
    assert any("no PSF" in note for note in data["notes"])


@pytest.mark.skipif(not DECAM.is_dir(), reason=f"no real data in {DECAM}")
@pytest.mark.parametrize(
    "size", [400, pytest.param(620, marks=pytest.mark.slow, id="of more pixels than SEP has room")]
)
def test_a_report_of_a_template_on_another_grid_whose_sky_is_left_in(run, tmp_path, size):
    code, _, messages = run(
        "simulate", "--output", tmp_path, "--size", size, "--seed", 4, "--stars", 120,
        "--galaxies", 10, "--transients", 4, "--science-sky", 900, "--template-sky", 2500,
        "--template-grid", 3.3, -2.2, 3.0, 1.0, "--template-psf", 1.7, "--science-psf", 2.2,
    )  # fmt: skip
    assert code == 0, messages
    for name in ("science", "template"):
        with fits.open(tmp_path / f"{name}.fits") as hdus:
            # Nothing but the image.
            image = next(hdu for hdu in hdus if hdu.data is not None)
            fits.PrimaryHDU(image.data, image.header).writeto(tmp_path / f"bare_{name}.fits")
    code, _, messages = run(
        "subtract", tmp_path / "bare_science.fits", tmp_path / "bare_template.fits", "--align",
        "--output", tmp_path / "d.fits", "--report", tmp_path / "r.html",
    )  # fmt: skip
    assert code == 0, messages
    assert (tmp_path / "d.fits").exists()
    data = data_of(tmp_path / "r.html")
    assert "source-free" not in " ".join(data["notes"])
    assert "noise is taken as white" not in messages
    assert {plane["key"] for plane in data["image"]["planes"]} >= {"template", "difference"}


def test_a_report_of_real_exposures(run, tmp_path):
    paths = [DECAM / f"DEC-OBS04{letter}.mini.fits" for letter in "ab"]
    page = tmp_path / "page.html"
    code, _, messages = run("subtract", *paths, "--output", tmp_path / "d.fits", "--report", page)
    assert code == 0, messages
    data = data_of(page)
    assert status(data, "PSF-filtered noise ratio") == "good"
    assert status(data, "Pixel variance / plane") == "good"
    # Five stars: the page says that this is few.
    assert status(data, "Stars that the kernel is fitted to") == "doubtful"
    assert data["run"]["warnings"]
    ra, dec = (fits.getheader(paths[0])[f"CRVAL{axis}"] for axis in (1, 2))
    vector = np.array(data["image"]["sky"]["vectors"])[8, 8]
    direction = np.array([np.cos(np.radians(dec)) * np.cos(np.radians(ra)),
                          np.cos(np.radians(dec)) * np.sin(np.radians(ra)),
                          np.sin(np.radians(dec))])  # fmt: skip
    assert vector @ vector == pytest.approx(1)
    # Within the camera's field.
    assert vector @ direction > np.cos(np.radians(1.5))


def test_what_cannot_be_reported_on_is_one_sentence(run, pair, tmp_path):
    page = tmp_path / "page.html"
    moved = tmp_path / "moved.fits"
    moved.write_bytes((pair / "d.fits").read_bytes())
    with fits.open(moved, mode="update") as hdus:
        hdus[0].header["WDTMPL"] = "/nowhere/t.fits"
    small = Exposure.from_arrays(np.ones((50, 60), np.float32), variance=1.0)
    write_exposure(small, tmp_path / "small.fits")
    table = Table({"x": [10.0, 5000], "y": [10.0, 10]})
    table.write(tmp_path / "other.ecsv")
    Table({"ra": [1.0]}).write(tmp_path / "columns.ecsv")
    (tmp_path / "text.fits").write_text("hello")
    difference = pair / "d.fits"
    for arguments, text in (
        ([pair / "science.fits"], "science.fits: is no difference or score of whitediff"),
        ([tmp_path / "missing.fits"], "missing.fits: no such file"),
        ([tmp_path / "text.fits"], "text.fits: cannot be read as FITS"),
        (
            [moved, "--follow-paths"],
            "was made from the template /nowhere/t.fits, which is not there",
        ),
        ([difference, "--science", tmp_path / "small.fits"], "small.fits: its pixels"),
        ([difference, "--template", tmp_path / "gone.fits"], "gone.fits: no such file"),
        ([difference, "--score", difference], "is a difference, not a score"),
        ([pair / "s.fits", "--score", pair / "s.fits"], "is a score itself"),
        ([difference, "--catalog", tmp_path / "other.ecsv"], "1 of 2 detections are not on"),
        ([difference, "--catalog", tmp_path / "columns.ecsv"], "has no column x and y"),
        ([difference, "--catalog", tmp_path / "gone.ecsv"], "gone.ecsv"),
    ):
        code, _, messages = run("report", *arguments, "--output", page, "-q")
        assert code == 1, messages
        assert text in messages
        assert len(messages.strip().splitlines()) == 1, messages
        assert not page.exists()
    page.write_text("mine")
    code, _, messages = run("report", difference, "--output", page)
    assert (code, page.read_text()) == (1, "mine")
    assert "exists already" in messages
    code, _, messages = run(
        "subtract", pair / "science.fits", pair / "template.fits", "--matched-output",
        tmp_path / "m.fits", "--report", tmp_path / "r.html",
    )  # fmt: skip
    assert code == 2
    assert "--report needs" in messages


# ---- in a browser ----------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(find_browser() is None, reason="no Chromium on the PATH")

_READY = """new Promise((resolve, reject) => {
  const started = Date.now();
  const wait = () => {
    const all = [...document.images].every((image) => image.complete);
    const drawn = [...document.querySelectorAll('canvas.picture')]
      .every((canvas) => canvas.width > 300);
    if (all && drawn) requestAnimationFrame(() => requestAnimationFrame(() => resolve(true)));
    else if (Date.now() - started > 30000) reject(new Error('not ready'));
    else setTimeout(wait, 30);
  };
  wait();
})"""
_FRAME = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))"
_PIXELS = """[...document.querySelectorAll('canvas.picture')].map((canvas) => {
  // From a copy: to be read often slows a canvas down, and the browser complains of it.
  const copy = new OffscreenCanvas(canvas.width, canvas.height);
  const context = copy.getContext('2d', {willReadFrequently: true});
  context.drawImage(canvas, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  let sum = 0, square = 0, brightest = -1, sx = 0, sy = 0, weight = 0;
  const n = pixels.length / 4;
  for (let i = 0; i < n; i++) {
    const grey = pixels[4 * i];
    sum += grey; square += grey * grey;
    if (grey > 150) {
      sx += grey * (i % canvas.width);
      sy += grey * Math.floor(i / canvas.width);
      weight += grey;
    }
  }
  return {key: canvas.dataset.plane, width: canvas.width, height: canvas.height,
          scatter: Math.sqrt(square / n - (sum / n) ** 2), x: sx / weight, y: sy / weight, sum};
})"""


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on the PATH")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        opened.open(page)
        opened.run(_READY)
        yield opened


@needs_browser
def test_every_picture_is_drawn_and_nobody_complains(browser):
    assert browser.complaints() == []
    assert len(browser.requests()) == 1
    sizes = browser.run("[...document.images].map((image) => image.naturalWidth)")
    assert len(sizes) > 50
    assert min(sizes) > 0
    drawn = browser.run(_PIXELS)
    assert [canvas["key"] for canvas in drawn] == ["science", "template", "difference", "score"]
    assert min(canvas["scatter"] for canvas in drawn) > 2
    assert len({canvas["sum"] for canvas in drawn}) == 4
    # Neither too wide for a laptop's screen, nor a section without its content.
    assert browser.run("document.documentElement.scrollWidth") == 1366
    assert browser.run(
        "[...document.querySelectorAll('section')].every((s) => s.children.length > 1)"
    )
    assert browser.run("document.querySelectorAll('svg.chart').length") >= 6
    assert browser.run(
        "!/NaN|undefined/.test(document.querySelector('main').innerHTML"
        ".replace(/base64,[^\\\")]*/g, ''))"
    )


@needs_browser
def test_zooming_moves_all_panels_to_the_same_place(browser, page):
    """A bright star is in the middle of each panel: nothing is flipped or off by a pixel."""
    data = data_of(page)
    stars = data["stars"]
    at = next(i for i in range(len(stars["x"])) if stars["reason"][i] == "used"
              and 60 < stars["x"][i] < 540 and 60 < stars["y"][i] < 540)  # fmt: skip
    x, y = stars["x"][at], stars["y"][at]
    before = browser.run("whitediffReport.view.zoom")
    browser.run(f"whitediffReport.lookAt({x}, {y}, 16)")
    browser.run(_FRAME)
    for canvas in browser.run(_PIXELS)[:2]:
        middle = (canvas["width"] / 2, canvas["height"] / 2)
        # 16 screen pixels are one pixel of the image; neighbours and noise pull by less.
        assert abs(canvas["x"] - middle[0]) < 16
        assert abs(canvas["y"] - middle[1]) < 16
    browser.run("document.getElementById('zoom-out').click()")
    assert browser.run("whitediffReport.view.zoom") == pytest.approx(10, rel=1e-9)
    browser.run("document.getElementById('zoom-in').click()")
    assert browser.run("whitediffReport.view.zoom") == pytest.approx(16, rel=1e-9)
    assert browser.run("whitediffReport.view.u") == pytest.approx(x + 0.5)
    browser.run("document.getElementById('zoom-fit').click()")
    browser.run(_FRAME)
    assert browser.run("whitediffReport.view.zoom") == pytest.approx(before)
    assert browser.complaints() == []


@needs_browser
def test_binned_frames_show_single_pixels_where_there_are_sources(
    pair, browser, page, tmp_path, monkeypatch
):
    """As of a large frame: neither side is a multiple of the bins."""
    from whitediff.diagnostics import report

    monkeypatch.setattr(report, "_MOST_PIXELS", 8500)
    coarse = tmp_path / "coarse.html"
    code, _, messages = command("report", pair / "d.fits", "--output", coarse)
    assert code == 0, messages
    data = data_of(coarse)
    assert data["image"]["bin"] == 7
    assert coarse.stat().st_size < page.stat().st_size
    brightest = next(
        row
        for row in data["detections"]["rows"]
        if row["significance"] > 15 and 60 < row["x"] < 540 and 60 < row["y"] < 540
    )
    try:
        browser.events.clear()
        browser.open(coarse)
        browser.run(_READY)
        browser.run("document.getElementById('show-detections').click()")
        browser.run(f"whitediffReport.lookAt({brightest['x']}, {brightest['y']}, 16)")
        browser.run(_FRAME)
        difference = browser.run(_PIXELS)[2]
        assert abs(difference["x"] - difference["width"] / 2) < 16
        assert abs(difference["y"] - difference["height"] / 2) < 16
        assert browser.complaints() == []
    finally:
        browser.events.clear()
        browser.open(page)
        browser.run(_READY)


@needs_browser
def test_the_wheel_zooms_about_the_pointer_once_the_images_are_clicked(browser):
    # A click on a detection would lead away, to its row.
    browser.run("document.getElementById('show-detections').click()")
    browser.run("document.getElementById('zoom-fit').click()")
    place = (
        "(() => { document.getElementById('images').scrollIntoView();"
        " const b = document.querySelector('canvas.overlay').getBoundingClientRect();"
        " return [b.left + 0.5 * b.width, b.top + 0.95 * b.height]; })()"
    )
    settled = "new Promise((done) => setTimeout(done, 600))"

    def mouse(kind, **more):
        x, y = browser.run(place)
        browser.run(_FRAME)
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    wheel = {"deltaX": 0, "deltaY": -120}
    before = browser.run("whitediffReport.view.zoom")
    mouse("mouseMoved")
    mouse("mouseWheel", **wheel)
    browser.run(settled)
    # Not clicked: the wheel scrolls the page.
    assert browser.run("whitediffReport.view.zoom") == before
    v = browser.run("whitediffReport.view.v")
    mouse("mousePressed", button="left", clickCount=1)
    mouse("mouseReleased", button="left", clickCount=1)
    mouse("mouseWheel", **wheel)
    browser.run(_FRAME)
    assert browser.run("whitediffReport.view.zoom") > 1.2 * before
    # What was under the pointer, below the middle, still is.
    assert browser.run("whitediffReport.view.v") > v
    browser.run("document.getElementById('zoom-fit').click()")
    browser.run("document.getElementById('show-detections').click()")
    assert browser.complaints() == []


@needs_browser
def test_the_table_sorts_and_leads_to_the_images(browser, page):
    data = data_of(page)
    rows = data["detections"]["rows"]
    assert len(rows) > 5
    names = [None, *(column["name"] for column in data["detections"]["columns"])]
    column = names.index("x")
    script = (
        "[...document.querySelectorAll('#table tbody tr')]"
        f".map((row) => row.children[{column}].textContent)"
    )
    click = (
        f"document.querySelectorAll('#table thead th')[{column}].querySelector('button').click()"
    )
    sort = f"document.querySelectorAll('#table thead th')[{column}].getAttribute('aria-sort')"
    assert browser.run(sort) == "none"
    expected = sorted(row["x"] for row in rows)
    for order, state in ((expected[::-1], "descending"), (expected, "ascending")):
        browser.run(click)
        assert browser.run(sort) == state
        shown = [float(text.replace("−", "-")) for text in browser.run(script)]
        np.testing.assert_allclose(shown, order, atol=0.06)
    # The first row is now the one with the smallest x, whichever it was before.
    browser.run("document.querySelector('#table tbody tr').click()")
    browser.run(_FRAME)
    assert browser.run("whitediffReport.view.u") == pytest.approx(
        max(0, expected[0] + 0.5), abs=0.1
    )
    assert browser.run("document.querySelectorAll('#table tr.chosen').length") == 1
    assert browser.complaints() == []


def test_a_frame_of_sources_is_seen():
    rng = np.random.default_rng(5)
    shape = (300, 400)
    # Evenly spread, the density is the same everywhere, to within the error, in 97 of 100 cases.
    off = []
    for _ in range(200):
        x, y = rng.uniform(-0.5, (399.5, 299.5), (60, 2)).T
        ratio, error = edge_excess(x, y, shape)
        off.append(abs(ratio - 1) / error)
    assert np.mean(np.array(off) < 3) > 0.97
    limits = LIMITS["edges"]
    ratio, error = edge_excess(x, y, shape)
    assert judged("Edges", "edges", ratio, "", error=error).status == "good"
    # Forty more in the outer six pixels.
    side = rng.integers(0, 4, 40)
    along, across = rng.uniform(0, 300, 40), rng.uniform(0, 6, 40)
    more_x = np.where(side < 2, along, np.where(side == 2, across, 399 - across))
    more_y = np.where(side == 0, across, np.where(side == 1, 299 - across, along))
    ratio, error = edge_excess(np.append(x, more_x), np.append(y, more_y), shape)
    assert ratio > limits.good[1]
    few_x, few_y = x[:10], y[:10]
    ratio, error = edge_excess(np.append(few_x, more_x), np.append(few_y, more_y), shape)
    assert judged("Edges", "edges", ratio, "", error=error).status != "good"


def test_fractions_of_extended_and_flagged_detections():
    table = Table({"x": np.arange(10.0), "y": np.arange(10.0), "significance": np.full(10, 6.0)})
    table["classification"] = ["extended"] * 4 + ["point"] * 6
    table["flag_edge"] = [True] * 3 + [False] * 7
    table["flag_saturated"] = [False] * 2 + [True] * 3 + [False] * 5
    table["flag_source"] = True  # spoils nothing
    section = detection_rows(table, listed=5, drawn=10)
    assert section["extended_fraction"] == 0.4
    assert section["flagged_fraction"] == 0.5
    few = detection_rows(table[:3], listed=5, drawn=10)
    assert few["extended_fraction"] is few["flagged_fraction"] is None
