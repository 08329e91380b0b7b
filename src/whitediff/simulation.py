"""Science and template images with known truth, as arrays.

A `PsfModel` is evaluated at any position; stars are its samples, galaxies are
exponential discs convolved with it.  Images are sky-subtracted; their noise is that
of sky, sources and read-out.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.signal

from . import fourier
from .errors import ArgumentError
from .injection import add_stamp
from .profiles import FWHM_TO_SIGMA

__all__ = [
    "PsfModel",
    "SimulatedImage",
    "Simulation",
    "SimulationOptions",
    "matching_kernel",
    "simulate",
]

type Array = npt.NDArray[Any]

_HOT_COLUMN = 10
"""Excess of a bad column over the background, in standard deviations."""

_STARS_PER_PIXEL = 3000 / (4000 * 4072)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PsfModel:
    """An elliptical, possibly off-centre profile that varies over the frame.

    Attributes
    ----------
    sigma
        Width in the middle of the frame, in pixels: FWHM over 2.3548, along the
        geometric mean of the axes.
    profile
        ``gaussian`` or ``moffat``.
    beta
        Exponent of the Moffat profile, above 1.
    ellipticity
        e₁, e₂: axis ratio (1 − e)/(1 + e) with e = √(e₁² + e₂²), position angle
        ½·atan2(e₂, e₁).
    offset
        Of the centroid, (x, y) in pixels.
    variation
        Relative change of sigma between the middle and the right edge; the left edge
        changes by as much the other way.
    frame
        (ny, nx) over which it varies.
    """

    sigma: float
    frame: tuple[int, int]
    profile: Literal["gaussian", "moffat"] = "gaussian"
    beta: float = 3.0
    ellipticity: tuple[float, float] = (0.0, 0.0)
    offset: tuple[float, float] = (0.0, 0.0)
    variation: float = 0.0

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ArgumentError(f"The PSF width must be positive; got {self.sigma:g}.")
        if not abs(self.variation) < 1:
            raise ArgumentError(f"The PSF variation must be below 1; got {self.variation:g}.")
        if self.profile not in ("gaussian", "moffat"):
            raise ArgumentError(f"The profile is gaussian or moffat; got {self.profile!r}.")
        if self.profile == "moffat" and not self.beta > 1:
            raise ArgumentError(f"The Moffat exponent must be above 1; got {self.beta:g}.")
        if not math.hypot(*self.ellipticity) < 1:
            raise ArgumentError(f"The ellipticity must be below 1; got {self.ellipticity}.")

    @property
    def stamp_size(self) -> int:
        """Odd side of a stamp that holds all but about 1e-6 (Gaussian) of the flux."""
        largest = self.sigma * (1 + abs(self.variation)) * (1 + math.hypot(*self.ellipticity))
        reach = 6 if self.profile == "gaussian" else 12
        return 2 * math.ceil(reach * largest + max(map(abs, self.offset))) + 1

    def sigma_at(self, x: float) -> float:
        """Width at a column.

        Parameters
        ----------
        x
            0-based column.

        Returns
        -------
        sigma
            In pixels.
        """
        return self.sigma * (1 + self.variation * (2 * (x + 0.5) / self.frame[1] - 1))

    def stamp(self, x: float, y: float, *, size: int | None = None) -> Array:
        """Unit-flux image of a star at a position.

        Parameters
        ----------
        x, y
            0-based position; the stamp's middle pixel is the nearest pixel.
        size
            Odd side of the stamp; `stamp_size` if not given.

        Returns
        -------
        stamp
            ``(size, size)``: the profile at the pixel centres, not renormalised.
        """
        half = (self.stamp_size if size is None else size) // 2
        grid = np.arange(-half, half + 1)
        dx = (grid - (x - math.floor(x + 0.5)) - self.offset[0])[None, :]
        dy = (grid - (y - math.floor(y + 0.5)) - self.offset[1])[:, None]
        e = math.hypot(*self.ellipticity)
        angle = 0.5 * math.atan2(self.ellipticity[1], self.ellipticity[0])
        along = math.cos(angle) * dx + math.sin(angle) * dy
        across = math.cos(angle) * dy - math.sin(angle) * dx
        ratio = (1 - e) / (1 + e)
        sigma = self.sigma_at(x)
        radius2 = along**2 * ratio + across**2 / ratio
        if self.profile == "gaussian":
            return np.exp(-0.5 * radius2 / sigma**2) / (2 * math.pi * sigma**2)
        scale2 = (sigma / FWHM_TO_SIGMA / 2) ** 2 / (2 ** (1 / self.beta) - 1)
        return (self.beta - 1) / (math.pi * scale2) * (1 + radius2 / scale2) ** -self.beta

    def image(self, x: float, y: float) -> Array:
        """Image of the PSF at a position, centred on the middle pixel.

        Parameters
        ----------
        x, y
            0-based position.

        Returns
        -------
        image
            ``(stamp_size, stamp_size)``, unit sum.
        """
        # sigma_at takes x, so only the fraction may be dropped.
        local = dataclasses.replace(self, sigma=self.sigma_at(x), variation=0.0)
        image = local.stamp(0.0, 0.0, size=self.stamp_size)
        return image / image.sum()


def matching_kernel(target: Array, source: Array, *, size: int, kernel_sum: float = 1.0) -> Array:
    """Kernel that convolves one PSF into another.

    Parameters
    ----------
    target, source
        PSF images of the same odd shape, unit sum; ``kernel ⊗ source = target``.
    size
        Odd side of the kernel, at most that of the PSFs.
    kernel_sum
        Photometric scale.

    Returns
    -------
    kernel
        ``(size, size)``.

    Notes
    -----
    Ratio of the spectra, regularised where the source has less than 1e-6 of its
    amplitude: a target that is sharper than the source is not reproduced there.
    """
    n = target.shape[0]
    shape = (2 * n, 2 * n)
    target_ft = fourier.forward(fourier.pad_center_origin(target, shape), shape)
    source_ft = fourier.forward(fourier.pad_center_origin(source, shape), shape)
    ratio = target_ft * source_ft.conj() / (np.abs(source_ft) ** 2 + 1e-12)
    kernel = fourier.crop_center_origin(fourier.inverse(ratio, shape, shape), (size, size))
    return kernel * (kernel_sum / kernel.sum())


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulationOptions:
    """What to simulate.

    Attributes
    ----------
    shape
        (ny, nx).
    seed
        Of all random numbers.
    science_psf, template_psf
        Widths in pixels (see `PsfModel.sigma`).
    science_variance, template_variance
        Of the background, counts²: sky photons and read noise.
    gain
        Electrons per count.
    read_noise
        Electrons per pixel.
    flux_scale
        Science counts per template count: the sum of the matching kernel.
    profile, beta, ellipticity, offset
        Of both PSFs (see `PsfModel`); the offset is the science PSF's.
    variation
        Relative change of the science PSF's width from the middle to the right edge.
    stars, galaxies, transients
        Numbers of sources; None: the density of a high-latitude field, and 1 transient
        for 5 stars.
    saturation
        Counts above which a pixel saturates; infinite for none.
    bad_columns, nan_pixels
        Numbers in each image.
    """

    shape: tuple[int, int] = (1024, 1024)
    seed: int = 1
    science_psf: float = 3.0
    template_psf: float = 2.2
    science_variance: float = 900.0
    template_variance: float = 300.0
    gain: float = 2.0
    read_noise: float = 5.0
    flux_scale: float = 1.0
    profile: Literal["gaussian", "moffat"] = "gaussian"
    beta: float = 3.0
    ellipticity: tuple[float, float] = (0.0, 0.0)
    offset: tuple[float, float] = (0.0, 0.0)
    variation: float = 0.0
    stars: int | None = None
    galaxies: int | None = None
    transients: int | None = None
    saturation: float = 60000.0
    bad_columns: int = 2
    nan_pixels: int = 20

    def __post_init__(self) -> None:
        if min(self.shape) < 64:
            raise ArgumentError(f"A simulation needs at least 64 pixels a side; got {self.shape}.")
        for name in ("science_variance", "template_variance", "gain", "flux_scale", "saturation"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{name} must be positive; got {getattr(self, name):g}.")
        for name in ("stars", "galaxies", "transients", "bad_columns", "nan_pixels"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ArgumentError(f"{name} must not be negative; got {value}.")
        ny, nx = self.shape
        if self.seed < 0:
            raise ArgumentError(f"seed must not be negative; got {self.seed}.")
        if self.bad_columns > nx or self.nan_pixels > nx * ny:
            raise ArgumentError(
                f"An image of {nx} x {ny} pixels has no room for {self.bad_columns} bad columns"
                f" and {self.nan_pixels} NaN pixels."
            )
        if not all(abs(value) <= 5 for value in self.offset):
            raise ArgumentError(f"offset must be within 5 pixels; got {self.offset}.")
        if self.read_noise < 0:
            raise ArgumentError(f"read_noise must not be negative; got {self.read_noise:g}.")
        for name in ("science_variance", "template_variance"):
            if getattr(self, name) < (self.read_noise / self.gain) ** 2:
                raise ArgumentError(
                    f"{name} = {getattr(self, name):g} is below the read noise alone,"
                    f" {(self.read_noise / self.gain) ** 2:g} counts²; lower read_noise."
                )


@dataclasses.dataclass(frozen=True)
class SimulatedImage:
    """One image of a pair.

    Attributes
    ----------
    image
        ``(ny, nx)`` float32, sky-subtracted counts.
    variance
        ``(ny, nx)`` float32, the true variance of every pixel.
    mask
        BAD, SAT and NO_DATA → ``(ny, nx)`` boolean.
    sky
        Sky level that was subtracted, counts.
    psf
        The PSF.
    """

    image: Array
    variance: Array
    mask: dict[str, Array]
    sky: float
    psf: PsfModel


@dataclasses.dataclass(frozen=True)
class Simulation:
    """A pair of images and the truth about them.

    Attributes
    ----------
    science, template
        The images.
    sources
        Column → values: ``kind`` (star, galaxy, transient), ``x``, ``y`` (0-based),
        ``science_flux``, ``template_flux`` (counts), ``radius`` (half-light of the disc,
        pixels; 0 for points).
    convolved
        Which image has to be convolved to match the other: the sharper one.
    options
        What was asked for.
    """

    science: SimulatedImage
    template: SimulatedImage
    sources: dict[str, Array]
    convolved: Literal["template", "science"]
    options: SimulationOptions

    @property
    def kernel_size(self) -> int:
        """Odd side of the matching kernel."""
        return min(41, self.science.psf.stamp_size, self.template.psf.stamp_size)

    def kernel_at(self, x: float, y: float) -> Array:
        """Matching kernel at a position.

        Parameters
        ----------
        x, y
            0-based position.

        Returns
        -------
        kernel
            ``(kernel_size, kernel_size)``.
        """
        # Stamps cut off in the wings of a Moffat profile would ring when deconvolved.
        size = max(129, self.science.psf.stamp_size, self.template.psf.stamp_size)
        science, template = (
            dataclasses.replace(psf, sigma=psf.sigma_at(x), variation=0.0).stamp(0, 0, size=size)
            for psf in (self.science.psf, self.template.psf)
        )
        scale = self.options.flux_scale
        if self.convolved == "template":
            return matching_kernel(science, template, size=self.kernel_size, kernel_sum=scale)
        return matching_kernel(template, science, size=self.kernel_size, kernel_sum=1 / scale)


def simulate(options: SimulationOptions) -> Simulation:
    """Simulate a science image and a template.

    Parameters
    ----------
    options
        `SimulationOptions`.

    Returns
    -------
    simulation
        The same for the same options, bit for bit.
    """
    catalog_rng, science_rng, template_rng = np.random.default_rng(options.seed).spawn(3)
    sources = _make_catalog(options, catalog_rng)
    common: dict[str, Any] = {
        "frame": options.shape,
        "profile": options.profile,
        "beta": options.beta,
        "ellipticity": options.ellipticity,
    }
    science_psf = PsfModel(
        sigma=options.science_psf, offset=options.offset, variation=options.variation, **common
    )
    template_psf = PsfModel(sigma=options.template_psf, **common)
    science = _expose(
        options, sources, "science_flux", science_psf, options.science_variance, science_rng
    )
    template = _expose(
        options, sources, "template_flux", template_psf, options.template_variance, template_rng
    )
    return Simulation(
        science=science,
        template=template,
        sources=sources,
        convolved="template" if options.science_psf >= options.template_psf else "science",
        options=options,
    )


def _make_catalog(options: SimulationOptions, rng: np.random.Generator) -> dict[str, Array]:
    ny, nx = options.shape
    n_stars = max(1, round(_STARS_PER_PIXEL * ny * nx)) if options.stars is None else options.stars
    n_galaxies = n_stars if options.galaxies is None else options.galaxies
    n_transients = max(1, n_stars // 5) if options.transients is None else options.transients
    n = n_stars + n_galaxies + n_transients
    kind = np.repeat(["star", "galaxy", "transient"], [n_stars, n_galaxies, n_transients])
    sigma_point = math.sqrt(options.science_variance * 4 * math.pi) * options.science_psf
    # Counts grow with decreasing flux as in real fields; the brightest stars saturate.
    star_flux = 10 * sigma_point * (1 - rng.random(n_stars)) ** -1.4
    galaxy_flux = np.minimum(20 * sigma_point * (1 - rng.random(n_galaxies)) ** -1.0, 1e6)
    transient_flux = sigma_point * rng.uniform(5, 50, n_transients)
    science = np.concatenate([np.minimum(star_flux, 5e6), galaxy_flux, transient_flux])
    template = science / options.flux_scale
    template[n_stars + n_galaxies :] = 0
    return {
        "kind": kind,
        "x": rng.uniform(0, nx - 1, n),
        "y": rng.uniform(0, ny - 1, n),
        "science_flux": science,
        "template_flux": template,
        "radius": np.where(kind == "galaxy", rng.uniform(1.5, 6.0, n), 0.0),
        "axis_ratio": np.where(kind == "galaxy", rng.uniform(0.4, 1.0, n), 1.0),
        "angle": np.where(kind == "galaxy", rng.uniform(0, math.pi, n), 0.0),
    }


def _expose(
    options: SimulationOptions,
    sources: dict[str, Array],
    flux_column: str,
    psf: PsfModel,
    background_variance: float,
    rng: np.random.Generator,
) -> SimulatedImage:
    ny, nx = options.shape
    expected = np.zeros((ny, nx))
    for i in np.flatnonzero(sources[flux_column] > 0):
        x, y = float(sources["x"][i]), float(sources["y"][i])
        if sources["radius"][i] > 0:
            stamp = _galaxy(
                psf,
                x,
                y,
                float(sources["radius"][i]),
                float(sources["axis_ratio"][i]),
                float(sources["angle"][i]),
            )
        else:
            stamp = psf.stamp(x, y)
        add_stamp(expected, stamp * sources[flux_column][i], x, y)

    read_variance = (options.read_noise / options.gain) ** 2
    sky = (background_variance - read_variance) * options.gain
    variance = (expected + sky) / options.gain + read_variance
    electrons = rng.normal(0, options.read_noise, (ny, nx))
    electrons += rng.poisson((expected + sky) * options.gain)
    image = electrons / options.gain - sky

    mask = {name: np.zeros((ny, nx), dtype=bool) for name in ("BAD", "SAT", "NO_DATA")}
    mask["SAT"] = image + sky >= options.saturation
    image[mask["SAT"]] = options.saturation - sky
    for column in rng.choice(nx, options.bad_columns, replace=False):
        start = int(rng.integers(0, ny // 2))
        mask["BAD"][start:, column] = True
        image[start:, column] += _HOT_COLUMN * math.sqrt(background_variance)
    missing = rng.choice(ny * nx, options.nan_pixels, replace=False)
    mask["NO_DATA"].flat[missing] = True
    image.flat[missing] = np.nan
    return SimulatedImage(image.astype(np.float32), variance.astype(np.float32), mask, sky, psf)


def _galaxy(
    psf: PsfModel, x: float, y: float, radius: float, axis_ratio: float, angle: float
) -> Array:
    """Unit-flux exponential disc, convolved with the PSF."""
    scale = radius / 1.678  # half-light radius of an exponential disc
    half = math.ceil(10 * scale)
    grid = np.arange(-half, half + 1)
    dx = (grid - (x - math.floor(x + 0.5)))[None, :]
    dy = (grid - (y - math.floor(y + 0.5)))[:, None]
    along = math.cos(angle) * dx + math.sin(angle) * dy
    across = (math.cos(angle) * dy - math.sin(angle) * dx) / axis_ratio
    disc = np.exp(-np.hypot(along, across) / scale)
    return scipy.signal.fftconvolve(disc / disc.sum(), psf.image(x, y))
