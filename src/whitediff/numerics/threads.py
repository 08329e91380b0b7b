"""Number of threads that work side by side, and work shared among them.

Work is cut into pieces that do not depend on the number of threads, and results are taken in the
order of the pieces, so that sums round the same way with any number of threads.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import threadpoolctl

from ..errors import ArgumentError
from ..interruptions import heeding

__all__ = [
    "THREADS_VARIABLE",
    "available_threads",
    "in_threads",
    "scipy_part",
    "side_by_side",
    "single_threaded_algebra",
    "use_threads",
    "using_threads",
]

THREADS_VARIABLE = "WHITEDIFF_NUM_THREADS"
"""Environment variable with the number of threads that may be used."""

_FEW_PIXELS = 1 << 16

_chosen: int | None = None
_here, _loading, _limiting = threading.local(), threading.RLock(), threading.Lock()
_limits: list[Any] = []
"""The limit to linear algebra, while there is one, and an entry for each context in it."""


def use_threads(number: int | None) -> None:
    """Set the number of threads that this process may use.

    Parameters
    ----------
    number
        At least 1; None to use the environment's number again.

    Raises
    ------
    ArgumentError
        If the number is less than 1.
    """
    global _chosen
    if number is not None and number < 1:
        raise ArgumentError(f"The number of threads must be at least 1; got {number}.")
    _chosen = number


@contextlib.contextmanager
def using_threads(number: int) -> Iterator[None]:
    """Context that sets the number of threads that this process may use.

    Parameters
    ----------
    number
        At least 1.

    Yields
    ------
    None
    """
    before = _chosen
    use_threads(number)
    try:
        yield
    finally:
        use_threads(before)


def available_threads() -> int:
    """Number of threads that work side by side.

    Returns
    -------
    threads
        The first that is set: the number of `use_threads`, ``WHITEDIFF_NUM_THREADS``,
        ``OMP_NUM_THREADS`` (with which Dask and pipetask limit their processes), and the
        number of cores of this process.  Always 1 inside a piece of `in_threads`, and half of
        them in the second function of `side_by_side`.

    Raises
    ------
    ArgumentError
        If ``WHITEDIFF_NUM_THREADS`` is not a positive number.
    """
    share: int | None = getattr(_here, "share", None)
    if share is not None:
        return share
    if _chosen is not None:
        return _chosen
    text = os.environ.get(THREADS_VARIABLE, "").strip()
    if text:
        if not (text.isdecimal() and int(text) > 0):
            raise ArgumentError(
                f"The environment variable {THREADS_VARIABLE} must be a positive number; got"
                f" {text!r}."
            )
        return int(text)
    shared = os.environ.get("OMP_NUM_THREADS", "").strip()
    if shared.isdecimal() and int(shared) > 0:
        return int(shared)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_threads[Item, Result](work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Work on some pieces side by side.

    Parameters
    ----------
    work
        Function of a piece.
    items
        Pieces.

    Returns
    -------
    results
        Results in the order of the pieces.
    """
    pieces = list(items)
    threads = min(available_threads(), len(pieces))
    if threads <= 1:
        return [work(piece) for piece in pieces]

    _load_scipy()
    with ThreadPoolExecutor(threads, initializer=_take, initargs=(1,)) as pool:
        return list(pool.map(work, pieces))


def _take(share: int) -> None:
    """Set the number of threads that work in this thread may use."""
    _here.share = share


def side_by_side[First, Second](
    first: Callable[[], First], second: Callable[[], Second], *, pixels: int | None = None
) -> tuple[First, Second]:
    """Do two things at once that do not depend on each other.

    Parameters
    ----------
    first, second
        Functions.  Each sees the context variables of the caller, and linear algebra stays on one
        thread in both, so that results do not depend on the number of threads.
    pixels
        Pixels on which they work; for few of them, such as a cut-out's, threads cost more than
        they spare.

    Returns
    -------
    results
        Results of both.  If both fail, the first's error is raised.

    Notes
    -----
    Messages to whitediff's loggers come in the order in which they came without threads.
    """
    threads = available_threads()
    with single_threaded_algebra():
        if threads == 1 or (pixels is not None and pixels < _FEW_PIXELS):
            return first(), second()
        _load_scipy()
        context = contextvars.copy_context()
        # The first keeps all threads: it needs them when the second has ended.
        share = max(1, threads // 2)
        with _Held() as held, ThreadPoolExecutor(1, initializer=_take, initargs=(share,)) as pool:
            later = pool.submit(context.run, held.quietly, heeding(second))
            one = first()
        # Only now the second is done; its messages come even if it failed.
        held.release()
        return one, later.result()


class _Held(logging.Filter):
    """Holds the messages of one thread back."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []
        self._thread: int | None = None
        self._handlers: list[logging.Handler] = []

    def __enter__(self) -> _Held:
        for name in ("whitediff", ""):
            self._handlers += logging.getLogger(name).handlers
        for handler in self._handlers:
            # Before filters that remember what they saw.
            handler.filters.insert(0, self)
        return self

    def __exit__(self, *_: object) -> None:
        for handler in self._handlers:
            handler.removeFilter(self)

    def quietly[Result](self, work: Callable[[], Result]) -> Result:
        """Call a function in the thread whose messages are held."""
        self._thread = threading.get_ident()
        return work()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self._thread:
            return True
        if record not in self._records:
            self._records.append(record)
        return False

    def release(self) -> None:
        """Send the messages that were held."""
        for record in self._records:
            logging.getLogger(record.name).handle(record)


def _load_scipy() -> None:
    """Load SciPy's usual submodules: threads that loaded them at once would see half of one."""
    import scipy.fft
    import scipy.linalg
    import scipy.ndimage
    import scipy.special  # noqa: F401


def scipy_part(name: str) -> Any:
    """Submodule of SciPy that few runs need, loaded by one thread at a time.

    Parameters
    ----------
    name
        Name, such as ``spatial``.

    Returns
    -------
    module
        ``scipy.spatial``.
    """
    with _loading:
        return importlib.import_module(f"scipy.{name}")


@contextlib.contextmanager
def single_threaded_algebra() -> Iterator[None]:
    """Context, or decorator of a function, in which linear algebra stays on one thread.

    Products of small matrices do not gain from more threads, and products of large ones would
    round differently with the number of threads.

    Yields
    ------
    None
    """
    with _limiting:
        if not _limits:
            _limits.append(_controller().limit(limits=1, user_api="blas"))
        _limits.append(None)
    try:
        yield
    finally:
        # The limit is one of the process: the last thread that needs it lifts it.
        with _limiting:
            _limits.pop()
            if len(_limits) == 1:
                _limits.pop().restore_original_limits()


@functools.cache
def _controller() -> threadpoolctl.ThreadpoolController:
    # Finding the libraries takes milliseconds; all that matter are loaded by now.
    import scipy.linalg  # noqa: F401

    return threadpoolctl.ThreadpoolController()
