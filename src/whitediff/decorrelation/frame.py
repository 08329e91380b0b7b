"""A correction by transforms of a whole frame, as documented: one kernel, one noise level."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..exposures.boxes import Box
from ..exposures.fields import ChebyshevField, scattered_fit
from ..exposures.kernels import BasisKernel
from ..exposures.psf import KernelPointSpreadFunction, Light
from ..numerics import fourier
from .correction import (
    Correction,
    corrected_image,
    estimated_variance,
    filtered_stamp,
    full_variance,
)
from .filters import Filters

__all__ = ["FrameCorrection"]

type Array = npt.NDArray[Any]

_RESPONSE_NODES = 5


@dataclasses.dataclass(frozen=True)
class FrameCorrection:
    """A correction by transforms of a whole frame.

    Attributes
    ----------
    correction
        On the grid of the transforms.
    filters
        What it is made of.
    box
        Frame.
    scale
        Factor that brings a variance to the science level.
    full_variance
        Propagate every pixel's variance.
    transform
        ``documented``: double precision, and one PSF for the whole frame.  ``fast``: the
        image's precision, and a PSF that varies as it did before.
    """

    correction: Correction
    filters: Filters
    box: Box
    scale: float
    full_variance: bool
    transform: Literal["fast", "documented"]

    def image(self, image: Array, sigma: float | None) -> Array:
        """Filter an image.

        Parameters
        ----------
        image
            ``(ny, nx)``; pixels without a measurement come back as they were.
        sigma
            Smallest standard deviation among the result's pixels, image_unit.

        Returns
        -------
        filtered
            ``(ny, nx)``, the image's dtype; double for whole numbers.
        """
        dtype = image.dtype if image.dtype.kind == "f" else np.dtype(np.float64)
        corrected = corrected_image(
            self.correction.correction_ft,
            image.astype(np.float64 if self.transform == "documented" else dtype, copy=False),
            shape=self.correction.shape,
            sigma=sigma,
        )
        return corrected.astype(dtype, copy=False)

    def variance(self, unconvolved: Array, convolved: Array) -> Array:
        """Variance plane of the corrected image.

        Parameters
        ----------
        unconvolved, convolved
            ``(ny, nx)`` variance planes before any convolution, image_unit².

        Returns
        -------
        variance
            ``(ny, nx)`` at the science level, rounded once to the planes' type.
        """
        correction, means = self.correction, self.filters.means
        if not self.full_variance:
            weights = correction.variance_weights
            scaled = (weights[0] * self.scale, weights[1] * self.scale)
            return estimated_variance(unconvolved, convolved, scaled)
        if math.prod(correction.shape) < unconvolved.size:
            grid = fourier.fast_shape(*self.filters.stamps, unconvolved.shape)
            correction = self.filters.correction_on(grid)
        variance = full_variance(
            unconvolved.astype(np.float64),
            convolved.astype(np.float64),
            unconvolved_fill=means[0],
            convolved_fill=means[1],
            unconvolved_ft=correction.noise_filters_ft[0],
            convolved_ft=correction.noise_filters_ft[1],
            shape=correction.shape,
        )
        variance *= self.scale
        return variance.astype(np.result_type(unconvolved, convolved), copy=False)

    def psf(self, psf: KernelPointSpreadFunction) -> KernelPointSpreadFunction:
        """PSF of the corrected image.

        Parameters
        ----------
        psf
            Before the correction.

        Returns
        -------
        psf
            On stamps of the same shape, varying as it did before.
        """
        psf = self._before(psf)
        correction = self._on_stamps
        x, y = psf.average_position
        images = [self._filtered(image) for image in psf.kernel.basis]
        middle = images[0] if psf.kernel.is_constant else self._filtered(psf.at(x=x, y=y))
        gain = float(correction.correction_ft[0, 0])
        light = psf.light.filtered(float(middle.sum()) / gain)
        if psf.kernel.is_constant:
            return KernelPointSpreadFunction.from_image(middle, self.box, light=light)
        return KernelPointSpreadFunction(
            BasisKernel(np.stack(images), psf.kernel.fields),
            average_position=psf.average_position,
            light=light,
        )

    def response(self, psf: KernelPointSpreadFunction) -> ChebyshevField:
        """Score of a point source of unit flux at its position, over the field.

        Parameters
        ----------
        psf
            Before the correction.

        Returns
        -------
        response
            Field over the frame.
        """
        psf, box = self._before(psf), self.box
        constant = psf.kernel.is_constant
        nodes = np.zeros(1) if constant else np.linspace(-1, 1, _RESPONSE_NODES)
        v, u = (grid.ravel() for grid in np.meshgrid(nodes, nodes, indexing="ij"))
        x = box.x.start - 0.5 + 0.5 * box.x.size * (1 + u)
        y = box.y.start - 0.5 + 0.5 * box.y.size * (1 + v)
        peaks = []
        for at_x, at_y in zip(x, y, strict=True):
            filtered = self._filtered(psf.at(x=at_x, y=at_y))
            peaks.append(filtered[filtered.shape[0] // 2, filtered.shape[1] // 2])
        order = 0 if constant else 2
        terms, found = scattered_fit(np.array(peaks), x=x, y=y, bounds=box, order=order)
        coefficients = np.zeros((order + 1, order + 1))
        for (p, q), value in zip(terms, found, strict=True):
            coefficients[p, q] = value
        return ChebyshevField(box, coefficients)

    def _before(self, psf: KernelPointSpreadFunction) -> KernelPointSpreadFunction:
        if self.transform != "documented":
            return psf
        # The documented task knows one PSF for the whole image.
        return KernelPointSpreadFunction.from_image(
            np.asarray(self.filters.psf_image), self.box, light=Light.of(psf)
        )

    @functools.cached_property
    def _on_stamps(self) -> Correction:
        return self.filters.correction_on_stamps(self.correction, transform=self.transform)

    def _filtered(self, stamp: Array) -> Array:
        correction = self._on_stamps
        return filtered_stamp(correction.correction_ft, stamp, shape=correction.shape)
