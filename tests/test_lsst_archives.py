"""VisitImage and DifferenceImage archives, as the Rubin pipelines write them.

Claims: the command line takes them as they are, with the difference's own kernel and PSF; units,
origin and sky coordinates arrive in the output; a PSF that cannot be read is left out.
"""

from __future__ import annotations

import astropy.units as u
import astropy.wcs
import numpy as np
import pytest
from astro_metadata_translator import ObservationInfo
from astropy.io import fits
from lsst.images import (
    DetectorFrame,
    DifferenceImage,
    Image,
    SkyProjection,
    VisitImage,
)
from lsst.images.cameras import (
    CameraFrameSetSerializationModel,
    Detector,
    DetectorAttributes,
    DetectorType,
    Orientation,
)
from lsst.images.psfs import GaussianPointSpreadFunction
from lsst.images.serialization import ArchiveReadError

from scenes import gaussian
from whitediff import Exposure
from whitediff.exposures import kernels, masks
from whitediff.exposures.boxes import Box
from whitediff.formats import read_exposure
from whitediff.formats.archive.convert import lsst_box, lsst_kernel, lsst_mask
from whitediff.numerics.convolution import convolve

starlink = pytest.importorskip("starlink.Ast")

BOX = Box.from_shape((150, 160), start=(40, 300))
LSST_BOX = lsst_box(BOX)
WHOLE = lsst_box(Box.from_shape((400, 800)))


def make_detector() -> Detector:
    """A detector of a camera that does not exist, square pixels of 10 micron."""
    focal_plane = starlink.Frame(2, "Ident=FOCAL_PLANE,Domain=FOCAL_PLANE,Unit(1)=mm,Unit(2)=mm")
    field = starlink.Frame(2, "Ident=FIELD_ANGLE,Domain=FIELD_ANGLE,Unit(1)=rad,Unit(2)=rad")
    pixels = starlink.Frame(2, "Ident=DETECTOR_1,Domain=PIXELS")
    frames = starlink.FrameSet(focal_plane)
    frames.addframe(1, starlink.ZoomMap(2, 1e-4), field)
    frames.addframe(1, starlink.ZoomMap(2, 100.0), pixels)
    model = CameraFrameSetSerializationModel(instrument="TestCam", ast=str(frames))
    attributes = DetectorAttributes(
        name="D1", id=1, type=DetectorType.SCIENCE, serial="1", bbox=WHOLE,
        orientation=Orientation(focal_plane_x=0.0, focal_plane_y=0.0, focal_plane_z=0.0),
        pixel_size=0.01, physical_type="CCD",
    )  # fmt: skip
    return Detector(attributes, [], model.deserialize(None))  # type: ignore[arg-type]


@pytest.fixture
def archives(rng, tmp_path):
    wcs = astropy.wcs.WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.cdelt = [-5e-5, 5e-5]
    frame = DetectorFrame(instrument="TestCam", detector=1, visit=2, bbox=LSST_BOX)
    common = {
        "sky_projection": SkyProjection.from_fits_wcs(
            wcs, frame, pixel_bounds=LSST_BOX, x0=BOX.x.start, y0=BOX.y.start
        ),
        "obs_info": ObservationInfo.makeObservationInfo(
            physical_filter="r", instrument="TestCam", exposure_id=2, visit_id=2
        ),
        "psf": GaussianPointSpreadFunction(2.5, LSST_BOX, 25),
        "detector": make_detector(),
        "band": "r",
    }
    saturated = np.zeros(tuple(BOX.shape), dtype=bool)
    saturated[70:72, 80] = True
    science, template = rng.normal(size=(2, *BOX.shape)) * np.array([3.0, 2.0])[:, None, None]
    difference = science - convolve(template, 1.3 * gaussian(15, 1.5))
    for name, variance, pixels in (
        ("science", 9.0, science),
        ("template", 4.0, template),
        ("difference", 1.0, difference),
    ):
        pixels = pixels.astype(np.float32)
        planes = {
            "mask": lsst_mask(masks.make_mask({"SATURATED": saturated}, BOX.shape), BOX),
            "variance": Image(np.float32(variance), bbox=LSST_BOX, unit=u.nJy**2, dtype=np.float32),
        }
        image = Image(pixels, bbox=LSST_BOX, unit=u.nJy)
        if name == "difference":
            kernel = lsst_kernel(kernels.constant_kernel(1.3 * gaussian(15, 1.5), BOX))
            exposure = DifferenceImage(image, kernel=kernel, **planes, **common)
        else:
            exposure = VisitImage(image, **planes, **common)
        exposure.write(str(tmp_path / f"{name}.fits"))
    return [tmp_path / f"{name}.fits" for name in ("science", "template", "difference")]


def test_pipeline_products_are_taken_as_they_are(run, archives, tmp_path):
    difference = read_exposure(archives[2])
    assert difference.kernel is not None
    assert difference.unit == u.nJy
    out = tmp_path / "out.fits"
    code, _, messages = run("decorrelate", *archives, "--output", out)
    assert code == 0, messages
    result = read_exposure(out)
    assert result.bbox == BOX
    assert result.unit == u.nJy
    np.testing.assert_allclose(result.variance, 9 + 4 * 1.69, rtol=1e-5)
    assert result.mask.get("CONTAMINATED")[70:72, 80].all()
    assert fits.getheader(out)["WDKSUM"] == pytest.approx(1.3, rel=1e-6)
    x, y = 77.0, 55.0
    there = difference.wcs.pixel_to_world(x, y)
    here = VisitImage.read(str(archives[0])).astropy_wcs.pixel_to_world(x, y)
    assert there.separation(here).arcsec < 1e-4
    assert result.wcs.pixel_to_world(x, y).separation(here).arcsec < 1e-4


def test_a_psf_that_cannot_be_read_is_left_out(archives, caplog):
    caplog.set_level("INFO")
    visit = VisitImage.read(str(archives[0]))
    broken = VisitImage(
        visit.image,
        mask=visit.mask,
        variance=visit.variance,
        obs_info=visit.obs_info,
        psf=ArchiveReadError("piff is not installed"),
        detector=visit.detector,
        band="r",
    )
    assert Exposure.from_object(broken).psf is None
    assert "piff is not installed" in caplog.text
