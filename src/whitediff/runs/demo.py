"""Run of ``whitediff demo``: all steps, on simulated images."""

from __future__ import annotations

from pathlib import Path

from .. import formats
from ..evaluation.simulation import SimulationOptions
from ..extras import check_drawing
from ..outputs import together
from ..subtraction.difference import subtract
from .cards import Cards
from .check import Checked, run_check
from .options import CheckOptions, SubtractOptions
from .simulate import write_simulation
from .subtract import run_subtraction

__all__ = ["run_demo"]


def run_demo(output: Path, *, overwrite: bool = False) -> list[Checked]:
    """Simulate two images, make their difference and score, and check both.

    Parameters
    ----------
    output
        Directory to write to.
    overwrite
        Whether files may be replaced.

    Returns
    -------
    checked
        Noise of the difference, and of the score.
    """
    check_drawing()
    simulated = output / "simulated"
    with together():
        write_simulation(SimulationOptions(), simulated, overwrite=overwrite)
        difference, score, before = (
            output / f"{name}.fits" for name in ("difference", "score", "uncorrected")
        )
        run_subtraction(
            str(simulated / "science.fits"),
            str(simulated / "template.fits"),
            SubtractOptions(output=difference, score_output=score, overwrite=overwrite),
        )
        _write_uncorrected(simulated, difference, before, overwrite=overwrite)
        return [
            run_check(
                str(difference),
                CheckOptions(
                    before=str(before),
                    json=output / "whiteness.json",
                    plot=output / "whiteness.png",
                    overwrite=overwrite,
                ),
            ),
            run_check(str(score), CheckOptions(json=output / "score.json", overwrite=overwrite)),
        ]


def _write_uncorrected(simulated: Path, difference: Path, output: Path, *, overwrite: bool) -> None:
    """Write the difference before decorrelation, made with the fitted kernel."""
    solution = formats.read_solution(difference)
    uncorrected = subtract(
        formats.read_exposure(simulated / "science.fits"),
        formats.read_exposure(simulated / "template.fits"),
        solution.kernel,
        convolved=solution.convolved,
        background=solution.background,
        scale_factor=solution.scale_factor,
    )
    provenance: Cards = {
        "WDTASK": ("demo", "made by"),
        "WDCONV": (solution.convolved, "exposure that was convolved"),
    }
    formats.write_exposure(uncorrected, output, overwrite=overwrite, provenance=provenance)
