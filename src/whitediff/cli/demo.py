"""``whitediff demo``: all steps on simulated images."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from ..options import declared, part
from ..runs.options import RunningOptions
from .check import print_checked
from .command import command

__all__ = ["demo"]

log = logging.getLogger("whitediff.cli")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of ``whitediff demo``."""

    output: Path = declared(
        Path("whitediff-demo"),
        "Directory to write to.",
        group="Outputs",
        metavar="DIRECTORY",
        is_output=True,
        is_directory=True,
        short="o",
    )
    overwrite: bool = declared(False, "Replace files that exist.", group="Outputs")
    running: RunningOptions = part(RunningOptions, without=("memory",))


@command(
    DemoOptions,
    short_help="Simulate a pair, subtract it and check it, in half a minute.",
    examples=("whitediff demo",),
)
def demo(options: DemoOptions) -> None:
    """Simulate two images, make their difference and score, and check both.

    The kernel is found from the stars, as for any two images. Writes the simulated files, the
    difference, the score, the difference before decorrelation, the tables as JSON and a
    picture into the output directory.
    """
    from ..runs.demo import run_demo
    from ..runs.running import running

    with running(options.running):
        checked = run_demo(options.output, overwrite=options.overwrite)
    for each in checked:
        print_checked(each, elsewhere=True)
    log.info("Look at %s.", options.output / "whiteness.png")
