"""Claim: the full width at half maximum of sampled profiles is that of the formula."""

from __future__ import annotations

import numpy as np
import pytest

from scenes import gaussian
from whitediff.errors import ArgumentError
from whitediff.evaluation.simulation import PsfModel
from whitediff.numerics.profiles import FWHM_TO_SIGMA, full_width_half_maximum


@pytest.mark.parametrize("sigma", [1.2, 2.2, 4.0])
def test_gaussians(sigma):
    fwhm = full_width_half_maximum(gaussian(41, sigma))
    assert fwhm == pytest.approx(sigma / FWHM_TO_SIGMA, rel=0.01)


def test_elliptical_moffat():
    psf = PsfModel(sigma=2.5, frame=(50, 50), profile="moffat", ellipticity=(0.2, 0.1))
    assert full_width_half_maximum(psf.image(25, 25)) == pytest.approx(
        2.5 / FWHM_TO_SIGMA, rel=0.01
    )


def test_no_maximum():
    with pytest.raises(ArgumentError, match="positive maximum"):
        full_width_half_maximum(np.zeros((9, 9)))
