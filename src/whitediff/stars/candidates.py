"""Candidate stars for measuring the matching kernel."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError, TooFewSourcesError
from ..numerics.interpolation import patched
from ..numerics.planes import each_block, empty, filled
from ..numerics.stats import half_sample_mode, middle_values, power_of_two
from ..numerics.threads import in_threads, scipy_part
from .footprints import extracted
from .locus import SEARCHED, Locus, Shapes, find_locus, windowed_shapes
from .stamps import Stamps

__all__ = [
    "CandidateOptions",
    "Candidates",
    "Sources",
    "StarImage",
    "changed_pixels",
    "choose_candidates",
    "cut_stamps",
    "find_sources",
    "static_sources",
]

type Array = npt.NDArray[Any]

HALF_LIGHT_TO_SIGMA = 1 / math.sqrt(2 * math.log(2))
"""Standard deviation of a Gaussian over its half-light radius."""

_DETECTION_THRESHOLD = 5.0
_LARGEST_CHANGE = 1.5
_COMMON = 5.0
"""Signal-to-noise ratio on the template above which a source is in both images."""
_RATIO_WIDTH = 0.03
"""Scatter of ln(flux ratio) of stars in one field beyond their noise."""
_MOST_RATIOS = 1000
_MOST_COMPARED = 300
_ISOLATION, _ALIKE = 7.0, 0.15
"""Limits for comparing fluxes in wide apertures: distance to a neighbour, in PSF widths, and
relative difference from the stars' half-light radius."""
_LEAST_CORE, _LEAST_SQUARE = 0.7, 0.7
"""Smallest shares of a star's information, and of the pixels around it, that bad ones may leave."""
_ENOUGH = 10
_NO_MEASUREMENT = 1e30
_MOST_RADII = 1500
_INTERPOLATION_FLOOR = 0.01
"""Smallest relative error assumed for an interpolated pixel of a star."""
_SHARPEST = 0.7
"""Smallest width of a star, pixels."""
_SUBPIXELS = 2
"""Subpixels of SEP: half-light radii are within 0.3 % of those with 5, in half the time."""
_FEWEST_LIKELY, _FEWEST_SEEN = 1.5, 3.5
"""Number of stars for them to be likely, and for them to guide the search for more."""
_FEWEST_CERTAIN, _MOST_OF_FEW, _CERTAIN, _CERTAIN_ALIKE = 5.0, 0.3, 3.0, 10.5
"""Number of stars to rely on, or share of the sources that a smaller number needs; logarithm of the
likelihood ratio, and its sum with the logarithm for sizes alike.  In 178 simulated fields of 60 to
400 galaxies, 110 of them with at most four stars, galaxies pass for stars in three."""
_MAY_BE_STAR = 0.2
"""Smallest probability of a star, if stars are likely but not certain."""
_WIDEST_SHARE = 0.9
"""Largest size through a window from which a width is computed: 1 fills the window."""
_STAR_RATIO = 20.0
"""Signal-to-noise ratio above which a source shows the shape of stars."""
_MOST_CENTRED, _LARGE_OFFSET = 50, 1.0
"""Number of brightest sources whose offset between the images is measured, and smallest offset,
pixels, that is used."""
_SMALLEST_WINDOW, _WINDOW_GROWTH, _WINDOW_ERROR = 1.2, 1.5, 0.05
_MOST_WINDOWS = 8
_NEIGHBOUR_SIGMAS, _NEIGHBOUR_PIXELS = 4, 3
"""Distance beyond which a neighbour does not change a source's shape: window widths plus pixels."""
_SAME_SOURCE = 3.0
"""Largest distance, pixels, of centroids that two programs find for one star: far less than the
distance between stars."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CandidateOptions:
    """Options for choosing the stars that determine a kernel.

    Attributes
    ----------
    signal_to_noise
        Smallest and largest signal-to-noise ratio, on the science image.
    cell, per_cell
        Side of a square cell, pixels, and largest number of stars in it.
    most
        Largest number of stars; the brightest are taken.  Of 3000, the next 500 add a quarter to
        the information on the kernel's sum, and take as long.
    width_tolerance
        Largest relative difference of a half-light radius from the stars'.
    fewest
        Smallest number of stars; fewer are an error.
    stars_only
        Take only sources that are distinguished from galaxies, if any are, and never extended
        ones.  Otherwise extended sources are taken last, if there are fewer than 10 others, after
        brighter and not isolated ones.
    """

    signal_to_noise: tuple[float, float] = (10.0, 500.0)
    cell: int = 128
    per_cell: int = 5
    most: int = 500
    width_tolerance: float = 0.15
    fewest: int = 3
    stars_only: bool = False

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
        ``(n,)`` signal-to-noise ratio on the science image.
    science_sigma, template_sigma
        Widths of the two PSFs, pixels: medians of the stars' half-light radii over 1.1774, or of
        the chosen sources' if no star is distinguished from galaxies.
    detected
        Number of sources found, from which these were chosen.
    relaxed
        Requirements that were given up to have enough stars; empty for none.
    flux_ratio
        Usual ratio of a flux on the template to the flux on the science image, in one aperture.
    chosen
        ``(n,)`` indices of the candidates among the sources.
    passed_over
        ``(detected,)`` text: why a source was not chosen; empty for chosen ones.
    """

    x: Array
    y: Array
    signal_to_noise: Array
    science_sigma: float
    template_sigma: float
    detected: int
    relaxed: str
    flux_ratio: float
    chosen: Array
    passed_over: Array

    def __len__(self) -> int:
        return len(self.x)

    def first(self, count: int, why: str) -> Candidates:
        """The first candidates, which are the most significant ones.

        Parameters
        ----------
        count
            Largest number of candidates.
        why
            Reason for the others, in ``passed_over``.

        Returns
        -------
        candidates
            Candidates, at most ``count``.
        """
        passed_over = self.passed_over.astype(object)
        passed_over[self.chosen[count:]] = why
        return dataclasses.replace(
            self,
            x=self.x[:count],
            y=self.y[:count],
            signal_to_noise=self.signal_to_noise[:count],
            chosen=self.chosen[:count],
            passed_over=passed_over.astype(str),
        )


@dataclasses.dataclass(frozen=True)
class Stars:
    """Stars among the sources, as far as they can be distinguished from galaxies.

    Attributes
    ----------
    which
        ``(n,)`` boolean: sources that are more likely stars than not; if the stars are likely but
        not certain, those with a probability above 0.2.
    number
        Number of stars among the brightest 100 sources: sum of their probabilities.
    evidence
        Logarithm of the likelihood with these stars over the largest likelihood without any.
    alike
        Logarithm of the likelihood that sizes differ as those of stars do, over the likelihood
        that they differ as those of galaxies.
    science_radius, template_radius
        Medians of the stars' half-light radii, pixels, or radii from the stars' windowed sizes if
        they are not certain; NaN without stars.
    among
        Number of sources that were searched for stars, at most 100.
    """

    which: Array
    number: float
    evidence: float
    alike: float
    science_radius: float
    template_radius: float
    among: int

    @property
    def are_likely(self) -> bool:
        """Whether the sources are likelier with these stars than without any."""
        return self.number >= _FEWEST_LIKELY and self.evidence > 0

    @property
    def are_certain(self) -> bool:
        """Whether they are certainly not galaxies that happen to be alike."""
        enough = min(_FEWEST_CERTAIN, max(_FEWEST_SEEN, _MOST_OF_FEW * self.among))
        evident = self.evidence >= _CERTAIN and self.evidence + self.alike >= _CERTAIN_ALIKE
        return self.number >= enough and evident


@dataclasses.dataclass(frozen=True)
class Sources:
    """Sources on the science image, measured on both images.

    Attributes
    ----------
    x, y
        ``(n,)`` 0-based centroids, pixels.
    flux, signal_to_noise
        ``(n,)`` in an aperture on the science image.
    template_flux, template_signal_to_noise
        ``(n,)`` in the same aperture on the template.
    science_radius, template_radius
        ``(n,)`` half-light radii, pixels; 0 for blended sources, and for the faintest if there are
        more than 1500.
    clean
        ``(n,)`` boolean: not blended, saturated or cut off.
    science_bad, template_bad
        ``(ny, nx)`` boolean: pixels that hold no measurement.
    stars
        Stars among the sources.
    offered
        ``(n,)`` boolean: sources that may be chosen; None for all.
    """

    x: Array
    y: Array
    flux: Array
    signal_to_noise: Array
    template_flux: Array
    template_signal_to_noise: Array
    science_radius: Array
    template_radius: Array
    clean: Array
    science_bad: Array
    template_bad: Array
    stars: Stars
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
            The same sources; those within 3 pixels of a position are offered.  Others still
            count as neighbours.
        """
        places = np.stack([np.ravel(x), np.ravel(y)], 1).astype(np.float64)
        offered = np.zeros(len(self), dtype=bool)
        if len(places):
            distance, _ = scipy_part("spatial").cKDTree(places).query(np.stack([self.x, self.y], 1))
            offered = distance <= _SAME_SOURCE
        return dataclasses.replace(self, offered=offered)


def find_sources(
    science: Array,
    template: Array,
    *,
    science_variance: Array,
    science_bad: Array,
    template_bad: Array,
    template_variance: Array | None = None,
) -> Sources:
    """Find sources on the science image, and measure them on both images.

    Parameters
    ----------
    science, template
        ``(ny, nx)`` images on the same pixels, without their backgrounds.
    science_variance, template_variance
        ``(ny, nx)``; the science image's is used for the template if the latter is None.
    science_bad, template_bad
        ``(ny, nx)`` boolean: saturated, bad and missing pixels; their values do not count.
        Pixels near good ones are interpolated.

    Returns
    -------
    sources
        `Sources` above 5 sigma.

    Raises
    ------
    TooFewSourcesError
        If there is no source.

    Notes
    -----
    SEP (Barbary 2016; Bertin & Arnouts 1996) finds and measures them.  It computes in single
    precision, so images are scaled to units near the noise.
    """
    import sep

    if template_variance is None:
        template_variance = science_variance
    inputs = (science, science_variance, science_bad), (template, template_variance, template_bad)
    # If both images are the same arrays, one is enough.
    same = all(one is other for one, other in zip(*inputs, strict=True))
    science_plane, *others = in_threads(lambda each: _plane(*each), inputs[: 1 if same else 2])
    template_plane = science_plane if same else others[0]
    image, noise, hole, unit = science_plane
    found = extracted(image, noise, hole, threshold=_DETECTION_THRESHOLD)
    x, y = found["x"], found["y"]
    if len(x) == 0:
        raise TooFewSourcesError(
            "No source stands out of the noise, so no kernel can be measured.", required=1
        )
    sizes = np.sqrt(found["a"] * found["b"])
    seen = np.ones(len(x), dtype=bool)
    # If cosmic rays outnumber the stars, an aperture of their size is too small for stars.
    for _ in range(2):
        aperture = 3 * float(np.median(sizes[seen])) + 2
        flux, ratio = _in_circles(science_plane, x, y, aperture)
        template_flux, template_ratio = _in_circles(template_plane, x, y, aperture)
        common = template_ratio > _COMMON
        if not common.any() or common.all():
            break
        seen = common
    # Radii take longest, so they are measured only for sources that may be chosen.
    alone = (found["flag"] == 0) & (flux > 0)
    rank = np.where(alone, np.where(common, ratio, 0.0), -1.0)
    chosen = np.argsort(-rank)[: min(_MOST_RADII, int(alone.sum()))]
    radii = [np.zeros(len(x)), np.zeros(len(x))]
    off = _usual_offset(template_plane, x[chosen], y[chosen], aperture)
    middles = (0.0, 0.0), off
    for plane, (dx, dy), radius in zip(
        (science_plane, template_plane), middles, radii, strict=True
    ):
        # Wide enough for the wings, narrow enough to leave neighbours outside.
        largest = np.full(len(chosen), 1.5 * aperture)
        radius[chosen], _ = sep.flux_radius(
            plane.image,
            x[chosen] + dx,
            y[chosen] + dy,
            largest,
            0.5,
            mask=plane.hole,
            subpix=_SUBPIXELS,
        )
    measured = (radii[0] > 0.5) & (radii[1] > 0.5)
    # The same image twice would count its shapes twice.
    planes = [(science_plane, science_bad, middles[0]), (template_plane, template_bad, off)]
    planes = planes[: 1 if template is science else 2]
    return _with_stars(
        Sources(
            x=x,
            y=y,
            flux=flux * unit,
            signal_to_noise=ratio,
            template_flux=template_flux * template_plane.unit,
            template_signal_to_noise=template_ratio,
            science_radius=radii[0],
            template_radius=radii[1],
            clean=measured,
            science_bad=science_bad,
            template_bad=template_bad,
            stars=Stars(np.zeros(len(x), dtype=bool), 0.0, 0.0, 0.0, math.nan, math.nan, 0),
        ),
        planes,
    )


def _with_stars(
    sources: Sources, planes: list[tuple[_Plane, Array, tuple[float, float]]]
) -> Sources:
    """Find the stars among sources; each plane comes with its bad pixels and usual offset.

    The windows grow until they are as wide as the stars.  A window that is too narrow still
    distinguishes stars from galaxies, if less well; one as wide as galaxies hardly does.
    """
    ratio = sources.signal_to_noise
    common = sources.clean & (sources.template_signal_to_noise > _COMMON)
    common &= ratio > CandidateOptions.signal_to_noise[0]
    # This leaves out transients and cosmic rays.
    static = _static(sources, _usual_ratio(sources, common))
    common &= static
    ny, nx = sources.science_bad.shape
    x, y = 2 * (sources.x + 0.5) / nx - 1, 2 * (sources.y + 0.5) / ny - 1
    radii = np.stack([sources.science_radius, sources.template_radius])[: len(planes)]
    sigma = np.full(len(planes), _SMALLEST_WINDOW)

    def shapes_of(which: Array) -> tuple[Shapes, ...]:
        return tuple(
            windowed_shapes(
                plane.image,
                plane.noise,
                bad,
                sources.x[which] + dx,
                sources.y[which] + dy,
                sigma=width,
            )
            for (plane, bad, (dx, dy)), width in zip(planes, sigma, strict=True)
        )

    def locus_of(which: Array, *, slopes: bool) -> Locus:
        return find_locus(shapes_of(which), x[which], y[which], ratio[which], slopes=slopes)

    def brightest(offered: Array) -> tuple[Array, Locus]:
        """Stars among the brightest of some sources."""
        which = np.flatnonzero(offered)
        which = which[np.argsort(-ratio[which], kind="stable")[:SEARCHED]]
        locus = locus_of(which, slopes=False)
        return which[locus.probability > 0.5], locus

    for step in range(_MOST_WINDOWS):
        reach = _NEIGHBOUR_SIGMAS * sigma.max() + _NEIGHBOUR_PIXELS
        isolated = _isolated(sources.x, sources.y, sources.flux, reach)
        offered = common & isolated & (ratio > _STAR_RATIO)
        stars, locus = brightest(offered)
        if step == 0 and locus.number < _FEWEST_SEEN:
            # Apertures of the size of galaxies are too wide for stars, which look faint in them.
            seen = np.flatnonzero(sources.clean & static & isolated)
            in_apertures, ratio = ratio, np.zeros(len(sources))
            ratio[seen] = np.minimum.reduce([each.signal_to_noise for each in shapes_of(seen)])
            sharp = ratio > CandidateOptions.signal_to_noise[0]
            others, other = brightest(sharp)
            if other.number >= _FEWEST_LIKELY and other.evidence > locus.evidence:
                common, stars, locus = sharp, others, other
            else:
                ratio = in_apertures
        if not offered.any() and not len(stars):
            break
        # Without any star, the window grows towards the width of all sources.
        if len(stars) and locus.number < _FEWEST_SEEN:
            width = _width_of(locus, sigma)
        else:
            seen = stars if len(stars) else np.flatnonzero(offered)
            width = np.median(radii[:, seen], axis=1) * HALF_LIGHT_TO_SIGMA
        grown = np.clip(width, sigma, _WINDOW_GROWTH * sigma)
        if (grown < (1 + _WINDOW_ERROR) * sigma).all():
            break
        sigma = grown
    which = np.flatnonzero(common & isolated)
    which = which[np.argsort(-ratio[which], kind="stable")]
    locus = locus_of(which, slopes=True)
    are_stars = np.zeros(len(sources), dtype=bool)
    are_stars[which] = locus.probability > 0.5
    radius = np.full(2, math.nan)
    if are_stars.any():
        # Bright stars have the most precise radii.
        known = are_stars & (ratio > _STAR_RATIO)
        radius[:] = np.median(radii[:, known if known.any() else are_stars], axis=1)
    found = Stars(
        are_stars,
        locus.number,
        locus.evidence,
        locus.alike,
        float(radius[0]),
        float(radius[-1]),
        min(len(which), SEARCHED),
    )
    if found.are_likely and not found.are_certain:
        # Some of them may be stars, so more are kept.
        are_stars[which] = locus.probability > _MAY_BE_STAR
        radius[:] = _width_of(locus, sigma) / HALF_LIGHT_TO_SIGMA
        found = dataclasses.replace(
            found, science_radius=float(radius[0]), template_radius=float(radius[-1])
        )
    return dataclasses.replace(sources, stars=found)


def _width_of(locus: Locus, window: Array) -> Array:
    """Widths of stars in each image, pixels, from their sizes through windows.

    Half-light radii of a few stars would depend too much on their surroundings.
    """
    share = np.exp(np.minimum(locus.size, math.log(_WIDEST_SHARE)))
    width: Array = window * np.sqrt(share / (1 - share))
    return width


class _Plane(NamedTuple):
    """Image and noise in a unit near the noise, pixels without any value, and the unit."""

    image: Array
    noise: Array
    hole: Array
    unit: float


def _plane(image: Array, variance: Array, bad: Array) -> _Plane:
    """Image with bad pixels interpolated, in the form that SEP needs."""
    whole, hole = patched(image, bad)

    def is_known(rows: slice) -> Array:
        return ~bad[rows] & (variance[rows] > 0) & (variance[rows] < np.inf)

    known = filled(variance.shape, bool, is_known)
    typical = 1.0
    if known.any():
        typical = float(np.mean(np.sqrt(middle_values(variance, known))))
    unit = power_of_two(typical)

    def noise_in_unit(rows: slice) -> Array:
        with np.errstate(invalid="ignore"):
            part = np.sqrt(variance[rows])
        part /= part.dtype.type(unit)
        np.copyto(part, typical / unit, where=~known[rows])
        np.copyto(part, _NO_MEASUREMENT, where=hole[rows])
        return part

    noise = filled(variance.shape, np.float32, noise_in_unit)
    # A patched image is a copy already, so it may be overwritten to save memory.
    result = whole if whole is not image and whole.dtype == np.float32 else None
    if result is None:
        result = empty(whole.shape, np.float32)

    def divide(rows: slice) -> None:
        result[rows] = whole[rows] / whole.dtype.type(unit)

    each_block(divide, whole.shape)
    return _Plane(result, noise, hole, unit)


def _in_circles(plane: _Plane, x: Array, y: Array, radius: float) -> tuple[Array, Array]:
    """Fluxes in apertures, and their signal-to-noise ratios."""
    import sep

    flux, error, _ = sep.sum_circle(plane.image, x, y, radius, err=plane.noise, mask=plane.hole)
    return flux, np.where(error > 0, flux / np.where(error > 0, error, 1), 0.0)


def _usual_offset(plane: _Plane, x: Array, y: Array, radius: float) -> tuple[float, float]:
    """Median offset (x, y) of the middle of sources' light from some positions; 0 below a pixel.

    Positions from the other image are off if a PSF is lopsided.
    """
    half = math.ceil(radius)
    ny, nx = plane.image.shape
    offset = np.arange(-half, half + 1)
    circle = np.hypot(offset[:, None], offset) <= radius
    found = []
    for column, row in zip(x[:_MOST_CENTRED], y[:_MOST_CENTRED], strict=True):
        i, j = round(float(column)), round(float(row))
        if not (half <= i < nx - half and half <= j < ny - half):
            continue
        light = circle * plane.image[j - half : j + half + 1, i - half : i + half + 1]
        total = float(light.sum())
        if total > 0:
            dx, dy = light.sum(axis=0) @ offset / total, light.sum(axis=1) @ offset / total
            found.append((i + dx - column, j + dy - row))
    if not found:
        return 0.0, 0.0
    dx, dy = np.median(found, axis=0).tolist()
    return (dx, dy) if math.hypot(dx, dy) > _LARGE_OFFSET else (0.0, 0.0)


def choose_candidates(
    sources: Sources, *, clear: int, isolation: float, options: CandidateOptions | None = None
) -> Candidates:
    """Choose isolated, unresolved, clean stars, spread over the frame.

    Parameters
    ----------
    sources
        `Sources`.
    clear
        Pixels around a star's centre, in x and y, that must be inside the frame, at most 30 % of
        them bad.
    isolation
        Distance without another source of more than a tenth of its flux, pixels.
    options
        `CandidateOptions`.

    Returns
    -------
    candidates
        `Candidates` of moderate brightness, isolated, with a half-light radius within 15 % of the
        stars', and with the usual flux ratio to a factor of 1.5.  The usual ratio is where those
        of sources in both images lie densest.  Bad pixels may cost up to 30 % of a star's
        information in either image.  If there are fewer than 10, brighter sources are added; then
        not isolated ones; then extended ones: any constant source determines a kernel, if less
        cleanly.

    Raises
    ------
    TooFewSourcesError
        If fewer than ``options.fewest`` are left.
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
    free = _clear_of(sources, clear)
    usable &= free
    n_usable = int(usable.sum())
    isolated = _isolated(sources.x, sources.y, sources.flux, isolation)
    common = usable & (sources.template_signal_to_noise > _COMMON)
    flux_ratio = _usual_ratio(sources, common)
    static = _static(sources, flux_ratio)
    usable &= static
    unresolved = np.ones(len(ratio), dtype=bool)
    if (usable & isolated).any():
        # Bright stars have the most precise radii.
        bright = usable & isolated & (ratio >= np.median(ratio[usable & isolated]))
        locus = sources.stars.science_radius
        if not sources.stars.are_likely:
            locus = half_sample_mode(sources.science_radius[bright])
        unresolved = np.abs(sources.science_radius / locus - 1) <= options.width_tolerance
    if options.stars_only and sources.stars.are_likely:
        unresolved = sources.stars.which
    moderate = ratio <= brightest
    chosen, relaxed = np.array([], dtype=int), ""
    levels = [
        ("", usable & isolated & unresolved & moderate),
        ("brightness", usable & isolated & unresolved),
        ("brightness, isolation", usable & unresolved),
        ("brightness, isolation, size", usable),
    ]
    for name, good in levels[:-1] if options.stars_only else levels:
        more = _spread(sources.x, sources.y, np.where(good, ratio, 0.0), options)
        if len(more) > len(chosen):
            chosen, relaxed = more, name
        if len(chosen) >= _ENOUGH:
            break
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
    if len(chosen) < options.fewest:
        n_common = int(common.sum())
        likeness = ""
        if n_common < _ENOUGH and 2 * n_common < n_usable:
            likeness = (
                f" Only {n_common} stand out in both images, of {n_usable} that could be used: if"
                " the stars of one image are not in the other, these are not of the same field, or"
                " not aligned."
            )
        elif offered < _ENOUGH:
            likeness = " The images have too few stars in common; larger parts of them have more."
        reasons, counts = np.unique(passed_over[passed_over != ""], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        why = ", ".join(f"{counts[k]} {reasons[k]}" for k in order)
        raise TooFewSourcesError(
            f"{len(chosen)} of {offered} sources can be used for a kernel, which needs"
            f" {options.fewest}{': ' if why else ''}{why}; a star has to lie"
            f" {clear} pixels from the edges.{likeness}",
            found=len(chosen),
            required=options.fewest,
        )
    stars, radii = sources.stars, (sources.science_radius, sources.template_radius)
    widths = [stars.science_radius, stars.template_radius]
    if not stars.are_likely:
        widths = [float(np.median(radius[chosen])) for radius in radii]
    science_sigma, template_sigma = (HALF_LIGHT_TO_SIGMA * width for width in widths)
    return Candidates(
        sources.x[chosen],
        sources.y[chosen],
        ratio[chosen],
        science_sigma,
        template_sigma,
        len(ratio),
        relaxed,
        flux_ratio,
        chosen,
        passed_over,
    )


def _clear_of(sources: Sources, reach: int) -> Array:
    """Sources whose square is inside the frame and that lose little to bad pixels."""
    ny, nx = sources.science_bad.shape
    column, row = np.round(sources.x).astype(int), np.round(sources.y).astype(int)
    clear = (column >= reach) & (column < nx - reach) & (row >= reach) & (row < ny - reach)
    offset = np.arange(-reach, reach + 1)
    planes = (
        (sources.science_bad, sources.science_radius),
        (sources.template_bad, sources.template_radius),
    )
    for i in np.flatnonzero(clear):
        square = np.s_[
            row[i] - reach : row[i] + reach + 1, column[i] - reach : column[i] + reach + 1
        ]
        if not any(bad[square].any() for bad, _ in planes):
            continue
        if (sources.science_bad[square] | sources.template_bad[square]).mean() > 1 - _LEAST_SQUARE:
            clear[i] = False
            continue
        dx, dy = offset - (sources.x[i] - column[i]), offset - (sources.y[i] - row[i])
        for bad, radius in planes:
            # The squared profile is each pixel's share of the information on the flux.
            sigma = max(HALF_LIGHT_TO_SIGMA * radius[i], _SHARPEST)
            share = np.outer(np.exp(-((dy / sigma) ** 2)), np.exp(-((dx / sigma) ** 2)))
            clear[i] &= share[bad[square]].sum() <= (1 - _LEAST_CORE) * share.sum()
    return clear


def _usual_ratio(sources: Sources, common: Array) -> float:
    """Flux ratio at which sources of both images lie densest; NaN without any."""
    seen = np.flatnonzero(common & (sources.flux > 0) & (sources.template_flux > 0))
    if not len(seen):
        return math.nan
    seen = seen[np.argsort(-sources.signal_to_noise[seen], kind="stable")[:_MOST_RATIOS]]
    logarithm = np.log(sources.template_flux[seen]) - np.log(sources.flux[seen])
    error = np.hypot(1 / sources.signal_to_noise[seen], 1 / sources.template_signal_to_noise[seen])
    square = error**2 + _RATIO_WIDTH**2
    deviation = (logarithm[:, None] - logarithm) ** 2 / (square[:, None] + square)
    densest = int(np.argmax(np.exp(-deviation / 2).sum(axis=1)))
    near = np.abs(logarithm - logarithm[densest]) < 2 * np.sqrt(square)
    return math.exp(float(np.average(logarithm[near], weights=1 / square[near])))


def static_sources(sources: Sources, stars: Candidates) -> Array:
    """Sources whose fluxes can be compared: they are in both images and do not vary.

    Parameters
    ----------
    sources
        `Sources`.
    stars
        Stars among them, for their usual flux ratio and width.

    Returns
    -------
    indices
        Indices of at most 300 sources, the most significant first.  Only sources without a
        neighbour of a tenth of their flux are taken if there are 10 of them, and of these only
        sources as wide as the stars if there are 10.
    """
    static = _static(sources, stars.flux_ratio) & sources.clean
    static &= sources.template_signal_to_noise > _COMMON
    width = sources.science_radius * (HALF_LIGHT_TO_SIGMA / stars.science_sigma)
    alone = _isolated(sources.x, sources.y, sources.flux, _ISOLATION * stars.science_sigma)
    for better in (alone, np.abs(width - 1) <= _ALIKE):
        if (static & better).sum() >= _ENOUGH:
            static &= better
    which = np.flatnonzero(static)
    return which[np.argsort(-sources.signal_to_noise[which], kind="stable")[:_MOST_COMPARED]]


def changed_pixels(sources: Sources, stars: Candidates, *, reach: float) -> Array:
    """Pixels around sources that are not in both images: cosmic rays, transients, asteroids.

    Parameters
    ----------
    sources
        `Sources`.
    stars
        Stars among them, for their usual flux ratio.
    reach
        Radius around such a source, pixels.

    Returns
    -------
    changed
        ``(ny, nx)`` boolean: pixels around sources whose flux differs from the expected one by a
        factor of 1.5 and by 5 standard deviations.
    """
    changed = np.zeros(sources.science_bad.shape, dtype=bool)
    expected = stars.flux_ratio * sources.flux
    noise = np.hypot(
        _error(sources.template_flux, sources.template_signal_to_noise),
        stars.flux_ratio * _error(sources.flux, sources.signal_to_noise),
    )
    off = np.abs(sources.template_flux - expected) > _COMMON * noise
    half = math.ceil(reach)
    ny, nx = changed.shape
    for i in np.flatnonzero(off & ~_static(sources, stars.flux_ratio)):
        column, row = round(float(sources.x[i])), round(float(sources.y[i]))
        rows = np.arange(max(0, row - half), min(ny, row + half + 1))
        columns = np.arange(max(0, column - half), min(nx, column + half + 1))
        near = np.hypot(rows[:, None] - sources.y[i], columns - sources.x[i]) <= reach
        changed[np.ix_(rows, columns)] |= near
    return changed


def _error(flux: Array, signal_to_noise: Array) -> Array:
    return np.where(
        signal_to_noise != 0, flux / np.where(signal_to_noise != 0, signal_to_noise, 1), 0
    )


def _static(sources: Sources, flux_ratio: float) -> Array:
    """Sources that are in both images with about the usual flux ratio."""
    if math.isnan(flux_ratio):
        return np.zeros(len(sources), dtype=bool)
    # Relative to the usual ratio, since images may have very different units of flux.
    change = sources.template_flux / flux_ratio / np.where(sources.flux > 0, sources.flux, np.inf)
    return (change > 1 / _LARGEST_CHANGE) & (change < _LARGEST_CHANGE)


def _isolated(x: Array, y: Array, flux: Array, reach: float) -> Array:
    """Sources without a neighbour of more than a tenth of their flux."""
    tree = scipy_part("spatial").cKDTree(np.stack([x, y], 1))
    alone = np.ones(len(x), dtype=bool)
    first, second = tree.query_pairs(reach, output_type="ndarray").T
    for one, other in ((first, second), (second, first)):
        alone[one[~(flux[other] < 0.1 * flux[one])]] = False
    return alone


def _spread(x: Array, y: Array, rank: Array, options: CandidateOptions) -> Array:
    """Indices of the sources of highest rank, with a limit for each cell and in total."""
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


@dataclasses.dataclass(frozen=True)
class StarImage:
    """An image from which stamps of stars are cut.

    Attributes
    ----------
    pixels, variance
        ``(ny, nx)``.
    bad
        ``(ny, nx)`` boolean: pixels without a measurement; their values do not count.
    sigma
        Width of its PSF, pixels.
    lost
        ``(ny, nx)`` boolean: bad pixels that neighbours do not determine, such as saturated ones;
        None for none.
    """

    pixels: Array
    variance: Array
    bad: Array
    sigma: float
    lost: Array | None = None


def cut_stamps(
    source: StarImage,
    target: StarImage,
    x: Array,
    y: Array,
    *,
    norm: float,
    size: int,
    kernel_size: int,
) -> Stamps:
    """Cut stamps around stars.

    Parameters
    ----------
    source, target
        Image to be convolved, and image that it is matched to.
    x, y
        ``(n,)`` 0-based positions, far enough from the edges for whole stamps.
    norm
        Sum of the squared kernel: share of the source's variance after convolution.
    size, kernel_size
        Odd sides of the target's stamps and of the kernel.

    Returns
    -------
    stamps
        `whitediff.stars.stamps.Stamps`, weighted by the inverse variance.  Bad pixels of the
        target have no weight.  Bad pixels of the source are interpolated, and the possible error
        of that on a star counts as noise.  Inside holes they cannot be interpolated; target pixels
        that a kernel would carry them to have no weight.  A star that keeps less than 70 % of its
        information has no weight at all.

    Raises
    ------
    ArgumentError
        If a stamp reaches beyond the frame.
    """
    ny, nx = source.pixels.shape
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

    inner = slice(edge - half, edge - half + size)
    sources = cut(source.pixels, edge).astype(np.float64)
    targets = cut(target.pixels, half).astype(np.float64)
    noise = cut(source.variance, edge).astype(np.float64)
    wrong = cut(source.bad, edge) | ~np.isfinite(sources) | ~np.isfinite(noise) | (noise < 0)
    variance = cut(target.variance, half).astype(np.float64)
    usable = ~cut(target.bad, half) & np.isfinite(targets) & np.isfinite(variance)
    errors = np.zeros((len(sources), size, size))
    touched = np.flatnonzero(wrong.any(axis=(1, 2)))
    for i in touched:
        whole, hole = patched(sources[i], wrong[i])
        if source.lost is not None:
            hole |= cut(source.lost, edge)[i]
        known = ~wrong[i]
        if not known.any():
            usable[i] = False
            sources[i], noise[i] = 0, 0
            continue
        signal = np.abs(whole - np.median(whole[known]))
        wrong_by = np.where(wrong[i] & ~hole, _interpolation_error(source.sigma) * signal, 0) ** 2
        width = math.sqrt(max(target.sigma**2 - source.sigma**2, 0) / 2)
        errors[i] = scipy.ndimage.gaussian_filter(wrong_by, width)[inner, inner]
        if hole.any():
            reached = scipy.ndimage.maximum_filter(hole.view(np.uint8), kernel_size)
            usable[i] &= ~reached.astype(bool)[inner, inner]
        sources[i] = whole
        noise[i] = np.where(wrong[i], np.median(noise[i][known]), noise[i])
    variance += norm * noise[:, inner, inner]
    usable &= variance > 0
    variance = np.where(usable, variance, 1)
    weight = np.where(usable, 1 / (variance + norm * errors), 0.0)
    offset = np.arange(size) - half
    across, along = (
        np.exp(-(((offset - (position - middle)[:, None]) / target.sigma) ** 2))
        for position, middle in ((x, columns), (y, rows))
    )
    # Weight times variance is 1 without interpolation errors, whatever the photons of the star.
    share = np.einsum("nij,ni,nj->n", weight * variance, along, across)
    share /= along.sum(axis=1) * across.sum(axis=1)
    weight[share < _LEAST_CORE] = 0
    return Stamps(
        source=sources,
        target=np.where(usable, targets, 0),
        weight=weight,
        x=2 * (columns + 0.5) / nx - 1,
        y=2 * (rows + 0.5) / ny - 1,
        source_variance=noise,
    )


@functools.lru_cache(maxsize=256)
def _interpolation_error(sigma: float) -> float:
    """Largest error of an interpolated pixel of a star over the star's peak.

    It is the error of a missing column through a Gaussian star, doubled since real stars are less
    smooth.
    """
    half = 9 + math.ceil(4 * sigma)
    offset = np.arange(-half, half + 1)
    star = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * sigma**2))
    largest = _INTERPOLATION_FLOOR
    for column in range(half, half + math.ceil(2 * sigma) + 1):
        missing = np.zeros(star.shape, dtype=bool)
        missing[:, column] = True
        found, _ = patched(star, missing)
        largest = max(largest, 2 * float(np.abs(found - star)[half, column]) / star[half, half])
    return largest
