"""The differential background: what of it is told before the fit, and on the difference itself."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..exposures import masks
from ..exposures.fields import ChebyshevField
from ..exposures.model import Exposure
from ..noise.exposures import PairSources
from ..numerics.planes import filled
from ..numerics.steps import named_lines
from .background import CLIP_OF_SKEWED, HIGHEST_ORDER, fit_background
from .mesh import Mesh, common_structure, fit_mesh, has_structure
from .preparation import Pair

__all__ = ["BackgroundModel", "BackgroundSearch", "differential_structure"]

type Array = npt.NDArray[Any]
type BackgroundModel = Literal["auto", "polynomial", "mesh"]

_BROAD = 4.0
"""Full widths in both directions, from which what one image alone has is no source."""
_MOST_COMMON = 0.5
"""Correlation of both images' structure from which it is the sky's."""

_LARGE_LOSS = 0.02
"""Of fluxes, that deserves a warning."""

_log = logging.getLogger("whitediff.match")


@dataclasses.dataclass(frozen=True)
class BackgroundSearch:
    """How a background is made better on the difference itself.

    Attributes
    ----------
    sources
        Which pixels hold sources of either image.
    model
        ``polynomial``; ``mesh``, also what small blocks show; ``auto``, that where blocks that are
        left out are predicted.
    order
        Of the polynomials, at least.
    fwhm
        Of the difference's PSF, pixels.
    """

    sources: PairSources
    model: BackgroundModel
    order: int
    fwhm: float

    def better(self, difference: Exposure, start: ChebyshevField) -> ChebyshevField | Array:
        """Find the background of a difference.

        Parameters
        ----------
        difference
            Before its background is subtracted.
        start
            Background as it is known.

        Returns
        -------
        background
            Polynomials of the start's order or more; with what they leave, ``(ny, nx)`` float32.
        """
        image = difference.data
        good = ~masks.flagged(difference.mask, (*masks.AVOIDED_MASK_PLANES, "EDGE"))
        use = good & ~self.sources.either
        order = start.coefficients.shape[0] - 1
        found = fit_background(
            image,
            use,
            order,
            start=start.coefficients,
            highest=HIGHEST_ORDER,
            clip=CLIP_OF_SKEWED,
        )
        smooth = ChebyshevField(difference.bbox, found)
        if self.model == "polynomial":
            return smooth
        fwhm = self.fwhm * (math.sqrt(2) if difference.is_score else 1)
        both = use, good & self.sources.free(_BROAD * fwhm)
        found, mesh = _mesh(image, both, fwhm, self.order, always=self.model == "mesh")
        if mesh is None:
            return smooth
        _tell_of(mesh, difference)
        low = ChebyshevField(difference.bbox, found)
        whole: Array = low.on(difference.bbox).astype(np.float32) + mesh.image
        return whole


def differential_structure(pair: Pair, ratio: float, order: int) -> Array | None:
    """What the science image's background has over the template's and polynomials.

    Parameters
    ----------
    pair
        Prepared exposures.
    ratio
        Flux of a source in the template over that in the science image.
    order
        Of the polynomials.

    Returns
    -------
    structure
        ``(ny, nx)`` float32, image_unit of the science exposure; None where there is none.

    Notes
    -----
    It is told from source-free pixels without any kernel, which only changes what is smaller than
    the PSFs, so that the kernel can be fitted without it: fringes under stars are taken for a part
    of them.  Emission that both images have is none, and would depend on the ratio.
    """
    science, template = pair.science.data, pair.template.data
    fwhm = max(pair.science_fwhm, pair.template_fwhm)
    use, broad = (
        each & ~pair.bad
        for each in (~pair.source_levels.either, pair.source_levels.free(_BROAD * fwhm))
    )
    scale = np.float32(1 / ratio)

    def work(rows: slice) -> Array:
        result: Array = (science[rows] - scale * template[rows]).astype(np.float32, copy=False)
        return result

    image = filled(science.shape, np.float32, work)
    start = fit_background(image, use, order, highest=HIGHEST_ORDER)
    # What polynomials of a higher order follow is left to them.
    if not has_structure(image, broad, start):
        return None
    both = [(plane, broad, fit_background(plane, use, order)) for plane in (science, template)]
    if common_structure(*both) > _MOST_COMMON:
        return None
    _, mesh = _mesh(image, (use, broad), fwhm, order, always=False)
    return None if mesh is None else mesh.image


def _mesh(
    image: Array, use: tuple[Array, Array], fwhm: float, order: int, *, always: bool
) -> tuple[Array, Mesh | None]:
    """Polynomials, of the first pixels, and what they leave, of the second, which are more.

    Those of a high order swing at the edges of what does not suit them.
    """
    start = fit_background(image, use[0], order)
    return start, fit_mesh(image, use[1], fwhm, start=start, always=always)


def _tell_of(mesh: Mesh, difference: Exposure) -> None:
    first = difference.bbox.y.start, difference.bbox.x.start
    steps = named_lines(mesh.rows, mesh.columns, first)
    _log.log(
        logging.WARNING if mesh.loss > _LARGE_LOSS else logging.INFO,
        "%s: its background has structure that no polynomial follows, of %.2g times a pixel's noise"
        "%s; it is taken away, and so is %.2g %% of the flux of sources that do not stand out of"
        " it, which is in no error (--background polynomial leaves it in).",
        difference.source or "The difference",
        mesh.amplitude,
        f", with steps at {steps}" if steps else "",
        100 * mesh.loss,
    )
