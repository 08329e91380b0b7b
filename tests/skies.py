"""Pairs of images whose stars lie where an analytic transformation puts them.

Nothing here resamples: every source is drawn at its own place on either image, so that the truth
is independent of what is tested.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from whitediff import Exposure

type Array = npt.NDArray[Any]


def similarity(*, angle: float = 0.0, scale: float = 1.0, flip: bool = False) -> Array:
    """Matrix on (y, x): a rotation in degrees from x towards y, after a flip of x."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    matrix = scale * np.array([[c, s], [-s, c]])
    return matrix @ np.diag([1, -1]) if flip else matrix


@dataclasses.dataclass(frozen=True)
class Sky:
    """Sources on a science image, and on a template that sees them elsewhere."""

    seed: int = 0
    shape: tuple[int, int] = (320, 340)
    template_shape: tuple[int, int] | None = None
    matrix: Array = dataclasses.field(default_factory=lambda: np.eye(2))
    shift: tuple[float, float] = (0.0, 0.0)
    """(dy, dx) of the middle of the science image from that of the template."""
    distortion: float = 0.0
    """Root mean square along an axis, pixels of the template."""
    wavelength: float = 400.0
    stars: int = 40
    galaxies: int = 0
    rays: int = 0
    science_sigma: float = 2.2
    template_sigma: float = 1.7
    sky: tuple[float, float] = (400.0, 200.0)
    flux: tuple[float, float] = (3.9, 5.2)

    def distorted(self, yx: Array) -> Array:
        """Displacements at pixels of the science image: two waves along each axis."""
        rng = np.random.default_rng(900 + self.seed)
        result = np.zeros(yx.shape)
        for axis in range(2):
            for _ in range(3):
                angle, phase = rng.uniform(0, 2 * np.pi, 2)
                wave = 2 * np.pi / self.wavelength * np.array([np.sin(angle), np.cos(angle)])
                result[..., axis] += np.sin(yx @ wave + phase)
        return self.distortion / math.sqrt(1.5) * result

    def there(self, yx: Array) -> Array:
        """Positions on the template."""
        shapes = [np.array(shape) for shape in (self.shape, self.template_shape or self.shape)]
        middle, other = ((shape - 1) / 2 for shape in shapes)
        return (yx - middle) @ self.matrix.T + other + np.array(self.shift) + self.distorted(yx)

    def made(self, **options: Any) -> tuple[Exposure, Exposure, Array]:
        """Science exposure, template, and the stars' ``(n, 3)`` y, x and flux on the first."""
        rng = np.random.default_rng(self.seed)
        ny, nx = self.shape
        # A little beyond the edges, since the template may see more.
        places = rng.uniform([-0.2 * ny, -0.2 * nx], [1.2 * ny, 1.2 * nx], (3 * self.stars, 2))
        inner = rng.uniform([25, 25], [ny - 25, nx - 25], (self.stars, 2))
        places = np.concatenate([inner, places[~_within(places, self.shape)]])
        flux = 10 ** rng.uniform(*self.flux, len(places))
        n = self.galaxies
        blobs = rng.uniform([0, 0], [ny, nx], (n, 2))
        sizes, light = rng.uniform(2, 5, n), 10 ** rng.uniform(4.2, 5.4, n)
        scale = math.sqrt(abs(np.linalg.det(self.matrix)))
        images = []
        for which, shape in enumerate((self.shape, self.template_shape or self.shape)):
            image = np.zeros(shape)
            sigma = self.template_sigma * scale if which else self.science_sigma
            for at, total in zip(self.there(places) if which else places, flux, strict=True):
                _draw(image, at, total * (0.8 if which else 1.0), sigma)
            for at, total, size in zip(
                self.there(blobs) if which else blobs, light, sizes, strict=True
            ):
                _draw(
                    image,
                    at,
                    total * (0.8 if which else 1.0),
                    math.hypot(sigma, size * (scale if which else 1)),
                )
            variance = self.sky[which] + image / 2
            image += rng.normal(size=shape) * np.sqrt(variance)
            for _ in range(self.rays):
                at, angle = rng.uniform([10, 10], np.array(shape) - 10), rng.uniform(0, np.pi)
                for step in range(rng.integers(1, 9)):
                    y, x = np.rint(at + step * np.array([np.sin(angle), np.cos(angle)])).astype(int)
                    if 0 <= y < shape[0] and 0 <= x < shape[1]:
                        image[y, x] += 10 ** rng.uniform(3.0, 4.2)
            images.append((image.astype(np.float32), variance.astype(np.float32)))
        headers = [options.get("science_header"), options.get("template_header")]
        science, template = (
            Exposure.from_arrays(image, variance=variance, header=header)
            for (image, variance), header in zip(images, headers, strict=True)
        )
        return science, template, np.column_stack([places, flux])[: self.stars]


def _within(yx: Array, shape: tuple[int, int]) -> Array:
    return ((yx > -20) & (yx < np.array(shape) + 20)).all(axis=1)


def _draw(image: Array, at: Array, total: float, sigma: float) -> None:
    """Add a Gaussian, integrated over pixels."""
    half = math.ceil(6 * sigma)
    row, column = np.rint(at).astype(int)
    ny, nx = image.shape
    rows = np.arange(max(0, row - half), min(ny, row + half + 1))
    columns = np.arange(max(0, column - half), min(nx, column + half + 1))
    if len(rows) and len(columns):
        profile = [
            _integrated(grid - c, sigma) for grid, c in zip((rows, columns), at, strict=True)
        ]
        image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += total * np.outer(*profile)


def _integrated(distance: Array, sigma: float) -> Array:
    from scipy.special import erf

    width = math.sqrt(2) * sigma
    return 0.5 * (erf((distance + 0.5) / width) - erf((distance - 0.5) / width))
