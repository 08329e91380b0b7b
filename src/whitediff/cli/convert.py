"""``whitediff convert``: write an exposure in another format."""

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

    A difference is written at the level of the science image, with its kernel. For a difference
    of HOTPANTS or SFFT, KERNEL is the table or the solution with the kernel.
    """
    from ..runs.convert import run_conversion

    run_conversion(file, kernel, options)
