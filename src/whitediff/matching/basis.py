"""Basis images of which a matching kernel is made.

Every basis here is renormalised so that the kernel's sum is the coefficient of its first
image: if that coefficient does not vary over the field, neither does the photometric
scale (Alard 2000, section 2.2).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError

__all__ = [
    "KernelBasis",
    "delta_basis",
    "gaussian_basis",
    "gaussian_sigmas",
    "kernel_size",
]

type Array = npt.NDArray[Any]

_SMALLEST_SIGMA = 0.7
_SMALLEST_SIGMA_DECONVOLVING = 0.4
_EQUAL_SIGMAS = (0.7, 1.5, 3.0)
_SMALLEST_SIZE, _LARGEST_SIZE = 21, 35


@dataclasses.dataclass(frozen=True)
class KernelBasis:
    """Basis images of a kernel.

    Attributes
    ----------
    images
        ``(n, size, size)`` float64, origin at ``[size//2, size//2]``.  The first has unit
        sum, all others zero sum.
    penalty
        ``(n, n)`` positive semi-definite matrix whose quadratic form measures how rough
        the kernel is; None if the basis is smooth by itself.
    """

    images: Array
    penalty: Array | None = None

    @property
    def size(self) -> int:
        """Odd side of the images, in pixels."""
        return int(self.images.shape[1])

    def __len__(self) -> int:
        return len(self.images)


def gaussian_sigmas(
    target_sigma: float, source_sigma: float, *, count: int = 3
) -> tuple[float, ...]:
    """Widths of the Gaussians of a kernel, scaled from the two PSFs.

    Parameters
    ----------
    target_sigma, source_sigma
        Widths of the PSF to be matched to, and of the one to be convolved; pixels.
    count
        Number of Gaussians.

    Returns
    -------
    sigmas
        ``σ_K/2``, at least 0.7 pixels (0.4 where the target is the sharper), each next
        twice as wide, with ``σ_K² = |σ_target² − σ_source²|``; (0.7, 1.5, 3.0) for PSFs
        that are equal to 1 %.

    Raises
    ------
    ArgumentError
        If a width is not positive.

    Notes
    -----
    The series of LSST's default configuration.
    """
    for name, sigma in (("target", target_sigma), ("source", source_sigma)):
        if not (math.isfinite(sigma) and sigma > 0):
            raise ArgumentError(f"The {name} PSF's width must be positive; got {sigma:g}.")
    if abs(target_sigma - source_sigma) < 0.01 * target_sigma:
        return tuple(_EQUAL_SIGMAS[0] * 2**i for i in range(count)) if count != 3 else _EQUAL_SIGMAS
    floor = _SMALLEST_SIGMA if target_sigma > source_sigma else _SMALLEST_SIGMA_DECONVOLVING
    first = max(floor, math.sqrt(abs(target_sigma**2 - source_sigma**2)) / 2)
    return tuple(first * 2**i for i in range(count))


def kernel_size(sigmas: tuple[float, ...]) -> int:
    """Side of a kernel that holds its Gaussians.

    Parameters
    ----------
    sigmas
        Widths in pixels, the largest last.

    Returns
    -------
    size
        Six times the largest width, odd, within 21 to 35.
    """
    size = int(6 * sigmas[-1])
    return min(max(size + 1 - size % 2, _SMALLEST_SIZE), _LARGEST_SIZE)


def gaussian_basis(
    sigmas: tuple[float, ...], *, degrees: tuple[int, ...] = (4, 2, 2), size: int | None = None
) -> KernelBasis:
    """Gaussians times polynomials.

    Parameters
    ----------
    sigmas
        Widths of the Gaussians, pixels.
    degrees
        Of the polynomial that multiplies each.
    size
        Odd side of the images; `kernel_size` if not given.

    Returns
    -------
    basis
        For degree d, (d + 1)(d + 2)/2 images: the unit-sum Gaussian times every monomial
        ``x^i y^j`` with x, y from −1 to 1 across the stamp.  Images of non-zero sum are
        divided by it and the first is subtracted; all but the first have unit norm.

    Raises
    ------
    ArgumentError
        If the numbers of widths and degrees differ, or the size is even.

    Notes
    -----
    Alard & Lupton 1998, eq. 3; renormalised as in LSST's ``renormalizeKernelList``.
    """
    if len(sigmas) != len(degrees):
        raise ArgumentError(
            f"Each Gaussian needs a degree; got {len(sigmas)} widths and {len(degrees)} degrees."
        )
    size = kernel_size(sigmas) if size is None else size
    if size % 2 == 0 or size < 3:
        raise ArgumentError(f"A kernel's side must be odd and at least 3; got {size}.")
    pixels = np.arange(size) - size // 2
    unit = pixels / (size // 2)
    images = []
    for sigma, degree in zip(sigmas, degrees, strict=True):
        profile = np.exp(-0.5 * (pixels / sigma) ** 2)
        gaussian = np.outer(profile, profile)
        gaussian /= gaussian.sum()
        for total in range(degree + 1):
            for j in range(total + 1):
                images.append(gaussian * np.outer(unit**j, unit ** (total - j)))
    return KernelBasis(_renormalised(np.array(images)))


def _renormalised(images: Array) -> Array:
    result = images.copy()
    result[0] /= result[0].sum()
    for image in result[1:]:
        total = image.sum()
        # Odd monomials sum to rounding errors, which must not be divided by.
        if abs(total) > 1e-10 * np.abs(image).sum():
            image /= total
            image -= result[0]
        image -= result[0] * image.sum()
        image /= math.sqrt(float((image**2).sum()))
    return result


def delta_basis(size: int) -> KernelBasis:
    """One free pixel after the other.

    Parameters
    ----------
    size
        Odd side of the kernel.

    Returns
    -------
    basis
        The central pixel, then every other pixel minus the central one, with the penalty
        ``Σ |∇² kernel|²``.

    Raises
    ------
    ArgumentError
        If the size is even.

    Notes
    -----
    Becker et al. 2012, MNRAS 425, 1341, section 2.3: delta functions with a penalty on
    the second derivative.
    """
    if size % 2 == 0 or size < 3:
        raise ArgumentError(f"A kernel's side must be odd and at least 3; got {size}.")
    n = size * size
    middle = n // 2
    order = [middle, *(i for i in range(n) if i != middle)]
    flat = np.zeros((n, n))
    flat[np.arange(n), order] = 1.0
    flat[1:, middle] -= 1.0
    # The Laplacian of each image; pixels outside are zero.
    line = -2 * np.eye(size) + np.eye(size, k=1) + np.eye(size, k=-1)
    laplacian = np.kron(line, np.eye(size)) + np.kron(np.eye(size), line)
    curvature = laplacian @ flat.T
    return KernelBasis(flat.reshape(n, size, size), penalty=curvature.T @ curvature)
