"""The command line, as its users meet it.

Claims: help answers without the heavy imports; simulate, decorrelate and check work together
in every mode; whatever is wrong gets one sentence with file and value, exit code 1 (2 for wrong
usage), no traceback and no output; a run that is killed leaves nothing half-written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from scenes import gaussian
from whitediff import Exposure
from whitediff.evaluation.simulation import PsfModel, matching_kernel
from whitediff.exposures import kernels
from whitediff.exposures.boxes import Box
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.formats import read_exposure, write_exposure
from whitediff.matching.convolution import convolved_exposure
from whitediff.numerics import fourier
from whitediff.numerics.convolution import convolve
from whitediff.numerics.convolution import reflected as reflected_kernel


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """Directory with a small simulated pair."""
    directory = tmp_path_factory.mktemp("simulated")
    command = [sys.executable, "-m", "whitediff", "simulate", "--size", "384x300", "-q"]
    subprocess.run([*command, "--seed", "7", "--output", str(directory)], check=True)
    return directory


def pair_and_difference(rng, shape, kernel, sigma=3.0):
    """Images of noise by their names, and what the kernel makes of them."""
    images = {name: rng.normal(0, sigma, shape) for name in ("science", "template")}
    matched = convolve(images["template"], kernel)
    images["difference"] = images["science"] - matched
    return {name: image.astype(np.float32) for name, image in images.items()}


def triple(directory):
    return [directory / f"{name}.fits" for name in ("science", "template", "difference")]


def measured(run, path, tmp_path, *options):
    target = tmp_path / f"check{time.monotonic_ns()}.json"
    code, _, messages = run("check", path, "--json", target, "-q", *options)
    assert code == 0, messages
    return json.loads(target.read_text())


def test_importing_whitediff_is_light():
    code = """if True:
        import sys
        import whitediff.cli.main, whitediff.decorrelation, whitediff.evaluation.simulation
        import whitediff.noise.sources, whitediff.numerics.convolution, whitediff.numerics.stats
        heavy = [m for m in sys.modules if m.split(".")[0] in ("lsst", "matplotlib", "astropy")]
        assert not heavy, heavy
        assert "decorrelate" in dir(whitediff)
    """
    subprocess.run([sys.executable, "-c", code], check=True)
    code = """if True:
        import sys
        sys.argv = ["whitediff", "--help"]
        import whitediff.cli.main as m
        try:
            m.main()
        except SystemExit as stop:
            assert not stop.code
        assert not {"numpy", "lsst", "rich"} & set(sys.modules)
    """
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert b"decorrelate" in result.stdout


def test_every_command_has_help(run):
    for command in ("simulate", "decorrelate", "check", "demo"):
        code, text, _ = run(command, "--help")
        assert code == 0
        assert "Options:" in text
    assert run("--version")[1].startswith("whitediff, version")


def test_simulate_decorrelate_check(run, simulated, tmp_path):
    out = tmp_path / "out.fits"
    code, stdout, messages = run("decorrelate", *triple(simulated), "--output", out)
    assert (code, stdout) == (0, "")
    assert "kernel sum 1" in messages
    plot = tmp_path / "check.png"
    written = ["--plot", plot, "--json", tmp_path / "check.json"]
    code, table, messages = run("check", out, *written)
    assert code == 0
    # What the header names lies elsewhere, and is followed where the user allows that.
    assert "does not lie beside it; name it with --before" in messages
    assert json.loads((tmp_path / "check.json").read_text())["before"] is None
    code, table, _ = run("check", out, *written, "--overwrite", "--follow-paths")
    assert code == 0
    for heading in ("before", "after", "PSF-filtered variance ratio", "neighbour covariance"):
        assert heading in table
    assert plot.read_bytes().startswith(b"\x89PNG")
    values = json.loads((tmp_path / "check.json").read_text())
    before, after = values["before"], values["after"]
    error = after["filtered_variance_ratio_error"]
    assert after["filtered_variance_ratio"] == pytest.approx(1, abs=4 * error)
    assert before["filtered_variance_ratio"] > 1.1
    assert after["pixel_variance_ratio"] == pytest.approx(1, abs=0.02)
    assert before["pixel_variance_ratio"] < 0.85
    header = fits.getheader(out)
    assert header["WDTASK"] == "decorrelate"
    assert header["WDCONV"] == "template"
    assert header["WDSVAR"] == pytest.approx(900, rel=1e-3)
    assert header["WDTVAR"] == pytest.approx(300, rel=1e-3)
    assert {
        "BAD", "SAT", "NO_DATA", "EDGE", "CONTAMINATED", "SOURCE", "STATIC", "STATIC_BRIGHT",
    } <= {*fits.getheader(out, "MASK")["MSKN*"].values()}  # fmt: skip
    assert WCS(fits.getheader(out, "IMAGE")).has_celestial
    assert fits.getheader(out, "IMAGE")["SKYLEVEL"] > 0
    # With the science image and template named, the sources are found again.
    again = measured(run, out, tmp_path, "--science", triple(simulated)[0],
                     "--template", triple(simulated)[1])  # fmt: skip
    assert again["after"]["pixels"] == after["pixels"]


@pytest.mark.slow
def test_check_maps_the_frame(run, tmp_path, rng):
    """Excess variance, correlation and a masked cell, in their places in table, JSON, picture."""
    shape = (240, 330)
    image = rng.normal(0, 3, shape)
    image[160:, :110] *= 1.4  # top left of the picture
    smooth = convolve(rng.normal(size=shape), gaussian(9, 0.8))
    image[:80, 220:] = 3 * (smooth / smooth.std())[:80, 220:]
    image[80:160, 110:220] = np.nan
    exposure = Exposure.from_arrays(
        image.astype(np.float32), variance=9.0, psf=gaussian(15, 1.5), origin=(1000, -50)
    )
    before = Exposure.from_arrays(image[::-1].astype(np.float32), variance=9.0, origin=(1000, -50))
    write_exposure(exposure, tmp_path / "out.fits")
    write_exposure(before, tmp_path / "before.fits")
    code, table, messages = run(
        "check", tmp_path / "out.fits", "--before", tmp_path / "before.fits",
        "--plot", tmp_path / "map.png", "--json", tmp_path / "map.json",
    )  # fmt: skip
    assert code == 0, messages
    maps = json.loads((tmp_path / "map.json").read_text())["map"]
    after, old = maps["after"], maps["before"]
    assert after["y_edges"] == [1000, 1080, 1160, 1240]
    assert after["x_edges"] == [-50, 60, 170, 280]
    assert after["pixels"][1] == [8800, 0, 8800]
    assert after["filtered_variance_ratio"][1][1] is None
    assert after["pixel_variance_ratio"][2][0] == pytest.approx(1.96, rel=0.1)
    assert after["filtered_variance_ratio"][0][2] > 3
    assert old["filtered_variance_ratio"][2][2] > 3
    # Rows of the table: top to bottom, as in the picture.
    variance, filtered = re.findall(r"over the frame.*?(?=\n[^\n]*over the frame|\Z)", table, re.S)
    rows = {line.split()[0]: line for line in variance.splitlines() if ".." in line}
    assert list(rows) == ["y", "1160..1239", "1080..1159", "1000..1079"]
    assert "-50..59" in rows["y"]
    assert rows["1160..1239"].rstrip().count("*") == 1
    assert re.search(r"1160\.\.1239 +[01]\.\d{3} -> [12]\.\d{3}\*", variance)
    assert re.search(r"1080\.\.1159 +\S+ -> \S+ +- -> - ", variance)
    assert "more than 4 errors" in variance
    assert re.search(r"1000\.\.1079 .*-> [3-9]\.\d{3}\*", filtered)
    with_maps = (tmp_path / "map.png").read_bytes()
    assert with_maps.startswith(b"\x89PNG")
    picture = ["--plot", tmp_path / "map.png", "--overwrite"]
    values = measured(run, tmp_path / "out.fits", tmp_path, "--map", "none", *picture)
    assert values["map"] is None
    # The height of a PNG.
    assert (tmp_path / "map.png").read_bytes()[20:24] < with_maps[20:24]


def test_check_with_finer_maps(run, tmp_path, rng):
    image = rng.normal(0, 3, (90, 240)).astype(np.float32)
    write_exposure(Exposure.from_arrays(image, variance=9.0), tmp_path / "out.fits")
    values = measured(run, tmp_path / "out.fits", tmp_path, "--map", "2X6", "--sigma", 1)
    assert np.shape(values["map"]["after"]["pixels"]) == (2, 6)
    assert values["map"]["before"] is None
    code, table, messages = run("check", tmp_path / "out.fits", "--map", 7)
    assert code == 0
    assert "over the frame" not in table
    assert "7 x 7 cells is too large for a table; write it with --json" in messages
    plot = tmp_path / "fine.png"
    assert run("check", tmp_path / "out.fits", "--map", "3x24", "--plot", plot)[0] == 0
    code, _, messages = run("check", tmp_path / "out.fits", "--map", "10x5")
    assert code == 1
    assert "A map of 10 x 5 cells (rows x columns) does not fit an image of 90 x 240" in messages
    for wrong in ("0", "3x", "1x2x3", "many"):
        code, _, messages = run("check", tmp_path / "out.fits", "--map", wrong)
        assert code == 2
        assert f"'{wrong}' is not N, ROWSxCOLUMNS or none" in messages
    # The default gives way on small images.
    write_exposure(Exposure.from_arrays(image[:25], variance=9.0), tmp_path / "small.fits")
    values = measured(run, tmp_path / "small.fits", tmp_path)
    assert np.shape(values["map"]["after"]["pixels"]) == (2, 3)


def test_check_filters_each_cell_with_the_psf_of_its_place(run, tmp_path, rng):
    """Noise that is white to a narrow PSF less than to a wide one: the PSF widens with x."""
    smooth = convolve(rng.normal(size=(220, 440)), gaussian(9, 1.0))[10:-10, 10:-10]
    narrow, wide = gaussian(25, 1.0), gaussian(25, 3.0)
    exposure = Exposure.from_arrays(
        smooth.astype(np.float32), variance=1 / (4 * np.pi), origin=(0, 500)
    )
    coefficients = np.array([[1 + 600 / 210, -1 / 210, 0.0], [-600 / 210, 1 / 210, 0.0]])
    kernel = kernels.polynomial_kernel(np.stack([narrow, wide]), coefficients, exposure.bbox)
    exposure.psf = KernelPointSpreadFunction(kernel)
    write_exposure(exposure, tmp_path / "out.fits")
    values = measured(run, tmp_path / "out.fits", tmp_path, "--map", "1x2")["map"]["after"]
    for column, x in enumerate((604.5, 814.5)):
        psf = kernel.at(x=x, y=99.5)
        # Variances by the autocorrelation of white noise smoothed and filtered.
        smoothing = np.pad(gaussian(9, 1.0), 30)
        expected = (convolve(smoothing, psf) ** 2).sum() / ((smoothing**2).sum() * (psf**2).sum())
        assert values["filtered_variance_ratio"][0][column] == pytest.approx(expected, rel=0.15)


@pytest.mark.slow
def test_options_reach_the_task(run, simulated, tmp_path):
    paths = triple(simulated)
    base = tmp_path / "base.fits"
    assert run("decorrelate", *paths, "--output", base, "-q")[0] == 0
    options = {
        "full": ["--full-variance"],
        "documented": ["--transform", "documented"],
        "mean": ["--constant", "--fill", "mean"],
        "given": ["--science-variance", 800, "--template-variance", 350],
        "position": ["--x-center", 100, "--y-center", 20],
        "planes": ["--ignore-mask-planes", "BAD,SATURATED"],
        "kernel": [],
        "compressed": ["--compress"],
    }
    outputs = {}
    for name, extra in options.items():
        outputs[name] = tmp_path / f"{name}.fits"
        arguments = [*paths, simulated / "kernel.fits"] if name == "kernel" else paths
        code, _, messages = run("decorrelate", *arguments, "--output", outputs[name], "-q", *extra)
        assert code == 0, messages
    reference = read_exposure(base)
    inner = (slice(60, -60),) * 2
    full = read_exposure(outputs["full"]).variance
    assert np.nanmedian(full[inner] / reference.variance[inner]) == pytest.approx(1, rel=0.02)
    assert not np.array_equal(full, reference.variance)
    header = fits.getheader(outputs["given"])
    assert (header["WDSVAR"], header["WDTVAR"]) == (800, 350)
    header = fits.getheader(outputs["position"])
    assert (header["WDXCEN"], header["WDYCEN"]) == (100, 20)
    assert fits.getheader(outputs["planes"])["WDIGNORE"] == "BAD,SATURATED"
    for name in ("kernel", "compressed", "position"):
        exposure = read_exposure(outputs[name])
        np.testing.assert_array_equal(exposure.data, reference.data)
        np.testing.assert_array_equal(exposure.mask.bits, reference.mask.bits)
    documented = read_exposure(outputs["documented"]).data
    finite = np.isfinite(documented)
    fast = read_exposure(outputs["mean"]).data
    assert np.abs(documented - fast)[finite].max() < 1e-3 * 30
    assert outputs["compressed"].stat().st_size < 0.9 * base.stat().st_size


def test_the_science_image_may_be_the_convolved_one(run, tmp_path):
    directory = tmp_path / "sharp"
    code, _, messages = run(
        "simulate", "--output", directory, "--size", 300, "--science-psf", 2.0,
        "--template-psf", 3.0, "--flux-scale", 1.3, "--template-variance", 400, "--bad-columns", 0,
    )  # fmt: skip
    assert code == 0, messages
    assert "wrote science.fits" in messages
    out = tmp_path / "out.fits"
    code, _, messages = run("decorrelate", *triple(directory), "--output", out)
    assert code == 0, messages
    header = fits.getheader(out)
    assert header["WDCONV"] == "science"
    assert header["WDKSUM"] == pytest.approx(1 / 1.3)
    values = measured(run, out, tmp_path)
    assert values["after"]["variance_plane"] == pytest.approx(900 + 400 * 1.69, rel=0.01)
    assert values["after"]["pixel_variance_ratio"] == pytest.approx(1, abs=0.03)
    error = values["after"]["filtered_variance_ratio_error"]
    assert values["after"]["filtered_variance_ratio"] == pytest.approx(1, abs=4 * error)


def test_score_mode(run, tmp_path, rng):
    """A score image made by hand: science correlated with its PSF minus the matched template."""
    shape, svar, tvar = (400, 420), 25.0, 16.0
    # Elliptical and off-centre: a flip would show.
    model = PsfModel(sigma=2.0, frame=shape, ellipticity=(0.1, 0.05), offset=(0.4, -0.3))
    science_psf, template_psf = model.stamp(0, 0, size=31), gaussian(31, 2.4)
    science_psf /= science_psf.sum()
    reflected = reflected_kernel(science_psf)
    target = convolve(np.pad(science_psf, 32), reflected)
    kernel = matching_kernel(target, np.pad(template_psf, 32), size=35, kernel_sum=1.0)
    truth = np.zeros(shape)
    for y, x in rng.integers(50, 350, (25, 2)):
        truth[y, x] += 20000
    transients = rng.integers(60, 340, (10, 2))
    new = truth.copy()
    for y, x in transients:
        new[y, x] += 1500
    images = {
        "science": convolve(new, science_psf) + rng.normal(0, np.sqrt(svar), shape),
        "template": convolve(truth, template_psf) + rng.normal(0, np.sqrt(tvar), shape),
    }
    score = convolve(images["science"], reflected) - convolve(images["template"], kernel)
    for name, psf, variance in (
        ("science", science_psf, svar),
        ("template", template_psf, tvar),
        ("difference", science_psf, 1.0),
    ):
        image = images.get(name, score).astype(np.float32)
        write_exposure(
            Exposure.from_arrays(image, variance=variance, psf=psf), tmp_path / f"{name}.fits"
        )
    fits.writeto(tmp_path / "kernel.fits", kernel)
    fits.writeto(tmp_path / "psf.fits", science_psf)
    paths = [*triple(tmp_path), tmp_path / "kernel.fits"]
    outputs = []
    for extra in ([], ["--preconvolution-kernel", tmp_path / "psf.fits"]):
        out = tmp_path / f"out{len(outputs)}.fits"
        code, _, messages = run("decorrelate", *paths, "--output", out, "--score", "-q", *extra)
        assert code == 0, messages
        outputs.append(read_exposure(out))
    np.testing.assert_allclose(outputs[0].data, outputs[1].data, atol=1e-4)
    result = outputs[0]
    significance = result.data / np.sqrt(result.variance)
    free = ~(result.mask.get("SOURCE") | result.mask.get("CONTAMINATED"))
    assert significance[free].std() == pytest.approx(1, abs=0.03)
    # The matched-filter optimum, from the spectra themselves.
    grid = fourier.fast_shape(shape, (64, 64))
    p, k = (
        fourier.forward(fourier.pad_center_origin(stamp, grid), grid)
        for stamp in (science_psf, kernel)
    )
    power = np.abs(p) ** 2 / (svar + tvar * np.abs(k) ** 2 / np.maximum(np.abs(p) ** 2, 1e-20))
    optimum = 1500 * np.sqrt(fourier.mean_square_modulus(np.sqrt(power), grid))
    reached = np.mean([significance[y, x] for y, x in transients])
    assert reached == pytest.approx(optimum, abs=4 / np.sqrt(len(transients)))
    assert fits.getheader(tmp_path / "out0.fits")["WDSCORE"] is True


def test_a_difference_without_wcs_or_psf_takes_them_from_its_inputs(run, simulated, tmp_path):
    image = fits.getdata(simulated / "difference.fits", "IMAGE")
    fits.writeto(tmp_path / "bare.fits", image)
    out = tmp_path / "out.fits"
    paths = [*triple(simulated)[:2], tmp_path / "bare.fits", simulated / "kernel.fits"]
    code, _, messages = run("decorrelate", *paths, "--output", out)
    assert code == 0
    assert "has no PSF; that of" in messages
    assert "has no WCS; that of" in messages
    exposure = read_exposure(out)
    assert exposure.psf is not None
    assert exposure.wcs is not None
    assert exposure.header["CTYPE1"] == "RA---TAN"


def test_a_difference_without_a_mask_takes_those_of_its_inputs(run, tmp_path, rng):
    shape = (120, 110)
    places = {"science": (60, 65), "template": (32, 42)}
    for name, image in pair_and_difference(rng, shape, gaussian(15, 1.5)).items():
        hdus = [fits.PrimaryHDU(image)]
        if (place := places.get(name)) is not None:
            bits = np.zeros(shape, dtype=np.int16)
            bits[place] = 4
            hdus += [fits.ImageHDU(bits, name="DQ"), fits.ImageHDU(np.ones(shape), name="VAR")]
        fits.HDUList(hdus).writeto(tmp_path / f"{name}.fits")
    fits.writeto(tmp_path / "kernel.fits", gaussian(15, 1.5))
    out = tmp_path / "out.fits"
    code, _, messages = run(
        "decorrelate", *triple(tmp_path), tmp_path / "kernel.fits", "--output", out
    )
    assert code == 0, messages
    assert "has no mask; those of" in messages
    mask = read_exposure(out).mask
    for y, x in ((60, 65), (32, 42)):
        assert mask.get("BIT2")[y, x]
        assert mask.get("CONTAMINATED")[y, x]
        assert not mask.get("CONTAMINATED")[y + 12, x]


def test_a_given_variance_replaces_an_unusable_plane(run, tmp_path, rng):
    shape, kernel = (100, 110), 1.3 * gaussian(15, 1.5)
    images = pair_and_difference(rng, shape, kernel)
    for plane in (np.nan, -9.0, 0.0):
        for name, variance in (("science", 9.0), ("template", plane), ("difference", 1.0)):
            write_exposure(
                Exposure.from_arrays(images[name], variance=variance),
                tmp_path / f"{name}.fits",
                overwrite=True,
            )
        fits.writeto(tmp_path / "kernel.fits", kernel, overwrite=True)
        out = tmp_path / "out.fits"
        code, _, messages = run(
            "decorrelate", *triple(tmp_path), tmp_path / "kernel.fits", "--output", out,
            "--template-variance", 4, "--overwrite",
        )  # fmt: skip
        assert code == 0, messages
        assert "its variance plane is unusable" in messages
        np.testing.assert_allclose(read_exposure(out).variance, 9 + 4 * 1.69, rtol=1e-5)


def test_sentinels_are_missing_pixels(run, tmp_path, rng):
    shape = (150, 131)
    image = rng.normal(0, 3, shape)
    image[70, 65] = -1e30
    for name, pixels in (("science", image * 0), ("template", image * 0), ("difference", image)):
        exposure = Exposure.from_arrays(pixels.astype(np.float32), variance=9.0)
        write_exposure(exposure, tmp_path / f"{name}.fits")
    fits.writeto(tmp_path / "kernel.fits", gaussian(15, 1.5))
    out = tmp_path / "out.fits"
    code, _, messages = run(
        "decorrelate", *triple(tmp_path), tmp_path / "kernel.fits", "--output", out
    )
    assert code == 0, messages
    assert "difference.fits: the difference has 1 pixels beyond 1e11 sigma" in messages
    result = read_exposure(out)
    assert result.data[70, 65] == np.float32(-1e30)
    assert result.mask.get("CONTAMINATED")[70, 65]
    assert np.argwhere(result.mask.get("NO_DATA")).tolist() == [[70, 65]]
    assert np.delete(result.data.ravel(), 70 * 131 + 65).std() < 6


def test_brackets_and_dollars_in_names(run, simulated, tmp_path):
    path = tmp_path / "a$x_{1$[b].fits"
    path.write_bytes(triple(simulated)[2].read_bytes())
    code, table, messages = run("check", path, "--plot", tmp_path / "o.png", "--sigma", 2)
    assert code == 0, messages
    assert "$[b].fits" in table.replace("\n", "")
    assert run("check", path, "--sigma", 1e6)[0] == 1


def test_names_that_are_not_ascii(run, simulated, tmp_path):
    directory = tmp_path / "Nächte 100%"
    directory.mkdir()
    for path in triple(simulated):
        (directory / path.name).write_bytes(path.read_bytes())
    out = directory / "weiß.fits"
    code, _, messages = run("decorrelate", *triple(directory), "--output", out, "-q")
    assert code == 0, messages
    assert measured(run, out, tmp_path)["before"] is not None


def test_no_planes_to_ignore(run, simulated, tmp_path):
    out = tmp_path / "out.fits"
    arguments = [*triple(simulated), "--output", out, "--ignore-mask-planes", "", "-q"]
    assert run("decorrelate", *arguments)[0] == 0
    assert fits.getheader(out)["WDIGNORE"] == ""


def test_a_difference_decorrelated_before_is_refused(run, simulated, tmp_path):
    out, twice = tmp_path / "out.fits", tmp_path / "twice.fits"
    assert run("decorrelate", *triple(simulated), "--output", out, "-q")[0] == 0
    code, _, messages = run("decorrelate", *triple(simulated)[:2], out, "--output", twice)
    assert code == 1
    assert f"{out}: whitediff decorrelate decorrelated it" in messages
    assert not twice.exists()
    # Whatever it is read by and written with, it says so.
    exposure = read_exposure(out)
    assert exposure.decorrelated_by == "decorrelate"
    again = tmp_path / "again.fits"
    write_exposure(exposure, again)
    assert read_exposure(again).decorrelated_by == "decorrelate"
    code, _, messages = run("decorrelate", *triple(simulated)[:2], again, "--output", twice)
    assert code == 1
    assert f"{again}: whitediff decorrelate decorrelated it" in messages
    assert read_exposure(triple(simulated)[2]).decorrelated_by is None


def test_non_zero_origins_are_kept(run, simulated, tmp_path, rng):
    kernel = gaussian(11, 1.5)
    science, template = (
        Exposure.from_arrays(
            rng.normal(0, 3, (80, 90)).astype(np.float32), variance=9.0, origin=(-20, 1500)
        )
        for _ in range(2)
    )
    basis = np.stack([kernel, np.roll(kernel, 1, axis=1)])
    coefficients = np.array([[1.0, 0.0, 0.0], [-15.3, 0.01, 0.005]])
    varying = kernels.polynomial_kernel(basis, coefficients, science.bbox)
    matched = convolved_exposure(template, varying, full_variance=False)
    difference = Exposure.from_arrays(science.data - matched.data, variance=9.0, origin=(-20, 1500))
    difference.kernel = varying
    exposures = {"science": science, "template": template, "difference": difference}
    for name, exposure in exposures.items():
        write_exposure(exposure, tmp_path / f"{name}.fits")
    out = tmp_path / "out.fits"
    code, _, messages = run(
        "decorrelate", *triple(tmp_path), "--output", out, "--x-center", 1560, "--y-center", -10
    )
    assert code == 0, messages
    exposure = read_exposure(out)
    assert exposure.origin == (-20, 1500)
    expected = 1 - 15.3 + 0.01 * 1560 + 0.005 * -10
    assert fits.getheader(out)["WDKSUM"] == pytest.approx(expected, rel=1e-9)
    code, _, messages = run(
        "decorrelate", *triple(tmp_path), "--output", tmp_path / "no.fits", "--x-center", 60
    )
    assert code == 1
    assert "--x-center 60 is outside the image, whose pixels run from 1500 to 1589" in messages


def test_errors_name_options_of_the_command_line(run, tmp_path, rng):
    for name, image in pair_and_difference(rng, (80, 90), gaussian(11, 1.5)).items():
        exposure = Exposure.from_arrays(image, variance=9.0)
        if name == "difference":
            half = Box.from_shape((80, 60))
            exposure.kernel = kernels.chebyshev_kernel(
                gaussian(11, 1.5)[None], np.array([[[1, 0.01]]]), half
            )
        write_exposure(exposure, tmp_path / f"{name}.fits")
    command = ["decorrelate", *triple(tmp_path), "--output", tmp_path / "out.fits"]
    code, _, messages = run(*command)
    assert code == 1
    assert "take it at one place (--constant)" in messages
    assert "spatially_varying" not in messages
    code, _, messages = run(*command, "--constant")
    assert code == 0, messages
    both = ["--transform", "documented", "--fill", "interpolate"]
    code, _, messages = run(*command, "--overwrite", *both)
    assert code == 1
    assert "got --fill interpolate" in messages
    assert "spatially_varying" not in messages


def bad_inputs(directory, simulated):
    """Name → arguments of decorrelate, and what its sentence must hold."""
    science, template, difference = triple(simulated)
    kernel = simulated / "kernel.fits"
    image = fits.getdata(science, "IMAGE")
    shape = image.shape

    def exposure(name, pixels=None, *, variance=900.0, mask=None):
        path = directory / name
        pixels = np.nan_to_num(image) if pixels is None else pixels
        write_exposure(
            Exposure.from_arrays(pixels.astype(np.float32), variance=variance, mask=mask), path
        )
        return path

    def carrying(name, kernel_image):
        carrier = Exposure.from_arrays(np.nan_to_num(image), variance=900.0)
        carrier.kernel = kernels.constant_kernel(kernel_image, carrier.bbox)
        write_exposure(carrier, directory / name)
        return directory / name

    def table_file():
        column = fits.Column("a", "E", array=[1.0])
        table = fits.BinTableHDU.from_columns([column], name="KERNEL")
        fits.HDUList([fits.PrimaryHDU(), table]).writeto(directory / "table.fits")
        return directory / "table.fits"

    def plain(name, data):
        fits.writeto(directory / name, data)
        return directory / name

    truncated = directory / "truncated.fits"
    truncated.write_bytes(science.read_bytes()[:100_000])
    text = directory / "text.fits"
    text.write_text("not a FITS file")
    everything = np.ones(shape, dtype=bool)
    return {
        "shapes differ": (
            [science, exposure("small.fits", np.ones((300, 300))), difference],
            ["small.fits", "300 x 300", "300 x 384"],
        ),
        "not 2-D": ([science, plain("cube.fits", np.ones((3, 4, 5))), difference],
                    ["cube.fits", "3 dimensions"]),
        "missing extension": ([f"{science}[N7]", template, difference],
                              ["science.fits", "no extension 'N7'"]),
        "missing file": ([science, directory / "none.fits", difference],
                         ["none.fits", "no such file"]),
        "truncated": ([truncated, template, difference], ["truncated.fits", "truncated"]),
        "not FITS": ([science, text, difference], ["text.fits", "FITS"]),
        "unknown plane": ([science, template, difference, "--ignore-mask-planes", "BAD,NOPE"],
                          ["'NOPE'", "science.fits", "BAD"]),
        "all masked": ([science, exposure("masked.fits", mask={"BAD": everything}), difference],
                       ["masked.fits", "no usable pixel"]),
        "all of the difference masked": (
            [science, template, exposure("dm.fits", mask={"BAD": everything}), kernel],
            ["dm.fits", "no usable pixel"],
        ),
        "all masked, variance given": (
            [science, exposure("m2.fits", mask={"BAD": everything}), difference,
             "--template-variance", 300],
            ["m2.fits", "no usable pixel"],
        ),
        "bad kernel inside": (
            [science, template, carrying("inside.fits", np.zeros((5, 5)))],
            ["inside.fits", "sums to 0"],
        ),
        "kernel in a table": ([science, template, difference, table_file()], ["is a table"]),
        "large pre-convolution kernel": (
            [science, template, difference, "--score", "--preconvolution-kernel",
             plain("pc.fits", np.ones((5, 901)))],
            ["pc.fits", "(5, 901)", "larger than the image"],
        ),
        "all NaN": ([science, exposure("nan.fits", np.full(shape, np.nan)), difference],
                    ["nan.fits", "no finite pixel"]),
        "negative variance": ([exposure("minus.fits", variance=-4.0), template, difference],
                              ["minus.fits", "must be positive; got -4"]),
        "zero variance": ([exposure("zero.fits", variance=0.0), template, difference],
                          ["zero.fits", "must be positive; got 0"]),
        "given variance": ([science, template, difference, "--science-variance", -1],
                           ["--science-variance", "-1"]),
        "zero kernel": ([science, template, difference, plain("k0.fits", np.zeros((5, 5)))],
                        ["k0.fits", "sums to 0"]),
        "NaN kernel": ([science, template, difference, plain("kn.fits", np.full((5, 5), np.nan))],
                       ["kn.fits", "not finite"]),
        "large kernel": ([science, template, difference, plain("kl.fits", np.ones((5, 900)))],
                         ["kl.fits", "(5, 900)", "larger than the image"]),
        "no kernel": ([science, template, plain("bare.fits", np.nan_to_num(image))],
                      ["bare.fits", "carries no kernel"]),
        "preconvolution without score": (
            [science, template, difference, "--preconvolution-kernel", kernel],
            ["kernel.fits", "score"],
        ),
        "score with science convolved": (
            [science, template, difference, "--score", "--convolved", "science"], ["score"]),
        "score without PSF": ([exposure("nopsf.fits"), template, difference, "--score"],
                              ["nopsf.fits", "no PSF"]),
        "constant image": ([plain("flat.fits", np.ones(shape)), template, difference],
                           ["flat.fits", "scatter"]),
        "wrong gain": ([plain("raw.fits", np.nan_to_num(image)), template, difference,
                        "--science-gain", -2], ["raw.fits", "gain", "-2"]),
        "directory": ([directory, template, difference], ["is a directory"]),
    }  # fmt: skip


def test_bad_input_gets_one_sentence_and_no_output(run, simulated, tmp_path):
    cases = bad_inputs(tmp_path, simulated)
    out = tmp_path / "out.fits"
    for name, (arguments, expected) in cases.items():
        code, stdout, messages = run("decorrelate", *arguments, "--output", out, "-q")
        assert code == 1, name
        assert stdout == "", name
        assert "Traceback" not in messages, name
        assert "Unexpected" not in messages, (name, messages)
        verbose = run("decorrelate", *arguments, "--output", out, "-v")
        assert verbose[0] == 1, name
        assert "Traceback" not in verbose[2], name
        sentences = [line for line in messages.splitlines() if line.strip()]
        assert len(sentences) == 1, (name, messages)
        for text in expected:
            assert text in messages, (name, messages)
        assert not out.exists(), name
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_outputs_are_not_overwritten(run, simulated, tmp_path):
    out = tmp_path / "out.fits"
    out.write_text("precious")
    code, _, messages = run("decorrelate", *triple(simulated), "--output", out)
    assert code == 1
    assert "out.fits: exists already" in messages
    assert out.read_text() == "precious"
    assert run("decorrelate", *triple(simulated), "--output", out, "--overwrite", "-q")[0] == 0
    code, _, messages = run("check", out, "--json", out)
    assert code == 1
    code, _, messages = run("simulate", "--output", simulated)
    assert code == 1
    assert "science.fits: exists already" in messages
    code, _, messages = run(
        "decorrelate", *triple(simulated), "--output", tmp_path / "no" / "o.fits"
    )
    assert code == 1
    assert "directory does not exist" in messages


def test_inputs_are_not_overwritten(run, simulated, tmp_path):
    science, template = tmp_path / "science.fits", tmp_path / "template.fits"
    for path in (science, template):
        shutil.copy(simulated / path.name, path)
    difference = simulated / "difference.fits"
    before = {path: path.read_bytes() for path in (science, template)}
    for arguments in (
        ("subtract", science, template, "--output", template),
        ("subtract", f"{science}[0]", template, "--output", tmp_path / "." / "science.fits"),
        ("align", template, "--to", science, "--output", template),
        ("decorrelate", science, template, difference, "--output", science),
        ("convert", science, "--output", science),
        ("inject", science, "--random", 3, "--signal-to-noise", 5, 9, "--output", science),
    ):
        code, _, messages = run(*arguments, "--overwrite")
        assert code == 1
        assert "is read as well; choose another name" in messages
        assert {path: path.read_bytes() for path in before} == before


def test_wrong_usage_exits_with_2(run, simulated, tmp_path):
    out = ["--output", tmp_path / "o.fits"]
    for arguments in (
        ["decorrelate"],
        ["decorrelate", *triple(simulated)],
        ["decorrelate", *triple(simulated), *out, "--convolved", "both"],
        ["decorrelate", *triple(simulated), *out, "--x-center", "middle"],
        ["decorrelate", *triple(simulated), *out, "-v", "-q"],
        ["subtract", *triple(simulated)[:2], *out, "--kernel-size", 20],
        ["subtract", *triple(simulated)[:2], *out, "--kernel-size", 1],
        ["subtract", *triple(simulated)[:2], *out, "--kernel-order", -1],
        ["subtract", *triple(simulated)[:2], *out, "--kernel-order", "linear"],
        ["subtract", *triple(simulated)[:2], *out, "--background-order", -1],
        ["simulate", "--output", tmp_path / "s", "--size", "big"],
        ["frobnicate"],
    ):
        code, _, messages = run(*arguments)
        assert code == 2, arguments
        assert "Usage" in messages
        assert "Traceback" not in messages
    code, _, messages = run("simulate", "--output", tmp_path / "s", "--gain", 0)
    assert code == 1
    assert "gain must be positive" in messages


def test_check_says_what_it_cannot_do(run, simulated, tmp_path):
    bare = tmp_path / "bare.fits"
    fits.writeto(bare, np.random.default_rng(1).normal(0, 3, (200, 210)))
    code, table, messages = run("check", bare)
    assert code == 0
    assert "no mask plane SOURCE" in messages
    assert "Gaussian of sigma 1.8" in messages
    assert re.search(r"variance of D/sqrt\(V\) +(1\.0|0\.9)", table)
    code, _, messages = run("check", bare, "--science", simulated / "science.fits")
    assert code == 1
    assert "science.fits: has the shape (300, 384)" in messages
    code, _, messages = run("check", bare, "--sigma", -1)
    assert code == 1
    assert "positive; got -1" in messages
    everything = Exposure.from_arrays(
        np.zeros((99, 99)), variance=1.0, mask={"BAD": np.ones((99, 99), dtype=bool)}
    )
    write_exposure(everything, tmp_path / "masked.fits")
    code, _, messages = run("check", tmp_path / "masked.fits", "--sigma", 2)
    assert code == 1
    assert "masked.fits: Only 0 of 9801 pixels" in messages


def test_unexpected_errors_show_no_traceback(run, simulated, tmp_path, monkeypatch):
    def explode(*args, **kwargs):
        raise RuntimeError("the sky fell\ndown")

    monkeypatch.setattr("whitediff.runs.decorrelate.decorrelate", explode)
    code, _, messages = run("decorrelate", *triple(simulated), "--output", tmp_path / "o.fits")
    assert code == 1
    assert "Unexpected RuntimeError: the sky fell down." in messages
    assert "Traceback" not in messages


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_killed_run_leaves_nothing(simulated, tmp_path, number):
    code = """if True:
        import sys, time
        sys.argv = ["whitediff", *sys.argv[1:]]
        import astropy.io.fits
        def slow(hdus, path, **options):
            print("writing", flush=True)
            time.sleep(60)
        astropy.io.fits.HDUList.writeto = slow
        from whitediff.cli.main import main
        main()
    """
    out = tmp_path / "out.fits"
    command = [sys.executable, "-c", code, "decorrelate", *map(str, triple(simulated))]
    process = subprocess.Popen(
        [*command, "--output", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert b"writing" in process.stdout.readline()
    process.send_signal(number)
    _, messages = process.communicate(timeout=30)
    assert process.returncode == 1
    assert b"interrupted" in messages
    assert b"Traceback" not in messages
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_demo(run, tmp_path):
    demo = tmp_path / "demo"
    code, table, messages = run("demo", "--output", demo)
    assert code == 0, messages
    assert "PSF-filtered variance ratio" in table
    assert "correlated by design" in table
    assert "whiteness.png" in messages
    values = json.loads((demo / "whiteness.json").read_text())
    assert values["kind"] == "difference"
    assert abs(values["after"]["filtered_variance_ratio"] - 1) < 0.05
    assert values["before"]["filtered_variance_ratio"] > 1.15
    assert np.abs(np.subtract(values["map"]["after"]["filtered_variance_ratio"], 1)).max() < 0.2
    score = json.loads((demo / "score.json").read_text())
    assert "filtered_variance_ratio" not in score["map"]["after"]
    np.testing.assert_allclose(score["map"]["after"]["pixel_variance_ratio"], 1, atol=0.2)
    assert (score["kind"], score["filter"], score["before"]) == ("score", None, None)
    noise = score["after"]
    assert noise["pixel_variance_ratio_error"] > 5 / np.sqrt(noise["pixels"])
    assert abs(noise["pixel_variance_ratio"] - 1) < 4 * noise["pixel_variance_ratio_error"]
    assert abs(noise["significance_mean"]) < 4 * noise["significance_mean_error"]
    code, table, messages = run("check", demo / "score.fits", "--plot", tmp_path / "score.png")
    assert code == 0, messages
    assert "filtered" not in table
    assert "variance of S/sqrt(V)" in table
    code, _, messages = run("check", demo / "score.fits", "--sigma", 2)
    assert code == 1
    assert "leave out --sigma" in messages
    assert run("demo", "--output", demo)[0] == 1


@pytest.fixture
def band_limited(tmp_path):
    """Noise without high frequencies in the template, its difference, and the matching kernel."""
    rng, kernel = np.random.default_rng(5), gaussian(15, 1.5)
    axis = np.array([-1, 9, 9, -1]) / 16  # bicubic interpolation, half a pixel
    science, template = rng.normal(0, 30, (2, 220, 220))
    template = convolve(template, np.outer(axis, axis) / (axis**2).sum())
    images = {"science": science, "template": template}
    images["difference"] = science - convolve(template, kernel)
    for name, image in images.items():
        write_exposure(Exposure.from_arrays(image, variance=900.0), tmp_path / f"{name}.fits")
    fits.writeto(tmp_path / "kernel.fits", kernel)
    return [*triple(tmp_path), tmp_path / "kernel.fits"]


def test_a_floored_noise_spectrum_is_reported(run, band_limited, tmp_path):
    code, _, messages = run("decorrelate", *band_limited, "--output", tmp_path / "out.fits")
    assert code == 0, messages
    assert re.search(r"template.fits: at \d+% of the frequencies its noise has less", messages)
    assert "science.fits: at" not in messages
    header = fits.getheader(tmp_path / "out.fits")
    assert 0.1 < header["WDTNFLR"] < 0.5
    assert "WDSNFLR" not in header
