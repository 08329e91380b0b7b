"""Containers: exposures, mask planes, PSFs that are images, kernels.

Claims: polynomial kernels are exact in either form; a kernel PSF can be a PSF of lsst.images
and survives its archives; stars are drawn where they are; planes are found in both spellings;
any lsst.images object with the planes is an exposure; a cut-out keeps its place on the sky; a PSF
known at scattered positions is one over the field; subtraction keeps signs, levels and masks.
"""

from __future__ import annotations

import re

import astropy.io.fits
import astropy.units as u
import lsst.images
import numpy as np
import pytest
from lsst.images.convolution_kernels import ImageBasisConvolutionKernel
from lsst.images.psfs import GaussianPointSpreadFunction
from lsst.images.serialization import read_archive, write_archive

from marks import slow_after
from scenes import direct_convolution, gaussian, moffat_kernel, moffat_psfs
from whitediff import Exposure
from whitediff.decorrelation.exposures import DecorrelationOptions, decorrelate, refuse_white
from whitediff.errors import ArgumentError, DataError
from whitediff.exposures import foreign, kernels, masks
from whitediff.exposures.boxes import Box
from whitediff.exposures.fields import ChebyshevField, scattered_fit
from whitediff.exposures.kernels import BasisKernel
from whitediff.exposures.psf import (
    KernelPointSpreadFunction,
    as_kernel_psf,
    moved_psf,
    sampled_psf,
    scattered_psf,
)
from whitediff.formats.archive.convert import (
    StoredPointSpreadFunction,
    lsst_box,
    lsst_field,
    lsst_kernel,
    lsst_mask,
    lsst_psf,
    masked_image,
)
from whitediff.subtraction.difference import subtract

BOX = Box.from_shape((200, 300), start=(-40, 1000))


def random_polynomial(rng, n_basis=3, n_terms=6):
    basis = rng.normal(size=(n_basis, 7, 8))
    coefficients = rng.normal(size=(n_basis, n_terms))
    coefficients[:, 1:3] /= 300
    coefficients[:, 3:] /= 300**2
    return basis, coefficients


def test_polynomials_of_the_position_are_exact(rng):
    basis, coefficients = random_polynomial(rng)
    kernel = kernels.polynomial_kernel(basis, coefficients, BOX)
    assert isinstance(kernel, kernels.ConvolutionKernel)
    for x, y in [(1000, -40), (1299.5, 159), (1113.25, 33.5)]:
        terms = np.array([1, x, y, x * x, x * y, y * y])
        expected = np.tensordot(coefficients @ terms, basis, axes=1)
        np.testing.assert_allclose(kernel.at(x=x, y=y), expected, rtol=1e-10)
    again = kernels.interpolated_kernel(lambda x, y: kernel.at(x=x, y=y), BOX, order=2)
    np.testing.assert_allclose(again.at(x=1201, y=7), kernel.at(x=1201, y=7), rtol=1e-9)


def test_kernels_are_refused_with_a_reason(rng):
    with pytest.raises(ArgumentError, match="1, 3, 6, 10"):
        kernels.polynomial_kernel(np.ones((1, 3, 3)), np.ones((1, 4)), BOX)
    with pytest.raises(ArgumentError, match=r"\(2, 3, 3\).*\(1, 1, 1\)"):
        kernels.chebyshev_kernel(np.ones((2, 3, 3)), np.ones((1, 1, 1)), BOX)
    with pytest.raises(ArgumentError, match="2-D"):
        kernels.constant_kernel(np.ones(3), BOX)


def test_kernels_with_other_centres_are_brought_to_ours(rng):
    image = rng.normal(size=(4, 6))
    fields = [lsst_field(field) for field in kernels.constant_kernel(image, BOX).fields]
    theirs = ImageBasisConvolutionKernel(image[None], fields, center_y=1, center_x=4)
    ours = foreign.kernel_of(theirs).at(x=1100, y=0)
    dense = np.zeros((15, 15))
    dense[7, 7] = 1
    expected = np.zeros((15, 15))
    expected[6:10, 3:9] = image
    np.testing.assert_allclose(direct_convolution(dense, ours), expected, atol=1e-15)


def test_a_kernel_psf_is_a_psf_of_lsst_images(rng, tmp_path):
    psf_a, psf_b = moffat_psfs()
    basis = np.stack([3 * psf_a, psf_b])
    coefficients = np.array([[1.0, 0.001, 0.0], [0.2, 0.0, 0.002]])
    kernel = kernels.polynomial_kernel(basis, coefficients, BOX)
    psf = KernelPointSpreadFunction(kernel, average_position=(1010.0, 5.0))
    theirs = lsst_psf(psf)
    assert isinstance(theirs, lsst.images.psfs.PointSpreadFunction)
    image = theirs.compute_kernel_image(x=1200.5, y=100.25)
    assert image.array.sum() == pytest.approx(1, rel=1e-14)
    box = lsst.images.Box.from_shape((25, 25), start=(-12, -12))
    assert image.bbox == theirs.kernel_bbox == box
    expected = (1 + 1.2005) * 3 * psf_a + (0.2 + 0.2005) * psf_b
    np.testing.assert_allclose(image.array, expected / expected.sum(), rtol=1e-12)

    for name in ("psf.fits", "psf.json"):
        write_archive(theirs, tmp_path / name)
        read = read_archive(str(tmp_path / name))
        assert isinstance(read, StoredPointSpreadFunction)
        again = foreign.psf_of(read)
        assert isinstance(again, KernelPointSpreadFunction)
        assert again.average_position == (1010.0, 5.0)
        np.testing.assert_array_equal(
            again.at(x=1111, y=11),
            psf.at(x=1111, y=11),
        )


@pytest.mark.parametrize(("x", "y"), [(1010.0, 3.0), (1010.3, 3.4), (1009.5, 2.5), (1010.9, -7.7)])
def test_stars_are_drawn_where_they_are(x, y):
    psf = KernelPointSpreadFunction.from_image(gaussian(31, 2.0), BOX)
    image, box = psf.star(x=x, y=y)
    truth = GaussianPointSpreadFunction(2.0, lsst_box(BOX), 31).compute_stellar_image(x=x, y=y)
    assert lsst_box(box) == truth.bbox == lsst_psf(psf).compute_stellar_bbox(x=x, y=y)
    np.testing.assert_allclose(image, truth.array, atol=2e-3 * truth.array.max())
    xs = np.arange(box.x.start, box.x.stop)
    assert (image.sum(axis=0) * xs).sum() == pytest.approx(x, abs=0.01)


def test_any_psf_can_become_images():
    theirs = foreign.psf_of(GaussianPointSpreadFunction(2.0, lsst_box(BOX), 21))
    psf = as_kernel_psf(theirs, BOX)
    assert psf.kernel.is_constant
    np.testing.assert_allclose(psf.at(x=1100, y=0), gaussian(21, 2.0), atol=1e-12)
    assert as_kernel_psf(psf, BOX) is psf


@pytest.mark.parametrize("image", [np.zeros((3, 3)), np.full((3, 3), np.nan), -np.ones((3, 3))])
def test_a_psf_needs_a_positive_sum(image):
    with pytest.raises(ArgumentError, match="positive sum"):
        KernelPointSpreadFunction.from_image(image, BOX)


def test_mask_planes_in_both_spellings(rng):
    planes = {name: rng.random((200, 300)) > 0.9 for name in ("SAT", "BAD", "COSMIC_RAY", "MINE")}
    mask = masks.make_mask(planes, BOX.shape)
    assert masks.find_plane(mask, "SATURATED") == "SAT"
    assert masks.find_plane(mask, "CR") == "COSMIC_RAY"
    assert masks.find_plane(mask, "INTRP") is None
    expected = planes["SAT"] | planes["COSMIC_RAY"]
    np.testing.assert_array_equal(masks.flagged(mask, ["SATURATED", "CR", "EDGE"]), expected)
    longer = mask
    for i in range(9):  # beyond one byte
        longer = masks.with_plane(longer, f"EXTRA{i}", planes["MINE"])
    np.testing.assert_array_equal(masks.flagged(longer, ["EXTRA8"]), planes["MINE"])
    np.testing.assert_array_equal(masks.flagged(longer, ["BAD"]), planes["BAD"])
    # Bits that were set stay.
    again = masks.with_plane(longer, "EXTRA8", planes["BAD"])
    both = planes["MINE"] | planes["BAD"]
    np.testing.assert_array_equal(masks.flagged(again, ["EXTRA8"]), both)
    np.testing.assert_array_equal(masks.flagged(longer, ["EXTRA8"]), planes["MINE"])


def test_exposures_from_arrays_say_what_is_wrong():
    image = np.zeros((6, 7))
    with pytest.raises(ArgumentError, match="2-D"):
        Exposure.from_arrays(np.zeros((2, 6, 7)), variance=1.0)
    with pytest.raises(ArgumentError, match=r"\(6, 7\).*variance \(7, 6\)"):
        Exposure.from_arrays(image, variance=np.ones((7, 6)))
    with pytest.raises(ArgumentError, match=r"BAD \(6, 6\)"):
        Exposure.from_arrays(image, variance=1.0, mask={"BAD": np.zeros((6, 6), dtype=bool)})
    with pytest.raises(ArgumentError, match="int lacks"):
        Exposure.from_object(3)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("int16", "float32"), (">f4", "float32"), ("uint8", "float32"), ("int32", "float64"),
     (">f8", "float64"), ("float16", "float32")],
)  # fmt: skip
def test_pixels_become_native_floats_that_hold_them(given, kept):
    exposure = Exposure.from_arrays(np.arange(12).reshape(3, 4).astype(given), variance=1.0)
    assert exposure.data.dtype == np.dtype(kept)
    assert exposure.data.dtype.isnative
    np.testing.assert_array_equal(exposure.data, np.arange(12).reshape(3, 4))


def test_lsst_images_objects_are_exposures(rng):
    import astropy.wcs
    from astro_metadata_translator import ObservationInfo
    from lsst.images import DetectorFrame, DifferenceImage, VisitImage

    wcs = astropy.wcs.WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cdelt = [-5e-5, 5e-5]
    box = lsst_box(BOX)
    frame = DetectorFrame(instrument="X", detector=1, visit=2, bbox=box)
    projection = lsst.images.SkyProjection.from_fits_wcs(
        wcs, frame, pixel_bounds=box, x0=BOX.x.start, y0=BOX.y.start
    )
    bad = rng.random((200, 300)) < 0.1
    arguments = {
        "mask": lsst_mask(masks.make_mask({"BAD": bad}, BOX.shape), BOX),
        "variance": lsst.images.Image(2.0, bbox=box, unit=u.nJy**2),
        "sky_projection": projection,
        "obs_info": ObservationInfo.makeObservationInfo(physical_filter="r", instrument="X"),
        "psf": GaussianPointSpreadFunction(2.0, box, 21),
        "detector": None,
        "band": "r",
    }
    values = rng.normal(size=(200, 300)).astype(np.float32)
    pixels = lsst.images.Image(values, bbox=box, unit=u.nJy)
    visit = VisitImage(pixels, **arguments)
    kernel = kernels.constant_kernel(gaussian(11, 1.5), BOX)
    difference = DifferenceImage(pixels, kernel=lsst_kernel(kernel), **arguments)
    from whitediff.decorrelation.exposures import decorrelate

    result = decorrelate(visit, visit, difference).exposure
    assert result.bbox == BOX
    assert result.unit == u.nJy
    assert isinstance(result.psf, KernelPointSpreadFunction)
    np.testing.assert_array_equal(result.kernel.at(x=1100, y=0), kernel.at(x=1100, y=0))
    np.testing.assert_array_equal(result.mask.get("BAD"), bad)
    there = projection.pixel_to_sky(x=1010.0, y=-30.0)
    assert result.wcs.pixel_to_world(10, 10).separation(there).arcsec < 1e-3
    np.testing.assert_allclose(result.variance, 4.0, rtol=1e-6)
    # A masked image has no PSF; what does not need one works.
    plain = lsst.images.MaskedImage(pixels, mask=visit.mask, variance=visit.variance)
    assert decorrelate(plain, plain, plain, kernel).exposure.psf is None


@pytest.mark.parametrize("convolved", ["template", "science"])
def test_static_flux_cancels_at_the_science_level(rng, convolved):
    shape, scale = (160, 170), 1.3
    science_psf, template_psf = moffat_psfs(129)
    kernel = moffat_kernel(31, kernel_sum=scale)
    if convolved == "science":
        # The roles of the two PSFs exchanged, so that the kernel still smooths.
        science_psf, template_psf = template_psf, science_psf
        kernel = moffat_kernel(31, kernel_sum=1 / scale)
    images = []
    for psf, flux in ((science_psf, scale * 1e4), (template_psf, 1e4)):
        image = np.zeros(shape)
        image[15:144, 20:149] += flux * psf
        images.append(image)
    transient = np.zeros(shape)
    transient[60:100, 70:110] = 500 * gaussian(40, 2.0)
    images[0] += transient
    science, template = (
        Exposure.from_arrays(image, variance=4.0, origin=(7, 5)) for image in images
    )
    difference = subtract(science, template, kernel, convolved=convolved)
    assert difference.bbox == science.bbox
    inner = difference.data[20:-20, 20:-20]
    assert inner.sum() == pytest.approx(500, rel=0.03)
    if convolved == "template":
        # The kernel's stamp cuts its wings, and their flux is in its core.
        residual = np.abs(difference.data - transient)[20:-20, 20:-20].max()
        assert residual < 0.005 * (images[0] - transient).max()


def test_subtraction_marks_what_it_cannot_know(rng):
    shape = (60, 70)
    saturated = np.zeros(shape, dtype=bool)
    saturated[40, 20] = True
    template_image = rng.normal(size=shape)
    template_image[20, 30] = np.nan
    template_image[30:36, 50:56] = np.nan
    science = Exposure.from_arrays(
        rng.normal(size=shape), variance=1.0, mask={"SAT": np.roll(saturated, 20, axis=1)}
    )
    template = Exposure.from_arrays(template_image, variance=1.0, mask={"SAT": saturated})
    result = subtract(science, template, gaussian(11, 1.5))
    # Neighbours on all sides say what a single pixel is, but not what lies inside of a hole.
    assert np.isfinite(result.data[20, 30])
    assert np.isnan(result.data[30:36, 50:56]).all()
    assert result.mask.get("NO_DATA")[30:36, 48:58].all()
    assert result.mask.get("SAT")[40, 19:22].all()  # the template's pixel was smeared
    assert result.mask.get("SAT")[40, 40]
    assert not result.mask.get("SAT")[40, 42]  # the science image's was not
    assert result.mask.get("EDGE")[4].all()
    assert not result.mask.get("EDGE")[6, 6]
    np.testing.assert_allclose(
        result.data[45, 50],
        science.data[45, 50]
        - direct_convolution(np.nan_to_num(template_image), gaussian(11, 1.5))[45, 50],
        atol=1e-12,
    )
    expected = 1 + (gaussian(11, 1.5) ** 2).sum()
    assert result.variance[50, 55] == pytest.approx(expected, rel=1e-6)


def test_subtraction_with_a_varying_kernel(rng):
    box = Box.from_shape((40, 50), start=(3, 4))
    basis, coefficients = random_polynomial(rng, n_basis=2, n_terms=3)
    kernel = kernels.polynomial_kernel(basis, coefficients, box)
    template = rng.normal(size=(40, 50))
    exposures = [
        Exposure.from_arrays(image, variance=1.0, origin=(3, 4))
        for image in (np.zeros((40, 50)), template)
    ]
    result = subtract(exposures[0], exposures[1], kernel).data
    for y, x in [(20, 25), (12, 40), (33, 9)]:
        local = kernel.at(x=x + 4, y=y + 3)
        assert result[y, x] == pytest.approx(-direct_convolution(template, local)[y, x], abs=1e-10)


def sky_header():
    header = astropy.io.fits.Header()
    for axis, kind, value in ((1, "RA---TAN", 10.0), (2, "DEC--TAN", -20.0)):
        header[f"CTYPE{axis}"], header[f"CRPIX{axis}"] = kind, 40.0 * axis
        header[f"CRVAL{axis}"], header[f"CDELT{axis}"] = value, 1e-4
        # Pixel coordinates as an alternative system, its reference pixel left to the standard.
        header[f"CTYPE{axis}P"], header[f"CRVAL{axis}P"] = "LINEAR", 3.0
    return header


def test_a_cutout_keeps_its_place(rng):
    image, background = rng.normal(size=(60, 50)), rng.normal(size=(60, 50))
    bad = rng.random((60, 50)) < 0.1
    whole = Exposure.from_arrays(
        image, variance=2.0, mask={"BAD": bad}, psf=gaussian(9, 1.5), origin=(5, -8),
        header=sky_header(),
    )  # fmt: skip
    whole.kernel = kernels.constant_kernel(gaussian(5, 1.0), whole.bbox)
    whole.background = background
    part = whole.cutout(Box.between((20, 41), (0, 11)))
    assert part.origin == (20, 0)
    assert part.shape == (21, 11)
    for array, expected in (
        (part.data, image),
        (part.background, background),
        (part.mask.get("BAD"), bad),
    ):
        np.testing.assert_array_equal(array, expected[15:36, 8:19])
    assert np.shares_memory(part.data, whole.data)
    assert part.psf is whole.psf
    assert part.kernel is whole.kernel
    here, there = part.wcs.pixel_to_world(2, 3), whole.wcs.pixel_to_world(10, 18)
    assert here.separation(there).arcsec < 1e-6
    projection = masked_image(part).sky_projection
    assert projection.pixel_to_sky(x=2, y=23).separation(here).arcsec < 1e-3
    assert (part.header["CRPIX1P"], part.header["CRPIX2P"]) == (-8, -15)
    assert (whole.header["CRPIX1"], whole.header["CRPIX2"]) == (40, 80)
    assert "CRPIX1P" not in whole.header
    with pytest.raises(ArgumentError, match=r"does not contain"):
        whole.cutout(Box.between((20, 41), (40, 43)))


def test_scattered_positions_determine_what_they_can(rng):
    def value(x, y):
        return 1 + 0.01 * x - 0.02 * y + 1e-4 * x * y

    grid = [(x, y) for x in (1020.0, 1150.0, 1280.0) for y in (-20.0, 60.0, 140.0)]
    x, y = np.array(grid).T
    terms, found = scattered_fit(value(x, y), x=x, y=y, bounds=BOX, order=2)
    assert len(terms) == 6
    coefficients = np.zeros((3, 3))
    for (p, q), coefficient in zip(terms, found, strict=True):
        coefficients[p, q] = coefficient
    u, v = 2 * (1111 - 999.5) / 300 - 1, 2 * (33 + 40.5) / 200 - 1
    at = np.polynomial.chebyshev.chebval2d(v, u, coefficients)
    assert at == pytest.approx(value(1111, 33), rel=1e-10)
    # One row of positions says nothing of y; two that touch say nothing of the field.
    row = y == 60
    terms, _ = scattered_fit(value(x, y)[row], x=x[row], y=y[row], bounds=BOX, order=2)
    assert terms == [(0, 0), (0, 1), (0, 2)]
    two = np.array([1100.0, 1101.0])
    terms, found = scattered_fit(rng.normal(size=2), x=two, y=two * 0, bounds=BOX, order=2)
    assert terms == [(0, 0)]


def test_a_psf_known_at_some_positions():
    x = np.array([1010.0, 1290.0])
    images = [gaussian(11, 1.5), gaussian(8, 2.0)]
    psf = scattered_psf(images, x=x, y=x * 0, bounds=BOX)
    there = psf.at(x=1290.0, y=99.0)
    assert there.shape == (11, 11)
    np.testing.assert_allclose(there[1:9, 1:9], images[1], atol=1e-12)
    same = scattered_psf([images[0]] * 2, x=x, y=x * 0, bounds=BOX)
    assert same.kernel.is_constant


@pytest.mark.parametrize(
    "mode", slow_after(2, ["difference", "spatially varying", "full variance", "score"])
)
def test_single_precision_is_good_to_a_thousandth_of_sigma(rng, mode):
    """Against the same in double precision, with stars of a million counts."""
    shape = (900, 1100)
    star = np.exp(-((np.arange(-20, 21)[:, None] ** 2 + np.arange(-20, 21) ** 2) / 8.0))
    planes = []
    for variance, sharpness in ((900.0, 1.0), (300.0, 0.7)):
        image = rng.normal(0, np.sqrt(variance), shape)
        for y, x in ((100, 120), (450, 800), (455, 812), (895, 20)):
            part = image[max(0, y - 20) : y + 21, max(0, x - 20) : x + 21]
            part += 1e6 * sharpness * star[-part.shape[0] :, -part.shape[1] :]
        planes.append((image.astype(np.float32), (variance + np.maximum(image, 0)).astype("f4")))
    difference = (planes[0][0] - 0.9 * planes[1][0]).astype(np.float32)
    difference[300:303, 500] = np.nan
    planes.append((difference, planes[0][1]))
    box = Box.from_shape(shape)
    kernel = kernels.interpolated_kernel(
        lambda x, y: gaussian(31, 2.0 + (0.2 * x / 1100 if mode == "spatially varying" else 0)),
        box,
        1,
    )
    results = []
    for dtype in (np.float32, np.float64):
        exposures = [
            Exposure.from_arrays(image.astype(dtype), variance=variance.astype(dtype))
            for image, variance in planes
        ]
        results.append(
            decorrelate(
                *exposures,
                kernel,
                preconvolution_kernel=gaussian(31, 3.0) if mode == "score" else None,
                sources=np.zeros(shape, dtype=bool),
                options=DecorrelationOptions(
                    score=mode == "score",
                    score_filter="compact",
                    full_variance=mode == "full variance",
                    spatially_varying=mode == "spatially varying",
                ),
            ).exposure
        )
    single, double = results
    assert single.data.dtype == np.float32
    exact = double.data
    known = np.isfinite(exact)
    sigma = np.sqrt(double.variance[known])
    error = np.abs(single.data[known] - exact[known])
    rounding = np.finfo(np.float32).eps * np.abs(exact[known])
    assert (error <= 1e-3 * sigma + rounding).all()
    assert error.max() > 0
    np.testing.assert_allclose(single.variance, double.variance, rtol=1e-4)


@pytest.mark.parametrize("convolved", ["template", "science"])
@pytest.mark.parametrize("seed", range(4))
def test_a_white_difference_is_refused_and_no_other(seed, convolved):
    rng = np.random.default_rng(seed)
    science, template = (
        Exposure.from_arrays(rng.normal(0, sigma, (200, 210)), variance=sigma**2)
        for sigma in ((2.0, 4.0) if convolved == "template" else (4.0, 2.0))
    )
    kernel = moffat_kernel(15, 1.3)
    difference = subtract(science, template, kernel, convolved=convolved)
    refuse_white(science, template, difference, kernel, convolved=convolved)
    white = decorrelate(
        science, template, difference, kernel, options=DecorrelationOptions(convolved=convolved)
    ).exposure
    with pytest.raises(DataError, match="its noise is white already"):
        refuse_white(science, template, white, kernel, convolved=convolved)
    options = DecorrelationOptions(convolved=convolved)
    # By what made it, and, where nobody says that, by measurement.
    with pytest.raises(DataError, match="whitediff decorrelate decorrelated it"):
        decorrelate(science, template, white, kernel, options=options)
    unsaid = white.replaced()
    unsaid.decorrelated_by = None
    with pytest.raises(DataError, match="its noise is white already"):
        decorrelate(science, template, unsaid, kernel, options=options)
    assert white.replaced().decorrelated_by == white.cutout(white.bbox).decorrelated_by
    # A convolution that correlates nothing tells nothing.
    narrow = np.zeros((15, 15))
    narrow[7, 7] = 1.1
    refuse_white(science, template, white, narrow, convolved=convolved)


@pytest.mark.parametrize(("amplitude", "level"), [(2e-4, "INFO"), (0.05, "WARNING")])
def test_a_psf_that_polynomials_do_not_follow_is_a_warning_where_it_matters(
    caplog, amplitude, level
):
    def image_at(x, y):
        # Ten waves across the frame: no polynomial of order 6 has them.
        return gaussian(25, 2.0 * (1 + amplitude * np.sin(x * 2 * np.pi / 30)))

    caplog.set_level("INFO", logger="whitediff")
    sampled_psf(image_at, BOX)
    (record,) = [r for r in caplog.records if "varies faster" in r.getMessage()]
    assert record.levelname == level


@pytest.mark.parametrize(("tolerance", "told"), [(1e-6, True), (0.05, False)])
def test_a_correction_within_the_tolerance_is_not_told_of(rng, caplog, tolerance, told):
    shape = (200, 300)
    science, template = (
        Exposure.from_arrays(rng.normal(0, sigma, shape), variance=sigma**2, origin=BOX.start)
        for sigma in (2.0, 4.0)
    )
    kernel = kernels.interpolated_kernel(
        lambda x, y: gaussian(15, 1.5 + 0.4 * np.sin((x - 1000) / 60)), BOX, order=5
    )
    difference = subtract(science, template, kernel)
    caplog.set_level("INFO", logger="whitediff")
    options = DecorrelationOptions(spatially_varying=True, tolerance=tolerance)
    decorrelate(science, template, difference, kernel, options=options)
    lines = [r for r in caplog.records if "varies over the field faster" in r.getMessage()]
    assert len(lines) == told
    for record in lines:
        numbers = [float(n) for n in re.findall(r"by (\S+) of its", record.getMessage())]
        assert numbers
        # What stays within the tolerance is not named.
        assert min(numbers) > tolerance
        assert (record.levelname == "WARNING") == (max(numbers) > 0.01)


@pytest.mark.parametrize("order", [1, 3, 5])
@pytest.mark.parametrize("shift", [(0, 3), (-17, 40)])
def test_a_psf_of_any_order_moves_exactly(rng, order, shift):
    dy, dx = shift
    whole = Box.from_shape((200, 240), start=(-30, 12))
    basis = rng.normal(size=((order + 1) * (order + 2) // 2, 9, 11))
    basis[0] += 5
    terms = [(p, q) for p in range(order + 1) for q in range(order + 1 - p)]
    fields = []
    for p, q in terms:
        coefficients = np.zeros((order + 1, order + 1))
        coefficients[p, q] = 1.0
        fields.append(ChebyshevField(whole, coefficients))
    psf = KernelPointSpreadFunction(BasisKernel(basis, fields), average_position=(100, 60))
    part = Box.from_shape((90, 110), start=(0 - dy, 50 - dx))
    moved = moved_psf(psf, part, dy, dx)
    for x, y in ((part.x.start, part.y.start), (90.3 - dx, 40.8 - dy), (158 - dx, 88 - dy)):
        np.testing.assert_allclose(
            moved.at(x=x, y=y), psf.at(x=x + dx, y=y + dy), rtol=1e-9, atol=1e-9
        )
    assert moved.average_position == (100 - dx, 60 - dy)
    assert moved.bounds == part
