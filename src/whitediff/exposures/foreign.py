"""Objects of lsst.images as our own, recognised by their attributes, without the library."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, Self, final

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

if TYPE_CHECKING:

    class Interval(Protocol):
        """Consecutive pixels along an axis."""

        @property
        def start(self) -> int: ...

        @property
        def stop(self) -> int: ...

    class Rectangle(Protocol):
        """Box of lsst.images."""

        @property
        def y(self) -> Interval: ...

        @property
        def x(self) -> Interval: ...

    class Bounds(Protocol):
        """Bounds of lsst.images, a box among them."""

        @property
        def bbox(self) -> Rectangle: ...

    class Image(Protocol):
        """Image of lsst.images."""

        @property
        def array(self) -> Array: ...

        @property
        def bbox(self) -> Bounds: ...

    class Plane(Protocol):
        """Plane of a mask of lsst.images."""

        @property
        def name(self) -> str: ...

        @property
        def description(self) -> str: ...

    class Bit(Protocol):
        """Place of a plane's bit in the last axis of a mask's array."""

        @property
        def index(self) -> int: ...

        @property
        def mask(self) -> int: ...

    class Schema(Protocol):
        """Planes of a mask of lsst.images; None for bits without a plane."""

        def __iter__(self) -> Iterator[Plane | None]: ...

        def bit(self, name: str, /) -> Bit: ...

    class ForeignMask(Protocol):
        """Mask of lsst.images; its array is ``(ny, nx, bytes)``."""

        @property
        def array(self) -> Array: ...

        @property
        def schema(self) -> Schema: ...

        def get(self, name: str, /) -> Array: ...

    class Function(Protocol):
        """Field of lsst.images."""

        @property
        def bounds(self) -> Bounds: ...

        @property
        def is_constant(self) -> bool: ...

        def __call__(self, *, x: Array, y: Array) -> Array: ...

        def __mul__(self, factor: float, /) -> Self: ...

    class Kernel(Protocol):
        """Kernel or PSF of lsst.images."""

        @property
        def bounds(self) -> Bounds: ...

        @property
        def compute_kernel_image(self) -> Callable[..., Image]: ...

    class Psf(Kernel, Protocol):
        """PSF of lsst.images."""

        @property
        def compute_stellar_image(self) -> Callable[..., Image]: ...


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
    """Parts of an exposure of lsst.images, as our own objects.

    Attributes
    ----------
    image, variance
        ``(ny, nx)``, not copied.
    mask
        Mask planes.
    box
        Box of the pixels.
    unit
        Unit of the image, if known.
    psf, kernel
        PSF and matching kernel; None if the exposure has none.
    header
        FITS cards of the sky coordinates, and no others.
    """

    image: Array
    variance: Array
    mask: Mask
    box: Box
    unit: astro.units.UnitBase | None
    psf: PointSpreadFunction | None
    kernel: ConvolutionKernel | None
    header: astro.fits.Header


def parts_of(obj: object) -> Parts:
    """Take an exposure of lsst.images apart.

    Parameters
    ----------
    obj
        Any object with ``image``, ``mask`` and ``variance`` like those of lsst.images.

    Returns
    -------
    parts
        Parts of the exposure.

    Raises
    ------
    ArgumentError
        If the object lacks a plane, or one is of another kind.
    """
    try:
        # Any object is accepted: the error below says what it lacks.
        image, mask, variance = obj.image, obj.mask, obj.variance  # type: ignore[attr-defined]
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
        # A PSF that cannot be read raises an error of lsst.images, and only here, not at reading.
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


def box_of(obj: Box | Bounds) -> Box:
    """Convert the box around any bounds to our `Box`.

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


def mask_of(obj: Mask | ForeignMask) -> Mask:
    """Convert a mask to our `Mask`.

    Parameters
    ----------
    obj
        Our `Mask`, or one of lsst.images.

    Returns
    -------
    mask
        Our mask as it is, or a copy of the other's planes.
    """
    if isinstance(obj, Mask):
        return obj
    named = [plane for plane in obj.schema if plane is not None]
    descriptions = {plane.name: plane.description for plane in named}
    mask = empty_mask(obj.array.shape[:2], descriptions, descriptions)
    if obj.array.dtype == np.uint8 and [
        (obj.schema.bit(name).index, int(obj.schema.bit(name).mask)) for name in mask.names
    ] == [(n // 8, 1 << n % 8) for n in range(len(mask.names))]:
        # The bits have the same order as ours, so whole bytes are copied at a time.
        def work(rows: slice) -> None:
            for byte in range(obj.array.shape[2]):
                mask.bits[rows] |= obj.array[rows, :, byte].astype(mask.bits.dtype) << 8 * byte

        planes.each_block(work, mask.shape)
        return mask
    for name in mask.names:
        set_plane(mask, name, obj.get(name))
    return mask


def centered_image(image: Image) -> Array:
    """Convert an image whose origin lies anywhere to a centred array.

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
    """A field, a function of the position, of another library.

    Parameters
    ----------
    field
        Field of lsst.images.
    """

    def __init__(self, field: Function) -> None:
        self.field = field

    @property
    def bounds(self) -> Box:
        """Box in which the field is defined."""
        return box_of(self.field.bounds)

    @property
    def is_constant(self) -> bool:
        """Whether the field is known to be constant."""
        return bool(self.field.is_constant)

    def at(self, x: Array, y: Array) -> Array:
        """Values at positions, `Field.at`."""
        return np.asarray(self.field(x=np.ravel(x), y=np.ravel(y))).reshape(np.shape(x))

    def scaled(self, factor: float) -> ForeignField:
        """The field times a number."""
        return ForeignField(self.field * factor)


def field_of(obj: Field | Function) -> Field:
    """Convert a field to our `Field`.

    Parameters
    ----------
    obj
        Our `Field`, or one of lsst.images.

    Returns
    -------
    field
        Our field as it is; `ChebyshevField` for polynomials, `ForeignField` for others.
    """
    if isinstance(obj, Field):
        return obj
    if type(obj).__name__ == "ChebyshevField":
        return ChebyshevField(
            box_of(obj.bounds),
            np.array(obj.coefficients),  # type: ignore[attr-defined]
        )
    return ForeignField(obj)


@final
class ForeignKernel(ConvolutionKernel):
    """A matching kernel of another library.

    Parameters
    ----------
    kernel
        Kernel of lsst.images.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    @property
    def bounds(self) -> Box:
        """Box in which the kernel is valid."""
        return box_of(self.kernel.bounds)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (ky, kx) of the kernel's images."""
        ny, nx = self.at(x=self.bounds.x.center, y=self.bounds.y.center).shape
        return ny, nx

    @property
    def is_constant(self) -> bool:
        """False: the library does not tell."""
        return False

    def at(self, *, x: float, y: float) -> Array:
        """Image of the kernel at a position, `ConvolutionKernel.at`."""
        return centered_image(self.kernel.compute_kernel_image(x=x, y=y))


def kernel_of(obj: ConvolutionKernel | Kernel) -> ConvolutionKernel:
    """Convert a matching kernel to our `ConvolutionKernel`.

    Parameters
    ----------
    obj
        Our `ConvolutionKernel`, or one of lsst.images.

    Returns
    -------
    kernel
        Our kernel as it is; `BasisKernel` if it has basis images, `ForeignKernel` for others.
    """
    if isinstance(obj, ConvolutionKernel):
        return obj
    if hasattr(obj, "basis") and hasattr(obj, "spatial"):
        basis = centered_array(
            np.asarray(obj.basis),
            box_of(obj.kernel_bbox).start,  # type: ignore[attr-defined]
        )
        return BasisKernel(basis, [field_of(each) for each in obj.spatial])
    return ForeignKernel(obj)


@final
class ForeignPointSpreadFunction(PointSpreadFunction):
    """A PSF of another library.

    Parameters
    ----------
    psf
        PSF of lsst.images.
    """

    def __init__(self, psf: Any) -> None:
        self.psf = psf

    @property
    def bounds(self) -> Box:
        """Box in which the PSF is valid."""
        return box_of(self.psf.bounds)

    def at(self, *, x: float, y: float) -> Array:
        """Image of the PSF at a position, `PointSpreadFunction.at`."""
        image = centered_image(self.psf.compute_kernel_image(x=x, y=y))
        return image / image.sum()

    def star(self, *, x: float, y: float) -> tuple[Array, Box]:
        """Image of a star, shifted by the other library."""
        image = self.psf.compute_stellar_image(x=x, y=y)
        return np.asarray(image.array, dtype=np.float64), box_of(image.bbox)


def psf_of(obj: PointSpreadFunction | Psf) -> PointSpreadFunction:
    """Convert a PSF to our `PointSpreadFunction`.

    Parameters
    ----------
    obj
        Our `PointSpreadFunction`, or one of lsst.images.

    Returns
    -------
    psf
        Our PSF as it is, also from inside a wrapper; `ForeignPointSpreadFunction` for others.
    """
    if isinstance(obj, PointSpreadFunction):
        return obj
    own = getattr(obj, "psf", None)
    # An archive of lsst.images wraps a PSF of ours.
    return own if isinstance(own, PointSpreadFunction) else ForeignPointSpreadFunction(obj)


def adapted(obj: object) -> Any:
    """Convert a kernel or a PSF of any library to ours, and leave all other objects.

    Parameters
    ----------
    obj
        Any object.

    Returns
    -------
    obj
        Our `ConvolutionKernel` or `PointSpreadFunction`; images and all other objects unchanged.
    """
    if hasattr(obj, "compute_stellar_image"):
        return psf_of(obj)  # type: ignore[arg-type]
    return kernel_of(obj) if hasattr(obj, "compute_kernel_image") else obj  # type: ignore[arg-type]
