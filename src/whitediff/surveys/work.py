"""Work of a worker: one item of a batch."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import threadpoolctl

from .. import __version__
from ..dates import dated
from ..errors import WhitediffError, sentence
from ..exposures.model import Exposure
from ..formats.files import split_extension
from ..formats.limits import Limits, within
from ..messages import OnceEach
from ..numerics.memory import limited_memory, return_freed_memory
from ..numerics.threads import use_threads
from ..options import from_words
from ..outputs import remove_leftovers
from ..progress import Progress, showing
from ..runs.numbers import noise_of, numbers_of
from ..runs.options import SubtractOptions
from ..runs.subtract import run_subtraction
from .journal import Record, file_state, is_intact, output_state
from .manifest import Item, kind_and_file

__all__ = ["Order", "failure", "process", "remove_temporaries"]

_ONE_AT_A_TIME = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Order:
    """Order to a worker to process one item.

    Attributes
    ----------
    item
        Pair to process.
    before
        Record of the item from an earlier run, which may still hold; None to process in any case.
    threads
        Number of threads to use.
    memory
        Memory limit, bytes: planes that are large for it live in files; None for the machine's
        memory.
    whiteness
        Whether to measure the whiteness of the products.
    version
        Version of whitediff that gave the order.
    limits
        Limits of memory and trust when files are read.
    date
        Date in the outputs: `whitediff.dates.given_date` of the process that gave the order.
    """

    item: Item
    before: Record | None = None
    threads: int = 1
    memory: int | None = None
    whiteness: bool = True
    version: str = __version__
    limits: Limits = dataclasses.field(default_factory=Limits)
    date: int | None = None


def process(order: Order) -> Record:
    """Carry out an order.

    Parameters
    ----------
    order
        Order to carry out.

    Returns
    -------
    record
        JSON object.  ``outcome`` is ``done`` or ``failed``.  A failure has a ``reason``, and is
        ``final`` if content and parameters are to blame, not the machine.  ``unchanged`` is true
        if the earlier record still holds.
    """
    # Threads, memory limit and messages are set for the whole process: one item at a time.
    with _ONE_AT_A_TIME:
        return_freed_memory()
        use_threads(order.threads)
        with (
            threadpoolctl.threadpool_limits(order.threads),
            within(order.limits),
            dated(order.date),
        ):
            return _process(order)


def _process(order: Order) -> Record:
    item = order.item
    clock = _Clock()
    record: Record = _description(item)
    known: list[Record] = []
    with _messages() as messages:
        try:
            if order.version != __version__:
                raise WhitediffError(
                    f"The worker on {socket.gethostname()} has whitediff {__version__}, and the"
                    f" batch was started with {order.version}; install the same version on both."
                )
            clock.begin("hashing")
            known = _known(order.before)
            record["inputs"] = _states(item, known[-1] if known else None)
            record["key"] = _key(item, record["inputs"])
            for earlier in known:
                if _holds(earlier, record["key"], item):
                    return earlier | {"unchanged": True}
            record |= _made(order, clock)
        except Exception as error:
            record |= failure(error, final="key" in record and _is_final(error))
            if "key" in record:
                _remove_outputs(item)
            elif known:
                # The inputs cannot be read and may be unchanged: keep the earlier result.
                record["earlier"] = known[-1]
    return record | {
        "warnings": messages,
        "seconds": clock.finished(),
        "cpu_seconds": round(clock.cpu_seconds, 3),
        "memory": _memory(),
    }


def failure(error: BaseException, *, final: bool = False) -> Record:
    """Entries of a record for an error.

    Parameters
    ----------
    error
        Error that ended the item.
    final
        Whether the item would fail again with the same content and parameters.

    Returns
    -------
    entries
        Outcome, reason and final.
    """
    return {"outcome": "failed", "reason": sentence(error), "final": final}


def _description(item: Item) -> Record:
    return {
        "item": item.name,
        "science": item.science,
        "template": item.template,
        "parameters": item.options,
        "extra": item.extra,
        "version": __version__,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def _made(order: Order, clock: _Clock) -> Record:
    """Make the products of an order, and return the entries of their record."""
    item = order.item
    outputs = {kind: Path(path) for kind, path in item.outputs.items()}
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_temporaries(path)
    directory = next((path.parent for path in outputs.values()), None)
    keywords = {"difference": "output", "score": "score_output", "matched": "matched_output"}
    with limited_memory(order.memory, directory), showing(clock):
        words = {keywords[kind]: path for kind, path in outputs.items()} | item.options
        options = from_words(SubtractOptions, words | {"overwrite": True})
        written = run_subtraction(
            item.science,
            item.template,
            options,
            inspect=_measured if order.whiteness else None,
        )
    return {
        "outcome": "done",
        "outputs": {entry.kind: output_state(entry.path) for entry in written},
        "products": {
            entry.kind: numbers_of(entry.cards) | {"noise": entry.findings}
            for entry in written
            if entry.kind != "matched"
        },
    }


def _measured(kind: str, exposure: Exposure) -> Record | None:
    if kind == "matched":
        return None
    try:
        noise = noise_of(exposure, score=kind == "score").to_dict()
    except WhitediffError as error:
        logging.getLogger("whitediff.surveys").warning("%s: not measured: %s", kind, error)
        return None
    return {name: value for name, value in noise.items() if isinstance(value, int | float)}


def _states(item: Item, before: Record | None) -> dict[str, Record]:
    """Role of each input file → its state, and the part of it that is read."""
    known: Mapping[str, Record] = {} if before is None else before.get("inputs", {})
    files = {"science": item.science, "template": item.template}
    for name in item.files:
        values = item.options[name]
        several = values if isinstance(values, tuple | list) else (values,)
        files |= {f"{name} {i}": v for i, v in enumerate(several) if isinstance(v, str)}
    states = {}
    for role, text in files.items():
        kind, file = kind_and_file(text)
        _, extension = split_extension(file)
        read_as = [kind, None if extension is None else str(extension)]
        states[role] = file_state(file, known.get(role)) | {"read_as": read_as}
    return states


def _key(item: Item, inputs: Mapping[str, Record]) -> str:
    """Hash of everything that the products depend on; the places of files are not part of it."""
    content = {
        "version": __version__,
        "inputs": {
            role: [state.get("sha256") or state.get("address"), state["read_as"]]
            for role, state in inputs.items()
        },
        # An option whose value is a file, not a number, counts among the inputs.
        "options": {
            name: value
            for name, value in item.options.items()
            if name not in item.files or isinstance(value, float)
        },
        "products": sorted(item.outputs),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _known(before: Record | None) -> list[Record]:
    """Earlier results that may still hold: the last one, and the one kept when inputs failed."""
    if before is None:
        return []
    return [r for r in (before, before.get("earlier")) if r is not None and "key" in r]


def _holds(before: Record, key: str, item: Item) -> bool:
    """Whether an earlier result would come out again."""
    if before.get("key") != key:
        return False
    if before.get("outcome") == "failed":
        return bool(before.get("final"))
    outputs = before.get("outputs", {})
    return set(outputs) == set(item.outputs) and all(
        is_intact(outputs[kind], path) for kind, path in item.outputs.items()
    )


def _is_final(error: BaseException) -> bool:
    """Whether content and parameters are to blame for an error, not the machine."""
    if not isinstance(error, WhitediffError):
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return False
        if isinstance(cause, OSError) and cause.errno is not None:
            return False
        cause = cause.__cause__ or cause.__context__
    return True


def remove_temporaries(path: Path) -> None:
    """Remove temporary files that a killed process left when it wrote a product.

    Parameters
    ----------
    path
        The product.  No other process may be writing it.
    """
    remove_leftovers(path.parent, of=path.name)


def _remove_outputs(item: Item) -> None:
    """Remove products of other content or parameters: they would pass for this item's."""
    for path in item.outputs.values():
        with contextlib.suppress(OSError):
            os.unlink(path)


class _Clock(Progress):
    """Clock of the stages of an item, in seconds."""

    def __init__(self) -> None:
        self._start = self._begun = time.perf_counter()
        self._cpu = time.process_time()
        self._stage: str | None = None
        self._seconds: dict[str, float] = {}
        _reset_peak()

    @contextlib.contextmanager
    def stages(self, title: str, total: int) -> Iterator[Callable[[str], None]]:
        yield self.begin

    def begin(self, stage: str) -> None:
        now = time.perf_counter()
        if self._stage is not None:
            before = self._seconds.get(self._stage, 0.0)
            self._seconds[self._stage] = before + now - self._begun
        self._stage, self._begun = stage, now

    def finished(self) -> dict[str, float]:
        self.begin("end")
        seconds = self._seconds | {"total": self._begun - self._start}
        return {stage: round(value, 3) for stage, value in seconds.items()}

    @property
    def cpu_seconds(self) -> float:
        return time.process_time() - self._cpu


@contextlib.contextmanager
def _messages() -> Iterator[list[str]]:
    """Collect the warnings of whitediff and of other packages."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, entry: logging.LogRecord) -> None:
            messages.append(entry.getMessage())

    logger, keep = logging.getLogger("whitediff"), Keep(logging.WARNING)
    keep.addFilter(OnceEach())
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(keep)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            yield messages
        messages += [" ".join(str(entry.message).split()) for entry in caught]
    finally:
        logger.removeHandler(keep)
        logger.propagate = propagate


def _reset_peak() -> None:
    # Linux resets the peak when 5 is written here; elsewhere the peak covers the whole process.
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")


def _memory() -> dict[str, int]:
    """Memory of the process, bytes: resident now, and peak since the clock was started."""
    found: dict[str, int] = {}
    names = {"VmHWM:": "peak", "VmRSS:": "resident"}
    with contextlib.suppress(OSError), open("/proc/self/status") as stream:
        for line in stream:
            name, _, rest = line.partition("\t")
            if name in names:
                found[names[name]] = 1024 * int(rest.split()[0])
    return found
