"""``whitediff detect``: a catalogue of the sources on a difference."""

from __future__ import annotations

import click

from ..runs.options import DetectOptions
from .command import command

__all__ = ["detect"]


@command(
    DetectOptions,
    short_help="Find and measure the sources on a difference.",
    examples=(
        "whitediff detect difference.fits -o sources.ecsv",
        "whitediff detect difference.fits --score score.fits -o sources.fits --regions sources.reg",
        "whitediff detect difference.fits --at known.csv -o forced.ecsv",
    ),
)
@click.argument("difference")
def detect(options: DetectOptions, difference: str) -> None:
    """Find the sources on DIFFERENCE, whose noise is white, and measure them.

    Sources of both signs: positions with errors, PSF and aperture fluxes, shapes, dipoles, flags
    of the mask planes around them; sky coordinates and magnitudes if the header allows.
    """
    from ..runs.detect import run_detection

    run_detection(difference, options)
