"""Conversion of PSFs to models of Piff, which every reader of lsst.images understands."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import lsst.images
import numpy as np
import numpy.typing as npt
from lsst.images.psfs import PiffWrapper

from ...errors import ArgumentError
from ...exposures.boxes import Box
from ...exposures.psf import PointSpreadFunction

__all__ = ["as_piff"]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.formats")

_SCALE = 1e-3
"""Model coordinates per pixel; powers of thousands of pixels would lose digits."""

_HIGHEST_ORDER, _TOLERANCE, _LARGEST_ERROR = 6, 1e-4, 0.02
"""Highest order of the polynomials; error, over the peak, to aim at; error that is refused."""


def as_piff(psf: PointSpreadFunction, bounds: Box) -> PiffWrapper:
    """Convert a PSF to a model of Piff.

    Parameters
    ----------
    psf
        PSF, on stamps of any shape.
    bounds
        Box in which the PSF is needed.

    Returns
    -------
    psf
        Model with one pixel for each of the image, interpolated by polynomials of the position.
        Their order is raised until they reproduce the PSF to 1e-4 of its peak; if order 6 does
        not, a warning states the error.

    Raises
    ------
    ArgumentError
        If Piff is not installed, or the error of order 6 is more than 2 % of the peak.
    """
    try:
        piff, galsim = (importlib.import_module(name) for name in ("piff", "galsim"))
    except ImportError as error:
        raise ArgumentError(
            "A PSF in a VisitImage or DifferenceImage has to be one of Piff, which is not"
            " installed; install whitediff[piff]."
        ) from error
    side = max(_square(psf, bounds.x.center, bounds.y.center).shape)
    nodes = np.cos(np.pi * (np.arange(_HIGHEST_ORDER + 2) + 0.5) / (_HIGHEST_ORDER + 2))
    v, u = (grid.ravel() for grid in np.meshgrid(nodes, nodes, indexing="ij"))
    x = bounds.x.start - 0.5 + 0.5 * bounds.x.size * (1 + u)
    y = bounds.y.start - 0.5 + 0.5 * bounds.y.size * (1 + v)
    images = np.array([_square(psf, *at).ravel() for at in zip(x, y, strict=True)])
    model = piff.PixelGrid(scale=_SCALE, size=side, centered=False)
    for order in range(_HIGHEST_ORDER + 1):
        interpolation = piff.BasisPolynomial(order=order)
        stars = [
            piff.Star.makeTarget(x=i, y=j, stamp_size=1, wcs=galsim.PixelScale(_SCALE))
            for i, j in zip(x, y, strict=True)
        ]
        basis = np.array([interpolation.basis(star) for star in stars])
        solution, *_ = np.linalg.lstsq(basis, images, rcond=None)
        off = float(np.abs(basis @ solution - images).max() / images.max())
        if off <= _TOLERANCE:
            break
    if off > _LARGEST_ERROR:
        raise ArgumentError(
            f"The PSF varies faster than a model of Piff of order {_HIGHEST_ORDER} follows: by"
            f" {off:.2g} of its peak; write it in whitediff's own format."
        )
    if off > _TOLERANCE:
        _log.warning(
            "As a model of Piff the PSF is off by up to %.2g of its peak: it varies faster than"
            " polynomials of order %d follow.",
            off,
            _HIGHEST_ORDER,
        )
    # Piff's pixel values are fluxes per unit of area, and a pixel has the area _SCALE².
    interpolation.q = solution.T / _SCALE**2
    made = piff.SimplePSF(model, interpolation)
    made.wcs, made.pointing, made.stars = {0: galsim.PixelScale(_SCALE)}, None, []
    return PiffWrapper(made, lsst.images.Box.from_shape(bounds.shape, start=bounds.start), side)


def _square(psf: PointSpreadFunction, x: float, y: float) -> Array:
    """Image of a PSF on a square of odd side, with the origin in the middle."""
    image = psf.at(x=x, y=y)
    ny, nx = image.shape
    half = max(ny, nx) // 2
    square = np.zeros((2 * half + 1, 2 * half + 1))
    rows, columns = (slice(half - n // 2, half - n // 2 + n) for n in (ny, nx))
    square[rows, columns] = image
    return square
