"""Stars to measure the matching kernel on."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.spatial

from ..errors import ArgumentError, TooFewSourcesError
from ..stats import half_sample_mode
from .normals import Stamps

__all__ = [
    "CandidateOptions",
    "Candidates",
    "Sources",
    "choose_candidates",
    "cut_stamps",
    "find_sources",
]

type Array = npt.NDArray[Any]

HALF_LIGHT_TO_SIGMA = 1 / math.sqrt(2 * math.log(2))
"""Width of a Gaussian over its half-light radius."""

_DETECTION_THRESHOLD = 5.0
_LARGEST_CHANGE = 1.5
_ENOUGH = 10
_NO_MEASUREMENT = 1e30
_MOST_RADII = 1500
_SUBPIXELS = 2
"""Half-light radii come out within 0.3 % of those with 5, in half the time."""
_SAME_SOURCE = 3.0
"""Pixels between the centroids that two programs find for one star: far less than between stars."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CandidateOptions:
    """Which stars may determine a kernel.

    Attributes
    ----------
    signal_to_noise
        Smallest and largest, on the science image.
    cell, per_cell
        At most so many in a square of so many pixels.
    most
        Number of stars at most, the brightest: of 3000, the next 500 know a quarter more of the
        kernel's sum, and take as long.
    width_tolerance
        Relative difference of half-light radii from that of the stars.
    fewest
        Less is an error.
    relax
        Where there are fewer than 10, take brighter ones, then not isolated ones, then
        extended ones.
    """

    signal_to_noise: tuple[float, float] = (10.0, 500.0)
    cell: int = 128
    per_cell: int = 5
    most: int = 500
    width_tolerance: float = 0.15
    fewest: int = 3
    relax: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.signal_to_noise[0] < self.signal_to_noise[1]:
            raise ArgumentError(
                f"signal_to_noise must be a smallest and a largest; got {self.signal_to_noise}."
            )
        for name in ("cell", "per_cell", "most", "fewest", "width_tolerance"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{name} must be positive; got {getattr(self, name)}.")


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Stars that may determine a kernel.

    Attributes
    ----------
    x, y
        ``(n,)`` 0-based centroids, pixels.
    signal_to_noise
        ``(n,)`` on the science image.
    science_sigma, template_sigma
        Widths of the two PSFs: medians of the stars' half-light radii over 1.1774, pixels.
    detected
        Number of sources found, of which these were chosen.
    relaxed
        Which requirements were given up to have enough; empty for none.
    chosen
        ``(n,)`` which of the sources they are.
    passed_over
        ``(detected,)`` text: why a source was not chosen; empty for those that were.
    """

    x: Array
    y: Array
    signal_to_noise: Array
    science_sigma: float
    template_sigma: float
    detected: int
    relaxed: str
    chosen: Array
    passed_over: Array

    def __len__(self) -> int:
        return len(self.x)


@dataclasses.dataclass(frozen=True)
class Sources:
    """Everything that stands out on the science image.

    Attributes
    ----------
    x, y
        ``(n,)`` 0-based centroids, pixels.
    flux, signal_to_noise
        ``(n,)`` in an aperture, of the science image.
    template_flux
        ``(n,)`` in the same aperture of the template.
    science_radius, template_radius
        ``(n,)`` half-light radii, pixels; 0 of what is blended, and of the faint where there are
        more than 1500.
    clean
        ``(n,)`` boolean: not blended, saturated or cut off.
    bad
        ``(ny, nx)`` boolean: pixels of either image that must not be in a stamp.
    offered
        ``(n,)`` boolean: those that may be chosen; None for all.
    """

    x: Array
    y: Array
    flux: Array
    signal_to_noise: Array
    template_flux: Array
    science_radius: Array
    template_radius: Array
    clean: Array
    bad: Array
    offered: Array | None = None

    def __len__(self) -> int:
        return len(self.x)

    def near(self, x: Array, y: Array) -> Sources:
        """Offer only the sources at some positions.

        Parameters
        ----------
        x, y
            ``(k,)`` 0-based positions, pixels.

        Returns
        -------
        sources
            The same sources; those within 3 pixels of a position are offered.  The others
            still count as neighbours.
        """
        places = np.stack([np.ravel(x), np.ravel(y)], 1).astype(np.float64)
        offered = np.zeros(len(self), dtype=bool)
        if len(places):
            distance, _ = scipy.spatial.cKDTree(places).query(np.stack([self.x, self.y], 1))
            offered = distance <= _SAME_SOURCE
        return dataclasses.replace(self, offered=offered)


def find_sources(
    science: Array,
    template: Array,
    *,
    science_variance: Array,
    science_bad: Array,
    template_bad: Array,
) -> Sources:
    """Find sources on the science image, and measure them on both.

    Parameters
    ----------
    science, template
        ``(ny, nx)`` float32 images on the same pixels, without their backgrounds; zero where
        there is no measurement.
    science_variance
        ``(ny, nx)`` of the science image.
    science_bad, template_bad
        ``(ny, nx)`` boolean: saturated, bad and missing pixels.

    Returns
    -------
    sources
        `Sources` above 5 sigma.

    Raises
    ------
    TooFewSourcesError
        If there is none.

    Notes
    -----
    By SEP (Barbary 2016; Bertin & Arnouts 1996).
    """
    import sep

    with np.errstate(invalid="ignore"):
        noise = np.sqrt(science_variance, dtype=np.float32)
    noise[science_bad | ~(noise > 0)] = _NO_MEASUREMENT
    # The plain filter: that which weighs every pixel by its noise takes three times as long.
    found = sep.extract(
        science, _DETECTION_THRESHOLD, err=noise, mask=science_bad, filter_type="conv"
    )
    x, y = found["x"], found["y"]
    if len(x) == 0:
        raise TooFewSourcesError(
            "No source stands out of the noise, so no kernel can be measured.", required=1
        )
    aperture = 3 * float(np.median(np.sqrt(found["a"] * found["b"]))) + 2
    flux, error, _ = sep.sum_circle(science, x, y, aperture, err=noise, mask=science_bad)
    template_flux, _, _ = sep.sum_circle(template, x, y, aperture)
    ratio = np.where(error > 0, flux / np.where(error > 0, error, 1), 0.0)
    # What takes longest is done for those of which stars may be chosen.
    alone = (found["flag"] == 0) & (flux > 0)
    chosen = np.argsort(np.where(alone, -ratio, np.inf))[: min(_MOST_RADII, int(alone.sum()))]
    radii = [np.zeros(len(x)), np.zeros(len(x))]
    for image, radius in zip((science, template), radii, strict=True):
        # Wide enough for the wings, narrow enough for neighbours to stay outside.
        largest = np.full(len(chosen), 1.5 * aperture)
        radius[chosen], _ = sep.flux_radius(
            image, x[chosen], y[chosen], largest, 0.5, subpix=_SUBPIXELS
        )
    measured = (radii[0] > 0.5) & (radii[1] > 0.5)
    return Sources(
        x=x,
        y=y,
        flux=flux,
        signal_to_noise=ratio,
        template_flux=template_flux,
        science_radius=radii[0],
        template_radius=radii[1],
        clean=measured,
        bad=science_bad | template_bad,
    )


def choose_candidates(
    sources: Sources, *, clear: int, isolation: float, options: CandidateOptions | None = None
) -> Candidates:
    """Choose isolated, unresolved, clean stars, spread over the frame.

    Parameters
    ----------
    sources
        `Sources`.
    clear
        Pixels around a star's centre, in x and y, without a bad pixel or an edge.
    isolation
        Distance without another source of more than a tenth of its flux, pixels.
    options
        `CandidateOptions`.

    Returns
    -------
    candidates
        `Candidates`: of moderate brightness, half-light radius within 15 % of the stars',
        isolated, of similar flux in both images.  Where there are fewer than 10, brighter
        ones too; then not isolated ones; then extended ones: what does not vary determines
        a kernel whatever it is, if less cleanly.

    Raises
    ------
    TooFewSourcesError
        If too few are left.
    """
    options = options or CandidateOptions()
    ratio = sources.signal_to_noise
    faintest, brightest = options.signal_to_noise
    bright_enough = ratio >= faintest
    usable = sources.clean & bright_enough
    offered = len(ratio)
    if sources.offered is not None:
        usable &= sources.offered
        offered = int(sources.offered.sum())
    free = _clear_of(sources.bad, sources.x, sources.y, clear)
    usable &= free
    isolated = _isolated(sources.x, sources.y, sources.flux, isolation)
    static = _static(sources, usable)
    usable &= static
    unresolved = np.ones(len(ratio), dtype=bool)
    if (usable & isolated).any():
        # Stars' radii are best known where they are bright.
        bright = usable & isolated & (ratio >= np.median(ratio[usable & isolated]))
        locus = half_sample_mode(sources.science_radius[bright])
        unresolved = np.abs(sources.science_radius / locus - 1) <= options.width_tolerance
    moderate = ratio <= brightest
    chosen, relaxed = np.array([], dtype=int), ""
    for name, good in (
        ("", usable & isolated & unresolved & moderate),
        ("brightness", usable & isolated & unresolved),
        ("brightness, isolation", usable & unresolved),
        ("brightness, isolation, size", usable),
    ):
        more = _spread(sources.x, sources.y, np.where(good, ratio, 0.0), options)
        if len(more) > len(chosen):
            chosen, relaxed = more, name
        if len(chosen) >= _ENOUGH or not options.relax:
            break
    if len(chosen) < options.fewest:
        raise TooFewSourcesError(
            f"Only {len(chosen)} of {offered} sources are unsaturated, static and at least"
            f" {clear} pixels from edges and bad pixels; a kernel needs {options.fewest}.",
            found=len(chosen),
            required=options.fewest,
        )
    science_sigma, template_sigma = (
        float(np.median(radius[chosen])) * HALF_LIGHT_TO_SIGMA
        for radius in (sources.science_radius, sources.template_radius)
    )
    flaws = (
        (~bright_enough, "too faint"),
        (~sources.clean, "blended or cut off"),
        (~free, "near an edge or bad pixels"),
        (~static, "flux differs in the images"),
        (~isolated, "has a neighbour"),
        (~unresolved, "not as wide as a star"),
        (~moderate, "too bright"),
    )
    passed_over = np.select(
        [flaw for flaw, _ in flaws], [why for _, why in flaws], default="enough others nearby"
    )
    if sources.offered is not None:
        passed_over[~sources.offered] = "not offered"
    passed_over[chosen] = ""
    return Candidates(
        sources.x[chosen],
        sources.y[chosen],
        ratio[chosen],
        science_sigma,
        template_sigma,
        len(ratio),
        relaxed,
        chosen,
        passed_over,
    )


def _clear_of(bad: Array, x: Array, y: Array, reach: int) -> Array:
    """Positions with no bad pixel and no edge within a square."""
    ny, nx = bad.shape
    column, row = np.round(x).astype(int), np.round(y).astype(int)
    clear = (column >= reach) & (column < nx - reach) & (row >= reach) & (row < ny - reach)
    for i in np.flatnonzero(clear):
        j, k = row[i], column[i]
        clear[i] = not bad[j - reach : j + reach + 1, k - reach : k + reach + 1].any()
    return clear


def _static(sources: Sources, usable: Array) -> Array:
    """Sources that are not much brighter in one image than in the other."""
    fluxes = sources.template_flux / np.where(sources.flux > 0, sources.flux, 1)
    if not usable.any():
        return usable
    bright = usable & (sources.signal_to_noise >= np.median(sources.signal_to_noise[usable]))
    typical = float(np.median(fluxes[bright]))
    if not typical > 0:
        return np.ones(len(fluxes), dtype=bool)
    return (fluxes > typical / _LARGEST_CHANGE) & (fluxes < typical * _LARGEST_CHANGE)


def _isolated(x: Array, y: Array, flux: Array, reach: float) -> Array:
    """Sources without a neighbour of more than a tenth of their flux."""
    tree = scipy.spatial.cKDTree(np.stack([x, y], 1))
    alone = np.ones(len(x), dtype=bool)
    for i, j in tree.query_pairs(reach, output_type="ndarray"):
        alone[i] &= flux[j] < 0.1 * flux[i]
        alone[j] &= flux[i] < 0.1 * flux[j]
    return alone


def _spread(x: Array, y: Array, rank: Array, options: CandidateOptions) -> Array:
    """Indices of the best, at most so many in a cell."""
    cells: dict[tuple[int, int], int] = {}
    chosen: list[int] = []
    for i in np.argsort(rank)[::-1]:
        if rank[i] <= 0 or len(chosen) == options.most:
            break
        cell = (int(x[i]) // options.cell, int(y[i]) // options.cell)
        if cells.get(cell, 0) < options.per_cell:
            cells[cell] = cells.get(cell, 0) + 1
            chosen.append(int(i))
    return np.array(chosen, dtype=int)


def cut_stamps(
    source: Array,
    target: Array,
    source_variance: Array,
    target_variance: Array,
    bad: Array,
    *,
    norm: float,
    x: Array,
    y: Array,
    size: int,
    kernel_size: int,
) -> Stamps:
    """Cut stamps around stars.

    Parameters
    ----------
    source, target
        ``(ny, nx)`` images to be convolved, and to be matched.
    source_variance, target_variance
        ``(ny, nx)``.
    bad
        ``(ny, nx)`` boolean: pixels not to fit.  Pixels of the source that are wrong must
        not be near a star at all: they would spread (`choose_candidates`).
    norm
        Sum of the squared kernel: what is left of the source's variance.
    x, y
        ``(n,)`` 0-based positions, all the stamp's reach away from the edges.
    size, kernel_size
        Odd sides of the target's stamps and of the kernel.

    Returns
    -------
    stamps
        `whitediff.matching.normals.Stamps`, weighted by the inverse variance; pixels
        that are bad, not finite or of no positive variance have no weight.

    Raises
    ------
    ArgumentError
        If a stamp reaches beyond the frame.
    """
    ny, nx = source.shape
    half, edge = size // 2, size // 2 + kernel_size // 2
    columns, rows = np.round(x).astype(int), np.round(y).astype(int)
    if len(x) and not (
        columns.min() >= edge
        and rows.min() >= edge
        and columns.max() < nx - edge
        and rows.max() < ny - edge
    ):
        raise ArgumentError(f"Stamps of {size + kernel_size - 1} pixels reach beyond the frame.")

    def cut(image: Array, r: int) -> Array:
        windows = np.lib.stride_tricks.sliding_window_view(image, (2 * r + 1, 2 * r + 1))
        return windows[rows - r, columns - r]

    sources, targets = cut(source, edge).astype(np.float64), cut(target, half).astype(np.float64)
    noise = cut(source_variance, edge).astype(np.float64)
    inner = slice(edge - half, edge - half + size)
    variance = cut(target_variance, half) + norm * noise[:, inner, inner]
    usable = ~cut(bad, half) & np.isfinite(targets) & np.isfinite(sources[:, inner, inner])
    usable &= np.isfinite(variance) & (variance > 0)
    return Stamps(
        source=np.where(np.isfinite(sources), sources, 0),
        target=np.where(usable, targets, 0),
        weight=np.where(usable, 1 / np.where(usable, variance, 1), 0.0),
        x=2 * (columns + 0.5) / nx - 1,
        y=2 * (rows + 0.5) / ny - 1,
        # Pixels that were filled have no noise.
        source_variance=np.where(np.isfinite(sources) & np.isfinite(noise), noise, 0.0),
    )
