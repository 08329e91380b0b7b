"""Covariance of the noise of resampled exposures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..exposures import kernels
from ..exposures.covariance import Noise, NoiseField, noise_at
from ..exposures.fields import ChebyshevField
from ..numerics.covariance import NoiseCovariance
from ..numerics.polynomials import chebyshev_products, chebyshev_terms
from ..numerics.threads import in_threads
from .reprojection import Regridding
from .weights import half_lags, lag_map, polynomials_by_prediction, resampled_covariance

__all__ = ["resampled_noise"]

type Array = npt.NDArray[Any]

_LAGS = 6
_MOST_LAGS = 18
_CELLS, _NODES = 16, 20
"""Side of the frame over a cell's, in which covariances are averaged; number of cells on each axis,
which are denser at the frame's edges so that polynomials do not swing there."""
_DENSE = 49
_OVERSHOOT = 0.1
"""Share of the range of the cells' variances by which polynomials may leave it."""
_LINES = 64
"""Rows and columns of a window two cells wide whose crossings are averaged."""
_SEED = 20260801
_HARMONICS = 3
"""Harmonics of the phase in which a covariance is written: the fourth has less than 1e-4."""
_JACOBIAN_ORDER = 2
_NOISE_ORDER = 10
_DISTORTED_ORDER = 4
"""With local distortions phases wander, and higher orders would overshoot at the edges."""
_NOISE_TOLERANCE = 0.005
"""Error of a covariance that is good enough: root of the sum of squares over the lags, over the
variance."""


def resampled_noise(
    job: Regridding, noise: Noise
) -> tuple[NoiseCovariance | NoiseField, ChebyshevField]:
    """Covariance of a resampled exposure's noise, and the variance of its pixels.

    Parameters
    ----------
    job
        The resampling.
    noise
        Covariance of the template's noise before resampling.

    Returns
    -------
    covariance
        One covariance everywhere, or polynomials of the position up to the 10th order.
    gain
        Variance of a resampled pixel over the template's, before any change of the pixel's area.

    Notes
    -----
    The covariance depends on a pixel's phase, its position between the template's pixels, as a
    sum of few harmonics.  Where phases change slowly, the result follows them.  Where they change
    within a few pixels, as in a rotation, it is the mean over all phases.
    """
    smallest, _ = job.scales
    further = 0 if noise is None else _middle_noise(job, noise).max_lag
    lags = half_lags(min(_MOST_LAGS, math.ceil((_LAGS + further) / min(1.0, smallest))))
    centers = 0.5 - 0.5 * np.cos(np.pi * (np.arange(_NODES) + 0.5) / _NODES)
    v, u = (2 * grid.ravel() - 1 for grid in np.meshgrid(centers, centers, indexing="ij"))
    # The harmonics vary slowly, with the Jacobian and the template's noise, so low orders do.
    order = 0 if job.is_linear and not callable(noise) else _JACOBIAN_ORDER
    harmonics = _harmonics(job, noise, lags, order)
    slow = (chebyshev_products(order, u, v) @ harmonics.reshape(len(harmonics), -1)).reshape(
        len(u), *harmonics.shape[1:]
    )
    phases = _mean_phases(job, centers)
    cells = np.einsum("nkl,nk->nl", slow, phases).real
    fitted, order = _fitted(
        cells, u, v, _NOISE_ORDER if job.map.displacements is None else _DISTORTED_ORDER
    )
    coefficients = np.zeros((order + 1, order + 1))
    for (p, q), value in zip(chebyshev_terms(order), fitted[:, 0], strict=True):
        coefficients[p, q] = value
    gain = ChebyshevField(job.box, coefficients)
    images = lag_map(fitted, lags)
    text = f"resampled, {job.method}"
    if order == 0:
        return NoiseCovariance(images[0] / images[0].max(), text), gain
    return NoiseField(kernels.term_kernel(images, order, job.box), text), gain


def _fitted(cells: Array, u: Array, v: Array, largest_order: int) -> tuple[Array, int]:
    """Polynomials through the cells' covariances whose variance hardly leaves the cells' range."""
    tolerance = _NOISE_TOLERANCE * float(cells[:, 0].mean())
    least, most = float(cells[:, 0].min()), float(cells[:, 0].max())
    beyond = _OVERSHOOT * (most - least) + tolerance
    line = np.linspace(-1, 1, _DENSE)
    y, x = (grid.ravel() for grid in np.meshgrid(line, line, indexing="ij"))
    while True:
        fitted, order = polynomials_by_prediction(
            cells, u, v, largest_order=largest_order, tolerance=tolerance
        )
        if order == 0:
            # Cells are denser at the edges, where each stands for less of the frame.
            area = np.sqrt((1 - u**2) * (1 - v**2))
            return np.average(cells, axis=0, weights=area)[None], 0
        variance = chebyshev_products(order, x, y) @ fitted[:, 0]
        if variance.min() > least - beyond and variance.max() < most + beyond:
            return fitted, order
        largest_order = order - 1


def _wave_numbers() -> Array:
    """Harmonics (k_y, k_x) of the phases, ``(n, 2)``."""
    k = np.arange(-_HARMONICS, _HARMONICS + 1)
    return np.stack([grid.ravel() for grid in np.meshgrid(k, k, indexing="ij")], 1)


def _harmonics(job: Regridding, noise: Noise, lags: Array, order: int) -> Array:
    """Covariance as harmonics of the phase, polynomials of the position.

    ``(terms, harmonics, lags)``.
    """
    n = 2 * _HARMONICS + 2
    phases = np.stack(
        [grid.ravel() for grid in np.meshgrid(*[np.arange(n) / n] * 2, indexing="ij")]
    )
    waves = np.exp(-2j * np.pi * (_wave_numbers() @ phases)) / n**2
    nodes = np.cos(
        np.pi * (np.arange(order + 2 if order else 1) + 0.5) / (order + 2 if order else 1)
    )
    v, u = (grid.ravel() for grid in np.meshgrid(nodes, nodes, indexing="ij"))

    def at(place: tuple[float, float]) -> Array:
        row, column = (
            np.array([part.start + 0.5 * (1 + w) * (part.stop - part.start - 1)])
            for w, part in zip(place, (job.map.rows, job.map.columns), strict=True)
        )
        y, x, jacobian = job.map.at(row, column)
        there = noise_at(noise, *job.template_coordinates(float(y[0]), float(x[0])))
        found = resampled_covariance(
            job.kernel, phases[0], phases[1], np.repeat(jacobian, n**2, axis=0), lags, noise=there
        )
        result: Array = waves @ found
        return result

    values = np.stack(in_threads(at, zip(v, u, strict=True)))
    solution: Array = np.linalg.pinv(chebyshev_products(order, u, v)) @ values.reshape(len(v), -1)
    return solution.reshape(-1, *values.shape[1:])


def _mean_phases(job: Regridding, centers: Array) -> Array:
    """Means of the harmonics over the pixels around the middles of cells, ``(n, harmonics)``."""
    rng = np.random.default_rng(_SEED)
    # Random rows and columns, since regular ones would be in step with some grids.
    offsets = rng.uniform(-1, 1, (2, len(centers), _LINES))
    window = np.cos(0.5 * np.pi * offsets) ** 2

    def pixels(part: slice, center: float, offset: Array) -> Array:
        n = part.stop - part.start
        at = np.floor(part.start + (center + offset / _CELLS) * n)
        # Mirrored at the edges, so that every cell averages equally many pixels of the frame.
        at = np.where(at < part.start, 2 * part.start - 1 - at, at)
        mirrored: Array = np.where(at >= part.stop, 2 * part.stop - 1 - at, at)
        return mirrored

    def cells_of_a_row(i: int) -> Array:
        rows = pixels(job.map.rows, centers[i], offsets[0, i])
        means = []
        for j, center in enumerate(centers):
            columns = pixels(job.map.columns, center, offsets[1, j])
            y, x = job.map.on(rows, columns)
            weights = window[0, i][:, None] * window[1, j]
            weights /= weights.sum()
            along_y, along_x = (_powers(np.exp(2j * np.pi * at.ravel())) for at in (y, x))
            means.append(((along_y * weights.ravel()) @ along_x.T).ravel())
        return np.array(means)

    return np.concatenate(in_threads(cells_of_a_row, range(len(centers))))


def _powers(first: Array) -> Array:
    """Powers −H to H of numbers of modulus 1, in the order of `_wave_numbers`, ``(2H + 1, n)``."""
    result = np.ones((2 * _HARMONICS + 1, first.size), dtype=complex)
    for k in range(1, _HARMONICS + 1):
        result[_HARMONICS + k] = result[_HARMONICS + k - 1] * first
        result[_HARMONICS - k] = result[_HARMONICS + k].conj()
    return result


def _middle_noise(job: Regridding, noise: Noise) -> NoiseCovariance:
    box = job.template.bbox
    found = noise_at(noise, box.x.center, box.y.center)
    assert found is not None
    return found
