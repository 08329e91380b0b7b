"""``whitediff inject``: add point sources of known flux to an image."""

from __future__ import annotations

import click

from ..runs.options import InjectOptions
from .command import command

__all__ = ["inject"]


@command(
    InjectOptions,
    short_help="Add point sources of known flux to an image.",
    examples=(
        "whitediff inject science.fits --random 100 -o injected.fits --truth truth.ecsv",
        "whitediff inject science.fits --sources table.csv -o injected.fits",
    ),
)
@click.argument("science")
def inject(options: InjectOptions, science: str) -> None:
    """Add point sources of known flux and position to SCIENCE.

    The sources come from a table, or are random, away from masked pixels and from each other.
    Each is the image's own PSF at its position, shifted by fractions of a pixel. The mask stays
    as it is, and without --photon-noise the variance plane too.
    """
    from ..runs.inject import run_injection

    run_injection(science, options)
