"""Real fields with known trouble, by the command at its defaults.

Claims: in a field of galaxies (JWST, 500 x 500) with next to no stars, ten point sources that are
put in are found and nearly all believed, their fluxes right to a tenth in the median, significances
of width 1; besides, hardly anything is believed away from what both images have.  Where a sky of
8200 counts, dust rings and bad columns were left in, nothing is believed near the frame's edges.
Samples in ../shared/data/real; skipped without.
"""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from scenes import SHARED
from whitediff import read_catalog
from whitediff.detection.catalog import believed

REAL = SHARED / "data" / "real"
FLUX = 0.25
"""8.9 sigma."""
PLACES = np.array(
    [
        (60, 100), (150, 60), (60, 200), (180, 160), (100, 300),
        (60, 420), (200, 400), (420, 60), (440, 160), (250, 120),
    ]
)  # fmt: skip

pytestmark = [
    pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data in {REAL}"),
    pytest.mark.slow,
]


def subtracted(run, science, template, directory):
    """Catalogue of a pair, and what the run said."""
    code, _, messages = run(
        "subtract", science, template,
        "--output", directory / "d.fits", "--catalog", directory / "c.ecsv",
    )  # fmt: skip
    assert code == 0, messages
    return read_catalog(directory / "c.ecsv"), messages


def test_point_sources_in_a_field_of_galaxies(run, tmp_path):
    with fits.open(REAL / "nircam" / "science.fits.gz") as hdus:
        header, image = hdus[0].header, hdus[0].data.astype(float)
    psf = fits.getdata(REAL / "nircam" / "science.psf.fits.gz").astype(float)
    for x, y in PLACES:
        image[y - 30 : y + 31, x - 30 : x + 31] += FLUX * psf / psf.sum()
    fits.writeto(tmp_path / "science.fits", image.astype(np.float32), header)
    template = REAL / "nircam" / "template.fits.gz"
    table, messages = subtracted(run, tmp_path / "science.fits", template, tmp_path)
    assert "may be that of galaxies" in messages
    assert table.meta["significance_width"] == pytest.approx(1, abs=0.05)
    places = np.column_stack([table["x"].value, table["y"].value])
    distance = np.hypot(*(places[:, None] - PLACES).T)
    assert (distance.min(axis=1) < 1).all()
    row = distance.argmin(axis=1)
    assert np.median(table["psf_flux"].value[row] / FLUX) == pytest.approx(1, abs=0.1)
    assert believed(table)[row].sum() >= 9
    others = believed(table) & (distance.min(axis=0) > 2.5)
    assert (others & ~table["flag_source"]).sum() <= 3


def test_a_sky_that_was_left_in(run, tmp_path):
    folder = REAL / "toros"
    table, _ = subtracted(run, folder / "science.fits.gz", folder / "template.fits.gz", tmp_path)
    ny, nx = fits.getdata(tmp_path / "d.fits", 1).shape
    x, y = table["x"].value, table["y"].value
    edge = np.minimum.reduce([x, y, nx - 1 - x, ny - 1 - y])
    assert not (believed(table) & (edge < 10)).any()
    assert believed(table).sum() <= 3
    assert (edge < 10).sum() <= 3
