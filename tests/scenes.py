"""Small scenes and oracles that several tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whitediff.evaluation.simulation import PsfModel, matching_kernel

type Array = npt.NDArray[Any]

SHARED = Path(__file__).resolve().parents[2] / "shared"


def gaussian(size: int, sigma: float) -> Array:
    half = np.arange(size) - size // 2
    profile = np.exp(-0.5 * (half / sigma) ** 2)
    image = np.outer(profile, profile)
    return image / image.sum()


def moffat_psfs(size: int = 25) -> tuple[Array, Array]:
    """Elliptical, off-centre Moffat PSFs of a science image and a sharper template."""
    common: dict[str, Any] = {"frame": (100, 100), "profile": "moffat", "beta": 3.0}
    science = PsfModel(sigma=2.0, ellipticity=(0.12, -0.2), offset=(0.3, -0.2), **common)
    template = PsfModel(sigma=1.5, ellipticity=(-0.05, 0.1), offset=(-0.1, 0.15), **common)
    stamps = [psf.stamp(50.0, 50.0, size=size) for psf in (science, template)]
    return stamps[0] / stamps[0].sum(), stamps[1] / stamps[1].sum()


def moffat_kernel(size: int = 21, kernel_sum: float = 1.3) -> Array:
    """Matching kernel with neither symmetry nor unit sum: it shows flips and conjugates."""
    science, template = moffat_psfs(129)
    return matching_kernel(science, template, size=size, kernel_sum=kernel_sum)


def place(kernel: Array, shape: tuple[int, int]) -> Array:
    """Kernel on a periodic grid with its centre at [0, 0], pixel by pixel."""
    grid = np.zeros(shape)
    ky, kx = kernel.shape
    for j in range(ky):
        for i in range(kx):
            grid[(j - ky // 2) % shape[0], (i - kx // 2) % shape[1]] += kernel[j, i]
    return grid


def circulant(kernel_on_grid: Array) -> Array:
    """Dense matrix of the periodic convolution with a kernel whose origin is [0, 0]."""
    ny, nx = kernel_on_grid.shape
    y, x = (a.ravel() for a in np.mgrid[:ny, :nx])
    return kernel_on_grid[(y[:, None] - y[None, :]) % ny, (x[:, None] - x[None, :]) % nx]


def direct_convolution(image: Array, kernel: Array) -> Array:
    """Σ_a image(x − a) kernel(a), zero outside, by explicit loops over the kernel."""
    ny, nx = image.shape
    ky, kx = kernel.shape
    result = np.zeros(image.shape)
    for j in range(ky):
        for i in range(kx):
            dy, dx = j - ky // 2, i - kx // 2
            for y in range(max(0, dy), min(ny, ny + dy)):
                low, high = max(0, dx), min(nx, nx + dx)
                result[y, low:high] += kernel[j, i] * image[y - dy, low - dx : high - dx]
    return result


def command(*arguments: object) -> tuple[int, str, str]:
    """Run the command line in this process: exit code, standard output, standard error."""
    import contextlib
    import io
    import sys

    from whitediff.cli.main import main

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["whitediff", *map(str, arguments)]
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = before
    return int(str(code or 0)), out.getvalue(), err.getvalue()


def fails_or_dies(item: int) -> int:
    """Work of another process, which must import as little as possible."""
    import os

    from whitediff.errors import ArgumentError

    if item == 2:
        raise ArgumentError("Two is refused.")
    if item == 5:
        os._exit(3)
    return item**2


def difference_of(science: Any, template: Any) -> Any:
    """Difference that the pipeline makes of two exposures."""
    from whitediff.subtraction.pipeline import make_all

    return make_all(science, template)["difference"].difference
