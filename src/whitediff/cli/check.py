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
    from ..diagnostics.measure import gaussian_filter, whiteness
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
        try:
            after = whiteness(image, variance, good, psf)
        except DataError as error:
            raise DataError(f"{image_path}: {error}") from error
        earlier = _before(image_path, before, exposure.shape)
        old = old_image = None
        if earlier is not None:
            old_image = earlier.image.array
            # The same pixels and the same plane: what changes is the image alone.
            good_before = good & np.isfinite(old_image)
            try:
                old = whiteness(old_image, variance, good_before, psf)
            except DataError as error:
                raise DataError(f"{earlier.source}: {error}") from error
        if plot is not None:
            from ..diagnostics.plots import plot_whiteness

            begin("drawing")
            plot_whiteness(
                plot,
                after=image,
                variance=variance,
                good=good & np.isfinite(image) & np.isfinite(variance) & (variance > 0),
                whiteness=after,
                before=old_image,
                before_good=None if old_image is None else good_before,
                before_whiteness=old,
                title=Path(image_path).name,
            )
    values: dict[str, Any] = {
        "file": image_path,
        "filter": description,
        "sources": how,
        "after": after.to_dict(),
        "before": None if old is None else old.to_dict(),
    }
    if json_path is not None:
        import json

        from ..outputs import replacing

        with replacing(json_path, overwrite=overwrite) as temporary:
            temporary.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
    _print(image_path, description, after, old)
    for output in (json_path, plot):
        if output is not None:
            log.info("%s: written.", output)
    return values


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


def _print(path: str, description: str, after: Any, before: Any) -> None:
    results = [result for result in (before, after) if result is not None]
    headings = ["after"] if before is None else ["before", "after"]

    def row(label: str, form: str, name: str) -> list[str]:
        return [label, *(format(getattr(result, name), form) for result in results)]

    def with_error(label: str, name: str) -> list[str]:
        return [
            label,
            *(f"{getattr(r, name):.4f} ± {getattr(r, f'{name}_error'):.4f}" for r in results),
        ]

    rows = [
        row("source-free pixels", "d", "pixels"),
        row("pixel variance", ".6g", "pixel_variance"),
        row("variance plane", ".6g", "variance_plane"),
        with_error("pixel variance / variance plane", "pixel_variance_ratio"),
        with_error("PSF-filtered variance ratio", "filtered_variance_ratio"),
        with_error("neighbour covariance", "neighbour_covariance"),
    ]
    for label, name in (
        ("x", "correlation_x"),
        ("y", "correlation_y"),
        ("diagonal", "correlation_diagonal"),
        ("antidiagonal", "correlation_antidiagonal"),
    ):
        rows.append(
            [
                f"correlation, {label}, lags 1-5",
                *(" ".join(f"{c:+.3f}" for c in getattr(result, name)) for result in results),
            ]
        )
    print_table(f"{path}: whiteness (filter: {description})", ["", *headings], rows)
