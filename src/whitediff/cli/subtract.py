"""``whitediff subtract``: make a difference with white noise from two images."""

from __future__ import annotations

import click

from ..runs.options import SETTLED_OPTIONS, SubtractOptions
from .command import command, given
from .detectors import each_detector, hdu_option

__all__ = ["check_alignment", "check_settled", "subtract"]


@command(
    SubtractOptions,
    short_help="Match, subtract and decorrelate two images.",
    examples=(
        "whitediff subtract science.fits template.fits -o difference.fits",
        "whitediff subtract science.fits template.fits -o d.fits --catalog d.ecsv --report d.html",
        "whitediff subtract science.fits deep.fits -o d.fits --align --template-gain 1.8",
    ),
)
@click.argument("science")
@click.argument("template")
@hdu_option
def subtract(options: SubtractOptions, science: str, template: str, hdus: tuple[str, ...]) -> None:
    """Match the PSFs of two aligned images, subtract and decorrelate them.

    SCIENCE and TEMPLATE are FITS files on the same pixels; FILE[EXT] names an extension. A
    template that is larger or shifted by whole pixels is cut to the science image; a template on
    any other pixels is resampled with --align.
    The output is science - template at the level of the science image. At least one image must be
    written: --output, --score-output or --matched-output.
    """
    context = click.get_current_context()
    check_alignment(context)
    check_settled(context, options.kernel)
    if options.output is options.score_output is options.matched_output is None:
        raise click.UsageError(
            "Nothing to write: give --output, --score-output or --matched-output."
        )
    if options.score_output is not None and options.recipe.convolved == "science":
        raise click.UsageError(
            "--score-output with --convolved science: a score exists only for a convolved template;"
            " leave one of them out."
        )
    if options.catalog is not None and options.output is None:
        raise click.UsageError("--catalog needs --output: the difference to measure on.")
    for name in ("report", "plot"):
        if getattr(options, name) is not None and options.output is options.score_output is None:
            raise click.UsageError(f"--{name} needs --output or --score-output: what to show.")
    if options.kernel and (len(set(hdus)) > 1 or "all" in hdus):
        raise click.UsageError("--kernel belongs to one detector; run it for each --hdu.")
    each_detector(_run, options, hdus, files={"science": science, "template": template})


def _run(options: SubtractOptions, science: str, template: str) -> None:
    from ..runs.subtract import run_subtraction

    run_subtraction(science, template, options)


def check_alignment(context: click.Context) -> None:
    """Refuse ``--align-method`` without ``--align`` or ``--register``.

    Parameters
    ----------
    context
        Context of a command that has these options.
    """
    if given(context, ["align_method"]) and not (
        context.params["align"] or context.params["register"]
    ):
        raise click.UsageError("--align-method has no effect without --align; add that.")


def check_settled(
    context: click.Context, kernel: tuple[object, ...], settled: tuple[str, ...] = SETTLED_OPTIONS
) -> None:
    """Refuse options of the fit, and PSFs, beside ``--kernel``.

    Parameters
    ----------
    context
        Context of the command.
    kernel
        Value of ``--kernel``.
    settled
        Options that have no effect beside ``--kernel``.
    """
    vain = [f"--{name.replace('_', '-')}" for name in given(context, settled)]
    if kernel and vain:
        raise click.UsageError(
            f"{', '.join(vain)}: has no effect with --kernel, which takes all of this from the"
            " earlier output; leave one of them out."
        )
