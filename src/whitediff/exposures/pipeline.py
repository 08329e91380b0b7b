"""From a prepared pair to its difference and score."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy.typing as npt

from .matching import Match, MatchOptions, match
from .model import Exposure
from .preparation import Pair, pair_with_psf
from .solution import Product, Solution, make_product
from .subtraction import preconvolution_kernel

__all__ = ["Solved", "make", "measured_noise", "solve_difference", "solve_score"]

type Array = npt.NDArray[Any]


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
    pair = pair_with_psf(pair, "template")
    kernel = preconvolution_kernel(pair.science)
    found = match(pair, options, preconvolution_kernel=kernel, fill=correction.get("fill", "mean"))
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
    if sources is None:
        sources = solved.pair.science_pixels | solved.pair.template_pixels
    return make_product(
        solved.solution,
        solved.pair.science,
        solved.pair.template,
        preconvolved_science=solved.preconvolved_science,
        free=~sources,
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
