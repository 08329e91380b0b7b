"""Damaged and hostile files of every format, drawn from a seed (`tests/assault`).

Claims: each is refused with one sentence that names it, or read as the whole file, or what changed
is told of; where there is no checksum it may change.  None ends in another error, or never; and
each that failed once is tried again.
"""

from __future__ import annotations

import pytest

from assault.damage import DAMAGES
from assault.outcomes import Case, cases, outcome, recipes, run
from assault.targets import MAKERS

# Where astropy fails while it opens a file, it leaves it to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)

SEED = 20261129
FEW, MANY = 300, 1700


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    pytest.importorskip("piff")
    pytest.importorskip("pyarrow")
    return tmp_path_factory.mktemp("assault")


def claim(chosen, directory):
    counts, failures = run(chosen, directory)
    assert not failures, "\n".join(failures)
    assert sum(counts.values()) == len(chosen)
    return counts


def test_few(directory):
    counts = claim(cases(FEW, SEED), directory)
    # Neither is everything refused, nor nothing.
    assert counts["refused"] > FEW / 3
    assert counts["equal"] > FEW / 10


@pytest.mark.slow
def test_many(directory):
    counts = claim(cases(MANY, SEED + 1), directory)
    assert counts["told"] > 0
    assert counts["refused"] > MANY / 3


def test_what_failed_once(directory):
    assert recipes()
    claim(recipes(), directory)


def test_whole_files_are_read(directory, monkeypatch):
    monkeypatch.setitem(DAMAGES, "none", lambda rng, data: data)
    for name in MAKERS:
        assert outcome(Case(name, "none", 0), directory) == ("equal", ""), name


def test_failures_are_counted(directory, monkeypatch):
    import assault.outcomes

    def shorter(rng, data):
        return data

    monkeypatch.setitem(DAMAGES, "none", shorter)
    assault.targets.target("csv", directory)
    whole = assault.targets._made["csv"]
    for read, kind in (
        (lambda path: 1 / 0, "unexpected"),
        (lambda path: {"x": "other"}, "untold"),
        (lambda path: _for_ever(), "hung"),
    ):
        broken = assault.targets.dataclasses.replace(whole, read=read)
        monkeypatch.setattr(assault.outcomes, "target", lambda *_, broken=broken: broken)
        monkeypatch.setattr(assault.outcomes, "SECONDS", 0.2)
        assert outcome(Case("csv", "none", 0), directory)[0] == kind
    broken = assault.targets.dataclasses.replace(whole, read=lambda path: {}, has_sums=True)
    monkeypatch.setattr(assault.outcomes, "target", lambda *_: broken)
    assert outcome(Case("csv", "none", 0), directory)[0] == "silent"


def _for_ever():
    while True:
        pass
