"""Memory that a process keeps, and how much of it it may use."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["limited_memory", "return_freed_memory"]

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
    _tell_allocator("mallopt", _M_MMAP_THRESHOLD, least)
    _tell_allocator("mallopt", _M_TRIM_THRESHOLD, 4 * least)


def _tell_allocator(function: str, *numbers: int) -> None:
    """Call a function of glibc's allocator, where there is one."""
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        getattr(ctypes.CDLL(None), function)(*numbers)


@contextlib.contextmanager
def limited_memory(number: int | None, directory: Path | None) -> Iterator[None]:
    """Context in which a run keeps to an amount of memory: the option ``--memory``.

    When it ends, the C library gives back what the run has left scattered over its heap: small
    arrays that die between others that live leave holes of whole pages.

    Parameters
    ----------
    number
        Bytes; None for what the machine has.
    directory
        Of the output, where large planes live meanwhile.

    Yields
    ------
    None
    """
    from .planes import memory_limit

    if number is not None:
        return_freed_memory(_SMALL_PLANE)
    try:
        with memory_limit(number, directory):
            yield
    finally:
        _tell_allocator("malloc_trim", 0)
