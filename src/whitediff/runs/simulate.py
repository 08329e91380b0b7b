"""Run of ``whitediff simulate``: a pair of images, and the truth about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import astropy.io.fits
import astropy.table
import numpy as np

from ..direction import Direction
from ..errors import ArgumentError
from ..evaluation.flaws import Grid, ImageOptions
from ..evaluation.simulated import simulated_exposure
from ..evaluation.simulation import Simulation, SimulationOptions, simulate
from ..exposures.kernels import interpolated_kernel
from ..exposures.masks import flagged
from ..exposures.model import Exposure
from ..formats import write_exposure
from ..formats.finished import replacing_fits
from ..formats.stamps import kernel_hdus, psf_hdus
from ..outputs import check_output, replacing, together
from ..progress import stages
from ..subtraction.difference import subtract

__all__ = ["OUTPUTS", "simulation_options", "write_simulation"]

OUTPUTS = (
    "science.fits",
    "template.fits",
    "difference.fits",
    "kernel.fits",
    "truth.ecsv",
    "truth_mask.fits",
)

_WITH_A_KERNEL = ("difference.fits", "kernel.fits")
"""Files that are written only if both images have one grid, so that a kernel matches them."""


def simulation_options(words: Mapping[str, Any]) -> SimulationOptions:
    """Options of a simulation from the options of the command.

    Parameters
    ----------
    words
        Option of ``whitediff simulate``, with underscores → value; None if not given.  Flaws
        begin with ``science_`` or ``template_``.

    Returns
    -------
    options
        `whitediff.evaluation.simulation.SimulationOptions`.

    Raises
    ------
    ArgumentError
        If a value is refused, or there is no such option.
    """
    given = {name: value for name, value in words.items() if value is not None}
    ratio = given.pop("seeing_ratio", None)
    if ratio is not None:
        given["template_psf"] = ratio * given.get("science_psf", SimulationOptions.science_psf)
    if "template_grid" in given:
        given["template_grid"] = _grid(given["template_grid"])
    own = {field.name for field in dataclasses.fields(SimulationOptions)}
    for image in ("science", "template"):
        flaws: dict[str, Any] = {}
        for word in [each for each in given if each.startswith(f"{image}_") and each not in own]:
            name, value = word.removeprefix(f"{image}_"), given.pop(word)
            if name == "wcs_error":
                value = _grid(value)
            elif name.startswith("no_"):
                name, value = name.removeprefix("no_"), not value
            flaws[name] = value
        _check_names(ImageOptions, flaws)
        given[image] = ImageOptions(**flaws)
    _check_names(SimulationOptions, given)
    return SimulationOptions(**given)


def _grid(values: Any) -> Grid:
    x, y, rotation, scale = values
    return Grid(shift=(x, y), rotation=rotation, scale=scale)


def _check_names(kind: type, words: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(kind)]
    for name in words:
        if name not in known:
            raise ArgumentError(
                f"There is no option {name!r} of a simulation; there are {', '.join(known)}."
            )


def write_simulation(
    options: SimulationOptions, output: Path, *, overwrite: bool
) -> tuple[str, ...]:
    """Simulate a pair and write it.

    Parameters
    ----------
    options
        `whitediff.evaluation.simulation.SimulationOptions`.
    output
        Directory; made if missing.
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
    output.mkdir(parents=True, exist_ok=True)
    names = [name for name in OUTPUTS if options.same_grid or name not in _WITH_A_KERNEL]
    for name in names:
        check_output(output / name, overwrite=overwrite)
    with together(), stages("Simulating", 4) as begin:
        begin("sources and noise")
        simulation = simulate(options)
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
        images: dict[Direction, Exposure] = {
            "science": science,
            "template": template,
        }
        for name, exposure in images.items():
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


def _write_image(exposure: Exposure, own: ImageOptions, path: Path, *, overwrite: bool) -> None:
    """Write one image, with the planes that the options ask for."""
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


def _mask_hdu(planes: Mapping[str, Any], name: str) -> astropy.io.fits.ImageHDU:
    """Mask with one bit for each plane; cards MP_name give the number of the bit."""
    bits = sum(plane.astype(np.uint8) << bit for bit, plane in enumerate(planes.values()))
    hdu = astropy.io.fits.ImageHDU(np.asarray(bits, np.uint8), name=name)
    for bit, plane in enumerate(planes):
        hdu.header[f"HIERARCH MP_{plane}"] = bit
    return hdu


def _write_truth(simulation: Simulation, output: Path, *, overwrite: bool) -> None:
    """Write the table of the sources, and the masks of the flawed pixels."""
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
