"""Significance of point sources in a filtered image, with a constant or a varying PSF."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError
from ..numerics import planes
from ..numerics.threads import in_threads

__all__ = [
    "Significance",
    "core",
    "fits_image",
    "point_source_significance",
    "score_significance",
    "self_response",
]

type Array = npt.NDArray[Any]

_TILE = 512
_SMALLEST_TILE = 96
_TILES_OF_VARYING_PSF = 16
"""Tiles along each side of the frame: within one, a PSF varies too little to cost significance."""

_LEAST_SUPPORT = 0.5
"""Share of a PSF's squared weight that must lie on good pixels."""

_LARGEST_CUTOUT, _BEYOND = 128, 1.5
"""Side of cut-outs, pixels, up to which the PSF may be larger than the image; how many times."""
_FILTER_POWER = 1 - 1e-6
_SINGLE_PRECISION = 4e-7
_SINGLE_RANGE = 1e-30, 1e30
_PRECISION = 1e-3
"""Standard deviations by which single precision may move a significance."""


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
        ``(ny, nx)`` float32, positive, of any unit: standard deviation of the filtered image, by
        which it was divided.  None where it is the same all over.

    Notes
    -----
    The response to a point source is known for `image` times `noise`, the filtered image itself.
    A bright source's own photons are noise, which is largest in its middle.  So significance may be
    flat or even hollow there, and the rings stand out more.
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


def core(
    psf: Array, share: float = _FILTER_POWER, *, within: tuple[int, ...] | None = None
) -> Array:
    """Middle of a PSF that does nearly all of a matched filter's work.

    Parameters
    ----------
    psf
        ``(py, px)``, origin at ``[py//2, px//2]``.
    share
        Share of the sum of the squared pixels to keep.
    within
        Shape of the image to be filtered; None for any.

    Returns
    -------
    core
        Smallest square of odd side about the origin that has that share, or the largest that
        fits into the image.
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
    """Whether a PSF is small enough to belong to an image.

    Parameters
    ----------
    size
        Shape of the PSF, as far as it matters.
    shape
        Shape of the image.

    Returns
    -------
    fits
        The PSF is no larger than the image; along a side of up to 128 pixels, as of a cut-out, no
        more than 1.5 times as large.
    """
    room = [_BEYOND * n if n <= _LARGEST_CUTOUT else n for n in shape]
    return all(p <= n for p, n in zip(size, room, strict=True))


def point_source_significance(
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
        that gives the PSF there.  It is called for the middles of tiles, at least 16 along each
        side of the frame, or fewer where tiles would be below 96 pixels.

    Returns
    -------
    significance
        `Significance`: ``Σ_a P(a) D(x+a) g(x+a) / √(Σ_a P(a)² V(x+a) g(x+a))`` over the good
        pixels g.  Its noise, in image_unit, is a weighted mean over pixels,
        ``√(Σ_a P(a)² V(x+a) g(x+a) / Σ_a P(a)² g(x+a))``.

    Raises
    ------
    ArgumentError
        If the shapes differ.

    Notes
    -----
    For white noise the result has unit variance, with any variance plane, mask and filter.  Where
    the variance is constant over a PSF, it is the statistic of Neyman and Pearson.  Weights 1/V
    within the PSF would gain next to a bright star, but variance planes made from the pixels'
    own counts correlate with their noise: with a sky of 1000 electrons a pixel, such weights
    shift the significance by −0.2.
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
    # Rounding errors of a transform scale with its brightest pixel, and reach all others.
    largest = max(float(values.max()), -float(values.min()))
    single = _SINGLE_PRECISION * largest < _PRECISION * math.sqrt(typical * total) and (
        _SINGLE_PRECISION * float(noise.max()) < _PRECISION * typical
    )
    # In units far from the noise, values leave the range of single precision.
    single = single and _SINGLE_RANGE[0] < typical * total and float(noise.max()) < _SINGLE_RANGE[1]
    dtype = np.dtype(np.float32 if single else np.float64)
    grid = tuple(scipy.fft.next_fast_len(n + 2 * half, real=True) for n in use.shape)

    def correlated(plane: Array, kernel: Array) -> Array:
        kernel_ft = np.conj(scipy.fft.rfft2(kernel.astype(dtype), s=grid))
        plane_ft = scipy.fft.rfft2(plane.astype(dtype, copy=False), s=grid)
        plane_ft *= kernel_ft
        full: Array = scipy.fft.irfft2(plane_ft, s=grid, overwrite_x=True)
        # The kernel's origin is its first pixel here, so results are shifted and wrap around.
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

    It is the whole weight except next to the frame's edges.
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
        ``(ny, nx)`` score S, which is filtered already.
    variance
        ``(ny, nx)`` variance V of the score.
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


def self_response(psf: Array) -> Array:
    """Image of a filtered point source: the autocorrelation of the PSF.

    Parameters
    ----------
    psf
        ``(py, px)``.

    Returns
    -------
    response
        ``(2·py − 1, 2·px − 1)``, 1 in the middle.  It is also the correlation of the filtered
        noise.
    """
    shape = tuple(2 * n - 1 for n in psf.shape)
    grid = tuple(scipy.fft.next_fast_len(n, real=True) for n in shape)
    psf_ft = scipy.fft.rfft2(psf.astype(np.float64), s=grid)
    full = scipy.fft.irfft2(np.abs(psf_ft) ** 2, s=grid)
    rows, columns = (np.arange(-(n // 2), n // 2 + 1) % g for n, g in zip(shape, grid, strict=True))
    response: Array = full[np.ix_(rows, columns)] / full[0, 0]
    return response
