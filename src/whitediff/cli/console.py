"""What all commands share: messages, progress, tables and exit codes."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import click

from ..memory import limited_memory, return_freed_memory
from ..messages import OnceEach

__all__ = [
    "Number",
    "common_options",
    "counted",
    "fail",
    "limited_memory",
    "print_table",
    "return_freed_memory",
    "stages",
]

log = logging.getLogger("whitediff.cli")

_ARGUMENTS = (
    (re.compile(r"\bspatially_varying=False"), "--constant"),
    (re.compile(r"\b(fill|noise)='(\w+)'"), r"--\1 \2"),
)
"""What errors call an argument in Python, and the option of the command line that it is."""


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"{prefix}{record.getMessage()}"


class _Handler(logging.StreamHandler[Any]):
    """Writes to what is standard error now: a progress bar puts itself in its place."""

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


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--threads``, ``--reproducible``, ``-v`` and ``-q`` to a command.

    Parameters
    ----------
    command
        Function of the command; it gets none of them.

    Returns
    -------
    command
        Decorated.
    """

    @click.option(
        "--threads",
        type=click.IntRange(min=1),
        help="How many work side by side  [default: WHITEDIFF_NUM_THREADS, else as many as there"
        " are cores]. The result is the same.",
    )
    @click.option(
        "--reproducible",
        is_flag=True,
        help="Outputs of the same run are the same bytes: they hold the date SOURCE_DATE_EPOCH"
        " (seconds; default 0: 1970), and no times.",
    )
    @click.option("-v", "--verbose", is_flag=True, help="Say more.")
    @click.option("-q", "--quiet", is_flag=True, help="Say only what is wrong.")
    @click.pass_context
    @functools.wraps(command)
    def wrapper(
        context: click.Context,
        /,
        *args: Any,
        threads: int | None,
        reproducible: bool,
        verbose: bool,
        quiet: bool,
        **kwargs: Any,
    ) -> Any:
        if verbose and quiet:
            raise click.UsageError("-v and -q contradict each other.")
        set_up_logging(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
        context.obj = {"verbose": verbose, "quiet": quiet}
        from ..dates import dated, given_date
        from ..interruptions import heed, interruptible
        from ..threads import use_threads

        use_threads(threads)
        # A terminated run cleans up its temporary files as an interrupted one does.
        with interruptible():
            try:
                date = given_date()
                with dated(0 if date is None and reproducible else date):
                    return command(*args, **kwargs)
            except (click.ClickException, click.exceptions.Exit, click.Abort, KeyboardInterrupt):
                raise
            except Exception as error:
                heed()
                fail(error, verbose=verbose)

    return wrapper


def fail(error: BaseException, *, verbose: bool = False) -> None:
    """Say in one sentence what is wrong and exit with 1.

    Parameters
    ----------
    error
        What happened.
    verbose
        Show where an unexpected error came from.
    """
    from ..errors import WhitediffError, sentence

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
    raise click.exceptions.Exit(1)


@contextlib.contextmanager
def stages(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show on a terminal how far a command has come.

    Parameters
    ----------
    title
        What it does.
    total
        Number of stages.

    Yields
    ------
    begin
        Call it with the name of each stage as it begins.
    """
    from ..interruptions import heed

    quiet = (click.get_current_context().obj or {}).get("quiet", False)
    if quiet or not sys.stderr.isatty():

        def note(name: str) -> None:
            heed()
            log.debug("%s: %s", title, name)

        yield note
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:32}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        begun = 0

        def begin(name: str) -> None:
            nonlocal begun
            heed()
            progress.update(task, completed=begun, description=f"{title}: {name}")
            begun += 1

        yield begin


@contextlib.contextmanager
def counted(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show on a terminal how many of some equal pieces are done, and how long the rest will take.

    Parameters
    ----------
    title
        What they are.
    total
        Their number.

    Yields
    ------
    advance
        Call it when one is done.
    """
    quiet = (click.get_current_context().obj or {}).get("quiet", False)
    if quiet or not sys.stderr.isatty():
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            log.debug("%s: %d of %d", title, done, total)

        yield count
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        # What was done a while ago says as much as what was done last: pieces are equal.
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, speed_estimate_period=3600
    ) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output.

    Parameters
    ----------
    title
        Above it.
    columns
        Headings; the first column is left-aligned, the others right-aligned.
    rows
        Cells.
    """
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
    # Wide enough for the table where the output is no terminal.
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    # Not the table's own title, which a narrow table would break.
    console.print(escape(title), style="italic", soft_wrap=True)
    console.print(table)


class Number(click.ParamType):
    """A number, or else text: a file."""

    name = "number|file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        """Convert what the user typed.

        Parameters
        ----------
        value
            Text.
        param, ctx
            As click has them.

        Returns
        -------
        value
            Float where it reads as one.
        """
        try:
            return float(value)
        except ValueError:
            return str(value)


class Size(click.ParamType):
    """An amount of memory, such as ``500MB``."""

    name = "size"
    _units: ClassVar[dict[str, int]] = {
        "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
        "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
    }  # fmt: skip

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Convert what the user typed.

        Parameters
        ----------
        value
            Text.
        param, ctx
            As click has them.

        Returns
        -------
        value
            Bytes.
        """
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]?I?B?)\s*", str(value).upper())
        unit = None if found is None else self._units.get(found[2])
        if found is None or unit is None or not float(found[1]) > 0:
            self.fail(f"{value!r} is not an amount of memory, such as 500MB or 2GB", param, ctx)
        return round(float(found[1]) * unit)


class Order(click.ParamType):
    """A polynomial order, or how to choose it."""

    name = "order"
    choices = ("bic", "cross-validation")

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Convert what the user typed.

        Parameters
        ----------
        value
            Text.
        param, ctx
            As click has them.

        Returns
        -------
        value
            A number, or one of the choices.
        """
        if value in self.choices:
            return str(value)
        try:
            order = int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor {' nor '.join(self.choices)}", param, ctx)
        if order < 0:
            self.fail(f"an order is at least 0; got {order}", param, ctx)
        return order


class OddSize(click.ParamType):
    """Side of a stamp with a middle pixel."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Convert what the user typed.

        Parameters
        ----------
        value
            Text.
        param, ctx
            As click has them.

        Returns
        -------
        value
            An odd number from 3 on.
        """
        size = int(click.INT.convert(value, param, ctx))
        if size < 3 or size % 2 == 0:
            self.fail(f"must be odd and at least 3; got {size}", param, ctx)
        return size


class Place(click.ParamType):
    """Pixel coordinates ``X,Y``."""

    name = "place"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float]:
        """Convert what the user typed.

        Parameters
        ----------
        value
            Text.
        param, ctx
            As click has them.

        Returns
        -------
        value
            x and y.
        """
        if isinstance(value, tuple):
            return value
        try:
            x, y = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"must be two numbers X,Y; got {value!r}", param, ctx)
        return x, y


OUTPUT_FILE = click.Path(dir_okay=False, path_type=Path)
OUTPUT_DIRECTORY = click.Path(file_okay=False, path_type=Path)
