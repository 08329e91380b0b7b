"""Reading of exposures from files with the planes IMAGE, MASK and VARIANCE."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import numpy.typing as npt

from ...errors import ArgumentError, FileFormatError
from ...exposures.boxes import Box
from ...exposures.masks import empty_mask
from ...exposures.model import Exposure, Provenance, as_native_float, parse_unit
from ...exposures.psf import PointSpreadFunction
from ...exposures.sky import shifted_header
from ...numerics.planes import each_block
from ..files import opened
from ..headers import observation_header, pixel_origin, unescaped, without_provenance
from ..planes import Hdu, native
from ..record import decorrelated
from ..stamps import (
    NOISE,
    find_hdu,
    read_background_hdu,
    read_kernel_hdus,
    read_noise_hdus,
    read_psf_hdus,
)

__all__ = ["companions", "mask_names", "read"]

type Array = npt.NDArray[Any]

_PLANES = ("IMAGE", "MASK", "VARIANCE")
_NAME = re.compile(r"MSKN(\d{4})")


def read(path: Path, *, box: Box | None = None) -> Exposure:
    """Read an exposure whose planes are stored plainly in the file.

    Parameters
    ----------
    path
        File.
    box
        Pixels to read; None for all.

    Returns
    -------
    exposure
        Exposure, with PSF, kernel, background and noise covariance from the other HDUs.

    Raises
    ------
    FileFormatError
        If a plane is missing or does not fit, or the mask does not name its bits.
    ArgumentError
        If the box is not inside the image.
    """
    # Checksums would read the whole file for a part of the image.
    with opened(path, checksums=box is None) as hdus:
        image_hdu, mask_hdu, variance_hdu = (_plane_hdu(hdus, name, path) for name in _PLANES)
        shape = image_hdu.shape
        for hdu in (mask_hdu, variance_hdu):
            if hdu.shape != shape:
                raise FileFormatError.of(
                    path,
                    f"its {hdu.name} has the shape {hdu.shape}, but its IMAGE {shape};"
                    " copy or download it again.",
                )
        names, descriptions = mask_names(mask_hdu.header, path)
        image, bits, variance = (hdu.data for hdu in (image_hdu, mask_hdu, variance_hdu))
        if bits.dtype.kind not in "iu":
            raise FileFormatError.of(path, f"its MASK holds {bits.dtype}, not integers.")
        whole = part = Box.from_shape(shape, pixel_origin(image_hdu.header, str(path)))
        header = observation_header(image_hdu.header)
        if box is not None:
            if not whole.contains(box):
                raise ArgumentError.of(path, f"its box {whole} does not contain {box}.")
            part, inside = box, whole.slices_of(box)
            # A slice of a file that is mapped into memory reads nothing else of it.
            image, bits, variance = (plane[inside] for plane in (image, bits, variance))
            header = shifted_header(header, dy=inside[0].start, dx=inside[1].start)
        mask = empty_mask(part.shape, names, descriptions)

        def work(rows: slice) -> None:
            mask.bits[rows] = bits[rows].astype(mask.bits.dtype)

        each_block(work, mask.shape)
        psf, provenance = companions(hdus, whole, part, path)
        return Exposure(
            as_native_float(native(image)),
            as_native_float(native(variance)),
            mask,
            origin=part.start,
            unit=parse_unit(header.get("BUNIT")),
            psf=psf,
            header=header,
            provenance=provenance,
        )


def _plane_hdu(hdus: astropy.io.fits.HDUList, name: str, path: Path) -> Hdu:
    if name not in hdus:
        raise FileFormatError.of(
            path, f"has no {name}, as files of its kind have; copy or download it again."
        )
    hdu = hdus[name]
    if not (hdu.is_image and len(hdu.shape) == 2 and hdu.data is not None):
        raise FileFormatError.of(path, f"its {name} is no image; copy or download it again.")
    return hdu


def mask_names(header: astropy.io.fits.Header, path: Path) -> tuple[list[str], dict[str, str]]:
    """Names and descriptions of the bits of a mask.

    Parameters
    ----------
    header
        Header with cards MSKNnnnn and MSKDnnnn.
    path
        File, for messages.

    Returns
    -------
    names
        Names, from bit 0 on.
    descriptions
        Name → description, if it has one.

    Raises
    ------
    FileFormatError
        If a bit has no name, or two have the same.
    """
    found = {
        int(match[1]): str(header[card]).strip()
        for card in header
        if (match := _NAME.fullmatch(card)) is not None
    }
    names = [found[number] for number in sorted(found)]
    if sorted(found) != list(range(len(found))) or len(set(names)) < len(names):
        raise FileFormatError.of(
            path,
            f"the cards MSKNnnnn of its MASK name the bits {sorted(found)} as"
            f" {', '.join(names)}; each bit from 0 on needs a name of its own.",
        )
    texts = {
        name: unescaped(str(header.get(f"MSKD{number:04d}", "")))
        for number, name in enumerate(names)
    }
    return names, {name: text for name, text in texts.items() if text}


def companions(
    hdus: astropy.io.fits.HDUList, whole: Box, part: Box, path: Path
) -> tuple[PointSpreadFunction | None, Provenance]:
    """PSF and provenance that a whitediff file has besides its planes.

    Parameters
    ----------
    hdus
        HDUs of the file.
    whole, part
        Box of the image, and of the part that is read.
    path
        File, for messages.

    Returns
    -------
    psf
        PSF; None if the file has none.
    provenance
        Kernel, background and noise covariance from other HDUs, and the primary header with its
        record of score and decorrelation.
    """
    kernel = psf = background = noise = None
    kernel_hdu = _image_named(hdus, "KERNEL")
    if kernel_hdu is not None:
        kernel = read_kernel_hdus(hdus, kernel_hdu, bounds=whole, path=str(path))
    psf_hdu = _image_named(hdus, "PSF")
    if psf_hdu is not None:
        psf = read_psf_hdus(hdus, psf_hdu, bounds=whole, path=str(path))
    background_hdu = _image_named(hdus, "BACKGROUND")
    if background_hdu is not None:
        background = read_background_hdu(background_hdu, path=str(path))
        if isinstance(background, np.ndarray) and part != whole:
            background = background[whole.slices_of(part)]
    noise_hdu = _image_named(hdus, NOISE)
    if noise_hdu is not None:
        noise = read_noise_hdus(hdus, noise_hdu, bounds=whole, path=str(path))
    primary = hdus[0].header
    return psf, Provenance(
        source=str(path),
        primary_header=without_provenance(observation_header(primary)),
        kernel=kernel,
        background=background,
        noise=noise,
        is_score=primary.get("WDSCORE") is True,
        decorrelated_by=decorrelated(primary),
    )


def _image_named(hdus: astropy.io.fits.HDUList, name: str) -> Hdu | None:
    hdu = find_hdu(hdus, (name,))
    return hdu if hdu is not None and hdu.is_image else None
