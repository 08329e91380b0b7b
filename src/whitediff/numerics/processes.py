"""Independent work shared among processes, any of which may fail without the others.

Threads share an image's planes.  Work that takes seconds and returns a few numbers goes to
processes.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import threadpoolctl

from ..errors import ArgumentError, WhitediffError
from .threads import use_threads

__all__ = ["in_processes"]


def in_processes[Item, Result](
    work: Callable[[Item], Result], items: Iterable[Item], *, processes: int
) -> Iterator[tuple[Item, Result | Exception]]:
    """Work on some pieces in other processes.

    Parameters
    ----------
    work
        Function of a piece; both the function and its results can be pickled.
    items
        Pieces.
    processes
        Number of processes side by side, one thread each; 1 works in this process, with its
        threads.

    Yields
    ------
    item, result
        Piece and its result, or the error that it raised, in the order in which they are done.
        Pieces whose process died, such as for lack of memory, are tried once more, alone.

    Raises
    ------
    ArgumentError
        If the number is not positive.
    """
    if processes < 1:
        raise ArgumentError(f"The number of processes must be at least 1; got {processes}.")
    if processes == 1:
        for item in items:
            yield item, _tried(work, item)
        return
    lost: list[Item] = []
    yield from _in_pools(work, deque(items), processes, lost)
    again: list[Item] = []
    for item in lost:
        yield from _in_pools(work, deque([item]), 1, again)
    for item in again:
        yield item, WhitediffError("Its process died twice; is there enough memory?")


def _tried[Item, Result](work: Callable[[Item], Result], item: Item) -> Result | Exception:
    try:
        return work(item)
    except Exception as error:
        return error


def _in_pools[Item, Result](
    work: Callable[[Item], Result], items: deque[Item], processes: int, lost: list[Item]
) -> Iterator[tuple[Item, Result | Exception]]:
    """Results from one pool after another, until a pool completes all pieces that are left.

    Pieces that were running when a pool broke are appended to ``lost``.
    """
    while items:
        with _pool(processes, work) as pool:
            running: dict[Future[Any], Item] = {}
            broken = False
            while (items and not broken) or running:
                # No more than the processes work on soon: results do not pile up.
                while items and not broken and len(running) < 2 * processes:
                    item = items.popleft()
                    try:
                        with _main_left_out():
                            running[pool.submit(_run, item)] = item
                    except BrokenProcessPool:
                        items.appendleft(item)
                        broken = True
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    item = running.pop(future)
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        lost.append(item)
                        broken = True
                    elif isinstance(error, Exception):
                        yield item, error
                    elif error is not None:
                        raise error
                    else:
                        yield item, future.result()


@contextlib.contextmanager
def _pool(processes: int, work: Callable[[Any], Any]) -> Iterator[ProcessPoolExecutor]:
    """Pool of processes that end when this one is interrupted."""
    before = set(multiprocessing.active_children())
    # A forked process would inherit locks that threads of this one hold.
    context = multiprocessing.get_context("spawn")
    level = logging.getLogger("whitediff").level
    pool = ProcessPoolExecutor(processes, context, _begin, (work, level))
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _main_left_out() -> Iterator[None]:
    """Context in which new processes do not run the main script again.

    They need nothing of it, and a script without ``if __name__ == "__main__"`` would start the same
    work once more in each of them.
    """
    main = sys.modules["__main__"]
    kept = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
    for name in kept:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)


_work: Callable[[Any], Any] | None = None
"""Function that a worker process applies; handed over once, not with every piece."""


def _begin(work: Callable[[Any], Any], level: int) -> None:
    """Set up a worker process: one thread, and only the parent handles interruptions."""
    global _work
    _work = work
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    use_threads(1)
    threadpoolctl.threadpool_limits(1)
    logging.getLogger("whitediff").setLevel(level)


def _end_with_parent() -> None:
    """End this process if the parent was killed: it would wait for work that never comes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(item: Any) -> Any:
    assert _work is not None
    return _work(item)
