"""Telling point sources from dipoles and from sources that are neither.

A source that moved, or that the two images place differently, leaves a positive and a negative
lobe side by side.  The lobes' fluxes and their distance can only be told apart if that distance is
not small against the PSF: a misregistered star gives only their product, the dipole moment.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..noise.significance import Significance
from ..numerics.profiles import FWHM_TO_SIGMA, UNDERSAMPLED_FWHM
from ..numerics.sinc import moved_stamps
from ..numerics.threads import scipy_part
from .peaks import Blends, Peaks
from .photometry import (
    Frame,
    PointFits,
    Psfs,
    SourceFits,
    Stamps,
    fit_blends,
    fit_fluxes,
    fit_points,
    replaced_fits,
    stamps_around,
)

__all__ = ["Classes", "classified", "opposite_lobes"]

type Array = npt.NDArray[Any]

_REACH = 2.0
"""Full widths at half maximum within which two lobes belong together."""

_FAINT_LOBE = 4.0
_FAINT_LOBE_SHARE = 0.2
"""Least significance of a lobe that is no source by itself, and its least share of the other's."""

_LEAST_GAIN = 25.0
"""Least χ² that a dipole must gain over a point: it has two or three parameters more."""

_LEAST_BALANCE = 0.1
"""Least ratio of a resolved dipole's fluxes; below, the second is an error of the PSF."""

_BATCH = 512
"""Candidates whose stamps and models are in memory at a time."""

_FURTHEST = 1.0
_TOLERANCE = 1e-2
"""Farthest that a lobe may move from its start, full widths; and change of χ² at which fits of two
lobes end: a tenth of the errors along the valley where fluxes grow as the separation shrinks."""

_RESOLVED = 3.0
"""Errors by which a separation must differ from zero for the fluxes to be told apart."""

_EXCESS = 5.0
_PSF_ERROR = 0.03
"""Excess of χ² that rules out a point, in standard deviations of χ², and part of the significance
that the PSF's error may add to the root of χ²."""

_ALIASED = 2.2
"""Relative error of a shifted undersampled star, over the root of a Gaussian's power beyond the
pixels' frequencies: measured at 1.6 pixels."""

_KERNEL_ERROR = 0.1
"""Part of the significance that residuals of no known shape may have: a kernel that few stars
determine leaves as much, all over the PSF."""

_SPIKE_PIXELS = 3
_MUCH_OF_EXCESS = 0.5
"""Pixels that are to blame for an artifact, and the share of the excess of χ² that counts as most
of it."""
_EXTENDED_GAIN = 25.0
"""Least χ² that a wider PSF or a second point must gain over a point."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """Classes of sources, and numbers of dipoles.

    Attributes
    ----------
    label
        ``(n,)`` text: point, dipole, extended or artifact.
    absorbed
        ``(n,)`` boolean: the weaker lobe of a dipole, which belongs to another source.
    group
        ``(n,)`` integers: sources with the same number overlap.
    moment, moment_error
        ``(n,)`` flux times separation, image_unit · pixel; this and all that follows are NaN
        where no dipole was found.
    angle
        ``(n,)`` degrees from x towards y, of the direction from the negative lobe to the positive.
    separation, separation_error
        ``(n,)`` pixels; NaN where the lobes are too close to be told apart.
    positive_flux, positive_flux_error, negative_flux, negative_flux_error
        ``(n,)`` image_unit; negative_flux is negative, and all are NaN where separation is.
    dipole_chi2
        ``(n,)`` reduced χ² of the dipole.
    """

    label: Array
    absorbed: Array
    group: Array
    moment: Array
    moment_error: Array
    angle: Array
    separation: Array
    separation_error: Array
    positive_flux: Array
    positive_flux_error: Array
    negative_flux: Array
    negative_flux_error: Array
    dipole_chi2: Array


def classified(
    frame: Frame,
    blends: Blends,
    fits: SourceFits,
    found: Significance,
    psfs: Psfs,
    *,
    radius: float,
    fwhm: float,
) -> tuple[Classes, SourceFits]:
    """Classify sources.

    Parameters
    ----------
    frame
        Image, as for `whitediff.detection.photometry.stamps_around`.
    blends, fits
        Sources, and the point sources fitted to them.
    found
        Significance that they were found on.
    psfs
        PSFs, as for `whitediff.detection.photometry.fit_blends`.
    radius
        Radius around a source within which pixels are fitted, pixels.
    fwhm
        Full width at half maximum of the PSF, pixels.

    Returns
    -------
    classes
        `Classes`.
    fits
        The fits; a dipole has that of a point source to its stronger lobe alone, since two free
        lobes next to each other have no useful fluxes.

    Notes
    -----
    Candidates are sources with a lobe of the other sign within two full widths: another source,
    or an extremum of at least 4 σ and a fifth of the source.  Three models are fitted to each, over
    the same pixels: one point source; two points at free positions; and a point with a gradient of
    the PSF in the middle of the lobes, to which a dipole tends for small separations.  It is a
    dipole if one of the latter two lowers χ² by 25, with a moment or with two fluxes that are
    significant.

    Among the others, sources that a point does not describe are extended if a PSF that is √2 times
    wider, or a second point, takes away most of the residual.  They are artifacts if three pixels
    are to blame, or if the residual is unexplained and more than a tenth of the source.
    """
    n = len(fits.x)
    label = np.full(n, "point", dtype="<U8")
    absorbed = np.zeros(n, bool)
    numbers = {field.name: np.full(n, np.nan) for field in dataclasses.fields(Classes)[3:]}
    main, lobes, partner = _candidates(blends, found, fwhm)
    if len(main):
        peaks = blends.peaks
        start = (
            np.stack([peaks.x[main], lobes[:, 0]], axis=1),
            np.stack([peaks.y[main], lobes[:, 1]], axis=1),
        )
        positive = peaks.significance[main] > 0
        parts = []
        for part in (slice(i, i + _BATCH) for i in range(0, len(main), _BATCH)):
            local = start[0][part], start[1][part]
            parts.append(_fitted(frame, local, positive[part], psfs, radius, fwhm))
        results = {name: np.concatenate([each[name] for each, _ in parts]) for name in parts[0][0]}
        is_dipole = np.concatenate([each for _, each in parts])
        chosen = main[is_dipole]
        label[chosen] = "dipole"
        for name, values in results.items():
            numbers[name][chosen] = values[is_dipole]
        weaker = partner[is_dipole]
        absorbed[weaker[weaker >= 0]] = True
        fits = _with_lobes_alone(fits, frame, peaks.x, peaks.y, chosen, psfs, radius, fwhm)
    doubtful = _doubtful(fits, blends.peaks.significance, fwhm) & (label == "point")
    which = np.flatnonzero(doubtful)
    if len(which):
        label[which] = _neither(frame, fits, blends.peaks.significance, which, psfs, radius, fwhm)
    return Classes(label=label, absorbed=absorbed, group=blends.group, **numbers), fits


def opposite_lobes(peaks: Peaks, fwhm: float) -> Array:
    """Sources that may be the two lobes of a dipole.

    Parameters
    ----------
    peaks
        Peaks of the sources.
    fwhm
        Full width at half maximum of the PSF, pixels.

    Returns
    -------
    partner
        ``(n,)`` index of the other lobe: a source of the other sign within two full widths, the
        brightest pairs first; −1 for none.
    """
    n = len(peaks)
    partner = np.full(n, -1)
    if n < 2:
        return partner
    side, height = np.sign(peaks.significance), np.abs(peaks.significance)
    tree = scipy_part("spatial").cKDTree(np.stack([peaks.x, peaks.y], axis=1))
    pairs = tree.query_pairs(_REACH * fwhm, output_type="ndarray")
    pairs = pairs[side[pairs[:, 0]] != side[pairs[:, 1]]]
    order = np.argsort(-np.minimum(height[pairs[:, 0]], height[pairs[:, 1]]), kind="stable")
    for i, j in pairs[order].tolist():
        if partner[i] < 0 and partner[j] < 0:
            partner[i], partner[j] = j, i
    return partner


def _candidates(blends: Blends, found: Significance, fwhm: float) -> tuple[Array, Array, Array]:
    """Sources that may be a dipole's stronger lobe, the place of the weaker one, and its index.

    The index is −1 where the weaker lobe is no source.
    """
    peaks = blends.peaks
    n = len(peaks)
    place = np.stack([peaks.x, peaks.y], axis=1)
    side, height = np.sign(peaks.significance), np.abs(peaks.significance)
    partner = opposite_lobes(peaks, fwhm)
    paired = partner >= 0
    stronger = paired & (
        (height > height[partner]) | ((height == height[partner]) & (np.arange(n) < partner))
    )
    main = np.flatnonzero(stronger)
    others = np.flatnonzero(~paired)
    rows, columns, value = _extremes(found.image, place[others], -side[others], _REACH * fwhm)
    # Compared in flux: a bright source has more noise in its middle than around it, which lowers
    # its significance there.
    light = -side[others] * found.filtered(rows, columns)
    enough = value >= _FAINT_LOBE
    enough &= light >= _FAINT_LOBE_SHARE * height[others] * peaks.noise[others]
    lobes = np.concatenate(
        [place[partner[main]], np.stack([columns[enough], rows[enough]], axis=1).astype(float)]
    )
    which = np.concatenate([main, others[enough]])
    return which, lobes, np.concatenate([partner[main], np.full(int(enough.sum()), -1)])


def _extremes(image: Array, place: Array, side: Array, reach: float) -> tuple[Array, Array, Array]:
    """Row, column and height of the highest pixel of a sign around positions."""
    if not len(place):
        return np.zeros(0, int), np.zeros(0, int), np.zeros(0)
    half = math.ceil(reach)
    grid = np.arange(-half, half + 1)
    disc = (grid[:, None] ** 2 + grid**2 <= reach**2).ravel()
    x, y = np.floor(place + 0.5).astype(int).T
    rows = (y[:, None, None] + grid[:, None] + 0 * grid).reshape(len(place), -1)[:, disc]
    columns = (x[:, None, None] + grid + 0 * grid[:, None]).reshape(len(place), -1)[:, disc]
    inside = (rows >= 0) & (rows < image.shape[0]) & (columns >= 0) & (columns < image.shape[1])
    values = image[np.clip(rows, 0, image.shape[0] - 1), np.clip(columns, 0, image.shape[1] - 1)]
    values = np.where(inside, values * side[:, None], -np.inf)
    best = values.argmax(axis=1)
    at = np.arange(len(place))
    return rows[at, best], columns[at, best], values[at, best]


def _fitted(
    frame: Frame,
    start: tuple[Array, Array],
    positive: Array,
    psfs: Psfs,
    radius: float,
    fwhm: float,
) -> tuple[dict[str, Array], Array]:
    """Dipoles fitted to candidates, and which candidates are dipoles.

    The first start of each candidate is its stronger lobe, positive or not.
    """
    x, y = start
    middle_x, middle_y = x.mean(axis=1), y.mean(axis=1)
    half = math.ceil(radius + _REACH * fwhm / 2) + 1
    stamps = stamps_around(frame, middle_x, middle_y, half)
    psf = psfs(middle_x, middle_y)
    point = fit_points(
        stamps, psf, x[:, :1], y[:, :1], radius=radius, furthest=_FURTHEST * fwhm, region=start
    )
    two = fit_points(
        stamps, psf, x, y, radius=radius, furthest=_FURTHEST * fwhm, tolerance=_TOLERANCE
    )
    moment, covariance, gradient_square = _gradient(stamps, psf, middle_x, middle_y, start, radius)
    separation, error = _separation(two)
    balance = np.abs(two.flux).min(axis=1) / np.abs(two.flux).max(axis=1)
    with np.errstate(invalid="ignore"):
        opposite = two.flux[:, 0] * two.flux[:, 1] < 0
        two_significant = (np.abs(two.flux) > _FAINT_LOBE * two.error(0)).all(axis=1)
        resolved = ~two.failed & opposite & (separation > _RESOLVED * error)
        resolved &= (balance > _LEAST_BALANCE) & two_significant
        # Otherwise the fit slides along a valley in which fluxes grow as the separation shrinks.
        resolved &= gradient_square - two.total_chi_square > _RESOLVED**2
    length = np.hypot(moment[:, 0], moment[:, 1])
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = moment / length[:, None]
        length_error = np.sqrt(np.einsum("ni,nij,nj->n", unit, covariance, unit))
    span, span_error = _moment(two, separation)
    length = np.where(resolved, span, length)
    length_error = np.where(resolved, span_error, length_error)
    best = np.where(resolved, np.minimum(two.total_chi_square, gradient_square), gradient_square)
    with np.errstate(invalid="ignore"):
        gained = point.total_chi_square - best > _LEAST_GAIN
        is_dipole = gained & (resolved | (length > _FAINT_LOBE * length_error))
    plus = np.where(positive, 0, 1)
    at = np.arange(len(plus))
    flux, flux_error = two.flux, two.error(0)
    dx = two.x[at, plus] - two.x[at, 1 - plus]
    dy = two.y[at, plus] - two.y[at, 1 - plus]
    angle = np.where(resolved, np.arctan2(dy, dx), np.arctan2(moment[:, 1], moment[:, 0]))
    pixels = (stamps.good & stamps.within(*start, radius)).sum(axis=(1, 2))
    free = np.maximum(pixels - np.where(resolved, 6, 5), 1)
    return {
        "moment": length,
        "moment_error": length_error,
        "angle": np.degrees(angle) % 360,
        "separation": np.where(resolved, separation, np.nan),
        "separation_error": np.where(resolved, error, np.nan),
        "positive_flux": np.where(resolved, flux[at, plus], np.nan),
        "positive_flux_error": np.where(resolved, flux_error[at, plus], np.nan),
        "negative_flux": np.where(resolved, flux[at, 1 - plus], np.nan),
        "negative_flux_error": np.where(resolved, flux_error[at, 1 - plus], np.nan),
        "dipole_chi2": best / free,
    }, is_dipole


def _moment(two: PointFits, separation: Array) -> tuple[Array, Array]:
    """Mean flux of two fitted points of opposite sign times their distance, and its error."""
    flux = np.abs(two.flux).mean(axis=1)
    slope = _separation_slope(two, separation) * flux[:, None]
    slope[:, 0::3] = np.sign(two.flux) * separation[:, None] / 2
    with np.errstate(invalid="ignore"):
        variance = np.einsum("ni,nij,nj->n", slope, two.covariance, slope)
        return flux * separation, np.sqrt(np.maximum(variance, 0))


def _separation_slope(two: PointFits, separation: Array) -> Array:
    """Derivatives of the distance by flux, x and y of both points."""
    slope = np.zeros((len(separation), 6))
    with np.errstate(invalid="ignore", divide="ignore"):
        slope[:, 4] = (two.x[:, 1] - two.x[:, 0]) / separation
        slope[:, 5] = (two.y[:, 1] - two.y[:, 0]) / separation
    slope[:, 1], slope[:, 2] = -slope[:, 4], -slope[:, 5]
    return slope


def _separation(two: PointFits) -> tuple[Array, Array]:
    """Distance of two fitted points, and its error."""
    dx, dy = two.x[:, 1] - two.x[:, 0], two.y[:, 1] - two.y[:, 0]
    length = np.hypot(dx, dy)
    slope = _separation_slope(two, length)
    with np.errstate(invalid="ignore"):
        variance = np.einsum("ni,nij,nj->n", slope, two.covariance, slope)
    return length, np.sqrt(np.maximum(variance, 0))


def _gradient(
    stamps: Stamps, psf: Array, x: Array, y: Array, about: tuple[Array, Array], radius: float
) -> tuple[Array, Array, Array]:
    """Fit a point with a gradient of the PSF at held positions: moment, covariance, χ²."""
    model = np.stack(
        moved_stamps(psf, y - stamps.row, x - stamps.column, stamps.half, slopes=True), axis=1
    )
    use = stamps.good & stamps.within(*about, radius)
    columns = (model * use[:, None]).reshape(len(x), 3, -1)
    matrix = columns @ columns.transpose(0, 2, 1)
    # Scaled to a unit diagonal, so that a few bad pixels do not make it look singular.
    root = np.sqrt(np.einsum("nii->ni", matrix))
    root = np.where(root > 0, root, 1.0)
    scaled = matrix / (root[:, :, None] * root[:, None, :])
    inverse = np.linalg.pinv(scaled, hermitian=True) / (root[:, :, None] * root[:, None, :])
    values = stamps.image.reshape(len(x), -1, 1)
    solution = (inverse @ (columns @ values))[:, :, 0]
    noise = stamps.variance.reshape(len(x), 1, -1)
    covariance = inverse @ ((columns * noise) @ columns.transpose(0, 2, 1)) @ inverse
    left = np.where(use, stamps.image - np.einsum("nk,nkij->nij", solution, model), 0)
    square = (left**2 / stamps.expected_square).sum(axis=(1, 2))
    # `moved_stamps` gives the slopes by y first.
    order = [2, 1]
    return solution[:, order], covariance[:, order][:, :, order], square


def _with_lobes_alone(
    fits: SourceFits,
    frame: Frame,
    x: Array,
    y: Array,
    which: Array,
    psfs: Psfs,
    radius: float,
    fwhm: float,
) -> SourceFits:
    """Fits in which some sources are one point each, from their peaks."""
    if not len(which):
        return fits
    alone = fit_blends(
        frame,
        x[which],
        y[which],
        np.arange(len(which)),
        psfs,
        radius=radius,
        furthest=_FURTHEST * fwhm,
    )
    return replaced_fits(fits, which, alone)


def _psf_error(fwhm: float) -> float:
    """Part of the significance that the PSF's error may add to a root of chi-square."""
    if fwhm >= UNDERSAMPLED_FWHM:
        return _PSF_ERROR
    beyond = 2 * math.erfc(math.pi * FWHM_TO_SIGMA * fwhm)
    return math.hypot(_PSF_ERROR, _ALIASED * math.sqrt(beyond))


def _doubtful(fits: SourceFits, significance: Array, fwhm: float) -> Array:
    """Sources that a point does not describe."""
    with np.errstate(invalid="ignore"):
        degrees = np.maximum(fits.pixels - 3, 1)
        allowed = degrees + _EXCESS * np.sqrt(2 * degrees)
        allowed += (_psf_error(fwhm) * significance) ** 2
        result: Array = fits.chi_square > allowed
    return result


def _neither(
    frame: Frame,
    fits: SourceFits,
    significance: Array,
    which: Array,
    psfs: Psfs,
    radius: float,
    fwhm: float,
) -> Array:
    """Labels of sources that a point does not describe."""
    x, y = fits.x[which], fits.y[which]
    half = math.ceil(radius) + 1
    stamps = stamps_around(frame, x, y, half)
    psf = psfs(x, y)
    point = fit_fluxes(stamps, psf, x[:, None], y[:, None], radius=radius)
    wide = fit_fluxes(stamps, _widened(psf, fwhm), x[:, None], y[:, None], radius=radius)
    (model,) = moved_stamps(psf, y - stamps.row, x - stamps.column, half)
    use = stamps.good & stamps.within(x[:, None], y[:, None], radius)
    left = np.where(use, stamps.image - point.flux[:, :, None] * model, 0)
    square = (left**2 / stamps.expected_square).reshape(len(x), -1)
    excess = square.sum(axis=1) - use.sum(axis=(1, 2))
    # Half of the excess in three pixels: a cosmic ray, a hot pixel, the end of a bad column.
    worst = np.sort(square, axis=1)[:, -_SPIKE_PIXELS:].sum(axis=1)
    spiky = worst > _MUCH_OF_EXCESS * excess
    # A neighbour that is no peak of its own stands where the residual is largest.
    brightest = np.argmax(left.reshape(len(x), -1) * np.sign(point.flux), axis=1)
    rows, columns = np.unravel_index(brightest, left.shape[1:])
    start = (
        np.stack([x, stamps.column + columns - half], axis=1),
        np.stack([y, stamps.row + rows - half], axis=1),
    )
    about = x[:, None], y[:, None]
    two = fit_points(stamps, psf, *start, radius=radius, furthest=fwhm, region=about)
    least = np.minimum(wide.total_chi_square, np.where(two.failed, np.inf, two.total_chi_square))
    gain = point.total_chi_square - least
    explained = (gain > _EXTENDED_GAIN) & (gain > _MUCH_OF_EXCESS * excess)
    wrong = spiky | (excess > (_KERNEL_ERROR * significance[which]) ** 2)
    return np.select([explained & ~spiky, wrong], ["extended", "artifact"], "point")


def _widened(psf: Array, fwhm: float) -> Array:
    """PSFs convolved with a Gaussian of their own width."""
    sigma = FWHM_TO_SIGMA * fwhm
    wide: Array = scipy.ndimage.gaussian_filter(psf, (0, sigma, sigma), mode="constant")
    return wide
