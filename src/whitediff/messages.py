"""Filters for the log messages of a run."""

from __future__ import annotations

import logging

__all__ = ["OnceEach"]


class OnceEach(logging.Filter):
    """Lets every message through once.

    All products of a run have the same inputs, so each would repeat the warnings about them.

    Parameters
    ----------
    by_kind
        Let each kind of sentence through once, whatever its numbers.
    """

    def __init__(self, *, by_kind: bool = False) -> None:
        super().__init__()
        self._by_kind = by_kind
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is new."""
        text = str(record.msg) if self._by_kind else record.getMessage()
        is_first = text not in self._seen
        self._seen.add(text)
        return is_first
