"""Batches on Dask: paths travel, not pixels, and no failure stops the others."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import dask
import distributed

from .. import __version__
from ..errors import ArgumentError, WhitediffError, one_line
from .journal import Record
from .work import Order, failure, process, remove_temporaries

__all__ = ["ClusterOptions", "connected", "work_through"]

_log = logging.getLogger("whitediff.surveys")

_DEATHS = 1
"""Deaths of a worker that an item survives, before it is tried once more by itself."""

_AHEAD = 1
"""Items that wait at each worker, so that none waits for the scheduler."""

_ANSWER = 10.0
"""Seconds in which a scheduler answers, if there is one."""

_RECOUNT = 2.0
"""Seconds after which the workers are counted again."""

_SETTINGS = {
    "distributed.scheduler.allowed-failures": _DEATHS,
    # Results are small and memory is the items' own: nothing to spill, and a worker that is
    # paused because of its only item would wait for ever.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.98,
    # It keeps the stack of every hundredth of a second for an hour: half a megabyte a second.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.log-format": "%(message)s",
}


@dataclasses.dataclass(frozen=True)
class ClusterOptions:
    """Where a batch runs.

    Attributes
    ----------
    scheduler
        Address of a Dask scheduler; None for workers on this machine.
    workers
        How many of those; None for as many as there are cores for.
    threads
        Of each worker.
    worker_memory
        Bytes beyond which a worker on this machine is killed and its item tried again; None for
        an equal share of what the machine has.
    patience
        Seconds to wait for the scheduler and for its first worker.
    """

    scheduler: str | None = None
    workers: int | None = None
    threads: int = 1
    worker_memory: int | None = None
    patience: float = 30.0

    def __post_init__(self) -> None:
        if self.threads < 1 or (self.workers is not None and self.workers < 1):
            raise ArgumentError(
                f"Workers and their threads must be at least 1; got {self.workers} and"
                f" {self.threads}."
            )


@contextlib.contextmanager
def connected(options: ClusterOptions) -> Iterator[distributed.Client]:
    """Connect to a cluster, or start one on this machine.

    Parameters
    ----------
    options
        Where.

    Yields
    ------
    client
        With at least one worker that has this version of whitediff.

    Raises
    ------
    WhitediffError
        If there is no scheduler at the address, no worker, or one with another version.
    """
    # Some of its loggers have levels of their own.
    for name in ["distributed", *logging.root.manager.loggerDict]:
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(_SETTINGS))
        if options.scheduler is None:
            cluster = stack.enter_context(_local_cluster(options))
            client = distributed.Client(cluster)
            client.register_plugin(_Uninterrupted())
        else:
            client = _remote(options.scheduler, options.patience)
        stack.callback(_closed, client)
        _check_workers(client, options)
        yield client


def _local_cluster(options: ClusterOptions) -> Any:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = options.workers or max(1, (cores or 1) // options.threads)
    threads = str(options.threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    try:
        return distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            # None would take a port that may be in use.
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            memory_limit=options.worker_memory or "auto",
            env=dict.fromkeys(names, threads),
            silence_logs=logging.CRITICAL,
        )
    except (OSError, RuntimeError, TimeoutError) as error:
        raise WhitediffError(
            f"No workers can be started on this machine ({one_line(error)}); try fewer with"
            " --workers."
        ) from error


class _Uninterrupted(distributed.WorkerPlugin):
    """Leaves it to the batch what happens on Ctrl-C, which a terminal sends to all processes."""

    def setup(self, worker: distributed.Worker) -> None:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _remote(address: str, patience: float) -> distributed.Client:
    try:
        return distributed.Client(address, timeout=min(patience, _ANSWER))
    except (OSError, TimeoutError, ValueError) as error:
        raise WhitediffError(
            f"{address}: no Dask scheduler answers there ({one_line(error)}); start one with 'dask"
            " scheduler' and give the address that it prints."
        ) from error


def _closed(client: distributed.Client) -> None:
    with contextlib.suppress(Exception):
        client.close(timeout=5)


def _worker_version() -> str:
    """Version of whitediff, its modules loaded before the first item needs them."""
    from .. import __version__
    from . import work  # noqa: F401

    return __version__


def _check_workers(client: distributed.Client, options: ClusterOptions) -> None:
    where = options.scheduler or "this machine"
    try:
        client.wait_for_workers(1, timeout=options.patience)
    except TimeoutError as error:
        raise WhitediffError(
            f"{where}: no worker after {options.patience:g} s; start some with 'dask worker"
            f" {options.scheduler or 'ADDRESS'} --nthreads 1'."
        ) from error
    try:
        versions = client.run(_worker_version)
    except Exception as error:
        raise WhitediffError(
            f"{where}: a worker cannot load whitediff ({one_line(error)}); install it there"
            " too, with the extra 'survey'."
        ) from error
    for worker, version in versions.items():
        if version != __version__:
            raise WhitediffError(
                f"{worker}: has whitediff {version}, but here it is {__version__}; install the same"
                " version on both."
            )
    if any(number > 1 for number in client.nthreads().values()):
        _log.warning(
            "%s: workers have several threads, and whitediff works on one item a process; start"
            " them with --nthreads 1 and as many as there are cores.",
            where,
        )


def work_through(
    client: distributed.Client,
    orders: Iterable[Order],
    on_record: Callable[[Order, Record], None],
    work: Callable[[Order], Record] = process,
) -> None:
    """Have workers do all orders.

    Parameters
    ----------
    client
        Connection to the workers.
    orders
        What is to be done, in this order; taken as workers become free.
    on_record
        Called with each order and its result, in the order in which they end.
    work
        Function that does an order; importable on the workers.

    Raises
    ------
    WhitediffError
        If the scheduler is lost.

    Notes
    -----
    If it is interrupted, what the killed workers left of items that were under way is removed.
    """
    _Round(client, iter(orders), on_record, work).finish()


class _Round:
    """Orders that are waiting and under way."""

    def __init__(
        self,
        client: distributed.Client,
        waiting: Iterator[Order],
        on_record: Callable[[Order, Record], None],
        work: Callable[[Order], Record],
    ) -> None:
        self._client, self._waiting, self._work = client, waiting, work
        self._on_record = on_record
        self._under_way: dict[distributed.Future, Order] = {}
        self._suspects: list[Order] = []
        self._queue = distributed.as_completed()
        self._most, self._counted = 0, -math.inf

    def finish(self) -> None:
        try:
            self._fill()
            while self._under_way:
                order, record = self._next()
                if record is None:
                    self._suspects.append(order)
                else:
                    self._on_record(order, record)
                self._fill()
            # Whoever waited at a worker that died for another is not to blame: one by one, each
            # answers for itself.
            for order in self._suspects:
                self._submit(order)
                _, record = self._next()
                self._on_record(order, _died(order) if record is None else record)
        except BaseException:
            self._abandon()
            raise

    def _fill(self) -> None:
        """Give out as many orders as keep all workers busy."""
        if time.monotonic() - self._counted > _RECOUNT:
            threads = self._client.nthreads()
            # Workers may come and go.
            self._most = max(1, sum(threads.values()) + _AHEAD * len(threads))
            self._counted = time.monotonic()
        free = max(0, self._most - len(self._under_way))
        for order in itertools.islice(self._waiting, free):
            self._submit(order)

    def _submit(self, order: Order) -> None:
        future = self._client.submit(self._work, order, pure=False)
        self._under_way[future] = order
        self._queue.add(future)

    def _next(self) -> tuple[Order, Record | None]:
        """The next order that ends, and its result; None where workers died on it."""
        future = next(self._queue)
        order = self._under_way.pop(future)
        return order, self._result(future, order)

    def _result(self, future: distributed.Future, order: Order) -> Record | None:
        """Result of an order; None where workers died on it."""
        try:
            result: Record = future.result()
        except distributed.KilledWorker:
            return None
        except Exception as error:
            if self._client.status != "running":
                raise WhitediffError(
                    "The Dask scheduler was lost; what is done is recorded, go on with --resume."
                ) from error
            return _named(order) | failure(error)
        finally:
            future.release()
        return result

    def _abandon(self) -> None:
        with contextlib.suppress(Exception):
            self._client.cancel(list(self._under_way), force=True)
        if isinstance(self._client.cluster, distributed.LocalCluster):
            with contextlib.suppress(Exception):
                self._client.cluster.close(timeout=10)
            for order in self._under_way.values():
                for path in order.item.outputs.values():
                    remove_temporaries(Path(path))


def _named(order: Order) -> Record:
    item = order.item
    return {
        "item": item.name,
        "science": item.science,
        "template": item.template,
        "parameters": item.options,
        "extra": item.extra,
        "version": __version__,
        "host": socket.gethostname(),
        "warnings": [],
    }


def _died(order: Order) -> Record:
    error = WhitediffError(
        f"{order.item.science}: its worker died each time; if memory is short, give --memory,"
        " fewer --workers or more --worker-memory."
    )
    return _named(order) | failure(error)
