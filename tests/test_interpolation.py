"""Claims: the weights solve the kriging system written out; planes come out exactly, around and
deep inside holes; stars to a few percent of their peak; no pattern raises noise by more than the
limit; what lies far away does not matter, nor do batches; a filter that interpolates keeps
backgrounds up to edges and holes, and what is beside a missing column through a star."""

from __future__ import annotations

import numpy as np
import pytest

from scenes import gaussian, moffat_kernel
from whitediff.decorrelation.correction import difference_correction, filtered_image, pixel_kernel
from whitediff.errors import ArgumentError, DataError
from whitediff.numerics import fourier, interpolation
from whitediff.numerics.interpolation import interpolated
from whitediff.numerics.missing import unmeasured_pixels

SIDE = 61
MIDDLE = SIDE // 2
ROUNDING = 1e-9  # of the solutions; they are sums of 1e2 terms from systems of condition 1e5

Y, X = np.mgrid[:SIDE, :SIDE]


def pattern(name):
    missing = np.zeros((SIDE, SIDE), bool)
    trail = np.arange(20, 41)
    match name:
        case "single":
            missing[MIDDLE, MIDDLE] = True
        case "column":
            missing[:, MIDDLE] = True
        case "two columns":
            missing[:, MIDDLE : MIDDLE + 2] = True
        case "trail":
            missing[trail, trail] = True
        case "wide trail":
            missing[trail, trail] = missing[trail, trail + 1] = True
        case "hole":
            missing[20:40, 20:40] = True
        case "edge":
            missing[0] = True
        case "edge rows":
            missing[:12] = True
        case "corner":
            missing[np.hypot(X, Y) < 9] = True
        case "random":
            missing = np.random.default_rng(3).random(missing.shape) < 0.3
        case "mixture":
            for other in ("two columns", "wide trail", "edge rows", "corner"):
                missing |= pattern(other)
    return missing


PATTERNS = [
    "single", "column", "two columns", "trail", "wide trail", "hole", "edge", "edge rows", "corner",
    "random", "mixture",
]  # fmt: skip


def star(sigma, y=MIDDLE, x=MIDDLE):
    return np.exp(-0.5 * ((Y - y) ** 2 + (X - x) ** 2) / sigma**2)


def test_against_the_kriging_system_written_out(rng):
    image = rng.normal(size=(9, 9))
    image.flags.writeable = False
    missing = rng.random((9, 9)) < 0.2
    missing[4, 4] = True
    y, x = np.mgrid[-4:5, -4:5]
    use = ~missing & (x**2 + y**2 <= 18)
    ys, xs = y[use], x[use]

    def covariance(dy, dx):
        return 100.0**2 * np.mean(
            [np.exp(-(dy**2 + dx**2) / (4 * sigma**2)) for sigma in (1.5, 2.0, 3.0)], axis=0
        )

    planes = np.stack([np.ones(ys.size), ys, xs], axis=1)
    system = np.zeros((ys.size + 3, ys.size + 3))
    system[:-3, :-3] = covariance(ys[:, None] - ys, xs[:, None] - xs) + np.eye(ys.size)
    system[:-3, -3:], system[-3:, :-3] = planes, planes.T
    weights = np.linalg.solve(system, np.r_[covariance(ys, xs), 1, 0, 0])[:-3]
    assert np.sum(weights**2) < 1.25**2  # so this significance is the one that counts
    result = interpolated(image, missing)
    assert result[4, 4] == pytest.approx(weights @ image[use], abs=ROUNDING)
    np.testing.assert_array_equal(result[~missing], image[~missing])


@pytest.mark.parametrize("name", PATTERNS)
def test_planes_come_out_exactly(name):
    missing = pattern(name)
    plane = 100 + 0.7 * X - 1.3 * Y
    holed = np.where(missing, np.nan, plane)
    holed.flags.writeable = False
    np.testing.assert_allclose(interpolated(holed), plane, atol=100 * ROUNDING)
    constant = np.where(missing, np.inf, 7.3)
    np.testing.assert_allclose(interpolated(constant), 7.3, rtol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "corner"),
    [
        ("two columns", 22), ("wide trail", 14), ("wide trail", 22), ("hole", 14), ("edge", 0),
        ("edge rows", 3), ("corner", 0), ("random", 0),
    ],
)  # fmt: skip
def test_noise_is_not_raised(name, corner):
    missing = pattern(name)[corner : corner + 18, corner : corner + 18]
    # The response to every good pixel: the weights, as they are used.
    noise = np.zeros(missing.shape)
    for y, x in zip(*np.nonzero(~missing), strict=True):
        impulse = np.zeros(missing.shape)
        impulse[y, x] = 1
        noise += interpolated(impulse, missing) ** 2
    assert 0.3 < np.sqrt(noise[missing]).max() <= 1.25 * (1 + ROUNDING)


@pytest.mark.parametrize(
    ("name", "errors"),
    [  # measured, of the peak, rounded up: for a sigma of 1.5, 2 and 3 pixels
        ("single", (0.01, 0.001, 0.001)),
        ("column", (0.013, 0.001, 0.001)),
        ("trail", (0.01, 0.001, 0.001)),
        ("wide trail", (0.014, 0.001, 0.001)),
        ("two columns", (0.08, 0.014, 0.006)),
    ],
)
def test_stars_keep_their_shape(name, errors):
    missing = pattern(name)
    for sigma, error in zip((1.5, 2.0, 3.0), errors, strict=True):
        for x in (MIDDLE - 0.5, MIDDLE, MIDDLE + 0.5, MIDDLE + 1):
            image = star(sigma, x=x)
            assert np.abs(interpolated(image, missing) - image).max() < error, (sigma, x)


def test_a_star_cut_by_the_edge_of_the_frame():
    image = star(3.0, y=0)
    assert np.abs(interpolated(image, pattern("edge")) - image).max() < 0.06


def test_only_what_is_near_matters(rng):
    image = rng.normal(size=(SIDE, 400))
    missing = np.zeros(image.shape, bool)
    missing[:, 30] = missing[20:40, 40:60] = True
    other = image.copy()
    other[:, 160:] = 1e6
    far = interpolated(other, missing)
    np.testing.assert_array_equal(far[:, :160], interpolated(image, missing)[:, :160])
    other[:, 35] = 1e6
    np.testing.assert_array_equal(interpolated(other, missing)[:, 30], far[:, 30])


def test_few_good_pixels(rng):
    image = np.full((40, 300), np.nan)
    image[3, 4], image[3, 290] = 5, 7
    result = interpolated(image)
    assert result[8, 8] == 5
    assert result[20, 270] == 7
    assert np.isfinite(result).all()
    line = np.where(np.arange(50) % 20 < 10, np.nan, 3.0)[None]
    np.testing.assert_allclose(interpolated(line), 3, rtol=1e-13)
    np.testing.assert_allclose(interpolated(line.T), 3, rtol=1e-13)


def test_types_batches_and_transposes(rng, monkeypatch):
    image = rng.normal(1e3, 1, (SIDE, SIDE)).astype(np.float32)
    missing = pattern("mixture")
    image.flags.writeable = missing.flags.writeable = False
    result = interpolated(image, missing)
    assert result.dtype == np.float32
    double = interpolated(image.astype(float), missing)
    np.testing.assert_array_equal(result, double.astype(np.float32))
    assert interpolated(image.astype(">f4"), missing).dtype == np.float32
    np.testing.assert_allclose(interpolated(image.T.astype(float), missing.T), double.T, rtol=1e-12)
    monkeypatch.setattr(interpolation, "_BATCH", 37)
    monkeypatch.setattr(interpolation, "_STRIP", 1)
    np.testing.assert_allclose(interpolated(image.astype(float), missing), double, rtol=1e-12)


def test_refuses_what_cannot_be_interpolated():
    with pytest.raises(DataError, match=r"None of the image's 12 pixels is good"):
        interpolated(np.full((3, 4), np.nan))
    with pytest.raises(DataError, match="are all masked"):
        interpolated(np.zeros((3, 4)), np.ones((3, 4), bool))
    with pytest.raises(ArgumentError, match=r"int64 of \(3, 4\)"):
        interpolated(np.zeros((3, 4)), np.ones((3, 4), np.int64))
    with pytest.raises(ArgumentError, match=r"bool of \(4, 4\)"):
        interpolated(np.zeros((3, 4)), np.ones((4, 4), bool))
    with pytest.raises(ArgumentError, match="2-D"):
        interpolated(np.zeros(3))


def decorrelation_kernel(matching, ratio, reach=24):
    shape = (128, 128)
    correction = difference_correction(
        matching, unconvolved_variance=1.0, convolved_variance=ratio, shape=shape
    )
    kernel = pixel_kernel(correction.correction_ft, shape=shape)
    kernel = fourier.crop_center_origin(kernel, (2 * reach + 1, 2 * reach + 1))
    return kernel / kernel.sum()


@pytest.mark.parametrize("sigma", [2.0, 3.0])
@pytest.mark.parametrize("matching_sigma", [1.5, 2.0])
@pytest.mark.parametrize("x", [MIDDLE, MIDDLE + 0.5])
def test_neighbours_of_a_missing_column_through_a_star(sigma, matching_sigma, x):
    kernel = decorrelation_kernel(gaussian(31, matching_sigma), 1.0)
    image = 1e4 * star(sigma, x=x)
    expected = filtered_image(kernel, image, fill="interpolate")
    image[:, MIDDLE] = np.nan
    filtered = filtered_image(kernel, image, fill="interpolate")
    np.testing.assert_array_equal(np.isnan(filtered), np.isnan(image))
    # Where the filtered star crosses zero, a fraction of its value means nothing.
    counts = np.isfinite(filtered) & (np.abs(expected) > 0.1 * expected.max())
    np.testing.assert_allclose(filtered[counts], expected[counts], rtol=1e-3)
    error = np.nanmax(np.abs(filtered - expected))
    assert error < 1e-3 * expected.max()
    by_mean = filtered_image(kernel, image)
    assert np.nanmax(np.abs(by_mean - expected)) > 100 * error


@pytest.mark.parametrize("ratio", [0.4, 10.0, 1000.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_background_stays_up_to_edges_and_holes(ratio, dtype):
    kernel = decorrelation_kernel(moffat_kernel(), ratio)
    image = np.full((SIDE, SIDE), 100, dtype)
    image[pattern("mixture")] = np.nan
    image[40:44, 5], image[45, 5] = np.inf, -np.inf
    image[50, 50] = -1e30
    image.flags.writeable = False
    # So small that single precision would not do.
    sigma = 1e-3
    filtered = filtered_image(kernel, image, sigma=sigma, fill="interpolate")
    lost = unmeasured_pixels(image, sigma)
    assert filtered.dtype == dtype
    np.testing.assert_array_equal(filtered[lost], image[lost])
    np.testing.assert_allclose(filtered[~lost], 100, rtol=1e-8 if dtype == np.float64 else 1e-7)


def test_untrusted_pixels_come_back_filtered(rng):
    kernel = decorrelation_kernel(gaussian(31, 1.5), 1.0)
    image = rng.normal(size=(SIDE, SIDE))
    missing = pattern("trail")
    spoilt = np.where(missing, 1e5, image)
    spoilt[3, 3] = np.nan
    filtered = filtered_image(kernel, spoilt, fill="interpolate", missing=missing)
    assert np.isnan(filtered[3, 3])
    filtered[3, 3] = 0
    assert np.abs(filtered).max() < 10
    assert not missing[3, 3]  # the mask given is not written to
    with pytest.raises(ArgumentError, match=r"bool of \(5, 5\)"):
        filtered_image(kernel, image, fill="interpolate", missing=np.zeros((5, 5), bool))
    with pytest.raises(ArgumentError, match="only for fill='interpolate'"):
        filtered_image(kernel, image, missing=missing)
    with pytest.raises(ArgumentError, match="got 'median'"):
        filtered_image(kernel, image, fill="median")
