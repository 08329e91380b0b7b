"""Run of ``whitediff subtract``: from two images to a difference and a score."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import formats
from ..detection.depth import Depth
from ..detection.depth import depth as depth_of
from ..errors import ArgumentError, WhitediffError, naming
from ..exposures.fields import ChebyshevField
from ..exposures.model import Exposure
from ..exposures.zero_points import check_zero_point, depth_text
from ..formats.record import history_values
from ..matching.preparation import template_coverage
from ..options import declarations, given_words
from ..progress import stages
from ..reading import ReadingOptions, option_cards, options_of_cards
from ..subtraction.pipeline import KINDS, Kind, Made, Pipeline, as_before
from ..subtraction.solution import Solution
from .cards import (
    Cards,
    decorrelation_cards,
    depth_cards,
    report_inputs_floor,
    significance_cards,
    values_of,
)
from .inputs import name_of, path_of, read_input, read_psf
from .numbers import numbers_of, write_numbers
from .options import DetectOptions, MeasureOptions, ReportOptions, SubtractOptions
from .recipes import as_asked, recipe_of
from .record import RunRecord, recorded
from .refusals import check_given
from .running import running

if TYPE_CHECKING:
    from ..formats.own.write import Extra

__all__ = [
    "Finished",
    "Written",
    "check_has_psf",
    "finished_products",
    "outputs_of",
    "read_solutions",
    "run_subtraction",
    "solutions_by_kind",
]

log = logging.getLogger("whitediff.runs")


@dataclasses.dataclass(frozen=True)
class Finished:
    """A product with the further contents of its file.

    Attributes
    ----------
    made
        The product.
    cards
        Keyword → (value, comment) for the primary header.
    record
        Record of the run.
    """

    made: Made
    cards: Cards
    record: RunRecord

    @property
    def extras(self) -> dict[str, Extra]:
        """Name → contents of the file's further extensions."""
        product = self.made.product
        extras: dict[str, Any] = {}
        if product is not None:
            extras = dict(formats.solution_extras(product.solution))
            if product.flux is not None:
                extras = {"FLUX": product.flux, "FLUX_VARIANCE": product.flux_variance} | extras
        return extras | {"LOG": self.record.table()}

    def write(self, path: Path, *, compress: bool = False, overwrite: bool = False) -> None:
        """Write the product.

        Parameters
        ----------
        path
            Output file.
        compress
            Compress the planes without loss.
        overwrite
            Whether an existing file may be replaced.

        Raises
        ------
        OutputExistsError, FileFormatError
            From `whitediff.formats.write_exposure`.
        """
        formats.write_exposure(
            self.made.exposure,
            path,
            overwrite=overwrite,
            compress=compress,
            provenance=self.cards,
            extras=self.extras,
        )


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
        Keyword → value of the cards that describe the run.
    findings
        Result of ``inspect``.
    """

    kind: Kind
    path: Path
    cards: dict[str, Any]
    findings: Any = None


def run_subtraction(
    science: object,
    template: object,
    options: SubtractOptions,
    *,
    inspect: Callable[[str, Exposure], object] | None = None,
) -> list[Written]:
    """Read, match, subtract, decorrelate and write.

    Parameters
    ----------
    science, template
        Images: files, or objects that `whitediff.runs.inputs.read_image` takes.
    options
        Options of ``whitediff subtract``.
    inspect
        Called with the kind and the exposure of each product before it is written; its result
        becomes the findings.

    Returns
    -------
    written
        One file for each product that was asked for; all are written or none.

    Raises
    ------
    WhitediffError
        A subclass whose message names the file at fault.
    """
    wanted = outputs_of(options)
    if not wanted:
        raise ArgumentError("Nothing to write: give output, score_output or matched_output.")
    check_given(options, science, template)
    written: list[Written] = []
    drawn: Made | None = None
    score: Exposure | None = None
    number = 2 + (3 if options.catalog is None else 4) * len(wanted)
    with (
        running(options.running, next(iter(wanted.values()))),
        stages("Subtracting", number) as begin,
    ):
        for finished in finished_products(science, template, options, [*wanted], begin=begin):
            made, findings = finished.made, None
            if options.catalog is not None and made.kind == "difference":
                check_has_psf(made, name_of(science, "science image"))
            if inspect is not None:
                finished.record.begin("inspection")
                findings = inspect(made.kind, made.exposure)
            finished.record.begin("writing")
            path = wanted[made.kind]
            finished.write(path, compress=options.compress, overwrite=options.overwrite)
            written.append(Written(made.kind, path, values_of(finished.cards), findings))
            if options.plot is not None and (drawn is None or made.product is not None):
                # A score beside a difference is not drawn; sources are found on it.
                drawn, score = (made, None) if drawn is None else (drawn, made.exposure)
            # Releases the images before the next product is made.
            del made, finished
        _write_further(science, template, options, written)
        if drawn is not None:
            from .picture import draw, found_on

            begin("drawing")
            draw(
                drawn.science,
                drawn.template,
                drawn.exposure,
                sources=found_on(drawn.exposure, score, options.threshold),
                path=options.plot,
                overwrite=options.overwrite,
            )
    return written


def outputs_of(options: SubtractOptions) -> dict[Kind, Path]:
    """Output files of the products that are asked for.

    Parameters
    ----------
    options
        Options of ``whitediff subtract``.

    Returns
    -------
    outputs
        Kind of product → output file.
    """
    named: dict[Kind, Path | None] = {
        "difference": options.output,
        "matched": options.matched_output,
        "score": options.score_output,
    }
    return {kind: path for kind, path in named.items() if path is not None}


def check_has_psf(made: Made, science: str) -> None:
    """Refuse a difference without a PSF, from which no catalogue can be made.

    Parameters
    ----------
    made
        Difference.
    science
        Name of the science image, for the message.

    Raises
    ------
    ArgumentError
        If the difference has no PSF.
    """
    if made.exposure.psf is None:
        raise ArgumentError.of(
            science,
            "no PSF is known or could be measured, with which sources for the"
            " catalogue are found, so nothing is written; give both (--science-psf,"
            " --template-psf), or leave out --catalog.",
        )


def finished_products(
    science: object,
    template: object,
    options: SubtractOptions,
    wanted: Sequence[Kind],
    *,
    begin: Callable[[str], None],
) -> Iterator[Finished]:
    """Products of two images, one after the other.

    Parameters
    ----------
    science, template, options
        As for `run_subtraction`; outputs only name the products in messages.
    wanted
        Kinds of products.
    begin
        Called with the name of each stage as it begins.

    Yields
    ------
    finished
        Products, in the order of `whitediff.subtraction.pipeline.KINDS`.

    Raises
    ------
    WhitediffError
        A subclass whose message names the file at fault.
    """
    check_zero_point(options.zero_point)
    names = name_of(science, "science image"), name_of(template, "template")
    recipe = recipe_of(options.recipe)
    stored = {
        kind: as_asked(solution, recipe)
        for kind, solution in _by_kind(read_solutions(options.kernel), wanted).items()
    }
    with recorded(_told_options(options), begin) as record:
        record.begin("reading")
        options, inputs = _read(options, science, template, tuple(stored.values()))
        cards: Cards = {
            "WDSCI": (path_of(science), "science image"),
            "WDTMPL": (path_of(template), "template"),
            **option_cards(science=options.science, template=options.template),
        }
        psfs = ("science", options.science_psf), ("template", options.template_psf)
        for exposure, (side, psf) in zip(inputs, psfs, strict=True):
            if psf is not None:
                exposure.psf = read_psf(psf, exposure.bbox, f"{side} PSF")
                cards[f"WD{side[0].upper()}PSFIN"] = (path_of(psf), f"PSF of the {side} image from")
        del exposure, science, template
        pipeline = Pipeline(recipe, begin=record.begin)
        first = next(kind for kind in ("difference", "score", "matched") if kind in wanted)
        # The fit cannot know which of the two images is at fault, so an error names both.
        with naming(", ".join(names)):
            # No reference is kept here, so that the pipeline can free the images early.
            pair = inputs.pop(0), inputs.pop(0)
            one_by_one = (
                pipeline.again(*pair, stored) if stored else pipeline.products(*pair, wanted)
            )
            del pair
            for made in one_by_one:
                output = outputs_of(options).get(made.kind)
                more = _told(made, str(output or names[0]), options.zero_point)
                if made.kind == first and made.pair is not None:
                    report_inputs_floor(made.decorrelation, *names)  # type: ignore[arg-type]
                yield Finished(made, cards | more, record)
                del made


def _read(
    options: SubtractOptions, science: object, template: object, stored: tuple[Solution, ...]
) -> tuple[SubtractOptions, list[Exposure]]:
    """Read both images; those of an earlier product as they were read then.

    A gain or a variance that was given makes other pixels: the earlier product could not be made
    again without it.  Its images are known by their pixels; others are read as they come.  The
    options that come back are those with which the images were read.
    """

    def read_with(options: SubtractOptions) -> list[Exposure]:
        return [
            read_input(science, options.science, "science image"),
            read_input(template, options.template, "template"),
        ]

    before = _reading_before(options)
    if before == options:
        return options, read_with(options)
    try:
        inputs = read_with(before)
        pair = as_before(inputs[0], inputs[1], stored)
        is_same = all(solution.is_of(*pair) for solution in stored)
    except WhitediffError:
        is_same = False
    if not is_same:
        return options, read_with(options)
    for image, role, given, now in (
        (science, "science image", options.science, before.science),
        (template, "template", options.template, before.template),
    ):
        if now != given:
            told = ", ".join(f"{name} {value}" for name, value in given_words(now).items())
            log.info("%s: is read with its %s, as before.", name_of(image, role), told)
    return before, inputs


def _reading_before(options: SubtractOptions) -> SubtractOptions:
    """Options in which those of reading that earlier products tell stand in for none."""
    for earlier in options.kernel:
        is_file = isinstance(earlier, str | os.PathLike)
        cards = history_values(str(earlier)) if is_file else getattr(earlier, "history", {})
        if options.science == ReadingOptions():
            options = dataclasses.replace(options, science=options_of_cards(cards, "science"))
        if options.template == ReadingOptions():
            options = dataclasses.replace(options, template=options_of_cards(cards, "template"))
    return options


def _told_options(options: SubtractOptions) -> dict[str, Any]:
    """Options that decide the result and differ from their defaults, as text for the log."""
    known = declarations(SubtractOptions)
    told = {}
    for name, value in given_words(options).items():
        if known[name].group == "Running" or known[name].is_output or name in _UNTOLD:
            continue
        several = value if isinstance(value, tuple) else (value,)
        told[name] = (
            value
            if value is True
            else " ".join(
                path_of(each) or "(in memory)"
                if known[name].is_file and not isinstance(each, float)
                else str(each)
                for each in several
            )
        )
    return told


_UNTOLD = ("compress", "overwrite")


def read_solutions(given: Sequence[object]) -> dict[str, Solution]:
    """Solutions of earlier products.

    Parameters
    ----------
    given
        Files, or results of `whitediff.subtract`.

    Returns
    -------
    solutions
        Name of the product → its solution.

    Raises
    ------
    ArgumentError
        If one is neither.
    """
    found = {}
    for each in given:
        solution = getattr(each, "solution", None)
        name = name_of(each, "earlier result")
        if isinstance(solution, Solution):
            found[name] = solution
        elif isinstance(each, str | os.PathLike):
            found[name] = formats.read_solution(name)
        else:
            raise ArgumentError(
                f"kernel: {type(each).__name__} is no result of whitediff.subtract; give one, or"
                " the file that it was written to."
            )
    return found


def _write_further(
    science: object, template: object, options: SubtractOptions, written: list[Written]
) -> None:
    """Write catalogue, report, picture and numbers of products that are written already."""
    image, score = (
        None if path is None else str(path) for path in (options.output, options.score_output)
    )
    # Loaded only where they are asked for: most runs make a difference alone.
    if options.catalog is not None:
        from .detect import run_detection

        run_detection(
            str(image),
            DetectOptions(
                score=score,
                threshold=options.threshold,
                measure=MeasureOptions(
                    output=options.catalog,
                    zero_point=options.zero_point,
                    overwrite=options.overwrite,
                ),
            ),
        )
    if options.report is not None:
        from .report import run_report

        run_report(
            str(image or score),
            ReportOptions(
                science=science,
                template=template,
                score=None if image is None else score,
                catalog=None if options.catalog is None else str(options.catalog),
                output=options.report,
                overwrite=options.overwrite,
            ),
        )
    if options.json is not None:
        numbers = {each.kind: numbers_of(each.cards) for each in written if each.kind != "matched"}
        write_numbers(options.json, numbers, overwrite=options.overwrite)


def _told(made: Made, name: str, zero_point: float | None) -> Cards:
    """Log how a product was made, and return its cards."""
    product = made.product
    if product is None:
        return {"WDTASK": ("matched template", "made by")}
    depth = depth_of(made.exposure, zero_point, flux_variance=product.flux_variance)
    if made.is_again:
        # The template has been resampled by now, so the WCS no longer matters.
        fraction = template_coverage(made.science, made.template, use_wcs=False)
        _describe_again(name, made, fraction, depth)
        cards = _fraction_card(fraction)
    elif made.cutout is not None:
        _describe_cutout(name, made, depth)
        cards = _cutout_cards(made)
    else:
        _describe(name, made, depth)
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


def _cutout_cards(made: Made) -> Cards:
    """Cards of a kernel that was not fitted to stars, and of the transient."""
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
    # The background of the source-free pixels may have a higher order than the fit to the stars.
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
        # The noise of a pre-convolved image is correlated, so its chi-square means nothing.
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


def _describe_cutout(name: str, made: Made, depth: Depth | None) -> None:
    result = made.decorrelation
    assert result is not None
    log.info(
        "%s: mean variance %.6g; %.1f%% of the pixels contaminated%s",
        name,
        result.variance_mean_after,
        100 * result.contaminated_fraction,
        _depth_text(depth),
    )


def _describe(name: str, made: Made, depth: Depth | None) -> None:
    pair, match, result = made.pair, made.match, made.decorrelation
    assert pair is not None
    assert match is not None
    assert result is not None
    fit = match.fit
    log.info(
        "%s: PSF FWHM %.2f (science) and %.2f (template) pixels; %s convolved; %d of %d stars"
        " used; kernel sum %.5g ± %.2g, with the wings beyond it %.5g ± %.2g; variance planes"
        " times %.3f and %.3f; mean variance %.6g; %.1f%% of the pixels contaminated%s",
        name,
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
        log.info("%s: no PSF is known, so the output has none.", name)


def _describe_again(name: str, made: Made, fraction: float, depth: Depth | None) -> None:
    """Log a product that was made again with a stored solution."""
    solution, result = made.solution, made.decorrelation
    aligned = "on the same pixels"
    if solution.alignment is not None:
        aligned = f"aligned as before ({solution.alignment})"
    log.info(
        "%s: made again with a stored kernel: %s convolved; template %s, covers %.1f%% of the"
        " science image%s%s",
        name,
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
    """Stored solutions by the kind of product that they made.

    Parameters
    ----------
    read
        File → solution.

    Returns
    -------
    stored
        ``difference`` or ``score`` → solution.

    Raises
    ------
    ArgumentError
        If there are two solutions of one kind.
    """
    stored: dict[Kind, Solution] = {}
    for path, solution in read.items():
        kind: Kind = "score" if solution.preconvolution_kernel is not None else "difference"
        if kind in stored:
            raise ArgumentError.of(path, f"a second {kind} in --kernel; one is enough.")
        stored[kind] = solution
    return stored


def _by_kind(read: Mapping[str, Solution], wanted: Sequence[Kind]) -> dict[Kind, Solution]:
    """Stored solution for each product that is wanted."""
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
                f"{named}: a {kind} needs a stored {source}; name the old {source} with --kernel"
                " too."
            )
        again[kind] = stored[source]
    return again
