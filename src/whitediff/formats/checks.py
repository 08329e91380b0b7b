"""Checks that an image read from a file is a kernel or a PSF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..decorrelation.correction import checked_kernel
from ..errors import ArgumentError, FileFormatError
from ..exposures.boxes import Box
from ..exposures.kernels import ConvolutionKernel

__all__ = ["check_is_kernel", "check_kernel", "check_psf"]

type Array = npt.NDArray[Any]

_LARGEST_PSF, _LARGEST_CUTOUT = 0.25, 128
"""Largest area of a PSF over the image's; side of images up to which this is not asked, pixels."""
_LARGEST_KERNEL = 0.5
"""Largest area of a kernel over the image's."""
_LARGEST_FLAT, _LEAST_RISE = 31, 1.3
"""Side up to which a kernel may be flat, pixels; least ratio of inner and mean absolute value."""
_LEAST_INSIDE = 0.4
"""Least share of a PSF's sum in the inner half of its sides."""
_MOST_NEGATIVE = 0.25
"""Largest share of a PSF's absolute sum that may be negative."""
_SMALLEST_PROFILE = 5
"""Side from which `_LEAST_INSIDE` is asked, pixels."""


def check_kernel(kernel: ConvolutionKernel, bounds: Box, path: str | Path) -> None:
    """Make sure that a kernel from a file is usable.

    Parameters
    ----------
    kernel
        Kernel.
    bounds
        Box of the exposures.
    path
        File it came from, for error messages.

    Raises
    ------
    FileFormatError
        If the kernel at the middle of the box is not finite, sums to zero, or is larger than the
        box.
    """
    image = kernel.at(x=bounds.x.center, y=bounds.y.center)
    try:
        checked_kernel("kernel", image)
    except ArgumentError as error:
        raise FileFormatError.of(path, f"{error}") from error
    _check_size(path, "kernel", image, bounds)


def _check_size(path: str | Path, name: str, image: Array, bounds: Box) -> None:
    if image.shape[0] > bounds.y.size or image.shape[1] > bounds.x.size:
        raise FileFormatError.of(
            path,
            f"the {name} {image.shape} is larger than the image"
            f" {(bounds.y.size, bounds.x.size)}; is it the right file?",
        )


def check_is_kernel(path: str | Path, image: Array, bounds: Box) -> None:
    """Refuse an image of the sky, which passes `check_kernel`, as its sum is not zero either.

    Parameters
    ----------
    path
        File it came from, for error messages.
    image
        ``(ny, nx)``, kernel at the middle of the box.
    bounds
        Box of the exposures.

    Raises
    ------
    FileFormatError
        If the image is flat and large, or larger than half the box.
    """
    ny, nx = image.shape
    inner = image[ny // 4 : ny - ny // 4, nx // 4 : nx - nx // 4]
    inside = float(np.abs(inner).sum() / np.abs(image).sum())
    spread = min(ny, nx) > _LARGEST_FLAT and inside < _LEAST_RISE * inner.size / image.size
    if spread or ny * nx > _LARGEST_KERNEL * bounds.area:
        raise FileFormatError.of(
            path,
            f"its image of {ny} x {nx} pixels is no matching kernel, which is smaller than"
            " the image that it was fitted to and largest in its middle. Is it the right"
            " file?",
        )


def check_psf(path: str | Path, image: Array, bounds: Box) -> None:
    """Make sure that an image is a PSF.

    Parameters
    ----------
    path
        File it came from, for error messages.
    image
        ``(ny, nx)``, the PSF at the middle of the box.
    bounds
        Box of the exposure.

    Raises
    ------
    FileFormatError
        If the image is not finite, has no positive sum, shows no star in its middle, or is larger
        than a quarter of the box (in a small box: as large as the box).
    """
    total = float(image.sum())
    if not (np.isfinite(image).all() and total > 0):
        raise FileFormatError.of(
            path, f"a PSF must be finite with a positive sum; its sum is {total:g}."
        )
    _check_size(path, "PSF", image, bounds)
    _check_profile(path, image, bounds)


def _check_profile(path: str | Path, image: Array, bounds: Box) -> None:
    """Refuse images that are no star, such as a template, which also has a positive sum."""
    ny, nx = image.shape
    wanted = "a PSF is a star in the middle of a small image, without a background"
    # A cut-out may be hardly larger than its PSF.
    small = max(bounds.y.size, bounds.x.size) <= _LARGEST_CUTOUT
    if (
        (ny >= bounds.y.size or nx >= bounds.x.size)
        if small
        else (ny * nx > _LARGEST_PSF * bounds.area)
    ):
        raise FileFormatError.of(
            path,
            f"has {ny} x {nx} pixels, and the image {bounds.y.size} x {bounds.x.size};"
            f" {wanted}. Is it the right file?",
        )
    y, x = (int(n) for n in np.unravel_index(np.argmax(image), image.shape))
    if max(abs(y - ny // 2) / ny, abs(x - nx // 2) / nx) > 0.25:
        raise FileFormatError.of(
            path, f"its peak is at (y, x) = ({y}, {x}) of {ny} x {nx} pixels; {wanted}."
        )
    # The inner half of each side; a flat background has a quarter of its sum there.
    inner = image[ny // 4 : ny - ny // 4, nx // 4 : nx - nx // 4]
    inside = float(inner.sum() / image.sum())
    negative = float(-image[image < 0].sum() / np.abs(image).sum())
    if min(ny, nx) >= _SMALLEST_PROFILE and inside < _LEAST_INSIDE:
        raise FileFormatError.of(
            path,
            f"only {100 * inside:.0f}% of its sum is in the inner half of its sides; {wanted}.",
        )
    if negative > _MOST_NEGATIVE:
        raise FileFormatError.of(
            path,
            f"{100 * negative:.0f}% of its absolute sum is negative; {wanted}, and with"
            " little noise.",
        )
