"""Memory, threads, dates and limits of a run."""

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
    """Context with the memory, threads, dates and limits of the options.

    Parameters
    ----------
    options
        Options of the run; settings that are not given stay as outside the context.
    output
        First output; temporary files of large planes lie beside it.

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
        # given_date comes first: a wrong date must fail before the work.
        if given_date() is None and options.reproducible:
            stack.enter_context(dated(0))
        if options.memory is not None or not has_limit():
            directory = None if output is None else output.absolute().parent
            stack.enter_context(limited_memory(options.memory, directory))
        yield


@contextlib.contextmanager
def running(options: RunningOptions, output: Path | None = None) -> Iterator[None]:
    """Context of a run: its outputs appear all together at its end, or not at all.

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
