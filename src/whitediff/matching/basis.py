"""Basis images for matching kernels.

A kernel is a linear combination of basis images.  Every basis here is renormalised so that the
kernel's sum is the coefficient of the first image: if that coefficient is the same over the
field, so is the photometric scale (Alard 2000, section 2.2).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError

__all__ = [
    "GaussianSeries",
    "KernelBasis",
    "Products",
    "delta_basis",
    "elliptical_basis",
    "gaussian_basis",
    "gaussian_sigmas",
    "kernel_size",
    "spline_basis",
]

type Array = npt.NDArray[Any]

_EQUAL_WIDTHS = 0.01
_GAUSSIAN_PENALTY_POWER, _DELTA_PENALTY_POWER = 4, 1
"""Powers of the Laplacian in the penalty.  Frequencies at which the source's PSF has no power are
ill determined; a high power of the Laplacian spares the lower frequencies.  Free pixels bear only
a low one: the penalty's condition number is the Laplacian's to twice the power."""


_ELLIPTICAL_SHARES, _ELLIPTICAL_FLOORS = (0.5, 1.0, 1.5), (0.45, 0.6, 1.2)
_ELLIPTICAL_DEGREES = (6, 4, 2)
_LEAST_FLOOR = 0.5
"""Elliptical Gaussians: shares of the kernel's own width; least widths, in widths of the source's
PSF and in pixels; degrees.  The narrow Gaussian with its high degree can deconvolve along one axis
while the kernel convolves along the other."""

_REDUNDANT = 1e-3
"""Singular value, relative to the largest, up to which an image is a combination of others."""


@dataclasses.dataclass(frozen=True)
class Products:
    """Basis images as linear combinations of outer products of profiles.

    Attributes
    ----------
    profiles
        ``(n_profiles, size)``.
    pairs
        ``(n_products, 2)`` indices of the profiles along y and x.
    transform
        ``(n, n_products)``: each basis image's share of each product.
    """

    profiles: Array
    pairs: Array
    transform: Array


@dataclasses.dataclass(frozen=True)
class KernelBasis:
    """Basis images of a kernel.

    Attributes
    ----------
    images
        ``(n, size, size)`` float64, origin at ``[size//2, size//2]``.  The first has unit
        sum, all others zero sum.
    penalty
        ``(n, n)`` positive definite matrix whose quadratic form measures how rough the
        kernel is; None: roughness costs nothing.
    typical
        ``(n, k)`` coefficients of typical kernels: their roughness costs nothing, nor does the
        roughness of their differences; None for none.
    products
        The images as sums of outer products; None if they are not made of such.
    """

    images: Array
    penalty: Array | None = None
    typical: Array | None = None
    products: Products | None = None

    @property
    def size(self) -> int:
        """Odd side of the images, in pixels."""
        return int(self.images.shape[1])

    def __len__(self) -> int:
        return len(self.images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianSeries:
    """How the Gaussians of a kernel are scaled from two PSFs: LSST's defaults.

    Attributes
    ----------
    degrees
        Degree of the polynomial that multiplies each Gaussian; one for each Gaussian.
    ratio
        Ratio of each width to the one before.
    smallest, smallest_deconvolving
        Least width of the first Gaussian, pixels; `smallest_deconvolving` where the target is
        the sharper.
    equal
        Widths where those of the PSFs are equal to 1 %; continued by the ratio.
    side
        Kernel's side over its largest width.
    smallest_side, largest_side
        Odd limits of the kernel's side, pixels.
    """

    degrees: tuple[int, ...] = (4, 2, 2)
    ratio: float = 2.0
    smallest: float = 0.7
    smallest_deconvolving: float = 0.4
    equal: tuple[float, ...] = (0.7, 1.5, 3.0)
    side: float = 6.0
    smallest_side: int = 21
    largest_side: int = 35

    def __post_init__(self) -> None:
        if not self.degrees or min(self.degrees) < 0:
            raise ArgumentError(f"degrees must be numbers from 0 on; got {self.degrees}.")
        if not self.ratio > 1:
            raise ArgumentError(f"ratio must be above 1; got {self.ratio:g}.")
        for name in ("smallest", "smallest_deconvolving", "side"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{name} must be positive; got {getattr(self, name):g}.")
        if not 3 <= self.smallest_side <= self.largest_side:
            raise ArgumentError(
                f"A kernel's side must be at least 3, and the largest no less than the smallest;"
                f" got {self.smallest_side} to {self.largest_side}."
            )


def gaussian_sigmas(
    target_sigma: float, source_sigma: float, series: GaussianSeries | None = None
) -> tuple[float, ...]:
    """Widths of the Gaussians of a kernel, scaled from the two PSFs.

    Parameters
    ----------
    target_sigma, source_sigma
        Widths of the PSF to be matched to, and of the PSF to be convolved; pixels.
    series
        `GaussianSeries`.

    Returns
    -------
    sigmas
        First ``σ_K/ratio``, at least the smallest, with ``σ_K² = |σ_target² − σ_source²|``; each
        next one is wider by the ratio.  For widths that are equal to 1 %, ``series.equal``.

    Raises
    ------
    ArgumentError
        If a width is not positive.

    Notes
    -----
    The series of LSST's default configuration, without its variant for deconvolution: the
    penalty of the basis takes its place.
    """
    series = series or GaussianSeries()
    for name, sigma in (("target", target_sigma), ("source", source_sigma)):
        if not (math.isfinite(sigma) and sigma > 0):
            raise ArgumentError(f"The {name} PSF's width must be positive; got {sigma:g}.")
    count = len(series.degrees)
    if abs(target_sigma - source_sigma) < _EQUAL_WIDTHS * target_sigma and series.equal:
        equal = list(series.equal[:count])
        while len(equal) < count:
            equal.append(equal[-1] * series.ratio)
        return tuple(equal)
    floor = series.smallest if target_sigma > source_sigma else series.smallest_deconvolving
    first = max(floor, math.sqrt(abs(target_sigma**2 - source_sigma**2)) / series.ratio)
    return tuple(first * series.ratio**i for i in range(count))


def kernel_size(sigmas: tuple[float, ...], series: GaussianSeries | None = None) -> int:
    """Side of a kernel that holds its Gaussians.

    Parameters
    ----------
    sigmas
        Widths in pixels, the largest last.
    series
        `GaussianSeries`.

    Returns
    -------
    size
        ``series.side`` times the largest width, odd, within the limits of the series; by default
        six times, within 21 to 35.
    """
    series = series or GaussianSeries()
    size = int(series.side * sigmas[-1])
    return min(max(size + 1 - size % 2, series.smallest_side), series.largest_side)


def gaussian_basis(
    sigmas: tuple[float, ...], *, degrees: tuple[int, ...] = (4, 2, 2), size: int | None = None
) -> KernelBasis:
    """Gaussians times polynomials.

    Parameters
    ----------
    sigmas
        Widths of the Gaussians, pixels.
    degrees
        Degree of the polynomial that multiplies each Gaussian.
    size
        Odd side of the images; `kernel_size` if not given.

    Returns
    -------
    basis
        For degree d, (d + 1)(d + 2)/2 images: the unit-sum Gaussian times every monomial
        ``x^i y^j`` with x, y from −1 to 1 across the stamp.  Images of non-zero sum are
        divided by it and the first is subtracted; all but the first have unit norm.  The
        penalty is ``Σ |∇⁸ kernel|²``; sums of the plain Gaussians cost nothing.

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
    _check_side(size)
    pixels = np.arange(size) - size // 2
    unit = pixels / (size // 2)
    profiles: list[Array] = []
    pairs: list[tuple[int, int]] = []
    plain: list[int] = []
    for sigma, degree in zip(sigmas, degrees, strict=True):
        profile = np.exp(-0.5 * (pixels / sigma) ** 2)
        first = len(profiles)
        plain.append(len(pairs))
        profiles.extend(profile / profile.sum() * unit**power for power in range(degree + 1))
        for total in range(degree + 1):
            pairs.extend((first + j, first + total - j) for j in range(total + 1))
    rows, columns = np.array(pairs).T
    images = np.array(profiles)[rows][:, :, None] * np.array(profiles)[columns][:, None, :]
    images, transform = _renormalised(images)
    return KernelBasis(
        images,
        penalty=_roughness(images, _GAUSSIAN_PENALTY_POWER),
        # The inverse's rows express each plain Gaussian in the renormalised images.
        typical=np.linalg.inv(transform)[plain].T,
        products=Products(np.array(profiles), np.array(pairs), transform),
    )


def elliptical_basis(target: Array, source: Array, *, size: int) -> KernelBasis:
    """Elliptical Gaussians times polynomials, scaled from the moments of two PSFs.

    Parameters
    ----------
    target, source
        ``(2, 2)`` second moments (xx, xy; xy, yy) of the PSF to be matched to, and of the PSF to
        be convolved, pixel².
    size
        Odd side of the images.

    Returns
    -------
    basis
        Gaussians with the moments ``f² Σ + a² s² I`` for f = ½, 1, 1½ and a = 0.45, 0.6, 1.2,
        times every monomial up to the degrees 6, 4 and 2.  Σ is the difference of the moments,
        negative eigenvalues set to zero; s is the source's width; ``a s`` is at least 0.5 pixels.
        All images but the first are orthonormal; redundant ones are left out.

    Raises
    ------
    ArgumentError
        If the size is even.
    """
    _check_side(size)
    own, axes = np.linalg.eigh(target - source)
    own = np.maximum(own, 0)
    width = float(np.linalg.det(source)) ** 0.25
    pixels = np.arange(size) - size // 2
    y, x = np.meshgrid(pixels, pixels, indexing="ij")
    images: list[Array] = []
    plain: list[int] = []
    for share, floor, degree in zip(
        _ELLIPTICAL_SHARES, _ELLIPTICAL_FLOORS, _ELLIPTICAL_DEGREES, strict=True
    ):
        squares = share**2 * own + max(floor * width, _LEAST_FLOOR) ** 2
        along = np.tensordot(axes.T, np.stack([x, y]), 1)
        image = np.exp(-0.5 * np.tensordot(1 / squares, along**2, 1))
        image /= image.sum()
        plain.append(len(images))
        for total in range(degree + 1):
            images.extend(
                image * (y / (size // 2)) ** j * (x / (size // 2)) ** (total - j)
                for j in range(total + 1)
            )
    whole, _ = _renormalised(np.array(images))
    _, values, modes = np.linalg.svd(whole[1:].reshape(len(whole) - 1, -1), full_matrices=False)
    modes = modes[values > _REDUNDANT * values[0]]
    basis = np.concatenate([whole[:1], modes.reshape(-1, size, size)])
    typical = modes @ (np.array(images)[plain] - whole[0]).reshape(len(plain), -1).T
    return KernelBasis(
        basis,
        penalty=_roughness(basis, _GAUSSIAN_PENALTY_POWER),
        typical=np.concatenate([np.ones((1, len(plain))), typical]),
    )


def spline_basis(size: int, spacing: float) -> KernelBasis:
    """Free form: cubic B-splines on a grid.

    Parameters
    ----------
    size
        Odd side of the kernel.
    spacing
        Spacing of the grid, in pixels, at least 1.  At the grid's highest frequency, a Gaussian
        has 0.7 % of its amplitude left if the spacing is its σ, and 3 % for 1.2 σ.

    Returns
    -------
    basis
        The spline in the middle, then all others whose middle lies in the circle within the
        square, less the first, with the penalty ``Σ |∇² kernel|²``.

    Raises
    ------
    ArgumentError
        If the size is even, or the spacing below a pixel.

    Notes
    -----
    As good as `delta_basis` for an image whose PSF is sampled well enough, with a fraction of
    the unknowns.  B-splines: Unser 1999, IEEE Signal Processing Magazine 16, 22.
    """
    _check_side(size)
    if not spacing >= 1:
        raise ArgumentError(f"A grid finer than the pixels says nothing; got {spacing:g} pixels.")
    half = size // 2
    count = int(half / spacing)
    knots = np.arange(-count, count + 1) * spacing
    distance = np.abs(np.arange(-half, half + 1) - knots[:, None]) / spacing
    profiles = np.where(
        distance < 1,
        2 / 3 - distance**2 + distance**3 / 2,
        np.maximum(2 - distance, 0) ** 3 / 6,
    )
    rows, columns = (index.ravel() for index in np.indices((len(knots), len(knots))))
    away = np.hypot(knots[rows], knots[columns])
    order = np.argsort(away, kind="stable")
    order = order[away[order] < half + 0.5]
    pairs = np.stack([rows, columns], axis=1)[order]
    images = profiles[pairs[:, 0]][:, :, None] * profiles[pairs[:, 1]][:, None, :]
    images, transform = _renormalised(images)
    return KernelBasis(
        images,
        penalty=_roughness(images, _DELTA_PENALTY_POWER),
        products=Products(profiles, pairs, transform),
    )


def _check_side(size: int) -> None:
    if size % 2 == 0 or size < 3:
        raise ArgumentError(f"A kernel's side must be odd and at least 3; got {size}.")


def _renormalised(images: Array) -> tuple[Array, Array]:
    """Images of zero sum, but for a first one of unit sum, and the matrix that makes them."""
    result, transform = images.copy(), np.eye(len(images))
    for i, (image, row) in enumerate(zip(result, transform, strict=True)):
        total = image.sum()
        # Odd monomials sum to rounding errors, which must not be divided by.
        if abs(total) > 1e-10 * np.abs(image).sum():
            row /= total
            image /= total
            if i:
                row -= transform[0]
                image -= result[0]
        if i:
            row -= transform[0] * image.sum()
            image -= result[0] * image.sum()
            norm = math.sqrt(float((image**2).sum()))
            row /= norm
            image /= norm
    return result, transform


def _roughness(images: Array, power: int) -> Array:
    """Matrix of the quadratic form Σ |∇^(2·power) kernel|²; pixels outside are zero."""
    margin = 2 * power
    curved = np.pad(images, ((0, 0), (margin, margin), (margin, margin)))
    for _ in range(power):
        curved = sum(np.roll(curved, step, axis) for axis in (1, 2) for step in (-1, 1)) - (
            4 * curved
        )
    flat = curved.reshape(len(images), -1)
    return flat @ flat.T


def delta_basis(size: int) -> KernelBasis:
    """Free pixels, each an image of its own.

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
    _check_side(size)
    n = size * size
    middle = n // 2
    order = [middle, *(i for i in range(n) if i != middle)]
    flat = np.zeros((n, n))
    flat[np.arange(n), order] = 1.0
    flat[1:, middle] -= 1.0
    images = flat.reshape(n, size, size)
    return KernelBasis(images, penalty=_roughness(images, _DELTA_PENALTY_POWER))
