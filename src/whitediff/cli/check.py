"""``whitediff check``: how white is it?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import OUTPUT_FILE, common_options, log, print_table, stages

__all__ = ["check", "run_check"]

_DEFAULT_SIGMA = 1.8


@click.command(short_help="Measure how white the noise of an image is.")
@click.argument("image", metavar="OUT")
@click.option("--science", metavar="S", help="Science image, to find sources on.")
@click.option("--template", metavar="T", help="Template, to find sources on.")
@click.option(
    "--before",
    metavar="FILE",
    help="Difference before decorrelation"
    "  [default: the one that OUT was made from, if it is still there].",
)
@click.option(
    "--sigma",
    type=float,
    help="Filter with a Gaussian of this width in pixels, not"
    f" with the file's PSF  [default without a PSF: {_DEFAULT_SIGMA}].",
)
@click.option("--json", "json_path", type=OUTPUT_FILE, help="Write the numbers to this file.")
@click.option("--plot", type=OUTPUT_FILE, help="Draw a picture (PNG) to this file.")
@click.option("--overwrite", is_flag=True, help="Replace these files if they exist.")
@common_options
def check(**options: Any) -> None:
    """Measure how white the noise of OUT is, on source-free pixels.

    Compares the variance of the pixels with the variance plane, measures their
    autocorrelation, and filters them with the PSF: detection sees the variance ratio of
    the filtered image, which is 1 for white noise.

    A score image is correlated by design: of that only mean and variance of S/sqrt(V) are
    measured, which are 0 and 1 where its variance plane tells the truth.
    """
    options["image_path"] = options.pop("image")
    run_check(**options)


def run_check(
    *,
    image_path: str,
    science: str | None = None,
    template: str | None = None,
    before: str | None = None,
    sigma: float | None = None,
    json_path: Path | None = None,
    plot: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure, print, and write what was asked for.

    Parameters
    ----------
    image_path, science, template, before, sigma, json_path, plot, overwrite
        Options of the command.

    Returns
    -------
    values
        What the JSON file holds.
    """
    import numpy as np

    from .. import formats
    from ..diagnostics.measure import gaussian_filter, score_noise, whiteness
    from ..errors import ArgumentError, DataError
    from ..exposures import masks
    from ..exposures.psf import psf_image
    from ..outputs import check_output
    from ..sources import detect_sources

    for output in (json_path, plot):
        if output is not None:
            check_output(output, overwrite=overwrite)
    with stages("Checking", 4) as begin:
        begin("reading")
        exposure = formats.read_exposure(image_path)
        box = exposure.bbox
        score = _is_score(image_path)
        if sigma is not None and score:
            raise ArgumentError(
                f"{image_path}: is a score image, which is filtered already; leave out --sigma."
            )
        if sigma is not None and 10 * sigma > min(exposure.shape):
            raise ArgumentError(
                f"{image_path}: --sigma {sigma:g} is too wide for {exposure.shape[0]} x"
                f" {exposure.shape[1]} pixels; a tenth of the smaller side is the most."
            )
        if sigma is not None:
            psf, description = gaussian_filter(sigma), f"Gaussian of sigma {sigma:g} pixels"
        elif exposure.psf is not None:
            try:
                psf = psf_image(exposure.psf, x=box.x.center, y=box.y.center)
            except ArgumentError as error:
                raise ArgumentError(f"{image_path}: {error}") from error
            description = "the file's PSF"
        else:
            psf = gaussian_filter(_DEFAULT_SIGMA)
            description = f"Gaussian of sigma {_DEFAULT_SIGMA} pixels"
            if not score:
                log.info("%s: has no PSF; filtered with a %s.", image_path, description)

        begin("sources")
        bad = masks.flagged(
            exposure.mask, (*masks.DEFAULT_IGNORE_MASK_PLANES, masks.CONTAMINATED, "SUSPECT")
        )
        sources, how = np.zeros_like(bad), ""
        if science is not None or template is not None:
            for path in (science, template):
                if path is None:
                    continue
                other = formats.read_exposure(path, needs_variance=False)
                if other.shape != exposure.shape:
                    raise ArgumentError(
                        f"{path}: has the shape {other.shape}, but {image_path} {exposure.shape}."
                    )
                untrusted = masks.flagged(other.mask, masks.UNTRUSTED_MASK_PLANES)
                try:
                    sources |= detect_sources(other.image.array, untrusted)
                except DataError as error:
                    raise DataError(f"{path}: {error}") from error
            how = "found on " + " and ".join(p for p in (science, template) if p is not None)
        elif masks.find_plane(exposure.mask, masks.SOURCE) is not None:
            sources = masks.flagged(exposure.mask, [masks.SOURCE])
            how = "from the mask plane SOURCE"
        else:
            how = "unknown"
            log.warning(
                "%s: neither --science nor --template is given, and it has no mask plane SOURCE,"
                " so the residuals of sources count as noise.",
                image_path,
            )
        good = ~(bad | sources)
        begin("measuring")
        image, variance = exposure.image.array, exposure.variance.array
        earlier = _before(image_path, before, exposure.shape)
        measured = [(image_path, image, good)]
        if earlier is not None:
            # The same pixels and the same plane: what changes is the image alone.
            old_image = earlier.image.array
            measured.append((str(earlier.source), old_image, good & np.isfinite(old_image)))
        results: list[Any] = []
        drawn: list[Any] = []
        for path, pixels, use in measured:
            try:
                if score:
                    results.append(score_noise(pixels, variance, use))
                if plot is not None or not score:
                    drawn.append(whiteness(pixels, variance, use, psf))
            except DataError as error:
                raise DataError(f"{path}: {error}") from error
        results = results or drawn
        after, old = results[0], results[1] if len(results) > 1 else None
        if plot is not None:
            from ..diagnostics.plots import plot_whiteness

            begin("drawing")
            plot_whiteness(
                plot,
                after=image,
                variance=variance,
                good=good & np.isfinite(image) & np.isfinite(variance) & (variance > 0),
                whiteness=drawn[0],
                before=None if earlier is None else measured[1][1],
                before_good=None if earlier is None else measured[1][2],
                before_whiteness=None if earlier is None else drawn[1],
                score_noise=after if score else None,
                before_score_noise=old if score else None,
                title=Path(image_path).name,
            )
    values: dict[str, Any] = {
        "file": image_path,
        "kind": "score" if score else "difference",
        "filter": None if score else description,
        "sources": how,
        "after": after.to_dict(),
        "before": None if old is None else old.to_dict(),
    }
    if json_path is not None:
        import json

        from ..outputs import replacing

        with replacing(json_path, overwrite=overwrite) as temporary:
            temporary.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
    if score:
        title = f"{image_path}: noise of a score, which is correlated by design"
        _print(title, _SCORE_ROWS, after, old)
    else:
        _print(f"{image_path}: whiteness (filter: {description})", _ROWS, after, old)
    for output in (json_path, plot):
        if output is not None:
            log.info("%s: written.", output)
    return values


def _is_score(image_path: str) -> bool:
    from ..formats.files import opened, split_extension

    with opened(split_extension(image_path)[0]) as hdus:
        return hdus[0].header.get("WDSCORE") is True


def _before(image_path: str, before: str | None, shape: tuple[int, int]) -> Any:
    """Difference that the image was made from, if it can be found."""
    from .. import formats
    from ..errors import ArgumentError, WhitediffError
    from ..formats.files import opened, split_extension
    from ..formats.headers import unescaped

    if before is None:
        out = split_extension(image_path)[0]
        with opened(out) as hdus:
            recorded = hdus[0].header.get("WDDIFF")
        if not isinstance(recorded, str):
            return None
        recorded = unescaped(recorded)
        for candidate in (Path(recorded), out.parent / Path(recorded).name):
            if split_extension(candidate)[0].exists():
                try:
                    exposure = formats.read_exposure(candidate, needs_variance=False)
                except WhitediffError as error:
                    log.info("%s", error)
                    return None
                return exposure if exposure.shape == shape else None
        return None
    exposure = formats.read_exposure(before, needs_variance=False)
    if exposure.shape != shape:
        raise ArgumentError(
            f"{before}: has the shape {exposure.shape}, but {image_path} has {shape}."
        )
    return exposure


_VALUE, _MEASURED, _LAGS = "value", "value with its error", "values at lags"
_ROWS = (
    ("source-free pixels", _VALUE, "pixels"),
    ("pixel variance", _VALUE, "pixel_variance"),
    ("variance plane", _VALUE, "variance_plane"),
    ("pixel variance / variance plane", _MEASURED, "pixel_variance_ratio"),
    ("PSF-filtered variance ratio", _MEASURED, "filtered_variance_ratio"),
    ("neighbour covariance", _MEASURED, "neighbour_covariance"),
    ("correlation, x, lags 1-5", _LAGS, "correlation_x"),
    ("correlation, y, lags 1-5", _LAGS, "correlation_y"),
    ("correlation, diagonal, lags 1-5", _LAGS, "correlation_diagonal"),
    ("correlation, antidiagonal, lags 1-5", _LAGS, "correlation_antidiagonal"),
)
_SCORE_ROWS = (
    ("source-free pixels", _VALUE, "pixels"),
    ("independent pixels", _VALUE, "independent_pixels"),
    ("pixel variance", _VALUE, "pixel_variance"),
    ("variance plane", _VALUE, "variance_plane"),
    ("variance of S/sqrt(V)", _MEASURED, "pixel_variance_ratio"),
    ("mean of S/sqrt(V)", _MEASURED, "significance_mean"),
)


def _print(title: str, rows: tuple[tuple[str, str, str], ...], after: Any, before: Any) -> None:
    results = [result for result in (before, after) if result is not None]
    headings = ["after"] if before is None else ["before", "after"]

    def cell(result: Any, kind: str, name: str) -> str:
        value = getattr(result, name)
        if kind == _LAGS:
            return " ".join(f"{c:+.3f}" for c in value)
        if kind == _MEASURED:
            return f"{value:.4f} ± {getattr(result, f'{name}_error'):.4f}"
        return format(value, "d" if isinstance(value, int) else ".6g")

    print_table(
        title,
        ["", *headings],
        [[label, *(cell(result, kind, name) for result in results)] for label, kind, name in rows],
    )
