"""Sources and noise of an exposure told apart, and the noise measured."""

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
"""Largest factor, either way, between the noise and a plane read as something else that fits."""
_SURELY = 0.05
"""Excess of the scatter over the noise, relative, from which they differ."""
_CROWDED = 0.03
"""Excess of the scatter over the noise, relative, from which the light between sources spoils the
covariance of source-free pixels."""
_CONFIRMED = 4.0
"""χ² by which a correlation must fit high frequencies better than white noise to be believed."""
_SQUARE, _FEWEST_SQUARES, _MOST_STRUCTURE = 8, 200, 1.5
_REGION_ERRORS, _REGION_SQUARES = 10.0, 12
_PARTS, _ENOUGH_SQUARES, _MOST_VARIANCE = 4, 40, 3.0
_UNEVEN, _SURE_ERRORS = 0.2, 5.0
_SPOILED = (*masks.AVOIDED_MASK_PLANES, "SOURCE", "EDGE")
_ENOUGH_PIXELS = 4_000_000
_ENOUGH_FOR_SCATTER = 2_000_000
_STRIP_ROWS = (64, 256)
_STRIP = 1_100_000
"""Most pixels in a strip."""
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
        ``(ny, nx)`` boolean: the image is not finite, the variance is not finite or not positive,
        or one of `whitediff.exposures.masks.UNTRUSTED_MASK_PLANES` is set.  Where no variance is
        positive, variances are ignored.
    """
    return pixels_without_measurement(exposure, masks.UNTRUSTED_MASK_PLANES)


def avoided_pixels(exposure: Exposure, untrusted: Array | None = None) -> Array:
    """Pixels of an exposure to leave out when sources, noise or background are measured.

    Parameters
    ----------
    exposure
        Exposure.
    untrusted
        Result of `untrusted_pixels`, to save the work.

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
    """Exposure without the absurd numbers that mark pixels without data in some files.

    Parameters
    ----------
    exposure
        Exposure; not changed.

    Returns
    -------
    exposure
        Finite pixels beyond 1e11 times the smallest sigma become NaN and NO_DATA, with a warning.
        The same object where there are none.
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
    """Pixels with a source in at least one of several exposures.

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
    """Pixels that hold sources of the science image and of the template.

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
        """Pixels that show the background rather than a source.

        Parameters
        ----------
        width
            Pixels, positive: light this broad in both directions is no transient.

        Returns
        -------
        free
            ``(ny, nx)`` boolean: pixels without a source, and pixels of broad light that one image
            alone has, such as a ghost, a halo or a cloud.
        """
        sources = self.either
        free: Array = broad_parts(sources, width) & ~self._static
        free |= ~sources
        return free

    @property
    def _static(self) -> Array:
        return self._pixels(SourceLevel.SOURCE, SourceLevel.SOURCE)

    def _pixels(self, both: SourceLevel, one: SourceLevel) -> Array:
        """Pixels of at least level ``both`` on both images and ``one`` on one of them."""

        def work(rows: slice) -> Array:
            levels = self.science[rows], self.template[rows]
            found: Array = (np.minimum(*levels) >= both) & (np.maximum(*levels) >= one)
            return found

        return planes.filled(self.science.shape, bool, work)

    def marked(self, mask: Mask) -> Mask:
        """Copy a mask and mark the sources in it.

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
                # The difference has the PSF of the worse seeing, so its footprints count.
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
        `PairSources`: a source of any exposure of a stack counts as the stack's.
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
        `photons.counted_photons`; None unless its pixels are counts of few photons.
    """
    return counted_photons(exposure.data, _measured_pixels(exposure))


def _measured_pixels(exposure: Exposure) -> Array:
    return planes.usable_pixels(exposure.data, masks.flagged(exposure.mask, _IGNORED))


def measurable(science: Exposure, template: Exposure) -> tuple[Exposure, Exposure]:
    """Exposures whose planes can be measured: the first step of any work on a pair.

    Parameters
    ----------
    science, template
        Exposures; not changed.

    Returns
    -------
    science, template
        Images in the precision that `whitediff.exposures.model.precise` chooses, variance planes
        cleaned by `whitediff.noise.own_counts.without_own_noise`; unchanged where neither is
        needed.
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
    """Measured noise variance over the variance plane.

    Parameters
    ----------
    exposure
        Exposure.

    Returns
    -------
    factor
        Measured at frequencies free of sources (`whitediff.noise.structure`).  Where none is known
        to be free, ``(0.7413 · IQR(image/√variance))²`` over source-free, unmasked pixels, the
        smooth background subtracted.

    Raises
    ------
    DataError
        If the factor is not between 0.1 and 10, or no source-free pixel is usable.
    """
    return measured_variance_factor(exposure, *sources_apart(exposure))


def sources_apart(exposure: Exposure, untrusted: Array | None = None) -> tuple[Array, Array]:
    """Tell an exposure's sources from its background.

    Parameters
    ----------
    exposure
        Exposure.
    untrusted
        Result of `avoided_pixels`, to save the work.

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
        As from `sources_apart`.
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
    """`variance_factor` of an exposure whose sources are known.

    Parameters
    ----------
    exposure
        Exposure.
    sources, flat
        Result of `sources_apart`.

    Returns
    -------
    factor
        As from `variance_factor`.

    Raises
    ------
    DataError
        As from `variance_factor`.
    """
    return noise_and_structure(exposure, sources, flat)[0]


def noise_and_structure(exposure: Exposure, sources: Array, flat: Array) -> tuple[float, float]:
    """Measured noise over the variance plane, and scatter of source-free pixels over the noise.

    Parameters
    ----------
    exposure
        Exposure.
    sources, flat
        Result of `sources_apart`.

    Returns
    -------
    factor
        As from `variance_factor`.
    structure
        Variance of source-free pixels over the noise variance; 1 unless emission with structure
        fills the field.

    Raises
    ------
    DataError
        As from `variance_factor`.
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
        # Scatter includes the noise: more power than that at high frequencies must be light.
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
            # The excess is light on the sky, which both images have: a difference loses it.
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
"""Power of the plane that is the variance, its name, and how to name the plane on reading."""


def _what_else(flat: Array, plane: Array) -> str:
    """Likely meaning of a plane that is not the variance of source-free pixels, and the remedy."""
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
    """Exposure with its variance plane multiplied by a factor.

    Parameters
    ----------
    exposure
        Exposure; not changed.
    factor
        Positive.

    Returns
    -------
    rescaled
        Shares all other planes with the exposure.
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
    """Known noise of a pair of exposures before any convolution.

    Attributes
    ----------
    science_variance, template_variance
        Mean variances, image_unit²; None: the clipped means of the variance planes.
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
        """Covariances of science exposure and template."""
        return self.science_covariance, self.template_covariance

    def with_measured(
        self,
        science: Exposure,
        template: Exposure,
        sources: Array | None,
        *,
        how: Literal["white", "auto", "measured"],
    ) -> InputNoise:
        """Input noise with measured covariances, unless the noise is to be white.

        Parameters
        ----------
        science, template
            Exposures.
        sources
            ``(ny, nx)`` boolean: pixels with a source in either; None where nothing is measured.
        how
            As for `measured_noises`; ``white``: nothing is measured.

        Returns
        -------
        noise
            Input noise with the covariances to use.

        Raises
        ------
        ArgumentError
            If covariances are to be measured and are given, too.
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
        ``measured``: the measured covariance.  ``auto``: the covariance that the exposure comes
        with; else the measured one, if the noise is significantly correlated.

    Returns
    -------
    science_noise, template_noise
        None for an input that is taken as white: with ``auto``, where it is not significantly
        correlated; with either, where the covariance cannot be measured (then with a warning).
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
        Exposures under the names that messages call them by.
    sources, how
        As for `measured_noises`.

    Returns
    -------
    noises
        As from `measured_noises`, in the order of the exposures.
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
                # A correlation too small to matter is used, but not reported.
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
    """Sums of a difference over blocks of 8 × 8 pixels, in units of their errors.

    Attributes
    ----------
    values
        ``(n, m)``; NaN unless more than three quarters of a block is known and free of sources.
    variances
        ``(n, m)``: mean of the squared pixels over their variances; NaN as above.
    step
        Rows of blocks from one row that was summed to the next.
    origin
        Row and column of the first pixel.
    """

    values: Array
    variances: Array
    step: int
    origin: tuple[int, int]

    @functools.cached_property
    def known(self) -> Array:
        """``(n, m)`` boolean: blocks with a sum."""
        return np.isfinite(self.values)

    @functools.cached_property
    def departures(self) -> Array:
        """``(n, m)``: sums less their median."""
        result: Array = self.values - np.median(self.values[self.known])
        return result

    def place(self, rows: slice, columns: slice) -> str:
        """Rows and columns of the frame that a range of blocks covers, in words."""
        y0, x0 = self.origin
        first = y0 + _SQUARE * self.step * rows.start, x0 + _SQUARE * columns.start
        last = (
            y0 + _SQUARE * (self.step * (rows.stop - 1) + 1) - 1,
            x0 + _SQUARE * columns.stop - 1,
        )
        return f"rows {first[0]} to {last[0]} and columns {first[1]} to {last[1]}"


def square_sums(difference: Exposure) -> SquareSums | None:
    """Sum a difference over blocks of 8 × 8 pixels.

    Parameters
    ----------
    difference
        Decorrelated, its sources marked.

    Returns
    -------
    sums
        None for scores, whose noise is correlated, and where fewer than 200 blocks have a sum.
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
    """Describe fringes, steps or sky that a difference holds besides the noise of its pixels.

    Parameters
    ----------
    sums
        `square_sums` of the difference.

    Returns
    -------
    text
        Part of a sentence; empty where there is no such structure.

    Notes
    -----
    White noise gives the sums a variance of 1.  Sums beyond 5 errors count as 5: they may hold
    unmasked sources.
    """
    ratio = float(np.mean(np.minimum(sums.departures[sums.known] ** 2, 25.0)))
    if ratio <= _MOST_STRUCTURE:
        return ""
    return (
        f"the sums of {_SQUARE} × {_SQUARE} pixels have {ratio:.3g} times the variance of white"
        " noise: one image has fringes, steps or a sky that the other has not, or correlated noise"
    )


def regions_of_one_image(sums: SquareSums) -> str:
    """Describe regions where a difference has far too much or too little light for noise.

    Parameters
    ----------
    sums
        `square_sums` of the difference.

    Returns
    -------
    text
        Part of a sentence; empty where there is no such region.

    Notes
    -----
    Regions have at least 12 adjacent blocks whose sums are beyond 10 errors: parts that are
    vignetted or covered in one image alone, ghosts.
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
    """Describe where the noise of a difference departs from its variance plane.

    Parameters
    ----------
    sums
        `square_sums` of the difference.

    Returns
    -------
    text
        Part of a sentence; empty where the noise follows the plane.

    Notes
    -----
    The frame is cut into 16 parts, and parts with at least 40 blocks count.  Blocks with three
    times the variance or more hold a source and are left out.  A part departs by more than a
    fifth and more than 5 errors, and the noisiest has a fifth more than the quietest.
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
    # An error that all parts share is reported with the width of the significances.
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
    # Strips of a large frame determine the covariance as well as the whole frame.
    flat, plane, use, wrong = [], [], [], []
    strip = min(max(_STRIP // image.shape[1], _STRIP_ROWS[0]), _STRIP_ROWS[1])
    for rows in planes.spread_rows(image.shape, strip, _ENOUGH_PIXELS):
        good = masks.flagged(exposure.mask, _IGNORED, rows=rows)
        good = ~(good | sources[rows] | untrusted[rows])
        good &= np.isfinite(variance[rows]) & (variance[rows] > 0)
        background = smooth_background(image[rows], good)
        flat.append(np.where(untrusted[rows], 0, image[rows] - background).astype(np.float32))
        plane.append(variance[rows])
        use.append(good)
        wrong.append(untrusted[rows])
        for pile in (flat, plane, use):
            # Rows of bad pixels between strips, so that no pair of pixels reaches across.
            pile.append(np.zeros((_GAP, image.shape[1]), pile[-1].dtype))
        wrong.append(np.ones((_GAP, image.shape[1]), dtype=bool))
    pixels, noise, free = (np.concatenate(pile) for pile in (flat, plane, use))
    if told is not None and free.any():
        scatter = robust_sigma(pixels[free] / np.sqrt(noise[free])) ** 2
        if scatter > told.factor * (1 + _CROWDED + 2 * told.error):
            # Light between the sources is correlated, and would count as correlated noise.
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
        # Correlation within the band of sources alone is due to sources or remains of the sky.
        return white_covariance()
    return found


def _of_frequencies(told: HighFrequencies) -> NoiseCovariance:
    """Covariance of the noise as measured at frequencies free of sources."""
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
    """Gaussian width of the PSF, pixels; measured on stars where the exposure has no PSF."""
    if exposure.psf is not None:
        return FWHM_TO_SIGMA * fwhm_of_psf(exposure.psf)
    try:
        sources = find_sources(
            flat, flat, science_variance=variance, science_bad=untrusted, template_bad=untrusted
        )
        return choose_candidates(sources, clear=8, isolation=16).science_sigma
    except TooFewSourcesError:
        # Where there are few bright sources, there are few faint ones.
        return None
