"""Applying a stored solution to its own pair again, or to another one."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..defects.exposures import NO_DEFECTS
from ..errors import DataError, TooFewSourcesError
from ..exposures import masks
from ..exposures.fields import ChebyshevField, Field
from ..exposures.model import Exposure
from ..exposures.psf import as_kernel_psf
from ..matching.convolution import convolved_exposure, preconvolved
from ..matching.differential_background import BackgroundSearch
from ..matching.fluxes import ComparedImages, FluxRatio, flux_ratios
from ..matching.preparation import Pair, prepare, width_stars
from ..noise.exposures import PairSources, rescaled
from ..stars.candidates import static_sources
from .solution import Product, Solution, make_product, pixel_sample

__all__ = ["Applied", "KernelJudgement", "apply_solution", "judge_kernel"]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.match")

_WIDE, _LEAST_WIDE = 2.0, 4.0
_CORE, _LEAST_CORE = 0.5, 1.5
"""Aperture radii: in full widths at half maximum of the wider PSF, and at least, in pixels."""
_BACKGROUND_ORDER = 2
"""Least polynomial order of another pair's background."""
_ERRORS = 5.0
_TOLD, _REFUSED = 0.03, 0.06
"""A kernel is doubted if flux ratios are off by so many errors and this part, refused from that."""


@dataclasses.dataclass(frozen=True)
class KernelJudgement:
    """How well a kernel that was found for another pair agrees with a pair's stars.

    Attributes
    ----------
    light
        Flux of stars in the unconvolved image over their flux in the convolved one.
    core
        This ratio within half a full width at half maximum, over ``light``: other than 1 if the
        PSFs have changed.
    """

    light: FluxRatio
    core: FluxRatio


@dataclasses.dataclass(frozen=True)
class Applied:
    """A stored solution and a pair that it is applied to.

    Attributes
    ----------
    solution
        Solution adapted to this pair.
    science, template
        Exposures with the variance planes that the product is made with.
    levels
        Sources of these exposures.
    search
        How the background is found; None to take the solution's.
    """

    solution: Solution
    science: Exposure
    template: Exposure
    levels: PairSources
    search: BackgroundSearch | None = None

    def product(self) -> Product:
        """Subtract and correct.

        Returns
        -------
        product
            `Product`.
        """
        return make_product(
            self.solution,
            self.science,
            self.template,
            search=self.search,
            sources=self.levels.either,
        )


def apply_solution(
    solution: Solution, science: Exposure, template: Exposure, levels: PairSources
) -> Applied:
    """Apply a stored solution to a pair.

    Parameters
    ----------
    solution
        Solution of an earlier product.
    science, template
        Exposures on the same pixels, with the variance planes that they came with.
    levels
        Sources of these exposures.

    Returns
    -------
    applied
        If the exposures are those of before, its product is the same to the last bit.  For others
        only the kernel is kept; background, noise and correction, which belong to the pair and
        not to the PSFs, are measured anew.

    Raises
    ------
    DataError
        If the stars of another pair contradict the kernel.
    """
    factors = solution.science_variance_factor, solution.template_variance_factor
    same = Applied(solution, rescaled(science, factors[0]), rescaled(template, factors[1]), levels)
    if solution.is_of(science, template):
        return same
    # The exposures are aligned and their defects marked already.
    options = dataclasses.replace(
        solution.recipe.preparation, use_wcs=False, resampling=None, defects=NO_DEFECTS
    )
    try:
        pair = prepare(science, template, options)
    except TooFewSourcesError as error:
        _log.warning(
            "%s: the stored kernel is of another pair, and cannot be judged on this one (%s).",
            science.source or "The science exposure",
            error,
        )
        return dataclasses.replace(
            same, solution=_unmeasured(solution, science, template, factors, solution.background)
        )
    _check_kernel(judge_kernel(pair, solution), pair)
    factors = pair.science_variance_factor, pair.template_variance_factor
    old, order = solution.background, _BACKGROUND_ORDER
    if isinstance(old, ChebyshevField):
        order = max(order, *(n - 1 for n in old.coefficients.shape))
    start = ChebyshevField(science.bbox, np.zeros((order + 1, order + 1)))
    return Applied(
        _unmeasured(solution, pair.science, pair.template, factors, start),
        pair.science,
        pair.template,
        levels,
        BackgroundSearch(
            levels,
            "auto" if isinstance(old, np.ndarray) else "polynomial",
            order,
            max(pair.science_fwhm, pair.template_fwhm),
        ),
    )


def _unmeasured(
    solution: Solution,
    science: Exposure,
    template: Exposure,
    factors: tuple[float, float],
    background: Field | Array | float,
) -> Solution:
    """Solution for another pair, whose noise is yet to be measured."""
    unconvolved = science if solution.convolved == "template" else template
    psf = solution.psf
    if unconvolved.psf is not None:
        psf = as_kernel_psf(unconvolved.psf, unconvolved.bbox)
    return dataclasses.replace(
        solution,
        background=background,
        psf=psf,
        science_variance_factor=factors[0],
        template_variance_factor=factors[1],
        science_variance=None,
        template_variance=None,
        noises=None,
        pixels=pixel_sample(science, template),
    )


def judge_kernel(pair: Pair, solution: Solution) -> KernelJudgement:
    """Compare stars of one image with those of the other, convolved with a kernel.

    Parameters
    ----------
    pair
        Prepared exposures.
    solution
        Gives the kernel, and which exposure it convolves.

    Returns
    -------
    judgement
        `KernelJudgement`; NaN if there are too few stars.
    """
    science, template = pair.science, pair.template
    widening = 1.0
    if solution.preconvolution_kernel is not None:
        science, widening = preconvolved(science, solution.preconvolution_kernel), math.sqrt(2)
    source, target = (
        (template, science) if solution.convolved == "template" else (science, template)
    )
    matched = convolved_exposure(source, solution.kernel, full_variance=False)
    which = static_sources(pair.sources, width_stars(pair.sources))
    missing = pair.science_bad | pair.template_bad
    for exposure in (matched, target):
        missing |= masks.flagged(exposure.mask, masks.UNTRUSTED_MASK_PLANES)
        missing |= ~np.isfinite(exposure.data)
    fwhm = widening * max(pair.science_fwhm, pair.template_fwhm)
    wide = max(_WIDE * fwhm, _LEAST_WIDE)

    images = ComparedImages(
        matched.data,
        target.data,
        matched.variance,
        target.variance,
        missing,
        pair.source_levels.either,
    )

    light, core = flux_ratios(
        images,
        pair.sources.x[which],
        pair.sources.y[which],
        radius=wide,
        expected=np.ones(len(which)),
        within=(wide, max(_CORE * fwhm, _LEAST_CORE)),
    )
    return KernelJudgement(
        light,
        dataclasses.replace(
            core,
            value=core.value / light.value,
            error=math.hypot(core.error, light.error) / abs(light.value),
        ),
    )


def _check_kernel(judgement: KernelJudgement, pair: Pair) -> None:
    """Refuse a kernel that the stars contradict, and warn of one that they doubt."""
    name = pair.science.source or "The science exposure"
    light, core = judgement.light, judgement.core
    if not (math.isfinite(light.value) and math.isfinite(core.value)):
        _log.warning(
            "%s: the stored kernel is of another pair, and %d stars are too few to judge it here.",
            name,
            light.n_stars,
        )
        return
    found = []
    worst = 0.0
    for each, text in (
        (light, "{stars} stars are {value:.4g} ± {error:.2g} times as bright as it makes them"),
        (
            core,
            "the middle of stars has {value:.4g} ± {error:.2g} times the light that it gives them",
        ),
    ):
        off = abs(each.value - 1)
        if off > _TOLD and off > _ERRORS * each.error:
            worst = max(worst, off)
            found.append(text.format(stars=each.n_stars, value=each.value, error=each.error))
    if not found:
        return
    said = (
        f"{name}: the stored kernel is of another transparency or seeing than this pair has:"
        f" {' and '.join(found)}"
    )
    remedy = "fit a kernel to this pair (leave out --kernel)"
    if worst > _REFUSED:
        raise DataError(f"{said}; {remedy}.")
    _log.warning("%s: fluxes may be off by %.0f%%; %s.", said, 100 * worst, remedy)
