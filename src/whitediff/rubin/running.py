"""Running pipelines on a repository: in this process, or submitted to a batch system."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import click

from ..errors import ArgumentError, WhitediffError, one_line
from .repository import check_repository

__all__ = ["bps_file", "pipeline_file", "pipelines", "run_pipeline"]


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
        File.
    """
    return Path(str(files("whitediff.rubin") / "bps" / "whitediff.yaml"))


def pipeline_file(name: str) -> str:
    """File of a pipeline.

    Parameters
    ----------
    name
        Name of one that comes with whitediff, or a file, possibly with ``#`` and labels of tasks.

    Returns
    -------
    path
        File, with the labels.

    Raises
    ------
    ArgumentError
        If it is neither.
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
        As for `pipeline_file`.
    inputs
        Collections of the inputs, with commas between them.
    output
        Collection for the results.
    processes
        How many quanta run side by side.
    where
        Expression that chooses data IDs.
    config
        ``LABEL:FIELD=VALUE``.
    resume
        Go on with the last run of the output collection: what it has is not made again.

    Raises
    ------
    WhitediffError
        If a quantum fails, or there is nothing to run.
    """
    check_repository(repository)
    arguments = [
        *("run", "-b", repository, "-p", pipeline_file(pipeline), "-i", inputs, "-o", output),
        *("-j", str(processes), "--register-dataset-types"),
    ]
    if processes > 1:
        # Half the time of starting each process afresh.
        arguments += ["--start-method", "forkserver"]
    if where is not None:
        arguments += ["-d", where]
    for item in config:
        arguments += ["-c", item]
    if resume:
        arguments += ["--extend-run", "--skip-existing-in", output, "--clobber-outputs"]
    _pipetask(repository, arguments)


def _pipetask(repository: str, arguments: Sequence[str]) -> None:
    from lsst.ctrl.mpexec.cli.pipetask import cli

    # pipetask prints a traceback of whatever goes wrong, and ends with 1.
    failures: list[str] = []
    logger = logging.getLogger("lsst.daf.butler.cli.utils")

    def keep(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        failures.append(record.getMessage() if error is None else one_line(error))
        return False

    logger.addFilter(keep)
    try:
        code = cli.main(
            args=["--log-level", "WARNING", "--log-level", "whitediff=INFO", *arguments],
            prog_name="pipetask",
            standalone_mode=False,
        )
    except click.ClickException as error:
        raise WhitediffError(f"{repository}: {one_line(error)}.") from error
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    finally:
        logger.removeFilter(keep)
    if code:
        reason = failures[-1] if failures else f"pipetask ended with {code}"
        raise WhitediffError(f"{repository}: {reason}; --resume tries again what failed.")
