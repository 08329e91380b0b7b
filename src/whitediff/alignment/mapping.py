"""Positions of one exposure's pixels on another, by their sky coordinates."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.polynomial.chebyshev as chebyshev
import numpy.typing as npt

from .. import astro
from ..errors import ArgumentError, DataError, one_line
from ..exposures.model import Exposure
from ..numerics.polynomials import chebyshev_products, chebyshev_terms
from ..numerics.transformation import Correction, Displacements

__all__ = ["PixelMap", "pixel_map", "positions_on", "taken_positions"]

type Array = npt.NDArray[Any]

_NODES = 33
_LARGEST_ORDER = 14
_TOLERANCE = 1e-4
"""Largest difference of the polynomials from the coordinates that is good enough, pixels."""
_MARGIN = 0.1
"""Share of the other exposure's sides by which positions in the fit may lie beyond its edges."""
_ITERATIONS = 50
_WRONG = 0.05
"""Distance from the wanted place on the sky, pixels, from which a found position is wrong."""


@dataclasses.dataclass(frozen=True)
class PixelMap:
    """Positions of an array's pixels on another array.

    Attributes
    ----------
    rows, columns
        Part of the array that may lie on the other one; nothing outside of it does.
    coefficients
        ``(2, order + 1, order + 1)``: y and x are ``Σ_pq [.., p, q] T_p(v) T_q(u)``, v and u
        from −1 to 1 between the outer edges of that part.
    error
        Largest difference from the sky coordinates at positions between the nodes of the fit,
        pixels of the other array.
    displacements
        Displacements to add, which vary too fast for the polynomials; None for none.
    """

    rows: slice
    columns: slice
    coefficients: Array
    error: float
    displacements: Displacements | None = None

    def _scaled(self, position: Any, interval: slice) -> Any:
        return 2 * (position - interval.start + 0.5) / (interval.stop - interval.start) - 1

    def on(self, rows: Array, columns: Array) -> tuple[Array, Array]:
        """Positions of the pixels of a grid.

        Parameters
        ----------
        rows, columns
            ``(ny,)``, ``(nx,)`` pixels of the array; may lie just outside the part.

        Returns
        -------
        y, x
            ``(ny, nx)``, pixels of the other array.
        """
        places = self._evaluated(self.coefficients, rows, columns)
        if self.displacements is not None:
            places = places + self.displacements.on(rows, columns)
        y, x = places
        return y, x

    def determinant(self, rows: Array, columns: Array) -> Array:
        """Area of a pixel, in pixels of the other array.

        Parameters
        ----------
        rows, columns
            As for `on`.

        Returns
        -------
        determinant
            ``(ny, nx)``; negative where the arrays are mirrored.
        """
        jacobian = self._derivatives()
        values = self._evaluated(jacobian.reshape(4, *jacobian.shape[2:]), rows, columns)
        if self.displacements is not None:
            values = values + self.displacements.derivatives_on(rows, columns).reshape(values.shape)
        dy_y, dy_x, dx_y, dx_x = values
        determinant: Array = dy_y * dx_x - dy_x * dx_y
        return determinant

    def at(self, row: Array, column: Array) -> tuple[Array, Array, Array]:
        """Positions and Jacobians at single places.

        Parameters
        ----------
        row, column
            ``(n,)`` pixels of the array.

        Returns
        -------
        y, x
            ``(n,)`` positions, pixels of the other array.
        jacobian
            ``(n, 2, 2)``: derivatives of (y, x) with respect to (row, column).
        """
        v, u = self._scaled(row, self.rows), self._scaled(column, self.columns)
        y, x = (chebyshev.chebval2d(v, u, c) for c in self.coefficients)
        derivatives = self._derivatives()
        jacobian = np.array([[chebyshev.chebval2d(v, u, c) for c in pair] for pair in derivatives])
        jacobian = np.moveaxis(jacobian, -1, 0)
        if self.displacements is not None:
            moved, slopes = self.displacements.at(np.asarray(row), np.asarray(column))
            y, x, jacobian = y + moved[:, 0], x + moved[:, 1], jacobian + slopes
        return y, x, jacobian

    def _evaluated(self, coefficients: Array, rows: Array, columns: Array) -> Array:
        v, u = self._scaled(rows, self.rows), self._scaled(columns, self.columns)
        along_y = chebyshev.chebvander(v, coefficients.shape[1] - 1)
        along_x = chebyshev.chebvander(u, coefficients.shape[2] - 1)
        values: Array = along_y @ coefficients @ along_x.T
        return values

    def _derivatives(self) -> Array:
        """Coefficients ``(2, 2, order + 1, order + 1)`` of the Jacobian."""
        n = self.coefficients.shape[1]
        result = np.zeros((2, 2, n, n))
        for i, coefficients in enumerate(self.coefficients):
            for j, interval in enumerate((self.rows, self.columns)):
                scale = 2 / (interval.stop - interval.start)
                derivative = chebyshev.chebder(coefficients, axis=j) * scale
                result[i, j, : derivative.shape[0], : derivative.shape[1]] = derivative
        return result


def positions_on(
    wcs: astro.wcs.WCS, other: astro.wcs.WCS, x: Array, y: Array
) -> tuple[Array, Array]:
    """Positions on another array that see the same sky.

    Parameters
    ----------
    wcs, other
        Celestial coordinates of two arrays, in any frames, with distortions (TPV, SIP).
    x, y
        ``(n,)`` pixels of the first.

    Returns
    -------
    x, y
        ``(n,)`` pixels of the other; NaN where there is no such place.

    Raises
    ------
    ArgumentError
        If the coordinates cannot be evaluated.
    """
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            frame = astro.wcs.utils.wcs_to_celestial_frame(other)
            sky = wcs.pixel_to_world(x, y).transform_to(frame)
            longitude, latitude = (
                angle.to_value(unit)
                for angle, unit in zip(
                    (sky.spherical.lon, sky.spherical.lat),
                    (other.wcs.cunit[other.wcs.lng], other.wcs.cunit[other.wcs.lat]),
                    strict=True,
                )
            )
            world = np.full((len(longitude), 2), np.nan)
            world[:, other.wcs.lng], world[:, other.wcs.lat] = longitude, latitude
            use = np.isfinite(world).all(axis=1)
            there = np.full_like(world, np.nan)
            # Far from the array a distortion may have no inverse, and the solution is wrong:
            # transforming it back shows that.
            there[use] = other.all_world2pix(world[use], 0, quiet=True, maxiter=_ITERATIONS)
            back = np.full_like(world, np.nan)
            use = np.isfinite(there).all(axis=1)
            back[use] = other.all_pix2world(there[use], 0)
    except Exception as error:
        # astropy and wcslib raise errors of many classes for coordinates that make no sense.
        raise ArgumentError(
            f"the sky coordinates of the one cannot be evaluated on the other ({one_line(error)});"
            " are they of the same field?"
        ) from error
    away, lng = back - world, other.wcs.lng
    away[:, lng] = (away[:, lng] + 180) % 360 - 180
    away[:, lng] *= np.cos(np.radians(world[:, other.wcs.lat]))
    scale = math.sqrt(abs(float(np.linalg.det(other.pixel_scale_matrix))))
    wrong = ~(np.abs(away).max(axis=1) < _WRONG * scale)
    there[wrong] = np.nan
    return there[:, 0], there[:, 1]


def taken_positions(
    science: Exposure, template: Exposure, y: Array, x: Array, *, by_wcs: bool = True
) -> Array:
    """Positions of a science exposure's pixels on a template before any correction.

    Parameters
    ----------
    science, template
        Exposures; with sky coordinates if ``by_wcs``.
    y, x
        ``(n,)`` pixels of the science exposure's array.
    by_wcs
        Use the sky coordinates; if False, positions are the same pixels.

    Returns
    -------
    positions
        ``(n, 2)`` (y, x) on the template's array; NaN where there is no such place.

    Raises
    ------
    ArgumentError
        If the coordinates cannot be evaluated.
    """
    if not by_wcs:
        return np.stack([np.asarray(y, dtype=np.float64), np.asarray(x, dtype=np.float64)], 1)
    wcs, other = science.wcs, template.wcs
    assert wcs is not None
    assert other is not None
    there_x, there_y = positions_on(wcs, other, x, y)
    return np.stack([there_y, there_x], 1)


def pixel_map(
    science: Exposure, template: Exposure, correction: Correction | None = None
) -> PixelMap:
    """Map from the pixels of a science exposure to those of a template.

    Parameters
    ----------
    science, template
        Exposures; their arrays' pixels count from 0, whatever their boxes are.
    correction
        Correction of the sky coordinates, or replacement for them; None to believe them.

    Returns
    -------
    map
        Polynomials of the least order, up to the 14th, that follows the sky coordinates to 1e-4
        pixels; else of the order that follows them best.

    Raises
    ------
    ArgumentError
        If sky coordinates are needed, and one of the two has none that can be understood.
    DataError
        If the exposures do not overlap.
    """
    name = template.source or "The template"
    by_wcs = correction is None or correction.by_wcs
    both = ((science.source or "The science image", science.wcs), (name, template.wcs))
    for each, found in both:
        if found is None and by_wcs:
            raise ArgumentError(
                f"{each}: has no sky coordinates (WCS) that can be understood, and without them in"
                " both images nothing says where the template's pixels lie; solve its astrometry"
                " first, or align by the stars (--align)."
            )

    def on_template(rows: Array, columns: Array) -> tuple[Array, Array]:
        taken = taken_positions(science, template, rows, columns, by_wcs=by_wcs)
        y, x = (taken if correction is None else correction.affine(taken)).T
        return y, x

    ny, nx = science.shape
    rows, columns = (
        a.ravel()
        for a in np.meshgrid(*(np.linspace(-0.5, n - 0.5, _NODES) for n in (ny, nx)), indexing="ij")
    )
    try:
        y, x = on_template(rows, columns)
    except ArgumentError as error:
        raise ArgumentError.of(name, f"{error}") from error
    inside = _near(y, x, template.shape, _node_distance(y, x))
    if not inside.any():
        raise DataError.of(
            name,
            f"does not overlap the science image: by their WCS the middle of the science"
            f" image lies at {_place(y, x)} of the template's {template.shape[0]} x"
            f" {template.shape[1]} pixels; are they of the same field? If a WCS is wrong,"
            " --align with --ignore-wcs goes by the stars alone.",
        )
    part = [_part(at[inside], n, n / (_NODES - 1)) for at, n in ((rows, ny), (columns, nx))]
    fitted = _fitted(on_template, part[0], part[1], template.shape)
    displacements = None if correction is None else correction.displacements
    return dataclasses.replace(fitted, displacements=displacements)


def _place(y: Array, x: Array) -> str:
    middle = len(y) // 2
    if not np.isfinite(y[middle] + x[middle]):
        return "no place"
    return f"(y, x) = ({y[middle]:.0f}, {x[middle]:.0f})"


def _node_distance(y: Array, x: Array) -> float:
    """Typical distance between neighbouring nodes on the template, pixels."""
    grids = [a.reshape(_NODES, _NODES) for a in (y, x)]
    steps = [np.abs(np.diff(grid, axis=axis)) for grid in grids for axis in (0, 1)]
    finite = [step[np.isfinite(step)] for step in steps]
    return max((float(np.median(step)) for step in finite if step.size), default=0.0)


def _near(y: Array, x: Array, shape: tuple[int, ...], least: float) -> Array:
    """Whether positions lie on an array or not far beyond its edges."""
    margins = [max(least, _MARGIN * n) for n in shape]
    with np.errstate(invalid="ignore"):
        near: Array = np.isfinite(y) & np.isfinite(x)
        for at, n, margin in zip((y, x), shape, margins, strict=True):
            near &= (at > -0.5 - margin) & (at < n - 0.5 + margin)
    return near


def _part(at: Array, n: int, step: float) -> slice:
    """Whole pixels from the first to the last of some positions, and a step more on each side."""
    start = max(0, int(np.floor(at.min() - step)))
    stop = min(n, int(np.ceil(at.max() + step)) + 1)
    return slice(start, max(stop, start + 1))


def _fitted(
    on_template: Callable[[Array, Array], tuple[Array, Array]],
    rows: slice,
    columns: slice,
    shape: tuple[int, ...],
) -> PixelMap:
    def sampled(n: int, inner: float) -> tuple[Array, Array, Array]:
        nodes = inner * np.cos(np.pi * (np.arange(n) + 0.5) / n)
        v, u = (grid.ravel() for grid in np.meshgrid(nodes, nodes, indexing="ij"))
        at = [
            part.start - 0.5 + 0.5 * (part.stop - part.start) * (1 + w)
            for part, w in ((rows, v), (columns, u))
        ]
        positions = np.stack(on_template(*at), 1)
        use = _near(positions[:, 0], positions[:, 1], shape, 0.0)
        return u[use], v[use], positions[use]

    # Errors are taken at other nodes than the fit's, where polynomials may swing.
    u, v, positions = sampled(_NODES, 1.0)
    test_u, test_v, test = sampled(_NODES - 8, 0.99)
    best: tuple[float, Array] | None = None
    for order in range(1, _LARGEST_ORDER + 1):
        design = chebyshev_products(order, u, v)
        if 2 * design.shape[1] > len(u) or not len(test):
            break
        solution, *_ = np.linalg.lstsq(design, positions, rcond=None)
        difference = chebyshev_products(order, test_u, test_v) @ solution - test
        error = float(np.abs(difference).max())
        if best is None or error < best[0]:
            coefficients = np.zeros((2, order + 1, order + 1))
            for term, values in zip(chebyshev_terms(order), solution, strict=True):
                coefficients[:, *term] = values
            best = (error, coefficients)
        if error < _TOLERANCE:
            break
    if best is None:
        raise DataError(
            f"only {len(u)} of {_NODES**2} positions on the science image lie on the template;"
            " they hardly overlap."
        )
    return PixelMap(rows, columns, best[1], best[0])
