"""Ctrl-C and SIGTERM: obeyed even if a library swallows them, put off while a step must finish."""

from __future__ import annotations

import contextlib
import contextvars
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["heed", "heeding", "interruptible", "uninterrupted"]

_noted = False
_works_for_main: contextvars.ContextVar[bool] = contextvars.ContextVar("for main", default=False)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Context in which Ctrl-C and SIGTERM raise `KeyboardInterrupt` and are noted for `heed`.

    Yields
    ------
    None

    Notes
    -----
    Python drops an exception that a finaliser or the callback of a weak reference raises, and a
    library may turn it into another. A run that was told to stop would then go on to its end.

    Outside the main thread it does nothing, because only that thread handles signals. A SIGINT
    that is ignored, as in the background of a shell, stays ignored.
    """
    global _noted
    if not _is_main():
        yield
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    _noted = False
    try:
        with _handled(numbers, _stop):
            yield
    finally:
        _noted = False


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Context that delays Ctrl-C and SIGTERM until it ends.

    Yields
    ------
    None

    Notes
    -----
    Outside the main thread it does nothing, because only that thread handles signals.
    """
    if not _is_main():
        yield
        return
    caught: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    # A handler that was not installed from Python reads as None and could not be put back.
    ours = [number for number in numbers if signal.getsignal(number) is not None]
    try:
        with _handled(ours, lambda number, frame: caught.append(number)):
            yield
    finally:
        if caught:
            signal.raise_signal(caught[0])


@contextlib.contextmanager
def _handled(
    numbers: Sequence[signal.Signals], handler: Callable[[int, Any], None]
) -> Iterator[None]:
    """Context in which a handler receives the signals."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, other in before.items():
            signal.signal(number, signal.SIG_DFL if other is None else other)


def heeding[Result](work: Callable[[], Result]) -> Callable[[], Result]:
    """Function for another thread in which `heed` stops as it does in this one.

    Parameters
    ----------
    work
        Function whose end this thread will wait for.

    Returns
    -------
    work
        The same, to be called in a thread of its own.
    """
    does_heed = _is_main() or _works_for_main.get()

    def run() -> Result:
        token = _works_for_main.set(does_heed)
        try:
            return work()
        finally:
            _works_for_main.reset(token)

    return run


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _stop(number: int, frame: Any) -> None:
    global _noted
    _noted = True
    raise KeyboardInterrupt


def heed() -> None:
    """Stop now if a stop was noted.

    Raises
    ------
    KeyboardInterrupt
        Inside `interruptible`, after a signal: in the main thread, and in one that works for it
        (`heeding`).

    Notes
    -----
    Long work calls it between its steps.
    """
    if _noted and (_is_main() or _works_for_main.get()):
        raise KeyboardInterrupt
