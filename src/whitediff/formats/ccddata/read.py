"""Reading of exposures from CCDData files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import FileFormatError
from ...exposures import masks
from ...exposures.model import Exposure
from ...formats import plain
from ...reading import ReadingOptions, VarianceSource
from ..files import Extension, opened
from ..planes import plane_of
from ..stamps import find_hdu, read_psf_hdus
from .recognise import FLAGS, MASK, PSF, UNCERTAINTY

__all__ = ["read"]

_KINDS: dict[str, Any] = {
    "std": "sigma",
    "stddevuncertainty": "sigma",
    "var": "variance",
    "varianceuncertainty": "variance",
    "ivar": "weight",
    "inversevariance": "weight",
}


def read(path: Path, extension: Extension = None, **options: Any) -> Exposure:
    """Read an exposure.

    Parameters
    ----------
    path
        File.
    extension
        Extension of the image; None: it is searched for.
    **options
        Options of `whitediff.formats.plain.read`.

    Returns
    -------
    exposure
        Exposure.  Its variance is from UNCERT, in the kind that UTYPE names (standard deviation,
        variance, inverse variance); pixels of the mask are BAD, or have the planes of FLAGS; the
        PSF is from PSFIMAGE.

    Raises
    ------
    FileFormatError
        If a plane does not fit, or the kind of uncertainty is unknown.
    """
    with opened(path) as hdus:
        uncertainty = find_hdu(hdus, (UNCERTAINTY,))
        kind = None
        if uncertainty is not None:
            # astropy's default if the card is missing.
            said = uncertainty.header.get("UTYPE", "StdDevUncertainty")
            kind = _KINDS.get(str(said).strip().lower())
            if kind is None:
                raise FileFormatError.of(
                    path,
                    f"UTYPE is {said!r}; of uncertainties, StdDevUncertainty,"
                    " VarianceUncertainty and InverseVariance say how large the noise is.",
                )
        mask, flags = find_hdu(hdus, (MASK,)), find_hdu(hdus, (FLAGS,))
        boolean = mask is not None and mask.is_image and bool(np.isin(mask.data, (0, 1)).all())
        image_hdu = plain.image_hdu(hdus, extension, path)
        planes = None
        if flags is not None and flags.is_image:
            planes = plain.mask_planes(flags, plane_of(image_hdu, path).shape, path)
        has_psf = find_hdu(hdus, (PSF,)) is not None
    given: ReadingOptions = options.pop("options", None) or ReadingOptions()
    if kind is not None and given.variance is None:
        own = VarianceSource(f"{path}[{UNCERTAINTY}]", kind)
        given = dataclasses.replace(given, variance=own)
    exposure = plain.read(path, extension, options=given, **options)
    exposure.source = str(path)
    if planes is not None:
        exposure = _with_flags(exposure, planes, mask is not None)
    elif boolean:
        exposure = exposure.replaced(mask=_without(exposure.mask, "BIT0"))
    if exposure.psf is None and has_psf:
        with opened(path) as hdus:
            exposure.psf = read_psf_hdus(
                hdus, find_hdu(hdus, (PSF,)), bounds=exposure.bbox, path=str(path)
            )
    return exposure


def _with_flags(exposure: Exposure, planes: dict[str, Any], has_mask: bool) -> Exposure:
    """Exposure with the planes of the flags, and BAD where only the mask is set."""
    before = exposure.mask
    bad = masks.flagged(before, ["BAD"]) if has_mask else np.zeros(exposure.shape, bool)
    bad &= np.isfinite(exposure.data)
    mask = masks.make_mask(planes, exposure.shape)
    bad &= ~masks.flagged(mask, masks.UNTRUSTED_MASK_PLANES)
    if bad.any():
        mask = masks.with_plane(mask, "BAD", bad)
    no_data = masks.flagged(before, ["NO_DATA"])
    if no_data.any():
        mask = masks.with_plane(mask, "NO_DATA", no_data)
    return exposure.replaced(mask=mask)


def _without(mask: masks.Mask, name: str) -> masks.Mask:
    if name not in mask.names:
        return mask
    planes = {other: mask.get(other) for other in mask.names if other != name}
    return masks.make_mask(planes, mask.shape)
