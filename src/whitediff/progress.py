"""Progress of a run, for displays and the log."""

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
    """Writes the progress of runs to the log, at level DEBUG.

    A display of progress derives from this class; `showing` puts it in place.
    """

    @contextlib.contextmanager
    def stages(self, title: str, total: int) -> Iterator[Callable[[str], None]]:
        """Context of a run of some stages.

        Parameters
        ----------
        title
            What the run does.
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
            Name of the pieces.
        total
            Number of pieces.

        Yields
        ------
        advance
            Called when a piece is done.
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
    """Context in which a display shows the progress.

    Parameters
    ----------
    progress
        Display.

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
        As for `Progress.stages`.

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
        As for `Progress.counted`.

    Returns
    -------
    context
        Yields a function to call when a piece is done.
    """
    return _shown.get().counted(title, total)
