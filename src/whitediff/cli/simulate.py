"""``whitediff simulate``: a pair of images with truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import OUTPUT_DIRECTORY, common_options, log, stages

__all__ = ["OUTPUTS", "simulate", "write_simulation"]

OUTPUTS = ("science.fits", "template.fits", "difference.fits", "kernel.fits", "truth.ecsv")


class _Size(click.ParamType):
    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = [int(part) for part in str(value).lower().split("x")]
        except ValueError:
            numbers = []
        if len(numbers) == 1:
            numbers *= 2
        if len(numbers) != 2 or min(numbers) < 1:
            self.fail(f"{value!r} is not N or WIDTHxHEIGHT.", param, ctx)
        return (numbers[1], numbers[0])


@click.command(short_help="Make a realistic science image and template, with truth.")
@click.option("--output", required=True, type=OUTPUT_DIRECTORY, help="Directory to write to.")
@click.option(
    "--size",
    "shape",
    type=_Size(),
    default="1024",
    show_default=True,
    help="Pixels: N, or WIDTHxHEIGHT.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of all random numbers.")
@click.option(
    "--science-psf",
    type=float,
    default=3.0,
    show_default=True,
    help="Width (sigma) of the science PSF, pixels.",
)
@click.option(
    "--template-psf",
    type=float,
    default=2.2,
    show_default=True,
    help="Width (sigma) of the template PSF, pixels.",
)
@click.option(
    "--science-variance",
    type=float,
    default=900.0,
    show_default=True,
    help="Background variance of the science image, counts².",
)
@click.option(
    "--template-variance",
    type=float,
    default=300.0,
    show_default=True,
    help="Background variance of the template, counts².",
)
@click.option("--gain", type=float, default=2.0, show_default=True, help="Electrons per count.")
@click.option(
    "--read-noise", type=float, default=5.0, show_default=True, help="Electrons per pixel."
)
@click.option(
    "--flux-scale",
    type=float,
    default=1.0,
    show_default=True,
    help="Science counts per template count: the sum of the matching kernel.",
)
@click.option(
    "--profile",
    type=click.Choice(["gaussian", "moffat"]),
    default="gaussian",
    show_default=True,
    help="Of both PSFs.",
)
@click.option(
    "--beta", type=float, default=3.0, show_default=True, help="Exponent of a Moffat profile."
)
@click.option(
    "--ellipticity",
    type=float,
    nargs=2,
    default=(0.0, 0.0),
    show_default=True,
    metavar="E1 E2",
    help="Of both PSFs.",
)
@click.option(
    "--offset",
    type=float,
    nargs=2,
    default=(0.0, 0.0),
    show_default=True,
    metavar="X Y",
    help="Centroid of the science PSF, pixels.",
)
@click.option(
    "--variation",
    type=float,
    default=0.0,
    show_default=True,
    help="Relative change of the science PSF's width from the middle to the right edge.",
)
@click.option("--stars", type=int, help="Number  [default: as in a high-latitude field].")
@click.option("--galaxies", type=int, help="Number  [default: as many as stars].")
@click.option("--transients", type=int, help="Number  [default: a fifth of the stars].")
@click.option(
    "--saturation",
    type=float,
    default=60000.0,
    show_default=True,
    help="Counts above which a pixel saturates.",
)
@click.option("--bad-columns", type=int, default=2, show_default=True, help="In each image.")
@click.option("--nan-pixels", type=int, default=20, show_default=True, help="In each image.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@common_options
def simulate(output: Path, overwrite: bool, **options: Any) -> None:
    """Make a science image and a template of the same stars, galaxies and transients.

    Writes science.fits, template.fits, their difference.fits made with the true matching
    kernel (not decorrelated), kernel.fits and truth.ecsv into a directory.
    """
    from ..simulation import SimulationOptions

    write_simulation(SimulationOptions(**options), output, overwrite=overwrite)
    log.info("%s: wrote %s.", output, ", ".join(OUTPUTS))


def write_simulation(options: Any, output: Path, *, overwrite: bool) -> None:
    """Simulate a pair and write it.

    Parameters
    ----------
    options
        `whitediff.simulation.SimulationOptions`.
    output
        Directory; made if need be.
    overwrite
        Whether files may be replaced.

    Raises
    ------
    OutputExistsError
        If a file exists and may not be replaced.
    """
    import astropy.io.fits
    import astropy.table

    from ..exposures.kernels import interpolated_kernel
    from ..exposures.simulated import simulated_exposure
    from ..exposures.subtraction import subtract
    from ..formats import write_exposure
    from ..formats.stamps import kernel_hdus
    from ..outputs import check_output, replacing
    from ..simulation import simulate as run_simulation

    output.mkdir(parents=True, exist_ok=True)
    for name in OUTPUTS:
        check_output(output / name, overwrite=overwrite)
    with stages("Simulating", 4) as begin:
        begin("sources and noise")
        simulation = run_simulation(options)
        begin("true kernel")
        science = simulated_exposure(simulation, "science")
        template = simulated_exposure(simulation, "template")
        kernel = interpolated_kernel(
            simulation.kernel_at, science.bbox, 4 if options.variation else 0
        )
        begin("difference")
        difference = subtract(science, template, kernel, convolved=simulation.convolved)
        begin("writing")
        for name, exposure in (
            ("science", science),
            ("template", template),
            ("difference", difference),
        ):
            provenance: dict[str, tuple[Any, str]] = {"WDTASK": ("simulate", "made by")}
            if name == "difference":
                provenance["WDCONV"] = (simulation.convolved, "exposure that was convolved")
            write_exposure(
                exposure, output / f"{name}.fits", overwrite=overwrite, provenance=provenance
            )
        with replacing(output / "kernel.fits", overwrite=overwrite) as temporary:
            astropy.io.fits.HDUList(
                [astropy.io.fits.PrimaryHDU(), *kernel_hdus(kernel, "KERNEL", science.bbox)]
            ).writeto(temporary)
        table = astropy.table.Table(simulation.sources)
        for column, unit in (
            ("x", "pixel"),
            ("y", "pixel"),
            ("radius", "pixel"),
            ("science_flux", "adu"),
            ("template_flux", "adu"),
            ("angle", "rad"),
        ):
            table[column].unit = unit
        table.meta["convolved"] = simulation.convolved
        with replacing(output / "truth.ecsv", overwrite=overwrite) as temporary:
            table.write(temporary, format="ascii.ecsv")
