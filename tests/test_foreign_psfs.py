"""PSFs of PSFEx and Piff.

Claims: a PSFEx model with a step of one pixel gives its own polynomials' images; one with finer
or coarser steps agrees with GalSim's reader where the PSF is well sampled; a Piff model gives
what Piff draws, at positions that count pixels from 1; both are taken by the commands; a model
that depends on more than the position, of another detector, or that contradicts itself, is
refused.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
from astropy.io import fits

from whitediff import Exposure
from whitediff.errors import FileFormatError
from whitediff.exposures.boxes import Box
from whitediff.formats import read_exposure, read_psf, write_exposure
from whitediff.formats.piff.tables import TrustedReader

BOX = Box.from_shape((300, 400))


def model_image(size, step, sigma, dx=0.0, e=0.0):
    x, y = np.meshgrid(*[(np.arange(size) - size // 2) * step] * 2)
    image = np.exp(-0.5 * (((x - dx) / (sigma * (1 + e))) ** 2 + (y / (sigma * (1 - e))) ** 2))
    return image / image.sum()


def write_psfex(path, step=1.0, size=25, **changes):
    """Degree 2: a PSF whose width, shift and ellipticity vary; the order is 1, x, x², y, xy, y²."""
    first = model_image(size, step, 2.2, 0.3, 0.1)
    others = [
        0.1 * (model_image(size, step, s, dx, e) - first)
        for s, dx, e in ((2.5, 0, 0.1), (2.2, 0.8, 0.1), (2.2, 0.3, -0.1), (2, 0.3, 0), (2.4, 0, 0))
    ]
    planes = np.stack([first, *others]).astype(np.float32)
    column = fits.Column(
        "PSF_MASK", f"{planes.size}E", dim=f"({size},{size},6)", array=planes[None]
    )
    table = fits.BinTableHDU.from_columns([column], name="PSF_DATA")
    cards = {
        "LOADED": 100, "POLNAXIS": 2, "POLGRP1": 1, "POLNAME1": "X_IMAGE", "POLZERO1": 200.5,
        "POLSCAL1": 400.0, "POLGRP2": 1, "POLNAME2": "Y_IMAGE", "POLZERO2": 150.5,
        "POLSCAL2": 300.0, "POLNGRP": 1, "POLDEG1": 2, "PSF_FWHM": 5.0, "PSF_SAMP": step,
        "PSFNAXIS": 3, "PSFAXIS1": size, "PSFAXIS2": size, "PSFAXIS3": 6,
    }  # fmt: skip
    for card, value in (cards | changes).items():
        if value is not None:
            table.header[card] = value
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path, overwrite=True)
    return planes


def test_psfex_of_one_pixel_steps(rng, tmp_path):
    planes = write_psfex(tmp_path / "a.psf")
    psf = read_psf(tmp_path / "a.psf", bounds=BOX)
    for x, y in rng.uniform((0, 0), (399, 299), (10, 2)):
        # FITS counts from 1.
        u, v = (x + 1 - 200.5) / 400, (y + 1 - 150.5) / 300
        wanted = np.tensordot([1, u, u**2, v, u * v, v**2], planes.astype(float), axes=1)
        np.testing.assert_allclose(psf.at(x=x, y=y), wanted / wanted.sum(), atol=1e-9)


@pytest.mark.parametrize("step", [0.45, 1.3])
def test_psfex_like_galsim(rng, tmp_path, step):
    galsim_des = pytest.importorskip("galsim.des")
    import galsim

    write_psfex(tmp_path / "a.psf", step=step, size=45)
    theirs = galsim_des.DES_PSFEx(str(tmp_path / "a.psf"))
    psf = read_psf(tmp_path / "a.psf", bounds=BOX)
    for x, y in rng.uniform((0, 0), (399, 299), (4, 2)):
        ours = psf.at(x=x, y=y)
        samples = galsim.Image(theirs.getPSFArray(galsim.PositionD(x + 1, y + 1)))
        # PSFEx' own interpolation; that of GalSim's reader has 3 lobes.
        profile = galsim.InterpolatedImage(samples, scale=step, x_interpolant=galsim.Lanczos(4))
        drawn = profile.drawImage(nx=ours.shape[1], ny=ours.shape[0], scale=1, method="no_pixel")
        # GalSim looks the weights up in a table.
        np.testing.assert_allclose(ours, drawn.array / drawn.array.sum(), atol=1e-5 * ours.max())


def test_psfex_of_several_detectors(tmp_path):
    write_psfex(tmp_path / "a.psf")
    write_psfex(tmp_path / "b.psf", POLZERO1=100.5)
    with fits.open(tmp_path / "a.psf") as one, fits.open(tmp_path / "b.psf") as two:
        fits.HDUList([fits.PrimaryHDU(), one[1].copy(), two[1].copy()]).writeto(tmp_path / "c.psf")
    with pytest.raises(FileFormatError, match=r"PSFs of 2 detectors; name one, as in c.psf\[1\]"):
        read_psf(tmp_path / "c.psf", bounds=BOX)
    for name, number in (("a", 1), ("b", 2)):
        wanted = read_psf(tmp_path / f"{name}.psf", bounds=BOX).at(x=9, y=8)
        found = read_psf(f"{tmp_path}/c.psf[{number}]", bounds=BOX)
        np.testing.assert_array_equal(found.at(x=9, y=8), wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"POLNAME2": "AIRMASS"}, "depends on AIRMASS"),
        ({"POLNGRP": 2}, "2 groups"),
        ({"POLDEG1": 3}, "6 images for 10 terms"),
        ({"POLDEG1": "two"}, "POLDEG1 must be a whole number; got 'two'"),
        ({"PSF_SAMP": 0.0}, "PSF_SAMP = 0 is no step"),
        ({"PSF_SAMP": None}, "PSF_SAMP must be a number; got None"),
        ({"PSFAXIS1": 24}, "the header says 25 x 24"),
        ({"POLSCAL1": 0.0}, "POLSCAL1 is 0"),
        ({"POLSCAL1": 2e-3}, "Is it the PSF of this image"),
    ],
)
def test_contradictions_are_refused(tmp_path, changes, message):
    write_psfex(tmp_path / "a.psf", **changes)
    with pytest.raises(FileFormatError, match=message) as error:
        read_psf(tmp_path / "a.psf", bounds=BOX)
    assert "a.psf" in str(error.value)


@pytest.fixture(scope="module")
def piff_file(tmp_path_factory):
    rng, tmp_path = np.random.default_rng(20260802), tmp_path_factory.mktemp("piff")
    piff = pytest.importorskip("piff")
    galsim = pytest.importorskip("galsim")
    model, interpolation = piff.GSObjectModel(galsim.Gaussian(sigma=0.4)), piff.Polynomial(order=2)
    stars = []
    for x, y in rng.uniform((10, 10), (390, 290), (20, 2)):
        target = piff.Star.makeTarget(x=x, y=y, stamp_size=25, wcs=galsim.PixelScale(0.2))
        u, v = (x - 200) / 200, (y - 150) / 150
        params = np.array([0.42 + 0.03 * u - 0.02 * v * v, 0.05 * v, -0.04 * u])
        fit = piff.StarFit(params=params, flux=1e4, center=(0, 0))
        stars.append(model.draw(piff.Star(target.data, fit)))
    psf = piff.SimplePSF(model, interpolation)
    psf.fit(stars, {7: galsim.PixelScale(0.2)}, None, logger=logging.getLogger("quiet"))
    psf.write(str(tmp_path / "model.piff"))
    return psf, tmp_path / "model.piff"


def test_piff_draws_it(rng, piff_file):
    model, path = piff_file
    psf = read_psf(path, bounds=BOX)
    for x, y in rng.uniform((0, 0), (399, 299), (6, 2)):
        drawn = model.draw(x=x + 1, y=y + 1, chipnum=7, stamp_size=25, center=True).array
        wanted = drawn / drawn.sum()
        np.testing.assert_allclose(psf.at(x=x, y=y), wanted, atol=2e-4 * wanted.max())
    with pytest.raises(FileFormatError, match="PSFs of the detectors 7; name one"):
        read_psf(f"{path}[3]", bounds=BOX)


def test_models_that_depend_on_the_wavelength(piff_file, tmp_path):
    _, path = piff_file
    with fits.open(path) as hdus:
        band = fits.BinTableHDU.from_columns(
            [fits.Column("bandpass_nchunks", "J", array=[1])], name="psf_bandpass"
        )
        fits.HDUList([*hdus, band]).writeto(tmp_path / "band.piff")
    with fits.open(tmp_path / "band.piff") as hdus:
        reader = TrustedReader(hdus, tmp_path / "band.piff")
        assert reader.read_bandpass("bandpass") is None
        with (
            reader.nested("psf") as of_psf,
            pytest.raises(
                FileFormatError, match=r"band\.piff: its PSF depends on the wavelength; only models"
            ),
        ):
            of_psf.read_bandpass("bandpass")


def test_piff_that_is_missing(piff_file, monkeypatch):
    import importlib

    _, path = piff_file
    imported = importlib.import_module

    def without(name, *args):
        if name == "piff":
            raise ImportError(name)
        return imported(name, *args)

    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(FileFormatError, match=r"not installed; install whitediff\[piff\]"):
        read_psf(path, bounds=BOX)


def test_they_are_no_images(tmp_path):
    write_psfex(tmp_path / "a.psf")
    with pytest.raises(FileFormatError, match="is no image, but a psf: PSFEx model"):
        read_exposure(tmp_path / "a.psf")


def test_a_command_takes_them(run, rng, tmp_path):
    write_psfex(tmp_path / "a.psf")
    exposure = Exposure.from_arrays(rng.normal(size=(300, 400)).astype(np.float32), variance=1.0)
    write_exposure(exposure, tmp_path / "in.fits")
    code, _, messages = run(
        "convert", tmp_path / "in.fits", "--psf", tmp_path / "a.psf", "--output",
        tmp_path / "out.fits",
    )  # fmt: skip
    assert code == 0, messages
    found = read_exposure(tmp_path / "out.fits").psf
    wanted = read_psf(tmp_path / "a.psf", bounds=BOX)
    np.testing.assert_allclose(found.at(x=20, y=250), wanted.at(x=20, y=250), atol=1e-9)
