"""What a worker does with one item of a batch."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

from .. import __version__
from ..dates import dated
from ..diagnostics.measure import ScoreNoise, Whiteness, score_noise, whiteness
from ..errors import DataError, WhitediffError, sentence
from ..exposures import masks
from ..exposures.model import Exposure
from ..exposures.psf import psf_image
from ..formats.files import split_extension
from ..formats.limits import Limits, within
from ..memory import limited_memory, return_freed_memory
from ..messages import OnceEach
from ..outputs import remove_leftovers
from ..runs.subtract import Written, run_subtraction
from ..threads import use_threads
from .journal import Record, file_state, is_intact, output_state
from .manifest import Item, kind_and_file

__all__ = ["NUMBERS", "Order", "failure", "measure", "process", "remove_temporaries"]

NUMBERS = {
    "WDCONV": "convolved",
    "WDKSUM": "kernel_sum",
    "WDKSERR": "kernel_sum_error",
    "WDKWSUM": "kernel_sum_with_wings",
    "WDKWERR": "kernel_sum_with_wings_error",
    "WDKORDER": "kernel_order",
    "WDNSTAR": "stars",
    "WDNUSED": "stars_used",
    "WDCHI2": "reduced_chi_square",
    "WDSFWHM": "science_fwhm",
    "WDTFWHM": "template_fwhm",
    "WDTFRAC": "template_fraction",
    "WDSVFAC": "science_variance_factor",
    "WDTVFAC": "template_variance_factor",
    "WDVAFT": "variance_mean",
    "WDCONTAM": "contaminated_fraction",
    "WDKFROM": "kernel_from",
    "WDFSMEAS": "flux_scale",
    "WDTFLUX": "transient_flux",
    "WDTFERR": "transient_flux_error",
    "WDDOUBT": "doubts",
    "WDDEPTH": "depth",
    "WDMAGLIM": "limiting_magnitude",
    "WDSGWID": "significance_width",
}
"""Cards of a product, and what they are called in the results."""

_ONE_AT_A_TIME = threading.Lock()
_SAMPLE = 1 << 22
"""Pixels on which whiteness is measured, at least: its error is below 0.2 % then."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What a worker is told to do.

    Attributes
    ----------
    item
        The pair.
    before
        Record of the item in an earlier run that may still hold; None to do it in any case.
    threads
        How many threads it may use.
    memory
        Bytes from which on planes live in files; None for what the machine has.
    whiteness
        Measure how white the products are.
    version
        Of whitediff where the order was given.
    limits
        How far files are trusted.
    date
        That outputs hold, `whitediff.dates.given_date` where the order was given.
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
    """Do what an order says.

    Parameters
    ----------
    order
        Order.

    Returns
    -------
    record
        JSON object.  ``outcome`` is ``done`` or ``failed``, with the ``reason`` and whether it
        is ``final``, which it is where content and parameters are to blame; ``unchanged`` is
        true where the earlier record holds.
    """
    # Threads, memory limit and messages belong to the process.
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
                # Of inputs that are out of reach nobody knows whether they changed.
                record["earlier"] = known[-1]
    return record | {
        "warnings": messages,
        "seconds": clock.finished(),
        "cpu_seconds": round(clock.cpu_seconds, 3),
        "memory": _memory(),
    }


def failure(error: BaseException, *, final: bool = False) -> Record:
    """What a record says of an error.

    Parameters
    ----------
    error
        Error.
    final
        Done again with the same content and parameters, the item would fail again.

    Returns
    -------
    entries
        Of the record.
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
    """Entries of a record once the products are there."""
    item = order.item
    outputs = {kind: Path(path) for kind, path in item.outputs.items()}
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_temporaries(path)
    directory = next((path.parent for path in outputs.values()), None)
    keywords = {"difference": "output", "score": "score_output", "matched": "matched_output"}
    with limited_memory(order.memory, directory):
        written = run_subtraction(
            science=item.science,
            template=item.template,
            overwrite=True,
            begin=clock.begin,
            inspect=_measured if order.whiteness else None,
            **{keywords[kind]: path for kind, path in outputs.items()},  # type: ignore[arg-type]
            **item.options,
        )
    return {
        "outcome": "done",
        "outputs": {entry.kind: output_state(entry.path) for entry in written},
        "products": {entry.kind: _numbers(entry) for entry in written if entry.kind != "matched"},
    }


def _numbers(entry: Written) -> Record:
    """Numbers of a product that JSON can hold."""
    numbers = {name: entry.cards.get(card) for card, name in NUMBERS.items()}
    numbers = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in numbers.items()
    }
    finite = {
        name: value
        for name, value in numbers.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }
    return finite | {"noise": entry.findings}


def _measured(kind: str, exposure: Exposure) -> Record | None:
    if kind == "matched":
        return None
    try:
        noise = measure(exposure, score=kind == "score").to_dict()
    except WhitediffError as error:
        logging.getLogger("whitediff.surveys").warning("%s: not measured: %s", kind, error)
        return None
    return {name: value for name, value in noise.items() if isinstance(value, int | float)}


def measure(exposure: Exposure, *, score: bool) -> Whiteness | ScoreNoise:
    """Measure how white a product is, on a sample of its source-free pixels.

    Parameters
    ----------
    exposure
        Difference with a PSF, or score, with its mask plane SOURCE.
    score
        It is a score.

    Returns
    -------
    noise
        `whitediff.diagnostics.measure.Whiteness`, or of a score
        `whitediff.diagnostics.measure.ScoreNoise`.

    Raises
    ------
    DataError
        If the difference has no PSF, or too few pixels are left.

    Notes
    -----
    Of a frame with more than four million pixels 4 × 4 tiles, which have a quarter of them, are
    laid side by side with gaps as wide as the filter.  Gaps count as masked, which does not bias
    the ratios.
    """
    planes = (*masks.DEFAULT_IGNORE_MASK_PLANES, masks.CONTAMINATED, "SUSPECT", masks.SOURCE)
    good = ~masks.flagged(exposure.mask, planes)
    image, variance = exposure.image.array, exposure.variance.array
    if score:
        return score_noise(*_sampled((image, variance, good), 0))
    if exposure.psf is None:
        raise DataError("the difference has no PSF.")
    box = exposure.bbox
    psf = psf_image(exposure.psf, x=box.x.center, y=box.y.center)
    image, variance, good = _sampled((image, variance, good), max(psf.shape))
    return whiteness(image, variance, good, psf)


def _sampled(planes: tuple[Any, ...], gap: int, across: int = 4) -> tuple[Any, ...]:
    ny, nx = planes[0].shape
    if ny * nx <= _SAMPLE or min(ny, nx) < 4 * across * max(gap, 32):
        return planes
    shrink = math.sqrt(max(_SAMPLE / (ny * nx), 0.25))
    height, width = (int(n * shrink / across) for n in (ny, nx))
    sampled = []
    for plane in planes:
        result = np.zeros((across * (height + gap), across * (width + gap)), dtype=plane.dtype)
        for j in range(across):
            for i in range(across):
                y = (2 * j + 1) * ny // (2 * across) - height // 2
                x = (2 * i + 1) * nx // (2 * across) - width // 2
                top, left = j * (height + gap), i * (width + gap)
                tile = plane[y : y + height, x : x + width]
                result[top : top + height, left : left + width] = tile
        sampled.append(result)
    return tuple(sampled)


def _states(item: Item, before: Record | None) -> dict[str, Record]:
    """What the files of an item hold and how they are read, by their part in it."""
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
    """Hash of all that the products depend on; not of where the files are."""
    content = {
        "version": __version__,
        "inputs": {
            role: [state.get("sha256") or state.get("address"), state["read_as"]]
            for role, state in inputs.items()
        },
        # Of those that may be a number or a file, what is a file is among the inputs.
        "options": {
            name: value
            for name, value in item.options.items()
            if name not in item.files or isinstance(value, float)
        },
        "products": sorted(item.outputs),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _known(before: Record | None) -> list[Record]:
    """Earlier results that may still hold: the last one, and that of a time with all inputs."""
    if before is None:
        return []
    return [r for r in (before, before.get("earlier")) if r is not None and "key" in r]


def _holds(before: Record, key: str, item: Item) -> bool:
    """Whether an earlier result is what would come out again."""
    if before.get("key") != key:
        return False
    if before.get("outcome") == "failed":
        return bool(before.get("final"))
    outputs = before.get("outputs", {})
    return set(outputs) == set(item.outputs) and all(
        is_intact(outputs[kind], path) for kind, path in item.outputs.items()
    )


def _is_final(error: BaseException) -> bool:
    """Whether content and parameters are to blame, and not the machine."""
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
    """Remove what a killed process left when it wrote a product.

    Parameters
    ----------
    path
        The product.  Nobody else may be writing it.
    """
    remove_leftovers(path.parent, of=path.name)


def _remove_outputs(item: Item) -> None:
    """Take away products of other content or parameters: they would pass for this item's."""
    for path in item.outputs.values():
        with contextlib.suppress(OSError):
            os.unlink(path)


class _Clock:
    """Seconds that stages take."""

    def __init__(self) -> None:
        self._start = self._begun = time.perf_counter()
        self._cpu = time.process_time()
        self._stage: str | None = None
        self._seconds: dict[str, float] = {}
        _reset_peak()

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
    """What whitediff and others warn of meanwhile."""
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
    # Linux forgets the peak when 5 is written here; elsewhere the peak is the process's.
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")


def _memory() -> dict[str, int]:
    """Bytes that the process holds now, and held at most meanwhile."""
    found: dict[str, int] = {}
    names = {"VmHWM:": "peak", "VmRSS:": "resident"}
    with contextlib.suppress(OSError), open("/proc/self/status") as stream:
        for line in stream:
            name, _, rest = line.partition("\t")
            if name in names:
                found[names[name]] = 1024 * int(rest.split()[0])
    return found
