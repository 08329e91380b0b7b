"""A template brought onto the science image's pixels: by whole pixels, or resampled."""

from __future__ import annotations

import logging
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, NoOverlapError
from ..exposures import masks
from ..exposures.covariance import moved_noise
from ..exposures.model import Exposure, Provenance
from ..exposures.psf import moved_psf
from ..exposures.sky import shifted_header
from ..extras import check_adaptive
from ..numerics.transformation import Correction
from .mapping import taken_positions
from .registration import measured_correction, star_offset
from .resampling import Resampled, ResamplingOptions, resampled

__all__ = ["WHOLE_PIXEL_TOLERANCE", "aligned", "aligned_template", "alignment_of"]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.match")

WHOLE_PIXEL_TOLERANCE = 0.05
"""Largest departure of a grid from a whole-pixel shift of the science image's, pixels."""

_NODES = 9


def aligned_template(
    science: Exposure,
    template: Exposure,
    *,
    use_wcs: bool = True,
    resampling: ResamplingOptions | None = None,
    correction: Correction | None = None,
) -> Exposure:
    """Cut, extend or resample a template to the science image's pixels.

    Parameters
    ----------
    science, template
        Exposures on grids that differ by whole pixels, by their boxes or their WCS; on any grids
        if the template may be resampled.
    use_wcs
        Believe the WCS; if False, equal boxes are enough.
    resampling
        How to resample a template whose grid differs by more than `WHOLE_PIXEL_TOLERANCE` from
        whole pixels, by WCS and stars; None to refuse such a template.
    correction
        Correction of the positions by stars; None to measure it where the resampling uses stars.

    Returns
    -------
    template
        Template with the science exposure's box.  Pixels that it does not cover are NaN and
        NO_DATA.  The same object where nothing has to be done.

    Raises
    ------
    ArgumentError
        If the grids differ in size and nothing gives the offset, or differ by other than whole
        pixels and may not be resampled; or if there is no WCS to resample by.
    DataError
        If the exposures do not overlap.
    """
    if resampling is not None:
        return aligned(
            science, template, resampling, use_wcs=use_wcs, correction=correction
        ).exposure
    name = template.source or "The template"
    shifts = _shifts(science, template, name) if use_wcs else None
    if shifts is None:
        if template.bbox == science.bbox:
            return template
        if template.origin == science.origin:
            raise ArgumentError.of(
                name,
                f"has {template.shape[0]} x {template.shape[1]} pixels, but the science"
                f" image {science.shape[0]} x {science.shape[1]}, and no usable WCS in both that"
                " tells where it lies; cut it to the same pixels.",
            )
        # Without a WCS, boxes that start at different pixels give the offset.
        offset = (science.origin[0] - template.origin[0], science.origin[1] - template.origin[1])
        return _cut(science, template, offset, name)
    shift, departure = _whole_pixels(shifts)
    if shift is None:
        raise _differs(name, shifts, departure, star_offset(science, template))
    return _placed(science, template, shift, name)


def alignment_of(
    template: Exposure, resampling: ResamplingOptions | None
) -> Literal["auto", "interpolating", "adaptive"] | None:
    """Method that brought a template onto the science image's pixels, to repeat it.

    Parameters
    ----------
    template
        Result of `aligned_template`.
    resampling
        The options that `aligned_template` was given.

    Returns
    -------
    method
        The method used; the requested one where whole pixels sufficed; None where resampling was
        not allowed.
    """
    if resampling is None:
        return None
    return template.resampling or resampling.method


def aligned(
    science: Exposure,
    template: Exposure,
    resampling: ResamplingOptions,
    *,
    use_wcs: bool = True,
    correction: Correction | None = None,
) -> Resampled:
    """Cut a template to the science image's pixels where it has the same ones, or resample it.

    Parameters
    ----------
    science, template
        Exposures with sky coordinates, or with stars.
    resampling
        How to resample where grids differ by more than `WHOLE_PIXEL_TOLERANCE` from whole pixels.
    use_wcs
        Start from the WCS where there is one, and correct it by the stars; if False, use the stars
        alone.
    correction
        As for `aligned_template`.

    Returns
    -------
    aligned
        Its exposure is as from `aligned_template`.

    Raises
    ------
    ArgumentError, DataError
        As from `whitediff.alignment.resampling.resampled` and
        `whitediff.alignment.registration.measured_correction`.
    """
    check_adaptive(resampling.method)
    name = template.source or "The template"
    if correction is None and resampling.positions != "wcs":
        correction = measured_correction(
            science, template, use_wcs=use_wcs, distortions=resampling.positions == "distortions"
        )
    shifts = _shifts(science, template, name, correction)
    offset, departure = (None, math.nan) if shifts is None else _whole_pixels(shifts)
    if offset is None:
        # Its error names the missing WCS, where that is the reason.
        return resampled(template, science, resampling, correction)
    exposure = _placed(science, template, offset, name)
    if correction is not None:
        exposure = exposure.replaced()
        exposure.registration = correction
    covered = float(np.isfinite(exposure.data).mean())
    return Resampled(exposure, None, 1.0, 0.0, covered, departure)


def _whole_pixels(shifts: Array) -> tuple[tuple[int, int] | None, float]:
    """Whole-pixel offset (y, x), None where shifts depart from it, and the largest departure."""
    whole = np.round(np.median(shifts, axis=1))
    departure = float(np.abs(shifts - whole[:, None]).max())
    if not departure <= WHOLE_PIXEL_TOLERANCE:
        return None, departure
    return (int(whole[0]), int(whole[1])), departure


def _shifts(
    science: Exposure, template: Exposure, name: str, correction: Correction | None = None
) -> Array | None:
    """Shifts of pixels by WCS and stars, ``(2, n)``; NaN where they are not defined."""
    by_wcs = correction is None or correction.by_wcs
    if by_wcs and (science.wcs is None or template.wcs is None):
        return None
    ny, nx = science.shape
    y, x = (
        a.ravel()
        for a in np.meshgrid(*(np.linspace(0, n - 1, _NODES) for n in (ny, nx)), indexing="ij")
    )
    try:
        there = taken_positions(science, template, y, x, by_wcs=by_wcs)
    except ArgumentError as error:
        raise ArgumentError.of(name, f"{error}") from error
    if correction is not None:
        there = correction.affine(there)
        if correction.displacements is not None:
            there = there + correction.displacements.at(y, x)[0]
    return np.stack([there[:, 0] - y, there[:, 1] - x])


def _differs(name: str, shifts: Array, departure: float, stars: str) -> ArgumentError:
    if not np.isfinite(departure):
        return ArgumentError.of(
            name,
            "by their WCS the science image's pixels have no place on it; are they of the"
            " same field?",
        )
    largest = float(np.hypot(*shifts).max())
    return ArgumentError.of(
        name,
        f"its pixels and the science image's differ by up to {largest:.2f} pixels by their"
        f" WCS, {departure:.2f} after a shift by whole pixels, and at most"
        f" {WHOLE_PIXEL_TOLERANCE:g} are allowed{stars}; have it resampled (--align), in a"
        " pipeline by alignTemplate, or take the images as they are (--ignore-wcs) if the WCS is"
        " wrong.",
    )


def _placed(science: Exposure, template: Exposure, offset: tuple[int, int], name: str) -> Exposure:
    if offset == (0, 0) and template.bbox == science.bbox:
        return template
    return _cut(science, template, offset, name)


def _cut(science: Exposure, template: Exposure, offset: tuple[int, int], name: str) -> Exposure:
    ny, nx = science.shape
    start = [max(0, -d) for d in offset]
    stop = [min(n, m - d) for n, m, d in zip((ny, nx), template.shape, offset, strict=True)]
    if stop[0] <= start[0] or stop[1] <= start[1]:
        raise NoOverlapError.of(
            name,
            f"does not overlap the science image, whose first pixel lies at (y, x) ="
            f" ({offset[0]}, {offset[1]}) of its {template.shape[0]} x {template.shape[1]} pixels.",
        )
    here = (slice(start[0], stop[0]), slice(start[1], stop[1]))
    there = tuple(slice(a + d, b + d) for a, b, d in zip(start, stop, offset, strict=True))
    covered = np.zeros((ny, nx), dtype=bool)
    covered[here] = True
    _log.info(
        "%s: placed at a whole-pixel offset of (y, x) = (%d, %d); it covers %.1f%% of the science"
        " image.",
        name,
        -offset[0],
        -offset[1],
        100 * float(covered.mean()),
    )

    def cut(plane: Array, fill: float) -> Array:
        result = np.full((ny, nx), fill, dtype=plane.dtype)
        result[here] = plane[there]
        return result

    planes = {
        plane: cut(masks.flagged(template.mask, [plane]), False) for plane in template.mask.names
    }
    if not covered.all():
        planes["NO_DATA"] = planes.get("NO_DATA", np.zeros_like(covered)) | ~covered
    box = science.bbox
    moved = (
        template.origin[0] - science.origin[0] + offset[0],
        template.origin[1] - science.origin[1] + offset[1],
    )
    return Exposure(
        cut(template.data, np.nan),
        cut(template.variance, np.nan),
        masks.make_mask(planes, (ny, nx)),
        origin=box.start,
        unit=template.unit,
        psf=None if template.psf is None else moved_psf(template.psf, box, *moved),
        header=shifted_header(template.header, dy=offset[0], dx=offset[1]),
        provenance=Provenance(
            source=template.source,
            primary_header=template.primary_header.copy(),
            noise=moved_noise(template.noise, *moved),
        ),
    )
