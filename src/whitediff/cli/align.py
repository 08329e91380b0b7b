"""``whitediff align``: a template on the science image's pixels."""

from __future__ import annotations

from typing import Any

import click

from .console import INPUT_FILE, METHOD, OUTPUT_FILE, Size, common_options, limited_memory, stages
from .reading import input_options, limit_options

__all__ = ["align"]


@click.command(short_help="Resample a template onto the science image's pixels.")
@click.argument("template", type=INPUT_FILE)
@click.option(
    "--to", "science", required=True, type=INPUT_FILE, metavar="SCIENCE", help="Image whose pixels."
)
@click.option("--output", required=True, type=OUTPUT_FILE, help="File to write.")
@click.option(
    "--method",
    type=METHOD,
    default="auto",
    show_default=True,
    help="Cubic splines (interpolating), or averages with a Gaussian (adaptive; DeForest 2004),"
    " which auto takes where the template's pixels are more than 1.5 times finer.",
)
@click.option(
    "--noise",
    type=click.Choice(["auto", "white", "measured"]),
    default="auto",
    show_default=True,
    help="Whether the template's own noise is correlated before: as its file says, else measured"
    " and used where it is significant (auto); always measured; or white.",
)
@click.option(
    "--register",
    is_flag=True,
    help="Take out smooth local distortions too, as far as the stars show any.",
)
@click.option(
    "--ignore-wcs",
    is_flag=True,
    help="Align by the stars alone, whatever the WCS of the two says.",
)
@input_options("template")
@click.option("--template-psf", metavar="FILE", help="PSF of the template  [default: its own].")
@click.option(
    "--memory",
    type=Size(),
    help="Memory to use, such as 500MB: planes that are large for that live in temporary files"
    " beside the output. The result is the same  [default: what the machine has].",
)
@click.option("--compress", is_flag=True, help="Compress the output without loss; slow.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@common_options
@limit_options
def align(**options: Any) -> None:
    """Resample a template onto the pixels of a science image, by their sky coordinates and stars.

    TEMPLATE and SCIENCE are FITS files; FILE[EXT] names an extension. A wrong WCS is corrected by
    the stars, and where there is none they are matched without it. Flux is kept. The output
    has the template's image, variance, mask and PSF on the new pixels, and how its noise is
    correlated by that, which whitediff subtract takes into account.
    """
    from ..runs.align import run_alignment

    with (
        limited_memory(options.pop("memory"), options["output"].absolute().parent),
        stages("Aligning", 3) as begin,
    ):
        run_alignment(**options, begin=begin)
