"""Detections, prepared for the table and the pictures of the report page."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table

from ..detection.catalog import SPOILING_FLAGS
from ..exposures.model import Exposure

__all__ = ["detection_rows", "edge_excess", "sky_grid"]

type Array = npt.NDArray[Any]

_COLUMNS = (
    ("id", 0), ("x", 2), ("y", 2), ("ra", 6), ("dec", 6), ("significance", 2), ("psf_flux", 3),
    ("psf_flux_err", 3), ("psf_mag", 3), ("psf_mag_err", 3), ("psf_chi2", 2),
    ("dipole_separation", 2),
)  # fmt: skip
"""Columns of the catalogue that the table shows, and their numbers of decimals."""
_SIGNIFICANT = 6
_POOR = ("dipole", "artifact")
_FEWEST = 5
"""Least number of detections for which fractions are given."""
_BORDER = 16
"""Width of the border, pixels: many false sources in it betray a lost level at the edges."""
_GRID = 17


def detection_rows(catalog: Table, *, listed: int, drawn: int) -> dict[str, Any]:
    """Detections of a catalogue, ready for JSON.

    Parameters
    ----------
    catalog
        Columns as from `whitediff.detection.exposures.detect`; only x and y must be there.
    listed
        Number of detections with all columns, the most significant first.
    drawn
        Number of detections with only position, significance and class.

    Returns
    -------
    section
        rows (listed detections), x, y, significance and class (drawn detections), columns,
        total, positive, negative, classes, threshold, dipole_fraction, extended_fraction,
        flagged_fraction, expected_false (None, for the caller to fill).
    """
    n = len(catalog)
    significance = _values(catalog, "significance")
    if significance is None:
        significance = np.full(n, np.nan)
    order = np.argsort(-np.nan_to_num(np.abs(significance)), kind="stable")
    classes = (
        [str(text) for text in catalog["classification"]]
        if "classification" in catalog.colnames
        else [""] * n
    )
    flags = [name for name in catalog.colnames if name.startswith("flag_")]
    columns = [(name, digits) for name, digits in _COLUMNS if name in catalog.colnames]
    values = {name: _values(catalog, name) for name, _ in columns}
    flag_values = {name: np.asarray(catalog[name], bool) for name in flags}
    rows = []
    for i in order[:listed]:
        row: dict[str, Any] = {name: _number(values[name][i], digits) for name, digits in columns}
        row.setdefault("id", int(i))
        row["class"] = classes[i]
        row["flags"] = [name.removeprefix("flag_") for name in flags if flag_values[name][i]]
        rows.append(row)
    spoiling = [name for name in SPOILING_FLAGS if name in flag_values]
    shown = order[:drawn]
    x, y = _values(catalog, "x"), _values(catalog, "y")
    names, counts = np.unique(classes, return_counts=True) if n else ((), ())
    poor = sum(text in _POOR for text in classes)
    known = any(classes)
    return {
        "rows": rows,
        "columns": [
            {
                "name": name,
                "unit": str(catalog[name].unit or ""),
                "description": str(catalog[name].info.description or ""),
            }
            for name, _ in columns
        ],
        "x": np.round(x[shown], 2),
        "y": np.round(y[shown], 2),
        "significance": np.round(significance[shown], 2),
        "class": [classes[i] for i in shown],
        "total": n,
        "positive": int((significance > 0).sum()),
        "negative": int((significance < 0).sum()),
        "classes": [[str(a), int(b)] for a, b in zip(names, counts, strict=True) if a],
        "threshold": _number(catalog.meta.get("threshold", 5.0), 3),
        "dipole_fraction": poor / n if n >= _FEWEST and known else None,
        "extended_fraction": (
            sum(text == "extended" for text in classes) / n if n >= _FEWEST and known else None
        ),
        "flagged_fraction": (
            float(np.mean(np.any([flag_values[name] for name in spoiling], axis=0)))
            if n >= _FEWEST and spoiling
            else None
        ),
        "expected_false": None,
    }


def edge_excess(x: Array, y: Array, shape: tuple[int, int]) -> tuple[float, float]:
    """Density of detections along the edges of a frame, over the density elsewhere.

    Parameters
    ----------
    x, y
        ``(n,)`` array coordinates of the detections.
    shape
        ``(ny, nx)``.

    Returns
    -------
    ratio, error
        Ratio for a border of 16 pixels, or an eighth of the shorter side if that is less; its
        Poisson error if the same number of detections were spread evenly.  NaN without any.
    """
    ny, nx = shape
    width = min(_BORDER, min(shape) / 8)
    near = np.minimum.reduce([x, y, nx - 1 - x, ny - 1 - y]) < width
    area = (ny - 2 * width) * (nx - 2 * width) / (ny * nx)
    inside, outside = max(1, int((~near).sum())), int(near.sum())
    if not len(x):
        return math.nan, math.nan
    expected = len(x) * (1 - area), len(x) * area
    error = math.sqrt(sum(1 / max(1.0, number) for number in expected))
    return outside / inside * area / (1 - area), error


def _values(table: Table, name: str) -> Any:
    if name not in table.colnames:
        return None
    column = table[name]
    return np.asarray(np.ma.filled(getattr(column, "value", column), np.nan), float)


def _number(value: Any, digits: int) -> float | int | None:
    number = float(getattr(value, "value", value))
    if not math.isfinite(number):
        return None
    if digits == 0:
        return int(number)
    size = math.floor(math.log10(abs(number))) + 1 if number else 0
    return round(number, max(digits, _SIGNIFICANT - size) if abs(number) < 1 else digits)


def sky_grid(exposure: Exposure) -> dict[str, object] | None:
    """Sky coordinates on a coarse grid, for interpolation on the page.

    Parameters
    ----------
    exposure
        Exposure.

    Returns
    -------
    grid
        ``n``: 17.  ``vectors``: ``(17, 17, 3)`` ICRS unit vectors, evenly spaced from the centre
        of the first pixel to the centre of the last, row by row from the smallest y.  None
        without a WCS, or if it gives no finite coordinates.
    """
    from astropy.wcs import WcsError

    # Vectors, since right ascension cannot be interpolated across 0° or near a pole.
    wcs = exposure.wcs
    if wcs is None:
        return None
    ny, nx = exposure.shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, _GRID), np.linspace(0, ny - 1, _GRID))
    try:
        sky = wcs.pixel_to_world(x, y).icrs
    except (ValueError, AttributeError, WcsError):
        return None
    vectors = np.stack([axis.value for axis in sky.cartesian.xyz], -1)
    if not np.isfinite(vectors).all():
        return None
    return {"n": _GRID, "vectors": np.round(vectors, 10)}
