"""Run of ``whitediff kernel``: write a kernel or PSF as plain images."""

from __future__ import annotations

import logging

from ..errors import ArgumentError
from ..formats.export import read_stamps, write_stamps
from .options import KernelOptions
from .refusals import check_given
from .running import running

__all__ = ["run_kernel"]

log = logging.getLogger("whitediff.runs")


def run_kernel(file: str, options: KernelOptions) -> None:
    """Read a kernel or PSF, evaluate it at positions and write it.

    Parameters
    ----------
    file
        File with a kernel or PSF.
    options
        Options of ``whitediff kernel``.

    Raises
    ------
    WhitediffError
        A subclass whose message names the file at fault.
    """
    output = options.output
    if output is None:
        raise ArgumentError("Nothing to write: give output.")
    check_given(options, file)
    if options.whole and options.at:
        raise ArgumentError.of(output, "--whole writes it for all positions; leave out --at.")
    with running(options.running):
        stamps, box = read_stamps(file, psf=options.psf, like=options.like)
        places = options.at or ((box.x.center, box.y.center),)
        for x, y in places:
            if not (box.x.start - 0.5 <= x <= box.x.stop - 0.5) or not (
                box.y.start - 0.5 <= y <= box.y.stop - 0.5
            ):
                raise ArgumentError.of(
                    file,
                    f"x = {x:g}, y = {y:g} is outside the image, whose pixels run from"
                    f" {box.x.start}, {box.y.start} to {box.x.stop - 1}, {box.y.stop - 1}.",
                )
        write_stamps(
            stamps,
            box,
            None if options.whole else places,
            output,
            overwrite=options.overwrite,
            source=file,
        )
    log.info("%s: written.", output)
