"""Pixels that are sharper than the PSF allows: cosmic rays and hot pixels.

A point source, however it lies on the pixels, puts some light on both neighbours of a pixel.  For a
Gaussian, ``√(f(p+o) f(p−o)) = q f(p)`` for every pixel p and offset o, with the same q wherever the
centre lies.  For a sum of Gaussians, and for wider sources, the left side is larger (Cauchy and
Schwarz).  A pixel for which it is significantly smaller is no source.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..numerics.stats import half_sample_mode
from ..numerics.threads import scipy_part
from .surface import BRIGHT, MARGIN, Surface

__all__ = [
    "RoundPeaks",
    "dead_pixels",
    "psf_sharpness",
    "round_peaks",
    "sharp_pixels",
    "sharpness",
    "strong_pixels",
]

type Array = npt.NDArray[Any]

_OFFSETS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))
_NEAR = 4
"""Number of offsets, from the first, that lead to the eight neighbours."""

_AROUND = tuple((j, i) for j in (-1, 0, 1) for i in (-1, 0, 1) if (j, i) != (0, 0))
_WIDE = tuple((j, i) for j in range(-2, 3) for i in range(-2, 3) if (j, i) != (0, 0))
_SHARPEST = 0.2
"""Least q: a Gaussian with a full width at half maximum of 1.3 pixels has it."""

_STAR_SIGMAS = (40.0, 15.0, 8.0)
_FEWEST_STARS = 6
_MOST_COMMON = 300
_SHARPNESS_FLOOR, _LARGEST_ERROR = 0.04, 0.3
"""Error of the sharpness of the brightest peaks, and largest error of a peak that is used: wide
peaks are noisier, and noise makes them look sharper, since they are its peaks."""
_FEWEST_COMMON = 3
_MOST_COMPARED = 3000
_CROWDED, _CHANCE_SIGMAS = 1.8, 3.0
"""Peaks at one sharpness, a peak itself included, and standard deviations above the number by
chance, from which they are a crowd."""
_STEPS = 3
_SAME_PEAK = 1.5
_ROUND = 1.6
_LOCUS = 0.3
_CROWD = 4
_MARGIN_MEAN = 0.88
_MARGIN_PRODUCT = 0.75
"""Factors on q, by which a star may be sharper than the sharpest tenth, in the two tests."""

_SEED = 5.0
_SEED_CROSS = 4.5
_GROWTH = 2.5
_GROWTH_SIGNAL = 3.0
_DIFFRACTING = 40.0
"""Least significance of a star whose diffraction rings may be visible."""
_RING_LIGHT, _ALIKE = 0.5, 2.0
"""Brightest ring, or flank, over its star's middle; and largest ratio of opposite sides, however
the star lies on the pixels."""
_RINGS, _FLANK = 12.0, 3.5
"""Radii of the outermost ring, and of the first dark ring, in standard deviations of the star."""
_PASSES = 5
_AT_ONCE = 1 << 13
"""Pixels whose numbers fit into the processor's cache."""

_STRONG = 20.0
"""Sigma from which the charge that diffuses to a neighbour, some 4 %, is near the noise."""


@dataclasses.dataclass(frozen=True)
class RoundPeaks:
    """Peaks that have light on all sides, as stars have.

    Attributes
    ----------
    row, column
        ``(n,)`` pixels of the image.
    significance
        ``(n,)`` height over the noise.
    ratio
        ``(6, n)`` geometric mean of the two neighbours at each offset, over the peak.
    sharpness
        ``(n,)`` logarithm of four over the squared width.
    is_round
        ``(n,)`` boolean: as wide along both axes and diagonals, as stars mostly are.
    """

    row: Array
    column: Array
    significance: Array
    ratio: Array
    sharpness: Array
    is_round: Array

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, which: Array) -> RoundPeaks:
        """Some of the peaks, by a boolean array."""
        return RoundPeaks(
            self.row[which],
            self.column[which],
            self.significance[which],
            self.ratio[:, which],
            self.sharpness[which],
            self.is_round[which],
        )

    @property
    def sharpness_error(self) -> Array:
        """``(n,)`` error of the sharpness; larger for a wide peak, whose neighbours differ less."""
        inverse = np.exp(self.sharpness)
        # The peak's own noise is common to all four pairs, so it does not average out.
        noise = np.sqrt(1 + np.exp(inverse) / 8)
        result: Array = 2 * noise / (inverse * self.significance)
        return result

    @property
    def falls_off(self) -> Array:
        """``(n,)`` boolean: peaks that fall off along both axes, unlike a bad detector's columns.

        The ratio at two pixels is below the square of the ratio at one; a Gaussian's is the fourth
        power.
        """
        result: Array = (self.ratio[_NEAR:] < self.ratio[:2] ** 2).all(axis=0)
        return result

    @property
    def density(self) -> float:
        """Peaks per pixel of the rectangle that holds them."""
        if not len(self):
            return 0.0
        sides = (np.ptp(each) + 1 for each in (self.row, self.column))
        return len(self) / math.prod(map(float, sides))

    def near(self, others: RoundPeaks) -> Array:
        """Peaks with a peak of another image next to them.

        Parameters
        ----------
        others
            Peaks of another image on the same pixels.

        Returns
        -------
        near
            ``(n,)`` boolean: another peak lies within 1.5 pixels.
        """
        if not len(self) or not len(others):
            return np.zeros(len(self), bool)
        tree = scipy_part("spatial").cKDTree(np.stack([others.row, others.column], axis=1))
        distance, _ = tree.query(np.stack([self.row, self.column], axis=1))
        result: Array = distance <= _SAME_PEAK
        return result


def round_peaks(surface: Surface) -> RoundPeaks:
    """Peaks of an image that may be stars.

    Parameters
    ----------
    surface
        The image.

    Returns
    -------
    peaks
        Peaks above 8 sigma.
    """
    flux, index = surface.flux.ravel(), surface.bright
    significance = flux[index] / np.sqrt(surface.bright_variance)
    at = index[significance > _STAR_SIGMAS[-1]]
    for j, i in _AROUND:
        with np.errstate(invalid="ignore"):
            at = at[flux[at] >= flux[at + j * surface.width + i]]
    ratio = _ratios(flux, at, surface.width)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Four over the squared width; a diagonal step is longer by the root of two.
        inverse = -2 * np.log(ratio[:_NEAR]) / np.array([1, 1, 2, 2])[:, None]
        alike = inverse.max(axis=0) < _ROUND * inverse.min(axis=0)
    wide = (ratio[:_NEAR] > _SHARPEST**2).all(axis=0) & (inverse.min(axis=0) > 0)
    at = at[wide]
    row, column = np.divmod(at, surface.width)
    return RoundPeaks(
        row - MARGIN,
        column - MARGIN,
        flux[at] / np.sqrt(surface.variance_at(at)),
        ratio[:, wide],
        np.log(inverse[:, wide].mean(axis=0)),
        alike[wide],
    )


def sharpness(peaks: RoundPeaks, others: RoundPeaks | None = None) -> Array:
    """Sharpness q of the stars at each offset.

    Parameters
    ----------
    peaks
        Peaks of the image.
    others
        Peaks of another image on the same pixels: peaks that both have are no cosmic rays.

    Returns
    -------
    q
        ``(6,)`` for steps along x, y and both diagonals by a pixel, and along x and y by two:
        geometric mean of the two neighbours over the pixel between them, exceeded by nine tenths
        of the stars.

    Notes
    -----
    Among peaks that both images have, none are sharper than the stars, even if stars are few.  With
    one image alone, stars are the round peaks near the mode of their sharpness: short cosmic rays
    whose charge has spread are round, too, and may be sharper and more numerous than the stars.
    """
    if others is not None:
        chosen = _sharpest_common(peaks, others)
        if len(chosen):
            # Of a few stars, the lowest ratio is mostly noise, so the median is taken.
            return _ratios_of(chosen, 10 if len(chosen) >= _FEWEST_STARS else 50)
    peaks, fewest = peaks[peaks.is_round], _FEWEST_STARS
    if others is not None:
        common = peaks[peaks.near(others)]
        if len(common) >= _FEWEST_COMMON:
            peaks, fewest = common, _FEWEST_COMMON
    for least in _STAR_SIGMAS:
        chosen = peaks[peaks.significance > least]
        if len(chosen) >= fewest:
            chosen = chosen[np.abs(chosen.sharpness - _locus(chosen.sharpness)) < _LOCUS]
            if len(chosen) >= fewest:
                return _ratios_of(chosen, 10)
    return np.array([_SHARPEST ** (j * j + i * i) for j, i in _OFFSETS])


def _ratios_of(stars: RoundPeaks, percentile: float) -> Array:
    result: Array = np.percentile(stars.ratio, percentile, axis=1)
    return result


def _sharpest_common(peaks: RoundPeaks, others: RoundPeaks) -> RoundPeaks:
    """Peaks at the highest sharpness at which both images have more than chance explains."""
    peaks = peaks[(peaks.sharpness_error < _LARGEST_ERROR) & (peaks.is_round | peaks.falls_off)]
    peaks = peaks[np.argsort(-peaks.significance, kind="stable")[:_MOST_COMPARED]]
    common = peaks.near(others)
    error = np.hypot(peaks.sharpness_error, _SHARPNESS_FLOOR)
    both = np.flatnonzero(common)[:_MOST_COMMON]
    deviation = peaks.sharpness[both][:, None] - peaks.sharpness
    near = np.exp(-0.5 * deviation**2 / (error[both][:, None] ** 2 + error**2))
    # Expected number of peaks that lie next to one of the other image by chance.
    by_chance = near.sum(axis=1) * others.density * math.pi * _SAME_PEAK**2
    crowd = near[:, both].sum(axis=1)
    crowded = both[crowd > _CROWDED + by_chance + _CHANCE_SIGMAS * np.sqrt(by_chance)]
    if not len(crowded):
        return peaks[crowded]
    value, error = peaks.sharpness[both], error[both]
    centre, own = float(peaks.sharpness[crowded].max()), _SHARPNESS_FLOOR
    for _ in range(_STEPS):
        weight = np.exp(-0.5 * (value - centre) ** 2 / (error**2 + own**2)) / error**2
        centre = (weight * value).sum() / weight.sum()
    return peaks[both[np.abs(value - centre) < 2 * np.hypot(error, own)]]


def psf_sharpness(psf: Array) -> Array:
    """Sharpness of stars by their PSF.

    Parameters
    ----------
    psf
        ``(py, px)``, origin at ``[py//2, px//2]``, at least 5 pixels wide.

    Returns
    -------
    q
        As from `sharpness`.
    """
    padded = np.pad(np.maximum(psf, 0), 2)
    middle = [n // 2 for n in padded.shape]
    width = padded.shape[1]
    at = np.array([middle[0] * width + middle[1]])
    return _ratios(padded.ravel(), at, width)[:, 0]


def _locus(sharpness: Array) -> float:
    """Sharpness of stars: the mode, or that of a sharper crowd with a tenth as many peaks.

    In that case the mode may be due to galaxies.
    """
    mode = half_sample_mode(sharpness)
    enough = max(_CROWD, math.ceil(0.1 * np.count_nonzero(np.abs(sharpness - mode) < _LOCUS)))
    sharper = np.sort(sharpness[sharpness > mode + _LOCUS / 2])
    if len(sharper) < enough:
        return mode
    spans = sharper[enough - 1 :] - sharper[: len(sharper) - enough + 1]
    dense = np.flatnonzero(spans < _LOCUS / 2)
    return float(sharper[dense[-1] + enough // 2]) if dense.size else mode


def _ratios(flux: Array, at: Array, width: int) -> Array:
    """Geometric means of opposite neighbours over the pixels between, ``(6, n)``; at least 0."""
    ratios = np.zeros((len(_OFFSETS), len(at)))
    for k, (j, i) in enumerate(_OFFSETS):
        step = j * width + i
        with np.errstate(invalid="ignore"):
            product = np.maximum(flux[at + step], 0) * np.maximum(flux[at - step], 0)
            ratios[k] = np.nan_to_num(np.sqrt(product) / flux[at])
    return ratios


def sharp_pixels(surface: Surface, q: Array, stars: RoundPeaks) -> Array:
    """Pixels that are too sharp for a source, and neighbours that belong to them.

    Parameters
    ----------
    surface
        The image; in its `flux`, found pixels are replaced by values from their neighbours.
    q
        Sharpness of the stars, from `sharpness` or `psf_sharpness`.
    stars
        Result of `round_peaks`: their diffraction rings are no defects.

    Returns
    -------
    index
        ``(n,)`` indices into the raveled `Surface.flux`.
    """
    flux, width = surface.flux.ravel(), surface.width
    marked = np.zeros(flux.shape, bool)
    at = surface.bright
    at = at[_too_sharp(flux, at, surface.bright_variance, width, q, _SEED, _SEED_CROSS)]
    at = at[~_of_diffraction(surface, at, q, stars)]
    found = [at]
    for _ in range(_PASSES):
        if not len(at):
            break
        marked[at] = True
        _replace(flux, at, marked, width)
        at = np.concatenate([at + j * width + i for j, i in _AROUND])
        with np.errstate(invalid="ignore"):
            at = np.unique(at[~marked[at] & (flux[at] > 0)])
        row, column = np.divmod(at, width)
        ny, nx = surface.shape
        at = at[(row >= MARGIN) & (row < ny + MARGIN) & (column >= MARGIN) & (column < nx + MARGIN)]
        with np.errstate(invalid="ignore"):
            variance = surface.variance_at(at)
            keep = flux[at] > _GROWTH_SIGNAL * np.sqrt(variance)
        at, variance = at[keep], variance[keep]
        at = at[_too_sharp(flux, at, variance, width, q, _GROWTH, _GROWTH)]
        found.append(at)
    return np.concatenate(found)


def _of_diffraction(surface: Surface, at: Array, q: Array, stars: RoundPeaks) -> Array:
    """Whether sharp pixels belong to a star's diffraction rings, or to the flank of its core.

    Between the dark rings, and towards them, light is sharper than in the star's middle.  The
    pattern of an aperture is the same on both sides of a star, so pixels opposite a ring are as
    bright, and as sharp.  A pixel on a flank is no peak: it has a brighter one next to it.
    """
    flux, width = surface.flux.ravel(), surface.width
    result = np.zeros(len(at), bool)
    heart = (stars.row + MARGIN) * width + stars.column + MARGIN
    # A sharp peak as round as a star is a ray, and has no rings.
    heart = heart[(stars.significance > _DIFFRACTING) & ~np.isin(heart, at)]
    if not len(at) or not len(heart):
        return result
    # Width of a Gaussian with that q.
    sigma = math.sqrt(-1 / (2 * math.log(np.clip(q[:2].mean(), _SHARPEST, 0.99))))
    places = np.stack(np.divmod(at, width), axis=1)
    tree = scipy_part("spatial").cKDTree(np.stack(np.divmod(heart, width), axis=1))
    near = tree.query_ball_point(places, _RINGS * sigma)
    pixel = np.repeat(np.arange(len(at)), [len(each) for each in near])
    star = heart[np.concatenate([np.array(each, int) for each in near])]
    fainter = flux[at[pixel]] < _RING_LIGHT * flux[star]
    pixel, star = pixel[fainter], star[fainter]
    from_star = places[pixel] - np.stack(np.divmod(star, width), axis=1)
    beside = pixel[np.hypot(*from_star.T) < _FLANK * sigma]
    around = np.stack([at[beside] + j * width + i for j, i in _AROUND])
    with np.errstate(invalid="ignore"):
        result[beside[(flux[around] > flux[at[beside]]).any(axis=0)]] = True
    result[pixel[_as_sharp_opposite(surface, at[pixel], star, q)]] = True
    return result


def _as_sharp_opposite(surface: Surface, at: Array, star: Array, q: Array) -> Array:
    """Indices of pixels with one on the other side of a star that is as bright, and sharp.

    Where the other side is beyond the frame, or at its edge, pixels a quarter turn around the star
    count, too.
    """
    flux, width = surface.flux.ravel(), surface.width
    ny, nx = surface.shape
    middle, place = np.divmod(star, width), np.divmod(at, width)
    dy, dx = (one - other for one, other in zip(place, middle, strict=True))
    found = []
    unseen = np.ones(len(at), bool)
    for turned in ((-dy, -dx), (dx, -dy), (-dx, dy)):
        row, column = (
            (centre + step)[:, None] + np.array([*offsets, 0])
            for centre, step, offsets in zip(
                middle, turned, zip(*_AROUND, strict=True), strict=True
            )
        )
        # The test of sharpness takes pixels two away, which must be inside the frame.
        first, behind = MARGIN + 2, MARGIN - 2
        inside = (row >= first) & (row < ny + behind) & (column >= first) & (column < nx + behind)
        inside &= unseen[:, None]
        there = np.where(inside, row * width + column, star[:, None])
        with np.errstate(invalid="ignore"):
            alike = (flux[there] * _ALIKE > flux[at][:, None]) & inside
            alike &= flux[there] < flux[at][:, None] * _ALIKE
        which, there = np.nonzero(alike)[0], there[alike]
        sharp = _too_sharp(flux, there, surface.variance_at(there), width, q, _GROWTH, _GROWTH)
        found.append(which[sharp])
        unseen &= ~inside.all(axis=1)
    return np.unique(np.concatenate(found))


def strong_pixels(surface: Surface) -> Array:
    """Pixels so bright that, if hit by a cosmic ray, charge spreads to their neighbours.

    Parameters
    ----------
    surface
        The image, before `sharp_pixels`.

    Returns
    -------
    index
        ``(n,)`` indices into the raveled `Surface.flux`: more than 20 sigma.
    """
    at = surface.bright
    result: Array = at[surface.flux.ravel()[at] > _STRONG * np.sqrt(surface.bright_variance)]
    return result


def _too_sharp(
    flux: Array, at: Array, variance: Array, width: int, q: Array, most: float, most_cross: float
) -> Array:
    """Whether pixels are sharper than a source by some sigma, in any direction or in the cross."""
    if len(at) > _AT_ONCE:
        parts = [slice(start, start + _AT_ONCE) for start in range(0, len(at), _AT_ONCE)]
        return np.concatenate(
            [_too_sharp(flux, at[p], variance[p], width, q, most, most_cross) for p in parts]
        )
    value = flux[at]
    sharp = np.zeros(len(at), bool)
    cross = np.zeros(len(at), np.float32)
    cross_q = 0.0
    for k, (j, i) in enumerate(_OFFSETS):
        if k >= _NEAR and q[k] < _SHARPEST:
            continue
        step = j * width + i
        before, after = flux[at - step], flux[at + step]
        mean = (before + after) / 2
        least = _MARGIN_MEAN * q[k]
        with np.errstate(invalid="ignore"):
            # Means of two neighbours, and of four in the cross, have 1/2 and 1/4 of the variance.
            sharp |= least * value - mean > most * np.sqrt(variance * (least**2 + 0.5))
            if k < 2:
                cross += mean / 2
                cross_q += least / 2
            least = _MARGIN_PRODUCT * q[k]
            before, after = np.maximum(before, 0), np.maximum(after, 0)
            # Twice the noise of the product, since the noise of a product has long tails.
            scatter = (2 * least**2 * value) ** 2 + before**2 + after**2 + 2 * variance
            sharp |= (least * value) ** 2 - before * after > most * np.sqrt(scatter * variance)
    with np.errstate(invalid="ignore"):
        excess = cross_q * value - cross
        sharp |= excess > most_cross * np.sqrt(variance * (cross_q**2 + 0.25))
    return sharp


def _replace(flux: Array, at: Array, marked: Array, width: int) -> None:
    """Replace pixels by a value from the unmarked pixels around; in place.

    The value is the one that a third of them exceeds, rather than their median, which beside a star
    would be less than the star's light.
    """
    around = np.stack([at + j * width + i for j, i in _WIDE], axis=1)
    around = np.clip(around, 0, flux.size - 1)
    values = np.where(marked[around], np.nan, flux[around])
    values.sort(axis=1)
    known = np.count_nonzero(~np.isnan(values), axis=1)
    middle = values[np.arange(len(at)), np.maximum(known - 1, 0) * 2 // 3]
    flux[at] = np.where(known > 0, middle, 0)


def dead_pixels(surface: Surface) -> Array:
    """Single pixels below everything around them.

    Parameters
    ----------
    surface
        The image.

    Returns
    -------
    index
        ``(n,)`` indices into the raveled `Surface.flux`: more than 5 sigma below the background,
        and below the lowest of the eight neighbours by 4 sigma.
    """
    flux, at = surface.flux.ravel(), surface.low
    at = at[flux[at] < -BRIGHT * np.sqrt(surface.variance_at(at))]
    lowest = np.min(
        [flux[at + j * surface.width + i] for j, i in _AROUND], axis=0, initial=math.inf
    )
    with np.errstate(invalid="ignore"):
        below = flux[at] < lowest - 4 * np.sqrt(surface.variance_at(at))
    result: Array = at[below]
    return result
