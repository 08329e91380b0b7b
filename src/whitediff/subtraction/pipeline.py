"""From two exposures to their products."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..alignment.exposures import aligned_template
from ..alignment.resampling import ResamplingOptions
from ..decorrelation.exposures import Decorrelation
from ..defects.exposures import NO_DEFECTS, with_defects
from ..errors import ArgumentError, TooFewSourcesError
from ..exposures.covariance import Noise
from ..exposures.masks import CONTAMINATED, Mask, attributed
from ..exposures.model import Exposure
from ..interruptions import heed
from ..matching.convolution import (
    matched_science,
    matched_template,
    preconvolution_kernel,
    preconvolved,
    unsupported,
)
from ..matching.exposures import Match, match
from ..matching.preparation import Pair, pair_with_psf, prepare
from ..noise.exposures import PairSources, measurable, pair_sources
from ..noise.scatter import SignificanceWidth, warn_of_significances
from ..numerics.threads import side_by_side, single_threaded_algebra
from .cutouts import (
    Cutout,
    CutoutFlux,
    KernelSource,
    cutout_problems,
    kernel_source,
    solve_cutout,
    transient_flux,
)
from .recipe import Recipe, TemplateMask
from .reuse import apply_solution
from .solution import Product, Solution, corrected, make_product

__all__ = [
    "KINDS",
    "Kind",
    "Made",
    "Pipeline",
    "aligned_as_before",
    "as_before",
    "cutout_made",
    "finished",
    "make_again",
    "make_all",
    "mark_sources",
    "with_defects_as_before",
]

type Array = npt.NDArray[Any]
type Kind = Literal["difference", "matched", "score"]

KINDS: tuple[Kind, ...] = ("difference", "matched", "score")
"""Kinds of products, in the order in which they are made."""

_log = logging.getLogger("whitediff.match")


def _silent(stage: str) -> None:
    """Ignore a stage."""


@dataclasses.dataclass(frozen=True)
class Made:
    """A product.

    Attributes
    ----------
    kind
        ``difference``, ``score``, or ``matched``: the template as it was subtracted.
    exposure
        The product, with the mask planes of `mark_sources`.
    science, template
        The exposures on one grid, with rescaled variances and, where they were fitted, the PSFs
        that are known or could be measured.
    solution
        Solution that the product was made with.
    levels
        Sources of the inputs.
    product
        Difference or score, and what is known of it; None for a matched template.
    width
        Width of its significances; None if not measured.
    pair, match
        Pair and match of a fit to stars; None without such a fit.
    cutout, flux
        If the kernel was found without stars: how, and the flux of the transient; else None.
    problems
        Reasons not to believe a cut-out: sentences with numbers.
    preconvolved_science
        Pre-convolved science exposure of a score.
    is_again
        Whether it was made with a stored solution.
    """

    kind: Kind
    exposure: Exposure
    science: Exposure
    template: Exposure
    solution: Solution
    levels: PairSources
    product: Product | None = None
    width: SignificanceWidth | None = None
    pair: Pair | None = None
    match: Match | None = None
    cutout: Cutout | None = None
    flux: CutoutFlux | None = None
    problems: tuple[str, ...] = ()
    preconvolved_science: Exposure | None = None
    is_again: bool = False

    @property
    def difference(self) -> Exposure:
        """The difference, or score."""
        return self.exposure

    @property
    def decorrelation(self) -> Decorrelation | None:
        """Numbers that describe the correction; None if there was none."""
        return None if self.product is None else self.product.decorrelation

    def matched_template(self) -> Exposure:
        """The template as it was subtracted.

        Returns
        -------
        template
            At the level of the science exposure.
        """
        return matched_template(
            self.template,
            self.solution.kernel,
            convolved=self.solution.convolved,
            scale_factor=self.solution.scale_factor,
        )

    def matched_science(self) -> Exposure:
        """The science exposure as the template was subtracted from it.

        Returns
        -------
        science
            Pre-convolved for a score.
        """
        science, kernel = self.science, self.solution.preconvolution_kernel
        if kernel is not None:
            science = self.preconvolved_science or preconvolved(science, kernel)
        return matched_science(
            science,
            self.solution.kernel,
            convolved=self.solution.convolved,
            scale_factor=self.solution.scale_factor,
        )


class Pipeline:
    """Matches, subtracts and corrects pairs as a recipe says: the one place where that is done.

    Parameters
    ----------
    recipe
        `Recipe`.
    begin
        Called with the name of each stage as it begins.

    Notes
    -----
    Subclasses with steps of their own may override `prepared`, `matched` and `corrected`.
    """

    def __init__(
        self, recipe: Recipe | None = None, *, begin: Callable[[str], None] = _silent
    ) -> None:
        self.recipe = recipe or Recipe()
        self.begin = begin

    def prepared(self, science: Exposure, template: Exposure) -> Pair:
        """Align two exposures, judge their variance planes and find their sources.

        Parameters
        ----------
        science, template
            Exposures.

        Returns
        -------
        pair
            `whitediff.matching.preparation.prepare`.
        """
        return prepare(science, template, self.recipe.preparation)

    def matched(self, pair: Pair, preconvolution_kernel: Array | None) -> Match:
        """Find the kernel.

        Parameters
        ----------
        pair
            Prepared exposures.
        preconvolution_kernel
            ``(py, px)`` for a score.

        Returns
        -------
        match
            `whitediff.matching.exposures.match`.
        """
        return match(pair, self.recipe.match, preconvolution_kernel=preconvolution_kernel)

    def corrected(
        self,
        solution: Solution,
        science: Exposure,
        template: Exposure,
        difference: Exposure,
        sources: Array | None,
    ) -> Decorrelation | None:
        """Make the noise white.

        Parameters
        ----------
        solution, science, template, difference, sources
            As for `whitediff.subtraction.solution.corrected`.

        Returns
        -------
        result
            `Decorrelation`; None if nothing is corrected.
        """
        return corrected(solution, science, template, difference, sources)

    def products(
        self, science: object, template: object, kinds: Iterable[Kind] | Kind = "difference"
    ) -> Iterator[Made]:
        """Products of a pair, one after the other.

        Parameters
        ----------
        science, template
            Exposures; released as soon as they are not needed.
        kinds
            Kinds to make, in the order of `KINDS`.

        Yields
        ------
        made
            `Made`.

        Raises
        ------
        ArgumentError
            If a kind is unknown, or none is given.
        DataError
            As by `prepare` and `match`.
        """
        wanted = _checked_kinds(kinds)
        science, template = Exposure.from_object(science), Exposure.from_object(template)
        self.begin("preparation")
        is_score = "score" in wanted
        source = None if is_score else kernel_source(science, template, self.recipe.cutout)
        if source is None:
            try:
                pair = self.prepared(science, template)
                first = self._solved(pair, score=wanted == {"score"})
            except TooFewSourcesError as error:
                if is_score:
                    raise
                source = kernel_source(science, template, self.recipe.cutout, error)
        if source is not None:
            yield from self._without_stars(science, template, source, wanted)
            return
        # The pair holds all that is needed from here on: memory of the rest is given back.
        del science, template, pair
        yield from self._by_stars(first, wanted)

    def products_by_stars(
        self, science: object, template: object, kinds: Iterable[Kind] | Kind = "difference"
    ) -> Iterator[Made]:
        """Products of a pair whose kernel is found from stars, or not at all.

        Parameters
        ----------
        science, template, kinds
            As for `products`.

        Yields
        ------
        made
            `Made`.

        Raises
        ------
        TooFewSourcesError
            If there are too few stars.
        """
        wanted = _checked_kinds(kinds)
        self.begin("preparation")
        pair = self.prepared(Exposure.from_object(science), Exposure.from_object(template))
        del science, template
        yield from self._by_stars(self._solved(pair, score=wanted == {"score"}), wanted)

    def _solved(
        self, pair: Pair, *, score: bool, noises: tuple[Noise, Noise] | None = None
    ) -> _Solved:
        """Match a pair."""
        heed()
        if not score:
            self.begin("matching")
            convolved = self.recipe.match.direction(pair)
            found, known = side_by_side(
                lambda: self.matched(pair, None), lambda: pair_with_psf(pair, convolved)
            )
            pair, kernel = known, None
        else:
            self.begin("matching for the score")
            pair = pair_with_psf(pair, "template")
            kernel = preconvolution_kernel(pair.science)
            found = self.matched(pair, kernel)
        solution = Solution.of(pair, found, self.recipe, kernel)
        return _Solved(pair, found, dataclasses.replace(solution, noises=noises))

    def _by_stars(self, solved: _Solved, wanted: set[Kind]) -> Iterator[Made]:
        levels = solved.pair.source_levels
        noises = None
        if wanted & {"difference", "matched"}:
            if "difference" in wanted:
                self.begin("subtraction")
                made = self._made(solved, "difference", levels)
                # The score has the same inputs: their noise is measured once.
                noises = made.solution.noises
                yield made
                del made
            if "matched" in wanted:
                self.begin("matched template")
                yield _matched_template(
                    solved.pair.science, solved.pair.template, solved.solution, levels
                )
            if "score" in wanted:
                solved = self._solved(solved.pair, score=True, noises=noises)
        if "score" in wanted:
            self.begin("score")
            yield self._made(solved, "score", levels)

    def _made(self, solved: _Solved, kind: Kind, levels: PairSources) -> Made:
        """Subtract and correct a pair that was matched."""
        heed()
        pair, found = solved.pair, solved.match
        product = make_product(
            solved.solution,
            pair.science,
            pair.template,
            preconvolved_science=found.science if kind == "score" else None,
            search=found.background_search(pair),
            sources=levels.either,
            correct=self.corrected,
        )
        made = Made(
            kind,
            product.exposure,
            pair.science,
            pair.template,
            product.solution,
            levels,
            product,
            pair=pair,
            match=found,
            preconvolved_science=found.science if kind == "score" else None,
        )
        return _with_planes(made)

    def _without_stars(
        self, science: Exposure, template: Exposure, source: KernelSource, wanted: set[Kind]
    ) -> Iterator[Made]:
        """Subtract and correct two exposures whose kernel is not found from stars."""
        self.begin("matching")
        made = cutout_made(science, template, source, self.recipe)
        if "difference" in wanted:
            yield made
        if "matched" in wanted:
            self.begin("matched template")
            yield _matched_template(made.science, made.template, made.solution, made.levels)

    def again(
        self, science: object, template: object, solutions: Mapping[Kind, Solution]
    ) -> Iterator[Made]:
        """Products of a pair, made with known solutions.

        Parameters
        ----------
        science, template
            Exposures before any preparation.
        solutions
            Kind → solution of an earlier product.

        Yields
        ------
        made
            The same product as before, to the last bit, if the exposures are the same.

        Raises
        ------
        DataError
            If the exposures are others, and their stars contradict a kernel.
        """
        solutions = {kind: solutions[kind] for kind in KINDS if kind in solutions}
        self.begin("preparation")
        science, template = as_before(science, template, solutions.values())
        levels = pair_sources([science], [template])
        applied = None
        for kind, solution in solutions.items():
            self.begin("matched template" if kind == "matched" else kind)
            if applied is None or applied[0] is not solution:
                applied = solution, apply_solution(solution, science, template, levels)
            pair = applied[1]
            if kind == "matched":
                made = _matched_template(pair.science, pair.template, pair.solution, levels)
                yield dataclasses.replace(made, is_again=True)
                continue
            product = pair.product()
            made = finished(kind, product, pair.science, pair.template, levels)
            yield dataclasses.replace(made, is_again=True)


@dataclasses.dataclass(frozen=True)
class _Solved:
    """A pair, whose unconvolved exposure has a PSF, and how it is subtracted."""

    pair: Pair
    match: Match
    solution: Solution


def _checked_kinds(kinds: Iterable[Kind] | Kind) -> set[Kind]:
    wanted = {kinds} if isinstance(kinds, str) else set(kinds)
    unknown = sorted(str(kind) for kind in wanted if kind not in KINDS)
    if unknown or not wanted:
        raise ArgumentError(
            f"Products are {', '.join(KINDS)}; got {', '.join(unknown) or 'none of them'}."
        )
    return wanted


@single_threaded_algebra()
def cutout_made(
    science: Exposure, template: Exposure, source: KernelSource, recipe: Recipe
) -> Made:
    """Subtract and correct two exposures whose kernel is not found from stars.

    Parameters
    ----------
    science, template
        Exposures.
    source
        `whitediff.subtraction.cutouts.kernel_source`.
    recipe
        `Recipe`.

    Returns
    -------
    made
        Difference; its problems have been logged as warnings.
    """
    preparation = recipe.preparation
    template = aligned_template(
        science, template, use_wcs=preparation.use_wcs, resampling=preparation.resampling
    )
    cutout = solve_cutout(science, template, source, recipe)
    product = make_product(
        cutout.solution,
        cutout.science,
        cutout.template,
        # So few pixels get one correction for all.
        sources=np.zeros(science.shape, bool),
    )
    levels = pair_sources([cutout.science], [cutout.template])
    flux = transient_flux(cutout, product)
    name = science.source or "The science image"
    _log.info("%s: %s", name, cutout.text)
    problems = tuple(cutout_problems(cutout, flux))
    for problem in problems:
        _log.warning("%s: %s", name, problem)
    made = finished("difference", product, cutout.science, cutout.template, levels)
    return dataclasses.replace(made, cutout=cutout, flux=flux, problems=problems)


def _matched_template(
    science: Exposure, template: Exposure, solution: Solution, levels: PairSources
) -> Made:
    """The template as it is subtracted, as a product of its own."""
    made = Made("matched", template, science, template, solution, levels)
    return dataclasses.replace(made, exposure=made.matched_template())


def finished(
    kind: Kind, product: Product, science: Exposure, template: Exposure, levels: PairSources
) -> Made:
    """A product that was made step by step, as `Pipeline` makes it.

    Parameters
    ----------
    kind
        ``difference`` or ``score``.
    product
        `whitediff.subtraction.solution.completed_product`.
    science, template
        Exposures with the variance planes that it was made with.
    levels
        Sources of these exposures.

    Returns
    -------
    made
        `Made`, with its mask planes.
    """
    return _with_planes(
        Made(kind, product.exposure, science, template, product.solution, levels, product)
    )


def _with_planes(made: Made) -> Made:
    """Difference or score with its mask planes and the width of its significances."""
    exposure, template_mask = made.exposure, made.solution.recipe.template_mask
    if template_mask is None:
        mark_sources(exposure, made.levels)
    else:
        exposure.mask = _attributed_mask(made, template_mask)
    if made.decorrelation is None:
        return made
    return dataclasses.replace(made, width=warn_of_significances(exposure))


def _attributed_mask(made: Made, planes: TemplateMask) -> Mask:
    """Mask of a difference, the template's planes preserved, renamed or left out."""
    exposure, kernel = made.exposure, made.solution.kernel
    box = exposure.bbox
    image = kernel.at(x=box.x.center, y=box.y.center)
    mask = attributed(
        exposure.mask,
        made.matched_science().mask,
        made.matched_template().mask,
        # Any plane of the template may have contaminated pixels, renamed or left out.
        preserve=(*planes.preserve, CONTAMINATED),
        rename=planes.rename,
        always={
            "EDGE": unsupported(exposure.shape, image.shape),
            "NO_DATA": ~np.isfinite(exposure.data),
        },
    )
    return made.levels.marked(mask)


def make_all(
    science: object,
    template: object,
    recipe: Recipe | None = None,
    kinds: Iterable[Kind] | Kind = "difference",
) -> dict[Kind, Made]:
    """Match, subtract and correct two exposures.

    Parameters
    ----------
    science, template
        Exposures.
    recipe
        `Recipe`; the default one if not given.
    kinds
        Kinds to make.

    Returns
    -------
    made
        Kind → `Made`.

    Raises
    ------
    ArgumentError, DataError
        As by `Pipeline.products`.
    """
    return {made.kind: made for made in Pipeline(recipe).products(science, template, kinds)}


def make_again(
    science: object, template: object, solutions: Mapping[Kind, Solution]
) -> dict[Kind, Made]:
    """Subtract and correct two exposures with known solutions.

    Parameters
    ----------
    science, template
        Exposures.
    solutions
        Kind → solution of an earlier product.

    Returns
    -------
    made
        Kind → `Made`.

    Raises
    ------
    DataError
        As by `Pipeline.again`.
    """
    return {made.kind: made for made in Pipeline().again(science, template, solutions)}


def as_before(
    science: object, template: object, solutions: Iterable[Solution]
) -> tuple[Exposure, Exposure]:
    """Exposures as they were for earlier products, before their variances were rescaled.

    Parameters
    ----------
    science, template
        Exposures, each on its own pixels.
    solutions
        Solutions of the earlier products.

    Returns
    -------
    science, template
        Exposures on the same pixels, with the mask planes of their defects.
    """
    solutions = tuple(solutions)
    science, template = with_defects_as_before(science, template, solutions)
    return science, aligned_as_before(science, template, solutions)


def with_defects_as_before(
    science: object, template: object, solutions: Iterable[Solution]
) -> tuple[Exposure, Exposure]:
    """Exposures with the variances and mask planes that they had for earlier products.

    Parameters
    ----------
    science, template
        Exposures, each on its own pixels.
    solutions
        Solutions of the earlier products.

    Returns
    -------
    science, template
        Exposures with the mask planes of the defects that were sought then, if any were.
    """
    science, template = measurable(Exposure.from_object(science), Exposure.from_object(template))
    options = next((each.recipe.preparation.defects for each in solutions), NO_DEFECTS)
    return with_defects(science, template, options)


def aligned_as_before(
    science: Exposure, template: Exposure, solutions: Iterable[Solution]
) -> Exposure:
    """Template on the science exposure's pixels, as it was for earlier products.

    Parameters
    ----------
    science, template
        Exposures.
    solutions
        Solutions of products that were made with the same template.

    Returns
    -------
    template
        Resampled if it was before, unless that used the WCS and the WCS is to be ignored.
    """
    solutions = tuple(solutions)
    use_wcs = all(each.recipe.preparation.use_wcs for each in solutions)
    before = next(
        (s for s in solutions if s.alignment is not None and (use_wcs or _by_stars_alone(s))), None
    )
    resampling = None
    if before is not None and before.alignment is not None:
        asked = before.recipe.preparation.resampling
        # The stored correction of the WCS stands in for a new registration by stars.
        resampling = ResamplingOptions(
            method=before.alignment,
            noise="white" if asked is None else asked.noise,
            positions="wcs",
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
        Product, changed in place.
    sources
        Sources of its inputs.
    """
    exposure.mask = sources.marked(exposure.mask)
