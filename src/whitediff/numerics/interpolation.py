"""Interpolation of missing pixels from the good ones around them.

A missing pixel becomes a weighted sum of its neighbours.  Among weights that reproduce a plane
and err little on a star, those of least noise are taken.  This is universal kriging: regression
on a plane plus a Gaussian process with the correlation of star images.  The weights depend only on
which neighbours are good, so pixels with the same pattern share them.  Inside large holes planes
are fitted to cells of pixels, twice as large at each level.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from ..errors import ArgumentError, DataError
from .planes import filled
from .threads import scipy_part

__all__ = ["NEIGHBOUR_REACH", "interpolated", "mean_around", "neighbour_weights", "patched"]

type Array = npt.NDArray[Any]

_RADIUS_SQUARED = 18
"""Squared radius of the neighbourhood, pixels²: its 60 neighbours fit the bits of an integer."""

NEIGHBOUR_REACH = 4
"""Distance of the farthest neighbour in x or y, pixels."""

_STAR_SIGMAS = (1.5, 2.0, 3.0)
"""Standard deviations of the stars whose correlation is assumed: FWHM of 3.5 to 7 pixels."""

_SIGNIFICANCES = (100.0, 50.0, 25.0, 12.0, 6.0, 3.0, 1.5)
"""Amplitudes of the stars over the noise, tried in turn until the noise is in `_LARGEST_NOISE`."""

_LARGEST_NOISE = 1.25
"""Largest standard deviation of an interpolated pixel over its neighbours' standard deviation."""

_LARGEST_WEIGHT = 3.0
"""Largest sum of absolute weights of a plane through cells.

It limits extrapolation of a plane to half the depth over which it was fitted.
"""

_FEWEST_NEIGHBOURS = 6
_FINEST_CELL = 4
_CELLS = 2
"""Cells on each side of the pixel's own cell that a plane is fitted to."""

_PATIENCE = 3
"""Levels on which a plane is tried, after the first level with any good pixel."""

_SINGULAR = 1e-14
"""Added to the diagonal, whose elements are below 1: singular systems get huge weights instead of
an error."""

_THIN = 2
"""Largest distance to a good pixel, in x or y, at which neighbours determine a missing pixel."""

_DEEP = (4, 16)
"""Grid spacings, pixels, for interpolation deep in holes: where the hole's edge is farther than
`_DEPTH` times the spacing."""

_DEPTH = 4
_SCATTERED = 0.02
"""Share of pixels below which it is faster to look at each of them."""
_BATCH, _MOST_PATTERNS = 1 << 12, 1 << 13
_STRIP = 1 << 20


def interpolated(image: Array, missing: Array | None = None) -> Array:
    """Replace missing pixels by values interpolated from the good pixels around them.

    Parameters
    ----------
    image
        ``(ny, nx)``.  Not modified.
    missing
        ``(ny, nx)`` boolean: pixels to replace.  Pixels that are not finite are always replaced.

    Returns
    -------
    interpolated
        ``(ny, nx)``, float32 or float64 like the image, computed in double precision; good
        pixels are unchanged.

    Raises
    ------
    ArgumentError
        If the image is not 2-D, or ``missing`` is not a boolean array of its shape.
    DataError
        If no pixel is good.

    Notes
    -----
    A pixel depends on good pixels within 4.2 pixels, if these suffice.  Otherwise it depends on
    those around the edge of its hole, at most 24 times as far away as the nearest one, or 96
    pixels.  Deeper in a hole the result is smooth: farther than 16 pixels from any good one it is
    interpolated between every fourth pixel, farther than 64 between every sixteenth.

    Constants are reproduced exactly, and so are planes, with one exception: deep in a hole with
    few good pixels around its edge, a pixel is the nearest ones' mean.

    Neighbours of equal, independent noise give an interpolated pixel at most 1.25 times their
    standard deviation.  Its noise is correlated with theirs.
    """
    if image.ndim != 2:
        raise ArgumentError(f"The image must be 2-D; got {image.ndim} dimensions.")
    good = np.isfinite(image)
    if missing is not None:
        if missing.shape != image.shape or missing.dtype != np.bool_:
            raise ArgumentError(
                f"The mask of missing pixels must be boolean and of the image's shape"
                f" {image.shape}; got {missing.dtype} of {missing.shape}."
            )
        good &= ~missing
    result = image.astype(np.result_type(image.dtype, np.float32))
    ys, xs = np.nonzero(~good)
    if ys.size == image.size:
        raise DataError(
            f"None of the image's {image.size} pixels is good, so there is nothing to interpolate"
            " from; are all masked?"
        )
    alone = np.zeros(ys.size, bool)
    for start in range(0, ys.size, _BATCH):
        part = slice(start, start + _BATCH)
        values = _from_neighbours(image, good, ys[part], xs[part])
        alone[part] = np.isnan(values)
        result[ys[part], xs[part]] = values
    if alone.any():
        ys, xs = ys[alone], xs[alone]
        result[ys, xs] = _inside(image, good, ys, xs)
    return result


def patched(image: Array, missing: Array) -> tuple[Array, Array]:
    """Replace missing pixels that are near good ones, and return those that are left.

    Parameters
    ----------
    image
        ``(ny, nx)``.  Not modified.
    missing
        ``(ny, nx)`` boolean: pixels to replace.  Pixels that are not finite are always replaced.

    Returns
    -------
    patched
        ``(ny, nx)``, float32 or float64 like the image.  Missing pixels are as from `interpolated`
        if a good pixel lies within 2 pixels in x and y and their neighbours suffice; 0 further
        inside holes.  The image itself if nothing is missing.
    left
        ``(ny, nx)`` boolean: pixels inside holes, set to 0.
    """
    wrong = filled(image.shape, bool, lambda rows: missing[rows] | ~np.isfinite(image[rows]))
    if not wrong.any():
        return image, wrong
    left = _without_good_around(wrong)
    result = image.astype(np.result_type(image.dtype, np.float32))
    result[left] = 0
    good = ~wrong
    ys, xs = np.divmod(np.flatnonzero(wrong & ~left), image.shape[1])
    for start in range(0, ys.size, _BATCH):
        part = ys[start : start + _BATCH], xs[start : start + _BATCH]
        values = _from_neighbours(image, good, *part)
        alone = np.isnan(values)
        left[part] = alone
        result[part] = np.where(alone, 0, values)
    return result, left


def _without_good_around(wrong: Array) -> Array:
    """Pixels without a good one within 2 pixels in x and y; pixels beyond the frame are not good.

    The square is separable: rows first, then columns.  Where few pixels are wrong, only these are
    looked at.
    """
    ny, nx = wrong.shape
    ys, xs = np.nonzero(wrong)
    if len(ys) < _SCATTERED * wrong.size:
        left = np.zeros(wrong.shape, dtype=bool)
        for dy, dx in itertools.product(range(-_THIN, _THIN + 1), repeat=2):
            y, x = ys + dy, xs + dx
            beyond = (y < 0) | (y >= ny) | (x < 0) | (x >= nx)
            alone = beyond | wrong[y.clip(0, ny - 1), x.clip(0, nx - 1)]
            ys, xs = ys[alone], xs[alone]
        left[ys, xs] = True
        return left

    def work(rows: slice) -> Array:
        first, last = max(0, rows.start - _THIN), min(ny, rows.stop + _THIN)
        above, below = first - rows.start + _THIN, rows.stop + _THIN - last
        part = np.pad(wrong[first:last], ((above, below), (0, 0)), constant_values=True)
        count = rows.stop - rows.start
        lines = part[:count].copy()
        for step in range(1, 2 * _THIN + 1):
            lines &= part[step : step + count]
        if not lines.any():
            return lines
        lines = np.pad(lines, ((0, 0), (_THIN, _THIN)), constant_values=True)
        left = lines[:, :nx].copy()
        for step in range(1, 2 * _THIN + 1):
            left &= lines[:, step : step + nx]
        return left

    return filled(wrong.shape, bool, work)


@functools.cache
def _neighbourhood() -> tuple[Array, Array]:
    """Offsets (dy, dx) of the neighbours, the pixel itself first."""
    reach = np.arange(-int(_RADIUS_SQUARED**0.5), int(_RADIUS_SQUARED**0.5) + 1)
    dy, dx = (a.ravel() for a in np.meshgrid(reach, reach, indexing="ij"))
    square = dy**2 + dx**2
    order = np.argsort(square, kind="stable")[: int((square <= _RADIUS_SQUARED).sum())]
    return dy[order], dx[order]


@functools.cache
def _precisions() -> tuple[Array, ...]:
    """Inverse covariances of a neighbourhood with unit noise, for each significance.

    Planes have infinite variance: the matrices map them to zero.
    """
    dy, dx = _neighbourhood()
    square = (dy[:, None] - dy) ** 2 + (dx[:, None] - dx) ** 2
    # Product of a Gaussian star with its shifted copy, summed over all positions of the star.
    correlation = np.mean([np.exp(-square / (4 * sigma**2)) for sigma in _STAR_SIGMAS], axis=0)
    planes = np.stack([np.ones(dy.size), dy, dx], axis=1)
    precisions = []
    for significance in _SIGNIFICANCES:
        inverse = np.linalg.inv(significance**2 * correlation + np.eye(dy.size))
        along = inverse @ planes
        precisions.append(inverse - along @ np.linalg.solve(planes.T @ along, along.T))
    return tuple(precisions)


def neighbour_weights(missing: Array) -> tuple[Array, scipy.sparse.csr_array]:
    """Weights of the good pixels from which missing ones beside them are interpolated.

    Parameters
    ----------
    missing
        ``(ny, nx)`` boolean.

    Returns
    -------
    pixels
        ``(n,)`` indices, in the flattened image, of missing pixels that `interpolated` computes
        from neighbours within 4.2 pixels; pixels inside large holes are not among them.
    weights
        ``(n, ny·nx)`` weights; each row sums to 1.
    """
    ny, nx = missing.shape
    good = ~missing
    ys, xs = np.nonzero(missing)
    pixels, columns, values, counts = [], [], [], []
    for start in range(0, ys.size, _BATCH):
        part = slice(start, start + _BATCH)
        y, x, present, weights = _neighbours(good, ys[part], xs[part])
        told = ~np.isnan(weights[:, 0])
        used = present[told]
        pixels.append((ys[part] * nx + xs[part])[told])
        columns.append((y * nx + x)[told][used])
        values.append(weights[told][used])
        counts.append(used.sum(axis=1))
    if not pixels:
        return np.zeros(0, np.intp), scipy_part("sparse").csr_array((0, ny * nx))
    rows = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    matrix = scipy_part("sparse").csr_array(
        (np.concatenate(values), np.concatenate(columns), rows), shape=(rows.size - 1, ny * nx)
    )
    return np.concatenate(pixels), matrix


def _from_neighbours(image: Array, good: Array, ys: Array, xs: Array) -> Array:
    """Values of missing pixels; NaN if their neighbours do not suffice."""
    y, x, present, weights = _neighbours(good, ys, xs)
    neighbours = np.where(present, image[y, x], 0).astype(np.float64)
    return np.einsum("ij,ij->i", weights, neighbours)


def _neighbours(good: Array, ys: Array, xs: Array) -> tuple[Array, Array, Array, Array]:
    """Rows and columns of pixels' neighbours, whether they exist and are good, and their weights.

    The weights are NaN for pixels whose neighbours do not suffice.
    """
    dy, dx = (offset[1:] for offset in _neighbourhood())
    y, x = ys[:, None] + dy, xs[:, None] + dx
    inside = (y >= 0) & (y < good.shape[0]) & (x >= 0) & (x < good.shape[1])
    y, x = np.where(inside, y, 0), np.where(inside, x, 0)
    present = good[y, x] & inside
    code = present @ (np.uint64(1) << np.arange(dy.size, dtype=np.uint64))
    codes, first, pattern = np.unique(code, return_index=True, return_inverse=True)
    return y, x, present, _remembered_weights(codes.tolist(), present[first])[pattern]


_known_weights: dict[int, Array] = {}
"""Weights by the pattern of good neighbours.  The same pixels are bad in all that is made of an
image, and few patterns are frequent."""


def _remembered_weights(codes: list[int], present: Array) -> Array:
    """Weights as from `_weights`, for patterns with some codes."""
    known = [_known_weights.get(code) for code in codes]
    new = np.array([row is None for row in known], dtype=bool)
    weights = np.empty(present.shape)
    for k in np.flatnonzero(~new):
        weights[k] = known[k]
    if new.any():
        weights[new] = _weights(present[new])
        if len(_known_weights) > _MOST_PATTERNS:
            _known_weights.clear()
        for k in np.flatnonzero(new):
            _known_weights[codes[k]] = weights[k].copy()
    return weights


def _weights(present: Array) -> Array:
    """Weights of the neighbours for some patterns of good ones; NaN if these do not suffice.

    If pixels are jointly normal with inverse covariance Λ, the expectation of the missing ones m
    given the good ones g is ``−Λ_mm⁻¹ Λ_mg g``: a system only as large as the number of missing
    pixels.
    """
    weights = np.full(present.shape, np.nan)
    n_missing = present.shape[1] - present.sum(axis=1)
    pending = n_missing <= present.shape[1] - _FEWEST_NEIGHBOURS
    for precision in _precisions():
        for n in np.unique(n_missing[pending]):
            members = np.flatnonzero(pending & (n_missing == n))
            unknown = np.zeros((members.size, n + 1), np.intp)
            unknown[:, 1:] = np.nonzero(~present[members])[1].reshape(members.size, n) + 1
            block = precision[unknown[:, :, None], unknown[:, None, :]]
            block[:, np.arange(n + 1), np.arange(n + 1)] += _SINGULAR
            solution = np.zeros((members.size, precision.shape[0]))
            right = np.zeros((n + 1, 1))
            right[0] = 1
            np.put_along_axis(solution, unknown, np.linalg.solve(block, right)[..., 0], axis=1)
            # Each row by itself: a product of matrices rounds otherwise with other rows beside it.
            found = -np.einsum("ij,jk->ik", solution, precision)[:, 1:] * present[members]
            total = found.sum(axis=1)
            noise = np.einsum("ij,ij->i", found, found)
            accepted = (np.abs(total - 1) < 1e-6) & (noise <= _LARGEST_NOISE**2)
            weights[members[accepted]] = found[accepted] / total[accepted, None]
            pending[members[accepted]] = False
    return weights


def _inside(image: Array, good: Array, ys: Array, xs: Array) -> Array:
    """Values of missing pixels in large holes."""
    finest = _finest_cells(image, good)
    spacing = np.ones(ys.size, np.intp)
    side, cells = _FINEST_CELL, finest
    for step in _DEEP:
        while side < step:
            side, cells = 2 * side, _coarser(cells, side)
        spacing[~_any_good(cells, _DEPTH)[ys // step, xs // step]] = step
    values = np.empty(ys.size)
    shallow = spacing == 1
    values[shallow] = _from_cells(finest, ys[shallow], xs[shallow])
    for step in _DEEP:
        deep = spacing == step
        if deep.any():
            values[deep] = _between(finest, image.shape, step, ys[deep], xs[deep])
    return values


def _any_good(cells: Array, reach: int) -> Array:
    """Whether each cell, or one within reach of it, holds a good pixel."""
    return scipy.ndimage.maximum_filter(cells[0] > 0, 2 * reach + 1, mode="constant", cval=0)


def _between(finest: Array, shape: tuple[int, ...], step: int, ys: Array, xs: Array) -> Array:
    """Values of missing pixels, interpolated linearly between pixels of a coarse grid."""
    axes = [np.minimum(np.arange(0, n - 1 + step, step), n - 1) for n in shape]
    wanted = np.zeros([axis.size for axis in axes], bool)
    for dy, dx in itertools.product((0, 1), (0, 1)):
        row, column = (
            np.minimum(at // step + further, axis.size - 1)
            for at, further, axis in zip((ys, xs), (dy, dx), axes, strict=True)
        )
        wanted[row, column] = True
    nodes = np.zeros(wanted.shape)
    row, column = np.nonzero(wanted)
    nodes[row, column] = _from_cells(finest, axes[0][row], axes[1][column])
    places = [
        np.interp(at, axis, np.arange(axis.size)) for at, axis in zip((ys, xs), axes, strict=True)
    ]
    values: Array = scipy.ndimage.map_coordinates(nodes, places, order=1, mode="nearest")
    return values


def _from_cells(cells: Array, ys: Array, xs: Array) -> Array:
    """Values of missing pixels from planes through cells of pixels, or the nearest cells' mean."""
    values, means = np.full((2, ys.size), np.nan)
    tries = np.full(ys.size, _PATIENCE)
    pending = np.arange(ys.size)
    side = _FINEST_CELL
    while pending.size:
        # Once a neighbourhood covers the whole frame, larger cells add no good pixel.
        last = max(cells.shape[1:]) <= _CELLS
        shown = pending[_any_good(cells, _CELLS)[ys[pending] // side, xs[pending] // side]]
        for part in np.array_split(shown, -(-shown.size // _BATCH) or 1):
            values[part], mean = _from_level(cells, side, ys[part], xs[part])
            means[part] = np.where(np.isnan(means[part]), mean, means[part])
            given_up = part[np.isnan(values[part]) & (last | (tries[part] == 0))]
            values[given_up] = means[given_up]
            tries[part] -= 1
        pending = pending[np.isnan(values[pending])]
        side, cells = 2 * side, _coarser(cells, side)
    return values


def _from_level(cells: Array, side: int, ys: Array, xs: Array) -> tuple[Array, Array]:
    """Values of pixels from the plane through the cells around them, and from the cells' mean.

    Either is NaN if the cells do not determine it.
    """
    offsets = np.arange(-_CELLS, _CELLS + 1)
    rows = (ys // side)[:, None] + np.repeat(offsets, offsets.size)
    columns = (xs // side)[:, None] + np.tile(offsets, offsets.size)
    ny, nx = cells.shape[1:]
    inside = (rows >= 0) & (rows < ny) & (columns >= 0) & (columns < nx)
    near = cells[:, np.where(inside, rows, 0), np.where(inside, columns, 0)] * inside
    number = near[0]
    mean_y, mean_x, level = near[1:] / np.maximum(number, 1)
    dy, dx = rows * side + mean_y - ys[:, None], columns * side + mean_x - xs[:, None]
    weights = number * np.exp(-0.5 * (dy**2 + dx**2) / side**2)

    def mean_of(quantity: Array) -> Array:
        return np.einsum("ij,ij->i", weights, quantity)[:, None]

    # Without any cell, or with cells on a line, this divides by zero; ``carried`` is False then.
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        weights /= weights.sum(axis=1)[:, None]
        away_y, away_x = mean_of(dy), mean_of(dx)
        dy, dx = dy - away_y, dx - away_x
        yy, xx, yx = mean_of(dy**2), mean_of(dx**2), mean_of(dy * dx)
        determinant = yy * xx - yx**2
        along_y = (away_y * xx - away_x * yx) / determinant
        along_x = (away_x * yy - away_y * yx) / determinant
        plane = weights * (1 - along_y * dy - along_x * dx)
        noise = (plane**2 / np.maximum(number, 1)).sum(axis=1)
        carried = (
            (determinant[:, 0] > 1e-6 * side**4)
            & (np.abs(plane).sum(axis=1) <= _LARGEST_WEIGHT)
            & (noise <= _LARGEST_NOISE**2)
        )
    values = np.einsum("ij,ij->i", plane, level)
    return np.where(carried, values, np.nan), mean_of(level)[:, 0]


def _finest_cells(image: Array, good: Array) -> Array:
    """``(4, ny, nx)`` per cell: number of good pixels, sums of their y and x in it, and values."""
    ny, nx = (-(-n // _FINEST_CELL) for n in image.shape)
    cells = np.zeros((4, ny, nx))
    step = max(1, _STRIP // (nx * _FINEST_CELL**2))
    for start in range(0, ny, step):
        rows = slice(start * _FINEST_CELL, (start + step) * _FINEST_CELL)
        present = good[rows]
        filled = np.where(present, image[rows], 0)
        strip = cells[:, start : start + step]
        for y in range(_FINEST_CELL):
            for x in range(_FINEST_CELL):
                part = present[y::_FINEST_CELL, x::_FINEST_CELL]
                inner = strip[:, : part.shape[0], : part.shape[1]]
                inner[0] += part
                inner[1] += y * part
                inner[2] += x * part
                inner[3] += filled[y::_FINEST_CELL, x::_FINEST_CELL]
    return cells


def _coarser(cells: Array, side: int) -> Array:
    """Cells of twice the side, from cells as `_finest_cells` makes them."""
    padded = np.pad(cells, [(0, 0), *((0, n % 2) for n in cells.shape[1:])])
    padded[1, 1::2] += side * padded[0, 1::2]
    padded[2, :, 1::2] += side * padded[0, :, 1::2]
    return padded[:, ::2, ::2] + padded[:, 1::2, ::2] + padded[:, ::2, 1::2] + padded[:, 1::2, 1::2]


def mean_around(image: Array, usable: Array, side: int) -> Array:
    """Average the usable pixels in the square around each pixel.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    usable
        ``(ny, nx)`` boolean.
    side
        Side of the square, pixels; odd.  Beyond the frame the outermost pixels are repeated.

    Returns
    -------
    mean
        ``(ny, nx)`` float64; 0 where no pixel is usable.
    """
    share = scipy.ndimage.uniform_filter(usable.astype(float), side, mode="nearest")
    total = scipy.ndimage.uniform_filter(
        np.where(usable, image, 0).astype(float), side, mode="nearest"
    )
    # Running sums of an empty square end near zero, not exactly at it.
    known = share > 0.5 / side**2
    return np.where(known, total / np.where(known, share, 1), 0)
