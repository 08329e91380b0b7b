"""Resampling at given positions."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError
from ..exposures.boxes import Box
from ..exposures.model import Exposure
from .mapping import PixelMap
from .weights import AdaptiveKernel, ResamplingKernel, SplineKernel

__all__ = ["FINER", "METHODS", "Method", "Regridding", "ResamplingOptions", "resampling_kernel"]

type Array = npt.NDArray[Any]

type Method = Literal["interpolating", "adaptive"]

METHODS = ("interpolating", "adaptive")
"""Ways to make a resampled pixel; see `ResamplingOptions`."""

_SAME_JACOBIAN = 1e-3

FINER = 1.5
"""Side of a science pixel, in template pixels, beyond which a template is better averaged.  Splines
leave out light between their samples, which costs depth, a fifth at a side of 2; up to this side,
it costs less than the wider Gaussian."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResamplingOptions:
    """How a template is resampled.

    Attributes
    ----------
    method
        ``interpolating``: cubic splines.  ``adaptive``: a Gaussian that averages over a larger
        pixel (DeForest 2004).  ``auto``: adaptive where the template's pixels are finer than the
        science image's by more than 1.5 times, else interpolating.
    noise
        Covariance of the template's noise before resampling.  ``auto``: the one that the template
        comes with, else the measured one where it is significant; ``measured``; or ``white``.
    positions
        ``wcs``: by the sky coordinates.  ``stars``: by the sky coordinates, corrected by the stars;
        by the stars alone where there are no coordinates.  ``distortions``: smooth local
        distortions are corrected as well.
    """

    method: Method | Literal["auto"] = "auto"
    noise: Literal["auto", "white", "measured"] = "auto"
    positions: Literal["wcs", "stars", "distortions"] = "stars"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("method", self.method, ("auto", *METHODS)),
            ("noise", self.noise, ("auto", "white", "measured")),
            ("positions", self.positions, ("wcs", "stars", "distortions")),
        ):
            if value not in allowed:
                raise ArgumentError(f"{name} must be {' or '.join(allowed)}; got {value!r}.")


def resampling_kernel(method: Method) -> ResamplingKernel:
    """Weights of a template's pixels in resampled ones.

    Parameters
    ----------
    method
        As for `ResamplingOptions`.

    Returns
    -------
    kernel
        Cubic splines or Gaussians.
    """
    return SplineKernel() if method == "interpolating" else AdaptiveKernel()


@dataclasses.dataclass(frozen=True)
class Regridding:
    """A resampling: of which exposure, onto which pixels, and how.

    Attributes
    ----------
    template, science
        Exposure that is resampled, and exposure whose pixels it gets.
    map
        Map from the science exposure's pixels to the template's.
    options
        `ResamplingOptions`.
    """

    template: Exposure
    science: Exposure
    map: PixelMap
    options: ResamplingOptions

    @property
    def method(self) -> Method:
        """Method of the options; with ``auto``, the one that suits the pixels."""
        if self.options.method != "auto":
            return self.options.method
        return "adaptive" if self.scales[1] > FINER else "interpolating"

    @property
    def kernel(self) -> ResamplingKernel:
        """Weights of the template's pixels."""
        return resampling_kernel(self.method)

    @property
    def box(self) -> Box:
        """Part of the science exposure that the map covers."""
        y0, x0 = self.science.origin
        rows, columns = self.map.rows, self.map.columns
        return Box.between(
            (y0 + rows.start, y0 + rows.stop), (x0 + columns.start, x0 + columns.stop)
        )

    @functools.cached_property
    def jacobians(self) -> Array:
        """Derivatives of the map at 3 × 3 positions, ``(9, 2, 2)``; number 4 is the middle."""
        rows, columns = (
            a.ravel()
            for a in np.meshgrid(
                *(
                    np.linspace(part.start, part.stop - 1, 3)
                    for part in (self.map.rows, self.map.columns)
                ),
                indexing="ij",
            )
        )
        return self.map.at(rows, columns)[2]

    @functools.cached_property
    def mirrored(self) -> bool:
        """Whether one grid is the mirror image of the other."""
        return bool(np.linalg.det(self.jacobians[4]) < 0)

    @functools.cached_property
    def scales(self) -> tuple[float, float]:
        """Smallest and largest side of a science pixel in template pixels."""
        values = np.linalg.svd(self.jacobians, compute_uv=False)
        return float(values.min()), float(values.max())

    @property
    def is_linear(self) -> bool:
        """Whether the map's derivatives are the same everywhere within 1e-3."""
        return float(np.abs(self.jacobians - self.jacobians[4]).max()) < _SAME_JACOBIAN

    def template_coordinates(self, y: float, x: float) -> tuple[float, float]:
        """Pixel coordinates on the template, within its edges.

        Parameters
        ----------
        y, x
            Position on its array.

        Returns
        -------
        x, y
            Coordinates for the template's PSF and noise; of the nearest pixel where the position
            lies beyond the edges.
        """
        box = self.template.bbox
        return (
            min(max(x + box.x.start, box.x.start), box.x.stop - 1),
            min(max(y + box.y.start, box.y.start), box.y.stop - 1),
        )

    def resampled(self, array: Array, y: Array, x: Array, kernel: ResamplingKernel | None) -> Array:
        """Resample a part of the template.

        Parameters
        ----------
        array
            ``(my, mx)``, finite.
        y, x
            ``(ny + 2, nx + 2)`` positions on it, one pixel more on every side than the result has.
        kernel
            Weights; None interpolates linearly.

        Returns
        -------
        resampled
            ``(ny, nx)`` of the array's type; NaN beyond the array.
        """
        if not isinstance(kernel, AdaptiveKernel):
            order = 1 if kernel is None else 3
            return _interpolated(array, y[1:-1, 1:-1], x[1:-1, 1:-1], order)
        # reproject is an optional extra, and only this method uses it.
        from .adaptive import averaged

        if self.mirrored:
            # reproject's adaptive kernel is right for positive determinants only.
            array, x = array[:, ::-1], array.shape[1] - 1 - x
        return averaged(array, y, x, kernel)


def _interpolated(array: Array, y: Array, x: Array, order: int) -> Array:
    """Splines of some order through an array, at positions on it; NaN beyond its pixels.

    The outer half of a pixel at an edge has the value of the pixel's middle, as in
    `reproject.reproject_interp`.
    """
    inside = np.ones(y.shape, dtype=bool)
    for at, size in zip((y, x), array.shape, strict=True):
        inside &= (at >= -0.5) & (at <= size - 0.5)
    places = np.stack(
        [
            np.clip(np.where(inside, at, 0), 0, size - 1)
            for at, size in zip((y, x), array.shape, strict=True)
        ]
    )
    result = scipy.ndimage.map_coordinates(array, places, order=order, cval=np.nan)
    result[~inside] = np.nan
    return np.asarray(result)
