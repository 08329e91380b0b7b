"""Plots of whiteness, completeness and batches, drawn with matplotlib."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..exposures.pictures import limits
from ..extras import check_drawing
from ..outputs import replacing
from .measure import ScoreNoise, VarianceMap, Whiteness, WhitenessMap, radial_power

if TYPE_CHECKING:
    import astropy.table
    import matplotlib.figure

__all__ = [
    "MeasuredImage",
    "plot_batch",
    "plot_evaluation",
    "plot_subtraction",
    "plot_whiteness",
]

type Array = npt.NDArray[Any]


def plot_subtraction(
    images: Mapping[str, Array],
    *,
    origin: tuple[int, int] = (0, 0),
    sources: astropy.table.Table | None = None,
    title: str = "",
    path: Path | None = None,
    overwrite: bool = False,
) -> matplotlib.figure.Figure:
    """Draw a science image, a template and their difference side by side.

    Parameters
    ----------
    images
        Title → ``(ny, nx)`` image; the last is the difference, with a symmetric grey scale.
    origin
        Pixel coordinates (y, x) of the first pixel.
    sources
        Table with columns x, y (pixel coordinates) and psf_flux; circles mark the sources, red
        for positive and blue for negative flux.
    title
        Title above the picture.
    path
        PNG to write; None to write nothing.
    overwrite
        Whether an existing file may be replaced.

    Returns
    -------
    figure
        `matplotlib.figure.Figure`.

    Raises
    ------
    ArgumentError
        If matplotlib is not installed.
    """
    check_drawing()
    from matplotlib.patches import Circle

    ny, nx = next(iter(images.values())).shape
    height = min(max(5.0 * ny / nx, 2.5), 12.0)
    figure = _figure((5.2 * len(images), height + 0.8), title)
    panels = np.atleast_1d(figure.subplots(1, len(images), sharex=True, sharey=True))
    y0, x0 = origin
    extent = (x0 - 0.5, x0 + nx - 0.5, y0 - 0.5, y0 + ny - 0.5)
    last = list(images)[-1]
    for axes, (name, image) in zip(panels, images.items(), strict=True):
        step = max(1, max(image.shape) // _MOST_DRAWN)
        pixels = image[::step, ::step].astype(float)
        low, high = limits(pixels)
        if name == last:
            # Ten sigma across, about zero.
            low, high = -(high - low) / 2, (high - low) / 2
        axes.imshow(pixels, origin="lower", cmap="gray", vmin=low, vmax=high, extent=extent)
        axes.set_title(name, parse_math=False)
        axes.set_xlabel("x [pixel]")
    panels[0].set_ylabel("y [pixel]")
    if sources is not None and len(sources):
        radius = 0.02 * max(nx, ny) + 4
        for row in sources:
            colour = "#d62728" if float(_plain(row["psf_flux"])) > 0 else "#1f77b4"
            for axes in panels:
                circle = Circle(
                    (float(_plain(row["x"])), float(_plain(row["y"]))),
                    radius,
                    fill=False,
                    color=colour,
                    linewidth=1.0,
                )
                axes.add_patch(circle)
    if path is not None:
        with replacing(path, overwrite=overwrite) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
    return figure


_MOST_DRAWN = 1500
"""Pixels to a side above which an image is thinned out evenly."""


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


@dataclasses.dataclass(frozen=True)
class MeasuredImage:
    """An image and the measurements of its noise.

    Attributes
    ----------
    pixels
        ``(ny, nx)``.
    good
        ``(ny, nx)`` boolean: source-free pixels.
    whiteness
        Whiteness of the noise on these pixels.
    score_noise
        Noise of a score: these numbers replace the ones of whiteness in the picture.
    variance_map
        Variance ratios cell by cell over the frame, `WhitenessMap` for a difference; None for no
        map.
    """

    pixels: Array
    good: Array
    whiteness: Whiteness
    score_noise: ScoreNoise | None = None
    variance_map: VarianceMap | None = None


def plot_whiteness(
    path: str | Path,
    after: MeasuredImage,
    variance: Array,
    *,
    before: MeasuredImage | None = None,
    title: str = "",
) -> None:
    """Draw an image before and after decorrelation, and how white its noise is.

    Parameters
    ----------
    path
        PNG to write; replaced if it exists.
    after
        Corrected image.
    variance
        ``(ny, nx)`` variance plane of the corrected image.
    before
        The image before the correction, if known.
    title
        Title above the picture.

    Raises
    ------
    ArgumentError
        If matplotlib is not installed.
    """
    whiteness, good = after.whiteness, after.good
    before_whiteness = None if before is None else before.whiteness
    heights = [7.4] if after.variance_map is None else [7.4, 3.5]
    figure = _figure((15, sum(heights)), title)
    # Separate subfigures, so that the panels of one take no room from the panels of the other.
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    panels = parts[0].subplots(2, 4, width_ratios=[1.2, 1.2, 1, 1.2])
    sigma = float(np.sqrt(np.median(variance[good])))
    _draw_image(parts[0], panels[0, 0], None if before is None else before.pixels, sigma, "before")
    _draw_image(parts[0], panels[0, 1], after.pixels, sigma, "after")
    reach = _largest_correlation([whiteness, before_whiteness])
    _draw_map(parts[0], panels[1, 0], before_whiteness, reach, "autocorrelation before")
    _draw_map(parts[0], panels[1, 1], whiteness, reach, "autocorrelation after")

    normalised = {}
    if before is not None:
        values = before.pixels[before.good]
        normalised["before"] = (before.pixels / values.std(), before.good, "tab:red")
    with np.errstate(invalid="ignore", divide="ignore"):
        normalised["after"] = (after.pixels / np.sqrt(variance), good, "tab:blue")

    power = panels[0, 2]
    for name, (image, pixels, colour) in normalised.items():
        frequency, values = radial_power(np.where(pixels, image, 0.0), pixels)
        power.plot(frequency, values, color=colour, label=name)
    power.axhline(1, color="0.6", linewidth=0.8)
    power.set(
        xlabel="frequency [cycles / pixel]",
        ylabel="power / that of white noise",
        title="power spectrum",
        ylim=(0, None),
    )
    power.legend(frameon=False)

    histogram = panels[0, 3]
    edges = np.linspace(-6, 6, 97)
    centre = (edges[1:] + edges[:-1]) / 2
    values = normalised["after"][0][good]
    histogram.hist(values - values.mean(), edges, histtype="step", color="tab:blue", log=True)
    expected = good.sum() * (edges[1] - edges[0]) * np.exp(-0.5 * centre**2) / np.sqrt(2 * np.pi)
    histogram.plot(centre, expected, color="0.4", linewidth=1, label="unit Gaussian")
    histogram.set(xlabel="pixel / σ", ylabel="pixels", title="after")
    # Room for the legend above the curve.
    histogram.set_ylim(0.5, 8 * float(expected.max()))
    histogram.legend(frameon=False, loc="upper right", fontsize="small")

    lags = panels[1, 2]
    for name, result, colour in (
        ("before", before_whiteness, "tab:red"),
        ("after", whiteness, "tab:blue"),
    ):
        if result is not None:
            steps = np.arange(1, len(result.correlation_x) + 1)
            lags.plot(steps, result.correlation_x, "o-", color=colour, label=f"{name}, x")
            lags.plot(steps, result.correlation_y, "s--", color=colour, label=f"{name}, y")
    heading = "autocorrelation"
    if after.score_noise is None:
        heading = "autocorrelation (grey: ±2σ)"
        limit = 2 * whiteness.correlation_error
        lags.axhspan(-limit, limit, color="0.85")
    lags.axhline(0, color="0.6", linewidth=0.8)
    lags.set(xlabel="lag [pixel]", ylabel="correlation", title=heading)
    lags.legend(frameon=False, fontsize="small")

    text = panels[1, 3]
    text.axis("off")
    summary = (
        _summary(_ROWS, whiteness, before_whiteness)
        if after.score_noise is None
        else _summary(
            _SCORE_ROWS, after.score_noise, None if before is None else before.score_noise
        )
    )
    text.text(0, 0.98, summary, va="top", family="monospace", fontsize=8)
    if after.variance_map is not None:
        earlier = None if before is None else before.variance_map
        _draw_cells(parts[1], parts[1].subplots(1, 4), after.variance_map, earlier)
    with replacing(Path(path), overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _figure(size: tuple[float, float], title: str) -> Any:
    check_drawing()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


_ROWS = (
    ("source-free pixels", "pixels", "d"),
    ("pixel variance", "pixel_variance", ".4g"),
    ("variance plane", "variance_plane", ".4g"),
    ("variance / plane", "pixel_variance_ratio", ".4f"),
    ("PSF-filtered ratio", "filtered_variance_ratio", ".4f"),
    ("neighbour covariance", "neighbour_covariance", ".4f"),
)
_SCORE_ROWS = (
    ("source-free pixels", "pixels", "d"),
    ("independent pixels", "independent_pixels", ".0f"),
    ("pixel variance", "pixel_variance", ".4g"),
    ("variance plane", "variance_plane", ".4g"),
    ("variance of S/√V", "pixel_variance_ratio", ".4f"),
    ("mean of S/√V", "significance_mean", ".4f"),
)


def _summary(rows: tuple[tuple[str, str, str], ...], after: Any, before: Any) -> str:
    lines = [f"{'':21}{'before':>9}{'after':>9}", ""]
    for label, name, form in rows:
        old = "" if before is None else format(getattr(before, name), form)
        lines += [f"{label:21}{old:>9}{format(getattr(after, name), form):>9}", ""]
    return "\n".join(lines)


def _draw_image(figure: Any, axes: Any, image: Array | None, sigma: float, title: str) -> None:
    axes.set_title(title)
    if image is None:
        axes.text(0.5, 0.5, "not given", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    drawn = axes.imshow(
        image,
        origin="lower",
        cmap="gray",
        vmin=-4 * sigma,
        vmax=6 * sigma,
        interpolation="antialiased",
    )
    axes.set(xlabel="x [pixel]", ylabel="y [pixel]")
    figure.colorbar(drawn, ax=axes, shrink=0.8)


def _largest_correlation(results: list[Whiteness | None]) -> float:
    """Largest correlation beyond lag 0 of all maps, so that they share one scale."""
    largest = 0.0
    for result in results:
        if result is not None:
            correlation = result.autocorrelation.copy()
            correlation[correlation.shape[0] // 2, correlation.shape[1] // 2] = 0
            largest = max(
                largest, float(np.nanmax(np.abs(correlation))), 3 * result.correlation_error
            )
    return largest


def _draw_map(figure: Any, axes: Any, result: Whiteness | None, largest: float, title: str) -> None:
    axes.set_title(title)
    if result is None:
        axes.text(0.5, 0.5, "not given", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    correlation = result.autocorrelation.copy()
    reach = correlation.shape[0] // 2
    correlation[reach, reach] = np.nan  # 1 by definition: it would drown the others
    drawn = axes.imshow(
        correlation,
        origin="lower",
        cmap="RdBu_r",
        vmin=-largest,
        vmax=largest,
        extent=(-reach - 0.5, reach + 0.5) * 2,
    )
    axes.set(xlabel="lag x [pixel]", ylabel="lag y [pixel]")
    figure.colorbar(drawn, ax=axes, shrink=0.8)


_NO_VALUE = "0.85"
_CELLS_WITH_ERRORS, _CELLS_WITH_NUMBERS = 4, 10
"""Most cells to a side with room for a number and its error, and for a number alone."""


def _draw_cells(figure: Any, panels: Any, after: VarianceMap, before: VarianceMap | None) -> None:
    """Fill a row of panels with maps over the frame, before and after on one scale."""
    if isinstance(after, WhitenessMap):
        quantities = [
            ("filtered_variance_ratio", "PSF-filtered ratio"),
            ("pixel_variance_ratio", "variance / plane"),
        ]
    else:
        quantities = [("pixel_variance_ratio", "variance of S/√V")]
    drawn = [(cells, when) for cells, when in ((before, "before"), (after, "after")) if cells]
    for axes in panels[len(drawn) * len(quantities) :]:
        axes.set_axis_off()
    remaining = iter(panels)
    for name, label in quantities:
        largest = max(_largest_ratio(cells, name) for cells, _ in drawn)
        for cells, when in drawn:
            _draw_ratios(figure, next(remaining), cells, name, largest, f"{label} {when}")
    panels[0].set_ylabel("y [pixel]")


def _largest_ratio(cells: VarianceMap, name: str) -> float:
    """Largest departure of a cell from 1; at least four errors, so that white noise stays pale."""
    values, errors = getattr(cells, name), getattr(cells, f"{name}_error")
    known = np.isfinite(values)
    if not known.any():
        return 1.0
    return max(float(np.abs(values[known] - 1).max()), 4 * float(np.median(errors[known])))


def _draw_ratios(
    figure: Any, axes: Any, cells: VarianceMap, name: str, largest: float, title: str
) -> None:
    values, errors = getattr(cells, name), getattr(cells, f"{name}_error")
    # Like the images above, which count from the first pixel.
    x, y = (edges - edges[0] - 0.5 for edges in (cells.x_edges, cells.y_edges))
    drawn = axes.pcolormesh(
        x, y, np.ma.masked_invalid(values), cmap="RdBu_r", vmin=1 - largest, vmax=1 + largest
    )
    axes.set_facecolor(_NO_VALUE)
    axes.set(xlabel="x [pixel]", title=title, aspect="equal")
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    figure.colorbar(drawn, cax=axes.inset_axes((1.04, 0, 0.05, 1)))
    most = max(values.shape)
    if most > _CELLS_WITH_NUMBERS:
        return
    for row, column in np.ndindex(values.shape):
        value, error = values[row, column], errors[row, column]
        text = "–"
        if np.isfinite(value):
            text = f"{value:.3f}" if most <= _CELLS_WITH_NUMBERS // 2 else f"{value:.2f}"
            if most <= _CELLS_WITH_ERRORS:
                text += f"\n±{error:.3f}"
        axes.text(
            (x[column] + x[column + 1]) / 2,
            (y[row] + y[row + 1]) / 2,
            text,
            ha="center",
            va="center",
            fontsize=9 if most <= _CELLS_WITH_NUMBERS // 2 else 7,
            # Both ends of the scale are dark.
            color="white" if abs(value - 1) > 0.6 * largest else "black",
        )


_KINDS = {"difference": "tab:blue", "score": "tab:orange"}
_MEASURES = {"at_position": ("at the position", "s", "--"), "peak": ("highest peak", "o", "-")}


def plot_evaluation(
    path: str | Path, numbers: dict[str, Any], sources: astropy.table.Table, *, title: str = ""
) -> None:
    """Draw completeness, bias, pulls and false detections of an evaluation.

    Parameters
    ----------
    path
        PNG to write; replaced if it exists.
    numbers
        Result of `whitediff.diagnostics.completeness.summarise`.
    sources
        Result of `whitediff.diagnostics.completeness.all_sources`.
    title
        Title above the picture.

    Raises
    ------
    ArgumentError
        If matplotlib is not installed.
    """
    figure = _figure((15, 8.2), title)
    panels = figure.subplots(2, 3)
    columns = {
        name: np.asarray(getattr(sources[name], "value", sources[name]))
        for name in sources.colnames
    }
    clear = columns["clear"].astype(bool)
    _draw_completeness(panels[0, 0], numbers)
    _draw_excess(panels[0, 1], numbers)
    _draw_false_detections(panels[0, 2], numbers)
    _draw_fluxes(panels[1, 0], columns, clear)
    pulls = {"forced flux": (columns["forced_flux"] - columns["flux"]) / columns["forced_flux_err"]}
    _draw_pulls(panels[1, 1], {name: pull[clear] for name, pull in pulls.items()}, "flux pull")
    bright = (
        clear
        & columns["difference_found"].astype(bool)
        & (
            columns["signal_to_noise"]
            >= numbers["products"]["difference"]["free"]["least_signal_to_noise"]
        )
    )
    offsets = {
        axis: ((columns[f"difference_{axis}"] - columns[axis]) / columns[f"difference_{axis}_err"])
        for axis in ("x", "y")
    }
    _draw_pulls(
        panels[1, 2], {name: pull[bright] for name, pull in offsets.items()}, "position pull"
    )
    with replacing(Path(path), overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _middles(bins: dict[str, Any]) -> Array:
    return (np.array(bins["lower"]) + np.array(bins["upper"])) / 2


def _as_floats(values: list[float | None]) -> Array:
    return np.array([np.nan if value is None else value for value in values])


def _draw_completeness(axes: Any, numbers: dict[str, Any]) -> None:
    ideal = numbers["ideal"]
    for measure, (label, marker, line) in _MEASURES.items():
        axes.plot(
            ideal["signal_to_noise"], ideal[measure], line, color="0.5", label=f"ideal, {label}"
        )
        for kind, product in numbers["products"].items():
            bins = product[measure]["clear"]["bins"]
            value, low, high = (
                _as_floats(bins[f"completeness{end}"]) for end in ("", "_low", "_high")
            )
            axes.errorbar(
                _middles(bins),
                value,
                yerr=[value - low, high - value],
                fmt=marker,
                color=_KINDS[kind],
                fillstyle="full" if measure == "peak" else "none",
                markersize=4,
                label=f"{kind}, {label}",
            )
    for level in (0.5, 0.95):
        axes.axhline(level, color="0.85", linewidth=0.8, zorder=0)
    axes.set(xlabel="signal-to-noise ratio", ylabel="completeness", title="completeness")
    axes.legend(frameon=False, fontsize="small", loc="lower right")


def _draw_excess(axes: Any, numbers: dict[str, Any]) -> None:
    axes.axhline(0, color="0.6", linewidth=0.8)
    drawn = False
    for measure, (label, marker, _) in _MEASURES.items():
        for kind, product in numbers["products"].items():
            against = product[measure]["against_ideal"]
            if against is None:
                continue
            bins = against["bins"]
            axes.errorbar(
                _middles(bins),
                _as_floats(bins["excess"]),
                yerr=_as_floats(bins["excess_error"]),
                fmt=marker,
                color=_KINDS[kind],
                fillstyle="full" if measure == "peak" else "none",
                markersize=4,
                label=f"{kind}, {label}",
            )
            drawn = True
    axes.set(
        xlabel="signal-to-noise ratio of the ideal filter",
        ylabel="completeness − ideal",
        title="against the ideal matched filter",
    )
    if drawn:
        axes.legend(frameon=False, fontsize="small")


def _draw_false_detections(axes: Any, numbers: dict[str, Any]) -> None:
    """Draw false detections on a logarithmic scale; an arrow stands for a count of zero."""
    lowest = np.inf
    for shift, (kind, product) in enumerate(numbers["products"].items()):
        false = product["false_detections"]
        thresholds = np.array(false["thresholds"])
        scale = 1e6 / max(false["pixels"], 1)
        expected = np.array(false["expected"]) * scale
        for sign, marker, part in (("positive", "^", 0.012), ("negative", "v", -0.012)):
            count = np.array(false[sign])
            some = count > 0
            place = thresholds + part + 0.05 * shift
            style = {"fmt": marker, "color": _KINDS[kind], "markersize": 5}
            axes.errorbar(
                place[some],
                count[some] * scale,
                # Half of a Poisson error of one is still above zero.
                yerr=np.sqrt(count[some]) * scale * [[0.99], [1]],
                label=f"{kind}, {sign}",
                **style,
            )
            axes.errorbar(
                place[~some], np.full((~some).sum(), scale), yerr=scale / 2, uplims=True, **style
            )
        axes.plot(thresholds, expected, color=_KINDS[kind], linewidth=1)
        lowest = min(lowest, float(expected.min()), scale / 2)
    axes.set(
        xlabel="threshold [σ]",
        ylabel="per million pixels",
        title="detections without injection (lines: white noise)",
        yscale="log",
        ylim=(lowest / 2, None),
    )
    axes.legend(frameon=False, fontsize="small")


def _draw_fluxes(axes: Any, columns: dict[str, Array], clear: Array) -> None:
    ratio = columns["signal_to_noise"]
    found = clear & columns["difference_found"].astype(bool)
    for label, name, use, colour in (
        ("position known", "forced_flux", clear, "tab:green"),
        ("detected", "difference_flux", found, "tab:blue"),
    ):
        values = columns[name] / columns["flux"] - 1
        use = use & np.isfinite(values)
        edges = np.quantile(ratio[use], np.linspace(0, 1, 21)) if use.sum() > 100 else []
        middles, means, errors = [], [], []
        for low, high in itertools.pairwise(edges):
            inside = values[use & (ratio >= low) & (ratio <= high)]
            middles.append((low + high) / 2)
            means.append(inside.mean())
            errors.append(inside.std() / np.sqrt(len(inside)))
        axes.errorbar(middles, means, yerr=errors, fmt="o", color=colour, markersize=4, label=label)
    grid = np.linspace(max(ratio.min(), 2), ratio.max(), 100)
    axes.plot(grid, 1 / grid**2, color="0.5", label="1 / (S/N)²")
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set(
        xlabel="signal-to-noise ratio",
        ylabel="flux / true flux − 1",
        title="flux (difference)",
        ylim=(-0.1, 0.3),
    )
    axes.legend(frameon=False, fontsize="small")


def _draw_pulls(axes: Any, pulls: dict[str, Array], title: str) -> None:
    edges = np.linspace(-5, 5, 51)
    centre = (edges[1:] + edges[:-1]) / 2
    for name, pull in pulls.items():
        values = pull[np.isfinite(pull)]
        if len(values):
            label = f"{name}: {values.mean():+.3f} ± {values.std():.3f}"
            axes.hist(values, edges, density=True, histtype="step", label=label)
    axes.plot(centre, np.exp(-0.5 * centre**2) / np.sqrt(2 * np.pi), color="0.4", linewidth=1)
    axes.set(xlabel="residual / error", title=title)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")


def plot_batch(path: str | Path, table: astropy.table.Table, *, title: str = "") -> None:
    """Draw the numbers of a batch, one point per item.

    Parameters
    ----------
    path
        PNG to write; replaced if it exists.
    table
        Result of `whitediff.surveys.summary.summary_table`.
    title
        Title above the picture.

    Raises
    ------
    ArgumentError
        If matplotlib is not installed.
    """
    figure = _figure((12, 8), title)
    panels = figure.subplots(2, 2, sharex=True).ravel()
    numbers = np.arange(len(table))
    failed = numbers[np.asarray(table["outcome"]) == "failed"]
    quantities = (
        ("filtered_variance_ratio", "PSF-filtered variance ratio (score: pixel ratio)"),
        ("kernel_sum", "sum of the kernel"),
    )
    for panel, (name, label) in zip(panels, quantities, strict=False):
        for kind, colour in (("difference", "tab:blue"), ("score", "tab:orange")):
            column = f"{kind}_{name}"
            if kind == "score" and name == "filtered_variance_ratio":
                column = "score_pixel_variance_ratio"
            if column in table.colnames:
                spread = f"{column}_error"
                errors = table[spread] if spread in table.colnames else None
                panel.errorbar(numbers, table[column], errors, fmt=".", color=colour, label=kind)
        panel.set(title=label)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False)
    panels[0].axhline(1, color="0.6", linewidth=0.8)
    panels[2].plot(numbers, table["seconds"].value, ".", color="tab:blue", label="elapsed")
    panels[2].plot(numbers, table["cpu_seconds"].value, ".", color="tab:green", label="processor")
    for panel in panels[2:]:
        panel.margins(y=0.2)
    panels[2].set(title="seconds", xlabel="row of the manifest", ylim=(0, None))
    panels[2].legend(frameon=False)
    panels[3].plot(numbers, table["peak_memory"].value / 1e6, ".", color="tab:blue")
    panels[3].set(title="largest memory [MB]", xlabel="row of the manifest", ylim=(0, None))
    for panel in panels:
        for number in failed:
            panel.axvline(number, color="tab:red", linewidth=0.8, alpha=0.5)
    # Row numbers are whole.
    panels[2].xaxis.get_major_locator().set_params(integer=True)
    if len(failed):
        figure.text(0.99, 0.005, "red: failed", color="tab:red", ha="right")
    with replacing(Path(path), overwrite=True) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
