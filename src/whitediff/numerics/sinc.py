"""Values of a well-sampled image between its pixels, by a windowed sinc.

If an image has no power near the Nyquist frequency, as after a filter with a PSF, its pixels
determine it everywhere (Shannon 1949).  A Kaiser window cuts off the sinc; the error is below 1e-4
for waves longer than 3 pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

__all__ = ["REACH", "interpolation_weights", "moved_stamps"]

type Array = npt.NDArray[Any]

REACH = 8
"""Pixels on each side that a value between pixels depends on."""

_BETA = 7.8
"""Shape parameter of the Kaiser window: sidelobes of 1e-4."""


def interpolation_weights(position: Array, half: int) -> tuple[Array, Array]:
    """Weights of pixels for the value at a position between them, and for the slope there.

    Parameters
    ----------
    position
        ``(n,)`` positions, pixels, from −1 to 1.
    half
        Pixels run from ``−half`` to ``half``; `REACH` + 1 includes all with any weight.

    Returns
    -------
    weights, slopes
        ``(n, 2·half + 1)``, without pixels beyond ``half``.  Over all pixels weights sum to 1;
        slopes, their derivatives by the position, sum to 0.
    """
    reach = max(half, REACH + 1)
    t = np.asarray(position, dtype=np.float64)[:, None] - np.arange(-reach, reach + 1)
    u = t / REACH
    inside = np.abs(u) < 1
    s = np.sqrt(np.where(inside, 1 - u**2, 1.0))
    norm = scipy.special.i0(_BETA)
    window = np.where(inside, scipy.special.i0(_BETA * s) / norm, 0.0)
    falling = np.where(inside, -_BETA * u * scipy.special.i1(_BETA * s) / (s * REACH * norm), 0.0)
    sinc = np.sinc(t)
    flat = np.abs(t) < 1e-8
    slope = np.where(flat, 0.0, (np.cos(np.pi * t) - sinc) / np.where(flat, 1.0, t))
    weights, slopes = sinc * window, slope * window + sinc * falling
    total = weights.sum(axis=1, keepdims=True)
    weights /= total
    slopes = slopes / total - weights * (slopes.sum(axis=1, keepdims=True) / total)
    kept = slice(reach - half, reach + half + 1)
    return weights[:, kept], slopes[:, kept]


def moved_stamps(
    images: Array, dy: Array, dx: Array, half: int, *, slopes: bool = False
) -> tuple[Array, ...]:
    """Images moved by any distance, on stamps of one size.

    Parameters
    ----------
    images
        ``(n, py, px)``, origin at ``[py//2, px//2]``, or one image ``(1, py, px)`` for all stamps.
        Images are zero outside.
    dy, dx
        ``(n,)`` pixels by which the origin moves away from the stamp's middle pixel.
    half
        Pixels of a stamp on each side of the middle one.
    slopes
        Whether to return the derivatives too.

    Returns
    -------
    stamps
        ``(n, 2·half + 1, 2·half + 1)``; with ``slopes``, also their derivatives by ``dy`` and by
        ``dx``.
    """
    (wy, sy), (wx, sx) = (
        _moving_matrices(shift, half, size)
        for shift, size in ((dy, images.shape[1]), (dx, images.shape[2]))
    )
    across = images @ np.swapaxes(wx, 1, 2)
    stamps = wy @ across
    if not slopes:
        return (stamps,)
    return stamps, -(sy @ across), -(wy @ (images @ np.swapaxes(sx, 1, 2)))


def _moving_matrices(shift: Array, half: int, size: int) -> tuple[Array, Array]:
    """Matrices that map an axis of images to the same axis of stamps, and their derivatives."""
    whole = np.floor(np.asarray(shift, dtype=np.float64) + 0.5)
    reach = REACH + 1
    # Pixel j of the stamp is the image at j − shift: each row is the row before moved by a pixel.
    # For a whole-pixel shift the first row's weight is at column −half + size//2 − whole.
    length = size + 2 * half
    first = (2 * half - (half - size // 2) - whole).astype(int) - reach
    columns = first[:, None] + np.arange(2 * reach + 1)
    inside = (columns >= 0) & (columns < length)
    rows = np.broadcast_to(np.arange(len(first))[:, None], columns.shape)[inside]
    result = []
    for weights in interpolation_weights(whole - shift, reach):
        line = np.zeros((len(first), length))
        line[rows, columns[inside]] = weights[inside]
        windows = np.lib.stride_tricks.sliding_window_view(line, size, axis=1)
        result.append(np.ascontiguousarray(windows[:, ::-1]))
    return result[0], result[1]
