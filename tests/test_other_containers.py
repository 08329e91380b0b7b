"""Exposures and PSFs from and to the containers of other packages.

Claims: an exposure that goes to HDUs, or to CCDData, and back is the same, also when the HDUs are
written by astropy; a PSF that goes to photutils and back is the same between the positions of its
grid, of odd and even sides, elliptical, varying or not; photutils measures with it the fluxes that
are there; models of photutils with or without a grid, oversampled ones and functions of the
position measure the same as the image that they stand for; what is none of these is one sentence.
"""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, NDData, VarianceUncertainty

import whitediff
from scenes import gaussian
from whitediff.errors import ArgumentError
from whitediff.exposures import kernels, masks
from whitediff.exposures.boxes import Box
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.exposures.psf_models import from_function, from_model, to_gridded_psf_model
from whitediff.runs.inputs import read_psf

SHAPE = (90, 120)
BOX = Box.from_shape(SHAPE, start=(7, -11))


def elliptical(x, y, *, shape=(25, 25)):
    """Light of an elliptical Gaussian in each pixel, wider to the right."""
    v, u = (np.arange(n) - n // 2 for n in shape)
    width = 2.0 + 0.8 * (x - BOX.x.start) / BOX.x.size
    image = np.exp(-0.5 * ((u[None] / width) ** 2 + ((v[:, None] + 0.3 * u[None]) / 2.2) ** 2))
    return image / image.sum()


def varying_psf():
    return KernelPointSpreadFunction(kernels.interpolated_kernel(elliptical, BOX, 4))


@pytest.fixture
def exposure(rng):
    planes = {name: rng.random(SHAPE) < 0.02 for name in ("BAD", "SAT", "CR", "OWN")}
    return whitediff.Exposure(
        rng.normal(100, 5, SHAPE).astype(np.float32),
        rng.uniform(20, 30, SHAPE).astype(np.float32),
        masks.make_mask(planes, SHAPE),
        origin=BOX.start,
        psf=varying_psf(),
    )


def assert_same(one, other, *, planes=("BAD", "SAT", "CR", "OWN")):
    assert one.origin == other.origin
    for name in ("data", "variance"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype
    for plane in planes:
        np.testing.assert_array_equal(one.mask.get(plane), other.mask.get(plane))


def test_hdus_and_back(exposure, tmp_path):
    hdus = whitediff.to_hdulist(exposure)
    before = exposure.data.copy()
    hdus["IMAGE"].data[:] += 1  # copies
    np.testing.assert_array_equal(exposure.data, before)
    hdus["IMAGE"].data[:] -= 1
    for back in (whitediff.read(hdus), written_by_astropy(exposure, tmp_path / "a.fits")):
        assert_same(exposure, back)
        for x, y in ((0, 20), (100.3, 88.2)):
            np.testing.assert_allclose(
                back.psf.at(x=x, y=y), exposure.psf.at(x=x, y=y), atol=1e-12, rtol=0
            )
    whitediff.write(exposure, tmp_path / "b.fits")
    with fits.open(tmp_path / "a.fits") as first, fits.open(tmp_path / "b.fits") as second:
        assert [hdu.name for hdu in first] == [hdu.name for hdu in second]


def written_by_astropy(exposure, path):
    whitediff.to_hdulist(exposure).writeto(path)
    return whitediff.read(path)


@pytest.mark.parametrize("uncertainty", ["variance", "sigma", "weight"])
def test_ccddata_and_back(exposure, uncertainty):
    data = whitediff.to_ccddata(exposure, uncertainty=uncertainty)
    back = whitediff.read(data)
    np.testing.assert_array_equal(back.data, exposure.data)
    np.testing.assert_allclose(back.variance, exposure.variance, rtol=4e-7)
    assert back.origin == exposure.origin
    for plane in ("BAD", "SAT", "CR", "OWN"):
        np.testing.assert_array_equal(back.mask.get(plane), exposure.mask.get(plane))
    with pytest.raises(ArgumentError, match="must be variance, sigma, weight; got 'ivar'"):
        whitediff.to_ccddata(exposure, uncertainty="ivar")


@pytest.mark.parametrize(
    "unit", ["electron", "electron / s", "adu", "DN", "ct", "nJy", "mJy / beam", "1e-9 Jy", "mag"]
)
def test_any_unit_of_astropy_is_written_and_read(exposure, unit, tmp_path):
    exposure.unit = u.Unit(unit)
    whitediff.write(exposure, tmp_path / "a.fits")
    data = CCDData(exposure.data, unit=unit, uncertainty=VarianceUncertainty(exposure.variance))
    for back in (
        whitediff.read(tmp_path / "a.fits"),
        whitediff.read(whitediff.to_hdulist(exposure)),
        whitediff.read(whitediff.to_ccddata(exposure)),
        whitediff.read(data),
    ):
        assert back.unit == exposure.unit


# PSFs


def test_a_psf_to_photutils_and_back(exposure):
    model = whitediff.to_gridded_psf_model(exposure)
    back = read_psf(model, BOX)
    for x in (-10, 33.3, 70.7, 108):
        for y in (8, 44.9, 95):
            true = exposure.psf.at(x=x, y=y)
            assert np.abs(back.at(x=x, y=y) - true).max() < 1e-3 * true.max()
            assert back.at(x=x, y=y).sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("shape", [(25, 21), (31, 31)])
def test_a_constant_psf_needs_one_image(shape):
    psf = KernelPointSpreadFunction.from_image(elliptical(30, 0, shape=shape), BOX)
    model = to_gridded_psf_model(psf)
    assert len(model.data) == 1
    np.testing.assert_allclose(
        from_model(model, BOX).at(x=3, y=30), psf.at(x=3, y=30), atol=1e-6 * psf.at(x=0, y=9).max()
    )


def test_photutils_measures_true_fluxes(exposure):
    """A star between pixels, drawn by its formula; photutils has the images and its splines."""
    photutils = pytest.importorskip("photutils.psf")
    model = whitediff.to_gridded_psf_model(exposure, grid=9)
    assert isinstance(model, photutils.GriddedPSFModel)
    at_x, at_y, flux = 44.37, 51.81, 1234.5
    y, x = np.mgrid[40:65, 32:57].astype(float)
    width = 2.0 + 0.8 * (at_x - BOX.x.start) / BOX.x.size
    dx, dy = x - at_x, y - at_y
    star = np.exp(-0.5 * ((dx / width) ** 2 + ((dy + 0.3 * dx) / 2.2) ** 2))
    star *= flux / star.sum()
    model.x_0, model.y_0 = at_x, at_y
    values = model(x, y)
    assert float((values * star).sum() / (values**2).sum()) == pytest.approx(flux, rel=1e-3)


@pytest.mark.parametrize("oversampling", [1, 4])
def test_models_of_photutils(oversampling):
    photutils = pytest.importorskip("photutils.psf")
    half = 12
    n = 2 * half * oversampling + 1
    at = (np.arange(n) - n // 2) / oversampling
    image = np.exp(-0.5 * (at[None] ** 2 / 2.4**2 + (at[:, None] + 0.2 * at[None]) ** 2 / 2**2))
    coarse = image[::oversampling, ::oversampling]
    image /= coarse.sum()
    meta = {"grid_xypos": [(0, 0)], "oversampling": oversampling}
    models = [photutils.GriddedPSFModel(NDData(image[None], meta=meta))]
    models.append(photutils.ImagePSF(image, oversampling=oversampling))
    for model in models:
        for x, y in ((0, 20), (60.4, 70.6)):
            found = from_model(model, BOX).at(x=x, y=y)
            assert found.shape == (2 * half + 1,) * 2
            np.testing.assert_allclose(found, coarse / coarse.sum(), atol=2e-4 * found.max())


def test_an_analytic_model():
    photutils = pytest.importorskip("photutils.psf")
    found = from_model(photutils.GaussianPRF(flux=7.0, x_fwhm=5.0, y_fwhm=5.0), BOX).at(x=3, y=30)
    # The Gaussian of samples is the integrated one but for the width of a pixel.
    width = np.sqrt((5 / 2.3548) ** 2 + 1 / 12)
    expected = gaussian(found.shape[0], width)
    assert np.abs(found - expected).max() < 2e-3 * expected.max()


def test_functions_of_the_position():
    psf = from_function(elliptical, BOX)
    for x, y in ((-5, 11), (40.2, 33.3), (100, 90)):
        true = elliptical(x, y)
        # 1e-4 at the places that are looked at; between them polynomials may be twice as far off.
        assert np.abs(psf.at(x=x, y=y) - true).max() < 2e-4 * true.max()
    with pytest.raises(ArgumentError, match=r"must return images \(py, px\); at .* shape \(3,\)"):
        from_function(lambda x, y: np.ones(3), BOX)
    with pytest.raises(ArgumentError, match="finite with a positive sum"):
        from_function(lambda x, y: np.zeros((5, 5)), BOX)


def test_a_difference_with_a_psf_of_any_kind(rng):
    """The PSF's kind decides nothing: image, function and model give one difference."""
    pytest.importorskip("photutils.psf")
    y, x = rng.uniform(20, 180, (2, 40))
    flux = rng.uniform(5e3, 5e4, 40)
    images = []
    for width in (2.3, 1.8):
        image = rng.normal(200, 10, (200, 200))
        for at_y, at_x, each in zip(y, x, flux, strict=True):
            j, i = round(at_y), round(at_x)
            image[j - 12 : j + 13, i - 12 : i + 13] += each * gaussian(25, width)
        images.append(image.astype(np.float32))
    box = Box.from_shape((200, 200))
    stamp = gaussian(25, 2.3)
    model = to_gridded_psf_model(KernelPointSpreadFunction.from_image(stamp, box))
    results = [
        whitediff.subtract(*images, science_gain=2.0, template_gain=2.0, science_psf=psf)
        for psf in (stamp, lambda x, y: stamp, model)
    ]
    first = results[0].difference
    for result in results[1:]:
        sigma = np.sqrt(first.variance)
        assert np.nanmax(np.abs(result.difference.data - first.data) / sigma) < 1e-3
        np.testing.assert_allclose(
            result.difference.psf.at(x=100, y=100), first.psf.at(x=100, y=100), atol=1e-6
        )


@pytest.mark.parametrize("grid", [0, 2, -3])
def test_a_grid_that_cannot_be(exposure, grid):
    with pytest.raises(ArgumentError, match=f"1, or 3 and more, positions a side; got {grid}"):
        whitediff.to_gridded_psf_model(exposure, grid=grid)


def test_an_exposure_without_a_psf():
    with pytest.raises(ArgumentError, match="has no PSF"):
        whitediff.to_gridded_psf_model(
            whitediff.Exposure.from_arrays(np.ones((9, 9)), variance=1.0)
        )


def test_photutils_is_an_extra(exposure, monkeypatch):
    monkeypatch.setattr("whitediff.extras.is_installed", lambda module: False)
    with pytest.raises(ArgumentError, match=r"pip install 'whitediff\[photutils\]'"):
        whitediff.to_gridded_psf_model(exposure)
