"""Conversion of CCDData and NDData to exposures, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import astropy.io.fits
import astropy.units as u
import numpy as np
import numpy.typing as npt

from ... import astro
from ...errors import ArgumentError, one_line
from ...exposures import masks
from ...exposures.boxes import Box
from ...exposures.model import Exposure, Provenance, as_native_float
from ...exposures.psf import KernelPointSpreadFunction
from ...formats import plain
from ...reading import ReadingOptions
from ..headers import observation_header, pixel_origin, without_wcs

__all__ = ["from_ccddata", "to_ccddata"]

type Array = npt.NDArray[Any]
type UncertaintyKind = Literal["variance", "sigma", "weight"]

_SCORE = "WDSCORE"
"""Card that tells a score from a difference."""

_KINDS: dict[UncertaintyKind, str] = {
    "variance": "VarianceUncertainty",
    "sigma": "StdDevUncertainty",
    "weight": "InverseVariance",
}


def from_ccddata(
    data: astro.nddata.NDData,
    *,
    variance: float | None = None,
    mask_planes: Mapping[str, int] | None = None,
    source: str | None = None,
) -> Exposure:
    """Convert astropy's CCDData, or any NDData with two axes, to an exposure.

    Parameters
    ----------
    data
        Image.  These are used if present: an uncertainty that gives the size of the noise (standard
        deviation, variance or inverse variance) in a unit compatible with the data's; a mask,
        boolean or with bits; flags (`astropy.nddata.FlagCollection` or bits); ``psf``; WCS; unit;
        meta.
    variance
        Variance of each pixel, image_unit², used if there is no uncertainty; None: measured.
    mask_planes
        Name → bit of the mask or flags, besides those that the meta names (``MP_name``).
    source
        Name of the image in messages.

    Returns
    -------
    exposure
        Exposure; a boolean mask becomes the plane BAD, and pixels whose uncertainty is not a
        positive number are NO_DATA.

    Raises
    ------
    ArgumentError
        If a plane does not fit, or the kind of uncertainty is unknown.
    """
    name = source or f"The {type(data).__name__}"
    pixels = np.asarray(getattr(data, "data", None))
    if pixels.dtype.kind not in "fiub" or pixels.ndim != 2:
        raise ArgumentError(
            f"{name} must hold an image, numbers of two axes; got {pixels.dtype} of the shape"
            f" {pixels.shape}."
        )
    image = as_native_float(pixels)
    header = _header(data)
    bbox = Box.from_shape(image.shape, start=pixel_origin(header, name))
    planes = _planes(data, header, mask_planes, name)
    mask = masks.make_mask(planes, image.shape)
    values = _variance(data, image, name)
    if values is not None:
        empty = ~(np.isfinite(values) & (values > 0))
        if empty.any() and not empty.all():
            mask = masks.with_plane(mask, "NO_DATA", empty)
    elif variance is not None:
        if not (math.isfinite(variance) and variance > 0):
            raise ArgumentError.of(
                name, f"its variance must be positive and finite; got {variance:g}."
            )
        values = np.full(image.shape, variance, dtype=np.float32)
    else:
        unusable = masks.flagged(mask, masks.UNTRUSTED_MASK_PLANES)
        counted = header.copy()
        if getattr(data, "unit", None) is not None:
            counted["BUNIT"] = str(data.unit)
        values = plain.modelled_variance(
            image, unusable, counted, astropy.io.fits.Header(), ReadingOptions(), name
        )
    psf, unit = getattr(data, "psf", None), getattr(data, "unit", None)
    if psf is not None:
        psf = KernelPointSpreadFunction.from_image(np.asarray(psf, dtype=np.float64), bbox)
    kept = observation_header(header)
    return Exposure(
        image,
        values,
        mask,
        origin=bbox.start,
        unit=unit,
        psf=psf,
        header=kept,
        provenance=Provenance(source=source, is_score=header.get(_SCORE) is True),
    )


def _header(data: Any) -> astropy.io.fits.Header:
    """Header with meta and WCS."""
    meta, header = getattr(data, "meta", None) or {}, astropy.io.fits.Header()
    if isinstance(meta, astropy.io.fits.Header):
        header = meta.copy()
    else:
        for key, value in meta.items():
            try:
                header[str(key)] = value
            except (ValueError, TypeError):
                continue  # no card can hold it
    wcs = getattr(data, "wcs", None)
    low_level = getattr(wcs, "low_level_wcs", wcs)
    if low_level is not None and "CTYPE1" not in header and hasattr(low_level, "to_header"):
        header.extend(low_level.to_header(relax=True), unique=True, update=True)
    return header


def _planes(
    data: Any, header: astropy.io.fits.Header, names: Mapping[str, int] | None, name: str
) -> dict[str, Array]:
    shape = np.asarray(data.data).shape
    planes: dict[str, Array] = {}
    flags, mask = getattr(data, "flags", None), getattr(data, "mask", None)
    if isinstance(flags, Mapping):
        planes |= {str(key): np.asarray(plane).astype(bool) for key, plane in flags.items()}
    elif flags is not None:
        planes |= _bits(np.asarray(flags), header, names, shape, f"{name}: its flags")
    if mask is None or mask is np.ma.nomask:
        return planes
    mask = np.asarray(mask)
    if mask.dtype.kind in "iu" and mask.dtype.itemsize > 0 and (names or mask.max(initial=0) > 1):
        return planes | _bits(mask, header, names, shape, f"{name}: its mask")
    bad = np.broadcast_to(mask.astype(bool), shape)
    known = np.zeros(shape, bool)
    for key, plane in planes.items():
        if masks.is_one_of(key, masks.UNTRUSTED_MASK_PLANES):
            known |= plane
    if planes and not (bad & ~known).any():
        return planes
    return planes | {"BAD": planes.get("BAD", np.zeros(shape, bool)) | (bad & ~known)}


def _bits(
    array: Array,
    header: astropy.io.fits.Header,
    names: Mapping[str, int] | None,
    shape: tuple[int, ...],
    name: str,
) -> dict[str, Array]:
    if array.dtype.kind not in "iub":
        raise ArgumentError(f"{name} must be whole numbers or boolean; got {array.dtype}.")
    hdu = astropy.io.fits.ImageHDU(array.astype(np.uint8) if array.dtype == bool else array)
    for card in header.cards:
        if card.keyword.startswith("MP_"):
            hdu.header[card.keyword] = card.value
    for key, bit in (names or {}).items():
        hdu.header[f"HIERARCH MP_{key}"] = bit
    try:
        return plain.mask_planes(hdu, shape, name)
    except OSError as error:
        raise ArgumentError(str(error)) from error


def _variance(data: Any, image: Array, name: str) -> Array | None:
    uncertainty = getattr(data, "uncertainty", None)
    if uncertainty is None:
        return None
    try:
        converted = uncertainty.represent_as(astro.nddata.VarianceUncertainty)
        values = np.asarray(converted.array, dtype=np.float64)
        unit, wanted = converted.unit, getattr(data, "unit", None)
        if unit is not None and wanted is not None and unit != wanted**2:
            values = (values * unit).to_value(wanted**2)
    except Exception as error:
        # Unknown kinds and incompatible units raise different errors.
        raise ArgumentError.of(
            name,
            f"its uncertainty, a {type(uncertainty).__name__}, cannot be taken as a"
            f" variance ({one_line(error)}); give a standard deviation, a variance or an inverse"
            " variance.",
        ) from error
    if values.shape != image.shape:
        raise ArgumentError(
            f"{name} has the shape {image.shape}, but its uncertainty {values.shape}."
        )
    with np.errstate(over="ignore"):
        return plain.compact(values, image.dtype)


def to_ccddata(
    exposure: Exposure, *, uncertainty: UncertaintyKind = "variance"
) -> astro.nddata.CCDData:
    """Convert an exposure to astropy's CCDData.

    Parameters
    ----------
    exposure
        Exposure.
    uncertainty
        Kind of uncertainty that its variance is converted to.

    Returns
    -------
    data
        CCDData.  ``mask`` is set where one of `whitediff.exposures.masks.UNTRUSTED_MASK_PLANES` is
        set or a pixel is not finite; ``flags`` has all planes by name; ``psf`` is the PSF in the
        middle of the frame; the unit is ``adu`` if the image has none.  Kernel and background have
        no place in it.

    Raises
    ------
    ArgumentError
        If the kind of uncertainty is unknown.
    """
    if uncertainty not in _KINDS:
        raise ArgumentError(f"uncertainty must be {', '.join(_KINDS)}; got {uncertainty!r}.")
    image, variance = exposure.data, exposure.variance
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {
            "variance": lambda: variance.copy(),
            "sigma": lambda: np.sqrt(variance),
            "weight": lambda: 1 / variance,
        }[uncertainty]()
    flags = astro.nddata.FlagCollection(shape=image.shape)
    for plane in exposure.mask.names:
        flags[plane] = exposure.mask.get(plane)
    meta = without_wcs(exposure.header)
    if exposure.is_score:
        meta[_SCORE] = True
    if exposure.origin != (0, 0):
        for axis, start in ((1, exposure.origin[1]), (2, exposure.origin[0])):
            meta[f"CTYPE{axis}A"] = "LINEAR"
            meta[f"CRPIX{axis}A"] = 1.0
            meta[f"CRVAL{axis}A"] = float(start)
    psf = None
    if exposure.psf is not None:
        psf = exposure.psf.at(x=exposure.bbox.x.center, y=exposure.bbox.y.center)
    return astro.nddata.CCDData(
        image.copy(),
        unit=u.adu if exposure.unit is None else exposure.unit,
        uncertainty=getattr(astro.nddata, _KINDS[uncertainty])(values),
        mask=masks.flagged(exposure.mask, masks.UNTRUSTED_MASK_PLANES) | ~np.isfinite(image),
        flags=flags,
        wcs=exposure.wcs,
        meta=meta,
        psf=psf,
    )
