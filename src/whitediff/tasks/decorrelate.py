"""The decorrelation afterburner as an LSST task."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import lsst.pex.config as pex_config
import numpy as np
import numpy.typing as npt
from lsst.pipe.base import AlgorithmError, Struct, Task
from lsst.utils.timer import timeMethod

from ..decorrelation.correction import (
    Correction,
    corrected_image,
    corrected_psf,
    difference_correction,
    estimated_variance,
    full_variance,
    score_correction,
)
from ..decorrelation.exposures import (
    CorrectionOptions,
    Decorrelation,
    DecorrelationOptions,
    decorrelate,
    untouched,
    variance_mean,
)
from ..errors import ArgumentError, DataError
from ..exposures import masks
from ..exposures.boxes import Box
from ..exposures.model import Exposure
from ..exposures.psf import KernelPointSpreadFunction
from ..noise.exposures import InputNoise
from ..numerics import fourier

if TYPE_CHECKING:
    from ..exposures.kernels import ConvolutionKernel
    from ..exposures.psf import PointSpreadFunction

    class ExposureLike(Protocol):
        """`whitediff.Exposure`, or any exposure of lsst.images."""

        @property
        def mask(self) -> object:
            """Mask."""

        @property
        def variance(self) -> object:
            """Variance plane."""


__all__ = [
    "DecorrelateALKernelConfig",
    "DecorrelateALKernelTask",
    "UnusableExposureError",
]

type Array = npt.NDArray[Any]


class UnusableExposureError(DataError, AlgorithmError):
    """An exposure has no pixel, or no positive variance, to work with.

    Parameters
    ----------
    message
        Fault, with the numbers and the remedy.
    **metadata
        The numbers, for the quantum's provenance.
    """

    def __init__(self, message: str, **metadata: float | int | str) -> None:
        super().__init__(message)
        self._metadata = dict(metadata)

    @property
    def metadata(self) -> dict[str, float | int | str]:
        """The numbers in the message."""
        return self._metadata


class DecorrelateALKernelConfig(pex_config.Config):
    """Configuration of `DecorrelateALKernelTask`."""

    ignoreMaskPlanes = pex_config.ListField(
        dtype=str,
        default=list(masks.DEFAULT_IGNORE_MASK_PLANES),
        doc="Mask planes to ignore for sigma-clipped statistics, in the spelling of lsst.afw or"
        " of lsst.images. Default planes that the masks lack are skipped; others must exist.",
    )
    completeVarPlanePropagation = pex_config.Field(
        dtype=bool,
        default=False,
        doc="Compute the full effect of the decorrelated matching kernel on the variance plane."
        " Otherwise use a model weighed sum of the input variances.",
    )
    untrustedMaskPlanes = pex_config.ListField(
        dtype=str,
        default=list(masks.UNTRUSTED_MASK_PLANES),
        doc="Mask planes of the difference whose pixels hold no measurement and, like"
        " non-finite ones, contaminate their neighbours (plane CONTAMINATED of the result).",
    )
    scoreFilter = pex_config.ChoiceField(
        dtype=str,
        default="documented",
        doc="Filter of a score image.",
        allowed={
            "documented": "The documented formula as it stands.",
            "compact": "Without the frequencies at which the pre-convolution kernel has no power,"
            " and cut off at 3.5 FWHM: for fitted kernels, which are noise there.",
        },
    )
    noise = pex_config.ChoiceField(
        dtype=str,
        default="white",
        doc="Covariance of the noise of the two inputs.",
        allowed={
            "white": "Pixels are independent: the documented assumption.",
            "auto": "Measured between the sources, where that is significantly not white.",
            "measured": "Measured between the sources.",
        },
    )
    fill = pex_config.ChoiceField(
        dtype=str,
        default="mean",
        doc="Values of pixels without a measurement while their neighbours are filtered.",
        allowed={
            "mean": "The mean of the image, and zero outside the frame, as documented.",
            "interpolate": "Interpolated between neighbours; the mirror image outside the frame.",
        },
    )
    tolerance = pex_config.RangeField(
        dtype=float,
        default=1e-3,
        min=1e-6,
        max=0.1,
        doc="Largest error of a correction that varies over the field, in standard deviations of"
        " a pixel.",
    )
    transform = pex_config.ChoiceField(
        dtype=str,
        default="fast",
        doc="Grid and precision of the Fourier transforms.",
        allowed={
            "fast": "Grids of good lengths, in the image's precision, where these move no pixel"
            " by more than 1e-3 of its standard deviation.",
            "documented": "The documented grid, in double precision.",
        },
    )

    def to_correction(self, *, spatially_varying: bool = False) -> CorrectionOptions:
        """Equivalent options of `whitediff.subtraction.recipe.Recipe`.

        Parameters
        ----------
        spatially_varying
            Whether the correction follows kernel and noise over the field.

        Returns
        -------
        options
            Validated options.
        """
        ignore = tuple(self.ignoreMaskPlanes)
        defaults = masks.DEFAULT_IGNORE_MASK_PLANES
        return CorrectionOptions(
            noise=self.noise,
            spatially_varying=spatially_varying,
            fill=self.fill,
            full_variance=self.completeVarPlanePropagation,
            score_filter=self.scoreFilter,
            ignore_mask_planes=ignore,
            required_mask_planes=tuple(name for name in ignore if name not in defaults),
            untrusted_mask_planes=tuple(self.untrustedMaskPlanes),
            tolerance=self.tolerance,
            transform=self.transform,
        )

    def to_options(
        self,
        *,
        template_matched: bool,
        score: bool,
        scale_factor: float = 1.0,
        spatially_varying: bool = False,
    ) -> DecorrelationOptions:
        """Equivalent options of `whitediff.decorrelate`.

        Parameters
        ----------
        template_matched
            Whether the template was convolved; else the science exposure was.
        score
            Whether the difference is a score image.
        scale_factor
            If the science exposure was convolved: photometric scale by which the difference was
            divided, over the kernel's sum.
        spatially_varying
            Whether the correction follows kernel and noise over the field.

        Returns
        -------
        options
            Validated options.

        Raises
        ------
        ArgumentError
            For a score with the science exposure convolved.
        """
        return DecorrelationOptions.of(
            self.to_correction(spatially_varying=spatially_varying),
            convolved="template" if template_matched else "science",
            score=score,
            scale_factor=scale_factor,
            # The documented task decorrelates any difference, even one that is white already.
            again=True,
        )


class DecorrelateALKernelTask(Task):
    """Decorrelate the effect of convolution by an Alard-Lupton matching kernel.

    Parameters
    ----------
    *args, **kwargs
        As for `lsst.pipe.base.Task`.

    Attributes
    ----------
    freqSpaceShape : `tuple` [`int`]
        ``(ny, nx)`` of the transform grid; set by `computeCommonShape` and by `run`.

    Notes
    -----
    `run` takes `whitediff.Exposure` or any lsst.images exposure and returns a
    `whitediff.Exposure`.  The other documented methods work on arrays, with full-grid
    spectra; `whitediff.decorrelation` has the same arithmetic without a task around it.
    See DMTN-021 and DMTN-179.
    """

    ConfigClass: ClassVar[Any] = DecorrelateALKernelConfig
    _DefaultName: ClassVar[str] = "ip_diffim_decorrelateALKernel"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._freqSpaceShape: tuple[int, int] | None = None

    @property
    def freqSpaceShape(self) -> tuple[int, int]:
        """``(ny, nx)`` of the transform grid."""
        if self._freqSpaceShape is None:
            raise ArgumentError(
                "The transform grid is not set; call computeCommonShape with the shapes of"
                " kernel, PSF and image first, or set freqSpaceShape."
            )
        return self._freqSpaceShape

    @freqSpaceShape.setter
    def freqSpaceShape(self, shape: tuple[int, int]) -> None:
        self._freqSpaceShape = (int(shape[0]), int(shape[1]))

    def computeCommonShape(self, *shapes: tuple[int, ...]) -> None:
        """Calculate the common shape for FFT operations; sets `freqSpaceShape`.

        Parameters
        ----------
        *shapes
            ``(ny, nx)`` of everything that meets on the grid.

        Notes
        -----
        See `whitediff.numerics.fourier.common_shape`.
        """
        self._freqSpaceShape = fourier.common_shape(*shapes)  # type: ignore[assignment]
        self.log.debug("Common frequency space shape %s", self._freqSpaceShape)

    @staticmethod
    def padCenterOriginArray(
        A: Array, newShape: tuple[int, ...], useInverse: bool = False
    ) -> Array:
        """Zero-pad an image and move its centre to the corner, or the inverse.

        Parameters
        ----------
        A
            Array to copy from.
        newShape
            Shape of the result: shape of the grid; for the inverse, of the original image.
        useInverse
            Whether to crop the padding and move the centre back.

        Returns
        -------
        R
            ``newShape``, same dtype.
        """
        shape = tuple(int(n) for n in newShape)
        if useInverse:
            return fourier.crop_center_origin(A, shape)
        return fourier.pad_center_origin(A, shape)

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

    def computeDiffimCorrection(self, kappa: Array, svar: float, tvar: float) -> Struct:
        """Compute the decorrelation kernel of an image difference.

        Parameters
        ----------
        kappa
            Matching kernel.
        svar, tvar
            Average variance of the unconvolved and of the convolved exposure; > 0.

        Returns
        -------
        result
            ``corrft``: real, ``freqSpaceShape``; ``cnft``, ``crft``: total kernels of the
            unconvolved and of the convolved exposure.

        Notes
        -----
        See `whitediff.decorrelation.difference_correction`.
        """
        return self._full_spectra(
            difference_correction(
                np.asarray(kappa),
                unconvolved_variance=float(svar),
                convolved_variance=float(tvar),
                shape=self.freqSpaceShape,
            )
        )

    def computeScoreCorrection(
        self, kappa: Array, svar: float, tvar: float, preConvArr: Array
    ) -> Struct:
        """Compute the correction kernel for a score image.

        Parameters
        ----------
        kappa
            Matching kernel.
        svar, tvar
            Average variance of the science image before pre-convolution, and of the
            template; > 0.
        preConvArr
            Pre-convolution kernel of the science image, its PSF; brought to unit sum.

        Returns
        -------
        result
            ``corrft``, ``cnft``, ``crft`` as for `computeDiffimCorrection`.

        Notes
        -----
        See `whitediff.decorrelation.score_correction`.
        """
        return self._full_spectra(
            score_correction(
                np.asarray(kappa),
                np.asarray(preConvArr),
                science_variance=float(svar),
                template_variance=float(tvar),
                shape=self.freqSpaceShape,
            )
        )

    @staticmethod
    def _full_spectra(correction: Correction) -> Struct:
        shape = correction.shape
        return Struct(
            corrft=fourier.full_spectrum(correction.correction_ft, shape),
            cnft=fourier.full_spectrum(correction.unconvolved_ft, shape),
            crft=fourier.full_spectrum(correction.convolved_ft, shape),
        )

    @staticmethod
    def estimateVariancePlane(vplane1: Array, vplane2: Array, c1ft: Array, c2ft: Array) -> Array:
        """Estimate the variance plane, variances taken as locally constant.

        Parameters
        ----------
        vplane1, vplane2
            Variance planes before any convolution.
        c1ft, c2ft
            Total kernels in frequency space, on the full grid.

        Returns
        -------
        vplaneD
            Weighted sum of the input variances.

        Notes
        -----
        See `whitediff.decorrelation.estimated_variance`.
        """
        weights = (
            float(np.mean(np.abs(c1ft) ** 2, dtype=np.float64)),
            float(np.mean(np.abs(c2ft) ** 2, dtype=np.float64)),
        )
        return estimated_variance(vplane1, vplane2, weights)

    def calculateVariancePlane(
        self,
        vplane1: Array,
        vplane2: Array,
        varMean1: float,
        varMean2: float,
        c1ft: Array,
        c2ft: Array,
    ) -> Array:
        """Full propagation of the variance planes of the original exposures.

        Parameters
        ----------
        vplane1, vplane2
            Variance planes before any convolution.
        varMean1, varMean2
            Mean variances, in place of non-finite values of the planes.
        c1ft, c2ft
            Total kernels in frequency space, on the full grid ``freqSpaceShape``.

        Returns
        -------
        vplaneD
            Variance plane; infinite and NaN pixels are kept.

        Notes
        -----
        See `whitediff.decorrelation.full_variance`.
        """
        return full_variance(
            self._in_precision(vplane1),
            self._in_precision(vplane2),
            unconvolved_fill=float(varMean1),
            convolved_fill=float(varMean2),
            unconvolved_ft=fourier.half_spectrum(c1ft),
            convolved_ft=fourier.half_spectrum(c2ft),
            shape=self.freqSpaceShape,
        )

    def computeCorrectedImage(self, corrft: Array, imgOld: Array) -> Array:
        """Compute the decorrelated difference image.

        Parameters
        ----------
        corrft
            Correction in frequency space, ``freqSpaceShape``.
        imgOld
            Difference image.

        Returns
        -------
        imgNew
            Corrected image, same size; non-finite pixels as they were.

        Notes
        -----
        See `whitediff.decorrelation.corrected_image`.
        """
        # Without a variance plane it is unknown which error would matter: double precision.
        return corrected_image(
            fourier.half_spectrum(corrft).real,
            self._in_precision(imgOld),
            shape=self.freqSpaceShape,
        )

    def computeCorrectedDiffimPsf(self, corrft: Array, psfOld: Array) -> KernelPointSpreadFunction:
        """Compute the (decorrelated) difference image's new PSF.

        Parameters
        ----------
        corrft
            Correction in frequency space, ``freqSpaceShape``.
        psfOld
            PSF image of the difference to be corrected.

        Returns
        -------
        correctedPsf
            PSF of the same shape, unit sum; valid everywhere.

        Notes
        -----
        See `whitediff.decorrelation.corrected_psf`.
        """
        image = corrected_psf(
            fourier.half_spectrum(corrft).real, np.asarray(psfOld), shape=self.freqSpaceShape
        )
        return KernelPointSpreadFunction.from_image(image, Box.from_shape(self.freqSpaceShape))

    def _in_precision(self, array: Array) -> Array:
        return array.astype(np.float64) if self.config.transform == "documented" else array

    @timeMethod
    # LSST's documented signature.
    def run(  # noqa: PLR0913
        self,
        scienceExposure: ExposureLike,
        templateExposure: ExposureLike,
        subtractedExposure: ExposureLike,
        psfMatchingKernel: ConvolutionKernel | PointSpreadFunction | Array | None,
        preConvKernel: ConvolutionKernel | PointSpreadFunction | Array | None = None,
        xcen: float | None = None,
        ycen: float | None = None,
        svar: float | None = None,
        tvar: float | None = None,
        templateMatched: bool = True,
        preConvMode: bool = False,
        **kwargs: Any,
    ) -> Struct:
        """Perform decorrelation of an image difference or of a score difference exposure.

        Parameters
        ----------
        scienceExposure, templateExposure
            The exposures before pre-convolution and matching.
        subtractedExposure
            Their difference, or score image.  Not changed.
        psfMatchingKernel
            Matching kernel of whitediff or lsst.images, PSF, or an image of a constant kernel.
        preConvKernel
            PSF; the science exposure was pre-convolved with its reflection.  Allowed only in
            ``preConvMode``.  Default: the science PSF at its average position.
        xcen, ycen
            Pixel coordinates at which the kernel is taken; default: middle of the box.
        svar, tvar
            Mean variances of science and template; default: from their variance planes.
        templateMatched
            Whether the template was convolved; else the science exposure was.
        preConvMode
            Whether ``subtractedExposure`` is a score image.
        **kwargs
            ``scaleFactor``, with ``templateMatched`` False: photometric scale by which the
            difference was divided, over the kernel's sum.  ``scienceNoise``, ``templateNoise``:
            `NoiseCovariance` of the inputs, or a function of the pixel coordinates x and y that
            returns it.  ``sources``: boolean image of the pixels with a source.
            ``spatiallyVarying``: from `DecorrelateALKernelSpatialTask`.  Other keywords are
            accepted and not used.

        Returns
        -------
        result
            ``correctedExposure``: a new `whitediff.Exposure`; ``decorrelation``: the
            `whitediff.decorrelation.exposures.Decorrelation` with the numbers of the correction,
            None if the difference came back unchanged.

        Raises
        ------
        ValueError
            If the arguments contradict each other or do not fit together.
        UnusableExposureError
            If an exposure has no usable pixel or no positive mean variance.

        Notes
        -----
        If an exposure is all NaN, the difference comes back unchanged, with a warning.  See
        `whitediff.decorrelate`.
        """
        if preConvKernel is not None and not (templateMatched and preConvMode):
            raise ArgumentError(
                "preConvKernel is allowed only if templateMatched and preConvMode are both True;"
                f" got templateMatched={templateMatched}, preConvMode={preConvMode}."
            )
        options = self.config.to_options(
            template_matched=templateMatched,
            score=preConvMode,
            scale_factor=float(kwargs.get("scaleFactor", 1.0)),
            spatially_varying=bool(kwargs.get("spatiallyVarying", False)),
        )
        science = Exposure.from_object(scienceExposure)
        template = Exposure.from_object(templateExposure)
        difference = Exposure.from_object(subtractedExposure)
        for name, exposure in (
            ("science", science),
            ("template", template),
            ("difference", difference),
        ):
            # Row by row, since usually the first row has a finite pixel.
            if all(np.isnan(row).all() for row in exposure.data):
                self.log.warning(
                    "The %s exposure is all NaN; the difference is returned unchanged.", name
                )
                self.metadata["skipped"] = name
                return Struct(correctedExposure=untouched(difference), decorrelation=None)
        try:
            result = decorrelate(
                science,
                template,
                difference,
                psfMatchingKernel,
                preconvolution_kernel=preConvKernel,
                noise=InputNoise(
                    science_variance=svar,
                    template_variance=tvar,
                    science_covariance=kwargs.get("scienceNoise"),
                    template_covariance=kwargs.get("templateNoise"),
                ),
                sources=kwargs.get("sources"),
                options=dataclasses.replace(options, x=xcen, y=ycen),
            )
        except DataError as error:
            raise UnusableExposureError(
                str(error),
                scienceVarianceMean=self.computeVarianceMean(science),
                templateVarianceMean=self.computeVarianceMean(template),
            ) from error
        self._freqSpaceShape = result.grid
        self._record(result, options)
        return Struct(correctedExposure=result.exposure, decorrelation=result)

    def _record(self, result: Decorrelation, options: DecorrelationOptions) -> None:
        self.metadata["convolved"] = options.convolved
        self.metadata["preConvMode"] = options.score
        self.metadata["transform"] = options.transform
        self.metadata["scienceVarianceMean"] = result.science_variance
        self.metadata["templateVarianceMean"] = result.template_variance
        self.metadata["kernelSum"] = result.kernel_sum
        self.metadata["xcen"] = result.x
        self.metadata["ycen"] = result.y
        self.metadata["freqSpaceShape"] = list(result.grid)
        self.metadata["varianceWeights"] = list(result.variance_weights)
        self.metadata["diffimVarianceMeanBefore"] = result.variance_mean_before
        self.metadata["diffimVarianceMeanAfter"] = result.variance_mean_after
        self.metadata["contaminatedFraction"] = result.contaminated_fraction
        self.metadata["noise"] = options.noise
        self.metadata["fill"] = options.fill
        for name, noise in (
            ("science", result.science_noise),
            ("template", result.template_noise),
        ):
            if noise is not None:
                self.metadata[f"{name}NoiseZeroFrequency"] = noise.zero_frequency
                self.metadata[f"{name}NoiseSignificance"] = noise.significance
                self.metadata[f"{name}NoiseFlooredFraction"] = noise.floored_fraction
        self.metadata["fluxScaleError"] = result.flux_error
        if result.local is not None:
            self.metadata["correctionImages"] = len(result.local.filter.images)
            self.metadata["correctionError"] = result.local.filter.error
        self.log.info(
            "Mean variances: science %g, template %g; difference before %g, after %g.",
            result.science_variance,
            result.template_variance,
            result.variance_mean_before,
            result.variance_mean_after,
        )
