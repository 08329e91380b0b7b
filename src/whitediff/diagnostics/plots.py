"""Pictures of whiteness; the only module that needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..outputs import replacing
from .measure import ScoreNoise, Whiteness, radial_power

__all__ = ["plot_whiteness"]

type Array = npt.NDArray[Any]


def plot_whiteness(
    path: str | Path,
    *,
    after: Array,
    variance: Array,
    good: Array,
    whiteness: Whiteness,
    before: Array | None = None,
    before_good: Array | None = None,
    before_whiteness: Whiteness | None = None,
    score_noise: ScoreNoise | None = None,
    before_score_noise: ScoreNoise | None = None,
    title: str = "",
) -> None:
    """Draw an image before and after decorrelation and how white its noise is.

    Parameters
    ----------
    path
        PNG to write; replaced if it exists.
    after, variance, good, whiteness
        ``(ny, nx)`` corrected image, its variance plane, the source-free pixels, and what
        was measured on them.
    before, before_good, before_whiteness
        The same before the correction, if known.
    score_noise, before_score_noise
        Of a score image: its numbers stand in the picture in place of those of whiteness.
    title
        Above the picture.

    Raises
    ------
    ArgumentError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ArgumentError(
            "Pictures need matplotlib; install it with: pip install 'whitediff[plot]'."
        ) from error

    figure = Figure(figsize=(15, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, parse_math=False)
    panels = figure.subplots(2, 4, width_ratios=[1.2, 1.2, 1, 1.2])
    sigma = float(np.sqrt(np.median(variance[good])))
    _draw_image(figure, panels[0, 0], before, sigma, "before")
    _draw_image(figure, panels[0, 1], after, sigma, "after")
    reach = _largest_correlation([whiteness, before_whiteness])
    _draw_map(figure, panels[1, 0], before_whiteness, reach, "autocorrelation before")
    _draw_map(figure, panels[1, 1], whiteness, reach, "autocorrelation after")

    normalised = {}
    if before is not None and before_good is not None:
        values = before[before_good]
        normalised["before"] = (before / values.std(), before_good, "tab:red")
    with np.errstate(invalid="ignore", divide="ignore"):
        normalised["after"] = (after / np.sqrt(variance), good, "tab:blue")

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
    if score_noise is None:
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
        if score_noise is None
        else _summary(_SCORE_ROWS, score_noise, before_score_noise)
    )
    text.text(0, 0.98, summary, va="top", family="monospace", fontsize=8)
    with replacing(Path(path), overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


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
