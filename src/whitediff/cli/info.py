"""``whitediff info``: what is this file?"""

from __future__ import annotations

from typing import Any

import click

from .console import INPUT_FILE, common_options, print_table
from .reading import limit_options

__all__ = ["info", "run_info"]


@click.command(short_help="Say what a file is and what is used of it.")
@click.argument("files", type=INPUT_FILE, nargs=-1, required=True, metavar="FILE...")
@click.option("--kernel", metavar="FILE", help="Kernel of a difference, where it is elsewhere.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@common_options
@limit_options
def info(**options: Any) -> None:
    """Say what each FILE is, by its content.

    Format, HDUs and what each is used for, shape, unit, mask planes and how many pixels they mark,
    variance and where it comes from, WCS, PSF, kernel and which image it convolved.
    """
    run_info(**options)


def run_info(*, files: tuple[str, ...], kernel: str | None = None, as_json: bool = False) -> None:
    """Describe files on standard output.

    Parameters
    ----------
    files, kernel, as_json
        Options of the command.
    """
    import logging

    from ..formats.describe import describe

    # What is said while reading is part of the description.
    logging.getLogger("whitediff.formats").propagate = True
    for handler in logging.getLogger("whitediff").handlers:
        handler.addFilter(lambda record: not record.name.startswith("whitediff.formats"))
    found = [describe(file, kernel=kernel) for file in files]
    if as_json:
        import json

        click.echo(json.dumps([one.to_dict() for one in found], indent=1, allow_nan=False))
        return
    for one in found:
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
