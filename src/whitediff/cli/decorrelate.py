"""``whitediff decorrelate``: whiten a difference made elsewhere."""

from __future__ import annotations

import dataclasses

import click

from ..runs.options import DecorrelateOptions
from .command import command, given
from .detectors import each_detector, hdu_option

__all__ = ["decorrelate"]


@command(
    DecorrelateOptions,
    short_help="Whiten the noise of a difference image.",
    examples=(
        "whitediff decorrelate science.fits template.fits diff.fits kernel.fits -o white.fits",
        "whitediff decorrelate science.fits template.fits hotpants.fits -o white.fits",
    ),
)
@click.argument("science")
@click.argument("template")
@click.argument("difference")
@click.argument("kernel", required=False)
@hdu_option
def decorrelate(options: DecorrelateOptions, *, hdus: tuple[str, ...], **files: str | None) -> None:
    """Whiten a difference image, and give it a variance, mask and PSF to match.

    SCIENCE and TEMPLATE are the images before any convolution; DIFFERENCE was made from them with
    the matching kernel KERNEL. A difference that carries its kernel, such as one of HOTPANTS
    (-hki), needs no KERNEL; for SFFT it is the solution. All are FITS files or addresses of FITS
    files; FILE[EXT] names an extension.
    """
    if options.transform == "documented" and not given(click.get_current_context(), ["fill"]):
        # The documented transform can only fill with the mean.
        whitening = dataclasses.replace(options.whitening, fill="mean")
        options = dataclasses.replace(options, whitening=whitening)
    each_detector(_run, options, hdus, files=files)


def _run(
    options: DecorrelateOptions,
    science: str,
    template: str,
    difference: str,
    kernel: str | None,
) -> None:
    from ..runs.decorrelate import run_decorrelation

    run_decorrelation(science, template, difference, kernel, options)
