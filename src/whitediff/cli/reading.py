"""Options that say how inputs are read, as `whitediff.reading` declares them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..reading import declarations
from .console import Number

__all__ = ["input_options"]

_TYPES: dict[str, Any] = {
    "number": click.FLOAT,
    "file": click.STRING,
    "number or file": Number(),
    "text": click.STRING,
}
_SIDES = {"science": "science image", "template": "template"}


def input_options(*sides: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that adds the options of `whitediff.reading.ReadingOptions` for some inputs.

    Parameters
    ----------
    *sides
        ``science``, ``template``: whose options.

    Returns
    -------
    decorator
        The command gets ``science_variance``, ``science_gain`` and so on.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for side in reversed(sides):
            for each in reversed(declarations()):
                text = each.help.format(side=_SIDES[side])
                command = click.option(
                    f"--{side}-{each.name.replace('_', '-')}",
                    type=_TYPES[each.kind],
                    metavar="FILE" if each.kind == "file" else None,
                    help=text if side == sides[0] else f"The same of the {_SIDES[side]}.",
                )(command)
        return command

    return decorate
