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
"""Light over a pixel's noise, from where variances rise with it."""

_FOLLOWS = 5.0
"""Significance with which variances follow the noise of their pixels."""

_ROUNDING = 1e-6
_ALIKE = 3.0
"""Factor within which variances are those of a level and of photons."""


@dataclasses.dataclass(frozen=True)
class Stamps:
    """Cut-outs around stars.

    Attributes
    ----------
    source
        ``(n, size + kernel − 1, size + kernel − 1)`` of the image to be convolved: wide
        enough for every pixel of the target to have its support.  Finite.
    target
        ``(n, size, size)`` of the image to be matched.  Finite.
    weight
        ``(n, size, size)`` inverse variance of their difference; 0 for pixels not to use,
        those included whose support in the source holds a pixel that could not be interpolated.
    x, y
        ``(n,)`` positions scaled to −1 … 1 between the outer edges of the frame.
    source_variance
        Of ``source``'s pixels, same shape; None: as if it had no noise.
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
        """Some of the stamps.

        Parameters
        ----------
        which
            Slice, or indices.

        Returns
        -------
        stamps
            Views where it is a slice.
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
            Odd side of the target's stamps that is left, at most the present one.

        Returns
        -------
        stamps
            Views, for kernels of the same side.
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
            Kernels between them are those of these, times the source's unit over the target's.
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
        """Stamps with weights that a first fit has shown to be right.

        Parameters
        ----------
        more
            To add to the variance, in units of the source's: the source's noise.
        without
            ``(n, size, size)`` boolean: pixels that lose their weight.
        residuals
            ``(n, size, size)`` what the first fit left.  Where a variance was made of a pixel's
            own counts it follows their noise, and weights that follow noise make pixels count
            more that are too low: by about an electron in every pixel of a star.  These
            variances are smoothed.

        Returns
        -------
        stamps
            The same ones, with other weights.

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
        # Smoothed, a variance may be less than what a smoother kernel takes off.
        variance = np.maximum(variance + change, (given + change) / _ALIKE)
        return dataclasses.replace(self, weight=np.where(use, 1 / variance, 0))


def _without_own_noise(variance: Array, model: Array, residuals: Array, use: Array) -> Array:
    """Variances that do not follow the noise of the pixels themselves.

    Those that do are replaced by a level for each stamp, plus what they rise by with the light of
    a model: they need not be right to a tenth, only independent of the noise.
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
    # What rounding leaves of constant variances goes with nothing.
    if not scatter > _ROUNDING * float(np.std(left) * np.mean(variance[lit])):
        return variance
    if not together * math.sqrt(len(left)) > _FOLLOWS * scatter:
        return variance
    smooth = np.where(use, bases[:, None, None] + slope * np.maximum(light, 0), variance)
    # Pixels that are much worse have other reasons.
    is_alike = np.abs(np.log(variance / smooth)) < math.log(_ALIKE)
    return np.where(is_alike, smooth, variance)
