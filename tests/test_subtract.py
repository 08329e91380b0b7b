"""Two images in, a white difference out.

Claims: on simulated pairs with truth the difference's noise agrees with its variance plane and is
white, static stars leave only noise and transients keep their flux, in both directions and for
kernel sums other than 1; wrong variance planes are put right and reported; few stars lower the
orders with a warning; a sloping sky does not change the kernel; misaligned images and kernels that
are too small for the PSFs are named; what cannot be matched is one sentence.
"""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from marks import slow_after
from scenes import SHARED, gaussian
from whitediff import Exposure
from whitediff.errors import DataError
from whitediff.evaluation.simulation import SimulationOptions, simulate
from whitediff.formats import read_exposure, write_exposure
from whitediff.matching.exposures import match
from whitediff.matching.preparation import prepare
from whitediff.noise.exposures import variance_factor
from whitediff.stars.candidates import StarImage, choose_candidates, cut_stamps, find_sources

DECAM = SHARED / "data" / "decam"
KINDS = {
    "gaussian": [],
    "moffat": ["--profile", "moffat", "--ellipticity", 0.1, -0.07, "--offset", 0.3, -0.2,
               "--flux-scale", 1.3],
    "science convolved": ["--science-psf", 2.2, "--template-psf", 3.0, "--flux-scale", 1.3],
    "varying": ["--variation", 0.13, "--template-psf", 2.0],
}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


def star_pulls(result, variance, truth, kind):
    """Residual flux of sources over its error, PSF-weighted, on clean pixels."""
    half = result.psf.at(x=500, y=500).shape[0] // 2
    clean = ~(result.mask.get("CONTAMINATED") | result.mask.get("SAT") | result.mask.get("EDGE"))
    pulls, fluxes, true = [], [], []
    for row in truth[truth["kind"] == kind]:
        i, j = round(row["x"]), round(row["y"])
        if not (half <= i < 1000 - half and half <= j < 1000 - half):
            continue
        part = (slice(j - half, j + half + 1), slice(i - half, i + half + 1))
        if not clean[part].all():
            continue
        stamp = result.psf.star(x=row["x"], y=row["y"])[0]
        weight = stamp / variance[part]
        norm = (weight * stamp).sum()
        flux = (weight * result.data[part]).sum() / norm
        fluxes.append(flux)
        true.append(row["science_flux"])
        pulls.append((flux - (0 if kind == "star" else row["science_flux"])) * np.sqrt(norm))
    return np.array(pulls), np.array(fluxes), np.array(true)


@pytest.mark.parametrize(
    "kind", ["gaussian", *(pytest.param(kind, marks=pytest.mark.slow) for kind in [*KINDS][1:])]
)
def test_pairs_with_truth(run, directory, tmp_path, kind):
    pair = directory / kind.replace(" ", "_")
    code, _, messages = run(
        "simulate", "--output", pair, "--size", 1000, "--seed", 11, "--stars", 250,
        "--galaxies", 60, "--transients", 60, *KINDS[kind],
    )  # fmt: skip
    assert code == 0, messages
    out = tmp_path / "out.fits"
    paths = [pair / "science.fits", pair / "template.fits"]
    code, _, messages = run("subtract", *paths, "--output", out)
    assert code == 0, messages
    header = fits.getheader(out)
    assert header["WDTASK"] == "subtract"
    convolved = "science" if kind == "science convolved" else "template"
    assert header["WDCONV"] == convolved
    scale = 1.3 if "--flux-scale" in KINDS[kind] else 1.0
    expected = 1 / scale if convolved == "science" else scale
    # The wings of a Moffat profile reach beyond the kernel and take their flux along.
    assert header["WDKSUM"] == pytest.approx(expected, rel=0.03 if kind == "moffat" else 0.008)
    code, _, messages = run("check", out, "--json", tmp_path / "check.json", "-q")
    assert code == 0, messages
    white = json.loads((tmp_path / "check.json").read_text())["after"]
    assert white["pixel_variance_ratio"] == pytest.approx(1, abs=0.015)
    error = white["filtered_variance_ratio_error"]
    # One correction for the whole field is not exact where the kernel varies.
    allowed = 4 * error + (0.03 if kind == "varying" else 0)
    assert white["filtered_variance_ratio"] == pytest.approx(1, abs=allowed)
    result = read_exposure(out)
    truth = Table.read(pair / "truth.ecsv", format="ascii.ecsv")
    pulls, _, flux = star_pulls(result, result.variance, truth, "star")
    moderate = flux < 200 * np.sqrt(4 * np.pi * 1200) * 3
    assert moderate.sum() > 60
    assert pulls[moderate].std() < 1.3
    pulls, measured, flux = star_pulls(result, result.variance, truth, "transient")
    assert len(flux) > 20
    bias = (measured.sum() - flux.sum()) / flux.sum()
    assert abs(bias) < 0.01 + 3 / np.sqrt((flux**2 / 400**2).sum())
    assert pulls.std() == pytest.approx(1, abs=0.35)


@pytest.mark.slow
def test_wrong_variance_planes_are_put_right(run, directory, tmp_path):
    exposures = [read_exposure(path) for path in gaussian_pair(run, directory)]
    assert variance_factor(exposures[0]) == pytest.approx(1, abs=0.03)
    for exposure, factor, name in zip(exposures, (2.0, 0.5), ("s", "t"), strict=True):
        exposure.variance[:] *= np.float32(factor)
        write_exposure(exposure, tmp_path / f"{name}.fits")
    out = tmp_path / "out.fits"
    code, _, messages = run("subtract", tmp_path / "s.fits", tmp_path / "t.fits", "--output", out)
    assert code == 0, messages
    header = fits.getheader(out)
    assert header["WDSVFAC"] == pytest.approx(0.5, rel=0.03)
    assert header["WDTVFAC"] == pytest.approx(2.0, rel=0.03)
    assert header["WDVAFT"] == pytest.approx(1200, rel=0.03)
    exposures[0].variance[:] *= 50
    with pytest.raises(DataError, match=r"science\.fits: the noise .* times its variance"):
        variance_factor(exposures[0])


@pytest.mark.parametrize("size", [1001, 5001])
def test_a_kernel_that_the_images_do_not_hold_is_refused(run, directory, tmp_path, size):
    out = tmp_path / "out.fits"
    paths = gaussian_pair(run, directory)
    code, _, messages = run("subtract", *paths, "--output", out, "--kernel-size", size)
    assert code == 1
    assert f"A kernel of {size} pixels a side (kernel_size) is too large" in messages
    assert not out.exists()


def test_candidates_are_isolated_clean_stars(rng):
    shape = (600, 600)
    image = rng.normal(0, 5, shape)
    star = 2000 * gaussian(41, 2.5)
    places = [(100, 100), (100, 300), (100, 312), (300, 100), (450, 450), (300, 300), (500, 200)]
    for y, x in places:
        image[y - 20 : y + 21, x - 20 : x + 21] += 5 * star
    image[280:321, 480:521] += 60 * gaussian(41, 6.0) * 2000  # a galaxy
    bad = np.zeros(shape, dtype=bool)
    bad[298:303, 99:102] = True  # the core of the star at (300, 100)
    bad[310, 90] = bad[105, 95] = True  # beside cores: they cost no star
    sources = find_sources(
        image, image, science_variance=np.full(shape, 25.0),
        science_bad=bad, template_bad=np.zeros_like(bad),
    )  # fmt: skip
    chosen = choose_candidates(sources, clear=30, isolation=30)
    assert chosen.science_sigma == pytest.approx(2.5, rel=0.1)
    found = {(round(y), round(x)) for x, y in zip(chosen.x, chosen.y, strict=True)}
    # Too few for all requirements: isolation goes first, a star's own core never.
    assert (300, 100) not in found
    assert {(100, 100), (450, 450), (300, 300), (500, 200)} <= found
    assert "isolation" in chosen.relaxed
    stamps = cut_stamps(
        StarImage(image, np.zeros(shape), bad, 2.5),
        StarImage(image, np.full(shape, 25.0), np.zeros_like(bad), 2.5),
        chosen.x, chosen.y, norm=1.0, size=21, kernel_size=11,
    )  # fmt: skip
    assert stamps.source.shape == (len(chosen), 31, 31)
    assert stamps.weight.max() == pytest.approx(1 / 25)
    with pytest.raises(DataError, match="No source stands out"):
        find_sources(
            rng.normal(size=shape), image, science_variance=np.full(shape, 1e6),
            science_bad=bad, template_bad=bad,
        )  # fmt: skip


def test_what_cannot_be_matched_is_one_sentence(run, tmp_path, rng):
    shape = (300, 310)
    noise = [
        Exposure.from_arrays(rng.normal(0, 3, shape).astype(np.float32), variance=9.0)
        for _ in range(2)
    ]
    for exposure, name in zip(noise, ("s", "t"), strict=True):
        write_exposure(exposure, tmp_path / f"{name}.fits")
    small = Exposure.from_arrays(rng.normal(0, 3, (200, 310)), variance=9.0)
    write_exposure(small, tmp_path / "small.fits")
    absurd = Exposure.from_arrays(rng.normal(0, 3, shape), variance=9e4)
    write_exposure(absurd, tmp_path / "absurd.fits")
    out = tmp_path / "out.fits"
    for arguments, text in (
        (["s", "t"], "t.fits: "),
        (["s", "small"], "small.fits: has 200 x 310 pixels, but the science image 300 x 310"),
        (["s", "absurd"], "absurd.fits: the noise of its source-free pixels is"),
    ):
        paths = [tmp_path / f"{name}.fits" for name in arguments]
        code, _, messages = run("subtract", *paths, "--output", out, "-q")
        assert code == 1, messages
        assert text in messages
        assert len(messages.strip().splitlines()) == 1
        assert not out.exists()
    code, _, messages = run(
        "subtract", tmp_path / "s.fits", tmp_path / "t.fits", "--output", out, "--kernel-size", 20
    )
    assert code == 2
    assert "odd" in messages
    assert not out.exists()


@pytest.mark.parametrize("role", ["science", "template"])
def test_rows_of_a_sentinel_are_no_data(run, tmp_path, role):
    scene = simulate(SimulationOptions(shape=(500, 510), seed=3))
    for name in ("science", "template"):
        image = np.nan_to_num(getattr(scene, name).image).astype(np.float32)
        if name == role:
            image[300:303] = -1e30
        fits.writeto(tmp_path / f"{name}.fits", image)
    out = tmp_path / "out.fits"
    code, _, messages = run(
        "subtract", tmp_path / "science.fits", tmp_path / "template.fits", "--output", out
    )
    assert code == 0, messages
    assert f"{role}.fits: 1530 pixels beyond 1e11 sigma, such as -1e+30" in messages
    result = read_exposure(out)
    assert result.mask.get("NO_DATA")[300:303].all()
    assert result.mask.get("CONTAMINATED")[300:303].all()
    # They reach no further than the kernels do.
    away = np.abs(np.arange(500) - 301) > 60
    assert not result.mask.get("NO_DATA")[away].any()
    assert np.abs(result.data[away]).max() < 1e6
    assert result.mask.get("CONTAMINATED").mean() < 0.25


def test_an_image_is_not_subtracted_from_itself(run, tmp_path, rng):
    science = tmp_path / "science.fits"
    fits.writeto(science, rng.normal(0, 30, (200, 210)).astype(np.float32))
    out = tmp_path / "out.fits"
    code, _, messages = run("subtract", science, science, "--output", out)
    assert code == 1
    assert f"{science}: holds the same pixels as {science}" in messages
    assert not out.exists()


@pytest.mark.slow
def test_images_of_different_fields_are_refused(run, tmp_path):
    for name, seed in (("science", 7), ("template", 8)):
        code, _, messages = run(
            "simulate", "--output", tmp_path / name, "--size", 400, "--seed", seed,
            "--stars", 80, "--galaxies", 20, "-q",
        )  # fmt: skip
        assert code == 0, messages
        image = np.nan_to_num(fits.getdata(tmp_path / name / f"{name}.fits", "IMAGE"))
        fits.writeto(tmp_path / f"{name}.fits", image)
    out = tmp_path / "out.fits"
    code, _, messages = run(
        "subtract", tmp_path / "science.fits", tmp_path / "template.fits", "--output", out, "-q"
    )
    assert code == 1, messages
    assert "the stars of one image are not in the other" in messages.splitlines()[-1]
    assert not out.exists()


def changed(source, target, change):
    """Copy of a file with all its planes changed in the same way."""
    with fits.open(source) as hdus:
        for name in ("IMAGE", "MASK", "VARIANCE"):
            hdus[name].data = np.ascontiguousarray(change(hdus[name].data))
        hdus.writeto(target, checksum=True)
    return target


def gaussian_pair(run, directory):
    # Not "gaussian", the crowded pair above: tests must not depend on which of them ran before.
    pair = directory / "default"
    if not pair.exists():
        assert run("simulate", "--output", pair, "--size", 1000, "--seed", 11)[0] == 0
    return pair / "science.fits", pair / "template.fits"


@pytest.mark.slow
def test_misaligned_images_are_named(run, directory, tmp_path):
    science, template = gaussian_pair(run, directory)
    out = tmp_path / "out.fits"
    for shift in (1, 3):
        moved = changed(
            template, tmp_path / f"{shift}.fits", lambda image, n=shift: np.roll(image, -n, 0)
        )
        for convolved in ("template", "auto"):
            code, _, messages = run(
                "subtract", science, moved, "--output", out, "--overwrite",
                "--convolved", convolved,
            )  # fmt: skip
            assert code == 0, messages
            messages = messages.replace("−", "-")
            found = re.search(r"its stars lie \((\S+), (\S+)\) ± (\S+) pixels \(x, y\)", messages)
            assert found, messages
            assert abs(float(found[1])) < 0.1
            assert float(found[2]) == pytest.approx(-shift, abs=0.1)
            # The stars decide: what the kernel makes of it is no second sentence.
            assert "shifted" not in messages
            assert messages.count("pixels (x, y)") == 1
    code, _, messages = run("subtract", science, template, "--output", out, "--overwrite")
    assert "shifted" not in messages
    assert "poor" not in messages
    far = changed(template, tmp_path / "far.fits", lambda image: np.roll(image, 9, 1))
    out.unlink()
    code, _, messages = run("subtract", science, far, "--output", out, "-q")
    assert code == 1, messages
    assert "its stars lie (+9.0" in messages
    assert "--align corrects it" in messages
    assert not out.exists()


@pytest.mark.slow
def test_a_chosen_order_that_the_fit_cannot_bear_is_lowered(run, directory, tmp_path, monkeypatch):
    # Chosen again after every failure, it would be tried for ever.
    def too_high(stamps, basis, options, **_):
        return dataclasses.replace(options, kernel_order=3)

    monkeypatch.setattr("whitediff.matching.exposures.choose_kernel_order", too_high)
    paths = gaussian_pair(run, directory)
    out = tmp_path / "out.fits"
    # Order 3 needs 20 stars; a quarter of the frame has fewer.
    for name, path in zip(("s", "t"), paths, strict=True):
        exposure = read_exposure(path)
        exposure.data[200:] = np.nan
        write_exposure(exposure, tmp_path / f"{name}.fits")
    code, _, messages = run("subtract", tmp_path / "s.fits", tmp_path / "t.fits", "--output", out)
    assert code == 0, messages
    assert "falling back to kernel order 2" in messages
    assert messages.count("falling back") == 1
    assert fits.getval(out, "WDKORDER") <= 2


@pytest.mark.parametrize("chosen", slow_after(1, [2, 1]))
def test_orders_that_both_fits_lower_are_told_of_once(
    run, directory, tmp_path, monkeypatch, chosen
):
    import whitediff.matching.exposures as module

    fits_of = []

    def fit_kernel(stamps, basis, options, **more):
        # The first fit does not bear background order 2, the second no kernel order above 0.
        fits_of.append(options)
        second = any(each.background_order < 2 for each in fits_of[:-1])
        if options.background_order == 2 or (second and options.kernel_order > 0):
            raise DataError("too few")
        return real(stamps, basis, options, **more)

    real = module.fit_kernel
    monkeypatch.setattr(module, "fit_kernel", fit_kernel)
    code, _, messages = run(
        "subtract", *gaussian_pair(run, directory), "--output", tmp_path / "out.fits",
        "--kernel-order", chosen,
    )  # fmt: skip
    assert code == 0, messages
    assert messages.count("falling back") == 1
    assert f"do not bear kernel order {chosen} and background order 2: falling back" in messages
    header = fits.getheader(tmp_path / "out.fits")
    assert header["WDKORDER"] == 0
    assert "falling back to kernel order 0 and background order" in messages


@pytest.mark.slow
def test_kernels_that_are_too_small_are_named(run, tmp_path):
    pair = tmp_path / "pair"
    code, _, messages = run(
        "simulate", "--output", pair, "--size", 1000, "--seed", 3, "--template-psf", 1.0,
        "--science-psf", 5.0, "--stars", 100, "--galaxies", 0,
    )  # fmt: skip
    assert code == 0, messages
    out = tmp_path / "out.fits"
    paths = [pair / "science.fits", pair / "template.fits"]
    code, _, messages = run("subtract", *paths, "--output", out, "--kernel-size", 15)
    assert code == 1, messages
    # A Gaussian of squared width 24 holds all but exp(-7.5²/48) = 31 % within 7.5 pixels.
    assert re.search(r"kernel of 15 pixels is too small .*: 3\d% of it", messages)
    assert "--kernel-size" in messages
    # A difference with fluxes that are a quarter too small is none.
    assert re.search(r"has the sum 0\.7\d*, but \d+ sources are (1\.0|0\.9)", messages)
    assert not out.exists()
    code, _, messages = run("subtract", *paths, "--output", out)
    assert code == 0, messages
    assert "too small" not in messages
    assert fits.getval(out, "WDKSUM") == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_a_sloping_sky_does_not_change_the_kernel(run, directory, tmp_path):
    science, template = gaussian_pair(run, directory)
    y, x = np.mgrid[:1000, :1000] - 500
    slopes = {"science": (science, 2 * x + y + 300), "template": (template, -1.5 * x)}
    for name, (path, sky) in slopes.items():
        with fits.open(path) as hdus:
            hdus["IMAGE"].data = (hdus["IMAGE"].data + sky).astype(np.float32)
            hdus.writeto(tmp_path / f"{name}.fits", checksum=True)
    headers = []
    for paths in ([science, template], [tmp_path / "science.fits", tmp_path / "template.fits"]):
        out = tmp_path / "out.fits"
        code, _, messages = run("subtract", *paths, "--output", out, "--overwrite")
        assert code == 0, messages
        headers.append(fits.getheader(out))
    flat, sloping = headers
    # The same stars with the same noise: a fraction of the error is all that rounding may do.
    assert sloping["WDKSUM"] == pytest.approx(flat["WDKSUM"], abs=0.3 * flat["WDKSERR"])
    assert sloping["WDNUSED"] >= 0.9 * flat["WDNUSED"]
    result = read_exposure(out)
    free = ~(result.mask.get("SOURCE") | result.mask.get("CONTAMINATED"))
    left = result.data[free] / np.sqrt(result.variance[free])
    # The sky of the difference is gone: 30 000 means of 5 x 5 pixels know it to 0.01.
    assert abs(left.mean()) < 0.02
    assert left.std() == pytest.approx(1, abs=0.05)


@pytest.mark.skipif(not DECAM.is_dir(), reason=f"no real data in {DECAM}")
@pytest.mark.parametrize(("science", "template"), [("04a", "18a"), ("04a", "04b"), ("18a", "18c")])
def test_decam_pairs_need_no_tuning(run, tmp_path, science, template):
    paths = [DECAM / f"DEC-OBS{name}.mini.fits" for name in (science, template)]
    out = tmp_path / "out.fits"
    code, _, messages = run("subtract", *paths, "--output", out)
    assert code == 0, messages
    assert "Few stars" in messages
    result = read_exposure(out)
    residual = result.data / np.sqrt(result.variance)
    sources = result.mask.get("SOURCE") & ~result.mask.get("CONTAMINATED")
    assert residual[~sources & np.isfinite(residual)].std() == pytest.approx(1, abs=0.05)
    # Stars of thousands of sigma leave next to nothing; HOTPANTS, too, leaves 1.2 to 1.4 here.
    assert np.nanpercentile(np.abs(residual[sources]), 68) < 1.3


def plain_pair(run, directory, target):
    """Images alone, as most people have them: no variance, mask or PSF."""
    for name, path in zip(("science", "template"), gaussian_pair(run, directory), strict=True):
        fits.writeto(target / f"{name}.fits", fits.getdata(path, "IMAGE"))
    return [target / "science.fits", target / "template.fits"]


def test_two_plain_images(run, directory, tmp_path):
    paths = plain_pair(run, directory, tmp_path)
    out = tmp_path / "out.fits"
    code, _, messages = run("subtract", *paths, "--output", out)
    assert code == 0, messages
    assert "its PSF is measured from" in messages
    header = fits.getheader(out)
    assert header["WDKORDER"] == 0
    assert header["WDCHI2"] == pytest.approx(1, abs=0.05)
    assert header["WDSFWHM"] == pytest.approx(3.0 * 2.3548, rel=0.03)
    assert header["WDKSUM"] == pytest.approx(1, abs=0.01)
    code, _, messages = run("check", out, "--json", tmp_path / "check.json", "-q")
    white = json.loads((tmp_path / "check.json").read_text())["after"]
    assert white["pixel_variance_ratio"] == pytest.approx(1, abs=0.015)


@pytest.mark.slow
def test_integers_stripes_and_saturation(run, directory, tmp_path):
    science, template = plain_pair(run, directory, tmp_path)
    image = np.nan_to_num(fits.getdata(science))
    fits.writeto(tmp_path / "int16.fits", np.rint(image.clip(-3e4, 3e4)).astype(np.int16))
    striped = image.copy()
    striped[:, 200:230] = np.nan
    striped[400:410] = np.nan
    fits.writeto(tmp_path / "striped.fits", striped)
    saturated = fits.Header()
    saturated["SATURATE"] = 1.0
    fits.writeto(tmp_path / "saturated.fits", image, saturated)
    out = tmp_path / "out.fits"
    for name in ("int16", "striped"):
        path = tmp_path / f"{name}.fits"
        code, _, messages = run("subtract", path, template, "--output", out, "--overwrite")
        assert code == 0, messages
        result = read_exposure(out)
        assert result.data.dtype == np.float32
        good = ~(result.mask.get("SOURCE") | result.mask.get("CONTAMINATED"))
        values = result.data[good] / np.sqrt(result.variance[good])
        assert np.isfinite(values).all()
        assert np.var(values, dtype=float) == pytest.approx(1, abs=0.02)
        if name == "striped":
            missing = np.isnan(result.data)
            np.testing.assert_array_equal(missing[:, 200:230], True)
            assert result.mask.get("NO_DATA")[missing].all()
    out.unlink()
    code, _, messages = run("subtract", tmp_path / "saturated.fits", template, "--output", out)
    # No image is saturated everywhere: the card is wrong, and that is told of.
    assert code == 0, messages
    assert "so the card is of another unit or wrong, and is not used" in messages
    assert read_exposure(out).mask.get("SAT").mean() < 0.01


def test_matching_exposures_in_python(run, directory):
    science, template = (read_exposure(path) for path in gaussian_pair(run, directory))
    result = match(prepare(science, template))
    assert result.convolved == "template"
    assert result.background.on(science.bbox).shape == science.shape
    kernel = result.kernel.at(x=500, y=500)
    assert kernel.sum() == pytest.approx(result.fit.kernel_sum, rel=1e-10)
    assert result.fit.reduced_chi_square == pytest.approx(1, abs=0.03)
