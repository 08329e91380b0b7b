"""Fluxes, positions and shapes on arrays, and what sources are.

Claims: without noise fits return the truth, of one source, of blends, of crowds and around masked
pixels.  In noise forced fluxes are unbiased and those at free positions biased by 1/(S/N)²; errors
are those of an explicit Fisher matrix and of the scatter; χ² is the number of degrees of freedom.
Aperture fluxes are the share of a Gaussian that the circle holds; moments are those of the
profile.  Misregistered stars are dipoles with the moment of flux and shift, transients points of
any brightness, discs and cosmic rays neither.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from whitediff.detection import dipoles, photometry
from whitediff.detection.peaks import Responses, deblended, find_peaks
from whitediff.evaluation.placing import add_stamp
from whitediff.evaluation.simulation import PsfModel
from whitediff.noise.significance import core, point_source_significance, self_response

MODEL = PsfModel(sigma=1.7, frame=(100, 100), ellipticity=(0.12, -0.08), offset=(0.3, -0.2))
PSF = MODEL.image(0, 0)
RADIUS = photometry.fit_radius(PSF)
SIGMA = 3.0
UNIT = SIGMA / math.sqrt(float((PSF**2).sum()))
"""Flux of a source of unit significance."""


def grid(rng, number, step=24):
    """Positions at all places within a pixel, and a frame around them."""
    side = math.ceil(math.sqrt(number))
    y, x = (
        step * (1 + at[:number]) + rng.uniform(-0.5, 0.5, number)
        for at in np.divmod(np.arange(side**2), side)
    )
    return x, y, (step * (side + 2),) * 2


def frame(shape, x, y, flux, model=MODEL):
    image = np.zeros(shape)
    for at in zip(x, y, flux, strict=True):
        add_stamp(image, at[2] * model.stamp(*at[:2]), *at[:2])
    return image


def noisy(rng, image):
    planes = photometry.Frame(
        (image + rng.normal(0, SIGMA, image.shape)).astype(np.float32),
        np.full(image.shape, SIGMA**2, np.float32),
        np.ones(image.shape, bool),
    )
    for plane in planes:
        plane.flags.writeable = False
    return planes


def fitted(planes, x, y, *, held=False):
    stamps = photometry.stamps_around(planes, x, y, math.ceil(RADIUS) + 1)
    if held:
        return photometry.fit_fluxes(stamps, PSF[None], x[:, None], y[:, None], radius=RADIUS)
    return photometry.fit_points(
        stamps, PSF[None], x[:, None], y[:, None], radius=RADIUS, furthest=4.0
    )


def scatter_is_one(pull, tolerance=4.0):
    """Standard deviation of n normal deviates: 1 ± 1/√(2n)."""
    assert pull.std() == pytest.approx(1, abs=tolerance / math.sqrt(2 * pull.size))


def test_without_noise_fits_return_the_truth(rng):
    x, y, shape = grid(rng, 30)
    flux = rng.uniform(-900, 900, 30)
    image = frame(shape, x, y, flux)
    good = rng.random(shape) > 0.05
    planes = photometry.Frame(np.where(good, image, 1e9), np.ones(shape), good)
    fits = fitted(planes, x + rng.normal(0, 0.3, 30), y + rng.normal(0, 0.3, 30))
    assert not fits.failed.any()
    np.testing.assert_allclose(fits.x[:, 0], x, atol=2e-3)
    np.testing.assert_allclose(fits.y[:, 0], y, atol=2e-3)
    np.testing.assert_allclose(fits.flux[:, 0], flux, rtol=2e-3)
    forced = fitted(planes, x, y, held=True)
    np.testing.assert_allclose(forced.flux[:, 0], flux, rtol=2e-3)


@pytest.mark.parametrize("ratio", [8.0, 40.0])
def test_fluxes_and_positions_in_noise(rng, ratio):
    number = 900
    x, y, shape = grid(rng, number)
    flux = ratio * UNIT
    planes = noisy(rng, frame(shape, x, y, np.full(number, flux)))
    forced = fitted(planes, x, y, held=True)
    free = fitted(planes, x, y)
    assert not free.failed.any()
    error = 4 / (ratio * math.sqrt(number))
    assert forced.flux.mean() / flux == pytest.approx(1, abs=error)
    # The same noise in both: what freedom adds has the scatter of 1/(S/N)², √2/(S/N)² each.
    added = (free.flux - forced.flux).mean() / flux
    assert added == pytest.approx(1 / ratio**2, rel=4 * math.sqrt(2 / number))
    scatter_is_one((forced.flux - flux) / forced.error(0))
    scatter_is_one((free.x[:, 0] - x) / free.error(1)[:, 0], 5 if ratio < 10 else 4)
    scatter_is_one((free.y[:, 0] - y) / free.error(2)[:, 0], 5 if ratio < 10 else 4)
    correlated = np.mean((free.x[:, 0] - x) * (free.y[:, 0] - y)) / np.mean(free.xy_covariance)
    assert correlated == pytest.approx(1, abs=1.0)
    freedom = free.pixels - 3
    assert (free.chi_square / freedom).mean() == pytest.approx(
        1, abs=4 * math.sqrt(2 / (freedom[0, 0] * number))
    )


def test_errors_are_those_of_the_fisher_matrix(rng):
    x, y, flux = np.array([30.3]), np.array([29.8]), 500.0
    image = frame((61, 60), x, y, [flux])
    variance = rng.uniform(8, 10, image.shape)
    fits = fitted((image, variance, image == image), x, y)
    parameters, step = np.array([flux, x[0], y[0]]), np.array([1.0, 1e-3, 1e-3])
    near = np.hypot(*(np.mgrid[:61, :60] - np.array([y[0], x[0]])[:, None, None])) <= RADIUS

    def model(p):
        return frame(image.shape, [p[1]], [p[2]], [p[0]])[near]

    slopes = np.stack(
        [(model(parameters + e) - model(parameters - e)) / (2 * e.sum()) for e in np.diag(step)]
    )
    fisher = (slopes / variance[near]) @ slopes.T
    # Equal weights lose nothing where the variance is nearly the same.
    expected = np.linalg.inv(fisher)
    error = np.sqrt(np.diag(expected))
    scaled = fits.covariance[0] / (error[:, None] * error)
    np.testing.assert_allclose(scaled, expected / (error[:, None] * error), atol=0.02)


def psfs(x, y):
    return PSF[None]


def test_blends_are_fitted_together(rng):
    number = 20
    x, y, shape = grid(rng, number, 40)
    angle = rng.uniform(0, 2 * np.pi, number)
    place = [
        np.stack([at, at + 5.0 * d], axis=1).ravel()
        for at, d in ((x, np.cos(angle)), (y, np.sin(angle)))
    ]
    flux = np.tile([600.0, 400.0], number)
    image = frame(shape, *place, flux)
    planes = photometry.Frame(image, np.ones(shape), np.ones(shape, bool))
    start = [at + rng.normal(0, 0.2, at.size) for at in place]
    group = np.repeat(np.arange(number), 2)
    options = {"radius": RADIUS, "furthest": 4.0}
    fits = photometry.fit_blends(planes, *start, group, psfs, **options)
    np.testing.assert_allclose(fits.flux, flux, rtol=5e-3)
    np.testing.assert_allclose(fits.x, place[0], atol=5e-3)
    # One by one, the neighbour's light is in each.
    alone = photometry.fit_blends(planes, *start, np.arange(2 * number), psfs, **options)
    assert np.abs(alone.flux / flux - 1).max() > 0.03
    # What is held stays.
    held = photometry.fit_blends(
        planes, *start, group, psfs, held=np.ones(2 * number, bool), **options
    )
    np.testing.assert_array_equal(held.x, start[0])
    assert np.isfinite(held.x_error).all()


def test_crowds_are_fitted_without_their_neighbours(rng):
    y, x = (at.ravel() * 6.0 + 30 for at in np.mgrid[:4, :4])
    x, y = x + rng.uniform(-0.5, 0.5, 16), y + rng.uniform(-0.5, 0.5, 16)
    flux = rng.uniform(300, 900, 16)
    image = frame((80, 80), x, y, flux)
    fits = photometry.fit_blends(
        photometry.Frame(image, np.ones(image.shape), image == image), x + 0.1, y - 0.1,
        np.zeros(16, int), psfs, radius=RADIUS, furthest=4.0,
    )  # fmt: skip
    np.testing.assert_allclose(fits.flux, flux, rtol=0.02)


def test_nothing_to_fit():
    none = np.zeros(0)
    image = np.zeros((40, 40))
    planes = photometry.Frame(image, np.ones(image.shape), image == 0)
    assert len(fitted(planes, none, none).flux) == 0
    masked = photometry.Frame(image, np.ones(image.shape), image == 1)
    fits = fitted(masked, np.array([20.0]), np.array([20.0]))
    assert np.isnan(fits.flux).all()
    assert fits.failed.all()


def test_aperture_fluxes(rng):
    round_model = PsfModel(sigma=1.7, frame=(9, 9))
    x, y, shape = grid(rng, 25)
    image = frame(shape, x, y, np.full(25, 1000.0), round_model)
    good = np.ones(shape, bool)
    planes = photometry.Frame(image, np.full(shape, 4.0), good)
    for radius in (2.5, 5.0):
        flux, error = photometry.aperture_fluxes(planes, x, y, radius)
        share = 1 - math.exp(-0.5 * (radius / 1.7) ** 2)
        # Pixels are samples of the profile, of which the circle cuts some.
        np.testing.assert_allclose(flux, 1000 * share, rtol=0.03)
        np.testing.assert_allclose(error, 2 * math.sqrt(math.pi) * radius, rtol=1e-3)
    good[:] = False
    flux, error = photometry.aperture_fluxes(planes, x, y, 3.0)
    assert np.isnan(flux).all()
    assert np.isnan(error).all()


def test_moments_are_those_of_the_profile():
    model = PsfModel(sigma=2.2, frame=(9, 9), ellipticity=(0.2, -0.15))
    image = model.stamp(0.2, -0.3, size=41)
    stamps = photometry.Stamps(
        image[None], np.ones((1, 41, 41)), np.ones((1, 41, 41), bool), np.zeros(1, int),
        np.zeros(1, int),
    )  # fmt: skip
    weight = np.array([[3.0, 3.5, 0.2]])
    xx, yy, xy = photometry.adaptive_moments(stamps, np.array([0.2]), np.array([-0.3]), weight)
    grid_y, grid_x = np.mgrid[-20:21, -20:21]
    dx, dy, total = grid_x - 0.2, grid_y + 0.3, image.sum()
    for found, product in ((xx, dx * dx), (yy, dy * dy), (xy, dx * dy)):
        assert found[0] == pytest.approx((image * product).sum() / total, rel=1e-3)
    nothing = photometry.adaptive_moments(
        stamps, np.array([9.0]), np.array([9.0]), np.array([[1.0, 1.0, 0.0]])
    )
    assert np.isnan(nothing[0]).all() or nothing[0][0] > 0


def labelled(planes):
    """Classes and positions of what is above 5 σ."""
    found = point_source_significance(*planes, PSF)
    response = self_response(core(PSF))
    middle = np.zeros(1)
    blends = deblended(find_peaks(found, 5.0), 5.0, Responses(response[None], middle, middle))
    fwhm = 1.7 * 2.3548
    fits = photometry.fit_blends(
        planes, blends.peaks.x, blends.peaks.y, blends.group, psfs, radius=RADIUS, furthest=3.0,
        held=dipoles.opposite_lobes(blends.peaks, fwhm) >= 0,
    )  # fmt: skip
    classes, _ = dipoles.classified(planes, blends, fits, found, psfs, radius=RADIUS, fwhm=fwhm)
    return classes, blends.peaks


@pytest.mark.parametrize(("low", "high"), [(15, 25), (25, 150)])
def test_misregistered_stars_are_dipoles(rng, low, high):
    """Signal-to-noise ratio is that of the dipole's own matched filter."""
    number, shift = 196, 0.3
    x, y, shape = grid(rng, number, 30)
    angle = rng.uniform(0, 2 * np.pi, number)
    moved = x + shift * np.cos(angle), y + shift * np.sin(angle)
    # |∇P|/|P| is 1/(√2 σ) along any axis of a round Gaussian.
    flux = rng.uniform(low, high, number) * UNIT * math.sqrt(2) * 1.7 / shift
    image = frame(shape, *moved, flux) - frame(shape, x, y, flux)
    classes, peaks = labelled(noisy(rng, image))
    kept = ~classes.absorbed
    near = np.hypot(peaks.x[kept][:, None] - x, peaks.y[kept][:, None] - y)
    index = near.argmin(axis=1)
    assert (near.min(axis=1) < 6).all()
    # One row for each.
    assert len(np.unique(index)) == kept.sum() >= 0.99 * number
    dipole = classes.label[kept] == "dipole"
    assert dipole.sum() > 0.97 * number
    moment, error = classes.moment[kept][dipole], classes.moment_error[kept][dipole]
    pull = (moment - (flux * shift)[index[dipole]]) / error
    assert np.median(pull) == pytest.approx(0, abs=0.5)
    turned = (classes.angle[kept][dipole] - np.degrees(angle[index[dipole]]) + 180) % 360 - 180
    assert np.median(np.abs(turned)) < 5


@pytest.mark.parametrize(("low", "high"), [(5, 15), (15, 1000)])
def test_transients_are_points(rng, low, high):
    number = 400
    x, y, shape = grid(rng, number, 26)
    flux = rng.uniform(low, high, number) * rng.choice([-1, 1], number) * UNIT
    classes, peaks = labelled(noisy(rng, frame(shape, x, y, flux)))
    assert len(peaks) > 0.8 * number
    assert (classes.label != "point").mean() < 0.01
    assert not classes.absorbed.any()


def test_what_is_no_point_and_no_dipole(rng):
    disc = PsfModel(sigma=4.5, frame=(9, 9))
    image = frame((200, 200), [50.0], [60.0], [150 * UNIT], disc)
    image[150, 120:123] += 400.0  # a cosmic ray
    classes, peaks = labelled(noisy(rng, image))
    label = {
        "disc": classes.label[np.hypot(peaks.x - 50, peaks.y - 60) < 4],
        "cosmic ray": classes.label[np.hypot(peaks.x - 121, peaks.y - 150) < 3],
    }
    assert label["disc"].tolist() == ["extended"]
    assert "artifact" in label["cosmic ray"].tolist()
