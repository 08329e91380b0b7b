"""What is done with the messages of a run."""

from __future__ import annotations

import logging

__all__ = ["OnceEach"]


class OnceEach(logging.Filter):
    """Lets every message through once.

    Products of one run share what is wrong with their inputs.

    Parameters
    ----------
    by_kind
        Once for each kind of sentence, whatever its numbers.
    """

    def __init__(self, *, by_kind: bool = False) -> None:
        super().__init__()
        self._by_kind = by_kind
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is no repetition."""
        text = str(record.msg) if self._by_kind else record.getMessage()
        is_first = text not in self._seen
        self._seen.add(text)
        return is_first
