"""Finding sources, on arrays and on exposures.

Claims: significance is the filtered image over the noise of the good pixels under the filter, by
explicit sums, at edges, next to bad pixels and for a PSF that varies; it is standard normal where
there is only noise.  Peaks are those of the band-limited image between its pixels, and white noise
has as many as theory says.  Amplitudes of overlapping peaks are those of a dense simultaneous fit;
the rings of a bright source are none, two sources that touch are two.  A catalogue has the pixel
coordinates, sky coordinates, magnitudes, flags and blends that its columns say, an empty one is
valid, and wrong input is one sentence.
"""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.table import QTable, Table

from whitediff import Exposure
from whitediff.detection.exposures import (
    DetectionOptions,
    detect,
    expected_false_detections,
    forced_photometry,
    significance_at,
)
from whitediff.detection.peaks import (
    Peaks,
    Responses,
    deblended,
    expected_peaks,
    find_peaks,
    noise_curvature,
    response_curvature,
    values_at,
)
from whitediff.errors import ArgumentError
from whitediff.evaluation.placing import add_stamp
from whitediff.evaluation.simulation import PsfModel
from whitediff.exposures.kernels import interpolated_kernel
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.noise.significance import (
    Significance,
    core,
    point_source_significance,
    score_significance,
    self_response,
)

FRAME = (120, 140)
MODEL = PsfModel(sigma=1.9, frame=FRAME, ellipticity=(0.15, -0.1), offset=(0.3, -0.2))
YX0 = (40, -25)
FILTER_CUT = 2e-3
"""The filter leaves 1e-6 of the squared PSF out, a thousandth of its amplitude."""


def gaussian_sum(shape, sources, sigma=2.0):
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.zeros(shape)
    for px, py, height in sources:
        image += height * np.exp(-0.5 * ((x - px) ** 2 + (y - py) ** 2) / sigma**2)
    return image


def whole(image):
    return Significance(image.astype(np.float32), np.ones(image.shape, bool))


def brute_force(image, variance, good, psf, y, x):
    half = psf.shape[0] // 2
    top = noise = share = 0.0
    for j in range(-half, half + 1):
        for i in range(-half, half + 1):
            if not (0 <= y + j < image.shape[0] and 0 <= x + i < image.shape[1]):
                continue
            if good[y + j, x + i]:
                weight = psf[half + j, half + i]
                top += weight * image[y + j, x + i]
                noise += weight**2 * variance[y + j, x + i]
                share += weight**2
    return top / np.sqrt(noise) if noise else 0.0, share / (psf**2).sum()


class TestSignificance:
    def test_it_is_an_explicit_sum(self, rng):
        variance = rng.uniform(5, 50, FRAME)
        image = rng.normal(size=FRAME) * np.sqrt(variance)
        good = rng.random(FRAME) > 0.02
        good[:, 70:74] = False
        image[3, 5], image[60, 60] = np.nan, np.inf
        variance[90, 90], variance[91, 20] = -1, np.nan
        usable = good & np.isfinite(image) & (variance > 0)
        for plane in (image, variance, good):
            plane.flags.writeable = False
        psf = MODEL.image(0, 0)
        found = point_source_significance(image, variance, good, psf)
        places = [(0, 0), (119, 139), (3, 5), (60, 60), (90, 91), (50, 72), (50, 69), (0, 71)]
        places += list(zip(rng.integers(0, 120, 30), rng.integers(0, 140, 30), strict=True))
        for y, x in places:
            value, share = brute_force(image, variance, usable, psf, y, x)
            if abs(share - 0.5) > 0.01:
                assert found.searched[y, x] == (share > 0.5), (y, x)
            if share > 0.1:
                assert found.image[y, x] == pytest.approx(value, abs=2 * FILTER_CUT), (y, x)
        assert found.pixels == np.count_nonzero(found.searched)
        assert np.isfinite(found.image).all()

    def test_a_varying_psf_is_that_of_its_place(self, rng):
        image, variance = rng.normal(0, 3, FRAME), np.full(FRAME, 9.0)
        good = np.ones(FRAME, bool)

        def psf(x, y):
            return PsfModel(sigma=1.2 + 0.01 * x, frame=FRAME).image(0, 0)

        found = point_source_significance(image, variance, good, psf)
        for y, x in ((20, 10), (100, 30), (60, 90), (10, 130)):
            # The tile's middle is within half of 96 pixels.
            near = [
                brute_force(image, variance, good, psf(x + d, y), y, x)[0]
                for d in np.linspace(-48, 48, 97)
            ]
            assert min(near) - FILTER_CUT < found.image[y, x] < max(near) + FILTER_CUT

    def test_noise_is_standard_normal_whatever_variance_and_mask(self, rng):
        shape = (500, 500)
        variance = np.exp(rng.normal(0, 0.5, shape))
        variance[:, 250:] *= 100
        image = (rng.normal(size=shape) * np.sqrt(variance)).astype(np.float32)
        good = rng.random(shape) > 0.05
        found = point_source_significance(image, variance, good, MODEL.image(0, 0))
        values = found.image[found.searched]
        # As many independent values as the response has areas: 4πσ².
        independent = values.size / (4 * math.pi * 1.9**2)
        assert values.mean() == pytest.approx(0, abs=4 / np.sqrt(independent))
        assert values.std() == pytest.approx(1, abs=4 / np.sqrt(2 * independent))

    def test_one_bright_pixel_blurs_no_others(self, rng):
        image = rng.normal(size=(200, 200)).astype(np.float32)
        good = np.ones(image.shape, bool)
        calm = point_source_significance(
            image, np.ones(image.shape), good, MODEL.image(0, 0)
        ).image.copy()
        image[100, 100] = 1e9
        found = point_source_significance(
            image, np.ones(image.shape), good, MODEL.image(0, 0)
        ).image
        np.testing.assert_allclose(found[:60], calm[:60], atol=5e-3)

    def test_nothing_good_is_nothing_found(self):
        found = point_source_significance(
            np.full(FRAME, np.nan), np.ones(FRAME), np.ones(FRAME, bool), MODEL.image(0, 0)
        )
        assert found.pixels == 0
        assert not found.image.any()
        assert len(find_peaks(found, 3)) == 0

    def test_of_a_score_it_is_over_its_deviation(self, rng):
        score, variance = rng.normal(size=(20, 30)), rng.uniform(1, 4, (20, 30))
        good = np.ones((20, 30), bool)
        good[3, 4], score[5, 6], variance[7, 8], variance[9, 9] = False, np.nan, 0, np.inf
        found = score_significance(score, variance, good)
        oracle = score / np.sqrt(np.where(variance > 0, variance, 1))
        assert found.pixels == 600 - 4
        np.testing.assert_allclose(found.image[found.searched], oracle[found.searched], rtol=1e-6)
        assert not found.image[~found.searched].any()

    def test_shapes_must_agree(self):
        for function in (
            lambda *a: point_source_significance(*a, MODEL.image(0, 0)),
            score_significance,
        ):
            with pytest.raises(ArgumentError, match=r"\(3, 4\).*\(4, 3\)"):
                function(np.zeros((3, 4)), np.zeros((4, 3)), np.zeros((3, 4), bool))

    @pytest.mark.parametrize("shape", [(21, 21), (20, 25), (9, 30)])
    def test_the_core_of_a_psf_is_about_its_origin(self, shape):
        y, x = np.mgrid[: shape[0], : shape[1]]
        psf = np.exp(-0.5 * ((x - shape[1] // 2) ** 2 + (y - shape[0] // 2) ** 2) / 1.2**2)
        cut = core(psf, 0.999)
        assert cut.shape[0] == cut.shape[1]
        assert cut.shape[0] % 2 == 1
        assert cut[cut.shape[0] // 2, cut.shape[0] // 2] == psf.max()
        assert (cut**2).sum() >= 0.999 * (psf**2).sum()


class TestPeaks:
    def test_they_lie_between_pixels(self):
        sources = [(20.3, 31.8, 9.0), (60.5, 40.5, -7.0), (41.0, 9.49, 6.0), (70.1, 70.2, 3.0)]
        peaks = find_peaks(whole(gaussian_sum((90, 100), sources)), 5)
        assert len(peaks) == 3
        for px, py, height in sources[:3]:
            i = np.argmin(np.hypot(peaks.x - px, peaks.y - py))
            np.testing.assert_allclose([peaks.x[i], peaks.y[i]], [px, py], atol=3e-3)
            assert peaks.significance[i] == pytest.approx(height, rel=2e-4)
            pixel = gaussian_sum((90, 100), sources)[round(py), round(px)]
            assert abs(peaks.pixel_significance[i]) <= abs(height)
            assert peaks.pixel_significance[i] == pytest.approx(pixel, rel=0.05)

    def test_the_threshold_is_that_between_pixels(self):
        # The highest pixel of this peak is 4.85.
        found = whole(gaussian_sum((40, 40), [(20.5, 20.5, 5.1)], sigma=2.2))
        assert found.image.max() < 5
        assert len(find_peaks(found, 5)) == 1
        assert len(find_peaks(found, 5.2)) == 0

    @pytest.mark.parametrize(("sign", "number"), [("both", 2), ("positive", 1), ("negative", 1)])
    def test_signs(self, sign, number):
        found = whole(gaussian_sum((60, 60), [(20, 20, 9.0), (40, 40, -9.0)]))
        assert len(find_peaks(found, 5, sign)) == number

    def test_they_are_the_maxima_of_the_image_on_a_finer_grid(self, rng):
        noise = rng.normal(size=(64, 64))
        y, x = (np.minimum(n, 64 - n) for n in np.mgrid[:64, :64])
        kernel_ft = np.fft.rfft2(np.exp(-0.5 * (x**2 + y**2) / 1.8**2))
        spectrum = np.fft.rfft2(noise) * kernel_ft
        spectrum[:, 20:] = spectrum[20:45] = 0
        image = np.fft.irfft2(spectrum, s=(64, 64))
        image /= image.std()
        fine_ft = np.zeros((640, 321), complex)
        fine_ft[:32, :33], fine_ft[-32:, :33] = spectrum[:32], spectrum[32:]
        fine = np.fft.irfft2(fine_ft, s=(640, 640))
        fine *= image[0, 0] / fine[0, 0]
        highest = np.ones(fine.shape, bool)
        for shift in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)):
            highest &= fine > np.roll(fine, shift, (0, 1))
        rows, columns = np.nonzero(highest & (fine > 1.5))
        # The interpolation needs 8 pixels to each side.
        inside = (rows > 100) & (rows < 540) & (columns > 100) & (columns < 540)
        # Low ones may be ridges, whose tops no pixel knows to a tenth.
        inside &= fine[rows, columns] > 1.8
        found = find_peaks(whole(image), 1.5, "positive")
        high = (found.y > 10.1) & (found.y < 53.9) & (found.x > 10.1) & (found.x < 53.9)
        assert inside.sum() > 3
        assert (high & (found.significance > 1.8)).sum() == inside.sum()
        for row, column in zip(rows[inside], columns[inside], strict=True):
            i = np.argmin(np.hypot(found.x - column / 10, found.y - row / 10))
            np.testing.assert_allclose([found.y[i], found.x[i]], [row / 10, column / 10], atol=0.08)
            assert found.significance[i] == pytest.approx(fine[row, column], abs=0.01)

    def test_flat_tops_and_edges_count_once(self):
        image = np.zeros((40, 40))
        image[10:12, 20:22] = 9.0
        image[0, 5] = image[39, 39] = 9.0
        peaks = find_peaks(whole(image), 5)
        assert len(peaks) == 3
        assert ((peaks.x > -1) & (peaks.x < 40) & (peaks.y > -1) & (peaks.y < 40)).all()

    def test_pixels_that_are_not_searched_have_none(self):
        image = gaussian_sum((40, 40), [(20, 20, 9.0), (30, 8, 9.0)])
        searched = np.ones(image.shape, bool)
        searched[18:23, 18:23] = False
        (x,) = find_peaks(Significance(image.astype(np.float32), searched), 5).x
        assert x == pytest.approx(30, abs=1e-3)

    @pytest.mark.parametrize("threshold", [0.0, -3.0, math.nan, math.inf])
    def test_the_threshold_is_positive(self, threshold):
        with pytest.raises(ArgumentError, match="must be positive"):
            find_peaks(whole(np.zeros((9, 9))), threshold)

    def test_values_between_pixels(self, rng):
        sources = [(20.3, 31.8, 9.0), (60.5, 40.5, -7.0)]
        image = gaussian_sum((90, 100), sources)
        x, y = rng.uniform(10, 80, (2, 50))
        oracle = [gaussian_sum((1, 1), [(a - px, b - py, h) for a, b, h in sources])[0, 0]
                  for px, py in zip(x, y, strict=True)]  # fmt: skip
        np.testing.assert_allclose(values_at(image, x, y), oracle, atol=2e-4 * 9)


class TestTheory:
    def test_of_a_gaussian(self):
        for sigma in (1.5, 2.5):
            psf = PsfModel(sigma=sigma, frame=FRAME).image(0, 0)
            assert noise_curvature(psf) == pytest.approx(1 / (2 * sigma**2), rel=1e-3)
        # DMTN-006: n = ν exp(−ν²/2) / (2^(5/2) π^(3/2) σ²).
        expected = 5 * math.exp(-12.5) / (2**2.5 * math.pi**1.5 * 2.0**2)
        assert expected_peaks(1 / 8, 5.0) == pytest.approx(expected, rel=1e-12)

    def test_of_an_ellipse_it_is_the_product_of_its_axes(self):
        psf = PsfModel(sigma=2.0, frame=FRAME, ellipticity=(0.2, 0.25)).image(0, 0)
        # sigma is the geometric mean of both axes.
        assert noise_curvature(psf) == pytest.approx(1 / 8, rel=2e-3)

    def test_a_score_looks_like_its_noise(self):
        psf = MODEL.image(0, 0)
        response = self_response(psf)
        assert response_curvature(7 * response) == pytest.approx(noise_curvature(psf), rel=1e-3)
        direct = np.zeros(response.shape)
        n = psf.shape[0]
        for dy, dx in ((0, 0), (0, 3), (-2, 1)):
            a = psf[max(0, dy) : n + min(0, dy), max(0, dx) : n + min(0, dx)]
            b = psf[max(0, -dy) : n + min(0, -dy), max(0, -dx) : n + min(0, -dx)]
            direct = (a * b).sum() / (psf**2).sum()
            assert response[n - 1 + dy, n - 1 + dx] == pytest.approx(direct, abs=1e-12)

    @pytest.mark.parametrize("profile", ["gaussian", "moffat"])
    def test_white_noise_has_as_many_peaks(self, rng, profile):
        psf = PsfModel(sigma=1.7, frame=FRAME, profile=profile, ellipticity=(0.15, 0.2)).image(0, 0)
        shape = (1400, 1400)
        found = point_source_significance(
            rng.normal(0, 3, shape).astype(np.float32), np.full(shape, 9.0),
            np.ones(shape, bool), psf,
        )  # fmt: skip
        value = find_peaks(found, 3.3).significance
        for threshold in (3.3, 3.7, 4.2):
            theory = expected_peaks(noise_curvature(psf), threshold, found.pixels)
            for side in (1, -1):
                number = (side * value > threshold).sum()
                # Three standard deviations, and 3 %: theory is that of high thresholds.
                assert abs(number - theory) < 3 * np.sqrt(theory) + 0.03 * theory


class TestBlends:
    @staticmethod
    def responses(psf):
        return Responses(self_response(psf)[None], np.zeros(1), np.zeros(1))

    def test_amplitudes_are_those_of_a_dense_fit(self, rng):
        psf = MODEL.image(0, 0)
        x = np.array([50.0, 54.5, 59.0, 100.0])
        y = np.array([50.0, 51.0, 49.0, 20.0])
        value = np.array([60.0, 75.0, -54.0, 9.0])
        responses = self.responses(psf)
        found = deblended(Peaks(x, y, value, value, np.ones(len(x))), 5, responses)
        matrix = responses.at(
            np.zeros(16), np.zeros(16), (x - x[:, None]).ravel(), (y - y[:, None]).ravel()
        ).reshape(4, 4)
        np.testing.assert_allclose(found.amplitude, np.linalg.solve(matrix, value), rtol=1e-6)
        assert found.group.tolist() == [0, 0, 0, 1]

    def test_two_that_touch_are_two_and_rings_are_none(self, rng):
        shape = (150, 150)
        # Rings: the PSF has a negative annulus, as decorrelated ones do.
        wide, narrow = (PsfModel(sigma=s, frame=FRAME).stamp(0, 0, size=31) for s in (2.6, 1.8))
        psf = 1.6 * narrow - 0.6 * wide
        image = np.zeros(shape)
        noise = 1 / np.sqrt((psf**2).sum())
        for x, y, ratio in ((40, 40, 300), (100, 100, 40), (107, 103, 30)):
            add_stamp(image, ratio * noise * psf, x, y)
        image += rng.normal(size=shape)
        found = point_source_significance(image, np.ones(shape), np.ones(shape, bool), psf)
        peaks = find_peaks(found, 5)
        blends = deblended(peaks, 5, self.responses(psf))
        assert len(peaks) > 3
        assert len(blends.peaks) == 3
        np.testing.assert_allclose(np.sort(blends.amplitude), [30, 40, 300], atol=5)

    def test_no_peaks(self):
        empty = np.zeros(0)
        found = deblended(
            Peaks(empty, empty, empty, empty, empty), 5, self.responses(MODEL.image(0, 0))
        )
        assert len(found.peaks) == len(found.group) == 0


# On exposures


def tpv_header():
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TPV", "DEC--TPV"
    header["CRVAL1"], header["CRVAL2"] = 150.0, 60.0
    header["CRPIX1"], header["CRPIX2"] = 60.0, 70.0
    header["CD1_1"], header["CD1_2"], header["CD2_1"], header["CD2_2"] = -7e-5, 1e-5, 2e-5, 7e-5
    header["PV1_1"], header["PV2_1"], header["PV1_4"], header["PV2_5"] = 1.0, 1.0, 0.3, -0.2
    header["MAGZERO"] = 27.5
    header["BUNIT"] = "adu"
    return header


SOURCES = [(30.3, 40.6, 40.0), (100.7, 60.2, -30.0), (60.0, 100.1, 12.0)]


def scene(rng, sources=SOURCES, *, header=None, mask=None, psf=True, variance=16.0):
    image = rng.normal(0, 4, FRAME)
    noise = 4 / np.sqrt((MODEL.image(0, 0) ** 2).sum())
    for x, y, ratio in sources:
        add_stamp(image, ratio * noise * MODEL.stamp(x, y), x, y)
    return Exposure.from_arrays(
        image.astype(np.float32), variance=variance, psf=MODEL.image(0, 0) if psf else None,
        origin=YX0, header=header, mask=mask,
    )  # fmt: skip


def test_positions_are_pixel_coordinates_and_fluxes_those_put_in(rng):
    table = detect(scene(rng))
    noise = 4 / np.sqrt((MODEL.image(0, 0) ** 2).sum())
    assert len(table) == 3
    for row, (x, y, ratio) in zip(table, SOURCES, strict=True):
        assert row["x"].value - YX0[1] == pytest.approx(x, abs=4 * row["x_err"].value)
        assert row["y"].value - YX0[0] == pytest.approx(y, abs=4 * row["y_err"].value)
        assert row["psf_flux_err"] == pytest.approx(noise, rel=0.01)
        assert row["psf_flux"] == pytest.approx(ratio * noise, abs=4 * noise)
        assert row["significance"] == pytest.approx(row["psf_flux"] / noise, rel=0.05)
        assert row["psf_chi2"] == pytest.approx(1, abs=5 * np.sqrt(2 / row["psf_chi2_pixels"]))
        # sigma along the axes from the ellipticity.
        e = math.hypot(0.15, -0.1)
        trace = 1.9**2 * ((1 + e) / (1 - e) + (1 - e) / (1 + e))
        assert (row["shape_xx"] + row["shape_yy"]).value == pytest.approx(trace, rel=0.6)
    assert (table["classification"] == "point").all()
    assert not any(table[name].any() for name in table.colnames if name.startswith("flag_"))
    assert all(table[name].info.description for name in table.colnames)


def test_sky_coordinates_are_those_of_the_wcs(rng):
    image = scene(rng, header=tpv_header())
    table = detect(image)
    sky = image.wcs.pixel_to_world(table["x"].value - YX0[1], table["y"].value - YX0[0]).icrs
    np.testing.assert_allclose(table["ra"].to_value("deg"), sky.ra.deg, rtol=0, atol=1e-10)
    np.testing.assert_allclose(table["dec"].to_value("deg"), sky.dec.deg, rtol=0, atol=1e-10)
    # By Monte Carlo: where a position scatters, its place on the sky does.
    row = table[2]
    xy, yy = row["xy_cov"].value, row["y_err"].value ** 2
    covariance = [[row["x_err"].value ** 2, xy], [xy, yy]]
    px, py = rng.multivariate_normal([row["x"].value, row["y"].value], covariance, 4000).T
    around = image.wcs.pixel_to_world(px - YX0[1], py - YX0[0]).icrs
    cosine = np.cos(row["dec"].to_value("rad"))
    assert (around.ra.deg * cosine).std() == pytest.approx(row["ra_err"].value, rel=0.05)
    assert around.dec.deg.std() == pytest.approx(row["dec_err"].value, rel=0.05)
    forced = forced_photometry(image, table["id", "ra", "dec"])
    np.testing.assert_allclose(forced["x"].value, table["x"].value, atol=1e-5)


def test_without_a_wcs_there_are_no_sky_columns_which_is_said_once(rng, caplog):
    with caplog.at_level(logging.WARNING, "whitediff.detect"):
        table = detect(scene(rng))
    assert "ra" not in table.colnames
    assert caplog.text.count("no WCS") == 1


def test_magnitudes_are_those_of_the_zero_point(rng):
    table = detect(scene(rng, header=tpv_header()))
    assert table["psf_flux"].unit == units.adu
    bright = table[table["significance"] > 0]
    flux = bright["psf_flux"].value
    np.testing.assert_allclose(bright["psf_mag"].value, 27.5 - 2.5 * np.log10(flux))
    relative = bright["psf_flux_err"].value / flux
    np.testing.assert_allclose(bright["psf_mag_err"].value, 1.0857362 * relative, rtol=1e-6)
    assert np.isnan(table["psf_mag"][table["significance"] < 0]).all()
    assert table.meta["zero_point_from"] == "MAGZERO"
    given = detect(scene(rng), options=DetectionOptions(zero_point=25.0))
    assert given.meta["zero_point"] == 25.0
    assert "psf_mag" not in detect(scene(rng)).colnames


def test_flags_are_the_mask_planes_near_a_source(rng):
    planes = {name: np.zeros(FRAME, bool) for name in ("BAD", "SAT", "CR", "INTRP", "SOURCE")}
    planes["BAD"][40, 33] = planes["CR"][41:43, 30] = planes["INTRP"][60, 101] = True
    planes["SAT"][80, 60], planes["SOURCE"][100, 60] = True, True
    sources = [*SOURCES, (3.2, 80.0, 20.0)]
    table = detect(scene(rng, sources, mask=planes))
    x, y = table["x"].value - YX0[1], table["y"].value - YX0[0]
    rows = [int(np.argmin(np.hypot(x - px, y - py))) for px, py, _ in sources]
    flagged = {
        name: [i for i, row in enumerate(rows) if table[name][row]]
        for name in table.colnames
        if name.startswith("flag_")
    }
    assert {name: rows for name, rows in flagged.items() if rows} == {
        "flag_bad": [0],
        "flag_cosmic_ray": [0],
        "flag_interpolated": [1],
        "flag_source": [2],
        "flag_near_bright_star": [2],
        "flag_edge": [3],
    }


def test_masked_and_missing_pixels_make_no_sources(rng):
    image = scene(rng, [])
    values = image.data
    values[20:22, 30:90] = 1e4
    values[70, :] = np.nan
    values[:, 120] = np.inf
    planes = {"CR": np.zeros(FRAME, bool)}
    planes["CR"][20:22, 30:90] = True
    masked = Exposure.from_arrays(values, variance=16.0, mask=planes, psf=MODEL.image(0, 0))
    assert len(detect(masked)) == 0
    options = DetectionOptions(exclude_mask_planes=())
    found = detect(masked, options=options)
    assert len(found) > 0
    assert set(found["classification"]) != {"point"}


def test_blends_know_each_other(rng):
    table = detect(scene(rng, [(50.0, 50.0, 60.0), (57.5, 51.0, 40.0), (100.0, 90.0, 20.0)]))
    assert table["n_peaks"].tolist() == [2, 2, 1]
    assert table["parent"].tolist() == [table["id"][0], table["id"][0], table["id"][2]]
    noise = 4 / np.sqrt((MODEL.image(0, 0) ** 2).sum())
    np.testing.assert_allclose(table["psf_flux"], np.array([60, 40, 20]) * noise, atol=5 * noise)


def test_one_sign_and_a_score(rng):
    image = scene(rng)
    for sign, number in (("positive", 2), ("negative", 1), ("both", 3)):
        assert len(detect(image, options=DetectionOptions(sign=sign))) == number
    # A score is searched in place of the difference, which is measured.
    heights = gaussian_sum(FRAME, [(100.7, 60.2, -8.0)], sigma=2.7)
    score = Exposure.from_arrays(heights.astype(np.float32), variance=1.0, origin=YX0)
    table = detect(image, score)
    assert table["significance"] == pytest.approx([-8.0], rel=1e-3)
    oracle = detect(image)
    (negative,) = oracle["psf_flux"][oracle["significance"] < 0]
    assert table["psf_flux"][0] == pytest.approx(negative, rel=1e-3)
    with pytest.raises(ArgumentError, match="its box"):
        detect(image, Exposure.from_arrays(np.zeros((5, 5)), variance=1.0))


def test_significance_at_given_positions(rng):
    image = scene(rng)
    table = detect(image)
    x, y = table["x"].value, table["y"].value
    values = significance_at(image, x, y)
    # The peak of the filtered image and the fit differ by what noise beyond the fit does.
    np.testing.assert_allclose(values, table["significance"], atol=0.2)


def test_a_psf_that_varies(rng):
    model = PsfModel(sigma=1.9, frame=FRAME, variation=0.25)
    image = rng.normal(0, 4, FRAME)
    places = [(15.0, 60.0), (125.0, 60.0)]
    for x, y in places:
        add_stamp(image, 5000 * model.stamp(x, y), x, y)
    exposure = Exposure.from_arrays(image.astype(np.float32), variance=16.0, origin=YX0)
    exposure.psf = KernelPointSpreadFunction(
        interpolated_kernel(lambda x, y: model.image(x - YX0[1], y - YX0[0]), exposure.bbox, 3)
    )
    table = detect(exposure)
    assert len(table) == 2
    np.testing.assert_allclose(table["psf_flux"], 5000, atol=5 * table["psf_flux_err"].max())
    forced = forced_photometry(exposure, table["x", "y"])
    for error, (x, y) in zip(forced["psf_flux_err"], sorted(places), strict=True):
        assert error == pytest.approx(4 / np.sqrt((model.image(x, y) ** 2).sum()), rel=0.01)


def test_an_empty_catalogue_is_valid(rng):
    image = scene(rng, header=tpv_header())
    empty = detect(image, options=DetectionOptions(threshold=1000))
    full = detect(image)
    assert len(empty) == 0
    assert empty.colnames == full.colnames
    for name in full.colnames:
        assert empty[name].dtype.kind == full[name].dtype.kind, name
        assert empty[name].unit == full[name].unit, name
    assert empty.meta["n_pixels_searched"] == full.meta["n_pixels_searched"] > 0
    assert empty.meta["expected_false_per_sign"] == pytest.approx(0, abs=1e-100)
    forced = forced_photometry(image, empty["id", "x", "y"])
    assert len(forced) == 0


def test_the_expected_number_is_in_the_metadata(rng):
    image = scene(rng)
    table = detect(image, options=DetectionOptions(threshold=4.0))
    pixels = table.meta["n_pixels_searched"]
    expected = expected_peaks(noise_curvature(MODEL.image(0, 0)), 4.0, pixels)
    assert table.meta["expected_false_per_sign"] == pytest.approx(expected, rel=1e-6)
    assert expected_false_detections(image, 4.0, pixels) == pytest.approx(expected, rel=1e-6)


class TestForced:
    def test_it_is_a_weighted_sum(self, rng):
        image = scene(rng)
        x, y = 60.25, 30.4
        table = Table({"id": ["a", "b"], "x": [x + YX0[1], 200.0], "y": [y + YX0[0], 50.0]})
        result = forced_photometry(image, table)
        psf = MODEL.stamp(x, y, size=25)
        psf /= MODEL.stamp(0, 0).sum()
        row, column = round(y), round(x)
        pixels = image.data[row - 12 : row + 13, column - 12 : column + 13]
        dy, dx = np.mgrid[-12:13, -12:13]
        inside = np.hypot(dy + row - y, dx + column - x) <= result.meta["fit_radius"]
        flux = (psf * pixels)[inside].sum() / (psf**2)[inside].sum()
        assert result["psf_flux"][0] == pytest.approx(flux, rel=1e-3)
        assert result["psf_flux_err"][0] == pytest.approx(
            4 / np.sqrt((psf**2)[inside].sum()), rel=1e-3
        )
        assert result["significance"][0] == pytest.approx(
            (result["psf_flux"] / result["psf_flux_err"])[0]
        )
        assert result["id"].tolist() == ["a", "b"]
        assert np.isnan(result["psf_flux"][1])
        assert result["flag_edge"].tolist() == [False, True]
        assert result["flag_no_data"].tolist() == [False, True]

    def test_where_nothing_is_known_there_is_no_flux(self, rng):
        image = scene(rng)
        image.data[:60, :60] = np.nan
        result = forced_photometry(
            image, Table({"x": [YX0[1] + 30, np.nan], "y": [YX0[0] + 30.0, 3.0]})
        )
        assert np.isnan(result["psf_flux"]).all()
        assert result["flag_no_data"].all()

    def test_noise_has_no_flux(self, rng):
        image = scene(rng, [])
        x, y = (rng.uniform(10, n - 10, 400) for n in (FRAME[1], FRAME[0]))
        result = forced_photometry(image, Table({"x": x + YX0[1], "y": y + YX0[0]}))
        pull = result["psf_flux"] / result["psf_flux_err"]
        independent = FRAME[0] * FRAME[1] / (4 * np.pi * 1.9**2)
        assert pull.mean() == pytest.approx(0, abs=4 / np.sqrt(independent))
        assert pull.std() == pytest.approx(1, abs=4 / np.sqrt(2 * independent))

    def test_columns_with_units_and_other_names(self, rng):
        image = scene(rng, header=tpv_header())
        known = detect(image)
        table = QTable({"RA": known["ra"].to("rad"), "Dec": known["dec"].to("arcmin")})
        result = forced_photometry(image, table)
        np.testing.assert_allclose(result["x"].value, known["x"].value, atol=1e-5)
        plain = Table({"ra": known["ra"].value, "dec": known["dec"].value})
        np.testing.assert_allclose(
            forced_photometry(image, plain)["y"].value, known["y"].value, atol=1e-5
        )

    def test_bad_positions(self, rng):
        image = scene(rng)
        with pytest.raises(ArgumentError, match="Positions need the columns"):
            forced_photometry(image, Table({"a": [1.0]}))
        with pytest.raises(ArgumentError, match="no WCS"):
            forced_photometry(image, Table({"ra": [1.0], "dec": [1.0]}))
        with pytest.raises(ArgumentError, match="None of the 2 positions lies on"):
            forced_photometry(image, Table({"x": [-1e3, 1e5], "y": [0.0, 0.0]}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold must be positive"),
        ({"threshold": -5.0}, "threshold must be positive"),
        ({"threshold": math.nan}, "threshold must be positive"),
        ({"sign": "up"}, "sign is both, positive or negative"),
        ({"aperture_radius": 0.0}, "radius must be positive"),
        ({"zero_point": math.inf}, "zero point must be finite"),
        ({"zero_point": 1e30}, "zero point must be the magnitude of a flux of 1, .*; got 1e"),
        ({"zero_point": -5000.0}, "zero point must be the magnitude .*; got -5000"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ArgumentError, match=message):
        DetectionOptions(**options)


@pytest.mark.parametrize("radius", [1e3, 1e9])
def test_an_aperture_that_no_image_holds_is_refused(rng, radius):
    with pytest.raises(
        ArgumentError, match=rf"radius of {radius:g} pixels is too large".replace("+", r"\+")
    ):
        detect(scene(rng), options=DetectionOptions(aperture_radius=radius))


def test_wrong_exposures(rng):
    with pytest.raises(ArgumentError, match="has no PSF"):
        detect(scene(rng, psf=False))
    for variance in (0.0, np.nan, -1.0):
        with pytest.raises(ArgumentError, match="no variance plane"):
            detect(scene(rng, variance=variance))
    with pytest.raises(ArgumentError, match="larger than the image"):
        detect(Exposure.from_arrays(np.zeros((6, 7)), variance=1.0, psf=MODEL.image(0, 0)))
    with pytest.raises(ArgumentError, match="has no PSF"):
        expected_false_detections(scene(rng, psf=False), 5.0, 100)


def test_an_image_hardly_larger_than_the_psf(rng):
    size = 25
    image = rng.normal(size=(size, size))
    add_stamp(image, 400 * MODEL.stamp(12.2, 11.7), 12.2, 11.7)
    (row,) = detect(Exposure.from_arrays(image, variance=1.0, psf=MODEL.image(0, 0)))
    assert row["x"].value == pytest.approx(12.2 + 0.3 - 0.3, abs=0.1)
    assert row["psf_flux"] == pytest.approx(400, rel=0.1)
