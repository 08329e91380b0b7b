"""``whitediff simulate``: a pair of images with truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..outputs import together
from .console import OUTPUT_DIRECTORY, common_options, log, stages

__all__ = ["OUTPUTS", "simulate", "simulation_options", "write_simulation"]

OUTPUTS = (
    "science.fits",
    "template.fits",
    "difference.fits",
    "kernel.fits",
    "truth.ecsv",
    "truth_mask.fits",
)

_WITH_A_KERNEL = ("difference.fits", "kernel.fits")
"""Files that are only written where a kernel matches the images: where they have one grid."""


class _Planes(click.ParamType):
    name = "planes"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        return () if value == "none" else tuple(str(value).upper().split(","))


FLAWS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("sky", {"type": float}, "Sky left in the pixels, counts."),
    ("sky-gradient", {"type": float}, "Rise of the sky from left to right, counts."),
    ("ripple", {"type": float}, "Amplitude of fringes, counts."),
    ("ripple-period", {"type": float}, "Period of the fringes, pixels  [default: 60]."),
    ("bad-pixels", {"type": float}, "Fraction of single bad pixels."),
    (
        "bad-pixel-kind",
        {"type": click.Choice(["nan", "flagged", "zero-weight", "garbage"])},
        "How they are bad: NaN, 10 to 30 sigma off and in the mask, off with infinite variance, off"
        " and told by nothing  [default: nan].",
    ),
    (
        "bad-column-value",
        {"type": float},
        "Counts in bad columns  [default: 10 sigma above what is there].",
    ),
    ("nan-border", {"type": int}, "Width of a border of NaN, pixels."),
    ("nan-hole", {"type": int}, "Side of a square of NaN, pixels."),
    ("cosmic-rays", {"type": int}, "Number of cosmic rays."),
    ("trails", {"type": int}, "Number of trails across the frame."),
    (
        "trail-brightness",
        {"type": float},
        "Surface brightness of a trail's middle, in sigma of the background  [default: 5].",
    ),
    ("trail-width", {"type": float}, "FWHM of a trail, pixels  [default: 4]."),
    ("saturation", {"type": float}, "Counts at which this image saturates."),
    (
        "bleeding",
        {"is_flag": True, "default": None},
        "Charge above saturation spills along columns.",
    ),
    (
        "masked",
        {"type": _Planes()},
        "Flaws that the mask tells: none, or of BAD,SAT,NO_DATA,CR,STREAK"
        "  [default: BAD,SAT,NO_DATA].",
    ),
    (
        "no-saturate-card",
        {"is_flag": True, "default": None},
        "The header does not tell at which level pixels saturate.",
    ),
    (
        "unit",
        {"type": click.Choice(["adu", "electron", "adu/s", "electron/s"])},
        "Unit of the pixels  [default: adu].",
    ),
    ("unit-factor", {"type": float}, "Further factor of the pixels; BUNIT is left out."),
    ("exposure-time", {"type": float}, "Seconds  [default: 1]."),
    (
        "gain-card",
        {"type": float},
        "GAIN of the header, right or wrong; 0: none  [default: right, for the unit].",
    ),
    (
        "noise-plane",
        {"type": click.Choice(["variance", "weight", "sigma", "none"])},
        "What the file says of the noise  [default: variance].",
    ),
    ("no-psf-plane", {"is_flag": True, "default": None}, "The file has no PSF."),
    ("no-wcs", {"is_flag": True, "default": None}, "The header has no WCS."),
    (
        "wcs-error",
        {"type": float, "nargs": 4, "metavar": "X Y ROTATION SCALE"},
        "The WCS is wrong by this shift (pixels), rotation (degrees) and scale of the pixels.",
    ),
)
"""Name, type and help of a flaw of an image; each is an option for either image."""


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


def _flaw_options(command: Any) -> Any:
    """Add an option for each flaw and image; help shows those of the science image."""
    for name, settings, text in reversed(FLAWS):
        for image in ("template", "science"):
            command = click.option(
                f"--{image}-{name}", **settings, help=text, hidden=image == "template"
            )(command)
    return command


def simulation_options(options: Mapping[str, Any]) -> Any:
    """Options of a simulation from those of the command line.

    Parameters
    ----------
    options
        Name → value, as click has them; None where none is given.

    Returns
    -------
    options
        `whitediff.simulation.SimulationOptions`.
    """
    from ..flaws import Grid, ImageOptions
    from ..simulation import SimulationOptions

    def grid(values: Any) -> Grid:
        x, y, rotation, scale = values
        return Grid(shift=(x, y), rotation=rotation, scale=scale)

    given = {name: value for name, value in options.items() if value is not None}
    ratio = given.pop("seeing_ratio", None)
    if ratio is not None:
        given["template_psf"] = ratio * given.get("science_psf", SimulationOptions.science_psf)
    if "template_grid" in given:
        given["template_grid"] = grid(given["template_grid"])
    for image in ("science", "template"):
        own = {}
        for option, *_ in FLAWS:
            name = option.replace("-", "_")
            value = given.pop(f"{image}_{name}", None)
            if value is None:
                continue
            if name == "wcs_error":
                value = grid(value)
            elif name.startswith("no_"):
                name, value = name.removeprefix("no_"), not value
            own[name] = value
        given[image] = ImageOptions(**own)
    return SimulationOptions(**given)


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
@click.option(
    "--seeing-ratio",
    type=float,
    help="Width of the template PSF over that of the science PSF, instead of --template-psf.",
)
@click.option("--faintest-star", type=float, help="Its signal-to-noise ratio  [default: 10].")
@click.option("--faintest-galaxy", type=float, help="Its signal-to-noise ratio  [default: 20].")
@click.option("--brightest-star", type=float, help="Its flux, counts  [default: 5e6].")
@click.option("--brightest-galaxy", type=float, help="Its flux, counts  [default: 1e6].")
@click.option(
    "--star-exponent",
    type=float,
    help="N(>f) of the stars falls as f to minus the inverse of this  [default: 1.4].",
)
@click.option("--galaxy-exponent", type=float, help="The same for the galaxies  [default: 1].")
@click.option(
    "--bulge", type=float, help="Mean share of a galaxy's light in its bulge  [default: 0]."
)
@click.option("--hosted", type=float, help="Fraction of the transients in galaxies  [default: 0].")
@click.option(
    "--vanished",
    type=float,
    help="Fraction of the transients that the template has instead  [default: 0].",
)
@click.option(
    "--margin", type=float, help="Sources lie so many pixels beyond the frame too  [default: 0]."
)
@click.option(
    "--integrated", is_flag=True, help="Pixels hold the PSF's mean over their area, not a sample."
)
@click.option(
    "--template-size",
    "template_shape",
    type=_Size(),
    help="Pixels of the template  [default: as the science image].",
)
@click.option(
    "--template-grid",
    type=float,
    nargs=4,
    metavar="X Y ROTATION SCALE",
    help="Pixels of the template: shift (pixels), rotation (degrees), scale; the WCS knows.",
)
@click.option(
    "--template-distortion",
    type=float,
    help="Rms of smooth displacements that no WCS knows, pixels  [default: 0].",
)
@click.option(
    "--distortion-length", type=float, help="Their shortest wavelength, pixels  [default: 300]."
)
@_flaw_options
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@common_options
def simulate(output: Path, overwrite: bool, **options: Any) -> None:
    """Make a science image and a template of the same stars, galaxies and transients.

    Writes science.fits, template.fits, their difference.fits made with the true matching
    kernel (not decorrelated), kernel.fits, truth.ecsv and truth_mask.fits into a directory;
    difference and kernel only where both images have the same pixels.

    Each --science-... option from --science-sky on is there as --template-... too.
    """
    written = write_simulation(simulation_options(options), output, overwrite=overwrite)
    log.info("%s: wrote %s.", output, ", ".join(written))


@together()
def write_simulation(options: Any, output: Path, *, overwrite: bool) -> tuple[str, ...]:
    """Simulate a pair and write it.

    Parameters
    ----------
    options
        `whitediff.simulation.SimulationOptions`.
    output
        Directory; made if need be.
    overwrite
        Whether files may be replaced.

    Returns
    -------
    names
        Files that were written.

    Raises
    ------
    OutputExistsError
        If a file exists and may not be replaced.
    """
    import astropy.io.fits

    from ..exposures.kernels import interpolated_kernel
    from ..exposures.simulated import simulated_exposure
    from ..exposures.subtraction import subtract
    from ..formats import write_exposure
    from ..formats.finished import replacing_fits
    from ..formats.stamps import kernel_hdus
    from ..outputs import check_output
    from ..simulation import simulate as run_simulation

    output.mkdir(parents=True, exist_ok=True)
    names = [name for name in OUTPUTS if options.same_grid or name not in _WITH_A_KERNEL]
    for name in names:
        check_output(output / name, overwrite=overwrite)
    with stages("Simulating", 4) as begin:
        begin("sources and noise")
        simulation = run_simulation(options)
        science = simulated_exposure(simulation, "science")
        template = simulated_exposure(simulation, "template")
        if options.same_grid:
            begin("true kernel")
            kernel = interpolated_kernel(
                simulation.kernel_at, science.bbox, 4 if options.variation else 0
            )
            begin("difference")
            difference = subtract(science, template, kernel, convolved=simulation.convolved)
        begin("writing")
        for name, exposure in (("science", science), ("template", template)):
            _write_image(
                exposure, options.flaws_of(name), output / f"{name}.fits", overwrite=overwrite
            )
        if options.same_grid:
            write_exposure(
                difference,
                output / "difference.fits",
                overwrite=overwrite,
                provenance={
                    "WDTASK": ("simulate", "made by"),
                    "WDCONV": (simulation.convolved, "exposure that was convolved"),
                },
            )
            with replacing_fits(output / "kernel.fits", overwrite=overwrite) as temporary:
                astropy.io.fits.HDUList(
                    [astropy.io.fits.PrimaryHDU(), *kernel_hdus(kernel, "KERNEL", science.bbox)]
                ).writeto(temporary)
        _write_truth(simulation, output, overwrite=overwrite)
    return tuple(names)


def _write_image(exposure: Any, own: Any, path: Path, *, overwrite: bool) -> None:
    """One image, with as much in its file as the options say."""
    import astropy.io.fits
    import numpy as np

    from ..exposures.masks import flagged
    from ..formats import write_exposure
    from ..formats.finished import replacing_fits
    from ..formats.stamps import psf_hdus

    if own.noise_plane == "variance" and own.masked and own.psf_plane:
        write_exposure(
            exposure, path, overwrite=overwrite, provenance={"WDTASK": ("simulate", "made by")}
        )
        return
    hdus = [astropy.io.fits.PrimaryHDU(exposure.data, header=exposure.header)]
    variance = exposure.variance
    if own.noise_plane == "variance":
        hdus.append(astropy.io.fits.ImageHDU(variance, name="VARIANCE"))
    elif own.noise_plane == "sigma":
        hdus.append(astropy.io.fits.ImageHDU(np.sqrt(variance), name="ERR"))
    elif own.noise_plane == "weight":
        hdus.append(astropy.io.fits.ImageHDU(1 / variance, name="WEIGHT"))
    if own.masked:
        planes = {name: flagged(exposure.mask, [name]) for name in own.masked}
        hdus.append(_mask_hdu(planes, "MASK"))
    if own.psf_plane:
        hdus += psf_hdus(exposure.psf, "PSF", exposure.bbox)
    with replacing_fits(path, overwrite=overwrite) as temporary:
        astropy.io.fits.HDUList(hdus).writeto(temporary)


def _mask_hdu(planes: Mapping[str, Any], name: str) -> Any:
    """Planes as bits of one integer for each pixel, which cards MP_name number."""
    import astropy.io.fits
    import numpy as np

    bits = sum(plane.astype(np.uint8) << bit for bit, plane in enumerate(planes.values()))
    hdu = astropy.io.fits.ImageHDU(np.asarray(bits, np.uint8), name=name)
    for bit, plane in enumerate(planes):
        hdu.header[f"HIERARCH MP_{plane}"] = bit
    return hdu


def _write_truth(simulation: Any, output: Path, *, overwrite: bool) -> None:
    """Table of the sources, and masks of the flawed pixels."""
    import astropy.io.fits
    import astropy.table

    from ..formats.finished import replacing_fits
    from ..outputs import replacing

    table = astropy.table.Table(simulation.sources)
    units = {
        "pixel": ("x", "y", "template_x", "template_y", "radius"),
        "adu": ("science_flux", "template_flux"),
        "rad": ("angle",),
    }
    for unit, columns in units.items():
        for column in columns:
            table[column].unit = unit
    table.meta["convolved"] = simulation.convolved
    options = simulation.options
    for name in ("science", "template"):
        table.meta[f"{name}_pixel_per_adu"] = options.flaws_of(name).factor(options.gain)
    with replacing(output / "truth.ecsv", overwrite=overwrite) as temporary:
        table.write(temporary, format="ascii.ecsv")
    with replacing_fits(output / "truth_mask.fits", overwrite=overwrite) as temporary:
        astropy.io.fits.HDUList(
            [
                astropy.io.fits.PrimaryHDU(),
                _mask_hdu(simulation.science.flaws, "SCIENCE"),
                _mask_hdu(simulation.template.flaws, "TEMPLATE"),
            ]
        ).writeto(temporary)
