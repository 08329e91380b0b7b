"""Positions, fluxes and shapes of sources in an image whose noise is white.

Fits weigh all good pixels alike: weights 1/V would favour pixels with a low count if variance
planes were made of the counts, and lose flux of bright sources.  Errors are those of this estimate
under the variance plane; for noise of constant variance over a source no unbiased estimate has
smaller ones (Cramér-Rao).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from ..numerics import planes
from ..numerics.sinc import moved_stamps
from ..numerics.threads import in_threads, scipy_part, single_threaded_algebra

__all__ = [
    "Frame",
    "PointFits",
    "Psfs",
    "SourceFits",
    "Stamps",
    "adaptive_moments",
    "aperture_fluxes",
    "filter_errors",
    "fit_blends",
    "fit_fluxes",
    "fit_points",
    "fit_radius",
    "replaced_fits",
    "stamps_around",
]

type Array = npt.NDArray[Any]

type Psfs = Callable[[Array, Array], Array]
"""Function of array coordinates x and y, ``(n,)``, that gives the PSFs there: ``(n, py, px)``, unit
sum, origin at ``[py//2, px//2]``; or ``(1, py, px)`` if it is the same everywhere."""

_FITTED_POWER = 0.9999
"""Share of the sum of the squared PSF within the fitted radius."""
_LEAST_SUPPORT = 0.5
"""Share of a PSF's squared weight that must lie on good pixels."""

_ITERATIONS = 25
_FIRST_DAMPING = 1e-3
_LARGEST_DAMPING = 1e8
_LONGEST_STEP = 1.0
_RIDGE = 1e-12
"""Levenberg-Marquardt: most steps, first and largest damping, longest step in pixels; and the
relative addition to the diagonals of normal equations that keeps them solvable."""
_LARGEST_GROUP = 6
"""Most sources that are fitted together; in larger groups each is fitted by itself, without the
light of the others."""

_AROUND, _FAR_LARGER = 3, 3.0
"""Side of the square whose mean variance stands for its middle pixel's, and the multiple of that
mean from which the pixel's own variance counts."""

_ROUNDS = 10
_SETTLED = 0.1
"""Most rounds of fits to a crowd, which end when no flux changes by so many standard deviations."""

_EXTENT = 4
"""Groups whose sizes differ by less than these pixels share a size of stamps."""

_CHUNK = 1 << 19
"""Pixels of the stamps that are fitted at a time, about."""


def fit_radius(psf: Array) -> float:
    """Radius within which nearly all of a point source's information lies.

    Parameters
    ----------
    psf
        ``(py, px)``, origin at ``[py//2, px//2]``.

    Returns
    -------
    radius
        Pixels: 99.99 % of the sum of the squared PSF; 3 σ of a Gaussian.  At least 2.
    """
    y, x = (np.arange(n) - n // 2 for n in psf.shape)
    distance = np.hypot(y[:, None], x[None, :]).ravel()
    order = np.argsort(distance, kind="stable")
    power = np.cumsum(np.square(psf, dtype=np.float64).ravel()[order])
    index = int(np.searchsorted(power, _FITTED_POWER * power[-1]))
    return max(2.0, float(distance[order[index]]))


class Frame(NamedTuple):
    """An image with its variance and its good pixels.

    Attributes
    ----------
    image, variance
        ``(ny, nx)``, image_unit and its square.
    good
        ``(ny, nx)`` boolean: pixels that hold a measurement.
    """

    image: Array
    variance: Array
    good: Array


@dataclasses.dataclass(frozen=True)
class Stamps:
    """Pixels around some positions.

    Attributes
    ----------
    image, variance
        ``(n, s, s)`` float64, s odd; 0 and 1 in pixels that are not good.
    good
        ``(n, s, s)`` boolean: pixels that hold a measurement.
    row, column
        ``(n,)`` integers: array index of the middle pixel.
    """

    image: Array
    variance: Array
    good: Array
    row: Array
    column: Array

    @property
    def half(self) -> int:
        """Pixels on each side of the middle one."""
        return self.image.shape[1] // 2

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, which: Array | slice) -> Stamps:
        """Some of the stamps."""
        return Stamps(*(getattr(self, field.name)[which] for field in dataclasses.fields(self)))

    @property
    def expected_square(self) -> Array:
        """Expected square of a residual, ``(n, s, s)``.

        The mean variance of a pixel and its neighbours: a plane that is made of few photons is
        smallest where these happen to be fewest.  A variance far above that mean has another
        reason, and is kept.
        """
        size = (0, _AROUND, _AROUND)
        known = scipy.ndimage.uniform_filter(self.good.astype(np.float64), size, mode="constant")
        around = scipy.ndimage.uniform_filter(self.variance * self.good, size, mode="constant")
        around /= np.maximum(known, 1 / _AROUND**2)
        usual = (self.variance < _FAR_LARGER * around) & (around > 0)
        result: Array = np.where(usual, around, self.variance)
        return result

    def within(self, x: Array, y: Array, radius: float) -> Array:
        """Pixels within a radius of any of some positions.

        Parameters
        ----------
        x, y
            ``(n, k)`` array coordinates.
        radius
            Pixels.

        Returns
        -------
        near
            ``(n, s, s)`` boolean.
        """
        grid = np.arange(-self.half, self.half + 1)
        dy = grid - (y - self.row[:, None])[:, :, None]
        dx = grid - (x - self.column[:, None])[:, :, None]
        return (dy[:, :, :, None] ** 2 + dx[:, :, None, :] ** 2 <= radius**2).any(axis=1)


def stamps_around(frame: Frame, x: Array, y: Array, half: int) -> Stamps:
    """Cut stamps out of an image.

    Parameters
    ----------
    frame
        Image; pixels that are not finite, or whose variance is not positive, are not good.
    x, y
        ``(n,)`` array coordinates; the nearest pixel becomes a stamp's middle.
    half
        Pixels on each side of the middle one.  Outside the frame nothing is good.

    Returns
    -------
    stamps
        `Stamps`.
    """
    image, variance, good = frame
    row, column = (np.floor(at + 0.5).astype(int) for at in (y, x))
    grid = np.arange(-half, half + 1)
    rows, columns = row[:, None] + grid, column[:, None] + grid
    inside = ((rows >= 0) & (rows < image.shape[0]))[:, :, None] & (
        (columns >= 0) & (columns < image.shape[1])
    )[:, None, :]
    at = (
        np.clip(rows, 0, image.shape[0] - 1)[:, :, None],
        np.clip(columns, 0, image.shape[1] - 1)[:, None, :],
    )
    values, noise = image[at].astype(np.float64), variance[at].astype(np.float64)
    with np.errstate(invalid="ignore"):
        use = inside & good[at] & np.isfinite(values) & np.isfinite(noise) & (noise > 0)
    return Stamps(np.where(use, values, 0.0), np.where(use, noise, 1.0), use, row, column)


def filter_errors(variance: Array, good: Array, psf: Array, x: Array, y: Array) -> Array:
    """Errors of point source fluxes that are measured by a filter with the PSF.

    Parameters
    ----------
    variance, good
        ``(ny, nx)``; pixels whose variance is not positive are not good.
    psf
        ``(n, py, px)`` of each place, or ``(1, py, px)``; origin at ``[py//2, px//2]``.
    x, y
        ``(n,)`` whole array coordinates.

    Returns
    -------
    error
        ``(n,)`` √(Σ P² V) / Σ P² over good pixels, image_unit: the flux over its significance
        (`whitediff.noise.significance.point_source_significance`).  NaN where less than half of
        ΣP² is on good pixels.
    """
    half = (min(psf.shape[1:]) - 1) // 2
    rows, columns = (slice(n // 2 - half, n // 2 + half + 1) for n in psf.shape[1:])
    square = np.square(psf[:, rows, columns])
    grid = np.arange(-half, half + 1)
    row, column = (np.floor(at + 0.5).astype(int)[:, None] + grid for at in (y, x))
    inside = [(at >= 0) & (at < n) for at, n in zip((row, column), variance.shape, strict=True)]
    at = tuple(np.clip(k, 0, n - 1) for k, n in zip((row, column), variance.shape, strict=True))
    place = at[0][:, :, None], at[1][:, None, :]
    local, use = variance[place], good[place] & inside[0][:, :, None] & inside[1][:, None, :]
    with np.errstate(invalid="ignore"):
        use &= (local > 0) & (local < np.inf)
    local = np.where(use, local, 0).astype(np.float64, copy=False)
    if len(square) == 1:
        power, noise = (np.tensordot(each, square[0], 2) for each in (use, local))
    else:
        power, noise = (np.einsum("nij,nij->n", each, square) for each in (use, local))
    enough = power >= _LEAST_SUPPORT * square.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Array = np.where(enough, np.sqrt(noise) / power, np.nan)
    return result


@dataclasses.dataclass(frozen=True)
class PointFits:
    """Point sources fitted to stamps, k to each.

    Attributes
    ----------
    x, y
        ``(n, k)`` array coordinates.
    flux
        ``(n, k)`` image_unit.
    covariance
        ``(n, 3k, 3k)``: flux, x, y of the first source, then of the second, …; zero for positions
        that were held.
    chi_square
        ``(n, k)`` Σ (image − model)²/variance over the fitted pixels about each source, with
        `Stamps.expected_square` as the variance.
    pixels
        ``(n, k)`` number of these pixels.
    total_chi_square, total_pixels
        ``(n,)`` over all fitted pixels.
    failed
        ``(n,)`` boolean: no solution near the start; the positions are the starts.
    """

    x: Array
    y: Array
    flux: Array
    covariance: Array
    chi_square: Array
    pixels: Array
    total_chi_square: Array
    total_pixels: Array
    failed: Array

    def error(self, which: int) -> Array:
        """Standard deviations of one parameter of every source.

        Parameters
        ----------
        which
            0 flux, 1 x, 2 y.

        Returns
        -------
        error
            ``(n, k)``.
        """
        diagonal = np.diagonal(self.covariance, axis1=1, axis2=2)[:, which::3]
        return np.sqrt(np.maximum(diagonal, 0))

    @property
    def xy_covariance(self) -> Array:
        """``(n, k)`` covariance of x and y of every source, pixel²."""
        k = np.arange(self.x.shape[1])
        return self.covariance[:, 3 * k + 1, 3 * k + 2]


def fit_fluxes(stamps: Stamps, psf: Array, x: Array, y: Array, *, radius: float) -> PointFits:
    """Fit the fluxes of point sources at held positions to stamps.

    Parameters
    ----------
    stamps, psf
        As for `fit_points`.
    x, y
        ``(n, k)`` array coordinates.
    radius
        Pixels no farther than this from a source are fitted.

    Returns
    -------
    fits
        `PointFits`.  NaN where no good pixel determines a flux.
    """
    return _in_batches(_Fit(stamps, psf, (x, y), (x, y), radius), _Fit.fluxes)


def fit_points(
    stamps: Stamps,
    psf: Array,
    x: Array,
    y: Array,
    *,
    radius: float,
    furthest: float = math.inf,
    tolerance: float = 1e-4,
    region: tuple[Array, Array] | None = None,
) -> PointFits:
    """Fit the fluxes and positions of point sources to stamps.

    Parameters
    ----------
    stamps
        `Stamps`, with room for the radius about every source.
    psf
        ``(n, py, px)`` PSF of each stamp, unit sum, origin at ``[py//2, px//2]``; or
        ``(1, py, px)`` for all.
    x, y
        ``(n, k)`` array coordinates to start from.
    radius
        Pixels no farther than this from a start are fitted.
    furthest
        Pixels that a source may move from its start; steps beyond are refused, and the fit fails
        if none is left.  0: positions stay, but count as fitted for the errors.
    tolerance
        The fit ends where a step lowers χ² by less: 1e-4 moves no parameter by more than a
        hundredth of its error.
    region
        x and y, ``(n, m)`` each, in place of the starts: pixels within the radius about them are
        fitted.

    Returns
    -------
    fits
        `PointFits`.  NaN where no good pixel determines a flux.

    Notes
    -----
    Least squares with equal weights (Levenberg-Marquardt); the covariance is that of this estimate
    under the variance plane, ``(AᵀA)⁻¹ AᵀVA (AᵀA)⁻¹``.
    """
    about = (x, y) if region is None else region
    return _in_batches(
        _Fit(stamps, psf, (x, y), about, radius), lambda fit: fit.points(furthest, tolerance)
    )


def _in_batches(whole: _Fit, work: Callable[[_Fit], PointFits]) -> PointFits:
    """Fits of all stamps, in batches that bound the memory."""
    stamps = whole.stamps
    chunk = max(1, _CHUNK // stamps.image[0].size) if len(stamps) else 1
    parts = [slice(i, i + chunk) for i in range(0, len(stamps), chunk)]
    if not parts:
        return _no_fits(whole.start[0].shape[1])
    with single_threaded_algebra():
        found = in_threads(lambda part: work(whole[part]), parts)
    return PointFits(
        *(
            np.concatenate([getattr(part, field.name) for part in found])
            for field in dataclasses.fields(PointFits)
        )
    )


def _no_fits(k: int) -> PointFits:
    none, each = np.zeros(0), np.zeros((0, k))
    return PointFits(
        x=each,
        y=each,
        flux=each,
        covariance=np.zeros((0, 3 * k, 3 * k)),
        chi_square=each,
        pixels=each,
        total_chi_square=none,
        total_pixels=none,
        failed=np.zeros(0, bool),
    )


@dataclasses.dataclass(frozen=True)
class _Fit:
    """Stamps, the sources on them, and the places about which pixels are fitted."""

    stamps: Stamps
    psf: Array
    start: tuple[Array, Array]
    about: tuple[Array, Array]
    radius: float

    def __getitem__(self, part: slice) -> _Fit:
        """Some of the stamps."""
        psf = self.psf if len(self.psf) == 1 else self.psf[part]
        start, about = ((x[part], y[part]) for x, y in (self.start, self.about))
        return _Fit(self.stamps[part], psf, start, about, self.radius)

    @functools.cached_property
    def use(self) -> Array:
        """``(n, s, s)`` boolean: pixels that are fitted."""
        use: Array = self.stamps.good & self.stamps.within(*self.about, self.radius)
        return use

    @functools.cached_property
    def level(self) -> Array:
        """``(n,)`` mean variance of the fitted pixels."""
        number = np.maximum(self.use.sum(axis=(1, 2)), 1)
        level: Array = (self.use * self.stamps.variance).sum(axis=(1, 2)) / number
        return level

    def fluxes(self) -> PointFits:
        """Fit the fluxes alone."""
        everything = np.arange(len(self.stamps))
        failed = np.zeros(len(everything), bool)
        return self._finished(
            everything, *self._solved(everything, *self.start), failed=failed, held=True
        )

    def points(self, furthest: float, tolerance: float) -> PointFits:
        """Fit fluxes and positions."""
        x0, y0 = self.start
        n, k = x0.shape
        everything = np.arange(n)
        x, y = x0.copy(), y0.copy()
        flux, models, _ = self._solved(everything, x0, y0)
        square = self._square(everything, flux, models)
        damping = np.full(n, _FIRST_DAMPING)
        active = everything[np.isfinite(flux).all(axis=1) & (self.use.sum(axis=(1, 2)) > 3 * k)]
        failed = np.ones(n, bool)
        failed[active] = False
        if furthest == 0:
            active = active[:0]
        for _ in range(_ITERATIONS):
            if not len(active):
                break
            step = self._step(active, flux[active], models[active], damping[active])
            length = np.maximum(1, np.abs(step).max(axis=(1, 2)) / _LONGEST_STEP)
            step /= length[:, None, None]
            new_x, new_y = x[active] + step[:, :, 0], y[active] + step[:, :, 1]
            lost = np.hypot(new_x - x0[active], new_y - y0[active]).max(axis=1) > furthest
            new_flux, new_models, _ = self._solved(active, new_x, new_y)
            new_square = self._square(active, new_flux, new_models)
            gain = np.where(lost, -np.inf, square[active] - new_square)
            better = gain >= 0
            taken = active[better]
            x[taken], y[taken] = new_x[better], new_y[better]
            flux[taken], models[taken] = new_flux[better], new_models[better]
            square[taken] = new_square[better]
            damping[taken] *= 0.1
            damping[active[~better]] *= 10
            done = np.abs(gain) < tolerance * self.level[active]
            stuck = damping[active] > _LARGEST_DAMPING
            failed[active[stuck]] = True
            active = active[~(done | stuck)]
        failed[active] = True
        if failed.any():
            bad = np.flatnonzero(failed)
            x[bad], y[bad] = x0[bad], y0[bad]
            flux[bad], models[bad], _ = self._solved(bad, x[bad], y[bad])
        return self._finished(everything, flux, models, (x, y), failed=failed, held=False)

    def _solved(self, which: Array, x: Array, y: Array) -> tuple[Array, Array, tuple[Array, Array]]:
        """Best fluxes at positions, PSFs with slopes there, ``(n, 3, k, s, s)``, and positions."""
        psf = self.psf if len(self.psf) == 1 else self.psf[which]
        row, column = self.stamps.row[which], self.stamps.column[which]
        side = 2 * self.stamps.half + 1
        models = np.empty((len(which), 3, x.shape[1], side, side))
        for j in range(x.shape[1]):
            moved = moved_stamps(
                psf, y[:, j] - row, x[:, j] - column, self.stamps.half, slopes=True
            )
            for i, each in enumerate(moved):
                models[:, i, j] = each
        flat = (models[:, 0] * self.use[which][:, None]).reshape(*x.shape, -1)
        matrix = flat @ flat.swapaxes(1, 2)
        right = flat @ self.stamps.image[which].reshape(len(which), -1, 1)
        flux = _solve(matrix, right)[:, :, 0]
        return flux, models, (x, y)

    def _square(self, which: Array, flux: Array, models: Array) -> Array:
        residual = self._residual(which, flux, models)
        return np.einsum("nij,nij->n", residual, residual)

    def _residual(self, which: Array, flux: Array, models: Array) -> Array:
        model = np.einsum("nk,nkij->nij", flux, models[:, 0])
        return np.where(self.use[which], self.stamps.image[which] - model, 0.0)

    def _jacobian(self, which: Array, flux: Array, models: Array) -> Array:
        """Derivatives of the model by flux, x and y of every source, ``(n, 3k, s²)``."""
        n, k = flux.shape
        scale = flux[:, :, None, None]
        parts = np.stack([models[:, 0], scale * models[:, 2], scale * models[:, 1]], axis=2)
        parts *= self.use[which][:, None, None]
        return parts.reshape(n, 3 * k, -1)

    def _step(self, which: Array, flux: Array, models: Array, damping: Array) -> Array:
        jacobian = self._jacobian(which, flux, models)
        matrix = jacobian @ jacobian.swapaxes(1, 2)
        diagonal = np.einsum("nii->ni", matrix)
        diagonal *= 1 + damping[:, None]
        residual = self._residual(which, flux, models).reshape(len(which), -1, 1)
        step = _solve(matrix, jacobian @ residual)[:, :, 0]
        # Only positions take the step: fluxes are solved for exactly at the new ones.
        return step.reshape(len(which), -1, 3)[:, :, 1:]

    def _finished(
        self,
        which: Array,
        flux: Array,
        models: Array,
        place: tuple[Array, Array],
        *,
        failed: Array,
        held: bool,
    ) -> PointFits:
        n, k = flux.shape
        jacobian = self._jacobian(which, flux, models)
        if held:
            jacobian = jacobian[:, ::3]
        variance = self.stamps.variance.reshape(n, 1, -1)
        inverse = _inverse(jacobian @ jacobian.swapaxes(1, 2))
        covariance = inverse @ ((jacobian * variance) @ jacobian.swapaxes(1, 2)) @ inverse
        if held:
            full = np.zeros((n, 3 * k, 3 * k))
            full[:, ::3, ::3] = covariance
            covariance = full
        square = self._residual(which, flux, models) ** 2 / self.stamps.expected_square
        x0, y0 = self.start
        own = [
            self.use & self.stamps.within(x0[:, j : j + 1], y0[:, j : j + 1], self.radius)
            for j in range(k)
        ]
        return PointFits(
            x=place[0],
            y=place[1],
            flux=flux,
            covariance=covariance,
            chi_square=np.stack([(square * near).sum(axis=(1, 2)) for near in own], axis=1),
            pixels=np.stack([near.sum(axis=(1, 2)) for near in own], axis=1),
            total_chi_square=square.sum(axis=(1, 2)),
            total_pixels=self.use.sum(axis=(1, 2)),
            failed=failed | ~np.isfinite(flux).all(axis=1),
        )


def _scaled(matrix: Array) -> tuple[Array, Array, Array]:
    """Matrices of unit diagonal, the roots of the diagonals, and which of them are singular."""
    root = np.sqrt(np.einsum("nii->ni", matrix))
    empty = ~(root > 0).all(axis=1)
    root = np.where(root > 0, root, 1.0)
    scaled = matrix / (root[:, :, None] * root[:, None, :])
    k = matrix.shape[1]
    scaled[:, np.arange(k), np.arange(k)] = 1 + _RIDGE
    return scaled, root, empty


def _solve(matrix: Array, right: Array) -> Array:
    """Solutions of systems; NaN where an unknown does not appear."""
    scaled, root, empty = _scaled(matrix)
    solution = np.linalg.solve(scaled, right / root[:, :, None]) / root[:, :, None]
    solution[empty] = np.nan
    return solution


def _inverse(matrix: Array) -> Array:
    scaled, root, empty = _scaled(matrix)
    inverse = np.linalg.inv(scaled) / (root[:, :, None] * root[:, None, :])
    inverse[empty] = np.nan
    return inverse


@dataclasses.dataclass(frozen=True)
class SourceFits:
    """Point sources fitted to an image, one array element for each.

    Attributes
    ----------
    x, y
        ``(n,)`` array coordinates.
    flux, flux_error
        ``(n,)`` image_unit.
    x_error, y_error, xy_covariance
        ``(n,)`` pixels, and pixel².
    chi_square, pixels
        ``(n,)`` Σ (image − model)²/variance over the good pixels about it, and their number.
    failed
        ``(n,)`` boolean: the fit did not converge near the start; the position is the start.
    """

    x: Array
    y: Array
    flux: Array
    flux_error: Array
    x_error: Array
    y_error: Array
    xy_covariance: Array
    chi_square: Array
    pixels: Array
    failed: Array


def fit_blends(
    frame: Frame,
    x: Array,
    y: Array,
    group: Array,
    psfs: Psfs,
    *,
    radius: float,
    furthest: float,
    held: Array | None = None,
) -> SourceFits:
    """Fit point sources to an image, those of a group together.

    Parameters
    ----------
    frame
        Image.
    x, y
        ``(n,)`` array coordinates to start from.
    group
        ``(n,)`` integers: sources of the same number overlap.
    psfs
        PSFs; a group has the one at its first source.
    radius, furthest
        As for `fit_points`.
    held
        ``(n,)`` boolean: sources whose groups, of six at most, keep their positions; None if there
        are none.

    Returns
    -------
    fits
        `SourceFits`.

    Notes
    -----
    Groups of more than six are not fitted together but source by source, each without the light
    that the round before found in the others; the errors then leave out the others, and positions
    are not held.
    """
    names = [field.name for field in dataclasses.fields(SourceFits)]
    result = {name: np.full(len(x), np.nan) for name in names}
    result["failed"] = np.zeros(len(x), bool)
    order = np.argsort(group, kind="stable")
    _, first, size = np.unique(group[order], return_index=True, return_counts=True)
    # Groups of one size and extent have stamps of one shape, and are fitted as one array.
    for k in np.unique(size):
        if k > _LARGEST_GROUP:
            continue
        members = order[first[size == k][:, None] + np.arange(k)]
        middle_x, middle_y = x[members].mean(axis=1), y[members].mean(axis=1)
        extent = np.hypot(x[members] - middle_x[:, None], y[members] - middle_y[:, None])
        steps = np.ceil(extent.max(axis=1) / _EXTENT).astype(int)
        stays = np.zeros(len(members), bool) if held is None else held[members].any(axis=1)
        for step, stay in np.unique(np.stack([steps, stays], axis=1), axis=0):
            same = (steps == step) & (stays == bool(stay))
            use = members[same]
            half = math.ceil(radius) + 1 + int(step) * _EXTENT
            stamps = stamps_around(frame, middle_x[same], middle_y[same], half)
            psf = psfs(x[use[:, 0]], y[use[:, 0]])
            fits = fit_points(
                stamps, psf, x[use], y[use], radius=radius, furthest=0.0 if stay else furthest
            )
            _store(result, use, fits)
    crowd = order[np.repeat(size > _LARGEST_GROUP, size)]
    if len(crowd):
        _fit_crowd(result, crowd, frame, (x, y, group), psfs, (radius, furthest))
    return SourceFits(**result)


def replaced_fits(fits: SourceFits, which: Array, others: SourceFits) -> SourceFits:
    """Fits with some of them replaced.

    Parameters
    ----------
    fits
        Fits; not changed.
    which
        ``(m,)`` indices, or ``(n,)`` boolean: fits to replace.
    others
        Their replacements, in the same order.

    Returns
    -------
    fits
        New `SourceFits`.
    """
    columns = {}
    for field in dataclasses.fields(SourceFits):
        columns[field.name] = getattr(fits, field.name).copy()
        columns[field.name][which] = getattr(others, field.name)
    return SourceFits(**columns)


def _store(result: dict[str, Array], members: Array, fits: PointFits) -> None:
    for name, value in (
        ("x", fits.x),
        ("y", fits.y),
        ("flux", fits.flux),
        ("flux_error", fits.error(0)),
        ("x_error", fits.error(1)),
        ("y_error", fits.error(2)),
        ("xy_covariance", fits.xy_covariance),
        ("chi_square", fits.chi_square),
        ("pixels", fits.pixels),
        ("failed", np.broadcast_to(fits.failed[:, None], fits.x.shape)),
    ):
        result[name][members] = value


def _fit_crowd(
    result: dict[str, Array],
    crowd: Array,
    frame: Frame,
    starts: tuple[Array, Array, Array],
    psfs: Psfs,
    limits: tuple[float, float],
) -> None:
    """Fit the sources of large groups one by one, without the light of the others."""
    (x, y), group = (at[crowd] for at in starts[:2]), starts[2][crowd]
    radius, furthest = limits
    half = math.ceil(radius) + 1
    psf = psfs(x, y)
    clean = stamps_around(frame, x, y, half)
    # All pairs of a group in which the PSF of one reaches the stamp of the other.
    reach = half + psf.shape[1] // 2
    tree = scipy_part("spatial").cKDTree(np.stack([x, y], axis=1))
    pairs = tree.query_pairs(reach, output_type="ndarray")
    pairs = pairs[group[pairs[:, 0]] == group[pairs[:, 1]]]
    target, other = np.concatenate([pairs, pairs[:, ::-1]]).T
    place_x, place_y = x.copy(), y.copy()
    fits = fit_fluxes(clean, psf, x[:, None], y[:, None], radius=radius)
    flux = np.nan_to_num(fits.flux[:, 0]) / (1 + np.bincount(target, minlength=len(x)))
    for _ in range(_ROUNDS):
        image = clean.image.copy()
        for part in np.array_split(np.arange(len(target)), -(-len(target) * half**2 // _CHUNK)):
            i, j = target[part], other[part]
            (model,) = moved_stamps(
                psf if len(psf) == 1 else psf[j],
                place_y[j] - clean.row[i],
                place_x[j] - clean.column[i],
                half,
            )
            np.subtract.at(image, i, flux[j, None, None] * model)
        stamps = dataclasses.replace(clean, image=np.where(clean.good, image, 0.0))
        fits = fit_points(stamps, psf, x[:, None], y[:, None], radius=radius, furthest=furthest)
        place_x, place_y = fits.x[:, 0], fits.y[:, 0]
        before, flux = flux, np.nan_to_num(fits.flux[:, 0])
        if (np.abs(flux - before) < _SETTLED * np.nan_to_num(fits.error(0)[:, 0])).all():
            break
    _store(result, crowd[:, None], fits)


def aperture_fluxes(frame: Frame, x: Array, y: Array, radius: float) -> tuple[Array, Array]:
    """Fluxes in circular apertures, without any background or aperture correction.

    Parameters
    ----------
    frame
        Image.
    x, y
        ``(n,)`` array coordinates.
    radius
        Pixels.

    Returns
    -------
    flux, error
        ``(n,)``, image_unit; pixels count by the exact share that the circle covers.  Pixels that
        are not good count as the mean of the others.  NaN where there are none.

    Notes
    -----
    SEP (Barbary 2016; Bertin & Arnouts 1996).
    """
    import sep

    image, variance, good = frame
    if not len(x):
        return np.zeros(0), np.zeros(0)

    def is_bad(rows: slice) -> Array:
        noise = variance[rows]
        with np.errstate(invalid="ignore"):
            use = good[rows] & np.isfinite(image[rows]) & np.isfinite(noise) & (noise > 0)
        bad: Array = ~use
        return bad

    bad = planes.filled(image.shape, bool, is_bad)
    # SEP reads no masked pixel, and refuses arrays that are read-only or not contiguous.
    values, noise = (np.require(plane, requirements=["C", "W"]) for plane in (image, variance))
    flux, error, _ = sep.sum_circle(values, x, y, radius, var=noise, mask=bad, subpix=0)
    lost = ~(error > 0)
    return np.where(lost, np.nan, flux), np.where(lost, np.nan, error)


def adaptive_moments(stamps: Stamps, x: Array, y: Array, weight: Array) -> tuple[Array, ...]:
    """Second moments of sources, weighted with a Gaussian whose effect is taken out.

    Parameters
    ----------
    stamps
        `Stamps`.
    x, y
        ``(n,)`` array coordinates of the sources, about which the moments are taken.
    weight
        ``(n, 3)`` moments xx, yy, xy of the Gaussian weight, pixel²: those of the PSF.

    Returns
    -------
    xx, yy, xy
        ``(n,)`` pixel²: moments C by C⁻¹ = M⁻¹ − W⁻¹, of the weighted moments M and those of the
        weight W; exact for a Gaussian source.  NaN where noise leaves none.

    Notes
    -----
    One step of the iteration of Bernstein & Jarvis (2002, section 3), which for faint sources
    does not converge.
    """
    grid = np.arange(-stamps.half, stamps.half + 1)
    dy = (grid - (y - stamps.row)[:, None])[:, :, None]
    dx = (grid - (x - stamps.column)[:, None])[:, None, :]
    wxx, wyy, wxy = (weight[:, i, None, None] for i in range(3))
    determinant = wxx * wyy - wxy**2
    form = (wyy * dx**2 + wxx * dy**2 - 2 * wxy * dx * dy) / determinant
    weighted = stamps.image * stamps.good * np.exp(-0.5 * form)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weighted.sum(axis=(1, 2))
        xx = (weighted * dx**2).sum(axis=(1, 2)) / total
        yy = (weighted * dy**2).sum(axis=(1, 2)) / total
        xy = (weighted * dx * dy).sum(axis=(1, 2)) / total
        inner = xx * yy - xy**2
        outer = weight[:, 0] * weight[:, 1] - weight[:, 2] ** 2
        # The inverse of the source's own moments.
        ixx = yy / inner - weight[:, 1] / outer
        iyy = xx / inner - weight[:, 0] / outer
        ixy = -xy / inner + weight[:, 2] / outer
        own = ixx * iyy - ixy**2
        defined = (xx > 0) & (inner > 0) & (own > 0) & (ixx > 0)
        return tuple(np.where(defined, value / own, np.nan) for value in (iyy, ixx, -ixy))
