"""The ``whitediff`` command."""

from __future__ import annotations

import contextlib
import sys

import click

from .. import __version__
from .check import check
from .decorrelate import decorrelate
from .decorrelate_stack import decorrelate_stack
from .demo import demo
from .simulate import simulate
from .subtract import subtract

__all__ = ["cli", "main"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_PLANE = 16 << 20
"""Bytes from which memory is asked from the system and given back, one plane at a time."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="whitediff")
def cli() -> None:
    """Difference images with white noise.

    Convolving a template to match a science image correlates the noise of their
    difference. whitediff whitens it and gives it a variance, mask and PSF to match.

    Exit code: 0 done, 1 failed, 2 wrong usage.
    """


for command in (subtract, decorrelate, decorrelate_stack, check, simulate, demo):
    cli.add_command(command)


def _return_freed_memory() -> None:
    """Have the C library give freed image planes back to the system at once.

    glibc keeps what was freed below a threshold that grows to 32 MB by itself: of a 4k
    exposure's masks and intermediate planes some 400 MB that nobody uses.  What is smaller,
    such as tiles, it shall keep: fresh pages cost more than the work on them.
    """
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _PLANE)
        library.mallopt(_M_TRIM_THRESHOLD, 4 * _PLANE)


def main() -> None:
    """Run the command line."""
    _return_freed_memory()
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("whitediff: interrupted; no output was written.", err=True)
        code = 1
    except BrokenPipeError:
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
