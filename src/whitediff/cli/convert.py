"""``whitediff convert``: an exposure of any format as one of another."""

from __future__ import annotations

import click

from ..runs.options import ConvertOptions
from .command import command

__all__ = ["convert"]


@command(
    ConvertOptions,
    short_help="Write an exposure in another format.",
    examples=("whitediff convert difference.fits -o difference.ccd.fits --format ccddata",),
)
@click.argument("file")
@click.argument("kernel", required=False)
def convert(options: ConvertOptions, file: str, kernel: str | None) -> None:
    """Read FILE, an image or difference of any format, and write it in another.

    A difference comes out at the level of the science image, with its kernel (of HOTPANTS or SFFT
    too, of which KERNEL is the table or the solution).
    """
    from ..runs.convert import run_conversion

    run_conversion(file, kernel, options)
