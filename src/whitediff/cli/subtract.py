"""``whitediff subtract``: two images in, a white difference out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from .console import OUTPUT_FILE, OddSize, Order, common_options, limited_memory, log, stages
from .decorrelate import (
    correction_options,
    decorrelation_cards,
    noise_options,
    read_input,
    report_noise_floor,
)

__all__ = ["run_subtraction", "subtract"]


_FIT_OPTIONS = (
    "convolved",
    "kernel_order",
    "background_order",
    "basis",
    "kernel_size",
    "varying_sum",
    "keep_variance",
    "science_psf",
    "template_psf",
    "noise",
    "constant",
    "fill",
)


@click.command(short_help="Match, subtract and decorrelate two images.")
@click.argument("science")
@click.argument("template")
@click.option("--output", type=OUTPUT_FILE, help="Difference to write.")
@click.option(
    "--score-output",
    type=OUTPUT_FILE,
    help="Detection score to write: the image to find sources on.",
)
@click.option(
    "--matched-output",
    type=OUTPUT_FILE,
    help="Template to write as it was subtracted, at the science image's level.",
)
@click.option(
    "--kernel",
    "solutions",
    multiple=True,
    metavar="OLD_OUTPUT",
    help="Make an earlier difference or score again, with its kernel, without fitting.",
)
@click.option(
    "--convolved",
    type=click.Choice(["template", "science", "auto"]),
    help="Which image to convolve  [default: auto, the one with the narrower PSF].",
)
@click.option(
    "--kernel-order",
    type=Order(),
    help="Order of the kernel's variation over the field: a number, or bic or"
    " cross-validation to have it chosen from 0 to 3  [default: bic; 1 with the delta basis].",
)
@click.option(
    "--background-order",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Order of the differential background.",
)
@click.option(
    "--basis",
    type=click.Choice(["gaussian", "delta"]),
    default="gaussian",
    show_default=True,
    help="Of the kernel.",
)
@click.option("--kernel-size", type=OddSize(), help="Odd side, pixels  [default: from the PSFs].")
@click.option(
    "--varying-sum",
    is_flag=True,
    help="Let the kernel's sum, the photometric scale, vary over the field.",
)
@click.option(
    "--keep-variance",
    is_flag=True,
    help="Do not rescale the variance planes to the measured noise.",
)
@click.option(
    "--ignore-wcs",
    is_flag=True,
    help="Take the images as aligned pixel by pixel, whatever their WCS says.",
)
@noise_options
@click.option(
    "--science-psf",
    metavar="FILE",
    help="PSF of the science image  [default: its own, else measured from stars].",
)
@click.option("--template-psf", metavar="FILE", help="PSF of the template.")
@click.option("--full-variance", is_flag=True, help="Propagate the variance of every pixel.")
@correction_options
@click.option("--compress", is_flag=True, help="Compress the output without loss; slow.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@common_options
def subtract(**options: Any) -> None:
    """Match the PSFs of two aligned images, subtract and decorrelate them.

    SCIENCE and TEMPLATE are FITS files on the same pixels; FILE[EXT] names an extension. A
    template that is larger or shifted by whole pixels is cut to the science image.
    The output is science - template at the level of the science image.
    """
    context = click.get_current_context()
    given = [
        f"--{name.replace('_', '-')}"
        for name in _FIT_OPTIONS
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if options["solutions"] and given:
        raise click.UsageError(
            f"{', '.join(given)}: has no effect with --kernel, which takes all of this from the"
            " earlier output; leave one of them out."
        )
    outputs = [options[name] for name in ("output", "score_output", "matched_output")]
    directory = next((path.absolute().parent for path in outputs if path is not None), None)
    with limited_memory(options.pop("memory"), directory):
        run_subtraction(**options)


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
    basis: Any = "gaussian",
    kernel_size: int | None = None,
    varying_sum: bool = False,
    keep_variance: bool = False,
    ignore_wcs: bool = False,
    science_variance: float | str | None = None,
    template_variance: float | str | None = None,
    science_gain: float | None = None,
    science_read_noise: float | None = None,
    template_gain: float | None = None,
    template_read_noise: float | None = None,
    science_psf: str | None = None,
    template_psf: str | None = None,
    full_variance: bool = False,
    noise: Any = "auto",
    constant: bool = False,
    fill: Any = "mean",
    compress: bool = False,
    overwrite: bool = False,
) -> None:
    """Read, match, subtract, decorrelate and write.

    Parameters
    ----------
    science, template, output, score_output, matched_output, solutions, convolved, kernel_order, \
    background_order, basis, kernel_size, varying_sum, keep_variance, ignore_wcs, \
    science_variance, template_variance, science_gain, science_read_noise, template_gain, \
    template_read_noise, science_psf, template_psf, full_variance, noise, constant, fill, \
    compress, overwrite
        Options of the command.
    """
    from .. import formats
    from ..errors import ArgumentError, WhitediffError
    from ..exposures import matching, preparation
    from ..matching.design import FitOptions
    from ..outputs import check_output

    outputs = [path for path in (output, score_output, matched_output) if path is not None]
    if not outputs:
        raise click.UsageError(
            "Nothing to write: give --output, --score-output or --matched-output."
        )
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise ArgumentError(f"{outputs[0]}: two outputs cannot be the same file.")
    for path in outputs:
        check_output(path, overwrite=overwrite)
    read = {path: formats.read_solution(path) for path in solutions}
    wanted = {"difference": output, "score": score_output, "matched": matched_output}
    stored = _by_kind(read, wanted)
    if kernel_order is None:
        # To try all orders with hundreds of free pixels takes minutes.
        kernel_order = 1 if basis == "delta" else "bic"
    chosen = kernel_order if isinstance(kernel_order, str) else None
    options = matching.MatchOptions(
        convolved=convolved or "auto",
        basis=basis,
        kernel_size=kernel_size,
        choose_order=chosen,  # type: ignore[arg-type]
        fit=FitOptions(
            kernel_order=1 if isinstance(kernel_order, str) else kernel_order,
            background_order=background_order,
            constant_sum=not varying_sum,
        ),
    )
    noise_levels = {
        "science": (science_variance, science_gain, science_read_noise),
        "template": (template_variance, template_gain, template_read_noise),
    }
    paths = {"science": science, "template": template}
    cards: dict[str, tuple[Any, str]] = {
        "WDSCI": (science, "science image"),
        "WDTMPL": (template, "template"),
    }
    with stages("Subtracting", 2 + 3 * len(outputs)) as begin:
        begin("reading")
        inputs = {name: read_input(name, path, *noise_levels[name]) for name, path in paths.items()}
        for name, psf in (("science", science_psf), ("template", template_psf)):
            if psf is not None:
                inputs[name].psf = formats.read_psf(psf, bounds=inputs[name].bbox)
                cards[f"WD{name[0].upper()}PSFIN"] = (psf, f"PSF of the {name} image from")
        begin("preparation")
        try:
            if stored:
                made = _made_again(stored, inputs, wanted, begin, full_variance, not ignore_wcs)
            else:
                prepared = preparation.PreparationOptions(
                    rescale_variance=not keep_variance, use_wcs=not ignore_wcs
                )
                correction = {"noise": noise, "spatially_varying": not constant, "fill": fill}
                made = _made(inputs, wanted, begin, full_variance, prepared, options, correction)
            for path, exposure, more, extras in made:
                begin("writing")
                formats.write_exposure(
                    exposure,
                    path,
                    overwrite=overwrite,
                    compress=compress,
                    provenance=cards | more,
                    extras=extras,
                )
        except WhitediffError as error:
            # Which of the two is at fault, the fit cannot know.
            named = (science, template, *(str(path) for path in outputs))
            if any(name in str(error) for name in named):
                raise
            raise type(error)(f"{science}, {template}: {error}") from error


type _Made = Iterator[tuple[Path, Any, dict[str, tuple[Any, str]], dict[str, Any]]]
"""Output, exposure, cards and further extensions, one product after the other."""


def _made(
    inputs: dict[str, Any],
    wanted: dict[str, Path | None],
    begin: Callable[[str], None],
    full_variance: bool,
    prepared: Any,
    options: Any,
    correction: dict[str, Any],
) -> _Made:
    """Match, subtract and decorrelate."""
    from ..exposures.pipeline import make, measured_noise, solve_difference, solve_score
    from ..exposures.preparation import prepare

    pair = prepare(inputs["science"], inputs["template"], prepared)
    # Whatever else is needed lives in the pair.
    inputs.clear()
    sources = pair.science_pixels | pair.template_pixels
    solved = None
    if wanted["difference"] is not None or wanted["matched"] is not None:
        begin("matching")
        solved = solve_difference(pair, options, **correction)
        pair = solved.pair
    if solved is not None and wanted["difference"] is not None:
        begin("subtraction")
        product = make(solved, sources=sources, full_variance=full_variance)
        # Both products have the same inputs.
        correction |= measured_noise(product)
        _describe(wanted["difference"], product, pair, solved.match)
        _report_floor(product, pair)
        cards = _match_cards(pair, solved.match, options)
        yield wanted["difference"], *_finished(product, sources, cards)
        del product
    if solved is not None and wanted["matched"] is not None:
        begin("matched template")
        yield wanted["matched"], *_matched(solved.solution, pair.template)
    if wanted["score"] is not None:
        del solved
        begin("matching for the score")
        solved = solve_score(pair, options, **correction)
        begin("score")
        product = make(solved, sources=sources, full_variance=full_variance)
        _describe(wanted["score"], product, solved.pair, solved.match)
        if wanted["difference"] is None:
            _report_floor(product, solved.pair)
        cards = _match_cards(solved.pair, solved.match, options, score=True)
        yield wanted["score"], *_finished(product, sources, cards)


def _made_again(
    stored: dict[str, Any],
    inputs: dict[str, Any],
    wanted: dict[str, Path | None],
    begin: Callable[[str], None],
    full_variance: bool,
    use_wcs: bool,
) -> _Made:
    """Subtract and decorrelate with stored solutions."""
    from ..exposures.alignment import aligned_template
    from ..exposures.noise import rescaled, source_pixels
    from ..exposures.solution import make_product

    science = inputs["science"]
    template = aligned_template(science, inputs["template"], use_wcs=use_wcs)
    inputs.clear()
    sources = source_pixels(science, template)
    for kind, solution in stored.items():
        begin(kind)
        pair = (
            rescaled(science, solution.science_variance_factor),
            rescaled(template, solution.template_variance_factor),
        )
        path = wanted[kind]
        if path is not None:
            product = make_product(solution, *pair, sources=sources, full_variance=full_variance)
            yield path, *_finished(product, sources, {})
        path = wanted["matched"]
        if kind == "difference" and path is not None:
            yield path, *_matched(solution, pair[1])


def _matched(
    solution: Any, template: Any
) -> tuple[Any, dict[str, tuple[Any, str]], dict[str, Any]]:
    """Template as a solution subtracts it, cards and further extensions."""
    from ..exposures.subtraction import matched_template

    matched = matched_template(
        template,
        solution.kernel,
        convolved=solution.convolved,
        scale_factor=solution.scale_factor,
    )
    return matched, {"WDTASK": ("matched template", "made by")}, {}


def _finished(
    product: Any, sources: Any, cards: dict[str, tuple[Any, str]]
) -> tuple[Any, dict[str, tuple[Any, str]], dict[str, Any]]:
    """Exposure with its SOURCE plane, cards and further extensions."""
    from ..exposures import masks
    from ..formats import solution_cards, solution_extras

    exposure = product.exposure
    exposure.masked_image.mask = masks.with_plane(exposure.mask, masks.SOURCE, sources)
    extras = dict(solution_extras(product.solution))
    if product.flux is not None:
        extras = {"FLUX": product.flux, "FLUX_VARIANCE": product.flux_variance} | extras
    return (
        exposure,
        decorrelation_cards(product.decorrelation)
        | cards
        | solution_cards(product.solution)
        | {"WDTASK": ("subtract", "made by")},
        extras,
    )


def _match_cards(
    pair: Any, match: Any, options: Any, *, score: bool = False
) -> dict[str, tuple[Any, str]]:
    fit = match.fit
    return {
        "WDBASIS": (options.basis, "kernel basis"),
        "WDKORDER": (fit.kernel_order, "spatial order of the kernel"),
        "WDBORDER": (fit.background_order, "spatial order of the background"),
        "WDSFWHM": (pair.science_fwhm, "FWHM of the science PSF, pixels"),
        "WDTFWHM": (pair.template_fwhm, "FWHM of the template PSF, pixels"),
        "WDTFRAC": (pair.template_fraction, "of the science pixels that the template has"),
        "WDNSTAR": (len(fit.used), "stars offered to the fit"),
        "WDNUSED": (int(fit.used.sum()), "stars used"),
        "WDKSERR": (fit.kernel_sum_error, "error of the kernel sum"),
        # Of pre-convolved noise, which is correlated, it would mean nothing.
        "WDCHI2": (
            None if score else fit.reduced_chi_square,
            "reduced chi-square of the fit",
        ),
        "WDCOND": (fit.condition, "condition number of the fit"),
    }


def _describe(path: Path | None, product: Any, pair: Any, match: Any) -> None:
    fit = match.fit
    log.info(
        "%s: PSF FWHM %.2f (science) and %.2f (template) pixels; %s convolved; %d of %d stars"
        " used; kernel sum %.5g ± %.2g; variance planes times %.3f and %.3f; mean variance"
        " %.6g; %.1f%% of the pixels contaminated.",
        path,
        pair.science_fwhm,
        pair.template_fwhm,
        match.convolved,
        int(fit.used.sum()),
        len(fit.used),
        fit.kernel_sum,
        fit.kernel_sum_error,
        pair.science_variance_factor,
        pair.template_variance_factor,
        product.decorrelation.variance_mean_after,
        100 * product.decorrelation.contaminated_fraction,
    )
    if product.exposure.psf is None:
        log.info("%s: no PSF is known, so the output has none.", path)


def _report_floor(product: Any, pair: Any) -> None:
    result = product.decorrelation
    report_noise_floor(
        (
            (pair.science.source or "science image", result.science_noise),
            (pair.template.source or "template", result.template_noise),
        )
    )


def _by_kind(read: dict[str, Any], wanted: dict[str, Path | None]) -> dict[str, Any]:
    """Stored solutions by what they made, one for each output that is wanted."""
    from ..errors import ArgumentError

    stored: dict[str, Any] = {}
    for path, solution in read.items():
        kind = "score" if solution.preconvolution_kernel is not None else "difference"
        if kind in stored:
            raise ArgumentError(f"{path}: a second {kind} in --kernel; one is enough.")
        stored[kind] = solution
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
