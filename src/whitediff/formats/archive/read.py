"""Exposures from lsst.images archives, with the HDUs that whitediff appends."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import astropy.io.fits
import lsst.images.serialization
import numpy as np
from lsst.images import Box, Image, Mask, MaskedImage
from lsst.images.fits import FitsInputArchive

from ...errors import FileFormatError, one_line
from ...exposures.model import Exposure
from ...exposures.sky import TOLERANCE, celestial_wcs, disagreement, projection_header
from ..files import opened
from ..headers import observation_header, without_provenance, without_wcs
from ..planes import mask_bytes, native
from ..stamps import (
    NOISE,
    find_hdu,
    read_background_hdu,
    read_kernel_hdus,
    read_noise_hdus,
    read_psf_hdus,
)

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
    try:
        return lsst.images.serialization.read_archive(str(path), format="fits")
    except Exception as error:
        raise FileFormatError(
            f"{path}: cannot be read as an lsst.images archive ({one_line(error)}); is it complete?"
        ) from error


def read(path: Path) -> Exposure:
    """Read an archive that holds a masked image of any kind.

    Parameters
    ----------
    path
        File.

    Returns
    -------
    exposure
        With the PSF, kernel and background of the object, or of the HDUs beside it.

    Raises
    ------
    FileFormatError
        If it cannot be read, or holds something else.
    """
    with opened(path) as hdus:
        obj = _plain_masked_image(path, hdus)
        if obj is None:
            obj = read_object(path)
        if not isinstance(obj, MaskedImage):
            raise FileFormatError(
                f"{path}: holds a {type(obj).__name__}, not an image with mask and variance."
            )
        given = Exposure.from_object(obj)
        psf, kernel, background = given.psf, given.kernel, None
        primary = without_provenance(observation_header(hdus[0].header))
        header = _sky_header(observation_header(hdus["IMAGE"].header), obj, path)
        kernel_hdu = find_hdu(hdus, ("KERNEL",))
        if kernel is None and kernel_hdu is not None and kernel_hdu.is_image:
            kernel = read_kernel_hdus(hdus, kernel_hdu, bounds=obj.bbox, path=str(path))
        psf_hdu = find_hdu(hdus, ("PSF",))
        if psf is None and psf_hdu is not None and psf_hdu.is_image:
            psf = read_psf_hdus(hdus, psf_hdu, bounds=obj.bbox, path=str(path))
        background_hdu = find_hdu(hdus, ("BACKGROUND",))
        if background_hdu is not None and background_hdu.is_image:
            background = read_background_hdu(background_hdu)
        noise_hdu = find_hdu(hdus, (NOISE,))
        noise = None
        if noise_hdu is not None and noise_hdu.is_image:
            noise = read_noise_hdus(hdus, noise_hdu, bounds=obj.bbox, path=str(path))
    return Exposure(
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
    )


def _plain_masked_image(path: Path, hdus: astropy.io.fits.HDUList) -> MaskedImage | None:
    """Masked image whose planes lie in the file as they are; None for all else.

    lsst.images would read the whole file into memory, copy every plane three times, and sort
    the mask's bits one by one.  So it reads a single pixel, with all that belongs to the
    image, and the planes are read here.
    """
    if path.suffix != ".fits":
        return None
    try:
        with (
            path.open("rb") as stream,
            FitsInputArchive.open_tree(stream) as (archive, any_tree, info),
        ):
            if info.schema_name != "masked_image":
                return None
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
                return None
            pixel = tree.deserialize(archive, bbox=Box.from_shape((1, 1), start=box.start))
    except Exception as error:
        raise FileFormatError(
            f"{path}: cannot be read as an lsst.images archive ({one_line(error)}); is it complete?"
        ) from error
    image, mask, variance = (hdu.data for hdu in found)
    return MaskedImage(
        Image(native(image), bbox=box, unit=pixel.unit),
        mask=Mask(
            mask_bytes(mask, pixel.mask.schema.mask_size), schema=pixel.mask.schema, bbox=box
        ),
        variance=Image(native(variance), bbox=box, unit=pixel.variance.unit),
        sky_projection=pixel.sky_projection,
        metadata=pixel.metadata,
    )


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
