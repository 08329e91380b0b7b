"""Fields over the frame, such as backgrounds and the weights of kernels."""

from __future__ import annotations

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

__all__ = ["GridField", "evaluated", "rows_of", "scattered_fit"]

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
