"""``whitediff align`` and ``subtract --align``, end to end on files.

Claims: a template rotated by 3 degrees, shifted and with pixels larger by 10 % is aligned and
subtracted through the command line by both methods; the PSF-filtered variance ratio of the
difference is one within its sampling error, what is left of stars is noise, and transients keep
their flux to 1.5 %; without the covariance that the aligned file carries the ratio is not one.
Aligning in ``subtract`` gives the same pixels, and so does ``--kernel``; grids that differ are
refused with the number of pixels and the remedy; bad pixels of a template that is turned cost no
more than themselves; a grid that differs by whole pixels is cut, not
resampled; wrong input is one sentence and leaves no file; an image without noise at many
frequencies is warned of where it was not convolved.
"""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from grids import Scene, flux_ratios, residuals, sky_header
from whitediff import Exposure
from whitediff.detection.exposures import forced_photometry
from whitediff.exposures import masks
from whitediff.formats import read_exposure, write_exposure
from whitediff.numerics.covariance import NoiseCovariance
from whitediff.runs.cards import report_noise_floor

METHODS = ("interpolating", "adaptive")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    directory = tmp_path_factory.mktemp("grids")
    return directory, Scene().write(directory)


def checked(run, difference, *options):
    table = difference.with_suffix(".json")
    code, _, messages = run("check", difference, "--json", table, "--overwrite", *options)
    assert code == 0, messages
    return json.loads(table.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_rotated_template_is_aligned_and_subtracted(run, scene, tmp_path, method):
    directory, truth = scene
    science, template = directory / "science.fits", directory / "template.fits"
    aligned, difference = tmp_path / "aligned.fits", tmp_path / "difference.fits"
    code, _, messages = run(
        "align", template, "--to", science, "--output", aligned, "--method", method
    )
    assert code == 0, messages
    assert "1.1 times as large on a side" in messages
    assert "rotated by 3 degrees" in messages
    header = fits.getheader(aligned)
    assert (header["WDTASK"], header["WDALIGN"]) == ("align", method)
    assert header["WDALAREA"] == pytest.approx(1 / 1.21, rel=1e-4)
    assert header["WDALROT"] == pytest.approx(3, abs=1e-3)
    code, _, messages = run("subtract", science, aligned, "--output", difference)
    assert code == 0, messages
    assert "is known not to be white" in messages
    result = checked(run, difference)
    for ratio, error in (
        ("filtered_variance_ratio", "filtered_variance_ratio_error"),
        ("pixel_variance_ratio", "pixel_variance_ratio_error"),
    ):
        after = result["after"]
        assert abs(after[ratio] - 1) < 3 * after[error]
        cells, errors = (
            np.array(result["map"]["after"][name], dtype=float) for name in (ratio, error)
        )
        assert (np.abs(cells - 1) < 4 * errors).all()
    exposure = read_exposure(difference)
    squares = residuals(exposure, truth["stars"])
    assert len(squares) > 40
    # χ² of 121 pixels has the scatter √(2/121); bright stars add what the fit's error leaves.
    assert np.median(squares) == pytest.approx(1, abs=0.05)
    assert squares.mean() == pytest.approx(1, abs=0.06)
    ratios, errors = flux_ratios(exposure, truth["transients"])
    assert len(ratios) > 12
    weights = errors**-2
    mean, error = (ratios * weights).sum() / weights.sum(), weights.sum() ** -0.5
    assert error < 0.003
    assert mean == pytest.approx(1, abs=0.015)
    assert (((ratios - 1) / errors) ** 2).mean() == pytest.approx(
        1, abs=4 * np.sqrt(2 / len(ratios))
    )

    # Taken for white, the same noise is not what the plane says.
    code, _, messages = run(
        "subtract", science, aligned, "--output", tmp_path / "white.fits", "--noise", "white"
    )
    assert code == 0, messages
    naive = checked(run, tmp_path / "white.fits")["after"]
    excess = naive["filtered_variance_ratio"] - result["after"]["filtered_variance_ratio"]
    assert excess > 0.04


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "share"), [("NaN", 0.002), ("NaN", 0.01), ("CR", 0.01)])
def test_bad_pixels_of_a_rotated_template_cost_no_more_than_themselves(
    run, scene, tmp_path, method, kind, share
):
    directory, truth = scene
    science = directory / "science.fits"
    exposure = read_exposure(directory / "template.fits")
    bad = np.random.default_rng(7).random(exposure.shape) < share
    if kind == "NaN":
        exposure.data[bad] = np.nan
    else:
        # Of a value that would be seen, were it used.
        exposure.data[bad] += 6e4
        exposure = exposure.replaced(mask=masks.with_plane(exposure.mask, kind, bad))
    write_exposure(exposure, tmp_path / "spoilt.fits")
    made = {}
    for name in (directory / "template.fits", tmp_path / "spoilt.fits"):
        code, _, messages = run(
            "subtract", science, name, "--output", tmp_path / "d.fits", "--align", "--align-method",
            method, "--overwrite",
        )  # fmt: skip
        assert code == 0, messages
        made[name.stem] = read_exposure(tmp_path / "d.fits"), fits.getheader(tmp_path / "d.fits")
    (_, clean), (difference, cards) = made["template"], made["spoilt"]
    assert cards["WDNSTAR"] >= 0.8 * clean["WDNSTAR"]
    error = np.hypot(cards["WDKSERR"], clean["WDKSERR"])
    assert abs(cards["WDKSUM"] - clean["WDKSUM"]) < 2 * error
    unknown = masks.flagged(difference.mask, ["NO_DATA", "BAD", "CR", "CONTAMINATED"])
    assert unknown.mean() < 0.07 + 12 * share
    # Beside a filled pixel the noise is that of the plane, and nothing stands out.
    empty = ~unknown & ~masks.flagged(difference.mask, ["SOURCE", "EDGE"])
    pulls = difference.data[empty] / np.sqrt(difference.variance[empty])
    assert pulls.var() == pytest.approx(1, abs=0.03)
    assert np.abs(pulls).max() < 5.5
    x, y, flux = truth["transients"]
    rows = forced_photometry(difference, Table({"x": x, "y": y}))
    ratios, errors = rows["psf_flux"].value / flux, rows["psf_flux_err"].value / flux
    inside = np.isfinite(ratios) & ~np.asarray(rows["flag_edge"])
    spoilt = np.any([rows[f"flag_{n}"] for n in ("no_data", "bad", "cosmic_ray")], axis=0)[inside]
    ratios, errors = ratios[inside], errors[inside]
    assert (~spoilt).sum() > 12
    assert (np.abs(ratios - 1) < 0.03 + 3.5 * errors).all()
    weights = errors[~spoilt] ** -2
    mean, error = (ratios[~spoilt] * weights).sum() / weights.sum(), weights.sum() ** -0.5
    assert abs(mean - 1) < 0.01 + 2 * error


@pytest.mark.slow
def test_subtract_aligns_and_makes_the_same_again(run, scene, tmp_path):
    directory, _ = scene
    science, template = directory / "science.fits", directory / "template.fits"
    code, _, messages = run("subtract", science, template, "--output", tmp_path / "no.fits")
    assert code == 1
    assert not (tmp_path / "no.fits").exists()
    assert len(messages.strip().splitlines()) == 1
    assert f"{template}: its pixels and the science image's differ by up to" in messages
    assert "(--align)" in messages
    assert run(
        "align", template, "--to", science, "--output", tmp_path / "a.fits", "--noise", "white"
    )[0] == 0  # fmt: skip
    first, second = tmp_path / "one.fits", tmp_path / "two.fits"
    options = ("--convolved", "template", "--kernel-order", 0)
    assert run("subtract", science, tmp_path / "a.fits", "--output", first, *options)[0] == 0
    code, _, messages = run("subtract", science, template, "--align", "--output", second, *options)
    assert code == 0, messages
    code, _, messages = run(
        "subtract", science, template, "--kernel", second, "--output", tmp_path / "again.fits"
    )
    assert code == 0, messages
    for plane in ("IMAGE", "VARIANCE", "MASK"):
        images = [fits.getdata(path, plane) for path in (first, second, tmp_path / "again.fits")]
        np.testing.assert_array_equal(images[0], images[1])
        np.testing.assert_array_equal(images[1], images[2])
    noise = [fits.getdata(path, "TEMPLATE_NOISE") for path in (second, tmp_path / "again.fits")]
    np.testing.assert_array_equal(noise[0], noise[1])
    # A second correction would not be one.
    out = tmp_path / "twice.fits"
    code, _, messages = run("decorrelate", science, tmp_path / "a.fits", second, "--output", out)
    assert code == 1
    assert f"{second}: whitediff subtract decorrelated it" in messages
    assert not out.exists()


def test_whole_pixels_are_cut(run, tmp_path, rng):
    # As by subtract: nothing is interpolated, and no pixel at the edge is lost.
    shape = (200, 220)
    pixels = rng.normal(size=shape).astype(np.float32)
    for name, shift in (("science", (0.0, 0.0)), ("template", (3.0, -4.0))):
        exposure = Exposure.from_arrays(pixels, variance=1.0, header=sky_header(shape, shift=shift))
        write_exposure(exposure, tmp_path / f"{name}.fits")
    out = tmp_path / "out.fits"
    code, _, messages = run(
        "align", tmp_path / "template.fits", "--to", tmp_path / "science.fits", "--output", out
    )
    assert code == 0, messages
    aligned = read_exposure(out)
    np.testing.assert_array_equal(aligned.data[4:, :-3], pixels[:-4, 3:])
    assert np.isnan(aligned.data[:4]).all()
    assert np.isnan(aligned.data[:, -3:]).all()
    assert aligned.noise is None
    header = fits.getheader(out)
    assert "WDALIGN" not in header
    assert header["WDTFRAC"] == pytest.approx(196 * 217 / (200 * 220))


def test_what_is_wrong_is_one_sentence(run, tmp_path):
    rng = np.random.default_rng(4)
    shape = (200, 220)
    image = rng.normal(size=shape).astype(np.float32)
    for name, header in (
        ("science", sky_header(shape)),
        ("far", sky_header(shape, shift=(5000.0, 0))),
        ("coarse", sky_header(shape, scale=1.0)),
        ("none", None),
    ):
        exposure = Exposure.from_arrays(image, variance=1.0, header=header)
        write_exposure(exposure, tmp_path / f"{name}.fits")
    out = tmp_path / "out.fits"
    science = tmp_path / "science.fits"
    for template, to, message in (
        ("far", science, "does not overlap the science image"),
        ("coarse", science, "0.25 times as large on a side"),
        ("none", science, "has no sky coordinates (WCS)"),
        ("science", tmp_path / "none.fits", "none.fits: has no sky coordinates (WCS)"),
        ("science", tmp_path / "missing.fits", "no such file"),
    ):
        code, _, messages = run("align", tmp_path / f"{template}.fits", "--to", to, "--output", out)
        assert code == 1
        assert message in messages
        assert len(messages.strip().splitlines()) == 1
        assert not out.exists()
    code, _, messages = run(
        "subtract", science, science, "--align", "--ignore-wcs", "--output", out
    )
    assert code == 1
    assert "0 of its 0 stars match" in messages
    for arguments, message in (
        (("align", science, "--to", science, "--output", out, "--method", "nearest"), "'nearest'"),
        (
            ("subtract", science, science, "--align", "--kernel", science, "--output", out),
            "no effect with --kernel",
        ),
        (
            ("subtract", science, science, "--align-method", "adaptive", "--output", out),
            "no effect without --align",
        ),
    ):
        code, _, messages = run(*arguments)
        assert code == 2
        assert message in messages
        assert not out.exists()


def test_missing_noise_is_warned_of_where_the_convolution_leaves_nothing_else(caplog):
    # Averages of independent pixels over a Gaussian that is wide have no noise at most frequencies.
    lags = np.arange(-12, 13)
    profile = np.exp(-(lags**2) / (4 * 2.0**2))
    averaged = NoiseCovariance(np.outer(profile, profile), "averaged")
    for unconvolved, level in (("template", logging.WARNING), ("science", logging.INFO)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            report_noise_floor((("science", None), ("template", averaged)), unconvolved)
        (record,) = caplog.records
        assert record.levelno == level
        assert record.getMessage().startswith("template: ")
