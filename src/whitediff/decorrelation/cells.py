"""A grid of sub-images: dividing an exposure, decorrelating each, and putting them together."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..exposures import foreign, masks
from ..exposures.boxes import Box
from ..exposures.covariance import Noise
from ..exposures.fields import ChebyshevField, scattered_fit
from ..exposures.kernels import ConvolutionKernel, constant_kernel
from ..exposures.model import Exposure, native_float
from ..exposures.psf import (
    KernelPointSpreadFunction,
    Light,
    PointSpreadFunction,
    as_kernel_psf,
    fwhm_of_psf,
    scattered_psf,
)
from ..messages import OnceEach
from ..noise.exposures import InputNoise, measured_noises, source_pixels
from .exposures import Decorrelation, DecorrelationOptions, decorrelate, untouched, variance_mean

__all__ = [
    "INVALID",
    "CellOptions",
    "decorrelate_cell",
    "decorrelate_cells",
    "grid",
    "kernel_reach",
    "length_unit",
    "once_a_frame",
    "summary_of_cells",
    "united",
    "united_psf",
]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.decorrelate")

INVALID = "INVALID_MAPREDUCE"
"""Plane of the pixels to which no sub-image gave a value."""

_PSF_NODES = (1 / 6, 1 / 2, 5 / 6)
"""Where the PSF of a sub-image is sampled if it varies, in units of the sub-image's sides."""
_NO_VALUE, _NOT_FINITE, _BAD, _GOOD = range(4)
"""Worth of a pixel's value; the values of the highest worth make the result."""
_RESPONSE_ORDER = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellOptions:
    """How an exposure is divided into cells, and put together again.

    Attributes
    ----------
    middles
        (x, y) of the cells' middles, pixel coordinates; None for a grid.
    size, step, border
        Along x and y: pixels of a cell, from one cell to the next, and around a cell where it is
        filtered; pixels, or full widths at half maximum of the PSF with ``by_fwhm``.
    adjust
        What gives way where size and step do not fit: ``spacing``, ``size`` or ``none``.
    by_fwhm
        Lengths are multiples of the PSF's full width at half maximum.
    operation
        Where cells overlap: their ``average``, or a ``copy`` of the last.
    bad_mask_planes
        Pixels with any of these count only where no other cell has a better value.
    """

    middles: tuple[tuple[float, float], ...] | None = None
    size: tuple[float, float] = (10.0, 10.0)
    step: tuple[float, float] = (10.0, 10.0)
    border: tuple[float, float] = (5.0, 5.0)
    adjust: Literal["spacing", "size", "none"] = "spacing"
    by_fwhm: bool = True
    operation: Literal["average", "copy"] = "average"
    bad_mask_planes: tuple[str, ...] = (INVALID, "BAD", "NO_DATA")


def length_unit(exposure: Exposure, *others: Exposure) -> float:
    """Pixels that are one full width at half maximum of a PSF.

    Parameters
    ----------
    exposure
        Exposure.
    *others
        Whose PSFs are taken where it has none, the first that has one.

    Returns
    -------
    unit
        Pixels.

    Raises
    ------
    ArgumentError
        If none of them has a PSF.
    """
    for each in (exposure, *others):
        if each.psf is not None:
            return fwhm_of_psf(each.psf)
    raise ArgumentError.of(
        exposure.source or "The exposure",
        "has no PSF whose width could be the unit of"
        " cells and borders; set scaleByFwhm = False and give them in pixels.",
    )


def kernel_reach(kernel: Any) -> tuple[int, int]:
    """Pixels (y, x) around a cell that a matching kernel and its correction need.

    Parameters
    ----------
    kernel
        Kernel, PSF or image; None for nothing.

    Returns
    -------
    reach
        The kernel's shape: half of it for the kernel, as much for the correction.
    """
    kernel = foreign.adapted(kernel)
    if isinstance(kernel, ConvolutionKernel):
        shape: tuple[int, ...] = kernel.shape
    elif isinstance(kernel, PointSpreadFunction):
        x, y = kernel.average_position
        shape = kernel.at(x=x, y=y).shape
    else:
        shape = () if kernel is None else np.shape(getattr(kernel, "array", kernel))
    return (int(shape[0]), int(shape[1])) if len(shape) == 2 else (0, 0)


def grid(
    box: Box, options: CellOptions, *, unit: float = 1.0, reach: tuple[int, int] = (0, 0)
) -> list[tuple[Box, Box]]:
    """Divide a box into cells.

    Parameters
    ----------
    box
        Of the exposure.
    options
        `CellOptions`.
    unit
        Pixels of a length.
    reach
        (y, x) pixels that borders have at least.

    Returns
    -------
    cells
        Each cell, and the same with its border, as far as the box reaches.

    Raises
    ------
    ArgumentError
        If a cell lies outside of the box.
    """

    def pixels(length: float, least: int = 1) -> int:
        return max(least, math.floor(length * unit + 0.5))

    size = (pixels(options.size[1]), pixels(options.size[0]))
    border = (
        max(pixels(options.border[1], 0), reach[0]),
        max(pixels(options.border[0], 0), reach[1]),
    )
    if options.middles is not None:
        cells = [_centered_cell(y, x, size, box) for x, y in options.middles]
    else:
        step = (pixels(options.step[1]), pixels(options.step[0]))
        if options.adjust == "none" and (step[0] > size[0] or step[1] > size[1]):
            _log.warning(
                "Cells of %d x %d pixels every %d x %d leave gaps; adjustGridOption = 'spacing'"
                " or 'size' closes them.",
                *size,
                *step,
            )
        rows, columns = (
            _intervals(length, size[i], step[i], options.adjust)
            for i, length in enumerate(box.shape)
        )
        y0, x0 = box.start
        cells = [
            Box.between((y0 + bottom, y0 + top), (x0 + left, x0 + right))
            for bottom, top in rows
            for left, right in columns
        ]
    _log.debug("%d cells of %s pixels, borders of %s.", len(cells), size, border)
    return [(cell, _expanded(cell, border, box)) for cell in cells]


def _intervals(length: int, size: int, step: int, adjust: str) -> list[tuple[int, int]]:
    """Cells along one axis of an image: first pixel, and the one after the last."""
    if adjust == "none":
        return [(start, min(start + size, length)) for start in range(0, length, step)]
    if adjust == "size":
        # A cell smaller than the step would leave a gap.
        size = max(size, step)
        n = max(0, length - size) // step + 1
        size = length - (n - 1) * step
        return [(i * step, i * step + size) for i in range(n)]
    if size >= length:
        return [(0, length)]
    # Rounding cannot open a gap: starts are at most a whole number of pixels apart.
    n = math.ceil((length - size) / min(step, size)) + 1
    starts = [((length - size) * i + (n - 1) // 2) // (n - 1) for i in range(n)]
    return [(start, start + size) for start in starts]


def _centered_cell(y: float, x: float, size: tuple[int, int], box: Box) -> Box:
    start = (math.floor(y - (size[0] - 1) / 2 + 0.5), math.floor(x - (size[1] - 1) / 2 + 0.5))
    cell = Box.from_shape(size, start).overlap(box)
    if cell is None:
        raise ArgumentError(
            f"The cell of {size[0]} x {size[1]} pixels at x={x:g}, y={y:g} lies outside of the"
            f" image {box}; cellCentroidsX and cellCentroidsY are pixel coordinates."
        )
    return cell


def _expanded(cell: Box, border: tuple[int, int], box: Box) -> Box:
    return Box.between(
        (max(cell.y.start - border[0], box.y.start), min(cell.y.stop + border[0], box.y.stop)),
        (max(cell.x.start - border[1], box.x.start), min(cell.x.stop + border[1], box.x.stop)),
    )


def united(
    parts: Sequence[Exposure],
    exposure: Exposure,
    *,
    operation: Literal["copy", "sum", "average"],
    bad_mask_planes: Iterable[str],
) -> Exposure:
    """Put exposures of sub-images together.

    Parameters
    ----------
    parts
        Sub-images, in the pixel coordinates of the whole.
    exposure
        The whole image; not changed.
    operation
        Where they overlap: a ``copy`` of the last, their ``sum`` or ``average``.
    bad_mask_planes
        Pixels with any of these count only where no other part has a better value.

    Returns
    -------
    united
        With the box, headers and WCS of ``exposure``.  A pixel's values that are finite count
        before those that are not, and good ones before bad ones; a sum has all finite ones.  Mask
        planes are united over the values that count.  Pixels without a finite value have the plane
        `INVALID`; where no part lies they are NaN.  Its PSF is `united_psf`.
    """
    box, bad_mask_planes = exposure.bbox, list(bad_mask_planes)
    result = _Reduction(
        exposure.shape,
        (name for part in parts for name in part.mask.names),
        operation=operation,
        dtype=native_float(exposure.data),
    )
    for part in parts:
        overlap = part.bbox.overlap(box)
        assert overlap is not None
        inner = part if overlap == part.bbox else part.cutout(overlap)
        bad = masks.flagged(inner.mask, bad_mask_planes)
        if operation == "sum":
            bad = np.zeros_like(bad)
        result.add(inner, bad, box.slices_of(overlap))
    image, variance = result.planes()
    invalid = result.worth <= _NOT_FINITE
    flags = result.flags
    flags[INVALID] = flags[INVALID] | invalid if INVALID in flags else invalid
    reduced = exposure.replaced(
        data=image,
        mask=masks.make_mask(flags, exposure.shape),
        variance=variance.astype(native_float(exposure.variance), copy=False),
    )
    reduced.header = exposure.header.copy()
    reduced.primary_header = exposure.primary_header.copy()
    reduced.psf = united_psf(parts, exposure)
    return reduced


class _Reduction:
    """Planes that sub-images are added to, one after the other.

    Parameters
    ----------
    shape
        (ny, nx) of the whole image.
    names
        Mask planes of the sub-images, with repetitions.
    operation
        ``copy``, ``sum`` or ``average``.
    dtype
        Of the image.
    """

    def __init__(
        self, shape: tuple[int, int], names: Iterable[str], *, operation: str, dtype: Any
    ) -> None:
        self._operation = operation
        self._dtype = dtype
        # Copies need no room for the sums.
        self._image = np.full(shape, np.nan, dtype if operation == "copy" else np.float64)
        self._variance = np.full(shape, np.nan, self._image.dtype)
        self._count = np.zeros(shape, np.int32) if operation == "average" else None
        self.worth = np.full(shape, _NO_VALUE, np.int8)
        self.flags = {name: np.zeros(shape, bool) for name in names}

    def add(self, part: Exposure, bad: Array, where: Any) -> None:
        """Add a sub-image with its bad pixels at its slices of the whole image."""
        image, variance = part.data, part.variance
        finite = np.isfinite(image)
        trusted = np.isfinite(variance) & ~bad
        worth = np.where(finite, np.where(trusted, _GOOD, _BAD), _NOT_FINITE).astype(np.int8)
        before = self.worth[where]
        replace = worth >= before if self._operation == "copy" else worth > before
        if self._operation == "sum":
            # Every finite value is one of the summands.
            replace = finite & (before <= _NOT_FINITE) | (~finite & (before == _NO_VALUE))
            join = finite & (before > _NOT_FINITE)
            self.worth[where] = np.maximum(worth, before)
        else:
            join = (worth == before) & ~replace
            before[replace] = worth[replace]
        # Infinite pixels may meet infinite ones of the other sign.
        with np.errstate(invalid="ignore"):
            for whole, values in ((self._image, image), (self._variance, variance)):
                target = whole[where]
                target[replace] = values[replace]
                target[join] += values[join]
        if self._count is not None:
            self._count[where][replace] = 1
            self._count[where][join] += 1
        for name, plane in self.flags.items():
            if name in part.mask.names:
                flagged = masks.flagged(part.mask, [name])
                target = plane[where]
                target[replace] = flagged[replace]
                target[join] |= flagged[join]
            else:
                plane[where][replace] = False

    def planes(self) -> tuple[Array, Array]:
        """Image and variance of the whole."""
        if self._count is not None:
            several = self._count > 1
            for plane in (self._image, self._variance):
                plane[several] /= self._count[several]
        return self._image.astype(self._dtype, copy=False), self._variance


def united_psf(parts: Sequence[Exposure], exposure: Exposure) -> PointSpreadFunction | None:
    """PSF of a whole from those of its parts.

    Parameters
    ----------
    parts
        Sub-images.
    exposure
        The whole.

    Returns
    -------
    psf
        The whole's where all parts have it still; else fitted to those of the parts at their
        positions, by polynomials of order 2; None if a part has none.
    """
    if all(part.psf is exposure.psf for part in parts):
        return exposure.psf
    images, positions = [], []
    for part in parts:
        psf, box = part.psf, part.bbox
        if psf is None:
            return None
        constant = isinstance(psf, KernelPointSpreadFunction) and psf.kernel.is_constant
        nodes = (0.5,) if constant else _PSF_NODES
        for x in (box.x.start - 0.5 + node * box.x.size for node in nodes):
            for y in (box.y.start - 0.5 + node * box.y.size for node in nodes):
                images.append(psf.at(x=x, y=y))
                positions.append((x, y))
    x, y = np.array(positions).T
    light = Light.of_parts([Light.of(part.psf) for part in parts if part.psf is not None])
    return scattered_psf(images, x=x, y=y, bounds=exposure.bbox, light=light)


def decorrelate_cell(
    science: Exposure,
    template: Exposure,
    difference: Exposure,
    cell: Box,
    kernel: Any,
    *,
    preconvolution_kernel: Array | None = None,
    noise: InputNoise | None = None,
    options: DecorrelationOptions,
) -> tuple[Exposure, Decorrelation | None]:
    """Decorrelate one cell, with kernel and noise as they are in its middle.

    Parameters
    ----------
    science, template
        The whole exposures before any convolution.
    difference
        The cell with its border.
    cell
        Its box.
    kernel
        Matching kernel.
    preconvolution_kernel
        For a score: what the whole science exposure was correlated with.
    noise
        As for `whitediff.decorrelation.exposures.decorrelate`; mean variances that are not given
        are those of the planes around the cell, with masked pixels where there are no others.
    options
        As for `decorrelate`, but for the place.

    Returns
    -------
    part, numbers
        The cell; and the numbers behind it.  Where an exposure has no finite pixel around it, or
        no positive variance, the difference as it is, marked CONTAMINATED, and None.
    """
    science, template = science.cutout(difference.bbox), template.cutout(difference.bbox)
    noise = noise or InputNoise()
    variances = (
        _local_variance(science, noise.science_variance, options),
        _local_variance(template, noise.template_variance, options),
    )
    if None in variances or not all(
        np.isfinite(exposure.data).any() for exposure in (science, template, difference)
    ):
        _log.debug("No usable pixels in %s; the difference is left as it is.", cell)
        return _left_alone(difference.cutout(cell)), None
    result = decorrelate(
        science,
        template,
        difference,
        kernel,
        preconvolution_kernel=preconvolution_kernel,
        noise=dataclasses.replace(
            noise, science_variance=variances[0], template_variance=variances[1]
        ),
        options=dataclasses.replace(
            options, x=cell.x.start + cell.x.size / 2, y=cell.y.start + cell.y.size / 2
        ),
    )
    # A copy lets go of the borders.
    trimmed = untouched(result.exposure.cutout(cell))
    return trimmed, dataclasses.replace(result, exposure=trimmed, options=options)


def _local_variance(
    exposure: Exposure, given: float | None, options: DecorrelationOptions
) -> float | None:
    """Mean variance of a sub-image; None if it has none."""
    if given is not None:
        return given
    # A cell may lie inside of a bright source: its noise is that of the cell.
    for ignored in (options.ignore_mask_planes, options.untrusted_mask_planes):
        mean = variance_mean(exposure, ignored)
        if math.isfinite(mean) and mean > 0:
            return mean
    return None


def _left_alone(difference: Exposure) -> Exposure:
    result = untouched(difference)
    everywhere = np.ones(result.shape, dtype=bool)
    return result.replaced(mask=masks.with_plane(result.mask, masks.CONTAMINATED, everywhere))


@contextmanager
def once_a_frame() -> Iterator[None]:
    """Say once what every cell would say: what is wrong with the kernel is wrong in all of them."""
    repetitions = OnceEach(by_kind=True)
    _log.addFilter(repetitions)
    try:
        yield
    finally:
        _log.removeFilter(repetitions)


def decorrelate_cells(
    science: Exposure,
    template: Exposure,
    difference: Exposure,
    cells: CellOptions,
    *,
    preconvolution_kernel: Array | None = None,
    noises: tuple[Noise, Noise] | None = None,
    sources: Array | None = None,
    options: DecorrelationOptions,
) -> Decorrelation:
    """Decorrelate a difference on a grid of cells.

    Parameters
    ----------
    science, template, preconvolution_kernel
        As for `whitediff.decorrelation.exposures.decorrelate`.
    difference
        What was made of them, with its kernel.
    cells
        `CellOptions`.
    noises
        Covariances of the inputs' noise; None: as the options say, measured once for the frame.
    sources
        ``(ny, nx)`` boolean: pixels with a source, for that; found if not given.
    options
        Of each cell.

    Returns
    -------
    result
        `summary_of_cells`.

    Raises
    ------
    ArgumentError, DataError
        As by `decorrelate`; what is wrong with the exposures as a whole where no cell has a usable
        pixel.
    """
    if difference.psf is not None:
        # Once, not in every cell.
        psf = as_kernel_psf(difference.psf, difference.bbox)
        difference = difference.replaced()
        difference.psf = psf
    if noises is None:
        noises = (None, None)
        if options.noise != "white":
            if sources is None:
                sources = source_pixels(science, template)
            noises = measured_noises(science, template, sources, how=options.noise)
    each = dataclasses.replace(options, noise="white", spatially_varying=False, again=True)
    arguments: dict[str, Any] = {
        "preconvolution_kernel": preconvolution_kernel,
        "noise": InputNoise(science_covariance=noises[0], template_covariance=noises[1]),
        "options": each,
    }
    kernel = difference.kernel
    unit = length_unit(difference, science, template) if cells.by_fwhm else 1.0
    parts, found = [], []
    with once_a_frame():
        for cell, expanded in grid(difference.bbox, cells, unit=unit, reach=kernel_reach(kernel)):
            sub = untouched(difference.cutout(expanded))
            part, numbers = decorrelate_cell(science, template, sub, cell, kernel, **arguments)
            parts.append(part)
            if numbers is not None:
                found.append(numbers)
    if not found:
        # It knows what is wrong with the exposures as a whole.
        return decorrelate(science, template, difference, kernel, **arguments)
    whole = united(
        parts, difference, operation=cells.operation, bad_mask_planes=cells.bad_mask_planes
    )
    ignore = options.ignore_mask_planes
    return summary_of_cells(
        found,
        whole,
        science_variance=variance_mean(science, ignore),
        template_variance=variance_mean(template, ignore),
        variance_mean_before=variance_mean(difference, ignore),
        variance_mean_after=variance_mean(whole, ignore),
    )


def summary_of_cells(
    cells: Sequence[Decorrelation],
    exposure: Exposure,
    *,
    science_variance: float,
    template_variance: float,
    variance_mean_before: float,
    variance_mean_after: float,
) -> Decorrelation:
    """The numbers of all cells as those of one decorrelation.

    Parameters
    ----------
    cells
        Of all cells that were decorrelated.
    exposure
        What they were put together to.
    science_variance, template_variance, variance_mean_before, variance_mean_after
        Mean variances of whole exposures, image_unit².

    Returns
    -------
    result
        Kernel, position and grid of the cell in the middle, and mean weights.
    """
    box = exposure.bbox
    middle = min(cells, key=lambda cell: math.hypot(cell.x - box.x.center, cell.y - box.y.center))
    weights = np.mean([cell.variance_weights for cell in cells], axis=0)
    if exposure.kernel is None:
        exposure.kernel = constant_kernel(cells[0].kernel_image, box)
    return dataclasses.replace(
        middle,
        exposure=exposure,
        science_variance=science_variance,
        template_variance=template_variance,
        variance_weights=(float(weights[0]), float(weights[1])),
        variance_mean_before=variance_mean_before,
        variance_mean_after=variance_mean_after,
        contaminated_fraction=float(masks.flagged(exposure.mask, [masks.CONTAMINATED]).mean()),
        response=_response(cells, box),
    )


def _response(cells: Sequence[Decorrelation], box: Box) -> Callable[[Box], Array] | None:
    """Score of a point source of unit flux over the field."""
    known = [(cell, cell.response) for cell in cells if cell.response is not None]
    if not known:
        return None
    positions, peaks = [], []
    for cell, response in known:
        middle = cell.exposure.bbox
        x, y = round(middle.x.center), round(middle.y.center)
        positions.append((x, y))
        peaks.append(response(Box.between((y, y + 1), (x, x + 1)))[0, 0])
    x, y = np.array(positions, dtype=float).T
    terms, found = scattered_fit(np.array(peaks), x=x, y=y, bounds=box, order=_RESPONSE_ORDER)
    coefficients = np.zeros((_RESPONSE_ORDER + 1, _RESPONSE_ORDER + 1))
    for (p, q), value in zip(terms, found, strict=True):
        coefficients[p, q] = value
    return ChebyshevField(box, coefficients).on
