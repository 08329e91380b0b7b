"""Claims: the outputs of one command appear together or not at all, whenever it is stopped, and
what it says of that is true, of every command that writes; what killed runs leave is removed by
the next one, and what living ones write is not; nothing of another name is touched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from every_command import COMMANDS, filled_in, make_products
from scenes import command
from surveys import make_pairs, write_manifest
from whitediff import outputs
from whitediff.errors import FileFormatError, OutputExistsError
from whitediff.outputs import check_output, noting, replacing, staged, together

fcntl = pytest.importorskip("fcntl")

STOPPED = """if True:
    import importlib, sys, time
    where, *sys.argv[1:] = sys.argv[1:]
    sys.argv[0] = "whitediff"
    from whitediff.cli.main import main
    name, _, function = where.partition(":")
    module = importlib.import_module(name)
    def wait(*args, **kwargs):
        print("waiting", flush=True)
        time.sleep(60)
    setattr(module, function, wait)
    main()
"""
"""Runs a command that comes to a halt where it is told."""

MOMENTS = [
    "whitediff.runs.subtract:read_input",
    "whitediff.formats.finished:finish",
    "whitediff.runs.detect:detect",
    "whitediff.formats.catalogs:_write_ecsv",
    "whitediff.runs.report:write_report",
]
NAMES = ("d.fits", "s.fits", "c.ecsv", "r.html")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pairs(tmp_path_factory.mktemp("pair"), 1)[0]


def arguments(pair, directory, *more):
    output, score, catalog, report = (directory / name for name in NAMES)
    return [
        *("subtract", pair / "science.fits", pair / "template.fits", "--output", output),
        *("--score-output", score, "--catalog", catalog, "--report", report, *more),
    ]


def halted(where, *options):
    """Process that has come to a halt where it is told."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, where, *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"waiting\n", process.communicate()[1].decode()
    return process


def write_all(directory, content, *, overwrite=False, then=lambda: None):
    with together():
        for name in NAMES:
            with replacing(directory / name, overwrite=overwrite) as temporary:
                temporary.write_text(content)
        then()


def contents(directory):
    """All that is there, with what hidden folders hold."""
    return {
        str(path.relative_to(directory)): path.read_bytes().decode("latin1")
        for path in directory.rglob("*")
        if path.is_file()
    }


# One process


def test_outputs_appear_together(tmp_path):
    with noting() as written:
        with together():
            for name in NAMES:
                with replacing(tmp_path / name, overwrite=False) as temporary:
                    temporary.write_text(name)
            assert not any((tmp_path / name).exists() for name in NAMES)
            assert staged(tmp_path / "d.fits").read_text() == "d.fits"
            assert written == []
        # What all others tell of comes last.
        assert written == [tmp_path / name for name in reversed(NAMES)]
    assert contents(tmp_path) == {name: name for name in NAMES}
    assert staged(tmp_path / "d.fits") == tmp_path / "d.fits"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_if_one_fails_all_stay_as_they_were(tmp_path, error):
    def fail():
        with replacing(tmp_path / "last", overwrite=True) as temporary:
            temporary.write_text("half")
            raise error

    (tmp_path / "s.fits").write_text("old")
    with pytest.raises(error):
        write_all(tmp_path, "new", overwrite=True, then=fail)
    assert contents(tmp_path) == {"s.fits": "old"}
    assert sorted(os.listdir(tmp_path)) == ["s.fits"]


def test_an_output_that_came_meanwhile_keeps_all_from_being_moved(tmp_path):
    def come():
        (tmp_path / "r.html").write_text("another's")

    with pytest.raises(OutputExistsError, match=r"r\.html: exists already"):
        write_all(tmp_path, "new", then=come)
    assert contents(tmp_path) == {"r.html": "another's"}


def test_no_output_is_written_twice_by_accident(tmp_path):
    with together():
        with replacing(tmp_path / "a", overwrite=False) as temporary:
            temporary.write_text("first")
        with pytest.raises(OutputExistsError), replacing(tmp_path / "a", overwrite=False):
            pass
        with replacing(tmp_path / "a", overwrite=True) as temporary:
            temporary.write_text("second")
    assert contents(tmp_path) == {"a": "second"}


@pytest.mark.parametrize("number", range(2 * len(NAMES)))
def test_a_move_that_fails_is_undone(tmp_path, monkeypatch, number):
    write_all(tmp_path, "old")
    moves = []
    replace = os.replace

    def failing(self, target):
        moves.append(target)
        if len(moves) == number + 1:
            raise OSError(5, "Input/output error")
        replace(self, target)
        return target

    monkeypatch.setattr("pathlib.Path.replace", failing)
    with pytest.raises(FileFormatError, match="cannot be written: Input/output error"):
        write_all(tmp_path, "new", overwrite=True)
    assert contents(tmp_path) == dict.fromkeys(NAMES, "old")
    assert sorted(os.listdir(tmp_path)) == sorted(NAMES)


@pytest.mark.parametrize("number", range(2 * len(NAMES)))
def test_nothing_new_ever_stands_beside_anything_old(tmp_path, monkeypatch, number):
    """Whatever a kill between two moves would leave."""
    write_all(tmp_path, "old")
    seen = []
    replace = os.replace

    def watched(self, target):
        seen.append({(tmp_path / n).read_text() for n in NAMES if (tmp_path / n).exists()})
        replace(self, target)
        return target

    monkeypatch.setattr("pathlib.Path.replace", watched)
    write_all(tmp_path, "new", overwrite=True)
    assert len(seen) == 2 * len(NAMES)
    assert len(seen[number]) <= 1
    assert contents(tmp_path) == dict.fromkeys(NAMES, "new")


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_until_all_are_moved(tmp_path, monkeypatch, which):
    replace = os.replace
    caught = []

    def interrupted(self, target):
        os.kill(os.getpid(), which)
        replace(self, target)
        return target

    def handler(number, frame):
        caught.append(sorted(os.listdir(tmp_path)))

    monkeypatch.setattr("pathlib.Path.replace", interrupted)
    before = signal.signal(which, handler)
    try:
        write_all(tmp_path, "new")
        assert signal.getsignal(which) is handler
    finally:
        signal.signal(which, before)
    assert len(caught) == 1
    assert set(NAMES) <= set(caught[0])
    assert contents(tmp_path) == dict.fromkeys(NAMES, "new")


def test_directories_are_tested_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(FileFormatError, match=rf"nothing may be written to {tmp_path};"):
        check_output(tmp_path / "a.fits", overwrite=False)


# Leftovers


def leftover(directory, name="d.fits", *, suffix="abcd_123"):
    """What a killed run leaves."""
    folder = directory / f".{name}.{suffix}"
    folder.mkdir()
    (folder / name).write_text("half")
    (folder / f"{name}.wdlock").touch()
    return folder


def test_what_killed_runs_leave_is_removed(tmp_path):
    # Also of outputs that this run does not write.
    mine, others = leftover(tmp_path), leftover(tmp_path, "x.fits")
    (mine / "d.fits.before").write_text("old")
    write_all(tmp_path, "new")
    assert not mine.exists()
    assert not others.exists()
    assert contents(tmp_path) == dict.fromkeys(NAMES, "new")


def test_what_others_write_or_keep_is_not(tmp_path):
    kept = [
        leftover(tmp_path, suffix="original.fits"),
        leftover(tmp_path, "x.fits", suffix="short"),
    ]
    unlocked = leftover(tmp_path, "y.fits")
    (unlocked / "y.fits.wdlock").unlink()
    visible = tmp_path / "d.fits.abcd_123"
    kept.append(leftover(tmp_path, "z.fits").rename(visible))
    target = leftover(tmp_path, "elsewhere", suffix="x")
    (tmp_path / ".elsewhere.abcd_123").symlink_to(target)
    kept += [unlocked, target]
    living = leftover(tmp_path, "w.fits")
    with (living / "w.fits.wdlock").open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_all(tmp_path, "new")
        assert (visible / "z.fits").exists()
        assert all(len(list(folder.iterdir())) >= 1 for folder in kept)
        assert len(list(living.iterdir())) == 2
    write_all(tmp_path, "newer", overwrite=True)
    assert not living.exists()


def test_a_file_system_without_locks_does(tmp_path, monkeypatch):
    def unsupported(stream, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    folder = leftover(tmp_path)
    write_all(tmp_path, "new")
    assert folder.exists()
    assert {name: contents(tmp_path)[name] for name in NAMES} == dict.fromkeys(NAMES, "new")


def test_outputs_may_be_called_like_our_own_files(tmp_path):
    for name in ("new", "before", ".wdlock", "a.wdlock", "a.before", "a"):
        with replacing(tmp_path / name, overwrite=False) as temporary:
            temporary.write_text(name)
    assert contents(tmp_path) == {n: n for n in os.listdir(tmp_path)}
    assert len(os.listdir(tmp_path)) == 6


# Commands


def test_a_killed_run_leaves_nothing_beyond_the_next(pair, tmp_path):
    """One stopped, one killed, and both at work while a third one writes."""
    where = "whitediff.formats.finished:finish"
    killed = halted(where, *arguments(pair, tmp_path, "--threads", 1))
    living = halted("whitediff.runs.subtract:read_input", *arguments(pair, tmp_path))
    killed.kill()
    killed.communicate()
    assert not any((tmp_path / name).exists() for name in NAMES)
    assert [name.startswith(".d.fits.") for name in os.listdir(tmp_path)] == [True]
    with replacing(tmp_path / "other.fits", overwrite=False) as temporary:
        temporary.write_text("new")
    assert os.listdir(tmp_path) == ["other.fits"]
    living.send_signal(signal.SIGTERM)
    _, messages = living.communicate(timeout=30)
    assert living.returncode == 1
    assert b"interrupted; no output was written." in messages
    assert os.listdir(tmp_path) == ["other.fits"]


def test_a_catalogue_that_fails_takes_the_difference_along(pair, tmp_path, monkeypatch):
    from whitediff.errors import DataError

    def failing(*args, **kwargs):
        raise DataError("The sky fell down.")

    monkeypatch.setattr("whitediff.runs.detect.detect", failing)
    for name in NAMES:
        (tmp_path / name).write_text("old")
    code, _, messages = command(*arguments(pair, tmp_path, "--overwrite"))
    assert code == 1
    assert "The sky fell down." in messages
    assert contents(tmp_path) == dict.fromkeys(NAMES, "old")


@pytest.mark.slow
def test_what_is_read_back_is_what_was_written(pair, tmp_path):
    """Catalogue and page are those of the commands by themselves."""
    together_, apart = tmp_path / "together", tmp_path / "apart"
    for directory in (together_, apart):
        directory.mkdir()
    # Old ones that must not be read.
    for name in NAMES:
        (together_ / name).write_text("old")
    code, _, messages = command(*arguments(pair, together_, "--overwrite"))
    assert code == 0, messages
    assert f"{together_}/." not in messages
    images = pair / "science.fits", pair / "template.fits"
    output, score = apart / "d.fits", apart / "s.fits"
    code, _, messages = command("subtract", *images, "--output", output, "--score-output", score)
    assert code == 0, messages
    code, _, messages = command("detect", output, "--score", score, "--output", apart / "c.ecsv")
    assert code == 0, messages
    one, other = (Table.read(d / "c.ecsv", format="ascii.ecsv") for d in (together_, apart))
    assert len(one) > 0
    assert one.pformat(max_lines=-1, max_width=-1) == other.pformat(max_lines=-1, max_width=-1)
    assert one.meta["image"] == str(together_ / "d.fits")
    assert "/.d.fits." not in (together_ / "r.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("where", MOMENTS)
@pytest.mark.parametrize(
    ("which", "old"), [(signal.SIGINT, False), (signal.SIGTERM, True), (signal.SIGKILL, True)]
)
def test_whenever_it_is_stopped_there_is_all_or_nothing(pair, tmp_path, where, which, old):
    if old:
        for name in NAMES:
            (tmp_path / name).write_text("old")
    before = contents(tmp_path)
    process = halted(where, *arguments(pair, tmp_path, *(["--overwrite"] if old else [])))
    start = time.monotonic()
    process.send_signal(which)
    _, messages = process.communicate(timeout=30)
    assert time.monotonic() - start < 3
    now = {name: text for name, text in contents(tmp_path).items() if "/" not in name}
    assert now == before
    if which is signal.SIGKILL:
        outputs.remove_leftovers(tmp_path)
    else:
        assert process.returncode == 1
        assert b"interrupted; no output was written." in messages
        assert b"Traceback" not in messages
    assert contents(tmp_path) == before
    assert set(os.listdir(tmp_path)) == set(before)


@pytest.mark.slow
def test_what_was_complete_before_a_stop_is_told(pair, tmp_path):
    """Detectors are written one by one."""
    code = """if True:
        import os, signal, sys
        sys.argv[0] = "whitediff"
        from whitediff import outputs
        move = outputs._move_all
        def stopped(pieces):
            os.kill(os.getpid(), signal.SIGTERM)
            move(pieces)
        outputs._move_all = stopped
        from whitediff.cli.main import main
        main()
    """
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments(pair, tmp_path))],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    there = ", ".join(str(tmp_path / name) for name in reversed(NAMES))
    assert f"whitediff: interrupted; complete are {there}." in process.stderr
    assert set(os.listdir(tmp_path)) == set(NAMES)


# Random moments

KILLED = COMMANDS | {"batch": "batch {i}/../m.csv --output {o}/b --workers 2"}


@pytest.fixture(scope="module")
def inputs(pair, tmp_path_factory):
    directory = tmp_path_factory.mktemp("inputs")
    make_products(pair, directory)
    rows = [{"science": "in/science.fits", "template": "in/template.fits", "name": n} for n in "ab"]
    write_manifest(directory / "m.csv", rows)
    return directory


def killed_at_random(name, directory, *, number, seed):
    """Kill a command some times, and see what is there each time; how often it was at work."""
    output = directory / "out"
    calls = [sys.executable, "-m", "whitediff", *filled_in(KILLED[name], directory)]

    def begun():
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        return subprocess.Popen(calls, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    start = time.monotonic()
    _, messages = begun().communicate()
    duration = time.monotonic() - start
    whole = sorted(visible(output))
    assert whole, messages
    at_work = 0
    # All but the imports, which write nothing; and a bit beyond, since no two runs are as long.
    for share in np.random.default_rng(seed).uniform(0.3, 1.05, number):
        process = begun()
        time.sleep(share * duration)
        process.kill()
        # Processes that outlive it would hold its pipe.
        process.communicate(timeout=30)
        outputs.remove_leftovers(output)
        for folder in output.iterdir():
            if folder.is_dir():
                outputs.remove_leftovers(folder)
        assert not [path for path in output.rglob(".*") if path.name != ".batch.lock"]
        there = sorted(visible(output))
        if process.returncode == 0:
            assert there == whole
            continue
        at_work += 1
        # All of them or none; a kill between two moves leaves some, and each of those is whole.
        assert set(there) <= set(whole)
        for path in there:
            assert_whole(output / path)
    return at_work


def visible(directory):
    return [
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    ]


def assert_whole(path):
    """A file that was cut short or half-written would not end as it should."""
    if path.suffix == ".fits":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with fits.open(path, checksum=True) as hdus:
                assert all(hdu.data is None or hdu.data.size >= 0 for hdu in hdus)
    elif path.suffix == ".ecsv":
        Table.read(path, format="ascii.ecsv")
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>")
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        # What comes after the last newline is left out by whoever goes on.
        for line in path.read_text().split("\n")[:-1]:
            outputs_ = json.loads(line).get("outputs", {})
            assert all((path.parent / each["path"]).is_file() for each in outputs_.values())
    elif path.suffix == ".png":
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
    elif path.suffix == ".parquet":
        assert path.read_bytes().endswith(b"PAR1")
    else:
        assert path.suffix == ".reg"
        assert path.read_bytes().endswith(b"\n")


def test_a_kill_at_any_moment_leaves_nothing_half(inputs):
    killed_at_random("subtract", inputs, number=1, seed=1)


@pytest.mark.slow
@pytest.mark.cases(6)
@pytest.mark.parametrize("name", KILLED)
def test_a_kill_of_any_command_at_any_moment_leaves_nothing_half(inputs, name):
    assert killed_at_random(name, inputs, number=3, seed=len(name)) > 0


# Full disks


@pytest.mark.parametrize(
    ("size", "options", "words"),
    [
        (700, [], "cannot be written: No space left on device; make room in {0}, or choose"),
        (100, ["--memory", "1MB"], "{0}: no temporary file of"),
    ],
)
def test_a_full_disk_is_named(pair, small_disk, size, options, words):
    (small_disk / "rest").write_bytes(bytes((3072 - size) << 10))
    images = pair / "science.fits", pair / "template.fits"
    outputs_ = ["--output", small_disk / "d.fits", "--score-output", small_disk / "s.fits"]
    code, _, messages = command("subtract", *images, *outputs_, *options)
    assert code == 1
    assert words.format(small_disk) in messages
    assert messages.count("whitediff: ") == 1
    assert "Traceback" not in messages
    # The difference had room, and is not there without the score.
    assert os.listdir(small_disk) == ["rest"]
