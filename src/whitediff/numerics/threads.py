"""Number of threads that work side by side, and work shared among them.

Work is cut into pieces that do not depend on the number of threads, and results are taken in the
order of the pieces, so that sums round the same way with any number of threads.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import threadpoolctl

from ..errors import ArgumentError

__all__ = [
    "THREADS_VARIABLE",
    "available_threads",
    "in_threads",
    "scipy_part",
    "single_threaded_algebra",
    "use_threads",
    "using_threads",
]

THREADS_VARIABLE = "WHITEDIFF_NUM_THREADS"
"""Environment variable with the number of threads that may be used."""

_chosen: int | None = None
_here, _loading = threading.local(), threading.RLock()


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
        number of cores of this process.  Always 1 inside a piece of `in_threads`.

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
        Results in the order of the pieces.
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
    with _controller().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _controller() -> threadpoolctl.ThreadpoolController:
    # Finding the libraries takes milliseconds; all that matter are loaded by now.
    import scipy.linalg  # noqa: F401

    return threadpoolctl.ThreadpoolController()
