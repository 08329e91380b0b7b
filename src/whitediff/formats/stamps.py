"""Kernels, PSFs, backgrounds and noise covariances as HDUs.

Each is an image, or a cube of basis images with an HDU of coefficients.
"""

from __future__ import annotations

from typing import Any

import astropy.io.fits
import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, DataError, FileFormatError
from ..exposures import kernels
from ..exposures.boxes import Box
from ..exposures.covariance import Noise, NoiseField, noise_at
from ..exposures.fields import ChebyshevField, Field, GridField, PiecewiseField
from ..exposures.kernels import BasisKernel, ConvolutionKernel
from ..exposures.psf import KernelPointSpreadFunction, Light
from ..numerics.covariance import NoiseCovariance
from .planes import Hdu

__all__ = [
    "NOISE",
    "background_hdu",
    "find_hdu",
    "is_of_region",
    "kernel_hdus",
    "noise_hdus",
    "polynomial_domain",
    "psf_hdus",
    "read_background_hdu",
    "read_kernel_hdus",
    "read_noise_hdus",
    "read_psf_hdus",
    "united_kernel",
]

type Array = npt.NDArray[Any]

NOISE = "NOISE_CORRELATION"
"""Extension of an exposure's noise covariance; elsewhere, NOISE alone is a standard deviation."""

_LARGEST_DOMAIN = 1e7
_LARGEST = 1e20
"""Largest pixel of a kernel; squares of larger ones leave the range of single precision."""
_REGION = ("REGXMIN", "REGXMAX", "REGYMIN", "REGYMAX")
_CHEBYSHEV, _MONOMIAL, _BILINEAR = "CHEBYSHEV", "MONOMIAL", "BILINEAR"


def find_hdu(
    hdus: astropy.io.fits.HDUList, names: tuple[str, ...], image: Hdu | None = None
) -> Hdu | None:
    """First HDU with data and one of some names.

    Parameters
    ----------
    hdus
        HDUs to search.
    names
        Extension names in upper case, tried in this order; the case of EXTNAME does not matter.
    image
        Image that the HDU must belong to.  They share an EXTVER; if several HDUs do, those behind
        the image belong to it.  If none does, any HDU belongs to an image whose name is unique.

    Returns
    -------
    hdu
        HDU; None if there is none.
    """
    for name in names:
        found = [h for h in hdus if h.name.upper() == name and _has_data(h)]
        if image is not None:
            found = _belonging(hdus, found, image)
        if found:
            return found[0]
    return None


def _has_data(hdu: Hdu) -> bool:
    # Reading the data of a compressed image unpacks it, and astropy keeps those of all detectors.
    if isinstance(hdu, astropy.io.fits.CompImageHDU):
        return bool(hdu.shape) and 0 not in hdu.shape
    return hdu.data is not None


def _belonging(hdus: astropy.io.fits.HDUList, found: list[Hdu], image: Hdu) -> list[Hdu]:
    """HDUs of a list that belong to an image, in the order of the file."""
    own = [hdu for hdu in found if hdu.ver == image.ver]
    if len(own) > 1:
        places = {id(hdu): place for place, hdu in enumerate(hdus)}
        return [hdu for hdu in own if places[id(hdu)] > places[id(image)]]
    alone = all(hdu is image or hdu.name != image.name for hdu in hdus)
    return own or (found if alone else [])


def read_kernel_hdus(
    hdus: astropy.io.fits.HDUList, image_hdu: Hdu, *, bounds: Box, path: str
) -> BasisKernel:
    """Kernel from an HDU with an image or cube, and the HDU with its coefficients.

    Parameters
    ----------
    hdus
        HDUs of the file.
    image_hdu
        ``(ky, kx)`` image, or ``(n, ky, kx)`` cube with an HDU of coefficients named
        after it (``KERNEL_COEFFICIENTS``) or just ``COEFFICIENTS``.
    bounds
        Box in which the kernel is valid, if the file does not give one.
    path
        File, for error messages.

    Returns
    -------
    kernel
        The kernel.

    Raises
    ------
    FileFormatError
        If shapes do not fit, values are not finite, or the coefficients are missing.
    """
    if is_of_region(image_hdu):
        return _read_regions(hdus, image_hdu.name, bounds=bounds, path=path)
    name = image_hdu.name.upper()
    names = [f"{name}_COEFFICIENTS", "COEFFICIENTS"]
    if not name.endswith("PSF"):
        names.insert(1, "KERNEL_COEFFICIENTS")
    coefficients_hdu = find_hdu(hdus, tuple(names), image_hdu)
    return _read_pair(image_hdu, coefficients_hdu, bounds=bounds, path=path)


def is_of_region(hdu: Hdu) -> bool:
    """Whether an HDU's kernel or PSF is valid on a part of the frame.

    Parameters
    ----------
    hdu
        HDU with an image or cube.

    Returns
    -------
    found
        True or False.
    """
    return any(card in hdu.header for card in _REGION)


def _read_pair(
    image_hdu: Hdu, coefficients_hdu: Hdu | None, *, bounds: Box, path: str
) -> BasisKernel:
    """Kernel from an HDU with an image or cube, and the HDU with its coefficients."""
    data = np.asarray(image_hdu.data, dtype=np.float64)
    name = image_hdu.name or "the primary HDU"
    lost, largest = int((~np.isfinite(data)).sum()), np.abs(data).max(initial=0)
    if lost or largest > _LARGEST:
        found = (
            f"{lost} pixels of {data.size} that are not finite"
            if lost
            else f"pixels of up to {largest:g}"
        )
        raise FileFormatError.of(
            path, f"the kernel in {name} has {found}; copy the file again, or make it anew."
        )
    for axis, card in ((-1, "XCENTER"), (-2, "YCENTER")):
        said = image_hdu.header.get(card)
        if data.ndim >= 2 and said is not None and said != data.shape[axis] // 2:
            raise FileFormatError.of(
                path,
                f"{name} has its origin at {card} = {said!r}, but is {data.shape[axis]}"
                f" pixels wide, in whose middle is {data.shape[axis] // 2}; is the file whole?",
            )
    if data.ndim == 2:
        return kernels.constant_kernel(data, bounds)
    if data.ndim != 3:
        raise FileFormatError.of(
            path,
            f"{name} has {data.ndim} dimensions; a kernel is an image (ky, kx) or a cube"
            " (n, ky, kx) with an HDU of coefficients.",
        )
    if coefficients_hdu is None:
        raise FileFormatError.of(
            path,
            f"{name} is a cube of {len(data)} basis images, but there is no HDU"
            " KERNEL_COEFFICIENTS with their spatial polynomials.",
        )
    coefficients = np.asarray(coefficients_hdu.data, dtype=np.float64)
    header = coefficients_hdu.header
    default = _MONOMIAL if coefficients.ndim == 2 else _CHEBYSHEV
    polynomials = str(header.get("POLYTYPE", default)).strip().upper()
    bounds = polynomial_domain(header, path) or bounds
    if not np.isfinite(coefficients).all():
        raise FileFormatError.of(path, f"{coefficients_hdu.name} is not all finite.")
    try:
        if polynomials == _MONOMIAL:
            return kernels.polynomial_kernel(data, coefficients, bounds)
        if polynomials == _CHEBYSHEV:
            return kernels.chebyshev_kernel(data, coefficients, bounds)
        if polynomials == _BILINEAR:
            cell = header.get("CELL")
            if isinstance(cell, bool) or not isinstance(cell, int) or cell < 1:
                raise FileFormatError.of(path, f"CELL must be a number of pixels; got {cell!r}.")
            if coefficients.ndim != 3 or len(coefficients) != len(data):
                raise FileFormatError.of(
                    path,
                    f"{name} has {len(data)} basis images, but its coefficients the shape"
                    f" {coefficients.shape}.",
                )
            fields: list[Any] = [GridField(bounds, values, cell) for values in coefficients]
            return BasisKernel(data, fields)
    except ArgumentError as error:
        raise FileFormatError.of(path, f"{error}") from error
    raise FileFormatError.of(
        path, f"POLYTYPE is {polynomials!r}; it must be {_MONOMIAL}, {_CHEBYSHEV} or {_BILINEAR}."
    )


def _read_regions(
    hdus: astropy.io.fits.HDUList, name: str, *, bounds: Box, path: str
) -> BasisKernel:
    """Kernel in pieces, from one HDU or pair of HDUs for each region."""
    boxes, found = [], []
    for hdu in hdus:
        if hdu.name != name or hdu.data is None:
            continue
        corners = [hdu.header.get(card) for card in _REGION]
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in corners):
            raise FileFormatError.of(
                path, f"{name},{hdu.ver} lacks its region ({', '.join(_REGION)}): {corners}."
            )
        x0, x1, y0, y1 = corners
        if not (x0 <= x1 and y0 <= y1):
            raise FileFormatError.of(path, f"{name},{hdu.ver} has an empty region: {corners}.")
        coefficients = [
            other for other in hdus if other.name == f"{name}_COEFFICIENTS" and other.ver == hdu.ver
        ]
        boxes.append(Box.between((y0, y1 + 1), (x0, x1 + 1)))
        found.append(
            _read_pair(hdu, coefficients[0] if coefficients else None, bounds=bounds, path=path)
        )
    if len({kernel.basis.shape[1:] for kernel in found}) > 1:
        raise FileFormatError.of(path, f"the regions of {name} have images of different shapes.")
    return united_kernel(list(zip(boxes, found, strict=True)), bounds)


def united_kernel(pieces: list[tuple[Box, BasisKernel]], bounds: Box) -> BasisKernel:
    """Kernel that consists of one kernel for each region.

    Parameters
    ----------
    pieces
        Regions and their kernels, whose images have the same shape.
    bounds
        Box of the frame.

    Returns
    -------
    kernel
        Kernel with the basis images of all pieces, or a single basis if they share it.
    """
    bases = [kernel.basis for _, kernel in pieces]
    boxes = [box for box, _ in pieces]
    if all(np.array_equal(basis, bases[0]) for basis in bases[1:]):
        fields: list[Any] = [
            PiecewiseField(bounds, list(zip(boxes, shared, strict=True)))
            for shared in zip(*(kernel.fields for _, kernel in pieces), strict=True)
        ]
        return BasisKernel(bases[0], fields)
    nothing, fields = ChebyshevField(bounds, np.zeros((1, 1))), []
    for index, (_, kernel) in enumerate(pieces):
        for field in kernel.fields:
            own = [field if i == index else nothing for i in range(len(boxes))]
            fields.append(PiecewiseField(bounds, list(zip(boxes, own, strict=True))))
    return BasisKernel(np.concatenate(bases), fields)


def _region_hdus(
    kernel: BasisKernel, fields: list[PiecewiseField], name: str
) -> list[astropy.io.fits.ImageHDU]:
    """HDUs of each region, with the basis images whose weights are not all zero in it."""
    basis = kernel.basis
    hdus: list[Any] = []
    for index, (box, _) in enumerate(fields[0].pieces):
        own = [field.pieces[index][1] for field in fields]
        use = [
            i
            for i, field in enumerate(own)
            if not (isinstance(field, ChebyshevField) and not np.any(field.coefficients))
        ] or [0]
        chosen: list[Any] = [own[i] for i in use]
        part = BasisKernel(basis[use], chosen)
        for hdu in kernel_hdus(part, name, box):
            hdu.ver = index + 1
            if hdu.name == name:
                corners = (box.x.start, box.x.stop - 1, box.y.start, box.y.stop - 1)
                for card, corner in zip(_REGION, corners, strict=True):
                    hdu.header[card] = (corner, "limit of the pixels where it holds")
            hdus.append(hdu)
    return hdus


def kernel_hdus(
    kernel: ConvolutionKernel, name: str, bounds: Box
) -> list[astropy.io.fits.ImageHDU]:
    """HDUs that hold a kernel: an image, or a cube and its coefficients.

    Parameters
    ----------
    kernel
        Kernel.  Weights that are Chebyshev polynomials, grids or pieces are stored as they are; any
        other kernel is fitted by Chebyshev polynomials of order 2 over the box.
    name
        Extension name.
    bounds
        Box in which the kernel is needed.

    Returns
    -------
    hdus
        One HDU for a constant kernel, else two; for a kernel in pieces, as many for each piece.
    """
    if isinstance(kernel, BasisKernel):
        grids: list[Any] = list(kernel.fields)
        if all(isinstance(field, PiecewiseField) for field in grids):
            return _region_hdus(kernel, grids, name)
        if all(isinstance(field, GridField) for field in grids):
            return _grid_hdus(kernel, grids, name)
    if not (
        isinstance(kernel, BasisKernel)
        and all(isinstance(field, ChebyshevField) for field in kernel.fields)
        and len({str(field.bounds) for field in kernel.fields}) == 1
    ):
        general = kernel
        kernel = kernels.interpolated_kernel(lambda x, y: general.at(x=x, y=y), bounds, 2)
    if kernel.is_constant:
        image = kernel.at(x=bounds.x.center, y=bounds.y.center)
        return [_image_hdu(image, name)]
    fields = [field for field in kernel.fields if isinstance(field, ChebyshevField)]
    order_y = max(field.y_order for field in fields)
    order_x = max(field.x_order for field in fields)
    coefficients = np.zeros((len(fields), order_y + 1, order_x + 1))
    for matrix, field in zip(coefficients, fields, strict=True):
        matrix[: field.y_order + 1, : field.x_order + 1] = field.coefficients
    basis = kernel.basis
    cube, table = _image_hdu(basis, name), astropy.io.fits.ImageHDU(coefficients)
    table.name = f"{name}_COEFFICIENTS"
    table.header["POLYTYPE"] = (_CHEBYSHEV, "[b,p,q] multiplies T_p(y') T_q(x') basis[b]")
    _set_domain(table.header, fields[0].bounds)
    return [cube, table]


def _grid_hdus(
    kernel: BasisKernel, fields: list[GridField], name: str
) -> list[astropy.io.fits.ImageHDU]:
    values = np.stack([field.values for field in fields]).astype(np.float32)
    basis = kernel.basis
    cube, table = _image_hdu(basis, name), astropy.io.fits.ImageHDU(values)
    table.name = f"{name}_COEFFICIENTS"
    table.header["POLYTYPE"] = (_BILINEAR, "[b,j,i] weighs basis[b] in the middle of a cell")
    table.header["CELL"] = (fields[0].cell, "side of a cell, pixels")
    _set_domain(table.header, fields[0].bounds)
    return [cube, table]


def read_psf_hdus(
    hdus: astropy.io.fits.HDUList, image_hdu: Hdu, *, bounds: Box, path: str
) -> KernelPointSpreadFunction:
    """PSF from HDUs that `psf_hdus` made.

    Parameters
    ----------
    hdus, image_hdu, bounds, path
        As in `read_kernel_hdus`.

    Returns
    -------
    psf
        The PSF.

    Raises
    ------
    FileFormatError
        If shapes do not fit, the coefficients are missing, or the images are no PSF.
    """
    header = image_hdu.header
    if not (np.isfinite(image_hdu.data).all() and np.any(image_hdu.data)):
        raise FileFormatError.of(
            path,
            f"the images of its {image_hdu.name or 'PSF'} are not finite, or nothing but 0;"
            " copy or download it again.",
        )
    position = (header["XAVERAGE"], header["YAVERAGE"]) if "XAVERAGE" in header else None
    psf = KernelPointSpreadFunction(
        read_kernel_hdus(hdus, image_hdu, bounds=bounds, path=path),
        average_position=position,
        light=Light(
            float(header.get("ENCLOSED", 1.0)),
            float(header.get("FLUXERR", 0.0)),
            (float(header.get("OWNVAR", 0.0)), float(header.get("FADEVAR", 0.0))),
        ),
    )
    try:
        psf.at(x=bounds.x.center, y=bounds.y.center)
    except ArgumentError as error:
        raise FileFormatError.of(path, f"{error}") from error
    return psf


def psf_hdus(
    psf: KernelPointSpreadFunction, name: str, bounds: Box
) -> list[astropy.io.fits.ImageHDU]:
    """HDUs that hold a PSF: the HDUs of its kernel, with cards for position and light.

    Parameters
    ----------
    psf
        PSF.
    name
        Extension name.
    bounds
        Box in which the PSF is needed.

    Returns
    -------
    hdus
        HDUs as from `kernel_hdus`; a single one is scaled to unit sum.
    """
    hdus = kernel_hdus(psf.kernel, name, bounds)
    if len(hdus) == 1:
        hdus[0].data = hdus[0].data / hdus[0].data.sum()
    x, y = psf.average_position
    hdus[0].header["XAVERAGE"] = (x, "pixel column where the PSF is nominal")
    hdus[0].header["YAVERAGE"] = (y, "pixel row where the PSF is nominal")
    if psf.light != Light():
        hdus[0].header["ENCLOSED"] = (psf.light.enclosed, "share of a source's light in the images")
        hdus[0].header["FLUXERR"] = (psf.light.error, "relative error of fluxes with this PSF")
        for card, value, flux in zip(
            ("OWNVAR", "FADEVAR"), psf.light.own_variances, ("flux", "missing flux"), strict=True
        ):
            hdus[0].header[card] = (value, f"variance per {flux} beyond the plane's")
    return hdus


def background_hdu(background: Field | Array, name: str, bounds: Box) -> astropy.io.fits.ImageHDU:
    """HDU that holds a background: an image, or the coefficients of Chebyshev polynomials.

    Parameters
    ----------
    background
        Background.
    name
        Extension name.
    bounds
        Box in which the background is needed.

    Returns
    -------
    hdu
        Coefficients of a `ChebyshevField`; an image of any other background.
    """
    if isinstance(background, ChebyshevField):
        hdu = astropy.io.fits.ImageHDU(np.array(background.coefficients), name=name)
        hdu.header["POLYTYPE"] = (_CHEBYSHEV, "[p,q] multiplies T_p(y') T_q(x')")
        _set_domain(hdu.header, background.bounds)
        return hdu
    if isinstance(background, Field):
        background = background.on(bounds)
    return astropy.io.fits.ImageHDU(background, name=name)


def read_background_hdu(hdu: Hdu, *, path: str) -> Field | Array:
    """Background from an HDU that `background_hdu` made.

    Parameters
    ----------
    hdu
        HDU.
    path
        File, for error messages.

    Returns
    -------
    background
        Field if the HDU has polynomial coefficients, else the image.

    Raises
    ------
    FileFormatError
        If coefficients are not finite.
    """
    data = hdu.data.astype(hdu.data.dtype.newbyteorder("="), copy=True)
    domain = polynomial_domain(hdu.header)
    if domain is not None and str(hdu.header.get("POLYTYPE", "")).strip() == _CHEBYSHEV:
        if not np.isfinite(data).all():
            raise FileFormatError.of(
                path,
                f"the polynomial in {hdu.name} has coefficients that are not finite; copy"
                " the file again, or make it anew.",
            )
        return ChebyshevField(domain, data.astype(np.float64))
    return data


def noise_hdus(noise: Noise, name: str, bounds: Box) -> list[astropy.io.fits.ImageHDU]:
    """HDUs that hold a noise covariance: an image, or a cube and its coefficients.

    Parameters
    ----------
    noise
        Covariance.  A function that is no `NoiseField` is evaluated in the middle of the box.
    name
        Extension name.
    bounds
        Box in which the covariance is needed.

    Returns
    -------
    hdus
        Empty for white noise; the correlation image for a constant covariance; else HDUs as from
        `kernel_hdus`.
    """
    if isinstance(noise, NoiseField):
        return kernel_hdus(noise.kernel, name, bounds)
    found = noise_at(noise, bounds.x.center, bounds.y.center)
    return [] if found is None else [astropy.io.fits.ImageHDU(found.correlation, name=name)]


def read_noise_hdus(
    hdus: astropy.io.fits.HDUList, image_hdu: Hdu, *, bounds: Box, path: str, **numbers: Any
) -> NoiseCovariance | NoiseField:
    """Noise covariance from HDUs that `noise_hdus` made.

    Parameters
    ----------
    hdus, image_hdu, bounds, path
        As in `read_kernel_hdus`.
    **numbers
        Arguments of `NoiseCovariance`, for a covariance that is the same everywhere.

    Returns
    -------
    noise
        The covariance.

    Raises
    ------
    FileFormatError
        If the HDUs hold no valid covariance.
    """
    description = "as it was stored"
    try:
        if np.ndim(image_hdu.data) != 2:
            kernel = read_kernel_hdus(hdus, image_hdu, bounds=bounds, path=path)
            noise = NoiseField(kernel, description)
            domain = kernel.bounds
            # A covariance is checked only when it is evaluated.
            for x, y in ((domain.x.start, domain.y.start), (domain.x.center, domain.y.center)):
                noise(x, y)
            return noise
        correlation = np.asarray(image_hdu.data, dtype=np.float64)
        return NoiseCovariance(correlation, description, **numbers)
    except (ArgumentError, DataError) as error:
        raise FileFormatError.of(path, f"its {image_hdu.name} cannot be used: {error}") from error


def _set_domain(header: astropy.io.fits.Header, box: Box) -> None:
    for axis, interval in (("X", box.x), ("Y", box.y)):
        header[f"DOM{axis}MIN"] = (interval.start - 0.5, f"{axis.lower()}' = -1 here, pixel")
        header[f"DOM{axis}MAX"] = (interval.stop - 0.5, f"{axis.lower()}' = +1 here, pixel")


def polynomial_domain(header: astropy.io.fits.Header, path: str = "") -> Box | None:
    """Box over which an HDU's polynomials are scaled.

    Parameters
    ----------
    header
        Header of an HDU of coefficients.
    path
        File, for error messages.

    Returns
    -------
    box
        Box; None if the header has none of the cards.

    Raises
    ------
    FileFormatError
        If only some of the cards are there, or they give no box.
    """
    cards = {name: header.get(name) for name in ("DOMXMIN", "DOMXMAX", "DOMYMIN", "DOMYMAX")}
    if set(cards.values()) == {None}:
        return None
    numbers = all(
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < _LARGEST_DOMAIN
        for value in cards.values()
    )
    if not numbers or cards["DOMXMIN"] >= cards["DOMXMAX"] or cards["DOMYMIN"] >= cards["DOMYMAX"]:
        given = ", ".join(f"{name} = {value!r}" for name, value in cards.items())
        raise FileFormatError(
            f"{path or 'A kernel'}: the limits of its polynomials are no box: {given}."
        )
    x, y = (
        (round(header[f"DOM{axis}MIN"] + 0.5), round(header[f"DOM{axis}MAX"] - 0.5))
        for axis in "XY"
    )
    return Box.from_shape((y[1] - y[0] + 1, x[1] - x[0] + 1), start=(y[0], x[0]))


def _image_hdu(data: Array, name: str) -> astropy.io.fits.ImageHDU:
    hdu = astropy.io.fits.ImageHDU(np.ascontiguousarray(data, dtype=np.float64), name=name)
    ny, nx = data.shape[-2:]
    hdu.header["XCENTER"] = (nx // 2, "0-based column of the origin")
    hdu.header["YCENTER"] = (ny // 2, "0-based row of the origin")
    return hdu
