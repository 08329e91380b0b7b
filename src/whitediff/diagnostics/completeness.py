"""Completeness, purity, bias and pull, from the realisations of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import astropy.table
import numpy as np
import numpy.typing as npt
import scipy

from ..evaluation.completeness import (
    binned_completeness,
    fit_completeness,
    ideal_completeness,
    ideal_peak_completeness,
    mean_and_width,
)
from ..evaluation.exposures import EvaluationOptions, Realisation

__all__ = ["all_sources", "summarise"]

type Array = npt.NDArray[Any]

_BIN = 0.5
_COMPLETE = 3.0
"""Signal-to-noise above the threshold from which selection loses only 1 source in 1000."""
_IDEAL_STEP, _DRAWN_STEP = 0.1, 0.25
"""Signal-to-noise steps of the ideal curve, and of the points at which noise is drawn.  Cubic
interpolation between the points is off by less than a thousandth."""
_IDEAL_SEED = 20160


def all_sources(realisations: Sequence[Realisation]) -> astropy.table.QTable:
    """Sources of all realisations in one table.

    Parameters
    ----------
    realisations
        At least one.

    Returns
    -------
    sources
        Rows of `Realisation.sources`, with the realisation's number in a first column.
    """
    tables = []
    for realisation in sorted(realisations, key=lambda each: each.number):
        table = realisation.sources.copy()
        numbers = np.full(len(table), realisation.number)
        table.add_column(numbers, name="realisation", index=0)
        tables.append(table)
    return astropy.table.vstack(tables, metadata_conflicts="silent")


def summarise(
    realisations: Sequence[Realisation], options: EvaluationOptions, *, fresh: bool
) -> dict[str, Any]:
    """Numbers of an evaluation.

    Parameters
    ----------
    realisations
        Finished realisations; at least one.
    options
        Options of the evaluation, including the injected sources.
    fresh
        Each realisation had a pair of its own.  Else all share one pair, and its false
        detections count once.

    Returns
    -------
    numbers
        JSON-ready; docs/evaluation.md describes them.
    """
    table = all_sources(realisations)
    columns = {name: _plain(table[name]) for name in table.colnames}
    clear = columns["clear"].astype(bool)
    first = min(realisations, key=lambda each: each.number)
    curve = _ideal_curve(options, first)
    return {
        "injected": len(clear),
        "clear": int(clear.sum()),
        "match_radius": first.match_radius,
        "sensitivity": mean_and_width(
            (columns["signal_to_noise"] / columns["ideal_signal_to_noise"])[clear]
        ),
        "ideal": curve,
        "products": {
            kind: {
                "at_position": _completeness(
                    columns, columns[f"{kind}_significance"] >= options.threshold, clear, curve, 0
                ),
                "peak": _completeness(
                    columns, columns[f"{kind}_found"].astype(bool), clear, curve, 1
                ),
                "detections": _detections(realisations, kind),
                "false_detections": _false(realisations if fresh else [first], kind),
                "free": _free(columns, kind, clear, options),
            }
            for kind in options.kinds
        },
        "forced": _forced(columns, clear),
    }


def _plain(column: Any) -> Array:
    return np.asarray(getattr(column, "value", column))


def _ideal_curve(options: EvaluationOptions, realisation: Realisation) -> dict[str, Any]:
    low, high = options.signal_to_noise
    points = np.arange(low, high + _IDEAL_STEP, _IDEAL_STEP)
    # Far above the threshold completeness is 1: no noise need be drawn.
    drawn = np.arange(
        low, max(min(high, options.threshold + 4), low) + 2 * _DRAWN_STEP, _DRAWN_STEP
    )
    peak = ideal_peak_completeness(
        drawn,
        options.threshold,
        realisation.psf,
        radius=realisation.match_radius,
        rng=np.random.default_rng(_IDEAL_SEED),
    )
    smooth = scipy.interpolate.PchipInterpolator(drawn, peak, extrapolate=False)
    peak = np.where(points <= drawn[-1], smooth(points), 1.0)
    position = ideal_completeness(points, options.threshold)
    return {
        "signal_to_noise": points.tolist(),
        "at_position": position.tolist(),
        "peak": peak.tolist(),
        "half": {
            "at_position": options.threshold,
            "peak": _crossing(points, peak, 0.5),
        },
        "nearly": {
            # 95 % of unit Gaussian deviates lie above −1.6449.
            "at_position": options.threshold + 1.6449,
            "peak": _crossing(points, peak, 0.95),
        },
    }


def _crossing(points: Array, curve: Array, level: float) -> float | None:
    if not curve[0] < level < curve[-1]:
        return None
    return float(np.interp(level, np.maximum.accumulate(curve), points))


def _completeness(
    columns: dict[str, Array], found: Array, clear: Array, curve: dict[str, Any], which: int
) -> dict[str, Any]:
    """Completeness of one product by one measure, for clear sources and for all."""
    result: dict[str, Any] = {}
    for name, use in (("clear", clear), ("all", np.ones_like(clear))):
        result[name] = _against(columns["signal_to_noise"][use], found[use])
    ratio = columns["ideal_signal_to_noise"]
    known = clear & np.isfinite(ratio)
    if not known.any():
        return result | {"against_ideal": None}
    against = _against(ratio[known], found[known])
    ideal = np.interp(
        ratio[known], curve["signal_to_noise"], curve["peak" if which else "at_position"]
    )
    against["bins"] |= _excess(ratio[known], found[known], ideal, against["bins"])
    difference = found[known] - ideal
    result["against_ideal"] = against | {
        "excess": float(difference.mean()),
        "excess_error": math.sqrt(float((ideal * (1 - ideal)).sum())) / len(ideal),
    }
    return result


def _against(signal_to_noise: Array, found: Array) -> dict[str, Any]:
    if len(found) == 0:
        return {"fit": None, "bins": binned_completeness(signal_to_noise, found, np.zeros(1))}
    first = math.floor(float(signal_to_noise.min()) / _BIN + 1e-9)
    last = math.ceil(float(signal_to_noise.max()) / _BIN - 1e-9)
    edges = _BIN * np.arange(first, max(last, first + 1) + 1)
    fit = fit_completeness(signal_to_noise, found)
    return {
        "fit": None if fit is None else fit.to_dict(),
        "bins": binned_completeness(signal_to_noise, found, edges),
    }


def _excess(
    signal_to_noise: Array, found: Array, ideal: Array, bins: dict[str, Any]
) -> dict[str, Any]:
    """Completeness minus the ideal filter's for the same sources, bin by bin."""
    excess: list[float | None] = []
    errors: list[float | None] = []
    for low, high in zip(bins["lower"], bins["upper"], strict=True):
        inside = (signal_to_noise >= low) & (signal_to_noise < high)
        n = int(inside.sum())
        if n == 0:
            excess.append(None)
            errors.append(None)
            continue
        excess.append(float((found[inside] - ideal[inside]).mean()))
        errors.append(math.sqrt(float((ideal * (1 - ideal))[inside].sum())) / n)
    return {"excess": excess, "excess_error": errors}


def _detections(realisations: Sequence[Realisation], kind: str) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    for realisation in realisations:
        for name, number in realisation.detections[kind].items():  # type: ignore[index]
            counts[name] = counts.get(name, 0) + number
    total = sum(counts.values())
    return counts | {"purity": counts["matched"] / total if total else None}


def _false(realisations: Sequence[Realisation], kind: str) -> dict[str, Any]:
    parts = [each.false_detections[kind] for each in realisations]  # type: ignore[index]
    return {
        "pixels": sum(part.pixels for part in parts),
        "thresholds": list(parts[0].thresholds),
        **{
            name: np.sum([getattr(part, name) for part in parts], axis=0).tolist()
            for name in ("positive", "negative", "expected")
        },
    }


def _forced(columns: dict[str, Array], clear: Array) -> dict[str, Any]:
    """Bias and pull of the flux at injected positions: every source counts, found or not."""
    flux, error = columns["flux"][clear], columns["forced_flux_err"][clear]
    measured = columns["forced_flux"][clear]
    return {
        "flux_bias": mean_and_width(measured / flux - 1, (flux / error) ** 2),
        "flux_pull": mean_and_width((measured - flux) / error),
    }


def _free(
    columns: dict[str, Array], kind: str, clear: Array, options: EvaluationOptions
) -> dict[str, Any]:
    """Bias and pull of detections' flux and position, for sources so bright that few are lost."""
    ratio = columns["signal_to_noise"]
    least = options.threshold + _COMPLETE
    use = clear & columns[f"{kind}_found"].astype(bool) & (ratio >= least)
    flux, ratio = columns["flux"][use], ratio[use]
    measured, error = columns[f"{kind}_flux"][use], columns[f"{kind}_flux_err"][use]
    weight = ratio**2
    numbers = {
        "least_signal_to_noise": least,
        "flux_bias": mean_and_width(measured / flux - 1, weight),
        "expected_flux_bias": (
            float(np.average(1 / ratio**2, weights=weight)) if use.any() else None
        ),
        "flux_pull": mean_and_width((measured - flux) / error),
    }
    for axis in ("x", "y"):
        offset = columns[f"{kind}_{axis}"][use] - columns[axis][use]
        numbers[f"{axis}_offset"] = mean_and_width(offset, weight)
        numbers[f"{axis}_pull"] = mean_and_width(offset / columns[f"{kind}_{axis}_err"][use])
    return numbers
