"""Which of two images a matching kernel convolves."""

from __future__ import annotations

from typing import Literal

__all__ = ["Direction", "opposite"]

type Direction = Literal["template", "science"]
"""Image that is convolved with the matching kernel, and matched to the other one."""


def opposite(direction: Direction) -> Direction:
    """Image that is not convolved.

    Parameters
    ----------
    direction
        Image that is convolved.

    Returns
    -------
    opposite
        The other image.

    Examples
    --------
    >>> opposite("template")
    'science'
    """
    return "science" if direction == "template" else "template"
