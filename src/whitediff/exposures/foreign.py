"""Objects of lsst.images as our own, told by what they can do: the library itself is not needed."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, final

import numpy as np
import numpy.typing as npt

from .. import astro
from ..errors import ArgumentError
from ..numerics import planes
from .boxes import Box
from .fields import ChebyshevField, Field
from .kernels import BasisKernel, ConvolutionKernel, centered_array
from .masks import Mask, empty_mask, set_plane
from .psf import PointSpreadFunction
from .sky import projection_header

__all__ = [
    "ForeignField",
    "ForeignKernel",
    "ForeignPointSpreadFunction",
    "Parts",
    "adapted",
    "box_of",
    "centered_image",
    "field_of",
    "kernel_of",
    "mask_of",
    "parts_of",
    "psf_of",
]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.exposures")


@dataclasses.dataclass(frozen=True)
class Parts:
    """What an object holds.

    Attributes
    ----------
    image, variance
        ``(ny, nx)``, not copied.
    mask
        Its planes.
    box
        Its pixels.
    unit
        Unit of the image, if known.
    psf, kernel
        Those that it has.
    header
        Its sky coordinates as FITS cards, and no others.
    """

    image: Array
    variance: Array
    mask: Mask
    box: Box
    unit: astro.units.UnitBase | None
    psf: PointSpreadFunction | None
    kernel: ConvolutionKernel | None
    header: astro.fits.Header


def parts_of(obj: Any) -> Parts:
    """Take an object apart.

    Parameters
    ----------
    obj
        Anything with ``image``, ``mask`` and ``variance`` as lsst.images has them.

    Returns
    -------
    parts
        What it holds.

    Raises
    ------
    ArgumentError
        If it lacks a plane, or one is of another kind.
    """
    try:
        image, mask, variance = obj.image, obj.mask, obj.variance
    except AttributeError as error:
        raise ArgumentError(
            f"An exposure needs .image, .mask and .variance; {type(obj).__name__} lacks one:"
            f" {error}."
        ) from error
    try:
        box = box_of(image.bbox)
        arrays, bits = (image.array, variance.array), mask_of(mask)
    except AttributeError as error:
        raise ArgumentError(
            "The planes of an exposure must be lsst.images Image, Mask and Image; got"
            f" {type(image).__name__}, {type(mask).__name__}, {type(variance).__name__}."
            " Exposure.from_arrays takes plain arrays."
        ) from error
    projection = getattr(obj, "sky_projection", None)
    try:
        psf = getattr(obj, "psf", None)
    except Exception as error:
        # Such an object raises, in a class of its own, when its PSF is asked for, not when read.
        _log.info("The PSF cannot be read (%s); it is left out.", error)
        psf = None
    kernel = getattr(obj, "kernel", None)
    return Parts(
        *arrays,
        bits,
        box,
        image.unit,
        None if psf is None else psf_of(psf),
        None if kernel is None else kernel_of(kernel),
        astro.fits.Header() if projection is None else projection_header(projection, image.bbox),
    )


def box_of(obj: Any) -> Box:
    """Take a box, or the box around any bounds, as ours.

    Parameters
    ----------
    obj
        Our `Box`, or bounds of lsst.images.

    Returns
    -------
    box
        Box.
    """
    if isinstance(obj, Box):
        return obj
    box = obj.bbox
    return Box.between((box.y.start, box.y.stop), (box.x.start, box.x.stop))


def mask_of(obj: Any) -> Mask:
    """Take a mask as ours.

    Parameters
    ----------
    obj
        Our `Mask`, or one of lsst.images.

    Returns
    -------
    mask
        A copy of the other's planes.
    """
    if isinstance(obj, Mask):
        return obj
    named = [plane for plane in obj.schema if plane is not None]
    descriptions = {plane.name: plane.description for plane in named}
    mask = empty_mask(obj.array.shape[:2], descriptions, descriptions)
    if obj.array.dtype == np.uint8 and [
        (obj.schema.bit(name).index, int(obj.schema.bit(name).mask)) for name in mask.names
    ] == [(n // 8, 1 << n % 8) for n in range(len(mask.names))]:
        # The bits lie as ours do, in bytes.
        def work(rows: slice) -> None:
            for byte in range(obj.array.shape[2]):
                mask.bits[rows] |= obj.array[rows, :, byte].astype(mask.bits.dtype) << 8 * byte

        planes.each_block(work, mask.shape)
        return mask
    for name in mask.names:
        set_plane(mask, name, obj.get(name))
    return mask


def centered_image(image: Any) -> Array:
    """Take an image whose origin lies anywhere as an array.

    Parameters
    ----------
    image
        An image of lsst.images; the pixel (0, 0) is the origin.

    Returns
    -------
    array
        ``(ny, nx)`` float64, origin at ``[ny//2, nx//2]``.
    """
    return centered_array(image.array, box_of(image.bbox).start)


@final
class ForeignField(Field):
    """A function of the position of another library.

    Parameters
    ----------
    field
        Of lsst.images.
    """

    def __init__(self, field: Any) -> None:
        self.field = field

    @property
    def bounds(self) -> Box:
        """Box in which it is defined."""
        return box_of(self.field.bounds)

    @property
    def is_constant(self) -> bool:
        """Whether it is known to be the same everywhere."""
        return bool(self.field.is_constant)

    def at(self, x: Array, y: Array) -> Array:
        """Values at positions, `Field.at`."""
        return np.asarray(self.field(x=np.ravel(x), y=np.ravel(y))).reshape(np.shape(x))

    def scaled(self, factor: float) -> ForeignField:
        """The field times a number."""
        return ForeignField(self.field * factor)


def field_of(obj: Any) -> Field:
    """Take a function of the position as ours.

    Parameters
    ----------
    obj
        Our `Field`, or one of lsst.images.

    Returns
    -------
    field
        Polynomials as `ChebyshevField`; others as they are.
    """
    if isinstance(obj, Field):
        return obj
    if type(obj).__name__ == "ChebyshevField":
        return ChebyshevField(box_of(obj.bounds), np.array(obj.coefficients))
    return ForeignField(obj)


@final
class ForeignKernel(ConvolutionKernel):
    """A matching kernel of another library.

    Parameters
    ----------
    kernel
        Of lsst.images.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    @property
    def bounds(self) -> Box:
        """Box in which it is valid."""
        return box_of(self.kernel.bounds)

    @property
    def shape(self) -> tuple[int, int]:
        """(ky, kx) of its images."""
        ny, nx = self.at(x=self.bounds.x.center, y=self.bounds.y.center).shape
        return ny, nx

    @property
    def is_constant(self) -> bool:
        """False: that is not known."""
        return False

    def at(self, *, x: float, y: float) -> Array:
        """Image of the kernel at a position, `ConvolutionKernel.at`."""
        return centered_image(self.kernel.compute_kernel_image(x=x, y=y))


def kernel_of(obj: Any) -> ConvolutionKernel:
    """Take a matching kernel as ours.

    Parameters
    ----------
    obj
        Our `ConvolutionKernel`, or one of lsst.images.

    Returns
    -------
    kernel
        One of basis images as `BasisKernel`; others as they are.
    """
    if isinstance(obj, ConvolutionKernel):
        return obj
    if hasattr(obj, "basis") and hasattr(obj, "spatial"):
        basis = centered_array(np.asarray(obj.basis), box_of(obj.kernel_bbox).start)
        return BasisKernel(basis, [field_of(each) for each in obj.spatial])
    return ForeignKernel(obj)


@final
class ForeignPointSpreadFunction(PointSpreadFunction):
    """A PSF of another library.

    Parameters
    ----------
    psf
        Of lsst.images.
    """

    def __init__(self, psf: Any) -> None:
        self.psf = psf

    @property
    def bounds(self) -> Box:
        """Box in which it is valid."""
        return box_of(self.psf.bounds)

    def at(self, *, x: float, y: float) -> Array:
        """Image of the PSF at a position, `PointSpreadFunction.at`."""
        image = centered_image(self.psf.compute_kernel_image(x=x, y=y))
        return image / image.sum()

    def star(self, *, x: float, y: float) -> tuple[Array, Box]:
        """Image of a star, by the other library's own way of shifting it."""
        image = self.psf.compute_stellar_image(x=x, y=y)
        return np.asarray(image.array, dtype=np.float64), box_of(image.bbox)


def psf_of(obj: Any) -> PointSpreadFunction:
    """Take a PSF as ours.

    Parameters
    ----------
    obj
        Our `PointSpreadFunction`, or one of lsst.images.

    Returns
    -------
    psf
        PSF.
    """
    if isinstance(obj, PointSpreadFunction):
        return obj
    own = getattr(obj, "psf", None)
    # Ours, as an archive held it.
    return own if isinstance(own, PointSpreadFunction) else ForeignPointSpreadFunction(obj)


def adapted(obj: Any) -> Any:
    """Take a kernel or a PSF of any library as ours, and leave all else.

    Parameters
    ----------
    obj
        Anything.

    Returns
    -------
    obj
        Our `ConvolutionKernel` or `PointSpreadFunction` of it; images and all else as they are.
    """
    if hasattr(obj, "compute_stellar_image"):
        return psf_of(obj)
    return kernel_of(obj) if hasattr(obj, "compute_kernel_image") else obj
