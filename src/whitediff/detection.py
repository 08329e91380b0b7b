"""Finding sources of both signs in a difference whose noise is white.

The difference is filtered with its PSF, which is the best that can be done for point sources in
white noise, and divided by the noise of that (Turin 1960; DMTN-006).  Sources are the maxima and
minima of this significance, placed between pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy

from . import planes
from .errors import ArgumentError
from .groups import connected
from .resampling import REACH, interpolation_weights
from .threads import in_threads

__all__ = [
    "Blends",
    "Peaks",
    "Responses",
    "Significance",
    "core",
    "deblended",
    "expected_peaks",
    "find_peaks",
    "fits_image",
    "noise_curvature",
    "response_curvature",
    "score_significance",
    "self_response",
    "significance",
    "surrounding_level",
    "values_at",
]

type Array = npt.NDArray[Any]

type Sign = Literal["both", "positive", "negative"]

_TILE = 512
_SMALLEST_TILE = 96
_TILES_OF_VARYING_PSF = 16
"""Along each side of the frame: within one, a PSF varies too little to cost any significance."""

_LEAST_SUPPORT = 0.5
"""Share of a PSF's squared weight that must lie on good pixels."""

_LARGEST_CUTOUT, _BEYOND = 128, 1.5
"""Side of images, pixels, beyond which PSFs may reach, and how far."""
_FILTER_POWER = 1 - 1e-6
_SINGLE_PRECISION = 4e-7
_SINGLE_RANGE = 1e-30, 1e30
_PRECISION = 1e-3
"""Standard deviations by which single precision may move a significance."""

_CANDIDATE = 0.75
"""A pixel beyond this part of the threshold may be next to a peak beyond it."""

_STEPS = 30
_CONVERGED = 1e-4
_FURTHEST = 1.0
_SAME_PEAK = 0.75
"""Two pixels whose peaks come this near, pixels, belong to the same one."""

_BATCH = 4096

_MISMATCH = 0.01
"""Part of a source's significance that the error of its PSF may leave around it."""

_AROUND = (2.0, 4.0)
"""Full widths from a source at which its surroundings are."""
_MOST_AROUND, _LEAST_AROUND = 300, 0.5
_QUARTILE, _QUARTILE_ERROR, _AROUND_ERRORS = 0.674, 1.36, 5.0
"""Upper quartile of a normal distribution; its error, times the root of the number."""

_LEAST_OVERLAP = 0.5
"""Standard deviations by which a source changes another one that is fitted with it."""


@dataclasses.dataclass(frozen=True)
class Significance:
    """Significance of a point source at every pixel.

    Attributes
    ----------
    image
        ``(ny, nx)`` float32: the signed flux of a point source over its error; standard normal
        where there is only noise.  0 where there is no measurement.
    searched
        ``(ny, nx)`` boolean: at least half of the PSF's squared weight lies on good pixels.
    noise
        ``(ny, nx)`` float32, positive, of any unit: standard deviation of what was divided by it.
        None where it is the same all over.

    Notes
    -----
    The response to a point source is known for `image` times `noise`, the filtered image itself.
    A bright source's own photons are noise, which is largest in its middle: the significance
    alone may be flat there, or have a hollow, and its rings stand out more.
    """

    image: Array
    searched: Array
    noise: Array | None = None

    @property
    def pixels(self) -> int:
        """Number of pixels that were searched."""
        return int(np.count_nonzero(self.searched))

    def filtered(self, rows: Array, columns: Array) -> Array:
        """Pixels of the filtered image.

        Parameters
        ----------
        rows, columns
            Array indices that broadcast.

        Returns
        -------
        values
            Significance times noise, float64.
        """
        values: Array = self.image[rows, columns].astype(np.float64)
        return values if self.noise is None else values * self.noise[rows, columns]


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
        ``(n,)`` signed, of the highest pixel.
    noise
        ``(n,)`` `Significance.noise` at this place; 1 where it has none.
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


def core(
    psf: Array, share: float = _FILTER_POWER, *, within: tuple[int, ...] | None = None
) -> Array:
    """Middle of a PSF that does nearly all of a matched filter's work.

    Parameters
    ----------
    psf
        ``(py, px)``, origin at ``[py//2, px//2]``.
    share
        Of the sum of the squared pixels.
    within
        Shape of the image that it filters; None for any.

    Returns
    -------
    core
        Smallest square about the origin, of odd side, that has that share; or the largest that
        the image has room for.
    """
    middle = [n // 2 for n in psf.shape]
    distance = np.maximum(
        *(
            np.abs(np.arange(n) - m).reshape(shape)
            for n, m, shape in zip(psf.shape, middle, ((-1, 1), (1, -1)), strict=True)
        )
    )
    power = np.cumsum(np.bincount(distance.ravel(), weights=np.square(psf, dtype=float).ravel()))
    half = int(np.searchsorted(power, share * power[-1]))
    half = min(half, *((n - 1) // 2 for n in (*psf.shape, *(within or ()))))
    return psf[middle[0] - half : middle[0] + half + 1, middle[1] - half : middle[1] + half + 1]


def fits_image(size: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a PSF may be that of an image.

    Parameters
    ----------
    size
        Shape of the PSF, as far as it matters.
    shape
        Of the image.

    Returns
    -------
    fits
        It is no larger; that of a cut-out of up to 128 pixels, which may reach beyond, no more than
        1.5 times as large.
    """
    room = [_BEYOND * n if n <= _LARGEST_CUTOUT else n for n in shape]
    return all(p <= n for p, n in zip(size, room, strict=True))


def significance(
    image: Array,
    variance: Array,
    good: Array,
    psf: Array | Callable[[float, float], Array],
) -> Significance:
    """Filter a difference with its PSF, in units of the noise of the result.

    Parameters
    ----------
    image
        ``(ny, nx)``, white noise; pixels that are not good may have any value.
    variance
        ``(ny, nx)`` variance of each pixel, image_unit².
    good
        ``(ny, nx)`` boolean: pixels that hold a measurement.  Those that are not finite, or
        whose variance is not positive, never do.
    psf
        ``(py, px)``, origin at ``[py//2, px//2]``; or a function of array coordinates x and y
        that gives that of a place.  Called for the middles of tiles, at least 16 along
        each side of the frame (or as many as have 96 pixels).

    Returns
    -------
    significance
        `Significance`: ``Σ_a P(a) D(x+a) g(x+a) / √(Σ_a P(a)² V(x+a) g(x+a))`` over the good
        pixels g.  Its noise is that of a pixel, ``√(Σ_a P(a)² V(x+a) g(x+a) / Σ_a P(a)² g(x+a))``,
        image_unit.

    Raises
    ------
    ArgumentError
        If the shapes differ.

    Notes
    -----
    Unit variance follows for white noise of any variance plane and mask, whatever the filter.
    For noise of the same variance over a PSF it is the statistic of Neyman and Pearson.  Weights
    1/V within the PSF would gain next to a bright star, but variance planes that were made of
    the pixels' own counts correlate with their noise: sky of 1000 electrons a pixel shifts the
    significance so weighted by −0.2.
    """
    if not image.shape == variance.shape == good.shape or image.ndim != 2:
        raise ArgumentError(
            "image, variance and good must have the same 2-D shape; got"
            f" {image.shape}, {variance.shape} and {good.shape}."
        )
    result, noise = (planes.empty(image.shape, np.float32) for _ in range(2))
    searched = planes.empty(image.shape, bool)
    constant = None if callable(psf) else core(psf, within=image.shape)
    steps = [_step(n, varies=constant is None) for n in image.shape]
    tiles = [
        (slice(y, min(y + steps[0], image.shape[0])), slice(x, min(x + steps[1], image.shape[1])))
        for y in range(0, image.shape[0], steps[0])
        for x in range(0, image.shape[1], steps[1])
    ]

    def work(tile: tuple[slice, slice]) -> None:
        local = constant
        if local is None:
            assert callable(psf)
            y, x = ((part.start + part.stop - 1) / 2 for part in tile)
            local = core(psf(x, y), within=image.shape)
        result[tile], searched[tile], noise[tile] = _tile_significance(
            image, variance, good, local, tile
        )

    in_threads(work, tiles)
    return Significance(result, searched, noise)


def _step(length: int, *, varies: bool) -> int:
    most = math.ceil(length / _TILES_OF_VARYING_PSF) if varies else _TILE
    side = min(_TILE, max(_SMALLEST_TILE, most))
    return math.ceil(length / math.ceil(length / side))


def _tile_significance(
    image: Array, variance: Array, good: Array, psf: Array, tile: tuple[slice, slice]
) -> tuple[Array, Array, Array]:
    half = psf.shape[0] // 2
    around = tuple(
        slice(max(0, part.start - half), min(n, part.stop + half))
        for part, n in zip(tile, image.shape, strict=True)
    )
    inner = tuple(
        slice(part.start - whole.start, part.stop - whole.start)
        for part, whole in zip(tile, around, strict=True)
    )
    values, noise = image[around], variance[around]
    with np.errstate(invalid="ignore"):
        use = good[around] & np.isfinite(values) & np.isfinite(noise) & (noise > 0)
    if not use.any():
        nothing = np.zeros(use[inner].shape, np.float32)
        return nothing, nothing > 0, nothing
    complete = bool(use.all())
    if not complete:
        values, noise = np.where(use, values, 0), np.where(use, noise, 0)
    typical = float(noise[use].mean() if not complete else noise.mean())
    square = psf**2
    total = float(square.sum())
    # The brightest pixel may not blur the others in single precision.
    largest = max(float(values.max()), -float(values.min()))
    single = _SINGLE_PRECISION * largest < _PRECISION * math.sqrt(typical * total) and (
        _SINGLE_PRECISION * float(noise.max()) < _PRECISION * typical
    )
    # Its range ends where images are in units far from their noise.
    single = single and _SINGLE_RANGE[0] < typical * total and float(noise.max()) < _SINGLE_RANGE[1]
    dtype = np.dtype(np.float32 if single else np.float64)
    grid = tuple(scipy.fft.next_fast_len(n + 2 * half, real=True) for n in use.shape)

    def correlated(plane: Array, kernel: Array) -> Array:
        kernel_ft = np.conj(scipy.fft.rfft2(kernel.astype(dtype), s=grid))
        plane_ft = scipy.fft.rfft2(plane.astype(dtype, copy=False), s=grid)
        plane_ft *= kernel_ft
        full: Array = scipy.fft.irfft2(plane_ft, s=grid, overwrite_x=True)
        # What is correlated about the kernel's first pixel wraps around to the far end.
        rows, columns = (
            np.arange(part.start - half, part.stop - half) % n
            for part, n in zip(inner, grid, strict=True)
        )
        return full[np.ix_(rows, columns)]

    numerator, power = correlated(values, psf), correlated(noise, square)
    floor = _PRECISION * typical * total
    found = numerator / np.sqrt(np.maximum(power, floor))
    support = _support_of_frame(square, tile, image.shape) if complete else correlated(use, square)
    enough = support >= _LEAST_SUPPORT * total
    level = np.sqrt(np.maximum(power, 0) / np.maximum(support, _PRECISION * total))
    if not complete:
        found[power < floor] = 0
        level[power < floor] = 0
    return (
        found.astype(np.float32, copy=False),
        np.broadcast_to(enough, found.shape),
        level.astype(np.float32, copy=False),
    )


def _support_of_frame(square: Array, tile: tuple[slice, slice], shape: tuple[int, ...]) -> Array:
    """Squared weight of a filter inside the frame, for tiles without bad pixels.

    All of it but next to the frame's edges.
    """
    half = square.shape[0] // 2
    ny, nx = shape
    if (
        tile[0].start >= half
        and tile[1].start >= half
        and tile[0].stop <= ny - half
        and tile[1].stop <= nx - half
    ):
        return np.full((1, 1), square.sum())
    matrices = []
    for part, n in zip(tile, shape, strict=True):
        place = np.arange(part.start, part.stop)[:, None] + np.arange(-half, half + 1)
        matrices.append(((place >= 0) & (place < n)).astype(float))
    return matrices[0] @ square @ matrices[1].T


def score_significance(score: Array, variance: Array, good: Array) -> Significance:
    """Significance of a point source at every pixel of a score image.

    Parameters
    ----------
    score
        ``(ny, nx)`` S; filtered already.
    variance
        ``(ny, nx)`` V.
    good
        ``(ny, nx)`` boolean: pixels that hold a measurement.

    Returns
    -------
    significance
        `Significance`: S/√V, searched where it is good; its noise is √V.

    Raises
    ------
    ArgumentError
        If the shapes differ.
    """
    if not score.shape == variance.shape == good.shape or score.ndim != 2:
        raise ArgumentError(
            "score, variance and good must have the same 2-D shape; got"
            f" {score.shape}, {variance.shape} and {good.shape}."
        )
    searched = planes.empty(score.shape, bool)
    level = planes.empty(score.shape, np.float32)

    def work(rows: slice) -> Array:
        values, noise = score[rows], variance[rows]
        with np.errstate(invalid="ignore"):
            use = good[rows] & np.isfinite(values) & np.isfinite(noise) & (noise > 0)
        searched[rows] = use
        deviation = np.sqrt(np.where(use, noise, 1))
        level[rows] = np.where(use, deviation, 0)
        return np.divide(
            values, deviation, out=np.zeros(values.shape, np.float32),
            where=use, casting="same_kind",
        )  # fmt: skip

    return Significance(planes.filled(score.shape, np.float32, work), searched, level)


def surrounding_level(found: Significance, peaks: Peaks, fwhm: float) -> Array:
    """Significance that pixels around peaks have, and a point source would not give them.

    Parameters
    ----------
    found
        Significance of every pixel.
    peaks
        Places.
    fwhm
        Full width at half maximum of the PSF, pixels.

    Returns
    -------
    level
        ``(n,)`` of the peak's sign: 0 where noise explains it.

    Notes
    -----
    The upper quartile of the pixels 2 to 4 full widths away, less a normal distribution's: where
    the edge of something extended goes through the peak, half of its surroundings are as bright as
    the peak, while neighbours fill less.  It counts from 5 of its errors.
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
    # Filtered noise is independent from about one such area to the next.
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
        Positive.
    sign
        Which ones.

    Returns
    -------
    peaks
        `Peaks`, ordered by row and column: extrema of the filtered image, which is the
        significance times its noise.  The threshold is that of the interpolated significance: the
        highest pixel of a peak falls short of it by several percent.

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
        if (parts)
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
                # Of two equal ones the first counts.
                first = (dy, dx) < (0, 0)
                highest &= ~inside | ((value > other) if first else (value >= other))
        return row[highest], column[highest]

    parts = planes.each_block(work, image.shape)
    row, column = (np.concatenate(each) for each in zip(*parts, strict=True))
    return row, column


def _noise_at(found: Significance, x: Array, y: Array) -> Array:
    """Noise between the pixels, linear; those without a measurement do not count."""
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
    # The curvature of the pixels is nearly that of the peak: each step leaves a tenth.
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
    # A saddle, or a step of the mask: the pixel itself.
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
        ``(n,)``; beyond the frame it goes on as its edge.
    """
    row, column = (np.floor(at + 0.5).astype(int) for at in (y, x))
    alone = Significance(image, image != 0)
    return _between(_surroundings(alone, row, column), y - row, x - column)


def _surroundings(found: Significance, rows: Array, columns: Array) -> Array:
    """Filtered pixels that interpolation near some of them needs; beyond the frame its edge goes
    on.
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
    tree = scipy.spatial.cKDTree(np.stack([peaks.x, peaks.y], axis=1))
    pairs = tree.query_pairs(_SAME_PEAK, output_type="ndarray")
    if len(pairs) == 0:
        return peaks
    value = peaks.significance
    pairs = pairs[np.sign(value[pairs[:, 0]]) == np.sign(value[pairs[:, 1]])]
    lower = np.where(np.abs(value[pairs[:, 0]]) < np.abs(value[pairs[:, 1]]), *pairs.T)
    keep = np.ones(len(peaks), bool)
    keep[lower] = False
    return peaks[keep]


def self_response(psf: Array) -> Array:
    """What a filtered point source looks like: the correlation of a PSF with itself.

    Parameters
    ----------
    psf
        ``(py, px)``.

    Returns
    -------
    response
        ``(2·py − 1, 2·px − 1)``, 1 in the middle.  In units of its significance, it is also the
        correlation of the filtered noise.
    """
    shape = tuple(2 * n - 1 for n in psf.shape)
    grid = tuple(scipy.fft.next_fast_len(n, real=True) for n in shape)
    psf_ft = scipy.fft.rfft2(psf.astype(np.float64), s=grid)
    full = scipy.fft.irfft2(np.abs(psf_ft) ** 2, s=grid)
    rows, columns = (np.arange(-(n // 2), n // 2 + 1) % g for n, g in zip(shape, grid, strict=True))
    response: Array = full[np.ix_(rows, columns)] / full[0, 0]
    return response


@dataclasses.dataclass(frozen=True)
class Responses:
    """`self_response` of the PSF, or a score's PSF over its peak, at some places of a frame.

    Attributes
    ----------
    images
        ``(n, ry, rx)``, origin in the middle, where they are 1.
    x, y
        ``(n,)`` array coordinates; the nearest place counts.
    """

    images: Array
    x: Array
    y: Array

    @property
    def reach(self) -> float:
        """Pixels beyond which there is nothing."""
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
        tree = scipy.spatial.cKDTree(np.stack([self.x, self.y], axis=1))
        return np.asarray(tree.query(np.stack([x, y], axis=1))[1])

    def at(self, x: Array, y: Array, dx: Array, dy: Array) -> Array:
        """Response at some distances from sources at some positions.

        Parameters
        ----------
        x, y
            ``(m,)`` array coordinates of the sources.
        dx, dy
            ``(m,)`` pixels.

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
        Those of a source of their own.
    amplitude
        ``(n,)`` significance of each once the others' light is taken away.
    group
        ``(n,)`` integers from 0: those of one number overlap.
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
        Of both signs, as `find_peaks` finds them.
    threshold
        A source keeps this significance when the light of all others is taken away.
    responses
        What a point source looks like on the significance image.

    Returns
    -------
    blends
        `Blends`.

    Notes
    -----
    All amplitudes a are solved for together, ``Σ_j R(x_i − x_j) a_j σ_j/σ_i = significance_i`` with
    the response R and the noise σ at the peaks: the simultaneous fit of the PSF at these places in
    white noise.  The highest peak of each neighbourhood comes first, then what is above the
    threshold once the light of these is taken away, and so on (orthogonal matching pursuit; Pati,
    Rezaiifar & Krishnaprasad 1993): all peaks at once, rings among them, hardly determine their
    amplitudes.  Sources that fall below the threshold by this, or to the other sign, are given up,
    the weakest first.
    Of a source within the response of one that is more than 100 times brighter nothing is known
    but what the error of its PSF leaves.
    """
    n = len(peaks)
    first, second, overlap = _overlaps(peaks, responses)
    # Each pair in both directions: the second's light in units of the noise at the first.
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
        """Significance that a source needs, next to some others."""
        brightest = np.zeros(n)
        which = others[pairs[1]]
        i, j, _ = (each[which] for each in pairs)
        np.maximum.at(brightest, i, np.abs(amplitude[j]) * scale[which])
        return np.maximum(threshold, _MISMATCH * brightest)

    # The highest of each neighbourhood first, then what stands out of the light of these.
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
    # Later ones may have taken the light of earlier ones.
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
        # SciPy loads this part of itself for nobody who does not name it.
        from scipy.sparse.linalg import spsolve

        index = np.full(len(significance), -1)
        index[touched] = np.arange(len(touched))
        own = scipy.sparse.identity(len(touched), format="csc")
        others = scipy.sparse.csc_matrix((overlap, (index[i], index[j])), shape=own.shape)
        amplitude[touched] = spsolve(own + others, significance[touched])
    return amplitude


def _overlaps(peaks: Peaks, responses: Responses) -> tuple[Array, Array, Array]:
    """Pairs of peaks of which one changes the other, and by which part of its significance."""
    empty = np.zeros(0, int), np.zeros(0, int), np.zeros(0)
    if len(peaks) < 2:
        return empty
    x, y = peaks.x, peaks.y
    tree = scipy.spatial.cKDTree(np.stack([x, y], axis=1))
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
    """How densely noise that was filtered with a PSF is packed: λ₂ of its peaks' number.

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
    """`noise_curvature` of a score, whose noise is correlated as its point sources look.

    Parameters
    ----------
    response
        ``(ry, rx)`` image of a point source on the score, of any positive scale.

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
    # The Nyquist frequency is as much a negative one as a positive one: it has no product.
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
