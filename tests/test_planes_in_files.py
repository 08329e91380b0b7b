"""Claims: asinh-scaled images, their variance and their errors are made linear, and the outputs say
nothing of the scale; planes with further axes of length 1 are read as they are, several are refused
with a remedy."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from whitediff.errors import FileFormatError
from whitediff.formats import VarianceSource, read_exposure, write_exposure
from whitediff.formats.describe import describe
from whitediff.formats.detectors import detectors
from whitediff.reading import ReadingOptions

SHAPE = (90, 120)
MAGNITUDES = 2.5 * np.log10(np.e)
FLOAT32 = 1e-6
"""Of the scaled values, some 8 magnitudes: the linear ones are as precise as 8 times that."""


def scaled(linear: np.ndarray, softening: float, offset: float) -> tuple[np.ndarray, fits.Header]:
    """The inverse of what is tested, from the definition: v = a asinh((f - offset) / 2b)."""
    values = MAGNITUDES * np.arcsinh((linear - offset) / (2 * softening))
    return values.astype(np.float32), fits.Header({"BSOFTEN": softening, "BOFFSET": offset})


@pytest.mark.parametrize(("softening", "offset"), [(34.4, 0.0), (3.0, -120.0), (800.0, 55.5)])
@pytest.mark.parametrize("kind", ["variance", "sigma"])
def test_asinh_images_and_their_variance_are_made_linear(
    rng, tmp_path, caplog, softening, offset, kind
):
    caplog.set_level("INFO")
    image = rng.normal(30, 40, SHAPE)
    image[40:44, 50:55] += 20000
    image[10, 10] = np.nan
    noise = rng.uniform(30, 60, SHAPE)
    data, header = scaled(image, softening, offset)
    fits.writeto(tmp_path / "stack.fits", data, header)
    # The noise has cards of its own.
    data, header = scaled(noise, 2 * softening, 7.0)
    fits.writeto(tmp_path / "stack.wt.fits", data, header)
    source = VarianceSource(str(tmp_path / "stack.wt.fits"), kind)  # type: ignore[arg-type]
    exposure = read_exposure(tmp_path / "stack.fits", options=ReadingOptions(variance=source))
    precision = 10 * FLOAT32 * np.hypot(np.abs(image - offset), 2 * softening)
    known = np.isfinite(image)
    assert (np.abs(exposure.data - image)[known] < precision[known] + 1e-3).all()
    assert np.isnan(exposure.data[10, 10])
    power = 1 if kind == "variance" else 2
    np.testing.assert_allclose(exposure.variance, noise**power, rtol=1e-4)
    assert sum("made linear" in record.message for record in caplog.records) == 1
    write_exposure(exposure, tmp_path / "out.fits")
    with fits.open(tmp_path / "out.fits") as hdus:
        assert not any(card in hdu.header for hdu in hdus for card in ("BSOFTEN", "BOFFSET"))
    again = read_exposure(tmp_path / "out.fits")
    np.testing.assert_array_equal(again.data, exposure.data)


def test_noise_is_measured_on_linear_pixels(rng, tmp_path):
    image = rng.normal(10, 4, (256, 256))
    image[100:105, 100:105] += 9000
    data, header = scaled(image, 2.0, 3.0)
    fits.writeto(tmp_path / "a.fits", data, header)
    variance = read_exposure(tmp_path / "a.fits").variance
    # 65 000 pixels tell a variance to 0.9 % (of the inter-quartile range).
    assert np.median(variance) == pytest.approx(16, rel=0.03)


@pytest.mark.parametrize("cards", [{"BSOFTEN": 3.0}, {"BSOFTEN": "no", "BOFFSET": 1.0},
                                   {"BSOFTEN": 0.0, "BOFFSET": 1.0}], ids=str)  # fmt: skip
def test_half_a_scale_is_none(rng, tmp_path, cards):
    image = rng.normal(0, 1, SHAPE).astype(np.float32)
    fits.writeto(tmp_path / "a.fits", image, fits.Header(cards))
    np.testing.assert_array_equal(read_exposure(tmp_path / "a.fits").data, image)


@pytest.mark.parametrize("axes", [(1,), (1, 1)])
@pytest.mark.parametrize("place", ["primary", "extensions"])
def test_planes_with_further_axes_of_length_one_are_read(rng, tmp_path, axes, place):
    image = rng.normal(0, 2, SHAPE).astype(np.float32)
    variance = rng.uniform(1, 2, SHAPE).astype(np.float32)
    bits = rng.integers(0, 2, SHAPE).astype(np.int16)
    deep = [plane.reshape(*axes, *SHAPE) for plane in (image, variance, bits)]
    header = fits.Header({"CTYPE3": "WAVE", "CRVAL3": 5e-7, "CRPIX3": 1.0, "CDELT3": 1e-9})
    first = [fits.PrimaryHDU(deep[0], header)]
    if place == "extensions":
        first = [fits.PrimaryHDU(), fits.ImageHDU(deep[0], header, name="SCI")]
    others = [fits.ImageHDU(deep[1], name="VARIANCE"), fits.ImageHDU(deep[2], name="DQ")]
    fits.HDUList(first + others).writeto(tmp_path / "a.fits")
    exposure = read_exposure(tmp_path / "a.fits")
    np.testing.assert_array_equal(exposure.data, image)
    np.testing.assert_array_equal(exposure.variance, variance)
    np.testing.assert_array_equal(exposure.mask.get("BAD"), bits != 0)
    write_exposure(exposure, tmp_path / "out.fits")
    np.testing.assert_array_equal(read_exposure(tmp_path / "out.fits").data, image)
    assert describe(tmp_path / "a.fits")
    if place == "extensions":
        assert detectors(str(tmp_path / "a.fits")) == ["SCI"]
        source = VarianceSource(f"{tmp_path / 'a.fits'}[VARIANCE]")
        named = read_exposure(
            f"{tmp_path / 'a.fits'}[SCI]", options=ReadingOptions(variance=source)
        )
        np.testing.assert_array_equal(named.variance, variance)


@pytest.mark.parametrize("name", ["SCI", "VARIANCE", "DQ"])
def test_several_planes_are_refused_with_a_remedy(rng, tmp_path, name):
    shapes = {each: SHAPE for each in ("SCI", "VARIANCE", "DQ")} | {name: (3, *SHAPE)}
    hdus = [fits.ImageHDU(np.ones(shape, np.int16), name=each) for each, shape in shapes.items()]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "a.fits")
    with pytest.raises(FileFormatError, match=r"has 3 planes.*extract one") as raised:
        read_exposure(tmp_path / "a.fits")
    assert f"a.fits[{name}]" in str(raised.value)
