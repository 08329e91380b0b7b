"""What is measured: functions of no argument, by name, in the order in which they are shown."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np
import scipy.fft

import whitediff
from whitediff.exposures import masks
from whitediff.formats import read_exposure, write_exposure
from whitediff.matching.design import FitOptions
from whitediff.matching.exposures import MatchOptions, match
from whitediff.matching.preparation import pair_with_psf, prepare
from whitediff.numerics.threads import available_threads
from whitediff.subtraction.recipe import Recipe
from whitediff.subtraction.solution import Solution, make_product
from whitediff.tasks import DecorrelateALKernelSpatialTask, DecorrelateALKernelTask

from . import baseline, scenes

__all__ = ["BASELINES", "FLOOR", "STAGES", "Case", "cases"]

type Case = Callable[[], object]

FLOOR = "one FFT pair"
BASELINES = {
    "task: default": "literal: default",
    "task: full variance": "literal: full variance",
    "task: score": "literal: score",
    "task: score, compact filter": "literal: score",
    "task: spatially varying": "literal: default",
    "task: measured noise": "literal: default",
}
"""What each mode of the task is compared with."""

STAGES = ("reading", "preparation", "matching", "PSF", "subtraction", "writing")


def cases(shape: tuple[int, int], directory: Path, *, literal: bool) -> dict[str, Case]:
    """All that is measured at a size; the literal formulas only if asked for."""
    logging.getLogger("lsst").setLevel(logging.WARNING)
    return {
        FLOOR: floor(shape),
        **task_cases(scenes.read(shape, directory), literal=literal),
        **file_cases(shape, directory),
    }


def floor(shape: tuple[int, int]) -> Case:
    """A real transform of the frame in single precision, and back."""
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    threads = available_threads()

    def pair() -> None:
        spectrum = scipy.fft.rfft2(image, workers=threads)
        scipy.fft.irfft2(spectrum, s=shape, workers=threads, overwrite_x=True)

    return pair


def task_cases(scene: scenes.Scene, *, literal: bool) -> dict[str, Case]:
    """The decorrelation task in its modes, and the same written down literally."""
    default = DecorrelateALKernelTask()
    full = _task(DecorrelateALKernelTask, completeVarPlanePropagation=True)
    noisy = _task(DecorrelateALKernelTask, noise="measured")
    compact = _task(DecorrelateALKernelTask, scoreFilter="compact")
    spatial = DecorrelateALKernelSpatialTask()
    pair = (scene.science, scene.template)
    found: dict[str, Case] = {}
    if literal:
        arrays: dict[str, Any] = {
            "science_variance": scene.science.variance,
            "template_variance": scene.template.variance,
            "bad": masks.flagged(scene.science.mask, masks.DEFAULT_IGNORE_MASK_PLANES),
        }

        def plain(exposure: Any, kernel: Any, **options: Any) -> Case:
            box = exposure.bbox
            return lambda: baseline.decorrelate(
                **arrays,
                difference=exposure.data,
                difference_variance=exposure.variance,
                kernel=whitediff.exposures.kernel.at(x=box.x.center, y=box.y.center),
                psf=scene.science.psf.at(x=box.x.center, y=box.y.center),
                **options,
            )

        found = {
            "literal: default": plain(scene.difference, scene.kernel),
            "literal: full variance": plain(scene.difference, scene.kernel, full_variance=True),
            "literal: score": plain(
                scene.score,
                scene.score_kernel,
                preconvolution_kernel=scenes.gaussian(scenes.SCIENCE_SIGMA),
            ),
        }
    return found | {
        "task: default": lambda: default.run(*pair, scene.difference, scene.kernel),
        "task: full variance": lambda: full.run(*pair, scene.difference, scene.kernel),
        "task: score": lambda: default.run(
            *pair, scene.score, scene.score_kernel, preConvMode=True
        ),
        "task: score, compact filter": lambda: compact.run(
            *pair, scene.score, scene.score_kernel, preConvMode=True
        ),
        "task: spatially varying": lambda: spatial.run(
            *pair, scene.varying_difference, scene.varying_kernel, spatiallyVarying=True
        ),
        "task: measured noise": lambda: noisy.run(*pair, scene.difference, scene.kernel),
    }


def _task(task: Any, **options: Any) -> Any:
    config = task.ConfigClass()
    config.update(**options)
    return task(config=config)


def file_cases(shape: tuple[int, int], directory: Path) -> dict[str, Case]:
    """Reading and writing one exposure, by whitediff and by astropy alone."""
    path, _ = scenes.files(shape, directory)
    exposure = read_exposure(path)
    planes = [exposure.data, exposure.variance, exposure.mask.bits]
    output = directory / "written.fits"

    def read_planes() -> None:
        with astropy.io.fits.open(path, memmap=False) as hdus:
            for name in ("IMAGE", "MASK", "VARIANCE"):
                np.asarray(hdus[name].data).astype(hdus[name].data.dtype.newbyteorder("="))

    def write_planes() -> None:
        hdus = [astropy.io.fits.PrimaryHDU(), *map(astropy.io.fits.ImageHDU, planes)]
        astropy.io.fits.HDUList(hdus).writeto(output, overwrite=True)

    return {
        "read": lambda: read_exposure(path),
        "read, astropy alone": read_planes,
        "write": lambda: write_exposure(exposure, output, overwrite=True),
        "write, astropy alone": write_planes,
    }


def subtract_by_stage(
    shape: tuple[int, int], directory: Path, **correction: Any
) -> dict[str, Case]:
    """The stages of `whitediff subtract` with a kernel of second order, one after the other.

    Each needs what those before it left; run in order, they are one run.  The correction is as the
    command's, which follows kernel and noise and measures covariances, unless told otherwise.
    """
    recipe = Recipe()
    recipe = dataclasses.replace(
        recipe, correction=dataclasses.replace(recipe.correction, **correction)
    )
    paths, state = scenes.files(shape, directory), {}

    def reading() -> None:
        state.clear()
        state["inputs"] = [read_exposure(path) for path in paths]

    def preparation() -> None:
        state["pair"] = prepare(*state.pop("inputs"))

    def matching() -> None:
        options = MatchOptions(convolved="auto", fit=FitOptions(kernel_order=2))
        state["match"] = match(state["pair"], options)

    def psf() -> None:
        state["pair"] = pair_with_psf(state["pair"], state["match"].convolved)

    def subtraction() -> None:
        pair = state["pair"]
        state["product"] = make_product(
            Solution.of(pair, state["match"], recipe),
            pair.science,
            pair.template,
            search=state["match"].background_search(pair),
            sources=pair.source_levels.either,
        )

    def writing() -> None:
        write_exposure(state["product"].exposure, directory / "written.fits", overwrite=True)

    functions = (reading, preparation, matching, psf, subtraction, writing)
    return dict(zip(STAGES, functions, strict=True))
