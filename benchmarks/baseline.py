"""The documented decorrelation, written down literally: what it costs to just follow the text.

Complex double-precision transforms of the whole frame on the documented grid, PSFs filtered on
the same grid, and clipped means by sorting (DMTN-021, DMTN-179).  No tricks, and no mistakes:
the benchmark checks that whitediff's results agree.
"""

from __future__ import annotations

import math

import numpy as np

IQR_TO_SIGMA = 0.741301109252802


def clipped_mean(plane: np.ndarray, bad: np.ndarray) -> float:
    """Mean after three passes of clipping at three standard deviations."""
    values = np.sort(plane[~bad & np.isfinite(plane)]).astype(np.float64)

    def quantile(fraction: float) -> float:
        rank = fraction * (len(values) - 1)
        low = int(rank)
        return values[low] + (rank - low) * (values[min(low + 1, len(values) - 1)] - values[low])

    center, width = quantile(0.5), 3 * IQR_TO_SIGMA * (quantile(0.75) - quantile(0.25))
    for _ in range(3):
        kept = values[np.abs(values - center) <= width]
        center, width = kept.mean(), 3 * kept.std(ddof=1)
    return float(center)


def common_shape(*shapes: tuple[int, int]) -> tuple[int, int]:
    """The documented grid: the two largest lengths less one, even."""
    lengths = []
    for axis in zip(*shapes, strict=True):
        first, second = sorted(axis, reverse=True)[:2]
        lengths.append((first + second - 1 + 1) // 2 * 2)
    return lengths[0], lengths[1]


def on_grid(stamp: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Stamp on a grid, its centre at the first pixel."""
    grid = np.zeros(shape)
    grid[: stamp.shape[0], : stamp.shape[1]] = stamp
    return np.roll(grid, (-(stamp.shape[0] // 2), -(stamp.shape[1] // 2)), axis=(0, 1))


def off_grid(grid: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Inverse of `on_grid`."""
    back = np.roll(grid, (shape[0] // 2, shape[1] // 2), axis=(0, 1))
    return back[: shape[0], : shape[1]]


def decorrelate(
    science_variance: np.ndarray,
    template_variance: np.ndarray,
    difference: np.ndarray,
    difference_variance: np.ndarray,
    bad: np.ndarray,
    kernel: np.ndarray,
    psf: np.ndarray,
    *,
    full_variance: bool = False,
    preconvolution_kernel: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corrected image, variance plane and PSF."""
    svar, tvar = clipped_mean(science_variance, bad), clipped_mean(template_variance, bad)
    clipped_mean(difference_variance, bad)  # for the log
    stamps = [kernel.shape, psf.shape]
    if preconvolution_kernel is not None:
        stamps.append(preconvolution_kernel.shape)
    shape = common_shape(*stamps, difference.shape)
    kernel_ft = np.fft.fft2(on_grid(kernel, shape))
    level = svar + tvar * kernel.sum() ** 2
    if preconvolution_kernel is None:
        correction = np.sqrt(level / (svar + tvar * np.abs(kernel_ft) ** 2))
        unconvolved = correction
    else:
        psf_ft = np.fft.fft2(on_grid(preconvolution_kernel, shape))
        power = np.maximum(np.abs(psf_ft) ** 2, 1e-28)
        correction = level / (svar + tvar * np.abs(kernel_ft) ** 2 / power)
        unconvolved = psf_ft.conj() * correction
    convolved = kernel_ft * correction

    finite = np.isfinite(difference)
    filled = np.where(finite, difference, difference[finite].mean(dtype=np.float64))
    padded = np.zeros(shape)
    padded[: difference.shape[0], : difference.shape[1]] = filled
    image = np.fft.ifft2(np.fft.fft2(padded) * correction).real
    image = image[: difference.shape[0], : difference.shape[1]].astype(difference.dtype)
    image[~finite] = difference[~finite]

    if full_variance:
        variance = np.zeros(difference.shape)
        for plane, mean, total in (
            (science_variance, svar, unconvolved),
            (template_variance, tvar, convolved),
        ):
            squared = np.fft.fft2(np.fft.ifft2(total).real ** 2)
            padded = np.zeros(shape)
            padded[: plane.shape[0], : plane.shape[1]] = np.where(np.isfinite(plane), plane, mean)
            result = np.fft.ifft2(np.fft.fft2(padded) * squared).real
            variance += result[: plane.shape[0], : plane.shape[1]]
    else:
        weights = [float(np.mean(np.abs(total) ** 2)) for total in (unconvolved, convolved)]
        variance = weights[0] * science_variance + weights[1] * template_variance
    variance = variance.astype(science_variance.dtype)
    clipped_mean(variance, bad)  # for the log

    corrected = off_grid(
        np.fft.ifft2(np.fft.fft2(on_grid(psf, shape)) * correction).real, psf.shape
    )
    return image, variance, corrected / math.fsum(corrected.ravel())
