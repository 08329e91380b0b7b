"""``python -m benchmarks.detection``: what the detector finds where nothing is, and how well it
measures what is there.

A pair with stars is simulated and matched once for each mode: a constant and a spatially varying
correction, and a score.  Each realisation is a pair of the same PSFs and variances without any
source, which is subtracted and corrected with that solution.  On it are counted the peaks of both
signs beyond several thresholds, and beside them those of synthetic white noise of the same variance
plane, mask and PSF, and of the difference before its correction.  Theory is
`whitediff.detection.expected_peaks`, averaged over the field.

On the same differences stand point sources of known flux, with the difference's own PSF, for
forced and free photometry.  Last, one detection is timed against the fastest FFT pair of a frame.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import scipy.spatial
from astropy.table import Table

from whitediff import detection, fourier
from whitediff.exposures.detection import DetectionOptions, detections, forced_photometry
from whitediff.exposures.kernels import interpolated_kernel
from whitediff.exposures.masks import CONTAMINATED, UNTRUSTED_MASK_PLANES, flagged
from whitediff.exposures.matching import MatchOptions
from whitediff.exposures.model import Exposure
from whitediff.exposures.noise import rescaled, source_pixels
from whitediff.exposures.pipeline import Solved, make, solve_difference, solve_score
from whitediff.exposures.preparation import prepare
from whitediff.exposures.psf import KernelPointSpreadFunction, psf_images
from whitediff.exposures.solution import make_product, undecorrelated
from whitediff.injection import add_stamp
from whitediff.resampling import moved_stamps
from whitediff.simulation import SimulatedImage, SimulationOptions, simulate
from whitediff.threads import available_threads

from . import cases

type Array = np.ndarray

THRESHOLDS = (3.5, 4.0, 4.5, 5.0)
SIGNAL_TO_NOISE = (10.0, 20.0, 50.0, 200.0)
SPACING = 60
"""Pixels between the point sources of the photometry."""
GRID = 8
"""Places along each axis at which theory looks at the PSF."""


@dataclasses.dataclass(frozen=True)
class Mode:
    """How differences are made."""

    variation: float
    spatially_varying: bool
    score: bool

    @property
    def order(self) -> int:
        """Of the matching kernel."""
        return 2 if self.variation else 0


MODES = {
    "constant": Mode(0.0, spatially_varying=False, score=False),
    "spatial": Mode(0.08, spatially_varying=True, score=False),
    "score": Mode(0.0, spatially_varying=False, score=True),
}


def simulation(mode: Mode, shape: tuple[int, int], seed: int, *, empty: bool) -> SimulationOptions:
    """A pair, with or without sources."""
    numbers: dict[str, Any] = {"stars": 0, "galaxies": 0, "transients": 0} if empty else {}
    return SimulationOptions(shape=shape, seed=seed, variation=mode.variation, **numbers)


def exposure(image: SimulatedImage) -> Exposure:
    """A simulated image with its true PSF."""
    result = Exposure.from_arrays(image.image, variance=image.variance, mask=image.mask)
    model = image.psf
    ny, nx = image.image.shape
    if model.variation:
        kernel = interpolated_kernel(model.image, result.bbox, 3)
        result.psf = KernelPointSpreadFunction(kernel)
    else:
        stamp = model.image(nx / 2, ny / 2)
        result.psf = KernelPointSpreadFunction.from_image(stamp, result.bbox)
    return result


def pair(options: SimulationOptions) -> tuple[Exposure, Exposure]:
    """Science exposure and template."""
    simulated = simulate(options)
    return exposure(simulated.science), exposure(simulated.template)


def solved(mode: Mode, shape: tuple[int, int]) -> Solved:
    """A pair with stars, matched."""
    prepared = prepare(*pair(simulation(mode, shape, 1, empty=False)))
    options = MatchOptions(convolved="template")
    options = dataclasses.replace(
        options, fit=dataclasses.replace(options.fit, kernel_order=mode.order)
    )
    solve = solve_score if mode.score else solve_difference
    return solve(prepared, options, spatially_varying=mode.spatially_varying, noise="white")


def counts(found: detection.Significance) -> dict[str, list[int]]:
    """Peaks beyond each threshold, of each sign."""
    peaks = detection.find_peaks(found, THRESHOLDS[0]).significance
    return {
        name: [int((side * peaks > threshold).sum()) for threshold in THRESHOLDS]
        for name, side in (("positive", 1), ("negative", -1))
    }


def expected(image: Exposure, pixels: int, *, score: bool) -> list[float]:
    """Theory for one sign, averaged over the PSFs of the field."""
    box = image.bbox
    places = (np.arange(GRID) + 0.5) / GRID
    x, y = (each.ravel() for each in np.meshgrid(places * box.x.size, places * box.y.size))
    assert image.psf is not None
    curvature = detection.response_curvature if score else detection.noise_curvature
    stamps = psf_images(image.psf, x=x + box.x.start, y=y + box.y.start)
    level = float(np.mean([curvature(stamp) for stamp in stamps]))
    return [detection.expected_peaks(level, threshold, pixels) for threshold in THRESHOLDS]


def significance(image: Exposure, *, score: bool) -> detection.Significance:
    """Significance of a difference, or of a score where it owes nothing to bad pixels."""
    if not score:
        return detections(image, options=DetectionOptions(threshold=1e6)).significance
    good = ~flagged(image.mask, (*UNTRUSTED_MASK_PLANES, CONTAMINATED, "EDGE"))
    return detection.score_significance(image.image.array, image.variance.array, good)


def synthetic(image: Exposure, rng: np.random.Generator, *, score: bool) -> Exposure:
    """White noise with the variances, mask and PSF of an exposure; for a score it is filtered."""
    noise = rng.normal(size=image.shape).astype(np.float32)
    if score:
        box = image.bbox
        assert image.psf is not None
        response = psf_images(image.psf, x=np.array([box.x.center]), y=np.array([box.y.center]))
        centred = fourier.pad_center_origin(response[0] / response.max(), image.shape)
        # Whose autocorrelation is the response.
        filter_ft = np.sqrt(np.maximum(scipy.fft.rfft2(centred, workers=-1).real, 0))
        noise_ft = scipy.fft.rfft2(noise, workers=-1) * filter_ft
        noise = scipy.fft.irfft2(noise_ft, s=image.shape, workers=-1).astype(np.float32)
    noise *= np.sqrt(image.variance.array)
    result = Exposure.from_arrays(noise, variance=image.variance.array, psf=image.psf)
    result.masked_image.mask = image.mask
    return result


def false_detections(
    mode: Mode, start: Solved, shape: tuple[int, int], seed: int
) -> tuple[dict[str, Any], Exposure]:
    """Counts on one pair without sources, and its difference or score."""
    science, template = pair(simulation(mode, shape, seed, empty=True))
    solution = start.solution
    science = rescaled(science, solution.science_variance_factor)
    template = rescaled(template, solution.template_variance_factor)
    sources = source_pixels(science, template)
    image = make_product(solution, science, template, free=~sources, sources=sources).exposure
    before, _ = undecorrelated(solution, science, template, free=~sources)
    result: dict[str, Any] = {}
    for name, searched in (
        ("corrected", image),
        ("white noise", synthetic(image, np.random.default_rng([seed, 7]), score=mode.score)),
        ("uncorrected", before),
    ):
        found = significance(searched, score=mode.score)
        numbers: dict[str, Any] = counts(found)
        numbers["theory"] = expected(searched, found.pixels, score=mode.score)
        result[name] = numbers
    return result, image


def photometry(image: Exposure, seed: int) -> dict[float, dict[str, Array]]:
    """Pulls and relative errors of point sources on a difference."""
    rng = np.random.default_rng([seed, 11])
    ny, nx = image.shape
    y, x = (
        each.ravel() + rng.uniform(-0.5, 0.5, each.size)
        for each in np.mgrid[SPACING : ny - SPACING : SPACING, SPACING : nx - SPACING : SPACING]
    )
    assert image.psf is not None
    half = psf_images(image.psf, x=x[:1], y=y[:1]).shape[1] // 2
    row, column = (np.floor(each + 0.5).astype(int) for each in (y, x))
    ratio = rng.choice(SIGNAL_TO_NOISE, len(x))
    positions = Table({"x": x, "y": y})
    noise = forced_photometry(image, positions)["psf_flux_err"]
    flux = ratio * np.asarray(noise) * rng.choice([-1, 1], len(x))
    filled = image.image.array.copy()
    for i in range(len(x)):
        psf = psf_images(image.psf, x=x[i : i + 1], y=y[i : i + 1])
        (stamp,) = moved_stamps(psf, y[i : i + 1] - row[i], x[i : i + 1] - column[i], half)
        add_stamp(filled, flux[i] * stamp[0], float(column[i]), float(row[i]))
    with_sources = Exposure.from_arrays(filled, variance=image.variance.array, psf=image.psf)
    with_sources.masked_image.mask = image.mask
    forced = forced_photometry(with_sources, positions)
    found = detections(with_sources).catalogue
    clean = ~np.asarray(forced["flag_bad"]) & ~np.asarray(forced["flag_no_data"])
    clean &= np.isfinite(forced["psf_flux"])
    places = np.stack([np.asarray(found[name].value) for name in ("x", "y")], axis=1)
    distance, index = scipy.spatial.cKDTree(places).query(np.stack([x, y], axis=1))
    clean &= distance < 2
    free = found[index]
    result = {}
    for value in SIGNAL_TO_NOISE:
        use = clean & (ratio == value)
        truth = flux[use]
        result[value] = {
            "forced": np.asarray(forced["psf_flux"])[use] / truth - 1,
            "forced pull": (np.asarray(forced["psf_flux"])[use] - truth)
            / np.asarray(forced["psf_flux_err"])[use],
            "free": np.asarray(free["psf_flux"])[use] / truth - 1,
            "free pull": (np.asarray(free["psf_flux"])[use] - truth)
            / np.asarray(free["psf_flux_err"])[use],
            "x pull": (free["x"].value - x)[use] / free["x_err"].value[use],
            "y pull": (free["y"].value - y)[use] / free["y_err"].value[use],
        }
    return result


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Median of some runs."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def timing(start: Solved, empty: Exposure, repeats: int) -> dict[str, float]:
    """A detection in FFT pairs of the frame, on noise and on a field with stars and transients."""
    floor = cases.floor(empty.shape)
    field = (
        make(start).product.exposure if hasattr(make(start), "product") else make(start).exposure
    )
    result = {}
    for name, image in (("noise", empty), ("field", field)):
        pairs = seconds(floor, 3 * repeats)
        taken = seconds(lambda image=image: detections(image), repeats)
        pairs = (pairs + seconds(floor, 3 * repeats)) / 2
        result[name] = taken / pairs
        result[f"{name} seconds"] = taken
    return result


def counted_table(totals: dict[str, dict[str, dict[str, Array]]]) -> list[str]:
    """Markdown: peaks of each sign against theory."""
    lines = [
        "| mode | noise | threshold | positive | negative | theory | positive/theory |"
        " negative/theory | allowed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for mode, kinds in totals.items():
        for kind, numbers in kinds.items():
            for i, threshold in enumerate(THRESHOLDS):
                theory = numbers["theory"][i]
                ratios = [numbers[sign][i] / theory for sign in ("positive", "negative")]
                allowed = 0.03 + 3 / math.sqrt(theory)
                lines.append(
                    f"| {mode} | {kind} | {threshold:g} | {numbers['positive'][i]:.0f} |"
                    f" {numbers['negative'][i]:.0f} | {theory:.1f} | {ratios[0]:.3f} |"
                    f" {ratios[1]:.3f} | ± {allowed:.3f} |"
                )
    return lines


def measured_table(measured: dict[float, dict[str, list[Array]]]) -> list[str]:
    """Markdown: bias and pull of fluxes and positions."""
    lines = [
        "| S/N | sources | forced bias, % | forced pull | free bias, % | less 1/(S/N)², % |"
        " free pull | x pull | y pull |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for ratio, columns in measured.items():
        every = {name: np.concatenate(parts) for name, parts in columns.items()}
        n = len(every["forced"])
        error = 100 / ratio / math.sqrt(n)
        free = 100 * every["free"].mean()
        pulls = [every[f"{name} pull"].std() for name in ("forced", "free", "x", "y")]
        lines.append(
            f"| {ratio:g} | {n} | {100 * every['forced'].mean():+.3f} ± {error:.3f} |"
            f" {pulls[0]:.3f} | {free:+.3f} ± {error:.3f} | {free - 100 / ratio**2:+.3f} |"
            f" {pulls[1]:.3f} | {pulls[2]:.3f} | {pulls[3]:.3f} |"
        )
    return lines


def main() -> None:
    """Measure, print the tables and write them with their numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description=__doc__)
    parser.add_argument("--size", default="4072x4000", metavar="WIDTHxHEIGHT")
    parser.add_argument("--realisations", type=int, default=10)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--repeats", type=int, default=5, help="of the timing; 0 for none")
    parser.add_argument("--output", type=Path, default=Path("benchmark-output"))
    options = parser.parse_args()
    width, height = (int(part) for part in options.size.split("x"))
    shape = (height, width)
    logging.getLogger("whitediff").setLevel(logging.ERROR)
    options.output.mkdir(parents=True, exist_ok=True)
    totals: dict[str, Any] = {}
    measured: dict[float, dict[str, list[Array]]] = {}
    times: dict[str, dict[str, float]] = {}
    for name in options.modes:
        mode = MODES[name]
        start = solved(mode, shape)
        kinds: dict[str, Any] = {}
        image = None
        for number in range(options.realisations):
            begun = time.perf_counter()
            result, image = false_detections(mode, start, shape, 100 + number)
            for kind, numbers in result.items():
                total = kinds.setdefault(kind, {})
                for key, values in numbers.items():
                    total[key] = total.get(key, 0) + np.asarray(values, dtype=float)
            if name == "constant" or (name == "spatial" and number == 0):
                for ratio, columns in photometry(image, number).items():
                    store = measured.setdefault(ratio, {})
                    for key, values in columns.items():
                        store.setdefault(key, []).append(values)
            taken = time.perf_counter() - begun
            print(f"{name} {number + 1}/{options.realisations}: {taken:.0f} s", file=sys.stderr)
        totals[name] = kinds
        if options.repeats and not mode.score and image is not None:
            times[name] = timing(start, image, options.repeats)
    lines = counted_table(totals)
    if measured:
        lines += ["", *measured_table(measured)]
    if times:
        title = f"| detection, {available_threads()} thread(s) | FFT pairs | s |"
        lines += ["", title, "|---|---|---|"]
        for name, values in times.items():
            for field in ("noise", "field"):
                lines.append(
                    f"| {name}, {field} | {values[field]:.1f} | {values[f'{field} seconds']:.2f} |"
                )
    text = "\n".join(lines) + "\n"
    (options.output / "detection.md").write_text(text)
    plain = json.loads(json.dumps(totals, default=lambda array: array.tolist()))
    (options.output / "detection.json").write_text(
        json.dumps({"shape": shape, "counts": plain, "times": times}, indent=1)
    )
    print(text)
    print(f"{options.output}/detection.md, detection.json: written.")


if __name__ == "__main__":
    main()
