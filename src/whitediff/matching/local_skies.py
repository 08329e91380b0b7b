"""The kernel's sum by the stars alone, independent of the sky between them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics.threads import single_threaded_algebra
from ..stars.stamps import Stamps
from .basis import KernelBasis

__all__ = ["sum_with_local_skies"]

type Array = npt.NDArray[Any]

_FEWEST, _MOST = 5, 100
"""Least and largest number of stars; the brightest are taken."""
_CUT = 1e-12
"""Least singular value that is used, over the largest."""


@single_threaded_algebra()
def sum_with_local_skies(stamps: Stamps, basis: KernelBasis, used: Array) -> tuple[float, float]:
    """Fit one kernel to stamps, each of which has a sky of its own.

    Parameters
    ----------
    stamps
        Stamps, brightest first.
    basis
        Gaussian basis of the kernel: a free one would take the skies' noise for light.
    used
        ``(n,)`` boolean: stamps that count.

    Returns
    -------
    value, error
        Sum of the kernel, and its error by the jackknife over the stamps; NaN and infinity for
        fewer than 5 stamps.

    Notes
    -----
    A sky of first order is projected out of each target stamp and of each source stamp convolved
    with a basis image.  So neither a wrong sky nor one common to both images affects the sum; but
    it is noisier, and lacks light as wide as a stamp.
    """
    which = np.flatnonzero(used)[:_MOST]
    if len(which) < _FEWEST:
        return math.nan, math.inf
    size, width = stamps.target.shape[1], stamps.source.shape[1]
    inner = slice(width - size, width)
    grid = scipy.fft.next_fast_len(width, real=True)
    transforms = scipy.fft.rfft2(basis.images, s=(grid, grid))
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    plane = np.stack([np.ones_like(x), x, y]).reshape(3, -1)
    n = len(basis)
    grams, rights = np.empty((len(which), n, n)), np.empty((len(which), n))
    for row, star in enumerate(which):
        root = np.sqrt(stamps.weight[star], dtype=np.float64)
        source = scipy.fft.rfft2(stamps.source[star].astype(np.float64), s=(grid, grid))
        made = scipy.fft.irfft2(transforms * source, s=(grid, grid))[:, inner, inner] * root
        light = np.concatenate([made, (stamps.target[star] * root)[None]]).reshape(n + 1, -1)
        sky, _ = np.linalg.qr((plane * root.ravel()).T)
        light = light - (light @ sky) @ sky.T
        grams[row], rights[row] = light[:-1] @ light[:-1].T, light[:-1] @ light[-1]

    def solved(gram: Array, right: Array) -> float:
        # Only the first image of a basis has a sum.
        return float(np.linalg.lstsq(gram, right, rcond=_CUT)[0][0])

    gram, right = grams.sum(axis=0), rights.sum(axis=0)
    without = [solved(gram - own, right - of) for own, of in zip(grams, rights, strict=True)]
    error = math.sqrt(len(which) - 1) * float(np.std(without))
    return solved(gram, right), error
