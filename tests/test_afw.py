"""Exposures of lsst.afw, and objects of lsst.images.

Claims: a multi-extension file as lsst.afw writes it is read without it, compressed or not, with
every mask plane under its own name (set or not), origin and WCS, as lsst.images' own reader has
it; its PSF comes from another file.  VisitImage and DifferenceImage are written and read back
with PSF and kernel; where lsst.images does not know the Piff that is installed, this is said.
"""

from __future__ import annotations

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from lsst.images import DifferenceImage, MaskedImage, VisitImage

from marks import needs_piff
from scenes import gaussian, moffat_kernel
from test_lsst_archives import BOX, archives  # noqa: F401
from whitediff import Exposure
from whitediff.errors import ArgumentError, FileFormatError
from whitediff.exposures import kernels
from whitediff.exposures.foreign import box_of
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.formats import read_exposure
from whitediff.formats.archive.objects import as_object, write_object

SHAPE, X0, Y0 = (50, 60), 300, 40
PLANES = {
    "BAD": 0, "SAT": 1, "INTRP": 2, "CR": 3, "EDGE": 4, "DETECTED": 5, "DETECTED_NEGATIVE": 6,
    "SUSPECT": 7, "NO_DATA": 8, "CROSSTALK": 9, "STREAK": 10, "UNMASKEDNAN": 11, "MY_OWN": 12,
}  # fmt: skip


def afw_file(rng, path, *, compressed=False):
    """Header by header what lsst.afw writes, its archive as a stub."""
    image = rng.normal(100, 3, SHAPE).astype(np.float32)
    variance = rng.uniform(4, 9, SHAPE).astype(np.float32)
    # All planes but two are set somewhere.
    mask = np.zeros(SHAPE, np.int32)
    for name, bit in PLANES.items():
        if name not in ("CROSSTALK", "MY_OWN"):
            mask[2 + bit, 5:9] |= 1 << bit
    origin = {
        "CTYPE1A": "LINEAR", "CTYPE2A": "LINEAR", "CRPIX1A": 1.0, "CRPIX2A": 1.0,
        "CRVAL1A": float(X0), "CRVAL2A": float(Y0), "CUNIT1A": "PIXEL", "CUNIT2A": "PIXEL",
        "LTV1": -X0, "LTV2": -Y0,
    }  # fmt: skip
    sky = {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0,
        "CRPIX1": 25.0, "CRPIX2": 20.0, "CD1_1": -5e-5, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 5e-5,
    }  # fmt: skip
    primary = fits.PrimaryHDU()
    primary.header["HIERARCH EXPINFO_V"], primary.header["AR_HDU"] = 2, 5
    hdus = [primary]
    for name, data in (("IMAGE", image), ("MASK", mask), ("VARIANCE", variance)):
        header = fits.Header(origin | sky | {"EXTTYPE": name})
        if name == "MASK":
            for plane, bit in PLANES.items():
                card = f"MP_{plane}"
                header[card if len(card) <= 8 else f"HIERARCH {card}"] = bit
        kind = fits.CompImageHDU if compressed else fits.ImageHDU
        options = {"compression_type": "GZIP_2"} if compressed else {}
        if compressed and data.dtype.kind == "f":
            options["quantize_level"] = 0
        hdus.append(kind(data, header, name=name, **options))
    index = fits.BinTableHDU.from_columns([fits.Column("id", "J", array=[1])], name="ARCHIVE_INDEX")
    psf = fits.BinTableHDU.from_columns([fits.Column("x", "D", array=[1.0])])
    psf.header["EXTNAME"] = "PsfexPsf"
    fits.HDUList([*hdus, index, psf]).writeto(path)
    return image, mask, variance


@pytest.mark.parametrize("compressed", [False, True])
def test_every_plane_is_kept(rng, tmp_path, compressed):
    path = tmp_path / "calexp.fits"
    image, mask, variance = afw_file(rng, path, compressed=compressed)
    exposure = read_exposure(path)
    np.testing.assert_array_equal(exposure.data, image)
    np.testing.assert_array_equal(exposure.variance, variance)
    assert exposure.origin == (Y0, X0)
    assert list(exposure.mask.names) == list(PLANES)
    for name, bit in PLANES.items():
        np.testing.assert_array_equal(exposure.mask.get(name), (mask >> bit) & 1 == 1)
    where = exposure.wcs.pixel_to_world(24, 19)
    assert (where.ra.deg, where.dec.deg) == (pytest.approx(150), pytest.approx(2))


def test_as_the_reader_of_lsst_images_has_it(rng, tmp_path):
    path = tmp_path / "calexp.fits"
    afw_file(rng, path)
    from lsst.images import MaskPlane

    names = {name: MaskPlane(name, name) for name in PLANES}
    theirs = MaskedImage.read_legacy(str(path), plane_map=names)
    ours = read_exposure(path)
    np.testing.assert_array_equal(theirs.image.array, ours.data)
    assert box_of(theirs.bbox) == ours.bbox
    for name in PLANES:
        if name in theirs.mask.schema.names:
            np.testing.assert_array_equal(theirs.mask.get(name), ours.mask.get(name))


def test_its_psf_comes_from_another_file(run, rng, tmp_path):
    afw_file(rng, tmp_path / "calexp.fits")
    fits.writeto(tmp_path / "psf.fits", gaussian(15, 1.8))
    code, text, messages = run("info", tmp_path / "calexp.fits")
    assert code == 0, messages
    assert "lsst.afw exposure (IMAGE, MASK, VARIANCE)" in text
    assert "its PSF (PsfexPsf) can be read by lsst.afw only" in text
    assert "MY_OWN (0)" in text
    code, _, messages = run(
        "convert", tmp_path / "calexp.fits", "--psf", tmp_path / "psf.fits", "--output",
        tmp_path / "out.fits",
    )  # fmt: skip
    assert code == 0, messages
    found = read_exposure(tmp_path / "out.fits")
    assert list(found.mask.names) == list(PLANES)
    np.testing.assert_allclose(found.psf.at(x=310, y=50), gaussian(15, 1.8), atol=1e-9)


def exposure_like(rng, **kwargs) -> Exposure:
    shape = tuple(BOX.shape)
    return Exposure.from_arrays(
        rng.normal(size=shape).astype(np.float32),
        variance=rng.uniform(1, 2, shape).astype(np.float32),
        mask={"SAT": rng.random(shape) > 0.9},
        psf=KernelPointSpreadFunction.from_image(gaussian(21, 2.0), BOX),
        kernel=kernels.constant_kernel(moffat_kernel(11), BOX),
        origin=(BOX.y.start, BOX.x.start),
        unit=u.nJy,
        **kwargs,
    )


@pytest.mark.parametrize("kind", ["masked-image", "visit-image", "difference-image"])
def test_objects_of_lsst_images(rng, archives, tmp_path, kind):  # noqa: F811
    if kind != "masked-image":
        needs_piff()
    exposure = exposure_like(rng)
    write_object(exposure, tmp_path / "out.fits", kind, like=archives[0])
    again = read_exposure(tmp_path / "out.fits")
    np.testing.assert_array_equal(again.data, exposure.data)
    np.testing.assert_array_equal(again.variance, exposure.variance)
    np.testing.assert_array_equal(again.mask.get("SAT"), exposure.mask.get("SAT"))
    assert (again.bbox, again.unit) == (BOX, u.nJy)
    if kind != "masked-image":
        image = again.psf.at(x=350, y=100)
        np.testing.assert_allclose(image, gaussian(21, 2.0), atol=1e-6)
        theirs = (VisitImage if kind == "visit-image" else DifferenceImage).read(
            str(tmp_path / "out.fits")
        )
        assert theirs.band == "r"
        image = theirs.psf.compute_kernel_image(x=350, y=100).array
        np.testing.assert_allclose(image, gaussian(21, 2.0), atol=1e-6)
    if kind == "difference-image":
        kernel = theirs.kernel.compute_kernel_image(x=350, y=100).array
        np.testing.assert_allclose(kernel, moffat_kernel(11), atol=1e-12)
        np.testing.assert_allclose(again.kernel.at(x=350, y=100), kernel)
        where = theirs.astropy_wcs.pixel_to_world(5, 6)
        visit = VisitImage.read(str(archives[0])).astropy_wcs.pixel_to_world(5, 6)
        assert where.separation(visit).arcsec < 1e-6


def test_a_piff_that_lsst_images_does_not_know(rng, archives, tmp_path, monkeypatch):  # noqa: F811
    piff = pytest.importorskip("piff")
    write_object(exposure_like(rng), tmp_path / "out.fits", "visit-image", like=archives[0])
    # As Piff 1.7 does.
    monkeypatch.setattr(piff.PSF, "_read", lambda reader, *rest: reader.read_bandpass("bandpass"))
    with pytest.raises(
        FileFormatError,
        match=r"a model of Piff, and lsst-images \S+ does not read these with Piff \S+; install an"
        r" older Piff \(pip install 'piff<1\.7'\) or a newer",
    ):
        read_exposure(tmp_path / "out.fits")


def test_a_white_difference_as_a_difference_image(run, archives, tmp_path):  # noqa: F811
    needs_piff()
    code, _, messages = run("decorrelate", *archives, "--output", tmp_path / "white.fits")
    assert code == 0, messages
    code, _, messages = run(
        "convert", tmp_path / "white.fits", "--format", "difference-image", "--like", archives[0],
        "--output", tmp_path / "lsst.fits",
    )  # fmt: skip
    assert code == 0, messages
    ours, theirs = read_exposure(tmp_path / "white.fits"), read_exposure(tmp_path / "lsst.fits")
    np.testing.assert_array_equal(ours.data, theirs.data)
    at = {"x": BOX.x.center, "y": BOX.y.center}
    np.testing.assert_allclose(ours.psf.at(**at), theirs.psf.at(**at), atol=1e-6)


def test_what_an_object_demands(rng, archives, tmp_path):  # noqa: F811
    exposure = exposure_like(rng)
    with pytest.raises(ArgumentError, match="needs the detector, band and more"):
        as_object(exposure, "visit-image")
    exposure.psf = None
    with pytest.raises(ArgumentError, match="has no PSF"):
        write_object(exposure, tmp_path / "out.fits", "visit-image", like=archives[0])
    afw_file(rng, tmp_path / "calexp.fits")
    with pytest.raises(FileFormatError, match=r"no name of a schema of lsst\.images"):
        write_object(exposure, tmp_path / "o.fits", "visit-image", like=tmp_path / "calexp.fits")
    assert not (tmp_path / "out.fits").exists()


def test_planes_that_lost_their_names_are_refused(rng, tmp_path):
    for name in ("MASK", "VARIANCE"):
        path = tmp_path / f"{name}.fits"
        afw_file(rng, path)
        raw = path.read_bytes()
        card = f"EXTNAME = '{name:8}'".encode()
        assert raw.count(card) == 1
        path.write_bytes(raw.replace(card, b" " * len(card)))
        with pytest.raises(FileFormatError, match=f"its {name} is not called so"):
            read_exposure(path)
