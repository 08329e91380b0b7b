"""Which parameters of a test belong to the quick ones, and what a test needs."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

__all__ = ["in_turn", "needs_piff", "slow_after"]


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


def in_turn(first: Iterable[Any], *others: Iterable[Any], seeds: Sequence[int]) -> list[Any]:
    """Parameters of a test: every combination, and every seed for each of the first values.

    All seeds of all combinations would take too long; a value of the first parameter meets each
    seed once, with the combinations of the others in turn.

    Parameters
    ----------
    first
        Values of the first parameter: kinds of fields.
    *others
        Values of further ones.
    seeds
        Values of the last one.
    """
    combinations = list(itertools.product(*others))
    turns = max(len(combinations), len(seeds))
    return [
        (value, *combinations[i % len(combinations)], seeds[i % len(seeds)])
        for value in first
        for i in range(turns)
    ]


def needs_piff() -> None:
    """Skip where lsst.images cannot give Piff its models, as with Piff 1.7."""
    piff = pytest.importorskip("piff")
    reader = vars(importlib.import_module("lsst.images.psfs._piff"))["_ArchivePiffReader"]
    if hasattr(piff.readers.FitsReader, "read_bandpass") and not hasattr(reader, "read_bandpass"):
        pytest.skip("lsst.images does not read models with this Piff")
