from __future__ import annotations

import collections
import gc
import logging
import shutil
import subprocess

import numpy as np
import pytest

CASES = 4
"""Slow cases of a test that are run each time, unless ``@pytest.mark.cases`` says another number.
The others, further seeds and kinds of the same, are wide."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow cases as wide that are not in an even sample of their test's."""
    slow = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("wide"):
            slow[item.nodeid.split("[")[0]].append(item)
    for cases in slow.values():
        marker = cases[0].get_closest_marker("cases")
        number = marker.args[0] if marker else CASES
        chosen = {round(i) for i in np.linspace(0, len(cases) - 1, number)}
        for i, item in enumerate(cases):
            if i not in chosen:
                item.add_marker(pytest.mark.wide)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260801)


@pytest.fixture(autouse=True)
def usual_logging():
    """No test finds what commands before it, or fixtures of its module, set up for messages."""
    logger = logging.getLogger("whitediff")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the command line in this process: exit code, standard output, standard error."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        from whitediff.cli.main import main

        monkeypatch.setattr("sys.argv", ["whitediff", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capfd.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run_command


@pytest.fixture
def small_disk(tmp_path):
    """Directory that is a disk of 3 MB, where we may mount one."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=3m", "whitediff-test", str(directory)]
    if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("no small disk may be mounted here")
    yield directory
    gc.collect()
    subprocess.run(["umount", "-l", str(directory)], check=True)
