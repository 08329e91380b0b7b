"""Claims: an injected source is the PSF at its place, off the pixels' centres too, and of exactly
its flux; nothing else of the exposure changes; photon noise has the variance that is added to the
plane; sky positions are those of the WCS; the noise that a signal-to-noise ratio refers to is what
a matched filter measures; random sources are uniform, apart and away from masked pixels; wrong
input is one sentence, and leaves no file."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.table import QTable, Table
from astropy.wcs import WCS

from whitediff import Exposure
from whitediff.errors import ArgumentError
from whitediff.evaluation.injection import (
    inject,
    injectable_pixels,
    point_source_noise,
    random_sources,
    with_sky_positions,
)
from whitediff.evaluation.placing import add_stamp, photon_noise, random_positions
from whitediff.evaluation.simulation import PsfModel, SimulationOptions, simulate
from whitediff.exposures import masks
from whitediff.exposures.kernels import interpolated_kernel
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.formats import read_exposure, write_exposure
from whitediff.matching.preparation import with_own_psf

SHAPE = (180, 200)
YX0 = (40, -7)
MODEL = PsfModel(
    sigma=2.0, frame=SHAPE, ellipticity=(0.12, -0.2), offset=(0.3, -0.2), variation=0.1
)


def header() -> fits.Header:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.2]
    wcs.wcs.crpix = [90.0, 80.0]
    wcs.wcs.cd = np.array([[-4.0, 0.7], [0.6, 4.1]]) / 3600
    result = wcs.to_header()
    result["BUNIT"] = "adu"
    result["GAIN"] = 2.5
    return result


def exposure(image=None, variance=100.0, mask=None, psf=True) -> Exposure:
    image = np.zeros(SHAPE, np.float32) if image is None else image
    made = Exposure.from_arrays(
        image, variance=np.full(SHAPE, variance, np.float32), mask=mask, origin=YX0, header=header()
    )
    if psf:
        y0, x0 = YX0
        made.psf = KernelPointSpreadFunction(
            interpolated_kernel(lambda x, y: MODEL.image(x - x0, y - y0), made.bbox, 3)
        )
    return made


def table(*rows) -> Table:
    return Table(rows=rows, names=("x", "y", "flux"))


@pytest.mark.parametrize(("dx", "dy"), [(0.0, 0.0), (0.37, -0.21), (0.5, 0.5), (-0.5, 0.49)])
def test_a_source_is_the_psf_at_its_place(dx, dy):
    x, y = 61 + dx + YX0[1], 88 + dy + YX0[0]
    found = inject(exposure(), table((x, y, 5000.0))).data
    oracle = np.zeros(SHAPE)
    add_stamp(oracle, MODEL.stamp(61 + dx, 88 + dy), 61 + dx, 88 + dy)
    oracle *= 5000 / oracle.sum()
    # The shift is one of the pixels; the profile at its pixel centres has 1e-4 above Nyquist.
    np.testing.assert_allclose(found, oracle, atol=2e-3 * oracle.max())
    assert found.sum(dtype=np.float64) == pytest.approx(5000, rel=1e-5)
    columns, rows = np.arange(SHAPE[1]), np.arange(SHAPE[0])
    centroid = (found.sum(0) @ columns / found.sum(), found.sum(1) @ rows / found.sum())
    np.testing.assert_allclose(
        centroid, (61 + dx + MODEL.offset[0], 88 + dy + MODEL.offset[1]), atol=2e-3
    )


def test_sources_add_up_and_nothing_else_changes(rng):
    image = rng.normal(0, 10, SHAPE).astype(np.float32)
    image[30, 40] = np.nan
    mask = {"NO_DATA": np.isnan(image), "SAT": np.zeros(SHAPE, bool)}
    before = exposure(image, mask=mask)
    for plane in (before.data, before.variance, before.mask.bits):
        plane.setflags(write=False)
    rows = [(20.0, 70.0, 900.0), (33.2, 71.7, -400.0), (150.4, 160.0, 70.0)]
    together = inject(before, table(*rows))
    alone = [inject(exposure(), table(row)).data.astype(float) for row in rows]
    np.testing.assert_allclose(together.data, image + sum(alone), atol=1e-3)
    assert np.isnan(together.data[30, 40])
    np.testing.assert_array_equal(together.variance, before.variance)
    np.testing.assert_array_equal(together.mask.bits, before.mask.bits)
    assert together.psf is before.psf
    assert together.header["GAIN"] == 2.5
    assert together.origin == YX0
    nothing = inject(before, table(*rows)[:0])
    np.testing.assert_array_equal(nothing.data, image)


def test_what_lies_outside_is_cut_off():
    y0, x0 = YX0
    found = inject(exposure(), table((x0 - 0.4, y0 + 90.0, 1000.0))).data
    profile = MODEL.stamp(-0.4, 90)
    grid = np.arange(len(profile)) - len(profile) // 2
    inside = profile[:, grid >= 0].sum() / profile.sum()
    assert found.sum() == pytest.approx(1000 * inside, rel=1e-3)


def test_photon_noise_is_that_of_the_variance_plane(rng):
    gain, flux, n = 2.5, 40000.0, 400
    sums, planes = np.zeros(n), 0.0
    before = exposure()
    for i in range(n):
        found = inject(before, table((60.3, 120.8, flux)), gain=gain, rng=rng)
        sums[i] = found.data.sum(dtype=np.float64)
        planes = float((found.variance - before.variance).sum(dtype=np.float64))
    assert planes == pytest.approx(flux / gain, rel=1e-3)
    assert sums.var(ddof=1) == pytest.approx(planes, rel=4 * np.sqrt(2 / n))
    assert abs(sums.mean() - flux) < 4 * np.sqrt(planes / n)
    ripples = photon_noise(np.array([[-3.0, 0.0]]), gain, rng)
    np.testing.assert_array_equal(ripples, 0)


def test_sky_positions_are_those_of_the_wcs():
    sky = WCS(header()).pixel_to_world(np.array([50.3, 120.0]), np.array([60.7, 31.2]))
    by_sky = Table({"ra": sky.ra.deg, "dec": sky.dec.deg, "flux": [500.0, 800.0]})
    by_pixel = table((50.3 + YX0[1], 60.7 + YX0[0], 500.0), (120.0 + YX0[1], 31.2 + YX0[0], 800.0))
    first, second = (inject(exposure(), t).data for t in (by_sky, by_pixel))
    np.testing.assert_allclose(first, second, atol=1e-3)
    again = with_sky_positions(by_pixel, exposure())
    np.testing.assert_allclose(np.asarray(again["ra"]), sky.ra.deg, rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.asarray(again["dec"]), sky.dec.deg, rtol=0, atol=1e-10)


def test_units_are_converted():
    hundred = 100 * units.adu
    sources = QTable(
        {"x": [50.0] * units.pixel, "y": [90.0] * units.pixel, "flux": [5.0] * units.Unit(hundred)}
    )
    assert inject(exposure(), sources).data.sum() == pytest.approx(500, rel=1e-4)
    sources["flux"] = [500.0] * units.Jy
    with pytest.raises(ArgumentError, match=r"column flux must hold numbers in adu; it is .* Jy"):
        inject(exposure(), sources)


def test_noise_is_what_a_matched_filter_measures(rng):
    before = exposure(variance=100.0)
    before.variance[:, 100:] = 400.0
    for column in (40, 97, 160):
        x, y = float(column), 75.0
        stamp = MODEL.image(x, y)
        half = len(stamp) // 2
        box = (slice(75 - half, 76 + half), slice(column - half, column + half + 1))
        sigma = np.sqrt(before.variance[box])
        n = 4000
        noise = rng.normal(size=(n, *stamp.shape)) * sigma
        fluxes = np.einsum("nij,ij->n", noise, stamp) / (stamp**2).sum()
        expected = point_source_noise(before, np.array([x + YX0[1]]), np.array([y + YX0[0]]))
        assert fluxes.std() == pytest.approx(expected[0], rel=4 / np.sqrt(2 * n) + 1e-3)


def test_random_sources_are_apart_and_on_good_pixels(rng):
    mask = {name: np.zeros(SHAPE, bool) for name in ("BAD", "SAT", masks.CONTAMINATED)}
    mask["BAD"][:, 70] = True
    mask["SAT"][100:120, 120:140] = True
    mask[masks.CONTAMINATED][:15] = True
    before = exposure(mask=mask)
    sources = random_sources(before, 60, signal_to_noise=(4.0, 9.0), rng=rng, separation=9.0)
    x, y = sources["x"].value - YX0[1], sources["y"].value - YX0[0]
    apart = np.hypot(x[:, None] - x, y[:, None] - y) + 1e3 * np.eye(60)
    assert apart.min() >= 9
    usable = injectable_pixels(before)
    assert usable[np.rint(y).astype(int), np.rint(x).astype(int)].all()
    bad = mask["BAD"] | mask["SAT"] | mask[masks.CONTAMINATED]
    rows, columns = np.nonzero(bad)
    # Two widths of the PSF along an axis, less half a pixel.
    distance = np.maximum(np.abs(x[:, None] - columns), np.abs(y[:, None] - rows)).min()
    assert distance > 2 * 1.9 - 0.5
    ratio = sources["flux"].value / point_source_noise(
        before, sources["x"].value, sources["y"].value
    )
    np.testing.assert_allclose(ratio, sources["signal_to_noise"], rtol=1e-6)
    assert ratio.min() >= 4
    assert ratio.max() <= 9
    assert sources["flux"].unit == units.adu


def test_positions_are_uniform_over_pixels_and_within_them(rng):
    usable = np.zeros((40, 60), bool)
    usable[5:20, 10:50] = True
    x, y = random_positions(usable, 4000, separation=0.0, rng=rng)
    counts, *_ = np.histogram2d(y, x, bins=(3, 8), range=((4.5, 19.5), (9.5, 49.5)))
    assert counts.sum() == 4000
    expected = 4000 / counts.size
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi2 - (counts.size - 1)) < 4 * np.sqrt(2 * (counts.size - 1))
    for fraction in (x % 1, y % 1):
        assert abs(fraction.mean() - 0.5) < 4 / np.sqrt(12 * 4000)
        assert fraction.std() == pytest.approx(np.sqrt(1 / 12), rel=0.05)


def test_a_psf_is_measured_from_the_image_alone():
    simulation = simulate(
        SimulationOptions(shape=(600, 600), stars=60, galaxies=0, transients=0, seed=5,
                          ellipticity=(0.1, -0.07))
    )  # fmt: skip
    image = Exposure.from_arrays(
        simulation.science.image, variance=simulation.science.variance, mask=simulation.science.mask
    )
    measured = with_own_psf(image)
    assert image.psf is None
    found = measured.psf.at(x=300.0, y=300.0)
    truth = simulation.science.psf.stamp(300, 300, size=len(found))
    assert np.abs(found - truth).max() < 0.02 * truth.max()


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (table((300.0, 90.0, 5.0)), r"1 of 1 positions are outside the image \(x from -7 to"),
        (table((20.0, 90.0, 5.0), (20.0, np.nan, 5.0)), "row 2 with x = 20, y = nan"),
        (table((20.0, 90.0, np.nan)), "must be finite; row 1"),
        (Table({"x": [1.0], "flux": [2.0]}), "x and y, or ra and dec; this table has x, flux"),
        (Table({"x": [20.0], "y": [90.0]}), "needs a column flux"),
        (Table({"x": ["a"], "y": ["b"], "flux": [1.0]}), "column x must hold numbers"),
        (Table({"ra": [np.nan], "dec": [0.0], "flux": [1.0]}), "row 1 with x = nan, y = nan"),
    ],
)  # fmt: skip
def test_wrong_sources_are_refused(sources, message):
    with pytest.raises(ArgumentError, match=message):
        inject(exposure(), sources)


def test_wrong_arguments_are_refused(rng):
    with pytest.raises(ArgumentError, match="has no PSF"):
        inject(exposure(psf=False), table((20.0, 90.0, 5.0)))
    with pytest.raises(ArgumentError, match="gain must be a positive number; got 0"):
        inject(exposure(), table((20.0, 90.0, 5.0)), gain=0.0)
    with pytest.raises(ArgumentError, match="negative flux"):
        inject(exposure(), table((20.0, 90.0, -5.0)), gain=2.0)
    sky = Exposure.from_arrays(np.zeros(SHAPE), variance=1.0, psf=MODEL.image(0, 0))
    with pytest.raises(ArgumentError, match="has no WCS, so ra and dec lead nowhere"):
        inject(sky, Table({"ra": [1.0], "dec": [0.0], "flux": [1.0]}))
    common = {"rng": rng, "signal_to_noise": (5.0, 9.0)}
    with pytest.raises(ArgumentError, match=r"Only \d+ of 500 positions .* ask for fewer"):
        random_sources(exposure(), 500, **common)
    for wrong in ({"signal_to_noise": (9.0, 5.0)}, {"separation": -1.0}, {"number": 0}):
        with pytest.raises(ArgumentError):
            random_sources(exposure(), **{"number": 3} | common | wrong)


@pytest.fixture(scope="module")
def science(tmp_path_factory):
    path = tmp_path_factory.mktemp("injection") / "science.fits"
    noise = np.random.default_rng(3).normal(0, 10, SHAPE).astype(np.float32)
    write_exposure(exposure(noise), path)
    return path


def test_command_with_random_sources(run, science, tmp_path):
    output, truth = tmp_path / "injected.fits", tmp_path / "truth.ecsv"
    code, _, messages = run(
        "inject", science, "--output", output, "--random", 12, "--signal-to-noise", 20, 40,
        "--seed", 5, "--truth", truth,
    )  # fmt: skip
    assert code == 0, messages
    assert "12 sources" in messages
    sources = QTable.read(truth)
    assert {"id", "x", "y", "ra", "dec", "flux", "signal_to_noise"} <= set(sources.colnames)
    before, after = read_exposure(science), read_exposure(output)
    added = after.data.astype(float) - before.data
    assert added.sum() == pytest.approx(sources["flux"].value.sum(), rel=1e-3)
    np.testing.assert_array_equal(after.mask.bits, before.mask.bits)
    np.testing.assert_array_equal(after.variance, before.variance)
    primary = fits.getheader(output)
    assert (primary["WDTASK"], primary["WDINJN"], primary["WDINJSED"]) == ("inject", 12, 5)
    again = tmp_path / "again.fits"
    assert run("inject", science, "--output", again, "--sources", truth)[0] == 0
    np.testing.assert_array_equal(fits.getdata(again, "IMAGE"), fits.getdata(output, "IMAGE"))
    noisy = tmp_path / "noisy.fits"
    code, _, messages = run(
        "inject", science, "--output", noisy, "--sources", truth, "--photon-noise"
    )
    assert code == 0
    assert "2.5 electrons per count" in messages
    more = read_exposure(noisy).variance - before.variance
    assert more.sum() == pytest.approx(sources["flux"].value.sum() / 2.5, rel=1e-3)


def test_command_with_the_noise_of_a_difference(run, science, tmp_path):
    difference = tmp_path / "difference.fits"
    write_exposure(exposure(variance=400.0), difference)
    fluxes = []
    for more in ((), ("--difference", difference)):
        truth = tmp_path / f"truth{len(more)}.ecsv"
        code, _, messages = run(
            "inject", science, "--output", tmp_path / "out.fits", "--random", 5, "--overwrite",
            "--signal-to-noise", 10, 10, "--truth", truth, *more,
        )  # fmt: skip
        assert code == 0, messages
        fluxes.append(QTable.read(truth)["flux"].value)
    np.testing.assert_allclose(fluxes[1], 2 * fluxes[0], rtol=1e-5)


def test_command_refuses_wrong_input(run, science, tmp_path):
    output = tmp_path / "out.fits"

    def refused(*arguments, code=1) -> str:
        found, _, messages = run("inject", science, "--output", output, *arguments)
        assert found == code, messages
        assert not output.exists()
        assert "Traceback" not in messages
        return messages.strip().splitlines()[-1]

    outside = tmp_path / "outside.ecsv"
    table((1e4, 90.0, 5.0)).write(outside)
    text = refused("--sources", outside)
    assert text.startswith(f"whitediff: {outside}: {science}: 1 of 1 positions are outside")
    assert "either --sources or --random" in refused(code=2)
    assert "either --sources or --random" in refused("--random", 2, "--sources", outside, code=2)
    assert "--signal-to-noise: only has a meaning with --random" in refused(
        "--sources", outside, "--signal-to-noise", 3, 9, code=2
    )
    assert "ask for fewer" in refused("--random", 5000)
    assert "got 9 to 5" in refused("--random", 2, "--signal-to-noise", 9, 5)
    assert "nowhere.ecsv" in refused("--sources", tmp_path / "nowhere.ecsv")
    assert "positive number of electrons" in refused(
        "--random", 2, "--photon-noise", "--science-gain", -1
    )
    assert "two outputs" in refused("--random", 2, "--truth", output)
    bare = tmp_path / "bare.fits"
    fits.writeto(bare, np.random.default_rng(1).normal(0, 1, SHAPE).astype(np.float32))
    code, _, messages = run("inject", bare, "--output", output, "--random", 2)
    assert code == 1
    assert "--science-psf" in messages
    assert not output.exists()
