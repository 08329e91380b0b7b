"""Frames of colour cameras whose colours were not separated."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..numerics.stats import median_deviation

__all__ = ["colour_mosaic"]

type Array = npt.NDArray[Any]

_LEAST, _ERRORS = 0.2, 8.0
"""Least difference of levels that makes a pattern, in a pixel's noise and in its own errors."""
_ENOUGH, _FEWEST = 100_000, 100
"""Squares enough to know levels to a hundredth of a pattern; fewest squares that tell at all."""


def colour_mosaic(image: Array, bad: Array) -> Array | None:
    """Levels of the four pixels of squares of 2 × 2, if they differ as colours do.

    Parameters
    ----------
    image
        ``(ny, nx)`` as it was read out.
    bad
        ``(ny, nx)`` boolean: pixels to leave out.

    Returns
    -------
    levels
        ``(2, 2)`` above their mean, in a pixel's noise, where both neighbouring rows and
        neighbouring columns differ; None for other images, and where two amplifiers read
        every other column or row.

    Notes
    -----
    Levels are medians of each pixel less the mean of its square, in which sources and skies cancel.
    Every row of squares is used up to about 100 000 squares, else evenly spread rows.
    """
    ny, nx = (n // 2 for n in image.shape)
    step = 2 * max(1, ny * nx // _ENOUGH)
    parts = [np.s_[i : 2 * ny : step, j : 2 * nx : 2] for i in (0, 1) for j in (0, 1)]
    squares = np.stack([image[part].astype(np.float64) for part in parts])
    known = np.isfinite(squares).all(axis=0) & ~np.any([bad[part] for part in parts], axis=0)
    if known.sum() < _FEWEST:
        return None
    values = squares[:, known]
    values -= values.mean(axis=0)
    levels = np.median(values, axis=1)
    noise = max(
        median_deviation(value, about=level) for value, level in zip(values, levels, strict=True)
    )
    if not noise > 0:
        return None
    error = 1.25 * noise / np.sqrt(values.shape[1])
    found: Array = levels.reshape(2, 2)
    along = [np.abs(np.diff(found, axis=axis)).max() for axis in (0, 1)]
    return found / noise if min(along) > max(_LEAST * noise, _ERRORS * error) else None
