"""What is said of a run is said once, by the command and in a batch's journal alike."""

from __future__ import annotations

import logging

import pytest

from whitediff.cli.console import set_up_logging
from whitediff.surveys.work import _messages

log = logging.getLogger("whitediff.somewhere")


def say():
    for number in (1, 1, 2):
        log.warning("number %d", number)


def test_a_command_says_a_sentence_once(capsys):
    set_up_logging(logging.INFO)
    say()
    assert capsys.readouterr().err == "warning: number 1\nwarning: number 2\n"
    # The next command is another run.
    set_up_logging(logging.INFO)
    say()
    assert capsys.readouterr().err.count("number 1") == 1


@pytest.mark.parametrize("runs", [1, 2])
def test_a_journal_keeps_a_sentence_once(runs):
    for _ in range(runs):
        with _messages() as kept:
            say()
        assert kept == ["number 1", "number 2"]
