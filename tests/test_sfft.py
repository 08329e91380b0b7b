"""Solutions and differences of SFFT.

Claims: kernels are those that SFFT's own reader realises, to 1e-10; the kernel in whitediff's
terms, that of the result's pixel, makes exactly the image that SFFT makes by multiplying the
source with its polynomials first; differences of both directions are brought to the science
image's level and whitened; what does not fit together is refused.
Samples (SFFT 1.7.3) in ../shared/data/sfft; skipped without.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.io import fits

from scenes import SHARED, direct_convolution
from whitediff import Exposure
from whitediff.errors import DataError, FileFormatError
from whitediff.exposures import kernels
from whitediff.formats import check_reproduced, read_difference, read_exposure, read_kernel
from whitediff.formats.sfft.read import read_solution
from whitediff.numerics.convolution import convolve_varying
from whitediff.reading import ReadingOptions

SAMPLES = SHARED / "data" / "sfft"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no samples in {SAMPLES}")


@needs_samples
def test_kernels_of_the_sample():
    solution = read_solution(SAMPLES / "linear.solution.fits")
    with np.load(SAMPLES / "linear.kernels.npz") as sample:
        for (x, y), kernel in zip(sample["xy_fits"], sample["kernels_xy"], strict=True):
            ours = solution.kernel_image(x=x - 1, y=y - 1)
            np.testing.assert_allclose(ours, kernel.T, rtol=0, atol=1e-10)


@needs_samples
def test_the_sample_comes_out_again():
    difference = read_difference(
        SAMPLES / "linear.difference.fits", kernel=SAMPLES / "linear.solution.fits"
    )
    images = [
        read_exposure(SAMPLES / f"{role}.fits", options=ReadingOptions(variance=1.0))
        for role in ("science", "template")
    ]
    assert difference.convolved == "template"
    # Single precision of its pixels.
    assert check_reproduced(difference, *images) < 1e-6
    with pytest.raises(DataError, match="is not what its kernel makes"):
        check_reproduced(difference, *images[::-1])


@needs_samples
def test_the_sample_becomes_white(run, tmp_path):
    paths = [SAMPLES / f"{name}.fits" for name in ("science", "template", "linear.difference")]
    out = tmp_path / "out.fits"
    code, _, messages = run(
        "decorrelate", *paths, SAMPLES / "linear.solution.fits", "--output", out
    )
    assert code == 0, messages
    code, _, messages = run(
        "check", out, "--sigma", 1.8, "--map", "none", "--json", tmp_path / "j", "--follow-paths"
    )
    assert code == 0, messages
    values = json.loads((tmp_path / "j").read_text())
    assert values["before"]["filtered_variance_ratio"] > 2.4
    after = values["after"]
    assert abs(after["filtered_variance_ratio"] - 1) < 2.5 * after["filtered_variance_ratio_error"]
    assert fits.getheader(out)["WDSOFTW"] == "SFFT"
    code, _, messages = run("decorrelate", *paths, "--output", tmp_path / "again.fits")
    assert code == 1
    assert "name the solution as fourth argument" in messages


SHAPE, SIDES, ORDER = (46, 53), (5, 7), 2
TERMS = [(i, j) for i in range(ORDER + 1) for j in range(ORDER + 1 - i)]


def kernel_terms(rng, total=1.2):
    """Coefficients (n, ky, kx) of true pixels for X^i Y^j; the sum varies too."""
    pixels = rng.normal(0, 0.01, (len(TERMS), *SIDES))
    pixels[0, 2, 3] += total
    return pixels


def write_solution(path, pixels, background, **changes):
    """In SFFT's basis: of all pixels but the middle one, one is subtracted there."""
    ny, nx = SHAPE
    ky, kx = SIDES
    own = pixels.copy()
    own[:, ky // 2, kx // 2] = pixels.sum(axis=(1, 2))
    values = (own.transpose(0, 2, 1) * ny * nx).ravel()
    header = fits.Header()
    header["N0"], header["N1"], header["DK"], header["DB"] = nx, ny, ORDER, 1
    header["L0"], header["L1"] = kx, ky
    header["FIJ"], header["FAB"], header["FPQ"] = len(TERMS), kx * ky, 3
    header["FIJAB"] = len(TERMS) * kx * ky
    for card, value in changes.items():
        if value is None:
            del header[card]
        else:
            header[card] = value
    fits.writeto(path, np.concatenate([values, background])[None], header, overwrite=True)


def scene(rng, direction="REF"):
    """Images, kernel and difference, by explicit sums over source pixels."""
    ny, nx = SHAPE
    y, x = np.mgrid[1 : ny + 1, 1 : nx + 1]
    images = {"science": rng.normal(0, 3, SHAPE), "template": rng.normal(0, 2, SHAPE)}
    pixels, background = kernel_terms(rng), np.array([5.0, 1.0, -2.0])
    role = "template" if direction == "REF" else "science"
    convolved = sum(
        direct_convolution(images[role] * (x / nx) ** i * (y / ny) ** j, part)
        for (i, j), part in zip(TERMS, pixels, strict=True)
    )
    convolved = convolved + background[0] + background[1] * y / ny + background[2] * x / nx
    other = images["science" if role == "template" else "template"]
    difference = other - convolved if role == "template" else convolved - other
    return images, pixels, background, difference


def write_difference(path, difference, direction):
    header = fits.Header()
    header["KERORDER"], header["BGORDER"], header["KERHW"] = ORDER, 1, SIDES[1] // 2
    if direction is not None:
        header["CONVD"] = direction
    fits.writeto(path, difference, header, overwrite=True)


def test_the_source_pixel_is_handled_exactly(rng, tmp_path):
    images, pixels, background, difference = scene(rng)
    write_solution(tmp_path / "s.fits", pixels, background)
    solution = read_solution(tmp_path / "s.fits")
    terms, weights = kernels.convolution_terms(solution.kernel, solution.box)
    convolved = convolve_varying(images["template"], terms, weights)
    y, x = np.mgrid[1 : SHAPE[0] + 1, 1 : SHAPE[1] + 1]
    made = images["science"] - convolved
    made -= 5 + y / SHAPE[0] - 2 * x / SHAPE[1]
    np.testing.assert_allclose(made, difference, atol=1e-11)
    # At a source, the kernel that spreads it.
    u, v = 31 / SHAPE[1], 21 / SHAPE[0]
    wanted = sum(u**i * v**j * part for (i, j), part in zip(TERMS, pixels, strict=True))
    np.testing.assert_allclose(solution.kernel_image(x=30, y=20), wanted, atol=1e-12)


@pytest.mark.parametrize("direction", ["REF", "SCI"])
def test_both_directions_end_at_the_science_level(rng, tmp_path, direction):
    images, pixels, background, difference = scene(rng, direction)
    write_solution(tmp_path / "s.fits", pixels, background)
    write_difference(tmp_path / "d.fits", difference, direction)
    found = read_difference(tmp_path / "d.fits", kernel=tmp_path / "s.fits")
    exposures = [
        Exposure.from_arrays(images[role], variance=1.0) for role in ("science", "template")
    ]
    assert found.convolved == ("template" if direction == "REF" else "science")
    assert check_reproduced(found, *exposures) < 1e-12
    if direction == "SCI":
        x, y = 30, 20
        total = found.exposure.kernel.at(x=x, y=y).sum()
        assert found.exposure.data[y, x] == pytest.approx(difference[y, x] / total)


def test_older_solutions_do_not_say_the_shape(rng, tmp_path):
    _, pixels, background, difference = scene(rng)
    write_solution(tmp_path / "s.fits", pixels, background, N0=None, N1=None)
    write_difference(tmp_path / "d.fits", difference, None)
    with pytest.raises(FileFormatError, match=r"does not say which image was convolved \(CONVD\)"):
        read_difference(tmp_path / "d.fits", kernel=tmp_path / "s.fits")
    found = read_difference(tmp_path / "d.fits", kernel=tmp_path / "s.fits", convolved="template")
    kernel = read_kernel(tmp_path / "s.fits", bounds=found.exposure.bbox)
    np.testing.assert_allclose(kernel.at(x=9, y=8), found.exposure.kernel.at(x=9, y=8))
    with pytest.raises(FileFormatError, match="does not say the shape"):
        read_solution(tmp_path / "s.fits")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DK": 1}, "do not fit together"),
        ({"DB": 2}, "do not fit together"),
        ({"L0": 5}, "do not fit together"),
        ({"FPQ": "3"}, "FPQ must be a whole number; got '3'"),
        ({"N0": 54}, "is a solution for 46 x 54 pixels, but the image has 46 x 53"),
        ({"L1": None}, "L1 must be a whole number; got None"),
    ],
)
def test_contradictions_are_refused(rng, tmp_path, changes, message):
    _, pixels, background, difference = scene(rng)
    write_solution(tmp_path / "s.fits", pixels, background, **changes)
    write_difference(tmp_path / "d.fits", difference, "REF")
    with pytest.raises(FileFormatError, match=message):
        read_difference(tmp_path / "d.fits", kernel=tmp_path / "s.fits")


@pytest.mark.parametrize(("card", "value"), [("KERORDER", 1), ("KERHW", 2), ("BGORDER", 0)])
def test_another_difference_is_refused(rng, tmp_path, card, value):
    _, pixels, background, difference = scene(rng)
    write_solution(tmp_path / "s.fits", pixels, background)
    write_difference(tmp_path / "d.fits", difference, "REF")
    fits.setval(tmp_path / "d.fits", card, value=value)
    with pytest.raises(FileFormatError, match=f"{card}.*is it the right file"):
        read_difference(tmp_path / "d.fits", kernel=tmp_path / "s.fits")
    fits.setval(tmp_path / "d.fits", "CONVD", value="BOTH")
