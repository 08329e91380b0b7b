"""Normal equations of the stamps of an Alard–Lupton fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError
from ..numerics.covariance import coloured
from ..numerics.threads import in_threads, single_threaded_algebra
from ..stars.stamps import Stamps
from .basis import KernelBasis

__all__ = ["Normals", "normal_equations", "residual_statistics"]

type Array = npt.NDArray[Any]

_CHUNK = 64
"""Stamps whose source noise is propagated at a time."""

_FEW_PIXELS = 8
"""Pixels of a basis image, on average, up to which shifts cost less than Fourier transforms."""

_CONVOLVED_PIXELS = 4e5
"""Numbers in the convolved stamps of one chunk: as many as the processor's caches hold."""


@dataclasses.dataclass(frozen=True)
class Normals:
    """Normal equations of n single stamps, for m unknowns: basis images and a constant.

    Attributes
    ----------
    gram
        ``(n, m, m)`` weighted products of the columns: the convolved source and the constant.
    right
        ``(n, m)`` weighted products of the columns and the target.
    square
        ``(n,)`` weighted square of the target.
    mean, mean_target
        ``(n, m)`` and ``(n,)``: means of the columns and of the target, times √weight.
    pixels
        ``(n,)`` numbers of pixels with weight.
    noise
        ``(n, m, m)``: mean contribution of the source's noise to `gram`; None if it is not known.
    """

    gram: Array
    right: Array
    square: Array
    mean: Array
    mean_target: Array
    pixels: Array
    noise: Array | None


def normal_equations(stamps: Stamps, basis: KernelBasis) -> Normals:
    """Sums over the pixels of every stamp that a linear fit needs.

    Parameters
    ----------
    stamps
        Stamps.
    basis
        Basis images of the kernel.

    Returns
    -------
    normals
        Weighted normal equations for the sources convolved with the basis, and a constant.

    Raises
    ------
    ArgumentError
        If the stamps do not have the support that the basis needs.
    """
    n, m, size = len(stamps), len(basis) + 1, stamps.target.shape[1]
    width = stamps.source.shape[1]
    reach = (width - size) // 2
    if basis.size != 2 * reach + 1:
        raise ArgumentError(
            f"Kernels of {basis.size} pixels need source stamps of {size + basis.size - 1};"
            f" got {width}."
        )
    # The target is one more column: a single product of matrices gives all sums.
    products, mean = np.empty((n, m + 1, m + 1)), np.empty((n, m + 1))
    chunk = max(1, min(n, int(_CONVOLVED_PIXELS / ((m + 1) * size**2))))

    def work(start: int) -> None:
        part = slice(start, min(start + chunk, n))
        columns = np.empty((part.stop - start, m + 1, size * size))
        images = columns.reshape(-1, m + 1, size, size)
        root = np.sqrt(stamps.weight[part])
        _convolve(stamps.source[part].astype(np.float64, copy=False), basis, root, images)
        images[:, -2] = root
        np.multiply(stamps.target[part], root, out=images[:, -1])
        np.matmul(columns, columns.transpose(0, 2, 1), out=products[part])
        columns.sum(axis=2, out=mean[part])

    # Chunks in parallel, each on one thread: the result does not depend on their number, and
    # small products do not fight for cores.
    with single_threaded_algebra():
        in_threads(work, range(0, n, chunk))
    pixels = np.count_nonzero(stamps.weight, axis=(1, 2)).astype(np.float64)
    mean /= np.maximum(pixels, 1)[:, None]
    if basis.products is not None:
        # The sums so far are those of the outer products: transform them to the basis images'.
        transform = scipy.linalg.block_diag(basis.products.transform, 1.0, 1.0)
        products = transform @ products @ transform.T
        mean = mean @ transform.T
    return Normals(
        gram=products[:, :-1, :-1],
        right=products[:, :-1, -1],
        square=products[:, -1, -1],
        mean=mean[:, :-1],
        mean_target=mean[:, -1],
        pixels=pixels,
        noise=None if stamps.source_variance is None else _noise_gram(stamps, basis),
    )


def _convolve(sources: Array, basis: KernelBasis, root: Array, out: Array) -> None:
    """Valid convolution of stamps with a basis' outer products or images, times √weight."""
    n, width, _ = sources.shape
    size = root.shape[1]
    if basis.products is None and np.count_nonzero(basis.images) > _FEW_PIXELS * len(basis):
        grid = scipy.fft.next_fast_len(width, real=True)
        inner = slice(width - size, width)
        light = scipy.fft.rfft2(sources, s=(grid, grid))
        for b, image in enumerate(basis.images):
            product = light * scipy.fft.rfft2(image, s=(grid, grid))
            matched = scipy.fft.irfft2(product, s=(grid, grid), overwrite_x=True)
            np.multiply(matched[:, inner, inner], root, out=out[:, b])
        return
    if basis.products is None:
        # Free pixels only shift: their images are windows of the source.
        windows = np.lib.stride_tricks.sliding_window_view(sources, (size, size), axis=(1, 2))
        for b, image in enumerate(basis.images):
            # A pixel at offset d of the kernel takes the window at −d.
            rows, columns = np.nonzero(image[::-1, ::-1])
            out[:, b] = sum(
                image[-1 - i, -1 - j] * windows[:, i, j] for i, j in zip(rows, columns, strict=True)
            )
            out[:, b] *= root
        return
    profiles, pairs = basis.products.profiles, basis.products.pairs
    # Banded matrices: two products of matrices cost less than Fourier transforms.
    bands = np.zeros((len(profiles), size, width))
    for i in range(size):
        bands[:, i, i : i + basis.size] = profiles[:, ::-1]
    along_x = (sources.reshape(-1, width) @ bands.reshape(-1, width).T).reshape(n, width, -1)
    for vertical in sorted({int(first) for first in pairs[:, 0]}):
        members = np.flatnonzero(pairs[:, 0] == vertical)
        horizontal = pairs[members, 1]
        low, high = int(horizontal.min()), int(horizontal.max()) + 1
        both = np.matmul(bands[vertical], along_x[:, :, low * size : high * size])
        both = both.reshape(n, size, high - low, size)
        for b, column in zip(members.tolist(), horizontal.tolist(), strict=True):
            np.multiply(both[:, :, column - low], root, out=out[:, b])


def _noise_gram(stamps: Stamps, basis: KernelBasis) -> Array:
    """The noise's part of every stamp's gram: ``Σ_p w_p Σ_d σ²(p − d) B_b(d) B_c(d)``.

    If the noise is correlated, B are the basis images convolved with √N, which reach beyond the
    kernel's stamp.
    """
    variances = stamps.source_variance
    assert variances is not None
    n, m, width = len(stamps), len(basis) + 1, stamps.source.shape[1]
    images = coloured(basis.images, stamps.source_noise)
    side = images.shape[1]
    # The source's variance beyond its stamp is not known; it is taken from the edge.
    margin = (side - basis.size) // 2
    grid = scipy.fft.next_fast_len(width + 2 * margin, real=True)
    flat = images.reshape(m - 1, -1)
    result = np.zeros((n, m, m))

    def work(start: int) -> None:
        part = slice(start, start + _CHUNK)
        weight = scipy.fft.rfft2(stamps.weight[part], s=(grid, grid))
        variance = variances[part]
        if margin:
            variance = np.pad(variance, [(0, 0), (margin, margin), (margin, margin)], mode="edge")
        variance = scipy.fft.rfft2(variance, s=(grid, grid))
        # Correlation is by index of the source's stamp, along which a kernel's pixels are reversed.
        shared = scipy.fft.irfft2(variance * weight.conj(), s=(grid, grid))
        seen = shared[:, :side, :side][:, ::-1, ::-1].reshape(len(shared), 1, -1)
        result[part, :-1, :-1] = (seen * flat) @ flat.T

    with single_threaded_algebra():
        in_threads(work, range(0, n, _CHUNK))
    return result


def residual_statistics(normals: Normals, local: Array) -> tuple[Array, Array]:
    """Mean and rms of every stamp's residual over its sigma.

    Parameters
    ----------
    normals
        Normal equations.
    local
        ``(n, m)`` coefficients for each stamp.

    Returns
    -------
    mean, rms
        ``(n,)`` each.
    """
    square = (
        normals.square
        - 2 * np.einsum("nm,nm->n", local, normals.right)
        + np.einsum("nm,nmk,nk->n", local, normals.gram, local)
    )
    count = np.maximum(normals.pixels, 1)
    mean = normals.mean_target - np.einsum("nm,nm->n", normals.mean, local)
    return mean, np.sqrt(np.maximum(square, 0) / count)
