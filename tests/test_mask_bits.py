"""What the bits of masks mean, and what counts as bad.

Claims: an instrument is told by the cards of its masks and images; each bit of its table lands in
its plane, alone and beside others; bits that only inform leave a pixel good; JWST's pixels whose
ramps were mended are good; codes are no bits; what nobody knows is bad; whoever names bits decides;
wrong masks and bits are one sentence with file, value and remedy.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from scenes import gaussian
from whitediff import Exposure
from whitediff.errors import ArgumentError, FileFormatError
from whitediff.exposures import masks
from whitediff.formats import read_exposure, write_exposure
from whitediff.formats.plain.bits import CONVENTIONS, recognised
from whitediff.reading import ReadingOptions

SHAPE = (40, 50)
TELLING = {
    "acs": {"TELESCOP": "HST", "INSTRUME": "ACS"},
    "wfc3-uvis": {"TELESCOP": "HST", "INSTRUME": "WFC3", "DETECTOR": "UVIS"},
    "wfc3-ir": {"TELESCOP": "HST", "INSTRUME": "WFC3", "DETECTOR": "IR"},
    "jwst": {"TELESCOP": "JWST", "INSTRUME": "NIRCAM"},
    "decam": {"INSTRUME": "DECam", "PLVER": "V5.2LS5"},
    "decam-bits": {"INSTRUME": "DECam", "PLVER": "V3.2.1", "DES_EXT": "MASK"},
    "des": {"INSTRUME": "DECam", "DES_EXT": "MASK"},
    "ztf": {"INSTRUME": "ZTF/MOSAIC"},
    "ps1": {"MSKNAM00": "DETECTOR"},
    "lsst": {"INSTRUME": "LSSTCam"},
    "lco": {"ORIGIN": "LCOGT"},
}
BAD_OF_SURVEYS = {"ztf": 6141, "ps1": 8575}
"""What the surveys themselves leave out: values of all bad bits together."""


def written(path, mask, cards=(), *, name="MASK", own=True, image_cards=()):
    """Image and its mask; returns the files of both."""
    image = np.random.default_rng(3).normal(100, 3, np.shape(mask)).astype(np.float32)
    header = fits.Header(list(dict(image_cards).items()))
    hdu = fits.ImageHDU(mask, name=name, header=fits.Header(list(dict(cards).items())))
    hdus = [fits.PrimaryHDU(image, header)]
    if own:
        hdus.append(hdu)
    else:
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path / "mask.fits")
    fits.HDUList(hdus).writeto(path / "image.fits")
    return path / "image.fits", str(path / "mask.fits")


def bad(exposure):
    return masks.flagged(exposure.mask, masks.UNTRUSTED_MASK_PLANES)


@pytest.mark.parametrize("name", TELLING)
def test_an_instrument_is_told_by_its_cards(name):
    header = fits.Header(list(TELLING[name].items()))
    found = recognised([fits.Header(), header])
    assert found is CONVENTIONS[name]
    # The mask's own header counts more than the image's.
    assert recognised([fits.Header([("INSTRUME", "ZTF/MOSAIC")]), header]) is CONVENTIONS["ztf"]


def test_nothing_tells_of_others():
    for cards in ({}, {"TELESCOP": "HST", "INSTRUME": "STIS"}, {"INSTRUME": "DECam"}, {"BIT00": 0}):
        assert recognised([fits.Header(list(cards.items()))]) is None
    ztf = fits.Header([("BIT00", 0, ""), ("BIT03", 3, "HIGH RESPONSIVITY")])
    assert recognised([ztf]) is CONVENTIONS["ztf"]


@pytest.mark.parametrize("name", BAD_OF_SURVEYS)
def test_bad_bits_are_those_of_the_survey(name):
    bits = [m.number for m in CONVENTIONS[name].meanings if m.plane is not None]
    assert sum(1 << bit for bit in bits) == BAD_OF_SURVEYS[name]


@pytest.mark.parametrize("name", [name for name in TELLING if not CONVENTIONS[name].is_coded])
@pytest.mark.parametrize("own", [True, False])
def test_each_bit_lands_in_its_plane(tmp_path, name, own):
    convention = CONVENTIONS[name]
    mask = np.zeros(SHAPE, np.int64)
    for column, meaning in enumerate(convention.meanings):
        mask[10:12, column] = 1 << meaning.number
        if meaning.only_with is not None:
            mask[20, column] = 1 << meaning.number | 1 << meaning.only_with
    path, other = written(tmp_path, mask, TELLING[name], own=own)
    exposure = read_exposure(path, options=ReadingOptions(mask=None if own else other))
    for column, meaning in enumerate(convention.meanings):
        found = {
            plane
            for plane in masks.UNTRUSTED_MASK_PLANES
            if masks.flagged(exposure.mask, [plane])[10:12, column].any()
        }
        assert found == ({meaning.plane} if meaning.plane and meaning.only_with is None else set())
        if meaning.plane is None:
            assert masks.flagged(exposure.mask, [meaning.name])[10:12, column].all()
        if meaning.only_with is not None:
            assert masks.flagged(exposure.mask, [meaning.plane])[20, column]
    assert not bad(exposure)[:, len(convention.meanings) :].any()


def _numbers(cell):
    found = set()
    for first, last in re.findall(r"(\d+)(?:–(\d+))?", cell):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def test_the_documented_table_is_this_one():
    text = (Path(__file__).parents[1] / "docs/formats.md").read_text(encoding="utf-8")
    _, _, table = text.partition("| told by | SAT |")
    rows = [line.split("|")[1:-1] for line in table.partition("\n\n")[0].splitlines()[2:]]
    kept = [convention for name, convention in CONVENTIONS.items() if name != "wfc3-uvis"]
    assert CONVENTIONS["acs"].meanings == CONVENTIONS["wfc3-uvis"].meanings
    for row, convention in zip(rows, kept, strict=True):
        for cell, plane in zip(row[1:5], ("SAT", "CR", "BAD", "NO_DATA"), strict=True):
            said = {m.number for m in convention.meanings if m.plane == plane}
            assert _numbers(cell) == said, (row[0], plane)
        starred = {int(number) for number in re.findall(r"(\d+)\*", "".join(row[1:5]))}
        assert starred == {m.number for m in convention.meanings if m.only_with is not None}
        for meaning in convention.meanings:
            is_told = f"{meaning.number} {meaning.name}" in row[5] or convention.name == "JWST"
            assert meaning.plane or is_told


def test_ramps_that_were_mended_are_good(tmp_path):
    mask = np.zeros(SHAPE, np.uint32)
    mask[5] = 4  # a jump, corrected
    mask[6] = 2  # some groups saturated
    mask[7] = 3  # all groups saturated
    mask[8] = 1
    path, _ = written(tmp_path, mask, name="DQ", image_cards=TELLING["jwst"])
    exposure = read_exposure(path)
    assert not bad(exposure)[[5, 6]].any()
    assert exposure.mask.get("SAT")[7].all()
    assert not exposure.mask.get("BAD")[7].any()
    assert exposure.mask.get("BAD")[8].all()


def test_codes_are_no_bits(tmp_path):
    mask = np.zeros(SHAPE, np.int16)
    # Code 3 is saturation, and no sum of 1 and 2; 7 a transient of several exposures.
    planes = {1: "BAD", 2: "NO_DATA", 3: "SAT", 4: "SAT", 5: "CR", 6: "BAD", 7: "CR", 99: "BAD"}
    for code in planes:
        mask[code % 40] = code
    path, other = written(tmp_path, mask, TELLING["decam"], own=False)
    exposure = read_exposure(path, options=ReadingOptions(mask=other))
    for code, plane in planes.items():
        for each in masks.UNTRUSTED_MASK_PLANES:
            assert masks.flagged(exposure.mask, [each])[code % 40].all() == (each == plane)
    few = read_exposure(path, options=ReadingOptions(mask=other, mask_bits="3-4"))
    assert set(np.flatnonzero(bad(few).any(axis=1))) == {3, 4}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.float32])
def test_what_nobody_knows_is_bad(tmp_path, dtype):
    mask = np.zeros(SHAPE, dtype)
    mask[3, 4], mask[7, 8] = 1, 64
    path, other = written(tmp_path, mask, own=False, name="SOMETHING")
    exposure = read_exposure(path, options=ReadingOptions(mask=other))
    np.testing.assert_array_equal(bad(exposure), mask != 0)
    if dtype is np.float32:
        mask[9, 9] = np.nan
        fits.writeto(tmp_path / "nan.fits", mask)
        exposure = read_exposure(path, options=ReadingOptions(mask=str(tmp_path / "nan.fits")))
        assert exposure.mask.get("NO_DATA")[9, 9]


def test_whoever_names_bits_decides(tmp_path):
    mask = np.zeros(SHAPE, np.int32)
    for bit in range(8):
        mask[bit] = 1 << bit

    def rows(exposure, *planes):
        return set(np.flatnonzero(masks.flagged(exposure.mask, planes).any(axis=1)))

    for cards, bits, expected in (
        ({}, "1,4-6", {1, 4, 5, 6}),
        ({}, (2,), {2}),
        (TELLING["ztf"], "1 4-6", {1, 4, 5, 6}),
        ({"MP_SAT": 0, "HIERARCH MP_DETECTED": 1, "MP_CR": 2}, "0-1,7", {0, 1, 7}),
    ):
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        directory.mkdir()
        path, _ = written(directory, mask, cards)
        exposure = read_exposure(path, options=ReadingOptions(mask_bits=bits))
        assert rows(exposure, *masks.UNTRUSTED_MASK_PLANES) == expected
        if "MP_SAT" in cards:
            assert rows(exposure, "SAT") == {0}
            assert rows(exposure, "DETECTED") == {1}
            assert rows(exposure, "BAD") == {1, 7}
            assert rows(read_exposure(path), *masks.UNTRUSTED_MASK_PLANES) == {0, 2}


def test_names_in_the_mask_count_more_than_the_instrument(tmp_path):
    mask = np.full(SHAPE, 0, np.int32)
    mask[4] = 1
    path, _ = written(tmp_path, mask, {**TELLING["lsst"], "HIERARCH MP_DETECTED": 0, "MP_BAD": 5})
    exposure = read_exposure(path)
    assert not bad(exposure).any()
    assert exposure.mask.get("DETECTED")[4].all()


def test_masks_of_archives_are_united(rng, tmp_path):
    inside = np.zeros(SHAPE, bool)
    inside[2] = True
    exposure = Exposure.from_arrays(
        rng.normal(100, 3, SHAPE).astype(np.float32),
        variance=np.full(SHAPE, 9, np.float32),
        mask={"EDGE": inside},
    )
    exposure.data[30, 30] = 500
    write_exposure(exposure, tmp_path / "archive.fits")
    fits.writeto(tmp_path / "mask.fits", inside[::-1].astype(np.uint8))
    again = read_exposure(
        tmp_path / "archive.fits",
        options=ReadingOptions(mask=str(tmp_path / "mask.fits"), saturation=400),
    )
    np.testing.assert_array_equal(again.mask.get("EDGE"), inside)
    np.testing.assert_array_equal(again.mask.get("BAD"), inside[::-1])
    np.testing.assert_array_equal(np.argwhere(again.mask.get("SAT")), [[30, 30]])
    with pytest.raises(ArgumentError, match=r"archive.fits: mask bits 3 .* named planes; name"):
        read_exposure(tmp_path / "archive.fits", options=ReadingOptions(mask_bits="3"))


def test_wrong_masks_are_one_sentence(tmp_path):
    mask = np.zeros(SHAPE, np.int16)
    path, other = written(tmp_path, mask, own=False)
    fits.writeto(tmp_path / "small.fits", mask[:-1])
    fits.writeto(tmp_path / "weights.fits", np.full(SHAPE, 0.37, np.float32))
    with pytest.raises(FileFormatError, match=r"image.fits: its mask: .*small.fits: .*\(40, 50\)"):
        read_exposure(path, options=ReadingOptions(mask=str(tmp_path / "small.fits")))
    with pytest.raises(FileFormatError, match=r"weights.fits: .* integers.* 0.37.* weight:FILE"):
        read_exposure(path, options=ReadingOptions(mask=str(tmp_path / "weights.fits")))
    with pytest.raises(FileFormatError, match=r"no extension 'DQ'; it has: PRIMARY, MASK"):
        read_exposure(path, options=ReadingOptions(mask=f"{other}[DQ]"))
    with pytest.raises(FileFormatError, match=r"none.fits: no such file"):
        read_exposure(path, options=ReadingOptions(mask=str(tmp_path / "none.fits")))
    with pytest.raises(FileFormatError, match=r"mask.fits: .* 16 bits, 0 to 15, but bit 20 is"):
        read_exposure(path, options=ReadingOptions(mask=other, mask_bits="20"))
    with pytest.raises(ArgumentError, match=r"image.fits: mask bits 3 are given, but it has no ma"):
        read_exposure(path, options=ReadingOptions(mask_bits="3"))
    for bits in ("x", "", "3-1", "62", "1,-2", (), (1.5,), (-1,), (True,)):
        with pytest.raises(ArgumentError, match=r"^mask_bits must"):
            read_exposure(path, options=ReadingOptions(mask=other, mask_bits=bits))
    with pytest.raises(ArgumentError, match="saturation must be a number, far above the sky"):
        ReadingOptions(saturation=float("nan"))


def test_levels_of_saturation(rng, tmp_path, caplog):
    image = rng.normal(100, 3, (120, 130)).astype(np.float32)
    image[40:44, 50:54] = 5000 + rng.normal(size=(4, 4))
    image[80:85, 20:24] = 7000
    header = fits.Header([("SATURATE", 6000.0)])
    fits.writeto(tmp_path / "card.fits", image, header)
    fits.writeto(tmp_path / "cousin.fits", image, fits.Header([("SATLEVEL", 6000.0)]))
    fits.writeto(tmp_path / "none.fits", image)
    fits.writeto(tmp_path / "wrong.fits", image, fits.Header([("SATURATE", 65535.0)]))
    highest = image == 7000
    for name in ("card", "cousin", "none", "wrong"):
        exposure = read_exposure(tmp_path / f"{name}.fits")
        np.testing.assert_array_equal(exposure.mask.get("SAT"), highest, err_msg=name)
    assert "20 pixels share the highest value, 7000" in caplog.text
    assert "though SATURATE = 65535" in caplog.text
    given = read_exposure(tmp_path / "card.fits", options=ReadingOptions(saturation=4000))
    np.testing.assert_array_equal(given.mask.get("SAT"), image > 4000)
    above = read_exposure(tmp_path / "none.fits", options=ReadingOptions(saturation=1e6))
    assert "SAT" not in above.mask.names
    # A mask that tells of saturation is believed; a difference has no plateau.
    fits.HDUList(
        [fits.PrimaryHDU(image), fits.ImageHDU((image > 4000).astype(np.int16), name="MASK")]
    ).writeto(tmp_path / "masked.fits")
    with fits.open(tmp_path / "masked.fits", mode="update") as hdus:
        hdus["MASK"].header["MP_SAT"] = 0
    told = read_exposure(tmp_path / "masked.fits")
    np.testing.assert_array_equal(told.mask.get("SAT"), image > 4000)
    difference = read_exposure(tmp_path / "none.fits", needs_variance=False)
    assert "SAT" not in difference.mask.names


@pytest.mark.slow
@pytest.mark.parametrize("size", [60, 500])
@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e9])
def test_masks_that_flag_what_is_good_are_refused(rng, tmp_path, size, unit, caplog):
    image = rng.normal(100, 3, (size, size))
    stars = np.zeros(image.shape, bool)
    for x, y in rng.integers(6, size - 6, (12, 2)):
        image[y - 4 : y + 5, x - 4 : x + 5] += 4000 * gaussian(9, 1.5)
        stars[y - 4 : y + 5, x - 4 : x + 5] = True
    bad = np.zeros(image.shape, bool)
    bad[:, ::40] = True

    def read(mask):
        hdus = [fits.PrimaryHDU(), fits.ImageHDU((unit * image).astype(np.float32), name="SCI")]
        hdus.append(fits.ImageHDU(mask.astype(np.uint8), name="MASK"))
        fits.HDUList(hdus).writeto(tmp_path / "image.fits", overwrite=True)
        return read_exposure(tmp_path / "image.fits", options=ReadingOptions(variance=9 * unit**2))

    with pytest.raises(FileFormatError, match=r"flags 9[67].*as bad. If 1 means good"):
        read(~bad)
    assert "map of sources" not in caplog.text
    read(bad)
    assert "map of sources" not in caplog.text
    read(stars | bad)
    assert "map of sources" in caplog.text

    # Hot pixels are masked because they stand out, and are no sources.
    caplog.clear()
    hot = rng.random(image.shape) < 0.02
    sky = image.copy()
    image[:] = np.where(stars, rng.normal(100, 3, image.shape), image)
    image[hot] = 9000
    read(hot)
    assert not caplog.text
    # A part of the frame is bad indeed, of a mask in which 1 means good.
    image[:] = sky
    good = ~hot
    good[:, : size // 4] = False
    read(good)
    assert "If 1 means good there, invert it" in caplog.text
    # Padding may be most of a frame.
    caplog.clear()
    image[:, size // 3 :] = 0
    padding = np.zeros(image.shape, bool)
    padding[:, size // 3 :] = True
    read(padding)
    assert "invert" not in caplog.text


def test_commands_take_masks(rng, tmp_path, run):
    """A manifest and ``detect``, with the mask beside the image."""
    mask = np.zeros((120, 130), np.int16)
    mask[:, 40] = 8
    image = rng.normal(100, 3, mask.shape).astype(np.float32)
    image[60, 30:33] = 160
    psf = gaussian(9, 1.0).astype(np.float32)
    image[26:35, 37:46] += 1000 * psf
    fits.writeto(tmp_path / "psf.fits", psf)
    fits.writeto(tmp_path / "image.fits", image - 100)
    fits.writeto(tmp_path / "mask.fits", mask)
    flags = {}
    for bits in ("3", "1"):
        output = tmp_path / f"found{bits}.ecsv"
        code, _, said = run(
            "detect", tmp_path / "image.fits", "--output", output, "--variance", 9, "--psf",
            tmp_path / "psf.fits", "--mask", tmp_path / "mask.fits", "--mask-bits", bits,
        )  # fmt: skip
        assert code == 0, said
        table = Table.read(output)
        near = np.abs(np.asarray(table["x"], float) - 41) < 1.5
        flags[bits] = bool(np.asarray(table["flag_bad"])[near].any())
    assert flags == {"3": True, "1": False}
    (tmp_path / "night.csv").write_text(
        "science,template,science_mask,science_mask_bits,template_saturation\n"
        'image.fits,image.fits,mask.fits,"3,x",5000\n'
    )
    code, _, said = run("batch", tmp_path / "night.csv", "--output", tmp_path / "night")
    assert code != 0
    # Before a pair is begun.
    assert "row 1: science_mask_bits must be numbers and ranges, such as 1,4-6" in said
    assert not (tmp_path / "night").exists()
    manifest = (tmp_path / "night.csv").read_text().replace("3,x", "3")
    (tmp_path / "night.csv").write_text(manifest)
    run("batch", tmp_path / "night.csv", "--output", tmp_path / "night")
    record = json.loads((tmp_path / "night/batch.jsonl").read_text())
    assert record["parameters"]["science_mask"] == str(tmp_path / "mask.fits")
    assert record["inputs"]["science_mask 0"]["sha256"]
