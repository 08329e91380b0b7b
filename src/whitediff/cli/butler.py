"""``whitediff butler``: Rubin's middleware, without the Rubin stack."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import click

from ..extras import check_extra, missing_extra
from ..options import declared, part
from ..runs.options import RunningOptions
from .command import command

__all__ = ["butler"]

log = logging.getLogger("whitediff.cli")

_MIDDLEWARE = ("lsst.daf.butler", "lsst.pipe.base", "lsst.ctrl.mpexec")
_NEEDS = "This needs Rubin's middleware ({module} is missing)"


@click.group(short_help="Butler repositories, pipelines and batch systems.")
def butler() -> None:
    """Keep pairs and differences in a Butler, and run pipelines on them.

    REPO is the directory of a repository.
    """


@contextlib.contextmanager
def _with_middleware(options: RunningOptions) -> Iterator[None]:
    """Run the body with Rubin's middleware; if a part is missing, say what to install."""
    check_extra("rubin", *_MIDDLEWARE, needs=_NEEDS)
    from ..runs.running import on_machine

    try:
        with on_machine(options):
            yield
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(("lsst", "parsl", "psycopg2")):
            raise
        # A part that few users need, such as a driver of databases.
        raise missing_extra("rubin", str(error.name), needs=_NEEDS) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitOptions:
    """Options of ``whitediff butler init``."""

    database: str | None = declared(
        None,
        "Database of the registry, such as postgresql://user@host/name  [default: SQLite in REPO].",
        metavar="URL",
    )
    namespace: str | None = declared(None, "Schema in that database.", metavar="NAME")
    extend: bool = declared(False, "Teach our storage classes to a repository that is there.")
    running: RunningOptions = part(RunningOptions, without=("memory",))


@command(InitOptions, short_help="Make a repository.", examples=("whitediff butler init repo",))
@click.argument("repo")
def init(options: InitOptions, repo: str) -> None:
    """Make a Butler repository with a generic instrument, in the directory REPO."""
    with _with_middleware(options.running):
        from ..rubin.repository import init_repository

        init_repository(
            repo,
            database=options.database,
            namespace=options.namespace,
            extend=options.extend,
        )
    log.info("%s: %s.", repo, "knows whitediff's storage classes" if options.extend else "made")


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """Options of ``whitediff butler ingest``."""

    collection: str = declared("pairs", "Run to put them into.", metavar="NAME")
    instrument: str = declared("Generic", "Name of the instrument.", metavar="NAME")
    transfer: Literal["direct", "copy", "symlink", "hardlink", "convert"] = declared(
        "direct",
        "Leave files in place; copy or link them; or convert them to whitediff's format.",
    )
    running: RunningOptions = part(RunningOptions, without=("memory",))


@command(
    IngestOptions,
    short_help="Put pairs into a repository.",
    examples=("whitediff butler ingest repo night.csv",),
)
@click.argument("repo")
@click.argument("manifest", type=click.Path(dir_okay=False, path_type=Path))
def ingest(options: IngestOptions, repo: str, manifest: Path) -> None:
    """Put the pairs of a manifest into a repository, as datasets science and template.

    MANIFEST is a table (.csv, .ecsv or .parquet) with the columns science and template. Optional
    columns are visit, detector, band, physical_filter, mjd and exposure_time. Visits without a
    number are numbered.
    """
    with _with_middleware(options.running):
        from ..rubin.repository import ingest as put_in
        from ..rubin.repository import make_pairs
        from ..surveys.manifest import read_rows

        pairs = make_pairs(read_rows(manifest), manifest)
        number = put_in(
            repo,
            pairs,
            run=options.collection,
            instrument=options.instrument,
            transfer=options.transfer,
        )
    log.info("%s: %d pairs in the collection %s.", repo, number, options.collection)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of ``whitediff butler run``."""

    pipeline: str = declared(
        "difference",
        "Pipeline: difference, score, steps, sources, recreate; or a file.",
        metavar="NAME|FILE",
    )
    input: str = declared("pairs", "Collections of the inputs.", metavar="NAMES")
    output: str = declared("", "Collection for the results.", metavar="NAME", required=True)
    processes: int = declared(1, "Processes side by side.", least=1, short="j")
    where: str | None = declared(
        None, "Expression that says which data, such as 'visit = 5'.", metavar="EXPRESSION"
    )
    config: tuple[str, ...] = declared(
        (),
        "Configuration of a task; may be repeated.",
        metavar="LABEL:FIELD=VALUE",
        several=True,
        short="c",
    )
    resume: bool = declared(False, "Go on: make only what is missing in the output.")
    running: RunningOptions = part(RunningOptions, without=("memory",))


@command(
    RunOptions,
    name="run",
    short_help="Run a pipeline.",
    examples=("whitediff butler run repo --output differences -j 2",),
)
@click.argument("repo")
def run_command(options: RunOptions, repo: str) -> None:
    """Run a pipeline on a repository with pipetask.

    A failed pair does not stop the others; --resume tries it again.
    """
    from ..interruptions import heed

    with _with_middleware(options.running):
        from ..rubin.running import run_pipeline

        try:
            run_pipeline(
                repo,
                pipeline=options.pipeline,
                inputs=options.input,
                output=options.output,
                processes=options.processes,
                where=options.where,
                config=options.config,
                resume=options.resume,
            )
            heed()
        except (click.Abort, KeyboardInterrupt):
            # Quanta in child processes would go on, and this process would wait for them.
            for process in multiprocessing.active_children():
                process.kill()
            log.warning(
                "%s: interrupted; what is done is in the collection %s, go on with --resume.",
                repo,
                options.output,
            )
            raise click.exceptions.Exit(1) from None
    log.info("%s: done; the results are in the collection %s.", repo, options.output)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilesOptions:
    """Options of ``whitediff butler files``."""

    running: RunningOptions = part(RunningOptions, without=("memory",))


@command(FilesOptions, short_help="Where the pipelines and the configuration of BPS are.")
def files(options: FilesOptions) -> None:
    """List the files for pipetask and bps, one per line."""
    with _with_middleware(options.running):
        from ..rubin.running import bps_file, pipelines

        for name, path in pipelines().items():
            click.echo(f"{name}\t{path}")
        click.echo(f"bps\t{bps_file()}")


for _command in (init, ingest, run_command, files):
    butler.add_command(_command)
