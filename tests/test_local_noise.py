"""Images of several depths, of which neither weights nor a gain tell.

Claims: the variance plane follows the noise, 16 times as large in one part as in the other, to 20 %
a cell away from the edge between them, whatever the unit, with stars on both; it is constant
where the noise is, among stars and galaxies, too.  The noise is no cosmic ray, what stands on
either side is found and nothing else, in both images and directions.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from marks import slow_after
from whitediff.defects.exposures import DefectOptions, with_defects
from whitediff.detection.catalog import believed
from whitediff.detection.exposures import detect
from whitediff.exposures import masks
from whitediff.exposures.model import Exposure
from whitediff.noise.local import relative_variance
from whitediff.noise.photons import PhotonScale
from whitediff.noise.variance_planes import noise_variance
from whitediff.subtraction.pipeline import make_all
from whitediff.subtraction.recipe import Recipe

SIZE = 416
EDGE = 250


def stars(seed, fwhm, transients=()):
    rng = np.random.default_rng(seed)
    image = np.zeros((SIZE, SIZE))
    flux = 2e3 * 50 ** rng.uniform(0, 1, 70)
    for y, x, light in [*zip(*rng.integers(4, SIZE - 4, (2, 70)), flux, strict=True), *transients]:
        image[y, x] += light
    return scipy.ndimage.gaussian_filter(image, fwhm / 2.3548, truncate=6)


def sigma(deep):
    """Noise beside an edge that is not along a column."""
    y, x = np.mgrid[:SIZE, :SIZE]
    shallow = x + 0.2 * y > EDGE + 0.2 * SIZE / 2
    return np.where(shallow ^ (deep == "right"), 20.0, 5.0)


@pytest.mark.parametrize("unit", [1.0, 1e-19])
@pytest.mark.parametrize("deep", ["left", "right"])
def test_the_plane_follows_the_noise(deep, unit):
    for seed in range(3):
        rng = np.random.default_rng(40 + seed)
        true = sigma(deep)
        image = stars(seed, 4.0) + 100 + rng.normal(0, true)
        found = noise_variance((unit * image).astype(np.float32) if unit == 1 else unit * image)
        ratio = found.variance / unit**2 / true**2
        away = np.ones(true.shape, bool)
        edge = scipy.ndimage.binary_dilation(np.abs(np.diff(true, axis=1, append=0)) > 1)
        edge[:, -1] = False
        away = scipy.ndimage.distance_transform_edt(~edge) > 40
        dark = scipy.ndimage.gaussian_filter(stars(seed, 4.0), 2) < 1
        assert np.abs(np.log(ratio[away & dark])).max() < 0.3
        assert np.exp(np.log(ratio[away & dark]).mean()) == pytest.approx(1, abs=0.05)
        assert "as the depth differs" in found.description


def test_it_is_constant_where_the_noise_is():
    for seed in range(6):
        rng = np.random.default_rng(60 + seed)
        image = stars(seed, (2.0, 3.0, 5.0)[seed % 3])
        blobs = np.zeros((SIZE, SIZE))
        places = rng.integers(4, SIZE - 4, (2, 200))
        blobs[tuple(places)] = 10 ** rng.uniform(2.5, 4.5, 200)
        image += scipy.ndimage.gaussian_filter(blobs, 4.0) + rng.normal(0, 5.0, image.shape)
        found = noise_variance(image)
        assert "everywhere" in found.description
        assert np.ptp(found.variance) == 0


def test_what_nothing_tells():
    rng = np.random.default_rng(0)
    everywhere = np.ones((300, 300), bool)
    noise = rng.normal(size=(300, 300))
    assert relative_variance(noise, everywhere, everywhere) is None
    assert relative_variance(noise, ~everywhere, ~everywhere) is None
    assert relative_variance(noise[:60, :60], everywhere[:60, :60], everywhere[:60, :60]) is None


@pytest.mark.parametrize(
    ("which", "convolved", "seed"),
    slow_after(
        1,
        [
            (0, "template", 0),
            (1, "template", 1),
            (0, "science", 2),
            (1, "science", 3),
            (0, "template", 4),
            (1, "template", 5),
        ],
    ),
)
def test_a_pair(which, convolved, seed):
    rng = np.random.default_rng(80 + seed)
    # 15 to 20 sigma on the shallow side.
    new = [(60, 60, 2e3), (300, 80, 3e3), (90, 350, 5e3), (320, 370, 6e3)]
    fwhm = (4.0, 3.2) if convolved == "template" else (3.2, 4.0)
    models = stars(seed, fwhm[0], new), stars(seed, fwhm[1])
    exposures = []
    for number, model in enumerate(models):
        true = sigma("left") if number == which else 6.0
        image = (model + 100 + rng.normal(0, true, model.shape)).astype(np.float32)
        exposures.append(Exposure.from_arrays(image, variance=noise_variance(image).variance))
    marked = with_defects(*exposures, DefectOptions())[which]
    # A third of a per cent of the shallow part; it was a tenth.
    assert masks.flagged(marked.mask, ("CR", "BAD")).sum() < 180
    made = make_all(*exposures, Recipe(), ("difference",))["difference"]
    rows = detect(made.difference)
    x, y = (rows[name].value for name in ("x", "y"))
    at = np.array([(x, y) for y, x, _ in new])
    apart = np.hypot(x[:, None] - at[:, 0], y[:, None] - at[:, 1])
    # Some stand beside a star.
    trusted = believed(rows) | rows["flag_near_bright_star"]
    assert (apart[trusted].min(axis=0) < 1.5).all()
    assert (apart[believed(rows)].min(axis=1) > 3).sum() <= 1


@pytest.mark.parametrize("extra", [15.0, 25.0, 40.0, 60.0])
@pytest.mark.parametrize("gain", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("seed", slow_after(1, range(4)))
def test_a_gain_that_fits_the_mean_of_two_depths_explains_neither(gain, extra, seed):
    rng = np.random.default_rng([seed, int(extra), int(gain)])
    size, level = 400, 300.0
    rows, columns = np.mgrid[:size, :size]
    shallow = rows + columns > size
    true = level / gain + (5 / gain) ** 2 + np.where(shallow, extra**2, 0.0)
    image = level + rng.normal(size=true.shape) * np.sqrt(true)
    alternatives = [PhotonScale(each, 5.0, "guessed") for each in (1.0, gain / 3, gain * 3)]
    model = noise_variance(
        image.astype(np.float32), gain=gain, read_noise=5.0, alternatives=alternatives
    )
    # Cells of 32 pixels do not tell which side of the border they are on.
    apart = np.abs(rows + columns - size) > 100
    for part in (shallow & apart, ~shallow & apart):
        assert np.median(model.variance[part] / true[part]) == pytest.approx(1, abs=0.15)
