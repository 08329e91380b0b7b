"""Claims: intervals of a completeness cover the truth as often as they say; a fitted curve passes
50 % and 95 % where the sources do, with errors that are its scatter; the ideal filter's ratio is
the Fisher information of both images whatever the common scene, and its curve for peaks that of
peaks in filtered noise; a realisation finds its sources with their flux, and shows a variance plane
that lies; processes and realisations that fail do not stop the others; the command writes what it
prints, and wrong input is one sentence."""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import pytest
import scipy.ndimage
from astropy.table import QTable

from scenes import circulant, fails_or_dies, gaussian, moffat_psfs, place
from whitediff import Exposure
from whitediff.diagnostics.completeness import all_sources, summarise
from whitediff.errors import ArgumentError, WhitediffError
from whitediff.evaluation.completeness import (
    binned_completeness,
    fit_completeness,
    ideal_completeness,
    ideal_peak_completeness,
    ideal_signal_to_noise,
    match_highest,
    mean_and_width,
)
from whitediff.evaluation.exposures import (
    EvaluationOptions,
    Setting,
    evaluate,
    realise,
)
from whitediff.evaluation.simulated import simulated_exposure
from whitediff.evaluation.simulation import SimulationOptions, simulate
from whitediff.formats import write_exposure
from whitediff.matching.preparation import PreparationOptions
from whitediff.numerics.processes import in_processes
from whitediff.subtraction.pipeline import make_all
from whitediff.subtraction.recipe import Recipe

SCENE = {
    "shape": (300, 320), "stars": 40, "galaxies": 0, "transients": 0, "science_psf": 1.9,
    "template_psf": 1.4, "bad_columns": 0, "nan_pixels": 0, "saturation": 1e9,
}  # fmt: skip
SETTINGS = [
    argument
    for setting in ("size=300", "stars=40", "galaxies=0", "science-psf=1.9", "template-psf=1.4",
                    "bad-columns=0", "nan-pixels=0", "saturation=1e9")
    for argument in ("--set", setting)
]  # fmt: skip


def test_intervals_cover_the_truth(rng):
    n, trials = 50, 3000
    covered = 0
    # One completeness alone has an uneven coverage, for counts are whole numbers.
    for truth in rng.uniform(0.3, 0.95, trials):
        found = np.arange(n) < rng.binomial(n, truth)
        bins = binned_completeness(np.full(n, 5.2), found, np.array([5.0, 5.5]))
        covered += bins["completeness_low"][0] <= truth <= bins["completeness_high"][0]
    assert covered / trials == pytest.approx(0.683, abs=4 * math.sqrt(0.22 / trials))


def test_bins():
    ratio = np.array([3.0, 3.49, 3.5, 4.2, 5.0, 9.0])
    found = np.array([False, True, True, True, True, True])
    bins = binned_completeness(ratio, found, np.array([3.0, 3.5, 4.0, 4.5, 5.0]))
    assert bins["injected"] == [2, 1, 1, 0]
    assert bins["found"] == [1, 1, 1, 0]
    assert bins["completeness"] == [0.5, 1.0, 1.0, None]
    assert bins["completeness_high"][1] == 1
    assert bins["completeness_low"][3] is None


@pytest.mark.slow
@pytest.mark.parametrize("ceiling", [1.0, 0.9])
def test_a_fit_finds_its_curve_and_knows_its_errors(rng, ceiling):
    middle, width, pulls, nearly = 5.1, 1.05, [], []
    half = middle + width * _quantile(0.5 / ceiling)
    for _ in range(30):
        ratio = rng.uniform(3, 9, 2000)
        chance = ceiling * ideal_completeness((ratio - middle) / width, 0.0)
        fit = fit_completeness(ratio, rng.random(2000) < chance)
        assert fit is not None
        pulls.append((fit.half - half) / fit.half_error)
        nearly.append(fit.nearly)
    assert abs(np.mean(pulls)) < 4 / math.sqrt(30)
    assert np.std(pulls) == pytest.approx(1, abs=4 / math.sqrt(2 * 30))
    if ceiling < 0.95:
        assert nearly == [None] * 30
    else:
        assert np.mean(nearly) == pytest.approx(middle + 1.6449 * width, abs=0.05)


def _quantile(fraction: float) -> float:
    grid = np.linspace(-6, 6, 120_001)
    return float(np.interp(fraction, ideal_completeness(grid, 0.0), grid))


def test_a_fit_that_is_not_determined_is_none(rng):
    ratio = rng.uniform(3, 9, 500)
    for found in (np.zeros(500, bool), np.ones(500, bool), rng.random(500) < 0.3):
        assert fit_completeness(ratio, found) is None
    assert fit_completeness(ratio[:5], ratio[:5] > 5) is None


def test_the_ideal_ratio_is_the_fisher_information():
    science_psf, template_psf = (psf[7:18, 7:18] for psf in moffat_psfs())
    science_psf, template_psf = science_psf / science_psf.sum(), template_psf / template_psf.sum()
    variances, scale = (9.0, 4.0), 1.7
    # S = p_s ⊗ (O + f δ), T = p_t ⊗ O / F: the scene O cancels in p_t ⊗ S − F p_s ⊗ T alone, and
    # this, with its covariance, holds all that the two images know of f.  As large as the grid
    # on which the mean over the frequencies is taken.
    shape = (22, 22)
    ps, pt = (circulant(place(psf, shape)) for psf in (science_psf, template_psf))
    covariance = variances[0] * pt @ pt.T + variances[1] * scale**2 * ps @ ps.T
    signal = (pt @ ps)[:, 5 * 22 + 9]
    oracle = math.sqrt(signal @ np.linalg.solve(covariance, signal))
    found = ideal_signal_to_noise(
        science_psf,
        template_psf,
        science_variance=variances[0],
        template_variance=variances[1],
        flux_scale=scale,
    )
    # The grids differ: stamps cut off in the wings of a Moffat profile have ripples in between.
    assert float(found) == pytest.approx(oracle, rel=2e-3)


def test_the_ideal_ratio_of_a_deep_template_is_that_of_the_image():
    science_psf, template_psf = moffat_psfs()
    ratio = ideal_signal_to_noise(
        science_psf,
        template_psf,
        science_variance=np.array([9.0, 36.0]),
        template_variance=np.array([1e-9, 1e-9]),
    )
    alone = np.sqrt((science_psf**2).sum() / np.array([9.0, 36.0]))
    np.testing.assert_allclose(ratio, alone, rtol=1e-4)
    same = ideal_signal_to_noise(
        science_psf, science_psf, science_variance=9.0, template_variance=4.0, flux_scale=2.0
    )
    assert float(same) == pytest.approx(math.sqrt((science_psf**2).sum() / (9 + 4 * 4)))


def test_ideal_peaks_are_those_of_filtered_noise(rng):
    sigma, spacing, n, threshold = 2.5, 32, 16, 5.0
    psf = gaussian(33, sigma)
    side = spacing * n
    spectrum = np.fft.fft2(place(psf, (side, side))).conj() / math.sqrt((psf**2).sum())
    signal = np.zeros((side, side))
    signal[::spacing, ::spacing] = 1
    profile = np.fft.ifft2(np.abs(spectrum) ** 2 * np.fft.fft2(signal)).real
    # Twice as fine a grid: maxima fall short by s/24 (h/σ_filter)² there, half a percent.
    fine, ratios, found = 2 * side, (4.0, 4.8, 6.0), []
    grid = np.arange(2 * spacing) - spacing
    near = np.hypot(*np.meshgrid(grid, grid)) <= 2 * sigma
    for _ in range(8):
        noise = np.fft.ifft2(spectrum * np.fft.fft2(rng.normal(size=(side, side)))).real
        for i, s in enumerate(ratios):
            field = np.zeros((fine, fine), complex)
            low = np.fft.fftshift(np.fft.fft2(noise + s * profile))
            field[side // 2 : -side // 2, side // 2 : -side // 2] = low
            image = 4 * np.fft.ifft2(np.fft.ifftshift(field)).real
            peak = (scipy.ndimage.maximum_filter(image, 3, mode="wrap") == image) & (
                image >= threshold
            )
            # One cell for each source, in its middle.
            cells = np.roll(peak, (spacing, spacing), (0, 1)).reshape(n, 2 * spacing, n, -1)
            found.append((i, (cells & near[:, None, :]).any(axis=(1, 3)).mean()))
    found = np.array(found)
    ideal = ideal_peak_completeness(np.array(ratios), threshold, psf, radius=sigma, rng=rng)
    for i, expected in enumerate(ideal):
        measured = found[found[:, 0] == i, 1].mean()
        error = math.sqrt(expected * (1 - expected) / (8 * n**2))
        assert abs(measured - expected) < 4 * error + 0.01
        assert expected > ideal_completeness(np.array(ratios[i]), threshold) + 0.01


def test_the_highest_detection_counts():
    x, y = np.array([10.0, 50.0, 90.0]), np.array([10.0, 50.0, 90.0])
    index = match_highest(
        x, y, np.array([11.0, 9.0, 52.5]), np.array([10.0, 10.5, 50.0]),
        np.array([5.5, 7.0, 9.0]), 2.0,
    )  # fmt: skip
    assert index.tolist() == [1, -1, -1]
    assert match_highest(x, y, x[:0], y[:0], x[:0], 2.0).tolist() == [-1] * 3


def test_means_and_widths(rng):
    values = np.append(rng.normal(0.3, 2.0, 4000), np.nan)
    numbers = mean_and_width(values)
    assert numbers["count"] == 4000
    assert numbers["mean_error"] == pytest.approx(2 / math.sqrt(4000), rel=0.05)
    assert abs(numbers["mean"] - 0.3) < 4 * numbers["mean_error"]
    assert numbers["width_error"] == pytest.approx(2 / math.sqrt(2 * 4000), rel=0.1)
    assert abs(numbers["width"] - 2) < 4 * numbers["width_error"]
    assert numbers["robust_width"] == pytest.approx(2, rel=0.08)
    assert mean_and_width(np.array([1.0, np.nan]))["mean"] is None
    weighted = mean_and_width(np.array([1.0, 4.0]), np.array([3.0, 1.0]))
    assert weighted["mean"] == pytest.approx(1.75)


@pytest.mark.slow
def test_failures_do_not_stop_the_others():
    results = dict(in_processes(fails_or_dies, range(8), processes=2))
    assert set(results) == set(range(8))
    assert isinstance(results[2], ArgumentError)
    assert str(results[2]) == "Two is refused."
    assert isinstance(results[5], WhitediffError)
    assert "died twice" in str(results[5])
    for item in {0, 1, 3, 4, 6, 7}:
        assert results[item] == item**2
    alone = dict(in_processes(fails_or_dies, range(4), processes=1))
    assert isinstance(alone[2], ArgumentError)
    with pytest.raises(ArgumentError, match="at least 1"):
        next(in_processes(fails_or_dies, range(4), processes=0))


def _pair(number: int, variance_factor: float = 1.0, **scene):
    simulation = simulate(SimulationOptions(**(SCENE | {"seed": 70 + number} | scene)))
    pair = [simulated_exposure(simulation, name) for name in ("science", "template")]
    for exposure in pair:
        exposure.variance[...] *= variance_factor
    return tuple(pair)


@pytest.fixture(scope="module")
def realisations():
    """Two pairs of elliptical, off-centre PSFs and a kernel sum that is not 1."""
    pair = functools.partial(
        _pair, profile="moffat", beta=4.0, ellipticity=(0.1, -0.07), offset=(0.3, -0.2),
        flux_scale=1.3, shape=(400, 420), stars=60,
    )  # fmt: skip
    options = EvaluationOptions(
        realisations=2, sources=70, separation=18.0, signal_to_noise=(4.0, 30.0)
    )
    setting = Setting(pair=pair, fresh=True, options=options)
    return options, [result for _, result in evaluate(setting)]


@pytest.mark.slow
def test_sources_are_found_with_their_flux_and_place(realisations):
    options, done = realisations
    numbers = summarise(done, options, fresh=True)
    table = all_sources(done)
    assert numbers["injected"] == len(table) == 140
    assert sorted(set(table["realisation"])) == [0, 1]
    bright = table["clear"] & (table["signal_to_noise"] > 9)
    assert bright.sum() > 40
    for kind in ("difference", "score"):
        assert np.asarray(table[f"{kind}_found"])[bright].all()
        offset = (table[f"{kind}_x"] - table["x"]).value[bright]
        # √2/(S/N) widths of the PSF of the Gaussian with the same core.
        assert np.abs(offset).max() < 4.5 * 1.5 * 1.9 / 9
        free = numbers["products"][kind]["free"]
        excess = free["flux_bias"]["mean"] - free["expected_flux_bias"]
        assert abs(excess) < 4 * free["flux_bias"]["mean_error"]
        assert numbers["products"][kind]["detections"]["matched"] >= bright.sum()
    forced = numbers["forced"]
    assert abs(forced["flux_bias"]["mean"]) < 4 * forced["flux_bias"]["mean_error"]
    n = forced["flux_pull"]["count"]
    assert forced["flux_pull"]["width"] == pytest.approx(1, abs=4 / math.sqrt(2 * n))
    # The difference sees nearly all that two images know of a source.
    assert numbers["sensitivity"]["mean"] == pytest.approx(1, abs=0.01)
    position = np.asarray(table["difference_significance"])[np.asarray(table["clear"])]
    pull = position - np.asarray(table["ideal_signal_to_noise"])[np.asarray(table["clear"])]
    assert abs(pull.mean()) < 4 / math.sqrt(n)


@pytest.mark.slow
def test_realisations_are_reproducible():
    setting = Setting(
        pair=_pair, fresh=False,
        options=EvaluationOptions(sources=10, score=False),
    )  # fmt: skip
    first, again, other = (realise(setting, number).sources for number in (3, 3, 4))
    assert np.array_equal(first["forced_flux"], again["forced_flux"])
    assert not np.array_equal(first["x"], other["x"])


@pytest.mark.slow
def test_a_variance_plane_that_lies_shows_in_the_pull():
    """Twice the true variance: pulls of √½, and completeness of half as bright sources."""
    setting = Setting(
        pair=functools.partial(_pair, variance_factor=2.0),
        fresh=True,
        options=EvaluationOptions(
            realisations=1, sources=90, separation=16.0, signal_to_noise=(3.0, 8.0), score=False
        ),
        recipe=Recipe(preparation=PreparationOptions(rescale_variance=False)),
    )
    done = [realise(setting, 0)]
    pull = summarise(done, setting.options, fresh=True)["forced"]["flux_pull"]
    assert pull["width"] == pytest.approx(
        math.sqrt(0.5), abs=4 * math.sqrt(0.5 / (2 * pull["count"]))
    )


def test_an_earlier_solution_is_used_as_it_is():
    science, template = _pair(0)
    product = make_all(science, template, Recipe(), ("difference",))["difference"]
    setting = Setting(
        pair=_pair,
        fresh=False,
        options=EvaluationOptions(realisations=1, sources=20, separation=18.0, score=False),
        solutions={"difference": product.product.solution},
    )
    done = [realise(setting, 0)]
    table = all_sources(done)
    clear = np.asarray(table["clear"])
    pull = ((table["forced_flux"] - table["flux"]) / table["forced_flux_err"]).value[clear]
    assert np.abs(pull).max() < 4.5
    # Neither PSFs nor kernel are fitted, but the ideal is known where both images have PSFs.
    ratio = np.asarray(table["signal_to_noise"] / table["ideal_signal_to_noise"])[clear]
    np.testing.assert_allclose(ratio, 1, atol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signal_to_noise": (5.0, 5.0)}, "a positive number to a larger one; got 5 to 5"),
        ({"threshold": -1.0}, "threshold must be a positive number; got -1"),
        ({"threshold": 0.9}, "must be above 1"),
        ({"sources": 0}, "number of sources must be at least 1"),
        ({"gain": 0.0}, "gain must be"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        EvaluationOptions(**options)


@pytest.mark.slow
def test_the_command_on_simulated_pairs(run, tmp_path):
    output = tmp_path / "evaluation"
    arguments = (
        "evaluate", "--simulate", *SETTINGS, "--set", "ellipticity=0.1 -0.07", "--output", output,
        "--realizations", 2, "--processes", 2, "--sources", 40, "--separation", 18, "--no-score",
    )  # fmt: skip
    code, printed, messages = run(*arguments)
    assert code == 0, messages
    assert {path.name for path in output.iterdir()} == {
        "evaluate.json", "injections.ecsv", "evaluate.png",
    }  # fmt: skip
    numbers = json.loads((output / "evaluate.json").read_text())
    table = QTable.read(output / "injections.ecsv")
    assert numbers["injected"] == len(table) == 80
    assert numbers["realizations"] == {"done": 2, "failed": []}
    assert list(numbers["products"]) == ["difference"]
    found = np.asarray(table["difference_found"]) & np.asarray(table["clear"])
    bins = numbers["products"]["difference"]["peak"]["clear"]["bins"]
    assert sum(bins["found"]) == found.sum()
    assert "Completeness above 5 sigma" in printed
    assert f"{numbers['clear']} sources off the static ones, 80 in all" in printed
    code, _, messages = run(*arguments)
    assert code == 1
    assert "exists already" in messages


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    for name, exposure in zip(("science", "template"), _pair(1), strict=True):
        write_exposure(exposure, folder / f"{name}.fits")
    return folder


def test_the_command_on_files(run, files, tmp_path):
    code, printed, messages = run(
        "evaluate", files / "science.fits", files / "template.fits", "--output", tmp_path / "out",
        "--realizations", 2, "--processes", 1, "--sources", 10, "--separation", 18, "--no-score",
        "--photon-noise", "--signal-to-noise", 8, 20,
    )  # fmt: skip
    assert code == 0, messages
    numbers = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert numbers["photon_noise_gain"] == 2.0
    # One pair: what is found without injection counts once.
    false = numbers["products"]["difference"]["false_detections"]
    assert false["pixels"] < SCENE["shape"][0] * SCENE["shape"][1]
    assert numbers["injected"] == 20
    assert "flux at known positions" in printed


@pytest.mark.slow
def test_a_failed_realisation_is_reported(run, tmp_path, monkeypatch, realisations):
    from whitediff.evaluation import exposures as evaluation

    def sometimes(setting, number):
        if number == 1:
            raise WhitediffError("Clouds.")
        return realisations[1][0]

    monkeypatch.setattr(evaluation, "realise", sometimes)
    code, _, messages = run(
        "evaluate", "--simulate", "--realizations", 2, "--processes", 1,
        "--signal-to-noise", 4, 30, "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, messages
    assert "Realisation 1 failed: Clouds." in messages
    numbers = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert numbers["realizations"] == {
        "done": 1, "failed": [{"realization": 1, "error": "Clouds."}],
    }  # fmt: skip


def test_the_command_refuses_wrong_input(run, files, tmp_path):
    output, pair = tmp_path / "out", (files / "science.fits", files / "template.fits")

    def refused(*arguments, code=1) -> str:
        found, _, messages = run("evaluate", "--output", output, "--processes", 1, *arguments)
        assert found == code, messages
        assert "Traceback" not in messages
        assert not (output / "evaluate.json").exists()
        return " ".join(messages.split())

    assert "Name SCIENCE and TEMPLATE, or --simulate" in refused(code=2)
    assert "of no use with --simulate" in refused(*pair, "--simulate", code=2)
    assert "--science-gain" in refused("--simulate", "--science-gain", 2, code=2)
    assert "--set belongs to --simulate" in refused(*pair, "--set", "size=300", code=2)
    assert "is not NAME=VALUE" in refused("--simulate", "--set", "sise=300", code=2)
    assert "takes 2 values" in refused("--simulate", "--set", "ellipticity=0.1", code=2)
    assert "got 9 to 4" in refused(*pair, "--signal-to-noise", 9, 4)
    assert "threshold" in refused(*pair, "--threshold", -5)
    assert "nowhere.fits" in refused(files / "nowhere.fits", pair[1])
    assert "science.fits" in refused(*pair, "--kernel", pair[0])
    assert "--kernel-order: has no effect with --kernel" in refused(
        *pair, "--kernel", pair[0], "--kernel-order", 1, code=2
    )
    assert "--align: has no effect with --kernel" in refused(
        *pair, "--kernel", pair[0], "--align", code=2
    )
    assert "no effect without --align" in refused(*pair, "--align-method", "adaptive", code=2)
    text = refused(*pair, "--sources", 5000, "--realizations", 1)
    assert "None of the 1 realisations succeeded" in text
    assert "ask for fewer" in text


def test_an_exposure_without_stars_needs_a_psf(rng):
    empty = [
        Exposure.from_arrays(rng.normal(0, 1, (200, 200)).astype(np.float32), variance=1.0)
        for _ in range(2)
    ]
    setting = Setting(
        pair=lambda number: (empty[0], empty[1]), fresh=False, options=EvaluationOptions()
    )
    with pytest.raises(WhitediffError):
        realise(setting, 0)
