"""Templates on another grid, resampled.

Claims:
- positions follow TAN, TPV and SIP: astropy's to 1e-3 pixels, TPV the written-out polynomial;
- the weights are those that are applied, pixel by pixel, for rotated, sheared, finer and
  mirrored grids;
- splines and straight lines are those of reproject, at edges and beyond them too;
- without reproject splines work, and averages are refused in one sentence before any work;
- the covariance of resampled white and of resampled correlated noise, and the variance plane, are
  those of a Monte Carlo; summed over all lags the covariance is one over the pixel's area;
- where phases change slowly the covariance follows them: white at whole pixels, at half a pixel
  that of the kernel; where they change fast it is their mean;
- flux and centroids of stars are kept through distortions, and the PSF is that of a star;
- a mask bit is set wherever more than 1 % of the weight lies on pixels that have it; what the
  template does not cover is NaN and NO_DATA; holes do not ring;
- covariances come back from files, constant and varying, and move with a cut;
- on real, resampled DECam images in ../shared/data/decam (skipped without) the covariance
  predicted from the measured one is that measured afterwards;
- what is wrong is one sentence.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import scipy.ndimage
from astropy.wcs.utils import pixel_to_pixel

from grids import DISTORTIONS, drawn, sky_header
from scenes import SHARED
from whitediff import Exposure
from whitediff.alignment.adaptive import Grid, averaged
from whitediff.alignment.exposures import aligned_template
from whitediff.alignment.mapping import pixel_map
from whitediff.alignment.reprojection import _interpolated, resampling_kernel
from whitediff.alignment.resampling import ResamplingOptions, resampled
from whitediff.alignment.weights import (
    AdaptiveKernel,
    SplineKernel,
    cardinal_spline,
    half_lags,
    polynomials_by_prediction,
    resampled_covariance,
)
from whitediff.errors import ArgumentError, DataError
from whitediff.evaluation.simulation import PsfModel
from whitediff.exposures import masks
from whitediff.exposures.covariance import NoiseField, moved_noise, noise_at
from whitediff.formats import read_exposure, write_exposure
from whitediff.formats.limits import Limits, within
from whitediff.noise.covariance import resampling_covariance
from whitediff.noise.exposures import noises_by_role, source_pixels
from whitediff.numerics.covariance import NoiseCovariance, coloured

METHODS = ("interpolating", "adaptive")
SHAPE = (300, 320)
DECAM = SHARED / "data" / "decam"


def blank(header, shape=SHAPE, **options) -> Exposure:
    return Exposure.from_arrays(np.zeros(shape, np.float32), variance=1.0, header=header, **options)


def aligned(template, science, method="interpolating"):
    return resampled(template, science, ResamplingOptions(method=method, noise="white"))


# --- where pixels lie --------------------------------------------------------------------------


@pytest.mark.parametrize("projection", DISTORTIONS)
def test_positions_are_those_of_the_sky_coordinates(projection):
    shape = (1500, 1600)
    science = blank(sky_header(shape), shape)
    template = blank(sky_header(shape, scale=0.275, rotation=3, projection=projection), shape)
    found = pixel_map(science, template)
    columns, rows = np.arange(0, 1600, 91.0), np.arange(0, 1500, 83.0)
    x, y = pixel_to_pixel(science.wcs, template.wcs, *np.meshgrid(columns, rows))
    np.testing.assert_allclose(found.on(rows, columns), [y, x], atol=1e-3)
    # Jacobian and area by differences of the same positions.
    step = 0.5
    across = [
        pixel_to_pixel(science.wcs, template.wcs, 700.0 + dx, 600.0 + dy)
        for dx, dy in ((-step, 0), (step, 0), (0, -step), (0, step))
    ]
    (left, right, down, up) = (np.array(each)[::-1] for each in across)
    jacobian = np.stack([up - down, right - left], axis=1)
    found_jacobian = found.at(np.array([600.0]), np.array([700.0]))[2][0]
    np.testing.assert_allclose(found_jacobian, jacobian, atol=1e-4)
    area = found.determinant(np.array([600.0]), np.array([700.0]))[0, 0]
    assert area == pytest.approx(np.linalg.det(jacobian), abs=2e-4)


def test_tpv_is_the_polynomial_that_the_convention_writes():
    shape = (1500, 1600)
    header = sky_header(shape, scale=0.275, rotation=3, projection="TPV")
    x, y = 1400.0, 1200.0
    dx, dy = x + 1 - header["CRPIX1"], y + 1 - header["CRPIX2"]
    plane = [header[f"CD{i}_1"] * dx + header[f"CD{i}_2"] * dy for i in (1, 2)]

    def polynomial(axis: int, a: float, b: float) -> float:
        terms = (1, a, b, math.hypot(a, b), a * a, a * b, b * b, a**3)
        default = (0, 1, 0, 0, 0, 0, 0, 0)
        return sum(header.get(f"PV{axis}_{k}", default[k]) * term for k, term in enumerate(terms))

    xi, eta = (
        math.radians(value) for value in (polynomial(1, *plane), polynomial(2, *plane[::-1]))
    )
    a0, d0 = math.radians(150.0), math.radians(2.0)
    down = math.cos(d0) - eta * math.sin(d0)
    ra = a0 + math.atan2(xi, down)
    dec = math.atan2(math.sin(d0) + eta * math.cos(d0), math.hypot(xi, down))
    # The same place on a science image without distortions, by the gnomonic projection.
    science = blank(sky_header(shape), shape)
    place = science.wcs.wcs_world2pix(math.degrees(ra), math.degrees(dec), 0)
    found = pixel_map(science, blank(header, shape))
    np.testing.assert_allclose(
        [
            float(np.ravel(at)[0])
            for at in found.at(*(np.array([float(p)]) for p in place[::-1]))[:2]
        ],
        [y, x],
        atol=1e-3,
    )


# --- weights -----------------------------------------------------------------------------------


def test_the_cardinal_spline_interpolates():
    whole = np.arange(-8.0, 9)
    np.testing.assert_allclose(cardinal_spline(whole), whole == 0, atol=1e-14)
    phases = np.linspace(0, 1, 11)[:, None]
    np.testing.assert_allclose(cardinal_spline(phases + np.arange(-40, 41)).sum(axis=1), 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.4])
def test_weights_are_those_that_are_applied(rng, method, scale):
    kernel = SplineKernel() if method == "interpolating" else AdaptiveKernel()
    angle = 0.3
    jacobian = scale * np.array(
        [[math.cos(angle), math.sin(angle) + 0.1], [-math.sin(angle), 0.9 * math.cos(angle)]]
    )
    rows, columns = np.meshgrid(np.arange(-1, 7), np.arange(-1, 9), indexing="ij")
    y = 24.3 + jacobian[0, 0] * (rows - 3) + jacobian[0, 1] * (columns - 4)
    x = 27.8 + jacobian[1, 0] * (rows - 3) + jacobian[1, 1] * (columns - 4)
    shape, inner = (50, 54), (slice(1, -1), slice(1, -1))
    n = y[inner].size
    weights = kernel.weights(
        y[inner].ravel(), x[inner].ravel(), np.broadcast_to(jacobian, (n, 2, 2)),
        np.broadcast_to(np.arange(50.0), (n, 50)), np.broadcast_to(np.arange(54.0), (n, 54)),
    )  # fmt: skip
    for at in ((24, 27), (26, 30), (21, 28), (25, 25)):
        impulse = np.zeros(shape)
        impulse[at] = 1
        if method == "interpolating":
            seen = _interpolated(impulse, y[inner], x[inner], 3)
        else:
            seen = averaged(impulse, y, x, kernel)
        # What the spline's tail beyond its reach may add.
        np.testing.assert_allclose(weights[:, at[0], at[1]], np.ravel(seen), atol=1e-10)
    np.testing.assert_allclose(weights.sum(axis=(1, 2)), 1, atol=1e-10)
    # Footprint: beyond it no single pixel has more than 1 % of the absolute weight.
    reach = kernel.footprint(jacobian[None])
    away_y = np.arange(50)[None, :] - np.floor(y[inner].ravel())[:, None]
    away_x = np.arange(54)[None, :] - np.floor(x[inner].ravel())[:, None]
    beyond = ((away_y < 1 - reach) | (away_y > reach))[:, :, None] | (
        (away_x < 1 - reach) | (away_x > reach)
    )[:, None, :]
    share = np.abs(weights) / np.abs(weights).sum(axis=(1, 2), keepdims=True)
    assert share[beyond].max() < 0.01


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(("order", "name"), [(1, "bilinear"), (3, "bicubic")])
def test_splines_are_those_of_reproject(rng, kind, order, name):
    reproject = pytest.importorskip("reproject")
    image = rng.normal(100, 3, (60, 70)).astype(kind)
    image.flags.writeable = False
    # Beyond the image on all sides, and mirrored.
    rows, columns = np.meshgrid(np.arange(-1.0, 66), np.arange(-1.0, 76), indexing="ij")
    y, x = -3.3 + 1.01 * rows + 0.1 * columns, 72.2 + 0.1 * rows - 1.02 * columns
    expected = reproject.reproject_interp(
        (image, Grid()), Grid(y, x), order=name, shape_out=(65, 75), roundtrip_coords=False,
        output_array=np.empty((65, 75), kind), return_footprint=False,
    )  # fmt: skip
    found = _interpolated(image, y[1:-1, 1:-1], x[1:-1, 1:-1], order)
    assert found.dtype == kind
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    assert 0.1 < np.isnan(found).mean() < 0.9
    # Half a unit in the last place, some operations long.
    np.testing.assert_allclose(found, expected, rtol=8 * np.finfo(kind).eps)


def test_places_that_are_no_numbers_have_no_value():
    image = np.ones((5, 6))
    found = _interpolated(image, np.array([[1.0, np.nan]]), np.array([[np.inf, 2.0]]), 3)
    assert np.isnan(found).all()


def test_without_reproject(monkeypatch):
    monkeypatch.setitem(sys.modules, "reproject", None)
    monkeypatch.delitem(sys.modules, "whitediff.alignment.adaptive", raising=False)
    science = blank(sky_header(SHAPE))
    template = blank(sky_header(SHAPE, rotation=2))
    assert aligned(template, science).method == "interpolating"
    for options in (ResamplingOptions(method="adaptive"), ResamplingOptions(method="adaptive",
                    positions="wcs")):  # fmt: skip
        with pytest.raises(
            ArgumentError, match=r"reproject; install it with: pip install 'whitediff\[align\]'\.$"
        ):
            aligned_template(science, template, resampling=options)
    finer = blank(sky_header(SHAPE, scale=0.15))
    with pytest.raises(ArgumentError, match=r"times finer .* takes reproject; .*\[align\]"):
        resampled(finer, science)


# --- noise -------------------------------------------------------------------------------------


def sample_covariance(image, lags):
    ny, nx = image.shape
    result = []
    for dy, dx in lags:
        first = image[dy:, max(0, dx) : nx + min(0, dx)]
        second = image[: ny - dy, max(0, -dx) : nx + min(0, -dx)]
        product = first * second
        result.append(float(product[np.isfinite(product)].mean()))
    return np.array(result)


@pytest.mark.parametrize(
    ("method", "correlated", "mirrored"),
    [
        ("interpolating", False, False),
        ("interpolating", True, True),
        ("adaptive", False, True),
        ("adaptive", True, False),
    ],
)
def test_covariance_and_variance_are_those_of_a_monte_carlo(rng, method, correlated, mirrored):
    shape = (480, 500)
    science = blank(sky_header((440, 440)), (440, 440))
    header = sky_header(
        shape, scale=0.275, rotation=3, shift=(4.4, -2.2), mirrored=mirrored, projection="TAN-SIP"
    )
    noise = rng.normal(size=shape)
    known = None
    if correlated:
        smoothing = np.array([[0.0, 0.3, 0.05], [0.1, 1.0, 0.2], [0.0, 0.1, 0.0]])
        filtered = sum(
            weight * np.roll(noise, (j - 1, i - 1), (0, 1))
            for (j, i), weight in np.ndenumerate(smoothing)
        )
        noise = filtered / math.sqrt((smoothing**2).sum())
        known = resampling_covariance(smoothing)
    level = np.linspace(1, 3, shape[1])
    template = Exposure.from_arrays(
        noise * level, variance=level**2 * np.ones(shape), header=header
    )
    template.noise = known
    options = ResamplingOptions(method=method)
    if known is None:
        options = ResamplingOptions(method=method, noise="white")
    result = resampled(template, science, options).exposure
    pull = result.data / np.sqrt(result.variance)
    lags = half_lags(3)
    found = noise_at(result.noise, 220.0, 220.0)
    assert found is not None
    middle = found.max_lag
    expected = found.correlation[middle + lags[:, 0], middle + lags[:, 1]]
    measured = sample_covariance(pull, lags)
    # Bartlett: the scatter of a lag is at most that of the variance.
    sigma = math.sqrt(2 * float((found.correlation**2).sum()) / pull.size)
    np.testing.assert_allclose(measured, expected, atol=4.5 * sigma)
    # The variance plane also locally, on the quiet and the noisy side.
    for part in (slice(20, 100), slice(340, 420)):
        there = pull[:, part]
        scatter = sigma * math.sqrt(pull.size / there.size)
        assert float(np.nanmean(there**2)) == pytest.approx(1, abs=4.5 * scatter)


@pytest.mark.parametrize("kernel", [SplineKernel(), AdaptiveKernel()])
@pytest.mark.parametrize("scale", [0.6, 0.9, 1.1])
def test_low_frequency_power_is_kept(rng, kernel, scale):
    # Counts of an aperture have the variance of the pixels that it covers: Σ C = 1/area.
    angle = 0.2
    jacobian = scale * np.array(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    )
    lags = half_lags(12)
    # All phases, evenly.
    y, x = (a.ravel() for a in np.meshgrid(*[np.arange(8) / 8] * 2))
    covariance = resampled_covariance(
        kernel, y, x, np.broadcast_to(jacobian, (64, 2, 2)), lags
    ).mean(axis=0)
    total = 2 * covariance.sum() - covariance[0]
    # Pixels coarser than the template's alias what the kernel lets through above their limit.
    tolerance = 0.003 if scale < 1 else 0.006
    assert total == pytest.approx(1 / scale**2, rel=tolerance)


def test_slow_phases_are_followed_and_fast_ones_averaged():
    # From whole pixels at the left to half a pixel at the right.
    stretch = 1 + 0.5 / 600
    shape = (200, 600)
    science = blank(sky_header(shape), shape)
    cards = sky_header(shape, scale=0.25 / stretch)
    cards["CRPIX1"] = science.header["CRPIX1"] * stretch - stretch + 1
    template = blank(cards, (240, 660))
    slow = aligned(template, science).exposure
    assert isinstance(slow.noise, NoiseField)
    where = pixel_map(science, template)
    for column, tolerance in ((60.0, 0.02), (300.0, 0.02), (540.0, 0.02)):
        y, x, _ = where.at(np.array([100.0]), np.array([column]))
        weights = SplineKernel().weights(
            y, x, np.eye(2)[None], np.floor(y)[:, None] + np.arange(-7, 9),
            np.floor(x)[:, None] + np.arange(-7, 9),
        )[0]  # fmt: skip
        exact, found = resampling_covariance(weights), slow.noise(column, 100.0)
        assert found.zero_frequency == pytest.approx(exact.zero_frequency, abs=tolerance)
        variance = slow.variance[100, int(column)]
        assert variance == pytest.approx(float((weights**2).sum()), abs=tolerance)
    # Five times as fast as polynomials follow: the mean over phases, 1.3 along both axes.
    fast = aligned(blank(sky_header((240, 660), rotation=5), (240, 660)), science).exposure
    assert isinstance(fast.noise, NoiseCovariance)
    grid = (np.arange(32) + 0.5) / 32
    values = cardinal_spline(grid[:, None] - np.arange(-12, 13))
    mean = float((values**2).sum(axis=1).mean()) ** 2
    assert np.nanmedian(fast.variance) == pytest.approx(mean, rel=2e-3)
    assert fast.noise.zero_frequency == pytest.approx(1 / mean, rel=3e-3)


@pytest.mark.parametrize("periods", [0.7, 1.5, 2.2, 3.0, 3.5, 4.0, 4.6, 6.0])
@pytest.mark.parametrize("turned", [True, False])
def test_slow_moires_have_a_covariance_everywhere(periods, turned):
    """Phases go round some times between the frame's edges, by a rotation or by a scale."""
    n = 400
    angle, scale = (math.degrees(periods / n), 0.25) if turned else (0, 0.25 * (1 + periods / n))
    template = blank(sky_header((n + 60, n + 60), rotation=angle, scale=scale), (n + 60, n + 60))
    result = aligned(template, blank(sky_header((n, n)), (n, n))).exposure
    inside = np.isfinite(result.data)
    variance = result.variance[inside]
    # Between pixels in the middle of four, for which see the next test, and those that are hit.
    weights = cardinal_spline(np.arange(-7.5, 8))
    assert variance.min() > (weights**2).sum() ** 2 - 0.05
    assert variance.max() < 1.05
    for y in np.linspace(-0.5, n - 0.5, 9):
        for x in np.linspace(-0.5, n - 0.5, 9):
            found = noise_at(result.noise, x, y)
            assert found is not None
            assert np.abs(found.correlation).max() == 1


def test_half_a_pixel_is_the_known_covariance():
    template = blank(sky_header(SHAPE, shift=(0.5, -0.5)))
    result = aligned(template, blank(sky_header(SHAPE))).exposure
    weights = cardinal_spline(np.arange(-7.5, 8))
    expected = resampling_covariance(np.outer(weights, weights))
    assert isinstance(result.noise, NoiseCovariance)
    lag = result.noise.max_lag
    middle = expected.max_lag
    cut = expected.correlation[middle - lag : middle + lag + 1, middle - lag : middle + lag + 1]
    np.testing.assert_allclose(result.noise.correlation, cut, atol=1e-3)
    inside = result.variance[20:-20, 20:-20]
    np.testing.assert_allclose(inside, (weights**2).sum() ** 2, rtol=1e-3)


def test_polynomials_take_the_order_that_predicts(rng):
    v, u = (a.ravel() for a in np.meshgrid(*[np.linspace(-0.95, 0.95, 14)] * 2, indexing="ij"))
    noise = 1e-3 * rng.normal(size=(u.size, 3))
    truth = np.stack([1 + 0.2 * u * v, u**2, 0 * u], 1)
    found, order = polynomials_by_prediction(truth + noise, u, v, largest_order=8)
    assert order == 2
    assert len(found) == 6
    assert polynomials_by_prediction(1 + noise, u, v, largest_order=8)[1] == 0


def test_coloured_kernels_do_to_white_noise_what_the_others_do_to_correlated():
    noise = resampling_covariance(np.array([[0.1, 0.4, 0.2], [0.0, 0.8, 0.3], [0.1, 0.2, 0.0]]))
    first = np.zeros((9, 9))
    first[3:7, 2:6] = np.arange(16).reshape(4, 4) / 40
    second = np.zeros((9, 9))
    second[4, 4], second[2, 7] = 1.0, -0.5
    one, two = coloured(np.stack([first, second]), noise)
    expected = 0.0
    for (j, i), a in np.ndenumerate(first):
        for (k, m), b in np.ndenumerate(second):
            dy, dx = j - k, i - m
            if max(abs(dy), abs(dx)) <= noise.max_lag:
                expected += a * b * noise.correlation[noise.max_lag + dy, noise.max_lag + dx]
    # The filter's tail beyond its stamp, and the floor of the spectrum.
    assert float((one * two).sum()) == pytest.approx(expected, abs=3e-3)
    np.testing.assert_array_equal(coloured(first[None], None)[0], first)


# --- pixels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "projection", "mirrored"),
    [
        ("interpolating", "TAN", False),
        ("interpolating", "TPV", False),
        ("interpolating", "TAN-SIP", True),
        ("adaptive", "TAN", True),
        ("adaptive", "TPV", False),
        ("adaptive", "TAN-SIP", False),
    ],
)
def test_flux_position_and_psf_of_stars_are_kept(method, projection, mirrored):
    shape = (360, 380)
    header = sky_header(
        shape, scale=0.275, rotation=3, shift=(3.3, -2.1), projection=projection, mirrored=mirrored
    )
    science = blank(sky_header(SHAPE))
    psf = PsfModel(sigma=1.7, frame=shape, ellipticity=(0.2, -0.1), offset=(0.2, 0.1))
    x, y = np.array([160.31, 95.77, 238.4]), np.array([150.66, 203.1, 61.9])
    there = pixel_to_pixel(science.wcs, blank(header, shape).wcs, x, y)
    image = drawn(shape, psf, *there, np.full(3, 1e5)).astype(np.float32)
    template = Exposure.from_arrays(image, variance=1.0, header=header, psf=psf.image(190.0, 180.0))
    result = aligned(template, science, method).exposure
    assert result.psf is not None
    for at_x, at_y in zip(x, y, strict=True):
        star, box = result.psf.star(x=at_x, y=at_y)
        seen = result.data[result.bbox.slices_of(box)].astype(float)
        assert seen.sum() == pytest.approx(1e5, rel=2e-3)
        # Interpolation's error depends on the phase: below 3e-3 of the peak at this width.
        np.testing.assert_allclose(seen, 1e5 * star, atol=3e-3 * seen.max())


def test_sharp_stars_keep_their_flux():
    # FWHM of two pixels: what a spline of a star at all phases may lose.
    shape = (360, 380)
    header, science = sky_header(shape, scale=0.26, rotation=7), blank(sky_header(SHAPE))
    psf = PsfModel(sigma=0.85, frame=shape)
    rng = np.random.default_rng(5)
    x, y = rng.uniform(30, 290, 40), rng.uniform(30, 270, 40)
    there = pixel_to_pixel(science.wcs, blank(header, shape).wcs, x, y)
    image = drawn(shape, psf, *there, np.full(40, 1e4)).astype(np.float32)
    for method in METHODS:
        result = aligned(Exposure.from_arrays(image, variance=1.0, header=header), science, method)
        values = result.exposure.data
        # All of them lie inside.
        assert float(np.nansum(values)) == pytest.approx(4e5, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_masks_lose_nothing(rng, method):
    shape = (200, 210)
    header = sky_header(shape, scale=0.275, rotation=20, shift=(2.0, 3.0))
    bad, saturated = rng.random((2, *shape)) < 0.004
    many = {f"P{i}": np.zeros(shape, bool) for i in range(9)}
    many["P8"][100, 100] = True
    template = Exposure.from_arrays(
        rng.normal(size=shape), variance=1.0, header=header,
        mask={"BAD": bad, "SAT": saturated, **many},
    )  # fmt: skip
    science = blank(sky_header((240, 250)), (240, 250))
    result = aligned(template, science, method).exposure
    where = pixel_map(science, template)
    rows, columns = (a.ravel() for a in np.mgrid[:240, :250])
    y, x, jacobian = where.at(rows.astype(float), columns.astype(float))
    kernel = resampling_kernel(method)
    inside = np.isfinite(result.data.ravel())
    assert 0.4 < inside.mean() < 1
    around = np.arange(-6, 8)
    y, x, jacobian = y[inside], x[inside], jacobian[inside]
    near = [np.floor(at)[:, None].astype(int) + around for at in (y, x)]
    weights = np.abs(kernel.weights(y, x, jacobian, *(at.astype(float) for at in near)))
    weights /= weights.sum(axis=(1, 2), keepdims=True)
    for name, plane in (("BAD", bad), ("SAT", saturated), ("P8", many["P8"])):
        padded = np.pad(plane, 20)
        picked = padded[near[0][:, :, None] + 20, near[1][:, None, :] + 20]
        touched = (weights > 0.01) & picked
        flagged = masks.flagged(result.mask, [name]).ravel()[inside]
        if name == "BAD":
            # Filled from their neighbours, these cost a pixel that has much of them, and no more.
            share = np.abs(weights * picked).sum(axis=(1, 2))
            assert flagged[share > 0.5].all()
            assert not flagged[share < 0.1].any()
            assert flagged.mean() < 3 * 1.21 * plane.mean()
            continue
        assert flagged[touched.any(axis=(1, 2))].all()
        assert touched.any()
        # … and no more than the footprint: 6 x 6 pixels at most.
        assert flagged.mean() < 36 * 1.21 * plane.mean()
    outside = ~np.isfinite(result.data)
    np.testing.assert_array_equal(result.mask.get("NO_DATA"), outside)
    assert np.isnan(result.variance[outside]).all()


def test_holes_and_hot_pixels_do_not_ring(rng):
    shape = (300, 320)
    image = (1000 + rng.normal(size=shape)).astype(np.float32)
    mask = np.zeros(shape, bool)
    image[100, 100], mask[100, 100] = 1e6, True
    image[200:260, 150:230] = np.nan
    image[50, 60] = np.nan
    header = sky_header(shape, shift=(0.5, 0.5))
    template = Exposure.from_arrays(image, variance=1.0, header=header, mask={"CR": mask})
    result = aligned(template, blank(sky_header(shape))).exposure
    good = ~masks.flagged(result.mask, ["NO_DATA", "CR"])
    assert good.mean() > 0.88
    assert np.abs(result.data[good] - 1000).max() < 6
    assert result.mask.get("CR").sum() == 4
    # The middle of the hole is empty, a single pixel is marked and filled.
    assert np.isnan(result.data[230, 190])
    assert result.mask.get("NO_DATA")[48:53, 58:63].sum() == 4
    assert np.isfinite(result.data[48:54, 58:64]).sum() >= 35


def test_unknown_variances_do_not_spread(rng):
    variance = np.full(SHAPE, 4.0, np.float32)
    variance[100, 100], variance[50, 70] = np.nan, np.inf
    template = Exposure.from_arrays(
        rng.normal(size=SHAPE), variance=variance, header=sky_header(SHAPE, shift=(0.3, 0.4))
    )
    result = aligned(template, blank(sky_header(SHAPE))).exposure
    inside = result.variance[10:-10, 10:-10]
    assert np.isfinite(inside).sum() >= inside.size - 2
    assert np.nanmax(inside) == pytest.approx(float(np.nanmedian(inside)), rel=1e-5)


# --- files and cuts ----------------------------------------------------------------------------


def test_covariances_come_back_from_files(rng, tmp_path):
    constant = resampling_covariance(np.array([[1.0, 2.0, 1.0]]))
    shape = (200, 600)
    varying = aligned(
        blank(sky_header((240, 660), scale=0.25 / (1 + 0.5 / 600)), (240, 660)),
        blank(sky_header(shape), shape, origin=(30, -7)),
    ).exposure
    assert isinstance(varying.noise, NoiseField)
    plain = blank(sky_header(shape), shape)
    plain.noise = constant
    for exposure in (varying, plain):
        write_exposure(exposure, tmp_path / "a.fits", overwrite=True)
        again = read_exposure(tmp_path / "a.fits")
        for x, y in ((-5.0, 40.0), (300.0, 100.0), (590.0, 229.0)):
            np.testing.assert_allclose(
                noise_at(again.noise, x, y).correlation,
                noise_at(exposure.noise, x, y).correlation,
                atol=1e-12,
            )
    # Beyond the field its edge holds.
    assert np.isfinite(varying.noise(1e5, -1e5).correlation).all()
    moved = moved_noise(varying.noise, 5, -3)
    np.testing.assert_allclose(
        moved(103.0, 95.0).correlation, varying.noise(100.0, 100.0).correlation, atol=1e-12
    )
    cut = aligned_template(
        blank(sky_header(shape, shift=(-40, -20)), (150, 500), origin=(0, 0)), varying
    )
    assert cut.noise is not None


def test_damaged_covariances_are_one_sentence(tmp_path):
    from astropy.io import fits

    exposure = blank(sky_header(SHAPE))
    exposure.noise = resampling_covariance(np.ones((2, 2)))
    write_exposure(exposure, tmp_path / "a.fits")
    for damage, message in (
        (np.ones((4, 5)), "square"),
        (2 * np.eye(3), "must be 1 at lag"),
        (np.full((3, 3), np.nan), "finite"),
        (np.ones((2, 3, 3)), "no HDU"),
    ):
        with fits.open(tmp_path / "a.fits") as hdus:
            hdus["NOISE_CORRELATION"].data = damage
            hdus.writeto(tmp_path / "b.fits", overwrite=True)
            hdus.writeto(tmp_path / "c.fits", overwrite=True, checksum=True)
        with pytest.raises(OSError, match="data of NOISE_CORRELATION differ from their checksum"):
            read_exposure(tmp_path / "b.fits")
        with pytest.raises(OSError, match=message), within(Limits(checksums=False)):
            read_exposure(tmp_path / "b.fits")
        with pytest.raises(OSError, match=message):
            read_exposure(tmp_path / "c.fits")


# --- what is wrong -----------------------------------------------------------------------------


def test_what_is_wrong_is_one_sentence(caplog):
    science = blank(sky_header(SHAPE))
    without = Exposure.from_arrays(np.zeros(SHAPE), variance=1.0)
    options = ResamplingOptions(noise="white")
    for template, other, kind, message in (
        (without, science, ArgumentError, "The template: has no sky coordinates"),
        (blank(sky_header(SHAPE)), without, ArgumentError, "The science image: has no sky"),
        (blank(sky_header(SHAPE, shift=(9000, 0))), science, DataError, "does not overlap"),
        (blank(sky_header(SHAPE, scale=0.9)), science, ArgumentError, "0.278 times as large"),
        (blank(sky_header(SHAPE, scale=0.08)), science, ArgumentError, r"3\.1[23] times as large"),
    ):
        with pytest.raises(kind, match=message):
            resampled(template, other, options)
        with pytest.raises(kind, match=message):
            aligned_template(other, template, resampling=options)
    with pytest.raises(
        ArgumentError, match=r"method must be auto or interpolating or .*; got 'nea"
    ):
        ResamplingOptions(method="nearest")  # type: ignore[arg-type]
    with caplog.at_level("WARNING", logger="whitediff"):
        aligned(blank(sky_header((600, 640), scale=0.14), (600, 640)), science)
    assert "the adaptive method averages" in caplog.text
    elsewhere = sky_header(SHAPE)
    elsewhere["CRVAL1"] = 330.0
    with pytest.raises(DataError, match="lies at no place"):
        resampled(blank(elsewhere), science, options)


def test_grids_may_differ_by_a_twentieth_of_a_pixel():
    science = blank(sky_header(SHAPE))
    assert aligned_template(science, close := blank(sky_header(SHAPE, shift=(0.04, 0)))) is close
    far = blank(sky_header(SHAPE, shift=(3.06, 4.0)))
    with pytest.raises(ArgumentError, match=r"differ by up to 5\.0\d pixels.*0\.06 after.*--align"):
        aligned_template(science, far)
    rotated = blank(sky_header(SHAPE, rotation=0.1))
    with pytest.raises(ArgumentError, match=r"differ by up to 0\.38 pixels"):
        aligned_template(science, rotated)
    # Resampling is for what cutting cannot do.
    shifted = blank(sky_header(SHAPE, shift=(3.0, 4.0)))
    options = ResamplingOptions(noise="white")
    assert aligned_template(science, shifted, resampling=options).noise is None
    result = aligned_template(science, rotated, resampling=options)
    assert result.noise is not None
    assert result.bbox == science.bbox
    np.testing.assert_allclose(
        result.wcs.wcs_pix2world([[10, 20]], 0), science.wcs.wcs_pix2world([[10, 20]], 0)
    )


def test_no_coordinates_of_the_old_pixels_are_left():
    # They would put the new pixels elsewhere on the sky.
    old = sky_header(SHAPE, rotation=3.0)
    for key in ("CTYPE1", "CTYPE2", "CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CD1_1", "CD2_2"):
        old[f"{key}B"] = old[key]
    old.update({"LTV1": 5.0, "LTM1_1": 1.0, "GAIN": 2.0, "FILTERA": "r", "WCSNAMEB": "detector"})
    result = aligned(blank(old), blank(sky_header(SHAPE))).exposure
    assert not [key for key in result.header if key.endswith("B") or key.startswith("LT")]
    assert (result.header["GAIN"], result.header["FILTERA"]) == (2.0, "r")


# --- real images -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not DECAM.is_dir(), reason=f"no real data in {DECAM}")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["04a", "18b"])
def test_noise_of_real_images_is_as_predicted(method, name):
    # 18b was resampled before: N(0) = 1.5.  Moved by half a pixel, and measured between sources.
    exposure = read_exposure(DECAM / f"DEC-OBS{name}.mini.fits")
    image, variance = exposure.data, exposure.variance
    template, science = (
        Exposure.from_arrays(image, variance=variance, header=sky_header(exposure.shape, shift=by))
        for by in ((0.5, 0.5), (0.0, 0.0))
    )
    options = ResamplingOptions(method=method, noise="measured")
    result = resampled(template, science, options).exposure
    sources = scipy.ndimage.binary_dilation(source_pixels(exposure), iterations=2)
    before, after = noises_by_role({"before": template, "after": result}, sources, how="measured")
    predicted = noise_at(result.noise, 128.0, 128.0)
    assert isinstance(before, NoiseCovariance)
    assert isinstance(after, NoiseCovariance)
    assert predicted is not None
    assert after.zero_frequency > 1.1 * before.zero_frequency
    error = math.hypot(after.zero_frequency_error, before.zero_frequency_error)
    assert after.zero_frequency == pytest.approx(predicted.zero_frequency, abs=3 * error)
    # The plane of the file is that of the measurement to a few percent; resampling keeps that.
    level = before.variance_ratio
    error = math.hypot(after.variance_ratio_error, before.variance_ratio_error)
    assert after.variance_ratio == pytest.approx(level, abs=3 * error)


# --- the method that suits the pixels ----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "method"),
    [(0.09, "adaptive"), (0.125, "adaptive"), (0.16, "adaptive"), (0.175, "interpolating"),
     (0.25, "interpolating"), (0.7, "interpolating")],
)  # fmt: skip
def test_finer_pixels_are_averaged_and_others_interpolated(caplog, rng, scale, method):
    shape = (160, 170)
    science = blank(sky_header(shape), shape)
    size = tuple(round(n * 0.25 / scale) for n in shape)
    header = sky_header(size, scale=scale, rotation=7.0, shift=(0.3, 0.2))
    noise = rng.normal(size=size).astype(np.float32)
    template = Exposure.from_arrays(noise, variance=1.0, header=header)
    with caplog.at_level("INFO", logger="whitediff"):
        result = resampled(template, science, ResamplingOptions(noise="white"))
    assert result.method == result.exposure.resampling == method
    assert f"resampled ({method})" in caplog.text
    assert "the adaptive method averages" not in caplog.text
    alike = aligned(template, science, method)
    assert np.array_equal(result.exposure.data, alike.exposure.data, equal_nan=True)
    # The noise of means over blocks is that of the covariance, summed.
    good = np.isfinite(result.exposure.data)
    known = noise_at(result.exposure.noise, 80, 80)
    variance = np.mean(result.exposure.variance[good])
    ratio = np.var(result.exposure.data[good]) / variance
    # The correlation of neighbours leaves a fifth of the pixels independent.
    assert ratio == pytest.approx(1, abs=5 * np.sqrt(2 * 5 / good.sum()))
    assert known.zero_frequency * variance == pytest.approx((0.25 / scale) ** 2, rel=0.05)
