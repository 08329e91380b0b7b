"""Options of the commands, for command line, batches and Python.

Nothing heavy is imported here, so that help and errors of usage appear at once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Literal

from ..direction import Direction
from ..errors import ArgumentError
from ..extras import check_adaptive, check_drawing, check_pillow
from ..options import declarations, declared, part
from ..paths import check_catalog_path, check_suffix
from ..reading import ReadingOptions, VarianceSource, number_or_variance

__all__ = [
    "FIT_OPTIONS",
    "PAIR_OPTIONS",
    "PRODUCTS",
    "SETTLED_OPTIONS",
    "AlignOptions",
    "CheckOptions",
    "ConvertOptions",
    "DecorrelateOptions",
    "DecorrelateStackOptions",
    "DetectOptions",
    "EvaluateOptions",
    "InfoOptions",
    "InjectOptions",
    "KernelOptions",
    "MeasureOptions",
    "RecipeOptions",
    "ReportOptions",
    "RunningOptions",
    "SubtractOptions",
    "SurveyOptions",
    "WhiteningOptions",
    "size",
]

_RUNNING = "Running"
_UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
}  # fmt: skip


def size(text: str) -> int:
    """Parse an amount of memory, such as ``500MB``.

    Parameters
    ----------
    text
        Number, with a unit or without.

    Returns
    -------
    bytes
        Amount, bytes; positive.

    Raises
    ------
    ValueError
        If the text is not an amount of memory.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]?I?B?)\s*", text.upper())
    unit = None if found is None else _UNITS.get(found[2])
    if found is None or unit is None or not float(found[1]) > 0:
        raise ValueError(f"{text!r} is not an amount of memory, such as 500MB or 2GB")
    return round(float(found[1]) * unit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunningOptions:
    """How a run uses the machine, and how far it trusts files."""

    memory: int | None = declared(
        None,
        "Memory to use, such as 500MB: planes that are large for that live in temporary files"
        " beside the output. The result is the same  [default: what the machine has].",
        group=_RUNNING,
        parse=size,
        metavar="SIZE",
        least=1,
    )
    threads: int | None = declared(
        None,
        "Threads that work side by side  [default: WHITEDIFF_NUM_THREADS, else as many as there"
        " are cores]. The result is the same.",
        group=_RUNNING,
        least=1,
    )
    reproducible: bool = declared(
        False,
        "Outputs of the same run are the same bytes: they hold the date SOURCE_DATE_EPOCH"
        " (seconds; default 0: 1970), and no times.",
        group=_RUNNING,
    )
    max_memory: int | None = declared(
        None,
        "Memory that one part of a file may unpack to, such as 4GB  [default: what the machine"
        " has].",
        group=_RUNNING,
        parse=size,
        metavar="SIZE",
        least=1,
    )
    checksums: bool = declared(
        True,
        "Verify CHECKSUM and DATASUM where files have them  [default: verify].",
        group=_RUNNING,
    )
    follow_paths: bool = declared(
        False,
        "Follow the names of files in headers anywhere on this machine  [default: only beside the"
        " file and below].",
        group=_RUNNING,
    )


_MATCHING, _ALIGNMENT, _NOISE, _CUTOUTS = "Matching", "Alignment", "Noise", "Cut-outs"
_DEFECTS = "Defects"


def order(text: str) -> int | str:
    """Parse a polynomial order, or the name of the method that chooses it."""
    if text in ("bic", "cross-validation"):
        return text
    try:
        found = int(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a number nor bic nor cross-validation") from None
    if found < 0:
        raise ValueError(f"an order is at least 0; got {found}")
    return found


def odd_size(text: str) -> int:
    """Parse an odd side of at least 3 pixels, so that there is a middle pixel."""
    try:
        size = int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a valid integer") from None
    if size < 3 or size % 2 == 0:
        raise ValueError(f"must be odd and at least 3; got {size}")
    return size


def place(text: str) -> tuple[float, float]:
    """Parse pixel coordinates ``X,Y``."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"must be two numbers X,Y; got {text!r}") from None
    return x, y


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhiteningOptions:
    """How a correction treats noise and missing pixels."""

    noise: Literal["auto", "white", "measured"] = declared(
        "auto",
        "Correlation of the images' own noise: measured between the sources, and used always, or"
        " (auto) where it is significant; or taken as white.",
        group=_NOISE,
    )
    constant: bool = declared(
        False,
        "Take one kernel and one noise level for the whole image; else the correction follows"
        " both.",
        group=_NOISE,
    )
    fill: Literal["mean", "interpolate"] = declared(
        "interpolate",
        "Values that stand in for bad and missing pixels while their neighbours are filtered: the"
        " image's mean, or an interpolation between the neighbours.",
        group=_NOISE,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Options that decide the pixels of a difference."""

    convolved: Literal["template", "science", "auto"] | None = declared(
        None,
        "Image to convolve  [default: auto, the one with the narrower PSF].",
        group=_MATCHING,
    )
    kernel_order: int | Literal["bic", "cross-validation"] | None = declared(
        None,
        "Order of the kernel's variation over the field: a number, or bic or cross-validation to"
        " have it chosen from 0 to 3  [default: bic; 1 with the delta basis].",
        group=_MATCHING,
        parse=order,
        metavar="ORDER",
        least=0,
    )
    background_order: int = declared(
        2, "Order of the differential background.", group=_MATCHING, least=0
    )
    background: Literal["auto", "polynomial", "mesh"] = declared(
        "auto",
        "Model of the differential background: polynomials; or also steps across the frame and"
        " small blocks (fringes), where the difference shows such or, with mesh, anyway.",
        group=_MATCHING,
    )
    basis: Literal["auto", "gaussian", "elliptical", "spline", "delta"] = declared(
        "auto",
        "Basis of the kernel: round or elliptical Gaussians times polynomials, a free form of"
        " splines, or free pixels; auto takes round Gaussians unless one of the next two predicts"
        " stars that are left out much better.",
        group=_MATCHING,
    )
    kernel_size: int | None = declared(
        None,
        "Odd side of the kernel, pixels  [default: from the PSFs].",
        group=_MATCHING,
        parse=odd_size,
        metavar="INTEGER",
    )
    varying_sum: bool = declared(
        False,
        "Let the kernel's sum, the photometric scale, vary over the field.",
        group=_MATCHING,
    )
    keep_variance: bool = declared(
        False, "Do not rescale the variance planes to the measured noise.", group=_NOISE
    )
    ignore_wcs: bool = declared(
        False,
        "Take the images as aligned pixel by pixel, whatever their WCS says; with --align, align by"
        " the stars alone.",
        group=_ALIGNMENT,
    )
    align: bool = declared(
        False,
        "Resample a template whose pixels are not the science image's, by their WCS as the stars"
        " correct it; without a WCS, by the stars.",
        group=_ALIGNMENT,
    )
    register: bool = declared(
        False,
        "Align, and take out smooth local distortions too, as far as the stars show any.",
        group=_ALIGNMENT,
    )
    align_method: Literal["auto", "interpolating", "adaptive"] = declared(
        "auto",
        "Method of resampling, as for whitediff align.",
        group=_ALIGNMENT,
        check=check_adaptive,
    )
    no_cosmic_rays: bool = declared(
        False,
        "Do not look for cosmic rays. Images whose mask has some, and cut-outs without stars, are"
        " left alone anyway.",
        group=_DEFECTS,
    )
    no_bad_pixels: bool = declared(
        False,
        "Do not look for hot and dead pixels, columns and rows. Images whose mask has some are"
        " left alone anyway.",
        group=_DEFECTS,
    )
    no_trails: bool = declared(
        False,
        "Do not look for trails of satellites and aeroplanes. Images whose mask has some are left"
        " alone anyway.",
        group=_DEFECTS,
    )
    no_level_jumps: bool = declared(
        False,
        "Do not look for jumps of the level between amplifiers, which are taken off.",
        group=_DEFECTS,
    )
    kernel_from: Literal["auto", "stars", "psfs", "pixels"] = declared(
        "auto",
        "Source of the kernel: stars, the two PSFs, or all pixels of a cut-out; auto takes stars"
        " where there are enough.",
        group=_CUTOUTS,
    )
    flux_scale: float | None = declared(
        None,
        "Without stars: flux of a static source on the science image over that on the template"
        "  [default: from the zero points, else 1].",
        group=_CUTOUTS,
    )
    transient: tuple[float, float] | None = declared(
        None,
        "Without stars: pixel around which the fit looks away, and whose flux is told  [default:"
        " the middle of a cut-out].",
        group=_CUTOUTS,
        parse=place,
        metavar="X,Y",
    )
    whitening: WhiteningOptions = part(WhiteningOptions)
    full_variance: bool = declared(False, "Propagate the variance of every pixel.", group=_NOISE)


FIT_OPTIONS = tuple(
    name for name in declarations(RecipeOptions) if name not in ("ignore_wcs", "full_variance")
)
"""Options of `RecipeOptions` that only a new fit can follow."""

SETTLED_OPTIONS = (*FIT_OPTIONS, "science_psf", "template_psf")
"""Options that are settled when an earlier product is made again with its kernel."""


_OUTPUTS, _INPUTS, _SEARCH, _SOURCES = "Outputs", "Inputs", "Detection", "Sources"


def _output(
    text: str, kind: str = "FITS file", *, required: bool = False, short: str = ""
) -> Path | None:
    """Option that names a file of some kind to write."""
    further = _CHECKS.get(kind)

    def check(path: Path) -> None:
        if str(path) == "-":
            return
        if kind == "catalogue":
            check_catalog_path(path)
        else:
            check_suffix(path, kind)
        if further is not None:
            further()

    field: Path | None = declared(
        None,
        text,
        group=_OUTPUTS,
        metavar="FILE",
        is_output=True,
        required=required,
        short=short,
        check=check,
    )
    return field


_CHECKS = {"picture (PNG)": check_drawing, "web page": check_pillow}
"""Kind of output → check that the packages to write it are installed."""


def _file(text: str) -> str | None:
    """Option that names a file to read."""
    field: str | None = declared(None, text, group=_INPUTS, metavar="FILE", is_file=True)
    return field


def _input(text: str) -> object:
    """Option that names a file to read, or in Python is an object in its place."""
    field: object = declared(None, text, group=_INPUTS, metavar="FILE", is_file=True)
    return field


def _compress() -> bool:
    field: bool = declared(False, "Compress the output without loss; slow.", group=_OUTPUTS)
    return field


def _overwrite() -> bool:
    field: bool = declared(False, "Replace outputs that exist.", group=_OUTPUTS)
    return field


def _zero_point(default: str) -> float | None:
    field: float | None = declared(
        None, f"Magnitude of a flux of 1, for magnitudes  [default: {default}].", group=_SEARCH
    )
    return field


def _check_threshold(value: float) -> None:
    if not 0 < value < math.inf:
        raise ArgumentError(f"The threshold must be positive and finite; got {value:g}.")


def _threshold() -> float:
    field: float = declared(
        5.0,
        "Least significance of a source, standard deviations.",
        group=_SEARCH,
        check=_check_threshold,
    )
    return field


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubtractOptions:
    """Options of ``whitediff subtract``."""

    output: Path | None = _output("Difference to write.", short="o")
    score_output: Path | None = _output("Detection score to write: the image to find sources on.")
    matched_output: Path | None = _output(
        "Template to write as it was subtracted, at the science image's level."
    )
    catalog: Path | None = _output(
        "Catalogue to write of the sources found (whitediff detect), on the score where one is"
        " made: ECSV, CSV, FITS table or Parquet by its name.",
        "catalogue",
    )
    report: Path | None = _output(
        "Web page to write on which to judge the result (whitediff report).",
        "web page",
    )
    plot: Path | None = _output(
        "Picture to write (PNG): science image, template and difference, with the sources found.",
        "picture (PNG)",
    )
    json: Path | None = _output(
        "File to write the numbers of the result to; - prints them.", "JSON file"
    )
    compress: bool = _compress()
    overwrite: bool = _overwrite()
    science_psf: object = _input(
        "PSF of the science image  [default: its own, else measured from stars]."
    )
    template_psf: object = _input(
        "PSF of the template  [default: its own, else measured from stars]."
    )
    kernel: tuple[object, ...] = declared(
        (),
        "Earlier difference or score to make again, with its kernel and without fitting; may be"
        " repeated.",
        group=_INPUTS,
        metavar="OLD_OUTPUT",
        is_file=True,
        several=True,
    )
    science: ReadingOptions = part(ReadingOptions, prefix="science_", side="science image")
    template: ReadingOptions = part(ReadingOptions, prefix="template_", side="template")
    recipe: RecipeOptions = part(RecipeOptions)
    threshold: float = _threshold()
    zero_point: float | None = _zero_point("the header's, such as MAGZERO")
    running: RunningOptions = part(RunningOptions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecorrelateOptions:
    """Options of ``whitediff decorrelate``."""

    output: Path | None = _output("File to write.", required=True, short="o")
    compress: bool = _compress()
    overwrite: bool = _overwrite()
    convolved: Direction | None = declared(
        None,
        "Image that was convolved with the kernel  [default: as the difference's header says, else"
        " template].",
    )
    x_center: float | None = declared(
        None,
        "Column at which the kernel is taken, in pixel coordinates  [default: the middle].",
    )
    y_center: float | None = declared(
        None, "Row at which the kernel is taken  [default: the middle]."
    )
    score: bool = declared(
        False,
        "The difference is a score image: its science image was correlated with the pre-convolution"
        " kernel.",
    )
    preconvolution_kernel: object = _input(
        "PSF that the science image was correlated with  [default: the science PSF]."
    )
    psf: object = _input(
        "PSF of the difference  [default: its own, else that of the image that was not convolved]."
    )
    science: ReadingOptions = part(ReadingOptions, prefix="science_", side="science image")
    template: ReadingOptions = part(ReadingOptions, prefix="template_", side="template")
    whitening: WhiteningOptions = part(WhiteningOptions)
    full_variance: bool = declared(False, "Propagate the variance of every pixel.", group=_NOISE)
    ignore_mask_planes: str | None = declared(
        None,
        "Mask planes whose pixels are left out of mean variances  [default: the documented planes,"
        " where the files have them].",
        group=_NOISE,
        metavar="A,B",
    )
    transform: Literal["fast", "documented"] = declared(
        "fast", "Grid and precision of the transforms.", group=_NOISE
    )
    running: RunningOptions = part(RunningOptions)


def numbers(text: str) -> tuple[float, ...]:
    """Parse numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a list of numbers with commas between them") from None


def _member(text: str) -> tuple[tuple[object, object], ...]:
    field: tuple[tuple[object, object], ...] = declared(
        (),
        text,
        group=_INPUTS,
        metavar="FILE KERNEL",
        is_file=True,
        several=True,
        required=True,
    )
    return field


def _weights(stack: str) -> tuple[float, ...] | None:
    field: tuple[float, ...] | None = declared(
        None,
        f"Weights of the {stack} images in their stack, in their order  [default: all equal].",
        parse=numbers,
        metavar="W1,W2,…",
    )
    return field


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecorrelateStackOptions:
    """Options of ``whitediff decorrelate-stack``."""

    science: tuple[tuple[object, object], ...] = _member(
        "Image of the science stack before any convolution, and the kernel that it was convolved"
        " with before it was stacked (- for none); once for every image."
    )
    template: tuple[tuple[object, object], ...] = _member(
        "Image of the template stack and its kernel, as for --science."
    )
    kernel: object = _input(
        "Kernel that one stack was convolved with as a whole  [default: the difference's own, else"
        " none]."
    )
    convolved: Direction = declared("template", "Stack that was convolved as a whole.")
    output: Path | None = _output("File to write.", required=True, short="o")
    compress: bool = _compress()
    overwrite: bool = _overwrite()
    science_weights: tuple[float, ...] | None = _weights("science")
    template_weights: tuple[float, ...] | None = _weights("template")
    median: bool = declared(False, "The stacks are medians, not means.")
    floor: float = declared(
        1e-3,
        "Where all images were convolved: noise power, relative to that at large scales, below"
        " which the correction rises no more.",
        group=_NOISE,
    )
    divisor: float = declared(1.0, "Number by which the difference was divided as a whole.")
    psf: object = _input("PSF of the difference  [default: its own].")
    whitening: WhiteningOptions = part(WhiteningOptions)
    running: RunningOptions = part(RunningOptions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """Options of ``whitediff align``."""

    output: Path | None = _output("File to write.", required=True, short="o")
    compress: bool = _compress()
    overwrite: bool = _overwrite()
    method: Literal["auto", "interpolating", "adaptive"] = declared(
        "auto",
        "Cubic splines (interpolating), or averages with a Gaussian (adaptive; DeForest 2004),"
        " which auto takes where the template's pixels are more than 1.5 times finer.",
        group=_ALIGNMENT,
        check=check_adaptive,
    )
    noise: Literal["auto", "white", "measured"] = declared(
        "auto",
        "Correlation of the template's own noise before: as its file says, else measured and used"
        " where it is significant (auto); always measured; or taken as white.",
        group=_NOISE,
    )
    register: bool = declared(
        False,
        "Take out smooth local distortions too, as far as the stars show any.",
        group=_ALIGNMENT,
    )
    ignore_wcs: bool = declared(
        False,
        "Align by the stars alone, whatever the WCS of the two images says.",
        group=_ALIGNMENT,
    )
    template: ReadingOptions = part(ReadingOptions, prefix="template_", side="template")
    template_psf: object = _input("PSF of the template  [default: its own].")
    running: RunningOptions = part(RunningOptions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How sources on a difference are measured."""

    aperture_radius: float | None = declared(
        None,
        "Radius of the aperture, pixels  [default: 1.5 full widths at half maximum of the PSF].",
        group=_SEARCH,
    )
    zero_point: float | None = _zero_point("that of subtract, else the header's, such as MAGZERO")
    output: Path | None = _output(
        "Catalogue to write: ECSV, CSV, FITS table or Parquet by its name.",
        "catalogue",
        required=True,
        short="o",
    )
    regions: Path | None = _output(
        "Regions for DS9 to write of the sources, too.", "file of regions"
    )
    overwrite: bool = _overwrite()
    psf: object = _input("PSF of the difference  [default: its own].")
    variance: VarianceSource | float | None = declared(
        None,
        "Variance of the difference: a number, or a file with its plane (KIND:FILE for KIND sigma"
        " or weight)  [default: its own plane].",
        group=_INPUTS,
        parse=number_or_variance,
        metavar="NUMBER|FILE",
        is_file=True,
    )
    mask: str | None = _file("Mask of the difference  [default: its own].")
    mask_bits: str | None = declared(
        None,
        "Bits of the mask that make a pixel bad, from 0, such as 1,4-6  [default: those of its"
        " instrument, else all].",
        group=_INPUTS,
    )
    running: RunningOptions = part(RunningOptions, without=("memory",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectOptions:
    """Options of ``whitediff detect``."""

    score: object = _input(
        "Score of the same images, on which sources are found; they are measured on DIFFERENCE."
    )
    at: object = declared(
        None,
        "Table of positions (x, y or ra, dec; ECSV, CSV, FITS or Parquet) to measure at, whether or"
        " not anything is there, instead of finding sources.",
        group=_INPUTS,
        metavar="CATALOG",
        is_file=True,
    )
    threshold: float = _threshold()
    significance: Literal["auto", "plane"] = declared(
        "auto",
        "Significances that the threshold applies to: those over their measured width between the"
        " sources, where that departs from 1 (auto), or those that the variance plane tells"
        " (plane).",
        group=_SEARCH,
    )
    sign: Literal["both", "positive", "negative"] = declared(
        "both",
        "Sources to find: brighter on the science image (positive), fainter, or both.",
        group=_SEARCH,
    )
    measure: MeasureOptions = part(MeasureOptions)


def cells(text: str) -> tuple[int, int] | None:
    """Parse ``N``, ``ROWSxCOLUMNS`` or ``none``."""
    if text.lower() == "none":
        return None
    try:
        found = [int(part) for part in text.lower().split("x")]
    except ValueError:
        found = []
    if len(found) == 1:
        found *= 2
    if len(found) != 2 or min(found) < 1:
        raise ValueError(f"{text!r} is not N, ROWSxCOLUMNS or none")
    return (found[0], found[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Options of ``whitediff check``."""

    science: object = _input("Science image, to find sources on.")
    template: object = _input("Template, to find sources on.")
    before: object = _input(
        "Difference before decorrelation  [default: the one that OUT was made from, if it still"
        " lies beside OUT]."
    )
    sigma: float | None = declared(
        None,
        "Width of a Gaussian to filter with, pixels, in place of the file's PSF  [default without"
        " a PSF: 1.8].",
    )
    map: tuple[int, int] | None = declared(
        (3, 3),
        "Grid over the frame, each cell of which is measured too; N for N rows and columns, none"
        " for no map  [default: 3x3].",
        parse=cells,
        metavar="ROWSxCOLUMNS",
    )
    json: Path | None = _output("File to write the numbers to; - prints them.", "JSON file")
    plot: Path | None = _output("Picture to write.", "picture (PNG)")
    overwrite: bool = _overwrite()
    running: RunningOptions = part(RunningOptions, without=("memory",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of ``whitediff report``."""

    science: object = _input(
        "Science image  [default: the one that OUT was made from, by its header, if it lies beside"
        " OUT]."
    )
    template: object = _input(
        "Template  [default: the one that OUT was made from, as for --science]."
    )
    score: object = _input("Score of the same images, to show beside OUT.")
    catalog: object = _input(
        "Detections on OUT  [default: they are detected, as by whitediff detect]."
    )
    output: Path | None = _output("Page (HTML) to write.", "web page", required=True, short="o")
    overwrite: bool = _overwrite()
    running: RunningOptions = part(RunningOptions, without=("memory",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class InjectOptions:
    """Options of ``whitediff inject``."""

    output: Path | None = _output("Image to write.", required=True, short="o")
    truth: Path | None = _output("Catalogue to write of what was added.", "catalogue")
    compress: bool = _compress()
    overwrite: bool = _overwrite()
    sources: object = declared(
        None,
        "Table of sources to add (.ecsv, .csv, .fits, .parquet): columns flux, in the unit of the"
        " image, and x, y (pixel coordinates) or ra, dec (degrees).",
        group=_SOURCES,
        metavar="TABLE",
        is_file=True,
    )
    random: int | None = declared(None, "Number of random sources to add.", group=_SOURCES, least=1)
    signal_to_noise: tuple[float, float] | None = declared(
        None,
        "Range of the signal-to-noise ratios of random sources, for a matched filter on the image,"
        " or on --difference  [default: 5 20].",
        group=_SOURCES,
        metavar="LO HI",
    )
    difference: object = declared(
        None,
        "Earlier difference of the same image, in which --signal-to-noise is meant.",
        group=_SOURCES,
        metavar="FILE",
        is_file=True,
    )
    separation: float | None = declared(
        None,
        "Least distance of random sources, pixels  [default: 10 widths of the PSF].",
        group=_SOURCES,
    )
    seed: int | None = declared(
        None, "Seed of all random numbers  [default: 1].", group=_SOURCES, least=0
    )
    photon_noise: bool = declared(
        False,
        "Draw the photon noise of the sources, and add it to the variance plane; needs the gain.",
        group=_SOURCES,
    )
    science_psf: object = _input("PSF of the image  [default: its own, else measured from stars].")
    science: ReadingOptions = part(ReadingOptions, prefix="science_", side="image")
    running: RunningOptions = part(RunningOptions, without=("memory",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of ``whitediff evaluate``."""

    output: Path | None = declared(
        None,
        "Directory to write to.",
        group=_OUTPUTS,
        metavar="DIRECTORY",
        is_output=True,
        is_directory=True,
        required=True,
        short="o",
    )
    overwrite: bool = _overwrite()
    simulate: bool = declared(
        False,
        "Simulate a pair anew for each realisation, in place of SCIENCE and TEMPLATE.",
        group=_SOURCES,
    )
    set: tuple[str, ...] = declared(
        (),
        "Option of whitediff simulate, such as size=2048 or 'ellipticity=0.1 -0.07'; may be"
        " repeated.",
        group=_SOURCES,
        metavar="NAME=VALUE",
        several=True,
    )
    realizations: int = declared(
        10, "Number of realisations: inject, subtract and detect.", group=_SOURCES, least=1
    )
    processes: int | None = declared(
        None,
        "Realisations side by side, one thread each; each takes the memory of a subtraction"
        "  [default: as many as there are cores].",
        group=_RUNNING,
        least=1,
    )
    sources: int | None = declared(
        None,
        "Number of sources injected in each realisation  [default: one for each square of 30 widths"
        " of the PSF].",
        group=_SOURCES,
        least=1,
    )
    signal_to_noise: tuple[float, float] = declared(
        (3.0, 12.0),
        "Range of the signal-to-noise ratios of the sources, on the difference  [default: 3 12].",
        group=_SOURCES,
        metavar="LO HI",
    )
    threshold: float = _threshold()
    separation: float | None = declared(
        None,
        "Least distance of two sources, pixels  [default: 10 widths of the PSF].",
        group=_SOURCES,
    )
    match_radius: float | None = declared(
        None,
        "Distance within which a detection counts, pixels  [default: one width of the PSF].",
        group=_SEARCH,
    )
    seed: int = declared(1, "Seed of all random numbers.", group=_SOURCES, least=0)
    photon_noise: bool = declared(
        False, "Draw the photon noise of the sources; needs the gain.", group=_SOURCES
    )
    no_score: bool = declared(
        False, "Judge the difference alone; takes half the time.", group=_SEARCH
    )
    kernel: tuple[object, ...] = declared(
        (),
        "Earlier difference or score with whose kernel each one is made, without fitting; may be"
        " repeated.",
        group=_INPUTS,
        metavar="OLD_OUTPUT",
        is_file=True,
        several=True,
    )
    science_psf: object = _input("PSF of the science image.")
    template_psf: object = _input("PSF of the template.")
    science: ReadingOptions = part(ReadingOptions, prefix="science_", side="science image")
    template: ReadingOptions = part(ReadingOptions, prefix="template_", side="template")
    recipe: RecipeOptions = part(RecipeOptions)
    running: RunningOptions = part(RunningOptions, without=("memory",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Options of ``whitediff info``."""

    kernel: str | None = _file("Kernel of a difference, where it is elsewhere.")
    json: Path | None = _output("File to write the description to; - prints it.", "JSON file")
    overwrite: bool = _overwrite()
    running: RunningOptions = part(RunningOptions, without=("memory",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of ``whitediff convert``."""

    output: Path | None = _output("File to write.", required=True, short="o")
    overwrite: bool = _overwrite()
    format: Literal["whitediff", "ccddata", "masked-image", "visit-image", "difference-image"] = (
        declared(
            "whitediff",
            "Format to write: whitediff's own; astropy's CCDData; or an object of lsst.images.",
            group=_OUTPUTS,
        )
    )
    uncertainty: Literal["variance", "sigma", "weight"] = declared(
        "variance", "Kind of uncertainty of a CCDData.", group=_OUTPUTS
    )
    like: str | None = declared(
        None,
        "Visit image of lsst.images from which detector, band and the like are taken.",
        group=_OUTPUTS,
        metavar="VISIT",
        is_file=True,
    )
    variance: VarianceSource | float | None = declared(
        None,
        "Variance, or a file with it (KIND:FILE), if FILE has none.",
        group=_INPUTS,
        parse=number_or_variance,
        metavar="NUMBER|FILE",
        is_file=True,
    )
    psf: object = _input("PSF, if FILE has none.")
    running: RunningOptions = part(RunningOptions, without=("memory",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelOptions:
    """Options of ``whitediff kernel``."""

    at: tuple[tuple[float, float], ...] = declared(
        (),
        "Pixel coordinates (the first pixel is 0 0); may be repeated  [default: the middle].",
        metavar="X Y",
        several=True,
    )
    psf: bool = declared(False, "Write the PSF instead of the matching kernel.")
    like: str | None = declared(
        None,
        "Image that the kernel or PSF belongs to, for files that do not say its shape.",
        metavar="IMAGE",
        is_file=True,
    )
    whole: bool = declared(False, "Write basis images and coefficients instead.")
    output: Path | None = _output("File to write.", required=True, short="o")
    overwrite: bool = _overwrite()
    running: RunningOptions = part(RunningOptions, without=("memory",))


PRODUCTS = ("difference", "score", "matched")
"""Kinds of products that a batch can make of each pair."""


def products(text: str) -> tuple[str, ...]:
    """Parse kinds of products with commas between them."""
    kinds = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for kind in kinds:
        if kind not in PRODUCTS:
            raise ValueError(f"{kind!r} is none of {', '.join(PRODUCTS)}")
    return kinds


def minutes(text: str) -> float:
    """Parse a number of minutes."""
    try:
        found = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a valid float") from None
    if not found >= 0:
        raise ValueError(f"{found:g} is not in the range x>=0")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurveyOptions:
    """Options of ``whitediff batch`` beside those of its pairs."""

    output: Path | None = declared(
        None,
        "Directory for products and results.",
        group=_OUTPUTS,
        metavar="DIRECTORY",
        is_output=True,
        is_directory=True,
        required=True,
        short="o",
    )
    products: tuple[str, ...] = declared(
        ("difference",),
        "Products to make of each pair: difference, score, matched, with commas between them"
        "  [default: difference].",
        group=_OUTPUTS,
        parse=products,
        metavar="A,B",
    )
    resume: bool = declared(False, "Do only what is missing or changed.", group=_OUTPUTS)
    overwrite: bool = declared(False, "Do everything, and replace outputs.", group=_OUTPUTS)
    scheduler: str | None = declared(
        None, "Dask cluster to run on  [default: here].", group=_RUNNING, metavar="ADDRESS"
    )
    workers: int | None = declared(
        None, "Processes on this machine  [default: one per core].", group=_RUNNING, least=1
    )
    worker_memory: int | None = declared(
        None,
        "Memory at which a worker on this machine is stopped and its pair tried again, such as 4GB"
        "  [default: equal shares].",
        group=_RUNNING,
        parse=size,
        metavar="SIZE",
    )
    timeout: float = declared(
        30.0,
        "Minutes that a pair may take before it counts as failed and its worker is stopped; 0 for"
        " no end.",
        group=_RUNNING,
        parse=minutes,
        metavar="MINUTES",
    )
    whiteness: bool = declared(
        True, "Measure how white each product is  [default: yes].", group=_OUTPUTS
    )
    threads: int = declared(
        1, "Threads of each worker. The result is the same.", group=_RUNNING, least=1
    )
    running: RunningOptions = part(RunningOptions, without=("threads",))


PAIR_OPTIONS = tuple(
    name
    for name, each in declarations(SubtractOptions).items()
    if not each.is_output and each.group != _RUNNING and name not in ("overwrite", "threshold")
)
"""Options of ``whitediff subtract`` that may differ between the pairs of a batch."""
