"""PSFs of odd shapes: several peaks, rings, and widths that follow a parabola over the field.

Claims: a star of several peaks is one source, in the middle of its light, however far apart these
are and whichever is the brighter; fields of single stars, sparse and crowded, give the very sources
that SEP gives; the width of the finest detail is a Gaussian's own, and that of a ring does not
depend on its radius; where a guiding jump doubles the stars of one image or of both, the kernel's
sum is right within its error, its residuals are small, and the measured PSF measures the true
fluxes, in any unit; so it does where the PSF widens from the middle of the frame to the corners;
where no kernel makes one ring into another, the refusal says that, and not that the stars are
others.
The truth is analytic: sums of Moffat profiles and rings, drawn where the stars lie.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import sep

from marks import slow_after
from whitediff import Exposure
from whitediff.errors import DataError
from whitediff.matching.choice import detail_width
from whitediff.matching.exposures import MatchOptions, match
from whitediff.matching.preparation import pair_with_psf, prepare, with_own_psf
from whitediff.stars.footprints import extracted

SCALE = 1.25
"""Science image's flux over the template's."""
SHAPE = (400, 410)
HALF = 36
"""Of a star's stamp: beyond it lie 0.1 % of its light."""


def moffat(fwhm, beta=3.5):
    width = fwhm / 2 / math.sqrt(2 ** (1 / beta) - 1)
    norm = (beta - 1) / (math.pi * width**2)
    return lambda dx, dy: norm * (1 + (dx**2 + dy**2) / width**2) ** -beta


def peaks(fwhm, *others):
    """A star and its doubles: shares of the light, and where they are."""
    own, single = 1 - sum(share for share, *_ in others), moffat(fwhm)
    return lambda dx, dy: (
        own * single(dx, dy) + sum(f * single(dx - x, dy - y) for f, x, y in others)
    )


def ring(radius, width):
    fine = np.arange(0, radius + 8 * width, 0.01)
    profile = np.exp(-0.5 * ((fine - radius) / width) ** 2)
    norm = 2 * math.pi * float((profile * fine).sum() * 0.01)
    return lambda dx, dy: np.exp(-0.5 * ((np.hypot(dx, dy) - radius) / width) ** 2) / norm


def drawn(x, y, flux, psf, shape=SHAPE):
    """Image of stars; ``psf`` is of the offsets, or of these and the place."""
    image = np.zeros(shape)
    for column, row, light in zip(x, y, flux, strict=True):
        top, left = max(0, round(row) - HALF), max(0, round(column) - HALF)
        part = image[top : round(row) + HALF + 1, left : round(column) + HALF + 1]
        dy, dx = np.indices(part.shape, float)
        part += light * psf(dx + left - column, dy + top - row)
    return image


def field(seed, stars=75, shape=SHAPE):
    rng = np.random.default_rng([seed, 4711])
    x, y = rng.uniform(0, shape[1], stars), rng.uniform(0, shape[0], stars)
    return rng, x, y, 2e3 * 100 ** (rng.uniform(0, 1, stars) ** 1.7)


def exposure_of(rng, image, sky, unit=1.0):
    noisy = rng.poisson(image + sky) + rng.normal(0, 5, image.shape)
    return Exposure.from_arrays(
        (unit * noisy).astype(np.float32),
        variance=(unit**2 * (image + sky + 25)).astype(np.float32),
    )


def pair_of(seed, science_psf, template_psf, unit=1.0):
    rng, x, y, flux = field(seed)
    return (
        exposure_of(rng, SCALE * drawn(x, y, flux, science_psf), 300, unit),
        exposure_of(rng, drawn(x, y, flux, template_psf), 200, unit),
    )


def flux_bias(psf, truth, x, y):
    """Relative error of the flux of a star that a PSF measures on white noise."""
    image = psf.at(x=x, y=y)
    half = image.shape[0] // 2
    dy, dx = np.indices(image.shape) - half
    # A PSF may have its middle anywhere in the star: the best of all places.
    best = max(
        float((image * truth(dx - u, dy - v)).sum())
        for u in np.arange(-6, 6.1, 0.25)
        for v in np.arange(-3, 3.1, 0.25)
    )
    return best / float((image**2).sum()) / psf.light.enclosed - 1


def residual(found, science_psf, template_psf):
    """What the kernel leaves of a star, over the star, both in squares' roots."""
    kernel = found.kernel.at(x=205, y=200)
    images = [drawn([60.2], [59.7], [1.0], psf, (121, 121)) for psf in (science_psf, template_psf)]
    images[0] *= SCALE
    target, source = images if found.convolved == "template" else images[::-1]
    left = target - scipy.signal.fftconvolve(source, kernel, mode="same")
    return math.sqrt(float((left**2).sum() / (target**2).sum()))


def noise_units(image, sky):
    flat = (image - sky) / math.sqrt(sky + 25)
    return flat.astype(np.float32), np.ones(image.shape, np.float32), np.zeros(image.shape, bool)


@pytest.mark.parametrize(
    "others",
    [
        [(0.3, 7, 2)],
        [(0.5, 6, 0)],
        [(0.25, -8, 8)],
        [(0.3, 6, 0), (0.2, 2, 7)],
    ],
    ids=["near", "equal", "apart", "three"],
)
def test_a_star_of_several_peaks_is_one_source(others):
    rng, *_, flux = field(3, stars=36)
    place = np.arange(6) * 64 + 40
    x, y = (each.ravel() + rng.uniform(-6, 6, 36) for each in np.meshgrid(place, place))
    flux = np.maximum(flux, 1.5e4)
    image = rng.poisson(drawn(x, y, flux, peaks(3.6, *others)) + 300.0) + rng.normal(0, 5, SHAPE)
    found = extracted(*noise_units(image, 300), threshold=5.0)
    middle = [sum(share * place[k] for share, *place in others) for k in (0, 1)]
    for column, row in zip(x + middle[0], y + middle[1], strict=True):
        distance = np.hypot(found["x"] - column, found["y"] - row)
        assert np.count_nonzero(distance < 25) == 1
        # The fainter peak of a faint star is cut at the threshold.
        assert distance.min() < 2.0


@pytest.mark.parametrize("stars", [6, 70, 700])
@pytest.mark.parametrize("fwhm", [1.8, 3.6, 9.0])
def test_single_stars_are_the_sources_they_were(stars, fwhm):
    rng, x, y, flux = field(stars, stars=stars)
    image = rng.poisson(drawn(x, y, flux, moffat(fwhm)) + 300.0) + rng.normal(0, 5, SHAPE)
    flat, noise, hole = noise_units(image, 300)
    found = extracted(flat, noise, hole, threshold=5.0)
    plain = sep.extract(flat, 5.0, err=noise, mask=hole, filter_type="conv")
    assert np.array_equal(found, plain)


def test_the_finest_detail_is_a_gaussians_own_width_and_that_of_a_ring():
    dy, dx = np.indices((81, 81)) - 40.0

    def blob(sigma):
        return np.exp(-(dx**2 + dy**2) / (2 * sigma**2))

    for sigma in (2.0, 5.0):
        assert detail_width(np.stack([7 + blob(sigma)])) == pytest.approx(sigma, rel=0.06)
    # A ring's profile has slopes in one direction, a Gaussian star has them in two.
    rings = [detail_width(np.stack([ring(radius, 2.5)(dx, dy)])) for radius in (10, 16)]
    assert rings == pytest.approx([2.5 * math.sqrt(2)] * 2, rel=0.06)
    assert detail_width(np.zeros((2, 21, 21))) == math.inf


JUMPS = {
    "science": (peaks(3.6, (0.3, 7, 2)), moffat(3.4)),
    "equal": (peaks(3.6, (0.5, 6, 0)), moffat(3.4)),
    "small": (peaks(3.6, (0.2, 5, 2)), moffat(3.4)),
    "both": (peaks(4.2, (0.3, 7, 2)), peaks(3.4, (0.2, 5, -2))),
    "far": (peaks(3.6, (0.25, 11, 4)), moffat(3.4)),
}


def check_jump(kind, seed, unit=1.0):
    science_psf, template_psf = JUMPS[kind]
    pair = prepare(*pair_of(seed, science_psf, template_psf, unit))
    found = match(pair, MatchOptions(choose_order="bic"))
    assert found.convolved == "template"
    assert abs(found.fit.kernel_sum - SCALE) < 3 * found.fit.kernel_sum_error
    # Where the sum alone lacks wings, its error says so; with them it is as well known.
    assert abs(found.with_wings.value - SCALE) < 3 * found.with_wings.error
    assert found.with_wings.error < 0.012 * SCALE
    assert found.residual_chi_square < 1.3
    assert residual(found, science_psf, template_psf) < 0.05
    psf = pair_with_psf(pair, "template").science.psf
    bias = flux_bias(psf, science_psf, 205, 200)
    assert abs(bias) < max(0.02, 2.5 * psf.light.error)
    return found, bias


@pytest.mark.parametrize(
    ("kind", "seed", "unit"), slow_after(1, [("science", 1, 1.0), ("equal", 2, 1e-7)])
)
def test_doubled_stars_are_matched_and_measured(kind, seed, unit):
    check_jump(kind, seed, unit)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 6))
@pytest.mark.parametrize("kind", JUMPS)
def test_doubled_stars_of_all_kinds_are_matched_and_measured(kind, seed):
    check_jump(kind, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_where_the_template_has_the_doubles_the_science_image_is_convolved(seed):
    psfs = moffat(4.2), peaks(3.4, (0.3, 7, 2))
    found = match(
        prepare(*pair_of(seed, *psfs)), MatchOptions(convolved="auto", choose_order="bic")
    )
    assert found.convolved == "science"
    assert abs(found.fit.kernel_sum - 1 / SCALE) < 3 * found.fit.kernel_sum_error


def widening(edge):
    """PSF that is wider by so much in the middle of an edge, and twice that in the corners."""
    return lambda x, y: moffat(3.6 + edge * ((x / 200 - 1) ** 2 + (y / 200 - 1) ** 2))


def check_widening(seed, edge):
    rng, x, y, flux = field(seed, shape=(401, 401))
    psf_at = widening(edge)
    image = sum(
        drawn([u], [v], [f], psf_at(u, v), (401, 401)) for u, v, f in zip(x, y, flux, strict=True)
    )
    psf = with_own_psf(exposure_of(rng, image, 300)).psf
    places = [(200, 200), (60, 60), (340, 60), (200, 340), (60, 200)]
    return [flux_bias(psf, psf_at(*place), *place) / max(0.01, psf.light.error) for place in places]


def test_a_psf_that_widens_from_the_middle_is_followed():
    assert np.abs(check_widening(1, 0.9)).max() < 3.0


@pytest.mark.slow
@pytest.mark.parametrize("edge", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(2, 5))
def test_psfs_that_widen_by_any_amount_are_followed(seed, edge):
    assert np.abs(check_widening(seed, edge)).max() < 3.0


@pytest.mark.parametrize("convolved", slow_after(1, ["template", "science"]))
def test_rings_that_no_kernel_makes_into_each_other_are_refused_for_that(convolved):
    pair = prepare(*pair_of(2, ring(7, 1.5), ring(5, 1.5)))
    other = "science" if convolved == "template" else "template"
    said = f"(?s)No kernel makes the PSF .*same stars.*--convolved {other}"
    with pytest.raises(DataError, match=said):
        match(pair, MatchOptions(convolved=convolved, choose_order="bic"))
