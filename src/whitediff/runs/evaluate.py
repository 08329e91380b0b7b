"""Run of ``whitediff evaluate``: inject sources, and measure how well they are found."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from .. import __version__
from ..diagnostics.completeness import all_sources, summarise
from ..diagnostics.plots import plot_evaluation
from ..errors import ArgumentError, DataError
from ..evaluation.exposures import EvaluationOptions, Setting, evaluate
from ..evaluation.simulated import simulated_exposure
from ..evaluation.simulation import SimulationOptions, simulate
from ..exposures.model import Exposure
from ..extras import is_installed
from ..formats.catalogs import write_catalog
from ..numerics.threads import available_threads
from ..outputs import check_output
from ..progress import counted, stages
from ..reading import ReadingOptions
from .inject import photon_gain
from .inputs import name_of, path_of, read_input, read_psf
from .numbers import write_numbers
from .options import EvaluateOptions
from .recipes import as_asked, recipe_of
from .refusals import check_given
from .running import running
from .simulate import simulation_options
from .subtract import read_solutions, solutions_by_kind

__all__ = ["OUTPUTS", "Evaluated", "run_evaluation"]

log = logging.getLogger("whitediff.runs")

OUTPUTS = ("evaluate.json", "injections.ecsv", "evaluate.png")


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """How well injected sources are found.

    Attributes
    ----------
    numbers
        Completeness, purity, biases and pulls: the contents of evaluate.json.
    sources
        Table of all injected sources and their detections.
    """

    numbers: dict[str, Any]
    sources: Table


@dataclasses.dataclass(frozen=True)
class _Pair:
    """The same two images for each realisation."""

    science: object
    template: object
    options: EvaluateOptions

    def __call__(self, number: int) -> tuple[Exposure, Exposure]:
        pair = []
        for given, side, reading, psf in (
            (self.science, "science", self.options.science, self.options.science_psf),
            (self.template, "template", self.options.template, self.options.template_psf),
        ):
            exposure = read_input(given, reading, f"{side} image")
            if psf is not None:
                exposure.psf = read_psf(psf, exposure.bbox, f"{side} PSF")
            pair.append(exposure)
        return pair[0], pair[1]


@dataclasses.dataclass(frozen=True)
class _SimulatedPair:
    """Two newly simulated images for each realisation."""

    seed: int
    simulation: SimulationOptions

    def __call__(self, number: int) -> tuple[Exposure, Exposure]:
        # A random stream of its own: the stream of [seed, number] draws the injected sources.
        own = int(np.random.SeedSequence([self.seed, number, 1]).generate_state(1)[0])
        made = simulate(dataclasses.replace(self.simulation, seed=own))
        return simulated_exposure(made, "science"), simulated_exposure(made, "template")


def run_evaluation(
    science: object,
    template: object,
    options: EvaluateOptions,
    simulation: Mapping[str, Any] | None = None,
) -> Evaluated:
    """Inject sources, subtract, detect and compare, many times, and write the results.

    Parameters
    ----------
    science, template
        Files, or objects that `whitediff.runs.inputs.read_image` takes; None if simulated.
    options
        Options of ``whitediff evaluate``; without an output nothing is written.
    simulation
        Options of ``whitediff simulate`` for pairs that are simulated, as
        `whitediff.runs.simulate.simulation_options` takes them; None to use the given images.
        No transients are simulated unless asked for: they would count as false detections.

    Returns
    -------
    evaluated
        Numbers and sources.

    Raises
    ------
    WhitediffError
        A subclass whose message names the file at fault.
    """
    check_given(options, science, template)
    names = _outputs(options)
    with running(options.running, options.output):
        read = read_solutions(options.kernel)
        stored = solutions_by_kind(read)
        if read and "difference" not in stored:
            raise ArgumentError(
                f"{', '.join(read)}: holds no difference, on which sources are measured; name"
                " the old difference with --kernel too."
            )
        recipe = recipe_of(options.recipe)
        pair: Callable[[int], tuple[Exposure, Exposure]]
        if simulation is None:
            pair = _Pair(science, template, options)
        else:
            pair = _SimulatedPair(
                simulation.get("seed", options.seed),
                simulation_options({"transients": 0, **simulation}),
            )
        gain = _gain(pair, options, fresh=simulation is not None)
        setting = Setting(
            pair=pair,
            fresh=simulation is not None,
            options=EvaluationOptions(
                realisations=options.realizations,
                sources=options.sources,
                signal_to_noise=options.signal_to_noise,
                threshold=options.threshold,
                seed=options.seed,
                separation=options.separation,
                match_radius=options.match_radius,
                gain=gain,
                score=not options.no_score and (not stored or "score" in stored),
            ),
            recipe=recipe,
            solutions={kind: as_asked(solution, recipe) for kind, solution in stored.items()},
        )
        done, failures = _realised(setting, options)
        numbers = {
            "whitediff": __version__,
            "science": path_of(science),
            "template": path_of(template),
            "simulation": None if simulation is None else dict(simulation),
            "kernel": list(read),
            "threshold": options.threshold,
            "signal_to_noise": list(options.signal_to_noise),
            "seed": options.seed,
            "photon_noise_gain": gain,
            "realizations": {"done": len(done), "failed": failures},
        } | summarise(done, setting.options, fresh=setting.fresh)
        evaluated = Evaluated(numbers, all_sources(done))
        if options.output is not None:
            title = "simulated pairs"
            if simulation is None:
                title = f"{name_of(science, 'science')} − {name_of(template, 'template')}"
            _write(evaluated, options.output, names, title, overwrite=options.overwrite)
    return evaluated


def _outputs(options: EvaluateOptions) -> list[str]:
    """Names of the files to write."""
    if options.output is None:
        return []
    names = [name for name in OUTPUTS if name != "evaluate.png" or _can_draw()]
    for name in names:
        if options.output.exists():
            check_output(options.output / name, overwrite=options.overwrite)
    return names


def _can_draw() -> bool:
    if is_installed("matplotlib"):
        return True
    log.warning("No picture: it needs matplotlib (pip install 'whitediff[plot]').")
    return False


def _gain(
    pair: Callable[[int], tuple[Exposure, Exposure]], options: EvaluateOptions, *, fresh: bool
) -> float | None:
    """Electrons per count; None if no photon noise is drawn."""
    if fresh and not options.photon_noise:
        return None
    with stages("Evaluating", 1) as begin:
        begin("reading")
        # Faults of the images are reported here once, not by every realisation.
        first, _ = pair(0)
        levels = ReadingOptions() if fresh else options.science
        return photon_gain(first, levels) if options.photon_noise else None


def _realised(setting: Setting, options: EvaluateOptions) -> tuple[list[Any], list[dict[str, Any]]]:
    """Realisations that succeeded, and the errors of the others."""
    processes = min(options.processes or available_threads(), options.realizations)
    done: list[Any] = []
    failed: list[tuple[int, Exception]] = []
    with _quiet_realisations(), counted("Realisations", options.realizations) as advance:
        for index, result in evaluate(setting, processes=processes):
            if isinstance(result, Exception):
                failed.append((index, result))
                log.error("Realisation %d failed: %s", index, " ".join(str(result).split()))
            else:
                done.append(result)
            advance()
    if not done:
        raise DataError(
            f"None of the {options.realizations} realisations succeeded; the first failed so:"
            f" {failed[0][1]}"
        ) from failed[0][1]
    failed.sort(key=lambda each: each[0])
    return done, [
        {"realization": index, "error": " ".join(str(error).split())} for index, error in failed
    ]


@contextlib.contextmanager
def _quiet_realisations() -> Iterator[None]:
    """Mute messages that every realisation would repeat, unless the user asked for details."""
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


def _write(
    evaluated: Evaluated, directory: Path, names: list[str], title: str, *, overwrite: bool
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    write_numbers(directory / "evaluate.json", evaluated.numbers, overwrite=overwrite)
    write_catalog(evaluated.sources, directory / "injections.ecsv", overwrite=overwrite)
    if "evaluate.png" in names:
        plot_evaluation(
            directory / "evaluate.png", evaluated.numbers, evaluated.sources, title=title
        )
    log.info("%s: wrote %s.", directory, ", ".join(names))
