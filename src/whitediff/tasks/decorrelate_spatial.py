"""The decorrelation afterburner for kernels and noise that vary over the field, as LSST tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import lsst.pex.config as pex_config
from lsst.pipe.base import Struct, Task
from lsst.utils.timer import timeMethod

from ..decorrelation.cells import (
    CellOptions,
    decorrelate_cell,
    kernel_reach,
    length_unit,
    once_a_frame,
    summary_of_cells,
)
from ..decorrelation.exposures import CorrectionOptions, variance_mean
from ..errors import ArgumentError
from ..exposures import foreign, masks
from ..exposures.boxes import Box
from ..exposures.kernels import ConvolutionKernel
from ..exposures.model import Exposure
from ..exposures.psf import PointSpreadFunction, as_kernel_psf
from ..noise.exposures import InputNoise, measured_noises, source_pixels
from .decorrelate import DecorrelateALKernelConfig, DecorrelateALKernelTask
from .map_reduce import (
    ImageMapper,
    ImageMapperConfig,
    ImageMapReduceConfig,
    ImageMapReduceTask,
    ImageReducer,
    cell_options,
)
from .match import reject

if TYPE_CHECKING:
    from .decorrelate import Array, ExposureLike

__all__ = [
    "DecorrelateALKernelMapReduceConfig",
    "DecorrelateALKernelMapReduceTask",
    "DecorrelateALKernelMapper",
    "DecorrelateALKernelMapperConfig",
    "DecorrelateALKernelSpatialConfig",
    "DecorrelateALKernelSpatialTask",
]


class DecorrelateALKernelMapperConfig(DecorrelateALKernelConfig, ImageMapperConfig):
    """Configuration of `DecorrelateALKernelMapper`."""


class DecorrelateALKernelMapper(DecorrelateALKernelTask, ImageMapper):
    """Decorrelate one sub-image of a difference, with its local kernel and noise.

    Parameters
    ----------
    *args, **kwargs
        As for `lsst.pipe.base.Task`.
    """

    ConfigClass: ClassVar[Any] = DecorrelateALKernelMapperConfig
    _DefaultName: ClassVar[str] = "ip_diffim_decorrelateALKernelMapper"

    # LSST's documented signature.
    def run(  # noqa: PLR0913
        self,
        subExposure: ExposureLike,
        expandedSubExposure: ExposureLike,
        fullBBox: Box,
        template: ExposureLike | None = None,
        science: ExposureLike | None = None,
        alTaskResult: Struct | None = None,
        psfMatchingKernel: ConvolutionKernel | PointSpreadFunction | Array | None = None,
        preConvKernel: ConvolutionKernel | PointSpreadFunction | Array | None = None,
        svar: float | None = None,
        tvar: float | None = None,
        templateMatched: bool = True,
        preConvMode: bool = False,
        scienceExposure: ExposureLike | None = None,
        templateExposure: ExposureLike | None = None,
        **kwargs: Any,
    ) -> Struct:
        """Decorrelate one sub-image.

        Parameters
        ----------
        subExposure, expandedSubExposure, fullBBox
            Sub-image of the difference or score, sub-image with its borders, and box of the whole
            image, as for `ImageMapper.run`.
        template, science
            The whole exposures before pre-convolution and matching; ``templateExposure`` and
            ``scienceExposure`` are other names for them.
        alTaskResult
            Object whose attribute ``psfMatchingKernel`` replaces a missing argument.
        psfMatchingKernel
            As for `DecorrelateALKernelTask.run`; taken in the middle of the sub-image.
        preConvKernel
            As for `DecorrelateALKernelTask.run`; taken in the middle of the whole image, which
            was pre-convolved with one kernel.
        svar, tvar
            Mean variances of science and template; default: from their variance planes in the
            expanded sub-image, with masked pixels if there are no others.
        templateMatched, preConvMode
            As for `DecorrelateALKernelTask.run`.
        **kwargs
            ``scaleFactor``, ``scienceNoise`` and ``templateNoise``, as for
            `DecorrelateALKernelTask.run`; others are not used.

        Returns
        -------
        result
            ``subExposure``: a new `whitediff.Exposure` with the box of ``subExposure``;
            ``decorrelation``: the `whitediff.decorrelation.exposures.Decorrelation` with the
            numbers of the correction.  If an exposure has no finite pixel in the expanded
            sub-image, or no positive variance, the difference comes back as it is, marked
            CONTAMINATED, and ``decorrelation`` is None.

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
        part, decorrelation = decorrelate_cell(
            Exposure.from_object(science),
            Exposure.from_object(template),
            Exposure.from_object(expandedSubExposure),
            Exposure.from_object(subExposure).bbox,
            psfMatchingKernel,
            preconvolution_kernel=_image_in_the_middle(preConvKernel, fullBBox),
            noise=InputNoise(
                science_variance=svar,
                template_variance=tvar,
                science_covariance=kwargs.get("scienceNoise"),
                template_covariance=kwargs.get("templateNoise"),
            ),
            options=options,
        )
        return Struct(subExposure=part, decorrelation=decorrelation)


class DecorrelateALKernelMapReduceConfig(ImageMapReduceConfig):
    """Configuration of `DecorrelateALKernelMapReduceTask`."""

    mapper = pex_config.ConfigurableField(
        target=DecorrelateALKernelMapper, doc="Decorrelates each sub-image."
    )

    def setDefaults(self) -> None:
        """Set cells in which a kernel hardly varies, and borders as wide as filters reach."""
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
    `run` takes the arguments of `DecorrelateALKernelMapper.run` after the first three as
    keywords.  Borders are at least as wide as the matching kernel's stamp: half of it for the
    kernel, and as much for the correction.  The unit of lengths is the FWHM of the difference's
    PSF, else of the science exposure's or the template's.
    """

    ConfigClass: ClassVar[Any] = DecorrelateALKernelMapReduceConfig
    _DefaultName: ClassVar[str] = "ip_diffim_decorrelateALKernelMapReduce"

    def _runMapper(self, exposure: Exposure, **kwargs: Any) -> list[Struct]:
        with once_a_frame():
            return super()._runMapper(exposure, **kwargs)

    def _lengthUnit(self, exposure: Exposure, **kwargs: Any) -> float:
        names = ("science", "scienceExposure", "template", "templateExposure")
        given = [kwargs.get(name) for name in names]
        return length_unit(
            exposure, *(Exposure.from_object(each) for each in given if each is not None)
        )

    def _reach(self, **kwargs: Any) -> tuple[int, int]:
        kernel = kwargs.get("psfMatchingKernel")
        if kernel is None:
            kernel = getattr(kwargs.get("alTaskResult"), "psfMatchingKernel", None)
        return kernel_reach(kernel)


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

    def to_correction(self) -> tuple[CorrectionOptions, CellOptions | None]:
        """Equivalent options of `whitediff.subtraction.recipe.Recipe`.

        Returns
        -------
        correction, cells
            Options of the correction, and of the grid of cells; None for no grid.
        """
        by_cells = self.spatiallyVarying and self.spatialMethod == "mapReduce"
        correction = self.decorrelateConfig.to_correction(
            spatially_varying=self.spatiallyVarying and not by_cells
        )
        return correction, cell_options(self.decorrelateMapReduceConfig) if by_cells else None

    def is_foreign(self) -> bool:
        """Whether the mapper or the reducer is not whitediff's.

        Returns
        -------
        foreign
            True if one of them was retargeted.
        """
        grid = self.decorrelateMapReduceConfig
        return not (
            grid.mapper.target is DecorrelateALKernelMapper and grid.reducer.target is ImageReducer
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
        Subtask for one correction everywhere, and for one that varies smoothly.
    mapReduce : `DecorrelateALKernelMapReduceTask`
        Subtask for a correction of each cell.
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
        # The noise is measured once for the frame: a cell has too few pixels.
        mapper.noise = "white"
        self.mapReduce = DecorrelateALKernelMapReduceTask(
            config=grid, name="mapReduce", parentTask=self
        )

    def computeVarianceMean(self, exposure: ExposureLike) -> float:
        """Clipped mean of an exposure's variance plane.

        Parameters
        ----------
        exposure
            Exposure; pixels with any of ``config.ignoreMaskPlanes`` are left out.

        Returns
        -------
        mean
            Mean variance, image_unit²; NaN if no pixel is left.
        """
        return variance_mean(Exposure.from_object(exposure), tuple(self.config.ignoreMaskPlanes))

    @timeMethod
    def run(
        self,
        scienceExposure: ExposureLike,
        templateExposure: ExposureLike,
        subtractedExposure: ExposureLike,
        psfMatchingKernel: ConvolutionKernel | PointSpreadFunction | Array | None,
        spatiallyVarying: bool | None = None,
        preConvKernel: ConvolutionKernel | PointSpreadFunction | Array | None = None,
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
            Whether the correction follows kernel and noise over the field; default:
            ``config.spatiallyVarying``.
        preConvKernel, templateMatched, preConvMode
            As for `DecorrelateALKernelTask.run`.
        **kwargs
            Further keywords of `DecorrelateALKernelTask.run`.  For a varying correction, ``svar``
            and ``tvar`` are the levels around which the variance planes vary (``mapReduce``: they
            hold everywhere), and ``xcen`` and ``ycen`` must not be given.

        Returns
        -------
        result
            As from `DecorrelateALKernelTask.run`.  For a correction by cells, ``decorrelation``
            has the kernel, position and grid of the middle cell, the mean variances of the whole
            exposures, and mean weights.

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
            # Converted once, not in every cell.
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
        # Sources are pixels of the whole frame; cells need none, since noise was measured above.
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
            # Raises the error of the exposures as a whole, or skips those that are all NaN.
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
        corrected.kernel = kernel if isinstance(kernel, ConvolutionKernel) else None
        svar, tvar = kwargs.get("svar"), kwargs.get("tvar")
        decorrelation = summary_of_cells(
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


def _image_in_the_middle(kernel: Any, box: Box) -> Any:
    kernel = foreign.adapted(kernel)
    if isinstance(kernel, ConvolutionKernel | PointSpreadFunction):
        return kernel.at(x=box.x.center, y=box.y.center)
    return kernel


def _shared_fields(first: pex_config.Config, second: pex_config.Config) -> list[str]:
    return [name for name in first._fields if name in second._fields]
