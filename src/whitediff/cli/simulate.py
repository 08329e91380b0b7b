"""``whitediff simulate``: make a pair of images with known truth."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import click

from ..options import declared, part
from ..runs.options import RunningOptions
from .command import Option, command

__all__ = ["SimulateOptions", "simulate"]

log = logging.getLogger("whitediff.cli")


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
    """Add an option for each flaw and image; the help shows only the science image's."""
    for name, settings, text in reversed(FLAWS):
        for image in ("template", "science"):
            command = click.option(
                f"--{image}-{name}",
                **settings,
                help=text,
                hidden=image == "template",
                group="Flaws",
                cls=Option,
            )(command)
    return command


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulateOptions:
    """Options of ``whitediff simulate``, except the options of the scene."""

    output: Path | None = declared(
        None,
        "Directory to write to.",
        group="Outputs",
        metavar="DIRECTORY",
        is_output=True,
        is_directory=True,
        required=True,
        short="o",
    )
    overwrite: bool = declared(False, "Replace files that exist.", group="Outputs")
    running: RunningOptions = part(RunningOptions, without=("memory",))


@command(
    SimulateOptions,
    short_help="Make a realistic science image and template, with truth.",
    examples=("whitediff simulate -o simulated --size 2048 --seed 3",),
)
@click.option(
    "--size",
    "shape",
    type=_Size(),
    default="1024",
    show_default=True,
    help="Pixels: N, or WIDTHxHEIGHT.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the random numbers.")
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
    help="Profile of both PSFs.",
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
    help="Ellipticity of both PSFs.",
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
def simulate(options: SimulateOptions, **words: Any) -> None:
    """Make a science image and a template of the same stars, galaxies and transients.

    Writes science.fits, template.fits, their difference.fits made with the true matching
    kernel (not decorrelated), kernel.fits, truth.ecsv and truth_mask.fits into a directory;
    difference and kernel only if both images have the same pixels.

    Each --science-... option from --science-sky on also exists as --template-....
    """
    from ..runs.running import running
    from ..runs.simulate import simulation_options, write_simulation

    output = options.output
    assert output is not None
    with running(options.running):
        made = simulation_options(words)
        written = write_simulation(made, output, overwrite=options.overwrite)
    log.info("%s: wrote %s.", output, ", ".join(written))
