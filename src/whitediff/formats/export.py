"""Kernels and PSFs as plain images, for tools that read nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import astropy.io.fits
import numpy as np

from ..errors import FileFormatError
from ..exposures.boxes import Box
from ..exposures.kernels import ConvolutionKernel
from ..exposures.psf import KernelPointSpreadFunction, PointSpreadFunction, as_kernel_psf
from . import read_exposure, read_kernel, read_psf
from .files import opened, split_extension
from .finished import replacing_fits
from .headers import escaped
from .registry import format_of, identify
from .stamps import kernel_hdus, psf_hdus

__all__ = ["own_box", "read_stamps", "write_stamps"]


def read_stamps(
    path: str, *, psf: bool, like: str | None = None
) -> tuple[ConvolutionKernel | PointSpreadFunction, Box]:
    """Read a kernel or PSF from a file of any format.

    Parameters
    ----------
    path
        File.
    psf
        Whether to read the PSF instead of the kernel.
    like
        Image that the kernel or PSF belongs to, if the file does not give its shape.

    Returns
    -------
    stamps
        Kernel or PSF.
    box
        Box of the image that it belongs to.

    Raises
    ------
    FileFormatError
        If the file has no kernel or PSF, or does not say which image it is for.
    """
    file, extension = split_extension(path)
    name = "PSF" if psf else "kernel"
    with opened(file) as hdus:
        identity = identify(hdus)
    if like is not None:
        box = read_exposure(like, needs_variance=False).bbox
        return (read_psf if psf else read_kernel)(path, bounds=box), box
    if identity is not None and not psf:
        kernel_and_box = format_of(identity).kernel_and_box(file, identity)
        if kernel_and_box is not None:
            return kernel_and_box
    if extension is None and identity is not None and identity.kind in ("image", "difference"):
        exposure = read_exposure(path, needs_variance=False)
        found = exposure.psf if psf else exposure.kernel
        if found is not None:
            return found, exposure.bbox
        if exposure.mask.names or np.isfinite(exposure.variance).any():
            raise FileFormatError.of(path, f"holds an image with mask or variance, but no {name}.")
    own = own_box(file)
    try:
        stamps = (read_psf if psf else read_kernel)(path, bounds=own or _LARGE)
    except FileFormatError as error:
        raise FileFormatError(f"{error} Does it have a {name}?") from error
    if own is None and not _says_where(stamps):
        raise FileFormatError.of(
            path, f"does not say for which image its {name} is; name that with --like."
        )
    return stamps, stamps.bounds


_LARGE = Box.from_shape((1 << 20, 1 << 20))


def _says_where(stamps: ConvolutionKernel | PointSpreadFunction) -> bool:
    kernel = stamps.kernel if isinstance(stamps, KernelPointSpreadFunction) else stamps
    constant = isinstance(kernel, ConvolutionKernel) and kernel.is_constant
    return constant or stamps.bounds != _LARGE


def own_box(file: Path) -> Box | None:
    """Box that a PSF model was fitted in.

    Parameters
    ----------
    file
        File.

    Returns
    -------
    box
        Box; None for all other files, and for models that do not give it.
    """
    with opened(file) as hdus:
        identity = identify(hdus)
        limits = None if identity is None else format_of(identity).fitted_range(hdus)
    if limits is None:
        return None
    (x0, x1), (y0, y1) = limits
    return Box.between((round(y0), round(y1) + 1), (round(x0), round(x1) + 1))


def write_stamps(
    stamps: ConvolutionKernel | PointSpreadFunction,
    box: Box,
    positions: Sequence[tuple[float, float]] | None,
    path: Path,
    *,
    overwrite: bool = False,
    source: str = "",
) -> None:
    """Write a kernel or PSF as plain images; the file appears complete or not at all.

    Parameters
    ----------
    stamps
        Kernel or PSF.
    box
        Box of the image that it belongs to.
    positions
        Positions (x, y) in pixel coordinates.  A single image is written to the primary HDU,
        several to extensions.  None: basis images and their coefficients (docs/file-format.md).
    path
        Output.
    overwrite
        Whether an existing file may be replaced.
    source
        File that the kernel or PSF came from, for the header.

    Raises
    ------
    OutputExistsError, FileFormatError
        If the file cannot be written.
    """
    is_psf = isinstance(stamps, PointSpreadFunction)
    name = "PSF" if is_psf else "KERNEL"
    primary = astropy.io.fits.PrimaryHDU()
    if positions is None:
        hdus = (
            psf_hdus(as_kernel_psf(stamps, box), name, box)
            if isinstance(stamps, PointSpreadFunction)
            else kernel_hdus(stamps, name, box)
        )
    else:
        hdus = []
        for i, (x, y) in enumerate(positions):
            if isinstance(stamps, PointSpreadFunction):
                image = stamps.at(x=x, y=y)
            else:
                image = stamps.at(x=x, y=y)
            cards = {
                "XPOS": (x, "column where it was taken, from 0"),
                "YPOS": (y, "row where it was taken, from 0"),
                "XCENTER": (image.shape[1] // 2, "0-based column of the origin"),
                "YCENTER": (image.shape[0] // 2, "0-based row of the origin"),
            }
            if len(positions) == 1:
                hdu = primary = astropy.io.fits.PrimaryHDU(image)
            else:
                hdu = astropy.io.fits.ImageHDU(image, name=name, ver=i + 1)
                hdus.append(hdu)
            for card, value in cards.items():
                hdu.header[card] = value
    if source:
        # There is no room for a comment behind a long name.
        primary.header["WDKERN"] = escaped(source)
    with replacing_fits(path, overwrite=overwrite) as temporary:
        astropy.io.fits.HDUList([primary, *hdus]).writeto(temporary)
