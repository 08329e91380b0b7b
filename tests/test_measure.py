"""Whiteness and the noise of scores.

Claims: whiteness is 1 for white noise under any mask, and the known value for noise that is not;
a score's S/√V has unit variance and zero mean within errors that allow for its correlation, and
these errors are the scatter of realisations.  A map over the frame says the same of each cell,
with the cells where the image has them and nothing lost at the edges between them.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from scenes import gaussian, moffat_psfs
from whitediff.diagnostics.measure import (
    gaussian_filter,
    radial_power,
    score_noise,
    score_noise_map,
    whiteness,
    whiteness_map,
    whiteness_with_map,
)
from whitediff.errors import ArgumentError, DataError
from whitediff.numerics.convolution import convolve

SHAPE = (700, 720)


def masked(rng):
    """Isolated pixels, blocks and a border: what masks look like."""
    good = rng.random(SHAPE) > 0.02
    for _ in range(60):
        y, x = rng.integers(0, 700, 2)
        good[y : y + 25, x : x + 25] = False
    good[:8] = False
    return good


@pytest.mark.parametrize("psf", [gaussian_filter(1.8), moffat_psfs()[0]], ids=["gauss", "moffat"])
def test_white_noise_is_white_under_a_mask(rng, psf):
    variance = np.broadcast_to(np.linspace(2, 20, SHAPE[1]), SHAPE)
    image = 5 + rng.normal(0, np.sqrt(variance))
    good = masked(rng)
    image[~good] = 1e5
    result = whiteness(image, variance, good, psf)
    assert result.pixels == good.sum()
    for name in ("pixel_variance_ratio", "filtered_variance_ratio"):
        error = getattr(result, f"{name}_error")
        assert abs(getattr(result, name) - 1) < 4 * error
        assert error < 0.03
    assert abs(result.neighbour_covariance) < 4 * result.neighbour_covariance_error
    correlations = np.concatenate(
        [result.correlation_x, result.correlation_y, result.correlation_diagonal]
    )
    assert np.abs(correlations).max() < 4 * result.correlation_error


def test_sampling_errors_are_the_scatter_of_realisations(rng):
    psf = gaussian_filter(2.0)
    good = np.ones((120, 120), dtype=bool)
    results = [
        whiteness(rng.normal(size=good.shape), np.ones(good.shape), good, psf) for _ in range(150)
    ]
    for name in ("pixel_variance_ratio", "filtered_variance_ratio", "neighbour_covariance"):
        scatter = np.std([getattr(r, name) for r in results])
        predicted = np.mean([getattr(r, f"{name}_error") for r in results])
        assert scatter == pytest.approx(predicted, rel=0.3), name
    # The formula for a Gaussian: √(4πσ²/pixels), of the pixels whose filter is inside.
    assert results[0].filtered_variance_ratio_error == pytest.approx(
        np.sqrt(4 * np.pi * 4 / 120**2), rel=0.1
    )


def test_smoothed_noise_has_the_ratio_of_theory(rng):
    # White noise smoothed with σ_k, filtered with σ_p, both Gaussian: the variance after the
    # filter over that of white noise is σ_k²·σ_p²·4/(σ_k²+σ_p²)·(1/σ_p²)·… = 4σ_k²/(…) written out:
    sigma_k, sigma_p = 1.2, 1.8
    image = convolve(rng.normal(size=SHAPE), gaussian(21, sigma_k))
    before = 1 / (4 * np.pi * sigma_k**2)
    after = 1 / (4 * np.pi * (sigma_k**2 + sigma_p**2))
    white = 1 / (4 * np.pi * sigma_p**2)
    good = np.zeros(SHAPE, dtype=bool)
    good[30:-30, 30:-30] = True
    variance = np.full(SHAPE, before)
    result = whiteness(image, variance, good, gaussian_filter(sigma_p))
    assert result.filtered_variance_ratio == pytest.approx(after / (before * white), rel=0.05)
    assert result.pixel_variance_ratio == pytest.approx(1, rel=0.03)
    assert result.correlation_x[0] == pytest.approx(np.exp(-1 / (4 * sigma_k**2)), abs=0.03)


def test_score_noise_allows_for_its_correlation(rng):
    # White noise filtered with a Gaussian: Σρ² = 2πσ², Σρ = 4πσ².
    sigma, size = 2.5, 200
    psf = gaussian(31, sigma)
    level = 5.0 * (psf**2).sum()
    results = []
    for _ in range(120):
        noise = rng.normal(0, np.sqrt(5.0), (size + 30, size + 30))
        score = convolve(noise, psf)[15:-15, 15:-15]
        good = np.ones(score.shape, dtype=bool)
        good[40:60, 30:90] = False
        score[~good] = 1e6
        results.append(score_noise(score, np.full(score.shape, level), good))
    n = results[0].pixels
    assert n == size**2 - 1200
    independent = np.mean([r.independent_pixels for r in results])
    assert independent == pytest.approx(n / (2 * np.pi * sigma**2), rel=0.1)
    errors = np.array(
        [[r.pixel_variance_ratio_error, r.significance_mean_error] for r in results]
    ).mean(axis=0)
    values = np.array([[r.pixel_variance_ratio, r.significance_mean] for r in results])
    np.testing.assert_allclose(values.mean(axis=0), [1, 0], atol=4 * errors.max() / 120**0.5)
    # 120 realisations know their scatter to 6.5 %.
    np.testing.assert_allclose(values.std(axis=0), errors, rtol=0.25)
    assert errors[1] == pytest.approx(np.sqrt(4 * np.pi * sigma**2 / n), rel=0.15)
    with pytest.raises(DataError, match="Only 0 of"):
        score_noise(score, score * 0 + 1, score > 1e9)


def test_power_spectrum(rng):
    image = rng.normal(size=(256, 250))
    good = rng.random(image.shape) > 0.2
    frequency, power = radial_power(image, good)
    assert frequency[0] > 0
    assert frequency[-1] < 0.5
    np.testing.assert_allclose(power[4:], 1, atol=0.25)
    assert power.mean() == pytest.approx(1, abs=0.02)


def test_refusals():
    image = np.zeros((50, 50))
    with pytest.raises(ArgumentError, match="same shape"):
        whiteness(image, image[:4], image > 0, gaussian_filter(1.0))
    with pytest.raises(DataError, match="Only 0 of 2500"):
        whiteness(image, image + 1, image > 0, gaussian_filter(1.0))
    with pytest.raises(ArgumentError, match="positive; got -1"):
        gaussian_filter(-1.0)


def test_map_of_white_noise_is_1_in_every_cell(rng):
    shape, cells, realisations = (210, 320), (2, 3), 40
    variance = np.broadcast_to(np.linspace(2, 20, shape[1]), shape)
    psf = gaussian_filter(1.5)
    good = rng.random(shape) > 0.02
    good[60:130, 90:140] = False
    maps = []
    for _ in range(realisations):
        image = 5 + rng.normal(0, np.sqrt(variance))
        image[~good] = 1e5
        maps.append(whiteness_map(image, variance, good, psf, cells=cells))
    assert maps[0].pixels.sum() == good.sum()
    for name in ("pixel_variance_ratio", "filtered_variance_ratio"):
        values = np.array([getattr(m, name) for m in maps])
        errors = np.mean([getattr(m, f"{name}_error") for m in maps], axis=0)
        assert values.shape[1:] == errors.shape == cells
        assert np.abs((values.mean(axis=0) - 1) / errors).max() < 4 / np.sqrt(realisations)
        # A scatter from 40 realisations is known to 11 %.
        np.testing.assert_allclose(values.std(axis=0), errors, rtol=0.45)
        np.testing.assert_allclose(np.mean(values.std(axis=0) / errors), 1, atol=0.2)


def test_map_has_its_cells_where_the_image_has_them(rng):
    shape, cells = (330, 440), (3, 4)
    image = rng.normal(size=shape)
    # Correlated noise of unit variance at small y and large x, excess at large y and small x.
    smooth = convolve(rng.normal(size=shape), gaussian(11, 0.8))
    image[:110, 330:] = (smooth / smooth.std())[:110, 330:]
    image[220:, :110] *= np.sqrt(1.5)
    result = whiteness_map(
        image, np.ones(shape), np.ones(shape, dtype=bool), gaussian_filter(1.5), cells=cells
    )
    np.testing.assert_array_equal(result.y_edges, [0, 110, 220, 330])
    np.testing.assert_array_equal(result.x_edges, [0, 110, 220, 330, 440])
    variance, filtered = np.ones(cells), np.ones(cells)
    variance[2, 0] = 1.5
    filtered[0, 3] = 4 * np.pi * 0.8**2 * 1.5**2 / (0.8**2 + 1.5**2)
    assert filtered[0, 3] > 5
    np.testing.assert_allclose(result.pixel_variance_ratio, variance, atol=0.1)
    np.testing.assert_allclose(result.filtered_variance_ratio, filtered, rtol=0.25)


def test_map_of_one_cell_is_that_of_the_frame(rng):
    image, good = rng.normal(3, 2, (90, 120)), rng.random((90, 120)) > 0.1
    variance, psf = np.full(image.shape, 3.5), moffat_psfs()[0]
    for plane in (image, variance, good):
        plane.flags.writeable = False
    frame = whiteness(image, variance, good, psf)
    result = whiteness_map(image, variance, good, psf, cells=(1, 1))
    assert result.pixels.item() == frame.pixels
    for name in ("pixel_variance_ratio", "filtered_variance_ratio"):
        for suffix in ("", "_error"):
            expected = getattr(frame, name + suffix)
            assert getattr(result, name + suffix).item() == pytest.approx(expected, rel=1e-12)
    for local in (None, lambda x, y: gaussian_filter(1 + 0.01 * x)):
        both, cells = whiteness_with_map(image, variance, good, psf, local_psf=local)
        assert both == frame
        apart = whiteness_map(image, variance, good, local or psf)
        assert cells.to_dict() == apart.to_dict()


def test_cells_are_filtered_across_their_edges(rng):
    # Cells smaller than the PSF, one by one, against the filtered frame.
    shape, psf = (93, 128), moffat_psfs()[0][:, :24]
    image, good = rng.normal(size=shape), rng.random(shape) > 0.1
    arguments = (image, np.full(shape, 1.1), good)
    places = []

    def local(x, y):
        places.append((x, y))
        return psf

    frame = whiteness_map(*arguments, psf, cells=(5, 4))
    result = whiteness_map(*arguments, local, cells=(5, 4), origin=(-7, 1000))
    for name in ("filtered_variance_ratio", "filtered_variance_ratio_error", "pixels"):
        np.testing.assert_allclose(getattr(result, name), getattr(frame, name), rtol=1e-11)
    assert np.isfinite(result.filtered_variance_ratio).all()
    np.testing.assert_array_equal(result.y_edges, frame.y_edges - 7)
    np.testing.assert_array_equal(result.x_edges, frame.x_edges + 1000)
    assert places[0] == (1000 + 15.5, -7 + 8.5)
    assert places[-1] == (1000 + 111.5, -7 + 83.0)


def test_each_cell_is_filtered_with_the_psf_of_its_place(rng):
    smooth = convolve(rng.normal(size=(320, 600)), gaussian(13, 1.0))[10:-10]
    good = np.ones(smooth.shape, dtype=bool)
    good[:, :10] = good[:, -10:] = False
    variance = np.full(smooth.shape, 1 / (4 * np.pi))
    result = whiteness_map(
        smooth, variance, good,
        lambda x, y: gaussian_filter(1.0 if x < 300 else 3.0) if y < 150 else None,
        cells=(2, 2),
    )  # fmt: skip
    expected = [4 * np.pi / (1 + 1 / 1.0**2), 4 * np.pi / (1 + 1 / 3.0**2)]
    np.testing.assert_allclose(result.filtered_variance_ratio[0], expected, rtol=0.2)
    assert np.isnan(result.filtered_variance_ratio[1]).all()
    assert np.isfinite(result.pixel_variance_ratio).all()


def test_cells_without_pixels_have_no_value(rng):
    shape = (150, 150)
    image, variance, good = rng.normal(size=shape), np.ones(shape), np.ones(shape, dtype=bool)
    good[50:100, :50] = False
    good[100, 75] = True
    image[50:100, :50] = np.nan
    # Enough pixels, but none with the support that the filter needs.
    good[:50, :50] = False
    good[:50:4, :50:4] = True
    psf = gaussian_filter(1.8)
    result = whiteness_map(image, variance, good, psf)
    empty = np.zeros((3, 3), dtype=bool)
    empty[1, 0] = True
    assert result.pixels[1, 0] == 0
    np.testing.assert_array_equal(np.isnan(result.pixel_variance_ratio), empty)
    empty[0, 0] = True
    assert result.pixels[0, 0] == 169
    np.testing.assert_array_equal(np.isnan(result.filtered_variance_ratio), empty)
    np.testing.assert_array_equal(np.isnan(result.filtered_variance_ratio_error), empty)
    values = result.to_dict()
    json.dumps(values, allow_nan=False)
    assert values["filtered_variance_ratio"][1][0] is None
    assert values["pixels"][1][0] == 0
    assert values["y_edges"] == [0, 50, 100, 150]
    noise = score_noise(image, variance, good)
    score_map = score_noise_map(image, variance, good, noise)
    assert score_map.to_dict()["pixel_variance_ratio"][1][0] is None
    assert np.isfinite(score_map.pixel_variance_ratio).sum() == 8


def test_map_of_a_score_allows_for_its_correlation(rng):
    sigma, shape, cells, realisations = 2.0, (140, 220), (2, 3), 60
    psf = gaussian(21, sigma)
    good = np.ones(shape, dtype=bool)
    good[20:50, 30:60] = False
    # The level is 10 % too low in the last column.
    variance = np.full(shape, (psf**2).sum())
    variance[:, 146:] /= 1.1
    maps = []
    for _ in range(realisations):
        score = convolve(rng.normal(size=(shape[0] + 20, shape[1] + 20)), psf)[10:-10, 10:-10]
        noise = score_noise(score, variance, good)
        maps.append(score_noise_map(score, variance, good, noise, cells=cells, origin=(3, 5)))
    assert (maps[0].y_edges[0], maps[0].x_edges[-1]) == (3, 225)
    assert maps[0].pixels.sum() == good.sum()
    values = np.array([m.pixel_variance_ratio for m in maps])
    errors = np.mean([m.pixel_variance_ratio_error for m in maps], axis=0)
    pulls = (values.mean(axis=0) - [1, 1, 1.1]) / errors
    assert np.abs(pulls).max() < 4 / np.sqrt(realisations)
    np.testing.assert_allclose(np.mean(values.std(axis=0) / errors), 1, atol=0.2)


def test_maps_refuse():
    image = np.ones((50, 85))
    good = image > 0
    for cells in ((6, 3), (3, 9), (0, 3)):
        with pytest.raises(
            ArgumentError, match=r"does not fit an image of 50 x 85 pixels; from 1 x 1 to 5 x 8 do"
        ):
            whiteness_map(image, image, good, gaussian_filter(1.0), cells=cells)
    with pytest.raises(ArgumentError, match="same shape"):
        whiteness_map(image, image[1:], good, gaussian_filter(1.0))
    with pytest.raises(ArgumentError, match="larger than the image"):
        whiteness_map(image, image, good, lambda x, y: np.ones((51, 5)))
    with pytest.raises(DataError, match="Only 0 of 4250"):
        whiteness_map(image, image, ~good, gaussian_filter(1.0))
