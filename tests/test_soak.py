"""Claims: pairs that are subtracted one after the other leave neither memory nor open files behind,
in one process and in the workers of a batch; memory that stays is seen."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import tracemalloc

import numpy as np
import pytest

import whitediff
from assault.soak import GROWTH, Memory, in_a_batch, in_one_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no /proc")

NUMBER = 60
EARLY = 20
"""Pairs after which a short run is looked at: most tables of constants are made."""


def test_memory_that_stays_is_seen():
    steady = Memory("", [100_000_000 + int(1e6 * np.sin(i)) for i in range(300)], [9] * 300)
    assert abs(steady.growth(50)) < GROWTH
    # A tenth of a plane of 256² float32 pixels each time.
    leaking = Memory("", [100_000_000 + 26_000 * i for i in range(300)])
    assert leaking.growth(50) == pytest.approx(26_000 * 225, rel=0.05)
    assert "300 pairs" in str(leaking)
    assert "open files 9 to 9" in str(steady)


def test_a_few_pairs_leave_no_open_files(tmp_path):
    memory = in_one_process(4, tmp_path)
    assert len(set(memory.files[1:])) == 1


def test_no_table_of_results_grows_without_bound():
    """What is kept for each of ever new arguments would fill the memory of a survey's workers."""
    found = 0
    for module in pkgutil.walk_packages(whitediff.__path__, "whitediff."):
        if module.name.endswith("__main__"):
            continue
        try:
            names = vars(importlib.import_module(module.name))
        except ModuleNotFoundError:
            continue  # of an extra that is not installed
        for name, kept in names.items():
            if hasattr(kept, "cache_parameters"):
                found += 1
                bounded = kept.cache_parameters()["maxsize"] is not None
                assert bounded or not inspect.signature(kept).parameters, f"{module.name}.{name}"
    assert found > 3


def test_ever_new_numbers_of_sources_leave_little():
    from whitediff.stars.locus import _some

    _some(900, 3)
    tracemalloc.start()
    try:
        for n in range(1000, 1040):
            _some(n, 3)
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_pairs_in_one_process_leave_nothing(tmp_path):
    memory = in_one_process(NUMBER, tmp_path)
    assert memory.growth(EARLY) < GROWTH, str(memory)
    assert len(set(memory.files[EARLY:])) == 1


@pytest.mark.wide
def test_pairs_in_a_batch_leave_nothing(tmp_path):
    for memory in in_a_batch(NUMBER, tmp_path):
        assert memory.growth(len(memory.resident) // 3) < GROWTH, str(memory)
