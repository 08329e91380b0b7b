"""Stacks of stamps moved and smoothed by matrices, against SciPy's filters of single images."""

import numpy as np
import pytest
import scipy.ndimage

from whitediff.numerics.splines import grown_stamps, shifted_stamps, smoothed_stamps


@pytest.mark.parametrize("order", [2, 3, 4, 5])
@pytest.mark.parametrize("mode", ["nearest", "constant"])
@pytest.mark.parametrize("shape", [(9, 9), (31, 24)])
def test_moved_as_by_scipy(rng, order, mode, shape):
    stamps = rng.normal(size=(12, *shape))
    dy, dx = rng.uniform(-3.5, 3.5, (2, 12))
    # No shift, a whole pixel, and half of one.
    dy[:3], dx[:3] = (0.0, 1.0, 0.5), (0.0, -2.0, -0.5)
    expected = [
        scipy.ndimage.shift(image, move, order=order, mode=mode)
        for image, move in zip(stamps, zip(dy, dx, strict=True), strict=True)
    ]
    moved = shifted_stamps(stamps, dy, dx, order=order, mode=mode)
    np.testing.assert_allclose(moved, expected, atol=1e-12)
    single = shifted_stamps(stamps.astype(np.float32), dy, dx, order=order, mode=mode)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, atol=2e-5)


def test_middle_alone(rng):
    stamps, (dy, dx) = rng.normal(size=(5, 21, 21)), rng.uniform(-1, 1, (2, 5))
    whole = shifted_stamps(stamps, dy, dx, order=3)
    middle = shifted_stamps(stamps, dy, dx, order=3, half=4)
    np.testing.assert_allclose(middle, whole[:, 6:15, 6:15], atol=1e-12)


@pytest.mark.parametrize("sigma", [0.8, 2.3, 9.0])
def test_smoothed_as_by_scipy(rng, sigma):
    stamps = rng.normal(size=(4, 40, 33))
    expected = scipy.ndimage.gaussian_filter(stamps, (0, sigma, sigma), truncate=3.0)
    np.testing.assert_allclose(smoothed_stamps(stamps, sigma), expected, atol=1e-12)


@pytest.mark.parametrize("reach", [0, 1, 2, 5, 40])
def test_grown_as_by_scipy(rng, reach):
    stamps = rng.random((3, 20, 31)) > 0.99
    size = (1, 2 * reach + 1, 2 * reach + 1)
    expected = scipy.ndimage.maximum_filter(stamps, size, mode="constant", cval=False)
    np.testing.assert_array_equal(grown_stamps(stamps, reach), expected)
