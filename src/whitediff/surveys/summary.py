"""Summary of a batch, as a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import QTable

from ..runs.numbers import NUMBERS
from .journal import Record

__all__ = ["summary_table"]

_NOISE = (
    "pixel_variance_ratio",
    "pixel_variance_ratio_error",
    "filtered_variance_ratio",
    "filtered_variance_ratio_error",
)
_UNITS = {"science_fwhm": u.pix, "template_fwhm": u.pix, "limiting_magnitude": u.mag}


def summary_table(records: Iterable[Record]) -> QTable:
    """Make a table of the results of a batch.

    Parameters
    ----------
    records
        Records of the items, in the order of the rows.

    Returns
    -------
    table
        One row per item: item, outcome, reason, files, seconds, CPU seconds, largest memory,
        number of warnings; and for each kind of product ``<kind>_kernel_sum``,
        ``<kind>_filtered_variance_ratio`` and so on.  NaN or empty if there is no value; numbers
        that no item has are left out.
    """
    rows = list(records)
    table = QTable()
    for name in ("item", "outcome", "reason", "science", "template"):
        table[name] = np.array([str(row.get(name, "")) for row in rows], dtype=str)
    table["seconds"] = _numbers([row.get("seconds", {}).get("total") for row in rows]) * u.s
    table["cpu_seconds"] = _numbers([row.get("cpu_seconds") for row in rows]) * u.s
    table["peak_memory"] = _numbers([row.get("memory", {}).get("peak") for row in rows]) * u.byte
    table["warnings"] = np.array([len(row.get("warnings", ())) for row in rows])
    for kind in ("difference", "score"):
        products = [row.get("products", {}).get(kind, {}) for row in rows]
        for name in NUMBERS.values():
            _add(table, f"{kind}_{name}", [p.get(name) for p in products], _UNITS.get(name))
        for name in _NOISE:
            _add(table, f"{kind}_{name}", [(p.get("noise") or {}).get(name) for p in products])
    return table


def _numbers(values: list[Any]) -> Any:
    return np.array([np.nan if value is None else float(value) for value in values])


def _add(table: QTable, name: str, values: list[Any], unit: Any = None) -> None:
    if all(value is None for value in values):
        return
    if any(isinstance(value, str) for value in values):
        table[name] = np.array(["" if value is None else value for value in values], dtype=str)
        return
    table[name] = _numbers(values) if unit is None else _numbers(values) * unit
