"""``whitediff batch``: subtract many pairs, on all cores or on a cluster."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from ..extras import check_extra
from ..paths import check_input
from ..runs.options import PAIR_OPTIONS, SubtractOptions, SurveyOptions
from .command import command, given, with_options
from .console import print_table
from .subtract import check_alignment, check_settled

__all__ = ["batch"]

log = logging.getLogger("whitediff.cli")

_MOST_REASONS = 20
_MINUTE = 60.0


def _pair_options(function: Callable[..., Any]) -> Callable[..., Any]:
    return with_options(SubtractOptions, function, only=PAIR_OPTIONS)


@command(
    SurveyOptions,
    short_help="Subtract many pairs, on all cores or a cluster.",
    examples=(
        "whitediff batch night.csv -o night",
        "whitediff batch night.csv -o night --products difference,score --resume",
    ),
)
@click.argument("manifest", type=click.Path(dir_okay=False, path_type=Path))
@_pair_options
def batch(options: SurveyOptions, manifest: Path, **shared: Any) -> None:
    """Subtract all pairs of a manifest, side by side.

    MANIFEST is a table (.csv, .ecsv or .parquet) with the columns science and template. Optional
    columns are name (of the products), products, and any option of subtract, such as
    kernel_order; an empty cell takes the value of the command line. Relative paths start from
    the manifest's directory. Columns of other names go into the results.

    Writes NAME.difference.fits and so on into the output directory; batch.jsonl, one JSON line
    per pair, with its numbers or the reason of its failure; batch-summary.ecsv and .png. A failed
    pair does not stop the others; the exit code is then 1.
    """
    context = click.get_current_context()
    check_alignment(context)
    check_settled(context, shared["kernel"])
    if options.scheduler is not None:
        for name in given(context, ("workers", "worker_memory")):
            raise click.UsageError(
                f"--{name.replace('_', '-')} has no effect with --scheduler; say it to the"
                " cluster's workers."
            )
    check_extra("survey", "dask", "distributed", needs="Batches need Dask ({module} is missing)")
    check_input(str(manifest))
    from ..surveys.run import items_of, run_items
    from ..surveys.session import FILES

    words = {name: shared[name] for name in given(context, PAIR_OPTIONS)}
    items = items_of(manifest, options, words)
    output = options.output
    assert output is not None
    start = time.monotonic()
    try:
        with _progress(len(items)) as (on_record, pace):
            records = run_items(items, options, on_record)
    except KeyboardInterrupt:
        log.warning(
            "Interrupted; what is done is in %s, go on with --resume.", output / FILES["journal"]
        )
        raise click.exceptions.Exit(1) from None
    _report(records, output, time.monotonic() - start, pace.ended - pace.worked)
    if any(record["outcome"] == "failed" for record in records):
        raise click.exceptions.Exit(1)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[dict[str, Any]], None], _Pace]]:
    """Show the progress of a batch: a bar on a terminal, else a line now and then."""
    pace = _Pace(total)
    if (click.get_current_context().obj or {}).get("quiet", False):
        yield pace.count, pace
        return
    if not sys.stderr.isatty():

        def say(record: dict[str, Any]) -> None:
            pace.count(record)
            if pace.is_due():
                log.info("%d of %d pairs; %s.", pace.ended, total, pace)

        yield say, pace
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("Subtracting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting workers", total=total)

        def show(record: dict[str, Any]) -> None:
            pace.count(record)
            progress.update(task, completed=pace.ended, description=str(pace))

        yield show, pace


class _Pace:
    """Number of pairs that have ended, their rate, and the time that the rest will take."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.ended = self.failed = self.worked = 0
        self._first = self._said = time.monotonic()

    def count(self, record: dict[str, Any]) -> None:
        self.ended += 1
        self.failed += record["outcome"] == "failed"
        self.worked += not record.get("unchanged")

    def is_due(self) -> bool:
        now = time.monotonic()
        due = now - self._said > _MINUTE
        if due:
            self._said = now
        return due

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self._first, 1e-3)
        rate = self.worked / seconds
        text = f"{_MINUTE * rate:.3g} per minute"
        if rate > 0:
            text += f", {_duration((self.total - self.ended) / rate)} left"
        return text + (f", {self.failed} failed" if self.failed else "")


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _report(records: list[dict[str, Any]], output: Path, seconds: float, unchanged: int) -> None:
    import statistics

    from ..surveys.session import FILES

    done = [r for r in records if r["outcome"] == "done"]
    failed = [r for r in records if r["outcome"] == "failed"]
    rows = []
    for kind, name, label in (
        ("difference", "filtered_variance_ratio", "difference: PSF-filtered variance ratio"),
        ("difference", "kernel_sum", "difference: kernel sum"),
        ("score", "pixel_variance_ratio", "score: variance / variance plane"),
        ("score", "kernel_sum", "score: kernel sum"),
    ):
        products = [r["products"][kind] for r in done if kind in r["products"]]
        values = [(p | (p.get("noise") or {})).get(name) for p in products]
        rows.append((label, [value for value in values if value is not None]))
    rows.append(("seconds", [r["seconds"]["total"] for r in done if "seconds" in r]))
    rows.append(
        (
            "largest memory, MB",
            [r["memory"]["peak"] / 1e6 for r in done if "peak" in r.get("memory", ())],
        )
    )
    title = (
        f"{output}: {len(done)} of {len(records)} pairs done, {len(failed)} failed"
        + (f", {unchanged} of them as before" if unchanged else "")
        + f"; {_duration(seconds)}"
    )
    lines = [
        (label, *(f"{f(values):.4g}" for f in (min, statistics.median, max)))
        for label, values in rows
        if values
    ]
    if lines:
        print_table(title, ("", "least", "median", "most"), lines)
    else:
        click.echo(title)
    for record in failed[:_MOST_REASONS]:
        click.echo(f"{record['item']}: {record['reason']}")
    if len(failed) > _MOST_REASONS:
        click.echo(f"… and {len(failed) - _MOST_REASONS} more in {output / FILES['journal']}.")
    log.info("%s, %s: written.", output / FILES["table"], output / FILES["journal"])
