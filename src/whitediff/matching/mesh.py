"""Structure of a difference's background that no polynomial follows: fringes, steps, ghosts.

Steps between amplifiers are found in the profiles of columns and rows.  The rest is predicted from
the means of small blocks by a Wiener filter, whose power spectrum is measured on the same means.
Fringes fill a small part of the frequencies, and only there anything is subtracted: a point source,
which has power at all frequencies, loses next to nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics.compression import cell_means, interpolated_cells
from ..numerics.planes import filled
from ..numerics.polynomials import chebyshev_products, chebyshev_terms
from ..numerics.profiles import FWHM_TO_SIGMA
from ..numerics.stats import robust_sigma
from ..numerics.steps import ABOUT, steps_in
from ..numerics.threads import in_threads

__all__ = ["Mesh", "common_structure", "fit_mesh", "has_structure"]

type Array = npt.NDArray[Any]

_BLOCK = 8
_LEAST_FREE = 0.25
"""Least share of free pixels in a block for its mean to count."""
_FEWEST_BLOCKS = 100
_ROUNDS = 3
_MASKED = 4.0
"""Height of a source, in scatters of the image filtered with the PSF."""
_GROWTH, _BRIGHT_GROWTH, _BRIGHT = 0.7, 1.5, 20.0
"""Full widths of the PSF by which pixels of sources, and of bright sources, are grown; and height
of a bright source, in scatters."""
_AROUND = 4.0
"""Width, in sigmas of the PSF, of the Gaussian that gives the level on which a source stands."""
_CELLS_IN_SIGMA = 3
_SAMPLE = 200_000
_PADDING = 24
"""Blocks around the frame, so that its opposite edges do not see each other."""
_TAPERED = 0.5
"""Share of each side of the frame over which the window of a periodogram rises and falls."""
_INDEPENDENT = 0.6
"""Share of a periodogram's frequencies that are independent with that window."""
_SMOOTHED = 3
"""Frequencies over which a power spectrum is averaged, in each direction."""
_EXCESS = 5.0
"""Errors of the noise's power by which the power of a structure exceeds it."""
_MOST_ITERATIONS, _TOLERANCE = 60, 1e-3
_FOLDS = 5
_EVIDENCE, _LEAST_EVIDENCE = 10.0, 4.0
"""Gain of χ² in blocks left out, in its errors, for a structure to be believed, and to be looked
for."""
_CLEAR_EXCESS = 25.0
"""Errors of the noise's power by which noise does not exceed it at any frequency."""
_LEAST_PROFILE = 0.1
"""Least share of free pixels in a row or column for its mean to count."""
_STEP_PARTS = (1, 2, 4)
"""Numbers of equal parts of the frame in which steps are sought, besides the parts between known
steps."""
_PLANES_ORDER = 2


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Structure of a background beyond polynomials.

    Attributes
    ----------
    image
        ``(ny, nx)`` float32.
    rows, columns
        First rows and columns beyond steps.
    amplitude
        Standard deviation over the frame, in a pixel's noise.
    loss
        Share of its flux that a point source loses if it is too faint to be masked.
    """

    image: Array
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    amplitude: float
    loss: float


def has_structure(difference: Array, free: Array, start: Array) -> bool:
    """Whether the means of blocks have more power than noise at any frequency.

    Parameters
    ----------
    difference, free, start
        As for `fit_mesh`.

    Returns
    -------
    has_structure
        If False, `fit_mesh` finds no structure.

    Notes
    -----
    Among so many frequencies, noise alone exceeds 5 errors at times.  Up to 25 errors, therefore,
    each half of the blocks has to predict the other, or a step has to be seen.
    """
    means = _Means.of(difference, free, start)
    if means is None:
        return False
    excess = _Spectrum.of(means.mean, means.weight > 0).largest_excess
    if not _EXCESS < excess < _CLEAR_EXCESS:
        return excess >= _CLEAR_EXCESS
    if _predicts(means, folds=2, evidence=_LEAST_EVIDENCE):
        return True
    free = free & np.isfinite(difference)
    difference = _less(difference, free, start, slice(None))
    return any(_find_steps(difference, free))


def common_structure(
    first: tuple[Array, Array, Array], second: tuple[Array, Array, Array]
) -> float:
    """Correlation of the structure that two images have between their sources.

    Parameters
    ----------
    first, second
        ``(image, free, start)`` of each, as for `fit_mesh`.

    Returns
    -------
    correlation
        Correlation of the means of blocks, with the noise subtracted from their variances; 0 if
        one image has no structure.
    """
    means = [found for each in (first, second) if (found := _Means.of(*each)) is not None]
    if len(means) < 2:
        return 0.0
    both = (means[0].weight > 0) & (means[1].weight > 0)
    if both.sum() < _FEWEST_BLOCKS:
        return 0.0
    values = [each.mean[both] - each.mean[both].mean() for each in means]
    power = [
        float((value**2).mean() - (1 / each.weight[both]).mean())
        for value, each in zip(values, means, strict=True)
    ]
    if min(power) <= 0:
        return 0.0
    return float((values[0] * values[1]).mean()) / math.sqrt(power[0] * power[1])


def fit_mesh(
    difference: Array, free: Array, fwhm: float, *, start: Array, always: bool = False
) -> Mesh | None:
    """Find the structure that a difference has between its sources.

    Parameters
    ----------
    difference
        ``(ny, nx)``; the noise need not be white.
    free
        ``(ny, nx)`` boolean: source-free pixels; those that are not finite do not count.
    fwhm
        Full width at half maximum of the PSF, pixels: unmasked sources are found with a Gaussian
        of that width.
    start
        ``(m, n)`` coefficients of polynomials that are subtracted first, as from
        `whitediff.matching.background.fit_background`.
    always
        Use the filter's prediction even where blocks left out do not ask for it.

    Returns
    -------
    mesh
        `Mesh`, without these polynomials; None if there is no structure, or too little of the
        frame to tell.

    Notes
    -----
    Steps: at every row and column, a parabola and a step within 48 pixels, at most an eighth of the
    frame; a step counts beyond 8 errors if a polynomial does not describe it.  Steps are sought
    across the frame, in halves and quarters of it, and from one step to the next.  Each rectangle
    between them gets a plane, and all together a polynomial of order 2.

    Filter: the means m of blocks, with weights W, are a field of power S plus noise.  The field is
    √S x, (1 + √S W √S) x = √S W m (Rybicki & Press 1992, ApJ 398, 169, sect. 2), solved by
    conjugate gradients.  S comes from the periodogram of the means, smoothed over 3 × 3
    frequencies: its excess over the noise, which is the median of the upper frequencies, where this
    exceeds 5 errors.  S is estimated a second time with the gaps filled.  The filter is used if it
    predicts fifths of the blocks from the others: if χ² falls by ten times √(Σ W prediction²).  The
    averaging over a block is undone, and the field is continued between the blocks by its Fourier
    series.

    Three rounds are made, each without the sources that the round before shows: pixels beyond 4
    scatters of the image filtered with the PSF.  Else a tenth of faint sources' flux would be lost.
    """
    if not (always or has_structure(difference, free, start)):
        return None
    free = free & np.isfinite(difference)
    difference = _less(difference, free, start, slice(None))
    structure = _smooth(difference, free)
    means: _Means | None = None
    loss, filtered = 0.0, always
    for turn in range(_ROUNDS + 1):
        # At first nothing is masked: the brighter side of a step would look like a source.
        use = free & ~_has_source(difference - structure, free, fwhm) if turn else free
        rows, columns = _find_steps(np.where(use, difference, structure), use)
        if not turn and not rows and not columns:
            # Without steps, the smoothed start is already the filter's prediction.
            continue
        structure = _steps(difference, use, rows, columns)
        means = _Means.of(difference - structure, use)
        if means is None:
            return None
        field = _Field.of(means)
        if turn == 1 and field is not None and not always:
            filtered = _predicts(means)
        if turn and not filtered and not rows and not columns:
            return None
        if (filtered or not turn) and field is not None:
            structure += field.image(means, difference.shape)
            loss = field.loss(means, fwhm)
    assert means is not None
    amplitude = float(structure.std(dtype=np.float64)) / math.sqrt(means.pixel_variance)
    return Mesh(structure, tuple(rows), tuple(columns), amplitude, loss)


def _smooth(difference: Array, free: Array) -> Array:
    """All pixels, missing ones included, as predicted from the means of blocks."""
    means = _Means.of(difference, free)
    field = None if means is None else _Field.of(means)
    if means is None or field is None:
        return np.zeros_like(difference)
    return field.image(means, difference.shape)


@dataclasses.dataclass(frozen=True)
class _Means:
    """Means of blocks and their inverse variances, 0 where too little is left of a block."""

    mean: Array
    weight: Array
    pixel_variance: float
    """Variance of a block's mean times its number of pixels: a pixel's variance in white noise."""

    @classmethod
    def of(cls, image: Array, free: Array, start: Array | None = None) -> _Means | None:
        rows, columns = (n // _BLOCK for n in image.shape)
        count, total = np.zeros((2, rows, columns))
        width = columns * _BLOCK
        # One row of blocks at a time, to save memory.
        for row in range(rows):
            strip = slice(row * _BLOCK, (row + 1) * _BLOCK)
            use = free[strip] & np.isfinite(image[strip])
            values = _less(image, use, start, strip)[:, :width].sum(axis=0)
            total[row] = values.reshape(-1, _BLOCK).sum(axis=1)
            count[row] = use[:, :width].sum(axis=0).reshape(-1, _BLOCK).sum(axis=1)
        good = count >= _LEAST_FREE * _BLOCK**2
        if good.sum() < _FEWEST_BLOCKS:
            return None
        mean = np.where(good, total / np.maximum(count, 1), 0)
        count[~good] = 0
        mean[good] -= np.average(mean[good], weights=count[good])
        variance = _noise_of(mean, count)
        return None if not variance > 0 else cls(mean, count / variance, variance)

    def without(self, out: Array) -> _Means:
        """Means in which some blocks do not count."""
        return _Means(
            np.where(out, 0, self.mean), np.where(out, 0, self.weight), self.pixel_variance
        )


def _less(image: Array, free: Array, start: Array | None, rows: slice) -> Array:
    """Some rows of an image less polynomials, float32; zero where they are not free."""
    values = image[rows]
    if start is not None and start.any():
        (ny, nx), largest = image.shape, max(start.shape) - 1
        v = np.polynomial.chebyshev.chebvander((2 * np.arange(ny)[rows] + 1) / ny - 1, largest)
        square = np.zeros((largest + 1, largest + 1))
        square[: start.shape[0], : start.shape[1]] = start
        values = values - (v @ square).astype(np.float32) @ _across(nx, largest)
    result: Array = np.where(free, values, 0).astype(np.float32, copy=False)
    return result


@functools.lru_cache(maxsize=8)
def _across(nx: int, order: int) -> Array:
    """Chebyshev polynomials along a row, ``(order + 1, nx)`` float32."""
    u = np.polynomial.chebyshev.chebvander((2 * np.arange(nx) + 1) / nx - 1, order)
    return u.T.astype(np.float32)


def _noise_of(mean: Array, count: Array) -> float:
    """Noise per pixel from differences in both directions, in which smooth structure cancels."""

    def squares(values: Array, signs: tuple[int, int, int]) -> Array:
        parts = (values[1:, 1:], values[:-1, 1:], values[1:, :-1], values[:-1, :-1])
        a, b, c = signs
        result: Array = parts[0] + a * parts[1] + b * parts[2] + c * parts[3]
        return result

    with np.errstate(divide="ignore"):
        width = squares(1 / count, (1, 1, 1))
    known = np.isfinite(width)
    if known.sum() < _FEWEST_BLOCKS // 2:
        return 0.0
    return robust_sigma(squares(mean, (-1, -1, 1))[known] / np.sqrt(width[known])) ** 2


def _tapered(n: int) -> Array:
    """Cosine-tapered window (Tukey), without the zeros at its ends."""
    at = np.arange(1, n + 1) / (n + 1)
    edge = np.minimum(1, 2 * np.minimum(at, 1 - at) / _TAPERED)
    window: Array = 0.5 * (1 - np.cos(np.pi * edge))
    return window


@dataclasses.dataclass(frozen=True)
class _Spectrum:
    """Power of block means by frequency, on a grid larger than the frame."""

    power: Array
    noise: float
    error: float
    """Relative error of the noise's power at one frequency."""

    @classmethod
    def of(cls, mean: Array, known: Array) -> _Spectrum:
        first, second = (_tapered(n) for n in mean.shape)
        window = np.multiply.outer(first, second) * known
        ny, nx = (scipy.fft.next_fast_len(n + _PADDING, real=True) for n in mean.shape)
        power = np.abs(scipy.fft.fft2(mean * window, (ny, nx))) ** 2 / (window**2).sum()
        power = scipy.ndimage.uniform_filter(power, _SMOOTHED, mode="wrap")
        frequencies = (np.abs(scipy.fft.fftfreq(n)) for n in (ny, nx))
        upper = np.maximum.outer(*frequencies) > 0.25
        independent = max(1.0, _INDEPENDENT * _SMOOTHED**2 * mean.size / (ny * nx))
        return cls(power, float(np.median(power[upper])), 1 / math.sqrt(independent))

    @property
    def excess(self) -> Array:
        """Power beyond the noise's, where it is significant."""
        above = self.power > self.noise * (1 + _EXCESS * self.error)
        return np.where(above, self.power - self.noise, 0)

    @property
    def largest_excess(self) -> float:
        """Errors by which the largest power exceeds the noise's."""
        return float(self.power.max() / self.noise - 1) / self.error

    @property
    def has_structure(self) -> bool:
        """Whether any frequency has significant power beyond the noise's."""
        return self.largest_excess > _EXCESS


@dataclasses.dataclass(frozen=True)
class _Field:
    """A random field on a torus that holds the frame."""

    root: Array
    """Root of the power of its block means at every frequency."""

    @classmethod
    def of(cls, means: _Means) -> _Field | None:
        known = means.weight > 0
        spectrum = _Spectrum.of(means.mean, known)
        if not spectrum.has_structure:
            return None
        field = cls(np.sqrt(spectrum.excess))
        if known.all():
            return field
        filled = np.where(known, means.mean, field.at_blocks(means))
        spectrum = _Spectrum.of(filled, np.ones_like(known))
        return cls(np.sqrt(spectrum.excess)) if spectrum.has_structure else field

    def _amplitudes(self, means: _Means) -> Array:
        """Fourier transform of the most likely field given the means, half of the frequencies."""
        rows, columns = means.mean.shape
        shape = self.root.shape
        root = self.root[:, : shape[1] // 2 + 1]
        mean, weight = np.zeros((2, *shape))
        mean[:rows, :columns], weight[:rows, :columns] = means.mean, means.weight

        def coloured(values: Array) -> Array:
            result: Array = scipy.fft.irfft2(scipy.fft.rfft2(values) * root, shape)
            return result

        left = coloured(weight * mean)
        solution, direction = np.zeros_like(left), left
        size = enough = float((left**2).sum())
        for _ in range(_MOST_ITERATIONS):
            if size <= _TOLERANCE**2 * enough:
                break
            product = direction + coloured(weight * coloured(direction))
            step = size / float((direction * product).sum())
            solution = solution + step * direction
            left = left - step * product
            size, before = float((left**2).sum()), size
            direction = left + size / before * direction
        result: Array = scipy.fft.rfft2(solution) * root
        return result

    def at_blocks(self, means: _Means) -> Array:
        """The field's means over the blocks."""
        rows, columns = means.mean.shape
        whole = scipy.fft.irfft2(self._amplitudes(means), self.root.shape)
        result: Array = whole[:rows, :columns]
        return result

    def image(self, means: _Means, shape: tuple[int, ...]) -> Array:
        """The field at all pixels, float32."""
        amplitudes = self._amplitudes(means)
        ny, nx = self.root.shape
        whole = (_BLOCK * ny, _BLOCK * nx)
        pixels = (np.arange(_BLOCK) - (_BLOCK - 1) / 2) / _BLOCK
        for axis, frequency in enumerate((scipy.fft.fftfreq(ny), scipy.fft.rfftfreq(nx))):
            response = np.cos(2 * np.pi * np.outer(frequency, pixels)).mean(axis=1)
            # The highest frequency is left out: blocks do not determine its phase.
            response[np.abs(frequency) == 0.5] = np.inf
            to_pixels = np.exp(2j * np.pi * frequency * pixels[0]) / response
            amplitudes = amplitudes * np.expand_dims(to_pixels, 1 - axis)
        half = np.zeros((whole[0], whole[1] // 2 + 1), np.complex64)
        order = np.rint(scipy.fft.fftfreq(ny) * ny).astype(int)
        half[order, : nx // 2 + 1] = amplitudes * _BLOCK**2
        result: Array = scipy.fft.irfft2(half, whole)[: shape[0], : shape[1]]
        return result

    def loss(self, means: _Means, fwhm: float) -> float:
        """Share of a point source's flux that the field would take away."""
        noise = 1 / float(np.median(means.weight[means.weight > 0]))
        gain = self.root**2 / (self.root**2 + noise)
        sigma = FWHM_TO_SIGMA * fwhm
        first, second = (
            np.exp(-((2 * np.pi * scipy.fft.fftfreq(n) / _BLOCK * sigma) ** 2)) for n in gain.shape
        )
        within = float((np.multiply.outer(first, second) * gain).mean()) / _BLOCK**2
        return within * 4 * np.pi * sigma**2


def _predicts(means: _Means, *, folds: int = _FOLDS, evidence: float = _EVIDENCE) -> bool:
    """Whether a field fitted to the other blocks predicts the blocks that are left out."""
    # A fixed seed: the same image gives the same result.
    fold = np.random.default_rng(0).integers(folds, size=means.mean.shape)

    def tried(each: int) -> tuple[float, float]:
        out = fold == each
        others = means.without(out)
        field = _Field.of(others)
        if field is None:
            return 0.0, 0.0
        predicted = np.where(out, field.at_blocks(others), 0)
        gain = float((means.weight * predicted * (2 * means.mean - predicted)).sum())
        return gain, float((means.weight * predicted**2).sum())

    gain, square = np.sum(in_threads(tried, range(folds)), axis=0)
    return bool(gain > evidence * math.sqrt(square))


def _has_source(image: Array, free: Array, fwhm: float) -> Array:
    """Pixels near those that exceed the scatter of the image filtered with a Gaussian."""
    sigma = FWHM_TO_SIGMA * fwhm
    shown = np.where(free, image, np.float32(0)).astype(np.float32, copy=False)
    light, seen = in_threads(
        lambda values: scipy.ndimage.gaussian_filter(values, sigma, mode="constant", truncate=3),
        (shown, free.astype(np.float32)),
    )
    np.maximum(seen, 1e-2, out=seen)
    light /= seen
    # Surroundings about as bright as the source are background.
    light -= _level_around(image, free, _AROUND * sigma)
    light *= np.sqrt(seen, out=seen)
    values = light[free]
    values = values[:: max(1, values.size // _SAMPLE)]
    scatter = robust_sigma(values)
    light -= np.float32(np.median(values))
    height = np.abs(light, out=light)
    found = _near(height > _MASKED * scatter, _GROWTH * fwhm)
    bright = height > _BRIGHT * scatter
    return found | _near(bright, _BRIGHT_GROWTH * fwhm) if bright.any() else found


def _level_around(image: Array, free: Array, sigma: float) -> Array:
    """Mean of the free pixels around each pixel, with Gaussian weights wider than the cells."""
    cell = max(1, int(sigma / _CELLS_IN_SIGMA))
    share = cell_means(free, np.ones_like(free), cell)
    sums = np.where(share > 0, cell_means(image, free, cell), 0) * share
    sums, share = (
        scipy.ndimage.gaussian_filter(values, sigma / cell, mode="constant", truncate=3)
        for values in (sums, share)
    )
    level = (sums / np.maximum(share, 1e-2)).astype(np.float32)
    ny, nx = image.shape

    def work(rows: slice) -> Array:
        return interpolated_cells(level, cell, rows, slice(0, nx))

    return filled((ny, nx), np.float32, work)


def _near(marked: Array, reach: float) -> Array:
    """Pixels within a distance of marked ones."""
    result = marked.copy()
    ny, nx = marked.shape
    # Outer pixels suffice: all that is near inner ones is marked, or near outer ones.
    outer = marked & ~scipy.ndimage.binary_erosion(marked, border_value=1)
    row, column = np.nonzero(outer)
    half = int(reach)
    for dy in range(-half, half + 1):
        across = math.isqrt(int(reach**2 - dy**2))
        at = row + dy
        inside = (at >= 0) & (at < ny)
        for dx in range(-across, across + 1):
            beside = column + dx
            ok = inside & (beside >= 0) & (beside < nx)
            result[at[ok], beside[ok]] = True
    return result


def _find_steps(image: Array, free: Array) -> tuple[list[int], list[int]]:
    """First rows and columns beyond steps, across the frame or from one step to the next."""
    rows = _steps_along(image, free, [])
    columns = _steps_along(image.T, free.T, rows)
    return _steps_along(image, free, columns), columns


def _steps_along(image: Array, free: Array, across: list[int]) -> list[int]:
    """First rows beyond steps: across all columns, across parts, or between the given columns.

    Parts are needed since a step that goes up in one and down in another may cancel over all
    columns.
    """
    width = image.shape[1]
    ends = [0, *across, width]
    parts = set(itertools.pairwise(ends))
    for number in _STEP_PARTS:
        parts |= set(itertools.pairwise(np.linspace(0, width, number + 1).astype(int).tolist()))
    found: list[int] = []
    for start, stop in sorted(parts, key=lambda each: each[0] - each[1]):
        part = np.s_[:, start:stop]
        found += [
            place
            for place in _steps_of(image[part], free[part])
            if all(abs(place - other) > ABOUT for other in found)
        ]
    return sorted(found)


def _steps_of(image: Array, free: Array) -> list[int]:
    """First rows beyond steps that go through all columns."""
    known = free.sum(axis=1) > _LEAST_PROFILE * image.shape[1]
    return steps_in(np.where(known, image.mean(axis=1, dtype=np.float64), np.nan))


def _steps(image: Array, free: Array, rows: list[int], columns: list[int]) -> Array:
    """Fit of a polynomial, and of a plane to every rectangle between steps; zero without steps."""
    if not rows and not columns:
        return np.zeros_like(image)
    ny, nx = image.shape
    v, u = ((2 * np.arange(n) + 1) / n - 1 for n in (ny, nx))
    # Blocks that no step crosses.
    starts = [np.unique([*range(0, n, _BLOCK), *at]) for n, at in ((ny, rows), (nx, columns))]

    def sums(values: Array) -> Array:
        by_row = np.add.reduceat(values, starts[0], axis=0, dtype=np.float64)
        result: Array = np.add.reduceat(by_row, starts[1], axis=1)
        return result

    count = sums(free)
    good = count > 0
    root = np.sqrt(count[good])
    value = sums(np.where(free, image, 0))[good] / root
    middle = [
        np.add.reduceat(each, at) / np.diff([*at, len(each)])
        for each, at in zip((v, u), starts, strict=True)
    ]
    which = [
        np.searchsorted(each, at, "right") for each, at in zip((rows, columns), starts, strict=True)
    ]
    at_v, at_u = (each[good] for each in np.meshgrid(*middle, indexing="ij"))
    of_row, of_column = (each[good] for each in np.meshgrid(*which, indexing="ij"))
    polynomial = chebyshev_products(_PLANES_ORDER, at_u, at_v)
    rectangles = list(itertools.product(range(len(rows) + 1), range(len(columns) + 1)))
    within = np.stack([(of_row == i) & (of_column == j) for i, j in rectangles], 1)
    plane = np.stack([np.ones_like(at_u), at_u, at_v], 1)
    terms = np.hstack([polynomial, (within[:, :, None] * plane[:, None]).reshape(len(at_u), -1)])
    # Equal planes are a polynomial, too, so that the solution is not unique: take the smallest.
    solution = np.linalg.lstsq(terms * root[:, None], value, rcond=1e-10)[0]
    coefficients = np.zeros((_PLANES_ORDER + 1, _PLANES_ORDER + 1))
    common, planes = np.split(solution, [polynomial.shape[1]])
    for (p, q), each in zip(chebyshev_terms(_PLANES_ORDER), common, strict=True):
        coefficients[p, q] = each
    result: Array = np.polynomial.chebyshev.chebgrid2d(v, u, coefficients).astype(np.float32)
    edges = [0, *rows, ny], [0, *columns, nx]
    for (i, j), (level, along_u, along_v) in zip(rectangles, planes.reshape(-1, 3), strict=True):
        part = np.s_[edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]]
        result[part] += (level + along_u * u[None, part[1]] + along_v * v[part[0], None]).astype(
            np.float32
        )
    return result
