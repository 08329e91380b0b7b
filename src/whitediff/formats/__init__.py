"""Files: what they are, reading and writing them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..decorrelation import checked_kernel
from ..errors import ArgumentError, FileFormatError
from ..exposures import foreign
from ..exposures.boxes import Box
from ..exposures.fields import PiecewiseField
from ..exposures.kernels import ConvolutionKernel
from ..exposures.model import Exposure
from ..exposures.psf import KernelPointSpreadFunction, PointSpreadFunction
from ..reading import ReadingOptions, VarianceSource
from . import archive, hotpants, own, piff, plain, psfex, sfft
from . import ccddata as _ccddata
from .difference import Difference, KernelElsewhereError, check_reproduced, kernel_doubt
from .files import opened, split_extension
from .hotpants.read import read_difference as _read_hotpants
from .identify import Identity, identify, missing_planes
from .lsst import afw
from .sfft.read import read_difference as _read_sfft
from .solution import read_solution, solution_cards, solution_extras, write_solution
from .stamps import find_hdu, is_of_region, read_kernel_hdus

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

_LARGEST_PSF, _LARGEST_CUTOUT = 0.25, 128
_LARGEST_KERNEL = 0.5
_LARGEST_FLAT, _LEAST_RISE = 31, 1.3
_LEAST_INSIDE = 0.4
_MOST_NEGATIVE = 0.25
_SMALLEST_PROFILE = 5


def read_exposure(
    path: str | Path,
    *,
    variance: VarianceSource | float | None = None,
    gain: float | None = None,
    read_noise: float | None = None,
    mask: str | None = None,
    mask_bits: str | tuple[int, ...] | None = None,
    saturation: float | None = None,
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
    variance
        For files without a variance plane: a file that holds it, or its value.
    gain, read_noise
        Electrons per count, and electrons, where there is no variance plane.
    mask
        File of the mask, in place of the file's own (of an archive's, whose planes have names,
        besides it); ``mask.fits[DQ]`` names an extension.
    mask_bits
        Which bits of the mask make a pixel bad, such as ``1,4-6``; None: what the names of its
        bits or its instrument say, else all.
    saturation
        Level from which pixels are saturated, image unit; None: what the header says, else the
        value that many of the highest pixels share.
    options
        All that can be said of how it is read; instead of what is above.
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
    ArgumentError
        If an option is out of its range, or is given twice.
    FileFormatError
        If the file cannot be understood.
    DataError
        If its noise has to be measured and cannot be.
    """
    file, extension = split_extension(path)
    options = _united(
        file,
        options,
        variance=variance,
        gain=gain,
        read_noise=read_noise,
        mask=mask,
        mask_bits=mask_bits,
        saturation=saturation,
    )
    with opened(file, checksums=box is None) as hdus:
        identity = identify(hdus)
        is_masked = "VARIANCE" in hdus and "MASK" in hdus
        is_whole = "JSON" in hdus or archive.recognise(hdus) is None
        missing = (
            [] if identity is None or extension is not None else missing_planes(hdus, identity)
        )
    if missing:
        _log.warning(
            "%s: has no %s, as files of its kind have; is it whole?", file, " and no ".join(missing)
        )
    if identity is None:
        raise FileFormatError(f"{file}: has no HDU with an image.")
    if (identity.kind in ("kernel", "psf") and extension is None) or identity.format in (
        "psfex",
        "piff",
    ):
        raise FileFormatError(f"{file}: is no image, but a {identity.kind}: {identity.detail}.")
    reader: Any = _READERS.get(identity.format, plain)
    whole = extension is None and not isinstance(options.variance, VarianceSource)
    if not is_whole and whole:
        raise FileFormatError(
            f"{file}: is an lsst.images archive without its end (JSON); copy or download it again."
        )
    if identity.format in ("whitediff", "lsst.images") and whole and is_masked:
        read = own.read if identity.format == "whitediff" else _archive_reader()
        if options.mask is options.mask_bits is options.saturation is None:
            return read(file, box=box)
        exposure: Exposure = plain.with_options(read(file), options, file)
        return exposure if box is None else exposure.cutout(box)
    exposure = reader.read(
        file,
        extension,
        options=options,
        needs_variance=needs_variance,
    )
    return exposure if box is None else exposure.cutout(box)


def _archive_reader() -> Callable[..., Exposure]:
    """Reader of lsst.images archives; without that library, they are read as plain FITS."""
    try:
        from .archive.read import read
    except ModuleNotFoundError as error:
        _log.info(
            "%s is not installed: archives of lsst.images are read without PSFs and projections of"
            " its own kinds; install whitediff[rubin] for these.",
            error.name,
        )
        return own.read
    return read


def _united(path: Path, options: ReadingOptions | None, **given: Any) -> ReadingOptions:
    """Options from a container, or from arguments of their own."""
    given = {name: value for name, value in given.items() if value is not None}
    if options is not None and given:
        raise ArgumentError(
            f"{path}: {', '.join(given)} is given beside options; give it as one of them."
        )
    try:
        return options or ReadingOptions(**given)
    except ArgumentError as error:
        raise ArgumentError(f"{path}: its {error}") from error


_READERS = {"hotpants": hotpants, "sfft": sfft, "lsst.afw": afw, "ccddata": _ccddata}


def has_variance(path: str | Path) -> bool:
    """Whether a file holds the variance of its image.

    Parameters
    ----------
    path
        File.

    Returns
    -------
    found
        False where it would have to be computed or measured.
    """
    file, extension = split_extension(path)
    with opened(file) as hdus:
        return "variance" in plain.parts(hdus, extension, file)


def read_difference(
    path: str | Path,
    *,
    kernel: str | Path | None = None,
    convolved: Literal["template", "science"] | None = None,
    needs_variance: bool = False,
) -> Difference:
    """Read a difference and the kernel that made it, and bring it to the science image's level.

    Parameters
    ----------
    path
        Difference: of whitediff, HOTPANTS, SFFT, lsst.images, or an image.
    kernel
        File of the kernel, where it is not the difference's: an image or cube, a table of HOTPANTS
        (``-oki``), a solution of SFFT.
    convolved
        Which image was convolved, where the file does not say.
    needs_variance
        If False, a file without a variance plane gets NaN for it.

    Returns
    -------
    difference
        Without kernel or direction where nobody says them.

    Raises
    ------
    FileFormatError
        If a file cannot be understood, or contradicts what is given.
    """
    file, extension = split_extension(path)
    with opened(file) as hdus:
        identity, primary = identify(hdus), hdus[0].header.copy()
    of_kernel = None if kernel is None else _identity_of(kernel)
    if (
        identity is not None
        and (identity.format, identity.kind) == ("hotpants", "difference")
        and (of_kernel is None or of_kernel.format == "hotpants")
        and extension is None
    ):
        found = _read_hotpants(
            file,
            kernel_path=None if kernel is None else split_extension(kernel)[0],
            needs_variance=needs_variance,
        )
        if convolved is not None and {side for _, side in found.directions} != {convolved}:
            raise FileFormatError(
                f"{file}: HOTPANTS says that it convolved"
                f" {', '.join(side for _, side in found.directions)}, not the {convolved} image;"
                " leave out --convolved."
            )
        return found
    if kernel is not None and of_kernel is not None and of_kernel.format == "sfft":
        return _read_sfft(
            file,
            solution_path=split_extension(kernel)[0],
            convolved=convolved,
            needs_variance=needs_variance,
        )
    if identity is not None and identity.format == "sfft" and kernel is None:
        raise KernelElsewhereError(
            f"{file}: is a difference of SFFT, whose kernel is in another file; name the solution"
            " as fourth argument."
        )
    exposure = read_exposure(path, needs_variance=needs_variance)
    if kernel is not None:
        exposure.kernel = read_kernel(kernel, bounds=exposure.bbox)
    said = primary.get("WDCONV")
    if said == "mixed" and convolved is None and primary.get("WDTASK") != "decorrelate":
        raise FileFormatError(
            f"{file}: its regions were convolved in different directions, which only the file that"
            " it was made from says; take that."
        )
    direction = convolved or (said if said in ("template", "science") else None)
    return Difference(
        exposure,
        directions=() if direction is None else _parts(exposure, direction),
        software="whitediff" if "WDTASK" in primary else None,
    )


def _parts(
    exposure: Exposure, direction: Literal["template", "science"]
) -> tuple[tuple[Box, Literal["template", "science"]], ...]:
    """Parts of the frame with kernels of their own, all convolved in one direction."""
    field: Any = next(iter(getattr(exposure.kernel, "spatial", ())), None)
    boxes = [exposure.bbox]
    if isinstance(field, PiecewiseField):
        boxes = [box for box, _ in field.pieces]
    return tuple((box, direction) for box in boxes)


def read_any(path: str | Path, *, kernel: str | Path | None = None) -> Difference:
    """Read a difference with its kernel, or, where there is none to be had, any image.

    Parameters
    ----------
    path, kernel
        As for `read_difference`.

    Returns
    -------
    difference
        Its exposure has a variance plane.

    Raises
    ------
    FileFormatError
        If the file cannot be understood, or the kernel that was named.
    """
    try:
        return read_difference(path, kernel=kernel, needs_variance=True)
    except KernelElsewhereError as error:
        _log.info("%s", error)
        return Difference(read_exposure(path))


def _identity_of(path: str | Path) -> Identity | None:
    with opened(split_extension(path)[0]) as hdus:
        return identify(hdus)


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
        Finite, with a sum other than zero at the middle of the box, no larger than it.

    Raises
    ------
    FileFormatError
        If it is none of these, or not such a kernel.
    """
    file, extension = split_extension(path)
    identity = _identity_of(path) if extension is None else None
    kernel: ConvolutionKernel | PointSpreadFunction
    if identity is not None and identity.format == "hotpants":
        kernel = _hotpants_kernel(file, bounds)
    elif identity is not None and (identity.format, identity.kind) == ("sfft", "kernel"):
        kernel = sfft.read_solution(file, shape=(bounds.y.size, bounds.x.size)).kernel
    elif identity is not None and identity.format in ("psfex", "piff"):
        raise FileFormatError(f"{path}: holds a PSF, not a matching kernel.")
    else:
        kernel = _read_stamp(path, "KERNEL", bounds)
    if isinstance(kernel, PointSpreadFunction):
        raise FileFormatError(f"{path}: holds a PSF, not a matching kernel.")
    check_kernel(kernel, bounds, path)
    if identity is None or (identity.format, identity.kind) == ("plain", "image"):
        _check_is_kernel(path, kernel.at(x=bounds.x.center, y=bounds.y.center), bounds)
    return kernel


def _check_is_kernel(path: str | Path, image: Any, bounds: Box) -> None:
    """Refuse an image of the sky, which has a sum other than zero too."""
    ny, nx = image.shape
    inner = image[ny // 4 : ny - ny // 4, nx // 4 : nx - nx // 4]
    inside = float(np.abs(inner).sum() / np.abs(image).sum())
    spread = min(ny, nx) > _LARGEST_FLAT and inside < _LEAST_RISE * inner.size / image.size
    if spread or ny * nx > _LARGEST_KERNEL * bounds.area:
        raise FileFormatError(
            f"{path}: its image of {ny} x {nx} pixels is no matching kernel, which is smaller than"
            " the image that it was fitted to and largest in its middle. Is it the right"
            " file?"
        )


def _hotpants_kernel(file: Path, bounds: Box) -> ConvolutionKernel:
    with opened(file) as hdus:
        kind = hotpants.recognise(hdus)
    if kind != "difference":
        raise FileFormatError(
            f"{file}: is a {kind} of HOTPANTS; its kernel is read with the difference that it"
            " belongs to."
        )
    solution = hotpants.read_solution(file)
    if solution.box != bounds:
        raise FileFormatError(
            f"{file}: its kernel is for {solution.box}, but the image covers {bounds}."
        )
    return solution.kernel


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
    image = kernel.at(x=bounds.x.center, y=bounds.y.center)
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
        File: an image of the PSF; a cube of basis images with coefficients; a model of PSFEx or
        Piff, ``file[N]`` for one of several detectors; or an lsst.images archive of a PSF or of
        something that has one.
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
    file, extension = split_extension(path)
    identity = _identity_of(path)
    if identity is not None and identity.format in ("psfex", "piff"):
        reader: Any = psfex if identity.format == "psfex" else piff
        return reader.read(file, extension, bounds=bounds)
    psf = _read_stamp(path, "PSF", bounds)
    if isinstance(psf, PointSpreadFunction):
        return psf
    image = psf.at(x=bounds.x.center, y=bounds.y.center)
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
    # Cut-outs may be hardly larger than the PSF.
    small = max(bounds.y.size, bounds.x.size) <= _LARGEST_CUTOUT
    if (
        (ny >= bounds.y.size or nx >= bounds.x.size)
        if small
        else (ny * nx > _LARGEST_PSF * bounds.area)
    ):
        raise FileFormatError(
            f"{path}: has {ny} x {nx} pixels, and the image {bounds.y.size} x {bounds.x.size};"
            f" {wanted}. Is it the right file?"
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
        if hdu is not None:
            _check_only(hdus, hdu, file)
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
    obj = _archived_object(file)
    if hasattr(obj, "mask"):
        obj = getattr(obj, name.lower(), None)
    obj = foreign.adapted(obj)
    if not isinstance(obj, ConvolutionKernel | PointSpreadFunction):
        raise FileFormatError(f"{file}: this lsst.images archive holds no {name.lower()}.")
    return obj


def _archived_object(file: Path) -> Any:
    try:
        from .archive.read import read_object
    except ModuleNotFoundError as error:
        raise FileFormatError(
            f"{file}: is an lsst.images archive; install whitediff[rubin] to read it."
        ) from error
    return read_object(file)


def _check_only(hdus: Any, hdu: Any, file: Path) -> None:
    """Refuse to choose among kernels or PSFs of several places or detectors."""
    same = [other for other in hdus if other.name == hdu.name]
    if len(same) > 1 and not is_of_region(hdu):
        versions = ", ".join(f"{other.name},{other.ver}" for other in same)
        raise FileFormatError(
            f"{file}: holds {len(same)} of them, {versions}; name one, as in"
            f" {file.name}[{hdu.name},{same[-1].ver}]."
        )


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
    own.write(
        exposure,
        Path(path),
        overwrite=overwrite,
        compress=compress,
        provenance=provenance,
        extras=extras,
    )
