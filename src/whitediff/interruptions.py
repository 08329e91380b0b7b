"""Stops that are heeded even where a library swallows them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["heed", "interruptible"]

_noted = False


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

    Elsewhere than in the main thread, where signals are not handled, it does nothing. A SIGINT
    that is ignored, as in the background of a shell, stays ignored.
    """
    global _noted
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, _stop)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _stop)
    _noted = False
    try:
        yield
    finally:
        _noted = False
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _stop(number: int, frame: Any) -> None:
    global _noted
    _noted = True
    raise KeyboardInterrupt


def heed() -> None:
    """Stop now if a stop was noted.

    Raises
    ------
    KeyboardInterrupt
        In the main thread, inside `interruptible`, after a signal.

    Notes
    -----
    Work that takes long calls it between its steps.
    """
    if _noted and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
