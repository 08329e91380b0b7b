"""What is known of a difference that another program made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from lsst.images import Box

from ..errors import DataError, FileFormatError
from ..exposures.model import Exposure
from ..stats import robust_sigma

__all__ = ["Difference", "KernelElsewhereError", "check_reproduced"]

type Array = npt.NDArray[Any]
type Direction = Literal["template", "science"]

_SAMPLE = 400
_SEED = 20010828
_SAME = 0.1
"""Scatter of the difference's deviation from what its kernel makes, over its own, to refuse."""

type Remade = Callable[[Array, Array, int, int], float]
"""Function of the pixels of the science image and template, x and y: the difference there."""


class KernelElsewhereError(FileFormatError):
    """A difference's kernel is in a file that nobody named."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference, and how it was made.

    Attributes
    ----------
    exposure
        The difference at the science image's level, with its kernel.
    directions
        Parts of the frame, and which image was convolved there; where parts overlap the later
        one holds.  Empty where the file does not say.
    software
        Program that made it; None if unknown.
    remade
        Its own arithmetic for one pixel of the difference as it stands in the exposure, with a
        margin in which it has none; None where that is not known.
    margin
        Pixels at the frame's edges that `remade` does not know.
    variance_files
        ``science`` and ``template`` → file with the standard deviations that the program used,
        where there is one.
    """

    exposure: Exposure
    directions: tuple[tuple[Box, Direction], ...] = ()
    software: str | None = None
    remade: Remade | None = None
    margin: int = 0
    variance_files: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def convolved(self) -> Direction | None:
        """Which image was convolved; None where that is unknown, or differs."""
        found = {direction for _, direction in self.directions}
        return found.pop() if len(found) == 1 else None


def check_reproduced(difference: Difference, science: Exposure, template: Exposure) -> float | None:
    """Make sure that a kernel is the one that made a difference of two images.

    Parameters
    ----------
    difference
        Difference.
    science, template
        The images before any convolution.

    Returns
    -------
    deviation
        Scatter of the difference about what the kernel makes of the images, over its own scatter;
        None where that cannot be told.

    Raises
    ------
    DataError
        If it is more than a tenth: with that kernel the noise cannot be whitened.
    """
    exposure, margin = difference.exposure, difference.margin
    ny, nx = exposure.shape
    shapes = {science.shape, template.shape, exposure.shape}
    if difference.remade is None or len(shapes) > 1 or min(ny, nx) <= 2 * margin:
        return None
    rng = np.random.default_rng(_SEED)
    x, y = rng.integers(margin, nx - margin, _SAMPLE), rng.integers(margin, ny - margin, _SAMPLE)
    images = (science.image.array, template.image.array)
    made = np.array([difference.remade(*images, int(i), int(j)) for i, j in zip(x, y, strict=True)])
    found = exposure.image.array[y, x].astype(float)
    both = np.isfinite(made) & np.isfinite(found)
    if both.sum() < _SAMPLE // 20:
        return None
    # A constant that was added to an image afterwards does no harm.
    scatter = robust_sigma(found[both])
    deviation = robust_sigma(found[both] - made[both]) / scatter if scatter > 0 else 0.0
    if deviation > _SAME:
        raise DataError(
            f"{exposure.source}: is not what its kernel makes of {science.source} and"
            f" {template.source}; it deviates from that by {deviation:.2g} of its own scatter. Are"
            " these the images that it was made of, before any convolution, and is the file whole?"
        )
    return float(deviation)
