"""The decorrelation afterburner where kernel and noise vary over the field, as LSST tasks."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import lsst.pex.config as pex_config
import numpy as np
import numpy.typing as npt
from lsst.pipe.base import Struct, Task
from lsst.utils.timer import timeMethod

from ..errors import ArgumentError
from ..exposures import foreign, masks
from ..exposures.boxes import Box
from ..exposures.decorrelation import (
    Decorrelation,
    DecorrelationOptions,
    decorrelate,
    untouched,
    variance_mean,
)
from ..exposures.fields import ChebyshevField, scattered_fit
from ..exposures.kernels import ConvolutionKernel, constant_kernel
from ..exposures.model import Exposure
from ..exposures.noise import measured_noises, source_pixels
from ..exposures.psf import PointSpreadFunction, as_kernel_psf
from ..messages import OnceEach
from .decorrelate import DecorrelateALKernelConfig, DecorrelateALKernelTask
from .map_reduce import (
    ImageMapper,
    ImageMapperConfig,
    ImageMapReduceConfig,
    ImageMapReduceTask,
)
from .match import reject

__all__ = [
    "DecorrelateALKernelMapReduceConfig",
    "DecorrelateALKernelMapReduceTask",
    "DecorrelateALKernelMapper",
    "DecorrelateALKernelMapperConfig",
    "DecorrelateALKernelSpatialConfig",
    "DecorrelateALKernelSpatialTask",
]

type Array = npt.NDArray[Any]

_RESPONSE_ORDER = 2


class DecorrelateALKernelMapperConfig(DecorrelateALKernelConfig, ImageMapperConfig):
    """Configuration of `DecorrelateALKernelMapper`."""


class DecorrelateALKernelMapper(DecorrelateALKernelTask, ImageMapper):
    """Decorrelate one sub-image of a difference, with kernel and noise as they are there.

    Parameters
    ----------
    *args, **kwargs
        As for `lsst.pipe.base.Task`.
    """

    ConfigClass: ClassVar[Any] = DecorrelateALKernelMapperConfig
    _DefaultName: ClassVar[str] = "ip_diffim_decorrelateALKernelMapper"

    def run(
        self,
        subExposure: Any,
        expandedSubExposure: Any,
        fullBBox: Box,
        template: Any = None,
        science: Any = None,
        alTaskResult: Any = None,
        psfMatchingKernel: Any = None,
        preConvKernel: Any = None,
        svar: float | None = None,
        tvar: float | None = None,
        templateMatched: bool = True,
        preConvMode: bool = False,
        scienceExposure: Any = None,
        templateExposure: Any = None,
        **kwargs: Any,
    ) -> Struct:
        """Decorrelate one sub-image.

        Parameters
        ----------
        subExposure, expandedSubExposure, fullBBox
            Sub-image of the difference or score, the same with its borders, and the box of the
            whole, as for `ImageMapper.run`.
        template, science
            The whole exposures before pre-convolution and matching; ``templateExposure`` and
            ``scienceExposure`` are other names for them.
        alTaskResult
            Anything with a ``psfMatchingKernel``, in its place.
        psfMatchingKernel
            As for `DecorrelateALKernelTask.run`; taken in the middle of the sub-image.
        preConvKernel
            As for `DecorrelateALKernelTask.run`; taken in the middle of the whole image, which
            was pre-convolved with one kernel.
        svar, tvar
            Mean variances of science and template; default: from their variance planes in the
            expanded sub-image, with masked pixels where there are no others.
        templateMatched, preConvMode
            As for `DecorrelateALKernelTask.run`.
        **kwargs
            ``scaleFactor``, ``scienceNoise`` and ``templateNoise``, as for
            `DecorrelateALKernelTask.run`; others are not used.

        Returns
        -------
        result
            ``subExposure``: a new `whitediff.Exposure` with the box of ``subExposure``;
            ``decorrelation``: the `whitediff.exposures.decorrelation.Decorrelation` with the
            numbers behind it.  Where an exposure has no finite pixel in the expanded sub-image,
            or no positive variance, the difference comes back as it is, marked CONTAMINATED, and
            ``decorrelation`` is None.

        Raises
        ------
        ValueError
            If arguments are missing, contradict each other or do not fit together.
        """
        science = _one_of("science", science, scienceExposure)
        template = _one_of("template", template, templateExposure)
        if psfMatchingKernel is None and alTaskResult is not None:
            psfMatchingKernel = alTaskResult.psfMatchingKernel
        options = self.config.to_options(
            template_matched=templateMatched,
            score=preConvMode,
            scale_factor=float(kwargs.get("scaleFactor", 1.0)),
        )
        difference = Exposure.from_object(expandedSubExposure)
        cell = Exposure.from_object(subExposure).bbox
        science, template = (
            Exposure.from_object(exposure).cutout(difference.bbox)
            for exposure in (science, template)
        )
        variances = (
            _local_variance(science, svar, options),
            _local_variance(template, tvar, options),
        )
        if None in variances or not all(
            np.isfinite(exposure.data).any() for exposure in (science, template, difference)
        ):
            self.log.debug("No usable pixels in %s; the difference is left as it is.", cell)
            return Struct(subExposure=_left_alone(difference.cutout(cell)), decorrelation=None)
        result = decorrelate(
            science,
            template,
            difference,
            psfMatchingKernel,
            preconvolution_kernel=_image_in_the_middle(preConvKernel, fullBBox),
            x=cell.x.start + cell.x.size / 2,
            y=cell.y.start + cell.y.size / 2,
            science_variance=variances[0],
            template_variance=variances[1],
            science_noise=kwargs.get("scienceNoise"),
            template_noise=kwargs.get("templateNoise"),
            options=options,
        )
        # A copy lets go of the borders.
        trimmed = untouched(result.exposure.cutout(cell))
        return Struct(
            subExposure=trimmed, decorrelation=dataclasses.replace(result, exposure=trimmed)
        )


class DecorrelateALKernelMapReduceConfig(ImageMapReduceConfig):
    """Configuration of `DecorrelateALKernelMapReduceTask`."""

    mapper = pex_config.ConfigurableField(
        target=DecorrelateALKernelMapper, doc="Decorrelates each sub-image."
    )

    def setDefaults(self) -> None:
        """Cells over which a kernel hardly varies, borders beyond which no filter reaches."""
        super().setDefaults()
        self.cellSizeX = self.cellSizeY = 40.0
        self.gridStepX = self.gridStepY = 40.0
        self.borderSizeX = self.borderSizeY = 5.0
        self.reducer.reduceOperation = "average"
        self.reducer.badMaskPlanes = [*self.reducer.badMaskPlanes, masks.CONTAMINATED]


class DecorrelateALKernelMapReduceTask(ImageMapReduceTask):
    """Decorrelate a difference on a grid of sub-images.

    Parameters
    ----------
    *args, **kwargs
        As for `lsst.pipe.base.Task`.

    Notes
    -----
    Takes the arguments of `DecorrelateALKernelMapper.run` beyond the first three as keywords.
    Borders are at least as wide as the matching kernel's stamp: half of it for the kernel, as
    much for the correction.  Where the difference has no PSF, that of the science exposure or
    of the template is the unit of lengths.
    """

    ConfigClass: ClassVar[Any] = DecorrelateALKernelMapReduceConfig
    _DefaultName: ClassVar[str] = "ip_diffim_decorrelateALKernelMapReduce"

    def _runMapper(self, exposure: Exposure, **kwargs: Any) -> list[Struct]:
        # What is wrong with the kernel is wrong in every cell.
        repetitions = OnceEach(by_kind=True)
        log = logging.getLogger("whitediff.decorrelate")
        log.addFilter(repetitions)
        try:
            return super()._runMapper(exposure, **kwargs)
        finally:
            log.removeFilter(repetitions)

    def _lengthUnit(self, exposure: Exposure, **kwargs: Any) -> float:
        for name in ("science", "scienceExposure", "template", "templateExposure"):
            given = kwargs.get(name)
            if exposure.psf is None and given is not None:
                exposure = exposure.replaced()
                exposure.psf = Exposure.from_object(given).psf
        return super()._lengthUnit(exposure, **kwargs)

    def _borders(self, borders: tuple[int, int], **kwargs: Any) -> tuple[int, int]:
        kernel = kwargs.get("psfMatchingKernel")
        if kernel is None:
            kernel = getattr(kwargs.get("alTaskResult"), "psfMatchingKernel", None)
        kernel = foreign.adapted(kernel)
        if isinstance(kernel, ConvolutionKernel):
            shape: tuple[int, ...] = kernel.shape
        elif isinstance(kernel, PointSpreadFunction):
            x, y = kernel.average_position
            shape = kernel.at(x=x, y=y).shape
        else:
            shape = () if kernel is None else np.shape(getattr(kernel, "array", kernel))
        if len(shape) != 2:
            return borders
        return max(borders[0], int(shape[0])), max(borders[1], int(shape[1]))


class DecorrelateALKernelSpatialConfig(pex_config.Config):
    """Configuration of `DecorrelateALKernelSpatialTask`."""

    decorrelateConfig = pex_config.ConfigField(
        dtype=DecorrelateALKernelConfig, doc="Decorrelation, the same everywhere or of each cell."
    )
    decorrelateMapReduceConfig = pex_config.ConfigField(
        dtype=DecorrelateALKernelMapReduceConfig,
        doc="Grid of cells for spatialMethod = 'mapReduce'. What its mapper's configuration shares"
        " with decorrelateConfig is taken from there.",
    )
    ignoreMaskPlanes = pex_config.ListField(
        dtype=str,
        default=list(masks.DEFAULT_IGNORE_MASK_PLANES),
        doc="Mask planes to ignore for sigma-clipped mean variances of whole exposures, which a"
        " spatially varying decorrelation reports, in the spelling of lsst.afw or of lsst.images.",
    )
    spatiallyVarying = pex_config.Field(
        dtype=bool,
        default=False,
        doc="Let the correction follow kernel and noise over the field; False: one correction for"
        " the whole image, the documented task. The argument of run has precedence.",
    )
    spatialMethod = pex_config.ChoiceField(
        dtype=str,
        default="smooth",
        doc="How a correction varies over the field.",
        allowed={
            "smooth": "From pixel to pixel, with the kernel.",
            "mapReduce": "In steps, from cell to cell of a grid.",
        },
    )

    def validate(self) -> None:
        """Refuse fields that contradict each other."""
        super().validate()
        grid = self.decorrelateMapReduceConfig
        operation = grid.reducer.value.reduceOperation
        if operation not in ("average", "copy"):
            reject(
                grid.reducer.value,
                "reduceOperation",
                "makes no difference image; average and copy do",
            )
        mapper = grid.mapper.value
        for name in _shared_fields(self.decorrelateConfig, mapper):
            default = getattr(type(mapper)(), name)
            if getattr(mapper, name) not in (default, getattr(self.decorrelateConfig, name)):
                reject(
                    mapper,
                    name,
                    f"contradicts decorrelateConfig.{name} ="
                    f" {getattr(self.decorrelateConfig, name)!r}; set it there only",
                )


class DecorrelateALKernelSpatialTask(Task):
    """Decorrelate a difference whose kernel or noise may vary over the field.

    Parameters
    ----------
    *args, **kwargs
        As for `lsst.pipe.base.Task`.

    Attributes
    ----------
    decorrelate : `DecorrelateALKernelTask`
        For one correction everywhere.
    mapReduce : `DecorrelateALKernelMapReduceTask`
        For a correction of each cell.
    """

    ConfigClass: ClassVar[Any] = DecorrelateALKernelSpatialConfig
    _DefaultName: ClassVar[str] = "ip_diffim_decorrelateALKernelSpatial"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        constant = self.config.decorrelateConfig
        self.decorrelate = DecorrelateALKernelTask(
            config=constant, name="decorrelate", parentTask=self
        )
        grid = self.config.decorrelateMapReduceConfig.copy()
        mapper = grid.mapper.value
        for name in _shared_fields(constant, mapper):
            value = getattr(constant, name)
            setattr(mapper, name, value if isinstance(value, (str, bool, float)) else list(value))
        # Measured once for the frame: a cell has too few pixels.
        mapper.noise = "white"
        self.mapReduce = DecorrelateALKernelMapReduceTask(
            config=grid, name="mapReduce", parentTask=self
        )

    def computeVarianceMean(self, exposure: Any) -> float:
        """Clipped mean of an exposure's variance plane.

        Parameters
        ----------
        exposure
            Exposure; pixels with any of ``config.ignoreMaskPlanes`` are left out.

        Returns
        -------
        mean
            NaN if no pixel is left.
        """
        return variance_mean(Exposure.from_object(exposure), tuple(self.config.ignoreMaskPlanes))

    @timeMethod
    def run(
        self,
        scienceExposure: Any,
        templateExposure: Any,
        subtractedExposure: Any,
        psfMatchingKernel: Any,
        spatiallyVarying: bool | None = None,
        preConvKernel: Any = None,
        templateMatched: bool = True,
        preConvMode: bool = False,
        **kwargs: Any,
    ) -> Struct:
        """Perform decorrelation of an image difference or of a score difference exposure.

        Parameters
        ----------
        scienceExposure, templateExposure, subtractedExposure, psfMatchingKernel
            As for `DecorrelateALKernelTask.run`.
        spatiallyVarying
            Let the correction follow kernel and noise over the field; default:
            ``config.spatiallyVarying``.
        preConvKernel, templateMatched, preConvMode
            As for `DecorrelateALKernelTask.run`.
        **kwargs
            Further keywords of `DecorrelateALKernelTask.run`.  Of a varying correction, ``svar``
            and ``tvar`` are the level around which the variance planes vary (``mapReduce``: they
            hold everywhere), and ``xcen`` and ``ycen`` have no meaning.

        Returns
        -------
        result
            As of `DecorrelateALKernelTask.run`.  Of a correction by cells, ``decorrelation`` has
            the kernel, position and grid of the cell in the middle, the mean variances of the
            whole exposures, and mean weights.

        Raises
        ------
        ValueError
            If the arguments contradict each other or do not fit together.
        UnusableExposureError
            If an exposure has no usable pixel or no positive mean variance.
        """
        if spatiallyVarying is None:
            spatiallyVarying = self.config.spatiallyVarying
        common = dict(
            preConvKernel=preConvKernel,
            templateMatched=templateMatched,
            preConvMode=preConvMode,
            **kwargs,
        )
        self.metadata["spatiallyVarying"] = spatiallyVarying
        exposures = (scienceExposure, templateExposure, subtractedExposure)
        if not spatiallyVarying:
            result: Struct = self.decorrelate.run(*exposures, psfMatchingKernel, **common)
            return result
        for name in ("xcen", "ycen"):
            if kwargs.get(name) is not None:
                raise ArgumentError(
                    f"{name} = {kwargs[name]} asks for the kernel at one position; that needs"
                    " spatiallyVarying = False."
                )
        self.metadata["spatialMethod"] = self.config.spatialMethod
        if self.config.spatialMethod == "smooth":
            smooth: Struct = self.decorrelate.run(
                *exposures, psfMatchingKernel, spatiallyVarying=True, **common
            )
            return smooth
        return self._run_map_reduce(*exposures, psfMatchingKernel, **common)

    def _run_map_reduce(
        self,
        scienceExposure: Any,
        templateExposure: Any,
        subtractedExposure: Any,
        psfMatchingKernel: Any,
        *,
        preConvKernel: Any,
        templateMatched: bool,
        preConvMode: bool,
        **kwargs: Any,
    ) -> Struct:
        """Decorrelate cell by cell."""
        if preConvKernel is not None and not (templateMatched and preConvMode):
            raise ArgumentError(
                "preConvKernel is allowed only if templateMatched and preConvMode are both True;"
                f" got templateMatched={templateMatched}, preConvMode={preConvMode}."
            )
        science = Exposure.from_object(scienceExposure)
        template = Exposure.from_object(templateExposure)
        difference = Exposure.from_object(subtractedExposure)
        for name, exposure in (("template", template), ("difference", difference)):
            if exposure.bbox != science.bbox:
                raise ArgumentError(
                    f"The {name} has the box {exposure.bbox}, but the science exposure"
                    f" {science.bbox}; all three must share one grid."
                )
        kernel = difference.kernel if psfMatchingKernel is None else psfMatchingKernel
        if difference.psf is not None:
            # Once, not in every cell.
            psf = as_kernel_psf(difference.psf, difference.bbox)
            difference = difference.replaced()
            difference.psf = psf
        if self.config.decorrelateConfig.noise != "white":
            sources = kwargs.get("sources")
            if sources is None:
                sources = source_pixels(science, template)
            noises = measured_noises(
                science, template, sources, how=self.config.decorrelateConfig.noise
            )
            kwargs = {**kwargs, "scienceNoise": noises[0], "templateNoise": noises[1]}
        # They are the frame's; a cell that is white and constant needs none.
        kwargs = {name: value for name, value in kwargs.items() if name != "sources"}
        result = self.mapReduce.run(
            difference,
            science=science,
            template=template,
            psfMatchingKernel=kernel,
            preConvKernel=preConvKernel,
            templateMatched=templateMatched,
            preConvMode=preConvMode,
            **kwargs,
        )
        cells = [each.decorrelation for each in result.result if each.decorrelation is not None]
        if not cells:
            # It knows what is wrong with the exposures as a whole.
            whole: Struct = self.decorrelate.run(
                science,
                template,
                subtractedExposure,
                kernel,
                preConvKernel=preConvKernel,
                templateMatched=templateMatched,
                preConvMode=preConvMode,
                **kwargs,
            )
            return whole
        if len(cells) < len(result.result):
            self.log.warning(
                "%d of %d cells have no usable pixels and are not decorrelated.",
                len(result.result) - len(cells),
                len(result.result),
            )
        corrected = result.exposure
        corrected.kernel = (
            kernel
            if isinstance(kernel, ConvolutionKernel)
            else constant_kernel(cells[0].kernel_image, corrected.bbox)
        )
        svar, tvar = kwargs.get("svar"), kwargs.get("tvar")
        decorrelation = _summary(
            cells,
            corrected,
            science_variance=self.computeVarianceMean(science) if svar is None else float(svar),
            template_variance=self.computeVarianceMean(template) if tvar is None else float(tvar),
            variance_mean_before=self.mapReduce.metadata["varianceMeanBefore"],
            variance_mean_after=self.mapReduce.metadata["varianceMeanAfter"],
        )
        self.metadata["nCells"] = len(result.result)
        self.metadata["nCellsLeftAlone"] = len(result.result) - len(cells)
        self.metadata["scienceVarianceMean"] = decorrelation.science_variance
        self.metadata["templateVarianceMean"] = decorrelation.template_variance
        self.metadata["kernelSum"] = decorrelation.kernel_sum
        self.metadata["diffimVarianceMeanBefore"] = decorrelation.variance_mean_before
        self.metadata["diffimVarianceMeanAfter"] = decorrelation.variance_mean_after
        self.metadata["contaminatedFraction"] = decorrelation.contaminated_fraction
        return Struct(correctedExposure=corrected, decorrelation=decorrelation)


def _one_of(name: str, *given: Any) -> Any:
    exposure = next((each for each in given if each is not None), None)
    if exposure is None:
        raise ArgumentError(
            f"No {name} exposure was given; the mapper decorrelates with {name}=... as a keyword."
        )
    return exposure


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


def _image_in_the_middle(kernel: Any, box: Box) -> Any:
    kernel = foreign.adapted(kernel)
    if isinstance(kernel, ConvolutionKernel | PointSpreadFunction):
        return kernel.at(x=box.x.center, y=box.y.center)
    return kernel


def _shared_fields(first: pex_config.Config, second: pex_config.Config) -> list[str]:
    return [name for name in first._fields if name in second._fields]


def _summary(
    cells: Sequence[Decorrelation],
    exposure: Exposure,
    *,
    science_variance: float,
    template_variance: float,
    variance_mean_before: float,
    variance_mean_after: float,
) -> Decorrelation:
    """The numbers of all cells as those of one decorrelation."""
    box = exposure.bbox
    middle = min(cells, key=lambda cell: math.hypot(cell.x - box.x.center, cell.y - box.y.center))
    weights = np.mean([cell.variance_weights for cell in cells], axis=0)
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
