"""Which parameters of a test belong to the quick ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["slow_after"]


def slow_after(number: int, values: Iterable[Any]) -> list[Any]:
    """Parameters of a test, all but the first few of which are slow.

    Parameters
    ----------
    number
        How many are quick.
    values
        Parameters; a tuple holds one for each name.
    """
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=() if i < number else pytest.mark.slow,
        )
        for i, value in enumerate(values)
    ]
