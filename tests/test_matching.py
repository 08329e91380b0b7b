"""The Alard-Lupton fit against an explicit design matrix and against known kernels.

Claims: the batched normal equations give the least-squares solution of the explicit problem;
kernels are recovered, also off-centre elliptical ones that vary over the field, with their
sum and a sloping background, and those of a PSF that widens over the field; its errors are the
scatter of realisations; weights of zero make pixels irrelevant; variable stars are rejected; the
order of the variation is found; too few stars are an error.  PSFs measured from stars are the true
ones, whatever galaxies and neighbours there are; widths are those at half maximum.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import threadpoolctl
from scipy.ndimage import fourier_shift

from scenes import gaussian
from whitediff.errors import ArgumentError, DataError
from whitediff.evaluation.simulation import (
    PsfModel,
    SimulationOptions,
    matching_kernel,
    simulate,
)
from whitediff.matching.background import fit_background
from whitediff.matching.basis import delta_basis, gaussian_basis, gaussian_sigmas, kernel_size
from whitediff.matching.design import FitOptions
from whitediff.matching.normals import normal_equations
from whitediff.matching.psf import measure_psf, star_width
from whitediff.matching.solve import choose_kernel_order, fit_kernel
from whitediff.matching.varying import residual_stamps, varying_pixels
from whitediff.noise.covariance import resampling_covariance
from whitediff.numerics.convolution import convolve
from whitediff.numerics.polynomials import chebyshev_products, chebyshev_terms
from whitediff.stars.candidates import CandidateOptions, choose_candidates, find_sources
from whitediff.stars.stamps import Stamps

FRAME = (1000, 1000)
SIZE = 43


def test_widths_and_sizes_are_scaled_from_the_psfs():
    assert gaussian_sigmas(3.0, 2.2) == pytest.approx([1.0198, 2.0396, 4.0792], abs=1e-4)
    assert gaussian_sigmas(2.3, 2.2)[0] == 0.7
    assert gaussian_sigmas(2.2, 2.3)[0] == 0.4
    assert gaussian_sigmas(2.2, 2.2) == (0.7, 1.5, 3.0)
    assert kernel_size((1.0, 2.0, 4.08)) == 25
    assert kernel_size((0.7, 1.4, 2.8)) == 21
    assert kernel_size((3.0, 6.0, 12.0)) == 35
    with pytest.raises(ArgumentError, match="positive; got 0"):
        gaussian_sigmas(0.0, 1.0)


def test_gaussian_basis_keeps_the_sum_in_its_first_image():
    basis = gaussian_basis((0.7, 1.4, 2.8), size=21)
    assert len(basis) == 15 + 6 + 6
    sums = basis.images.sum(axis=(1, 2))
    assert sums[0] == pytest.approx(1, rel=1e-14)
    np.testing.assert_allclose(sums[1:], 0, atol=1e-13)
    np.testing.assert_allclose((basis.images[1:] ** 2).sum(axis=(1, 2)), 1, rtol=1e-12)
    # Independent: no image is made of the others.
    assert np.linalg.matrix_rank(basis.images.reshape(27, -1), tol=1e-10) == 27
    with pytest.raises(ArgumentError, match="3 widths and 2 degrees"):
        gaussian_basis((1.0, 2.0, 4.0), degrees=(4, 2))


def test_delta_basis_is_complete_and_smooth_costs_nothing(rng):
    basis = delta_basis(5)
    sums = basis.images.sum(axis=(1, 2))
    assert sums[0] == 1
    np.testing.assert_allclose(sums[1:], 0, atol=1e-15)
    assert np.linalg.matrix_rank(basis.images.reshape(25, -1)) == 25
    kernel = rng.normal(size=(5, 5))
    coefficients = np.linalg.solve(basis.images.reshape(25, -1).T, kernel.ravel())
    assert coefficients[0] == pytest.approx(kernel.sum())
    padded = np.pad(kernel, 2)  # what lies outside is zero, and its edge costs
    laplacian = (
        padded[:-2, 1:-1]
        + padded[2:, 1:-1]
        + padded[1:-1, :-2]
        + padded[1:-1, 2:]
        - 4 * padded[1:-1, 1:-1]
    )
    roughness = coefficients @ basis.penalty @ coefficients
    assert roughness == pytest.approx((laplacian**2).sum())


def make_stamps(
    rng, n, kernel_at, *, psf=None, reach=10, size=SIZE, noise=1.0, background=lambda x, y: 0.0,
    faintest=2e3, brightest=1e5,
):  # fmt: skip
    """Stars of known PSF, and what a known kernel makes of them."""
    psf = psf or PsfModel(sigma=2.2, frame=FRAME)
    width = size + 2 * reach
    source, target = np.empty((n, width, width)), np.empty((n, size, size))
    x, y = rng.uniform(-0.95, 0.95, (2, n))
    wide = width + 2 * reach
    for i in range(n):
        star = psf.stamp(*rng.uniform(-0.5, 0.5, 2), size=wide)
        star = star * np.exp(rng.uniform(np.log(faintest), np.log(brightest)))
        matched = convolve(star, kernel_at(x[i], y[i]))
        source[i] = star[reach:-reach, reach:-reach]
        target[i] = matched[2 * reach : -2 * reach, 2 * reach : -2 * reach] + background(x[i], y[i])
    source += rng.normal(0, 0.3 * noise, source.shape)
    target += rng.normal(0, noise, target.shape)
    # The noise of the convolved source is small beside the target's.
    variance = noise**2 * (1 + 0.09 * (kernel_at(0, 0) ** 2).sum())
    return Stamps(source, target, np.full(target.shape, 1 / variance), x, y)


def kernel_of(fit, basis, x, y):
    weights = [np.polynomial.chebyshev.chebval2d(y, x, c) for c in fit.kernel_coefficients]
    return np.tensordot(weights, basis.images, axes=1)


def background_of(fit, x, y):
    return np.polynomial.chebyshev.chebval2d(y, x, fit.background_coefficients)


def distance(a, b):
    return np.sqrt(((a - b) ** 2).sum() / (b**2).sum())


def matched_distance(kernel, truth, psf):
    """Distance of what two kernels make of a PSF: beyond its frequencies nothing is known."""
    star = psf.stamp(0, 0, size=91)
    return distance(convolve(star, kernel), convolve(star, truth))


@pytest.mark.parametrize("constant_sum", [True, False])
def test_normal_equations_are_those_of_the_explicit_problem(rng, constant_sum):
    basis = dataclasses.replace(gaussian_basis((0.8, 1.6), degrees=(1, 0), size=7), penalty=None)
    stamps = make_stamps(rng, 6, lambda x, y: gaussian(7, 1.0 + 0.1 * x), reach=3, size=11)
    weight = rng.uniform(0.5, 1.5, stamps.weight.shape)
    weight[:, 2, 3] = 0
    stamps = Stamps(stamps.source, stamps.target, weight, stamps.x, stamps.y)
    options = FitOptions(
        kernel_order=1, background_order=1, constant_sum=constant_sum, rejections=0,
        largest_mean=1e9, largest_rms=1e9, sum_clip=1e9,
    )  # fmt: skip
    fit = fit_kernel(stamps, basis, options)
    rows, values = [], []
    spatial = [
        lambda x, y, p=p, q=q: np.cos(p * np.arccos(y)) * np.cos(q * np.arccos(x))
        for p, q in chebyshev_terms(1)
    ]
    for i in range(6):
        images = [convolve(stamps.source[i], b)[3:-3, 3:-3].ravel() for b in basis.images]
        terms = [f(stamps.x[i], stamps.y[i]) for f in spatial]
        columns = [images[0] * t for t in (terms[:1] if constant_sum else terms)]
        columns += [image * t for image in images[1:] for t in terms]
        columns += [np.ones(121) * t for t in terms]
        root = np.sqrt(weight[i].ravel())
        rows.append(np.stack(columns, 1) * root[:, None])
        values.append(stamps.target[i].ravel() * root)
    expected = np.linalg.lstsq(np.concatenate(rows), np.concatenate(values), rcond=None)[0]
    first = 1 if constant_sum else 3
    order = chebyshev_terms(1)
    np.testing.assert_allclose(
        [fit.kernel_coefficients[0][t] for t in order[:first]], expected[:first], rtol=1e-7
    )
    actual = [c[t] for c in fit.kernel_coefficients[1:] for t in order]
    np.testing.assert_allclose(actual, expected[first:-3], rtol=1e-5, atol=1e-7)
    actual = [fit.background_coefficients[t] for t in order]
    np.testing.assert_allclose(actual, expected[-3:], rtol=1e-6, atol=1e-6)
    model = np.concatenate(rows) @ expected
    chi_square = ((np.concatenate(values) - model) ** 2).sum()
    assert fit.chi_square == pytest.approx(chi_square, rel=1e-6)
    assert fit.degrees_of_freedom == 6 * 120 - len(expected)


@pytest.mark.parametrize("make_basis", ["gaussian", "delta"])
def test_a_gaussian_kernel_is_recovered(rng, make_basis):
    true = 1.3 * gaussian(21, np.sqrt(3.0**2 - 2.2**2))
    if make_basis == "gaussian":
        basis = gaussian_basis(gaussian_sigmas(3.0, 2.2), size=21)
    else:
        basis = delta_basis(21)
    stamps = make_stamps(rng, 80, lambda x, y: true, background=lambda x, y: 5 + 2 * x - y)
    options = FitOptions(kernel_order=0 if make_basis == "delta" else 1, background_order=1)
    fit = fit_kernel(stamps, basis, options)
    assert fit.used.mean() > 0.9
    kernel = kernel_of(fit, basis, 0.0, 0.0)
    assert matched_distance(kernel, true, PsfModel(sigma=2.2, frame=FRAME)) < 0.001
    if make_basis == "gaussian":
        assert distance(kernel, true) < 0.06
    assert abs(fit.kernel_sum - 1.3) < 5 * fit.kernel_sum_error + 1e-3
    assert background_of(fit, 0.5, -0.5) == pytest.approx(6.5, abs=0.2)
    assert fit.chi_square / fit.degrees_of_freedom == pytest.approx(1, abs=0.03)
    assert kernel_of(fit, basis, 0.7, 0.2).sum() == pytest.approx(fit.kernel_sum, rel=1e-10)


def test_a_varying_off_centre_elliptical_kernel_is_recovered(rng):
    template = PsfModel(sigma=2.0, frame=FRAME, profile="moffat", ellipticity=(0.05, 0.1))

    def true(x, y):
        science = PsfModel(
            sigma=2.8 + 0.25 * x, frame=FRAME, profile="moffat",
            ellipticity=(0.1 + 0.05 * y, -0.07), offset=(0.3, -0.2 + 0.05 * x),
        )  # fmt: skip
        return matching_kernel(
            science.stamp(0, 0, size=129), template.stamp(0, 0, size=129), size=25, kernel_sum=1.3
        )

    basis = gaussian_basis(gaussian_sigmas(2.8, 2.0), size=25)
    stamps = make_stamps(rng, 120, true, psf=template, reach=12, faintest=1e3, brightest=1e4)
    fit = fit_kernel(stamps, basis, FitOptions(kernel_order=2))
    assert fit.used.mean() > 0.7
    for x, y in [(0.0, 0.0), (0.7, -0.6), (-0.7, 0.6)]:
        assert matched_distance(kernel_of(fit, basis, x, y), true(x, y), template) < 0.02
    assert fit.kernel_sum == pytest.approx(1.3, rel=0.005)
    assert fit.chi_square / fit.degrees_of_freedom == pytest.approx(1, abs=0.05)
    flat = fit_kernel(stamps, basis, FitOptions(kernel_order=0, largest_rms=1e9, largest_mean=1e9))
    assert flat.chi_square / flat.degrees_of_freedom > 1.1 * fit.chi_square / fit.degrees_of_freedom


def test_errors_are_the_scatter_of_realisations(rng):
    true = gaussian(21, 2.0)
    basis = gaussian_basis((1.0, 2.0), degrees=(2, 0), size=21)
    fits = [
        fit_kernel(
            make_stamps(rng, 12, lambda x, y: true, faintest=3e4, brightest=4e4),
            basis,
            FitOptions(kernel_order=0, background_order=0),
        )
        for _ in range(60)
    ]
    scatter = np.std([fit.kernel_sum for fit in fits])
    # 60 realisations know their scatter to 9 %; the source's own noise adds a little.
    assert scatter == pytest.approx(np.mean([fit.kernel_sum_error for fit in fits]), rel=0.4)


def test_pixels_without_weight_do_not_matter(rng):
    true = gaussian(21, 2.0)
    basis = gaussian_basis((1.0, 2.0), degrees=(2, 0), size=21)
    stamps = make_stamps(rng, 20, lambda x, y: true)
    weight = stamps.weight.copy()
    weight[:, :, 7] = 0
    clean = fit_kernel(Stamps(stamps.source, stamps.target, weight, stamps.x, stamps.y), basis)
    target = stamps.target.copy()
    target[:, :, 7] = 1e6
    dirty = fit_kernel(Stamps(stamps.source, target, weight, stamps.x, stamps.y), basis)
    np.testing.assert_allclose(dirty.kernel_coefficients, clean.kernel_coefficients, rtol=1e-8)


def test_variable_and_broken_stars_are_rejected(rng):
    true = gaussian(21, 2.0)
    basis = gaussian_basis((1.0, 2.0, 4.0), size=21)
    stamps = make_stamps(rng, 60, lambda x, y: true, faintest=2e4)
    target = stamps.target.copy()
    target[3] *= 1.5  # a variable star
    target[10, 5:9, 30:34] += 500  # a cosmic ray
    target[20] = np.roll(target[20], 2, axis=0)  # a moving one
    fit = fit_kernel(Stamps(stamps.source, target, stamps.weight, stamps.x, stamps.y), basis)
    assert not fit.used[[3, 10, 20]].any()
    assert fit.used.sum() > 40
    kernel = kernel_of(fit, basis, 0, 0)
    assert matched_distance(kernel, true, PsfModel(sigma=2.2, frame=FRAME)) < 0.001


def test_refusals(rng):
    basis = gaussian_basis((1.0, 2.0), degrees=(2, 0), size=21)
    stamps = make_stamps(rng, 4, lambda x, y: gaussian(21, 2.0))
    with pytest.raises(DataError, match="need at least 12; lower the orders"):
        fit_kernel(stamps, basis, FitOptions(kernel_order=2))
    with pytest.raises(ArgumentError, match="Kernels of 25 pixels need source stamps of 67"):
        fit_kernel(stamps, gaussian_basis((1.0, 2.0), degrees=(2, 0), size=25))
    empty = Stamps(stamps.source, stamps.target, 0 * stamps.weight, stamps.x, stamps.y)
    with pytest.raises(DataError, match=r"0 of 4 stamps .* too unlike to share a kernel"):
        fit_kernel(empty, basis, FitOptions(kernel_order=0, background_order=0))
    flat = Stamps(0 * stamps.source, stamps.target, stamps.weight, stamps.x, stamps.y)
    with pytest.raises(DataError, match=r"singular|0 of 4"):
        fit_kernel(flat, basis, FitOptions(kernel_order=0, background_order=0, largest_rms=1e9))
    with pytest.raises(ArgumentError, match="kernel_order must not be negative"):
        FitOptions(kernel_order=-1)
    with pytest.raises(ArgumentError, match="even number"):
        Stamps(stamps.source[:, 1:, 1:], stamps.target, stamps.weight, stamps.x, stamps.y)


def test_a_psf_that_widens_over_the_field_is_followed(rng):
    # The kernel of two Gaussians is the Gaussian of the difference of their squares.
    def true(x, y):
        return gaussian(31, np.sqrt((3.0 + 0.4 * x) ** 2 - 2.0**2))

    psf = PsfModel(sigma=2.0, frame=FRAME)
    basis = gaussian_basis(gaussian_sigmas(3.0, 2.0), size=31)
    stamps = make_stamps(rng, 200, true, psf=psf, reach=15, size=63, faintest=3e3)
    options = choose_kernel_order(stamps, basis, FitOptions(), criterion="bic")
    assert options.kernel_order >= 2
    fit = fit_kernel(stamps, basis, options)
    assert distance(kernel_of(fit, basis, 0, 0), true(0, 0)) < 0.02
    for x, y in [(0.0, 0.0), (0.8, -0.6), (-0.8, 0.6)]:
        assert matched_distance(kernel_of(fit, basis, x, y), true(x, y), psf) < 0.006
    assert fit.chi_square / fit.degrees_of_freedom == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("criterion", ["bic", "cross-validation"])
def test_the_order_of_the_variation_is_found(rng, criterion):
    basis = gaussian_basis((1.0, 2.0, 4.0), size=21)
    options = FitOptions(background_order=0)
    still = make_stamps(rng, 60, lambda x, y: gaussian(21, 2.0), faintest=2e4)
    chosen = choose_kernel_order(still, basis, options, criterion=criterion)
    assert chosen.kernel_order == 0
    moving = make_stamps(rng, 60, lambda x, y: gaussian(21, 2.0 + 0.3 * x), faintest=2e4)
    chosen = choose_kernel_order(moving, basis, options, criterion=criterion)
    assert chosen.kernel_order >= 1
    assert chosen.background_order == 0


def test_what_no_kernel_describes_is_no_variation():
    # Sharper than the source: what the basis leaves of bright stars exceeds their noise by far.
    basis = gaussian_basis((0.7, 1.5, 3.0), size=21)
    options = FitOptions(background_order=0)
    sharper = gaussian(21, 1.2) * 1.6 - gaussian(21, 2.5) * 0.6
    orders = []
    for seed in range(8):
        for n in (14, 28):
            rng = np.random.default_rng([seed, n])
            stamps = make_stamps(rng, n, lambda x, y: sharper, psf=PsfModel(sigma=1.3, frame=FRAME))
            stamps = dataclasses.replace(stamps, target=moved(rng, stamps.target, 0.02))
            chosen = choose_kernel_order(stamps, basis, options, criterion="bic")
            orders.append(chosen.kernel_order)
    # Two sigma are exceeded by chance in one of 44.
    assert np.count_nonzero(orders) <= 2, orders


def moved(rng, images, sigma):
    """Every image, a random fraction of a pixel away."""
    return np.stack(
        [np.fft.ifft2(fourier_shift(np.fft.fft2(i), rng.normal(0, sigma, 2))).real for i in images]
    )


@pytest.mark.parametrize("seed", range(8))
def test_few_bright_stars_suffice_to_see_a_variation(seed):
    basis = gaussian_basis((1.0, 2.0, 4.0), size=21)
    rng = np.random.default_rng(seed)
    moving = make_stamps(rng, 16, lambda x, y: gaussian(21, 2.0 + 0.1 * x), faintest=1e3)
    for criterion in ("bic", "cross-validation"):
        chosen = choose_kernel_order(
            moving, basis, FitOptions(background_order=0), criterion=criterion
        )
        assert chosen.kernel_order >= 1, criterion


def test_noise_of_the_source_does_not_attenuate_the_kernel(rng):
    # As much noise in the source as a faint star bears: its power would be taken for the star's.
    true = gaussian(21, 2.0)
    psf = PsfModel(sigma=2.2, frame=FRAME)
    sums = []
    for _ in range(6):
        stamps = make_stamps(rng, 40, lambda x, y: true, psf=psf, faintest=300, brightest=3000)
        source = stamps.source + rng.normal(0, 3.0, stamps.source.shape)
        variance = np.full(source.shape, 3.0**2 + 0.3**2)
        norm = 1 + variance[0, 0, 0] * (true**2).sum()
        noisy = Stamps(
            source,
            stamps.target,
            np.full(stamps.target.shape, 1 / norm),
            stamps.x,
            stamps.y,
            variance,
        )
        options = FitOptions(kernel_order=0, background_order=0)
        basis = gaussian_basis((1.0, 2.0, 4.0), size=21)
        sums.append(
            [
                fit_kernel(given, basis, options).kernel_sum
                for given in (noisy, dataclasses.replace(noisy, source_variance=None))
            ]
        )
    found = np.array(sums)
    with_noise, gained = found[:, 0], found[:, 0] - found[:, 1]
    error, other = (each.std(ddof=1) / np.sqrt(len(found)) for each in (with_noise, gained))
    assert with_noise.mean() == pytest.approx(1, abs=4 * error)
    assert gained.mean() > 4 * other  # else there was nothing to undo


def test_what_correlated_noise_adds_to_the_products_is_known(rng):
    # Stamps of nothing but noise, smoothed as a resampling does: the gram is all noise.
    basis = gaussian_basis((0.8, 1.6), degrees=(2, 1), size=15)
    smoothing = np.array([[0.05, 0.2, 0.1], [0.1, 0.5, 0.3], [0.0, 0.2, 0.1]])
    smoothing /= np.sqrt((smoothing**2).sum())
    white = rng.normal(0, 3.0, (1500, 41, 41))
    source = sum(
        weight * white[:, j : j + 39, i : i + 39] for (j, i), weight in np.ndenumerate(smoothing)
    )
    target = np.zeros((1500, 25, 25))
    weight = np.ones(target.shape)
    weight[:, 5:9, 11:] = 0.3
    zero = np.zeros(1500)
    stamps = Stamps(
        source, target, weight, zero, zero, np.full(source.shape, 9.0),
        resampling_covariance(smoothing),
    )  # fmt: skip
    normals = normal_equations(stamps, basis)
    assert normals.noise is not None
    n = len(basis)
    measured, expected = normals.gram[:, :n, :n], normals.noise[0, :n, :n]
    error = measured.std(axis=0) / np.sqrt(len(measured))
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    # 4.5 sigma of the largest among these, and what the filter's tail beyond its stamp holds.
    np.testing.assert_array_less(
        np.abs(measured.mean(axis=0) - expected), 4.5 * error + 2e-3 * scale
    )
    # Taken for white, the smooth images would get less than half of theirs.
    as_white = normal_equations(dataclasses.replace(stamps, source_noise=None), basis).noise
    assert as_white[0, 0, 0] < 0.5 * expected[0, 0]


def test_varying_pixels_are_the_transients(rng):
    true = gaussian(21, 2.0)
    basis = gaussian_basis((1.0, 2.0, 4.0), size=21)
    stamps = make_stamps(rng, 40, lambda x, y: true, faintest=2e4)
    fit = fit_kernel(stamps, basis, FitOptions(kernel_order=0, background_order=0))
    # A few peaks of noise, with what grows around them.
    assert varying_pixels(stamps, residual_stamps(stamps, fit, basis), core=8).mean() < 0.01
    target = stamps.target.copy()
    psf = PsfModel(sigma=3.0, frame=FRAME).stamp(0, 0, size=9)
    target[5, 2:11, 2:11] += 3000 * psf
    with_transient = dataclasses.replace(stamps, target=target)
    residuals = residual_stamps(with_transient, fit, basis)
    varying = varying_pixels(with_transient, residuals, core=8)
    assert varying[5, 4:9, 4:9].all()
    middle = stamps.target.shape[1] // 2
    assert not varying[5, middle, middle]
    assert varying[np.arange(len(stamps)) != 5].mean() < 0.01


def test_background_between_the_sources(rng):
    shape = (500, 460)
    y, x = np.mgrid[: shape[0], : shape[1]]
    u, v = 2 * (x + 0.5) / shape[1] - 1, 2 * (y + 0.5) / shape[0] - 1
    true = 3 + 40 * u - 25 * v + 8 * u * v
    image = true + rng.normal(0, 5, shape)
    free = rng.random(shape) > 0.2
    image[~free] += 1e5
    image[100:110, 100:110] += 500  # a transient that nobody knows of
    coefficients = fit_background(image, free, 2)
    fitted = np.polynomial.chebyshev.chebval2d(v, u, coefficients)
    assert np.abs(fitted - true).max() < 0.3
    assert not fit_background(image, np.zeros(shape, dtype=bool), 2).any()


@pytest.mark.parametrize("shape", [(200, 300), (620, 601)])
@pytest.mark.parametrize("order", [1, 4])
def test_a_background_is_the_same_with_any_number_of_threads(shape, order):
    """To the last bit: a difference made again by another entry is the same."""
    rng = np.random.default_rng(1)
    image = (100 + rng.normal(0, 3, shape) + 0.01 * np.arange(shape[1])).astype(np.float32)
    free = rng.random(shape) > 0.2
    found = []
    for threads in (1, 2, 4):
        with threadpoolctl.threadpool_limits(threads, user_api="blas"):
            found.append(fit_background(image, free, order, highest=8))
    for again in found[1:]:
        np.testing.assert_array_equal(again, found[0])


def test_measured_psf(rng):
    shape, size = (800, 800), 31
    psf = PsfModel(sigma=2.2, frame=shape, ellipticity=(0.1, -0.05), variation=0.1)
    image = rng.normal(0, 5, shape)
    grid = np.arange(60, 760, 75)
    x, y = (a.ravel() + rng.uniform(-0.5, 0.5, a.size) for a in np.meshgrid(grid, grid))
    for at_x, at_y in zip(x, y, strict=True):
        i, j = round(at_x), round(at_y)
        star = psf.stamp(at_x, at_y, size=size)
        image[j - 15 : j + 16, i - 15 : i + 16] += rng.uniform(2e4, 2e5) * star
    image += 100  # a background that nobody subtracted
    bad = np.zeros(shape, dtype=bool)
    bad[:, 400] = True
    image[bad] = 1e5
    images, used, *_ = measure_psf(image, np.full(shape, 25.0), bad, x, y, size=size, order=1)
    assert used > 60
    for at_x, at_y in ((400, 400), (80, 700)):
        terms = chebyshev_products(1, np.array([at_x / 400 - 1]), np.array([at_y / 400 - 1]))[0]
        measured = np.tensordot(terms, images, axes=1)
        true = psf.stamp(at_x, at_y, size=size)
        assert measured.sum() == pytest.approx(1, abs=1e-10)
        assert distance(measured, true / true.sum()) < 0.03
    with pytest.raises(DataError, match="a PSF needs 3"):
        measure_psf(image, np.full(shape, 25.0), bad, x[:2], y[:2], size=size, order=1)


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["gaussian", "moffat"])
def test_galaxies_and_neighbours_do_not_widen_a_measured_psf(profile):
    options = SimulationOptions(
        shape=(1200, 1200), seed=5, stars=500, galaxies=500, profile=profile, variation=0.05,
        ellipticity=(0.08, -0.05), template_psf=2.0,
    )  # fmt: skip
    science = simulate(options).science
    bad = science.mask["SAT"] | science.mask["BAD"] | science.mask["NO_DATA"]
    image = np.where(bad, 0, science.image)
    sources = find_sources(
        image, image, science_variance=science.variance, science_bad=bad, template_bad=bad
    )
    chosen = choose_candidates(
        sources, clear=22, isolation=30, options=CandidateOptions(width_tolerance=0.3)
    )
    images, _, enclosed, error = measure_psf(
        science.image, science.variance, bad, chosen.x, chosen.y, size=73, order=2
    )
    biases = []
    for at_x, at_y in ((600, 600), (200, 900), (1000, 300)):
        position = np.array([[2 * (a + 0.5) / 1200 - 1] for a in (at_x, at_y)])
        measured = enclosed * np.tensordot(chebyshev_products(2, *position)[0], images, axes=1)
        wide = science.psf.stamp(at_x, at_y, size=301)
        true = wide[114:187, 114:187] / wide.sum()
        assert distance(measured, true) < 0.01
        biases.append((true * measured).sum() / (measured**2).sum() - 1)
    # What photometry with it gets wrong of the whole star's flux: not more than it says.
    assert abs(np.mean(biases)) < min(0.01, 2 * error)


def test_a_few_faint_stars_make_a_psf(rng):
    psf = PsfModel(sigma=2.2, frame=(400, 400), profile="moffat")
    image = rng.normal(50, 5, (400, 400))
    x, y = np.array([80.3, 200.8, 310.1, 120.6]), np.array([90.2, 130.5, 250.9, 310.4])
    for at_x, at_y in zip(x, y, strict=True):
        i, j = round(at_x), round(at_y)
        image[j - 50 : j + 51, i - 50 : i + 51] += 2e4 * psf.stamp(at_x, at_y, size=101)
    images, used, *_ = measure_psf(
        image, np.full((400, 400), 25.0), np.zeros((400, 400), bool), x, y, size=41, order=1
    )
    assert used >= 3
    true = psf.stamp(200, 200, size=41)
    # Signal-to-noise ratios of 400 in the cores; the wings' share is uncertain to a per cent.
    assert distance(images[0], true / true.sum()) < 0.02


@pytest.mark.parametrize("profile", ["gaussian", "moffat"])
def test_the_width_of_stars_is_that_at_half_maximum(rng, profile):
    psf = PsfModel(sigma=2.2, frame=(600, 600), profile=profile)
    image = rng.normal(100, 5, (600, 600))
    x, y = (a.ravel() for a in np.meshgrid(np.arange(60, 560, 80), np.arange(60, 560, 80)))
    x, y = x + rng.uniform(-0.5, 0.5, x.size), y + rng.uniform(-0.5, 0.5, y.size)
    for at_x, at_y in zip(x, y, strict=True):
        i, j = round(at_x), round(at_y)
        image[j - 20 : j + 21, i - 20 : i + 21] += 1e4 * psf.stamp(at_x, at_y, size=41)
    bad = np.zeros(image.shape, dtype=bool)
    width = star_width(image, bad, x, y, reach=12)
    # Interpolation, the sampling of the area and the wings taken for background.
    assert width == pytest.approx(2.2 * 2.3548, rel=0.02)
    # Positions of another image that is off by pixels and in rotation.
    turned = star_width(image, bad, x + 1.5 + 0.002 * y, y - 1 - 0.002 * x, reach=12)
    assert turned == pytest.approx(width, rel=0.003)
    assert np.isnan(star_width(image, ~bad, x, y, reach=12))


def test_stars_that_no_psf_fits_are_a_sentence(rng):
    # Four blots of different shapes, and nothing that they share.
    shape = (400, 400)
    x, y = np.array([60.0, 150, 240, 330]), np.full(4, 200.0)
    image = rng.normal(100, 1, shape)
    for at_x in x.astype(int):
        image[185:216, at_x - 15 : at_x + 16] += rng.uniform(-500, 520, (31, 31))
    with pytest.raises(DataError, match=r"a PSF needs 3|have no common profile"):
        measure_psf(image, np.ones(shape), np.zeros(shape, bool), x, y, size=31, order=1)
