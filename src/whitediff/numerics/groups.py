"""Groups of touching pixels, in images with few pixels set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .threads import scipy_part

__all__ = ["Groups", "connected", "groups"]

type Array = npt.NDArray[Any]
type Window = tuple[slice, slice]


@dataclasses.dataclass(frozen=True)
class Groups:
    """Groups of pixels that touch each other, corners included.

    Attributes
    ----------
    rows, columns
        ``(n,)`` rows and columns of the pixels, group by group.
    starts
        ``(k + 1,)`` index of each group's first pixel, and n at the end; groups are in the order
        of their first pixels.
    """

    rows: Array
    columns: Array
    starts: Array

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def sizes(self) -> Array:
        """``(k,)`` number of pixels of each group."""
        return np.diff(self.starts)

    @property
    def extents(self) -> tuple[Array, Array]:
        """``(k, 2)`` first row and column of each group, and those one past its last."""
        if not len(self):
            return np.zeros((0, 2), int), np.zeros((0, 2), int)
        places, first = (self.rows, self.columns), self.starts[:-1]
        return (
            np.stack([np.minimum.reduceat(place, first) for place in places], 1),
            np.stack([np.maximum.reduceat(place, first) for place in places], 1) + 1,
        )

    @property
    def transposed(self) -> Groups:
        """The same groups in the transposed image."""
        return Groups(self.columns, self.rows, self.starts)

    def each(self, which: Array) -> Iterator[tuple[Window, Array]]:
        """Iterate over some groups: their windows and the pixels in them.

        Parameters
        ----------
        which
            ``(k,)`` boolean: the wanted groups.

        Yields
        ------
        window, group
            Smallest window around the group, and a new boolean array of its shape that is true
            on the group's pixels.
        """
        start, stop = self.extents
        for number in np.flatnonzero(which):
            (top, left), (bottom, right) = start[number].tolist(), stop[number].tolist()
            part = slice(self.starts[number], self.starts[number + 1])
            group = np.zeros((bottom - top, right - left), bool)
            group[self.rows[part] - top, self.columns[part] - left] = True
            yield (slice(top, bottom), slice(left, right)), group


def groups(pixels: Array) -> Groups:
    """Find groups of pixels that touch each other, corners included.

    Parameters
    ----------
    pixels
        ``(ny, nx)`` boolean.

    Returns
    -------
    groups
        `Groups`.

    Notes
    -----
    The method joins runs of pixels along rows that overlap with runs of the next row.  The groups
    take time in proportion to the number of runs, not of the image's pixels.
    """
    nx = pixels.shape[1]
    index = np.flatnonzero(pixels)
    rows, columns = np.divmod(index, max(nx, 1))
    if not len(index):
        return Groups(rows, columns, np.zeros(1, int))
    is_first = np.append(True, (np.diff(index) != 1) | (columns[1:] == 0))
    first = np.flatnonzero(is_first)
    last = np.append(first[1:], len(index)) - 1
    # Rows get a spare pixel on either side, so that runs of two rows never touch around the end.
    line = (rows * (nx + 2) + columns + 1).astype(np.int64)
    starts, ends = line[first], line[last]
    low = np.searchsorted(ends, starts + (nx + 2) - 1)
    high = np.searchsorted(starts, ends + (nx + 2) + 1, side="right")
    touching = np.maximum(high - low, 0)
    one = np.repeat(np.arange(len(first)), touching)
    behind = np.cumsum(touching)
    other = np.arange(len(one)) + np.repeat(low - behind + touching, touching)
    number, of_runs = connected(one, other, len(first))
    labels = of_runs[np.cumsum(is_first) - 1]
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels, minlength=number)
    return Groups(rows[order], columns[order], np.append(0, np.cumsum(sizes)))


def connected(first: Array, second: Array, number: int) -> tuple[int, Array]:
    """Connected components of a graph.

    Parameters
    ----------
    first, second
        ``(k,)`` indices of the nodes that each edge joins.
    number
        Number of nodes.

    Returns
    -------
    groups, labels
        Number of groups, and ``(number,)`` the group of each node, from 0.
    """
    edges = np.ones(len(first), bool), (first, second)
    graph = scipy_part("sparse").coo_array(edges, (number, number))
    connected = scipy_part("sparse.csgraph").connected_components
    found: tuple[int, Array] = connected(graph, directed=False)
    return found
