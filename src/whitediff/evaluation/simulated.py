"""Simulated images as exposures."""

from __future__ import annotations

import astropy.io.fits
import astropy.wcs
import numpy as np

from ..direction import Direction
from ..exposures.boxes import Box
from ..exposures.kernels import interpolated_kernel
from ..exposures.model import Exposure
from ..exposures.psf import KernelPointSpreadFunction
from .flaws import Grid
from .simulation import Simulation

__all__ = ["simulated_exposure"]

_VARYING_ORDER = 4
"""Polynomial order that follows a simulated PSF over the frame."""


def simulated_exposure(simulation: Simulation, name: Direction) -> Exposure:
    """One image of a simulated pair.

    Parameters
    ----------
    simulation
        `whitediff.evaluation.simulation.simulate`.
    name
        Which image.

    Returns
    -------
    exposure
        Exposure with the true variance and PSF, the mask that its options allow, and a header with
        WCS, gain, read noise and sky level, as the options say.
    """
    simulated = simulation.science if name == "science" else simulation.template
    box = Box.from_shape(simulated.image.shape)
    order = _VARYING_ORDER if simulated.psf.variation else 0
    return Exposure.from_arrays(
        simulated.image,
        variance=simulated.variance,
        mask=simulated.mask,
        psf=KernelPointSpreadFunction(interpolated_kernel(simulated.psf.image, box, order)),
        header=_header(simulation, name),
    )


def _header(simulation: Simulation, name: Direction) -> astropy.io.fits.Header:
    options = simulation.options
    own = options.flaws_of(name)
    simulated = simulation.science if name == "science" else simulation.template
    header = _wcs(simulation, name).to_header() if own.wcs else astropy.io.fits.Header()
    factor = own.factor(options.gain)
    if own.unit_factor == 1:
        header["BUNIT"] = own.unit
    header["OBJECT"] = (f"simulated {name}", "whitediff simulate")
    # GAIN is electrons per count in real headers; BUNIT and EXPTIME describe a rate.
    true_gain = options.gain / own.count_factor(options.gain)
    gain = true_gain if own.gain_card is None else own.gain_card
    if gain:
        header["GAIN"] = (gain, "electrons per count")
    if own.unit.endswith("/s") or own.exposure_time != 1:
        header["EXPTIME"] = (own.exposure_time, "seconds")
    header["RDNOISE"] = (options.read_noise, "electrons per pixel")
    if own.saturate_card:
        full = options.saturation if own.saturation is None else own.saturation
        header["SATURATE"] = (full * factor, "counts, sky included")
    header["SKYLEVEL"] = (simulated.sky * factor, "counts, subtracted")
    header["PSFSIGMA"] = (simulated.psf.sigma, "pixels, middle of the frame")
    header["SEED"] = (options.seed, "of the simulation")
    return header


def _wcs(simulation: Simulation, name: Direction) -> astropy.wcs.WCS:
    """WCS of the header, right or wrong."""
    options = simulation.options
    own = options.flaws_of(name)
    ny, nx = options.shape_of(name)
    wcs = astropy.wcs.WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.2]
    wcs.wcs.crpix = [(nx + 1) / 2, (ny + 1) / 2]
    wcs.wcs.radesys = "ICRS"
    step = np.array([-0.2 / 3600, 0.2 / 3600])
    grids = [Grid() if name == "science" else options.template_grid, own.wcs_error]
    if all(grid.is_same for grid in grids):
        wcs.wcs.cdelt = step
        return wcs
    matrix = np.diag(step)
    for grid in grids:
        # The reference point is the middle, about which grids turn.
        wcs.wcs.crpix = grid.matrix @ (wcs.wcs.crpix - [(nx + 1) / 2, (ny + 1) / 2]) + (
            [(nx + 1) / 2, (ny + 1) / 2] + np.array(grid.shift)
        )
        matrix = matrix @ np.linalg.inv(grid.matrix)
    wcs.wcs.cd = matrix
    return wcs
