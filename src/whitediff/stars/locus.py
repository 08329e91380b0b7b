"""Stars among sources: they are alike, and nothing is narrower."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

__all__ = ["SEARCHED", "Locus", "Shapes", "find_locus", "windowed_shapes"]

type Array = npt.NDArray[Any]

SEARCHED = 100
"""Number of most significant sources in which stars are sought: too many faint galaxies cannot be
distinguished from stars."""
_TOLERANCE = np.array([0.025, 0.02, 0.02])
"""Scatter of stars in ln(size) and the two ellipticities, beyond their noise."""
_SLOPE = np.array([0.15, 0.05, 0.05])
"""Typical change of these from the middle of the frame to its edge, linear in x or y."""
_CURVE = np.array([0.1, 0.03, 0.03])
"""The same, quadratic and equal in all directions: most cameras are sharpest in the middle."""
_CHANGES = np.stack([_SLOPE, _SLOPE, _CURVE])
"""``(3, 3)``: changes by term, without the constant, and by shape parameter."""
_RANGE = (0.15, 1.0)
"""Limits of the range of ln(size) between a star and a source that fills the window; for a window
of the star's width the range is ln 2."""
_ELLIPTICITY = 0.4
"""Scatter of the ellipticities of sources that fill the window; narrower sources have less."""
_OTHERS = 0.02
"""Share of sources that may be anything, also narrower than a star."""
_OTHER_DENSITY = 0.5
_FIRST_PART = 0.3
_LEAST_PROBABILITY = 1e-9
_EXPECTATIONS = 6
_REFINEMENTS = 8
_ENOUGH_FOR_SLOPES = 10
_TRIED, _NARROW = 150, 0.6
"""Number of triples and of quadruples of sources through which surfaces are tried, and share of the
sources, the narrowest, from which they are drawn."""
_LEAST_TRIANGLE, _LEAST_SPAN = 0.3, 0.1
"""Smallest determinants of the terms at three and four sources that determine a surface.  For three
it is twice the area of their triangle, in a frame of area 4."""
_FEWEST = 3
_PRECISE = 0.03
"""Largest error of ln(size) of sources whose likeness is judged."""
_SCATTERS, _AROUND = (0.006, 0.025), 0.03
"""Scatter of ln(size) of stars, and of galaxies within the tolerance, alone and among stars."""
_OFFSETS = np.linspace(-0.06, 0.06, 61)
"""Offsets of ln(size) from the stars found that are tried."""
_STAR_PARTS = (0.3, 0.5, 0.7, 0.9, 1.0)
"""Shares of true stars among the stars found that are tried."""
_LEAST_DENSITY = 1e-12
_CENTRINGS = 4
_REACH = 3.0
"""Half side of the stamps, in widths of the window."""
_MOST_BAD = 0.05
"""Largest share of the window on bad pixels."""
_HOT = 0.8
"""Share of the light of nine pixels that the brightest pixel of a star never reaches."""
_NO_NOISE = 1e10


class Shapes(NamedTuple):
    """Sizes and ellipticities of sources through a Gaussian window.

    ``value`` and ``error`` are ``(n, 3)``: ln(size), which is 0 for a source that fills the window,
    and the ellipticities along the axes and the diagonals.  ``known`` is ``(n,)`` boolean: sources
    that could be measured.  ``signal_to_noise`` is ``(n,)``, for the light through the window; 0 if
    unknown.
    """

    value: Array
    error: Array
    known: Array
    signal_to_noise: Array


@dataclasses.dataclass(frozen=True)
class Locus:
    """Result of a search for stars among sources.

    Attributes
    ----------
    probability
        ``(n,)`` probability of being a star.
    number
        Number of stars among the most significant 100 sources: sum of their probabilities.
    evidence
        Logarithm of the likelihood with these stars over the largest likelihood without any.
    alike
        Logarithm of the likelihood that sizes of the best measured stars differ as those of stars
        do, over the likelihood that they differ as those of galaxies that happen to be alike.
    size
        ``(n_images,)`` ln(size) of the stars in the middle of the frame; 0 for stars that fill the
        window.
    """

    probability: Array
    number: float
    evidence: float
    alike: float
    size: Array


def windowed_shapes(
    image: Array, noise: Array, bad: Array, x: Array, y: Array, *, sigma: float
) -> Shapes:
    """Measure the shapes of sources through a Gaussian window, around their own centroids.

    Parameters
    ----------
    image, noise
        ``(ny, nx)`` image without background, and standard deviations.
    bad
        ``(ny, nx)`` boolean: pixels without a measurement.
    x, y
        ``(n,)`` 0-based positions, good to a pixel.
    sigma
        Width of the window, pixels; from 1.2 on, a star's position within its pixel does not
        matter.

    Returns
    -------
    shapes
        `Shapes`; unknown for sources that are cut off, have bad pixels, have a centroid far from
        the given position, or are a single pixel.

    Notes
    -----
    Second moments measure a star's width with the least noise through a window of that width.
    """
    n, half = len(x), math.ceil(_REACH * sigma)
    ny, nx = image.shape
    column, row = np.round(x).astype(int), np.round(y).astype(int)
    known = (column >= half) & (column < nx - half) & (row >= half) & (row < ny - half)
    value, error = np.zeros((n, 3)), np.full((n, 3), np.inf)
    ratio = np.zeros(n)
    inside = np.flatnonzero(known)
    column, row = column[inside], row[inside]
    offset = np.arange(-half, half + 1)
    pixels = (row[:, None] + offset)[:, :, None], (column[:, None] + offset)[:, None, :]
    data = image[pixels].astype(np.float64)
    variance = np.minimum(noise[pixels].astype(np.float64), _NO_NOISE) ** 2
    dx, dy = x[inside] - column, y[inside] - row
    begun = np.stack([dx, dy])
    for _ in range(_CENTRINGS):
        u, v = offset - dx[:, None], offset - dy[:, None]
        across, along = np.exp(-0.5 * (u / sigma) ** 2), np.exp(-0.5 * (v / sigma) ** 2)
        by_column = (along[:, None, :] @ data)[:, 0]
        by_row = (data @ across[:, :, None])[:, :, 0]
        total = (by_row * along).sum(1)
        total = np.where(total > 0, total, np.inf)
        # The window halves the measured displacement of a source of its own width.
        dx = dx + (2 * (by_column * across * u).sum(1) / total).clip(-1, 1)
        dy = dy + (2 * (by_row * along * v).sum(1) / total).clip(-1, 1)
    good = np.hypot(*(np.stack([dx, dy]) - begun)) < sigma + 1
    u, v = (offset - dx[:, None])[:, None, :], (offset - dy[:, None])[:, :, None]
    window = np.exp(-0.5 * (u**2 + v**2) / sigma**2)
    good &= (window * bad[pixels]).sum((1, 2)) <= _MOST_BAD * window.sum((1, 2))
    nine = data[:, half - 1 : half + 2, half - 1 : half + 2]
    good &= nine.max((1, 2)) < _HOT * nine.sum((1, 2))
    light = data * window
    r2, plus, cross = u**2 + v**2, u**2 - v**2, 2 * u * v
    flux, size = light.sum((1, 2)), (light * r2).sum((1, 2))
    good &= (flux > 0) & (size > 0)
    flux, size = (np.where(good, each, 1.0)[:, None, None] for each in (flux, size))
    weight = variance * (window / size) ** 2
    columns = [np.log(size / flux / (2 * sigma**2))[:, 0, 0]]
    columns += [(light * each / size).sum((1, 2)) for each in (plus, cross)]
    value[inside] = np.stack(columns, 1)
    # Derivatives of the logarithm and the ellipticities by a pixel, up to a common weight.
    changes = [r2 - size / flux]
    changes += [
        each - own[:, None, None] * r2 for each, own in zip((plus, cross), columns[1:], strict=True)
    ]
    error[inside] = np.sqrt(np.stack([(weight * each**2).sum((1, 2)) for each in changes], 1))
    ratio[inside] = np.where(good, flux[:, 0, 0] / np.sqrt((variance * window**2).sum((1, 2))), 0)
    known[inside] = good
    return Shapes(value, error, known, ratio)


def find_locus(
    shapes: tuple[Shapes, ...], x: Array, y: Array, rank: Array, *, slopes: bool = True
) -> Locus:
    """Find the stars among sources.

    Parameters
    ----------
    shapes
        Shapes of the same n sources in one or more images.
    x, y
        ``(n,)`` positions, −1 to 1 over the frame.
    rank
        ``(n,)`` significance of the sources.
    slopes
        Also try shapes of stars that change over the frame.

    Returns
    -------
    locus
        `Locus`.

    Notes
    -----
    The model has three kinds of sources.  Stars are alike to a few percent, or change over the
    frame, linearly and with the squared distance from its middle.  Galaxies are wider by any
    amount, and the wider the less alike.  A few sources are anything.  As the shape of stars, the
    search tries the shape of every bright source and many surfaces through three or four of
    them.  If the stars of one of two images are alike, it also tries how these change in the other.
    The likeliest is refined.  Galaxies that happen to be alike are not the narrowest sources, and
    sources that happen to be narrow are not alike.
    """
    probability = np.zeros(len(rank))
    known = np.flatnonzero(np.logical_and.reduce([each.known for each in shapes]))
    known = known[np.argsort(-rank[known], kind="stable")]
    if len(known) < _FEWEST:
        return Locus(probability, 0.0, 0.0, 0.0, np.zeros(len(shapes)))
    value = np.stack([each.value[known] for each in shapes], 1)
    error = np.stack([each.error[known] for each in shapes], 1)
    x, y = x[known], y[known]
    terms = np.column_stack([np.ones(len(known)), x, y, x**2 + y**2])
    first = np.s_[:SEARCHED]
    searched = value[first], error[first], terms[first]
    plane, none = _likeliest(*searched, slopes=slopes)
    likelihood, stars, _ = _mixture(plane, *searched)
    alike = _alike(plane[0], stars[0] > 0.5, *searched)
    for part in np.array_split(np.arange(len(known)), math.ceil(len(known) / SEARCHED)):
        # In parts, because the share of galaxies grows towards fainter sources.
        probability[known[part]] = _mixture(plane, value[part], error[part], terms[part])[1][0]
    evidence = float(likelihood[0]) - none
    return Locus(probability, float(stars.sum()), evidence, alike, plane[0, 0, :, 0])


def _alike(plane: Array, which: Array, value: Array, error: Array, terms: Array) -> float:
    """Logarithm of the likelihood ratio of sizes: stars and some galaxies over galaxies alone.

    The tolerance of the search admits both: among very many galaxies some are alike to this
    tolerance, but not more closely.
    """
    found = 0.0
    for image in range(value.shape[1]):
        own = which & (error[:, image, 0] < _PRECISE)
        off = value[own, image, 0] - terms[own] @ plane[:, image, 0]
        noise = error[own, image, 0] ** 2
        if len(off) < _FEWEST:
            continue
        # Each kind may be centred anywhere near the stars found.
        stars, galaxies = (_normal(off - _OFFSETS[:, None], noise + s**2) for s in _SCATTERS)
        others = _normal(off, noise + _AROUND**2)
        mixed = [np.log(part * stars + (1 - part) * others).sum(1).max() for part in _STAR_PARTS]
        found += float(max(mixed) - np.log(galaxies).sum(1).max())
    return found


def _normal(deviation: Array, variance: Array) -> Array:
    """Density of a normal distribution, with a floor that keeps logarithms finite."""
    density: Array = np.exp(-0.5 * deviation**2 / variance) / np.sqrt(2 * np.pi * variance)
    return density + _LEAST_DENSITY


def _likeliest(value: Array, error: Array, terms: Array, *, slopes: bool) -> tuple[Array, float]:
    """Likeliest shape of stars, ``(1, 4, n_images, 3)``, and log-likelihood without any star."""
    planes, cost = _planes(value, terms, slopes=slopes)
    images = value.shape[1]
    for image in range(images) if slopes and images > 1 else ():
        # Stars found by their likeness in one image show how stars change in the other.
        only = np.s_[:, [image]]
        alike, _ = _likeliest(value[only], error[only], terms, slopes=False)
        _, stars, _ = _mixture(alike, value[only], error[only], terms)
        offered, freedom = _refitted(stars[0], value, error, terms)
        planes = np.concatenate([planes, offered[None]])
        cost = np.append(cost, _cost(offered[None]) + freedom)
    likelihood, _, without = _mixture(planes, value, error, terms)
    none = float(without[cost == 0].max())
    plane = planes[[np.argmax(likelihood - cost)]]
    for _ in range(_REFINEMENTS):
        _, stars, _ = _mixture(plane, value, error, terms)
        plane = _refitted(stars[0], value, error, terms)[0][None]
    return plane, none


def _cost(planes: Array) -> Array:
    """Penalties of shapes that change over the frame, ``(k,)`` logarithms of likelihoods."""
    cost: Array = 0.5 * ((planes[:, 1:] / _CHANGES[:, None]) ** 2).sum((1, 2, 3))
    return cost


def _planes(value: Array, terms: Array, *, slopes: bool) -> tuple[Array, Array]:
    """Shapes to try for stars, ``(k, 4, n_images, 3)`` by term, and their penalties."""
    n, images = value.shape[:2]
    constant = np.zeros((n, 4, images, 3))
    constant[:, 0] = value
    if not slopes or n < _ENOUGH_FOR_SLOPES:
        return constant, np.zeros(n)
    found, costs = [constant], [np.zeros(n)]
    narrow = np.argsort(value[..., 0].mean(1), kind="stable")[: math.ceil(_NARROW * n)]
    for known, least in ((3, _LEAST_TRIANGLE), (4, _LEAST_SPAN)):
        some = narrow[_some(len(narrow), known)]
        some = some[np.abs(np.linalg.det(terms[some, :known])) > least]
        solved = np.linalg.solve(
            terms[some, :known], value[some].reshape(len(some), known, images * 3)
        )
        changing = np.zeros((len(some), 4, images, 3))
        changing[:, :known] = solved.reshape(-1, known, images, 3)
        found.append(changing)
        costs.append(_cost(changing) + math.log(_TRIED * (known - 2)))
    return np.concatenate(found), np.concatenate(costs)


@functools.lru_cache(maxsize=16)
def _some(n: int, size: int) -> Array:
    """Indices of different sources out of n, drawn 150 times: ``(150, size)``."""
    # A copy: the cache would keep the whole array of a view.
    return np.random.default_rng(n).random((_TRIED, n)).argsort(1)[:, :size].copy()


def _mixture(planes: Array, value: Array, error: Array, terms: Array) -> tuple[Array, Array, Array]:
    """Judge k shapes of stars by all sources.

    Returns the logarithms of their likelihoods, ``(k,)``; each source's probability of being such a
    star, ``(k, n)``; and the logarithms of the likelihoods without any star, ``(k,)``.
    """
    k, images = len(planes), value.shape[1]
    expected = (terms @ planes.reshape(k, 4, -1)).reshape(k, len(terms), images, 3)
    # A galaxy differs in all images at once, so images are averaged by their precision.
    variance = error**2 + _TOLERANCE**2
    share = 1 / variance
    variance = 1 / share.sum(1)
    share = share * variance[:, None]
    off = ((value - expected) * share).sum(2)
    star = np.exp(-0.5 * (off**2 / variance).sum(2)) / np.sqrt((2 * np.pi * variance).prod(1))
    sigma = np.sqrt(variance[:, 0])
    stars_own = (expected * share).sum(2)
    widest = np.clip(-stars_own[..., 0], *_RANGE)
    size = off[..., 0] / sigma
    density = scipy.special.ndtr(size) - scipy.special.ndtr(size - widest / sigma)
    # A source that fills the window has its own ellipticity instead of the stars'.
    dilution = np.clip(off[..., 0] / widest, 0, 1)
    spread = (_ELLIPTICITY * dilution) ** 2
    exponent, volume = 0.0, 1.0
    for axis in range(2):
        wide = variance[:, 1 + axis] + spread
        exponent = exponent + (off[..., 1 + axis] + dilution * stars_own[..., 1 + axis]) ** 2 / wide
        volume = volume * wide
    galaxy = density / widest * np.exp(-0.5 * exponent) / (2 * np.pi * np.sqrt(volume))
    other = _OTHERS * _OTHER_DENSITY
    part = np.full((k, 1), _FIRST_PART)
    for _ in range(_EXPECTATIONS):
        stars = part * star
        total = stars + (1 - _OTHERS - part) * galaxy + other
        stars /= total
        part = (1 - _OTHERS) * (stars.sum(1, keepdims=True) + 0.5) / (len(value) + 1)
    without = np.log((1 - _OTHERS) * galaxy + other).sum(1)
    return np.log(total).sum(1), stars, without


def _refitted(stars: Array, value: Array, error: Array, terms: Array) -> tuple[Array, float]:
    """Shape of the stars, ``(4, n_images, 3)``, fitted with their probabilities, and a penalty.

    It changes over the frame if there are enough stars.  The penalty (Occam factor) is half the
    logarithm of the gain in precision of these changes over their prior.
    """
    result, freedom = np.zeros((4, *value.shape[1:])), 0.0
    stars = np.maximum(stars, _LEAST_PROBABILITY)
    if stars.sum() < _ENOUGH_FOR_SLOPES:
        terms = terms[:, :1]
    n_terms = terms.shape[1]
    for image, which in np.ndindex(*value.shape[1:]):
        weight = stars / (error[:, image, which] ** 2 + _TOLERANCE[which] ** 2)
        normal = terms.T @ (terms * weight[:, None])
        prior = np.diag(1 / _CHANGES[: n_terms - 1, which] ** 2)
        normal[1:, 1:] += prior
        known = np.linalg.slogdet(normal[1:, 1:])[1] - np.linalg.slogdet(prior)[1]
        freedom += 0.5 * float(known)
        right = terms.T @ (weight * value[:, image, which])
        result[:n_terms, image, which] = np.linalg.solve(normal, right)
    return result, freedom
