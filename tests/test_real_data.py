"""DECam pairs, formed by convolution with their matching kernels and whitened by the commands.

Claims: in source-free pixels the variance is the expected one, and the PSF-filtered variance
ratio falls from 1.4-1.7 to below 1.25.  What is left comes from inputs that were resampled.
Real exposures (MIT licence, (c) 2021 thomasvrussell) in ../shared/data/decam; skipped without.
"""

from __future__ import annotations

import json

import pytest
from astropy.io import fits

from scenes import SHARED
from whitediff.convolution import convolve

DECAM = SHARED / "data" / "decam"

pytestmark = pytest.mark.skipif(not DECAM.is_dir(), reason=f"no real data in {DECAM}")


@pytest.mark.parametrize(
    ("science", "template", "tolerance"),
    [("04a", "04b", 0.05), ("04a", "04c", 0.05), ("18a", "18b", 0.10), ("18a", "18c", 0.05)],
)
def test_decam_pair(run, tmp_path, science, template, tolerance):
    paths = [DECAM / f"DEC-OBS{name}.mini.fits" for name in (science, template)]
    kernel = DECAM / f"DEC-OBS{template}.MatchKernel.fits"
    images = [fits.getdata(path).astype(float) for path in paths]
    matching_kernel = fits.getdata(kernel).astype(float)
    difference = images[0] - convolve(images[1], matching_kernel)
    fits.writeto(tmp_path / "difference.fits", difference, fits.getheader(paths[0]))
    out = tmp_path / "out.fits"
    code, _, messages = run(
        "decorrelate", *paths, tmp_path / "difference.fits", kernel, "--output", out
    )
    assert code == 0, messages
    assert "sky was subtracted" in messages
    assert "no PSF is known" in messages
    code, table, messages = run(
        "check", out, "--science", paths[0], "--template", paths[1], "--sigma", 1.8,
        "--json", tmp_path / "check.json",
    )  # fmt: skip
    assert code == 0, messages
    assert "PSF-filtered variance ratio" in table
    values = json.loads((tmp_path / "check.json").read_text())
    header = fits.getheader(out)
    expected = header["WDSVAR"] + header["WDTVAR"] * header["WDKSUM"] ** 2
    assert values["after"]["pixels"] > 20000
    assert values["after"]["pixel_variance"] == pytest.approx(expected, rel=tolerance)
    assert values["after"]["pixel_variance_ratio"] == pytest.approx(1, abs=tolerance)
    assert 1.35 < values["before"]["filtered_variance_ratio"] < 1.75
    assert values["after"]["filtered_variance_ratio"] < 1.25
    assert values["before"]["pixel_variance"] < 0.9 * expected
