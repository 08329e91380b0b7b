"""Writing of exposures as plain FITS: IMAGE, MASK and VARIANCE, then PSF, kernel and the like.

The cards of the exposure's header are written verbatim, with its WCS.  A linear WCS ``A`` gives the
pixel coordinates of the first pixel, and cards name the bits of the mask.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import astropy.io.fits
import astropy.table
import numpy as np
import numpy.typing as npt

from ...exposures.masks import Mask
from ...exposures.model import Exposure
from ...exposures.psf import KernelPointSpreadFunction, as_kernel_psf
from ...numerics.covariance import NoiseCovariance
from ...numerics.planes import filled
from ..finished import RESERVED, replacing_fits
from ..headers import escaped, observation_header, storable, wcs_cards, without_provenance
from ..parts import KEYWORD, listed
from ..planes import Hdu, native
from ..stamps import NOISE, background_hdu, kernel_hdus, noise_hdus, psf_hdus
from ..tables import table_hdu, unit_text

__all__ = ["cards_as_header", "hdus_of", "origin_cards", "write"]

_log = logging.getLogger("whitediff.formats")

type Array = npt.NDArray[Any]
type Extra = (
    Array
    | KernelPointSpreadFunction
    | NoiseCovariance
    | Callable[[float, float], NoiseCovariance]
    | astropy.table.Table
)
type CardValue = str | int | float | bool | None

_COMPRESSION = "GZIP_2"


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
        Extension name → further image, PSF, noise covariance or table.  An image with the
        exposure's shape gets its WCS.

    Raises
    ------
    OutputExistsError
        If the output exists and may not be replaced.
    FileFormatError
        If the file cannot be written.
    """
    hdus, dropped = _hdus(exposure, compress=compress, provenance=provenance, extras=extras)
    if dropped:
        _log.info(
            "%s: header cards that cannot be stored are left out or changed: %s.",
            path,
            ", ".join(dict.fromkeys(escaped(keyword) for keyword in dropped)),
        )
    for hdu in hdus:
        for keyword, (text, comment) in RESERVED.items():
            hdu.header.set(keyword, text, comment)
    with replacing_fits(path, overwrite=overwrite) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Card is too long, comment will be truncated")
        astropy.io.fits.HDUList(hdus).writeto(temporary, output_verify="silentfix")


def hdus_of(exposure: Exposure) -> astropy.io.fits.HDUList:
    """HDUs of an exposure, as a file has them.

    Parameters
    ----------
    exposure
        Exposure.

    Returns
    -------
    hdus
        Planes, PSF, kernel and background, as docs/file-format.md describes them; without the
        checksums that a file has.  The pixels are copied.
    """
    hdus, _ = _hdus(exposure.copy(), compress=False, provenance=None, extras=None)
    return astropy.io.fits.HDUList(hdus)


def _hdus(
    exposure: Exposure,
    *,
    compress: bool,
    provenance: Mapping[str, tuple[CardValue, str]] | None,
    extras: Mapping[str, Extra] | None,
) -> tuple[list[Any], list[str]]:
    """HDUs of a file, and the keywords of header cards that cannot be stored."""
    image_header, dropped = storable(observation_header(exposure.header))
    primary_header, more = storable(without_provenance(observation_header(exposure.primary_header)))
    if exposure.unit is not None:
        image_header["BUNIT"] = unit_text(exposure.unit)
    sky_cards = wcs_cards(image_header)
    planes = [
        _plane("IMAGE", exposure.data, compress=compress),
        _plane("MASK", _signed(exposure.mask.bits), compress=compress),
        _plane("VARIANCE", exposure.variance, compress=compress),
    ]
    for hdu, cards in zip(
        planes,
        (image_header.cards, [*_mask_cards(exposure.mask), *sky_cards], sky_cards),
        strict=True,
    ):
        hdu.header.extend([*origin_cards(exposure), *cards])
    further = _extra_hdus(exposure) + _further_hdus(exposure, extras or {}, sky_cards)
    primary = astropy.io.fits.PrimaryHDU()
    primary.header.extend(primary_header)
    _add_provenance(primary.header, exposure, provenance or {})
    now = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
    primary.header.set("DATE", now, "when the file was written")
    primary.header[KEYWORD] = listed(hdu.name for hdu in [*planes, *further])
    hdus = [primary, *planes, *further]
    return hdus, [*dropped, *more]


def _plane(name: str, plane: Array, *, compress: bool) -> Hdu:
    if not plane.flags.writeable:
        # astropy swaps the bytes of writeable arrays in place, and back; others need a copy.
        plane = native(plane, plane.dtype.newbyteorder(">"))
    if not compress:
        return astropy.io.fits.ImageHDU(plane, name=name)
    # Without quantize_level, floating-point pixels would be rounded.
    return astropy.io.fits.CompImageHDU(
        plane, name=name, compression_type=_COMPRESSION, quantize_level=0.0
    )


def _signed(bits: Array) -> Array:
    """Bits as integers that FITS stores without BZERO, in the file's byte order."""
    size = {1: 1, 2: 4, 4: 8, 8: 8}[bits.dtype.itemsize]
    dtype = np.dtype(np.uint8 if size == 1 else f">i{size}")
    return filled(bits.shape, dtype, lambda rows: bits[rows].astype(dtype))


def _mask_cards(mask: Mask) -> list[astropy.io.fits.Card]:
    """Cards that name the bits of a mask."""
    cards = []
    for number, name in enumerate(mask.names):
        cards += [
            astropy.io.fits.Card(f"MSKN{number:04d}", name, f"name of mask plane {number}"),
            astropy.io.fits.Card(f"MSKM{number:04d}", 1 << number, "its bit, always 1<<n"),
            astropy.io.fits.Card(f"MSKD{number:04d}", escaped(mask.description(name))),
        ]
    return cards


def origin_cards(exposure: Exposure) -> list[tuple[str, str | float]]:
    """Cards of the linear WCS ``A`` for the pixel coordinates.

    Parameters
    ----------
    exposure
        Exposure.

    Returns
    -------
    cards
        Keyword and value of each card.
    """
    y0, x0 = exposure.origin
    cards: list[tuple[str, str | float]] = []
    for axis, first in ((1, x0), (2, y0)):
        cards += [
            (f"CTYPE{axis}A", "LINEAR"),
            (f"CRPIX{axis}A", 1.0),
            (f"CRVAL{axis}A", float(first)),
            (f"CUNIT{axis}A", "PIXEL"),
        ]
    return cards


def _add_provenance(
    header: astropy.io.fits.Header,
    exposure: Exposure,
    provenance: Mapping[str, tuple[CardValue, str]],
) -> None:
    if exposure.is_score:
        # Set whoever writes the file, so that a score never passes for a difference.
        header.set("WDSCORE", True, "is a score image")
    if exposure.decorrelated_by is not None:
        header.set("WDWHITE", exposure.decorrelated_by, "made its noise white")
    _set_cards(header, provenance)


def cards_as_header(provenance: Mapping[str, tuple[CardValue, str]]) -> astropy.io.fits.Header:
    """Header with cards in the form that `write` stores.

    Parameters
    ----------
    provenance
        As in `write`.

    Returns
    -------
    header
        Header; its texts are encoded as in a file.
    """
    header = astropy.io.fits.Header()
    _set_cards(header, provenance)
    return header


def _set_cards(
    header: astropy.io.fits.Header, provenance: Mapping[str, tuple[CardValue, str]]
) -> None:
    with warnings.catch_warnings():
        # There is no room for a comment behind a long value.
        warnings.filterwarnings("ignore", "Card is too long, comment will be truncated")
        for keyword, (value, comment) in provenance.items():
            if value is None or (isinstance(value, float) and not math.isfinite(value)):
                continue  # FITS has no card for None or NaN
            card = (keyword, escaped(value) if isinstance(value, str) else value, comment)
            header.set(*card)


def _extra_hdus(exposure: Exposure) -> list[Hdu]:
    hdus: list[Hdu] = []
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
    sky_cards: Iterable[astropy.io.fits.Card],
) -> list[Hdu]:
    hdus: list[Hdu] = []
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
