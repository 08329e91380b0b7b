"""Injecting, subtracting and detecting: one realisation of an evaluation."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
from astropy.table import QTable

from ..detection.exposures import (
    DetectionOptions,
    detect,
    expected_false_detections,
    forced_photometry,
    significance_at,
)
from ..errors import ArgumentError
from ..exposures import masks
from ..exposures.model import Exposure
from ..exposures.psf import KernelPointSpreadFunction
from ..matching.preparation import with_measured_psf
from ..noise.exposures import untrusted_pixels
from ..noise.significance import point_source_significance
from ..noise.sources import smooth_background
from ..numerics.processes import in_processes
from ..numerics.threads import scipy_part
from ..subtraction.pipeline import Kind, Made, make_again, make_all
from ..subtraction.recipe import Recipe
from ..subtraction.solution import Solution
from .completeness import ideal_signal_to_noise, match_highest
from .injection import inject, injectable_pixels, local_variance, psf_sigma, random_sources

__all__ = [
    "EvaluationOptions",
    "FalseDetections",
    "Realisation",
    "Setting",
    "evaluate",
    "realise",
]

type Array = npt.NDArray[Any]

_SPACING = 30.0
"""Side of the square for each source by default, in widths of the PSF: if denser, sources too
faint to be told from noise would count as noise, and lower every significance by a percent."""
_CONFUSED = 4.0
"""Widths of the PSF around a detection of the uninjected difference in which an injected source
is not isolated."""
_CERTAIN = 7.0
"""Significance above which a source on an input is certainly not noise."""

_COMPANION = 4.0
"""Widths of the PSF around an injected source in which another detection belongs to it."""
_BELOW = (1.0, 0.5, 0.0)
"""False detections are also counted so far below the threshold: above it there are few."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Sources to inject, and how detections are judged.

    Attributes
    ----------
    realisations
        Number of realisations.
    sources
        Number injected in each; None: one for each square of 30 widths of the PSF.
    signal_to_noise
        Least and largest, drawn uniformly between, of a matched filter on the difference.
    threshold
        Threshold of detection, standard deviations.
    seed
        Seed of positions and fluxes.
    separation
        Least distance between two sources, pixels; None: 10 widths of the PSF.
    match_radius
        Radius within which a detection counts, pixels; None: one width of the difference's PSF.
    gain
        Electrons per count, to draw the sources' photon noise; None for no such noise.
    score
        Judge the score too.
    """

    realisations: int = 10
    sources: int | None = None
    signal_to_noise: tuple[float, float] = (3.0, 12.0)
    threshold: float = 5.0
    seed: int = 1
    separation: float | None = None
    match_radius: float | None = None
    gain: float | None = None
    score: bool = True

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Products that are judged."""
        return ("difference", "score") if self.score else ("difference",)

    def __post_init__(self) -> None:
        low, high = self.signal_to_noise
        if not 0 < low < high < math.inf:
            raise ArgumentError(
                "The signal-to-noise ratio runs from a positive number to a larger one; got"
                f" {low:g} to {high:g}."
            )
        for name in ("realisations", "sources"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"The number of {name} must be at least 1; got {value}.")
        for name in ("threshold", "separation", "match_radius", "gain"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ArgumentError(f"{name} must be a positive number; got {value:g}.")
        if self.threshold <= max(_BELOW):
            raise ArgumentError(
                f"The threshold must be above {max(_BELOW):g}, since false detections are counted"
                f" that far below it too; got {self.threshold:g}."
            )
        if self.seed < 0:
            raise ArgumentError(f"seed must not be negative; got {self.seed}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that the realisations of an evaluation share; it can be pickled.

    Attributes
    ----------
    pair
        Function of the realisation's number that gives its science exposure and template.
    fresh
        Whether each number has a pair of its own; else all share one.
    options, recipe
        Sources to inject, and how differences are made.
    solutions
        Kind → solution to make differences with; empty to fit each anew.
    """

    pair: Callable[[int], tuple[Exposure, Exposure]]
    fresh: bool
    options: EvaluationOptions
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    solutions: dict[Kind, Solution] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FalseDetections:
    """Detections where nothing was injected, off the static sources.

    Attributes
    ----------
    pixels
        Number of pixels searched.
    thresholds
        Standard deviations.
    positive, negative
        Number of each sign above each threshold.
    expected
        Number of each sign in white noise above each threshold.
    """

    pixels: int
    thresholds: tuple[float, ...]
    positive: tuple[int, ...]
    negative: tuple[int, ...]
    expected: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Realisation:
    """Injected sources of one realisation, and the detections.

    Attributes
    ----------
    number
        Number of the realisation.
    sources
        One row for each source: id, x, y, flux, signal_to_noise (of a matched filter on the
        uninjected difference), ideal_signal_to_noise (of the ideal filter on the two images), clear
        (neither on a static source nor near a detection of the uninjected difference),
        forced_flux, forced_flux_err at the injected position; for each kind K: K_significance (at
        the injected position), K_found, K_peak_significance, K_x, K_y, K_x_err, K_y_err, K_flux,
        K_flux_err of the highest detection within the radius.
    detections
        Kind → numbers of positive detections off the static sources: ``matched`` with a source,
        its ``companions``, ``known`` from the uninjected difference, and ``spurious``.
    false_detections
        Kind → `FalseDetections` of the uninjected pair.
    psf
        ``(py, px)`` PSF of the difference at its average position.
    match_radius
        Pixels.
    """

    number: int
    sources: QTable
    detections: dict[Kind, dict[str, int]]
    false_detections: dict[Kind, FalseDetections]
    psf: Array
    match_radius: float


def evaluate(
    setting: Setting, *, processes: int = 1
) -> Iterator[tuple[int, Realisation | Exception]]:
    """All realisations of an evaluation.

    Parameters
    ----------
    setting
        `Setting`.
    processes
        Number of processes that work side by side.

    Yields
    ------
    number, realisation
        In the order in which they finish; an error in place of a realisation that failed.
    """
    global _latest
    work = functools.partial(realise, setting)
    try:
        yield from in_processes(work, range(setting.options.realisations), processes=processes)
    finally:
        _latest = None


def realise(setting: Setting, number: int) -> Realisation:
    """Inject sources into a science image, make its difference anew and detect.

    Parameters
    ----------
    setting
        `Setting`.
    number
        Number of the realisation, from 0; it seeds the random numbers.

    Returns
    -------
    realisation
        `Realisation`.
    """
    rng = np.random.default_rng([setting.options.seed, number])
    start = _starting_point(setting, number if setting.fresh else 0)
    sources = _drawn(setting, start, rng)
    injected = inject(start.with_psf, sources, gain=setting.options.gain, rng=rng)
    # An exposure that came without a PSF has it measured again, with the sources in the image.
    injected.psf = start.science.psf
    made = _made(setting, injected, start.template)
    forced = forced_photometry(made["difference"].exposure, sources["x", "y"])
    sources["forced_flux"] = forced["psf_flux"]
    sources["forced_flux_err"] = forced["psf_flux_err"]
    detections = {
        kind: _judged(setting, start, kind, made, sources) for kind in setting.options.kinds
    }
    return Realisation(
        number=number,
        sources=sources,
        detections=detections,
        false_detections=start.false_detections,
        psf=start.psf,
        match_radius=start.radius,
    )


@dataclasses.dataclass(frozen=True)
class _Start:
    """An uninjected pair, its difference and detections, and the pixels that sources may have."""

    science: Exposure
    template: Exposure
    with_psf: Exposure
    difference: Exposure
    usable: Array
    sources: Array
    ideal: Callable[[Array, Array], Array]
    detections: dict[Kind, QTable]
    false_detections: dict[Kind, FalseDetections]
    psf: Array
    sigma: float
    radius: float


_latest: tuple[Setting, int, _Start] | None = None
"""Last starting point of this process: realisations of a pair share an uninjected difference."""


def _starting_point(setting: Setting, number: int) -> _Start:
    global _latest
    if _latest is not None and _latest[0] is setting and _latest[1] == number:
        return _latest[2]
    _latest = None  # before the next one takes memory
    start = _started(setting, number)
    _latest = (setting, number, start)
    return start


def _started(setting: Setting, number: int) -> _Start:
    science, template = setting.pair(number)
    made = _made(setting, science, template)
    difference = made["difference"].exposure
    with_psf = _with_psf(science, made["difference"])
    sources = _static_sources(made["difference"])
    options = setting.options
    threshold = options.threshold - max(_BELOW)
    detections, false_detections = {}, {}
    for kind in options.kinds:
        found = _detected(made, kind, _options(threshold))
        detections[kind] = found
        false_detections[kind] = _false_detections(
            made[kind].exposure,
            found,
            sources,
            options.threshold,
            score=kind == "score",
        )
    sigma = psf_sigma(difference)
    assert difference.psf is not None
    x, y = difference.psf.average_position
    return _Start(
        science=science,
        template=template,
        with_psf=with_psf,
        difference=difference,
        usable=injectable_pixels(difference) & injectable_pixels(with_psf),
        sources=sources,
        ideal=_ideal_ratio(made["difference"]),
        detections=detections,
        false_detections=false_detections,
        psf=difference.psf.at(x=x, y=y),
        sigma=sigma,
        radius=sigma if options.match_radius is None else options.match_radius,
    )


def _static_sources(made: Made) -> Array:
    """Pixels that are certainly on a source of the science image or the template.

    The mask plane SOURCE also has the faintest sources, among them the highest peaks of noise.  To
    leave out all its pixels would leave out false detections.
    """
    difference = made.exposure
    plane = masks.flagged(difference.mask, [masks.SOURCE])
    labels, number = scipy.ndimage.label(plane)
    if not number or difference.psf is None:
        return plane
    x, y = difference.psf.average_position
    psf = difference.psf.at(x=x, y=y)
    certain = np.zeros(number + 1, dtype=bool)
    for exposure in (made.science, made.template):
        good = ~untrusted_pixels(exposure)
        image = np.where(good, exposure.data, 0)
        flat = image - smooth_background(image, good & ~plane)
        found = point_source_significance(flat, exposure.variance, good, psf)
        peaks = scipy.ndimage.maximum(found.image, labels, np.arange(1, number + 1))
        certain[1:] |= np.asarray(peaks) > _CERTAIN
    return certain[labels]


def _made(setting: Setting, science: Exposure, template: Exposure) -> dict[Kind, Made]:
    if not setting.solutions:
        return make_all(science, template, setting.recipe, setting.options.kinds)
    return make_again(science, template, setting.solutions)


def _with_psf(science: Exposure, made: Made) -> Exposure:
    """Science exposure with its own PSF, the measured one, or the solution's."""
    if science.psf is not None:
        return science
    psf = made.science.psf
    if psf is None and made.pair is not None:
        psf = with_measured_psf(made.science, made.pair, made.pair.science_sigma).psf
    if psf is None and made.solution.convolved == "template":
        psf = made.solution.psf
    if psf is None:
        raise ArgumentError.of(
            science.source or "The science exposure",
            "has no PSF and none can be measured, so"
            " no source can be injected; name one (--science-psf).",
        )
    science = science.replaced()
    science.psf = psf
    return science


def _drawn(setting: Setting, start: _Start, rng: np.random.Generator) -> QTable:
    """Sources of one realisation, with the columns that are known before the injection."""
    options = setting.options
    number = options.sources
    if number is None:
        area = int(np.count_nonzero(start.usable))
        number = max(1, round(area / (_SPACING * start.sigma) ** 2))
    sources = random_sources(
        start.with_psf,
        number,
        signal_to_noise=options.signal_to_noise,
        rng=rng,
        noise=start.difference,
        usable=start.usable,
        separation=options.separation,
    )
    x, y = sources["x"].value, sources["y"].value
    sources["ideal_signal_to_noise"] = sources["flux"].value * start.ideal(x, y)
    clear = ~_at(start.sources, np.stack([x, y], 1), start.science)
    for found in start.detections.values():
        strong = found[np.abs(np.asarray(found["significance"])) >= options.threshold]
        clear &= ~_near(np.stack([x, y], 1), _positions(strong), _CONFUSED * start.sigma)
    sources["clear"] = clear
    return sources


def _positions(table: QTable) -> Array:
    return np.stack([np.asarray(table[name].value, dtype=np.float64) for name in ("x", "y")], 1)


def _ideal_ratio(made: Made) -> Callable[[Array, Array], Array]:
    """Function of positions: signal-to-noise ratio of unit flux by the ideal matched filter."""
    science, template, solution = made.science, made.template, made.solution
    if made.pair is not None:
        science = with_measured_psf(science, made.pair, made.pair.science_sigma)
        template = with_measured_psf(template, made.pair, made.pair.template_sigma)
    psfs = science.psf, template.psf
    constant = solution.kernel.is_constant and all(
        isinstance(psf, KernelPointSpreadFunction) and psf.kernel.is_constant for psf in psfs
    )

    def ratio(x: Array, y: Array) -> Array:
        if psfs[0] is None or psfs[1] is None:
            return np.full(len(x), np.nan)
        noise = [local_variance(exposure, x, y) for exposure in (science, template)]
        result = np.empty(len(x))
        for part in [slice(None)] if constant else [slice(i, i + 1) for i in range(len(x))]:
            here = {"x": float(x[part][0]), "y": float(y[part][0])}
            scale = float(solution.kernel.at(**here).sum())
            if solution.convolved == "science":
                scale = 1 / (scale * solution.scale_factor)
            result[part] = ideal_signal_to_noise(
                psfs[0].at(**here),
                psfs[1].at(**here),
                science_variance=noise[0][part],
                template_variance=noise[1][part],
                flux_scale=scale,
            )
        return result

    return ratio


def _options(threshold: float, **options: Any) -> DetectionOptions:
    """Options of a detection that is judged by the variance plane."""
    return DetectionOptions(threshold=threshold, significance="plane", **options)


def _detected(made: dict[Kind, Made], kind: Kind, options: DetectionOptions) -> QTable:
    score = made["score"].exposure if kind == "score" else None
    return detect(made["difference"].exposure, score, options)


def _judged(
    setting: Setting, start: _Start, kind: Kind, made: dict[Kind, Made], sources: QTable
) -> dict[str, int]:
    """Add detections of the sources to their table; count detections by kind."""
    options = setting.options
    found = _detected(made, kind, _options(options.threshold, sign="positive"))
    x, y = sources["x"].value, sources["y"].value
    height = np.asarray(found["significance"], dtype=np.float64)
    positions = _positions(found)
    index = match_highest(x, y, positions[:, 0], positions[:, 1], height, start.radius)
    hit = index >= 0
    sources[f"{kind}_significance"] = significance_at(
        made[kind].exposure, x, y, score=kind == "score"
    )
    sources[f"{kind}_found"] = hit
    for name, column in (
        ("peak_significance", "significance"),
        ("x", "x"),
        ("y", "y"),
        ("x_err", "x_err"),
        ("y_err", "y_err"),
        ("flux", "psf_flux"),
        ("flux_err", "psf_flux_err"),
    ):
        values = found[column]
        plain = np.full(len(x), np.nan)
        plain[hit] = np.asarray(getattr(values, "value", values), dtype=np.float64)[index[hit]]
        unit = getattr(values, "unit", None)
        sources[f"{kind}_{name}"] = plain if unit is None else plain * unit
    return _counts(start, kind, positions, index[hit], np.stack([x, y], 1))


def _counts(
    start: _Start, kind: Kind, positions: Array, matched: Array, injected: Array
) -> dict[str, int]:
    """Numbers of detections off the static sources, by kind."""
    is_matched = np.zeros(len(positions), dtype=bool)
    is_matched[matched] = True
    is_known = _near(positions, _positions(start.detections[kind]), start.radius) & ~is_matched
    rest = ~is_matched & ~is_known
    is_companion = _near(positions, injected, _COMPANION * start.sigma) & rest
    free = _at(start.usable & ~start.sources, positions, start.science)
    return {
        "matched": int((is_matched & free).sum()),
        "companions": int((is_companion & free).sum()),
        "known": int((is_known & free).sum()),
        "spurious": int((rest & ~is_companion & free).sum()),
    }


def _at(plane: Array, positions: Array, exposure: Exposure) -> Array:
    """Values of a plane in the pixels nearest to some positions."""
    ny, nx = plane.shape
    pixels = np.floor(positions + 0.5).astype(np.intp) - exposure.origin[::-1]
    return np.asarray(plane[np.clip(pixels[:, 1], 0, ny - 1), np.clip(pixels[:, 0], 0, nx - 1)])


def _near(positions: Array, others: Array, radius: float) -> Array:
    if len(positions) == 0 or len(others) == 0:
        return np.zeros(len(positions), dtype=bool)
    distance, _ = scipy_part("spatial").cKDTree(others).query(positions)
    return np.asarray(distance <= radius)


def _false_detections(
    product: Exposure, found: QTable, sources: Array, threshold: float, *, score: bool
) -> FalseDetections:
    """Count detections off the static sources and away from doubtful pixels."""
    free = injectable_pixels(product) & ~sources
    height = np.asarray(found["significance"], dtype=np.float64)
    height = height[_at(free, _positions(found), product)]
    pixels = int(np.count_nonzero(free))
    thresholds = tuple(threshold - below for below in _BELOW)
    return FalseDetections(
        pixels=pixels,
        thresholds=thresholds,
        positive=tuple(int(np.sum(height >= t)) for t in thresholds),
        negative=tuple(int(np.sum(height <= -t)) for t in thresholds),
        expected=tuple(
            expected_false_detections(product, t, pixels, score=score) for t in thresholds
        ),
    )
