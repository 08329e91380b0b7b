"""``whitediff evaluate``: how well injected sources are found."""

from __future__ import annotations

from typing import Any

import click

from ..options import declarations
from ..reading import ReadingOptions
from ..runs.options import FIT_OPTIONS, EvaluateOptions
from .command import command, given
from .console import print_table
from .subtract import check_alignment, check_settled

__all__ = ["evaluate"]

_SIMULATED = ("set",)
_REAL = (
    *(
        f"{side}_{name}"
        for side in ("science", "template")
        for name in declarations(ReadingOptions)
    ),
    "science_psf",
    "template_psf",
    "kernel",
)


def _assigned(text: str, context: click.Context) -> tuple[str, Any]:
    """Parse ``NAME=VALUE`` of an option of ``whitediff simulate``."""
    from .simulate import SimulateOptions, simulate

    options = {
        option.lstrip("-"): each
        for each in simulate.params
        for option in each.opts
        if each.name not in (*declarations(SimulateOptions), "verbose", "quiet")
    }
    name, equals, value = text.partition("=")
    if not equals or name not in options:
        raise click.BadParameter(
            f"{text!r} is not NAME=VALUE with a name among {', '.join(sorted(options))}.",
            context,
            param_hint="'--set'",
        )
    option = options[name]
    parts = value.split() if option.nargs > 1 else [value]
    if len(parts) != option.nargs:
        raise click.BadParameter(
            f"{name} takes {option.nargs} values; got {value!r}.", context, param_hint="'--set'"
        )
    values = tuple(option.type.convert(part, None, context) for part in parts)
    return str(option.name), values if option.nargs > 1 else values[0]


@command(
    EvaluateOptions,
    short_help="Measure completeness, purity and bias with injected sources.",
    examples=(
        "whitediff evaluate science.fits template.fits -o evaluation",
        "whitediff evaluate --simulate --set size=512 --realizations 20 -o evaluation",
    ),
)
@click.argument("science", required=False)
@click.argument("template", required=False)
def evaluate(options: EvaluateOptions, science: str | None, template: str | None) -> None:
    """Inject sources into SCIENCE, subtract TEMPLATE, detect, and compare; many times.

    Each realisation adds point sources at random places, makes the difference and the score
    anew, kernel included, and looks for the sources. Reported are completeness against
    signal-to-noise ratio (at the injected position, and for the highest peak within one width of
    the PSF around it), beside the completeness of the ideal matched filter; purity; biases and
    pulls of fluxes and positions; and detections without injection against their number in white
    noise. Writes evaluate.json, injections.ecsv and evaluate.png.
    """
    context = click.get_current_context()
    check_alignment(context)
    check_settled(context, options.kernel, FIT_OPTIONS)
    real, simulated = (
        [f"--{name.replace('_', '-')}" for name in given(context, names)]
        for names in (_REAL, _SIMULATED)
    )
    paths = [path for path in (science, template) if path is not None]
    if options.simulate and (paths or real):
        raise click.UsageError(
            f"{', '.join([*paths, *real])}: of no use with --simulate, which makes its own images;"
            " leave one out."
        )
    if not options.simulate and (len(paths) < 2 or simulated):
        raise click.UsageError(
            "--set belongs to --simulate; add that."
            if simulated
            else "Name SCIENCE and TEMPLATE, or --simulate a pair."
        )
    assigned = dict(_assigned(text, context) for text in options.set)
    from ..runs.evaluate import run_evaluation

    simulation = assigned if options.simulate else None
    _print(run_evaluation(science, template, options, simulation).numbers)


def _print(numbers: dict[str, Any]) -> None:
    products = numbers["products"]
    print_table(
        f"Completeness above {numbers['threshold']:g} sigma, {numbers['clear']} sources off the"
        f" static ones, {numbers['injected']} in all",
        ("", "50% at S/N", "95% at S/N", "ideal 50%", "ideal 95%", "completeness - ideal"),
        [
            _completeness_row(kind, label, measure, product[measure], numbers["ideal"])
            for kind, product in products.items()
            for measure, label in (("at_position", "at the position"), ("peak", "highest peak"))
        ],
    )
    print_table(
        "Highest peak within"
        f" {numbers['match_radius']:.2f} pixels, by signal-to-noise ratio on the difference",
        ("S/N", "injected", *products),
        _bin_rows(products),
    )
    print_table(
        "Fluxes and positions",
        ("", "sources", "mean", "expected", "width of the pull"),
        _photometry_rows(numbers),
    )
    print_table(
        "Detections without injection, off the static sources",
        ("", "above", "positive", "negative", "in white noise, each"),
        [
            (kind, f"{threshold:g}", str(positive), str(negative), f"{expected:.4g}")
            for kind, product in products.items()
            for threshold, positive, negative, expected in zip(
                *(
                    product["false_detections"][name]
                    for name in ("thresholds", "positive", "negative", "expected")
                ),
                strict=True,
            )
        ],
    )
    print_table(
        "Positive detections with injection, off the static sources",
        ("", "injected sources", "their companions", "known before", "spurious", "purity"),
        [
            (
                kind,
                *(str(counts[n]) for n in ("matched", "companions", "known", "spurious")),
                _number(counts["purity"], ".4f"),
            )
            for kind, counts in ((k, product["detections"]) for k, product in products.items())
        ],
    )


def _number(value: float | None, form: str, error: float | None = None) -> str:
    if value is None:
        return "-"
    return format(value, form) + ("" if error is None else f" ± {format(error, form.lstrip('+'))}")


def _completeness_row(
    kind: str, label: str, measure: str, result: dict[str, Any], ideal: dict[str, Any]
) -> tuple[str, ...]:
    fit = result["clear"]["fit"] or dict.fromkeys(("half", "half_error", "nearly", "nearly_error"))
    against = result["against_ideal"] or dict.fromkeys(("excess", "excess_error"))
    return (
        f"{kind}, {label}",
        _number(fit["half"], ".3f", fit["half_error"]),
        _number(fit["nearly"], ".3f", fit["nearly_error"]),
        _number(ideal["half"][measure], ".3f"),
        _number(ideal["nearly"][measure], ".3f"),
        _number(against["excess"], "+.4f", against["excess_error"]),
    )


def _bin_rows(products: dict[str, Any]) -> list[tuple[str, ...]]:
    bins = [product["peak"]["clear"]["bins"] for product in products.values()]
    rows = []
    for i, (low, high) in enumerate(zip(bins[0]["lower"], bins[0]["upper"], strict=True)):
        cells = [
            "-"
            if each["completeness"][i] is None
            else f"{each['completeness'][i]:.4f}"
            f" +{each['completeness_high'][i] - each['completeness'][i]:.4f}"
            f" -{each['completeness'][i] - each['completeness_low'][i]:.4f}"
            for each in bins
        ]
        rows.append((f"{low:g} to {high:g}", str(bins[0]["injected"][i]), *cells))
    return rows


def _photometry_rows(numbers: dict[str, Any]) -> list[tuple[str, ...]]:
    forced = numbers["forced"]
    rows = [
        _photometry_row("flux at known positions", forced["flux_bias"], 0.0, forced["flux_pull"])
    ]
    for kind, product in numbers["products"].items():
        free = product["free"]
        above = f"S/N > {free['least_signal_to_noise']:g}"
        rows.append(
            _photometry_row(
                f"{kind}: flux, {above}",
                free["flux_bias"],
                free["expected_flux_bias"],
                free["flux_pull"],
            )
        )
        rows += [
            _photometry_row(
                f"{kind}: {axis} [pixel]", free[f"{axis}_offset"], 0.0, free[f"{axis}_pull"]
            )
            for axis in ("x", "y")
        ]
    return rows


def _photometry_row(
    label: str, mean: dict[str, Any], expected: float | None, pull: dict[str, Any]
) -> tuple[str, ...]:
    return (
        label,
        str(mean["count"]),
        _number(mean["mean"], "+.5f", mean["mean_error"]),
        _number(expected, "+.5f"),
        _number(pull["width"], ".4f", pull["width_error"]),
    )
