"""Two files in, a difference and a score out."""

from __future__ import annotations

import dataclasses
import inspect as inspection
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import formats
from ..errors import ArgumentError, WhitediffError
from ..exposures.depth import Depth
from ..exposures.depth import depth as depth_of
from ..exposures.fields import ChebyshevField
from ..exposures.model import Exposure
from ..exposures.pipeline import KINDS, Kind, Made, Pipeline
from ..exposures.preparation import template_coverage
from ..exposures.solution import Solution
from ..exposures.zero_points import check_zero_point, depth_text
from ..outputs import check_output, together
from ..reading import reading_options
from .cards import decorrelation_cards, depth_cards, report_inputs_floor, significance_cards
from .inputs import read_input
from .recipes import RECIPE_OPTIONS, as_asked, recipe_of
from .record import recorded

__all__ = ["Written", "run_subtraction", "solutions_by_kind"]

log = logging.getLogger("whitediff.runs")

type Cards = dict[str, tuple[Any, str]]


@dataclasses.dataclass(frozen=True)
class Written:
    """A file that a run has written.

    Attributes
    ----------
    kind
        ``difference``, ``score`` or ``matched``.
    path
        File.
    cards
        Keyword → value of what its primary header says of the run.
    findings
        What `inspect` found.
    """

    kind: Kind
    path: Path
    cards: dict[str, Any]
    findings: Any = None


def _silent(stage: str) -> None:
    """Take no note of a stage."""


@together()
def run_subtraction(
    *,
    science: str,
    template: str,
    output: Path | None = None,
    score_output: Path | None = None,
    matched_output: Path | None = None,
    solutions: tuple[str, ...] = (),
    science_psf: str | None = None,
    template_psf: str | None = None,
    zero_point: float | None = None,
    compress: bool = False,
    overwrite: bool = False,
    begin: Callable[[str], None] = _silent,
    inspect: Callable[[str, Exposure], Any] | None = None,
    **how: Any,
) -> list[Written]:
    """Read, match, subtract, decorrelate and write.

    Parameters
    ----------
    science, template, output, score_output, matched_output, solutions, science_psf, template_psf, \
    zero_point, compress, overwrite
        Options of the command.
    begin
        Called with the name of each stage as it begins.
    inspect
        Called with the kind and the exposure of each product before it is written; what it
        returns becomes the findings.
    **how
        Options of `whitediff.runs.recipes.recipe_of`; and how the images are read,
        ``science_gain`` and so on, as `whitediff.reading` declares them.

    Returns
    -------
    written
        What was written, one entry for each output that was asked for; all of them or none.

    Raises
    ------
    WhitediffError
        One of its kinds, whose message names the file at fault.
    """
    changed = _changed(locals())
    check_zero_point(zero_point)
    named: dict[Kind, Path | None] = {
        "difference": output,
        "matched": matched_output,
        "score": score_output,
    }
    wanted = {kind: path for kind, path in named.items() if path is not None}
    outputs = tuple(wanted.values())
    if not outputs:
        raise ArgumentError("Nothing to write: give output, score_output or matched_output.")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise ArgumentError(f"{outputs[0]}: two outputs cannot be the same file.")
    for path in outputs:
        check_output(path, overwrite=overwrite, inputs=(science, template))
    recipe = recipe_of(**{name: how.pop(name) for name in [*how] if name in RECIPE_OPTIONS})
    paths = {"science": science, "template": template}
    how_read = reading_options(how, **paths)
    stored = {
        kind: as_asked(solution, recipe)
        for kind, solution in _by_kind(
            {path: formats.read_solution(path) for path in solutions}, wanted
        ).items()
    }
    cards: Cards = {
        "WDSCI": (science, "science image"),
        "WDTMPL": (template, "template"),
    }
    written: list[Written] = []
    with recorded(changed) as record:
        begin = record.noting(begin)
        begin("reading")
        inputs = [read_input(paths[name], how_read[name]) for name in paths]
        for exposure, name, psf in zip(inputs, paths, (science_psf, template_psf), strict=True):
            if psf is not None:
                exposure.psf = formats.read_psf(psf, bounds=exposure.bbox)
                cards[f"WD{name[0].upper()}PSFIN"] = (psf, f"PSF of the {name} image from")
        pipeline = Pipeline(recipe, begin=begin)
        first = next(kind for kind in ("difference", "score", "matched") if kind in wanted)
        try:
            # It lets go of them as soon as it can.
            pair = inputs.pop(0), inputs.pop(0)
            made_one_by_one = (
                pipeline.again(*pair, stored) if stored else pipeline.products(*pair, wanted)
            )
            del pair, exposure
            for made in made_one_by_one:
                more, findings = _told(made, wanted[made.kind], zero_point), None
                if made.kind == first and made.pair is not None:
                    report_inputs_floor(made.decorrelation, science, template)
                if inspect is not None:
                    begin("inspection")
                    findings = inspect(made.kind, made.exposure)
                begin("writing")
                formats.write_exposure(
                    made.exposure,
                    wanted[made.kind],
                    overwrite=overwrite,
                    compress=compress,
                    provenance=cards | more,
                    extras=_extras(made) | {"LOG": record.table()},
                )
                values = {keyword: value for keyword, (value, _) in (cards | more).items()}
                written.append(Written(made.kind, wanted[made.kind], values, findings))
                del made
        except WhitediffError as error:
            # Which of the two is at fault, the fit cannot know.
            known = (science, template, *(str(path) for path in outputs))
            if any(name in str(error) for name in known):
                raise
            raise type(error)(f"{science}, {template}: {error}") from error
    return written


_UNTOLD = (
    *("science", "template", "output", "score_output", "matched_output"),
    *("compress", "overwrite", "begin", "inspect", "how"),
)
"""Arguments that say nothing of the result, or stand in the header."""


def _changed(values: dict[str, Any]) -> dict[str, Any]:
    """Options of a run that are not their defaults."""
    parameters = inspection.signature(run_subtraction).parameters
    usual = dict(RECIPE_OPTIONS) | {
        name: parameter.default for name, parameter in parameters.items() if name not in _UNTOLD
    }
    given = values["how"] | {name: values[name] for name in usual if name in values}
    return {
        "kernel" if name == "solutions" else name: (
            " ".join(map(str, value)) if isinstance(value, tuple) else value
        )
        for name, value in given.items()
        if value != usual.get(name)
    }


def _told(made: Made, path: Path, zero_point: float | None) -> Cards:
    """Say what was made, and return what its header says of that."""
    product = made.product
    if product is None:
        return {"WDTASK": ("matched template", "made by")}
    depth = depth_of(made.exposure, zero_point, flux_variance=product.flux_variance)
    if made.is_again:
        # They lie on the same pixels by now.
        fraction = template_coverage(made.science, made.template, use_wcs=False)
        _describe_again(path, made, fraction, depth)
        cards = _fraction_card(fraction)
    elif made.cutout is not None:
        _describe_cutout(path, made, depth)
        cards = _cutout_cards(made)
    else:
        _describe(path, made, depth)
        cards = _match_cards(made)
    result = product.decorrelation
    if result is not None:
        cards = decorrelation_cards(result) | cards
    return (
        cards
        | depth_cards(depth, zero_point)
        | significance_cards(made.width)
        | formats.solution_cards(product.solution)
        | {"WDTASK": ("subtract", "made by")}
    )


def _extras(made: Made) -> dict[str, Any]:
    """Further extensions of a product."""
    product = made.product
    if product is None:
        return {}
    extras = dict(formats.solution_extras(product.solution))
    if product.flux is not None:
        extras = {"FLUX": product.flux, "FLUX_VARIANCE": product.flux_variance} | extras
    return extras


def _cutout_cards(made: Made) -> Cards:
    """What is told of a kernel that was not found from stars, and of the transient."""
    cutout, flux = made.cutout, made.flux
    assert cutout is not None
    fit = cutout.fit
    scale = fit.scale
    cards: Cards = {
        "WDKFROM": (cutout.source.name, "what the kernel was found from"),
        "WDSFWHM": (fit.error.fwhm, "FWHM of the science PSF, pixels"),
        "WDKSERR": (fit.error.sum_error, "error of the kernel sum"),
        "WDNSTAR": (scale.sources, "static sources compared"),
        "WDFSEXP": (scale.expected, "flux scale that was expected"),
        "WDFSMEAS": (scale.measured, "flux scale of the static sources"),
        "WDFSERR": (scale.error, "error of WDFSMEAS"),
        "WDCHI2": (fit.chi_square, "mean square residual of static sources"),
        "WDCHIPIX": (fit.static_pixels, "pixels of static sources"),
        "WDDOUBT": (len(made.problems), "reasons not to believe it (see LOG)"),
    }
    if flux is not None:
        cards |= {
            "WDTX": (flux.x, "column of the transient"),
            "WDTY": (flux.y, "row of the transient"),
            "WDTFLUX": (flux.flux, "its flux, image_unit"),
            "WDTFERR": (flux.error, "error of that"),
            "WDTKERR": (flux.kernel_error, "part of that from the kernel"),
            "WDTRAD": (flux.radius, "aperture radius, pixels; none: fitted PSF"),
        }
    return cards


def _match_cards(made: Made) -> Cards:
    pair, match, product = made.pair, made.match, made.product
    assert pair is not None
    assert match is not None
    assert product is not None
    fit = match.fit
    # Source-free pixels may have asked for more than the stars were fitted with.
    background = product.solution.background
    is_mesh = isinstance(background, np.ndarray)
    order = made.solution.recipe.match.fit.background_order
    if isinstance(background, ChebyshevField):
        order = len(background.coefficients) - 1
    return {
        "WDBASIS": (match.basis, "kernel basis"),
        "WDKORDER": (fit.kernel_order, "spatial order of the kernel"),
        "WDBORDER": (order, "spatial order of the background"),
        "WDBMODEL": ("mesh" if is_mesh else "polynomial", "model of the background"),
        "WDSFWHM": (pair.psf_fwhm[0], "FWHM of the science PSF, pixels"),
        "WDTFWHM": (pair.psf_fwhm[1], "FWHM of the template PSF, pixels"),
        "WDNSTAR": (len(fit.used), "stars offered to the fit"),
        "WDNUSED": (int(fit.used.sum()), "stars used"),
        "WDKSERR": (fit.kernel_sum_error, "error of the kernel sum"),
        "WDKWSUM": (match.with_wings.value, "kernel sum with wings beyond the kernel"),
        "WDKWERR": (match.with_wings.error, "error of that"),
        # Of pre-convolved noise, which is correlated, it would mean nothing.
        "WDCHI2": (
            None if product.exposure.is_score else fit.reduced_chi_square,
            "reduced chi-square of the fit",
        ),
        "WDHELDX2": (
            match.residual_chi_square if math.isfinite(match.residual_chi_square) else None,
            "reduced chi-square of bright stars left out",
        ),
        "WDCOND": (fit.condition, "condition number of the fit"),
    } | _fraction_card(pair.template_fraction)


def _fraction_card(fraction: float) -> Cards:
    return {"WDTFRAC": (fraction, "of the science pixels that the template has")}


def _depth_text(depth: Depth | None) -> str:
    if depth is None:
        return "."
    return depth_text(depth.flux, depth.magnitude, depth.unit)


def _describe_cutout(path: Path, made: Made, depth: Depth | None) -> None:
    result = made.decorrelation
    assert result is not None
    log.info(
        "%s: mean variance %.6g; %.1f%% of the pixels contaminated%s",
        path,
        result.variance_mean_after,
        100 * result.contaminated_fraction,
        _depth_text(depth),
    )


def _describe(path: Path, made: Made, depth: Depth | None) -> None:
    pair, match, result = made.pair, made.match, made.decorrelation
    assert pair is not None
    assert match is not None
    assert result is not None
    fit = match.fit
    log.info(
        "%s: PSF FWHM %.2f (science) and %.2f (template) pixels; %s convolved; %d of %d stars"
        " used; kernel sum %.5g ± %.2g, with the wings beyond it %.5g ± %.2g; variance planes"
        " times %.3f and %.3f; mean variance %.6g; %.1f%% of the pixels contaminated%s",
        path,
        *pair.psf_fwhm,
        match.convolved,
        int(fit.used.sum()),
        len(fit.used),
        fit.kernel_sum,
        fit.kernel_sum_error,
        match.with_wings.value,
        match.with_wings.error,
        pair.science_variance_factor,
        pair.template_variance_factor,
        result.variance_mean_after,
        100 * result.contaminated_fraction,
        _depth_text(depth),
    )
    if made.exposure.psf is None:
        log.info("%s: no PSF is known, so the output has none.", path)


def _describe_again(path: Path, made: Made, fraction: float, depth: Depth | None) -> None:
    """Say what was made with a stored solution."""
    solution, result = made.solution, made.decorrelation
    aligned = "on the same pixels"
    if solution.alignment is not None:
        aligned = f"aligned as before ({solution.alignment})"
    log.info(
        "%s: made again with a stored kernel: %s convolved; template %s, covers %.1f%% of the"
        " science image%s%s",
        path,
        solution.convolved,
        aligned,
        100 * fraction,
        ""
        if result is None
        else f"; kernel sum {result.kernel_sum:.5g}, mean variance"
        f" {result.variance_mean_after:.6g}, {100 * result.contaminated_fraction:.1f}% of the"
        " pixels contaminated",
        _depth_text(depth),
    )


def solutions_by_kind(read: Mapping[str, Solution]) -> dict[Kind, Solution]:
    """Stored solutions by what they made.

    Parameters
    ----------
    read
        File → solution.

    Returns
    -------
    stored
        ``difference`` and ``score``, as far as there are some → solution.

    Raises
    ------
    ArgumentError
        If there are two of a kind.
    """
    stored: dict[Kind, Solution] = {}
    for path, solution in read.items():
        kind: Kind = "score" if solution.preconvolution_kernel is not None else "difference"
        if kind in stored:
            raise ArgumentError(f"{path}: a second {kind} in --kernel; one is enough.")
        stored[kind] = solution
    return stored


def _by_kind(read: Mapping[str, Solution], wanted: Mapping[Kind, Path]) -> dict[Kind, Solution]:
    """Stored solutions by what they are to make again, one for each output that is wanted."""
    stored = solutions_by_kind(read)
    if not read:
        return stored
    named = ", ".join(read)
    for kind, output in (("difference", "--output"), ("score", "--score-output")):
        asked = kind in wanted or (kind == "difference" and "matched" in wanted)
        if kind in stored and not asked:
            raise ArgumentError(f"{named}: holds a {kind}, but no {kind} is asked for ({output}).")
    again: dict[Kind, Solution] = {}
    for kind in KINDS:
        if kind not in wanted:
            continue
        source: Kind = "difference" if kind == "matched" else kind
        if source not in stored:
            raise ArgumentError(
                f"{named}: {wanted[kind]} needs a stored {source}; name the old {source} with"
                " --kernel too."
            )
        again[kind] = stored[source]
    return again
