"""Reading of exposures from plain FITS files, whose planes are found by name."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, Literal

import astropy.io.fits
import numpy as np
import numpy.typing as npt
import scipy

from ...defects.clipping import find_floor
from ...defects.saturation import bleed_trails, find_plateau, in_stars
from ...errors import ArgumentError, DataError, FileFormatError
from ...exposures.boxes import Box
from ...exposures.masks import (
    UNTRUSTED_MASK_PLANES,
    Mask,
    find_plane,
    flagged,
    make_mask,
    united,
    with_plane,
)
from ...exposures.model import Exposure, Provenance, native_float, parse_unit
from ...exposures.psf import PointSpreadFunction
from ...exposures.sky import celestial_wcs
from ...noise.variance_planes import (
    ABSOLUTE,
    NoiseModel,
    exposure_map_variance,
    first_look,
    noise_variance,
    relative_weight_variance,
    with_left_out_photons,
)
from ...numerics.missing import unmeasured_pixels
from ...numerics.planes import each_block, filled, row_blocks, zeros
from ...numerics.stats import median_of, robust_sigma
from ...numerics.threads import in_threads
from ...reading import ReadingOptions, VarianceKind, VarianceSource
from ..files import Extension, opened, split_extension
from ..headers import (
    first_value,
    observation_header,
    pixel_origin,
    wcs_cards,
    without_lookup_tables,
    without_provenance,
)
from ..planes import ASINH_CARDS, Hdu, asinh_scale, is_plane, linear, native, plane_of
from ..record import decorrelated
from ..stamps import (
    NOISE,
    find_hdu,
    read_background_hdu,
    read_kernel_hdus,
    read_noise_hdus,
    read_psf_hdus,
)
from ..units import PhotonHeader, photon_header
from .mask import mask_planes

__all__ = [
    "compact",
    "image_hdu",
    "image_names",
    "modelled_variance",
    "parts",
    "read",
    "with_options",
]

type Array = npt.NDArray[Any]

_log = logging.getLogger("whitediff.formats")

_MANY_MASKED, _MOST_MASKED = 0.5, 0.95
"""Shares of flagged pixels that few masks of bad pixels exceed, and that none does."""
_STANDING_OUT, _BESIDE, _ENOUGH_BRIGHT = 10, 3, 100
"""Bright pixels of a source are this many sigma above the sky, and a pixel beside them this many;
least number of such pixels to judge a mask by."""
_MOST_SATURATED = 0.3
"""Largest share of pixels above a saturation level; beyond it, the level is wrong."""

_ABSURD, _OWN_LIGHT = 1e3, 5.0
"""A pixel is bad if its variance exceeds the median one by this factor, unless it is this many
sigma bright."""

_IMAGE_NAMES = ("SCI", "IMAGE", "DATA", "SCIENCE", "DIFF", "DIFFERENCE")
_MASK_NAMES = ("MASK", "DQ", "FLAGS", "BPM", "MSK", "DQMASK", "BADPIX")
type _PlaneKind = VarianceKind | Literal["inverse variance"]

_VARIANCE_NAMES: dict[str, _PlaneKind] = {
    "VARIANCE": "variance",
    "VAR": "variance",
    "ERR": "sigma",
    "ERROR": "sigma",
    "SIGMA": "sigma",
    "STD": "sigma",
    "NOISE": "sigma",
    "RMS": "sigma",
    "WEIGHT": "weight",
    "WHT": "weight",
    "IVAR": "inverse variance",
    "INVVAR": "inverse variance",
}
_UNSURE = "RMS"
"""Name that other quantities have too; such a plane is used only if it agrees with the noise."""

_WEIGHTS: tuple[_PlaneKind, ...] = ("weight", "inverse variance")
_OTHER_NAMES = ("PSF", "KERNEL", "BACKGROUND", "COEFFICIENTS", NOISE)
_COMPANIONS = (
    *("CTX", "CON", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT", "AREA"),
    *("D2IMARR", "WCSDVARR", "SAMP", "TIME", "UNCERT", "PSFIMAGE"),
)
"""Images that belong to another image: contexts, parts of the variance, distortions."""

_SATURATION_KEYWORDS = ("SATURATE", "SATLEVEL", "SATURLEV", "SATLVL", "SATURAT")
_TRAIL = 0.01
"""Least height of a bleed trail above the sky, over the height of the saturation level."""

_SHORTEST_HALF = 1.349
"""Width of the shortest interval with half of a Gaussian's values, in standard deviations."""

_ENOUGH_FOR_SIGMA = 100_000
"""Pixels that are sampled to measure a scatter."""
_SAME_TIME = (0.6, 1.4)
"""Range of an exposure map's largest weight over the exposure time; drizzling changes it."""
_EXACT_TIME = 0.02
"""Relative deviation from the exposure time up to which a map of a rate is certain."""
_ADDED_UP = 1e10
"""Largest number of pixels in an image, whose values may be added up."""
_CONSTANT_RECTANGLES = ((15, 15), (3, 63), (63, 3))
_CELL = 32
"""Side of cells, so large that each of these rectangles covers 8 × 8 pixels, a row or a column of
one."""


def image_hdu(hdus: astropy.io.fits.HDUList, extension: Extension, path: Path) -> Hdu:
    """HDU of a file that holds the image.

    Parameters
    ----------
    hdus
        HDUs of the file.
    extension
        Name or number; None: the primary HDU if it has data, else an extension with a usual name,
        else the first image whose name does not mark it as variance, mask, kernel or the like.
    path
        File, for error messages.

    Returns
    -------
    hdu
        HDU with one plane of data.

    Raises
    ------
    FileFormatError
        If there is no such HDU, or its data are not one plane.
    """
    if extension is not None:
        try:
            hdu = hdus[extension]
        except (KeyError, IndexError) as error:
            names = ", ".join(
                f"{h.name},{h.ver}" if h.ver > 1 else h.name or str(i) for i, h in enumerate(hdus)
            )
            raise FileFormatError.of(
                path, f"has no extension {extension!r}; it has: {names}."
            ) from error
    else:
        hdu = hdus[0] if hdus[0].header.get("NAXIS", 0) else find_hdu(hdus, _IMAGE_NAMES)
        if hdu is None:
            others = {*_VARIANCE_NAMES, *_MASK_NAMES, *_OTHER_NAMES, *_COMPANIONS}
            hdu = next(
                (
                    h
                    for h in hdus
                    if h.is_image and h.header.get("NAXIS", 0) and h.name.upper() not in others
                ),
                None,
            )
        if hdu is None:
            raise FileFormatError.of(path, "has no HDU with an image.")
        several = image_names(hdus) if hdu is not hdus[0] else []
        if hdu.name.upper() in _IMAGE_NAMES:
            several = [name for name in several if name.partition(",")[0] == hdu.name]
        if len(several) > 1:
            _log.info(
                "%s: has the images %s; %s is taken. Name another as FILE[%s], or take all with"
                " --hdu all.",
                path,
                ", ".join(several),
                several[0],
                several[1],
            )
    if not hdu.is_image or hdu.data is None:
        raise FileFormatError.of(
            path,
            f"{hdu.name or 'the primary HDU'} holds no image;"
            " name the extension that does, as in file.fits[SCI].",
        )
    plane_of(hdu, path)
    return hdu


def image_names(hdus: astropy.io.fits.HDUList) -> list[str]:
    """Extensions that hold an image in its own right, not a plane that belongs to one.

    Parameters
    ----------
    hdus
        HDUs of the file.

    Returns
    -------
    names
        Names as they stand in brackets: the name, with its version if others share it, or the
        number if there is no name.
    """
    others = {*_VARIANCE_NAMES, *_MASK_NAMES, *_COMPANIONS}
    found = [
        (i, hdu)
        for i, hdu in enumerate(hdus)
        if i
        and hdu.is_image
        and is_plane(hdu.header)
        and hdu.name.upper() not in others
        and not hdu.name.upper().startswith(_OTHER_NAMES)
    ]
    names = [hdu.name for _, hdu in found]
    return [
        str(i)
        if not hdu.name
        else hdu.name
        if names.count(hdu.name) == 1
        else f"{hdu.name},{hdu.ver}"
        for i, hdu in found
    ]


def parts(hdus: astropy.io.fits.HDUList, extension: Extension, path: Path) -> dict[str, Hdu]:
    """HDUs that are read for an image.

    Parameters
    ----------
    hdus, extension, path
        As in `image_hdu`.

    Returns
    -------
    parts
        Role → HDU: ``image``, and ``mask``, ``variance``, ``PSF``, ``kernel`` and ``background``
        if present.
    """
    image = image_hdu(hdus, extension, path)
    owner = None if image is hdus[0] else image
    found = {"image": image}
    for role, names in (
        ("mask", _MASK_NAMES),
        ("variance", (*_VARIANCE_NAMES, "UNCERT")),
        ("PSF", ("PSF", "PSFIMAGE")),
        ("kernel", ("KERNEL",)),
        ("background", ("BACKGROUND",)),
    ):
        hdu = find_hdu(hdus, names, owner)
        if hdu is not None and hdu is not image and hdu.is_image:
            found[role] = hdu
    return found


def roles(hdus: astropy.io.fits.HDUList, extension: Extension, path: Path) -> dict[int, str]:
    """Roles of the HDUs that are read for an image.

    Parameters
    ----------
    hdus, extension, path
        As in `image_hdu`.

    Returns
    -------
    roles
        Index → role, as in `parts`.
    """
    found = parts(hdus, extension, path).items()
    return {i: role for role, hdu in found for i, other in enumerate(hdus) if other is hdu}


def read(
    path: Path,
    extension: Extension = None,
    *,
    options: ReadingOptions | None = None,
    needs_variance: bool = True,
    fill: float | None = None,
) -> Exposure:
    """Read an exposure from a plain FITS file.

    Parameters
    ----------
    path
        File.
    extension
        Extension of the image; None: it is searched for (see `image_hdu`).
    options
        Settings for what the file does not say or says wrongly.
    needs_variance
        If False, a file without a variance plane gets NaN for it.
    fill
        Value that marks pixels without data; they become NaN and NO_DATA.

    Returns
    -------
    exposure
        Exposure, with the mask of a MASK, DQ or similar extension, or of the file that the options
        name (see `mask_planes`), and the PSF, kernel, background and noise covariance of extensions
        with these names.

    Raises
    ------
    FileFormatError
        If a plane cannot be read or does not fit, or the mask flags nearly all pixels.
    ArgumentError
        If an option does not fit the file.
    DataError
        If the noise cannot be measured, or the image is clipped within it.
    """
    options = options or ReadingOptions()
    with opened(path) as hdus:
        file = _OpenFile(path, hdus, image_hdu(hdus, extension, path))
        image = _native_copy(linear(plane_of(file.hdu, path), file.hdu.header))
        headers = file.headers()
        bbox = Box.from_shape(image.shape, start=pixel_origin(file.hdu.header, str(path)))
        said = file.mask(image.shape, options)
        plane = file.noise_plane()
        psf, provenance = file.companions(bbox, headers[1])
        named = file.name

    mask = make_mask({}, image.shape) if said is None else said
    if fill is not None:
        mask = _without_fill(mask, image, fill)
    masked = flagged(mask, UNTRUSTED_MASK_PLANES)
    if said is not None and needs_variance:
        _judge_mask(masked, image, path)
    source = str(path)
    if isinstance(options.variance, VarianceSource):
        plane = _read_variance(options.variance, named)
        source = f"{path} with {options.variance.path}"
    elif plane is not None and plane.is_unsure:
        is_told = options.variance is not None
        plane = plane if not is_told and _is_noise(image, plane.pixels, masked, path) else None
    values = weightless = None
    if plane is not None:
        values, no_data = _told_variance(plane, image, source)
        if no_data.any():
            before = flagged(mask, ["NO_DATA"])
            mask = with_plane(mask, "NO_DATA", before | no_data)
            # Some weight maps are 0 where stars saturate.  Any other pixel without weight may have
            # any value, and must not pass for saturated.
            weightless = no_data & ~in_stars(image, no_data)
    mask = _with_saturation(
        mask,
        image,
        headers,
        path,
        options.saturation,
        plateau=needs_variance,
        unusable=weightless,
        masked=masked,
    )
    if said is None and needs_variance:
        mask = _with_empty(mask, image, path)
    # A difference has neither the floor nor the photons of a sky.
    has_photons = needs_variance and provenance.kernel is None
    unusable = flagged(mask, UNTRUSTED_MASK_PLANES)
    if has_photons:
        _refuse_clipped(image, unusable, path)
    if plane is not None and values is not None:
        values = _scaled_variance(
            image, values, plane.kind, unusable, headers, options, source, has_photons=has_photons
        )
    elif isinstance(options.variance, float | int):
        values = np.full(image.shape, options.variance, dtype=np.float32)
    elif needs_variance:
        values = modelled_variance(image, unusable, *headers, options, path)
    else:
        values = np.full(image.shape, np.nan, dtype=np.float32)

    header, _ = headers
    unit = parse_unit(header.get("BUNIT"))
    if "CTYPE1" in header and celestial_wcs(header) is None:
        _log.info("%s: its WCS cannot be understood and is kept in the header only.", path)
    return Exposure(
        image,
        values,
        mask,
        origin=bbox.start,
        unit=unit,
        psf=psf,
        header=header,
        provenance=provenance,
    )


@dataclasses.dataclass(frozen=True)
class _NoisePlane:
    """Pixels that give the noise of an image, their kind, and whether the kind is doubtful."""

    pixels: Array
    kind: _PlaneKind
    is_unsure: bool = False


@dataclasses.dataclass(frozen=True)
class _OpenFile:
    """An open file, and its HDU with the image."""

    path: Path
    hdus: astropy.io.fits.HDUList
    hdu: Hdu

    @property
    def name(self) -> tuple[str, int]:
        """Name and version of the image's extension."""
        return self.hdu.name.upper(), self.hdu.ver

    def beside(self, *names: str) -> Hdu | None:
        """HDU with one of some names that belongs to the image; None if there is none."""
        found = find_hdu(self.hdus, names, None if self.hdu is self.hdus[0] else self.hdu)
        return None if found is self.hdu else found

    def image_beside(self, name: str) -> Hdu | None:
        """HDU of a name that belongs to the image and holds an image itself, or None."""
        found = self.beside(name)
        return found if found is not None and found.is_image else None

    def headers(self) -> tuple[astropy.io.fits.Header, astropy.io.fits.Header]:
        """Header of the linear image with its WCS, and the primary header, empty if the same."""
        header, tabulated = without_lookup_tables(observation_header(self.hdu.header))
        if tabulated is not None:
            _log.info(
                "%s: the distortions in its tables, of up to %g pixels, are left out of its WCS.",
                self.path,
                tabulated,
            )
        scale = asinh_scale(self.hdu.header)
        if scale is not None:
            for card in ASINH_CARDS:
                del header[card]
            _log.info(
                "%s: is asinh-scaled (BSOFTEN = %g, BOFFSET = %g); its pixels are made linear.",
                self.path,
                *scale,
            )
        primary = astropy.io.fits.Header()
        if self.hdu is not self.hdus[0]:
            primary = without_provenance(observation_header(self.hdus[0].header))
            if "CTYPE1" not in header and celestial_wcs(primary) is not None:
                header.extend(wcs_cards(primary), unique=True)
                _log.info("%s: the WCS of the primary header is used.", self.path)
        return header, primary

    def mask(self, shape: tuple[int, ...], options: ReadingOptions) -> Mask | None:
        """Mask from the file that options name, or from an HDU of this file; None without one."""
        own, primary = self.hdu.header, self.hdus[0].header
        if options.mask is not None:
            planes = _read_mask(options, self.name, shape, self.path, (own, primary))
            return make_mask(planes, shape)
        mask_hdu = self.beside(*_MASK_NAMES)
        if mask_hdu is not None:
            bits, headers = options.mask_bit_numbers, (primary, own)
            planes = mask_planes(mask_hdu, shape, self.path, bits=bits, headers=headers)
            return make_mask(planes, shape)
        if options.mask_bits is not None:
            raise ArgumentError.of(
                self.path,
                f"mask bits {options.mask_bits} are given, but it has no mask; name"
                " the mask's file too.",
            )
        return None

    def noise_plane(self) -> _NoisePlane | None:
        """Variance, standard deviations or weights from an HDU that belongs to the image."""
        hdu = self.beside(*_VARIANCE_NAMES)
        if hdu is None:
            return None
        name = hdu.name.upper()
        pixels = _native_copy(linear(plane_of(hdu, self.path), hdu.header))
        return _NoisePlane(pixels, _VARIANCE_NAMES[name], is_unsure=name == _UNSURE)

    def companions(
        self, bounds: Box, primary: astropy.io.fits.Header
    ) -> tuple[PointSpreadFunction | None, Provenance]:
        """PSF of the image, and its provenance."""
        hdus, path = self.hdus, str(self.path)
        psf = kernel = background = noise = None
        if (hdu := self.image_beside("PSF")) is not None:
            psf = read_psf_hdus(hdus, hdu, bounds=bounds, path=path)
        if (hdu := self.image_beside("KERNEL")) is not None:
            kernel = read_kernel_hdus(hdus, hdu, bounds=bounds, path=path)
        if (hdu := self.beside("BACKGROUND")) is not None:
            background = read_background_hdu(hdu, path=path)
            shape = (bounds.y.size, bounds.x.size)
            if isinstance(background, np.ndarray) and background.shape != shape:
                raise FileFormatError.of(
                    path, f"the image has the shape {shape}, but its BACKGROUND {background.shape}."
                )
        if (hdu := self.image_beside(NOISE)) is not None:
            noise = read_noise_hdus(hdus, hdu, bounds=bounds, path=path)
        return psf, Provenance(
            source=path,
            primary_header=primary,
            kernel=kernel,
            background=background,
            noise=noise,
            decorrelated_by=decorrelated(hdus[0].header),
        )


def _told_variance(plane: _NoisePlane, image: Array, source: str) -> tuple[Array, Array]:
    """Variance from a plane, and the pixels that have no usable value in it."""
    if plane.pixels.shape != image.shape:
        raise FileFormatError(
            f"{source}: the image has the shape {image.shape}, but its variance"
            f" {plane.pixels.shape}."
        )
    values, no_data = _as_variance(plane.pixels, plane.kind)
    no_data |= _is_absurd(values, image, no_data)
    return values, no_data


def _scaled_variance(
    image: Array,
    values: Array,
    kind: _PlaneKind,
    unusable: Array,
    headers: tuple[astropy.io.fits.Header, astropy.io.fits.Header],
    options: ReadingOptions,
    source: str,
    *,
    has_photons: bool,
) -> Array:
    """Variance of a plane, scaled to the pixels' noise and with the photons of sources."""
    found = photon_header(*headers, options)
    if kind in _WEIGHTS:
        values = _of_exposure_map(image, values, unusable, found, source)
    scaled = None
    if kind == "weight" and has_photons:
        scaled = _of_equal_weights(image, values, unusable, headers, options, source)
    if kind == "weight" and scaled is None:
        scaled = _of_relative_weights(
            image, values, unusable, found, source, adds_photons=has_photons
        )
    if scaled is not None:
        return scaled
    return _with_photons(image, values, unusable, found, source) if has_photons else values


def _judge_mask(masked: Array, image: Array, path: Path) -> None:
    """Refuse a mask that flags nearly all pixels, and warn if it flags half, or all sources."""
    # An odd step, so that the sample has even and odd columns.
    step = image.size // _ENOUGH_FOR_SIGMA | 1
    values, bad = image.reshape(-1)[::step], masked.reshape(-1)[::step]
    known = np.isfinite(values)
    values, bad = values[known], bad[known]
    if not bad.any():
        return
    text = f"its mask flags {bad.mean():.1%} of the pixels that have a value as bad. If 1"
    text += " means good there, invert it; if its bits only inform, say which make a pixel"
    text += " bad (--science-mask-bits, --template-mask-bits, --mask-bits)."
    # A constant padding is rightly masked.
    if bad.mean() > _MANY_MASKED and robust_sigma(values[bad]) > 0:
        if bad.mean() > _MOST_MASKED:
            raise FileFormatError.of(path, f"{text}")
        _log.warning("%s: %s", path, text)
        return
    level, sigma = np.median(values), robust_sigma(values)
    bright = values > level + _STANDING_OUT * sigma
    # Bright pixels without a bright neighbour are defects, which a mask rightly flags.
    flat, at = image.reshape(-1), np.arange(0, image.size, step)[known][bright]
    beside = np.minimum(flat[np.maximum(at - 1, 0)], flat[np.minimum(at + 1, image.size - 1)])
    bright[bright] = beside > level + _BESIDE * sigma
    if bright.sum() * step >= _ENOUGH_BRIGHT and bad[bright].mean() > _MOST_MASKED:
        _log.warning(
            "%s: its mask flags %.0f%% of the pixels that stand out of the sky by more than %d"
            " sigma, so that hardly a star is left: is it a map of sources? Say which bits make a"
            " pixel bad (--science-mask-bits, --template-mask-bits, --mask-bits).",
            path,
            100 * bad[bright].mean(),
            _STANDING_OUT,
        )


def _without_fill(mask: Mask, image: Array, fill: float) -> Mask:
    """Mask with NO_DATA where an image has the fill value, which is replaced by NaN."""
    empty = image == image.dtype.type(fill)
    image[empty] = np.nan
    return with_plane(mask, "NO_DATA", empty) if empty.any() else mask


def _with_saturation(
    mask: Mask,
    image: Array,
    headers: tuple[astropy.io.fits.Header, ...],
    path: Path,
    level: float | None = None,
    *,
    plateau: bool = True,
    unusable: Array | None = None,
    masked: Array | None = None,
) -> Mask:
    """Mask with SAT where the image is saturated, by a given level, a card, or a plateau.

    Unusable pixels hold no light of the sky.  Absurd numbers, which stand for missing pixels and
    may be the highest ones, count as unusable.  Masked pixels are left out of the search for a
    plateau.
    """
    said, given = (f"{level:g}" if level is not None else ""), level is not None
    # A given level overrides the plateau.
    plateau = plateau and level is None
    if level is None:
        found = first_value(headers, _SATURATION_KEYWORDS)
        if found is not None and found[1] > 0:
            level = found[1]
            said = f"{found[0]} = {level:g}"
    saturated = zeros(image.shape, bool)
    if unusable is None:
        unusable = zeros(image.shape, bool)
    absurd = _absurd_pixels(image)
    if absurd is not None:
        unusable = unusable | absurd
    if level is not None:
        with np.errstate(invalid="ignore"):
            saturated = (image >= level) & ~unusable
        share = int(saturated.sum()) / max(1, int((~unusable).sum()))
        if share > _MOST_SATURATED and given:
            raise ArgumentError.of(
                path,
                f"{share:.0%} of its pixels are at or above the saturation level that is"
                f" given, {said}; give the level at which stars saturate, in the image's unit.",
            )
        if share > _MOST_SATURATED:
            _log.warning(
                "%s: %.0f%% of its pixels are at or above %s, so the card is of another unit or"
                " wrong, and is not used; give the level that saturates.",
                path,
                100 * share,
                said,
            )
            saturated = zeros(image.shape, bool)
    if saturated.any():
        _log.info(
            "%s: %d pixels at or above %s are taken as saturated.",
            path,
            int(saturated.sum()),
            said,
        )
    elif plateau and not flagged(mask, ["SAT"]).any():
        if masked is not None:
            unusable = unusable | masked
        highest = find_plateau(image, unusable)
        if highest is not None:
            saturated = highest.where
            _log.warning(
                "%s: %d pixels share the highest value, %g, and are taken as saturated%s; give the"
                " saturation level if that is wrong.",
                path,
                highest.pixels,
                highest.level,
                "" if level is None else f", though {said}",
            )
    if not saturated.any():
        return mask
    light = image if absurd is None else np.where(absurd, np.nan, image)
    trails = bleed_trails(light, saturated, least=_TRAIL)
    if trails.any():
        _log.info(
            "%s: %d pixels in trails that bleed from them are taken as saturated, too.",
            path,
            int(trails.sum()),
        )
    return with_plane(mask, find_plane(mask, "SAT") or "SAT", saturated | trails)


def _with_empty(mask: Mask, image: Array, path: Path) -> Mask:
    """Mask with NO_DATA where an image was filled with a constant or an absurd number."""
    largest = _largest(image)
    if largest is None:
        return mask
    constant = _constant_pixels(image, largest)
    if constant is not None:
        constant &= ~flagged(mask, UNTRUSTED_MASK_PLANES)
    if constant is not None and constant.any():
        _log.warning(
            "%s: %d pixels in regions of exactly the same value, such as %g, are taken as NO_DATA;"
            " a mask would say what they are.",
            path,
            np.count_nonzero(constant),
            float(image[constant][0]),
        )
    # Absurd numbers would spoil the measurement of the noise.
    absurd = _absurd_pixels(image)
    empty = constant
    if absurd is not None:
        empty = absurd if constant is None else constant | absurd
    return mask if empty is None or not empty.any() else with_plane(mask, "NO_DATA", empty)


def _largest(image: Array) -> Any:
    """Largest finite value of an image, in the image's type; None if there is none."""

    def work(rows: slice) -> Any:
        part = image[rows]
        largest = part.max(initial=-np.inf)
        if np.isfinite(largest):
            return largest
        finite = part[np.isfinite(part)]
        return finite.max() if finite.size else None

    found = [largest for largest in each_block(work, image.shape) if largest is not None]
    return max(found) if found else None


def _refuse_clipped(image: Array, unusable: Array, path: Path) -> None:
    """Refuse an image that was clipped within its noise, before the noise is measured."""
    floor = find_floor(image, unusable)
    if floor is not None and floor.is_spoilt:
        raise DataError.of(path, f"{floor.text}.")


def _absurd_pixels(image: Array) -> Array | None:
    """Finite pixels beyond 1e11 times the image's scatter; None if there are none."""
    sample = image.ravel()[:: max(1, image.size // _ENOUGH_FOR_SIGMA)]
    sample = np.sort(sample[np.isfinite(sample)])
    if not sample.size:
        return None
    # The shortest half, since a wide border of absurd numbers would shift a quartile.
    half = sample.size // 2
    scatter = float((sample[half:] - sample[: sample.size - half]).min()) / _SHORTEST_HALF
    absurd = unmeasured_pixels(image, scatter or robust_sigma(sample) or None)
    return None if absurd is None else absurd & np.isfinite(image)


def _constant_pixels(image: Array, largest: Any) -> Array | None:
    """Pixels in rectangles of some 256 pixels with exactly the same value; None if there are none.

    Rounded noise of half a count has the same value in two thirds of its pixels, but not in all
    pixels of such a rectangle.  Pixels of the largest value are left out: they are saturated stars.
    """
    # A fast search first, as most images have none: each rectangle covers one of these tiles.
    bands = [slice(start, start + _CELL) for start in range(0, image.shape[0], _CELL)]
    found = in_threads(lambda rows: _tiles(image, rows, largest), bands)
    if sum(count for count, _ in found) < math.prod(_CONSTANT_RECTANGLES[0]):
        return None
    cells = np.stack([tiles for _, tiles in found], axis=1)
    if not cells.any():
        return None
    result = zeros(image.shape, bool)
    for size, holding in zip(_CONSTANT_RECTANGLES, cells, strict=True):
        labels, _ = scipy.ndimage.label(holding, np.ones((3, 3), int))
        for window in scipy.ndimage.find_objects(labels):
            around = tuple(
                slice(max(0, side.start * _CELL - max(size)), side.stop * _CELL + max(size))
                for side in window
            )
            result[around] |= _in_constant(image[around], size)
    for rows in row_blocks(image.shape):
        result[rows] &= image[rows] < largest
    return result


def _same(image: Array) -> Array:
    """Pixels with the same value as the next in y and the next in x; one row and column less."""
    corner = image[:-1, :-1]
    same: Array = (corner == image[1:, :-1]) & (corner == image[:-1, 1:])
    return same


def _tiles(image: Array, rows: slice, largest: Any) -> tuple[int, Array]:
    """Number of pixels of some rows that have their neighbours' value, and cells with many of them.

    The cells are flagged in ``(3, cells)``: 8 × 8 such pixels, 32 along a row, 32 along a column.
    """
    ny, nx = image[rows].shape
    cells = -(-nx // _CELL)
    same = np.zeros((_CELL, cells * _CELL), bool)
    found = _same(image[rows.start : rows.stop + 1])
    count = int(np.count_nonzero(found))
    tiles = np.zeros((len(_CONSTANT_RECTANGLES), cells), bool)
    if count < _CELL:
        return count, tiles
    same[: len(found), : nx - 1] = found
    below = np.zeros(same.shape, bool)
    below[:ny, :nx] = image[rows] < largest
    eights = (same & below).reshape(_CELL, cells, -1, 8).all(axis=3)
    tiles[0] = eights.reshape(-1, 8, cells, _CELL // 8).all(axis=1).any(axis=(0, 2))
    tiles[1] = eights.all(axis=2).any(axis=0)
    tiles[2] = (same & below).all(axis=0).reshape(cells, _CELL).any(axis=1)
    return count, tiles


def _in_constant(image: Array, size: tuple[int, int]) -> Array:
    """Pixels in rectangles of exactly the same value, larger than ``size`` by a pixel each way."""
    plane = _same(image)
    if any(n < m for n, m in zip(plane.shape, size, strict=True)):
        return np.zeros(image.shape, bool)
    for axis, n in enumerate(size):
        plane = _run(np.logical_and, plane, n, axis)
    plane = np.pad(plane, [(n, n) for n in size])
    for axis, n in enumerate(size):
        plane = _run(np.logical_or, plane, n + 1, axis)
    return plane


def _run(combined: np.ufunc, plane: Array, length: int, axis: int) -> Array:
    """Combine each pixel with those behind it, ``length`` in all; ``length - 1`` are lost."""
    # Runs are doubled, which takes fewer steps than adding one pixel after the other.
    have = 1
    while have < length:
        step = min(have, length - have)
        first, last = (
            np.moveaxis(plane, axis, 0)[part] for part in (slice(None, -step), slice(step, None))
        )
        plane = np.moveaxis(combined(first, last), 0, axis)
        have += step
    return plane


def _native_copy(data: Array) -> Array:
    """Copy in native byte order, since the file is closed after reading."""
    return native(data, native_float(data))


def _read_variance(source: VarianceSource, image: tuple[str, int]) -> _NoisePlane:
    path, extension = split_extension(source.path)
    with opened(path) as hdus:
        hdu = _companion(hdus, extension, tuple(_VARIANCE_NAMES), image, path)
        kind = source.kind or _VARIANCE_NAMES.get(hdu.name.upper(), "variance")
        return _NoisePlane(_native_copy(linear(plane_of(hdu, path), hdu.header)), kind)


def _read_mask(
    options: ReadingOptions,
    image: tuple[str, int],
    shape: tuple[int, ...],
    path: Path | str,
    headers: tuple[astropy.io.fits.Header, ...],
) -> dict[str, Array]:
    """Planes of a mask in a file of its own, which the options name."""
    assert options.mask is not None
    file, extension = split_extension(options.mask)
    try:
        with opened(file) as hdus:
            hdu = _companion(hdus, extension, _MASK_NAMES, image, file)
            return mask_planes(
                hdu,
                shape,
                file,
                bits=options.mask_bit_numbers,
                headers=(hdus[0].header, *headers),
            )
    except FileFormatError as error:
        raise FileFormatError.of(path, f"its mask: {error}") from error


def _companion(
    hdus: astropy.io.fits.HDUList,
    extension: Extension,
    names: tuple[str, ...],
    image: tuple[str, int],
    path: Path,
) -> Hdu:
    """HDU of a file that belongs to an image of another file, by its name or its version.

    In a file with a plane for each detector, the plane has the image's name, or a name of its own
    with the image's version.
    """
    if extension is None:
        holding = [h for h in hdus if h.is_image and h.header.get("NAXIS", 0)]
        own = [h for h in holding if h.name.upper() in names]
        alike = [h for h in own if h.ver == image[1]] or own
        same = [h for h in holding if image[0] and (h.name.upper(), h.ver) == image]
        for hdu in (*alike[:1], *same[:1]):
            return image_hdu(hdus, hdus.index(hdu), path)
    return image_hdu(hdus, extension, path)


def with_options(exposure: Exposure, options: ReadingOptions, path: Path | str) -> Exposure:
    """Add a mask and a saturation level from options to an exposure.

    Parameters
    ----------
    exposure
        Exposure, as stored in its file.
    options
        Options, of which mask, mask bits and saturation are used.
    path
        File, for messages.

    Returns
    -------
    exposure
        Exposure with the planes of both masks, and SAT at or above the level.

    Raises
    ------
    ArgumentError
        If mask bits are given without a mask, or the level saturates too many pixels.
    FileFormatError
        If the mask cannot be read or does not fit.
    """
    mask = exposure.mask
    if options.mask is not None:
        planes = _read_mask(options, ("", 1), exposure.shape, path, (exposure.header,))
        # United, not replaced: the exposure's own planes may say more than this mask.
        mask = united(mask, make_mask(planes, exposure.shape))
    elif options.mask_bits is not None:
        raise ArgumentError.of(
            path,
            f"mask bits {options.mask_bits} are given, but its mask has named planes; name"
            " the file of the mask that they are of.",
        )
    if options.saturation is not None:
        mask = _with_saturation(
            mask, exposure.data, (), Path(path), options.saturation, plateau=False
        )
    return exposure if mask is exposure.mask else exposure.replaced(mask=mask)


def _as_variance(plane: Array, kind: _PlaneKind) -> tuple[Array, Array]:
    """Variance, and the pixels without one: value or weight is zero, negative or not finite."""
    empty = filled(plane.shape, bool, lambda rows: ~((plane[rows] > 0) & (plane[rows] < np.inf)))
    if kind not in _WEIGHTS:
        # If no pixel has a variance, the plane is at fault, not the pixels.
        empty &= not empty.all()
        values = plane if kind == "variance" else compact(plane.astype(float) ** 2, plane.dtype)
        return values, empty
    values = plane.astype(np.float64)
    values = np.where(empty, np.inf, 1 / np.where(empty, 1, values))
    return compact(values, plane.dtype), empty


def _is_noise(image: Array, sigma: Array, unusable: Array, path: Path) -> bool:
    """Whether a plane may hold the standard deviations of an image; if not, a warning says why."""
    if sigma.shape != image.shape:
        why = f"has the shape {sigma.shape}, and the image {image.shape}"
    else:
        variance, empty = _as_variance(sigma, "sigma")
        usable = np.isfinite(image) & ~unusable & ~empty
        factor = first_look(image, variance, usable)
        # A frame without noise cannot contradict the plane.
        if not factor > 0 or ABSOLUTE[0] < factor < ABSOLUTE[1]:
            return True
        why = f"squared is not the variance of its pixels: {factor:.3g} times that is measured"
    _log.warning(
        "%s: its extension %s is not used, since it %s; if it tells the noise, name it as"
        " variance:, sigma: or weight:FILE[%s] (--science-variance or --template-variance).",
        path,
        _UNSURE,
        why,
        _UNSURE,
    )
    return False


def _is_absurd(variance: Array, image: Array, unknown: Array) -> Array:
    """Pixels whose variance means "bad": too large to come from the photons of their own light."""

    def is_known(rows: slice) -> Array:
        return ~unknown[rows] & np.isfinite(image[rows]) & (variance[rows] > 0)

    known = filled(image.shape, bool, is_known)
    if not known.any():
        return zeros(unknown.shape, bool)
    usual = median_of(variance, known)
    huge = filled(
        image.shape, bool, lambda rows: ~unknown[rows] & (variance[rows] > _ABSURD * usual)
    )
    if huge.any():
        above = np.abs(image[huge] - median_of(image, known)).astype(np.float64)
        # A variance that overflows is huge.
        with np.errstate(over="ignore", invalid="ignore"):
            huge[huge] = ~(above > _OWN_LIGHT * np.sqrt(variance[huge].astype(np.float64)))
    return huge


def _of_exposure_map(
    image: Array, values: Array, unusable: Array, found: PhotonHeader, source: str
) -> Array:
    """Variance of an image whose weights are exposure times; else the variance of its weights."""
    if found.exposure_time is None:
        return values
    weights = np.where(np.isfinite(values) & ~unusable & (values > 0), 1 / values, 0)
    longest = float(weights.max())
    if not _SAME_TIME[0] < longest / found.exposure_time < _SAME_TIME[1]:
        return values
    is_sure = found.is_rate and abs(longest / found.exposure_time - 1) < _EXACT_TIME
    model = exposure_map_variance(
        image,
        weights,
        unusable,
        gain=found.gain_of_rate,
        gain_of_time=found.is_rate,
        is_sure=is_sure,
    )
    if model is None:
        return values
    return _of_model(model, source)


def _of_model(model: NoiseModel, source: str) -> Array:
    _log.warning("%s: %s.", source, model.description)
    return compact(model.variance, np.float32)


def _of_equal_weights(
    image: Array,
    values: Array,
    unusable: Array,
    headers: tuple[astropy.io.fits.Header, astropy.io.fits.Header],
    options: ReadingOptions,
    source: str,
) -> Array | None:
    """Variance of an image whose weights are all equal or zero; None if they give the noise."""
    known = values[np.isfinite(values) & ~unusable]
    if not known.size or known.min() != known.max():
        return None
    told = float(known[0])
    unmeasured = ~np.isfinite(values) | unusable
    try:
        model = _modelled(image, unmeasured, *headers, options, source)
    except DataError:
        # Without a measured noise, nothing contradicts the weights.
        return None
    if ABSOLUTE[0] < model.background_variance / told < ABSOLUTE[1]:
        return None
    _log.warning(
        "%s: its weights are all %.4g or 0, which tells which pixels were measured, but not how"
        " large their noise is (1/weight is %.3g times the measured variance); without them: %s.",
        source,
        1 / told,
        told / model.background_variance,
        model.warning or model.description,
    )
    return compact(np.where(np.isfinite(values), model.variance, np.inf), np.float32)


def _of_relative_weights(
    image: Array,
    values: Array,
    unusable: Array,
    found: PhotonHeader,
    source: str,
    *,
    adds_photons: bool,
) -> Array | None:
    """Variance of an image whose weights are only relative; None if they are absolute."""
    model = relative_weight_variance(
        image,
        values,
        unusable,
        expected=found.expected,
        alternatives=found.alternatives,
        adds_photons=adds_photons,
    )
    if model is None:
        return None
    return _of_model(model, source)


def _with_photons(
    image: Array, values: Array, unusable: Array, found: PhotonHeader, source: str
) -> Array:
    """Variance with the photons of sources, if the plane was found to leave them out."""
    model = with_left_out_photons(
        image, values, unusable, expected=found.expected, alternatives=found.alternatives
    )
    if model is None:
        return values
    _log.info("%s: %s.", source, model.description)
    return compact(model.variance, values.dtype)


def compact(values: Array, dtype: npt.DTypeLike) -> Array:
    """Values as float32, if that is wanted and they fit into its range.

    Parameters
    ----------
    values
        Values, float64.
    dtype
        Type of the image.

    Returns
    -------
    values
        Float64 if the image is float64, or if float32 would underflow, or overflow when the values
        of an image are added up; else float32.
    """
    if dtype == np.float64:
        return values
    size = np.abs(values[np.isfinite(values) & (values != 0)])
    limits = np.finfo(np.float32)
    if size.size and (size.min() < limits.tiny or size.max() > limits.max / _ADDED_UP):
        return values
    return values.astype(np.float32)


def modelled_variance(
    image: Array,
    unusable: Array,
    header: astropy.io.fits.Header,
    primary: astropy.io.fits.Header,
    options: ReadingOptions,
    path: Path | str,
) -> Array:
    """Variance of an image that comes without a variance plane.

    Parameters
    ----------
    image
        ``(ny, nx)``.
    unusable
        ``(ny, nx)`` boolean: pixels without a measurement.
    header, primary
        Headers that are searched for gain, read noise and the like.
    options
        Options, whose gain, read noise and exposure time take precedence.
    path
        File, for messages.

    Returns
    -------
    variance
        ``(ny, nx)``, image_unit².

    Raises
    ------
    ArgumentError, DataError
        If gain or read noise is invalid, or the noise cannot be measured.
    """
    model = _modelled(image, unusable, header, primary, options, path)
    if model.warning:
        _log.warning("%s: %s.", path, model.warning)
    _log.info("%s: no variance plane; %s.", path, model.description)
    return compact(model.variance, np.float32)


def _modelled(
    image: Array,
    unusable: Array,
    header: astropy.io.fits.Header,
    primary: astropy.io.fits.Header,
    options: ReadingOptions,
    path: Path | str,
) -> NoiseModel:
    """Noise of an image without a variance plane, from its header and pixels."""
    found = photon_header(header, primary, options)
    expected = found.expected
    try:
        return noise_variance(
            image,
            unusable,
            gain=None if expected is None else expected.gain,
            read_noise=found.read_noise,
            trust_model=found.is_trusted,
            meaning="" if expected is None else expected.meaning,
            alternatives=found.alternatives,
            unexplained=found.unexplained,
        )
    except ArgumentError as error:
        raise ArgumentError.of(path, f"{error}") from error
    except DataError as error:
        raise DataError.of(path, f"{error}") from error
