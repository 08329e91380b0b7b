"""How far files are trusted: what they are, how large they may become, where they may lead.

Claims: pipes, devices and directories are refused before anything opens them; what headers claim
is compared with the file and with the memory that may be used, packed or not, before anything is
unpacked; names of files in headers lead beside the file or below, elsewhere only by consent, and
addresses never; damaged tiles are damaged files.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from astropy.io import fits

from whitediff.errors import ArgumentError, FileFormatError
from whitediff.formats import limits, read_any, read_exposure, remote
from whitediff.formats.blocks import datasum, encoded_sum, survey
from whitediff.formats.catalogs import read_catalog
from whitediff.formats.limits import Limits, leads_to, within

SHAPE = (40, 50)


@pytest.fixture
def plain(rng, tmp_path):
    path = tmp_path / "plain.fits"
    fits.writeto(path, rng.normal(size=SHAPE).astype(np.float32))
    return path


def changed(path, target, **cards):
    """Copy of a file with other values of cards, as they are written in bytes."""
    raw = path.read_bytes()
    for keyword, value in cards.items():
        start = raw.index(f"{keyword:8}=".encode())
        card = f"{keyword:8}= {value:>20}".encode().ljust(80)
        raw = raw[:start] + card + raw[start + 80 :]
    target.write_bytes(raw)
    return target


def test_no_pipes_devices_and_directories(run, tmp_path):
    os.mkfifo(tmp_path / "pipe.fits")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "directory.fits").mkdir()
    for name, what in (
        (tmp_path / "pipe.fits", "pipe or a device"),
        ("/dev/zero", "pipe or a device"),
        (tmp_path / "directory.fits", "directory"),
    ):
        for command in ("info", "check"):
            code, _, messages = run(command, name)
            assert code == 1
            assert messages.startswith(f"whitediff: {name}: is a")
            assert what in messages
            assert messages.count("\n") == 1
    with pytest.raises(FileFormatError, match="pipe or a device"):
        read_catalog(tmp_path / "pipe.csv")
    with pytest.raises(FileFormatError, match=r"no such file|no name of a file"):
        read_exposure("a\0b.fits")


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({"NAXIS1": 10**9, "NAXIS2": 10**9}, "truncated: the primary HDU ends|would take"),
        ({"NAXIS": 10**12}, "gives it 1000000000000 axes"),
        ({"NAXIS": -3}, "gives it -3 axes"),
        ({"NAXIS2": -40}, "negative size"),
        ({"BITPIX": -(10**18)}, "truncated: the primary HDU|would take"),
    ],
)
def test_claims_are_compared_with_the_file(plain, tmp_path, cards, message):
    for pack in (None, gzip.compress, bz2.compress, lzma.compress):
        path = changed(plain, tmp_path / "claim.fits", **cards)
        if pack is not None:
            packed = tmp_path / "claim.fits.gz"
            packed.write_bytes(pack(path.read_bytes()))
            path = packed
        with pytest.raises(FileFormatError, match=message) as error:
            read_any(path)
        assert path.name in str(error.value)


@pytest.mark.parametrize("pack", [None, gzip.compress, bz2.compress, lzma.compress])
def test_nothing_is_searched_for_headers_that_are_not_there(plain, tmp_path, pack, monkeypatch):
    """A few bytes unpack to what a reader looks for a header in, again and again."""
    raw = plain.read_bytes()
    for content, message in (
        (raw + bytes(30_000_000), "30000000 bytes behind its last HDU .* are no HDU"),
        (raw[: raw.index(b"END".ljust(80))].ljust(70_000_000), "no END in its first 58 MB"),
    ):
        path = tmp_path / "padded.fits"
        path.write_bytes(content if pack is None else pack(content))
        with monkeypatch.context() as patch:
            patch.setattr(fits, "open", None)
            with pytest.raises(FileFormatError, match=message):
                read_any(path)
    # A tape's last record may be filled up.
    path.write_bytes(raw + bytes(28_800))
    assert read_exposure(path).shape == SHAPE


@pytest.mark.parametrize("kind", ["i2", "f4"])
def test_tiles_at_the_end_are_as_large_as_what_is_left(rng, tmp_path, kind):
    """What a tile unpacks to is not what all of them have, where an image ends in one."""
    image = np.rint(rng.normal(300, 20, (90, 100))).astype(kind)
    whole = fits.CompImageHDU(image, compression_type="HCOMPRESS_1", tile_shape=(16, 100))
    whole.writeto(tmp_path / "whole.fits")
    assert read_exposure(tmp_path / "whole.fits", needs_variance=False).shape == (90, 100)
    for cards in ({"ZNAXIS1": 99}, {"ZNAXIS2": 89}, {"ZNAXIS2": 81}, {"ZTILE1": 101}):
        path = changed(tmp_path / "whole.fits", tmp_path / "claim.fits", **cards)
        if cards != {"ZTILE1": 101}:
            with pytest.raises(FileFormatError, match=r"claim\.fits: damaged: a tile of .* says"):
                read_any(path)
        else:
            read_exposure(path, needs_variance=False)


def test_settings_of_compressed_images_are_possible(rng, tmp_path):
    image = rng.normal(300, 20, (40, 50)).astype("f4")
    whole = fits.CompImageHDU(image, quantize_method=1, dither_seed=7)
    whole.writeto(tmp_path / "whole.fits")
    assert read_exposure(tmp_path / "whole.fits", needs_variance=False).shape == (40, 50)
    for cards, message in (
        ({"ZDITHER0": 0}, "ZDITHER0 = 0"),
        ({"ZDITHER0": 10001}, "ZDITHER0 = 10001"),
    ):
        with pytest.raises(FileFormatError, match=message):
            read_any(changed(tmp_path / "whole.fits", tmp_path / "claim.fits", **cards))


def test_empty_files_are_told_of(tmp_path):
    for name in ("empty.fits", "empty.csv"):
        (tmp_path / name).touch()
        with pytest.raises(FileFormatError, match=rf"{name}: is empty"):
            read_exposure(tmp_path / name) if name.endswith("s") else read_catalog(tmp_path / name)


def test_claims_of_tables(tmp_path):
    table = fits.BinTableHDU.from_columns([fits.Column("a", "D", array=np.arange(3.0))])
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "table.fits")
    path = tmp_path / "claim.fits"
    for cards, message in (
        ({"TFIELDS": 10**11}, "gives it 100000000000 columns"),
        ({"PCOUNT": 10**12}, "truncated|would take"),
        ({"GCOUNT": 10**12}, "truncated|would take"),
    ):
        with pytest.raises(FileFormatError, match=message):
            read_catalog(changed(tmp_path / "table.fits", path, **cards))


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({"ZNAXIS1": 10**9, "ZNAXIS2": 10**9}, "would take .* of memory"),
        ({"ZNAXIS1": 10**30}, "would take .* of memory"),
        ({"ZNAXIS": 10**9}, "gives it 1000000000 axes"),
        ({"ZNAXIS2": 90}, "90 tiles, but its table has 40 rows"),
        ({"ZTILE1": 0}, "in tiles of"),
        ({"ZVAL1": 0}, "BLOCKSIZE = 0"),
        ({"ZVAL2": 3}, "BYTEPIX = 3"),
    ],
)
def test_claims_of_compressed_images(rng, tmp_path, cards, message):
    image = rng.integers(0, 99, SHAPE).astype(np.int16)
    hdu = fits.CompImageHDU(image, name="SCI", compression_type="RICE_1", tile_shape=(1, 50))
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "packed.fits")
    np.testing.assert_array_equal(read_any(tmp_path / "packed.fits").exposure.data, image)
    path = changed(tmp_path / "packed.fits", tmp_path / "claim.fits", **cards)
    with pytest.raises(FileFormatError, match=rf"claim\.fits: .*{message}"):
        read_any(path)


@pytest.mark.parametrize("kind", ["RICE_1", "GZIP_1", "GZIP_2", "PLIO_1", "HCOMPRESS_1"])
def test_damaged_tiles_are_damaged_files(rng, tmp_path, kind):
    image = rng.integers(0, 99, SHAPE).astype(np.int16)
    tile = (40, 50) if kind == "HCOMPRESS_1" else (1, 50)
    hdu = fits.CompImageHDU(image, name="SCI", compression_type=kind, tile_shape=tile)
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "packed.fits")
    raw = (tmp_path / "packed.fits").read_bytes()
    with fits.open(tmp_path / "packed.fits", disable_image_compression=True) as hdus:
        start = hdus[1].fileinfo()["datLoc"] + hdus[1].header["NAXIS1"] * hdus[1].header["NAXIS2"]
        stop = start + hdus[1].header["PCOUNT"]
    refused = 0
    for i in range(12):
        damaged = bytearray(raw)
        at = start + int(rng.integers(0, 12 if i < 6 else stop - start))
        damaged[at] ^= 0x55
        path = tmp_path / f"damaged{i}.fits"
        path.write_bytes(damaged)
        try:
            read_any(path)
        except FileFormatError as caught:
            error: Exception = caught
        else:
            continue
        refused += 1
        assert str(path) in str(error)
    if kind in ("GZIP_1", "GZIP_2", "HCOMPRESS_1"):
        assert refused


def test_memory_is_limited(run, plain, tmp_path):
    for name, pack in (("a.fits.gz", gzip.compress), ("a.fits.xz", lzma.compress)):
        (tmp_path / name).write_bytes(pack(plain.read_bytes()))
    with zipfile.ZipFile(tmp_path / "a.fits.zip", "w") as archive:
        archive.write(plain, "a.fits")
    for path in (plain, *(tmp_path / f"a.fits.{end}" for end in ("gz", "xz", "zip"))):
        assert run("info", path)[0] == 0
        code, _, messages = run("info", path, "--max-memory", "7kB")
        assert code == 1
        assert "more than --max-memory allows (7 kB)" in messages
        assert str(path) in messages
    # A bomb: a gigabyte of zeros in a megabyte.
    with gzip.open(tmp_path / "bomb.fits.gz", "wb", compresslevel=1) as stream:
        stream.write(plain.read_bytes()[:2880])
        for _ in range(60):
            stream.write(bytes(1 << 20))
    code, _, messages = run("info", tmp_path / "bomb.fits.gz", "--max-memory", "20MB")
    assert code == 1
    assert "would take 2" in messages
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.write(plain, "a.fits")
        archive.write(plain, "b.fits")
    with pytest.raises(FileFormatError, match="archive of 2 files"):
        read_any(tmp_path / "two.zip")
    # A file of which most is a hole claims as much as a real one.
    path = changed(plain, tmp_path / "hole.fits", NAXIS1=10**6, NAXIS2=10**6)
    os.truncate(path, 10**13)
    with pytest.raises(FileFormatError, match="more than this machine has"):
        read_any(path)


def test_limits_of_processes_that_others_start(plain):
    """From the environment, where they set none themselves; what is no limit is refused."""
    text = Limits(10_000, checksums=False, follow_paths=True).to_text()
    assert Limits.from_text(text) == Limits(10_000, checksums=False, follow_paths=True)
    assert Limits.from_text("{}") == Limits()
    for wrong in ("", "[]", "4GB", '{"memory": 4}', '{"max_memory": true}', '{"checksums": 1}'):
        with pytest.raises(ArgumentError, match=r"WHITEDIFF_LIMITS must be such as .*; got"):
            Limits.from_text(wrong)
    with pytest.raises(ArgumentError, match="positive"):
        Limits.from_text('{"max_memory": -1}')
    code = "from whitediff.formats import read_exposure; read_exposure(sys.argv[1])"
    for value, message in (
        (Limits(1000).to_text(), "more than --max-memory allows (1 kB)"),
        ("nonsense", "WHITEDIFF_LIMITS must be such as"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; {code}", plain],
            env=os.environ | {limits.VARIABLE: value},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert message in done.stderr


def test_memory_of_catalogues(tmp_path):
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    parquet.write_table(pyarrow.table({"x": np.zeros(200_000)}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 20_000
    (tmp_path / "a.csv").write_text("x,y\n" + "1,2\n" * 1000)
    with within(Limits(max_memory=3000)):
        for name in ("a.parquet", "a.csv"):
            with pytest.raises(FileFormatError, match=rf"{name}: its table would take"):
                read_catalog(tmp_path / name)
    assert len(read_catalog(tmp_path / "a.csv")) == 1000
    with pytest.raises(ArgumentError, match="max_memory must be a positive number; got 0"):
        Limits(max_memory=0)


def test_packed_files_are_looked_at_as_plain_ones(plain, tmp_path):
    raw = plain.read_bytes()
    for bad, message in (
        (raw[:9000], "truncated: the primary HDU ends at byte"),
        (raw + b"more" * 720, "behind its last HDU|cannot be read as FITS"),
        (raw[:-30] + b"x" * 30, "data behind what the header"),
    ):
        for name, content in (("a.fits", bad), ("a.fits.gz", gzip.compress(bad))):
            path = tmp_path / name
            path.write_bytes(content)
            with pytest.raises(FileFormatError, match=message):
                read_any(path)
            path.unlink()


def test_sums_are_those_of_the_standard(rng, tmp_path):
    hdus = [fits.PrimaryHDU(rng.normal(size=(7, 9)))]
    hdus += [fits.ImageHDU(rng.integers(0, 9, (5, n)).astype(np.int16)) for n in range(1, 9)]
    fits.HDUList(hdus).writeto(tmp_path / "a.fits", checksum=True)
    raw = (tmp_path / "a.fits").read_bytes()
    found = survey(tmp_path / "a.fits", sums=True)
    assert len(found.blocks) == 9
    for block in found.blocks:
        assert block.data_sum == int(block.cards["DATASUM"])
        assert block.total_sum in (0, (1 << 32) - 1)
        part = bytearray(raw[block.start : block.stop])
        start = part.index(b"CHECKSUM= '") + 11
        part[start : start + 16] = b"0" * 16
        assert encoded_sum(datasum(bytes(part))) == block.cards["CHECKSUM"]


def test_names_in_headers_lead_beside(tmp_path):
    (tmp_path / "a" / "below").mkdir(parents=True)
    for name in ("outside.fits", "a/in.fits", "a/below/deep.fits", "both.fits", "a/both.fits"):
        (tmp_path / name).write_bytes(b"")
    home = tmp_path / "a" / "out.fits"
    for name, found, is_elsewhere in (
        ("in.fits", "a/in.fits", False),
        ("old/place/in.fits", "a/in.fits", False),
        ("below/deep.fits", "a/below/deep.fits", False),
        (str(tmp_path / "a/in.fits"), "a/in.fits", False),
        (f"{tmp_path}/a/in.fits[SCI]", "a/in.fits[SCI]", False),
        (str(tmp_path / "outside.fits"), None, True),
        ("../outside.fits", None, True),
        ("below/../../outside.fits", None, True),
        (str(tmp_path / "both.fits"), "a/both.fits", True),
        ("nowhere.fits", None, False),
        ("in\0.fits", None, False),
        ("http://localhost/in.fits", None, False),
        ("file:///etc/passwd", None, False),
        ("simplecache::http://localhost/in.fits", None, False),
    ):
        path, elsewhere = leads_to(name, home)
        wanted = None if found is None else tmp_path / found
        assert (path, elsewhere) == (wanted, is_elsewhere), name
    with within(Limits(follow_paths=True)):
        assert leads_to(str(tmp_path / "both.fits"), home)[0] == tmp_path / "both.fits"
        assert leads_to("http://localhost/in.fits", home) == (None, False)
    assert limits.current() == Limits()


def test_reports_fetch_nothing(run, rng, tmp_path, monkeypatch):
    def refuse(address):
        raise AssertionError(address)

    monkeypatch.setattr(remote, "fetched", refuse)
    monkeypatch.setattr("whitediff.formats.files.fetched", refuse)
    directory = tmp_path / "made"
    assert run("simulate", "--output", directory, "--size", 300, "-q")[0] == 0
    images = [directory / "science.fits", directory / "template.fits"]
    out = tmp_path / "elsewhere" / "difference.fits"
    out.parent.mkdir()
    code, _, messages = run("subtract", *images, "--output", out, "-q")
    assert code == 0, messages
    code, _, messages = run("report", out, "--output", tmp_path / "page.html")
    assert code == 1
    assert "is not beside it; name it with --science, or allow the paths in headers" in messages
    page = ["--output", tmp_path / "page.html", "-q"]
    code, _, messages = run("report", out, *page, "--follow-paths")
    assert code == 0, messages
    fits.setval(out, "WDSCI", value="http://localhost:1/science.fits")
    code, _, messages = run("report", out, *page, "--overwrite", "--follow-paths")
    assert code == 1
    assert (
        "from the science http://localhost:1/science.fits, which is not there any more" in messages
    )
    fits.setval(out, "WDDIFF", value="http://localhost:1/difference.fits")
    assert run("check", out, "--follow-paths", "-q")[0] == 0
