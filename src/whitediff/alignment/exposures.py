"""Bringing a template onto the science image's pixels: by whole pixels, or resampled."""

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
"""Pixels by which a grid may differ from the science image's, but for whole ones."""

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
        Exposures on grids that differ by whole pixels, as their boxes or their WCS say, or by
        anything else if it may be resampled.
    use_wcs
        Believe the WCS; if False, equal boxes are enough.
    resampling
        How to resample a template whose grid differs by more than `WHOLE_PIXEL_TOLERANCE` from
        whole pixels, by their WCS and stars; None to refuse it.
    correction
        What the stars said of the positions before; measured if not given, where the resampling
        goes by them.

    Returns
    -------
    template
        With the science exposure's box.  Pixels that it does not cover are NaN and NO_DATA.
        The same object where nothing has to be done.

    Raises
    ------
    ArgumentError
        If the grids differ in size and nothing says by which offset, or by anything else
        than whole pixels; or if there is no WCS to resample by.
    DataError
        If they do not overlap.
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
        # Boxes that start elsewhere are placed by that.
        offset = (science.origin[0] - template.origin[0], science.origin[1] - template.origin[1])
        return _cut(science, template, offset, name)
    shift, departure = _whole_pixels(shifts)
    if shift is None:
        raise _differs(name, shifts, departure, star_offset(science, template))
    return _placed(science, template, shift, name)


def alignment_of(
    template: Exposure, resampling: ResamplingOptions | None
) -> Literal["auto", "interpolating", "adaptive"] | None:
    """How a template got onto the science image's pixels, to do it once more.

    Parameters
    ----------
    template
        As of `aligned_template`.
    resampling
        What it was given.

    Returns
    -------
    method
        The one that was used; that which was asked for where whole pixels sufficed; None where it
        was not to be resampled.
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
        How, where its grid differs by more than `WHOLE_PIXEL_TOLERANCE` from whole pixels.
    use_wcs
        Believe the WCS where there is one, but for what the stars say; if False, these alone.
    correction
        As for `aligned_template`.

    Returns
    -------
    aligned
        Its exposure as of `aligned_template`.

    Raises
    ------
    ArgumentError, DataError
        As by `whitediff.alignment.resampling.resampled`, and
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
        # Which says what is missing, if something is.
        return resampled(template, science, resampling, correction)
    exposure = _placed(science, template, offset, name)
    if correction is not None:
        exposure = exposure.replaced()
        exposure.registration = correction
    covered = float(np.isfinite(exposure.data).mean())
    return Resampled(exposure, None, 1.0, 0.0, covered, departure)


def _whole_pixels(shifts: Array) -> tuple[tuple[int, int] | None, float]:
    """Whole-pixel offset (y, x), None where it is none, and the largest departure from it."""
    whole = np.round(np.median(shifts, axis=1))
    departure = float(np.abs(shifts - whole[:, None]).max())
    if not departure <= WHOLE_PIXEL_TOLERANCE:
        return None, departure
    return (int(whole[0]), int(whole[1])), departure


def _shifts(
    science: Exposure, template: Exposure, name: str, correction: Correction | None = None
) -> Array | None:
    """How far pixels move by WCS and stars, ``(2, n)``; NaN where that is not defined."""
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

    def cut(plane: Array, fill: Any) -> Array:
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
