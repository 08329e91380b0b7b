"""Subtracting a template from a science exposure as LSST tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import lsst.pex.config as pex_config
import numpy.typing as npt
from lsst.pipe.base import NoWorkFound, PipelineTask, PipelineTaskConfig, Struct
from lsst.utils.timer import timeMethod

from ..alignment.resampling import ResamplingOptions
from ..decorrelation.cells import CellOptions
from ..decorrelation.exposures import CorrectionOptions, Decorrelation
from ..defects.exposures import DefectOptions
from ..errors import DataError, NoOverlapError
from ..exposures import masks
from ..exposures.model import Exposure
from ..matching.exposures import Match, MatchOptions
from ..matching.preparation import Pair, PreparationOptions, prepare
from ..noise.exposures import without_sentinels
from ..stars.candidates import CandidateOptions
from ..subtraction.pipeline import Kind, Made, Pipeline
from ..subtraction.recipe import Recipe, TemplateMask
from ..subtraction.solution import Solution
from .connections import ScoreConnections, SubtractConnections
from .correction import recipe_of_correction, run_decorrelation
from .decorrelate import DecorrelateALKernelTask
from .match import MakeKernelTask, algorithm_error, reject

if TYPE_CHECKING:
    from astropy.table import Table

    from .decorrelate import ExposureLike

__all__ = [
    "AlardLuptonPreconvolveSubtractConfig",
    "AlardLuptonPreconvolveSubtractTask",
    "AlardLuptonSubtractBaseConfig",
    "AlardLuptonSubtractConfig",
    "AlardLuptonSubtractTask",
]

type Array = npt.NDArray[Any]


class AlardLuptonSubtractBaseConfig(PipelineTaskConfig, pipelineConnections=SubtractConnections):  # type: ignore[call-arg]
    """Configuration common to differences and scores."""

    makeKernel = pex_config.ConfigurableField(
        target=MakeKernelTask, doc="Finds the matching kernel."
    )
    decorrelate = pex_config.ConfigurableField(
        target=DecorrelateALKernelTask, doc="Makes the noise of the result white."
    )
    doDecorrelation = pex_config.Field(
        dtype=bool,
        default=True,
        doc="Decorrelate the result. If not, its noise is correlated, and its variance plane is"
        " that of its pixels one by one.",
    )
    requiredTemplateFraction = pex_config.RangeField(
        dtype=float,
        default=0.1,
        min=0.0,
        max=1.0,
        inclusiveMax=True,
        doc="There is no work to do where the template covers less than this of the science"
        " exposure's usable pixels.",
    )
    minTemplateFractionForExpectedSuccess = pex_config.RangeField(
        dtype=float,
        default=0.2,
        min=0.0,
        max=1.0,
        inclusiveMax=True,
        doc="Where the template covers less than this, a failure counts as no work to do.",
    )
    alignTemplate = pex_config.ChoiceField(
        dtype=str,
        optional=True,
        default=None,
        doc="Resample a template whose pixels are not the science exposure's, by their WCS; None to"
        " refuse it. As the option --align-method of whitediff subtract.",
        allowed={
            "auto": "Cubic splines; averages where the template's pixels are more than 1.5 times"
            " finer.",
            "interpolating": "Cubic splines.",
            "adaptive": "Local Gaussian averages.",
        },
    )
    alignPositions = pex_config.ChoiceField(
        dtype=str,
        default="stars",
        doc="How alignTemplate finds where the template's pixels lie. As the options --align and"
        " --register of whitediff subtract.",
        allowed={
            "wcs": "By the WCS as it is.",
            "stars": "By the WCS as the stars correct it; without a WCS, by the stars.",
            "distortions": "So, and smooth local distortions are taken out too.",
        },
    )
    doScaleVariance = pex_config.Field(
        dtype=bool,
        default=True,
        doc="Bring both variance planes to the noise measured on source-free pixels.",
    )
    doSubtractBackground = pex_config.Field(
        dtype=bool,
        default=True,
        doc="Subtract the differential background; else it is only returned. On by default,"
        " unlike in LSST's newest versions, whose pipelines subtract it later.",
    )
    doUseSources = pex_config.Field(
        dtype=bool,
        default=False,
        doc="In a pipeline, choose kernel sources from a catalogue; else they are found.",
    )
    doWriteMatchedTemplate = pex_config.Field(
        dtype=bool,
        default=False,
        doc="In a pipeline, keep the template as it was subtracted.",
    )
    doWriteKernelSources = pex_config.Field(
        dtype=bool,
        default=False,
        doc="In a pipeline, keep the list of kernel sources.",
    )
    detectionThreshold = pex_config.RangeField(
        dtype=float,
        default=10.0,
        min=0.0,
        doc="Smallest signal-to-noise ratio of a kernel source.",
    )
    detectionThresholdMax = pex_config.RangeField(
        dtype=float,
        default=500.0,
        min=0.0,
        inclusiveMin=False,
        doc="Largest signal-to-noise ratio of a kernel source; brighter ones are taken where"
        " fewer than 10 are left.",
    )
    maxKernelSources = pex_config.RangeField(
        dtype=int, default=1000, min=3, doc="At most so many kernel sources, the brightest."
    )
    minKernelSources = pex_config.RangeField(
        dtype=int, default=3, min=3, doc="Fewer kernel sources are an error."
    )
    doFindCosmicRays = pex_config.Field(
        dtype=bool,
        default=True,
        doc="Look for cosmic rays on exposures whose mask does not tell of them?",
    )
    doFindBadPixels = pex_config.Field(
        dtype=bool,
        default=True,
        doc="Look for hot and dead pixels, columns and rows likewise?",
    )
    doFindTrails = pex_config.Field(
        dtype=bool,
        default=True,
        doc="Look for trails of satellites and aeroplanes likewise, and on the difference?",
    )
    doFindLevelJumps = pex_config.Field(
        dtype=bool,
        default=True,
        doc="Look for jumps of the level between amplifiers, which are taken off?",
    )
    excludeMaskPlanes = pex_config.ListField(
        dtype=str,
        default=["NO_DATA", "BAD", "SAT", "EDGE", "FAKE"],
        doc="Mask planes of either exposure whose pixels must not be near a kernel source."
        " Pixels that hold no measurement (BAD, CR, NO_DATA, SAT, not finite) never may.",
    )
    doAttributeTemplateMask = pex_config.Field(
        dtype=bool,
        default=True,
        doc="Keep, rename or leave out the template's mask planes as the next two fields say;"
        " if not, those of both exposures are united.",
    )
    preserveTemplateMask = pex_config.ListField(
        dtype=str,
        default=["NO_DATA", "BAD"],
        doc="Mask planes of the template that become those of the difference.",
    )
    renameTemplateMask = pex_config.ListField(
        dtype=str,
        default=["SAT", "INJECTED", "INJECTED_CORE"],
        doc="Mask planes of the template that the difference has as <NAME>_TEMPLATE; others"
        " than these and the preserved ones are left out.",
    )

    def setDefaults(self) -> None:
        """Keep the level at edges and holes."""
        super().setDefaults()
        self.decorrelate.fill = "interpolate"

    def validate(self) -> None:
        """Refuse fields that contradict each other.

        Raises
        ------
        lsst.pex.config.FieldValidationError
            If they contradict each other.
        """
        super().validate()
        if not self.detectionThreshold < self.detectionThresholdMax:
            reject(
                self,
                "detectionThresholdMax",
                f"must be above detectionThreshold = {self.detectionThreshold:g}",
            )
        if self.maxKernelSources < self.minKernelSources:
            reject(self, "maxKernelSources", f"is below minKernelSources = {self.minKernelSources}")
        for name in self.renameTemplateMask:
            if masks.is_one_of(name, self.preserveTemplateMask):
                reject(self, "renameTemplateMask", f"has {name!r}, and preserveTemplateMask too")
        kernel = getattr(self.makeKernel.value, "kernel", None)
        if self.doSubtractBackground and not getattr(
            getattr(kernel, "active", None), "fitForBackground", True
        ):
            reject(
                self, "doSubtractBackground", "needs makeKernel's fitForBackground, which is False"
            )

    def to_recipe(self, *, score: bool = False) -> Recipe:
        """Recipe of the products: everything that decides their pixels.

        Parameters
        ----------
        score
            Whether the product is a score; else it is a difference.

        Returns
        -------
        recipe
            `whitediff.subtraction.recipe.Recipe`.
        """
        correction, cells, foreign = self._correction()
        resampling = None
        if self.alignTemplate is not None:
            # The noise is followed through the resampling as the decorrelation needs it.
            noise = correction.noise if self.doDecorrelation else "auto"
            resampling = ResamplingOptions(
                method=self.alignTemplate, noise=noise, positions=self.alignPositions
            )
        convolved = "template" if score else _CONVOLVED[getattr(self, "mode", "convolveTemplate")]
        kernel = getattr(self.makeKernel.value, "kernel", None)
        options = getattr(getattr(kernel, "active", None), "to_options", None)
        match = MatchOptions(convolved=convolved)
        if options is not None:
            match = options(convolved=convolved, candidates=self._candidates())
        return Recipe(
            preparation=PreparationOptions(
                rescale_variance=self.doScaleVariance,
                resampling=resampling,
                required_template_fraction=self.requiredTemplateFraction,
                expected_template_fraction=self.minTemplateFractionForExpectedSuccess,
                exclude_mask_planes=tuple(self.excludeMaskPlanes),
                defects=DefectOptions(
                    cosmic_rays="auto" if self.doFindCosmicRays else False,
                    bad_pixels="auto" if self.doFindBadPixels else False,
                    trails="auto" if self.doFindTrails else False,
                    level_jumps="auto" if self.doFindLevelJumps else False,
                ),
            ),
            match=match,
            subtract_background=self.doSubtractBackground,
            decorrelate=self.doDecorrelation,
            correction=correction,
            cells=cells,
            template_mask=(
                TemplateMask(
                    preserve=tuple(self.preserveTemplateMask),
                    rename=tuple(self.renameTemplateMask),
                )
                if self.doAttributeTemplateMask
                else None
            ),
            foreign=foreign,
        )

    def _correction(self) -> tuple[CorrectionOptions, CellOptions | None, str | None]:
        """Parts of the recipe that make the noise white, and the name of a foreign task."""
        return recipe_of_correction(self.decorrelate)

    def _candidates(self) -> CandidateOptions:
        """Choice of stars, without the cells, which the kernel task sets."""
        return CandidateOptions(
            signal_to_noise=(self.detectionThreshold, self.detectionThresholdMax),
            most=self.maxKernelSources,
            fewest=self.minKernelSources,
        )


_CONVOLVED: dict[str, Literal["auto", "template", "science"]] = {
    "auto": "auto",
    "convolveTemplate": "template",
    "convolveScience": "science",
}


class AlardLuptonSubtractConfig(AlardLuptonSubtractBaseConfig):
    """Configuration of `AlardLuptonSubtractTask`."""

    mode = pex_config.ChoiceField(
        dtype=str,
        default="convolveTemplate",
        doc="Which exposure to convolve.",
        allowed={
            "auto": "The template, unless its PSF is the wider.",
            "convolveTemplate": "The template.",
            "convolveScience": "The science exposure.",
        },
    )


class AlardLuptonPreconvolveSubtractConfig(  # type: ignore[call-arg]
    AlardLuptonSubtractBaseConfig, pipelineConnections=ScoreConnections
):
    """Configuration of `AlardLuptonPreconvolveSubtractTask`."""

    def setDefaults(self) -> None:
        """Filter scores as fitted kernels need it."""
        super().setDefaults()
        self.decorrelate.scoreFilter = "compact"


class _Steps(Pipeline):
    """Pipeline whose steps are a task's subtasks."""

    def __init__(self, task: AlardLuptonSubtractTask, recipe: Recipe, sources: Any) -> None:
        super().__init__(recipe)
        self._task, self._sources = task, sources
        self.kernel_sources: Any = None

    def prepared(self, science: Exposure, template: Exposure) -> Pair:
        return self._task.prepareInputs(template, science, recipe=self.recipe)

    def matched(self, pair: Pair, preconvolution_kernel: Array | None) -> Match:
        task, config = self._task, self._task.config
        made = task.makeKernel.matchPair(
            pair,
            kernelSources=self._sources,
            convolved=self.recipe.match.convolved,
            preConvKernel=preconvolution_kernel,
            candidates=config._candidates(),
        )
        self.kernel_sources, found = made.kernelSources, made.match
        task.metadata["nPsfSources"] = len(made.kernelSources)
        task.metadata["spatialConditionNum"] = found.fit.condition
        task.metadata["spatialKernelSum"] = found.fit.kernel_sum
        task.metadata["convolvedExposure"] = (
            found.convolved.capitalize() if preconvolution_kernel is None else "Preconvolution"
        )
        return found

    def corrected(
        self,
        solution: Solution,
        science: Exposure,
        template: Exposure,
        difference: Exposure,
        sources: Array | None,
    ) -> Decorrelation | None:
        if not self.recipe.decorrelate:
            self._task.log.info("Not decorrelated: doDecorrelation is False.")
            return None
        return run_decorrelation(
            self._task.decorrelate, solution, science, template, difference, sources
        )


class AlardLuptonSubtractTask(PipelineTask):
    """Subtract a template, its PSF matched, from a science exposure.

    Parameters
    ----------
    **kwargs
        As for `lsst.pipe.base.Task`.

    Notes
    -----
    Runs the same pipeline as the command ``whitediff subtract``: alignment, rescaling of the
    variance planes, kernel fit, subtraction, differential background, decorrelation.  See
    Alard & Lupton 1998, DMTN-021.
    """

    ConfigClass: ClassVar[Any] = AlardLuptonSubtractConfig
    _DefaultName: ClassVar[str] = "alardLuptonSubtract"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.makeSubtask("makeKernel")
        if self.config.doDecorrelation:
            self.makeSubtask("decorrelate")

    @timeMethod
    def run(
        self,
        template: ExposureLike,
        science: ExposureLike,
        sources: Table | Mapping[str, npt.ArrayLike] | None = None,
        visitSummary: object = None,
    ) -> Struct:
        """Match, subtract and decorrelate.

        Parameters
        ----------
        template, science
            `whitediff.Exposure` or any lsst.images exposure; not changed.  The template may be
            larger or shifted by whole pixels, by its box or WCS.
        sources
            Catalogue of the science exposure, from whose positions the kernel sources are chosen:
            an `astropy.table.Table` with slot_Centroid_x and _y, base_SdssCentroid_x and _y, or
            x and y, in pixel coordinates.  None: kernel sources are found.
        visitSummary
            Not used, with a warning: the exposures' own PSFs and WCSs are used.

        Returns
        -------
        result
            ``difference`` : `whitediff.Exposure`, science − template at the science level.
            ``matchedTemplate``, ``matchedScience`` : `whitediff.Exposure`, the two as they
            were subtracted.
            ``backgroundModel`` : the differential background, image_unit of the science
            exposure: `whitediff.exposures.fields.ChebyshevField`, or an image if polynomials do
            not suffice.
            ``psfMatchingKernel`` : `whitediff.exposures.kernels.ConvolutionKernel`.
            ``kernelSources`` : `astropy.table.Table`, see `MakeKernelTask.matchPair`.
            ``solution`` : `whitediff.subtraction.solution.Solution`, to make the difference again.

        Raises
        ------
        ValueError
            If the exposures do not lie on the same pixels.
        lsst.pipe.base.NoWorkFound
            If the template covers too little; or if it covers little and a later step fails.
        InsufficientKernelSourcesError
            If there are too few stars.
        UnusableExposureError
            If a variance plane is absurd, or the pixels allow no fit.
        """
        made, steps = self._made("difference", template, science, sources, visitSummary)
        return self._struct(made, steps, difference=made.exposure)

    def prepareInputs(
        self, template: ExposureLike, science: ExposureLike, *, recipe: Recipe | None = None
    ) -> Pair:
        """Align two exposures, judge their variance planes and find their sources.

        Parameters
        ----------
        template, science
            As for `run`.
        recipe
            Recipe to follow; the configuration's if None.

        Returns
        -------
        pair
            `whitediff.matching.preparation.Pair`.

        Raises
        ------
        lsst.pipe.base.NoWorkFound
            If the template covers too little.
        """
        recipe = recipe or self.config.to_recipe()
        science, template = (
            without_sentinels(Exposure.from_object(each)) for each in (science, template)
        )
        try:
            pair = prepare(science, template, recipe.preparation, covered=self._check_coverage)
        except NoOverlapError:
            self._check_coverage(0.0)
            raise
        self.metadata["scaleScienceVarianceFactor"] = pair.science_variance_factor
        self.metadata["scaleTemplateVarianceFactor"] = pair.template_variance_factor
        self.metadata["sciencePsfSize"] = pair.science_fwhm
        self.metadata["templatePsfSize"] = pair.template_fwhm
        self.log.info(
            "PSF FWHM %.2f (science) and %.2f (template) pixels; variance planes times %.3f and"
            " %.3f.",
            self.metadata["sciencePsfSize"],
            self.metadata["templatePsfSize"],
            pair.science_variance_factor,
            pair.template_variance_factor,
        )
        return pair

    def _check_coverage(self, fraction: float) -> None:
        """Raise NoWorkFound if the template covers too little of the science exposure."""
        self.metadata["templateCoveragePercent"] = 100 * fraction
        required = self.config.requiredTemplateFraction
        if fraction < required:
            raise NoWorkFound(
                f"The template covers {100 * fraction:.1f}% of the science exposure's usable"
                f" pixels; requiredTemplateFraction is {100 * required:g}%."
            )

    def _made(
        self, kind: Kind, template: Any, science: Any, sources: Any, visitSummary: Any
    ) -> tuple[Made, _Steps]:
        """Product of two exposures, and the steps that made it."""
        if visitSummary is not None:
            self.log.warning("The visit summary is not used; the exposures' own PSFs and WCSs are.")
        steps = _Steps(self, self.config.to_recipe(score=kind == "score"), sources)
        with self._failures():
            (made,) = steps.products_by_stars(science, template, kind)
        assert made.pair is not None
        # The pipeline measures missing PSFs, so the widths may be known only now.
        self.metadata["sciencePsfSize"], self.metadata["templatePsfSize"] = made.pair.psf_fwhm
        if made.width is not None:
            self.metadata["diffimSignificanceWidth"] = made.width.width
        return made, steps

    def _struct(self, made: Made, steps: _Steps, **product: Any) -> Struct:
        """Result of `run`."""
        template, science = made.matched_template(), made.matched_science()
        assert made.product is not None
        # Both have the PSF of the unconvolved one, to which the other was matched.
        template.psf = science.psf = made.product.psf_before
        return Struct(
            **product,
            matchedTemplate=template,
            matchedScience=science,
            backgroundModel=made.solution.background,
            psfMatchingKernel=made.solution.kernel,
            kernelSources=steps.kernel_sources,
            solution=made.solution,
        )

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise errors that a pipeline understands; NoWorkFound if the template covers little."""
        try:
            yield
        except DataError as error:
            percent = self.metadata.get("templateCoveragePercent", 100.0)
            expected = 100 * self.config.minTemplateFractionForExpectedSuccess
            if percent < expected:
                raise NoWorkFound(
                    f"The template covers only {percent:.1f}% of the science exposure's usable"
                    f" pixels, less than minTemplateFractionForExpectedSuccess ({expected:g}%),"
                    f" and this failed: {error}"
                ) from error
            understood = algorithm_error(error)
            if understood is error:
                raise
            raise understood from error


class AlardLuptonPreconvolveSubtractTask(AlardLuptonSubtractTask):
    """Make a score image: the science exposure is correlated with its own PSF first.

    Parameters
    ----------
    **kwargs
        As for `lsst.pipe.base.Task`.

    Notes
    -----
    Runs the same pipeline as the command ``whitediff subtract --score-output``; DMTN-179.
    """

    ConfigClass: ClassVar[Any] = AlardLuptonPreconvolveSubtractConfig
    _DefaultName: ClassVar[str] = "alardLuptonPreconvolveSubtract"

    @timeMethod
    def run(
        self,
        template: ExposureLike,
        science: ExposureLike,
        sources: Table | Mapping[str, npt.ArrayLike] | None = None,
        visitSummary: object = None,
    ) -> Struct:
        """Pre-convolve, match, subtract and decorrelate.

        Parameters
        ----------
        template, science, sources, visitSummary
            As for `AlardLuptonSubtractTask.run`.

        Returns
        -------
        result
            ``scoreExposure`` : `whitediff.Exposure`.
            ``flux``, ``fluxVariance`` : ``(ny, nx)`` flux of a point source at each pixel and
            its variance, image_unit and its square; None without decorrelation.
            ``matchedTemplate``, ``matchedScience``, ``backgroundModel``,
            ``psfMatchingKernel``, ``kernelSources``, ``solution`` : as from
            `AlardLuptonSubtractTask.run`; the matched science exposure is pre-convolved.

        Raises
        ------
        ValueError
            If the exposures do not lie on the same pixels.
        lsst.pipe.base.NoWorkFound, InsufficientKernelSourcesError, UnusableExposureError
            As from `AlardLuptonSubtractTask.run`.
        """
        made, steps = self._made("score", template, science, sources, visitSummary)
        assert made.product is not None
        return self._struct(
            made,
            steps,
            scoreExposure=made.exposure,
            flux=made.product.flux,
            fluxVariance=made.product.flux_variance,
        )
