"""Kernels of HOTPANTS, from the coefficients in its table.

Becker, HOTPANTS 5.1.11 (Alard & Lupton 1998; Alard 2000): the basis is Gaussians times polynomials.
The coefficients are polynomials of the position within a region; the program keeps the kernel
constant on blocks of pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...direction import Direction
from ...exposures.boxes import Box
from ...exposures.fields import ChebyshevField, Field, PiecewiseField
from ...exposures.kernels import BasisKernel, chebyshev_powers

__all__ = ["HotpantsRegion", "HotpantsSolution", "gaussian_basis"]

type Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class HotpantsRegion:
    """Solution of one region.

    Attributes
    ----------
    box
        Pixels of the region, from 0.
    buffered
        Box that the polynomials are scaled to.
    convolved
        Which image was convolved.
    coefficients
        Column of the table; element 0 is unused.
    """

    box: Box
    buffered: Box
    convolved: Direction
    coefficients: Array

    @property
    def kernel_sum(self) -> float:
        """Sum of the kernel, constant in the region."""
        return float(self.coefficients[1])


@dataclasses.dataclass(frozen=True)
class HotpantsSolution:
    """Kernel and background of a difference of HOTPANTS.

    Attributes
    ----------
    shape
        ``(ny, nx)`` of the images.
    gaussians
        Degree of the polynomial and standard deviation of each Gaussian.
    kernel_width
        Side of the kernel, pixels; odd.
    kernel_order, background_order
        Orders of the polynomials of the position.
    step
        Side of the blocks on which the kernel is constant, pixels.
    normalization
        ``i``, ``t`` or ``u``: the difference is at the level of the science image, of the
        template, or of the image that was not convolved.
    regions
        Solutions of the regions; where these overlap, the later one counts.
    """

    shape: tuple[int, int]
    gaussians: tuple[tuple[int, float], ...]
    kernel_width: int
    kernel_order: int
    background_order: int
    step: int
    normalization: Literal["i", "t", "u"]
    regions: tuple[HotpantsRegion, ...]

    @property
    def n_terms(self) -> int:
        """Number of terms of a polynomial of the kernel's order."""
        return _terms(self.kernel_order)

    @property
    def n_coefficients(self) -> int:
        """Number of coefficients of a region, the rows of the table."""
        basis = sum(_terms(degree) for degree, _ in self.gaussians)
        return basis * self.n_terms + _terms(self.background_order) + 1

    @functools.cached_property
    def basis(self) -> Array:
        """Images of the basis, ``(n, kernel_width, kernel_width)``."""
        return gaussian_basis(self.gaussians, self.kernel_width)

    @property
    def box(self) -> Box:
        """Box of the images."""
        return Box.from_shape(self.shape)

    def region_at(self, *, x: float, y: float) -> HotpantsRegion:
        """Region that contains a position.

        Parameters
        ----------
        x, y
            Pixel coordinates, from 0.

        Returns
        -------
        region
            Region; the nearest one if none contains the position.
        """
        first = self.kernel.fields[0]
        index = first.piece_at(x=x, y=y) if isinstance(first, PiecewiseField) else 0
        return self.regions[index]

    def kernel_image(self, *, x: int, y: int) -> Array:
        """Kernel that made a pixel of the difference, constant on blocks.

        Parameters
        ----------
        x, y
            Pixel, from 0.

        Returns
        -------
        image
            ``(kernel_width, kernel_width)``, origin in the middle.
        """
        region, half = self.region_at(x=x, y=y), self.kernel_width // 2
        # A block has the kernel of one of its pixels; with the default step, the middle one.
        column, row = (
            (at - part.start - half) // self.step * self.step + 2 * half
            for at, part in ((x, region.buffered.x), (y, region.buffered.y))
        )
        weights = self._coefficients(region) @ _monomials(
            self.kernel_order, *_scaled(region.buffered, column, row)
        )
        image: Array = np.tensordot(weights, self.basis, axes=1)
        return image

    def background(self, *, x: float, y: float) -> float:
        """Background that was added to the convolved image at a pixel.

        Parameters
        ----------
        x, y
            Pixel, from 0.

        Returns
        -------
        background
            Background, image_unit, before normalization.
        """
        region = self.region_at(x=x, y=y)
        place = _scaled(region.buffered, x - region.buffered.x.start, y - region.buffered.y.start)
        start = 2 + (len(self.basis) - 1) * self.n_terms
        terms = _monomials(self.background_order, *place)
        return float(region.coefficients[start : start + len(terms)] @ terms)

    def normalized(self, region: HotpantsRegion) -> float:
        """Factor of a region's convolved image by the normalization.

        Parameters
        ----------
        region
            Region.

        Returns
        -------
        factor
            Factor, also of the difference and its noise.
        """
        own = {"template": "t", "science": "i"}[region.convolved]
        return 1 / region.kernel_sum if self.normalization == own else 1.0

    def to_science_level(self, region: HotpantsRegion) -> float:
        """Factor that brings a region's difference to the science image's level.

        Parameters
        ----------
        region
            Region.

        Returns
        -------
        factor
            Factor, positive if the kernel's sum is positive.
        """
        level = 1.0 if region.convolved == "template" else 1 / region.kernel_sum
        return level / self.normalized(region)

    @functools.cached_property
    def kernel(self) -> BasisKernel:
        """Kernel whose polynomials are evaluated at every pixel, not once for each block.

        Notes
        -----
        The mean over a block equals HOTPANTS' kernel of the block, except for the curvature of the
        polynomials.
        """
        tables = [self._chebyshev(region) for region in self.regions]
        fields: list[Any] = []
        for n in range(len(self.basis)):
            pieces: list[tuple[Box, Field]] = [
                (region.box, ChebyshevField(region.buffered, table[n].copy()))
                for region, table in zip(self.regions, tables, strict=True)
            ]
            fields.append(
                ChebyshevField(self.box, tables[0][n].copy())
                if len(pieces) == 1 and self.regions[0].buffered == self.box
                else PiecewiseField(self.box, pieces)
            )
        return BasisKernel(self.basis, fields)

    def _coefficients(self, region: HotpantsRegion) -> Array:
        """Coefficients of a region, ``(n_basis, n_terms)``."""
        table = np.zeros((len(self.basis), self.n_terms))
        table[0, 0] = region.coefficients[1]
        stop = 2 + (len(self.basis) - 1) * self.n_terms
        table[1:] = region.coefficients[2:stop].reshape(-1, self.n_terms)
        return table

    def _chebyshev(self, region: HotpantsRegion) -> Array:
        """Coefficients for Chebyshev polynomials, ``(n_basis, order + 1, order + 1)``."""
        # A block's kernel is evaluated half a kernel behind its first pixel, whatever its size.
        offset = self.kernel_width // 2 - (self.step - 1) / 2
        x, y = (
            (part.start + part.size / 2 - offset, part.size / 2)
            for part in (region.buffered.x, region.buffered.y)
        )
        powers = chebyshev_powers(_exponents(self.kernel_order), region.buffered, x=x, y=y)
        return np.tensordot(self._coefficients(region), powers, axes=1)


def gaussian_basis(gaussians: Sequence[tuple[int, float]], width: int) -> Array:
    """Basis images of HOTPANTS.

    Parameters
    ----------
    gaussians
        Degree and standard deviation of each Gaussian.
    width
        Side of the images, pixels; odd.

    Returns
    -------
    basis
        ``(n, width, width)``; the sum of the first is 1, of the others 0.
    """
    x = np.arange(width, dtype=float) - width // 2
    images: list[Array] = []
    for degree, sigma in gaussians:
        # The program keeps this factor in single precision.
        factor = float(np.float32(1 / (2 * sigma * sigma)))
        for i, j in _exponents(degree):
            profiles = [np.exp(-x * x * factor) * x**power for power in (i, j)]
            even = i % 2 == 0 and j % 2 == 0
            if even:
                profiles = [profile / profile.sum() for profile in profiles]
            image = np.outer(profiles[1], profiles[0])
            images.append(image - images[0] if even and images else image)
    return np.stack(images)


def _terms(order: int) -> int:
    return (order + 1) * (order + 2) // 2


def _exponents(order: int) -> list[tuple[int, int]]:
    """Exponents of x and y, in the order of HOTPANTS' coefficients."""
    return [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]


def _monomials(order: int, x: float, y: float) -> Array:
    return np.array([x**i * y**j for i, j in _exponents(order)])


def _scaled(box: Box, column: float, row: float) -> tuple[float, float]:
    """Column and row of a box's array, scaled as HOTPANTS does."""
    x, y = ((at - size / 2) / (size / 2) for at, size in ((column, box.x.size), (row, box.y.size)))
    return x, y


def widened(box: Box, limits: Box, buffer: int) -> Box:
    """Box with a margin, within limits.

    Parameters
    ----------
    box
        Box.
    limits
        Box that the result stays inside.
    buffer
        Margin on every side, pixels.

    Returns
    -------
    box
        Widened box.
    """
    y, x = (
        (max(whole.start, part.start - buffer), min(whole.stop, part.stop + buffer))
        for part, whole in ((box.y, limits.y), (box.x, limits.x))
    )
    return Box.from_shape((y[1] - y[0], x[1] - x[0]), start=(y[0], x[0]))


_FOUR_DIGITS = 0.51e-4
"""Tolerance of a sum that HOTPANTS writes to four decimals: half of the last, and rounding."""


def sums_agree(kernel_sum: float, stated: float) -> bool:
    """Whether a kernel's sum agrees with a header, which states it to four decimals.

    Parameters
    ----------
    kernel_sum, stated
        Sums.

    Returns
    -------
    agree
        True or False.
    """
    return math.isfinite(stated) and abs(kernel_sum - stated) <= _FOUR_DIGITS
