"""Two files in, a difference and a score out."""

from __future__ import annotations

import dataclasses
import inspect as inspection
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import formats
from ..errors import ArgumentError, TooFewSourcesError, WhitediffError
from ..exposures.catalog import check_zero_point, depth_text
from ..exposures.cutouts import CutoutOptions, KernelSource, kernel_source
from ..exposures.defects import DefectOptions
from ..exposures.depth import Depth
from ..exposures.depth import depth as depth_of
from ..exposures.matching import MatchOptions
from ..exposures.model import Exposure
from ..exposures.noise import PairSources, pair_sources
from ..exposures.pipeline import (
    Made,
    SubtractionOptions,
    aligned_as_before,
    defects_as_before,
    make,
    make_cutout,
    mark_sources,
    measured_noise,
    solve_difference,
    solve_score,
)
from ..exposures.preparation import PreparationOptions, prepare, template_coverage
from ..exposures.resampling import ResamplingOptions
from ..exposures.reuse import apply_solution
from ..exposures.subtraction import matched_template
from ..exposures.widths import warn_of_significances
from ..matching.design import FitOptions
from ..outputs import check_output, together
from ..reading import reading_options
from .cards import decorrelation_cards, depth_cards, report_inputs_floor, significance_cards
from .inputs import read_input
from .record import recorded

__all__ = ["Written", "run_subtraction", "solutions_by_kind", "subtraction_options"]

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

    kind: str
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
    convolved: Any = None,
    kernel_order: int | str | None = None,
    background_order: int = 2,
    background: Any = "auto",
    basis: Any = "auto",
    kernel_size: int | None = None,
    varying_sum: bool = False,
    keep_variance: bool = False,
    ignore_wcs: bool = False,
    align: bool = False,
    register: bool = False,
    align_method: Any = "auto",
    science_psf: str | None = None,
    template_psf: str | None = None,
    full_variance: bool = False,
    no_cosmic_rays: bool = False,
    no_bad_pixels: bool = False,
    no_trails: bool = False,
    no_level_jumps: bool = False,
    kernel_from: Any = "auto",
    flux_scale: float | None = None,
    transient: tuple[float, float] | None = None,
    noise: Any = "auto",
    constant: bool = False,
    fill: Any = "interpolate",
    zero_point: float | None = None,
    compress: bool = False,
    overwrite: bool = False,
    begin: Callable[[str], None] = _silent,
    inspect: Callable[[str, Exposure], Any] | None = None,
    **reading: Any,
) -> list[Written]:
    """Read, match, subtract, decorrelate and write.

    Parameters
    ----------
    science, template, output, score_output, matched_output, solutions, convolved, kernel_order, \
    background_order, background, basis, kernel_size, varying_sum, keep_variance, ignore_wcs, \
    align, register, align_method, science_psf, template_psf, full_variance, no_cosmic_rays, \
    no_bad_pixels, no_trails, no_level_jumps, kernel_from, flux_scale, transient, noise, constant, \
    fill, zero_point, compress, overwrite
        Options of the command.
    begin
        Called with the name of each stage as it begins.
    inspect
        Called with the kind and the exposure of each product before it is written; what it
        returns becomes the findings.
    **reading
        How the images are read: ``science_gain`` and so on, as `whitediff.reading` declares them.

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
    outputs = [path for path in (output, score_output, matched_output) if path is not None]
    if not outputs:
        raise ArgumentError("Nothing to write: give output, score_output or matched_output.")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise ArgumentError(f"{outputs[0]}: two outputs cannot be the same file.")
    for path in outputs:
        check_output(path, overwrite=overwrite, inputs=(science, template))
    read = {path: formats.read_solution(path) for path in solutions}
    wanted = {"difference": output, "score": score_output, "matched": matched_output}
    stored = _by_kind(read, wanted)
    how = subtraction_options(
        convolved=convolved,
        kernel_order=kernel_order,
        background_order=background_order,
        background=background,
        basis=basis,
        kernel_size=kernel_size,
        varying_sum=varying_sum,
        keep_variance=keep_variance,
        ignore_wcs=ignore_wcs,
        align=align,
        register=register,
        align_method=align_method,
        noise=noise,
        constant=constant,
        fill=fill,
        full_variance=full_variance,
        no_cosmic_rays=no_cosmic_rays,
        no_bad_pixels=no_bad_pixels,
        no_trails=no_trails,
        no_level_jumps=no_level_jumps,
        kernel_from=kernel_from,
        flux_scale=flux_scale,
        transient=transient,
    )
    paths = {"science": science, "template": template}
    how_read = reading_options(reading, **paths)
    cards: dict[str, tuple[Any, str]] = {
        "WDSCI": (science, "science image"),
        "WDTMPL": (template, "template"),
    }
    written: list[Written] = []
    with recorded(changed) as record:
        begin = record.noting(begin)
        begin("reading")
        inputs = {name: read_input(path, how_read[name]) for name, path in paths.items()}
        for name, psf in (("science", science_psf), ("template", template_psf)):
            if psf is not None:
                inputs[name].psf = formats.read_psf(psf, bounds=inputs[name].bbox)
                cards[f"WD{name[0].upper()}PSFIN"] = (psf, f"PSF of the {name} image from")
        begin("preparation")
        try:
            if stored:
                made = _made_again(
                    stored, inputs, wanted, begin, full_variance, not ignore_wcs, zero_point
                )
            else:
                made = _made(inputs, wanted, begin, how, zero_point)
            for path, exposure, more, extras in made:
                findings = None
                kind = next(name for name, wish in wanted.items() if wish == path)
                if inspect is not None:
                    begin("inspection")
                    findings = inspect(kind, exposure)
                begin("writing")
                formats.write_exposure(
                    exposure,
                    path,
                    overwrite=overwrite,
                    compress=compress,
                    provenance=cards | more,
                    extras=extras | {"LOG": record.table()},
                )
                values = {keyword: value for keyword, (value, _) in (cards | more).items()}
                written.append(Written(kind, path, values, findings))
        except WhitediffError as error:
            # Which of the two is at fault, the fit cannot know.
            named = (science, template, *(str(path) for path in outputs))
            if any(name in str(error) for name in named):
                raise
            raise type(error)(f"{science}, {template}: {error}") from error
    return written


def subtraction_options(
    *,
    convolved: Any = None,
    kernel_order: int | str | None = None,
    background_order: int = 2,
    background: Any = "auto",
    basis: Any = "auto",
    kernel_size: int | None = None,
    varying_sum: bool = False,
    keep_variance: bool = False,
    ignore_wcs: bool = False,
    align: bool = False,
    register: bool = False,
    align_method: Any = "auto",
    noise: Any = "auto",
    constant: bool = False,
    fill: Any = "interpolate",
    full_variance: bool = False,
    no_cosmic_rays: bool = False,
    no_bad_pixels: bool = False,
    no_trails: bool = False,
    no_level_jumps: bool = False,
    kernel_from: Any = "auto",
    flux_scale: float | None = None,
    transient: tuple[float, float] | None = None,
) -> SubtractionOptions:
    """What the options of a command say about the subtraction.

    Parameters
    ----------
    convolved, kernel_order, background_order, background, basis, kernel_size, varying_sum, \
    keep_variance, ignore_wcs, align, register, align_method, noise, constant, fill, \
    full_variance, no_cosmic_rays, no_bad_pixels, no_trails, no_level_jumps, kernel_from, \
    flux_scale, transient
        Options of the command.

    Returns
    -------
    options
        As `whitediff.exposures.pipeline` takes them.
    """
    resampling = None
    if align or register:
        resampling = ResamplingOptions(
            method=align_method,
            noise=noise,
            positions="distortions" if register else "stars",
        )
    if kernel_order is None:
        # To try all orders with hundreds of free pixels takes minutes.
        kernel_order = 1 if basis == "delta" else "bic"
    return SubtractionOptions(
        preparation=PreparationOptions(
            rescale_variance=not keep_variance,
            use_wcs=not ignore_wcs,
            resampling=resampling,
            defects=DefectOptions(
                cosmic_rays=False if no_cosmic_rays else "auto",
                bad_pixels=False if no_bad_pixels else "auto",
                trails=False if no_trails else "auto",
                level_jumps=False if no_level_jumps else "auto",
            ),
        ),
        match=MatchOptions(
            convolved=convolved or "auto",
            basis=basis,
            kernel_size=kernel_size,
            choose_order=kernel_order if isinstance(kernel_order, str) else None,  # type: ignore[arg-type]
            background=background,
            fit=FitOptions(
                kernel_order=1 if isinstance(kernel_order, str) else kernel_order,
                background_order=background_order,
                constant_sum=not varying_sum,
            ),
        ),
        noise=noise,
        spatially_varying=not constant,
        fill=fill,
        full_variance=full_variance,
        cutout=CutoutOptions(kernel_from=kernel_from, flux_scale=flux_scale, place=transient),
    )


_UNTOLD = (
    *("science", "template", "output", "score_output", "matched_output"),
    *("compress", "overwrite", "begin", "inspect", "reading"),
)
"""Arguments that say nothing of the result, or stand in the header."""


def _changed(values: dict[str, Any]) -> dict[str, Any]:
    """Options of a run that are not their defaults."""
    parameters = inspection.signature(run_subtraction).parameters
    reading = {name: value for name, value in values["reading"].items() if value is not None}
    return reading | {
        "kernel" if name == "solutions" else name: (
            " ".join(map(str, value)) if isinstance(value, tuple) else value
        )
        for name, value in values.items()
        if name in parameters and name not in _UNTOLD and value != parameters[name].default
    }


type _Made = Iterator[tuple[Path, Any, dict[str, tuple[Any, str]], dict[str, Any]]]
"""Output, exposure, cards and further extensions, one product after the other."""


def _made(
    inputs: dict[str, Any],
    wanted: dict[str, Path | None],
    begin: Callable[[str], None],
    how: SubtractionOptions,
    zero_point: float | None,
) -> _Made:
    """Match, subtract and decorrelate as `subtraction_options` says."""
    if wanted["score"] is not None:
        yield from _made_by_stars(inputs, wanted, begin, how, zero_point)
        return
    source = kernel_source(inputs["science"], inputs["template"], how.cutout)
    if source is None:
        try:
            yield from _made_by_stars(inputs, wanted, begin, how, zero_point)
        except TooFewSourcesError as error:
            if not inputs:
                raise
            source = kernel_source(inputs["science"], inputs["template"], how.cutout, error)
    if source is not None:
        science, template = inputs.pop("science"), inputs.pop("template")
        yield from _made_without_stars(science, template, source, wanted, begin, how, zero_point)


def _made_without_stars(
    science: Exposure,
    template: Exposure,
    source: KernelSource,
    wanted: dict[str, Path | None],
    begin: Callable[[str], None],
    how: SubtractionOptions,
    zero_point: float | None,
) -> _Made:
    """Subtract and decorrelate with a kernel from PSFs or all pixels."""
    begin("matching")
    made = make_cutout(science, template, source, how)
    product = made.product
    if wanted["difference"] is not None:
        depth = _depth(product, zero_point)
        log.info(
            "%s: mean variance %.6g; %.1f%% of the pixels contaminated%s",
            wanted["difference"],
            product.decorrelation.variance_mean_after,
            100 * product.decorrelation.contaminated_fraction,
            _depth_text(depth),
        )
        cards = _cutout_cards(made) | depth_cards(depth, zero_point)
        assert made.levels is not None
        yield wanted["difference"], *_finished(product, made.levels, cards)
    if wanted["matched"] is not None:
        begin("matched template")
        yield wanted["matched"], *_matched(product.solution, made.template)


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


def _made_by_stars(
    inputs: dict[str, Any],
    wanted: dict[str, Path | None],
    begin: Callable[[str], None],
    how: SubtractionOptions,
    zero_point: float | None,
) -> _Made:
    """The usual way; the inputs are let go once there are stars enough."""
    pair = prepare(inputs["science"], inputs["template"], how.preparation)
    options, correction = how.match, how.correction(pair.template)
    if wanted["score"] is not None:
        inputs.clear()
    levels = pair.source_levels
    sources = levels.either
    solved = None
    if wanted["difference"] is not None or wanted["matched"] is not None:
        begin("matching")
        solved = solve_difference(pair, options, **correction)
        pair = solved.pair
    # Whatever else is needed lives in the pair.
    inputs.clear()
    if solved is not None and wanted["difference"] is not None:
        begin("subtraction")
        product = make(solved, sources=sources, full_variance=how.full_variance)
        # Both products have the same inputs.
        correction |= measured_noise(product)
        depth = _depth(product, zero_point)
        _describe(wanted["difference"], product, pair, solved.match, depth)
        _report_floor(product, pair)
        cards = _match_cards(pair, solved.match, options, product) | depth_cards(depth, zero_point)
        yield wanted["difference"], *_finished(product, levels, cards)
        del product
    if solved is not None and wanted["matched"] is not None:
        begin("matched template")
        yield wanted["matched"], *_matched(solved.solution, pair.template)
    if wanted["score"] is not None:
        del solved
        begin("matching for the score")
        solved = solve_score(pair, options, **correction)
        begin("score")
        product = make(solved, sources=sources, full_variance=how.full_variance)
        depth = _depth(product, zero_point)
        _describe(wanted["score"], product, solved.pair, solved.match, depth)
        if wanted["difference"] is None:
            _report_floor(product, solved.pair)
        cards = _match_cards(solved.pair, solved.match, options, product) | depth_cards(
            depth, zero_point
        )
        yield wanted["score"], *_finished(product, levels, cards)


def _made_again(
    stored: dict[str, Any],
    inputs: dict[str, Any],
    wanted: dict[str, Path | None],
    begin: Callable[[str], None],
    full_variance: bool,
    use_wcs: bool,
    zero_point: float | None,
) -> _Made:
    """Subtract and decorrelate with stored solutions."""
    science, template = defects_as_before(inputs["science"], inputs["template"], stored.values())
    template = aligned_as_before(science, template, stored.values(), use_wcs=use_wcs)
    inputs.clear()
    levels = pair_sources([science], [template])
    for kind, solution in stored.items():
        begin(kind)
        path = wanted[kind]
        applied = apply_solution(solution, science, template, levels)
        pair = applied.science, applied.template
        if path is not None:
            product = applied.product(full_variance=full_variance)
            depth = _depth(product, zero_point)
            # They lie on the same pixels by now.
            fraction = template_coverage(*pair, use_wcs=False)
            _describe_again(path, product, solution, fraction, depth)
            yield (
                path,
                *_finished(
                    product, levels, _fraction_card(fraction) | depth_cards(depth, zero_point)
                ),
            )
        path = wanted["matched"]
        if kind == "difference" and path is not None:
            yield path, *_matched(solution, pair[1])


def _matched(
    solution: Any, template: Any
) -> tuple[Any, dict[str, tuple[Any, str]], dict[str, Any]]:
    """Template as a solution subtracts it, cards and further extensions."""
    matched = matched_template(
        template,
        solution.kernel,
        convolved=solution.convolved,
        scale_factor=solution.scale_factor,
    )
    return matched, {"WDTASK": ("matched template", "made by")}, {}


def _finished(
    product: Any, sources: PairSources, cards: dict[str, tuple[Any, str]]
) -> tuple[Any, dict[str, tuple[Any, str]], dict[str, Any]]:
    """Exposure with the planes of its sources, cards and further extensions."""
    exposure = product.exposure
    mark_sources(exposure, sources)
    width = warn_of_significances(exposure)
    extras = dict(formats.solution_extras(product.solution))
    if product.flux is not None:
        extras = {"FLUX": product.flux, "FLUX_VARIANCE": product.flux_variance} | extras
    return (
        exposure,
        decorrelation_cards(product.decorrelation)
        | cards
        | significance_cards(width)
        | formats.solution_cards(product.solution)
        | {"WDTASK": ("subtract", "made by")},
        extras,
    )


def _match_cards(pair: Any, match: Any, options: Any, product: Any) -> dict[str, tuple[Any, str]]:
    fit = match.fit
    # Source-free pixels may have asked for more than the stars were fitted with.
    background = product.solution.background
    is_mesh = isinstance(background, np.ndarray)
    order = options.fit.background_order if is_mesh else len(background.coefficients) - 1
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


def _depth(product: Any, zero_point: float | None) -> Depth | None:
    """Depth of a difference or score."""
    return depth_of(product.exposure, zero_point, flux_variance=product.flux_variance)


def _depth_text(depth: Depth | None) -> str:
    if depth is None:
        return "."
    return depth_text(depth.flux, depth.magnitude, depth.unit)


def _describe(path: Path | None, product: Any, pair: Any, match: Any, depth: Depth | None) -> None:
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
        product.decorrelation.variance_mean_after,
        100 * product.decorrelation.contaminated_fraction,
        _depth_text(depth),
    )
    if product.exposure.psf is None:
        log.info("%s: no PSF is known, so the output has none.", path)


def _describe_again(
    path: Path, product: Any, solution: Any, fraction: float, depth: Depth | None
) -> None:
    """Say what was made with a stored solution."""
    aligned = "on the same pixels"
    if solution.alignment is not None:
        aligned = f"aligned as before ({solution.alignment})"
    log.info(
        "%s: made again with a stored kernel: %s convolved, kernel sum %.5g; template %s, covers"
        " %.1f%% of the science image; mean variance %.6g; %.1f%% of the pixels contaminated%s",
        path,
        product.decorrelation.options.convolved,
        product.decorrelation.kernel_sum,
        aligned,
        100 * fraction,
        product.decorrelation.variance_mean_after,
        100 * product.decorrelation.contaminated_fraction,
        _depth_text(depth),
    )


def _report_floor(product: Any, pair: Any) -> None:
    result = product.decorrelation
    report_inputs_floor(
        result, pair.science.source or "science image", pair.template.source or "template"
    )


def solutions_by_kind(read: dict[str, Any]) -> dict[str, Any]:
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
    stored: dict[str, Any] = {}
    for path, solution in read.items():
        kind = "score" if solution.preconvolution_kernel is not None else "difference"
        if kind in stored:
            raise ArgumentError(f"{path}: a second {kind} in --kernel; one is enough.")
        stored[kind] = solution
    return stored


def _by_kind(read: dict[str, Any], wanted: dict[str, Path | None]) -> dict[str, Any]:
    """Stored solutions by what they made, one for each output that is wanted."""
    stored = solutions_by_kind(read)
    if not read:
        return stored
    named = ", ".join(read)
    asked = {"difference": wanted["difference"] or wanted["matched"], "score": wanted["score"]}
    for kind, output in asked.items():
        if output is None and kind in stored:
            raise ArgumentError(
                f"{named}: holds a {kind}, but no {kind} is asked for"
                f" ({'--score-output' if kind == 'score' else '--output'})."
            )
    for kind, output in asked.items():
        if output is not None and kind not in stored:
            raise ArgumentError(
                f"{named}: {output} needs a stored {kind}; name the old {kind} with --kernel too."
            )
    return stored
