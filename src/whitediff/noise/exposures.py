"""What is source and what is noise in an exposure."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError, DataError, TooFewSourcesError
from ..exposures import masks
from ..exposures.covariance import Noise, noise_at
from ..exposures.masks import Mask
from ..exposures.missing import pixels_without_measurement
from ..exposures.model import Exposure, fits_single, precise
from ..exposures.psf import fwhm_of_psf
from ..numerics import planes
from ..numerics.covariance import NoiseCovariance, product_covariance, white_covariance
from ..numerics.missing import smallest_sigma, unmeasured_pixels
from ..numerics.profiles import FWHM_TO_SIGMA
from ..numerics.stats import robust_sigma, rounding_step
from ..numerics.threads import in_threads
from ..stars.candidates import choose_candidates, find_sources
from .covariance import UnmeasurableNoiseError, measured_covariance
from .own_counts import without_own_noise
from .photons import Counts, counted_photons, scatter_of
from .sources import (
    SourceLevel,
    broad_parts,
    detect_sources,
    levels_and_background,
    smooth_background,
    source_levels,
    unstepped,
)
from .structure import HighFrequencies, high_frequencies

__all__ = [
    "InputNoise",
    "PairSources",
    "SquareSums",
    "avoided_pixels",
    "few_photons",
    "levels_apart",
    "measurable",
    "measured_noises",
    "measured_variance_factor",
    "noise_and_structure",
    "noises_by_role",
    "pair_sources",
    "regions_of_one_image",
    "rescaled",
    "source_pixels",
    "sources_apart",
    "square_sums",
    "structure_on_larger_scales",
    "uneven_noise",
    "untrusted_pixels",
    "variance_factor",
    "without_sentinels",
]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.decorrelate")

_LARGEST_VARIANCE_FACTOR = 10.0
_FITTING = 2.0
"""Measured noise over a plane, either way, with which the plane is what it is tried as."""
_SURELY = 0.05
"""Share of a scatter, over the noise, that is told of."""
_CROWDED = 0.03
"""The same from which the light between sources spoils the covariance of source-free pixels."""
_CONFIRMED = 4.0
"""χ² by which a correlation fits high frequencies better than none, from which it is of noise."""
_SQUARE, _FEWEST_SQUARES, _MOST_STRUCTURE = 8, 200, 1.5
_REGION_ERRORS, _REGION_SQUARES = 10.0, 12
_PARTS, _ENOUGH_SQUARES, _MOST_VARIANCE = 4, 40, 3.0
_UNEVEN, _SURE_ERRORS = 0.2, 5.0
_SPOILED = (*masks.AVOIDED_MASK_PLANES, "SOURCE", "EDGE")
_ENOUGH_PIXELS = 4_000_000
_ENOUGH_FOR_SCATTER = 2_000_000
_STRIP_ROWS = (64, 256)
_STRIP = 1_100_000
"""Pixels of a strip, at most."""
_GAP = 32
_IGNORED = (*masks.DEFAULT_IGNORE_MASK_PLANES, masks.STREAK)


def untrusted_pixels(exposure: Exposure) -> Array:
    """Pixels of an exposure that hold no measurement.

    Parameters
    ----------
    exposure
        Exposure.

    Returns
    -------
    untrusted
        ``(ny, nx)`` boolean: not finite, of a variance that is not finite or not positive, or
        flagged with one of `whitediff.exposures.masks.UNTRUSTED_MASK_PLANES`.  Where no
        variance is positive, none counts.
    """
    return pixels_without_measurement(exposure, masks.UNTRUSTED_MASK_PLANES)


def avoided_pixels(exposure: Exposure, untrusted: Array | None = None) -> Array:
    """Pixels of an exposure that no source, noise or background is measured on.

    Parameters
    ----------
    exposure
        Exposure.
    untrusted
        `untrusted_pixels`, if they are at hand.

    Returns
    -------
    avoided
        ``(ny, nx)`` boolean: `untrusted_pixels`, and trails.
    """
    if untrusted is None:
        untrusted = untrusted_pixels(exposure)
    avoided: Array = untrusted | masks.flagged(exposure.mask, [masks.STREAK])
    return avoided


def without_sentinels(exposure: Exposure) -> Exposure:
    """Exposure without the absurd numbers that stand for pixels without data in some files.

    Parameters
    ----------
    exposure
        Exposure; not changed.

    Returns
    -------
    exposure
        Finite pixels beyond 1e11 of the smallest sigma are NaN and NO_DATA, with a warning; the
        same one where there are none.
    """
    image = exposure.data
    absurd = unmeasured_pixels(image, smallest_sigma(exposure.variance))
    if absurd is None:
        return exposure
    absurd &= np.isfinite(image)
    if not absurd.any():
        return exposure
    _log.warning(
        "%s: %d pixels beyond 1e11 sigma, such as %g, are taken as missing.",
        exposure.source or "The exposure",
        int(absurd.sum()),
        float(image[absurd][0]),
    )
    return exposure.replaced(
        data=np.where(absurd, image.dtype.type(np.nan), image),
        mask=masks.with_plane(exposure.mask, "NO_DATA", absurd),
    )


def source_pixels(*exposures: Exposure, only_bright: bool = False) -> Array:
    """Pixels of exposures with a source in one of them.

    Parameters
    ----------
    *exposures
        Exposures on the same pixels.
    only_bright
        As for `whitediff.noise.sources.detect_sources`.

    Returns
    -------
    sources
        ``(ny, nx)`` boolean, `whitediff.noise.sources.detect_sources`.
    """

    def detected(exposure: Exposure) -> Array:
        return detect_sources(
            unstepped(exposure.data), avoided_pixels(exposure), only_bright=only_bright
        )

    sources, *others = in_threads(detected, exposures)
    for other in others:
        np.logical_or(sources, other, out=sources)
    return sources


@dataclasses.dataclass(frozen=True)
class PairSources:
    """Which pixels hold sources of the science image and of the template.

    Attributes
    ----------
    science, template
        ``(ny, nx)`` uint8, `whitediff.noise.sources.SourceLevel`.
    """

    science: Array
    template: Array

    @property
    def either(self) -> Array:
        """``(ny, nx)`` boolean: a source of the science image or of the template."""
        return self._pixels(SourceLevel.NONE, SourceLevel.SOURCE)

    def free(self, width: float) -> Array:
        """Pixels whose background is no source's.

        Parameters
        ----------
        width
            Pixels, positive: what is this broad in both directions is no transient.

        Returns
        -------
        free
            ``(ny, nx)`` boolean: those without a source, and those of what one image alone has
            where it is so broad: a ghost, a halo, a cloud.
        """
        sources = self.either
        free: Array = broad_parts(sources, width) & ~self._static
        free |= ~sources
        return free

    @property
    def _static(self) -> Array:
        return self._pixels(SourceLevel.SOURCE, SourceLevel.SOURCE)

    def _pixels(self, both: SourceLevel, one: SourceLevel) -> Array:
        """Pixels of at least these levels on both images and on one of them."""

        def work(rows: slice) -> Array:
            levels = self.science[rows], self.template[rows]
            found: Array = (np.minimum(*levels) >= both) & (np.maximum(*levels) >= one)
            return found

        return planes.filled(self.science.shape, bool, work)

    def marked(self, mask: Mask) -> Mask:
        """Copy a mask and say in it where sources are.

        Parameters
        ----------
        mask
            Mask of the same pixels.

        Returns
        -------
        mask
            A new one, with SOURCE, STATIC and STATIC_BRIGHT.
        """
        return masks.with_planes(
            mask,
            {
                masks.SOURCE: self.either,
                masks.STATIC: self._static,
                # As large as in the worse seeing, whose PSF the difference has.
                masks.STATIC_BRIGHT: self._pixels(SourceLevel.NEAR_BRIGHT, SourceLevel.BRIGHT),
            },
        )


def pair_sources(science: Sequence[Exposure], template: Sequence[Exposure]) -> PairSources:
    """Find the sources of a pair, or of two stacks.

    Parameters
    ----------
    science, template
        Exposures on the same pixels.

    Returns
    -------
    sources
        `PairSources`: a source of one exposure of a stack is one of the stack.
    """

    def detected(exposure: Exposure) -> Array:
        return source_levels(unstepped(exposure.data), avoided_pixels(exposure))

    levels = in_threads(detected, (*science, *template))
    stacks = levels[: len(science)], levels[len(science) :]
    return PairSources(*(functools.reduce(np.maximum, stack) for stack in stacks))


def few_photons(exposure: Exposure) -> Counts | None:
    """Photons between the sources of an exposure that counts few of them.

    Parameters
    ----------
    exposure
        Exposure.

    Returns
    -------
    counts
        `photons.counted_photons`; None where its pixels are no counts of few photons.
    """
    return counted_photons(exposure.data, _measured_pixels(exposure))


def _measured_pixels(exposure: Exposure) -> Array:
    return planes.usable_pixels(exposure.data, masks.flagged(exposure.mask, _IGNORED))


def measurable(science: Exposure, template: Exposure) -> tuple[Exposure, Exposure]:
    """Exposures whose planes can be measured on: the first step of all that is made of a pair.

    Parameters
    ----------
    science, template
        Exposures; not changed.

    Returns
    -------
    science, template
        As by `whitediff.exposures.model.precise`, their variance planes as by
        `whitediff.noise.own_counts.without_own_noise`; else the same ones.
    """
    one, other = in_threads(_without_own_noise, precise(science, template))
    return one, other


def _without_own_noise(exposure: Exposure) -> Exposure:
    image, variance = exposure.data, exposure.variance
    usable = _measured_pixels(exposure) & (variance > 0) & (variance < np.inf)
    cleaned = without_own_noise(image, variance, usable)
    if cleaned is None:
        return exposure
    _log.info(
        "%s: its variance plane is made of the pixels' own counts, which are so few that it follows"
        " their noise; what it has of that is taken out.",
        exposure.source or "The exposure",
    )
    return exposure.replaced(variance=cleaned)


def variance_factor(exposure: Exposure) -> float:
    """Measured noise over the variance plane.

    Parameters
    ----------
    exposure
        Exposure.

    Returns
    -------
    factor
        ``(0.7413 · IQR(image/√variance))²`` over source-free, unmasked pixels, the smooth
        background subtracted.

    Raises
    ------
    DataError
        If it is not between 0.1 and 10, or there is no such pixel.
    """
    return measured_variance_factor(exposure, *sources_apart(exposure))


def sources_apart(exposure: Exposure, untrusted: Array | None = None) -> tuple[Array, Array]:
    """Tell an exposure's sources from its background.

    Parameters
    ----------
    exposure
        Exposure.
    untrusted
        `avoided_pixels`, if they are at hand.

    Returns
    -------
    sources
        ``(ny, nx)`` boolean: pixels with a source, `whitediff.noise.sources.detect_sources`.
    flat
        ``(ny, nx)`` float32: the image without its background, zero where untrusted.
    """
    levels, flat = levels_apart(exposure, untrusted)
    return levels >= SourceLevel.SOURCE, flat


def levels_apart(exposure: Exposure, untrusted: Array | None = None) -> tuple[Array, Array]:
    """Tell an exposure's sources, and how bright they are, from its background.

    Parameters
    ----------
    exposure, untrusted
        As for `sources_apart`.

    Returns
    -------
    levels
        ``(ny, nx)`` uint8, `whitediff.noise.sources.source_levels`.
    flat
        As of `sources_apart`.
    """
    if untrusted is None:
        untrusted = avoided_pixels(exposure)
    image = exposure.data
    levels, background = levels_and_background(unstepped(image), untrusted)

    def subtract(rows: slice) -> None:
        np.subtract(image[rows], background[rows], out=background[rows])
        background[rows][untrusted[rows]] = 0

    planes.each_block(subtract, image.shape)
    return levels, background.astype(np.float32, copy=False)


def measured_variance_factor(exposure: Exposure, sources: Array, flat: Array) -> float:
    """`variance_factor` of an exposure whose sources were told apart.

    Parameters
    ----------
    exposure
        Exposure.
    sources, flat
        As of `sources_apart`.

    Returns
    -------
    factor
        As of `variance_factor`.

    Raises
    ------
    DataError
        As by `variance_factor`.
    """
    return noise_and_structure(exposure, sources, flat)[0]


def noise_and_structure(exposure: Exposure, sources: Array, flat: Array) -> tuple[float, float]:
    """Measured noise over the variance plane, and the scatter of what lies between stars over it.

    Parameters
    ----------
    exposure
        Exposure.
    sources, flat
        As of `sources_apart`.

    Returns
    -------
    factor
        As of `variance_factor`.
    structure
        Variance of source-free pixels over that of the noise; 1 unless emission with structure
        fills the field.

    Raises
    ------
    DataError
        As by `variance_factor`.
    """
    name = exposure.source or "The exposure"
    # Every n-th row suffices for a quantile.
    step = max(1, flat.size // _ENOUGH_FOR_SCATTER)
    bad = masks.flagged(exposure.mask, _IGNORED) | sources
    variance, image = exposure.variance[::step], exposure.data[::step]
    free = ~bad[::step] & np.isfinite(image) & np.isfinite(variance) & (variance > 0)
    if not free.any():
        raise DataError.of(
            name,
            "no source-free pixel has a finite image and a positive variance; is its"
            " variance plane filled, and its mask right?",
        )
    sigma = np.sqrt(variance[free])
    usable = _measured_pixels(exposure)
    counts = counted_photons(exposure.data, usable)
    rounding = rounding_step(image[free])
    scatter = scatter_of(flat[::step][free], counts, step=rounding, errors=sigma)
    factor, structure = scatter, 1.0
    noise = high_frequencies(exposure.data, usable, exposure.variance)
    if noise is None or noise.factor > scatter * (1 + _SURELY + 3 * noise.error):
        # Noise scatters by itself at least: what is more at high frequencies is light, too.
        _log.info(
            "%s: no spatial frequency is known to be free of sources, so its noise is measured by"
            " the scatter of its source-free pixels.",
            name,
        )
    else:
        factor = noise.factor
        if noise.contradicts(scatter):
            structure = scatter / factor
        if scatter > factor * (1 + _SURELY + 3 * noise.error):
            # What scatters besides is on the sky, so that it does not stay in a difference.
            _log.info(
                "%s: sources, emission or fringes make its source-free pixels scatter %.3g times as"
                " much as its variance plane tells; the noise, at frequencies free of them, is %.3g"
                " times that.",
                name,
                scatter,
                factor,
            )
    if not 1 / _LARGEST_VARIANCE_FACTOR < factor < _LARGEST_VARIANCE_FACTOR:
        raise DataError.of(
            name,
            f"the noise of its source-free pixels is {factor:.3g} times its variance"
            f" plane; more than {_LARGEST_VARIANCE_FACTOR:g} either way means that the plane is"
            f" something else: {_what_else(flat[::step][free], variance[free])}.",
        )
    return factor, structure


_MISREAD = (
    (2.0, "its square", "standard deviations ({option} sigma:FILE[EXTENSION])"),
    (
        -1.0,
        "its inverse",
        "weights ({option} weight:FILE[EXTENSION]), or as variance:FILE[EXTENSION] if it was read"
        " as weights",
    ),
    (0.5, "its square root", "variances ({option} variance:FILE[EXTENSION])"),
    (-0.5, "the inverse of its square root", "weights ({option} weight:FILE[EXTENSION])"),
    (-2.0, "the square of its inverse", "standard deviations ({option} sigma:FILE[EXTENSION])"),
)
"""Powers of a variance that fit where the plane was read as something else, and what it is."""


def _what_else(flat: Array, plane: Array) -> str:
    """What a plane may be that is not the variance of source-free pixels, with the remedy."""
    option = "--science-variance or --template-variance"
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        for power, fits, meaning in _MISREAD:
            factor = robust_sigma(flat / plane.astype(np.float64) ** (power / 2)) ** 2
            if 1 / _FITTING < factor < _FITTING:
                return f"{fits} fits, so name it as {meaning.format(option=option)}"
    return (
        f"name the file of another ({option} FILE[EXTENSION]), or this one as"
        " weight:FILE[EXTENSION] if it holds weights, which are scaled to the noise"
    )


def rescaled(exposure: Exposure, factor: float) -> Exposure:
    """Exposure with its variance plane multiplied.

    Parameters
    ----------
    exposure
        Exposure; not changed.
    factor
        Positive.

    Returns
    -------
    rescaled
        Shares everything else.
    """
    variance = exposure.variance
    if variance.dtype == np.float32 and not fits_single(*(factor * _positive_range(variance))):
        variance = variance.astype(np.float64)
    scale = variance.dtype.type(factor)
    return exposure.replaced(
        variance=planes.filled(variance.shape, variance.dtype, lambda rows: variance[rows] * scale)
    )


def _positive_range(variance: Array) -> Array:
    """Smallest and largest of the positive finite values; zeros without any."""

    def of_rows(rows: slice) -> tuple[float, float]:
        part = variance[rows]
        smallest, largest = float(part.min()), float(part.max())
        if smallest > 0 and largest < np.inf:
            return smallest, largest
        positive = (part > 0) & (part < np.inf)
        return (
            float(np.min(part, where=positive, initial=np.inf)),
            float(np.max(part, where=positive, initial=0)),
        )

    smallest, largest = zip(*planes.each_block(of_rows, variance.shape), strict=True)
    return np.array([min(smallest), max(largest)]) if max(largest) > 0 else np.zeros(2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputNoise:
    """What is known of the noise of a pair of exposures before any convolution.

    Attributes
    ----------
    science_variance, template_variance
        Mean variances, image_unit²; None for the clipped means of the variance planes.
    science_covariance, template_covariance
        `NoiseCovariance`, or a function of the pixel coordinates x and y that
        returns one; None for white noise.
    """

    science_variance: float | None = None
    template_variance: float | None = None
    science_covariance: Noise = None
    template_covariance: Noise = None

    @property
    def covariances(self) -> tuple[Noise, Noise]:
        """Those of science exposure and template."""
        return self.science_covariance, self.template_covariance

    def with_measured(
        self,
        science: Exposure,
        template: Exposure,
        sources: Array | None,
        *,
        how: Literal["white", "auto", "measured"],
    ) -> InputNoise:
        """The same with covariances that are measured, where they are to be.

        Parameters
        ----------
        science, template
            Exposures.
        sources
            ``(ny, nx)`` boolean: pixels with a source in either; None where nothing is measured.
        how
            As for `measured_noises`; ``white``: they are not measured.

        Returns
        -------
        noise
            With the covariances that are used.

        Raises
        ------
        ArgumentError
            If covariances are known that would be measured.
        """
        if how == "white":
            return self
        if self.covariances != (None, None):
            raise ArgumentError(
                f"Noise covariances are given, and with noise={how!r} they would be measured; give"
                " them, or have them measured."
            )
        assert sources is not None
        found = measured_noises(science, template, sources, how=how)
        return dataclasses.replace(self, science_covariance=found[0], template_covariance=found[1])


def measured_noises(
    science: Exposure,
    template: Exposure,
    sources: Array,
    *,
    how: Literal["auto", "measured"],
) -> tuple[Noise, Noise]:
    """Noise covariances of two inputs, known or measured between the sources.

    Parameters
    ----------
    science, template
        Exposures.
    sources
        ``(ny, nx)`` boolean: pixels with a source in either.
    how
        ``measured``: as it is measured.  ``auto``: that which the exposure knows; else as
        measured, where that says with significance that the input is not white.

    Returns
    -------
    science_noise, template_noise
        None for an input that is taken as white: it is not significantly correlated, or too
        few pixels are free of sources (then with a warning).
    """
    exposures = {"science image": science, "template": template}
    first, second = noises_by_role(exposures, sources, how=how)
    return first, second


def noises_by_role(
    exposures: Mapping[str, Exposure], sources: Array, *, how: Literal["auto", "measured"]
) -> list[Noise]:
    """Noise covariances of any number of exposures, known or measured between the sources.

    Parameters
    ----------
    exposures
        What messages call each, and the exposure.
    sources, how
        As for `measured_noises`.

    Returns
    -------
    noises
        In their order, as by `measured_noises`.
    """

    def noise_of(exposure: Exposure) -> NoiseCovariance | DataError | None:
        known = how == "auto" and exposure.noise is not None
        return None if known else _measured_noise(exposure, sources)

    found = in_threads(noise_of, exposures.values())
    noises: list[Noise] = []
    for (role, exposure), noise in zip(exposures.items(), found, strict=True):
        name = exposure.source or f"The {role}"
        if noise is None:
            noises.append(_known_noise(name, exposure))
            continue
        if isinstance(noise, DataError):
            reason = noise.reason if isinstance(noise, UnmeasurableNoiseError) else str(noise)
            _log.warning("%s: its noise is taken as white: %s.", name, reason.rstrip("."))
            noises.append(None)
            continue
        if how == "auto" and noise.is_white:
            noises.append(None)
            continue
        if not noise.is_white:
            _log.log(
                # What makes no difference is taken into account without a word.
                logging.INFO if noise.matters else logging.DEBUG,
                "%s: its noise is correlated (%.1f sigma over all distances): %s.",
                name,
                noise.significance,
                noise.text,
            )
        noises.append(noise)
    return noises


@dataclasses.dataclass(frozen=True)
class SquareSums:
    """Sums of squares of 8 × 8 pixels of a difference over their errors.

    Attributes
    ----------
    values
        ``(n, m)``; NaN where too little of a square is free of sources and known.
    variances
        ``(n, m)``: mean squares of the same pixels over their errors; NaN as above.
    step
        Of how many rows of squares one is taken.
    origin
        Row and column of the first pixel.
    """

    values: Array
    variances: Array
    step: int
    origin: tuple[int, int]

    @functools.cached_property
    def known(self) -> Array:
        """``(n, m)`` boolean: squares with a sum."""
        return np.isfinite(self.values)

    @functools.cached_property
    def departures(self) -> Array:
        """``(n, m)``: the sums less their median."""
        result: Array = self.values - np.median(self.values[self.known])
        return result

    def place(self, rows: slice, columns: slice) -> str:
        """Where some squares, with a first and a last one, lie in the frame, in words."""
        y0, x0 = self.origin
        first = y0 + _SQUARE * self.step * rows.start, x0 + _SQUARE * columns.start
        last = (
            y0 + _SQUARE * (self.step * (rows.stop - 1) + 1) - 1,
            x0 + _SQUARE * columns.stop - 1,
        )
        return f"rows {first[0]} to {last[0]} and columns {first[1]} to {last[1]}"


def square_sums(difference: Exposure) -> SquareSums | None:
    """Sum squares of pixels of a difference.

    Parameters
    ----------
    difference
        Decorrelated, its sources marked.

    Returns
    -------
    sums
        None for scores, whose noise is correlated, and where there are fewer than 200.
    """
    if difference.is_score:
        return None
    side = _SQUARE
    ny, nx = (n // side * side for n in difference.shape)
    step = max(1, ny * nx // _ENOUGH_FOR_SCATTER)
    sums, variances = [np.zeros((0, nx // side))], [np.zeros((0, nx // side))]
    for start in range(0, ny, side * step):
        rows = slice(start, start + side)
        image = difference.data[rows, :nx]
        variance = difference.variance[rows, :nx]
        lost = masks.flagged(difference.mask, _SPOILED, rows=rows)[:, :nx]
        free = ~lost & np.isfinite(image) & (variance > 0) & np.isfinite(variance)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = np.where(free, image / np.sqrt(variance), 0)
        count = free.reshape(side, -1, side).sum(axis=(0, 2))
        total = value.reshape(side, -1, side).sum(axis=(0, 2))
        squares = (value**2).reshape(side, -1, side).sum(axis=(0, 2))
        known = count > 0.75 * side**2
        sums.append(np.where(known, total / np.sqrt(np.maximum(count, 1)), np.nan)[None])
        variances.append(np.where(known, squares / np.maximum(count, 1), np.nan)[None])
    found = SquareSums(np.concatenate(sums), np.concatenate(variances), step, difference.origin)
    return found if np.count_nonzero(found.known) >= _FEWEST_SQUARES else None


def structure_on_larger_scales(sums: SquareSums) -> str:
    """What a difference holds besides the noise of its pixels.

    Parameters
    ----------
    sums
        `square_sums` of it.

    Returns
    -------
    text
        A sentence's part; empty where there is nothing.

    Notes
    -----
    White noise gives them a variance of 1.  Those beyond 5 errors count as 5: of sources that no
    mask tells of.
    """
    ratio = float(np.mean(np.minimum(sums.departures[sums.known] ** 2, 25.0)))
    if ratio <= _MOST_STRUCTURE:
        return ""
    return (
        f"the sums of {_SQUARE} × {_SQUARE} pixels have {ratio:.3g} times the variance of white"
        " noise: one image has fringes, steps or a sky that the other has not, or correlated noise"
    )


def regions_of_one_image(sums: SquareSums) -> str:
    """Where a difference holds much light, or lack of it, that is no source.

    Parameters
    ----------
    sums
        `square_sums` of it.

    Returns
    -------
    text
        A sentence's part; empty where there is nothing.

    Notes
    -----
    Regions of at least 12 adjacent squares whose sums are beyond 10 errors: what was vignetted in
    one image alone, ghosts, covered parts.
    """
    beyond = sums.known & (np.abs(sums.departures) > _REGION_ERRORS)
    groups, _ = scipy.ndimage.label(beyond, np.ones((3, 3)))
    sizes = np.bincount(groups.ravel())
    sizes[0] = 0
    large = sums.step * sizes >= _REGION_SQUARES
    if not large.any():
        return ""
    largest = scipy.ndimage.find_objects(groups)[int(np.argmax(sizes)) - 1]
    share = np.count_nonzero(large[groups]) / np.count_nonzero(sums.known)
    return (
        f"{100 * share:.2g}% of the frame between its sources holds light, or lacks it, far beyond"
        f" noise, most in {sums.place(*largest)}: one"
        " image is vignetted, covered or lit there and the other is not"
    )


def uneven_noise(sums: SquareSums) -> str:
    """Where the noise of a difference is not what its variance plane says.

    Parameters
    ----------
    sums
        `square_sums` of it.

    Returns
    -------
    text
        A sentence's part; empty where there is nothing.

    Notes
    -----
    Of 16 parts of the frame, those with 40 squares or more; squares of three times the variance
    hold a source.  What a part differs by counts from a fifth and 5 errors on.
    """
    parts = (
        [slice(each[0], each[-1] + 1) for each in np.array_split(np.arange(n), min(n, _PARTS))]
        for n in sums.variances.shape
    )
    found = []
    for place in itertools.product(*parts):
        part = sums.variances[place]
        part = part[part < _MOST_VARIANCE]
        if part.size >= _ENOUGH_SQUARES:
            error = math.sqrt(2 / (_SQUARE**2 * part.size))
            found.append((float(part.mean()), error, place))
    if not found:
        return ""
    is_far = any(abs(value - 1) > max(_UNEVEN, _SURE_ERRORS * error) for value, error, _ in found)
    least, most = min(found, key=lambda part: part[0]), max(found, key=lambda part: part[0])
    # What all parts have in common is told by the significances.
    if not is_far or most[0] < (1 + _UNEVEN) * least[0]:
        return ""
    ends = ", ".join(
        f"{value:.2f} times it in {sums.place(*place)}" for value, _, place in (least, most)
    )
    return (
        f"the noise between its sources does not follow its variance plane: its variance is {ends}"
    )


def _known_noise(name: str, exposure: Exposure) -> Noise:
    box = exposure.bbox
    middle = noise_at(exposure.noise, box.x.center, box.y.center)
    assert middle is not None
    _log.info(
        "%s: its noise is known not to be white (%s): in the middle, low-frequency power is %.3g"
        " times what the pixel variance implies.",
        name,
        middle.description,
        middle.zero_frequency,
    )
    return exposure.noise


def _measured_noise(exposure: Exposure, sources: Array) -> NoiseCovariance | DataError:
    """Noise covariance, or why it cannot be measured."""
    image, variance = exposure.data, exposure.variance
    untrusted = untrusted_pixels(exposure)
    told = high_frequencies(image, ~(untrusted | masks.flagged(exposure.mask, _IGNORED)), variance)
    # Strips of a large frame determine the covariance as well as all of it.
    flat, plane, use, wrong = [], [], [], []
    for rows in _strips(image.shape):
        good = masks.flagged(exposure.mask, _IGNORED, rows=rows)
        good = ~(good | sources[rows] | untrusted[rows])
        good &= np.isfinite(variance[rows]) & (variance[rows] > 0)
        background = smooth_background(image[rows], good)
        flat.append(np.where(untrusted[rows], 0, image[rows] - background).astype(np.float32))
        plane.append(variance[rows])
        use.append(good)
        wrong.append(untrusted[rows])
        for pile in (flat, plane, use):
            # Between them nothing counts, so that no pair of pixels reaches across.
            pile.append(np.zeros((_GAP, image.shape[1]), pile[-1].dtype))
        wrong.append(np.ones((_GAP, image.shape[1]), dtype=bool))
    pixels, noise, free = (np.concatenate(pile) for pile in (flat, plane, use))
    if told is not None and free.any():
        scatter = robust_sigma(pixels[free] / np.sqrt(noise[free])) ** 2
        if scatter > told.factor * (1 + _CROWDED + 2 * told.error):
            # Light between the sources is correlated, too.
            return _of_frequencies(told)
    try:
        found = measured_covariance(
            pixels,
            noise,
            free,
            psf_sigma=_width(exposure, pixels, noise, np.concatenate(wrong)),
        )
    except DataError as error:
        return error if told is None else _of_frequencies(told)
    except np.linalg.LinAlgError:
        return DataError(
            "no covariance fits what its source-free pixels show; is there structure in the"
            " background?"
        )
    if told is not None and told.is_white and told.improvement(found.spectrum) < _CONFIRMED:
        # What is not white within the band of sources alone are sources, or what a sky leaves.
        return white_covariance()
    return found


def _of_frequencies(told: HighFrequencies) -> NoiseCovariance:
    """Covariance of noise that frequencies free of sources tell."""
    if told.axes is None:
        return white_covariance()
    along_y, along_x = told.axes
    return product_covariance(
        along_y,
        along_x,
        "measured at frequencies free of sources",
        zero_frequency_error=told.zero_frequency_error,
        chi_square=told.significance,
    )


def _width(exposure: Exposure, flat: Array, variance: Array, untrusted: Array) -> float | None:
    """Width of the PSF, pixels: that of an exposure without one from its stars."""
    if exposure.psf is not None:
        return FWHM_TO_SIGMA * fwhm_of_psf(exposure.psf)
    try:
        sources = find_sources(
            flat, flat, science_variance=variance, science_bad=untrusted, template_bad=untrusted
        )
        return choose_candidates(sources, clear=8, isolation=16).science_sigma
    except TooFewSourcesError:
        # Then there are few faint ones, too.
        return None


def _strips(shape: tuple[int, ...]) -> list[slice]:
    """Strips of rows, evenly spread over a frame, with enough pixels."""
    ny, nx = shape
    rows = min(max(_STRIP // nx, _STRIP_ROWS[0]), _STRIP_ROWS[1])
    n = math.ceil(_ENOUGH_PIXELS / (rows * nx))
    if n * rows >= ny:
        return [slice(0, ny)]
    starts = np.linspace(0, ny - rows, n).round().astype(int)
    return [slice(int(start), int(start) + rows) for start in starts]
