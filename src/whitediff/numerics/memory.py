"""Memory that a process keeps, and a limit to the memory it may use."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["limited_memory", "return_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_PLANE, _SMALL_PLANE = 15 << 20, 1 << 20
"""Least size, bytes, of planes that are given back; the second one is for runs with a memory limit.

The first is less than a mask of 4000² pixels and more than the stack that SEP makes each time."""


def return_freed_memory(least: int = _PLANE) -> None:
    """Make the C library return freed image planes to the system at once.

    glibc keeps freed blocks below a threshold, which grows by itself to 32 MB.  After a 4k exposure
    that is some 400 MB of unused masks and intermediate planes.  It should keep smaller blocks,
    such as tiles, because fresh pages cost more time than the work on them.

    Parameters
    ----------
    least
        Size, bytes, from which blocks are taken from the system and returned one by one.
    """
    _tell_allocator("mallopt", _M_MMAP_THRESHOLD, least)
    _tell_allocator("mallopt", _M_TRIM_THRESHOLD, 4 * least)


def _tell_allocator(function: str, *numbers: int) -> None:
    """Call a function of glibc's allocator, if this system has it."""
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        getattr(ctypes.CDLL(None), function)(*numbers)


@contextlib.contextmanager
def limited_memory(number: int | None, directory: Path | None) -> Iterator[None]:
    """Context in which a run keeps to an amount of memory: the option ``--memory``.

    When it ends, the C library returns free pages that the run left scattered over its heap: small
    arrays freed between others that live on leave holes of whole pages.

    Parameters
    ----------
    number
        Bytes; None for the memory of the machine.
    directory
        Directory of the output, where large planes are kept meanwhile.

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
