"""Widths of point-spread functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError

__all__ = ["FWHM_TO_SIGMA", "UNDERSAMPLED_FWHM", "full_width_half_maximum"]

type Array = npt.NDArray[Any]

FWHM_TO_SIGMA = 1 / (2 * math.sqrt(2 * math.log(2)))
"""Standard deviation of a Gaussian over its full width at half maximum."""

UNDERSAMPLED_FWHM = 2.5
"""Full width at half maximum, pixels, below which pixels do not determine the light between them: a
star shifted by part of a pixel changes, and diffraction may matter."""

_OVERSAMPLING = 8
_CORE, _AROUND = 0.3, 2
"""Share of the maximum, and pixels around the region above it, within which the spline falls to
half its maximum."""


def full_width_half_maximum(image: Array) -> float:
    """Full width at half maximum of a PSF.

    Parameters
    ----------
    image
        ``(py, px)``, its peak near the middle.

    Returns
    -------
    fwhm
        Diameter, pixels, of the circle with the area above half of the maximum; for an ellipse,
        the geometric mean of its axes.

    Raises
    ------
    ArgumentError
        If the image is not finite or has no positive maximum.
    """
    if not (np.isfinite(image).all() and image.max() > 0):
        raise ArgumentError("A PSF image must be finite with a positive maximum.")
    ny, nx = image.shape
    y, x = np.unravel_index(int(np.argmax(image)), image.shape)
    # Only the core is interpolated, as far as it may be above half of the maximum: wings cost time.
    cores, _ = scipy.ndimage.label(image > _CORE * image[y, x])
    box = scipy.ndimage.find_objects(cores)[cores[y, x] - 1]
    rows, columns = (
        np.arange(
            max(0, middle - n // 2, part.start - _AROUND),
            min(n - 1, middle + n // 2, part.stop - 1 + _AROUND) + 1e-9,
            1 / _OVERSAMPLING,
        )
        for part, middle, n in zip(box, (y, x), (ny, nx), strict=True)
    )
    fine = scipy.ndimage.map_coordinates(
        image.astype(np.float64), np.meshgrid(rows, columns, indexing="ij"), order=3
    )
    above = fine - fine.max() / 2
    labels, _ = scipy.ndimage.label(above > 0)
    peak = labels == labels[np.unravel_index(int(np.argmax(fine)), fine.shape)]
    # Cells on the border count by the part of them above: whole cells would make steps.
    near = scipy.ndimage.binary_dilation(peak)
    slope = sum(abs(each) for each in np.gradient(above))
    part = np.clip(0.5 + above[near] / np.maximum(slope[near], np.finfo(float).tiny), 0, 1)
    area = float(part.sum()) / _OVERSAMPLING**2
    return 2 * math.sqrt(area / math.pi)
