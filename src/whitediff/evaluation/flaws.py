"""Flaws that detectors, skies and archives give to simulated images, as arrays.

`ImageOptions` lists the flaws of one image; the functions draw them.  Everything random takes a
generator, from which nothing is drawn without flaws.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..numerics.profiles import FWHM_TO_SIGMA

__all__ = [
    "PLANES",
    "Grid",
    "ImageOptions",
    "bleed",
    "cosmic_rays",
    "de_vaucouleurs",
    "displacement",
    "missing_pixels",
    "ray_pixels",
    "sky_structure",
    "trail",
]

type Array = npt.NDArray[Any]

PLANES = ("BAD", "SAT", "NO_DATA", "CR", "STREAK")
"""Kinds of flawed pixels."""

_DEPTH = 10.0
"""Thickness of the detector in pixels: 150 µm of silicon, pixels of 15 µm."""

_IONISATION = 1200.0
"""Most probable loss of a muon, electrons per pixel of its path: 80 per µm."""

_DIFFUSION = 0.4
"""Sigma, in pixels, of the spread of a track's charge."""

_LONGEST_TRACK = 150.0
"""Pixels after which a track ends: grazing ones would cross the whole frame."""
_RAY_SIGNIFICANCE = 0.5
"""A pixel belongs to a cosmic ray that adds so many standard deviations of the background."""

_TRAIL_EDGE = 0.1
"""A pixel belongs to a trail if it has this share of the brightness of the trail's middle."""

_MODES = 12
"""Waves in a smooth displacement, in each direction."""

_SUBPIXELS = 7
"""Points a side at which a de Vaucouleurs profile is averaged over a pixel."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Pixel grid of an image, relative to the grid on which positions are given.

    Attributes
    ----------
    shift
        (x, y) by which the content moves, pixels.
    rotation
        Degrees by which the content turns about the middle, from x to y.
    scale
        Size of the pixels over the size on the other grid.
    """

    shift: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0 or not math.isfinite(self.scale):
            raise ArgumentError(f"The scale of a grid must be positive; got {self.scale:g}.")

    @property
    def is_same(self) -> bool:
        """Whether both grids are the same."""
        return self == Grid()

    @property
    def matrix(self) -> Array:
        """``(2, 2)`` matrix from an offset (x, y) on the other grid to one on this grid."""
        c, s = math.cos(math.radians(self.rotation)), math.sin(math.radians(self.rotation))
        return np.array([[c, -s], [s, c]]) / self.scale

    def positions(
        self, x: Array, y: Array, *, frame: tuple[int, int], own_frame: tuple[int, int]
    ) -> tuple[Array, Array]:
        """Positions of the other grid on this one.

        Parameters
        ----------
        x, y
            0-based, on the other grid.
        frame, own_frame
            (ny, nx) of the other grid and of this one; without the shift, their middles coincide.

        Returns
        -------
        x, y
            0-based, on this grid.
        """
        if self.is_same and frame == own_frame:
            return x, y
        offsets = np.stack([x - (frame[1] - 1) / 2, y - (frame[0] - 1) / 2])
        moved = self.matrix @ offsets
        return (
            moved[0] + (own_frame[1] - 1) / 2 + self.shift[0],
            moved[1] + (own_frame[0] - 1) / 2 + self.shift[1],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Flaws of one simulated image, and the contents of its file.  By default it has no flaws.

    Attributes
    ----------
    sky
        Level left in the pixels, counts.
    sky_gradient
        Counts by which the sky rises from the left edge to the right one; its photons are noise.
    ripple
        Amplitude of fringes, counts; their photons are noise.
    ripple_period
        Period of the fringes, pixels.
    bad_pixels
        Fraction of the pixels that are bad, independently of each other.
    bad_pixel_kind
        ``nan``; ``flagged`` (10 to 30 sigma off, BAD); ``zero-weight`` (off, of
        infinite variance); ``garbage`` (off, without any mark).
    bad_column_value
        Counts in a bad column; None: 10 sigma more than without the flaw.
    nan_border, nan_hole
        Pixels of NaN along each edge, and side of a square of NaN somewhere.
    cosmic_rays
        Number of tracks.
    trails, trail_brightness, trail_width
        Straight trails across the frame: number, surface brightness of their middle in sigma of
        the background, and FWHM in pixels.
    saturation
        Counts at which a pixel saturates; None: the pair's value.
    bleeding
        Whether charge above saturation spills along the column.
    masked
        Kinds of flawed pixels that the mask marks, of `PLANES`; if empty there is no mask.
    saturate_card
        Whether the header has SATURATE.
    unit
        Unit of the pixels: ``adu``, ``electron``, ``adu/s``, ``electron/s``.
    unit_factor
        Further factor of the pixels; the variance gets its square.  Unless it is 1, BUNIT is left
        out.
    exposure_time
        Seconds; in the header if the unit is a rate, or if not 1.
    gain_card
        GAIN of the header; None: the true one, electrons for each count or electron of the unit
        (not per second: rates have the exposure time); 0: no card.
    noise_plane
        ``variance``, ``weight`` (inverse variance), ``sigma`` or ``none``.
    psf_plane
        Whether the file has the PSF.
    wcs
        Whether the header has a WCS.
    wcs_error
        Grid that the WCS describes, relative to the true one.
    """

    sky: float = 0.0
    sky_gradient: float = 0.0
    ripple: float = 0.0
    ripple_period: float = 60.0
    bad_pixels: float = 0.0
    bad_pixel_kind: Literal["nan", "flagged", "zero-weight", "garbage"] = "nan"
    bad_column_value: float | None = None
    nan_border: int = 0
    nan_hole: int = 0
    cosmic_rays: int = 0
    trails: int = 0
    trail_brightness: float = 5.0
    trail_width: float = 4.0
    saturation: float | None = None
    bleeding: bool = False
    masked: tuple[str, ...] = ("BAD", "SAT", "NO_DATA")
    saturate_card: bool = True
    unit: Literal["adu", "electron", "adu/s", "electron/s"] = "adu"
    unit_factor: float = 1.0
    exposure_time: float = 1.0
    gain_card: float | None = None
    noise_plane: Literal["variance", "weight", "sigma", "none"] = "variance"
    psf_plane: bool = True
    wcs: bool = True
    wcs_error: Grid = dataclasses.field(default_factory=Grid)

    def __post_init__(self) -> None:
        for name in ("ripple_period", "trail_width", "unit_factor", "exposure_time"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{name} must be positive; got {getattr(self, name):g}.")
        for name in ("nan_border", "nan_hole", "cosmic_rays", "trails"):
            if getattr(self, name) < 0:
                raise ArgumentError(f"{name} must not be negative; got {getattr(self, name)}.")
        if not 0 <= self.bad_pixels < 1:
            raise ArgumentError(f"bad_pixels is a fraction below 1; got {self.bad_pixels:g}.")
        if self.saturation is not None and not self.saturation > 0:
            raise ArgumentError(f"saturation must be positive; got {self.saturation:g}.")
        for name, choices in (
            ("bad_pixel_kind", ("nan", "flagged", "zero-weight", "garbage")),
            ("unit", ("adu", "electron", "adu/s", "electron/s")),
            ("noise_plane", ("variance", "weight", "sigma", "none")),
        ):
            if getattr(self, name) not in choices:
                raise ArgumentError(
                    f"{name} is one of {', '.join(choices)}; got {getattr(self, name)!r}."
                )
        unknown = [name for name in self.masked if name not in PLANES]
        if unknown:
            raise ArgumentError(
                f"masked names planes among {', '.join(PLANES)}; got {', '.join(unknown)}."
            )

    def factor(self, gain: float) -> float:
        """Value of a pixel for each count.

        Parameters
        ----------
        gain
            Electrons per count.

        Returns
        -------
        factor
            Positive.
        """
        seconds = self.exposure_time if self.unit.endswith("/s") else 1.0
        return self.count_factor(gain) / seconds

    def count_factor(self, gain: float) -> float:
        """Value of a pixel for each count, before the division by the exposure time.

        Parameters
        ----------
        gain
            Electrons per count.

        Returns
        -------
        factor
            Positive.
        """
        electrons = gain if self.unit.startswith("electron") else 1.0
        return self.unit_factor * electrons


def sky_structure(shape: tuple[int, int], options: ImageOptions, rng: np.random.Generator) -> Array:
    """Gradient and fringes of a sky.

    Parameters
    ----------
    shape
        (ny, nx).
    options
        Flaws of the image.
    rng
        Random numbers, for direction and phase of the fringes.

    Returns
    -------
    structure
        ``(ny, nx)`` counts above the level of the left edge; fringes go both ways.
    """
    ny, nx = shape
    y, x = np.mgrid[:ny, :nx]
    structure = options.sky_gradient * x / (nx - 1)
    if options.ripple:
        angle, phase = rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi)
        along = (math.cos(angle) * x + math.sin(angle) * y) * 2 * math.pi / options.ripple_period
        # Fringes are bent: their wavefronts follow the thickness of the detector.
        bend = 2 * np.sin(2 * math.pi * (y / ny + x / nx) / 2)
        structure = structure + options.ripple * np.sin(along + bend + phase)
    return structure


def cosmic_rays(shape: tuple[int, int], number: int, rng: np.random.Generator) -> Array:
    """Tracks of muons through a detector.

    Parameters
    ----------
    shape
        (ny, nx).
    number
        Number of tracks.
    rng
        Random numbers.

    Returns
    -------
    charge
        ``(ny, nx)`` electrons.

    Notes
    -----
    Directions follow the cosine-squared law about the detector's normal; the length of a track is
    the detector's thickness times the tangent of its angle.  The loss in each quarter of a pixel
    of the track fluctuates like a Moyal variable, and the charge spreads by 0.4 pixels.
    """
    ny, nx = shape
    charge = np.zeros(shape)
    for _ in range(number):
        cosine = (1 - rng.random()) ** (1 / 3)
        length = min(_DEPTH * math.sqrt(1 / cosine**2 - 1), _LONGEST_TRACK)
        steps = max(2, math.ceil(4 * length))
        path = math.hypot(_DEPTH, length)
        angle, x0, y0 = rng.uniform(0, 2 * math.pi), rng.uniform(0, nx), rng.uniform(0, ny)
        # A Moyal variable is minus the logarithm of a chi-square one.
        moyal = -np.log(np.maximum(rng.standard_normal(steps) ** 2, 1e-3))
        loss = _IONISATION * (1 + 0.2 * moyal).clip(0.2) * path / steps
        along = np.linspace(0, length, steps)
        x, y = x0 + along * math.cos(angle), y0 + along * math.sin(angle)
        _spread(charge, x, y, loss)
    return charge


def _spread(charge: Array, x: Array, y: Array, amounts: Array) -> None:
    """Add point charges that diffuse, in place."""
    ny, nx = charge.shape
    column, row = np.floor(x + 0.5).astype(int), np.floor(y + 0.5).astype(int)
    reach = np.arange(-2, 3)
    weight_x = np.exp(-0.5 * ((column[:, None] + reach - x[:, None]) / _DIFFUSION) ** 2)
    weight_y = np.exp(-0.5 * ((row[:, None] + reach - y[:, None]) / _DIFFUSION) ** 2)
    weight_x /= weight_x.sum(axis=1, keepdims=True)
    weight_y /= weight_y.sum(axis=1, keepdims=True)
    parts = amounts[:, None, None] * weight_y[:, :, None] * weight_x[:, None, :]
    rows = np.broadcast_to(row[:, None, None] + reach[:, None], parts.shape)
    columns = np.broadcast_to(column[:, None, None] + reach, parts.shape)
    inside = (rows >= 0) & (rows < ny) & (columns >= 0) & (columns < nx)
    np.add.at(charge, (rows[inside], columns[inside]), parts[inside])


def ray_pixels(charge: Array, sigma: float) -> Array:
    """Pixels that cosmic rays change noticeably.

    Parameters
    ----------
    charge
        ``(ny, nx)`` that cosmic rays add.
    sigma
        Standard deviation of the background, in the same unit.

    Returns
    -------
    pixels
        ``(ny, nx)`` boolean.
    """
    return charge > _RAY_SIGNIFICANCE * sigma


def trail(
    shape: tuple[int, int], width: float, rng: np.random.Generator
) -> tuple[Array, Array, tuple[float, float, float]]:
    """A straight trail across a frame.

    Parameters
    ----------
    shape
        (ny, nx).
    width
        FWHM of its profile, pixels.
    rng
        Random place and direction.

    Returns
    -------
    light
        ``(ny, nx)``, 1 in the middle of the trail.
    pixels
        ``(ny, nx)`` boolean: pixels that belong to it.
    line
        x and y of a point on it, and its angle from x to y in radians.
    """
    ny, nx = shape
    x0, y0 = rng.uniform(0.2, 0.8) * (nx - 1), rng.uniform(0.2, 0.8) * (ny - 1)
    angle = rng.uniform(0, math.pi)
    y, x = np.mgrid[:ny, :nx]
    across = (y - y0) * math.cos(angle) - (x - x0) * math.sin(angle)
    light = np.exp(-0.5 * (across / (width * FWHM_TO_SIGMA)) ** 2)
    return light, light > _TRAIL_EDGE, (x0, y0, angle)


def bleed(counts: Array, full: float) -> Array:
    """Let charge above a level spill along its column, in place.

    Parameters
    ----------
    counts
        ``(ny, nx)``, sky included; changed: no pixel stays above the level, and the excess goes to
        the pixels above and below, or is lost beyond the edge.
    full
        Level at which a pixel saturates.

    Returns
    -------
    saturated
        ``(ny, nx)`` boolean: pixels at the level.
    """
    saturated = counts >= full
    for column in np.flatnonzero(saturated.any(axis=0)):
        strip = counts[:, column]
        excess = np.maximum(strip - full, 0)
        np.minimum(strip, full, out=strip)
        for direction in (1, -1):
            carried = 0.0
            # Half of the excess goes each way.
            rows = range(len(strip)) if direction == 1 else range(len(strip) - 1, -1, -1)
            for row in rows:
                if excess[row] == 0 and carried == 0:
                    continue
                room = full - strip[row]
                taken = min(room, carried)
                strip[row] += taken
                carried += 0.5 * excess[row] - taken
    return counts >= full


def missing_pixels(
    shape: tuple[int, int], options: ImageOptions, rng: np.random.Generator
) -> Array:
    """Border and hole without data.

    Parameters
    ----------
    shape
        (ny, nx).
    options
        Flaws of the image.
    rng
        Random numbers, for the place of the hole.

    Returns
    -------
    missing
        ``(ny, nx)`` boolean.
    """
    ny, nx = shape
    missing = np.zeros(shape, bool)
    border, hole = options.nan_border, options.nan_hole
    if 2 * border >= min(shape) or hole >= min(shape):
        raise ArgumentError(
            f"A border of {border} pixels and a hole of {hole} leave nothing of an image of"
            f" {nx} x {ny}; make them smaller."
        )
    if border:
        missing[:border] = missing[-border:] = True
        missing[:, :border] = missing[:, -border:] = True
    if hole:
        row, column = int(rng.integers(0, ny - hole)), int(rng.integers(0, nx - hole))
        missing[row : row + hole, column : column + hole] = True
    return missing


def displacement(
    x: Array, y: Array, *, rms: float, length: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Smooth random displacements.

    Parameters
    ----------
    x, y
        Positions, pixels.
    rms
        Root mean square of the displacement in each direction, over an infinite plane, pixels.
    length
        Shortest wavelength, pixels; the longest is three times as long.
    rng
        Random numbers, for the waves.

    Returns
    -------
    dx, dy
        Displacement of each position.
    """
    moved = []
    for _ in range(2):
        angle = rng.uniform(0, 2 * math.pi, _MODES)
        wave = 2 * math.pi / (length * rng.uniform(1, 3, _MODES))
        phase = rng.uniform(0, 2 * math.pi, _MODES)
        along = np.multiply.outer(x, np.cos(angle)) + np.multiply.outer(y, np.sin(angle))
        moved.append(rms * math.sqrt(2 / _MODES) * np.sin(wave * along + phase).sum(axis=-1))
    return moved[0], moved[1]


def de_vaucouleurs(
    dx: Array, dy: Array, *, radius: float, axis_ratio: float, angle: float
) -> Array:
    """A de Vaucouleurs profile, averaged over pixels.

    Parameters
    ----------
    dx
        ``(1, nx)`` offsets of pixel centres from the middle.
    dy
        ``(ny, 1)``.
    radius
        Half-light radius, pixels.
    axis_ratio, angle
        Axis ratio and angle of the ellipse; radians from x to y.

    Returns
    -------
    profile
        ``(ny, nx)``, unit sum.
    """
    steps = (np.arange(_SUBPIXELS) - _SUBPIXELS // 2) / _SUBPIXELS
    profile = np.zeros((dy.shape[0], dx.shape[1]))
    for step_y in steps:
        for step_x in steps:
            u, v = dx + step_x, dy + step_y
            along = math.cos(angle) * u + math.sin(angle) * v
            across = (math.cos(angle) * v - math.sin(angle) * u) / axis_ratio
            profile += np.exp(-7.669 * (np.hypot(along, across) / radius) ** 0.25)
    return profile / profile.sum()
