"""Claims: the same command on the same inputs writes the same bytes, but for the dates and times
that it writes; where a date is given it writes the very same ones, on any number of threads, from
any directory; dates that are none are refused in one sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from every_command import COMMANDS, filled_in, images, make_products
from scenes import command
from surveys import make_pairs, write_manifest
from whitediff.dates import VARIABLE, dated, fits_date, given_date

DATE = 1_700_000_000
AS_FITS = "2023-11-14T22:13:20.000"
"""The same moment, by ``date -u -d @1700000000``."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pairs(tmp_path_factory.mktemp("pair"), 1)[0]


@pytest.fixture(scope="module")
def made(pair, tmp_path_factory):
    """A directory with the products that other commands read."""
    directory = tmp_path_factory.mktemp("made")
    make_products(pair, directory)
    rows = [{"name": "a"} | dict(zip(("science", "template"), images(directory), strict=True))]
    write_manifest(
        directory / "night.csv", [*rows, {**rows[0], "name": "b", "template": "no.fits"}]
    )
    return directory


def contents(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def differences(one, other):
    """Where two directories differ, other than in DATE, the sums of headers, and times of LOG."""
    assert sorted(one) == sorted(other)
    found = []
    for name in one:
        if one[name] == other[name]:
            continue
        if not name.endswith(".fits"):
            found.append(name)
            continue
        first, second = (fits.HDUList.fromstring(content[name]) for content in (one, other))
        for a, b in zip(first, second, strict=True):
            free = {"DATE", "CHECKSUM"} | ({"DATASUM"} if a.name == "LOG" else set())
            found += [
                f"{name}[{a.name}] {card.keyword}"
                for card, other_card in zip(a.header.cards, b.header.cards, strict=True)
                if card.keyword not in free and str(card) != str(other_card)
            ]
            if a.data is None:
                continue
            if a.name == "LOG":
                same = all(np.array_equal(a.data[n], b.data[n]) for n in ("kind", "text"))
            else:
                same = a.data.tobytes() == b.data.tobytes()
            found += [] if same else [f"{name}[{a.name}]"]
    return found


def run(arguments, where, *, threads=1, seed=0, date: object = DATE, temporary=None):
    """A command in a process of its own, as different as processes may be."""
    environment = os.environ | {
        "PYTHONHASHSEED": str(seed),
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "WHITEDIFF_NUM_THREADS": str(threads),
    }
    environment.pop(VARIABLE, None)
    if date is not None:
        environment[VARIABLE] = str(date)
    if temporary is not None:
        environment["TMPDIR"] = str(temporary)
    done = subprocess.run(
        [sys.executable, "-m", "whitediff", *map(str, arguments)],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


def twice(arguments, directory, *, name="out", date: object = DATE, threads=(1, 2), codes=(0,)):
    """Contents of the outputs of a command that was run in two ways, with one output directory."""
    results = []
    for i, number in enumerate(threads):
        output = directory / name
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        (where := directory / f"where{i}" / ("deep" * i)).mkdir(parents=True, exist_ok=True)
        code, messages = run(
            arguments, where, threads=number, seed=1 + 76 * i, date=date, temporary=where
        )
        assert code in codes, messages
        results.append(contents(output))
        time.sleep(0.01)
    return results


# Dates


def test_a_date_is_the_contexts_else_the_environments(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert given_date() is None
    assert fits_date() is None
    monkeypatch.setenv(VARIABLE, f"{DATE}")
    assert given_date() == DATE
    assert fits_date() == AS_FITS
    with dated(0):
        assert fits_date() == "1970-01-01T00:00:00.000"
    monkeypatch.setenv(VARIABLE, "253402300799")
    assert fits_date() == "9999-12-31T23:59:59.000"


@pytest.mark.parametrize("text", ["today", "-1", "1.5", "٣", "253402300800", "9" * 5000])
def test_a_date_that_is_none_is_refused_before_the_work(pair, tmp_path, monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    code, _, messages = command("subtract", *pairs_of(pair), "--output", tmp_path / "d.fits")
    assert code == 1
    assert messages.count("\n") == 1
    assert f"{VARIABLE} must be a whole number of seconds since 1970-01-01" in messages
    assert repr(text[:40]) in messages
    assert os.listdir(tmp_path) == []


def pairs_of(pair):
    return pair / "science.fits", pair / "template.fits"


# Commands


def test_two_subtractions_are_the_same_bytes(pair, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(DATE))
    results = []
    for threads in (1, 2):
        output = tmp_path / "out"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        code, _, messages = command(
            *("subtract", *pairs_of(pair), "--output", output / "d.fits", "-q"),
            *("--catalog", output / "c.ecsv", "--report", output / "r.html"),
            *("--threads", threads),
        )
        assert code == 0, messages
        results.append(contents(output))
    assert results[0] == results[1]
    with fits.open(output / "d.fits", checksum=True) as hdus:
        dates = {hdu.header["DATE"] for hdu in hdus if "DATE" in hdu.header}
        assert np.isnan(hdus["LOG"].data["seconds"]).all()
    assert dates == {AS_FITS}
    assert '"stages":[]' in (output / "r.html").read_text()


def test_the_option_alone_gives_the_first_of_dates(pair, tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    output = tmp_path / "a.fits"
    code, _, messages = command(
        "convert", pair / "science.fits", "--output", output, "-q", "--reproducible"
    )
    assert code == 0, messages
    assert fits.getheader(output)["DATE"] == "1970-01-01T00:00:00.000"
    assert given_date() is None


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_writes_the_same_bytes(made, name):
    one, other = twice(filled_in(COMMANDS[name], made), made)
    assert one
    assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("name", ["subtract", "subtract --compress", "convert masked-image"])
def test_without_a_date_only_dates_and_times_differ(made, name):
    one, other = twice(filled_in(COMMANDS[name], made), made, date=None)
    # The page shows the times of LOG.
    assert [where for where in differences(one, other) if where != "r.html"] == []


@pytest.mark.slow
def test_batches_write_the_same_bytes_and_go_on(made):
    arguments = ["batch", made / "night.csv", "--output", made / "out/night"]
    # One of its two pairs fails.
    one, other = twice([*arguments, "--workers", 2], made, codes=(1,))
    assert "night/batch.jsonl" in one
    assert one == other
    table = Table.read(made / "out/night/batch-summary.ecsv", format="ascii.ecsv")
    assert list(table["outcome"]) == ["done", "failed"]
    assert np.isnan(table["seconds"]).all()
    # What is there holds, by its content.
    product = made / "out/night/a.difference.fits"
    before = product.stat()
    code, messages = run([*arguments, "--resume"], made)
    assert code == 1, messages
    assert product.stat() == before
    assert contents(made / "out") == one
    damaged = bytearray(product.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    product.write_bytes(damaged)
    run([*arguments, "--resume"], made)
    assert contents(made / "out") == one


def test_times_of_packed_tiles_are_not_kept(pair, tmp_path, monkeypatch):
    """Whatever the clock says when they are packed."""
    monkeypatch.setenv(VARIABLE, str(DATE))
    found = []
    for moment in (1e9, 1.5e9):
        with monkeypatch.context() as patch:
            patch.setattr("gzip.time.time", lambda moment=moment: moment)
            output = tmp_path / f"{moment:g}.fits"
            code, _, messages = command(
                "convert",
                pair / "science.fits",
                "--output",
                output,
                "--format",
                "masked-image",
                "-q",
            )
        assert code == 0, messages
        found.append(output.read_bytes())
    assert found[0] == found[1]
    with fits.open(output, checksum=True) as hdus, fits.open(pair / "science.fits") as original:
        np.testing.assert_array_equal(hdus["IMAGE"].data, original["IMAGE"].data)
