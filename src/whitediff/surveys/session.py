"""A batch, which can be resumed: from its items to its summary."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..dates import given_date, is_reproducible
from ..diagnostics.plots import plot_batch
from ..errors import ArgumentError, FileFormatError, OutputExistsError
from ..formats.limits import current
from ..outputs import replacing
from .batch import ClusterOptions, connected, work_through
from .journal import Journal, Record, exclusive
from .manifest import Item
from .summary import summary_table
from .work import Order

__all__ = ["FILES", "BatchOptions", "run_batch"]

FILES = {
    "journal": "batch.jsonl",
    "table": "batch-summary.ecsv",
    "plot": "batch-summary.png",
    "lock": ".batch.lock",
}
"""Files that a batch writes beside its products."""

_CIRCUMSTANCES = ("seconds", "cpu_seconds", "memory", "host", "process", "started")
"""Entries of a record that differ whenever a pair is done again."""

_log = logging.getLogger("whitediff.surveys")


@dataclasses.dataclass(frozen=True)
class BatchOptions:
    """How a batch is run.

    Attributes
    ----------
    cluster
        Cluster on which the batch runs.
    resume
        Keep existing results that would come out the same.
    overwrite
        Do everything, and replace existing results.
    memory
        Approximate memory for an item, bytes, as ``--memory`` of ``subtract``; None for the
        machine's memory.
    whiteness
        Whether to measure the whiteness of each product.
    timeout
        Seconds after which an item counts as failed and its worker is killed; None for no limit.
    """

    cluster: ClusterOptions = dataclasses.field(default_factory=ClusterOptions)
    resume: bool = False
    overwrite: bool = False
    memory: int | None = None
    whiteness: bool = True
    timeout: float | None = None


def run_batch(
    items: Sequence[Item],
    output: Path,
    options: BatchOptions,
    on_record: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Process all items, keep a journal, and write a summary.

    Parameters
    ----------
    items
        Pairs to process.
    output
        Directory for journal, table and plot; made if missing.
    options
        How the batch is run.
    on_record
        Called with each record as it comes in; its entry ``unchanged`` is true if an earlier
        result was kept.

    Returns
    -------
    records
        One per item, in the order of the items; without ``unchanged``.

    Raises
    ------
    OutputExistsError
        If there are results already, and neither resume nor overwrite is set.
    WhitediffError
        If the directory cannot be written to, another batch uses it, or there is no cluster.

    Notes
    -----
    The journal keeps the results of other items too: several manifests may share a directory.
    """
    journal = Journal(output / FILES["journal"])
    try:
        output.mkdir(parents=True, exist_ok=True)
        with exclusive(output / FILES["lock"]):
            return _run(items, output, journal, options, on_record)
    except OSError as error:
        if isinstance(error, FileFormatError | OutputExistsError):
            raise
        raise FileFormatError(
            f"{error.filename or output}: cannot be written: {error.strerror}; make room, or"
            " name another output directory."
        ) from error


def _run(
    items: Sequence[Item],
    output: Path,
    journal: Journal,
    options: BatchOptions,
    on_record: Callable[[Record], None],
) -> list[Record]:
    before = journal.read()
    names = [item.name for item in items]
    _check_free(items, before, journal.path, options)
    # Removes a last line that was cut short, and shows early whether there is room to write.
    journal.rewrite(before.values())
    done: dict[str, Record] = {}

    def keep(order: Order, record: Record) -> None:
        unchanged = record.pop("unchanged", False)
        if is_reproducible():
            record = {key: value for key, value in record.items() if key not in _CIRCUMSTANCES}
        done[order.item.name] = record
        if not unchanged:
            journal.append(record)
        on_record(record | {"unchanged": unchanged})

    with connected(options.cluster) as client:
        work_through(client, _orders(items, before, options), keep, timeout=options.timeout)
    results = [done[name] for name in names]
    others = [record for name, record in before.items() if name not in done]
    journal.rewrite([*others, *results])
    _sum_up(results, output)
    return results


def _check_free(
    items: Sequence[Item], before: dict[str, Record], path: Path, options: BatchOptions
) -> None:
    if options.resume and options.overwrite:
        raise ArgumentError("To resume and to overwrite contradict each other; choose one.")
    if options.resume or options.overwrite:
        return
    remedy = "go on with --resume, begin again with --overwrite, or name another directory"
    for item in items:
        if item.name in before:
            raise OutputExistsError.of(path, f"has a result of {item.name!r} already; {remedy}.")
        for output in item.outputs.values():
            if Path(output).exists():
                raise OutputExistsError.of(output, f"exists already; {remedy}.")


def _orders(
    items: Sequence[Item], before: dict[str, Record], options: BatchOptions
) -> Iterator[Order]:
    for item in items:
        yield Order(
            item=item,
            before=before.get(item.name) if options.resume else None,
            threads=options.cluster.threads,
            memory=options.memory,
            whiteness=options.whiteness,
            limits=current(),
            date=given_date(),
        )


def _sum_up(records: Sequence[Record], output: Path) -> None:
    table = summary_table(records)
    with replacing(output / FILES["table"], overwrite=True) as temporary:
        table.write(temporary, format="ascii.ecsv")
    try:
        plot_batch(output / FILES["plot"], table, title=str(output))
    except ArgumentError as error:
        _log.info("%s", error)
