"""Telling point sources from dipoles, and from what is neither.

A star that two images place differently leaves a positive and a negative lobe side by side on
their difference.  What a source is, the misfits χ² of the models say: nothing, one point source,
two of opposite signs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.spatial

from .detection import Blends, Responses, Significance
from .photometry import PointFits, Psfs, SourceFits, Stamps, fit_points, stamps_around
from .resampling import moved_stamps

__all__ = ["Classes", "classified", "opposite_lobes"]

type Array = npt.NDArray[Any]

_LARGEST_SEPARATION = 2.0
"""Full widths at half maximum between the lobes' peaks: of a shift that is small against the PSF,
they are 1.2 apart (2√2 σ of a Gaussian)."""

_LEAST_LOBE = 3.5
"""Standard deviations of a second lobe that is not a peak of its own."""

_LEAST_GAIN = 25.0
"""By which two lobes must lower χ² below that of one."""

_LEAST_SHARE = 0.2
"""Part of the whole signal χ²(nothing) − χ²(dipole) that the second lobe must explain: lobes of
half of each other's flux."""

_TOLERANCE = 1e-3
"""Of χ², where fits of dipoles end: a thirtieth of the errors, along what they know badly."""

_SMALLEST_SEPARATION = 0.1
_CHANCE = 5.0
"""Standard deviations of χ² beyond which a misfit is none of chance."""

_MISMATCH = 0.05
"""Relative error of the PSF, as the root of the misfit over the signal, that a point may show."""

_EXTENDED = 1.3
"""Second moments over those of the PSF."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """What sources are.

    Attributes
    ----------
    label
        ``(n,)`` text: point, dipole, extended or artifact.
    absorbed
        ``(n,)`` boolean: the weaker lobe of a dipole, which the row of the stronger one holds.
    x, y
        ``(n,)`` array coordinates of the middle between the lobes; NaN, like all that follows,
        where no dipole was fitted.
    separation, separation_error
        ``(n,)`` pixels.
    angle, angle_error
        ``(n,)`` degrees from the x axis to the y axis: direction from the negative lobe to the
        positive one.
    positive_flux, positive_flux_error, negative_flux, negative_flux_error
        ``(n,)`` image_unit.
    reduced_chi_square
        ``(n,)`` of the dipole.
    """

    label: Array
    absorbed: Array
    x: Array
    y: Array
    separation: Array
    separation_error: Array
    angle: Array
    angle_error: Array
    positive_flux: Array
    positive_flux_error: Array
    negative_flux: Array
    negative_flux_error: Array
    reduced_chi_square: Array


def classified(
    image: Array,
    variance: Array,
    good: Array,
    blends: Blends,
    fits: SourceFits,
    found: Significance,
    responses: Responses,
    psfs: Psfs,
    *,
    size: Array,
    radius: float,
    fwhm: float,
) -> Classes:
    """Find out what sources are.

    Parameters
    ----------
    image, variance, good
        ``(ny, nx)``.
    blends, fits
        The sources, and their point source fits.
    found, responses
        Significance image, and what a point source looks like on it.
    psfs
        PSFs.
    size
        ``(n,)`` second moments over those of the PSF; NaN where they are not known.
    radius, fwhm
        Of the fits, and of the PSF, pixels.

    Returns
    -------
    classes
        `Classes`.

    Notes
    -----
    A dipole is fitted where a peak of the other sign is within two full widths at half maximum, or
    where what one point source leaves has a lobe of the other sign of 3.5 σ.  It is one if it
    lowers χ² by 25 and the second lobe explains a fifth of the signal.  Any other source is a point
    if its χ² is what chance (5 σ) and an error of 5 % of the PSF allow; else it is extended if
    its moments exceed the PSF's by 30 %, and otherwise an artifact.

    The separation of lobes that are closer than the PSF is wide, and their fluxes, are known much
    worse than their product: the errors say so.
    """
    n = len(fits.x)
    first, second, start = _pairs(blends, found, responses, fwhm)
    columns = {
        field.name: np.full(n, np.nan)
        for field in dataclasses.fields(Classes)
        if field.name not in ("label", "absorbed")
    }
    label, absorbed = _without_dipoles(fits, blends, size), np.zeros(n, bool)
    if not len(first):
        return Classes(label=label, absorbed=absorbed, **columns)
    pair, single, nothing = _fitted(
        image, variance, good, blends, fits, (first, second, start), psfs, radius, fwhm
    )
    signal = nothing - pair.total_chi_square
    gain = single - pair.total_chi_square
    dipole = (
        (pair.flux[:, 0] * pair.flux[:, 1] < 0)
        & (gain > _LEAST_GAIN)
        & (gain > _LEAST_SHARE * signal)
        & np.isfinite(pair.flux).all(axis=1)
    )
    for name, values in _columns(pair).items():
        columns[name][first] = values
    label[first[dipole]] = "dipole"
    weaker = second[dipole]
    absorbed[weaker[weaker >= 0]] = True
    return Classes(label=label, absorbed=absorbed, **columns)


def _without_dipoles(fits: SourceFits, blends: Blends, size: Array) -> Array:
    """Labels of sources that are no dipoles."""
    freedom = np.maximum(fits.pixels - 3, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        excess = fits.chi_square - freedom
        allowed = _CHANCE * np.sqrt(2 * freedom) + (_MISMATCH * fits.flux / fits.flux_error) ** 2
        point = (excess <= allowed) & ~fits.failed
        extended = (size > _EXTENDED) & ~fits.failed
    return np.where(point, "point", np.where(extended, "extended", "artifact")).astype("<U8")


def opposite_lobes(blends: Blends, fwhm: float) -> Array:
    """Sources that may be the two lobes of a dipole.

    Parameters
    ----------
    blends
        The sources.
    fwhm
        Of the PSF, pixels.

    Returns
    -------
    partner
        ``(n,)`` index of the other lobe: a peak of the other sign within two full widths at half
        maximum, the strongest pairs first; −1 for none.
    """
    peaks, amplitude = blends.peaks, blends.amplitude
    n = len(peaks)
    partner = np.full(n, -1)
    if n < 2:
        return partner
    tree = scipy.spatial.cKDTree(np.stack([peaks.x, peaks.y], axis=1))
    pairs = tree.query_pairs(_LARGEST_SEPARATION * fwhm, output_type="ndarray")
    pairs = pairs[amplitude[pairs[:, 0]] * amplitude[pairs[:, 1]] < 0]
    strength = np.abs(amplitude[pairs]).min(axis=1, initial=np.inf)
    for i, j in pairs[np.argsort(-strength, kind="stable")]:
        if partner[i] < 0 and partner[j] < 0:
            partner[i], partner[j] = j, i
    return partner


def _pairs(
    blends: Blends, found: Significance, responses: Responses, fwhm: float
) -> tuple[Array, Array, tuple[Array, Array]]:
    """Sources that may be dipoles: index, that of the other lobe or −1, and where that is."""
    peaks, strength = blends.peaks, np.abs(blends.amplitude)
    partner = opposite_lobes(blends, fwhm)
    index = np.arange(len(peaks))
    # Each pair once, by its stronger lobe.
    stronger = (strength > strength[partner]) | (
        (strength == strength[partner]) & (index < partner)
    )
    paired = np.flatnonzero((partner >= 0) & stronger)
    alone = np.flatnonzero(partner < 0)
    lobe, x, y = _second_lobes(alone, blends, found, responses, _LARGEST_SEPARATION * fwhm)
    return (
        np.concatenate([paired, alone[lobe]]),
        np.concatenate([partner[paired], np.full(len(x), -1)]),
        (
            np.concatenate([peaks.x[partner[paired]], x]),
            np.concatenate([peaks.y[partner[paired]], y]),
        ),
    )


def _second_lobes(
    which: Array,
    blends: Blends,
    found: Significance,
    responses: Responses,
    reach: float,
) -> tuple[Array, Array, Array]:
    """Sources around which a lobe of the other sign is left, and where that is."""
    half = math.floor(reach)
    grid = np.arange(-half, half + 1)
    peaks = blends.peaks
    row, column = (np.floor(at[which] + 0.5).astype(int) for at in (peaks.y, peaks.x))
    rows, columns = row[:, None] + grid, column[:, None] + grid
    ny, nx = found.image.shape
    inside = ((rows >= 0) & (rows < ny))[:, :, None] & ((columns >= 0) & (columns < nx))[:, None]
    at = (np.clip(rows, 0, ny - 1)[:, :, None], np.clip(columns, 0, nx - 1)[:, None, :])
    left = found.image[at].astype(np.float64)
    image, origin = responses.images, responses.near(peaks.x[which], peaks.y[which])
    # Without its own light; a neighbour's makes no lobe of the other sign that it is not itself.
    for place in np.unique(origin):
        use = origin == place
        (own,) = moved_stamps(
            image[place][None],
            peaks.y[which][use] - row[use],
            peaks.x[which][use] - column[use],
            half,
        )
        left[use] -= blends.amplitude[which][use][:, None, None] * own
    near = inside & found.searched[at] & (grid[:, None] ** 2 + grid**2 <= reach**2)
    opposite = np.where(near, -np.sign(blends.amplitude[which])[:, None, None] * left, -np.inf)
    flat = opposite.reshape(len(which), len(grid) ** 2)
    best = flat.argmax(axis=1)
    height = flat[np.arange(len(which)), best]
    least = math.sqrt(_LEAST_SHARE / 2) * np.abs(blends.amplitude[which])
    lobe = height > np.maximum(_LEAST_LOBE, least)
    y, x = row + best // len(grid) - half, column + best % len(grid) - half
    return lobe, x[lobe].astype(float), y[lobe].astype(float)


def _fitted(
    image: Array,
    variance: Array,
    good: Array,
    blends: Blends,
    fits: SourceFits,
    candidates: tuple[Array, Array, tuple[Array, Array]],
    psfs: Psfs,
    radius: float,
    fwhm: float,
) -> tuple[PointFits, Array, Array]:
    """Dipole fits, and the misfits of a single point source and of nothing there."""
    first, second, (other_x, other_y) = candidates
    peaks = blends.peaks
    x = np.stack([peaks.x[first], other_x], axis=1)
    y = np.stack([peaks.y[first], other_y], axis=1)
    half = math.ceil(radius + _LARGEST_SEPARATION * fwhm / 2) + 1
    stamps = stamps_around(image, variance, good, x.mean(axis=1), y.mean(axis=1), half)
    psf = psfs(peaks.x[first], peaks.y[first])
    stamps = _without_others(stamps, blends, fits, (first, second), psf)
    pair = fit_points(stamps, psf, x, y, radius=radius, furthest=fwhm, tolerance=_TOLERANCE)
    apart = np.hypot(pair.x[:, 0] - pair.x[:, 1], pair.y[:, 0] - pair.y[:, 1])
    # So close, two fluxes without end cancel each other.
    merged = (apart < _SMALLEST_SEPARATION) & ~pair.failed
    if merged.any():
        held = fit_points(
            stamps[merged], psf if len(psf) == 1 else psf[merged], x[merged], y[merged],
            radius=radius, furthest=0.0,
        )  # fmt: skip
        for field in dataclasses.fields(pair):
            getattr(pair, field.name)[merged] = getattr(held, field.name)
    single = fit_points(
        stamps, psf, x[:, :1], y[:, :1], radius=radius, furthest=fwhm, region=(x, y)
    )
    use = stamps.good & stamps.within(x, y, radius)
    nothing = np.where(use, stamps.image**2 / stamps.variance, 0).sum(axis=(1, 2))
    return pair, single.total_chi_square, nothing


def _without_others(
    stamps: Stamps, blends: Blends, fits: SourceFits, lobes: tuple[Array, Array], psf: Array
) -> Stamps:
    """Stamps without the light of sources that belong to no dipole of theirs."""
    first, second = lobes
    reach = stamps.half + max(psf.shape[1:]) // 2
    tree = scipy.spatial.cKDTree(np.stack([blends.peaks.x, blends.peaks.y], axis=1))
    near = tree.query_ball_point(np.stack([stamps.column, stamps.row], axis=1), reach)
    pairs = [
        (i, j)
        for i, found in enumerate(near)
        for j in found
        if j not in (first[i], second[i]) and np.isfinite(fits.flux[j])
    ]
    if not pairs:
        return stamps
    image = stamps.image.copy()
    for part in np.array_split(np.array(pairs), -(-len(pairs) // 512)):
        i, j = part.T
        (model,) = moved_stamps(
            psf if len(psf) == 1 else psf[i],
            fits.y[j] - stamps.row[i],
            fits.x[j] - stamps.column[i],
            stamps.half,
        )
        np.subtract.at(image, i, fits.flux[j, None, None] * model)
    return dataclasses.replace(stamps, image=np.where(stamps.good, image, 0.0))


def _columns(pair: PointFits) -> dict[str, Array]:
    """Numbers of the dipoles, the positive lobe first."""
    n = len(pair.x)
    positive = np.argmax(pair.flux, axis=1)
    index, which = np.arange(n), np.stack([positive, 1 - positive], axis=1)
    x, y, flux, error = (
        np.take_along_axis(each, which, axis=1)
        for each in (pair.x, pair.y, pair.flux, pair.error(0))
    )
    dx, dy = x[:, 0] - x[:, 1], y[:, 0] - y[:, 1]
    apart = np.hypot(dx, dy)
    places = 3 * which[:, :, None] + np.array([1, 2])
    # Covariance of the difference of the two positions.
    block = pair.covariance[index[:, None, None, None, None], places[:, :, None, :, None],
                            places[:, None, :, None, :]]  # fmt: skip
    moving = block[:, 0, 0] + block[:, 1, 1] - block[:, 0, 1] - block[:, 1, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        along = np.stack([dx, dy], axis=1) / apart[:, None]
        across = np.stack([-dy, dx], axis=1) / apart[:, None]
        spread = [np.sqrt(np.einsum("ni,nij,nj->n", u, moving, u)) for u in (along, across)]
        return {
            "x": x.mean(axis=1),
            "y": y.mean(axis=1),
            "separation": apart,
            "separation_error": spread[0],
            "angle": np.degrees(np.arctan2(dy, dx)),
            "angle_error": np.degrees(spread[1] / apart),
            "positive_flux": flux[:, 0],
            "positive_flux_error": error[:, 0],
            "negative_flux": flux[:, 1],
            "negative_flux_error": error[:, 1],
            "reduced_chi_square": pair.total_chi_square / np.maximum(pair.total_pixels - 6, 1),
        }
