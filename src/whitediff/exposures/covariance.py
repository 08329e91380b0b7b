"""Known noise covariances of exposures, for example after resampling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, DataError
from ..numerics.covariance import NoiseCovariance
from .boxes import Box
from .fields import moved_to
from .kernels import BasisKernel

__all__ = ["Noise", "NoiseField", "moved_noise", "noise_at"]

type Array = npt.NDArray[Any]

type Noise = NoiseCovariance | Callable[[float, float], NoiseCovariance] | None
"""Noise covariance, constant or a function of the pixel coordinates x and y; None for white."""


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseField:
    """A noise covariance that varies over the field.

    Attributes
    ----------
    kernel
        Images ``(2L + 1, 2L + 1)`` of covariances, lag (0, 0) in the middle, times functions of
        the position.  Only their ratios to the middle pixel count.
    description
        Origin of the covariance, in words.

    Raises
    ------
    ArgumentError
        If the images are not square with odd sides.
    """

    kernel: BasisKernel
    description: str

    def __post_init__(self) -> None:
        ny, nx = self.kernel.shape
        if ny != nx or ny % 2 == 0:
            raise ArgumentError(
                "The images of a noise covariance must be square, of odd sides, with lag (0, 0) in"
                f" the middle; got the shape {(ny, nx)}."
            )

    def __call__(self, x: float, y: float) -> NoiseCovariance:
        """Covariance at a position; beyond the bounds, the covariance at their nearest edge.

        Parameters
        ----------
        x, y
            Pixel coordinates.

        Returns
        -------
        covariance
            Covariance, exactly point-symmetric.

        Raises
        ------
        DataError
            If the variance is not positive there, or a lag not finite.
        """
        box = self.kernel.bounds
        x = min(max(x, box.x.start - 0.5), box.x.stop - 0.5)
        y = min(max(y, box.y.start - 0.5), box.y.stop - 0.5)
        image = self.kernel.at(x=x, y=y)
        image = (image + image[::-1, ::-1]) / 2
        middle = float(image[image.shape[0] // 2, image.shape[1] // 2])
        if not (np.isfinite(image).all() and middle > 0):
            raise DataError(
                f"A noise covariance has the variance {middle:g} at x={x:g}, y={y:g}; it must be"
                " positive, and finite at every lag."
            )
        return NoiseCovariance(image / middle, self.description)


def moved_noise(noise: Noise, dy: int, dx: int) -> Noise:
    """Noise covariance of an exposure whose pixels got other coordinates.

    Parameters
    ----------
    noise
        Covariance in the old coordinates.
    dy, dx
        Old coordinates minus new ones, pixels.

    Returns
    -------
    noise
        Covariance in the new coordinates; the given one if it is constant or nothing moved.
    """
    if (dy, dx) == (0, 0) or not callable(noise):
        return noise
    if isinstance(noise, NoiseField):
        box = noise.kernel.bounds
        moved = Box.between(
            (box.y.start - dy, box.y.stop - dy), (box.x.start - dx, box.x.stop - dx)
        )
        fields = [moved_to(field, moved) for field in noise.kernel.fields]
        return NoiseField(BasisKernel(noise.kernel.basis, fields), noise.description)
    function = noise
    return lambda x, y: function(x + dx, y + dy)


def noise_at(noise: Noise, x: float, y: float) -> NoiseCovariance | None:
    """Noise covariance at a position.

    Parameters
    ----------
    noise
        Covariance.
    x, y
        Pixel coordinates.

    Returns
    -------
    covariance
        Covariance; None for white noise.

    Raises
    ------
    ArgumentError
        If the noise, or the function's result, is something else.
    """
    found = noise(x, y) if callable(noise) else noise
    if not (found is None or isinstance(found, NoiseCovariance)):
        raise ArgumentError(
            "The noise of an input must be a NoiseCovariance, a function of x and y that returns"
            f" one, or None for white noise; got {found!r:.60}."
        )
    return found
