"""A template file in, the same on another image's pixels out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import __version__, formats
from ..exposures.alignment import aligned
from ..exposures.resampling import Resampled, ResamplingOptions, turned
from ..outputs import check_output
from ..reading import reading_options
from .inputs import read_input

__all__ = ["run_alignment"]

log = logging.getLogger("whitediff.runs")


def _silent(stage: str) -> None:
    """Take no note of a stage."""


def run_alignment(
    *,
    template: str,
    science: str,
    output: Path,
    method: Any = "auto",
    noise: Any = "auto",
    register: bool = False,
    ignore_wcs: bool = False,
    template_psf: str | None = None,
    compress: bool = False,
    overwrite: bool = False,
    begin: Callable[[str], None] = _silent,
    **reading: Any,
) -> None:
    """Read, resample and write.

    Parameters
    ----------
    template, science, output, method, noise, register, ignore_wcs, template_psf, compress, \
    overwrite
        Options of the command.
    begin
        Called with the name of each stage.
    **reading
        How the template is read: ``template_gain`` and so on, as `whitediff.reading` declares them.
    """
    check_output(output, overwrite=overwrite, inputs=(template, science))
    options = ResamplingOptions(
        method=method, noise=noise, positions="distortions" if register else "stars"
    )
    how_read = reading_options(reading, template=template)
    begin("reading")
    grid = formats.read_exposure(science, needs_variance=False)
    exposure = read_input(template, how_read["template"])
    if template_psf is not None:
        exposure.psf = formats.read_psf(template_psf, bounds=exposure.bbox)
    begin("resampling")
    result = aligned(grid, exposure, options, use_wcs=not ignore_wcs)
    begin("writing")
    formats.write_exposure(
        result.exposure,
        output,
        overwrite=overwrite,
        compress=compress,
        provenance={
            "WDTASK": ("align", "made by"),
            "WDVERS": (__version__, "version of whitediff"),
            "WDTMPL": (template, "template"),
            "WDSCI": (science, "image whose pixels these are"),
            "WDTPSFIN": (template_psf, "PSF of the template image from"),
            "WDALIGN": (result.method, "how the template was resampled"),
            "WDALAREA": (result.pixel_area, "area of a pixel over one of the template"),
            "WDALROT": (result.rotation, "rotation of the template's grid, degrees"),
            "WDALERR": (result.map_error, "error of the positions, template pixels"),
            "WDTFRAC": (result.covered, "of the pixels that the template covers"),
        },
    )
    _describe(output, template, science, result)
    if result.exposure.psf is None:
        log.info("%s: no PSF is known, so the output has none.", output)


def _describe(output: Path, template: str, science: str, result: Resampled) -> None:
    """Say what was made."""
    how = "placed by whole pixels on"
    if result.method is not None:
        rotation = turned(result.rotation, result.exposure.shape, "turned")
        how = f"resampled ({result.method}), {rotation}, onto"
    log.info(
        "%s: %s, %s %s; positions to %.2g pixels; it covers %.1f%%.",
        output,
        template,
        how,
        science,
        result.map_error,
        100 * result.covered,
    )
