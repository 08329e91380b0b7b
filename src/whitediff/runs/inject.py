"""Run of ``whitediff inject``: add point sources of known flux to an image."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
from astropy.table import Table

from .. import formats
from ..errors import ArgumentError, UsageError, WhitediffError
from ..evaluation import injection
from ..exposures.model import Exposure
from ..formats.catalogs import write_catalog
from ..formats.units import photon_header
from ..matching.preparation import with_own_psf
from ..progress import stages
from ..reading import ReadingOptions
from .cards import Cards
from .detect import read_positions
from .inputs import name_of, path_of, read_image, read_input, read_psf
from .options import InjectOptions
from .refusals import check_given
from .running import running

__all__ = ["Injected", "photon_gain", "run_injection"]

log = logging.getLogger("whitediff.runs")


@dataclasses.dataclass(frozen=True)
class Injected:
    """An image with injected sources.

    Attributes
    ----------
    exposure
        Image with the sources.
    sources
        Table of the injected sources.
    """

    exposure: Exposure
    sources: Table


def run_injection(science: object, options: InjectOptions) -> Injected:
    """Read an image, inject sources and write it.

    Parameters
    ----------
    science
        File, or an object that `whitediff.runs.inputs.read_image` takes.
    options
        Options of ``whitediff inject``; without an output nothing is written.

    Returns
    -------
    injected
        Image, and the sources added to it.

    Raises
    ------
    WhitediffError
        A subclass whose message names the file at fault.
    """
    _check_usage(options)
    check_given(options, science)
    name, path = name_of(science, "science image"), path_of(science)
    seed = 1 if options.seed is None else options.seed
    rng = np.random.default_rng(seed)
    with running(options.running), stages("Injecting", 4) as begin:
        begin("reading")
        table = None if options.sources is None else read_positions(options.sources)
        exposure = read_input(science, options.science, "science image")
        if options.science_psf is not None:
            exposure.psf = read_psf(options.science_psf, exposure.bbox, "science PSF")
        begin("PSF")
        own_psf = exposure.psf
        try:
            exposure = with_own_psf(exposure)
        except WhitediffError as error:
            raise type(error)(
                f"{name}: has no PSF, and none could be measured (--science-psf names one): {error}"
            ) from error
        begin("sources")
        gain = photon_gain(exposure, options.science) if options.photon_noise else None
        if table is None:
            table = _random(exposure, options, rng)
        try:
            injected = injection.inject(exposure, table, gain=gain, rng=rng)
        except ArgumentError as error:
            if options.sources is None:
                raise
            raise ArgumentError.of(name_of(options.sources, "sources"), f"{error}") from error
        # A PSF measured from stars is an estimate, which the file must not state as its own.
        injected.psf = own_psf
        begin("writing")
        is_drawn = options.sources is None or gain is not None
        psf_file = None if options.science_psf is None else path_of(options.science_psf)
        cards: Cards = {
            "WDTASK": ("inject", "made by"),
            "WDSCI": (path, "image before the injection"),
            "WDSPSFIN": (psf_file, "PSF of the science image from"),
            "WDINJN": (len(table), "point sources injected"),
            "WDINJTAB": (path_of(options.sources), "table of the sources"),
            "WDINJSED": (seed if is_drawn else None, "seed"),
            "WDINJGAI": (gain, "electrons per count, of the sources' photon noise"),
        }
        if options.output is not None:
            formats.write_exposure(
                injected,
                options.output,
                overwrite=options.overwrite,
                compress=options.compress,
                provenance=cards,
            )
        table.meta["injected_into"] = name
        if options.truth is not None:
            truth = injection.with_sky_positions(table, exposure)
            write_catalog(truth, options.truth, overwrite=options.overwrite)
    flux = injection.fluxes(exposure, table)
    log.info(
        "%s: %d sources%s%s.",
        options.output or name,
        len(table),
        f" of {flux.min():.5g} to {flux.max():.5g} counts" if len(table) else "",
        "" if gain is None else f", with the photon noise of {gain:g} electrons per count",
    )
    return Injected(injected, table)


def _check_usage(options: InjectOptions) -> None:
    """Refuse options that contradict each other."""
    if (options.sources is None) == (options.random is None):
        raise UsageError("Give either --sources or --random.")
    given = {
        "signal-to-noise": options.signal_to_noise,
        "difference": options.difference,
        "separation": options.separation,
    }
    useless = [f"--{name}" for name, value in given.items() if value is not None]
    if options.sources is not None and useless:
        raise UsageError(f"{', '.join(useless)}: only has a meaning with --random; leave it out.")


def _random(exposure: Exposure, options: InjectOptions, rng: np.random.Generator) -> Table:
    """Table of random sources."""
    assert options.random is not None
    noise = None
    if options.difference is not None:
        noise = read_image(options.difference, "difference", needs_variance=True)
    return injection.random_sources(
        exposure,
        options.random,
        signal_to_noise=options.signal_to_noise or (5.0, 20.0),
        rng=rng,
        noise=noise,
        separation=options.separation,
    )


def photon_gain(exposure: Exposure, options: ReadingOptions) -> float:
    """Gain for drawing photon noise.

    Parameters
    ----------
    exposure
        Science exposure.
    options
        Options with which it was read.

    Returns
    -------
    gain
        Electrons per image unit.

    Raises
    ------
    ArgumentError
        If the gain is unknown or not positive, or the exposure time of an image of rates unknown.
    """
    found = photon_header(exposure.header, exposure.primary_header, options)
    if found.expected is None:
        lacking = "EXPTIME" if found.is_rate and found.gain is not None else "GAIN"
        option = "exposure-time" if lacking == "EXPTIME" else "gain"
        fault = f"its header has no {lacking}"
        if lacking == "GAIN" and found.wrong_gain:
            fault = f"{found.wrong_gain} in its header"
        raise ArgumentError.of(
            exposure.source, f"{fault}, which photon noise needs; give it with --science-{option}."
        )
    return found.expected.gain
