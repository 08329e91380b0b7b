"""``whitediff butler``: Rubin's middleware for those who have no Rubin stack."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..extras import check_extra, missing_extra
from .console import common_options, log
from .reading import limit_options

__all__ = ["butler"]

_MIDDLEWARE = ("lsst.daf.butler", "lsst.pipe.base", "lsst.ctrl.mpexec")
_NEEDS = "This needs Rubin's middleware ({module} is missing)"


@click.group(short_help="Butler repositories, pipelines and batch systems.")
def butler() -> None:
    """Keep pairs and differences in a Butler, and run pipelines on them.

    REPO is the directory of a repository.
    """


def _needs_middleware(command: Callable[..., Any]) -> Callable[..., Any]:
    """Say in a sentence what to install where the middleware is missing."""

    @functools.wraps(command)
    def wrapper(**options: Any) -> Any:
        check_extra("rubin", *_MIDDLEWARE, needs=_NEEDS)
        try:
            return command(**options)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith(("lsst", "parsl", "psycopg2")):
                raise
            # A part of it that few need, such as a driver of databases.
            raise missing_extra("rubin", str(error.name), needs=_NEEDS) from error

    return wrapper


@butler.command(short_help="Make a repository.")
@click.argument("repo")
@click.option(
    "--database",
    metavar="URL",
    help="Registry's database, such as postgresql://user@host/name  [default: SQLite in REPO].",
)
@click.option("--namespace", metavar="NAME", help="Schema in that database.")
@click.option(
    "--extend", is_flag=True, help="Teach a repository that is there our storage classes."
)
@common_options
@_needs_middleware
def init(repo: str, database: str | None, namespace: str | None, extend: bool) -> None:
    """Make a Butler repository with a generic instrument, in the directory REPO."""
    from ..rubin.repository import init_repository

    init_repository(repo, database=database, namespace=namespace, extend=extend)
    log.info("%s: %s.", repo, "knows whitediff's storage classes" if extend else "made")


@butler.command(short_help="Put pairs into a repository.")
@click.argument("repo")
@click.argument("manifest", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--collection", default="pairs", show_default=True, help="Run to put them into.")
@click.option("--instrument", default="Generic", show_default=True, help="Name of the instrument.")
@click.option(
    "--transfer",
    type=click.Choice(["direct", "copy", "symlink", "hardlink", "convert"]),
    default="direct",
    show_default=True,
    help="Leave files in place; copy or link them; or convert them to whitediff's format.",
)
@common_options
@_needs_middleware
@limit_options
def ingest(repo: str, manifest: Path, collection: str, instrument: str, transfer: str) -> None:
    """Put the pairs of a manifest into a repository, as datasets science and template.

    MANIFEST is a table (.csv, .ecsv or .parquet) with the columns science and template, and if
    you like visit, detector, band, physical_filter, mjd and exposure_time. Visits without a
    number are numbered.
    """
    from ..rubin.repository import ingest as put_in
    from ..rubin.repository import make_pairs
    from ..surveys.manifest import read_rows

    pairs = make_pairs(read_rows(manifest), manifest)
    number = put_in(repo, pairs, run=collection, instrument=instrument, transfer=transfer)
    log.info("%s: %d pairs in the collection %s.", repo, number, collection)


@butler.command("run", short_help="Run a pipeline.")
@click.argument("repo")
@click.option(
    "--pipeline",
    default="difference",
    show_default=True,
    help="difference, score, steps, sources, recreate; or a file.",
)
@click.option("--input", "inputs", default="pairs", show_default=True, help="Collections.")
@click.option("--output", required=True, help="Collection for the results.")
@click.option(
    "-j", "--processes", type=click.IntRange(min=1), default=1, show_default=True,
    help="How many run side by side.",
)  # fmt: skip
@click.option("--where", metavar="EXPRESSION", help="Which data, such as 'visit = 5'.")
@click.option(
    "-c", "--config", multiple=True, metavar="LABEL:FIELD=VALUE", help="Configuration of a task."
)
@click.option("--resume", is_flag=True, help="Go on: make only what is missing in the output.")
@common_options
@_needs_middleware
@limit_options
def run_command(repo: str, **options: Any) -> None:
    """Run a pipeline on a repository with pipetask.

    Failures do not stop the others; --resume tries them again.
    """
    from ..interruptions import heed
    from ..rubin.running import run_pipeline

    try:
        run_pipeline(repo, **options)
        heed()
    except (click.Abort, KeyboardInterrupt):
        # Quanta in processes of their own would go on, and this one wait for them.
        for process in multiprocessing.active_children():
            process.kill()
        log.warning(
            "%s: interrupted; what is done is in the collection %s, go on with --resume.",
            repo,
            options["output"],
        )
        raise click.exceptions.Exit(1) from None
    log.info("%s: done; the results are in the collection %s.", repo, options["output"])


@butler.command(short_help="Where the pipelines and the configuration of BPS are.")
@common_options
@_needs_middleware
def files() -> None:
    """List the files that pipetask and bps take, one a line."""
    from ..rubin.running import bps_file, pipelines

    for name, path in pipelines().items():
        click.echo(f"{name}\t{path}")
    click.echo(f"bps\t{bps_file()}")
