"""Storage of the solution that a difference or score was made with, in the product's file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import astropy.io.fits
import numpy as np
import numpy.typing as npt
from astropy.table import Table

from .. import __version__
from ..errors import FileFormatError, one_line
from ..exposures.boxes import Box
from ..exposures.covariance import Noise
from ..exposures.psf import KernelPointSpreadFunction
from ..matching.stamp import KernelError
from ..numerics.covariance import NoiseCovariance
from ..numerics.transformation import Affine, Correction, Displacements
from ..options import flattened, rebuilt
from ..subtraction.recipe import Recipe
from ..subtraction.solution import Solution
from .files import opened, split_extension
from .finished import replacing_fits
from .headers import escaped, pixel_origin
from .parts import check_parts
from .stamps import (
    background_hdu,
    find_hdu,
    kernel_hdus,
    noise_hdus,
    polynomial_domain,
    psf_hdus,
    read_background_hdu,
    read_kernel_hdus,
    read_noise_hdus,
    read_psf_hdus,
)
from .tables import read_table_hdu, table_hdu

if TYPE_CHECKING:
    from .own.write import CardValue, Extra

__all__ = ["read_solution", "solution_cards", "solution_extras", "write_solution"]

type Array = npt.NDArray[Any]

_FACTORS = {
    "WDSCALE": ("scale_factor", "photometric scale over the kernel's sum"),
    "WDSVFAC": ("science_variance_factor", "science variance multiplied by"),
    "WDTVFAC": ("template_variance_factor", "template variance multiplied by"),
    "WDSVAR": ("science_variance", "mean variance of science"),
    "WDTVAR": ("template_variance", "mean variance of template"),
}
_RECIPE = "RECIPE"
_NEEDED = (
    *("BACKGROUND", "PRECONVOLUTION", "REGISTRATION", _RECIPE),
    *(
        f"{name}{rest}"
        for name in ("KERNEL", "INPUT_PSF", "SCIENCE_NOISE", "TEMPLATE_NOISE")
        for rest in ("", "_COEFFICIENTS")
    ),
)
"""Extensions that are needed to make a product again exactly."""

_MEASURED = ("WDSVAR", "WDTVAR")
_BOX = ("WDBOXX0", "WDBOXX1", "WDBOXY0", "WDBOXY1")
_NOISE_CARDS = {
    "SCIENCE_NOISE": ("WDSNERR", "WDSNSIG"),
    "TEMPLATE_NOISE": ("WDTNERR", "WDTNSIG"),
}


def solution_cards(solution: Solution) -> dict[str, tuple[CardValue, str]]:
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
    return (
        {
            keyword: (getattr(solution, name), comment)
            for keyword, (name, comment) in _FACTORS.items()
        }
        | {
            "WDCONV": (solution.convolved, "exposure that was convolved"),
            "WDSCORE": (solution.preconvolution_kernel is not None, "is a score image"),
            "WDALIGN": (solution.alignment, "how the template was resampled before"),
            "WDNOISES": (solution.noises is not None, "noise covariances are known"),
        }
        | _error_cards(solution)
    )


def _error_cards(solution: Solution) -> dict[str, tuple[CardValue, str]]:
    """Cards that belong to the extension KERNEL_ERROR."""
    error = solution.kernel_error
    if error is None:
        return {}
    return {
        "WDKELEV": (error.template_level, "template level of KERNEL_ERROR"),
        "WDKEFWHM": (error.fwhm, "FWHM of stars for KERNEL_ERROR, pixels"),
        "WDPHOTON": (solution.photon_factor, "variance per unit of static light"),
    }


def solution_extras(solution: Solution) -> Mapping[str, Extra]:
    """Extensions that store the rest of a solution, besides KERNEL and BACKGROUND.

    Parameters
    ----------
    solution
        Solution.

    Returns
    -------
    extras
        Extension name → image, PSF, noise covariance or table.
    """
    extras: dict[str, Extra] = {_RECIPE: _recipe_table(solution.recipe)}
    if solution.psf is not None:
        extras["INPUT_PSF"] = solution.psf
    if solution.preconvolution_kernel is not None:
        extras["PRECONVOLUTION"] = solution.preconvolution_kernel
    for name, noise in _noises(solution).items():
        if noise is not None:
            extras[name] = noise
    if solution.kernel_error is not None:
        extras["KERNEL_ERROR"] = solution.kernel_error.errors
    if solution.stars is not None:
        extras["STARS"] = solution.stars
    if solution.pixels is not None:
        extras["INPUT_PIXELS"] = solution.pixels
    if solution.registration is not None:
        extras["REGISTRATION"] = _registration_table(solution.registration)
    return extras


def _recipe_table(recipe: Recipe) -> Table:
    """Table of all options of a recipe, one in each row."""
    values = flattened(recipe)
    table = Table({"option": list(values), "value": [json.dumps(v) for v in values.values()]})
    table["option"].description = "field of the recipe"
    table["value"].description = "JSON"
    return table


def _recipe(hdus: Any, file: Path) -> Recipe:
    table = read_table_hdu(hdus, _RECIPE)
    if table is None:
        raise FileFormatError.of(
            file, f"has no extension {_RECIPE}, which says how it was made; make it anew."
        )
    try:
        values = {
            str(row["option"]).strip(): json.loads(str(row["value"]).strip()) for row in table
        }
        return rebuilt(Recipe, values)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise FileFormatError.of(
            file,
            f"its extension {_RECIPE} is not as this version of whitediff writes it"
            f" ({one_line(error)}); make the output anew.",
        ) from error


def _registration_table(correction: Correction) -> Table:
    """Table with a correction in one row; header cards would not keep every bit of it."""
    columns = {
        "matrix": (correction.affine.matrix, "of positions (y, x) on the template"),
        "offset": (correction.affine.offset, "added to that, pixels (y, x)"),
        "by_wcs": (correction.by_wcs, "it corrects the WCS, else stands in its place"),
    }
    field = correction.displacements
    if field is not None:
        columns |= {
            "places": (field.places, "middles of Gaussians, science pixels (y, x)"),
            "weights": (field.weights, "displacements there, pixels (y, x)"),
            "length": (field.length, "standard deviation of the Gaussians, pixels"),
        }
    table = Table()
    for name, (value, description) in columns.items():
        table[name] = np.asarray(value)[None]
        table[name].description = description
    return table


def _registration(hdus: Any, file: Path) -> Correction | None:
    table = read_table_hdu(hdus, "REGISTRATION")
    if table is None:
        return None
    try:
        row = {name: np.array(table[name][0]) for name in table.colnames}
        field = None
        if "places" in row:
            field = Displacements(
                row["places"].reshape(-1, 2), row["weights"].reshape(-1, 2), float(row["length"])
            )
        affine = Affine(row["matrix"].reshape(2, 2), row["offset"].reshape(2))
        return Correction(affine, field, bool(row["by_wcs"]))
    except (KeyError, ValueError, IndexError) as error:
        raise FileFormatError.of(
            file,
            f"its extension REGISTRATION is not as whitediff writes it"
            f" ({one_line(error)}); make the output anew.",
        ) from error


def write_solution(
    solution: Solution,
    path: str | Path,
    *,
    overwrite: bool = False,
    provenance: Mapping[str, tuple[CardValue, str]] | None = None,
) -> None:
    """Write a solution alone: a product's primary header and small extensions.

    Parameters
    ----------
    solution
        Solution; without a box of its own, the box of its kernel is stored.
    path
        Output.
    overwrite
        Whether an existing file may be replaced.
    provenance
        Keyword → (value, comment) for the primary header.

    Raises
    ------
    OutputExistsError
        If the output exists and may not be replaced.
    FileFormatError
        If the file cannot be written.
    """
    box = solution.box or solution.kernel.bounds
    cards: dict[str, tuple[CardValue, str]] = {
        "WDTASK": ("subtract", "made by"),
        "WDVERS": (__version__, "version of whitediff"),
    }
    cards |= solution_cards(solution) | dict(provenance or {})
    corners = (box.x.start, box.x.stop, box.y.start, box.y.stop)
    cards |= {key: (value, "box of its pixels") for key, value in zip(_BOX, corners, strict=True)}
    for name, noise in _noises(solution).items():
        if isinstance(noise, NoiseCovariance):
            error, significance = _NOISE_CARDS[name]
            cards[error] = (noise.zero_frequency_error, "error of the power at low frequencies")
            cards[significance] = (noise.significance, "noise is not white, sigma")
    primary = astropy.io.fits.PrimaryHDU()
    for keyword, (value, comment) in cards.items():
        if value is not None and not (isinstance(value, float) and not math.isfinite(value)):
            primary.header.set(
                keyword, escaped(value) if isinstance(value, str) else value, comment
            )
    hdus = [primary, *kernel_hdus(solution.kernel, "KERNEL", box)]
    background = solution.background
    if not isinstance(background, int | float):
        hdus.append(background_hdu(background, "BACKGROUND", box))
    for name, extra in solution_extras(solution).items():
        if isinstance(extra, KernelPointSpreadFunction):
            hdus += psf_hdus(extra, name, box)
        elif isinstance(extra, NoiseCovariance) or callable(extra):
            hdus += noise_hdus(extra, name, box)
        elif isinstance(extra, Table):
            hdus.append(table_hdu(extra, name))
        else:
            hdus.append(astropy.io.fits.ImageHDU(extra, name=name))
    with replacing_fits(Path(path), overwrite=overwrite) as temporary:
        astropy.io.fits.HDUList(hdus).writeto(temporary)


def _noises(solution: Solution) -> dict[str, Noise]:
    noises = solution.noises or (None, None)
    return {"SCIENCE_NOISE": noises[0], "TEMPLATE_NOISE": noises[1]}


def read_solution(path: str | Path) -> Solution:
    """Read how a difference or score was made, from the file that whitediff wrote.

    Parameters
    ----------
    path
        File.

    Returns
    -------
    solution
        Complete solution, with which the same product can be made again.

    Raises
    ------
    FileFormatError
        If the file is not an output of ``whitediff subtract``.
    """
    file, _ = split_extension(path)
    with opened(file) as hdus:
        header = hdus[0].header
        kernel_hdu = find_hdu(hdus, ("KERNEL",))
        # Without decorrelation, the mean variances are unknown and not stored.
        needed = [*(k for k in _FACTORS if k not in _MEASURED), "WDCONV", "WDSCORE"]
        missing = [keyword for keyword in needed if keyword not in header]
        if kernel_hdu is None:
            missing.append("KERNEL")
        if missing or header.get("WDTASK") != "subtract":
            raise FileFormatError.of(
                file,
                f"is no difference or score of whitediff subtract that it could be made"
                f" again from (it lacks {', '.join(missing) or 'WDTASK = subtract'}).",
            )
        check_parts(hdus, _NEEDED, file)
        background_hdu = find_hdu(hdus, ("BACKGROUND",))
        box = _box(hdus, background_hdu, file)
        kernel = read_kernel_hdus(hdus, kernel_hdu, bounds=box, path=str(file))
        psf_hdu = find_hdu(hdus, ("INPUT_PSF",))
        pixels_hdu = find_hdu(hdus, ("INPUT_PIXELS",))
        preconvolution_hdu = find_hdu(hdus, ("PRECONVOLUTION",))
        numbers: dict[str, Any] = {
            name: float(header[keyword])
            for keyword, (name, _) in _FACTORS.items()
            if keyword in header
        }
        return Solution(
            kernel=kernel,
            background=0.0
            if background_hdu is None
            else read_background_hdu(background_hdu, path=str(file)),
            convolved=header["WDCONV"],
            box=box,
            recipe=_recipe(hdus, file),
            noises=(
                (
                    _noise(hdus, "SCIENCE_NOISE", box, file),
                    _noise(hdus, "TEMPLATE_NOISE", box, file),
                )
                if header.get("WDNOISES")
                else None
            ),
            alignment=_choice(header, "WDALIGN", (None, "auto", "interpolating", "adaptive"), file),
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
            registration=_registration(hdus, file),
            kernel_error=_kernel_error(hdus, file),
            photon_factor=float(header.get("WDPHOTON", 0.0)),
            # Files of earlier versions lack INPUT_PIXELS.
            pixels=None if pixels_hdu is None else np.asarray(pixels_hdu.data, dtype=np.float32),
            **numbers,
        )


def _kernel_error(hdus: Any, file: Path) -> KernelError | None:
    hdu = find_hdu(hdus, ("KERNEL_ERROR",))
    if hdu is None:
        return None
    header, errors = hdus[0].header, np.asarray(hdu.data, dtype=np.float64)
    side = math.isqrt(errors.shape[-1])
    if errors.ndim != 2 or errors.shape[1] != side**2 + 1 or "WDKELEV" not in header:
        raise FileFormatError.of(
            file,
            f"its extension KERNEL_ERROR has the shape {errors.shape} and not that of a"
            " kernel's pixels and level, or lacks WDKELEV; make the output anew.",
        )
    return KernelError(errors, float(header["WDKELEV"]), float(header["WDKEFWHM"]))


def _noise(hdus: Any, name: str, box: Box, file: Path) -> Noise:
    error, significance = _NOISE_CARDS[name]
    hdu = find_hdu(hdus, (name,))
    if hdu is None:
        return None
    header = hdus[0].header
    return read_noise_hdus(
        hdus,
        hdu,
        bounds=box,
        path=str(file),
        zero_frequency_error=float(header.get(error, 0.0)),
        significance=float(header.get(significance, math.inf)),
    )


def _choice(header: Any, keyword: str, allowed: tuple[str | bool | None, ...], file: Path) -> Any:
    value = header.get(keyword)
    if value not in allowed:
        names = " or ".join(str(one) for one in allowed if one is not None)
        raise FileFormatError.of(
            file, f"{keyword} is {value!r}; it must be {names}, as whitediff writes it."
        )
    return value


def _box(hdus: Any, background_hdu: Any, file: Path) -> Box:
    """Box of the product, even if the file was stripped of its planes."""
    header = hdus[0].header
    if all(card in header for card in _BOX):
        x0, x1, y0, y1 = (int(header[card]) for card in _BOX)
        return Box.from_shape((y1 - y0, x1 - x0), start=(y0, x0))
    box = None if background_hdu is None else polynomial_domain(background_hdu.header)
    if box is not None:
        return box
    if "IMAGE" not in hdus:
        raise FileFormatError.of(file, "has neither IMAGE nor BACKGROUND; keep one of them.")
    header = hdus["IMAGE"].header
    y0, x0 = pixel_origin(header, str(file))
    return Box.from_shape(hdus["IMAGE"].shape, start=(y0, x0))
