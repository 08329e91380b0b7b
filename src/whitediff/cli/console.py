"""Shared by all commands: messages, progress, tables and exit codes."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from ..messages import OnceEach
from ..progress import Progress

__all__ = ["OUTPUT_DIRECTORY", "Terminal", "fail", "print_table", "set_up_logging"]

log = logging.getLogger("whitediff.cli")

_ARGUMENTS = (
    (re.compile(r"\bspatially_varying=False"), "--constant"),
    (re.compile(r"\b(fill|noise)='(\w+)'"), r"--\1 \2"),
)
"""Pattern of a Python argument in errors, and the option of the command line in its place."""


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"{prefix}{record.getMessage()}"


class _Handler(logging.StreamHandler[Any]):
    """Handler for the present standard error, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def set_up_logging(level: int) -> None:
    """Send whitediff's messages to standard error.

    Parameters
    ----------
    level
        Least level to show.
    """
    logger = logging.getLogger("whitediff")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
    handler = _Handler()
    handler.setFormatter(_Formatter())
    handler.addFilter(OnceEach())
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


def fail(error: BaseException, *, verbose: bool = False) -> None:
    """Report an error in one sentence, and exit with 1, or 2 for wrong usage.

    Parameters
    ----------
    error
        Error to report.
    verbose
        Whether to show the traceback of an unexpected error.
    """
    from ..errors import UsageError, WhitediffError, sentence

    text = sentence(error)
    if not isinstance(error, WhitediffError | MemoryError | OSError):
        if verbose:
            import traceback

            traceback.print_exception(error)
        text += " Run again with -v for the traceback and report it, please."
    if isinstance(error, WhitediffError):
        for argument, option in _ARGUMENTS:
            text = argument.sub(option, text)
    click.echo(f"whitediff: {text}", err=True)
    raise click.exceptions.Exit(2 if isinstance(error, UsageError) else 1)


class Terminal(Progress):
    """Progress as a bar, if standard error is a terminal.

    Parameters
    ----------
    quiet
        Whether to show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    @contextlib.contextmanager
    def stages(self, title: str, total: int) -> Iterator[Callable[[str], None]]:
        """Context of a run of some stages."""
        if self._quiet or not sys.stderr.isatty():
            with super().stages(title, total) as note:
                yield note
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description:32}"), BarColumn(), TimeElapsedColumn())
        with Bar(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(title, total=total)
            begun = 0

            def begin(name: str) -> None:
                nonlocal begun
                progress.update(task, completed=begun, description=f"{title}: {name}")
                begun += 1

            yield begin

    @contextlib.contextmanager
    def counted(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        """Context of some equal pieces of work; tells how long the rest will take."""
        if self._quiet or not sys.stderr.isatty():
            with super().counted(title, total) as count:
                yield count
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            # All pieces are equal, so the speed is averaged over a long time.
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        with Bar(*columns, console=console, transient=True, speed_estimate_period=3600) as progress:
            task = progress.add_task(title, total=total)
            yield lambda: progress.advance(task)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output, unless the user asked for quiet.

    Parameters
    ----------
    title
        Title above the table.
    columns
        Headings; the first column is left-aligned, the others right-aligned.
    rows
        Cells.
    """
    if (click.get_current_context().obj or {}).get("quiet", False):
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    # Brackets in names of files are no markup.
    table = Table(box=SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # If the output is no terminal, its width is unknown: wide enough for the tables.
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    # Not as the table's own title, which would be broken to the width of a narrow table.
    console.print(escape(title), style="italic", soft_wrap=True)
    console.print(table)


OUTPUT_DIRECTORY = click.Path(file_okay=False, path_type=Path)
