"""Image, variance and mask of resampled exposures, tile by tile."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..exposures import masks
from ..exposures.boxes import Box
from ..exposures.fields import ChebyshevField
from ..exposures.masks import Mask
from ..exposures.model import Exposure
from ..numerics import planes
from ..numerics.interpolation import interpolated
from ..numerics.threads import in_threads
from .reprojection import Regridding
from .weights import AdaptiveKernel, ResamplingKernel

__all__ = ["resampled_planes"]

type Array = npt.NDArray[Any]

_TILE = (256, 512)
_SPLINE_MARGIN = 20
"""Margin around a tile, pixels: template pixels beyond move a spline by less than 1e-11."""
_LINEAR_POWER = 1 / 6
"""Squared width of the triangle of linear interpolation, pixels²."""
_LEAST_SHARE = 0.1
_MOST_FILLED = 0.2
"""Largest share of a pixel from template pixels without a measurement, filled from neighbours, with
which it counts as measured."""
_DEEP = 16
"""Depth in a hole, pixels, beyond which its filling would never be used."""


def _variance_blur(kernel: ResamplingKernel, jacobians: Array) -> float:
    """Width of the Gaussian blur before linear interpolation of the variance, pixels.

    Variances are averaged with squared weights.  Those of a spline, and of a Gaussian for pixels of
    equal size, are nearly the weights of linear interpolation.  For larger pixels, a blur has to
    widen these.
    """
    if not isinstance(kernel, AdaptiveKernel):
        return 0.0
    scale = float(np.maximum(np.linalg.svd(jacobians, compute_uv=False), 1).mean())
    power = (kernel.width * scale) ** 2 / 8 - _LINEAR_POWER
    return math.sqrt(power) if power > _LINEAR_POWER else 0.0


def resampled_planes(job: Regridding, gain: ChebyshevField) -> tuple[Array, Mask, Array]:
    """Image, mask and variance of a template on a science exposure's pixels.

    Parameters
    ----------
    job
        The resampling.
    gain
        Variance of a resampled pixel over the template's, from
        `whitediff.alignment.resampled_noise.resampled_noise`.

    Returns
    -------
    image, mask, variance
        Planes of the science exposure's shape.
    """
    template, box = job.template, job.science.bbox
    values, lost, holes = _without_holes(template)
    mask = template.mask
    if holes is not None:
        mask = masks.with_plane(mask, "NO_DATA", holes)
    plane = template.variance
    known = planes.filled(
        plane.shape, bool, lambda rows: np.isfinite(plane[rows]) & (plane[rows] >= 0)
    )
    out_mask = masks.empty_mask(
        box.shape, dict.fromkeys([*mask.names, "NO_DATA"]), mask.descriptions
    )
    image = planes.empty(box.shape, values.dtype)
    variance = planes.empty(box.shape, plane.dtype)
    footprint = job.kernel.footprint(job.jacobians)
    reach = max(_SPLINE_MARGIN, job.kernel.reach(job.jacobians))
    blur = _variance_blur(job.kernel, job.jacobians)
    tile = _Tile(job, values, lost, holes, plane, known, mask, gain, footprint, reach, blur)
    no_data = out_mask.bits.dtype.type(out_mask.value("NO_DATA"))

    def work(part: tuple[slice, slice]) -> None:
        image[part], variance[part], bits = tile.made(*part)
        out_mask.bits[part] = bits
        out_mask.bits[part] |= np.isnan(image[part]) * no_data

    in_threads(work, _tiles(box.shape))
    return image, out_mask, variance


def _tiles(shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
    return [
        (slice(y, min(y + _TILE[0], shape[0])), slice(x, min(x + _TILE[1], shape[1])))
        for y in range(0, shape[0], _TILE[0])
        for x in range(0, shape[1], _TILE[1])
    ]


def _without_holes(template: Exposure) -> tuple[Array, Array | None, Array | None]:
    """Image with unmeasured pixels interpolated; plane of these; plane of those not finite.

    A plane is None where it would be empty.
    """
    image = template.data
    bad = masks.flagged(template.mask, masks.INTERPOLATED_MASK_PLANES)
    holes = planes.filled(image.shape, bool, lambda rows: ~np.isfinite(image[rows]))
    wrong = planes.filled(image.shape, bool, lambda rows: bad[rows] | holes[rows])
    if not wrong.any():
        return image, None, None
    deep = scipy.ndimage.minimum_filter(wrong.view(np.uint8), 2 * _DEEP + 1).view(bool)
    if deep.any():
        level = image[::8, ::8][~wrong[::8, ::8]]
        image = planes.copied(image)
        image[deep] = np.median(level) if level.size else 0
    filled = interpolated(image, wrong & ~deep)
    return filled, wrong, holes if holes.any() else None


@dataclasses.dataclass(frozen=True)
class _Tile:
    """Maker of the planes, tile by tile."""

    job: Regridding
    image: Array
    lost: Array | None
    holes: Array | None
    variance: Array
    known: Array
    mask: Mask
    gain: ChebyshevField
    footprint: int
    reach: int
    blur: float

    def made(self, rows: slice, columns: slice) -> tuple[Array, Array, Array]:
        """Image, variance and mask bits of a tile."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        image, variance = np.full((2, *shape), np.nan)
        bits = np.zeros(shape, self.mask.bits.dtype)
        inner = [
            slice(max(part.start, whole.start), min(part.stop, whole.stop))
            for part, whole in ((rows, self.job.map.rows), (columns, self.job.map.columns))
        ]
        if all(part.start < part.stop for part in inner):
            here = tuple(
                slice(part.start - whole.start, part.stop - whole.start)
                for part, whole in zip(inner, (rows, columns), strict=True)
            )
            image[here], variance[here], bits[here] = self._inside(inner[0], inner[1])
        return image, variance, bits

    def _inside(self, rows: slice, columns: slice) -> tuple[Array, Array, Array]:
        """Image, variance and mask bits of the part of a tile on which the map is defined."""
        own = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
        y, x = self.job.map.on(*(np.arange(at[0] - 1, at[-1] + 2) for at in own))
        before = [np.floor(at[1:-1, 1:-1]).astype(np.intp) for at in (y, x)]
        n, shape = self.footprint, self.image.shape
        covered = np.ones(before[0].shape, dtype=bool)
        for at, size in zip(before, shape, strict=True):
            covered &= (at >= n - 1) & (at < size - n)
        if not covered.any():
            image, variance = np.full((2, *covered.shape), np.nan)
            bits = np.zeros(covered.shape, self.mask.bits.dtype)
            return image, variance, bits
        part = tuple(
            slice(
                max(0, int(at[covered].min()) - self.reach),
                min(size, int(at[covered].max()) + self.reach + 1),
            )
            for at, size in zip(before, shape, strict=True)
        )
        y, x = y - part[0].start, x - part[1].start
        image = self.job.resampled(self.image[part], y, x, self.job.kernel).astype(np.float64)
        variance = self._variance(part, y, x).astype(np.float64)
        area = np.abs(self.job.map.determinant(*own))
        y0, x0 = self.job.science.origin
        box = Box.between(
            (y0 + rows.start, y0 + rows.stop), (x0 + columns.start, x0 + columns.stop)
        )
        image *= area
        variance *= np.maximum(self.gain.on(box), 0) * area**2
        bits = self._bits(part, before, y, x)
        bits[~covered] = 0
        if self.holes is not None:
            nearest = [np.rint(at[1:-1, 1:-1]).astype(np.intp) for at in (y, x)]
            covered &= ~self.holes[part][_clipped(nearest, part, origin=False)]
        missing = ~(covered & np.isfinite(image))
        image[missing] = variance[missing] = np.nan
        return image, variance, bits

    def _bits(self, part: tuple[slice, ...], before: list[Array], y: Array, x: Array) -> Array:
        """Mask bits of contributing pixels; interpolated planes only if these contribute much."""
        mask, at = self.mask.bits[part], _clipped(before, part)
        if self.lost is None or not self.lost[part].any():
            return _any_of(mask, self.footprint)[at]
        of_lost = masks.bits_of(self.mask, masks.INTERPOLATED_MASK_PLANES)
        bits = _any_of(mask & ~of_lost, self.footprint)[at]
        share = self._blurred(self.lost[part].astype(np.float32))
        share = self.job.resampled(share, y, x, None)
        near = _any_of(mask & of_lost, 1 + math.ceil(2 * self.blur))[at]
        bits |= np.where(share > _MOST_FILLED, near, 0).astype(bits.dtype)
        return bits

    def _variance(self, part: tuple[slice, ...], y: Array, x: Array) -> Array:
        variance, known = self.variance[part], self.known[part]
        if known.all():
            return self.job.resampled(self._blurred(variance), y, x, None)
        total = self._blurred(np.where(known, variance, 0))
        share = self._blurred(known.astype(variance.dtype))
        total, share = (self.job.resampled(each, y, x, None) for each in (total, share))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(share > _LEAST_SHARE, total / share, np.nan)

    def _blurred(self, variance: Array) -> Array:
        if not self.blur:
            return variance
        return np.asarray(scipy.ndimage.gaussian_filter(variance, self.blur, mode="nearest"))


def _clipped(at: list[Array], part: tuple[slice, ...], *, origin: bool = True) -> tuple[Array, ...]:
    """Indices of pixels within a part of an array, clipped to its edges."""
    return tuple(
        np.clip(each - (interval.start if origin else 0), 0, interval.stop - interval.start - 1)
        for each, interval in zip(at, part, strict=True)
    )


def _any_of(bits: Array, n: int) -> Array:
    """Bits of any of the pixels from n − 1 before to n after each one, on both axes."""
    for axis in (0, 1):
        result = bits.copy()
        size = bits.shape[axis]
        for shift in range(1 - n, n + 1):
            if shift and abs(shift) < size:
                to = slice(max(0, -shift), size - max(0, shift))
                of = slice(max(0, shift), size - max(0, -shift))
                index = (slice(None),) * axis
                result[*index, to] |= bits[*index, of]
        bits = result
    return bits
