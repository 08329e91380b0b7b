"""Claims: whatever the unit of an image, its variance plane is the simulated one, sky within 3 %
and bright stars within 10 %, or a warning says that it is not; an image tells its own gain, or
nothing; weights that are exposure times are scaled, and photons added; what BUNIT names is
understood in all spellings."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData

from whitediff.errors import ArgumentError
from whitediff.formats import ReadingOptions, read_exposure
from whitediff.formats.ccddata import from_ccddata
from whitediff.formats.units import photon_header, pixel_unit
from whitediff.noise.photons import photon_transfer
from whitediff.noise.variance_planes import noise_variance, with_left_out_photons

TIME = 100.0
SKY = 150.0
NUMBER = 16

UNITS = {
    "counts": ("adu", {}, lambda gain: 1 / gain),
    "unnamed counts": (None, {}, lambda gain: 1 / gain),
    "counts per second": ("DN/S", {"EXPTIME": TIME}, lambda gain: 1 / gain / TIME),
    "electrons": ("ELECTRONS", {}, lambda gain: 1.0),
    "electrons per second": ("e-/s", {"EXPTIME": TIME}, lambda gain: 1 / TIME),
    "unnamed electrons": (None, {}, lambda gain: 1.0),
    "unnamed counts per second": (None, {"EXPTIME": TIME}, lambda gain: 1 / gain / TIME),
    "normalised": (None, {}, lambda gain: 1 / 6e4),
    "maggies": ("maggy", {}, lambda gain: 1e-9),
    "average": ("count", {"NCOMBINE": NUMBER}, lambda gain: 1 / gain / NUMBER),
}
EXPECTED = ("counts", "unnamed counts", "counts per second", "electrons", "electrons per second")


@dataclasses.dataclass(frozen=True)
class Scene:
    """Electrons of a simulated image, their variance, and those that stars have on average."""

    electrons: np.ndarray
    variance: np.ndarray
    stars: np.ndarray

    def ratios(self, variance: np.ndarray, factor: float) -> tuple[float, float]:
        """Variance plane over the truth: of the sky, and of bright stars' middles."""
        ratio = variance / (self.variance * factor**2)
        bright = self.stars > np.quantile(self.stars, 0.995)
        return float(np.median(ratio[self.stars < 1])), float(np.median(ratio[bright]))


def scene(seed, *, gain=1.5, fwhm=4.0, size=320, read_noise=6.0, brightest=1e5) -> Scene:
    rng = np.random.default_rng(seed)
    stars = np.zeros((size, size))
    sigma = fwhm / 2.3548
    for _ in range(round(60 * (size / 320) ** 2)):
        flux = gain * 10 ** rng.uniform(2.5, np.log10(brightest))
        cy, cx = rng.uniform(0, size, 2)
        part = tuple(slice(max(0, int(c - 8 * sigma)), int(c + 8 * sigma) + 2) for c in (cy, cx))
        y, x = (np.arange(size)[each] for each in part)
        profile = np.outer(*(np.exp(-((p - c) ** 2) / 2 / sigma**2) for p, c in ((y, cy), (x, cx))))
        stars[part] += flux / (2 * np.pi * sigma**2) * profile
    mean = stars + gain * SKY
    electrons = rng.poisson(mean) + rng.normal(0, read_noise, mean.shape)
    return Scene(electrons, mean + read_noise**2, stars)


def written(path, found: Scene, unit: str, gain: float, *, subtracted: bool, **cards):
    name, more, factor = UNITS[unit]
    image = found.electrons * factor(gain)
    if subtracted:
        image = image - np.median(image)
    header = fits.Header({"GAIN": gain, "RDNOISE": 6.0} | more | cards)
    if name is not None:
        header["BUNIT"] = name
    fits.writeto(path, image.astype(np.float32), header)
    return path, factor(gain)


@pytest.mark.parametrize("subtracted", [False, True], ids=["sky", "no sky"])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("gain", "fwhm", "seed"), [(1.5, 4.0, 1), (5.0, 2.2, 2), (3.0, 5.0, 3)])
def test_the_variance_is_the_true_one_or_a_warning_says_so(
    tmp_path, caplog, unit, subtracted, gain, fwhm, seed
):
    caplog.set_level("WARNING")
    if unit == "unnamed electrons" and subtracted and fwhm < 3:
        pytest.skip("nothing in the file tells that these are no counts")
    # The exposures of an average have sky and read noise once each.
    read_noise = 6.0 * NUMBER**0.5 if unit == "average" else 6.0
    found = scene(seed, gain=gain, fwhm=fwhm, read_noise=read_noise)
    path, factor = written(tmp_path / "a.fits", found, unit, gain, subtracted=subtracted)
    sky, bright = found.ratios(read_exposure(path).variance, factor)
    # Of the sky, a percent for the sources that are too faint to see.
    assert sky == pytest.approx(1, abs=0.03)
    if unit in EXPECTED:
        assert bright == pytest.approx(1, abs=0.1)
        assert not caplog.records
    elif "no photon noise of sources is added" not in caplog.text:
        # Measured on stars alone, a gain is known to some 15 %.
        measured = "no header card explains" in caplog.text
        assert bright == pytest.approx(1, abs=0.35 if measured else 0.1)
        assert "is measured" in caplog.text
        assert "its pixels are taken for" in caplog.text


def test_a_missing_exposure_time_is_told_of_and_can_be_given(tmp_path, caplog):
    found = scene(4)
    for name, header in (("a", {}), ("b", {"EXPTIME": TIME})):
        path = tmp_path / f"{name}.fits"
        fits.writeto(
            path,
            (found.electrons / TIME).astype(np.float32),
            fits.Header({"BUNIT": "electron/s"} | header),
        )
    read_exposure(tmp_path / "b.fits")
    assert not caplog.records
    read_exposure(tmp_path / "a.fits")
    assert "no card tells the exposure time" in caplog.text
    caplog.clear()
    options = ReadingOptions(exposure_time=TIME)
    given = read_exposure(tmp_path / "a.fits", options=options)
    assert not caplog.records
    assert found.ratios(given.variance, 1 / TIME) == pytest.approx((1, 1), abs=0.03)


@pytest.mark.parametrize("subtracted", [False, True], ids=["sky", "no sky"])
@pytest.mark.parametrize(("gain", "fwhm", "seed"), [(1.5, 4.0, 1), (5.0, 2.2, 2), (3.0, 2.5, 3)])
def test_who_gives_an_exposure_time_speaks_of_units_per_second(
    tmp_path, caplog, subtracted, gain, fwhm, seed
):
    found = scene(seed, gain=gain, fwhm=fwhm)
    path, _ = written(tmp_path / "a.fits", found, "unnamed counts", gain, subtracted=subtracted)
    with fits.open(path, mode="update") as hdus:
        hdus[0].data /= TIME
    options = ReadingOptions(exposure_time=TIME)
    variance = read_exposure(path, options=options).variance
    assert found.ratios(variance, 1 / gain / TIME) == pytest.approx((1, 1), abs=0.1)
    assert not caplog.records


@pytest.mark.parametrize("keywords", [("GAIN", "RDNOISE", "EXPTIME"), ("EGAIN", "RON", "ITIME")])
def test_numbers_that_are_strings_are_read(keywords):
    texts = dict(zip(keywords, ("2.0", " 6.5 ", "3e1"), strict=True))
    found = photon_header(fits.Header(texts | {"BUNIT": "adu/s"}), fits.Header())
    assert (found.gain, found.read_noise, found.exposure_time) == (2.0, 6.5, 30.0)
    assert found.unexplained == ""
    # What is no number does not hide the next card.
    found = photon_header(
        fits.Header({"GAIN": "high", "EGAIN": 1.5, "BUNIT": "adu"}), fits.Header()
    )
    assert found.gain == 1.5


@pytest.mark.parametrize("egain", [0.25, 1.0, 4.0])
def test_a_setting_of_the_camera_is_no_gain(egain):
    header = fits.Header({"GAIN": 139, "EGAIN": egain})
    assert photon_header(header, fits.Header()).gain == egain


@pytest.mark.parametrize("gain", [0, -1, "0", "-1.0"])
def test_a_gain_that_is_not_positive_is_told_of(tmp_path, caplog, gain):
    header = fits.Header({"GAIN": gain, "BUNIT": "adu"})
    fits.writeto(tmp_path / "a.fits", scene(4).electrons.astype(np.float32), header)
    with caplog.at_level("INFO"):
        read_exposure(tmp_path / "a.fits")
    assert f"is in adu, but GAIN = {float(gain):g} is not positive" in caplog.text
    assert "no card" not in caplog.text.replace("no header card", "")


@pytest.mark.parametrize("time", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("unit", [None, "adu", "MJy/sr", "nJy"])
@pytest.mark.parametrize("fwhm", [2.2, 5.0])
def test_an_exposure_time_near_the_gain_makes_no_electrons_per_second(
    tmp_path, caplog, unit, time, fwhm
):
    found = scene(12, gain=1.5, fwhm=fwhm)
    header = fits.Header({"EXPTIME": time} | ({} if unit is None else {"BUNIT": unit}))
    fits.writeto(tmp_path / "a.fits", (found.electrons / 1.5).astype(np.float32), header)
    sky, bright = found.ratios(read_exposure(tmp_path / "a.fits").variance, 1 / 1.5)
    assert sky == pytest.approx(1, abs=0.03)
    assert "per second" not in caplog.text
    reason = {None: "has no BUNIT, and no card tells the gain"}.get(unit, f"is in {unit}, but no")
    assert f"a.fits: {reason}" in caplog.text
    if fwhm < 3:
        assert "no photon noise of sources is added" in caplog.text
    else:
        # The image tells its gain, whatever it is called.
        assert "a unit that no header card explains" in caplog.text
        assert bright == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("subtracted", [False, True])
def test_cards_that_tell_the_scale_of_a_surface_brightness_are_used(tmp_path, caplog, subtracted):
    found, factor = scene(13, fwhm=2.2), 0.4 / 1.5 / TIME
    image = (found.electrons - subtracted * np.median(found.electrons)) * factor
    header = fits.Header({"BUNIT": "MJy/sr", "PHOTMJSR": 0.4, "XPOSURE": TIME})
    fits.writeto(tmp_path / "a.fits", image.astype(np.float32), header)
    options = ReadingOptions(gain=1.5, read_noise=None if subtracted else 6.0)
    variance = read_exposure(tmp_path / "a.fits", options=options).variance
    assert found.ratios(variance, factor) == pytest.approx((1, 1), abs=0.05)
    assert "is taken" not in caplog.text
    # Another unit goes by the gain that is given for it.
    image = found.electrons * 1e-9
    fits.writeto(tmp_path / "b.fits", image.astype(np.float32), fits.Header({"BUNIT": "maggy"}))
    caplog.clear()
    read = read_exposure(tmp_path / "b.fits", options=ReadingOptions(gain=1e9, read_noise=6.0))
    assert found.ratios(read.variance, 1e-9) == pytest.approx((1, 1), abs=0.03)
    assert not caplog.records


@pytest.mark.parametrize("fwhm", [2.2, 5.0])
@pytest.mark.parametrize(
    ("change", "right"),
    [
        (lambda image: image - 150, "the sky was subtracted"),
        (lambda image: image + 400, "a level was added to the image"),
        (lambda image: image * 0.1, "the image was scaled or averaged"),
        (lambda image: image * 10, "the image was scaled or averaged"),
    ],
)
def test_the_reason_for_another_noise_is_among_those_that_are_named(
    tmp_path, caplog, fwhm, change, right
):
    caplog.set_level("INFO")
    found = scene(14, gain=1.5, fwhm=fwhm)
    image = change(found.electrons / 1.5)
    header = fits.Header({"BUNIT": "adu", "GAIN": 1.5, "RDNOISE": 6.0})
    fits.writeto(tmp_path / "a.fits", image.astype(np.float32), header)
    read_exposure(tmp_path / "a.fits")
    assert right in caplog.text
    level = "subtracted" if "added" in right else "added to the image"
    assert level not in caplog.text or right.startswith("the image was")
    if fwhm > 3 and not right.startswith("the image was"):
        # Its gain is as the header has it.
        assert "scaled" not in caplog.text


def test_a_scaled_image_with_a_stale_gain_says_both_numbers(tmp_path, caplog):
    found = scene(5, fwhm=2.2)
    image = (found.electrons / found.electrons.max()).astype(np.float32)
    fits.writeto(tmp_path / "a.fits", image, fits.Header({"GAIN": 250.0, "RDNOISE": 6.0}))
    read_exposure(tmp_path / "a.fits")
    level = float(np.median(image))
    predicted = level / 250 + (6 / 250) ** 2
    assert f"{predicted:.3g}"[:4] in caplog.text
    assert "the gain is of another unit" in caplog.text
    assert "no photon noise of sources is added" in caplog.text


@pytest.mark.parametrize("gain", [1.0, 8.0])
@pytest.mark.parametrize("fwhm", [3.5, 4.0, 6.0])
@pytest.mark.parametrize("offset", [0.0, -1000.0])
def test_an_image_tells_its_own_gain(gain, fwhm, offset):
    found = scene(6, gain=gain, fwhm=fwhm, size=400, brightest=2e5)
    image = found.electrons / gain + offset
    transfer = photon_transfer(
        image,
        np.full(image.shape, SKY + offset),
        np.ones(image.shape, bool),
        variance=float(np.median(found.variance)) / gain**2,
    )
    if transfer is not None:
        assert transfer.error < 0.25
        assert abs(np.log(transfer.gain / gain)) < 4 * transfer.error
    else:
        # Stars of so many electrons are seen in the band that has none of fainter ones.
        assert gain > 1.5
        assert fwhm < 6


@pytest.mark.parametrize("fwhm", [1.2, 1.6, 2.0, 2.5])
@pytest.mark.parametrize("seed", range(4))
def test_sharp_stars_are_not_taken_for_photon_noise(fwhm, seed):
    found = scene(seed, gain=5.0, fwhm=fwhm)
    image = found.electrons / 5
    transfer = photon_transfer(
        image, np.full(image.shape, SKY), np.ones(image.shape, bool),
        variance=float(np.median(found.variance)) / 25,
    )  # fmt: skip
    assert transfer is None


@pytest.mark.parametrize("unit", ["electron/s", "DN/s"])
@pytest.mark.parametrize("gain", [1.5, 4.0])
def test_weights_that_are_exposure_times_are_scaled_and_photons_added(tmp_path, caplog, unit, gain):
    found = scene(7, gain=gain)
    factor = 1 / TIME if unit == "electron/s" else 1 / TIME / gain
    image = found.electrons * factor
    times = np.full(image.shape, TIME, np.float32)
    times[:40, :40] = 0
    header = fits.Header({"BUNIT": unit, "GAIN": gain})
    hdus = [
        fits.PrimaryHDU(header=fits.Header({"EXPTIME": TIME})),
        fits.ImageHDU((image - np.median(image)).astype(np.float32), header, name="SCI"),
        fits.ImageHDU(times, name="WHT"),
    ]
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    exposure = read_exposure(tmp_path / "a.fits")
    assert "its weights are exposure times" in caplog.text
    valid = times > 0
    kept = Scene(found.electrons[valid], found.variance[valid], found.stars[valid])
    sky, bright = kept.ratios(exposure.variance[valid], factor)
    assert sky == pytest.approx(1, abs=0.03)
    assert bright == pytest.approx(1, abs=0.05)


def test_a_time_that_varies_over_the_image_is_followed(tmp_path):
    rng = np.random.default_rng(8)
    times = np.repeat([[100.0, 400.0]], 300, axis=0).repeat(150, axis=1)
    truth = (SKY * 0.01 * times) / times**2
    image = rng.poisson(SKY * 0.01 * times) / times - SKY * 0.01
    hdus = [
        fits.PrimaryHDU(header=fits.Header({"EXPTIME": 400.0})),
        fits.ImageHDU(image.astype(np.float32), fits.Header({"BUNIT": "ELECTRONS/S"}), name="SCI"),
        fits.ImageHDU(times.astype(np.float32), name="WHT"),
    ]
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    ratio = read_exposure(tmp_path / "a.fits").variance / truth
    assert np.median(ratio[:, :150]) == pytest.approx(1, abs=0.03)
    assert np.median(ratio[:, 150:]) == pytest.approx(1, abs=0.03)


def test_inverse_variances_stay_what_they_are(tmp_path, caplog):
    found = scene(9)
    weights = (1 / found.variance).astype(np.float32)
    header = fits.Header({"BUNIT": "electron", "EXPTIME": TIME})
    hdus = [
        fits.PrimaryHDU(),
        fits.ImageHDU(found.electrons.astype(np.float32), header, name="SCI"),
        fits.ImageHDU(weights, name="WHT"),
    ]
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    variance = read_exposure(tmp_path / "a.fits").variance
    np.testing.assert_allclose(variance, found.variance, rtol=1e-5)
    assert not caplog.records


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize("name", ["WEIGHT", "VARIANCE", "ERR"])
@pytest.mark.parametrize("dithered", [False, True])
@pytest.mark.parametrize("subtracted", [False, True])
def test_planes_that_leave_out_the_photons_of_sources_get_them(
    tmp_path, caplog, seed, factor, name, dithered, subtracted
):
    gain = 1.5
    found = scene(seed, gain=gain)
    sky = float(np.median(found.variance[found.stars < 1]))
    cover = np.ones(found.stars.shape)
    if dithered:
        cover[:, 200:] = 0.5
    # Where half of the exposures overlap, all noise has twice the variance.
    rng = np.random.default_rng(seed)
    image = found.electrons + rng.normal(0, 1, cover.shape) * np.sqrt(
        found.variance * (1 / cover - 1)
    )
    image = (image - (np.median(image) if subtracted else 0)) / gain
    plane = factor * sky / gain**2 / cover
    plane = {"WEIGHT": 1 / plane, "VARIANCE": plane, "ERR": np.sqrt(plane)}[name]
    true = found.variance / cover / gain**2
    for planes, cards, ends in (
        (plane, {"GAIN": gain}, "which is added at 1.5 electrons per unit"),
        (plane, {}, "its variance plane does not rise with its stars' light"),
    ):
        caplog.clear()
        hdus = fits.HDUList([fits.PrimaryHDU(image.astype("f4")), fits.ImageHDU(planes, name=name)])
        hdus[0].header.update(cards, BUNIT="adu")
        hdus.writeto(tmp_path / "image.fits", overwrite=True)
        with caplog.at_level("INFO"):
            exposure = read_exposure(tmp_path / "image.fits")
        assert ends in caplog.text
        ratio = exposure.variance / (factor * true)
        bright = found.stars > np.quantile(found.stars, 0.995)
        assert np.median(ratio[found.stars < 1]) == pytest.approx(1, abs=0.03)
        if cards:
            assert np.median(ratio[bright]) == pytest.approx(1, abs=0.1)
    # A plane that knows of them stays what it is.
    whole = fits.ImageHDU((1 / (factor * true)).astype("f4"), name="WEIGHT")
    header = fits.Header({"GAIN": gain, "BUNIT": "adu"})
    fits.HDUList([fits.PrimaryHDU(image.astype("f4"), header), whole]).writeto(
        tmp_path / "whole.fits"
    )
    exposure = read_exposure(tmp_path / "whole.fits")
    np.testing.assert_allclose(exposure.variance, factor * true, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ELECTRONS/S", ("electrons", True)),
        ("e-/s", ("electrons", True)),
        ("electron s-1", ("electrons", True)),
        ("electron.s**-1", ("electrons", True)),
        ("DN/S", ("counts", True)),
        ("counts/sec", ("counts", True)),
        ("ct / s", ("counts", True)),
        ("ADU", ("counts", False)),
        ("counts", ("counts", False)),
        ("e", ("electrons", False)),
        ("nJy", ("other", False)),
        ("maggy", ("other", False)),
        ("erg/s", ("other", False)),
        ("", ("unknown", False)),
    ],
)
def test_units_are_understood_in_all_spellings(text, expected):
    assert pixel_unit(text) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gain": 0.0}, "gain must be a positive number of electrons per count; got 0"),
        ({"exposure_time": -3.0}, "exposure_time must be a positive number of seconds; got -3"),
        ({"read_noise": -1.0}, "read_noise must not be a negative number of electrons; got -1"),
        ({"variance": float("inf")}, "variance must be a positive number or a file; got inf"),
        ({"read_noise": float("inf")}, "read_noise must not be an infinite .* number .*; got inf"),
        ({"saturation": float("nan")}, "saturation must be a number, far above the sky; got nan"),
        ({"saturation": float("inf")}, "saturation must be a number, far above the sky; got inf"),
        ({"saturation": -5.0}, "saturation must be a positive number, .*; got -5"),
        ({"saturation": 0.0}, "saturation must be a positive number, .*; got 0"),
    ],
)
def test_options_out_of_range_get_a_sentence(values, message):
    with pytest.raises(ArgumentError, match=message):
        ReadingOptions(**values)


@pytest.mark.parametrize("unit", ["electron", "electron / s"])
def test_the_unit_of_a_ccddata_counts(unit, caplog):
    found = scene(10)
    factor = 1.0 if unit == "electron" else 1 / TIME
    data = CCDData(found.electrons * factor, unit=unit, meta={"GAIN": 7.0, "EXPTIME": TIME})
    variance = from_ccddata(data).variance
    assert found.ratios(variance, factor) == pytest.approx((1, 1), abs=0.03)
    assert not caplog.records


def test_photons_are_drawn_at_the_gain_of_the_unit(run, tmp_path):
    found = scene(11)
    path, factor = written(tmp_path / "a.fits", found, "electrons per second", 1.5, subtracted=True)
    code, _, messages = run(
        "inject", path, "--output", tmp_path / "b.fits", "--random", 2, "--photon-noise"
    )
    assert code == 0, messages
    assert fits.getheader(tmp_path / "b.fits")["WDINJGAI"] == pytest.approx(1 / factor)


@pytest.mark.parametrize("names", [("science",), ("template",), ("science", "template")])
def test_commands_pass_their_options_on(run, tmp_path, names):
    paths = {}
    for seed, name in enumerate(("science", "template")):
        found = scene(seed + 20, size=256, fwhm=4.0 + 0.4 * seed)
        paths[name] = tmp_path / f"{name}.fits"
        image = (found.electrons / TIME).astype(np.float32)
        fits.writeto(paths[name], image, fits.Header({"BUNIT": "e/s"}))
    given = [part for name in names for part in (f"--{name}-exposure-time", TIME)]
    _, _, messages = run("subtract", *paths.values(), "--output", tmp_path / "d.fits", *given)
    for name, path in paths.items():
        said = f"{path}: is in e/s, but no card tells the exposure time" in " ".join(
            messages.split()
        )
        assert said == (name not in names)


@pytest.mark.parametrize("slope", [0.5, -0.5, 1.5, -1.5])
@pytest.mark.parametrize("has_photons", [True, False])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_gradient_has_photons_where_the_noise_says_so(slope, has_photons, seed):
    """What somebody subtracted from the sky, or a model of it left, has no noise of its own."""
    rng = np.random.default_rng(seed)
    size, sky = 384, 400.0
    x = np.arange(size) - size / 2
    gradient = np.broadcast_to(slope * x, (size, size))
    light = sky + gradient * has_photons
    image = rng.poisson(light) + rng.normal(0, 5, light.shape) - light - 300 + gradient
    image = image.astype(np.float32)
    plane = noise_variance(image, gain=1.0, read_noise=5.0).variance
    true = light + 25
    for part in (np.s_[:, : size // 4], np.s_[:, -size // 4 :]):
        assert np.median(plane[part]) == pytest.approx(float(np.median(true[part])), rel=0.05)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stars", [0, 12])
@pytest.mark.parametrize(
    ("plane", "radius"),
    # The widest leaves no sky by which a plane could be told from one of light.
    [("counts", 25.0), ("counts", 60.0), ("counts", 120.0), ("sky", 25.0), ("sky", 60.0)],
)
def test_before_a_large_galaxy_a_plane_with_photons_is_known_for_one(seed, radius, stars, plane):
    """Beside a galaxy's bright pixels there is as much light, and a plane as high."""
    rng = np.random.default_rng(seed)
    n, sky = 400, 800.0
    y, x = np.mgrid[:n, :n]
    light = 30 * sky * np.exp(-np.hypot(y - n / 2, x - n / 2) / radius)
    for at_y, at_x in rng.uniform(20, n - 20, (stars, 2)):
        light += 2e4 * np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / (2 * 1.8**2))
    counts = rng.poisson(light + sky).astype(np.float32)
    variance = counts if plane == "counts" else np.full_like(counts, sky)
    found = with_left_out_photons(counts - np.float32(sky), variance)
    if plane == "counts":
        assert found is None
    else:
        assert "does not rise" in found.description
