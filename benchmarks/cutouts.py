"""``python -m benchmarks.cutouts DIRECTORY``: differences of alerts beside the surveys' own.

DIRECTORY holds a folder for each alert, with ``science.fits.gz``, ``template.fits.gz`` and the
survey's ``difference.fits.gz``.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import whitediff
from whitediff.exposures.masks import UNTRUSTED_MASK_PLANES, flagged
from whitediff.formats import read_exposure
from whitediff.matching.stamp import near
from whitediff.numerics.convolution import convolve
from whitediff.subtraction.pipeline import Made

type Array = npt.NDArray[Any]

_APERTURE, _SMALLEST_APERTURE = 1.0, 4.0
_BRIGHT = 3.0
"""Significance of a survey's flux from which a ratio to it means something."""
_INJECTED = 30.0
_REPEATS = 5
_REACH = 14


@dataclasses.dataclass(frozen=True)
class Judged:
    """One alert.

    Attributes
    ----------
    name
        Folder.
    ratio, pull
        Flux over the survey's, and difference over the error, in the same aperture.
    is_bright
        The survey's flux is significant.
    kernel_share
        The kernel's error over the noise, in the aperture.
    residual, survey_residual
        Root of the mean square of what is left of static sources, over the noise.
    injected
        Flux found of a point source of 30 standard deviations over that put in.
    problems
        What is said to be doubtful.
    factor
        Flux scale of static sources where they contradict that which was expected, else NaN.
    milliseconds
        Processor time of a warm call.
    """

    name: str
    ratio: float
    pull: float
    is_bright: bool
    kernel_share: float
    residual: float
    survey_residual: float
    injected: float
    problems: tuple[str, ...]
    factor: float
    milliseconds: float


def judged(folder: Path, *, timed: bool = False) -> Judged | None:
    """Subtract an alert's cut-outs and compare with what the survey made.

    Parameters
    ----------
    folder
        Its files.
    timed
        Measure the time.

    Returns
    -------
    judged
        None where there is no result.
    """
    science, template, survey = (
        read_exposure(folder / f"{name}.fits.gz") for name in ("science", "template", "difference")
    )
    try:
        made = whitediff.subtract(science, template)
    except whitediff.errors.WhitediffError as error:
        print(f"{folder.name}: {error}")
        return None
    assert made.cutout is not None
    fit = made.cutout.fit
    shape, place = science.shape, made.cutout.place
    image, template_image = made.difference.data.astype(float), _filled(template)
    radius = max(_APERTURE * fit.error.fwhm, _SMALLEST_APERTURE)
    aperture = near(shape, place, radius).astype(float)
    # The variance plane without the kernel's part, which an aperture has in common.
    noise = made.difference.variance - fit.error.point_variance(template_image)
    known = np.isfinite(image) & np.isfinite(survey.data)
    known &= ~flagged(made.difference.mask, UNTRUSTED_MASK_PLANES)
    kernel = fit.error.sum_variance(template_image, aperture * known)
    white = float((noise * aperture)[known].sum())
    theirs = _as_science_minus_template(survey.data, science.data, known, place)
    flux, their_flux = (float((each * aperture)[known].sum()) for each in (image, theirs))
    static = fit.light(template_image) > 5 * np.sqrt(noise)
    border = 5 if min(shape) > 40 else 3
    inside = np.zeros(shape, bool)
    inside[border:-border, border:-border] = True
    static &= known & inside & ~near(shape, place, max(3.5, 1.7 * fit.error.fwhm))
    left, their_left = (
        float(np.sqrt(np.mean(each[static] ** 2 / noise[static])))
        if np.count_nonzero(static) > 9
        else math.nan
        for each in (image, theirs)
    )
    return Judged(
        folder.name,
        flux / their_flux,
        (flux - their_flux) / math.sqrt(white + kernel),
        abs(their_flux) > _BRIGHT * math.sqrt(white),
        math.sqrt(kernel / white),
        left,
        their_left,
        _injected(science, template, made, aperture),
        made.problems,
        fit.scale.measured / fit.scale.expected if fit.scale.is_contradicted else math.nan,
        _time(science, template) if timed else math.nan,
    )


def _filled(template: Any) -> Array:
    image = template.data.astype(float)
    return np.where(np.isfinite(image), image, np.nanmedian(image))


def _as_science_minus_template(
    difference: Array, science: Array, known: Array, place: Any
) -> Array:
    """The survey's difference, of that sign: alerts of fading sources are turned round."""
    sky = known & ~near(science.shape, place, 8.0 if min(science.shape) > 40 else 10.0)
    flat = np.where(known, difference - np.median(difference[sky]), 0.0)
    level = np.median(science[sky])
    low = sky & (np.abs(science - level) < 3 * 1.4826 * np.median(np.abs(science[sky] - level)))
    return flat * np.sign(float((flat[low] * (science[low] - level)).sum()))


def _injected(science: Any, template: Any, made: Made, aperture: Array) -> float:
    """Flux found over that put in, of a point source where the transient is."""
    cutout = made.cutout
    assert cutout is not None
    assert cutout.place is not None
    noise = float(np.nanmedian(made.difference.variance))
    if science.psf is not None:
        stamp = science.psf.at(x=science.bbox.x.center, y=science.bbox.y.center)
        source = np.zeros(science.shape)
        y, x = (round(each) for each in cutout.place[::-1])
        half = min(min(science.shape) // 2 - 1, stamp.shape[0] // 2)
        middle = stamp.shape[0] // 2
        source[y - half : y + half + 1, x - half : x + half + 1] = stamp[
            middle - half : middle + half + 1, middle - half : middle + half + 1
        ]
    else:
        sigma = cutout.fit.error.fwhm / 2.3548
        y, x = np.indices(science.shape)
        u, v = x - cutout.place[0] - 0.3, y - cutout.place[1] + 0.2
        source = np.exp(-0.5 * (u**2 + v**2) / sigma**2)
        source /= source.sum()
    source *= _INJECTED * math.sqrt(noise / float((source**2).sum())) * float(source.sum())
    image = science.data
    changed = type(science).from_arrays(
        (image + source).astype(np.float32), variance=science.variance, psf=science.psf
    )
    changed.header = science.header
    again = whitediff.subtract(changed, template).difference.data
    difference = again - made.difference.data
    # What the correction makes of the source itself.
    correction = _correction(cutout, made)
    expected = convolve(source, correction, boundary="reflect")
    use = (aperture > 0) & np.isfinite(difference)
    use &= ~flagged(made.difference.mask, UNTRUSTED_MASK_PLANES)
    return float(difference[use].sum() / expected[use].sum())


def _correction(cutout: Any, made: Made) -> Array:
    """Pixel kernel of the correction: a point that it is applied to."""
    from whitediff.decorrelation import difference_correction, pixel_kernel

    shape = (128, 128)
    correction = difference_correction(
        cutout.fit.kernel,
        unconvolved_variance=made.decorrelation.science_variance,
        convolved_variance=made.decorrelation.template_variance,
        shape=shape,
    )
    whole = np.fft.fftshift(pixel_kernel(correction.correction_ft, shape=shape))
    return np.asarray(whole[64 - _REACH : 64 + _REACH + 1, 64 - _REACH : 64 + _REACH + 1])


def _time(science: Any, template: Any) -> float:
    whitediff.subtract(science, template)
    begun = time.process_time()
    for _ in range(_REPEATS):
        whitediff.subtract(science, template)
    return 1e3 * (time.process_time() - begun) / _REPEATS


def _row(kind: str, rows: list[Judged], number: int) -> str:
    bright = [row for row in rows if row.is_bright]
    ratio = np.array([row.ratio for row in bright])
    pull = np.array([row.pull for row in rows])
    injected = np.array([row.injected for row in rows])
    injected = injected[np.isfinite(injected)]
    residual = np.array([(row.residual, row.survey_residual) for row in rows])
    doubtful = sum(bool(row.problems) for row in rows)
    factors = [row.factor for row in rows if math.isfinite(row.factor)]
    low, middle, high = np.percentile(injected, [5, 50, 95])
    scatter = 1.4826 * np.median(np.abs(ratio - np.median(ratio)))
    cells = [
        kind,
        f"{len(rows)} of {number}",
        f"{np.median(ratio):.3f} ({scatter:.3f})",
        f"{np.sqrt(np.mean(pull**2)):.2f}, {np.abs(pull).max():.1f}",
        f"{np.nanmedian(residual[:, 0]):.2f} ({np.nanmedian(residual[:, 1]):.2f})",
        f"{np.nanmax(residual[:, 0]):.1f} ({np.nanmax(residual[:, 1]):.1f})",
        f"{middle:.3f}, {low:.3f}-{high:.3f}",
        f"{np.mean((injected > 0.95) & (injected < 1.03)):.0%}",
        f"{doubtful}",
        f"{len(factors)}" + (f": {min(factors):.2f}-{max(factors):.2f}" if factors else ""),
        f"{np.nanmedian([row.milliseconds for row in rows]):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


_HEAD = (
    "| alerts | results | flux over the survey's, median (scatter) | pulls: rms, largest"
    " | static residuals, median (survey) | largest (survey) | injected, 5-95 %"
    " | within 0.95-1.03 | doubtful | scale contradicted | ms |"
)


def main() -> None:
    """Judge all alerts of a directory, one row for each kind."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cutouts", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--each", action="store_true", help="a line for each alert too")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    folders = sorted(each for each in options.directory.iterdir() if each.is_dir())
    lines = [_HEAD, "|" + "---|" * _HEAD.count(" | ") + "---|"]
    for kind in dict.fromkeys(each.name.rpartition("_")[0] for each in folders):
        own = [each for each in folders if each.name.rpartition("_")[0] == kind]
        rows = [row for row in (judged(each, timed=True) for each in own) if row is not None]
        for row in rows if options.each else []:
            print(
                f"{row.name} {row.ratio:6.3f} {row.pull:5.2f} {row.kernel_share:5.2f}"
                f" {row.residual:.2f} ({row.survey_residual:.2f}) {row.injected:.3f}"
                f" {row.factor:.2f} {len(row.problems)} {row.milliseconds:.0f}"
            )
        lines.append(_row(kind, rows, len(own)))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
