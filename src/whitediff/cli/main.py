"""The ``whitediff`` command."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .. import __version__
from ..numerics.memory import return_freed_memory
from ..outputs import noting
from .align import align
from .batch import batch
from .butler import butler
from .check import check
from .convert import convert
from .decorrelate import decorrelate
from .decorrelate_stack import decorrelate_stack
from .demo import demo
from .detect import detect
from .evaluate import evaluate
from .info import info
from .inject import inject
from .kernel import kernel
from .report import report
from .simulate import simulate
from .subtract import subtract

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="whitediff")
def cli() -> None:
    """Difference images with white noise.

    Convolving a template to match a science image correlates the noise of their
    difference. whitediff whitens it and gives it a variance, mask and PSF to match.

    Exit code: 0 done, 1 failed, 2 wrong usage.
    """


for command in (
    subtract,
    batch,
    butler,
    align,
    decorrelate,
    decorrelate_stack,
    check,
    info,
    kernel,
    convert,
    detect,
    report,
    inject,
    evaluate,
    simulate,
    demo,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line."""
    return_freed_memory()
    with noting() as written:
        sys.exit(_code(written))


def _code(written: list[Path]) -> int:
    """Run the command line, report an interruption, and return the exit code."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        there = ", ".join(map(str, dict.fromkeys(written)))
        rest = f"complete are {there}" if there else "no output was written"
        click.echo(f"whitediff: interrupted; {rest}.", err=True)
        code = 1
    except BrokenPipeError:
        code = 1
    return code if isinstance(code, int) else 0
