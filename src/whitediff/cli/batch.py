"""``whitediff batch``: many pairs, on all cores or on a cluster."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from .console import OUTPUT_DIRECTORY, Size, common_options, is_input, log, needs, print_table
from .reading import limit_options
from .subtract import SETTLED_OPTIONS, check_settled, subtract

__all__ = ["batch"]

_ELSEWHERE = (
    "science",
    "template",
    "output",
    "score_output",
    "matched_output",
    "hdus",
    "report",
    "catalog",
    "overwrite",
    "memory",
    "threads",
    "max_memory",
    "checksums",
    "follow_paths",
    "reproducible",
    "verbose",
    "quiet",
)
"""Parameters of subtract that are not options of its pairs."""

_NAMED = "products are named by the columns name and products"
_INSTEAD = {
    "hdu": "name the extension with the files: FILE[EXT]",
    "output": _NAMED,
    "score_output": _NAMED,
    "matched_output": _NAMED,
    "report": "run whitediff report on the products",
    "catalog": "run whitediff detect on the products",
    "overwrite": "give --overwrite for the whole batch",
    "memory": "give --memory for all pairs",
    "threads": "give --threads for all workers",
    "max_memory": "give --max-memory for all pairs",
    "checksums": "give --no-checksums for all pairs",
    "follow_paths": "give --follow-paths for all pairs",
    "reproducible": "give --reproducible for all pairs",
}
"""Columns that would be taken for options of a pair, and what to do instead."""

_PRODUCTS = ("difference", "score", "matched")
_MOST_REASONS = 20
_MINUTE = 60.0


class _Products(click.ParamType):
    name = "products"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        kinds = tuple(dict.fromkeys(part.strip() for part in str(value).split(",")))
        wrong = [kind for kind in kinds if kind not in _PRODUCTS]
        if wrong:
            self.fail(f"{wrong[0]!r} is none of {', '.join(_PRODUCTS)}", param, ctx)
        return kinds


@click.command(short_help="Subtract many pairs, on all cores or a cluster.")
@click.argument("manifest", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--output", required=True, type=OUTPUT_DIRECTORY, help="Directory for products and results."
)
@click.option(
    "--products",
    type=_Products(),
    default="difference",
    show_default=True,
    help="What to make of each pair: difference, score, matched, with commas between them.",
)
@click.option("--resume", is_flag=True, help="Do only what is missing or changed.")
@click.option("--overwrite", is_flag=True, help="Do everything, and replace what is there.")
@click.option("--scheduler", metavar="ADDRESS", help="Dask cluster to run on  [default: here].")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes on this machine  [default: one per core].",
)
@click.option(
    "--worker-memory",
    type=Size(),
    help="Memory at which a worker on this machine is stopped and its pair tried again, such as"
    " 4GB  [default: equal shares].",
)
@click.option(
    "--memory",
    type=Size(),
    help="Memory for a pair, such as 500MB: planes that are large for that live in temporary files"
    " beside the output. The result is the same  [default: what the machine has].",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=30,
    show_default=True,
    help="Minutes that a pair may take before it counts as failed and its worker is stopped; 0 for"
    " no end.",
)
@click.option(
    "--whiteness/--no-whiteness",
    default=True,
    help="Measure how white each product is  [default: yes].",
)
@common_options
@needs("survey", "dask", "distributed", says="Batches need Dask ({module} is missing)")
@limit_options
def batch(**options: Any) -> None:
    """Subtract all pairs of a manifest, side by side.

    MANIFEST is a table (.csv, .ecsv or .parquet) with the columns science and template, and if
    you like name (of the products), products, and any option of subtract by its name, such as
    kernel_order; an empty cell means what the command line says. Relative paths start from the
    manifest's directory. Columns of other names go into the results.

    Writes NAME.difference.fits and so on into the output directory; batch.jsonl, one JSON line a
    pair, with its numbers or the reason of its failure; batch-summary.ecsv and .png. Failures do
    not stop the others; the exit code is then 1.
    """
    context = click.get_current_context()
    check_settled(context, options["solutions"])
    options["threads"] = context.params.get("threads") or 1
    if options["scheduler"] is not None:
        for name in ("workers", "worker_memory"):
            if options[name] is not None:
                raise click.UsageError(
                    f"--{name.replace('_', '-')} has no effect with --scheduler; say it to the"
                    " cluster's workers."
                )
    run(**options)


_SHARED = [p for p in subtract.params if p.name not in _ELSEWHERE]
batch.params[-3:-3] = _SHARED
for _param in batch.params:
    if _param.name == "threads" and isinstance(_param, click.Option):
        _param.help = "Threads of each worker. The result is the same  [default: 1]."


def run(
    *,
    manifest: Path,
    output: Path,
    products: tuple[str, ...],
    resume: bool,
    overwrite: bool,
    scheduler: str | None,
    workers: int | None,
    worker_memory: int | None,
    memory: int | None,
    timeout: float,
    whiteness: bool,
    threads: int,
    **shared: Any,
) -> None:
    """Read the manifest, run the batch, and say what became of it.

    Parameters
    ----------
    manifest, output, products, resume, overwrite, scheduler, workers, worker_memory, memory, \
    timeout, whiteness, threads
        Options of the command.
    **shared
        Options of ``subtract``.
    """
    from ..surveys.batch import ClusterOptions
    from ..surveys.manifest import located, make_items, read_rows
    from ..surveys.session import FILES, BatchOptions, run_batch

    types = _option_types()
    for kind in types.values():
        value = shared[kind.parameter]
        if kind.is_file and isinstance(value, tuple):
            shared[kind.parameter] = tuple(located(text, Path.cwd()) for text in value)
        elif kind.is_file and isinstance(value, str):
            shared[kind.parameter] = located(value, Path.cwd())
    items = make_items(
        read_rows(manifest),
        manifest,
        output,
        products=products,
        types=types,
        options=shared,
        refused=_INSTEAD,
    )
    options = BatchOptions(
        cluster=ClusterOptions(
            scheduler=scheduler, workers=workers, threads=threads, worker_memory=worker_memory
        ),
        resume=resume,
        overwrite=overwrite,
        memory=memory,
        whiteness=whiteness,
        timeout=60 * timeout or None,
    )
    start = time.monotonic()
    try:
        with _progress(len(items)) as (on_record, pace):
            records = run_batch(items, output, options, on_record)
    except KeyboardInterrupt:
        log.warning(
            "Interrupted; what is done is in %s, go on with --resume.", output / FILES["journal"]
        )
        raise click.exceptions.Exit(1) from None
    _report(records, output, time.monotonic() - start, pace.ended - pace.worked)
    if any(record["outcome"] == "failed" for record in records):
        raise click.exceptions.Exit(1)


def _option_types() -> dict[str, Any]:
    """Columns that a manifest may have, from the options of ``subtract``."""
    from ..surveys.manifest import OptionType

    types = {}
    for param in _SHARED:
        assert isinstance(param, click.Option)
        assert param.name is not None
        types[param.opts[0].lstrip("-").replace("-", "_")] = OptionType(
            parameter=param.name,
            convert=_converter(param),
            is_file=is_input(param),
            is_multiple=param.multiple,
            is_settled=param.name in SETTLED_OPTIONS,
        )
    return types


def _converter(param: click.Option) -> Callable[[str], Any]:
    kind = click.BOOL if param.is_flag else param.type

    def convert(text: str) -> Any:
        try:
            return kind.convert(text, None, None)
        except click.BadParameter as error:
            raise ValueError(error.message) from error

    return convert


@contextlib.contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[dict[str, Any]], None], _Pace]]:
    """Show how far a batch has come: a bar on a terminal, else a line now and then."""
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
    """How many pairs have ended, how fast, and how long the rest will take."""

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
