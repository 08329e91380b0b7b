"""Kernels that do not belong to the difference that is decorrelated with them.

Claims: where the difference is what its kernel makes of the images, nothing is said, in any unit,
with a background of its own, with missing pixels, constant or varying, whichever image was
convolved; a scale of its own is found and undone; another direction, kernel or sum is refused, and
a difference the other way round is told of.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
from astropy.io import fits

from scenes import gaussian
from whitediff import Exposure
from whitediff.errors import DataError
from whitediff.exposures import kernels
from whitediff.formats import kernel_doubt, read_exposure, write_exposure

KERNEL = 1.25 * gaussian(15, 1.6)


def made(rng, *, convolved="template", unit=1.0, kernel=KERNEL):
    """Science image, template and difference."""
    images = [rng.normal(200, 15, (90, 110)), rng.normal(150, 12, (90, 110))]
    for x, y in rng.integers(5, 85, (12, 2)):
        for image in images:
            image[y - 4 : y + 5, x - 4 : x + 5] += 900 * gaussian(9, 1.5)
    which = convolved == "template"
    seen = scipy.signal.fftconvolve(images[which], kernel, mode="same")
    difference = images[0] - seen if which else (seen - images[1]) / kernel.sum()
    return [unit * image for image in (*images, difference)]


def exposures(science, template, difference, kernel=KERNEL):
    result = [Exposure.from_arrays(each, variance=1.0) for each in (science, template, difference)]
    result[2].kernel = kernels.constant_kernel(kernel, result[2].bbox)
    return result


def doubt(images, convolved="template", kernel=KERNEL):
    science, template, difference = exposures(*images, kernel)
    return kernel_doubt(difference, science, template, convolved)


@pytest.mark.parametrize("convolved", ["template", "science"])
@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e12])
def test_its_own_kernel_raises_no_doubt(rng, convolved, unit):
    science, template, difference = made(rng, convolved=convolved, unit=unit)
    x = np.arange(difference.shape[1])
    difference = difference + unit * (5.0 + 0.1 * x + 0.003 * x**2)
    science[40, 50], template[30:34, 20], difference[60] = np.nan, np.nan, np.nan
    assert doubt((science, template, difference), convolved) == (1, "")


@pytest.mark.parametrize("convolved", ["template", "science"])
@pytest.mark.parametrize("scale", [0.7, 1.25, 40.0])
def test_a_scale_of_its_own_is_found(rng, convolved, scale):
    science, template, difference = made(rng, convolved=convolved)
    found, said = doubt((science, template, scale * difference), convolved)
    assert found == pytest.approx(scale, rel=1e-5)
    assert said == ""


def test_a_kernel_that_varies_raises_no_doubt(rng):
    science, template, difference = exposures(*made(rng))
    basis = np.stack([KERNEL, gaussian(15, 2.4) - gaussian(15, 1.6)])
    coefficients = np.array([[1.0, 0, 0], [0.1, 0.3, -0.2]])
    difference.kernel = kernels.polynomial_kernel(basis, coefficients, difference.bbox)
    image = science.data.copy()
    for y in range(7, 83):
        for x in range(7, 103):
            kernel = difference.kernel.at(x=x, y=y)
            part = template.data[y - 7 : y + 8, x - 7 : x + 8]
            image[y, x] -= (kernel * part[::-1, ::-1]).sum()
    difference.data[:] = image
    assert kernel_doubt(difference, science, template, "template") == (1, "")


@pytest.mark.parametrize("convolved", ["template", "science"])
def test_what_does_not_belong_together_is_refused(rng, convolved):
    images = made(rng, convolved=convolved)
    other = "science" if convolved == "template" else "template"

    def refused(text, *case, kernel=KERNEL, convolved=convolved):
        with pytest.raises(DataError, match=text):
            doubt(*case, convolved, kernel)

    refused(f"give --convolved {convolved}", images, convolved=other)
    refused("not what this kernel makes", images, kernel=gaussian(15, 0.8))
    refused("not what this kernel makes", images, kernel=np.roll(KERNEL, 2, 1))
    refused("not what this kernel makes", (images[1], images[0], images[2]))
    refused("is 1.25 times what the sum", images, kernel=KERNEL / KERNEL.sum())


def test_what_is_little_off_is_told(rng):
    images = made(rng)
    assert "is 1.03 times what the sum" in doubt(images, kernel=KERNEL / 1.03)[1]
    assert "template minus science" in doubt((*images[:2], -images[2]))[1]


def test_the_command_refuses_it_and_writes_nothing(rng, tmp_path, run):
    science, template, difference = exposures(*made(rng))
    paths = [tmp_path / f"{name}.fits" for name in ("science", "template", "difference")]
    for exposure, path in zip((science, template, difference), paths, strict=True):
        write_exposure(exposure, path)
    fits.writeto(tmp_path / "kernel.fits", KERNEL / KERNEL.sum())
    out = tmp_path / "out.fits"
    code, _, said = run("decorrelate", *paths, "--output", out)
    assert code == 0, said
    out.unlink()
    code, _, said = run("decorrelate", *paths, tmp_path / "kernel.fits", "--output", out)
    assert code != 0
    assert not out.exists()
    assert "difference.fits: the convolved image's part in it is 1.25 times" in said


def test_the_command_brings_a_scaled_difference_to_its_level(rng, tmp_path, run):
    science, template, difference = exposures(*made(rng))
    results = []
    for scale in (1.0, 0.8):
        scaled = Exposure.from_arrays(scale * difference.data, variance=1.0)
        scaled.kernel = difference.kernel
        paths = [tmp_path / f"{name}{scale}.fits" for name in ("s", "t", "d", "out")]
        for exposure, path in zip((science, template, scaled), paths, strict=False):
            write_exposure(exposure, path)
        code, _, said = run("decorrelate", *paths[:3], "--output", paths[3])
        assert code == 0, said
        assert ("is on 0.8 times the level" in said) == (scale != 1)
        results.append(read_exposure(paths[3]))
    for plane in ("data", "variance"):
        first, second = (getattr(each, plane) for each in results)
        np.testing.assert_allclose(second, first, rtol=1e-4, atol=1e-3)
