"""Memory that a process keeps, and how much of it it may use."""

from __future__ import annotations

import contextlib
import sys
from contextlib import AbstractContextManager
from pathlib import Path

__all__ = ["limited_memory", "return_freed_memory", "trim"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_PLANE, _SMALL_PLANE = 15 << 20, 1 << 20
"""Bytes: less than a mask of 4000 pixels squared, more than the stack that SEP makes each time; and
within a limit."""


def return_freed_memory(least: int = _PLANE) -> None:
    """Have the C library give freed image planes back to the system at once.

    glibc keeps what was freed below a threshold that grows to 32 MB by itself: of a 4k
    exposure's masks and intermediate planes some 400 MB that nobody uses.  What is smaller,
    such as tiles, it shall keep: fresh pages cost more than the work on them.

    Parameters
    ----------
    least
        Bytes from which memory is asked from the system and given back, one plane at a time.
    """
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, least)
        library.mallopt(_M_TRIM_THRESHOLD, 4 * least)


def trim() -> None:
    """Have the C library give back what a run has left scattered over its heap.

    Small arrays that die between others that live leave holes of pages, tens of MB after some
    hundred runs in one process: objects are no more, but the process grows.  It takes some
    milliseconds.
    """
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def limited_memory(number: int | None, directory: Path | None) -> AbstractContextManager[None]:
    """Context in which a run keeps to an amount of memory: the option ``--memory``.

    Parameters
    ----------
    number
        Bytes; None for what the machine has.
    directory
        Of the output, where large planes live meanwhile.

    Returns
    -------
    context
        `whitediff.planes.memory_limit`.
    """
    from .planes import memory_limit

    if number is not None:
        return_freed_memory(_SMALL_PLANE)
    return memory_limit(number, directory)
