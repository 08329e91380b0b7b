"""Filters that vary over the field, compressed: a few images times smooth coefficients.

A correction depends on the position, because the matching kernel does, and on the ratio of the
two local mean variances.  It is computed at a few nodes; in between it is a polynomial of position
and ratio.  Unlike tiles with a correction each, this has no seams.  It costs one more transform
for each image, and three or four images suffice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .polynomials import chebyshev_products, chebyshev_terms
from .threads import in_threads, single_threaded_algebra

__all__ = [
    "Sample",
    "VaryingFilter",
    "cell_means",
    "interpolated_cells",
    "interpolated_cells_at",
    "varying_filter",
]

type Array = npt.NDArray[Any]

type Sample = Callable[[float, float, Array], tuple[Array, Array]]
"""Filters at a position (u, v) for several logarithms of the variance ratio.

u and v run from −1 to 1 between the frame's outer edges.  Returns images ``(n, k, k)``, all
with the same sum, and accompanying numbers ``(n, m)``.
"""

_FIRST_ORDERS = (3, 2)
_LARGEST_ORDER = 11
_TEST_POINTS = 9
_CELL_ROWS = 8


@dataclasses.dataclass(frozen=True)
class VaryingFilter:
    """A filter that varies with the position and with the ratio of two variances.

    Attributes
    ----------
    images
        ``(1 + n, k, k)``: the mean filter, and n images of zero sum that are added to it with
        varying weights; origin at ``[k//2, k//2]``.
    coefficients
        ``(n + m, terms, ratio_order + 1)``: Chebyshev coefficients of these weights, and of
        m numbers that vary likewise: ``[i, j, s]`` multiplies ``T_p(v) T_q(u) T_s(ρ)`` with
        (p, q) the j-th of `whitediff.numerics.polynomials.chebyshev_terms`.
    order, ratio_order
        Order of the polynomials in the position (total), and in ρ.
    log_ratios
        Logarithms of the variance ratio at ρ = −1 and 1; beyond them ρ is constant.
    error
        Root of the summed squared differences between this filter and the true one, the
        largest at positions between the nodes.  For white noise of unit variance, it is the
        standard deviation of the error that the compression adds to a pixel.
    number_error
        Largest relative error of the numbers, at the same positions.
    """

    images: Array
    coefficients: Array
    order: int
    ratio_order: int
    log_ratios: tuple[float, float]
    error: float
    number_error: float

    @property
    def n_numbers(self) -> int:
        """Number of numbers that vary with the filter, m."""
        return len(self.coefficients) - (len(self.images) - 1)

    @property
    def is_constant(self) -> bool:
        """Whether the filter is the same everywhere."""
        return len(self.images) == 1

    def _scaled(self, log_ratio: Array) -> Array:
        low, high = self.log_ratios
        if high <= low:
            return np.zeros_like(log_ratio)
        return np.clip(2 * (log_ratio - low) / (high - low) - 1, -1, 1)

    def _fields(self, which: slice, u: Array, v: Array, log_ratio: Array | None) -> Array:
        coefficients = self.coefficients[which]
        if self.order == 0 and self.ratio_order == 0:
            return np.broadcast_to(coefficients[:, :1], (len(coefficients), len(v), len(u)))
        matrices = np.zeros((*coefficients.shape[::2], self.order + 1, self.order + 1))
        for j, (p, q) in enumerate(chebyshev_terms(self.order)):
            matrices[:, :, p, q] = coefficients[:, j]
        along_y = np.polynomial.chebyshev.chebvander(v, self.order)
        along_x = np.polynomial.chebyshev.chebvander(u, self.order)
        fields = along_y @ matrices @ along_x.T
        if self.ratio_order == 0 or log_ratio is None:
            # ρ = 0, where the even terms do not vanish: T_2 is −1, T_4 is 1.
            at_middle = np.polynomial.chebyshev.chebvander(np.zeros(1), self.ratio_order)[0]
            middle: Array = np.tensordot(at_middle, fields, axes=(0, 1))
            return middle
        ratio = self._scaled(log_ratio)
        # Clenshaw's recurrence: only two maps have to be kept, not one for each order.
        later = latest = np.zeros_like(fields[:, 0])
        for s in range(self.ratio_order, 0, -1):
            latest, later = fields[:, s] + 2 * ratio * latest - later, latest
        result: Array = fields[:, 0] + ratio * latest - later
        return result

    def weights(self, u: Array, v: Array, log_ratio: Array | None) -> Array:
        """Weights of the images on a part of the frame.

        Parameters
        ----------
        u, v
            ``(nx,)``, ``(ny,)`` positions, from −1 to 1 between the frame's outer edges.
        log_ratio
            ``(ny, nx)`` logarithm of the variance ratio; None for the middle of `log_ratios`.

        Returns
        -------
        weights
            ``(1 + n, ny, nx)``; the mean filter comes first and has weight 1.
        """
        n = len(self.images) - 1
        weights = np.ones((1 + n, len(v), len(u)))
        if n:
            weights[1:] = self._fields(slice(n), u, v, log_ratio)
        return weights

    def numbers(self, u: Array, v: Array, log_ratio: Array | None) -> Array:
        """The numbers that vary with the filter, on a part of the frame.

        Parameters
        ----------
        u, v, log_ratio
            As for `weights`.

        Returns
        -------
        numbers
            ``(m, ny, nx)``.
        """
        return self._fields(slice(len(self.images) - 1, None), u, v, log_ratio)

    def at(self, u: float, v: float, log_ratio: float) -> Array:
        """The filter at one position.

        Parameters
        ----------
        u, v, log_ratio
            Position, from −1 to 1, and logarithm of the variance ratio.

        Returns
        -------
        image
            ``(k, k)``.
        """
        weights = self.weights(np.array([u]), np.array([v]), np.array([[log_ratio]]))
        image: Array = np.tensordot(weights[:, 0, 0], self.images, axes=1)
        return image


@single_threaded_algebra()
def varying_filter(
    sample: Sample,
    *,
    log_ratios: tuple[float, float],
    moves: bool,
    tolerance: float,
) -> VaryingFilter:
    """Compress a filter that varies over the field.

    Parameters
    ----------
    sample
        The filter at a position, for several variance ratios.
    log_ratios
        Smallest and largest logarithm of the variance ratio; equal if the ratio is the same
        everywhere.
    moves
        The filter depends on the position too.
    tolerance
        Largest `VaryingFilter.error` and ``number_error``.  Orders are raised, and images
        added, until neither is larger, or until an order reaches 11.

    Returns
    -------
    filter
        `VaryingFilter`; everywhere its sum equals the sum of the samples, exactly.
    """
    low, high = log_ratios
    test = _test_points(low, high, moves)
    true = [sample(u, v, np.array([ratio])) for u, v, ratio in test]
    true_images = np.concatenate([images for images, _ in true])
    true_numbers = np.concatenate([numbers for _, numbers in true])
    orders = (_FIRST_ORDERS[0] if moves else 0, _FIRST_ORDERS[1] if high > low else 0)
    while True:
        found = _fitted(sample, orders, log_ratios, tolerance)
        errors, ratios = [], []
        for (u, v, ratio), image, numbers in zip(test, true_images, true_numbers, strict=True):
            errors.append(float(np.linalg.norm(found.at(u, v, ratio) - image)))
            estimate = found.numbers(np.array([u]), np.array([v]), np.array([[ratio]]))[:, 0, 0]
            scale = np.maximum(np.abs(numbers), 1e-3 * np.abs(true_numbers).max(initial=0))
            ratios.append(float(np.abs((estimate - numbers) / scale).max(initial=0)))
        found = dataclasses.replace(found, error=max(errors), number_error=max(ratios))
        if max(found.error, found.number_error) <= tolerance or max(orders) >= _LARGEST_ORDER:
            return found
        orders = (orders[0] + 2 if moves else 0, orders[1] + 2 if high > low else 0)


def _test_points(low: float, high: float, moves: bool) -> list[tuple[float, float, float]]:
    """Evenly spread positions and ratios, between the nodes of any order, and the corners."""
    # Halton's sequence: evenly spread for any number of points.
    points = [
        (2 * _radical_inverse(i, 2) - 1, 2 * _radical_inverse(i, 3) - 1, _radical_inverse(i, 5))
        for i in range(1, _TEST_POINTS + 1)
    ]
    points += [(-1.0, -1.0, 0.0), (1.0, 1.0, 1.0), (1.0, -1.0, 0.0), (-1.0, 1.0, 1.0)]
    scale = 1.0 if moves else 0.0
    placed = [(scale * u, scale * v, low + t * (high - low)) for u, v, t in points]
    # Where nothing varies, one point tells all.
    return list(dict.fromkeys(placed))


def _radical_inverse(index: int, base: int) -> float:
    result, place = 0.0, 1.0
    while index:
        place /= base
        index, digit = divmod(index, base)
        result += digit * place
    return result


def _nodes(order: int) -> Array:
    """Chebyshev nodes, one more than an order needs; one in the middle for order 0."""
    n = order + 2 if order else 1
    return np.cos(np.pi * (np.arange(n) + 0.5) / n)


def _fitted(
    sample: Sample, orders: tuple[int, int], log_ratios: tuple[float, float], tolerance: float
) -> VaryingFilter:
    low, high = log_ratios
    nodes, ratio_nodes = _nodes(orders[0]), _nodes(orders[1])
    ratios = low + (ratio_nodes + 1) / 2 * (high - low)
    v, u = (grid.ravel() for grid in np.meshgrid(nodes, nodes, indexing="ij"))
    samples = in_threads(
        lambda place: sample(float(place[0]), float(place[1]), ratios), zip(u, v, strict=True)
    )
    images = np.stack([one for one, _ in samples])
    numbers = np.stack([one for _, one in samples])
    mean = images.mean(axis=(0, 1))
    # All images have the same sum, so residuals have zero sum, and so do their principal images.
    left = (images - mean).reshape(-1, mean.size)
    basis, amplitudes = _principal(left, tolerance / 2)
    values = np.concatenate([amplitudes.reshape(*images.shape[:2], -1), numbers], axis=2)
    in_place = np.linalg.pinv(chebyshev_products(orders[0], u, v))
    in_ratio = np.linalg.pinv(np.polynomial.chebyshev.chebvander(ratio_nodes, orders[1]))
    coefficients = np.einsum("ja,sb,abi->ijs", in_place, in_ratio, values)
    return VaryingFilter(
        images=np.concatenate([mean[None], basis.reshape(-1, *mean.shape)]),
        coefficients=coefficients,
        order=orders[0],
        ratio_order=orders[1],
        log_ratios=log_ratios,
        error=np.inf,
        number_error=np.inf,
    )


def _principal(rows: Array, tolerance: float) -> tuple[Array, Array]:
    """Orthonormal vectors that represent every row to a tolerance, and the rows' coordinates."""
    # The Gram matrix is small: there are fewer rows than pixels.
    power, vectors = np.linalg.eigh(rows @ rows.T)
    power, vectors = np.maximum(power[::-1], 0), vectors[:, ::-1]
    amplitudes = vectors * np.sqrt(power)
    left = np.cumsum((amplitudes**2)[:, ::-1], axis=1)[:, ::-1]
    needed = int(np.count_nonzero(left.max(axis=0) > tolerance**2))
    # Smaller eigenvalues are rounding errors of the Gram matrix.
    needed = min(needed, int(np.count_nonzero(power > 1e-14 * max(float(power[0]), 1e-300))))
    scale = np.sqrt(power[:needed])
    return (vectors[:, :needed] / scale).T @ rows, amplitudes[:, :needed]


def cell_means(image: Array, use: Array, cell: int) -> Array:
    """Means of an image's cells.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    use
        ``(ny, nx)`` boolean: pixels that count; they are finite.
    cell
        Side of a cell, pixels.

    Returns
    -------
    means
        ``(ceil(ny/cell), ceil(nx/cell))`` float64; NaN where no pixel counts.
    """
    ny, nx = image.shape
    columns = np.arange(0, nx, cell)

    def work(start: int) -> Array:
        # Rows are summed first: they are contiguous, and few sums are left for the columns.
        rows = slice(start, start + _CELL_ROWS * cell)
        part = use[rows]
        bands = np.arange(0, len(part), cell)
        values = np.where(part, image[rows], 0)
        if len(part) % cell == 0:
            values = values.reshape(-1, cell, nx).sum(axis=1, dtype=np.float64)
            number = part.reshape(-1, cell, nx).sum(axis=1, dtype=np.int32)
        else:
            values = np.add.reduceat(values, bands, axis=0, dtype=np.float64)
            number = np.add.reduceat(part, bands, axis=0, dtype=np.int32)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(
                np.add.reduceat(values, columns, axis=1) / np.add.reduceat(number, columns, axis=1)
            )

    return np.concatenate(in_threads(work, range(0, ny, _CELL_ROWS * cell)))


def interpolated_cells(cells: Array, cell: int, rows: slice, columns: slice) -> Array:
    """Part of an image that is interpolated linearly between the middles of cells.

    Parameters
    ----------
    cells
        Values, as from `cell_means`.
    cell
        Side of a cell, pixels.
    rows, columns
        Part of the image.

    Returns
    -------
    image
        ``(rows, columns)``; beyond the middles of the outer cells, it is constant.
    """
    top, bottom, down = _neighbours(np.arange(rows.start, rows.stop), cell, cells.shape[0])
    left, right, across = _neighbours(np.arange(columns.start, columns.stop), cell, cells.shape[1])
    strip = cells[top] * (1 - down)[:, None] + cells[bottom] * down[:, None]
    image: Array = strip[:, left] * (1 - across) + strip[:, right] * across
    return image


def interpolated_cells_at(cells: Array, cell: int, row: Array, column: Array) -> Array:
    """Values between the middles of cells, as from `interpolated_cells`, at single positions.

    Parameters
    ----------
    cells, cell
        As for `interpolated_cells`.
    row, column
        Positions, pixels, arrays of one shape; they need not be whole.

    Returns
    -------
    values
        Array of the same shape.
    """
    top, bottom, down = _neighbours(row, cell, cells.shape[0])
    left, right, across = _neighbours(column, cell, cells.shape[1])
    above = cells[top, left] * (1 - across) + cells[top, right] * across
    below = cells[bottom, left] * (1 - across) + cells[bottom, right] * across
    values: Array = above * (1 - down) + below * down
    return values


def _neighbours(position: Array, cell: int, n: int) -> tuple[Array, Array, Array]:
    """Two cells around each position, and its distance from the first one's middle, in cells."""
    scaled = np.clip((position + 0.5) / cell - 0.5, 0, n - 1)
    first = np.minimum(scaled.astype(int), max(n - 2, 0))
    return first, np.minimum(first + 1, n - 1), scaled - first
