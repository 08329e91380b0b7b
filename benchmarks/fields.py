"""``python -m benchmarks.fields``: fields of many kinds, beside HOTPANTS and SFFT where these are.

Scenes are GalSim's (`benchmarks.field_scenes`), and so is the truth.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import scipy.signal
from astropy.io import fits
from astropy.table import Table

from whitediff.detection.catalog import believed
from whitediff.detection.exposures import detect, forced_photometry
from whitediff.errors import WhitediffError
from whitediff.formats import read_exposure

from .field_scenes import KINDS, Field, field

type Array = npt.NDArray[Any]

_SMALLEST = 7
"""Pixels of a kernel's half-width, at least."""
_CLIP = 5.0
_BRIGHT = 40.0
_THRESHOLD = 5.0
_FINER = 8
_PLACES = 15000
"""In empty sky, at most: they tell the noise to one per cent."""
_COLUMNS = {
    "pix": "variance of pixels over the plane, in empty sky",
    "filt": "variance of fluxes over their errors, in empty sky",
    "sum": "kernel sum, with the wings beyond it where a program tells them, over the true one",
    "sum pull": "its departure over its error",
    "bias": "fluxes over the true ones, less 1, weighted",
    "bias pull": "the same over its error, from the noise and that which a program says all fluxes"
    " have in common",
    "pull rms": "fluxes' departures over their errors, S/N above 40: root of the mean square",
    "found": "share of the transients",
    "false": "believed detections that are no transients",
    "FWHM": "full width at half maximum of the science image's PSF over the true one",
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What a program made of a pair: image, variance, and what it measured.

    Attributes
    ----------
    image, variance
        ``(size, size)``.
    fluxes
        Of a table of places (x, y): fluxes and their errors.
    x, y
        Of believed detections.
    kernel_sum, kernel_sum_error
        NaN where they are not told.
    common_error
        Relative, of all fluxes.
    fwhm
        Of the science image's PSF, pixels; NaN where it is not told.
    """

    image: Array
    variance: Array
    fluxes: Callable[[Array, Array], tuple[Array, Array]]
    x: Array
    y: Array
    kernel_sum: float
    kernel_sum_error: float
    common_error: float = 0.0
    fwhm: float = math.nan


def by_whitediff(scene: Field, folder: Path) -> Result:
    """Result of the command with its defaults, without PSFs."""
    files = _written(scene, folder)
    output = folder / "difference.fits"
    command = [sys.executable, "-m", "whitediff", "subtract", *map(str, files[:2])]
    for option, file in zip(("--science-variance", "--template-variance"), files[2:], strict=True):
        command += [option, str(file)]
    done = subprocess.run(
        [*command, "--output", str(output), "--overwrite", "--threads", "1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise WhitediffError(done.stderr.strip().splitlines()[-1])
    exposure = read_exposure(output)
    header = fits.getheader(output)
    total, error = header["WDKWSUM"], header["WDKWERR"]
    if header["WDCONV"] == "science":
        total, error = 1 / total, error / total**2
    rows = detect(exposure)
    rows = rows[believed(rows)]

    def fluxes(x: Array, y: Array) -> tuple[Array, Array]:
        table = forced_photometry(exposure, Table({"x": x, "y": y}))
        return table["psf_flux"].value, table["psf_flux_err"].value

    return Result(
        exposure.data,
        exposure.variance,
        fluxes,
        rows["x"].value,
        rows["y"].value,
        total,
        error,
        header.get("WDPSFERR", 0.0),
        header["WDSFWHM"],
    )


def by_hotpants(scene: Field, folder: Path, program: Path) -> Result:
    """Result of HOTPANTS, whose kernel's Gaussians follow the true widths."""
    science, template, *planes = _written(scene, folder)
    noises = []
    for plane in planes:
        noises.append(plane.with_suffix(".sigma.fits"))
        fits.writeto(noises[-1], np.sqrt(fits.getdata(plane)), overwrite=True)
    widths = [_width(psf) for psf in scene.psfs]
    wider, half = max(widths), _half_width(scene)
    sigma = math.sqrt(max(abs(widths[0] ** 2 - widths[1] ** 2), 0.3))
    output, noise = folder / "hotpants.fits", folder / "hotpants.noise.fits"
    gaussians = [3, 6, 0.5 * sigma, 4, sigma, 2, 2 * sigma]
    command = [
        str(program), "-inim", science, "-tmplim", template, "-outim", output, "-oni", noise,
        "-ini", noises[0], "-tni", noises[1], "-il", "-1e9", "-tl", "-1e9", "-iu", "1e9", "-tu",
        "1e9", "-c", "t" if widths[0] > widths[1] else "i", "-n", "i", "-r", half, "-rss",
        half + int(3 * wider), "-ng", *gaussians, "-ko", "1", "-bgo", "2", "-nsx", "8", "-nsy",
        "8", "-v", "0", "-hki",
    ]  # fmt: skip
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, check=False
    )
    if done.returncode or not output.exists():
        raise WhitediffError(f"hotpants ended with {done.returncode}")
    image, sigma_image = fits.getdata(output).astype(float), fits.getdata(noise).astype(float)
    header = fits.getheader(output)
    total = float(header.get("KSUM00", math.nan))
    if widths[0] < widths[1]:
        total = 1 / total
    variance = np.where((sigma_image > 0) & (np.abs(image) > 1e-29), sigma_image**2, np.inf)
    psf = scene.psfs[int(widths[1] > widths[0])]
    return _filtered(image, variance, psf, total)


def by_sfft(scene: Field, folder: Path) -> Result:
    """Result of SFFT, whose masked images are those around sources of both."""
    from sfft.CustomizedPacket import Customized_Packet  # type: ignore[import-not-found]

    files = _written(scene, folder)
    widths = [_width(psf) for psf in scene.psfs]
    lit = np.ones(scene.images[0].shape, bool)
    for image, variance in zip(scene.images, scene.variances, strict=True):
        smooth = scipy.ndimage.gaussian_filter(image / np.sqrt(np.median(variance)), max(widths))
        lit &= scipy.ndimage.binary_dilation(smooth > 1, iterations=int(3 * max(widths)))
    masked = []
    for file, image in zip(files[:2], scene.images, strict=True):
        masked.append(file.with_suffix(".masked.fits"))
        fits.writeto(masked[-1], np.where(lit, image, 0), overwrite=True)
    output = folder / "sfft.fits"
    convolved = "REF" if widths[0] > widths[1] else "SCI"
    Customized_Packet.CP(
        str(files[1]), str(files[0]), str(masked[1]), str(masked[0]), convolved,
        _half_width(scene), FITS_DIFF=str(output), KerPolyOrder=1, BGPolyOrder=1,
        BACKEND_4SUBTRACT="Numpy", NUM_CPU_THREADS_4SUBTRACT=1, VERBOSE_LEVEL=0,
    )  # fmt: skip
    image = fits.getdata(output).astype(float)
    # It tells no variance: that of its pixels in empty sky.
    variance = np.full(image.shape, _clipped_variance(image[scene.empty]))
    return _filtered(image, variance, scene.psfs[int(convolved == "SCI")], math.nan)


def _written(scene: Field, folder: Path) -> list[Path]:
    """Science image, template, and their variance planes."""
    files = []
    for part in ("images", "variances"):
        for role, plane in zip(("science", "template"), getattr(scene, part), strict=True):
            files.append(folder / f"{role}.{part}.fits")
            fits.writeto(files[-1], plane.astype(np.float32), overwrite=True)
    return files


def _width(psf: Array) -> float:
    """Width (sigma) of a Gaussian with as many effective pixels."""
    return math.sqrt(1 / (psf**2).sum() / (4 * math.pi))


def _full_width(psf: Array) -> float:
    """Full width at half maximum: diameter of a circle as large as what is above that."""
    middle = scipy.ndimage.zoom(psf, (_FINER * (len(psf) - 1) + 1) / len(psf), order=3)
    return 2 * math.sqrt(np.count_nonzero(middle > middle.max() / 2) / math.pi) / _FINER


def _half_width(scene: Field) -> int:
    return max(_SMALLEST, math.ceil(2.5 * 2.3548 * max(map(_width, scene.psfs)) / 1.5))


def _filtered(image: Array, variance: Array, psf: Array, total: float) -> Result:
    """Sources and fluxes by a matched filter with the true PSF."""
    good = np.isfinite(image) & np.isfinite(variance) & (variance > 0)
    weight = np.where(good, 1 / np.where(good, variance, 1), 0)
    signal = _correlated(np.where(good, image, 0) * weight, psf)
    norm = np.sqrt(np.maximum(_correlated(weight, psf**2), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        significance = np.where(norm > 0.3 * np.median(norm), signal / norm, 0)
    height = np.abs(significance)
    peaks = (height == scipy.ndimage.maximum_filter(height, 5)) & (height > _THRESHOLD)
    rows, columns = np.nonzero(peaks)

    def fluxes(x: Array, y: Array) -> tuple[Array, Array]:
        values, errors = [], []
        half = len(psf) // 2
        for at_x, at_y in zip(x, y, strict=True):
            column, row = round(at_x), round(at_y)
            moved = scipy.ndimage.shift(psf, (at_y - row, at_x - column), order=3)
            box = np.s_[row - half : row + half + 1, column - half : column + half + 1]
            near_rows, near_columns = (slice(max(0, part.start), part.stop) for part in box)
            data, weights = image[near_rows, near_columns], weight[near_rows, near_columns]
            first = near_rows.start - row + half, near_columns.start - column + half
            model = moved[first[0] :, first[1] :][: data.shape[0], : data.shape[1]]
            square = (model**2 * weights).sum()
            values.append((np.where(weights > 0, data, 0) * model * weights).sum() / square)
            errors.append(1 / math.sqrt(square))
        return np.array(values), np.array(errors)

    return Result(image, variance, fluxes, columns, rows, total, math.nan)


def _correlated(image: Array, psf: Array) -> Array:
    result: Array = scipy.signal.fftconvolve(image, psf[::-1, ::-1], mode="same")
    return result


def _clipped_variance(values: Array) -> float:
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, (25, 75))
    near = np.abs(values - np.median(values)) < _CLIP * 0.7413 * (high - low)
    return float(np.mean((values[near] - np.median(values)) ** 2))


def judged(scene: Field, result: Result, rng: np.random.Generator) -> dict[str, float]:
    """Compare what a program made with the truth; see the columns."""
    known = scene.empty & np.isfinite(result.image) & (result.variance > 0)
    known &= np.isfinite(result.variance)
    relative = result.image[known] / np.sqrt(result.variance[known])
    fwhm = 2.3548 * max(map(_width, scene.psfs))
    rows, columns = np.nonzero(known)
    chosen = rng.permutation(len(rows))[: min(int(len(rows) / fwhm**2), _PLACES)]
    x, y = columns[chosen].astype(float), rows[chosen].astype(float)
    apart = np.hypot(scene.x[:, None] - x, scene.y[:, None] - y).min(axis=0, initial=np.inf)
    x, y = x[apart > 4 * fwhm], y[apart > 4 * fwhm]
    at_nothing, their_errors = result.fluxes(x, y)
    ratios = at_nothing / their_errors
    ratios = ratios[np.isfinite(ratios)]
    flux, error = result.fluxes(scene.x, scene.y)
    measured = np.isfinite(flux) & (error > 0)
    flux, error, true = flux[measured], error[measured], scene.flux[measured]
    # By what each is worth: those of the largest signal-to-noise ratio would decide alone.
    share = np.minimum(true / error, _BRIGHT) ** 2 / (true / error) ** 2
    weight = share / error**2
    bias = float((weight * true * (flux - true)).sum() / (weight * true**2).sum())
    noise = math.sqrt(float((weight**2 * true**2 * error**2).sum())) / float(
        (weight * true**2).sum()
    )
    bright = true / error > _BRIGHT
    pulls = (flux - true)[bright] / error[bright]
    distance = np.hypot(scene.x[:, None] - result.x, scene.y[:, None] - result.y)
    return {
        "pix": _clipped_variance(relative),
        "filt": float(np.mean(np.minimum(ratios**2, 25))),
        "sum": result.kernel_sum / scene.kernel_sum,
        "sum pull": (result.kernel_sum - scene.kernel_sum) / result.kernel_sum_error,
        "bias": bias,
        "bias pull": bias / math.hypot(noise, result.common_error),
        "pull rms": float(np.sqrt(np.mean(pulls**2))) if len(pulls) > 3 else math.nan,
        "found": float((distance.min(axis=1, initial=99) < fwhm).mean()),
        "false": float((distance.min(axis=0, initial=99) > 2 * fwhm).sum()),
        "FWHM": result.fwhm / _full_width(scene.psfs[0]),
    }


_BEST = {"pix": 1.0, "filt": 1.0, "sum": 1.0, "found": 1.0, "pull rms": 1.0, "FWHM": 1.0}


def worst(name: str, values: list[float]) -> float:
    """The value that is furthest from what it should be."""
    known = [each for each in values if math.isfinite(each)]
    return max(known, key=lambda each: abs(each - _BEST.get(name, 0.0)), default=math.nan)


def table(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Markdown: of each field and program the median, and in brackets the worst seed."""
    lines = ["| field | program | " + " | ".join(_COLUMNS) + " |"]
    lines.append("|---" * (2 + len(_COLUMNS)) + "|")
    for kind, programs in results.items():
        for program, seeds in programs.items():
            cells = []
            for name in _COLUMNS:
                values = [each[name] for each in seeds if math.isfinite(each.get(name, math.nan))]
                if not values:
                    cells.append("–")
                    continue
                form = ".0f" if name == "false" else ".1f" if "pull" in name else ".3f"
                cells.append(f"{np.median(values):{form}} ({worst(name, values):{form}})")
            refused = sum(not each for each in seeds)
            label = f"{program}, {refused} refused" if refused else program
            lines.append(f"| {kind} | {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Make the scenes, subtract them with every program, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fields", description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--size", type=int, default=1024, help="pixels on a side")
    parser.add_argument("--hotpants", type=Path, help="program to compare with")
    parser.add_argument("--output", type=Path, help="JSON of all seeds")
    options = parser.parse_args()
    programs: dict[str, Callable[[Field, Path], Result]] = {"whitediff": by_whitediff}
    if options.hotpants is not None:
        programs["HOTPANTS"] = lambda scene, folder: by_hotpants(scene, folder, options.hotpants)
    if importlib.util.find_spec("sfft") is not None:
        programs["SFFT"] = by_sfft
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for kind in options.kinds:
        results[kind] = {name: [] for name in programs}
        for seed in range(1, 1 + options.seeds):
            print(f"{kind}, seed {seed} ...", file=sys.stderr)
            scene = field(kind, seed, options.size)
            for name, program in programs.items():
                rng = np.random.default_rng(seed)
                try:
                    with tempfile.TemporaryDirectory() as folder:
                        made = program(scene, Path(folder))
                    results[kind][name].append(judged(scene, made, rng))
                except WhitediffError as error:
                    print(f"{name}: {error}", file=sys.stderr)
                    results[kind][name].append({})
            if options.output is not None:
                options.output.write_text(json.dumps(results, indent=1))
    print(table(results))
    print()
    for name, meaning in _COLUMNS.items():
        print(f"- {name}: {meaning}.")


if __name__ == "__main__":
    main()
