"""Reading, recognising and writing files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..direction import Direction
from ..errors import FileFormatError
from ..exposures.boxes import Box
from ..exposures.fields import PiecewiseField
from ..exposures.kernels import ConvolutionKernel
from ..exposures.model import Exposure
from ..exposures.psf import KernelPointSpreadFunction, PointSpreadFunction
from ..reading import ReadingOptions, VarianceSource
from . import own, plain
from .checks import check_is_kernel, check_kernel, check_psf
from .difference import (
    OWN_SOFTWARE,
    Difference,
    KernelElsewhereError,
    check_reproduced,
    kernel_doubt,
)
from .files import opened, split_extension
from .format import Identity
from .registry import format_of, identify, identity_of
from .solution import read_solution, solution_cards, solution_extras, write_solution
from .stamps import find_hdu, is_of_region, read_kernel_hdus

if TYPE_CHECKING:
    from .own.write import CardValue, Extra

__all__ = [
    "Difference",
    "Identity",
    "ReadingOptions",
    "VarianceSource",
    "check_kernel",
    "check_reproduced",
    "has_variance",
    "identify",
    "kernel_doubt",
    "read_any",
    "read_difference",
    "read_exposure",
    "read_kernel",
    "read_psf",
    "read_solution",
    "solution_cards",
    "solution_extras",
    "write_exposure",
    "write_solution",
]

_log = logging.getLogger("whitediff.formats")


def read_exposure(
    path: str | Path,
    *,
    options: ReadingOptions | None = None,
    needs_variance: bool = True,
    box: Box | None = None,
) -> Exposure:
    """Read an exposure from a file of any format that docs/formats.md lists.

    Parameters
    ----------
    path
        File; ``file.fits[SCI]`` names the extension of a plain file's image.  It may be an address
        that fsspec understands, such as ``https://…`` or ``s3://…``.
    options
        Settings for what the file does not say or says wrongly.  A given mask replaces the file's
        own, but is added to the mask of an archive, whose planes have names.
    needs_variance
        If False, a plain file without a variance plane gets NaN for it.
    box
        Pixels to read, in pixel coordinates; None for all.

    Returns
    -------
    exposure
        Exposure with planes, PSF, kernel, WCS and header, as far as the file has them.

    Raises
    ------
    ArgumentError
        If an option does not fit the file.
    FileFormatError
        If the file cannot be understood.
    DataError
        If the noise has to be measured and cannot be.
    """
    file, extension = split_extension(path)
    options = options or ReadingOptions()
    with opened(file, checksums=box is None) as hdus:
        identity = identify(hdus)
        missing = (
            []
            if identity is None or extension is not None
            else format_of(identity).missing_planes(hdus, identity)
        )
    if missing:
        _log.warning(
            "%s: has no %s, as files of its kind have; is it whole?", file, " and no ".join(missing)
        )
    if identity is None:
        raise FileFormatError.of(file, "has no HDU with an image.")
    read = format_of(identity).read
    if read is None or (identity.kind in ("kernel", "psf") and extension is None):
        raise FileFormatError.of(file, f"is no image, but a {identity.kind}: {identity.detail}.")
    exposure = read(file, extension, options=options, needs_variance=needs_variance, box=box)
    return exposure if box is None or exposure.bbox == box else exposure.cutout(box)


def has_variance(path: str | Path) -> bool:
    """Whether a file holds the variance of its image.

    Parameters
    ----------
    path
        File.

    Returns
    -------
    found
        False if the variance would have to be computed or measured.
    """
    file, extension = split_extension(path)
    with opened(file) as hdus:
        return "variance" in plain.parts(hdus, extension, file)


def read_difference(
    path: str | Path,
    *,
    kernel: str | Path | None = None,
    convolved: Direction | None = None,
    needs_variance: bool = False,
) -> Difference:
    """Read a difference and the kernel that made it, and bring it to the science image's level.

    Parameters
    ----------
    path
        Difference made by whitediff, HOTPANTS, SFFT or lsst.images, or any image.
    kernel
        File of the kernel, if the difference does not hold it: an image or cube, a table of
        HOTPANTS (``-oki``), or a solution of SFFT.
    convolved
        Which image was convolved, if the file does not say.
    needs_variance
        If False, a file without a variance plane gets NaN for it.

    Returns
    -------
    difference
        Kernel and direction are missing if neither file nor arguments give them.

    Raises
    ------
    FileFormatError
        If a file cannot be understood, or contradicts the arguments.
    """
    file, extension = split_extension(path)
    with opened(file) as hdus:
        identity, primary = identify(hdus), hdus[0].header.copy()
    of_kernel = None if kernel is None else identity_of(kernel)
    known = [format_of(one) for one in (identity, of_kernel) if one is not None]
    for each in dict.fromkeys(known):
        found = each.read_difference(
            file,
            extension,
            identity=identity,
            kernel=None if kernel is None else split_extension(kernel)[0],
            of_kernel=of_kernel,
            convolved=convolved,
            needs_variance=needs_variance,
        )
        if found is not None:
            return found
    exposure = read_exposure(path, needs_variance=needs_variance)
    if kernel is not None:
        exposure.kernel = read_kernel(kernel, bounds=exposure.bbox)
    said = primary.get("WDCONV")
    if said == "mixed" and convolved is None and primary.get("WDTASK") != "decorrelate":
        raise FileFormatError.of(
            file,
            "its regions were convolved in different directions, which only the file that"
            " it was made from says; take that.",
        )
    direction = convolved or (said if said in ("template", "science") else None)
    return Difference(
        exposure,
        directions=() if direction is None else _parts(exposure, direction),
        software=OWN_SOFTWARE if "WDTASK" in primary else None,
    )


def _parts(exposure: Exposure, direction: Direction) -> tuple[tuple[Box, Direction], ...]:
    """Each part of the frame that has its own kernel, with the one direction of them all."""
    field: Any = next(iter(getattr(exposure.kernel, "fields", ())), None)
    boxes = [exposure.bbox]
    if isinstance(field, PiecewiseField):
        boxes = [box for box, _ in field.pieces]
    return tuple((box, direction) for box in boxes)


def read_any(path: str | Path, *, kernel: str | Path | None = None) -> Difference:
    """Read a difference with its kernel, or any image where no kernel can be found.

    Parameters
    ----------
    path, kernel
        As in `read_difference`.

    Returns
    -------
    difference
        Difference, whose exposure has a variance plane.

    Raises
    ------
    FileFormatError
        If the file, or the kernel that was named, cannot be understood.
    """
    try:
        return read_difference(path, kernel=kernel, needs_variance=True)
    except KernelElsewhereError as error:
        _log.info("%s", error)
        return Difference(read_exposure(path))


def read_kernel(path: str | Path, *, bounds: Box) -> ConvolutionKernel:
    """Read a matching kernel.

    Parameters
    ----------
    path
        File: the KERNEL of a difference that whitediff wrote; an image; a cube of basis
        images with coefficients; a difference of HOTPANTS; a solution of SFFT; or an lsst.images
        archive of a kernel.
    bounds
        Box of the exposures.

    Returns
    -------
    kernel
        Kernel; at the middle of the box it is finite, its sum is not zero, and it fits the box.

    Raises
    ------
    FileFormatError
        If the file is none of these, or its kernel fails these checks.
    """
    file, extension = split_extension(path)
    identity = identity_of(path) if extension is None else None
    kernel: ConvolutionKernel | PointSpreadFunction | None = None
    says_little = True
    if identity is not None:
        form = format_of(identity)
        if form.read is None:
            raise FileFormatError.of(path, "holds a PSF, not a matching kernel.")
        kernel = form.read_kernel(file, identity, bounds=bounds)
        says_little = form.says_little and identity.kind == "image"
    if kernel is None:
        kernel = _read_stamp(path, "KERNEL", bounds)
    if isinstance(kernel, PointSpreadFunction):
        raise FileFormatError.of(path, "holds a PSF, not a matching kernel.")
    check_kernel(kernel, bounds, path)
    if says_little:
        check_is_kernel(path, kernel.at(x=bounds.x.center, y=bounds.y.center), bounds)
    return kernel


def read_psf(path: str | Path, *, bounds: Box) -> PointSpreadFunction:
    """Read a PSF.

    Parameters
    ----------
    path
        File: an image of the PSF; a cube of basis images with coefficients; a model of PSFEx or
        Piff, ``file[N]`` for one of several detectors; or an lsst.images archive that is or has
        a PSF.
    bounds
        Box of the exposure.

    Returns
    -------
    psf
        PSF.

    Raises
    ------
    FileFormatError
        If the file is none of these, or the PSF is not finite, has no positive sum, is no star in
        the middle of its image, or is larger than a quarter of the box.
    """
    file, extension = split_extension(path)
    identity = identity_of(path)
    if identity is not None:
        model = format_of(identity).read_psf(file, extension, bounds=bounds)
        if model is not None:
            return model
    psf = _read_stamp(path, "PSF", bounds)
    if isinstance(psf, PointSpreadFunction):
        return psf
    check_psf(path, psf.at(x=bounds.x.center, y=bounds.y.center), bounds)
    return KernelPointSpreadFunction(psf)  # type: ignore[arg-type]


def _read_stamp(
    path: str | Path, name: str, bounds: Box
) -> ConvolutionKernel | PointSpreadFunction:
    file, extension = split_extension(path)
    with opened(file) as hdus:
        hdu = find_hdu(hdus, (name,)) if extension is None else None
        if hdu is not None:
            _check_only(hdus, hdu, file)
        else:
            identity = identify(hdus)
            if identity is not None:
                stored = format_of(identity).read_stored(file, name.lower())
                if stored is not None:
                    return stored
            candidates = [h for h in hdus if h.is_image and h.header.get("NAXIS", 0)] or [
                h for h in hdus if h.header.get("NAXIS", 0)
            ]
            if extension is not None:
                try:
                    candidates = [hdus[extension]]
                except (KeyError, IndexError) as error:
                    raise FileFormatError.of(file, f"has no extension {extension!r}.") from error
            if not candidates or candidates[0].data is None:
                raise FileFormatError.of(file, f"has no image to take as {name.lower()}.")
            hdu = candidates[0]
        if not hdu.is_image:
            raise FileFormatError.of(
                file, f"{hdu.name or 'the HDU'} is a table; a {name.lower()} must be an image."
            )
        return read_kernel_hdus(hdus, hdu, bounds=bounds, path=str(file))


def _check_only(hdus: Any, hdu: Any, file: Path) -> None:
    """Refuse to choose one of several kernels or PSFs, of different places or detectors."""
    same = [other for other in hdus if other.name == hdu.name]
    if len(same) > 1 and not is_of_region(hdu):
        versions = ", ".join(f"{other.name},{other.ver}" for other in same)
        raise FileFormatError.of(
            file,
            f"holds {len(same)} of them, {versions}; name one, as in"
            f" {file.name}[{hdu.name},{same[-1].ver}].",
        )


def write_exposure(
    exposure: Exposure,
    path: str | Path,
    *,
    overwrite: bool = False,
    compress: bool = False,
    provenance: Mapping[str, tuple[CardValue, str]] | None = None,
    extras: Mapping[str, Extra] | None = None,
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
        Extension name → further image, `KernelPointSpreadFunction`, noise covariance or
        `astropy.table.Table`.

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
    own.write(
        exposure,
        Path(path),
        overwrite=overwrite,
        compress=compress,
        provenance=provenance,
        extras=extras,
    )
