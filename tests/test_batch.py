"""Many pairs: manifests, journal, Dask.

Claims: CSV, ECSV and Parquet say the same; every row may have options of its own; a wrong
manifest gets one sentence before anything is computed.  Products of a batch are those of
``whitediff subtract``, pixel by pixel.  A failure has a reason and stops nobody; a worker that
is killed costs its item a second attempt, and one that kills every worker is given up.  What is
resumed does only what is missing or whose content or parameters changed; a process group that
is killed leaves nothing half, and resumed comes to the same end.  What was finished when a batch
is stopped is recorded, and a stop takes less than three seconds.  A pair that takes too long is
given up, and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import astropy.table
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable

from scenes import command
from surveys import bad_pairs, copy_pair, make_pairs, write_manifest
from whitediff.errors import ArgumentError, DataError, FileFormatError, WhitediffError
from whitediff.options import declarations
from whitediff.runs.numbers import NUMBERS, noise_of
from whitediff.runs.options import SubtractOptions
from whitediff.surveys import work as work_module
from whitediff.surveys.journal import Journal, exclusive, file_state
from whitediff.surveys.manifest import Item, make_items, read_rows
from whitediff.surveys.work import Order, process

distributed = pytest.importorskip("distributed")

from whitediff.surveys import batch  # noqa: E402
from whitediff.surveys.batch import ClusterOptions, connected, work_through  # noqa: E402

pytestmark = [
    # Sockets and loops of distributed that are closed by its garbage collection.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    return make_pairs(tmp_path_factory.mktemp("pairs"), 3)


@pytest.fixture(scope="module")
def cluster():
    """Connection to two workers."""
    with connected(ClusterOptions(workers=2)) as client:
        yield client


@pytest.fixture
def scheduler(cluster):
    return cluster.scheduler.address


def rows_of(pairs, **options):
    return [
        {"science": pair / "science.fits", "template": pair / "template.fits", "name": f"n/{i}"}
        | options
        for i, pair in enumerate(pairs)
    ]


def journal_of(output):
    lines = (output / "batch.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len({record["item"] for record in records}) == len(records)
    return {record["item"]: record for record in records}


def pixels(path):
    with fits.open(path) as hdus:
        return {
            hdu.name: np.array(hdu.data)
            for hdu in hdus
            if hdu.is_image and hdu.data is not None and hdu.name != "JSON"
        }


def assert_same_products(first, second):
    one, other = pixels(first), pixels(second)
    assert set(one) == set(other)
    assert {"IMAGE", "VARIANCE", "MASK", "KERNEL", "PSF"} <= set(one)
    for name, data in one.items():
        np.testing.assert_array_equal(data, other[name], err_msg=name)


def stamps(output):
    """What a product is recognised by: a file that is written again has another number.

    Those still being written, under hidden names, are none; `leftovers` has them.
    """
    paths = [
        path
        for path in output.rglob("*.fits")
        if path.is_file() and not path.parent.name.startswith(".")
    ]
    return {str(p): (os.stat(p).st_ino, os.stat(p).st_mtime_ns) for p in paths}


def leftovers(output):
    names = {".batch.lock"}
    return [p for p in output.rglob(".*") if p.name not in names]


# Manifests

TYPES = {
    name: declarations(SubtractOptions)[name]
    for name in (
        "kernel_order",
        "constant",
        "align_method",
        "science_psf",
        "science_variance",
        "kernel",
    )
}


def test_manifests_of_all_kinds_say_the_same(tmp_path):
    table = astropy.table.Table(
        {
            "science": ["a.fits", "sub/b.fits[SCI,2]"],
            "template": ["/t/t.fits", "t.fits"],
            "kernel_order": astropy.table.MaskedColumn([1, 0], mask=[False, True]),
            "constant": [True, False],
            "visit": [10, 11],
        }
    )
    table.write(tmp_path / "m.ecsv")
    table.write(tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_text(
        "# a night\nscience, template,kernel-order,constant,visit\n"
        'a.fits, /t/t.fits,1,true,10\n "sub/b.fits[SCI,2]",t.fits,,false,11\n'
    )
    results = []
    for name in ("m.csv", "m.ecsv", "m.parquet"):
        path = tmp_path / name
        items = make_items(
            read_rows(path),
            path,
            tmp_path / "out",
            products=("difference", "score"),
            types=TYPES,
            options={"kernel_order": 3, "fill": "mean"},
        )
        results.append(items)
    assert results[0] == results[1] == results[2]
    first, second = results[0]
    assert (first.name, second.name) == ("a", "b-SCI-2")
    assert first.science == str(tmp_path / "a.fits")
    assert second.science == str(tmp_path / "sub/b.fits[SCI,2]")
    assert first.template == "/t/t.fits"
    assert first.options == {"kernel_order": 1, "fill": "mean", "constant": True}
    assert second.options == {"kernel_order": 3, "fill": "mean", "constant": False}
    assert first.outputs == {
        "difference": str(tmp_path / "out/a.difference.fits"),
        "score": str(tmp_path / "out/a.score.fits"),
    }
    assert second.extra == {"visit": "11"}


def test_files_in_a_manifest_stand_beside_it(tmp_path):
    rows = [
        {
            "science": "s3://bucket/a.fits",
            "template": "t.fits",
            "science_variance": "sigma:noise.fits",
            "kernel": "old.fits; /x/old2.fits",
        }
    ]
    (item,) = make_items(rows, tmp_path / "m.csv", tmp_path, types=TYPES)
    assert item.science == "s3://bucket/a.fits"
    assert item.name == "a"
    assert item.options == {
        "science_variance": f"sigma:{tmp_path / 'noise.fits'}",
        "kernel": (str(tmp_path / "old.fits"), "/x/old2.fits"),
    }
    assert set(item.files) == {"science_variance", "kernel"}
    (item,) = make_items(
        [{"science": "a.fits", "template": "t.fits", "science_psf": "psf.fits"}],
        tmp_path / "m.csv",
        tmp_path,
        types=TYPES,
    )
    assert item.options == {"science_psf": str(tmp_path / "psf.fits")}


def test_a_colon_in_a_name_is_part_of_it(pairs, tmp_path):
    """Times are in many names; only variance, sigma and weight are kinds."""
    pair = copy_pair(pairs[0], tmp_path / "2026-01-01T00:00:00")
    (pair / "science.fits").rename(pair / "sci:2026-01-01T00:00:00.fits")
    row = {
        "science": "2026-01-01T00:00:00/sci:2026-01-01T00:00:00.fits",
        "template": "2026-01-01T00:00:00/template.fits",
        "science_psf": "psf:1.fits",
    }
    (item,) = make_items([row], tmp_path / "m.csv", tmp_path, types=TYPES)
    assert item.science == str(pair / "sci:2026-01-01T00:00:00.fits")
    assert item.options["science_psf"] == str(tmp_path / "psf:1.fits")
    record = process(Order(item=dataclasses.replace(item, options={}, files=())))
    assert record["outcome"] == "done", record


def test_nothing_is_written_that_is_read(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for science, message in (
        ("a.difference.fits", "row 1"),
        ("link/b.difference.fits[1]", "row 2"),
    ):
        rows = [
            {"science": "s.fits", "template": "t.fits", "name": "a"},
            {"science": "s.fits", "template": "t.fits", "name": "b"},
            {"science": science, "template": "t.fits", "name": "c"},
        ]
        with pytest.raises(ArgumentError, match=f"{message}: would write .*, which row 3 reads"):
            make_items(rows, tmp_path / "m.csv", tmp_path)
    rows[2] = {"science": "s.fits", "template": "t.fits", "name": "c", "kernel": "a.score.fits"}
    assert len(make_items(rows, tmp_path / "m.csv", tmp_path, types=TYPES)) == 3
    with pytest.raises(ArgumentError, match=r"row 1: would write .*, which row 3 reads"):
        make_items(rows, tmp_path / "m.csv", tmp_path, products=("score",), types=TYPES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("science,name\na.fits,x\n", r"m\.csv: has no column template \(it has science, name\)"),
        ("science,template\na.fits,\n", r"m\.csv, row 1: has no template"),
        ("science,template\n", r"m\.csv: has no rows"),
        ("science,template\na.fits,b.fits,c\n", "row 1 has not as many cells as the header"),
        ("science,template,kernel_ordr\na,b,1\n", "'kernel_ordr' is no option; is 'kernel_order'"),
        (
            "science,template,kernel_order\na,b,x\n",
            r"row 1: kernel_order 'x': 'x' is neither a number",
        ),
        ("science,template\n1/a.fits,t\n2/a.fits,t\n", "rows 1 and 2 would both write 'a'"),
        ("science,template,name\na,b,../c\n", r"the name '\.\./c' must be a file's name"),
        ("science,template,products\na,b,sum\n", "'sum' is no product; products are difference"),
        (
            "science,template,kernel,kernel_order\na,b,c,1\n",
            "row 1: kernel_order has no effect with kernel",
        ),
        (
            "science,template,align_method\na,b,adaptive\n",
            "row 1: align_method has no effect without align",
        ),
    ],
)
def test_wrong_manifests_get_a_sentence(tmp_path, text, message):
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises((ArgumentError, FileFormatError), match=message):
        make_items(read_rows(path), path, tmp_path, types=TYPES)


@pytest.mark.parametrize("side", ["science", "template"])
@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("gain", (0.0, -1.0, np.nan, np.inf)),
        ("read_noise", (-1.0, np.nan, np.inf)),
        ("exposure_time", (0.0, -1.0, np.nan, np.inf)),
        ("saturation", (0.0, -1.0, np.nan, np.inf)),
        ("variance", (0.0, -1.0, np.nan, np.inf)),
    ],
)
def test_numbers_out_of_range_are_refused_before_a_pair_is_begun(tmp_path, side, option, values):
    name = f"{side}_{option}"
    path = tmp_path / "m.csv"
    for value in values:
        for text, common, where in (
            (f"science,template,{name}\na,b,{value}\n", {}, "row 1"),
            ("science,template\na,b\n", {name: value}, "the options for all rows"),
        ):
            path.write_text(text)
            types = {name: declarations(SubtractOptions)[name]}
            message = rf"^\S*m\.csv, {where}: {name} must .*; got {value:g}\.$"
            with pytest.raises(ArgumentError, match=message):
                make_items(read_rows(path), path, tmp_path, types=types, options=common)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_zero_points_of_a_manifest_are_magnitudes(tmp_path, value):
    path = tmp_path / "m.csv"
    path.write_text(f"science,template,zero_point\na,b,{value}\n")
    types = {"zero_point": declarations(SubtractOptions)["zero_point"]}
    with pytest.raises(ArgumentError, match=r"m\.csv, row 1: The zero point must be"):
        make_items(read_rows(path), path, tmp_path, types=types)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.txt", b"", "must end in .csv, .ecsv or .parquet"),
        ("m.parquet", b"PAR1 nothing", "cannot be read as PARQUET"),
        ("m.csv", b"science,template\n\xff\xfe,b\n", "is not in UTF-8; save it"),
        ("m.ecsv", b"science template\na b\n", "cannot be read as ECSV"),
        ("none.csv", None, "no such file; a manifest is a table"),
    ],
)
def test_files_that_are_no_manifest_get_a_sentence(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        read_rows(tmp_path / name)


# Journal


def test_a_journal_survives_the_death_of_its_writer(tmp_path):
    journal = Journal(tmp_path / "batch.jsonl")
    assert journal.read() == {}
    journal.append({"item": "a", "n": 1})
    journal.append({"item": "b", "n": 2})
    journal.append({"item": "a", "n": 3})
    with journal.path.open("ab") as stream:
        stream.write(b'{"item": "c", "n"')
    records = journal.read()
    assert records == {"a": {"item": "a", "n": 3}, "b": {"item": "b", "n": 2}}
    journal.rewrite(records.values())
    journal.append({"item": "c", "n": 4})
    assert [r["n"] for r in journal.read().values()] == [3, 2, 4]
    (tmp_path / "batch.jsonl").write_text("Dear diary\n")
    with pytest.raises(FileFormatError, match="line 1 is no result of a batch"):
        journal.read()


@pytest.mark.parametrize(
    ("tail", "kept"),
    [(b'{"item": "c", "outc', "ab"), (b'{"item": "c"}', "abc"), (b"", "ab"), (b"17", "ab")],
)
def test_half_a_line_at_the_end_is_dropped_and_a_whole_one_kept(tmp_path, tail, kept):
    path = tmp_path / "batch.jsonl"
    path.write_bytes(b'{"item": "a"}\n{"item": "b"}\n' + tail)
    journal = Journal(path)
    assert "".join(journal.read()) == kept
    journal.rewrite(journal.read().values())
    journal.append({"item": "d"})
    assert "".join(journal.read()) == kept + "d"


def test_a_line_that_does_not_fit_leaves_no_half(tmp_path, monkeypatch):
    path = tmp_path / "batch.jsonl"
    journal = Journal(path)
    journal.append({"item": "a"})
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limit[1]))
    try:
        with pytest.raises(FileFormatError, match="go on with --resume"):
            journal.append({"item": "b", "reason": "too long for what is left"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before
    # What another program left half is no beginning of the next line.
    path.write_bytes(before + b'{"item": "b", "rea')
    journal.append({"item": "c"})
    assert list(journal.read()) == ["a", "c"]
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("name", ["linked/one", "sub/linked/one", "file"])
def test_names_do_not_leave_the_output_directory_through_links(tmp_path, name):
    output, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (output / "sub").mkdir(parents=True)
    for folder in (output, output / "sub"):
        (folder / "linked").symlink_to(elsewhere)
    (output / "file.difference.fits").symlink_to(elsewhere / "file.fits")
    (output / "again").symlink_to(output / "sub")
    manifest = tmp_path / "m.csv"
    rows = [{"science": "a.fits", "template": "b.fits", "name": name}]
    with pytest.raises(ArgumentError, match=r"row 1: .* a link leads out of the output directory"):
        make_items(rows, manifest, output)
    # Within it links may lead where they like, as the directory itself may be one.
    (tmp_path / "link").symlink_to(output)
    for inside in ("again/one", "sub/one", "new/one"):
        for directory in (output, tmp_path / "link"):
            make_items([rows[0] | {"name": inside}], manifest, directory)


def test_a_file_is_known_by_its_content(tmp_path):
    path = tmp_path / "a.fits"
    path.write_bytes(b"content")
    state = file_state(f"{path}[SCI]")
    # sha256sum of the seven bytes.
    assert state["sha256"].startswith("ed7002b439e9ac845f22357d822bac14")
    assert not state["settled"]
    old = time.time_ns() - 10**10
    os.utime(path, ns=(old, old))
    assert file_state(str(path), state)["sha256"] == state["sha256"]
    # Other content with the same size and times: the time of change betrays it.
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(old, old))
    assert file_state(str(path), state | {"settled": True})["sha256"] != state["sha256"]
    # A settled file is not read again.
    known = file_state(str(path)) | {"settled": True, "sha256": "as before"}
    assert file_state(str(path), known)["sha256"] == "as before"
    with pytest.raises(FileFormatError, match="no such file"):
        file_state(str(tmp_path / "none.fits"))
    os.mkfifo(tmp_path / "pipe.fits")
    for name in (tmp_path / "pipe.fits", "/dev/zero"):
        with pytest.raises(FileFormatError, match="is a pipe or a device"):
            file_state(str(name))


def test_two_batches_do_not_share_a_directory(tmp_path):
    with (
        exclusive(tmp_path / "lock"),
        pytest.raises(ArgumentError, match="another batch is writing here"),
        exclusive(tmp_path / "lock"),
    ):
        pass
    with exclusive(tmp_path / "lock"):
        pass


# Numbers


def test_whiteness_on_a_sample_is_that_of_the_frame():
    from whitediff import Exposure

    rng = np.random.default_rng(11)
    profile = np.exp(-0.5 * (np.arange(-8, 9) / 2.0) ** 2)
    psf = np.outer(profile, profile)
    noise = rng.normal(0, 2, (2300, 2100)).astype(np.float32)
    # Neighbours share noise: filtered with the PSF the variance is close to 1 + 2·0.5/1.25.
    noise[:, 1:] += 0.5 * noise[:, :-1].copy()
    sources = np.zeros(noise.shape, bool)
    sources[::50] = True
    exposure = Exposure.from_arrays(noise, variance=5.0, mask={"SOURCE": sources}, psf=psf)
    found = noise_of(exposure, score=False)
    from whitediff.diagnostics.measure import whiteness

    whole = whiteness(noise, exposure.variance, ~sources, psf)
    assert found.pixels < 0.95 * whole.pixels
    error = np.hypot(found.filtered_variance_ratio_error, whole.filtered_variance_ratio_error)
    assert abs(found.filtered_variance_ratio - whole.filtered_variance_ratio) < 4 * error
    assert whole.filtered_variance_ratio > 1 + 20 * error
    exposure.psf = None
    with pytest.raises(DataError, match="no PSF"):
        noise_of(exposure, score=False)


# Items


def order_for(pair, output, name="one", **options):
    outputs = {"difference": str(output / f"{name}.difference.fits")}
    item = Item(name, str(pair / "science.fits"), str(pair / "template.fits"), outputs, options)
    return Order(item=item)


def test_a_product_is_that_of_subtract(pairs, tmp_path):
    record = process(order_for(pairs[0], tmp_path, kernel_order=1))
    assert record["outcome"] == "done", record
    single = tmp_path / "single.fits"
    files = (pairs[0] / "science.fits", pairs[0] / "template.fits")
    code, _, messages = command(
        "subtract", *files, "--output", single, "--kernel-order", 1, "--threads", 1
    )
    assert code == 0, messages
    assert_same_products(record["outputs"]["difference"]["path"], single)
    # The numbers are those of the header, and JSON can hold all of it.
    header = fits.getheader(single)
    for card, name in NUMBERS.items():
        # A card has 16 digits; without a zero point there is no magnitude.
        expected = header.get(card)
        if isinstance(expected, float):
            expected = pytest.approx(expected, rel=1e-15)
        assert record["products"]["difference"].get(name) == expected
    assert record == json.loads(json.dumps(record, allow_nan=False))
    noise = record["products"]["difference"]["noise"]
    error = noise["filtered_variance_ratio_error"]
    assert abs(noise["filtered_variance_ratio"] - 1) < 4 * error
    assert sum(v for k, v in record["seconds"].items() if k != "total") > 0
    assert record["seconds"]["matching"] > 0


def test_failures_by_the_machine_are_not_final(pairs, tmp_path, monkeypatch):
    order = order_for(pairs[0], tmp_path)
    before = tmp_path / "one.difference.fits"
    for error, final in (
        (DataError("Too few."), True),
        (OSError(28, "No space left on device"), False),
        (MemoryError(), False),
        (KeyError("x"), False),
    ):
        before.write_text("of other parameters")

        def fail(*given, error=error, **options):
            raise error

        monkeypatch.setattr(work_module, "run_subtraction", fail)
        record = process(order)
        assert (record["outcome"], record["final"]) == ("failed", final)
        assert record["reason"]
        assert not before.exists()
    # Wrapped as outputs.replacing does it.

    def wrapped(*given, **options):
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise FileFormatError("out.fits: cannot be written: No space left.") from error

    monkeypatch.setattr(work_module, "run_subtraction", wrapped)
    record = process(order)
    assert (record["reason"], record["final"]) == ("out.fits: cannot be written: No space left.", 0)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_worker_has_as_many_threads_as_it_is_told(pairs, tmp_path, monkeypatch, threads):
    import threadpoolctl

    from whitediff.numerics.threads import available_threads, use_threads

    seen = {}

    def look(*given, **options):
        seen["own"] = available_threads()
        seen["blas"] = [
            pool["num_threads"]
            for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas"
        ]
        return []

    monkeypatch.setattr(work_module, "run_subtraction", look)
    try:
        process(dataclasses.replace(order_for(pairs[0], tmp_path), threads=threads))
    finally:
        use_threads(None)
    assert seen["own"] == threads
    assert seen["blas"]
    assert max(seen["blas"]) <= threads


def test_the_pace_is_that_of_what_was_worked_on(monkeypatch):
    from whitediff.cli import batch

    now = [0.0]
    monkeypatch.setattr(batch.time, "monotonic", lambda: now[0])
    pace = batch._Pace(1000)
    for _ in range(400):
        pace.count({"outcome": "done", "unchanged": True})
    assert "left" not in str(pace)
    for i in range(20):
        now[0] += 6.0
        pace.count({"outcome": "failed" if i == 3 else "done"})
    # 20 in two minutes, 580 to go.
    assert str(pace) == "10 per minute, 58:00 left, 1 failed"
    assert pace.is_due()
    assert not pace.is_due()


def test_inputs_out_of_reach_take_no_product_away(pairs, tmp_path):
    """Once they are back, and the same, nothing is done again."""
    pair = copy_pair(pairs[0], tmp_path / "in")
    output = tmp_path / "out"
    order = order_for(pair, output, kernel_order=0)
    done = process(order)
    product = stamps(output)
    assert done["outcome"] == "done", done
    (pair / "template.fits").rename(pair / "away.fits")
    lost = done
    for _ in range(2):
        lost = process(dataclasses.replace(order, before=lost))
        assert (lost["outcome"], lost["final"]) == ("failed", False)
        assert "no such file" in lost["reason"]
        assert stamps(output) == product
    (pair / "away.fits").rename(pair / "template.fits")
    found = process(dataclasses.replace(order, before=lost))
    assert found == done | {"unchanged": True}
    # Back, but another: the product is made again.
    shutil.copy(pairs[1] / "template.fits", pair / "template.fits")
    shutil.copy(pairs[1] / "science.fits", pair / "science.fits")
    other = process(dataclasses.replace(order, before=lost))
    assert other["outcome"] == "done"
    assert stamps(output) != product


def test_other_versions_are_refused(pairs, tmp_path):
    record = process(dataclasses.replace(order_for(pairs[0], tmp_path), version="0.0.1"))
    assert "install the same version" in record["reason"]
    assert not record["final"]


# The engine, with work that is not ours


def survive(order):
    """Die at the first attempt."""
    mark = Path(order.item.options["mark"])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"item": order.item.name, "outcome": "done"}


def kill(order):
    with open(order.item.options["mark"], "a") as stream:
        stream.write("x")
    if order.item.name == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"item": order.item.name, "outcome": "done"}


def plain(name, **options):
    return Order(item=Item(name, "s.fits", "t.fits", {}, options))


def test_an_item_whose_worker_is_killed_is_tried_again(cluster, tmp_path):
    orders = [plain(f"i{i}", mark=str(tmp_path / f"m{i}")) for i in range(1)]
    orders += [plain(f"j{i}", mark=str(Path(__file__))) for i in range(6)]
    records = []
    work_through(cluster, orders, lambda order, record: records.append(record), survive)
    assert sorted(r["item"] for r in records) == sorted(order.item.name for order in orders)
    assert all(record["outcome"] == "done" for record in records)
    assert (tmp_path / "m0").exists()


def hang(order):
    """Pairs called hang never answer."""
    if order.item.name.startswith("hang"):
        folder = Path(order.item.outputs["difference"]).parent / ".hang.fits.abcd_123"
        folder.mkdir(exist_ok=True)
        (folder / "hang.fits").write_text("half")
        time.sleep(600)
    return {"item": order.item.name, "outcome": "done"}


def test_a_pair_that_never_answers_is_given_up_and_nothing_else(tmp_path):
    names = ["a", "hang", "b", "c", "hang2", "d", "e"]
    orders = [
        Order(Item(name, "s.fits", "t.fits", {"difference": str(tmp_path / "hang.fits")}))
        for name in names
    ]
    records = {}
    start = time.monotonic()
    with connected(ClusterOptions(workers=1)) as client:
        work_through(
            client,
            orders,
            lambda order, record: records.update({order.item.name: record}),
            hang,
            timeout=1.0,
        )
        assert len(client.scheduler_info()["workers"]) <= 1
    assert time.monotonic() - start < 60
    assert sorted(records) == sorted(names)
    for name, record in records.items():
        if name.startswith("hang"):
            assert record["outcome"] == "failed"
            assert not record["final"]
            assert "took longer than 0.0166667 minutes" in record["reason"]
            assert "--timeout" in record["reason"]
        else:
            assert record == {"item": name, "outcome": "done"}
    assert leftovers(tmp_path) == []


def finish_two(order):
    """The first two pairs answer, the others take their time."""
    if order.item.name not in ("a", "b"):
        time.sleep(600)
    return {"item": order.item.name, "outcome": "done"}


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, pytest.param(FileFormatError, marks=pytest.mark.slow)]
)
def test_what_was_finished_at_a_stop_is_recorded(error):
    """The batch is stopped at the first result, when the second one is there."""
    names = ["a", "b", "c", "d"]
    told = []

    def tell(order, record):
        told.append(order.item.name)
        if len(told) == 1:
            time.sleep(3)
            raise error("stop")

    with connected(ClusterOptions(workers=2)) as client:
        with pytest.raises(error):
            work_through(client, map(plain, names), tell, finish_two)
        stop = time.monotonic()
    assert time.monotonic() - stop < 3
    # The first was not dealt with, as far as the batch knows.
    assert sorted(set(told)) == ["a", "b"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_an_item_that_kills_every_worker_is_given_up(workers, tmp_path):
    """With one worker, others always wait beside the deadly one."""
    names = ["a", "b", "deadly", "c", "d", "e"]
    orders = [plain(name, mark=str(tmp_path / name)) for name in names]
    records = {}
    with connected(ClusterOptions(workers=workers)) as client:
        work_through(client, orders, lambda order, r: records.update({order.item.name: r}), kill)
    assert set(records) == set(names)
    failed = {name for name, record in records.items() if record["outcome"] == "failed"}
    assert failed == {"deadly"}
    assert "its worker died each time" in records["deadly"]["reason"]
    assert not records["deadly"]["final"]
    assert len((tmp_path / "deadly").read_text()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("patience", ["1ms", "15s"])
def test_workers_whose_nanny_was_given_up_come_back(patience, tmp_path, monkeypatch):
    """Dask gives it up where another worker does not come in time, as on a busy machine."""
    monkeypatch.setitem(batch._SETTINGS, "distributed.deploy.lost-worker-timeout", patience)
    orders = [plain("first", mark=str(tmp_path / "mark")), plain("second", mark=__file__)]
    records = []
    with connected(ClusterOptions(workers=1)) as client:
        work_through(client, orders, lambda order, record: records.append(record), survive)
    assert [record["outcome"] for record in records] == ["done", "done"]


def test_a_batch_whose_workers_cannot_be_started_again_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "_ALONE", 3.0)
    monkeypatch.setitem(batch._SETTINGS, "distributed.deploy.lost-worker-timeout", "1ms")
    with connected(ClusterOptions(workers=1)) as client:
        # None is started again.
        monkeypatch.setattr(client.cluster, "scale", lambda number: None)
        orders = [plain("first", mark=str(tmp_path / "mark"))]
        with pytest.raises(WhitediffError, match="none could be started again"):
            work_through(client, orders, lambda order, record: None, survive)


@pytest.mark.slow
def test_the_memory_of_a_worker_is_bounded():
    with connected(ClusterOptions(workers=1, worker_memory=1_500_000_000)) as client:
        (worker,) = client.scheduler_info()["workers"].values()
        assert worker["memory_limit"] == 1_500_000_000
        assert worker["nthreads"] == 1


# All of it


@pytest.fixture(scope="module")
def done(pairs, cluster, tmp_path_factory):
    """A batch of three good pairs, two bad ones and one with options of its own."""
    directory = tmp_path_factory.mktemp("batch")
    bad = bad_pairs(directory / "bad", pairs[0])[:4:3]
    reasons = {row["name"]: row.pop("reason") for row in bad}
    own = {
        "name": "own",
        "products": "difference score",
        "kernel_order": 0,
        "noise": "white",
        "constant": "true",
    }
    copies = [copy_pair(pair, directory / f"in{i}") for i, pair in enumerate(pairs)]
    rows = [*rows_of(copies), *bad, rows_of(copies)[1] | own]
    manifest = write_manifest(directory / "m.csv", rows)
    output = directory / "out"
    arguments = ("batch", manifest, "--output", output, "--kernel-order", 1)
    arguments = (*arguments, "--scheduler", cluster.scheduler.address)
    code, text, messages = command(*arguments)
    return directory, arguments, rows, reasons, (code, text, messages)


def test_a_batch_does_what_can_be_done_and_says_why_not(done, pairs):
    directory, _, rows, reasons, (code, text, messages) = done
    output = directory / "out"
    assert code == 1, messages
    assert "4 of 6 pairs done, 2 failed" in text
    records = journal_of(output)
    assert list(records) == [row["name"] for row in rows]
    for name, word in reasons.items():
        assert records[name]["outcome"] == "failed"
        assert word in records[name]["reason"]
        assert f"{name}: {records[name]['reason']}" in text.replace("\n", "")
        assert not (output / f"{name}.difference.fits").exists()
    table = QTable.read(output / "batch-summary.ecsv")
    assert list(table["item"]) == list(records)
    assert list(table["outcome"]).count("done") == 4
    good = table["outcome"] == "done"
    header = fits.getheader(output / "n/0.difference.fits")
    assert table["difference_kernel_sum"][0] == header["WDKSUM"]
    assert np.isfinite(table["difference_filtered_variance_ratio"][good]).all()
    assert np.isnan(table["difference_kernel_sum"][~good]).all()
    assert (output / "batch-summary.png").stat().st_size > 10_000
    assert leftovers(output) == []


def test_a_row_has_options_of_its_own(done, tmp_path):
    directory, _, rows, _, _ = done
    output = directory / "out"
    single = [tmp_path / "d.fits", tmp_path / "s.fits"]
    row = rows[-1]
    code, _, messages = command(
        *("subtract", row["science"], row["template"], "--threads", 1),
        *("--output", single[0], "--score-output", single[1]),
        *("--kernel-order", 0, "--noise", "white", "--constant"),
    )
    assert code == 0, messages
    assert_same_products(output / "own.difference.fits", single[0])
    assert_same_products(output / "own.score.fits", single[1])
    assert fits.getheader(output / "n/1.difference.fits")["WDKORDER"] == 1
    assert fits.getheader(output / "own.difference.fits")["WDKORDER"] == 0
    assert set(journal_of(output)["own"]["products"]) == {"difference", "score"}


def test_results_are_not_overwritten_by_accident(done):
    directory, arguments, _, _, _ = done
    before = stamps(directory / "out")
    code, _, messages = command(*arguments)
    assert code == 1
    assert "has a result of 'n/0' already; go on with --resume" in messages
    code, _, messages = command(*arguments, "--resume", "--overwrite")
    assert code == 1
    assert "contradict each other" in messages
    assert stamps(directory / "out") == before


@pytest.mark.slow
def test_what_is_resumed_does_only_what_changed(done, pairs):
    directory, arguments, rows, _, _ = done
    output = directory / "out"
    first, records = stamps(output), journal_of(output)
    code, text, _ = command(*arguments, "--resume")
    assert code == 1
    # The pair with a missing file is tried again; the one that cannot be aligned is not.
    assert "2 failed, 5 of them as before" in text
    assert stamps(output) == first

    # Touched, but the same; changed; and a product that was cut.
    (directory / "in0" / "science.fits").touch()
    (directory / "in1" / "template.fits").write_bytes((pairs[2] / "template.fits").read_bytes())
    (directory / "in1" / "science.fits").write_bytes((pairs[2] / "science.fits").read_bytes())
    cut = output / "n/2.difference.fits"
    cut.write_bytes(cut.read_bytes()[:5000])
    code, text, _ = command(*arguments, "--resume")
    again = stamps(output)
    changed = {Path(path).name for path in first if again[path] != first[path]}
    assert changed == {
        "1.difference.fits", "2.difference.fits", "own.difference.fits", "own.score.fits"
    }  # fmt: skip
    assert_same_products(output / "n/1.difference.fits", output / "n/2.difference.fits")
    assert journal_of(output)["n/0"]["key"] == records["n/0"]["key"]

    # Another parameter for all rows but that which has its own.
    code, text, _ = command(*arguments[:-3], 0, *arguments[-2:], "--resume")
    third = stamps(output)
    changed = {Path(path).name for path in first if third[path] != again[path]}
    assert changed == {f"{i}.difference.fits" for i in range(3)}
    assert list(journal_of(output)) == [row["name"] for row in rows]
    assert leftovers(output) == []


# Wrong usage


def test_what_cannot_run_says_so(pairs, tmp_path):
    manifest = write_manifest(tmp_path / "m.csv", rows_of(pairs))
    output = tmp_path / "out"
    code, _, messages = command(
        "batch", manifest, "--output", output, "--scheduler", "tcp://127.0.0.1:9", "--workers", 2
    )
    assert code == 2
    assert "--workers has no effect with --scheduler" in messages
    code, _, messages = command(
        "batch", manifest, "--output", output, "--scheduler", "nonsense://x"
    )
    assert code == 1
    assert "nonsense://x: no Dask scheduler answers there" in messages
    taken = tmp_path / "file"
    taken.write_text("")
    code, _, messages = command("batch", manifest, "--output", taken / "out")
    assert code == 1
    assert f"{taken}" in messages
    assert "cannot be written" in messages
    code, _, messages = command("batch", manifest, "--output", output, "--products", "sum")
    assert code == 2
    assert "'sum' is none of difference" in messages
    code, _, messages = command(
        *("batch", manifest, "--output", output, "--kernel", manifest, "--kernel-order", 1)
    )
    assert code == 2
    assert "--kernel-order: has no effect with --kernel" in messages
    # Options of subtract that a pair of a batch cannot have.
    for column, remedy in (("hdu", "FILE[EXT]"), ("report", "whitediff report"), ("memory", "--")):
        wrong = write_manifest(tmp_path / "wrong.csv", rows_of(pairs, **{column: "x"}))
        code, _, messages = command("batch", wrong, "--output", output)
        assert code == 1
        assert f"the column '{column}' has no effect in a batch" in messages
        assert remedy in messages


@pytest.mark.slow
def test_without_dask_a_batch_says_what_to_install(pairs, tmp_path):
    manifest = write_manifest(tmp_path / "m.csv", rows_of(pairs))
    code = (
        "import sys; sys.modules['distributed'] = None\n"
        f"sys.argv = ['whitediff', 'batch', {str(manifest)!r}, '--output', 'out']\n"
        "from whitediff.cli.main import main\nmain()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 1
    assert "pip install 'whitediff[survey]'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_full_disk_ends_the_batch_with_a_sentence(scheduler, pairs, tmp_path):
    resource = pytest.importorskip("resource")
    output = tmp_path / "out"
    manifest = write_manifest(tmp_path / "m.csv", rows_of(pairs[:1]))
    arguments = [sys.executable, "-B", "-m", "whitediff", "batch", manifest, "--output", output]
    # The batch's own process may write 100 bytes to a file; the workers all they like.  Without -B
    # Python would leave half a module in its cache.
    result = subprocess.run(
        [*map(str, arguments), "--scheduler", scheduler],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
    )
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert "batch.jsonl: cannot be written: File too large" in lines[0]
    assert "go on with --resume" in lines[0]


# Killed


def start(manifest, output, *options):
    arguments = [sys.executable, "-m", "whitediff", "batch", manifest, "--output", output]
    return subprocess.Popen(
        [*map(str, arguments), *map(str, options)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_for_lines(output, number, process, seconds=120):
    journal, end = output / "batch.jsonl", time.monotonic() + seconds
    while time.monotonic() < end:
        if journal.exists() and journal.read_bytes().count(b"\n") >= number:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    raise AssertionError(f"no {number} lines within {seconds} s")


def good_and_bad(pairs, directory, number):
    """As many rows, six of them bad and the others of a few pairs, and the bad ones' words."""
    bad = bad_pairs(directory / "bad", pairs[0])
    reasons = {row["name"]: row.pop("reason") for row in bad}
    good = []
    for i in range(number - len(bad)):
        pair = pairs[i % len(pairs)]
        good.append(rows_of([pair])[0] | {"name": f"{i % 3}/good{i}"})
    step = len(good) // len(bad)
    for i, row in enumerate(bad):
        good.insert(i * (step + 1), row)
    return good, reasons


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_batch_comes_to_the_same_end(pairs, tmp_path, which):
    number = 24
    rows, reasons = good_and_bad(pairs, tmp_path, number)
    manifest = write_manifest(tmp_path / "m.csv", rows)
    ends = {}
    for name in ("straight", "killed"):
        output = tmp_path / name
        options = ("--workers", 2, "--kernel-order", 0)
        process = start(manifest, output, *options)
        if name == "killed":
            wait_for_lines(output, number // 2, process)
            os.killpg(process.pid, which)
            process.communicate()
            at_death, recorded = stamps(output), Journal(output / "batch.jsonl").read()
            assert number // 2 <= len(recorded) < number
            process = start(manifest, output, *options, "--resume")
        _, messages = process.communicate()
        assert process.returncode == 1, messages
        records = journal_of(output)
        assert list(records) == [row["name"] for row in rows]
        ends[name] = {
            key: (record["outcome"], record.get("reason"), record.get("products"))
            for key, record in records.items()
        }
        assert leftovers(output) == []
        assert len(stamps(output)) == number - len(reasons)
        for key, word in reasons.items():
            assert word in records[key]["reason"]
        for key in set(records) - set(reasons):
            assert records[key]["outcome"] == "done", records[key]
    assert ends["straight"] == ends["killed"]
    for path in stamps(tmp_path / "straight"):
        other = Path(path.replace("straight", "killed"))
        assert_same_products(path, other)
    # What was recorded was not done again.
    at_end = stamps(tmp_path / "killed")
    for name, record in recorded.items():
        if record["outcome"] == "done":
            path = record["outputs"]["difference"]["path"]
            assert at_end[path] == at_death[path], name
    redone = [path for path in at_death if at_end[path] != at_death[path]]
    # At most what two workers had under way, and one ahead for each.
    assert len(redone) <= 4


@pytest.mark.slow
def test_a_killed_worker_costs_a_second_attempt(pairs, tmp_path):
    rows, _ = good_and_bad(pairs, tmp_path, 20)
    rows = [row for row in rows if "good" in row["name"]]
    output = tmp_path / "out"
    process = start(
        write_manifest(tmp_path / "m.csv", rows), output, "--workers", 2, "--kernel-order", 0
    )
    wait_for_lines(output, 4, process)
    worker = next(iter(Journal(output / "batch.jsonl").read().values()))["process"]
    os.kill(worker, signal.SIGKILL)
    _, messages = process.communicate()
    assert process.returncode == 0, messages
    records = journal_of(output)
    assert all(record["outcome"] == "done" for record in records.values())
    assert len({record["process"] for record in records.values()}) == 3
    assert leftovers(output) == []


@pytest.mark.slow
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_batch_cleans_up(pairs, tmp_path, which):
    rows, _ = good_and_bad(pairs, tmp_path, 20)
    output = tmp_path / "out"
    process = start(
        write_manifest(tmp_path / "m.csv", rows), output, "--workers", 2, "--kernel-order", 0
    )
    wait_for_lines(output, 3, process)
    start_of_stop = time.monotonic()
    os.killpg(process.pid, which)
    _, messages = process.communicate(timeout=60)
    assert time.monotonic() - start_of_stop < 3
    assert process.returncode == 1
    assert b"go on with --resume" in messages
    assert b"Traceback" not in messages
    assert leftovers(output) == []


@pytest.mark.slow
def test_a_lost_scheduler_ends_the_batch_with_a_sentence(pairs, tmp_path):
    rows, _ = good_and_bad(pairs, tmp_path, 30)
    rows = [row for row in rows if "good" in row["name"]]
    address = tmp_path / "dask.json"

    def launched(*arguments):
        return subprocess.Popen(
            [sys.executable, "-m", *arguments, "--no-dashboard", "--scheduler-file", str(address)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    engine = launched("distributed.cli.dask_scheduler", "--port", "0", "--host", "127.0.0.1")
    worker = launched("distributed.cli.dask_worker", "--nthreads", "1")
    try:
        end = time.monotonic() + 60
        while not address.exists():
            assert time.monotonic() < end
            time.sleep(0.1)
        manifest, output = write_manifest(tmp_path / "m.csv", rows), tmp_path / "out"
        scheduler = json.loads(address.read_text())["address"]
        process = start(manifest, output, "--scheduler", scheduler, "--kernel-order", 0)
        wait_for_lines(output, 3, process)
        engine.kill()
        _, messages = process.communicate(timeout=120)
    finally:
        for each in (engine, worker):
            each.kill()
            each.wait()
    assert process.returncode == 1
    assert messages.decode().splitlines() == [
        "whitediff: The Dask scheduler was lost; what is done is recorded, go on with --resume."
    ]
