"""Fields over the frame, such as backgrounds and the weights of kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import astropy.units
import numpy as np
import numpy.typing as npt
from lsst.images import Box, Image
from lsst.images.fields import BaseField, ChebyshevField, SplineField
from lsst.images.serialization import OutputArchive

from ..errors import ArgumentError
from ..polynomials import chebyshev_products, chebyshev_terms
from ..spatial import interpolated_cells, interpolated_cells_at

__all__ = [
    "GridField",
    "PiecewiseField",
    "evaluated",
    "overlap",
    "rows_of",
    "scaled_to",
    "scattered_fit",
    "slices_of",
]

type Array = npt.NDArray[Any]

_WELL_CONDITIONED = 30.0
"""Condition number up to which positions carry the polynomials that are fitted to them."""


@final
class GridField(BaseField):
    """Values in the middles of square cells, interpolated linearly.

    Follows what no polynomial does, such as a step of the noise between two amplifiers.

    Parameters
    ----------
    bounds
        Box, of which the first cell's corner is the first pixel's.
    values
        ``(cells_y, cells_x)``, enough to cover the box.
    cell
        Side of a cell, pixels.

    Notes
    -----
    Beyond the middles of the outer cells their values hold.  In an lsst.images archive it is
    a `lsst.images.fields.SplineField` through the same values.
    """

    def __init__(self, bounds: Box, values: Array, cell: int) -> None:
        needed = tuple(-(-n // cell) for n in bounds.shape)
        if values.shape != needed:
            raise ArgumentError(
                f"{bounds} has {needed[0]} x {needed[1]} cells of {cell} pixels; got values of the"
                f" shape {values.shape}."
            )
        self._bounds, self._values, self._cell = bounds, values, cell

    @property
    def bounds(self) -> Box:
        """Box in which it is defined."""
        return self._bounds

    @property
    def unit(self) -> None:
        """No unit."""
        return

    @property
    def values(self) -> Array:
        """Values in the middles of the cells, ``(cells_y, cells_x)``."""
        return self._values

    @property
    def cell(self) -> int:
        """Side of a cell, pixels."""
        return self._cell

    @property
    def is_constant(self) -> bool:
        """Whether all values are the same."""
        return bool((self._values == self._values[0, 0]).all())

    def _evaluate(self, *, x: Array, y: Array, quantity: bool = False) -> Any:
        x, y = np.broadcast_arrays(x, y)
        result = interpolated_cells_at(
            self._values, self._cell, y - self._bounds.y.start, x - self._bounds.x.start
        )
        return result * astropy.units.dimensionless_unscaled if quantity else result

    def render(self, bbox: Box | None = None, *, dtype: npt.DTypeLike | None = None) -> Image:
        """Values at the pixels of a box.

        Parameters
        ----------
        bbox
            Box; all of it if None.
        dtype
            Of the image.

        Returns
        -------
        image
            With that box.
        """
        box = self._bounds if bbox is None else bbox
        rows, columns = (
            slice(part.start - whole.start, part.stop - whole.start)
            for part, whole in ((box.y, self._bounds.y), (box.x, self._bounds.x))
        )
        values = interpolated_cells(self._values, self._cell, rows, columns)
        return Image(values.astype(dtype or np.float64), bbox=box)

    def _multiply_constant(self, factor: Any) -> GridField:
        return GridField(self._bounds, self._values * float(factor), self._cell)

    def serialize(self, archive: OutputArchive[Any]) -> Any:
        """Write to an lsst.images archive, as a spline.

        Parameters
        ----------
        archive
            Archive to write to.

        Returns
        -------
        model
            Of a `lsst.images.fields.SplineField`.
        """
        positions = [
            interval.start - 0.5 + self._cell * (np.arange(n) + 0.5)
            for interval, n in zip(
                (self._bounds.y, self._bounds.x), self._values.shape, strict=True
            )
        ]
        spline = SplineField(self._bounds, self._values.copy(), y=positions[0], x=positions[1])
        return spline.serialize(archive)


@final
class PiecewiseField(BaseField):
    """Fields that hold on parts of the frame, such as the regions of a program that tiles it.

    Parameters
    ----------
    bounds
        Box in which it is defined.
    pieces
        Parts and their fields, each defined on its part.  Where parts overlap the later one
        holds, and beyond all of them the nearest pixel of the nearest.
    """

    def __init__(self, bounds: Box, pieces: Sequence[tuple[Box, BaseField]]) -> None:
        if not pieces:
            raise ArgumentError("A field in pieces needs at least one.")
        self._bounds, self._pieces = bounds, tuple(pieces)

    @property
    def bounds(self) -> Box:
        """Box in which it is defined."""
        return self._bounds

    @property
    def unit(self) -> None:
        """No unit."""
        return

    @property
    def pieces(self) -> tuple[tuple[Box, BaseField], ...]:
        """Parts and their fields."""
        return self._pieces

    @property
    def is_constant(self) -> bool:
        """Whether it is known to be the same everywhere, which it is not."""
        return False

    def piece_at(self, *, x: float, y: float) -> int:
        """Which part holds at a position.

        Parameters
        ----------
        x, y
            Pixel coordinates.

        Returns
        -------
        index
            In `pieces`.
        """
        return int(self._nearest(np.array([x]), np.array([y]))[0])

    def _nearest(self, x: Array, y: Array) -> Array:
        """Index of the piece of each position: the last of those that are the nearest."""
        best, index = np.full(np.shape(x), np.inf), np.zeros(np.shape(x), dtype=int)
        for i, (box, _) in enumerate(self._pieces):
            away = sum(
                np.maximum(0, np.abs(at - (part.start + (part.size - 1) / 2)) - part.size / 2)
                for at, part in ((x, box.x), (y, box.y))
            )
            nearer = away <= best
            best, index = np.where(nearer, away, best), np.where(nearer, i, index)
        return index

    def _evaluate(self, *, x: Array, y: Array, quantity: bool = False) -> Any:
        x, y = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
        index, result = self._nearest(x, y), np.zeros(x.shape)
        for i, (box, field) in enumerate(self._pieces):
            here = index == i
            if here.any():
                result[here] = field(
                    x=np.clip(x[here], box.x.start - 0.5, box.x.stop - 0.5),
                    y=np.clip(y[here], box.y.start - 0.5, box.y.stop - 0.5),
                )
        return result * astropy.units.dimensionless_unscaled if quantity else result

    def render(self, bbox: Box | None = None, *, dtype: npt.DTypeLike | None = None) -> Image:
        """Values at the pixels of a box.

        Parameters
        ----------
        bbox
            Box; all of it if None.
        dtype
            Of the image.

        Returns
        -------
        image
            With that box.
        """
        whole = self._bounds if bbox is None else bbox
        x, y = np.arange(whole.x.start, whole.x.stop), np.arange(whole.y.start, whole.y.stop)
        index = self._nearest(x[None, :], y[:, None])
        result = np.zeros(whole.shape)
        for i, (box, field) in enumerate(self._pieces):
            here = index == i
            part = overlap(box, whole)
            if part is not None:
                rows, columns = slices_of(part, whole)
                chosen = here[rows, columns]
                np.copyto(result[rows, columns], evaluated(field, part), where=chosen)
                here[rows, columns] = False
            if here.any():
                j, k = np.nonzero(here)
                result[j, k] = self._evaluate(x=x[k], y=y[j])
        return Image(result.astype(dtype or np.float64), bbox=whole)

    def _multiply_constant(self, factor: Any) -> PiecewiseField:
        return PiecewiseField(self._bounds, [(box, field * factor) for box, field in self._pieces])

    def serialize(self, archive: OutputArchive[Any]) -> Any:
        """Refuse: no field of lsst.images holds on parts of the frame.

        Parameters
        ----------
        archive
            Archive to write to.
        """
        raise ArgumentError(
            f"A field in {len(self._pieces)} pieces cannot be written to an lsst.images archive;"
            " write it as a plain HDU, or a part of the frame at a time."
        )


def overlap(one: Box, other: Box) -> Box | None:
    """Pixels that two boxes share.

    Parameters
    ----------
    one, other
        Boxes.

    Returns
    -------
    box
        None where they share none.
    """
    y, x = (
        (max(a.start, b.start), min(a.stop, b.stop))
        for a, b in ((one.y, other.y), (one.x, other.x))
    )
    return Box.factory[slice(*y), slice(*x)] if y[0] < y[1] and x[0] < x[1] else None


def slices_of(part: Box, whole: Box) -> tuple[slice, slice]:
    """Rows and columns of a box's array that belong to a part of it.

    Parameters
    ----------
    part
        Box inside.
    whole
        Box of the array.

    Returns
    -------
    rows, columns
        Slices.
    """
    rows, columns = (
        slice(a.start - b.start, a.stop - b.start)
        for a, b in ((part.y, whole.y), (part.x, whole.x))
    )
    return rows, columns


def scaled_to(field: ChebyshevField, box: Box) -> ChebyshevField:
    """The same polynomials, scaled to another box and defined there.

    Parameters
    ----------
    field
        Polynomials.
    box
        Box.

    Returns
    -------
    field
        Equal to the first everywhere.
    """
    coefficients, before = np.asarray(field.coefficients), field.bounds.bbox
    if before == box:
        return field
    for axis, (new, old) in enumerate(((box.y, before.y), (box.x, before.x))):
        # T_q of the old coordinate, in polynomials of the new one.
        middle = 2 * (new.start + new.size / 2 - old.start) / old.size - 1
        half, order = new.size / old.size, coefficients.shape[axis] - 1
        matrix = np.zeros((order + 1, order + 1))
        for q in range(order + 1):
            old_series = np.polynomial.chebyshev.Chebyshev.basis(q)
            series = old_series.convert(domain=[middle - half, middle + half])
            matrix[: q + 1, q] = np.pad(series.coef, (0, max(0, q + 1 - len(series.coef))))
        coefficients = np.moveaxis(np.tensordot(matrix, coefficients, axes=(1, axis)), 0, axis)
    return ChebyshevField(box, np.ascontiguousarray(coefficients))


def evaluated(field: BaseField, box: Box) -> Array:
    """Values of a field at the pixels of a box.

    Parameters
    ----------
    field
        Field.
    box
        Box.

    Returns
    -------
    values
        ``(ny, nx)`` float64.

    Notes
    -----
    Chebyshev polynomials as a product of matrices, many times faster than `BaseField.render`.
    """
    if not isinstance(field, ChebyshevField):
        return field.render(box).array
    domain = field.bounds.bbox
    basis = []
    for interval, whole, order in (
        (box.y, domain.y, field.y_order),
        (box.x, domain.x, field.x_order),
    ):
        pixels = np.arange(interval.start, interval.stop)
        scaled = 2 * (pixels - whole.start + 0.5) / whole.size - 1
        basis.append(np.polynomial.chebyshev.chebvander(scaled, order))
    return basis[0] @ np.asarray(field.coefficients) @ basis[1].T


def rows_of(box: Box, rows: slice) -> Box:
    """Some rows of a box.

    Parameters
    ----------
    box
        Box.
    rows
        Counted from its first.

    Returns
    -------
    part
        Box of all its columns.
    """
    return Box.factory[box.y.start + rows.start : box.y.start + rows.stop, box.x.start : box.x.stop]


def scattered_fit(
    values: Array, *, x: Array, y: Array, bounds: Box, order: int
) -> tuple[list[tuple[int, int]], Array]:
    """Fit Chebyshev polynomials over a box to numbers, or images, known at some positions.

    Parameters
    ----------
    values
        ``(n, ...)``.
    x, y
        ``(n,)`` pixel coordinates.
    bounds
        Box over which the polynomials run from −1 to 1.
    order
        Largest total order.  Terms that the positions do not determine, such as those in x
        where all have the same x, are left out.

    Returns
    -------
    terms
        Exponents (p of y, q of x) as of `whitediff.polynomials.chebyshev_terms`.
    coefficients
        ``(n_terms, ...)``.
    """
    u = 2 * (x - bounds.x.start + 0.5) / bounds.x.size - 1
    v = 2 * (y - bounds.y.start + 0.5) / bounds.y.size - 1
    most = (len(np.unique(y)) - 1, len(np.unique(x)) - 1)
    while True:
        terms = chebyshev_terms(order)
        use = [i for i, (p, q) in enumerate(terms) if p <= most[0] and q <= most[1]]
        matrix = chebyshev_products(order, u, v)[:, use]
        if order == 0 or (
            len(use) <= len(values) and float(np.linalg.cond(matrix)) < _WELL_CONDITIONED
        ):
            break
        order -= 1
    solution, *_ = np.linalg.lstsq(matrix, values.reshape(len(values), -1), rcond=None)
    return [terms[i] for i in use], solution.reshape(-1, *values.shape[1:])
