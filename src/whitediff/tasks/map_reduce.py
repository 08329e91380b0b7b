"""LSST tasks that run any operation on a grid of sub-images, and put the results together."""

from __future__ import annotations

import abc
import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import lsst.pex.config as pex_config
import numpy as np
import numpy.typing as npt
from lsst.pipe.base import Struct, Task
from lsst.utils.timer import timeMethod

from ..errors import ArgumentError
from ..exposures import masks
from ..exposures.boxes import Box
from ..exposures.decorrelation import untouched, variance_mean
from ..exposures.model import Exposure, native_float
from ..exposures.psf import (
    KernelPointSpreadFunction,
    Light,
    fwhm_of_psf,
    scattered_psf,
)
from .match import reject

__all__ = [
    "ImageMapReduceConfig",
    "ImageMapReduceTask",
    "ImageMapper",
    "ImageMapperConfig",
    "ImageReducer",
    "ImageReducerConfig",
]

type Array = npt.NDArray[Any]

INVALID = "INVALID_MAPREDUCE"
"""Plane of the pixels to which no sub-image gave a value."""

_PSF_NODES = (1 / 6, 1 / 2, 5 / 6)
"""Where the PSF of a sub-image is sampled if it varies, in units of the sub-image's sides."""

# Worth of a pixel's value; the values of the highest worth make the result.
_NO_VALUE, _NOT_FINITE, _BAD, _GOOD = range(4)


class ImageMapperConfig(pex_config.Config):
    """Configuration of `ImageMapper`."""


class ImageMapper(Task, abc.ABC):
    """An operation on a sub-image: subclass it, and implement `run`.

    Parameters
    ----------
    *args, **kwargs
        As for `lsst.pipe.base.Task`.

    Notes
    -----
    `ImageMapReduceTask` calls `run` for one sub-image of its grid after the other.
    """

    ConfigClass: ClassVar[Any] = ImageMapperConfig
    _DefaultName: ClassVar[str] = "ip_diffim_ImageMapper"

    @abc.abstractmethod
    def run(
        self,
        subExposure: Exposure,
        expandedSubExposure: Exposure,
        fullBBox: Box,
        **kwargs: Any,
    ) -> Struct:
        """Perform the operation on one sub-image.

        Parameters
        ----------
        subExposure
            The sub-image.
        expandedSubExposure
            The sub-image with its borders, as far as the image reaches.
        fullBBox
            Box of the whole image.
        **kwargs
            What was given to `ImageMapReduceTask.run`.

        Returns
        -------
        result
            ``subExposure``: exposure to become part of the result, in the pixel coordinates of
            the whole image; of any box that overlaps it.  Or any other attributes, if
            ``reduceOperation`` is ``none``.

        Notes
        -----
        Both exposures are copies, and may be changed and returned.
        """


class ImageReducerConfig(pex_config.Config):
    """Configuration of `ImageReducer`."""

    reduceOperation = pex_config.ChoiceField(
        dtype=str,
        default="average",
        doc="How sub-images become one image.",
        allowed={
            "none": "Not at all: the result is the list of the mapper's results.",
            "copy": "Where sub-images overlap, the last one counts.",
            "sum": "They are added where they overlap, and so are their variances.",
            "average": "Mean where they overlap; of the variances too, as the sub-images hold the"
            " same pixels, whose errors are common.",
            "coaddPsf": "The exposure's own pixels with the PSF of the sub-images.",
        },
    )
    badMaskPlanes = pex_config.ListField(
        dtype=str,
        default=[INVALID, "BAD", "NO_DATA"],
        doc="Pixels of a sub-image with any of these planes, in the spelling of lsst.afw or of"
        " lsst.images, are copied or averaged only where no other sub-image has a better value.",
    )


class ImageReducer(Task):
    """Put exposures of sub-images together.

    Parameters
    ----------
    *args, **kwargs
        As for `lsst.pipe.base.Task`.
    """

    ConfigClass: ClassVar[Any] = ImageReducerConfig
    _DefaultName: ClassVar[str] = "ip_diffim_ImageReducer"

    def run(self, mapperResults: Sequence[Struct], exposure: Any, **kwargs: Any) -> Struct:
        """Put exposures of sub-images together.

        Parameters
        ----------
        mapperResults
            What the mapper returned, one for each sub-image; their ``subExposure`` is used.
        exposure
            The whole image; not changed.
        **kwargs
            Accepted, and not used.

        Returns
        -------
        result
            ``exposure``: a new `whitediff.Exposure` of the whole image, or None where
            ``reduceOperation`` is ``none``; ``result``: ``mapperResults``.

        Raises
        ------
        ArgumentError
            If a result has no ``subExposure``, or one that lies outside of the image.

        Notes
        -----
        A pixel's values that are finite count before those that are not, and good ones before
        bad ones, ``badMaskPlanes``; a sum has all finite ones.  Mask planes are united over the
        values that count.  Pixels without a finite value have the plane INVALID_MAPREDUCE; where
        no sub-image lies they are NaN.

        The PSF is that of the exposure where all sub-images have it still.  Otherwise it is
        fitted to those of the sub-images at their positions, by polynomials of order 2; there is
        none if a sub-image has none.
        """
        if self.config.reduceOperation == "none":
            return Struct(exposure=None, result=mapperResults)
        exposure = Exposure.from_object(exposure)
        parts = [self._part(result, exposure.bbox) for result in mapperResults]
        if self.config.reduceOperation == "coaddPsf":
            reduced = untouched(exposure)
        else:
            reduced = self._reduced(parts, exposure)
        reduced.psf = _united_psf(parts, exposure)
        return Struct(exposure=reduced, result=mapperResults)

    def _part(self, result: Struct, box: Box) -> Exposure:
        part = getattr(result, "subExposure", None)
        if part is None:
            raise ArgumentError(
                "The mapper's result has no subExposure, only"
                f" {', '.join(result.getDict()) or 'nothing'}; reduceOperation ="
                f" {self.config.reduceOperation!r} needs it, 'none' takes any result."
            )
        part = Exposure.from_object(part)
        if part.bbox.overlap(box) is None:
            raise ArgumentError(
                f"The mapper returned a subExposure with the box {part.bbox}, outside of the"
                f" image {box}; it must keep the pixel coordinates of the whole image."
            )
        return part

    def _reduced(self, parts: Sequence[Exposure], exposure: Exposure) -> Exposure:
        box = exposure.bbox
        result = _Reduction(
            exposure.shape,
            (name for part in parts for name in part.mask.names),
            operation=self.config.reduceOperation,
            dtype=native_float(exposure.data),
        )
        for part in parts:
            overlap = part.bbox.overlap(box)
            assert overlap is not None
            part = part if overlap == part.bbox else part.cutout(overlap)
            bad = masks.flagged(part.mask, self.config.badMaskPlanes)
            if self.config.reduceOperation == "sum":
                bad = np.zeros_like(bad)
            result.add(part, bad, box.slices_of(overlap))
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


class ImageMapReduceConfig(pex_config.Config):
    """Configuration of `ImageMapReduceTask`."""

    mapper = pex_config.ConfigurableField(
        target=ImageMapper, doc="Operation on each sub-image: a subclass of ImageMapper."
    )
    reducer = pex_config.ConfigurableField(
        target=ImageReducer, doc="Puts the mapper's results together."
    )
    cellCentroidsX = pex_config.ListField(
        dtype=float,
        default=None,
        optional=True,
        doc="Columns of the cells' middles, in pixel coordinates; with cellCentroidsY, these cells"
        " are taken in place of a grid, wherever they leave gaps.",
    )
    cellCentroidsY = pex_config.ListField(
        dtype=float,
        default=None,
        optional=True,
        doc="Rows of the cells' middles, in pixel coordinates; as many as cellCentroidsX.",
    )
    cellSizeX = pex_config.RangeField(
        dtype=float,
        default=10.0,
        min=0.0,
        inclusiveMin=False,
        doc="Columns of a cell; pixels, or PSF FWHM if scaleByFwhm.",
    )
    cellSizeY = pex_config.RangeField(
        dtype=float,
        default=10.0,
        min=0.0,
        inclusiveMin=False,
        doc="Rows of a cell; pixels, or PSF FWHM if scaleByFwhm.",
    )
    gridStepX = pex_config.RangeField(
        dtype=float,
        default=10.0,
        min=0.0,
        inclusiveMin=False,
        doc="Columns from one cell to the next; pixels, or PSF FWHM if scaleByFwhm.",
    )
    gridStepY = pex_config.RangeField(
        dtype=float,
        default=10.0,
        min=0.0,
        inclusiveMin=False,
        doc="Rows from one cell to the next; pixels, or PSF FWHM if scaleByFwhm.",
    )
    borderSizeX = pex_config.RangeField(
        dtype=float,
        default=5.0,
        min=0.0,
        doc="Columns that the expanded cell has more on either side, as far as the image reaches;"
        " pixels, or PSF FWHM if scaleByFwhm.",
    )
    borderSizeY = pex_config.RangeField(
        dtype=float,
        default=5.0,
        min=0.0,
        doc="Rows that the expanded cell has more on either side, as far as the image reaches;"
        " pixels, or PSF FWHM if scaleByFwhm.",
    )
    adjustGridOption = pex_config.ChoiceField(
        dtype=str,
        default="spacing",
        doc="What gives way where size and step of the cells do not fit into the image.",
        allowed={
            "spacing": "The step: it becomes as much smaller as the cells need to cover the image"
            " with none beyond the edges.",
            "size": "The size: it becomes as much larger as the cells need to cover the image with"
            " none beyond the edges.",
            "none": "Neither: the last cells end with the image, and a step larger than the size"
            " leaves gaps.",
        },
    )
    scaleByFwhm = pex_config.Field(
        dtype=bool,
        default=True,
        doc="Sizes, steps and borders are multiples of the full width at half maximum of the"
        " exposure's PSF, instead of pixels.",
    )
    returnSubImages = pex_config.Field(
        dtype=bool,
        default=False,
        doc="Keep what went into the mapper with its results, as inputSubExposure and"
        " inputExpandedSubExposure.",
    )
    ignoreMaskPlanes = pex_config.ListField(
        dtype=str,
        default=list(masks.DEFAULT_IGNORE_MASK_PLANES),
        doc="Mask planes to ignore for the sigma-clipped mean variances in the metadata, in the"
        " spelling of lsst.afw or of lsst.images.",
    )

    def validate(self) -> None:
        """Refuse fields that contradict each other."""
        super().validate()
        x, y = self.cellCentroidsX, self.cellCentroidsY
        if (x is None) != (y is None) or (x is not None and len(x) != len(y)):
            name, other = (
                ("cellCentroidsX", "cellCentroidsY")
                if x is not None
                else ("cellCentroidsY", "cellCentroidsX")
            )
            reject(self, name, f"needs as many elements in {other}, {getattr(self, other)!r}")
        if x is not None and len(x) == 0:
            reject(self, "cellCentroidsX", "names no cell; None asks for a grid")


class ImageMapReduceTask(Task):
    """Run an operation on a grid of sub-images, and put the results together.

    Parameters
    ----------
    *args, **kwargs
        As for `lsst.pipe.base.Task`.

    Attributes
    ----------
    boxes0 : `list` [`whitediff.exposures.boxes.Box`]
        The cells; set by `run`, None before.
    boxes1 : `list` [`whitediff.exposures.boxes.Box`]
        The cells with their borders, as far as the image reaches.

    Raises
    ------
    ArgumentError
        If no mapper is configured.
    """

    ConfigClass: ClassVar[Any] = ImageMapReduceConfig
    _DefaultName: ClassVar[str] = "ip_diffim_imageMapReduce"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        target = self.config.mapper.target
        if inspect.isabstract(target):
            raise ArgumentError(
                f"The mapper {target.__name__} has no run method; retarget config.mapper to a"
                " subclass of ImageMapper that has one."
            )
        self.boxes0: list[Box] | None = None
        self.boxes1: list[Box] | None = None
        self.makeSubtask("mapper")
        self.makeSubtask("reducer")

    @timeMethod
    def run(self, exposure: Any, **kwargs: Any) -> Struct:
        """Run the mapper on every sub-image, and reduce the results.

        Parameters
        ----------
        exposure
            `whitediff.Exposure` or any lsst.images exposure; not changed.
        **kwargs
            For the mapper and the reducer.

        Returns
        -------
        result
            ``exposure``: a new `whitediff.Exposure`, or None; ``result``: list of what the mapper
            returned.  See `ImageReducer.run`.

        Raises
        ------
        ArgumentError
            If a cell lies outside of the image, sizes are multiples of the width of a PSF that the
            exposure lacks, or the results cannot be reduced.
        """
        exposure = Exposure.from_object(exposure)
        self._generateGrid(exposure, **kwargs)
        results = self._runMapper(exposure, **kwargs)
        reduced = self._runReducer(results, exposure, **kwargs)
        self.metadata["nCells"] = len(results)
        if reduced.exposure is not None:
            ignore = tuple(self.config.ignoreMaskPlanes)
            self.metadata["varianceMeanBefore"] = variance_mean(exposure, ignore)
            self.metadata["varianceMeanAfter"] = variance_mean(reduced.exposure, ignore)
        return reduced

    def _runMapper(self, exposure: Exposure, **kwargs: Any) -> list[Struct]:
        """Run the mapper on copies of every sub-image."""
        assert self.boxes0 is not None
        assert self.boxes1 is not None
        self.log.info("Running %s on %d sub-images.", type(self.mapper).__name__, len(self.boxes0))
        results = []
        for cell, expanded in zip(self.boxes0, self.boxes1, strict=True):
            # Copies: what a mapper changes must not come back in the next cell's borders.
            sub = untouched(exposure.cutout(cell))
            expanded_sub = untouched(exposure.cutout(expanded))
            result = self.mapper.run(sub, expanded_sub, exposure.bbox, **kwargs)
            if self.config.returnSubImages:
                result = Struct(
                    **result.getDict(),
                    inputSubExposure=exposure.cutout(cell),
                    inputExpandedSubExposure=exposure.cutout(expanded),
                )
            results.append(result)
        return results

    def _runReducer(self, mapperResults: list[Struct], exposure: Exposure, **kwargs: Any) -> Struct:
        """Reduce the mapper's results."""
        result: Struct = self.reducer.run(mapperResults, exposure, **kwargs)
        return result

    def _generateGrid(self, exposure: Exposure, **kwargs: Any) -> None:
        """Divide an exposure into cells; sets `boxes0` and `boxes1`."""
        box, config = exposure.bbox, self.config
        unit = self._lengthUnit(exposure, **kwargs) if config.scaleByFwhm else 1.0

        def pixels(length: float, least: int = 1) -> int:
            return max(least, math.floor(length * unit + 0.5))

        size = (pixels(config.cellSizeY), pixels(config.cellSizeX))
        border = self._borders(
            (pixels(config.borderSizeY, 0), pixels(config.borderSizeX, 0)), **kwargs
        )
        if config.cellCentroidsX is not None:
            centroids = zip(config.cellCentroidsY, config.cellCentroidsX, strict=True)
            cells = [_centered_cell(y, x, size, box) for y, x in centroids]
        else:
            step = (pixels(config.gridStepY), pixels(config.gridStepX))
            if config.adjustGridOption == "none" and (step[0] > size[0] or step[1] > size[1]):
                self.log.warning(
                    "Cells of %d x %d pixels every %d x %d leave gaps; adjustGridOption = 'spacing'"
                    " or 'size' closes them.",
                    *size,
                    *step,
                )
            rows, columns = (
                _intervals(length, size[i], step[i], config.adjustGridOption)
                for i, length in enumerate(exposure.shape)
            )
            y0, x0 = exposure.origin
            cells = [
                Box.between((y0 + bottom, y0 + top), (x0 + left, x0 + right))
                for bottom, top in rows
                for left, right in columns
            ]
        self.boxes0 = cells
        self.boxes1 = [_expanded(cell, border, box) for cell in cells]
        self.log.debug("%d cells of %s pixels, borders of %s.", len(cells), size, border)

    def _lengthUnit(self, exposure: Exposure, **kwargs: Any) -> float:
        """Pixels that are one FWHM."""
        if exposure.psf is None:
            raise ArgumentError(
                f"{exposure.source or 'The exposure'}: has no PSF whose width could be the unit of"
                " cells and borders; set scaleByFwhm = False and give them in pixels."
            )
        return fwhm_of_psf(exposure.psf)

    def _borders(self, borders: tuple[int, int], **kwargs: Any) -> tuple[int, int]:
        """Borders (y, x) in pixels; for subclasses that know how far their mapper reaches."""
        return borders


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


def _united_psf(parts: Sequence[Exposure], exposure: Exposure) -> Any:
    """PSF of a whole from those of its parts."""
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
