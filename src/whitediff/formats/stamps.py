"""Kernels and PSFs as HDUs: an image, or a cube of basis images with coefficients."""

from __future__ import annotations

from typing import Any

import astropy.io.fits
import numpy as np
import numpy.typing as npt
from lsst.images import YX, Box
from lsst.images.convolution_kernels import ConvolutionKernel, ImageBasisConvolutionKernel
from lsst.images.fields import ChebyshevField

from ..errors import ArgumentError, FileFormatError
from ..exposures import kernels

__all__ = ["find_hdu", "kernel_hdus", "read_kernel_hdus"]

type Array = npt.NDArray[Any]

_CHEBYSHEV, _MONOMIAL = "CHEBYSHEV", "MONOMIAL"


def find_hdu(
    hdus: astropy.io.fits.HDUList, names: tuple[str, ...], version: int | None = None
) -> Any:
    """First HDU with data under one of some names.

    Parameters
    ----------
    hdus
        HDUs to search.
    names
        Extension names, tried in this order; case does not matter.
    version
        EXTVER to prefer.

    Returns
    -------
    hdu
        None where there is none.
    """
    for name in names:
        found = [h for h in hdus if h.name.upper() == name and h.data is not None]
        for hdu in found:
            if version is not None and hdu.ver == version:
                return hdu
        if found:
            return found[0]
    return None


def read_kernel_hdus(
    hdus: astropy.io.fits.HDUList, image_hdu: Any, *, bounds: Box, path: str
) -> ImageBasisConvolutionKernel:
    """Kernel from an HDU with an image or cube, and the coefficients beside it.

    Parameters
    ----------
    hdus
        HDUs of the file.
    image_hdu
        ``(ky, kx)`` image, or ``(n, ky, kx)`` cube with an HDU of coefficients named
        after it (``KERNEL_COEFFICIENTS``) or just ``COEFFICIENTS``.
    bounds
        Box in which the kernel is valid, where the file does not say.
    path
        For error messages.

    Returns
    -------
    kernel
        The kernel.

    Raises
    ------
    FileFormatError
        If shapes do not fit or the coefficients are missing.
    """
    data = np.asarray(image_hdu.data, dtype=np.float64)
    name = image_hdu.name or "the primary HDU"
    coefficients_hdu = find_hdu(
        hdus, (f"{image_hdu.name.upper()}_COEFFICIENTS", "KERNEL_COEFFICIENTS", "COEFFICIENTS")
    )
    if data.ndim == 2:
        return kernels.constant_kernel(data, bounds)
    if data.ndim != 3:
        raise FileFormatError(
            f"{path}: {name} has {data.ndim} dimensions; a kernel is an image (ky, kx) or a cube"
            " (n, ky, kx) with an HDU of coefficients."
        )
    if coefficients_hdu is None:
        raise FileFormatError(
            f"{path}: {name} is a cube of {len(data)} basis images, but there is no HDU"
            " KERNEL_COEFFICIENTS with their spatial polynomials."
        )
    coefficients = np.asarray(coefficients_hdu.data, dtype=np.float64)
    header = coefficients_hdu.header
    default = _MONOMIAL if coefficients.ndim == 2 else _CHEBYSHEV
    polynomials = str(header.get("POLYTYPE", default)).strip().upper()
    if "DOMXMIN" in header:
        x, y = (
            (round(header[f"DOM{axis}MIN"] + 0.5), round(header[f"DOM{axis}MAX"] - 0.5))
            for axis in "XY"
        )
        bounds = Box.from_shape((y[1] - y[0] + 1, x[1] - x[0] + 1), start=YX(y=y[0], x=x[0]))
    try:
        if polynomials == _MONOMIAL:
            return kernels.polynomial_kernel(data, coefficients, bounds)
        if polynomials == _CHEBYSHEV:
            return kernels.chebyshev_kernel(data, coefficients, bounds)
    except ArgumentError as error:
        raise FileFormatError(f"{path}: {error}") from error
    raise FileFormatError(
        f"{path}: POLYTYPE is {polynomials!r}; it must be {_MONOMIAL} or {_CHEBYSHEV}."
    )


def kernel_hdus(kernel: ConvolutionKernel, name: str, bounds: Box) -> list[Any]:
    """HDUs that hold a kernel: an image, or a cube and its coefficients.

    Parameters
    ----------
    kernel
        Kernel.  One that is not made of Chebyshev polynomials is fitted by those of order
        2 over the box.
    name
        Extension name.
    bounds
        Box over which it is wanted.

    Returns
    -------
    hdus
        One HDU for a constant kernel, else two.
    """
    if not (
        isinstance(kernel, ImageBasisConvolutionKernel)
        and all(isinstance(field, ChebyshevField) for field in kernel.spatial)
        and len({str(field.bounds.bbox) for field in kernel.spatial}) == 1
    ):
        general = kernel
        kernel = kernels.interpolated_kernel(
            lambda x, y: kernels.evaluate(general, x=x, y=y), bounds, 2
        )
    if kernels.is_constant(kernel):
        image = kernels.evaluate(kernel, x=bounds.x.center, y=bounds.y.center)
        return [_image_hdu(image, name)]
    fields = [field for field in kernel.spatial if isinstance(field, ChebyshevField)]
    order_y = max(field.y_order for field in fields)
    order_x = max(field.x_order for field in fields)
    coefficients = np.zeros((len(fields), order_y + 1, order_x + 1))
    for matrix, field in zip(coefficients, fields, strict=True):
        matrix[: field.y_order + 1, : field.x_order + 1] = field.coefficients
    basis = np.stack([kernels.centered_array(image.array, image.bbox) for image, _ in kernel])
    cube, table = _image_hdu(basis, name), astropy.io.fits.ImageHDU(coefficients)
    table.name = f"{name}_COEFFICIENTS"
    domain = fields[0].bounds.bbox
    table.header["POLYTYPE"] = (_CHEBYSHEV, "[b,p,q] multiplies T_p(y') T_q(x') basis[b]")
    for axis, interval in (("X", domain.x), ("Y", domain.y)):
        table.header[f"DOM{axis}MIN"] = (interval.start - 0.5, f"{axis.lower()}' = -1 here, pixel")
        table.header[f"DOM{axis}MAX"] = (interval.stop - 0.5, f"{axis.lower()}' = +1 here, pixel")
    return [cube, table]


def _image_hdu(data: Array, name: str) -> Any:
    hdu = astropy.io.fits.ImageHDU(np.ascontiguousarray(data, dtype=np.float64), name=name)
    ny, nx = data.shape[-2:]
    hdu.header["XCENTER"] = (nx // 2, "0-based column of the origin")
    hdu.header["YCENTER"] = (ny // 2, "0-based row of the origin")
    return hdu
