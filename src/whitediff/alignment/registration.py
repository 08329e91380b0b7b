"""Offsets of a template's stars from their expected positions, measured and corrected."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError, DataError
from ..exposures.model import Exposure
from ..noise.exposures import sources_apart, untrusted_pixels
from ..numerics.threads import in_threads, scipy_part, single_threaded_algebra
from ..numerics.transformation import Affine, Correction, Displacements, fit_affine, fit_change
from ..stars.candidates import Sources
from .correlation import correlated_shift
from .distortion import fit_distortion
from .mapping import taken_positions
from .pairing import Pairing, pair_lists
from .stars import StarList, centroids, find_stars

__all__ = [
    "Misalignment",
    "measured_correction",
    "measured_misalignment",
    "report_misalignment",
    "star_offset",
]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.match")

_NODES = 9
_SMALL = 0.03
"""Largest offset, pixels, with which the sky coordinates count as right."""
_SMALL_CORRELATED = 0.3
_LARGE = 0.3
_SIGNIFICANT = 5.0
_TOLD = 3.0
"""Errors up to which an offset after an alignment is not significant."""
_UNSEEN = 0.01
"""Displacement at a typical place of the frame, pixels, up to which a rotation or scale is none."""
_LOCAL = 0.15
"""Root mean square of local distortions, pixels, from which they are reported."""
_ENOUGH = 10
_TOLERANCES = (4.0, 2.5)
_REPEATED = 3
_MOST = 300
_FAINTEST = 20.0
_QUICK_SHIFT = 1.0
_QUICK_SCATTER = 1.0
_ENOUGH_QUICKLY = 5
_CENTROID_ERROR = 1.3
_FLUX_RANGE = 3.0
_LARGEST, _LARGEST_SIGMAS = 2.0, 1.0
"""Pixels, and widths of the science image's stars, beyond both of which an offset is refused."""


@dataclasses.dataclass(frozen=True)
class Misalignment:
    """Offsets of a template's stars from the science image's, on the same pixels.

    Attributes
    ----------
    shift
        (dx, dy): position of the template's stars less the science image's, in the middle of the
        frame, pixels.
    largest
        Largest offset over the frame, pixels.
    error
        Error of the shift along an axis, pixels; NaN from a cross-correlation.
    rotation, scale
        Rotation, degrees, and scale of the template's stars against the science image's; 0 and 1
        where not significant.
    scatter
        Local distortions: root mean square of the residuals along an axis, beyond their errors,
        pixels.
    stars
        Number of stars measured; 0 for a cross-correlation.
    """

    shift: tuple[float, float]
    largest: float
    error: float
    rotation: float
    scale: float
    scatter: float
    stars: int

    @property
    def is_large(self) -> bool:
        """Whether to warn: the largest offset is beyond 0.3 pixels, and it is significant.

        It is unless the shift is below 5 times its error, without any rotation or scale.
        """
        return self.largest > _LARGE and not (
            math.hypot(*self.shift) < _SIGNIFICANT * self.error
            and self.rotation == 0
            and self.scale == 1
        )

    def where(self, than: str) -> str:
        """The offset in words.

        Parameters
        ----------
        than
            Positions compared with, such as "where its WCS puts them".

        Returns
        -------
        text
            Part of a sentence, without its subject, the stars.
        """
        error = f" ± {self.error:.2g}" if math.isfinite(self.error) else ""
        text = f"lie {_vector(*self.shift)}{error} pixels (x, y) from {than}"
        turned = [
            *([f"rotated by {self.rotation:.3g} degrees"] if self.rotation else []),
            *([f"scale {self.scale:.5g}"] if self.scale != 1 else []),
        ]
        if turned:
            text += f" in the middle and up to {self.largest:.2f} elsewhere ({', '.join(turned)})"
        return text

    @property
    def is_significant(self) -> bool:
        """Whether the offset is significant; from a cross-correlation, whether it is large."""
        if math.isnan(self.error):
            return self.is_large
        by_shift = math.hypot(*self.shift) > _TOLD * self.error
        return by_shift or self.rotation != 0 or self.scale != 1

    @property
    def how(self) -> str:
        """How the offset was measured, in words."""
        return f"{self.stars} stars" if self.stars else "cross-correlation"


@single_threaded_algebra()
def measured_correction(
    science: Exposure, template: Exposure, *, use_wcs: bool = True, distortions: bool = False
) -> Correction | None:
    """Measure with stars where a science exposure's pixels lie on a template.

    Parameters
    ----------
    science, template
        Exposures.
    use_wcs
        Start from the sky coordinates where both exposures have some.
    distortions
        Correct smooth local distortions as well, where the stars support them.

    Returns
    -------
    correction
        Correction of the sky coordinates, or a replacement where an exposure has none or they are
        to be ignored.  None where they are right to 0.03 pixels or within the errors, where they
        put the template beside the science image, or where there are too few stars.

    Raises
    ------
    DataError
        If there are enough stars and they do not match, or too few stars and no sky coordinates
        to rely on.
    """
    by_wcs = use_wcs and science.wcs is not None and template.wcs is not None
    name = template.source or "The template"
    start = _linear(science, template) if by_wcs else Affine.identity()
    if start is None:
        return None
    looked = in_threads(_looked_at, (science, template))
    (first_flat, first), (second_flat, second) = looked
    shapes = (science.shape, template.shape)
    pairing = pair_lists(first, second, shapes=shapes, start=start)
    if pairing is None or not pairing.is_real:
        flats = first_flat, second_flat
        return _by_correlation(science, template, flats, (first, second), pairing, by_wcs, use_wcs)
    taken = taken_positions(science, template, first.yx[:, 0], first.yx[:, 1], by_wcs=by_wcs)
    change = pairing.transformation
    if by_wcs:
        # The change applies to positions by the WCS, so its linear part is taken out.
        inverse = np.linalg.inv(start.matrix)
        change = change.after(Affine(inverse, -inverse @ start.offset))
    field: Displacements | None = None
    moved = np.zeros_like(taken)
    text = ""
    for i in range(_REPEATED):
        tolerance = _TOLERANCES[min(i, len(_TOLERANCES) - 1)] * max(
            1.0, pairing.transformation.scale
        )
        one, other = _nearest(change(taken) + moved, second.yx, tolerance)
        error = np.hypot(first.error[one] * pairing.transformation.scale, second.error[other])
        change, used, scatter, parameters = fit_change(
            taken[one], second.yx[other] - moved[one], error, fewest=0 if by_wcs else 4
        )
        if distortions:
            found = fit_distortion(first.yx[one], second.yx[other] - change(taken[one]), error)
            field = None if found is None else found.displacements
            moved = np.zeros_like(taken) if field is None else field.at(*first.yx.T)[0]
            text = "; these stars tell of no local distortions"
            if found is not None and field is not None:
                text = (
                    f"; local distortions of {found.before:.2g} pixels rms are taken out"
                    f" ({found.after:.2g} are left where no star is, length {field.length:.3g}"
                    " pixels)"
                )
    found_shift = _misalignment(
        change, used, scatter, error, _middle(science, template, by_wcs), parameters
    )
    if by_wcs and field is None and (parameters == 0 or found_shift.largest < _SMALL):
        _log.info(
            "%s: its %d stars confirm its WCS: they lie %.2g pixels rms from where it puts them.",
            name, int(used.sum()), scatter,
        )  # fmt: skip
        return None
    if by_wcs and parameters == 0:
        change = Affine.identity()
    if by_wcs:
        _log.info(
            "%s: its stars %s; corrected by %d of them to %.2g pixels rms%s.",
            name, found_shift.where("where its WCS puts them"), int(used.sum()), scatter, text,
        )  # fmt: skip
    else:
        _log.info(
            "%s: found by %d stars in common, which agree to %.2g pixels rms: %s%s, %.5g of its"
            " pixels to one of the science image's%s.",
            name, int(used.sum()), scatter,
            # The grid's rotation, as the resampling reports it, is opposite to the stars' on it.
            f"rotated by {-found_shift.rotation:.4g} degrees" if found_shift.rotation
            else "not rotated",
            " but mirrored" if np.linalg.det(change.matrix) < 0 else "", found_shift.scale, text,
        )  # fmt: skip
    if field is None and found_shift.scatter > _LOCAL and found_shift.stars >= _ENOUGH:
        _log.warning("%s: %s", name, _local(found_shift, sought=distortions))
    return Correction(change, field, by_wcs)


@single_threaded_algebra()
def star_offset(science: Exposure, template: Exposure) -> str:
    """Offset of a template's stars from where its WCS puts them, as text for a refusal.

    Parameters
    ----------
    science, template
        Exposures with sky coordinates.

    Returns
    -------
    text
        Part of a sentence, which begins with a semicolon; empty where stars do not tell.
    """
    start = _linear(science, template)
    if start is None:
        return ""
    (_, first), (_, second) = in_threads(_looked_at, (science, template))
    pairing = pair_lists(first, second, shapes=(science.shape, template.shape), start=start)
    if pairing is None or not pairing.is_real:
        return ""
    middle = (np.array([science.shape]) - 1) / 2
    places = np.concatenate([middle, np.transpose(_grid(science.shape))])
    apart = pairing.transformation(places) - start(places)
    dy, dx = apart[0]
    distance, largest = math.hypot(dy, dx), float(np.hypot(*apart.T).max())
    elsewhere = f" in the middle and up to {largest:.2f} elsewhere"
    return (
        f"; its stars lie {_vector(dx, dy)} pixels (x, y) from where its WCS puts them"
        f"{elsewhere if largest > distance + _LARGE else ''} ({len(pairing)} stars), which --align"
        " corrects"
    )


def _vector(dx: float, dy: float) -> str:
    return "({}, {})".format(*(f"{value:+.2f}".replace("-", "−") for value in (dx, dy)))


def _local(found: Misalignment, *, sought: bool) -> str:
    remedy = (
        f"its {found.stars} stars are too few to tell how these go on between them, so that"
        " residuals of stars are expected"
        if sought
        else "take them out (--register), in a pipeline by alignPositions"
    )
    return (
        f"local distortions of {found.scatter:.2g} pixels rms are left of its stars' positions;"
        f" {remedy}."
    )


def _looked_at(exposure: Exposure) -> tuple[Array, StarList]:
    bad = untrusted_pixels(exposure)
    if bad.all():
        return np.zeros(bad.shape, np.float32), find_stars(np.zeros(bad.shape, np.float32), bad)
    _, flat = sources_apart(exposure, bad)
    return flat, find_stars(flat, bad)


def _grid(shape: tuple[int, int]) -> tuple[Array, Array]:
    y, x = (
        a.ravel()
        for a in np.meshgrid(*(np.linspace(0, n - 1, _NODES) for n in shape), indexing="ij")
    )
    return y, x


def _linear(science: Exposure, template: Exposure) -> Affine | None:
    """The sky coordinates as an affine transformation; None where they have no common place."""
    y, x = _grid(science.shape)
    try:
        there = taken_positions(science, template, y, x)
    except ArgumentError:
        # Resampling by them raises the error that the user sees.
        return None
    known = np.isfinite(there).all(axis=1)
    size = np.array(template.shape)
    if known.sum() < 6 or not ((there > -size) & (there < 2 * size))[known].all(axis=1).any():
        return None
    found, _, _ = fit_affine(
        np.stack([y, x], 1)[known], there[known], np.ones(int(known.sum())), parameters=6
    )
    return found


def _nearest(there: Array, places: Array, tolerance: float) -> tuple[Array, Array]:
    known = np.flatnonzero(np.isfinite(there).all(axis=1))
    distance, j = scipy_part("spatial").cKDTree(places).query(there[known])
    _, back = scipy_part("spatial").cKDTree(there[known]).query(places)
    own = np.flatnonzero((distance < tolerance) & (back[j] == np.arange(len(known))))
    return known[own], j[own]


def _middle(science: Exposure, template: Exposure, by_wcs: bool) -> Array:
    """Positions of the frame on the template before correction: its middle first, then a grid."""
    y, x = _grid(science.shape)
    middle = len(y) // 2
    order = np.concatenate([[middle], np.delete(np.arange(len(y)), middle)])
    there = taken_positions(science, template, y[order], x[order], by_wcs=by_wcs)
    return there[np.isfinite(there).all(axis=1)]


def _misalignment(
    change: Affine, used: Array, scatter: float, error: Array, frame: Array, parameters: int
) -> Misalignment:
    away = change(frame) - frame
    expected = math.sqrt(1 / float((np.hypot(error[used], 0.02) ** -2).mean()))
    error_of_shift = max(scatter, expected) / math.sqrt(max(1, int(used.sum())))
    # A turn or a scale that moves the frame by less than its error cannot be told from none.
    radius = math.sqrt(float(frame.var(axis=0).sum()))
    least = max(_TOLD * error_of_shift, _UNSEEN) / max(radius, 1.0)
    turned = parameters > 2 and abs(math.radians(change.rotation)) > least
    scaled = parameters > 2 and abs(change.scale - 1) > least
    return Misalignment(
        shift=(float(away[0, 1]), float(away[0, 0])),
        largest=float(np.hypot(*away.T).max()),
        error=error_of_shift,
        rotation=change.rotation if turned else 0.0,
        scale=change.scale if scaled else 1.0,
        scatter=math.sqrt(max(0.0, scatter**2 - expected**2)),
        stars=int(used.sum()),
    )


def _by_correlation(
    science: Exposure,
    template: Exposure,
    flats: tuple[Array, Array],
    lists: tuple[StarList, StarList],
    pairing: Pairing | None,
    by_wcs: bool,
    use_wcs: bool,
) -> Correction | None:
    """Correction by cross-correlation, where the stars of both images do not match."""
    name = template.source or "The template"
    first, second = lists
    if not by_wcs and use_wcs and not min(first.likely, second.likely):
        # The missing WCS is the trouble then, and the resampling names it.
        return None
    common = 0 if pairing is None else len(pairing)
    counts = (
        f"only {common} of its {second.likely} stars match one of the science image's"
        f" {first.likely}, no more than by chance"
    )
    shift = None
    # Without stars, both images may share only a pattern of the detector; without a WCS, they may
    # differ by more than a shift.
    if min(first.likely, second.likely) and by_wcs:
        shift = correlated_shift(flats[0], _sampled(science, template, flats[1]))
    if shift is not None:
        if float(np.hypot(*shift)) < _SMALL_CORRELATED:
            return None
        # The shift was measured on the science grid; the correction is in the template's pixels.
        linear = _linear(science, template)
        assert linear is not None
        offset = linear.matrix @ shift
        _log.warning(
            "%s: %s; by cross-correlation it lies (%+.2f, %+.2f) pixels (x, y) from where its WCS"
            " puts it, and is corrected by that; check the result.",
            name, counts, offset[1], offset[0],
        )  # fmt: skip
        return Correction(Affine(np.eye(2), offset), None, True)
    if not by_wcs:
        # Too few stars to conclude that the fields differ.
        few = min(first.likely, second.likely) < _ENOUGH
        known = science.wcs is not None and template.wcs is not None
        remedy = "leave out --ignore-wcs" if known else "give both a WCS (astrometry) to start from"
        why = ", too few to find where it lies"
        if not few:
            why, remedy = ": are both of the same field?", f"If they are, {remedy}"
        raise DataError.of(name, f"{counts}{why}{';' if few else ''} {remedy}.")
    if min(first.likely, second.likely) >= _ENOUGH:
        raise DataError.of(
            name,
            f"{counts}, and a cross-correlation finds nothing: are both of the same field,"
            " and is the WCS right (--ignore-wcs aligns by the stars alone)?",
        )
    if min(first.likely, second.likely):
        _log.warning(
            "%s: there are too few stars to check its WCS by (%d, and %d in the science image),"
            " which is believed.",
            name, second.likely, first.likely,
        )  # fmt: skip
    return None


def _sampled(science: Exposure, template: Exposure, flat: Array) -> Array:
    """The template's sources on the science image's grid, by a linear approximation."""
    linear = _linear(science, template)
    assert linear is not None
    return np.asarray(
        scipy.ndimage.affine_transform(
            flat, linear.matrix, linear.offset, output_shape=science.shape, order=1
        )
    )


def measured_misalignment(
    flats: tuple[Array, Array], bad: tuple[Array, Array], sources: Sources
) -> Misalignment | None:
    """Measure offsets between the stars of two images on the same pixels.

    Parameters
    ----------
    flats
        ``(ny, nx)`` float32 science image and template without their backgrounds.
    bad
        ``(ny, nx)`` boolean: their pixels without a measurement.
    sources
        Sources of the science image, measured on both.

    Returns
    -------
    misalignment
        None where neither stars nor a cross-correlation tell.

    Notes
    -----
    Centroids are first measured on both images at the science image's stars.  Where they do not
    agree within a pixel, stars are found on each image and paired.
    """
    shape = flats[0].shape
    y, x = _grid((shape[0], shape[1]))
    middle = len(y) // 2
    frame = np.stack([y, x], 1)[np.r_[middle, np.delete(np.arange(len(y)), middle)]]
    quick = _quickly(flats, bad, sources, frame)
    if quick is not None:
        return quick
    first, second = (find_stars(flat, each) for flat, each in zip(flats, bad, strict=True))
    pairing = pair_lists(first, second, shapes=(shape, shape), start=Affine.identity())
    if pairing is not None and pairing.is_real:
        i, j = pairing.first, pairing.second
        error = np.hypot(first.error[i], second.error[j])
        change, used, scatter, parameters = fit_change(first.yx[i], second.yx[j], error)
        return _misalignment(change, used, scatter, error, frame, parameters)
    shift = correlated_shift(*flats)
    if shift is None:
        return None
    distance = float(np.hypot(*shift))
    return Misalignment((float(shift[1]), float(shift[0])), distance, math.nan, 0.0, 1.0, 0.0, 0)


def _quickly(
    flats: tuple[Array, Array], bad: tuple[Array, Array], sources: Sources, frame: Array
) -> Misalignment | None:
    good = sources.clean & (sources.signal_to_noise > _FAINTEST) & (sources.template_flux > 0)
    if good.sum() < _ENOUGH_QUICKLY:
        return None
    ratio = sources.template_flux / np.where(sources.flux > 0, sources.flux, np.inf)
    typical = float(np.median(ratio[good]))
    good &= (ratio > typical / _FLUX_RANGE) & (ratio < typical * _FLUX_RANGE)
    chosen = np.flatnonzero(good)
    chosen = chosen[np.argsort(-sources.signal_to_noise[chosen], kind="stable")[:_MOST]]
    x, y = sources.x[chosen], sources.y[chosen]
    places = []
    for flat, mask, radius in zip(
        flats, bad, (sources.science_radius, sources.template_radius), strict=True
    ):
        sigma = 0.849 * float(np.median(radius[chosen])) if len(chosen) else 1.0
        new_x, new_y = centroids(flat, x, y, sigma, mask)
        places.append(np.stack([new_y, new_x], 1))
    known = np.isfinite(places[0] + places[1]).all(axis=1)
    if known.sum() < max(_ENOUGH_QUICKLY, 0.5 * len(chosen)):
        return None
    first, second = places[0][known], places[1][known]
    radius = np.maximum(sources.science_radius, sources.template_radius)[chosen][known]
    # Both images' centroids are uncertain, and the template may be the noisier one.
    ratios = sources.signal_to_noise, np.maximum(sources.template_signal_to_noise, 1.0)
    error = _CENTROID_ERROR * radius * np.hypot(*(1 / each[chosen][known] for each in ratios))
    change, used, scatter, parameters = fit_change(first, second, error)
    found = _misalignment(change, used, scatter, error, frame, parameters)
    if used.sum() < 0.7 * len(first) or found.largest > _QUICK_SHIFT:
        return None
    if found.scatter > _QUICK_SCATTER:
        # Such centroids are not the stars' but their neighbours', such as cosmic rays.
        return None
    return found


def report_misalignment(
    found: Misalignment,
    template: Exposure,
    *,
    sigma: float,
    by_wcs: bool,
    positions: Literal["wcs", "stars", "distortions"] | None,
) -> None:
    """Log how far a template's stars lie off, and warn where it matters.

    Parameters
    ----------
    found
        Result of `measured_misalignment`.
    template
        The template, on the science image's pixels.
    sigma
        Width of the science image's stars, pixels.
    by_wcs
        Whether the template was placed by its WCS.
    positions
        How its positions were found for resampling; None where it was not resampled.

    Raises
    ------
    DataError
        If the stars lie farther off than a matching kernel reaches.
    """
    name = template.source or "The template"
    told = logging.INFO
    # An alignment by stars has reported local distortions, or corrected them.
    aligned = positions in ("stars", "distortions")
    if aligned:
        # The error of the WCS has been reported and corrected; this is the rest.
        where = f"{name}: after the alignment its stars still"
        where = f"{where} {found.where('those of the science image')} ({found.how})"
        if not found.is_significant:
            told = logging.DEBUG
    else:
        than = "where its WCS puts them" if by_wcs else "those of the science image"
        where = f"{name}: its stars {found.where(than)} ({found.how})"
    if found.is_large and found.largest > max(_LARGEST, _LARGEST_SIGMAS * sigma):
        raise DataError(f"{where}, farther than a matching kernel reaches; {_remedy(positions)}.")
    if found.is_large:
        _log.warning("%s; %s.", where, _remedy(positions))
    else:
        _log.log(told, "%s.", where)
    if found.scatter > _LOCAL and found.stars >= _ENOUGH and not aligned:
        _log.warning("%s: %s", name, _local(found, sought=False))


def _remedy(positions: str | None) -> str:
    if positions is None or positions == "wcs":
        return "--align corrects it, in a pipeline alignTemplate"
    if positions == "stars":
        return "--register may correct it, in a pipeline alignPositions"
    return "are there enough stars to align by?"
