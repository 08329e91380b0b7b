"""Options that say how inputs are read, as `whitediff.reading` declares them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from ..reading import declarations
from .console import Number, Size

__all__ = ["input_options", "limit_options"]

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


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how far files are trusted to a command.

    Parameters
    ----------
    command
        Function of the command; it gets none of them, and reads within these limits.

    Returns
    -------
    command
        Decorated.
    """

    @click.option(
        "--max-memory",
        type=Size(),
        help="Memory that one part of a file may unpack to, such as 4GB  [default: what the machine"
        " has].",
    )
    @click.option(
        "--checksums/--no-checksums",
        default=True,
        help="Verify CHECKSUM and DATASUM where files have them  [default: verify].",
    )
    @click.option(
        "--follow-paths",
        is_flag=True,
        help="Follow the names of files in headers anywhere on this machine  [default: only beside"
        " the file and below].",
    )
    @functools.wraps(command)
    def wrapper(
        *args: Any, max_memory: int | None, checksums: bool, follow_paths: bool, **kwargs: Any
    ) -> Any:
        from ..formats.limits import Limits, within

        with within(Limits(max_memory, checksums, follow_paths)):
            return command(*args, **kwargs)

    return wrapper
