"""CCDData and NDData of astropy, in memory and in files.

Claims: uncertainties of all kinds become the variance, in the data's unit; masks may be boolean
or have bits; flags, PSF, WCS, unit, pixel origin and header come through both ways; astropy reads
what is written; what cannot be understood is one sentence.
"""

from __future__ import annotations

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import (
    CCDData,
    FlagCollection,
    InverseVariance,
    NDData,
    StdDevUncertainty,
    UnknownUncertainty,
    VarianceUncertainty,
)
from astropy.wcs import WCS

from scenes import gaussian, moffat_kernel
from whitediff import Exposure
from whitediff.errors import ArgumentError, DataError, FileFormatError
from whitediff.exposures import kernels
from whitediff.formats import read_exposure
from whitediff.formats.ccddata import from_ccddata, to_ccddata, write

SHAPE = (60, 70)
KINDS = {
    "variance": (VarianceUncertainty, lambda v: v),
    "sigma": (StdDevUncertainty, np.sqrt),
    "weight": (InverseVariance, lambda v: 1 / v),
}


def header() -> fits.Header:
    cards = fits.Header()
    cards["CTYPE1"], cards["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    cards["CRVAL1"], cards["CRVAL2"], cards["CRPIX1"], cards["CRPIX2"] = 10.0, 20.0, 31.0, 35.0
    cards["CD1_1"], cards["CD1_2"], cards["CD2_1"], cards["CD2_2"] = -7e-5, 1e-6, 1e-6, 7e-5
    cards["A_ORDER"], cards["B_ORDER"], cards["A_2_0"] = 2, 2, 2e-6
    cards["OBSERVER"], cards["EXPTIME"] = "nobody", 30.0
    return cards


def make(rng, **kwargs) -> Exposure:
    image = rng.normal(100, 3, SHAPE).astype(np.float32)
    return Exposure.from_arrays(
        image,
        variance=rng.uniform(4, 9, SHAPE).astype(np.float32),
        mask={"BAD": rng.random(SHAPE) > 0.95, "SAT": rng.random(SHAPE) > 0.97,
              "SOURCE": rng.random(SHAPE) > 0.9, "UNUSED": np.zeros(SHAPE, bool)},
        header=header(),
        unit=u.electron,
        psf=gaussian(21, 2.0),
        kernel=kernels.constant_kernel(moffat_kernel(11), _box(kwargs.get("origin", (0, 0)))),
        **kwargs,
    )  # fmt: skip


def _box(origin):
    from whitediff.exposures.boxes import Box

    return Box.from_shape(SHAPE, start=origin)


def same(one: Exposure, other: Exposure) -> None:
    np.testing.assert_array_equal(one.data, other.data)
    np.testing.assert_allclose(one.variance, other.variance, rtol=1e-6)
    assert list(one.mask.names) == list(other.mask.names)
    for name in one.mask.names:
        np.testing.assert_array_equal(one.mask.get(name), other.mask.get(name))
    assert one.unit == other.unit
    assert one.bbox == other.bbox
    x, y = 12.0, 50.0
    assert one.wcs.pixel_to_world(x, y).separation(other.wcs.pixel_to_world(x, y)).arcsec < 1e-6
    at = {"x": one.bbox.x.center, "y": one.bbox.y.center}
    np.testing.assert_allclose(one.psf.at(**at), other.psf.at(**at), atol=1e-9)
    assert other.header["OBSERVER"] == "nobody"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("origin", [(0, 0), (7, -3)])
def test_round_trip_in_memory(rng, kind, origin):
    exposure = make(rng, origin=origin)
    data = to_ccddata(exposure, uncertainty=kind)
    assert isinstance(data.uncertainty, KINDS[kind][0])
    np.testing.assert_array_equal(data.mask, exposure.mask.get("BAD") | exposure.mask.get("SAT"))
    same(exposure, from_ccddata(data))


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_through_a_file(rng, tmp_path, kind):
    exposure = make(rng, origin=(2, 3))
    write(exposure, tmp_path / "out.fits", uncertainty=kind)
    again = read_exposure(tmp_path / "out.fits")
    same(exposure, again)
    np.testing.assert_allclose(again.kernel.at(x=30, y=30), moffat_kernel(11), atol=1e-12)
    theirs = CCDData.read(tmp_path / "out.fits")
    assert isinstance(theirs.uncertainty, KINDS[kind][0])
    assert theirs.unit == u.electron
    np.testing.assert_array_equal(theirs.mask, exposure.mask.get("BAD") | exposure.mask.get("SAT"))
    np.testing.assert_allclose(theirs.psf, gaussian(21, 2.0), atol=1e-9)
    assert (
        theirs.wcs.pixel_to_world(5, 6).separation(exposure.wcs.pixel_to_world(5, 6)).arcsec < 1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_astropy_wrote(rng, tmp_path, kind):
    variance, image = rng.uniform(4, 9, SHAPE), rng.normal(100, 3, SHAPE)
    uncertainty, convert = KINDS[kind]
    mask = rng.random(SHAPE) > 0.9
    data = CCDData(
        image, unit="adu", uncertainty=uncertainty(convert(variance)), mask=mask,
        psf=gaussian(21, 2.0), wcs=WCS(header()),
    )  # fmt: skip
    data.write(tmp_path / "in.fits")
    exposure = read_exposure(tmp_path / "in.fits")
    np.testing.assert_allclose(exposure.variance, variance, rtol=1e-6)
    assert list(exposure.mask.names) == ["BAD"]
    np.testing.assert_array_equal(exposure.mask.get("BAD"), mask)
    np.testing.assert_allclose(exposure.psf.at(x=5, y=6), gaussian(21, 2.0), atol=1e-9)
    assert exposure.unit == u.adu
    assert exposure.wcs.pixel_to_world(5, 6).separation(data.wcs.pixel_to_world(5, 6)).arcsec < 1e-6
    in_memory = from_ccddata(data)
    np.testing.assert_allclose(in_memory.variance, variance, rtol=1e-12)
    np.testing.assert_array_equal(in_memory.mask.get("BAD"), mask)


def test_units_of_the_uncertainty_are_brought_to_the_datas(rng):
    image = rng.normal(0, 1, SHAPE)
    for uncertainty in (
        StdDevUncertainty(np.full(SHAPE, 3000.0), unit=u.mJy),
        VarianceUncertainty(np.full(SHAPE, 9e6), unit=u.mJy**2),
        InverseVariance(np.full(SHAPE, 1 / 9e6), unit=u.mJy**-2),
    ):
        exposure = from_ccddata(NDData(image, uncertainty=uncertainty, unit=u.Jy))
        np.testing.assert_allclose(exposure.variance, 9.0, rtol=1e-9)


def test_masks_with_bits(rng):
    bits = np.zeros(SHAPE, np.int32)
    bits[3, 4], bits[5, 6] = 1 << 0 | 1 << 5, 1 << 7
    data = NDData(
        rng.normal(size=SHAPE), uncertainty=VarianceUncertainty(np.ones(SHAPE)), mask=bits
    )
    unnamed = from_ccddata(data)
    assert set(unnamed.mask.names) == {"BIT0", "BIT5", "BIT7", "BAD"}
    np.testing.assert_array_equal(unnamed.mask.get("BAD"), bits != 0)
    named = from_ccddata(data, mask_planes={"SAT": 5, "CR": 7})
    assert set(named.mask.names) == {"SAT", "CR", "BIT0"}
    assert named.mask.get("SAT")[3, 4]
    assert named.mask.get("CR")[5, 6]
    data.meta["MP_SAT"] = 5
    assert from_ccddata(data).mask.get("SAT")[3, 4]
    with pytest.raises(ArgumentError, match="names no bit"):
        from_ccddata(data, mask_planes={"SAT": 99})


def test_flags(rng):
    flags = FlagCollection(shape=SHAPE)
    flags["CR"], mask = rng.random(SHAPE) > 0.9, np.zeros(SHAPE, bool)
    mask[0, 0] = True
    data = CCDData(
        rng.normal(size=SHAPE), unit="adu", uncertainty=StdDevUncertainty(np.ones(SHAPE)),
        mask=mask, flags=flags,
    )  # fmt: skip
    exposure = from_ccddata(data)
    np.testing.assert_array_equal(exposure.mask.get("CR"), flags["CR"])
    assert exposure.mask.get("BAD").sum() == int(not flags["CR"][0, 0])


def test_pixels_without_a_variance_are_no_data(rng):
    sigma = np.ones(SHAPE)
    sigma[2, 3], sigma[4, 5] = 0, np.nan
    data = CCDData(rng.normal(size=SHAPE), unit="adu", uncertainty=StdDevUncertainty(sigma))
    no_data = from_ccddata(data).mask.get("NO_DATA")
    assert no_data.sum() == 2
    assert no_data[2, 3]
    assert no_data[4, 5]


def test_without_an_uncertainty(rng):
    data = CCDData(rng.normal(0, 3, (200, 210)), unit="adu")
    measured = from_ccddata(data).variance
    assert measured.mean() == pytest.approx(9, rel=0.05)
    given = from_ccddata(data, variance=4.0).variance
    assert (given == 4).all()
    with pytest.raises(DataError):
        from_ccddata(CCDData(np.zeros((200, 210)), unit="adu"))


def test_what_cannot_be_understood(rng, tmp_path):
    image = rng.normal(size=SHAPE)
    with pytest.raises(ArgumentError, match="UnknownUncertainty, cannot be taken as a variance"):
        from_ccddata(NDData(image, uncertainty=UnknownUncertainty(np.ones(SHAPE))))
    with pytest.raises(
        ArgumentError, match=r"numbers of two axes; got float64 of the shape \(3,\)"
    ):
        from_ccddata(NDData(np.zeros(3)))
    wrong = VarianceUncertainty(np.ones((3, 4)))
    with pytest.raises(ArgumentError, match="but its uncertainty"):
        from_ccddata(NDData(image, uncertainty=wrong))
    with pytest.raises(ArgumentError, match="uncertainty must be variance, sigma, weight"):
        to_ccddata(make(rng), uncertainty="error")
    write(make(rng), tmp_path / "out.fits")
    fits.setval(tmp_path / "out.fits", "UTYPE", value="UnknownUncertainty", extname="UNCERT")
    with pytest.raises(FileFormatError, match="UTYPE is 'UnknownUncertainty'"):
        read_exposure(tmp_path / "out.fits")
