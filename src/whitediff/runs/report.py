"""Run of ``whitediff report``: a web page on which a difference is judged."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from astropy.table import Table

from .. import formats
from ..detection.exposures import DetectionOptions, detect
from ..diagnostics.report import ReportInput, write_report
from ..errors import ArgumentError, FileFormatError, WhitediffError
from ..exposures.model import Exposure
from ..formats.files import split_extension
from ..formats.limits import leads_to
from ..formats.record import Record, read_record
from ..noise.exposures import without_sentinels
from ..progress import stages
from ..subtraction.solution import Solution
from .detect import read_positions
from .inputs import name_of, path_of, read_image
from .options import ReportOptions
from .refusals import check_given
from .running import running

__all__ = ["report_on", "run_report"]

log = logging.getLogger("whitediff.runs")

_BEYOND = 30
"""Pixels beyond the frame up to which sources of its catalogue are accepted."""


def run_report(image: str, options: ReportOptions) -> dict[str, Any]:
    """Read a difference, measure it and write the page.

    Parameters
    ----------
    image
        File with a difference or score that whitediff made.
    options
        Options of ``whitediff report``.

    Returns
    -------
    data
        Result of `whitediff.diagnostics.report.report_data`.

    Raises
    ------
    WhitediffError
        A subclass whose message names the file at fault.
    """
    if options.output is None:
        raise ArgumentError("Nothing to write: give output.")
    check_given(options, image)
    with running(options.running), stages("Reporting", 4) as begin:
        begin("reading")
        record = read_record(image)
        given = {
            name: _input(name, keyword, one, image, record)
            for name, keyword, one in (
                ("science", "WDSCI", options.science),
                ("template", "WDTMPL", options.template),
            )
        }
        product = formats.read_exposure(image)
        inputs = {
            name: None if one is None else _read_image(one, name) for name, one in given.items()
        }
        _check_shape(inputs["science"], product, image)
        made = ReportInput(
            name=image,
            product=product,
            is_score=record.is_score,
            header=record.header,
            solution=_solution(image, record, product),
            science=inputs["science"],
            template=inputs["template"],
            score=None
            if options.score is None
            else _read_score(options.score, product, image, record),
            stars=record.stars,
            log=record.log,
        )
        begin("detecting")
        made.catalog = _catalog(options.catalog, made)
        files = {"science image": given["science"], "template": given["template"]}
        files |= {"score": options.score, "catalogue": options.catalog}
        made.files = {"score" if record.is_score else "difference": image} | {
            what: path for what, one in files.items() if (path := path_of(one)) is not None
        }
        begin("measuring")
        return report_on(made, options)


def report_on(made: ReportInput, options: ReportOptions) -> dict[str, Any]:
    """Write the page of a difference or score.

    Parameters
    ----------
    made
        Everything that the page is made from.
    options
        Options of ``whitediff report``; only output and overwrite are used.

    Returns
    -------
    data
        Result of `whitediff.diagnostics.report.report_data`.
    """
    assert options.output is not None
    if made.science is None or made.template is None:
        made.notes.append(
            "The header does not name one science image and one template; they can be given with"
            " --science and --template."
        )
    data = write_report(options.output, made, overwrite=options.overwrite)
    found = data["verdict"]
    log.info("%s: %s (%s).", options.output, found["headline"], found["text"].rstrip("."))
    return data


def _input(name: str, keyword: str, given: object, image: str, record: Record) -> object:
    """Input image: the given one, else the file that the header names; None if neither is known."""
    if given is not None:
        return given
    recorded = record.name(keyword)
    if recorded is None:
        return None
    found, is_elsewhere = leads_to(recorded, split_extension(image)[0])
    if found is not None:
        return str(found)
    raise FileFormatError.of(
        image,
        f"was made from the {name} {recorded}, which is not"
        + (
            f" beside it; name it with --{name}, or allow the paths in headers (--follow-paths)."
            if is_elsewhere
            else f" there any more; name it with --{name}."
        ),
    )


def _read_image(given: object, role: str) -> Exposure:
    return without_sentinels(read_image(given, role))


def _check_shape(science: Exposure | None, product: Exposure, image: str) -> None:
    if science is not None and science.bbox != product.bbox:
        raise ArgumentError.of(
            science.source,
            f"its pixels {science.bbox} are not those of {image},"
            f" {product.bbox}; name the science image that it was made from.",
        )


def _solution(image: str, record: Record, product: Exposure) -> Solution | None:
    """Solution of the product; for a decorrelated difference from its kernel, or None."""
    if record.header["WDTASK"] == "subtract":
        return formats.read_solution(image)
    convolved = record.header.get("WDCONV")
    if product.kernel is None or convolved not in ("template", "science"):
        return None
    background = 0.0 if product.background is None else product.background
    return Solution.of_kernel(product.kernel, background=background, convolved=convolved)


def _read_score(path: object, product: Exposure, image: str, record: Record) -> Exposure:
    if record.is_score:
        raise ArgumentError.of(image, "is a score itself; leave out --score.")
    score = read_image(path, "score", needs_variance=True)
    if not score.is_score:
        raise ArgumentError.of(
            score.source, "is a difference, not a score; name what subtract --score-output wrote."
        )
    if score.bbox != product.bbox:
        raise ArgumentError.of(
            score.source,
            f"its pixels {score.bbox} are not those of {image}, {product.bbox};"
            " is it of the same images?",
        )
    return score


def _catalog(path: object, made: ReportInput) -> Table | None:
    """Detections: read if given, else made; None if not possible."""
    if path is not None:
        return _read_catalog(path, made)
    if made.is_score or made.product.psf is None:
        if not made.is_score:
            made.notes.append("The difference has no PSF, so nothing is detected on it.")
        return None
    try:
        options = DetectionOptions(zero_point=made.header.get("WDZERO"))
        return detect(made.product, made.score, options)
    except WhitediffError as error:
        made.notes.append(f"Nothing is detected: {error}")
        return None


def _read_catalog(given: object, made: ReportInput) -> Table:
    path, table = name_of(given, "catalogue"), read_positions(given)
    missing = [name for name in ("x", "y") if name not in table.colnames]
    if missing:
        raise ArgumentError.of(
            path, f"has no column {' and '.join(missing)}; a catalogue of whitediff detect has."
        )
    x, y = (
        np.asarray(getattr(table[name], "value", table[name]), dtype=float) for name in ("x", "y")
    )
    box = made.product.bbox
    # The centre of a source that an edge cuts may lie beyond the edge.
    outside = (np.abs(x - box.x.center) > box.x.size / 2 + _BEYOND) | (
        np.abs(y - box.y.center) > box.y.size / 2 + _BEYOND
    )
    if outside.any():
        raise ArgumentError.of(
            path,
            f"{int(outside.sum())} of {len(table)} detections are not on the pixels"
            f" {box} of {made.name}; is the catalogue of another image?",
        )
    return table
