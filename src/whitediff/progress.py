"""How far a run has come, for whoever wants to show it."""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from .interruptions import heed

__all__ = ["Progress", "counted", "showing", "stages"]

_log = logging.getLogger("whitediff.progress")


class Progress:
    """Notes the progress of runs in the log, for those who want to know all.

    Those who show it derive from this class and are put in place by `showing`.
    """

    @contextlib.contextmanager
    def stages(self, title: str, total: int) -> Iterator[Callable[[str], None]]:
        """Context of a run of some stages.

        Parameters
        ----------
        title
            What it does.
        total
            Number of stages.

        Yields
        ------
        begin
            Called with the name of each stage as it begins.
        """
        yield lambda name: _log.debug("%s: %s", title, name)

    @contextlib.contextmanager
    def counted(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        """Context of some equal pieces of work.

        Parameters
        ----------
        title
            What they are.
        total
            Their number.

        Yields
        ------
        advance
            Called when one is done.
        """
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            _log.debug("%s: %d of %d", title, done, total)

        yield count


_SILENT = Progress()
_shown: contextvars.ContextVar[Progress] = contextvars.ContextVar("progress", default=_SILENT)


@contextlib.contextmanager
def showing(progress: Progress) -> Iterator[None]:
    """Context in which progress is shown in some way.

    Parameters
    ----------
    progress
        Way to show it.

    Yields
    ------
    None
    """
    token = _shown.set(progress)
    try:
        yield
    finally:
        _shown.reset(token)


@contextlib.contextmanager
def stages(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Context of a run of some stages, each of which may be interrupted.

    Parameters
    ----------
    title, total
        As of `Progress.stages`.

    Yields
    ------
    begin
        Called with the name of each stage as it begins.
    """
    with _shown.get().stages(title, total) as shown:

        def begin(name: str) -> None:
            heed()
            shown(name)

        yield begin


def counted(title: str, total: int) -> AbstractContextManager[Callable[[], None]]:
    """Context of some equal pieces of work.

    Parameters
    ----------
    title, total
        As of `Progress.counted`.

    Returns
    -------
    context
        Yields a function to call when one is done.
    """
    return _shown.get().counted(title, total)
