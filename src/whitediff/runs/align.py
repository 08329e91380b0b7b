"""Run of ``whitediff align``: resample a template to another image's pixels."""

from __future__ import annotations

import logging

from .. import __version__, formats
from ..alignment.exposures import aligned
from ..alignment.resampling import Resampled, ResamplingOptions, turned
from ..progress import stages
from .inputs import name_of, path_of, read_image, read_input, read_psf
from .options import AlignOptions
from .refusals import check_given
from .running import running

__all__ = ["run_alignment"]

log = logging.getLogger("whitediff.runs")


def run_alignment(template: object, science: object, options: AlignOptions) -> Resampled:
    """Read a template, resample it and write it.

    Parameters
    ----------
    template
        File, or an object that `whitediff.runs.inputs.read_image` takes.
    science
        Image whose pixel grid the template is resampled to; same types as template.
    options
        Options of ``whitediff align``; without an output nothing is written.

    Returns
    -------
    result
        Resampled template, its method and its accuracy.

    Raises
    ------
    WhitediffError
        A subclass whose message names the file at fault.
    """
    names = path_of(template), path_of(science)
    check_given(options, template, science)
    how = ResamplingOptions(
        method=options.method,
        noise=options.noise,
        positions="distortions" if options.register else "stars",
    )
    with running(options.running, options.output), stages("Aligning", 3) as begin:
        begin("reading")
        grid = read_image(science, "science image")
        exposure = read_input(template, options.template, "template")
        if options.template_psf is not None:
            exposure.psf = read_psf(options.template_psf, exposure.bbox, "template PSF")
        begin("resampling")
        result = aligned(grid, exposure, how, use_wcs=not options.ignore_wcs)
        begin("writing")
        if options.output is not None:
            formats.write_exposure(
                result.exposure,
                options.output,
                overwrite=options.overwrite,
                compress=options.compress,
                provenance={
                    "WDTASK": ("align", "made by"),
                    "WDVERS": (__version__, "version of whitediff"),
                    "WDTMPL": (names[0], "template"),
                    "WDSCI": (names[1], "image whose pixels these are"),
                    "WDTPSFIN": (_named(options.template_psf), "PSF of the template image from"),
                    "WDALIGN": (result.method, "how the template was resampled"),
                    "WDALAREA": (result.pixel_area, "area of a pixel over one of the template"),
                    "WDALROT": (result.rotation, "rotation of the template's grid, degrees"),
                    "WDALERR": (result.map_error, "error of the positions, template pixels"),
                    "WDTFRAC": (result.covered, "of the pixels that the template covers"),
                },
            )
    output = options.output or name_of(template, "template")
    _describe(str(output), exposure.source, grid.source, result)
    if result.exposure.psf is None:
        log.info("%s: no PSF is known, so the output has none.", output)
    return result


def _named(given: object) -> str | None:
    return None if given is None else path_of(given)


def _describe(output: str, template: str | None, science: str | None, result: Resampled) -> None:
    """Log the method and the accuracy."""
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
