"""Finding sources of both signs in a difference whose noise is white.

The difference is filtered with its PSF, which is optimal for point sources in white noise, and
divided by the noise of the result (Turin 1960; DMTN-006).  Sources are the maxima and minima of
this significance, placed between pixels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError
from ..noise.significance import Significance
from ..numerics import planes
from ..numerics.groups import connected
from ..numerics.sinc import REACH, interpolation_weights
from ..numerics.threads import in_threads, scipy_part

__all__ = [
    "Blends",
    "Peaks",
    "Responses",
    "deblended",
    "expected_peaks",
    "find_peaks",
    "noise_curvature",
    "response_curvature",
    "surrounding_level",
    "values_at",
]

type Array = npt.NDArray[Any]

type Sign = Literal["both", "positive", "negative"]

_CANDIDATE = 0.75
"""Pixels beyond this part of the threshold are candidates: the peak between pixels is higher."""

_STEPS = 30
_CONVERGED = 1e-4
_FURTHEST = 1.0
"""Largest number of steps to a peak; step, pixels, that ends them; farthest from the pixel."""
_SAME_PEAK = 0.75
"""Peaks nearer to each other than this, pixels, are the same one."""

_BATCH = 4096
"""Peaks whose surroundings are in memory at a time."""

_MISMATCH = 0.01
"""Part of a source's significance that the error of its PSF may leave around it."""

_AROUND = (2.0, 4.0)
"""Inner and outer radius of a source's surroundings, full widths at half maximum."""
_MOST_AROUND, _LEAST_AROUND = 300, 0.5
"""Pixels of the surroundings that are looked at, about, and the least share that must be known."""
_QUARTILE, _QUARTILE_ERROR, _AROUND_ERRORS = 0.674, 1.36, 5.0
"""Upper quartile of a normal distribution; its error, times the root of the number of values; and
the errors from which an excess counts."""

_LEAST_OVERLAP = 0.5
"""Standard deviations by which a source must change another one to be fitted with it."""


@dataclasses.dataclass(frozen=True)
class Peaks:
    """Maxima and minima of a significance image.

    Attributes
    ----------
    x, y
        ``(n,)`` array coordinates, between pixels: the centre of the first pixel is 0.
    significance
        ``(n,)`` signed, at this place.
    pixel_significance
        ``(n,)`` signed, at the highest pixel.
    noise
        ``(n,)`` `Significance.noise` at this place; 1 if it has none.
    """

    x: Array
    y: Array
    significance: Array
    pixel_significance: Array
    noise: Array

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, which: Array) -> Peaks:
        """Some of the peaks, by a boolean or integer array."""
        return Peaks(*(getattr(self, field.name)[which] for field in dataclasses.fields(self)))


def surrounding_level(found: Significance, peaks: Peaks, fwhm: float) -> Array:
    """Significance of the pixels around peaks that a point source would not give them.

    Parameters
    ----------
    found
        Significance of every pixel.
    peaks
        Peaks.
    fwhm
        Full width at half maximum of the PSF, pixels.

    Returns
    -------
    level
        ``(n,)``, positive for the peak's sign; 0 where noise explains it.

    Notes
    -----
    The upper quartile of the pixels 2 to 4 full widths away, less that of a normal distribution:
    on the edge of an extended source half of the surroundings are as bright as the peak, while
    neighbours fill less.  The level counts from 5 of its errors.
    """
    near, far = (each * fwhm for each in _AROUND)
    grid = np.arange(-math.ceil(far), math.ceil(far) + 1)
    distance = np.hypot(*np.meshgrid(grid, grid, indexing="ij"))
    dy, dx = (
        at[:: max(1, at.size // _MOST_AROUND)]
        for at in np.nonzero((distance >= near) & (distance <= far))
    )
    dy, dx = grid[dy], grid[dx]
    level = np.zeros(len(peaks))
    # Filtered noise is about independent between areas of this size.
    cells = math.pi * (far**2 - near**2) / (math.pi * fwhm**2 / (2 * math.log(2)))
    least = _AROUND_ERRORS * _QUARTILE_ERROR / math.sqrt(cells)
    ny, nx = found.image.shape
    for part in (slice(i, i + _BATCH) for i in range(0, len(peaks), _BATCH)):
        rows = np.rint(peaks.y[part]).astype(int)[:, None] + dy
        columns = np.rint(peaks.x[part]).astype(int)[:, None] + dx
        inside = (rows >= 0) & (rows < ny) & (columns >= 0) & (columns < nx)
        rows, columns = np.clip(rows, 0, ny - 1), np.clip(columns, 0, nx - 1)
        sign = np.sign(peaks.significance[part])[:, None]
        values = np.where(
            inside & found.searched[rows, columns], sign * found.image[rows, columns], np.nan
        )
        known = np.isfinite(values).mean(axis=1) > _LEAST_AROUND
        values[~known] = 0
        level[part] = np.nanpercentile(values, 75, axis=1) - _QUARTILE
    return np.where(level > least, level, 0)


def find_peaks(found: Significance, threshold: float, sign: Sign = "both") -> Peaks:
    """Maxima above a threshold, minima below its negative, placed between pixels.

    Parameters
    ----------
    found
        `Significance`.
    threshold
        Standard deviations; positive.
    sign
        Maxima (positive), minima (negative) or both.

    Returns
    -------
    peaks
        `Peaks`, ordered by row and column: extrema of the filtered image, which is the
        significance times its noise.  The threshold applies to the interpolated significance: the
        highest pixel of a peak is lower by several percent.

    Raises
    ------
    ArgumentError
        If the threshold is not positive.
    """
    if not (math.isfinite(threshold) and threshold > 0):
        raise ArgumentError(f"The threshold must be positive; got {threshold:g}.")
    rows, columns = _candidates(found, _CANDIDATE * threshold, sign)
    batches = [slice(i, i + _BATCH) for i in range(0, len(rows), _BATCH)]
    parts = in_threads(lambda b: _refined(found, rows[b], columns[b]), batches)
    empty = np.zeros(0)
    y, x, value = (
        (np.concatenate([empty, *column]) for column in zip(*parts, strict=True))
        if parts
        else (empty, empty, empty)
    )
    pixel = found.image[rows, columns].astype(np.float64)
    noise = _noise_at(found, x, y)
    value = value / noise
    peaks = Peaks(x, y, value, pixel, noise)
    beyond = (np.abs(value) >= threshold) & (np.sign(value) == np.sign(pixel))
    nearest = tuple(
        np.clip(np.floor(at + 0.5).astype(int), 0, n - 1)
        for at, n in zip((y, x), found.image.shape, strict=True)
    )
    beyond &= found.searched[nearest]
    return _distinct(peaks[beyond])


def _candidates(found: Significance, least: float, sign: Sign) -> tuple[Array, Array]:
    """Pixels beyond a threshold whose eight neighbours are all lower on the filtered image."""
    image = found.image
    ny, nx = image.shape

    def work(rows: slice) -> tuple[Array, Array]:
        part = image[rows]
        beyond = {
            "positive": lambda: part > least,
            "negative": lambda: part < -least,
            "both": lambda: np.abs(part) > least,
        }[sign]()
        row, column = np.nonzero(beyond)
        row += rows.start
        side = np.sign(image[row, column])
        value = side * found.filtered(row, column)
        highest = np.ones(len(row), bool)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if (dy, dx) == (0, 0):
                    continue
                y, x = row + dy, column + dx
                inside = (y >= 0) & (y < ny) & (x >= 0) & (x < nx)
                other = side * found.filtered(np.clip(y, 0, ny - 1), np.clip(x, 0, nx - 1))
                # Of two equal neighbours the first counts.
                first = (dy, dx) < (0, 0)
                highest &= ~inside | ((value > other) if first else (value >= other))
        return row[highest], column[highest]

    parts = planes.each_block(work, image.shape)
    row, column = (np.concatenate(each) for each in zip(*parts, strict=True))
    return row, column


def _noise_at(found: Significance, x: Array, y: Array) -> Array:
    """Noise between pixels, interpolated linearly without pixels that have no measurement."""
    if found.noise is None:
        return np.ones(len(x))
    total, weights = np.zeros((2, len(x)))
    row, column = np.floor(y).astype(int), np.floor(x).astype(int)
    for i in (0, 1):
        for j in (0, 1):
            weight = np.abs(1 - i - (y - row)) * np.abs(1 - j - (x - column))
            ny, nx = found.noise.shape
            noise = found.noise[np.clip(row + i, 0, ny - 1), np.clip(column + j, 0, nx - 1)]
            total += weight * noise
            weights += weight * (noise > 0)
    return np.where(weights > 0, total / np.where(weights > 0, weights, 1), 1.0)


def _refined(found: Significance, rows: Array, columns: Array) -> tuple[Array, Array, Array]:
    """Extrema of the interpolated filtered image near some pixels: y, x and the value."""
    half = REACH + 1
    stamps = _surroundings(found, rows, columns)
    near = stamps[:, half - 1 : half + 2, half - 1 : half + 2]
    yy = near[:, 0, 1] + near[:, 2, 1] - 2 * near[:, 1, 1]
    xx = near[:, 1, 0] + near[:, 1, 2] - 2 * near[:, 1, 1]
    yx = (near[:, 2, 2] + near[:, 0, 0] - near[:, 0, 2] - near[:, 2, 0]) / 4
    determinant = yy * xx - yx**2
    curved = (determinant > 0) & (yy * near[:, 1, 1] < 0)
    dy, dx = np.zeros((2, len(rows)))
    # The pixels' curvature is nearly that of the peak: each step leaves a tenth of the distance.
    active = np.flatnonzero(curved)
    for _ in range(_STEPS):
        if not len(active):
            break
        (wy, sy), (wx, sx) = (interpolation_weights(at[active], half) for at in (dy, dx))
        local = stamps[active]
        across = (local @ wx[:, :, None])[:, :, 0]
        slope_y = np.einsum("ni,ni->n", sy, across)
        slope_x = np.einsum("ni,ni->n", wy, (local @ sx[:, :, None])[:, :, 0])
        h_yy, h_xx, h_yx, scale = (each[active] for each in (yy, xx, yx, determinant))
        step_y = -(h_xx * slope_y - h_yx * slope_x) / scale
        step_x = -(h_yy * slope_x - h_yx * slope_y) / scale
        length = np.maximum(1, np.hypot(step_y, step_x) / 0.5)
        dy[active] = np.clip(dy[active] + step_y / length, -_FURTHEST, _FURTHEST)
        dx[active] = np.clip(dx[active] + step_x / length, -_FURTHEST, _FURTHEST)
        active = active[np.maximum(np.abs(step_y), np.abs(step_x)) >= _CONVERGED]
    value = _between(stamps, dy, dx)
    middle = stamps[:, half, half]
    # At a saddle, or beside masked pixels, interpolation is no use: the pixel itself counts.
    worse = np.sign(middle) * value < np.abs(middle)
    dy, dx, value = (
        np.where(worse, alone, at) for alone, at in ((0, dy), (0, dx), (middle, value))
    )
    return rows + dy, columns + dx, value


def values_at(image: Array, x: Array, y: Array) -> Array:
    """Values of a well-sampled image at positions between its pixels.

    Parameters
    ----------
    image
        ``(ny, nx)``, such as `Significance.image`.
    x, y
        ``(n,)`` array coordinates, on the image.

    Returns
    -------
    values
        ``(n,)``; beyond the frame its edge pixels are repeated.
    """
    row, column = (np.floor(at + 0.5).astype(int) for at in (y, x))
    alone = Significance(image, image != 0)
    return _between(_surroundings(alone, row, column), y - row, x - column)


def _surroundings(found: Significance, rows: Array, columns: Array) -> Array:
    """Filtered pixels that interpolation near some pixels needs; the frame's edge is repeated
    beyond it.
    """
    grid = np.arange(-REACH - 1, REACH + 2)
    y, x = (
        np.clip(at[:, None] + grid, 0, n - 1)
        for at, n in zip((rows, columns), found.image.shape, strict=True)
    )
    return found.filtered(y[:, :, None], x[:, None, :])


def _between(stamps: Array, dy: Array, dx: Array) -> Array:
    """Interpolated values at some distances from the middle pixels of `_surroundings`."""
    (wy, _), (wx, _) = (interpolation_weights(at, REACH + 1) for at in (dy, dx))
    values: Array = np.einsum("ni,ni->n", wy, (stamps @ wx[:, :, None])[:, :, 0])
    return values


def _distinct(peaks: Peaks) -> Peaks:
    """Peaks without those that lie on a higher one of the same sign."""
    if len(peaks) < 2:
        return peaks
    tree = scipy_part("spatial").cKDTree(np.stack([peaks.x, peaks.y], axis=1))
    pairs = tree.query_pairs(_SAME_PEAK, output_type="ndarray")
    if len(pairs) == 0:
        return peaks
    value = peaks.significance
    pairs = pairs[np.sign(value[pairs[:, 0]]) == np.sign(value[pairs[:, 1]])]
    lower = np.where(np.abs(value[pairs[:, 0]]) < np.abs(value[pairs[:, 1]]), *pairs.T)
    keep = np.ones(len(peaks), bool)
    keep[lower] = False
    return peaks[keep]


@dataclasses.dataclass(frozen=True)
class Responses:
    """Images of a point source of unit peak on the significance, at some places of a frame.

    They are `self_response` of the PSF, or a score's PSF over its peak.

    Attributes
    ----------
    images
        ``(n, ry, rx)``, 1 at the origin in the middle.
    x, y
        ``(n,)`` array coordinates of the places; the nearest one counts.
    """

    images: Array
    x: Array
    y: Array

    @property
    def reach(self) -> float:
        """Pixels from the middle to the nearest edge of the images."""
        return float(min(self.images.shape[1:]) // 2)

    def near(self, x: Array, y: Array) -> Array:
        """Index of the place that counts for some positions.

        Parameters
        ----------
        x, y
            ``(m,)`` array coordinates.

        Returns
        -------
        index
            ``(m,)``.
        """
        if len(self.x) == 1:
            return np.zeros(len(x), int)
        tree = scipy_part("spatial").cKDTree(np.stack([self.x, self.y], axis=1))
        return np.asarray(tree.query(np.stack([x, y], axis=1))[1])

    def at(self, x: Array, y: Array, dx: Array, dy: Array) -> Array:
        """Response of sources at offsets from them.

        Parameters
        ----------
        x, y
            ``(m,)`` array coordinates of the sources.
        dx, dy
            ``(m,)`` offsets, pixels.

        Returns
        -------
        response
            ``(m,)``.
        """
        result = np.zeros(len(x))
        which = self.near(x, y)
        for i in np.unique(which):
            use = which == i
            place = [
                at[use] + size // 2
                for at, size in zip((dy, dx), self.images.shape[1:], strict=True)
            ]
            result[use] = scipy.ndimage.map_coordinates(self.images[i], place, order=3)
        return result


@dataclasses.dataclass(frozen=True)
class Blends:
    """Peaks that are sources, and which of them overlap.

    Attributes
    ----------
    peaks
        Peaks that are sources of their own.
    amplitude
        ``(n,)`` significance of each without the others' light.
    group
        ``(n,)`` integers from 0: sources with the same number overlap.
    """

    peaks: Peaks
    amplitude: Array
    group: Array

    def __getitem__(self, which: Array) -> Blends:
        """Some of the sources, by a boolean or integer array."""
        return Blends(self.peaks[which], self.amplitude[which], self.group[which])


def deblended(peaks: Peaks, threshold: float, responses: Responses) -> Blends:
    """Tell peaks that are sources from the rings and shoulders of brighter ones.

    Parameters
    ----------
    peaks
        Peaks of both signs, by `find_peaks`.
    threshold
        Least significance of a source without the light of all others.
    responses
        Images of a point source on the significance image.

    Returns
    -------
    blends
        `Blends`.

    Notes
    -----
    All amplitudes a are solved for together, ``Σ_j R(x_i − x_j) a_j σ_j/σ_i = significance_i`` with
    the response R and the noise σ at the peaks: the simultaneous fit of the PSF at these places in
    white noise.  The highest peak of each neighbourhood comes first, then peaks that are above the
    threshold without the light of these, and so on (orthogonal matching pursuit; Pati, Rezaiifar &
    Krishnaprasad 1993): all peaks at once, rings among them, hardly determine their amplitudes.
    Sources that thereby fall below the threshold, or change sign, are given up, the weakest first.
    Within the response of a source that is more than 100 times brighter, a peak cannot be told
    from that source's PSF error, and is no source.
    """
    n = len(peaks)
    first, second, overlap = _overlaps(peaks, responses)
    # Each pair in both directions: light of the second in units of the noise at the first.
    ratio = peaks.noise[second] / peaks.noise[first]
    scale = np.concatenate([ratio, 1 / ratio])
    pairs = (
        np.concatenate([first, second]),
        np.concatenate([second, first]),
        np.concatenate([overlap, overlap]) * scale,
    )
    blended = np.zeros(n, bool)
    blended[first] = blended[second] = True
    alive = ~blended
    side, height = np.sign(peaks.significance), np.abs(peaks.significance)
    amplitude = peaks.significance.copy()

    def least(amplitude: Array, others: Array) -> Array:
        """Least significance of a source next to some others."""
        brightest = np.zeros(n)
        which = others[pairs[1]]
        i, j, _ = (each[which] for each in pairs)
        np.maximum.at(brightest, i, np.abs(amplitude[j]) * scale[which])
        return np.maximum(threshold, _MISMATCH * brightest)

    # The highest of each neighbourhood first, then peaks that stand out of the light of these.
    while True:
        light = _light_of_others(amplitude, alive, pairs)
        height = side * (peaks.significance - light)
        candidate = blended & ~alive & (height >= least(amplitude, alive))
        if not candidate.any():
            break
        i, j, _ = (each[candidate[pairs[0]] & candidate[pairs[1]]] for each in pairs)
        light_i, light_j = (height[at] * peaks.noise[at] for at in (i, j))
        beaten = (light_j > light_i) | ((light_j == light_i) & (j < i))
        candidate[i[beaten]] = False
        alive |= candidate
        amplitude = _amplitudes(peaks.significance, alive, pairs)
    # Sources that joined later may have taken light from earlier ones.
    while True:
        short = side * amplitude - least(amplitude, alive)
        failing = alive & blended & (short < 0)
        if not failing.any():
            break
        i, j, _ = (each[failing[pairs[0]] & failing[pairs[1]]] for each in pairs)
        failing[i[short[j] < short[i]]] = False
        alive &= ~failing
        amplitude = _amplitudes(peaks.significance, alive, pairs)
    used = alive[first] & alive[second]
    _, group = connected(first[used], second[used], n)
    _, group = np.unique(group[alive], return_inverse=True)
    return Blends(peaks[alive], amplitude[alive], group)


def _light_of_others(amplitude: Array, alive: Array, pairs: tuple[Array, ...]) -> Array:
    """Significance that the other sources give every peak."""
    i, j, overlap = (each[alive[pairs[1]]] for each in pairs)
    return np.bincount(i, overlap * amplitude[j], minlength=len(amplitude))


def _amplitudes(significance: Array, alive: Array, pairs: tuple[Array, ...]) -> Array:
    """Amplitudes of the sources that are alive, all fitted together; the peaks of the others."""
    i, j, overlap = (each[alive[pairs[0]] & alive[pairs[1]]] for each in pairs)
    amplitude = significance.copy()
    touched = np.unique(i)
    if len(touched):
        index = np.full(len(significance), -1)
        index[touched] = np.arange(len(touched))
        own = scipy_part("sparse").identity(len(touched), format="csc")
        others = scipy_part("sparse").csc_matrix((overlap, (index[i], index[j])), shape=own.shape)
        solve = scipy_part("sparse.linalg").spsolve
        amplitude[touched] = solve(own + others, significance[touched])
    return amplitude


def _overlaps(peaks: Peaks, responses: Responses) -> tuple[Array, Array, Array]:
    """Pairs of peaks of which one changes the other, and the response of one at the other."""
    empty = np.zeros(0, int), np.zeros(0, int), np.zeros(0)
    if len(peaks) < 2:
        return empty
    x, y = peaks.x, peaks.y
    tree = scipy_part("spatial").cKDTree(np.stack([x, y], axis=1))
    pairs = tree.query_pairs(responses.reach, output_type="ndarray")
    if not len(pairs):
        return empty
    first, second = pairs.T
    overlap = responses.at(
        (x[first] + x[second]) / 2, (y[first] + y[second]) / 2, x[second] - x[first],
        y[second] - y[first],
    )  # fmt: skip
    light = np.abs(peaks.significance) * peaks.noise
    brighter = np.maximum(light[first], light[second])
    quieter = np.minimum(peaks.noise[first], peaks.noise[second])
    matters = np.abs(overlap) * brighter > _LEAST_OVERLAP * quieter
    return first[matters], second[matters], overlap[matters]


def noise_curvature(psf: Array) -> float:
    """Curvature λ₂ of noise filtered with a PSF, which sets the density of its peaks.

    Parameters
    ----------
    psf
        ``(py, px)``.

    Returns
    -------
    lambda_2
        ``√(λ_xx·λ_yy − λ_xy²)`` with ``λ_ij = Σ k_i k_j |P̂|² / Σ |P̂|²``, pixel⁻²; 1/(2σ²) for
        a round Gaussian.
    """
    return _curvature(psf, 2)


def response_curvature(response: Array) -> float:
    """`noise_curvature` of a score, whose noise has the correlation of its point sources' image.

    Parameters
    ----------
    response
        ``(ry, rx)`` image of a point source on the score, with any positive scale.

    Returns
    -------
    lambda_2
        pixel⁻².
    """
    return _curvature(response, 1)


def _curvature(image: Array, exponent: int) -> float:
    shape = tuple(scipy.fft.next_fast_len(4 * n) for n in image.shape)
    power = np.abs(scipy.fft.fft2(image.astype(np.float64), s=shape)) ** exponent
    ky, kx = (2 * np.pi * np.fft.fftfreq(n) for n in shape)
    power /= power.sum()
    yy, xx = float(power.sum(axis=1) @ ky**2), float(power.sum(axis=0) @ kx**2)
    # The Nyquist frequency is both positive and negative, so its mixed products cancel.
    ky, kx = (np.where(np.isclose(np.abs(k), np.pi), 0, k) for k in (ky, kx))
    yx = float(ky @ power @ kx)
    return math.sqrt(yy * xx - yx**2)


def expected_peaks(lambda_2: float, threshold: float, pixels: float = 1.0) -> float:
    """Number of noise peaks of one sign beyond a threshold.

    Parameters
    ----------
    lambda_2
        `noise_curvature` of the filter.
    threshold
        Standard deviations ν.
    pixels
        Number of pixels searched.

    Returns
    -------
    number
        ``pixels · λ₂ · ν · exp(−ν²/2) / (2π)^(3/2)`` (Adler 1981, theorem 6.3.1; for a round
        Gaussian DMTN-006, and Kaiser).  Good from 3 σ on, where maxima outnumber saddles.
    """
    return pixels * lambda_2 * threshold * math.exp(-0.5 * threshold**2) / (2 * math.pi) ** 1.5
