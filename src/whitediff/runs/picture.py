"""Picture of a subtraction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from astropy.table import Table

from ..detection.exposures import DetectionOptions, detect
from ..diagnostics.plots import plot_subtraction
from ..errors import WhitediffError
from ..exposures.model import Exposure

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["draw"]


def draw(
    science: Exposure | None,
    template: Exposure | None,
    product: Exposure,
    *,
    sources: Table | None,
    path: Path | None = None,
    overwrite: bool = False,
) -> matplotlib.figure.Figure:
    """Draw science image, template and difference, with the sources found.

    Parameters
    ----------
    science, template
        Input images of the product; left out if None or on other pixels.
    product
        Difference or score.
    sources
        Detections; None to draw none.
    path
        PNG to write; None to write nothing.
    overwrite
        Whether an existing file may be replaced.

    Returns
    -------
    figure
        `matplotlib.figure.Figure`.
    """
    images = {}
    for name, exposure in (("science", science), ("template", template)):
        if exposure is not None and exposure.bbox == product.bbox:
            images[name] = exposure.data
    images["score" if product.is_score else "difference"] = product.data
    return plot_subtraction(
        images, origin=product.origin, sources=sources, path=path, overwrite=overwrite
    )


def found_on(product: Exposure, score: Exposure | None, threshold: float) -> Table | None:
    """Sources to draw on a difference.

    Parameters
    ----------
    product
        Difference.
    score
        Score of the same images, on which sources are found; None to use the difference.
    threshold
        Least significance.

    Returns
    -------
    sources
        Catalogue; None for a score, a difference without a PSF, or if detection fails.
    """
    if product.is_score or product.psf is None:
        return None
    try:
        return detect(product, score, DetectionOptions(threshold=threshold))
    except WhitediffError:
        return None
