"""Matching kernels: constant, or basis images times functions of the position.

Positions are in the pixel coordinates of the exposure's box.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import numpy.polynomial.chebyshev as chebyshev
import numpy.polynomial.polynomial as polynomial
import numpy.typing as npt

from ..errors import ArgumentError
from ..numerics.polynomials import chebyshev_products, chebyshev_terms
from .boxes import Box
from .fields import ChebyshevField, Field

__all__ = [
    "BasisKernel",
    "ConvolutionKernel",
    "KernelSum",
    "centered_array",
    "chebyshev_kernel",
    "chebyshev_powers",
    "constant_kernel",
    "convolution_terms",
    "interpolated_kernel",
    "monomial_exponents",
    "polynomial_kernel",
    "term_kernel",
]

type Array = npt.NDArray[Any]


class ConvolutionKernel(abc.ABC):
    """A matching kernel, which may vary over the frame."""

    @property
    @abc.abstractmethod
    def bounds(self) -> Box:
        """Box in which the kernel is valid."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """Shape (ky, kx) of the kernel's images."""

    @property
    @abc.abstractmethod
    def is_constant(self) -> bool:
        """Whether the kernel is known to be constant."""

    @abc.abstractmethod
    def at(self, *, x: float, y: float) -> Array:
        """Image of the kernel at a position.

        Parameters
        ----------
        x, y
            Pixel coordinates; they need not be whole.

        Returns
        -------
        image
            ``(ky, kx)`` float64, origin at ``[ky//2, kx//2]``.
        """


@final
class BasisKernel(ConvolutionKernel):
    """Basis images times functions of the position.

    Parameters
    ----------
    basis
        ``(n, ky, kx)``, origin at ``[ky//2, kx//2]``, n at least 1.
    fields
        Functions of the position, one for each image, all defined in the same box.

    Raises
    ------
    ArgumentError
        If the numbers of functions and images differ, or the functions have different boxes.
    """

    def __init__(self, basis: Array, fields: Sequence[Field]) -> None:
        basis = np.asarray(basis, dtype=np.float64)
        if basis.ndim != 3 or len(basis) != len(fields) or not fields:
            raise ArgumentError(
                "A kernel needs a basis (n, ky, kx), and a function of the position for each; got"
                f" {basis.shape} and {len(fields)} functions."
            )
        if any(field.bounds != fields[0].bounds for field in fields):
            raise ArgumentError("The functions of a kernel must be defined in the same box.")
        self._basis, self._fields = basis, tuple(fields)

    @property
    def basis(self) -> Array:
        """Basis images, ``(n, ky, kx)``."""
        return self._basis

    @property
    def fields(self) -> tuple[Field, ...]:
        """Functions of the position, one for each basis image."""
        return self._fields

    @property
    def bounds(self) -> Box:
        """Box in which the kernel is valid."""
        return self._fields[0].bounds

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (ky, kx) of the kernel's images."""
        return (self._basis.shape[1], self._basis.shape[2])

    @property
    def is_constant(self) -> bool:
        """Whether all functions are constant polynomials."""
        return all(
            isinstance(field, ChebyshevField) and field.is_constant for field in self._fields
        )

    def at(self, *, x: float, y: float) -> Array:
        """Image of the kernel at a position, `ConvolutionKernel.at`."""
        weights = np.array([field(x=x, y=y) for field in self._fields])
        return np.tensordot(weights, self._basis, axes=1)


def constant_kernel(image: Array, bounds: Box) -> BasisKernel:
    """Make a constant kernel.

    Parameters
    ----------
    image
        ``(ky, kx)``, origin at ``[ky//2, kx//2]``.
    bounds
        Box in which the kernel is valid.

    Returns
    -------
    kernel
        Kernel of one basis image with the coefficient 1.
    """
    image = np.asarray(image)
    if image.ndim != 2:
        raise ArgumentError(f"A constant kernel is a 2-D image; got {image.ndim} dimensions.")
    return chebyshev_kernel(image[None], np.ones((1, 1, 1)), bounds)


def chebyshev_kernel(basis: Array, coefficients: Array, bounds: Box) -> BasisKernel:
    """Make a kernel of basis images times Chebyshev polynomials over a box.

    Parameters
    ----------
    basis
        ``(n, ky, kx)``, origin at ``[ky//2, kx//2]``.
    coefficients
        ``(n, y_order + 1, x_order + 1)``; element ``[b, p, q]`` multiplies
        ``T_p(y') T_q(x') · basis[b]``, with x', y' running from −1 to 1 between the
        outer edges of the box's first and last pixels.
    bounds
        Box in which the kernel is valid, and which scales the coordinates.

    Returns
    -------
    kernel
        Kernel.

    Raises
    ------
    ArgumentError
        If the shapes do not fit together.
    """
    basis = np.asarray(basis, dtype=np.float64)
    coefficients = np.asarray(coefficients, dtype=np.float64)
    if basis.ndim != 3 or coefficients.ndim != 3 or len(basis) != len(coefficients):
        raise ArgumentError(
            "A kernel needs a basis (n, ky, kx) and coefficients (n, y_order + 1, x_order + 1);"
            f" got {basis.shape} and {coefficients.shape}."
        )
    return BasisKernel(basis, [ChebyshevField(bounds, matrix.copy()) for matrix in coefficients])


def monomial_exponents(n_terms: int) -> list[tuple[int, int]]:
    """Exponents (of x, of y) in the order 1, x, y, x², xy, y², …

    Parameters
    ----------
    n_terms
        Number of terms, 1, 3, 6, 10, …: (order + 1)(order + 2)/2.

    Returns
    -------
    exponents
        ``n_terms`` pairs.

    Raises
    ------
    ArgumentError
        If no order has that many terms.

    Examples
    --------
    >>> monomial_exponents(6)
    [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)]
    """
    exponents: list[tuple[int, int]] = []
    degree = 0
    while len(exponents) < n_terms:
        exponents += [(degree - i, i) for i in range(degree + 1)]
        degree += 1
    if len(exponents) != n_terms:
        raise ArgumentError(
            f"A polynomial in x and y has 1, 3, 6, 10, … terms; got {n_terms} coefficients."
        )
    return exponents


def polynomial_kernel(basis: Array, coefficients: Array, bounds: Box) -> BasisKernel:
    """Make a kernel of basis images times ordinary polynomials of the pixel position.

    Parameters
    ----------
    basis
        ``(n, ky, kx)``, origin at ``[ky//2, kx//2]``.
    coefficients
        ``(n, n_terms)`` for the terms 1, x, y, x², xy, y², … in pixel coordinates.
    bounds
        Box in which the kernel is valid.

    Returns
    -------
    kernel
        Kernel whose polynomials are rewritten, exactly, in Chebyshev form.

    Raises
    ------
    ArgumentError
        If the shapes do not fit together.
    """
    coefficients = np.asarray(coefficients, dtype=np.float64)
    if coefficients.ndim != 2:
        raise ArgumentError(
            f"Polynomial coefficients have the shape (n, n_terms); got {coefficients.shape}."
        )
    exponents = monomial_exponents(coefficients.shape[1])
    products = chebyshev_powers(exponents, bounds)
    return chebyshev_kernel(basis, np.tensordot(coefficients, products, axes=1), bounds)


def chebyshev_powers(
    exponents: Sequence[tuple[int, int]],
    bounds: Box,
    *,
    x: tuple[float, float] = (0.0, 1.0),
    y: tuple[float, float] = (0.0, 1.0),
) -> Array:
    """Powers of scaled coordinates as Chebyshev polynomials over a box.

    Parameters
    ----------
    exponents
        Exponents of the scaled x and y.
    bounds
        Box of the Chebyshev polynomials.
    x, y
        Zero point z and scale s: the scaled coordinate is ``(pixel − z)/s``.

    Returns
    -------
    coefficients
        ``(n, degree + 1, degree + 1)`` as for `chebyshev_kernel`; exact.
    """
    degree = max((i + j for i, j in exponents), default=0)

    def in_chebyshev(exponent: int, start: int, size: int, scaling: tuple[float, float]) -> Array:
        zero, scale = scaling
        # pixel = middle + half_size · x', as ChebyshevField scales it.
        linear = [(start + 0.5 * size - 0.5 - zero) / scale, 0.5 * size / scale]
        terms = chebyshev.poly2cheb(polynomial.polypow(linear, exponent))
        return np.pad(terms, (0, degree + 1 - len(terms)))

    return np.array(
        [
            np.outer(
                in_chebyshev(j, bounds.y.start, bounds.y.size, y),
                in_chebyshev(i, bounds.x.start, bounds.x.size, x),
            )
            for i, j in exponents
        ]
    )


def interpolated_kernel(
    evaluate_at: Callable[[float, float], Array], bounds: Box, order: int
) -> BasisKernel:
    """Fit a kernel, pixel by pixel, to images known at any position.

    Parameters
    ----------
    evaluate_at
        Function of x and y that returns a ``(ky, kx)`` image, always the same shape.
    bounds
        Box over which to interpolate.
    order
        Total order of the Chebyshev polynomials in x and y; 0 takes the image in the middle.

    Returns
    -------
    kernel
        Kernel with one basis image for each polynomial term; exact if the pixels vary like
        polynomials of that order.
    """
    # Two more nodes than the order needs, so that the fit averages instead of interpolating.
    n_nodes = order + 3 if order else 1
    nodes = np.cos(np.pi * (np.arange(n_nodes) + 0.5) / n_nodes)
    v, u = (grid.ravel() for grid in np.meshgrid(nodes, nodes, indexing="ij"))
    x = bounds.x.start - 0.5 + 0.5 * bounds.x.size * (1 + u)
    y = bounds.y.start - 0.5 + 0.5 * bounds.y.size * (1 + v)
    images = np.array(
        [np.asarray(evaluate_at(*at), dtype=np.float64) for at in zip(x, y, strict=True)]
    )
    solution, *_ = np.linalg.lstsq(
        chebyshev_products(order, u, v), images.reshape(len(images), -1), rcond=None
    )
    return term_kernel(solution.reshape(-1, *images.shape[1:]), order, bounds)


def term_kernel(images: Array, order: int, bounds: Box) -> BasisKernel:
    """Make a kernel with one image for each Chebyshev term.

    Parameters
    ----------
    images
        ``(n_terms, ky, kx)`` in the order of `whitediff.numerics.polynomials.chebyshev_terms`.
    order
        Total order of the polynomials in x and y.
    bounds
        Box in which the kernel is valid, and which scales the coordinates.

    Returns
    -------
    kernel
        Kernel.
    """
    terms = chebyshev_terms(order)
    coefficients = np.zeros((len(terms), order + 1, order + 1))
    for i, (p, q) in enumerate(terms):
        coefficients[i, p, q] = 1.0
    return chebyshev_kernel(images, coefficients, bounds)


def centered_array(array: Array, start: tuple[int, int]) -> Array:
    """Pad an image so that its origin is at ``[ny//2, nx//2]``.

    Parameters
    ----------
    array
        ``(..., ny, nx)``.
    start
        Coordinates (y, x) of the first pixel; (0, 0) is the origin.

    Returns
    -------
    array
        Float64; an axis whose origin was elsewhere is zero-padded on one side.

    Raises
    ------
    ArgumentError
        If the origin lies outside the image.
    """
    padding = [(0, 0)] * (array.ndim - 2)
    for size, first in zip(array.shape[-2:], start, strict=True):
        before, after = -first, size + first - 1
        if before < 0 or after < 0:
            raise ArgumentError(
                f"The kernel's box {Box.from_shape(array.shape[-2:], start)} does not contain its"
                " origin (0, 0)."
            )
        # An even length has one more pixel before the origin than after it.
        padding.append(
            (0, 0) if before == size // 2 else (max(0, after - before), max(0, before - after))
        )
    return np.pad(np.asarray(array, dtype=np.float64), padding)


def convolution_terms(
    kernel: ConvolutionKernel, box: Box
) -> tuple[Array, Callable[[slice, slice], Array] | None]:
    """Arguments of `whitediff.numerics.convolution.convolve_varying` for a kernel.

    Parameters
    ----------
    kernel
        Kernel.
    box
        Box of the image to convolve.

    Returns
    -------
    images
        ``(n, ky, kx)``.
    weights
        Function of a slice of the box's rows and a slice of its columns, which returns the images'
        weights there, ``(n, rows, columns)``.  None for a constant kernel.

    Raises
    ------
    ArgumentError
        If the kernel varies and is not made of basis images.
    """
    if kernel.is_constant:
        return kernel.at(x=box.x.center, y=box.y.center)[None], None
    if not isinstance(kernel, BasisKernel):
        raise ArgumentError(
            f"Only kernels of basis images can be convolved with; got {type(kernel).__name__}."
        )
    fields = kernel.fields

    def weights(rows: slice, columns: slice) -> Array:
        part = box.part(rows, columns)
        return np.stack([field.on(part) for field in fields])

    return kernel.basis, weights


class KernelSum:
    """Sum of a kernel's pixels as it varies over the field; one number if it does not vary."""

    def __init__(self, kernel: ConvolutionKernel, box: Box) -> None:
        images, weights = convolution_terms(kernel, box)
        sums = images.sum(axis=(1, 2))
        self._box, self._constant, self._terms = box, float(sums[0]), []
        if weights is not None and isinstance(kernel, BasisKernel):
            # In most bases all images but the first have zero sum, and can be skipped.
            self._terms = [
                (total, field)
                for total, field in zip(sums, kernel.fields, strict=True)
                if abs(total) > 1e-9 * np.abs(sums).max()
            ]

    def on(self, rows: slice) -> Array | float:
        """Kernel sums on some rows: ``(rows, columns)``, or one number if constant."""
        if not self._terms:
            return self._constant
        part = self._box.part(rows)
        return sum(total * field.on(part) for total, field in self._terms)
