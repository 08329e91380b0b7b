"""``whitediff decorrelate-stack``: whiten a difference of stacks made elsewhere."""

from __future__ import annotations

import click

from ..runs.options import DecorrelateStackOptions
from .command import command

__all__ = ["decorrelate_stack"]


@command(
    DecorrelateStackOptions,
    name="decorrelate-stack",
    short_help="Whiten the noise of a difference of stacks.",
    examples=(
        "whitediff decorrelate-stack diff.fits --science s1.fits k1.fits --science s2.fits k2.fits"
        " --template t.fits - -o white.fits",
    ),
)
@click.argument("difference")
def decorrelate_stack(options: DecorrelateStackOptions, difference: str) -> None:
    """Whiten a difference of stacks, and give it a variance, mask and PSF to match.

    DIFFERENCE is science stack - template stack. Each image of the two stacks was convolved with
    a kernel of its own, or with none; one of the stacks, as a whole, was convolved with the kernel
    --kernel. All are FITS files; FILE[EXT] names an extension.
    """
    from ..runs.decorrelate_stack import run_stack_decorrelation

    run_stack_decorrelation(difference, options)
