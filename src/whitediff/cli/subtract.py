"""``whitediff subtract``: two images in, a white difference out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import OUTPUT_FILE, OddSize, Order, common_options, limited_memory, stages
from .decorrelate import correction_options, noise_options

__all__ = ["subtract"]


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
    "--report",
    type=OUTPUT_FILE,
    help="Web page to write on which to judge the result (whitediff report).",
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
    named = [options[name] for name in ("output", "score_output", "matched_output")]
    outputs = [path for path in named if path is not None]
    if not outputs:
        raise click.UsageError(
            "Nothing to write: give --output, --score-output or --matched-output."
        )
    report, memory = options.pop("report"), options.pop("memory")
    if report is not None:
        _check_report(report, options)
    from ..runs.subtract import run_subtraction

    with (
        limited_memory(memory, outputs[0].absolute().parent),
        stages("Subtracting", 2 + 3 * len(outputs)) as begin,
    ):
        run_subtraction(**options, begin=begin)
    if report is not None:
        from .report import run_report

        image, score = options["output"], options["score_output"]
        run_report(
            image_path=str(image or score),
            science=options["science"],
            template=options["template"],
            score=None if score is None or image is None else str(score),
            output=report,
            overwrite=options["overwrite"],
        )


def _check_report(report: Path, options: dict[str, Any]) -> None:
    """Refuse a report that cannot be written before the work is done."""
    from ..errors import ArgumentError
    from ..outputs import check_output

    images = [options[name] for name in ("output", "score_output") if options[name] is not None]
    if not images:
        raise click.UsageError("--report needs --output or --score-output: what to report on.")
    others = [*images, options["matched_output"]]
    if report.resolve() in [path.resolve() for path in others if path is not None]:
        raise ArgumentError(f"{report}: two outputs cannot be the same file.")
    check_output(report, overwrite=options["overwrite"])
