"""A template on another grid, resampled onto the science image's pixels.

`whitediff.alignment.reprojection` makes the pixels.  Here they are scaled to the science image's
pixel area, and get their variance, mask, PSF and noise covariance.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, DataError
from ..exposures import kernels
from ..exposures.covariance import Noise
from ..exposures.model import Exposure, Provenance
from ..exposures.psf import KernelPointSpreadFunction, as_kernel_psf, shifted
from ..exposures.sky import wcs_cards, without_wcs
from ..extras import check_extra
from ..noise.exposures import noises_by_role, source_pixels
from ..numerics.threads import single_threaded_algebra
from ..numerics.transformation import Correction
from .mapping import pixel_map
from .reprojection import FINER, Method, Regridding, ResamplingOptions
from .resampled_noise import resampled_noise
from .resampled_planes import resampled_planes

__all__ = ["Resampled", "ResamplingOptions", "resampled", "turned"]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.match")

_LARGEST_SCALE = 3.0
_LARGEST_ERROR = 0.02
_UNSEEN = 0.01
"""Displacement of a corner, pixels, below which a rotation is none."""
_CELLS = 16
"""Cells of the frame on each axis; within one, a PSF is averaged over phases."""
_PHASES = 16
_PSF_ORDERS = (2, 4)


@dataclasses.dataclass(frozen=True)
class Resampled:
    """A template on the science image's pixels.

    Attributes
    ----------
    exposure
        Planes, PSF and noise covariance of the template, with the science exposure's box and WCS.
    method
        Method that was used; None where the template was only cut, since its pixels are the same.
    pixel_area
        Area of a science pixel over a template pixel, in the middle.
    rotation
        Rotation of one grid against the other, degrees.
    covered
        Fraction of the science exposure's pixels that have a value.
    map_error
        Largest error of the polynomials that stand for the sky coordinates, or of the whole-pixel
        shift, pixels.
    """

    exposure: Exposure
    method: Method | None
    pixel_area: float
    rotation: float
    covered: float
    map_error: float


@single_threaded_algebra()
def resampled(
    template: Exposure,
    science: Exposure,
    options: ResamplingOptions | None = None,
    correction: Correction | None = None,
) -> Resampled:
    """Resample a template onto a science exposure's pixels.

    Parameters
    ----------
    template
        Exposure with sky coordinates, unless the correction replaces them.
    science
        Exposure with sky coordinates likewise; only its box and these matter.
    options
        `ResamplingOptions`, whose `positions` is ignored.
    correction
        Correction of the positions by stars; None to use the sky coordinates as they are.

    Returns
    -------
    resampled
        The image keeps the flux of sources: each pixel is the template's brightness there times
        the pixel's area, in pixels of the template.  The variance plane holds single pixels'
        variances, averaged over their positions between the template's pixels.  A mask plane is
        set where a template pixel that contributes more than 1 % has it; BAD, CR and NO_DATA,
        whose pixels are interpolated first, only where they contribute more than a fifth.  NO_DATA
        is also set where the nearest template pixel is not finite, or a contributing one lies
        beyond the template.

    Raises
    ------
    ArgumentError
        If sky coordinates are needed and missing, pixels differ more than threefold in size, or
        the adaptive method is used and reproject is not installed.
    DataError
        If the exposures do not overlap.
    """
    options = options or ResamplingOptions()
    name = template.source or "The template"
    found = pixel_map(science, template, correction)
    if found.error > _LARGEST_ERROR:
        _log.warning("%s: its distortions are followed to %.2g pixels only.", name, found.error)
    job = Regridding(template, science, found, options)
    _check_scales(job, name)
    covariance, gain = resampled_noise(job, _input_noise(template, options))
    image, mask, variance = resampled_planes(job, gain)
    result = Exposure(
        image,
        variance,
        mask,
        origin=science.origin,
        unit=template.unit,
        psf=None if template.psf is None else _psf(job),
        header=_header(template, science),
        provenance=Provenance(
            source=template.source,
            primary_header=template.primary_header.copy(),
            noise=covariance,
            registration=correction,
            resampling=job.method,
        ),
    )
    covered = float(np.isfinite(image).mean())
    if covered == 0:
        raise DataError.of(
            name,
            "no pixel of the science image lies far enough inside of it; are they of the"
            " same field?",
        )
    area = abs(float(np.linalg.det(job.jacobians[4])))
    rotation = _rotation(job.jacobians[4])
    _log.info(
        "%s: resampled (%s); its pixels are %.4g times as large on a side as the science image's,"
        " %s%s; it covers %.1f%% of the science image.",
        name,
        job.method,
        1 / math.sqrt(area),
        turned(rotation, science.shape),
        " and mirrored" if job.mirrored else "",
        100 * covered,
    )
    return Resampled(result, job.method, area, rotation, covered, found.error)


def _check_scales(job: Regridding, name: str) -> None:
    smallest, largest = job.scales
    if largest > _LARGEST_SCALE or smallest < 1 / _LARGEST_SCALE:
        worst = largest if largest * smallest > 1 else smallest
        raise ArgumentError.of(
            name,
            f"the science image's pixels are {worst:.3g} times as large on a side as the"
            f" template's, and more than {_LARGEST_SCALE:g} times either way cannot be aligned; is"
            " its WCS right?  If so, bin the finer of the two.",
        )
    if job.method == "adaptive":
        check_extra(
            "align",
            "reproject",
            needs=f"{name}: its pixels are {largest:.2g} times finer than the science image's, and"
            " to average them takes {module}",
        )
    if largest > FINER and job.method == "interpolating":
        _log.warning(
            "%s: its pixels are %.2g times finer than the science image's, and interpolating leaves"
            " out what lies between; the adaptive method averages.",
            name,
            largest,
        )


def turned(rotation: float, shape: tuple[int, ...], word: str = "rotated") -> str:
    """A rotation in words.

    Parameters
    ----------
    rotation
        Degrees.
    shape
        (ny, nx) of the frame that is rotated.
    word
        Word for the rotation.

    Returns
    -------
    text
        ``rotated by 3 degrees``; ``not rotated`` where no pixel moves by a hundredth.
    """
    if abs(math.radians(rotation)) * math.hypot(*shape) / 2 < _UNSEEN:
        return f"not {word}"
    return f"{word} by {rotation:.3g} degrees"


def _rotation(jacobian: Array) -> float:
    # Rotation of the pair (y, x); a mirror image is turned back first.
    matrix = jacobian * ([1, -1] if np.linalg.det(jacobian) < 0 else [1, 1])
    return math.degrees(math.atan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1]))


def _input_noise(template: Exposure, options: ResamplingOptions) -> Noise:
    if options.noise == "white":
        return None
    if options.noise == "auto" and template.noise is not None:
        return template.noise
    (noise,) = noises_by_role({"template": template}, source_pixels(template), how=options.noise)
    return noise


def _psf(job: Regridding) -> KernelPointSpreadFunction:
    """PSF of the resampled image, averaged over positions within a pixel."""
    assert job.template.psf is not None
    before = as_kernel_psf(job.template.psf, job.template.bbox)
    order = 0
    if not before.kernel.is_constant or not job.is_linear:
        orders = [getattr(field, "x_order", _PSF_ORDERS[1]) for field in before.kernel.fields]
        order = min(max(_PSF_ORDERS[0], *orders), _PSF_ORDERS[1])
    smallest, _ = job.scales
    half = math.ceil(max(before.kernel.shape) / 2 / smallest)
    y0, x0 = job.science.origin
    # Multiples of the inverse plastic number and its square cover the cell evenly (R2 sequence).
    steps = (np.arange(_PHASES)[:, None] * [0.7548776662466927, 0.5698402909980532] % 1) - 0.5

    def image_at(x: float, y: float) -> Array:
        inner = [
            min(max(at - origin, part.start), part.stop - 1)
            for at, origin, part in ((y, y0, job.map.rows), (x, x0, job.map.columns))
        ]
        sizes = [part.stop - part.start for part in (job.map.rows, job.map.columns)]
        row, column = (
            np.rint(at + steps[:, i] * size / _CELLS)
            for i, (at, size) in enumerate(zip(inner, sizes, strict=True))
        )
        there_y, there_x, jacobian = job.map.at(row, column)
        middle = len(row) // 2
        x, y = job.template_coordinates(float(there_y.mean()), float(there_x.mean()))
        stamp = before.at(x=x, y=y)
        return _resampled_stamp(job, stamp, there_y, there_x, jacobian[middle], half)

    kernel = kernels.interpolated_kernel(image_at, job.science.bbox, order)
    return KernelPointSpreadFunction(kernel, light=before.light)


def _resampled_stamp(
    job: Regridding, stamp: Array, y: Array, x: Array, jacobian: Array, half: int
) -> Array:
    """Mean of a star's resampled images at several positions y, x on the template."""
    margin = job.kernel.reach(jacobian[None]) + 2
    padded = np.pad(stamp, margin)
    center = [n // 2 + margin for n in stamp.shape]
    grid = np.arange(-half - 1, half + 2)
    total = np.zeros((2 * half + 1, 2 * half + 1))
    for at_y, at_x in zip(y, x, strict=True):
        dy, dx = at_y - np.floor(at_y), at_x - np.floor(at_x)
        star = shifted(padded, dy, dx)
        there_y = center[0] + dy + jacobian[0, 0] * grid[:, None] + jacobian[0, 1] * grid
        there_x = center[1] + dx + jacobian[1, 0] * grid[:, None] + jacobian[1, 1] * grid
        total += np.nan_to_num(job.resampled(star, there_y, there_x, job.kernel))
    return total / total.sum()


def _header(template: Exposure, science: Exposure) -> Any:
    """The template's header with the science exposure's sky coordinates."""
    header = without_wcs(template.header, alternative=True)
    header.extend(wcs_cards(science.header), unique=True)
    return header
