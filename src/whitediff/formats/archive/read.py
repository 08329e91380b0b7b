"""Exposures from lsst.images archives, with the HDUs that whitediff appends."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import astropy.io.fits
import lsst.images.serialization
import numpy as np
from lsst.images import Box, Image, Mask, MaskedImage
from lsst.images.fits import FitsInputArchive

from ...errors import ArgumentError, FileFormatError, one_line
from ...exposures.model import Exposure
from ...exposures.sky import (
    TOLERANCE,
    celestial_wcs,
    disagreement,
    projection_header,
    shifted_header,
)
from ...outputs import staged
from ..files import opened
from ..headers import observation_header, without_provenance, without_wcs
from ..planes import mask_bytes, native
from ..record import decorrelated
from ..stamps import (
    NOISE,
    find_hdu,
    read_background_hdu,
    read_kernel_hdus,
    read_noise_hdus,
    read_psf_hdus,
)
from .trusted import check_archive, check_schema

__all__ = ["read", "read_object"]

_log = logging.getLogger("whitediff.formats")


def read_object(path: Path) -> Any:
    """Read whatever an archive holds.

    Parameters
    ----------
    path
        File.

    Returns
    -------
    obj
        Of the class that its schema names.

    Raises
    ------
    FileFormatError
        If it cannot be read.
    """
    with opened(path) as hdus:
        check_archive(hdus, path)
    try:
        return lsst.images.serialization.read_archive(os.fspath(staged(path)), format="fits")
    except Exception as error:
        raise FileFormatError(
            f"{path}: cannot be read as an lsst.images archive ({one_line(error)}); is it complete?"
        ) from error


def read(path: Path, *, box: Box | None = None) -> Exposure:
    """Read an archive that holds a masked image of any kind.

    Parameters
    ----------
    path
        File.
    box
        Pixels to read; None for all.

    Returns
    -------
    exposure
        With the PSF, kernel and background of the object, or of the HDUs beside it.

    Raises
    ------
    FileFormatError
        If it cannot be read, or holds something else.
    ArgumentError
        If the box is not inside.
    """
    # Of a part of the image, the rest is not read.
    with opened(path, checksums=box is None) as hdus:
        check_schema(hdus, path)
        obj, whole = _plain_masked_image(path, hdus, box)
        if obj is None:
            obj = read_object(path)
        if not isinstance(obj, MaskedImage):
            raise FileFormatError(
                f"{path}: holds a {type(obj).__name__}, not an image with mask and variance."
            )
        whole = obj.bbox if whole is None else whole
        given = Exposure.from_object(obj)
        psf, kernel, background = given.psf, given.kernel, None
        primary = without_provenance(observation_header(hdus[0].header))
        score = hdus[0].header.get("WDSCORE") is True
        decorrelated_by = decorrelated(hdus[0].header)
        header = observation_header(hdus["IMAGE"].header)
        if obj.bbox != whole:
            dy, dx = (a - b for a, b in zip(obj.bbox.start, whole.start, strict=True))
            header = shifted_header(header, dy=dy, dx=dx)
        header = _sky_header(header, obj, path)
        kernel_hdu = find_hdu(hdus, ("KERNEL",))
        if kernel is None and kernel_hdu is not None and kernel_hdu.is_image:
            kernel = read_kernel_hdus(hdus, kernel_hdu, bounds=whole, path=str(path))
        psf_hdu = find_hdu(hdus, ("PSF",))
        if psf is None and psf_hdu is not None and psf_hdu.is_image:
            psf = read_psf_hdus(hdus, psf_hdu, bounds=whole, path=str(path))
        background_hdu = find_hdu(hdus, ("BACKGROUND",))
        if background_hdu is not None and background_hdu.is_image:
            background = read_background_hdu(background_hdu, path=str(path))
            if isinstance(background, np.ndarray) and obj.bbox != whole:
                background = background[_within(obj.bbox, whole)]
        noise_hdu = find_hdu(hdus, (NOISE,))
        noise = None
        if noise_hdu is not None and noise_hdu.is_image:
            noise = read_noise_hdus(hdus, noise_hdu, bounds=whole, path=str(path))
    exposure = Exposure(
        MaskedImage(
            obj.image,
            mask=obj.mask,
            variance=obj.variance,
            sky_projection=obj.sky_projection,
        ),
        psf=psf,
        kernel=kernel,
        background=background,
        header=header,
        primary_header=primary,
        source=str(path),
        noise=noise,
        is_score=score,
        decorrelated_by=decorrelated_by,
    )
    return exposure if box is None or exposure.bbox == box else exposure.cutout(box)


def _plain_masked_image(
    path: Path, hdus: astropy.io.fits.HDUList, part: Box | None
) -> tuple[MaskedImage | None, Box | None]:
    """Masked image whose planes lie in the file as they are, and the box of the whole.

    None for all else.

    lsst.images would read the whole file into memory, copy every plane three times, and sort
    the mask's bits one by one.  So it reads a single pixel, with all that belongs to the
    image, and the planes are read here.
    """
    if path.suffix != ".fits":
        return None, None
    try:
        with (
            staged(path).open("rb") as stream,
            FitsInputArchive.open_tree(stream) as (archive, any_tree, info),
        ):
            if info.schema_name != "masked_image":
                return None, None
            tree: Any = any_tree
            box, planes = tree.bbox, tree.mask.planes
            found = [hdus[name] for name in ("IMAGE", "MASK", "VARIANCE")]
            if (
                tree.mask.dtype.to_numpy() != np.uint8
                or len(tree.mask.data) != 1
                or None in planes
                or not all(type(hdu) is astropy.io.fits.ImageHDU for hdu in found)
                or any(keyword in hdu.header for hdu in found for keyword in ("BSCALE", "BZERO"))
                or any((hdu.header["NAXIS2"], hdu.header["NAXIS1"]) != box.shape for hdu in found)
                or [hdu.header["NAXIS"] for hdu in found] != [2, 2, 2]
                or found[1].header["BITPIX"] not in (8, 16, 32, 64)
            ):
                return None, None
            pixel = tree.deserialize(archive, bbox=Box.from_shape((1, 1), start=box.start))
    except Exception as error:
        raise FileFormatError(
            f"{path}: cannot be read as an lsst.images archive ({one_line(error)}); is it complete?"
        ) from error
    image, mask, variance = (hdu.data for hdu in found)
    whole = box
    if part is not None:
        if not box.contains(part):
            raise ArgumentError(f"{path}: its box {box} does not contain {part}.")
        # Of a file that is mapped into memory nothing else is read.
        image, mask, variance = (plane[_within(part, box)] for plane in (image, mask, variance))
        box = part
    return MaskedImage(
        Image(native(image), bbox=box, unit=pixel.unit),
        mask=Mask(
            mask_bytes(mask, pixel.mask.schema.mask_size), schema=pixel.mask.schema, bbox=box
        ),
        variance=Image(native(variance), bbox=box, unit=pixel.variance.unit),
        sky_projection=pixel.sky_projection,
        metadata=pixel.metadata,
    ), whole


def _within(part: Box, whole: Box) -> tuple[slice, slice]:
    """Rows and columns of a part in an array that holds the whole."""
    y, x = part.y.start - whole.y.start, part.x.start - whole.x.start
    return slice(y, y + part.y.size), slice(x, x + part.x.size)


def _sky_header(
    header: astropy.io.fits.Header, obj: MaskedImage, path: Path
) -> astropy.io.fits.Header:
    """Header whose WCS says what the archive's projection says."""
    projection = obj.sky_projection
    if projection is None:
        return header
    wcs = celestial_wcs(header)
    if wcs is not None and disagreement(wcs, projection, obj.bbox) <= TOLERANCE:
        return header
    # lsst.images writes an approximation where FITS has no name for its projection.
    rewritten = without_wcs(header)
    cards = projection_header(projection, obj.bbox)
    rewritten.extend(cards, unique=True)
    _log.info(
        "%s: the WCS in its header %s; %s.",
        path,
        "only approximates its projection" if wcs is not None else "cannot be understood",
        "it is rewritten as TAN-SIP" if cards else "it is left out",
    )
    return rewritten
