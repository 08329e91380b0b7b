"""Smooth displacements between two images' stars after a transformation: a Gaussian process."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..numerics.transformation import Displacements

__all__ = ["Distortion", "fit_distortion"]

type Array = npt.NDArray[Any]

_FEWEST = 15
_MOST = 800
_SHORTEST = 32.0
_STEP = math.sqrt(2)
_RATIOS = 4.0 ** np.arange(-3, 8)
"""Trial values of the displacements' variance over the squared error of a typical star."""
_FLOOR = 0.03
_CLIP = 5.0
_SIGNIFICANT = 3.0
"""Standard errors by which leave-one-out predictions have to be better than no displacements."""
_WORTHWHILE = 0.05
"""Root mean square of displacements, pixels, below which they are ignored."""


@dataclasses.dataclass(frozen=True)
class Distortion:
    """Displacements, and their quality.

    Attributes
    ----------
    displacements
        Field of displacements.
    before, after
        Root mean square along an axis, pixels, of the stars' displacements, and of the differences
        from their predictions by the other stars.
    used
        ``(n,)`` boolean: stars that agree with their neighbours.
    """

    displacements: Displacements
    before: float
    after: float
    used: Array


def fit_distortion(places: Array, left: Array, error: Array) -> Distortion | None:
    """Fit smooth displacements to the residuals of stars after a transformation.

    Parameters
    ----------
    places
        ``(n, 2)`` positions (y, x), pixels.
    left
        ``(n, 2)`` displacements there, pixels.
    error
        ``(n,)`` error of a displacement along each axis, pixels.

    Returns
    -------
    distortion
        None where there are fewer than 15 stars, displacements are below 0.05 pixels, or the
        prediction of each star by the others is not significantly better than no displacements.

    Notes
    -----
    A Gaussian process with a squared exponential covariance.  Its length and amplitude minimise
    the leave-one-out error (Rasmussen & Williams 2006, eq. 5.12).  Outliers, more than 5 times
    their error from the prediction of their neighbours, are left out.
    """
    if len(places) < _FEWEST:
        return None
    first = np.argsort(error, kind="stable")[:_MOST]
    kept = np.zeros(len(places), dtype=bool)
    kept[first] = True
    sigma = np.hypot(error, _FLOOR)
    span = float(np.ptp(places, axis=0).max())
    lengths = _SHORTEST * _STEP ** np.arange(
        max(1, math.ceil(math.log(max(2 * span / _SHORTEST, 1), _STEP)))
    )
    for _ in range(4):
        if kept.sum() < _FEWEST:
            return None
        p, d, s = places[kept], left[kept], sigma[kept]
        tried = [
            (score, float(length), float(ratio))
            for length in lengths
            for ratio, score in zip(_RATIOS, _scores(p, d, s, length), strict=True)
        ]
        _, length, ratio = min(tried)
        predicted, weights, spread = _predictions(p, d, s, length, ratio)
        away = np.abs(d - predicted).max(axis=1) / spread
        unit = max(1.0, float(np.median(away)) / 0.95)
        outliers = away > _CLIP * unit
        if not outliers.any():
            break
        kept[np.flatnonzero(kept)[outliers]] = False
    gain = ((d**2 - (d - predicted) ** 2) / s[:, None] ** 2).sum(axis=1)
    error_of_gain = float(gain.std()) * math.sqrt(len(gain))
    field = _root_mean_square(predicted, s)
    if not (float(gain.sum()) > _SIGNIFICANT * error_of_gain and field > _WORTHWHILE):
        return None
    return Distortion(
        Displacements(p, weights, length),
        _root_mean_square(d, s),
        _root_mean_square(d - predicted, s),
        kept,
    )


def _root_mean_square(values: Array, sigma: Array) -> float:
    weight = sigma[:, None] ** -2
    return math.sqrt(float((weight * values**2).sum() / (2 * weight.sum())))


def _covariance(places: Array, length: float) -> Array:
    square = ((places[:, None] - places) ** 2).sum(axis=2)
    result: Array = np.exp(-0.5 * square / length**2)
    return result


def _scores(places: Array, left: Array, sigma: Array, length: float) -> list[float]:
    """Weighted squared leave-one-out errors for all ratios, from one eigen-decomposition."""
    unit = float(np.median(sigma)) ** 2
    scaled = _covariance(places, length) / np.outer(sigma, sigma)
    values, vectors = np.linalg.eigh(scaled)
    turned = vectors.T @ (left / sigma[:, None])
    squares = vectors**2
    scores = []
    for ratio in _RATIOS:
        inverse = 1 / (1 + ratio * unit * np.maximum(values, 0))
        alpha = vectors @ (inverse[:, None] * turned)
        away = alpha / (squares @ inverse)[:, None]
        # A few outliers must not choose length and ratio.
        scores.append(float(np.minimum(away**2, 25.0 * max(1.0, float(np.median(away**2)))).sum()))
    return scores


def _predictions(
    places: Array, left: Array, sigma: Array, length: float, ratio: float
) -> tuple[Array, Array, Array]:
    """Predictions of each star by the others, weights of the field, errors of the predictions."""
    unit = float(np.median(sigma)) ** 2
    covariance = ratio * unit * _covariance(places, length)
    inverse = np.linalg.inv(covariance + np.diag(sigma**2))
    alpha = inverse @ left
    diagonal = np.diag(inverse)
    return left - alpha / diagonal[:, None], ratio * unit * alpha, diagonal**-0.5
