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
    Correction,
    ScoreCut,
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

    def on_frame(
        self, image: Array, *, transform: Literal["fast", "documented"]
    ) -> Correction | None:
        """Correction for transforms of a whole frame; None where its kernel is compact.

        The grid is the documented one, or one that transforms faster where that makes no
        difference.  Where the memory is limited to less than a frame's spectrum, every kernel
        counts as compact.
        """
        documented = fourier.common_shape(*self.stamps, image.shape)
        if transform == "documented":
            return self.correction_on(documented)
        if math.prod(self.small_grid) < math.prod(documented):
            _, kernel, sigma = self.kernel_on(self.small_grid)
            reach = compact_reach([kernel], image, sigma=sigma)
            if reach is not None or planes.is_limited(image.shape, np.complex128):
                return None
            if self.preconvolution_image is not None and not self.compact_score:
                # What reaches far is noise, of which every grid has its own.
                return self.correction_on(documented)
        correction, kernel, sigma = self.kernel_on(fourier.fast_shape(*self.stamps, image.shape))
        margin = (documented[0] - image.shape[0], documented[1] - image.shape[1])
        if correction.shape == documented or not depends_on_grid(
            kernel, image, margin=margin, sigma=sigma
        ):
            return correction
        return self.correction_on(documented)

    @property
    def small_grid(self) -> tuple[int, ...]:
        """Grid on which a compact correction is all there."""
        return fourier.fast_shape(*self.stamps, (_SMALL_GRID, _SMALL_GRID))

    @functools.cached_property
    def small_correction(self) -> Correction:
        """Correction on the small grid."""
        return self.correction_on(self.small_grid)

    def sky_kernel(self, shape: tuple[int, int]) -> Array:
        """Pixels of the part of a score's filter that acts on the sky.

        Compact, unless a grid of that shape is so small that it is the better choice.
        """
        small = self.small_grid
        if math.prod(small) >= math.prod(shape):
            correction = self.correction_on(shape, compact=True)
            return pixel_kernel(correction.correction_ft, shape=shape)
        correction = self.correction_on(small, compact=True)
        kernel = pixel_kernel(correction.correction_ft, shape=correction.shape)
        side = 2 * min(math.ceil(self._score_reach), (min(small) - 1) // 2) + 1
        return fourier.crop_center_origin(kernel, (side, side))

    def total_kernels(self, shape: tuple[int, ...]) -> tuple[Array, Array] | None:
        """What makes the result of the two exposures, as far as its squares are not negligible.

        Those of the unconvolved and of the convolved exposure, for images of a shape; None where
        one is not compact.
        """
        correction = self.small_correction
        found = []
        for ft in (correction.unconvolved_ft, correction.convolved_ft):
            kernel = pixel_kernel(ft, shape=correction.shape)
            square = compact_square(kernel, shape)
            if square is None:
                return None
            found.append(fourier.crop_center_origin(kernel, square.shape))
        return found[0], found[1]

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
