"""Detection scores, and making products again.

Claims: in source-free pixels S/√V has unit variance; at injected sources its mean reaches the
matched-filter optimum, also where the science image is the sharper one; the flux plane is unbiased
and its variance right; the score's PSF is what sources look like on it; difference, score and
matched template come out the same, bit for bit, when made again from a stored solution.
"""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from scipy.ndimage import map_coordinates, maximum_filter

from scenes import command, place
from whitediff.exposures.masks import flagged
from whitediff.formats import read_exposure

SOLUTION = ("KERNEL", "BACKGROUND", "INPUT_PSF", "PRECONVOLUTION", "RECIPE")
KINDS = {
    "gaussian": [],
    # The science image is the sharper by √2: matched directly, it would have to be convolved.
    "sharper": ["--science-psf", 2.1, "--template-psf", 2.9, "--flux-scale", 1.2],
    "moffat": ["--profile", "moffat", "--ellipticity", 0.1, -0.07, "--offset", 0.3, -0.2,
               "--flux-scale", 1.3],
}  # fmt: skip


@pytest.fixture(
    scope="module",
    params=["gaussian", *(pytest.param(kind, marks=pytest.mark.slow) for kind in [*KINDS][1:])],
)
def made(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    code, _, messages = command(
        "simulate", "--output", directory, "--size", 1400, "--seed", 5, "--stars", 450,
        "--galaxies", 20, "--transients", 250, *KINDS[request.param],
    )  # fmt: skip
    assert code == 0, messages
    code, _, messages = command(
        "subtract", directory / "science.fits", directory / "template.fits", "--output",
        directory / "d.fits", "--score-output", directory / "s.fits", "--matched-output",
        directory / "m.fits",
    )  # fmt: skip
    assert code == 0, messages
    return request.param, directory


def lonely_transients(directory, bad):
    truth = Table.read(directory / "truth.ecsv", format="ascii.ecsv")
    transients = truth[truth["kind"] == "transient"]
    x, y = np.array(transients["x"]), np.array(transients["y"])
    distance = np.hypot(x[:, None] - x, y[:, None] - y) + 1e9 * np.eye(len(x))
    for row, nearest in zip(transients, distance.min(axis=1), strict=True):
        i, j = round(row["x"]), round(row["y"])
        inside = 30 <= i < bad.shape[1] - 30 and 30 <= j < bad.shape[0] - 30
        if inside and nearest > 25 and not bad[j - 6 : j + 7, i - 6 : i + 7].any():
            yield row["x"], row["y"], row["science_flux"]


def value_at(plane, x, y):
    i, j = round(x), round(y)
    part = plane[j - 6 : j + 7, i - 6 : i + 7].astype(float)
    return map_coordinates(part, [[y - j + 6], [x - i + 6]], order=5)[0]


@pytest.mark.slow
def test_score_is_the_optimal_statistic(made):
    kind, directory = made
    score = read_exposure(directory / "s.fits")
    header = fits.getheader(directory / "s.fits")
    assert header["WDSCORE"] is True
    assert header["WDCONV"] == "template"
    planes = ("CONTAMINATED", "SAT", "EDGE", "BAD", "NO_DATA")
    bad = np.logical_or.reduce([score.mask.get(name) for name in planes])
    assert bad.mean() < 0.25
    image, variance = score.data, score.variance
    # Wings of bright stars reach beyond the pixels that are found to be theirs.
    free = ~bad & ~maximum_filter(score.mask.get("SOURCE"), 15)
    noise = image[free] / np.sqrt(variance[free])
    # Independent pixels: one in the area of the squared autocorrelation of the PSF.
    science_psf = read_exposure(directory / "science.fits").psf.at(x=700, y=700)
    area = 1 / np.sum(science_psf**2)
    error = np.sqrt(2 * area / noise.size)
    assert np.var(noise, dtype=float) == pytest.approx(1, abs=4 * error + 0.02)

    # The optimum, from the true PSFs: F·√mean(|P̂|²/(ŝ + t̂·|κ̂|²/|p̂|²)), κ̂/p̂ = c·P̂/T̂.
    template_psf = read_exposure(directory / "template.fits").psf.at(x=700, y=700)
    psfs = (science_psf, template_psf)
    p_ft, t_ft = (np.abs(np.fft.fft2(place(psf, (256, 256)))) for psf in psfs)
    scale = {"gaussian": 1.0, "sharper": 1.2, "moffat": 1.3}[kind]
    ratio = scale * p_ft / np.maximum(t_ft, 1e-9)
    optimum = np.sqrt(np.mean(p_ft**2 / (header["WDSVAR"] + header["WDTVAR"] * ratio**2)))
    typical = np.median(variance[free])
    fluxes, errors, scores, true = [], [], [], []
    with fits.open(directory / "s.fits") as hdus:
        flux_plane, flux_variance = hdus["FLUX"].data, hdus["FLUX_VARIANCE"].data
        for x, y, flux in lonely_transients(directory, bad):
            scores.append(value_at(image, x, y) / np.sqrt(typical))
            fluxes.append(value_at(flux_plane, x, y))
            errors.append(np.sqrt(value_at(flux_variance, x, y)))
            true.append(flux)
    scores, fluxes, errors, true = map(np.array, (scores, fluxes, errors, true))
    assert len(true) > 60
    # Each S/√V scatters by one; photons of the sources add a little.
    sampling = 1.3 * np.sqrt(len(true)) / (optimum * true.sum())
    assert scores.sum() / (optimum * true.sum()) == pytest.approx(1, abs=0.01 + 2 * sampling)
    assert fluxes.sum() / true.sum() == pytest.approx(1, abs=0.01 + 2 * sampling)
    assert ((fluxes - true) / errors).std() == pytest.approx(1, abs=0.25)


def test_psf_of_the_score(made):
    _, directory = made
    score = read_exposure(directory / "s.fits")
    planes = ("CONTAMINATED", "SAT", "EDGE", "BAD", "NO_DATA")
    bad = np.logical_or.reduce([score.mask.get(name) for name in planes])
    psf = score.psf.at(x=700, y=700)
    science_psf = read_exposure(directory / "science.fits").psf.at(x=700, y=700)
    assert psf.shape[0] >= 2 * science_psf.shape[0] - 1
    half = psf.shape[0] // 2
    assert psf[half - 2 : half + 3, half - 2 : half + 3].argmax() == 12
    # Stacked sources, in units of their flux times the score of a unit source.
    reach, stack, weight = 8, 0.0, 0.0
    for x, y, flux in lonely_transients(directory, bad):
        i, j = round(x), round(y)
        star, _ = score.psf.star(x=x, y=y)
        part = star[half - reach : half + reach + 1, half - reach : half + reach + 1]
        data = score.data[j - reach : j + reach + 1, i - reach : i + reach + 1]
        stack = stack + flux * (data - flux * part)
        weight = weight + flux**2
    error = np.sqrt(np.median(score.variance) / weight)
    peak = psf.max()
    assert np.abs(stack / weight).max() < 5 * error + 0.02 * peak


def test_products_are_the_same_when_made_again(made, run, tmp_path):
    _, directory = made
    code, _, messages = run(
        "subtract", directory / "science.fits", directory / "template.fits", "--kernel",
        directory / "d.fits", "--kernel", directory / "s.fits", "--output", tmp_path / "d.fits",
        "--score-output", tmp_path / "s.fits", "--matched-output", tmp_path / "m.fits",
    )  # fmt: skip
    assert code == 0, messages
    for name, planes in (
        ("d.fits", ("IMAGE", "VARIANCE", "MASK", "KERNEL", "BACKGROUND")),
        ("s.fits", ("IMAGE", "VARIANCE", "MASK", "FLUX", "FLUX_VARIANCE", "PRECONVOLUTION")),
        ("m.fits", ("IMAGE", "VARIANCE", "MASK")),
    ):
        with fits.open(directory / name) as first, fits.open(tmp_path / name) as again:
            for plane in planes:
                np.testing.assert_array_equal(first[plane].data, again[plane].data, plane)
            for plane in ("PSF", "INPUT_PSF"):
                if plane in first:
                    # Brought to unit sum when it is written.
                    np.testing.assert_allclose(first[plane].data, again[plane].data, atol=1e-15)
    # The matched template is what was subtracted.
    science, matched = (read_exposure(p) for p in (directory / "science.fits", tmp_path / "m.fits"))
    untrusted = ("EDGE", "NO_DATA", "BAD", "SAT")
    good = ~(flagged(matched.mask, untrusted) | flagged(science.mask, untrusted))
    left = (science.data - matched.data)[good & np.isfinite(science.data)]
    assert np.median(left) == pytest.approx(0, abs=1.5)


def test_a_stripped_file_is_enough(made, run, tmp_path):
    _, directory = made
    for name, option in (("d.fits", "--output"), ("s.fits", "--score-output")):
        with fits.open(directory / name) as hdus:
            kept = [h for h in hdus[1:] if h.name in SOLUTION or "COEFFICIENTS" in h.name]
            stripped = fits.HDUList([fits.PrimaryHDU(header=hdus[0].header), *kept])
            stripped.writeto(tmp_path / f"stripped-{name}")
        assert (tmp_path / f"stripped-{name}").stat().st_size < 1e6
        code, _, messages = run(
            "subtract", directory / "science.fits", directory / "template.fits", "--kernel",
            tmp_path / f"stripped-{name}", option, tmp_path / name,
        )  # fmt: skip
        assert code == 0, messages
        for plane in ("IMAGE", "VARIANCE", "MASK"):
            first, again = (fits.getdata(d / name, plane) for d in (directory, tmp_path))
            np.testing.assert_array_equal(first, again)


def test_stored_solutions_that_do_not_fit(run, made, tmp_path):
    kind, directory = made
    if kind != "gaussian":
        pytest.skip("one kind suffices")
    paths = [directory / "science.fits", directory / "template.fits"]
    for arguments, text in (
        (["--kernel", directory / "d.fits", "--score-output", tmp_path / "s.fits"],
         "holds a difference, but no difference is asked for"),
        (["--kernel", directory / "s.fits", "--output", tmp_path / "d.fits"],
         "holds a score, but no score is asked for"),
        (["--kernel", directory / "d.fits", "--output", tmp_path / "d.fits",
          "--score-output", tmp_path / "s.fits"], "needs a stored score"),
        (["--kernel", directory / "kernel.fits", "--output", tmp_path / "d.fits"],
         "no difference or score of whitediff subtract"),
        (["--output", tmp_path / "d.fits", "--score-output", tmp_path / "d.fits"],
         "two outputs cannot be the same file"),
    ):  # fmt: skip
        code, _, messages = run("subtract", *paths, *arguments, "-q")
        assert code == 1, messages
        assert text in messages
        assert not list(tmp_path.iterdir())
    assert run("subtract", *paths)[0] == 2
    again = ["--kernel", directory / "d.fits", "--output", tmp_path / "d.fits"]
    code, _, messages = run("subtract", *paths, *again, "--convolved", "science")
    assert code == 2
    assert "--convolved: has no effect with --kernel" in messages
    for name in ("science", "template"):
        cut = fits.getdata(directory / f"{name}.fits", "IMAGE")[100:500, 100:500]
        fits.writeto(tmp_path / f"{name}.fits", cut)
    code, _, messages = run(
        "subtract", tmp_path / "science.fits", tmp_path / "template.fits", *again, "-q"
    )
    assert code == 1
    assert "is not that of the stored solution" in messages
    assert not (tmp_path / "d.fits").exists()
