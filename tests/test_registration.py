"""Templates that do not lie where their WCS says, or that have none.

Claims: stars of two images are paired for shifts to 30 pixels, any rotation, scales from 0.5 to 2
and mirror images, without knowing anything, and the pixels are then known to 0.05; ten stars
suffice among galaxies and cosmic rays; unrelated fields are refused; a wrong WCS is corrected and
a right one left alone, to the last bit; the offset is told where nothing is aligned, with its sign
and remedy, and refused where no kernel takes it; local distortions are taken out in the same
resampling, none where there are none, the noise stays known, and stars leave no false sources; a
cross-correlation finds the shift where there are no stars; a stored product comes out the same, bit
for bit.  The truth is analytic: sources are drawn where they lie, and nothing is resampled.
"""

from __future__ import annotations

import logging
import math
import re

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from grids import sky_header
from marks import slow_after
from skies import Sky, similarity
from whitediff.alignment.correlation import correlated_shift
from whitediff.alignment.distortion import fit_distortion
from whitediff.alignment.exposures import aligned_template
from whitediff.alignment.registration import measured_correction, star_offset
from whitediff.alignment.reprojection import ResamplingOptions
from whitediff.errors import DataError
from whitediff.exposures import masks
from whitediff.formats import write_exposure
from whitediff.matching.exposures import MatchOptions
from whitediff.matching.preparation import PreparationOptions, prepare
from whitediff.numerics.transformation import Affine, Displacements, fit_affine
from whitediff.subtraction.pipeline import make_all
from whitediff.subtraction.recipe import Recipe

SEEDS = range(8)
ACCURATE = 0.05
"""Pixels to which a template has to be aligned where ten stars match."""


def errors_at_stars(sky, correction, stars):
    """Distances of where stars are said to lie from where they do, pixels of the template."""
    found = correction.affine(stars[:, :2])
    if correction.displacements is not None:
        found = found + correction.displacements.at(*stars[:, :2].T)[0]
    return np.hypot(*(found - sky.there(stars[:, :2])).T)


def typical(errors):
    return float(np.sqrt((errors**2).mean()))


@pytest.mark.parametrize("seed", SEEDS)
def test_anything_is_found_without_a_wcs(seed):
    rng = np.random.default_rng(50 + seed)
    scale, angle = 2 ** rng.uniform(-1, 1), (rng.uniform(-180, 180), 90.0, 180.0, -90.0)[seed % 4]
    side = int(340 * max(1, scale)) + seed
    sky = Sky(
        seed=seed,
        matrix=similarity(angle=angle, scale=scale, flip=seed % 3 == 1),
        template_shape=(side, side + 7),
        shift=tuple(rng.uniform(-30, 30, 2)),
    )
    science, template, stars = sky.made()
    correction = measured_correction(science, template)
    assert not correction.by_wcs
    assert correction.affine.scale == pytest.approx(scale, rel=1e-3)
    # In the larger of the two pixels.
    assert typical(errors_at_stars(sky, correction, stars)) < ACCURATE * max(1, scale)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_ten_stars_suffice_among_galaxies_and_cosmic_rays(seed):
    sky = Sky(
        seed=seed,
        stars=10,
        galaxies=15,
        rays=40,
        matrix=similarity(angle=37.0 * seed, flip=seed % 2 == 1),
        shift=(11.3, -20.6),
    )
    science, template, stars = sky.made()
    correction = measured_correction(science, template)
    # Galaxies overlap with stars here and there; half of the stars are as good as asked for.
    errors = errors_at_stars(sky, correction, stars)
    assert np.median(errors) < ACCURATE
    assert errors.max() < 3 * ACCURATE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stars", "seed"),
    [
        (8, 0),
        pytest.param(40, 1, marks=pytest.mark.slow),
        pytest.param(100, 2, marks=pytest.mark.slow),
        (40, 3),
    ],
)
def test_unrelated_fields_are_refused(stars, seed):
    science = Sky(seed=seed, stars=stars, rays=20).made()[0]
    other = Sky(seed=seed + 100, stars=stars, rays=20).made()[1]
    with pytest.raises(DataError, match=r"of its \d+ stars match one of the science image's \d+"):
        aligned_template(science, other, resampling=ResamplingOptions())


@pytest.mark.parametrize(
    ("shift", "angle", "scale"),
    [
        ((2.7, -1.0), 0.0, 1.0),
        ((-14.2, 21.6), 0.0, 1.0),
        ((3.0, 4.0), 0.5, 1.0),
        ((1.5, 0.2), 0.0, 1.01),
    ],
)
def test_a_wrong_wcs_is_corrected(shift, angle, scale, caplog):
    sky = Sky(seed=3, matrix=similarity(angle=angle, scale=scale), shift=(shift[1], shift[0]))
    header = sky_header(sky.shape)
    science, template, stars = sky.made(science_header=header, template_header=header)
    with caplog.at_level(logging.INFO, logger="whitediff"):
        result = aligned_template(science, template, resampling=ResamplingOptions(noise="white"))
    correction = result.registration
    assert correction.by_wcs
    # The header says that the images have the same pixels.
    assert typical(errors_at_stars(sky, correction, stars)) < ACCURATE
    if (angle, scale) == (0.0, 1.0):
        text = f"({int(shift[0]):+d}.".replace("-", "−")
        assert f"its stars lie {text}" in caplog.text
    assert result.noise is not None
    assert dict(result.header)["CRPIX1"] == header["CRPIX1"]


@pytest.mark.parametrize("angle", [0.0, 2.0])
def test_a_refusal_tells_how_far_stars_lie_over_the_frame(angle):
    """Turned about the middle, they lie right in the middle only."""
    sky = Sky(seed=3, matrix=similarity(angle=angle), shift=(0.0, 0.0 if angle else 3.0))
    header = sky_header(sky.shape)
    science, template, _ = sky.made(science_header=header, template_header=header)
    text = star_offset(science, template)
    assert "which --align corrects" in text
    if angle:
        largest = float(re.search(r"in the middle and up to ([\d.]+) elsewhere", text)[1])
        corner = math.radians(angle) * math.hypot(*sky.shape) / 2
        assert largest == pytest.approx(corner, rel=0.02)
    else:
        assert "elsewhere" not in text
        assert "+3.0" in text


def test_a_right_wcs_is_left_alone():
    shifted = Sky(seed=5, shift=(4.4, -3.3))
    headers = {
        "science_header": sky_header(shifted.shape),
        "template_header": sky_header(shifted.shape, shift=(-3.3, 4.4)),
    }
    science, template, _ = shifted.made(**headers)
    images = [
        aligned_template(science, template, resampling=ResamplingOptions(positions=positions)).data
        for positions in ("wcs", "stars", "distortions")
    ]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])
    same = Sky(seed=6)
    science, template, _ = same.made(**dict.fromkeys(headers, sky_header(same.shape)))
    assert aligned_template(science, template, resampling=ResamplingOptions()) is template


def test_the_offset_is_told_and_a_large_one_refused(caplog):
    for shift, message in (((0.0, 0.0), None), ((0.6, -0.4), r"(+0.6"), ((5.3, -7.1), None)):
        sky = Sky(seed=7, shift=(shift[1], shift[0]))
        header = sky_header(sky.shape)
        science, template, _ = sky.made(science_header=header, template_header=header)
        caplog.clear()
        if shift[0] > 5:
            with pytest.raises(
                DataError, match=r"stars lie \(\+5\.3\d?, −7\.1\d?\) .*where its WCS puts .*--align"
            ):
                prepare(science, template)
            continue
        with caplog.at_level(logging.INFO, logger="whitediff"):
            prepare(science, template)
        told = [r for r in caplog.records if "its stars lie" in r.getMessage()]
        assert len(told) == 1
        assert (told[0].levelno == logging.WARNING) == (message is not None)
        if message:
            assert message in told[0].getMessage()
            assert "where its WCS puts them" in told[0].getMessage()
            assert "--align" in told[0].getMessage()


@pytest.mark.parametrize("known", ["neither", "science", "template", "both"])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.6, -0.4), (3.3, -2.6)])
def test_after_an_alignment_no_offset_is_laid_to_a_wcs(known, shift, caplog):
    sky = Sky(seed=11, shape=(300, 320), stars=60, shift=(shift[1], shift[0]))
    header = sky_header(sky.shape)
    science, template, _ = sky.made(
        science_header=header if known in ("science", "both") else None,
        template_header=header if known in ("template", "both") else None,
    )
    options = PreparationOptions(resampling=ResamplingOptions(noise="white"))
    with caplog.at_level(logging.INFO, logger="whitediff"):
        found = prepare(science, template, options).misalignment
    # The correction may tell what the WCS was off by; what is left is the alignment's.
    told = [record.getMessage() for record in caplog.records]
    by_wcs = [text for text in told if "where its WCS puts them" in text]
    assert len(by_wcs) == (known == "both" and shift != (0.0, 0.0))
    left = [text for text in told if "after the alignment its stars still lie" in text]
    assert len(left) <= 1
    assert bool(left) == found.is_significant
    # Errors of the shift are beneath a hundredth of a pixel.
    assert np.hypot(*found.shift) < 0.05


@pytest.mark.parametrize("known", ["science", "template"])
def test_an_offset_is_not_laid_to_a_wcs_that_one_image_lacks(known, caplog):
    sky = Sky(seed=12, shape=(300, 320), stars=60, shift=(0.5, 0.7))
    header = sky_header(sky.shape)
    science, template, _ = sky.made(**{f"{known}_header": header})
    with caplog.at_level(logging.INFO, logger="whitediff"):
        prepare(science, template)
    assert "from those of the science image" in caplog.text
    assert "where its WCS" not in caplog.text


@pytest.mark.parametrize("scale", [1.0, 1.01])
def test_rotations_that_are_none_are_not_told(scale, caplog):
    sky = Sky(seed=13, shape=(300, 320), stars=60, matrix=similarity(scale=scale), shift=(4.4, 1.2))
    science, template, _ = sky.made()
    with caplog.at_level(logging.INFO, logger="whitediff"):
        prepare(science, template, PreparationOptions(resampling=ResamplingOptions(noise="white")))
    assert "e-" not in caplog.text
    assert "rotated by" not in caplog.text
    assert "not rotated" in caplog.text


@pytest.mark.parametrize("flip", slow_after(1, [False, True]))
@pytest.mark.parametrize("angle", [30, -30])
def test_a_rotation_is_told_in_one_sense(angle, flip, caplog):
    matrix = similarity(angle=angle, flip=flip)
    science, template, _ = Sky(seed=13, shape=(300, 320), stars=80, matrix=matrix).made()
    with caplog.at_level(logging.INFO, logger="whitediff"):
        prepare(science, template, PreparationOptions(resampling=ResamplingOptions(noise="white")))
    told = [float(text) for text in re.findall(r"rotated by (-?[\d.]+) degrees", caplog.text)]
    # Stars that turn from x to y lie on a grid that turns the other way.
    assert told == pytest.approx([-angle, -angle], abs=0.1)


@pytest.mark.parametrize("stars", [2, 4, 6])
def test_few_stars_are_not_said_to_be_of_another_field(stars, caplog):
    science = Sky(seed=14, stars=stars, galaxies=0).made()[0]
    other = Sky(seed=15, stars=stars, galaxies=0).made()[1]
    with pytest.raises(DataError) as caught:
        aligned_template(science, other, resampling=ResamplingOptions())
    assert "same field" not in str(caught.value)
    assert "too few to find where it lies; give both a WCS" in str(caught.value)


def significant(difference, sigma):
    """Number of peaks beyond 5 sigma of the filtered difference, either sign."""
    from scipy.ndimage import label

    image = np.nan_to_num(difference.data / np.sqrt(difference.variance))
    image[masks.flagged(difference.mask, masks.UNTRUSTED_MASK_PLANES)] = 0
    filtered = gaussian_filter(image.astype(np.float64), sigma)
    filtered /= 1.4826 * np.median(np.abs(filtered))
    return label(np.abs(filtered) > 5)[1], filtered


@pytest.mark.slow
@pytest.mark.cases(2)
@pytest.mark.parametrize("widths", [(2.2, 1.7), (1.7, 2.2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_local_distortions_leave_no_false_sources(widths, seed):
    numbers = {}
    for distortion, positions in ((0.0, "stars"), (0.3, "stars"), (0.3, "distortions")):
        sky = Sky(
            seed=seed,
            shape=(512, 512),
            stars=160,
            distortion=distortion,
            science_sigma=widths[0],
            template_sigma=widths[1],
        )
        science, template, _ = sky.made()
        options = Recipe(
            preparation=PreparationOptions(
                use_wcs=False, resampling=ResamplingOptions(positions=positions)
            ),
            match=MatchOptions(convolved="auto", choose_order="bic"),
        )
        made = make_all(science, template, options, ["difference"])["difference"]
        difference = made.product.exposure
        numbers[distortion, positions], _ = significant(difference, max(widths))
    assert numbers[0.3, "stars"] > 20
    assert numbers[0.3, "distortions"] <= numbers[0.0, "stars"] + 2


def test_distortions_are_followed_and_the_noise_stays_known():
    sky = Sky(seed=4, shape=(420, 400), stars=150, distortion=0.3, shift=(0.5, 0.5))
    science, template, stars = sky.made()
    before = measured_correction(science, template, use_wcs=False)
    correction = measured_correction(science, template, use_wcs=False, distortions=True)
    inner = stars[(stars[:, :2] > 40).all(axis=1) & (stars[:, :2] < 360).all(axis=1)]
    assert typical(errors_at_stars(sky, before, inner)) > 0.25
    assert typical(errors_at_stars(sky, correction, inner)) < 0.12
    # Noise alone, through the same mapping: its covariance is the predicted one.
    rng = np.random.default_rng(0)
    noise = template.replaced()
    noise.data[:] = rng.normal(size=sky.shape)
    noise.variance[:] = 1.0
    result = aligned_template(
        science,
        noise,
        use_wcs=False,
        resampling=ResamplingOptions(noise="white"),
        correction=correction,
    )
    filtered = gaussian_filter(np.nan_to_num(result.data), 2.2)[20:-20, 20:-20]
    # Low frequencies are those of the pixels, whatever was interpolated: 1/(4 pi sigma²).
    ratio = filtered.var() * 4 * np.pi * 2.2**2
    independent = filtered.size / (4 * np.pi * 2.2**2)
    assert ratio == pytest.approx(1, abs=4 * np.sqrt(2 / independent))
    image = result.data[20:-20, 20:-20]
    variance = result.variance[20:-20, 20:-20]
    assert (image**2 / variance).mean() == pytest.approx(1, abs=5 * np.sqrt(2 / image.size) * 1.4)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_distortion_is_found_in_noise(seed):
    rng = np.random.default_rng(seed)
    places, error = rng.uniform(0, 1000, (120, 2)), rng.uniform(0.02, 0.3, 120)
    left = rng.normal(size=(120, 2)) * np.hypot(error, 0.02)[:, None]
    assert fit_distortion(places, left, error) is None
    assert fit_distortion(places[:10], left[:10], error[:10]) is None


def test_displacements_on_grids_are_those_at_places():
    rng = np.random.default_rng(2)
    field = Displacements(rng.uniform(0, 90, (30, 2)), rng.normal(size=(30, 2)), 17.0)
    rows, columns = np.arange(-1, 81, 3), np.arange(10, 71, 4)
    y, x = (a.ravel() for a in np.meshgrid(rows, columns, indexing="ij"))
    moved, slopes = field.at(y, x)
    np.testing.assert_allclose(field.on(rows, columns).reshape(2, -1).T, moved, atol=1e-6)
    grid = field.derivatives_on(rows, columns).reshape(2, 2, -1)
    np.testing.assert_allclose(np.moveaxis(grid, -1, 0), slopes, atol=1e-6)
    step = 1e-4
    for axis, (dy, dx) in enumerate(((step, 0), (0, step))):
        ahead, behind = field.at(y + dy, x + dx)[0], field.at(y - dy, x - dx)[0]
        np.testing.assert_allclose((ahead - behind) / (2 * step), slopes[:, :, axis], atol=1e-6)


@pytest.mark.parametrize("parameters", [2, 4, 6])
def test_transformations_are_fitted_despite_outliers(parameters):
    rng = np.random.default_rng(parameters)
    matrix = {2: np.eye(2), 4: similarity(angle=140, scale=1.7, flip=True)}.get(
        parameters, np.array([[1.1, 0.2], [-0.3, 0.8]])
    )
    truth = Affine(matrix, np.array([12.0, -40.0]))
    first = rng.uniform(0, 500, (60, 2))
    second = truth(first) + rng.normal(size=(60, 2)) * 0.05
    second[:12] += rng.uniform(-3, 3, (12, 2))
    found, used, scatter = fit_affine(first, second, np.full(60, 0.05), parameters=parameters)
    assert np.abs(found(first) - truth(first)).max() < ACCURATE
    assert used.sum() >= 46
    assert scatter < 0.1


@pytest.mark.parametrize("seed", range(4))
def test_a_cross_correlation_finds_the_shift_of_what_has_no_stars(seed):
    rng = np.random.default_rng(seed)
    shift = rng.uniform(-12, 12, 2)
    sky = Sky(seed=seed, stars=1, galaxies=4, shift=tuple(shift))
    science, template, _ = sky.made()
    levels = (400.0, 200.0)
    flats = [each.data - level for each, level in zip((science, template), levels, strict=True)]
    # What lies at an edge is in one image only, and pulls a little.
    assert np.abs(correlated_shift(*flats) - shift).max() < 0.2
    noise = [rng.normal(size=sky.shape).astype(np.float32) for _ in range(2)]
    assert correlated_shift(*noise) is None


@pytest.mark.slow
def test_the_command_line_stores_what_the_stars_said(run, tmp_path):
    sky = Sky(seed=9, shape=(400, 400), stars=120, distortion=0.4, shift=(2.4, -8.3))
    header = sky_header(sky.shape)
    science, template, _ = sky.made(science_header=header, template_header=header)
    files = [tmp_path / f"{name}.fits" for name in ("science", "template")]
    for exposure, file in zip((science, template), files, strict=True):
        write_exposure(exposure, file)
    code, _, messages = run("subtract", *files, "--output", tmp_path / "no.fits")
    assert code == 1
    assert "its stars lie (−8." in messages
    assert "--align" in messages
    from astropy.io import fits

    for i, options in enumerate((["--align"], ["--register"], ["--register", "--ignore-wcs"])):
        first, again = tmp_path / f"one{i}.fits", tmp_path / f"again{i}.fits"
        code, _, messages = run(
            "subtract", *files, *options, "--kernel-order", 0, "--output", first
        )
        assert code == 0, messages
        assert ("places" in fits.getdata(first, "REGISTRATION").names) == (i > 0)
        code, _, messages = run("subtract", *files, "--kernel", first, "--output", again)
        assert code == 0, messages
        for plane in ("IMAGE", "VARIANCE", "MASK"):
            one, two = (fits.getdata(path, plane) for path in (first, again))
            np.testing.assert_array_equal(one, two)
        assert fits.getheader(first, "IMAGE")["CRPIX1"] == header["CRPIX1"]
    code, _, messages = run(
        "align", files[1], "--to", files[0], "--register", "--output", tmp_path / "a.fits"
    )
    assert code == 0, messages
    assert "local distortions of" in messages
