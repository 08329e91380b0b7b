"""The filters of a correction, at one position."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..direction import Direction
from ..errors import ArgumentError
from ..numerics import fourier, planes
from ..numerics.covariance import NoiseCovariance
from ..numerics.profiles import full_width_half_maximum
from .correction import (
    PRECISION,
    Correction,
    ScoreCut,
    compact_kernel,
    compact_reach,
    compact_square,
    depends_on_grid,
    difference_correction,
    pixel_kernel,
    score_correction,
)
from .stack_correction import Combination, Member, StackCorrection, stack_correction

__all__ = ["Filters", "StackFilters", "reach_or_cut"]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.decorrelate")

_LARGEST_REACH = 96
_VARIANCE_RATIO_TO_WARN = 1e8
_SCORE_REACH = 3.5
_SMALL_GRID = 384
"""Side of the grid on which a compact correction shows that it is one."""

_PSF_GRID_MARGIN = 4
"""The PSF's grid is this many times its stamp: enough for the filter not to wrap around."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filters:
    """What a correction is made of, as plain arrays and numbers.

    Attributes
    ----------
    kernel_image
        ``(ky, kx)`` matching kernel.
    preconvolution_image
        ``(py, px)`` of a score; None for a difference.
    psf_image
        ``(qy, qx)`` PSF before the correction, if known.
    science_variance, template_variance
        Mean variances before any convolution, image_unit².
    template_matched
        The template was convolved, else the science exposure.
    compact_score
        Leave out of a score's filter what does not act on the sky.
    science_noise, template_noise
        Covariance of the inputs' noise; None for white.
    """

    kernel_image: Array
    preconvolution_image: Array | None
    psf_image: Array | None
    science_variance: float
    template_variance: float
    template_matched: bool
    compact_score: bool
    science_noise: NoiseCovariance | None = None
    template_noise: NoiseCovariance | None = None

    @property
    def means(self) -> tuple[float, float]:
        """Mean variances of the unconvolved and of the convolved exposure."""
        pair = (self.science_variance, self.template_variance)
        return pair if self.template_matched else pair[::-1]

    @property
    def noises(self) -> tuple[NoiseCovariance | None, NoiseCovariance | None]:
        """Noise covariances of the unconvolved and of the convolved exposure."""
        pair = (self.science_noise, self.template_noise)
        return pair if self.template_matched else pair[::-1]

    @property
    def kernels(self) -> dict[str, Array]:
        """Kernels that a difference was made with, and what each is called."""
        return {"matching kernel": self.kernel_image}

    @property
    def flux_error(self) -> float:
        """Relative error of the flux scale from those of the noise covariances.

        The corrected noise has the power that the formula gives it at zero frequency; half of
        that power's relative error is one of the amplitude.
        """
        total = error = 0.0
        level = (1.0, float(self.kernel_image.sum()) ** 2)
        for variance, scale, noise in zip(self.means, level, self.noises, strict=True):
            power = variance * scale
            total += power * (1.0 if noise is None else noise.zero_frequency)
            error += 0.0 if noise is None else (power * noise.zero_frequency_error) ** 2
        return 0.5 * math.sqrt(error) / total

    @property
    def stamps(self) -> list[tuple[int, ...]]:
        """Shapes of all stamps, for the choice of grids."""
        stamps = (self.kernel_image, self.psf_image, self.preconvolution_image)
        return [stamp.shape for stamp in stamps if stamp is not None]

    def check(self, shape: tuple[int, int]) -> None:
        """Refuse kernels larger than the image; warn of hopeless variances."""
        for name, stamp in (
            ("matching kernel", self.kernel_image),
            ("pre-convolution kernel", self.preconvolution_image),
        ):
            if stamp is not None and any(k > n for k, n in zip(stamp.shape, shape, strict=True)):
                raise ArgumentError(
                    f"The {name} {stamp.shape} is larger than the image {shape};"
                    " is it the right one?"
                )
        unconvolved, convolved = self.means
        # The kernel brings the one to the flux scale of the other.
        ratio = convolved * float(self.kernel_image.sum()) ** 2 / unconvolved
        if ratio > _VARIANCE_RATIO_TO_WARN:
            _log.warning(
                "The convolved exposure's mean variance, on the flux scale of the other, is %.3g"
                " times the other's; the correction amplifies rounding errors.",
                ratio,
            )

    def correction_on(self, shape: tuple[int, ...], *, compact: bool | None = None) -> Correction:
        """Correction on a grid; that of a score as asked for, or in its compact form."""
        grid = (shape[0], shape[1])
        compact = self.compact_score if compact is None else compact
        unconvolved_noise, convolved_noise = (
            None if noise is None else noise.spectrum(grid) for noise in self.noises
        )
        if self.preconvolution_image is not None:
            return score_correction(
                self.kernel_image,
                self.preconvolution_image,
                science_variance=self.science_variance,
                template_variance=self.template_variance,
                shape=grid,
                cut=ScoreCut(reach=self._score_reach) if compact else None,
                science_noise=unconvolved_noise,
                template_noise=convolved_noise,
            )
        unconvolved, convolved = self.means
        return difference_correction(
            self.kernel_image,
            unconvolved_variance=unconvolved,
            convolved_variance=convolved,
            shape=grid,
            unconvolved_noise=unconvolved_noise,
            convolved_noise=convolved_noise,
        )

    @functools.cached_property
    def _score_reach(self) -> float:
        assert self.preconvolution_image is not None
        return _SCORE_REACH * full_width_half_maximum(self.preconvolution_image)

    def correction_for(
        self,
        image: Array,
        *,
        transform: Literal["fast", "documented"],
        always_compact: bool = False,
        precision: float = PRECISION,
    ) -> tuple[Correction, Array | None]:
        """Correction, and its kernel on the pixels where that is compact.

        A compact kernel comes with the correction on a small grid.  Else the grid is the
        documented one, or one that transforms faster where that makes no difference.  The
        kernel can be made to be compact; then what it lacks is warned of.  It always is where
        the memory is limited to less than a frame's spectrum.  The precision is that of
        `whitediff.decorrelation.compact_kernel`.
        """
        small = fourier.fast_shape(*self.stamps, (_SMALL_GRID, _SMALL_GRID))
        if always_compact:
            return self._cut(small, image, precision)
        documented = fourier.common_shape(*self.stamps, image.shape)
        if transform == "documented":
            return self.correction_on(documented), None
        if math.prod(small) < math.prod(documented):
            correction, kernel, sigma = self.kernel_on(small)
            compact = compact_kernel(kernel, image, sigma=sigma, precision=precision)
            if compact is not None:
                return correction, compact
            if planes.is_limited(image.shape, np.complex128):
                return self._cut(small, image, precision)
            if self.preconvolution_image is not None and not self.compact_score:
                # What reaches far is noise, of which every grid has its own.
                return self.correction_on(documented), None
        correction, kernel, sigma = self.kernel_on(fourier.fast_shape(*self.stamps, image.shape))
        margin = (documented[0] - image.shape[0], documented[1] - image.shape[1])
        if correction.shape == documented or not depends_on_grid(
            kernel, image, margin=margin, sigma=sigma
        ):
            return correction, None
        return self.correction_on(documented), None

    def _cut(
        self, shape: tuple[int, ...], image: Array, precision: float
    ) -> tuple[Correction, Array]:
        """Correction on a small grid, and as much of its kernel as can be."""
        correction, kernel, sigma = self.kernel_on(shape)
        side = 2 * reach_or_cut([kernel], image, sigma, precision) + 1
        part = fourier.crop_center_origin(kernel, (side, side))
        # Of unit sum, so that a background stays what it is.
        return correction, part / part.sum()

    def sky_kernel(self, shape: tuple[int, int]) -> Array:
        """Pixels of the part of a score's filter that acts on the sky.

        Compact, unless a grid of that shape is so small that it is the better choice.
        """
        small = fourier.fast_shape(*self.stamps, (_SMALL_GRID, _SMALL_GRID))
        if math.prod(small) >= math.prod(shape):
            correction = self.correction_on(shape, compact=True)
            return pixel_kernel(correction.correction_ft, shape=shape)
        correction = self.correction_on(small, compact=True)
        kernel = pixel_kernel(correction.correction_ft, shape=correction.shape)
        side = 2 * min(math.ceil(self._score_reach), (min(small) - 1) // 2) + 1
        return fourier.crop_center_origin(kernel, (side, side))

    def squared_kernels(self, shape: tuple[int, ...]) -> tuple[Array, Array] | None:
        """Squares of the total kernels, coloured by the noise, if they are compact.

        Those of the unconvolved and of the convolved exposure, for images of a shape.
        """
        correction = self._small_correction
        kernels = _compact(correction, correction.noise_filters_ft, shape)
        return None if kernels is None else (kernels[0] ** 2, kernels[1] ** 2)

    def total_kernels(self, shape: tuple[int, ...]) -> tuple[Array, Array] | None:
        """What makes the result of the two exposures, as far as its squares are not negligible.

        Those of the unconvolved and of the convolved exposure, for images of a shape; None where
        one is not compact.
        """
        correction = self._small_correction
        spectra = correction.unconvolved_ft, correction.convolved_ft
        return _compact(correction, spectra, shape)

    @property
    def _small_correction(self) -> Correction:
        return self.correction_on(fourier.fast_shape(*self.stamps, (_SMALL_GRID, _SMALL_GRID)))

    def kernel_on(self, shape: tuple[int, ...]) -> tuple[Correction, Array, float]:
        """Correction on a grid, its kernel there, and the sigma of a pixel that results."""
        correction = self.correction_on(shape)
        kernel = pixel_kernel(correction.correction_ft, shape=correction.shape)
        weights = correction.variance_weights
        sigma = math.sqrt(weights[0] * self.means[0] + weights[1] * self.means[1])
        return correction, kernel, sigma

    def correction_on_stamps(
        self, correction: Correction, *, transform: Literal["fast", "documented"]
    ) -> Correction:
        """Correction for stamps, which need no grid of the image's size."""
        if self.psf_image is None or transform == "documented":
            return correction
        shape = fourier.fast_shape(
            *self.stamps, tuple(_PSF_GRID_MARGIN * n for n in self.psf_image.shape)
        )
        if math.prod(shape) >= math.prod(correction.shape):
            return correction
        return self.correction_on(shape)


def _compact(
    correction: Correction, spectra: tuple[Array, Array], shape: tuple[int, ...]
) -> tuple[Array, Array] | None:
    """Kernels of two spectra on a correction's grid, as far as their squares reach."""
    found = []
    for ft in spectra:
        kernel = pixel_kernel(ft, shape=correction.shape)
        square = compact_square(kernel, shape)
        if square is None:
            return None
        found.append(fourier.crop_center_origin(kernel, square.shape))
    return found[0], found[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackFilters:
    """What a correction of a difference of stacks is made of, as plain arrays and numbers.

    Attributes
    ----------
    science, template
        Members of the two stacks.
    matching_kernel
        ``(ky, kx)`` with which one stack was convolved as a whole; None if none was.
    convolved
        Which one.
    floor, combine
        As for `whitediff.decorrelation.stack_correction.stack_correction`.
    """

    science: tuple[Member, ...]
    template: tuple[Member, ...]
    matching_kernel: Array | None
    convolved: Direction
    floor: float
    combine: Combination

    @property
    def kernels(self) -> dict[str, Array]:
        """Kernels that a difference was made with, and what each is called."""
        kernels = {"matching kernel": self.matching_kernel} | {
            f"kernel of {name} member {i}": member.kernel
            for name, members in (("science", self.science), ("template", self.template))
            for i, member in enumerate(members, 1)
        }
        return {name: kernel for name, kernel in kernels.items() if kernel is not None}

    @property
    def stamps(self) -> list[tuple[int, ...]]:
        """Shapes of all stamps, for the choice of grids; a single pixel where there is none."""
        return [kernel.shape for kernel in self.kernels.values()] or [(1, 1)]

    def correction_on(self, shape: tuple[int, ...]) -> StackCorrection:
        """Correction on a grid."""
        grid = (shape[0], shape[1])
        if grid not in self._corrections:
            self._corrections[grid] = stack_correction(
                self.science,
                self.template,
                shape=grid,
                matching_kernel=self.matching_kernel,
                convolved=self.convolved,
                floor=self.floor,
                combine=self.combine,
            )
        return self._corrections[grid]

    @functools.cached_property
    def _corrections(self) -> dict[tuple[int, int], StackCorrection]:
        # Filters that are the same everywhere are asked for at many places.
        return {}

    def kernel_on(self, shape: tuple[int, ...]) -> tuple[StackCorrection, Array, float]:
        """Correction on a grid, its kernel there, and the sigma of a pixel that results."""
        correction = self.correction_on(shape)
        kernel = pixel_kernel(correction.correction_ft, shape=correction.shape)
        return correction, kernel, math.sqrt(correction.variance)


def reach_or_cut(kernels: Sequence[Array], image: Array, sigma: float, precision: float) -> int:
    """Reach of the part of some filters that suffices, or of as much as can be.

    Parameters
    ----------
    kernels, image, sigma, precision
        As for `whitediff.decorrelation.compact_reach`.

    Returns
    -------
    reach
        Pixels; with a warning where that does not suffice.
    """
    reach = compact_reach(kernels, image, sigma=sigma, precision=precision)
    if reach is None:
        reach = min(_LARGEST_REACH, *((n - 1) // 2 for n in image.shape))
        _log.warning(
            "The correction is not compact: cut off at %d pixels, it moves some pixels by more"
            " than %g of their standard deviation.",
            reach,
            precision,
        )
    return reach
