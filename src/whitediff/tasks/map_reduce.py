"""LSST tasks that run any operation on a grid of sub-images, and put the results together."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import lsst.pex.config as pex_config
from lsst.pipe.base import Struct, Task
from lsst.utils.timer import timeMethod

from ..decorrelation.cells import INVALID, CellOptions, grid, length_unit, united, united_psf
from ..decorrelation.exposures import untouched, variance_mean
from ..errors import ArgumentError
from ..exposures import masks
from ..exposures.boxes import Box
from ..exposures.model import Exposure
from .match import reject

if TYPE_CHECKING:
    from .decorrelate import ExposureLike

__all__ = [
    "ImageMapReduceConfig",
    "ImageMapReduceTask",
    "ImageMapper",
    "ImageMapperConfig",
    "ImageReducer",
    "ImageReducerConfig",
    "cell_options",
]


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
    `ImageMapReduceTask` calls `run` for each sub-image of its grid in turn.
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
            The sub-image with its borders, cut at the edges of the image.
        fullBBox
            Box of the whole image.
        **kwargs
            Keywords that were given to `ImageMapReduceTask.run`.

        Returns
        -------
        result
            ``subExposure``: exposure to become part of the result, in the pixel coordinates of
            the whole image, with any box that overlaps the image.  If ``reduceOperation`` is
            ``none``, any other attributes.

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

    def run(self, mapperResults: Sequence[Struct], exposure: ExposureLike, **kwargs: Any) -> Struct:
        """Put exposures of sub-images together.

        Parameters
        ----------
        mapperResults
            Results of the mapper, one for each sub-image; their ``subExposure`` is used.
        exposure
            The whole image; not changed.
        **kwargs
            Accepted, and not used.

        Returns
        -------
        result
            ``exposure``: a new `whitediff.Exposure` of the whole image, or None if
            ``reduceOperation`` is ``none``; ``result``: ``mapperResults``.

        Raises
        ------
        ArgumentError
            If a result has no ``subExposure``, or its box lies outside of the image.

        Notes
        -----
        If sub-images overlap, finite values of a pixel have precedence over non-finite values,
        and good values over bad ones (``badMaskPlanes``); a sum has all finite values.  Mask
        planes are united over the values used.  Pixels without a finite value have the plane
        INVALID_MAPREDUCE; pixels without a sub-image are NaN.

        If all sub-images still have the PSF of the exposure, the result has it too.  Otherwise
        polynomials of order 2 are fitted to the PSFs of the sub-images at their positions; there
        is no PSF if a sub-image has none.
        """
        if self.config.reduceOperation == "none":
            return Struct(exposure=None, result=mapperResults)
        exposure = Exposure.from_object(exposure)
        parts = [self._part(result, exposure.bbox) for result in mapperResults]
        if self.config.reduceOperation == "coaddPsf":
            reduced = untouched(exposure)
            reduced.psf = united_psf(parts, exposure)
        else:
            reduced = united(
                parts,
                exposure,
                operation=self.config.reduceOperation,
                bad_mask_planes=self.config.badMaskPlanes,
            )
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
        doc="Size or step, whichever gives way where the cells do not fit into the image.",
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
        The cells with their borders, cut at the edges of the image; set by `run`, None before.

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
    def run(self, exposure: ExposureLike, **kwargs: Any) -> Struct:
        """Run the mapper on every sub-image, and reduce the results.

        Parameters
        ----------
        exposure
            `whitediff.Exposure` or any lsst.images exposure; not changed.
        **kwargs
            Keywords for the mapper and the reducer.

        Returns
        -------
        result
            ``exposure``: a new `whitediff.Exposure`, or None; ``result``: list of the mapper's
            results.  See `ImageReducer.run`.

        Raises
        ------
        ArgumentError
            If a cell lies outside of the image, ``scaleByFwhm`` is set but the exposure has no
            PSF, or the results cannot be reduced.
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
            # Copies, so that changes by the mapper do not reach the borders of the next cell.
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
        cells = grid(
            exposure.bbox,
            cell_options(self.config),
            unit=self._lengthUnit(exposure, **kwargs) if self.config.scaleByFwhm else 1.0,
            reach=self._reach(**kwargs),
        )
        self.boxes0 = [cell for cell, _ in cells]
        self.boxes1 = [expanded for _, expanded in cells]

    def _lengthUnit(self, exposure: Exposure, **kwargs: Any) -> float:
        """FWHM of the PSF, pixels."""
        return length_unit(exposure)

    def _reach(self, **kwargs: Any) -> tuple[int, int]:
        """Least borders (y, x), pixels; for subclasses that know the reach of their mapper."""
        return 0, 0


def cell_options(config: ImageMapReduceConfig) -> CellOptions:
    """Equivalent options of `whitediff.decorrelation.cells`.

    Parameters
    ----------
    config
        Configuration of the grid and of its reducer.

    Returns
    -------
    options
        Options of the grid and of the reduction; for a reducer that neither averages nor copies,
        only the grid is meaningful.
    """
    x, y = config.cellCentroidsX, config.cellCentroidsY
    reducer = config.reducer.value
    operation: Any = getattr(reducer, "reduceOperation", "average")
    return CellOptions(
        middles=None if x is None else tuple(zip(x, y, strict=True)),
        size=(config.cellSizeX, config.cellSizeY),
        step=(config.gridStepX, config.gridStepY),
        border=(config.borderSizeX, config.borderSizeY),
        adjust=config.adjustGridOption,
        by_fwhm=config.scaleByFwhm,
        operation=operation if operation in ("average", "copy") else "average",
        bad_mask_planes=tuple(getattr(reducer, "badMaskPlanes", ())),
    )
