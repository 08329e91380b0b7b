"""Claims: grids are as documented; padding follows the n//2 rule on each axis and is undone
exactly; half spectra complete to the full ones; Parseval holds for every parity."""

from __future__ import annotations

import numpy as np
import pytest

from scenes import place
from whitediff.errors import ArgumentError
from whitediff.numerics import fourier

SHAPES = [(1, 1), (2, 3), (5, 5), (4, 4), (7, 12), (21, 20)]


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (((5, 4),), (6, 4)),
        (((3, 3), (10, 9)), (12, 12)),
        (((41, 41), (35, 35), (100, 31)), (140, 76)),
        (((1, 1), (1, 1)), (2, 2)),
    ],
)
def test_common_shape(shapes, expected):
    assert fourier.common_shape(*shapes) == expected
    fast = fourier.fast_shape(*shapes)
    assert all(f >= n for f, n in zip(fast, expected, strict=True))


@pytest.mark.parametrize("shapes", [(), ((3, 3), (3,)), ((0, 4), (3, 3))])
def test_common_shape_refuses(shapes):
    with pytest.raises(ArgumentError, match="got"):
        fourier.common_shape(*shapes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_padding_follows_the_centre_rule_and_is_undone(rng, shape, dtype):
    array = rng.normal(size=shape).astype(dtype)
    array.flags.writeable = False
    for grid in [shape, (shape[0] + 3, shape[1] + 6), (30, 31)]:
        padded = fourier.pad_center_origin(array, grid)
        assert padded.dtype == dtype
        np.testing.assert_array_equal(padded, place(array, grid).astype(dtype))
        np.testing.assert_array_equal(fourier.crop_center_origin(padded, shape), array)


def test_padding_refuses_a_smaller_grid():
    with pytest.raises(ArgumentError, match=r"\(4, 9\).*\(5, 5\)"):
        fourier.pad_center_origin(np.zeros((5, 5)), (4, 9))
    with pytest.raises(ArgumentError, match=r"\(5, 6\).*\(5, 5\)"):
        fourier.crop_center_origin(np.zeros((5, 5)), (5, 6))


@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (6, 7), (9, 4)])
def test_half_and_full_spectra_agree_with_numpy(rng, shape):
    image = rng.normal(size=shape)
    half, full = fourier.forward(image, shape), np.fft.fft2(image)
    np.testing.assert_allclose(half, fourier.half_spectrum(full), atol=1e-13)
    np.testing.assert_allclose(fourier.full_spectrum(half, shape), full, atol=1e-13)
    assert fourier.mean_square_modulus(half, shape) == pytest.approx(np.sum(image**2), rel=1e-13)
    np.testing.assert_allclose(fourier.inverse(half.copy(), shape, shape), image, atol=1e-14)


def test_single_precision_stays_single():
    image = np.ones((6, 6), dtype=np.float32)
    assert fourier.forward(image, (8, 8)).dtype == np.complex64
    assert fourier.forward(image.astype(np.float64), (8, 8)).dtype == np.complex128
