"""Catalogues of what is on a difference, and the command that writes them.

Claims: sources of both signs are found where they are, in any frame, with the flags of the pixels
around them, sky coordinates and errors of the WCS, and magnitudes of whatever zero point the
header has; a PSF that varies is followed; a misregistered star is one row.  Forced fluxes are those
of an explicit sum, at positions in pixels or on the sky, in their order, outside of the image too.
The command does the same, after subtract in one go as well; whatever is wrong gets one sentence and
no output.
"""

from __future__ import annotations

import math

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from scenes import command
from whitediff import Exposure, read_catalog, write_catalog
from whitediff.detection.catalog import headline
from whitediff.detection.exposures import DetectionOptions, detect, forced_photometry
from whitediff.errors import ArgumentError
from whitediff.evaluation.placing import add_stamp
from whitediff.evaluation.simulation import PsfModel
from whitediff.exposures.kernels import interpolated_kernel
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.formats import write_exposure

SHAPE, YX0, VARIANCE = (300, 340), (40, -30), 25.0
MODEL = PsfModel(sigma=1.8, frame=SHAPE, ellipticity=(0.1, -0.05), offset=(0.2, -0.1))
PSF = MODEL.image(0, 0)
UNIT = math.sqrt(VARIANCE / float((PSF**2).sum()))
SOURCES = [
    (60.3, 80.6, 30.0), (150.5, 120.2, -25.0), (205.0, 180.0, 12.0), (280.4, 60.9, 80.0),
    (100.7, 230.1, -9.0),
]  # fmt: skip
"""Array coordinates and signal-to-noise ratio."""


def header(**cards):
    result = fits.Header()
    # Rotated, and east to the left: x and y mix.
    turn, scale = math.radians(30), 0.3 / 3600
    result.update(
        CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=150.0, CRVAL2=60.0, CRPIX1=100.0,
        CRPIX2=120.0, CD1_1=-scale * math.cos(turn), CD1_2=scale * math.sin(turn),
        CD2_1=scale * math.sin(turn), CD2_2=scale * math.cos(turn), BUNIT="adu",
    )  # fmt: skip
    result.update(cards)
    return result


def noise(seed=11):
    return np.random.default_rng(seed).normal(0, math.sqrt(VARIANCE), SHAPE)


def scene(*, mask=None, cards=None, sources=SOURCES, psf=PSF):
    image = noise()
    for x, y, ratio in sources:
        add_stamp(image, ratio * UNIT * MODEL.stamp(x, y), x, y)
    result = Exposure.from_arrays(
        image.astype(np.float32), variance=VARIANCE, mask=mask, psf=psf, origin=YX0,
        header=header() if cards is None else cards,
    )  # fmt: skip
    for plane in (result.data, result.mask.bits, result.variance):
        plane.flags.writeable = False
    return result


def near(table, x, y, radius=2.0):
    """Row of a source at array coordinates."""
    distance = np.hypot(table["x"].value - YX0[1] - x, table["y"].value - YX0[0] - y)
    assert distance.min() < radius
    return table[int(distance.argmin())]


def test_sources_of_both_signs():
    table = detect(scene())
    assert len(table) == len(SOURCES)
    assert (table["classification"] == "point").all()
    for x, y, ratio in SOURCES:
        row = near(table, x, y)
        for name, true, error in (
            ("x", x + YX0[1], "x_err"), ("y", y + YX0[0], "y_err"),
            ("psf_flux", ratio * UNIT, "psf_flux_err"),
        ):  # fmt: skip
            assert abs(row[name].value - true) < 4 * row[error].value
        assert row["psf_flux_err"].value == pytest.approx(UNIT, rel=1e-3)
        assert row["significance"] == pytest.approx(ratio, abs=4)
        assert abs(row["peak_significance"]) <= abs(row["significance"])
        assert row["psf_chi2"] == pytest.approx(1, abs=5 * math.sqrt(2 / row["psf_chi2_pixels"]))
        # σ_x of a Gaussian in white noise is √2 σ over the signal-to-noise ratio.
        assert row["x_err"].value == pytest.approx(math.sqrt(2) * 1.8 / abs(ratio), rel=0.35)
    for name in table.colnames:
        assert table[name].info.description
    assert table["psf_flux"].unit == u.adu
    assert table["id"].tolist() == list(range(1, 6))
    flags = [name for name in table.colnames if name.startswith("flag")]
    assert len(flags) == 11
    assert not any(table[name].any() for name in flags)
    meta = table.meta
    assert (meta["n_positive"], meta["n_negative"], meta["threshold"]) == (3, 2, 5.0)
    assert meta["n_pixels_searched"] == pytest.approx(math.prod(SHAPE), rel=0.01)
    assert 0 < meta["expected_false_per_sign"] < 0.1


def test_one_sign_and_another_threshold():
    both = detect(scene())
    for sign, side in (("positive", 1), ("negative", -1)):
        table = detect(scene(), options=DetectionOptions(sign=sign))
        wanted = both[side * both["significance"] > 0]
        np.testing.assert_array_equal(table["x"], wanted["x"])
        assert table["id"].tolist() == list(range(1, len(wanted) + 1))
    assert len(detect(scene(), options=DetectionOptions(threshold=20))) == 3
    nothing = detect(scene(), options=DetectionOptions(threshold=1e4))
    assert len(nothing) == 0
    assert nothing.colnames == both.colnames
    for options in ({"threshold": 0}, {"threshold": math.nan}, {"aperture_radius": -1.0},
                    {"sign": "none"}, {"zero_point": math.inf}):  # fmt: skip
        with pytest.raises(ArgumentError, match=r"got"):
            DetectionOptions(**options)


def test_a_varying_psf_is_followed(rng):
    shape = (500, 700)
    model = PsfModel(sigma=2.0, frame=shape, variation=0.3)
    image = rng.normal(0, 1, shape)
    y, x = (at.ravel() + rng.uniform(-0.5, 0.5, at.size) for at in np.mgrid[40:480:50, 40:680:50])
    unit = np.array([1 / math.sqrt(float((model.image(at, 0) ** 2).sum())) for at in x])
    for at in zip(x, y, 30 * unit, strict=True):
        add_stamp(image, at[2] * model.stamp(*at[:2]), *at[:2])
    exposure = Exposure.from_arrays(image.astype(np.float32), variance=1.0)
    exposure.psf = KernelPointSpreadFunction(interpolated_kernel(model.image, exposure.bbox, 4))
    table = detect(exposure)
    assert len(table) == len(x)
    found = forced_photometry(exposure, Table({"x": x, "y": y}))
    np.testing.assert_allclose(found["psf_flux_err"].value, unit, rtol=5e-3)
    pull = (found["psf_flux"].value - 30 * unit) / found["psf_flux_err"].value
    assert pull.std() == pytest.approx(1, abs=4 / math.sqrt(2 * len(x)))
    assert table["psf_chi2"].mean() == pytest.approx(1, abs=0.05)


def test_a_misregistered_star_is_one_row():
    x, y, flux, shift = 150.0, 140.0, 300 * UNIT, 0.3
    image = noise()
    add_stamp(image, flux * MODEL.stamp(x + shift, y), x + shift, y)
    add_stamp(image, -flux * MODEL.stamp(x, y), x, y)
    table = detect(Exposure.from_arrays(image.astype(np.float32), variance=VARIANCE, psf=PSF))
    assert table["classification"].tolist() == ["dipole"]
    assert table["n_peaks"].tolist() == [2]
    assert table["parent"].tolist() == [1]
    row = table[0]
    pull = (row["dipole_moment"].value - flux * shift) / row["dipole_moment_err"].value
    assert abs(pull) < 4
    assert abs((row["dipole_angle"].value + 180) % 360 - 180) < 15


def test_flags():
    planes = {
        name: np.zeros(SHAPE, bool)
        for name in ("BAD", "SATURATED", "COSMIC_RAY", "INTRP", "EDGE", "CONTAMINATED", "SOURCE")
    }
    planes["BAD"][79, 60:63] = planes["BAD"][82, 59:62] = True  # next to the first's middle
    planes["BAD"][230, 103] = True  # 2.3 pixels from the last: it takes 2 % of what is known
    planes["COSMIC_RAY"][119:122, 151] = planes["INTRP"][120, 154] = True
    planes["SATURATED"][180:183, 221:224] = True  # beyond one, within five full widths
    planes["CONTAMINATED"][50:70, 270:290] = planes["SOURCE"][58:63, 278:283] = True
    planes["EDGE"][:, :6] = True
    sources = [*SOURCES, (3.0, 150.0, 40.0), (150.0, 297.0, 40.0)]
    table = detect(scene(mask=planes, sources=sources))
    expected = {
        0: {"flag_bad"}, 1: {"flag_cosmic_ray", "flag_interpolated"},
        2: {"flag_near_bright_star"}, 3: {"flag_contaminated", "flag_source"}, 4: set(),
        5: {"flag_edge"}, 6: {"flag_edge"},
    }  # fmt: skip
    for index, (x, y, _) in enumerate(sources):
        row = near(table, x, y)
        flags = {name for name in table.colnames if name.startswith("flag") and row[name]}
        assert flags == expected[index], index
    deep = {"SOURCE": np.zeros(SHAPE, bool), "NO_DATA": np.zeros(SHAPE, bool)}
    deep["SOURCE"][60:100, 40:80] = True
    deep["NO_DATA"][100:140, 130:170] = True  # the second is not searched
    table = detect(scene(mask=deep))
    assert len(table) == len(SOURCES) - 1
    row = near(table, *SOURCES[0][:2])
    assert row["flag_source"]
    assert row["flag_near_bright_star"]


def test_masked_and_missing_pixels_have_no_weight():
    mask = {"BAD": np.zeros(SHAPE, bool)}
    mask["BAD"][:, 281] = True
    exposure = scene(mask=mask)
    image = exposure.data.copy()
    image[:, 281], image[100:130, 145] = 1e6, np.nan
    spoilt = Exposure.from_arrays(
        image, variance=VARIANCE, mask=mask, psf=PSF, origin=YX0, header=header()
    )
    table = detect(spoilt)
    assert len(table) == len(SOURCES)
    for x, y, ratio in SOURCES:
        row = near(table, x, y)
        assert abs(row["psf_flux"].value - ratio * UNIT) < 4 * row["psf_flux_err"].value
    assert near(table, *SOURCES[3][:2])["flag_bad"]
    assert near(table, *SOURCES[3][:2])["psf_flux_err"].value > 1.05 * UNIT


def test_sky_coordinates():
    exposure = scene()
    table = detect(exposure)
    x, y = table["x"].value - YX0[1], table["y"].value - YX0[0]
    sky = exposure.wcs.pixel_to_world(x, y)
    np.testing.assert_allclose(table["ra"].value, sky.ra.deg, rtol=1e-12)
    np.testing.assert_allclose(table["dec"].value, sky.dec.deg, rtol=1e-12)
    # Rotated by 30 degrees: explicit propagation on the tangent plane, 0.3 arcsec a pixel.
    turn = math.radians(30)
    rotation = np.array([[-math.cos(turn), math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    for row in table:
        cov = np.array([[row["x_err"].value ** 2, row["xy_cov"].value],
                        [row["xy_cov"].value, row["y_err"].value ** 2]])  # fmt: skip
        expected = 0.3 * np.sqrt(np.diag(rotation @ cov @ rotation.T))
        found = [3600 * row[name].value for name in ("ra_err", "dec_err")]
        np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("cards", "zero", "origin"),
    [
        ({"MAGZERO": 27.5}, 27.5, "MAGZERO"),
        ({"MAGZPT": 26.0}, 26.0, "MAGZPT"),
        ({"HIERARCH ZEROPOINT": 25.25}, 25.25, "ZEROPOINT"),
        ({"FLUXMAG0": 1e11}, 27.5, "FLUXMAG0"),
        ({"BUNIT": "nJy", "MAGZERO": 27.5}, 31.4, "unit nJy (AB)"),
        ({"MAGZERO": "unknown", "PHOTZP": 24.0}, 24.0, "PHOTZP"),
        # JWST: −6.10 − 2.5 log10 of the pixel's steradians, here of 0.0312 arcsec a side.
        ({"BUNIT": "MJy/sr", "PIXAR_SR": 2.288e-14}, 28.001, "unit MJy / sr and PIXAR_SR (AB)"),
        ({"BUNIT": "MJy/sr", "PIXAR_A2": 9.734e-4}, 28.001, "unit MJy / sr and PIXAR_A2 (AB)"),
        ({"BUNIT": "MJy/sr", "PIXAR_SR": -1.0, "MAGZERO": 27.5}, 27.5, "MAGZERO"),
    ],
)
def test_magnitudes(cards, zero, origin):
    table = detect(scene(cards=header(**cards)))
    assert table.meta["zero_point"] == pytest.approx(zero, abs=1e-3)
    assert table.meta["zero_point_from"] == origin
    positive = table["psf_flux"].value > 0
    for kind in ("psf", "aperture"):
        flux, error = table[f"{kind}_flux"].value, table[f"{kind}_flux_err"].value
        found = table[f"{kind}_mag"].value
        np.testing.assert_allclose(
            found[positive], table.meta["zero_point"] - 2.5 * np.log10(flux[positive])
        )
        assert np.isnan(found[~positive]).all()
        np.testing.assert_allclose(
            table[f"{kind}_mag_err"].value[positive], 1.0857 * (error / flux)[positive], rtol=1e-3
        )
    given = detect(scene(cards=header(**cards)), options=DetectionOptions(zero_point=20.0))
    assert given.meta["zero_point"] == 20.0
    assert "psf_mag" not in detect(scene()).colnames


def test_forced_fluxes_are_explicit_sums(rng):
    exposure = scene()
    x, y = rng.uniform(20, 280, (2, 12))
    # Whole pixels, where the PSF's own image is the model.
    x, y = np.round(x), np.round(y)
    table = forced_photometry(exposure, Table({"x": x + YX0[1], "y": y + YX0[0]}))
    half, radius = PSF.shape[0] // 2, table.meta["fit_radius"]
    grid = np.hypot(*np.mgrid[-half : half + 1, -half : half + 1])
    weight = np.where(grid <= radius + 1e-3, PSF, 0)
    for row, i, j in zip(table, x.astype(int), y.astype(int), strict=True):
        part = exposure.data[j - half : j + half + 1, i - half : i + half + 1]
        flux = (weight * part).sum() / (weight**2).sum()
        assert row["psf_flux"].value == pytest.approx(flux, abs=2e-3 * UNIT)
        assert row["significance"] == pytest.approx(flux / UNIT, abs=5e-3)


def test_forced_positions(caplog):
    exposure = scene()
    found = detect(exposure)
    again = forced_photometry(exposure, found[::-1])
    assert again["id"].tolist() == found["id"].tolist()[::-1]
    # The pixels near a found position are those near its peak, which may be others.
    np.testing.assert_allclose(again["psf_flux"][::-1].value, found["psf_flux"].value, rtol=2e-3)
    sky = forced_photometry(exposure, Table({"RA": found["ra"], "Dec": found["dec"].to(u.rad)}))
    np.testing.assert_allclose(sky["x"].value, found["x"].value, atol=1e-6)
    np.testing.assert_allclose(sky["psf_flux"][::-1].value, again["psf_flux"].value, rtol=1e-6)
    outside = forced_photometry(
        exposure, Table({"id": ["a", "b", "c"], "x": [0.0, -31.0, np.nan], "y": [100.0] * 3})
    )
    assert "2 of 3 positions lie outside" in caplog.text
    assert outside["id"].tolist() == ["a", "b", "c"]
    assert np.isfinite(outside["psf_flux"].value).tolist() == [True, False, False]
    for flag in ("flag_edge", "flag_no_data", "flag_fit_failed"):
        assert outside[flag].tolist() == [False, True, True]
    empty = forced_photometry(exposure, Table({"x": np.zeros(0), "y": np.zeros(0)}))
    assert len(empty) == 0
    assert "psf_flux" in empty.colnames
    with pytest.raises(ArgumentError, match=r"None of the 1 positions lies on .* x = -30\.\.309"):
        forced_photometry(exposure, Table({"x": [1e4], "y": [0.0]}))
    with pytest.raises(ArgumentError, match=r"need the columns x and y, or ra and dec; .* flux"):
        forced_photometry(exposure, Table({"flux": [1.0]}))
    bare = Exposure.from_arrays(exposure.data, variance=VARIANCE, psf=PSF)
    with pytest.raises(ArgumentError, match=r"has no WCS, so ra and dec lead nowhere"):
        forced_photometry(bare, Table({"ra": [1.0], "dec": [0.0]}))


def test_what_is_missing(caplog):
    plane = np.zeros((90, 90), np.float32)
    with pytest.raises(ArgumentError, match="has no PSF"):
        detect(Exposure.from_arrays(plane, variance=1.0))
    for variance in (0.0, np.nan):
        with pytest.raises(ArgumentError, match="has no variance plane"):
            detect(Exposure.from_arrays(plane, variance=variance, psf=PSF))
    with pytest.raises(ArgumentError, match="is larger than the image"):
        detect(Exposure.from_arrays(plane[:9, :9], variance=1.0, psf=PSF))
    exposure = Exposure.from_arrays(plane, variance=1.0, psf=PSF)
    with pytest.raises(ArgumentError, match="is not that of the difference"):
        detect(exposure, Exposure.from_arrays(plane[:50], variance=1.0))
    caplog.clear()
    table = detect(exposure)
    assert "ra" not in table.colnames
    assert caplog.text.count("no WCS") == 1
    everything = Exposure.from_arrays(
        plane, variance=1.0, psf=PSF, mask={"BAD": np.ones(plane.shape, bool)}
    )
    table = detect(everything)
    assert (len(table), table.meta["n_pixels_searched"]) == (0, 0)


@pytest.fixture(scope="module")
def subtracted(tmp_path_factory):
    """Directory with a simulated pair, its difference, score and catalogue."""
    directory = tmp_path_factory.mktemp("subtracted")
    for arguments in (
        ["simulate", "--output", directory, "--size", 700, "--seed", 4, "--stars", 60,
         "--galaxies", 5, "--transients", 25, "--science-psf", 1.8, "--template-psf", 1.5, "-q"],
        ["subtract", directory / "science.fits", directory / "template.fits", "--output",
         directory / "d.fits", "--score-output", directory / "s.fits", "--catalog",
         directory / "s.ecsv", "-q"],
    ):  # fmt: skip
        code, _, messages = command(*arguments)
        assert code == 0, messages
    return directory


def test_the_command(run, subtracted, tmp_path):
    out = tmp_path / "c.fits"
    code, _, messages = run(
        "detect", subtracted / "d.fits", "--output", out, "--regions", tmp_path / "c.reg"
    )
    assert code == 0, messages
    table = read_catalog(out)
    assert f"{out}: {headline(table)}\n" == messages
    assert {"ra", "dec", "ra_err", "psf_flux"} <= set(table.colnames)
    truth = Table.read(subtracted / "truth.ecsv", format="ascii.ecsv")
    truth = truth[truth["kind"] == "transient"]
    good = ~(table["flag_edge"] | table["flag_contaminated"] | table["flag_near_bright_star"])
    distance = np.hypot(
        table["x"].value[:, None] - np.array(truth["x"]),
        table["y"].value[:, None] - np.array(truth["y"]),
    )
    matched = distance.min(axis=1) < 2
    assert matched[good].mean() > 0.9
    flux = np.array(truth["science_flux"])[distance.argmin(axis=1)]
    pull = (table["psf_flux"].value - flux) / table["psf_flux_err"].value
    assert np.abs(pull[matched & good]).max() < 5
    assert len((tmp_path / "c.reg").read_text().splitlines()) == len(table) + 3
    # What subtract wrote was found on the score, and measured on the same difference.
    on_score = read_catalog(subtracted / "s.ecsv")
    assert on_score.meta["searched_on"] == "score"
    code, _, messages = run(
        "detect", subtracted / "d.fits", "--score", subtracted / "s.fits", "--output",
        tmp_path / "again.ecsv",
    )  # fmt: skip
    assert code == 0, messages
    np.testing.assert_array_equal(
        read_catalog(tmp_path / "again.ecsv")["psf_flux"], on_score["psf_flux"]
    )
    code, _, messages = run(
        "detect", subtracted / "d.fits", "--at", subtracted / "truth.ecsv", "--output",
        tmp_path / "forced.parquet",
    )  # fmt: skip
    assert code == 0, messages
    forced = read_catalog(tmp_path / "forced.parquet")
    assert len(forced) == 90
    assert np.median(np.abs(forced["significance"][-25:])) > 5


def test_bad_input_gets_one_sentence_and_no_output(run, subtracted, tmp_path):
    difference, score = subtracted / "d.fits", subtracted / "s.fits"
    plain = np.random.default_rng(1).normal(0, 1, (100, 110)).astype(np.float32)
    fits.writeto(tmp_path / "plain.fits", plain)
    write_exposure(Exposure.from_arrays(plain, variance=1.0), tmp_path / "nopsf.fits")
    (tmp_path / "text.ecsv").write_text("nothing")
    for name, columns in (
        ("far", {"x": [1e6], "y": [1e6]}),
        ("flux", {"flux": [1.0]}),
        ("sky", {"ra": [1.0], "dec": [2.0]}),
    ):
        write_catalog(Table(columns), tmp_path / f"{name}.ecsv")
    psf = fits.ImageHDU(PSF, name="PSF")
    bare = fits.HDUList([fits.PrimaryHDU(plain), psf])
    bare.writeto(tmp_path / "novariance.fits")
    before, out = set(tmp_path.iterdir()), tmp_path / "c.ecsv"
    cases = {
        "no PSF": ([tmp_path / "nopsf.fits"], ["nopsf.fits", "no PSF"]),
        "no variance": ([tmp_path / "novariance.fits", "--psf", tmp_path / "novariance.fits[PSF]"],
                        ["novariance.fits", "no variance plane"]),
        "threshold": ([difference, "--threshold", 0], ["threshold must be positive", "got 0"]),
        "negative threshold": ([difference, "--threshold", -5], ["must be positive", "got -5"]),
        "aperture": ([difference, "--aperture-radius", 0], ["radius must be positive"]),
        "variance": ([difference, "--variance", -1], ["--variance must be a positive number"]),
        "a score": ([score], ["s.fits", "is a score"]),
        "no score": ([difference, "--score", difference], ["d.fits", "is no score"]),
        "missing": ([tmp_path / "none.fits"], ["none.fits", "no such file"]),
        "missing positions": ([difference, "--at", tmp_path / "none.ecsv"], ["no such file"]),
        "no table": ([difference, "--at", tmp_path / "text.ecsv"], ["text.ecsv"]),
        "outside": ([difference, "--at", tmp_path / "far.ecsv"], ["None of the 1 positions"]),
        "no columns": ([difference, "--at", tmp_path / "flux.ecsv"], ["need the columns x and y"]),
        "sky without WCS": ([tmp_path / "nopsf.fits", "--psf", tmp_path / "novariance.fits[PSF]",
                             "--at", tmp_path / "sky.ecsv"], ["has no WCS"]),
        "same output": ([difference, "--regions", out], ["c.ecsv: is to be a file of regions"]),
    }  # fmt: skip
    for name, (arguments, expected) in cases.items():
        code, stdout, messages = run("detect", *arguments, "--output", out, "-q")
        assert code == 1, (name, messages)
        assert stdout == ""
        sentences = [line for line in messages.splitlines() if line.strip()]
        assert len(sentences) == 1, (name, messages)
        assert "Unexpected" not in messages
        for text in expected:
            assert text in messages, (name, messages)
        assert set(tmp_path.iterdir()) == before, name
    for name in ("c.txt", "c"):
        code, _, messages = run("detect", difference, "--output", tmp_path / name, "-q")
        assert code == 1
        assert "must end in" in messages
        code, _, messages = run(
            "subtract", subtracted / "science.fits", subtracted / "template.fits", "--output",
            tmp_path / "d.fits", "--catalog", tmp_path / name, "-q",
        )  # fmt: skip
        assert code == 1
        assert "must end in" in messages
    assert set(tmp_path.iterdir()) == before
    for arguments in (
        ["detect", difference],
        ["detect", difference, "--output", out, "--sign", "neither"],
        ["detect", difference, "--output", out, "--score", score, "--at", difference],
        ["subtract", difference, difference, "--catalog", out, "--score-output", tmp_path / "s"],
    ):
        assert run(*arguments)[0] == 2
    out.write_text("precious")
    code, _, messages = run("detect", difference, "--output", out)
    assert code == 1
    assert "c.ecsv: exists already" in messages
    assert out.read_text() == "precious"


def test_given_psf_and_variance(run, tmp_path):
    exposure = scene()
    fits.writeto(tmp_path / "d.fits", exposure.data)
    fits.writeto(tmp_path / "psf.fits", PSF)
    code, _, messages = run(
        "detect", tmp_path / "d.fits", "--psf", tmp_path / "psf.fits", "--variance", VARIANCE,
        "--output", tmp_path / "c.ecsv",
    )  # fmt: skip
    assert code == 0, messages
    assert messages.count("has no WCS") == 1
    table, expected = read_catalog(tmp_path / "c.ecsv"), detect(exposure)
    np.testing.assert_allclose(table["psf_flux"].value, expected["psf_flux"].value, rtol=1e-9)
    np.testing.assert_allclose(table["x"].value, expected["x"].value - YX0[1], rtol=1e-9)
    # Also in place of the plane that a file has.
    write_exposure(exposure, tmp_path / "a.fits")
    code, _, messages = run(
        "detect", tmp_path / "a.fits", "--variance", 4 * VARIANCE, "--output",
        tmp_path / "half.ecsv",
    )  # fmt: skip
    assert code == 0, messages
    half = read_catalog(tmp_path / "half.ecsv")
    np.testing.assert_allclose(half["psf_flux_err"].value, 2 * UNIT, rtol=2e-3)
