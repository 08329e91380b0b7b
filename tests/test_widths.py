"""Significances that mean what they say, or are told of.

Claims:

- Of white noise of the right variance the width is 1 within its error, whatever the PSF, the mask
  and the sources; nothing is said, and catalogues are as by the plane.
- Where the plane tells a quarter of the variance, significances are told to be 2 times too large in
  the run's messages, the header, the catalogue and the report, in the same words; where it
  tells too much, too small.  Scores likewise.
- Detection then finds as many sources in noise as theory says, and with ``plane`` as many as
  theory says of noise that is wider; both significances are in the catalogue.
- A task and the command have the option; what the mask leaves too little of is not judged.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import scipy.ndimage
from astropy.io import fits

from scenes import command
from whitediff import Exposure, read_catalog
from whitediff.detection.exposures import DetectionOptions, detect, forced_photometry
from whitediff.errors import ArgumentError
from whitediff.noise.scatter import measured_width, warn_of_significances
from whitediff.noise.widths import significance_width
from whitediff.tasks import DetectAndMeasureConfig

SHAPE = (420, 380)
ERRORS = 3.5


def psf(sigma, size=25, ratio=1.3):
    y, x = np.mgrid[:size, :size] - size // 2
    profile = np.exp(-0.5 * ((x / (ratio * sigma)) ** 2 + (y / sigma) ** 2))
    return profile / profile.sum()


def difference(seed, *, wider=1.0, sigma=1.6, sources=0, unit=1.0, masked=False):
    """White noise that scatters so many times as much as its plane tells."""
    rng = np.random.default_rng(seed)
    variance = 40.0 * (1 + 0.5 * np.linspace(0, 1, SHAPE[1])) * np.ones((SHAPE[0], 1))
    image = wider * rng.normal(size=SHAPE) * np.sqrt(variance)
    stamp = psf(sigma)
    for y, x in rng.integers(20, min(SHAPE) - 20, (sources, 2)):
        error = np.sqrt(variance[y, x] / (stamp**2).sum())
        image[y - 12 : y + 13, x - 12 : x + 13] += wider * rng.uniform(8, 80) * error * stamp
    mask = {"SOURCE": np.zeros(SHAPE, bool)}
    if masked:
        mask["BAD"] = rng.random(SHAPE) < 0.02
        mask["BAD"][:, :100] = True
        image[mask["BAD"]] = 1e5
    return Exposure.from_arrays(
        (unit * image).astype(np.float32),
        variance=(unit**2 * variance).astype(np.float32),
        mask=mask,
        psf=stamp,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options",
    [{}, {"sigma": 1.0}, {"sigma": 2.4}, {"sources": 25}, {"masked": True}, {"unit": 1e-9}],
)
@pytest.mark.parametrize("wider", [1.0, 2.0, 0.7])
def test_the_width_is_the_true_one(options, seed, wider):
    found = measured_width(difference(seed, wider=wider, **options))
    assert found is not None
    assert found.width == pytest.approx(wider, abs=ERRORS * found.error)
    assert found.error < 0.05 * wider
    assert found.is_off == (wider != 1)
    assert found.divisor == (found.width if wider != 1 else 1.0)


@pytest.mark.slow
def test_its_error_is_its_scatter():
    found = [measured_width(difference(100 + seed)) for seed in range(40)]
    pulls = [(each.width - 1) / each.error for each in found if each is not None]
    assert len(pulls) == 40
    assert abs(np.mean(pulls)) < 0.6
    assert 0.7 < np.std(pulls) < 1.4
    assert not any(each.is_off for each in found if each is not None)


@pytest.mark.parametrize(("wider", "words"), [(2.0, "too large"), (0.5, "too small")])
def test_it_is_said(wider, words, caplog):
    with caplog.at_level("WARNING"):
        width = warn_of_significances(difference(1, wider=wider))
    assert width is not None
    number = re.search(rf"significances are ([0-9.]+) times {words}", caplog.text)
    assert number is not None
    assert float(number[1]) == pytest.approx(2, rel=0.05)
    assert len(caplog.records) == 1
    caplog.clear()
    with caplog.at_level("WARNING"):
        warn_of_significances(difference(2))
    assert not caplog.records


@pytest.mark.parametrize("seed", range(3))
def test_where_significances_are_right_nothing_changes(seed):
    image = difference(seed, sources=12)
    auto, plane = (
        detect(image, options=DetectionOptions(significance=how)) for how in ("auto", "plane")
    )
    assert len(auto) == len(plane) > 8
    np.testing.assert_array_equal(auto["significance"], plane["significance"])
    np.testing.assert_array_equal(auto["significance"], auto["measured_significance"])
    assert auto.meta["significance_text"] == ""
    assert auto.meta["expected_false_per_sign"] == plane.meta["expected_false_per_sign"]


def test_detection_allows_for_the_width():
    wider, expected, numbers = 1.4, {"auto": 0.0, "plane": 0.0}, {"auto": 0, "plane": 0}
    for seed in range(6):
        image = difference(10 + seed, wider=wider)
        for how in ("auto", "plane"):
            options = DetectionOptions(threshold=4.5, significance=how)  # type: ignore[arg-type]
            table = detect(image, options=options)
            numbers[how] += table.meta["n_positive"] + table.meta["n_negative"]
            expected[how] += 2 * table.meta["expected_false_per_sign"]
            assert table.meta["significance_width"] == pytest.approx(wider, rel=0.08)
            ratio = table["significance"] / table["measured_significance"]
            np.testing.assert_allclose(ratio, table.meta["significance_width"])
            column = "measured_significance" if how == "auto" else "significance"
            assert (np.abs(table[column]) >= 4.5).all()
    for how in ("auto", "plane"):
        # The width's own error counts as the threshold's.
        error = np.hypot(np.sqrt(expected[how]), 0.15 * expected[how])
        assert numbers[how] == pytest.approx(expected[how], abs=3.5 * error)
    assert expected["plane"] > 20 * expected["auto"]


def test_forced_fluxes_have_both():
    from astropy.table import Table

    at = Table({"x": [100.0, 200.0], "y": [150.0, 60.0]})
    rows = forced_photometry(difference(3, wider=3.0), at)
    np.testing.assert_allclose(rows["significance"] / rows["measured_significance"], 3.0, rtol=0.08)
    assert "3." in rows.meta["significance_text"] or "2.9" in rows.meta["significance_text"]


def test_too_few_pixels_are_not_judged():
    noise = np.random.default_rng(0).normal(size=(60, 60))
    free = np.zeros((60, 60), bool)
    free[:20] = True
    assert significance_width(noise, free, correlated=20.0, reach=3) is None
    assert significance_width(noise, ~free, correlated=1.0, reach=3) is not None
    assert significance_width(0 * noise, ~free, correlated=1.0, reach=3) is None


def test_options():
    with pytest.raises(ArgumentError, match="significance is auto or plane; got 'both'"):
        DetectionOptions(significance="both")  # type: ignore[arg-type]
    config = DetectAndMeasureConfig()
    assert config.to_options().significance == "auto"
    config.detection.significance = "plane"
    assert config.to_options().significance == "plane"


@pytest.fixture(scope="module")
def fringed(tmp_path_factory):
    """A pair of which the science image has fringes, its products, and what was said."""
    directory = tmp_path_factory.mktemp("fringes")
    code, _, messages = command(
        "simulate", "--output", directory, "--size", 360, "--seed", 7, "--stars", 60,
        "--transients", 0, "--science-psf", 1.8, "--template-psf", 1.5, "-q", "--threads", 1,
    )  # fmt: skip
    assert code == 0, messages
    with fits.open(directory / "science.fits", mode="update") as hdus:
        hdu = next(hdu for hdu in hdus if hdu.data is not None)
        y, x = np.mgrid[: hdu.data.shape[0], : hdu.data.shape[1]]
        hdu.data = (hdu.data + 30 * np.sin(2 * np.pi * (x + 0.4 * y) / 37)).astype(np.float32)
    code, _, messages = command(
        "subtract", directory / "science.fits", directory / "template.fits", "--output",
        directory / "d.fits", "--score-output", directory / "s.fits", "--catalog",
        directory / "c.ecsv", "--report", directory / "r.html", "--background", "polynomial",
        "--threads", 1,
    )  # fmt: skip
    assert code == 0, messages
    return directory, messages


def test_run_header_catalogue_and_report_say_the_same(fringed, tmp_path):
    directory, messages = fringed
    for name, number in (("d", 1), ("s", 1)):
        header = fits.getheader(directory / f"{name}.fits")
        assert header["WDSGWID"] > 1.3
        assert header["WDSGOFF"]
        text = f"significances are {header['WDSGWID']:.3g} times too large"
        assert header.comments["WDSGWID"] == text
        assert messages.count(f"{text}, as") == number
    table = read_catalog(directory / "c.ecsv")
    assert table.meta["significance_text"] in messages
    assert table.meta["significance_width"] == pytest.approx(header["WDSGWID"], rel=0.02)
    assert f"{table.meta['significance_text']}, which is allowed for" in messages
    page = (directory / "r.html").read_text(encoding="utf-8")
    data = json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]  # type: ignore[index]
    )
    width = fits.getheader(directory / "d.fits")["WDSGWID"]
    said = f"Significances are {width:.3g} times too large"
    assert data["verdict"]["status"] == "bad"
    assert said in data["verdict"]["text"]
    # By the plane there are many, and noise alone is not said to give none.
    code, _, text = command(
        "detect", directory / "d.fits", "--significance", "plane", "--output", tmp_path / "p.ecsv"
    )
    assert code == 0
    by_plane = read_catalog(tmp_path / "p.ecsv")
    assert len(by_plane) > 20 > len(table)
    assert 2 * by_plane.meta["expected_false_per_sign"] > 0.2 * len(by_plane)
    assert "which is not allowed for" in text


def test_smooth_noise_is_told(caplog):
    rng = np.random.default_rng(4)
    noise = scipy.ndimage.gaussian_filter(rng.normal(size=SHAPE), 0.8)
    image = Exposure.from_arrays(
        (noise / noise.std()).astype(np.float32), variance=np.float32(1), psf=psf(1.6)
    )
    with caplog.at_level("WARNING"):
        width = warn_of_significances(image)
    assert width is not None
    assert width.width > 1.5
    assert "times too large" in caplog.text
