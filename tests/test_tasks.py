"""The task against its contract.

Claims: every documented method exists with the documented parameters, on a class that is a
real `lsst.pipe.base.Task`; `run` treats what the documentation treats, refuses what it
refuses, and records what it did; the methods on arrays agree with the array functions.
"""

from __future__ import annotations

import inspect
import pickle
import re

import lsst.pex.config
import numpy as np
import pytest
from lsst.pipe.base import AlgorithmError, Struct, Task

from scenes import SHARED, gaussian, moffat_kernel, moffat_psfs
from whitediff import Exposure
from whitediff.decorrelation.correction import score_correction
from whitediff.errors import ArgumentError
from whitediff.exposures.boxes import Box
from whitediff.exposures.masks import with_plane
from whitediff.numerics import fourier
from whitediff.numerics.convolution import convolve
from whitediff.subtraction.difference import subtract
from whitediff.tasks import (
    DecorrelateALKernelConfig,
    DecorrelateALKernelTask,
    UnusableExposureError,
)

CONTRACT = SHARED / "seed" / "DecorrelateALKernelTask.txt"
ONLY_IN_PASSING = {"emptyMetadata": [], "timer": ["name", "logLevel"]}


def documented_signatures(text: str) -> dict[str, list[tuple[str, str | None]]]:
    """Method → (parameter, default) from the contract's section of methods."""
    text = text[text.index("Methods Documentation") :]
    signatures = {}
    for line in text.splitlines():
        match = re.search(r"- (?:static |classmethod )?(\w+)\(([^()]*)\)[^()]*¶$", line)
        if match is None:
            continue
        parameters = []
        for part in filter(None, (p.strip() for p in match[2].split(", "))):
            name, _, default = part.partition("=")
            parameters.append((name.split(":")[0].strip(), default.strip() or None))
        signatures[match[1]] = parameters
    return signatures


@pytest.mark.skipif(not CONTRACT.exists(), reason="the contract's text is not here")
def test_every_documented_method_has_its_documented_signature():
    text = CONTRACT.read_text()
    signatures = documented_signatures(text)
    assert len(signatures) == 16, sorted(signatures)
    for name, parameters in signatures.items():
        method = getattr(DecorrelateALKernelTask, name)
        actual = [
            (
                ("*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else "")
                + n,
                p,
            )
            for n, p in inspect.signature(method).parameters.items()
            if n not in ("self", "cls")
        ]
        assert [n for n, _ in actual] == [n for n, _ in parameters], name
        for (_, parameter), (_, default) in zip(actual, parameters, strict=True):
            if default is not None:
                assert repr(parameter.default) == default, name
    # What the summary names and the section does not.
    summary = text[: text.index("Methods Documentation")]
    assert "Empty (clear) the metadata" in summary
    for name, names in ONLY_IN_PASSING.items():
        signature = inspect.signature(getattr(DecorrelateALKernelTask, name))
        assert [n for n in signature.parameters if n != "self"] == names
    for name in ("estimateVariancePlane", "padCenterOriginArray"):
        assert isinstance(inspect.getattr_static(DecorrelateALKernelTask, name), staticmethod)


def make_pair(rng, *, shape=(90, 84), origin=(30, -7), kernel=None, nan=True):
    kernel = moffat_kernel() if kernel is None else kernel
    science_psf, template_psf = moffat_psfs()
    science = rng.normal(0, 5, shape).astype(np.float32)
    template = rng.normal(0, 3, shape).astype(np.float32)
    if nan:
        science[40, 41] = np.nan
    difference = (science - rng.normal(0, 3, shape)).astype(np.float32)
    bad = np.zeros(shape, dtype=bool)
    bad[:, 10] = True
    exposures = [
        Exposure.from_arrays(image, variance=variance, mask={"BAD": bad}, psf=psf, origin=origin)
        for image, variance, psf in (
            (science, 25.0, science_psf),
            (template, 9.0, template_psf),
            (difference, 1.0, science_psf),
        )
    ]
    return (*exposures, kernel)


def test_is_a_real_task():
    task = DecorrelateALKernelTask(name="decorrelate")
    assert isinstance(task, Task)
    assert task.getName() == task.getFullName() == "decorrelate"
    assert set(task.getTaskDict()) == {"decorrelate"}
    assert task.getTaskDict()["decorrelate"]() is task
    assert isinstance(task.config, lsst.pex.config.Config)
    with task.timer("something"):
        pass
    assert "somethingStartCpuTime" in task.metadata
    assert "decorrelate" in str(task.getFullMetadata())
    task.emptyMetadata()
    assert "somethingStartCpuTime" not in task.metadata
    copy = pickle.loads(pickle.dumps(task))
    assert copy.config == task.config


def test_can_be_a_subtask(rng):
    class ParentConfig(lsst.pex.config.Config):
        afterburner = DecorrelateALKernelTask.makeField("whitens the difference")

    class Parent(Task):
        ConfigClass = ParentConfig
        _DefaultName = "parent"

    config = ParentConfig()
    config.afterburner.completeVarPlanePropagation = True
    parent = Parent(config=config)
    parent.makeSubtask("afterburner")
    parent.afterburner.run(*make_pair(rng))
    assert parent.afterburner.getFullName() == "parent.afterburner"
    metadata = parent.getFullMetadata()
    assert metadata["parent:afterburner.kernelSum"] == pytest.approx(1.3)


def test_documented_defaults():
    config = DecorrelateALKernelConfig()
    assert set(config.ignoreMaskPlanes) == {
        "INTRP", "EDGE", "DETECTED", "SAT", "CR", "BAD", "NO_DATA", "DETECTED_NEGATIVE",
    }  # fmt: skip
    assert config.completeVarPlanePropagation is False
    assert config.transform == "fast"


def test_run_leaves_its_inputs_alone_and_says_what_it_did(rng):
    science, template, difference, kernel = make_pair(rng)
    for exposure in (science, template, difference):
        for array in (exposure.data, exposure.mask.bits, exposure.variance):
            array.flags.writeable = False
    kernel.flags.writeable = False
    task = DecorrelateALKernelTask()
    result = task.run(science, template, difference, kernel)
    assert isinstance(result, Struct)
    corrected = result.correctedExposure
    assert corrected is not difference
    assert corrected.bbox == difference.bbox == Box.from_shape((90, 84), start=(30, -7))
    assert corrected.data.dtype == np.float32
    assert np.isnan(corrected.data[40, 41])
    np.testing.assert_allclose(corrected.variance, 25 + 9 * 1.3**2, rtol=1e-6)
    np.testing.assert_array_equal(corrected.mask.get("BAD"), difference.mask.get("BAD"))
    contaminated = corrected.mask.get("CONTAMINATED")
    assert contaminated[40, 41:43].all()
    assert contaminated[50, 9:12].all()
    assert not contaminated[70, 60]
    metadata = task.metadata
    assert metadata["scienceVarianceMean"] == 25
    assert metadata["templateVarianceMean"] == 9
    assert metadata["diffimVarianceMeanBefore"] == 1
    assert metadata["diffimVarianceMeanAfter"] == pytest.approx(25 + 9 * 1.3**2)
    assert metadata["kernelSum"] == pytest.approx(1.3)
    assert (metadata["xcen"], metadata["ycen"]) == (-7 + 42, 30 + 45)
    assert metadata.getArray("freqSpaceShape") == list(task.freqSpaceShape)
    assert "runStartCpuTime" in metadata
    assert metadata["contaminatedFraction"] == pytest.approx(contaminated.mean())


def test_methods_on_arrays_agree_with_the_array_functions(rng):
    kernel, psf = moffat_kernel(), gaussian(15, 2.0)
    for transform in ("documented", "fast"):
        task = DecorrelateALKernelTask(config=DecorrelateALKernelConfig(transform=transform))
        with pytest.raises(ArgumentError, match="computeCommonShape"):
            task.computeDiffimCorrection(kernel, 4.0, 3.0)
        task.computeCommonShape(kernel.shape, psf.shape, (50, 47))
        assert task.freqSpaceShape == (70, 68)
        result = task.computeDiffimCorrection(kernel, 4.0, 3.0)
        assert result.corrft.shape == result.cnft.shape == result.crft.shape == (70, 68)
        assert np.isrealobj(result.corrft)
        np.testing.assert_allclose(
            result.crft,
            np.fft.fft2(fourier.pad_center_origin(kernel, (70, 68))) * result.corrft,
            atol=1e-14,
        )
        image = rng.normal(0, 2, (50, 47)).astype(np.float32)
        corrected = task.computeCorrectedImage(result.corrft, image)
        expected = np.fft.ifft2(np.fft.fft2(image, s=(70, 68)) * result.corrft).real[:50, :47]
        np.testing.assert_allclose(corrected, expected, atol=1e-5)
        new_psf = task.computeCorrectedDiffimPsf(result.corrft, psf)
        array = new_psf.at(x=5, y=5)
        assert array.shape == psf.shape
        assert array.sum() == pytest.approx(1)
        planes = [np.full((50, 47), v, dtype=np.float32) for v in (4.0, 3.0)]
        estimated = task.estimateVariancePlane(*planes, result.cnft, result.crft)
        np.testing.assert_allclose(estimated, 4 + 3 * 1.3**2, rtol=1e-6)
        full = task.calculateVariancePlane(*planes, 4.0, 3.0, result.cnft, result.crft)
        np.testing.assert_allclose(full[24, 24], 4 + 3 * 1.3**2, rtol=1e-3)
        score = task.computeScoreCorrection(kernel, 4.0, 3.0, psf)
        half = score_correction(
            kernel, psf, science_variance=4.0, template_variance=3.0, shape=(70, 68)
        )
        np.testing.assert_allclose(
            fourier.half_spectrum(score.corrft), half.correction_ft, rtol=1e-12
        )
        padded = task.padCenterOriginArray(psf, (70, 68))
        assert padded[0, 0] == psf.max()
        np.testing.assert_array_equal(task.padCenterOriginArray(padded, (15, 15), True), psf)


def test_an_all_nan_exposure_returns_the_difference_unchanged(rng, caplog):
    science, template, difference, kernel = make_pair(rng)
    template.data[:] = np.nan
    task = DecorrelateALKernelTask()
    result = task.run(science, template, difference, kernel).correctedExposure
    np.testing.assert_array_equal(result.data, difference.data)
    np.testing.assert_array_equal(result.variance, difference.variance)
    assert "all NaN" in caplog.text
    assert task.metadata["skipped"] == "template"
    result.data[0, 0] = 77
    assert difference.data[0, 0] != 77


def test_contradictions_are_value_errors(rng):
    science, template, difference, kernel = make_pair(rng)
    run = DecorrelateALKernelTask().run
    psf = moffat_psfs()[0]
    with pytest.raises(ValueError, match="preConvKernel is allowed only"):
        run(science, template, difference, kernel, preConvKernel=psf)
    with pytest.raises(ValueError, match="preConvKernel is allowed only"):
        run(
            science, template, difference, kernel, preConvKernel=psf,
            preConvMode=True, templateMatched=False,
        )  # fmt: skip
    with pytest.raises(ValueError, match="no meaning"):
        run(science, template, difference, kernel, preConvMode=True, templateMatched=False)
    with pytest.raises(ValueError, match="No matching kernel"):
        run(science, template, difference, None)
    with pytest.raises(ValueError, match="sums to 0"):
        run(science, template, difference, np.zeros((5, 5)))
    with pytest.raises(ValueError, match="larger than the image"):
        run(science, template, difference, np.ones((95, 5)))
    other = make_pair(rng, origin=(0, 0))[1]
    with pytest.raises(ValueError, match=r"starts at.*\(0, 0\).*\(30, -7\)"):
        run(science, other, difference, kernel)
    other = make_pair(rng, shape=(91, 84))[1]
    with pytest.raises(ValueError, match=r"91 x 84.*90 x 84"):
        run(science, other, difference, kernel)
    with pytest.raises(ValueError, match=r"variance must be positive.*-3"):
        run(science, template, difference, kernel, svar=-3.0)


def test_an_exposure_without_a_usable_pixel_is_an_error_with_numbers(rng):
    science, template, difference, kernel = make_pair(rng)
    template.mask = with_plane(template.mask, "BAD", np.ones((90, 84), dtype=bool))
    task = DecorrelateALKernelTask()
    with pytest.raises(UnusableExposureError, match="template exposure has no usable pixel") as e:
        task.run(science, template, difference, kernel)
    assert isinstance(e.value, AlgorithmError)
    assert isinstance(e.value, ValueError)
    assert e.value.metadata["scienceVarianceMean"] == 25
    # A given mean makes the mask irrelevant.
    assert task.run(science, template, difference, kernel, tvar=9.0).correctedExposure
    science.variance[:] = -1
    with pytest.raises(UnusableExposureError, match="mean variance must be positive; got -1"):
        task.run(science, template, difference, kernel, tvar=9.0)


def test_array_methods_keep_single_precision_honest(rng):
    """A ramp inflates every measure of the image's own scatter; its noise is still 1."""
    task = DecorrelateALKernelTask()
    image = (np.linspace(0, 1e6, 300) + rng.normal(size=(280, 300))).astype(np.float32)
    task.computeCommonShape((21, 21), image.shape)
    corrft = task.computeDiffimCorrection(moffat_kernel(), 1.0, 1.0).corrft
    single = task.computeCorrectedImage(corrft, image)
    double = task.computeCorrectedImage(corrft, image.astype(np.float64))
    assert (np.abs(single - double) <= 1e-3 + np.spacing(np.abs(single))).all()


def test_what_was_measured_of_the_noise_is_recorded(rng):
    axis = np.array([-1, 9, 9, -1]) / 16  # bicubic interpolation, half a pixel
    science, template, difference = rng.normal(size=(3, 160, 160))
    template = convolve(template, np.outer(axis, axis) / (axis**2).sum())
    exposures = [
        Exposure.from_arrays(image, variance=1.0) for image in (science, template, difference)
    ]
    task = DecorrelateALKernelTask(config=DecorrelateALKernelConfig(noise="auto"))
    task.run(*exposures, gaussian(15, 1.5))
    assert "scienceNoiseZeroFrequency" not in task.metadata
    assert task.metadata["templateNoiseZeroFrequency"] == pytest.approx(2.44, rel=0.2)
    assert 0.1 < task.metadata["templateNoiseFlooredFraction"] < 0.5
    assert 0 < task.metadata["fluxScaleError"] < 0.1


@pytest.mark.parametrize("ratio", [1.0, 100.0])
@pytest.mark.parametrize("score", [False, True])
@pytest.mark.parametrize("background", [0.0, 100.0])
def test_fast_and_documented_transforms_agree(rng, ratio, score, background):
    """Also where the filter is not compact, and where stamps cut the wings of a score's PSF."""
    psf, kernel = gaussian(25, 2.2), gaussian(25, 2.6)
    shape = (101, 87)
    exposures = [
        Exposure.from_arrays(
            (background + rng.normal(0, 1, shape)).astype(np.float32), variance=variance, psf=psf
        )
        for variance in (1.0, ratio, 1.0)
    ]
    results = []
    for transform in ("fast", "documented"):
        task = DecorrelateALKernelTask(config=DecorrelateALKernelConfig(transform=transform))
        results.append(task.run(*exposures, kernel, preConvMode=score).correctedExposure)
    sigma = np.sqrt(results[1].variance.min())
    moved = np.abs(results[0].data - results[1].data).max()
    assert moved < 1e-3 * sigma + np.spacing(np.float32(background))
    np.testing.assert_allclose(results[0].variance, results[1].variance, rtol=1e-4)


def test_contaminated_bits_that_were_there_stay(rng):
    science, template, difference, kernel = make_pair(rng)
    old = np.zeros((90, 84), dtype=bool)
    old[70:72, 60:62] = True
    marked = Exposure.from_arrays(
        difference.data, variance=1.0, mask={"CONTAMINATED": old}, origin=(30, -7)
    )
    run = DecorrelateALKernelTask().run
    result = run(science, template, marked, kernel).correctedExposure
    plain = run(science, template, difference, kernel).correctedExposure
    assert result.mask.get("CONTAMINATED")[old].all()
    assert not plain.mask.get("CONTAMINATED")[old].any()


def test_a_filled_pixel_marks_what_it_moves_in_a_score(rng, caplog):
    """Stamps that cut wings make a score filter reach far: it warns, and marks what matters."""
    psf, kernel = gaussian(25, 2.2), gaussian(25, 2.6)
    shape = (200, 210)
    images = [rng.normal(0, 1, shape) for _ in range(2)]
    hole = images[0].copy()
    hole[100, 105] = np.nan
    run = DecorrelateALKernelTask().run
    science, template = (Exposure.from_arrays(image, variance=1.0, psf=psf) for image in images)
    marks = []
    for image in (images[0], hole):
        score = Exposure.from_arrays(image, variance=1.0, psf=psf)
        result = run(science, template, score, kernel, preConvMode=True).correctedExposure
        marks.append(result.mask.get("CONTAMINATED"))
    assert "larger stamps cure that" in caplog.text
    assert marks[0].mean() < 0.6
    assert not marks[0][100, 105]
    assert marks[1][99:102, 104:107].all()
    caplog.clear()
    wide = gaussian(61, 2.2)
    run(science, template, score, gaussian(61, 2.6), preConvKernel=wide, preConvMode=True)


def test_a_psf_may_stand_for_a_kernel(rng):
    science, template, difference, _ = make_pair(rng)
    run = DecorrelateALKernelTask().run
    image = run(science, template, difference, science.psf).correctedExposure.data
    x, y = science.bbox.x.center, science.bbox.y.center
    expected = run(science, template, difference, science.psf.at(x=x, y=y))
    np.testing.assert_array_equal(image, expected.correctedExposure.data)
    with pytest.raises(ValueError, match="must be a ConvolutionKernel, a PSF or an image; got a"):
        run(science, template, difference, "kernel.fits")


def test_default_planes_may_be_missing_in_any_order(rng):
    science, template, difference, kernel = make_pair(rng)
    config = DecorrelateALKernelConfig()
    config.ignoreMaskPlanes = [*reversed(config.ignoreMaskPlanes)]
    DecorrelateALKernelTask(config=config).run(science, template, difference, kernel)
    config.ignoreMaskPlanes = [*config.ignoreMaskPlanes, "MINE"]
    with pytest.raises(ValueError, match="MINE"):
        DecorrelateALKernelTask(config=config).run(science, template, difference, kernel)


def test_named_mask_planes_must_exist_and_both_spellings_do(rng):
    science, template, difference, kernel = make_pair(rng)
    saturated = np.zeros((90, 84), dtype=bool)
    saturated[:20] = True
    variance = np.where(saturated, 1e4, 25.0).astype(np.float32)
    for spelling in ("SAT", "SATURATED"):
        bright = Exposure.from_arrays(
            science.data, variance=variance, mask={spelling: saturated}, origin=(30, -7)
        )
        for ignored in (["SAT"], ["SATURATED"]):
            config = DecorrelateALKernelConfig(ignoreMaskPlanes=ignored)
            task = DecorrelateALKernelTask(config=config)
            assert task.computeVarianceMean(bright) == 25
            task.run(bright, template, difference, kernel)
            assert task.metadata["scienceVarianceMean"] == 25
    config = DecorrelateALKernelConfig(ignoreMaskPlanes=["NO_SUCH_PLANE"])
    with pytest.raises(ValueError, match="NO_SUCH_PLANE"):
        DecorrelateALKernelTask(config=config).run(science, template, difference, kernel)


@pytest.mark.parametrize("full", [False, True])
def test_science_convolved_variance_is_at_the_science_level(rng, full):
    science, template, difference, _ = make_pair(rng, nan=False)
    kernel = moffat_kernel(kernel_sum=1 / 1.3)
    config = DecorrelateALKernelConfig(completeVarPlanePropagation=full)
    task = DecorrelateALKernelTask(config=config)
    result = task.run(science, template, difference, kernel, templateMatched=False)
    variance = result.correctedExposure.variance[45, 42]
    assert variance == pytest.approx(25 + 9 * 1.3**2, rel=1e-3)


def test_extreme_variance_ratios_warn(rng, caplog):
    science, template, difference, kernel = make_pair(rng)
    DecorrelateALKernelTask().run(science, template, difference, kernel, svar=1e-9, tvar=1.0)
    assert "amplifies rounding errors" in caplog.text


def test_further_keywords_are_accepted(rng):
    science, template, difference, kernel = make_pair(rng)
    DecorrelateALKernelTask().run(science, template, difference, kernel, fromSpatialTask=True)


def test_only_the_documented_task_decorrelates_what_is_white(rng):
    from whitediff.exposures import kernels
    from whitediff.tasks.stored import DecorrelateDifferenceTask

    science, template = (
        Exposure.from_arrays(rng.normal(0, sigma, (200, 210)), variance=sigma**2)
        for sigma in (2.0, 4.0)
    )
    kernel = kernels.constant_kernel(moffat_kernel(15, 1.3), science.bbox)
    difference = subtract(science, template, kernel)
    documented = DecorrelateALKernelTask()
    white = documented.run(science, template, difference, kernel).correctedExposure
    again = documented.run(science, template, white, kernel).correctedExposure
    assert not np.array_equal(again.data, white.data, equal_nan=True)
    task = DecorrelateDifferenceTask()
    task.run(science, template, difference, kernel)
    with pytest.raises(AlgorithmError, match="whitediff decorrelate decorrelated it"):
        task.run(science, template, white, kernel)
    white.decorrelated_by = None
    with pytest.raises(AlgorithmError, match="its noise is white already"):
        task.run(science, template, white, kernel)
