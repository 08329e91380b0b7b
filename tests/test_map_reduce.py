"""Operations on a grid of sub-images, and the decorrelation that follows the field.

Claims: cells cover every frame, however size and step fit; a mapper that users write sees its cell
with borders, may change it, and may return what it likes; of overlapping values the good ones
count; the PSF follows the sub-images.  By cells, a difference is white where kernel and noise
vary, and the same as the task's where they do not; cells without data do not stop the others.
Tasks are real ones, and configurations survive a round trip or are rejected with a reason.
"""

from __future__ import annotations

import pickle

import lsst.images
import lsst.pex.config as pex_config
import numpy as np
import pytest
from lsst.pipe.base import Struct, Task

from scenes import gaussian, moffat_kernel
from whitediff import Exposure
from whitediff.errors import ArgumentError
from whitediff.exposures import kernels
from whitediff.exposures.boxes import Box
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.formats.archive.convert import lsst_box, masked_image
from whitediff.numerics.convolution import convolve, convolve_varying
from whitediff.numerics.profiles import full_width_half_maximum
from whitediff.tasks import (
    DecorrelateALKernelMapper,
    DecorrelateALKernelMapReduceConfig,
    DecorrelateALKernelMapReduceTask,
    DecorrelateALKernelSpatialConfig,
    DecorrelateALKernelSpatialTask,
    DecorrelateALKernelTask,
    ImageMapper,
    ImageMapperConfig,
    ImageMapReduceConfig,
    ImageMapReduceTask,
    ImageReducer,
    ImageReducerConfig,
    UnusableExposureError,
)

YX0 = (30, -7)
SAME = 1e-3
"""Of a pixel's sigma: what the transforms of the task are allowed to differ by."""


class AddConfig(ImageMapperConfig):
    amount = pex_config.Field(dtype=float, default=5.0, doc="What to add.")


class AddMapper(ImageMapper):
    """Changes what it was given, and returns it."""

    ConfigClass = AddConfig
    _DefaultName = "add"

    def run(self, subExposure, expandedSubExposure, fullBBox, **kwargs):
        subExposure.data[:] += self.config.amount
        expandedSubExposure.data[:] = np.nan
        return Struct(subExposure=subExposure)


class MeanMapper(ImageMapper):
    _DefaultName = "mean"

    def run(self, subExposure, expandedSubExposure, fullBBox, *, offset=0.0, **kwargs):
        return Struct(
            mean=float(subExposure.data.mean()) + offset,
            reach=expandedSubExposure.bbox.area,
            whole=fullBBox,
        )


class BlurMapper(ImageMapper):
    """Needs its borders; returns an lsst.images object."""

    _DefaultName = "blur"

    def run(self, subExposure, expandedSubExposure, fullBBox, **kwargs):
        image = convolve(expandedSubExposure.data, gaussian(7, 1.2))
        result = masked_image(expandedSubExposure.replaced(data=image))
        return Struct(subExposure=result[lsst_box(subExposure.bbox)])


class PsfMapper(ImageMapper):
    """The PSF widens from left to right."""

    _DefaultName = "psf"

    def run(self, subExposure, expandedSubExposure, fullBBox, lost=None, **kwargs):
        box = subExposure.bbox
        weight = (box.x.center - fullBBox.x.start) / fullBBox.x.size
        image = (1 - weight) * gaussian(13, 1.2) + weight * gaussian(13, 1.8)
        subExposure.psf = (
            None
            if lost is not None and box.contains(lost)
            else KernelPointSpreadFunction.from_image(image, box)
        )
        return Struct(subExposure=subExposure)


class AlienMapper(ImageMapper):
    _DefaultName = "alien"

    def run(self, subExposure, expandedSubExposure, fullBBox, **kwargs):
        return Struct(
            subExposure=Exposure.from_arrays(np.zeros((3, 3)), variance=1.0, origin=(-9, 0))
        )


def exposure(rng, shape=(50, 47), *, psf=None, **kwargs):
    return Exposure.from_arrays(
        rng.normal(0, 2, shape).astype(np.float32), variance=4.0, psf=psf, origin=YX0, **kwargs
    )


def grid_config(mapper=AddMapper, **fields):
    config = ImageMapReduceConfig(scaleByFwhm=False, **fields)
    config.mapper.retarget(mapper)
    return config


def square(config, *, size, step=None, border=None):
    """Sizes that are the same in x and y."""
    config.cellSizeX = config.cellSizeY = size
    config.gridStepX = config.gridStepY = size if step is None else step
    if border is not None:
        config.borderSizeX = config.borderSizeY = border
    return config


def covered(task, whole):
    count = np.zeros(whole.shape, int)
    for cell in task.boxes0:
        assert whole.bbox.contains(cell)
        count[whole.bbox.slices_of(cell)] += 1
    return count


@pytest.mark.slow
@pytest.mark.parametrize("adjust", ["spacing", "size", "none"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (50, 47), (61, 100), (9, 130)])
def test_cells_cover_every_frame(adjust, shape):
    whole = Exposure.from_arrays(np.zeros(shape), variance=1.0, origin=YX0)
    for size in (1.0, 2.5, 10.0, 49.6, 64.0):
        for step in (1.0, 3.2, 9.0, 10.0, 21.4, 80.0):
            config = square(grid_config(adjustGridOption=adjust), size=size, step=step, border=3.0)
            task = ImageMapReduceTask(config=config)
            if adjust == "none" and int(step + 0.5) > int(size + 0.5):
                continue
            task._generateGrid(whole)
            assert covered(task, whole).min() >= 1, (size, step)
            sides = [{(b.y.size, b.x.size)[axis] for b in task.boxes0} for axis in (0, 1)]
            wanted = int(size + 0.5)
            for n, side in zip(shape, sides, strict=True):
                if adjust == "spacing":
                    assert side == {min(wanted, n)}
                elif adjust == "size":
                    assert len(side) == 1
                    assert side.pop() >= min(wanted, n)
                else:
                    assert max(side) == min(wanted, n)
            for cell, expanded in zip(task.boxes0, task.boxes1, strict=True):
                assert expanded == cell.grown(3).overlap(whole.bbox)


def test_what_gives_way_is_chosen(caplog):
    whole = Exposure.from_arrays(np.zeros((10, 100)), variance=1.0)
    starts, sizes = {}, {}
    for adjust in ("spacing", "size", "none"):
        config = square(grid_config(adjustGridOption=adjust), size=20.0, step=30.0)
        task = ImageMapReduceTask(config=config)
        task._generateGrid(whole)
        starts[adjust] = [cell.x.start for cell in task.boxes0]
        sizes[adjust] = [cell.x.size for cell in task.boxes0]
    assert starts == {"spacing": [0, 20, 40, 60, 80], "size": [0, 30, 60], "none": [0, 30, 60, 90]}
    assert sizes == {"spacing": [20] * 5, "size": [40] * 3, "none": [20, 20, 20, 10]}
    assert "leave gaps" in caplog.text


def test_lengths_are_multiples_of_the_fwhm(rng):
    psf = gaussian(21, 2.0)
    config = square(ImageMapReduceConfig(), size=3.0, border=1.5)
    config.mapper.retarget(AddMapper)
    task = ImageMapReduceTask(config=config)
    whole = exposure(rng, (90, 84), psf=psf)
    task.run(whole)
    fwhm = full_width_half_maximum(psf)
    assert {cell.shape for cell in task.boxes0} == {(round(3 * fwhm),) * 2}
    inner = next(b for b in task.boxes1 if b.y.start > 30 and b.x.start > -7)
    assert inner.y.size == round(3 * fwhm) + 2 * round(1.5 * fwhm)
    # The grid is that of the exposure at hand.
    task.run(exposure(rng, (5, 4), psf=psf))
    assert task.boxes0 == [Box.from_shape((5, 4), start=YX0)]
    with pytest.raises(ArgumentError, match=r"no PSF.*scaleByFwhm = False"):
        task.run(exposure(rng))


def test_cells_at_given_positions(rng):
    config = square(grid_config(cellCentroidsX=[0.0, 30.0], cellCentroidsY=[40.0, 79.0]), size=5.0)
    task = ImageMapReduceTask(config=config)
    whole = exposure(rng)
    result = task.run(whole).exposure
    assert task.boxes0 == [Box.between((38, 43), (-2, 3)), Box.between((77, 80), (28, 33))]
    inside = covered(task, whole) > 0
    np.testing.assert_allclose(result.data[inside], whole.data[inside] + 5)
    assert np.isnan(result.data[~inside]).all()
    np.testing.assert_array_equal(result.mask.get("INVALID_MAPREDUCE"), ~inside)
    config.cellCentroidsX = [0.0, 300.0]
    with pytest.raises(ArgumentError, match="x=300, y=79 lies outside"):
        ImageMapReduceTask(config=config).run(whole)


def test_contradicting_cells_are_rejected():
    for x, y in ((None, [1.0]), ([1.0, 2.0], [1.0])):
        with pytest.raises(pex_config.FieldValidationError, match="as many elements"):
            grid_config(cellCentroidsX=x, cellCentroidsY=y).validate()
    with pytest.raises(pex_config.FieldValidationError, match="names no cell"):
        grid_config(cellCentroidsX=[], cellCentroidsY=[]).validate()
    with pytest.raises(pex_config.FieldValidationError):
        ImageMapReduceConfig(gridStepX=0.0)


@pytest.mark.parametrize("operation", ["copy", "average"])
def test_a_mapper_may_change_what_it_gets(rng, operation):
    bad = rng.random((50, 47)) < 0.1
    whole = exposure(rng, mask={"BAD": bad})
    whole.data[20, 20] = np.nan
    for plane in (whole.data, whole.mask.bits, whole.variance):
        plane.flags.writeable = False
    config = square(grid_config(), size=10.0, step=7.0)
    config.reducer.reduceOperation = operation
    task = ImageMapReduceTask(config=config)
    result = task.run(whole).exposure
    # Cells overlap, yet every pixel got its 5 once.
    np.testing.assert_allclose(result.data, whole.data + 5, rtol=1e-6)
    np.testing.assert_array_equal(result.variance, whole.variance)
    np.testing.assert_array_equal(result.mask.get("BAD"), bad)
    assert result.mask.get("INVALID_MAPREDUCE").sum() == 1
    assert result.bbox == whole.bbox
    assert result.data.dtype == np.float32
    assert task.metadata["nCells"] == len(task.boxes0)
    assert task.metadata["varianceMeanBefore"] == task.metadata["varianceMeanAfter"] == 4


def test_a_mapper_may_return_anything(rng):
    whole = exposure(rng, (40, 40))
    config = square(grid_config(MeanMapper), size=20.0, border=2.0)
    config.reducer.reduceOperation = "none"
    task = ImageMapReduceTask(config=config)
    result = task.run(whole, offset=100.0)
    assert result.exposure is None
    means = [each.mean for each in result.result]
    quarters = [whole.data[i : i + 20, j : j + 20] for i in (0, 20) for j in (0, 20)]
    np.testing.assert_allclose(means, [quarter.mean() + 100 for quarter in quarters], rtol=1e-5)
    assert {each.reach for each in result.result} == {22 * 22}
    assert result.result[0].whole == whole.bbox
    config.reducer.reduceOperation = "average"
    with pytest.raises(ArgumentError, match=r"no subExposure, only mean, reach, whole.*'none'"):
        ImageMapReduceTask(config=config).run(whole)
    config.mapper.retarget(AlienMapper)
    with pytest.raises(ArgumentError, match="outside of the image"):
        ImageMapReduceTask(config=config).run(whole)
    with pytest.raises(ArgumentError, match=r"retarget config\.mapper"):
        ImageMapReduceTask()


def test_borders_hide_the_seams(rng):
    whole = exposure(rng)
    task = ImageMapReduceTask(config=square(grid_config(BlurMapper), size=12.0, border=3.0))
    result = task.run(masked_image(whole)).exposure
    expected = convolve(whole.data, gaussian(7, 1.2))
    np.testing.assert_allclose(result.data, expected, atol=1e-5)


def test_sub_images_are_returned_on_request(rng):
    whole = exposure(rng)
    config = square(grid_config(returnSubImages=True), size=20.0, border=4.0)
    task = ImageMapReduceTask(config=config)
    results = task.run(whole).result
    for cell, expanded, each in zip(task.boxes0, task.boxes1, results, strict=True):
        assert each.inputSubExposure.bbox == cell
        assert each.inputExpandedSubExposure.bbox == expanded
        np.testing.assert_array_equal(each.inputSubExposure.data, whole.cutout(cell).data)


def overlapping_parts():
    """Two sub-images that share the columns 2 and 3 of a frame of (1, 7)."""
    nan, no = np.nan, False
    parts = [
        Exposure.from_arrays(
            np.array([[1.0, nan, 2.0, 4.0]]), variance=np.array([[1.0, 1.0, 2.0, 4.0]]),
            mask={"BAD": np.array([[no, no, True, no]]), "CR": np.array([[True, no, no, no]])},
        ),
        Exposure.from_arrays(
            np.array([[6.0, 8.0, 9.0, nan]]), variance=np.array([[6.0, 8.0, 9.0, 1.0]]),
            mask={"BAD": np.array([[no, no, True, no]]), "MINE": np.array([[no, True, no, no]])},
            origin=(0, 2),
        ),
    ]  # fmt: skip
    whole = Exposure.from_arrays(np.zeros((1, 7)), variance=5.0)
    return [Struct(subExposure=part) for part in parts], whole


@pytest.mark.parametrize(
    ("operation", "image", "variance", "bad"),
    [
        # Column 2 is bad in the first, good in the second; column 4 is bad in the only one.
        ("average", [1, np.nan, 6, 6, 9, np.nan, np.nan], [1, 1, 6, 6, 9, 1, np.nan], [4]),
        ("copy", [1, np.nan, 6, 8, 9, np.nan, np.nan], [1, 1, 6, 8, 9, 1, np.nan], [4]),
        ("sum", [1, np.nan, 8, 12, 9, np.nan, np.nan], [1, 1, 8, 12, 9, 1, np.nan], [2, 4]),
    ],
)
def test_of_overlapping_values_the_good_ones_count(operation, image, variance, bad):
    results, whole = overlapping_parts()
    task = ImageReducer(config=ImageReducerConfig(reduceOperation=operation))
    for order in (results, results[::-1]):
        reduced = task.run(order, whole).exposure
        expected = np.array(image, dtype=float)
        levels = np.array(variance, dtype=float)
        mine = 3
        if operation == "copy" and order is not results:
            expected[3] = levels[3] = 4
            mine = None
        np.testing.assert_allclose(reduced.data[0], expected)
        np.testing.assert_allclose(reduced.variance[0], levels)
        planes = {name: np.flatnonzero(reduced.mask.get(name)[0]) for name in ("BAD", "CR")}
        assert planes["BAD"].tolist() == bad
        assert planes["CR"].tolist() == [0]
        assert np.flatnonzero(reduced.mask.get("MINE")[0]).tolist() == ([] if mine is None else [3])
        assert np.flatnonzero(reduced.mask.get("INVALID_MAPREDUCE")[0]).tolist() == [1, 5, 6]
    assert (whole.data == 0).all()


def test_infinite_pixels_do_not_warn():
    parts = [
        Struct(subExposure=Exposure.from_arrays(np.array([[sign * np.inf, 1.0]]), variance=1.0))
        for sign in (1, -1)
    ]
    whole = Exposure.from_arrays(np.zeros((1, 2)), variance=1.0)
    for operation in ("average", "sum", "copy"):
        config = ImageReducerConfig(reduceOperation=operation)
        reduced = ImageReducer(config=config).run(parts, whole).exposure
        assert not np.isfinite(reduced.data[0, 0])
        assert np.isfinite(reduced.data[0, 1])


@pytest.mark.parametrize("operation", ["average", "coaddPsf"])
def test_the_psf_follows_the_sub_images(rng, operation):
    whole = exposure(rng, (60, 90), psf=gaussian(13, 1.5))
    config = square(grid_config(), size=20.0)
    config.reducer.reduceOperation = operation
    assert ImageMapReduceTask(config=config).run(whole).exposure.psf is whole.psf
    config.mapper.retarget(PsfMapper)
    result = ImageMapReduceTask(config=config).run(whole).exposure
    for x in (0.0, 30.0, 77.0):
        weight = (x - YX0[1]) / 90
        expected = (1 - weight) * gaussian(13, 1.2) + weight * gaussian(13, 1.8)
        np.testing.assert_allclose(result.psf.at(x=x, y=50.0), expected, atol=1e-10)
    np.testing.assert_array_equal(result.data, whole.data)
    task = ImageMapReduceTask(config=config)
    assert task.run(whole, lost=Box.between((40, 41), (0, 1))).exposure.psf is None


def test_the_framework_is_made_of_real_tasks():
    config = square(grid_config(), size=12.0)
    config.mapper.value.amount = 7.0
    task = ImageMapReduceTask(config=config)
    assert isinstance(task, Task)
    assert isinstance(task.mapper, AddMapper)
    assert task.boxes0 is None
    assert set(task.getTaskDict()) >= {"ip_diffim_imageMapReduce"}
    assert "ip_diffim_imageMapReduce:mapper" in task.getFullMetadata().names()
    copy = pickle.loads(pickle.dumps(task))
    assert copy.config.compare(task.config)
    assert copy.mapper.config.amount == 7.0
    again = ImageMapReduceConfig()
    assert not again.compare(config)
    again.loadFromString(config.saveToString())
    assert again.compare(config)


# The decorrelation.

SHAPE = (640, 500)
BOX = Box.from_shape(SHAPE, start=YX0)
PSF = gaussian(25, 1.8)


def noise_pair(rng, kernel, *, science=25.0, template=16.0, shape=SHAPE):
    """Exposures of noise, variances given as numbers or planes, and their difference."""
    box = Box.from_shape(shape, start=YX0)
    images = [rng.normal(0, 1, shape) * np.sqrt(variance) for variance in (science, template)]
    images.append(images[0] - convolve_varying(images[1], *kernels.convolution_terms(kernel, box)))
    variances = (science, template, 1.0)
    return [
        Exposure.from_arrays(
            image.astype(np.float32), variance=np.broadcast_to(variance, shape).copy(), psf=PSF,
            origin=YX0,
        )
        for image, variance in zip(images, variances, strict=True)
    ]  # fmt: skip


def varying_kernel():
    """Narrow on the left, wide on the right."""
    left, right = gaussian(21, 0.6), gaussian(21, 2.4)
    images = [0.5 * (left + right), 0.5 * (right - left), np.zeros_like(left)]
    return kernels.term_kernel(np.stack(images), 1, BOX)


def spatial_task(*, size=14.0, **constant):
    config = DecorrelateALKernelSpatialConfig(spatiallyVarying=True, spatialMethod="mapReduce")
    config.decorrelateConfig.update(**constant)
    square(config.decorrelateMapReduceConfig, size=size)
    return DecorrelateALKernelSpatialTask(config=config)


def filtered_variance_ratio(white, columns):
    """Variance after filtering with the PSF, over that of white noise of the variance plane."""
    normal = white.data.astype(np.float64) / np.sqrt(white.variance)
    filtered = convolve(normal, PSF)[25:-25, columns]
    return float(filtered.var() / np.square(PSF).sum())


def test_cells_are_whiter_where_the_kernel_varies(rng):
    kernel = varying_kernel()
    pair = noise_pair(rng, kernel)
    task = spatial_task()
    varying = task.run(*pair, kernel).correctedExposure
    constant = task.run(*pair, kernel, spatiallyVarying=False).correctedExposure
    left, right = slice(25, 125), slice(-125, -25)
    # Both see the same noise: how the sides differ is free of most of its scatter.
    ratios = [
        [filtered_variance_ratio(white, side) for side in (left, right)]
        for white in (constant, varying)
    ]
    assert ratios[0][0] > 1.08
    assert ratios[0][1] < 0.95
    for ratio in ratios[1]:
        assert ratio == pytest.approx(1, abs=0.06)
    for side in (0, 1):
        assert abs(ratios[1][side] - 1) < 0.5 * abs(ratios[0][side] - 1)
    # In the middle they agree.
    middle = (slice(None), slice(240, 260))
    moved = np.abs(varying.data - constant.data)[middle]
    assert moved.std() < 0.02 * np.sqrt(41)
    assert varying.kernel is kernel
    # The wider the kernel, the more the correction sharpens the PSF.
    peaks = [varying.psf.at(x=x, y=300.0).max() for x in (20.0, 250.0, 470.0)]
    assert 1.05 * peaks[0] < peaks[1] < peaks[2] / 1.05


def test_cells_are_whiter_where_the_noise_varies(rng):
    """Half of the template has an eighth of the other's noise."""
    kernel = kernels.constant_kernel(gaussian(21, 2.0), BOX)
    template = np.full(SHAPE, 4.0)
    template[:, 250:] = 100.0
    pair = noise_pair(rng, kernel, template=template)
    task = spatial_task(size=20.0)
    varying = task.run(*pair, kernel).correctedExposure
    constant = task.run(*pair, kernel, spatiallyVarying=False).correctedExposure
    for side in (slice(25, 200), slice(-200, -25)):
        assert filtered_variance_ratio(varying, side) == pytest.approx(1, abs=0.07)
        assert abs(filtered_variance_ratio(constant, side) - 1) > 0.2


@pytest.mark.parametrize("mode", ["template", "science", "full variance", "documented"])
def test_cells_agree_with_the_task_where_nothing_varies(rng, mode):
    shape = (203, 190)
    box = Box.from_shape(shape, start=YX0)
    kernel = kernels.constant_kernel(moffat_kernel(), box)
    pair = noise_pair(rng, kernel, shape=shape)
    pair[0].data[60, 70] = np.nan
    arguments, constant = {}, {}
    if mode == "science":
        arguments = {"templateMatched": False, "scaleFactor": 0.9}
        pair = [pair[1], pair[0], pair[2]]
    elif mode == "full variance":
        constant = {"completeVarPlanePropagation": True}
    elif mode == "documented":
        constant = {"transform": "documented"}
    task = spatial_task(**constant)
    by_cells = task.run(*pair, kernel, **arguments)
    whole = DecorrelateALKernelTask(config=task.config.decorrelateConfig).run(
        *pair, kernel, **arguments
    )
    assert task.metadata["nCells"] > 3
    ours, theirs = by_cells.correctedExposure, whole.correctedExposure
    sigma = np.sqrt(theirs.variance[100, 100])
    good = ~theirs.mask.get("CONTAMINATED") & ~ours.mask.get("CONTAMINATED")
    assert good.mean() > 0.75
    moved = np.abs(ours.data - theirs.data)
    assert np.nanmax(moved[good]) < SAME * sigma
    np.testing.assert_allclose(ours.variance[good], theirs.variance[good], rtol=1e-3)
    np.testing.assert_array_equal(np.isnan(ours.data), np.isnan(theirs.data))
    # Cells' edges contaminate nothing but the frame's.
    assert not (ours.mask.get("CONTAMINATED") & ~theirs.mask.get("CONTAMINATED")).any()
    np.testing.assert_allclose(ours.psf.at(x=50, y=90), theirs.psf.at(x=50, y=90), atol=1e-5)
    for name in ("kernel_sum", "science_variance", "template_variance"):
        expected = getattr(whole.decorrelation, name)
        assert getattr(by_cells.decorrelation, name) == pytest.approx(expected)
    assert by_cells.decorrelation.options == whole.decorrelation.options
    np.testing.assert_allclose(
        by_cells.decorrelation.variance_weights, whole.decorrelation.variance_weights, rtol=1e-3
    )


def test_one_cell_is_the_task(rng):
    kernel = varying_kernel()
    pair = [each.cutout(Box.between((40, 141), (0, 95))) for each in noise_pair(rng, kernel)]
    ours = spatial_task(size=400.0).run(*pair, kernel).correctedExposure
    theirs = DecorrelateALKernelTask().run(*pair, kernel).correctedExposure
    np.testing.assert_array_equal(ours.data, theirs.data)
    np.testing.assert_array_equal(ours.variance, theirs.variance)
    np.testing.assert_array_equal(ours.mask.get("CONTAMINATED"), theirs.mask.get("CONTAMINATED"))


@pytest.mark.parametrize("score_filter", ["documented", "compact"])
def test_scores_by_cells(rng, score_filter):
    shape = (220, 210)
    box = Box.from_shape(shape, start=YX0)
    # Stamps that hold all of the PSF, and of the kernel.
    psf, image = gaussian(41, 2.0), gaussian(41, 2.2)
    kernel = kernels.constant_kernel(image, box)
    science, template = (exposure(rng, shape, psf=psf) for _ in range(2))
    score = science.replaced(data=convolve(science.data, psf) - convolve(template.data, image))
    score.psf = KernelPointSpreadFunction.from_image(gaussian(41, 2 * np.sqrt(2)), box)
    task = spatial_task(scoreFilter=score_filter)
    arguments = dict(preConvMode=True)
    ours = task.run(science, template, score, kernel, **arguments)
    theirs = task.run(science, template, score, kernel, spatiallyVarying=False, **arguments)
    inner = (slice(60, -60), slice(60, -60))
    sigma = np.sqrt(theirs.correctedExposure.variance[100, 100])
    moved = ours.correctedExposure.data - theirs.correctedExposure.data
    assert np.abs(moved[inner]).max() < 0.01 * sigma
    np.testing.assert_allclose(
        ours.decorrelation.response(box), theirs.decorrelation.response(box),
        rtol=1e-4,
    )  # fmt: skip
    given = task.run(science, template, score, kernel, preConvKernel=psf, **arguments)
    again = task.run(
        science, template, score, kernel,
        preConvKernel=KernelPointSpreadFunction.from_image(psf, box), **arguments,
    )  # fmt: skip
    for each in (given, again):
        np.testing.assert_allclose(
            each.correctedExposure.data, ours.correctedExposure.data, atol=1e-5
        )
    with pytest.raises(ValueError, match="preConvKernel is allowed only"):
        task.run(science, template, score, kernel, preConvKernel=psf)


@pytest.fixture
def small(rng):
    """A pair of 3 x 3 cells, its difference and kernel."""
    shape = (99, 102)
    kernel = kernels.constant_kernel(gaussian(9, 1.4), Box.from_shape(shape, start=YX0))
    return [*noise_pair(rng, kernel, shape=shape), kernel]


def small_task(**fields):
    config = DecorrelateALKernelSpatialConfig(spatiallyVarying=True, spatialMethod="mapReduce")
    config.update(**fields)
    grid = config.decorrelateMapReduceConfig
    grid.scaleByFwhm = False
    square(grid, size=34.0, border=10.0)
    return DecorrelateALKernelSpatialTask(config=config)


def test_cells_without_data_do_not_stop_the_others(small, caplog):
    _, template, difference, _ = small
    for each in (template, difference):
        each.data[:, :60] = np.nan
    template.variance[:, :60] = np.nan
    task = small_task()
    result = task.run(*small)
    corrected = result.correctedExposure
    assert np.isnan(corrected.data[:, :60]).all()
    assert np.isfinite(corrected.data[:, 60:]).all()
    assert corrected.mask.get("CONTAMINATED")[:, :60].all()
    assert not corrected.mask.get("CONTAMINATED")[20:80, 70:90].any()
    assert corrected.mask.get("INVALID_MAPREDUCE")[:, :60].all()
    assert task.metadata["nCells"] == 9
    assert task.metadata["nCellsLeftAlone"] == 3
    assert "3 of 9 cells" in caplog.text
    # The whole frame is the documented task's concern.
    template.data[:] = np.nan
    unchanged = task.run(*small)
    assert unchanged.decorrelation is None
    np.testing.assert_array_equal(unchanged.correctedExposure.data, difference.data)
    template.data[:] = 0
    template.variance[:] = np.nan
    with pytest.raises(UnusableExposureError, match="no usable pixel"):
        task.run(*small)


def test_a_cell_inside_of_a_source_has_its_own_noise(small):
    science, template, difference, kernel = small
    detected = np.zeros(science.shape, bool)
    detected[:, 55:] = True
    science.variance[detected] = 100
    masked = [
        Exposure.from_arrays(
            each.data, variance=each.variance, mask={"DETECTED": detected}, origin=YX0
        )
        for each in (science, template)
    ]
    results = DecorrelateALKernelMapReduceTask(
        config=square(DecorrelateALKernelMapReduceConfig(scaleByFwhm=False), size=34.0, border=0.0)
    ).run(difference, science=masked[0], template=masked[1], psfMatchingKernel=kernel)
    # With borders of a kernel's stamp, the cells on the right have masked pixels only.
    variances = [each.decorrelation.science_variance for each in results.result]
    assert variances == [25, 25, 100] * 3
    given = small_task().run(*small, svar=49.0, tvar=9.0).decorrelation
    assert (given.science_variance, given.template_variance) == (49, 9)


def test_any_kernel_and_its_names(small):
    science, template, difference, kernel = small
    expected = small_task().run(*small).correctedExposure.data
    image = kernel.at(x=0, y=50)
    psf = KernelPointSpreadFunction.from_image(image, difference.bbox)
    stamp = lsst.images.Image(image, bbox=lsst_box(Box.from_shape((9, 9), start=(-4, -4))))
    for other in (image, psf, stamp):
        result = small_task().run(science, template, difference, other).correctedExposure
        np.testing.assert_allclose(result.data, expected, atol=1e-5)
        np.testing.assert_allclose(result.kernel.at(x=5, y=50), image, atol=1e-12)
    difference.kernel = kernel
    carried = small_task().run(science, template, difference, None).correctedExposure
    np.testing.assert_array_equal(carried.data, expected)
    config = square(DecorrelateALKernelMapReduceConfig(scaleByFwhm=False), size=34.0, border=10.0)
    task = DecorrelateALKernelMapReduceTask(config=config)
    for names in (
        {"science": science, "template": template, "psfMatchingKernel": kernel},
        {
            "scienceExposure": science,
            "templateExposure": template,
            "alTaskResult": Struct(psfMatchingKernel=kernel),
        },
    ):
        reduced = task.run(difference, **names).exposure
        np.testing.assert_array_equal(reduced.data, expected)
    with pytest.raises(ArgumentError, match="No science exposure"):
        task.run(difference, template=template, psfMatchingKernel=kernel)
    # ImageMapReduceTask does without what this one knows of kernels.
    plain = square(grid_config(DecorrelateALKernelMapper), size=34.0, border=10.0)
    reduced = ImageMapReduceTask(config=plain).run(
        difference, science=science, template=template, psfMatchingKernel=kernel
    )
    assert isinstance(reduced.exposure, Exposure)


def test_borders_hold_the_kernel_and_units_come_from_any_psf(small):
    science, template, difference, kernel = small
    difference.psf = None
    task = DecorrelateALKernelMapReduceTask()
    task.run(difference, science=science, template=template, psfMatchingKernel=kernel)
    config = square(DecorrelateALKernelMapReduceConfig(), size=6.0, border=0.0)
    task = DecorrelateALKernelMapReduceTask(config=config)
    result = task.run(difference, science=science, template=template, psfMatchingKernel=kernel)
    fwhm = full_width_half_maximum(PSF)
    assert {cell.shape for cell in task.boxes0} == {(round(6 * fwhm),) * 2}
    assert task.boxes1[0].shape == (round(6 * fwhm) + 9,) * 2
    assert result.exposure.psf is None
    science.psf = template.psf = None
    with pytest.raises(ArgumentError, match="no PSF"):
        task.run(difference, science=science, template=template, psfMatchingKernel=kernel)


def test_inputs_stay_and_messages_come_once(small, caplog):
    for each in small[:3]:
        for plane in (each.data, each.mask.bits, each.variance):
            plane.flags.writeable = False
    psf = small[2].psf
    task = small_task()
    result = task.run(*small, svar=1e-9, tvar=1.0)
    assert small[2].psf is psf
    assert caplog.text.count("amplifies rounding errors") == 1
    task.run(*small, svar=1e-9, tvar=1.0)
    assert caplog.text.count("amplifies rounding errors") == 2
    assert result.correctedExposure.header is not small[2].header


def test_the_default_is_the_documented_task(small):
    task = DecorrelateALKernelSpatialTask()
    assert task.config.spatiallyVarying is False
    ours = task.run(*small)
    theirs = DecorrelateALKernelTask().run(*small)
    np.testing.assert_array_equal(ours.correctedExposure.data, theirs.correctedExposure.data)
    shifted = task.run(*small, xcen=3.0, ycen=44.0).decorrelation
    assert (shifted.x, shifted.y) == (3, 44)
    assert task.computeVarianceMean(small[0]) == 25
    assert task.config.spatialMethod == "smooth"


def test_contradictions_are_value_errors(small):
    science, template, difference, kernel = small
    run = small_task().run
    with pytest.raises(ValueError, match=r"xcen = 3\.0 asks .* spatiallyVarying = False"):
        run(*small, xcen=3.0)
    with pytest.raises(ValueError, match="no meaning"):
        run(*small, preConvMode=True, templateMatched=False)
    with pytest.raises(ValueError, match="must share one grid"):
        run(science, template.cutout(Box.between((40, 90), (0, 60))), difference, kernel)
    with pytest.raises(ValueError, match="No matching kernel"):
        run(science, template, difference, None)


def test_configurations_of_the_spatial_task():
    config = DecorrelateALKernelSpatialConfig(spatiallyVarying=True, spatialMethod="mapReduce")
    config.decorrelateConfig.completeVarPlanePropagation = True
    config.decorrelateConfig.ignoreMaskPlanes = ["BAD"]
    config.decorrelateMapReduceConfig.cellSizeX = 12.0
    config.validate()
    task = DecorrelateALKernelSpatialTask(config=config)
    # Both ways of decorrelating follow one configuration.
    assert task.mapReduce.mapper.config.completeVarPlanePropagation is True
    assert list(task.mapReduce.mapper.config.ignoreMaskPlanes) == ["BAD"]
    assert task.getFullName() == "ip_diffim_decorrelateALKernelSpatial"
    names = task.getFullMetadata().names()
    assert "ip_diffim_decorrelateALKernelSpatial:mapReduce:mapper" in names
    assert "ip_diffim_decorrelateALKernelSpatial:decorrelate" in names
    copy = pickle.loads(pickle.dumps(task))
    assert copy.config.compare(config)
    again = DecorrelateALKernelSpatialConfig()
    again.loadFromString(config.saveToString())
    assert again.compare(config)
    config.decorrelateMapReduceConfig.mapper.value.transform = "documented"
    with pytest.raises(pex_config.FieldValidationError, match="contradicts decorrelateConfig"):
        config.validate()
    config.decorrelateConfig.transform = "documented"
    config.validate()
    config.decorrelateMapReduceConfig.reducer.value.reduceOperation = "sum"
    with pytest.raises(pex_config.FieldValidationError, match="makes no difference image"):
        config.validate()
