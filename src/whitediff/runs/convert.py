"""An exposure of any format in, the same in another out."""

from __future__ import annotations

import logging
from pathlib import Path

from .. import formats
from ..errors import ArgumentError, missing_extra
from ..exposures.model import Exposure
from ..formats import ccddata
from ..formats.describe import product_extensions
from ..formats.record import history_cards
from ..outputs import check_output
from .inputs import read_psf
from .options import ConvertOptions
from .running import running

__all__ = ["run_conversion"]

log = logging.getLogger("whitediff.runs")


def run_conversion(file: str, kernel: str | None, options: ConvertOptions) -> None:
    """Read an exposure and write it in another format.

    Parameters
    ----------
    file
        Image or difference of any format.
    kernel
        File of its kernel, where that is elsewhere.
    options
        Options of ``whitediff convert``.

    Raises
    ------
    WhitediffError
        One of its kinds, whose message names the file at fault.
    """
    output, kind = options.output, options.format
    if output is None:
        raise ArgumentError("Nothing to write: give output.")
    check_output(output, overwrite=options.overwrite, inputs=(file, kernel))
    with running(options.running, output):
        if kernel is None and options.variance is not None:
            found = formats.Difference(formats.read_exposure(file, variance=options.variance))
        else:
            found = formats.read_any(file, kernel=kernel)
        exposure = found.exposure
        cards = dict(history_cards(file))
        if found.directions:
            cards["WDCONV"] = (found.convolved or "mixed", "exposure that was convolved")
        if found.software not in (None, "whitediff"):
            cards["WDSOFTW"] = (found.software, "made the difference")
        if options.psf is not None:
            exposure.psf = read_psf(options.psf, exposure.bbox)
        if kind == "whitediff":
            formats.write_exposure(
                exposure, output, overwrite=options.overwrite, provenance=cards
            )
        elif kind == "ccddata":
            ccddata.write(
                exposure,
                output,
                uncertainty=options.uncertainty,
                overwrite=options.overwrite,
                provenance=cards,
            )
        else:
            _write_object(exposure, output, options)
    log.info("%s: written.", output)
    if kind == "ccddata" and exposure.unit is None:
        log.info("%s: tells no unit of its pixels, which CCDData must have: adu is written.", file)
    if left := product_extensions(file):
        log.info("%s: its %s stay behind.", file, ", ".join(left))


def _write_object(exposure: Exposure, output: Path, options: ConvertOptions) -> None:
    """Write an object of lsst.images, where that is installed."""
    try:
        from ..formats.archive.objects import write_object
    except ModuleNotFoundError as error:
        raise missing_extra(f"{output}: a {options.format}", error, "rubin") from error
    write_object(
        exposure,
        output,
        options.format,  # type: ignore[arg-type]
        like=options.like,
        overwrite=options.overwrite,
    )
