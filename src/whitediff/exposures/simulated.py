"""Simulated images as exposures."""

from __future__ import annotations

from typing import Literal

import astropy.io.fits
import astropy.wcs
from lsst.images import Box

from ..simulation import Simulation
from .kernels import interpolated_kernel
from .model import Exposure
from .psf import KernelPointSpreadFunction

__all__ = ["simulated_exposure"]

_VARYING_ORDER = 4


def simulated_exposure(simulation: Simulation, name: Literal["science", "template"]) -> Exposure:
    """One image of a simulated pair.

    Parameters
    ----------
    simulation
        `whitediff.simulation.simulate`.
    name
        Which one.

    Returns
    -------
    exposure
        With the true variance, mask and PSF, a WCS, and gain, read noise and sky level in its
        header.
    """
    options = simulation.options
    simulated = simulation.science if name == "science" else simulation.template
    box = Box.from_shape(options.shape)
    order = _VARYING_ORDER if simulated.psf.variation else 0
    return Exposure.from_arrays(
        simulated.image,
        variance=simulated.variance,
        mask=simulated.mask,
        psf=KernelPointSpreadFunction(interpolated_kernel(simulated.psf.image, box, order)),
        header=_header(simulation, name),
    )


def _header(simulation: Simulation, name: Literal["science", "template"]) -> astropy.io.fits.Header:
    options = simulation.options
    simulated = simulation.science if name == "science" else simulation.template
    ny, nx = options.shape
    wcs = astropy.wcs.WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.2]
    wcs.wcs.crpix = [(nx + 1) / 2, (ny + 1) / 2]
    wcs.wcs.cdelt = [-0.2 / 3600, 0.2 / 3600]
    wcs.wcs.radesys = "ICRS"
    header = wcs.to_header()
    header["BUNIT"] = "adu"
    header["OBJECT"] = (f"simulated {name}", "whitediff simulate")
    header["GAIN"] = (options.gain, "electrons per count")
    header["RDNOISE"] = (options.read_noise, "electrons per pixel")
    header["SATURATE"] = (options.saturation, "counts, sky included")
    header["SKYLEVEL"] = (simulated.sky, "counts, subtracted")
    header["PSFSIGMA"] = (simulated.psf.sigma, "pixels, middle of the frame")
    header["SEED"] = (options.seed, "of the simulation")
    return header
