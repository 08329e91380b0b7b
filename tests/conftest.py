from __future__ import annotations

import logging

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260801)


@pytest.fixture(autouse=True)
def own_logging():
    """What a command sets up for its messages is gone before the next test."""
    logger = logging.getLogger("whitediff")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)


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
