"""Convolution of an image with a kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import fourier
from .errors import ArgumentError

__all__ = ["convolve"]

type Array = npt.NDArray[Any]


def convolve(image: Array, kernel: Array) -> Array:
    """Convolve an image with a kernel; outside the frame is zero.

    Parameters
    ----------
    image
        ``(ny, nx)``, finite.  Not modified.
    kernel
        ``(ky, kx)``, origin at ``[ky//2, kx//2]``.

    Returns
    -------
    convolved
        ``(ny, nx)``, ``Σ_a image(x − a) · kernel(a)``; the image's dtype, computed in
        double precision.

    Raises
    ------
    ArgumentError
        If either is not 2-D, or the kernel is larger than the image.
    """
    if image.ndim != 2 or kernel.ndim != 2:
        raise ArgumentError(
            f"Image and kernel must be 2-D; got the shapes {image.shape} and {kernel.shape}."
        )
    if any(k > n for k, n in zip(kernel.shape, image.shape, strict=True)):
        raise ArgumentError(f"The kernel {kernel.shape} is larger than the image {image.shape}.")
    ny, nx = fourier.fast_shape(image.shape, kernel.shape)
    shape = (ny, nx)
    spectrum = fourier.forward(image.astype(np.float64), shape)
    spectrum *= fourier.forward(fourier.pad_center_origin(kernel.astype(np.float64), shape), shape)
    return fourier.inverse(spectrum, shape, (image.shape[0], image.shape[1])).astype(image.dtype)
