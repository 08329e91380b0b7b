"""``whitediff report``: a web page on which to judge a difference."""

from __future__ import annotations

import click

from ..runs.options import ReportOptions
from .command import command

__all__ = ["report"]


@command(
    ReportOptions,
    short_help="Show on a web page whether a difference can be trusted.",
    examples=("whitediff report difference.fits -o report.html",),
)
@click.argument("image", metavar="OUT")
def report(options: ReportOptions, image: str) -> None:
    """Write a page that shows OUT and says whether it can be trusted.

    OUT is a difference or score that whitediff made. The page is one file that needs no
    network: images to zoom into, kernel and PSF over the field, whiteness, variance, the stars
    of the kernel's fit and their residuals, detections, times and warnings, with a verdict on
    top.
    """
    from ..runs.report import run_report

    run_report(image, options)
