"""``whitediff subtract``: two images in, a white difference out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..outputs import together
from ..reading import file_options
from .console import (
    CATALOG_FILE,
    INPUT_FILE,
    METHOD,
    OUTPUT_FILE,
    PAGE_FILE,
    OddSize,
    Order,
    Place,
    common_options,
    limited_memory,
    stages,
)
from .decorrelate import correction_options, with_options
from .detectors import each_detector, hdu_option
from .reading import input_options, limit_options

__all__ = [
    "FIT_OPTIONS",
    "SETTLED_OPTIONS",
    "check_alignment",
    "check_settled",
    "fit_options",
    "subtract",
]

FIT_OPTIONS = (
    "convolved",
    "kernel_order",
    "background_order",
    "background",
    "basis",
    "kernel_size",
    "varying_sum",
    "keep_variance",
    "noise",
    "constant",
    "fill",
    "align",
    "register",
    "align_method",
    "no_cosmic_rays",
    "no_bad_pixels",
    "no_trails",
    "no_level_jumps",
    "kernel_from",
    "flux_scale",
    "transient",
)
"""Parameters of the fit."""

SETTLED_OPTIONS = (*FIT_OPTIONS, "science_psf", "template_psf")
"""Parameters that an earlier output has settled, which is made again with ``--kernel``."""


def fit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how two images are matched.

    Parameters
    ----------
    command
        Function of the command; it gets what `subtraction_options` takes of them.

    Returns
    -------
    command
        Decorated.
    """
    options = (
        click.option(
            "--convolved",
            type=click.Choice(["template", "science", "auto"]),
            help="Which image to convolve  [default: auto, the one with the narrower PSF].",
        ),
        click.option(
            "--kernel-order",
            type=Order(),
            help="Order of the kernel's variation over the field: a number, or bic or"
            " cross-validation to have it chosen from 0 to 3"
            "  [default: bic; 1 with the delta basis].",
        ),
        click.option(
            "--background-order",
            type=click.IntRange(min=0),
            default=2,
            show_default=True,
            help="Order of the differential background.",
        ),
        click.option(
            "--background",
            type=click.Choice(["auto", "polynomial", "mesh"]),
            default="auto",
            show_default=True,
            help="What describes it: polynomials; or also steps across the frame and what small"
            " blocks show (fringes), where the difference has such or, with mesh, anyway.",
        ),
        click.option(
            "--basis",
            type=click.Choice(["auto", "gaussian", "elliptical", "spline", "delta"]),
            default="auto",
            show_default=True,
            help="Basis of the kernel: round or elliptical Gaussians times polynomials, a free"
            " form of splines, or free pixels; auto takes round Gaussians unless one of the next"
            " two predicts stars that are left out much better.",
        ),
        click.option(
            "--kernel-size", type=OddSize(), help="Odd side, pixels  [default: from the PSFs]."
        ),
        click.option(
            "--varying-sum",
            is_flag=True,
            help="Let the kernel's sum, the photometric scale, vary over the field.",
        ),
        click.option(
            "--keep-variance",
            is_flag=True,
            help="Do not rescale the variance planes to the measured noise.",
        ),
        click.option(
            "--ignore-wcs",
            is_flag=True,
            help="Take the images as aligned pixel by pixel, whatever their WCS says; with --align,"
            " align by the stars alone.",
        ),
        click.option(
            "--align",
            is_flag=True,
            help="Resample a template whose pixels are not the science image's, by their WCS as"
            " the stars correct it; without a WCS, by the stars.",
        ),
        click.option(
            "--register",
            is_flag=True,
            help="As --align, and take out smooth local distortions too, as far as the stars show"
            " any.",
        ),
        click.option(
            "--align-method",
            type=METHOD,
            default="auto",
            show_default=True,
            help="How, as for whitediff align.",
        ),
        click.option(
            "--no-cosmic-rays",
            is_flag=True,
            help="Do not look for cosmic rays. Images whose mask has some are left alone anyway.",
        ),
        click.option(
            "--no-bad-pixels",
            is_flag=True,
            help="Do not look for hot and dead pixels, columns and rows; likewise.",
        ),
        click.option(
            "--no-trails",
            is_flag=True,
            help="Do not look for trails of satellites and aeroplanes; likewise.",
        ),
        click.option(
            "--no-level-jumps",
            is_flag=True,
            help="Do not look for jumps of the level between amplifiers, which are taken off.",
        ),
        click.option(
            "--kernel-from",
            type=click.Choice(["auto", "stars", "psfs", "pixels"]),
            default="auto",
            show_default=True,
            help="What the kernel is found from: stars, the two PSFs, or all pixels of a cut-out;"
            " auto takes stars where there are enough.",
        ),
        click.option(
            "--flux-scale",
            type=float,
            help="Without stars: flux of a static source on the science image over that on the"
            " template  [default: from the zero points, else 1].",
        ),
        click.option(
            "--transient",
            type=Place(),
            metavar="X,Y",
            help="Without stars: pixel around which the fit looks away, and whose flux is told"
            "  [default: the middle of a cut-out].",
        ),
    )
    return with_options(command, options)


def check_alignment(context: click.Context) -> None:
    """Refuse a method of aligning that was asked for and would not be used.

    Parameters
    ----------
    context
        Of a command with `fit_options`.
    """
    source = context.get_parameter_source("align_method")
    if source is click.core.ParameterSource.COMMANDLINE and not (
        context.params["align"] or context.params["register"]
    ):
        raise click.UsageError("--align-method has no effect without --align; add that.")


@click.command(short_help="Match, subtract and decorrelate two images.")
@click.argument("science", type=INPUT_FILE)
@click.argument("template", type=INPUT_FILE)
@click.option("--output", type=OUTPUT_FILE, help="Difference to write.")
@hdu_option
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
    "--catalog",
    type=CATALOG_FILE,
    help="Catalogue to write of the sources found (whitediff detect): on the score where one is"
    " made.",
)
@click.option(
    "--report",
    type=PAGE_FILE,
    help="Web page to write on which to judge the result (whitediff report).",
)
@click.option(
    "--kernel",
    "solutions",
    multiple=True,
    metavar="OLD_OUTPUT",
    help="Make an earlier difference or score again, with its kernel, without fitting.",
)
@fit_options
@input_options("science", "template")
@click.option(
    "--science-psf",
    metavar="FILE",
    help="PSF of the science image  [default: its own, else measured from stars].",
)
@click.option("--template-psf", metavar="FILE", help="PSF of the template.")
@click.option(
    "--zero-point",
    type=float,
    help="Magnitude of a flux of 1, for the depth and the catalogue  [default: the header's, such"
    " as MAGZERO].",
)
@click.option("--full-variance", is_flag=True, help="Propagate the variance of every pixel.")
@correction_options
@click.option("--compress", is_flag=True, help="Compress the output without loss; slow.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@common_options
@limit_options
def subtract(**options: Any) -> None:
    """Match the PSFs of two aligned images, subtract and decorrelate them.

    SCIENCE and TEMPLATE are FITS files on the same pixels; FILE[EXT] names an extension. A
    template that is larger or shifted by whole pixels is cut to the science image, and one
    on any other pixels resampled with --align.
    The output is science - template at the level of the science image.
    """
    context = click.get_current_context()
    check_alignment(context)
    check_settled(context, options["solutions"])
    named = [options[name] for name in ("output", "score_output", "matched_output")]
    outputs = [path for path in named if path is not None]
    if not outputs:
        raise click.UsageError(
            "Nothing to write: give --output, --score-output or --matched-output."
        )
    _check_further(options["report"], options["catalog"], options)
    if options["solutions"] and (len(set(options["hdus"])) > 1 or "all" in options["hdus"]):
        raise click.UsageError("--kernel belongs to one detector; run it for each --hdu.")
    with limited_memory(options.pop("memory"), outputs[0].absolute().parent):
        each_detector(
            _run,
            options,
            files=("science", "template", *file_options("science", "template")),
            kernels=("science_psf", "template_psf"),
            outputs=("output", "score_output", "matched_output", "catalog", "report"),
        )


def check_settled(context: click.Context, solutions: tuple[str, ...]) -> None:
    """Refuse options of the fit, and PSFs, beside ``--kernel``.

    Parameters
    ----------
    context
        Of the command.
    solutions
        What ``--kernel`` says.
    """
    given = [
        f"--{name.replace('_', '-')}"
        for name in SETTLED_OPTIONS
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if solutions and given:
        raise click.UsageError(
            f"{', '.join(given)}: has no effect with --kernel, which takes all of this from the"
            " earlier output; leave one of them out."
        )


@together()
def _run(*, report: Path | None, catalog: Path | None, **options: Any) -> None:
    """Subtract one image from another, and go on with the products as far as is wanted."""
    from ..errors import ArgumentError
    from ..runs.subtract import run_subtraction

    named = (options[name] for name in ("output", "score_output", "matched_output"))
    number = sum(path is not None for path in named)

    def with_psf(kind: str, exposure: Any) -> None:
        """Refuse a difference that no catalogue can be made of, before it is written."""
        if kind == "difference" and exposure.psf is None:
            raise ArgumentError(
                f"{options['science']}: no PSF is known or could be measured, with which sources"
                " for the catalogue are found, so nothing is written; give both (--science-psf,"
                " --template-psf), or leave out --catalog."
            )

    with stages("Subtracting", 2 + (3 if catalog is None else 4) * number) as begin:
        run_subtraction(**options, begin=begin, inspect=None if catalog is None else with_psf)
    image, score = (
        None if options[name] is None else str(options[name]) for name in ("output", "score_output")
    )
    if catalog is not None:
        from .detect import run_detection

        run_detection(
            difference=str(image),
            score=score,
            output=catalog,
            zero_point=options["zero_point"],
            overwrite=options["overwrite"],
        )
    if report is not None:
        from .report import run_report

        run_report(
            image_path=str(image or score),
            science=options["science"],
            template=options["template"],
            score=None if image is None else score,
            catalog=None if catalog is None else str(catalog),
            output=report,
            overwrite=options["overwrite"],
        )


def _check_further(report: Path | None, catalog: Path | None, options: dict[str, Any]) -> None:
    """Refuse a report or catalogue that cannot be written before the work is done."""
    from ..errors import ArgumentError
    from ..outputs import check_output
    from ..paths import check_catalog_path

    if catalog is not None and options["output"] is None:
        raise click.UsageError("--catalog needs --output: the difference to measure on.")
    if report is not None and options["output"] is None and options["score_output"] is None:
        raise click.UsageError("--report needs --output or --score-output: what to report on.")
    if catalog is not None:
        check_catalog_path(catalog)
    seen = {
        path.resolve()
        for path in (options[name] for name in ("output", "score_output", "matched_output"))
        if path is not None
    }
    for path in (catalog, report):
        if path is None:
            continue
        if path.resolve() in seen:
            raise ArgumentError(f"{path}: two outputs cannot be the same file.")
        seen.add(path.resolve())
        check_output(path, overwrite=options["overwrite"])
