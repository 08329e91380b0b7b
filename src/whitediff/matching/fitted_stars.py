"""Table of the stars that were, or were not, used for the fit of a kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .. import astro
from ..exposures.model import Exposure
from ..stars.candidates import Candidates, Sources
from .solve import KernelFit

__all__ = ["star_table"]

type Array = npt.NDArray[Any]


def star_table(
    sources: Sources,
    candidates: Candidates,
    fit: KernelFit,
    science: Exposure,
    *,
    noise_known: bool = False,
) -> astro.table.Table:
    """Table of every source that could have determined a kernel, and how it was used.

    Parameters
    ----------
    sources
        Sources of the science image.
    candidates
        Sources that were offered to the fit.
    fit
        The fit.
    science
        Exposure on which the sources were found, for its box and unit.
    noise_known
        True for a score, whose pixel noise is not the weights': chi2 and mean_residual are NaN.

    Returns
    -------
    stars
        One row for each source, the most significant first: x, y (pixel coordinates), flux
        (image_unit, in an aperture of the science image), signal_to_noise, candidate (it was
        offered to the fit), used (the fit used it), reason (why not; empty if used), chi2
        (reduced, of the residual on the stamp) and mean_residual (over sigma); the last two are
        NaN for sources that are no candidates.
    """
    n, box, unit = len(sources), science.bbox, science.unit
    candidate, used = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    chi_square, mean = np.full(n, np.nan, np.float32), np.full(n, np.nan, np.float32)
    reason = candidates.passed_over.astype(object)
    candidate[candidates.chosen] = True
    used[candidates.chosen] = fit.used
    reason[candidates.chosen] = fit.rejected
    if not noise_known:
        chi_square[candidates.chosen] = fit.residual_rms**2
        mean[candidates.chosen] = fit.residual_mean
    table = astro.table.Table()
    for name, values, column_unit, description in (
        ("x", sources.x + box.x.start, astro.units.pixel, "column, pixel coordinates"),
        ("y", sources.y + box.y.start, astro.units.pixel, "row, pixel coordinates"),
        ("flux", sources.flux.astype(np.float32), unit, "science image, aperture"),
        ("signal_to_noise", sources.signal_to_noise.astype(np.float32), None, "of this flux"),
        ("candidate", candidate, None, "offered to the fit of the kernel"),
        ("used", used, None, "used by the fit"),
        ("chi2", chi_square, None, "reduced chi-square of what is left on the stamp"),
        ("mean_residual", mean, None, "mean of what is left, over its sigma"),
        ("reason", reason.astype(str), None, "why it was not used"),
    ):
        table[name] = values
        table[name].unit = column_unit
        table[name].description = description
    return table[np.argsort(-sources.signal_to_noise, kind="stable")]
