"""Pictures of exposures, for notebooks and matplotlib."""

from __future__ import annotations

import base64
import html
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..extras import check_drawing
from ..numerics.stats import robust_sigma

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .model import Exposure

__all__ = ["as_html", "drawn", "limits", "png"]

type Array = npt.NDArray[Any]

_LARGEST_SIDE = 400
"""Largest side of a small picture, pixels."""


def limits(image: Array) -> tuple[float, float]:
    """Values that a picture of an image shows as black and white.

    Parameters
    ----------
    image
        ``(ny, nx)``; pixels that are not finite do not count.

    Returns
    -------
    low, high
        Values 2 sigma below the median and 8 sigma above it.
    """
    finite = image[np.isfinite(image)]
    if not finite.size:
        return 0.0, 1.0
    middle, sigma = float(np.median(finite)), robust_sigma(finite.astype(float))
    sigma = sigma or float(np.abs(finite - middle).max()) or 1.0
    return middle - 2 * sigma, middle + 8 * sigma


def png(image: Array) -> bytes:
    """Small grey picture of an image, its first row at the bottom.

    Parameters
    ----------
    image
        ``(ny, nx)``; evenly sampled if a side is longer than 400 pixels.

    Returns
    -------
    data
        PNG file.
    """
    step = -(-max(image.shape) // _LARGEST_SIDE)
    pixels = image[::step, ::step][::-1].astype(float)
    low, high = limits(pixels)
    scaled = np.clip((pixels - low) / (high - low), 0, 1)
    grey = np.where(np.isfinite(scaled), 255 * scaled, 128).astype(np.uint8)
    ny, nx = grey.shape
    # Each row begins with the number of its filter: none.
    rows = np.hstack([np.zeros((ny, 1), np.uint8), grey]).tobytes()
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", nx, ny, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def as_html(exposure: Exposure) -> str:
    """Picture and facts of an exposure, for notebooks.

    Parameters
    ----------
    exposure
        Exposure.

    Returns
    -------
    html
        Element with a picture and a table.
    """
    ny, nx = exposure.shape
    facts = {
        "source": exposure.source or "memory",
        "pixels": f"{ny} x {nx}, {exposure.data.dtype}",
        "unit": "unknown" if exposure.unit is None else str(exposure.unit),
        "mask planes": ", ".join(exposure.mask.names) or "none",
        "PSF": "none" if exposure.psf is None else type(exposure.psf).__name__,
        "WCS": "none" if exposure.wcs is None else "celestial",
    }
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
        for name, text in facts.items()
    )
    picture = base64.b64encode(png(exposure.data)).decode()
    return f"<div><img src='data:image/png;base64,{picture}'/><table>{rows}</table></div>"


def drawn(exposure: Exposure, axes: Axes | None = None) -> Axes:
    """Draw an exposure with matplotlib.

    Parameters
    ----------
    exposure
        Exposure.
    axes
        Axes to draw in; a new figure if not given.

    Returns
    -------
    axes
        `matplotlib.axes.Axes`, in pixel coordinates.

    Raises
    ------
    ArgumentError
        If matplotlib is not installed.
    """
    if axes is None:
        check_drawing()
        from matplotlib import pyplot

        axes = pyplot.subplots()[1]
    low, high = limits(exposure.data)
    box = exposure.bbox
    extent = (box.x.start - 0.5, box.x.stop - 0.5, box.y.start - 0.5, box.y.stop - 0.5)
    axes.imshow(exposure.data, origin="lower", cmap="gray", vmin=low, vmax=high, extent=extent)
    axes.set_xlabel("x [pixel]")
    axes.set_ylabel("y [pixel]")
    return axes
