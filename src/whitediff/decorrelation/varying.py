"""A correction by its pixels: the same for the whole field, or following kernel and noise."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError
from ..exposures import masks
from ..exposures.boxes import Box
from ..exposures.fields import GridField
from ..exposures.kernels import BasisKernel, interpolated_kernel
from ..exposures.model import Exposure
from ..exposures.psf import KernelPointSpreadFunction, Light
from ..numerics import fourier, planes
from ..numerics.compression import (
    Sample,
    VaryingFilter,
    cell_means,
    interpolated_cells,
    varying_filter,
)
from ..numerics.convolution import convolve_varying
from ..numerics.missing import smallest_sigma
from ..numerics.threads import single_threaded_algebra
from .correction import (
    filtered_image,
    filtered_stamp,
    pixel_kernel,
    with_fill,
    with_not_finite,
)
from .filters import Filters, StackFilters, reach_or_cut

__all__ = [
    "SPATIAL_PRECISION",
    "LocalCorrection",
    "LocalFilters",
    "LocalNoise",
    "local_correction",
    "local_noise",
]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.decorrelate")

_CELL = 8
"""Side of the cells of local mean variances, pixels: noise that steps is followed as sharply."""

SPATIAL_PRECISION = 1e-4
"""Standard deviations of a pixel that the cut-off of a filter may move it by."""

_SMOOTHING = 3
_SAME_RATIO = 0.03
_SAME_CELLS = 0.99
_SMALLEST_GRID = 96
_MATTERS = 0.01
"""Relative error of a pixel, in its sigma, or of a variance that deserves a warning."""
_FIRST_GRID = 384
_PSF_ORDER = 4
_VARIANCE_PRECISION = 1e-4

_SUM_NODES = 9
_LEAST_SUM = 0.05
"""Sum of a kernel, over its largest in the field, that a photometric scale keeps everywhere."""


@dataclasses.dataclass(frozen=True)
class LocalNoise:
    """How the noise level varies over the field.

    Attributes
    ----------
    log_ratio
        ``(cells_y, cells_x)``: logarithm of the convolved exposure's local mean variance
        over that of the other, in cells of 8 pixels.
    """

    log_ratio: Array

    @property
    def middle(self) -> float:
        """Median."""
        return float(np.median(self.log_ratio))

    @property
    def is_constant(self) -> bool:
        """Whether it moves no pixel: 99 % of the cells lie within 3 % of the median."""
        near = np.abs(self.log_ratio - self.middle) < _SAME_RATIO
        return bool(near.mean() >= _SAME_CELLS)

    @property
    def extremes(self) -> tuple[float, float]:
        """Smallest and largest, but for the outermost 0.1 % of the cells."""
        low, high = np.quantile(self.log_ratio, (0.001, 0.999))
        return float(low), float(high)

    def on(self, rows: slice, columns: slice) -> Array:
        """Logarithm of the ratio on a part of the frame.

        Parameters
        ----------
        rows, columns
            Part of the frame.

        Returns
        -------
        log_ratio
            ``(rows, columns)``.
        """
        return interpolated_cells(self.log_ratio, _CELL, rows, columns)


def local_noise(
    unconvolved: Exposure,
    convolved: Exposure,
    *,
    ignore_mask_planes: tuple[str, ...],
    sources: Array | None = None,
    level: float = 0.0,
) -> LocalNoise:
    """Ratio of the background variances of two exposures, over the field.

    Parameters
    ----------
    unconvolved, convolved
        Exposures before any convolution.
    ignore_mask_planes
        Pixels with any of these are left out.
    sources
        ``(ny, nx)`` boolean: pixels to leave out: a source's photons belong in the variance
        plane, but a filter that followed them would change with the flux that it is to keep.
    level
        Added to the logarithm of the ratio.

    Returns
    -------
    noise
        `LocalNoise`.

    Notes
    -----
    Means of cells, holes filled from the nearest cell, and the median of 3 × 3 cells, which
    keeps edges and takes away what is left of a source.
    """
    levels = []
    for exposure in (unconvolved, convolved):
        means = cell_means(exposure.variance, _usable(exposure, ignore_mask_planes, sources), _CELL)
        missing = np.isnan(means)
        if missing.all():
            return LocalNoise(np.zeros((1, 1)))
        if missing.any():
            nearest = scipy.ndimage.distance_transform_edt(
                missing, return_distances=False, return_indices=True
            )
            means = means[tuple(nearest)]
        levels.append(scipy.ndimage.median_filter(means, _SMOOTHING, mode="nearest"))
    return LocalNoise(np.log(levels[1] / levels[0]) + level)


def _usable(
    exposure: Exposure, ignore_mask_planes: tuple[str, ...], sources: Array | None
) -> Array:
    """Pixels whose variance is that of the background."""
    variance = exposure.variance
    ignored = masks.flagged(exposure.mask, ignore_mask_planes)

    def work(rows: slice) -> Array:
        use = np.isfinite(variance[rows]) & (variance[rows] > 0)
        use &= ~ignored[rows]
        if sources is not None:
            use &= ~sources[rows]
        return use

    return planes.filled(variance.shape, bool, work)


@dataclasses.dataclass(frozen=True)
class LocalCorrection:
    """A correction by its pixels, which may follow kernel and noise over the field.

    Attributes
    ----------
    filter
        The correction; the numbers that go with it are the variance of a pixel per unit
        variance of the unconvolved and of the convolved exposure, or of each member of two
        stacks, at the science level, and for a score whose PSF is known its value at a point
        source of unit flux.
    squares
        Squared filters of the noise of the two exposures, of unit sum, for the full propagation
        of their variances; the number that goes with each is what that sum really is.  None
        where that is not wanted.
    noise
        Variance ratio; None where it is the same everywhere.
    box
        Frame.
    reach
        Of the filter, pixels.
    tolerance
        What was asked for.
    """

    filter: VaryingFilter
    squares: tuple[VaryingFilter, VaryingFilter] | None
    noise: LocalNoise | None
    box: Box
    reach: int
    tolerance: float

    @property
    def varies(self) -> bool:
        """Whether the correction or the numbers that go with it depend on the place."""
        return self.noise is not None or self.filter.order > 0

    @property
    def kernel(self) -> Array:
        """``(k, k)`` filter, or the mean of a filter that varies; origin in the middle."""
        return self.filter.images[0]

    def _positions(self, rows: slice, columns: slice) -> tuple[Array, Array, Array | None]:
        ny, nx = self.box.y.size, self.box.x.size
        u = (2 * np.arange(columns.start, columns.stop) + 1) / nx - 1
        v = (2 * np.arange(rows.start, rows.stop) + 1) / ny - 1
        return u, v, None if self.noise is None else self.noise.on(rows, columns)

    def _weights(self, rows: slice, columns: slice) -> Array:
        return self.filter.weights(*self._positions(rows, columns))

    def image(
        self,
        image: Array,
        sigma: float | None,
        *,
        fill: Literal["mean", "interpolate"] = "mean",
        missing: Array | None = None,
    ) -> Array:
        """Filter an image.

        Parameters
        ----------
        image
            ``(ny, nx)``; pixels without a measurement come back as they were.
        sigma
            Smallest standard deviation among the result's pixels, image_unit.
        fill, missing
            As for `whitediff.decorrelation.filtered_image`.

        Returns
        -------
        filtered
            ``(ny, nx)``, the image's dtype.
        """
        if image.dtype.kind != "f":
            image = image.astype(np.float64)
        return filtered_image(
            self.filter.images,
            image,
            sigma=sigma,
            weights=None if self.filter.is_constant else self._weights,
            fill=fill,
            missing=missing,
        )

    def variance(self, *inputs: Array) -> Array:
        """Variance plane of the corrected image.

        Parameters
        ----------
        *inputs
            ``(ny, nx)`` variance planes before any convolution, image_unit²: of the unconvolved
            and of the convolved exposure, or of a stack's members.

        Returns
        -------
        variance
            ``(ny, nx)``, at the science level.
        """
        dtype = np.result_type(*inputs, np.float32)
        if self.squares is not None:
            return self._full_variance(*inputs, dtype=dtype)
        nx = self.box.x.size

        def work(rows: slice) -> Array:
            weights = self.filter.numbers(*self._positions(rows, slice(0, nx)))
            with np.errstate(invalid="ignore"):
                total: Array = sum(
                    weight * plane[rows]
                    for weight, plane in zip(weights[: len(inputs)], inputs, strict=True)
                )
            return total

        with single_threaded_algebra():
            return planes.filled(inputs[0].shape, dtype, work)

    def _full_variance(self, unconvolved: Array, convolved: Array, *, dtype: Any) -> Array:
        assert self.squares is not None
        nx = self.box.x.size
        parts = []
        for plane, squares in zip((unconvolved, convolved), self.squares, strict=True):
            smallest = smallest_sigma(plane) or 0.0

            def weights(rows: slice, columns: slice, squares: VaryingFilter = squares) -> Array:
                return squares.weights(*self._positions(rows, columns))

            parts.append(
                convolve_varying(
                    with_fill(plane),
                    squares.images,
                    weights,
                    tolerance=_VARIANCE_PRECISION * smallest**2,
                )
            )

        def work(rows: slice) -> Array:
            assert self.squares is not None
            total: Array = sum(
                squares.numbers(*self._positions(rows, slice(0, nx)))[0] * part[rows]
                for squares, part in zip(self.squares, parts, strict=True)
            )
            return np.maximum(total, 0)

        with single_threaded_algebra():
            total = planes.filled(unconvolved.shape, dtype, work)
        return with_not_finite(total, unconvolved, convolved)

    def response(self, box: Box) -> Array:
        """Score of a point source of unit flux at its position.

        Parameters
        ----------
        box
            Part of the frame.

        Returns
        -------
        response
            ``(ny, nx)``.
        """
        rows = slice(box.y.start - self.box.y.start, box.y.stop - self.box.y.start)
        columns = slice(box.x.start - self.box.x.start, box.x.stop - self.box.x.start)
        numbers: Array = self.filter.numbers(*self._positions(rows, columns))[2]
        return numbers

    def numbers_at(self, x: float, y: float) -> Array:
        """The numbers that go with the filter, at one position.

        Parameters
        ----------
        x, y
            Pixel coordinates.

        Returns
        -------
        numbers
            ``(2,)`` or ``(3,)``.
        """
        u, v, ratio = self._place(x, y)
        numbers: Array = self.filter.numbers(np.array([u]), np.array([v]), np.array([[ratio]]))
        return numbers[:, 0, 0]

    def _place(self, x: float, y: float) -> tuple[float, float, float]:
        """Scaled position, and the ratio there."""
        box = self.box
        u = 2 * (x - box.x.start + 0.5) / box.x.size - 1
        v = 2 * (y - box.y.start + 0.5) / box.y.size - 1
        if self.noise is None:
            return u, v, sum(self.filter.log_ratios) / 2
        row = min(max(round(y - box.y.start), 0), box.y.size - 1)
        column = min(max(round(x - box.x.start), 0), box.x.size - 1)
        local = self.noise.on(slice(row, row + 1), slice(column, column + 1))
        return u, v, float(local[0, 0])

    def psf(self, psf: KernelPointSpreadFunction) -> KernelPointSpreadFunction:
        """PSF of the corrected image.

        Parameters
        ----------
        psf
            Before the correction.

        Returns
        -------
        psf
            On stamps of the same shape.  Where filter or PSF vary: images times Chebyshev
            polynomials of order 4, or, with a variance ratio that varies, times a `GridField`.
        """
        if self.noise is not None:
            return self._psf_on_cells(psf)
        shape = _grid(max(psf.kernel.shape) + self.filter.images.shape[1])
        if self.filter.is_constant:
            # Each image of the PSF by itself: exact, however fast the PSF varies.
            filter_ft = fourier.forward(fourier.pad_center_origin(self.kernel, shape), shape)
            images = [filtered_stamp(filter_ft, image, shape=shape) for image in psf.kernel.basis]
            return KernelPointSpreadFunction(
                BasisKernel(np.stack(images), psf.kernel.fields),
                average_position=psf.average_position,
                light=self._light(psf),
            )

        def filtered(x: float, y: float) -> Array:
            before = psf.at(x=x, y=y)
            image = fourier.pad_center_origin(self.filter.at(*self._place(x, y)), shape)
            filter_ft = fourier.forward(image, shape)
            return filtered_stamp(filter_ft, before, shape=shape)

        return KernelPointSpreadFunction(
            interpolated_kernel(filtered, self.box, _PSF_ORDER),
            average_position=psf.average_position,
            light=self._light(psf),
        )

    def _psf_on_cells(self, psf: KernelPointSpreadFunction) -> KernelPointSpreadFunction:
        """PSF as all products of its images and the filter's."""
        assert self.noise is not None
        box = self.box
        y, x = (
            interval.start - 0.5 + _CELL * (np.arange(-(-interval.size // _CELL)) + 0.5)
            for interval in (box.y, box.x)
        )
        u, v = (
            np.clip(2 * (at - interval.start + 0.5) / interval.size - 1, -1, 1)
            for at, interval in ((x, box.x), (y, box.y))
        )
        filter_weights = self.filter.weights(u, v, self.noise.log_ratio)
        shape = _grid(max(psf.kernel.shape) + self.filter.images.shape[1])
        filters_ft = [
            fourier.forward(fourier.pad_center_origin(image, shape), shape)
            for image in self.filter.images
        ]
        columns, rows = np.meshgrid(np.minimum(x, box.x.stop - 1), np.minimum(y, box.y.stop - 1))
        images: list[Array] = []
        fields: list[Any] = []
        for before, field in zip(psf.kernel.basis, psf.kernel.fields, strict=True):
            weight = field.at(columns, rows)
            for filter_ft, filter_weight in zip(filters_ft, filter_weights, strict=True):
                images.append(filtered_stamp(filter_ft, before, shape=shape))
                fields.append(GridField(box, weight * filter_weight, _CELL))
        return KernelPointSpreadFunction(
            BasisKernel(np.stack(images), fields),
            average_position=psf.average_position,
            light=self._light(psf),
        )

    def _light(self, psf: KernelPointSpreadFunction) -> Light:
        """Light of the PSF of the corrected image, where the PSF is nominal."""
        x, y = psf.average_position
        image = self.filter.at(*self._place(x, y))
        before = psf.at(x=x, y=y)
        shape = _grid(max(before.shape) + image.shape[0])
        filter_ft = fourier.forward(fourier.pad_center_origin(image, shape), shape)
        after = filtered_stamp(filter_ft, before, shape=shape)
        return psf.light.filtered(float(after.sum() / image.sum()))


def _grid(smallest: int) -> tuple[int, int]:
    """Grid of a good length of at least so many pixels."""
    ny, nx = fourier.fast_shape((smallest, smallest), (1, 1))
    return ny, nx


def _check_sums(kernels: Sequence[Mapping[str, Array]]) -> None:
    """Refuse kernels, here at places all over the field, whose sum is no photometric scale."""
    for name in kernels[0]:
        sums = np.array([each[name].sum() for each in kernels])
        low, high = float(sums.min()), float(sums.max())
        if low * high <= 0 or np.abs(sums).min() < _LEAST_SUM * np.abs(sums).max():
            raise ArgumentError(
                f"The sum of the {name}, the photometric scale, runs from {low:.4g} to {high:.4g}"
                f" over the field; it must keep its sign, and {_LEAST_SUM:g} of its largest value."
                " Are its coefficients right, and its bounds those of this image?"
            )


@dataclasses.dataclass(frozen=True)
class LocalFilters:
    """What a correction is made of at each place of a frame.

    Attributes
    ----------
    at
        Kernel, PSF and noise at pixel coordinates (x, y).
    scale_at
        By which a difference's variance is divided at (x, y) to be at the science level.
    moves
        The filters depend on the position.
    """

    at: Callable[[float, float], Filters | StackFilters]
    scale_at: Callable[[float, float], float]
    moves: bool


def local_correction(
    filters: LocalFilters,
    *,
    box: Box,
    image: Array,
    noise: LocalNoise | None,
    full_variance: bool,
    response: bool,
    tolerance: float,
    precision: float = SPATIAL_PRECISION,
) -> LocalCorrection:
    """Make a correction that may follow kernel and noise over the field.

    Parameters
    ----------
    filters
        `LocalFilters`.
    box
        Frame.
    image
        ``(ny, nx)`` that is to be filtered.
    noise
        Variance ratio; None to take that of the filters, everywhere.
    full_variance
        Propagate every pixel's variance.
    response
        The score of a point source is wanted; the filters have the PSF.
    tolerance
        Of the compression, in standard deviations of a pixel (`VaryingFilter.error`), and
        relative for the variance.
    precision
        Standard deviations of a pixel that the cut-off of the filter may move it by.

    Returns
    -------
    correction
        `LocalCorrection`.  Where the tolerance is not reached, a line says what was; beyond a
        hundredth it is a warning.

    Raises
    ------
    ArgumentError
        If the sum of a kernel changes its sign in the field, or nearly vanishes.
    """
    middle, moves = filters.at(box.x.center, box.y.center), filters.moves
    low, high = (0.0, 0.0) if noise is None else noise.extremes

    def positions(u: float, v: float) -> tuple[float, float]:
        x = box.x.start - 0.5 + 0.5 * box.x.size * (1 + u)
        y = box.y.start - 0.5 + 0.5 * box.y.size * (1 + v)
        return x, y

    if moves:
        nodes = np.linspace(-1, 1, _SUM_NODES)
        _check_sums([filters.at(*positions(u, v)).kernels for v in nodes for u in nodes])

    def with_ratio(local: Filters | StackFilters, log_ratio: float) -> Filters | StackFilters:
        if noise is None or isinstance(local, StackFilters):
            return local
        level = local.means[0]
        pair = (level, level * math.exp(log_ratio))
        science, template = pair if local.template_matched else pair[::-1]
        return dataclasses.replace(local, science_variance=science, template_variance=template)

    corners = [(0, 0), (-1, -1), (1, 1), (-1, 1), (1, -1)] if moves else [(0, 0)]
    first = fourier.fast_shape(*middle.stamps, (_FIRST_GRID, _FIRST_GRID))
    tried = [
        with_ratio(filters.at(*positions(*place)), ratio).kernel_on(first)
        for place in corners
        for ratio in {low, high}
    ]
    sigma = min(sigma for _, _, sigma in tried)
    reach = reach_or_cut([kernel for _, kernel, _ in tried], image, sigma, precision)
    side = 2 * reach + 1
    largest = max(n for stamp in middle.stamps for n in stamp)
    shape = _grid(max(side + largest, _SMALLEST_GRID))

    def sample(u: float, v: float, log_ratios: Array) -> tuple[Array, Array]:
        x, y = positions(u, v)
        here, scale = filters.at(x, y), filters.scale_at(x, y)
        images, numbers = [], []
        for log_ratio in log_ratios:
            correction, kernel, _ = with_ratio(here, float(log_ratio)).kernel_on(shape)
            compact = fourier.crop_center_origin(kernel, (side, side))
            images.append(compact / compact.sum())
            weights = [weight / scale for weight in correction.variance_weights]
            if response:
                assert isinstance(here, Filters)
                assert here.psf_image is not None
                seen = filtered_stamp(
                    correction.correction_ft, here.psf_image, shape=correction.shape
                )
                weights.append(seen[seen.shape[0] // 2, seen.shape[1] // 2])
            numbers.append(weights)
        return np.stack(images), np.array(numbers)

    found = varying_filter(sample, log_ratios=(low, high), moves=moves, tolerance=tolerance)
    off = [
        *([f"a pixel by {found.error:.2g} of its sigma"] * (found.error > tolerance)),
        *([f"a variance by {found.number_error:.2g} of itself"] * (found.number_error > tolerance)),
    ]
    if off:
        worst = max(found.error, found.number_error)
        _log.log(
            logging.WARNING if worst > _MATTERS else logging.INFO,
            "The correction varies over the field faster than polynomials of order %d and %d"
            " follow: it may be off, %s; %g was to be reached.",
            found.order,
            found.ratio_order,
            " and ".join(off),
            tolerance,
        )
    squares = None
    if full_variance:
        assert isinstance(middle, Filters)
        convolved_with = [middle.kernel_image.shape]
        if middle.preconvolution_image is not None:
            convolved_with.append(middle.preconvolution_image.shape)
        reaches = (max(lengths) // 2 for lengths in zip(*convolved_with, strict=True))
        wide = tuple(side + 2 * n for n in reaches)
        wide_shape = _grid(max(*wide, *shape))

        def squared(which: Literal[0, 1]) -> Sample:
            def sample(u: float, v: float, log_ratios: Array) -> tuple[Array, Array]:
                x, y = positions(u, v)
                here, scale = filters.at(x, y), filters.scale_at(x, y)
                images, sums = [], []
                for log_ratio in log_ratios:
                    local = with_ratio(here, float(log_ratio))
                    assert isinstance(local, Filters)
                    correction = local.correction_on(wide_shape)
                    kernel = pixel_kernel(
                        correction.noise_filters_ft[which], shape=correction.shape
                    )
                    square = fourier.crop_center_origin(kernel, wide) ** 2
                    total = float(square.sum())
                    # Of unit sum, as the compression wants them, however small they are.
                    images.append(square / total)
                    sums.append([total / scale])
                return np.stack(images), np.array(sums)

            return sample

        squares = (
            varying_filter(squared(0), log_ratios=(low, high), moves=moves, tolerance=tolerance),
            varying_filter(squared(1), log_ratios=(low, high), moves=moves, tolerance=tolerance),
        )
    return LocalCorrection(
        filter=found,
        squares=squares,
        noise=None if high <= low else noise,
        box=box,
        reach=reach,
        tolerance=tolerance,
    )
