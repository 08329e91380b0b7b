"""Run of ``whitediff convert``: write an exposure in another format."""

from __future__ import annotations

import logging

from .. import formats
from ..errors import ArgumentError
from ..formats.describe import product_extensions
from ..formats.record import history_cards
from ..formats.registry import writers
from ..reading import ReadingOptions, VarianceSource
from .inputs import read_psf
from .options import ConvertOptions
from .refusals import check_given
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
        File with the kernel, if the difference's file has none.
    options
        Options of ``whitediff convert``.

    Raises
    ------
    WhitediffError
        A subclass whose message names the file at fault.
    """
    output = options.output
    if output is None:
        raise ArgumentError("Nothing to write: give output.")
    check_given(options, file, kernel)
    with running(options.running, output):
        if kernel is None and options.variance is not None:
            reading = _reading(file, options.variance)
            found = formats.Difference(formats.read_exposure(file, options=reading))
        else:
            found = formats.read_any(file, kernel=kernel)
        exposure = found.exposure
        cards = dict(history_cards(file))
        if found.directions:
            cards["WDCONV"] = (found.convolved or "mixed", "exposure that was convolved")
        if found.is_foreign:
            cards["WDSOFTW"] = (found.software, "made the difference")
        if options.psf is not None:
            exposure.psf = read_psf(options.psf, exposure.bbox)
        write = writers()[options.format]
        said = write(
            exposure,
            output,
            overwrite=options.overwrite,
            provenance=cards,
            uncertainty=options.uncertainty,
            like=options.like,
        )
    log.info("%s: written.", output)
    for text in said:
        log.info("%s: %s", file, text)
    if left := product_extensions(file):
        log.info("%s: its %s stay behind.", file, ", ".join(left))


def _reading(file: str, variance: VarianceSource | float) -> ReadingOptions:
    try:
        return ReadingOptions(variance=variance)
    except ArgumentError as error:
        raise ArgumentError.of(file, f"its {error}") from error
