"""Bringing a template onto the science image's pixels, where whole pixels suffice."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.wcs.utils import pixel_to_pixel
from lsst.images import Image, MaskedImage

from ..errors import ArgumentError, DataError
from . import masks
from .model import Exposure
from .psf import moved_psf
from .sky import shifted_header

__all__ = ["aligned_template"]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.match")

_WHOLE_PIXEL_TOLERANCE = 0.1
_LARGEST_DISAGREEMENT = 1.0


def aligned_template(science: Exposure, template: Exposure, *, use_wcs: bool = True) -> Exposure:
    """Cut or extend a template to the science image's pixels.

    Parameters
    ----------
    science, template
        Exposures on grids that differ by whole pixels, as their boxes or their WCS say.
    use_wcs
        Believe the WCS; if False, equal boxes are enough.

    Returns
    -------
    template
        With the science exposure's box.  Pixels that it does not cover are NaN and NO_DATA.
        The same object where nothing has to be done.

    Raises
    ------
    ArgumentError
        If the grids differ in size and nothing says by which offset, or by anything else
        than whole pixels.
    DataError
        If they do not overlap.
    """
    name = template.source or "The template"
    offset = _offset_by_wcs(science, template, name) if use_wcs else None
    if offset is None:
        if template.bbox == science.bbox:
            return template
        if template.yx0 == science.yx0:
            raise ArgumentError(
                f"{name}: has {template.shape[0]} x {template.shape[1]} pixels, but the science"
                f" image {science.shape[0]} x {science.shape[1]}, and no usable WCS in both that"
                " tells where it lies; cut it to the same pixels."
            )
        # Boxes that start elsewhere are placed by that.
        offset = (science.yx0[0] - template.yx0[0], science.yx0[1] - template.yx0[1])
    if offset == (0, 0) and template.bbox == science.bbox:
        return template
    return _cut(science, template, offset, name)


def _offset_by_wcs(science: Exposure, template: Exposure, name: str) -> tuple[int, int] | None:
    """Array index of the science image's first pixel on the template, (y, x)."""
    wcs, other = science.wcs, template.wcs
    if wcs is None or other is None:
        return None
    ny, nx = science.shape
    y, x = (a.ravel() for a in np.mgrid[0 : ny - 1 : 3j, 0 : nx - 1 : 3j])
    there = pixel_to_pixel(wcs, other, x, y)
    shifts = np.stack([there[1] - y, there[0] - x])
    if not np.isfinite(shifts).all():
        raise ArgumentError(
            f"{name}: its WCS cannot be evaluated on the science image; are they of the same field?"
        )
    whole = np.round(shifts.mean(axis=1))
    departure = float(np.abs(shifts - whole[:, None]).max())
    same_size = science.shape == template.shape
    if departure <= _WHOLE_PIXEL_TOLERANCE:
        return int(whole[0]), int(whole[1])
    if same_size and float(np.abs(shifts).max()) < _LARGEST_DISAGREEMENT:
        _log.warning(
            "%s: its WCS and the science image's disagree by up to %.2f pixels; pixel for pixel"
            " is taken as aligned.",
            name,
            float(np.abs(shifts).max()),
        )
        return 0, 0
    raise ArgumentError(
        f"{name}: its pixels lie {math.hypot(*shifts.mean(axis=1)):.2f} pixels from the science"
        f" image's by their WCS, {departure:.2f} from a whole number; resample it onto the science"
        " image's pixels first, or say that they are aligned (--ignore-wcs) if the WCS is wrong."
    )


def _cut(science: Exposure, template: Exposure, offset: tuple[int, int], name: str) -> Exposure:
    ny, nx = science.shape
    start = [max(0, -d) for d in offset]
    stop = [min(n, m - d) for n, m, d in zip((ny, nx), template.shape, offset, strict=True)]
    if stop[0] <= start[0] or stop[1] <= start[1]:
        raise DataError(
            f"{name}: does not overlap the science image, whose first pixel lies at (y, x) ="
            f" ({offset[0]}, {offset[1]}) of its {template.shape[0]} x {template.shape[1]} pixels."
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
        plane: cut(masks.flagged(template.mask, [plane]), False)
        for plane in template.mask.schema.names
    }
    if not covered.all():
        planes["NO_DATA"] = planes.get("NO_DATA", np.zeros_like(covered)) | ~covered
    box = science.bbox
    moved = (
        template.yx0[0] - science.yx0[0] + offset[0],
        template.yx0[1] - science.yx0[1] + offset[1],
    )
    return Exposure(
        MaskedImage(
            Image(cut(template.image.array, np.nan), bbox=box, unit=template.image.unit),
            mask=masks.make_mask(planes, box),
            variance=Image(
                cut(template.variance.array, np.nan), bbox=box, unit=template.variance.unit
            ),
            sky_projection=science.sky_projection,
        ),
        psf=None if template.psf is None else moved_psf(template.psf, box, *moved),
        header=shifted_header(template.header, dy=offset[0], dx=offset[1]),
        primary_header=template.primary_header.copy(),
        source=template.source,
    )
