"""Fields of every kind, drawn by another hand: GalSim's profiles, photons' noise, planes of counts.

Claims: the noise of pixels and of PSF fluxes between the sources is what the planes say; the
kernel's sum and the fluxes of transients are right within their errors; transients are found, and
next to nothing else.  `python -m benchmarks.fields` measures more seeds, beside other programs.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("galsim")
fields = pytest.importorskip("benchmarks.fields")
KINDS = list(fields.KINDS)
QUICK = ["ordinary", "crossed trails", "fringes", "sky of 6 electrons"]


def measured(kind, seed, size, folder):
    scene = fields.field(kind, seed, size)
    result = fields.by_whitediff(scene, folder)
    return fields.judged(scene, result, np.random.default_rng(seed)), result.common_error


def check(found, common_error, *, false):
    # PSF fluxes of 5000 to 30000 places scatter by 2 to 4 % in their variance.
    assert abs(found["pix"] - 1) < 0.03
    assert abs(found["filt"] - 1) < 0.12
    assert abs(found["sum pull"]) < 3
    assert abs(found["sum"] - 1) < 0.03
    assert abs(found["bias pull"]) < 3
    assert abs(found["bias"]) < max(0.02, 3 * common_error)
    assert not found["pull rms"] > 1.6  # Of 4 sources or more.
    assert found["found"] > 0.75
    assert found["false"] <= false


@pytest.mark.parametrize("kind", QUICK)
def test_small_fields(kind, tmp_path):
    check(*measured(kind, 9, 640, tmp_path), false=2)


@pytest.mark.slow
@pytest.mark.cases(7)
@pytest.mark.parametrize("kind", KINDS)
def test_fields(kind, tmp_path):
    # Stars that vary by a fifth are no transients, but they have changed.
    false = math.inf if "variable" in kind else 4
    check(*measured(kind, 9, 1024, tmp_path), false=false)
