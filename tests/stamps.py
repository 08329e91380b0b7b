"""Cut-outs with known truth: stars, galaxies and a transient, integrated over undersampled pixels.

Everything is a sum of Gaussians, whose integrals over pixels are exact: a PSF is two of them, a
core and wings, a galaxy four that follow an exponential profile.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.special

import whitediff
from whitediff.errors import TooFewSourcesError
from whitediff.matching.preparation import PreparationOptions
from whitediff.subtraction.cutouts import kernel_source
from whitediff.subtraction.pipeline import cutout_made
from whitediff.subtraction.recipe import CutoutOptions, Recipe

_CORE = ((0.8, 1.0), (0.2, 2.2))
"""Parts of a PSF's flux, and their widths over the core's."""
_EXPONENTIAL = ((0.10, 0.35), (0.30, 0.75), (0.40, 1.35), (0.20, 2.2))
"""The same of a galaxy, over its scale length."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """What a cut-out shows; fluxes in units of the template."""

    side: int = 63
    stars: int = 4
    star_flux: tuple[float, float] = (1500.0, 20000.0)
    host: float = 0.0
    host_length: float = 1.5
    host_ellipticity: float = 0.3
    transient: float = 1500.0
    science_fwhm: float = 2.5
    template_fwhm: float = 2.0
    science_noise: float = 10.0
    template_noise: float = 2.0
    gain: float = math.inf
    scale: float = 1.0
    shift: tuple[float, float] = (0.12, -0.08)
    knows_noise: bool = True


def profile(side, x, y, flux, sigma, ratio=1.0, angle=0.0):
    """A Gaussian over pixels; a round one exactly, an elliptical one on a grid of 5 x 5."""
    edges = np.arange(side + 1) - 0.5
    if ratio == 1:
        parts = [np.diff(scipy.special.ndtr((edges - c) / sigma)) for c in (x, y)]
        return flux * np.outer(parts[1], parts[0])
    fine = (np.arange(5 * side) - 2) / 5
    u, v = fine[None, :] - x, fine[:, None] - y
    a = math.cos(angle) * u + math.sin(angle) * v
    b = -math.sin(angle) * u + math.cos(angle) * v
    value = np.exp(-0.5 * ((a / sigma) ** 2 + (b / (ratio * sigma)) ** 2))
    value /= 2 * math.pi * ratio * sigma**2 * 25
    return flux * value.reshape(side, 5, side, 5).sum(axis=(1, 3))


def star(side, x, y, flux, fwhm):
    """A star, of core and wings."""
    sigma = fwhm / 2.3548
    return sum(profile(side, x, y, part * flux, width * sigma) for part, width in _CORE)


def galaxy(side, x, y, flux, fwhm, length, ellipticity, angle):
    """An exponential galaxy, convolved with that PSF."""
    total = np.zeros((side, side))
    for own, psf_width in _CORE:
        for part, width in _EXPONENTIAL:
            long = math.hypot(psf_width * fwhm / 2.3548, width * length)
            short = math.hypot(psf_width * fwhm / 2.3548, width * length * (1 - ellipticity))
            total += profile(side, x, y, own * part * flux, long, short / long, angle)
    return total


def psf(fwhm, side=31):
    """Image of the PSF, of unit sum."""
    image = star(side, side // 2, side // 2, 1.0, fwhm)
    return image / image.sum()


def make(cut: Cut, seed: int):
    """Science and template exposures, and where the transient lies."""
    rng = np.random.default_rng([seed, cut.side])
    side, middle = cut.side, (cut.side - 1) / 2
    place = middle + rng.uniform(-0.5, 0.5, 2)
    science, template = np.zeros((2, side, side))
    dx, dy = cut.shift
    kept: list[tuple[float, float]] = []
    while len(kept) < cut.stars:
        x, y = rng.uniform(6, side - 7, 2)
        if all(math.hypot(x - a, y - b) > 8 for a, b in [tuple(place), *kept]):
            kept.append((x, y))
    for x, y in kept:
        flux = math.exp(rng.uniform(*np.log(cut.star_flux)))
        science += star(side, x, y, cut.scale * flux, cut.science_fwhm)
        template += star(side, x + dx, y + dy, flux, cut.template_fwhm)
    if cut.host:
        x, y = place + rng.normal(0, 0.7, 2)
        shape = (cut.host_length, cut.host_ellipticity, rng.uniform(0, math.pi))
        science += galaxy(side, x, y, cut.scale * cut.host, cut.science_fwhm, *shape)
        template += galaxy(side, x + dx, y + dy, cut.host, cut.template_fwhm, *shape)
    science += star(side, *place, cut.transient, cut.science_fwhm)
    noisy, variances = [], []
    for image, noise in ((science, cut.science_noise), (template, cut.template_noise)):
        variance = noise**2 + image / cut.gain
        noisy.append((rng.normal(image, np.sqrt(variance)) + 100).astype(np.float32))
        variances.append(variance.astype(np.float32) if cut.knows_noise else 1.0)
    exposures = [
        whitediff.Exposure.from_arrays(image, variance=variance)
        for image, variance in zip(noisy, variances, strict=True)
    ]
    return *exposures, (float(place[0]), float(place[1]))


def subtract_cutout(
    science: Any,
    template: Any,
    *,
    transient: tuple[float, float] | None = None,
    flux_scale: float | None = None,
    kernel_from: Any = "auto",
    rescale_variance: bool = True,
) -> Any:
    """Difference of two cut-outs around a transient, whether or not they have enough stars."""
    science, template = (whitediff.Exposure.from_object(each) for each in (science, template))
    recipe = Recipe(
        preparation=PreparationOptions(rescale_variance=rescale_variance),
        cutout=CutoutOptions(kernel_from=kernel_from, flux_scale=flux_scale, place=transient),
    )
    unusual = TooFewSourcesError("They are more than cut-outs.")
    source = kernel_source(science, template, recipe.cutout, unusual)
    assert source is not None
    return cutout_made(science, template, source, recipe)
