"""What was lost or changed on the way is told of.

Claims: every FITS file that whitediff writes has checksums that astropy finds right, and the list
of its parts; data of its own files that differ from their checksum are refused, headers told of,
those of others told of and read; a stripped file
serves for what does not need the part that it lost, with a warning; planes that a kind of file has
are missed; a difference of which some pixels are wrong is not what its kernel makes.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable

from hotpants_files import COMMAND, Run, coefficients
from scenes import gaussian, moffat_kernel
from test_damaged_files import SHAPE, rich_exposure
from whitediff import Exposure
from whitediff.errors import DataError, FileFormatError
from whitediff.exposures.boxes import Box
from whitediff.exposures.fields import ChebyshevField
from whitediff.exposures.kernels import constant_kernel
from whitediff.exposures.psf import KernelPointSpreadFunction
from whitediff.formats import (
    ccddata,
    check_reproduced,
    read_difference,
    read_exposure,
    read_solution,
    write_exposure,
    write_solution,
)
from whitediff.formats.blocks import survey
from whitediff.formats.catalogs import write_catalog
from whitediff.formats.describe import describe
from whitediff.formats.export import write_stamps
from whitediff.formats.finished import finish
from whitediff.formats.limits import Limits, within
from whitediff.reading import ReadingOptions
from whitediff.subtraction.solution import Solution

BOX = Box.from_shape(SHAPE)


@pytest.fixture
def exposure(rng):
    return rich_exposure(rng)


def solution():
    return Solution(
        kernel=constant_kernel(moffat_kernel(7), BOX),
        background=2.0,
        convolved="template",
        box=BOX,
        psf=KernelPointSpreadFunction(constant_kernel(gaussian(9, 1.5), BOX)),
    )


def check_sums(path):
    """Sums as astropy finds them, and the list of parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(path, checksum=True, disable_image_compression=True) as hdus:
            for hdu in hdus:
                assert {"CHECKSUM", "DATASUM"} <= set(hdu.header)
                _ = hdu.data
            return hdus[0].header["WDPARTS"].split(","), [hdu.name for hdu in hdus[1:]]


def test_every_output_has_sums_and_parts(run, exposure, tmp_path):
    outputs = [tmp_path / f"{name}.fits" for name in "abcdef"]
    write_exposure(exposure, outputs[0])
    write_exposure(exposure, outputs[1], compress=True, extras={"FLUX": exposure.data})
    write_solution(solution(), outputs[2])
    write_stamps(exposure.kernel, BOX, [(3, 4), (5, 6)], outputs[3])
    ccddata.write(exposure, outputs[4], uncertainty="sigma")
    write_catalog(QTable({"x": [1.0, 2.0]}), outputs[5])
    assert run("simulate", "--output", tmp_path / "sim", "--size", 300, "-q")[0] == 0
    outputs += sorted((tmp_path / "sim").glob("*.fits"))
    assert len(outputs) > 9
    for path in outputs:
        listed, there = check_sums(path)
        assert listed == there, path


def test_stale_sums_of_others_are_told_of_and_read(tmp_path, caplog, rng):
    image = rng.normal(0, 3, SHAPE).astype(np.float32)
    hdus = [fits.PrimaryHDU(image), fits.ImageHDU(image, name="MORE")]
    fits.HDUList(hdus).writeto(tmp_path / "a.fits", checksum=True)
    with fits.open(tmp_path / "a.fits") as whole:
        for hdu in whole:
            hdu.data = image[2:, 3:] + 1
            hdu.header["CUT"] = True
        # As programs do that cut an image out.
        whole.writeto(tmp_path / "cut.fits")
    np.testing.assert_array_equal(read_exposure(tmp_path / "cut.fits").data, image[2:, 3:] + 1)
    told = [text for text in caplog.messages if "differ from DATASUM" in text]
    assert len(told) == 1
    assert "the data of the primary HDU, MORE differ from DATASUM" in told[0]
    assert "its checksum" not in caplog.text


def test_headers_without_room_move_what_follows(rng, tmp_path):
    path = tmp_path / "a.fits"
    hdus = [fits.PrimaryHDU()]
    for number in range(28, 36):
        hdu = fits.ImageHDU(rng.normal(size=(30, number)), name=f"N{number}")
        while len(hdu.header) < number:
            hdu.header[f"KEY{len(hdu.header)}"] = 1.5
        hdus.append(hdu)
    fits.HDUList(hdus).writeto(path)
    before = path.stat().st_size
    with fits.open(path) as whole:
        planes = [hdu.data.copy() for hdu in whole[1:]]
        headers = [hdu.header.copy() for hdu in whole[1:]]
    finish(path)
    listed, there = check_sums(path)
    assert listed == there
    assert path.stat().st_size > before
    with fits.open(path) as hdus:
        for hdu, plane, header in zip(hdus[1:], planes, headers, strict=True):
            np.testing.assert_array_equal(hdu.data, plane)
            assert all(hdu.header[keyword] == header[keyword] for keyword in header)
    # Once more changes nothing but the sums' own dates, which it has none of.
    raw = path.read_bytes()
    finish(path)
    assert path.read_bytes() == raw


def test_changed_data_are_refused_and_headers_told_of(run, exposure, tmp_path, caplog):
    write_exposure(exposure, tmp_path / "a.fits")
    raw = (tmp_path / "a.fits").read_bytes()
    blocks = survey(tmp_path / "a.fits", sums=False).blocks
    for block in blocks[1:]:
        damaged = bytearray(raw)
        damaged[block.data_start + block.data_size // 2] ^= 4
        (tmp_path / "b.fits").write_bytes(damaged)
        with pytest.raises(FileFormatError, match=rf"b\.fits: damaged.*data of {block.name} diff"):
            read_exposure(tmp_path / "b.fits")
        # A part of the image does without.
        if block.name == "VARIANCE":
            read_exposure(tmp_path / "b.fits", box=Box.from_shape((5, 5)))
            with within(Limits(checksums=False)):
                read_exposure(tmp_path / "b.fits")
    image = blocks[1]
    assert raw.count(b" array data type", image.start, image.data_start) == 1
    place = raw.index(b" array data type", image.start)
    (tmp_path / "a.fits").write_bytes(raw[:place] + b" other" + raw[place + 6 :])
    caplog.clear()
    read_exposure(tmp_path / "a.fits")
    assert "a.fits: the header of IMAGE differs from its checksum: it was edited" in caplog.text
    code, _, messages = run("info", tmp_path / "b.fits")
    assert code == 1
    assert "--no-checksums reads it all the same" in messages
    assert run("info", tmp_path / "b.fits", "--no-checksums")[0] == 0


def without(path, target, *names):
    with fits.open(path) as hdus:
        fits.HDUList([hdu for hdu in hdus if hdu.name not in names]).writeto(target)
    return target


def test_lost_parts_are_told_of(exposure, tmp_path, caplog):
    write_exposure(exposure, tmp_path / "a.fits", provenance={"WDTASK": ("decorrelate", "by")})
    write_solution(solution(), tmp_path / "s.fits")
    read_exposure(tmp_path / "a.fits")
    assert "has lost" not in caplog.text
    for name in ("KERNEL", "PSF"):
        caplog.clear()
        path = without(tmp_path / "a.fits", tmp_path / f"{name}.fits", name)
        again = read_exposure(path)
        np.testing.assert_array_equal(again.data, exposure.data)
        assert f"{name}.fits: has lost {name}, which it was written with" in caplog.text
        # However often it was opened before.
        assert any(f"has lost {name}" in note for note in describe(path).notes)
    caplog.clear()
    path = without(tmp_path / "a.fits", tmp_path / "bare.fits", "MASK", "VARIANCE")
    with pytest.raises(FileFormatError, match="has no MASK, as files of its kind have"):
        read_exposure(path)
    assert "has lost MASK, VARIANCE" in caplog.text
    np.testing.assert_array_equal(
        read_exposure(f"{path}[IMAGE]", options=ReadingOptions(variance=1.0)).data, exposure.data
    )
    assert read_solution(tmp_path / "s.fits").psf is not None
    path = without(tmp_path / "s.fits", tmp_path / "lost.fits", "INPUT_PSF")
    with pytest.raises(FileFormatError, match=r"lost\.fits: has lost INPUT_PSF, .* needed here"):
        read_solution(path)


def test_planes_of_a_kind_are_missed(exposure, tmp_path, caplog):
    write_exposure(exposure, tmp_path / "a.fits", provenance={"WDTASK": ("decorrelate", "by")})
    fits.delval(tmp_path / "a.fits", "WDPARTS")
    path = without(tmp_path / "a.fits", tmp_path / "b.fits", "VARIANCE")
    caplog.set_level(logging.WARNING)
    with within(Limits(checksums=False)):
        read_exposure(path, options=ReadingOptions(variance=1.0))
    assert "b.fits: has no VARIANCE, as files of its kind have; is it whole?" in caplog.text


@pytest.mark.parametrize(
    ("fraction", "is_refused"), [(0.0, False), (0.01, False), (0.15, True), (1 / 3, True)]
)
def test_many_wrong_pixels_are_too_many(rng, tmp_path, fraction, is_refused):
    images = {
        role: rng.normal(0, 3, (60, 70)).astype(np.float32) for role in ("science", "template")
    }
    regions = [((0, 69, 0, 59), "template", coefficients(rng, 1.2, 65, 0.3))]
    Run(images["science"], images["template"], regions, command=COMMAND).write(tmp_path / "a.fits")
    found = read_difference(tmp_path / "a.fits", needs_variance=True)
    image = found.exposure.data.copy()
    image[rng.random(image.shape) < fraction] += 50
    wrong = dataclasses.replace(
        found, exposure=Exposure.from_arrays(image, variance=found.exposure.variance)
    )
    pair = [Exposure.from_arrays(images[role], variance=1.0) for role in images]
    if not is_refused:
        assert check_reproduced(wrong, *pair) is not None
        return
    with pytest.raises(DataError, match="not what its kernel makes of"):
        check_reproduced(wrong, *pair)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e30])
@pytest.mark.parametrize("part", ["KERNEL", "BACKGROUND"])
def test_numbers_that_are_none_are_told_of(tmp_path, part, value):
    curved = dataclasses.replace(solution(), background=ChebyshevField(BOX, np.eye(2)))
    write_solution(curved, tmp_path / "s.fits")
    with fits.open(tmp_path / "s.fits") as hdus:
        if part == "BACKGROUND" and np.isfinite(value):
            pytest.skip("may be any")
        hdus[part].data.flat[0] = value
        hdus.writeto(tmp_path / "wrong.fits", checksum=True)
    with pytest.raises(FileFormatError, match=rf"wrong\.fits: the (kernel|polynomial) in {part}"):
        read_solution(tmp_path / "wrong.fits")
