"""Pairs of images on two grids, and what is left of their sources in a difference."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from whitediff import Exposure
from whitediff.alignment.mapping import positions_on
from whitediff.evaluation.simulation import PsfModel
from whitediff.exposures import masks
from whitediff.formats import write_exposure

type Array = npt.NDArray[Any]

DISTORTIONS: dict[str, dict[str, Any]] = {
    "TAN": {},
    "TPV": {
        "PV1_0": 1e-4, "PV1_1": 1.001, "PV1_2": 2e-3, "PV1_4": 0.03, "PV1_5": -0.01,
        "PV1_7": 0.05, "PV2_0": -1e-4, "PV2_1": 0.999, "PV2_2": -1e-3, "PV2_4": -0.02,
        "PV2_6": 0.01, "PV2_7": 0.04,
    },
    "TAN-SIP": {
        "A_ORDER": 3, "B_ORDER": 3, "A_2_0": 2e-6, "A_1_1": -1e-6, "A_3_0": 3e-10,
        "B_0_2": -2e-6, "B_2_0": 1e-6, "B_1_2": 5e-10,
    },
}  # fmt: skip
"""Cards of projections; the distortions move pixels 1000 from the middle by about 2."""


def sky_header(
    shape: tuple[int, int],
    *,
    scale: float = 0.25,
    rotation: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    projection: str = "TAN",
    mirrored: bool = False,
) -> fits.Header:
    """WCS whose reference point is the middle of an array, moved by (x, y) pixels.

    Scale in arc seconds, rotation in degrees.
    """
    cards = fits.Header()
    c, s = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    for axis, (kind, size, move, value) in enumerate(
        (("RA--", shape[1], shift[0], 150.0), ("DEC-", shape[0], shift[1], 2.0)), start=1
    ):
        cards[f"CTYPE{axis}"] = f"{kind}-{projection}"
        cards[f"CRPIX{axis}"], cards[f"CRVAL{axis}"] = (size + 1) / 2 + move, value
    step, across = scale / 3600, scale / 3600 * (-1 if mirrored else 1)
    cards["CD1_1"], cards["CD1_2"] = -across * c, step * s
    cards["CD2_1"], cards["CD2_2"] = across * s, step * c
    cards.update(DISTORTIONS[projection])
    return cards


@dataclasses.dataclass(frozen=True)
class Scene:
    """Stars and transients on a science image and on a template of another grid."""

    shape: tuple[int, int] = (512, 512)
    template_shape: tuple[int, int] = (512, 512)
    rotation: float = 3.0
    scale: float = 1.1
    shift: tuple[float, float] = (3.3, -5.7)
    projection: str = "TAN"
    science_sigma: float = 2.6
    template_sigma: float = 1.9
    sky: tuple[float, float] = (900.0, 300.0)
    stars: int = 80
    transients: int = 20
    seed: int = 1

    def write(self, directory: Path) -> dict[str, Array]:
        """Write science.fits and template.fits; x, y and flux of stars and transients come back."""
        rng = np.random.default_rng(self.seed)
        ny, nx = self.shape
        x, y = rng.uniform(-20, nx + 20, self.stars), rng.uniform(-20, ny + 20, self.stars)
        flux = 10 ** rng.uniform(3.6, 5.5, self.stars)
        places = np.stack([x, y], 1)
        while len(places) < self.stars + self.transients:
            place = rng.uniform(40, [nx - 40, ny - 40])
            if np.hypot(*(places - place).T).min() > 25:
                places = np.concatenate([places, [place]])
        new = 10 ** rng.uniform(4.4, 5.0, self.transients)
        truth = {
            "stars": np.stack([x, y, flux]),
            "transients": np.stack([*places[self.stars :].T, new]),
        }
        headers = (
            sky_header(self.shape),
            sky_header(
                self.template_shape,
                scale=0.25 * self.scale,
                rotation=self.rotation,
                shift=self.shift,
                projection=self.projection,
            ),
        )
        widths = (self.science_sigma, self.template_sigma / self.scale)
        shapes = (self.shape, self.template_shape)
        for name, header, width, shape, sky, ellipticity in zip(
            ("science", "template"), headers, widths, shapes, self.sky,
            ((0.08, -0.05), (-0.03, 0.06)), strict=True,
        ):  # fmt: skip
            psf = PsfModel(
                sigma=width, frame=shape, profile="moffat", beta=3.5, ellipticity=ellipticity
            )
            sources = truth["stars"]
            if name == "science":
                sources = np.concatenate([sources, truth["transients"]], axis=1)
            else:
                empty = [
                    Exposure.from_arrays(np.zeros(s, np.float32), variance=1.0, header=h)
                    for s, h in zip(shapes, headers, strict=True)
                ]
                moved = positions_on(empty[0].wcs, empty[1].wcs, sources[0], sources[1])
                sources = np.stack([*moved, sources[2]])
            image = drawn(shape, psf, *sources)
            variance = sky + image / 2
            image += rng.normal(size=shape) * np.sqrt(variance)
            exposure = Exposure.from_arrays(
                image.astype(np.float32),
                variance=variance.astype(np.float32),
                header=header,
                psf=psf.image(shape[1] / 2, shape[0] / 2),
            )
            write_exposure(exposure, directory / f"{name}.fits", overwrite=True)
        return truth


def drawn(shape: tuple[int, int], psf: PsfModel, x: Array, y: Array, flux: Array) -> Array:
    """Image of point sources."""
    image, half = np.zeros(shape), psf.stamp_size // 2
    for at_x, at_y, total in zip(x, y, flux, strict=True):
        column, row = math.floor(at_x + 0.5) - half, math.floor(at_y + 0.5) - half
        rows = slice(max(0, row), max(0, min(shape[0], row + 2 * half + 1)))
        columns = slice(max(0, column), max(0, min(shape[1], column + 2 * half + 1)))
        stamp = psf.stamp(at_x, at_y)
        image[rows, columns] += (
            total
            * (
                stamp[
                    rows.start - row : rows.stop - row,
                    columns.start - column : columns.stop - column,
                ]
            )
        )
    return image


def residuals(difference: Exposure, stars: Array, *, half: int = 5) -> Array:
    """Mean squares of a difference's pixels over their variance, around each star inside."""
    image = difference.data.astype(float)
    variance = difference.variance
    bad = masks.flagged(difference.mask, ("BAD", "SAT", "NO_DATA", "EDGE", "CONTAMINATED"))
    found = []
    for x, y, _ in stars.T:
        part = tuple(slice(round(at) - half, round(at) + half + 1) for at in (y, x))
        inside = all(p.start >= 0 and p.stop <= n for p, n in zip(part, image.shape, strict=True))
        if inside and not bad[part].any():
            found.append(float((image[part] ** 2 / variance[part]).mean()))
    return np.array(found)


def flux_ratios(difference: Exposure, sources: Array, *, radius: float = 10) -> tuple[Array, Array]:
    """Fluxes by the difference's PSF over the true ones, and their errors."""
    image, variance = difference.data, difference.variance
    bad = masks.flagged(difference.mask, ("BAD", "SAT", "NO_DATA", "EDGE", "CONTAMINATED"))
    assert difference.psf is not None
    ratios, errors = [], []
    for x, y, flux in sources.T:
        star, box = difference.psf.star(x=x, y=y)
        part = (slice(box.y.start, box.y.stop), slice(box.x.start, box.x.stop))
        if min(part[0].start, part[1].start) < 0 or star.shape != image[part].shape:
            continue
        dy = np.arange(box.y.start, box.y.stop)[:, None] - y
        dx = np.arange(box.x.start, box.x.stop) - x
        near = np.hypot(dy, dx) < radius
        if (bad[part] & near).any():
            continue
        weight = np.where(near, star, 0)
        norm = (weight * star).sum()
        ratios.append((weight[near] * image[part][near]).sum() / norm / flux)
        errors.append(math.sqrt((weight[near] ** 2 * variance[part][near]).sum()) / norm / flux)
    return np.array(ratios), np.array(errors)
