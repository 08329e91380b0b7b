"""Claims: the transform convolves as the sum over the kernel does, for every parity, over tiles and
with weights that vary; mirrored edges are those of scipy.ndimage; the result does not depend on the
number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from scenes import direct_convolution
from whitediff.errors import ArgumentError
from whitediff.numerics.convolution import convolve, convolve_sparse, convolve_varying


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


@pytest.mark.parametrize("kernel_shape", [(5, 5), (4, 6)])
def test_varying_weights_over_several_tiles(rng, kernel_shape, monkeypatch):
    image = rng.normal(size=(270, 520)).astype(np.float32)
    image[:, 300:] = 0  # tiles without anything
    kernels = rng.normal(size=(3, *kernel_shape))
    fields = rng.normal(size=(3, *image.shape))
    result = convolve_varying(image, kernels, lambda rows, columns: fields[:, rows, columns])
    expected = sum(
        field * direct_convolution(image.astype(float), kernel)
        for field, kernel in zip(fields, kernels, strict=True)
    )
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=2e-6 * np.abs(expected).max())
    monkeypatch.setattr("whitediff.numerics.threads._chosen", 1)
    alone = convolve_varying(image, kernels, lambda rows, columns: fields[:, rows, columns])
    np.testing.assert_array_equal(result, alone)
    with pytest.raises(ArgumentError, match="3 kernels need weights"):
        convolve_varying(image, kernels, None)


@pytest.mark.parametrize("kernel_shape", [(5, 5), (4, 6), (3, 8), (1, 1), (2, 1), (17, 14)])
@pytest.mark.parametrize("shape", [(17, 14), (270, 20), (250, 505)])
def test_mirrored_edges_against_ndimage(rng, shape, kernel_shape):
    # Tiles are 256 pixels less the kernel: some of these frames leave a sliver for the last one.
    image, kernel = rng.normal(size=shape), rng.normal(size=kernel_shape)
    image.flags.writeable = kernel.flags.writeable = False
    np.testing.assert_allclose(
        convolve(image, kernel, boundary="reflect"),
        scipy.ndimage.convolve(image, kernel, mode="reflect"),
        atol=1e-12,
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 2), (3, 2)])
def test_mirrored_edges_of_a_frame_no_larger_than_the_kernel(rng, shape):
    image, kernel = rng.normal(size=shape), rng.normal(size=shape)
    np.testing.assert_allclose(
        convolve(image, kernel, boundary="reflect"),
        scipy.ndimage.convolve(image, kernel, mode="reflect"),
        atol=1e-14,
    )


def test_mirrored_edges_do_not_depend_on_threads(rng, monkeypatch):
    image = rng.normal(size=(270, 520)).astype(np.float32)
    kernels, fields = rng.normal(size=(2, 9, 12)), rng.normal(size=(2, *image.shape))

    def convolved():
        return convolve_varying(
            image, kernels, lambda rows, columns: fields[:, rows, columns], boundary="reflect"
        )

    expected = sum(
        field * scipy.ndimage.convolve(image.astype(float), kernel, mode="reflect")
        for field, kernel in zip(fields, kernels, strict=True)
    )
    result = convolved()
    np.testing.assert_allclose(result, expected, atol=2e-6 * np.abs(expected).max())
    monkeypatch.setattr("whitediff.numerics.threads._chosen", 1)
    np.testing.assert_array_equal(result, convolved())


def test_refuses_an_unknown_boundary():
    with pytest.raises(ArgumentError, match="'zero' or 'reflect'; got 'wrap'"):
        convolve(np.zeros((5, 5)), np.zeros((3, 3)), boundary="wrap")


def test_single_precision_keeps_to_the_tolerance(rng):
    # Noise, a background, and stars of a million counts: in their tiles it does not suffice.
    image = rng.normal(100, 30, (1200, 700)).astype(np.float32)
    y, x = np.mgrid[-20:21, -20:21]
    star = np.exp(-(y**2 + x**2) / 8).astype(np.float32)
    for row, column in ((100, 100), (150, 600)):
        image[row - 20 : row + 21, column - 20 : column + 21] += 1e6 * star
    kernel = rng.normal(size=(41, 41)) * np.exp(-(y**2 + x**2) / 50)
    exact = convolve(image.astype(np.float64), kernel)
    tolerance = 0.03
    result = convolve(image, kernel, tolerance=tolerance)
    rounding = np.finfo(np.float32).eps / 2 * np.abs(exact)
    assert (np.abs(result - exact) <= tolerance + rounding).all()
    in_double = convolve(image, kernel)
    assert (np.abs(in_double - exact) <= rounding * (1 + 1e-6) + 1e-9).all()
    # Single precision was used where it could be.  The stars' cores were summed up apart; more
    # bright pixels than that are left to double precision.
    differs = result != in_double
    assert differs[600:].mean() > 0.5
    image[:380] *= 1000
    exact = convolve(image.astype(np.float64), kernel)
    result = convolve(image, kernel, tolerance=tolerance)
    rounding = np.finfo(np.float32).eps / 2 * np.abs(exact)
    assert (np.abs(result - exact) <= tolerance + rounding).all()
    assert not (result != convolve(image, kernel))[:300].any()


@pytest.mark.parametrize("kernel_shape", [(5, 5), (4, 6), (41, 37)])
def test_few_pixels_against_the_convolution_of_all(rng, kernel_shape):
    pixels = np.zeros((310, 470), dtype=bool)
    pixels[[0, 3, 70, 309, 309], [0, 469, 130, 0, 469]] = True  # corners, an edge, the middle
    pixels[127:130, 190:195] = True  # across blocks
    kernel = rng.normal(size=kernel_shape)
    result = convolve_sparse(pixels, kernel)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, convolve(pixels, kernel), atol=2e-6)


def test_many_pixels_and_large_kernels_are_as_of_any_image(rng):
    pixels, kernel = rng.random((150, 140)) < 0.3, rng.normal(size=(7, 5))
    np.testing.assert_array_equal(convolve_sparse(pixels, kernel), convolve(pixels, kernel))
    with pytest.raises(ArgumentError, match="larger than the image"):
        convolve_sparse(pixels[:5], kernel)
