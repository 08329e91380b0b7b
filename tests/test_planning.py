"""The simulation behind docs/scaling.md.

Claims: it keeps to the bounds that can be had without simulating: the work over the workers, one
scheduler's and one file system's time for all items; and what fails is done again.
"""

from __future__ import annotations

import pytest

planning = pytest.importorskip("benchmarks.planning")

FREE = planning.Cost(seconds=5.0, spread=0.0, dispatch=0.0, megabytes=0.0, failures=0.0)


def cost(**changes):
    return planning.dataclasses.replace(FREE, **changes)


def test_without_overhead_work_is_shared_evenly():
    plan = planning.simulate(1000, 10, FREE)
    assert plan.seconds == pytest.approx(500)
    assert plan.efficiency == pytest.approx(1)
    assert planning.simulate(7, 10, FREE).seconds == pytest.approx(5)
    assert planning.simulate(11, 10, FREE).seconds == pytest.approx(10)


def test_times_scatter_about_their_mean():
    plan = planning.simulate(40_000, 1, cost(spread=0.5))
    # Twenty sigma of the mean would be 1.25 %.
    assert plan.core_seconds == pytest.approx(5 * 40_000, rel=0.0125)
    assert plan.core_seconds != pytest.approx(5 * 40_000, rel=1e-9)


def test_one_scheduler_and_one_file_system_bound_the_rate():
    for changes in ({"dispatch": 0.02}, {"megabytes": 200.0, "storage": 10_000.0}):
        plan = planning.simulate(20_000, 1000, cost(**changes))
        # 0.02 s an item, and 5 s of the last.
        assert plan.seconds == pytest.approx(20_000 * 0.02 + 5, rel=0.02)
        assert plan.efficiency < 0.3
    assert planning.simulate(20_000, 1000, cost(dispatch=0.02)).scheduler_used > 0.97
    slow = cost(megabytes=200.0, storage=10_000.0)
    assert planning.simulate(20_000, 1000, slow).storage_used > 0.97
    # Few workers do not notice.
    few = planning.simulate(2000, 10, cost(dispatch=0.02, megabytes=20.0, storage=10_000.0))
    assert few.seconds == pytest.approx(1000 + 200 * 0.022, rel=0.01)


def test_what_fails_is_done_again():
    plan = planning.simulate(10_000, 10, cost(failures=0.2))
    # Half of a fifth, and of the fifth of that, and so on: a quarter of a half.
    assert plan.core_seconds == pytest.approx(50_000 * (1 + 0.25 * 0.5), rel=0.01)
