"""``whitediff check``: how white is it?"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import click

from ..outputs import together
from .console import INPUT_FILE, OUTPUT_FILE, PICTURE_FILE, common_options, log, print_table, stages
from .reading import limit_options

__all__ = ["check", "run_check"]

_DEFAULT_SIGMA = 1.8
_DEFAULT_CELLS = (3, 3)


class _Cells(click.ParamType):
    name = "cells"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int] | None:
        if isinstance(value, tuple) or str(value).lower() == "none":
            return value if isinstance(value, tuple) else None
        try:
            numbers = [int(part) for part in str(value).lower().split("x")]
        except ValueError:
            numbers = []
        if len(numbers) == 1:
            numbers *= 2
        if len(numbers) != 2 or min(numbers) < 1:
            self.fail(f"{value!r} is not N, ROWSxCOLUMNS or none.", param, ctx)
        return (numbers[0], numbers[1])


@click.command(short_help="Measure how white the noise of an image is.")
@click.argument("image", type=INPUT_FILE, metavar="OUT")
@click.option("--science", type=INPUT_FILE, metavar="S", help="Science image, to find sources on.")
@click.option("--template", type=INPUT_FILE, metavar="T", help="Template, to find sources on.")
@click.option(
    "--before",
    metavar="FILE",
    help="Difference before decorrelation"
    "  [default: the one that OUT was made from, if it still lies beside OUT].",
)
@click.option(
    "--sigma",
    type=float,
    help="Filter with a Gaussian of this width in pixels, not"
    f" with the file's PSF  [default without a PSF: {_DEFAULT_SIGMA}].",
)
@click.option(
    "--map",
    "cells",
    type=_Cells(),
    metavar="ROWSxCOLUMNS",
    default="{}x{}".format(*_DEFAULT_CELLS),
    show_default=True,
    help="Measure also each cell of such a grid over the frame; N for N rows and columns, none"
    " for no map.",
)
@click.option("--json", "json_path", type=OUTPUT_FILE, help="Write the numbers to this file.")
@click.option("--plot", type=PICTURE_FILE, help="Draw a picture (PNG) to this file.")
@click.option("--overwrite", is_flag=True, help="Replace these files if they exist.")
@common_options
@limit_options
def check(**options: Any) -> None:
    """Measure how white the noise of OUT is, on source-free pixels.

    Compares the variance of the pixels with the variance plane, measures their
    autocorrelation, and filters them with the PSF: detection sees the variance ratio of
    the filtered image, which is 1 for white noise.  A map gives both ratios over the frame,
    the top row that with the largest y, as in the picture.

    A score image is correlated by design: of that only mean and variance of S/sqrt(V) are
    measured, which are 0 and 1 where its variance plane tells the truth.
    """
    options["image_path"] = options.pop("image")
    run_check(**options)


@together()
def run_check(
    *,
    image_path: str,
    science: str | None = None,
    template: str | None = None,
    before: str | None = None,
    sigma: float | None = None,
    cells: tuple[int, int] | None = _DEFAULT_CELLS,
    json_path: Path | None = None,
    plot: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure, print, and write what was asked for.

    Parameters
    ----------
    image_path, science, template, before, sigma, cells, json_path, plot, overwrite
        Options of the command; cells are the rows and columns of the map.

    Returns
    -------
    values
        What the JSON file holds.
    """
    import numpy as np

    from .. import formats
    from ..diagnostics.measure import (
        MINIMUM_CELL,
        gaussian_filter,
        score_noise,
        score_noise_map,
        whiteness,
        whiteness_with_map,
    )
    from ..errors import ArgumentError, DataError
    from ..exposures import masks
    from ..outputs import check_output
    from ..sources import detect_sources

    for output in (json_path, plot):
        if output is not None:
            check_output(output, overwrite=overwrite)
    with stages("Checking", 4) as begin:
        begin("reading")
        exposure = formats.read_exposure(image_path)
        box = exposure.bbox
        score = _is_score(image_path)
        if sigma is not None and score:
            raise ArgumentError(
                f"{image_path}: is a score image, which is filtered already; leave out --sigma."
            )
        if sigma is not None and 10 * sigma > min(exposure.shape):
            raise ArgumentError(
                f"{image_path}: --sigma {sigma:g} is too wide for {exposure.shape[0]} x"
                f" {exposure.shape[1]} pixels; a tenth of the smaller side is the most."
            )
        if cells == _DEFAULT_CELLS:
            # What nobody asked for may not fail on a small image.
            rows, columns = (
                max(1, min(n, size // MINIMUM_CELL))
                for n, size in zip(cells, exposure.shape, strict=True)
            )
            cells = (rows, columns)
        local_psf: Any = None
        if sigma is not None:
            psf, description = gaussian_filter(sigma), f"Gaussian of sigma {sigma:g} pixels"
        elif exposure.psf is not None:
            try:
                psf = exposure.psf.at(x=box.x.center, y=box.y.center)
            except ArgumentError as error:
                raise ArgumentError(f"{image_path}: {error}") from error
            description = "the file's PSF"
            local_psf = _local_psf(exposure.psf)
        else:
            psf = gaussian_filter(_DEFAULT_SIGMA)
            description = f"Gaussian of sigma {_DEFAULT_SIGMA} pixels"
            if not score:
                log.info("%s: has no PSF; filtered with a %s.", image_path, description)

        begin("sources")
        bad = masks.flagged(
            exposure.mask, (*masks.DEFAULT_IGNORE_MASK_PLANES, masks.CONTAMINATED, "SUSPECT")
        )
        sources, how = np.zeros_like(bad), ""
        if science is not None or template is not None:
            for path in (science, template):
                if path is None:
                    continue
                other = formats.read_exposure(path, needs_variance=False)
                if other.shape != exposure.shape:
                    raise ArgumentError(
                        f"{path}: has the shape {other.shape}, but {image_path} {exposure.shape}."
                    )
                untrusted = masks.flagged(other.mask, masks.UNTRUSTED_MASK_PLANES)
                try:
                    sources |= detect_sources(other.data, untrusted)
                except DataError as error:
                    raise DataError(f"{path}: {error}") from error
            how = "found on " + " and ".join(p for p in (science, template) if p is not None)
        elif masks.find_plane(exposure.mask, masks.SOURCE) is not None:
            sources = masks.flagged(exposure.mask, [masks.SOURCE])
            how = "from the mask plane SOURCE"
        else:
            how = "unknown"
            log.warning(
                "%s: neither --science nor --template is given, and it has no mask plane SOURCE,"
                " so the residuals of sources count as noise.",
                image_path,
            )
        good = ~(bad | sources)
        begin("measuring")
        image, variance = exposure.data, exposure.variance
        earlier = _before(image_path, before, exposure.shape)
        measured = [(image_path, image, good)]
        if earlier is not None:
            # The same pixels and the same plane: what changes is the image alone.
            old_image = earlier.data
            measured.append((str(earlier.source), old_image, good & np.isfinite(old_image)))
        results: list[Any] = []
        drawn: list[Any] = []
        maps: list[Any] = []
        grid: dict[str, Any] = {"cells": cells, "origin": exposure.origin}
        for path, pixels, use in measured:
            try:
                if score:
                    results.append(score_noise(pixels, variance, use))
                    if cells is not None:
                        maps.append(score_noise_map(pixels, variance, use, results[-1], **grid))
                if not score and cells is not None:
                    frame, by_cell = whiteness_with_map(
                        pixels, variance, use, psf, local_psf=local_psf, **grid
                    )
                    drawn.append(frame)
                    maps.append(by_cell)
                elif not score or plot is not None:
                    drawn.append(whiteness(pixels, variance, use, psf))
            except ArgumentError as error:
                raise ArgumentError(f"{path}: {error}") from error
            except DataError as error:
                raise DataError(f"{path}: {error}") from error
        results = results or drawn
        after, old = results[0], results[1] if len(results) > 1 else None
        after_map, old_map = (*maps, None, None)[:2]
        if plot is not None:
            from ..diagnostics.plots import plot_whiteness

            begin("drawing")
            plot_whiteness(
                plot,
                after=image,
                variance=variance,
                good=good & np.isfinite(image) & np.isfinite(variance) & (variance > 0),
                whiteness=drawn[0],
                before=None if earlier is None else measured[1][1],
                before_good=None if earlier is None else measured[1][2],
                before_whiteness=None if earlier is None else drawn[1],
                score_noise=after if score else None,
                before_score_noise=old if score else None,
                variance_map=after_map,
                before_variance_map=old_map,
                title=Path(image_path).name,
            )
    values: dict[str, Any] = {
        "file": image_path,
        "kind": "score" if score else "difference",
        "filter": None if score else description,
        "sources": how,
        "after": after.to_dict(),
        "before": None if old is None else old.to_dict(),
        "map": None
        if after_map is None
        else {
            "after": after_map.to_dict(),
            "before": None if old_map is None else old_map.to_dict(),
        },
    }
    if json_path is not None:
        import json

        from ..outputs import replacing

        with replacing(json_path, overwrite=overwrite) as temporary:
            temporary.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
    if score:
        title = f"{image_path}: noise of a score, which is correlated by design"
        _print(title, _SCORE_ROWS, after, old)
    else:
        _print(f"{image_path}: whiteness (filter: {description})", _ROWS, after, old)
    if after_map is not None:
        quantities = _SCORE_MAP_ROWS if score else _MAP_ROWS
        _print_map(quantities, after_map, old_map, elsewhere=bool(json_path or plot))
    for output in (json_path, plot):
        if output is not None:
            log.info("%s: written.", output)
    return values


def _local_psf(psf: Any) -> Any:
    """PSF of a place as a function of x and y; None where one image says it all."""
    from ..errors import ArgumentError
    from ..exposures.psf import KernelPointSpreadFunction

    if isinstance(psf, KernelPointSpreadFunction) and psf.kernel.is_constant:
        return None

    def local(x: float, y: float) -> Any:
        try:
            return psf.at(x=x, y=y)
        except ArgumentError as error:
            log.info("%s", error)
            return None

    return local


def _is_score(image_path: str) -> bool:
    from ..formats.files import opened, split_extension

    with opened(split_extension(image_path)[0]) as hdus:
        return hdus[0].header.get("WDSCORE") is True


def _before(image_path: str, before: str | None, shape: tuple[int, int]) -> Any:
    """Difference that the image was made from, if it can be found."""
    from .. import formats
    from ..errors import ArgumentError, WhitediffError
    from ..formats.files import opened, split_extension
    from ..formats.headers import unescaped
    from ..formats.limits import leads_to

    if before is None:
        out = split_extension(image_path)[0]
        with opened(out) as hdus:
            recorded = hdus[0].header.get("WDDIFF")
        if not isinstance(recorded, str):
            return None
        found, is_elsewhere = leads_to(unescaped(recorded), out)
        if found is None:
            if is_elsewhere:
                log.info(
                    "%s: the difference that it was made from does not lie beside it; name it with"
                    " --before, or allow the paths in headers (--follow-paths).",
                    image_path,
                )
            return None
        try:
            exposure = formats.read_exposure(found, needs_variance=False)
        except WhitediffError as error:
            log.info("%s", error)
            return None
        return exposure if exposure.shape == shape else None
    exposure = formats.read_exposure(before, needs_variance=False)
    if exposure.shape != shape:
        raise ArgumentError(
            f"{before}: has the shape {exposure.shape}, but {image_path} has {shape}."
        )
    return exposure


_VALUE, _MEASURED, _LAGS = "value", "value with its error", "values at lags"
_ROWS = (
    ("source-free pixels", _VALUE, "pixels"),
    ("pixel variance", _VALUE, "pixel_variance"),
    ("variance plane", _VALUE, "variance_plane"),
    ("variance of D/sqrt(V)", _MEASURED, "pixel_variance_ratio"),
    ("PSF-filtered variance ratio", _MEASURED, "filtered_variance_ratio"),
    ("neighbour covariance", _MEASURED, "neighbour_covariance"),
    ("correlation, x, lags 1-5", _LAGS, "correlation_x"),
    ("correlation, y, lags 1-5", _LAGS, "correlation_y"),
    ("correlation, diagonal, lags 1-5", _LAGS, "correlation_diagonal"),
    ("correlation, antidiagonal, lags 1-5", _LAGS, "correlation_antidiagonal"),
)
_SCORE_ROWS = (
    ("source-free pixels", _VALUE, "pixels"),
    ("independent pixels", _VALUE, "independent_pixels"),
    ("pixel variance", _VALUE, "pixel_variance"),
    ("variance plane", _VALUE, "variance_plane"),
    ("variance of S/sqrt(V)", _MEASURED, "pixel_variance_ratio"),
    ("mean of S/sqrt(V)", _MEASURED, "significance_mean"),
)


def _print(title: str, rows: tuple[tuple[str, str, str], ...], after: Any, before: Any) -> None:
    results = [result for result in (before, after) if result is not None]
    headings = ["after"] if before is None else ["before", "after"]

    def cell(result: Any, kind: str, name: str) -> str:
        value = getattr(result, name)
        if kind == _LAGS:
            return " ".join(f"{c:+.3f}" for c in value)
        if kind == _MEASURED:
            return f"{value:.4f} ± {getattr(result, f'{name}_error'):.4f}"
        return format(value, "d" if isinstance(value, int) else ".6g")

    print_table(
        title,
        ["", *headings],
        [[label, *(cell(result, kind, name) for result in results)] for label, kind, name in rows],
    )


_PLAIN_COLUMNS, _CHANGE_COLUMNS, _MOST_ROWS = 5, 3, 20
"""How large a map reads well as a table, of one value and of two to a cell."""
_SUSPICIOUS = 4.0
"""Errors from 1: hundreds of cells of white noise have none that is so far off."""
_MAP_ROWS = (
    ("variance of D/sqrt(V)", "pixel_variance_ratio"),
    ("PSF-filtered variance ratio", "filtered_variance_ratio"),
)
_SCORE_MAP_ROWS = (("variance of S/sqrt(V)", "pixel_variance_ratio"),)


def _print_map(
    quantities: tuple[tuple[str, str], ...], after: Any, before: Any, *, elsewhere: bool
) -> None:
    """Print what was measured cell by cell, if it reads well as a table."""
    rows, columns = after.pixels.shape
    if columns > _PLAIN_COLUMNS or rows > _MOST_ROWS:
        hint = "" if elsewhere else "; write it with --json or draw it with --plot"
        log.info("A map of %d x %d cells is too large for a table%s.", rows, columns, hint)
        return
    if columns > _CHANGE_COLUMNS:
        before = None
    y, x = (
        [f"{start}..{end - 1}" for start, end in itertools.pairwise(edges.tolist())]
        for edges in (after.y_edges, after.x_edges)
    )
    for label, name in quantities:
        values = getattr(after, name).tolist()
        errors = getattr(after, f"{name}_error").tolist()
        old = None if before is None else getattr(before, name).tolist()
        known = sorted(error for row in errors for error in row if error == error)
        title = f"{label} over the frame{'' if old is None else ', before -> after'}"
        if known:
            title += f"; median error {known[len(known) // 2]:.4f}"
        table = []
        # The top row of the table is that of the picture.
        for i in reversed(range(rows)):
            table.append([y[i]])
            for j in range(columns):
                text = f"{_ratio(values[i][j])} "
                if abs(values[i][j] - 1) > _SUSPICIOUS * errors[i][j]:
                    text = f"{text[:-1]}*"
                table[-1].append(text if old is None else f"{_ratio(old[i][j])} -> {text}")
        if any(text.endswith("*") for row in table for text in row):
            title += f"; *: more than {_SUSPICIOUS:g} errors from 1"
        print_table(title, ["y \\ x", *x], table)


def _ratio(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"
