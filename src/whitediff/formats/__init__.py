"""Files: what they are, reading and writing them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lsst.images import Box, MaskedImage
from lsst.images.convolution_kernels import ConvolutionKernel
from lsst.images.psfs import PointSpreadFunction

from ..decorrelation import checked_kernel
from ..errors import ArgumentError, FileFormatError
from ..exposures import kernels
from ..exposures.model import Exposure
from ..exposures.psf import KernelPointSpreadFunction
from . import archive, plain
from .archive.read import read_object
from .files import opened, split_extension
from .plain.read import VarianceSource
from .solution import read_solution, solution_cards, solution_extras, write_solution
from .stamps import find_hdu, read_kernel_hdus

__all__ = [
    "VarianceSource",
    "check_kernel",
    "read_exposure",
    "read_kernel",
    "read_psf",
    "read_solution",
    "solution_cards",
    "solution_extras",
    "write_exposure",
    "write_solution",
]

_LARGEST_PSF = 0.25
_LEAST_INSIDE = 0.4
_MOST_NEGATIVE = 0.25
_SMALLEST_PROFILE = 5


def read_exposure(
    path: str | Path,
    *,
    variance: VarianceSource | float | None = None,
    gain: float | None = None,
    read_noise: float | None = None,
    needs_variance: bool = True,
    box: Box | None = None,
) -> Exposure:
    """Read an exposure: a plain FITS file, or an lsst.images archive.

    Parameters
    ----------
    path
        File; ``file.fits[SCI]`` names the extension of a plain file's image.
    variance
        For files without a variance plane: a file that holds it, or its value.
    gain, read_noise
        Electrons per count, and electrons, where there is no variance plane.
    needs_variance
        If False, a plain file without a variance plane gets NaN for it.
    box
        Pixels to read, in pixel coordinates; None for all.

    Returns
    -------
    exposure
        Planes, PSF, kernel, WCS and header, as far as the file has them.

    Raises
    ------
    FileFormatError
        If the file cannot be understood.
    DataError
        If its noise has to be measured and cannot be.
    """
    file, extension = split_extension(path)
    with opened(file) as hdus:
        schema = archive.recognise(hdus)
        is_masked = schema is not None and "VARIANCE" in hdus and "MASK" in hdus
        if schema is None and not plain.recognise(hdus):
            raise FileFormatError(f"{file}: has no HDU with an image.")
    if is_masked and extension is None and not isinstance(variance, VarianceSource):
        return archive.read(file, box=box)
    exposure = plain.read(
        file,
        extension,
        variance=variance,
        gain=gain,
        read_noise=read_noise,
        needs_variance=needs_variance,
    )
    return exposure if box is None else exposure.cutout(box)


def read_kernel(path: str | Path, *, bounds: Box) -> ConvolutionKernel:
    """Read a matching kernel.

    Parameters
    ----------
    path
        File: the KERNEL of a difference that whitediff wrote; an image; a cube of basis
        images with coefficients; or an lsst.images archive of a kernel.
    bounds
        Box of the exposures.

    Returns
    -------
    kernel
        Finite, with a sum other than zero at the middle of the box, no larger than it.

    Raises
    ------
    FileFormatError
        If it is none of these, or not such a kernel.
    """
    kernel = _read_stamp(path, "KERNEL", bounds)
    if isinstance(kernel, PointSpreadFunction):
        raise FileFormatError(f"{path}: holds a PSF, not a matching kernel.")
    check_kernel(kernel, bounds, path)
    return kernel


def check_kernel(kernel: ConvolutionKernel, bounds: Box, path: str | Path) -> None:
    """Make sure that a kernel from a file can be worked with.

    Parameters
    ----------
    kernel
        Kernel.
    bounds
        Box of the exposures.
    path
        File it came from, for error messages.

    Raises
    ------
    FileFormatError
        If, at the middle of the box, it is not finite, sums to zero, or is larger than
        the box.
    """
    image = kernels.evaluate(kernel, x=bounds.x.center, y=bounds.y.center)
    try:
        checked_kernel("kernel", image)
    except ArgumentError as error:
        raise FileFormatError(f"{path}: {error}") from error
    _check_size(path, "kernel", image, bounds)


def _check_size(path: str | Path, name: str, image: Any, bounds: Box) -> None:
    if image.shape[0] > bounds.y.size or image.shape[1] > bounds.x.size:
        raise FileFormatError(
            f"{path}: the {name} {image.shape} is larger than the image"
            f" {(bounds.y.size, bounds.x.size)}; is it the right file?"
        )


def read_psf(path: str | Path, *, bounds: Box) -> PointSpreadFunction:
    """Read a PSF.

    Parameters
    ----------
    path
        File: an image of the PSF; a cube of basis images with coefficients; or an
        lsst.images archive of a PSF or of something that has one.
    bounds
        Box of the exposure.

    Returns
    -------
    psf
        PSF.

    Raises
    ------
    FileFormatError
        If it is none of these, not finite, of no positive sum, no star in its middle, or larger
        than a quarter of the box.
    """
    psf = _read_stamp(path, "PSF", bounds)
    if isinstance(psf, PointSpreadFunction):
        return psf
    image = kernels.evaluate(psf, x=bounds.x.center, y=bounds.y.center)
    total = float(image.sum())
    if not (np.isfinite(image).all() and total > 0):
        raise FileFormatError(
            f"{path}: a PSF must be finite with a positive sum; its sum is {total:g}."
        )
    _check_size(path, "PSF", image, bounds)
    _check_profile(path, image, bounds)
    return KernelPointSpreadFunction(psf)  # type: ignore[arg-type]


def _check_profile(path: str | Path, image: Any, bounds: Box) -> None:
    """Refuse images that are no star: a template, for one, is finite with a positive sum too."""
    ny, nx = image.shape
    wanted = "a PSF is a star in the middle of a small image, without a background"
    if ny * nx > _LARGEST_PSF * bounds.area:
        raise FileFormatError(
            f"{path}: has {ny} x {nx} pixels, more than a quarter of the image's {bounds.y.size} x"
            f" {bounds.x.size}; {wanted}. Is it the right file?"
        )
    y, x = (int(n) for n in np.unravel_index(np.argmax(image), image.shape))
    if max(abs(y - ny // 2) / ny, abs(x - nx // 2) / nx) > 0.25:
        raise FileFormatError(
            f"{path}: its peak is at (y, x) = ({y}, {x}) of {ny} x {nx} pixels; {wanted}."
        )
    # Half of each side: of a background it holds a quarter.
    inner = image[ny // 4 : ny - ny // 4, nx // 4 : nx - nx // 4]
    inside = float(inner.sum() / image.sum())
    negative = float(-image[image < 0].sum() / np.abs(image).sum())
    if min(ny, nx) >= _SMALLEST_PROFILE and inside < _LEAST_INSIDE:
        raise FileFormatError(
            f"{path}: only {100 * inside:.0f}% of its sum is in the inner half of its sides;"
            f" {wanted}."
        )
    if negative > _MOST_NEGATIVE:
        raise FileFormatError(
            f"{path}: {100 * negative:.0f}% of its absolute sum is negative; {wanted}, and with"
            " little noise."
        )


def _read_stamp(
    path: str | Path, name: str, bounds: Box
) -> ConvolutionKernel | PointSpreadFunction:
    file, extension = split_extension(path)
    with opened(file) as hdus:
        hdu = find_hdu(hdus, (name,)) if extension is None else None
        if hdu is None and archive.recognise(hdus) is None:
            candidates = [h for h in hdus if h.is_image and h.header.get("NAXIS", 0)] or [
                h for h in hdus if h.header.get("NAXIS", 0)
            ]
            if extension is not None:
                try:
                    candidates = [hdus[extension]]
                except (KeyError, IndexError) as error:
                    raise FileFormatError(f"{file}: has no extension {extension!r}.") from error
            if not candidates or candidates[0].data is None:
                raise FileFormatError(f"{file}: has no image to take as {name.lower()}.")
            hdu = candidates[0]
        if hdu is not None and not hdu.is_image:
            raise FileFormatError(
                f"{file}: {hdu.name or 'the HDU'} is a table; a {name.lower()} must be an image."
            )
        if hdu is not None:
            return read_kernel_hdus(hdus, hdu, bounds=bounds, path=str(file))
    obj = read_object(file)
    if isinstance(obj, MaskedImage):
        obj = getattr(obj, name.lower(), None)
    if not isinstance(obj, ConvolutionKernel | PointSpreadFunction):
        raise FileFormatError(f"{file}: this lsst.images archive holds no {name.lower()}.")
    return obj


def write_exposure(
    exposure: Exposure,
    path: str | Path,
    *,
    overwrite: bool = False,
    compress: bool = False,
    provenance: Mapping[str, tuple[Any, str]] | None = None,
    extras: Mapping[str, Any] | None = None,
) -> None:
    """Write an exposure as one FITS file; it appears complete or not at all.

    Parameters
    ----------
    exposure
        Exposure.
    path
        Output.
    overwrite
        Whether an existing file may be replaced.
    compress
        Compress the planes without loss.
    provenance
        Keyword → (value, comment) for the primary header.
    extras
        Extension name → further image, `KernelPointSpreadFunction` or `astropy.table.Table`.

    Raises
    ------
    OutputExistsError
        If the output exists and may not be replaced.
    FileFormatError
        If it cannot be written.

    Notes
    -----
    The layout is described in docs/file-format.md.
    """
    archive.write(
        exposure,
        Path(path),
        overwrite=overwrite,
        compress=compress,
        provenance=provenance,
        extras=extras,
    )
