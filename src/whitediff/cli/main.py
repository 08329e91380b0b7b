"""The ``whitediff`` command."""

from __future__ import annotations

import atexit
import gc
import importlib
import sys
from pathlib import Path

import click

from .. import __version__
from ..numerics.memory import return_freed_memory
from ..outputs import noting

__all__ = ["cli", "main"]


_COMMANDS = (
    "subtract",
    "batch",
    "butler",
    "align",
    "decorrelate",
    "decorrelate-stack",
    "check",
    "info",
    "kernel",
    "convert",
    "detect",
    "report",
    "inject",
    "evaluate",
    "simulate",
    "demo",
)


class _Commands(click.Group):
    """Group whose commands are loaded when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        found: click.Command = getattr(importlib.import_module(f".{name}", __package__), name)
        return found


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="whitediff")
def cli() -> None:
    """Difference images with white noise.

    Convolving a template to match a science image correlates the noise of their
    difference. whitediff whitens it and gives it a variance, mask and PSF to match.

    Exit code: 0 done, 1 failed, 2 wrong usage.
    """


def main() -> None:
    """Run the command line."""
    return_freed_memory()
    # What is left ends with the process: it need not be searched for cycles once more.
    atexit.register(gc.freeze)
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
