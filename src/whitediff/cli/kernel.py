"""``whitediff kernel``: a kernel or PSF as plain images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import INPUT_FILE, OUTPUT_FILE, common_options, log
from .reading import limit_options

__all__ = ["kernel", "run_kernel"]


@click.command(short_help="Write a kernel or PSF at positions as plain images.")
@click.argument("file", type=INPUT_FILE)
@click.option(
    "--at",
    "positions",
    type=(float, float),
    multiple=True,
    metavar="X Y",
    help="Pixel coordinates (the first pixel is 0 0); may be repeated  [default: the middle].",
)
@click.option("--psf", is_flag=True, help="The PSF instead of the matching kernel.")
@click.option(
    "--like",
    type=INPUT_FILE,
    metavar="IMAGE",
    help="Image that the kernel or PSF belongs to, for files that do not say its shape.",
)
@click.option("--whole", is_flag=True, help="Write basis images and coefficients instead.")
@click.option("--output", required=True, type=OUTPUT_FILE, help="File to write.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@common_options
@limit_options
def kernel(**options: Any) -> None:
    """Evaluate the kernel of FILE at positions and write it as plain images.

    FILE is a difference of whitediff, HOTPANTS or lsst.images, a solution of SFFT, a file with an
    image or a cube and coefficients; with --psf anything with a PSF, a model of PSFEx or Piff
    included.

    With one position the image is in the primary HDU; with more, in extensions KERNEL,1, KERNEL,2,
    … Cards XPOS and YPOS hold the position, XCENTER and YCENTER the pixel that is the origin.
    """
    run_kernel(**options)


def run_kernel(
    *,
    file: str,
    output: Path,
    positions: tuple[tuple[float, float], ...] = (),
    psf: bool = False,
    like: str | None = None,
    whole: bool = False,
    overwrite: bool = False,
) -> None:
    """Read, evaluate and write.

    Parameters
    ----------
    file, output, positions, psf, like, whole, overwrite
        Options of the command.
    """
    from ..errors import ArgumentError
    from ..formats.export import read_stamps, write_stamps
    from ..outputs import check_output

    check_output(output, overwrite=overwrite, inputs=(file,))
    if whole and positions:
        raise ArgumentError(f"{output}: --whole writes it for all positions; leave out --at.")
    stamps, box = read_stamps(file, psf=psf, like=like)
    places = positions or ((box.x.center, box.y.center),)
    for x, y in places:
        if not (box.x.start - 0.5 <= x <= box.x.stop - 0.5) or not (
            box.y.start - 0.5 <= y <= box.y.stop - 0.5
        ):
            raise ArgumentError(
                f"{file}: x = {x:g}, y = {y:g} is outside the image, whose pixels run from"
                f" {box.x.start}, {box.y.start} to {box.x.stop - 1}, {box.y.stop - 1}."
            )
    write_stamps(stamps, box, None if whole else places, output, overwrite=overwrite, source=file)
    log.info("%s: written.", output)
