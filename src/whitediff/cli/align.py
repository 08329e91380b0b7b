"""``whitediff align``: resample a template to the science image's pixels."""

from __future__ import annotations

import click

from ..runs.options import AlignOptions
from .command import Option, command

__all__ = ["align"]


@command(
    AlignOptions,
    short_help="Resample a template onto the science image's pixels.",
    examples=("whitediff align template.fits --to science.fits -o aligned.fits",),
)
@click.argument("template")
@click.option(
    "--to",
    "science",
    required=True,
    metavar="SCIENCE",
    help="Image whose pixel grid the template is resampled to.",
    group="Inputs",
    cls=Option,
)
def align(options: AlignOptions, template: str, science: str) -> None:
    """Resample a template onto the pixels of a science image, by their sky coordinates and stars.

    TEMPLATE and SCIENCE are FITS files; FILE[EXT] names an extension. A wrong WCS is corrected by
    the stars; without a WCS the stars alone align the images. Flux is kept. The output has the
    template's image, variance, mask and PSF on the new pixels, and the correlation of its noise,
    which whitediff subtract takes into account.
    """
    from ..runs.align import run_alignment

    run_alignment(template, science, options)
