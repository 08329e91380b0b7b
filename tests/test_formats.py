"""Files: every layout in, one layout out.

Claims: planes are found by their names and converted to variance; headers and WCS cards come
through verbatim and the archive's projection agrees with them; outputs open with astropy and,
without whitediff; nothing half-written stays; damaged files are told apart.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import astropy.wcs
import numpy as np
import pytest
from astropy.io import fits
from lsst.images.psfs import GaussianPointSpreadFunction
from lsst.images.serialization import write_archive

from scenes import gaussian, moffat_kernel
from whitediff import Exposure
from whitediff.errors import FileFormatError, OutputExistsError
from whitediff.exposures import kernels, masks
from whitediff.exposures.boxes import Box
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.exposures.sky import disagreement
from whitediff.formats import VarianceSource, read_exposure, read_kernel, read_psf, write_exposure
from whitediff.formats.archive.convert import lsst_box, lsst_kernel, lsst_psf, masked_image
from whitediff.reading import ReadingOptions

SHAPE = (60, 70)


def tpv_header() -> fits.Header:
    """A DECam-like header: PV distortions, long and odd cards."""
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TPV", "DEC--TPV"
    header["CRVAL1"], header["CRVAL2"] = 316.8366457274, -65.96615744051
    header["CRPIX1"], header["CRPIX2"] = -581.2001, 3954.667
    header["CD1_1"], header["CD1_2"] = -4.277769182710e-07, 7.288176943228e-05
    header["CD2_1"], header["CD2_2"] = -7.285243193483e-05, -4.178363776447e-07
    header["CUNIT1"] = header["CUNIT2"] = "deg"
    pv = {
        1: [-2.198e-3, 1.0096547, -3.758e-4, 0.0, -7.676e-3, 8.225e-4, -1.572e-3, 1.267e-3],
        2: [2.6086e-4, 1.0062076, -2.900e-4, 0.0, -1.053e-3, -2.504e-3, 4.978e-4, -6.291e-3],
    }
    for axis, values in pv.items():
        for i, value in enumerate(values):
            header[f"PV{axis}_{i}"] = value
    header["BUNIT"] = "adu"
    header["DETSEC"] = ("[14341:16380,20485:24572]", "location on the focal plane")
    header["HIERARCH ESO DET WIN1 BINX"] = 1
    header["NOTE"] = "a value so long that it needs a second card " * 4
    header["HISTORY"] = "flattened"
    header["COMMENT"] = "two"
    header["COMMENT"] = "comments"
    return header


def sip_header() -> fits.Header:
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    header["CRVAL1"], header["CRVAL2"] = 10.0, 20.0
    header["CRPIX1"], header["CRPIX2"] = 31.0, 35.0
    header["CD1_1"], header["CD1_2"], header["CD2_1"], header["CD2_2"] = -7e-5, 1e-6, 1e-6, 7e-5
    header["A_ORDER"], header["B_ORDER"] = 2, 2
    header["A_2_0"], header["A_1_1"], header["B_0_2"] = 2e-6, -1e-6, 3e-6
    return header


def make_exposure(rng, *, header=None, origin=(0, 0), dtype=np.float32, **kwargs) -> Exposure:
    return Exposure.from_arrays(
        rng.normal(size=SHAPE).astype(dtype),
        variance=rng.uniform(1, 2, SHAPE).astype(np.float32),
        mask={"BAD": rng.random(SHAPE) > 0.9, "SAT": rng.random(SHAPE) > 0.95},
        header=header,
        origin=origin,
        **kwargs,
    )


def worst_disagreement(path, header, shape=SHAPE) -> float:
    """Pixels between the WCS of the IMAGE that was written and that of a header, by astropy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", astropy.wcs.FITSFixedWarning)
        written, given = (
            astropy.wcs.WCS(each, naxis=2) for each in (fits.getheader(path, "IMAGE"), header)
        )
    y, x = (a.ravel() for a in np.meshgrid(*(np.linspace(0, n - 1, 9) for n in shape)))
    sky = [wcs.pixel_to_world(x, y) for wcs in (written, given)]
    step = sky[1][0].separation(sky[1][1]).arcsec / (shape[1] - 1) * 8
    return float((sky[0].separation(sky[1]).arcsec / step).max())


@pytest.mark.parametrize("make_header", [tpv_header, sip_header])
@pytest.mark.parametrize("origin", [(0, 0), (-5, 1200)])
@pytest.mark.parametrize("compress", [False, True])
def test_header_and_wcs_come_through_verbatim(rng, tmp_path, make_header, origin, compress):
    header = make_header()
    path = tmp_path / "out.fits"
    exposure = make_exposure(rng, header=header, origin=origin)
    write_exposure(exposure, path, compress=compress, provenance={"WDTASK": ("test", "made by")})
    with fits.open(path) as hdus:
        hdus.verify("exception")
        written = {str(card) for card in hdus["IMAGE"].header.cards}
        for card in header.cards:
            assert str(card) in written
        assert hdus["IMAGE"].header.count("CTYPE1") == 1
        assert not any("reserves" in str(card) for card in hdus["IMAGE"].header.cards)
        assert hdus["MASK"].header["CTYPE1"] == hdus["VARIANCE"].header["CTYPE1"]
        assert hdus["MASK"].header["CTYPE1"] == header["CTYPE1"]
        assert hdus[0].header["WDTASK"] == "test"
    assert worst_disagreement(path, header) < 1e-9
    again = read_exposure(path)
    assert again.origin == origin
    assert [str(c) for c in again.header.cards] == [str(c) for c in header.cards]
    for plane in ("data", "variance"):
        np.testing.assert_array_equal(getattr(again, plane), getattr(exposure, plane))
    for name in ("BAD", "SAT"):
        np.testing.assert_array_equal(again.mask.get(name), exposure.mask.get(name))
    # Written again, nothing has moved or multiplied.
    write_exposure(again, tmp_path / "again.fits", compress=compress)
    third = read_exposure(tmp_path / "again.fits")
    assert [str(c) for c in third.header.cards] == [str(c) for c in header.cards]


def test_a_part_has_its_part_of_the_background(rng, tmp_path):
    exposure = make_exposure(rng)
    exposure.background = rng.normal(size=SHAPE)
    write_exposure(exposure, tmp_path / "out.fits")
    part = Box.from_shape((20, 30), start=(10, 15))
    read = read_exposure(tmp_path / "out.fits", box=part)
    assert read.bbox == part
    np.testing.assert_array_equal(read.background, exposure.background[10:30, 15:45])


def simple_wcs(**cards) -> fits.Header:
    header = fits.Header()
    defaults = {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": -30.0,
        "CRPIX1": 60.0, "CRPIX2": 70.0, "CD1_1": -7e-5, "CD2_2": 7e-5,
    }  # fmt: skip
    header.update(defaults | cards)
    return header


@pytest.mark.parametrize(
    "cards",
    [
        {"RADESYS": "FK5", "EQUINOX": 2000.0},
        {"RADESYS": "FK5", "EQUINOX": 1975.0},
        {"RADESYS": "FK4", "EQUINOX": 1950.0},
        {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"},
        {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": -30.0, "CRVAL2": 150.0},
        {"WCSAXES": 3},
        {"WCSAXES": 3, "CTYPE3": "FREQ", "CRVAL3": 1e9, "CRPIX3": 1.0, "CD3_3": 1e6},
        {"CTYPE1B": "WAVE"},
    ],
    ids=str,
)
def test_unusual_coordinates_stay_readable_and_right(rng, tmp_path, cards):
    path = tmp_path / "out.fits"
    given = simple_wcs(**cards)
    write_exposure(make_exposure(rng, header=given, origin=(7, -3)), path)
    assert worst_disagreement(path, given) < 1e-9
    # lsst.images takes coordinates of any frame for ICRS, and knows two axes.
    theirs = masked_image(read_exposure(path))
    assert disagreement(read_exposure(path).wcs, theirs.sky_projection, theirs.bbox) < 1e-3
    header = fits.getheader(path, "IMAGE")
    for keyword, value in cards.items():
        if "3" not in keyword and not keyword.endswith("B") and keyword != "WCSAXES":
            assert header[keyword] == value


@pytest.mark.parametrize(
    "cards",
    [
        {"CTYPE1": "RA---XXX"},
        {"CTYPE2": "GLAT-TAN"},
        {"CD1_1": 0.0},
        {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "A_2_0": 1e-6},
        {"CUNIT1": "banana"},
    ],
    ids=str,
)
def test_broken_coordinates_do_no_harm(rng, tmp_path, caplog, cards):
    caplog.set_level("INFO")
    fits.writeto(tmp_path / "in.fits", rng.normal(size=SHAPE), simple_wcs(**cards))
    exposure = read_exposure(tmp_path / "in.fits", options=ReadingOptions(variance=1.0))
    assert "its WCS cannot be understood" in caplog.text
    assert exposure.wcs is None
    write_exposure(exposure, tmp_path / "out.fits")
    assert masked_image(read_exposure(tmp_path / "out.fits")).sky_projection is None
    header = fits.getheader(tmp_path / "out.fits", "IMAGE")
    for keyword, value in cards.items():
        assert header[keyword] == value


def test_an_archive_whose_header_approximates_gets_one_that_agrees(rng, tmp_path):
    exposure = make_exposure(rng, header=tpv_header(), origin=(2, 3))
    masked_image(exposure).write(str(tmp_path / "theirs.fits"))
    write_exposure(read_exposure(tmp_path / "theirs.fits"), tmp_path / "ours.fits")
    assert fits.getheader(tmp_path / "ours.fits", "IMAGE")["CTYPE1"] == "RA---TAN-SIP"
    assert worst_disagreement(tmp_path / "ours.fits", tpv_header()) < 1e-3


def test_coordinates_of_the_primary_header_are_inherited(rng, tmp_path):
    hdus = hdu_list([("SCI", rng.normal(size=SHAPE))])
    hdus[0].header.update(simple_wcs())
    hdus[0].header["WDIR"] = ("west", "not ours")
    hdus.writeto(tmp_path / "in.fits")
    exposure = read_exposure(tmp_path / "in.fits", options=ReadingOptions(variance=1.0))
    assert exposure.wcs is not None
    write_exposure(exposure, tmp_path / "out.fits")
    assert worst_disagreement(tmp_path / "out.fits", simple_wcs()) < 1e-9
    assert fits.getheader(tmp_path / "out.fits")["WDIR"] == "west"


def test_long_and_illegal_cards(rng, tmp_path, caplog):
    caplog.set_level("INFO")
    header = fits.Header()
    for i in range(30):
        header[f"LONGS{i}"] = "x" * 200
    fits.writeto(tmp_path / "in.fits", rng.normal(size=SHAPE), header)
    data = (tmp_path / "in.fits").read_bytes()
    bad = b"BAD.KEY =                    1".ljust(80)
    end = data.index(b"END".ljust(80))
    (tmp_path / "in.fits").write_bytes(data[:end] + bad + data[end : end + 80].ljust(80)
                                       + data[end + 160 :])  # fmt: skip
    exposure = read_exposure(tmp_path / "in.fits", options=ReadingOptions(variance=1.0))
    write_exposure(exposure, tmp_path / "out.fits")
    assert "cannot be stored" in caplog.text
    written = fits.getheader(tmp_path / "out.fits", "IMAGE")
    assert all(written[f"LONGS{i}"] == "x" * 200 for i in range(30))


def test_output_opens_without_whitediff(rng, tmp_path):
    path = tmp_path / "out.fits"
    exposure = make_exposure(
        rng, header=tpv_header(), origin=(3, -4), psf=gaussian(15, 2.0),
        kernel=kernels.constant_kernel(moffat_kernel(11), Box.from_shape(SHAPE, start=(3, -4))),
    )  # fmt: skip
    exposure.background = np.full(SHAPE, 7.0, dtype=np.float32)
    write_exposure(exposure, path)
    np.save(tmp_path / "image.npy", exposure.data)
    code = """if True:
        import sys, numpy as np
        sys.modules["whitediff"] = None  # whoever imports it fails
        from astropy.io import fits
        with fits.open(sys.argv[1], checksum=True) as hdus:
            hdus.verify("exception")
            assert (hdus["IMAGE"].data == np.load(sys.argv[2])).all()
            header = hdus["IMAGE"].header
            assert (header["CRVAL1A"], header["CRVAL2A"], header["CRPIX1A"]) == (-4, 3, 1)
            header = hdus["MASK"].header
            assert list(header["MSKN*"].values()) == ["BAD", "SAT"]
            assert ((hdus["MASK"].data & header["MSKM0001"]) > 0).mean() < 0.2
            names = [hdu.name for hdu in hdus]
            assert names[:4] == ["PRIMARY", "IMAGE", "MASK", "VARIANCE"], names
            assert names[-3:] == ["PSF", "KERNEL", "BACKGROUND"], names
            assert hdus["PSF"].data.shape == (15, 15) and hdus["KERNEL"].data.shape == (11, 11)
            assert (hdus["BACKGROUND"].data == 7).all()
    """
    subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "image.npy")], check=True)
    again = read_exposure(path)
    np.testing.assert_array_equal(again.background, exposure.background)
    np.testing.assert_allclose(again.kernel.at(x=0, y=5), moffat_kernel(11), rtol=1e-14)
    np.testing.assert_allclose(again.psf.at(x=0, y=5), gaussian(15, 2.0), rtol=1e-12)


def test_varying_psf_and_kernel_survive(rng, tmp_path):
    box = Box.from_shape(SHAPE, start=(3, -4))
    basis = np.stack([gaussian(11, 1.5), gaussian(11, 2.5)])
    coefficients = np.array([[1.0, 0.01, 0.0], [0.5, 0.0, 0.02]])
    kernel = kernels.polynomial_kernel(basis, coefficients, box)
    psf = KernelPointSpreadFunction(kernel, average_position=(11.0, 12.0))
    exposure = make_exposure(rng, origin=(3, -4), psf=psf, kernel=kernel)
    write_exposure(exposure, tmp_path / "out.fits")
    again = read_exposure(tmp_path / "out.fits")
    assert again.psf.average_position == (11.0, 12.0)
    for x, y in [(-4, 3), (60, 50)]:
        np.testing.assert_allclose(again.psf.at(x=x, y=y), psf.at(x=x, y=y), rtol=1e-12)
        np.testing.assert_allclose(again.kernel.at(x=x, y=y), kernel.at(x=x, y=y), rtol=1e-12)
    # The file says enough for a reader that has never heard of whitediff.
    with fits.open(tmp_path / "out.fits") as hdus:
        cube, table = hdus["KERNEL"].data, hdus["KERNEL_COEFFICIENTS"]
        u, v = (
            2 * (p - table.header[f"DOM{a}MIN"])
            / (table.header[f"DOM{a}MAX"] - table.header[f"DOM{a}MIN"]) - 1
            for p, a in ((60, "X"), (50, "Y"))
        )  # fmt: skip
        weights = [np.polynomial.chebyshev.chebval2d(v, u, c) for c in table.data]
        np.testing.assert_allclose(
            np.tensordot(weights, cube, axes=1), kernel.at(x=60, y=50), rtol=1e-12
        )


def hdu_list(image, *extensions, primary=None) -> fits.HDUList:
    first = fits.PrimaryHDU(primary)
    return fits.HDUList([first, *(fits.ImageHDU(d, name=n) for n, d in (*image, *extensions))])


@pytest.mark.parametrize(
    ("name", "to_plane"),
    [
        ("VARIANCE", lambda v: v),
        ("VAR", lambda v: v),
        ("ERR", np.sqrt),
        ("SIGMA", np.sqrt),
        ("WEIGHT", lambda v: 1 / v),
        ("IVAR", lambda v: 1 / v),
    ],
)
@pytest.mark.parametrize("layout", ["primary", "SCI", "unknown name"])
def test_variance_under_all_its_names(rng, tmp_path, name, to_plane, layout):
    image = rng.normal(size=SHAPE).astype(np.float32)
    variance = rng.uniform(1, 9, SHAPE)
    path = tmp_path / "in.fits"
    if layout == "primary":
        hdus = hdu_list([], (name, to_plane(variance)), primary=image)
    else:
        # The plane first, so that the image has to be recognised.
        hdus = hdu_list([], (name, to_plane(variance)), (layout.upper(), image))
    hdus.writeto(path)
    exposure = read_exposure(path)
    np.testing.assert_array_equal(exposure.data, image)
    np.testing.assert_allclose(exposure.variance, variance, rtol=1e-6)


def test_weights_of_zero_are_no_data(rng, tmp_path):
    weight = np.ones(SHAPE)
    weight[3, 4] = 0
    hdu_list([], ("WHT", weight), primary=np.zeros(SHAPE)).writeto(tmp_path / "in.fits")
    exposure = read_exposure(tmp_path / "in.fits")
    assert exposure.variance[3, 4] == np.inf
    assert exposure.mask.get("NO_DATA")[3, 4]
    assert exposure.mask.get("NO_DATA").sum() == 1


@pytest.mark.parametrize("name", ["VARIANCE", "ERR"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_pixels_without_a_variance_are_no_data(tmp_path, name, value):
    plane = np.ones(SHAPE)
    plane[3, 4] = value
    hdu_list([], (name, plane), primary=np.zeros(SHAPE)).writeto(tmp_path / "in.fits")
    mask = read_exposure(tmp_path / "in.fits").mask
    assert mask.get("NO_DATA")[3, 4]
    assert mask.get("NO_DATA").sum() == 1
    plane[:] = value
    hdu_list([], (name, plane), primary=np.zeros(SHAPE)).writeto(tmp_path / "none.fits")
    mask = read_exposure(tmp_path / "none.fits").mask
    assert "NO_DATA" not in mask.names or not mask.get("NO_DATA").any()


def test_variance_from_another_file_or_a_number(rng, tmp_path):
    fits.writeto(tmp_path / "in.fits", rng.normal(size=SHAPE))
    variance = rng.uniform(1, 9, SHAPE)
    fits.writeto(tmp_path / "sigma.fits", np.sqrt(variance))
    hdu_list([], ("ERR", np.sqrt(variance))).writeto(tmp_path / "named.fits")
    for text in ("sigma:{}/sigma.fits", "{}/named.fits", "{}/named.fits[ERR]"):
        source = VarianceSource.parse(text.format(tmp_path))
        exposure = read_exposure(tmp_path / "in.fits", options=ReadingOptions(variance=source))
        np.testing.assert_allclose(exposure.variance, variance, rtol=1e-6)
    assert (
        read_exposure(tmp_path / "in.fits", options=ReadingOptions(variance=4.0)).variance == 4
    ).all()
    fits.writeto(tmp_path / "small.fits", variance[:30])
    with pytest.raises(FileFormatError, match=r"small.fits.*\(60, 70\).*\(30, 70\)"):
        read_exposure(
            tmp_path / "in.fits",
            options=ReadingOptions(variance=VarianceSource(f"{tmp_path}/small.fits")),
        )


def test_extensions_by_name_and_number(rng, tmp_path):
    images = rng.normal(size=(3, *SHAPE))
    path = tmp_path / "in.fits"
    hdu_list([("N1", images[0]), ("N2", images[1]), ("N3", images[2])]).writeto(path)
    for extension, expected in (("N2", 1), ("n3", 2), ("1", 0)):
        exposure = read_exposure(f"{path}[{extension}]", options=ReadingOptions(variance=1.0))
        np.testing.assert_array_equal(exposure.data, images[expected])
    with pytest.raises(FileFormatError, match=r"no extension 'N4'; it has: PRIMARY, N1, N2, N3"):
        read_exposure(f"{path}[N4]")
    hdus = hdu_list([("SCI", images[0]), ("SCI", images[1])])
    hdus[2].ver = 2
    hdus.writeto(tmp_path / "twice.fits")
    exposure = read_exposure(f"{tmp_path}/twice.fits[SCI,2]", options=ReadingOptions(variance=1.0))
    np.testing.assert_array_equal(exposure.data, images[1])


@pytest.mark.parametrize("name", ["MASK", "DQ"])
def test_masks_with_and_without_names(rng, tmp_path, name):
    bits = np.zeros(SHAPE, dtype=np.int32)
    bits[1, 1], bits[2, 2], bits[3, 3] = 1, 1 << 5, 1 << 9
    hdus = hdu_list([], (name, bits), ("VARIANCE", np.ones(SHAPE)), primary=np.zeros(SHAPE))
    hdus.writeto(tmp_path / "unnamed.fits")
    mask = read_exposure(tmp_path / "unnamed.fits").mask
    assert list(mask.names) == ["BIT0", "BIT5", "BIT9", "BAD"]
    assert mask.get("BIT9")[3, 3]
    assert mask.get("BAD").sum() == 3
    hdus[name].header["MP_SAT"], hdus[name].header["HIERARCH MP_DETECTED"] = 5, 9
    hdus.writeto(tmp_path / "afw.fits")
    mask = read_exposure(tmp_path / "afw.fits").mask
    assert list(mask.names) == ["SAT", "DETECTED", "BIT0"]
    np.testing.assert_array_equal(masks.flagged(mask, ["SATURATED"]), bits == 32)


def test_the_sign_of_a_mask_is_a_bit(tmp_path):
    bits = np.zeros(SHAPE, dtype=np.int32)
    bits[2, 3] = -(2**31)
    hdu_list([], ("DQ", bits), primary=np.zeros(SHAPE)).writeto(tmp_path / "in.fits")
    mask = read_exposure(tmp_path / "in.fits", options=ReadingOptions(variance=1.0)).mask
    assert list(mask.names) == ["BIT31", "BAD"]
    assert mask.get("BIT31")[2, 3]


def test_tiny_units(rng, tmp_path):
    sigma = np.full(SHAPE, 3e-26, dtype=np.float32)
    hdu_list([], ("ERR", sigma), primary=np.zeros(SHAPE)).writeto(tmp_path / "in.fits")
    variance = read_exposure(tmp_path / "in.fits").variance
    np.testing.assert_allclose(variance, 9e-52, rtol=1e-6)


def test_integers_scaling_and_compression(rng, tmp_path):
    counts = rng.integers(0, 60000, SHAPE).astype(np.uint16)
    fits.writeto(tmp_path / "uint16.fits", counts)
    exposure = read_exposure(tmp_path / "uint16.fits", options=ReadingOptions(variance=1.0))
    np.testing.assert_array_equal(exposure.data, counts)
    assert exposure.data.dtype == np.float32
    image = rng.normal(size=SHAPE).astype(np.float32)
    hdu = fits.CompImageHDU(image, name="SCI", compression_type="GZIP_2", quantize_level=0)
    hdu.header["GAIN"] = 2.0
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "packed.fits.fz")
    exposure = read_exposure(tmp_path / "packed.fits.fz", options=ReadingOptions(variance=1.0))
    np.testing.assert_array_equal(exposure.data, image)
    assert list(exposure.header) == ["GAIN"]
    fits.writeto(tmp_path / "whole.fits.gz", image)
    exposure = read_exposure(tmp_path / "whole.fits.gz", options=ReadingOptions(variance=1.0))
    np.testing.assert_array_equal(exposure.data, image)


def test_noise_of_images_without_variance(rng, tmp_path, caplog):
    caplog.set_level("INFO")
    gain, read_noise, sky = 2.0, 6.0, 500.0
    true = sky / gain + (read_noise / gain) ** 2
    shape = (300, 310)
    image = (rng.poisson(sky * gain, shape) + rng.normal(0, read_noise, shape)) / gain
    header = fits.Header({"GAIN": gain, "RDNOISE": read_noise})
    fits.writeto(tmp_path / "sky.fits", image, header)
    exposure = read_exposure(tmp_path / "sky.fits")
    # Smoothed noise exceeds 4 sigma somewhere in 30000 independent places; there it is a source.
    right = np.abs(exposure.variance / true - 1) < 0.01
    assert right.mean() > 0.997
    assert np.median(exposure.variance) == pytest.approx(true, rel=0.003)
    assert "from gain 2 and read noise 6" in caplog.text
    caplog.clear()
    fits.writeto(tmp_path / "no_sky.fits", image - sky, header)
    exposure = read_exposure(tmp_path / "no_sky.fits")
    assert exposure.variance.mean() == pytest.approx(true, rel=0.03)
    assert "sky was subtracted" in caplog.text
    caplog.clear()
    fits.writeto(tmp_path / "bare.fits", image - sky)
    exposure = read_exposure(tmp_path / "bare.fits")
    assert exposure.variance.mean() == pytest.approx(true, rel=0.03)
    assert "measured on" in caplog.text


@pytest.mark.parametrize("shape", [(16, 16), (4, 64), (64, 4)])
def test_rectangles_of_one_value_are_found_wherever_they_lie(rng, tmp_path, shape):
    image = rng.normal(0, 30, (213, 198)).astype(np.float32)
    for number in range(40):
        corner = [rng.integers(0, n - m + 1) for n, m in zip(image.shape, shape, strict=True)]
        if number < 4:  # at the frame's corners
            corner = [
                (n - m) * (number >> axis & 1)
                for axis, (n, m) in enumerate(zip(image.shape, shape, strict=True))
            ]
        place = tuple(slice(at, at + m) for at, m in zip(corner, shape, strict=True))
        for spoilt in (False, True):
            filled = image.copy()
            filled[place] = -2.5
            # No rectangle, but frames with next to no equal pixels are not searched.
            far = (image.shape[0] - 30 if corner[0] < 100 else 10, 10)
            filled[far[0] : far[0] + 8, far[1] : far[1] + 40] = 1.5
            expected = np.zeros(image.shape, bool)
            if spoilt:
                filled[tuple(side.start for side in place)] = 3.0
            else:
                expected[place] = True
            path = tmp_path / f"{number}{spoilt}.fits"
            fits.writeto(path, filled)
            mask = read_exposure(path, options=ReadingOptions(variance=900.0)).mask
            np.testing.assert_array_equal(masks.flagged(mask, ["NO_DATA"]), expected)


@pytest.mark.parametrize("whole", [False, True])
def test_regions_of_one_value_are_no_data(rng, tmp_path, caplog, whole):
    image = rng.normal(0, 0.6, (300, 310)) if whole else rng.normal(0, 30, (300, 310))
    image = np.rint(image) if whole else image
    true = image.var()
    image[:70] = 0
    image[:, -4:] = 0
    # The plateau of a saturated star is none of them.
    image[200:220, 100:120] = 60000
    fits.writeto(tmp_path / "filled.fits", image.astype(np.int16 if whole else np.float32))
    exposure = read_exposure(tmp_path / "filled.fits")
    expected = np.zeros(image.shape, dtype=bool)
    expected[:70] = expected[:, -4:] = True
    found = exposure.mask.get("NO_DATA")
    assert found[expected].all()
    # Rounded noise may have the same value beside it: two pixels along the edges.
    assert (found & ~expected).sum() <= (2 * (310 + 300) if whole else 0)
    assert f"{found.sum()} pixels in regions of exactly the same value, such as 0" in caplog.text
    assert exposure.variance[250, 20] == pytest.approx(true, rel=0.03)
    # A mask knows better.
    mask = fits.ImageHDU(np.zeros((300, 310), int), name="MASK")
    planes = fits.HDUList([fits.PrimaryHDU(image), mask])
    planes.writeto(tmp_path / "masked.fits")
    exposure = read_exposure(tmp_path / "masked.fits", options=ReadingOptions(variance=1.0))
    assert not masks.flagged(exposure.mask, ["NO_DATA"]).any()


def test_explicit_gain_and_read_noise_are_believed(rng, tmp_path):
    image = rng.normal(0, 30, (200, 210))
    fits.writeto(tmp_path / "in.fits", image)
    exposure = read_exposure(tmp_path / "in.fits", options=ReadingOptions(gain=2.0, read_noise=6.0))
    assert np.median(exposure.variance) == pytest.approx(9, rel=0.1)  # not 900


def test_background_of_a_plain_file(rng, tmp_path):
    background = rng.normal(100, 1, SHAPE)
    hdu_list([], ("BACKGROUND", background), primary=np.zeros(SHAPE)).writeto(tmp_path / "a.fits")
    exposure = read_exposure(tmp_path / "a.fits", options=ReadingOptions(variance=1.0))
    np.testing.assert_array_equal(exposure.background, background)
    write_exposure(exposure, tmp_path / "b.fits")
    np.testing.assert_array_equal(read_exposure(tmp_path / "b.fits").background, background)


def test_kernels_in_all_their_forms(rng, tmp_path):
    box = Box.from_shape(SHAPE)
    image = moffat_kernel(11)
    fits.writeto(tmp_path / "primary.fits", image)
    hdu_list([("KERNEL", image)]).writeto(tmp_path / "named.fits")
    write_archive(lsst_kernel(kernels.constant_kernel(image, box)), tmp_path / "archive.fits")
    exposure = make_exposure(rng, kernel=kernels.constant_kernel(image, box))
    write_exposure(exposure, tmp_path / "difference.fits")
    for name in ("primary", "named", "archive", "difference"):
        kernel = read_kernel(tmp_path / f"{name}.fits", bounds=box)
        np.testing.assert_allclose(kernel.at(x=5, y=6), image, rtol=1e-12)
    basis = rng.normal(size=(2, 7, 7)) + 0.3
    coefficients = np.array([[1.0, 0.1, 0.2], [0.5, 0.0, -0.1]])
    hdu_list([("KERNEL", basis), ("KERNEL_COEFFICIENTS", coefficients)]).writeto(
        tmp_path / "polynomial.fits"
    )
    kernel = read_kernel(tmp_path / "polynomial.fits", bounds=box)
    expected = (1 + 0.1 * 5 + 0.2 * 6) * basis[0] + (0.5 - 0.1 * 6) * basis[1]
    np.testing.assert_allclose(kernel.at(x=5, y=6), expected, rtol=1e-9)
    hdu_list([("KERNEL", basis)]).writeto(tmp_path / "incomplete.fits")
    with pytest.raises(FileFormatError, match="KERNEL_COEFFICIENTS"):
        read_kernel(tmp_path / "incomplete.fits", bounds=box)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 5)), "sums to 0"),
        (np.full((5, 5), np.nan), "25 pixels of 25 that are not finite"),
        (np.ones((99, 5)), r"\(99, 5\) is larger than the image"),
        (np.ones(7), "1 dimensions"),
    ],
)
def test_wrong_kernels(tmp_path, image, message):
    fits.writeto(tmp_path / "kernel.fits", image)
    with pytest.raises(FileFormatError, match=f"kernel.fits.*{message}"):
        read_kernel(tmp_path / "kernel.fits", bounds=Box.from_shape(SHAPE))


def test_psfs_in_all_their_forms(rng, tmp_path):
    box = Box.from_shape(SHAPE)
    fits.writeto(tmp_path / "image.fits", 7 * gaussian(21, 2.0))
    write_archive(GaussianPointSpreadFunction(2.0, lsst_box(box), 21), tmp_path / "gaussian.fits")
    ours = KernelPointSpreadFunction.from_image(gaussian(21, 2.0), box)
    write_archive(lsst_psf(ours), tmp_path / "ours.fits")
    write_exposure(make_exposure(rng, psf=gaussian(21, 2.0)), tmp_path / "exposure.fits")
    for name in ("image", "gaussian", "ours", "exposure"):
        psf = read_psf(tmp_path / f"{name}.fits", bounds=box)
        np.testing.assert_allclose(psf.at(x=5, y=6), gaussian(21, 2.0), atol=1e-12)
    fits.writeto(tmp_path / "bad.fits", -gaussian(21, 2.0))
    with pytest.raises(FileFormatError, match="positive sum"):
        read_psf(tmp_path / "bad.fits", bounds=box)


def test_images_that_are_no_psf(rng, tmp_path):
    bounds = Box.from_shape((300, 310))
    star = gaussian(31, 2.0)
    noise = rng.normal(0, 1, star.shape)
    fits.writeto(tmp_path / "psf.fits", star + noise * 1e-4)
    read_psf(tmp_path / "psf.fits", bounds=bounds)
    for i, (image, message) in enumerate(
        (
            (rng.normal(1000, 30, (300, 310)), "300 x 310 pixels, and the image 300 x 310"),
            (rng.normal(1000, 30, (160, 170)), "160 x 170 pixels, and the image 300 x 310"),
            (np.roll(star, 12, axis=1), r"peak is at \(y, x\) = \(15, 27\)"),
            (star + 0.01, "of its sum is in the inner half"),
            (star + 2e-3 * noise, "of its absolute sum is negative"),
        )
    ):
        fits.writeto(tmp_path / f"{i}.fits", image)
        with pytest.raises(FileFormatError, match=message) as caught:
            read_psf(tmp_path / f"{i}.fits", bounds=bounds)
        assert str(caught.value).startswith(str(tmp_path / f"{i}.fits"))


def test_foreign_archives(rng, tmp_path):
    exposure = make_exposure(rng, header=sip_header(), origin=(2, 3))
    masked_image(exposure).write(str(tmp_path / "masked.fits"))
    again = read_exposure(tmp_path / "masked.fits")
    assert again.origin == (2, 3)
    np.testing.assert_array_equal(again.mask.get("SAT"), exposure.mask.get("SAT"))
    kernel = kernels.constant_kernel(gaussian(5, 1.0), exposure.bbox)
    write_archive(lsst_kernel(kernel), tmp_path / "k.fits")
    read = read_kernel(tmp_path / "k.fits", bounds=exposure.bbox)
    assert isinstance(read, kernels.BasisKernel)
    with pytest.raises(FileFormatError, match=r"k\.fits"):
        read_exposure(tmp_path / "k.fits")


def damaged(tmp_path, rng):
    good = tmp_path / "good.fits"
    write_exposure(make_exposure(rng, header=tpv_header()), good)
    data = good.read_bytes()
    plain = tmp_path / "plain.fits"
    fits.writeto(plain, rng.normal(size=SHAPE))
    files = {
        "missing.fits": None,
        "empty.fits": b"",
        "text.fits": b"this is no FITS file\n" * 300,
        "half.fits": data[: len(data) // 2],
        "half_plain.fits": plain.read_bytes()[:12000],
        "header_only.fits": plain.read_bytes()[:2000],
    }
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    fits.PrimaryHDU().writeto(tmp_path / "no_image.fits")
    fits.writeto(tmp_path / "cube.fits", np.zeros((3, 4, 5)))
    table = fits.BinTableHDU.from_columns([fits.Column("a", "E", array=[1.0])], name="SCI")
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "table.fits")
    return [*files, "no_image.fits", "cube.fits", "table.fits"]


def test_damaged_files_are_one_sentence(rng, tmp_path):
    for name in damaged(tmp_path, rng):
        with pytest.raises(FileFormatError) as error:
            read_exposure(tmp_path / name, options=ReadingOptions(variance=1.0))
        message = str(error.value)
        assert name in message
        assert "\n" not in message
    with pytest.raises(FileFormatError, match="directory"):
        read_exposure(tmp_path)


def test_damaged_packed_files(rng, tmp_path):
    import gzip

    hdu_list([], ("VARIANCE", np.ones(SHAPE)), primary=rng.normal(size=SHAPE)).writeto(
        tmp_path / "in.fits"
    )
    packed = gzip.compress((tmp_path / "in.fits").read_bytes())
    (tmp_path / "good.fits.gz").write_bytes(packed)
    assert read_exposure(tmp_path / "good.fits.gz").variance.max() == 1
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 4
    for name, content in (("cut", packed[:-20]), ("flipped", bytes(flipped))):
        (tmp_path / f"{name}.fits.gz").write_bytes(content)
        with pytest.raises(FileFormatError, match=f"{name}.fits.gz.*truncated or damaged"):
            read_exposure(tmp_path / f"{name}.fits.gz")


def test_what_a_link_points_to_is_replaced(rng, tmp_path):
    (tmp_path / "real").mkdir()
    write_exposure(make_exposure(rng), tmp_path / "real" / "out.fits")
    before = (tmp_path / "real" / "out.fits").read_bytes()
    (tmp_path / "link.fits").symlink_to(tmp_path / "real" / "out.fits")
    write_exposure(make_exposure(rng), tmp_path / "link.fits", overwrite=True)
    assert (tmp_path / "link.fits").is_symlink()
    assert (tmp_path / "real" / "out.fits").read_bytes() != before
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="no regular file"):
        write_exposure(make_exposure(rng), tmp_path / "pipe", overwrite=True)
    with pytest.raises(FileFormatError, match=r"not packed by their name"):
        write_exposure(make_exposure(rng), tmp_path / "out.fits.gz")


def test_nothing_is_overwritten_or_left_behind(rng, tmp_path, monkeypatch):
    path = tmp_path / "out.fits"
    exposure = make_exposure(rng)
    write_exposure(exposure, path)
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match=r"out\.fits.*exists"):
        write_exposure(exposure, path)

    def interrupted(hdus, half, **options):
        Path(half).write_bytes(b"SIMPLE  =")
        raise KeyboardInterrupt

    monkeypatch.setattr(fits.HDUList, "writeto", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_exposure(exposure, path, overwrite=True)

    def full(hdus, half, **options):
        Path(half).write_bytes(b"SIMPLE  =")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fits.HDUList, "writeto", full)
    with pytest.raises(FileFormatError, match="No space left"):
        write_exposure(exposure, path, overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out.fits"]
    (tmp_path / "astray.fits").symlink_to(tmp_path / "nowhere" / "a.fits")
    with pytest.raises(FileFormatError, match=r"is a link into .*nowhere, which does not exist"):
        write_exposure(exposure, tmp_path / "astray.fits")
    with pytest.raises(FileFormatError, match="characters that cannot be printed"):
        write_exposure(exposure, tmp_path / "a\x1b.fits")
    with pytest.raises(FileFormatError, match="directory does not exist"):
        write_exposure(exposure, tmp_path / "nowhere" / "out.fits")
