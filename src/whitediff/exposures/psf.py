"""Point-spread functions, above all kernel PSFs, which are given by images."""

from __future__ import annotations

import abc
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError
from ..numerics.convolution import convolve
from ..numerics.profiles import full_width_half_maximum
from .boxes import Box
from .fields import ChebyshevField, moved_to, scaled_to, scattered_fit
from .kernels import BasisKernel, chebyshev_kernel, constant_kernel, interpolated_kernel

__all__ = [
    "KernelPointSpreadFunction",
    "Light",
    "PointSpreadFunction",
    "as_kernel_psf",
    "convolved_psf",
    "fwhm_of_psf",
    "moved_psf",
    "psf_images",
    "sampled_psf",
    "scattered_psf",
    "shifted",
]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.exposures")

_PSF_CELL = 32
"""Side of the cells, pixels, in which a PSF that is slow to evaluate is taken as constant."""

_HIGHEST_ORDER = 6
_LEAST_OF_NOISE = 0.2
"""Smallest variance of a flux, as a share of its variance by the variance plane."""
_MATTERS = 1e-3
"""Error of a PSF, relative to its peak, that deserves a warning."""


class PointSpreadFunction(abc.ABC):
    """Image of a point source, which may vary over the frame."""

    @property
    @abc.abstractmethod
    def bounds(self) -> Box:
        """Box in which the PSF is valid."""

    @abc.abstractmethod
    def at(self, *, x: float, y: float) -> Array:
        """Image of the PSF at a position.

        Parameters
        ----------
        x, y
            Pixel coordinates.

        Returns
        -------
        image
            ``(py, px)`` float64, centred on ``[py//2, px//2]``, unit sum.

        Raises
        ------
        ArgumentError
            If the PSF is not defined there.
        """

    @property
    def average_position(self) -> tuple[float, float]:
        """Position x, y where the PSF is nominal: the middle of its box unless overridden."""
        return (self.bounds.x.center, self.bounds.y.center)

    def star(self, *, x: float, y: float) -> tuple[Array, Box]:
        """Image of a star of unit flux, shifted by fractions of a pixel.

        Parameters
        ----------
        x, y
            Pixel coordinates of the star.

        Returns
        -------
        image
            ``(py, px)`` float64, unit sum.
        box
            Box of its pixels.

        Notes
        -----
        The shift is a phase in Fourier space, which is exact for a well-sampled PSF; the result
        is normalised to unit sum.
        """
        image = self.at(x=x, y=y)
        row, column = _round_half_up(y), _round_half_up(x)
        moved = shifted(image, y - row, x - column)
        start = (row - image.shape[0] // 2, column - image.shape[1] // 2)
        return moved / moved.sum(), Box.from_shape(image.shape, start)


@dataclasses.dataclass(frozen=True)
class Light:
    """Relation of fluxes measured with a PSF's images to the true fluxes of sources.

    Attributes
    ----------
    enclosed
        Share of a point source's light that the images hold; the rest is in wings beyond them, or
        was moved there by a filter.  Above 1 if a filter moved more light in than out.
    error
        Relative standard deviation of fluxes measured with the PSF, from its uncertainty.
    own_variances
        Variance that the photons of a source add to its flux, beyond the variance plane, for each
        unit of flux: for positive and for negative sources (`own_photons`).
    """

    enclosed: float = 1.0
    error: float = 0.0
    own_variances: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, psf: PointSpreadFunction) -> Light:
        """Light of any PSF.

        Parameters
        ----------
        psf
            PSF; if it is not a kernel PSF, its images are taken to hold all light.

        Returns
        -------
        light
            `Light`.
        """
        return psf.light if isinstance(psf, KernelPointSpreadFunction) else cls()

    @classmethod
    def of_parts(cls, lights: Sequence[Light]) -> Light:
        """Light of the PSF of an image of several parts.

        Parameters
        ----------
        lights
            `Light` of the PSF of each part.

        Returns
        -------
        light
            Means of the parts, and the largest error.
        """
        first, second = np.mean([each.own_variances for each in lights], axis=0)
        return cls(
            float(np.mean([each.enclosed for each in lights])),
            max(each.error for each in lights),
            (float(first), float(second)),
        )

    def whole_error(self, flux: Array, error: Array) -> Array:
        """Error of fluxes measured with the PSF.

        Parameters
        ----------
        flux
            ``(n,)`` fluxes.
        error
            ``(n,)`` standard deviation by the variance plane.

        Returns
        -------
        error
            ``(n,)`` standard deviation that includes the sources' own photons and the error of the
            PSF, a factor that all fluxes share.
        """
        of_source, of_missing = self.own_variances
        noise = error**2 + np.where(flux > 0, of_source, -of_missing) * flux
        noise = np.maximum(noise, _LEAST_OF_NOISE * error**2)
        result: Array = np.sqrt(noise + (self.error * flux) ** 2)
        return result

    def filtered(self, total: float) -> Light:
        """Light after a filter.

        Parameters
        ----------
        total
            Sum of the filtered PSF image, which had unit sum, over the filter's response to a
            constant of 1.

        Returns
        -------
        light
            `Light`.
        """
        return dataclasses.replace(self, enclosed=self.enclosed * total)


class KernelPointSpreadFunction(PointSpreadFunction):
    """A PSF given by images, constant or varying with position.

    Parameters
    ----------
    kernel
        Basis images times functions of the position; its images need not have unit sum.
    average_position
        Position x, y where the PSF is nominal; the middle of the kernel's bounds if not given.
    light
        Share of a point source's light in the images, and errors; None for all light.

    Notes
    -----
    Every image of the PSF has unit sum: fluxes are those within the images' area, until they are
    divided by ``light.enclosed``.
    """

    def __init__(
        self,
        kernel: BasisKernel,
        *,
        average_position: tuple[float, float] | None = None,
        light: Light | None = None,
    ) -> None:
        self._kernel = kernel
        self._light = Light() if light is None else light
        if average_position is None:
            average_position = super().average_position
        self._average_position = (float(average_position[0]), float(average_position[1]))

    @classmethod
    def from_image(cls, image: Array, bounds: Box, *, light: Light | None = None) -> Self:
        """Make a constant PSF.

        Parameters
        ----------
        image
            ``(py, px)``, centred on ``[py//2, px//2]``; any positive sum.
        bounds
            Box in which the PSF is valid.
        light
            Share of a point source's light in the image; None for all of it.

        Returns
        -------
        psf
            PSF.

        Raises
        ------
        ArgumentError
            If the image is not 2-D, not finite, or its sum is not positive.
        """
        image = np.asarray(image)
        if image.ndim != 2:
            raise ArgumentError(f"A PSF image must be 2-D; got {image.ndim} dimensions.")
        total = float(image.sum())
        if not (np.isfinite(image).all() and total > 0):
            raise ArgumentError(
                f"A PSF image must be finite with a positive sum; its sum is {total:g}."
            )
        return cls(constant_kernel(image, bounds), light=light)

    @property
    def kernel(self) -> BasisKernel:
        """Basis images times functions of the position, before normalisation."""
        return self._kernel

    @property
    def average_position(self) -> tuple[float, float]:
        """Position x, y where the PSF is nominal, pixels."""
        return self._average_position

    def with_light(self, light: Light) -> KernelPointSpreadFunction:
        """The same PSF with another `Light`.

        Parameters
        ----------
        light
            Light in place of this PSF's.

        Returns
        -------
        psf
            New PSF.
        """
        return KernelPointSpreadFunction(
            self.kernel, average_position=self.average_position, light=light
        )

    @property
    def light(self) -> Light:
        """Share of a point source's light in the images, and errors."""
        return self._light

    @property
    def bounds(self) -> Box:
        """Box in which the PSF is valid."""
        return self._kernel.bounds

    def at(self, *, x: float, y: float) -> Array:
        """Image of the PSF at a position, `PointSpreadFunction.at`."""
        image = self._kernel.at(x=x, y=y)
        total = float(image.sum())
        if not total > 0:
            raise ArgumentError(
                f"The PSF at x={x:g}, y={y:g} sums to {total:g}; it is not defined there."
            )
        return image / total


def psf_images(psf: PointSpreadFunction, *, x: Array, y: Array) -> Array:
    """Images of any PSF at many positions.

    Parameters
    ----------
    psf
        Any PSF.
    x, y
        ``(n,)`` pixel coordinates, n at least 1.

    Returns
    -------
    images
        ``(n, py, px)`` float64, each as from `PointSpreadFunction.at`; ``(1, py, px)`` for a
        constant kernel PSF.  PSFs of other kinds are evaluated once for each cell of 32 pixels, in
        its middle.

    Raises
    ------
    ArgumentError
        If the PSF is not defined at one of the positions.
    """
    if isinstance(psf, KernelPointSpreadFunction):
        if psf.kernel.is_constant:
            return psf.at(x=float(x[0]), y=float(y[0]))[None]
        basis = psf.kernel.basis
        weights = np.stack([field(x=x, y=y) for field in psf.kernel.fields], axis=1)
        images = (weights @ basis.reshape(len(basis), -1)).reshape(len(x), *basis.shape[1:])
        totals = images.sum(axis=(1, 2))
        if not (totals > 0).all():
            worst = int(np.argmin(totals))
            raise ArgumentError(
                f"The PSF at x={x[worst]:g}, y={y[worst]:g} sums to {totals[worst]:g}; it is not"
                " defined there."
            )
        result: Array = images / totals[:, None, None]
        return result
    cells, index = np.unique(np.stack([x, y], axis=1) // _PSF_CELL, axis=0, return_inverse=True)
    middles = [psf.at(x=float(cx), y=float(cy)) for cx, cy in _PSF_CELL * (cells + 0.5)]
    return np.stack(_on_one_shape(middles))[index.ravel()]


def _on_one_shape(images: Sequence[Array]) -> list[Array]:
    """Images padded with zeros to their largest shape, with origins still in the middle."""
    shape = tuple(max(image.shape[axis] for image in images) for axis in (0, 1))
    padded = []
    for image in images:
        before = [n // 2 - m // 2 for n, m in zip(shape, image.shape, strict=True)]
        after = [n - m - b for n, m, b in zip(shape, image.shape, before, strict=True)]
        padded.append(np.pad(image, list(zip(before, after, strict=True))))
    return padded


def fwhm_of_psf(psf: PointSpreadFunction) -> float:
    """Full width at half maximum of a PSF at its nominal position.

    Parameters
    ----------
    psf
        PSF.

    Returns
    -------
    fwhm
        Width, pixels, by `whitediff.numerics.profiles.full_width_half_maximum`.
    """
    x, y = psf.average_position
    return full_width_half_maximum(psf.at(x=x, y=y))


def as_kernel_psf(
    psf: PointSpreadFunction, bounds: Box, *, order: int = 2
) -> KernelPointSpreadFunction:
    """Approximate any PSF by images times polynomials, in which form it can be written.

    Parameters
    ----------
    psf
        Any PSF; a kernel PSF is returned unchanged.
    bounds
        Box over which to sample the PSF.
    order
        Total order of the polynomials for each pixel; 0 is used if the PSF looks constant.

    Returns
    -------
    psf
        Kernel PSF.
    """
    if isinstance(psf, KernelPointSpreadFunction):
        return psf
    x, y = bounds.x.center, bounds.y.center
    corner = psf.at(x=bounds.x.start, y=bounds.y.start)
    if np.array_equal(corner, psf.at(x=x, y=y)):
        order = 0
    kernel = interpolated_kernel(lambda x, y: psf.at(x=x, y=y), bounds, order)
    return KernelPointSpreadFunction(kernel, average_position=psf.average_position)


def sampled_psf(
    image_at: Callable[[float, float], Array], bounds: Box, *, tolerance: float = 1e-4
) -> KernelPointSpreadFunction:
    """Approximate a PSF, given by a function of the position, by images times polynomials.

    Parameters
    ----------
    image_at
        Function of x and y that returns a ``(py, px)`` image, centred on ``[py//2, px//2]``, with
        any positive sum.
    bounds
        Box over which the PSF is wanted.
    tolerance
        Largest error of a pixel, relative to the peak.  The order of the polynomials is raised
        until test positions meet it, up to order 6.  If order 6 does not, the error is logged, as
        a warning above 0.001.

    Returns
    -------
    psf
        Kernel PSF.

    Raises
    ------
    ArgumentError
        If an image is not finite or has no positive sum.
    """

    def of_unit_sum(x: float, y: float) -> Array:
        image = image_at(x, y)
        total = float(image.sum())
        if not (np.isfinite(image).all() and total > 0):
            raise ArgumentError(
                "A PSF image must be finite with a positive sum; at"
                f" x={x:g}, y={y:g} it is {total:g}."
            )
        return image / total

    places = [(u, v) for u in (0.04, 0.37, 0.71, 0.96) for v in (0.05, 0.42, 0.66, 0.97)]
    at = [
        (bounds.x.start + u * bounds.x.size, bounds.y.start + v * bounds.y.size) for u, v in places
    ]
    true = [of_unit_sum(x, y) for x, y in at]
    for order in range(_HIGHEST_ORDER + 1):
        psf = KernelPointSpreadFunction(interpolated_kernel(of_unit_sum, bounds, order))
        error = max(
            float(np.abs(psf.at(x=x, y=y) - image).max() / image.max())
            for (x, y), image in zip(at, true, strict=True)
        )
        if error <= tolerance:
            return psf
    _log.log(
        logging.WARNING if error > _MATTERS else logging.INFO,
        "The PSF varies faster than polynomials of order %d follow: by up to %.2g of its peak.",
        _HIGHEST_ORDER,
        error,
    )
    return psf


def convolved_psf(
    psf: PointSpreadFunction, kernel: Array, bounds: Box
) -> KernelPointSpreadFunction:
    """PSF of an image that was convolved.

    Parameters
    ----------
    psf
        PSF before the convolution.
    kernel
        ``(ky, kx)``, odd, origin in the middle; constant over the box.
    bounds
        Box over which the PSF is wanted.

    Returns
    -------
    psf
        PSF on a stamp that holds all of it, with half the kernel's side more on every side: room
        for a later correction.
    """
    before = as_kernel_psf(psf, bounds)
    ky, kx = kernel.shape
    images = [
        convolve(np.pad(image, [(ky, ky), (kx, kx)]), kernel) for image in before.kernel.basis
    ]
    return KernelPointSpreadFunction(
        BasisKernel(np.stack(images), before.kernel.fields),
        average_position=before.average_position,
        light=before.light,
    )


def scattered_psf(
    images: Sequence[Array],
    *,
    x: Array,
    y: Array,
    bounds: Box,
    order: int = 2,
    light: Light | None = None,
) -> KernelPointSpreadFunction:
    """Fit a PSF to images at some positions.

    Parameters
    ----------
    images
        One ``(py, px)`` for each position, centred on ``[py//2, px//2]``, unit sum; of any shapes.
    x, y
        ``(n,)`` pixel coordinates.
    bounds
        Box over which the PSF is wanted.
    order
        Total order of the polynomials for each pixel; lower if the positions determine less.
    light
        Share of a point source's light in the images; None for all of it.

    Returns
    -------
    psf
        PSF fitted to the images by least squares, pixel by pixel.
    """
    padded = _on_one_shape(images)
    if all(np.array_equal(image, padded[0]) for image in padded[1:]):
        return KernelPointSpreadFunction.from_image(padded[0], bounds, light=light)
    terms, basis = scattered_fit(np.array(padded), x=x, y=y, bounds=bounds, order=order)
    coefficients = np.zeros((len(terms), order + 1, order + 1))
    for i, (p, q) in enumerate(terms):
        coefficients[i, p, q] = 1.0
    return KernelPointSpreadFunction(chebyshev_kernel(basis, coefficients, bounds), light=light)


def moved_psf(psf: PointSpreadFunction, bounds: Box, dy: int, dx: int) -> PointSpreadFunction:
    """PSF of an exposure whose pixels got other coordinates.

    Parameters
    ----------
    psf
        PSF in the old coordinates.
    bounds
        Box of the exposure in its new coordinates.
    dy, dx
        Old coordinates minus new ones, pixels.

    Returns
    -------
    psf
        The given PSF if nothing moved; else a kernel PSF, as from `as_kernel_psf`.
    """
    if (dy, dx) == (0, 0):
        return psf
    box = Box.from_shape(bounds.shape, (bounds.y.start + dy, bounds.x.start + dx))
    before = as_kernel_psf(psf, box)
    if before.kernel.is_constant:
        image = before.at(x=box.x.center, y=box.y.center)
        return KernelPointSpreadFunction.from_image(image, bounds, light=before.light)
    fields = before.kernel.fields
    polynomials = [field for field in fields if isinstance(field, ChebyshevField)]
    if len(polynomials) == len(fields):
        # The same polynomials: exact, of whatever order.
        moved = [moved_to(scaled_to(field, box), bounds) for field in polynomials]
        kernel = BasisKernel(before.kernel.basis, moved)
    else:
        kernel = interpolated_kernel(
            lambda x, y: before.at(x=x + dx, y=y + dy), bounds, _HIGHEST_ORDER
        )
    x, y = before.average_position[0] - dx, before.average_position[1] - dy
    inside = bounds.x.start <= x < bounds.x.stop and bounds.y.start <= y < bounds.y.stop
    return KernelPointSpreadFunction(
        kernel, average_position=(x, y) if inside else None, light=before.light
    )


def _round_half_up(value: float) -> int:
    return int(np.floor(value + 0.5))


def shifted(image: Array, dy: float, dx: float) -> Array:
    """Image moved by fractions of a pixel, by sinc interpolation.

    Parameters
    ----------
    image
        ``(ny, nx)``, well sampled; zero outside.
    dy, dx
        Shift, pixels.

    Returns
    -------
    moved
        Image of the same shape.
    """
    if dy == 0 and dx == 0:
        return image
    # Room on all sides, so that nothing wraps around.
    ny, nx = image.shape
    padded = np.pad(image, [(0, ny), (0, nx)])
    spectrum = scipy.ndimage.fourier_shift(np.fft.fft2(padded), (dy, dx))
    return np.fft.ifft2(spectrum).real[:ny, :nx]
