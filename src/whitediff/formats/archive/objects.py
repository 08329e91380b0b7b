"""Exposures as the objects of lsst.images that the Rubin pipelines exchange."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from lsst.images import DifferenceImage, Image, MaskedImage, VisitImage
from lsst.images.psfs import GaussianPointSpreadFunction, PiffWrapper, PointSpreadFunction

from ...errors import ArgumentError, FileFormatError, WhitediffError, one_line
from ...exposures.foreign import ForeignPointSpreadFunction
from ...exposures.model import Exposure
from ..finished import replacing_fits
from ..piff.write import as_piff
from .convert import lsst_box, lsst_kernel, lsst_mask, masked_image
from .read import read_object

__all__ = ["ObjectKind", "as_object", "write_object"]

_log = logging.getLogger("whitediff.formats")

type ObjectKind = Literal["masked-image", "visit-image", "difference-image"]


def as_object(
    exposure: Exposure, kind: ObjectKind, *, like: VisitImage | None = None
) -> MaskedImage:
    """Make an object of lsst.images from an exposure.

    Parameters
    ----------
    exposure
        Exposure.
    kind
        ``masked-image`` has the planes and the sky projection; ``visit-image`` also has the PSF,
        and ``difference-image`` the kernel too.
    like
        Visit image (or difference image) of the same detector.  Information on the observation,
        detector, band, photometric scaling and sky projection are taken from it, and the unit if
        the exposure has none.  Required for all but a masked image.

    Returns
    -------
    obj
        `MaskedImage`, `VisitImage` or `DifferenceImage`; image and variance are shared.

    Raises
    ------
    ArgumentError
        If something that the class demands is missing.
    """
    if kind == "masked-image":
        return masked_image(exposure)
    if kind not in ("visit-image", "difference-image"):
        raise ArgumentError(
            f"kind must be masked-image, visit-image or difference-image; got {kind!r}."
        )
    name = exposure.source or "The exposure"
    if not isinstance(like, VisitImage):
        raise ArgumentError.of(
            name,
            f"a {kind} needs the detector, band and more of a visit image; name one to take"
            " them from (like).",
        )
    unit = exposure.unit or like.unit
    if exposure.psf is None:
        raise ArgumentError.of(name, f"has no PSF, which a {kind} needs.")
    box = lsst_box(exposure.bbox)
    common: dict[str, Any] = {
        "mask": lsst_mask(exposure.mask, exposure.bbox),
        "variance": Image(exposure.variance, bbox=box, unit=unit**2),
        # The exposure's own projection is not in the detector's frame, which these classes demand.
        "sky_projection": like.sky_projection,
        "obs_info": like.obs_info,
        "photometric_scaling": like.photometric_scaling,
        "psf": _known_psf(exposure),
        "detector": like.detector,
        "band": like.band,
    }
    if not like.bbox.contains(box):
        raise ArgumentError.of(
            name,
            f"covers {exposure.bbox}, which the image like which it is to be, with"
            f" {like.bbox}, does not contain.",
        )
    image = Image(exposure.data, bbox=box, unit=unit)
    if kind == "visit-image":
        return VisitImage(image, **common)
    kernel = None if exposure.kernel is None else lsst_kernel(exposure.kernel)
    return DifferenceImage(image, kernel=kernel, **common)


def _known_psf(exposure: Exposure) -> PointSpreadFunction:
    """PSF of an exposure, in a kind that visit and difference images can write."""
    psf = exposure.psf
    own = psf.psf if isinstance(psf, ForeignPointSpreadFunction) else None
    if isinstance(own, PiffWrapper | GaussianPointSpreadFunction):
        return own
    assert psf is not None
    return as_piff(psf, exposure.bbox)


def write_object(
    exposure: Exposure,
    path: Path,
    kind: ObjectKind,
    *,
    like: str | Path | VisitImage | None = None,
    overwrite: bool = False,
) -> None:
    """Write an exposure as an object of lsst.images; the file appears complete or not at all.

    Parameters
    ----------
    exposure
        Exposure.
    path
        Output.
    kind, like
        As in `as_object`; ``like`` may also be a file.
    overwrite
        Whether an existing file may be replaced.

    Raises
    ------
    ArgumentError
        If something that the class demands is missing.
    OutputExistsError, FileFormatError
        If the file cannot be written.

    Notes
    -----
    Visit and difference images write only their own kinds of PSF; one of images becomes a model of
    Piff.
    """
    model: Any = like
    if isinstance(like, str | Path):
        model = read_object(Path(like))
    obj = as_object(exposure, kind, like=model)
    lost = [
        name
        for name, known in (("PSF", "psf"), ("kernel", "kernel"), ("background", "background"))
        if getattr(exposure, known) is not None and getattr(obj, known, None) is None
    ]
    if lost:
        _log.warning("%s: a %s has no place for the %s.", path, kind, " and ".join(lost))
    with replacing_fits(path, overwrite=overwrite) as temporary:
        try:
            obj.write(str(temporary))
        except WhitediffError:
            raise
        except Exception as error:
            raise FileFormatError.of(
                path, f"cannot be written as {kind} ({one_line(error)})."
            ) from error
