"""The simulation of LSST's own decorrelation test (DMTN-021, section 3), noise and sources.

PSF sigmas 3.3 (science) and 2.2 (template), variance 0.04 each: the pixel variance is 0.0405
before and 0.0800 after; the neighbour covariance is that of white noise.
"""

from __future__ import annotations

import numpy as np
import pytest

from scenes import gaussian
from whitediff import Exposure
from whitediff.decorrelation.exposures import decorrelate
from whitediff.diagnostics.measure import whiteness
from whitediff.subtraction.difference import subtract

SHAPE, VARIANCE = (1024, 1024), 0.04


def make_pair(rng, with_sources):
    images = [rng.normal(0, np.sqrt(VARIANCE), SHAPE).astype(np.float32) for _ in range(2)]
    sources = np.zeros(SHAPE, dtype=bool)
    if with_sources:
        for y, x in rng.integers(40, 984, (60, 2)):
            flux = 10 ** rng.uniform(1.5, 4)
            part = (slice(y - 20, y + 21), slice(x - 20, x + 21))
            for image, sigma in zip(images, (3.3, 2.2), strict=True):
                image[part] += (flux * gaussian(41, sigma)).astype(np.float32)
            sources[part] = True
    exposures = [
        Exposure.from_arrays(image, variance=VARIANCE, psf=gaussian(41, sigma))
        for image, sigma in zip(images, (3.3, 2.2), strict=True)
    ]
    return exposures, sources


@pytest.mark.parametrize("with_sources", [False, True])
def test_variance_and_covariance(rng, with_sources):
    (science, template), sources = make_pair(rng, with_sources)
    kernel = gaussian(25, np.sqrt(3.3**2 - 2.2**2))
    difference = subtract(science, template, kernel)
    result = decorrelate(science, template, difference)
    assert result.kernel_sum == pytest.approx(1)
    psf = gaussian(41, 3.3)
    good = ~(sources | result.exposure.mask.get("CONTAMINATED") | difference.mask.get("EDGE"))
    variance = result.exposure.variance
    np.testing.assert_allclose(variance, 0.08, rtol=1e-6)
    before = whiteness(difference.data, variance, good, psf)
    after = whiteness(result.exposure.data, variance, good, psf)
    # The matched template keeps 0.04 · Σκ² = 0.04/(4π·2.46²) of its variance.
    assert before.pixel_variance == pytest.approx(0.0405, rel=0.01)
    assert after.pixel_variance == pytest.approx(0.0800, rel=0.01)
    assert before.filtered_variance_ratio > 1.4
    assert abs(after.filtered_variance_ratio - 1) < 4 * after.filtered_variance_ratio_error
    assert before.neighbour_covariance > 10 * before.neighbour_covariance_error
    assert abs(after.neighbour_covariance) < 3 * after.neighbour_covariance_error
