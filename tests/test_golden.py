"""Every reference case of the documented task, in both transforms.

The directory in the environment variable WHITEDIFF_GOLDEN (default: ../shared/golden/dev
beside the checkout) holds one .npz per case; without it these tests skip.

Claims: the documented transform reproduces each reference value to the tolerance that
an independent double-precision computation reaches; the fast transform moves no pixel
by more than 1e-3 of the noise.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whitediff.errors import WhitediffError
from whitediff.exposures import masks
from whitediff.exposures.boxes import Box
from whitediff.exposures.kernels import polynomial_kernel
from whitediff.exposures.model import Exposure
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.numerics import fourier
from whitediff.numerics.stats import clipped_mean
from whitediff.tasks import DecorrelateALKernelConfig, DecorrelateALKernelTask

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "golden" / "dev"
DIRECTORY = Path(os.environ.get("WHITEDIFF_GOLDEN", DEFAULT))
CASES = sorted(DIRECTORY.glob("*.npz"))

# Fractions of the largest absolute value; what the reference itself reproduces.
CORRECTION = VARIANCE = PSF = 2e-11
MEAN = 1e-14
IMAGE = 1e-13
IMAGE_FILLED_SINGLE = 1e-9  # the reference's fill value is a single-precision mean
IMAGE_NOISE_DOMINATED = 1e-4  # part of the correction is a ratio of rounding errors
FAST = 1e-3  # of the noise
PRECONVOLUTION_POWER = 1e-24  # below it, a score correction is not reproducible

pytestmark = pytest.mark.skipif(not CASES, reason=f"no reference cases in {DIRECTORY}")


class Case:
    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        self.metadata: dict[str, Any] = json.loads(str(self.arrays.pop("metadata")))

    def __getitem__(self, name: str) -> Any:
        return self.arrays[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.metadata.get(name, default)

    def shape(self, name: str = "freq_shape") -> Any:
        return tuple(int(n) for n in self[name])


def make_task(transform: str, **config: Any) -> DecorrelateALKernelTask:
    return DecorrelateALKernelTask(config=DecorrelateALKernelConfig(transform=transform, **config))


def assert_close(
    actual: Any, expected: Any, tolerance: float, *, rounding: Any = None, scale: float = 0.0
) -> None:
    """Equal non-finite values; others within a fraction of the scale and one rounding."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(actual), finite)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    if not finite.any():
        return
    scale = scale or float(np.abs(expected[finite]).max())
    allowed = np.full(finite.sum(), tolerance * scale)
    if rounding is not None:
        allowed += np.spacing(np.abs(expected[finite]).astype(rounding)).astype(float)
    error = np.abs(actual[finite] - expected[finite])
    assert (error <= allowed).all(), f"{(error / allowed).max():g} times the tolerance"


def assert_agree_where_finite(actual: Any, expected: Any, tolerance: float, scale: float) -> None:
    both = np.isfinite(actual) & np.isfinite(expected)
    if both.any():
        assert np.abs(actual[both] - expected[both]).max() <= tolerance * scale


def check_common_shape(case: Case, transform: str) -> None:
    for i in range(case.get("n_items")):
        shapes = [tuple(int(n) for n in shape) for shape in case[f"shapes_{i}"]]
        assert fourier.common_shape(*shapes) == case.shape(f"expected_{i}")
        if len(shapes[0]) == 2:
            task = make_task(transform)
            task.computeCommonShape(*shapes)
            assert task.freqSpaceShape == case.shape(f"expected_{i}")


def check_pad_center_origin(case: Case, transform: str) -> None:
    pad = make_task(transform).padCenterOriginArray
    for i in range(case.get("n_items")):
        dtype = case.get("dtypes", ["float64"] * (i + 1))[i]
        array = case[f"array_{i}"].astype(dtype)
        padded = pad(array, case.shape(f"freq_shape_{i}"))
        assert padded.dtype == array.dtype
        np.testing.assert_array_equal(padded, case[f"expected_padded_{i}"].astype(dtype))
        wrapped = case[f"wrapped_{i}"].astype(dtype)
        cropped = pad(wrapped, array.shape, useInverse=True)
        np.testing.assert_array_equal(cropped, case[f"expected_cropped_{i}"].astype(dtype))
        np.testing.assert_array_equal(pad(padded, array.shape, useInverse=True), array)


def check_diffim_correction(case: Case, transform: str) -> None:
    task = make_task(transform)
    task.computeCommonShape(*(tuple(int(n) for n in shape) for shape in case["shapes"]))
    assert task.freqSpaceShape == case.shape()
    for i, (svar, tvar) in enumerate(zip(case["svar"], case["tvar"], strict=True)):
        result = task.computeDiffimCorrection(case["kernel"], svar, tvar)
        assert result.corrft[0, 0] == pytest.approx(1, abs=1e-14)
        assert_close(result.corrft, case[f"expected_corrft_{i}"], CORRECTION)
        assert_close(result.cnft, case[f"expected_corrft_{i}"], CORRECTION)
        assert_close(result.crft, case[f"expected_crft_{i}"], CORRECTION)


def check_score_correction(case: Case, transform: str) -> None:
    task = make_task(transform)
    task.computeCommonShape(*(tuple(int(n) for n in shape) for shape in case["shapes"]))
    assert task.freqSpaceShape == case.shape()
    kernel = case["preconv_kernel"]
    padded = fourier.pad_center_origin(kernel / kernel.sum(), task.freqSpaceShape)
    reproducible = np.abs(np.fft.fft2(padded)) ** 2 > PRECONVOLUTION_POWER
    for i, (svar, tvar) in enumerate(zip(case["svar"], case["tvar"], strict=True)):
        result = task.computeScoreCorrection(case["kernel"], svar, tvar, kernel)
        for name in ("corrft", "cnft", "crft"):
            expected = case[f"expected_{name}_{i}"]
            scale = float(np.abs(expected).max())
            assert_close(
                getattr(result, name)[reproducible],
                expected[reproducible],
                CORRECTION,
                scale=scale,
            )


def check_estimate_variance_plane(case: Case, transform: str) -> None:
    dtype = case.get("dtype", "float64")
    for precision in {"float64", dtype}:
        first, second = (case[f"variance_{i}"].astype(precision) for i in (1, 2))
        result = make_task(transform).estimateVariancePlane(
            first, second, case["c1ft"], case["c2ft"]
        )
        assert result.dtype == precision
        rounding = None if precision == "float64" else result.dtype
        assert_close(result, case["expected"], VARIANCE, rounding=rounding)


def check_calculate_variance_plane(case: Case, transform: str) -> None:
    task = make_task(transform)
    task.freqSpaceShape = case.shape()
    dtype = case.get("dtype", "float64")
    planes = [case[name].astype(dtype) for name in ("variance_1", "variance_2")]
    before = [plane.copy() for plane in planes]
    means = float(case["mean_1"]), float(case["mean_2"])
    result = task.calculateVariancePlane(planes[0], planes[1], *means, case["c1ft"], case["c2ft"])
    documented = transform == "documented"
    assert_close(result, case["expected"], VARIANCE, rounding=None if documented else result.dtype)
    for plane, copy in zip(planes, before, strict=True):
        np.testing.assert_array_equal(plane, copy)


def check_corrected_image(case: Case, transform: str) -> None:
    task = make_task(transform)
    task.freqSpaceShape = case.shape()
    image = case["image"].astype(case.get("dtype", "float64"))
    before = image.copy()
    result = task.computeCorrectedImage(case["corrft"], image)
    expected = case["expected"]
    np.testing.assert_array_equal(image, before)
    finite = np.isfinite(image)
    np.testing.assert_array_equal(result[~finite], image[~finite])
    if transform == "documented":
        filled_single = image.dtype == np.float32 and not finite.all()
        tolerance = IMAGE_FILLED_SINGLE if filled_single else IMAGE if finite.all() else 1e-12
        scale = float(np.abs(expected[finite]).max())
    else:
        lower, upper = np.percentile(expected[finite], [25, 75])
        tolerance, scale = FAST, 0.7413 * float(upper - lower)
    if case.get("questionable"):
        assert_agree_where_finite(result, expected, tolerance, scale)
    else:
        rounding = None if transform == "documented" else image.dtype
        assert_close(result, expected, tolerance, scale=scale, rounding=rounding)


def check_corrected_psf(case: Case, transform: str) -> None:
    task = make_task(transform)
    task.freqSpaceShape = case.shape()
    psf = task.computeCorrectedDiffimPsf(case["corrft"], case["psf"])
    assert_close(psf.at(x=1, y=1), case["expected"], PSF)


def make_mask(values: Any, planes: dict[str, int]) -> masks.Mask:
    """Mask whose plane of each name is the case's integer bit."""
    names = [name for name, _ in sorted(planes.items(), key=lambda item: item[1])]
    return masks.make_mask(
        {name: (values >> planes[name]) & 1 == 1 for name in names}, values.shape
    )


def check_variance_mean(case: Case, transform: str) -> None:
    planes = case.get("mask_planes")
    task = make_task(transform, ignoreMaskPlanes=case.get("ignore_mask_planes"))
    for i in range(case.get("n_items")):
        dtype = case.get("items", [{}] * (i + 1))[i].get("dtype", "float64")
        variance = case[f"variance_{i}"].astype(dtype)
        mask = make_mask(case[f"mask_{i}"], planes)
        exposure = Exposure(np.zeros_like(variance), variance, mask)
        expected = float(case[f"expected_{i}"])
        assert task.computeVarianceMean(exposure) == pytest.approx(expected, rel=MEAN, nan_ok=True)
        good = (case[f"mask_{i}"] & case.get("ignore_bits")) == 0
        result = clipped_mean(variance, good=good)
        assert result.median == pytest.approx(float(case[f"median_{i}"]), rel=MEAN, nan_ok=True)
        assert result.inter_quartile_range == pytest.approx(
            float(case[f"iqr_{i}"]), rel=1e-6, abs=1e-12, nan_ok=True
        )
        if good.any() and np.isfinite(variance[good]).sum() > 1:
            assert result.counts == tuple(case[f"n_used_{i}"])
            scale = abs(result.mean) + abs(result.median)
            for name, values in (("center", result.centers), ("half_width", result.half_widths)):
                np.testing.assert_allclose(
                    values, case[f"{name}_{i}"], rtol=1e-6, atol=1e-6 * scale
                )


def make_exposure(case: Case, name: str, box: Box) -> Any:
    image = case[f"{name}_image"].astype(case.get("image_dtype", "float64"))
    variance = case[f"{name}_variance"].astype(case.get("variance_dtype", "float64"))
    average = case[f"{name}_psf_average_position_xy"]
    # The PSF's polynomials are in absolute coordinates, so its bounds only scale them.
    psf = KernelPointSpreadFunction(
        polynomial_kernel(case[f"{name}_psf_basis"], case[f"{name}_psf_coeffs"], box),
        average_position=(float(average[0]), float(average[1])),
    )
    mask = make_mask(case[f"{name}_mask"], case.get("mask_planes"))
    return Exposure(image, variance, mask, origin=box.start, psf=psf)


def has_reproducible_score(case: Case) -> bool:
    """Whether no frequency of a score correction is a ratio of rounding errors."""
    if not case.get("preconv_mode") or "preconv_image" not in case.arrays:
        return True
    padded = fourier.pad_center_origin(case["preconv_image"], case.shape())
    return bool((np.abs(np.fft.fft2(padded)) ** 2).min() > PRECONVOLUTION_POWER)


def check_run(case: Case, transform: str) -> None:
    shape = case["diffim_image"].shape
    x0, y0 = (int(n) for n in case["xy0"])
    box = Box.from_shape(shape, start=(y0, x0))
    science, template, difference = (
        make_exposure(case, name, box) for name in ("science", "template", "diffim")
    )
    inputs = (science, template, difference)
    copies = [exposure.copy() for exposure in inputs]
    config = {"completeVarPlanePropagation": case.get("complete_variance", False)}
    if case.get("ignore_mask_planes") is not None:
        config["ignoreMaskPlanes"] = case.get("ignore_mask_planes")
    task = make_task(transform, **config)
    kernel = polynomial_kernel(case["kernel_basis"], case["kernel_coeffs"], box)
    x, y = (float(v) for v in case["eval_position_xy"])
    assert_close(kernel.at(x=x, y=y), case["kernel_image"], CORRECTION)
    for name, exposure in zip(("science", "template", "diffim"), inputs, strict=True):
        assert_close(exposure.psf.at(x=x, y=y), case[f"{name}_psf_image"], PSF)
    arguments = {name: case.get(name) for name in ("xcen", "ycen", "svar", "tvar")}
    if case.get("preconv_kernel") == "explicit":
        arguments["preConvKernel"] = case["preconv_kernel"]

    def run() -> Exposure:
        return task.run(
            science,
            template,
            difference,
            kernel,
            templateMatched=case.get("template_matched", True),
            preConvMode=case.get("preconv_mode", False),
            **arguments,
        ).correctedExposure

    if case.get("expect_raises"):
        with pytest.raises((ValueError, RuntimeError)):
            run()
        return
    result = run()
    for exposure, before in zip(inputs, copies, strict=True):
        np.testing.assert_array_equal(exposure.data, before.data)
        np.testing.assert_array_equal(exposure.variance, before.variance)
        np.testing.assert_array_equal(exposure.mask.bits, before.mask.bits)
    assert result.bbox == box
    for name in difference.mask.names:
        if name == "CONTAMINATED":  # its bits stay, and others are added
            assert result.mask.get(name)[difference.mask.get(name)].all()
        else:
            np.testing.assert_array_equal(result.mask.get(name), difference.mask.get(name))
    if case.get("skipped"):
        np.testing.assert_array_equal(result.data, difference.data)
        np.testing.assert_array_equal(result.variance, difference.variance)
        return
    assert "CONTAMINATED" in result.mask.names
    assert result.data.dtype == difference.data.dtype

    assert result.psf is not None
    noise = case.get("noise_after")
    noise_dominated = case.get("noise_dominated") or not has_reproducible_score(case)
    expected_image, expected_variance = case["expected_image"], case["expected_variance"]
    if case.get("questionable"):
        assert_agree_where_finite(result.data, expected_image, FAST, noise or 1.0)
        return
    if transform == "documented":
        single = difference.data.dtype == np.float32
        tolerance = (
            IMAGE_NOISE_DOMINATED
            if noise_dominated
            else IMAGE
            if np.isfinite(expected_image).all()
            else IMAGE_FILLED_SINGLE
            if single
            else 1e-12
        )
        assert_close(result.data, expected_image, tolerance, rounding=result.data.dtype)
        variance_tolerance = IMAGE_NOISE_DOMINATED if noise_dominated else VARIANCE
        assert_close(
            result.variance,
            expected_variance,
            variance_tolerance,
            rounding=result.variance.dtype,
        )
        psf_tolerance = IMAGE_NOISE_DOMINATED if noise_dominated else PSF
        assert_close(result.psf.at(x=x, y=y), case["expected_psf"], psf_tolerance)
        assert task.freqSpaceShape == case.shape()
        if not noise_dominated:
            np.testing.assert_allclose(
                task.metadata.getArray("varianceWeights"), case["variance_weights"], rtol=1e-10
            )
        for key, name in (
            ("diffimVarianceMeanBefore", "diffim_variance_mean_before"),
            ("scienceVarianceMean", "science_variance_mean"),
            ("templateVarianceMean", "template_variance_mean"),
        ):
            assert task.metadata[key] == pytest.approx(float(case[name]), rel=MEAN, nan_ok=True)
        # Ours is the mean of the plane after its rounding to single precision.
        assert task.metadata["diffimVarianceMeanAfter"] == pytest.approx(
            float(case["diffim_variance_mean_after"]), rel=1e-6, nan_ok=True
        )
    else:
        assert_close(
            result.data,
            expected_image,
            FAST,
            scale=noise,
            rounding=result.data.dtype,
        )
        assert_close(
            result.variance,
            expected_variance,
            FAST,
            scale=noise**2,
            rounding=result.variance.dtype,
        )
        assert_close(result.psf.at(x=x, y=y), case["expected_psf"], FAST)


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


@pytest.mark.parametrize("transform", ["documented", "fast"])
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_reference_case(path: Path, transform: str) -> None:
    case = Case(path)
    try:
        CHECKS[case.get("function")](case, transform)
    except WhitediffError:
        # Where the reference's behaviour is questionable, ours may be the documented error.
        if not case.get("questionable"):
            raise
