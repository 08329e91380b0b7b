"""Pairs of images of many kinds of fields, drawn with GalSim, with the noise of their photons.

Nothing here comes from whitediff, so that it can be judged by them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import galsim
import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.ndimage

type Array = npt.NDArray[Any]

OVER = 4
"""Samples per pixel at which light is drawn; sources stand on these."""
_MARGIN = 40
_SPIDER = 4


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a field is made of.

    Attributes
    ----------
    stars, galaxies
        Of 1024 × 1024 pixels.
    fwhm
        Of the atmosphere for science image and template, pixels.
    profile
        kolmogorov, or a Moffat profile's β.
    sky
        Electrons per pixel in science image and template.
    depth
        Exposures of the template, which is their mean: of its left and of its right half.
    scale
        Flux in the template over that in the science image.
    transients
        Of 1024 × 1024 pixels, half of them in galaxies.
    spoil
        What is added to the science image's light.
    trails
        Length of both images' trails, which are crossed, pixels.
    large
        Of a galaxy: its half-light radius over the side of the frame.
    spikes
        Whether the mirror's support is seen.
    saturation
        Electrons.
    shifts
        Standard deviation of the stars' displacements along each axis, pixels.
    refracted
        Standard deviation of the stars' displacements along y, each by its colour, pixels.
    variable
        Share of the stars that vary, by 20 %.
    sky_left
        Whether the sky is left in both images.
    """

    stars: int = 35
    galaxies: int = 500
    fwhm: tuple[float, float] = (4.8, 4.0)
    profile: str | float = "kolmogorov"
    sky: tuple[float, float] = (800.0, 800.0)
    depth: tuple[int, int] = (4, 4)
    scale: float = 1.0
    transients: int = 40
    spoil: Callable[[int, float], Array] | None = None
    trails: float = 0.0
    large: float = 0.0
    spikes: bool = False
    saturation: float = math.inf
    shifts: float = 0.0
    refracted: float = 0.0
    variable: float = 0.0
    sky_left: bool = False


def _fringes(size: int, sigma: float) -> Array:
    y, x = np.mgrid[:size, :size]
    bent = x + 0.3 * y + 20 * np.sin(y / 150)
    return 0.5 * sigma * math.sqrt(2) * np.sin(2 * np.pi * bent / 33)


def _ripple(size: int, sigma: float) -> Array:
    y, x = np.mgrid[:size, :size]
    return 15 * np.sin(2 * np.pi * (x + 0.4 * y) / 300) + 60 * x / size


KINDS = {
    "ordinary": Kind(),
    "ordinary, 160 transients": Kind(transients=160),
    "sharper science image": Kind(fwhm=(3.7, 4.35)),
    "Moffat": Kind(profile=3.5),
    "8000 stars": Kind(stars=8000, galaxies=0),
    "70000 stars": Kind(stars=70000, galaxies=0),
    "large galaxy": Kind(large=0.12),
    "FWHM 1.5": Kind(stars=140, fwhm=(1.6, 1.3)),
    "FWHM 9": Kind(stars=70, fwhm=(9.0, 7.5)),
    "crossed trails": Kind(stars=140, trails=5.0),
    "wings, spikes, saturated": Kind(stars=140, profile=2.5, spikes=True, saturation=6e4),
    "scale 10, gradient, ripple": Kind(stars=70, scale=10.0, spoil=_ripple),
    "fringes": Kind(stars=70, spoil=_fringes),
    "sky of 6 electrons": Kind(stars=70, sky=(6.0, 6.0), depth=(1, 1)),
    "sky of 40 electrons": Kind(stars=70, sky=(40.0, 40.0), depth=(1, 1)),
    "distortions of 0.1 pixels": Kind(stars=140, shifts=0.1),
    "15 % variable stars": Kind(stars=140, variable=0.15),
    "ordinary, 10 transients": Kind(transients=10),
    "scale 0.1, gradient, ripple": Kind(stars=70, scale=0.1, spoil=_ripple),
    "refraction of 0.1 pixels": Kind(stars=140, refracted=0.1),
    "template of two depths": Kind(stars=70, depth=(2, 8)),
    "few stars, sky left in": Kind(stars=10, galaxies=100, sky_left=True),
}


@dataclasses.dataclass(frozen=True)
class Field:
    """A pair and what it is made of.

    Attributes
    ----------
    images, variances
        Science image and template, ``(size, size)``, electrons, the sky subtracted; a template's
        are those of one exposure times the flux scale.
    psfs
        ``(n, n)`` of both, of unit sum, the middle pixel in the middle.
    x, y, flux
        Of the transients; their science image's electrons.
    stars
        ``(n, 2)`` x and y of the stars.
    empty
        ``(size, size)`` boolean: there is next to no light, in neither image.
    kernel_sum
        That which brings the template's fluxes to the science image's.
    """

    images: tuple[Array, Array]
    variances: tuple[Array, Array]
    psfs: tuple[Array, Array]
    x: Array
    y: Array
    flux: Array
    stars: Array
    empty: Array
    kernel_sum: float


def _psf(kind: Kind, which: int) -> Array:
    """PSF with the pixel's response, `OVER` samples per pixel, of unit sum per pixel."""
    fwhm = kind.fwhm[which]
    if kind.profile == "kolmogorov":
        parts: list[Any] = [galsim.Kolmogorov(fwhm=fwhm)]
    else:
        parts = [galsim.Moffat(beta=kind.profile, fwhm=fwhm)]
    if kind.spikes:
        turn = (20 + 25 * which) * galsim.degrees
        optics = galsim.OpticalPSF(
            lam_over_diam=0.25, obscuration=0.3, nstruts=_SPIDER, strut_thick=0.03, strut_angle=turn
        )
        parts.append(optics)
    else:
        parts.append(galsim.Airy(lam_over_diam=0.18 * fwhm, obscuration=0.3))
    if kind.trails:
        parts.append(galsim.Box(kind.trails, 0.1).rotate((30 + 90 * which) * galsim.degrees))
    parts.append(galsim.Pixel(1.0))
    n = 2 * _MARGIN * OVER + 1
    image = galsim.Convolve(parts).drawImage(nx=n, ny=n, scale=1 / OVER, method="no_pixel")
    array: Array = image.array.astype(float)
    return array / array.sum() * OVER**2


def _seen(light: Array, psf: Array, size: int) -> Array:
    """Light on the fine grid, seen through a PSF and sampled at the pixels' middles."""
    shape = [scipy.fft.next_fast_len(n + len(psf) - 1, real=True) for n in light.shape]
    whole = scipy.fft.irfft2(scipy.fft.rfft2(light, shape) * scipy.fft.rfft2(psf, shape), shape)
    start = len(psf) // 2 + _MARGIN * OVER
    result: Array = whole[start::OVER, start::OVER][:size, :size]
    return result


def _grid(size: int) -> Array:
    return np.zeros((OVER * (size + 2 * _MARGIN),) * 2)


def _points(light: Array, x: Array, y: Array, flux: Array) -> None:
    """Add points, at whole samples."""
    rows, columns = (np.rint((at + _MARGIN) * OVER).astype(int) for at in (y, x))
    np.add.at(light, (rows, columns), flux)


def _on_grid(at: Array) -> Array:
    return np.rint(at * OVER) / OVER


def _galaxies(light: Array, x: Array, y: Array, flux: Array, rng: np.random.Generator) -> Array:
    """Add galaxies; returns their half-light radii."""
    radii = rng.uniform(1.2, 4.0, len(x))
    for at_x, at_y, total, radius in zip(x, y, flux, radii, strict=True):
        profile = galsim.Sersic(
            rng.choice([1.0, 2.5, 4.0]), half_light_radius=radius, trunc=8 * radius
        ).shear(g1=rng.uniform(-0.4, 0.4), g2=rng.uniform(-0.4, 0.4))
        _add(light, profile.withFlux(total), at_x, at_y, 8 * radius)
    return radii


def _add(light: Array, profile: Any, x: float, y: float, reach: float) -> None:
    n = 2 * int(reach * OVER) + 1
    # On a grid as fine as this the sampled surface brightness is the light.
    stamp = profile.drawImage(nx=n, ny=n, scale=1 / OVER, method="no_pixel").array
    middle = np.rint((np.array([y, x]) + _MARGIN) * OVER).astype(int)
    low = middle - n // 2
    first, last = np.maximum(low, 0), np.minimum(low + n, light.shape)
    if (first >= last).any():
        return
    light[first[0] : last[0], first[1] : last[1]] += stamp[
        first[0] - low[0] : last[0] - low[0], first[1] - low[1] : last[1] - low[1]
    ]


def _displaced(size: int, rms: float, rng: np.random.Generator) -> Callable[[Array, Array], Any]:
    """Smooth random displacements (x, y) of a field, of a scale of 40 pixels."""
    fields = []
    for _ in range(2):
        field = scipy.ndimage.gaussian_filter(rng.normal(size=(size, size)), 40, mode="wrap")
        fields.append(rms * field / field.std())

    def at(x: Array, y: Array) -> list[Array]:
        rows, columns = (np.clip(np.rint(v).astype(int), 0, size - 1) for v in (y, x))
        return [field[rows, columns] for field in fields]

    return at


def field(name: str, seed: int, size: int = 1024) -> Field:
    """Draw a pair.

    Parameters
    ----------
    name
        Of `KINDS`.
    seed
        Of all random numbers.
    size
        Pixels on a side.
    """
    kind, rng = KINDS[name], np.random.default_rng([seed, list(KINDS).index(name)])
    area = (size / 1024) ** 2
    psfs = _psf(kind, 0), _psf(kind, 1)
    sigma = math.sqrt(kind.sky[0] + kind.sky[1] / min(kind.depth))
    # Flux over signal-to-noise ratio of a point source.
    unit = sigma / math.sqrt((_sampled(psfs[0]) ** 2).sum())

    def places(number: float) -> tuple[Array, Array]:
        first, second = rng.uniform(-20, size + 20, (2, round(number)))
        return _on_grid(first), _on_grid(second)

    crowded = kind.stars > 1000
    stars = places(kind.stars * area)
    brightest = 3000 if kind.saturation == math.inf else 30000
    faintest = 3.0 if crowded else 15.0
    slope = rng.random(len(stars[0]))
    fluxes = unit * faintest * np.minimum(slope ** -(1.0 if crowded else 1.3), brightest / faintest)
    extended = _grid(size)
    galaxies = places(kind.galaxies * area)
    brightness = unit * np.minimum(6 * rng.random(len(galaxies[0])) ** -0.9, 1500)
    radii = _galaxies(extended, *galaxies, brightness, rng)
    if kind.large:
        large = galsim.Sersic(2.0, half_light_radius=kind.large * size, trunc=size / 2)
        # As bright as 30 skies in its middle.
        at = large.xValue(galsim.PositionD(3.0, 0))
        _add(extended, large.withFlux(30 * kind.sky[0] / at), size / 2, size / 2, size / 2)
    new_x, new_y, new_flux = _transients(kind, area, size, galaxies, radii, rng)
    new_flux = new_flux * unit
    images, variances, brightest_light = [], [], np.zeros((size, size))
    moved = _displaced(size, kind.shifts, rng)
    for which, psf in enumerate(psfs):
        light = extended.copy()
        x, y, flux = *stars, fluxes
        if which == 0 and kind.shifts:
            dx, dy = moved(*stars)
            x, y = _on_grid(np.stack([x + dx, y + dy]))
        if which == 0 and kind.refracted:
            y = _on_grid(y + rng.normal(0, kind.refracted, len(y)))
        if which == 0 and kind.variable:
            varies = rng.random(len(flux)) < kind.variable
            flux = flux * np.where(varies, rng.choice([0.8, 1.2], len(flux)), 1)
        _points(light, x, y, flux)
        if which == 0:
            _points(light, new_x, new_y, new_flux)
        seen = np.maximum(_seen(light, psf, size), 0)
        if which == 0 and kind.spoil is not None:
            level = kind.spoil(size, sigma)
        else:
            level = np.zeros((size, size))
        depth, sky = np.ones(size, int), kind.sky[which]
        if which == 1:
            depth = np.where(np.arange(size) < size / 2, *kind.depth)
        np.maximum(brightest_light, seen, out=brightest_light)
        counts = rng.poisson(depth * (seen + sky + np.maximum(level, -sky))) / depth
        saturated = counts >= kind.saturation
        counts = np.minimum(counts, kind.saturation)
        scale = kind.scale if which == 1 else 1.0
        images.append(scale * (counts if kind.sky_left else counts - sky))
        # Of the pixels' own counts.
        variance = np.maximum(counts, 1) / depth
        variances.append(np.where(saturated, np.inf, scale**2 * variance))
    reach = int(max(kind.fwhm) + kind.trails)
    near = scipy.ndimage.maximum_filter(brightest_light, 2 * reach + 1)
    edge = 3 * reach + 15
    inside = np.zeros(near.shape, bool)
    inside[edge:-edge, edge:-edge] = True
    # In crowded fields the darkest third.
    dark = near <= max(0.1 * sigma, float(np.quantile(near[inside], 0.3)))
    return Field(
        images=(images[0], images[1]),
        variances=(variances[0], variances[1]),
        psfs=(_sampled(psfs[0]), _sampled(psfs[1])),
        x=new_x,
        y=new_y,
        flux=new_flux,
        stars=np.stack(stars, axis=1),
        empty=inside & dark,
        kernel_sum=1 / kind.scale,
    )


def _sampled(psf: Array) -> Array:
    """PSF at whole pixels."""
    start = len(psf) // 2 % OVER
    sampled: Array = psf[start::OVER, start::OVER]
    return sampled / sampled.sum()


def _transients(
    kind: Kind,
    area: float,
    size: int,
    galaxies: tuple[Array, Array],
    radii: Array,
    rng: np.random.Generator,
) -> tuple[Array, Array, Array]:
    """Places, apart from each other, and signal-to-noise ratios of 5 to 100."""
    number, least = round(kind.transients * area), 4 * max(kind.fwhm) + kind.trails
    x: list[float] = []
    y: list[float] = []
    for _ in range(1000 * max(number, 1)):
        if len(x) == number:
            break
        at_x, at_y = rng.uniform(2 * least, size - 2 * least, 2)
        if len(galaxies[0]) and len(x) % 2 == 0:
            host = rng.integers(len(galaxies[0]))
            turn, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0, radii[host])
            at_x = galaxies[0][host] + distance * math.cos(turn)
            at_y = galaxies[1][host] + distance * math.sin(turn)
        inside = 2 * least < min(at_x, at_y) and max(at_x, at_y) < size - 2 * least
        if inside and all(
            math.hypot(at_x - a, at_y - b) > least for a, b in zip(x, y, strict=True)
        ):
            x.append(at_x)
            y.append(at_y)
    ratios = 10 ** rng.uniform(math.log10(5), 2, len(x))
    return _on_grid(np.array(x)), _on_grid(np.array(y)), ratios
