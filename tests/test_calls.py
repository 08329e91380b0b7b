"""One call for each command.

Claims: what `whitediff.subtract` gives is what the command writes, to the last bit, and so are its
catalogue, picture, numbers and report; files, exposures, HDU lists, CCDData, arrays and masked
arrays of the same pixels give the same difference; nothing is written unless it is named; the
keywords of each call are the options of its command; what is wrong is one sentence that names what
was given; `dir(whitediff)` shows the public names alone; the way through the seven calls works on
arrays alone.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import subprocess
import sys
import warnings
from pathlib import Path

import click
import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, VarianceUncertainty
from astropy.table import Table

import whitediff
from scenes import command
from whitediff import api
from whitediff.cli.main import cli
from whitediff.errors import ArgumentError, FileFormatError, OutputExistsError, UsageError
from whitediff.options import declarations
from whitediff.runs import options as options_module

CALLS = {
    "align": options_module.AlignOptions,
    "check": options_module.CheckOptions,
    "decorrelate": options_module.DecorrelateOptions,
    "detect": options_module.DetectOptions,
    "evaluate": options_module.EvaluateOptions,
    "inject": options_module.InjectOptions,
    "report": options_module.ReportOptions,
    "subtract": options_module.SubtractOptions,
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Science image and template."""
    directory = tmp_path_factory.mktemp("pair")
    options = ("--size", 256, "--seed", 5, "--stars", 60, "--output", directory)
    code, _, messages = command("simulate", *options, "-q")
    assert code == 0, messages
    return [str(directory / f"{name}.fits") for name in ("science", "template")]


@pytest.fixture(scope="module")
def written(pair, tmp_path_factory):
    """Directory with what the command makes of them."""
    directory = tmp_path_factory.mktemp("written")
    outputs = {
        "--output": "d.fits",
        "--score-output": "s.fits",
        "--matched-output": "m.fits",
        "--catalog": "c.csv",
        "--json": "n.json",
        "--plot": "p.png",
        "--report": "r.html",
    }
    arguments = [each for option, name in outputs.items() for each in (option, directory / name)]
    code, _, messages = command("subtract", *pair, *arguments, "--threshold", 4.5, "-q")
    assert code == 0, messages
    return directory


@pytest.fixture(scope="module")
def result(pair):
    return whitediff.subtract(*pair, threshold=4.5)


def same_pixels(one, other):
    for plane in ("data", "variance"):
        np.testing.assert_array_equal(getattr(one, plane), getattr(other, plane))
    np.testing.assert_array_equal(one.mask.bits, other.mask.bits)
    assert one.mask.names == other.mask.names


def test_a_result_is_what_the_command_writes(result, written, tmp_path):
    for name, exposure in (("d", result.difference), ("s", result.score), ("m", result.matched)):
        read = whitediff.read(written / f"{name}.fits")
        if name == "m":
            np.testing.assert_array_equal(exposure.data, read.data)
        else:
            same_pixels(exposure, read)
    box = result.difference.bbox
    place = {"x": box.x.center, "y": box.y.center}
    read = whitediff.read(written / "d.fits")
    np.testing.assert_array_equal(result.kernel.at(**place), read.kernel.at(**place))
    np.testing.assert_allclose(result.difference.psf.at(**place), read.psf.at(**place), atol=1e-12)
    result.write(tmp_path / "d.fits")
    with fits.open(tmp_path / "d.fits") as ours, fits.open(written / "d.fits") as theirs:
        assert [hdu.name for hdu in ours] == [hdu.name for hdu in theirs]
        told = [
            {k: h[0].header[k] for k in h[0].header if k.startswith("WD")} for h in (ours, theirs)
        ]
        assert told[0] == told[1]
    with pytest.raises(OutputExistsError, match=r"d\.fits: exists already"):
        result.write(tmp_path / "d.fits")


def test_sources_and_numbers_are_those_of_the_command(pair, written):
    # Of the command they were found on the score, since that was made.
    result = whitediff.subtract(*pair, threshold=4.5, score_output=written / "again.fits")
    catalog = whitediff.read_catalog(written / "c.csv")
    assert len(catalog) == len(result.sources) > 5
    for name in ("x", "y", "psf_flux", "psf_flux_err", "significance"):
        values = np.asarray(getattr(result.sources[name], "value", result.sources[name]))
        np.testing.assert_allclose(np.asarray(catalog[name]), values, rtol=1e-12)
    numbers = json.loads((written / "n.json").read_text())
    assert set(numbers) == {"difference", "score"}
    told = {k: v for k, v in result.quality.numbers.items() if isinstance(v, float)}
    assert {k: numbers["difference"][k] for k in told} == pytest.approx(told)
    truth = result.quality.numbers
    assert abs(truth["kernel_sum"] - 1) < 3 * truth["kernel_sum_error"]
    noise = result.quality.noise
    off = noise.filtered_variance_ratio - 1
    assert abs(off) < 4 * noise.filtered_variance_ratio_error


def test_pictures_and_pages(result, written, tmp_path):
    result.plot(tmp_path / "p.png")
    with pytest.raises(OutputExistsError):
        result.plot(tmp_path / "p.png")
    for path in (tmp_path / "p.png", written / "p.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    data = result.report(tmp_path / "r.html")
    assert data["verdict"]["headline"]
    for path in (tmp_path / "r.html", written / "r.html"):
        assert "<html" in path.read_text()[:2000]
    assert "kernel_sum" in repr(result)
    html = result._repr_html_()
    assert "data:image/png;base64," in html
    assert "kernel_sum" in html


def as_given(path, how, stack):
    """Image of a file in some other form."""
    if how == "file":
        return path
    if how == "exposure":
        return whitediff.read(path)
    if how == "path":
        return Path(path)
    if how == "HDUs":
        return stack.enter_context(fits.open(path))
    raise AssertionError(how)


@pytest.mark.parametrize("how", ["path", "exposure", "HDUs"])
def test_the_same_image_in_any_form(pair, result, how):
    with contextlib.ExitStack() as stack:
        given = [as_given(path, how, stack) for path in pair]
        again = whitediff.subtract(*given)
    same_pixels(again.difference, result.difference)


@pytest.mark.parametrize("how", ["arrays", "masked arrays", "HDUs", "CCDData"])
def test_plain_pixels_in_any_form(pair, tmp_path, how):
    """Pixels, a mask and the variance, without anything else: as from a file with these."""
    options, given, files = {}, [], []
    for name, path in zip(("science", "template"), pair, strict=True):
        image = whitediff.read(path)
        bad = image.mask.get("BAD") | image.mask.get("NO_DATA")
        level = float(np.median(image.variance[np.isfinite(image.variance)]))
        planes = [fits.PrimaryHDU(image.data)]
        if how != "arrays":
            planes.append(fits.ImageHDU(bad.astype(np.uint8), name="MASK"))
        if how == "CCDData":
            planes.append(fits.ImageHDU(np.full(image.shape, level), name="VARIANCE"))
        file = tmp_path / f"{name}.fits"
        fits.HDUList(planes).writeto(file)
        files.append(str(file))
        if how == "arrays":
            given.append(image.data)
        elif how == "masked arrays":
            given.append(np.ma.array(image.data, mask=bad))
        elif how == "HDUs":
            given.append(fits.HDUList(planes))
        else:
            variance = VarianceUncertainty(np.full(image.shape, level))
            given.append(CCDData(image.data, unit="adu", mask=bad, uncertainty=variance))
        if how != "CCDData":
            options[f"{name}_gain"] = 2.0
    expected = whitediff.subtract(*files, **options)
    found = whitediff.subtract(*given, **options)
    for plane in ("data", "variance"):
        one, other = (getattr(each.difference, plane) for each in (found, expected))
        # Uncertainties are brought to the type of the pixels: a last digit.
        digit = 1e-6 * float(np.nanmax(np.abs(other))) if how == "CCDData" else 0
        np.testing.assert_allclose(one, other, rtol=0, atol=digit)


def test_nothing_is_written_unless_it_is_named(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = whitediff.subtract(*pair)
    whitediff.detect(result.difference)
    whitediff.check(result.difference)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileFormatError, match=r"x\.png: is to be a FITS file"):
        whitediff.subtract(*pair, output="x.png")
    assert not list(tmp_path.iterdir())


def test_an_earlier_result_is_made_again(pair, result):
    again = whitediff.subtract(*pair, kernel=result)
    np.testing.assert_array_equal(again.difference.data, result.difference.data)
    with pytest.raises(ArgumentError, match="int is no result of whitediff"):
        whitediff.subtract(*pair, kernel=3)


@pytest.mark.parametrize("name", CALLS)
def test_keywords_are_the_options_of_the_command(name):
    known = set(declarations(CALLS[name]))
    call = getattr(whitediff, name)
    keywords = set(inspect.signature(call).parameters)
    assert known <= keywords
    own = cli.get_command(click.Context(cli), name)
    assert own is not None
    assert {each.name for each in own.params} >= known - {"set"}
    for option in known:
        assert f"\n{option}\n    " in call.__doc__


def test_every_call_has_an_example():
    for name in api.__all__:
        if name != "report":  # which needs a file that another call writes
            assert ">>> import whitediff" in getattr(whitediff, name).__doc__, name


def test_only_public_names_are_listed():
    code = "import whitediff, json; print(json.dumps(dir(whitediff)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(found.stdout) == sorted(whitediff.__all__)
    assert {*api.__all__, "Exposure"} <= set(whitediff.__all__)
    with pytest.raises(AttributeError, match="no attribute 'subtrakt'"):
        whitediff.subtrakt  # noqa: B018


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: whitediff.subtract("no.fits", p[1]), r"^no\.fits: no such file"),
        (lambda p: whitediff.subtract(*p, nois="white"), "no option 'nois'; is noise meant"),
        (lambda p: whitediff.subtract(*p, noise="w"), "noise must be one of auto, white, measured"),
        (lambda p: whitediff.subtract(*p, kernel_order=-1), "kernel_order must be at least 0"),
        (lambda p: whitediff.subtract(*p, background_order=1.5), "must be a whole number"),
        (
            lambda p: whitediff.subtract(*p, science_gain=-2),
            r"science\.fits: --science-gain must be a positive number",
        ),
        (lambda p: whitediff.subtract(3, p[1]), "the science image: is int, and no image"),
        (
            lambda p: whitediff.subtract(np.ones((3, 3, 3)), p[1]),
            r"the science image: must be an image, numbers of two axes; got .*\(3, 3, 3\)",
        ),
        (
            lambda p: whitediff.subtract(p[0], np.array([["a"]])),
            "the template: must be an image, numbers of two axes",
        ),
        (lambda p: whitediff.detect(p[0], threshold="a"), "threshold must be a number"),
        (lambda p: whitediff.measure(p[0], at=5), "the table of positions: is int"),
        (lambda p: whitediff.inject(p[0]), "either --sources or --random"),
        (lambda p: whitediff.evaluate(p[0]), "Give science and template, or simulate=True"),
        (lambda p: whitediff.subtract(*p, science_psf=5), "the science PSF: is int, and no PSF"),
        (lambda p: whitediff.subtract(*p, threads=0), "threads must be at least 1"),
        (lambda p: whitediff.subtract(*p, memory="much"), "not an amount of memory"),
    ],
)
def test_what_is_wrong_is_one_sentence(pair, call, words):
    with pytest.raises(whitediff.WhitediffError, match=words):
        call(pair)


def test_usage_is_told_apart():
    with pytest.raises(UsageError):
        whitediff.inject(np.ones((40, 40)), random=3, sources={"x": [1], "y": [1], "flux": [1]})


def test_the_way_on_arrays_alone(rng):
    """A source that was injected is found, measured and drawn, without any file."""
    y, x = np.mgrid[-12:13, -12:13]
    psf = np.exp(-(x**2 + y**2) / 8)
    blank = rng.normal(0, 2.0, (160, 150))
    where = {"x": [40.3], "y": [70.6], "flux": [900.0]}
    injected = whitediff.inject(blank, sources=where, science_psf=psf, science_variance=4.0)
    assert float((injected.exposure.data - blank).sum()) == pytest.approx(900, rel=1e-3)
    sources = whitediff.detect(injected.exposure, psf=psf)
    brightest = sources[np.argmax(np.asarray(sources["significance"]))]
    assert abs(brightest["x"].value - 40.3) < 5 * brightest["x_err"].value
    assert abs(brightest["y"].value - 70.6) < 5 * brightest["y_err"].value
    places = Table({"x": [40.3, 100.0], "y": [70.6, 20.0]})
    forced = whitediff.measure(injected.exposure, places, psf=psf)
    pull = (forced["psf_flux"].value - [900, 0]) / forced["psf_flux_err"].value
    assert (np.abs(pull) < 4.5).all()
    noise = whitediff.check(blank, sigma=1.5, map=None)
    assert noise.filter == "Gaussian of sigma 1.5 pixels"
    axes = injected.exposure.plot()
    assert axes.get_xlabel() == "x [pixel]"
    assert "data:image/png" in injected.exposure._repr_html_()


def test_no_warning_of_python_reaches_the_user(pair):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whitediff.subtract(*pair)


# What is given stays as it is


def test_a_psf_that_is_given_is_not_put_on_the_callers_exposure(pair, result):
    exposure, template = map(whitediff.read, pair)
    psf = exposure.psf
    y, x = np.mgrid[-12:13, -12:13]
    stamp = np.exp(-(x**2 + y**2) / (2 * 2.5**2))
    whitediff.subtract(exposure, template, science_psf=stamp, template_psf=stamp)
    difference = result.difference
    before = difference.psf
    at = {"x": [119.4], "y": [126.0]}
    first = whitediff.measure(difference, at)["psf_flux"]
    whitediff.measure(difference, at, psf=stamp)
    whitediff.detect(difference, psf=stamp)
    assert whitediff.measure(difference, at)["psf_flux"] == first
    assert difference.psf is before
    assert exposure.psf is psf


def test_what_is_made_later_is_of_the_same_pixels(pair, tmp_path):
    arrays = [fits.getdata(path, "IMAGE").astype(np.float32) for path in pair]
    options = {"science_gain": 2.0, "template_gain": 2.0}
    expected = whitediff.subtract(*arrays, **options).score.data.copy()
    given = [each.copy() for each in arrays]
    later = whitediff.subtract(*given, **options)
    given[0][100:110, 100:110] += 1e5
    np.testing.assert_array_equal(later.score.data, expected)
    files = [tmp_path / Path(path).name for path in pair]
    for path, source in zip(files, pair, strict=True):
        path.write_bytes(Path(source).read_bytes())
    of_files = whitediff.subtract(*files)
    of_exposures = whitediff.subtract(*map(whitediff.read, map(str, files)))
    files[0].unlink()
    # What was given as an exposure needs its file no more.
    assert of_exposures.score.shape == of_files.difference.shape
    with pytest.raises(whitediff.WhitediffError, match="is not there any more"):
        _ = of_files.score
    files[0].write_bytes(b"SIMPLE")
    with pytest.raises(whitediff.WhitediffError, match="has changed since"):
        _ = of_files.score


def test_parts_and_other_orders_of_memory_are_measured(result):
    part = result.difference[20:200, 30:250]
    whole = whitediff.detect(result.difference, threshold=8.0)
    found = whitediff.detect(part, threshold=8.0)
    x, y, flux = (np.asarray(found[name]) for name in ("x", "y", "aperture_flux"))
    all_of = [np.asarray(whole[name]) for name in ("x", "y", "aperture_flux")]
    inside = (np.abs(all_of[0] - 140) < 90) & (np.abs(all_of[1] - 110) < 70)
    assert inside.sum() > 1
    for at_x, at_y, expected in np.transpose(all_of)[inside]:
        near = np.hypot(x - at_x, y - at_y)
        assert near.min() < 0.01
        assert flux[near.argmin()] == pytest.approx(expected, rel=1e-5)
    fortran = whitediff.Exposure.from_arrays(
        np.asfortranarray(part.data),
        variance=np.asfortranarray(part.variance),
        mask={name: part.mask.get(name) for name in part.mask.names},
        psf=part.psf,
    )
    assert len(whitediff.detect(fortran, threshold=8.0)) == len(found)


def test_masked_arrays_and_quantities(rng):
    image = rng.normal(0, 1, (60, 70)).astype(np.float32)
    masked = np.ma.masked_array(image, mask=image > 1)
    exposure = whitediff.Exposure.from_arrays(masked, variance=1.0)
    np.testing.assert_array_equal(exposure.mask.get("BAD"), image > 1)
    assert whitediff.read(image * u.nJy, variance=1.0).unit == u.nJy
    for kind in (np.int8, np.float16, np.longdouble):
        read = whitediff.read((10 * image).astype(kind), variance=1.0)
        np.testing.assert_array_equal(read.data, (10 * image).astype(kind).astype(read.data.dtype))
    with pytest.raises(ArgumentError, match="real numbers; got complex"):
        whitediff.Exposure.from_arrays(image + 1j, variance=1.0)
    with pytest.raises(ArgumentError, match="by name"):
        whitediff.Exposure.from_arrays(image, variance=1.0, mask=image > 1)


def test_a_score_stays_a_score_as_ccddata(result):
    assert whitediff.read(whitediff.to_ccddata(result.score)).is_score
    assert not whitediff.read(whitediff.to_ccddata(result.difference)).is_score


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r, d: r.plot(d / "a.fits"), "is to be a picture"),
        (lambda r, d: r.write(d / "a.png"), "is to be a FITS file"),
        (lambda r, d: whitediff.write(r.difference, d / "a.png"), "is to be a FITS file"),
        (lambda r, d: whitediff.write(r, d / "a.fits"), "a whitediff.Exposure is wanted"),
        (lambda r, d: whitediff.to_hdulist(np.ones((3, 3))), "a whitediff.Exposure is wanted"),
        (lambda r, d: whitediff.read(fits.HDUList()), "without any HDU"),
        (lambda r, d: r.difference[5:3, :], "holds no pixel"),
        (lambda r, d: r.difference[0.5:9, :], "whole numbers"),
        (lambda r, d: whitediff.subtract("a", "b", threshold=-5), "threshold must be positive"),
        (lambda r, d: whitediff.subtract("a", "b", threshold=float("nan")), "must be positive"),
    ],
)
def test_more_that_is_wrong_is_one_sentence(result, tmp_path, call, words):
    with pytest.raises(whitediff.WhitediffError, match=rf"(?i){words}") as caught:
        call(result, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_grid_may_be_a_number(result):
    assert whitediff.check(result.difference, map=2) is not None
