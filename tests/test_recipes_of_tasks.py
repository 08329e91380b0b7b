"""What a task makes is made again, whatever its configuration.

Claims: with each field of the subtraction tasks' configuration changed in turn, a difference and a
score are made again bit for bit from their solutions: in memory, and from the file that a
repository keeps; a stored difference that is decorrelated later is too; a step that is not ours is
refused; and the products are those of the pipeline for the recipe that the configuration says.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("lsst.pipe.base")

from marks import slow_after
from test_recipe import same
from whitediff import Exposure
from whitediff.evaluation.simulation import SimulationOptions, simulate
from whitediff.formats import read_solution, write_solution
from whitediff.subtraction.pipeline import make_all
from whitediff.tasks import (
    AlardLuptonPreconvolveSubtractConfig,
    AlardLuptonPreconvolveSubtractTask,
    AlardLuptonSubtractConfig,
    AlardLuptonSubtractTask,
    DecorrelateALKernelSpatialTask,
    DecorrelateALKernelTask,
    DecorrelateDifferenceTask,
    RecreateDifferenceTask,
)
from whitediff.tasks.decorrelate import UnusableExposureError


def spatial(config, **fields):
    config.decorrelate.retarget(DecorrelateALKernelSpatialTask)
    value = config.decorrelate.value
    value.spatiallyVarying = True
    for name, given in fields.items():
        setattr(value, name, given)
    return value


def by_cells(config):
    value = spatial(config, spatialMethod="mapReduce")
    grid = value.decorrelateMapReduceConfig
    grid.scaleByFwhm = False
    grid.cellSizeX = grid.cellSizeY = 80.0
    grid.gridStepX = grid.gridStepY = 60.0
    grid.borderSizeX = grid.borderSizeY = 20.0


def of_documented_transforms(config):
    config.decorrelate.transform, config.decorrelate.fill = "documented", "mean"


def with_measured_cells(config):
    by_cells(config)
    config.decorrelate.value.decorrelateConfig.noise = "measured"
    config.decorrelate.value.decorrelateConfig.fill = "interpolate"


CHANGES = {
    "default": lambda config: None,
    "by cells": by_cells,
    "smoothly": spatial,
    "fill": lambda config: setattr(config.decorrelate, "fill", "mean"),
    "no background": lambda config: setattr(config, "doSubtractBackground", False),
    "cells, measured noise": with_measured_cells,
    "no decorrelation": lambda config: setattr(config, "doDecorrelation", False),
    "no scaling": lambda config: setattr(config, "doScaleVariance", False),
    "no rays": lambda config: setattr(config, "doFindCosmicRays", False),
    "no bad pixels": lambda config: setattr(config, "doFindBadPixels", False),
    "no trails": lambda config: setattr(config, "doFindTrails", False),
    "no jumps": lambda config: setattr(config, "doFindLevelJumps", False),
    "planes excluded": lambda config: setattr(config, "excludeMaskPlanes", ["BAD"]),
    "planes united": lambda config: setattr(config, "doAttributeTemplateMask", False),
    "planes preserved": lambda config: setattr(config, "preserveTemplateMask", ["BAD"]),
    "planes renamed": lambda config: setattr(config, "renameTemplateMask", ["SAT", "CR"]),
    "few stars": lambda config: setattr(config, "maxKernelSources", 15),
    "science convolved": lambda config: setattr(config, "mode", "convolveScience"),
    "direction": lambda config: setattr(config, "mode", "auto"),
    "aligned": lambda config: setattr(config, "alignTemplate", "auto"),
    "full variance": lambda config: setattr(
        config.decorrelate, "completeVarPlanePropagation", True
    ),
    "noise": lambda config: setattr(config.decorrelate, "noise", "measured"),
    "transform": of_documented_transforms,
    "filter": lambda config: setattr(config.decorrelate, "scoreFilter", "compact"),
    "tolerance": lambda config: setattr(config.decorrelate, "tolerance", 1e-5),
    "planes ignored": lambda config: setattr(config.decorrelate, "ignoreMaskPlanes", ["BAD"]),
    "planes not trusted": lambda config: setattr(
        config.decorrelate, "untrustedMaskPlanes", ["BAD", "NO_DATA"]
    ),
    "kernel": lambda config: setattr(config.makeKernel.kernel.active, "spatialKernelOrder", 0),
}
OF_DIFFERENCES = ("science convolved", "direction")


def configured(kind, change):
    config = (
        AlardLuptonSubtractConfig()
        if kind == "difference"
        else AlardLuptonPreconvolveSubtractConfig()
    )
    active = config.makeKernel.kernel.active
    active.scaleByFwhm, active.kernelSize, active.spatialKernelOrder = False, 15, 1
    CHANGES[change](config)
    config.validate()
    return config


@pytest.fixture(scope="module")
def pair():
    simulation = simulate(
        SimulationOptions(
            shape=(300, 320), seed=5, stars=60, galaxies=10, transients=6, bad_columns=1,
            nan_pixels=15,
        )
    )  # fmt: skip
    exposures = []
    for part in (simulation.science, simulation.template):
        mask = dict(part.mask) | {"SAT": part.image > 2.5e4}
        psf = part.psf.stamp(150.0, 150.0, size=31)
        exposures.append(
            Exposure.from_arrays(part.image, variance=part.variance, mask=mask, psf=psf)
        )
    return exposures


def product(kind, config, pair):
    science, template = pair
    if kind == "difference":
        result = AlardLuptonSubtractTask(config=config).run(template, science)
        return result, result.difference
    result = AlardLuptonPreconvolveSubtractTask(config=config).run(template, science)
    return result, result.scoreExposure


@pytest.mark.parametrize("kind", ["difference", "score"])
@pytest.mark.parametrize("change", slow_after(5, CHANGES))
def test_a_task_s_product_is_made_again(pair, tmp_path, kind, change):
    if kind == "score" and change in OF_DIFFERENCES:
        pytest.skip("of differences")
    config = configured(kind, change)
    result, first = product(kind, config, pair)
    same(RecreateDifferenceTask().run(*pair, result.solution).difference, first)
    write_solution(result.solution, tmp_path / "s.fits")
    stored = read_solution(tmp_path / "s.fits")
    assert stored.recipe == config.to_recipe(score=kind == "score")
    same(RecreateDifferenceTask().run(*pair, stored).difference, first)
    made = make_all(*pair, config.to_recipe(score=kind == "score"), kind)[kind]
    same(made.exposure, first)


@pytest.mark.parametrize("change", slow_after(1, ["default", "planes united", "no background"]))
def test_what_is_decorrelated_later_is_made_again(pair, change):
    config = configured("difference", change)
    config.doDecorrelation = False
    result = AlardLuptonSubtractTask(config=config).run(pair[1], pair[0])
    later = DecorrelateDifferenceTask().run(*pair, result.difference, result.solution)
    again = RecreateDifferenceTask().run(*pair, later.correctedSolution)
    same(again.difference, later.correctedExposure)
    assert not np.array_equal(again.difference.data, result.difference.data)


def test_another_s_task_is_refused(pair):
    class Other(DecorrelateALKernelTask):
        _DefaultName = "other"

    config = configured("difference", "default")
    config.decorrelate.retarget(Other)
    result = AlardLuptonSubtractTask(config=config).run(pair[1], pair[0])
    with pytest.raises(UnusableExposureError, match=r"made with .*Other, which is not part of"):
        RecreateDifferenceTask().run(*pair, result.solution)
