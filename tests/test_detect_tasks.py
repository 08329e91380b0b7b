"""The detection tasks.

Claims: in their default configuration the tasks find and measure what `detect` does, on a
difference and on a score, in any frame; the mask planes DETECTED and DETECTED_NEGATIVE are the
pixels beyond the threshold of the sign asked for and the highest pixel of every source, what an
earlier detection left is gone, and inputs stay as they were.  Every field of a configuration acts,
or is rejected.  Forced fluxes are those of the science image without its background.  Identifiers
come from the factory.  A difference that holds its stars, or nothing, is an error with numbers, and
partial results are there.  Tasks, configurations and errors survive a round trip.
"""

from __future__ import annotations

import dataclasses
import itertools
import pickle

import lsst.pex.config as pex_config
import numpy as np
import pytest
from astropy.table import Table
from lsst.pipe.base import AlgorithmError, Struct, Task

from whitediff import Exposure
from whitediff.detection.catalog import believed
from whitediff.detection.exposures import DetectionOptions, detect
from whitediff.errors import ArgumentError
from whitediff.evaluation.placing import add_stamp
from whitediff.evaluation.simulation import PsfModel
from whitediff.exposures.masks import flagged
from whitediff.tasks import (
    BadSubtractionError,
    DetectAndMeasureConfig,
    DetectAndMeasureScoreConfig,
    DetectAndMeasureScoreTask,
    DetectAndMeasureTask,
    NoDiaSourcesError,
)

SHAPE = (220, 260)
YX0 = (40, -30)
VARIANCE = 25.0
SKY = 300.0
MODEL = PsfModel(sigma=1.8, frame=SHAPE, ellipticity=(0.1, -0.05))
STARS = [(40.2, 50.4), (180.7, 60.1), (110.0, 170.3)]
"""Array coordinates of static stars."""
SOURCES = [(70.3, 80.6, 30.0), (150.5, 120.2, -25.0), (205.0, 180.0, 12.0)]
"""Array coordinates and signal-to-noise ratio of what changes."""


def noise_of_flux():
    return np.sqrt(VARIANCE / (MODEL.image(0, 0) ** 2).sum())


def exposure(image, *, mask=None, psf=True):
    result = Exposure.from_arrays(
        image.astype(np.float32),
        variance=VARIANCE,
        mask=mask,
        psf=MODEL.image(0, 0) if psf else None,
        origin=YX0,
    )
    for plane in (result.data, result.mask.bits, result.variance):
        plane.flags.writeable = False
    return result


@dataclasses.dataclass
class Scene:
    science: Exposure
    template: Exposure
    difference: Exposure
    stars: Table


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(11)
    noise = rng.normal(0, np.sqrt(VARIANCE), SHAPE)
    template, changes = np.full(SHAPE, SKY), np.zeros(SHAPE)
    for x, y in STARS:
        add_stamp(template, 200 * noise_of_flux() * MODEL.stamp(x, y), x, y)
    for x, y, ratio in SOURCES:
        add_stamp(changes, ratio * noise_of_flux() * MODEL.stamp(x, y), x, y)
    bad = np.zeros(SHAPE, bool)
    bad[:, 215] = True
    old = np.zeros(SHAPE, bool)
    old[5:9, 5:9] = True
    stars = Table(rows=[(x + YX0[1], y + YX0[0]) for x, y in STARS], names=("x", "y"))
    return Scene(
        exposure(template + changes + noise),
        exposure(template),
        exposure(changes + noise, mask={"BAD": bad, "DETECTED": old}),
        stars,
    )


def run(scene, *, difference=None, **settings):
    config = DetectAndMeasureConfig()
    for name, value in settings.items():
        target = config.detection if hasattr(config.detection, name) else config
        setattr(target, name, value)
    task = DetectAndMeasureTask(config=config)
    difference = scene.difference if difference is None else difference
    return task, task.run(scene.science, scene.template, difference, scene.stars)


def same_columns(found, oracle):
    for name in oracle.colnames:
        np.testing.assert_array_equal(found[name], oracle[name], err_msg=name)


def test_the_task_finds_what_detect_does(scene):
    _, result = run(scene)
    sources = result.diaSources
    same_columns(sources, detect(scene.difference))
    assert len(sources) == len(SOURCES)
    for row, (x, y, ratio) in zip(sources, SOURCES, strict=True):
        assert abs(row["x"].value - YX0[1] - x) < 5 * row["x_err"].value
        assert abs(row["y"].value - YX0[0] - y) < 5 * row["y_err"].value
        # A peak's expectation is √(ν² + 2); 4 standard deviations of 1.
        assert abs(row["significance"]) == pytest.approx(np.hypot(ratio, np.sqrt(2)), abs=4)


def test_the_score_task_finds_on_the_score_and_measures_on_the_difference(scene):
    # A score that knows only the first source.
    x, y, _ = SOURCES[0]
    image = np.zeros(SHAPE)
    add_stamp(image, 40 * MODEL.stamp(x, y) / MODEL.stamp(0, 0).max(), x, y)
    score = exposure(image)
    score.variance.flags.writeable = True
    score.variance[...] = 1
    task = DetectAndMeasureScoreTask()
    result = task.run(scene.science, scene.template, scene.difference, score, scene.stars)
    (row,) = result.diaSources
    assert row["significance"] == pytest.approx(40, rel=0.02)
    whole = detect(scene.difference)
    assert row["psf_flux"] == pytest.approx(whole["psf_flux"][0], rel=1e-4)
    detected = flagged(result.subtractedMeasuredExposure.mask, ["DETECTED"])
    assert detected[round(y), round(x)]
    assert not detected[180, 205]


def test_the_mask_has_the_pixels_of_each_sign(scene):
    _, result = run(scene)
    mask = result.subtractedMeasuredExposure.mask
    planes = {1: flagged(mask, ["DETECTED"]), -1: flagged(mask, ["DETECTED_NEGATIVE"])}
    psf = MODEL.image(0, 0)
    half = psf.shape[0] // 2
    noise = np.sqrt(VARIANCE * (psf**2).sum())
    image = np.pad(scene.difference.data, half)
    for x, y, ratio in SOURCES[:2]:
        for dx in (0, 1, 2, 3, 5, 7):
            # Brute force: the filter at one pixel.
            row, column = round(y), round(x) + dx
            stamp = image[row : row + 2 * half + 1, column : column + 2 * half + 1]
            value = (stamp * psf).sum() / noise * np.sign(ratio)
            if abs(value - 5) > 0.01:
                assert planes[np.sign(ratio)][row, column] == (value > 5)
            assert not planes[-np.sign(ratio)][row, column]
    assert not planes[1][5:9, 5:9].any()
    assert flagged(mask, ["BAD"])[:, 215].all()
    assert flagged(scene.difference.mask, ["DETECTED"])[5:9, 5:9].all()


def test_a_peak_between_pixels_has_its_pixel(scene):
    _, result = run(scene)
    significance = np.abs(result.diaSources["significance"]).min()
    highest = np.abs(result.diaSources["peak_significance"]).min()
    assert highest < significance
    _, result = run(scene, thresholdValue=float((significance + highest) / 2))
    assert len(result.diaSources) == len(SOURCES)
    assert flagged(result.subtractedMeasuredExposure.mask, ["DETECTED"])[180, 205]


@pytest.mark.parametrize(("polarity", "sign"), [("positive", 1), ("negative", -1)])
def test_one_polarity(scene, polarity, sign):
    task, result = run(scene, thresholdPolarity=polarity)
    assert len(result.diaSources) == sum(np.sign(ratio) == sign for *_, ratio in SOURCES)
    assert (np.sign(result.diaSources["significance"]) == sign).all()
    other = "Negative" if sign > 0 else "Positive"
    assert task.metadata[f"nPixelsDetected{other}"] == 0


def test_settings_are_those_of_detect(scene):
    _, result = run(scene, thresholdValue=20.0, apertureRadius=3.0, excludeMaskPlanes=["CR"])
    options = DetectionOptions(threshold=20.0, aperture_radius=3.0, exclude_mask_planes=("CR",))
    same_columns(result.diaSources, detect(scene.difference, options=options))
    assert result.diaSources.meta["aperture_radius"] == 3.0


def test_sources_with_bad_flags_are_removed(scene):
    image = scene.difference.data.copy()
    x, y = 213.8, 60.0  # the bad column takes a fifth of what is known
    add_stamp(image, 40 * noise_of_flux() * MODEL.stamp(x, y), x, y)
    bad = flagged(scene.difference.mask, ["BAD"])
    spoilt = exposure(image, mask={"BAD": bad})
    _, result = run(scene, difference=spoilt)
    assert result.diaSources["flag_bad"].sum() == 1
    task, result = run(scene, difference=spoilt, badSourceFlags=["flag_bad"])
    assert len(result.diaSources) == len(SOURCES)
    assert not result.diaSources["flag_bad"].any()
    assert task.metadata["nRemovedBadFlaggedSources"] == 1


def test_forced_fluxes_are_those_of_the_science_image(scene):
    _, result = run(scene)
    flux = result.diaSources["ip_diffim_forced_PsfFlux_instFlux"]
    error = result.diaSources["ip_diffim_forced_PsfFlux_instFluxErr"]
    for value, spread, (*_, ratio) in zip(flux, error, SOURCES, strict=True):
        assert spread == pytest.approx(noise_of_flux(), rel=0.01)
        assert value == pytest.approx(ratio * noise_of_flux(), abs=4.5 * spread)
    assert not result.diaSources["ip_diffim_forced_PsfFlux_flag"].any()
    _, result = run(scene, doForcedMeasurement=False)
    assert not any(name.startswith("ip_diffim") for name in result.diaSources.colnames)


def test_without_a_psf_of_the_science_image_there_are_no_forced_fluxes(scene, caplog):
    bare = exposure(np.random.default_rng(1).normal(0, 5, SHAPE), psf=False)
    task = DetectAndMeasureTask()
    result = task.run(bare, None, scene.difference)
    assert not any(name.startswith("ip_diffim") for name in result.diaSources.colnames)
    assert "No forced measurement" in caplog.text


def test_identifiers_come_from_the_factory(scene):
    numbers = itertools.count(1000, 10)
    task = DetectAndMeasureTask()
    result = task.run(scene.science, None, scene.difference, idFactory=lambda: next(numbers))
    assert result.diaSources["id"].tolist() == [1000, 1010, 1020]
    assert result.diaSources["parent"].tolist() == [1000, 1010, 1020]
    assert result.diaSources["id"].info.description


def test_stars_that_are_left_are_an_error_with_numbers(scene):
    task, _ = run(scene)
    assert task.metadata["residualFootprintRatioMean"] < 0.05
    left = exposure(scene.difference.data + 0.3 * (scene.template.data - SKY))
    with pytest.raises(BadSubtractionError, match="do both have") as caught:
        run(scene, difference=left)
    assert isinstance(caught.value, AlgorithmError)
    assert caught.value.metadata["threshold"] == 0.2
    assert caught.value.metadata["ratio"] == pytest.approx(0.3, abs=0.03)
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.metadata == caught.value.metadata
    partial = Struct()
    task = DetectAndMeasureTask()
    with pytest.raises(BadSubtractionError):
        task.run(scene.science, None, left, scene.stars, measurementResults=partial)
    assert len(partial.diaSources) >= len(STARS)
    task, _ = run(scene, difference=left, raiseOnBadSubtractionRatio=False)
    assert task.metadata["residualFootprintRatioMean"] > 0.2
    run(scene, difference=left, badSubtractionRatioThreshold=0.5)
    with pytest.raises(BadSubtractionError):
        run(
            scene, difference=left, badSubtractionRatioThreshold=0.5,
            badSubtractionVariationThreshold=1e-4,
        )  # fmt: skip


def test_nothing_is_an_empty_catalogue_or_an_error(scene):
    _, result = run(scene, thresholdValue=1e4)
    assert len(result.diaSources) == 0
    assert result.diaSources["ip_diffim_forced_PsfFlux_instFlux"].shape == (0,)
    with pytest.raises(NoDiaSourcesError, match="raiseOnNoDiaSources") as caught:
        run(scene, thresholdValue=1e4, raiseOnNoDiaSources=True)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), AlgorithmError)


def test_numbers_go_into_the_metadata(scene):
    task, result = run(scene)
    mask = result.subtractedMeasuredExposure.mask
    assert task.metadata["nBadPixels"] == SHAPE[0]
    assert task.metadata["nGoodPixels"] == SHAPE[0] * (SHAPE[1] - 1)
    assert task.metadata["nPixelsDetectedPositive"] == flagged(mask, ["DETECTED"]).sum()
    assert task.metadata["nDiaSources"] == task.metadata["nPointDiaSources"] == len(SOURCES)
    assert task.metadata["nBelievedDiaSources"] == believed(result.diaSources).sum()
    depth = task.metadata["diffimLimitingFlux"]
    assert depth == pytest.approx(
        5 * float(np.median(result.diaSources["psf_flux_err"].value)), rel=0.1
    )


def test_bad_input(scene):
    with pytest.raises(ArgumentError, match="has no PSF"):
        run(scene, difference=exposure(scene.difference.data, psf=False))
    task = DetectAndMeasureTask()
    with pytest.raises(ArgumentError, match="subtracted from"):
        task.run(Exposure.from_arrays(np.zeros((50, 50)), variance=1.0), None, scene.difference)
    config = DetectAndMeasureConfig()
    config.badSourceFlags = ["flag_nonsense"]
    with pytest.raises(pex_config.FieldValidationError, match="flag_nonsense"):
        config.validate()
    with pytest.raises(pex_config.FieldValidationError):
        config.detection.thresholdValue = 0.0


@pytest.mark.parametrize("task_class", [DetectAndMeasureTask, DetectAndMeasureScoreTask])
def test_tasks_and_configurations_survive_a_round_trip(task_class, tmp_path):
    task = task_class()
    assert isinstance(task, Task)
    assert task_class.ConfigClass in (DetectAndMeasureConfig, DetectAndMeasureScoreConfig)
    config = task_class.ConfigClass()
    config.detection.thresholdValue = 6.5
    config.save(tmp_path / "config.py")
    loaded = task_class.ConfigClass()
    loaded.load(tmp_path / "config.py")
    assert loaded == config
    assert pickle.loads(pickle.dumps(task_class(config=config))).config == config
