"""Claim: the transform convolves as the sum over the kernel does, for every parity."""

from __future__ import annotations

import numpy as np
import pytest

from scenes import direct_convolution
from whitediff.convolution import convolve
from whitediff.errors import ArgumentError


@pytest.mark.parametrize("kernel_shape", [(5, 5), (4, 6), (3, 8), (1, 1)])
@pytest.mark.parametrize("shape", [(17, 14), (12, 12)])
def test_against_explicit_sums(rng, shape, kernel_shape):
    image, kernel = rng.normal(size=shape), rng.normal(size=kernel_shape)
    image.flags.writeable = kernel.flags.writeable = False
    np.testing.assert_allclose(
        convolve(image, kernel), direct_convolution(image, kernel), atol=1e-13
    )


def test_refuses_what_cannot_be_convolved():
    with pytest.raises(ArgumentError, match=r"\(9, 9\) is larger"):
        convolve(np.zeros((5, 5)), np.zeros((9, 9)))
    with pytest.raises(ArgumentError, match="2-D"):
        convolve(np.zeros(5), np.zeros((3, 3)))
