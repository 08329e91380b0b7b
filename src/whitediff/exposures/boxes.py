"""Boxes of pixels: the part of a larger plane that an array covers."""

from __future__ import annotations

import dataclasses
import operator
from typing import Self

__all__ = ["Box", "Interval"]


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """Consecutive pixels along an axis.

    Attributes
    ----------
    start, stop
        Coordinates of the first pixel, and of the first beyond the last.
    """

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self.stop - self.start

    @property
    def center(self) -> float:
        """Coordinate of the middle; whole numbers are the middles of pixels."""
        return 0.5 * (self.start + self.stop - 1)

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
    """Rectangle of pixels.

    Attributes
    ----------
    y, x
        Rows and columns of the box, in pixel coordinates: `Interval`.
    """

    y: Interval
    x: Interval

    @classmethod
    def from_shape(cls, shape: tuple[int, ...], start: tuple[int, ...] = (0, 0)) -> Self:
        """Make the box of an array.

        Parameters
        ----------
        shape
            (ny, nx).
        start
            Pixel coordinates (y, x) of the array's first pixel.

        Returns
        -------
        box
            Box.
        """
        y, x = (
            Interval(operator.index(at), operator.index(at) + operator.index(n))
            for at, n in zip(start, shape, strict=True)
        )
        return cls(y, x)

    @classmethod
    def between(cls, y: tuple[int, int], x: tuple[int, int]) -> Self:
        """Make a box from its limits.

        Parameters
        ----------
        y, x
            First pixel, and first pixel beyond the last.

        Returns
        -------
        box
            Box.
        """
        return cls(*(Interval(operator.index(a), operator.index(b)) for a, b in (y, x)))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns (ny, nx)."""
        return (self.y.size, self.x.size)

    @property
    def start(self) -> tuple[int, int]:
        """Pixel coordinates (y, x) of the first pixel."""
        return (self.y.start, self.x.start)

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.y.size * self.x.size

    def contains(self, other: Box) -> bool:
        """Whether another box lies completely inside.

        Parameters
        ----------
        other
            Box.

        Returns
        -------
        inside
            True or False.
        """
        return all(
            whole.start <= part.start and part.stop <= whole.stop
            for whole, part in ((self.y, other.y), (self.x, other.x))
        )

    def overlap(self, other: Box) -> Box | None:
        """Pixels that two boxes share.

        Parameters
        ----------
        other
            Box.

        Returns
        -------
        box
            Box of these pixels; None if they share none.
        """
        y, x = (
            (max(a.start, b.start), min(a.stop, b.stop))
            for a, b in ((self.y, other.y), (self.x, other.x))
        )
        return Box.between(y, x) if y[0] < y[1] and x[0] < x[1] else None

    def grown(self, margin: int) -> Box:
        """Box with more pixels on every side.

        Parameters
        ----------
        margin
            Number of pixels; negative to shrink the box.

        Returns
        -------
        box
            Box.
        """
        y, x = ((each.start - margin, each.stop + margin) for each in (self.y, self.x))
        return Box.between(y, x)

    def part(self, rows: slice, columns: slice = slice(None)) -> Box:
        """Part of the box, by indices of its array.

        Parameters
        ----------
        rows, columns
            Slices of array indices, which count from the box's first pixel.

        Returns
        -------
        box
            Box.
        """
        y, x = (
            tuple(each.start + at for at in indices.indices(each.size)[:2])
            for each, indices in ((self.y, rows), (self.x, columns))
        )
        return Box.between((y[0], y[1]), (x[0], x[1]))

    def slices_of(self, part: Box) -> tuple[slice, slice]:
        """Rows and columns of a part of the box in the box's array.

        Parameters
        ----------
        part
            Box inside this one.

        Returns
        -------
        rows, columns
            Slices of indices.
        """
        rows, columns = (
            slice(a.start - b.start, a.stop - b.start)
            for a, b in ((part.y, self.y), (part.x, self.x))
        )
        return rows, columns

    def __str__(self) -> str:
        return f"[y={self.y}, x={self.x}]"
