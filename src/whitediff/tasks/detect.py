"""Detecting and measuring sources on a difference as LSST tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import lsst.pex.config as pex_config
import numpy as np
import numpy.typing as npt
from astropy.table import QTable
from lsst.pipe.base import AlgorithmError, PipelineTask, PipelineTaskConfig, Struct
from lsst.utils.timer import timeMethod

from ..detection.catalog import COLUMNS, headline, source_counts
from ..detection.exposures import DetectionOptions, Detections, detections, forced_photometry
from ..detection.photometry import Frame, aperture_fluxes
from ..errors import ArgumentError, DataError
from ..exposures import masks
from ..exposures.model import Exposure
from ..matching.preparation import with_own_psf
from ..noise.exposures import sources_apart
from .connections import DetectConnections, DetectScoreConnections
from .match import algorithm_error, catalogPositions, reject

if TYPE_CHECKING:
    from astropy.table import Table
    from lsst.pipe.base import InputQuantizedConnection, OutputQuantizedConnection, QuantumContext

    from .decorrelate import ExposureLike

__all__ = [
    "BadSubtractionError",
    "DetectAndMeasureConfig",
    "DetectAndMeasureScoreConfig",
    "DetectAndMeasureScoreTask",
    "DetectAndMeasureTask",
    "NoDiaSourcesError",
    "SourceDetectionConfig",
]

type Array = npt.NDArray[Any]

_PLANES: tuple[tuple[Literal["positive", "negative"], str], ...] = (
    ("positive", "DETECTED"),
    ("negative", "DETECTED_NEGATIVE"),
)
_FORCED = {
    "psf_flux": ("ip_diffim_forced_PsfFlux_instFlux", "flux of a point source here on science"),
    "psf_flux_err": ("ip_diffim_forced_PsfFlux_instFluxErr", "standard deviation of this flux"),
    "flag_fit_failed": ("ip_diffim_forced_PsfFlux_flag", "this flux could not be measured"),
}  # fmt: skip


class NoDiaSourcesError(DataError, AlgorithmError):
    """Nothing was detected, and the configuration counts that as a failure."""

    def __init__(self) -> None:
        super().__init__(
            "No source was detected on the difference; set raiseOnNoDiaSources to False if that"
            " is no failure."
        )

    # Pickling would pass the message to a constructor that takes none.
    def __reduce__(self) -> tuple[type[NoDiaSourcesError], tuple[()]]:
        return NoDiaSourcesError, ()

    @property
    def metadata(self) -> dict[str, float]:
        """Empty: the message has no numbers."""
        return {}


class BadSubtractionError(DataError, AlgorithmError):
    """The difference still holds too much of the stars that the kernel was measured on.

    Parameters
    ----------
    ratio, threshold
        Ratio of an aperture's content on the difference to its content on the science image, as
        the mean or the standard deviation over the stars; and the limit of that number.
    """

    def __init__(self, *, ratio: float, threshold: float) -> None:
        super().__init__(
            f"The kernel sources' apertures hold {ratio:.3g} times as much on the difference as on"
            f" the science image, more than {threshold:g}; do both have the same pixels and the"
            " right PSFs?"
        )
        self.ratio, self.threshold = ratio, threshold

    def __reduce__(self) -> tuple[Callable[..., BadSubtractionError], tuple[float, float]]:
        return _bad_subtraction, (self.ratio, self.threshold)

    @property
    def metadata(self) -> dict[str, float]:
        """Ratio and threshold."""
        return {"ratio": self.ratio, "threshold": self.threshold}


# Pickling passes positional arguments only.
def _bad_subtraction(ratio: float, threshold: float) -> BadSubtractionError:
    return BadSubtractionError(ratio=ratio, threshold=threshold)


class SourceDetectionConfig(pex_config.Config):
    """Configuration of what counts as a source."""

    thresholdValue = pex_config.RangeField(
        dtype=float,
        default=5.0,
        min=0.0,
        inclusiveMin=False,
        doc="Least significance of a source, in standard deviations of the filtered noise.",
    )
    thresholdPolarity = pex_config.ChoiceField(
        dtype=str,
        default="both",
        doc="Sign of the sources.",
        allowed={
            "positive": "Brighter on the science image.",
            "negative": "Fainter on the science image.",
            "both": "Either.",
        },
    )
    significance = pex_config.ChoiceField(
        dtype=str,
        default="auto",
        doc="Significances that the threshold applies to.",
        allowed={
            "auto": "Significances over their measured width between the sources, where that"
            " departs from 1.",
            "plane": "Significances as the variance plane tells.",
        },
    )
    excludeMaskPlanes = pex_config.ListField(
        dtype=str,
        default=list(masks.UNTRUSTED_MASK_PLANES),
        doc="Mask planes whose pixels hold no measurement.",
    )


class DetectAndMeasureConfig(  # type: ignore[call-arg]
    PipelineTaskConfig, pipelineConnections=DetectConnections
):
    """Configuration of `DetectAndMeasureTask`."""

    doUseKernelSources = pex_config.Field(
        dtype=bool,
        default=False,
        doc="In a pipeline, judge the subtraction by what it left of the kernel sources; they have"
        " to be kept (doWriteKernelSources of the subtraction).",
    )
    doWriteMeasuredExposure = pex_config.Field(
        dtype=bool,
        default=False,
        doc="In a pipeline, keep the difference with the mask planes of what was detected.",
    )

    detection = pex_config.ConfigField(dtype=SourceDetectionConfig, doc="What is detected.")
    apertureRadius = pex_config.RangeField(
        dtype=float,
        default=None,
        optional=True,
        min=0.0,
        inclusiveMin=False,
        doc="Radius of the aperture, pixels; 1.5 full widths at half maximum of the PSF if None.",
    )
    doForcedMeasurement = pex_config.Field(
        dtype=bool,
        default=True,
        doc="Measure point sources at the same positions on the science image, whose background"
        " is subtracted for it.",
    )
    badSourceFlags = pex_config.ListField(
        dtype=str,
        default=[],
        doc="Sources with any of these flags (columns flag_…) are removed from the catalogue.",
    )
    clearMaskPlanes = pex_config.ListField(
        dtype=str,
        default=["DETECTED", "DETECTED_NEGATIVE", "NOT_DEBLENDED", "STREAK"],
        doc="Mask planes that are cleared before detection.",
    )
    raiseOnBadSubtractionRatio = pex_config.Field(
        dtype=bool,
        default=True,
        doc="Raise an error where the difference holds too much of the kernel sources.",
    )
    badSubtractionRatioThreshold = pex_config.RangeField(
        dtype=float,
        default=0.2,
        min=0.0,
        doc="Largest mean over the kernel sources of the sum of absolute values in an aperture on"
        " the difference, less that of noise, over that on the science image.",
    )
    badSubtractionVariationThreshold = pex_config.RangeField(
        dtype=float, default=0.4, min=0.0, doc="Largest standard deviation of this ratio."
    )
    raiseOnNoDiaSources = pex_config.Field(
        dtype=bool,
        default=False,
        doc="Raise an error if nothing is detected. Off by default, unlike in LSST: a white"
        " difference of a small field has none.",
    )

    def validate(self) -> None:
        """Refuse unknown flags.

        Raises
        ------
        lsst.pex.config.FieldValidationError
            If ``badSourceFlags`` has a flag that catalogues lack.
        """
        super().validate()
        known = [name for name in COLUMNS if name.startswith("flag_")]
        for flag in self.badSourceFlags:
            if flag not in known:
                reject(self, "badSourceFlags", f"has {flag!r}, which is none of {', '.join(known)}")

    def to_options(self) -> DetectionOptions:
        """Equivalent options of `whitediff.detection.exposures.detect`.

        Returns
        -------
        options
            Validated options.
        """
        return DetectionOptions(
            threshold=self.detection.thresholdValue,
            sign=self.detection.thresholdPolarity,
            significance=self.detection.significance,
            aperture_radius=self.apertureRadius,
            exclude_mask_planes=tuple(self.detection.excludeMaskPlanes),
        )


class DetectAndMeasureScoreConfig(  # type: ignore[call-arg]
    DetectAndMeasureConfig, pipelineConnections=DetectScoreConnections
):
    """Configuration of `DetectAndMeasureScoreTask`."""


class DetectAndMeasureTask(PipelineTask):
    """Detect and measure sources on a difference.

    Parameters
    ----------
    **kwargs
        As for `lsst.pipe.base.PipelineTask`.

    Notes
    -----
    Does the same as the command ``whitediff detect``.  Sources are found on the difference
    filtered with its PSF, not with a Gaussian of the PSF's width; opposite lobes are one dipole.
    """

    ConfigClass: ClassVar[Any] = DetectAndMeasureConfig
    _DefaultName: ClassVar[str] = "detectAndMeasure"

    def runQuantum(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        """Read, run and write.

        Parameters
        ----------
        butlerQC, inputRefs, outputRefs
            As for `lsst.pipe.base.PipelineTask.runQuantum`.

        Notes
        -----
        The matched template is not used, so it is not read.
        """
        outputs = self.run(matchedTemplate=None, **butlerQC.get(inputRefs))
        butlerQC.put(outputs, outputRefs)

    @timeMethod
    def run(
        self,
        science: ExposureLike,
        matchedTemplate: object,
        difference: ExposureLike,
        kernelSources: Table | Mapping[str, npt.ArrayLike] | None = None,
        idFactory: Callable[[], int] | None = None,
        measurementResults: Struct | None = None,
    ) -> Struct:
        """Detect and measure sources on a difference.

        Parameters
        ----------
        science
            Science exposure that the template was subtracted from.
        matchedTemplate
            Template as subtracted; not used.
        difference
            `whitediff.Exposure` or any lsst.images exposure, with a PSF and white noise; not
            changed.
        kernelSources
            Catalogue of the stars that the kernel was measured on, as `AlardLuptonSubtractTask`
            returns it; without it the subtraction is not judged.
        idFactory
            Function that gives the next identifier; None to count from 1.
        measurementResults
            Struct to which the results are added, so that they are kept if an error is raised.

        Returns
        -------
        result
            ``subtractedMeasuredExposure`` : `whitediff.Exposure`, the difference with the mask
            planes DETECTED and DETECTED_NEGATIVE set.
            ``diaSources`` : `astropy.table.QTable`, see docs/detection.md; with
            ``config.doForcedMeasurement`` it has the further columns
            ip_diffim_forced_PsfFlux_instFlux, …_instFluxErr and …_flag.

        Raises
        ------
        ArgumentError
            If the difference has no PSF or variance.
        BadSubtractionError
            If the difference holds too much of the kernel sources.
        NoDiaSourcesError
            If nothing is detected and ``config.raiseOnNoDiaSources`` is set.
        """
        return self._run(science, difference, None, kernelSources, idFactory, measurementResults)

    def _run(
        self,
        science: Any,
        difference: Any,
        score: Any,
        kernelSources: Any,
        idFactory: Callable[[], int] | None,
        results: Struct | None,
    ) -> Struct:
        results = Struct() if results is None else results
        science, difference = Exposure.from_object(science), Exposure.from_object(difference)
        if science.bbox != difference.bbox:
            raise ArgumentError(
                f"The science exposure's box {science.bbox} is not the difference's,"
                f" {difference.bbox}; is it the one that was subtracted from?"
            )
        difference = self._cleared(difference)
        try:
            found = detections(difference, score, self.config.to_options())
        except DataError as error:
            raise algorithm_error(error) from error
        measured = difference.replaced(mask=self._detectedMask(difference.mask, found))
        sources = self._removeBadSources(found.catalogue)
        if idFactory is not None:
            sources = _renumbered(sources, idFactory)
        if self.config.doForcedMeasurement:
            self.measureForcedSources(sources, science)
        results.subtractedMeasuredExposure, results.diaSources = measured, sources
        self.calculateMetrics(science, measured, sources, kernelSources)
        if not len(sources) and self.config.raiseOnNoDiaSources:
            raise NoDiaSourcesError()
        return results

    def _cleared(self, difference: Exposure) -> Exposure:
        """Difference without the mask planes of an earlier detection."""
        mask = difference.mask
        bits = masks.bits_of(mask, self.config.clearMaskPlanes)
        if not bits:
            return difference
        return difference.replaced(
            mask=masks.Mask(mask.bits & ~bits, mask.names, mask.descriptions)
        )

    def _detectedMask(self, mask: Any, found: Detections) -> Any:
        polarity = self.config.detection.thresholdPolarity
        for sign, plane in _PLANES:
            pixels = found.pixels(sign)
            if polarity not in (sign, "both"):
                pixels[...] = False
            mask = masks.with_plane(mask, plane, pixels)
        return mask

    def _removeBadSources(self, sources: QTable) -> QTable:
        bad = np.zeros(len(sources), bool)
        for flag in self.config.badSourceFlags:
            bad |= np.asarray(sources[flag])
        self.metadata["nMergedDiaSources"] = len(sources)
        self.metadata["nRemovedBadFlaggedSources"] = int(bad.sum())
        sources = sources[~bad]
        sources.meta |= source_counts(sources)
        return sources

    def measureForcedSources(self, diaSources: QTable, science: Exposure) -> None:
        """Measure point sources on the science exposure at the positions of a catalogue.

        Parameters
        ----------
        diaSources
            Catalogue; columns are added to it.
        science
            Science exposure.  A missing PSF is measured; if that fails, no columns are added, and
            a warning is logged.
        """
        if science.psf is None:
            try:
                science = with_own_psf(science)
            except DataError as error:
                self.log.warning("No forced measurement on the science exposure: %s", error)
                return
        _, flat = sources_apart(science)
        measured = forced_photometry(
            science.replaced(data=flat), diaSources["x", "y"], self.config.to_options()
        )
        for name, (column, description) in _FORCED.items():
            diaSources[column] = measured[name]
            diaSources[column].info.description = description

    def calculateMetrics(
        self,
        science: Exposure,
        difference: Exposure,
        diaSources: QTable,
        kernelSources: Table | Mapping[str, npt.ArrayLike] | None,
    ) -> None:
        """Put numbers of the detection into the metadata.

        Parameters
        ----------
        science, difference
            Exposures; the mask of the difference has the detections.
        diaSources
            Catalogue.
        kernelSources
            As for `run`.

        Raises
        ------
        BadSubtractionError
            If the difference holds too much of the kernel sources.
        """
        config = self.config
        bad = masks.flagged(difference.mask, config.detection.excludeMaskPlanes)
        self.metadata["nGoodPixels"] = int((~bad).sum())
        self.metadata["nBadPixels"] = int(bad.sum())
        for name, plane in (("Positive", "DETECTED"), ("Negative", "DETECTED_NEGATIVE")):
            pixels = masks.flagged(difference.mask, [plane])
            self.metadata[f"nPixelsDetected{name}"] = int(pixels.sum())
            self.metadata[f"nBadPixelsDetected{name}"] = int((pixels & bad).sum())
        self.metadata["nDiaSources"] = len(diaSources)
        for label in ("point", "dipole", "extended", "artifact"):
            number = int((np.asarray(diaSources["classification"]) == label).sum())
            self.metadata[f"n{label.capitalize()}DiaSources"] = number
        self.metadata["nBelievedDiaSources"] = diaSources.meta["n_believed"]
        for key, name in (
            ("depth", "diffimLimitingFlux"),
            ("depth_mag", "diffimLimitingMagnitude"),
            ("significance_width", "diffimSignificanceWidth"),
        ):
            if key in diaSources.meta:
                self.metadata[name] = diaSources.meta[key]
        self.log.info("%s", headline(diaSources))
        if kernelSources is None or not len(kernelSources):
            return
        radius = diaSources.meta["aperture_radius"]
        ratio = _residual_ratio(science, difference, kernelSources, radius)
        mean, spread = (float(np.mean(ratio)), float(np.std(ratio))) if len(ratio) else (0.0, 0.0)
        self.metadata["residualFootprintRatioMean"] = mean
        self.metadata["residualFootprintRatioStdev"] = spread
        if config.raiseOnBadSubtractionRatio:
            for value, limit in (
                (mean, config.badSubtractionRatioThreshold),
                (spread, config.badSubtractionVariationThreshold),
            ):
                if value > limit:
                    raise BadSubtractionError(ratio=value, threshold=limit)


class DetectAndMeasureScoreTask(DetectAndMeasureTask):
    """Detect sources on a score and measure them on the difference.

    Parameters
    ----------
    **kwargs
        As for `lsst.pipe.base.PipelineTask`.

    Notes
    -----
    Does the same as the command ``whitediff detect --score``.
    """

    ConfigClass: ClassVar[Any] = DetectAndMeasureScoreConfig
    _DefaultName: ClassVar[str] = "detectAndMeasureScore"

    @timeMethod
    def run(
        self,
        science: ExposureLike,
        matchedTemplate: object,
        difference: ExposureLike,
        scoreExposure: ExposureLike,
        kernelSources: Table | Mapping[str, npt.ArrayLike] | None = None,
        idFactory: Callable[[], int] | None = None,
    ) -> Struct:
        """Detect sources on a score and measure them on the difference.

        Parameters
        ----------
        science, matchedTemplate, difference, kernelSources, idFactory
            As for `DetectAndMeasureTask.run`.
        scoreExposure
            Score image on the same pixels.

        Returns
        -------
        result
            As from `DetectAndMeasureTask.run`.

        Raises
        ------
        ArgumentError
            If the difference has no PSF or variance, or the score has another box.
        BadSubtractionError, NoDiaSourcesError
            As from `DetectAndMeasureTask.run`.
        """
        return self._run(science, difference, scoreExposure, kernelSources, idFactory, None)


def _renumbered(sources: QTable, idFactory: Callable[[], int]) -> QTable:
    """Catalogue with identifiers of a factory, in the columns id and parent."""
    old = np.asarray(sources["id"])
    new = np.array([idFactory() for _ in old], dtype=np.int64)
    known = dict(zip(old.tolist(), new.tolist(), strict=True))
    # The parent of a blend may have been removed; then the first source left takes its place.
    parents: dict[int, int] = {}
    parent = [
        parents.setdefault(each, known.get(each, number))
        for each, number in zip(np.asarray(sources["parent"]).tolist(), new.tolist(), strict=True)
    ]
    for name, values in (("id", new), ("parent", np.array(parent, dtype=np.int64))):
        description = sources[name].info.description
        sources[name] = values
        sources[name].info.description = description
    return sources


def _residual_ratio(
    science: Exposure, difference: Exposure, kernelSources: Any, radius: float
) -> Array:
    """Residuals of stars: Σ|difference| over Σ|science| in apertures, the noise's share removed."""
    x, y = catalogPositions(kernelSources)
    y0, x0 = difference.origin
    ny, nx = difference.shape
    inside = (x >= x0) & (x <= x0 + nx - 1) & (y >= y0) & (y <= y0 + ny - 1)
    x, y = x[inside] - x0, y[inside] - y0
    bad = masks.flagged(difference.mask, masks.UNTRUSTED_MASK_PLANES)
    _, flat = sources_apart(science)
    sums = []
    for image, variance in (
        (difference.data, difference.variance),
        (flat, science.variance),
    ):
        with np.errstate(invalid="ignore"):
            # √(2/π) σ is the mean absolute value of Gaussian noise.
            plane = np.abs(image) - np.sqrt(2 / np.pi * np.maximum(variance, 0))
        sums.append(aperture_fluxes(Frame(plane, variance, ~bad), x, y, radius)[0])
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = sums[0] / sums[1]
    result: Array = ratio[np.isfinite(ratio)]
    return result
