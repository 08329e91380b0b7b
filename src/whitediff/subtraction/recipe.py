"""All options that decide the pixels of a difference or score."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from ..decorrelation.cells import CellOptions
from ..decorrelation.exposures import CorrectionOptions
from ..errors import ArgumentError
from ..matching.exposures import MatchOptions
from ..matching.preparation import PreparationOptions

__all__ = ["CutoutOptions", "Recipe", "TemplateMask"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutoutOptions:
    """Source of the kernel, and what is known of a cut-out.

    Attributes
    ----------
    kernel_from
        ``stars``: the usual fit; ``psfs``: the two PSFs; ``pixels``: all pixels of a stamp;
        ``auto``: the best that the images allow (`whitediff.subtraction.cutouts.kernel_source`).
    flux_scale
        Flux of a static source on the science image over its flux on the template; if None, from
        the zero points, or else 1.
    place
        (x, y) of a transient, pixel coordinates; the middle of a stamp if None.
    """

    kernel_from: Literal["auto", "stars", "psfs", "pixels"] = "auto"
    flux_scale: float | None = None
    place: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        allowed = ("auto", "stars", "psfs", "pixels")
        if self.kernel_from not in allowed:
            raise ArgumentError(
                f"kernel_from must be one of {', '.join(allowed)}; got {self.kernel_from!r}."
            )
        scale = self.flux_scale
        if scale is not None and not (math.isfinite(scale) and scale > 0):
            raise ArgumentError(f"flux_scale must be positive and finite; got {scale:g}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemplateMask:
    """How the template's mask planes appear in a difference.

    Attributes
    ----------
    preserve
        Planes that keep their name.
    rename
        Planes that become ``<NAME>_TEMPLATE``.  All others are left out.
    """

    preserve: tuple[str, ...] = ("NO_DATA", "BAD")
    rename: tuple[str, ...] = ("SAT", "INJECTED", "INJECTED_CORE")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How differences and scores are made.

    Attributes
    ----------
    preparation, match
        Options of these steps.
    subtract_background
        Subtract the differential background; else it is only found.
    decorrelate
        Make the noise white; else it stays correlated, and the variance plane holds the variance
        of each pixel alone.
    correction
        Options of the correction.  A resampled template has the noise covariance that resampling
        gives it, unless the noise is "white".
    cells
        Grid of cells with a correction each; None for a correction that is the same everywhere,
        or varies smoothly.
    template_mask
        How the template's mask planes appear; None: the planes of both images are united.
    cutout
        Source of the kernel, and what is known of an image without stars.
    foreign
        Name of another program's step that decided pixels too; None if there was none.

    Notes
    -----
    The same recipe and images give the same products to the last bit.  The defaults are those of
    ``whitediff subtract``.
    """

    preparation: PreparationOptions = dataclasses.field(default_factory=PreparationOptions)
    match: MatchOptions = dataclasses.field(
        default_factory=lambda: MatchOptions(convolved="auto", choose_order="bic")
    )
    subtract_background: bool = True
    decorrelate: bool = True
    correction: CorrectionOptions = dataclasses.field(
        default_factory=lambda: CorrectionOptions(spatially_varying=True, noise="auto")
    )
    cells: CellOptions | None = None
    template_mask: TemplateMask | None = None
    cutout: CutoutOptions = dataclasses.field(default_factory=CutoutOptions)
    foreign: str | None = None
