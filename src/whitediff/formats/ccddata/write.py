"""Writing of exposures to files that ``CCDData.read`` understands."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import astropy.io.fits
import numpy as np

from ...errors import ArgumentError
from ...exposures.model import Exposure
from ...exposures.psf import as_kernel_psf
from ..finished import replacing_fits
from ..headers import escaped, storable, without_provenance
from ..stamps import background_hdu, kernel_hdus, psf_hdus
from .convert import UncertaintyKind, to_ccddata
from .recognise import FLAGS

if TYPE_CHECKING:
    from ..own.write import CardValue

__all__ = ["write"]


def write(
    exposure: Exposure,
    path: Path,
    *,
    uncertainty: UncertaintyKind = "variance",
    overwrite: bool = False,
    provenance: Mapping[str, tuple[CardValue, str]] | None = None,
) -> None:
    """Write an exposure in the layout of CCDData; the file appears complete or not at all.

    Parameters
    ----------
    exposure
        Exposure.
    path
        Output.
    uncertainty
        Kind of uncertainty to write.
    overwrite
        Whether an existing file may be replaced.
    provenance
        Keyword → (value, comment) for the header.

    Raises
    ------
    OutputExistsError
        If the output exists and may not be replaced.
    FileFormatError
        If the file cannot be written.
    ArgumentError
        If the mask has more than 62 planes, or the kind of uncertainty is unknown.

    Notes
    -----
    Besides astropy's MASK, UNCERT and PSFIMAGE, the file has the planes of the mask as bits of
    FLAGS, with cards MP_name (``CCDData.read(path, hdu_flags="FLAGS")``), and PSF, KERNEL and
    BACKGROUND as in whitediff's own files.
    """
    data = to_ccddata(exposure, uncertainty=uncertainty)
    names = exposure.mask.names
    if len(names) > 62:
        raise ArgumentError.of(path, f"{len(names)} mask planes have no room in 62 bits.")
    header, _ = storable(without_provenance(data.meta))
    data.meta = header
    with warnings.catch_warnings():
        # A warning for each keyword of more than eight characters, which becomes a HIERARCH card.
        warnings.simplefilter("ignore", astropy.io.fits.verify.VerifyWarning)
        hdus = data.to_hdu()
    bits = np.zeros(exposure.shape, np.int64 if len(names) > 31 else np.int32)
    flags = astropy.io.fits.ImageHDU(name=FLAGS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", astropy.io.fits.verify.VerifyWarning)
        for bit, name in enumerate(names):
            bits |= exposure.mask.get(name).astype(bits.dtype) << bit
            flags.header[f"MP_{name}"] = bit
    flags.data = bits
    hdus.append(flags)
    if exposure.psf is not None:
        hdus.extend(psf_hdus(as_kernel_psf(exposure.psf, exposure.bbox), "PSF", exposure.bbox))
    if exposure.kernel is not None:
        hdus.extend(kernel_hdus(exposure.kernel, "KERNEL", exposure.bbox))
    if exposure.background is not None:
        hdus.append(background_hdu(exposure.background, "BACKGROUND", exposure.bbox))
    for keyword, (value, comment) in (provenance or {}).items():
        if value is not None:
            text = escaped(value) if isinstance(value, str) else value
            # There is no room for a comment behind a long text.
            hdus[0].header[keyword] = (text, comment) if len(str(text)) < 20 else text
    with replacing_fits(path, overwrite=overwrite) as temporary:
        hdus.writeto(temporary)
