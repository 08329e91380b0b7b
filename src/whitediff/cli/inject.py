"""``whitediff inject``: point sources of known flux in an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..outputs import together
from ..reading import ReadingOptions, reading_options
from .console import CATALOG_FILE, INPUT_FILE, OUTPUT_FILE, common_options, log, stages
from .reading import input_options, limit_options

__all__ = ["inject", "photon_gain", "run_injection"]


@click.command(short_help="Add point sources of known flux to an image.")
@click.argument("science", type=INPUT_FILE)
@click.option("--output", required=True, type=OUTPUT_FILE, help="Image to write.")
@click.option(
    "--sources",
    type=INPUT_FILE,
    metavar="TABLE",
    help="Sources to add (.ecsv, .fits, .parquet): columns flux, in the unit of the image, and x,"
    " y (pixel coordinates) or ra, dec (degrees).",
)
@click.option("--random", "number", type=click.IntRange(min=1), help="Add so many random sources.")
@click.option(
    "--signal-to-noise",
    type=float,
    nargs=2,
    metavar="LO HI",
    help="Of random sources, for a matched filter on the image, or on --difference"
    "  [default: 5 20].",
)
@click.option(
    "--difference",
    metavar="FILE",
    help="Earlier difference of the same image, in which --signal-to-noise is meant.",
)
@click.option(
    "--separation",
    type=float,
    help="Least distance of random sources, pixels  [default: 10 widths of the PSF].",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of all random numbers  [default: 1].")
@click.option("--truth", type=CATALOG_FILE, help="Write what was added to this catalogue.")
@click.option(
    "--science-psf",
    metavar="FILE",
    help="PSF of the image  [default: its own, else measured from stars].",
)
@click.option(
    "--photon-noise",
    is_flag=True,
    help="Draw the photon noise of the sources, and add it to the variance plane; needs the gain.",
)
@input_options("science")
@click.option("--compress", is_flag=True, help="Compress the output without loss; slow.")
@click.option("--overwrite", is_flag=True, help="Replace the outputs if they exist.")
@common_options
@limit_options
def inject(**options: Any) -> None:
    """Add point sources of known flux and position to SCIENCE.

    The sources are those of a table, or random ones away from masked pixels and from each other.
    Each is the image's own PSF at its place, shifted by fractions of a pixel. The mask stays as
    it is, and without --photon-noise the variance plane too.
    """
    run_injection(**options)


@together()
def run_injection(
    *,
    science: str,
    output: Path,
    sources: str | None = None,
    number: int | None = None,
    signal_to_noise: tuple[float, float] | None = None,
    difference: str | None = None,
    separation: float | None = None,
    seed: int | None = None,
    truth: Path | None = None,
    science_psf: str | None = None,
    photon_noise: bool = False,
    compress: bool = False,
    overwrite: bool = False,
    **reading: Any,
) -> Any:
    """Read, inject and write.

    Parameters
    ----------
    science, output, sources, number, signal_to_noise, difference, separation, seed, truth, \
    science_psf, photon_noise, compress, overwrite
        Options of the command.
    **reading
        How the image is read: ``science_gain`` and so on, as `whitediff.reading` declares them.

    Returns
    -------
    sources
        What was injected.
    """
    import numpy as np

    from .. import formats
    from ..errors import ArgumentError, WhitediffError
    from ..exposures import injection
    from ..exposures.preparation import with_own_psf
    from ..formats.catalogs import read_catalog, write_catalog
    from ..outputs import check_output
    from ..runs.inputs import read_input

    if (sources is None) == (number is None):
        raise click.UsageError("Give either --sources or --random.")
    given = {"signal-to-noise": signal_to_noise, "difference": difference, "separation": separation}
    useless = [f"--{name}" for name, value in given.items() if value is not None]
    if sources is not None and useless:
        raise click.UsageError(
            f"{', '.join(useless)}: only has a meaning with --random; leave it out."
        )
    for path in (output, truth):
        if path is not None:
            check_output(path, overwrite=overwrite, inputs=(science, sources))
    if truth is not None and truth.resolve() == output.resolve():
        raise ArgumentError(f"{output}: two outputs cannot be the same file.")
    how_read = reading_options(reading, science=science)["science"]
    rng = np.random.default_rng(1 if seed is None else seed)
    with stages("Injecting", 4) as begin:
        begin("reading")
        table = None if sources is None else read_catalog(sources)
        exposure = read_input(science, how_read)
        if science_psf is not None:
            exposure.psf = formats.read_psf(science_psf, bounds=exposure.bbox)
        begin("PSF")
        own_psf = exposure.psf
        try:
            exposure = with_own_psf(exposure)
        except WhitediffError as error:
            raise type(error)(
                f"{science}: has no PSF, and none could be measured (--science-psf names one):"
                f" {error}"
            ) from error
        begin("sources")
        gain = photon_gain(exposure, how_read) if photon_noise else None
        if table is None:
            assert number is not None
            noise = None if difference is None else formats.read_exposure(difference)
            table = injection.random_sources(
                exposure,
                number,
                signal_to_noise=signal_to_noise or (5.0, 20.0),
                rng=rng,
                noise=noise,
                separation=separation,
            )
        try:
            injected = injection.inject(exposure, table, gain=gain, rng=rng)
        except ArgumentError as error:
            raise error if sources is None else ArgumentError(f"{sources}: {error}") from error
        # What is measured from stars is a guess that the file should not state as its own.
        injected.psf = own_psf
        begin("writing")
        cards: dict[str, tuple[Any, str]] = {
            "WDTASK": ("inject", "made by"),
            "WDSCI": (science, "image before the injection"),
            "WDSPSFIN": (science_psf, "PSF of the science image from"),
            "WDINJN": (len(table), "point sources injected"),
            "WDINJTAB": (sources, "table of the sources"),
            "WDINJSED": (
                None if sources is not None and gain is None else 1 if seed is None else seed,
                "seed",
            ),
            "WDINJGAI": (gain, "electrons per count, of the sources' photon noise"),
        }
        formats.write_exposure(
            injected, output, overwrite=overwrite, compress=compress, provenance=cards
        )
        if truth is not None:
            table.meta["injected_into"] = science
            write_catalog(injection.with_sky_positions(table, exposure), truth, overwrite=overwrite)
    flux = injection.fluxes(exposure, table)
    log.info(
        "%s: %d sources%s%s.",
        output,
        len(table),
        f" of {flux.min():.5g} to {flux.max():.5g} counts" if len(table) else "",
        "" if gain is None else f", with the photon noise of {gain:g} electrons per count",
    )
    return table


def photon_gain(exposure: Any, options: ReadingOptions) -> float:
    """Gain with which photon noise is drawn.

    Parameters
    ----------
    exposure
        Science exposure.
    options
        How it was read.

    Returns
    -------
    gain
        Electrons per image unit.

    Raises
    ------
    ArgumentError
        If there is none, or it is not positive.
    """
    from ..errors import ArgumentError
    from ..formats.units import photon_header

    found = photon_header(exposure.header, exposure.primary_header, options)
    if found.expected is None:
        lacking = "EXPTIME" if found.is_rate and found.gain is not None else "GAIN"
        option = "exposure-time" if lacking == "EXPTIME" else "gain"
        fault = f"its header has no {lacking}"
        if lacking == "GAIN" and found.wrong_gain:
            fault = f"{found.wrong_gain} in its header"
        raise ArgumentError(
            f"{exposure.source}: {fault}, which photon noise needs; give it"
            f" with --science-{option}."
        )
    return found.expected.gain
