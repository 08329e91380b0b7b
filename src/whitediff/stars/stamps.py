"""Stamps of stars, on which a kernel is fitted."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..numerics.covariance import NoiseCovariance

__all__ = ["Stamps"]

type Array = npt.NDArray[Any]

_LIT = 0.3
"""Light over a pixel's noise from which a rise of the variance with light is fitted."""

_FOLLOWS = 5.0
"""Significance from which variances follow the noise of their pixels."""

_ROUNDING = 1e-6
_ALIKE = 3.0
"""Largest factor between a variance and the model of a level plus photons."""


@dataclasses.dataclass(frozen=True)
class Stamps:
    """Cut-outs around stars.

    Attributes
    ----------
    source
        ``(n, size + kernel − 1, size + kernel − 1)`` from the image to be convolved: wide
        enough for the kernel's support at every pixel of the target.  Finite.
    target
        ``(n, size, size)`` from the image that the source is matched to.  Finite.
    weight
        ``(n, size, size)`` inverse variance of their difference; 0 for pixels not to use,
        including those whose support in the source holds a pixel that could not be interpolated.
    x, y
        ``(n,)`` positions scaled to −1 … 1 between the outer edges of the frame.
    source_variance
        Variance of ``source``, same shape; None if it counts as free of noise.
    source_noise
        Covariance of the source's noise, per unit of variance; None for white.
    """

    source: Array
    target: Array
    weight: Array
    x: Array
    y: Array
    source_variance: Array | None = None
    source_noise: NoiseCovariance | None = None

    def __post_init__(self) -> None:
        n, size, width = self.target.shape
        reach = self.source.shape[1] - size
        if size != width or self.source.shape[1] != self.source.shape[2] or reach < 0 or reach % 2:
            raise ArgumentError(
                "Stamps must be square, the source's wider by an even number of pixels; got"
                f" {self.source.shape} and {self.target.shape}."
            )
        if self.weight.shape != self.target.shape or len(self.x) != n or len(self.y) != n:
            raise ArgumentError(
                f"{n} stamps need as many weights and positions; got {self.weight.shape},"
                f" {len(self.x)} and {len(self.y)}."
            )

    def __len__(self) -> int:
        return len(self.target)

    def part(self, which: slice | Array) -> Stamps:
        """Select some stamps.

        Parameters
        ----------
        which
            Slice, or indices.

        Returns
        -------
        stamps
            Selected stamps; views if ``which`` is a slice.
        """
        return Stamps(
            self.source[which],
            self.target[which],
            self.weight[which],
            self.x[which],
            self.y[which],
            None if self.source_variance is None else self.source_variance[which],
            self.source_noise,
        )

    def cropped(self, size: int) -> Stamps:
        """The middles of the stamps.

        Parameters
        ----------
        size
            New odd side of the target's stamps, at most the present one.

        Returns
        -------
        stamps
            Views of the middles, for kernels of the same side.

        Raises
        ------
        ArgumentError
            If the side is even or larger than now.
        """
        edge = (self.target.shape[1] - size) // 2
        if edge < 0 or size % 2 == 0:
            raise ArgumentError(
                f"Stamps of {self.target.shape[1]} pixels cannot be cropped to {size}."
            )
        inner = np.s_[:, edge : self.source.shape[1] - edge, edge : self.source.shape[1] - edge]
        target = np.s_[:, edge : edge + size, edge : edge + size]
        return dataclasses.replace(
            self,
            source=self.source[inner],
            target=self.target[target],
            weight=self.weight[target],
            source_variance=None if self.source_variance is None else self.source_variance[inner],
        )

    def in_units(self, source: float, target: float) -> Stamps:
        """The same stamps in other units, so that no number is very large or small.

        Parameters
        ----------
        source, target
            New units of the two images.

        Returns
        -------
        stamps
            Stamps.  Kernels fitted to them are the kernels of these stamps times the source's unit
            over the target's.
        """
        variance = self.source_variance
        return dataclasses.replace(
            self,
            source=self.source / source,
            target=self.target / target,
            weight=self.weight * target**2,
            source_variance=None if variance is None else variance / source**2,
        )

    def reweighted(self, more: float, without: Array, residuals: Array) -> Stamps:
        """Stamps with weights corrected after a first fit.

        Parameters
        ----------
        more
            Multiple of the source's variance to add to the variance: the source's noise.
        without
            ``(n, size, size)`` boolean: pixels that lose their weight.
        residuals
            ``(n, size, size)`` residuals of the first fit.  A variance made from a pixel's own
            counts follows their noise.  Then pixels that are too low get more weight, a bias of
            about an electron in every pixel of a star.  Such variances are smoothed.

        Returns
        -------
        stamps
            The same stamps with other weights.

        Raises
        ------
        ArgumentError
            If the source's variance is not known.
        """
        if self.source_variance is None:
            raise ArgumentError("Stamps without the source's variance cannot be reweighted.")
        reach = (self.source.shape[1] - self.target.shape[1]) // 2
        inner = slice(reach, reach + self.target.shape[1])
        use = (self.weight > 0) & ~without
        given = 1 / np.where(use, self.weight, 1)
        variance = _without_own_noise(given, self.target - residuals, residuals, use)
        change = more * self.source_variance[:, inner, inner]
        # A smoothed variance may be less than the (negative) change of a smoother kernel.
        variance = np.maximum(variance + change, (given + change) / _ALIKE)
        return dataclasses.replace(self, weight=np.where(use, 1 / variance, 0))


def _without_own_noise(variance: Array, model: Array, residuals: Array, use: Array) -> Array:
    """Variances that do not follow the noise of the pixels themselves.

    Variances that do are replaced by a level for each stamp plus a term proportional to the light
    of a model: they need not be right to a tenth, only independent of the noise.
    """
    levels, bases = (
        np.array([np.median(p[u]) if u.any() else 0.0 for p, u in zip(plane, use, strict=True)])
        for plane in (model, variance)
    )
    light, above = model - levels[:, None, None], variance - bases[:, None, None]
    lit = use & (light > _LIT * np.sqrt(variance))
    square = float((light[lit] ** 2).sum())
    if not square > 0:
        return variance
    slope = max(0.0, float((light[lit] * above[lit]).sum()) / square)
    unexplained, left = above[lit] - slope * light[lit], residuals[lit]
    scatter = float(np.std(unexplained) * np.std(left))
    together = float(np.mean((unexplained - unexplained.mean()) * left))
    # Constant variances scatter by rounding only, which cannot follow noise.
    if not scatter > _ROUNDING * float(np.std(left) * np.mean(variance[lit])):
        return variance
    if not together * math.sqrt(len(left)) > _FOLLOWS * scatter:
        return variance
    smooth = np.where(use, bases[:, None, None] + slope * np.maximum(light, 0), variance)
    # Variances far from the model have other reasons, and are kept.
    is_alike = np.abs(np.log(variance / smooth)) < math.log(_ALIKE)
    return np.where(is_alike, smooth, variance)
