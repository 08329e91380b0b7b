"""Run pipelines on a repository, and find the files for pipetask and BPS."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
from lsst.daf.butler import Butler, CollectionTypeError, MissingCollectionError
from lsst.pipe.base.mp_graph_executor import MPGraphExecutorError

from ..errors import ArgumentError, WhitediffError, one_line
from ..formats import limits
from .repository import check_repository

__all__ = ["bps_file", "pipeline_file", "pipelines", "run_pipeline"]

_PRELOADED = (
    *("lsst.ctrl.mpexec", "lsst.pipe.base.mp_graph_executor", "lsst.daf.butler"),
    *("whitediff.tasks", "whitediff.rubin.formatters", "sep", "astropy.table"),
    *("scipy.ndimage", "scipy.optimize", "scipy.spatial"),
)
_EMPTY = "QuantumGraph was empty"
_log = logging.getLogger("whitediff.rubin")


def pipelines() -> dict[str, Path]:
    """Pipelines that come with whitediff.

    Returns
    -------
    pipelines
        Name → file.
    """
    folder = Path(str(files("whitediff.rubin") / "pipelines"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def bps_file() -> Path:
    """Configuration for ``bps submit`` that comes with whitediff.

    Returns
    -------
    path
        YAML file.
    """
    return Path(str(files("whitediff.rubin") / "bps" / "whitediff.yaml"))


def pipeline_file(name: str) -> str:
    """File of a pipeline.

    Parameters
    ----------
    name
        Name of a pipeline that comes with whitediff, or a file; possibly with ``#`` and labels of
        tasks.

    Returns
    -------
    path
        File, with the labels.

    Raises
    ------
    ArgumentError
        If the name is neither.
    """
    text, hash_, labels = name.partition("#")
    known = pipelines()
    if text in known:
        return f"{known[text]}{hash_}{labels}"
    if not Path(text).is_file():
        raise ArgumentError(f"{text}: no such pipeline; name a file, or one of {', '.join(known)}.")
    return name


def run_pipeline(
    repository: str,
    *,
    pipeline: str,
    inputs: str,
    output: str,
    processes: int = 1,
    where: str | None = None,
    config: Sequence[str] = (),
    resume: bool = False,
) -> None:
    """Run a pipeline as ``pipetask run`` does.

    Parameters
    ----------
    repository
        Butler repository.
    pipeline
        Name or file, as for `pipeline_file`.
    inputs
        Collections of the inputs, with commas between them.
    output
        Collection for the results.
    processes
        Number of quanta that run side by side.
    where
        Expression that selects data IDs.
    config
        Configuration of tasks, each ``LABEL:FIELD=VALUE``.
    resume
        Whether to go on with the last run of the output collection: datasets that it has are not
        made again.

    Raises
    ------
    WhitediffError
        If a quantum fails, or there is nothing to run.

    Notes
    -----
    Files are read within the present limits (`whitediff.formats.limits`).  With several processes
    the limits of the program's first run stay in force.
    """
    check_repository(repository)
    arguments = [
        *("run", "-b", repository, "-p", pipeline_file(pipeline), "-i", inputs, "-o", output),
        *("-j", str(processes), "--register-dataset-types"),
    ]
    if processes > 1:
        # Each quantum gets a process of its own.  Most of its cost, the imports, is spent only
        # once if processes are forked from a server that has imported these modules.
        arguments += ["--start-method", "forkserver"]
        multiprocessing.set_forkserver_preload(list(_PRELOADED))
    if where is not None:
        arguments += ["-d", where]
    for item in config:
        arguments += ["-c", item]
    if resume and _is_begun(repository, output):
        arguments += ["--extend-run", "--skip-existing-in", output, "--clobber-outputs"]
    with _limits_in_environment():
        said = _pipetask(repository, arguments)
    if said.empty:
        if resume and not said.missing:
            _log.info("%s: %s has all that the pipeline makes.", repository, output)
            return
        chosen = "" if where is None else f" and {where!r} holds"
        absent = f" ({'; '.join(said.missing)})" if any(said.missing) else ""
        raise WhitediffError.of(
            repository,
            f"nothing to do: in {inputs} there is no visit and detector of which the"
            f" pipeline finds all that it reads{chosen}{absent}.",
        )


@contextlib.contextmanager
def _limits_in_environment() -> Iterator[None]:
    """Context in which new processes inherit the limits of this one."""
    before = os.environ.get(limits.VARIABLE)
    os.environ[limits.VARIABLE] = limits.current().to_text()
    try:
        yield
    finally:
        if before is None:
            del os.environ[limits.VARIABLE]
        else:
            os.environ[limits.VARIABLE] = before


def _is_begun(repository: str, output: str) -> bool:
    """Whether there is a run to go on with; an early death may have left none."""
    with Butler.from_config(repository) as butler:
        try:
            return bool(butler.registry.getCollectionChain(output))
        except MissingCollectionError:
            return False
        except CollectionTypeError:
            return True  # pipetask reports what is wrong with the collection


@dataclasses.dataclass
class _Said:
    """Messages of pipetask about a run.

    Attributes
    ----------
    reasons
        Reasons of its end.
    quanta
        Whether quanta failed.
    missing
        Reasons why there is nothing to do; empty if that is no error.
    empty
        Whether there is nothing to do.
    """

    reasons: list[str] = dataclasses.field(default_factory=list)
    quanta: bool = False
    missing: list[str] = dataclasses.field(default_factory=list)
    empty: bool = False

    def keep_end(self, record: logging.LogRecord) -> bool:
        # pipetask would print a traceback of any error before it ends with 1.
        error = record.exc_info[1] if record.exc_info else None
        self.quanta |= isinstance(error, MPGraphExecutorError)
        self.reasons.append(record.getMessage() if error is None else one_line(error))
        return False

    def keep_missing(self, record: logging.LogRecord) -> bool:
        """Keep the missing datasets from a long message on how to debug the query."""
        if record.levelno < logging.ERROR:
            return True
        lines = [line.strip().rstrip(".") for line in record.getMessage().splitlines()]
        self.missing += [line for line in lines if line.startswith("No datasets")] or [""]
        return False

    @staticmethod
    def without_traceback(record: logging.LogRecord) -> bool:
        """Drop a traceback: the message has the reason, the quantum's log the rest."""
        record.exc_info = None
        return True


@contextlib.contextmanager
def _listening(said: _Said, *, verbose: bool) -> Iterator[None]:
    filters: dict[str, Callable[[logging.LogRecord], bool]] = {
        "lsst.daf.butler.cli.utils": said.keep_end
    }
    if not verbose:
        filters["lsst.pipe.base.quantum_graph_builder"] = said.keep_missing
        filters["lsst.pipe.base.mp_graph_executor"] = said.without_traceback
    for name, kept in filters.items():
        logging.getLogger(name).addFilter(kept)
    try:
        yield
    finally:
        for name, kept in filters.items():
            logging.getLogger(name).removeFilter(kept)


def _pipetask(repository: str, arguments: Sequence[str]) -> _Said:
    from lsst.ctrl.mpexec.cli.pipetask import cli

    said = _Said()
    level = logging.getLogger("whitediff").getEffectiveLevel()
    levels = {
        "whitediff": logging.getLevelName(level),
        # It warns that a program of Rubin's stack is missing, which is not needed here.
        "lsst.utils.packages": "ERROR",
    }
    options = [part for name in levels for part in ("--log-level", f"{name}={levels[name]}")]
    code: Any = 0
    with _listening(said, verbose=level <= logging.DEBUG):
        try:
            code = cli.main(
                args=["--log-level", "WARNING", *options, *arguments],
                prog_name="pipetask",
                standalone_mode=False,
            )
        except click.ClickException as error:
            if _EMPTY in str(error):
                said.empty = True
                return said
            raise WhitediffError.of(repository, f"{one_line(error)}.") from error
        except click.exceptions.Exit as stop:
            code = stop.exit_code
    if code:
        reason = said.reasons[-1] if said.reasons else f"pipetask ended with {code}"
        remedy = "; --resume tries again what failed" if said.quanta else ""
        raise WhitediffError.of(repository, f"{reason}{remedy}.")
    return said
