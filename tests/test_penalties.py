"""Claim: the weights of the penalties on a kernel maximise the restricted likelihood.

The likelihood here is that of the data themselves, a normal distribution whose covariance follows
from the weights; the search is SciPy's, from many starts.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy

from whitediff.matching.design import _Likelihood


def problem(seed, sizes, scales, *, n=90, free=2):
    """Data of coefficients without a penalty, and of groups that each penalty holds to zero."""
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(n, free + sum(sizes)))
    truth = [rng.normal(size=free) * 5]
    truth += [rng.normal(size=k) * scale for k, scale in zip(sizes, scales, strict=True)]
    data = design @ np.concatenate(truth) + rng.normal(size=n)
    penalties, start = [], free
    for k in sizes:
        matrix = np.zeros((design.shape[1],) * 2)
        matrix[start : start + k, start : start + k] = np.eye(k)
        penalties.append((matrix, k))
        start += k
    return design, data, penalties


def deviance(logarithms, design, data, penalties, *, known):
    """−2 log of the likelihood of the data that no coefficient without a penalty changes."""
    held = sum(matrix for matrix, _ in penalties).any(axis=0)
    left = scipy.linalg.null_space(design[:, ~held].T)
    covariance = np.eye(len(data))
    for logarithm, (matrix, _) in zip(logarithms, penalties, strict=True):
        own = design[:, matrix.any(axis=0)]
        covariance = covariance + math.exp(-logarithm) * own @ own.T
    covariance, rest = left.T @ covariance @ left, left.T @ data
    square = float(rest @ np.linalg.solve(covariance, rest))
    misfit = square if known else len(rest) * math.log(square)
    return misfit + np.linalg.slogdet(covariance)[1]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("sizes", "scales"),
    [((12,), (0.3,)), ((12,), (0.0,)), ((8, 15), (1.0, 0.05)), ((5, 9, 12), (3.0, 0.0, 0.3))],
)
@pytest.mark.parametrize("seed", range(2))
def test_weights_of_largest_likelihood(seed, sizes, scales, known):
    design, data, penalties = problem(seed, sizes, scales)
    likelihood = _Likelihood(
        design.T @ design,
        design.T @ data,
        float(data @ data),
        len(data) - 2,
        penalties,
        known_noise=known,
    )
    found = likelihood.likeliest()

    def by_data(logarithms):
        return deviance(logarithms, design, data, penalties, known=known)

    best = min(
        scipy.optimize.minimize(
            by_data,
            np.full(len(sizes), start),
            method="Nelder-Mead",
            bounds=[(-20, 12)] * len(sizes),
            options={"maxfev": 150},
        ).fun
        for start in (-3.0, 3.0)
    )
    assert by_data(found) < best + 0.1
    # The same function, up to a constant.
    other = found - 1.0
    expected = by_data(other) - by_data(found)
    assert likelihood.deviance(other) - likelihood.deviance(found) == pytest.approx(
        expected, rel=1e-5, abs=1e-6
    )
