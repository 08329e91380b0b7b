"""``whitediff report``: a page on which to judge a difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import INPUT_FILE, PAGE_FILE, common_options, log, stages
from .reading import limit_options

__all__ = ["report", "run_report"]

_BEYOND = 30
"""Pixels beyond the frame at which a catalogue of it may have a source."""


@click.command(short_help="Show on a web page whether a difference can be trusted.")
@click.argument("image", type=INPUT_FILE, metavar="OUT")
@click.option(
    "--science",
    type=INPUT_FILE,
    metavar="S",
    help="Science image  [default: the one that OUT was made from, by its header, if it lies beside"
    " OUT].",
)
@click.option("--template", type=INPUT_FILE, metavar="T", help="Template  [default: likewise].")
@click.option("--score", metavar="FILE", help="Score of the same images, to show beside OUT.")
@click.option(
    "--catalog",
    metavar="FILE",
    help="Detections on OUT  [default: they are detected, as by whitediff detect].",
)
@click.option("--output", type=PAGE_FILE, required=True, help="Page (HTML) to write.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@common_options
@limit_options
def report(**options: Any) -> None:
    """Write a page that shows OUT and says whether it can be trusted.

    OUT is a difference or score that whitediff made. The page is one file that needs no
    network: images to zoom into, kernel and PSF over the field, whiteness, variance, the stars
    that the kernel was fitted to and what is left of them, detections, times and warnings, with
    a verdict on top.
    """
    options["image_path"] = options.pop("image")
    run_report(**options)


def run_report(
    *,
    image_path: str,
    output: Path,
    science: str | None = None,
    template: str | None = None,
    score: str | None = None,
    catalog: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Read, measure and write the page.

    Parameters
    ----------
    image_path, output, science, template, score, catalog, overwrite
        Options of the command.

    Returns
    -------
    data
        `whitediff.diagnostics.report.report_data`.
    """
    from .. import formats
    from ..diagnostics.report import ReportInput, write_report
    from ..extras import check_pillow
    from ..formats.record import read_record
    from ..outputs import check_output

    check_output(output, overwrite=overwrite)
    check_pillow()
    record = read_record(image_path)
    paths = {
        name: _input(name, keyword, given, image_path, record)
        for name, keyword, given in (
            ("science", "WDSCI", science),
            ("template", "WDTMPL", template),
        )
    }
    with stages("Reporting", 4) as begin:
        begin("reading")
        product = formats.read_exposure(image_path)
        notes: list[str] = []
        inputs: dict[str, Any] = {
            name: None if path is None else _read_image(path) for name, path in paths.items()
        }
        if None in paths.values():
            notes.append(
                "The header does not name one science image and one template; they can be given"
                " with --science and --template."
            )
        _check_shape(inputs["science"], product, image_path)
        made = ReportInput(
            name=image_path,
            product=product,
            is_score=record.is_score,
            header=record.header,
            solution=_solution(image_path, record, product),
            science=inputs["science"],
            template=inputs["template"],
            score=None if score is None else _read_score(score, product, image_path, record),
            stars=record.stars,
            log=record.log,
            notes=notes,
        )
        begin("detecting")
        made.catalog = _catalog(catalog, made)
        made.files = {
            what: name
            for what, name in (
                ("score" if record.is_score else "difference", image_path),
                ("science image", paths["science"]),
                ("template", paths["template"]),
                ("score", score),
                ("catalogue", catalog),
            )
            if name is not None
        }
        begin("measuring")
        data = write_report(output, made, overwrite=overwrite)
        begin("done")
    found = data["verdict"]
    log.info("%s: %s (%s).", output, found["headline"], found["text"].rstrip("."))
    return data


def _input(name: str, keyword: str, given: str | None, image_path: str, record: Any) -> str | None:
    """File of an input: the given one, or where the header says, or beside the output."""
    from ..errors import FileFormatError
    from ..formats.files import split_extension
    from ..formats.limits import leads_to

    if given is not None:
        return given
    recorded = record.name(keyword)
    if recorded is None:
        return None
    found, is_elsewhere = leads_to(recorded, split_extension(image_path)[0])
    if found is not None:
        return str(found)
    raise FileFormatError(
        f"{image_path}: was made from the {name} {recorded}, which is not"
        + (
            f" beside it; name it with --{name}, or allow the paths in headers (--follow-paths)."
            if is_elsewhere
            else f" there any more; name it with --{name}."
        )
    )


def _read_image(path: str) -> Any:
    from .. import formats
    from ..exposures.noise import without_sentinels

    return without_sentinels(formats.read_exposure(path, needs_variance=False))


def _check_shape(science: Any, product: Any, image_path: str) -> None:
    from ..errors import ArgumentError

    if science is not None and science.bbox != product.bbox:
        raise ArgumentError(
            f"{science.source}: its pixels {science.bbox} are not those of {image_path},"
            f" {product.bbox}; name the science image that it was made from."
        )


def _solution(image_path: str, record: Any, product: Any) -> Any:
    """What the product was made with; of a decorrelated difference as far as it says."""
    from .. import formats
    from ..exposures.solution import Solution

    if record.header["WDTASK"] == "subtract":
        return formats.read_solution(image_path)
    convolved = record.header.get("WDCONV")
    if product.kernel is None or convolved not in ("template", "science"):
        return None
    background = 0.0 if product.background is None else product.background
    return Solution.of_kernel(product.kernel, background=background, convolved=convolved)


def _read_score(path: str, product: Any, image_path: str, record: Any) -> Any:
    from .. import formats
    from ..errors import ArgumentError
    from ..formats.record import read_record

    if record.is_score:
        raise ArgumentError(f"{image_path}: is a score itself; leave out --score.")
    if not read_record(path).is_score:
        raise ArgumentError(
            f"{path}: is a difference, not a score; name what subtract --score-output wrote."
        )
    score = formats.read_exposure(path)
    if score.bbox != product.bbox:
        raise ArgumentError(
            f"{path}: its pixels {score.bbox} are not those of {image_path}, {product.bbox};"
            " is it of the same images?"
        )
    return score


def _catalog(path: str | None, made: Any) -> Any:
    """Detections: read, or made."""
    from ..errors import WhitediffError
    from ..exposures.detection import DetectionOptions, detect

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


def _read_catalog(path: str, made: Any) -> Any:
    import numpy as np

    from ..errors import ArgumentError
    from ..formats.catalogs import read_catalog

    table = read_catalog(path)
    missing = [name for name in ("x", "y") if name not in table.colnames]
    if missing:
        raise ArgumentError(
            f"{path}: has no column {' and '.join(missing)}; a catalogue of whitediff detect has."
        )
    x, y = (
        np.asarray(getattr(table[name], "value", table[name]), dtype=float) for name in ("x", "y")
    )
    box = made.product.bbox
    # What is cut by an edge may be centred beyond it.
    outside = (np.abs(x - box.x.center) > box.x.size / 2 + _BEYOND) | (
        np.abs(y - box.y.center) > box.y.size / 2 + _BEYOND
    )
    if outside.any():
        raise ArgumentError(
            f"{path}: {int(outside.sum())} of {len(table)} detections are not on the pixels"
            f" {box} of {made.name}; is the catalogue of another image?"
        )
    return table
