"""Exposures as lsst.images MaskedImage archives, with plain HDUs appended.

The archive comes first, exactly as lsst.images writes it, so that it reads without
whitediff; PSF, kernel and background follow as HDUs that any FITS reader understands.
lsst.images writes its own approximation of the WCS into the headers; here the input's
cards take their place, within the space that the header already has, so that no address
in the archive's index moves.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import astropy.io.fits
import astropy.table
import numpy as np
import numpy.typing as npt
from lsst.images import Box, Mask, MaskedImage, MaskSchema
from lsst.images.fits import (
    FitsCompressionOptions,
    FitsOpaqueMetadata,
    FitsOutputArchive,
    suppress_fits_card_warnings,
)

from ...exposures.model import Exposure
from ...exposures.psf import KernelPointSpreadFunction, as_kernel_psf
from ...noise import NoiseCovariance
from ...planes import filled
from ..finished import RESERVED, replacing_fits
from ..headers import escaped, observation_header, storable, wcs_cards, without_provenance
from ..parts import KEYWORD, listed
from ..planes import native
from ..stamps import NOISE, background_hdu, kernel_hdus, noise_hdus, psf_hdus
from ..tables import table_hdu
from .convert import masked_image

__all__ = ["write"]

_log = logging.getLogger("whitediff.formats")

type Array = npt.NDArray[Any]
type Extra = Array | KernelPointSpreadFunction | astropy.table.Table
type CardValue = str | int | float | bool | None
_PLANES = ("image", "mask", "variance")
_ARCHIVE = ("IMAGE", "MASK", "VARIANCE", "JSON", "INDEX")
_FILLER = "whitediff reserves this card"


def write(
    exposure: Exposure,
    path: Path,
    *,
    overwrite: bool = False,
    compress: bool = False,
    provenance: Mapping[str, tuple[CardValue, str]] | None = None,
    extras: Mapping[str, Extra] | None = None,
) -> None:
    """Write an exposure; the file appears complete or not at all.

    Parameters
    ----------
    exposure
        Exposure.
    path
        Output.
    overwrite
        Whether an existing file may be replaced.
    compress
        Compress the planes without loss (GZIP_2): smaller, and slower by an order of
        magnitude.
    provenance
        Keyword → (value, comment) for the primary header; values that are None or not
        finite are left out.
    extras
        Extension name → further image, PSF, noise covariance or table.  An image of the
        exposure's shape gets its WCS.

    Raises
    ------
    OutputExistsError
        If the output exists and may not be replaced.
    FileFormatError
        If it cannot be written.
    """
    image_header, dropped = storable(observation_header(exposure.header))
    primary_header, more = storable(without_provenance(observation_header(exposure.primary_header)))
    if dropped or more:
        _log.info(
            "%s: header cards that cannot be stored are left out or changed: %s.",
            path,
            ", ".join(dict.fromkeys(escaped(keyword) for keyword in [*dropped, *more])),
        )
    sky_cards = wcs_cards(image_header)
    opaque = FitsOpaqueMetadata()
    opaque.add_header(_filler(image_header.cards), name="IMAGE", ver=1)
    for name in ("MASK", "VARIANCE"):
        opaque.add_header(_filler(sky_cards), name=name, ver=1)

    def update_primary(header: astropy.io.fits.Header) -> None:
        header.extend(primary_header)
        if exposure.is_score:
            # Whoever writes it, and by whatever name: a score does not pass for a difference.
            header.set("WDSCORE", True, "is a score image")
        if exposure.decorrelated_by is not None:
            header.set("WDWHITE", exposure.decorrelated_by, "made its noise white")
        for keyword, (value, comment) in (provenance or {}).items():
            if value is None or (isinstance(value, float) and not math.isfinite(value)):
                continue  # FITS has neither; what is unknown is left out
            header.set(keyword, escaped(value) if isinstance(value, str) else value, comment)
        header.set(KEYWORD, listed([*_ARCHIVE, *(hdu.name for hdu in further)]))
        for keyword, (text, comment) in RESERVED.items():
            header.set(keyword, text, comment)

    further = _extra_hdus(exposure) + _further_hdus(exposure, extras or {}, sky_cards)
    options = {name: FitsCompressionOptions.DEFAULT if compress else None for name in _PLANES}
    image = masked_image(exposure)
    with replacing_fits(path, overwrite=overwrite) as temporary:
        _write_archive(image, temporary, options, opaque, update_primary)
        approximate = image.fits_wcs
        written = set() if approximate is None else set(approximate.to_header(relax=True))
        _replace_cards(temporary, "IMAGE", list(image_header.cards), written)
        for name in ("MASK", "VARIANCE"):
            _replace_cards(temporary, name, sky_cards, written)
        _append(temporary, further)


def _filler(cards: Iterable[astropy.io.fits.Card]) -> astropy.io.fits.Header:
    """As many lines as some cards need, long strings included, two more, and two for checksums."""
    lines = sum(len(str(card)) // 80 for card in cards) + 4
    return astropy.io.fits.Header([("COMMENT", _FILLER)] * lines)


class _PlaneArchive(FitsOutputArchive):
    """Archive that is given one pixel of an image, and the planes to write in its place.

    lsst.images would make several copies of each plane, and sort the mask's bits one by one.
    """

    def add_planes(self, image: MaskedImage) -> None:
        """Name the planes: those of the image that is to be read from the archive."""
        mask = image.mask
        self._planes: dict[str, list[Array]] = {
            "image": [image.image.array],
            "mask": [_mask_integers(mask, part) for part in mask.schema.split(np.int32)],
            "variance": [image.variance.array],
        }

    def add_array(self, array: Array, *, name: str | None = None, **options: Any) -> Any:
        """Write the plane of that name, and say that it is what was given."""
        planes = self._planes.get(name or "")
        if planes:
            array = planes.pop(0)
            if not array.flags.writeable:
                # Others are brought to the file's byte order in place, and back, by astropy.
                array = native(array, array.dtype.newbyteorder(">"))
        return super().add_array(array, name=name, **options)


def _mask_integers(mask: Mask, schema: MaskSchema) -> Array:
    """Some planes of a mask as one integer for each pixel, as a schema has them."""
    own = [(mask.schema.bit(name), schema.bit(name)) for name in schema.names]
    # Bits that keep their place within a byte move together.
    moves: dict[tuple[int, int], int] = {}
    for source, target in own:
        place = int(target.mask).bit_length() - int(source.mask).bit_length()
        move = (source.index, place)
        moves[move] = moves.get(move, 0) | int(source.mask)

    def work(rows: slice) -> Array:
        values = np.zeros(mask.array[rows].shape[:2], np.int32)
        for (index, place), bits in moves.items():
            part = (mask.array[rows, :, index] & mask.array.dtype.type(bits)).astype(np.int32)
            values |= part << place if place >= 0 else part >> -place
        return values

    # In the file's byte order, which astropy writes as it is.
    return filled(mask.array.shape[:2], np.dtype(">i4"), work)


def _write_archive(
    masked_image: MaskedImage,
    path: Path,
    options: Mapping[str, FitsCompressionOptions | None],
    opaque: FitsOpaqueMetadata,
    update_primary: Callable[[astropy.io.fits.Header], None],
) -> None:
    with _PlaneArchive.open(
        path, options, opaque_metadata=opaque, update_header=update_primary
    ) as archive:
        archive.add_planes(masked_image)
        pixel = masked_image[Box.from_shape((1, 1), start=masked_image.bbox.start)]
        archive.add_tree(archive.serialize_root(pixel, None, None))


def _replace_cards(
    path: Path, name: str, cards: list[astropy.io.fits.Card], drop: set[str]
) -> None:
    """Put cards into a header in place of the fillers, without moving a byte of data."""
    with suppress_fits_card_warnings():
        with astropy.io.fits.open(path, disable_image_compression=True, memmap=False) as hdus:
            hdu = hdus[name]
            info = hdu.fileinfo()
            given = {card.keyword for card in cards} - {"COMMENT", "HISTORY", ""}
            kept = [
                card
                for card in hdu.header.cards
                if card.value != _FILLER
                and card.keyword not in given
                and (card.keyword not in drop or card.keyword == "BUNIT")
            ]
            text = "".join(str(card) for card in kept) + "".join(str(card) for card in cards)
        start, size = info["hdrLoc"], info["datLoc"] - info["hdrLoc"]
        if len(text) + 80 > size:
            raise OSError(f"the header of {name} needs {len(text) + 80} bytes, but has {size}")
        # Blank cards, not blank bytes after END: readers stop at the block that holds END.
        block = text.ljust(size - 80) + "END".ljust(80)
        with path.open("r+b") as stream:
            stream.seek(start)
            stream.write(block.encode("ascii"))


def _extra_hdus(exposure: Exposure) -> list[Any]:
    hdus: list[Any] = []
    if exposure.psf is not None:
        hdus += psf_hdus(as_kernel_psf(exposure.psf, exposure.bbox), "PSF", exposure.bbox)
    if exposure.kernel is not None:
        hdus += kernel_hdus(exposure.kernel, "KERNEL", exposure.bbox)
    if exposure.background is not None:
        hdus.append(background_hdu(exposure.background, "BACKGROUND", exposure.bbox))
    return hdus + noise_hdus(exposure.noise, NOISE, exposure.bbox)


def _further_hdus(
    exposure: Exposure,
    extras: Mapping[str, Extra],
    sky_cards: list[astropy.io.fits.Card],
) -> list[Any]:
    hdus: list[Any] = []
    for name, extra in extras.items():
        if isinstance(extra, KernelPointSpreadFunction):
            hdus += psf_hdus(extra, name, exposure.bbox)
            continue
        if isinstance(extra, NoiseCovariance) or callable(extra):
            hdus += noise_hdus(extra, name, exposure.bbox)
            continue
        if isinstance(extra, astropy.table.Table):
            hdus.append(table_hdu(extra, name))
            continue
        hdu = astropy.io.fits.ImageHDU(extra, name=name)
        if extra.shape == exposure.shape:
            hdu.header.extend(sky_cards)
        hdus.append(hdu)
    return hdus


def _append(path: Path, extra: list[Any]) -> None:
    with astropy.io.fits.open(path, mode="append") as hdus:
        for hdu in extra:
            hdus.append(hdu)
        hdus.flush()
