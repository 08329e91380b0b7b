"""Solutions of SFFT: kernels of free pixels, with polynomials of the source's position.

Hu et al. 2022 (ApJ 936, 157), SFFT 1.7.3: the image is multiplied by monomials of the position
before it is convolved with the kernel's pixels.  So the kernel of a position spreads its light.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from ...exposures.boxes import Box
from ...exposures.kernels import BasisKernel, term_kernel
from ...numerics.polynomials import chebyshev_terms

__all__ = ["SfftSolution"]

type Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class SfftSolution:
    """Kernel and background of a difference of SFFT.

    Attributes
    ----------
    shape
        ``(ny, nx)`` of the images.
    order, background_order
        Orders of the polynomials of the position.
    coefficients
        ``(n_terms, ky, kx)``: pixels of the kernel, origin in the middle, that multiply
        ``X**i Y**j`` in the order of `exponents`.  X and Y are the source's FITS pixel coordinates
        divided by the sides of the image.
    background
        ``(n_terms,)`` in the same order, image_unit.
    """

    shape: tuple[int, int]
    order: int
    background_order: int
    coefficients: Array
    background: Array

    @property
    def box(self) -> Box:
        """Box of the images."""
        return Box.from_shape(self.shape)

    def kernel_image(self, *, x: float, y: float) -> Array:
        """Kernel that spreads the light of a position, as in SFFT.

        Parameters
        ----------
        x, y
            Pixel coordinates of the source, from 0.

        Returns
        -------
        image
            ``(ky, kx)``, origin in the middle.
        """
        ny, nx = self.shape
        terms = [((x + 1) / nx) ** i * ((y + 1) / ny) ** j for i, j in exponents(self.order)]
        image: Array = np.tensordot(terms, self.coefficients, axes=1)
        return image

    def background_at(self, *, x: float, y: float) -> float:
        """Background that was subtracted.

        Parameters
        ----------
        x, y
            Pixel coordinates, from 0.

        Returns
        -------
        background
            Background, image_unit.
        """
        ny, nx = self.shape
        terms = [
            ((x + 1) / nx) ** i * ((y + 1) / ny) ** j for i, j in exponents(self.background_order)
        ]
        return float(np.dot(terms, self.background))

    @functools.cached_property
    def kernel(self) -> BasisKernel:
        """Kernel in whitediff's convention, as a function of the *resulting* pixel.

        Notes
        -----
        The conversion is exact: the weight of kernel pixel a, for a source at x − a, is also a
        polynomial of x.
        """
        order, (ny, nx) = self.order, self.shape
        ky, kx = self.coefficients.shape[1:]
        along_x, along_y = _series(order, nx, kx), _series(order, ny, ky)
        terms = chebyshev_terms(order)
        images = np.zeros((len(terms), ky, kx))
        for (i, j), pixels in zip(exponents(order), self.coefficients, strict=True):
            for image, (p, q) in zip(images, terms, strict=True):
                image += pixels * along_y[j, :, p, None] * along_x[i, None, :, q]
        return term_kernel(images, order, self.box)


def exponents(order: int) -> list[tuple[int, int]]:
    """Exponents of X and Y, in the order of SFFT's coefficients.

    Parameters
    ----------
    order
        Largest sum of both exponents.

    Returns
    -------
    exponents
        Pairs of exponents.
    """
    return [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]


def _series(order: int, length: int, side: int) -> Array:
    """Powers of a source's coordinate as Chebyshev series of the result's coordinate.

    Element ``[i, k]`` is the series of X**i for pixel k of a kernel, over ``length`` pixels.
    """
    result = np.zeros((order + 1, side, order + 1))
    for k in range(side):
        # The source is k − side//2 pixels before the result; X = 1/length at the first pixel.
        linear = [0.5 + (0.5 - (k - side // 2)) / length, 0.5]
        for i in range(order + 1):
            power = np.polynomial.polynomial.polypow(linear, i)
            series = np.polynomial.chebyshev.poly2cheb(power)
            result[i, k, : len(series)] = series
    return result
