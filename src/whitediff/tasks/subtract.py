"""Subtracting a template from a science exposure as LSST tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import lsst.pex.config as pex_config
import numpy as np
import numpy.typing as npt
from lsst.pipe.base import NoWorkFound, PipelineTask, PipelineTaskConfig, Struct
from lsst.utils.timer import timeMethod

from ..errors import DataError
from ..exposures import masks
from ..exposures.alignment import aligned_template, alignment_of
from ..exposures.decorrelation import Decorrelation
from ..exposures.defects import NO_DEFECTS, DefectOptions, with_defects
from ..exposures.kernels import ConvolutionKernel
from ..exposures.model import Exposure
from ..exposures.noise import PairSources, without_sentinels
from ..exposures.preparation import (
    Pair,
    PreparationOptions,
    pair_with_psf,
    prepare,
    template_coverage,
)
from ..exposures.resampling import ResamplingOptions
from ..exposures.solution import Solution, fluxes, undecorrelated
from ..exposures.subtraction import (
    matched_science,
    matched_template,
    preconvolution_kernel,
    unsupported,
)
from ..exposures.widths import warn_of_significances
from ..matching.candidates import CandidateOptions
from .connections import ScoreConnections, SubtractConnections
from .decorrelate import DecorrelateALKernelTask
from .match import MakeKernelTask, algorithm_error, reject

__all__ = [
    "AlardLuptonPreconvolveSubtractConfig",
    "AlardLuptonPreconvolveSubtractTask",
    "AlardLuptonSubtractBaseConfig",
    "AlardLuptonSubtractConfig",
    "AlardLuptonSubtractTask",
]

type Array = npt.NDArray[Any]


class AlardLuptonSubtractBaseConfig(PipelineTaskConfig, pipelineConnections=SubtractConnections):  # type: ignore[call-arg]
    """What differences and scores are configured with."""

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
        """Lose no level at edges and holes."""
        super().setDefaults()
        self.decorrelate.fill = "interpolate"

    def validate(self) -> None:
        """Check what fields say together.

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

    def to_preparation_options(self) -> PreparationOptions:
        """Options of `whitediff.exposures.preparation.prepare` that say the same.

        Returns
        -------
        options
            How two exposures are prepared.
        """
        return PreparationOptions(
            rescale_variance=self.doScaleVariance,
            required_template_fraction=self.requiredTemplateFraction,
            expected_template_fraction=self.minTemplateFractionForExpectedSuccess,
            exclude_mask_planes=tuple(self.excludeMaskPlanes),
            defects=self.to_defect_options(),
        )

    def to_defect_options(self) -> DefectOptions:
        """Which defects to look for.

        Returns
        -------
        options
            For both exposures and their difference.
        """
        return DefectOptions(
            cosmic_rays="auto" if self.doFindCosmicRays else False,
            bad_pixels="auto" if self.doFindBadPixels else False,
            trails="auto" if self.doFindTrails else False,
            level_jumps="auto" if self.doFindLevelJumps else False,
        )

    def to_candidate_options(self) -> CandidateOptions:
        """Options that choose the stars, but for the cells, which are the kernel task's.

        Returns
        -------
        options
            Self-validated.
        """
        return CandidateOptions(
            signal_to_noise=(self.detectionThreshold, self.detectionThresholdMax),
            most=self.maxKernelSources,
            fewest=self.minKernelSources,
        )


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


def attributed_mask(
    difference: Exposure,
    sources: PairSources,
    *,
    matchedTemplate: Exposure,
    matchedScience: Exposure,
    preserve: tuple[str, ...],
    rename: tuple[str, ...],
) -> Any:
    """Mask of a difference, the template's planes preserved, renamed or left out.

    Parameters
    ----------
    difference
        Difference in whose mask the planes of both are united; with its kernel.
    sources
        Sources of science image and template.
    matchedTemplate, matchedScience
        The two as they were subtracted.
    preserve, rename
        Planes of the template.

    Returns
    -------
    mask
        `whitediff.exposures.masks.Mask`, with the planes of the sources.
    """
    kernel = difference.kernel
    assert kernel is not None
    box = difference.bbox
    image = kernel.at(x=box.x.center, y=box.y.center)
    mask = masks.attributed(
        difference.mask,
        matchedScience.mask,
        matchedTemplate.mask,
        preserve=(*preserve, masks.CONTAMINATED),
        rename=rename,
        always={
            "EDGE": unsupported(difference.shape, image.shape),
            "NO_DATA": ~np.isfinite(difference.data),
        },
    )
    return sources.marked(mask)


class AlardLuptonSubtractTask(PipelineTask):
    """Subtract a template, its PSF matched, from a science exposure.

    Parameters
    ----------
    **kwargs
        As for `lsst.pipe.base.Task`.

    Notes
    -----
    The same pipeline as the command ``whitediff subtract``: alignment by whole pixels, variance
    planes put right, kernel fit, subtraction, differential background, decorrelation.  See
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
        self, template: Any, science: Any, sources: Any = None, visitSummary: Any = None
    ) -> Struct:
        """Match, subtract and decorrelate.

        Parameters
        ----------
        template, science
            `whitediff.Exposure` or any lsst.images exposure; not changed.  The template may be
            larger or shifted by whole pixels, by its box or WCS.
        sources
            Catalogue of the science exposure, whose positions the kernel sources are chosen
            from: an `astropy.table.Table` with slot_Centroid_x and _y, base_SdssCentroid_x and
            _y, or x and y, in pixel coordinates.  None: they are found.
        visitSummary
            Not used, with a warning: the exposures' own PSFs and WCSs are.

        Returns
        -------
        result
            ``difference`` : `whitediff.Exposure`, science − template at the science level.
            ``matchedTemplate``, ``matchedScience`` : `whitediff.Exposure`, the two as they
            were subtracted.
            ``backgroundModel`` : the differential background, image_unit of the science
            exposure: `whitediff.exposures.fields.ChebyshevField`, or an image where it has more.
            ``psfMatchingKernel`` : `whitediff.exposures.kernels.ConvolutionKernel`.
            ``kernelSources`` : `astropy.table.Table`, see `MakeKernelTask.matchPair`.
            ``solution`` : `whitediff.exposures.solution.Solution`, all that it takes to make the
            difference again.

        Raises
        ------
        ValueError
            If the exposures do not lie on the same pixels.
        lsst.pipe.base.NoWorkFound
            If the template covers too little, or little and anything else fails.
        InsufficientKernelSourcesError
            If there are too few stars.
        UnusableExposureError
            If a variance plane is absurd, or the pixels allow no fit.
        """
        with self._failures():
            pair = self.prepareInputs(template, science, visitSummary)
            if self.chooseConvolutionMethod(pair) == "science":
                return self.runConvolveScience(pair, sources)
            return self.runConvolveTemplate(pair, sources)

    def chooseConvolutionMethod(self, pair: Pair) -> Literal["template", "science"]:
        """Which exposure to convolve.

        Parameters
        ----------
        pair
            The prepared exposures.

        Returns
        -------
        convolved
            As ``config.mode`` says; for ``auto`` the template, unless its stars are the wider.
        """
        if self.config.mode == "auto":
            return pair.sharper
        return "science" if self.config.mode == "convolveScience" else "template"

    def prepareInputs(self, template: Any, science: Any, visitSummary: Any = None) -> Pair:
        """Align two exposures, judge their variance planes and find their sources.

        Parameters
        ----------
        template, science, visitSummary
            As for `run`.

        Returns
        -------
        pair
            `whitediff.exposures.preparation.Pair`.

        Raises
        ------
        lsst.pipe.base.NoWorkFound
            If the template covers too little.
        """
        if visitSummary is not None:
            self.log.warning("The visit summary is not used; the exposures' own PSFs and WCSs are.")
        science, template = (
            without_sentinels(Exposure.from_object(each)) for each in (science, template)
        )
        # On the template's own pixels, and not again below.
        science, template = with_defects(science, template, self.config.to_defect_options())
        options = dataclasses.replace(self.config.to_preparation_options(), defects=NO_DEFECTS)
        resampling = self._resampling()
        if resampling is not None:
            template = aligned_template(science, template, resampling=resampling)
        self.checkTemplateIsSufficient(template, science)
        pair = prepare(science, template, options)
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

    def _resampling(self) -> ResamplingOptions | None:
        """How a template is resampled: its noise is followed as the decorrelation does."""
        if self.config.alignTemplate is None:
            return None
        noise: Any = "auto"
        if self.config.doDecorrelation:
            config = self.config.decorrelate.value
            noise = getattr(config, "decorrelateConfig", config).noise
        return ResamplingOptions(
            method=self.config.alignTemplate,
            noise=noise,
            positions=self.config.alignPositions,
        )

    def checkTemplateIsSufficient(self, template: Any, science: Any) -> float:
        """Check that a template covers enough of a science exposure.

        Parameters
        ----------
        template, science
            Exposures.

        Returns
        -------
        fraction
            Of the science exposure's usable pixels.

        Raises
        ------
        lsst.pipe.base.NoWorkFound
            If it is below ``config.requiredTemplateFraction``.
        """
        fraction = template_coverage(science, template)
        self.metadata["templateCoveragePercent"] = 100 * fraction
        required = self.config.requiredTemplateFraction
        if fraction < required:
            raise NoWorkFound(
                f"The template covers {100 * fraction:.1f}% of the science exposure's usable"
                f" pixels; requiredTemplateFraction is {100 * required:g}%."
            )
        return fraction

    def runConvolveTemplate(self, pair: Pair, sources: Any = None) -> Struct:
        """Convolve the template and subtract it.

        Parameters
        ----------
        pair
            The prepared exposures.
        sources
            As for `run`.

        Returns
        -------
        result
            As of `run`.
        """
        return self._difference(pair, sources, "template")

    def runConvolveScience(self, pair: Pair, sources: Any = None) -> Struct:
        """Convolve the science exposure, subtract the template, and return to its level.

        Parameters
        ----------
        pair
            The prepared exposures.
        sources
            As for `run`.

        Returns
        -------
        result
            As of `run`.
        """
        return self._difference(pair, sources, "science")

    def _difference(
        self, pair: Pair, sources: Any, convolved: Literal["template", "science"]
    ) -> Struct:
        self.metadata["convolvedExposure"] = convolved.capitalize()
        made = self._makeKernel(pair, sources, convolved)
        pair = pair_with_psf(pair, convolved)
        return self._subtracted(pair, made)[0]

    def _makeKernel(
        self,
        pair: Pair,
        sources: Any,
        convolved: Literal["template", "science"],
        preConvKernel: Array | None = None,
    ) -> Struct:
        made = self.makeKernel.matchPair(
            pair,
            kernelSources=sources,
            convolved=convolved,
            preConvKernel=preConvKernel,
            candidates=self.config.to_candidate_options(),
        )
        self.metadata["nPsfSources"] = len(made.kernelSources)
        self.metadata["spatialConditionNum"] = made.match.fit.condition
        self.metadata["spatialKernelSum"] = made.match.fit.kernel_sum
        return made

    def _subtracted(
        self, pair: Pair, made: Struct, preConvKernel: Array | None = None
    ) -> tuple[Struct, Decorrelation | None]:
        """Result of `run`, and the numbers behind its decorrelation."""
        match = made.match
        # Now one of them may have been measured.
        self.metadata["sciencePsfSize"], self.metadata["templatePsfSize"] = pair.psf_fwhm
        resampling = self._resampling()
        before, solution = undecorrelated(
            dataclasses.replace(
                Solution.of(pair, match, preConvKernel),
                alignment=alignment_of(pair.template, resampling),
                alignment_noise="white" if resampling is None else resampling.noise,
                defects=self.config.to_defect_options(),
            ),
            pair.science,
            pair.template,
            preconvolved_science=None if preConvKernel is None else match.science,
            search=match.background_search(pair),
            keep_background=not self.config.doSubtractBackground,
        )
        template = matched_template(
            pair.template,
            match.kernel,
            convolved=match.convolved,
            scale_factor=solution.scale_factor,
        )
        science = matched_science(
            pair.science if preConvKernel is None else match.science,
            match.kernel,
            convolved=match.convolved,
            scale_factor=solution.scale_factor,
        )
        # The PSF of the one that was left alone is what the other was matched to.
        template.psf = science.psf = before.psf
        finished = self.finalize(
            pair,
            before,
            match.kernel,
            templateMatched=match.convolved == "template",
            preConvKernel=preConvKernel,
            scaleFactor=solution.scale_factor,
        )
        difference = finished.difference
        difference.mask = self.updateMasks(
            difference, pair, matchedTemplate=template, matchedScience=science
        )
        if self.config.doDecorrelation:
            width = warn_of_significances(difference)
            if width is not None:
                self.metadata["diffimSignificanceWidth"] = width.width
        result = Struct(
            difference=difference,
            matchedTemplate=template,
            matchedScience=science,
            backgroundModel=solution.background,
            psfMatchingKernel=match.kernel,
            kernelSources=made.kernelSources,
            solution=solution.completed(finished.decorrelation),
        )
        return result, finished.decorrelation

    def finalize(
        self,
        pair: Pair,
        difference: Exposure,
        psfMatchingKernel: ConvolutionKernel,
        *,
        templateMatched: bool = True,
        preConvKernel: Array | None = None,
        scaleFactor: float = 1.0,
    ) -> Struct:
        """Decorrelate a difference or score, if the configuration says so.

        Parameters
        ----------
        pair
            The exposures before any convolution.
        difference
            Difference or score; not changed.
        psfMatchingKernel
            Matching kernel.
        templateMatched
            The template was convolved, else the science exposure.
        preConvKernel
            ``(py, px)`` PSF with which the science exposure was correlated, for a score.
        scaleFactor
            Where the science exposure was convolved: photometric scale by which the difference
            was divided, over the kernel's sum.

        Returns
        -------
        result
            ``difference``; ``decorrelation``, the numbers behind it, or None.
        """
        if not self.config.doDecorrelation:
            self.log.info("Not decorrelated: doDecorrelation is False.")
            return Struct(difference=difference, decorrelation=None)
        result = self.decorrelate.run(
            pair.science,
            pair.template,
            difference,
            psfMatchingKernel,
            preConvKernel=preConvKernel,
            templateMatched=templateMatched,
            preConvMode=preConvKernel is not None,
            scaleFactor=scaleFactor,
            sources=pair.source_levels.either,
        )
        return Struct(difference=result.correctedExposure, decorrelation=result.decorrelation)

    def updateMasks(
        self,
        difference: Exposure,
        pair: Pair,
        *,
        matchedTemplate: Exposure,
        matchedScience: Exposure,
    ) -> Any:
        """Mask of a difference, the template's planes preserved, renamed or left out.

        Parameters
        ----------
        difference
            Difference in whose mask the planes of both are united; not changed.
        pair
            The exposures before any convolution.
        matchedTemplate, matchedScience
            The two as they were subtracted.

        Returns
        -------
        mask
            `whitediff.exposures.masks.Mask`, with the planes of their sources.  CONTAMINATED
            with all planes of the template, whatever they are called here.
        """
        if not self.config.doAttributeTemplateMask:
            return pair.source_levels.marked(difference.mask)
        return attributed_mask(
            difference,
            pair.source_levels,
            matchedTemplate=matchedTemplate,
            matchedScience=matchedScience,
            preserve=tuple(self.config.preserveTemplateMask),
            rename=tuple(self.config.renameTemplateMask),
        )

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Errors that a pipeline understands; none where the template covers little."""
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
    """Score image of a science exposure that was correlated with its own PSF.

    Parameters
    ----------
    **kwargs
        As for `lsst.pipe.base.Task`.

    Notes
    -----
    The same pipeline as the command ``whitediff subtract --score-output``; DMTN-179.
    """

    ConfigClass: ClassVar[Any] = AlardLuptonPreconvolveSubtractConfig
    _DefaultName: ClassVar[str] = "alardLuptonPreconvolveSubtract"

    @timeMethod
    def run(
        self, template: Any, science: Any, sources: Any = None, visitSummary: Any = None
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
            ``psfMatchingKernel``, ``kernelSources`` : as of `AlardLuptonSubtractTask.run`; the
            matched science exposure is the pre-convolved one.

        Raises
        ------
        ValueError
            If the exposures do not lie on the same pixels.
        lsst.pipe.base.NoWorkFound, InsufficientKernelSourcesError, UnusableExposureError
            As from `AlardLuptonSubtractTask.run`.
        """
        with self._failures():
            return self.runPreconvolve(self.prepareInputs(template, science, visitSummary), sources)

    def chooseConvolutionMethod(self, pair: Pair) -> Literal["template", "science"]:
        """Which exposure to convolve with the matching kernel.

        Parameters
        ----------
        pair
            The prepared exposures.

        Returns
        -------
        convolved
            The template.
        """
        return "template"

    def runPreconvolve(self, pair: Pair, sources: Any = None) -> Struct:
        """Correlate the science exposure with its PSF, match the template and subtract it.

        Parameters
        ----------
        pair
            The prepared exposures.
        sources
            As for `run`.

        Returns
        -------
        result
            As of `run`.

        Raises
        ------
        ArgumentError
            If the science exposure has no PSF, and too few stars to measure it.
        """
        self.metadata["convolvedExposure"] = "Preconvolution"
        pair = pair_with_psf(pair, "template")
        kernel = preconvolution_kernel(pair.science)
        made = self._makeKernel(pair, sources, "template", kernel)
        result, decorrelation = self._subtracted(pair, made, kernel)
        flux, variance = (None, None) if decorrelation is None else fluxes(decorrelation)
        return Struct(
            scoreExposure=result.difference,
            flux=flux,
            fluxVariance=variance,
            matchedTemplate=result.matchedTemplate,
            matchedScience=result.matchedScience,
            backgroundModel=result.backgroundModel,
            psfMatchingKernel=result.psfMatchingKernel,
            kernelSources=result.kernelSources,
            solution=result.solution,
        )
