"""Depth: the flux of the faintest point source that a difference or score shows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..exposures.masks import UNTRUSTED_MASK_PLANES, flagged
from ..exposures.model import Exposure
from ..exposures.psf import Light, psf_images
from ..exposures.zero_points import zero_point
from .photometry import filter_errors

__all__ = ["SIGNIFICANCE", "Depth", "depth"]

type Array = npt.NDArray[Any]

SIGNIFICANCE = 5.0
"""A depth is the flux of a source of this significance, standard deviations."""

_ALONG = 24
"""Places along each side of the frame."""
_FEWEST = 64
"""With fewer of these places on good pixels, places are drawn from all good pixels instead."""
_BATCH = 64
"""Places whose PSFs are in memory at a time."""


@dataclasses.dataclass(frozen=True)
class Depth:
    """Flux of a point source of 5 standard deviations of the noise.

    Attributes
    ----------
    flux
        image_unit.
    magnitude
        None without a zero point.
    unit
        Unit of the flux, for messages; empty if not known.
    """

    flux: float
    magnitude: float | None = None
    unit: str = ""

    @classmethod
    def of(cls, flux: float, exposure: Exposure, given: float | None = None) -> Depth:
        """Depth of a known flux.

        Parameters
        ----------
        flux
            image_unit, positive.
        exposure
            Exposure that gives the unit and the zero point.
        given
            Zero point in place of the header's.

        Returns
        -------
        depth
            `Depth`.
        """
        zero = zero_point(exposure, given)
        magnitude = None if zero is None else zero[0] - 2.5 * math.log10(flux)
        return cls(flux, magnitude, str(exposure.unit or ""))

    @property
    def meta(self) -> dict[str, float]:
        """Entries of a catalogue's metadata."""
        result: dict[str, float] = {"depth": self.flux}
        return result if self.magnitude is None else result | {"depth_mag": self.magnitude}


def depth(
    exposure: Exposure, given: float | None = None, *, flux_variance: Array | None = None
) -> Depth | None:
    """Flux of a 5 sigma point source at a typical place.

    Parameters
    ----------
    exposure
        Difference whose noise is white, with its PSF; or score.
    given
        Zero point, magnitude of a flux of 1, in place of the header's.
    flux_variance
        ``(ny, nx)`` of a score: variance of a point source's flux at each pixel, image_unit².

    Returns
    -------
    depth
        The median over good pixels; None if there are none, or neither flux_variance nor, for a
        difference, a PSF is known.

    Notes
    -----
    The significance of a difference is ``Σ P D / √(Σ P² V)`` over the good pixels, with the PSF P
    and the variance V of the place; a flux F gives it ``F Σ P² / √(Σ P² V)``.  The median is taken
    over a grid of 24 × 24 places.
    """
    good = ~flagged(exposure.mask, UNTRUSTED_MASK_PLANES)
    variance = exposure.variance if flux_variance is None else flux_variance
    with np.errstate(invalid="ignore"):
        good &= np.isfinite(exposure.data) & np.isfinite(variance) & (variance > 0)
    rows, columns = _places(good)
    if not len(rows):
        return None
    if flux_variance is not None:
        errors = np.sqrt(flux_variance[rows, columns].astype(float))
    elif exposure.psf is None or exposure.is_score:
        return None
    else:
        y0, x0 = exposure.origin
        errors = np.concatenate(
            [
                filter_errors(
                    exposure.variance,
                    good,
                    psf_images(
                        exposure.psf, x=(columns[part] + x0) * 1.0, y=(rows[part] + y0) * 1.0
                    ),
                    columns[part],
                    rows[part],
                )
                for part in (slice(i, i + _BATCH) for i in range(0, len(rows), _BATCH))
            ]
        )
        errors /= Light.of(exposure.psf).enclosed
    errors = errors[np.isfinite(errors)]
    if not len(errors):
        return None
    return Depth.of(SIGNIFICANCE * float(np.median(errors)), exposure, given)


def _places(good: Array) -> tuple[Array, Array]:
    """Rows and columns of good pixels, spread over the frame."""
    along = [((np.arange(_ALONG) + 0.5) * n / _ALONG).astype(int) for n in good.shape]
    rows, columns = (each.ravel() for each in np.meshgrid(*along, indexing="ij"))
    use = good[rows, columns]
    if use.sum() >= _FEWEST:
        return rows[use], columns[use]
    known = np.flatnonzero(good)
    # The same places each time, so that a depth is reproducible.
    chosen = np.random.default_rng(0).permutation(len(known))[: _ALONG**2]
    rows, columns = np.divmod(np.sort(known[chosen]), good.shape[1])
    return rows, columns
