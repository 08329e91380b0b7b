"""Differences of HOTPANTS.

Claims: from kernel and inputs HOTPANTS' own convolved image, sigma image and difference come out
again at every pixel that is tried, block by block, in all samples.  For all directions and
normalizations, with one region or several, the difference is brought to the science image's level
and is white after decorrelation, in every region.  The PSF-filtered variance ratio of its DECam
difference falls from 2.5 to 1 within its sampling error.  Its mask bits and noise image are used,
from layers or from the files beside it.  What contradicts itself, or does not belong to the
images, is refused.
Samples (HOTPANTS 5.1.11) in ../shared/data/hotpants; skipped without.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from astropy.io import fits

from hotpants_files import Run, coefficients
from scenes import SHARED
from whitediff import Exposure
from whitediff.decorrelation.exposures import DecorrelationOptions
from whitediff.decorrelation.regions import Region, decorrelate_regions
from whitediff.errors import ArgumentError, DataError, FileFormatError
from whitediff.exposures.fields import PiecewiseField
from whitediff.formats import (
    check_reproduced,
    read_difference,
    read_exposure,
    read_kernel,
    write_exposure,
)
from whitediff.formats.hotpants.command import Command
from whitediff.formats.hotpants.read import read_solution
from whitediff.reading import ReadingOptions

SAMPLES = SHARED / "data" / "hotpants"
NAMES = (
    "decam/constant", "decam/linear", "decam/science_convolved", "regions/four_regions",
)  # fmt: skip
SINGLE = 1e-6
"""Of a sum's terms: what HOTPANTS' pixels lose to single precision, with room."""

needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no samples in {SAMPLES}")


def sample(name):
    folder = SAMPLES / name.split("/")[0]
    solution = read_solution(SAMPLES / f"{name}.difference.fits")
    images = {
        role: fits.getdata(folder / f"{role}.fits").astype(float)
        for role in ("science", "template")
    }
    return folder, solution, images


def random_pixels(rng, solution, n=600):
    half, (ny, nx) = solution.kernel_width // 2, solution.shape
    return rng.integers(half, (nx - half, ny - half), (n, 2))


@needs_samples
@pytest.mark.parametrize("name", NAMES)
def test_its_convolved_image_comes_out_again(rng, name):
    _, solution, images = sample(name)
    theirs = fits.getdata(SAMPLES / f"{name}.convolved.fits").astype(float)
    half = solution.kernel_width // 2
    moved = 0.0
    for x, y in random_pixels(rng, solution):
        region = solution.region_at(x=x, y=y)
        part = images[region.convolved][y - half : y + half + 1, x - half : x + half + 1]
        products = part[::-1, ::-1] * solution.kernel_image(x=x, y=y)
        background = solution.background(x=x, y=y)
        ours = (products.sum() + background) * solution.normalized(region)
        allowed = SINGLE * (np.abs(products).sum() + abs(background))
        assert abs(ours - theirs[y, x]) < allowed
        if abs(theirs[y, x]) > 0.1 * np.abs(products).sum():
            assert ours == pytest.approx(theirs[y, x], rel=SINGLE)
            moved += 1
    assert moved > 50


@needs_samples
@pytest.mark.parametrize("name", ["decam/constant", "decam/linear"])
def test_its_sigma_image_comes_out_again(rng, name):
    folder, solution, _ = sample(name)
    theirs = fits.getdata(SAMPLES / f"{name}.noise.fits").astype(float)
    squares = {
        role: fits.getdata(folder / f"{role}_sigma.fits").astype(float) ** 2
        for role in ("science", "template")
    }
    half = solution.kernel_width // 2
    for x, y in random_pixels(rng, solution):
        if theirs[y, x] == 0:
            continue
        region = solution.region_at(x=x, y=y)
        other = "science" if region.convolved == "template" else "template"
        part = squares[region.convolved][y - half : y + half + 1, x - half : x + half + 1]
        total = squares[other][y, x]
        total += (part[::-1, ::-1] * solution.kernel_image(x=x, y=y) ** 2).sum()
        ours = np.sqrt(total) * solution.normalized(region)
        assert ours == pytest.approx(theirs[y, x], rel=SINGLE)


@needs_samples
@pytest.mark.parametrize("name", NAMES)
def test_its_difference_comes_out_again(name):
    folder = SAMPLES / name.split("/")[0]
    difference = read_difference(SAMPLES / f"{name}.difference.fits")
    images = [
        read_exposure(folder / f"{role}.fits", options=ReadingOptions(variance=1.0))
        for role in ("science", "template")
    ]
    assert check_reproduced(difference, *images) < SINGLE
    with pytest.raises(DataError, match=r"is not what its kernel makes of .*template.fits and"):
        check_reproduced(difference, *images[::-1])


@needs_samples
@pytest.mark.parametrize(("name", "before"), [("constant", 2.5), ("science_convolved", None)])
def test_a_decam_difference_becomes_white(run, tmp_path, name, before):
    folder = SAMPLES / "decam"
    paths = [folder / f"{part}.fits" for part in ("science", "template", f"{name}.difference")]
    out = tmp_path / "out.fits"
    code, _, messages = run("decorrelate", *paths, "--output", out)
    assert code == 0, messages
    assert "science.fits: its noise is that which HOTPANTS 5.1.11 was given" in messages
    code, _, messages = run(
        "check", out, "--sigma", 1.8, "--map", "none", "--json", tmp_path / "j", "--follow-paths"
    )
    assert code == 0, messages
    values = json.loads((tmp_path / "j").read_text())
    after = values["after"]
    assert after["pixels"] > 30000
    if before is not None:
        assert values["before"]["filtered_variance_ratio"] == pytest.approx(before, abs=0.05)
    deviation = after["filtered_variance_ratio"] - 1
    assert abs(deviation) < 2.5 * after["filtered_variance_ratio_error"]
    header = fits.getheader(out)
    assert header["WDSOFTW"] == "HOTPANTS 5.1.11"
    assert header["WDCONV"] == ("science" if name == "science_convolved" else "template")
    result = read_exposure(out)
    assert result.mask.get("NO_DATA").sum() > 9000
    assert np.isnan(result.data[0, 0])


@needs_samples
def test_a_kernel_that_varies_becomes_white_but_for_the_background(run, tmp_path):
    """The fit of this sample leaves a background of 4 counts, which no filter can whiten."""
    import scipy.ndimage

    from whitediff.diagnostics.measure import gaussian_filter, whiteness
    from whitediff.exposures import masks

    folder = SAMPLES / "decam"
    paths = [folder / f"{part}.fits" for part in ("science", "template", "linear.difference")]
    code, _, messages = run("decorrelate", *paths, "--output", tmp_path / "out.fits")
    assert code == 0, messages
    result = read_exposure(tmp_path / "out.fits")
    image, variance = result.data, result.variance
    planes = (*masks.DEFAULT_IGNORE_MASK_PLANES, masks.CONTAMINATED, masks.SOURCE)
    good = ~masks.flagged(result.mask, planes) & np.isfinite(image)
    weight = scipy.ndimage.gaussian_filter(good.astype(float), 12)
    smooth = scipy.ndimage.gaussian_filter(np.where(good, image, 0.0), 12)
    flat = image - (smooth / np.maximum(weight, 1e-3)).astype(image.dtype)
    measured = whiteness(flat, variance, good, gaussian_filter(1.8))
    deviation = measured.filtered_variance_ratio - 1
    assert abs(deviation) < 2.5 * measured.filtered_variance_ratio_error


SIGMAS = {"science": 3.0, "template": 2.0}
LIMITS = ((0, 74, 0, 69), (74, 149, 0, 69), (0, 74, 69, 139), (74, 149, 69, 139))


def regions_run(
    rng, directions, normalization, shape=(140, 150), sums=(1.3, 0.8, 1.1, 0.9), **kwargs
):
    """Four regions, as -nrx 2 -nry 2 lays them out."""
    images = {role: rng.normal(0, sigma, shape) for role, sigma in SIGMAS.items()}
    images = {role: image.astype(np.float32) for role, image in images.items()}
    command = "hotpants -inim science.fits -tmplim template.fits -nrx 2 -nry 2 -nsx 3 -nsy 3 -rss 8"
    # A stamp: min(150/2/3, 140/2/3) - 11 = 12, made odd 11; less than 17, so 17 + 11, made odd 27.
    regions = [
        (limits, direction, coefficients(rng, total, 65, **kwargs))
        for limits, direction, total in zip(LIMITS, directions, sums, strict=True)
    ]
    made = Run(
        images["science"], images["template"], regions, normalization=normalization, buffer=13,
        command=command,
    )  # fmt: skip
    assert made.n_coefficients == 65
    return images, made


def write_inputs(tmp_path, images):
    for role, image in images.items():
        fits.writeto(tmp_path / f"{role}.fits", image)
    return [tmp_path / f"{role}.fits" for role in ("science", "template")]


BOTH = ("template", "science", "science", "template")


@pytest.mark.parametrize("normalization", ["i", "t", "u"])
def test_levels_of_all_directions_and_normalizations(rng, tmp_path, normalization):
    # Nearly constant kernels: what varies with the result's pixel keeps flux on average only.
    images, made = regions_run(rng, BOTH, normalization, scale=1e-4)
    made.write(tmp_path / "difference.fits")
    difference = read_difference(tmp_path / "difference.fits")
    assert [side for _, side in difference.directions] == list(BOTH)
    assert difference.convolved is None
    exposures = [
        Exposure.from_arrays(images[role], variance=1.0) for role in ("science", "template")
    ]
    assert check_reproduced(difference, *exposures) < SINGLE
    # In every region, a source on the science image alone keeps its flux.
    science = images["science"].copy()
    for x0, x1, y0, y1 in LIMITS:
        science[(y0 + y1) // 2, (x0 + x1) // 2] += 1e4
    again = Run(
        science, images["template"], made.regions, normalization=normalization, buffer=13,
        command=made.command.partition(" -n ")[0],
    )  # fmt: skip
    again.write(tmp_path / "source.fits")
    source = read_difference(tmp_path / "source.fits").exposure.data
    excess = source - difference.exposure.data
    for x0, x1, y0, y1 in LIMITS:
        y, x = (y0 + y1) // 2, (x0 + x1) // 2
        flux = float(excess[y - 8 : y + 9, x - 8 : x + 9].sum())
        assert flux == pytest.approx(1e4, rel=1e-4)


def test_regions_are_whitened_one_by_one(rng):
    """Variance and covariance of the pixels of four differences of noise, region by region."""
    shape, sums, n = (140, 150), (1.3, 0.8, 1.1, 0.9), 4
    _, made = regions_run(rng, BOTH, "i", sums=sums)
    before, after, levels = [], [], []
    kernel = _kernel_of(made)
    for _ in range(n):
        images = {role: rng.normal(0, sigma, shape) for role, sigma in SIGMAS.items()}
        images = {role: image.astype(np.float32) for role, image in images.items()}
        made.images = {role: image.astype(float) for role, image in images.items()}
        difference = fast_difference(made)
        exposure = Exposure.from_arrays(difference.astype(np.float32), variance=1.0)
        exposure.kernel = kernel
        result = decorrelate_regions(
            Exposure.from_arrays(images["science"], variance=9.0),
            Exposure.from_arrays(images["template"], variance=4.0),
            exposure,
            [Region(_box(limits), side) for limits, side in zip(LIMITS, BOTH, strict=True)],
            sources=np.zeros(shape, bool),
            options=DecorrelationOptions(spatially_varying=True),
        )
        before.append(difference)
        after.append(result.exposure.data)
        levels.append(result.exposure.variance)
    for (x0, x1, y0, y1), side, total in zip(LIMITS, BOTH, sums, strict=True):
        # Away from the frame's edges and from the other regions.
        inner = np.s_[y0 + 16 : y1 - 15, x0 + 16 : x1 - 15]
        white = np.stack([image[inner] for image in after])
        level = np.stack([image[inner] for image in levels]).mean()
        expected = 9 + 4 * total**2 if side == "template" else 9 + 4 / total**2
        assert level == pytest.approx(expected, rel=1e-3)
        # Errors of a mean of so many squares, from independent pixels.
        error = np.sqrt(2 / white.size)
        assert white.var() / level == pytest.approx(1, abs=4 * error)
        rough = np.stack([image[inner] for image in before])
        for axis in (1, 2):
            for lag in (1, 2, 3):
                a = np.take(white, range(lag, white.shape[axis]), axis=axis)
                b = np.take(white, range(white.shape[axis] - lag), axis=axis)
                assert abs((a * b).mean()) / level < 5 / np.sqrt(a.size)
        assert abs(rough.var() / level - 1) > 6 * error


def _box(limits):
    from whitediff.exposures.boxes import Box

    x0, x1, y0, y1 = limits
    return Box.between((y0, y1 + 1), (x0, x1 + 1))


def _kernel_of(made):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        made.write(Path(folder) / "d.fits")
        return read_difference(Path(folder) / "d.fits").exposure.kernel


def fast_difference(made):
    """As `Run` has it, block by block with one FFT each, at the science image's level."""
    from scipy.signal import fftconvolve

    shape = made.images["science"].shape
    result = np.zeros(shape)
    for (x0, x1, y0, y1), direction, c in made.regions:
        bx0, by0 = max(0, x0 - made.buffer), max(0, y0 - made.buffer)
        nx = min(shape[1] - 1, x1 + made.buffer) - bx0 + 1
        ny = min(shape[0] - 1, y1 + made.buffer) - by0 + 1
        image = made.images[direction]
        # The solution is linear in the position: three convolutions make all blocks.
        flat = made.kernel(c, 0, 0)
        parts = [flat, made.kernel(c, 1, 0) - flat, made.kernel(c, 0, 1) - flat]
        maps = [fftconvolve(image, part, mode="same") for part in parts]
        y, x = np.mgrid[: shape[0], : shape[1]]
        at = [(p - made.half) // made.step * made.step + 2 * made.half for p in (x - bx0, y - by0)]
        u, v = (at[0] - nx / 2) / (nx / 2), (at[1] - ny / 2) / (ny / 2)
        total = maps[0] + u * maps[1] + v * maps[2]
        if direction == "template":
            value = made.images["science"] - total
        else:
            value = (total - made.images["template"]) / c[1]
        result[y0 : y1 + 1, x0 : x1 + 1] = value[y0 : y1 + 1, x0 : x1 + 1]
    return result


def test_the_command_takes_regions_of_both_directions(run, rng, tmp_path):
    images, made = regions_run(rng, BOTH, "u")
    paths = write_inputs(tmp_path, images)
    made.write(tmp_path / "difference.fits")
    out = tmp_path / "out.fits"
    arguments = (*paths, tmp_path / "difference.fits", "--output", out, "--science-variance", 9,
                 "--template-variance", 4)  # fmt: skip
    code, _, messages = run("decorrelate", *arguments)
    assert code == 0, messages
    header, result = fits.getheader(out), read_exposure(out)
    assert (header["WDCONV"], header["WDNREG"]) == ("mixed", 4)
    values = [(40, 30), (110, 30), (40, 110), (110, 110)]
    for (x, y), side, total in zip(values, BOTH, (1.3, 0.8, 1.1, 0.9), strict=True):
        expected = 9 + 4 * total**2 if side == "template" else 9 + 4 / total**2
        assert result.variance[y, x] == pytest.approx(expected, rel=1e-3)
        theirs = read_kernel(out, bounds=result.bbox).at(x=x, y=y)
        ours = read_difference(tmp_path / "difference.fits").exposure.kernel.at(x=x, y=y)
        np.testing.assert_allclose(theirs, ours, atol=1e-12)
    code, _, messages = run("decorrelate", *arguments, "--overwrite", "--x-center", 30)
    assert code == 1
    assert "its regions were convolved in different directions" in messages
    code, _, messages = run("decorrelate", *arguments, "--overwrite", "--convolved", "template")
    assert code == 1
    assert "leave out --convolved" in messages


def test_a_kernel_in_regions_survives_a_file(rng, tmp_path):
    _, made = regions_run(rng, ("template",) * 4, "i")
    made.write(tmp_path / "difference.fits")
    exposure = read_exposure(tmp_path / "difference.fits", options=ReadingOptions(variance=1.0))
    write_exposure(exposure, tmp_path / "out.fits")
    again = read_exposure(tmp_path / "out.fits").kernel
    assert isinstance(again.fields[0], PiecewiseField)
    for x, y in rng.uniform(0, 139, (20, 2)):
        np.testing.assert_allclose(
            again.at(x=x, y=y), exposure.kernel.at(x=x, y=y),
            atol=1e-12,
        )  # fmt: skip


def one_region(rng, shape=(60, 70), **options):
    images = {role: rng.normal(0, 3, shape).astype(np.float32) for role in SIGMAS}
    regions = [((0, shape[1] - 1, 0, shape[0] - 1), "template", coefficients(rng, 1.2, 65))]
    return images, Run(images["science"], images["template"], regions, **options)


@pytest.mark.parametrize("step", [None, 5, 17])
def test_blocks_of_any_size(rng, tmp_path, step):
    images, made = one_region(rng, step=step)
    made.write(tmp_path / "difference.fits")
    difference = read_difference(tmp_path / "difference.fits")
    exposures = [
        Exposure.from_arrays(images[role], variance=1.0) for role in ("science", "template")
    ]
    assert check_reproduced(difference, *exposures) < SINGLE
    # Over a block, the kernel of its pixels has the block's for its mean.
    solution = read_solution(tmp_path / "difference.fits")
    size = step or 11
    first = 5 + size
    pixels = [(x, y) for x in range(first, first + size) for y in range(first, first + size)]
    mean = np.mean([solution.kernel.at(x=x, y=y) for x, y in pixels], axis=0)
    np.testing.assert_allclose(mean, solution.kernel_image(x=first + 1, y=first + 1), atol=1e-12)


def test_the_kernel_in_a_file_of_its_own(rng, tmp_path):
    _, made = one_region(rng)
    made.write(tmp_path / "d.fits", kernel_path=tmp_path / "kernel.fits")
    wanted = made.kernel(made.regions[0][2], 0, 0)
    found = read_difference(tmp_path / "d.fits")
    (tmp_path / "other").mkdir()
    shutil.move(tmp_path / "kernel.fits", tmp_path / "other" / "k.fits")
    with pytest.raises(FileFormatError, match=r"'kernel\.fits', which it names, is not beside it"):
        read_difference(tmp_path / "d.fits")
    named = read_difference(tmp_path / "d.fits", kernel=tmp_path / "other" / "k.fits")
    for difference in (found, named):
        image = difference.exposure.kernel.at(x=35, y=30)
        np.testing.assert_allclose(image, wanted, atol=1e-12)
    with pytest.raises(FileFormatError, match="is read with the difference that it belongs to"):
        read_kernel(tmp_path / "other" / "k.fits", bounds=named.exposure.bbox)


@pytest.mark.parametrize("where", ["layers", "beside"])
def test_noise_and_mask(rng, tmp_path, where):
    _, made = one_region(rng)
    shape = made.difference.shape
    sigma = rng.uniform(2, 4, shape).astype(np.float32)
    sigma[0, :] = 0
    bits = np.zeros(shape, np.uint16)
    bits[20, 30], bits[21, 31], bits[22, 32] = 0x8002, 0x40, 0x10
    noise = fits.ImageHDU(sigma)
    noise.header["OBJECT"] = "HOTPanTS Noise Image"
    mask = fits.PrimaryHDU(bits)
    mask.header["OBJECT"] = "Hotpants output Mask Image"
    made.command += " -omi mask.fits -oni noise.fits"
    mask.writeto(tmp_path / "mask.fits")
    if where == "beside":
        primary = fits.PrimaryHDU(sigma, noise.header)
        primary.writeto(tmp_path / "noise.fits")
    made.write(tmp_path / "d.fits", layers=[noise] if where == "layers" else [])
    exposure = read_exposure(tmp_path / "d.fits")
    np.testing.assert_allclose(exposure.variance[1:], sigma[1:] ** 2, rtol=1e-6)
    assert exposure.mask.get("BAD")[20, 30]
    assert exposure.mask.get("SAT")[20, 30]
    assert exposure.mask.get("OK_CONV")[21, 31]
    assert exposure.mask.get("BAD_CONV")[22, 32]
    assert exposure.mask.get("NO_DATA")[0].all()
    assert np.isnan(exposure.data[:5]).all()


def edited(tmp_path, made, *, card=None, value=None, table=False, edit=None):
    made.write(tmp_path / "whole.fits")
    with fits.open(tmp_path / "whole.fits") as hdus:
        if edit is not None:
            edit(hdus)
        elif value is None:
            del hdus[int(table)].header[card]
        else:
            hdus[int(table)].header[card] = value
        hdus.writeto(tmp_path / "edited.fits")
    return tmp_path / "edited.fits"


@pytest.mark.parametrize(
    ("card", "value", "table", "message"),
    [
        ("DIFFCMD", None, False, "lacks DIFFCMD"),
        ("PHOTNORM", "t", False, "PHOTNORM is 't', but the command had -n i"),
        ("PHOTNORM", 3, False, "PHOTNORM must be i, t or u"),
        ("KSUM00", "1.3000", False, "sums to 1.2, but KSUM00 is '1.3000'"),
        ("KSUM00", None, False, "KSUM00"),
        ("REGION00", "[1:99,1:60]", False, "REGION00"),
        ("REGION00", "[1:69,1:60]", False, "is none that the command's 1 x 1 regions"),
        ("CONVOL00", "BOTH", False, "CONVOL00"),
        ("NGAUSS", 3, True, "DGAUSS3 must be a whole number"),
        ("NGAUSS", 0, True, "NGAUSS = 0"),
        ("SGAUSS1", 0.9, True, "Gaussians"),
        ("SGAUSS1", "wide", True, "SGAUSS1 must be a number"),
        ("DGAUSS2", 3, True, "Gaussians"),
        ("FWKERN", 13, True, "the table's r is 6, but the command's 5"),
        ("FWKERN", 10, True, "FWKERN = 10"),
        ("CKORDER", 2, True, "the table's ko is 2, but the command's 1"),
        ("BGORDER", 1, True, "the table's bgo is 1, but the command's 0"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(rng, tmp_path, card, value, table, message):
    _, made = one_region(rng)
    path = edited(tmp_path, made, card=card, value=value, table=table)
    with pytest.raises(FileFormatError, match=message) as error:
        read_difference(path)
    assert "edited.fits" in str(error.value)


def test_a_basis_of_images_is_refused(rng, tmp_path):
    _, made = one_region(rng)
    made.command += " -pca 2 a.fits b.fits"
    made.write(tmp_path / "pca.fits")
    with pytest.raises(FileFormatError, match="-pca"):
        read_difference(tmp_path / "pca.fits")


def test_a_kernel_of_other_images_is_refused(run, rng, tmp_path):
    images, made = one_region(rng, shape=(100, 110))
    paths = write_inputs(tmp_path, images | {"template": images["template"][::-1].copy()})
    made.write(tmp_path / "d.fits")
    out = tmp_path / "out.fits"
    code, _, messages = run("decorrelate", *paths, tmp_path / "d.fits", "--output", out)
    assert code == 1
    assert "d.fits: is not what its kernel makes of" in messages
    assert not out.exists()


def test_commands_in_all_their_forms():
    command = Command.parse(
        "hotpants -INIM a.fits -ng 2 4 0.8 2 1.6 -gd 1 50 2 60 -sconv -rkw REG 3 -n u -kcs 7 -il -3"
    )
    assert command.gaussians == ((4, 0.8), (2, 1.6))
    assert command.limits == (1, 50, 2, 60)
    assert (command.text("inim"), command.text("n"), command.number("kcs", 21)) == (
        "a.fits",
        "u",
        7,
    )
    assert command.options["rkw"] == ("REG", "3")
    assert command.number("ko", 2) == 2
    # The stamps of the sample: min(600/2/5, 700/2/5) - 21 = 39, which is odd.
    assert Command.parse("hotpants -nrx 2 -nry 2 -nsx 5 -nsy 5").buffer((700, 600), 21) == 19


def test_regions_need_regions():
    exposure = Exposure.from_arrays(np.zeros((20, 20)), variance=1.0)
    with pytest.raises(ArgumentError, match="needs at least one"):
        decorrelate_regions(exposure, exposure, exposure, [])
