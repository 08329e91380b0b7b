"""Claims: a stop ends every command that writes, with the sentence of one and no outputs, though
Python drops the exception that it raises or a library turns it into another; signals are handled
afterwards as before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

from every_command import COMMANDS, filled_in, make_products
from surveys import make_pairs
from whitediff.interruptions import heed, interruptible
from whitediff.numerics.threads import side_by_side, use_threads


class Kept:
    """Something that weak references can point to."""


def stop_and_drop(number: int) -> None:
    """Get a signal in the callback of a weak reference, whose exceptions Python drops."""
    kept = Kept()
    reference = weakref.ref(kept, lambda gone: signal.raise_signal(number))
    del kept
    assert reference() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_python_drops_is_heeded(number):
    before = signal.getsignal(number)
    with interruptible():
        heed()
        stop_and_drop(number)
        with pytest.raises(KeyboardInterrupt):
            heed()
    heed()
    assert signal.getsignal(number) is before


def test_other_threads_are_left_alone():
    ended = []

    def work() -> None:
        with interruptible():
            heed()
        ended.append(True)

    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert ended == [True]


def test_threads_that_work_for_the_main_one_stop():
    use_threads(2)

    def stopped():
        signal.raise_signal(signal.SIGTERM)

    def beside():
        started = time.monotonic()
        while time.monotonic() < started + 60:
            heed()
            time.sleep(0.01)

    before = time.monotonic()
    with interruptible(), pytest.raises(KeyboardInterrupt):
        side_by_side(stopped, beside)
    use_threads(None)
    assert time.monotonic() < before + 10


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX")
def test_an_interrupt_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            heed()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("inputs")
    make_products(make_pairs(directory / "pairs", 1)[0], directory)
    return directory


SWALLOWED = """if True:
    import signal, sys
    how, *sys.argv[1:] = sys.argv[1:]
    sys.argv[0] = "whitediff"
    import whitediff.dates
    from whitediff.cli.main import main
    given = whitediff.dates.given_date
    def stopped():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as stop:
            if how == "converted":
                raise ValueError("no good") from stop
        return given()
    whitediff.dates.given_date = stopped
    main()
"""
"""Runs a command that is stopped as it begins, where a library swallows that."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how"), [*((name, "dropped") for name in COMMANDS), ("subtract", "converted")]
)
def test_a_stop_that_a_library_swallows_ends_every_command(inputs, tmp_path, name, how):
    for entry in inputs.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    out = tmp_path / "out"
    out.mkdir()
    run = [sys.executable, "-c", SWALLOWED, how, *filled_in(COMMANDS[name], tmp_path)]
    ended = subprocess.run(run, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "whitediff: interrupted; no output was written."
    assert [path for path in out.rglob("*") if path.is_file()] == []
