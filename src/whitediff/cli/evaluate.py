"""``whitediff evaluate``: what is found of sources that were injected?"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from ..extras import is_installed
from ..reading import ReadingOptions, option_names, reading_options
from .console import INPUT_FILE, OUTPUT_DIRECTORY, common_options, counted, log, print_table, stages
from .decorrelate import whitening_options
from .inject import photon_gain
from .reading import input_options, limit_options
from .subtract import FIT_OPTIONS, check_alignment, fit_options

__all__ = ["OUTPUTS", "evaluate", "run_evaluation"]

OUTPUTS = ("evaluate.json", "injections.ecsv", "evaluate.png")

_SIMULATED = ("set_options",)
_REAL = (
    *option_names("science", "template"),
    "science_psf",
    "template_psf",
    "solutions",
)


class _Assignment(click.ParamType):
    """``NAME=VALUE`` of an option of ``whitediff simulate``."""

    name = "name=value"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        from .simulate import simulate

        options = {
            option.lstrip("-"): each
            for each in simulate.params
            for option in each.opts
            if each.name not in ("output", "overwrite", "threads", "verbose", "quiet")
        }
        name, equals, text = str(value).partition("=")
        if not equals or name not in options:
            self.fail(
                f"{value!r} is not NAME=VALUE with a name among {', '.join(sorted(options))}.",
                param,
                ctx,
            )
        option = options[name]
        parts = text.split() if option.nargs > 1 else [text]
        if len(parts) != option.nargs:
            self.fail(f"{name} takes {option.nargs} values; got {text!r}.", param, ctx)
        values = tuple(option.type.convert(part, param, ctx) for part in parts)
        return str(option.name), values if option.nargs > 1 else values[0]


@click.command(short_help="Measure completeness, purity and bias with injected sources.")
@click.argument("science", type=INPUT_FILE, required=False)
@click.argument("template", type=INPUT_FILE, required=False)
@click.option("--output", required=True, type=OUTPUT_DIRECTORY, help="Directory to write to.")
@click.option(
    "--simulate",
    "simulated",
    is_flag=True,
    help="Simulate a pair anew for each realisation, in place of SCIENCE and TEMPLATE.",
)
@click.option(
    "--set",
    "set_options",
    type=_Assignment(),
    multiple=True,
    metavar="NAME=VALUE",
    help="Option of whitediff simulate, such as size=2048 or 'ellipticity=0.1 -0.07'.",
)
@click.option(
    "--realizations",
    "realisations",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How often to inject, subtract and detect.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="How many realisations side by side, one thread each; each takes the memory of a"
    " subtraction  [default: as many as there are cores].",
)
@click.option(
    "--sources",
    type=click.IntRange(min=1),
    help="Injected in each realisation  [default: one for each square of 30 widths of the PSF].",
)
@click.option(
    "--signal-to-noise",
    type=float,
    nargs=2,
    default=(3.0, 12.0),
    show_default=True,
    metavar="LO HI",
    help="Of the sources, on the difference.",
)
@click.option(
    "--threshold", type=float, default=5.0, show_default=True, help="Of detection, sigma."
)
@click.option(
    "--separation",
    type=float,
    help="Least distance of two sources, pixels  [default: 10 widths of the PSF].",
)
@click.option(
    "--match-radius",
    type=float,
    help="Distance within which a detection counts, pixels  [default: one width of the PSF].",
)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option(
    "--photon-noise",
    is_flag=True,
    help="Draw the photon noise of the sources; needs the gain.",
)
@click.option("--no-score", is_flag=True, help="Judge the difference alone; takes half the time.")
@click.option(
    "--kernel",
    "solutions",
    multiple=True,
    metavar="OLD_OUTPUT",
    help="Make each difference (or score) with the kernel of an earlier one, without fitting.",
)
@fit_options
@input_options("science", "template")
@click.option("--science-psf", metavar="FILE", help="PSF of the science image.")
@click.option("--template-psf", metavar="FILE", help="PSF of the template.")
@click.option("--full-variance", is_flag=True, help="Propagate the variance of every pixel.")
@whitening_options
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@common_options
@limit_options
def evaluate(**options: Any) -> None:
    """Inject sources into SCIENCE, subtract TEMPLATE, detect, and compare; many times.

    Each realisation adds point sources at random places, makes the difference and the score
    anew, kernel included, and looks for the sources. Reported are completeness against
    signal-to-noise ratio (at the place injected, and for the highest peak within one width of
    the PSF of it), beside that of the ideal matched filter; purity; biases and pulls of fluxes
    and positions; and detections without injection against their number in white noise.
    Writes evaluate.json, injections.ecsv and evaluate.png.
    """
    context = click.get_current_context()
    check_alignment(context)

    def given(names: Iterable[str]) -> list[str]:
        source = click.core.ParameterSource.COMMANDLINE
        return [
            parameter.opts[0]
            for parameter in context.command.params
            if parameter.name in names and context.get_parameter_source(parameter.name) is source
        ]

    paths = [options["science"], options["template"]]
    if options["simulated"] and (any(paths) or given(_REAL)):
        raise click.UsageError(
            f"{', '.join([*filter(None, paths), *given(_REAL)])}: of no use with --simulate, which"
            " makes its own images; leave one out."
        )
    if not options["simulated"] and (not all(paths) or given(_SIMULATED)):
        raise click.UsageError(
            "--set belongs to --simulate; add that."
            if given(_SIMULATED)
            else "Name SCIENCE and TEMPLATE, or --simulate a pair."
        )
    if options["solutions"] and given(FIT_OPTIONS):
        raise click.UsageError(
            f"{', '.join(given(FIT_OPTIONS))}: has no effect with --kernel, which takes all of"
            " this from the earlier output; leave one of them out."
        )
    run_evaluation(**options)


def run_evaluation(
    *,
    output: Path,
    science: str | None = None,
    template: str | None = None,
    simulated: bool = False,
    set_options: tuple[tuple[str, Any], ...] = (),
    realisations: int = 10,
    processes: int | None = None,
    sources: int | None = None,
    signal_to_noise: tuple[float, float] = (3.0, 12.0),
    threshold: float = 5.0,
    separation: float | None = None,
    match_radius: float | None = None,
    seed: int = 1,
    photon_noise: bool = False,
    no_score: bool = False,
    solutions: tuple[str, ...] = (),
    science_psf: str | None = None,
    template_psf: str | None = None,
    overwrite: bool = False,
    **how: Any,
) -> dict[str, Any]:
    """Evaluate, print and write.

    Parameters
    ----------
    output, science, template, simulated, set_options, realisations, processes, sources, \
    signal_to_noise, threshold, separation, match_radius, seed, photon_noise, no_score, solutions, \
    science_psf, template_psf, overwrite
        Options of the command.
    **how
        Those of `whitediff.runs.recipes.recipe_of`, and of `whitediff.reading`.

    Returns
    -------
    numbers
        What evaluate.json holds.
    """
    from .. import __version__, formats
    from ..diagnostics.completeness import all_sources, summarise
    from ..errors import DataError
    from ..exposures.evaluation import EvaluationOptions, Setting
    from ..exposures.evaluation import evaluate as realise_all
    from ..formats.catalogs import write_catalog
    from ..outputs import check_output, replacing, together
    from ..runs.recipes import as_asked, recipe_of
    from ..runs.subtract import solutions_by_kind
    from ..threads import available_threads

    names = [name for name in OUTPUTS if name != "evaluate.png" or _can_draw()]
    for name in names:
        if output.exists():
            check_output(output / name, overwrite=overwrite)
    read = {path: formats.read_solution(path) for path in solutions}
    stored = solutions_by_kind(read)
    if read and "difference" not in stored:
        raise click.UsageError(
            f"{', '.join(read)}: holds no difference, on which sources are measured; name the old"
            " difference with --kernel too."
        )
    reading = {name: how.pop(name) for name in option_names("science", "template") if name in how}
    recipe = recipe_of(**how)
    levels = {"science": ReadingOptions()}
    pair: Any
    if simulated or science is None or template is None:
        pair = functools.partial(_simulated_pair, seed, dict(set_options))
    else:
        levels = reading_options(reading, science=science, template=template)
        paths = {"science": (science, science_psf), "template": (template, template_psf)}
        pair = functools.partial(_read_pair, paths, levels)
    gain = None
    with stages("Evaluating", 1) as begin:
        if photon_noise or not simulated:
            begin("reading")
            # What is wrong with the images is said once, not by every realisation.
            first, _ = pair(0)
            gain = photon_gain(first, levels["science"]) if photon_noise else None
            del first
    setting = Setting(
        pair=pair,
        fresh=simulated,
        options=EvaluationOptions(
            realisations=realisations,
            sources=sources,
            signal_to_noise=signal_to_noise,
            threshold=threshold,
            seed=seed,
            separation=separation,
            match_radius=match_radius,
            gain=gain,
            score=not no_score and (not read or "score" in stored),
        ),
        recipe=recipe,
        solutions={kind: as_asked(solution, recipe) for kind, solution in stored.items()},
    )
    output.mkdir(parents=True, exist_ok=True)
    number = min(processes or available_threads(), realisations)
    done: list[Any] = []
    failures: list[tuple[int, Exception]] = []
    with _quiet_realisations(), counted("Realisations", realisations) as advance:
        for index, result in realise_all(setting, processes=number):
            if isinstance(result, Exception):
                failures.append((index, result))
                log.error("Realisation %d failed: %s", index, " ".join(str(result).split()))
            else:
                done.append(result)
            advance()
    if not done:
        raise DataError(
            f"None of the {realisations} realisations succeeded; the first failed so:"
            f" {failures[0][1]}"
        ) from failures[0][1]
    numbers = {
        "whitediff": __version__,
        "science": science,
        "template": template,
        "simulation": {name: value for name, value in set_options} if simulated else None,
        "kernel": list(solutions),
        "threshold": threshold,
        "signal_to_noise": list(signal_to_noise),
        "seed": seed,
        "photon_noise_gain": gain,
        "realizations": {
            "done": len(done),
            "failed": [
                {"realization": index, "error": " ".join(str(error).split())}
                for index, error in sorted(failures, key=lambda each: each[0])
            ],
        },
    } | summarise(done, setting.options, fresh=simulated)
    table = all_sources(done)
    with together():
        with replacing(output / "evaluate.json", overwrite=overwrite) as temporary:
            temporary.write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n")
        write_catalog(table, output / "injections.ecsv", overwrite=overwrite)
        if "evaluate.png" in names:
            from ..diagnostics.plots import plot_evaluation

            title = "simulated pairs" if simulated else f"{science} − {template}"
            plot_evaluation(output / "evaluate.png", numbers, table, title=title)
    _print(numbers)
    log.info("%s: wrote %s.", output, ", ".join(names))
    return numbers


def _can_draw() -> bool:
    if is_installed("matplotlib"):
        return True
    log.warning("No picture: it needs matplotlib (pip install 'whitediff[plot]').")
    return False


@contextlib.contextmanager
def _quiet_realisations() -> Iterator[None]:
    """What every realisation would say again stays unsaid, unless the user wants to know more."""
    logger = logging.getLogger("whitediff")
    level, verbose = logger.level, logger.level <= logging.DEBUG
    own = log.level
    log.setLevel(level)
    if not verbose:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        log.setLevel(own)


def _simulated_pair(seed: int, options: dict[str, Any], number: int) -> tuple[Any, Any]:
    """A new pair for each realisation; without transients, which nobody injected."""
    import numpy as np

    from ..exposures.simulated import simulated_exposure
    from ..simulation import simulate
    from .simulate import simulation_options

    # A stream of its own: that of [seed, number] draws the sources.
    own = int(np.random.SeedSequence([options.get("seed", seed), number, 1]).generate_state(1)[0])
    simulation = simulate(simulation_options({"transients": 0} | options | {"seed": own}))
    return simulated_exposure(simulation, "science"), simulated_exposure(simulation, "template")


def _read_pair(
    paths: dict[str, tuple[str, str | None]], levels: dict[str, ReadingOptions], number: int
) -> tuple[Any, Any]:
    """The same pair for each realisation."""
    from .. import formats
    from ..runs.inputs import read_input

    pair = []
    for name, (path, psf) in paths.items():
        exposure = read_input(path, levels[name])
        if psf is not None:
            exposure.psf = formats.read_psf(psf, bounds=exposure.bbox)
        pair.append(exposure)
    return pair[0], pair[1]


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
