"""Defects that an exposure's mask lacks: found, and added to the mask or subtracted."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..exposures import masks
from ..exposures.model import Exposure
from ..noise.exposures import avoided_pixels, few_photons, untrusted_pixels
from ..numerics.steps import named_lines
from ..numerics.threads import in_threads, single_threaded_algebra
from .amplifiers import AmplifierLevels, amplifier_levels
from .clusters import dead_clusters, equal_clusters
from .columns import bad_lines
from .cosmic_rays import (
    RoundPeaks,
    dead_pixels,
    psf_sharpness,
    round_peaks,
    sharp_pixels,
    sharpness,
    strong_pixels,
)
from .dead import dead_runs
from .saturation import in_lines
from .surface import MARGIN, Surface, surface
from .trails import find_trails, trail_pixels
from .unlit import unlit_regions

__all__ = ["NO_DEFECTS", "DefectOptions", "with_defects", "with_trails"]

type Array = npt.NDArray[Any]
type Search = bool | Literal["auto"]
type Wanted = tuple[bool, bool, bool, bool]

_log = logging.getLogger("whitediff.defects")

_MOST_SHARP = 0.05
"""Largest share of sharp pixels: if there are more, the stars' sharpness was underestimated."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefectOptions:
    """Defects to look for.

    Attributes
    ----------
    cosmic_rays, bad_pixels, trails
        True or False; or auto: look unless the exposure's mask has them already.  It has where a
        pixel of CR, BAD or STREAK is set; cosmic rays and bad pixels also count as masked where
        the mask has the planes CR, INTRP and DETECTED, as masks of LSST do.  With auto, cosmic rays
        and bad pixels are not looked for in counts of few photons.
    level_jumps
        Whether to find and subtract jumps of the level between amplifiers; auto: except in counts
        of few photons.
    """

    cosmic_rays: Search = "auto"
    bad_pixels: Search = "auto"
    trails: Search = "auto"
    level_jumps: Search = "auto"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value not in (True, False, "auto"):
                raise ArgumentError(f"{field.name} is True, False or 'auto'; got {value!r}.")

    def wants(self, exposure: Exposure) -> Wanted:
        """Whether to look for cosmic rays, bad pixels, trails and jumps on an exposure.

        Parameters
        ----------
        exposure
            Exposure.

        Returns
        -------
        cosmic_rays, bad_pixels, trails, level_jumps
            True or False.
        """
        mask = exposure.mask
        judged = all(masks.find_plane(mask, name) for name in ("CR", "INTRP", "DETECTED"))
        # Where few photons are counted, two in a pixel would look like a cosmic ray.
        few = few_photons(exposure) is not None
        judged = judged or few

        def wanted(search: Search, plane: str, told: bool) -> bool:
            if search != "auto":
                return search
            return not (told or bool(masks.flagged(mask, [plane]).any()))

        return (
            wanted(self.cosmic_rays, "CR", judged),
            wanted(self.bad_pixels, "BAD", judged),
            wanted(self.trails, masks.STREAK, False),
            not few if self.level_jumps == "auto" else self.level_jumps,
        )


NO_DEFECTS = DefectOptions(cosmic_rays=False, bad_pixels=False, trails=False, level_jumps=False)
"""Options that look for no defects."""


@single_threaded_algebra()
def with_defects(
    science: Exposure,
    template: Exposure,
    options: DefectOptions,
    *,
    untrusted: Sequence[Array | None] = (None, None),
) -> tuple[Exposure, Exposure]:
    """Find the defects of two exposures, each on its own pixels.

    Parameters
    ----------
    science, template
        Exposures; not changed.
    options
        `DefectOptions`.
    untrusted
        Result of `whitediff.noise.exposures.untrusted_pixels` for each, to save the work.

    Returns
    -------
    science, template
        Exposures with the mask planes CR, BAD and STREAK where something was found, and without
        jumps of the level; the same objects where nothing was found.

    Notes
    -----
    A pixel that is sharper than a star is CR.  Where it stands alone, or is sharp in both
    exposures, it is BAD, too: a hot pixel cannot be told from a ray that hits a single pixel.
    """
    exposures = (science, template)
    wanted = [options.wants(each) for each in exposures]
    looked_at = in_threads(
        lambda job: _surface(*job), zip(exposures, wanted, untrusted, strict=True)
    )
    for each in looked_at:
        if each is not None and each.levels is not None:
            _tell_of(each.levels, each.exposure)
    science, template = (
        exposure if each is None else each.exposure
        for exposure, each in zip(exposures, looked_at, strict=True)
    )
    peaks = [None if each is None else round_peaks(each.surface) for each in looked_at]
    same = science.shape == template.shape
    jobs = (
        (science, looked_at[0], peaks[0], peaks[1] if same else None, wanted[0]),
        (template, looked_at[1], peaks[1], peaks[0] if same else None, wanted[1]),
    )
    found = in_threads(lambda job: _found(*job), jobs)
    sharp = [planes.get("CR") for planes in found]
    if all(plane is not None for plane in sharp) and same:
        again = sharp[0] & sharp[1]  # type: ignore[operator]
        if again.any():
            for planes, (_, bad_pixels, _, _) in zip(found, wanted, strict=True):
                if bad_pixels:
                    planes["BAD"] = planes["BAD"] | again if "BAD" in planes else again
    first, second = (
        _marked(exposure, planes)
        for exposure, planes in zip((science, template), found, strict=True)
    )
    return first, second


@single_threaded_algebra()
def with_trails(exposure: Exposure, options: DefectOptions) -> Exposure:
    """Find trails on a difference, which shows those too faint to be found on its inputs.

    Parameters
    ----------
    exposure
        Difference; not changed.
    options
        `DefectOptions`.

    Returns
    -------
    exposure
        Difference with the mask plane STREAK where a trail was found; else the same object.
    """
    if options.trails is False:
        return exposure
    looked_at = surface(exposure.data, exposure.variance, avoided_pixels(exposure))
    trails = find_trails(looked_at)
    if not trails:
        return exposure
    return _marked(exposure, {masks.STREAK: trail_pixels(trails, exposure.shape)})


@dataclasses.dataclass(frozen=True)
class _LookedAt:
    """An exposure prepared for the searches.

    ``exposure`` is without jumps of its level, ``surface`` is the image above its background,
    ``dead`` has its dead pixels, and ``levels`` the jumps that it had.
    """

    exposure: Exposure
    surface: Surface
    dead: Array | None
    levels: AmplifierLevels | None


def _surface(exposure: Exposure, wanted: Wanted, unusable: Array | None) -> _LookedAt | None:
    """Exposure prepared for the searches; None where nothing is looked for."""
    if not any(wanted):
        return None
    if unusable is None:
        unusable = untrusted_pixels(exposure)
    image, variance = exposure.data, exposure.variance
    dead = None
    if wanted[1]:
        for search in (dead_runs, unlit_regions):
            found = search(image, unusable)
            if found is not None:
                dead = found if dead is None else dead | found
                unusable = unusable | found
    looked_at = surface(image, variance, unusable)
    levels = amplifier_levels(image, looked_at, unusable) if wanted[3] else None
    if levels is not None:
        image, variance = levels.taken_off(image), levels.scaled(variance)
        exposure = exposure.replaced(data=image, variance=variance)
        looked_at = surface(image, variance, unusable)
    return _LookedAt(exposure, looked_at, dead, levels)


def _tell_of(levels: AmplifierLevels, exposure: Exposure) -> None:
    first = exposure.bbox.y.start, exposure.bbox.x.start
    _log.info(
        "%s: its level jumps at %s, by up to %.3g image units, as between amplifiers whose bias was"
        " not quite taken off; the jumps are taken off%s (--no-level-jumps leaves them in).",
        exposure.source or "The exposure",
        named_lines(levels.rows, levels.columns, first),
        abs(levels.largest),
        "" if (levels.noise == 1).all() else ", and each part gets the variance that it has",
    )


def _sharpness(exposure: Exposure, peaks: RoundPeaks, others: RoundPeaks | None) -> Array:
    """Sharpness of an exposure's stars: by its PSF, else by the peaks that both exposures have."""
    if exposure.psf is None:
        return sharpness(peaks, others)
    x, y = exposure.psf.average_position
    return psf_sharpness(exposure.psf.at(x=x, y=y))


def _found(
    exposure: Exposure,
    searched: _LookedAt | None,
    peaks: RoundPeaks | None,
    others: RoundPeaks | None,
    wanted: Wanted,
) -> dict[str, Array]:
    """Mask plane → pixels found, for planes with any pixel."""
    if searched is None or peaks is None:
        return {}
    looked_at, dead = searched.surface, searched.dead
    cosmic_rays, bad_pixels, trails, _ = wanted
    found: dict[str, Array] = {}
    if trails:
        strips = find_trails(looked_at)
        if strips:
            found[masks.STREAK] = trail_pixels(strips, exposure.shape)
    bad = bad_lines(looked_at) if bad_pixels else np.zeros(exposure.shape, bool)
    if bad_pixels:
        bad.flat[looked_at.unpadded(dead_pixels(looked_at))] = True
        bad.flat[looked_at.unpadded(dead_clusters(looked_at))] = True
        same = equal_clusters(looked_at, exposure.data)
        bad.flat[looked_at.unpadded(same)] = True
        if dead is not None:
            bad |= dead
        saturated = masks.flagged(exposure.mask, ["SAT"])
        if saturated.any():
            # A saturation level may mark hot columns, too, which are bad rather than stars.
            bad |= in_lines(exposure.data, saturated)
    if cosmic_rays or bad_pixels:
        q = _sharpness(exposure, peaks, others)
        # Bad pixels must not count as rays, around which neighbours are marked.
        looked_at.flux[MARGIN:-MARGIN, MARGIN:-MARGIN][bad] = np.nan
        strong = np.zeros(bad.size, bool)
        strong[looked_at.unpadded(strong_pixels(looked_at))] = True
        sharp = looked_at.unpadded(sharp_pixels(looked_at, q, peaks))
        if len(sharp) > _MOST_SHARP * bad.size:
            _log.warning(
                "%s: %.1f%% of its pixels are sharper than its stars, so these are not taken as"
                " cosmic rays.",
                exposure.source or "The exposure",
                100 * len(sharp) / bad.size,
            )
            sharp = sharp[:0]
        plane = np.zeros(exposure.shape, bool)
        plane.flat[sharp] = True
        alone = _alone(sharp, plane)
        if bad_pixels:
            bad.flat[sharp[alone]] = True
        if cosmic_rays and len(sharp):
            _mark_around(sharp[strong[sharp] & ~alone], plane)
            found["CR"] = plane
    if bad.any():
        found["BAD"] = bad
    return found


def _alone(index: Array, plane: Array) -> Array:
    """Whether pixels of a plane, given by index, have no other one among the eight around."""
    ny, nx = plane.shape
    y, x = np.divmod(index, nx)
    around = np.zeros(len(index), int)
    for j in (-1, 0, 1):
        for i in (-1, 0, 1):
            row, column = y + j, x + i
            inside = (row >= 0) & (row < ny) & (column >= 0) & (column < nx)
            around += inside & plane[np.clip(row, 0, ny - 1), np.clip(column, 0, nx - 1)]
    return around == 1


def _mark_around(index: Array, plane: Array) -> None:
    """Mark the eight pixels around each of some pixels; in place."""
    ny, nx = plane.shape
    y, x = np.divmod(index, nx)
    for j in (-1, 0, 1):
        for i in (-1, 0, 1):
            plane[np.clip(y + j, 0, ny - 1), np.clip(x + i, 0, nx - 1)] = True


def _marked(exposure: Exposure, found: dict[str, Array]) -> Exposure:
    if not found:
        return exposure
    mask = exposure.mask
    planes = {masks.find_plane(mask, name) or name: plane for name, plane in found.items()}
    mask = masks.extended(mask, planes)
    for name, plane in planes.items():
        masks.set_plane(mask, name, plane)
    _log.info(
        "%s: pixels found that its mask does not tell of: %s.",
        exposure.source or "The exposure",
        ", ".join(f"{name} {np.count_nonzero(plane)}" for name, plane in found.items()),
    )
    return exposure.replaced(mask=mask)
