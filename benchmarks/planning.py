"""How long a survey takes on many workers: a discrete simulation with measured numbers."""

from __future__ import annotations

import dataclasses
import heapq

import numpy as np

__all__ = ["Cost", "Plan", "simulate"]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an item costs, as measured.

    Attributes
    ----------
    seconds
        Mean time on a core, its own reading and writing from a cache included.
    spread
        Standard deviation of that over its mean.
    dispatch
        Seconds that the scheduler, of which there is one, needs for each item.
    megabytes
        Read and written.
    storage
        Megabytes per second that the file system gives all workers together.
    failures
        Fraction of the items whose worker dies half way, so that they are done again.
    """

    seconds: float
    spread: float = 0.15
    dispatch: float = 0.002
    megabytes: float = 400.0
    storage: float = 2000.0
    failures: float = 0.001


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a simulation says.

    Attributes
    ----------
    seconds
        From the first item's start to the last one's end.
    core_seconds
        Work of all items.
    efficiency
        Work over workers times seconds.
    storage_used, scheduler_used
        Fractions of the time in which file system and scheduler are busy.
    """

    seconds: float
    core_seconds: float
    efficiency: float
    storage_used: float
    scheduler_used: float


def simulate(items: int, workers: int, cost: Cost, seed: int = 1) -> Plan:
    """Simulate a batch.

    Parameters
    ----------
    items, workers
        How many.
    cost
        `Cost`.
    seed
        Of the times that items take.

    Returns
    -------
    plan
        `Plan`.

    Notes
    -----
    Scheduler and file system serve one item after the other, in the order of their demands: an
    item is dispatched, read, computed and written.  What a file system does side by side takes as
    long in total.
    """
    rng = np.random.default_rng(seed)
    # A gamma distribution: no item takes less than nothing, and a few take much longer.
    shape = 1 / cost.spread**2 if cost.spread > 0 else np.inf
    scheduler = storage = work = 0.0
    storage_busy = 0.0
    free = [0.0] * workers
    left = items
    end = 0.0
    block = iter(())
    transfer = cost.megabytes / cost.storage / 2
    while left:
        ready = heapq.heappop(free)
        scheduler = max(scheduler, ready) + cost.dispatch
        try:
            seconds, lucky = next(block)
        except StopIteration:
            n = min(left + 1000, 100_000)
            drawn = rng.gamma(shape, cost.seconds / shape, n) if np.isfinite(shape) else None
            times = np.full(n, cost.seconds) if drawn is None else drawn
            block = iter(
                zip(times.tolist(), (rng.random(n) >= cost.failures).tolist(), strict=True)
            )
            seconds, lucky = next(block)
        storage = max(storage, scheduler) + transfer
        storage_busy += transfer
        if not lucky:
            heapq.heappush(free, storage + seconds / 2)
            work += seconds / 2
            continue
        computed = storage + seconds
        # Writing waits for what is being read or written at that time only through the total.
        finished = computed + transfer
        storage_busy += transfer
        storage = max(storage, storage_busy)
        work += seconds
        heapq.heappush(free, finished)
        end = max(end, finished)
        left -= 1
    return Plan(
        seconds=end,
        core_seconds=work,
        efficiency=work / (workers * end),
        storage_used=storage_busy / end,
        scheduler_used=items * cost.dispatch / end,
    )
