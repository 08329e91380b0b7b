"""Reading of exposures from lsst.images archives, with the HDUs that whitediff appends."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import os
from pathlib import Path
from typing import Any

import astropy.io.fits
import lsst.images
import lsst.images.serialization
import numpy as np
import numpy.typing as npt
from lsst.images import MaskedImage
from lsst.images.fits import FitsInputArchive

from ...errors import ArgumentError, FileFormatError, one_line
from ...exposures import foreign
from ...exposures.boxes import Box
from ...exposures.kernels import ConvolutionKernel
from ...exposures.masks import Mask, empty_mask
from ...exposures.model import Exposure
from ...exposures.psf import PointSpreadFunction
from ...exposures.sky import (
    TOLERANCE,
    celestial_wcs,
    disagreement,
    projection_header,
    shifted_header,
)
from ...numerics.planes import each_block
from ...outputs import staged
from ..files import opened
from ..headers import observation_header, without_wcs
from ..own.read import companions
from ..planes import native
from .trusted import check_archive, check_schema

__all__ = ["read", "read_object"]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.formats")

_BANDPASS = "read_bandpass"
"""Method that Piff expects its readers to have from version 1.7 on."""


def read_object(path: Path) -> object:
    """Read the object that an archive holds.

    Parameters
    ----------
    path
        File.

    Returns
    -------
    obj
        Object of the class that the archive's schema names.

    Raises
    ------
    FileFormatError
        If the archive cannot be read.
    """
    with opened(path) as hdus:
        check_archive(hdus, path)
    try:
        return lsst.images.serialization.read_archive(os.fspath(staged(path)), format="fits")
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> FileFormatError:
    """Error for an archive that lsst.images cannot read."""
    if isinstance(error, AttributeError) and error.name == _BANDPASS:
        images, piff = (importlib.metadata.version(name) for name in ("lsst-images", "piff"))
        return FileFormatError.of(
            path,
            f"its PSF is a model of Piff, and lsst-images {images} does not read these with"
            f" Piff {piff}; install an older Piff (pip install 'piff<1.7') or a newer lsst-images.",
        )
    return FileFormatError.of(
        path, f"cannot be read as an lsst.images archive ({one_line(error)}); is it complete?"
    )


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
        Exposure with PSF and kernel of the object or of the HDUs beside it, and with the
        background of these HDUs.

    Raises
    ------
    FileFormatError
        If the archive cannot be read, or holds something else.
    ArgumentError
        If the box is not inside the image.
    """
    # Checksums would read the whole file for a part of the image.
    with opened(path, checksums=box is None) as hdus:
        check_schema(hdus, path)
        planes = _plain_planes(path, hdus, box)
        if planes is None:
            obj = read_object(path)
            if not isinstance(obj, MaskedImage):
                raise FileFormatError.of(
                    path, f"holds a {type(obj).__name__}, not an image with mask and variance."
                )
            planes = _Planes.of(obj)
        whole, part = planes.whole, planes.part
        header = observation_header(hdus["IMAGE"].header)
        if part != whole:
            inside = whole.slices_of(part)
            header = shifted_header(header, dy=inside[0].start, dx=inside[1].start)
        psf, provenance = companions(hdus, whole, part, path)
        if planes.kernel is not None:
            provenance = dataclasses.replace(provenance, kernel=planes.kernel)
        exposure = Exposure(
            planes.image,
            planes.variance,
            planes.mask,
            origin=part.start,
            unit=planes.unit,
            psf=psf if planes.psf is None else planes.psf,
            header=_sky_header(header, planes, path),
            provenance=provenance,
        )
    return exposure if box is None or exposure.bbox == box else exposure.cutout(box)


@dataclasses.dataclass(frozen=True)
class _Planes:
    """Planes and companions of an archive's exposure, or of a part of it."""

    image: Array
    variance: Array
    mask: Mask
    part: Box
    whole: Box
    unit: Any
    projection: Any
    lsst_part: Any
    psf: PointSpreadFunction | None = None
    kernel: ConvolutionKernel | None = None

    @classmethod
    def of(cls, obj: MaskedImage) -> _Planes:
        """Planes and companions of an object in memory."""
        parts = foreign.parts_of(obj)
        return cls(
            parts.image,
            parts.variance,
            parts.mask,
            parts.box,
            parts.box,
            parts.unit,
            obj.sky_projection,
            obj.bbox,
            parts.psf,
            parts.kernel,
        )


def _plain_planes(path: Path, hdus: astropy.io.fits.HDUList, part: Box | None) -> _Planes | None:
    """Planes of a masked image that is stored plainly in the file; None for all else.

    lsst.images would read the whole file into memory, copy every plane three times, and sort
    the mask's bits one by one.  So it reads only a single pixel, with all that belongs to the
    image, and this function reads the planes.
    """
    if path.suffix != ".fits":
        return None
    try:
        with (
            staged(path).open("rb") as stream,
            FitsInputArchive.open_tree(stream) as (archive, any_tree, info),
        ):
            if info.schema_name != "masked_image":
                return None
            tree: Any = any_tree
            own, names = tree.bbox, tree.mask.planes
            found = [hdus[name] for name in ("IMAGE", "MASK", "VARIANCE")]
            if (
                tree.mask.dtype.to_numpy() != np.uint8
                or len(tree.mask.data) != 1
                or None in names
                or not all(type(hdu) is astropy.io.fits.ImageHDU for hdu in found)
                or any(keyword in hdu.header for hdu in found for keyword in ("BSCALE", "BZERO"))
                or any((hdu.header["NAXIS2"], hdu.header["NAXIS1"]) != own.shape for hdu in found)
                or [hdu.header["NAXIS"] for hdu in found] != [2, 2, 2]
                or found[1].header["BITPIX"] not in (8, 16, 32, 64)
            ):
                return None
            first = lsst.images.Box.from_shape((1, 1), start=own.start)
            pixel = tree.deserialize(archive, bbox=first)
    except Exception as error:
        raise _unreadable(path, error) from error
    image, bits, variance = (hdu.data for hdu in found)
    whole = box = foreign.box_of(own)
    if part is not None:
        if not whole.contains(part):
            raise ArgumentError.of(path, f"its box {whole} does not contain {part}.")
        # A slice of a file that is mapped into memory reads nothing else of it.
        inside = whole.slices_of(part)
        image, bits, variance = (plane[inside] for plane in (image, bits, variance))
        box = part
    return _Planes(
        native(image),
        native(variance),
        _mask_of_integers(bits, foreign.mask_of(pixel.mask)),
        box,
        whole,
        pixel.unit,
        pixel.sky_projection,
        lsst.images.Box.from_shape(box.shape, start=box.start),
    )


def _mask_of_integers(bits: Array, like: Mask) -> Mask:
    """Mask from one integer for each pixel, with the planes of another mask."""
    mask = empty_mask(bits.shape, like.names, like.descriptions)

    def work(rows: slice) -> None:
        mask.bits[rows] = bits[rows].astype(mask.bits.dtype)

    each_block(work, mask.shape)
    return mask


def _sky_header(
    header: astropy.io.fits.Header, planes: _Planes, path: Path
) -> astropy.io.fits.Header:
    """Header whose WCS agrees with the archive's projection."""
    projection = planes.projection
    if projection is None:
        return header
    wcs = celestial_wcs(header)
    if wcs is not None and disagreement(wcs, projection, planes.lsst_part) <= TOLERANCE:
        return header
    # lsst.images writes an approximate WCS if FITS has no name for its projection.
    rewritten = without_wcs(header)
    cards = projection_header(projection, planes.lsst_part)
    rewritten.extend(cards, unique=True)
    _log.info(
        "%s: the WCS in its header %s; %s.",
        path,
        "only approximates its projection" if wcs is not None else "cannot be understood",
        "it is rewritten as TAN-SIP" if cards else "it is left out",
    )
    return rewritten
