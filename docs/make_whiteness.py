"""Measures what docs/whiteness.md shows, and draws its picture: python docs/make_whiteness.py

Noise-only pairs with a known kernel, in three fields; each is corrected twice, with one filter
for all of the frame and white inputs assumed, and with whitediff's own.  Minutes.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from whitediff import Exposure
from whitediff.decorrelation.exposures import DecorrelationOptions, decorrelate
from whitediff.diagnostics.measure import whiteness_map
from whitediff.exposures import kernels
from whitediff.exposures.boxes import Box
from whitediff.numerics.convolution import convolve
from whitediff.subtraction.difference import subtract

SIZE, REALISATIONS = 1200, 16
BOX = Box.from_shape((SIZE, SIZE))
EDGE = 40


def gaussian(sigma: float, size: int = 41) -> np.ndarray:
    """Unit-sum Gaussian stamp."""
    axis = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    return np.outer(axis, axis) / axis.sum() ** 2


def lanczos(shift: float, support: int = 3) -> np.ndarray:
    """Lanczos kernel of a shift along both axes."""
    x = np.arange(-support, support + 1) - shift
    axis = np.where(np.abs(x) < support, np.sinc(x) * np.sinc(x / support), 0)
    return np.outer(axis, axis) / axis.sum() ** 2


def science_width(x: float) -> float:
    """Width of the science PSF where it varies."""
    return 2.6 + 0.8 * (x + 0.5) / SIZE


VARYING = kernels.interpolated_kernel(
    lambda x, y: gaussian(math.sqrt(science_width(x) ** 2 - 4), 31), BOX, 3
)
CONSTANT = kernels.constant_kernel(gaussian(math.sqrt(5), 31), BOX)
STEP = np.where(np.arange(SIZE) < SIZE // 2, 900.0, 3600.0) * np.ones((SIZE, 1))
OURS = DecorrelationOptions(spatially_varying=True, noise="auto")
FIELDS = {
    "science PSF σ 2.6 to 3.4 px": (VARYING, 900.0, None),
    "template variance steps by 4": (CONSTANT, STEP, None),
    "half-pixel shift, Lanczos-3": (CONSTANT, 900.0, lanczos(0.5)),
}


def noise(rng, variance, resampling=None) -> Exposure:
    """Exposure of nothing but noise."""
    variance = np.broadcast_to(variance, (SIZE, SIZE)).astype(np.float32)
    pixels = rng.normal(size=(SIZE, SIZE))
    if resampling is not None:
        pixels = convolve(pixels, resampling) / math.sqrt((resampling**2).sum())
    return Exposure.from_arrays(
        (pixels * np.sqrt(variance)).astype(np.float32), variance=variance.copy()
    )


def measure(kernel, template_variance, resampling) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Filtered and pixel ratios in 3 x 3 cells, means of the realisations."""
    rng = np.random.default_rng(1)
    good = np.zeros((SIZE, SIZE), dtype=bool)
    good[EDGE:-EDGE, EDGE:-EDGE] = True
    if np.ndim(template_variance):
        good[:, SIZE // 2 - 8 : SIZE // 2 + 8] = False
    none = np.zeros((SIZE, SIZE), dtype=bool)
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for _ in range(REALISATIONS):
        science, template = noise(rng, 900.0), noise(rng, template_variance, resampling)
        difference = subtract(science, template, kernel, full_variance=False)
        for name, options in (("documented", DecorrelationOptions()), ("whitediff", OURS)):
            result = decorrelate(science, template, difference, sources=none, options=options)
            cells = whiteness_map(
                result.exposure.data, result.exposure.variance, good, gaussian(3.0)
            )
            found.setdefault(name, []).append(
                (cells.filtered_variance_ratio, cells.pixel_variance_ratio)
            )
    return {name: tuple(np.mean(values, axis=0)) for name, values in found.items()}


def main() -> None:
    """Measure, print a table and draw."""
    error = math.sqrt(4 * math.pi * 9 / ((SIZE - 2 * EDGE) ** 2 / 9 * REALISATIONS))
    figure, axes = plt.subplots(
        len(FIELDS), 2, figsize=(6.4, 9.2), layout="constrained", squeeze=False
    )
    print(f"sampling error of a cell {error:.4f}, of the mean {error / 3:.4f}")
    for row, (name, field) in zip(axes, FIELDS.items(), strict=True):
        for axis, (how, (filtered, pixels)) in zip(row, measure(*field).items(), strict=True):
            print(
                f"| {name} | {how} | {filtered.min():.3f} to {filtered.max():.3f} |"
                f" {filtered.mean():.4f} | {pixels.min():.3f} to {pixels.max():.3f} |",
                flush=True,
            )
            image = axis.imshow(filtered, origin="lower", cmap="RdBu_r", vmin=0.6, vmax=1.4)
            for (y, x), value in np.ndenumerate(filtered):
                dark = abs(value - 1) > 0.28
                axis.text(
                    x, y, f"{value:.3f}", ha="center", va="center",
                    color="white" if dark else "black",
                )  # fmt: skip
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{name}\n{how}" if how == "documented" else f"\n{how}", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.5, label="PSF-filtered variance ratio (1 is white)")
    figure.savefig(Path(__file__).parent / "images" / "whiteness.png", dpi=100)


if __name__ == "__main__":
    main()
