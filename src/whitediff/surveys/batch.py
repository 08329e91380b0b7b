"""Batches on Dask: only paths are sent to workers, and no failure stops the other items."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
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
"""Deaths of a worker after which an item is still repeated; after one more it is tried alone."""

_AHEAD = 1
"""Further items queued at each worker, so that no worker waits for the scheduler."""

_ANSWER = 10.0
"""Most seconds to wait for the answer of a scheduler."""

_RECOUNT = 2.0
"""Seconds between counts of the workers."""

_CLOSING = 10.0
"""Most seconds for closing a connection."""

_ALONE = 300.0
"""Seconds without any worker on this machine after which none is expected to come back."""

_LOOK = 0.02
"""Seconds between checks for items that have ended or take too long."""

_COLLECT = 1.0
"""Most seconds for collecting finished results when a batch is stopped."""

_DEATH = 1.0
"""Most seconds to wait for the end of a killed process."""

_CLOSED = (distributed.Status.closed, distributed.Status.closing, distributed.Status.failed)

_SETTINGS = {
    "distributed.scheduler.allowed-failures": _DEATHS,
    # Results are small and the items use the memory, so there is nothing to spill; a worker that
    # is paused because of its only item would wait for ever.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.98,
    # The profiler keeps the stack of every hundredth of a second for an hour: 0.5 MB a second.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.log-format": "%(message)s",
}


@dataclasses.dataclass(frozen=True)
class ClusterOptions:
    """Cluster on which a batch runs.

    Attributes
    ----------
    scheduler
        Address of a Dask scheduler; None for workers on this machine.
    workers
        Number of workers on this machine; None for the number of cores over threads.
    threads
        Threads of each worker.
    worker_memory
        Bytes beyond which a worker on this machine is killed and its item tried again; None for
        an equal share of the machine's memory.
    patience
        Seconds to wait for the scheduler (at most 10) and for its first worker.
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
        Cluster to connect to or start.

    Yields
    ------
    client
        Client with at least one worker; all workers have this version of whitediff.

    Raises
    ------
    WhitediffError
        If there is no scheduler at the address, no worker, or a worker with another version.
    """
    # Some loggers of distributed have levels of their own.
    for name in ["distributed", *logging.root.manager.loggerDict]:
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(_SETTINGS))
        if options.scheduler is None:
            cluster = _local_cluster(options)
            stack.callback(_closed, cluster)
            client = distributed.Client(cluster)
            client.register_plugin(_Uninterrupted())
        else:
            client = _remote(options.scheduler, options.patience)
        stack.callback(_closed, client)
        _check_workers(client, options)
        yield client


def _local_cluster(options: ClusterOptions) -> distributed.LocalCluster:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = options.workers or max(1, (cores or 1) // options.threads)
    threads = str(options.threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    try:
        return distributed.LocalCluster(
            n_workers=workers,
            # One item per process, since threads, memory limit and messages belong to it.
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            # The default, None, would take a fixed port, which may be in use.
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
    """Ignores interrupts in workers: a terminal sends them to all processes, the batch decides."""

    def setup(self, worker: distributed.Worker) -> None:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _remote(address: str, patience: float) -> distributed.Client:
    try:
        return distributed.Client(address, timeout=min(patience, _ANSWER))
    except (OSError, TimeoutError, ValueError) as error:
        raise WhitediffError.of(
            address,
            f"no Dask scheduler answers there ({one_line(error)}); start one with 'dask"
            " scheduler' and give the address that it prints.",
        ) from error


def _closed(opened: distributed.Client | distributed.LocalCluster) -> None:
    """Close a client or cluster in any state; errors no longer matter, results are recorded."""
    with contextlib.suppress(Exception):
        opened.close(timeout=_CLOSING)


def _worker_version() -> str:
    """Version of whitediff; also loads its modules before the first item needs them."""
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
    *,
    timeout: float | None = None,
) -> None:
    """Carry out all orders on the workers.

    Parameters
    ----------
    client
        Connection to the workers.
    orders
        Orders, begun in this sequence; taken from the iterable as workers become free.
    on_record
        Called with each order and its record, in the sequence in which they end.
    work
        Function that carries out an order; importable on the workers.
    timeout
        Seconds after which the worker is killed and its order counts as failed; None for no
        limit.

    Raises
    ------
    WhitediffError
        If the scheduler is lost.

    Notes
    -----
    When interrupted, finished results still go to ``on_record``; workers on this machine are
    killed, and their temporary files of unfinished items are removed.
    """
    _Round(client, iter(orders), on_record, work, timeout).finish()


_turn = threading.Lock()


def _told(work: Callable[[Order], Record], order: Order, topic: str, number: int) -> Record:
    """Carry out an order on a worker, and tell the batch when it begins."""
    with _turn:
        worker = distributed.get_worker()
        host, process_ = socket.gethostname(), os.getpid()
        worker.log_event(topic, [number, worker.address, host, process_])
        return work(order)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Worker that carries out an order, and the time at which it began."""

    since: float
    worker: str
    host: str
    process: int


class _Round:
    """All orders of a batch: waiting, under way and ended."""

    def __init__(
        self,
        client: distributed.Client,
        waiting: Iterator[Order],
        on_record: Callable[[Order, Record], None],
        work: Callable[[Order], Record],
        timeout: float | None,
    ) -> None:
        self._client, self._waiting, self._work = client, waiting, work
        self._on_record, self._timeout = on_record, timeout
        self._under_way: dict[distributed.Future, Order] = {}
        self._numbers: dict[distributed.Future, int] = {}
        self._count = itertools.count()
        self._begun: dict[int, _Place] = {}
        self._topic = f"whitediff-{uuid.uuid4()}"
        self._ended: list[tuple[Order, Record | None]] = []
        self._suspects: list[Order] = []
        self._queue = distributed.as_completed()
        self._most, self._counted, self._worked = 0, -math.inf, time.monotonic()

    def finish(self) -> None:
        try:
            self._client.subscribe_topic(self._topic, self._note)
            self._fill()
            while self._under_way or self._ended:
                order, record = self._next()
                if record is None:
                    self._suspects.append(order)
                else:
                    self._on_record(order, record)
                self._ended.pop(0)
                self._fill()
            # An order that waited at a worker which another order killed is not to blame.  One
            # by one, only the culprit can fail.
            for order in self._suspects:
                self._submit(order)
                _, record = self._next()
                self._on_record(order, _died(order) if record is None else record)
                self._ended.pop(0)
            with contextlib.suppress(Exception):
                self._client.unsubscribe_topic(self._topic)
        except BaseException:
            self._abandon()
            raise

    def _note(self, event: tuple[float, Any]) -> None:
        """Note worker and time of an order that begins."""
        number, worker, host, process_ = event[1]
        self._begun[number] = _Place(time.monotonic(), worker, host, process_)

    def _fill(self) -> None:
        """Submit enough orders to keep all workers busy."""
        self._recount()
        free = max(0, self._most - len(self._under_way))
        for order in itertools.islice(self._waiting, free):
            self._submit(order)

    def _recount(self) -> None:
        """Count the workers now and then, since they come and go, and replace lost ones."""
        if time.monotonic() - self._counted <= _RECOUNT:
            return
        try:
            threads = self._client.nthreads()
        except Exception:
            return  # The scheduler is lost: asking for a result raises the error.
        self._most = max(1, sum(threads.values()) + _AHEAD * len(threads))
        self._counted = time.monotonic()
        cluster = self._client.cluster
        if not isinstance(cluster, distributed.LocalCluster):
            return
        if threads:
            self._worked = self._counted
        elif self._counted - self._worked > _ALONE:
            raise WhitediffError(
                "All workers died, and none could be started again; what is done is recorded, go on"
                " with --resume, and with fewer --workers if memory is short."
            )
        if len(threads) < len(cluster.worker_spec):
            # Dask closes a nanny that is slow to restart its worker, and does not replace it.
            for name, nanny in list(cluster.workers.items()):
                if nanny.status in _CLOSED:
                    cluster.workers.pop(name, None)
            cluster.scale(len(cluster.worker_spec))

    def _submit(self, order: Order) -> None:
        number = next(self._count)
        future = self._client.submit(_told, self._work, order, self._topic, number, pure=False)
        self._under_way[future], self._numbers[future] = order, number
        self._queue.add(future)

    def _next(self) -> tuple[Order, Record | None]:
        """The next order that ends, and its record; None if its workers died.

        The order stays first in the list of ended ones until the caller removes it, so that an
        interruption loses no result.
        """
        while not self._ended:
            for future in self._queue.next_batch(block=False):
                # Orders that took too long have been removed.
                order = self._under_way.get(future)
                if order is not None:
                    self._ended.append((order, self._result(future, order)))
                    self._taken(future)
                    future.release()
            if not self._ended:
                self._end_late()
                self._recount()
                time.sleep(_LOOK)
        return self._ended[0]

    def _taken(self, future: distributed.Future) -> Order | None:
        self._begun.pop(self._numbers.pop(future, -1), None)
        return self._under_way.pop(future, None)

    def _end_late(self) -> None:
        """Fail orders that take too long, and kill their workers."""
        if self._timeout is None:
            return
        latest = time.monotonic() - self._timeout
        for future, number in list(self._numbers.items()):
            place = self._begun.get(number)
            if place is None or place.since > latest:
                continue
            order = self._taken(future)
            assert order is not None
            with contextlib.suppress(Exception):
                self._client.cancel([future], force=True)
            self._kill(place)
            for path in order.item.outputs.values():
                remove_temporaries(Path(path))
            self._ended.append((order, _late(order, self._timeout)))

    def _kill(self, place: _Place) -> None:
        """Kill a worker; its nanny starts another."""
        is_here = place.host == socket.gethostname()
        if is_here and place.process == os.getpid():
            return  # a thread of this process
        if isinstance(self._client.cluster, distributed.LocalCluster):
            _kill_all([place.process])
            return
        with contextlib.suppress(Exception):
            self._client.run(os._exit, 1, workers=[place.worker], wait=False, on_error="ignore")

    def _result(self, future: distributed.Future, order: Order) -> Record | None:
        """Record of an order; None if its workers died."""
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
        return result

    def _abandon(self) -> None:
        self._collect()
        with contextlib.suppress(Exception):
            self._client.cancel(list(self._under_way), force=True)
        cluster = self._client.cluster
        if isinstance(cluster, distributed.LocalCluster):
            nannies = list(cluster.workers.values())
            for nanny in nannies:
                nanny.close_gracefully()  # else it would restart the worker
            # Workers have nothing to save, and would finish their orders before they stop.
            _kill_all([nanny.pid for nanny in nannies if getattr(nanny, "pid", None)])
            for order in self._under_way.values():
                for path in order.item.outputs.values():
                    remove_temporaries(Path(path))

    def _collect(self) -> None:
        """Record the results that have arrived."""
        end = time.monotonic() + _COLLECT
        for order, record in self._ended:
            if record is not None:
                with contextlib.suppress(Exception):
                    self._on_record(order, record)
        for future in list(self._under_way):
            if self._client.status != "running" or time.monotonic() > end:
                break
            if future.status != "finished":
                continue
            order = self._under_way[future]
            # The worker that holds the result may be gone by now.
            with contextlib.suppress(Exception):
                result = future.result(timeout=max(0.05, end - time.monotonic()))
                self._taken(future)
                self._on_record(order, result)


def _kill_all(processes: Sequence[int]) -> None:
    """Kill processes of this machine, and wait until they are gone."""
    for process_ in processes:
        with contextlib.suppress(OSError):
            os.kill(process_, signal.SIGKILL)
    end = time.monotonic() + _DEATH
    while time.monotonic() < end and any(map(_is_alive, processes)):
        time.sleep(_LOOK)


def _is_alive(process_: int) -> bool:
    try:
        os.kill(process_, 0)
    except OSError:
        return False
    return True


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


def _late(order: Order, seconds: float) -> Record:
    error = WhitediffError.of(
        order.item.science,
        f"took longer than {seconds / 60:g} minutes, so its worker was"
        " stopped; allow it more with --timeout, or see what is special about these images.",
    )
    return _named(order) | failure(error)


def _died(order: Order) -> Record:
    error = WhitediffError.of(
        order.item.science,
        "its worker died each time; if memory is short, give --memory,"
        " fewer --workers or more --worker-memory.",
    )
    return _named(order) | failure(error)
