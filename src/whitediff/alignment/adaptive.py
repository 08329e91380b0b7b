"""Averaging with a Gaussian by the package reproject, at given positions."""

from __future__ import annotations

from typing import Any

import astropy.units
import numpy as np
import numpy.typing as npt
from astropy.wcs.wcsapi import BaseLowLevelWCS
from reproject import reproject_adaptive

from .weights import AdaptiveKernel

__all__ = ["Grid", "averaged"]

type Array = npt.NDArray[Any]


class Grid(BaseLowLevelWCS):
    """Positions in the form that reproject takes: a grid's pixels on an array, or the array's own.

    Parameters
    ----------
    y, x
        ``(ny + 2, nx + 2)`` positions on the array, with one pixel more on every side, from which
        reproject takes its Jacobians; None for the array itself.
    """

    pixel_n_dim = world_n_dim = 2
    world_axis_physical_types = (None, None)
    world_axis_units = ("pix", "pix")
    world_axis_object_components = (("x", 0, "value"), ("y", 0, "value"))
    axis_correlation_matrix = np.ones((2, 2), dtype=bool)
    array_shape = pixel_shape = pixel_bounds = None

    def __init__(self, y: Array | None = None, x: Array | None = None) -> None:
        self._y, self._x = y, x

    @property
    def world_axis_object_classes(self) -> dict[str, tuple[type, tuple[()], dict[str, object]]]:
        """Class of both axes' values: quantities in pixels."""
        quantity = (astropy.units.Quantity, (), {"unit": astropy.units.pix})
        return {"x": quantity, "y": quantity}

    def pixel_to_world_values(self, *pixels: npt.ArrayLike) -> tuple[npt.ArrayLike, ...]:
        """Positions (x, y) of the grid's pixels on the array."""
        if self._y is None or self._x is None:
            return pixels
        column, row = (np.rint(np.asarray(at)).astype(np.intp) + 1 for at in pixels)
        return self._x[row, column], self._y[row, column]

    def world_to_pixel_values(self, *world: npt.ArrayLike) -> tuple[npt.ArrayLike, ...]:
        """Pixels (x, y) at positions on the array; for the array itself, they are the same."""
        return world


def averaged(array: Array, y: Array, x: Array, kernel: AdaptiveKernel) -> Array:
    """Average an array around positions on it.

    Parameters
    ----------
    array
        ``(my, mx)``, finite.
    y, x
        ``(ny + 2, nx + 2)`` positions, one pixel more on every side than the result has; they must
        not mirror the array.
    kernel
        Weights of the array's pixels.

    Returns
    -------
    averaged
        ``(ny, nx)`` of the array's type; NaN beyond the array.
    """
    array = np.ascontiguousarray(array)
    shape = (y.shape[0] - 2, y.shape[1] - 2)
    return np.asarray(
        reproject_adaptive(
            (array, Grid()),
            Grid(y, x),
            kernel="gaussian",
            kernel_width=kernel.width,
            sample_region_width=kernel.region,
            shape_out=shape,
            output_array=np.empty(shape, array.dtype),
            roundtrip_coords=False,
            return_footprint=False,
        )
    )
