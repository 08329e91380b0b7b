"""Normal equations of the stamps of an Alard–Lupton fit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError
from ..noise import NoiseCovariance, coloured
from ..threads import in_threads, single_threaded_algebra
from .basis import KernelBasis

__all__ = ["Normals", "Stamps", "normal_equations", "residual_statistics"]

type Array = npt.NDArray[Any]

_CHUNK = 64
"""Stamps whose source noise is propagated at a time."""

_LIT = 0.3
"""Light over a pixel's noise, from where variances rise with it."""

_FOLLOWS = 5.0
"""Significance with which variances follow the noise of their pixels."""

_ROUNDING = 1e-6
_ALIKE = 3.0
"""Factor within which variances are those of a level and of photons."""

_FEW_PIXELS = 8
"""Pixels of a basis image, on average, up to which shifts cost less than Fourier transforms."""

_CONVOLVED_PIXELS = 4e5
"""Numbers that hold convolved stamps at a time: what the processor's caches hold."""


@dataclasses.dataclass(frozen=True)
class Stamps:
    """Cut-outs around stars.

    Attributes
    ----------
    source
        ``(n, size + kernel − 1, size + kernel − 1)`` of the image to be convolved: wide
        enough for every pixel of the target to have its support.  Finite.
    target
        ``(n, size, size)`` of the image to be matched.  Finite.
    weight
        ``(n, size, size)`` inverse variance of their difference; 0 for pixels not to use,
        those included whose support in the source holds a pixel that could not be interpolated.
    x, y
        ``(n,)`` positions scaled to −1 … 1 between the outer edges of the frame.
    source_variance
        Of ``source``'s pixels, same shape; None: as if it had no noise.
    source_noise
        Covariance of the source's noise, per unit of variance; None for white.
    """

    source: Array
    target: Array
    weight: Array
    x: Array
    y: Array
    source_variance: Array | None = None
    source_noise: NoiseCovariance | None = None

    def __post_init__(self) -> None:
        n, size, width = self.target.shape
        reach = self.source.shape[1] - size
        if size != width or self.source.shape[1] != self.source.shape[2] or reach < 0 or reach % 2:
            raise ArgumentError(
                "Stamps must be square, the source's wider by an even number of pixels; got"
                f" {self.source.shape} and {self.target.shape}."
            )
        if self.weight.shape != self.target.shape or len(self.x) != n or len(self.y) != n:
            raise ArgumentError(
                f"{n} stamps need as many weights and positions; got {self.weight.shape},"
                f" {len(self.x)} and {len(self.y)}."
            )

    def __len__(self) -> int:
        return len(self.target)

    def part(self, which: slice | Array) -> Stamps:
        """Some of the stamps.

        Parameters
        ----------
        which
            Slice, or indices.

        Returns
        -------
        stamps
            Views where it is a slice.
        """
        return Stamps(
            self.source[which],
            self.target[which],
            self.weight[which],
            self.x[which],
            self.y[which],
            None if self.source_variance is None else self.source_variance[which],
            self.source_noise,
        )

    def cropped(self, size: int) -> Stamps:
        """The middles of the stamps.

        Parameters
        ----------
        size
            Odd side of the target's stamps that is left, at most the present one.

        Returns
        -------
        stamps
            Views, for kernels of the same side.
        """
        edge = (self.target.shape[1] - size) // 2
        if edge < 0 or size % 2 == 0:
            raise ArgumentError(
                f"Stamps of {self.target.shape[1]} pixels cannot be cropped to {size}."
            )
        inner = np.s_[:, edge : self.source.shape[1] - edge, edge : self.source.shape[1] - edge]
        target = np.s_[:, edge : edge + size, edge : edge + size]
        return dataclasses.replace(
            self,
            source=self.source[inner],
            target=self.target[target],
            weight=self.weight[target],
            source_variance=None if self.source_variance is None else self.source_variance[inner],
        )

    def in_units(self, source: float, target: float) -> Stamps:
        """The same stamps in other units, so that no number is very large or small.

        Parameters
        ----------
        source, target
            New units of the two images.

        Returns
        -------
        stamps
            Kernels between them are those of these, times the source's unit over the target's.
        """
        variance = self.source_variance
        return dataclasses.replace(
            self,
            source=self.source / source,
            target=self.target / target,
            weight=self.weight * target**2,
            source_variance=None if variance is None else variance / source**2,
        )

    def reweighted(self, more: float, without: Array, residuals: Array) -> Stamps:
        """Stamps with weights that a first fit has shown to be right.

        Parameters
        ----------
        more
            To add to the variance, in units of the source's: the source's noise.
        without
            ``(n, size, size)`` boolean: pixels that lose their weight.
        residuals
            ``(n, size, size)`` what the first fit left.  Where a variance was made of a pixel's
            own counts it follows their noise, and weights that follow noise make pixels count
            more that are too low: by about an electron in every pixel of a star.  These
            variances are smoothed.

        Returns
        -------
        stamps
            The same ones, with other weights.

        Raises
        ------
        ArgumentError
            If the source's variance is not known.
        """
        if self.source_variance is None:
            raise ArgumentError("Stamps without the source's variance cannot be reweighted.")
        reach = (self.source.shape[1] - self.target.shape[1]) // 2
        inner = slice(reach, reach + self.target.shape[1])
        use = (self.weight > 0) & ~without
        given = 1 / np.where(use, self.weight, 1)
        variance = _without_own_noise(given, self.target - residuals, residuals, use)
        change = more * self.source_variance[:, inner, inner]
        # Smoothed, a variance may be less than what a smoother kernel takes off.
        variance = np.maximum(variance + change, (given + change) / _ALIKE)
        return dataclasses.replace(self, weight=np.where(use, 1 / variance, 0))


@dataclasses.dataclass(frozen=True)
class Normals:
    """Normal equations of n single stamps, for m unknowns: basis images and a constant.

    Attributes
    ----------
    gram
        ``(n, m, m)`` weighted products of the columns.
    right
        ``(n, m)`` those of the columns and the target.
    square
        ``(n,)`` that of the target with itself.
    mean, mean_target
        ``(n, m)`` and ``(n,)``: means of the columns and of the target, times √weight.
    pixels
        ``(n,)`` numbers of pixels with weight.
    noise
        ``(n, m, m)``: what the source's noise adds to the products on average; None if it is
        not known.
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
        Of the basis-convolved sources and a constant, weighted.

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
        # What was summed are the products, not the images that are made of them.
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
    """Valid convolution of stamps with the products or images of a basis, times √w."""
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


def _without_own_noise(variance: Array, model: Array, residuals: Array, use: Array) -> Array:
    """Variances that do not follow the noise of the pixels themselves.

    Those that do are replaced by a level for each stamp, plus what they rise by with the light of
    a model: they need not be right to a tenth, only independent of the noise.
    """
    levels, bases = (
        np.array([np.median(p[u]) if u.any() else 0.0 for p, u in zip(plane, use, strict=True)])
        for plane in (model, variance)
    )
    light, above = model - levels[:, None, None], variance - bases[:, None, None]
    lit = use & (light > _LIT * np.sqrt(variance))
    square = float((light[lit] ** 2).sum())
    if not square > 0:
        return variance
    slope = max(0.0, float((light[lit] * above[lit]).sum()) / square)
    unexplained, left = above[lit] - slope * light[lit], residuals[lit]
    scatter = float(np.std(unexplained) * np.std(left))
    together = float(np.mean((unexplained - unexplained.mean()) * left))
    # What rounding leaves of constant variances goes with nothing.
    if not scatter > _ROUNDING * float(np.std(left) * np.mean(variance[lit])):
        return variance
    if not together * math.sqrt(len(left)) > _FOLLOWS * scatter:
        return variance
    smooth = np.where(use, bases[:, None, None] + slope * np.maximum(light, 0), variance)
    # Pixels that are much worse have other reasons.
    is_alike = np.abs(np.log(variance / smooth)) < math.log(_ALIKE)
    return np.where(is_alike, smooth, variance)


def _noise_gram(stamps: Stamps, basis: KernelBasis) -> Array:
    """``Σ_p w_p Σ_d σ²(p − d) B_b(d) B_c(d)`` of every stamp: its noise's part of the gram.

    Of correlated noise B are the basis images convolved with √N, beyond the kernel's stamp as well.
    """
    variances = stamps.source_variance
    assert variances is not None
    n, m, width = len(stamps), len(basis) + 1, stamps.source.shape[1]
    images = coloured(basis.images, stamps.source_noise)
    side = images.shape[1]
    # Further out than its stamp the source's variance is taken as that at the edge.
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
        # By index of the source's stamp, where a kernel's pixels come in reverse.
        shared = scipy.fft.irfft2(variance * weight.conj(), s=(grid, grid))
        seen = shared[:, :side, :side][:, ::-1, ::-1].reshape(len(shared), 1, -1)
        result[part, :-1, :-1] = (seen * flat) @ flat.T

    with single_threaded_algebra():
        in_threads(work, range(0, n, _CHUNK))
    return result


def residual_statistics(normals: Normals, local: Array) -> tuple[Array, Array]:
    """Mean and rms of the residual over its sigma, of every stamp.

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
