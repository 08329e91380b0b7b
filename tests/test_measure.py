"""Whiteness and the noise of scores.

Claims: whiteness is 1 for white noise under any mask, and the known value for noise that is not;
a score's S/√V has unit variance and zero mean within errors that allow for its correlation, and
these errors are the scatter of realisations.
"""

from __future__ import annotations

import numpy as np
import pytest

from scenes import gaussian, moffat_psfs
from whitediff.convolution import convolve
from whitediff.diagnostics.measure import (
    gaussian_filter,
    radial_power,
    score_noise,
    whiteness,
)
from whitediff.errors import ArgumentError, DataError

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
