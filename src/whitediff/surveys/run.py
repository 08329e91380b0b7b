"""Run of ``whitediff batch``: the products of all pairs of a manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import ArgumentError
from ..options import declarations
from ..runs.options import PAIR_OPTIONS, SubtractOptions, SurveyOptions
from ..runs.running import on_machine
from .batch import ClusterOptions
from .journal import Record
from .manifest import Item, located, make_items, read_rows
from .session import BatchOptions, run_batch

__all__ = ["items_of", "run_items"]

_NAMED = "products are named by the columns name and products"
_REMEDIES = {
    "hdu": "name the extension with the files: FILE[EXT]",
    "output": _NAMED,
    "score_output": _NAMED,
    "matched_output": _NAMED,
    "report": "run whitediff report on the products",
    "plot": "run whitediff report on the products",
    "catalog": "run whitediff detect on the products",
    "threshold": "run whitediff detect on the products",
    "json": "the numbers are in the results",
    "overwrite": "give --overwrite for the whole batch",
    "threads": "give --threads for all workers",
    "checksums": "give --no-checksums for all pairs",
}
"""Column that looks like an option but has no effect in a batch → remedy for the message."""


def items_of(manifest: Path, options: SurveyOptions, words: Mapping[str, object]) -> list[Item]:
    """Pairs of a manifest.

    Parameters
    ----------
    manifest
        Table of pairs.
    options
        Options of ``whitediff batch``.
    words
        Options of ``whitediff subtract`` for all pairs: name → value.  Relative names of files
        start from the present directory.

    Returns
    -------
    items
        One for each row.

    Raises
    ------
    FileFormatError, ArgumentError
        If the manifest cannot be understood.
    """
    if options.output is None:
        raise ArgumentError("Nowhere to write: give output, a directory.")
    known = declarations(SubtractOptions)
    shared = dict(words)
    for name, value in words.items():
        if known[name].is_file and not isinstance(value, float):
            several = value if isinstance(value, tuple) else (value,)
            found = tuple(located(str(each), Path.cwd()) for each in several)
            shared[name] = found if isinstance(value, tuple) else found[0]
    refused = {
        name: f"give --{name.replace('_', '-')} for all pairs"
        for name in known
        if name not in PAIR_OPTIONS
    }
    return make_items(
        read_rows(manifest),
        manifest,
        options.output,
        products=options.products,
        types={name: known[name] for name in PAIR_OPTIONS},
        options=shared,
        refused=refused | _REMEDIES,
    )


def run_items(
    items: Sequence[Item],
    options: SurveyOptions,
    on_record: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Subtract pairs side by side.

    Parameters
    ----------
    items
        Result of `items_of`.
    options
        Options of ``whitediff batch``.
    on_record
        Called with the record of each pair when it ends.

    Returns
    -------
    records
        One for each item.
    """
    assert options.output is not None
    how = BatchOptions(
        cluster=ClusterOptions(
            scheduler=options.scheduler,
            workers=options.workers,
            threads=options.threads,
            worker_memory=options.worker_memory,
        ),
        resume=options.resume,
        overwrite=options.overwrite,
        memory=options.running.memory,
        whiteness=options.whiteness,
        timeout=60 * options.timeout or None,
    )
    with on_machine(options.running, options.output):
        return run_batch(items, options.output, how, on_record)
