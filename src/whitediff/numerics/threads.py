"""How many threads work side by side, and sharing work out among them.

Work is cut into pieces that do not depend on the number of threads, and results are taken in the
order of the pieces: sums round the same way whatever that number is.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import threadpoolctl

from ..errors import ArgumentError

__all__ = [
    "THREADS_VARIABLE",
    "available_threads",
    "in_threads",
    "single_threaded_algebra",
    "use_threads",
    "using_threads",
]

THREADS_VARIABLE = "WHITEDIFF_NUM_THREADS"
"""Environment variable that says how many threads may be used."""

_chosen: int | None = None
_here = threading.local()


def use_threads(number: int | None) -> None:
    """Choose how many threads this process may use.

    Parameters
    ----------
    number
        At least 1; None to go by the environment again.

    Raises
    ------
    ArgumentError
        If it is less.
    """
    global _chosen
    if number is not None and number < 1:
        raise ArgumentError(f"The number of threads must be at least 1; got {number}.")
    _chosen = number


@contextlib.contextmanager
def using_threads(number: int) -> Iterator[None]:
    """Context in which this process may use a number of threads.

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
        What `use_threads` chose; else what ``WHITEDIFF_NUM_THREADS`` says; else what
        ``OMP_NUM_THREADS`` says, with which Dask and pipetask keep their processes to their
        share; else as many as this process has cores.  Inside of a piece of `in_threads`, 1.

    Raises
    ------
    ArgumentError
        If ``WHITEDIFF_NUM_THREADS`` is not a positive number.
    """
    if getattr(_here, "busy", False):
        return 1
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
        In the order of the pieces.
    """
    pieces = list(items)
    threads = min(available_threads(), len(pieces))
    if threads <= 1:
        return [work(piece) for piece in pieces]

    def busy() -> None:
        _here.busy = True

    _load_scipy()
    with ThreadPoolExecutor(threads, initializer=busy) as pool:
        return list(pool.map(work, pieces))


def _load_scipy() -> None:
    """Load what SciPy loads when it is first used: threads that did so would see halves of it."""
    import scipy.fft
    import scipy.linalg
    import scipy.ndimage
    import scipy.optimize
    import scipy.sparse.csgraph
    import scipy.sparse.linalg
    import scipy.spatial
    import scipy.special  # noqa: F401


@contextlib.contextmanager
def single_threaded_algebra() -> Iterator[None]:
    """Context, or decorator of a function, in which linear algebra stays on one thread.

    Products of small matrices do not gain from more, and those of large ones would round
    differently with their number.

    Yields
    ------
    None
    """
    with _controller().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _controller() -> threadpoolctl.ThreadpoolController:
    # Finding the libraries takes milliseconds; all that matter are loaded by now.
    import scipy.linalg  # noqa: F401

    return threadpoolctl.ThreadpoolController()
