"""Exposures to measure on: simulated pairs with Gaussian PSFs, stamps of 41 × 41 pixels."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np

from whitediff.exposures import kernels
from whitediff.exposures.kernels import ConvolutionKernel
from whitediff.exposures.model import Exposure
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.formats import read_exposure
from whitediff.matching.convolution import preconvolved
from whitediff.subtraction.difference import subtract

__all__ = ["Scene", "files", "read"]

STAMP = 41
SCIENCE_SIGMA, TEMPLATE_SIGMA = 3.0, 2.2
DENSITY = 3000 / (4000 * 4072)
"""Stars per pixel."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """A pair, and what was made of it with known kernels, before any decorrelation."""

    science: Exposure
    template: Exposure
    kernel: ConvolutionKernel
    difference: Exposure
    varying_kernel: ConvolutionKernel
    varying_difference: Exposure
    score_kernel: ConvolutionKernel
    score: Exposure


def gaussian(sigma: float, size: int = STAMP) -> np.ndarray:
    """Unit-sum Gaussian stamp."""
    axis = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    return np.outer(axis, axis) / axis.sum() ** 2


def files(shape: tuple[int, int], directory: Path) -> tuple[Path, Path]:
    """Simulate a pair of a shape, unless it is there, and name its files."""
    place = directory / f"{shape[0]}x{shape[1]}"
    if not (place / "truth.ecsv").exists():
        stars = round(DENSITY * shape[0] * shape[1])
        options = ["--size", f"{shape[1]}x{shape[0]}", "--stars", stars]
        options += ["--galaxies", stars // 10, "--transients", stars // 10]
        command = ["whitediff", "simulate", "--quiet", "--overwrite", "--output", place]
        subprocess.run([sys.executable, "-m", *map(str, command + options)], check=True)
    return place / "science.fits", place / "template.fits"


def read(shape: tuple[int, int], directory: Path) -> Scene:
    """The scene of a shape."""
    science, template = (read_exposure(path) for path in files(shape, directory))
    box = science.bbox
    science.psf, template.psf = (
        KernelPointSpreadFunction.from_image(gaussian(sigma), box)
        for sigma in (SCIENCE_SIGMA, TEMPLATE_SIGMA)
    )
    kernel = kernels.constant_kernel(gaussian(math.sqrt(SCIENCE_SIGMA**2 - TEMPLATE_SIGMA**2)), box)

    def width(x: float, y: float) -> float:
        u, v = 2 * (x + 0.5) / box.x.size - 1, 2 * (y + 0.5) / box.y.size - 1
        return 3.0 + 0.2 * u + 0.1 * v * v - 0.1 * u * v

    varying = kernels.interpolated_kernel(
        lambda x, y: gaussian(math.sqrt(width(x, y) ** 2 - TEMPLATE_SIGMA**2)), box, 2
    )
    # The kernel that matches the template to the pre-convolved science image.
    score_kernel = kernels.constant_kernel(
        gaussian(math.sqrt(2 * SCIENCE_SIGMA**2 - TEMPLATE_SIGMA**2)), box
    )
    return Scene(
        science=science,
        template=template,
        kernel=kernel,
        difference=subtract(science, template, kernel, full_variance=False),
        varying_kernel=varying,
        varying_difference=subtract(science, template, varying, full_variance=False),
        score_kernel=score_kernel,
        score=subtract(
            preconvolved(science, gaussian(SCIENCE_SIGMA)),
            template,
            score_kernel,
            full_variance=False,
        ),
    )
