"""What detection and photometry claim, measured: ``python -m benchmarks.detection --help``.

Every scene has a known truth, a matching kernel that is known too, and elliptical PSFs:

noise
    Peaks of differences without any source, against the theory of Gaussian fields; beside them
    the same detector on white noise that never was a difference, and on the difference before
    its correction.
dipoles
    Stars that the template has 0.3 pixels off, and transients.
photometry
    Fluxes and positions of transients, forced and free.
speed
    Detection over one pair of real transforms of the frame in single precision.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.spatial
import sep
from astropy.table import Table

from whitediff import Exposure
from whitediff.decorrelation.exposures import CorrectionOptions
from whitediff.defects.exposures import NO_DEFECTS
from whitediff.detection.exposures import DetectionOptions, detect, forced_photometry
from whitediff.detection.peaks import expected_peaks
from whitediff.evaluation.simulation import PsfModel, SimulationOptions, simulate
from whitediff.exposures import kernels, masks
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.matching.preparation import PreparationOptions
from whitediff.numerics.threads import available_threads
from whitediff.subtraction.recipe import Recipe
from whitediff.subtraction.solution import Solution, make_product, subtracted

type Array = npt.NDArray[Any]

SHAPE = (4000, 4072)
LEVELS = (3.5, 4.0, 4.5, 5.0)
ELLIPTICITY = (0.1, -0.07)
FLUX_SCALE = 1.3
SCIENCE_SIGMA, TEMPLATE_SIGMA = 3.0, 2.2
VARIATION = {"constant": 0.0, "spatial": 0.1, "score": 0.0}
"""Relative change of the science PSF's width from the middle to the right edge, by mode."""

KERNEL = 41
MISREGISTRATION = 0.3
SPACING = 64

# Beyond the mask's planes, pixels whose noise is not what the variance plane says.
CLEAN = (*masks.UNTRUSTED_MASK_PLANES, "EDGE", masks.CONTAMINATED)


def profile(sigma: float) -> PsfModel:
    """The Gaussian of a width, of the shape that all have."""
    return PsfModel(sigma=sigma, frame=SHAPE, ellipticity=ELLIPTICITY)


def as_exposure(simulated: Any) -> Exposure:
    """Exposure of one simulated image, with its true PSF."""
    result = Exposure.from_arrays(simulated.image, variance=simulated.variance, mask=simulated.mask)
    order = 4 if simulated.psf.variation else 0
    result.psf = KernelPointSpreadFunction(
        kernels.interpolated_kernel(simulated.psf.image, result.bbox, order)
    )
    return result


RECIPES = {
    varying: Recipe(
        preparation=PreparationOptions(defects=NO_DEFECTS),
        correction=CorrectionOptions(spatially_varying=varying),
    )
    for varying in (False, True)
}
"""How differences are corrected, as the kernel varies or not."""


def solution(mode: str, science: Exposure) -> Solution:
    """How the pair is subtracted: with the kernel that is known."""
    box = science.bbox
    psf = PsfModel(
        sigma=SCIENCE_SIGMA, frame=science.shape, ellipticity=ELLIPTICITY,
        variation=VARIATION[mode],
    )  # fmt: skip
    factor = 2.0 if mode == "score" else 1.0

    def kernel_at(x: float, y: float) -> Array:
        width = math.sqrt(factor * psf.sigma_at(x) ** 2 - TEMPLATE_SIGMA**2)
        return FLUX_SCALE * profile(width).stamp(0.0, 0.0, size=KERNEL + 20 * (factor > 1))

    return Solution(
        kernel=kernels.interpolated_kernel(kernel_at, box, 4 if psf.variation else 0),
        background=0.0,
        convolved="template",
        preconvolution_kernel=profile(SCIENCE_SIGMA).image(0, 0) if mode == "score" else None,
        recipe=RECIPES[mode == "spatial"],
        psf=science.psf,  # type: ignore[arg-type]
    )


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is searched, and what it was made of."""

    difference: Exposure
    score: Exposure | None
    uncorrected: Exposure


def scene(mode: str, science: Exposure, template: Exposure) -> Scene:
    """Difference, and in score mode the score, of a pair."""
    plain = solution("constant" if mode == "score" else mode, science)
    before, _ = subtracted(plain, science, template)
    difference = make_product(plain, science, template).exposure
    score = None
    if mode == "score":
        score = make_product(solution(mode, science), science, template).exposure
    return Scene(difference, score, before)


def pair(mode: str, seed: int, shape: tuple[int, int]) -> tuple[Exposure, Exposure]:
    """Science image and template with nothing but noise on them."""
    simulation = simulate(
        SimulationOptions(
            shape=shape, seed=seed, science_psf=SCIENCE_SIGMA, template_psf=TEMPLATE_SIGMA,
            flux_scale=FLUX_SCALE, ellipticity=ELLIPTICITY, variation=VARIATION[mode], stars=0,
            galaxies=0, transients=0, bad_columns=2, nan_pixels=20,
        )
    )  # fmt: skip
    return as_exposure(simulation.science), as_exposure(simulation.template)


def counted(
    difference: Exposure, score: Exposure | None = None
) -> dict[float, tuple[int, int, float]]:
    """Sources of both signs above each level, and how many of one the theory has."""
    lowest = min(LEVELS)
    options = DetectionOptions(threshold=lowest, exclude_mask_planes=CLEAN)
    table = detect(difference, score, options)
    value = np.asarray(table["significance"])
    unit = table.meta["expected_false_per_sign"] / expected_peaks(1.0, lowest)
    return {
        level: (
            int((value > level).sum()),
            int((value < -level).sum()),
            unit * expected_peaks(1.0, level),
        )
        for level in LEVELS
    }


def noise(options: argparse.Namespace) -> dict[str, Any]:
    """Peaks of noise, of each sign."""
    result: dict[str, Any] = {}
    for mode in VARIATION:
        # Those of the score's scenes are those of the constant ones.
        others = () if mode == "score" else ("white noise", "uncorrected")
        rows: dict[str, dict[float, list[Any]]] = {
            name: {level: [0, 0, 0.0] for level in LEVELS} for name in ("difference", *others)
        }
        for i in range(options.realisations):
            print(f"noise, {mode}: {i + 1} of {options.realisations} ...", file=sys.stderr)
            made = scene(mode, *pair(mode, options.seed + i, options.shape))
            searched = {"difference": (made.difference, made.score)}
            if others:
                generator = np.random.default_rng(10_000 + options.seed + i)
                values = generator.standard_normal(options.shape, dtype=np.float32)
                values *= np.sqrt(made.difference.variance)
                white = made.difference.replaced(data=values)
                searched |= {"white noise": (white, None), "uncorrected": (made.uncorrected, None)}
            for name, arguments in searched.items():
                for level, numbers in counted(*arguments).items():
                    rows[name][level] = [
                        a + b for a, b in zip(rows[name][level], numbers, strict=True)
                    ]
        result[mode] = {name: {str(k): v for k, v in row.items()} for name, row in rows.items()}
    return result


def print_noise(result: dict[str, Any]) -> None:
    """Tables of `noise`."""
    for mode, rows in result.items():
        print(f"\n{mode}\n")
        print("| | above | theory | positive | negative | both / theory | allowed |")
        print("|---|---|---|---|---|---|---|")
        for name, row in rows.items():
            for level, (positive, negative, theory) in row.items():
                ratio = (positive + negative) / (2 * theory)
                allowed = 3 / math.sqrt(2 * theory) + 0.03
                print(
                    f"| {name} | {level} | {theory:.1f} | {positive} | {negative} | {ratio:.3f} |"
                    f" 1 ± {allowed:.3f} |"
                )


def grid(shape: tuple[int, int], generator: np.random.Generator) -> tuple[Array, Array]:
    """Positions apart from each other, at all places within a pixel."""
    y, x = (
        each.ravel()
        for each in np.meshgrid(
            *(np.arange(SPACING, n - SPACING, SPACING) for n in shape), indexing="ij"
        )
    )
    return tuple(at + generator.uniform(-0.5, 0.5, at.size) for at in (x, y))  # type: ignore[return-value]


def with_sources(
    exposure: Exposure, x: Array, y: Array, flux: Array, generator: np.random.Generator
) -> Exposure:
    """Exposure with point sources, and the noise of their photons."""
    gain, image = 2.0, np.zeros(exposure.shape)
    for each in zip(x, y, flux, strict=True):
        _add(image, exposure.psf, *each)
    # The photons' own noise, Gaussian: its sign may be any.
    extra = np.abs(image) / gain
    noisy = image + generator.normal(size=image.shape) * np.sqrt(extra)
    return exposure.replaced(
        data=(exposure.data + noisy).astype(np.float32),
        variance=(exposure.variance + extra).astype(np.float32),
    )


def _add(image: Array, psf: Any, x: float, y: float, flux: float) -> None:
    star, box = psf.star(x=x, y=y)
    image[box.y.start : box.y.stop, box.x.start : box.x.stop] += flux * star


def blank(options: argparse.Namespace, seed: int) -> tuple[Exposure, Exposure]:
    """A pair without sources or bad pixels."""
    generator = np.random.default_rng(seed)
    made = []
    for variance, sigma in ((900.0, SCIENCE_SIGMA), (300.0, TEMPLATE_SIGMA)):
        image = generator.normal(0, math.sqrt(variance), options.shape).astype(np.float32)
        exposure = Exposure.from_arrays(image, variance=variance)
        exposure.psf = KernelPointSpreadFunction.from_image(
            profile(sigma).image(0, 0), exposure.bbox
        )
        made.append(exposure)
    return made[0], made[1]


def signal_to_noise(difference: Exposure) -> float:
    """Significance of a source of unit flux."""
    box = difference.bbox
    psf = difference.psf.at(x=box.x.center, y=box.y.center)
    variance = float(np.median(difference.variance))
    return math.sqrt(float(np.square(psf).sum()) / variance)


def dipoles(options: argparse.Namespace) -> dict[str, Any]:
    """Share of dipoles and of transients that are classified as what they are."""
    result: dict[str, Any] = {}
    generator = np.random.default_rng(options.seed)
    science, template = blank(options, options.seed)
    unit = signal_to_noise(make_product(solution("constant", science), science, template).exposure)
    x, y = grid(options.shape, generator)
    for low, high in ((15, 20), (20, 40), (40, 100)):
        wanted = generator.uniform(low, high, x.size)
        angle = generator.uniform(0, 2 * np.pi, x.size)
        moved = (x + MISREGISTRATION * np.cos(angle), y + MISREGISTRATION * np.sin(angle))
        made = [
            with_sources(exposure, *at, flux, generator)
            for exposure, at, flux in (
                (science, moved, _dipole_flux(wanted, unit)),
                (template, (x, y), _dipole_flux(wanted, unit) / FLUX_SCALE),
            )
        ]  # fmt: skip
        difference = make_product(solution("constant", science), *made).exposure
        result[f"dipoles, S/N {low} to {high}"] = _labels(detect(difference), x, y)
    for low, high in ((5, 15), (15, 100), (100, 1000)):
        flux = generator.uniform(low, high, x.size) / unit
        made_science = with_sources(science, x, y, flux, generator)
        difference = make_product(solution("constant", science), made_science, template).exposure
        result[f"transients, S/N {low} to {high}"] = _labels(detect(difference), x, y)
    return result


def _dipole_flux(wanted: Array, unit: float) -> Array:
    """Flux of stars that leave dipoles whose own matched filter has these significances.

    ``|∇P|`` over ``|P|`` is 1/(√2 σ) along any axis of a round Gaussian.
    """
    return wanted / (unit * MISREGISTRATION / (math.sqrt(2) * SCIENCE_SIGMA))


def _labels(table: Any, x: Array, y: Array) -> dict[str, int]:
    labels = {"number": len(x), "found": 0}
    if not len(table):
        return labels
    tree = scipy.spatial.cKDTree(np.stack([table["x"].value, table["y"].value], axis=1))
    distance, index = tree.query(np.stack([x, y], axis=1))
    # A dipole's row has the place of its stronger lobe, √2 σ from the star.
    found = distance < 3 * SCIENCE_SIGMA
    labels["found"] = int(found.sum())
    for name in np.asarray(table["classification"])[index[found]]:
        labels[str(name)] = labels.get(str(name), 0) + 1
    return labels


def print_dipoles(result: dict[str, Any]) -> None:
    """Table of `dipoles`."""
    names = ("number", "found", "dipole", "point", "extended", "artifact")
    print("\n| | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for title, labels in result.items():
        print(f"| {title} | " + " | ".join(str(labels.get(name, 0)) for name in names) + " |")


def photometry(options: argparse.Namespace) -> dict[str, Any]:
    """Fluxes and positions of transients of one significance each."""
    result: dict[str, Any] = {}
    generator = np.random.default_rng(options.seed)
    science, template = blank(options, options.seed)
    unit = signal_to_noise(make_product(solution("constant", science), science, template).exposure)
    x, y = grid(options.shape, generator)
    for ratio in (10.0, 30.0, 100.0):
        flux = np.full(x.size, ratio / unit)
        made = with_sources(science, x, y, flux, generator)
        difference = make_product(solution("constant", science), made, template).exposure
        forced = forced_photometry(difference, Table({"x": x, "y": y}))
        free = detect(difference)
        tree = scipy.spatial.cKDTree(np.stack([free["x"].value, free["y"].value], axis=1))
        distance, index = tree.query(np.stack([x, y], axis=1))
        found = distance < SCIENCE_SIGMA
        free = free[index[found]]

        def of(values: Array) -> tuple[float, float, float]:
            good = values[np.isfinite(values)]
            return float(good.mean()), float(good.std() / math.sqrt(good.size)), float(good.std())

        # Without the photons of the sources themselves the error would be smaller.
        actual = flux[0] / float(np.median(forced["psf_flux_err"].value))
        result[f"{ratio:g}"] = {
            "number": x.size,
            "found": int(found.sum()),
            "signal_to_noise": actual,
            "forced_flux": of(forced["psf_flux"].value / flux - 1),
            "forced_pull": of((forced["psf_flux"].value - flux) / forced["psf_flux_err"].value),
            "free_flux": of(free["psf_flux"].value / flux[0] - 1),
            "free_pull": of((free["psf_flux"].value - flux[0]) / free["psf_flux_err"].value),
            "x_pull": of((free["x"].value - x[found]) / free["x_err"].value),
            "y_pull": of((free["y"].value - y[found]) / free["y_err"].value),
            "aperture_pull": of(
                (forced["aperture_flux"].value - _enclosed(difference, forced.meta) * flux)
                / forced["aperture_flux_err"].value
            ),
        }
    return result


def _enclosed(difference: Exposure, meta: Any) -> float:
    """Share of a point source's flux in the aperture."""
    box = difference.bbox
    psf = difference.psf.at(x=box.x.center, y=box.y.center)
    flux, _, _ = sep.sum_circle(
        psf, [psf.shape[1] // 2], [psf.shape[0] // 2], meta["aperture_radius"], subpix=0
    )
    return float(flux[0])


def print_photometry(result: dict[str, Any]) -> None:
    """Table of `photometry`."""
    print("\n| S/N | number | forced flux / true − 1 | forced pull σ | free flux / true − 1 |"
          " 1/(S/N)² | free pull σ | x, y pull σ | aperture pull σ |")  # fmt: skip
    print("|---" * 9 + "|")
    for row in result.values():
        forced, free = row["forced_flux"], row["free_flux"]
        print(
            f"| {row['signal_to_noise']:.1f} | {row['number']} |"
            f" {100 * forced[0]:+.2f} ± {100 * forced[1]:.2f} % | {row['forced_pull'][2]:.3f} |"
            f" {100 * free[0]:+.2f} ± {100 * free[1]:.2f} % |"
            f" {100 / row['signal_to_noise'] ** 2:.2f} % | {row['free_pull'][2]:.3f} |"
            f" {row['x_pull'][2]:.3f}, {row['y_pull'][2]:.3f} | {row['aperture_pull'][2]:.3f} |"
        )


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a detection, and of one pair of transforms."""
    made = {}
    for name, mode in (("constant PSF", "constant"), ("varying PSF", "spatial")):
        simulation = simulate(
            SimulationOptions(
                shape=options.shape, seed=options.seed, science_psf=SCIENCE_SIGMA,
                template_psf=TEMPLATE_SIGMA, flux_scale=FLUX_SCALE, ellipticity=ELLIPTICITY,
                variation=VARIATION[mode],
            )
        )  # fmt: skip
        science, template = as_exposure(simulation.science), as_exposure(simulation.template)
        made[name] = make_product(solution(mode, science), science, template).exposure
    image, threads = made["constant PSF"].data, available_threads()
    image = np.nan_to_num(image)

    def floor() -> None:
        spectrum = scipy.fft.rfft2(image, workers=threads)
        scipy.fft.irfft2(spectrum, s=image.shape, workers=threads, overwrite_x=True)

    cases: dict[str, Callable[[], object]] = {"one FFT pair": floor} | {
        f"detect, {name}": lambda each=each: detect(each)  # type: ignore[misc]
        for name, each in made.items()
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.repeats):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            times[name].append(time.perf_counter() - start)
    return {"threads": threads, "sources": len(detect(made["varying PSF"]))} | {
        name: statistics.median(values) for name, values in times.items()
    }


def print_speed(result: dict[str, Any]) -> None:
    """Table of `speed`."""
    pair_time = result["one FFT pair"]
    print(f"\n{result['threads']} threads, {result['sources']} sources\n")
    print("| | seconds | FFT pairs |\n|---|---|---|")
    for name, value in result.items():
        if isinstance(value, float):
            print(f"| {name} | {value:.2f} | {value / pair_time:.1f} |")


PARTS = {
    "noise": (noise, print_noise),
    "dipoles": (dipoles, print_dipoles),
    "photometry": (photometry, print_photometry),
    "speed": (speed, print_speed),
}


def main() -> None:
    """Measure what is asked for, print tables and write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detection",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    parser.add_argument("--shape", type=int, nargs=2, default=SHAPE, metavar=("NY", "NX"))
    parser.add_argument("--realisations", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5, help="median of so many runs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    options = parser.parse_args()
    options.shape = tuple(options.shape)
    found = dict(_measured(options))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _measured(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    for part in options.parts or PARTS:
        measure, show = PARTS[part]
        result = measure(options)
        show(result)
        sys.stdout.flush()
        yield part, result


if __name__ == "__main__":
    main()
