"""``whitediff check``: measure how white the noise of an image is."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Any

import click

from ..runs.options import CheckOptions
from .command import command
from .console import print_table

if TYPE_CHECKING:
    from ..runs.check import Checked

__all__ = ["check", "print_checked"]

log = logging.getLogger("whitediff.cli")


@command(
    CheckOptions,
    short_help="Measure how white the noise of an image is.",
    examples=(
        "whitediff check difference.fits",
        "whitediff check other.fits --science science.fits --template template.fits --plot c.png",
    ),
)
@click.argument("image", metavar="OUT")
def check(options: CheckOptions, image: str) -> None:
    """Measure how white the noise of OUT is, on source-free pixels.

    Compares the variance of the pixels with the variance plane, measures their
    autocorrelation, and filters them with the PSF: detection thresholds rely on the variance
    ratio of the filtered image, which is 1 for white noise.  A map gives both ratios over the
    frame; its top row has the largest y, as in the picture.

    A score image is correlated by design: only mean and variance of S/sqrt(V) are measured, which
    are 0 and 1 if its variance plane is right.
    """
    from ..runs.check import run_check

    checked = run_check(image, options)
    if options.json is None or str(options.json) != "-":
        print_checked(checked, elsewhere=bool(options.json or options.plot))


def print_checked(checked: Checked, *, elsewhere: bool) -> None:
    """Print the noise of an image as tables.

    Parameters
    ----------
    checked
        Measured noise.
    elsewhere
        Whether a file has the measurement too.
    """
    name, after, before = checked.name, checked.after, checked.before
    if checked.is_score:
        title = f"{name}: noise of a score, which is correlated by design"
        _print(title, _SCORE_ROWS, after, before)
    else:
        _print(f"{name}: whiteness (filter: {checked.filter})", _ROWS, after, before)
    if checked.map is not None:
        quantities = _SCORE_MAP_ROWS if checked.is_score else _MAP_ROWS
        _print_map(quantities, checked.map, checked.before_map, elsewhere=elsewhere)


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
"""Most columns of a map printed with one value per cell, and with two; most rows."""
_SUSPICIOUS = 4.0
"""Errors from 1 that mark a cell: among hundreds of cells of white noise none is so far off."""
_MAP_ROWS = (
    ("variance of D/sqrt(V)", "pixel_variance_ratio"),
    ("PSF-filtered variance ratio", "filtered_variance_ratio"),
)
_SCORE_MAP_ROWS = (("variance of S/sqrt(V)", "pixel_variance_ratio"),)


def _print_map(
    quantities: tuple[tuple[str, str], ...], after: Any, before: Any, *, elsewhere: bool
) -> None:
    """Print the noise cell by cell, if the map is small enough for a table."""
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
        # The top row of the table is the top row of the picture.
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
