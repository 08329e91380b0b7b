"""``whitediff detect``: a catalogue of the sources on a difference."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from ..outputs import together
from .console import CATALOG_FILE, INPUT_FILE, OUTPUT_FILE, Number, common_options, log, stages
from .reading import limit_options

__all__ = ["detect", "run_detection"]


@click.command(short_help="Find and measure the sources on a difference.")
@click.argument("difference", type=INPUT_FILE)
@click.option(
    "--output",
    required=True,
    type=CATALOG_FILE,
    help="Catalogue to write: ECSV, FITS table or Parquet by its name.",
)
@click.option(
    "--score",
    metavar="FILE",
    help="Score of the same images, to find the sources on; they are measured on DIFFERENCE.",
)
@click.option(
    "--at",
    type=INPUT_FILE,
    metavar="CATALOG",
    help="Measure at the positions of this table (x, y or ra, dec; ECSV, CSV, FITS or Parquet),"
    " whether or not anything is there, instead of finding sources.",
)
@click.option(
    "--threshold",
    type=float,
    default=5.0,
    show_default=True,
    help="Least significance of a source, standard deviations.",
)
@click.option(
    "--significance",
    type=click.Choice(["auto", "plane"]),
    default="auto",
    show_default=True,
    help="What the threshold applies to: significances over their measured width between the"
    " sources, where that departs from 1 (auto), or as the variance plane tells (plane).",
)
@click.option(
    "--sign",
    type=click.Choice(["both", "positive", "negative"]),
    default="both",
    show_default=True,
    help="Sources that are brighter on the science image (positive), fainter, or both.",
)
@click.option(
    "--aperture-radius",
    type=float,
    help="Pixels  [default: 1.5 full widths at half maximum of the PSF].",
)
@click.option(
    "--zero-point",
    type=float,
    help="Magnitude of a flux of 1  [default: that of subtract, else the header's, such as"
    " MAGZERO].",
)
@click.option("--regions", type=OUTPUT_FILE, help="Write the sources as regions for DS9, too.")
@click.option("--psf", metavar="FILE", help="PSF of the difference  [default: its own].")
@click.option(
    "--variance",
    type=Number(),
    help="Variance of the difference: a number, or a file with its plane (KIND:FILE for KIND"
    " sigma or weight)  [default: its own plane].",
)
@click.option("--mask", metavar="FILE", help="Mask of the difference  [default: its own].")
@click.option(
    "--mask-bits",
    help="Bits of the mask that make a pixel bad, from 0, such as 1,4-6  [default: those of its"
    " instrument, else all].",
)
@click.option("--overwrite", is_flag=True, help="Replace the outputs if they exist.")
@common_options
@limit_options
def detect(**options: Any) -> None:
    """Find the sources on DIFFERENCE, whose noise is white, and measure them.

    Sources of both signs: positions with errors, PSF and aperture fluxes, shapes, dipoles, flags
    of the mask planes around them, sky coordinates and magnitudes where the header tells.
    """
    run_detection(**options)


@together()
def run_detection(
    *,
    difference: str,
    output: Path,
    score: str | None = None,
    at: str | None = None,
    threshold: float = 5.0,
    significance: Any = "auto",
    sign: Any = "both",
    aperture_radius: float | None = None,
    zero_point: float | None = None,
    regions: Path | None = None,
    psf: str | None = None,
    variance: float | str | None = None,
    mask: str | None = None,
    mask_bits: str | None = None,
    overwrite: bool = False,
) -> Any:
    """Read, find, measure and write.

    Parameters
    ----------
    difference, output, score, at, threshold, significance, sign, aperture_radius, zero_point, \
    regions, psf, variance, mask, mask_bits, overwrite
        Options of the command.

    Returns
    -------
    catalogue
        What was written.
    """
    from .. import formats
    from ..errors import ArgumentError
    from ..exposures.catalog import headline
    from ..exposures.detection import DetectionOptions, forced_photometry
    from ..exposures.detection import detect as detected
    from ..formats.catalogs import (
        read_catalog,
        write_catalog,
        write_regions,
    )
    from ..formats.record import given_zero_point
    from ..outputs import check_output
    from ..paths import check_catalog_path

    if at is not None and score is not None:
        raise click.UsageError("--score finds sources, --at takes given ones: give one of them.")
    check_catalog_path(output)
    for path in (output, regions):
        if path is not None:
            check_output(path, overwrite=overwrite)
    if regions is not None and regions.resolve() == output.resolve():
        raise ArgumentError(f"{output}: two outputs cannot be the same file.")
    options = DetectionOptions(
        threshold=threshold,
        sign=sign,
        aperture_radius=aperture_radius,
        zero_point=zero_point,
        significance=significance,
    )
    with stages("Detecting", 3) as begin:
        begin("reading")
        positions = None if at is None else read_catalog(at)
        exposure = _difference(difference, variance, mask, mask_bits)
        if psf is not None:
            exposure.psf = formats.read_psf(psf, bounds=exposure.bbox)
        found_on = None if score is None else _score(score)
        if zero_point is None:
            options = dataclasses.replace(options, zero_point=given_zero_point(difference))
        begin("measuring")
        if positions is None:
            catalog = detected(exposure, found_on, options)
        else:
            catalog = forced_photometry(exposure, positions, options)
            catalog.meta["positions"] = str(at)
        catalog.meta["image"] = difference
        if score is not None:
            catalog.meta["score"] = score
            _take_depth(catalog, score)
        begin("writing")
        write_catalog(catalog, output, overwrite)
        if regions is not None:
            write_regions(catalog, regions, overwrite)
    log.info("%s: %s", output, headline(catalog))
    return catalog


def _difference(
    path: str, variance: float | str | None, mask: str | None, mask_bits: str | None
) -> Any:
    import numpy as np

    from .. import formats
    from ..errors import ArgumentError
    from ..exposures.noise import without_sentinels
    from ..formats.record import is_score

    if isinstance(variance, float) and not 0 < variance < float("inf"):
        raise ArgumentError(
            f"{path}: --variance must be a positive number or a file; got {variance:g}."
        )
    exposure = formats.read_exposure(
        path,
        variance=(
            formats.VarianceSource.parse(variance) if isinstance(variance, str) else variance
        ),
        mask=mask,
        mask_bits=mask_bits,
        needs_variance=False,
    )
    if is_score(path):
        raise ArgumentError(
            f"{path}: is a score, on which fluxes cannot be measured; name the difference of the"
            " same images, and the score with --score."
        )
    if isinstance(variance, float):
        # Also in place of a plane that the file has.
        exposure = exposure.replaced(variance=np.full(exposure.shape, variance, np.float32))
    return without_sentinels(exposure)


def _take_depth(catalog: Any, score: str) -> None:
    """Give a catalogue the depth of the score that its sources were found on."""
    import math

    from ..formats.record import score_depth

    flux = score_depth(score)
    if flux is None:
        return
    catalog.meta |= {"depth": flux, "depth_of": "score"}
    if "zero_point" in catalog.meta:
        catalog.meta["depth_mag"] = catalog.meta["zero_point"] - 2.5 * math.log10(flux)


def _score(path: str) -> Any:
    from .. import formats
    from ..errors import ArgumentError
    from ..formats.record import is_score

    if not is_score(path):
        raise ArgumentError(
            f"{path}: is no score of whitediff; name what subtract --score-output wrote."
        )
    return formats.read_exposure(path)
