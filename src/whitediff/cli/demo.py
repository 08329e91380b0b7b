"""``whitediff demo``: the whole way on simulated images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..outputs import together
from .console import OUTPUT_DIRECTORY, common_options, log, stages

__all__ = ["demo"]


@click.command(short_help="Simulate a pair, subtract it and check it, in half a minute.")
@click.option(
    "--output",
    type=OUTPUT_DIRECTORY,
    default=Path("whitediff-demo"),
    show_default=True,
    help="Directory to write to.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@common_options
@together()
def demo(output: Path, overwrite: bool) -> None:
    """Simulate two images, make their difference and score, and check both.

    The kernel is found from the stars, as for any two images. Leaves the simulated files, the
    difference, the score, the difference before decorrelation, the tables as JSON and a
    picture in the output directory.
    """
    from ..runs.subtract import run_subtraction
    from ..simulation import SimulationOptions
    from .check import run_check
    from .simulate import write_simulation

    simulated = output / "simulated"
    write_simulation(SimulationOptions(), simulated, overwrite=overwrite)
    difference, score, before = (
        output / f"{name}.fits" for name in ("difference", "score", "uncorrected")
    )
    with stages("Subtracting", 8) as begin:
        run_subtraction(
            science=str(simulated / "science.fits"),
            template=str(simulated / "template.fits"),
            output=difference,
            score_output=score,
            overwrite=overwrite,
            begin=begin,
        )
    _write_uncorrected(simulated, difference, before, overwrite=overwrite)
    run_check(
        image_path=str(difference),
        before=str(before),
        json_path=output / "whiteness.json",
        plot=output / "whiteness.png",
        overwrite=overwrite,
    )
    run_check(image_path=str(score), json_path=output / "score.json", overwrite=overwrite)
    log.info("Look at %s.", output / "whiteness.png")


def _write_uncorrected(simulated: Path, difference: Path, output: Path, *, overwrite: bool) -> None:
    """The same difference before decorrelation: from the kernel that was fitted."""
    from .. import formats
    from ..exposures.subtraction import subtract

    solution = formats.read_solution(difference)
    uncorrected = subtract(
        formats.read_exposure(simulated / "science.fits"),
        formats.read_exposure(simulated / "template.fits"),
        solution.kernel,
        convolved=solution.convolved,
        background=solution.background,
        scale_factor=solution.scale_factor,
    )
    provenance: dict[str, tuple[Any, str]] = {
        "WDTASK": ("demo", "made by"),
        "WDCONV": (solution.convolved, "exposure that was convolved"),
    }
    formats.write_exposure(uncorrected, output, overwrite=overwrite, provenance=provenance)
