"""Conversion of whitediff's objects to those of lsst.images."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import astropy.io.fits
import astropy.units as u
import astropy.wcs
import lsst.images
import lsst.images.convolution_kernels
import lsst.images.fields
import lsst.images.psfs
import numpy as np
import numpy.typing as npt
import pydantic
from lsst.images.convolution_kernels import ImageBasisConvolutionKernelSerializationModel
from lsst.images.serialization import (
    ArchiveTree,
    InputArchive,
    InvalidParameterError,
    OutputArchive,
)

from ...errors import ArgumentError
from ...exposures.boxes import Box
from ...exposures.fields import ChebyshevField, Field, GridField
from ...exposures.foreign import ForeignField, ForeignKernel, ForeignPointSpreadFunction, kernel_of
from ...exposures.kernels import BasisKernel, ConvolutionKernel, interpolated_kernel
from ...exposures.masks import Mask
from ...exposures.model import Exposure
from ...exposures.psf import KernelPointSpreadFunction, Light, PointSpreadFunction
from ...exposures.sky import TOLERANCE, celestial_wcs, disagreement, equivalent_wcs
from ...numerics.planes import filled

__all__ = [
    "StoredPointSpreadFunction",
    "StoredPointSpreadFunctionModel",
    "lsst_box",
    "lsst_field",
    "lsst_kernel",
    "lsst_mask",
    "lsst_psf",
    "masked_image",
    "sky_projection",
]

type Array = npt.NDArray[Any]

_FITTED_ORDER = 2


def lsst_box(box: Box) -> lsst.images.Box:
    """Convert a box.

    Parameters
    ----------
    box
        Our box.

    Returns
    -------
    box
        Box of lsst.images with the same pixels.
    """
    return lsst.images.Box.from_shape(box.shape, start=box.start)


def lsst_field(field: Field) -> lsst.images.fields.Field:
    """Convert a function of the position.

    Parameters
    ----------
    field
        Our field.

    Returns
    -------
    field
        `lsst.images.fields.ChebyshevField`; for a grid, the `lsst.images.fields.SplineField`
        through the same values.

    Raises
    ------
    ArgumentError
        If the field has pieces on parts of the frame.
    """
    if isinstance(field, ForeignField):
        # It came from lsst.images.
        return cast(Any, field.field)
    if isinstance(field, ChebyshevField):
        return lsst.images.fields.ChebyshevField(lsst_box(field.bounds), field.coefficients.copy())
    if isinstance(field, GridField):
        y, x = field.middles
        return lsst.images.fields.SplineField(lsst_box(field.bounds), field.values.copy(), y=y, x=x)
    raise ArgumentError(
        f"A {type(field).__name__} cannot be written to an lsst.images archive, which has none"
        " that holds on parts of the frame; write it as a plain HDU, or a part at a time."
    )


def lsst_kernel(kernel: ConvolutionKernel) -> lsst.images.convolution_kernels.ConvolutionKernel:
    """Convert a matching kernel.

    Parameters
    ----------
    kernel
        Our kernel.

    Returns
    -------
    kernel
        Kernel of basis images; a kernel of another kind is fitted by polynomials of order 2.

    Raises
    ------
    ArgumentError
        If the kernel has pieces on parts of the frame.
    """
    if isinstance(kernel, ForeignKernel):
        found: lsst.images.convolution_kernels.ConvolutionKernel = kernel.kernel
        return found
    if not isinstance(kernel, BasisKernel):
        general = kernel
        kernel = interpolated_kernel(
            lambda x, y: general.at(x=x, y=y), kernel.bounds, _FITTED_ORDER
        )
    return lsst.images.convolution_kernels.ImageBasisConvolutionKernel(
        kernel.basis, [lsst_field(field) for field in kernel.fields]
    )


class StoredPointSpreadFunction(lsst.images.psfs.PointSpreadFunction):
    """Our PSF of basis images, in the form that archives of lsst.images hold.

    Parameters
    ----------
    psf
        Our PSF.
    """

    def __init__(self, psf: KernelPointSpreadFunction) -> None:
        self._psf = psf

    @property
    def psf(self) -> KernelPointSpreadFunction:
        """Our PSF."""
        return self._psf

    @property
    def bounds(self) -> lsst.images.Box:
        """Region where the PSF is valid."""
        return lsst_box(self._psf.bounds)

    @property
    def kernel_bbox(self) -> lsst.images.Box:
        """Box of all images that `compute_kernel_image` returns."""
        ny, nx = self._psf.kernel.shape
        return lsst.images.Box.from_shape((ny, nx), start=(-(ny // 2), -(nx // 2)))

    def compute_kernel_image(self, *, x: float, y: float) -> lsst.images.Image:
        """Image of the PSF at a position, centred on the pixel (0, 0), unit sum.

        Parameters
        ----------
        x, y
            Pixel coordinates.

        Returns
        -------
        image
            Image with the box `kernel_bbox`.
        """
        return lsst.images.Image(self._psf.at(x=x, y=y), bbox=self.kernel_bbox)

    def compute_stellar_image(self, *, x: float, y: float) -> lsst.images.Image:
        """Image of a star of unit flux at a position.

        Parameters
        ----------
        x, y
            Pixel coordinates of the star.

        Returns
        -------
        image
            Image with the box `compute_stellar_bbox`.
        """
        image, box = self._psf.star(x=x, y=y)
        return lsst.images.Image(image, bbox=lsst_box(box))

    def compute_stellar_bbox(self, *, x: float, y: float) -> lsst.images.Box:
        """Box of the image that `compute_stellar_image` returns.

        Parameters
        ----------
        x, y
            Pixel coordinates of the star.

        Returns
        -------
        bbox
            Box.
        """
        return lsst_box(self._psf.star(x=x, y=y)[1])

    def serialize[P: pydantic.BaseModel](
        self, archive: OutputArchive[P]
    ) -> StoredPointSpreadFunctionModel:
        """Write the PSF to an archive.

        Parameters
        ----------
        archive
            Archive to write to.

        Returns
        -------
        model
            Entry of the archive's tree.
        """
        psf = self._psf
        x, y = psf.average_position
        kernel = lsst_kernel(psf.kernel)
        return StoredPointSpreadFunctionModel(
            kernel=archive.serialize_direct("kernel", kernel.serialize),
            average_position_x=x,
            average_position_y=y,
            enclosed=psf.light.enclosed,
            flux_error=psf.light.error,
            own_variance=psf.light.own_variances[0],
            fading_variance=psf.light.own_variances[1],
        )

    @staticmethod
    def _get_archive_tree_type(
        pointer_type: type[pydantic.BaseModel],
    ) -> type[StoredPointSpreadFunctionModel]:
        return StoredPointSpreadFunctionModel


class StoredPointSpreadFunctionModel(ArchiveTree):
    """Form of a `StoredPointSpreadFunction` in an archive."""

    SCHEMA_NAME: ClassVar[str] = "whitediff_kernel_psf"
    SCHEMA_VERSION: ClassVar[str] = "1.2.0"
    MIN_READ_VERSION: ClassVar[int] = 1
    PUBLIC_TYPE: ClassVar[type] = StoredPointSpreadFunction

    kernel: ImageBasisConvolutionKernelSerializationModel = pydantic.Field(
        description="Basis images of the PSF and their spatial variation."
    )
    average_position_x: float = pydantic.Field(description="Column where the PSF is nominal.")
    average_position_y: float = pydantic.Field(description="Row where the PSF is nominal.")
    enclosed: float = pydantic.Field(
        default=1.0, description="Share of a point source's light in the images."
    )
    flux_error: float = pydantic.Field(
        default=0.0, description="Relative error of fluxes measured with the PSF."
    )
    own_variance: float = pydantic.Field(
        default=0.0,
        description="Variance per flux by a source's photons beyond what the variance plane tells.",
    )
    fading_variance: float = pydantic.Field(
        default=0.0,
        description="Variance per flux by the photons of a source that the science image lacks.",
    )

    def deserialize(self, archive: InputArchive[Any], **kwargs: Any) -> StoredPointSpreadFunction:
        """Read the PSF back.

        Parameters
        ----------
        archive
            Archive to read from.
        **kwargs
            None are accepted.

        Returns
        -------
        psf
            The PSF.
        """
        if kwargs:
            raise InvalidParameterError(
                f"Unrecognized parameters for a PSF of whitediff: {set(kwargs)}."
            )
        kernel = kernel_of(self.kernel.deserialize(archive))
        assert isinstance(kernel, BasisKernel)
        return StoredPointSpreadFunction(
            KernelPointSpreadFunction(
                kernel,
                average_position=(self.average_position_x, self.average_position_y),
                light=Light(
                    self.enclosed, self.flux_error, (self.own_variance, self.fading_variance)
                ),
            )
        )


def lsst_psf(psf: PointSpreadFunction) -> lsst.images.psfs.PointSpreadFunction:
    """Convert a PSF.

    Parameters
    ----------
    psf
        Our PSF, made of basis images or adapted from another library.

    Returns
    -------
    psf
        The other library's PSF, or a `StoredPointSpreadFunction`.

    Raises
    ------
    ArgumentError
        If the PSF is of another kind.
    """
    if isinstance(psf, ForeignPointSpreadFunction):
        found: lsst.images.psfs.PointSpreadFunction = psf.psf
        return found
    if isinstance(psf, KernelPointSpreadFunction):
        return StoredPointSpreadFunction(psf)
    raise ArgumentError(f"A {type(psf).__name__} is no PSF of lsst.images, nor one of images.")


def lsst_mask(mask: Mask, box: Box) -> lsst.images.Mask:
    """Convert a mask.

    Parameters
    ----------
    mask
        Our mask.
    box
        Box of its pixels.

    Returns
    -------
    mask
        Copy, whose planes have the same order.
    """
    schema = lsst.images.MaskSchema(
        [lsst.images.MaskPlane(name, text) for name, text in mask.descriptions.items()]
    )
    bits, size = mask.bits, schema.mask_size

    def work(rows: slice) -> Array:
        return np.stack([(bits[rows] >> 8 * n).astype(np.uint8) for n in range(size)], axis=-1)

    array = filled((*mask.shape, size), np.uint8, work)
    return lsst.images.Mask(array, schema=schema, bbox=lsst_box(box))


def masked_image(exposure: Exposure) -> lsst.images.MaskedImage:
    """Convert an exposure to a masked image.

    Parameters
    ----------
    exposure
        Exposure.

    Returns
    -------
    masked_image
        Masked image that shares image and variance; its sky projection comes from the header's WCS.
    """
    box = lsst_box(exposure.bbox)
    unit = exposure.unit
    return lsst.images.MaskedImage(
        lsst.images.Image(exposure.data, bbox=box, unit=unit),
        mask=lsst_mask(exposure.mask, exposure.bbox),
        variance=lsst.images.Image(
            exposure.variance, bbox=box, unit=None if unit is None else unit**2
        ),
        sky_projection=sky_projection(exposure.header, exposure.bbox),
    )


def sky_projection(
    header: astropy.io.fits.Header, bbox: Box
) -> lsst.images.SkyProjection[lsst.images.GeneralFrame] | None:
    """Sky projection of a header's celestial WCS.

    Parameters
    ----------
    header
        FITS header, for the array whose first pixel is the box's first.
    bbox
        Box of that array.

    Returns
    -------
    projection
        Projection to ICRS, whatever the header's frame, within 1e-3 pixels of the header
        everywhere in the box; None if there are no sky coordinates, or no projection comes as near.
    """
    wcs = celestial_wcs(header)
    if wcs is None:
        return None
    candidates: list[astropy.wcs.WCS] = [wcs]
    # lsst.images takes coordinates of any frame for ICRS; a fit transforms them to it.
    fitted = equivalent_wcs(wcs, bbox.shape)
    if fitted is not None:
        candidates.append(fitted)
    box = lsst_box(bbox)
    for candidate in candidates:
        try:
            projection = lsst.images.SkyProjection.from_fits_wcs(
                candidate,
                lsst.images.GeneralFrame(unit=u.pix),
                pixel_bounds=box,
                x0=bbox.x.start,
                y0=bbox.y.start,
            )
            if disagreement(wcs, projection, box) <= TOLERANCE:
                return projection
        except Exception:
            # AST refuses unknown projections with errors of its own.
            continue
    return None
