"""Claims: pieces come back in their order; the number of threads is what the caller, the
environment or the machine says; no result depends on it, to the last bit."""

from __future__ import annotations

import contextvars
import logging
import os
import threading

import numpy as np
import pytest
import threadpoolctl
from astropy.io import fits

from whitediff.errors import ArgumentError
from whitediff.numerics import fourier
from whitediff.numerics.threads import (
    available_threads,
    in_threads,
    side_by_side,
    single_threaded_algebra,
    use_threads,
)


@pytest.fixture(autouse=True)
def unchosen(monkeypatch):
    for name in ("WHITEDIFF_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    yield
    use_threads(None)


def test_who_says_how_many(monkeypatch):
    use_threads(None)  # a command before may have said
    assert 1 <= available_threads() <= (os.cpu_count() or 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # as Dask and pipetask set it for their processes
    assert available_threads() == 3
    monkeypatch.setenv("WHITEDIFF_NUM_THREADS", "2")
    assert available_threads() == 2
    use_threads(5)
    assert available_threads() == 5
    with pytest.raises(ArgumentError, match="at least 1; got 0"):
        use_threads(0)
    use_threads(None)
    monkeypatch.setenv("WHITEDIFF_NUM_THREADS", "many")
    with pytest.raises(ArgumentError, match=r"WHITEDIFF_NUM_THREADS must be .* got 'many'"):
        available_threads()


def test_pieces_in_order_and_no_threads_within_threads():
    use_threads(3)
    assert in_threads(lambda i: (i, available_threads()), range(20)) == [(i, 1) for i in range(20)]
    assert available_threads() == 3
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda i: 1 // i, range(-2, 3))


def blas_threads():
    return {each["num_threads"] for each in threadpoolctl.threadpool_info() if "blas" in str(each)}


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_two_things_side_by_side(threads, caplog):
    use_threads(threads)
    caplog.set_level(logging.INFO)
    log, told = logging.getLogger("whitediff.matching"), contextvars.ContextVar("told")
    told.set("by the caller")
    later = threading.Event()

    def first():
        if threads > 1:
            assert later.wait(10), "not at the same time"
        log.info("first")
        return available_threads(), told.get(), blas_threads()

    def second():
        log.info("second")
        logging.getLogger("whitediff.noise").warning("and more")
        later.set()
        return available_threads(), told.get(), blas_threads()

    before = blas_threads()
    one, other = side_by_side(first, second)
    assert one == (threads, "by the caller", {1})
    assert other == (max(1, threads // 2), "by the caller", {1})
    # In the order without threads, and each once.
    assert [each.getMessage() for each in caplog.records] == ["first", "second", "and more"]
    assert available_threads() == threads
    assert blas_threads() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_error_counts(threads, caplog):
    use_threads(threads)

    def fail(error):
        logging.getLogger("whitediff").warning("of %s", type(error).__name__)
        raise error

    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda: fail(ZeroDivisionError()), lambda: fail(KeyError()))
    assert [each.getMessage() for each in caplog.records] == ["of ZeroDivisionError"]
    with pytest.raises(KeyError):
        side_by_side(lambda: 1, lambda: fail(KeyError()))
    assert caplog.messages[1:] == ["of KeyError"]
    assert available_threads() == threads


def test_limit_of_algebra_lasts_as_long_as_any_thread_needs_it():
    before = blas_threads()

    def other():
        with single_threaded_algebra():
            pass

    with single_threaded_algebra():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert blas_threads() == {1}
    assert blas_threads() == before


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transforms_of_frames_do_not_depend_on_threads(rng, dtype):
    image, shape = rng.normal(size=(700, 611)).astype(dtype), (720, 640)
    found = []
    for number in (1, 2, 3):
        use_threads(number)
        spectrum = fourier.forward(image, shape)
        found.append((spectrum.copy(), fourier.inverse(spectrum, shape, image.shape)))
    for spectrum, back in found[1:]:
        np.testing.assert_array_equal(spectrum, found[0][0])
        np.testing.assert_array_equal(back, found[0][1])
    expected = np.fft.rfft2(image.astype(float), s=shape)
    rounding = 50 * np.finfo(dtype).eps * np.abs(expected).max()
    np.testing.assert_allclose(found[0][0], expected, atol=rounding)
    np.testing.assert_allclose(found[0][1], image, atol=50 * np.finfo(dtype).eps)


@pytest.mark.slow
def test_products_do_not_depend_on_threads(run, tmp_path):
    scene = tmp_path / "scene"
    assert run("simulate", "--output", scene, "--size", 900, "--variation", 0.1)[0] == 0
    planes = []
    for number in (1, 2, 3):
        outputs = [tmp_path / f"{kind}{number}.fits" for kind in ("difference", "score")]
        code, _, messages = run(
            "subtract", scene / "science.fits", scene / "template.fits", "--threads", number,
            "--output", outputs[0], "--score-output", outputs[1], "--noise", "measured",
        )  # fmt: skip
        assert code == 0, messages
        planes.append(
            [
                fits.getdata(path, name)
                for path in outputs
                for name in ("IMAGE", "VARIANCE", "MASK", "PSF", "KERNEL")
            ]
        )
    for others in planes[1:]:
        for plane, other in zip(planes[0], others, strict=True):
            np.testing.assert_array_equal(plane, other)
