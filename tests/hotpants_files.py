"""Differences as HOTPANTS writes them, made by explicit sums; shares no code with whitediff."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

type Array = npt.NDArray[Any]

GAUSSIANS = ((4, 0.8), (2, 1.6))
COMMAND = "hotpants -inim science.fits -tmplim template.fits -outim difference.fits -hki"


def exponents(order: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(order + 1) for j in range(order - i + 1)]


def basis(width: int) -> list[Array]:
    x = np.arange(width) - width // 2
    images: list[Array] = []
    for degree, sigma in GAUSSIANS:
        factor = np.float64(np.float32(1 / (2 * sigma**2)))
        for i, j in exponents(degree):
            along_x, along_y = (np.exp(-(x**2) * factor) * x**n for n in (i, j))
            if i % 2 == 0 and j % 2 == 0:
                along_x, along_y = along_x / along_x.sum(), along_y / along_y.sum()
            image = along_y[:, None] * along_x[None, :]
            images.append(image - images[0] if images and i % 2 == 0 and j % 2 == 0 else image)
    return images


class Run:
    """A run of HOTPANTS with regions, each with a direction and coefficients.

    `regions` has ((x0, x1, y0, y1), direction, coefficients): pixels from 0, ends included.
    """

    def __init__(
        self, science: Array, template: Array, regions, *, normalization="i", width=11, order=1,
        background_order=0, step=None, buffer=None, command=COMMAND,
    ) -> None:  # fmt: skip
        self.images = {"science": science.astype(float), "template": template.astype(float)}
        self.regions, self.normalization, self.width = regions, normalization, width
        self.order, self.background_order, self.step = order, background_order, step or width
        self.half, self.basis = width // 2, basis(width)
        self.buffer = self.half if buffer is None else buffer
        given = " ".join(f"{d} {s}" for d, s in GAUSSIANS)
        self.command = (
            f"{command} -n {normalization} -ng {len(GAUSSIANS)} {given} -r {self.half} -ko {order}"
            f" -bgo {background_order}" + (f" -kcs {step}" if step else "")
        )
        self.convolved, self.difference = self._make()

    @property
    def n_coefficients(self) -> int:
        return (
            len(self.basis) * len(exponents(self.order)) + len(exponents(self.background_order)) + 1
        )

    def kernel(self, coefficients: Array, u: float, v: float) -> Array:
        image, k = coefficients[1] * self.basis[0], 2
        for n in range(1, len(self.basis)):
            for i, j in exponents(self.order):
                image = image + coefficients[k] * u**i * v**j * self.basis[n]
                k += 1
        return image

    def _make(self) -> tuple[Array, Array]:
        shape = self.images["science"].shape
        convolved, difference = np.zeros(shape), np.full(shape, 1e-30)
        for (x0, x1, y0, y1), direction, c in self.regions:
            bx0, by0 = max(0, x0 - self.buffer), max(0, y0 - self.buffer)
            nx = min(shape[1] - 1, x1 + self.buffer) - bx0 + 1
            ny = min(shape[0] - 1, y1 + self.buffer) - by0 + 1
            image = self.images[direction]
            other = self.images["science" if direction == "template" else "template"]
            start = 2 + (len(self.basis) - 1) * len(exponents(self.order))
            for y in range(max(y0, self.half), min(y1, shape[0] - self.half - 1) + 1):
                for x in range(max(x0, self.half), min(x1, shape[1] - self.half - 1) + 1):
                    column, row = x - bx0, y - by0
                    at = [
                        (p - self.half) // self.step * self.step + 2 * self.half
                        for p in (column, row)
                    ]
                    u, v = (at[0] - nx / 2) / (nx / 2), (at[1] - ny / 2) / (ny / 2)
                    kernel = self._cached(id(c), c, u, v)
                    h = self.half
                    total = np.sum(image[y - h : y + h + 1, x - h : x + h + 1] * kernel[::-1, ::-1])
                    p, q = (column - nx / 2) / (nx / 2), (row - ny / 2) / (ny / 2)
                    for k, (i, j) in enumerate(exponents(self.background_order)):
                        total += c[start + k] * p**i * q**j
                    value = other[y, x] - total
                    value = value if direction == "template" else -value
                    own = {"template": "t", "science": "i"}[direction]
                    scale = 1 / c[1] if self.normalization == own else 1.0
                    convolved[y, x], difference[y, x] = total * scale, value * scale
        return convolved, difference

    def _cached(self, key: int, c: Array, u: float, v: float) -> Array:
        cache = self.__dict__.setdefault("_kernels", {})
        if (key, u, v) not in cache:
            cache[key, u, v] = self.kernel(c, u, v)
        return cache[key, u, v]

    def header(self, *, table: bool = True) -> fits.Header:
        header = fits.Header()
        header["SOFTNAME"], header["SOFTVERS"] = "HOTPanTS", "5.1.11"
        self._region_cards(header)
        header["DIFFCMD"] = self.command
        header["PHOTNORM"], header["MASKVAL"] = self.normalization, 1e-30
        header["KERINFO"] = table
        return header

    def _region_cards(self, header: fits.Header) -> None:
        for i, ((x0, x1, y0, y1), direction, c) in enumerate(self.regions):
            header[f"REGION{i:02d}"] = f"[{x0 + 1}:{x1 + 1},{y0 + 1}:{y1 + 1}]"
            header[f"CONVOL{i:02d}"] = {"template": "TEMPLATE", "science": "IMAGE"}[direction]
            header[f"KSUM{i:02d}"] = f"{c[1]:.4f}"

    def table(self) -> fits.BinTableHDU:
        columns = [
            fits.Column(f"Region{i}", "D", array=c) for i, (_, _, c) in enumerate(self.regions)
        ]
        table = fits.BinTableHDU.from_columns(columns, name="Convolution Kernel Information")
        table.header["NGAUSS"] = len(GAUSSIANS)
        for k, (degree, sigma) in enumerate(GAUSSIANS, 1):
            table.header[f"DGAUSS{k}"], table.header[f"SGAUSS{k}"] = degree, sigma
        table.header["FWKERN"] = self.width
        table.header["CKORDER"], table.header["BGORDER"] = self.order, self.background_order
        table.header["KERINFO"] = False
        return table

    def write(self, path: Path, *, kernel_path: Path | None = None, layers: Any = ()) -> None:
        """Write the difference, with its kernel inside (-hki) or in a file of its own (-oki)."""
        header = self.header(table=kernel_path is None)
        if kernel_path is not None:
            header["KERFILE"] = kernel_path.name
            primary = fits.PrimaryHDU()
            self._region_cards(primary.header)
            fits.HDUList([primary, self.table()]).writeto(kernel_path)
        hdus = [fits.PrimaryHDU(self.difference.astype(np.float32), header), *layers]
        fits.HDUList(hdus if kernel_path else [*hdus, self.table()]).writeto(path)


def coefficients(rng: np.random.Generator, total: float, n: int, scale: float = 0.05) -> Array:
    """A kernel that smooths, of a given sum, and varies: basis 15 is the wide Gaussian."""
    values = rng.normal(0, scale / 50, n)
    values[0], values[1] = 0, total
    wide = 2 + (len(exponents(GAUSSIANS[0][0])) - 1) * 3
    values[wide : wide + 3] = 0.7 * total, scale, -scale
    values[-1] = 3.0
    return values
