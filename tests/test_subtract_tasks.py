"""The subtraction tasks.

Claims: in their default configuration the tasks make what the command makes, bit for bit, for a
template that is convolved, a science exposure that is, and a score; what they return besides is
consistent with it, and inputs stay as they were.  Every field of a configuration acts, or is
rejected where it contradicts another.  A catalogue restricts the kernel sources to its positions.
Metadata are those of both subtasks; the template's mask planes are preserved, renamed or left out;
failures are errors that a pipeline understands, with numbers.  Tasks, configurations and errors
survive a round trip.
"""

from __future__ import annotations

import dataclasses
import pickle

import lsst.pex.config as pex_config
import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from lsst.pipe.base import AlgorithmError, NoWorkFound, Task

from whitediff import Exposure
from whitediff.errors import ArgumentError, DataError
from whitediff.evaluation.simulation import SimulationOptions, simulate
from whitediff.matching.exposures import MatchOptions
from whitediff.matching.preparation import prepare
from whitediff.subtraction.pipeline import make_all
from whitediff.tasks import (
    AlardLuptonPreconvolveSubtractConfig,
    AlardLuptonPreconvolveSubtractTask,
    AlardLuptonSubtractConfig,
    AlardLuptonSubtractTask,
    InsufficientKernelSourcesError,
    MakeKernelConfig,
    MakeKernelTask,
    PsfMatchConfigAL,
    PsfMatchConfigDF,
    UnusableExposureError,
)

YX0 = (40, -30)
FLUX_SCALE = 1.3
TASKS = [AlardLuptonSubtractTask, AlardLuptonPreconvolveSubtractTask]


@pytest.fixture(scope="module")
def simulation():
    return simulate(
        SimulationOptions(
            shape=(620, 600), seed=3, stars=200, galaxies=20, transients=10, flux_scale=FLUX_SCALE,
            ellipticity=(0.1, -0.07), offset=(0.3, -0.2), bad_columns=1, nan_pixels=2,
            saturation=30000.0,
        )
    )  # fmt: skip


def exposure(simulated, *, psf=True, image=None, mask=None, variance=None):
    """An exposure whose arrays cannot be changed."""
    result = Exposure.from_arrays(
        (simulated.image if image is None else image).copy(),
        variance=(simulated.variance if variance is None else variance).copy(),
        mask=simulated.mask | (mask or {}),
        psf=simulated.psf.stamp(300.0, 300.0, size=31) if psf else None,
        origin=YX0,
    )
    for plane in (result.data, result.mask.bits, result.variance):
        plane.flags.writeable = False
    return result


@pytest.fixture(scope="module")
def science(simulation):
    return exposure(simulation.science)


@pytest.fixture(scope="module")
def template(simulation):
    return exposure(simulation.template)


@pytest.fixture(scope="module")
def pair(science, template):
    return prepare(science, template)


@pytest.fixture(scope="module")
def default(science, template):
    """Task and result of the default configuration."""
    task = AlardLuptonSubtractTask()
    return task, task.run(template, science)


def small_kernel(config):
    """A configuration whose fit takes next to no time."""
    active = config.makeKernel.kernel.active
    active.alardNGauss, active.alardDegGauss, active.alardSigGauss = 1, [2], [2.0]
    active.scaleByFwhm, active.kernelSize = False, 15
    active.spatialKernelOrder = 0
    return config


def same_product(exposure, product):
    np.testing.assert_array_equal(exposure.data, product.exposure.data)
    np.testing.assert_array_equal(exposure.variance, product.exposure.variance)
    for name in ("CONTAMINATED", "NO_DATA", "BAD"):
        np.testing.assert_array_equal(
            exposure.mask.get(name), product.exposure.mask.get(name), err_msg=name
        )
    place = {"x": YX0[1] + 100.0, "y": YX0[0] + 450.0}
    np.testing.assert_array_equal(exposure.psf.at(**place), product.exposure.psf.at(**place))


def free_of_sources(exposure):
    return ~(exposure.mask.get("SOURCE") | exposure.mask.get("CONTAMINATED"))


def pulls(exposure):
    free = free_of_sources(exposure)
    return (exposure.data[free] / np.sqrt(exposure.variance[free])).astype(np.float64)


def test_the_difference_is_the_command_s(science, template, default):
    task, result = default
    made = make_all(science, template, task.config.to_recipe())["difference"]
    product, found = made.product, made.match
    same_product(result.difference, product)
    np.testing.assert_array_equal(
        result.backgroundModel.coefficients, product.solution.background.coefficients
    )
    middle = {"x": YX0[1] + 300, "y": YX0[0] + 300}
    np.testing.assert_array_equal(result.psfMatchingKernel.at(**middle), found.kernel.at(**middle))
    # Sigma of a standard deviation from n pixels: 1/sqrt(2n), here 0.0015.
    assert pulls(result.difference).std() == pytest.approx(1, abs=0.01)
    assert len(result.kernelSources) == len(found.candidates) >= 10
    assert task.metadata["convolvedExposure"] == "Template"
    assert result.psfMatchingKernel.at(**middle).sum() == pytest.approx(FLUX_SCALE, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["convolveScience", "auto"])
def test_a_science_exposure_that_is_sharper_is_convolved(science, template, mode):
    """Roles exchanged, the template has the wider PSF."""
    task = AlardLuptonSubtractTask(config=AlardLuptonSubtractConfig(mode=mode))
    result = task.run(science, template)
    made = make_all(template, science, task.config.to_recipe())["difference"]
    assert made.match.convolved == "science"
    assert task.metadata["convolvedExposure"] == "Science"
    same_product(result.difference, made.product)
    assert pulls(result.difference).std() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("convolved", ["template", "science"])
def test_without_decorrelation_the_difference_is_that_of_the_matched_two(
    science, template, convolved
):
    config = small_kernel(AlardLuptonSubtractConfig(doDecorrelation=False))
    config.mode = f"convolve{convolved.capitalize()}"
    task = AlardLuptonSubtractTask(config=config)
    pair = (template, science) if convolved == "template" else (science, template)
    result = task.run(*pair)
    background = result.backgroundModel.on(science.bbox)
    expected = result.matchedScience.data - result.matchedTemplate.data - background
    # Single precision of the brightest pixels, some operations.
    np.testing.assert_allclose(result.difference.data, expected, atol=0.05)
    assert "decorrelate" not in task.getTaskDict()
    variance = result.matchedScience.variance + result.matchedTemplate.variance
    ratio = (result.difference.variance / variance)[free_of_sources_of(result)]
    assert np.nanmedian(ratio) == pytest.approx(1, abs=0.01)


def free_of_sources_of(result):
    return ~(result.difference.mask.get("SOURCE") | result.difference.mask.get("EDGE"))


def test_the_score_is_the_command_s(science, template):
    task = AlardLuptonPreconvolveSubtractTask()
    result = task.run(template, science)
    made = make_all(science, template, task.config.to_recipe(score=True), "score")["score"]
    product, found = made.product, made.match
    same_product(result.scoreExposure, product)
    np.testing.assert_array_equal(result.flux, product.flux)
    np.testing.assert_array_equal(result.fluxVariance, product.flux_variance)
    assert pulls(result.scoreExposure).std() == pytest.approx(1, abs=0.03)
    np.testing.assert_array_equal(result.matchedScience.data, found.science.data, strict=True)
    assert task.metadata["convolvedExposure"] == "Preconvolution"
    assert task.config.decorrelate.scoreFilter == "compact"
    assert AlardLuptonSubtractConfig().decorrelate.scoreFilter == "documented"
    with pytest.raises(pex_config.FieldValidationError):
        task.config.decorrelate.scoreFilter = "sharp"


@pytest.mark.slow
def test_a_score_s_options_act(science, template):
    def run(**fields):
        config = small_kernel(AlardLuptonPreconvolveSubtractConfig())
        config.decorrelate.update(**fields.pop("decorrelate", {}))
        config.update(**fields)
        return AlardLuptonPreconvolveSubtractTask(config=config).run(template, science)

    default, documented, raw = (
        run(),
        run(decorrelate={"scoreFilter": "documented"}),
        run(doDecorrelation=False),
    )
    assert not np.array_equal(
        default.scoreExposure.data, documented.scoreExposure.data, equal_nan=True
    )
    assert raw.flux is raw.fluxVariance is None
    # Pre-convolved noise scatters far less from pixel to pixel.
    free = free_of_sources(default.scoreExposure)
    assert raw.scoreExposure.data[free].std() < default.scoreExposure.data[free].std()


def test_metadata_are_complete(default, pair):
    task, result = default
    metadata = task.getFullMetadata()
    own = metadata["alardLuptonSubtract"]
    assert own["templateCoveragePercent"] == pytest.approx(100 * pair.template_fraction)
    assert own["scaleScienceVarianceFactor"] == pair.science_variance_factor
    assert own["scaleTemplateVarianceFactor"] == pair.template_variance_factor
    # FWHM of Gaussians of 3.0 and 2.2 pixels, elliptical by a tenth.
    assert own["sciencePsfSize"] == pytest.approx(7.06, rel=0.02)
    assert own["templatePsfSize"] == pytest.approx(5.18, rel=0.02)
    assert own["nPsfSources"] == len(result.kernelSources)
    kernel = metadata["alardLuptonSubtract:makeKernel"]
    for name in ("spatialConditionNum", "spatialKernelSum"):
        assert own[name] == kernel[name]
    assert kernel["ALKernelSize"] == result.psfMatchingKernel.basis.shape[-1]
    assert kernel["nCandidatesUsed"] == result.kernelSources["used"].sum()
    assert (kernel["spatialKernelOrder"], kernel["spatialBgOrder"]) == (1, 2)
    decorrelation = metadata["alardLuptonSubtract:decorrelate"]
    assert decorrelation["kernelSum"] == pytest.approx(kernel["spatialKernelSum"])
    for name in ("alardLuptonSubtract", "alardLuptonSubtract:decorrelate"):
        assert "runStartCpuTime" in metadata[name]


def plane_of(exposure, name):
    plane = getattr(exposure, name)
    return plane.bits if name == "mask" else plane


def test_what_is_returned_shares_nothing_with_the_inputs(default, science, template):
    _, result = default
    for name in ("difference", "matchedTemplate", "matchedScience"):
        made = getattr(result, name)
        for plane in ("data", "mask", "variance"):
            array = plane_of(made, plane)
            assert array.flags.writeable, (name, plane)
            for given in (science, template):
                assert not np.shares_memory(array, plane_of(given, plane)), (name, plane)


def test_a_catalogue_restricts_the_kernel_sources(pair, default):
    everything = default[1].kernelSources
    chosen = everything[:12]
    off = 0.4  # pixels between two programs' centroids
    x, y = np.array(chosen["x"]) + off, np.array(chosen["y"]) - off
    nowhere = [np.nan, -500.0]
    columns = np.append(x, nowhere), np.append(y, nowhere)
    task = MakeKernelTask()
    for prefix in ("slot_Centroid_", "base_SdssCentroid_", ""):
        catalog = Table({f"{prefix}x": columns[0], f"{prefix}y": columns[1]})
        found = task.matchPair(pair, kernelSources=catalog).kernelSources
        assert set(found["x"]) == set(chosen["x"])
    masked = Table({"x": MaskedColumn(x, mask=np.arange(12) > 8), "y": y})
    assert set(task.matchPair(pair, kernelSources=masked).kernelSources["x"]) == set(
        everything["x"][:9]
    )
    with pytest.raises(ArgumentError, match=r"slot_Centroid_x and.*got ra, dec"):
        task.matchPair(pair, kernelSources=Table({"ra": x, "dec": y}))


def test_too_few_sources_are_an_error_with_numbers(default, science, template):
    few = default[1].kernelSources[:4]
    config = small_kernel(AlardLuptonSubtractConfig(minKernelSources=6))
    for sources, count in ((few, 4), (few[:0], 0)):
        with pytest.raises(InsufficientKernelSourcesError, match=f"{count} of") as caught:
            AlardLuptonSubtractTask(config=config).run(template, science, sources=sources)
        assert caught.value.metadata == {"nSources": count, "nRequired": 6}
    assert isinstance(caught.value, AlgorithmError)
    assert isinstance(caught.value, DataError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is InsufficientKernelSourcesError
    assert again.metadata == caught.value.metadata
    assert str(again) == str(caught.value)


def test_noise_has_no_kernel_sources(rng):
    noise = [Exposure.from_arrays(rng.normal(0, 3, (200, 210)), variance=9.0) for _ in range(2)]
    with pytest.raises(InsufficientKernelSourcesError, match="No source stands out") as caught:
        AlardLuptonSubtractTask().run(*noise)
    assert caught.value.metadata == {"nSources": 0, "nRequired": 1}


def test_a_template_that_covers_little_is_no_work(simulation, science, template):
    ny, nx = science.shape
    absent = np.ones((ny, nx), dtype=bool)
    absent[:, : nx // 20] = False
    little = exposure(simulation.template, mask={"NO_DATA": absent})
    for task in TASKS:
        with pytest.raises(NoWorkFound, match=r"covers (4\.9|5\.0)%.*is 10%"):
            task().run(little, science)
    task = AlardLuptonSubtractTask()
    elsewhere = Exposure.from_arrays(np.zeros((50, 50)), variance=1.0, origin=(9000, 9000))
    with pytest.raises(NoWorkFound, match=r"covers 0\.0%"):
        task.run(elsewhere, science)
    assert task.metadata["templateCoveragePercent"] == 0
    # Enough to try, not enough for a failure to be one.
    absent[:, : nx // 8] = False
    some = exposure(simulation.template, mask={"NO_DATA": absent})
    with pytest.raises(NoWorkFound, match=r"only 1[23]\..*minTemplateFraction.*this failed: "):
        AlardLuptonSubtractTask().run(some, science)
    config = AlardLuptonSubtractConfig(minTemplateFractionForExpectedSuccess=0.1)
    with pytest.raises(AlgorithmError):
        AlardLuptonSubtractTask(config=config).run(some, science)
    task = AlardLuptonSubtractTask()
    task.prepareInputs(template, science)
    assert task.metadata["templateCoveragePercent"] > 99


def test_an_absurd_variance_is_an_unusable_exposure(simulation, template):
    absurd = exposure(simulation.science, variance=simulation.science.variance * 50)
    with pytest.raises(UnusableExposureError, match="times its variance"):
        AlardLuptonSubtractTask().run(template, absurd)
    config = small_kernel(AlardLuptonSubtractConfig(doScaleVariance=False))
    task = AlardLuptonSubtractTask(config=config)
    doubled = exposure(simulation.science, variance=simulation.science.variance * 2)
    result = task.run(template, doubled)
    assert task.metadata["scaleScienceVarianceFactor"] == 1
    assert pulls(result.difference).std() < 0.85


@pytest.mark.slow
def test_the_template_s_mask_planes(simulation, template):
    shape = simulation.science.image.shape

    def at(row, column):
        plane = np.zeros(shape, dtype=bool)
        plane[row : row + 4, column : column + 4] = True
        return plane

    on_template = {
        "SAT": simulation.template.mask["SAT"] | at(100, 100),
        "BAD": simulation.template.mask["BAD"] | at(150, 100),
        "INJECTED": at(200, 100),
        "DETECTED": at(250, 100),
        "STREAK": at(300, 100),
        "CR": at(350, 100),
    }
    on_science = {
        "SAT": simulation.science.mask["SAT"] | at(100, 300),
        "DETECTED": at(250, 300),
        "STREAK": at(300, 300),
    }
    pair = (
        exposure(simulation.template, mask=on_template),
        exposure(simulation.science, mask=on_science),
    )
    task = AlardLuptonSubtractTask(config=small_kernel(AlardLuptonSubtractConfig()))
    mask = task.run(*pair).difference.mask
    template_only, science_only = np.s_[101, 101], np.s_[101, 301]
    assert mask.get("SAT")[science_only]
    assert not mask.get("SAT")[template_only]
    assert mask.get("SAT_TEMPLATE")[template_only]
    assert not mask.get("SAT_TEMPLATE")[science_only]
    assert mask.get("BAD")[151, 101]
    assert mask.get("INJECTED_TEMPLATE")[201, 101]
    assert not mask.get("INJECTED").any()
    assert "INJECTED_CORE_TEMPLATE" not in mask.names
    for name, row in (("DETECTED", 251), ("STREAK", 301)):
        np.testing.assert_array_equal(mask.get(name), on_science[name])
        assert not mask.get(name)[row, 101]
    # Forgotten by name, but not what it does to its neighbours.
    assert not mask.get("CR").any()
    for row in (101, 151, 351):
        assert mask.get("CONTAMINATED")[row, 101]
    assert mask.get("EDGE")[:, 0].all()
    assert not mask.get("EDGE")[100:500, 100:500].any()
    config = small_kernel(AlardLuptonSubtractConfig())
    config.preserveTemplateMask = ["NO_DATA", "BAD", "DETECTED"]
    config.renameTemplateMask = ["STREAK"]
    mask = AlardLuptonSubtractTask(config=config).run(*pair).difference.mask
    np.testing.assert_array_equal(
        mask.get("DETECTED"), on_science["DETECTED"] | on_template["DETECTED"]
    )
    assert mask.get("STREAK_TEMPLATE")[301, 101]
    assert "SAT_TEMPLATE" not in mask.names
    assert not mask.get("SAT")[template_only]


@pytest.mark.slow
def test_excluded_planes_keep_kernel_sources_away(simulation, science, template):
    plane = np.zeros(science.shape, dtype=bool)
    plane[:, : science.shape[1] // 2] = True
    for name in ("EDGE", "MINE"):
        marked = exposure(simulation.template, mask={name: plane})
        config = small_kernel(AlardLuptonSubtractConfig())
        config.makeKernel.kernel.active.spatialBgOrder = 0
        config.excludeMaskPlanes.append("MINE")
        sources = AlardLuptonSubtractTask(config=config).run(marked, science).kernelSources
        assert sources["x"].min() > YX0[1] + science.shape[1] // 2
    config = small_kernel(AlardLuptonSubtractConfig())
    sources = AlardLuptonSubtractTask(config=config).run(marked, science).kernelSources
    assert sources["x"].min() < YX0[1] + science.shape[1] // 2


def test_the_background_is_subtracted_or_left(simulation, template):
    level = 50.0
    raised = exposure(simulation.science, image=simulation.science.image + np.float32(level))
    for subtracted, fitted in ((True, True), (False, True), (False, False)):
        config = small_kernel(AlardLuptonSubtractConfig(doSubtractBackground=subtracted))
        config.makeKernel.kernel.active.fitForBackground = fitted
        task = AlardLuptonSubtractTask(config=config)
        result = task.run(template, raised)
        left = np.median(result.difference.data[free_of_sources(result.difference)])
        assert left == pytest.approx(0 if subtracted else level, abs=1)
        model = result.backgroundModel.on(raised.bbox)
        assert np.median(model) == pytest.approx(level if fitted else 0, abs=1)
        if not fitted:
            assert not model.any()


def test_numbers_of_kernel_sources_are_those_asked_for(science, template):
    config = small_kernel(AlardLuptonSubtractConfig())
    config.maxKernelSources = 12
    config.detectionThreshold, config.detectionThresholdMax = 30.0, 200.0
    task = AlardLuptonSubtractTask(config=config)
    sources = task.run(template, science).kernelSources
    assert len(sources) == 12
    assert sources["signalToNoise"].min() >= 30
    assert sources["signalToNoise"].max() <= 200


FIELDS = {
    "kernelSizeFwhmScaling": 7.0,
    "kernelSizeMin": 23,
    "kernelSizeMax": 31,
    "spatialKernelOrder": 2,
    "spatialKernelOrderChoice": "bic",
    "spatialBgOrder": 1,
    "spatialBgModel": "polynomial",
    "constantKernelSum": False,
    "fitForBackground": False,
    "nStarPerCell": 4,
    "maxSpatialIterations": 2,
    "candidateResidualMeanMax": 0.3,
    "candidateResidualStdMax": 1.7,
    "maxKsumSigma": 4.0,
    "scaleByFwhm": False,
}
AL_FIELDS = {
    "alardDegGauss": [3, 2, 2],
    "alardSigGauss": [0.8, 1.5, 3.0],
    "alardGaussBeta": 1.8,
    "alardMinSig": 0.8,
    "alardMinSigDeconv": 0.5,
}
DF_FIELDS = {"useRegularization": False, "lambdaValue": 0.01}


@pytest.mark.parametrize(
    ("config_class", "fields"),
    [(PsfMatchConfigAL, FIELDS | AL_FIELDS), (PsfMatchConfigDF, FIELDS | DF_FIELDS)],
)
def test_every_field_of_a_kernel_is_an_option(config_class, fields):
    default = config_class().to_options()
    assert dataclasses.replace(default, basis="auto") == MatchOptions()
    for name, value in fields.items():
        config = config_class()
        setattr(config, name, value)
        config.validate()
        assert config.to_options() != default, name
    config = config_class(sizeCellX=200, sizeCellY=200)
    assert config.to_options().candidates.cell == 200
    config = config_class(scaleByFwhm=False, kernelSize=25)
    assert config.to_options().kernel_size == 25
    # Those that say nothing to the fit have their own tests.
    told = set(fields) | {"sizeCellX", "sizeCellY", "kernelSize"}
    only = {"kernelBasisSet", "spatialModelType", "maxSpatialConditionNumber", "alardNGauss"}
    assert set(config.keys()) - told <= only


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PsfMatchConfigAL(sizeCellX=100), "cells are square"),
        (PsfMatchConfigAL(kernelSizeMin=41), "is below kernelSizeMin"),
        (PsfMatchConfigAL(kernelBasisSet="delta-function"), "choose the configuration DF"),
        (PsfMatchConfigDF(kernelBasisSet="alard-lupton"), "choose the configuration AL"),
        (PsfMatchConfigAL(alardNGauss=2), "does not have alardNGauss = 2 values"),
        (
            PsfMatchConfigAL(alardNGauss=2, alardDegGauss=[2, 2], scaleByFwhm=False),
            "alardSigGauss.*does not have alardNGauss = 2",
        ),
        (PsfMatchConfigDF(useRegularization=False, lambdaValue=1.0), "no meaning without"),
        (AlardLuptonSubtractConfig(detectionThreshold=600), "must be above"),
        (AlardLuptonSubtractConfig(minKernelSources=2000), "below minKernelSources"),
        (AlardLuptonSubtractConfig(renameTemplateMask=["BAD"]), "preserveTemplateMask too"),
        (AlardLuptonSubtractConfig(preserveTemplateMask=["SATURATED"]), "'SAT', and"),
    ],
)
def test_contradictions_are_rejected(config, message):
    with pytest.raises(pex_config.FieldValidationError, match=f"(?s){message}"):
        config.validate()


def test_what_no_value_can_mean_is_rejected():
    for name, value in (
        ("kernelSize", 20),
        ("kernelSizeMin", 22),
        ("spatialModelType", "polynomial"),
        ("maxKsumSigma", 0.0),
        ("alardDegGauss", [-1, 2, 2]),
    ):
        with pytest.raises((pex_config.FieldValidationError, ValueError)):
            setattr(PsfMatchConfigAL(), name, value)
    config = AlardLuptonSubtractConfig()
    config.makeKernel.kernel.active.fitForBackground = False
    with pytest.raises(pex_config.FieldValidationError, match="needs makeKernel's"):
        config.validate()
    for field in ("mode", "makeKernel"):
        with pytest.raises((pex_config.FieldValidationError, ValueError, TypeError)):
            setattr(AlardLuptonSubtractConfig(), field, "sideways")


def test_the_kernel_task_alone(science, template, caplog):
    config = MakeKernelConfig()
    config.kernel["AL"].maxSpatialConditionNumber = 1.0
    task = MakeKernelTask(config=config)
    result = task.run(template, science)
    assert "beyond maxSpatialConditionNumber = 1" in caplog.text
    assert task.metadata["spatialConditionNum"] > 1
    kernel = result.psfMatchingKernel.at(x=YX0[1] + 300, y=YX0[0] + 300)
    assert kernel.sum() == pytest.approx(FLUX_SCALE, rel=0.01)
    assert kernel.shape == (task.metadata["ALKernelSize"],) * 2
    other = task.run(science, template, convolved="auto")
    assert other.match.convolved == "science"
    with pytest.raises(ValueError, match="template is convolved"):
        task.run(template, science, preconvolved=True, convolved="science")


def test_free_pixels(pair):
    kernels = {}
    for name, fields in (("smooth", {}), ("stiff", {"lambdaValue": 1.0}),
                         ("free", {"useRegularization": False})):  # fmt: skip
        config = MakeKernelConfig()
        config.kernel.name = "DF"
        config.kernel.active.update(
            scaleByFwhm=False, kernelSize=9, spatialKernelOrder=0, spatialBgOrder=0, **fields
        )
        result = MakeKernelTask(config=config).matchPair(pair)
        kernels[name] = result.psfMatchingKernel.at(x=YX0[1] + 300, y=YX0[0] + 300)

    def roughness(kernel):
        padded = np.pad(kernel, 1)
        return sum(np.sum(np.diff(padded, 2, axis=axis) ** 2) for axis in (0, 1))

    assert kernels["smooth"].shape == (9, 9)
    assert roughness(kernels["stiff"]) < roughness(kernels["smooth"]) < roughness(kernels["free"])


def test_the_decorrelation_is_the_subtask_s(science, template, default):
    config = AlardLuptonSubtractConfig()
    config.decorrelate.completeVarPlanePropagation = True
    difference = AlardLuptonSubtractTask(config=config).run(template, science).difference
    # Another grid of the transform: no pixel moves by more than 1e-3 of its sigma.
    sigma = np.sqrt(default[1].difference.variance.min())
    np.testing.assert_allclose(
        difference.data, default[1].difference.data, rtol=2e-7, atol=1e-3 * sigma
    )
    assert not np.array_equal(difference.variance, default[1].difference.variance)


@pytest.mark.parametrize("task_class", [*TASKS, MakeKernelTask])
def test_round_trips(task_class, tmp_path):
    config = task_class.ConfigClass()
    kernel = config.kernel if task_class is MakeKernelTask else config.makeKernel.kernel
    kernel["AL"].spatialKernelOrder = 2
    config.save(tmp_path / "config.py")
    again = task_class.ConfigClass()
    assert not config.compare(again, output=lambda text: None)
    again.load(tmp_path / "config.py")
    assert config.compare(again)
    assert "spatialKernelOrder" in config.saveToString()
    task = task_class(config=config)
    assert isinstance(task, Task)
    assert task.getName() == task_class._DefaultName
    copy = pickle.loads(pickle.dumps(task))
    assert copy.config.compare(config)
    assert set(copy.getTaskDict()) == set(task.getTaskDict())


def test_a_visit_summary_is_not_silently_ignored(science, template, caplog):
    task = AlardLuptonSubtractTask(config=small_kernel(AlardLuptonSubtractConfig()))
    task.run(template, science, visitSummary=object())
    assert "not used" in caplog.text
