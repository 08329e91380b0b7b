"""Cells: dividing an exposure into them, decorrelating each, and putting them together."""

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
"""Mask plane of pixels to which no sub-image gave a finite value."""

_PSF_NODES = (1 / 6, 1 / 2, 5 / 6)
"""Places at which a varying PSF of a sub-image is sampled, in units of the sub-image's sides."""
_NO_VALUE, _NOT_FINITE, _BAD, _GOOD = range(4)
"""Worth of a pixel's value; the values of the highest worth make the result."""
_RESPONSE_ORDER = 2
"""Order of the polynomial that follows the response from cell to cell."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellOptions:
    """How an exposure is divided into cells, and put together again.

    Attributes
    ----------
    middles
        (x, y) of the cells' middles, pixel coordinates; None for a grid.
    size, step, border
        Along x and y: side of a cell, distance from one cell to the next, and margin around a cell
        that is filtered with it; pixels, or full widths at half maximum of the PSF with
        ``by_fwhm``.
    adjust
        Length that gives way if size and step do not fit the image: ``spacing``, ``size`` or
        ``none``.
    by_fwhm
        Lengths are multiples of the PSF's full width at half maximum.
    operation
        Values where cells overlap: their ``average``, or a ``copy`` of the last.
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
    """Full width at half maximum of an exposure's PSF, the unit of cells and borders.

    Parameters
    ----------
    exposure
        Exposure.
    *others
        Exposures that stand in if it has no PSF: the first that has one counts.

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


def kernel_reach(
    kernel: ConvolutionKernel | PointSpreadFunction | Array | None,
) -> tuple[int, int]:
    """Pixels (y, x) around a cell that a matching kernel and its correction need.

    Parameters
    ----------
    kernel
        Kernel, PSF or image, also of lsst.images; None for no kernel.

    Returns
    -------
    reach
        The kernel's shape: half of it for the kernel, half for the correction.  Zero for none.
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
        Box of the exposure.
    options
        `CellOptions`.
    unit
        Pixels per unit of the options' lengths.
    reach
        (y, x) least widths of borders, pixels.

    Returns
    -------
    cells
        Each cell, and the cell with its border; both inside the box.

    Raises
    ------
    ArgumentError
        If a cell lies outside the box.
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
    """First pixel, and the one after the last, of each cell along one axis of an image."""
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
        Values where sub-images overlap: a ``copy`` of the last, their ``sum`` or ``average``.
    bad_mask_planes
        Pixels with any of these count only where no other part has a better value.

    Returns
    -------
    united
        Exposure with the box, headers and WCS of ``exposure``.  Finite values of a pixel count
        before others, and good ones before bad ones; a sum adds all finite ones.  Mask planes are
        united over the values that count.  Pixels without a finite value have the plane `INVALID`;
        pixels outside all parts are NaN.  Its PSF is `united_psf`.
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
        Mask planes of the sub-images; names may repeat.
    operation
        ``copy``, ``sum`` or ``average``.
    dtype
        Type of the image.
    """

    def __init__(
        self, shape: tuple[int, int], names: Iterable[str], *, operation: str, dtype: npt.DTypeLike
    ) -> None:
        self._operation = operation
        self._dtype = dtype
        # Sums need double precision; copies can save the memory.
        self._image = np.full(shape, np.nan, dtype if operation == "copy" else np.float64)
        self._variance = np.full(shape, np.nan, self._image.dtype)
        self._count = np.zeros(shape, np.int32) if operation == "average" else None
        self.worth = np.full(shape, _NO_VALUE, np.int8)
        self.flags = {name: np.zeros(shape, bool) for name in names}

    def add(self, part: Exposure, bad: Array, where: tuple[slice, slice]) -> None:
        """Add a sub-image, with its bad pixels, at its slices of the whole image."""
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
        # Infinite pixels of opposite signs may meet, whose sum is invalid.
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
    """PSF of a whole exposure from the PSFs of its parts.

    Parameters
    ----------
    parts
        Sub-images.
    exposure
        The whole.

    Returns
    -------
    psf
        The whole's own if all parts still have it; else polynomials of order 2, fitted to the
        parts' PSFs at their positions; None if a part has none.
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
    kernel: ConvolutionKernel | PointSpreadFunction | Array | None,
    *,
    preconvolution_kernel: Array | None = None,
    noise: InputNoise | None = None,
    options: DecorrelationOptions,
) -> tuple[Exposure, Decorrelation | None]:
    """Decorrelate one cell, with kernel and noise taken in its middle.

    Parameters
    ----------
    science, template
        The whole exposures before any convolution.
    difference
        Difference on the cell with its border.
    cell
        Box of the cell.
    kernel
        Matching kernel; the difference's own if None.
    preconvolution_kernel
        For a score: PSF that the whole science exposure was correlated with.
    noise
        As for `whitediff.decorrelation.exposures.decorrelate`; mean variances that are not given
        are measured in and around the cell, on masked pixels if there are no others.
    options
        As for `decorrelate`, apart from the place.

    Returns
    -------
    part, numbers
        The decorrelated cell, and the numbers that describe it.  If an exposure has no finite
        pixel or no positive variance there: the difference as it is, marked CONTAMINATED, and
        None.
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
    # A copy, so that the borders' memory is released.
    trimmed = untouched(result.exposure.cutout(cell))
    return trimmed, dataclasses.replace(result, exposure=trimmed, options=options)


def _local_variance(
    exposure: Exposure, given: float | None, options: DecorrelationOptions
) -> float | None:
    """Mean variance of a sub-image; None if it has none."""
    if given is not None:
        return given
    # A cell may lie wholly inside a bright source, whose pixels the first planes exclude.
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
    """Log only once what every cell would log: a fault of the kernel is the same in all cells."""
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
        Difference made of them, with its kernel.
    cells
        `CellOptions`.
    noises
        Covariances of the inputs' noise; None: as the options say, measured once for the frame.
    sources
        ``(ny, nx)`` boolean: pixels with a source, for this measurement; found if not given.
    options
        Options of each cell.

    Returns
    -------
    result
        `summary_of_cells`.

    Raises
    ------
    ArgumentError, DataError
        As by `decorrelate`; if no cell has a usable pixel, as by `decorrelate` of the whole
        exposures.
    """
    if difference.psf is not None:
        # A conversion in every cell would be slow.
        psf = as_kernel_psf(difference.psf, difference.bbox)
        difference = difference.replaced()
        difference.psf = psf
    if noises is None:
        noises = (None, None)
        if options.noise != "white":
            if sources is None:
                sources = source_pixels(science, template)
            noises = measured_noises(science, template, sources, how=options.noise)
    # The noise of the whole frame is measured by now; a cell has one kernel, that of its middle.
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
        # Raises the error that names the fault of the exposures as a whole.
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
    """Numbers of all cells, as one decorrelation.

    Parameters
    ----------
    cells
        Decorrelations of all cells that have one.
    exposure
        The united exposure.
    science_variance, template_variance, variance_mean_before, variance_mean_after
        Mean variances of whole exposures, image_unit².

    Returns
    -------
    result
        Kernel, position and grid of the cell nearest to the middle, and mean weights of all.
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
    """Function of a box: score of a point source of unit flux at each pixel."""
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
