"""The exposure: planes, PSF, kernel, sky coordinates and header that belong together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from .. import astro
from ..errors import ArgumentError
from ..numerics.stats import high_level
from ..numerics.transformation import Correction
from . import foreign
from .boxes import Box
from .covariance import Noise
from .fields import Field
from .kernels import ConvolutionKernel
from .masks import Mask, make_mask
from .pictures import as_html, drawn
from .psf import KernelPointSpreadFunction, PointSpreadFunction
from .sky import celestial_wcs, shifted_header

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Exposure", "Provenance", "fits_single", "precise"]

type Array = npt.NDArray[Any]

_SAMPLED = 300
"""Approximate number of pixels along each axis in a sample of an image's values."""
_LARGEST_SINGLE = 1e12
"""Typical pixel value above which sums of squares may leave the range of single precision."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin and processing of an exposure.

    Attributes
    ----------
    source
        Origin, such as a file's name; error messages name it.
    primary_header
        Header of the file as a whole, if it differs from the image's.
    kernel
        Matching kernel that the image was made with, if it is a difference.
    background
        Background that was subtracted, image_unit, if known: a field or ``(ny, nx)``.
    noise
        Covariance of the noise between pixels, if known, for example after resampling:
        `NoiseCovariance`, or a function of the pixel coordinates x and y that
        returns one (`whitediff.exposures.covariance.NoiseField`).
    is_score
        The exposure is a detection score of whitediff, on which sources are found but not
        measured.
    decorrelated_by
        Part of whitediff that decorrelated the noise, such as ``subtract``; None for none.
    registration
        For a template that was resampled onto other pixels: correction of its WCS, measured on
        stars; None for none.
    resampling
        Method that made the pixels, if the exposure was resampled: a method of
        `whitediff.alignment.resampling.ResamplingOptions`.
    """

    source: str | None = None
    primary_header: astro.fits.Header | None = None
    kernel: ConvolutionKernel | None = None
    background: Field | Array | None = None
    noise: Noise = None
    is_score: bool = False
    decorrelated_by: str | None = None
    registration: Correction | None = None
    resampling: Literal["interpolating", "adaptive"] | None = None


class Exposure:
    """An image with its variance, mask, PSF, header and provenance.

    Parameters
    ----------
    data
        ``(ny, nx)`` pixels, float32 or float64.
    variance
        ``(ny, nx)``, unit².
    mask
        Mask of the same shape.
    origin
        Pixel coordinates (y, x) of the first pixel.
    unit
        Unit of the pixels, if known.
    psf
        Point-spread function, if known.
    header
        FITS header of the image, its WCS included; kept verbatim.
    provenance
        Origin and processing; each of its fields is an attribute of the exposure, too, and can be
        set there.

    Raises
    ------
    ArgumentError
        If the planes are not 2-D and of the same shape.
    """

    def __init__(
        self,
        data: Array,
        variance: Array,
        mask: Mask,
        *,
        origin: tuple[int, int] = (0, 0),
        unit: astro.units.UnitBase | None = None,
        psf: PointSpreadFunction | None = None,
        header: astro.fits.Header | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        if data.ndim != 2:
            raise ArgumentError(f"An image must be 2-D; got the shape {data.shape}.")
        if not isinstance(mask, Mask):
            raise ArgumentError(
                f"A mask must be a Mask of named planes; got {type(mask).__name__}."
                " Exposure.from_arrays takes arrays by name."
            )
        for name, plane in (("variance", variance), ("mask", mask)):
            if plane.shape != data.shape:
                raise ArgumentError(
                    f"The image has the shape {data.shape}, but its {name} {plane.shape}."
                )
        self.data = data
        self.variance = variance
        self.mask = mask
        self._bbox = Box.from_shape(data.shape, origin)
        self.unit = unit
        self.psf = foreign.adapted(psf)
        self.header = astro.fits.Header() if header is None else header
        made = provenance or Provenance()
        self.source = made.source
        self.primary_header = (
            astro.fits.Header() if made.primary_header is None else made.primary_header
        )
        self.kernel = foreign.adapted(made.kernel)
        self.background = made.background
        self.noise = made.noise
        self.is_score = made.is_score
        self.decorrelated_by = made.decorrelated_by
        self.registration = made.registration
        self.resampling = made.resampling

    @classmethod
    def from_arrays(
        cls,
        image: Array,
        *,
        variance: Array | float,
        mask: Mapping[str, Array] | None = None,
        psf: PointSpreadFunction | Array | None = None,
        kernel: ConvolutionKernel | None = None,
        origin: tuple[int, int] = (0, 0),
        header: astro.fits.Header | None = None,
        unit: astro.units.UnitBase | None = None,
    ) -> Exposure:
        """Make an exposure from plain arrays.

        Parameters
        ----------
        image
            ``(ny, nx)``; integers become float32, or float64 if they have 32 bits or more.  The
            masked pixels of a masked array are BAD.
        variance
            ``(ny, nx)``, or one number for all pixels; image_unit².
        mask
            Name of a mask plane → ``(ny, nx)`` boolean.
        psf
            PSF, or an image of it ``(py, px)`` centred on ``[py//2, px//2]``.
        kernel
            Matching kernel, for a difference.
        origin
            Pixel coordinates (y, x) of the first pixel.
        header
            FITS header; its celestial WCS becomes the exposure's.
        unit
            Unit of the pixels; the header's BUNIT if not given.

        Returns
        -------
        exposure
            Exposure; arrays are not copied if their type allows.

        Raises
        ------
        ArgumentError
            If the image is not 2-D, or shapes differ, or a plane holds no real numbers.
        """
        planes_of_mask = _named_planes(mask)
        if np.ma.isMaskedArray(image):
            bad = np.ma.getmaskarray(image)
            planes_of_mask["BAD"] = bad | planes_of_mask.get("BAD", False)
        image, variance = np.asarray(image), np.asarray(variance)
        for name, plane in (("image", image), ("variance", variance)):
            if plane.dtype.kind not in "fiub":
                raise ArgumentError(f"The {name} must hold real numbers; got {plane.dtype}.")
        if image.ndim != 2:
            raise ArgumentError(f"An image must be 2-D; got the shape {image.shape}.")
        image = as_native_float(image)
        if variance.ndim == 0:
            # A variance is a square, so it may overflow the type that holds the image.
            dtype = image.dtype if fits_single(float(variance)) else np.dtype(np.float64)
            variance = np.full(image.shape, variance, dtype=dtype)
        planes = {"variance": variance} | planes_of_mask
        for name, plane in planes.items():
            if plane.shape != image.shape:
                raise ArgumentError(
                    f"The image has the shape {image.shape}, but its {name} {plane.shape}."
                )
        if header is not None and unit is None:
            unit = parse_unit(header.get("BUNIT"))
        psf = foreign.adapted(psf)
        if psf is not None and not isinstance(psf, PointSpreadFunction):
            psf = KernelPointSpreadFunction.from_image(psf, Box.from_shape(image.shape, origin))
        return cls(
            image,
            as_native_float(variance),
            make_mask(planes_of_mask, image.shape),
            origin=origin,
            unit=unit,
            psf=psf,
            header=header,
            provenance=Provenance(kernel=kernel),
        )

    @classmethod
    def from_object(cls, obj: object) -> Exposure:
        """Make an exposure from any object with ``image``, ``mask`` and ``variance``.

        Parameters
        ----------
        obj
            An `Exposure`, or an object of lsst.images such as MaskedImage, VisitImage or
            DifferenceImage; its ``psf`` and ``kernel`` are used if it has them.

        Returns
        -------
        exposure
            Exposure; image and variance are not copied if their types allow.

        Raises
        ------
        ArgumentError
            If the object lacks a plane.
        """
        if isinstance(obj, Exposure):
            return obj
        parts = foreign.parts_of(obj)
        return cls(
            as_native_float(parts.image),
            as_native_float(parts.variance),
            parts.mask,
            origin=parts.box.start,
            unit=parts.unit,
            psf=parts.psf,
            header=parts.header,
            provenance=Provenance(kernel=parts.kernel),
        )

    def replaced(
        self,
        *,
        data: Array | None = None,
        variance: Array | None = None,
        mask: Mask | None = None,
    ) -> Exposure:
        """Exposure with other planes; everything else is shared with this one.

        Parameters
        ----------
        data, variance
            ``(ny, nx)`` new plane; None to keep this one's.
        mask
            New mask; None to keep this one's.

        Returns
        -------
        exposure
            New exposure.
        """
        return Exposure(
            self.data if data is None else data,
            self.variance if variance is None else variance,
            self.mask if mask is None else mask,
            origin=self.origin,
            unit=self.unit,
            psf=self.psf,
            header=self.header,
            provenance=self.provenance,
        )

    def copy(self) -> Exposure:
        """Exposure with copies of the planes and headers."""
        result = self.replaced(
            data=self.data.copy(), variance=self.variance.copy(), mask=self.mask.copy()
        )
        result.header, result.primary_header = self.header.copy(), self.primary_header.copy()
        return result

    def cutout(self, box: Box) -> Exposure:
        """Part of the exposure, its pixels' coordinates unchanged.

        Parameters
        ----------
        box
            Pixels to keep; inside `bbox`.

        Returns
        -------
        exposure
            Part of the exposure.  Planes, and a background that is an array, are views of this
            exposure's.  PSF, kernel and a background that is a field are shared.  The header's
            WCS is shifted.

        Raises
        ------
        ArgumentError
            If the box is not inside `bbox`.
        """
        if not self.bbox.contains(box):
            raise ArgumentError.of(
                self.source or "The exposure", f"its box {self.bbox} does not contain {box}."
            )
        inside = self.bbox.slices_of(box)
        background = self.background
        if isinstance(background, np.ndarray):
            background = background[inside]
        return Exposure(
            self.data[inside],
            self.variance[inside],
            self.mask[inside],
            origin=box.start,
            unit=self.unit,
            psf=self.psf,
            header=shifted_header(self.header, dy=inside[0].start, dx=inside[1].start),
            provenance=dataclasses.replace(
                self.provenance,
                background=background,
                primary_header=self.primary_header.copy(),
            ),
        )

    @property
    def provenance(self) -> Provenance:
        """Origin and processing of the exposure."""
        return Provenance(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Provenance)}
        )

    @property
    def bbox(self) -> Box:
        """Box of the planes, in pixel coordinates."""
        return self._bbox

    @property
    def origin(self) -> tuple[int, int]:
        """Pixel coordinates (y, x) of the first pixel."""
        return self._bbox.start

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) of the planes."""
        return (self.bbox.y.size, self.bbox.x.size)

    @property
    def wcs(self) -> astro.wcs.WCS | None:
        """World coordinates of the pixel *array*: its first pixel is (0, 0)."""
        return celestial_wcs(self.header)

    def __getitem__(self, indices: tuple[slice, slice]) -> Exposure:
        """Part of the exposure, ``exposure[y0:y1, x0:x1]``, by indices of its arrays.

        Parameters
        ----------
        indices
            Rows and columns: slices without steps.

        Returns
        -------
        exposure
            Part, as from `cutout`: origin, WCS and PSF follow.

        Raises
        ------
        ArgumentError
            If the indices are something else, or hold no pixel.
        """
        whole = isinstance(indices, tuple) and len(indices) == 2
        if not (whole and all(isinstance(i, slice) and i.step in (None, 1) for i in indices)):
            raise ArgumentError(
                f"A part of an exposure is exposure[y0:y1, x0:x1]; got {indices!r}."
            )
        if any(
            not isinstance(end, int | np.integer)
            for each in indices
            for end in (each.start, each.stop)
            if end is not None
        ):
            raise ArgumentError(f"Indices of an exposure are whole numbers; got {indices!r}.")
        part = self.bbox.part(*indices)
        if min(part.shape) < 1:
            raise ArgumentError(f"{indices!r} holds no pixel of {self.bbox}.")
        return self.cutout(part)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Pixels as an array, for functions that take arrays."""
        return np.array(self.data, dtype=dtype, copy=copy)

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the pixels.

        Parameters
        ----------
        axes
            Axes of matplotlib to draw in; a new figure if not given.

        Returns
        -------
        axes
            Axes, in pixel coordinates.

        Raises
        ------
        ArgumentError
            If matplotlib is not installed.
        """
        return drawn(self, axes)

    def _repr_html_(self) -> str:
        return as_html(self)

    def __repr__(self) -> str:
        ny, nx = self.shape
        psf = "no PSF" if self.psf is None else type(self.psf).__name__
        return (
            f"Exposure({ny} x {nx} {self.data.dtype}, origin={self.origin},"
            f" mask planes {', '.join(self.mask.names) or 'none'}, {psf})"
        )


def _named_planes(mask: Mapping[str, Array] | None) -> dict[str, Array]:
    """Mask planes by name."""
    if mask is None:
        return {}
    if not isinstance(mask, Mapping):
        raise ArgumentError(
            f"Mask planes are given by name, such as {{'BAD': mask}}; got {type(mask).__name__}."
        )
    return {name: np.asarray(plane, dtype=bool) for name, plane in mask.items()}


def precise(science: Exposure, template: Exposure) -> tuple[Exposure, Exposure]:
    """Exposures whose images have the precision that a subtraction needs.

    Parameters
    ----------
    science, template
        Exposures; not changed.

    Returns
    -------
    science, template
        Exposures with images in double precision, if either lies on a `stats.high_level`, where
        each rounding by a filter would lose part of the noise.  Else the given ones.
    """
    pair = science, template
    if not any(high_level(each.data) for each in pair):
        return pair
    one, other = (each.replaced(data=each.data.astype(np.float64, copy=False)) for each in pair)
    return one, other


def fits_single(*values: float) -> bool:
    """Whether numbers can be stored in single precision, with all of its digits.

    Parameters
    ----------
    *values
        Numbers; 0 and numbers that are not finite fit.

    Returns
    -------
    fits
        False if a number would overflow, or lose digits below 1.2e-38.
    """
    limits = np.finfo(np.float32)
    smallest, largest = float(limits.tiny), float(limits.max)
    return all(
        value == 0 or not math.isfinite(value) or smallest <= abs(value) <= largest
        for value in values
    )


def as_native_float(array: Array) -> Array:
    """Convert an array to native byte order and a floating-point type that holds its values.

    Parameters
    ----------
    array
        Any numeric array.

    Returns
    -------
    array
        Array of the type from `native_float`; not copied if it has that type already.
    """
    return array.astype(native_float(array), copy=False)


def native_float(array: Array) -> np.dtype[np.floating]:
    """Floating-point type in native byte order that holds an array's values.

    Parameters
    ----------
    array
        Any numeric array.

    Returns
    -------
    dtype
        float32 and float64 stay; integers of up to 16 bits become float32, wider ones float64.
        float32 becomes float64 if typical values are so large that sums of squares may overflow.
    """
    dtype = array.dtype
    if dtype.kind != "f":
        return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)
    if dtype.itemsize == 4 and array.size:
        sample = np.abs(array[tuple(slice(None, None, 1 + n // _SAMPLED) for n in array.shape)])
        sample = sample[np.isfinite(sample)]
        if sample.size and np.percentile(sample, 90) > _LARGEST_SINGLE:
            return np.dtype(np.float64)
    return np.dtype(np.float32 if dtype.itemsize <= 4 else np.float64)


def parse_unit(text: str | None) -> astro.units.UnitBase | None:
    """Unit of a BUNIT card.

    Parameters
    ----------
    text
        Value of the card.

    Returns
    -------
    unit
        Unit; None if the card holds none, or none that astropy knows.
    """
    if not isinstance(text, str) or not text:
        return None
    # Headers often spell units in capitals, such as ADU.
    for spelling in (text, text.lower()):
        try:
            return astro.units.Unit(spelling)
        except (ValueError, TypeError):
            continue
    return None
