"""Run of ``whitediff detect``: a catalogue of the sources on a difference."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Callable

import numpy as np
from astropy.table import Table

from ..detection.catalog import headline
from ..detection.exposures import DetectionOptions, detect, forced_photometry
from ..errors import ArgumentError, UsageError
from ..exposures.model import Exposure
from ..formats.catalogs import read_catalog, write_catalog, write_regions
from ..formats.record import given_zero_point, is_score, score_depth
from ..noise.exposures import without_sentinels
from ..progress import stages
from ..reading import ReadingOptions
from .inputs import name_of, path_of, read_image, read_psf
from .options import DetectOptions, MeasureOptions
from .refusals import check_given
from .running import running

__all__ = ["read_positions", "run_detection", "run_measurement"]

log = logging.getLogger("whitediff.runs")


def run_detection(difference: object, options: DetectOptions) -> Table:
    """Read a difference, find its sources, measure them and write a catalogue.

    Parameters
    ----------
    difference
        File, or an object that `whitediff.runs.inputs.read_image` takes.
    options
        Options of ``whitediff detect``; without an output nothing is written.

    Returns
    -------
    catalogue
        Columns as from `whitediff.detection.exposures.detect`, or from `run_measurement` for
        given positions.

    Raises
    ------
    WhitediffError
        A subclass whose message names the file at fault.
    """
    if options.at is not None:
        if options.score is not None:
            raise UsageError("--score finds sources, --at takes given ones: give one of them.")
        return run_measurement(difference, options.at, options.measure)
    check_given(options, difference)
    measure = options.measure
    with running(measure.running), stages("Detecting", 3) as begin:
        begin("reading")
        exposure, how = _difference(difference, measure)
        score = None if options.score is None else _score(options.score)
        begin("measuring")
        how = dataclasses.replace(
            how,
            threshold=options.threshold,
            sign=options.sign,
            significance=options.significance,
        )
        catalog = detect(exposure, score, how)
        if score is not None:
            catalog.meta["score"] = name_of(options.score, "score")
            _take_depth(catalog, options.score)
        _finish(catalog, exposure, measure, begin)
    return catalog


def run_measurement(difference: object, at: object, options: MeasureOptions) -> Table:
    """Measure a difference at given positions, whether or not a source is there.

    Parameters
    ----------
    difference
        File, or an object that `whitediff.runs.inputs.read_image` takes.
    at
        Table with positions (x and y, or ra and dec), or its file.
    options
        Options of the measurement; without an output nothing is written.

    Returns
    -------
    catalogue
        Columns as from `whitediff.detection.exposures.forced_photometry`.

    Raises
    ------
    WhitediffError
        A subclass whose message names the file at fault.
    """
    check_given(options, difference, at if isinstance(at, str) else ())
    with running(options.running), stages("Measuring", 3) as begin:
        begin("reading")
        positions = read_positions(at)
        exposure, how = _difference(difference, options)
        begin("measuring")
        catalog = forced_photometry(exposure, positions, how)
        catalog.meta["positions"] = path_of(at) or "table"
        _finish(catalog, exposure, options, begin)
    return catalog


def read_positions(given: object) -> Table:
    """Table of positions or sources, from a file or from memory.

    Parameters
    ----------
    given
        File, or anything that `astropy.table.Table` takes.

    Returns
    -------
    table
        Table.

    Raises
    ------
    ArgumentError
        If it cannot be made a table.
    """
    if isinstance(given, str | os.PathLike):
        return read_catalog(os.fspath(given))
    if isinstance(given, Table):
        return given
    try:
        return Table(given)
    except (ValueError, TypeError) as error:
        raise ArgumentError(
            f"the table of positions: is {type(given).__name__}, and no table; give a file, an"
            " astropy Table, or columns by their names."
        ) from error


def _finish(
    catalog: Table, exposure: Exposure, options: MeasureOptions, begin: Callable[[str], None]
) -> None:
    """Write the catalogue and the regions, if asked for."""
    catalog.meta["image"] = str(exposure.source)
    begin("writing")
    if options.output is not None:
        write_catalog(catalog, options.output, options.overwrite)
    if options.regions is not None:
        write_regions(catalog, options.regions, options.overwrite)
    log.info("%s: %s", options.output or exposure.source, headline(catalog))


def _difference(given: object, options: MeasureOptions) -> tuple[Exposure, DetectionOptions]:
    """Difference, and the options of its measurement."""
    name = name_of(given, "difference")
    variance = options.variance
    if isinstance(variance, float) and not 0 < variance < math.inf:
        raise ArgumentError.of(
            name, f"--variance must be a positive number or a file; got {variance:g}."
        )
    reading = ReadingOptions(variance=variance, mask=options.mask, mask_bits=options.mask_bits)
    exposure = read_image(given, "difference", reading)
    if _is_score(given, exposure):
        raise ArgumentError.of(
            name,
            "is a score, on which fluxes cannot be measured; name the difference of the"
            " same images, and the score with --score.",
        )
    if isinstance(variance, float):
        # A given number replaces even a variance plane in the file.
        exposure = exposure.replaced(variance=np.full(exposure.shape, variance, np.float32))
    if options.psf is not None:
        exposure.psf = read_psf(options.psf, exposure.bbox)
    zero_point = options.zero_point
    if zero_point is None and path_of(given) is not None:
        zero_point = given_zero_point(str(path_of(given)))
    how = DetectionOptions(aperture_radius=options.aperture_radius, zero_point=zero_point)
    return without_sentinels(exposure), how


def _score(given: object) -> Exposure:
    exposure = read_image(given, "score", needs_variance=True)
    if not _is_score(given, exposure):
        raise ArgumentError.of(
            exposure.source, "is no score of whitediff; name what subtract --score-output wrote."
        )
    return exposure


def _is_score(given: object, exposure: Exposure) -> bool:
    """Whether an image is a score, or its file says so."""
    path = path_of(given)
    is_file = isinstance(given, str | os.PathLike)
    return exposure.is_score or (is_file and path is not None and is_score(path))


def _take_depth(catalog: Table, score: object) -> None:
    """Give a catalogue the depth of the score that its sources were found on."""
    path = path_of(score)
    flux = None if path is None else score_depth(path)
    if flux is None:
        return
    catalog.meta |= {"depth": flux, "depth_of": "score"}
    if "zero_point" in catalog.meta:
        catalog.meta["depth_mag"] = catalog.meta["zero_point"] - 2.5 * math.log10(flux)
