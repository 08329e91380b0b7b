"""Science and template images with known truth, as arrays.

A `PsfModel` is evaluated at any position; stars are its samples, galaxies are exponential discs
and de Vaucouleurs bulges convolved with it.  Images are sky-subtracted unless asked otherwise;
their noise comes from sky, sources and read-out.  Flaws are in `whitediff.evaluation.flaws`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..direction import Direction
from ..errors import ArgumentError
from ..numerics import fourier
from ..numerics.profiles import FWHM_TO_SIGMA
from . import flaws
from .flaws import Grid, ImageOptions
from .placing import add_stamp

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

_PIXEL_NODES = tuple(
    (float(node) / 2, float(weight) / 2)
    for node, weight in zip(*np.polynomial.legendre.leggauss(5), strict=True)
)
"""Nodes and weights that integrate a profile over a pixel, in each direction."""

_GARBAGE = (10.0, 30.0)
"""Least and largest error of a bad pixel, in standard deviations of the background."""

_BULGE_SIZE = 1 / 3
"""Half-light radius of a bulge over that of its disc."""

_HOST_REACH = 1.0
"""Scale of the distance of a transient from its host's middle, in half-light radii."""

_STARS_PER_PIXEL = 3000 / (4000 * 4072)
"""Density of stars in a high-latitude field."""


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
        Offset of the centroid, (x, y) in pixels.
    variation
        Relative change of sigma between the middle and the right edge; the left edge has the
        opposite change.
    frame
        (ny, nx) of the frame over which sigma varies.
    integrated
        Whether pixels hold the mean over their area rather than the value in their middle: for
        undersampled images.
    """

    sigma: float
    frame: tuple[int, int]
    profile: Literal["gaussian", "moffat"] = "gaussian"
    beta: float = 3.0
    ellipticity: tuple[float, float] = (0.0, 0.0)
    offset: tuple[float, float] = (0.0, 0.0)
    variation: float = 0.0
    integrated: bool = False

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
            Pixels.
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
            ``(size, size)``: the profile at the pixel centres, or its mean over each pixel if
            `integrated`; not renormalised.
        """
        half = (self.stamp_size if size is None else size) // 2
        grid = np.arange(-half, half + 1)
        dx = (grid - (x - math.floor(x + 0.5)) - self.offset[0])[None, :]
        dy = (grid - (y - math.floor(y + 0.5)) - self.offset[1])[:, None]
        if not self.integrated:
            return self._profile(dx, dy, x)
        stamp = np.zeros((len(grid), len(grid)))
        for step_x, weight_x in _PIXEL_NODES:
            for step_y, weight_y in _PIXEL_NODES:
                stamp += weight_x * weight_y * self._profile(dx + step_x, dy + step_y, x)
        return stamp

    def _profile(self, dx: Array, dy: Array, x: float) -> Array:
        """Profile of column x at offsets from the centroid."""
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
        # The stamp is drawn at (0, 0) for a whole-pixel centre, with the width of the true column.
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
        Odd side of the kernel, at most the PSFs' side.
    kernel_sum
        Photometric scale: the sum of the kernel.

    Returns
    -------
    kernel
        ``(size, size)``.

    Notes
    -----
    Ratio of the spectra, regularised at frequencies where the source has an amplitude below 1e-6:
    a target sharper than the source is not reproduced there.
    """
    n = target.shape[0]
    shape = (2 * n, 2 * n)
    target_ft = fourier.forward(fourier.pad_center_origin(target, shape), shape)
    source_ft = fourier.forward(fourier.pad_center_origin(source, shape), shape)
    ratio = target_ft * source_ft.conj() / (np.abs(source_ft) ** 2 + 1e-12)
    kernel = fourier.crop_center_origin(fourier.inverse(ratio, shape, shape), (size, size))
    return kernel * (kernel_sum / kernel.sum())


_RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("bulge", "hosted", "vanished"), lambda value: 0 <= value <= 1, "is from 0 to 1"),
    (
        (
            *("faintest_star", "faintest_galaxy", "brightest_star", "brightest_galaxy"),
            *("star_exponent", "galaxy_exponent", "distortion_length"),
            *("science_variance", "template_variance", "gain", "flux_scale", "saturation"),
        ),
        lambda value: value > 0,
        "must be positive",
    ),
    (
        (
            *("margin", "template_distortion", "read_noise", "seed"),
            *("stars", "galaxies", "transients", "bad_columns", "nan_pixels"),
        ),
        lambda value: value >= 0,
        "must not be negative",
    ),
)
"""Options of a simulation, tests of their values, and the requirements in words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulationOptions:
    """Options of a simulated pair.

    Attributes
    ----------
    shape
        (ny, nx) of the science image.
    seed
        Seed of all random numbers.
    science_psf, template_psf
        Widths in pixels (see `PsfModel.sigma`).
    science_variance, template_variance
        Variance of the background, counts²: sky photons and read noise.
    gain
        Electrons per count.
    read_noise
        Electrons per pixel.
    flux_scale
        Science counts per template count: the sum of the matching kernel.
    profile, beta, ellipticity, offset
        Shape of both PSFs (see `PsfModel`); the offset is the science PSF's.
    variation
        Relative change of the science PSF's width from the middle to the right edge.
    stars, galaxies, transients
        Numbers of sources; None: the density of a high-latitude field, and 1 transient
        for 5 stars.
    saturation
        Counts above which a pixel saturates; infinite for none.
    bad_columns, nan_pixels
        Numbers of bad columns and of NaN pixels in each image.
    faintest_star, faintest_galaxy
        Signal-to-noise ratio of the faintest, as a point source of the science image.
    brightest_star, brightest_galaxy
        Largest fluxes, counts.
    star_exponent, galaxy_exponent
        Fluxes are the faintest one times u to the power of minus this exponent, u uniform: the
        number brighter than f falls as f to the power of minus its inverse.
    bulge
        Mean share of a galaxy's light in a de Vaucouleurs bulge, of a third of the disc's size.
    hosted
        Fraction of the transients that are in galaxies.
    vanished
        Fraction of the transients that are in the template instead of the science image.
    margin
        Pixels beyond the frame within which there are sources too.
    integrated
        Whether pixels hold the mean of the PSF over their area (see `PsfModel`).
    template_shape
        (ny, nx) of the template; None: as the science image.
    template_grid
        Pixel grid of the template relative to the science image's.
    template_distortion, distortion_length
        Rms and least wavelength, pixels, of displacements of the template's sources that no WCS
        contains.
    science, template
        Flaws of each image.
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
    faintest_star: float = 10.0
    faintest_galaxy: float = 20.0
    brightest_star: float = 5e6
    brightest_galaxy: float = 1e6
    star_exponent: float = 1.4
    galaxy_exponent: float = 1.0
    bulge: float = 0.0
    hosted: float = 0.0
    vanished: float = 0.0
    margin: float = 0.0
    integrated: bool = False
    template_shape: tuple[int, int] | None = None
    template_grid: Grid = dataclasses.field(default_factory=Grid)
    template_distortion: float = 0.0
    distortion_length: float = 300.0
    science: ImageOptions = dataclasses.field(default_factory=ImageOptions)
    template: ImageOptions = dataclasses.field(default_factory=ImageOptions)

    @property
    def same_grid(self) -> bool:
        """Whether both images have the same pixels."""
        return self.template_grid.is_same and self.template_shape in (None, self.shape)

    def shape_of(self, name: Direction) -> tuple[int, int]:
        """Shape of an image.

        Parameters
        ----------
        name
            Which image.

        Returns
        -------
        shape
            (ny, nx).
        """
        return self.shape if name == "science" else self.template_shape or self.shape

    def flaws_of(self, name: Direction) -> ImageOptions:
        """Flaws of an image.

        Parameters
        ----------
        name
            Which image.

        Returns
        -------
        options
            Options of its flaws.
        """
        return self.science if name == "science" else self.template

    def __post_init__(self) -> None:
        for shape in (self.shape, self.shape_of("template")):
            if min(shape) < 64:
                raise ArgumentError(f"A simulation needs at least 64 pixels a side; got {shape}.")
        for names, fits, requirement in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not fits(value):
                    raise ArgumentError(f"{name} {requirement}; got {value:g}.")
        for ny, nx in (self.shape, self.shape_of("template")):
            if self.bad_columns > nx or self.nan_pixels > nx * ny:
                raise ArgumentError(
                    f"An image of {nx} x {ny} pixels has no room for {self.bad_columns} bad"
                    f" columns and {self.nan_pixels} NaN pixels."
                )
        if not all(abs(value) <= 5 for value in self.offset):
            raise ArgumentError(f"offset must be within 5 pixels; got {self.offset}.")
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
        ``(ny, nx)`` float32, in its unit: sky-subtracted counts by default.
    variance
        ``(ny, nx)`` float32, the true variance of every pixel; infinite where a pixel has no
        weight.
    mask
        Planes of its mask, BAD, SAT and NO_DATA by default → ``(ny, nx)`` boolean.
    sky
        Sky level whose photons are in the noise, counts.
    psf
        The PSF.
    flaws
        Each of `flaws.PLANES` → ``(ny, nx)`` boolean: flawed pixels, masked or not.
    """

    image: Array
    variance: Array
    mask: dict[str, Array]
    sky: float
    psf: PsfModel
    flaws: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Simulation:
    """A pair of images and the truth about them.

    Attributes
    ----------
    science, template
        The images.
    sources
        Column → values: ``kind`` (star, galaxy, transient), ``x``, ``y`` (0-based),
        ``template_x``, ``template_y`` (on the template), ``science_flux``, ``template_flux``
        (counts, before any unit), ``radius`` (half-light of the disc, pixels; 0 for points),
        ``axis_ratio``, ``angle``, ``bulge`` (share of its light), ``host`` (row of the galaxy
        that a transient is in; -1: none).
    convolved
        Which image has to be convolved to match the other: the sharper one.
    options
        Options of the simulation.
    """

    science: SimulatedImage
    template: SimulatedImage
    sources: dict[str, Array]
    convolved: Direction
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
            ``(kernel_size, kernel_size)``, for the units of the images.

        Raises
        ------
        ArgumentError
            If the template is on another grid: no kernel matches it.
        """
        if not self.options.same_grid:
            raise ArgumentError(
                "The template is on another grid, so no kernel matches it; resample it first."
            )
        # Stamps that cut off the wings of a Moffat profile would ring when deconvolved.
        size = max(129, self.science.psf.stamp_size, self.template.psf.stamp_size)
        science, template = (
            dataclasses.replace(psf, sigma=psf.sigma_at(x), variation=0.0).stamp(0, 0, size=size)
            for psf in (self.science.psf, self.template.psf)
        )
        gain = self.options.gain
        units = self.options.science.factor(gain) / self.options.template.factor(gain)
        scale = self.options.flux_scale * units
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
        Science image, template and truth: bit for bit the same for the same options.
    """
    # Flaws draw from generators of their own, so that they do not change sources and noise.
    catalog_rng, science_rng, template_rng, more_rng, *flaw_rngs = np.random.default_rng(
        options.seed
    ).spawn(6)
    sources = _on_the_template(
        options, _make_catalog(options, catalog_rng, more_rng), more_rng.spawn(1)[0]
    )
    common: dict[str, Any] = {
        "profile": options.profile,
        "beta": options.beta,
        "ellipticity": options.ellipticity,
        "integrated": options.integrated,
    }
    science_psf = PsfModel(
        sigma=options.science_psf,
        offset=options.offset,
        variation=options.variation,
        frame=options.shape,
        **common,
    )
    template_psf = PsfModel(
        sigma=options.template_psf, frame=options.shape_of("template"), **common
    )
    science = _expose(options, "science", sources, science_psf, science_rng, flaw_rngs[0])
    template = _expose(options, "template", sources, template_psf, template_rng, flaw_rngs[1])
    return Simulation(
        science=science,
        template=template,
        sources=sources,
        convolved="template" if options.science_psf >= options.template_psf else "science",
        options=options,
    )


def _make_catalog(
    options: SimulationOptions, rng: np.random.Generator, more_rng: np.random.Generator
) -> dict[str, Array]:
    ny, nx = options.shape
    n_stars = max(1, round(_STARS_PER_PIXEL * ny * nx)) if options.stars is None else options.stars
    n_galaxies = n_stars if options.galaxies is None else options.galaxies
    n_transients = max(1, n_stars // 5) if options.transients is None else options.transients
    n = n_stars + n_galaxies + n_transients
    kind = np.repeat(["star", "galaxy", "transient"], [n_stars, n_galaxies, n_transients])
    sigma_point = math.sqrt(options.science_variance * 4 * math.pi) * options.science_psf
    # Numbers grow with decreasing flux as in real fields; the brightest stars saturate.
    star_flux = (
        options.faintest_star * sigma_point * (1 - rng.random(n_stars)) ** -options.star_exponent
    )
    galaxy_flux = np.minimum(
        options.faintest_galaxy
        * sigma_point
        * (1 - rng.random(n_galaxies)) ** -options.galaxy_exponent,
        options.brightest_galaxy,
    )
    transient_flux = sigma_point * rng.uniform(5, 50, n_transients)
    science = np.concatenate(
        [np.minimum(star_flux, options.brightest_star), galaxy_flux, transient_flux]
    )
    template = science / options.flux_scale
    new = np.arange(n) >= n_stars + n_galaxies
    vanished = np.arange(n) >= n - round(options.vanished * n_transients)
    template[new & ~vanished] = 0
    science[vanished] = 0
    margin = options.margin
    sources = {
        "kind": kind,
        "x": rng.uniform(-margin, nx - 1 + margin, n),
        "y": rng.uniform(-margin, ny - 1 + margin, n),
        "science_flux": science,
        "template_flux": template,
        "radius": np.where(kind == "galaxy", rng.uniform(1.5, 6.0, n), 0.0),
        "axis_ratio": np.where(kind == "galaxy", rng.uniform(0.4, 1.0, n), 1.0),
        "angle": np.where(kind == "galaxy", rng.uniform(0, math.pi, n), 0.0),
    }
    share = np.minimum(more_rng.uniform(0, 2 * options.bulge, n), 1.0)
    sources["bulge"] = np.where(kind == "galaxy", share, 0.0)
    sources["host"] = np.full(n, -1)
    _move_to_hosts(options, sources, more_rng)
    return sources


def _move_to_hosts(
    options: SimulationOptions, sources: dict[str, Array], rng: np.random.Generator
) -> None:
    """Put a fraction of the transients into galaxies, in place."""
    galaxies = np.flatnonzero(sources["kind"] == "galaxy")
    transients = np.flatnonzero(sources["kind"] == "transient")
    number = round(options.hosted * len(transients))
    if number == 0:
        return
    if len(galaxies) == 0:
        raise ArgumentError("Transients in hosts need galaxies; raise the number of galaxies.")
    # Drawn from new and vanished transients alike.
    moved = rng.choice(transients, number, replace=False)
    hosts = rng.choice(galaxies, number, replace=number > len(galaxies))
    distance = rng.exponential(_HOST_REACH, number) * sources["radius"][hosts]
    angle = rng.uniform(0, 2 * math.pi, number)
    along, across = distance * np.cos(angle), distance * np.sin(angle)
    across *= sources["axis_ratio"][hosts]
    c, s = np.cos(sources["angle"][hosts]), np.sin(sources["angle"][hosts])
    sources["x"][moved] = sources["x"][hosts] + c * along - s * across
    sources["y"][moved] = sources["y"][hosts] + s * along + c * across
    sources["host"][moved] = hosts


def _on_the_template(
    options: SimulationOptions, sources: dict[str, Array], rng: np.random.Generator
) -> dict[str, Array]:
    """Sources with their positions on the template."""
    x, y = sources["x"], sources["y"]
    if options.template_distortion:
        dx, dy = flaws.displacement(
            x, y, rms=options.template_distortion, length=options.distortion_length, rng=rng
        )
        x, y = x + dx, y + dy
    x, y = options.template_grid.positions(
        x, y, frame=options.shape, own_frame=options.shape_of("template")
    )
    return sources | {"template_x": x, "template_y": y}


def _expected(
    options: SimulationOptions,
    name: Direction,
    sources: dict[str, Array],
    psf: PsfModel,
) -> Array:
    """Light of the sources without noise, counts."""
    expected = np.zeros(options.shape_of(name))
    fluxes = sources[f"{name}_flux"]
    prefix, grid = ("", Grid()) if name == "science" else ("template_", options.template_grid)
    for i in np.flatnonzero(fluxes > 0):
        x, y = float(sources[f"{prefix}x"][i]), float(sources[f"{prefix}y"][i])
        if sources["radius"][i] > 0:
            stamp = _galaxy(
                psf,
                x,
                y,
                float(sources["radius"][i]) / grid.scale,
                float(sources["axis_ratio"][i]),
                float(sources["angle"][i]) + math.radians(grid.rotation),
                float(sources["bulge"][i]),
            )
        else:
            stamp = psf.stamp(x, y)
        add_stamp(expected, stamp * fluxes[i], x, y)
    return expected


def _expose(
    options: SimulationOptions,
    name: Direction,
    sources: dict[str, Array],
    psf: PsfModel,
    rng: np.random.Generator,
    flaw_rng: np.random.Generator,
) -> SimulatedImage:
    shape, own = options.shape_of(name), options.flaws_of(name)
    ny, nx = shape
    background_variance = getattr(options, f"{name}_variance")
    sigma = math.sqrt(background_variance)
    sky_rng, trail_rng, ray_rng, pixel_rng, hole_rng = flaw_rng.spawn(5)
    flawed = {plane: np.zeros(shape, dtype=bool) for plane in flaws.PLANES}
    expected = _expected(options, name, sources, psf)
    if own.sky_gradient or own.ripple:
        expected += flaws.sky_structure(shape, own, sky_rng)
    for _ in range(own.trails):
        light, pixels, _line = flaws.trail(shape, own.trail_width, trail_rng)
        expected += own.trail_brightness * sigma * light
        flawed["STREAK"] |= pixels

    read_variance = (options.read_noise / options.gain) ** 2
    sky = (background_variance - read_variance) * options.gain
    light = expected + sky
    if own.sky_gradient or own.ripple:
        light = np.maximum(light, 0)
    variance = light / options.gain + read_variance
    electrons = rng.normal(0, options.read_noise, shape)
    electrons += rng.poisson(light * options.gain)
    if own.cosmic_rays:
        charge = flaws.cosmic_rays(shape, own.cosmic_rays, ray_rng)
        electrons += charge
        flawed["CR"] = flaws.ray_pixels(charge, sigma * options.gain)
    image = electrons / options.gain - sky

    full = options.saturation if own.saturation is None else own.saturation
    if own.bleeding and math.isfinite(full):
        image += sky
        flawed["SAT"] = flaws.bleed(image, full)
        image -= sky
    else:
        flawed["SAT"] = image + sky >= full
    image[flawed["SAT"]] = full - sky
    for column in rng.choice(nx, options.bad_columns, replace=False):
        start = int(rng.integers(0, ny // 2))
        flawed["BAD"][start:, column] = True
        if own.bad_column_value is None:
            image[start:, column] += _HOT_COLUMN * sigma
        else:
            image[start:, column] = own.bad_column_value
    missing = rng.choice(ny * nx, options.nan_pixels, replace=False)
    flawed["NO_DATA"].flat[missing] = True
    flawed["NO_DATA"] |= flaws.missing_pixels(shape, own, hole_rng)
    silent = np.zeros(shape, dtype=bool)
    if own.bad_pixels:
        silent = _spoil(own, image, variance, flawed, sigma, pixel_rng)
    if own.sky:
        image += own.sky
    image[flawed["NO_DATA"]] = np.nan
    factor = own.factor(options.gain)
    if factor != 1:
        image, variance = image * factor, variance * factor**2
    mask = {plane: flawed[plane] for plane in flaws.PLANES if plane in own.masked}
    flawed["BAD"] = flawed["BAD"] | silent
    return SimulatedImage(
        image.astype(np.float32), variance.astype(np.float32), mask, sky, psf, flawed
    )


def _spoil(
    own: ImageOptions,
    image: Array,
    variance: Array,
    flawed: dict[str, Array],
    sigma: float,
    rng: np.random.Generator,
) -> Array:
    """Add scattered bad pixels, in place; return those that no mask marks."""
    bad = rng.random(image.shape) < own.bad_pixels
    if own.bad_pixel_kind == "nan":
        flawed["NO_DATA"] |= bad
        return np.zeros_like(bad)
    number = int(np.count_nonzero(bad))
    image[bad] += sigma * rng.uniform(*_GARBAGE, number) * rng.choice([-1, 1], number)
    if own.bad_pixel_kind == "flagged":
        flawed["BAD"] |= bad
        return np.zeros_like(bad)
    if own.bad_pixel_kind == "zero-weight":
        variance[bad] = np.inf
    return bad


def _galaxy(
    psf: PsfModel,
    x: float,
    y: float,
    radius: float,
    axis_ratio: float,
    angle: float,
    bulge: float,
) -> Array:
    """Unit-flux exponential disc with a bulge, convolved with the PSF."""
    scale = radius / 1.678  # half-light radius of an exponential disc
    half = math.ceil(10 * scale)
    grid = np.arange(-half, half + 1)
    dx = (grid - (x - math.floor(x + 0.5)))[None, :]
    dy = (grid - (y - math.floor(y + 0.5)))[:, None]
    along = math.cos(angle) * dx + math.sin(angle) * dy
    across = (math.cos(angle) * dy - math.sin(angle) * dx) / axis_ratio
    light = np.exp(-np.hypot(along, across) / scale)
    light = light / light.sum()
    if bulge > 0:
        inner = flaws.de_vaucouleurs(
            dx, dy, radius=_BULGE_SIZE * radius, axis_ratio=axis_ratio, angle=angle
        )
        light = (1 - bulge) * light + bulge * inner
    return fourier.convolution(light, psf.image(x, y))
