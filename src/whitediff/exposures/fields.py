"""Fields over the frame, such as backgrounds and the weights of kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from lsst.images import Box
from lsst.images.fields import BaseField, ChebyshevField

__all__ = ["evaluated", "row_blocks", "rows_of"]

type Array = npt.NDArray[Any]

_ROWS = 512


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


def row_blocks(n_rows: int) -> list[slice]:
    """Blocks of rows to work on one after the other where a field is evaluated.

    Parameters
    ----------
    n_rows
        Number of rows.

    Returns
    -------
    blocks
        Of 512 rows.
    """
    return [slice(start, min(start + _ROWS, n_rows)) for start in range(0, n_rows, _ROWS)]


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
