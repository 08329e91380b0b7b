"""Fields over the frame, such as backgrounds and the weights of kernels."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, Self, final

import numpy as np
import numpy.polynomial.chebyshev as chebyshev
import numpy.typing as npt

from ..errors import ArgumentError
from ..numerics.compression import interpolated_cells, interpolated_cells_at
from ..numerics.polynomials import chebyshev_products, chebyshev_terms
from .boxes import Box

__all__ = [
    "ChebyshevField",
    "Field",
    "GridField",
    "PiecewiseField",
    "moved_to",
    "scaled_to",
    "scattered_fit",
]

type Array = npt.NDArray[Any]

_WELL_CONDITIONED = 30.0
"""Largest condition number with which positions determine a fit of polynomials."""


class Field(abc.ABC):
    """A number at every position of the frame."""

    @property
    @abc.abstractmethod
    def bounds(self) -> Box:
        """Box in which the field is defined."""

    @property
    @abc.abstractmethod
    def is_constant(self) -> bool:
        """Whether the field is known to be constant."""

    @abc.abstractmethod
    def at(self, x: Array, y: Array) -> Array:
        """Values at positions.

        Parameters
        ----------
        x, y
            Pixel coordinates, float64 of the same shape.

        Returns
        -------
        values
            Float64, same shape.
        """

    @abc.abstractmethod
    def scaled(self, factor: float) -> Self:
        """The field times a number.

        Parameters
        ----------
        factor
            Number.

        Returns
        -------
        field
            Field of the same class.
        """

    def __call__(self, *, x: npt.ArrayLike, y: npt.ArrayLike) -> Any:
        """Values at positions.

        Parameters
        ----------
        x, y
            Pixel coordinates, of shapes that broadcast.

        Returns
        -------
        values
            Float64 of the common shape; a float if both are numbers.
        """
        at = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
        values = self.at(*at)
        return float(values) if np.ndim(values) == 0 else values

    def on(self, box: Box) -> Array:
        """Values at the pixels of a box.

        Parameters
        ----------
        box
            Box.

        Returns
        -------
        values
            ``(ny, nx)`` float64.
        """
        y, x = (np.arange(each.start, each.stop, dtype=float) for each in (box.y, box.x))
        return self.at(*np.meshgrid(x, y))


@final
class ChebyshevField(Field):
    """Products of Chebyshev polynomials.

    Parameters
    ----------
    bounds
        Box in which the field is defined; coordinates run from −1 to 1 between its outer edges.
    coefficients
        ``(y_order + 1, x_order + 1)``: element ``[p, q]`` multiplies ``T_p(y') T_q(x')``.

    Raises
    ------
    ArgumentError
        If the coefficients are not 2-D, or there are none.
    """

    def __init__(self, bounds: Box, coefficients: Array) -> None:
        coefficients = np.asarray(coefficients, dtype=np.float64)
        if coefficients.ndim != 2 or not coefficients.size:
            raise ArgumentError(
                "Chebyshev coefficients have the shape (y_order + 1, x_order + 1); got"
                f" {coefficients.shape}."
            )
        self._bounds, self._coefficients = bounds, coefficients

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ChebyshevField)
            and self.bounds == other.bounds
            and np.array_equal(self.coefficients, other.coefficients, equal_nan=True)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def bounds(self) -> Box:
        """Box in which the field is defined."""
        return self._bounds

    @property
    def coefficients(self) -> Array:
        """Coefficients, ``(y_order + 1, x_order + 1)``."""
        return self._coefficients

    @property
    def y_order(self) -> int:
        """Largest order of the polynomials in y."""
        return self._coefficients.shape[0] - 1

    @property
    def x_order(self) -> int:
        """Largest order of the polynomials in x."""
        return self._coefficients.shape[1] - 1

    @property
    def is_constant(self) -> bool:
        """Whether there is only the constant term."""
        return self._coefficients.shape == (1, 1)

    def at(self, x: Array, y: Array) -> Array:
        """Values at positions, `Field.at`."""
        u, v = self._scaled(x, 1), self._scaled(y, 0)
        return np.asarray(chebyshev.chebval2d(v, u, self._coefficients))

    def _scaled(self, pixels: Array, axis: int) -> Array:
        whole = (self._bounds.y, self._bounds.x)[axis]
        return 2 * (pixels - whole.start + 0.5) / whole.size - 1

    def on(self, box: Box) -> Array:
        """Values at the pixels of a box, as a product of matrices."""
        rows, columns = (
            chebyshev.chebvander(self._scaled(np.arange(each.start, each.stop), axis), order)
            for axis, (each, order) in enumerate(((box.y, self.y_order), (box.x, self.x_order)))
        )
        result: Array = rows @ self._coefficients @ columns.T
        return result

    def scaled(self, factor: float) -> ChebyshevField:
        """The field times a number."""
        return ChebyshevField(self._bounds, self._coefficients * factor)


@final
class GridField(Field):
    """Values at the middles of square cells, interpolated linearly.

    It follows changes that no polynomial can, such as a step of the noise between two amplifiers.

    Parameters
    ----------
    bounds
        Box in which the field is defined; cells begin at the corner of its first pixel.
    values
        ``(cells_y, cells_x)``, as many as cover the box.
    cell
        Side of a cell, pixels.

    Raises
    ------
    ArgumentError
        If the shape of the values is another.

    Notes
    -----
    Beyond the middles of the outer cells the field is constant.
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
        """Box in which the field is defined."""
        return self._bounds

    @property
    def values(self) -> Array:
        """Values in the middles of the cells, ``(cells_y, cells_x)``."""
        return self._values

    @property
    def cell(self) -> int:
        """Side of a cell, pixels."""
        return self._cell

    @property
    def middles(self) -> tuple[Array, Array]:
        """Rows and columns of the middles of the cells, in pixel coordinates."""
        y, x = (
            each.start - 0.5 + self._cell * (np.arange(n) + 0.5)
            for each, n in zip((self._bounds.y, self._bounds.x), self._values.shape, strict=True)
        )
        return y, x

    @property
    def is_constant(self) -> bool:
        """Whether all values are the same."""
        return bool((self._values == self._values[0, 0]).all())

    def at(self, x: Array, y: Array) -> Array:
        """Values at positions, `Field.at`."""
        return interpolated_cells_at(
            self._values, self._cell, y - self._bounds.y.start, x - self._bounds.x.start
        )

    def on(self, box: Box) -> Array:
        """Values at the pixels of a box, one axis after the other."""
        rows, columns = self._bounds.slices_of(box)
        return np.asarray(interpolated_cells(self._values, self._cell, rows, columns), dtype=float)

    def scaled(self, factor: float) -> GridField:
        """The field times a number."""
        return GridField(self._bounds, self._values * float(factor), self._cell)


@final
class PiecewiseField(Field):
    """Fields on parts of the frame, such as the regions of a program that tiles it.

    Parameters
    ----------
    bounds
        Box in which the field is defined.
    pieces
        Parts and their fields, each defined on its part; at least one.  Where parts overlap, the
        later one counts; beyond all parts, the nearest edge of the nearest part.
    """

    def __init__(self, bounds: Box, pieces: Sequence[tuple[Box, Field]]) -> None:
        if not pieces:
            raise ArgumentError("A field in pieces needs at least one.")
        self._bounds, self._pieces = bounds, tuple(pieces)

    @property
    def bounds(self) -> Box:
        """Box in which the field is defined."""
        return self._bounds

    @property
    def pieces(self) -> tuple[tuple[Box, Field], ...]:
        """Parts and their fields."""
        return self._pieces

    @property
    def is_constant(self) -> bool:
        """False: pieces are not compared."""
        return False

    def piece_at(self, *, x: float, y: float) -> int:
        """Find the part that counts at a position.

        Parameters
        ----------
        x, y
            Pixel coordinates.

        Returns
        -------
        index
            Index in `pieces`.
        """
        return int(self._nearest(np.array([x]), np.array([y]))[0])

    def _nearest(self, x: Array, y: Array) -> Array:
        """Index of the nearest piece to each position; of several, the last."""
        best, index = np.full(np.shape(x), np.inf), np.zeros(np.shape(x), dtype=int)
        for i, (box, _) in enumerate(self._pieces):
            away = sum(
                np.maximum(0, np.abs(at - part.center) - part.size / 2)
                for at, part in ((x, box.x), (y, box.y))
            )
            nearer = away <= best
            best, index = np.where(nearer, away, best), np.where(nearer, i, index)
        return index

    def at(self, x: Array, y: Array) -> Array:
        """Values at positions, `Field.at`."""
        index, result = self._nearest(x, y), np.zeros(x.shape)
        for i, (box, field) in enumerate(self._pieces):
            here = index == i
            if here.any():
                result[here] = field.at(
                    np.clip(x[here], box.x.start - 0.5, box.x.stop - 0.5),
                    np.clip(y[here], box.y.start - 0.5, box.y.stop - 0.5),
                )
        return result

    def on(self, box: Box) -> Array:
        """Values at the pixels of a box, piece by piece."""
        x, y = np.arange(box.x.start, box.x.stop), np.arange(box.y.start, box.y.stop)
        index = self._nearest(*np.meshgrid(x, y))
        result = np.zeros(box.shape)
        for i, (piece, field) in enumerate(self._pieces):
            here = index == i
            part = piece.overlap(box)
            if part is not None:
                inside = box.slices_of(part)
                np.copyto(result[inside], field.on(part), where=here[inside])
                here[inside] = False
            if here.any():
                j, k = np.nonzero(here)
                result[j, k] = self.at(x[k].astype(float), y[j].astype(float))
        return result

    def scaled(self, factor: float) -> PiecewiseField:
        """The field times a number."""
        pieces = [(box, field.scaled(factor)) for box, field in self._pieces]
        return PiecewiseField(self._bounds, pieces)


def moved_to(field: Field, box: Box) -> Field:
    """Give the pixels of a field other coordinates.

    Parameters
    ----------
    field
        `ChebyshevField` or `GridField`.
    box
        Box of the same shape: the new coordinates of the same pixels.

    Returns
    -------
    field
        Field with the same value at each pixel.
    """
    if isinstance(field, GridField):
        return GridField(box, field.values, field.cell)
    assert isinstance(field, ChebyshevField)
    return ChebyshevField(box, field.coefficients)


def scaled_to(field: ChebyshevField, box: Box) -> ChebyshevField:
    """Rescale polynomials to another box, in which they are then defined.

    Parameters
    ----------
    field
        Polynomials.
    box
        Box.

    Returns
    -------
    field
        Field with the same values everywhere.
    """
    coefficients, before = field.coefficients, field.bounds
    if before == box:
        return field
    for axis, (new, old) in enumerate(((box.y, before.y), (box.x, before.x))):
        # Column q holds T_q of the old coordinate as a series in the new one.
        middle = 2 * (new.start + new.size / 2 - old.start) / old.size - 1
        half, order = new.size / old.size, coefficients.shape[axis] - 1
        matrix = np.zeros((order + 1, order + 1))
        for q in range(order + 1):
            old_series = np.polynomial.chebyshev.Chebyshev.basis(q)
            series = old_series.convert(domain=[middle - half, middle + half])
            matrix[: q + 1, q] = np.pad(series.coef, (0, max(0, q + 1 - len(series.coef))))
        coefficients = np.moveaxis(np.tensordot(matrix, coefficients, axes=(1, axis)), 0, axis)
    return ChebyshevField(box, np.ascontiguousarray(coefficients))


def scattered_fit(
    values: Array, *, x: Array, y: Array, bounds: Box, order: int
) -> tuple[list[tuple[int, int]], Array]:
    """Fit Chebyshev polynomials over a box to numbers, or images, known at some positions.

    Parameters
    ----------
    values
        ``(n, ...)`` numbers or images.
    x, y
        ``(n,)`` pixel coordinates.
    bounds
        Box over which the polynomials run from −1 to 1.
    order
        Largest total order.  Terms that the positions do not determine are left out, such as
        terms in x if all have the same x.

    Returns
    -------
    terms
        Exponents (p of y, q of x), as from `whitediff.numerics.polynomials.chebyshev_terms`.
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
