"""Differences, with how they were made, and checks that their kernels made them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..direction import Direction, opposite
from ..errors import DataError, FileFormatError
from ..exposures.boxes import Box
from ..exposures.model import Exposure
from ..numerics.polynomials import chebyshev_products
from ..numerics.stats import robust_sigma

__all__ = [
    "OWN_SOFTWARE",
    "Difference",
    "KernelElsewhereError",
    "check_reproduced",
    "kernel_doubt",
]

type Array = npt.NDArray[Any]

OWN_SOFTWARE = "whitediff"
"""`Difference.software` of whitediff's own differences."""

_SAMPLE = 400
"""Pixels at which a difference is compared with its images."""
_SEED = 20010828
_SAME = 0.1
"""Scatter of the difference about the remade one, over its own, beyond which it is refused."""

_FAR_OFF, _MOST_FAR_OFF = 0.5, 0.05
"""Deviation of a pixel that is far off, over the difference's scatter, and the largest share of
such pixels.  A robust scatter misses a third of the pixels."""

_OTHER_SUM = 0.02
"""Relative deviation of the convolved image's part from the kernel's sum that is reported."""
_WRONG_SUM = 0.05
"""Relative deviation from the kernel's sum at which the kernel is refused."""
_OTHER = 0.3
"""Unexplained scatter, over the difference's, beyond which a kernel that was given is refused."""
_ROUNDS, _CLIP = 3, 5.0
_BACKGROUND_ORDER = 3

type Remade = Callable[[Array, Array, int, int], float]
"""Function of the pixels of science image and template, x and y: the difference at x, y."""


class KernelElsewhereError(FileFormatError):
    """The kernel of a difference is in another file, which was not named."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference, and how it was made.

    Attributes
    ----------
    exposure
        The difference at the science image's level, with its kernel.
    directions
        Parts of the frame, and which image was convolved in each; where parts overlap, the later
        one counts.  Empty if the file does not say.
    software
        Program that made the difference; None if unknown.
    remade
        Function that repeats the program's arithmetic for one pixel of the exposure; None if that
        arithmetic is not known.
    margin
        Width of the frame's edges where `remade` cannot be used, pixels.
    variance_files
        ``science`` and ``template`` → file with the standard deviations that the program used,
        if there is one.
    """

    exposure: Exposure
    directions: tuple[tuple[Box, Direction], ...] = ()
    software: str | None = None
    remade: Remade | None = None
    margin: int = 0
    variance_files: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def convolved(self) -> Direction | None:
        """Which image was convolved; None if unknown, or not the same everywhere."""
        found = {direction for _, direction in self.directions}
        return found.pop() if len(found) == 1 else None

    @property
    def is_foreign(self) -> bool:
        """Whether the difference is known to be made by a program other than whitediff."""
        return self.software not in (None, OWN_SOFTWARE)


def check_reproduced(difference: Difference, science: Exposure, template: Exposure) -> float | None:
    """Make sure that its kernel made a difference from two images.

    Parameters
    ----------
    difference
        Difference.
    science, template
        The images before any convolution.

    Returns
    -------
    deviation
        Scatter of the difference about the one remade from the images, over its own scatter; None
        if it cannot be remade.

    Raises
    ------
    DataError
        If the deviation is more than a tenth, or more than one in twenty pixels are off by half the
        scatter: the noise cannot be whitened with that kernel.
    """
    exposure, margin = difference.exposure, difference.margin
    ny, nx = exposure.shape
    shapes = {science.shape, template.shape, exposure.shape}
    if difference.remade is None or len(shapes) > 1 or min(ny, nx) <= 2 * margin:
        return None
    rng = np.random.default_rng(_SEED)
    x, y = rng.integers(margin, nx - margin, _SAMPLE), rng.integers(margin, ny - margin, _SAMPLE)
    images = (science.data, template.data)
    made = np.array([difference.remade(*images, int(i), int(j)) for i, j in zip(x, y, strict=True)])
    found = exposure.data[y, x].astype(float)
    both = np.isfinite(made) & np.isfinite(found)
    if both.sum() < _SAMPLE // 20:
        return None
    # A robust scatter about its median: a constant added to an image afterwards does no harm.
    scatter = robust_sigma(found[both])
    deviation = robust_sigma(found[both] - made[both]) / scatter if scatter > 0 else 0.0
    if deviation > _SAME:
        raise DataError.of(
            exposure.source,
            f"is not what its kernel makes of {science.source} and"
            f" {template.source}; it deviates from that by {deviation:.2g} of its own scatter. Are"
            " these the images that it was made of, before any convolution, and is the file whole?",
        )
    off = found[both] - made[both]
    wrong = (
        float(np.mean(np.abs(off - np.median(off)) > _FAR_OFF * scatter)) if scatter > 0 else 0.0
    )
    if wrong > _MOST_FAR_OFF:
        raise DataError.of(
            exposure.source,
            f"{100 * wrong:.0f}% of its pixels are not what its kernel makes of"
            f" {science.source} and {template.source}; was it changed afterwards, and is the file"
            " whole?",
        )
    return float(deviation)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Parts of the two images in a difference.

    Attributes
    ----------
    scale
        Level of the difference over the level of the science image; negative for template minus
        science.
    ratio
        Factor of the convolved image over minus the factor of the other; 1 for the right kernel.
    left
        Scatter that neither image explains, over the scatter of the difference.
    """

    scale: float
    ratio: float
    left: float


def kernel_doubt(
    difference: Exposure, science: Exposure, template: Exposure, convolved: Direction
) -> tuple[float, str]:
    """Compare a difference of an unknown program with two images and its kernel.

    Parameters
    ----------
    difference
        Difference, with its kernel.
    science, template
        The images before any convolution.
    convolved
        Image that is said to have been convolved.

    Returns
    -------
    scale
        Level of the difference over the level of the science image, positive; 1 if it cannot be
        determined or deviates from 1 by no more than 2 %.
    doubt
        Doubt as part of a sentence; empty if all agrees, or nothing can be determined.

    Raises
    ------
    DataError
        If the kernel, its sum or the direction does not belong to the difference, so that the noise
        cannot be whitened with it.

    Notes
    -----
    The difference is fitted at 400 pixels by both images, one of them convolved, and a polynomial
    of order 3, so that a background of the difference's own does no harm.
    """
    parts = _parts(difference, science, template, convolved)
    if parts is None:
        return 1.0, ""
    wrong_sum = abs(parts.ratio - 1) > _WRONG_SUM
    if parts.left > (_SAME if wrong_sum else _OTHER):
        turned_to = opposite(convolved)
        turned = _parts(difference, science, template, turned_to)
        better = turned is not None and turned.left < _SAME
        remedy = (
            f"with the {turned_to} convolved it is: give --convolved {turned_to}"
            if better
            else f"give the kernel that it was made with, and say whether the {convolved} was"
            " convolved (--convolved)"
        )
        raise DataError.of(
            difference.source,
            f"is not what this kernel makes of {science.source} and"
            f" {template.source} with the {convolved} convolved: {parts.left:.0%} of its scatter is"
            f" something else; {remedy}.",
        )
    if wrong_sum:
        raise DataError.of(
            difference.source,
            f"the convolved image's part in it is {parts.ratio:.4g} times what"
            " the sum of this kernel says, so its noise would not be made white; give the kernel"
            f" as it was fitted, that is, multiplied by {parts.ratio:.4g}.",
        )
    scale = abs(parts.scale) if abs(abs(parts.scale) - 1) > _OTHER_SUM else 1.0
    if parts.left > _SAME:
        return scale, (
            "it is not quite what this kernel makes of the two images:"
            f" {parts.left:.0%} of its scatter is something else; make sure that the"
            f" kernel is its own, and that the {convolved} was convolved (--convolved)"
        )
    if parts.scale < 0:
        return scale, "it is template minus science, so that what became brighter is negative in it"
    if abs(parts.ratio - 1) > _OTHER_SUM:
        return scale, (
            f"the convolved image's part in it is {parts.ratio:.4g} times what the sum of this"
            " kernel says: was the kernel scaled afterwards? With another sum the noise is not"
            " white"
        )
    return scale, ""


def _parts(
    difference: Exposure, science: Exposure, template: Exposure, convolved: Direction
) -> _Parts | None:
    """Fit a difference by both images, one of them convolved, and a smooth background."""
    ny, nx = difference.shape
    kernel = difference.kernel
    if kernel is None or {science.shape, template.shape} != {difference.shape}:
        return None
    box = difference.bbox
    middle = kernel.at(x=box.x.center, y=box.y.center)
    half = max(middle.shape) // 2
    if min(ny, nx) <= 2 * half + 1:
        return None
    rng = np.random.default_rng(_SEED)
    x, y = rng.integers(half, nx - half, _SAMPLE), rng.integers(half, ny - half, _SAMPLE)
    source, other = science.data, template.data
    if convolved == "template":
        source, other = other, source
    matched = np.empty(_SAMPLE)
    for each, (i, j) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        image = kernel.at(x=i + box.x.start, y=j + box.y.start)
        rows, columns = (n // 2 for n in image.shape)
        part = source[j - rows : j + rows + 1, i - columns : i + columns + 1]
        if part.shape != image.shape:
            return None
        matched[each] = (part[::-1, ::-1].astype(float) * image).sum()
    found, plain = (plane[y, x].astype(float) for plane in (difference.data, other))
    use = np.isfinite(found) & np.isfinite(plain) & np.isfinite(matched)
    if use.sum() < _SAMPLE // 4:
        return None
    smooth = chebyshev_products(_BACKGROUND_ORDER, 2 * x / nx - 1, 2 * y / ny - 1).T
    columns = [plain, matched, *smooth]
    left, solution = found, np.zeros(len(columns))
    for _ in range(_ROUNDS):
        # Columns of like size: those of images and polynomials differ by orders of magnitude.
        unit = [float(np.abs(each[use]).max()) or 1.0 for each in columns]
        design = np.stack([each / u for each, u in zip(columns, unit, strict=True)], axis=1)
        solution = np.linalg.lstsq(design[use], found[use])[0]
        left = found - design @ solution
        use &= np.abs(left) <= _CLIP * robust_sigma(left[use]) + 1e-6 * np.abs(found)
        solution = solution / unit
    scatter = robust_sigma(found[use] - solution[2:] @ smooth[:, use])
    plain_part, matched_part = (float(part) for part in solution[:2])
    if not scatter > 0 or plain_part == 0:
        return None
    level = plain_part if convolved == "template" else -plain_part * float(middle.sum())
    return _Parts(level, -matched_part / plain_part, robust_sigma(left[use]) / scatter)
