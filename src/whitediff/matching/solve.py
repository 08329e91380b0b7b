"""The Alard–Lupton fit: one linear least-squares problem for the whole field.

Stamps around stars of the image to be convolved (*source*) and of the one to be matched
(*target*) determine ``κ(x, y) = a₀·B₀ + Σ_b f_b(x, y)·B_b`` and a background, where the f_b
and the background are Chebyshev polynomials of the position over the frame.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.linalg

from ..errors import ArgumentError, DataError
from ..fourier import pad_center_origin
from ..polynomials import chebyshev_products, chebyshev_terms
from .basis import KernelBasis

__all__ = ["FitOptions", "KernelFit", "Stamps", "fit_kernel"]

type Array = npt.NDArray[Any]

_CHUNK = 64
"""Stamps that are convolved with the basis at a time: some 100 MB."""

_LARGEST_CONDITION = 1e13


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
        those included whose support in the source holds a bad pixel.
    x, y
        ``(n,)`` positions scaled to −1 … 1 between the outer edges of the frame.
    """

    source: Array
    target: Array
    weight: Array
    x: Array
    y: Array

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How to fit.

    Attributes
    ----------
    kernel_order, background_order
        Of the Chebyshev polynomials in x and y together.
    constant_sum
        Keep the kernel's sum the same over the field.
    smoothness
        Weight of the basis' penalty, relative to the data's own curvature.
    rejections
        Rounds of rejection, at most.
    largest_mean, largest_rms
        Of a stamp's residual over its sigma: a stamp beyond either is rejected.
    sum_clip
        Stamps whose own kernel sum is that many robust sigmas from the median are rejected.
    """

    kernel_order: int = 1
    background_order: int = 2
    constant_sum: bool = True
    smoothness: float = 1e-6
    rejections: int = 3
    largest_mean: float = 0.25
    largest_rms: float = 1.5
    sum_clip: float = 3.0

    def __post_init__(self) -> None:
        for name in ("kernel_order", "background_order", "rejections"):
            if getattr(self, name) < 0:
                raise ArgumentError(f"{name} must not be negative; got {getattr(self, name)}.")
        for name in ("smoothness", "largest_mean", "largest_rms", "sum_clip"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{name} must be positive; got {getattr(self, name):g}.")


@dataclasses.dataclass(frozen=True)
class KernelFit:
    """A fitted kernel and background, and how good they are.

    Attributes
    ----------
    kernel_coefficients
        ``(n_basis, order + 1, order + 1)``; ``[b, p, q]`` multiplies ``T_p(y) T_q(x) B_b``.
    background_coefficients
        ``(order + 1, order + 1)``, image_unit.
    used
        ``(n_stamps,)`` boolean: stamps that were not rejected.
    residual_mean, residual_rms
        ``(n_stamps,)`` of the residual over its sigma.
    kernel_sum, kernel_sum_error
        In the middle of the frame.
    condition
        Condition number of the scaled normal matrix.
    degrees_of_freedom, chi_square
        Of the final fit, over all used pixels.
    """

    kernel_coefficients: Array
    background_coefficients: Array
    used: Array
    residual_mean: Array
    residual_rms: Array
    kernel_sum: float
    kernel_sum_error: float
    condition: float
    degrees_of_freedom: int
    chi_square: float

    @property
    def kernel_order(self) -> int:
        """Spatial order of the kernel."""
        return self.kernel_coefficients.shape[1] - 1

    @property
    def background_order(self) -> int:
        """Spatial order of the background."""
        return self.background_coefficients.shape[0] - 1

    def coefficients_at(self, x: Array, y: Array) -> Array:
        """Coefficients of the basis images, and the background, at positions.

        Parameters
        ----------
        x, y
            ``(n,)``, scaled to −1 … 1 over the frame.

        Returns
        -------
        coefficients
            ``(n, n_basis + 1)``; the last is the background.
        """
        kernel = [np.polynomial.chebyshev.chebval2d(y, x, c) for c in self.kernel_coefficients]
        background = np.polynomial.chebyshev.chebval2d(y, x, self.background_coefficients)
        return np.stack([*kernel, background], axis=1)

    @property
    def reduced_chi_square(self) -> float:
        """Chi-square per degree of freedom; NaN without one."""
        if self.degrees_of_freedom <= 0:
            return math.nan
        return self.chi_square / self.degrees_of_freedom


@dataclasses.dataclass(frozen=True)
class _Normals:
    """Normal equations of single stamps for ``(basis…, constant)``."""

    gram: Array  # (n, m, m)
    right: Array  # (n, m)
    square: Array  # (n,)
    mean: Array  # (n, m): mean of √w times each column
    mean_target: Array  # (n,)
    pixels: Array  # (n,)


def _normals(stamps: Stamps, basis: KernelBasis) -> _Normals:
    n, m, size = len(stamps), len(basis) + 1, stamps.target.shape[1]
    width = stamps.source.shape[1]
    reach = (width - size) // 2
    if basis.size != 2 * reach + 1:
        raise ArgumentError(
            f"Kernels of {basis.size} pixels need source stamps of {size + basis.size - 1};"
            f" got {width}."
        )
    # Circular convolution on the stamp's own grid: what wraps around is cut off.
    grid = scipy.fft.next_fast_len(width, real=True)
    basis_ft = np.stack(
        [scipy.fft.rfft2(pad_center_origin(image, (grid, grid))) for image in basis.images]
    )
    gram, right = np.empty((n, m, m)), np.empty((n, m))
    mean, mean_target = np.empty((n, m)), np.empty(n)
    square, pixels = np.empty(n), np.empty(n)
    chunk = max(1, _CHUNK * 27 // len(basis))
    for start in range(0, n, chunk):
        part = slice(start, min(start + chunk, n))
        source_ft = scipy.fft.rfft2(stamps.source[part].astype(np.float64), s=(grid, grid))
        convolved = scipy.fft.irfft2(source_ft[:, None] * basis_ft[None], s=(grid, grid))
        inner = slice(reach, reach + size)
        columns = np.ones((len(convolved), m, size * size))
        columns[:, :-1] = convolved[:, :, inner, inner].reshape(len(convolved), m - 1, -1)
        root = np.sqrt(stamps.weight[part].reshape(len(convolved), 1, -1))
        columns *= root
        target = stamps.target[part].reshape(len(convolved), -1) * root[:, 0]
        gram[part] = columns @ columns.transpose(0, 2, 1)
        right[part] = (columns @ target[:, :, None])[:, :, 0]
        square[part] = (target**2).sum(axis=1)
        pixels[part] = np.count_nonzero(root[:, 0], axis=1)
        count = np.maximum(pixels[part], 1)
        mean[part] = columns.sum(axis=2) / count[:, None]
        mean_target[part] = target.sum(axis=1) / count
    return _Normals(gram, right, square, mean, mean_target, pixels)


def fit_kernel(stamps: Stamps, basis: KernelBasis, options: FitOptions | None = None) -> KernelFit:
    """Fit a spatially varying kernel and background to stamps around stars.

    Parameters
    ----------
    stamps
        Stamps.
    basis
        Basis images of the kernel.
    options
        `FitOptions`.

    Returns
    -------
    fit
        `KernelFit`.

    Raises
    ------
    ArgumentError
        If the stamps do not have the support that the basis needs.
    DataError
        If there are too few stamps for the unknowns, or the fit is singular.

    Notes
    -----
    Alard & Lupton 1998 and Alard 2000, with a weight for every pixel instead of one for
    every stamp.  Rejection: single stamps that their own fit does not describe, then
    those of outlying kernel sum, then, round after round, those that the common fit does
    not describe.  At most a quarter of the stamps that are left goes in one round, the
    worst first.
    """
    options = options or FitOptions()
    normals = _normals(stamps, basis)
    kernel_terms = chebyshev_products(options.kernel_order, stamps.x, stamps.y)
    background_terms = chebyshev_products(options.background_order, stamps.x, stamps.y)
    design = _Design(basis, kernel_terms, background_terms, options)
    used = normals.pixels > len(basis) + 1
    used &= _single_fits(normals, basis, options, used)
    solution = covariance = None
    condition = math.inf
    for round_number in range(options.rejections + 1):
        solution, covariance, condition = design.solve(normals, used)
        mean, rms = _residuals(normals, design.local(solution))
        bad = used & ((np.abs(mean) > options.largest_mean) | (rms > options.largest_rms))
        if round_number == options.rejections or not bad.any():
            break
        badness = np.maximum(np.abs(mean) / options.largest_mean, rms / options.largest_rms)
        most = max(1, int(used.sum()) // 4)
        worst = np.argsort(np.where(bad, badness, 0))[::-1][: min(most, int(bad.sum()))]
        used[worst] = False
    assert solution is not None
    assert covariance is not None
    chi_square = float((rms[used] ** 2 * normals.pixels[used]).sum())
    middle = design.sum_gradient()
    return KernelFit(
        kernel_coefficients=design.kernel_coefficients(solution),
        background_coefficients=design.background_coefficients(solution),
        used=used,
        residual_mean=mean,
        residual_rms=rms,
        kernel_sum=float(middle @ solution),
        kernel_sum_error=math.sqrt(float(middle @ covariance @ middle)),
        condition=condition,
        degrees_of_freedom=int(normals.pixels[used].sum()) - len(solution),
        chi_square=chi_square,
    )


def _residuals(normals: _Normals, local: Array) -> tuple[Array, Array]:
    """Mean and rms of (data − model)/σ of every stamp, for local coefficients."""
    square = (
        normals.square
        - 2 * np.einsum("nm,nm->n", local, normals.right)
        + np.einsum("nm,nmk,nk->n", local, normals.gram, local)
    )
    count = np.maximum(normals.pixels, 1)
    mean = normals.mean_target - np.einsum("nm,nm->n", normals.mean, local)
    return mean, np.sqrt(np.maximum(square, 0) / count)


def _single_fits(normals: _Normals, basis: KernelBasis, options: FitOptions, used: Array) -> Array:
    """Stamps that a kernel of their own describes, and whose sum is no outlier."""
    m = len(basis) + 1
    ridge = np.zeros((m, m))
    if basis.penalty is not None:
        ridge[:-1, :-1] = basis.penalty
    local = np.zeros((len(normals.right), m))
    error = np.full(len(local), np.inf)
    for i in np.flatnonzero(used):
        scale = options.smoothness * np.trace(normals.gram[i]) / max(np.trace(ridge), 1e-300)
        matrix = normals.gram[i] + ridge * (scale if basis.penalty is not None else 0.0)
        # Faint stars do not determine every basis image: the shortest solution will do.
        inverse = np.linalg.pinv(matrix, rcond=1e-12, hermitian=True)
        local[i] = inverse @ normals.right[i]
        error[i] = math.sqrt(max(float(inverse[0] @ normals.gram[i] @ inverse[0]), 0.0))
    mean, rms = _residuals(normals, local)
    good = used & (np.abs(mean) <= options.largest_mean) & (rms <= options.largest_rms)
    if good.sum() >= 3:
        sums = local[:, 0]
        # In units of each stamp's own error: faint stars scatter more, and rightly so.
        # What all scatter beyond that (the sum may vary over the field) widens the limit.
        offset = (sums - np.median(sums[good])) / np.maximum(error, 1e-300)
        spread = max(1.0, 1.4826 * float(np.median(np.abs(offset[good]))))
        good &= np.abs(offset) <= options.sum_clip * spread
    return good


class _Design:
    """How the unknowns of the field make the coefficients of a stamp."""

    def __init__(
        self,
        basis: KernelBasis,
        kernel_terms: Array,
        background_terms: Array,
        options: FitOptions,
    ) -> None:
        self.basis, self.options = basis, options
        self.kernel_terms, self.background_terms = kernel_terms, background_terms
        n_kernel = kernel_terms.shape[1]
        self.first = 1 if options.constant_sum else n_kernel
        self.n_varying = (len(basis) - 1) * n_kernel
        self.size = self.first + self.n_varying + background_terms.shape[1]

    def _parts(self) -> tuple[slice, slice, slice]:
        varying = self.first + self.n_varying
        return slice(0, self.first), slice(self.first, varying), slice(varying, self.size)

    def _matrix(self, i: int) -> Array:
        """``(n_basis + 1, size)`` matrix from the unknowns to one stamp's coefficients."""
        matrix = np.zeros((len(self.basis) + 1, self.size))
        first, varying, background = self._parts()
        matrix[0, first] = self.kernel_terms[i, : self.first]
        matrix[1:-1, varying] = np.kron(np.eye(len(self.basis) - 1), self.kernel_terms[i])
        matrix[-1, background] = self.background_terms[i]
        return matrix

    def solve(self, normals: _Normals, used: Array) -> tuple[Array, Array, float]:
        """Solution, its covariance, and the condition of the scaled normal matrix."""
        n_used = int(used.sum())
        fewest = max(3, self.kernel_terms.shape[1], self.background_terms.shape[1])
        if n_used < fewest:
            raise DataError(
                f"{n_used} of {len(used)} stamps are usable, but kernel order"
                f" {self.options.kernel_order} and background order"
                f" {self.options.background_order} need at least {fewest}; lower the orders."
            )
        gram, right = np.zeros((self.size, self.size)), np.zeros(self.size)
        for i in np.flatnonzero(used):
            matrix = self._matrix(int(i))
            gram += matrix.T @ normals.gram[i] @ matrix
            right += matrix.T @ normals.right[i]
        data = gram.copy()
        if self.basis.penalty is not None:
            gram += self._penalty(np.trace(gram))
        scale = 1 / np.sqrt(np.maximum(np.diag(gram), 1e-300))
        scaled = gram * np.outer(scale, scale)
        eigenvalues = scipy.linalg.eigvalsh(scaled)
        condition = float(eigenvalues[-1] / max(eigenvalues[0], 1e-300))
        if not condition < _LARGEST_CONDITION:
            raise DataError(
                f"The fit of {self.size} unknowns to {n_used} stamps is singular (condition"
                f" {condition:.1g}); lower the spatial orders or use more stars."
            )
        factor = scipy.linalg.cho_factor(scaled)
        solution = scale * scipy.linalg.cho_solve(factor, scale * right)
        inverse = np.outer(scale, scale) * scipy.linalg.cho_solve(factor, np.eye(self.size))
        return solution, inverse @ data @ inverse, condition

    def _penalty(self, trace: float) -> Array:
        assert self.basis.penalty is not None
        # Roughness of the kernel that belongs to each polynomial term, summed.
        n_kernel = self.kernel_terms.shape[1]
        full = np.zeros((self.size, self.size))
        for term in range(n_kernel):
            matrix = np.zeros((len(self.basis), self.size))
            if term < self.first:
                matrix[0, term] = 1.0
            for b in range(1, len(self.basis)):
                matrix[b, self.first + (b - 1) * n_kernel + term] = 1.0
            full += matrix.T @ self.basis.penalty @ matrix
        return full * (self.options.smoothness * trace / np.trace(full))

    def local(self, solution: Array) -> Array:
        """``(n_stamps, n_basis + 1)`` coefficients of every stamp."""
        first, varying, background = self._parts()
        table = solution[varying].reshape(len(self.basis) - 1, -1)
        result = np.empty((len(self.kernel_terms), len(self.basis) + 1))
        result[:, 0] = self.kernel_terms[:, : self.first] @ solution[first]
        result[:, 1:-1] = self.kernel_terms @ table.T
        result[:, -1] = self.background_terms @ solution[background]
        return result

    def kernel_coefficients(self, solution: Array) -> Array:
        """Chebyshev matrices of the basis images' coefficients."""
        first, varying, _ = self._parts()
        order = self.options.kernel_order
        table = np.zeros((len(self.basis), self.kernel_terms.shape[1]))
        table[0, : self.first] = solution[first]
        table[1:] = solution[varying].reshape(len(self.basis) - 1, -1)
        matrices = np.zeros((len(self.basis), order + 1, order + 1))
        for column, (p, q) in enumerate(chebyshev_terms(order)):
            matrices[:, p, q] = table[:, column]
        return matrices

    def background_coefficients(self, solution: Array) -> Array:
        """Chebyshev matrix of the background."""
        order = self.options.background_order
        matrix = np.zeros((order + 1, order + 1))
        terms = chebyshev_terms(order)
        for (p, q), value in zip(terms, solution[self._parts()[2]], strict=True):
            matrix[p, q] = value
        return matrix

    def sum_gradient(self) -> Array:
        """Derivative of the kernel's sum in the middle of the frame by the unknowns."""
        gradient = np.zeros(self.size)
        middle = chebyshev_products(self.options.kernel_order, np.zeros(1), np.zeros(1))[0]
        gradient[: self.first] = middle[: self.first]
        return gradient
