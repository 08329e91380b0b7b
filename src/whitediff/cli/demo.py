"""``whitediff demo``: the whole way on simulated images."""

from __future__ import annotations

from pathlib import Path

import click

from .console import OUTPUT_DIRECTORY, common_options, log

__all__ = ["demo"]


@click.command(short_help="Simulate, subtract, decorrelate and check, in ten seconds.")
@click.option(
    "--output",
    type=OUTPUT_DIRECTORY,
    default=Path("whitediff-demo"),
    show_default=True,
    help="Directory to write to.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@common_options
def demo(output: Path, overwrite: bool) -> None:
    """Simulate a pair, subtract it with the true kernel, decorrelate and check it.

    Leaves all files, the table as JSON and a picture in the output directory.
    """
    from ..simulation import SimulationOptions
    from .check import run_check
    from .decorrelate import run_decorrelation
    from .simulate import write_simulation

    write_simulation(SimulationOptions(), output, overwrite=overwrite)
    corrected = output / "decorrelated.fits"
    run_decorrelation(
        science=str(output / "science.fits"),
        template=str(output / "template.fits"),
        difference=str(output / "difference.fits"),
        output=corrected,
        overwrite=overwrite,
    )
    run_check(
        image_path=str(corrected),
        json_path=output / "whiteness.json",
        plot=output / "whiteness.png",
        overwrite=overwrite,
    )
    log.info("Look at %s.", output / "whiteness.png")
