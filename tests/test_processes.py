"""Claim: processes that share work out end with the one that started them, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

PARENT = """if True:
    import multiprocessing, time
    from whitediff.numerics.processes import in_processes
    for _ in in_processes(time.sleep, [0, 60], processes=2):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""
"""One of its processes works, the other waits for work."""


def lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # What nobody waited for is dead all the same.
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return not os.path.isdir("/proc/self")


@pytest.mark.skipif(os.name != "posix", reason="no signals")
@pytest.mark.parametrize("which", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_their_parent(which):
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    children = [int(pid) for pid in process.stdout.readline().split()]
    assert len(children) == 2
    assert all(map(lives, children))
    process.send_signal(which)
    # They hold its pipes: it has ended when they have.
    process.communicate(timeout=30)
    end = time.monotonic() + 5
    while any(map(lives, children)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(lives, children))


def test_a_script_without_a_guard_runs_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {os.fspath(TESTS)!r})\n"
        "from scenes import fails_or_dies\n"
        "from whitediff.numerics.processes import in_processes\n"
        "print('begins')\n"
        "print(sorted(i for i, _ in in_processes(fails_or_dies, [0, 2, 4], processes=2)))\n"
    )
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["begins", "[0, 2, 4]"]
