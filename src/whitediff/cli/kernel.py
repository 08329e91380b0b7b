"""``whitediff kernel``: write a kernel or PSF as plain images."""

from __future__ import annotations

import click

from ..runs.options import KernelOptions
from .command import command

__all__ = ["kernel"]


@command(
    KernelOptions,
    short_help="Write a kernel or PSF at positions as plain images.",
    examples=("whitediff kernel difference.fits --at 100 200 -o kernel.fits",),
)
@click.argument("file")
def kernel(options: KernelOptions, file: str) -> None:
    """Evaluate the kernel of FILE at positions and write it as plain images.

    FILE is a difference of whitediff, HOTPANTS or lsst.images, a solution of SFFT, or a file with
    an image or a cube and coefficients; with --psf any file with a PSF, also a model of PSFEx or
    Piff.

    With one position the image is in the primary HDU; with more, in extensions KERNEL,1, KERNEL,2,
    … Cards XPOS and YPOS hold the position, XCENTER and YCENTER the pixel of the origin.
    """
    from ..runs.kernel import run_kernel

    run_kernel(file, options)
