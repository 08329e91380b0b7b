"""Description of a file's content, in words and numbers."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import astropy.io.fits
import astropy.wcs.utils
import numpy as np

from ..errors import DataError, FileFormatError, WhitediffError, one_line
from ..exposures.boxes import Box
from ..exposures.fields import PiecewiseField
from ..exposures.kernels import BasisKernel, ConvolutionKernel
from ..exposures.masks import flagged
from ..exposures.model import Exposure
from ..exposures.psf import PointSpreadFunction
from ..numerics.profiles import full_width_half_maximum
from . import plain, read_any, read_exposure, read_kernel, read_psf
from .difference import Difference
from .export import own_box
from .files import Extension, opened, remarks, split_extension
from .format import Identity
from .own import ROLES
from .planes import Hdu
from .registry import format_of, identify

__all__ = ["Description", "HduDescription", "describe", "product_extensions"]

_log = logging.getLogger("whitediff.formats")

_OF_PRODUCTS = ("flux", "solution", "record")


def product_extensions(path: str | Path) -> list[str]:
    """Extensions that only products of whitediff have, and no other exposure.

    Parameters
    ----------
    path
        FITS file.

    Returns
    -------
    names
        Names, such as ``FLUX``; empty for files of other programs.

    Raises
    ------
    FileFormatError
        If the file is not FITS.
    """
    with opened(split_extension(path)[0]) as hdus:
        if "WDTASK" not in hdus[0].header:
            return []
        return [hdu.name for hdu in hdus[1:] if ROLES.get(hdu.name) in _OF_PRODUCTS]


@dataclasses.dataclass(frozen=True)
class HduDescription:
    """One HDU of a file.

    Attributes
    ----------
    index, name, version
        Position in the file, EXTNAME and EXTVER.
    content
        Shape and type of the data.
    role
        How the HDU is used; empty if it is not used.
    """

    index: int
    name: str
    version: int
    content: str
    role: str


@dataclasses.dataclass(frozen=True)
class Description:
    """Description of a file.

    Attributes
    ----------
    path
        File.
    format, kind
        Format and kind, as in `whitediff.formats.Identity`.
    hdus
        HDUs of the file.
    facts
        Label → text, in the order to show them.
    notes
        Messages that were logged while the file was read.
    """

    path: str
    format: str
    kind: str
    hdus: tuple[HduDescription, ...]
    facts: dict[str, str]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Convert the description to plain numbers and strings.

        Returns
        -------
        values
            Attribute → value, for a JSON file.
        """
        return dataclasses.asdict(self)


class _Notes(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def describe(path: str | Path, *, kernel: str | Path | None = None) -> Description:
    """Read a file and describe its content.

    Parameters
    ----------
    path
        File of any format that whitediff reads.
    kernel
        File of the kernel, for a difference that does not hold it.

    Returns
    -------
    description
        `Description`.

    Raises
    ------
    FileFormatError
        If the file cannot be understood.
    """
    file, extension = split_extension(path)
    with opened(file) as hdus:
        identity = identify(hdus)
        if identity is None:
            raise FileFormatError.of(file, "has no HDU with data.")
        roles = _roles(hdus, identity, extension, file)
        listed = tuple(
            HduDescription(i, hdu.name, hdu.ver, _content(hdu), roles.get(i, ""))
            for i, hdu in enumerate(hdus)
        )
        told = remarks(file, hdus)
    notes, logger = _Notes(), logging.getLogger("whitediff")
    before = logger.level
    logger.addHandler(notes)
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    try:
        facts = _facts(path, identity, kernel)
    finally:
        logger.removeHandler(notes)
        logger.setLevel(before)
    prefix = f"{file}: "
    return Description(
        path=str(path),
        format=identity.format,
        kind=identity.kind,
        hdus=listed,
        facts={"format": identity.detail} | facts,
        notes=tuple(dict.fromkeys([*told, *(text.removeprefix(prefix) for text in notes.texts)])),
    )


def _facts(path: str | Path, identity: Identity, kernel: str | Path | None) -> dict[str, str]:
    file, _ = split_extension(path)
    form = format_of(identity)
    with opened(file) as hdus:
        facts = form.facts(hdus, identity)
    if facts is not None:
        return facts
    if identity.kind == "psf":
        box = own_box(file) or _ANY
        return _psf_facts(read_psf(path, bounds=box), box)
    if identity.kind == "kernel":
        found = form.kernel_and_box(file, identity)
        if found is None:
            return _kernel_facts(read_kernel(path, bounds=_ANY), _ANY)
        return {"image": f"for {_shape(found[1].shape)}"} | _kernel_facts(*found)
    if not identity.has_noise:
        return _exposure_facts(read_exposure(path, needs_variance=False))
    try:
        difference = read_any(path, kernel=kernel)
    except DataError as error:
        # The image is too small or too empty to measure its noise; the rest can still be described.
        _log.info("%s", error)
        difference = Difference(read_exposure(path, needs_variance=False))
    return _exposure_facts(difference.exposure) | _difference_facts(difference)


_ANY = Box.from_shape((4096, 4096))
"""Frame for kernels and PSFs whose file does not give one."""


def _exposure_facts(exposure: Exposure) -> dict[str, str]:
    image, variance = exposure.data, exposure.variance
    finite = np.isfinite(image)
    facts = {
        "image": f"{_shape(exposure.shape)}, {image.dtype}"
        + (f", {100 * (1 - finite.mean()):.3g}% not finite" if not finite.all() else ""),
        "unit": "unknown" if exposure.unit is None else str(exposure.unit),
    }
    if exposure.origin != (0, 0):
        facts["first pixel"] = f"x = {exposure.origin[1]}, y = {exposure.origin[0]}"
    usable = variance[np.isfinite(variance) & (variance > 0)]
    if usable.size:
        facts["variance"] = (
            f"median {np.median(usable):.4g}, from {usable.min():.4g} to {usable.max():.4g}"
        )
    else:
        facts["variance"] = "none"
    planes = []
    for name in exposure.mask.names:
        number = int(np.count_nonzero(flagged(exposure.mask, [name])))
        planes.append(f"{name} ({number})")
    facts["mask planes"] = ", ".join(planes) or "none"
    wcs = exposure.wcs
    if wcs is None:
        facts["WCS"] = "none that can be understood" if "CTYPE1" in exposure.header else "none"
    else:
        ny, nx = exposure.shape
        middle = wcs.pixel_to_world(nx / 2, ny / 2).icrs
        scale = float(np.mean(astropy.wcs.utils.proj_plane_pixel_scales(wcs.celestial))) * 3600
        facts["WCS"] = (
            f"{str(wcs.wcs.ctype[0])[5:].lstrip('-')}, middle at RA {middle.ra.deg:.6f},"
            f" Dec {middle.dec.deg:+.6f} deg, {scale:.4g} arcsec per pixel"
        )
    if exposure.psf is None:
        facts["PSF"] = "none"
    else:
        facts |= _psf_facts(exposure.psf, exposure.bbox)
    if exposure.background is not None:
        facts["background"] = (
            "image" if isinstance(exposure.background, np.ndarray) else "polynomials"
        )
    return facts


def _difference_facts(difference: Difference) -> dict[str, str]:
    exposure = difference.exposure
    facts: dict[str, str] = {}
    if exposure.kernel is not None:
        facts |= _kernel_facts(exposure.kernel, exposure.bbox)
    else:
        facts["kernel"] = "none"
    if difference.software is not None:
        facts["made by"] = difference.software
    if difference.directions:
        facts["convolved"] = difference.convolved or ", ".join(
            side for _, side in difference.directions
        )
    for name, source in difference.variance_files.items():
        facts[f"{name} noise"] = source
    return facts


def _kernel_facts(kernel: ConvolutionKernel, box: Box) -> dict[str, str]:
    image = kernel.at(x=box.x.center, y=box.y.center)
    facts = {"kernel": f"{_shape(image.shape)}, sum {image.sum():.6g} in the middle"}
    if isinstance(kernel, BasisKernel):
        first = kernel.fields[0]
        if kernel.is_constant:
            facts["kernel"] += ", the same everywhere"
        elif isinstance(first, PiecewiseField):
            facts["kernel"] += f", {len(kernel.basis)} basis images in {len(first.pieces)} regions"
        else:
            facts["kernel"] += f", {len(kernel.basis)} basis images with varying weights"
    return facts


def _psf_facts(psf: PointSpreadFunction, box: Box) -> dict[str, str]:
    try:
        image = psf.at(x=box.x.center, y=box.y.center)
        width = full_width_half_maximum(image)
    except WhitediffError as error:
        return {"PSF": one_line(error)}
    return {
        "PSF": f"{type(psf).__name__}, {_shape(image.shape)}, full width at half maximum"
        f" {width:.3g} pixels in the middle"
    }


def _roles(
    hdus: astropy.io.fits.HDUList, identity: Identity, extension: Extension, path: Path
) -> dict[int, str]:
    roles = format_of(identity).roles(hdus, identity, extension, path)
    if roles is not None:
        return roles
    if identity.kind in ("kernel", "psf"):
        return {i: identity.kind for i, hdu in enumerate(hdus) if hdu.header.get("NAXIS", 0)}
    return plain.roles(hdus, extension, path)


def _content(hdu: Hdu) -> str:
    if isinstance(hdu, astropy.io.fits.BinTableHDU) and not hdu.is_image:
        return f"table, {len(hdu.data)} rows, {len(hdu.columns)} columns"
    if not hdu.header.get("NAXIS", 0) or hdu.shape == ():
        return "no data"
    packed = " (compressed)" if isinstance(hdu, astropy.io.fits.CompImageHDU) else ""
    kind = {8: "uint8", 16: "int16", 32: "int32", 64: "int64", -32: "float32", -64: "float64"}
    return f"{_shape(hdu.shape)} {kind.get(hdu.header.get('BITPIX'), '?')}{packed}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape) + " pixels"
