"""Exposures from lsst.images archives, with the HDUs that whitediff appends."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import astropy.io.fits
import lsst.images.serialization
from lsst.images import MaskedImage

from ...errors import FileFormatError, one_line
from ...exposures.model import Exposure
from ...exposures.sky import TOLERANCE, celestial_wcs, disagreement, projection_header
from ..files import opened
from ..headers import observation_header, without_provenance, without_wcs
from ..stamps import find_hdu, read_background_hdu, read_kernel_hdus, read_psf_hdus

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
    obj = read_object(path)
    if not isinstance(obj, MaskedImage):
        raise FileFormatError(
            f"{path}: holds a {type(obj).__name__}, not an image with mask and variance."
        )
    given = Exposure.from_object(obj)
    psf, kernel, background = given.psf, given.kernel, None
    with opened(path) as hdus:
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
