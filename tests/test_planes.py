"""Claims: planes that are large for the memory live in files and leave none behind; results are the
same to the last bit; where there is no room for them a sentence says so, before anything is
written; sizes are understood, others refused; values of used pixels and every n-th of them are
those of the whole plane."""

from __future__ import annotations

import errno
import gc
import os
import re

import numpy as np
import pytest
from astropy.io import fits

from whitediff.errors import FileFormatError
from whitediff.numerics import planes


def test_large_planes_are_files_and_small_ones_are_not(tmp_path):
    with planes.memory_limit(1 << 20, tmp_path):
        assert planes.is_limited((200, 200), np.float32)
        assert not planes.is_limited((100, 100), np.float32)
        large = planes.zeros((200, 201), np.float32)
        assert type(large) is np.ndarray
        assert not large.any()
        large[50:60] = 7
        assert isinstance(large.base, np.memmap)
        copy = planes.copied(large)
        assert copy.sum() == 10 * 201 * 7
        assert isinstance(copy.base, np.memmap)
        assert planes.empty((10, 10), bool).base is None
        assert list(tmp_path.iterdir()) == []  # files without a name
        del large, copy
        gc.collect()
    assert not planes.is_limited((200, 200), np.float32)


def test_a_full_disk_is_a_sentence(small_disk):
    with planes.memory_limit(1 << 20, small_disk):
        kept = planes.zeros((512, 512), np.float32)
        kept[:] = 1
        message = re.escape(f"{small_disk}: no temporary file of 4.194 MB can be made there")
        with pytest.raises(FileFormatError, match=f"{message} .*No space left.* are free"):
            planes.zeros((1024, 1024), np.float32)
        # What is there is as it was, and its room is free again once it is gone.
        assert (kept == 1).all()
        del kept
        gc.collect()
        planes.zeros((512, 1024), np.float32)[:] = 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_room_is_reserved_before_it_is_used(tmp_path, monkeypatch, number):
    def full(file, start, size):
        assert (start, size) == (0, 160000)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(planes.os, "posix_fallocate", full)
    message = rf"0\.16 MB .*{os.strerror(number)}"
    with planes.memory_limit(1 << 20, tmp_path), pytest.raises(FileFormatError, match=message):
        planes.empty((200, 200), np.float32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_file_systems_that_reserve_nothing_do(tmp_path, monkeypatch, number):
    def unsupported(file, start, size):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(planes.os, "posix_fallocate", unsupported)
    with planes.memory_limit(1 << 20, tmp_path):
        plane = planes.zeros((200, 200), np.float32)
    assert isinstance(plane.base, np.memmap)
    assert not plane.any()


def test_blocks_of_a_plane_in_a_file_are_there(tmp_path, monkeypatch):
    sizes = []
    memmap = np.memmap

    def seen(file, **options):
        sizes.append(512 * os.fstat(file.fileno()).st_blocks)
        return memmap(file, **options)

    monkeypatch.setattr(planes.np, "memmap", seen)
    with planes.memory_limit(1 << 20, tmp_path):
        planes.zeros((512, 512), np.float32)
    assert sizes[0] >= 4 * 512 * 512


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999, 1.0])
def test_every_nth_value_is_that_of_the_whole_plane(rng, share):
    image = rng.normal(size=(701, 903)).astype(np.float32)
    use = rng.random(image.shape) < share
    use[300:500] |= share > 0  # some blocks whole
    chosen = image[use]
    for enough in (1, 1000, 100_000, image.size):
        step = max(1, chosen.size // enough)
        np.testing.assert_array_equal(planes.every_nth(image, use, enough), chosen[::step])
    parts = [planes.used(image, use, rows) for rows in planes.row_blocks(image.shape)]
    np.testing.assert_array_equal(np.concatenate(parts), chosen)


def test_blocks_cover_the_rows_once(rng):
    for shape in ((1, 1), (700, 900), (3, 200_000), (1000, 4, 3)):
        rows = planes.row_blocks(shape)
        assert [row for part in rows for row in range(*part.indices(shape[0]))] == list(
            range(shape[0])
        )
    image = rng.normal(size=(700, 900))
    np.testing.assert_array_equal(
        planes.filled(image.shape, np.float32, lambda rows: 2 * image[rows]),
        (2 * image).astype(np.float32),
    )


@pytest.mark.slow
def test_results_are_the_same_with_little_memory(run, tmp_path):
    scene = tmp_path / "scene"
    assert run("simulate", "--output", scene, "--size", 700, "--variation", 0.1)[0] == 0
    inputs = [scene / "science.fits", scene / "template.fits"]
    found = []
    for name, options in (("plenty", []), ("little", ["--memory", "8MB"])):
        outputs = [tmp_path / f"{name}-{kind}.fits" for kind in ("white", "difference")]
        code, _, messages = run(
            "decorrelate", *inputs, scene / "difference.fits", "--output", outputs[0],
            "--full-variance", "--noise", "measured", *options,
        )  # fmt: skip
        assert code == 0, messages
        code, _, messages = run("subtract", *inputs, "--output", outputs[1], *options)
        assert code == 0, messages
        found.append(
            [
                fits.getdata(path, extension)
                for path in outputs
                for extension in ("IMAGE", "VARIANCE", "MASK", "PSF")
            ]
        )
    for plane, other in zip(*found, strict=True):
        np.testing.assert_array_equal(plane, other)
    assert {path.name for path in tmp_path.iterdir()} == {
        "scene", "plenty-white.fits", "plenty-difference.fits", "little-white.fits",
        "little-difference.fits",
    }  # fmt: skip


@pytest.mark.parametrize("size", ["lots", "-5MB", "0", "5XB"])
def test_sizes_that_are_none(run, size):
    code, _, messages = run("decorrelate", "a", "b", "c", "--output", "o", "--memory", size)
    assert code == 2
    assert "is not an amount of memory, such as 500MB or 2GB" in messages
