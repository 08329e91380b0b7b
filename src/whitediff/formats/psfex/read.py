"""Reading of PSFEx models, without PSFEx and without the Rubin stack.

A model consists of images of the PSF, sampled in steps of PSF_SAMP pixels, times polynomials of the
position; Lanczos-4 interpolation resamples them to the image's pixels (Bertin 2011, ADASS XX, 435).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import numpy.typing as npt

from ...errors import ArgumentError, FileFormatError
from ...exposures.boxes import Box
from ...exposures.kernels import chebyshev_kernel, chebyshev_powers
from ...exposures.psf import KernelPointSpreadFunction
from ..files import Extension, opened
from .recognise import models

__all__ = ["read"]

type Array = npt.NDArray[Any]

_X_NAMES = ("X_IMAGE", "XWIN_IMAGE", "XPSF_IMAGE", "XMODEL_IMAGE", "XPEAK_IMAGE")
_Y_NAMES = tuple(name.replace("X", "Y", 1) for name in _X_NAMES)
_LANCZOS = 4
_FARTHEST = 3.0
"""Largest scaled coordinate in the image; a model is fitted to values from -0.5 to 0.5."""
_MOST_NEGATIVE = 0.25
"""Largest share of the PSF's absolute sum that may be negative."""
_LARGEST_DEGREE, _LARGEST_SIDE = 20, 2001


def read(path: Path, extension: Extension = None, *, bounds: Box) -> KernelPointSpreadFunction:
    """Read a model.

    Parameters
    ----------
    path
        File.
    extension
        Number of the model, from 1, if the file has one for each of several detectors.
    bounds
        Box of the exposure.

    Returns
    -------
    psf
        PSF on the exposure's pixels.

    Raises
    ------
    FileFormatError
        If the model cannot be read, depends on anything but the position, does not fit the
        exposure, or has no positive sum.
    """
    with opened(path) as hdus:
        table = _chosen(models(hdus), extension, path)
        header = table.header
        names = [str(name) for name in table.columns.names]
        if "PSF_MASK" not in names or len(table.data) != 1:
            raise FileFormatError.of(path, "its table PSF_DATA has no PSF_MASK of one row.")
        planes = np.array(table.data["PSF_MASK"][0], dtype=np.float64)
        sides = [_integer(header, f"PSFAXIS{axis}", path) for axis in (1, 2)]
        step = _real(header, "PSF_SAMP", path)
        exponents, scalings = _polynomials(header, path)
    if planes.ndim == 2:
        planes = planes[None]
    if planes.ndim != 3 or planes.shape[1:] != (sides[1], sides[0]):
        raise FileFormatError.of(
            path,
            f"PSF_MASK has the shape {planes.shape}, but the header says {sides[1]} x"
            f" {sides[0]} pixels; is the file whole?",
        )
    if len(planes) != len(exponents):
        raise FileFormatError.of(
            path,
            f"has {len(planes)} images for {len(exponents)} terms of a polynomial; is the"
            " file whole?",
        )
    if not 0 < step < min(sides) or max(sides) * step > _LARGEST_SIDE:
        raise FileFormatError.of(path, f"PSF_SAMP = {step:g} is no step of a PSF of {sides}.")
    if not np.isfinite(planes).all():
        raise FileFormatError.of(path, "its images are not all finite; is the file whole?")
    basis = _resampled(planes, step)
    powers = chebyshev_powers(exponents, bounds, x=scalings[0], y=scalings[1])
    psf = KernelPointSpreadFunction(chebyshev_kernel(basis, powers, bounds))
    _check(psf, bounds, scalings if len(exponents) > 1 else (), path)
    return psf


def _check(
    psf: KernelPointSpreadFunction,
    bounds: Box,
    scalings: tuple[tuple[float, float], ...],
    path: Path,
) -> None:
    """Refuse polynomials that are used far from their fit, or whose PSF is no star."""
    for (zero, scale), interval in zip(scalings, (bounds.x, bounds.y), strict=False):
        ends = [abs((end - zero) / scale) for end in (interval.start, interval.stop - 1)]
        if max(ends) > _FARTHEST:
            raise FileFormatError.of(
                path,
                f"was fitted to pixels from {zero - abs(scale) / 2:.0f} to"
                f" {zero + abs(scale) / 2:.0f}, but the image has those from {interval.start} to"
                f" {interval.stop - 1}. Is it the PSF of this image?",
            )
    try:
        for x in (bounds.x.start, bounds.x.center, bounds.x.stop - 1):
            for y in (bounds.y.start, bounds.y.center, bounds.y.stop - 1):
                image = psf.at(x=x, y=y)
                negative = float(-image[image < 0].sum() / np.abs(image).sum())
                if negative > _MOST_NEGATIVE:
                    raise ArgumentError(
                        f"{100 * negative:.0f}% of the PSF's absolute sum at x={x:g}, y={y:g} is"
                        " negative."
                    )
    except ArgumentError as error:
        raise FileFormatError.of(path, f"{error} Is it the PSF of this image?") from error


def _chosen(
    tables: list[astropy.io.fits.BinTableHDU], extension: Extension, path: Path
) -> astropy.io.fits.BinTableHDU:
    if not tables:
        raise FileFormatError.of(path, "is no model of PSFEx.")
    if extension is None and len(tables) == 1:
        return tables[0]
    if isinstance(extension, int) and 1 <= extension <= len(tables):
        return tables[extension - 1]
    raise FileFormatError.of(
        path, f"holds the PSFs of {len(tables)} detectors; name one, as in {path.name}[1]."
    )


def _polynomials(
    header: astropy.io.fits.Header, path: Path
) -> tuple[list[tuple[int, int]], tuple[tuple[float, float], tuple[float, float]]]:
    """Exponents of x and y in PSFEx's order, and zero and scale of the pixel coordinates."""
    n_axes = _integer(header, "POLNAXIS", path)
    scalings = {"x": (0.0, 1.0), "y": (0.0, 1.0)}
    if n_axes == 0:
        return [(0, 0)], (scalings["x"], scalings["y"])
    order = []
    for axis in range(1, n_axes + 1):
        name = str(header.get(f"POLNAME{axis}")).strip()
        which = "x" if name in _X_NAMES else "y" if name in _Y_NAMES else None
        if which is None or which in order or header.get(f"POLGRP{axis}", 1) != 1:
            raise FileFormatError.of(
                path,
                f"its PSF depends on {name}; only models of the position in the image"
                " (X_IMAGE, Y_IMAGE) in one group can be read.",
            )
        zero, scale = (_real(header, f"{card}{axis}", path) for card in ("POLZERO", "POLSCAL"))
        if scale == 0:
            raise FileFormatError.of(path, f"POLSCAL{axis} is 0; is the file whole?")
        # FITS counts pixels from 1.
        scalings[which] = (zero - 1, scale)
        order.append(which)
    degree = _integer(header, "POLDEG1", path)
    if not 0 <= degree <= _LARGEST_DEGREE or _integer(header, "POLNGRP", path) != 1:
        raise FileFormatError.of(
            path,
            f"its polynomials have {header.get('POLNGRP')} groups and the degree {degree};"
            f" one group of a degree up to {_LARGEST_DEGREE} can be read.",
        )
    second = range(degree + 1) if n_axes == 2 else range(1)
    # The first axis runs fastest.
    pairs = [(i, j) for j in second for i in range(degree + 1 - j)]
    exponents = pairs if order[0] == "x" else [(j, i) for i, j in pairs]
    return exponents, (scalings["x"], scalings["y"])


def _resampled(planes: Array, step: float) -> Array:
    """Images of the model, interpolated from its steps to the pixels of the image."""
    matrices = [_interpolation(n, step) for n in planes.shape[1:]]
    result: Array = np.einsum("yj,njk,xk->nyx", matrices[0], planes, matrices[1])
    return result


def _interpolation(size: int, step: float) -> Array:
    """Matrix that resamples a profile from a model's steps to pixels, with the same middle."""
    half = math.floor((size // 2) * step)
    place = np.arange(-half, half + 1) / step + size // 2
    away = np.arange(size)[None, :] - place[:, None]
    weights = np.where(np.abs(away) < _LANCZOS, np.sinc(away) * np.sinc(away / _LANCZOS), 0.0)
    inner: Array = weights / weights.sum(axis=1, keepdims=True)
    return inner


def _integer(header: astropy.io.fits.Header, name: str, path: Path) -> int:
    value = header.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise FileFormatError.of(
            path, f"{name} must be a whole number; got {value!r}. Is the file whole?"
        )
    return value


def _real(header: astropy.io.fits.Header, name: str, path: Path) -> float:
    value = header.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FileFormatError.of(
            path, f"{name} must be a number; got {value!r}. Is the file whole?"
        )
    return float(value)
