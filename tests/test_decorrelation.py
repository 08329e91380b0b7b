"""The correction against dense matrices and conservation laws.

Claims: on a periodic grid the corrected difference of white inputs has a covariance that is
exactly white; the score correction makes the total filter the optimal matched filter; both
variance planes are the diagonals of dense covariances; flux is kept for any kernel sum;
transposed inputs give transposed outputs; single precision costs less than it may; non-finite
pixels come back as they were; contaminated pixels are those that an explicit sum names.
"""

from __future__ import annotations

import numpy as np
import pytest

from scenes import circulant, gaussian, moffat_kernel, place
from whitediff.decorrelation.correction import (
    ScoreCut,
    _single_precision_suffices,
    compact_kernel,
    contaminated_pixels,
    corrected_image,
    corrected_psf,
    depends_on_grid,
    difference_correction,
    estimated_variance,
    filtered_image,
    full_variance,
    pixel_kernel,
    score_correction,
    white_variance,
)
from whitediff.errors import ArgumentError, DataError
from whitediff.numerics import fourier
from whitediff.numerics.convolution import convolve, reflected
from whitediff.numerics.distrust import absolute_weight

SVAR, TVAR = 40.0, 15.0
ROUNDING = 1e-10  # of dense products of matrices of order 500


def correction_for(kernel, shape, svar=SVAR, tvar=TVAR):
    return difference_correction(
        kernel, unconvolved_variance=svar, convolved_variance=tvar, shape=shape
    )


def matrix_of(spectrum, shape):
    return circulant(fourier.inverse(spectrum + 0j, shape, shape))


@pytest.mark.parametrize("shape", [(24, 22), (23, 21)])
@pytest.mark.parametrize(
    "kernel", [moffat_kernel(11), moffat_kernel(10), gaussian(9, 1.5)], ids=["odd", "even", "round"]
)
def test_corrected_noise_has_a_white_covariance(shape, kernel):
    correction = correction_for(kernel, shape)
    convolution = circulant(place(kernel, shape))
    identity = np.eye(convolution.shape[0])
    covariance = SVAR * identity + TVAR * convolution @ convolution.T
    correct = matrix_of(correction.correction_ft, shape)
    white = correct @ covariance @ correct.T
    expected = SVAR + TVAR * kernel.sum() ** 2
    np.testing.assert_allclose(white, expected * identity, atol=ROUNDING * expected)
    # The uncorrected one is not: the test can fail.
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() > 0.005 * expected


def test_total_kernels_are_those_of_the_two_exposures():
    shape, kernel = (24, 22), moffat_kernel(11)
    correction = correction_for(kernel, shape)
    correct = matrix_of(correction.correction_ft, shape)
    np.testing.assert_allclose(
        matrix_of(correction.convolved_ft, shape),
        correct @ circulant(place(kernel, shape)),
        atol=1e-12,
    )
    np.testing.assert_array_equal(correction.unconvolved_ft, correction.correction_ft)


def test_score_is_the_optimal_matched_filter():
    shape = (20, 22)
    # A PSF so narrow that its convolution matrix can be inverted.
    psf = gaussian(7, 0.8)
    psf[:, 4:] *= 1.3
    psf /= psf.sum()
    kernel = moffat_kernel(9)
    svar, tvar = 30.0, 10.0
    correction = score_correction(
        kernel, 5 * psf, science_variance=svar, template_variance=tvar, shape=shape
    )
    blur, match = circulant(place(psf, shape)), circulant(place(kernel, shape))
    # The score made before correction is Pᵀs − Kt; undo Pᵀ to get the difference d, whose
    # covariance then gives the generalised least-squares filter Pᵀ Σ⁻¹ d.
    undo = np.linalg.inv(blur.T)
    covariance = svar * np.eye(len(blur)) + tvar * undo @ match @ match.T @ undo.T
    optimal = blur.T @ np.linalg.inv(covariance) @ undo
    expected = (svar + tvar * kernel.sum() ** 2) * optimal
    np.testing.assert_allclose(
        matrix_of(correction.correction_ft, shape), expected, atol=1e-7 * np.abs(expected).max()
    )
    np.testing.assert_allclose(
        matrix_of(correction.unconvolved_ft, shape), expected @ blur.T, atol=1e-8
    )


@pytest.mark.parametrize("ratio", [1e-3, 0.3, 1, 30, 1000])
def test_conservation_laws(ratio):
    kernel, shape = moffat_kernel(), (60, 64)
    correction = correction_for(kernel, shape, svar=2.0, tvar=2.0 * ratio)
    assert correction.correction_ft[0, 0] == pytest.approx(1, abs=1e-14)
    assert correction.kernel_sum == pytest.approx(1.3, rel=1e-12)
    unconvolved, convolved = correction.variance_weights
    # Parseval: the variance of a pixel is the one that whiteness fixes.
    assert 2 * unconvolved + 2 * ratio * convolved == pytest.approx(
        2 + 2 * ratio * 1.3**2, rel=1e-12
    )
    assert correction.correction_ft.max() <= np.sqrt(1 + ratio * 1.3**2) * (1 + 1e-12)


def test_a_delta_kernel_needs_no_correction():
    kernel = np.zeros((5, 5))
    kernel[2, 2] = 0.7
    np.testing.assert_allclose(correction_for(kernel, (16, 18)).correction_ft, 1, rtol=1e-14)


def test_transposed_inputs_give_transposed_outputs(rng):
    kernel, image = moffat_kernel(11), rng.normal(size=(40, 30))
    first = correction_for(kernel, (54, 44))
    second = correction_for(kernel.T, (44, 54))
    np.testing.assert_allclose(
        corrected_image(first.correction_ft, image, shape=first.shape),
        corrected_image(second.correction_ft, image.T, shape=second.shape).T,
        atol=1e-13,
    )


def test_flux_survives_a_kernel_sum_that_is_not_one():
    kernel = moffat_kernel()
    correction = correction_for(kernel, (160, 160), tvar=60.0)
    source = np.zeros((121, 121))
    source[50:71, 48:69] = 1000 * gaussian(21, 2.5)
    corrected = corrected_image(correction.correction_ft, source, shape=(160, 160))
    assert corrected.sum() == pytest.approx(1000, rel=1e-3)
    psf = corrected_psf(correction.correction_ft, source[30:91, 28:89], shape=(160, 160))
    np.testing.assert_allclose(
        psf, corrected[30:91, 28:89] / corrected[30:91, 28:89].sum(), atol=1e-6
    )


def test_corrected_noise_is_white_over_many_realisations(rng):
    kernel, shape, n = moffat_kernel(), (96, 96), 150
    edge = 24
    svar, tvar = 40.0, 60.0
    correction = correction_for(kernel, (128, 128), svar, tvar)
    lags = {(0, 0): 0.0, (0, 1): 0.0, (1, 0): 0.0, (1, 1): 0.0, (1, -1): 0.0, (0, 2): 0.0}
    before = 0.0
    for _ in range(n):
        science = rng.normal(0, np.sqrt(svar), shape)
        template = rng.normal(0, np.sqrt(tvar), shape)
        difference = science - convolve(template, kernel)
        corrected = corrected_image(correction.correction_ft, difference, shape=correction.shape)
        inner = corrected[edge:-edge, edge:-edge]
        before += np.mean(difference[edge:-edge, edge:-edge] ** 2) / n
        for dy, dx in lags:
            other = corrected[edge + dy : 96 - edge + dy, edge + dx : 96 - edge + dx]
            lags[dy, dx] += np.mean(inner * other) / n
    expected = white_variance(kernel.sum(), svar, tvar)
    pixels = n * inner.size
    assert lags[0, 0] == pytest.approx(expected, rel=4 * np.sqrt(2 / pixels))
    for lag, value in lags.items():
        if lag != (0, 0):
            assert abs(value) < 4 * expected / np.sqrt(pixels), lag
    assert before < 0.9 * expected


def test_corrected_image_against_an_explicit_matrix(rng):
    image = rng.normal(size=(14, 12))
    correction = correction_for(moffat_kernel(9), (22, 20))
    embedded = np.zeros(correction.shape)
    embedded[:14, :12] = image
    expected = (matrix_of(correction.correction_ft, correction.shape) @ embedded.ravel()).reshape(
        correction.shape
    )[:14, :12]
    result = corrected_image(correction.correction_ft, image, shape=correction.shape)
    np.testing.assert_allclose(result, expected, atol=1e-13)


@pytest.mark.parametrize("shape", [(26, 24), (27, 25)])
def test_variance_planes_are_diagonals_of_dense_covariances(rng, shape):
    planes = [rng.uniform(10, 60, (18, 17)) for _ in range(2)]
    kernel = moffat_kernel(8)
    correction = correction_for(kernel, shape)
    correct = matrix_of(correction.correction_ft, shape)
    convolved = correct @ circulant(place(kernel, shape))
    embedded = [np.zeros(shape) for _ in planes]
    for grid, plane in zip(embedded, planes, strict=True):
        grid[:18, :17] = plane
    dense = np.diag(
        correct @ np.diag(embedded[0].ravel()) @ correct.T
        + convolved @ np.diag(embedded[1].ravel()) @ convolved.T
    ).reshape(shape)[:18, :17]
    full = full_variance(
        planes[0],
        planes[1],
        unconvolved_fill=1.0,
        convolved_fill=1.0,
        unconvolved_ft=correction.unconvolved_ft,
        convolved_ft=correction.convolved_ft,
        shape=shape,
    )
    np.testing.assert_allclose(full, dense, rtol=1e-10)
    # Where the variance is constant, the estimate agrees with the full propagation.
    weights = correction.variance_weights
    estimated = estimated_variance(planes[0], planes[1], weights)
    np.testing.assert_allclose(
        estimated,
        planes[0] * (correct**2).sum(axis=1)[0] + planes[1] * (convolved**2).sum(axis=1)[0],
        rtol=1e-10,
    )


def test_full_variance_keeps_what_is_not_finite(rng):
    first, second = (rng.uniform(10, 60, (20, 20)).astype(np.float32) for _ in range(2))
    first[3, 4], first[5, 5], second[5, 5], second[7, 7] = np.nan, -np.inf, np.nan, np.inf
    first.flags.writeable = second.flags.writeable = False
    correction = correction_for(moffat_kernel(9), (30, 30))
    result = full_variance(
        first,
        second,
        unconvolved_fill=30.0,
        convolved_fill=30.0,
        unconvolved_ft=correction.unconvolved_ft,
        convolved_ft=correction.convolved_ft,
        shape=(30, 30),
    )
    assert result.dtype == np.float32
    assert np.isnan(result[3, 4])
    assert np.isnan(result[5, 5])
    assert result[7, 7] == np.inf
    assert np.isfinite(result).sum() == result.size - 3


def test_non_finite_pixels_come_back_as_they_were(rng):
    image = rng.normal(100, 5, (30, 31)).astype(np.float32)
    image[4, 4], image[9, 9], image[12, 3] = np.nan, np.inf, -np.inf
    filled = image.copy()
    filled[~np.isfinite(image)] = image[np.isfinite(image)].mean(dtype=np.float64)
    image.flags.writeable = False
    correction = correction_for(moffat_kernel(9), (40, 40))
    result = corrected_image(correction.correction_ft, image, shape=(40, 40))
    assert np.isnan(result[4, 4])
    assert result[9, 9] == np.inf
    assert result[12, 3] == -np.inf
    finite = np.isfinite(image)
    expected = corrected_image(correction.correction_ft, filled, shape=(40, 40))
    np.testing.assert_array_equal(result[finite], expected[finite])


def bright_scene(rng, scene, shape, sigma):
    image = rng.normal(0, sigma, shape)
    star = gaussian(41, 2.5) / gaussian(41, 2.5).max()
    if scene == "star":
        image[100:141, 90:131] += 1e6 * star
    elif scene == "background":
        image += 1e4
    elif scene == "step":
        image[:, shape[1] // 2 :] += 1e5
    elif scene == "ramp":
        image += np.linspace(0, 1e6, shape[1])
    return image.astype(np.float32)


@pytest.mark.parametrize("scene", ["noise", "star", "background", "step", "ramp"])
@pytest.mark.parametrize("ratio", [0.3, 10.0])
def test_single_precision_costs_less_than_it_may(rng, scene, ratio):
    image = bright_scene(rng, scene, (300, 260), 30.0)
    shape = fourier.fast_shape(image.shape, (41, 41))
    correction = correction_for(moffat_kernel(41), shape, 1.0, ratio)

    def corrected(pixels, sigma=None):
        return corrected_image(correction.correction_ft, pixels, shape=shape, sigma=sigma)

    double = corrected(image.astype(np.float64))
    assert double.dtype == np.float64
    rounding = np.spacing(np.abs(double).astype(np.float32))
    # What single precision really costs, and the least sigma for which it is chosen.
    cost = (np.abs(corrected(image, sigma=np.inf) - double) - rounding).max()
    sigmas = np.geomspace(1e-4, 1e9, 400)
    chosen = [
        s for s in sigmas if _single_precision_suffices(image, correction.correction_ft, shape, s)
    ]
    assert cost <= 1e-3 * chosen[0]
    for sigma in (30.0, 1e-3):
        result = corrected(image, sigma=sigma)
        assert result.dtype == np.float32
        assert (np.abs(result - double) <= 1e-3 * sigma + rounding).all()


def test_noise_is_transformed_in_single_precision(rng, monkeypatch):
    dtypes = []
    forward = fourier.forward
    monkeypatch.setattr(fourier, "forward", lambda a, s: (dtypes.append(a.dtype), forward(a, s))[1])
    image = rng.normal(0, 30, (64, 64)).astype(np.float32)
    correction = correction_for(gaussian(9, 1.5), (72, 72))
    dtypes.clear()
    for sigma, expected in ((30.0, np.float32), (1e-6, np.float64), (None, np.float64)):
        corrected_image(correction.correction_ft, image, shape=(72, 72), sigma=sigma)
        assert dtypes.pop() == expected


@pytest.mark.parametrize("shape", [(46, 48), (47, 49)])
def test_contaminated_pixels_are_those_that_an_explicit_sum_names(shape):
    untrusted = np.zeros((38, 39), dtype=bool)
    untrusted[16, 17] = untrusted[30, 12] = True
    correction = correction_for(moffat_kernel(9), shape, 40.0, 8.0)
    kernel = pixel_kernel(correction.correction_ft, shape=shape)
    # On the periodic grid, whatever is not in the frame is outside.
    meaningless = np.ones(shape)
    meaningless[:38, :39] = untrusted
    weight = (circulant(np.abs(kernel)) @ meaningless.ravel()).reshape(shape)[:38, :39]
    expected = weight > 0.01 * np.abs(kernel).sum()
    result = contaminated_pixels(kernel, untrusted)
    np.testing.assert_array_equal(result, expected)
    assert result[16, 17]
    assert result[16, 18]
    assert result[0].all()
    assert 0.1 < result.mean() < 0.9


def test_a_kernel_is_reflected_about_its_centre():
    odd = np.arange(15.0).reshape(3, 5)
    np.testing.assert_array_equal(reflected(odd), odd[::-1, ::-1])
    even = np.arange(16.0).reshape(4, 4)
    grid = place(even, (9, 9))
    expected = grid[-np.arange(9) % 9][:, -np.arange(9) % 9]
    np.testing.assert_array_equal(place(reflected(even), (9, 9)), expected)


@pytest.mark.parametrize("ratio", [0.3, 10.0, 1000.0])
@pytest.mark.parametrize("background", [0.0, 100.0])
def test_a_grid_that_matters_is_noticed(rng, ratio, background):
    kernel = gaussian(25, 3.0)
    image = background + rng.normal(0, np.sqrt(1 + ratio), (90, 84))
    sigma = np.sqrt(1 + ratio)
    grids = [fourier.common_shape((25, 25), image.shape), (150, 144)]
    results = []
    for grid in grids:
        correction = correction_for(kernel, grid, 1.0, ratio)
        results.append(corrected_image(correction.correction_ft, image, shape=grid))
    moved = np.abs(results[0] - results[1]).max()
    depends = depends_on_grid(
        pixel_kernel(correction.correction_ft, shape=grid),
        image,
        margin=(grids[0][0] - 90, grids[0][1] - 84),
        sigma=sigma,
    )
    if moved > 1e-3 * sigma:
        assert depends
    if ratio == 0.3 and background == 0:
        assert not depends


def test_absolute_weight_of_one_pixel_is_the_kernel_itself():
    kernel = np.zeros((20, 22))
    kernel[0, 0], kernel[1, 2], kernel[-1, 0] = 0.5, -0.3, 0.2
    pixels = np.zeros((12, 13), dtype=bool)
    pixels[5, 5] = True
    weight = absolute_weight(kernel, pixels)
    expected = np.zeros((12, 13))
    expected[5, 5], expected[6, 7], expected[4, 5] = 0.5, 0.3, 0.2
    np.testing.assert_allclose(weight, expected, atol=1e-7)


def test_score_stays_finite_where_both_spectra_vanish():
    psf, kernel = gaussian(41, 4.0), gaussian(41, 4.2)
    correction = score_correction(
        kernel, psf, science_variance=1.0, template_variance=10.0, shape=(64, 64)
    )
    assert np.isfinite(correction.correction_ft).all()
    assert correction.correction_ft.max() <= 11 * (1 + 1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": np.zeros((5, 5))}, "sums to 0"),
        ({"kernel": np.array([[0.0, 1.0, -1.0]])}, "sums to 0"),
        ({"kernel": np.full((5, 5), np.nan)}, "25 pixels of 25 that are not finite"),
        ({"kernel": np.ones((50, 5))}, "larger than the grid"),
        ({"kernel": np.ones(5)}, "2-D"),
    ],
)
def test_refuses_wrong_kernels(change, message):
    with pytest.raises(ArgumentError, match=message):
        correction_for(change["kernel"], (40, 40))


@pytest.mark.parametrize("value", [0.0, -3.0, np.nan, np.inf])
def test_refuses_variances_that_are_not_positive(value):
    for svar, tvar in ((value, 1.0), (1.0, value)):
        with pytest.raises(DataError, match=r"positive and finite; got"):
            correction_for(gaussian(5, 1.0), (16, 16), svar, tvar)


def test_refuses_wrong_images():
    correction = correction_for(gaussian(5, 1.0), (16, 16))
    with pytest.raises(ArgumentError, match="larger than the grid"):
        corrected_image(correction.correction_ft, np.zeros((20, 10)), shape=(16, 16))
    with pytest.raises(ArgumentError, match="needs"):
        corrected_image(correction.correction_ft, np.zeros((9, 9)), shape=(20, 20))
    with pytest.raises(DataError, match="no finite pixel"):
        corrected_image(correction.correction_ft, np.full((9, 9), np.nan), shape=(16, 16))
    with pytest.raises(ArgumentError, match="same shape"):
        estimated_variance(np.ones((3, 3)), np.ones((3, 4)), (1.0, 1.0))


def test_integer_variances_are_not_truncated():
    planes = [np.full((3, 3), value, dtype=np.int16) for value in (25, 9)]
    result = estimated_variance(planes[0], planes[1], (1.5, 2.5))
    np.testing.assert_allclose(result, 25 * 1.5 + 9 * 2.5)


@pytest.mark.parametrize("star", [0.0, 1e6])
def test_a_compact_filter_is_the_transform(rng, star):
    kernel = moffat_kernel(21)
    image = rng.normal(0, np.sqrt(SVAR + TVAR), (300, 280)).astype(np.float32)
    image[140, 120] += star
    image[200:203, 50] = np.nan
    small = correction_for(kernel, (384, 384))
    sigma = np.sqrt(SVAR + TVAR * kernel.sum() ** 2)
    filters = pixel_kernel(small.correction_ft, shape=(384, 384))
    compact = compact_kernel(filters, image, sigma=sigma)
    assert compact is not None
    # A brighter star needs more of the filter.
    assert compact.shape[0] >= (33 if star else 1)
    result = filtered_image(compact, image, sigma=sigma)
    shape = fourier.common_shape(image.shape, kernel.shape)
    full = correction_for(kernel, shape)
    expected = corrected_image(full.correction_ft, image.astype(np.float64), shape=shape)
    good = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(result), good)
    rounding = np.finfo(np.float32).eps * np.abs(expected[good])
    assert (np.abs(result[good] - expected[good]) <= 1e-3 * sigma + rounding).all()


@pytest.mark.parametrize("width", [1.0, 2.5, 5.0])
@pytest.mark.parametrize(("matching", "ratio"), [(1.7, 3.0), (3.0, 0.1), (3.0, 3.0)])
def test_a_compact_filter_holds_for_stars_of_any_width(rng, width, matching, ratio):
    kernel, precision = gaussian(41, matching), 1e-4
    sigma = np.sqrt(1 + ratio)
    image = rng.normal(0, sigma, (300, 280))
    star = gaussian(81, width)
    image[110:191, 90:171] += 60 * sigma * star / star.max()
    small = correction_for(kernel, (384, 384), svar=1.0, tvar=ratio)
    filters = pixel_kernel(small.correction_ft, shape=(384, 384))
    compact = compact_kernel(filters, image, sigma=sigma, precision=precision)
    assert compact is not None
    shape = fourier.common_shape(image.shape, kernel.shape)
    full = correction_for(kernel, shape, svar=1.0, tvar=ratio)
    expected = corrected_image(full.correction_ft, image, shape=shape)
    moved = np.abs(filtered_image(compact, image, sigma=sigma) - expected)
    # Beyond the reach from the edges, at which grids differ.
    assert moved[60:-60, 60:-60].max() <= precision * sigma


def test_a_filter_that_is_not_compact_is_none(rng):
    kernel = gaussian(31, 4.0)
    correction = correction_for(kernel, (384, 384), svar=1.0, tvar=1e6)
    filters = pixel_kernel(correction.correction_ft, shape=(384, 384))
    image = 1e4 + rng.normal(size=(300, 300))
    assert compact_kernel(filters, image, sigma=1.0) is None


def test_a_compact_score_filter_keeps_flux_and_significance():
    shape, psf = (256, 256), gaussian(41, 3.0)
    kernel = gaussian(41, np.sqrt(18 - 4.84)) + 2e-5 * np.random.default_rng(1).normal(
        size=(41, 41)
    )  # a fitted kernel has noise where the PSF has no power

    def significance(correction):
        unconvolved, convolved = correction.variance_weights
        filtered = fourier.inverse(
            np.abs(correction.preconvolution_ft) ** 2 * correction.correction_ft + 0j, shape, (1, 1)
        )
        return float(filtered[0, 0]) / np.sqrt(SVAR * unconvolved + TVAR * convolved)

    options = {"science_variance": SVAR, "template_variance": TVAR, "shape": shape}
    documented = score_correction(kernel, psf, **options)
    compact = score_correction(kernel, psf, **options, cut=ScoreCut(reach=24.0))
    assert compact.correction_ft[0, 0] == pytest.approx(1, rel=1e-12)
    assert significance(compact) == pytest.approx(significance(documented), rel=2e-3)
    lag = np.minimum(np.arange(256), 256 - np.arange(256))
    far = np.hypot(lag[:, None], lag) > 24
    reach = [
        np.abs(pixel_kernel(c.correction_ft, shape=shape))[far].sum() for c in (documented, compact)
    ]
    assert reach[1] < 1e-10
    assert reach[0] > 0.1  # the documented one does reach that far: the test can fail
