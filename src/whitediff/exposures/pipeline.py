"""From two exposures to their difference and score."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import TooFewSourcesError
from ..interruptions import heed
from .alignment import aligned_template, alignment_of
from .cutouts import (
    Cutout,
    CutoutFlux,
    CutoutOptions,
    KernelSource,
    cutout_problems,
    kernel_source,
    solve_cutout,
    transient_flux,
)
from .defects import with_defects
from .matching import Match, MatchOptions, match
from .model import Exposure
from .noise import PairSources, measurable, pair_sources
from .preparation import Pair, PreparationOptions, pair_with_psf, prepare
from .resampling import ResamplingOptions
from .reuse import apply_solution
from .solution import Product, Solution, make_product
from .subtraction import preconvolution_kernel
from .widths import warn_of_significances

__all__ = [
    "Made",
    "Solved",
    "SubtractionOptions",
    "aligned_as_before",
    "defects_as_before",
    "make",
    "make_again",
    "make_all",
    "make_cutout",
    "mark_sources",
    "measured_noise",
    "solve_difference",
    "solve_score",
]

type Array = npt.NDArray[Any]
type Kind = Literal["difference", "score"]

_log = logging.getLogger("whitediff.match")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubtractionOptions:
    """How differences and scores are made.

    Attributes
    ----------
    preparation, match
        Options of these steps.
    noise, spatially_varying, fill
        Of the correction: fields of a `Solution`.  A template that is resampled has the noise
        covariance that this makes, unless the noise is "white".
    full_variance
        Propagate the variance of every pixel.
    cutout
        What the kernel is found from, and what is known of an image without stars.
    """

    preparation: PreparationOptions = dataclasses.field(default_factory=PreparationOptions)
    match: MatchOptions = dataclasses.field(
        default_factory=lambda: MatchOptions(convolved="auto", choose_order="bic")
    )
    noise: Literal["white", "auto", "measured"] = "auto"
    spatially_varying: bool = True
    fill: Literal["mean", "interpolate"] = "interpolate"
    full_variance: bool = False
    cutout: CutoutOptions = dataclasses.field(default_factory=CutoutOptions)

    def correction(self, template: Exposure) -> dict[str, Any]:
        """Fields of a `Solution`.

        Parameters
        ----------
        template
            As it was prepared.

        Returns
        -------
        fields
            Name → value.
        """
        resampling = self.preparation.resampling
        return {
            "alignment": alignment_of(template, resampling),
            "alignment_noise": "white" if resampling is None else resampling.noise,
            "noise": self.noise,
            "spatially_varying": self.spatially_varying,
            "fill": self.fill,
            "defects": self.preparation.defects,
        }


@dataclasses.dataclass(frozen=True)
class Solved:
    """A pair and how it is subtracted.

    Attributes
    ----------
    pair
        Pair in which the exposure that is not convolved has a PSF, if one can be measured.
    match
        The fit.
    solution
        What a product is made with.
    preconvolved_science
        For a score.
    """

    pair: Pair
    match: Match
    solution: Solution
    preconvolved_science: Exposure | None = None


def solve_difference(pair: Pair, options: MatchOptions, **correction: Any) -> Solved:
    """Match a pair for a difference.

    Parameters
    ----------
    pair
        `whitediff.exposures.preparation.prepare`.
    options
        How it is matched.
    **correction
        Fields of the `Solution` that say how it is corrected.

    Returns
    -------
    solved
        `Solved`.
    """
    heed()
    found = match(pair, options)
    pair = pair_with_psf(pair, found.convolved)
    return Solved(pair, found, dataclasses.replace(Solution.of(pair, found), **correction))


def solve_score(pair: Pair, options: MatchOptions, **correction: Any) -> Solved:
    """Match a pair for a score.

    Parameters
    ----------
    pair, options, **correction
        As for `solve_difference`.

    Returns
    -------
    solved
        `Solved`.
    """
    heed()
    pair = pair_with_psf(pair, "template")
    kernel = preconvolution_kernel(pair.science)
    found = match(pair, options, preconvolution_kernel=kernel)
    solution = dataclasses.replace(Solution.of(pair, found, kernel), **correction)
    return Solved(pair, found, solution, found.science)


def make(solved: Solved, *, sources: Array | None = None, full_variance: bool = False) -> Product:
    """Subtract and decorrelate a pair that was matched.

    Parameters
    ----------
    solved
        `Solved`.
    sources
        ``(ny, nx)`` boolean: pixels with a source on either exposure, if they are at hand.
    full_variance
        Propagate the variance of every pixel.

    Returns
    -------
    product
        `Product`.
    """
    heed()
    if sources is None:
        sources = solved.pair.source_levels.either
    search = solved.match.background_search(solved.pair)
    return make_product(
        solved.solution,
        solved.pair.science,
        solved.pair.template,
        preconvolved_science=solved.preconvolved_science,
        search=search,
        sources=sources,
        full_variance=full_variance,
    )


def measured_noise(product: Product) -> dict[str, Any]:
    """Fields of a `Solution` by which a second product does not measure the noise again.

    Parameters
    ----------
    product
        First product of the same exposures.

    Returns
    -------
    correction
        As for `solve_difference`.
    """
    solution = product.solution
    return {
        "noise": "white",
        "science_noise": solution.science_noise,
        "template_noise": solution.template_noise,
    }


@dataclasses.dataclass(frozen=True)
class Made:
    """A difference or score.

    Attributes
    ----------
    product
        With the mask planes of `mark_sources`.
    science, template
        The exposures on one grid, with rescaled variances and, where they were fitted, the PSFs
        that are known or could be measured.
    pair
        None where nothing was fitted to stars.
    cutout, flux
        Where the kernel was found without stars: how, and the flux of the transient.
    problems
        Then, why not to believe it: sentences with numbers.
    levels
        Then, sources of the inputs.
    """

    product: Product
    science: Exposure
    template: Exposure
    pair: Pair | None = None
    cutout: Cutout | None = None
    flux: CutoutFlux | None = None
    problems: tuple[str, ...] = ()
    levels: PairSources | None = None

    @property
    def difference(self) -> Exposure:
        """The difference, or score."""
        return self.product.exposure


def make_cutout(
    science: Exposure, template: Exposure, source: KernelSource, options: SubtractionOptions
) -> Made:
    """Subtract and decorrelate two exposures whose kernel is not found from stars.

    Parameters
    ----------
    science, template
        Exposures.
    source
        `whitediff.exposures.cutouts.kernel_source`.
    options
        `SubtractionOptions`.

    Returns
    -------
    made
        `Made`; what is wrong with it was warned of.
    """
    preparation = options.preparation
    template = aligned_template(
        science, template, use_wcs=preparation.use_wcs, resampling=preparation.resampling
    )
    cutout = solve_cutout(science, template, source, options.cutout, preparation)
    product = make_product(
        cutout.solution,
        cutout.science,
        cutout.template,
        # One correction for all of so few pixels.
        sources=np.zeros(science.shape, bool),
        full_variance=options.full_variance,
    )
    levels = pair_sources([cutout.science], [cutout.template])
    mark_sources(product.exposure, levels)
    flux = transient_flux(cutout, product)
    name = science.source or "The science image"
    _log.info("%s: %s", name, cutout.text)
    problems = tuple(cutout_problems(cutout, flux))
    for problem in problems:
        _log.warning("%s: %s", name, problem)
    return Made(
        product,
        cutout.science,
        cutout.template,
        cutout=cutout,
        flux=flux,
        problems=problems,
        levels=levels,
    )


def make_all(
    science: Any, template: Any, options: SubtractionOptions, kinds: Iterable[Kind]
) -> dict[Kind, Made]:
    """Match, subtract and decorrelate two exposures.

    Parameters
    ----------
    science, template
        Exposures on the same pixels.
    options
        `SubtractionOptions`.
    kinds
        What to make.

    Returns
    -------
    made
        Kind → `Made`.
    """
    kinds = tuple(kinds)
    science, template = Exposure.from_object(science), Exposure.from_object(template)
    if kinds == ("difference",):
        source = kernel_source(science, template, options.cutout)
        if source is not None:
            return {"difference": make_cutout(science, template, source, options)}
        try:
            return _make_all(science, template, options, kinds)
        except TooFewSourcesError as error:
            source = kernel_source(science, template, options.cutout, error)
            assert source is not None
            return {"difference": make_cutout(science, template, source, options)}
    return _make_all(science, template, options, kinds)


def _make_all(
    science: Exposure, template: Exposure, options: SubtractionOptions, kinds: tuple[Kind, ...]
) -> dict[Kind, Made]:
    """Match by stars, subtract and decorrelate."""
    pair = prepare(science, template, options.preparation)
    correction = options.correction(pair.template)
    made: dict[Kind, Made] = {}
    levels = pair.source_levels
    sources = levels.either
    for kind in ("difference", "score"):
        if kind not in kinds:
            continue
        solve = solve_difference if kind == "difference" else solve_score
        solved = solve(pair, options.match, **correction)
        product = make(solved, sources=sources, full_variance=options.full_variance)
        # Both products have the same inputs.
        correction |= measured_noise(product)
        mark_sources(product.exposure, levels)
        warn_of_significances(product.exposure)
        made[kind] = Made(product, solved.pair.science, solved.pair.template, solved.pair)
        pair = solved.pair
    return made


def make_again(
    science: Exposure,
    template: Exposure,
    solutions: Mapping[Kind, Solution],
    *,
    use_wcs: bool = True,
    full_variance: bool = False,
) -> dict[Kind, Made]:
    """Subtract and decorrelate two exposures with solutions that are known.

    Parameters
    ----------
    science, template
        Exposures on the same pixels.
    solutions
        Kind → solution of an earlier product.
    use_wcs
        Align the template by its WCS, as in `PreparationOptions`.
    full_variance
        Propagate the variance of every pixel.

    Returns
    -------
    made
        Kind → `Made`.

    Raises
    ------
    DataError
        If they are other exposures than before, and their stars contradict a kernel.
    """
    science, template = defects_as_before(science, template, solutions.values())
    template = aligned_as_before(science, template, solutions.values(), use_wcs=use_wcs)
    levels = pair_sources([science], [template])
    made = {}
    for kind, solution in solutions.items():
        applied = apply_solution(solution, science, template, levels)
        product = applied.product(full_variance=full_variance)
        mark_sources(product.exposure, levels)
        warn_of_significances(product.exposure)
        made[kind] = Made(product, applied.science, applied.template)
    return made


def defects_as_before(
    science: Exposure, template: Exposure, solutions: Iterable[Solution]
) -> tuple[Exposure, Exposure]:
    """Exposures with the variances and mask planes that they had for earlier products.

    Parameters
    ----------
    science, template
        Exposures, each on its own pixels.
    solutions
        Of products that were made with them.

    Returns
    -------
    science, template
        The same ones where nothing was looked for.
    """
    science, template = measurable(science, template)
    options = next((s.defects for s in solutions if s.defects is not None), None)
    return (science, template) if options is None else with_defects(science, template, options)


def aligned_as_before(
    science: Exposure, template: Exposure, solutions: Iterable[Solution], *, use_wcs: bool = True
) -> Exposure:
    """Template on the science exposure's pixels, as it was for earlier products.

    Parameters
    ----------
    science, template
        Exposures.
    solutions
        Of products that were made with the same template.
    use_wcs
        As in `PreparationOptions`.

    Returns
    -------
    template
        Resampled where it was before, unless that went by the WCS and this is to be ignored.
    """
    before = next(
        (s for s in solutions if s.alignment is not None and (use_wcs or _by_stars_alone(s))), None
    )
    resampling = None
    if before is not None and before.alignment is not None:
        resampling = ResamplingOptions(
            method=before.alignment, noise=before.alignment_noise, positions="wcs"
        )
    return aligned_template(
        science,
        template,
        use_wcs=use_wcs,
        resampling=resampling,
        correction=None if before is None else before.registration,
    )


def _by_stars_alone(solution: Solution) -> bool:
    return solution.registration is not None and not solution.registration.by_wcs


def mark_sources(exposure: Exposure, sources: PairSources) -> None:
    """Set the mask planes SOURCE, STATIC and STATIC_BRIGHT of a product.

    Parameters
    ----------
    exposure
        Product; changed.
    sources
        Sources of its inputs.
    """
    exposure.mask = sources.marked(exposure.mask)
