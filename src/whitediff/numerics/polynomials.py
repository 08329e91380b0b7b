"""Chebyshev polynomials of two coordinates, in the order of terms of kernels and backgrounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["chebyshev_products", "chebyshev_terms"]

type Array = npt.NDArray[Any]


def chebyshev_terms(order: int) -> list[tuple[int, int]]:
    """Exponents (p of y, q of x) of the Chebyshev polynomials up to a total order.

    Parameters
    ----------
    order
        Largest p + q.

    Returns
    -------
    terms
        (order + 1)(order + 2)/2 pairs, (0, 0) first.

    Examples
    --------
    >>> chebyshev_terms(1)
    [(0, 0), (0, 1), (1, 0)]
    """
    return [(p, total - p) for total in range(order + 1) for p in range(total + 1)]


def chebyshev_products(order: int, x: Array, y: Array) -> Array:
    """Products of Chebyshev polynomials at positions.

    Parameters
    ----------
    order
        Largest total order.
    x, y
        ``(n,)`` coordinates from −1 to 1.

    Returns
    -------
    products
        ``(n, n_terms)``: ``T_p(y) T_q(x)`` in the order of `chebyshev_terms`.
    """
    along, across = (np.polynomial.chebyshev.chebvander(np.clip(u, -1, 1), order) for u in (y, x))
    return np.stack([along[:, p] * across[:, q] for p, q in chebyshev_terms(order)], 1)
