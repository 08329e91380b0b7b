"""Claims: weights that are all the same where they are not 0, or that only tell how pixels
compare, are scaled to the noise: the variance is the simulated one, of the sky within 4 % and of
bright stars within 10 %, one sentence says so, and 0 is no data; the difference is that of files
without them; inverse variances stay what they are, and planes that are something else are refused
with the remedy, which then works; an extension RMS is taken as standard deviations where the noise
agrees, and else a warning says why not."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from marks import slow_after
from test_photons import SKY, Scene, scene
from whitediff.formats import ReadingOptions, read_exposure
from whitediff.reading import VarianceSource

GAIN = 1.5


def field(found: Scene, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a kind, 0 in a corner and a column, and how the variance goes with them."""
    ny, nx = found.electrons.shape
    y, x = np.mgrid[:ny, :nx]
    weight = {
        "0 and 1": np.ones((ny, nx)),
        "0 and 255": np.full((ny, nx), 255.0),
        "flat field": 1 + 0.03 * np.cos(x / 60) + 0.005 * rng.normal(size=(ny, nx)),
        "exposures": 1.0 + (x > nx // 3) + (y > ny // 2),
        "small": 1e-12 * (1.0 + (x > nx // 3)),
    }[kind]
    spread = weight / np.median(weight) if kind in ("exposures", "small") else np.ones((ny, nx))
    weight = weight.copy()
    weight[:40, :50] = 0
    weight[:, 200] = 0
    return weight, 1 / spread


def written(path, image, weight, header, *, beside: bool) -> ReadingOptions:
    """File with an extension WEIGHT, or a file beside it; and how to read that."""
    image = image.astype(np.float32)
    weight = weight.astype(np.float32 if weight.max() != 255 else np.uint8)
    if not beside:
        hdus = [fits.PrimaryHDU(image, header), fits.ImageHDU(weight, name="WEIGHT")]
        fits.HDUList(hdus).writeto(path)
        return ReadingOptions()
    fits.writeto(path, image, header)
    other = path.with_name(f"{path.stem}.weight.fits")
    fits.writeto(other, weight)
    return ReadingOptions(variance=VarianceSource(str(other), "weight"))


@pytest.mark.parametrize("kind", ["0 and 1", "0 and 255", "flat field", "exposures", "small"])
@pytest.mark.parametrize(("seed", "size"), [(1, 320), (2, 400)])
@pytest.mark.parametrize("subtracted", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_weights_without_a_scale_get_that_of_the_noise(
    tmp_path, caplog, kind, seed, size, subtracted, beside
):
    rng = np.random.default_rng(seed)
    found = scene(seed, gain=GAIN, size=size)
    weight, times = field(found, kind, rng)
    # An average over fewer exposures: of as many electrons, with so much more variance.
    light = found.stars + GAIN * SKY
    image = light + (found.electrons - light) * np.sqrt(times)
    image = (image - subtracted * GAIN * SKY) / GAIN
    header = fits.Header({"GAIN": GAIN, "RDNOISE": 6.0, "BUNIT": "adu"})
    options = written(tmp_path / "a.fits", image, weight, header, beside=beside)
    with caplog.at_level("WARNING"):
        exposure = read_exposure(tmp_path / "a.fits", options=options)
    (record,) = caplog.records
    said = record.getMessage()
    assert ("or 0, which tells which pixels" if kind[0] == "0" else "are relative") in said
    np.testing.assert_array_equal(exposure.mask.get("NO_DATA"), weight == 0)
    valid = weight > 0
    kept = Scene(found.electrons[valid], (found.variance * times)[valid], found.stars[valid])
    sky, bright = kept.ratios(exposure.variance[valid], 1 / GAIN)
    assert sky == pytest.approx(1, abs=0.04)
    assert bright == pytest.approx(1, abs=0.1)
    ratio = exposure.variance[valid] / kept.variance * GAIN**2
    for level in np.unique(times[valid]):
        same = (times[valid] == level) & (kept.stars < 1)
        assert np.median(ratio[same]) == pytest.approx(1, abs=0.05)


def test_relative_weights_that_know_of_photons_get_none_twice(tmp_path, caplog):
    found = scene(5, gain=GAIN)
    header = fits.Header({"GAIN": GAIN, "RDNOISE": 6.0})
    weight = 4e5 / found.variance
    options = written(tmp_path / "a.fits", found.electrons / GAIN, weight, header, beside=False)
    exposure = read_exposure(tmp_path / "a.fits", options=options)
    assert "are relative" in caplog.text
    assert "photons" not in caplog.text
    np.testing.assert_allclose(exposure.variance * GAIN**2 / found.variance, 1, atol=0.03)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("gain", [None, 40.0])
def test_weights_of_coarse_counts_and_without_a_gain(tmp_path, caplog, rounded, gain):
    # Noise of half a count.
    found = scene(6, gain=40.0, fwhm=3.0)
    image = found.electrons / 40
    image = np.rint(image) if rounded else image
    weight, _ = field(found, "exposures", np.random.default_rng(6))
    weight[weight > 0] = 300.0 + weight[weight > 0] % 0.1
    weight[::2] *= 1.01
    header = fits.Header({} if gain is None else {"GAIN": gain, "RDNOISE": 6.0})
    written(tmp_path / "a.fits", image, weight, header, beside=False)
    variance = read_exposure(tmp_path / "a.fits").variance
    free = (weight > 0) & (found.stars < 1)
    truth = found.variance / 40**2 + rounded / 12
    assert np.median(variance[free] / truth[free]) == pytest.approx(1, abs=0.05)
    assert ("photons are added at" in caplog.text) == (gain is not None)
    assert ("is not added" in caplog.text) == (gain is None)


def test_true_inverse_variances_stay_what_they_are(tmp_path, caplog):
    found = scene(7)
    for name, weight in (
        ("equal", np.full(found.electrons.shape, 1 / np.median(found.variance))),
        ("each", 1 / found.variance),
        ("factor", 4 / found.variance),
    ):
        path = tmp_path / f"{name}.fits"
        written(path, found.electrons, weight, fits.Header({"BUNIT": "electron"}), beside=False)
        variance = read_exposure(path).variance
        # Those of the equal ones get the photons of sources, as faint as they are seen.
        ratio = (variance * weight)[found.stars < 0.01]
        assert np.quantile(np.abs(ratio - 1), 0.95 if name == "equal" else 1) < 0.02
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def pair(directory, seed: int, size: int = 320):
    """Two images of the same stars, of two widths, and a new one on the first."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    places, fluxes = rng.uniform(20, size - 20, (40, 2)), 10 ** rng.uniform(3.5, 5, 40)
    new = (0.4 * size, 0.6 * size, 6000.0)
    images = []
    for width, sky, more in ((1.9, 400.0, [new]), (1.5, 250.0, [])):
        image = np.full((size, size), sky)
        for (cy, cx), flux in zip(places, fluxes, strict=True):
            more = [*more, (cy, cx, flux)]
        for cy, cx, flux in more:
            image += (
                flux
                / (2 * np.pi * width**2)
                * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 2 / width**2)
            )
        images.append((rng.poisson(image * GAIN) + rng.normal(0, 5, image.shape)) / GAIN)
    header = fits.Header({"GAIN": GAIN, "RDNOISE": 5.0})
    for name, image in zip(("science", "template"), images, strict=True):
        fits.writeto(directory / f"{name}.fits", image.astype(np.float32), header)
    return images, header


@pytest.mark.parametrize("which", slow_after(1, ["both", "science", "template"]))
def test_the_difference_is_that_of_images_without_weights(run, tmp_path, which):
    images, header = pair(tmp_path, 3)
    paths = [tmp_path / "science.fits", tmp_path / "template.fits"]
    out = tmp_path / "plain.fits"
    code, _, messages = run("subtract", *paths, "--output", out)
    assert code == 0, messages
    for i, name in enumerate(("science", "template")):
        if which in (name, "both"):
            weight = np.ones(images[i].shape)
            weight[:30] = 0
            paths[i] = tmp_path / f"{name}1.fits"
            written(paths[i], images[i], weight, header, beside=False)
    code, _, messages = run("subtract", *paths, "--output", tmp_path / "weighted.fits")
    assert code == 0, messages
    assert "its weights are all 1 or 0" in messages
    plain, weighted = (read_exposure(tmp_path / f"{name}.fits") for name in ("plain", "weighted"))
    assert weighted.mask.get("NO_DATA")[:30].all()
    # No further than the kernel reaches.
    assert not weighted.mask.get("NO_DATA")[45:].any()
    for found in (plain, weighted):
        part = np.s_[80:310, 10:310]
        sigma = np.sqrt(found.variance[part])
        residual = found.data[part] / sigma
        residual = residual[~found.mask.get("SOURCE")[part]]
        assert np.std(residual[np.abs(residual) < 4]) == pytest.approx(1, abs=0.03)


def test_sources_of_a_difference_have_no_photons_added(run, tmp_path, rng):
    y, x = np.mgrid[:300, :300]
    point = np.exp(-((y - 150) ** 2 + (x - 140) ** 2) / 2 / 1.8**2)
    image = rng.normal(0, 12, x.shape) + 900 * point
    weight = np.ones(image.shape)
    weight[:20] = 0
    header = fits.Header({"GAIN": GAIN, "RDNOISE": 5.0})
    written(tmp_path / "d.fits", image, weight, header, beside=False)
    kernel = np.exp(-((y - 150) ** 2 + (x - 150) ** 2) / 2 / 1.8**2)[138:163, 138:163]
    fits.writeto(tmp_path / "psf.fits", kernel / kernel.sum())
    table = tmp_path / "d.ecsv"
    arguments = (tmp_path / "d.fits", "--psf", tmp_path / "psf.fits", "--output", table)
    code, _, messages = run("detect", *arguments)
    assert code == 0, messages
    assert "its weights are all 1 or 0" in messages
    assert "photons" not in messages
    sources = Table.read(table)
    assert len(sources) == 1
    # The error of a PSF's flux in white noise.
    error = 12 * np.sqrt(4 * np.pi) * 1.8
    assert sources["psf_flux_err"][0] == pytest.approx(error, rel=0.03)
    truth = 900 * 2 * np.pi * 1.8**2
    assert sources["psf_flux"][0] == pytest.approx(truth, abs=4 * error)


@pytest.mark.parametrize(
    ("name", "plane", "remedy"),
    [
        ("VARIANCE", lambda v: np.sqrt(v), "its square fits"),
        ("VARIANCE", lambda v: 1 / v, "its inverse fits"),
        ("IVAR", lambda v: 50 / v, "as weight:FILE"),
        ("ERR", lambda v: np.sqrt(v) / 30, "as weight:FILE"),
        ("WEIGHT", lambda v: v, "or as variance:FILE"),
        ("ERR", lambda v: v, "its square root fits, so name it as variances"),
        ("ERR", lambda v: v, "template-variance variance:FILE"),
        ("ERR", lambda v: 1 / v, "template-variance weight:FILE"),
        ("IVAR", lambda v: np.sqrt(v), "template-variance sigma:FILE"),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_planes_that_are_something_else_are_refused_with_the_remedy(
    run, tmp_path, name, plane, remedy, which
):
    images, header = pair(tmp_path, 4)
    paths = [tmp_path / "science.fits", tmp_path / "template.fits"]
    variance = np.maximum(images[which], 100) / GAIN + 11
    paths[which] = tmp_path / "other.fits"
    hdus = [
        fits.PrimaryHDU(images[which].astype(np.float32), header),
        fits.ImageHDU(plane(variance).astype(np.float32), name=name),
    ]
    fits.HDUList(hdus).writeto(paths[which])
    code, _, messages = run("subtract", *paths, "--output", tmp_path / "out.fits", "-q")
    assert code == 1
    assert len(messages.strip().splitlines()) == 1
    assert "other.fits: the noise of its source-free pixels is" in messages
    assert remedy in messages


@pytest.mark.parametrize(("size", "unit"), [(256, 1.0), (300, 0.02)])
def test_the_remedy_of_variances_in_an_error_plane_works(run, tmp_path, size, unit):
    images, header = pair(tmp_path, 5)
    del header["GAIN"]
    paths = [tmp_path / "science.fits", tmp_path / "template.fits"]
    for image, path in zip(images, paths, strict=True):
        part = image[:size, :size]
        variance = np.maximum(part, 100) / GAIN + 11
        hdus = [
            fits.PrimaryHDU(unit * part, header),
            fits.ImageHDU(unit**2 * variance, name="ERR"),
        ]
        fits.HDUList(hdus).writeto(path, overwrite=True)
    code, _, messages = run("subtract", *paths, "--output", tmp_path / "out.fits", "-q")
    assert (code, "variance:FILE[EXTENSION]" in messages) == (1, True), messages
    options = []
    for name, path in zip(("science", "template"), paths, strict=True):
        options += [f"--{name}-variance", f"variance:{path}[ERR]"]
    code, _, messages = run("subtract", *paths, *options, "--output", tmp_path / "out.fits")
    assert code == 0, messages
    assert "is something else" not in messages


@pytest.mark.parametrize("unit", [1.0, 1e-15])
@pytest.mark.parametrize("seed", [1, 2])
def test_an_extension_rms_is_taken_where_the_noise_agrees(tmp_path, caplog, seed, unit):
    rng = np.random.default_rng(seed)
    sigma = 12 * (1 + 0.2 * np.sin(np.arange(220) / 40)) * np.ones((200, 1))
    image = 300 + rng.normal(size=sigma.shape) * sigma
    expected = {
        "as it is": (sigma, True),
        "of a mean": (np.full(sigma.shape, 12.0), True),
        "of another unit": (sigma / 30, False),
        "a variance": (unit * sigma**2, False),
        "of another shape": (sigma[:50], False),
    }
    for name, (plane, is_taken) in expected.items():
        path = tmp_path / f"{name}.fits"
        hdus = [fits.PrimaryHDU(unit * image), fits.ImageHDU(unit * plane, name="RMS")]
        fits.HDUList(hdus).writeto(path)
        caplog.clear()
        variance = read_exposure(path).variance
        warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
        if is_taken:
            assert variance == pytest.approx((unit * plane) ** 2, rel=1e-5)
            assert not warnings
        else:
            # Measured, it follows the noise as far as cells of 32 pixels do.
            assert np.median(variance) == pytest.approx(unit**2 * np.median(sigma) ** 2, rel=0.15)
            assert np.abs(np.log(variance / (unit * sigma) ** 2)).max() < 0.3
            assert any("its extension RMS is not used" in text for text in warnings)
    caplog.clear()
    told = read_exposure(path, options=ReadingOptions(variance=9.0 * unit**2))
    assert told.variance == pytest.approx(9.0 * unit**2)
