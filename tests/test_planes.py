"""Claims: planes that are large for the memory live in files and leave none behind; results are the
same to the last bit; sizes are understood, others refused; values of used pixels and every n-th of
them are those of the whole plane."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from astropy.io import fits

from whitediff import planes


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
