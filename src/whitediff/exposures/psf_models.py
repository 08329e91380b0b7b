"""PSFs as functions and as models of photutils, and back."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import astro
from ..errors import ArgumentError
from ..extras import check_extra
from .boxes import Box
from .psf import KernelPointSpreadFunction, PointSpreadFunction, sampled_psf

__all__ = ["from_function", "from_model", "is_model", "to_gridded_psf_model"]

type Array = npt.NDArray[Any]

_PARAMETERS = ("flux", "x_0", "y_0")
_LARGEST_SIDE = 201
_GRIDS = (1, 3, 5, 9, 17)
_TOLERANCE = 1e-3


def is_model(given: object) -> bool:
    """Whether an object is a PSF model as photutils has them.

    Parameters
    ----------
    given
        Anything.

    Returns
    -------
    model
        True for models of astropy with the parameters flux, x_0 and y_0.
    """
    names = getattr(given, "param_names", ())
    return callable(given) and all(name in names for name in _PARAMETERS)


def from_model(model: Any, bounds: Box) -> KernelPointSpreadFunction:
    """Take a PSF model of photutils as a PSF.

    Parameters
    ----------
    model
        GriddedPSFModel, ImagePSF, or any model of astropy with the parameters flux, x_0 and y_0
        whose value is the light in a pixel; its other parameters are kept.
    bounds
        Box of the exposure, in the pixel coordinates of the model.

    Returns
    -------
    psf
        Images times polynomials of the position (`whitediff.exposures.psf.sampled_psf`, which
        tells where these do not follow the model).

    Raises
    ------
    ArgumentError
        If the model has no light, or is not finite.
    """
    half_y, half_x = _reach(model)
    y, x = np.mgrid[-half_y : half_y + 1, -half_x : half_x + 1]

    def image_at(at_x: float, at_y: float) -> Array:
        placed = model.copy()
        placed.flux, placed.x_0, placed.y_0 = 1.0, at_x, at_y
        return np.asarray(placed(x + float(at_x), y + float(at_y)), dtype=np.float64)

    return sampled_psf(image_at, bounds)


def _reach(model: Any) -> tuple[int, int]:
    """How far a model reaches from its middle, whole pixels (y, x)."""
    data = getattr(model, "data", None)
    if data is not None:
        oversampling = np.broadcast_to(getattr(model, "oversampling", 1), 2)
        reach = [(n - 1) // 2 // int(o) for n, o in zip(data.shape[-2:], oversampling, strict=True)]
    else:
        placed = model.copy()
        placed.x_0, placed.y_0 = 0.0, 0.0
        reach = [int(high) for _, high in placed.bounding_box.bounding_box()]
    most = (_LARGEST_SIDE - 1) // 2
    return min(max(reach[0], 1), most), min(max(reach[1], 1), most)


def from_function(
    function: Callable[[float, float], Array], bounds: Box
) -> KernelPointSpreadFunction:
    """Take a function of the position as a PSF.

    Parameters
    ----------
    function
        Of pixel coordinates x and y; returns a ``(py, px)`` image of a point source whose centre
        is at ``[py//2, px//2]``, of the same shape everywhere and of any positive sum.
    bounds
        Box of the exposure.

    Returns
    -------
    psf
        As of `from_model`.

    Raises
    ------
    ArgumentError
        If it returns anything else.
    """

    def image_at(x: float, y: float) -> Array:
        image = np.asarray(function(x, y), dtype=np.float64)
        if image.ndim != 2:
            raise ArgumentError(
                "A PSF's function of x and y must return images (py, px); at"
                f" x={x:g}, y={y:g} it returned the shape {image.shape}."
            )
        return image

    return sampled_psf(image_at, bounds)


def to_gridded_psf_model(psf: PointSpreadFunction, *, grid: int | None = None) -> Any:
    """Make a GriddedPSFModel of photutils of a PSF.

    Parameters
    ----------
    psf
        PSF of an exposure.
    grid
        How many positions along each side of the frame hold an image: 1, or 3 and more.  If not
        given, as few as keep what photutils interpolates between them within a thousandth of the
        brightest pixel, 17 at most.

    Returns
    -------
    model
        ``photutils.psf.GriddedPSFModel`` without oversampling, of flux 1; its positions are pixel
        coordinates of the exposure.

    Raises
    ------
    ArgumentError
        If photutils is not installed, or the grid is less than 1, or 2.
    """
    if grid is not None and (grid < 1 or grid == 2):
        raise ArgumentError(f"The grid must have 1, or 3 and more, positions a side; got {grid}.")
    check_extra("photutils", "photutils", needs="PSF models of photutils need {module}")
    if grid is None:
        grid = next((n for n in _GRIDS if _error(psf, n) <= _TOLERANCE), _GRIDS[-1])
    x, y = _positions(psf.bounds, grid)
    data = astro.nddata.NDData(
        _images(psf, x, y),
        meta={"grid_xypos": list(zip(x.tolist(), y.tolist(), strict=True)), "oversampling": 1},
    )
    return importlib.import_module("photutils.psf").GriddedPSFModel(data)


def _images(psf: PointSpreadFunction, x: Array, y: Array) -> Array:
    return np.stack([psf.at(x=at_x, y=at_y) for at_x, at_y in zip(x, y, strict=True)])


def _positions(bounds: Box, n: int) -> tuple[Array, Array]:
    """Positions on a grid from edge to edge; the middle alone for one."""
    sides = [
        np.linspace(interval.start, interval.stop - 1, n) if n > 1 else np.array([interval.center])
        for interval in (bounds.y, bounds.x)
    ]
    y, x = np.meshgrid(*sides, indexing="ij")
    return x.ravel(), y.ravel()


def _error(psf: PointSpreadFunction, n: int) -> float:
    """Largest error of a pixel between the positions of a grid, over the brightest."""
    x, y = _positions(psf.bounds, max(2 * n - 1, 3))
    images = _images(psf, x, y)
    side = round(len(x) ** 0.5)
    images = images.reshape(side, side, *images.shape[1:])
    if n == 1:
        between = np.broadcast_to(images[1, 1], images.shape)
    else:
        between = np.empty_like(images)
        between[::2, ::2] = images[::2, ::2]
        between[1::2, ::2] = (images[:-2:2, ::2] + images[2::2, ::2]) / 2
        between[:, 1::2] = (between[:, :-2:2] + between[:, 2::2]) / 2
    return float(np.abs(images - between).max() / images.max())
