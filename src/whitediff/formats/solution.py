"""The solution that a difference or score was made with, in the file that it made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table
from lsst.images import YX, Box

from ..errors import FileFormatError
from ..exposures.psf import KernelPointSpreadFunction
from ..exposures.solution import Solution
from ..noise import NoiseCovariance
from .files import opened, split_extension
from .stamps import (
    find_hdu,
    polynomial_domain,
    read_background_hdu,
    read_kernel_hdus,
    read_psf_hdus,
)
from .tables import read_table_hdu

__all__ = ["read_solution", "solution_cards", "solution_extras"]

type Array = npt.NDArray[Any]

_FACTORS = {
    "WDSCALE": ("scale_factor", "photometric scale over the kernel's sum"),
    "WDSVFAC": ("science_variance_factor", "science variance multiplied by"),
    "WDTVFAC": ("template_variance_factor", "template variance multiplied by"),
    "WDSVAR": ("science_variance", "mean variance of science"),
    "WDTVAR": ("template_variance", "mean variance of template"),
}


def solution_cards(solution: Solution) -> dict[str, tuple[Any, str]]:
    """Header cards that store a solution's numbers.

    Parameters
    ----------
    solution
        Solution.

    Returns
    -------
    cards
        Keyword → (value, comment).
    """
    return {
        keyword: (getattr(solution, name), comment) for keyword, (name, comment) in _FACTORS.items()
    } | {
        "WDCONV": (solution.convolved, "exposure that was convolved"),
        "WDSCORE": (solution.preconvolution_kernel is not None, "is a score image"),
        "WDFILL": (solution.fill, "what stands in for missing pixels"),
        "WDSPAT": (solution.spatially_varying, "correction follows kernel and noise"),
    }


def solution_extras(solution: Solution) -> Mapping[str, Array | KernelPointSpreadFunction | Table]:
    """Extensions that store the rest of a solution, beside KERNEL and BACKGROUND.

    Parameters
    ----------
    solution
        Solution.

    Returns
    -------
    extras
        Extension name → image, PSF or table.
    """
    extras: dict[str, Array | KernelPointSpreadFunction | Table] = {}
    if solution.psf is not None:
        extras["INPUT_PSF"] = solution.psf
    if solution.preconvolution_kernel is not None:
        extras["PRECONVOLUTION"] = solution.preconvolution_kernel
    for name, noise in _noises(solution).items():
        if noise is not None:
            extras[name] = noise.correlation
    if solution.stars is not None:
        extras["STARS"] = solution.stars
    return extras


def _noises(solution: Solution) -> dict[str, NoiseCovariance | None]:
    return {"SCIENCE_NOISE": solution.science_noise, "TEMPLATE_NOISE": solution.template_noise}


def read_solution(path: str | Path) -> Solution:
    """Read how a difference or score was made, from the file that whitediff wrote.

    Parameters
    ----------
    path
        File.

    Returns
    -------
    solution
        Complete: made with it again, the product is the same.

    Raises
    ------
    FileFormatError
        If the file is not an output of ``whitediff subtract``.
    """
    file, _ = split_extension(path)
    with opened(file) as hdus:
        header = hdus[0].header
        kernel_hdu = find_hdu(hdus, ("KERNEL",))
        needed = [*_FACTORS, "WDCONV", "WDSCORE"]
        missing = [keyword for keyword in needed if keyword not in header]
        if kernel_hdu is None:
            missing.append("KERNEL")
        if missing or header.get("WDTASK") != "subtract":
            raise FileFormatError(
                f"{file}: is no difference or score of whitediff subtract that it could be made"
                f" again from (it lacks {', '.join(missing) or 'WDTASK = subtract'})."
            )
        background_hdu = find_hdu(hdus, ("BACKGROUND",))
        box = _box(hdus, background_hdu, file)
        kernel = read_kernel_hdus(hdus, kernel_hdu, bounds=box, path=str(file))
        psf_hdu = find_hdu(hdus, ("INPUT_PSF",))
        preconvolution_hdu = find_hdu(hdus, ("PRECONVOLUTION",))
        numbers: dict[str, Any] = {
            name: float(header[keyword]) for keyword, (name, _) in _FACTORS.items()
        }
        return Solution(
            kernel=kernel,
            background=0.0 if background_hdu is None else read_background_hdu(background_hdu),
            convolved=header["WDCONV"],
            box=box,
            # Files of before had one correction for all of the image.
            spatially_varying=bool(header.get("WDSPAT", False)),
            fill=header.get("WDFILL", "mean"),
            science_noise=_noise(hdus, "SCIENCE_NOISE", "WDSNERR", "WDSNSIG"),
            template_noise=_noise(hdus, "TEMPLATE_NOISE", "WDTNERR", "WDTNSIG"),
            preconvolution_kernel=(
                None
                if preconvolution_hdu is None
                else np.asarray(preconvolution_hdu.data, dtype=np.float64)
            ),
            psf=(
                None
                if psf_hdu is None
                else read_psf_hdus(hdus, psf_hdu, bounds=box, path=str(file))
            ),
            stars=read_table_hdu(hdus, "STARS"),
            **numbers,
        )


def _noise(hdus: Any, name: str, error: str, significance: str) -> NoiseCovariance | None:
    hdu = find_hdu(hdus, (name,))
    if hdu is None:
        return None
    header = hdus[0].header
    return NoiseCovariance(
        correlation=np.asarray(hdu.data, dtype=np.float64),
        description="as it was stored",
        zero_frequency_error=float(header.get(error, 0.0)),
        significance=float(header.get(significance, math.inf)),
    )


def _box(hdus: Any, background_hdu: Any, file: Path) -> Box:
    """Box of the product; also of a file that was stripped of its planes."""
    box = None if background_hdu is None else polynomial_domain(background_hdu.header)
    if box is not None:
        return box
    if "IMAGE" not in hdus:
        raise FileFormatError(f"{file}: has neither IMAGE nor BACKGROUND; keep one of them.")
    header = hdus["IMAGE"].header
    # The linear WCS that lsst.images writes beside the celestial one.
    y0, x0 = (
        round(header.get(f"CRVAL{axis}A", 0) + 1 - header.get(f"CRPIX{axis}A", 1))
        for axis in (2, 1)
    )
    return Box.from_shape(hdus["IMAGE"].shape, start=YX(y=y0, x=x0))
