"""Inputs of a run, from files or from memory."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from typing import Any

import astropy.io.fits
import numpy as np

from .. import formats
from ..decorrelation.exposures import variance_mean
from ..errors import ArgumentError, DataError
from ..exposures import foreign, masks, psf_models
from ..exposures.boxes import Box
from ..exposures.kernels import BasisKernel, ConvolutionKernel
from ..exposures.model import Exposure
from ..exposures.psf import KernelPointSpreadFunction, PointSpreadFunction
from ..formats.ccddata import from_ccddata
from ..formats.files import lent
from ..formats.own.write import origin_cards
from ..formats.plain import with_options
from ..formats.tables import unit_text
from ..noise.exposures import without_sentinels
from ..paths import split_name
from ..reading import ReadingOptions, VarianceSource

__all__ = [
    "Kept",
    "check_usable",
    "name_of",
    "path_of",
    "read_image",
    "read_input",
    "read_kernel",
    "read_psf",
]

log = logging.getLogger("whitediff.runs")


@dataclasses.dataclass(frozen=True)
class Kept:
    """An image in memory as it was when it was given, whatever becomes of it.

    Attributes
    ----------
    given
        Object that was given.
    copied
        Copy of it, pixels and all.
    """

    given: object
    copied: object

    @classmethod
    def of(cls, given: object) -> object:
        """Keep an image.

        Parameters
        ----------
        given
            Anything that `read_image` takes.

        Returns
        -------
        kept
            `Kept`; files are what they are.
        """
        if isinstance(given, str | os.PathLike | Kept):
            return given
        if isinstance(given, astropy.io.fits.HDUList):
            return cls(given, astropy.io.fits.HDUList([hdu.copy() for hdu in given]))
        if isinstance(given, Exposure | np.ndarray):
            return cls(given, given.copy())
        try:
            return cls(given, copy.deepcopy(given))
        except (TypeError, ValueError):
            # Others do not let themselves be copied, and do not change either.
            return cls(given, given)


def path_of(given: object) -> str | None:
    """Name of the file that was given.

    Parameters
    ----------
    given
        File, or something in memory.

    Returns
    -------
    path
        Name of the file; for an object in memory, the file that it was read from, else None.
    """
    if isinstance(given, Kept):
        return path_of(given.given)
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    if isinstance(given, astropy.io.fits.HDUList):
        return given.filename()
    source = getattr(given, "source", None)
    # The source of an object made in memory is a name that belongs to no file.
    is_file = isinstance(source, str) and os.path.exists(split_name(source)[0])
    return source if is_file else None


def name_of(given: object, role: str) -> str:
    """Name of an input in messages.

    Parameters
    ----------
    given
        File, or something in memory.
    role
        Role of the input in the run, such as ``science image``.

    Returns
    -------
    name
        Name of the file, else of the object's source, else the role.
    """
    if isinstance(given, Kept):
        given = given.given
    source = getattr(given, "source", None)
    return path_of(given) or (source if isinstance(source, str) else f"the {role}")


def read_image(
    given: object, role: str, options: ReadingOptions | None = None, *, needs_variance: bool = False
) -> Exposure:
    """Read an image from a file or from memory.

    Parameters
    ----------
    given
        File; `whitediff.Exposure`; CCDData or NDData; HDUList; object of lsst.images; or an array
        ``(ny, nx)``, which may be masked.
    role
        Role of the image in the run, for messages.
    options
        How it is read.
    needs_variance
        Whether to measure the variance of an image without a variance plane; else the plane is
        NaN.

    Returns
    -------
    exposure
        `whitediff.Exposure`, which shares the planes of one that was given.

    Raises
    ------
    ArgumentError
        If given is none of these types.
    """
    if isinstance(given, Kept):
        return read_image(given.copied, role, options, needs_variance=needs_variance)
    options = options or ReadingOptions()
    if isinstance(given, str | os.PathLike):
        path = str(os.fspath(given))
        return formats.read_exposure(path, options=options, needs_variance=needs_variance)
    name = name_of(given, role)
    psf, is_score = None, False
    if isinstance(given, np.ndarray) and given.dtype != object:
        given = _hdus(given, name)
    elif not isinstance(given, Exposure) and all(
        hasattr(given, each) for each in ("data", "uncertainty", "mask")
    ):
        given, psf, is_score = _hdus_of_nddata(given, name)
    if isinstance(given, astropy.io.fits.HDUList):
        if not len(given):
            raise ArgumentError.of(name, "is an HDUList without any HDU; give one with an image.")
        with lent(name, given):
            exposure = formats.read_exposure(name, options=options, needs_variance=needs_variance)
        exposure.psf = exposure.psf or psf
        exposure.is_score = exposure.is_score or is_score
        return exposure
    if isinstance(options.variance, VarianceSource):
        raise ArgumentError.of(
            name, f"has its own variance in memory; give it there, not as {options.variance}."
        )
    if isinstance(given, Exposure):
        exposure = given
    elif all(hasattr(given, each) for each in ("image", "variance", "mask")):
        exposure = Exposure.from_object(given)
    else:
        raise ArgumentError.of(
            name,
            f"is {type(given).__name__}, and no image; give a file, an array of numbers,"
            " CCDData, HDUList or whitediff.Exposure.",
        )
    # What is set on it below, such as another PSF, is not set on the caller's.
    exposure = exposure.replaced()
    exposure.source = exposure.source or name
    return with_options(exposure, options, name)


def _hdus(array: np.ndarray[Any, Any], name: str) -> astropy.io.fits.HDUList:
    """Array as the HDUs of a file; a mask becomes the extension MASK."""
    if array.ndim != 2 or array.dtype.kind not in "iuf" or not array.size:
        raise ArgumentError.of(
            name,
            f"must be an image, numbers of two axes; got {array.dtype} of the shape {array.shape}.",
        )
    pixels = np.asarray(array.data if np.ma.isMaskedArray(array) else array)
    # FITS has no such types.
    if pixels.dtype == np.int8:
        pixels = pixels.astype(np.int16)
    elif pixels.dtype.kind == "f" and pixels.dtype.itemsize not in (4, 8):
        pixels = pixels.astype(np.float32 if pixels.dtype.itemsize < 4 else np.float64)
    # A quantity of astropy has a unit.
    unit = getattr(array, "unit", None)
    hdus = [astropy.io.fits.PrimaryHDU(np.asarray(pixels))]
    if unit is not None:
        hdus[0].header["BUNIT"] = unit_text(unit)
    if np.ma.isMaskedArray(array):
        bits = np.ma.getmaskarray(array).astype(np.uint8)
        hdus.append(astropy.io.fits.ImageHDU(bits, name="MASK"))
    return astropy.io.fits.HDUList(hdus)


def _hdus_of_nddata(
    given: Any, name: str
) -> tuple[astropy.io.fits.HDUList, PointSpreadFunction | None, bool]:
    """CCDData or NDData as the HDUs of a file, its PSF, and whether it is a score."""
    has_noise = given.uncertainty is not None
    # Without an uncertainty no VARIANCE is written, so the noise is measured as for a file.
    exposure = from_ccddata(given, variance=None if has_noise else 1.0, source=name)
    header = exposure.header.copy()
    if exposure.unit is not None:
        header["BUNIT"] = unit_text(exposure.unit)
    hdus = [astropy.io.fits.PrimaryHDU(exposure.data, header)]
    hdus[0].header.extend(origin_cards(exposure))
    if exposure.mask.names:
        hdu = astropy.io.fits.ImageHDU(exposure.mask.bits, name="MASK")
        for number, plane in enumerate(exposure.mask.names):
            hdu.header[f"HIERARCH MP_{plane}"] = number
        hdus.append(hdu)
    if has_noise:
        hdus.append(astropy.io.fits.ImageHDU(exposure.variance, name="VARIANCE"))
    return astropy.io.fits.HDUList(hdus), exposure.psf, exposure.is_score


def read_input(given: object, options: ReadingOptions, role: str = "image") -> Exposure:
    """Read a science image or template, with its variance: given, from the file or measured.

    Parameters
    ----------
    given, role, options
        As for `read_image`.

    Returns
    -------
    exposure
        `whitediff.Exposure` with at least one usable pixel.
    """
    exposure = without_sentinels(read_image(given, role, options, needs_variance=True))
    check_usable(exposure, masks.UNTRUSTED_MASK_PLANES)
    variance = options.variance
    if isinstance(variance, float | int) and not variance_mean(exposure, ()) > 0:
        exposure = exposure.replaced(variance=np.full(exposure.shape, variance, dtype=np.float32))
        log.info(
            "%s: its variance plane is unusable; %g is used everywhere.", exposure.source, variance
        )
    return exposure


def read_psf(given: object, bounds: Box, role: str = "PSF") -> PointSpreadFunction:
    """Read a PSF from a file or from memory.

    Parameters
    ----------
    given
        File; PSF of whitediff or lsst.images; model of photutils (GriddedPSFModel, ImagePSF, …);
        function of x and y that returns images; or an image ``(ky, kx)`` of it.
    bounds
        Box of the exposure that has the PSF.
    role
        Role of the PSF in the run, for messages.

    Returns
    -------
    psf
        `whitediff.exposures.psf.PointSpreadFunction`.

    Raises
    ------
    ArgumentError
        If given is none of these types.
    """
    if isinstance(given, str | os.PathLike):
        return formats.read_psf(str(os.fspath(given)), bounds=bounds)
    adapted = foreign.adapted(given)
    if isinstance(adapted, PointSpreadFunction):
        return adapted
    if isinstance(adapted, BasisKernel):
        return KernelPointSpreadFunction(adapted)
    if isinstance(given, np.ndarray):
        name = f"the {role}"
        with lent(name, _hdus(given, name)):
            return formats.read_psf(name, bounds=bounds)
    if psf_models.is_model(given):
        return psf_models.from_model(given, bounds)
    if callable(given):
        return psf_models.from_function(given, bounds)
    raise ArgumentError(
        f"the {role}: is {type(given).__name__}, and no PSF; give a file, or an image of it."
    )


def read_kernel(given: object, bounds: Box) -> ConvolutionKernel:
    """Read a matching kernel from a file or from memory.

    Parameters
    ----------
    given
        File, kernel of whitediff or lsst.images, or an image ``(ky, kx)`` of it.
    bounds
        Box of the exposures.

    Returns
    -------
    kernel
        `whitediff.exposures.kernels.ConvolutionKernel`.

    Raises
    ------
    ArgumentError
        If given is none of these types.
    """
    if isinstance(given, str | os.PathLike):
        return formats.read_kernel(str(os.fspath(given)), bounds=bounds)
    adapted = foreign.adapted(given)
    if isinstance(adapted, ConvolutionKernel):
        return adapted
    if isinstance(given, np.ndarray):
        name = "the kernel"
        with lent(name, _hdus(given, name)):
            return formats.read_kernel(name, bounds=bounds)
    raise ArgumentError(
        f"the kernel: is {type(given).__name__}, and no kernel; give a file, or an image of it."
    )


def check_usable(exposure: Exposure, planes: tuple[str, ...]) -> None:
    """Refuse an exposure without any usable pixel.

    Parameters
    ----------
    exposure
        Exposure to check.
    planes
        Mask planes whose pixels are unusable.

    Raises
    ------
    DataError
        If no pixel is finite, or every finite pixel is masked.
    """
    finite = np.isfinite(exposure.data)
    if not finite.any():
        raise DataError.of(
            exposure.source, f"no finite pixel: all {finite.size} are NaN or infinite."
        )
    if not (finite & ~masks.flagged(exposure.mask, planes)).any():
        raise DataError.of(
            exposure.source,
            f"no usable pixel: all {finite.size} are masked"
            f" ({', '.join(planes)}) or not finite; is its mask right?",
        )
