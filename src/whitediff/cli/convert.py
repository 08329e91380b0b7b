"""``whitediff convert``: an exposure of any format as one of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import INPUT_FILE, OUTPUT_FILE, Number, common_options, log
from .reading import limit_options

__all__ = ["convert", "run_convert"]

_FORMATS = ("whitediff", "ccddata", "masked-image", "visit-image", "difference-image")


@click.command(short_help="Write an exposure in another format.")
@click.argument("file", type=INPUT_FILE)
@click.argument("kernel", type=INPUT_FILE, required=False)
@click.option("--output", required=True, type=OUTPUT_FILE, help="File to write.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(_FORMATS),
    default="whitediff",
    show_default=True,
    help="whitediff's own; astropy's CCDData; or an object of lsst.images.",
)
@click.option(
    "--uncertainty",
    type=click.Choice(["variance", "sigma", "weight"]),
    default="variance",
    show_default=True,
    help="Kind of uncertainty of a CCDData.",
)
@click.option(
    "--like",
    type=INPUT_FILE,
    metavar="VISIT",
    help="Visit image of lsst.images that detector, band and the like are taken from.",
)
@click.option(
    "--variance", type=Number(), help="Variance, or a file (KIND:FILE), if FILE has none."
)
@click.option("--psf", metavar="FILE", help="PSF, if FILE has none.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@common_options
@limit_options
def convert(**options: Any) -> None:
    """Read FILE, an image or difference of any format, and write it in another.

    A difference comes out at the level of the science image, with its kernel (of HOTPANTS or SFFT
    too, of which KERNEL is the table or the solution).
    """
    run_convert(**options)


def run_convert(
    *,
    file: str,
    output: Path,
    kernel: str | None = None,
    kind: str = "whitediff",
    uncertainty: Any = "variance",
    like: str | None = None,
    variance: float | str | None = None,
    psf: str | None = None,
    overwrite: bool = False,
) -> None:
    """Read and write.

    Parameters
    ----------
    file, output, kernel, kind, uncertainty, like, variance, psf, overwrite
        Options of the command.
    """
    from .. import formats
    from ..formats import ccddata
    from ..formats.archive.objects import write_object
    from ..formats.describe import product_extensions
    from ..formats.record import history_cards
    from ..outputs import check_output

    check_output(output, overwrite=overwrite, inputs=(file, kernel))
    if kernel is None and variance is not None:
        source = formats.VarianceSource.parse(variance) if isinstance(variance, str) else variance
        found = formats.Difference(formats.read_exposure(file, variance=source))
    else:
        found = formats.read_any(file, kernel=kernel)
    exposure = found.exposure
    cards = dict(history_cards(file))
    if found.directions:
        cards["WDCONV"] = (found.convolved or "mixed", "exposure that was convolved")
    if found.software not in (None, "whitediff"):
        cards["WDSOFTW"] = (found.software, "made the difference")
    if psf is not None:
        exposure.psf = formats.read_psf(psf, bounds=exposure.bbox)
    if kind == "whitediff":
        formats.write_exposure(exposure, output, overwrite=overwrite, provenance=cards)
    elif kind == "ccddata":
        ccddata.write(
            exposure, output, uncertainty=uncertainty, overwrite=overwrite, provenance=cards
        )
    else:
        write_object(exposure, output, kind, like=like, overwrite=overwrite)  # type: ignore[arg-type]
    log.info("%s: written.", output)
    if kind == "ccddata" and exposure.unit is None:
        log.info("%s: tells no unit of its pixels, which CCDData must have: adu is written.", file)
    if left := product_extensions(file):
        log.info("%s: its %s stay behind.", file, ", ".join(left))
