"""Checks of files, outputs and extras before any work.

Nothing heavy is imported here, so that a refusal comes at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..options import declarations, words_of
from ..outputs import check_apart, check_output, staged
from ..paths import check_input, is_address
from ..reading import VarianceSource

__all__ = ["UNCONVOLVED", "check_given", "is_stream"]

UNCONVOLVED = "-"
"""Word for no kernel, in place of a kernel's file."""


def is_stream(path: Path) -> bool:
    """Whether an output is standard output.

    Parameters
    ----------
    path
        Output to check.

    Returns
    -------
    is_stream
        True for ``-``.
    """
    return str(path) == "-"


def check_given(options: object, *inputs: object, outputs: bool = True) -> None:
    """Refuse files that cannot be read or written, and options whose packages are missing.

    Parameters
    ----------
    options
        Options of a command.
    *inputs
        Further inputs; objects in memory are not checked.
    outputs
        Whether to check outputs too.

    Raises
    ------
    WhitediffError
        A subclass whose message names the file at fault.
    """
    known = declarations(type(options))
    words = words_of(options)
    read = [name for given in inputs for name in _names(given)]
    written: list[Path] = []
    for name, value in words.items():
        each = known[name]
        if value is None:
            continue
        if each.check is not None:
            each.check(value)
        if each.is_file:
            read += _names(value)
        elif each.is_output and not each.is_directory and not is_stream(value):
            written.append(value)
    for name in read:
        # A file that this run has written already waits elsewhere until the run ends.
        if is_address(name) or staged(Path(name)) == Path(name):
            check_input(name)
    if not outputs:
        return
    check_apart(written)
    for path in written:
        check_output(path, overwrite=bool(words.get("overwrite")), inputs=read)


def _names(given: object) -> Iterator[str]:
    """Names of the files among the given inputs."""
    if isinstance(given, tuple | list):
        for each in given:
            yield from _names(each)
    elif isinstance(given, VarianceSource):
        yield given.path
    elif isinstance(given, str | os.PathLike) and str(given) != UNCONVOLVED:
        yield os.fspath(given)
