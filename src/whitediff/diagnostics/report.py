"""Report on a difference or score: one self-contained web page with its verdict."""

from __future__ import annotations

import dataclasses
import html
import importlib.resources
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.table import Table

from ..defects.exposures import NO_DEFECTS
from ..detection.catalog import headline
from ..detection.exposures import expected_false_detections
from ..errors import WhitediffError
from ..exposures import masks
from ..exposures.model import Exposure
from ..exposures.zero_points import depth_text
from ..matching.convolution import convolved_exposure, matched_template
from ..noise.exposures import source_pixels
from ..noise.scatter import measured_width
from ..noise.widths import SignificanceWidth
from ..numerics.profiles import full_width_half_maximum
from ..numerics.stats import robust_sigma
from ..outputs import replacing
from ..subtraction.difference import subtract_background
from ..subtraction.pipeline import aligned_as_before, with_defects_as_before
from ..subtraction.solution import Solution, subtracted
from .calibration import block_power, variance_calibration
from .detections import detection_rows, edge_excess, sky_grid
from .measure import (
    MINIMUM_CELL,
    ScoreNoise,
    Whiteness,
    gaussian_filter,
    score_noise,
    score_noise_map,
    whiteness,
    whiteness_with_map,
)
from .pictures import (
    Stretch,
    binned,
    coloured,
    encoded_jpegs,
    encoded_png,
    flag_picture,
    sampled,
    stamps,
)
from .residuals import star_residuals
from .verdict import Check, judged, verdict

__all__ = ["ReportInput", "report_data", "report_page", "write_report"]

type Array = npt.NDArray[Any]


_ENOUGH_PIXELS = 500_000
"""Pixels that suffice for an estimate of an image's noise."""
_MOST_PIXELS = 4_400_000
"""Most pixels in a picture of the whole frame: larger images are binned."""
_MOST_BYTES = 5_500_000
"""Most bytes of the pictures of the whole frame together."""
_FEWEST_AT_EDGES = 10
_LISTED, _DRAWN = 200, 5000
"""Most detections in the table, with cut-outs, and most marked on the images."""
_STARS_SHOWN = 3000
_WORST_STARS = 12
_STAMP_COLUMNS = 25
_STAMP_SIDES = (31, 61)
_FIELD = 5
"""Kernels, and PSFs, drawn along each side of the frame."""
_DEFAULT_SIGMA = 1.8
_LEAST_COUNT = 0.5
"""Lowest count on a histogram's axis."""
_FLAGS = (
    ("no data or bad", ("NO_DATA", "BAD"), "#d62728"),
    ("saturated or cosmic ray", ("SAT", "CR"), "#ff7f0e"),
    ("contaminated or edge", (masks.CONTAMINATED, "EDGE"), "#1f77b4"),
)


@dataclasses.dataclass(kw_only=True)
class ReportInput:
    """Everything that a report is made from.

    Attributes
    ----------
    name
        Name of the difference or score, as the user knows it.
    product
        The difference, or the score if there is no difference.
    is_score
        Whether the product is a score.
    header
        Primary header of the product's file.
    solution
        Solution that the product was made with, if known.
    science, template
        Input images of the product, as read; None if unknown.
    score
        Score that belongs to a difference.
    catalog
        Detections, with the columns of `whitediff.detection.exposures.detect`.
    stars, log
        Tables in the product's file: `whitediff.matching.fitted_stars.star_table` and the record
        of the run.
    files
        Role → name, for every file that was read.
    notes
        Remarks on the report itself, such as files that could not be read.
    """

    name: str
    product: Exposure
    is_score: bool
    header: fits.Header
    solution: Solution | None = None
    science: Exposure | None = None
    template: Exposure | None = None
    score: Exposure | None = None
    catalog: Table | None = None
    stars: Table | None = None
    log: Table | None = None
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def write_report(path: Path, inputs: ReportInput, *, overwrite: bool = False) -> dict[str, Any]:
    """Write a report as one self-contained HTML file.

    Parameters
    ----------
    path
        Output file; it appears complete or not at all.
    inputs
        `ReportInput`.
    overwrite
        Whether an existing file may be replaced.

    Returns
    -------
    data
        Result of `report_data`.

    Raises
    ------
    OutputExistsError, FileFormatError
        From `whitediff.outputs.replacing`.
    """
    data = report_data(inputs)
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_text(report_page(data), encoding="utf-8")
    return data


def report_page(data: Mapping[str, Any]) -> str:
    """HTML page of a report.

    Parameters
    ----------
    data
        Result of `report_data`.

    Returns
    -------
    html
        Page without references to other files or addresses.
    """
    folder = importlib.resources.files(__package__) / "page"
    parts = {
        name: (folder / f"report.{name}").read_text(encoding="utf-8")
        for name in ("html", "css", "js")
    }
    # A browser ends the script element at the first "</script", even inside a JSON string.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    contents = {
        "title": html.escape(f"{Path(data['name']).name} – whitediff report"),
        "style": parts["css"],
        "script": parts["js"],
        "data": text,
    }
    # In one pass: the inserted texts may themselves contain something like a mark.
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: contents[mark[1]], parts["html"])


def report_data(inputs: ReportInput) -> dict[str, Any]:
    """Everything that the page shows.

    Parameters
    ----------
    inputs
        `ReportInput`; its science and template are replaced by the images as subtracted.

    Returns
    -------
    data
        JSON-ready: numbers, texts, lists, and pictures as data URIs; None for unknown values.
    """
    from .. import __version__

    notes = list(inputs.notes)
    checks: list[Check] = []
    product = inputs.product
    matched, before = _matched(inputs, notes)
    good = _source_free(inputs)
    data: dict[str, Any] = {
        "name": inputs.name,
        "kind": "score" if inputs.is_score else "difference",
        "version": __version__,
        "unit": str(product.unit or ""),
        "shape": list(product.shape),
        "origin": list(product.origin),
        "files": [{"what": what, "name": name} for what, name in inputs.files.items()],
        "convolved": str(inputs.header.get("WDCONV", "")),
    }
    data["depth"] = _depth(inputs.header, data["unit"])
    data["noise"] = _attempt("noise", notes, _noise, inputs, good, before, checks)
    data["variance"] = _attempt("variance", notes, _variance, inputs, good)
    del before
    data["kernels"] = _attempt("kernel", notes, _kernels, product, inputs.header, checks)
    data["psfs"] = _attempt("PSF", notes, _psfs, product)
    residuals = _attempt("stars", notes, star_residuals, inputs.stars, product, inputs.is_score)
    data["stars"] = _attempt("stars", notes, _stars, inputs, residuals, checks)
    checks += _run_checks(inputs)
    data["detections"] = _attempt("detections", notes, _detections, inputs, int(good.sum()), checks)
    data["image"] = _images(inputs, matched, data)
    data["run"] = _run(inputs)
    final = verdict(checks)
    data["checks"] = [dataclasses.asdict(check) for check in checks]
    data["verdict"] = dataclasses.asdict(final)
    data["notes"] = notes
    return _plain(data)


def _attempt(what: str, notes: list[str], function: Any, *arguments: Any) -> Any:
    """A section of the page; None, and a note with the reason, if it cannot be made."""
    try:
        return function(*arguments)
    except WhitediffError as error:
        text = f"{what}: {error}"
        if text not in notes:
            notes.append(text)
        return None


def _matched(inputs: ReportInput, notes: list[str]) -> tuple[Array | None, Array | None]:
    """Template as subtracted, and the difference before any decorrelation."""
    solution, science, template = inputs.solution, inputs.science, inputs.template
    if template is None:
        return None, None
    resampled = solution is not None and solution.alignment is not None
    if science is not None:
        earlier = [] if solution is None else [_shown(solution)]
        science, template = with_defects_as_before(
            _measurable(science), _measurable(template), earlier
        )
        inputs.science = science
        if resampled or template.bbox != science.bbox:
            template = aligned_as_before(science, template, earlier)
    if template.shape != inputs.product.shape:
        notes.append(
            f"{template.source}: has the shape {template.shape}, but {inputs.name}"
            f" {inputs.product.shape}; it is not shown."
        )
        inputs.template = None
        return None, None
    inputs.template = template
    if solution is None or solution.kernel is None:
        return template.data, None
    # The product's plane is known everywhere, and the convolution's precision depends on it.
    template = template.replaced(variance=inputs.product.variance)
    matched = before = None
    if science is not None and not inputs.is_score:
        science = science.replaced(variance=inputs.product.variance)
        left, _ = subtracted(solution, science, template)
        before = left.data
        if solution.convolved == "template":
            matched = science.data - before
        subtract_background(before, solution.background, inputs.product.bbox)
    elif solution.convolved == "template":
        matched = convolved_exposure(template, solution.kernel, full_variance=False).data
    if matched is None:
        matched = matched_template(
            template,
            solution.kernel,
            convolved=solution.convolved,
            scale_factor=solution.scale_factor,
        ).data
    return matched, before


def _shown(solution: Solution) -> Solution:
    """Solution reduced to the steps that change shown pixels; the template's noise is not shown."""
    preparation = solution.recipe.preparation
    jumps = dataclasses.replace(NO_DEFECTS, level_jumps=preparation.defects.level_jumps)
    resampling = preparation.resampling
    if resampling is not None:
        resampling = dataclasses.replace(resampling, noise="white")
    preparation = dataclasses.replace(preparation, defects=jumps, resampling=resampling)
    recipe = dataclasses.replace(solution.recipe, preparation=preparation)
    return dataclasses.replace(solution, recipe=recipe)


def _measurable(exposure: Exposure) -> Exposure:
    """Exposure with a variance plane, which is estimated if the image was read without one."""
    plane = exposure.variance
    if np.isfinite(plane).any():
        return exposure
    image = exposure.data
    differences = np.diff(image[:: max(1, image.size // _ENOUGH_PIXELS)], axis=1)
    differences = differences[np.isfinite(differences)]
    noise = robust_sigma(differences) / math.sqrt(2) if differences.size else 0.0
    return exposure.replaced(variance=np.full_like(plane, noise**2 if noise > 0 else 1.0))


def _source_free(inputs: ReportInput) -> Array:
    """Source-free pixels, on which the noise is judged."""
    product = inputs.product
    bad = masks.flagged(
        product.mask, (*masks.DEFAULT_IGNORE_MASK_PLANES, masks.CONTAMINATED, "SUSPECT")
    )
    if masks.find_plane(product.mask, masks.SOURCE) is not None:
        bad |= masks.flagged(product.mask, [masks.SOURCE])
    else:
        known = [e for e in (inputs.science, inputs.template) if e is not None]
        if known:
            bad |= source_pixels(*known)
    good = ~bad
    good &= np.isfinite(product.data) & (product.variance > 0)
    return good


def _filter(product: Exposure) -> tuple[Array, str, Any]:
    if product.psf is None:
        return gaussian_filter(_DEFAULT_SIGMA), f"a Gaussian of {_DEFAULT_SIGMA} pixels", None
    box = product.bbox
    psf = product.psf
    image = psf.at(x=box.x.center, y=box.y.center)

    def local(x: float, y: float) -> Array | None:
        try:
            return psf.at(x=x, y=y)
        except WhitediffError:
            return None

    if _is_constant(psf):
        return image, "the difference's PSF", None
    return image, "the difference's PSF", local


def _is_constant(psf: Any) -> bool:
    kernel = getattr(psf, "kernel", None)
    return kernel is not None and kernel.is_constant


def _cells(shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of cells: up to 8 of at least 250 pixels, else 2; fewer in tiny frames."""
    rows, columns = (max(1, min(8, max(2, n // 250), n // MINIMUM_CELL)) for n in shape)
    return rows, columns


def _noise(
    inputs: ReportInput, good: Array, before: Array | None, checks: list[Check]
) -> dict[str, Any]:
    product = inputs.product
    image, variance = product.data, product.variance
    cells, origin = _cells(product.shape), product.origin
    section: dict[str, Any] = {"pixels": int(good.sum()), "total": int(good.size)}
    if inputs.is_score:
        noise = score_noise(image, variance, good)
        by_cell: Any = score_noise_map(image, variance, good, noise, cells=cells, origin=origin)
        section |= {"filter": None, "after": noise.to_dict(), "map": by_cell.to_dict()}
        _judge_score(noise, checks)
    else:
        psf, description, local = _filter(product)
        white, by_cell = whiteness_with_map(
            image, variance, good, psf, local_psf=local, cells=cells, origin=origin
        )
        section |= {"filter": description, "after": white.to_dict(), "map": by_cell.to_dict()}
        _judge_whiteness(white, by_cell, checks)
        section["before"] = None
        if before is not None:
            # The middle of the frame suffices to show the effect of the correction.
            part = _middle(product.shape)
            try:
                old = whiteness(before[part], variance[part], good[part], psf)
                section["before"] = old.to_dict()
            except WhitediffError:
                pass
    _judge_significances(measured_width(product), checks)
    frequency, power = block_power(image, variance, good)
    section["power"] = {"frequency": frequency, "after": power, "before": None}
    if before is not None:
        section["power"]["before"] = block_power(before, variance, good & np.isfinite(before))[1]
    section["histogram"] = _histogram(image, variance, good)
    if "autocorrelation" in section["after"]:
        correlation = np.array(section["after"].pop("autocorrelation"), float)
        middle = len(correlation) // 2
        correlation[middle, middle] = np.nan
        largest = float(np.nanmax(np.abs(correlation)))
        largest = max(largest, 5 * section["after"]["correlation_error"])
        section["autocorrelation"] = {
            "src": encoded_png(coloured(correlation, largest)),
            "largest": largest,
            "reach": middle,
        }
    if section.get("before"):
        section["before"].pop("autocorrelation", None)
    return section


def _middle(shape: tuple[int, ...], most: int = 1024) -> tuple[slice, slice]:
    y, x = (slice(max(0, (n - most) // 2), max(0, (n - most) // 2) + min(n, most)) for n in shape)
    return y, x


def _histogram(image: Array, variance: Array, good: Array) -> dict[str, Any]:
    step = max(1, math.isqrt(image.size // 4_000_000))
    part = (slice(None, None, step),) * 2
    use = good[part]
    values = image[part][use] / np.sqrt(variance[part][use])
    edges = np.linspace(-6, 6, 61)
    counts, _ = np.histogram(values - values.mean(), edges)
    centre = (edges[1:] + edges[:-1]) / 2
    expected = len(values) * (edges[1] - edges[0]) * np.exp(-0.5 * centre**2)
    expected /= math.sqrt(2 * math.pi)
    return {
        "x": centre,
        "counts": counts,
        "gaussian": np.where(expected > _LEAST_COUNT, expected, np.nan),
    }


def _judge_significances(width: SignificanceWidth | None, checks: list[Check]) -> None:
    """Judge the width of the significances as the run did."""
    reason = (
        "Width of the significances between the sources. 1 where they mean what they say; else"
        " detect divides by it, and errors of fluxes and the depth are to be multiplied by it."
    )
    check = judged(
        "Width of significances",
        "significance width",
        None if width is None else width.width,
        reason,
        error=0.0 if width is None else width.error,
    )
    if width is None:
        checks.append(check)
    elif width.is_off:
        name = width.text[0].upper() + width.text[1:]
        checks.append(
            dataclasses.replace(
                check, name=name, status="bad" if check.status == "bad" else "doubtful"
            )
        )
    else:
        checks.append(dataclasses.replace(check, status="good"))


def _judge_whiteness(white: Whiteness, by_cell: Any, checks: list[Check]) -> None:
    checks.append(
        judged(
            "PSF-filtered noise ratio",
            "whiteness",
            white.filtered_variance_ratio,
            "Variance of the PSF-filtered noise over that of white noise: what a detection"
            " threshold relies on. Above 1 a 5σ cut finds more false sources than it should.",
            error=white.filtered_variance_ratio_error,
        )
    )
    checks.append(
        judged(
            "Pixel variance / plane",
            "variance",
            white.pixel_variance_ratio,
            "Variance of pixels, each over the root of its plane: 1 where that tells"
            " the truth; errors of fluxes scale with its root.",
            error=white.pixel_variance_ratio_error,
        )
    )
    checks.append(_worst_cell(by_cell, "filtered_variance_ratio", "Worst cell of the frame"))


def _judge_score(noise: ScoreNoise, checks: list[Check]) -> None:
    checks.append(
        judged(
            "Variance of S/√V",
            "variance",
            noise.pixel_variance_ratio,
            "1 where the significance means what it says.",
            error=noise.pixel_variance_ratio_error,
        )
    )
    checks.append(
        judged(
            "Mean of S/√V",
            "score mean",
            noise.significance_mean,
            "0 where no background is left.",
            error=noise.significance_mean_error,
        )
    )


def _worst_cell(by_cell: Any, name: str, label: str) -> Check:
    ratio, error = getattr(by_cell, name), getattr(by_cell, f"{name}_error")
    worst, worst_error = math.nan, 0.0
    if np.isfinite(ratio).any():
        # Less the four errors that `judged` allows: a noisy cell must not win by chance.
        excess = np.abs(ratio - 1) - 4 * error
        i = np.unravel_index(np.nanargmax(excess), ratio.shape)
        worst, worst_error = float(ratio[i]), float(error[i])
    return judged(
        label,
        "worst cell",
        worst,
        "Where one part of the frame stands out, its kernel, sky or stars deserve a look.",
        error=worst_error,
    )


def _variance(inputs: ReportInput, good: Array) -> dict[str, Any]:
    product = inputs.product
    image, variance = product.data, product.variance
    bad = masks.flagged(
        product.mask, (*masks.UNTRUSTED_MASK_PLANES, masks.CONTAMINATED, "EDGE", "SUSPECT")
    )
    level = float(np.median(sampled(np.where(good, image, np.nan)))) if good.any() else 0.0
    series = []
    for name, use, spacing in (
        ("source-free pixels", good, "even"),
        ("all clean pixels", ~bad, "geometric"),
    ):
        found = variance_calibration(
            image - np.float32(level), variance, use, bins=12, spacing=spacing
        )
        series.append(
            {
                "name": name,
                "variance": found.variance,
                "ratio": found.ratio,
                "error": found.error,
                "pixels": found.pixels,
            }
        )
    return {"series": series}


def _grid(product: Exposure) -> list[list[tuple[float, float]]]:
    """Positions at which kernels and PSFs are drawn, the top row first."""
    box = product.bbox
    x = box.x.start + (np.arange(_FIELD) + 0.5) / _FIELD * box.x.size - 0.5
    y = box.y.start + (np.arange(_FIELD) + 0.5) / _FIELD * box.y.size - 0.5
    return [[(float(a), float(b)) for a in x] for b in y[::-1]]


def _kernels(product: Exposure, header: fits.Header, checks: list[Check]) -> dict[str, Any] | None:
    if product.kernel is None:
        return None
    total, error = header.get("WDKWSUM"), header.get("WDKWERR")
    if total is None:
        # Cards of a kernel that was not fitted to stars.
        total, error = header.get("WDKSUM"), header.get("WDKSERR")
    if isinstance(total, float) and isinstance(error, float) and total:
        checks.append(
            judged(
                "Error of the kernel sum",
                "kernel sum error",
                abs(error / total),
                "Relative error of the photometric scale between the images.",
                form=".2f",
                percent=True,
            )
        )
    images = [[product.kernel.at(x=x, y=y) for x, y in row] for row in _grid(product)]
    largest = max(float(np.abs(image).max()) for row in images for image in row)
    return {
        "rows": [
            [
                {
                    "src": encoded_png(coloured(image, largest, linear=largest / 30)),
                    "label": f"Σ {image.sum():.4g}",
                }
                for image in row
            ]
            for row in images
        ],
        "side": int(images[0][0].shape[0]),
        "largest": largest,
        "constant": product.kernel.is_constant if hasattr(product.kernel, "spatial") else False,
    }


def _psfs(product: Exposure) -> dict[str, Any] | None:
    if product.psf is None:
        return None
    rows = []
    side = 0
    largest = float(product.psf.at(x=product.bbox.x.center, y=product.bbox.y.center).max())
    for places in _grid(product):
        row = []
        for x, y in places:
            try:
                image = product.psf.at(x=x, y=y)
            except WhitediffError:
                row.append({"src": None, "label": "–"})
                continue
            side = image.shape[0]
            row.append(
                {
                    "src": encoded_png(coloured(image, largest, linear=largest / 200)),
                    "label": f"{full_width_half_maximum(image):.2f}",
                }
            )
        rows.append(row)
    return {"rows": rows, "side": side, "constant": _is_constant(product.psf)}


def _stars(
    inputs: ReportInput, residuals: dict[str, Any] | None, checks: list[Check]
) -> dict[str, Any] | None:
    stars, header = inputs.stars, inputs.header
    offered, used = header.get("WDNSTAR"), header.get("WDNUSED")
    if isinstance(offered, int) and isinstance(used, int):
        checks.append(
            judged(
                "Stars that the kernel is fitted to",
                "stars",
                used,
                "Few stars leave the kernel uncertain, and its variation over the field unknown.",
                form=".0f",
            )
        )
        checks.append(
            judged(
                "Stars that the fit rejected",
                "rejected",
                (offered - used) / max(1, offered),
                "Many rejected ones: variable stars, a misalignment, or wrong variances.",
                form=".0f",
                percent=True,
            )
        )
    chi_square = header.get("WDCHI2")
    if isinstance(chi_square, float):
        checks.append(
            judged(
                "Reduced χ² of the kernel's fit",
                "chi-square",
                chi_square,
                "What the kernel leaves of the stars over their noise; above 1.2 it, the alignment"
                " or the variance planes are not good enough.",
            )
        )
    if residuals is not None:
        checks += _residual_checks(residuals)
    if stars is None:
        return None
    reasons = [str(reason) or "used" for reason in stars["reason"]]
    names, counts = np.unique(reasons, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shown = stars[:_STARS_SHOWN]
    return {
        "total": len(stars),
        "shown": len(shown),
        "offered": int(np.sum(stars["candidate"])),
        "used": int(np.sum(stars["used"])),
        "reasons": [[str(names[i]), int(counts[i])] for i in order],
        "x": _rounded(shown["x"], 2),
        "y": _rounded(shown["y"], 2),
        "signal_to_noise": _rounded(shown["signal_to_noise"], 1),
        "candidate": [bool(c) for c in shown["candidate"]],
        "reason": reasons[: len(shown)],
        "chi2": _rounded(shown["chi2"], 3),
        "residuals": residuals,
    }


def _residual_checks(residuals: dict[str, Any]) -> list[Check]:
    return [
        judged(
            "Flux left of stars",
            "star residuals",
            residuals["median"],
            "Median of the difference's flux over the star's: a wrong photometric scale, or a"
            " background under the stars.",
            error=residuals["median_error"],
            form=".2f",
            percent=True,
        ),
        judged(
            "Star residuals / error, scatter",
            "star scatter",
            residuals["scatter"],
            "1 if only noise is left where the kernel's stars were; more where they stand out.",
            form=".2f",
        ),
    ]


def _run_checks(inputs: ReportInput) -> list[Check]:
    header = inputs.header
    checks = []
    contaminated = header.get("WDCONTAM")
    if isinstance(contaminated, float):
        checks.append(
            judged(
                "Contaminated pixels",
                "contaminated",
                contaminated,
                "Pixels that owe more than 1 % to missing ones, by mask plane CONTAMINATED.",
                form=".1f",
                percent=True,
            )
        )
    coverage = header.get("WDTFRAC")
    if isinstance(coverage, float):
        checks.append(
            judged(
                "Covered by the template",
                "coverage",
                coverage,
                "Where it is not covered there is no difference.",
                form=".1f",
                percent=True,
            )
        )
    if inputs.log is not None:
        warnings = int(np.sum(np.asarray(inputs.log["kind"]).astype(str) == "warning"))
        checks.append(
            judged(
                "Warnings of the run",
                "warnings",
                warnings,
                "They stand at the end of this page, under Run.",
                form=".0f",
            )
        )
    return checks


_FRACTIONS = {
    key: f"{key.removesuffix('s')}_fraction" for key in ("dipoles", "extended", "flagged")
}


def _detections(inputs: ReportInput, searched: int, checks: list[Check]) -> dict[str, Any] | None:
    if inputs.catalog is None:
        return None
    section = detection_rows(inputs.catalog, listed=_LISTED, drawn=_DRAWN)
    section["expected_false"] = inputs.catalog.meta.get("expected_false_per_sign")
    if section["expected_false"] is None and inputs.product.psf is not None:
        section["expected_false"] = expected_false_detections(
            inputs.product, section["threshold"], searched, score=inputs.is_score
        )
    section["headline"] = _headline(inputs.catalog)
    n = section["total"]
    for name, key, why in (
        (
            "Dipoles and artifacts",
            "dipoles",
            "Many of them: a misalignment, or a kernel that does not fit.",
        ),
        (
            "Extended detections",
            "extended",
            "Many of them: galaxies or bright stars that do not cancel, or a background that is"
            " left.",
        ),
        (
            "Flagged detections",
            "flagged",
            "Many of them: defects, saturated stars or edges that the pair is full of; only what is"
            " not flagged is to be believed.",
        ),
    ):
        fraction = section[_FRACTIONS[key]]
        if fraction is not None:
            checks.append(
                judged(
                    name,
                    key,
                    fraction,
                    why,
                    error=math.sqrt(max(fraction * (1 - fraction), 0.25 / n) / n) / 2,
                    form=".0f",
                    percent=True,
                )
            )
    if n >= _FEWEST_AT_EDGES:
        y0, x0 = inputs.product.origin
        x, y = (
            np.asarray(getattr(inputs.catalog[axis], "value", inputs.catalog[axis]), float) - start
            for axis, start in (("x", x0), ("y", y0))
        )
        ratio, error = edge_excess(x, y, inputs.product.shape)
        checks.append(
            judged(
                "Detections at the edges",
                "edges",
                ratio,
                "Density along the edges over that elsewhere.  A frame of false sources: a level or"
                " a border of the detector that the other image does not have.",
                error=error,
                form=".1f",
            )
        )
    return section


def _headline(catalog: Table) -> str | None:
    """Summary line of a catalogue of detections; None for a table of another kind."""
    meta, columns = catalog.meta, catalog.colnames
    if meta.get("kind") != "detections" or not (
        {"threshold", "sign", "n_pixels_searched"} <= set(meta)
        and {"significance", "classification", "psf_flux"} <= set(columns)
    ):
        return None
    text = headline(catalog)
    return text[0].upper() + text[1:]


def _depth(header: fits.Header, unit: str) -> dict[str, Any] | None:
    """Flux and magnitude of a 5 sigma point source, as numbers and as text."""
    flux, magnitude = header.get("WDDEPTH"), header.get("WDMAGLIM")
    if not isinstance(flux, float):
        return None
    text = depth_text(flux, magnitude, unit).removeprefix(". ")
    return {"flux": flux, "magnitude": magnitude, "text": text}


def _images(inputs: ReportInput, matched: Array | None, data: dict[str, Any]) -> dict[str, Any]:
    """Pictures of the whole frame, and cut-outs at full resolution."""
    product, shape = inputs.product, inputs.product.shape
    sigma = _noise_level(inputs)
    stretch = Stretch(sigma)
    planes: dict[str, tuple[str, Array, Array | None]] = {}
    if inputs.science is not None and inputs.science.shape == shape:
        planes["science"] = ("science", inputs.science.data, None)
    if matched is not None:
        known = inputs.solution is not None
        planes["template"] = ("template, as subtracted" if known else "template", matched, None)
    if not inputs.is_score:
        planes["difference"] = ("difference", product.data, None)
    score = product if inputs.is_score else inputs.score
    if score is not None:
        planes["score"] = ("score, S/√V", score.data, score.variance)
    factor = max(1, math.ceil(math.sqrt(product.data.size / _MOST_PIXELS)))
    greys, levels = {}, {}
    for key, (_, image, variance) in planes.items():
        level = 0.0
        if key in ("science", "template"):
            values = sampled(image)
            level = float(np.median(values)) if len(values) else 0.0
        levels[key] = level
        small = binned(image if variance is None else _significance(image, variance), factor)
        greys[key] = (stretch if variance is None else Stretch(1.0))(small, level)
    sources, quality = encoded_jpegs(greys, _MOST_BYTES)
    del greys
    places, side = _stamp_places(product, data)
    x, y = np.array(places["x"]) - product.origin[1], np.array(places["y"]) - product.origin[0]
    pictures = []
    for key, (label, image, variance) in planes.items():
        if variance is None:
            sprite = stamps(
                lambda part, level=levels[key]: stretch(part, level), image, x, y, side,
                _STAMP_COLUMNS,
            )  # fmt: skip
        else:
            sprite = stamps(
                Stretch(1.0), _significance(image, variance), x, y, side, _STAMP_COLUMNS
            )
        pictures.append(
            {
                "key": key,
                "label": label,
                "level": levels[key],
                "src": sources[key],
                "stamps": encoded_png(sprite) if len(x) else None,
            }
        )
    flags = [masks.flagged(product.mask, names) for _, names, _ in _FLAGS]
    flags[0] |= ~np.isfinite(product.data)
    return {
        "bin": factor,
        "quality": quality,
        "sigma": sigma,
        "ticks": stretch.ticks(),
        "planes": pictures,
        "flags": flag_picture(flags, factor, [colour for *_, colour in _FLAGS]),
        "flag_legend": [
            {"label": label, "colour": colour, "fraction": float(flag.mean())}
            for (label, _, colour), flag in zip(_FLAGS, flags, strict=True)
        ],
        "stamps": {"side": side, "columns": _STAMP_COLUMNS, **places},
        "sky": sky_grid(product),
    }


def _noise_level(inputs: ReportInput) -> float:
    """Noise by which pixels are divided before they are drawn."""
    for exposure in (None if inputs.is_score else inputs.product, inputs.science, inputs.template):
        if exposure is None:
            continue
        values = sampled(exposure.variance)
        values = values[values > 0]
        if len(values):
            return math.sqrt(float(np.median(values)))
    return 1.0


def _significance(image: Array, variance: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variance > 0, image / np.sqrt(variance), np.nan).astype(np.float32)


def _stamp_places(product: Exposure, data: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Centres of the cut-outs (listed detections and worst stars), and their side."""
    side = _STAMP_SIDES[0]
    if product.psf is not None:
        box = product.bbox
        psf = product.psf.at(x=box.x.center, y=box.y.center)
        wanted = 2 * math.ceil(4 * full_width_half_maximum(psf)) + 1
        side = min(max(wanted, side), _STAMP_SIDES[1])
    x: list[float] = []
    y: list[float] = []
    found = data.get("detections")
    if found is not None:
        x += [row["x"] for row in found["rows"]]
        y += [row["y"] for row in found["rows"]]
    worst: list[int] = []
    stars = data.get("stars")
    if stars is not None and stars["residuals"] is not None:
        pulls = np.abs(np.array(stars["residuals"]["pull"], float))
        worst = [int(i) for i in np.argsort(-np.nan_to_num(pulls))[:_WORST_STARS]]
        x += [stars["residuals"]["x"][i] for i in worst]
        y += [stars["residuals"]["y"][i] for i in worst]
    return {"x": x, "y": y, "worst_stars": worst, "first_star": len(x) - len(worst)}, side


def _run(inputs: ReportInput) -> dict[str, Any]:
    header = inputs.header
    cards = [
        {"card": card.keyword, "value": _card_text(card.value), "comment": card.comment}
        for card in header.cards
        if card.keyword.startswith("WD")
    ]
    section: dict[str, Any] = {"cards": cards, "stages": [], "warnings": [], "options": []}
    if inputs.log is None:
        section["recorded"] = False
        return section
    section["recorded"] = True
    rows = [
        (float(row["seconds"]), str(row["kind"]).strip(), str(row["text"])) for row in inputs.log
    ]
    section["options"] = [text for _, kind, text in rows if kind == "option"]
    section["warnings"] = [text for _, kind, text in rows if kind == "warning"]
    stages = [(seconds, text) for seconds, kind, text in rows if kind == "stage"]
    section["stages"] = [
        {"name": text, "seconds": following - seconds}
        for (seconds, text), (following, _) in itertools.pairwise(stages)
        if math.isfinite(following - seconds)
    ]
    return section


def _card_text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _rounded(values: Iterable[Any], digits: int) -> list[float | None]:
    return [
        round(float(value), digits) if math.isfinite(float(value)) else None for value in values
    ]


def _plain(value: Any) -> Any:
    """Value ready for JSON: floats rounded to 9 digits, None if not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value
