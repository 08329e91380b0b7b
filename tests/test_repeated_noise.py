"""Noise that interpolated pixels repeat.

Claims: the variance that a filtered image has beside interpolated pixels is what the sum over all
good pixels gives, for single pixels, columns and pairs of columns, with a variance that changes;
a score's significances keep their width beside columns that either image lacks.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal

from marks import slow_after
from whitediff import Exposure
from whitediff.decorrelation.repeated_noise import excess_variance
from whitediff.evaluation.simulation import SimulationOptions, simulate
from whitediff.exposures import masks
from whitediff.numerics.interpolation import interpolated
from whitediff.subtraction.pipeline import make_all
from whitediff.subtraction.recipe import Recipe

SIZE = 33


def gaussian_filter(sigma_x, sigma_y, slope=0.0, side=15):
    y, x = np.mgrid[:side, :side] - side // 2
    image = np.exp(-0.5 * ((x - slope * y) ** 2 / sigma_x**2 + y**2 / sigma_y**2))
    return image / image.sum()


def exact_variance(filter_image, variance, missing):
    """Sum over the good pixels of their variance times what a pixel of unit height makes."""
    total = np.zeros(missing.shape)
    for y, x in zip(*np.nonzero(~missing), strict=True):
        single = np.zeros(missing.shape)
        single[y, x] = 1
        filtered = scipy.signal.fftconvolve(interpolated(single, missing), filter_image, "same")
        total += variance[y, x] * filtered**2
    return total


def missing_pixels(kind):
    missing = np.zeros((SIZE, SIZE), bool)
    if kind == "column":
        missing[:, 16] = True
    elif kind == "two columns":
        missing[:, 16:18] = True
    elif kind == "row":
        missing[15] = True
    else:
        missing[16, 17] = missing[12, 16] = missing[19, 14] = missing[20, 15] = True
    return missing


@pytest.mark.parametrize("kind", slow_after(2, ["column", "pixels", "row", "two columns"]))
@pytest.mark.parametrize("shape", slow_after(1, [((2.0, 1.2, 0.3),), ((1.3, 1.3, 0.0),)]))
def test_excess_is_that_of_the_sum_over_good_pixels(kind, shape):
    filter_image = gaussian_filter(*shape)
    missing = missing_pixels(kind)
    variance = 4.0 + np.mgrid[:SIZE, :SIZE][1] / 20
    exact = exact_variance(filter_image, variance, missing)
    plain = scipy.signal.fftconvolve(variance, filter_image**2, "same")
    wrong = np.where(missing, np.nan, variance)
    found = plain + excess_variance(filter_image, wrong, missing)
    inside = (slice(11, -11), slice(11, -11))
    assert (exact / plain)[inside].max() > 1.1
    # Middles of pairs lie between pixels, and weights below 0.02 are left out.
    np.testing.assert_allclose(found[inside] / exact[inside], 1, atol=0.08)


def test_nothing_missing_and_holes_add_nothing():
    filter_image = gaussian_filter(1.5, 1.5)
    assert not excess_variance(filter_image, np.ones((40, 40)), np.zeros((40, 40), bool)).any()
    # Nothing is said of what lies deep in a hole.
    hole = np.zeros((60, 60), bool)
    hole[20:40, 20:40] = True
    assert excess_variance(filter_image, np.ones((60, 60)), hole)[28:32, 28:32].max() < 1e-6


@pytest.mark.parametrize("which", slow_after(1, ["science", "template"]))
def test_significances_of_a_score_keep_their_width_beside_columns(which):
    width, count = np.zeros(3), np.zeros(3)
    for seed in range(2):
        made = simulate(
            SimulationOptions(
                shape=(384, 390), seed=seed, stars=40, galaxies=10, transients=0, nan_pixels=0,
                bad_columns=0, science_psf=2.0, template_psf=2.0,
            )
        )  # fmt: skip
        bad = np.zeros((384, 390), bool)
        bad[:, np.random.default_rng(seed).choice(np.arange(5, 385, 13), 20, False)] = True
        pair = []
        for role in ("science", "template"):
            simulated = getattr(made, role)
            image, mask = simulated.image.copy(), dict(simulated.mask)
            if role == which:
                image[bad] = 3e4
                mask["BAD"] = mask["BAD"] | bad
            pair.append(Exposure.from_arrays(image, variance=simulated.variance, mask=mask))
        score = make_all(*pair, Recipe(), ["score"])["score"].difference
        use = ~masks.flagged(score.mask, (*masks.UNTRUSTED_MASK_PLANES, masks.CONTAMINATED))
        use &= ~scipy.ndimage.binary_dilation(masks.flagged(score.mask, ["SOURCE"]), iterations=3)
        distance = scipy.ndimage.distance_transform_edt(~bad)
        squares = score.data**2 / score.variance
        for i, at in enumerate((distance == 1, distance == 2, distance > 6)):
            width[i] += squares[use & at].sum()
            count[i] += (use & at).sum()
    near, beside, far = width / count
    # Pixels of a filtered image are some 15 times fewer than they are.
    error = np.sqrt(2 * 15 / count[:2])
    assert abs(near / far - 1) < 0.05 + 3 * error[0]
    assert abs(beside / far - 1) < 0.05 + 3 * error[1]
