"""Files of every format, damaged byte by byte.

Claims: a file that is cut off anywhere, that lacks a keyword, has one of a wrong type, or whose
headers have a flipped bit, is either understood as before or refused with one sentence that names
it.  It never ends in a traceback, and never gives another kernel, PSF or variance without saying
so: what no file can show, the difference itself does when it is compared with what the kernel
makes of its images.  Cards that say something which nothing else does are named below.
The damage is drawn at random, from a seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from hotpants_files import COMMAND, Run, coefficients
from scenes import gaussian, moffat_kernel
from test_foreign_psfs import write_psfex
from whitediff import Exposure
from whitediff.errors import FileFormatError, WhitediffError
from whitediff.exposures import kernels
from whitediff.exposures.boxes import Box
from whitediff.formats import (
    ccddata,
    check_reproduced,
    read_any,
    read_difference,
    read_exposure,
    read_kernel,
    read_psf,
    write_exposure,
)
from whitediff.reading import ReadingOptions

SHAPE = (40, 44)
PLACES = ((3.0, 5.0), (30.0, 20.0))
N_FLIPS, N_CUTS, N_CARDS = 40, 6, 20


@dataclasses.dataclass
class Case:
    """A file, and what is read from it as numbers that must not change unnoticed."""

    path: Path
    read: Callable[[Path], dict[str, Any]]


def numbers_of(exposure: Exposure) -> dict[str, Any]:
    numbers: dict[str, Any] = {"image": exposure.data, "box": str(exposure.bbox)}
    numbers["variance"] = exposure.variance
    for x, y in PLACES:
        if exposure.kernel is not None:
            numbers[f"kernel {x}"] = exposure.kernel.at(x=x, y=y)
        if exposure.psf is not None:
            numbers[f"psf {x}"] = exposure.psf.at(x=x, y=y)
    return numbers


def read_image(path: Path) -> dict[str, Any]:
    return numbers_of(read_exposure(path, options=ReadingOptions(variance=2.0)))


def checked_difference(images, kernel=None):
    """Read, and hold against the images, as `decorrelate` does."""

    def read(path: Path) -> dict[str, Any]:
        found = read_difference(path, kernel=kernel, needs_variance=True)
        pair = [
            Exposure.from_arrays(images[role], variance=1.0) for role in ("science", "template")
        ]
        check_reproduced(found, *pair)
        return numbers_of(found.exposure) | {"directions": str(found.directions)}

    return read


def hotpants_case(rng, tmp_path: Path) -> Case:
    images = {role: rng.normal(0, 3, SHAPE).astype(np.float32) for role in ("science", "template")}
    regions = [((0, SHAPE[1] - 1, 0, SHAPE[0] - 1), "template", coefficients(rng, 1.2, 65, 0.3))]
    made = Run(images["science"], images["template"], regions, command=COMMAND)
    made.write(tmp_path / "hotpants.fits")
    return Case(tmp_path / "hotpants.fits", checked_difference(images))


def sfft_case(rng, tmp_path: Path) -> Case:
    import test_sfft

    images, pixels, background, difference = test_sfft.scene(rng)
    test_sfft.write_solution(tmp_path / "solution.fits", pixels, background)
    test_sfft.write_difference(tmp_path / "difference.fits", difference, "REF")

    def of_solution(path: Path) -> dict[str, Any]:
        found = read_difference(tmp_path / "difference.fits", kernel=path, needs_variance=False)
        pair = [
            Exposure.from_arrays(images[role], variance=1.0) for role in ("science", "template")
        ]
        check_reproduced(found, *pair)
        return numbers_of(found.exposure)

    return Case(tmp_path / "solution.fits", of_solution)


def psfex_case(rng, tmp_path: Path) -> Case:
    write_psfex(tmp_path / "model.psf")

    def read(path: Path) -> dict[str, Any]:
        psf = read_psf(path, bounds=Box.from_shape((300, 400)))
        return {f"psf {x}": psf.at(x=x, y=y) for x, y in PLACES}

    return Case(tmp_path / "model.psf", read)


def rich_exposure(rng) -> Exposure:
    basis = np.stack([moffat_kernel(7), gaussian(7, 1.5)])
    coefs = np.zeros((2, 2, 2))
    coefs[:, 0, 0], coefs[1, 0, 1] = (1, 0.2), 0.1
    return Exposure.from_arrays(
        rng.normal(10, 3, SHAPE).astype(np.float32),
        variance=rng.uniform(8, 9, SHAPE).astype(np.float32),
        mask={"BAD": rng.random(SHAPE) > 0.95},
        psf=gaussian(9, 1.5),
        kernel=kernels.chebyshev_kernel(basis, coefs, Box.from_shape(SHAPE)),
    )


def archive_case(rng, tmp_path: Path) -> Case:
    write_exposure(rich_exposure(rng), tmp_path / "archive.fits")
    return Case(tmp_path / "archive.fits", read_image)


def ccddata_case(rng, tmp_path: Path) -> Case:
    ccddata.write(rich_exposure(rng), tmp_path / "ccd.fits", uncertainty="sigma")
    return Case(tmp_path / "ccd.fits", read_image)


def afw_case(rng, tmp_path: Path) -> Case:
    import test_afw

    test_afw.afw_file(rng, tmp_path / "afw.fits")
    return Case(tmp_path / "afw.fits", read_image)


def plain_case(rng, tmp_path: Path) -> Case:
    fits.HDUList(
        [
            fits.PrimaryHDU(rng.normal(size=SHAPE).astype(np.float32)),
            fits.ImageHDU(rng.uniform(1, 2, SHAPE).astype(np.float32), name="SIGMA"),
            fits.ImageHDU((rng.random(SHAPE) > 0.9).astype(np.int16), name="DQ"),
            fits.ImageHDU(moffat_kernel(7), name="KERNEL"),
        ]
    ).writeto(tmp_path / "plain.fits")
    return Case(tmp_path / "plain.fits", read_image)


CASES = {
    case.__name__.removesuffix("_case"): case
    for case in (
        hotpants_case, sfft_case, psfex_case, archive_case, ccddata_case, afw_case, plain_case
    )
}  # fmt: skip


def header_spans(path: Path) -> list[tuple[int, int]]:
    """Bytes of all headers, up to their END."""
    spans = []
    with fits.open(path, disable_image_compression=True) as hdus:
        for hdu in hdus:
            start = hdu.fileinfo()["hdrLoc"]
            spans.append((start, start + 80 * (len(hdu.header.cards) + 1)))
    return spans


def outcome(case: Case, path: Path) -> dict[str, Any] | None:
    """What a damaged file gives: the numbers, or None where it is refused as it should be."""
    with warnings.catch_warnings():
        # What other libraries warn of is not the claim here.
        warnings.simplefilter("ignore")
        try:
            return case.read(path)
        except WhitediffError as error:
            text = str(error)
            assert "\n" not in text
            assert text.rstrip().endswith((".", "?")), text
            assert len(text) < 1000
            return None


def same(found: dict[str, Any], whole: dict[str, Any]) -> set[str]:
    """Names of what differs."""
    wrong = set(found) ^ set(whole)
    for name in set(found) & set(whole):
        one, other = found[name], whole[name]
        if isinstance(one, str):
            if one != other:
                wrong.add(name)
        elif one.shape != other.shape or not np.allclose(one, other, rtol=1e-4, equal_nan=True):
            wrong.add(name)
    return wrong


def lost_by_name(data: bytes, position: int) -> bool:
    """Whether a flip hit a card by which a part of the file is found, which may then be missing.

    A part whose name is damaged is a part that is not there, and that nobody can know of.
    """
    card = data[position - position % 80 :][:80]
    keyword = card[:8].strip().decode("ascii", "replace")
    return keyword in NAMES


NAMES = {
    "EXTNAME", "XTENSION", "EXTVER", "DATAMODL", "SOFTNAME", "OBJECT", "UTYPE", "BUNIT", "END",
    "EXTTYPE", "EXPINFO_", "HIERARCH", "CTYPE1A", "CTYPE2A", "CRVAL1A", "CRVAL2A", "CRPIX1A",
    "CRPIX2A", "NAXIS", "BITPIX", "PCOUNT", "GCOUNT", "BZERO", "BSCALE", "SIMPLE", "EXTEND",
}  # fmt: skip


ALONE: dict[str, set[bytes]] = {name: set() for name in CASES} | {
    # How large a bare image within its last block is, only its header says; and only this says
    # how PSFEx scales positions, and how finely it samples.
    "plain": {b"NAXIS1", b"NAXIS2"},
    "psfex": {b"POLZERO1", b"POLZERO2", b"POLSCAL1", b"POLSCAL2", b"PSF_SAMP"},
}
"""Cards that say something which nothing else in the file does."""


@pytest.mark.parametrize("name", CASES)
def test_flipped_bits(rng, tmp_path, name):
    case = CASES[name](rng, tmp_path)
    whole, data = case.read(case.path), case.path.read_bytes()
    spans = header_spans(case.path)
    places = np.concatenate([np.arange(*span) for span in spans])
    refused = silent = 0
    damaged = tmp_path / f"damaged{case.path.suffix}"
    for position, bit in zip(
        rng.choice(places, N_FLIPS, replace=False), rng.integers(0, 8, N_FLIPS), strict=True
    ):
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(bit)
        damaged.write_bytes(flipped)
        found = outcome(case, damaged)
        if found is None:
            refused += 1
            continue
        wrong = same(found, whole)
        card = data[position - position % 80 :][:80]
        if wrong and not lost_by_name(data, int(position)) and card[:8].strip() not in ALONE[name]:
            pytest.fail(
                f"bit {bit} of byte {position} in {card!r} changes {sorted(wrong)} silently"
            )
        silent += not wrong
    assert silent > 0
    assert refused > 0


@pytest.mark.parametrize("name", CASES)
def test_files_that_are_cut_off(rng, tmp_path, name):
    case = CASES[name](rng, tmp_path)
    whole, data = case.read(case.path), case.path.read_bytes()
    damaged = tmp_path / f"damaged{case.path.suffix}"
    with fits.open(case.path, disable_image_compression=True) as hdus:
        # Between the last byte of data and the next header, nothing is lost.
        infos = [(hdu.fileinfo()["datLoc"], hdu.size, hdu.fileinfo()["datSpan"]) for hdu in hdus]
    whole_hdus = [range(start + n, start + span + 1) for start, n, span in infos]
    ends = [start for start, _ in header_spans(case.path)][1:]
    for size in [*rng.integers(0, len(data) - 2880, N_CUTS), 0, 1, 2879, 2880]:
        damaged.write_bytes(data[:size])
        found = outcome(case, damaged)
        # Cut off between two HDUs, the rest is a file of its own.
        assert found is None or any(int(size) in gap for gap in whole_hdus), size
    for size in ends:
        damaged.write_bytes(data[:size])
        found = outcome(case, damaged)
        if found is not None and "image" in found:
            np.testing.assert_array_equal(found["image"], whole["image"])


@pytest.mark.parametrize("how", ["missing", "wrong type"])
@pytest.mark.parametrize("name", CASES)
def test_keywords(rng, tmp_path, name, how):
    """Every card of every header, missing or of another type, as far as they are tried."""
    case = CASES[name](rng, tmp_path)
    whole = case.read(case.path)
    damaged = tmp_path / f"damaged{case.path.suffix}"
    with fits.open(case.path, disable_image_compression=True) as hdus:
        cards = [
            (i, card.keyword, card.value)
            for i, hdu in enumerate(hdus)
            for card in hdu.header.cards
            if card.keyword not in ("", "COMMENT", "HISTORY", "SIMPLE", "XTENSION", "CONTINUE")
        ]
    for index in rng.permutation(len(cards))[:N_CARDS]:
        i, keyword, value = cards[index]
        other: Any = "text" if not isinstance(value, str) else 7
        with contextlib.suppress(Exception):
            # What astropy itself refuses to write is no damaged file.
            with fits.open(case.path, disable_image_compression=True) as hdus:
                header = hdus[i].header
                text = b"".join(
                    card.image.encode("ascii").ljust(80)
                    for card in fits.Header(
                        [
                            fits.Card(card.keyword, other, card.comment)
                            if card.keyword == keyword
                            else card
                            for card in header.cards
                            if how != "missing" or card.keyword != keyword
                        ]
                    ).cards
                )
                info = hdus[i].fileinfo()
            size = info["datLoc"] - info["hdrLoc"]
            block = (text + b"END".ljust(80)).ljust(size)
            if len(block) != size:
                continue
            data = bytearray(case.path.read_bytes())
            data[info["hdrLoc"] : info["datLoc"]] = block
            damaged.write_bytes(data)
        found = outcome(case, damaged)
        if found is None or keyword in NAMES:
            continue
        wrong = same(found, whole)
        assert not wrong, f"{keyword} {how} changes {sorted(wrong)} silently"


def test_damaged_pixels_are_not_the_claim(rng, tmp_path):
    """A packed image has a checksum of its own; so has what gzip packs."""
    import gzip

    fits.writeto(tmp_path / "in.fits", rng.normal(size=SHAPE))
    packed = gzip.compress((tmp_path / "in.fits").read_bytes())
    for _ in range(30):
        flipped = bytearray(packed)
        flipped[int(rng.integers(10, len(packed)))] ^= 1 << int(rng.integers(0, 8))
        (tmp_path / "damaged.fits.gz").write_bytes(flipped)
        with contextlib.suppress(WhitediffError):
            found = read_any(tmp_path / "damaged.fits.gz").exposure.data
            np.testing.assert_array_equal(found, fits.getdata(tmp_path / "in.fits"))


def test_a_negative_size_is_a_sentence_and_no_loop(tmp_path):
    # So negative that astropy finds the header of the HDU before it where the next should be.
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(np.ones((40, 50))), fits.ImageHDU(np.ones((8, 360)))]
    path = tmp_path / "negative.fits"
    fits.HDUList(hdus).writeto(path)
    good, bad = (f"NAXIS2  = {n:>20}".encode() for n in (8, -8))
    raw = path.read_bytes()
    assert raw.count(good) == 1
    path.write_bytes(raw.replace(good, bad))
    with pytest.raises(FileFormatError, match=r"negative\.fits: .*negative size"):
        read_exposure(path)


def test_a_truth_value_is_no_limit_of_polynomials(tmp_path):
    cube = fits.ImageHDU(np.stack([gaussian(11, 1.5)] * 2), name="KERNEL")
    table = fits.ImageHDU(np.full((2, 2, 2), 0.1), name="KERNEL_COEFFICIENTS")
    limits = {"DOMXMIN": True, "DOMXMAX": 99.5, "DOMYMIN": -0.5, "DOMYMAX": 89.5}
    table.header.update(limits)
    fits.HDUList([fits.PrimaryHDU(), cube, table]).writeto(tmp_path / "kernel.fits")
    with pytest.raises(FileFormatError, match="are no box: DOMXMIN = True"):
        read_kernel(tmp_path / "kernel.fits", bounds=Box.from_shape((90, 100)))
