"""The differential background: its structure before the fit, and its search on the difference."""

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
"""Extent in both directions, in full widths at half maximum, from which light that only one image
has is no source."""
_MOST_COMMON = 0.5
"""Correlation of both images' structure above which the structure is in the sky."""

_LARGE_LOSS = 0.02
"""Relative loss of flux that deserves a warning."""

_log = logging.getLogger("whitediff.match")


@dataclasses.dataclass(frozen=True)
class BackgroundSearch:
    """How a background is improved on the difference itself.

    Attributes
    ----------
    sources
        Pixels that hold sources of either image.
    model
        ``polynomial``; ``mesh``: polynomials and the structure that small blocks show; ``auto``:
        the mesh where it predicts blocks that are left out.
    order
        Order of the polynomials beneath a mesh.
    fwhm
        Full width at half maximum of the difference's PSF, pixels.
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
            Difference before its background is subtracted.
        start
            Background that is known already.

        Returns
        -------
        background
            Polynomials of the start's order or more; ``(ny, nx)`` float32 if a mesh is added.
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
    """Structure of the science image's background beyond the template's and polynomials.

    Parameters
    ----------
    pair
        Prepared exposures.
    ratio
        Flux of a source in the template over that in the science image.
    order
        Order of the polynomials.

    Returns
    -------
    structure
        ``(ny, nx)`` float32, image_unit of the science exposure; None where there is none.

    Notes
    -----
    It is measured on source-free pixels without any kernel, which would only change what is
    smaller than the PSFs.  It is removed before the kernel is fitted, which would take fringes
    under stars for a part of these.  Emission that both images have does not count: its
    difference would depend on the ratio.
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
    # Structure that polynomials of a higher order can follow needs no mesh.
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
    """Polynomials fitted to the first set of pixels, and a mesh of their residuals in the second.

    The second set is larger.  The order is low: high polynomials swing at the edges of structure
    that they do not fit.
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
