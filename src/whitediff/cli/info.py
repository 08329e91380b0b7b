"""``whitediff info``: describe files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..runs.options import InfoOptions
from .command import command
from .console import print_table

if TYPE_CHECKING:
    from ..formats.describe import Description

__all__ = ["info"]


@command(
    InfoOptions,
    short_help="Say what a file is and how it is used.",
    examples=("whitediff info science.fits", "whitediff info *.fits --json info.json"),
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
def info(options: InfoOptions, files: tuple[str, ...]) -> None:
    """Describe each FILE by its content.

    Format, HDUs and the use of each, shape, unit, mask planes and the number of pixels that they
    mark, variance and its origin, WCS, PSF, kernel and the image that it convolved.
    """
    from ..runs.info import run_description

    found = run_description(files, options)
    if options.json is None:
        for one in found:
            _print(one)


def _print(one: Description) -> None:
    rows = [
        (str(hdu.index), f"{hdu.name},{hdu.version}" if hdu.version > 1 else hdu.name or "-",
         hdu.content, hdu.role or "-")
        for hdu in one.hdus
    ]  # fmt: skip
    print_table(one.path, ("HDU", "name", "content", "used as"), rows)
    width = max(len(key) for key in one.facts)
    for key, value in one.facts.items():
        click.echo(f"  {key:{width}}  {value}")
    for note in one.notes:
        click.echo(f"  {'note':{width}}  {note}")
    click.echo()
