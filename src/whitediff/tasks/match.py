"""Finding the matching kernel as an LSST task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import lsst.pex.config as pex_config
import numpy as np
import numpy.typing as npt
from astropy.table import Table
from lsst.pipe.base import AlgorithmError, Struct, Task
from lsst.utils.timer import timeMethod

from ..errors import ArgumentError, DataError, TooFewSourcesError
from ..matching.basis import GaussianSeries
from ..matching.convolution import preconvolution_kernel
from ..matching.design import FitOptions
from ..matching.exposures import Match, MatchOptions, match
from ..matching.preparation import Pair, PreparationOptions, prepare
from ..stars.candidates import CandidateOptions
from .decorrelate import UnusableExposureError

if TYPE_CHECKING:
    from ..exposures.model import Exposure

__all__ = [
    "InsufficientKernelSourcesError",
    "MakeKernelConfig",
    "MakeKernelTask",
    "PsfMatchConfig",
    "PsfMatchConfigAL",
    "PsfMatchConfigDF",
]

type Array = npt.NDArray[Any]

_CENTROIDS = (
    ("slot_Centroid_x", "slot_Centroid_y"),
    ("base_SdssCentroid_x", "base_SdssCentroid_y"),
    ("x", "y"),
)


class InsufficientKernelSourcesError(DataError, AlgorithmError):
    """There are too few stars to measure a matching kernel on.

    Parameters
    ----------
    message
        Fault, and the remedy.
    nSources, nRequired
        Number of stars found, and number needed.
    """

    def __init__(self, message: str, *, nSources: int = 0, nRequired: int = 0) -> None:
        super().__init__(message)
        self._metadata = {"nSources": int(nSources), "nRequired": int(nRequired)}

    @property
    def metadata(self) -> dict[str, int]:
        """The numbers of stars."""
        return self._metadata


def reject(config: pex_config.Config, name: str, reason: str) -> None:
    """Refuse a configuration for one of its fields.

    Parameters
    ----------
    config
        Configuration at fault.
    name
        Name of the field.
    reason
        Fault of its value: end of a sentence that begins with name and value.

    Raises
    ------
    lsst.pex.config.FieldValidationError
        Always.
    """
    field = type(config)._fields[name]
    message = f"{name} = {getattr(config, name)!r} {reason}."
    raise pex_config.FieldValidationError(field, config, message)


def _is_odd(value: int) -> bool:
    return value >= 3 and value % 2 == 1


class PsfMatchConfig(pex_config.Config):
    """Configuration common to both bases of a matching kernel; defaults as for subtraction."""

    kernelBasisSet = pex_config.ChoiceField(
        dtype=str,
        default="alard-lupton",
        doc="Basis of the kernel; settled by the choice of the configuration.",
        allowed={
            "alard-lupton": "Gaussians times polynomials.",
            "delta-function": "Free pixels.",
        },
    )
    kernelSize = pex_config.Field(
        dtype=int, default=21, check=_is_odd, doc="Odd side where scaleByFwhm is False, pixels."
    )
    scaleByFwhm = pex_config.Field(
        dtype=bool,
        default=True,
        doc="Scale the kernel's side, and the Gaussians' widths, from the widths of the PSFs.",
    )
    kernelSizeFwhmScaling = pex_config.RangeField(
        dtype=float,
        default=6.0,
        min=0.0,
        inclusiveMin=False,
        doc="Side over the largest Gaussian's width, where scaleByFwhm is True.",
    )
    kernelSizeMin = pex_config.Field(
        dtype=int, default=21, check=_is_odd, doc="Smallest side where it is scaled; odd."
    )
    kernelSizeMax = pex_config.Field(
        dtype=int,
        default=35,
        check=_is_odd,
        doc="Largest side where it is scaled; odd. For a score it grows with the PSF's width.",
    )
    spatialModelType = pex_config.ChoiceField(
        dtype=str,
        default="chebyshev1",
        doc="Polynomials by which kernel and background vary over the field.",
        allowed={"chebyshev1": "Chebyshev polynomials of the first kind."},
    )
    spatialKernelOrder = pex_config.RangeField(
        dtype=int, default=1, min=0, doc="Order of the kernel's variation."
    )
    spatialKernelOrderChoice = pex_config.ChoiceField(
        dtype=str,
        default=None,
        optional=True,
        doc="How to choose that order, from 0 to 3; None to take it as it is.",
        allowed={
            "bic": "By the Bayesian information criterion, where left-out stars agree.",
            "cross-validation": "By stars that are left out of the fit.",
        },
    )
    constantKernelSum = pex_config.Field(
        dtype=bool,
        default=True,
        doc="Keep the kernel's sum, the photometric scale, the same all over the field.",
    )
    spatialBgOrder = pex_config.RangeField(
        dtype=int, default=2, min=0, doc="Order of the differential background."
    )
    spatialBgModel = pex_config.ChoiceField(
        dtype=str,
        default="auto",
        doc="Model of the differential background.",
        allowed={
            "polynomial": "Polynomials.",
            "mesh": "Polynomials, steps across the frame, and the levels of blocks of 8 pixels.",
            "auto": "That where the difference has more than polynomials.",
        },
    )
    fitForBackground = pex_config.Field(
        dtype=bool,
        default=True,
        doc="Fit a differential background; it is zero if not.",
    )
    sizeCellX = pex_config.RangeField(
        dtype=int, default=128, min=1, doc="Width of a cell for the choice of stars, pixels."
    )
    sizeCellY = pex_config.RangeField(
        dtype=int, default=128, min=1, doc="Height of a cell; must equal sizeCellX."
    )
    nStarPerCell = pex_config.RangeField(
        dtype=int, default=5, min=1, doc="At most so many stars of a cell, the brightest."
    )
    maxSpatialIterations = pex_config.RangeField(
        dtype=int, default=3, min=0, doc="Rounds of rejection, at most."
    )
    candidateResidualMeanMax = pex_config.RangeField(
        dtype=float,
        default=0.25,
        min=0.0,
        inclusiveMin=False,
        doc="Reject stars whose residual over sigma has a mean beyond this.",
    )
    candidateResidualStdMax = pex_config.RangeField(
        dtype=float,
        default=1.5,
        min=0.0,
        inclusiveMin=False,
        doc="Reject stars whose residual over sigma has an rms beyond this.",
    )
    maxKsumSigma = pex_config.RangeField(
        dtype=float,
        default=3.0,
        min=0.0,
        inclusiveMin=False,
        doc="Reject stars whose own kernel sum is this many sigmas from the median.",
    )
    maxSpatialConditionNumber = pex_config.RangeField(
        dtype=float,
        default=1.0e10,
        min=1.0,
        doc="Warn of a condition number beyond this.",
    )

    def validate(self) -> None:
        """Refuse fields that contradict each other.

        Raises
        ------
        lsst.pex.config.FieldValidationError
            If they contradict each other.
        """
        super().validate()
        if self.sizeCellX != self.sizeCellY:
            reject(self, "sizeCellY", f"must equal sizeCellX = {self.sizeCellX}: cells are square")
        if self.kernelSizeMin > self.kernelSizeMax:
            reject(self, "kernelSizeMax", f"is below kernelSizeMin = {self.kernelSizeMin}")

    def _series(self) -> GaussianSeries:
        return GaussianSeries(
            side=self.kernelSizeFwhmScaling,
            smallest_side=self.kernelSizeMin,
            largest_side=self.kernelSizeMax,
        )

    def to_options(
        self,
        *,
        convolved: Literal["template", "science", "auto"] = "template",
        candidates: CandidateOptions | None = None,
    ) -> MatchOptions:
        """Equivalent options of `whitediff.matching.exposures.match`.

        Parameters
        ----------
        convolved
            Exposure to convolve.
        candidates
            Choice of stars; cells and stars per cell come from this configuration.

        Returns
        -------
        options
            Validated options.
        """
        return MatchOptions(
            convolved=convolved,
            basis="delta" if self.kernelBasisSet == "delta-function" else "gaussian",
            kernel_size=None if self.scaleByFwhm else self.kernelSize,
            sigmas=self._sigmas(),
            smooth=self._smooth(),
            series=self._series(),
            candidates=dataclasses.replace(
                candidates or CandidateOptions(), cell=self.sizeCellX, per_cell=self.nStarPerCell
            ),
            choose_order=self.spatialKernelOrderChoice,
            background=self.spatialBgModel,
            fit=FitOptions(
                kernel_order=self.spatialKernelOrder,
                background_order=self.spatialBgOrder,
                background=self.fitForBackground,
                constant_sum=self.constantKernelSum,
                smoothness=self._smoothness(),
                rejections=self.maxSpatialIterations,
                largest_mean=self.candidateResidualMeanMax,
                largest_rms=self.candidateResidualStdMax,
                sum_clip=self.maxKsumSigma,
            ),
        )

    def _sigmas(self) -> tuple[float, ...] | None:
        return None

    def _smooth(self) -> bool:
        return True

    def _smoothness(self) -> float | None:
        return None


class PsfMatchConfigAL(PsfMatchConfig):
    """Gaussians times polynomials.

    Notes
    -----
    whitediff also penalises roughness, with the most likely weight.  The penalty replaces the
    second set of Gaussians for deconvolution.
    """

    alardNGauss = pex_config.RangeField(dtype=int, default=3, min=1, doc="Number of Gaussians.")
    alardDegGauss = pex_config.ListField(
        dtype=int,
        default=[4, 2, 2],
        itemCheck=lambda degree: degree >= 0,
        doc="Degree of the polynomial that multiplies each; alardNGauss of them.",
    )
    alardSigGauss = pex_config.ListField(
        dtype=float,
        default=[0.7, 1.5, 3.0],
        itemCheck=lambda sigma: sigma > 0,
        doc="Their widths in pixels, where scaleByFwhm is False or the PSFs are equal to 1 %;"
        " as many as alardNGauss where scaleByFwhm is False.",
    )
    alardGaussBeta = pex_config.RangeField(
        dtype=float,
        default=2.0,
        min=1.0,
        inclusiveMin=False,
        doc="Ratio of each width to the one before, where they are scaled.",
    )
    alardMinSig = pex_config.RangeField(
        dtype=float,
        default=0.7,
        min=0.0,
        inclusiveMin=False,
        doc="Least width of the first where they are scaled, pixels.",
    )
    alardMinSigDeconv = pex_config.RangeField(
        dtype=float,
        default=0.4,
        min=0.0,
        inclusiveMin=False,
        doc="The same where the exposure to match to is the sharper.",
    )

    def setDefaults(self) -> None:
        """Set the basis."""
        super().setDefaults()
        self.kernelBasisSet = "alard-lupton"

    def validate(self) -> None:
        """Refuse fields that contradict each other.

        Raises
        ------
        lsst.pex.config.FieldValidationError
            If they contradict each other.
        """
        super().validate()
        if self.kernelBasisSet != "alard-lupton":
            reject(self, "kernelBasisSet", "is not that of AL; choose the configuration DF")
        for name in ("alardDegGauss", "alardSigGauss"):
            if name == "alardSigGauss" and self.scaleByFwhm:
                continue
            if len(getattr(self, name)) != self.alardNGauss:
                reject(self, name, f"does not have alardNGauss = {self.alardNGauss} values")

    def _series(self) -> GaussianSeries:
        return dataclasses.replace(
            super()._series(),
            degrees=tuple(self.alardDegGauss),
            ratio=self.alardGaussBeta,
            smallest=self.alardMinSig,
            smallest_deconvolving=self.alardMinSigDeconv,
            equal=tuple(self.alardSigGauss),
        )

    def _sigmas(self) -> tuple[float, ...] | None:
        return None if self.scaleByFwhm else tuple(self.alardSigGauss)


class PsfMatchConfigDF(PsfMatchConfig):
    """Free pixels, with a penalty on roughness (Becker et al. 2012)."""

    useRegularization = pex_config.Field(
        dtype=bool,
        default=True,
        doc="Penalise roughness; without, only small kernels and many stars give a solution.",
    )
    lambdaValue = pex_config.RangeField(
        dtype=float,
        default=None,
        optional=True,
        min=0.0,
        inclusiveMin=False,
        doc="Weight of the penalty, relative to the data: 1 makes the traces of the two normal"
        " matrices equal. None, whitediff's default, takes the most likely; a number found with"
        " an absolute weight elsewhere has another meaning here.",
    )

    def setDefaults(self) -> None:
        """Set the basis."""
        super().setDefaults()
        self.kernelBasisSet = "delta-function"

    def validate(self) -> None:
        """Refuse fields that contradict each other.

        Raises
        ------
        lsst.pex.config.FieldValidationError
            If they contradict each other.
        """
        super().validate()
        if self.kernelBasisSet != "delta-function":
            reject(self, "kernelBasisSet", "is not that of DF; choose the configuration AL")
        if not self.useRegularization and self.lambdaValue is not None:
            reject(self, "lambdaValue", "has no meaning without useRegularization")

    def _smooth(self) -> bool:
        return bool(self.useRegularization)

    def _smoothness(self) -> float | None:
        return None if self.lambdaValue is None else float(self.lambdaValue)


class MakeKernelConfig(pex_config.Config):
    """Configuration of `MakeKernelTask`."""

    kernel = pex_config.ConfigChoiceField(
        doc="Basis of the kernel, and everything about the fit.",
        typemap={"AL": PsfMatchConfigAL, "DF": PsfMatchConfigDF},
        default="AL",
    )


class MakeKernelTask(Task):
    """Find the kernel that matches the PSF of one exposure to that of another.

    Parameters
    ----------
    *args, **kwargs
        As for `lsst.pipe.base.Task`.

    Notes
    -----
    Alard & Lupton 1998; see `whitediff.matching.exposures.match`.
    """

    ConfigClass: ClassVar[Any] = MakeKernelConfig
    _DefaultName: ClassVar[str] = "makeALKernel"

    @timeMethod
    def run(
        self,
        template: Exposure,
        science: Exposure,
        kernelSources: Table | Mapping[str, npt.ArrayLike] | None = None,
        preconvolved: bool = False,
        convolved: Literal["template", "science", "auto"] = "template",
    ) -> Struct:
        """Find the kernel that matches two exposures.

        Parameters
        ----------
        template, science
            Exposures on the same pixels.  Not changed; their variances are not rescaled.
        kernelSources
            Catalogue from whose positions the stars are chosen (`catalogPositions`); all sources
            of the science exposure if None.
        preconvolved
            Whether to match the template to the science exposure correlated with its own PSF.
            Give the original exposure in any case: the fit needs its noise.
        convolved
            Exposure to convolve; ``auto``: the template, unless its PSF is the wider.

        Returns
        -------
        result
            As from `matchPair`.

        Raises
        ------
        ValueError
            If the arguments do not fit together.
        InsufficientKernelSourcesError
            If there are too few stars.
        UnusableExposureError
            If the pixels allow no fit for another reason.
        """
        if preconvolved and convolved == "science":
            raise ArgumentError("For a score the template is convolved; got convolved='science'.")
        try:
            pair = prepare(science, template, PreparationOptions(rescale_variance=False))
        except DataError as error:
            raise algorithm_error(error) from error
        return self.matchPair(
            pair,
            kernelSources=kernelSources,
            convolved=convolved,
            preConvKernel=preconvolution_kernel(pair.science) if preconvolved else None,
        )

    @timeMethod
    def matchPair(
        self,
        pair: Pair,
        *,
        kernelSources: Table | Mapping[str, npt.ArrayLike] | None = None,
        convolved: Literal["template", "science", "auto"] = "template",
        preConvKernel: Array | None = None,
        candidates: CandidateOptions | None = None,
    ) -> Struct:
        """Find the kernel that matches the exposures of a prepared pair.

        Parameters
        ----------
        pair
            `whitediff.matching.preparation.Pair`.
        kernelSources, convolved
            As for `run`.
        preConvKernel
            ``(py, px)`` PSF with which the science exposure is correlated, for a score.
        candidates
            Choice of stars; cells come from this task's configuration.

        Returns
        -------
        result
            ``psfMatchingKernel`` : `whitediff.exposures.kernels.ConvolutionKernel`.
            ``backgroundModel`` : `whitediff.exposures.fields.ChebyshevField`, at the science level.
            ``kernelSources`` : `astropy.table.Table` of the stars offered to the fit: x and y
            in pixel coordinates, signalToNoise, residualMean and residualStd in sigma, and used.
            ``match`` : `whitediff.matching.exposures.Match`.

        Raises
        ------
        InsufficientKernelSourcesError
            If there are too few stars.
        UnusableExposureError
            If the fit is singular.
        """
        options = self.config.kernel.active.to_options(convolved=convolved, candidates=candidates)
        sources = None
        if kernelSources is not None:
            y0, x0 = pair.science.origin
            x, y = catalogPositions(kernelSources)
            sources = pair.sources.near(x - x0, y - y0)
        try:
            found = match(pair, options, preconvolution_kernel=preConvKernel, sources=sources)
        except DataError as error:
            raise algorithm_error(error) from error
        self._record(found)
        return Struct(
            psfMatchingKernel=found.kernel,
            backgroundModel=found.background,
            kernelSources=_table(found, pair),
            match=found,
        )

    def _record(self, found: Match) -> None:
        fit = found.fit
        self.metadata["spatialConditionNum"] = fit.condition
        self.metadata["spatialKernelSum"] = fit.kernel_sum
        self.metadata["spatialKernelSumError"] = fit.kernel_sum_error
        self.metadata["ALKernelSize"] = int(found.kernel.basis.shape[-1])
        # The orders that were fitted: with few stars they are lower than asked for.
        self.metadata["spatialKernelOrder"] = fit.kernel_order
        self.metadata["spatialBgOrder"] = fit.background_order
        self.metadata["reducedChiSquare"] = fit.reduced_chi_square
        self.metadata["nCandidates"] = len(fit.used)
        self.metadata["nCandidatesUsed"] = int(fit.used.sum())
        self.metadata["convolved"] = found.convolved
        limit = self.config.kernel.active.maxSpatialConditionNumber
        if fit.condition > limit:
            self.log.warning(
                "The fit's condition number %g is beyond maxSpatialConditionNumber = %g; the"
                " kernel may follow the noise.",
                fit.condition,
                limit,
            )
        self.log.info(
            "Kernel sum %.5g ± %.2g from %d of %d stars; reduced chi-square %.3f.",
            fit.kernel_sum,
            fit.kernel_sum_error,
            int(fit.used.sum()),
            len(fit.used),
            fit.reduced_chi_square,
        )


def catalogPositions(catalog: Table | Mapping[str, npt.ArrayLike]) -> tuple[Array, Array]:
    """Positions of a catalogue's sources.

    Parameters
    ----------
    catalog
        `astropy.table.Table`, or a mapping of columns, with slot_Centroid_x and _y,
        base_SdssCentroid_x and _y, or x and y; the first of these pairs is taken.

    Returns
    -------
    x, y
        ``(n,)`` pixel coordinates, without masked or non-finite ones.

    Raises
    ------
    ArgumentError
        If the catalogue has none of these pairs.
    """
    names = list(getattr(catalog, "colnames", None) or getattr(catalog, "keys", list)())
    for pair in _CENTROIDS:
        if all(name in names for name in pair):
            x, y = (
                np.ma.filled(np.ma.asarray(catalog[name], dtype=np.float64), np.nan).ravel()
                for name in pair
            )
            finite = np.isfinite(x) & np.isfinite(y)
            return x[finite], y[finite]
    raise ArgumentError(
        "A catalogue of kernel sources needs columns "
        + ", ".join(f"{x} and {y}" for x, y in _CENTROIDS)
        + f"; got {', '.join(map(str, names)) or type(catalog).__name__}."
    )


def algorithm_error(error: DataError) -> DataError:
    """Error as an `lsst.pipe.base.AlgorithmError`, which a pipeline understands.

    Parameters
    ----------
    error
        Error of the functions on exposures.

    Returns
    -------
    error
        `InsufficientKernelSourcesError` or `UnusableExposureError`; the given error itself if it
        is an `lsst.pipe.base.AlgorithmError` already.
    """
    if isinstance(error, AlgorithmError):
        return error
    if isinstance(error, TooFewSourcesError):
        return InsufficientKernelSourcesError(
            str(error), nSources=error.found, nRequired=error.required
        )
    return UnusableExposureError(str(error))


def _table(found: Match, pair: Pair) -> Table:
    y0, x0 = pair.science.origin
    return Table(
        {
            "x": found.candidates.x + x0,
            "y": found.candidates.y + y0,
            "signalToNoise": found.candidates.signal_to_noise,
            "residualMean": found.fit.residual_mean,
            "residualStd": found.fit.residual_rms,
            "used": found.fit.used,
        },
        units={"x": "pixel", "y": "pixel"},
    )
