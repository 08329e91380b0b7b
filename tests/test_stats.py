"""Claims: the clipped mean follows its three passes; the autocorrelation is unbiased by masks;
medians of planes are those of all their pixels, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from whitediff.errors import ArgumentError
from whitediff.numerics.stats import (
    autocorrelation,
    clipped_mean,
    median_of,
    robust_sigma,
    rounding_step,
)


def clipped_mean_by_hand(values):
    values = np.sort(values)
    n = len(values)

    def quantile(f):
        rank = f * (n - 1)
        low = int(rank)
        high = min(low + 1, n - 1)
        return values[low] + (rank - low) * (values[high] - values[low])

    center, width = quantile(0.5), 3 * 0.741301109252802 * (quantile(0.75) - quantile(0.25))
    for _ in range(3):
        kept = [v for v in values if abs(v - center) <= width]
        center = sum(kept) / len(kept)
        width = 3 * np.sqrt(sum((v - center) ** 2 for v in kept) / (len(kept) - 1))
    return center, len(kept)


def test_clipped_mean_against_a_literal_computation(rng):
    values = np.concatenate([rng.normal(100, 5, 901), rng.uniform(150, 900, 40)])
    result = clipped_mean(values)
    mean, count = clipped_mean_by_hand(values)
    assert result.mean == pytest.approx(mean, rel=1e-14)
    assert result.counts[-1] == count
    assert abs(result.mean - 100) < 3 * 5 / np.sqrt(900)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("shape", [(1, 1), (20, 31), (701, 803)])
def test_medians_of_planes_are_those_of_all_pixels(rng, shape, dtype):
    skewed = 1000 * rng.exponential(size=shape)
    planes = {
        "smooth": skewed,
        "in steps": np.rint(rng.normal(0, 0.6, shape)),  # many equal values at the median
        "of two values": np.where(rng.random(shape) < 0.5, 3.0, 7.0),
        "sorted": np.sort(skewed.ravel()).reshape(shape),
        "constant": np.full(shape, 5.0),
    }
    for name, plane in planes.items():
        for share in (1.0, 0.7):
            use = rng.random(shape) < share
            use[0, 0] = True
            values = plane.astype(dtype)
            for one_less in (False, True):  # an odd number and an even one
                if one_less and np.count_nonzero(use) > 1:
                    use.flat[np.flatnonzero(use)[-1]] = False
                found = median_of(values, use)
                assert found == np.median(values[use]), (name, share)
                assert np.asarray(found).dtype == np.median(values[use]).dtype


def test_clipped_mean_leaves_out_what_it_must():
    values = np.array([[1.0, 1.0, np.nan, np.inf], [1.0, 1.0, -np.inf, 1e300]])
    good = np.ones(values.shape, dtype=bool)
    assert clipped_mean(values[:, :3], good=good[:, :3]).mean == 1.0
    assert clipped_mean(values).mean == 1.0  # 1e300 is infinite in single precision
    good[:] = False
    assert np.isnan(clipped_mean(values, good=good).mean)
    good[0, 1] = True
    assert clipped_mean(values, good=good).mean == 1.0
    with pytest.raises(ArgumentError, match="shape"):
        clipped_mean(values, good=good[:1])


def many(kind, rng):
    """Values of which a clipped mean is taken in one pass, in awkward shapes."""
    shape = (700, 611)
    noise = rng.normal(100, 5, shape)
    if kind == "sources":
        noise[rng.random(shape) < 0.12] += 4000
    elif kind == "two levels":
        noise = np.where(np.arange(shape[1]) < 300, 400.0, 900.0) * np.ones((shape[0], 1))
    elif kind == "mostly one value":
        noise = np.where(rng.random(shape) < 0.9, 300.0, noise)
    elif kind == "stripes that a sample misses":
        noise[::2] = 100
    elif kind == "not finite":
        noise[rng.random(shape) < 0.05] = np.nan
        noise[0, :5], noise[1, :5] = np.inf, -np.inf
    elif kind == "log-normal":
        noise = np.exp(rng.normal(0, 1.5, shape))
    return noise


KINDS = (
    "noise", "sources", "two levels", "mostly one value", "stripes that a sample misses",
    "not finite", "log-normal",
)  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_clipped_mean_of_many_is_that_of_all_sorted(rng, monkeypatch, kind, dtype):
    values = many(kind, rng).astype(dtype)
    good = rng.random(values.shape) > 0.1
    values.flags.writeable = good.flags.writeable = False
    result = clipped_mean(values, good=good)
    monkeypatch.setattr("whitediff.numerics.stats._FEW", values.size)  # sorts them all
    expected = clipped_mean(values, good=good)
    assert result.counts == expected.counts
    assert (result.median, result.inter_quartile_range) == (
        expected.median,
        expected.inter_quartile_range,
    )
    assert result.mean == pytest.approx(expected.mean, rel=1e-13)


def test_constant_values_survive_rounding():
    # The mean of equal numbers may round to a neighbour; they must not be clipped for it.
    for value in (0.1, 1 / 3, 1e10 / 7):
        result = clipped_mean(np.full(12345, value))
        assert result.mean == pytest.approx(value, rel=1e-14)
        assert result.counts == (12345,) * 3


def test_robust_sigma(rng):
    values = rng.normal(0, 3, 100_000)
    values[:1000] = 1e6
    assert robust_sigma(values) == pytest.approx(3, rel=0.03)
    assert np.isnan(robust_sigma(np.array([])))
    # Rounded, to steps of two sizes; what varies smoothly may be subtracted, and outliers stay out.
    for step in (0.5, np.where(np.arange(values.size) % 2, 1.0, 1.5)):
        for offset in (0.0, 0.3, np.linspace(0, 20, values.size)):
            rounded = np.rint((values + offset) / step) * step - offset
            expected = np.sqrt(9 + np.mean(np.square(step)) / 12)
            assert robust_sigma(rounded, step=step) == pytest.approx(expected, rel=0.03)
    assert robust_sigma(np.zeros(10), step=1.0) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("unit", [1.0, 1 / 1.3, 3e-19, 7e5 / 3])
@pytest.mark.parametrize("offset", [0.0, 0.371, -1000.0])
@pytest.mark.parametrize("sigma", [0.3, 0.67, 3.0])
def test_steps_of_rounded_values(rng, dtype, unit, offset, sigma):
    """In any unit, with or without what was taken off, and with outliers and gaps."""
    numbers = np.rint(rng.normal(0, sigma, 50_000))
    numbers[::97] += rng.integers(0, 5000, numbers[::97].size)
    values = ((numbers + offset) * unit).astype(dtype)
    values[5::1000] = np.nan
    assert rounding_step(values) == pytest.approx(unit, rel=1e-3)
    # One that is between two steps, and all that are.
    between = values.copy()
    between[-1] += 0.4 * unit
    assert rounding_step(between) is None
    assert rounding_step(rng.normal(0, sigma * unit, 50_000).astype(dtype)) is None


def test_steps_that_are_fine_or_none():
    assert rounding_step(np.array([])) is None
    assert rounding_step(np.full(3, np.nan)) is None
    assert rounding_step(np.zeros(100)) == 1
    assert rounding_step(np.full(100, 0.3)) is None
    # Whole numbers are told however fine they are.
    assert rounding_step(np.arange(100_000)) == 1
    assert rounding_step(np.arange(100_000) / 3) is None
    assert rounding_step(np.arange(0, 1000, 10).repeat(1000)) == 10
    # A few near values, and all others far beyond.
    for far in (1e9, -1e9, 1e30):
        values = np.repeat([0.0, far, far * (1 + 1e-7), far * (1 + 2e-7)], 1000)
        assert rounding_step(values.astype(np.float32)) in (
            None,
            1,
            pytest.approx(abs(far) * 1e-7, rel=0.5),
        )


def test_autocorrelation_against_pairs_counted_by_hand(rng):
    image = rng.normal(size=(9, 11))
    good = rng.random((9, 11)) > 0.3
    image[~good] = np.nan
    result = autocorrelation(image, good, 3)
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            products = [
                image[y, x] * image[y + dy, x + dx]
                for y in range(9)
                for x in range(11)
                if 0 <= y + dy < 9 and 0 <= x + dx < 11 and good[y, x] and good[y + dy, x + dx]
            ]
            expected = np.mean(products) / np.mean(image[good] ** 2)
            assert result[3 + dy, 3 + dx] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("shape", "max_lag"), [((530, 270), 5), ((300, 517), 70), ((3, 40), 4)])
def test_autocorrelation_of_several_tiles_against_direct_sums(rng, shape, max_lag):
    image = 0.1 + rng.normal(size=shape)
    good = rng.random(shape) > 0.2
    image[~good] = 1e9
    result = autocorrelation(image, good, max_lag)
    values = np.where(good, image, 0.0)
    assert result.shape == (2 * max_lag + 1,) * 2
    np.testing.assert_array_equal(result, result[::-1, ::-1])
    ny, nx = shape
    for dy, dx in [(0, 0), (0, 1), (1, 0), (2, -4), (max_lag, max_lag), (max_lag, -max_lag)]:
        first = (slice(0, max(0, ny - dy)), slice(max(0, -dx), nx - max(0, dx)))
        second = (slice(dy, ny), slice(max(0, dx), nx + min(0, dx)))
        pairs = (good[first] & good[second]).sum() if dy < ny else 0
        if pairs == 0:
            expected = np.nan
        else:
            expected = (values[first] * values[second]).sum() / pairs / np.mean(image[good] ** 2)
        # Machine epsilon, of transforms with some hundred pixels to a side.
        assert result[max_lag + dy, max_lag + dx] == pytest.approx(expected, abs=1e-13, nan_ok=True)


def test_autocorrelation_refuses():
    image = np.zeros((4, 5))
    with pytest.raises(ArgumentError, match=r"same 2-D shape; got \(4, 5\) and \(4,\)"):
        autocorrelation(image, image[:, 0] > 0, 1)
    with pytest.raises(ArgumentError, match="negative; got -1"):
        autocorrelation(image, image > 0, -1)


def test_autocorrelation_of_a_moving_sum_under_a_mask(rng):
    noise = rng.normal(size=(400, 401))
    image = noise[:, 1:] + noise[:, :-1]  # correlation 0.5 at lag 1 in x, none elsewhere
    good = rng.random(image.shape) > 0.4
    result = autocorrelation(image, good, 2)
    error = 5 / np.sqrt(good.sum())
    assert result[2, 3] == pytest.approx(0.5, abs=error)
    assert result[2, 4] == pytest.approx(0, abs=error)
    assert result[3, 2] == pytest.approx(0, abs=error)
