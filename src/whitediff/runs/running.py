"""How a run uses the machine, and how far it trusts files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..dates import dated, given_date
from ..formats.limits import Limits, within
from ..numerics.memory import limited_memory
from ..numerics.planes import has_limit
from ..numerics.threads import using_threads
from ..outputs import together
from .options import RunningOptions

__all__ = ["on_machine", "running"]


@contextlib.contextmanager
def on_machine(options: RunningOptions, output: Path | None = None) -> Iterator[None]:
    """Context in which the machine is used, and files are trusted, as options say.

    Parameters
    ----------
    options
        Those that are not given leave what holds outside of it.
    output
        First output, beside which large planes live meanwhile.

    Yields
    ------
    None
    """
    with contextlib.ExitStack() as stack:
        if options.threads is not None:
            stack.enter_context(using_threads(options.threads))
        limits = Limits(options.max_memory, options.checksums, options.follow_paths)
        if limits != Limits():
            stack.enter_context(within(limits))
        # What is wrong with a date is told before the work.
        if given_date() is None and options.reproducible:
            stack.enter_context(dated(0))
        if options.memory is not None or not has_limit():
            directory = None if output is None else output.absolute().parent
            stack.enter_context(limited_memory(options.memory, directory))
        yield


@contextlib.contextmanager
def running(options: RunningOptions, output: Path | None = None) -> Iterator[None]:
    """Context of a run, whose outputs appear together when it ends, or none of them.

    Parameters
    ----------
    options, output
        As for `on_machine`.

    Yields
    ------
    None
    """
    with on_machine(options, output), together():
        yield
